"""One run of the upload: what is sent, what counts as there, what is deleted, and what a person is told.

Files go to real folders; what a store may answer otherwise is told by a store of this test. The judge for S3 and its
faults is in test_upload_faults.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from channels.bot_api import CHAT, TOKEN, BotApi
from channels.web import serving
from conftest import GAPS_STAY, Exchange, Programs, check_accounts, exchange, journal, rows_told, status_of
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from rich.console import Console
from stores.site import sealed_bytes

from tickcollect import upload
from tickcollect.backlog import read_run
from tickcollect.config import Config, load
from tickcollect.dataset.replay import GeneratedMarket
from tickcollect.deliveries import Deliveries
from tickcollect.files import FeedPath, SegmentName
from tickcollect.journal import Entry, Journal, JournalError
from tickcollect.store import (
    Absent,
    CannotTell,
    Digests,
    Folder,
    Held,
    Limits,
    NameTakenError,
    Probe,
    Receipt,
    RefusedError,
    Source,
    TemporaryError,
    UnusableError,
    open_source,
)
from tickcollect.upload import (
    BusyError,
    Item,
    Options,
    Outcome,
    Patience,
    UploadError,
    World,
    foresee,
    is_due,
    is_known,
    one_at_a_time,
    renamed,
    run,
    sealed_items,
)

NOW_NS = int(datetime(2026, 11, 21, 0, 10, tzinfo=UTC).timestamp()) * 10**9
DAY = 20_776
"""2026-11-19, in days since 1970."""
FEED = "binance/trade/BTCUSDT"
NO_OPTIONS = Options()
SEALED = re.compile(r"-\d\d-\d\d-\d+-\d+[.]csv([.]zip)?$")


def file_of(first_id: int, day: str = "2026-11-19", feed: str = FEED) -> str:
    """Return the name of a sealed file of 100 IDs."""
    _, stream, symbol = feed.split("/")
    return f"{feed}/{symbol}-{stream}-{day}-{first_id}-{first_id + 99}.csv.zip"


@dataclass
class Clock:
    """Time that passes only where it is waited for."""

    now_s: float = 0.0
    waits: list[float] = field(default_factory=list)

    def world(self, halt: threading.Event | None = None) -> World:
        """Return a world in which waiting takes no time and pauses are never shortened by chance."""

        class Halt(threading.Event):
            def wait(_self, timeout: float | None = None) -> bool:  # noqa: N805 - two objects in one
                self.waits.append(timeout or 0.0)
                self.now_s += timeout or 0.0
                return _self.is_set()

        return World(lambda: NOW_NS, lambda: self.now_s, lambda _low, high: high, halt or Halt())


@dataclass
class Site:
    """A data directory and a folder to upload to."""

    root: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def backup(self) -> Path:
        return self.root / "backup"

    @property
    def config(self) -> Config:
        return load(None, {}, {"DATA_DIR": str(self.data), "UPLOAD_TO": f"file://{self.backup}"})

    def seal(self, file: str, content: bytes | None = None) -> Path:
        """Make a sealed file, whole unless its content is given."""
        path = self.data / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = (
                sealed_bytes(file)
                if SEALED.search(file) and "quarantine" not in file and "deeper" not in file
                else b"not sealed"
            )
        path.write_bytes(content)
        return path

    def run(self, options: Options = NO_OPTIONS, store: Any = None, **patience: float) -> Outcome:
        wanted = Patience(**{"within_s": 6 * 3600.0, **patience})
        return run(self.config, store or Folder(self.backup, self.data), options, self.clock.world(), wanted)

    def there(self) -> dict[str, bytes]:
        """Return what the backup holds."""
        return {str(p.relative_to(self.backup)): p.read_bytes() for p in self.backup.rglob("*") if p.is_file()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.data.mkdir()
    made.backup.mkdir()
    return made


# --- What there is to do -------------------------------------------------------------------------------------------


def test_only_sealed_files_of_feeds_are_listed_oldest_first(site: Site) -> None:
    """Open, temporary, foreign, hidden and quarantined files are none of its business; the oldest day goes first."""
    sealed = [file_of(0, "2026-11-18", "binance-futures/aggTrade/ETHUSDT"), file_of(0), file_of(0, feed="x/trade/A-B")]
    sealed.append(file_of(100).replace(".csv.zip", ".csv"))  # COMPRESSION none
    for name in (*reversed(sealed), f"quarantine/{FEED}/{file_of(0).rpartition('/')[2]}", f"{FEED}/.lock"):
        site.seal(name)
    for name in ("BTCUSDT-trade-2026-11-21-7.csv", file_of(1).rpartition("/")[2] + ".unconfirmed", "notes.zip"):
        site.seal(f"{FEED}/{name}")
    site.seal(f"{FEED}/deeper/{file_of(5).rpartition('/')[2]}")
    items, strange = sealed_items(site.data)
    assert [item.file for item in items] == [sealed[0], sealed[1], sealed[3], sealed[2]]
    assert strange == []


def test_links_are_not_followed_and_told(site: Site, tmp_path: Path) -> None:
    """A feed that was moved away behind a link is not uploaded, and nobody is left to believe it was."""
    elsewhere = site.seal(f"../elsewhere/{file_of(0)}")
    (site.data / "binance").symlink_to(tmp_path / "elsewhere" / "binance")
    site.seal(f"x/trade/AB/{file_of(0, feed='x/trade/AB').rpartition('/')[2]}").unlink()
    (site.data / file_of(0, feed="x/trade/AB")).symlink_to(elsewhere)
    outcome = site.run()
    assert not outcome.complete
    assert sorted(failure.file for failure in outcome.failures) == ["binance", file_of(0, feed="x/trade/AB")]
    assert all("which is not followed" in failure.text for failure in outcome.failures)
    assert site.there() == {}


ITEM = Item(file_of(0), Path(file_of(0)), FeedPath("binance", "trade", "BTCUSDT"), SegmentName(DAY, 0, 99), 10, 5)


@pytest.mark.parametrize(
    ("facts", "known"),
    [
        ({}, True),
        ({"bytes": 11}, False),
        ({"mtime_ns": 6}, False),
        ({"store": "s3://another"}, False),
        ({"file": file_of(100)}, False),
        ({"sha256": None}, False),
        ({"bytes": "10"}, False),
    ],
)
def test_the_journal_knows_what_is_there(facts: dict[str, object], known: bool) -> None:  # noqa: FBT001 - expected
    """A file counts as delivered by an entry for this store, this file, its size and time; nothing less."""
    usual = {"file": ITEM.file, "bytes": 10, "mtime_ns": 5, "sha256": "s", "store": "here", "key": "k", "proof": "p"}
    entry = Entry(datetime.now(UTC), "uploaded", {**usual, **facts})
    assert is_known(ITEM, Deliveries("here", {ITEM.file}).take([entry]).proof(ITEM.file)) is known


@given(st.integers(0, 400), st.integers(0, 400))
def test_files_are_due_when_more_days_have_passed(days: int, age: int) -> None:
    """With DAYS 0 yesterday's files are due and today's are not; each day more keeps them one day longer."""
    item = dataclasses.replace(ITEM, name=SegmentName(NOW_NS // 86_400_000_000_000 - age, 0, 99))
    assert is_due(item, Options(delete_after_days=days), NOW_NS) is (age > days)
    assert not is_due(item, NO_OPTIONS, NOW_NS)


def test_days_are_those_of_the_calendar() -> None:
    """The day in a file's name is a day of UTC."""
    assert (date(2026, 11, 19) - date(1970, 1, 1)).days == DAY
    assert is_due(ITEM, Options(delete_after_days=1), NOW_NS)
    assert not is_due(ITEM, Options(delete_after_days=2), NOW_NS)


def test_a_name_beside_a_taken_one_is_no_segment_and_ends_alike() -> None:
    """The name beside tells the checksum before the ending, so that readers do not take it for a second segment."""
    name = renamed(file_of(0), "0123456789abcdef")
    assert name == file_of(0).replace(".csv.zip", ".sha256-01234567.csv.zip")
    assert FeedPath("binance", "trade", "BTCUSDT").parse(name.rpartition("/")[2]) is None


# --- Sending -------------------------------------------------------------------------------------------------------


def test_everything_is_sent_once_and_recorded(site: Site) -> None:
    """Each file is at its place with its bytes, on record with proof; the next run has nothing to send."""
    files = [file_of(n, day) for n in (0, 100, 200) for day in ("2026-11-18", "2026-11-19")]
    for file in files:
        site.seal(file)
    first, second = site.run(), site.run()
    assert site.there() == {file: sealed_bytes(file) for file in files}
    assert (first.sent, first.already, first.waiting, first.complete) == (6, 0, [], True)
    assert (second.sent, second.already, second.waiting, second.complete) == (0, 6, [], True)
    entries = journal(site.data, "uploaded")
    assert sorted(entry["file"] for entry in entries) == sorted(files)
    for entry in entries:
        content = sealed_bytes(entry["file"])
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert (entry["bytes"], entry["subject"], entry["key"]) == (len(content), FEED, entry["file"])
        assert (entry["store"], entry["proof"]) == (f"file://{site.backup}", "held: its bytes")
    assert [entry["event"] for entry in journal(site.data, "upload_done", "upload_failed")] == ["upload_done"] * 2
    kilobytes = sum(map(len, site.there().values())) / 1000
    assert first.lines()[0].endswith(f": sent 6 files ({kilobytes:.1f} kB) in 0.0 s; 0 were there already; 0 waiting")


def test_what_is_there_is_compared_and_not_sent_again(site: Site) -> None:
    """Without a record (a lost journal, a killed run) the store is looked at; the same bytes are put on record."""
    site.seal(file_of(0))
    site.run()
    (site.data / "journal.jsonl").unlink()
    before = (site.backup / file_of(0)).stat()
    outcome = site.run()
    assert (outcome.sent, outcome.already, outcome.complete) == (0, 1, True)
    assert (site.backup / file_of(0)).stat().st_ino == before.st_ino
    assert len(journal(site.data, "uploaded")) == 1


@pytest.mark.parametrize("content", [b"other content of another size", sealed_bytes(file_of(1))])
def test_other_content_is_never_overwritten(content: bytes, site: Site) -> None:
    """A taken name stays as it is; the file stays here, is told with its name, and holds up no other."""
    site.seal(file_of(0))
    site.seal(file_of(100))
    (site.backup / FEED).mkdir(parents=True)
    (site.backup / file_of(0)).write_bytes(content)
    outcome = site.run(Options(delete_after_days=0))
    assert site.there() == {file_of(0): content, file_of(100): sealed_bytes(file_of(100))}
    assert [item.file for item in outcome.waiting] == [file_of(0)]
    assert (site.data / file_of(0)).exists()
    assert not (site.data / file_of(100)).exists()
    (reason,) = outcome.reasons
    assert file_of(0) in reason
    assert "--rename-taken" in reason
    (told,) = journal(site.data, "name_taken")
    assert (told["subject"], told["file"]) == (FEED, file_of(0))


def test_a_taken_name_can_be_passed_by(site: Site) -> None:
    """Asked for, the file goes beside the taken name; that is its proof from then on, for deleting too."""
    site.seal(file_of(0))
    (site.backup / FEED).mkdir(parents=True)
    (site.backup / file_of(0)).write_bytes(b"other")
    beside = renamed(file_of(0), hashlib.sha256(sealed_bytes(file_of(0))).hexdigest())
    assert site.run(Options(rename_taken=True)).complete
    assert site.there() == {file_of(0): b"other", beside: sealed_bytes(file_of(0))}
    again = site.run(Options(delete_after_days=0))
    assert (again.complete, again.already, again.deleted) == (True, 1, 1)
    assert site.there() == {file_of(0): b"other", beside: sealed_bytes(file_of(0))}


def test_verify_asks_about_what_is_on_record(site: Site) -> None:
    """What has vanished from the store is found by --verify and sent again."""
    site.seal(file_of(0))
    site.run()
    (site.backup / file_of(0)).unlink()
    assert (site.run().sent, site.run(Options(verify=True)).sent) == (0, 1)
    (site.backup / file_of(0)).write_bytes(b"x" * len(sealed_bytes(file_of(0))))
    outcome = site.run(Options(verify=True))
    assert [item.file for item in outcome.waiting] == [file_of(0)]
    assert "other content" in outcome.reasons[0]


def test_a_record_is_of_one_store(site: Site, tmp_path: Path) -> None:
    """What is in one store is not thereby in another."""
    site.seal(file_of(0))
    site.run()
    (tmp_path / "second").mkdir()
    assert site.run(store=Folder(tmp_path / "second", site.data)).sent == 1


def test_a_copied_file_is_read_before_it_counts_as_known(site: Site) -> None:
    """A file with another time (restored, touched) is compared by its bytes, and recorded anew."""
    path = site.seal(file_of(0))
    site.run()
    os.utime(path, (1, 1))
    assert (site.run().sent, len(journal(site.data, "uploaded"))) == (0, 2)
    assert (site.run().sent, len(journal(site.data, "uploaded"))) == (0, 2)


def test_dry_run_changes_nothing(site: Site) -> None:
    """What would be done is told; no file, no entry and no lock comes of it."""
    for n in (0, 100, 200):
        site.seal(file_of(n))
    (site.backup / FEED).mkdir(parents=True)
    (site.backup / file_of(0)).write_bytes(b"other")
    (site.backup / file_of(100)).write_bytes(sealed_bytes(file_of(100)))
    before = sorted(site.root.rglob("*"))
    found, strange = foresee(site.data, Folder(site.backup, site.data), Options(delete_after_days=0), NOW_NS)
    assert {one.item.file: one.doing for one in found} == {
        file_of(0): "keep: its name is taken by other content",
        file_of(100): "compare, delete here",
        file_of(200): "send, delete here",
    }
    assert strange == []
    assert sorted(site.root.rglob("*")) == before


def test_a_missing_data_directory_is_told(site: Site) -> None:
    """A wrong DATA_DIR is no empty one."""
    site.data.rmdir()
    with pytest.raises(UploadError, match="no such directory"):
        site.run()


def test_the_last_run_is_kept_for_the_status(site: Site) -> None:
    """What the run came to can be read by others."""
    site.seal(file_of(0))
    site.seal(file_of(100))
    (site.backup / FEED).mkdir(parents=True)
    (site.backup / file_of(0)).write_bytes(b"other")
    outcome = site.run()
    kept = read_run(site.data, f"file://{site.backup}")
    assert kept is not None
    assert (kept.store, kept.sent, kept.waiting, kept.oldest_waiting) == (f"file://{site.backup}", 1, 1, file_of(0))
    assert (kept.complete, kept.failures) == (False, outcome.reasons)


# --- What may pass, and what does not ------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A store in memory that fails as it is told, and records what was asked of it."""

    fails: Callable[[str, str], Exception | None] = lambda _what, _key: None
    blind: bool = False
    held: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    name: str = "scripted://store"
    limits: Limits = field(default_factory=Limits)

    def _asked(self, what: str, key: str = "") -> None:
        self.asked.append((what, key))
        if (error := self.fails(what, key)) is not None:
            raise error

    def probe(self) -> Probe:
        self._asked("probe")
        return Probe("reachable", may_look=not self.blind)

    def look(self, key: str) -> Held | Absent | CannotTell:
        self._asked("look", key)
        if self.blind:
            return CannotTell()
        return _told(self.held[key]) if key in self.held else Absent()

    def put(self, key: str, source: Source, digests: Digests) -> Receipt:
        self._asked("put", key)
        if key in self.held:
            raise NameTakenError("name_taken", f"{key} is taken")
        self.held[key] = b"".join(source.chunks())
        return Receipt(_told(self.held[key]))

    def read_back(self, key: str, also: Callable[[bytes], None] = lambda _chunk: None) -> str:
        also(self.held[key])
        return hashlib.sha256(self.held[key]).hexdigest()

    def abort_leftovers(self, older_than: datetime) -> int:
        return 0

    def close(self) -> None:
        pass


def _told(data: bytes) -> Held:
    return Held(len(data), hashlib.sha256(data).hexdigest())


def first(count: int, error: Exception, what: str = "put", of: str = "") -> Callable[[str, str], Exception | None]:
    """Fail the first `count` requests of a kind, for files whose name has `of` in it."""
    left = [count]

    def fails(asked: str, key: str) -> Exception | None:
        if asked == what and of in key and left[0] > 0:
            left[0] -= 1
            return error
        return None

    return fails


BUSY = TemporaryError("busy", "the store is overloaded.")


@pytest.mark.parametrize("what", ["probe", "look", "put"])
def test_what_may_pass_is_tried_again_with_growing_pauses(what: str, site: Site) -> None:
    """An overloaded store is asked again, later each time, until it answers."""
    site.seal(file_of(0))
    outcome = site.run(store=Scripted(first(4, BUSY, what)))
    assert (outcome.complete, outcome.sent) == (True, 1)
    assert site.clock.waits == [1, 2, 4, 8]


def test_pauses_have_a_limit_and_so_has_the_run(site: Site) -> None:
    """The longest pause is five minutes; at the deadline the run ends with what is missing, and why."""
    site.seal(file_of(0))
    outcome = site.run(store=Scripted(first(10**6, BUSY)), within_s=3600)
    assert max(site.clock.waits) == 300
    assert 3000 < sum(site.clock.waits) <= 3600
    assert not outcome.complete
    assert outcome.reasons == [f"the store is overloaded. ({file_of(0)})"]
    assert journal(site.data, "upload_failed")[0]["waiting"] == 1


def test_the_store_says_how_long_to_wait(site: Site) -> None:
    """`Retry-After` is obeyed where it is longer than the pause."""
    site.seal(file_of(0))
    site.run(store=Scripted(first(1, TemporaryError("busy", "later.", retry_after_s=77))))
    assert site.clock.waits == [77]


def test_what_waiting_does_not_heal_is_given_up_soon(site: Site) -> None:
    """Bytes that are damaged on each way end that file's attempts; the next run tries again."""
    site.seal(file_of(0))
    store = Scripted(first(10**6, TemporaryError("damaged", "damaged on the way.")))
    assert not site.run(store=store).complete
    assert [what for what, _ in store.asked].count("put") == 5


def test_a_first_file_in_trouble_holds_up_no_other(site: Site) -> None:
    """The file that goes ahead of all is tried once; while it waits for its next attempt, the others go."""
    for n in range(0, 1000, 100):
        site.seal(file_of(n), sealed_bytes(file_of(n), 20_000 + n))
    store = Scripted(first(3, BUSY, of=file_of(0)))
    assert site.run(store=store).complete
    puts = [key for what, key in store.asked if what == "put"]
    assert puts[0] == file_of(0)
    assert puts.count(file_of(0)) == 4


def test_one_file_holds_up_no_other(site: Site) -> None:
    """A file that is refused is told; all others are sent."""
    for n in range(0, 1000, 100):
        site.seal(file_of(n))
    error = RefusedError("too_large", "the file is larger than the store takes.")
    outcome = site.run(store=Scripted(first(10**6, error, of=file_of(300))))
    assert outcome.sent == 9
    assert [item.file for item in outcome.waiting] == [file_of(300)]


@pytest.mark.parametrize("what", ["probe", "put"])
def test_what_concerns_all_stops_the_run(what: str, site: Site) -> None:
    """Wrong credentials are told once, after one request that needs them, and nothing else is attempted."""
    for n in range(0, 5000, 100):
        site.seal(file_of(n))
    store = Scripted(first(10**6, UnusableError("expired", "the access key has expired."), what))
    outcome = site.run(store=store)
    assert outcome.reasons == ["the access key has expired."]
    assert [asked for asked, _ in store.asked].count(what) == 1
    assert site.clock.waits == []
    assert (len(outcome.waiting), outcome.interrupted, outcome.complete) == (50, False, False)


def test_no_other_file_begins_before_the_first_was_tried(site: Site) -> None:
    """The smallest file goes alone at first, so that an error which concerns all shows before the rest is touched."""
    for n in range(0, 1000, 100):
        site.seal(file_of(n), sealed_bytes(file_of(n), 20_000 + n))
    store, seen = Scripted(), set[str]()

    def note_who_else_is_at_work(what: str, _key: str) -> Exception | None:
        if what == "put" and not seen:
            threading.Event().wait(0.2)  # would others run they had the time to show; nothing waits for it to pass
            seen.update(key for asked, key in store.asked if asked != "probe")
        return None

    store.fails = note_who_else_is_at_work
    assert site.run(store=store).sent == 10
    assert seen == {file_of(0)}


def test_no_more_files_at_once_than_configured(site: Site) -> None:
    """As many files as `UPLOAD_PARALLEL` are under way, and never more."""
    for n in range(0, 2100, 100):
        site.seal(file_of(n), sealed_bytes(file_of(n), 20_000 + n))
    store, lock, under_way, most = Scripted(), threading.Lock(), set[str](), [0]
    pairs = threading.Barrier(2, timeout=30)

    def meet(what: str, key: str) -> Exception | None:
        if what == "put" and key != file_of(0):
            with lock:
                under_way.add(key)
                most[0] = max(most[0], len(under_way))
            pairs.wait()
            with lock:
                under_way.discard(key)
        return None

    store.fails = meet
    config = site.config.model_copy(update={"upload_parallel": 2})
    assert run(config, store, NO_OPTIONS, site.clock.world(), Patience(3600)).sent == 21
    assert most[0] == 2


def test_waiting_names_request_and_file(site: Site) -> None:
    """A warning that something is tried again says what was tried, with which file, and how often."""
    site.seal(file_of(0))
    said: list[str] = []
    sink = logger.add(said.append, level="WARNING", format="{message}")
    try:
        site.run(store=Scripted(first(1, BUSY)))
    finally:
        logger.remove(sink)
    (line,) = said
    assert line.startswith(f"sending {file_of(0)}, attempt 1: the store is overloaded. Again in ")


def test_many_files_with_one_reason_are_one_line(site: Site) -> None:
    """The reasons are grouped: a person reads one line, with the number of files."""
    for n in range(0, 3000, 100):
        site.seal(file_of(n))
    outcome = site.run(store=Scripted(first(10**6, RefusedError("refused", "the store refuses."))))
    (line,) = outcome.reasons
    assert line.endswith("(and 29 more files)")


def test_a_lost_answer_is_found_out(site: Site) -> None:
    """Where the store has the file and the answer was lost, the second attempt finds it there, and the same."""
    site.seal(file_of(0))
    store = Scripted()
    put = store.put

    def put_and_lose(key: str, source: Source, digests: Digests) -> Receipt:
        put(key, source, digests)
        raise TemporaryError("network", "the connection failed.")

    store.put = put_and_lose  # type: ignore[method-assign] # one answer is lost
    outcome = site.run(store=store)
    assert (outcome.complete, outcome.sent, outcome.already) == (True, 0, 1)
    assert len(journal(site.data, "uploaded")) == 1


def test_a_file_that_is_proved_at_the_second_look_was_sent(site: Site) -> None:
    """Taken by the store, but its first look afterwards failed: the next attempt finds it, and it counts as sent."""
    site.seal(file_of(0))
    store = Scripted()

    def fail_once_after_the_put(what: str, _key: str) -> Exception | None:
        looks = [asked for asked, _ in store.asked].count("look")
        return BUSY if what == "look" and looks == 2 else None

    store.fails = fail_once_after_the_put
    outcome = site.run(store=store)
    assert (outcome.complete, outcome.sent, outcome.already) == (True, 1, 0)


def test_no_file_is_begun_after_the_deadline(site: Site) -> None:
    """When the time is over, what was not begun waits for the next run."""
    site.seal(file_of(0))
    store = Scripted()
    probe = store.probe

    def slowly() -> Probe:
        site.clock.now_s += 7 * 3600
        return probe()

    store.probe = slowly  # type: ignore[method-assign] # takes longer than the run may
    outcome = site.run(store=store)
    assert (outcome.sent, len(outcome.waiting)) == (0, 1)
    assert "UPLOAD_WITHIN_H" in outcome.reasons[0]


def test_a_halt_leaves_the_rest_for_the_next_run(site: Site) -> None:
    """Asked to stop, a run ends with what has arrived on record."""
    for n in range(0, 5000, 100):
        site.seal(file_of(n))
    world = site.clock.world()
    store = Scripted()

    def stop(what: str, _key: str) -> Exception | None:
        if what == "put" and len(store.held) >= 5:
            world.halt.set()
        return None

    store.fails = stop
    outcome = run(site.config, store, NO_OPTIONS, world, Patience(3600))
    assert outcome.interrupted
    assert outcome.sent == len(store.held) == len(journal(site.data, "uploaded"))
    assert len(outcome.waiting) == 50 - outcome.sent
    assert site.run(store=store).complete


# --- Keys that may only write --------------------------------------------------------------------------------------


def test_a_blind_key_relies_on_answers_and_records(site: Site) -> None:
    """With a key that may not look, the answer is the proof, and a record is what tells that a file is there."""
    site.seal(file_of(0))
    store = Scripted(blind=True)
    assert site.run(store=store).complete
    assert journal(site.data, "uploaded")[0]["proof"] == "answered: SHA-256"
    assert site.run(store=store).complete
    assert [what for what, _ in store.asked].count("put") == 1


def test_a_blind_key_does_not_guess_by_what_a_name_is_taken(site: Site) -> None:
    """Without a record, a taken name is content unknown: not there, and told."""
    site.seal(file_of(0))
    outcome = site.run(store=Scripted(blind=True, held={file_of(0): sealed_bytes(file_of(0))}))
    assert [item.file for item in outcome.waiting] == [file_of(0)]
    assert "s3:GetObject" in outcome.reasons[0]


def test_a_blind_key_cannot_verify_and_says_so(site: Site) -> None:
    """--verify with a key that may not look is no success."""
    site.seal(file_of(0))
    store = Scripted(blind=True)
    site.run(store=store)
    outcome = site.run(Options(verify=True), store=store)
    assert (outcome.complete, outcome.waiting) == (False, [])
    assert "cannot be verified" in outcome.reasons[0]


def test_a_key_that_expires_meanwhile_is_asked_why(site: Site) -> None:
    """A key that could look and cannot any more is not taken for one that may only write."""
    site.seal(file_of(0))
    site.run(store=Scripted())
    store = Scripted()

    def expire(what: str, _key: str) -> Exception | None:
        store.blind = what == "look"
        asked_before = ("look", file_of(0)) in store.asked
        return UnusableError("expired", "it has expired.") if what == "probe" and asked_before else None

    store.fails = expire
    outcome = site.run(Options(verify=True), store=store)
    assert outcome.reasons == ["it has expired."]


# --- Deleting ------------------------------------------------------------------------------------------------------

DELETE = Options(delete_after_days=1)


def test_deleted_on_proof_and_on_record_before(site: Site) -> None:
    """A proved file is deleted here, with its IDs in the journal; the store keeps it, and the next run is quiet."""
    old, young = site.seal(file_of(0)), site.seal(file_of(100, "2026-11-20"))
    open_file = site.seal(f"{FEED}/BTCUSDT-trade-2026-11-10-5.csv")
    outcome = site.run(DELETE)
    assert (outcome.complete, outcome.deleted, outcome.deleted_bytes) == (True, 1, len(sealed_bytes(file_of(0))))
    assert (old.exists(), young.exists(), open_file.exists()) == (False, True, True)
    (entry,) = journal(site.data, "deleted")
    assert (entry["subject"], entry["file"], entry["first_id"], entry["last_id"]) == (FEED, file_of(0), 0, 99)
    assert set(site.there()) == {file_of(0), file_of(100, "2026-11-20")}
    assert site.run(DELETE).complete


def harm_store(site: Site, content: bytes | None) -> None:
    copy = site.backup / file_of(0)
    copy.unlink()
    if content is not None:
        copy.write_bytes(content)


def test_gone_from_the_store_is_sent_again_before_it_is_deleted(site: Site) -> None:
    """A record alone deletes nothing: what the store no longer holds is first brought there again."""
    site.seal(file_of(0))
    site.run()
    harm_store(site, None)
    outcome = site.run(DELETE)
    assert (outcome.sent, outcome.deleted) == (1, 1)
    assert site.there() == {file_of(0): sealed_bytes(file_of(0))}


@pytest.mark.parametrize("content", [b"", b"x" * len(sealed_bytes(file_of(0))), sealed_bytes(file_of(0))[:-1]])
def test_other_bytes_in_the_store_keep_the_file(content: bytes, site: Site) -> None:
    """A record alone deletes nothing: where the store holds something else now, the file stays."""
    path = site.seal(file_of(0))
    site.run()
    harm_store(site, content)
    outcome = site.run(DELETE)
    assert path.read_bytes() == sealed_bytes(file_of(0))
    assert site.there() == {file_of(0): content}
    assert (outcome.deleted, [item.file for item in outcome.waiting]) == (0, [file_of(0)])


def test_a_changed_file_is_not_deleted(site: Site) -> None:
    """A file whose bytes are no longer those that were proved stays, even with the same size and time."""
    path = site.seal(file_of(0))
    found = path.stat()
    site.run()
    path.write_bytes(b"y" * found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    outcome = site.run(DELETE)
    assert path.exists()
    assert outcome.deleted == 0
    assert site.there() == {file_of(0): sealed_bytes(file_of(0))}


@pytest.mark.parametrize("event", ["uploaded", "deleted"])
def test_without_a_record_nothing_is_deleted(event: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the journal cannot be written, the file stays, and the run says why."""
    path = site.seal(file_of(0))
    append = Journal.append

    def refuse(self: Journal, kind: str, /, **facts: object) -> None:
        if kind == event:
            raise JournalError("append to", site.data / "journal.jsonl", OSError(errno.ENOSPC, "No space left"))
        append(self, kind, **facts)

    monkeypatch.setattr(Journal, "append", refuse)
    outcome = site.run(DELETE)
    assert path.exists()
    assert (outcome.deleted, outcome.complete) == (0, False)
    assert "journal" in outcome.reasons[0]
    assert site.there() == {file_of(0): sealed_bytes(file_of(0))}


def test_the_record_is_safe_before_the_file_goes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proof and deletion are each written and synced in this order, with a look at the store between; then it goes."""
    path, steps = site.seal(file_of(0)), list[str]()
    append, sync, unlink = Journal.append, Journal.sync, Path.unlink

    def noting(step: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def act_and_note(*args: Any, **facts: Any) -> Any:
            if step != "unlink" or args[0] == path:
                steps.append(args[1] if step == "append" else step)
            return act(*args, **facts)

        return act_and_note

    monkeypatch.setattr(Journal, "append", noting("append", append))
    monkeypatch.setattr(Journal, "sync", noting("sync", sync))
    monkeypatch.setattr(Path, "unlink", noting("unlink", unlink))
    store = Scripted()
    store.fails = lambda what, _key: steps.append(what)
    assert site.run(DELETE, store=store).deleted == 1
    assert steps[:-1] == [
        "probe", "look", "put", "look", "uploaded", "sync", "look", "deleted", "sync", "unlink", "upload_done",
    ]  # fmt: skip


@pytest.mark.parametrize("event", ["uploaded", "deleted"])
def test_a_record_that_is_not_safe_keeps_the_file(event: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the journal cannot be made safe from power loss after an entry, the file stays."""
    path, written = site.seal(file_of(0)), list[str]()
    append, sync = Journal.append, Journal.sync

    def note(self: Journal, kind: str, /, **facts: object) -> None:
        written.append(kind)
        append(self, kind, **facts)

    def fail(self: Journal) -> None:
        if written[-1:] == [event]:
            raise JournalError("sync", site.data / "journal.jsonl", OSError(errno.EIO, "Input/output error"))
        sync(self)

    monkeypatch.setattr(Journal, "append", note)
    monkeypatch.setattr(Journal, "sync", fail)
    outcome = site.run(DELETE)
    assert path.exists()
    assert (outcome.deleted, outcome.complete) == (0, False)


@pytest.mark.parametrize("trust", [False, True])
def test_a_blind_key_deletes_only_where_receipts_are_trusted(trust: bool, site: Site) -> None:  # noqa: FBT001 - drawn
    """Without looking, deleting needs the explicit word that the store's answer is enough."""
    path = site.seal(file_of(0))
    store = Scripted(blind=True)
    outcome = site.run(Options(delete_after_days=1, trust_receipt=trust), store=store)
    assert path.exists() is not trust
    assert outcome.complete is trust
    assert outcome.waiting == []
    if not trust:
        assert "--trust-receipt" in outcome.reasons[0]


def replace_file(path: Path) -> None:
    path.unlink()
    path.write_bytes(b"new")


def replace_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.mkdir()
    path.write_bytes(b"new")


def rewrite_in_place(path: Path) -> None:
    path.write_bytes(b"new")


@pytest.mark.parametrize("replace", [replace_file, replace_directory, rewrite_in_place])
def test_a_file_put_in_the_place_of_another_stays(replace: Callable[[Path], None], site: Site) -> None:
    """What is deleted is the file that was read, not what has its name a moment later."""
    path = site.seal(file_of(0))
    store = Scripted()

    def replace_at_the_last_look(what: str, _key: str) -> Exception | None:
        if what == "look" and [asked for asked, _ in store.asked].count("look") == 3:
            replace(path)
        return None

    store.fails = replace_at_the_last_look
    assert site.run(DELETE, store=store).deleted == 0
    assert path.read_bytes() == b"new"


def test_an_object_that_vanishes_before_the_last_look_keeps_the_file(site: Site) -> None:
    """The store is asked at the moment of deleting, whatever it said a moment before."""
    path = site.seal(file_of(0))
    store = Scripted()

    def vanish(what: str, _key: str) -> Exception | None:
        looks = [asked for asked, _ in store.asked].count("look")
        if what == "look" and looks == 3:  # before sending, after it, and now
            store.held.clear()
        return None

    store.fails = vanish
    outcome = site.run(Options(delete_after_days=1, trust_receipt=True), store=store)
    assert path.exists()
    assert [item.file for item in outcome.waiting] == [file_of(0)]
    assert "is there no more" in outcome.reasons[0]


def test_deleting_asks_for_the_record_itself(site: Site) -> None:
    """The step that deletes believes no caller: without an entry in the journal it refuses."""
    path = site.seal(file_of(0))
    ((item,), _) = sealed_items(site.data)
    store = Scripted(held={item.file: path.read_bytes()})
    journal_file = Journal(site.data / "journal.jsonl")
    one = upload.Run(store, journal_file, DELETE, Patience(60), site.clock.world(), upload.Silent())
    with open_source(path) as source, pytest.raises(RefusedError, match="no proof"):
        one._delete(item, source, source.digests(store.limits), item.file)
    assert path.exists()


@given(
    st.dictionaries(
        st.integers(0, 9),
        st.tuples(
            st.sampled_from(["2026-11-18", "2026-11-19", "2026-11-20", "2026-11-21"]),
            st.sampled_from(["none", "same", "other"]),
        ),
        max_size=6,
    ),
    st.integers(0, 3),
    st.booleans(),
)
def test_no_file_is_gone_that_the_store_does_not_hold(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[int, tuple[str, str]],
    days: int,
    blind: bool,  # noqa: FBT001 - drawn
) -> None:
    """Whatever was in the store before: nothing there changes, and no local file is gone without its bytes there."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.data.mkdir()
    store = Scripted(blind=blind)
    for n, (day, there) in files.items():
        site.seal(file_of(n * 100, day))
        if there != "none":
            store.held[file_of(n * 100, day)] = file_of(n * 100, day).encode() if there == "same" else b"other"
    before = dict(store.held)
    outcome = site.run(Options(delete_after_days=days), store=store)
    assert before.items() <= store.held.items(), "an object was changed"
    for n, (day, _there) in files.items():
        file = file_of(n * 100, day)
        is_here, age = (site.data / file).exists(), 21 - int(day[-2:])
        if not is_here:
            assert store.held[file] == sealed_bytes(file)
            assert age > days
            assert not blind
        is_there = store.held.get(file) == sealed_bytes(file) and not blind
        assert not (is_there and file in {item.file for item in outcome.waiting})


# --- One at a time -------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_who_is_at_work(site: Site) -> None:
    """The lock names its holder, and is free again when it has ended."""
    holder = f"pid {os.getpid()}, started 2026-11-21T00:10:00Z"
    with one_at_a_time(site.data, "2026-11-21T00:10:00Z"), pytest.raises(BusyError, match=holder):
        site.run()
    assert site.run().complete


def test_a_lock_that_is_a_link_is_not_written_through(site: Site, tmp_path: Path) -> None:
    """A link in the lock's place is not followed."""
    (tmp_path / "victim").write_text("precious")
    (site.data / upload.LOCK_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(UploadError, match="cannot be opened"):
        site.run()
    assert (tmp_path / "victim").read_text() == "precious"


# --- The command ---------------------------------------------------------------------------------------------------


def test_the_command_uploads_and_says_so(site: Site, programs: Programs) -> None:
    """A run by hand: one line of what was done, code 0; again: nothing to send, code 0."""
    site.seal(file_of(0))
    config = programs.config(DATA_DIR=str(site.data), UPLOAD_TO=f"file://{site.backup}")
    first, second = (programs.run("upload", "--config", config) for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert "sent 1 file (" in first.out
    assert "0 waiting" in first.out
    assert "sent 0 files" in second.out
    assert "1 were there already" in second.out
    assert first.err + second.err == ""


def test_the_command_says_what_is_missing(site: Site, programs: Programs) -> None:
    """Something that is not there: code 1, and a line with the reason."""
    site.seal(file_of(0))
    (site.backup / FEED).mkdir(parents=True)
    (site.backup / file_of(0)).write_bytes(b"other")
    ended = programs.run("upload", "--data-dir", site.data, "--to", f"file://{site.backup}")
    assert ended.code == 1
    assert "1 waiting" in ended.out
    assert f"oldest waiting: {file_of(0)}" in ended.out
    (line,) = ended.err.splitlines()
    assert line.startswith("Error: ")
    assert "taken by other content" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Set S3_BUCKET"),
        (("--to", "ftp://host/x"), "s3://bucket/folder or file:///folder"),
        (("--to", "s3://a b"), "S3_BUCKET"),
        (("--delete-after", "-1"), "--delete-after"),
    ],
)
def test_a_mistake_is_told_with_code_2(arguments: tuple[str, ...], said: str, site: Site, programs: Programs) -> None:
    """A mistake in the command or the configuration ends it before anything is asked."""
    ended = programs.run("upload", "--data-dir", site.data, *arguments)
    assert ended.code == 2
    assert said in ended.err
    assert "Traceback" not in ended.said


def test_a_folder_that_is_not_mounted_is_told(site: Site, programs: Programs) -> None:
    """Also where nothing waits: whoever tries the command first wants to know that it works."""
    ended = programs.run("upload", "--data-dir", site.data, "--to", f"file://{site.root}/missing")
    assert ended.code == 1
    assert "Mount the disk" in ended.err


def test_overlapping_runs_are_told_with_code_75(site: Site, programs: Programs) -> None:
    """A run that meets another ends with one line and code 75; a killed holder leaves no lock behind."""
    site.seal(file_of(0))
    arguments = ("upload", "--data-dir", site.data, "--to", f"file://{site.backup}")
    with (site.data / upload.LOCK_NAME).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("pid 4711, started 2026-11-21T00:10:00Z\n")
        held.flush()
        ended = programs.run(*arguments)
    assert ended.code == 75
    (line,) = ended.err.splitlines()
    assert "pid 4711, started 2026-11-21T00:10:00Z" in line
    assert programs.run(*arguments).code == 0


def test_a_terminal_shows_how_it_goes(site: Site) -> None:
    """In a terminal there is a bar with the files that are settled, their bytes and the speed."""
    for n in range(0, 300, 100):
        site.seal(file_of(n), sealed_bytes(file_of(n), 1_000_000))
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with upload.bar(console) as progress:
        store = Folder(site.backup, site.data)
        outcome = run(site.config, store, NO_OPTIONS, site.clock.world(), Patience(60), progress)
    assert outcome.complete
    assert "3 of 3 files" in shown.getvalue()
    assert "3.0/3.0 MB" in shown.getvalue()


def test_the_channels_hear_how_it_went(site: Site, programs: Programs) -> None:
    """Done, not done or not even begun: each is told; a channel that fails changes neither result nor code."""
    site.seal(file_of(0))
    with serving(BotApi()) as api:
        assert isinstance(api, BotApi)
        telegram = {"TELEGRAM_TOKEN": TOKEN, "TELEGRAM_CHAT_ID": CHAT, "TELEGRAM_API_URL": api.address}
        config = programs.config(DATA_DIR=str(site.data), **telegram)
        upload_to = ("upload", "--config", config, "--to")
        assert programs.run(*upload_to, f"file://{site.backup}").code == 0
        assert programs.run(*upload_to, f"file://{site.backup}").code == 0, "nothing to do, and nothing to tell"
        assert programs.run(*upload_to, f"file://{site.root}/missing").code == 1
        assert programs.run("upload", "--config", config).code == 2
        titles = [message.title for message in api.messages]
        api.chats.clear()
        site.seal(file_of(100))
        deaf = programs.run(*upload_to, f"file://{site.backup}")
    assert ["done" in title for title in titles] == [True, False, False]
    assert ["failed" in title for title in titles] == [False, True, True]
    assert deaf.code == 0
    assert f"Warning: not told to telegram {CHAT}: " in deaf.err
    assert TOKEN.partition(":")[2] not in deaf.said


@pytest.fixture
def slow_store() -> Iterator[str]:
    """Run a store that has nothing, and takes what it is sent by the spoonful."""
    ends = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            left = int(self.headers.get("Content-Length", 0))
            with contextlib.suppress(ConnectionError):
                while left > 0 and not ends.wait(0.01) and (got := self.rfile.read(min(left, 65_536))):
                    left -= len(got)
                text = b"<ListBucketResult/>" if self.command == "GET" else b""
                self.send_response(404 if self.command == "HEAD" else 200)
                self.send_header("Content-Length", str(len(text)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(text)
            self.close_connection = True

        do_GET = do_PUT = do_HEAD = answer  # noqa: N815 - the server looks for these names

        def handle_expect_100(self) -> bool:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return True

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        ends.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_breaks_off_in_order(number: signal.Signals, slow_store: str, site: Site, programs: Programs) -> None:
    """In the middle of a file a signal ends the run soon, with code 130, what is missing and no traceback."""
    site.seal(file_of(0), sealed_bytes(file_of(0), 50_000_000))
    keys = {"AWS_ACCESS_KEY": "AK", "AWS_SECRET_KEY": "planted-secret", "S3_ENDPOINT_URL": slow_store}
    config = programs.config(DATA_DIR=str(site.data), S3_BUCKET="ticks", LOG_LEVEL="DEBUG", **keys)
    started = programs.start("upload", "--config", config)
    started.until_said("reachable")
    time.sleep(0.2)  # somewhere in the middle; any moment will do
    ended = started.stop(number)
    assert ended.code == 130
    assert "1 waiting" in ended.out
    assert "the next run goes on" in ended.err
    assert "Traceback" not in ended.said
    assert "planted-secret" not in ended.said
    assert journal(site.data, "uploaded") == []


@pytest.mark.parametrize("restored", [0, 1])
def test_what_was_deleted_is_no_hole_to_the_collector(restored: int, programs: Programs, tmp_path: Path) -> None:
    """A collector that starts where upload has deleted files goes on as if they were there.

    Also with a journal that lacks what was sealed (its writer was killed), and with the first and the last file still
    there: nothing that was deleted is declared missing, and what is then collected continues it.
    """
    data_dir, backup = tmp_path / "data", tmp_path / "backup"
    backup.mkdir()
    market = partial(GeneratedMarket, "binance", 1_784_000_000_000, symbols=1, activity=20)
    config = programs.config(ROTATE_SIZE="20kB", SEAL_AT_STOP=True, GAP_PATIENCE_S=0.05, **GAPS_STAY)
    with exchange(market(), speed=10) as served:
        collect(programs, served, data_dir, config)
        to = ("upload", "--data-dir", data_dir, "--to", f"file://{backup}", "--delete-after", "0")
        assert programs.run(*to).code == 0
        assert list(data_dir.glob("*/*/*/*.csv*")) == [], "all was of a day long past"
        sent = sorted(path.relative_to(backup) for path in backup.glob("*/*/*/*.csv.zip"))
        assert len(sent) > 5
        for path in [sent[0], sent[-1]] * restored:
            shutil.copy(backup / path, data_dir / path)
        forget(data_dir / "journal.jsonl", "sealed")
        collect(programs, served, data_dir, config)
    last_deleted = max(entry["last_id"] for entry in journal(data_dir, "deleted"))
    assert all(gap["first_id"] > last_deleted for gap in journal(data_dir, "gap"))
    for path in sent:
        shutil.copy(backup / path, data_dir / path)
    check_accounts(data_dir, FEED, market())


def collect(programs: Programs, served: Exchange, data_dir: Path, config: Path) -> None:
    """Collect some rows and stop."""
    started = programs.start(
        "run", "--symbol", "BTCUSDT", "--data-dir", data_dir, "--config", config, *served.addresses
    )
    started.until(lambda: status_of(data_dir).get("pid") == started.process.pid and rows_told(data_dir) > 2000)
    assert started.stop().code == 0


def forget(path: Path, event: str) -> None:
    """Take one kind of entry out of a journal."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["event"] != event), "utf-8")
