"""The newest IDs of many feeds: how many requests they cost, and which answers are taken for one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from byhand import FIRST_ID, ByHand, Reply, by_hand

from tickcollect import gaps
from tickcollect.budget import Purpose
from tickcollect.config import CollectEntry, Config
from tickcollect.events import RowCheck, Trade
from tickcollect.newest import REFUSED_AGAIN_S, Answer, Manner, Named, Newest, NotNamed
from tickcollect.segments import Compression, FeedPath, Numbering, OpenFiles, Segments
from tickcollect.venues import venues
from tickcollect.writer import Feed

SOON = Manner(Purpose.SETTLE, admitted_within_s=0.2, answered_within_s=10.0)
MANY = tuple(f"Q{number}USDT" for number in range(45))


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def feed(root: Path, symbol: str, newest_id: int | None) -> Feed:
    """Return a feed that has come to an ID."""
    path = FeedPath("binance", "trade", symbol)
    files = Segments(
        root, path, rotate_size=10**9, pool=OpenFiles(10), compression=Compression("zip"), numbering=Numbering.BY_ONE
    )
    found = Feed(path, Trade, RowCheck("trade", symbol, 0), gaps.Sequence(1.0), files)
    found.sequence.next_id = None if newest_id is None else newest_id + 1
    return found


@asynccontextmanager
async def asking(exchange: ByHand, now_s: Callable[[], float]) -> AsyncIterator[Newest]:
    entry = CollectEntry(exchange="binance", symbols=exchange.symbols, **exchange.addresses)
    (venue,) = venues(Config(collect=(entry,)))
    async with venue.rest:
        yield Newest(venue, now_s)


def answers(exchange: ByHand, feeds: list[Feed], times: int = 1, now: Now | None = None) -> dict[str, Answer]:
    """Ask, `times` times, and return the last answers by symbol."""
    clock, found = now or Now(), dict[str, Answer]()

    async def ask() -> None:
        async with asking(exchange, clock) as newest:
            for _ in range(times):
                await newest.ask(feeds, SOON, lambda one, answer: found.update({one.path.symbol: answer}))

    asyncio.run(ask())
    return found


def test_many_feeds_cost_a_request_for_twenty(tmp_path: Path) -> None:
    """45 feeds whose newest row is ours are three requests, and no single one."""
    with by_hand(*MANY) as exchange:
        for symbol in MANY:
            exchange.issue(symbol)
        found = answers(exchange, [feed(tmp_path, symbol, FIRST_ID) for symbol in MANY])
    assert found == {symbol: Named(FIRST_ID) for symbol in MANY}
    assert exchange.counts() == {"24hr": 3}
    assert exchange.asked[0][1]["type"] == "MINI"


def test_what_the_many_do_not_confirm_is_asked_alone(tmp_path: Path) -> None:
    """A feed that is behind, ahead of the statistics, or without a row is asked for its own newest row."""
    symbols = ("HEREUSDT", "BEHINDUSDT", "AHEADUSDT", "ROWLESSUSDT")
    with by_hand(*symbols) as exchange:
        for symbol in symbols:
            exchange.issue(symbol, 3)
        ours = (FIRST_ID + 2, FIRST_ID + 1, FIRST_ID + 9, None)
        found = answers(exchange, [feed(tmp_path, symbol, id_) for symbol, id_ in zip(symbols, ours, strict=True)])
    assert found == {symbol: Named(FIRST_ID + 2) for symbol in symbols}
    assert [asked["symbol"] for path, asked in exchange.asked if path == "trades"] == list(symbols[1:])


BAD_STATISTICS: dict[str, Reply] = {
    "there is no such call": (404, {"code": -1, "msg": "no such path"}),
    "a symbol is refused": (400, {"code": -1121, "msg": "Invalid symbol."}),
    "not a list": (200, {"lastId": 1}),
    "an ID that is none": (200, [{"symbol": "BTCUSDT", "lastId": "x"}]),
    "two of one symbol": (200, [{"symbol": "BTCUSDT", "lastId": 1}, {"symbol": "BTCUSDT", "lastId": 2}]),
    "nested without end": (200, b"[" * 100_000 + b"]" * 100_000),
}


@pytest.mark.parametrize("reply", BAD_STATISTICS.values(), ids=BAD_STATISTICS)
def test_where_many_cannot_be_asked_each_is_and_that_is_remembered(tmp_path: Path, reply: Reply) -> None:
    """A refusal or nonsense for many costs one request an hour; the feeds are asked one by one."""
    with by_hand("BTCUSDT", "ETHUSDT") as exchange:
        exchange.issue("BTCUSDT")
        exchange.issue("ETHUSDT")
        exchange.rest = lambda path, _, usual: reply if path == "24hr" else usual
        feeds = [feed(tmp_path, symbol, FIRST_ID) for symbol in exchange.symbols]
        found = answers(exchange, feeds, times=3)
        assert found == {"BTCUSDT": Named(FIRST_ID), "ETHUSDT": Named(FIRST_ID)}
        assert exchange.counts() == {"24hr": 1, "trades": 6}


def test_after_an_hour_many_are_asked_again(tmp_path: Path) -> None:
    """What was refused for many may have been the exchange's passing trouble."""
    with by_hand("BTCUSDT", "ETHUSDT", has_tickers=False) as exchange:
        now = Now()
        feeds = [feed(tmp_path, symbol, FIRST_ID) for symbol in exchange.symbols]

        async def ask() -> None:
            async with asking(exchange, now) as newest:
                for now.s in (0.0, REFUSED_AGAIN_S - 1, REFUSED_AGAIN_S + 1):
                    await newest.ask(feeds, SOON, lambda *_: None)

        asyncio.run(ask())
    assert exchange.counts()["24hr"] == 2


FAILURES: dict[str, Any] = {
    "banned": ((418, {"code": -1003, "msg": "banned"}), 1),
    "each in trouble": ((503, {}), 45),
    "each another form": ((200, [{"id": "x"}]), 45),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_for_all_is_met_once(tmp_path: Path, failure: str) -> None:
    """A ban is not tried on each of 45 feeds; what may concern one feed only is. Each feed gets an answer."""
    reply, most = FAILURES[failure]
    with by_hand(*MANY) as exchange:
        exchange.rest = lambda path, _, usual: reply
        found = answers(exchange, [feed(tmp_path, symbol, FIRST_ID) for symbol in MANY])
    assert set(found) == set(MANY)
    assert all(isinstance(answer, NotNamed) and answer.reason for answer in found.values())
    assert exchange.counts()["trades"] <= most
    assert sum(exchange.counts().values()) <= most + 4


def test_no_row_at_all_is_an_answer(tmp_path: Path) -> None:
    """A market that has never traded has no newest ID, which is not the same as no answer."""
    with by_hand("BTCUSDT") as exchange:
        assert answers(exchange, [feed(tmp_path, "BTCUSDT", None)]) == {"BTCUSDT": Named(None)}
