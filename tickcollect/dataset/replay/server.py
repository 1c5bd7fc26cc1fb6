"""One exchange on one port of loopback: its websocket and its REST, playing a market. Read `ReplayServer` first.

The rules of playing:

* At a speed, the market is one timeline on one clock. It starts with the first subscription to any of its streams and
  goes on whether anyone listens or not; who comes late, or is away, has missed what passed, as on the exchange.
* At speed ``math.inf`` there is no clock: each stream starts with its own first subscription (streams asked for in one
  go play merged by time), goes as fast as its subscribers take it, and stands still while it has none. So nothing is
  missed at the beginning, and collectors may come one after the other.
* A market that says when it starts (`Market.starts_ns`) keeps that distance to its first message too: started at the
  time it says, it sends each message when its event time comes.
* REST shows a row once its stream has passed it.
* What a client asks for and nothing here serves, a REST path or a stream, is told once each.
* At ``math.inf`` a full socket holds the market back. At a speed it does not: a connection that lets
  ``SLOW_READER_BYTES`` pile up is cut, as the exchange does.

Misbehaviour on command is `Behaviour`: plain callables asked at each step, and `ReplayServer.disconnect`.
"""

import asyncio
import math
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Protocol

from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

from tickcollect.dataset.replay.endpoints import Answer, History, Meter, Request, answer, parse_request
from tickcollect.dataset.replay.venue import (
    CLOSE_POLICY,
    VENUES,
    Message,
    Outcome,
    Session,
    control,
    in_microseconds,
    open_session,
    shutdown_data,
    subscribe,
)

SLOW_READER_BYTES = 64 * 2**20
LIFE_S = 24 * 3600.0
_BATCH = 512  # messages between two looks at the sockets
_WRITE_BUFFER_BYTES = 2**20
_SHORTEST_SLEEP_S = 0.001
_HEAD_BYTES = 64 * 2**10
_LOGGED_REQUESTS = 10_000
_UNSERVED_TOLD = 1000
"""Paths and streams that are told as not served; a client that makes up more is not followed further."""
_CLOSE = MappingProxyType({"Connection": "close"})
_CLOSING_S = 10.0  # how long the other side has to answer a close frame
_STOPPING_S = 1.0  # the same when the server stops
_TEXT = 0x81  # a whole text frame
_PONG = 0x80 | Opcode.PONG


class Market(History, Protocol):
    """What a server plays: `recorded.RecordedMarket` or `generated.GeneratedMarket`."""

    exchange: str

    @property
    def streams(self) -> Collection[str]:
        """Every stream it can play."""

    @property
    def starts_ns(self) -> int | None:
        """The market time at which playing begins; None: that of the first message."""

    @property
    def total(self) -> int | None:
        """How many messages it holds, where that is known."""

    def messages(self, streams: Collection[str]) -> Iterator[Message]:
        """Yield the messages of `streams` by market time."""

    def passed(self, played: Message) -> None:
        """Note that a message has been played: from now on REST shows it."""


# Misbehaviour


@dataclass(frozen=True)
class Bytes:
    """Put these bytes on the wire as they are: half a frame, a reserved opcode, garbage."""

    data: bytes


@dataclass(frozen=True)
class Close:
    """Close with a close frame."""

    code: int = 1000
    reason: str = ""


@dataclass(frozen=True)
class Cut:
    """End the TCP connection without a close frame (FIN)."""


@dataclass(frozen=True)
class Reset:
    """End the TCP connection with RST; what the client has not read yet may be lost with it."""


Ending = Close | Cut | Reset
Step = bytes | Bytes | Ending  # bytes: a message to send in a frame of its own


@dataclass
class Behaviour:
    """How a server departs from the exchange. Each callable is asked at its moment; None means: as the exchange does.

    handshake(target, headers)
        an Answer refuses the websocket with it (403, 429, 451, ...); None accepts.
    message(connection, stream, n, payload)
        what to send instead of the `n`-th message (from 0) of `stream`, which would be `payload`: ``[payload]`` is
        faithful, ``[]`` drops it, ``[payload, payload]`` doubles it, and the steps may end the connection.
    rest(request, answer)
        the answer to give instead of `answer`; its `delay_s` holds it back.
    answers_pings
        False swallows the pongs; pings of the server go on.
    """

    handshake: Callable[[str, Mapping[str, str]], Answer | None] | None = None
    message: Callable[["Connection", str, int, bytes], Iterable[Step]] | None = None
    rest: Callable[[Request, Answer], Answer] | None = None
    answers_pings: bool = True


def frame(payload: bytes) -> bytes:
    """`payload` as a whole text frame of a server (RFC 6455, 5.2: not masked)."""
    return frame_head(len(payload)) + payload


def frame_head(length: int) -> bytes:
    """Return what stands before a text frame's payload of `length` bytes."""
    return _HEADS[length] if length < len(_HEADS) else _make_head(length)


def _make_head(length: int) -> bytes:
    if length < 126:  # noqa: PLR2004 (RFC 6455, 5.2: the lengths that need no extension)
        return bytes((_TEXT, length))
    return struct.pack("!BBH", _TEXT, 126, length) if length < 2**16 else struct.pack("!BBQ", _TEXT, 127, length)


_HEADS = [_make_head(length) for length in range(1024)]


# One connection


class Connection(asyncio.Protocol):
    """One TCP connection: HTTP requests one after another, until one of them turns it into a websocket.

    Frames of data go straight to the transport; the handshake, control frames and closing are websockets' own
    `ServerProtocol`, which does no I/O.
    """

    def __init__(self, server: "ReplayServer") -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._fragments: list[bytes] = []
        self._outgoing: list[bytes] = []
        self._protocol: ServerProtocol | None = None
        self._recent: deque[float] = deque()
        self._timers: list[asyncio.TimerHandle] = []
        self._unanswered_since: float | None = None
        self.session: Session | None = None
        self.writable = asyncio.Event()  # clear while the socket is full and the connection open
        self.writable.set()
        self.lost = asyncio.Event()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")  # None where the client has gone already
        self.peer = str(peer[0]) if peer else ""
        self._server.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Leave the server's lists, and let go whoever waits for this socket."""
        for timer in self._timers:
            timer.cancel()
        self._server.forget(self)
        self._server.connections.discard(self)
        self.writable.set()
        self.lost.set()

    def pause_writing(self) -> None:
        """Mark the socket as full."""
        if self.is_open:
            self.writable.clear()

    def resume_writing(self) -> None:
        """Mark the socket as taking data again."""
        self.writable.set()

    def eof_received(self) -> None:
        """Let the transport close: half-open connections are not kept."""

    def data_received(self, data: bytes) -> None:
        """Feed the websocket, or collect an HTTP request."""
        if self._protocol is not None:
            self._feed(self._protocol, data)
            return
        self._received += data
        while self._protocol is None and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head, self._received = self._received[: end + 4], self._received[end + 4 :]
            self._take_request(head)
        if len(self._received) > _HEAD_BYTES:
            self._transport.abort()

    # HTTP

    def _take_request(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        method, _, target = lines[0].partition(" ")
        target = target.rpartition(" ")[0]
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if method != "GET":
            self._answer(Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"", _CLOSE))
        elif headers.get("upgrade", "").lower() == "websocket":
            self._open(head, target, headers)
        else:
            self._answer_request(parse_request(target, headers))

    def _answer_request(self, request: Request) -> None:
        given = self._server.rest(self.peer, request)
        if request.headers.get("connection", "").lower() == "close":
            given = given._replace(headers={**given.headers, **_CLOSE})
        if given.delay_s:
            self._timers.append(self._loop.call_later(given.delay_s, self._answer, given))
        else:
            self._answer(given)

    def _answer(self, given: Answer) -> None:
        headers = {"Content-Type": "application/json;charset=UTF-8", **given.headers}
        headers["Content-Length"] = str(len(given.body))
        text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        try:
            phrase = HTTPStatus(given.status).phrase
        except ValueError:
            phrase = "Unknown"
        self._transport.write(f"HTTP/1.1 {int(given.status)} {phrase}\r\n{text}\r\n".encode("latin-1") + given.body)
        if headers.get("Connection", "").lower() == "close":
            self._transport.close()

    # The websocket

    def _open(self, head: bytes, target: str, headers: Mapping[str, str]) -> None:
        opened = open_session(self._server.venue, target)
        refusal = Answer(HTTPStatus.NOT_FOUND, b"") if opened is None else self._server.refuses(target, headers)
        if opened is None or refusal is not None:
            assert refusal is not None
            self._answer(refusal._replace(headers={**refusal.headers, **_CLOSE}))
            return
        protocol = ServerProtocol()
        protocol.receive_data(head)
        handshake = next((event for event in protocol.events_received() if isinstance(event, Handshake)), None)
        if handshake is None:
            self._answer(Answer(HTTPStatus.BAD_REQUEST, b"", _CLOSE))
            return
        protocol.send_response(protocol.accept(handshake))
        self._protocol = protocol
        self._send_pending(protocol)
        if protocol.state is not State.OPEN:  # a handshake without its headers
            self._transport.close()
            return
        self._begin(*opened)

    def _begin(self, session: Session, streams: Sequence[str]) -> None:
        """Start the websocket's life, with the streams of its address."""
        assert self._protocol is not None
        self.session = session
        self._timers.append(self._loop.call_later(self._server.life_s, self.end, Close(1000, "24 hours")))
        self._schedule_ping()
        self._carry_out(subscribe(session, streams))
        rest, self._received = self._received, b""
        if rest:
            self._feed(self._protocol, rest)

    def _feed(self, protocol: ServerProtocol, data: bytes) -> None:
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._take_frame(event)
        self._send_pending(protocol)

    def _send_pending(self, protocol: ServerProtocol) -> None:
        for chunk in protocol.data_to_send():
            if not chunk:  # websockets.protocol.SEND_EOF
                self._transport.close()
            elif chunk[0] != _PONG or self._server.behaviour.answers_pings:
                self._transport.write(chunk)

    def _take_frame(self, received: Frame) -> None:
        if received.opcode is Opcode.CLOSE or not self.is_open:
            return
        assert self.session is not None
        if self._is_too_fast():
            self.end(Close(CLOSE_POLICY, "Too many requests"))
            return
        if received.opcode is Opcode.PONG:
            self._unanswered_since = None
        elif received.opcode is not Opcode.PING:
            self._fragments.append(bytes(received.data))
            if received.fin:
                text, self._fragments = b"".join(self._fragments), []
                self._carry_out(control(self.session, text))

    def _is_too_fast(self) -> bool:
        now = self._loop.time()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        self._recent.append(now)
        return len(self._recent) > self._server.venue.client_messages_per_s

    def _carry_out(self, outcome: Outcome) -> None:
        if outcome.reply is not None:
            self._transport.write(frame(outcome.reply))
        if outcome.close is not None:
            self.end(Close(*outcome.close))
            return
        self._server.unsubscribe(self, outcome.removed)
        self._server.subscribe(self, outcome.added)

    def _schedule_ping(self) -> None:
        self._timers.append(self._loop.call_later(self._server.ping_interval_s, self._ping))

    def _ping(self) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        now = self._loop.time()
        if self._unanswered_since is not None and now - self._unanswered_since > self._server.pong_timeout_s:
            self.end(Cut())
            return
        if self.is_open and self._protocol is not None:
            if self._unanswered_since is None:
                self._unanswered_since = now
            self._protocol.send_ping(str(int(self._server.clock() * 1000)).encode())
            self._send_pending(self._protocol)
            self._schedule_ping()

    # What the server does with it

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        open_protocol = self._protocol is not None and self._protocol.state is State.OPEN
        return self.session is not None and open_protocol and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """What the client has not taken yet."""
        return self._transport.get_write_buffer_size()

    def put(self, message: Message) -> None:
        """Queue one message in this connection's form; `flush` sends what is queued."""
        payload = self.payload(message)
        length = len(payload)
        self._outgoing.append(_HEADS[length] if length < len(_HEADS) else _make_head(length))
        self._outgoing.append(payload)

    def payload(self, message: Message) -> bytes:
        """Return the message in this connection's form."""
        assert self.session is not None
        payload = message.combined if self.session.combined else message.data
        return in_microseconds(payload) if self.session.microseconds else payload

    def take(self, step: Step) -> None:
        """Carry out one step of a `Behaviour`, after what is queued."""
        if not self.is_open:
            return
        if isinstance(step, bytes):
            self._outgoing.append(frame(step))
        elif isinstance(step, Bytes):
            self._outgoing.append(step.data)
        else:
            self.end(step)

    def flush(self) -> None:
        """Hand what is queued to the socket in one write."""
        if self._outgoing:
            queued, self._outgoing = self._outgoing, []
            if self.is_open:
                self._transport.write(b"".join(queued))

    def abort(self) -> None:
        """End the connection at once, whatever is queued."""
        self._transport.abort()

    async def drained(self) -> None:
        """Wait until the socket has taken everything."""
        self._transport.set_write_buffer_limits(high=0)
        await self.writable.wait()
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def end(self, how: Ending) -> None:
        """End the connection after what is queued. The answer to a close frame is awaited."""
        self._server.forget(self)
        self.flush()
        self.writable.set()
        if isinstance(how, Close) and self.is_open and self._protocol is not None:
            self._protocol.send_close(how.code, how.reason)
            self._send_pending(self._protocol)
            # Closing at once with unread bytes would send RST, and the client would lose the close frame.
            self._timers.append(self._loop.call_later(_CLOSING_S, self._transport.abort))
        elif isinstance(how, Reset):
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()


# The server


@dataclass
class ReplayServer:
    """A running server. Made by `serve`.

    `sent` counts, per stream, the messages that at least one subscriber was sent; `played` those that passed, whether
    anyone listened or not. `requests` holds the newest REST requests. `behaviour` may be changed at any time.
    """

    market: Market
    speed: float = math.inf
    start_delay_s: float = 0.0
    clock: Callable[[], float] = time.time
    behaviour: Behaviour = field(default_factory=Behaviour)
    life_s: float = LIFE_S
    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    host: str = "127.0.0.1"
    port: int = 0
    scheme_suffix: str = ""
    tell: Callable[[str], None] = lambda _: None
    connections: set[Connection] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    played: Counter[str] = field(default_factory=Counter)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=_LOGGED_REQUESTS))

    def __post_init__(self) -> None:
        self.venue = VENUES[self.market.exchange]
        self._known = frozenset(self.market.streams)
        self._started: set[str] = set()
        self._subscribers: dict[str, list[Connection]] = {}
        self._meters: dict[str, Meter] = {}
        self._plays: set[asyncio.Task[None]] = set()
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._subscribed = asyncio.Event()
        self._unserved: set[str] = set()

    @property
    def ws_url(self) -> str:
        """The websocket's address, without a path."""
        return f"ws{self.scheme_suffix}://{self.host}:{self.port}"

    @property
    def rest_url(self) -> str:
        """The REST address, without a path."""
        return f"http{self.scheme_suffix}://{self.host}:{self.port}"

    # For whoever runs it

    def start(self) -> None:
        """Start the market now, instead of with the first subscription. Only at a speed: else readers set the pace."""
        if self.speed == math.inf:
            raise ValueError("at speed max each stream starts with its first subscription")
        self._start(self._known, delay_s=0.0)

    async def finished(self) -> None:
        """Wait until all that was subscribed to has been played to its end and handed to the sockets.

        At a speed that is the whole market. Raises what ended the playing early: a recording that cannot be read.
        """
        while not self._started:
            await self._subscribed.wait()
        while self._plays:
            done, _ = await asyncio.wait(self._plays, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self._plays -= done
        for connection in list(self.connections):
            await connection.drained()

    async def started_again(self) -> None:
        """Wait until something is playing, after `finished`."""
        while not self._plays:
            self._subscribed.clear()
            await self._subscribed.wait()

    def pause(self) -> None:
        """Hold the market; connections stay."""
        self._goes_on.clear()

    def resume(self) -> None:
        """Let the market go on. At a speed it catches up."""
        self._goes_on.set()

    def disconnect(self, how: Ending) -> None:
        """End every websocket in the same way."""
        for connection in [each for each in self.connections if each.session is not None]:
            connection.end(how)

    def announce_shutdown(self) -> None:
        """Send every websocket the `serverShutdown` event in its form."""
        notice = shutdown_data(int(self.clock() * 1000))
        for connection in self.connections:
            if connection.is_open:
                connection.put(notice)
                connection.flush()

    # For the connections

    def refuses(self, target: str, headers: Mapping[str, str]) -> Answer | None:
        """Return the answer that refuses a websocket, or None."""
        return self.behaviour.handshake(target, headers) if self.behaviour.handshake else None

    def rest(self, peer: str, request: Request) -> Answer:
        """Answer one GET."""
        self.requests.append(request)
        meter = self._meters.setdefault(peer, Meter(self.venue.weight_per_minute))
        given = answer(self.venue, self.market, meter, request, self.clock())
        if given.status == HTTPStatus.NOT_FOUND:
            self._tell_unserved(f"GET {request.path}")
        return self.behaviour.rest(request, given) if self.behaviour.rest else given

    def subscribe(self, connection: Connection, streams: Sequence[str]) -> None:
        """Deliver `streams` to `connection` from now on, and start those that nobody had asked for."""
        assert connection.session is not None
        names = [name for name in streams if name in self._known and connection.session.delivers(name)]
        for name in streams:
            if name not in names:
                self._tell_unserved(f"stream {name}")
        for name in names:
            self._subscribers.setdefault(name, []).append(connection)
        if not names:
            return
        self._start(frozenset(names) if self.speed == math.inf else self._known, self.start_delay_s)
        self._subscribed.set()

    def _tell_unserved(self, what: str) -> None:
        """Say once that a client asked for something that nothing here serves."""
        if what in self._unserved or len(self._unserved) >= _UNSERVED_TOLD:
            return
        self._unserved.add(what)
        printable = "".join(char if char.isprintable() else "?" for char in what[:200])
        self.tell(f"{self.market.exchange}: a client asked for {printable}, which is not served here")

    def _start(self, streams: frozenset[str], delay_s: float) -> None:
        fresh = streams - self._started
        if fresh:
            self._started |= fresh
            self._plays.add(asyncio.create_task(self._play(fresh, delay_s)))

    def unsubscribe(self, connection: Connection, streams: Iterable[str]) -> None:
        """Deliver `streams` to `connection` no longer."""
        for name in streams:
            listening = self._subscribers.get(name, [])
            if connection in listening:
                listening.remove(connection)

    def forget(self, connection: Connection) -> None:
        """Deliver nothing to `connection` any more."""
        if connection.session is not None:
            self.unsubscribe(connection, list(connection.session.streams))

    # Playing

    async def _play(self, streams: frozenset[str], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            if self.speed == math.inf:
                await self._play_unpaced(streams)
            else:
                await self._play_paced(streams)
        finally:
            self._flush()  # what came before the end, or before a damaged line

    async def _play_unpaced(self, streams: frozenset[str]) -> None:
        waiting = 0
        for message in self.market.messages(streams):
            if waiting >= _BATCH or not self._goes_on.is_set() or not self._has_subscribers(streams):
                await self._let_read(streams)
                waiting = 0
            self._deliver(message)
            waiting += 1

    def _has_subscribers(self, streams: Collection[str]) -> bool:
        return any(self._subscribers.get(stream) for stream in streams)

    async def _let_read(self, streams: frozenset[str]) -> None:
        """Flush, then wait until every socket takes data, the market goes on and someone listens to `streams`."""
        self._flush()
        await asyncio.sleep(0)
        await self._goes_on.wait()
        for connection in list(self.connections):
            await connection.writable.wait()
        while streams and not self._has_subscribers(streams):
            self._subscribed.clear()
            await self._subscribed.wait()

    async def _play_paced(self, streams: frozenset[str]) -> None:
        loop = asyncio.get_running_loop()
        began, first_ns, waiting = loop.time(), self.market.starts_ns, 0
        for message in self.market.messages(streams):
            if first_ns is None:
                first_ns = message.at_ns
            ahead = (message.at_ns - first_ns) / 1e9 / self.speed - (loop.time() - began)
            if ahead > _SHORTEST_SLEEP_S or waiting >= _BATCH or not self._goes_on.is_set():
                self._flush()
                self._cut_slow_readers()
                await asyncio.sleep(max(0.0, ahead))
                await self._goes_on.wait()
                waiting = 0
            self._deliver(message)
            waiting += 1

    def _deliver(self, message: Message) -> None:
        stream = message.stream
        listening = self._subscribers.get(stream)
        if listening:
            script = self.behaviour.message
            for connection in list(listening) if script else listening:
                if script is None:
                    connection.put(message)
                else:
                    for step in script(connection, stream, self.played[stream], connection.payload(message)):
                        connection.take(step)
            self.sent[stream] += 1
        self.played[stream] += 1
        self.market.passed(message)

    def _flush(self) -> None:
        for connection in list(self.connections):
            connection.flush()

    def _cut_slow_readers(self) -> None:
        for connection in list(self.connections):
            if connection.unsent_bytes > SLOW_READER_BYTES:
                connection.end(Reset())

    async def stop(self) -> None:
        """Stop playing and end every connection. Raises what ended the playing early."""
        for play in self._plays:
            play.cancel()
        ends = await asyncio.gather(*self._plays, return_exceptions=True)
        leaving = list(self.connections)
        for connection in leaving:
            connection.end(Close(1001, "going away"))
        if leaving:
            _, late = await asyncio.wait(
                [asyncio.create_task(connection.lost.wait()) for connection in leaving], timeout=_STOPPING_S
            )
            for task in late:
                task.cancel()
            for connection in leaving:
                connection.abort()
        for end in ends:
            if isinstance(end, Exception):
                raise end


@asynccontextmanager
async def serve(
    market: Market,
    *,
    speed: float = math.inf,
    host: str = "127.0.0.1",
    port: int = 0,
    start_delay_s: float = 0.0,
    clock: Callable[[], float] = time.time,
    behaviour: Behaviour | None = None,
    ping_interval_s: float | None = None,
    pong_timeout_s: float | None = None,
    life_s: float = LIFE_S,
    tls: ssl.SSLContext | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[ReplayServer]:
    """Serve `market` on one port until the block ends.

    `speed` is market time over wall time, math.inf for as fast as it is read. Playing starts `start_delay_s` after the
    first subscription. `clock` is what REST calls now. `tell` gets the lines meant for the user. The ping's interval
    and limit are the exchange's own by default.
    Raises OSError where the port is taken.
    """
    venue = VENUES[market.exchange]
    server = ReplayServer(
        market,
        speed=speed,
        start_delay_s=start_delay_s,
        clock=clock,
        behaviour=behaviour or Behaviour(),
        life_s=life_s,
        ping_interval_s=venue.ping_interval_s if ping_interval_s is None else ping_interval_s,
        pong_timeout_s=venue.pong_timeout_s if pong_timeout_s is None else pong_timeout_s,
        host=host,
        scheme_suffix="s" if tls else "",
        tell=tell,
    )
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), host, port, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        await server.stop()
        await listening.wait_closed()
