"""From the queue to real files: every row ends in a file, in quarantine or in a count, in order."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tickcollect import gaps
from tickcollect import writer as writer_module
from tickcollect.events import Message, RowCheck, day_of
from tickcollect.exchanges.binance import MARKETS, ControlError, Decoder, Link, Refused, UnknownEvent
from tickcollect.feed import (
    Batch,
    Connected,
    Disconnected,
    Inbox,
    Item,
    LinkState,
    Odd,
    Renewed,
    Renewing,
    SubscriptionRefused,
)
from tickcollect.segments import DiskFullError, FeedPath, Numbering, OpenFiles, Segment, Segments
from tickcollect.writer import Feed, LateRows, Piece, Writer

DAY = 20_648  # 2026-07-14
DAY_MS = 86_400_000
NOON_MS = DAY * DAY_MS + DAY_MS // 2


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    """Let everything go on until a condition holds; the test's own time is the limit."""
    while not condition():  # noqa: ASYNC110 - what is waited for is state of the code under test, which has no event
        await asyncio.sleep(0.002)


def trade(id_: int, *, at_ms: int = NOON_MS, symbol: str = "BTCUSDT", **more: Any) -> dict[str, Any]:
    """Return the fields of a trade as the exchange sends them."""
    fields = {"e": "trade", "E": at_ms + 1, "s": symbol, "t": id_, "p": "64120.01000000", "q": "0.00150000"}
    return fields | {"T": at_ms, "m": True, "M": True} | more


def aggregate(id_: int, *, at_ms: int = NOON_MS, symbol: str = "BTCUSDT") -> dict[str, Any]:
    fields = {"e": "aggTrade", "E": at_ms + 1, "s": symbol, "a": id_, "p": "1.5", "q": "2", "f": id_ * 2}
    return fields | {"l": id_ * 2 + 1, "T": at_ms, "m": False, "M": True}


def line(fields: dict[str, Any]) -> str:
    """Return the documented row of a message, written here by hand from its fields."""
    maker = "True" if fields["m"] else "False"
    if fields["e"] == "trade":
        return f"trade,{fields['E']},{fields['s']},{fields['t']},{fields['p']},{fields['q']},,,{fields['T']},{maker}\n"
    return (
        f"aggTrade,{fields['E']},{fields['s']},{fields['a']},{fields['p']},{fields['q']},{fields['f']},{fields['l']},"
        f"{fields['T']},{maker}\n"
    )


class FullDisk(Segments):
    """The files of a feed on a disk that is full for as long as the test says."""

    full = False
    refused = 0

    def append(self, lines: bytes, ids: Sequence[int], day: int) -> list[Segment]:
        """Append, or fail as a full disk does: nothing is changed."""
        if self.full:
            self.refused += 1
            raise DiskFullError("append to", self.directory, OSError(errno.ENOSPC, "full"))
        return super().append(lines, ids, day)


@dataclass
class Desk:
    """A writer with real files, a link with feeds, and a record of all it says."""

    root: Path
    writer: Writer
    inbox: Inbox
    link: LinkState
    decoder: Decoder
    feeds: dict[str, Feed] = field(default_factory=dict)
    told: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    """Payload and reason."""
    ended: list[Path] = field(default_factory=list)

    def put(self, *messages: dict[str, Any], connection: int = 1, received_ns: int = 7) -> None:
        """Let one read with these messages arrive."""
        payloads = [json.dumps({"stream": "x", "data": fields}, ensure_ascii=False).encode() for fields in messages]
        self.inbox.put(Batch(self.link, connection, received_ns, payloads, self._decode))

    def _decode(self, payloads: Sequence[bytes]) -> list[Message]:
        decoded = [self.decoder.message(payload) for payload in payloads]
        assert all(isinstance(message, Message) for message in decoded), decoded
        return [message for message in decoded if isinstance(message, Message)]

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Let the writer run until the block ends, then let it finish."""
        task = asyncio.create_task(self.writer.run())
        try:
            yield
            self.writer.stop()
            await task
            await self.writer.finish(asyncio.get_running_loop().time())
        finally:
            task.cancel()

    async def settled(self) -> None:
        """Wait until all that was put in has been dealt with."""
        await until(lambda: self.inbox.waiting == 0)

    def events(self, *names: str) -> list[dict[str, object]]:
        return [facts for event, _, facts in self.told if event in names]

    def files(self, feed: str = "binance/trade/BTCUSDT") -> dict[str, str]:
        """Return the content of each file of a feed by the part of its name that says day and first ID."""
        folder = self.root / feed
        _, stream, symbol = feed.split("/")
        found = sorted(folder.glob("*.csv"), key=lambda path: int(path.stem.rpartition("-")[2]))
        return {path.stem.removeprefix(f"{symbol}-{stream}-"): path.read_text("utf-8") for path in found}


@asynccontextmanager
async def desk(
    root: Path,
    *names: str,
    patience_s: float = 0.0,
    limit: int = 50_000,
    rotate_size: int = 10**9,
    extra: tuple[str, ...] = (),
    write_not_trades: bool = False,
) -> AsyncIterator[Desk]:
    """Set up feeds (`exchange/stream/symbol`) of one exchange and their writer."""
    names = names or ("binance/trade/BTCUSDT",)
    market = MARKETS[names[0].split("/")[0]]
    decoder = Decoder(market, extra)
    link = LinkState(market.name, Link("ws://127.0.0.1:9/stream", ()))
    pool = OpenFiles(100)
    feeds = {}
    routes: dict[str, dict[str, Feed]] = {stream: {} for stream in decoder.kinds}
    for name in names:
        path = FeedPath(*name.split("/"))
        kind = decoder.kinds[path.stream]
        by_one = market.name == "binance" or path.stream == "aggTrade"
        files = FullDisk(
            root, path, rotate_size=rotate_size, pool=pool, extra_columns=extra,
            numbering=Numbering.BY_ONE if by_one else Numbering.RISING,
        )  # fmt: skip
        feeds[name] = Feed(
            path, kind, RowCheck(path.stream, path.symbol, len(extra)), gaps.Sequence(patience_s), files, extra,
            write_not_trades=write_not_trades,
        )  # fmt: skip
        routes[path.stream][path.symbol] = feeds[name]
    inbox = Inbox(limit)
    disk = ThreadPoolExecutor(1)
    found = Desk(root, None, inbox, link, decoder, feeds)  # type: ignore[arg-type]  # the writer tells the desk: next line
    found.writer = Writer(
        inbox,
        {link: routes},
        disk,
        tell=lambda event, subject, /, **facts: found.told.append((event, subject, facts)),
        quarantine=lambda _, payload, reason: found.quarantined.append((payload.decode(), reason)),
        ended=lambda segments, _: found.ended.extend(segment.path for segment in segments),
        write_journal=lambda: None,
    )
    try:
        yield found
    finally:
        disk.shutdown()
        for feed in feeds.values():
            feed.segments.close()


def only(found: Desk) -> Feed:
    (feed,) = found.feeds.values()
    return feed


# --- Rows into files -----------------------------------------------------------------------------------------------


def test_rows_of_many_reads_stand_in_order(tmp_path: Path) -> None:
    """Every row of every read is in the file once, as documented, in order."""
    sent = [trade(id_, at_ms=NOON_MS + id_, m=bool(id_ % 2)) for id_ in range(1, 501)]

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                for start in range(0, 500, 37):
                    found.put(*sent[start : start + 37])
                    await asyncio.sleep(0)
            assert found.files() == {"2026-07-14-1": "".join(map(line, sent))}
            assert found.writer.rows_written == only(found).rows == 500
            assert not found.quarantined
            assert not found.events("gap")

    run(test)


def test_feeds_of_one_read_are_kept_apart(tmp_path: Path) -> None:
    """A read that mixes symbols and streams fills each feed's own file, each in its own order."""
    names = ["binance/trade/BTCUSDT", "binance/trade/ETHUSDT", "binance/aggTrade/BTCUSDT", "binance/trade/币安USDT"]
    mixed = []
    for id_ in range(1, 31):
        mixed += [trade(id_), aggregate(100 + id_), trade(50 + id_, symbol="ETHUSDT"), trade(id_, symbol="币安USDT")]

    async def test() -> None:
        async with desk(tmp_path, *names) as found:
            async with found.writing():
                found.put(*mixed[:7])
                found.put(*mixed[7:])
            for name in names:
                _, stream, symbol = name.split("/")
                rows = [line(fields) for fields in mixed if (fields["e"], fields["s"]) == (stream, symbol)]
                assert list(found.files(name).values()) == ["".join(rows)]

    run(test)


def test_extra_columns(tmp_path: Path) -> None:
    """Extra columns follow the row's own: arrival, and fields as sent."""

    async def test() -> None:
        async with desk(tmp_path, extra=("received_ns", "M", "nq")) as found:
            async with found.writing():
                found.put(trade(1), trade(2, nq="1.20"), received_ns=1784000000200000001)
            one, two = line(trade(1))[:-1], line(trade(2))[:-1]
            text = f"{one},1784000000200000001,True,\n{two},1784000000200000001,True,1.20\n"
            assert found.files() == {"2026-07-14-1": text}

    run(test)


def test_microseconds(tmp_path: Path) -> None:
    """Times in microseconds are written as sent and their day is the same day."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            sent = [trade(1, at_ms=(DAY + 1) * DAY_MS * 1000 - 1), trade(2, at_ms=(DAY + 1) * DAY_MS * 1000)]
            async with found.writing():
                found.put(*sent)
            assert found.files() == {"2026-07-14-1": line(sent[0]), "2026-07-15-2": line(sent[1])}

    run(test)


def test_day_changes_inside_a_read(tmp_path: Path) -> None:
    """Rows go by their trade time into the day's file, also where the times cross midnight twice."""
    midnight = (DAY + 1) * DAY_MS
    times = [midnight - 2, midnight - 1, midnight, midnight - 1, midnight, midnight + DAY_MS]
    sent = [trade(id_, at_ms=at_ms) for id_, at_ms in enumerate(times, start=1)]

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(*sent)
            rows = [line(fields) for fields in sent]
            assert found.files() == {
                "2026-07-14-1": rows[0] + rows[1],
                "2026-07-15-3": rows[2],
                "2026-07-14-4": rows[3],
                "2026-07-15-5": rows[4],
                "2026-07-16-6": rows[5],
            }
            assert [path.stem[-1] for path in found.ended] == ["1", "3", "4", "5"]

    run(test)


def test_full_segments_are_passed_on(tmp_path: Path) -> None:
    """Segments that reach their size are handed to whoever seals them, in order."""
    sent = [trade(id_) for id_ in range(1, 101)]

    async def test() -> None:
        async with desk(tmp_path, rotate_size=2000) as found:
            async with found.writing():
                found.put(*sent)
            files = found.files()
            assert "".join(files.values()) == "".join(map(line, sent))
            assert all(len(text) <= 2000 for text in files.values())
            assert [path.stem.removeprefix("BTCUSDT-trade-") for path in found.ended] == list(files)[:-1]

    run(test)


# --- Rows that cannot be written -----------------------------------------------------------------------------------

SMUGGLED = "1.5,2.5,,,1784000000104,True\ntrade,1784000000105,BTCUSDT,3,1.0"


@pytest.mark.parametrize("price", ["1,5", "1.5\n", "", "-1", "NaN", '1"', SMUGGLED])
def test_a_row_with_evil_text(tmp_path: Path, price: str) -> None:
    """A row whose text cannot stand in its column goes to quarantine, its hole is a gap, and the others are written."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1), trade(2, p=price), trade(3), trade(4))
                await found.settled()
                await until(lambda: bool(found.events("gap")))
                found.put(trade(5))
            assert found.files() == {
                "2026-07-14-1": line(trade(1)),
                "2026-07-14-3": "".join(line(trade(id_)) for id_ in (3, 4, 5)),
            }
            assert [reason for _, reason in found.quarantined] == ["a field holds what cannot stand in its column"]
            assert found.events("gap") == [{"first_id": 2, "last_id": 2, "count": 1}]
            assert only(found).refused == 1

    run(test)


def test_a_read_of_evil_rows_only(tmp_path: Path) -> None:
    """A read without one good row does not stop the writer, neither at the beginning nor later."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1, p="x"))
                found.put(trade(2))
                found.put(trade(3, q="1\n2"), trade(4, p=SMUGGLED))
                found.put(trade(5), trade(6))
            assert found.files() == {
                "2026-07-14-2": line(trade(2)),
                "2026-07-14-5": line(trade(5)) + line(trade(6)),
            }
            assert len(found.quarantined) == 3
            assert found.events("gap") == [{"first_id": 3, "last_id": 4, "count": 2}]

    run(test)


def test_messages_for_nobody(tmp_path: Path) -> None:
    """A message for a symbol or stream that was not asked for is kept with its reason, and never becomes a path."""

    async def test() -> None:
        async with desk(tmp_path, extra=("M", "nq")) as found:
            async with found.writing():
                found.put(trade(1), trade(9, symbol="../../etc"), aggregate(3), trade(2), trade(8, symbol=""))
            assert list(found.files()) == ["2026-07-14-1"]
            assert sorted(path.name for path in tmp_path.iterdir()) == ["binance"]
            assert len(found.quarantined) == 3
            assert all("not asked for" in reason for _, reason in found.quarantined)

    run(test)


@pytest.mark.parametrize(
    ("notice", "reason"),
    [
        (Refused("not JSON: x"), "not JSON: x"),
        (UnknownEvent("24hrTicker"), "a kind of message that was not asked for: 24hrTicker"),
    ],
)
def test_odd_payloads(tmp_path: Path, notice: Any, reason: str) -> None:
    """What is no message is kept with its reason."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.inbox.put(Odd(found.link, 7, b"<payload>", notice))
            assert found.quarantined == [("<payload>", reason)]

    run(test)


def test_unknown_kinds_are_told_once_and_not_for_ever(tmp_path: Path) -> None:
    """Each unknown kind is told once; however many there are, only so many are remembered, and all are kept."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                for number in range(500):
                    for _ in range(2):
                        found.inbox.put(Odd(found.link, 7, b"x", UnknownEvent(f"kind {number}")))
            told = [facts["name"] for facts in found.events("unknown_message")]
            assert len(told) == len(set(told)) == writer_module.UNKNOWN_REMEMBERED
            assert len(found.quarantined) == 1000

    run(test)


# --- Sequence ------------------------------------------------------------------------------------------------------


def test_a_gap_ends_the_segment(tmp_path: Path) -> None:
    """Behind a hole a new segment begins, and the hole is told with its bounds."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1), trade(2))
                found.put(trade(10), trade(11))
                await until(lambda: bool(found.events("gap")))
                found.put(trade(12))
            assert found.files() == {
                "2026-07-14-1": line(trade(1)) + line(trade(2)),
                "2026-07-14-10": "".join(line(trade(id_)) for id_ in (10, 11, 12)),
            }
            assert found.events("gap") == [{"first_id": 3, "last_id": 9, "count": 7}]
            assert only(found).gaps == 1
            assert found.ended == [tmp_path / "binance/trade/BTCUSDT/BTCUSDT-trade-2026-07-14-1.csv"]

    run(test)


def test_swapped_rows_copies_and_late_rows(tmp_path: Path) -> None:
    """Rows that come in another order are sorted in, copies are counted, late ones are set aside and told."""

    async def test() -> None:
        async with desk(tmp_path, patience_s=0.05) as found:
            async with found.writing():
                found.put(trade(1), trade(3), trade(2), trade(2), trade(3))
                found.put(trade(6), trade(7))
                await until(lambda: bool(found.events("gap")))
                found.put(trade(4), trade(5), trade(8))
            assert found.files() == {
                "2026-07-14-1": "".join(line(trade(id_)) for id_ in (1, 2, 3)),
                "2026-07-14-6": "".join(line(trade(id_)) for id_ in (6, 7, 8)),
            }
            assert only(found).copies == 2
            assert only(found).late == 2
            assert found.events("late_rows") == [{"first_id": 4, "last_id": 5, "count": 2}]
            assert [payload for payload, _ in found.quarantined] == [line(trade(4)), line(trade(5))]

    run(test)


def test_numbering_that_begins_anew(tmp_path: Path) -> None:
    """A restart of the exchange's numbering ends the segment and is told."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1001), trade(1002))
                found.put(trade(1, at_ms=NOON_MS + 1), trade(2, at_ms=NOON_MS + 2))
            assert list(found.files()) == ["2026-07-14-1", "2026-07-14-1001"]
            assert found.events("numbering_restarted") == [{"last_id": 1002, "first_id": 1}]
            files = only(found).segments
            files.close()
            recovered = Segments(tmp_path, files.feed, rotate_size=10**9, pool=OpenFiles(9)).recover()
            assert recovered.last_id == 2, "a start goes on with the new numbering"
            assert recovered.restart is not None
            assert (recovered.restart.first_id, recovered.restart.time) == (1, NOON_MS + 1)

    run(test)


def test_finish_releases_what_is_held(tmp_path: Path) -> None:
    """At the end rows that wait for a hole are written behind a declared gap, though nobody confirmed them."""

    async def test() -> None:
        async with desk(tmp_path, patience_s=3600) as found:
            async with found.writing():
                found.put(trade(1), trade(5), trade(6))
                await found.settled()
                assert only(found).sequence.held == 2
            assert found.files() == {
                "2026-07-14-1": line(trade(1)),
                "2026-07-14-5": line(trade(5)) + line(trade(6)),
            }
            assert found.events("gap") == [{"first_id": 2, "last_id": 4, "count": 3}]

    run(test)


def test_idle_end(tmp_path: Path) -> None:
    """A feed whose day is over has its segment ended without another row."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1))
                await until(lambda: only(found).rows == 1)
                found.writer.end_idle(only(found))
                await until(lambda: bool(found.ended))
                found.put(trade(2))
            assert found.files() == {"2026-07-14-1": line(trade(1)), "2026-07-14-2": line(trade(2))}

    run(test)


# --- Placeholders of futures ---------------------------------------------------------------------------------------

FUTURES = "binance-futures/trade/BTCUSDT"


def market(id_: int) -> dict[str, Any]:
    return trade(id_, at_ms=NOON_MS + id_, X="MARKET", st=1)


def placeholder(id_: int, kind: str = "NA") -> dict[str, Any]:
    return trade(id_, at_ms=NOON_MS + id_, p="0", q="0", X=kind, st=1)


def test_placeholders_count_for_the_sequence_only(tmp_path: Path) -> None:
    """Placeholders and internal fills take their ID, are counted and are not written; no gap is seen."""

    async def test() -> None:
        async with desk(tmp_path, FUTURES) as found:
            async with found.writing():
                found.put(market(1), placeholder(2), market(3), placeholder(4, "ADL"), placeholder(5, "INSURANCE_FUND"))
                found.put(market(6))
            assert found.files(FUTURES) == {"2026-07-14-1": "".join(line(market(id_)) for id_ in (1, 3, 6))}
            assert only(found).not_trades == 3
            assert not found.events("gap")

    run(test)


def test_placeholders_written_if_asked_for(tmp_path: Path) -> None:
    """With `NOT_TRADES` set to write they are rows like any other."""

    async def test() -> None:
        async with desk(tmp_path, FUTURES, write_not_trades=True) as found:
            async with found.writing():
                found.put(market(1), placeholder(2), market(3))
            rows = line(market(1)) + line(placeholder(2)) + line(market(3))
            assert found.files(FUTURES) == {"2026-07-14-1": rows}
            assert only(found).not_trades == 1

    run(test)


def test_a_read_of_a_placeholder_between_others(tmp_path: Path) -> None:
    """A placeholder alone in its read leaves the reads before and behind it right, though all are written at once."""

    async def test() -> None:
        async with desk(tmp_path, FUTURES) as found:
            found.put(market(1), market(2))
            found.put(placeholder(3))
            found.put(market(4), market(5))
            async with found.writing():
                await found.settled()
            assert found.files(FUTURES) == {"2026-07-14-1": "".join(line(market(id_)) for id_ in (1, 2, 4, 5))}
            segment = only(found).segments.open_segment
            assert segment is not None
            assert (segment.rows, segment.last_id, only(found).rows) == (4, 5, 4)

    run(test)


def test_copies_of_placeholders_are_forgotten(tmp_path: Path) -> None:
    """Placeholders that come twice leave nothing behind, and a new numbering may give their ID to a trade."""

    async def test() -> None:
        async with desk(tmp_path, FUTURES) as found:
            async with found.writing():
                found.put(market(1), placeholder(2), market(3))
                for _ in range(50):
                    found.put(placeholder(2), market(3))
                await found.settled()
                assert not only(found).not_trade_ids
                anew = [trade(2, at_ms=NOON_MS + 10, X="MARKET"), trade(3, at_ms=NOON_MS + 11, X="MARKET")]
                found.put(*anew)
            assert only(found).copies == 100
            assert only(found).restarts == 1
            assert found.files(FUTURES) == {
                "2026-07-14-1": line(market(1)) + line(market(3)),
                "2026-07-14-2": "".join(map(line, anew)),
            }

    run(test)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.sampled_from(["MARKET", "MARKET", "NA", "ADL"]), min_size=1, max_size=40),
    data=st.data(),
)
def test_any_mixture_of_placeholders(tmp_path_factory: pytest.TempPathFactory, kinds: list[str], data: Any) -> None:
    """However trades and placeholders are mixed, doubled, swapped and cut into reads, the trades are written once."""
    sent = [market(id_) if kind == "MARKET" else placeholder(id_, kind) for id_, kind in enumerate(kinds, start=1)]
    expected = "".join(line(fields) for fields in sent if fields["X"] == "MARKET")
    arrivals = list(sent)
    for place in data.draw(st.lists(st.integers(1, 40), max_size=4)):
        if place + 1 < len(arrivals):
            arrivals[place], arrivals[place + 1] = arrivals[place + 1], arrivals[place]
    for place in data.draw(st.lists(st.integers(0, 39), max_size=4)):
        if place < len(arrivals):
            arrivals.insert(place + 1, arrivals[place])
    cuts = sorted(data.draw(st.sets(st.integers(1, 60), max_size=8)))
    together = data.draw(st.booleans())
    root = tmp_path_factory.mktemp("mixture")

    async def test() -> None:
        async with desk(root, FUTURES, patience_s=60) as found:
            async with found.writing():
                for start, stop in zip([0, *cuts], [*cuts, 100], strict=True):
                    if arrivals[start:stop]:
                        found.put(*arrivals[start:stop])
                        if not together:
                            await found.settled()
            assert "".join(found.files(FUTURES).values()) == expected
            assert not found.events("gap")
            assert not only(found).not_trade_ids
            assert only(found).not_trades == sum(kind != "MARKET" for kind in kinds)

    run(test)


# --- History -------------------------------------------------------------------------------------------------------


def history(found: Desk, fields: Iterable[dict[str, Any]]) -> list[Message]:
    """Return rows as history gives them: like messages, without an event time."""
    rows = []
    for each in fields:
        row = found.decoder.message(json.dumps({"stream": "x", "data": each}).encode())
        assert isinstance(row, Message)
        rows.append(msgspec.structs.replace(row, E=""))
    return rows


def without_event_time(fields: dict[str, Any]) -> str:
    return line(fields | {"E": ""})


def test_a_small_hole_is_filled_in_place(tmp_path: Path) -> None:
    """A hole is asked for before it is declared; what history gives stands in its place in the same segment."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            asked: list[tuple[int, int]] = []
            found.writer.fetch = lambda _, holes: asked.extend(holes)
            async with found.writing():
                found.put(trade(1))
                found.put(trade(4), trade(5))
                await until(lambda: bool(asked))
                assert asked == [(2, 3)]
                loop = asyncio.get_running_loop()
                found.writer.fill(only(found), history(found, [trade(2), trade(3)]), loop.time())
                found.writer.settle(only(found))
                found.put(trade(6))
            rows = [line(trade(1)), *(without_event_time(trade(id_)) for id_ in (2, 3))]
            rows += [line(trade(id_)) for id_ in (4, 5, 6)]
            assert found.files() == {"2026-07-14-1": "".join(rows)}
            assert not found.events("gap")
            assert only(found).filled == 2

    run(test)


def test_evil_rows_of_history(tmp_path: Path) -> None:
    """Rows of history pass the same check of their text as live ones."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            asked: list[tuple[int, int]] = []
            found.writer.fetch = lambda _, holes: asked.extend(holes)
            async with found.writing():
                found.put(trade(1))
                found.put(trade(4), trade(5))
                await until(lambda: bool(asked))
                rows = history(found, [trade(2, p=SMUGGLED), trade(3)])
                found.writer.fill(only(found), rows, asyncio.get_running_loop().time())
                found.writer.settle(only(found))
            assert found.files() == {
                "2026-07-14-1": line(trade(1)),
                "2026-07-14-3": without_event_time(trade(3)) + line(trade(4)) + line(trade(5)),
            }
            assert found.events("gap") == [{"first_id": 2, "last_id": 2, "count": 1}]
            assert len(found.quarantined) == 1

    run(test)


def test_a_large_hole_is_left_to_the_background(tmp_path: Path) -> None:
    """A hole too large to wait for is declared at once and handed on."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            later: list[tuple[int, int]] = []
            found.writer.fetch = lambda _, holes: pytest.fail(f"asked for {holes}")
            found.writer.fetch_later = lambda _, first, last: later.append((first, last))
            async with found.writing():
                found.put(trade(1))
                found.put(trade(100_001), trade(100_002))
                await until(lambda: bool(later))
            assert later == [(2, 100_000)]
            assert list(found.files()) == ["2026-07-14-1", "2026-07-14-100001"]

    run(test)


def test_ids_that_one_answer_passes_over_stay_missing(tmp_path: Path) -> None:
    """One answer that lacks IDs is no proof: they are a gap and left to the background, and the rest is written."""

    async def test() -> None:
        async with desk(tmp_path, FUTURES) as found:
            asked: list[tuple[int, int]] = []
            later: list[tuple[int, int]] = []
            found.writer.fetch = lambda _, holes: asked.extend(holes)
            found.writer.fetch_later = lambda _, first, last: later.append((first, last))
            async with found.writing():
                found.put(market(1))
                found.put(market(4), market(5))
                await until(lambda: bool(asked))
                now_s = asyncio.get_running_loop().time()
                found.writer.fill(only(found), history(found, [market(3)]), now_s)
                found.writer.note_lacking(only(found), 2, 2, now_s)
                found.writer.settle(only(found))
            rest = [without_event_time(market(3)), line(market(4)), line(market(5))]
            assert found.files(FUTURES) == {"2026-07-14-1": line(market(1)), "2026-07-14-3": "".join(rest)}
            assert later == [(2, 2)]
            (filled,) = found.events("filled")
            assert (filled["first_id"], filled["last_id"], filled["rows"]) == (3, 3, 1)
            assert [event for event, _, _ in found.told if event in ("gap", "absence_seen", "absent")] == [
                "absence_seen",
                "gap",
            ]

    run(test)


def test_a_late_answer_for_a_declared_hole_is_not_told_as_filled(tmp_path: Path) -> None:
    """Rows of history whose hole was declared meanwhile are in no file: they stay missing and are fetched again."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            asked: list[tuple[int, int]] = []
            later: list[tuple[int, int]] = []
            found.writer.fetch = lambda _, holes: asked.extend(holes)
            found.writer.fetch_later = lambda _, first, last: later.append((first, last))
            only(found).sequence.hold_limit = 3
            async with found.writing():
                found.put(trade(1))
                found.put(trade(4), trade(5))
                await until(lambda: bool(asked))
                found.put(trade(6))
                await until(lambda: bool(later))
                now_s = asyncio.get_running_loop().time()
                found.writer.fill(only(found), history(found, [trade(2), trade(3)]), now_s)
                found.writer.settle(only(found))
            assert not found.events("filled")
            assert only(found).open.spans == [(2, 3)]
            assert (only(found).copies, only(found).filled) == (0, 0)
            assert only(found).given.spans == []
            assert list(found.files()) == ["2026-07-14-1", "2026-07-14-4"]

    run(test)


def test_a_gap_is_in_the_journal_before_its_segment_ends(tmp_path: Path) -> None:
    """Whoever is killed when the next rows are in a file leaves a journal that knows of the gap before them."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            journaled: list[int] = []
            known_at_end: list[bool] = []
            found.writer.write_journal = lambda: journaled.append(len(found.events("gap")))
            found.writer.ended = lambda segments, _: known_at_end.append(bool(segments and journaled and journaled[-1]))
            async with found.writing():
                found.put(trade(1))
                await found.settled()
                found.put(trade(4), trade(5))
                await until(lambda: bool(found.events("gap")))
            assert known_at_end[0]

    run(test)


def test_history_is_not_asked_again_at_once(tmp_path: Path) -> None:
    """A hole that history could not fill a moment ago is declared; asking for it again would only hold rows longer."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            asked: list[tuple[int, int]] = []
            found.writer.fetch = lambda _, holes: asked.extend(holes)
            feed = only(found)
            feed.sequence.take([1], [NOON_MS], [line(trade(1))], 0.0)
            feed.sequence.take([4, 5], [NOON_MS] * 2, [line(trade(4)), line(trade(5))], 0.0)
            assert found.writer._asked_history(feed, 100.0)
            assert not found.writer._asked_history(feed, 129.0)
            assert found.writer._asked_history(feed, 131.0)
            assert asked == [(2, 3)] * 2

    run(test)


def test_all_feeds_together_hold_no_more_than_they_may(tmp_path: Path) -> None:
    """Beyond the limit of all feeds the one that holds most declares its hole; the other goes on waiting."""

    async def test() -> None:
        names = "binance/trade/BTCUSDT", "binance/trade/ETHUSDT"
        async with desk(tmp_path, *names) as found:
            asked: list[tuple[str, tuple[int, int]]] = []
            later: list[str] = []
            found.writer.fetch = lambda feed, holes: asked.extend((feed.name, hole) for hole in holes)
            found.writer.fetch_later = lambda feed, *_: later.append(feed.name)
            found.writer.held_limit = 10 * gaps.HELD_ROW_BYTES
            async with found.writing():
                found.put(trade(1), trade(1, symbol="ETHUSDT"))
                found.put(trade(3), trade(4), trade(3, symbol="ETHUSDT"), trade(4, symbol="ETHUSDT"))
                await until(lambda: len(asked) == 2)
                found.put(*[trade(id_) for id_ in range(5, 12)])
                await until(lambda: bool(later))
                assert later == ["binance/trade/BTCUSDT"]
                assert found.feeds["binance/trade/BTCUSDT"].sequence.held_bytes == 0
                assert found.feeds["binance/trade/ETHUSDT"].sequence.held == 2

    run(test)


def test_late_rows_of_an_open_gap_are_handed_on(tmp_path: Path) -> None:
    """A row of a declared gap is given to the background, which writes it; one that is there already is a copy."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            late: list[LateRows] = []
            found.writer.late = lambda _, rows: late.append(rows)
            async with found.writing():
                found.put(trade(1), trade(5), trade(6))
                await until(lambda: bool(found.events("gap")))
                only(found).open.remove(4, 4)
                found.put(trade(2), trade(3), trade(4), connection=2)
            assert [(rows.ids, rows.lines) for rows in late] == [([2, 3], [line(trade(2)), line(trade(3))])]
            assert found.events("late_rows") == [{"first_id": 2, "last_id": 3, "count": 2}]
            assert (only(found).late, only(found).copies) == (2, 1)
            assert not found.quarantined

    run(test)


# --- Times that cannot be right --------------------------------------------------------------------------------------

YEAR_5000_MS = 95_617_584_000_000


def received(at_ms: int) -> int:
    return at_ms * 1_000_000


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("odd_ms", [YEAR_5000_MS, NOON_MS + 2 * DAY_MS, 1_000_000_000_000])
def test_a_time_far_from_the_neighbours_and_the_clock(tmp_path: Path, odd_ms: int, together: bool) -> None:  # noqa: FBT001 - how it arrives
    """Such a row makes no file of that day; it is kept in quarantine, and its ID is a hole like any other."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                rows = [trade(1), trade(2, at_ms=odd_ms), trade(3), trade(4)]
                for some in [rows] if together else [[row] for row in rows]:
                    found.put(*some, received_ns=received(NOON_MS))
                    await found.settled()
            assert list(found.files()) == ["2026-07-14-1", "2026-07-14-3"]
            assert found.events("gap") == [{"first_id": 2, "last_id": 2, "count": 1}]
            ((payload, reason),) = found.quarantined
            assert payload == line(trade(2, at_ms=odd_ms))
            assert "more than a day" in reason
            assert only(found).refused == 1

    run(test)


def test_a_market_that_was_quiet_for_days(tmp_path: Path) -> None:
    """A trade days after the one before it is right if this machine's clock says so too."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1), received_ns=received(NOON_MS))
                found.put(trade(2, at_ms=NOON_MS + 9 * DAY_MS), received_ns=received(NOON_MS + 9 * DAY_MS))
            assert list(found.files()) == ["2026-07-14-1", "2026-07-23-2"]
            assert not found.quarantined

    run(test)


def test_a_wrong_clock_throws_no_good_rows_away(tmp_path: Path) -> None:
    """A machine in another year is no witness: of a jump in time one row is asked for again, and the rest is right."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1), trade(2), received_ns=received(0))
                later = [trade(id_, at_ms=NOON_MS + 9 * DAY_MS) for id_ in (3, 4, 5)]
                found.put(*later, received_ns=received(0))
            assert list(found.files()) == ["2026-07-14-1", "2026-07-23-4"]
            assert found.events("gap") == [{"first_id": 3, "last_id": 3, "count": 1}]

    run(test)


# --- What is no trade ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["MARKET", "RPI", "SOMETHING_NEW"])
def test_what_is_not_known_to_be_no_trade_is_written(tmp_path: Path, kind: str) -> None:
    """Trades of every kind are rows; one that nobody knows is told once."""

    async def test() -> None:
        async with desk(tmp_path, FUTURES) as found:
            async with found.writing():
                found.put(market(1), placeholder(2, kind), placeholder(3, kind), market(4))
            (text,) = found.files(FUTURES).values()
            assert [int(row.split(",")[3]) for row in text.splitlines()] == [1, 2, 3, 4]
            told = found.events("unknown_trade_kind")
            assert told == ([{"name": "SOMETHING_NEW", "id": 2}] if kind == "SOMETHING_NEW" else [])
            assert only(found).not_trades == 0

    run(test)


# --- The disk ------------------------------------------------------------------------------------------------------


def test_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full nothing is thrown away and nothing more is taken; and it is told once."""
    monkeypatch.setattr(writer_module, "RETRY_DISK_S", 0.01)

    async def test() -> None:
        async with desk(tmp_path, "binance/trade/BTCUSDT", "binance/trade/ETHUSDT", limit=10) as found:
            disks = [feed.segments for feed in found.feeds.values() if isinstance(feed.segments, FullDisk)]
            async with found.writing():
                disks[1].full = True
                found.put(trade(1), trade(1, symbol="ETHUSDT"))
                await until(lambda: disks[1].refused > 3)
                for id_ in range(2, 12):
                    found.put(trade(id_), trade(id_, symbol="ETHUSDT"))
                await until(lambda: disks[1].refused > 6)
                assert found.inbox.waiting >= 20, "what waits is still counted, so that the reading stops"
                assert found.writer.disk_trouble
                waiting, written = found.feeds["binance/trade/ETHUSDT"], found.feeds["binance/trade/BTCUSDT"]
                assert (waiting.written_id, waiting.newest_id) == (None, 1), "what waits is not called written"
                assert written.written_id == 1
                disks[1].full = False
                await found.settled()
                assert not found.writer.disk_trouble
                assert waiting.written_id == 11
            for symbol in ("BTCUSDT", "ETHUSDT"):
                rows = "".join(line(trade(id_, symbol=symbol)) for id_ in range(1, 12))
                assert found.files(f"binance/trade/{symbol}") == {"2026-07-14-1": rows}
            assert len(found.events("disk_trouble")) == 1
            assert len(found.events("disk_again")) == 1

    run(test)


def test_stop_while_the_disk_is_full(tmp_path: Path) -> None:
    """Stopping does not wait for a full disk; if there is space again at the end, the older rows still come first."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            disk = only(found).segments
            assert isinstance(disk, FullDisk)
            task = asyncio.create_task(found.writer.run())
            found.put(trade(1))
            await until(lambda: only(found).rows == 1)
            disk.full = True
            found.put(trade(2), trade(3))
            await until(lambda: disk.refused > 0)
            found.put(trade(4))
            found.writer.stop()
            with pytest.raises(DiskFullError):
                await task
            disk.full = False
            await found.writer.finish(asyncio.get_running_loop().time())
            assert found.files() == {"2026-07-14-1": "".join(line(trade(id_)) for id_ in (1, 2, 3, 4))}

    run(test)


def test_what_no_file_has_taken_is_known(tmp_path: Path) -> None:
    """After a stop that the disk refused, the rows that are in no file are named, those before them are not."""

    async def test() -> None:
        async with desk(tmp_path, "binance/trade/BTCUSDT", "binance/trade/ETHUSDT") as found:
            bitcoin, ether = found.feeds.values()
            task = asyncio.create_task(found.writer.run())
            found.put(trade(1), trade(7, symbol="ETHUSDT"))
            await until(lambda: bitcoin.rows == ether.rows == 1)
            assert found.writer.unwritten() == {}
            for feed in (bitcoin, ether):
                assert isinstance(feed.segments, FullDisk)
                feed.segments.full = True
            found.writer.stop()
            await task
            found.put(trade(2), trade(3), trade(8, symbol="ETHUSDT"))
            with pytest.raises(DiskFullError):
                await found.writer.finish(asyncio.get_running_loop().time())
            assert found.writer.unwritten() == {bitcoin: [2, 3], ether: [8]}
            assert bitcoin.rows == ether.rows == 1
            for feed in (bitcoin, ether):
                feed.segments.full = False  # type: ignore[attr-defined]  # its class is checked above

    run(test)


def test_the_last_read_before_a_stop_is_taken_whole(tmp_path: Path) -> None:
    """What is odd in it comes to light only while it is decoded, and still ends in quarantine and in the count."""

    async def test() -> None:
        async with desk(tmp_path) as found:

            def decode(payloads: Sequence[bytes]) -> list[Message]:
                if payloads[0] == b"odd":
                    found.inbox.put(Odd(found.link, 7, payloads[0], Refused("a price that is a number")))
                    return []
                return found._decode(payloads)

            found.inbox.put(Batch(found.link, 1, 7, [b"odd"], decode))
            found.put(trade(1))
            found.inbox.put(Batch(found.link, 1, 7, [b"odd"], decode))
            await found.writer.finish(asyncio.get_running_loop().time())
            assert found.quarantined == [("odd", "a price that is a number")] * 2
            assert found.files() == {"2026-07-14-1": line(trade(1))}
            assert found.inbox.waiting == found.inbox.waiting_bytes == 0

    run(test)


def test_what_arrives_while_the_last_rows_are_written_is_taken_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that is put into the queue before the end of the last write stays there untold."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            flush = found.writer.flush

            async def flush_and_receive() -> None:
                await flush()
                if not found.events("disconnected"):
                    found.put(trade(2))
                    found.inbox.put(Disconnected(found.link, "reset", "", 0.5, opened=True, urgent=False))

            monkeypatch.setattr(found.writer, "flush", flush_and_receive)
            found.put(trade(1))
            await found.writer.finish(asyncio.get_running_loop().time())
            assert found.files() == {"2026-07-14-1": line(trade(1)) + line(trade(2))}
            assert found.events("disconnected")

    run(test)


def test_cancelled_while_the_disk_is_full(tmp_path: Path) -> None:
    """A writer that is cancelled while it waits for the disk keeps what it had in hand for the end."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            disk = only(found).segments
            assert isinstance(disk, FullDisk)
            task = asyncio.create_task(found.writer.run())
            disk.full = True
            found.put(trade(1), trade(2))
            await until(lambda: disk.refused > 0)
            task.cancel()
            await asyncio.wait({task})
            disk.full = False
            found.put(trade(3))
            await found.writer.finish(asyncio.get_running_loop().time())
            assert found.files() == {"2026-07-14-1": "".join(line(trade(id_)) for id_ in (1, 2, 3))}

    run(test)


@pytest.mark.parametrize("harm", ["delete", "rename", "append"])
def test_file_taken_away(tmp_path: Path, harm: str) -> None:
    """A file that somebody deletes, moves or changes is told with its rows, and the next rows begin another."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1), trade(2))
                await until(lambda: only(found).rows == 2)
                (path,) = (tmp_path / "binance/trade/BTCUSDT").glob("*.csv")
                if harm == "delete":
                    path.unlink()
                elif harm == "rename":
                    path.rename(tmp_path / "elsewhere.csv")
                else:
                    path.write_bytes(path.read_bytes() + b"x\n")
                found.put(trade(3), trade(4))
                await until(lambda: only(found).rows == 4)
            assert found.files()["2026-07-14-3"] == line(trade(3)) + line(trade(4))
            (lost,) = found.events("file_lost")
            assert (lost["first_id"], lost["last_id"]) == (1, 2)

    run(test)


# --- The files of one feed ----------------------------------------------------------------------------------------

TWO = ("binance/trade/BTCUSDT", "binance/trade/ETHUSDT")
Harm = Callable[[Path], None]


def replaced_by_a_file(directory: Path) -> None:
    directory.rename(directory.with_name("away"))
    directory.touch()


def replaced_by_a_link_to_itself(directory: Path) -> None:
    directory.rename(directory.with_name("away"))
    directory.symlink_to(directory)


def test_rows_that_cannot_follow_each_other_stop_no_other_feed(tmp_path: Path) -> None:
    """Whatever brought them there, such rows go to quarantine, their IDs are missing, and all feeds go on."""

    async def test() -> None:
        async with desk(tmp_path, *TWO) as found:
            missed: list[tuple[int, int]] = []
            found.writer.miss = lambda _, first, last: missed.append((first, last))
            feed, other = found.feeds[TWO[0]], found.feeds[TWO[1]]
            async with found.writing():
                found.put(trade(1), trade(1, symbol="ETHUSDT"))
                await until(lambda: feed.rows == other.rows == 1)
                rows = [line(trade(id_)).encode() for id_ in (2, 4)]
                feed.pending.append(Piece(day_of(trade(2)["T"]), [2, 4], [b"".join(rows)]))
                found.writer._touched[feed] = None
                found.put(trade(2, symbol="ETHUSDT"))
                await until(lambda: other.rows == 2)
                feed.sequence.next_id = 5
                found.put(trade(5))
                await until(lambda: feed.rows == 2)
            assert [payload for payload, _ in found.quarantined] == [b"".join(rows).decode()]
            assert missed == [(2, 4)]
            assert [
                (event, facts["first_id"], facts["last_id"]) for event, _, facts in found.told if event == "gap"
            ] == [("gap", 2, 4)]
            assert found.files(TWO[0])["2026-07-14-5"] == line(trade(5))

    run(test)


@pytest.mark.parametrize("harm", [replaced_by_a_file, replaced_by_a_link_to_itself])
def test_one_feeds_directory_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm) -> None:
    """A feed whose directory cannot be used waits and is told once; the others go on; its rows come when it is back."""
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(writer_module, "LONGEST_PAUSE_S", 0.02)

    async def test() -> None:
        async with desk(tmp_path, *TWO) as found:
            missed: list[tuple[int, int]] = []
            found.writer.miss = lambda _, first, last: missed.append((first, last))
            directory = tmp_path / TWO[0]
            other = found.feeds[TWO[1]]
            async with found.writing():
                found.put(trade(1), trade(1, symbol="ETHUSDT"))
                await until(lambda: other.rows == 1)
                harm(directory)
                for id_ in range(2, 6):
                    found.put(trade(id_), trade(id_, symbol="ETHUSDT"))
                await until(lambda: other.rows == 5)
                assert found.writer.blocked
                assert not found.writer.disk_trouble
                directory.unlink()
                await until(lambda: found.feeds[TWO[0]].rows == 5)
            assert found.files(TWO[0])["2026-07-14-2"] == "".join(line(trade(id_)) for id_ in range(2, 6))
            assert missed == [(1, 1)], "the file that is gone with its directory is to be had again"
            assert len(found.events("files_refused")) == len(found.events("files_again")) == 1

    run(test)


def test_rows_that_wait_for_one_feed_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the waiting rows are declared missing, so that history gives them; later ones are written."""
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(writer_module, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(writer_module, "BLOCKED_BYTES", 5 * len(line(trade(1))))

    async def test() -> None:
        async with desk(tmp_path, *TWO) as found:
            missed: set[int] = set()
            found.writer.miss = lambda _, first, last: missed.update(range(first, last + 1))
            directory = tmp_path / TWO[0]
            directory.parent.mkdir(parents=True)
            directory.touch()
            async with found.writing():
                for id_ in range(1, 31):
                    found.put(trade(id_))
                    await found.settled()
                await until(lambda: bool(missed))
                directory.unlink()
                await until(lambda: bool(found.events("files_again")))
                found.put(trade(31))
                await until(lambda: found.feeds[TWO[0]].rows > 0)
            written = {int(row.split(",")[3]) for text in found.files(TWO[0]).values() for row in text.splitlines()}
            assert written | missed == set(range(1, 32))
            assert not written & missed
            told = {id_ for gap in found.events("gap") for id_ in range(gap["first_id"], gap["last_id"] + 1)}  # type: ignore[call-overload,operator] # facts are objects
            assert told == missed

    run(test)


def test_a_stop_does_not_wait_for_a_refused_feed(tmp_path: Path) -> None:
    """What a feed's files did not take until the end is known to be unwritten; the stop neither waits nor fails."""

    async def test() -> None:
        async with desk(tmp_path, *TWO) as found:
            directory = tmp_path / TWO[0]
            directory.parent.mkdir(parents=True)
            directory.touch()
            async with found.writing():
                found.put(trade(7), trade(8), trade(1, symbol="ETHUSDT"))
                await until(lambda: found.feeds[TWO[1]].rows == 1)
            assert found.writer.unwritten() == {found.feeds[TWO[0]]: [7, 8]}
            directory.unlink()

    run(test)


def test_a_taken_name_does_not_stop_a_feed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that stays where a new one begins goes to quarantine whole, and the feed goes on."""
    monkeypatch.setattr(writer_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(writer_module, "NAME_FREED_WITHIN_S", 0.03)

    async def test() -> None:
        async with desk(tmp_path, *TWO) as found:
            stray = tmp_path / TWO[0] / "BTCUSDT-trade-2026-07-14-1.csv"
            stray.parent.mkdir(parents=True)
            stray.write_bytes(b"somebody's\n")
            async with found.writing():
                found.put(trade(1), trade(1, symbol="ETHUSDT"))
                await until(lambda: all(feed.rows == 1 for feed in found.feeds.values()))
            assert found.files(TWO[0]) == {"2026-07-14-1": line(trade(1))}
            (kept,) = (tmp_path / "quarantine").rglob("BTCUSDT-trade-2026-07-14-1.csv*")
            assert kept.read_bytes() == b"somebody's\n"
            assert len(found.events("moved_aside")) == 1

    run(test)


# --- What is told --------------------------------------------------------------------------------------------------


def test_happenings_of_a_link(tmp_path: Path) -> None:
    """Each thing that happens to a connection is told under its name, with what a person needs to know."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            items: list[Item] = [
                Connected(found.link),
                Disconnected(found.link, "no answer to ping", "", 0.51, opened=True, urgent=False),
                Disconnected(found.link, "HTTP 451", "run it elsewhere", 300.0, opened=False, urgent=True),
                SubscriptionRefused(found.link, ("btcusdt@trade",), ControlError(2, "Invalid request", 1)),
                Renewing(found.link, "it is old"),
                Renewed(found.link),
            ]
            async with found.writing():
                for item in items:
                    found.inbox.put(item)
            assert [event for event, *_ in found.told] == [
                "connected",
                "disconnected",
                "cannot_connect",
                "subscription_refused",
                "renewing",
                "renewed",
            ]
            assert {subject for _, subject, _ in found.told} == {"binance"}
            assert found.events("disconnected")[0]["reason"] == "no answer to ping"
            assert found.events("cannot_connect")[0]["remedy"] == "run it elsewhere"
            assert found.events("subscription_refused")[0]["streams"] == ["btcusdt@trade"]

    run(test)


def test_a_copy_with_other_content_is_kept_and_told(tmp_path: Path) -> None:
    """A second row with the ID of one written lately goes to quarantine if it is not the same trade."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            async with found.writing():
                found.put(trade(1), trade(2))
                await found.settled()
                found.put(trade(1), trade(2, p="1.00000000"))
                await found.settled()
            assert found.files() == {"2026-07-14-1": line(trade(1)) + line(trade(2))}
            assert [facts["id"] for facts in found.events("contradicted")] == [2]
            assert [reason for _, reason in found.quarantined] == ["ID 2 was written before, with other content"]

    run(test)


def test_latency_and_broken_connections_are_measured(tmp_path: Path) -> None:
    """A live row counts once with its way from event to arrival, a copy never; of connections, those lost count."""

    async def test() -> None:
        async with desk(tmp_path) as found:
            meter = found.feeds["binance/trade/BTCUSDT"].meter
            event_ms = int(trade(1)["E"])
            async with found.writing():
                found.put(trade(1, E=event_ms), received_ns=(event_ms + 8) * 10**6)
                found.put(trade(2, E=event_ms), trade(3, E=event_ms + 4), received_ns=(event_ms + 8) * 10**6)
                found.put(trade(3, E=event_ms + 4), received_ns=(event_ms + 900) * 10**6, connection=2)
                found.inbox.put(Disconnected(found.link, "reset", "", 0.5, opened=True, urgent=False))
                found.inbox.put(Disconnected(found.link, "refused", "", 1.0, opened=False, urgent=False))
                await found.settled()
            assert (meter.rows, meter.reconnects) == (3, 1)
            assert {bucket // 1000: rows for bucket, rows in meter.buckets.items()} == {7: 2, 3: 1}

    run(test)
