"""This machine's clock against the exchanges': answers over real sockets, times that pass only when a test says so."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, repeat

import pytest

from tickcollect.config import CollectEntry, Config
from tickcollect.rest import Clock
from tickcollect.venues import Venue, venues
from tickcollect.watch import ClockWatch

NOW_S = 1_784_000_055.0
WRONG_MS = 2000
"""From here on people are told."""


@dataclass
class World:
    """This machine's clocks, and what was told."""

    now_s: float = NOW_S
    told: list[tuple[str, str, int]] = field(default_factory=list)

    def tell(self, event: str, subject: str, /, **facts: object) -> None:
        self.told.append((event, subject, int(str(facts.get("offset_ms", facts.get("seconds", 0))).split(".")[0])))

    def clock(self) -> Clock:
        return Clock(lambda: self.now_s, lambda: self.now_s - NOW_S, asyncio.sleep)


@dataclass
class Exchange:
    """Answers `/time`: how far its clock is ahead, and for each answer how long it is under way, there and back."""

    world: World
    ahead_s: float = 0.0
    on_the_way_s: Iterator[tuple[float, float]] = field(default_factory=lambda: repeat((0.0, 0.0)))
    body: Callable[[int], bytes] = lambda time_ms: json.dumps({"serverTime": time_ms}).encode()
    before: Callable[[], Awaitable[None]] | None = None
    asked: int = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            if self.before is not None:
                await self.before()
            there_s, back_s = next(self.on_the_way_s)
            self.world.now_s += there_s
            body = self.body(round((self.world.now_s + self.ahead_s) * 1000))
            self.world.now_s += back_s
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        writer.close()


NAMES = ("binance", "binance-futures", "binance-delivery")


@asynccontextmanager
async def watching(world: World, *exchanges: Exchange) -> AsyncIterator[ClockWatch]:
    """Serve the exchanges on loopback and watch their clocks."""
    async with AsyncExitStack() as stack:
        entries = []
        for name, exchange in zip(NAMES, exchanges, strict=False):
            server = await asyncio.start_server(exchange.connected, "127.0.0.1", 0)
            await stack.enter_async_context(server)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            entries.append(
                CollectEntry(exchange=name, symbols=("BTCUSDT",), ws_url=url.replace("http", "ws"), rest_url=url)
            )
        found: list[Venue] = venues(Config(collect=tuple(entries)))
        for venue in found:
            stack.push_async_callback(venue.rest.close)
        yield ClockWatch(found, world.tell, clock=world.clock())


def told_of(world: World, *exchanges: Exchange) -> list[tuple[str, str, int]]:
    """Return what is told after one measuring of all exchanges."""

    async def live() -> None:
        async with watching(world, *exchanges) as watch:
            await asyncio.wait_for(watch.measure(), 20)

    asyncio.run(live())
    return world.told


def test_an_answer_that_was_long_under_way_alarms_nobody() -> None:
    """Five seconds on the way there say nothing of the clocks; asked again, the quicker answer shows that."""
    world = World()
    exchange = Exchange(world, on_the_way_s=chain([(5.0, 0.0)], repeat((0.1, 0.1))))
    assert told_of(world, exchange) == [("clock_offset", "binance", 0)]
    assert exchange.asked == 2


def test_where_all_answers_are_slow_nothing_is_claimed() -> None:
    """An offset that half the round trip can explain is neither right nor wrong."""
    world = World()
    exchange = Exchange(world, on_the_way_s=repeat((5.0, 0.0)))
    assert told_of(world, exchange) == []
    assert exchange.asked == 3


@pytest.mark.parametrize("ahead_s", [2.5, -2.5])
def test_a_wrong_clock_is_told_by_the_quickest_answer(ahead_s: float) -> None:
    """Of three answers the one with the shortest way counts, with its sign: positive where the exchange is ahead."""
    world = World()
    exchange = Exchange(world, ahead_s, iter([(0.4, 0.0), (0.1, 0.1), (0.0, 0.9)]))
    assert told_of(world, exchange) == [("clock_wrong", "binance", round(ahead_s * 1000))]
    assert exchange.asked == 3


def test_the_odd_clock_among_several_is_the_wrong_one() -> None:
    """An exchange that differs while others agree with this machine is told as such; two against one are believed."""
    world = World()
    told = told_of(world, Exchange(world), Exchange(world, ahead_s=3600), Exchange(world))
    assert sorted(told) == [
        ("clock_offset", "binance", 0),
        ("clock_offset", "binance-delivery", 0),
        ("exchange_clock_wrong", "binance-futures", 3_600_000),
    ]
    world = World()
    told = told_of(world, Exchange(world, ahead_s=60), Exchange(world, ahead_s=60), Exchange(world))
    assert sorted(told) == [
        ("clock_offset", "binance-delivery", 0),
        ("clock_wrong", "binance", 60_000),
        ("clock_wrong", "binance-futures", 60_000),
    ]


def test_one_exchange_that_does_not_answer_holds_up_no_other() -> None:
    """What the others say is told while one is still waited for."""
    world = World()

    async def live() -> None:
        others_told, asked = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            asked.set()
            await others_told.wait()

        async with watching(world, Exchange(world, before=hang), Exchange(world)) as watch:
            measuring = asyncio.create_task(watch.measure())
            await asyncio.wait_for(asked.wait(), 20)
            while not world.told:  # noqa: ASYNC110 - what is waited for sets no event
                await asyncio.sleep(0)
            assert world.told == [("clock_offset", "binance-futures", 0)]
            others_told.set()
            await asyncio.wait_for(measuring, 20)

    asyncio.run(live())


@pytest.mark.parametrize(
    "body",
    [
        b'{"serverTime":1784000000000,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"serverTime":' + b"9" * 400 + b"}",
        b'{"serverTime":"1784000000000"}',
        b'{"serverTime":-1}',
        b'{"serverTime":1e12}',
        b'{"serverTime":true}',
        b"{}",
        b"[]",
    ],
    ids=["nested", "huge", "text", "negative", "float", "bool", "empty", "list"],
)  # fmt: skip
def test_an_answer_without_a_time_is_passed_over(body: bytes) -> None:
    """Whatever stands in its place, nothing is told and nothing ends."""
    world = World()
    assert told_of(world, Exchange(world, body=lambda _: body)) == []


def test_a_step_of_the_clock_is_told_and_the_offsets_are_measured_again() -> None:
    """After this machine's clock was set, its offset is asked at once, not ten minutes later."""
    world = World()

    async def live() -> None:
        exchange = Exchange(world)
        clock = world.clock()
        async with watching(world, exchange) as watch:
            stepped_s = 0.0

            async def look(_seconds: float) -> None:
                await asyncio.sleep(0)

            watch.clock = Clock(lambda: world.now_s + stepped_s, clock.monotonic, look)
            running = asyncio.create_task(watch.run())
            async with asyncio.timeout(20):
                while not world.told:  # noqa: ASYNC110 - what is waited for sets no event
                    await asyncio.sleep(0)
                stepped_s = -3600.0
                while exchange.asked < 4:  # noqa: ASYNC110 - what is waited for sets no event
                    await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait({running})

    asyncio.run(live())
    assert world.told[:2] == [("clock_offset", "binance", 0), ("clock_stepped", "this machine", -3600)]
