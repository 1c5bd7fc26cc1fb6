"""The data-quality report: data directories made by hand, with known holes, against what the report says of them."""

import contextlib
import csv
import io
import json
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
import pytest
from click.testing import CliRunner
from conftest import Ended, Programs, data_files, exchange
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tickcollect.chart import draw, panels
from tickcollect.cli import main
from tickcollect.dataset.replay import GeneratedMarket
from tickcollect.files import FeedPath
from tickcollect.report import FeedDay, Report, ReportError, days_asked, gather, record
from tickcollect.report.proof import MISSING, percent_of
from tickcollect.report.shown import CSV_COLUMNS, HOLES_TOLD, notice, show
from tickcollect.status import FeedStatus, Snapshot, process_identity

BEFORE, DAY, AFTER = "2026-11-19", "2026-11-20", "2026-11-21"
NOW = datetime(2026, 11, 21, 0, 10, tzinfo=UTC)
SPOT = "binance/trade/BTCUSDT"
FUTURES = "binance-futures/trade/BTCUSDT"


NOW_NS = int(NOW.timestamp()) * 10**9
HOUR_NS = 3600 * 10**9


def status(feed: str = SPOT, **facts: Any) -> FeedStatus:
    """Return what a collector says of a feed of which all is known."""
    exchange, stream, symbol = feed.split("/")
    told: dict[str, Any] = {
        "exchange": exchange, "stream": stream, "symbol": symbol, "connected": True, "rows": 1, "rows_per_s": 1.0,
        "last_id": 1, "last_price": "1", "lag_ms": 1.0, "last_row_ns": NOW_NS - 60 * 10**9, "open_gaps": 0,
        "missing_ids": 0, "copies": 0, "refused": 0, "not_trades": 0, "file": "", "file_bytes": 0, "files_sealed": 0,
        "note": "",
    }  # fmt: skip
    return FeedStatus(**{**told, **facts})


def ms(day: str, seconds: float = 0) -> int:
    """Return a time of a UTC day in milliseconds."""
    return round((datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() + seconds) * 1000)


def spread(day: str, number: int) -> list[int]:
    """Return times spread evenly over a day."""
    return [ms(day, 86_400 * (place + 0.5) / number) for place in range(number)]


def csv_rows(feed: str, ids: Sequence[int], times: Sequence[int]) -> bytes:
    """Return the rows that a collector writes."""
    _, stream, symbol = feed.split("/")
    return "".join(
        f"{stream},{time + 7},{symbol},{id_},64120.01,0.5,,,{time},True\n" for id_, time in zip(ids, times, strict=True)
    ).encode()


@dataclass
class Made:
    """A data directory made by hand."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def seal(self, day: str, ids: Sequence[int], feed: str = SPOT, *, told: bool = True) -> Path:
        """Make a sealed file, its rows spread over the day, and tell the journal."""
        _, stream, symbol = feed.split("/")
        text = csv_rows(feed, ids, spread(day, len(ids)))
        name = f"{symbol}-{stream}-{day}-{ids[0]}-{ids[-1]}.csv"
        path = self.path / feed / f"{name}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, text)
        if told:
            hours = [0] * 24
            for at in spread(day, len(ids)):
                hours[(at - ms(day)) // 3_600_000] += 1
            self.tell(
                "sealed", feed, AFTER, file=f"{feed}/{path.name}", rows=len(ids), bytes=path.stat().st_size,
                csv_bytes=len(text), csv_sha256="", first_id=ids[0], last_id=ids[-1], hours=hours,
            )  # fmt: skip
        return path

    def open(self, day: str, ids: Sequence[int], feed: str = SPOT, torn: bytes = b"") -> Path:
        """Make a CSV that still grows."""
        _, stream, symbol = feed.split("/")
        path = self.path / feed / f"{symbol}-{stream}-{day}-{ids[0]}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(csv_rows(feed, ids, spread(day, len(ids))) + torn)
        return path

    def tell(self, event: str, subject: str, day: str = DAY, clock: str = "12:00:00", **facts: Any) -> None:
        """Put something into the journal."""
        self.lines.append({"at": f"{day}T{clock}.000000Z", "event": event, "subject": subject, **facts})

    def numbers(self, event: str, first: int, last: int, feed: str = SPOT, **facts: Any) -> None:
        """Put something about IDs into the journal."""
        self.tell(event, feed, first_id=first, last_id=last, count=last - first + 1, **facts)

    def uploaded(self, path: Path, store: str = "s3://ticks", feed: str = SPOT, **facts: Any) -> None:
        """Put the proof that a store holds a file into the journal."""
        proof = {"bytes": path.stat().st_size if path.exists() else 0, "sha256": "", "checked": "sealed"}
        self.tell("uploaded", feed, AFTER, file=f"{feed}/{path.name}", store=store, **{**proof, **facts})

    def vouch(self, *feeds: FeedStatus, name: str = "status.json", **facts: Any) -> None:
        """Leave the status file of a collector that lives."""
        told: dict[str, Any] = {
            "at_ns": NOW_NS, "pid": os.getpid(), "process": process_identity(os.getpid()), "version": "1",
            "started_ns": NOW_NS - HOUR_NS, "state": "running", "data_dir": "", "feeds": list(feeds),
            "messages_per_s": 1.0, "queue_rows": 0, "queue_limit": 10, "queue_limit_bytes": 10, "reconnects": 0,
            "sealing": 0, "disk_free_bytes": 10**12, "disk_hours_left": None, "problems": [],
        }  # fmt: skip
        self.path.mkdir(exist_ok=True)
        (self.path / name).write_bytes(msgspec.json.encode(Snapshot(**{**told, **facts})))

    def measure(
        self, seconds: float, connected_s: float, feed: str = SPOT, rows: int = 0, day: str = DAY, end_s: float = 86_400
    ) -> None:
        """Put what was measured up to midnight, or up to another second of the day, into its file."""
        since = datetime.fromisoformat(day) + timedelta(seconds=end_s - seconds)
        line: dict[str, Any] = {"at": f"{AFTER}T00:00:00Z", "event": "measured", "feed": feed}
        line["since"] = f"{since:%Y-%m-%dT%H:%M:%SZ}"
        line |= {"seconds": seconds, "connected_s": connected_s, "reconnects": 1, "rows": rows}
        path = self.path / "measured" / f"{day}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"latency_ms": {"12.5": rows // 2, "50.0": rows - rows // 2}}) + "\n")

    def report(self, days: int = 1, last: str = DAY, wanted: Sequence[str] = (), *, store: str = "") -> Report:
        """Write the journal and report."""
        self.path.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (self.path / "journal.jsonl").write_text(text, encoding="utf-8")
        asked = days_asked(last, days, date(2026, 11, 21))
        feeds = [FeedPath(*feed.split("/")) for feed in wanted]
        return gather(self.path, asked, wanted=feeds, store=store, now=NOW)

    def feed(self, **how: Any) -> FeedDay:
        """Report on the only feed there is."""
        (feed,) = self.report(**how).feeds
        return feed


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "data")


@pytest.fixture
def whole(made: Made) -> Made:
    """Make three days that follow each other: 1-100, 101-340, and 341-350 that still grows."""
    made.seal(BEFORE, range(1, 101))
    made.seal(DAY, range(101, 341))
    made.open(AFTER, range(341, 351))
    return made


def of(feed: FeedDay) -> tuple[object, ...]:
    """Return how a feed's IDs are accounted for."""
    assert feed.ids is not None
    return feed.state, feed.ids.expected, feed.ids.held, feed.ids.missing


# --- What is whole -------------------------------------------------------------------------------------------------


def test_day_that_follows_and_is_followed_is_complete(whole: Made) -> None:
    """Every ID of the day is in its file, and the neighbouring days' names join it on both sides."""
    report = whole.report()
    (feed,) = report.feeds
    assert (report.verdict, report.exit_code) == ("complete", 0)
    assert of(feed) == ("complete", 240, 240, {})
    assert (feed.percent, feed.rows, feed.rows_per_hour) == (100.0, 240, [10] * 24)
    assert feed.ids is not None
    assert (feed.ids.first, feed.ids.last, feed.ids.begins, feed.ids.ends) == (101, 340, "follows", "followed")
    assert (feed.files.sealed, feed.files.open, feed.files.uploaded, feed.holes, feed.notes) == (1, 0, None, [], [])
    assert feed.files.csv_size == len(csv_rows(SPOT, range(101, 341), spread(DAY, 240)))


def test_file_that_the_journal_does_not_know_is_read(whole: Made) -> None:
    """Without its line in the journal a file's rows, hours and bytes are counted from the file."""
    told = whole.feed()
    whole.lines.clear()
    assert whole.feed() == told


def test_day_in_several_files_is_complete_if_they_join(made: Made) -> None:
    """Rotated segments, and one that came from history, prove the day together."""
    for first, last in ((1, 40), (41, 41), (42, 100)):
        made.seal(DAY, range(first, last + 1))
    made.open(AFTER, [101])
    feed = made.feed()
    assert of(feed) == ("complete", 100, 100, {})
    assert feed.files.sealed == 3
    assert feed.ids is not None
    assert feed.ids.begins == "first"
    assert feed.notes == ["nothing older is on record"]


def test_growing_day_is_counted_to_its_last_whole_row(made: Made) -> None:
    """Today's CSV counts as far as its rows are whole, and the day is not over."""
    made.seal(DAY, range(1, 11))
    made.open(AFTER, range(11, 31), torn=b"trade,1,BTCUSDT,31,6412")
    made.vouch(status())
    feed = made.feed(last="today")
    assert of(feed) == ("complete", 20, 20, {})
    assert (feed.rows, feed.files.open) == (20, 1)
    assert feed.ids is not None
    assert (feed.ids.last, feed.ids.ends) == (30, "running")
    assert show(made.report(last="today"), None).startswith(
        "● 2026-11-21: complete so far\n  So far every ID of the feed"
    )


def test_csv_without_a_whole_row_counts_nothing(whole: Made) -> None:
    """A CSV whose first row is not whole yet is no row and no trouble."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-900.csv"
    path.write_bytes(b"trade,1,BTC")
    assert of(whole.feed()) == ("complete", 240, 240, {})


def test_rows_out_of_order_across_midnight_are_no_hole(made: Made) -> None:
    """A trade of the old day numbered behind the new day's first leaves files that interleave; nothing is missing."""
    made.seal(DAY, range(1, 100))
    made.seal(AFTER, [100])
    made.seal(DAY, [101])
    made.open(AFTER, [102, 103])
    assert of(made.feed()) == ("complete", 100, 100, {})


def test_crash_between_sealing_and_deletion_counts_rows_once(whole: Made) -> None:
    """The CSV that such a crash leaves beside its sealed file is not counted again."""
    whole.open(DAY, range(101, 341))
    assert whole.feed().rows == 240


def test_same_ids_in_two_files_are_told(whole: Made) -> None:
    """IDs that stand in two files are held once, and the report says so."""
    whole.seal(DAY, range(301, 311))
    feed = whole.feed()
    assert of(feed) == ("complete", 240, 240, {})
    assert feed.notes == ["10 IDs are in more than one file"]


# --- What is missing -----------------------------------------------------------------------------------------------


def holed(made: Made) -> Made:
    """Make three days with a hole of ten, 201-210, in the middle of the second."""
    made.seal(BEFORE, range(1, 101))
    made.seal(DAY, range(101, 201))
    made.seal(DAY, range(211, 341))
    made.open(AFTER, [341])
    return made


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ((), "unexplained"),
        (("filled",), "unexplained"),
        (("gap",), "open"),
        (("file_lost",), "open"),
        (("sync_failed",), "open"),
        (("gap", "filled"), "open"),
        (("gap", "lost"), "lost"),
        (("lost",), "lost"),
    ],
)
def test_hole_between_files_is_missing_for_its_reason(made: Made, events: Sequence[str], reason: str) -> None:
    """What the names show to be missing is missing, whatever the journal says was filled; the journal says why."""
    holed(made)
    for event in events:
        made.numbers(event, 201, 210, reason="too old", source="/history")
    report = made.report()
    (feed,) = report.feeds
    assert (report.verdict, report.exit_code) == ("incomplete", 1)
    assert of(feed) == ("incomplete", 240, 230, {reason: 10})
    assert feed.percent == 95.8333
    (hole,) = feed.holes
    assert (hole.first_id, hole.last_id, hole.missing, hole.filled) == (201, 210, {reason: 10}, 0)
    assert hole.found_at == (f"{DAY}T12:00:00Z" if events else "")
    assert hole.reason == ("too old" if reason == "lost" else "")


def test_ids_never_published_are_not_missing(made: Made) -> None:
    """A hole that history has shown not to exist leaves the day complete, and is counted apart."""
    holed(made).numbers("gap", 201, 210)
    made.numbers("absent", 201, 210)
    feed = made.feed()
    assert of(feed) == ("complete", 240, 230, {})
    assert feed.ids is not None
    assert feed.ids.absent == 10
    assert [(hole.first_id, hole.last_id, hole.absent, hole.missing) for hole in feed.holes] == [(201, 210, 10, {})]


def test_absent_ids_that_were_opened_again_are_missing_until_they_are_settled(made: Made) -> None:
    """What was called absent and showed up after all is missing; once it is settled again, that counts."""
    holed(made).numbers("gap", 201, 210)
    made.numbers("absent", 201, 210)
    made.numbers("reopened", 203, 204, reason="history has its row after all")
    assert of(made.feed()) == ("incomplete", 240, 230, {"open": 2})
    made.numbers("absent", 203, 204)
    assert of(made.feed()) == ("complete", 240, 230, {})


def test_gap_that_was_filled_is_a_gap_and_nothing_is_missing(whole: Made) -> None:
    """A gap whose rows are in the files is told with what was filled and where from."""
    whole.numbers("gap", 150, 169)
    whole.numbers("filled", 150, 169, rows=20, source="/api/v3/historicalTrades", seconds=0.4)
    (hole,) = whole.feed().holes
    assert (hole.first_id, hole.last_id, hole.filled, hole.missing) == (150, 169, 20, {})
    assert hole.source == "/api/v3/historicalTrades"


def test_gap_of_which_a_part_is_lost(made: Made) -> None:
    """One gap, filled in part and lost in part, is one hole with both counts."""
    holed(made).numbers("gap", 191, 210)
    made.numbers("filled", 191, 200, rows=10, source="/history", seconds=1)
    made.numbers("lost", 201, 210, reason="history reaches back 48 hours only")
    (hole,) = made.feed().holes
    assert (hole.first_id, hole.last_id, hole.filled, hole.missing) == (191, 210, 10, {"lost": 10})


@pytest.mark.parametrize("day", [BEFORE, DAY])
def test_hole_across_midnight_counts_with_both_days(made: Made, day: str) -> None:
    """IDs missing between one day's last row and the next one's first are missing on either."""
    made.seal(BEFORE, range(1, 91))
    made.seal(DAY, range(101, 201))
    made.open(AFTER, [201])
    made.numbers("gap", 91, 100)
    feed = made.feed(last=day)
    assert feed.state == "incomplete"
    assert feed.ids is not None
    assert feed.ids.missing == {"open": 10}


def test_day_whose_end_nothing_proves_is_not_complete(made: Made) -> None:
    """After the last row nothing came, the collector did not run to midnight: that is not called complete."""
    made.seal(DAY, range(1, 101))
    made.measure(43_200, 100)
    report = made.report()
    assert report.exit_code == 1
    assert report.feeds[0].ids is not None
    assert report.feeds[0].ids.ends == "unproved"
    assert "no later row continues it" in show(report, None).replace("\n ", "")


def test_day_that_was_watched_past_its_end_is_complete(made: Made) -> None:
    """A slow market's next row may be long in coming; connected past midnight is enough, and is said."""
    made.seal(DAY, range(1, 101))
    made.measure(43_200, 43_200)
    assert made.report().exit_code == 1, "a connection may have been half open up to midnight"
    made.measure(600, 600, day=AFTER, end_s=600)
    report = made.report()
    assert report.exit_code == 0
    assert "known after the end of the day" in report.feeds[0].notes[-1]


def test_file_that_vanished_is_missing(whole: Made) -> None:
    """A sealed file that is gone without an upload's proof leaves its IDs missing, and says which."""
    path = whole.seal(DAY, range(101, 341))
    path.unlink()
    feed = whole.feed()
    assert of(feed) == ("incomplete", 240, 0, {"gone": 240})
    assert feed.rows == 0


@pytest.mark.parametrize("events", [("uploaded",), ("uploaded", "deleted"), ("deleted",)])
def test_file_that_upload_has_deleted_is_held(whole: Made, events: Sequence[str]) -> None:
    """A file that the store has proved to hold counts as if it were here."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    before = whole.feed(store="s3://ticks")
    facts: dict[str, Any] = {"file": f"{SPOT}/{path.name}", "bytes": path.stat().st_size, "store": "s3://ticks"}
    path.unlink()
    for event in events:
        whole.tell(event, SPOT, AFTER, detail="proved", **facts)
    feed = whole.feed(store="s3://ticks")
    assert of(feed) == ("complete", 240, 240, {})
    assert (feed.rows, feed.rows_per_hour, feed.files.size) == (before.rows, before.rows_per_hour, before.files.size)
    assert (before.files.uploaded, feed.files.uploaded) == (0, 1)


def test_days_before_that_upload_has_deleted_still_prove_the_beginning(whole: Made) -> None:
    """The names in the journal join the day to a day whose files are only in the store."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{BEFORE}-1-100.csv.zip"
    whole.uploaded(path)
    path.unlink()
    feed = whole.feed()
    assert feed.ids is not None
    assert (feed.state, feed.ids.begins) == ("complete", "follows")


@pytest.mark.parametrize("damage", ["cut", "other rows", "fewer rows", "no zip"])
def test_damaged_file_holds_nothing(whole: Made, damage: str) -> None:
    """A file that cannot be read, or holds other rows than its name says, leaves its IDs missing and is named."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-40])
        case "no zip":
            path.write_bytes(b"not a zip")
        case _:
            ids = range(102, 342) if damage == "other rows" else [101, *range(103, 341)]
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(path.name.removesuffix(".zip"), csv_rows(SPOT, ids, spread(DAY, len(ids))))
    report = whole.report()
    assert of(report.feeds[0]) == ("incomplete", 240, 0, {"damaged": 240})
    assert any(path.name in trouble for trouble in report.troubles)


def test_file_packed_anew_is_read_and_told(whole: Made) -> None:
    """A file with other bytes than it was sealed with is believed only after its rows were read."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    with zipfile.ZipFile(path) as archive:
        text = archive.read(archive.namelist()[0])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(path.name.removesuffix(".zip"), text)
    report = whole.report()
    assert of(report.feeds[0]) == ("complete", 240, 240, {})
    assert "bytes instead of the" in report.troubles[0]


def test_damaged_file_stays_damaged_whatever_is_asked(made: Made, programs: Programs, tmp_path: Path) -> None:
    """A sealed file that was cut short is neither sent nor deleted, and the report stays not complete and says why."""
    path = made.seal(DAY, range(101, 341))
    made.open(AFTER, [341])
    made.report()
    os.truncate(path, path.stat().st_size // 2)
    config = programs.config(DATA_DIR=str(made.path))
    ended = programs.run("upload", "--to", f"file://{tmp_path}/store", "--delete-after", "0", "--config", config)
    assert ended.code != 0
    assert path.exists()
    told = programs.run("report", "--date", DAY, "--config", config)
    assert told.code == 1
    text = " ".join(told.out.split())
    assert "NOT complete" in text
    assert "240 damaged, IDs 101 to 340" in text
    assert "neither sent nor deleted" in text


def test_upload_that_compared_nothing_counts_only_with_the_bytes_that_were_sealed(whole: Made) -> None:
    """An earlier version sent a damaged file as it was and deleted it here: its rows exist nowhere."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    size = path.stat().st_size
    path.unlink()
    whole.uploaded(path, checked="", bytes=1000)
    whole.tell("deleted", SPOT, AFTER, file=f"{SPOT}/{path.name}", store="s3://ticks", bytes=1000)
    report = whole.report()
    assert of(report.feeds[0]) == ("incomplete", 240, 0, {"damaged": 240})
    assert any(f"1,000 bytes that are not the {size:,} that were sealed" in line for line in report.troubles)
    whole.uploaded(path, checked="", bytes=size)
    feed = whole.feed()
    assert of(feed) == ("complete", 240, 240, {})
    assert any("which compared no rows" in note for note in feed.notes)
    whole.uploaded(path, checked="sealed", bytes=size)
    assert whole.feed().notes == []


def test_upload_without_any_record_of_the_sealing_proves_nothing(whole: Made) -> None:
    """An earlier version's entry alone does not tell whether what was sent was whole."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    whole.lines = [line for line in whole.lines if path.name not in line["file"]]
    whole.uploaded(path, checked="")
    path.unlink()
    assert of(whole.feed()) == ("incomplete", 240, 0, {"gone": 240})


def test_store_with_another_sha256_than_was_sealed_does_not_count(whole: Made) -> None:
    """As many bytes, and others than those that were sealed."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    (sealed,) = [line for line in whole.lines if path.name in line["file"]]
    sealed["sha256"] = "aa"
    whole.uploaded(path, checked="", sha256="bb")
    path.unlink()
    assert of(whole.feed()) == ("incomplete", 240, 0, {"damaged": 240})


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([("damaged", {})], {"damaged": 240}),
        ([("uploaded", {}), ("damaged", {"store": "s3://ticks"})], {}),
        ([("uploaded", {}), ("damaged", {})], {"damaged": 240}),
        ([("uploaded", {}), ("damaged", {}), ("uploaded", {})], {}),
        ([("uploaded", {}), ("store_lost", {"store": "s3://ticks"})], {"gone": 240}),
        ([("uploaded", {}), ("store_lost", {"store": "file:///other"})], {}),
        ([("uploaded", {}), ("store_lost", {"store": "s3://ticks"}), ("uploaded", {})], {}),
        ([("uploaded", {}), ("name_taken", {"store": "s3://ticks"})], {"gone": 240}),
        ([("uploaded", {}), ("name_taken", {})], {"gone": 240}),
        ([("name_taken", {}), ("uploaded", {})], {}),
    ],
)
def test_file_that_is_not_here_is_where_the_newest_word_says(
    whole: Made, events: Sequence[tuple[str, dict[str, str]]], state: dict[str, int]
) -> None:
    """A proof ends with what contradicts it, for its store, or for all where none is named; a new one counts again."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    size = path.stat().st_size
    path.unlink()
    for event, facts in events:
        if event == "uploaded":
            whole.uploaded(path, bytes=size)
        else:
            file: dict[str, Any] = {
                "file": f"{SPOT}/{path.name}",
                "first_id": 101,
                "last_id": 340,
                "count": 240,
                "detail": "as seen",
            }
            whole.tell(event, SPOT, AFTER, **file, **facts)
    feed = whole.feed()
    assert feed.ids is not None
    assert feed.ids.missing == state
    if state and events[-1][0] in {"damaged", "store_lost"}:
        assert feed.holes[0].reason == "as seen"


def test_damaged_file_of_the_same_size_is_read_whole(whole: Made) -> None:
    """A file told to be damaged is believed again only once its rows are right: a good copy may have been put there."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    good = path.read_bytes()
    path.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
    whole.tell("damaged", SPOT, AFTER, file=f"{SPOT}/{path.name}", first_id=101, last_id=340, count=240, detail="x")
    assert of(whole.feed()) == ("incomplete", 240, 0, {"damaged": 240})
    path.write_bytes(good)
    assert of(whole.feed()) == ("complete", 240, 240, {})


def test_damaged_file_that_a_store_holds_is_not_missing(whole: Made) -> None:
    """The file here is cut short, and a store holds what was sealed: that is told, and nothing is missing."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    whole.uploaded(path)
    path.write_bytes(path.read_bytes()[:-40])
    report = whole.report()
    assert of(report.feeds[0]) == ("complete", 240, 240, {})
    assert any(path.name in trouble for trouble in report.troubles)


# --- What nobody knows ---------------------------------------------------------------------------------------------


def today(made: Made) -> Report:
    """Report on a day that is not over, of which 241 to 260 are here."""
    made.seal(DAY, range(1, 241))
    made.open(AFTER, range(241, 261))
    return made.report(last="today")


@pytest.mark.parametrize(
    ("facts", "feed", "reason", "since_s"),
    [
        ({}, {"unknown_since_ns": NOW_NS - 5 * 10**9, "unknown_reason": "disconnected"}, "disconnected", 5),
        ({}, {"connected": False}, "not connected", 60),
        ({"state": "stopping"}, {}, "being stopped", 0),
        ({"state": "stopped"}, {}, "was stopped", 0),
        ({"at_ns": NOW_NS - 11 * 10**9}, {}, "died or hangs", 60),
        ({"at_ns": NOW_NS + 60 * 10**9}, {}, "died or hangs", 60),
        ({"process": process_identity(os.getpid()) + "0"}, {}, "died or hangs", 60),
        ({"queue_limit_bytes": 0}, {}, "an earlier version", 60),
        ({}, {"missing_ids": 4, "open_gaps": 1}, "wait for 4 missing IDs", 0),
    ],
)
def test_day_that_is_not_over_is_unknown_unless_a_live_collector_knows_it(
    made: Made, facts: dict[str, Any], feed: dict[str, Any], reason: str, since_s: int
) -> None:
    """Nothing says complete or 100 %: not the verdict, the table, the JSON, the CSV or the code."""
    made.vouch(status(**feed), **facts)
    report = today(made)
    assert (report.verdict, report.exit_code) == ("unknown", 4)
    (found,) = report.feeds
    assert (found.state, found.percent, found.in_order) == ("unknown", None, False)
    assert found.ids is not None
    assert found.ids.ends == "unknown"
    assert reason in found.unknown_reason
    assert found.unknown_since == f"{NOW - timedelta(seconds=since_s):%Y-%m-%dT%H:%M:%SZ}"
    text = show(report, None)
    assert "complete so far" not in text
    assert "100 %" not in text
    assert notice(report, "tick1", []).level == "warning"


def test_day_that_is_not_over_without_a_status_is_unknown(made: Made) -> None:
    """No collector has left a word, or one that cannot be read: then nobody knows."""
    report = today(made)
    assert (report.verdict, report.feeds[0].unknown_reason) == ("unknown", "no collector runs")
    (made.path / "status.json").write_text("[]")
    report = made.report(last="today")
    assert report.verdict == "unknown"
    assert any("does not hold a status" in line for line in report.troubles)


def test_who_lives_has_the_last_word(made: Made) -> None:
    """Of two collectors of a directory one was killed, and the other goes on with its feed."""
    made.vouch(status(), at_ns=NOW_NS - HOUR_NS, name="status-2.json")
    made.vouch(status())
    assert today(made).verdict == "complete"


def test_what_is_missing_counts_more_than_what_is_unknown(made: Made) -> None:
    """A hole of today is missing; the percentage is of what is known."""
    made.vouch(status(unknown_since_ns=NOW_NS, unknown_reason="disconnected"))
    made.seal(DAY, range(1, 241))
    made.open(AFTER, range(251, 261))
    made.numbers("gap", 241, 250)
    report = made.report(last="today")
    assert (report.verdict, report.exit_code) == ("incomplete", 1)
    assert report.feeds[0].percent == 50
    text = " ".join(show(report, None).split())
    assert "50.00 % of what is known" in text
    assert "1 feed unknown since 00:10:00 UTC (disconnected)" not in text.split("10 IDs missing")[0]


def test_feed_that_was_never_collected_is_unknown_today(made: Made) -> None:
    """A feed of the configuration that waits for its exchange has no row, and nobody knows whether there are any."""
    since_ns = NOW_NS - 30 * 10**9
    made.vouch(status(connected=False, last_row_ns=None, unknown_since_ns=since_ns, unknown_reason="not connected yet"))
    report = made.report(last="today", wanted=[SPOT])
    assert (report.verdict, report.exit_code, report.feeds[0].rows) == ("unknown", 4, 0)
    assert "unknown since 00:09:30 UTC (not connected yet)" in show(report, None)


def known(made: Made, event: str, day: str, clock: str, since: str = "") -> None:
    """Put into the journal what a collector knew."""
    facts = {"since": f"{since or day + 'T' + clock}Z", "reason": "disconnected"} if event == "unknown" else {}
    made.tell(event, "binance", day, clock, count=1, feeds=["trade/BTCUSDT"], **facts)


@pytest.mark.parametrize(
    ("told", "ends"),
    [
        ((), "unproved"),
        ((("known", DAY, "10:00:00"),), "unproved"),
        ((("known", AFTER, "00:00:10"),), "unproved"),
        ((("known", AFTER, "00:01:00"),), "watched"),
        ((("unknown", DAY, "23:59:50"), ("known", AFTER, "00:01:00")), "watched"),
        ((("known", DAY, "10:00:00"), ("unknown", DAY, "23:59:50")), "unproved"),
    ],
)
def test_end_of_a_day_is_proved_by_what_was_known_after_it(
    made: Made, told: Sequence[tuple[str, str, str]], ends: str
) -> None:
    """Without a later row, it must have been known after midnight that nothing came behind the last one."""
    made.seal(DAY, range(1, 101))
    for event, day, clock in told:
        known(made, event, day, clock)
    feed = made.feed()
    assert feed.ids is not None
    assert (feed.ids.ends, feed.state) == (ends, "complete" if ends == "watched" else "incomplete")
    assert (feed.percent == 100) == (ends == "watched")


def test_connected_beyond_midnight_and_half_open_proves_nothing(made: Made) -> None:
    """The connection was open, and no sign of life came over it: that is on record, and nobody knew better since."""
    made.seal(DAY, range(1, 101))
    made.measure(600, 600, day=AFTER, end_s=600)
    known(made, "unknown", AFTER, "00:00:05", f"{DAY}T23:59:50")
    assert made.report().exit_code == 1
    known(made, "known", AFTER, "00:05:00")
    assert made.report().exit_code == 0


def test_entry_that_names_no_feed_any_more_makes_each_unknown(made: Made) -> None:
    """The journal leaves out what is too long for it; whose feeds are unknown is then not known either."""
    made.seal(DAY, range(1, 101))
    made.measure(600, 600, day=AFTER, end_s=600)
    made.tell("known", "binance", feeds=["../..", "trade"])
    assert made.report().exit_code == 0
    made.lines.append({"at": f"{DAY}T23:59:50Z", "event": "unknown", "left_out": ["subject", "feeds"]})
    assert made.report().exit_code == 1


def test_live_collector_proves_the_end_of_yesterday(made: Made) -> None:
    """The next row has not come yet, and a collector knows that there is none."""
    made.seal(DAY, range(1, 101))
    made.vouch(status())
    assert made.report().exit_code == 0


def test_day_on_which_the_collector_was_off_is_complete_if_the_ids_join(whole: Made) -> None:
    """Hours without a connection, and a later row that follows: nothing is missing."""
    known(whole, "unknown", DAY, "08:00:00")
    whole.measure(43_200, 100)
    assert of(whole.feed()) == ("complete", 240, 240, {})


def test_clock_ahead_of_the_exchange_does_not_end_a_day_early(made: Made) -> None:
    """This machine's clock is an hour ahead: where the exchange is, the day is not over."""
    made.seal(DAY, range(1, 101))
    made.vouch(status(connected=False))
    made.tell("clock_wrong", "binance", AFTER, "00:05:00", offset_ms=-3_600_000)
    feed = made.feed()
    assert feed.ids is not None
    assert (feed.state, feed.ids.ends) == ("unknown", "unknown")


@pytest.mark.parametrize("watched", [True, False])
def test_numbering_that_began_anew_unseen_is_unknown(made: Made, *, watched: bool) -> None:
    """Whether the old numbering's last rows are here is known only if the collector was there."""
    made.seal(DAY, range(9_100, 9_200))
    if not watched:
        known(made, "unknown", DAY, "11:00:00")
    made.tell("numbering_restarted", SPOT, last_id=9_199, first_id=1)
    made.seal(DAY, range(1, 51))
    made.open(AFTER, range(51, 60))
    assert made.report().verdict == ("complete" if watched else "unknown")


# --- Markets -------------------------------------------------------------------------------------------------------


def test_market_without_a_row_is_missing(whole: Made) -> None:
    """A feed that is configured, or was there the day before, and has no row that day is told by name."""
    whole.seal(BEFORE, [5, 6], "binance/trade/ETHUSDT")
    report = whole.report(wanted=[SPOT, "binance/trade/XRPUSDT"])
    states = {feed.symbol: feed.state for feed in report.feeds}
    assert states == {"BTCUSDT": "complete", "ETHUSDT": "missing", "XRPUSDT": "missing"}
    assert report.exit_code == 1


def test_market_that_is_no_longer_collected_is_not_missing(whole: Made) -> None:
    """A feed that had its last row two days before, and is not configured, is not asked for."""
    whole.seal("2026-11-18", [5, 6], "binance/trade/ETHUSDT")
    assert [feed.symbol for feed in whole.report(wanted=[SPOT]).feeds] == ["BTCUSDT"]


def test_market_collected_only_later_is_not_missing(whole: Made) -> None:
    """A feed whose first row came after the day was not collected then."""
    whole.open(AFTER, [5, 6], "binance/trade/ETHUSDT")
    assert [feed.symbol for feed in whole.report(wanted=[SPOT, "binance/trade/ETHUSDT"]).feeds] == ["BTCUSDT"]


def test_quiet_day_is_proved_by_its_neighbours(made: Made) -> None:
    """No row, and the day before's last ID is followed by the day after's first: no trade happened."""
    made.seal(BEFORE, range(1, 11))
    made.open(AFTER, [11])
    report = made.report(wanted=[SPOT])
    assert (report.feeds[0].state, report.exit_code) == ("quiet", 0)


def test_day_without_rows_whose_ids_went_on_is_missing(made: Made) -> None:
    """No row, and IDs lie between the days around it: the market traded."""
    made.seal(BEFORE, range(1, 11))
    made.open(AFTER, [15])
    feed = made.feed()
    assert of(feed) == ("missing", 4, 0, {"unexplained": 4})


@pytest.mark.parametrize(("events", "state", "code"), [((), "quiet", 0), (("silent",), "missing", 3)])
def test_feed_connected_all_day_without_a_row(made: Made, events: Sequence[str], state: str, code: int) -> None:
    """Connected from midnight to midnight and no alarm of silence: quiet; with one: missing."""
    made.seal(BEFORE, range(1, 11))
    made.measure(86_400, 86_400)
    made.measure(600, 600, day=AFTER, end_s=600)
    for event in events:
        made.tell(event, SPOT, seconds=90, exchange_id=12)
    report = made.report()
    assert (report.feeds[0].state, report.exit_code) == (state, code)


def test_placeholders_of_futures_are_not_missing(made: Made) -> None:
    """IDs without a row inside a futures file, and between two of them, were no trades."""
    made.seal(BEFORE, [1, 2, 4], FUTURES)
    made.seal(DAY, [6, 7, 9, 12], FUTURES)
    made.open(AFTER, [15], FUTURES)
    feed = made.feed()
    assert of(feed) == ("complete", 10, 4, {})
    assert feed.ids is not None
    assert (feed.ids.not_trades, feed.rows) == (6, 4)  # 5, 8, 10, 11, 13, 14


def test_a_trade_that_a_futures_file_passes_over_is_missing(made: Made) -> None:
    """An ID inside a file that was taken for no trade and opened again: missing until its row has a file of its own."""
    made.seal(DAY, [1, 2, 3, 6, 7, 10], FUTURES)
    made.open(AFTER, [11], FUTURES)
    made.numbers("absent", 4, 5, feed=FUTURES)
    made.numbers("reopened", 4, 4, feed=FUTURES, reason="its row came live after all")
    feed = made.feed()
    assert of(feed) == ("incomplete", 10, 6, {"open": 1})
    assert feed.ids is not None
    assert feed.ids.not_trades == 3  # 5, 8, 9


def test_gap_of_futures_that_were_no_trades_is_settled(made: Made) -> None:
    """A declared gap that history has shown not to be trades is over, as it is for the status."""
    made.seal(DAY, [6, 7, 9], FUTURES)
    made.seal(DAY, [15, 16], FUTURES)
    made.open(AFTER, [17], FUTURES)
    made.numbers("gap", 10, 14, FUTURES)
    made.numbers("absence_seen", 10, 14, FUTURES)
    assert of(made.feed()) == ("incomplete", 11, 5, {"open": 5})
    made.numbers("absent", 10, 14, FUTURES)
    assert of(made.feed()) == ("complete", 11, 5, {})
    assert made.report().feeds[0].ids.assumed == 0  # type: ignore[union-attr]  # there are rows


def test_gap_of_futures_that_an_earlier_version_called_filled_is_assumed(made: Made) -> None:
    """`filled` with no row ended the gap; that its IDs were no trades nothing proves."""
    made.seal(DAY, [6, 7, 9], FUTURES)
    made.seal(DAY, [15, 16], FUTURES)
    made.open(AFTER, [17], FUTURES)
    made.numbers("gap", 10, 14, FUTURES)
    made.numbers("filled", 10, 14, FUTURES, rows=0)
    feed = made.feed()
    assert of(feed) == ("complete", 11, 5, {})
    assert feed.ids is not None
    assert (feed.ids.not_trades, feed.ids.assumed) == (6, 5)
    assert "but for 5 IDs taken for placeholders, which nothing proves" in " ".join(show(made.report(), None).split())


def test_hole_of_futures_before_the_journal_begins_is_unexplained(made: Made) -> None:
    """Where no journal reaches back to, a hole between two files may be anything."""
    made.seal(DAY, [6, 7, 9], FUTURES, told=False)
    made.seal(DAY, [15, 16], FUTURES, told=False)
    made.open(AFTER, [17], FUTURES)
    assert of(made.feed()) == ("incomplete", 11, 5, {"unexplained": 5})


def test_late_rows_of_futures_lie_within_another_file(made: Made) -> None:
    """A file with a row that came late lies within the range of the file that passed over its ID."""
    made.seal(DAY, [6, 7, 9, 12], FUTURES)
    made.numbers("reopened", 10, 10, FUTURES)
    made.seal(DAY, [10], FUTURES)
    made.open(AFTER, [13], FUTURES)
    feed = made.feed()
    assert of(feed) == ("complete", 7, 5, {})
    assert feed.ids is not None
    assert (feed.ids.not_trades, feed.rows) == (2, 5)  # 8 and 11
    assert not any("more than one file" in note for note in feed.notes)


def test_gap_of_futures_is_missing_although_placeholders_exist(made: Made) -> None:
    """A hole that the journal calls lost is missing; the rest around it were placeholders."""
    made.seal(DAY, [6, 7, 9], FUTURES)
    made.seal(DAY, [15, 16], FUTURES)
    made.open(AFTER, [17], FUTURES)
    made.numbers("lost", 11, 14, FUTURES, reason="no key")
    feed = made.feed()
    assert of(feed) == ("incomplete", 11, 5, {"lost": 4})
    assert feed.ids is not None
    assert feed.ids.not_trades == 2  # 8 and 10


def test_numbering_that_began_anew_is_no_hole(made: Made) -> None:
    """Between the last ID of the old numbering and the first of the new one nothing is missing."""
    made.seal(BEFORE, range(9_000, 9_100))
    made.seal(DAY, range(9_100, 9_200))
    made.tell("numbering_restarted", SPOT, last_id=9_199, first_id=1)
    made.seal(DAY, range(1, 51))
    made.open(AFTER, range(51, 60))
    feed = made.feed()
    assert of(feed) == ("complete", 150, 150, {})
    assert any("numbering anew" in note for note in feed.notes)


def test_holes_beside_a_day_with_two_numberings_count(made: Made) -> None:
    """The old numbering goes on from the day before, the new one to the day after: each hole there is one."""
    made.seal(BEFORE, range(9_000, 9_090))
    made.seal(DAY, range(9_100, 9_200))
    made.tell("numbering_restarted", SPOT, last_id=9_199, first_id=1)
    made.seal(DAY, range(1, 51))
    made.open(AFTER, range(56, 60))
    assert of(made.feed()) == ("incomplete", 165, 150, {"unexplained": 15})


def test_gaps_of_an_older_numbering_do_not_count(made: Made) -> None:
    """What the journal said of the same IDs before the numbering began anew explains nothing now."""
    holed(made)
    made.lines.insert(0, {"at": "2026-11-01T00:00:00Z", "event": "absent", "subject": SPOT} | {
        "first_id": 201, "last_id": 210, "count": 10
    })  # fmt: skip
    assert of(made.feed()) == ("incomplete", 240, 230, {"unexplained": 10})


def test_gaps_of_a_later_numbering_do_not_count(made: Made) -> None:
    """What the journal says of the same IDs after the numbering began anew, on a later day, explains nothing before."""
    holed(made).numbers("gap", 201, 210)
    made.tell("numbering_restarted", SPOT, AFTER, "00:01:00", last_id=341, first_id=1)
    made.tell("absent", SPOT, AFTER, "00:02:00", first_id=201, last_id=210)
    assert of(made.feed()) == ("incomplete", 240, 230, {"open": 10})


def test_file_that_is_sealed_while_the_report_is_made(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CSV that is gone when it is to be read, because it was sealed meanwhile, is found under its new name."""
    growing = made.open(DAY, range(1, 11))
    made.open(AFTER, [11])
    read = record._rows_of

    def seal_first(path: Path) -> record._Rows:
        if growing.exists():
            made.seal(DAY, range(1, 11), told=False)
            growing.unlink()
        return read(path)

    monkeypatch.setattr(record, "_rows_of", seal_first)
    feed = made.feed()
    assert of(feed) == ("complete", 10, 10, {})
    assert (feed.files.sealed, feed.files.open) == (1, 0)


def test_file_that_is_delivered_and_deleted_while_the_report_is_made(
    whole: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal was read before the upload wrote its proof, and the directory after the file was deleted."""
    path = whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip"
    read = record._JournalReader.read

    def deliver_after(reader: record._JournalReader, journal: Path) -> None:
        read(reader, journal)
        if path.exists():
            whole.uploaded(path)
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(whole.lines[-1]) + "\n")
            path.unlink()

    monkeypatch.setattr(record._JournalReader, "read", deliver_after)
    assert of(whole.feed()) == ("complete", 240, 240, {})


def test_files_that_never_stay_are_told(whole: Made) -> None:
    """A name that is listed and can never be read ends in one line, not in an endless look."""
    name = f"BTCUSDT-trade-{DAY}-901-902.csv.zip"
    (whole.path / SPOT / name).symlink_to(whole.path / "nowhere")
    with pytest.raises(ReportError, match="change all the time"):
        whole.report()


# --- Several days, what was measured, what was uploaded ------------------------------------------------------------


def test_several_days_are_reported_each(whole: Made) -> None:
    """Each day has its own account; a day before the first row has none."""
    report = whole.report(days=3)
    assert report.days == ["2026-11-18", BEFORE, DAY]
    assert [(feed.day, feed.rows) for feed in report.feeds] == [(BEFORE, 100), (DAY, 240)]
    assert report.exit_code == 0


def test_what_was_measured_is_told(whole: Made) -> None:
    """Connection time, reconnects and latency come from what the collector measured."""
    whole.measure(86_400, 86_000, rows=10)
    connection = whole.feed().connection
    assert connection is not None
    assert (connection.measured_s, connection.connected_s, connection.reconnects) == (86_400, 86_000, 1)
    assert (connection.latency_median_ms, connection.latency_p99_ms, connection.live_rows) == (12.5, 50.0, 10)


def test_clock_offsets_are_told_by_day_and_exchange(whole: Made) -> None:
    """Of a day's measurements the least, the median and the most; other days' do not count."""
    for offset_ms, day in ((5, DAY), (-3, DAY), (9, DAY), (4000, BEFORE)):
        whole.tell("clock_offset", "binance", day, offset_ms=offset_ms, round_trip_ms=20)
    (clock,) = whole.report().clocks
    assert (clock.exchange, clock.measurements) == ("binance", 3)
    assert (clock.least_ms, clock.median_ms, clock.most_ms) == (-3, 5, 9)


def test_files_not_uploaded_are_named(made: Made) -> None:
    """Where a store is used, sealed files without its proof are named; missing it makes no day incomplete."""
    path = made.seal(DAY, range(1, 51))
    other = made.seal(DAY, range(51, 101))
    made.open(AFTER, [101])
    made.uploaded(path, "s3://ticks/data")
    report = made.report(store="s3://ticks/data")
    assert report.stores == ["s3://ticks/data"]
    assert (report.feeds[0].files.uploaded, report.feeds[0].files.not_uploaded) == (1, [other.name])
    assert "1 of 2 not uploaded yet to s3://ticks/data" in " ".join(show(report, None).split())
    assert report.exit_code == 0


def test_each_store_is_told_by_what_it_holds(made: Made) -> None:
    """A store used once beside the configured one is named apart, and does not count for it."""
    paths = [made.seal(DAY, range(first, first + 10)) for first in (1, 11, 21)]
    made.open(AFTER, [31])
    for path in paths:
        made.uploaded(path, "file:///mnt/copy")
    made.uploaded(paths[0], "s3://ticks at minio.example")
    report = made.report(store="s3://ticks")
    assert report.store == "s3://ticks at minio.example"
    files = report.feeds[0].files
    assert (files.uploaded, len(files.not_uploaded)) == (1, 2)
    assert files.stores == {"file:///mnt/copy": 3, "s3://ticks at minio.example": 1}
    text = " ".join(show(report, None).split())
    assert "2 of 3 not uploaded yet to s3://ticks at minio.example" in text
    assert "elsewhere, file:///mnt/copy holds 3 of 3" in text
    assert "all sealed ones" not in text


def test_configured_store_that_was_never_used_holds_nothing(made: Made) -> None:
    """All is in another store; of the configured one that says nothing."""
    made.uploaded(made.seal(DAY, range(1, 11)), "file:///mnt/copy")
    made.open(AFTER, [11])
    report = made.report(store="s3://ticks")
    assert (report.store, report.feeds[0].files.uploaded) == ("s3://ticks", 0)
    assert "1 of 1 not uploaded yet to s3://ticks" in " ".join(show(report, None).split())


def test_no_data_at_all(made: Made) -> None:
    """A day of which nothing is on record ends with a code of its own."""
    report = made.report(wanted=[SPOT])
    assert (report.verdict, report.exit_code) == ("no data", 3)
    assert "no data" in show(report, None)


def test_damaged_journal_is_told(whole: Made) -> None:
    """Lines that cannot be understood are counted; the files still prove what they prove."""
    whole.report()
    path = whole.path / "journal.jsonl"
    text = path.read_text("utf-8")
    path.write_text(
        text + '{"at":"x","event":"sealed"}\n{"at":"2026-11-20T00:00:00Z","event":"gap","subject":"../..","first_id":1,'
        '"last_id":2}\n{"at":"2026-11-20T00:00:00Z","event":"sealed","subject":7}\n{"at":"2026-11-20", torn',
        "utf-8",
    )
    report = gather(whole.path, days_asked(DAY, 1, NOW.date()), wanted=[], store="", now=NOW)
    assert of(report.feeds[0]) == ("complete", 240, 240, {})
    assert "4 lines cannot be read" in report.troubles[0]


def test_missing_journal_is_told(whole: Made) -> None:
    """Without a journal the names still prove the day, and the report says what it does not know."""
    days = days_asked(DAY, 1, NOW.date())
    report = gather(whole.path, days, wanted=[], store="", now=NOW)
    assert report.exit_code == 0
    assert "journal.jsonl does not exist" in report.troubles[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_directory_that_may_not_be_read(whole: Made) -> None:
    """What this user may not read is told in a line."""
    (whole.path / SPOT).chmod(0)
    with pytest.raises(ReportError, match="cannot read"):
        whole.report()


def test_foreign_files_and_folders_are_left_alone(whole: Made) -> None:
    """Locks, temporary files, quarantine and other people's files are no segments."""
    for name in (
        ".lock",
        "notes.txt",
        f"BTCUSDT-trade-{DAY}-1-2.csv.zip.unconfirmed",
        "ETHUSDT-trade-2026-11-20-1.csv",
    ):
        (whole.path / SPOT / name).write_bytes(b"x")
    (whole.path / "quarantine" / SPOT).mkdir(parents=True)
    (whole.path / "a b" / "c" / "d").mkdir(parents=True)
    assert of(whole.feed()) == ("complete", 240, 240, {})


# --- Against a naive account ---------------------------------------------------------------------------------------

Spans = list[tuple[int, int]]
spans_of_ids = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 12)), max_size=5).map(
    lambda drawn: [(first, min(120, first + more)) for first, more in drawn]
)


@given(
    st.lists(st.integers(2, 120), max_size=6, unique=True),
    st.lists(st.sampled_from(("here", "here", "here", "never", "gone", "stored")), min_size=7, max_size=7),
    st.fixed_dictionaries(dict.fromkeys(("gap", "filled", "absent", "lost"), spans_of_ids)),
)
def test_account_agrees_with_sets_of_ids(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], places: list[str], told: dict[str, Spans]
) -> None:
    """However files, journal and disk disagree, each ID of the day is counted once, where sets of IDs put it."""
    made = Made(tmp_path_factory.mktemp("made"))
    made.seal(BEFORE, [0])
    made.open(AFTER, [121])
    ids: dict[str, set[int]] = {place: set() for place in ("here", "never", "gone", "stored")}
    borders = [1, *sorted(cuts), 121]
    for start, stop, place in zip(borders, borders[1:], places, strict=False):
        ids[place].update(range(start, stop))
        if place != "never":
            path = made.seal(DAY, range(start, stop))
            if place != "here":
                path.unlink()
            if place == "stored":
                made.uploaded(path)
    said = {event: {id_ for first, last in spans for id_ in range(first, last + 1)} for event, spans in told.items()}
    for event in ("gap", "filled", "absent", "lost"):
        for first, last in told[event]:
            made.numbers(event, first, last)
    held = ids["here"] | ids["stored"]
    rest = ids["never"]
    absent = rest & said["absent"]
    lost = (rest - absent) & said["lost"]
    waiting = (rest - absent - lost) & said["gap"]
    wanted = {"gone": ids["gone"], "lost": lost, "open": waiting, "unexplained": rest - absent - lost - waiting}
    feed = made.feed()
    assert feed.ids is not None
    assert feed.ids.missing == {reason: len(found) for reason, found in wanted.items() if found}
    assert (feed.ids.expected, feed.ids.held, feed.ids.absent) == (120, len(held), len(absent))
    assert feed.in_order == (not any(wanted.values()))
    missing = set[int]().union(*wanted.values())
    in_holes = {id_ for hole in feed.holes for id_ in range(hole.first_id, hole.last_id + 1)}
    assert in_holes == missing | set[int]().union(*said.values())
    assert sum(hole.filled for hole in feed.holes) == len(said["filled"] & held)
    assert sum(sum(hole.missing.values()) for hole in feed.holes) == len(missing)


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_percent_is_a_hundred_only_if_nothing_is_missing(missing: int, expected: int) -> None:
    """Rounding never makes a day look whole, nor more whole than it is."""
    missing = min(missing, expected)
    percent = percent_of(missing, expected)
    assert (percent == 100) == (missing == 0)
    assert 0 <= percent * expected <= 100 * (expected - missing) * (1 + 1e-12)


# --- How it is shown -----------------------------------------------------------------------------------------------


def test_days_asked() -> None:
    """Yesterday by default, and any day that has begun."""
    today = date(2026, 11, 21)
    zero = date(1970, 1, 1).toordinal()
    yesterday = date(2026, 11, 20).toordinal() - zero
    assert days_asked(None, 1, today) == days_asked(DAY, 1, today) == range(yesterday, yesterday + 1)
    assert days_asked("today", 7, today) == range(yesterday - 5, yesterday + 2)
    for wrong in ("tomorrow", "2026-11-31", "20.11.2026", "", "2026-11-22"):
        with pytest.raises(ValueError, match=r"is not a day|has not begun"):
            days_asked(wrong, 1, today)


def shown(report: Report, monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return show(report, None).splitlines()


@pytest.mark.parametrize("columns", [40, 80, 120, 300])
def test_table_fits_the_terminal_and_says_the_verdict_first(
    made: Made, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    """However wide the terminal: the first line is the verdict, no line is wider, and the missing IDs are named."""
    holed(made).numbers("lost", 201, 210, reason="history reaches back\x1b[31m 48 hours only")
    made.measure(86_400, 86_000, rows=10)
    lines = shown(made.report(), monkeypatch, columns)
    assert lines[0] == "✗ 2026-11-20: NOT complete, 1 of 1 feed"
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "10 lost, IDs 201 to 210, found 2026-11-20 12:00:00 UTC: history reaches back" in text
    assert "\x1b" not in text
    assert "95.83 %" in text


def test_table_in_ascii(whole: Made, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> None:
    """A terminal that knows ASCII only gets nothing else."""
    whole.report()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = CliRunner(charset="ascii").invoke(main, ["report", "--date", DAY, "--data-dir", str(whole.path)])
    assert result.exit_code == 0, result.output
    assert result.output.isascii()
    assert "* 2026-11-20: complete" in result.output


def test_many_feeds_are_cut_and_counted(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred feeds with one lot take the table and one line; what is left out is counted."""
    for number in range(100):
        made.seal(DAY, [1, 2], f"binance/trade/SYM{number}USDT")
    lines = shown(made.report(), monkeypatch, 300)
    assert len(lines) < 75
    assert any("and 40 more, 40 of them not in order" in line for line in lines)
    assert any("and 97 more: what came after its last row is not known" in line for line in lines)


def test_line_that_counts_the_rest_widens_no_column(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above sixty feeds the table is the one that it is below, and a line behind it counts the rest."""
    for number in range(10, 71):
        made.seal(DAY, [1, 2], f"binance/trade/S{number}")
    lines = shown(made.report(), monkeypatch, 80)
    heading = next(line for line in lines if line.split()[:2] == ["feed", "rows"])
    assert heading.startswith("  feed  rows  ")
    assert lines[lines.index(heading) + 61].strip() == "and 1 more, 1 of them not in order"


def test_hours_that_have_not_begun_are_not_hours_without_a_row(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """At ten past midnight one hour has begun: the others are blank in table, CSV and chart."""
    made.vouch(status())
    made.open(AFTER, [1, 2])
    path = made.path / SPOT / f"BTCUSDT-trade-{AFTER}-1.csv"
    path.write_bytes(csv_rows(SPOT, [1, 2], [ms(AFTER, 60), ms(AFTER, 120)]))
    report = made.report(last="today")
    (row,) = csv.DictReader(io.StringIO(show(report, "csv")))
    assert [row[f"rows_{hour:02d}h"] for hour in range(24)] == ["2", *[""] * 23]
    assert "·" not in show(report, None)
    assert panels(report)[0].begun == 1
    axis = Image.open(io.BytesIO(draw(report))).convert("L").crop((500, 286, 1000, 294))
    assert sum(axis.histogram()[:100]) == 0, "no black line for an hour to come"


def test_many_gaps_are_cut_and_counted(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a feed with many gaps the first are told, the others are counted; of many such feeds likewise."""
    for number in range(40):
        for first in range(1, 12, 2):
            made.seal(DAY, [first], f"binance/trade/SYM{number}USDT")
    lines = shown(made.report(), monkeypatch, 300)
    assert any("SYM0USDT binance/trade: 2 more gaps with 2 missing IDs" in line for line in lines)
    assert any(f"and {40 * 4 - HOLES_TOLD} more such lines; --json has them all" in line for line in lines)


def test_several_days_take_a_line_each(whole: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report on a week has a line for each day, those without data too."""
    lines = shown(whole.report(days=3), monkeypatch, 80)
    assert lines[0] == "● 2026-11-18 to 2026-11-20: complete"
    days = [line for line in lines if " 2026-11-" in line[:13] and ":" not in line]
    assert [line.split()[:3] for line in days] == [
        ["○", "2026-11-18", "0"],
        ["●", "2026-11-19", "100"],
        ["●", "2026-11-20", "240"],
    ]


def test_csv_has_a_row_for_each_feed_and_day(made: Made) -> None:
    """The columns are those documented, and unknown values are empty."""
    holed(made).numbers("lost", 201, 210, reason="old")
    report = made.report(wanted=["binance/trade/ETHUSDT"])
    first, second = csv.DictReader(io.StringIO(show(report, "csv")))
    assert tuple(first) == CSV_COLUMNS
    lost = second if second["symbol"] == "BTCUSDT" else first
    none = first if lost is second else second
    assert (lost["rows"], lost["first_id"], lost["last_id"], lost["lost"]) == ("230", "101", "340", "10")
    assert (lost["missing_ids"], lost["percent"], lost["uploaded"]) == ("201-210", "95.8333", "")
    assert (none["state"], none["first_id"], none["percent"], none["rows_00h"]) == ("missing", "", "", "0")


def test_json_holds_everything(whole: Made) -> None:
    """The JSON is the report, field for field."""
    told = json.loads(show(whole.report(), "json"))
    assert told["verdict"] == "complete"
    assert told["feeds"][0]["ids"] == {
        "first": 101, "last": 340, "begins": "follows", "ends": "followed", "expected": 240, "held": 240, "absent": 0,
        "not_trades": 0, "assumed": 0, "missing": {},
    }  # fmt: skip


def test_documentation_names_every_field() -> None:
    """docs/report.md tells of each field of the JSON, each column of the CSV and each reason."""
    text = (Path(__file__).parents[1] / "docs" / "report.md").read_text("utf-8")
    names = {*Report.__struct_fields__, *FeedDay.__struct_fields__, *MISSING}
    names |= {column for column in CSV_COLUMNS if not column.startswith("rows_")}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_notice_says_the_verdict_first(made: Made) -> None:
    """The message's title has machine, day and verdict; its lines have the IDs and what to do."""
    holed(made).numbers("lost", 201, 210, reason="history reaches back 48 hours only")
    told = notice(made.report(), "tick1", [])
    assert (told.kind, told.level) == ("report", "warning")
    assert told.title == "tick1: data of 2026-11-20: NOT complete, 1 of 1 feed"
    assert told.lines[0] == "10 IDs missing; 230 rows are there."
    assert "10 lost, IDs 201 to 210" in told.lines[1]
    assert "Nothing to do" in told.lines[2]
    assert told.lines[-2:] == (
        "Market by market:",
        "BTCUSDT binance/trade: incomplete, 95.83 %, 230 rows, 10 IDs missing, 1 gap",
    )


def test_notice_has_a_line_for_each_of_the_worst_markets(made: Made) -> None:
    """Of many markets ten have a line, those with most missing first: mail shows no picture."""
    for number in range(20):
        made.seal(DAY, range(1, 25), f"binance/trade/SYM{number:02d}USDT")
    holed(made).numbers("lost", 201, 210, reason="old")
    lines = notice(made.report(), "tick1", []).lines
    place = lines.index("The worst 10 of 21:")
    assert len(lines[place:]) == 11
    assert lines[place + 1].startswith("BTCUSDT binance/trade: incomplete")
    assert lines[place + 2].startswith("SYM00USDT binance/trade: ")


# --- The chart -----------------------------------------------------------------------------------------------------


def test_chart_shows_a_panel_a_feed_and_the_rest_together(made: Made) -> None:
    """Twelve panels at most; the last is the sum of the others; what is missing comes first."""
    for number in range(20):
        made.seal(DAY, range(1, 25), f"binance/trade/SYM{number:02d}USDT")
    holed(made).numbers("lost", 201, 210, reason="old")
    report = made.report()
    found = panels(report)
    assert len(found) == 12
    assert found[-1].title == "10 more feeds together   240 rows"
    assert sum(sum(panel.hours) for panel in found) == 230 + 480
    broken = next(panel for panel in found if panel.missing)
    assert broken.missing == {12}
    with Image.open(io.BytesIO(draw(report))) as image:
        assert image.format == "PNG"
        assert image.width == 1080


def test_chart_of_several_days(whole: Made) -> None:
    """Each hour of each day has its place, and a day without data is empty."""
    report = whole.report(days=3)
    (panel,) = panels(report)
    assert (len(panel.hours), panel.hours[:24], panel.hours[48:]) == (72, [0] * 24, [10] * 24)
    assert draw(report).startswith(b"\x89PNG")


# --- The command ---------------------------------------------------------------------------------------------------


def run_report(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["report", *arguments])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--date", "2999-01-01"], "has not begun"),
        (["--date", "soon"], "is not a day"),
        (["--days", "0"], "0 is not in the range"),
        (["--config", "missing.json"], "missing.json"),
    ],
)
def test_mistake_is_told(arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong day or file ends with code 2 and a line."""
    monkeypatch.chdir(tmp_path)
    result = run_report(*arguments)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_exit_codes(whole: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 for a complete day, 1 once a file is gone, 3 for a day without data."""
    monkeypatch.chdir(tmp_path)
    whole.report()
    place = ["--data-dir", str(whole.path)]
    assert run_report("--date", DAY, *place).exit_code == 0
    assert run_report("--date", "2026-11-01", *place).exit_code == 3
    (whole.path / SPOT / f"BTCUSDT-trade-{DAY}-101-340.csv.zip").unlink()
    assert run_report("--date", DAY, *place).exit_code == 1


@dataclass
class BotApi:
    """Telegram's Bot API, as far as a report needs it: it takes every message, or refuses every one."""

    status: HTTPStatus = HTTPStatus.OK
    taken: list[tuple[str, bytes]] = field(default_factory=list)
    """Method and body of each request."""

    @contextlib.contextmanager
    def served(self) -> Iterator[str]:
        """Serve on loopback; yield the address."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                api.taken.append((self.path.rpartition("/")[2], self.rfile.read(int(self.headers["Content-Length"]))))
                message = {"message_id": 1, "date": 0, "chat": {"id": -100, "type": "group", "title": "t"}}
                good = {"ok": True, "result": message}
                bad = {"ok": False, "error_code": int(api.status), "description": "Unauthorized"}
                body = json.dumps(good if api.status == HTTPStatus.OK else bad).encode()
                self.send_response(api.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


TOKEN = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"


def sending(programs: Programs, made: Made, api: BotApi, **keys: object) -> Ended:
    """Run `report --send` with a Bot API server."""
    with api.served() as address:
        telegram = {"TELEGRAM_TOKEN": TOKEN, "TELEGRAM_CHAT_ID": "-100", "TELEGRAM_API_URL": address, **keys}
        config = programs.config(DATA_DIR=str(made.path), ALERT_NAME="tick1", **telegram)
        return programs.start("report", "--date", DAY, "--config", config, "--send").wait()


def test_report_is_sent_with_its_files(whole: Made, programs: Programs) -> None:
    """Each channel gets the verdict, the CSV and the chart; the exit code stays the report's."""
    whole.report()
    api = BotApi()
    ended = sending(programs, whole, api)
    assert ended.code == 0, ended.said
    sent = b"".join(body for _, body in api.taken)
    assert b"tick1: data of 2026-11-20: complete" in unquote_to_bytes(sent.replace(b"+", b" "))
    assert {method for method, _ in api.taken} >= {"sendDocument"}
    assert f"report-{DAY}.csv".encode() in sent
    assert show(whole.report(), "csv").splitlines()[1].encode() in sent
    assert b"\x89PNG" in sent
    assert f"rows-per-hour-{DAY}.png".encode() in sent


def test_report_that_cannot_be_sent_is_told(whole: Made, programs: Programs) -> None:
    """A channel that refuses ends with code 1 and a line without the token; the report itself was printed."""
    whole.report()
    ended = sending(programs, whole, BotApi(HTTPStatus.UNAUTHORIZED))
    assert ended.code == 1
    assert "2026-11-20: complete" in ended.out
    assert "Error: not sent to" in ended.err
    assert TOKEN not in ended.said


def test_sending_without_a_channel_is_a_mistake(whole: Made, programs: Programs) -> None:
    """With no channel configured, `--send` says what to set."""
    whole.report()
    ended = sending(programs, whole, BotApi(), TELEGRAM_TOKEN="", TELEGRAM_CHAT_ID="")
    assert ended.code == 2
    assert "TELEGRAM_TOKEN" in ended.err


def test_report_on_what_a_collector_recorded(programs: Programs, tmp_path: Path) -> None:
    """A collector ran over midnight: the report counts the day's rows as they lie there, and misses what is taken."""
    midnight_ms = ms("2026-07-15")
    market = GeneratedMarket("binance", midnight_ms - 20_000, symbols=2, activity=60)
    data_dir = tmp_path / "data"
    with exchange(market) as served:
        config = programs.config(SEAL_AT_STOP=True, DATA_DIR=str(data_dir), ROTATE_SIZE=20_000)
        run = programs.start("run", "--symbol", "BTCUSDT", "--config", config, *served.addresses)
        run.until(lambda: list((data_dir / SPOT).glob("*2026-07-15*")))
        assert run.stop().code == 0
    files = [file for file in data_files(data_dir, SPOT) if file.day == "2026-07-14"]
    ended = programs.start("report", "--date", "2026-07-14", "--json", "--data-dir", data_dir).wait()
    assert ended.code == 0, ended.said
    (feed,) = json.loads(ended.out)["feeds"]
    assert feed["rows"] == feed["rows_per_hour"][23] == sum(len(file.lines) for file in files)
    assert (feed["ids"]["first"], feed["ids"]["last"]) == (files[0].ids[0], files[-1].ids[-1])
    assert feed["ids"]["ends"] == "followed"
    assert feed["files"]["sealed"] == len(files) > 2
    assert feed["state"] == "complete"
    files[1].path.unlink()
    ended = programs.start("report", "--date", "2026-07-14", "--data-dir", data_dir).wait()
    assert ended.code == 1
    assert f"{len(files[1].lines):,} gone, IDs {files[1].ids[0]} to {files[1].ids[-1]}" in " ".join(ended.out.split())
