"""Collecting in this process, from recordings made to look like the exchange's: what is kept, refused, on record."""

import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    GAPS_STAY,
    PATIENCE_S,
    data_files,
    ids,
    journal,
    missing,
    quarantined,
    recorded,
    row_of,
    rows,
    status_of,
    until,
)
from loguru import logger

from tickcollect import collector, segments
from tickcollect.collector import Summary, attempts_before, collect, prepare_loop
from tickcollect.config import load
from tickcollect.dataset.replay import Behaviour, ReplayServer, serve
from tickcollect.journal import Journal

START_MS = 1_784_000_000_000
"""2026-07-14, 03:33:20 UTC."""
MIDNIGHT_MS = 1_784_073_600_000
SPOT, USDM, COINM = "binance", "binance-futures", "binance-delivery"


def message(stream: str, symbol: str, **data: object) -> str:
    """Return a message in the exchange's combined form."""
    name = f"{symbol.lower()}@{stream}"
    return json.dumps({"stream": name, "data": {"e": stream, "s": symbol, **data}}, separators=(",", ":"))


def trade(id_: int, at: int | None = None, **other: object) -> str:
    """Return a spot trade whose price tells its ID; `other` fields replace or join the usual ones."""
    at = START_MS + 3 * (id_ % 100_000) if at is None else at
    usual = {"E": at + 1, "t": id_, "p": f"{id_}.01000000", "q": "0.00150000", "T": at, "m": id_ % 2 == 0, "M": True}
    return message("trade", "BTCUSDT", **{**usual, **other})


def futures_trade(id_: int, kind: str = "MARKET", *, symbol: str = "BTCUSDT", **other: object) -> str:
    """Return a futures trade, or what stands for an ID without one."""
    at = START_MS + 3 * id_
    usual = {"E": at + 1, "T": at, "t": id_, "p": f"{id_}.5", "q": "0.003", "X": kind, "m": True, "st": 1}
    return message("trade", symbol, **{**usual, **other})


@dataclass(frozen=True)
class Setting:
    """Where one collection takes place."""

    folder: Path
    exchange: str = SPOT
    symbol: str = "BTCUSDT"
    stream: str = "trade"

    @property
    def data_dir(self) -> Path:
        """Its data directory."""
        return self.folder / "data"

    @property
    def feed(self) -> str:
        """Its feed as the journal names it."""
        return f"{self.exchange}/{self.stream}/{self.symbol}"

    @property
    def rows(self) -> list[str]:
        """What was collected."""
        return rows(self.data_dir, self.feed)

    @property
    def told(self) -> dict[str, Any]:
        """What the status file tells of the feed."""
        feeds = status_of(self.data_dir).get("feeds") or [{}]
        told: dict[str, Any] = feeds[0]
        return told

    def collect(
        self,
        messages: Iterable[str],
        done: Callable[[], object],
        behaviour: Behaviour | None = None,
        **keys: object,
    ) -> Summary:
        """Collect a recording until `done`."""
        market = recorded(self.folder / "recording.jsonl", messages, self.exchange)

        async def run() -> Summary:
            async with serve(market, behaviour=behaviour) as server, asyncio.timeout(PATIENCE_S):
                return await self._until(server, done, keys)

        return asyncio.run(run())

    async def _until(self, server: ReplayServer, done: Callable[[], object], keys: dict[str, object]) -> Summary:
        entry = {"exchange": self.exchange, "stream": self.stream, "symbols": [self.symbol]}
        entry |= {"ws_url": server.ws_url, "rest_url": server.rest_url}
        path = self.folder / "config.json"
        wanted = {"DATA_DIR": str(self.data_dir), "COLLECT": [entry], "GAP_PATIENCE_S": 0.1, **GAPS_STAY, **keys}
        path.write_text(json.dumps(wanted))
        stop = asyncio.Event()
        collecting = asyncio.create_task(collect(load(path, {}, {}), stop))
        while not collecting.done() and not done():  # noqa: ASYNC110 - files have no event
            await asyncio.sleep(0.01)
        stop.set()
        return await collecting


@pytest.fixture(autouse=True)
def quick_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the status file follow closely, since these tests wait for what it says."""
    monkeypatch.setattr(collector, "STATUS_INTERVAL_S", 0.02)


@pytest.fixture
def spot(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


# --- Fields of other years -----------------------------------------------------------------------------------------


def test_order_ids_of_earlier_years_are_kept(spot: Setting) -> None:
    """`b` and `a`, which the exchange stopped sending in 2024, fill their columns where a message has them."""
    sent = [trade(n, b=7_000 + n, a=8_000 + n) for n in range(1000, 1050)] + [trade(n) for n in range(1050, 1100)]
    spot.collect(sent, lambda: spot.told.get("rows") == 100)
    assert spot.rows == [row_of(text) for text in sent]
    assert spot.rows[0].endswith(f",8000,9000,{START_MS + 3000},True")
    assert spot.rows[-1].endswith(f",,,{START_MS + 3297},False")


def test_microseconds_stay_microseconds(spot: Setting) -> None:
    """Times in microseconds are written as sent and still fall on the right day."""
    sent = [trade(n, at=(MIDNIGHT_MS - 50 + n) * 1000 + 7) for n in range(100)]
    spot.collect(sent, lambda: spot.told.get("rows") == 100)
    assert spot.rows == [row_of(text) for text in sent]
    assert [(file.day, len(file.lines)) for file in data_files(spot.data_dir, spot.feed)] == [
        ("2026-07-14", 50),
        ("2026-07-15", 50),
    ]


@pytest.mark.parametrize(("exchange", "symbol"), [(USDM, "BTCUSDT"), (COINM, "BTCUSD_PERP")])
@pytest.mark.parametrize("not_trades", ["count", "write"])
def test_ids_without_a_trade_are_counted_and_no_gap(
    exchange: str, symbol: str, not_trades: str, tmp_path: Path
) -> None:
    """`NA`, `ADL` and `INSURANCE_FUND` continue the numbering; they become rows only where that was asked for."""
    setting = Setting(tmp_path, exchange, symbol)
    kinds = {1010: ("NA", {"p": "0", "q": "0"}), 1011: ("ADL", {}), 1040: ("INSURANCE_FUND", {}), 1099: ("NA", {})}
    sent = [
        futures_trade(n, kinds[n][0], symbol=symbol, **kinds[n][1]) if n in kinds else futures_trade(n, symbol=symbol)
        for n in range(1000, 1100)
    ]
    expected = 100 if not_trades == "write" else 96
    summary = setting.collect(
        sent,
        lambda: setting.told.get("rows") == expected and setting.told.get("not_trades") == 4,
        NOT_TRADES=not_trades,
        EXTRA_COLUMNS=["X"],
    )
    kept = [
        (text, kinds.get(n, ("MARKET",))[0]) for n, text in enumerate(sent, 1000) if expected == 100 or n not in kinds
    ]
    assert setting.rows == [f"{row_of(text)},{kind}" for text, kind in kept]
    assert (summary.rows, summary.gaps, summary.refused) == (expected, 0, 0)


# --- Altered numbering ---------------------------------------------------------------------------------------------

BASE = range(1000, 1200)


def altered(at: int, to: int) -> list[str]:
    """Return 200 trades of which one has another ID than it should; its price still tells which it is."""
    return [trade(to, at=START_MS + 3 * n, p=f"{n}.01000000") if n == at else trade(n) for n in BASE]


@pytest.mark.parametrize("to", [2100, 1100 + 1_000_000, 2**53 + 1, 2**63 - 1, 900, 1])
def test_one_altered_id_is_refused(to: int, spot: Setting) -> None:
    """A row whose ID its neighbours contradict goes to quarantine; its place is a gap, and all others are kept."""
    summary = spot.collect(altered(1100, to), lambda: spot.told.get("rows") == 199)
    assert ids(spot.rows) == [n for n in BASE if n != 1100]
    assert spot.rows == [row_of(trade(n)) for n in BASE if n != 1100]
    assert missing(spot.data_dir, spot.feed) == {1100}
    (refused,) = quarantined(spot.data_dir, SPOT)
    assert f",{to},1100.01000000," in refused["message"]
    assert (summary.gaps, summary.missing, summary.refused) == (1, 1, 1)


def test_an_id_beyond_64_bits_is_refused(spot: Setting) -> None:
    """A message whose ID no file could name is kept in quarantine as it came."""
    sent = altered(1100, 2**64)
    spot.collect(sent, lambda: spot.told.get("rows") == 199)
    assert ids(spot.rows) == [n for n in BASE if n != 1100]
    (refused,) = quarantined(spot.data_dir, SPOT)
    assert refused["message"] == sent[100]
    assert missing(spot.data_dir, spot.feed) == {1100}


def test_copies_are_dropped_and_counted(spot: Setting) -> None:
    """Rows that come again, at once or later, are written once."""
    sent = [trade(n) for n in BASE]
    sent[150:150] = sent[100:110]
    sent[20:20] = [sent[19]]
    summary = spot.collect(sent, lambda: spot.told.get("rows") == 200 and spot.told.get("copies") == 11)
    assert spot.rows == [row_of(trade(n)) for n in BASE]
    assert (summary.copies, summary.gaps, summary.refused) == (11, 0, 0)


def test_rows_out_of_order_are_put_in_order(spot: Setting) -> None:
    """Neighbours that came the wrong way round stand in the files in the order of their IDs, without a gap."""
    sent = [trade(n) for n in BASE]
    for place in (10, 100, 150):
        sent[place : place + 2] = reversed(sent[place : place + 2])
    summary = spot.collect(sent, lambda: spot.told.get("rows") == 200)
    assert spot.rows == [row_of(trade(n)) for n in BASE]
    assert (summary.gaps, summary.copies) == (0, 0)


def test_removed_rows_are_a_gap_between_two_files(spot: Setting) -> None:
    """What did not come is in the journal, and the files beside it end and begin where it does."""
    sent = [trade(n) for n in BASE if n not in range(1100, 1105) and n != 1150]
    summary = spot.collect(sent, lambda: spot.told.get("rows") == 194)
    found = [(file.ids[0], file.ids[-1]) for file in data_files(spot.data_dir, spot.feed)]
    assert found == [(1000, 1099), (1105, 1149), (1151, 1199)]
    assert missing(spot.data_dir, spot.feed) == {*range(1100, 1105), 1150}
    assert (summary.gaps, summary.missing) == (2, 6)


def test_a_new_numbering_is_recognised(spot: Setting) -> None:
    """When the exchange begins to count anew, nothing is taken for a copy, and the journal says where it began."""
    sent = [trade(n) for n in BASE] + [trade(n, at=START_MS + 10_000 + n) for n in range(1, 101)]
    spot.collect(sent, lambda: spot.told.get("rows") == 300)
    found = [(file.ids[0], file.ids[-1]) for file in data_files(spot.data_dir, spot.feed)]
    assert found == [(1, 100), (1000, 1199)]
    (restarted,) = journal(spot.data_dir, "numbering_restarted")
    assert (restarted["last_id"], restarted["first_id"]) == (1199, 1)
    assert missing(spot.data_dir, spot.feed) == set()


# --- Broken messages -----------------------------------------------------------------------------------------------

GOOD = trade(1100)
BROKEN = {
    "cut": GOOD[:-7],
    "empty": "",
    "not JSON": "<html>502 Bad Gateway</html>" * 8,
    "a list": f"[{GOOD}]",
    "price is a number": GOOD.replace('"1100.01000000"', "1100.01"),
    "price is no number": trade(1100, p="1e5"),
    "price holds a comma": trade(1100, p="1,100.01"),
    "price holds a line": trade(1100, p="1100\ntrade,1,BTCUSDT,1101"),
    "quantity is missing": GOOD.replace('"q":"0.00150000",', ""),
    "time in seconds": trade(1100, T=START_MS // 1000),
    "ID is text": trade(1100, t="1100"),
    "ID is negative": trade(1100, t=-1100),
    "another symbol": GOOD.replace('"s":"BTCUSDT"', '"s":"ETHUSDT"'),
    "another event": GOOD.replace('"e":"trade"', '"e":"liquidation"'),
    "nested": GOOD.replace('"M":true', f'"M":{"[" * 5000}{"]" * 5000}'),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_message_ends_in_quarantine(broken: str, spot: Setting) -> None:
    """One message that cannot be right is kept with its reason; the hole it leaves is a gap; the feed goes on."""
    behaviour = Behaviour(message=lambda _, __, n, payload: [broken.encode()] if n == 100 else [payload])
    spot.collect(
        [trade(n) for n in BASE],
        lambda: spot.told.get("rows") == 199 and quarantined(spot.data_dir, SPOT),
        behaviour,
    )
    assert ids(spot.rows) == [n for n in BASE if n != 1100]
    assert missing(spot.data_dir, spot.feed) == {1100}
    (refused,) = quarantined(spot.data_dir, SPOT)
    assert refused["reason"]
    assert journal(spot.data_dir, "refused_message")


def test_many_refused_messages_are_told_once(spot: Setting) -> None:
    """However often the same trouble comes, the journal has it once, and that it grows; the quarantine every time."""
    sent = [trade(n) if n % 4 else trade(n, p=f"{n},1") for n in BASE]
    summary = spot.collect(sent, lambda: spot.told.get("rows") == 150 and spot.told.get("refused") == 50)
    assert summary.refused == 50
    assert len(quarantined(spot.data_dir, SPOT)) == 50
    assert len(journal(spot.data_dir, "refused_message")) == 1
    assert [entry["count"] for entry in journal(spot.data_dir, "quarantine_grown")] == [10]


def test_refusals_that_differ_only_in_their_numbers_are_told_once(spot: Setting) -> None:
    """Damaged IDs, each another one, are one trouble and not a line in the journal each."""
    sent = [trade(n) if n % 20 else trade(5_000_000 + 977 * n, at=START_MS + 3 * n) for n in range(1001, 1200)]
    spot.collect(sent, lambda: spot.told.get("refused") == 9)
    assert len(journal(spot.data_dir, "refused_message")) == 1


def test_refused_messages_do_no_harm_where_they_cannot_be_kept(spot: Setting) -> None:
    """If the quarantine cannot be written, collecting goes on, the messages are counted, and that is said."""
    spot.data_dir.mkdir()
    (spot.data_dir / "quarantine").write_text("a file where the directory should be")
    behaviour = Behaviour(message=lambda _, __, n, payload: [b"{" * 200] if n in {100, 120} else [payload])
    summary = spot.collect([trade(n) for n in BASE], lambda: spot.told.get("rows") == 198, behaviour)
    assert summary.refused == 2
    assert len(journal(spot.data_dir, "quarantine_failed")) == 1


# --- Files ---------------------------------------------------------------------------------------------------------


def test_no_file_grows_past_its_limit(spot: Setting) -> None:
    """ROTATE_SIZE bounds every CSV; the sealed ones follow each other without a hole."""
    sent = [trade(n) for n in range(1000, 4000)]
    spot.collect(sent, lambda: spot.told.get("rows") == 3000, ROTATE_SIZE="2kB", SEAL_AT_STOP=True)
    found = data_files(spot.data_dir, spot.feed)
    assert [line for file in found for line in file.lines] == [row_of(text) for text in sent]
    sizes = [sum(len(line) + 1 for line in file.lines) for file in found]
    assert max(sizes) <= 2000
    assert min(sizes[:-1]) > 2000 - 100, "no file ends before it is full"
    assert all(file.path.name.endswith(".csv.zip") for file in found)
    sealed = journal(spot.data_dir, "sealed")
    assert sorted(entry["first_id"] for entry in sealed) == [file.first_id for file in found]


@pytest.mark.parametrize(("packing", "ending"), [("zip", ".zip"), ("gzip", ".gz"), ("zstd", ".zst"), ("none", ".csv")])
def test_each_packing_holds_the_rows(packing: str, ending: str, spot: Setting) -> None:
    """Whatever COMPRESSION says, the sealed file unpacks to the rows and its name tells the first and last."""
    sent = [trade(n) for n in BASE]
    spot.collect(sent, lambda: spot.told.get("rows") == 200, COMPRESSION=packing, SEAL_AT_STOP=True)
    (file,) = data_files(spot.data_dir, spot.feed)
    assert (file.first_id, file.last_id, file.path.suffix) == (1000, 1199, ending)
    assert file.lines == [row_of(text) for text in sent]


def test_trades_across_midnight_fall_on_their_day(spot: Setting) -> None:
    """Even where the trade times go back and forth over midnight, every file holds one day's trades only."""
    offsets = [-3, -2, 1, -1, 2, 3]
    sent = [trade(1000 + n, at=MIDNIGHT_MS + offset) for n, offset in enumerate(offsets)]
    spot.collect(sent, lambda: spot.told.get("rows") == 6)
    found = [(file.day, file.ids) for file in data_files(spot.data_dir, spot.feed)]
    assert found == [
        ("2026-07-14", [1000, 1001]),
        ("2026-07-14", [1003]),
        ("2026-07-15", [1002]),
        ("2026-07-15", [1004, 1005]),
    ]


def test_a_silent_feed_is_sealed_when_its_day_is_over(spot: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that brings nothing any more has its file of a past day sealed by the clock, while it goes on running."""
    monkeypatch.setattr(collector, "IDLE_END_S", 0.1)
    monkeypatch.setattr(collector, "LOOK_INTERVAL_S", 0.02)
    spot.collect([trade(n) for n in BASE], lambda: journal(spot.data_dir, "sealed"))
    (file,) = data_files(spot.data_dir, spot.feed)
    assert (file.first_id, file.last_id) == (1000, 1199)


def test_the_arrival_can_be_a_column(spot: Setting) -> None:
    """`received_ns` is this machine's clock at the arrival, behind the usual columns."""
    spot.collect([trade(n) for n in BASE], lambda: spot.told.get("rows") == 200, EXTRA_COLUMNS=["received_ns", "M"])
    cells = [line.split(",") for line in spot.rows]
    started_ns = status_of(spot.data_dir)["started_ns"]
    assert all(started_ns < int(row[-2]) < started_ns + PATIENCE_S * 1e9 for row in cells)
    assert {row[-1] for row in cells} == {"True"}
    assert [",".join(row[:-2]) for row in cells] == [row_of(trade(n)) for n in BASE]


def test_what_happens_is_on_record_at_once(spot: Setting) -> None:
    """The journal does not wait for the next trade: a quiet market's happenings are in it while nothing comes."""
    spot.collect([trade(n) for n in BASE], lambda: journal(spot.data_dir, "quiet"), FIRST_DATA_S=1, behaviour=_mute())


def _mute() -> Behaviour:
    """Acknowledge everything and send nothing."""
    return Behaviour(message=lambda *_: [])


def test_a_gap_is_on_record_before_the_rows_behind_it(spot: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed at any moment never leaves a hole between two files that the journal does not know."""
    append = segments.Segments.append
    known: list[bool] = []

    def watched(self: Any, lines: bytes, row_ids: Any, day: int) -> Any:
        if row_ids[0] > 1100:
            known.append(missing(spot.data_dir, spot.feed) == {1100})
        return append(self, lines, row_ids, day)

    monkeypatch.setattr(segments.Segments, "append", watched)
    spot.collect([trade(n) for n in BASE if n != 1100], lambda: spot.told.get("rows") == 199)
    assert known
    assert all(known)


def test_the_last_status_tells_of_every_row(spot: Setting) -> None:
    """What was handed over during the stop is in the status that stays behind."""
    summary = spot.collect([trade(n) for n in range(1000, 40_000)], lambda: spot.told.get("rows", 0) > 0)
    assert spot.told["rows"] == summary.rows == len(spot.rows)
    assert status_of(spot.data_dir)["state"] == "stopped"


def test_a_stop_waits_for_the_file_that_is_being_sealed(spot: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another collector is let in only when nothing works on the files any more, and the journal has what was done."""
    seal, release = segments.Segments.seal, segments.Lock.release
    begun = threading.Event()
    busy: list[bool] = []
    released_while: list[list[bool]] = []

    def slow(self: Any, segment: Any) -> Any:
        busy.append(True)
        begun.set()
        until(lambda: status_of(spot.data_dir)["state"] == "stopping")
        time.sleep(0.1)
        sealed = seal(self, segment)
        busy.clear()
        return sealed

    def watched(self: Any) -> None:
        released_while.append(list(busy))
        release(self)

    monkeypatch.setattr(segments.Segments, "seal", slow)
    monkeypatch.setattr(segments.Lock, "release", watched)
    spot.collect([trade(n) for n in BASE], begun.is_set, ROTATE_SIZE="5kB")
    assert released_while == [[]]
    on_disk = [file.first_id for file in data_files(spot.data_dir, spot.feed) if file.path.suffix == ".zip"]
    assert [entry["first_id"] for entry in journal(spot.data_dir, "sealed")] == on_disk == [1000]


# --- What the disk refuses beside a write ---------------------------------------------------------------------------


def test_without_descriptors_a_sync_waits_and_collecting_goes_on(
    spot: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that finds no free descriptor is told once and tried again; nothing ends, nothing is missing."""
    refused: list[Path] = []
    real = segments.OpenFiles.duplicate

    def duplicate(pool: segments.OpenFiles, path: Path) -> int:
        if len(refused) < 3:
            refused.append(path)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(pool, path)

    monkeypatch.setattr(segments.OpenFiles, "duplicate", duplicate)
    sent = [trade(n) for n in range(1000, 1300)]
    summary = spot.collect(sent, lambda: spot.told.get("rows") == 300 and len(refused) == 3, SYNC_INTERVAL_S=0.05)
    assert spot.rows == [row_of(text) for text in sent]
    assert (summary.missing, len(journal(spot.data_dir, "sync_waits"))) == (0, 1)


def test_a_directory_moved_away_before_sealing_ends_nothing(spot: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that wait for sealing and are gone with their directory count as missing; the collector goes on."""
    real = segments.Segments.seal
    away = spot.folder / "away"

    def seal(files: segments.Segments, segment: segments.Segment) -> segments.Sealed:
        if not away.exists():
            files.directory.rename(away)
        return real(files, segment)

    monkeypatch.setattr(segments.Segments, "seal", seal)
    sent = [trade(n) for n in range(1000, 2000)]
    spot.collect(sent, lambda: spot.told.get("rows") == 1000 and journal(spot.data_dir, "lost"), ROTATE_SIZE="1kB")
    assert "No such file" in journal(spot.data_dir, "seal_failed")[0]["detail"]
    lost = {n for entry in journal(spot.data_dir, "lost") for n in range(entry["first_id"], entry["last_id"] + 1)}
    first_away = {int(path.name.removesuffix(".csv").split("-")[5]) for path in away.glob("*.csv")}
    assert 1000 in lost & first_away
    assert lost.isdisjoint(ids(spot.rows) if (spot.data_dir / spot.feed).exists() else ())


def test_what_is_safe_of_a_file_whose_sync_failed_is_sealed(spot: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the sync before a seal fails, the rows made safe earlier are sealed in this run, the others count missing."""
    real = segments.Segments._make_safe
    failed: list[segments.SyncFailedError] = []

    def make_safe(files: segments.Segments, job: segments._Growing) -> None:
        if failed or job.safe is None or not threading.current_thread().name.startswith("seal"):
            real(files, job)
            return
        error = OSError(errno.EIO, os.strerror(errno.EIO))
        failed.append(files._give_up_tail(job, error))
        raise failed[0]

    def append(files: segments.Segments, lines: bytes, ids: Sequence[int], day: int) -> list[segments.Segment]:
        ended = []
        for at, line in enumerate(lines.splitlines(keepends=True)):
            ended += real_append(files, line, ids[at : at + 1], day)
            if at % 7 == 0 and not files._unsynced:
                files.sync()  # so that what ends next is safe but for its last rows
        return ended

    real_append = segments.Segments.append
    monkeypatch.setattr(segments.Segments, "_make_safe", make_safe)
    monkeypatch.setattr(segments.Segments, "append", append)
    sent = [trade(n) for n in range(1000, 4000)]

    def is_sealed() -> bool:
        remaining = failed[0].remaining if failed else None
        if remaining is None:
            return False
        return remaining.path.with_name(f"{remaining.path.stem}-{remaining.last_id}.csv.zip").exists()

    spot.collect(sent, lambda: spot.told.get("rows") == 3000 and is_sealed(), ROTATE_SIZE="20kB", SYNC_INTERVAL_S=60)
    cut = set(range(failed[0].first_id, failed[0].last_id + 1))
    assert ids(spot.rows) == [n for n in range(1000, 4000) if n not in cut]
    assert missing(spot.data_dir, spot.feed) == cut


# --- The pace of connecting ------------------------------------------------------------------------------------------


def journal_at(path: Path, at_s: float) -> Journal:
    """Return a journal whose entries are of one moment."""
    return Journal(path, lambda: int(at_s * 1e9))


def test_restarts_in_a_loop_stay_below_the_limit_of_the_ip(tmp_path: Path) -> None:
    """A process that a supervisor starts again and again knows what those before it have tried (300 in 5 minutes)."""
    path = tmp_path / "journal.jsonl"
    clock_s = 1_790_000_000.0
    links, made = 30, list[float]()
    while clock_s < 1_790_000_000 + 700:
        pace = attempts_before(path, clock_s, 0.0)
        journal = journal_at(path, clock_s)
        for _ in range(links):
            wait_s = pace.take(SPOT, 0.0)
            if wait_s < 10:  # it lives for 10 s
                made.append(clock_s + wait_s)
                journal.append("connected", subject=SPOT)
            journal.append("cannot_connect", subject=SPOT, seen=False)
            journal.append("connected", subject=USDM)
        journal.close()
        clock_s += 11
    assert made[:links] == [1_790_000_000.0] * links, "the first start is not slowed"
    most = max(sum(at_s <= other < at_s + 300 for other in made) for at_s in made)
    assert links < most <= 150


def test_attempts_of_long_ago_or_of_a_wrong_clock_do_not_count(tmp_path: Path) -> None:
    """What is older than the limit's five minutes, lies ahead of the clock, or was never seen, slows no start."""
    path = tmp_path / "journal.jsonl"
    for at_s in (1_789_999_000, 1_790_000_500):
        journal = journal_at(path, at_s)
        for _ in range(200):
            journal.append("connected", subject=SPOT)
        journal.close()
    journal = journal_at(path, 1_789_999_999)
    for _ in range(200):
        journal.append("cannot_connect", subject=SPOT, seen=False)
    journal.close()
    assert attempts_before(path, 1_790_000_000.0, 5.0).paced_s(SPOT, 5.0) == 0


# --- The event loop --------------------------------------------------------------------------------------------------


def test_names_that_resolve_slowly_hold_up_nothing_else() -> None:
    """While thirty look-ups hang, what else runs beside the loop goes on."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        prepare_loop(loop)
        answer = threading.Event()
        hanging = [loop.run_in_executor(None, answer.wait) for _ in range(30)]
        assert await asyncio.wait_for(asyncio.to_thread(int, "7"), 60) == 7
        answer.set()
        await asyncio.gather(*hanging)

    asyncio.run(test())


def test_what_nobody_awaits_is_told_in_a_line() -> None:
    """A failure in a callback ends nothing, and is neither silent nor a traceback."""
    told: list[str] = []
    sink = logger.add(told.append, level="INFO", format="{message}")

    def fail() -> None:
        raise KeyError("nobody\nforesaw it")

    async def test() -> None:
        prepare_loop(asyncio.get_running_loop())
        asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    try:
        asyncio.run(test())
    finally:
        logger.remove(sink)
    (line,) = [line for line in told if "Not foreseen" in line]
    assert "KeyError" in line
    assert line.count("\n") == 1
    assert "Traceback" not in line
