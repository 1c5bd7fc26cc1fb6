"""One connection against real servers on loopback that misbehave on command."""

import asyncio
import base64
import bisect
import hashlib
import heapq
import json
import math
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import picows
import pytest

from tickcollect import feed as feed_module
from tickcollect.dataset.replay import Answer, Behaviour, Close, GeneratedMarket, Reset, serve
from tickcollect.events import Message, PlainTrade, Trade
from tickcollect.exchanges.binance import MARKETS, ControlError, Decoder, Link, Notice, Refused, UnknownEvent, links
from tickcollect.feed import (
    USUAL_BYTES,
    Batch,
    Connected,
    Disconnected,
    Inbox,
    Item,
    LinkState,
    Odd,
    RenewalFailed,
    Renewed,
    Renewing,
    SubscriptionAccepted,
    SubscriptionRefused,
    Surroundings,
    Unacknowledged,
    backoff,
    keep,
    websocket_proxy,
)

FIRST_ID = 6_100_000_001
Wanted = TypeVar("Wanted", bound=Item)


def run(test: Callable[[], Coroutine[Any, Any, None]], timeout_s: float = 20) -> None:
    async def limited() -> None:
        async with asyncio.timeout(timeout_s):
            await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not {task for task in left if "feed" in repr(task)}, "nothing of the feed is left running"

    asyncio.run(limited())


async def until(condition: Callable[[], bool]) -> None:
    """Let everything go on until a condition holds; the test's own time is the limit."""
    while not condition():  # noqa: ASYNC110 - what is waited for is state of the code under test, which has no event
        await asyncio.sleep(0.005)


def trade(number: int, stream: str = "btcusdt@trade") -> bytes:
    """Return the `number`-th message of the market as it stands on the wire."""
    return (
        b'{"stream":"%b","data":{"e":"trade","E":1784000000105,"s":"BTCUSDT","t":%d,"p":"64120.01000000",'
        b'"q":"0.00150000","T":1784000000104,"m":true,"M":true}}' % (stream.encode(), FIRST_ID + number)
    )


# --- An exchange that does what the test says ----------------------------------------------------------------------


def head(length: int, opcode: int = 0x1, flags: int = 0x80) -> bytes:
    """Return the head of a server's frame (RFC 6455, 5.2)."""
    if length < 126:
        return bytes((flags | opcode, length))
    if length < 2**16:
        return struct.pack("!BBH", flags | opcode, 126, length)
    return struct.pack("!BBQ", flags | opcode, 127, length)


def frame(payload: bytes, opcode: int = 0x1, *, fin: bool = True) -> bytes:
    return head(len(payload), opcode, 0x80 if fin else 0) + payload


TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


@dataclass(eq=False)
class Peer:
    """The server's side of one TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    request: bytes = b""
    control: list[tuple[int, bytes]] = field(default_factory=list)
    """Frames that came beside those asked for."""

    async def accept(self) -> None:
        """Answer the handshake."""
        self.request = await self.reader.readuntil(b"\r\n\r\n")
        key = self.header("sec-websocket-key").encode()
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )

    def header(self, name: str) -> str:
        lines = self.request.decode("latin-1").split("\r\n")[1:]
        pairs = [line.split(": ", 1) for line in lines if ": " in line]
        return next((value for key, value in pairs if key.lower() == name), "")

    async def receive(self) -> tuple[int, bytes]:
        """Return the next frame of the client: its opcode and its payload, unmasked."""
        first, second = await self.reader.readexactly(2)
        assert second & 0x80, "a client masks its frames"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        mask = await self.reader.readexactly(4)
        masked = await self.reader.readexactly(length)
        return first & 0xF, bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))

    async def expect(self, opcode: int) -> bytes:
        """Return the payload of the next frame of a kind."""
        while True:
            kind, payload = await self.receive()
            if kind == opcode:
                return payload
            self.control.append((kind, payload))

    async def subscribed(self) -> list[str]:
        """Accept, and acknowledge one SUBSCRIBE; return the names it asked for."""
        await self.accept()
        request = json.loads(await self.expect(TEXT))
        self.send(b'{"result":null,"id":%d}' % request["id"])
        names: list[str] = request["params"]
        return names

    def send(self, *payloads: bytes) -> None:
        """Send text frames, all in one write."""
        self.writer.write(b"".join(frame(payload) for payload in payloads))

    async def until_closed(self) -> None:
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """End the connection with RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer, int], Awaitable[None]]
"""What to do with a connection, given its number from 0; the connection is closed behind it."""


@dataclass
class Exchange:
    url: str
    peers: list[Peer] = field(default_factory=list)


@asynccontextmanager
async def exchange(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Exchange]:
    """Serve connections by a script until the block ends."""
    serving: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        found.peers.append(peer)
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await script(peer, len(found.peers) - 1)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except BaseException as error:  # noqa: BLE001 - a failed assertion of a script must fail the test
            failures.append(error)
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    found = Exchange(f"{'wss' if tls else 'ws'}://127.0.0.1:{port}")
    try:
        yield found
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        assert not failures, failures


# --- The link under test -------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A link that is kept alive, and what came out of it."""

    state: LinkState
    inbox: Inbox
    waits: list[tuple[float, float]]
    """The bounds of every wait that was asked for."""
    task: "asyncio.Task[None]"
    items: list[Item] = field(default_factory=list)
    rows: list[Message] = field(default_factory=list)
    """The messages of the batches, in order."""

    async def more(self) -> None:
        """Take what has come, waiting for something."""
        if self.task.done():
            self.task.result()
        taking = asyncio.ensure_future(self.inbox.take())
        await asyncio.wait({taking, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            self.task.result()
        items = await taking
        self.items += items
        for batch in items:
            if isinstance(batch, Batch):
                self.rows += chain.from_iterable(batch.messages())
        self.inbox.done()

    def found(self, kind: type[Wanted]) -> list[Wanted]:
        return [item for item in self.items if isinstance(item, kind)]

    async def until(self, kind: type[Wanted], number: int = 1) -> Wanted:
        """Return the `number`-th item of a kind."""
        while len(self.found(kind)) < number:
            await self.more()
        return self.found(kind)[number - 1]

    async def until_rows(self, number: int) -> list[int]:
        while len(self.ids) < number:
            await self.more()
        return self.ids

    @property
    def ids(self) -> list[int]:
        """The messages that came, by their number from 0."""
        return [row.t - FIRST_ID for row in self.rows if isinstance(row, Trade | PlainTrade)]

    @property
    def story(self) -> str:
        """The kinds of items in their order, repeats joined."""
        kinds = [type(item).__name__ for item in self.items]
        return " ".join(kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind)


@asynccontextmanager
async def watch(
    url: str,
    streams: Iterable[str] = ("btcusdt@trade",),
    *,
    limit: int = 50_000,
    inbox: Inbox | None = None,
    decoder: Decoder | None = None,
    **around: Any,
) -> AsyncIterator[Watched]:
    """Keep one link to `url`; waits are a thousandth of what was asked for."""
    waits: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        waits.append((low, high))
        return high / 1000

    (link,) = links(MARKETS["binance"], [], url) or [Link(f"{url}/stream", tuple(streams))]
    state = LinkState("binance", link)
    inbox = inbox or Inbox(limit)
    clock = count(1)
    surroundings = Surroundings(inbox, around.pop("time_ns", clock.__next__), uniform, "tickcollect/test", **around)
    task = asyncio.create_task(keep(state, decoder or Decoder(MARKETS["binance"]), surroundings), name="feed")
    try:
        yield Watched(state, inbox, waits, task)
    finally:
        task.cancel()
        await asyncio.wait({task})


async def stay(peer: Peer) -> None:
    await peer.until_closed()


# --- What goes well ------------------------------------------------------------------------------------------------


def test_every_message_once_in_order() -> None:
    """What the exchange sends arrives once, in order, behind the word that the connection is there."""

    async def test() -> None:
        agents: list[str] = []

        def handshake(target: str, headers: Any) -> Answer | None:
            assert target == "/stream"
            agents.append(headers["user-agent"])
            return None

        market = GeneratedMarket("binance", start_ms=1_784_000_000_000, symbols=1, duration_s=20)
        name = next(stream for stream in market.streams if stream.endswith("@trade"))
        expected = [json.loads(message.data) for message in market.messages([name])]
        async with (
            serve(market, behaviour=Behaviour(handshake=handshake)) as server,
            watch(server.ws_url, [name]) as link,
        ):
            await link.until_rows(len(expected))
            assert [(row.t, row.p, row.q, row.T) for row in link.rows if isinstance(row, Trade | PlainTrade)] == [
                (row["t"], row["p"], row["q"], row["T"]) for row in expected
            ]
            assert link.story == "Connected Batch"
            assert link.state.connected
            assert link.state.connections == 1
            assert link.state.messages == len(expected)
        assert agents == ["tickcollect/test"]

    run(test)


def test_messages_of_one_read_share_a_stamp() -> None:
    """Arrival is stamped once a read, and every message of the read has that stamp."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        for start in (0, 3, 4):
            peer.send(*(trade(number) for number in range(start, {0: 3, 3: 4, 4: 9}[start])))
            await peer.writer.drain()
            await go_on.acquire()
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            for rows in (3, 4, 9):
                await link.until_rows(rows)
                go_on.release()
            stamps = [batch.received_ns for batch in link.found(Batch)]
            assert stamps == sorted(set(stamps)), "one reading of the clock a batch"
            assert link.ids == list(range(9))

    go_on = asyncio.Semaphore(0)
    run(test)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_text_and_binary_frames(opcode: int) -> None:
    """JSON in a binary frame is JSON."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.write(frame(trade(0), opcode))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(1) == [0]

    run(test)


def test_fragments_are_joined() -> None:
    """A message in fragments of any size, with a ping among them, is one message in its place."""
    message = trade(1)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        pieces = [message[:130], message[130:131], b"", message[131:]]
        data = frame(trade(0)) + frame(pieces[0], TEXT, fin=False) + frame(b"now", PING)
        data += frame(pieces[1], 0, fin=False) + frame(pieces[2], 0, fin=False) + frame(pieces[3], 0)
        data += frame(b"", TEXT, fin=False) + frame(trade(2), 0) + frame(trade(3))
        peer.writer.write(data)
        assert await peer.expect(PONG) == b"now"
        slowly = frame(trade(4)[:100], TEXT, fin=False) + frame(trade(4)[100:], 0)
        for at in range(len(slowly)):
            peer.writer.write(slowly[at : at + 1])
            await peer.writer.drain()
            await asyncio.sleep(0)
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(5) == [0, 1, 2, 3, 4]
            assert link.story == "Connected Batch"

    run(test)


def test_a_ping_behind_messages_does_not_hold_them_back() -> None:
    """Messages that share a read with a ping at its end are handed over at once, and the ping is answered in kind."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.write(frame(trade(0)) + frame(b"1784000000123", PING))
        assert await peer.expect(PONG) == b"1784000000123"
        peer.writer.write(frame(b"", PING) + frame(trade(1)) + frame(b"x" * 125, PING))
        assert await peer.expect(PONG) == b""
        assert await peer.expect(PONG) == b"x" * 125
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(2) == [0, 1]

    run(test)


def test_a_pong_behind_messages_does_not_hold_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the answer to our own ping."""
    monkeypatch.setattr(feed_module, "PING_AFTER_IDLE_S", 0.5)
    monkeypatch.setattr(feed_module, "PONG_WITHIN_S", 0.5)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        payload = await peer.expect(PING)
        peer.writer.write(frame(trade(0)) + frame(payload, PONG))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(1) == [0]

    run(test)


def test_odd_payloads_are_handed_on() -> None:
    """What is no message of ours comes out with its bytes and what it was taken for, and the feed goes on."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(trade(0), b'{"stream":"x","data":{"e":"24hrTicker"}}', b"\xff\xfe", b"", b"[" * 70_000, trade(1))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(2) == [0, 1]
            await link.until(Odd, 4)
            odd = [(item.payload[:20], type(item.notice)) for item in link.found(Odd)]
            assert sorted(odd, key=lambda item: item[0]) == [
                (b"", Refused),
                (b"[" * 20, Refused),
                (b'{"stream":"x","data"', UnknownEvent),
                (b"\xff\xfe", Refused),
            ]

    run(test)


# --- Subscribing ---------------------------------------------------------------------------------------------------


def test_many_streams_are_asked_for_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection asks for all its streams, in messages small enough, each with its own number."""
    monkeypatch.setattr(feed_module, "SUBSCRIBE_INTERVAL_S", 0.01)
    names = [f"symbol{number}usdt@trade" for number in range(199)]
    asked: list[str] = []

    async def script(peer: Peer, _: int) -> None:
        await peer.accept()
        for number in (1, 2):
            request = json.loads(await peer.expect(TEXT))
            assert (request["method"], request["id"]) == ("SUBSCRIBE", number)
            asked.extend(request["params"])
            peer.send(b'{"result":null,"id":%d}' % number)
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, names) as link:
            await link.until(Connected)
            assert asked == names

    run(test)


@pytest.mark.parametrize(
    "answer",
    [b'{"error":{"code":2,"msg":"Invalid request"},"id":1}', b'{"code":2,"msg":"Invalid request","id":1}'],
    ids=["wrapped", "bare"],
)
def test_refused_subscription(answer: bytes) -> None:
    """An error in answer to SUBSCRIBE names the streams it was for, and the connection goes on."""

    async def script(peer: Peer, _: int) -> None:
        await peer.accept()
        await peer.expect(TEXT)
        peer.send(answer, trade(0))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            refused = await link.until(SubscriptionRefused)
            assert list(refused.streams) == ["btcusdt@trade"]
            assert refused.error == ControlError(2, "Invalid request", 1)
            await link.until_rows(1)
            assert not link.found(Disconnected)

    run(test)


def test_one_refused_stream_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error for several names is narrowed down to the one it is for; that one is told once and asked for again."""
    monkeypatch.setattr(feed_module, "SUBSCRIBE_INTERVAL_S", 0.001)
    monkeypatch.setattr(feed_module, "REFUSED_AGAIN_S", 0.05)
    names = [f"symbol{number}usdt@trade" for number in range(8)]
    bad = names[5]

    async def script(peer: Peer, _: int) -> None:
        await peer.accept()
        refusals = 0
        while True:
            request = json.loads(await peer.expect(TEXT))
            is_bad = bad in request["params"] and refusals < 7
            refusals += is_bad
            refused = b'{"error":{"code":2,"msg":"Invalid request"},"id":%d}' % request["id"]
            peer.send(refused if is_bad else b'{"result":null,"id":%d}' % request["id"])

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, names) as link:
            refused = await link.until(SubscriptionRefused)
            assert list(refused.streams) == [bad]
            since = {name: link.state.acknowledged_at_s(name) for name in names}
            assert {name for name, at_s in since.items() if at_s is None} == {bad}
            accepted = await link.until(SubscriptionAccepted)
            assert list(accepted.streams) == [bad]
            assert link.state.acknowledged_at_s(bad) is not None
            assert len(link.found(SubscriptionRefused)) == 1, "told once"
            assert not link.found(Disconnected)

    run(test)


def test_answers_to_nothing_are_told_once_and_kept() -> None:
    """A flood of errors or acknowledgements that answer nothing of ours is one line, and the rest in quarantine."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(*[b'{"code":3,"msg":"Invalid JSON","id":null}'] * 50, *[b'{"result":null,"id":77}'] * 50, trade(0))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until_rows(1)
            await link.until(Odd, 99)
            assert [list(item.streams) for item in link.found(SubscriptionRefused)] == [[]]
            assert {item.notice for item in link.found(Odd)} == {
                Refused("an answer to nothing that was asked: Acknowledged(id=77)"),
                Refused("an answer to nothing that was asked: ControlError(code=3, message='Invalid JSON', id=None)"),
            }

    run(test)


def test_a_subscription_is_acknowledged_from_the_answer_to_the_end() -> None:
    """Before the exchange has answered and after the connection has ended nobody may call a stream subscribed."""

    async def script(peer: Peer, number: int) -> None:
        await peer.accept()
        request = json.loads(await peer.expect(TEXT))
        peer.send(trade(number))
        await answer[number].wait()
        peer.send(b'{"result":null,"id":%d}' % request["id"])
        await cut.wait()
        cut.clear()
        peer.reset()

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until_rows(1)
            assert link.state.received_ns > 0
            assert link.state.acknowledged_at_s("btcusdt@trade") is None, "data is no answer"
            answer[0].set()
            await until(lambda: link.state.acknowledged_at_s("btcusdt@trade") is not None)
            assert link.state.acknowledged_at_s("ethusdt@trade") is None
            cut.set()
            await link.until(Disconnected)
            assert link.state.acknowledged_at_s("btcusdt@trade") is None
            await link.until_rows(2)
            assert link.state.acknowledged_at_s("btcusdt@trade") is None

    answer, cut = [asyncio.Event(), asyncio.Event()], asyncio.Event()
    run(test)


def test_data_is_worth_more_than_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows come and an answer does not, it is told, and the connection is kept; a late answer counts."""
    monkeypatch.setattr(feed_module, "SUBSCRIBE_INTERVAL_S", 0.001)
    names = ["btcusdt@trade", *(f"symbol{number}usdt@trade" for number in range(150))]

    async def script(peer: Peer, _: int) -> None:
        await peer.accept()
        await peer.expect(TEXT)
        await peer.expect(TEXT)
        peer.send(trade(0))
        await seen.wait()
        peer.send(b'{"result":null,"id":1}')
        await told.wait()
        peer.send(b'{"result":null,"id":2}', trade(1))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, names) as link:
            await link.until_rows(1)
            monkeypatch.setattr(feed_module, "ACKNOWLEDGED_WITHIN_S", 0.05)  # from the next answer on
            seen.set()
            assert list((await link.until(Unacknowledged)).streams) == names[100:]
            assert link.state.acknowledged_at_s(names[0]) is not None
            assert link.state.acknowledged_at_s(names[100]) is None
            told.set()
            await link.until_rows(2)
            assert link.state.acknowledged_at_s(names[100]) is not None
            assert not link.found(Disconnected)

    seen, told = asyncio.Event(), asyncio.Event()
    run(test)


def test_unanswered_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that does not answer SUBSCRIBE, or answers another one, is left and tried again after a while."""
    monkeypatch.setattr(feed_module, "ACKNOWLEDGED_WITHIN_S", 0.05)

    async def script(peer: Peer, _: int) -> None:
        await peer.accept()
        await peer.expect(TEXT)
        peer.send(b'{"result":null,"id":99}', b'{"result":null,"id":null}', b'{"result":null,"id":[1]}')
        await peer.expect(CLOSE)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert "did not answer SUBSCRIBE" in end.reason
            assert end.opened
            assert end.retry_in_s >= 10

    run(test)


# --- How connections end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [0, 1, 2, 7])
@pytest.mark.parametrize("how", ["reset", "fin"])
def test_cut_in_the_middle_of_a_frame(whole: int, how: str) -> None:
    """Whole messages before the cut are handed over, half a one is not, and the link is made again."""

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        if number == 0:
            peer.writer.write(b"".join(frame(trade(each)) for each in range(whole)) + frame(trade(whole))[:-1])
            await peer.writer.drain()
            await received.wait()
            if how == "reset":
                peer.reset()
        else:
            peer.send(*(trade(each) for each in range(whole, whole + 3)))
            await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until(Connected)
            assert await link.until_rows(whole) == list(range(whole))
            received.set()
            end = await link.until(Disconnected)
            assert end.opened
            assert not end.urgent
            assert "without a close frame" in end.reason
            assert await link.until_rows(whole + 3) == list(range(whole + 3))
            assert link.state.connections == 2

    received = asyncio.Event()
    run(test)


@pytest.mark.parametrize(
    ("close", "said", "least_s"),
    [
        (struct.pack("!H", 1000), "code 1000", 0),
        (struct.pack("!H", 1001) + b"going away", "code 1001: going away", 0),
        (struct.pack("!H", 1008) + b"Too many requests", "code 1008: Too many requests", 10),
        (struct.pack("!H", 1011), "code 1011", 0),
        (struct.pack("!H", 1012) + b"restart", "code 1012: restart", 0),
        (struct.pack("!H", 4000) + "Verbindung läuft ab".encode(), "code 4000: Verbindung läuft ab", 0),
        (b"", "closed the connection", 0),
        (struct.pack("!H", 999), "broke the websocket protocol", 10),
        (b"\x03", "broke the websocket protocol", 10),
        (struct.pack("!H", 1000) + b"\xff", "broke the websocket protocol", 10),
    ],
)
def test_close_codes(close: bytes, said: str, least_s: float) -> None:
    """Every close is told with its code and reason, what came before it counts, and 1008 asks for more patience."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.write(frame(trade(0)) + frame(close, CLOSE))
        await peer.expect(CLOSE)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert said in end.reason
            assert end.opened
            assert end.retry_in_s >= least_s
            assert least_s or end.retry_in_s < 1
            assert link.ids == [0]
            assert not link.state.connected

    run(test)


@pytest.mark.parametrize(
    "bad",
    [
        head(5 * 1024 * 1024) + b"x" * 100,
        b"\x83\x00",
        b"\x09\x00",
        b"\x81\x85\x00\x00\x00\x00hello",
        b"\x89\x7e\x00\x80" + b"x" * 128,
        b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
    ids=["too large", "reserved opcode", "fragmented ping", "masked", "large ping", "length 2**64"],
)
def test_broken_protocol(bad: bytes) -> None:
    """Bytes that are no websocket end the connection with a reason and some patience; what came before them counts."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.write(frame(trade(0)) + frame(trade(1)) + frame(trade(2)) + bad)
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert "broke the websocket protocol" in end.reason
            assert end.retry_in_s >= 10
            assert link.ids == [0, 1, 2]

    run(test)


@pytest.mark.parametrize(
    "parts",
    [
        [frame(trade(3)[:60], TEXT, fin=False), frame(trade(4))],
        [frame(b"", TEXT, fin=False), frame(trade(4)[:60], TEXT, fin=False)],
        [frame(trade(3)[:60], 0, fin=False)],
        [frame(trade(3)[:60], 0)],
    ],
    ids=["a message inside another", "two beginnings", "no beginning", "only an end"],
)
def test_parts_of_messages_that_do_not_follow_each_other(parts: list[bytes]) -> None:
    """Half a message is never thrown away in silence: the connection ends with a reason, what is whole counts."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.write(frame(trade(0)) + b"".join(parts))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert "broke the websocket protocol" in end.reason
            assert link.ids == [0]

    run(test)


def test_half_messages_of_all_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of messages on many connections pass one limit together; what ends gives its part back."""
    monkeypatch.setattr(feed_module, "FRAGMENTS_BYTES", 10_000)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        if number < 4:
            peer.writer.write(frame(b"x" * 3000, TEXT, fin=False))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, AsyncExitStack() as stack:
            inbox = Inbox(1000)
            links = [await stack.enter_async_context(watch(server.url, inbox=inbox)) for _ in range(4)]
            end = await links[0].until(Disconnected)
            assert "in part only" in end.reason
            assert inbox.fragments_bytes == 9000
            for link in links:
                if link.state.current is not None:
                    link.state.current.drop("enough")
            await links[0].until(Disconnected, 4)
            assert inbox.fragments_bytes == 0

    run(test)


def test_pings_whose_answers_nobody_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends pings without end and reads nothing is left, before the answers fill the memory."""
    monkeypatch.setattr(feed_module, "UNANSWERED_BYTES", 1000)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # its own class has it
        while not peer.writer.transport.is_closing():
            peer.writer.write(frame(b"x" * 125, PING) * 1000)
            await peer.writer.drain()

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert "does not take the answers" in (await link.until(Disconnected)).reason

    run(test)


def test_endless_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message whose fragments never end is given up at the limit of one message."""
    monkeypatch.setattr(feed_module, "MAX_FRAME_BYTES", 4096)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.write(frame(b"x" * 1000, TEXT, fin=False))
        for _ in range(20):
            peer.writer.write(frame(b"x" * 1000, 0, fin=False))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert "larger than 4096 bytes" in (await link.until(Disconnected)).reason

    run(test)


def test_half_open_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that no longer answers pings is left, and the reason says so."""
    monkeypatch.setattr(feed_module, "PING_AFTER_IDLE_S", 0.05)
    monkeypatch.setattr(feed_module, "PONG_WITHIN_S", 0.05)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        peer.send(trade(number))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert "no answer to ping" in (await link.until(Disconnected)).reason
            assert await link.until_rows(2) == [0, 1]

    run(test)


def test_quiet_market_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that sends nothing but answers pings is kept."""
    monkeypatch.setattr(feed_module, "PING_AFTER_IDLE_S", 0.2)
    monkeypatch.setattr(feed_module, "PONG_WITHIN_S", 0.2)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        for _ in range(5):
            peer.writer.write(frame(await peer.expect(PING), PONG))
        peer.send(trade(0))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until_rows(1)
            assert link.story == "Connected Batch"

    run(test)


def test_dropping_it_ourselves() -> None:
    """A connection dropped for a reason ends with that reason, and a new one is made."""

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        peer.send(trade(number))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until_rows(1)
            assert link.state.current is not None
            link.state.current.drop("it stayed silent")
            assert (await link.until(Disconnected)).reason == "it stayed silent"
            await link.until_rows(2)

    run(test)


def test_stopping_closes_the_connection() -> None:
    """Cancelling ends the connection with a close frame."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(trade(0))
        assert await peer.expect(CLOSE)
        closed.set()

    async def test() -> None:
        async with exchange(script) as server:
            async with watch(server.url) as link:
                await link.until_rows(1)
            await closed.wait()
            assert link.state.current is None

    closed = asyncio.Event()
    run(test)


# --- Renewal -------------------------------------------------------------------------------------------------------

SHUTDOWN = b'{"e":"serverShutdown","E":1784000000123}'


@pytest.mark.parametrize(
    "notice", [SHUTDOWN, b'{"stream":"!serverShutdown","data":%b}' % SHUTDOWN], ids=["raw", "combined"]
)
def test_server_shutdown(notice: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On `serverShutdown` the new connection is there before the old one goes, and nothing is missed between them."""
    monkeypatch.setattr(feed_module, "OVERLAP_S", 0.5)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        if number == 0:
            peer.send(trade(0), notice, trade(1))
            await overlap.wait()
            for _ in range(5):
                peer.writer.write(frame(b"", PING))
                await peer.expect(PONG)
            peer.send(trade(2), trade(4))
            await peer.expect(CLOSE)
        else:
            peer.send(trade(2), trade(3))
            await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            renewing = await link.until(Renewing)
            assert "shuts down" in renewing.reason
            await link.until_rows(4)
            overlap.set()
            await link.until(Renewed)
            assert not link.found(Disconnected)
            assert sorted(set(link.ids)) == [0, 1, 2, 3, 4]
            by_connection = {batch.connection for batch in link.found(Batch)}
            assert len(by_connection) == 2
            assert link.state.connected
            assert len(server.peers) == 2

    overlap = asyncio.Event()
    run(test)


def test_renewal_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is replaced when it has reached the age that was asked for, even if the market is quiet."""
    monkeypatch.setattr(feed_module, "OVERLAP_S", 0.01)
    monkeypatch.setattr(feed_module, "FIRST_DATA_WITHIN_S", 0.05)
    ages = iter([0.05])

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        await stay(peer)

    async def test() -> None:
        async with (
            exchange(script) as server,
            watch(server.url, renew_in_s=lambda: next(ages, 3600.0)) as link,
        ):
            await link.until(Renewed)
            assert link.story == "Connected Renewing Connected Renewed"
            assert link.state.connected
            assert link.state.current is not None

    run(test)


@pytest.mark.parametrize("how", ["refused", "silent", "closed"])
def test_failed_renewal_keeps_the_old_connection(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new connection cannot be made the old one goes on delivering, and can still be dropped."""
    monkeypatch.setattr(feed_module, "SUBSCRIBED_WITHIN_S", 0.1)

    async def fail(peer: Peer) -> None:
        if how == "refused":
            peer.writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            await peer.writer.drain()
        else:
            await peer.accept()
            await peer.expect(CLOSE if how == "silent" else TEXT)

    async def script(peer: Peer, number: int) -> None:
        if number == 1:
            try:
                await fail(peer)
            finally:
                refused.set()
            return
        await peer.subscribed()
        peer.send(trade(0), SHUTDOWN)
        await refused.wait()
        peer.send(trade(1))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(2) == [0, 1]
            assert not link.found(Disconnected)
            assert not link.found(Renewed)
            old = link.found(Batch)[0].connection
            await until(lambda: link.state.current is not None and link.state.current.number == old)
            assert link.state.current is not None
            link.state.current.drop("enough")
            assert (await link.until(Disconnected)).reason == "enough"

    refused = asyncio.Event()
    run(test)


@pytest.mark.parametrize("how", ["let in and dropped", "refused"])
def test_a_worse_connection_replaces_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new connection that is let in and dropped, or is refused what the old one has, does not end the old one."""
    monkeypatch.setattr(feed_module, "OVERLAP_S", 60.0)
    monkeypatch.setattr(feed_module, "FIRST_DATA_WITHIN_S", 0.01 if how == "refused" else 60.0)

    async def script(peer: Peer, number: int) -> None:
        if number == 1 and how == "refused":
            await peer.accept()
            await peer.expect(TEXT)
            peer.send(b'{"error":{"code":2,"msg":"Invalid request"},"id":1}')
            await peer.expect(CLOSE)
            return
        await peer.subscribed()
        if number == 1:
            peer.send(trade(0))
            await peer.writer.drain()
            return
        peer.send(trade(0), SHUTDOWN)
        await failed.wait()
        peer.send(trade(1))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            failure = await link.until(RenewalFailed)
            assert ("without a close frame" if how != "refused" else "refused") in failure.reason
            failed.set()
            while 1 not in link.ids:
                await link.more()
            assert not link.found(Renewed)
            assert not link.found(Disconnected)
            assert link.state.connected
            assert link.state.acknowledged_at_s("btcusdt@trade") is not None

    failed = asyncio.Event()
    run(test)


def test_stopping_during_a_renewal() -> None:
    """Cancelling while two connections are open closes both."""

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        peer.send(trade(number), *([SHUTDOWN] if number == 0 else []))
        await peer.expect(CLOSE)
        closed.release()

    async def test() -> None:
        async with exchange(script) as server:
            async with watch(server.url) as link:
                await link.until_rows(2)
            await closed.acquire()
            await closed.acquire()

    closed = asyncio.Semaphore(0)
    run(test)


def test_servers_that_always_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange whose every connection announces its end at once is not stormed with new ones."""
    monkeypatch.setattr(feed_module, "OVERLAP_S", 0.2)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(SHUTDOWN, trade(0))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until(Renewed, 2)
            assert len(server.peers) <= 4, "at most one attempt an overlap"

    run(test)


# --- Patience ------------------------------------------------------------------------------------------------------


def test_waits_grow_until_data_comes() -> None:
    """Connections that bring nothing make the waits longer up to a minute; one message makes them short again."""

    async def script(peer: Peer, number: int) -> None:
        if number in {9, 11}:
            await peer.subscribed()
            peer.send(trade(number))
            await peer.writer.drain()
        elif number % 2:
            await peer.accept()  # accepted, and closed at once
        else:
            await peer.subscribed()  # acknowledged, and closed without data

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until(Disconnected, 12)
            doubling = [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
            assert [high for _, high in link.waits[:12]] == [*doubling, 0.5, 1, 0.5]
            assert all(low == high / 2 for low, high in link.waits)
            ends = link.found(Disconnected)
            assert [end.retry_in_s for end in ends] == [high / 1000 for _, high in link.waits[: len(ends)]]

    run(test)


def test_nonsense_is_no_data() -> None:
    """Connections that bring long texts but no message do not make the waits short again."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(b'{"error":{"code":2,"msg":"%b"},"id":null}' % (b"x" * 200), b"<html>" + b"x" * 500)
        await peer.writer.drain()

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until(Disconnected, 5)
            assert [high for _, high in link.waits[:5]] == [0.5, 1, 2, 4, 8]

    run(test)


def test_backoff_is_spread_and_bounded() -> None:
    """The waits are spread by the chance that was given and end at a minute."""
    delays = backoff(lambda low, high: (low + high) / 2)
    assert [next(delays) for _ in range(10)] == [0.375, 0.75, 1.5, 3, 6, 12, 24, 45, 45, 45]


@pytest.mark.parametrize(
    ("status", "headers", "asked_s", "words", "urgent"),
    [
        (403, "", 300, "firewall", True),
        (418, "", 120, "banned", True),
        (418, "Retry-After: 4000\r\n", 4000, "banned", True),
        (429, "", 60, "limit", True),
        (429, "Retry-After: 3\r\n", 3, "limit", True),
        (429, "Retry-After: 77\r\n", 77, "limit", True),
        (429, "Retry-After: \xb2\r\n", 60, "limit", True),
        (429, "Retry-After: Wed, 21 Oct 2015 99999999999999999999:28:00 GMT\r\n", 60, "limit", True),
        (451, "", 300, "country", True),
        (500, "", 0, "trouble", False),
        (502, "", 0, "trouble", False),
        (503, "Retry-After: 7\r\n", 7, "trouble", False),
        (302, "Location: ws://127.0.0.1:9/elsewhere\r\n", 60, "not an answer", True),
        (301, "Location: http://169.254.169.254/\r\n", 60, "not an answer", True),
        (404, "", 60, "refuses", True),
        (400, "", 60, "refuses", True),
        (200, "", 60, "not an answer", True),
    ],
)
def test_refused_handshakes(status: int, headers: str, asked_s: float, words: str, *, urgent: bool) -> None:
    """Each status at the handshake is told by its meaning, and waits as long as the exchange asks; none redirects."""

    async def script(peer: Peer, _: int) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        phrase = HTTPStatus(status).phrase
        body = b'{"code":0,"msg":"Service unavailable from a restricted location"}'
        peer.writer.write(f"HTTP/1.1 {status} {phrase}\r\n{headers}".encode("latin-1"))
        peer.writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await peer.writer.drain()

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert f"HTTP {status}" in end.reason
            assert words in end.reason
            assert asked_s <= end.retry_in_s <= asked_s * (1 + feed_module.WAIT_SPREAD) + 0.5
            assert end.urgent is urgent
            assert not end.opened
            assert end.remedy[0].isupper()
            assert link.story == "Disconnected"
            assert link.state.connections == 0

    run(test)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"HTTP/1.1 999 What\r\n\r\n",
        b"HTTP/1.1 abc What\r\n\r\n",
        b"HTTP/1.0 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"x" * 300_000,
    ],
    ids=lambda answer: answer[:30].decode("latin-1"),
)
def test_nonsense_in_answer_to_the_handshake(answer: bytes) -> None:
    """Whatever answers instead of a websocket, the link says in a line that it could not be made, and tries again."""

    async def script(peer: Peer, _: int) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(answer)
        await peer.writer.drain()

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert not end.opened
            assert "127.0.0.1" in end.reason
            assert "\n" not in end.reason
            assert len(end.reason) < 500

    run(test)


HANDSHAKES = [
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: ws://[::1]:99/a?b#c\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 120\r\nContent-Length: 5\r\n\r\nhello",
]
OF_PROXIES = {
    "http": [b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"],
    "socks5h": [b"\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50", b"\x05\x00\x05\x05\x00\x03\x02ab\x00\x50"],
}
NASTY = [b"", b"\x00", b"\xff", b"\xc2\xb2", b"\r\n", b"\r\n\r\n", b":", b" ", b"9" * 5000, b"-1", b"\x05", b"HTTP/1.1"]


def mutated(text: bytes, chance: random.Random) -> bytes:
    """Return `text` with some bytes replaced, left out or added."""
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice([*NASTY, chance.randbytes(2)]) + text[at + chance.randrange(3) :]
    return text


@pytest.mark.parametrize("scheme", ["", *OF_PROXIES])
def test_any_answer_to_the_handshake_is_told(scheme: str) -> None:
    """Whatever bytes a server or a proxy answers with, the link says in one line that it has none, and lives."""
    chance = random.Random(f"handshake {scheme}")

    answer = b""

    async def script(peer: Peer, _: int) -> None:
        split = 2 if scheme == "socks5h" else chance.randrange(len(answer) + 1)
        await peer.reader.read(1000)
        peer.writer.write(answer[:split])
        await peer.writer.drain()
        if scheme == "socks5h":
            await peer.reader.read(1000)
        peer.writer.write(answer[split:])
        await peer.writer.drain()

    async def test() -> None:
        nonlocal answer
        async with exchange(script) as server:
            for _ in range(150):
                answer = mutated(chance.choice(OF_PROXIES.get(scheme, HANDSHAKES)), chance)
                proxy = server.url.replace("ws:", f"{scheme}:") if scheme else None
                async with watch(server.url if proxy is None else "ws://exchange.invalid:9443", proxy=proxy) as link:
                    end = await link.until(Disconnected)
                    assert not end.opened, answer
                    assert end.reason.isprintable(), answer
                    assert len(end.reason) < 500, answer

    run(test, timeout_s=60)


def test_any_frames_are_told_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever frames follow, what came before them counts, and the link lives until the next good connection."""
    monkeypatch.setattr(feed_module, "TOO_MANY_WAIT_S", 0.0)
    monkeypatch.setattr(feed_module, "ATTEMPTS_AT_EASE", 10**6)
    chance = random.Random("frames")
    total = 150

    def any_frame() -> bytes:
        payload = chance.choice(
            [b"", b"{}", trade(999)[:-1], chance.randbytes(130), b"x" * 200, b"\x03\xe8\xff", trade(999)]
        )
        whole = (
            head(len(payload), chance.choice([0, 1, 2, 3, 8, 9, 10, 11, 15]), chance.choice([0x80, 0, 0xC0, 0x90]))
            + payload
        )
        return mutated(whole, chance) if chance.random() < 0.5 else whole

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        bad = b"".join(any_frame() for _ in range(chance.randrange(1, 6)))
        peer.writer.write(frame(trade(number)))
        await peer.writer.drain()
        await until(lambda: number in seen)
        if number < total:
            peer.writer.write(bad)
            await peer.writer.drain()
        else:
            await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            while total not in seen:
                await link.more()
                seen.update(link.ids)
            assert seen.issuperset(range(total + 1))
            assert len(link.found(Disconnected)) == total
            assert all(end.opened and end.reason.isprintable() for end in link.found(Disconnected))

    seen: set[int] = set()
    run(test, timeout_s=60)


class Surprising(Decoder):
    """Fails at its first payload as no decoder should."""

    failed = False

    def message(self, payload: bytes) -> Message | Notice:
        """Fail, then decode."""
        if not self.failed:
            self.failed = True
            raise ZeroDivisionError("nobody\nforesaw this")
        return super().message(payload)


def test_what_nobody_foresaw_is_told_and_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of any kind, while connecting or in a callback, is an end with its type, and not of the program."""
    connect, failures = picows.ws_connect, iter([KeyError("surprise"), MemoryError()])

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if (error := next(failures, None)) is not None:
            raise error
        return await connect(*args, **kwargs)

    monkeypatch.setattr(feed_module, "ws_connect", failing)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        peer.send(trade(number))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server:
            decoder = Surprising(MARKETS["binance"])
            async with watch(server.url, decoder=decoder) as link:
                ends = [await link.until(Disconnected, number) for number in (1, 2, 3)]
                assert [end.opened for end in ends] == [False, False, True]
                assert "KeyError: 'surprise' (test_feed.py:" in ends[0].reason
                assert "MemoryError" in ends[1].reason
                assert "ZeroDivisionError: nobody foresaw this" in ends[2].reason
                assert all(end.urgent and "report" in end.remedy for end in ends)
                assert await link.until_rows(1)

    run(test)


def test_a_connection_cancelled_by_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that we did not ask for ends a connection, not the link."""
    connect, failures = picows.ws_connect, iter([asyncio.CancelledError()])

    async def failing(*args: Any, **kwargs: Any) -> Any:
        if (error := next(failures, None)) is not None:
            raise error
        return await connect(*args, **kwargs)

    monkeypatch.setattr(feed_module, "ws_connect", failing)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(trade(0))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert "inside this program" in (await link.until(Disconnected)).reason
            assert await link.until_rows(1)

    run(test)


def test_handshake_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing is given up after a while."""
    monkeypatch.setattr(feed_module, "HANDSHAKE_TIMEOUT_S", 0.05)

    async def script(peer: Peer, _: int) -> None:
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            end = await link.until(Disconnected, 2)
            assert "does not answer" in end.reason
            assert not end.opened

    run(test)


def test_host_that_swallows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even TCP or TLS comes about, the attempt ends long before the kernel gives up."""
    monkeypatch.setattr(feed_module, "CONNECTED_WITHIN_S", 0.05)

    async def script(peer: Peer, _: int) -> None:
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url.replace("ws:", "wss:")) as link:
            assert "does not answer" in (await link.until(Disconnected)).reason

    run(test)


def test_a_connection_that_is_ready_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the time is up just as the handshake is done, nothing stays open that nobody would look after."""
    connect, failures = picows.ws_connect, iter([TimeoutError()])

    async def late(*args: Any, **kwargs: Any) -> Any:
        found = await connect(*args, **kwargs)
        if (error := next(failures, None)) is not None:
            raise error
        return found

    monkeypatch.setattr(feed_module, "ws_connect", late)

    async def script(peer: Peer, number: int) -> None:
        if number == 0:
            await peer.accept()
            await peer.expect(CLOSE)
            closed.set()
        else:
            await peer.subscribed()
            peer.send(trade(0))
            await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert "does not answer" in (await link.until(Disconnected)).reason
            await closed.wait()
            await link.until_rows(1)
            assert len(link.state.open) == 1

    closed = asyncio.Event()
    run(test)


def test_connection_refused() -> None:
    """A port where nobody listens is told as such."""

    async def test() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            async with watch(f"ws://127.0.0.1:{unused.getsockname()[1]}") as link:
                end = await link.until(Disconnected)
                assert "cannot be reached" in end.reason
                assert "refused" in end.reason.lower()
                assert not end.opened
                await link.until(Disconnected, 3)
                assert [high for _, high in link.waits[:3]] == [0.5, 1, 2]

    run(test)


def test_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve is told as such, and is no attempt that the exchange would count."""
    monkeypatch.setattr(feed_module, "ATTEMPTS_AT_EASE", 1)
    monkeypatch.setattr(feed_module, "ATTEMPT_INTERVAL_S", 1000.0)

    async def test() -> None:
        async with watch("wss://no-such-host.invalid") as link:
            end = await link.until(Disconnected, 3)
            assert "no-such-host.invalid" in end.reason
            assert "DNS" in end.remedy
            assert not end.opened

    run(test)


@pytest.mark.parametrize("url", ["wss://" + "a" * 70 + ".example", "wss://" + "a." * 200 + "example"])
def test_host_that_is_no_name(url: str) -> None:
    """A host name that no DNS could hold is one more that cannot be reached, not an end of everything."""

    async def test() -> None:
        async with watch(url) as link:
            assert not (await link.until(Disconnected)).opened

    run(test)


# --- TLS and proxies -----------------------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Make a throw-away certificate for 127.0.0.1 that nobody has signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is not installed")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
            "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


def test_certificate_not_trusted(tmp_path: Path) -> None:
    """A certificate that is not trusted is said at once to be just that, and never accepted."""
    tls, _ = certificate(tmp_path)

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()

    async def test() -> None:
        async with exchange(script, tls) as server, watch(server.url) as link:
            end = await link.until(Disconnected)
            assert "certificate" in end.reason
            assert "not trusted" in end.reason
            assert end.urgent
            assert end.retry_in_s >= 60
            assert link.state.connections == 0

    run(test)


def test_trusted_certificate(tmp_path: Path) -> None:
    """Over TLS everything comes as without it, and a close frame and a cut end it likewise."""
    tls, cert = certificate(tmp_path)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        peer.send(*(trade(each) for each in range(number * 5, number * 5 + 5)))
        if number == 0:
            peer.writer.write(frame(struct.pack("!H", 1001), CLOSE))
            await peer.expect(CLOSE)
        else:
            await stay(peer)

    async def test() -> None:
        context = ssl.create_default_context(cafile=cert)
        async with exchange(script, tls) as server, watch(server.url, ssl_context=context) as link:
            assert await link.until_rows(10) == list(range(10))
            assert "code 1001" in link.found(Disconnected)[0].reason

    run(test)


@pytest.mark.parametrize(
    "junk", [b"x" * 300, b"\x17\x03\x03\x00\x20" + b"x" * 32, b"\x15\x03\x03\x00\x02\x02\x28", b""]
)
def test_what_breaks_the_encryption_ends_the_connection(junk: bytes, tmp_path: Path) -> None:
    """Bytes below TLS that are none, records that were altered, alerts and a bare end are an end with a reason."""
    tls, cert = certificate(tmp_path)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        peer.send(trade(number))
        await peer.writer.drain()
        if number == 0:
            raw = peer.writer.get_extra_info("socket")
            os.write(raw.fileno(), junk)
            raw.shutdown(socket.SHUT_WR)
        await stay(peer)

    async def test() -> None:
        context = ssl.create_default_context(cafile=cert)
        async with exchange(script, tls) as server, watch(server.url, ssl_context=context) as link:
            end = await link.until(Disconnected)
            while 1 not in link.ids:
                await link.more()
            assert end.opened
            assert end.reason.isprintable()

    run(test)


def test_tls_where_none_is_spoken() -> None:
    """A server without TLS behind a wss address cannot be reached, and the link says so."""

    async def script(peer: Peer, _: int) -> None:
        await peer.reader.read(1000)
        peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def test() -> None:
        async with exchange(script) as server, watch(server.url.replace("ws:", "wss:")) as link:
            end = await link.until(Disconnected)
            assert "cannot be reached" in end.reason
            assert not end.opened

    run(test)


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy"])
def test_proxies_of_the_environment_are_ignored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a proxy that was configured is used."""
    for variable in (name, name.upper()):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(trade(0))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            assert await link.until_rows(1) == [0]

    run(test)


def test_configured_proxy() -> None:
    """A configured HTTP proxy carries the connection."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(trade(0))
        await stay(peer)

    async def proxy(peer: Peer, _: int) -> None:
        request = await peer.reader.readuntil(b"\r\n\r\n")
        method, target = request.split(b" ")[:2]
        assert method == b"CONNECT"
        host, port = target.decode().split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        peer.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        onward = asyncio.ensure_future(pipe(peer.reader, writer))
        try:
            await pipe(reader, peer.writer)
        finally:
            onward.cancel()
            writer.close()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def test() -> None:
        async with (
            exchange(proxy) as way,
            exchange(script) as server,
            watch(server.url, proxy=way.url.replace("ws:", "http:")) as link,
        ):
            assert await link.until_rows(1) == [0]
            assert len(way.peers) == 1

    run(test)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_socks_proxy_resolves_the_name(scheme: str) -> None:
    """With either spelling of SOCKS 5 the connection goes through the proxy, which is given the name (RFC 1928, 4)."""
    server_url = ""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.send(trade(0))
        await stay(peer)

    async def proxy(peer: Peer, _: int) -> None:
        version, methods = await peer.reader.readexactly(2)
        assert version == 5
        await peer.reader.readexactly(methods)
        peer.writer.write(b"\x05\x00")
        asked = await peer.reader.readexactly(5)
        assert asked[:4] == b"\x05\x01\x00\x03", "CONNECT to a name"
        assert (await peer.reader.readexactly(asked[4] + 2))[:-2] == b"exchange.invalid"
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server_url.rpartition(":")[2]))
        peer.writer.write(b"\x05\x00\x00\x01" + bytes(6))
        onward = asyncio.ensure_future(pipe(peer.reader, writer))
        try:
            await pipe(reader, peer.writer)
        finally:
            onward.cancel()
            writer.close()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def test() -> None:
        nonlocal server_url
        async with exchange(script) as server, exchange(proxy) as way:
            server_url = server.url
            async with watch("ws://exchange.invalid", proxy=way.url.replace("ws:", f"{scheme}:")) as link:
                assert await link.until_rows(1) == [0]

    run(test)


@pytest.mark.parametrize(
    ("configured", "used"),
    [
        (None, None),
        ("socks5h://user:p%40ss@host", "socks5://user:p%40ss@host:1080"),
        ("socks5://host:9050", "socks5://host:9050"),
        ("socks5h://[::1]:", "socks5://[::1]:1080"),
        ("http://user:pw@host:3128", "http://user:pw@host:3128"),
        ("https://host", "https://host"),
        ("http://user:pw@host/path?query#fragment", "http://user:pw@host"),
    ],
)
def test_proxy_as_the_library_wants_it(configured: str | None, used: str | None) -> None:
    """Every proxy that the configuration takes is one for the websocket, too."""
    assert websocket_proxy(configured) == used


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
@pytest.mark.parametrize(
    ("host", "said"), [("127.0.0.1", "127.0.0.1"), ("no-such-proxy.invalid", "no-such-proxy.invalid")]
)
def test_proxy_that_is_not_there(scheme: str, host: str, said: str) -> None:
    """A proxy that cannot be reached is named, and not the exchange; its user and password are not."""

    async def test() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            proxy = f"{scheme}://user:s3cret@{host}:{unused.getsockname()[1]}"
            async with watch("ws://exchange.invalid", proxy=proxy) as link:
                end = await link.until(Disconnected)
                assert said in end.reason
                assert "PROXY" in end.reason + end.remedy
                assert "s3cret" not in end.reason + end.remedy

    run(test)


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"\x05\xff",
        b"nonsense\r\n\r\n",
        b"",
    ],
)
def test_proxy_that_refuses(scheme: str, answer: bytes) -> None:
    """A proxy that does not connect, whatever it answers, is a connection that could not be made."""

    async def script(peer: Peer, _: int) -> None:
        await peer.reader.read(1000)
        peer.writer.write(answer)
        await peer.writer.drain()

    async def test() -> None:
        async with (
            exchange(script) as way,
            watch("ws://127.0.0.1:9", proxy=way.url.replace("ws:", f"{scheme}:")) as link,
        ):
            end = await link.until(Disconnected)
            assert not end.opened

    run(test)


# --- The bounded queue ---------------------------------------------------------------------------------------------


LARGEST_READ = 8 * 2**20
"""What one read may bring: the kernel's own buffer, which grows under load, and the library's."""


def test_slow_writer_stops_the_reading_and_nothing_is_lost() -> None:
    """When the queue is full the reading stops; it goes on when there is room; every message arrives, in order."""
    total, limit = 200_000, 2_000

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        for start in range(0, total, 1000):
            peer.send(*(trade(number) for number in range(start, start + 1000)))
            await peer.writer.drain()
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, limit=limit) as link:
            seen: deque[int] = deque(maxlen=1)
            received = most = 0
            while received < total:
                items = await link.inbox.take()
                await asyncio.sleep(0)  # the writer's disk takes its time; the connections go on
                most = max(most, link.inbox.waiting)
                for batch in (item for item in items if isinstance(item, Batch)):
                    ids = [
                        row.t - FIRST_ID
                        for row in chain.from_iterable(batch.messages())
                        if isinstance(row, Trade | PlainTrade)
                    ]
                    assert ids == list(range(received, received + len(ids)))
                    received += len(ids)
                    seen.append(ids[-1])
                link.inbox.done()
            assert link.inbox.pauses > 5
            assert most <= limit + LARGEST_READ // len(frame(trade(0)))
            assert not link.found(Disconnected)
            assert seen[0] == total - 1
            assert link.inbox.waiting == 0

    run(test, timeout_s=60)


def test_stuck_writer_keeps_the_memory_as_it_is() -> None:
    """While nobody takes anything, no more than the limit and one read arrive; the exchange feels it."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        peer.writer.transport.set_write_buffer_limits(high=0)
        sent = 0
        while True:
            peer.send(*(trade(number) for number in range(sent, sent + 200)))
            sent += 200
            try:
                async with asyncio.timeout(0.3):
                    await peer.writer.drain()
            except TimeoutError:
                stuck.set_result(sent)
                break
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, limit=1000) as link:
            sent = await stuck
            held = link.inbox.waiting
            assert 1000 <= held <= 1000 + LARGEST_READ // len(frame(trade(0)))
            assert link.inbox.pauses == 1
            assert await link.until_rows(sent) == list(range(sent))

    stuck: asyncio.Future[int]

    async def with_future() -> None:
        nonlocal stuck
        stuck = asyncio.get_running_loop().create_future()
        await test()

    run(with_future)


@pytest.mark.parametrize("payload", [b"{}", b"x" * 60_000], ids=["small", "large"])
def test_odd_payloads_count_too(payload: bytes) -> None:
    """A flood of nonsense is bounded like a flood of messages, by its size."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        for _ in range(300):
            peer.send(*[payload] * 10)
            await peer.writer.drain()
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, limit=1000) as link:
            await until(lambda: link.inbox.pauses > 0)
            items = await link.inbox.take()
            held = sum(len(item.payload) for item in items if isinstance(item, Odd))
            held += sum(len(payload) for item in items if isinstance(item, Batch) for payload in item.payloads)
            assert held <= 1000 * feed_module.USUAL_BYTES + LARGEST_READ
            taken = sum(isinstance(item, Odd) for item in items)
            for item in items:
                assert not isinstance(item, Batch) or not any(item.messages()), "what is odd is found now, and put back"
            link.inbox.done()
            while taken + len(link.found(Odd)) < 3000:
                await link.more()

    run(test)


def test_reading_goes_on_at_half_of_the_limit() -> None:
    """A queue that is full stays so until half of what it may hold is free, in messages and in bytes alike."""

    async def test() -> None:
        link = LinkState("binance", Link("", ()))
        for payloads in ([b"x" * 100] * 60, [b"x" * 40_000]):
            inbox = Inbox(100)  # 64,000 bytes
            inbox.put(Batch(link, 1, 0, payloads, lambda _: []))
            assert len(await inbox.take()) == 1
            inbox.put(Batch(link, 1, 0, payloads, lambda _: []))
            is_full = [inbox.is_full]
            inbox.done()
            is_full.append(inbox.is_full)
            inbox.take_now()
            inbox.done()
            assert [*is_full, inbox.is_full] == [True, True, False]
            assert inbox.pauses == 1

    run(test)


def test_while_the_queue_is_full_no_connection_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection lost while nothing is written is made again when there is room, and not before; both are told."""
    monkeypatch.setattr(feed_module, "PING_AFTER_IDLE_S", 0.2)
    monkeypatch.setattr(feed_module, "PONG_WITHIN_S", 0.2)

    async def script(peer: Peer, number: int) -> None:
        await peer.subscribed()
        if number == 0:
            peer.send(*(trade(each) for each in range(200)))
        else:
            peer.send(trade(200))
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url, limit=100) as link:
            await until(lambda: len(link.waits) == 1)  # no answer to a ping is read either
            monkeypatch.setattr(feed_module, "PING_AFTER_IDLE_S", 60.0)
            for _ in range(50):  # the wait is over long ago
                await asyncio.sleep(0.001)
            assert link.inbox.is_full
            assert len(server.peers) == 1
            assert await link.until_rows(201) == list(range(201))
            assert "queue" in link.found(Disconnected)[0].reason
            assert "room" in link.found(Disconnected)[0].remedy

    run(test)


def test_a_connection_that_opens_while_the_queue_is_full_is_not_read() -> None:
    """What was under way when the queue filled brings nothing on top; nothing is renewed meanwhile, either."""

    async def script(peer: Peer, _: int) -> None:
        await full.wait()
        await peer.accept()
        await peer.expect(TEXT)
        peer.send(b'{"result":null,"id":1}', *(trade(each) for each in range(1000)))
        await stay(peer)

    async def test() -> None:
        inbox = Inbox(100)
        async with exchange(script) as server, watch(server.url, inbox=inbox) as link:
            await until(lambda: bool(server.peers))
            inbox.put(Batch(LinkState("binance", Link("", ())), 0, 0, [b"x" * 200] * 100, lambda _: []))
            full.set()
            await until(lambda: link.state.current is not None)
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert inbox.waiting <= 102
            assert await link.until_rows(1000) == list(range(1000))

    full = asyncio.Event()
    run(test)


def test_large_messages_count_by_their_size() -> None:
    """Messages with much in them fill the queue by their bytes, over all connections, and each is decoded once."""
    large = trade(0)[:-2] + b',"note":"' + b"x" * 20_000 + b'"}}'
    limit = 1000

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        for _ in range(300):
            peer.send(large)
            await peer.writer.drain()
        await stay(peer)

    async def test() -> None:
        inbox = Inbox(limit)
        async with exchange(script) as server, AsyncExitStack() as stack:
            links = [await stack.enter_async_context(watch(server.url, inbox=inbox)) for _ in range(3)]
            await until(lambda: inbox.is_full)
            assert inbox.waiting < 100
            assert limit * USUAL_BYTES <= inbox.waiting_bytes <= limit * USUAL_BYTES + LARGEST_READ
            while len(links[0].rows) < 900:
                await links[0].more()
            assert inbox.waiting_bytes == inbox.waiting == 0

    run(test)


def test_the_size_of_a_read_is_that_of_its_messages() -> None:
    """The bytes that a read is said to hold are those of its frames, whatever else came with them."""
    sent = [frame(b"x" * 20, PING) + frame(trade(0)) + frame(trade(1)), frame(trade(2)), frame(trade(3))]

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        data = b"".join(sent)
        peer.writer.write(data[:-40])
        await half.wait()
        peer.writer.write(data[-40:])
        await stay(peer)

    async def test() -> None:
        async with exchange(script) as server, watch(server.url) as link:
            await link.until_rows(3)
            half.set()
            await link.until_rows(4)
            sizes = [batch.size for batch in link.found(Batch)]
            payloads = [sum(map(len, batch.payloads)) for batch in link.found(Batch)]
            for size, payload, batch in zip(sizes, payloads, link.found(Batch), strict=True):
                assert payload <= size <= payload + 4 * len(batch.payloads)

    half = asyncio.Event()
    run(test)


def test_all_paused_connections_go_on() -> None:
    """Several connections that filled the queue together all go on when there is room."""

    async def script(peer: Peer, _: int) -> None:
        await peer.subscribed()
        for start in range(0, 20_000, 500):
            peer.send(*(trade(number) for number in range(start, start + 500)))
            await peer.writer.drain()
        await stay(peer)

    async def test() -> None:
        inbox = Inbox(1000)
        states = [LinkState("binance", Link("", ())) for _ in range(3)]
        async with exchange(script) as server:
            around = Surroundings(inbox, lambda: 1, lambda low, _: low, "x")
            tasks = []
            for state in states:
                state.link = Link(f"{server.url}/stream", ("btcusdt@trade",))
                tasks.append(asyncio.create_task(keep(state, Decoder(MARKETS["binance"]), around)))
            received = dict.fromkeys(states, 0)
            while sum(received.values()) < 60_000:
                for item in await inbox.take():
                    if isinstance(item, Batch):
                        received[item.link] += sum(map(len, item.messages()))
                await asyncio.sleep(0)
                inbox.done()
            assert set(received.values()) == {20_000}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    run(test)


def test_reset_by_a_replay_of_the_exchange() -> None:
    """Against the replay server: cut by RST and by close in between, the link comes back each time."""

    async def test() -> None:
        def message(connection: Any, stream: str, n: int, payload: bytes) -> Iterable[Any]:
            return [payload, {100: Reset(), 200: Close(1012, "restart")}[n]] if n in {100, 200} else [payload]

        market = GeneratedMarket("binance", start_ms=1_784_000_000_000, symbols=1, duration_s=60)
        name = next(stream for stream in market.streams if stream.endswith("@trade"))
        total = sum(1 for _ in market.messages([name]))
        assert total > 300
        async with (
            serve(market, speed=math.inf, behaviour=Behaviour(message=message)) as server,
            watch(server.ws_url, [name]) as link,
        ):
            await link.until(Connected, 3)
            ends = [end.reason for end in link.found(Disconnected)]
            assert len(ends) == 2
            assert "code 1012: restart" in ends[1]

    run(test)


def test_attempts_of_all_links_stay_below_the_limit_of_the_ip() -> None:
    """However many links fail however fast, in any five minutes there are far fewer than the 300 of Binance's limit."""
    attempts = feed_module.Attempts()
    due: list[tuple[float, int]] = [(0.0, link) for link in range(30)]
    made: list[float] = []
    while due[0][0] < 3600:
        now_s, link = heapq.heappop(due)
        at_s = now_s + attempts.take("binance", now_s)
        made.append(at_s)
        heapq.heappush(due, (at_s + 0.25, link))  # let in, served one message, cut
    assert made[:30] == [0.0] * 30, "a start is not slowed"
    made.sort()
    most = max(bisect.bisect(made, at_s + 300) - place for place, at_s in enumerate(made))
    assert most <= 150, "so that a second collector on the IP has its half"
    assert attempts.take("binance-futures", 3600.0) == 0, "one exchange does not hold up another"


def test_attempts_that_nobody_saw_do_not_count() -> None:
    """What the exchange has not seen is given back, so an hour without network costs nothing afterwards."""
    attempts = feed_module.Attempts()
    for second in range(3600):
        assert attempts.take("binance", float(second)) == 0
        attempts.give_back("binance")
    assert [attempts.take("binance", 3600.0) for _ in range(feed_module.ATTEMPTS_AT_EASE)][-1] == 0


def test_a_refusal_of_the_ip_holds_the_other_links() -> None:
    """After one link was told to wait, another that breaks does not try before that time either."""

    async def script(peer: Peer, number: int) -> None:
        if number == 0:
            await peer.subscribed()
            await refused.wait()
            peer.reset()
        else:
            await peer.reader.readuntil(b"\r\n\r\n")
            peer.writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1000\r\nContent-Length: 0\r\n\r\n")
            await peer.writer.drain()

    async def test() -> None:
        attempts = feed_module.Attempts()
        async with exchange(script) as server, watch(server.url, attempts=attempts) as first:
            await first.until(Connected)
            async with watch(server.url, attempts=attempts) as second:
                assert (await second.until(Disconnected)).retry_in_s >= 1000
                refused.set()
                assert (await first.until(Disconnected)).retry_in_s > 900

    refused = asyncio.Event()
    run(test)


def test_a_ban_holds_every_link_to_that_host() -> None:
    """While one host wants no attempt, none of its links tries; those to another host do."""
    attempts = feed_module.Attempts()
    attempts.close("stream.binance.com:9443", 120.0)
    attempts.close("stream.binance.com:9443", 60.0)
    assert attempts.closed_s("stream.binance.com:9443", 20.0) == 100
    assert attempts.closed_s("stream.binance.com:9443", 130.0) == 0
    assert attempts.closed_s("data-stream.binance.vision", 20.0) == 0
