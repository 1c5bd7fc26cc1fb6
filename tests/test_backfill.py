"""Gaps are filled in the background, and each ID ends in one file or on record, whatever history and disk do."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tickcollect import backfill, gaps
from tickcollect.backfill import Account, Backfill, Job, accounts, closed_by
from tickcollect.events import RowCheck
from tickcollect.exchanges.binance import MARKETS
from tickcollect.feed import Inbox
from tickcollect.gaps import ABSENCE_AGAIN_S
from tickcollect.journal import Entry
from tickcollect.repair import history_of
from tickcollect.rest import BannedError, Rest
from tickcollect.segments import DiskFullError, FeedPath, Numbering, OpenFiles, Segments
from tickcollect.writer import Feed, LateRows, Writer

MIDNIGHT_MS = 20_648 * 86_400_000
LIMIT = 10
MARKETS_TESTED = ("binance", "binance-futures")


def row(id_: int, at_ms: int) -> str:
    """Return a row as history's rows are written, without an event time."""
    return f"trade,,BTCUSDT,{id_},1.50,2.0,,,{at_ms},True\n"


def live(id_: int, at_ms: int) -> str:
    return f"trade,{at_ms + 1},BTCUSDT,{id_},1.50,2.0,,,{at_ms},True\n"


@dataclass
class Exchange:
    """What was published, and how history answers for it: truly, unless a `lie` is told first."""

    published: dict[int, int] = field(default_factory=dict)
    """Trade time of each ID."""
    lies: list[Callable[[int], object]] = field(default_factory=list)
    """What is answered instead, one for each request; None in its place is the truth."""
    asked: list[int] = field(default_factory=list)
    before: Callable[[], Awaitable[None]] | None = None
    """Awaited before each answer."""

    async def get(self, _path: str, params: dict[str, int], **_: object) -> bytes:
        self.asked.append(params["fromId"])
        if self.before is not None:
            await self.before()
        answer: object = self.lies.pop(0)(params["fromId"]) if self.lies else self.rows(params["fromId"])
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def rows(self, from_id: int, *, without: Sequence[int] = (), **other: object) -> list[dict[str, Any]]:
        ids = [id_ for id_ in sorted(self.published) if id_ >= from_id and id_ not in without][:LIMIT]
        return [
            {"id": id_, "price": "1.50", "qty": "2.0", "time": self.published[id_], "isBuyerMaker": True} | other
            for id_ in ids
        ]


class Disk(Segments):
    """The files of a feed, on a disk that refuses what a test says."""

    full_at: int | None = None
    """The first row that the disk does not take, once."""
    sync_fails = False

    def append(self, lines: bytes, ids: Sequence[int], day: int) -> list[Any]:
        if self.full_at is not None and ids[0] == self.full_at:
            Disk.full_at = None
            raise DiskFullError("append to", self.directory, OSError(errno.ENOSPC, "full"))
        return super().append(lines, ids, day)

    def sync(self) -> int | None:
        if self.sync_fails and self.open_segment is not None:
            Disk.sync_fails = False
            growing = self._open
            assert growing is not None
            raise self._give_up_tail(growing, OSError(errno.EIO, "lost"))
        return super().sync()


@dataclass
class Scene:
    """One feed, its backfill and an exchange; the clock is set by the test."""

    root: Path
    feed: Feed
    exchange: Exchange
    filling: Backfill
    writer: Writer
    told: list[tuple[str, dict[str, Any]]]
    quarantined: list[str]
    now_s: float = 1000.0
    waiting: list[tuple[float, Job]] = field(default_factory=list)
    """Jobs that wait for their time, and how long."""

    def write_live(self, *ids: int, at_ms: int = MIDNIGHT_MS) -> None:
        """Put rows into the files as they come live: without a hole among them."""
        for id_ in ids:
            self.exchange.published.setdefault(id_, at_ms + id_)
        lines = [live(id_, self.exchange.published[id_]) for id_ in ids]
        self.feed.sequence.take(list(ids), [self.exchange.published[id_] for id_ in ids], lines, 0.0)
        self.feed.segments.end()
        day = self.exchange.published[ids[0]] // 86_400_000
        self.feed.segments.append("".join(lines).encode(), list(ids), day)

    def gap(self, first: int, last: int) -> None:
        self.feed.open.add(first, last)
        self.filling.add(self.feed, first, last)

    async def settle(self, *, rounds: int = 6) -> None:
        """Do all jobs, and let the clock run to those that wait, until nothing is left or it was tried often."""
        for _ in range(rounds):
            while self.filling.jobs.qsize():
                await self.one()
            if not self.waiting:
                return
            self.now_s += max(wait_s for wait_s, _ in self.waiting)
            for _, job in self.waiting:
                self.filling.jobs.put_nowait(job)
            self.waiting.clear()

    async def one(self) -> None:
        """Do the next job."""
        await self.filling._work(self.filling.jobs.get_nowait())

    def plan_later(self, job: Job, wait_s: float) -> None:
        self.filling._planned.append(job)
        self.waiting.append((wait_s, job))

    def stored(self) -> dict[int, str]:
        """Return the rows of all files by ID; none is there twice, and each file is what its name says."""
        found: dict[int, str] = {}
        for path in sorted(self.feed.segments.directory.glob("*.csv")):
            lines = path.read_text().splitlines(keepends=True)
            ids = [int(line.split(",")[3]) for line in lines]
            assert ids[0] == int(path.stem.rpartition("-")[2])
            assert ids == sorted(set(ids))
            if not self.feed.has_placeholders:
                assert ids == list(range(ids[0], ids[0] + len(ids))), path.name
            days = {datetime.fromtimestamp(int(line.split(",")[8]) / 1000, UTC).date().isoformat() for line in lines}
            assert days == {"-".join(path.stem.split("-")[2:5])}
            for id_, line in zip(ids, lines, strict=True):
                assert id_ not in found, f"ID {id_} is there twice"
                found[id_] = line
        return found

    def spans(self, event: str) -> list[tuple[int, int]]:
        return [(facts["first_id"], facts["last_id"]) for kind, facts in self.told if kind == event]


@asynccontextmanager
async def scene(root: Path, market_name: str = "binance", *, write_not_trades: bool = False) -> AsyncIterator[Scene]:
    market = MARKETS[market_name]
    path = FeedPath(market_name, "trade", "BTCUSDT")
    kind = market.message_types["trade"]
    numbering = Numbering.RISING if market_name != "binance" else Numbering.BY_ONE
    pool = OpenFiles(50)

    def files(_: Feed | None = None) -> Segments:
        return Disk(root, path, rotate_size=10**9, pool=pool, numbering=numbering)

    Disk.full_at, Disk.sync_fails = None, False
    feed = Feed(path, kind, RowCheck("trade", "BTCUSDT"), gaps.Sequence(), files(), write_not_trades=write_not_trades)
    exchange, disk = Exchange(), ThreadPoolExecutor(1)
    told: list[tuple[str, dict[str, Any]]] = []
    quarantined: list[str] = []

    def tell(event: str, subject: str, /, **facts: object) -> None:
        assert subject == feed.name
        told.append((event, facts))

    writer = Writer(
        Inbox(1000),
        {},
        disk,
        tell,
        lambda _, payload, __: quarantined.append(payload.decode()),
        lambda *_: None,
        lambda: None,
    )
    history = history_of(cast("Rest", exchange), market, "trade", "BTCUSDT", api_key="k")

    async def no_pause(_: float) -> None:
        return

    history = replace(history, source=replace(history.source, limit=LIMIT), sleep=no_pause)
    found = Scene(root, feed, exchange, None, writer, told, quarantined)  # type: ignore[arg-type]  # set below
    found.filling = Backfill(
        lambda _: history, files, writer.checked, disk, tell, lambda *_: None, writer.set_aside, lambda: found.now_s
    )
    setattr(found.filling, "_plan_later", found.plan_later)  # noqa: B010 - a method cannot be assigned with its type
    try:
        yield found
    finally:
        disk.shutdown()
        feed.segments.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def publish(found: Scene, *ids: int) -> None:
    for id_ in ids:
        found.exchange.published[id_] = MIDNIGHT_MS + id_


@pytest.mark.parametrize("market", MARKETS_TESTED)
def test_a_gap_is_filled_and_told_of_exactly(tmp_path: Path, market: str) -> None:
    """All rows of a gap of several pages get a file of their own, and `filled` names them once they are there."""

    async def test() -> None:
        async with scene(tmp_path, market) as found:
            publish(found, *range(100, 140))
            found.write_live(98, 99)
            found.write_live(140, 141)
            found.gap(100, 139)
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 142))
            assert found.stored()[120] == row(120, MIDNIGHT_MS + 120)
            assert found.spans("filled") == [(100, 139)]
            assert found.feed.open.spans == []
            assert (found.feed.filled, found.feed.rows) == (40, 40)

    run(test)


@pytest.mark.parametrize("market", MARKETS_TESTED)
def test_absence_needs_two_answers_far_apart(tmp_path: Path, market: str) -> None:
    """What one answer passes over stays missing; a second one, two minutes later, settles it, and it is on record."""

    async def test() -> None:
        async with scene(tmp_path, market) as found:
            publish(found, 100, 101, 104)
            found.write_live(98, 99)
            found.write_live(105, 106)
            found.gap(100, 104)
            await found.one()
            assert found.spans("absence_seen") == [(102, 103)]
            assert (found.spans("absent"), found.feed.absent) == ([], 0)
            assert found.feed.open.holds(102)
            assert (100 in found.stored()) == (market == "binance")
            await found.settle()
            assert found.spans("absent") == [(102, 103)]
            begun = {int(path.stem.rpartition("-")[2]) for path in found.feed.segments.directory.glob("*.csv")}
            assert begun == ({98, 100, 104, 105} if market == "binance" else {98, 100, 105})
            assert sorted(found.stored()) == [98, 99, 100, 101, 104, 105, 106]
            assert (found.feed.open.spans, found.feed.absent) == ([], 2)

    run(test)


@pytest.mark.parametrize("market", MARKETS_TESTED)
def test_one_answer_without_real_rows_takes_nothing_away(tmp_path: Path, market: str) -> None:
    """A replica that lacks some rows, once: they are fetched by the next answer."""

    async def test() -> None:
        async with scene(tmp_path, market) as found:
            publish(found, *range(100, 105))
            found.exchange.lies = [lambda first: found.exchange.rows(first, without=[101, 102])]
            found.write_live(98, 99)
            found.write_live(105, 106)
            found.gap(100, 104)
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 107))
            assert found.spans("absent") == []
            filled = {id_ for first, last in found.spans("filled") for id_ in range(first, last + 1)}
            assert filled == set(range(100, 105))

    run(test)


@pytest.mark.parametrize("market", MARKETS_TESTED)
@pytest.mark.parametrize("source", ["history", "live"])
def test_what_was_called_absent_is_opened_again(tmp_path: Path, market: str, source: str) -> None:
    """A row that comes although its ID was proved absent, live or from history, reaches a file of its own."""

    async def test() -> None:
        async with scene(tmp_path, market) as found:
            publish(found, 100, 101, 104)
            found.write_live(98, 99)
            found.write_live(105, 106)
            found.gap(100, 104)
            await found.settle()
            assert found.feed.absent == 2
            publish(found, 102)
            if source == "live":
                line = live(102, MIDNIGHT_MS + 102)
                found.filling.add_late(found.feed, LateRows([102], [MIDNIGHT_MS + 102], [line], frozenset()))
            else:
                found.feed.unconfirmed.add(102, 103)
                found.filling.add(found.feed, 102, 103)
            await found.settle()
            assert found.spans("reopened") == [(102, 102)]
            assert sorted(found.stored()) == [98, 99, 100, 101, 102, 104, 105, 106]
            assert (102, 102) in found.spans("filled")
            assert (found.feed.absent, found.feed.open.spans) == (1, [])
            assert found.spans("absence_confirmed") == ([] if source == "live" else [(103, 103)])

    run(test)


def test_a_late_row_of_a_lost_id_is_written(tmp_path: Path) -> None:
    """What history could not give, or was not asked for, may still come live: then it is lost no more."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            found.write_live(98, 99)
            found.write_live(101, 102)
            found.feed.given_up.add(100, 100)
            found.feed.lost = 1
            line = live(100, MIDNIGHT_MS + 100)
            found.filling.add_late(found.feed, LateRows([100], [MIDNIGHT_MS + 100], [line], frozenset()))
            await found.settle()
            assert sorted(found.stored()) == [98, 99, 100, 101, 102]
            assert (found.feed.lost, found.spans("reopened")) == (0, [(100, 100)])

    run(test)


def test_late_rows_that_follow_each_other_are_opened_again_together(tmp_path: Path) -> None:
    """One entry and one file: whoever is killed before `filled` is told finds the entry's IDs in the file's name."""

    async def test() -> None:
        async with scene(tmp_path, "binance-futures") as found:
            found.write_live(98, 99)
            found.write_live(103, 104)
            found.feed.called_absent.add(100, 102)
            lines = [live(id_, MIDNIGHT_MS + id_) for id_ in (100, 101, 102)]
            times = [MIDNIGHT_MS + id_ for id_ in (100, 101, 102)]
            found.filling.add_late(found.feed, LateRows([100, 101, 102], times, lines, frozenset()))
            await found.settle()
            assert found.spans("reopened") == found.spans("filled") == [(100, 102)]
            assert sorted(found.stored()) == list(range(98, 105))

    run(test)


def test_late_placeholders_are_settled_without_history(tmp_path: Path) -> None:
    """A placeholder that comes late shows that its ID has no trade; a trade beside it is written."""

    async def test() -> None:
        async with scene(tmp_path, "binance-futures") as found:
            found.write_live(98, 99)
            found.write_live(103, 104)
            found.feed.open.add(100, 102)
            lines = [live(id_, MIDNIGHT_MS + id_) for id_ in (100, 101, 102)]
            times = [MIDNIGHT_MS + id_ for id_ in (100, 101, 102)]
            found.filling.add_late(found.feed, LateRows([100, 101, 102], times, lines, frozenset({101})))
            await found.settle()
            assert sorted(found.stored()) == [98, 99, 100, 102, 103, 104]
            assert found.spans("absent") == [(101, 101)]
            assert found.feed.open.spans == []
            assert found.exchange.asked == []

    run(test)


def test_rows_are_not_written_twice_if_they_come_late_and_from_history(tmp_path: Path) -> None:
    """A gap whose rows come live while it waits for history is filled once."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, *range(100, 105))
            found.write_live(98, 99)
            found.write_live(105, 106)
            found.gap(100, 104)
            lines = [live(id_, MIDNIGHT_MS + id_) for id_ in (101, 102)]
            for _ in range(2):
                late = LateRows([101, 102], [MIDNIGHT_MS + 101, MIDNIGHT_MS + 102], lines, frozenset())
                found.filling.add_late(found.feed, late)
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 107))

    run(test)


def test_too_many_late_rows_go_to_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late rows that wait are bounded; those beyond are kept in quarantine and had from history."""
    monkeypatch.setattr(backfill, "LATE_ROWS", 1)

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, 100, 101)
            found.write_live(98, 99)
            found.write_live(102, 103)
            found.gap(100, 101)
            for id_ in (100, 101):
                line = live(id_, MIDNIGHT_MS + id_)
                found.filling.add_late(found.feed, LateRows([id_], [MIDNIGHT_MS + id_], [line], frozenset()))
            assert found.quarantined == [live(101, MIDNIGHT_MS + 101)]
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 104))

    run(test)


def test_an_impossible_time_given_twice_ends_on_record(tmp_path: Path) -> None:
    """A row whose time cannot be right does not make a file of another day, and its ID is not asked for for ever."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, *range(100, 105))
            found.exchange.published[102] = MIDNIGHT_MS * 2
            found.write_live(98, 99)
            found.write_live(105, 106)
            found.gap(100, 104)
            await found.settle()
            assert sorted(found.stored()) == [98, 99, 100, 101, 103, 104, 105, 106]
            assert found.spans("lost") == [(102, 102)]
            assert found.quarantined == [row(102, MIDNIGHT_MS * 2)]
            assert found.filling._planned == []

    run(test)


@pytest.mark.parametrize("market", MARKETS_TESTED)
def test_a_file_that_is_deleted_while_it_grows(tmp_path: Path, market: str) -> None:
    """Its rows are missing again, are fetched again in the same run, and were not told of as filled meanwhile."""

    async def test() -> None:
        async with scene(tmp_path, market) as found:
            publish(found, *range(100, 140))
            found.write_live(98, 99)
            found.write_live(140, 141)
            found.gap(100, 139)

            async def delete() -> None:
                path = next(iter(found.feed.segments.directory.glob("*-100.csv")), None)
                if path is not None and len(found.exchange.asked) == 3:
                    path.unlink()

            found.exchange.before = delete
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 142))
            ((first, last),) = found.spans("file_lost")
            assert first == 100
            lost_at = [kind for kind, _ in found.told].index("file_lost")
            assert "filled" not in [kind for kind, _ in found.told[:lost_at]]
            filled = [id_ for low, high in found.spans("filled") for id_ in range(low, high + 1)]
            assert sorted(filled) == list(range(100, 140))
            assert last < 139

    run(test)


def test_a_disk_that_is_full_at_midnight(tmp_path: Path) -> None:
    """If the next day's file cannot be made, the first day's rows of that page are not written a second time."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            for id_ in range(100, 120):
                found.exchange.published[id_] = MIDNIGHT_MS + (id_ - 106) * 1000
            found.write_live(98, 99, at_ms=MIDNIGHT_MS - 60_000)
            found.write_live(120, 121, at_ms=MIDNIGHT_MS + 60_000)
            Disk.full_at = 106
            found.gap(100, 119)
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 122))
            assert len(found.spans("fill_waits")) == 1

    run(test)


def test_rows_that_cannot_be_made_safe_are_fetched_again(tmp_path: Path) -> None:
    """A failed sync of a file that history filled takes back what was not safe, before it is told of as filled."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, *range(100, 105))
            found.write_live(98, 99)
            found.write_live(105, 106)
            found.feed.segments.end()
            Disk.sync_fails = True
            found.gap(100, 104)
            await found.settle()
            assert found.spans("sync_failed") == [(100, 104)]
            assert found.spans("filled") == [(100, 104)]
            found.feed.segments.directory.joinpath("BTCUSDT-trade-2026-07-14-100.csv").stat()

    run(test)


def test_rows_of_history_that_no_row_may_hold(tmp_path: Path) -> None:
    """A page with text that would make two rows of one is refused whole, and asked for again."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, *range(100, 105))
            found.write_live(98, 99)
            found.write_live(105, 106)
            evil = found.exchange.rows(99)
            evil[2]["price"] = "1_0"  # a number for Python's Decimal, and not one for the exchange
            found.exchange.lies = [lambda _: evil]
            found.gap(100, 104)
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 107))
            (waits,) = [facts for kind, facts in found.told if kind == "fill_waits"]
            assert "no row may hold" in waits["detail"]
            assert len(found.quarantined) == 1

    run(test)


def test_a_segment_ends_at_an_absent_id(tmp_path: Path) -> None:
    """Where each ID has a row, the names of the files must show an absent one between them."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, 100, 101, 104)
            found.write_live(98, 99)
            found.write_live(105, 106)
            evil = found.exchange.rows(99)
            evil[1]["price"] = "1_0"
            found.exchange.lies = [lambda _: evil]
            found.gap(100, 104)
            found.filling._planned[0].pause_s = ABSENCE_AGAIN_S
            await found.settle()
            assert sorted(found.stored()) == [98, 99, 100, 101, 104, 105, 106]
            assert found.spans("absent") == [(102, 103)]
            assert len(found.spans("fill_waits")) == 1

    run(test)


def test_pauses_grow_and_the_exchange_may_ask_for_more(tmp_path: Path) -> None:
    """Each refusal doubles the pause, up to its limit; a Retry-After that is longer is waited for."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, 100)
            found.write_live(98, 99)
            found.write_live(101, 102)
            refusals = [BannedError("x") for _ in range(7)] + [BannedError("x", retry_after_s=4000.0)]
            found.exchange.lies = [lambda _, error=error: error for error in refusals]  # type: ignore[misc]  # each its own
            found.gap(100, 100)
            await found.settle(rounds=12)
            waits = [facts["again_in_s"] for kind, facts in found.told if kind == "fill_waits"]
            assert waits == [15.0, 30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 4000.0]
            assert sorted(found.stored()) == [98, 99, 100, 101, 102]

    run(test)


def test_a_numbering_that_begins_anew_while_history_is_asked(tmp_path: Path) -> None:
    """Rows of the old numbering that arrive after the restart are not written among those of the new one."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, *range(100, 105))
            found.write_live(98, 99)
            found.write_live(105, 106)

            async def restart() -> None:
                found.writer._lose_open(found.feed, "renumbered")

            found.exchange.before = restart
            found.gap(100, 104)
            await found.settle()
            assert sorted(found.stored()) == [98, 99, 105, 106]
            assert found.spans("lost") == [(100, 104)]
            assert found.spans("filled") == []

    run(test)


def test_near_gaps_are_asked_for_together(tmp_path: Path) -> None:
    """Several small gaps that lie in one answer cost one request."""

    async def test() -> None:
        async with scene(tmp_path) as found:
            publish(found, 100, 102)
            found.write_live(98, 99)
            found.write_live(101)
            found.write_live(103, 104)
            found.gap(100, 100)
            found.gap(102, 102)
            await found.settle()
            assert sorted(found.stored()) == list(range(98, 105))
            assert len(found.exchange.asked) == 1

    run(test)


# --- Any history -----------------------------------------------------------------------------------------------------

LIES: dict[str, Callable[[Exchange, int], object]] = {
    "another market": lambda exchange, first: exchange.rows(first, price="9"),
    "nothing": lambda _, __: [],
    "no JSON": lambda _, __: b"{",
    "IDs too late": lambda exchange, first: exchange.rows(first + 3),
    "ended early": lambda exchange, first: exchange.rows(first)[:2],
    "unordered": lambda exchange, first: exchange.rows(first)[::-1],
    "doubled": lambda exchange, first: [row for row in exchange.rows(first) for _ in range(2)],
    "a day off": lambda exchange, first: exchange.rows(first, time=MIDNIGHT_MS + 2 * 86_400_000),
    "refused": lambda _, __: BannedError("x"),
    "without some": lambda exchange, first: exchange.rows(first, without=[101, 105, 111]),
}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    market=st.sampled_from(MARKETS_TESTED),
    lies=st.lists(st.sampled_from([*LIES, ""]), max_size=12),
    left_out=st.sets(st.integers(100, 115), max_size=4),
)
def test_a_history_that_lies_never_takes_a_row_away(
    tmp_path_factory: pytest.TempPathFactory, market: str, lies: list[str], left_out: set[int]
) -> None:
    """Whatever is answered, real IDs end in one file, and none is called absent but by two answers far apart."""

    async def test() -> None:
        async with scene(tmp_path_factory.mktemp("lies"), market) as found:
            real = set(range(100, 116)) - left_out
            publish(found, *real)
            found.write_live(98, 99)
            found.write_live(116, 117)
            # the same lie may not be told when it is asked for again
            told = [name for place, name in enumerate(lies) if name != "without some" or name not in lies[:place]]
            found.exchange.lies = [
                (lambda first, name=name: LIES[name](found.exchange, first) if name else found.exchange.rows(first))  # type: ignore[misc]  # each its own
                for name in told
            ]
            found.gap(100, 115)
            for _ in range(30):
                await found.settle(rounds=1)
                absent = {id_ for first, last in found.spans("absent") for id_ in range(first, last + 1)}
                assert absent <= left_out
                filled = {id_ for first, last in found.spans("filled") for id_ in range(first, last + 1)}
                assert filled <= set(found.stored())
                if not found.filling._planned:
                    break
            assert set(found.stored()) == real | {98, 99, 116, 117}
            assert absent == left_out

    run(test)


# --- What the journal says at a start --------------------------------------------------------------------------------


def entries(*lines: tuple[str, int, int]) -> list[Entry]:
    at = datetime(2026, 7, 14, tzinfo=UTC)
    return [Entry(at, event, {"subject": "f", "first_id": first, "last_id": last}) for event, first, last in lines]


@pytest.mark.parametrize(
    ("lines", "is_open"),
    [
        ([("gap", 10, 20), ("filled", 10, 20)], []),
        ([("gap", 10, 20), ("filled", 10, 12), ("absent", 15, 20)], [(13, 14)]),
        ([("gap", 10, 20), ("lost", 10, 20)], []),
        ([("gap", 10, 20), ("absence_seen", 10, 20)], [(10, 20)]),
        ([("gap", 10, 20), ("absent", 10, 20), ("reopened", 12, 13)], [(12, 13)]),
        ([("gap", 10, 20), ("absent", 10, 20), ("reopened", 12, 13), ("filled", 12, 13)], []),
        ([("sealed", 10, 20), ("damaged", 10, 20)], [(10, 20)]),
        ([("gap", 10, 20), ("numbering_restarted", 1, 30)], []),
    ],
)
def test_what_the_journal_leaves_open(lines: list[tuple[str, int, int]], is_open: list[tuple[int, int]]) -> None:
    """Each entry opens, settles, or says only that something was seen."""
    assert accounts(entries(*lines)).get("f", Account()).open.spans == is_open


def test_what_is_to_be_confirmed() -> None:
    """Absent IDs are asked for once more by a later start, but not those that were confirmed or opened again."""
    lines = [("absent", 10, 20), ("absence_confirmed", 10, 12), ("reopened", 15, 15)]
    account = accounts(entries(*lines))["f"]
    assert account.absent.spans == [(10, 14), (16, 20)]
    assert account.unconfirmed.spans == [(13, 14), (16, 20)]
    assert account.reopened.spans == [(15, 15)]


def test_a_deleted_file_of_another_numbering_settles_nothing() -> None:
    """IDs of a file that the uploader deleted are of the numbering before, perhaps."""
    account = accounts(entries(("numbering_restarted", 1, 30), ("gap", 10, 20), ("deleted", 10, 20)))["f"]
    assert account.open.spans == [(10, 20)]


def test_a_file_closes_what_it_begins_or_ends_with() -> None:
    """A file of a feed whose files pass over IDs closes a gap that it was written for, not one inside it."""
    missing = gaps.Ranges([(10, 20)])
    assert closed_by([(10, 15)], missing).spans == [(10, 15)]
    assert closed_by([(16, 20)], missing).spans == [(16, 20)]
    assert closed_by([(12, 14)], missing).spans == [(12, 14)]
    assert closed_by([(5, 25)], missing).spans == []
