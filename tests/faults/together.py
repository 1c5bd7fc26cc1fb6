"""Two faults at once (X1), and stopping (Q1) or killing (Q2) while a fault stands.

A standing fault is a context: inside it the harm is done and visible, behind it the cause is gone. So two stand
together when one is entered inside the other, and each can be stood through, stopped in or killed in.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from tickcollect.dataset.replay import Answer, Close, Connection, Cut, Request, Reset
from tickcollect.dataset.replay.server import Step

from .disk import delete_file, fill, off_small_disk, on_small_disk, open_file
from .exchange import altered, data_of
from .lies import begins_late, foreign, is_history, lying, renumber_now
from .process import ENDINGS, before_midnight
from .scene import Case, Scene, UnmetError, tracing

Fault = Callable[[Scene], AbstractAsyncContextManager[None]]

STANDS_ROWS = 150
"""A fault stands at least until so many more rows have been issued."""
ALWAYS = 10**9


def rows_now(scene: Scene) -> int:
    """Count the first symbol's rows that were issued."""
    return len(scene.market.issued[scene.market.symbols[0]])


async def some_rows(scene: Scene, count: int = STANDS_ROWS) -> None:
    """Wait until so many more rows have been issued."""
    until = rows_now(scene) + count
    await scene.until(lambda: rows_now(scene) >= until, "the market goes on")


# --- Faults of the connection ----------------------------------------------------------------------------------------


@asynccontextmanager
async def away(scene: Scene) -> AsyncIterator[None]:
    """Let nobody reach the exchange, neither its websocket nor its REST."""
    scene.proxy.accepts = False
    scene.proxy.reset()
    try:
        yield
    finally:
        scene.proxy.accepts = True


@asynccontextmanager
async def refused(scene: Scene) -> AsyncIterator[None]:
    """End the connections and answer each handshake with 503; REST works."""
    asked = len(scene.handshakes_s)
    scene.handshake = lambda _, __: Answer(503, b"")
    scene.server.disconnect(Reset())
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it tries to connect")
    try:
        yield
    finally:
        scene.handshake = None


@asynccontextmanager
async def half_open(scene: Scene) -> AsyncIterator[None]:
    """Let connections stay, old and new, and nothing pass."""
    scene.proxy.answers = False
    scene.proxy.freeze()
    try:
        yield
    finally:
        scene.proxy.answers = True
        scene.proxy.reset()


@asynccontextmanager
async def silent(scene: Scene) -> AsyncIterator[None]:
    """Answer pings, and send nothing of what was subscribed."""
    with scene.sending(lambda _, __, ___, ____: []):
        yield
    scene.server.disconnect(Cut())  # a connection that sends again after a long silence would be another fault


@asynccontextmanager
async def cut_often(scene: Scene) -> AsyncIterator[None]:
    """End the connection five times, a moment after each was made."""
    for _ in range(5):
        asked = len(scene.handshakes_s)
        scene.server.disconnect(scene.chance.choice(ENDINGS))
        await scene.until(lambda asked=asked: len(scene.handshakes_s) > asked, "it connects anew")  # type: ignore[misc]  # mypy infers no default
    yield


@asynccontextmanager
async def announced(scene: Scene) -> AsyncIterator[None]:
    """Announce that the server goes down; the old connections end when the fault is over."""
    old = list(scene.server.connections)
    scene.server.announce_shutdown()
    yield
    for connection in old:
        if connection.is_open:
            connection.end(Close(1001, "going away"))


@asynccontextmanager
async def one_cut(scene: Scene) -> AsyncIterator[None]:
    """Reset one of two connections, and let none be made."""
    await scene.until(lambda: len(websockets(scene)) >= 2, "it connects twice")
    scene.handshake = lambda _, __: Answer(503, b"")
    websockets(scene)[0].end(Reset())
    await scene.until(lambda: len(websockets(scene)) == 1, "one is left")
    try:
        yield
    finally:
        scene.handshake = None


def websockets(scene: Scene) -> list[Connection]:
    """Return the open websockets."""
    return [each for each in scene.server.connections if each.is_open]


@asynccontextmanager
async def quiet(scene: Scene) -> AsyncIterator[None]:
    """Let the market rest."""
    scene.server.pause()
    await asyncio.sleep(2)
    try:
        yield
    finally:
        scene.server.resume()


# --- Faults of what is sent ------------------------------------------------------------------------------------------


@asynccontextmanager
async def gap(scene: Scene, rows: int = 40) -> AsyncIterator[None]:
    """Do not send the next rows; history has them."""
    first = rows_now(scene) + 5

    def twist(_: Connection, __: str, number: int, payload: bytes) -> list[Step]:
        return [] if first <= number < first + rows else [payload]

    with scene.sending(twist):
        await scene.until(lambda: rows_now(scene) > first + rows + 10, "the rows are skipped")
        yield


@asynccontextmanager
async def swapped(scene: Scene) -> AsyncIterator[None]:
    """Send each pair of messages in the wrong order."""
    kept: list[bytes] = []

    def twist(_: Connection, __: str, ___: int, payload: bytes) -> list[Step]:
        kept.append(payload)
        return [payload, kept[-2]] if len(kept) % 2 == 0 else []

    with scene.sending(twist):
        yield


@asynccontextmanager
async def garbled(scene: Scene) -> AsyncIterator[None]:
    """Put what is no message between the messages, and take some messages out."""
    count = 0

    def twist(_: Connection, __: str, ___: int, payload: bytes) -> list[Step]:
        nonlocal count
        count += 1
        if count % 40 == 0:
            return [altered(payload, {"p": "1,2"})]
        return [b'{"a":', payload] if count % 11 == 0 else [payload]

    with scene.sending(twist):
        yield


@asynccontextmanager
async def renumbered(scene: Scene) -> AsyncIterator[None]:
    """Begin the numbering anew at 1."""
    await renumber_now(scene)
    await scene.until_current()
    yield


@asynccontextmanager
async def midnight(scene: Scene) -> AsyncIterator[None]:
    """Let the market's day end."""
    rows = scene.market.issued[scene.market.symbols[0]]
    day = rows[0].trade.time_ms // 86_400_000
    await scene.until(lambda: rows[-1].trade.time_ms // 86_400_000 > day, "a new day")
    yield


@asynccontextmanager
async def gap_at_midnight(scene: Scene) -> AsyncIterator[None]:
    """Skip the rows around midnight."""

    def twist(_: Connection, __: str, ___: int, payload: bytes) -> list[Step]:
        return [] if abs((data_of(payload)["T"] + 1000) % 86_400_000 - 1000) < 600 else [payload]

    with scene.sending(twist):
        async with midnight(scene):
            await some_rows(scene, 60)
            yield


# --- Faults of REST --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(scene: Scene, twist: Callable[[Request, Answer], Answer]) -> AsyncIterator[None]:
    """Answer REST otherwise."""
    with scene.answering(twist):
        yield


def banned(_: Request, __: Answer) -> Answer:
    """Ban the IP for some seconds from now."""
    return Answer(418, b'{"code":-1003,"msg":"banned"}', {"Retry-After": "4"})


def overloaded(request: Request, answer: Answer) -> Answer:
    """Refuse history for the moment."""
    return Answer(503, b"") if is_history(request) else answer


def never(request: Request, answer: Answer) -> Answer:
    """Answer history after minutes."""
    return answer._replace(delay_s=200.0) if is_history(request) else answer


def slowly(request: Request, answer: Answer) -> Answer:
    """Answer history after some seconds."""
    return answer._replace(delay_s=6.0) if is_history(request) else answer


rest_banned: Fault = partial(answering, twist=banned)
history_down: Fault = partial(answering, twist=overloaded)
history_hangs: Fault = partial(answering, twist=never)
history_slow: Fault = partial(answering, twist=slowly)


@asynccontextmanager
async def history_lies(scene: Scene, lie: Callable[..., Any] = begins_late) -> AsyncIterator[None]:
    """Let every answer of history be a lie."""
    with scene.answering(lying(scene, lie, ALWAYS)):
        yield


history_foreign: Fault = partial(history_lies, lie=foreign)

# --- Faults of the disk and the process ------------------------------------------------------------------------------


@asynccontextmanager
async def full_disk(scene: Scene) -> AsyncIterator[None]:
    """Fill the disk to the last byte."""
    await on_small_disk(scene, "1m")
    filler = scene.data_dir / "somebody-elses"
    try:
        fill(filler)
        await scene.until_said("disk is full", within_s=40)
        yield
        filler.unlink()
        if scene.collector.code is None:
            await scene.until_current()
    finally:
        filler.unlink(missing_ok=True)
        await off_small_disk(scene)
    await scene.start()


@asynccontextmanager
async def hanging_disk(scene: Scene) -> AsyncIterator[None]:
    """Hold up each write to the open file by two seconds."""
    async with tracing(scene, open_file(scene), "inject=write,writev,pwrite64:delay_enter=2000000"):
        yield


@asynccontextmanager
async def file_deleted(scene: Scene) -> AsyncIterator[None]:
    """Delete the open file."""
    delete_file(scene)
    await scene.until_said(r"deleted or moved", within_s=20)
    yield


@asynccontextmanager
async def given_up(scene: Scene) -> AsyncIterator[None]:
    """Wait until so many rows wait behind a gap that it is declared, and its answer has come all the same."""
    await scene.until_said("IDs are missing")
    await some_rows(scene, 3000)
    yield


@asynccontextmanager
async def killed(scene: Scene) -> AsyncIterator[None]:
    """Kill the collector and start it again."""
    await scene.kill()
    await scene.start()
    await some_rows(scene)
    yield


@asynccontextmanager
async def restarted(scene: Scene) -> AsyncIterator[None]:
    """Stop the collector in order and start it again."""
    await scene.stop_well()
    await scene.start()
    await some_rows(scene)
    yield


# --- Playing them ----------------------------------------------------------------------------------------------------


async def stand_together(scene: Scene, faults: Sequence[Fault]) -> None:
    """Let faults stand one inside the other."""
    async with AsyncExitStack() as stack:
        for fault in faults:
            await stack.enter_async_context(fault(scene))
        await some_rows(scene)


async def stopped_in(scene: Scene, faults: Sequence[Fault]) -> None:
    """Stop the collector in order while faults stand; start it again when they are over."""
    async with AsyncExitStack() as stack:
        for fault in faults:
            await stack.enter_async_context(fault(scene))
        if quiet not in faults:
            await some_rows(scene)
        await scene.stop_well()
    await start_again(scene)


async def killed_in(scene: Scene, faults: Sequence[Fault]) -> None:
    """Kill the collector while faults stand, and ask for its status; start it again when they are over."""
    async with AsyncExitStack() as stack:
        for fault in faults:
            await stack.enter_async_context(fault(scene))
        await some_rows(scene)
        await scene.kill()
        if scene.target.keeps_journal:
            await dead_is_not_well(scene)
    await start_again(scene)


async def start_again(scene: Scene) -> None:
    """Start the collector, unless healing the fault has done it."""
    if scene.collector.code is not None:
        await scene.start()


async def dead_is_not_well(scene: Scene) -> None:
    """Let `tickcollect status` tell of a collector that was killed: dead, and nothing of it known."""
    command = [sys.executable, "-m", "tickcollect", "status", "--json", "--data-dir", str(scene.data_dir)]
    code, output = await scene.start_another(command)
    feeds = [feed for snapshot in json.loads(output) for feed in snapshot["feeds"]]
    if code != 2 or any(feed["unknown_since_ns"] is None for feed in feeds):
        raise UnmetError(f"of a collector that was killed nothing is known, code 2; code {code}: {output[:300]}")


_TOGETHER = "both are met; every row is there once; nothing is called known that is not"
_STOPPED = "ends in time and in order, and says what it knows and what not; the next start has everything"
_KILLED = "`status` calls it dead and nothing known; the next start has everything"


def pair(name: str, what: str, *faults: Fault, **more: Any) -> Case:
    """Return the case of faults that stand together."""
    return Case(name, "X1", what, _TOGETHER, partial(stand_together, faults=faults), **more)


def stop(name: str, what: str, *faults: Fault, **more: Any) -> Case:
    """Return the case of a stop while faults stand."""
    return Case(f"stop-{name}", "Q1", f"stopped while {what}", _STOPPED, partial(stopped_in, faults=faults), **more)


def kill(name: str, what: str, *faults: Fault, **more: Any) -> Case:
    """Return the case of a kill while faults stand."""
    return Case(f"kill-{name}", "Q2", f"killed while {what}", _KILLED, partial(killed_in, faults=faults), **more)


TWO: Mapping[str, str] = {"TICKCOLLECT_REDUNDANCY": "2"}
ROOT = ("root",)
STRACE = ("strace",)

CASES: Sequence[Case] = (
    pair("gap+full-disk", "rows are skipped while the disk is full", full_disk, gap, needs=ROOT),
    pair("gap+kill", "killed and started while a gap cannot be filled", history_down, gap, killed, peers=True,
         quick=True),
    pair("refused+ban", "no websocket, and REST has banned the IP", refused, rest_banned, quick=True),
    pair("ban+restart", "stopped and started while REST has banned the IP, and rows are skipped", rest_banned, gap,
         restarted),
    pair("midnight+gap", "the rows around midnight are skipped", gap_at_midnight, market_time_s=before_midnight,
         peers=True, quick=True),
    pair("midnight+kill", "killed just after midnight, while history is down", history_down, midnight, killed,
         market_time_s=before_midnight, peers=True),
    pair("midnight+full-disk", "the disk is full at midnight", full_disk, midnight, needs=ROOT,
         market_time_s=lambda wall_s: before_midnight(wall_s) - 8),
    pair("renewal+gap", "rows are skipped while the connection is renewed", announced, gap, peers=True),
    pair("renewal+refused", "the connection is to be renewed, and no new one is let in", announced, refused,
         peers=True),
    pair("renumbered+gap", "rows are skipped right after the numbering began anew", renumbered, gap, peers=True),
    pair("renumbered+kill", "killed right after the numbering began anew", renumbered, killed, peers=True, quick=True),
    pair("half-open+gap", "a gap cannot be filled, then the connection is half open", history_down, gap, half_open,
         peers=True),
    pair("one-cut+gap", "one of two connections is cut, and the other misses rows", one_cut, gap, settings=TWO,
         quick=True),
    pair("one-cut+swapped", "one of two connections is cut, and the other sends pairs backwards", one_cut, swapped,
         settings=TWO),
    pair("lies+kill", "history lies about a gap before and after a kill", history_lies, gap, killed, quick=True,
         must_be_filled=True),
    pair("foreign+restart", "history gives a foreign symbol's rows before and after a restart", history_foreign, gap,
         restarted, must_be_filled=True),
    pair("slow+held+kill", "10,000 rows wait for an answer that is late; then killed", history_slow, gap,
         given_up, killed, rows_per_s=2500.0, memory_mb=60.0),
    pair("full-disk+reconnects", "the connection ends again and again while the disk is full", full_disk, cut_often,
         needs=ROOT),
    pair("hanging-disk+garbage", "each write takes 2 s, and messages are refused", hanging_disk, garbled, needs=STRACE,
         quick=True),
    pair("hanging-disk+cuts", "each write takes 2 s, and the connection ends again and again", hanging_disk, cut_often,
         needs=STRACE),
    pair("deleted+history-down", "the open file is deleted while history is down", history_down, file_deleted),
    pair("swapped+gap", "pairs come backwards, and rows are skipped", swapped, gap, peers=True),
    pair("away+kill", "killed and started while the exchange cannot be reached", away, killed, peers=True, quick=True),
    stop("away", "the exchange cannot be reached", away, peers=True, quick=True),
    stop("refused", "no websocket is let in and REST works", refused, peers=True),
    stop("refused-ban", "no websocket is let in and REST has banned the IP", refused, rest_banned, peers=True),
    stop("half-open", "the connection is half open", half_open, peers=True, quick=True),
    stop("silent", "a connection is alive and sends nothing", silent, peers=True),
    stop("quiet", "the market rests", quiet),
    stop("gap-ban", "REST has banned the IP and a gap is open", rest_banned, gap),
    stop("gap-history-hangs", "a gap is open and history never answers", history_hangs, gap, quick=True),
    stop("gap-history-lies", "a gap is open and history lies", history_lies, gap),
    stop("full-disk", "the disk is full", full_disk, needs=ROOT),
    stop("hanging-disk", "each write takes 2 s", hanging_disk, needs=STRACE),
    stop("swapped", "pairs come backwards", swapped, peers=True),
    stop("one-cut", "one of two connections is cut", one_cut, settings=TWO),
    stop("renewal", "the connection is being renewed", announced, peers=True),
    stop("midnight", "the day has just ended", midnight, market_time_s=before_midnight, peers=True),
    stop("renumbered", "the numbering has just begun anew", renumbered, peers=True),
    kill("away", "the exchange cannot be reached", away, peers=True, quick=True),
    kill("half-open", "the connection is half open", half_open, peers=True),
    kill("gap-history-hangs", "a gap is open and history never answers", history_hangs, gap, peers=True),
    kill("gap-history-lies", "a gap is open and history lies", history_lies, gap),
    kill("full-disk", "the disk is full", full_disk, needs=ROOT),
    kill("hanging-disk", "each write takes 2 s", hanging_disk, needs=STRACE),
    kill("one-cut", "one of two connections is cut", one_cut, settings=TWO),
    kill("renumbered", "the numbering has just begun anew", renumbered, peers=True),
)  # fmt: skip
"""Faults together, and ends while they stand."""
