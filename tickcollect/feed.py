"""One websocket kept alive: connect, subscribe, stamp the arrival, decode, hand over, reconnect with patience.

Rules:

1. Arrival is stamped when the bytes of a socket read are handed to us; every message of that read gets this stamp.
2. Nothing here waits for the writer. What arrives goes into the `Inbox`, which is bounded in messages and in bytes:
   when it is full every connection stops reading, and none is opened or replaced, so that the memory stays as it is for
   as long as that lasts. The exchange, or in the end the lost connection, notices. What is missed is a gap like any
   other.
3. The wait before the next attempt grows with each attempt that brought no data and begins anew once data came. That
   a connection opened proves nothing. Binance allows 300 attempts per 5 minutes and IP (spot web-socket-streams.md), so
   the attempts of all connections together are paced (`Attempts`), whatever became of them.
4. A refusal is understood as `refusals` has it, and `Retry-After` is obeyed; what is about this IP address holds every
   connection to that host.
5. A connection is replaced before the exchange cuts it at 24 hours, and at once on `serverShutdown`: the new one first,
   both for a moment, then the old one is closed.
6. Every end of a connection, whatever its cause, is an event in the same queue as the data, in its place. What a
   server, a proxy or a library does that nobody foresaw is one too (`_Session._live`): told with its type, and retried.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from socket import gaierror
from urllib.parse import urlsplit

from loguru import logger
from picows import WSCloseCode, WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect
from python_socks import ProxyError

from tickcollect import refusals
from tickcollect.events import Message
from tickcollect.exchanges.binance import (
    SUBSCRIBE_INTERVAL_S,
    Acknowledged,
    ControlError,
    Decoder,
    Link,
    Notice,
    Refused,
    ServerShutdown,
    subscribe_messages,
)
from tickcollect.refusals import Kind

CONTROL_FRAME_BYTES = 125
DECODED_AT_ONCE = 500
MAX_FRAME_BYTES = 1024 * 1024
"""Of one frame, and of a message that comes in several; picows' buffer of a connection grows to four times that."""
FRAGMENTS_BYTES = 4 * MAX_FRAME_BYTES
"""What the messages of all connections may take together that have come in part only."""
USUAL_BYTES = 640
"""What a message takes in memory at most as a rule, even if it comes alone: its text and Python's objects around it."""
MESSAGE_BYTES = 64
"""Python's part of one payload: object, rounding, place in the list (tracemalloc: 42 to 57, CPython 3.11 to 3.13)."""
ITEM_BYTES = 320
"""Python's part of one item of the queue: `Batch`, list, stamp, bound method (tracemalloc: 258, CPython 3.11)."""
UNANSWERED_BYTES = 64 * 1024
"""Answers to pings that the exchange has not taken: 500 of the largest."""
READ_BUFFER_BYTES = 256 * 1024
UNREAD_BYTES = 1024 * 1024
"""What the kernel may hold unread: else one read of a backlog can be 6 MB, which doubles the memory. At a round trip of
250 ms it lets 20,000 messages a second pass."""
HANDSHAKE_TIMEOUT_S = 10.0
CONNECTED_WITHIN_S = 20.0
"""Name, TCP, TLS and handshake together: the kernel alone would try TCP for two minutes."""
PING_AFTER_IDLE_S = 10.0
PONG_WITHIN_S = 10.0
"""With the idle time before the ping, a half-open connection is noticed within 20 s."""
ACKNOWLEDGED_WITHIN_S = 10.0
RENEW_AFTER_S = 23 * 3600.0
SUBSCRIBED_WITHIN_S = 30.0
FIRST_DATA_WITHIN_S = 10.0
RENEW_AGAIN_S = 60.0
OVERLAP_S = 2.0
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
ATTEMPTS_AT_EASE = 80
"""Attempts of all links to one exchange that are made at once: a start of 3,000 feeds, each carried twice, takes 30."""
ATTEMPT_INTERVAL_S = 5.0
"""Beyond that, one in 5 s: at most 140 in any five minutes, so that two collectors stay below the IP's 300."""
ATTEMPTS_REMEMBERED_S = ATTEMPTS_AT_EASE * ATTEMPT_INTERVAL_S
"""How long an attempt counts, also one of an earlier process."""
REFUSED_AGAIN_S = 300.0
"""A stream that the exchange refused is asked for again after this."""
DROPPED_WITHIN_S = 1.0
"""What has not closed by then, once we want it to, is cut off: TLS alone would wait 30 s for a peer that is gone."""
SOCKS_PORT = 1080
LONGEST_DETAIL = 200
"""Characters of a library's text that are told."""
LONGEST_BODY = 2000
"""Bytes of a refusal's body that are looked at."""


logging.getLogger("picows").setLevel(logging.CRITICAL)
"""What it would say of a connection is told as that connection's end."""


# --- What the writer gets ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """What one socket read brought."""

    link: "LinkState"
    connection: int
    """Which connection of this run brought it, counted over all links."""
    received_ns: int
    payloads: Sequence[bytes]
    decode: Callable[[Sequence[bytes]], list[Message]]
    size: int = 0
    """Bytes of the payloads with the heads of their frames; 0 where nobody has counted."""

    def messages(self) -> Iterator[list[Message]]:
        """Yield the messages, some hundred at a time, decoded as they are asked for.

        So a read of many thousands never lies decoded in memory as a whole, and each message is formatted while the
        processor still has it at hand: together that is a fifth of the whole path's time.
        """
        for start in range(0, len(self.payloads), DECODED_AT_ONCE):
            yield self.decode(self.payloads[start : start + DECODED_AT_ONCE])


@dataclass(frozen=True, slots=True)
class Odd:
    """A payload that is not an ordinary message, and what it was taken for."""

    link: "LinkState"
    received_ns: int
    payload: bytes
    notice: Notice


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection is open and its streams have been asked for."""

    link: "LinkState"


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection ended, or could not be made."""

    link: "LinkState"
    reason: str
    remedy: str
    retry_in_s: float
    opened: bool
    """Whether there had been a connection at all."""
    urgent: bool
    """Whether waiting alone will hardly help."""
    seen: bool = True
    """Whether the exchange may have noticed the attempt."""


@dataclass(frozen=True, slots=True)
class Renewing:
    """A connection is about to be replaced by a new one, which is opened first."""

    link: "LinkState"
    reason: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """The new connection delivers, and the old one is closed."""

    link: "LinkState"


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """The new connection is not as good as the old one, which goes on."""

    link: "LinkState"
    reason: str
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class SubscriptionRefused:
    """The exchange answered a SUBSCRIBE with an error; the other streams go on, and these are asked for again later."""

    link: "LinkState"
    streams: Sequence[str]
    error: ControlError


@dataclass(frozen=True, slots=True)
class SubscriptionAccepted:
    """Streams that were refused before are acknowledged now."""

    link: "LinkState"
    streams: Sequence[str]


@dataclass(frozen=True, slots=True)
class Unacknowledged:
    """Data comes, but the exchange has not answered for all streams."""

    link: "LinkState"
    streams: Sequence[str]


Event = (
    Connected
    | Disconnected
    | Renewing
    | Renewed
    | RenewalFailed
    | SubscriptionRefused
    | SubscriptionAccepted
    | Unacknowledged
)
Item = Batch | Odd | Event


@dataclass(slots=True, eq=False)
class LinkState:
    """One connection as others may see it."""

    exchange: str
    link: Link
    connected: bool = False
    connected_at_s: float = 0.0
    """By the event loop's clock."""
    connections: int = 0
    messages: int = 0
    copies: int = 0
    """Messages that another connection had brought before."""
    missed: int = 0
    """IDs that another connection brought and this one did not."""
    current: "_Listener | None" = None
    """The newest open connection: it can be asked to subscribe again, or dropped so that a new one is made."""
    open: "list[_Listener]" = field(default_factory=list)
    """Its open connections: one, and two while it is renewed."""
    refusals_told: set[str] = field(default_factory=set)
    """Streams that were refused and not acknowledged since."""
    strange_error_told: bool = False
    """An error that answers nothing was told; more of them are put into quarantine."""
    received_ns: int = 0
    """When anything came last, data or a sign of life, by the wall clock."""

    cuts: "dict[str, Cut]" = field(default_factory=dict)
    """The streams that no connection of this link carried any more when one ended, until somebody has taken note."""

    def note_end(self, listener: "_Listener", now_s: float) -> None:
        """Take an open connection out, and note which streams nobody carries on."""
        self.open.remove(listener)
        carried = {name for other in self.open for name in other.subscription.acknowledged}
        cut = Cut(listener.number, now_s, self.received_ns)
        self.cuts |= {name: cut for name in self.link.streams if name not in carried}

    def acknowledged_at_s(self, stream: str) -> float | None:
        """Return since when an open connection's subscription to a stream is acknowledged, by the event loop's clock.

        None while there is none: the connection is not open, or the exchange has not answered, or has refused.
        """
        since_s = (listener.subscription.acknowledged.get(stream) for listener in self.open)
        return min((at_s for at_s in since_s if at_s is not None), default=None)


@dataclass(frozen=True, slots=True)
class Cut:
    """The end of the last connection that carried a stream."""

    connection: int
    """Its number: what this and earlier ones have brought tells nothing of what came later."""
    at_s: float
    """By the event loop's clock."""
    heard_ns: int
    """The last sign of life before, by the wall clock; 0 where there was none."""


class Inbox:
    """The bounded queue between the connections and the writer, counted in messages and in bytes.

    Messages count from their arrival until the writer says that it has done with them (`done`), each with its bytes and
    what Python needs around them, over all connections; so the limit bounds all that is in memory. At the limit every
    open connection is paused, and one that opens later too; at half of it all go on.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.limit_bytes = limit * USUAL_BYTES
        self.waiting = 0
        self.waiting_bytes = 0
        self.pauses = 0
        self.fragments_bytes = 0
        """Of messages that have come in part only, over all connections; bounded on its own (`FRAGMENTS_BYTES`)."""
        self._items: deque[Item] = deque()
        self._taken = (0, 0)
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._listeners: set[_Listener] = set()

    @property
    def is_full(self) -> bool:
        """Whether nothing is read at present."""
        return not self._room.is_set()

    def put(self, item: Item) -> None:
        """Add an item; if that fills the queue, every connection stops reading."""
        self._items.append(item)
        self._filled.set()
        if isinstance(item, Batch):
            messages = len(item.payloads)
            self.waiting += messages
            self.waiting_bytes += (item.size or sum(map(len, item.payloads))) + messages * MESSAGE_BYTES + ITEM_BYTES
        else:
            self.waiting += 1
            self.waiting_bytes += ITEM_BYTES + (len(item.payload) if isinstance(item, Odd) else 0)
        if (self.waiting >= self.limit or self.waiting_bytes >= self.limit_bytes) and not self.is_full:
            self.pauses += 1
            self._room.clear()
            for listener in self._listeners:
                listener.pause_reading()

    def add_listener(self, listener: "_Listener") -> None:
        """Let a new connection be paused with the others, at once if the queue is full."""
        self._listeners.add(listener)
        if self.is_full:
            listener.pause_reading()

    def remove_listener(self, listener: "_Listener") -> None:
        """Forget a connection that has ended."""
        self._listeners.discard(listener)

    async def room(self) -> None:
        """Wait until the queue is not full."""
        await self._room.wait()

    async def take(self, timeout_s: float | None = None) -> list[Item]:
        """Return all that has come, waiting for something; an empty list after `timeout_s`."""
        if not self._items:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return []
        return self.take_now()

    def take_now(self) -> list[Item]:
        """Return all that has come, which may be nothing."""
        self._filled.clear()
        items = list(self._items)
        self._items.clear()
        self._taken = (self.waiting, self.waiting_bytes)
        return items

    def wake(self) -> None:
        """Let a waiting `take` return, or else the next one."""
        self._filled.set()

    def done(self) -> None:
        """All that was taken has been handed over; let the connections go on."""
        messages, size = self._taken
        self.waiting -= messages
        self.waiting_bytes -= size
        self._taken = (0, 0)
        if self.is_full and self.waiting <= self.limit // 2 and self.waiting_bytes <= self.limit_bytes // 2:
            self._room.set()
            for listener in self._listeners:
                listener.resume_reading()


# --- Patience ------------------------------------------------------------------------------------------------------


class Attempts:
    """Paces the attempts to connect of all links of this process, exchange by exchange (rule 3).

    Each attempt is paid for with `ATTEMPT_INTERVAL_S`, and as many as `ATTEMPTS_AT_EASE` may be in debt. Times are the
    event loop's; those before its beginning are negative.
    """

    def __init__(self) -> None:
        self._paid_until_s: dict[str, float] = {}
        self._closed_until_s: dict[str, float] = {}

    def take(self, exchange: str, now_s: float) -> float:
        """Note an attempt, and return how long it has to wait."""
        wait_s = self.paced_s(exchange, now_s)
        self._paid_until_s[exchange] = max(self._paid_until_s.get(exchange, now_s), now_s) + ATTEMPT_INTERVAL_S
        return wait_s

    def give_back(self, exchange: str) -> None:
        """Take back an attempt of which the exchange has seen nothing."""
        self._paid_until_s[exchange] -= ATTEMPT_INTERVAL_S

    def close(self, host: str, until_s: float) -> None:
        """Note that a host wants no attempt of this IP until then."""
        self._closed_until_s[host] = max(self._closed_until_s.get(host, until_s), until_s)

    def closed_s(self, host: str, now_s: float) -> float:
        """Return for how long a host wants no attempt any more."""
        return max(0.0, self._closed_until_s.get(host, now_s) - now_s)

    def paced_s(self, exchange: str, now_s: float) -> float:
        """Return how long an attempt would have to wait for those before it."""
        debt_s = self._paid_until_s.get(exchange, now_s) - now_s
        return max(0.0, debt_s - (ATTEMPTS_AT_EASE - 1) * ATTEMPT_INTERVAL_S)


_OF_THE_IP = frozenset({Kind.BANNED, Kind.FORBIDDEN, Kind.BLOCKED})
"""Refusals that are about this IP address: every link to that host waits."""
TOO_MANY_WAIT_S = 10.0
"""After a close with 1008, which is how Binance ends a connection that sent too much; bans follow repeated offences."""
WAIT_SPREAD = 0.1
"""A wait that the exchange asks for is made longer by up to this part of it, so that not all links end it at once."""


def backoff(uniform: Callable[[float, float], float]) -> Iterator[float]:
    """Yield the waits before the attempts that follow one without data: half a second, doubling to a minute, spread."""
    delay_s = FIRST_DELAY_S
    while True:
        yield uniform(delay_s / 2, delay_s)
        delay_s = min(delay_s * 2, LONGEST_DELAY_S)


@dataclass(frozen=True, slots=True)
class _End:
    """Why a connection ended, and what that asks for."""

    reason: str
    remedy: str = ""
    wait_s: float = 0.0
    opened: bool = True
    urgent: bool = False
    for_all: bool = False
    """The wait is for every link to that host."""
    seen: bool = True
    """The exchange may have noticed the attempt."""


_UNSEEN = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
"""Failures of this machine or its network: no packet has reached the exchange."""


def _refused_by(error: Exception, host: str, near: str, wall_s: float) -> _End:
    """Put the failure to connect into words; `near` is what we connect to, the proxy where there is one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _End(
            f"the certificate of {host} is not trusted: {error.verify_message}",
            "Check this machine's clock and its ca-certificates; somebody may be listening in",
            60.0,
            opened=False,
            urgent=True,
        )
    if isinstance(error, gaierror):
        reason = f"the name {near} cannot be resolved ({error.strerror})"
        return _End(reason, "Check the network and its DNS", opened=False, seen=False)
    if isinstance(error, ProxyError):
        return _End(f"the proxy does not connect to {host}: {_line(error)}", "Check PROXY", opened=False, urgent=True)
    if isinstance(error, TimeoutError):
        return _End(f"{host} does not answer", "Check the network", opened=False)
    if isinstance(error, WSHandshakeError) and error.response is not None:
        status, retry_after = int(error.response.status), error.response.headers.get("Retry-After")
        return _refused_with(error, status, retry_after, host, wall_s)
    where, detail, is_seen = host, _line(error) or type(error).__name__, True
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        where, detail, is_seen = near, os.strerror(error.errno), error.errno not in _UNSEEN
    return _End(f"{where} cannot be reached: {detail}", "Check the network", opened=False, seen=is_seen)


def _refused_with(error: WSHandshakeError, status: int, retry_after: str | None, host: str, wall_s: float) -> _End:
    refused = refusals.refusal(status)
    body = (error.raw_body or b"")[:LONGEST_BODY].decode("utf-8", "replace")
    return _End(
        f"{host} answered HTTP {status}: {refused.meaning}",
        refused.remedy[:1].upper() + refused.remedy[1:],
        refusals.wait_s(status, retry_after, wall_s, body),
        opened=False,
        urgent=refused.kind is not Kind.TROUBLE,
        for_all=refused.kind in _OF_THE_IP,
    )


def _unforeseen(error: Exception, host: str, *, opened: bool) -> _End:
    """Put what nobody foresaw into words, with the place in the code where it arose."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    logger.opt(exception=error).debug("{}: an unforeseen failure of the connection", host)
    what = f"{type(error).__name__}: {_line(error)} ({where})"
    return _End(
        f"the connection to {host} failed in a way that is not foreseen: {what}",
        "It is tried again as usual; please report this line",
        opened=opened,
        urgent=True,
    )


def _line(error: Exception) -> str:
    """Return an error's text as one line of bounded length: parts of it may come from outside."""
    text = "".join(char if char.isprintable() else " " for char in str(error)[:LONGEST_DETAIL])
    return " ".join(text.split())


def websocket_proxy(url: str | None) -> str | None:
    """Return a proxy's URL as the websocket's library wants it: with a port, and without an `h`.

    python_socks (3.2) lets the proxy resolve names for `socks5` in any case, which is what `socks5h` asks for.
    """
    if url is None:
        return None
    parts = urlsplit(url)
    scheme = "socks5" if parts.scheme == "socks5h" else parts.scheme
    port = "" if parts.port or scheme != "socks5" else f":{SOCKS_PORT}"
    return f"{scheme}://{parts.netloc.removesuffix(':')}{port}"


# --- The connection ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surroundings:
    """What a connection needs from outside."""

    inbox: Inbox
    time_ns: Callable[[], int]
    uniform: Callable[[float, float], float]
    user_agent: str
    renew_in_s: Callable[[], float] = lambda: RENEW_AFTER_S
    """Asked when a connection opens: after how long to replace it."""
    proxy: str | None = None
    ssl_context: ssl.SSLContext | None = None
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    """Numbers for the connections of all links."""
    attempts: Attempts = field(default_factory=Attempts)
    """The pace of all links."""


class _Subscription:
    """What one connection has asked for, and what the exchange has answered.

    An error in answer to several names may be the fault of one: halves of them are asked for again, until the one that
    is refused stands alone.
    """

    def __init__(self, streams: Sequence[str]) -> None:
        self.unsent = deque(message.streams for message in subscribe_messages(streams))
        self.pending: dict[int, tuple[str, ...]] = {}
        self.acknowledged: dict[str, float] = {}
        """Streams, and since when they are, by the event loop's clock."""
        self.refused: set[str] = set()
        self.has_sent = False
        self._changed = asyncio.Event()
        self._numbers = count(1)

    @property
    def is_answered(self) -> bool:
        """Whether nothing is waited for."""
        return not self.pending and not self.unsent

    @property
    def unanswered(self) -> list[str]:
        """The streams that no answer has come for."""
        return [name for names in (*self.pending.values(), *self.unsent) for name in names]

    def waits_for(self, id_: object) -> bool:
        """Tell whether an answer's ID, which may be anything, is that of a message of ours that waits for it."""
        return isinstance(id_, int) and id_ in self.pending

    def next_message(self) -> bytes:
        """Return the next message to send; its answer is waited for from now on."""
        (message,) = subscribe_messages(self.unsent.popleft(), next(self._numbers))
        self.has_sent = True
        self.pending[message.id] = message.streams
        return message.payload

    def acknowledge(self, id_: object, now_s: float) -> tuple[str, ...]:
        """Take an acknowledgement, and return the streams it is for."""
        streams = self._answered(id_)
        for name in streams:
            self.acknowledged.setdefault(name, now_s)
        self.refused.difference_update(streams)
        return streams

    def refuse(self, id_: object) -> tuple[str, ...] | None:
        """Take an error, and return the streams it is for; None where smaller parts of them are asked for instead."""
        streams = self._answered(id_)
        if len(streams) > 1:
            middle = len(streams) // 2
            self.unsent.extend((streams[:middle], streams[middle:]))
            return None
        self.refused.update(streams)
        return streams

    def ask(self, streams: Iterable[str]) -> None:
        """Let streams be asked for once more, one by one."""
        self.unsent.extend((name,) for name in streams)
        self._changed.set()

    async def has_changed(self, timeout_s: float | None) -> bool:
        """Wait until there is an answer, or something to send; tell whether that came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    def _answered(self, id_: object) -> tuple[str, ...]:
        streams = self.pending.pop(id_, ()) if isinstance(id_, int) else ()
        if streams:
            self._changed.set()
        return streams


class _Listener(WSListener):
    """Takes the frames of one connection: payloads are gathered until the socket read is used up, then handed over."""

    def __init__(self, session: "_Session") -> None:
        self.state = session.state
        self.number = next(session.around.numbers)
        self.subscription = _Subscription(session.state.link.streams)
        self.dropped = ""
        self.is_paused = False
        self._session = session
        self._decoder = session.decoder
        self._inbox = session.around.inbox
        self._time_ns = session.around.time_ns
        self._transport: WSTransport | None = None
        self._payloads: list[bytes] = []
        self._received_ns = 0
        self._size = 0
        self._fragments: bytearray | None = None
        """The beginning of a message that comes in several frames; None between messages."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        if self._session.task.done():  # given up while the handshake was on its way
            transport.disconnect()
            return
        if hasattr(socket, "TCP_WINDOW_CLAMP"):
            connection = transport.underlying_transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # the connection has ended already, or one read may be larger
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, UNREAD_BYTES)
        self._inbox.add_listener(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        # Called for every message. No control frame is longer than 125 bytes (RFC 6455 5.5) and nearly every message
        # is, so its size tells what asking for the frame's type would cost four times as much to tell.
        if frame.payload_size > CONTROL_FRAME_BYTES and frame.fin and self._fragments is None:
            payloads = self._payloads
            if not payloads:
                self._received_ns = self._time_ns()
                self._size = frame.payload_size + frame.tail_size
            payloads.append(frame.get_payload_as_bytes())
        else:
            self._unusual(transport, frame)
        if frame.last_in_buffer:
            self._hand_over(frame)

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        """Tell whether a frame answers our ping; then it does not come to `on_ws_frame`, though a read may end here."""
        is_pong = frame.msg_type == WSMsgType.PONG
        if is_pong:
            self.state.received_ns = self._time_ns()
            if frame.last_in_buffer:
                self._hand_over(frame)
        return is_pong

    def _unusual(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a short frame, a fragment, a ping, or the end of the connection.

        Pings are answered here and not by the library, because it keeps them to itself: a ping at the end of a read
        would hide that the read is over.
        """
        if frame.msg_type == WSMsgType.CLOSE:
            self._hand_over(frame)
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif frame.msg_type == WSMsgType.PING:
            self.state.received_ns = self._time_ns()
            transport.send_pong(frame.get_payload_as_bytes())
            if transport.underlying_transport.get_write_buffer_size() > UNANSWERED_BYTES:
                self.drop("the exchange sends pings and does not take the answers")
        elif frame.msg_type in _DATA_FRAMES:
            self._join(frame)

    def subscribe_again(self, stream: str) -> None:
        """Ask once more for a stream that stays silent."""
        self.subscription.ask([stream])

    def drop(self, reason: str) -> None:
        """End the connection ourselves; what does not close soon is cut off."""
        if self.dropped:
            return
        self.dropped = reason
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()
            asyncio.get_running_loop().call_later(DROPPED_WITHIN_S, self._transport.underlying_transport.abort)

    def pause_reading(self) -> None:
        """Leave what comes to the kernel, and in the end to the exchange."""
        self.is_paused = True
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        self.is_paused = False
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.resume_reading()

    def forget(self) -> None:
        """Give back what the connection held, once it has ended."""
        self._inbox.remove_listener(self)
        self._inbox.fragments_bytes -= len(self._fragments or b"")
        self._fragments = None

    def _join(self, frame: WSFrame) -> None:
        """Put together a message sent in fragments (RFC 6455 5.4), or take a short one that came whole."""
        if (frame.msg_type == WSMsgType.CONTINUATION) is (self._fragments is None):
            self.drop("the exchange broke the websocket protocol: the parts of a message do not follow each other")
            return
        joined = self._fragments = self._fragments or bytearray()
        joined += frame.get_payload_as_bytes()
        self._inbox.fragments_bytes += frame.payload_size
        if len(joined) > MAX_FRAME_BYTES:
            self.drop(f"a message of the exchange is larger than {MAX_FRAME_BYTES} bytes")
        elif frame.fin:
            self._inbox.fragments_bytes -= len(joined)
            self._fragments = None
            self._take(bytes(joined), frame)
        elif self._inbox.fragments_bytes > FRAGMENTS_BYTES:
            self.drop(f"messages that have come in part only take more than {FRAGMENTS_BYTES} bytes together")

    def _take(self, payload: bytes, frame: WSFrame) -> None:
        """Gather a message; a short one may be the answer to one of ours, which is understood now."""
        if not self._payloads:
            self._received_ns = self._time_ns()
            self._size = len(payload) + frame.tail_size
        if len(payload) > CONTROL_FRAME_BYTES or self.decode([payload]):
            self._payloads.append(payload)

    def _hand_over(self, frame: WSFrame) -> None:
        """Put what the read has brought into the queue; `frame` is its last."""
        if not self._payloads:
            return
        payloads, self._payloads = self._payloads, []
        if not self._session.first_data.is_set() and self._holds_message(payloads):
            self._session.first_data.set()
        state, received_ns = self.state, self._received_ns
        state.messages += len(payloads)
        state.received_ns = received_ns
        self._inbox.put(Batch(state, self.number, received_ns, payloads, self.decode, self._size - frame.tail_size))

    def _holds_message(self, payloads: Sequence[bytes]) -> bool:
        """Tell whether one of the payloads is data; a page of nonsense is no reason to come back soon (rule 3)."""
        return any(isinstance(self._decoder.message(payload), Message) for payload in payloads)

    def decode(self, payloads: Sequence[bytes]) -> list[Message]:
        """Return the messages among `payloads`; what is something else is understood here or handed over as odd."""
        messages = self._decoder.messages(payloads)
        if messages is not None:
            return messages
        messages = []
        for payload in payloads:
            decoded = self._decoder.message(payload)
            if isinstance(decoded, Message):
                messages.append(decoded)
            else:
                self._notice(payload, decoded)
        return messages

    def _notice(self, payload: bytes, notice: Notice) -> None:
        match notice:
            case Acknowledged(id_) if self.subscription.waits_for(id_):
                self._acknowledged(id_)
            case ControlError() as error if self.subscription.waits_for(error.id) or not self.state.strange_error_told:
                self._refused(error)
            case ServerShutdown():
                self._session.renew("the exchange announced that this server shuts down")
            case Acknowledged() | ControlError():
                answer = Refused(f"an answer to nothing that was asked: {notice}")
                self._inbox.put(Odd(self.state, self._received_ns, payload, answer))
            case _:
                self._inbox.put(Odd(self.state, self._received_ns, payload, notice))

    def _acknowledged(self, id_: object) -> None:
        streams = self.subscription.acknowledge(id_, asyncio.get_running_loop().time())
        accepted = self.state.refusals_told.intersection(streams)
        if accepted:
            self.state.refusals_told -= accepted
            self._inbox.put(SubscriptionAccepted(self.state, sorted(accepted)))

    def _refused(self, error: ControlError) -> None:
        """Tell that streams are refused, each once for as long as it is; of errors that name none, the first."""
        streams = self.subscription.refuse(error.id)
        if streams is None or (streams and self.state.refusals_told.issuperset(streams)):
            return
        self.state.refusals_told.update(streams)
        self.state.strange_error_told |= not streams
        self._inbox.put(SubscriptionRefused(self.state, streams, error))


_DATA_FRAMES = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION)


async def keep(state: LinkState, decoder: Decoder, around: Surroundings) -> None:
    """Keep one link alive until cancelled; all that happens goes into the inbox."""
    waits = backoff(around.uniform)
    session: _Session | None = None
    try:
        await _until_allowed(state, around)
        session = _Session(state, decoder, around)
        while True:
            reason = await session.until_due()
            if reason:
                session = await _renewed(session, reason)
                continue
            end = session.end
            if session.had_data:
                waits = backoff(around.uniform)
            state.connected = False
            wait_s = max(next(waits), _wait_after(end, state, around))
            around.inbox.put(Disconnected(state, end.reason, end.remedy, wait_s, end.opened, end.urgent, end.seen))
            await asyncio.sleep(wait_s)
            await _until_allowed(state, around)
            session = _Session(state, decoder, around)
    finally:
        if session is not None:
            await session.close()


def _wait_after(end: _End, state: LinkState, around: Surroundings) -> float:
    """Return how long to wait at least after an end, and let the other links to that host wait with it (rule 4)."""
    now_s = asyncio.get_running_loop().time()
    host = urlsplit(state.link.url).netloc
    if not end.seen:
        around.attempts.give_back(state.exchange)
    if end.for_all:
        around.attempts.close(host, now_s + end.wait_s)
    asked_s = max(end.wait_s, around.attempts.closed_s(host, now_s))
    return max(_spread(asked_s, around), around.attempts.paced_s(state.exchange, now_s))


def _spread(wait_s: float, around: Surroundings) -> float:
    """Make a wait that others have too a little longer, each by another part."""
    return wait_s and wait_s + around.uniform(0.0, wait_s * WAIT_SPREAD)


async def _until_allowed(state: LinkState, around: Surroundings) -> None:
    """Wait until the queue has room (rule 2), the host is not closed, and the pace allows an attempt (rule 3)."""
    await around.inbox.room()
    now_s = asyncio.get_running_loop().time()
    closed_s = _spread(around.attempts.closed_s(urlsplit(state.link.url).netloc, now_s), around)
    if wait_s := max(closed_s, around.attempts.take(state.exchange, now_s)):
        await asyncio.sleep(wait_s)


async def _renewed(old: "_Session", reason: str) -> "_Session":
    """Open a connection beside `old`, let both deliver for a moment, close the old one; return the one to go on with.

    No row is lost between them, and what both bring is written once (`gaps`). A quiet market may bring nothing on the
    new connection: then its acknowledged subscription has to do. What ends soon, or is refused more than the old one,
    replaces nothing.
    """
    inbox, state = old.around.inbox, old.state
    allowed = asyncio.create_task(_until_allowed(state, old.around))
    try:
        await asyncio.wait({allowed, old.task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        allowed.cancel()
    if old.task.done():
        old.due.clear()
        return old
    inbox.put(Renewing(state, reason))
    new = _Session(state, old.decoder, old.around)
    try:
        await new.until(new.subscribed, SUBSCRIBED_WITHIN_S)
        if new.can_replace(old):
            await new.until(new.first_data, FIRST_DATA_WITHIN_S)
            await asyncio.wait({new.task}, timeout=OVERLAP_S)
        if not new.can_replace(old):
            await new.close()
            inbox.put(RenewalFailed(state, new.why_not, RENEW_AGAIN_S))
            state.current = old.listener
            old.renew_again_after(RENEW_AGAIN_S)
            return old
        await old.close()
    except asyncio.CancelledError:
        await new.close()
        raise
    inbox.put(Renewed(state))
    return new


class _Session:
    """One connection from its making to its end, and when it is due to be replaced."""

    def __init__(self, state: LinkState, decoder: Decoder, around: Surroundings) -> None:
        self.state = state
        self.decoder = decoder
        self.around = around
        self.listener: _Listener | None = None
        self.first_data = asyncio.Event()
        self.subscribed = asyncio.Event()
        """All streams are answered for."""
        self.due = asyncio.Event()
        self.due_reason = ""
        self.end = _End("not connected", opened=False)
        self._timer: asyncio.TimerHandle | None = None
        self.task = asyncio.create_task(self._live())

    @property
    def had_data(self) -> bool:
        """Whether it brought at least one message."""
        return self.first_data.is_set()

    @property
    def why_not(self) -> str:
        """Why it cannot replace another."""
        if self.task.done() and not self.task.cancelled():
            return self.end.reason
        return "it is refused more" if self.subscribed.is_set() else "the exchange did not answer SUBSCRIBE"

    def can_replace(self, old: "_Session") -> bool:
        """Tell whether it lives and is subscribed to all that `old` is."""
        if self.task.done() or not self.subscribed.is_set() or self.listener is None or old.listener is None:
            return False
        return self.listener.subscription.refused <= old.listener.subscription.refused

    async def until_due(self) -> str:
        """Wait for the end, or until it should be replaced; then return why."""
        await self.until(self.due, None)
        if not self.task.done():
            return self.due_reason
        if self.task.cancelled():  # by a library, because we cancel it in `close` only
            self.end = _End("the connection was broken off inside this program", "Please report this line", urgent=True)
        else:
            self.task.result()
        return ""

    async def until(self, event: asyncio.Event, timeout_s: float | None) -> None:
        """Wait for an event, for the end of the connection, or for `timeout_s`."""
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({self.task, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    def renew(self, reason: str) -> None:
        """Ask for a replacement."""
        self.due_reason = reason
        self.due.set()

    def renew_again_after(self, seconds: float) -> None:
        """Try the replacement that failed once more, later."""
        self.due.clear()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.renew, self.due_reason)

    async def close(self) -> None:
        """End the connection, if it has not ended by itself, and wait for that."""
        if self._timer is not None:
            self._timer.cancel()
        self.task.cancel()
        await asyncio.wait({self.task})

    async def _live(self) -> None:
        """Make the connection and see it through to its end, for which any failure whatever is a reason (rule 6)."""
        host = urlsplit(self.state.link.url).netloc
        try:
            self.end = await self._connected(host)
        except Exception as error:  # noqa: BLE001 - of libraries, fed by strangers; it is told, and never hidden
            self.end = _unforeseen(error, host, opened=self.listener is not None)

    async def _connected(self, host: str) -> _End:
        """Make the connection, see it through, and return why it ended."""
        try:
            transport, listener = await self._connect()
        except (OSError, WSError, ProxyError, UnicodeError) as error:  # UnicodeError: a host that is no name
            proxy = self.around.proxy
            near = host if proxy is None else f"{urlsplit(proxy).hostname} (PROXY)"
            return _refused_by(error, host, near, self.around.time_ns() / 1e9)
        if not isinstance(listener, _Listener):
            return _End(f"{host} closed the connection during the handshake", opened=False)
        self._begin(listener)
        try:
            end = await _carry(self, transport, listener)
            if listener.dropped:
                return _End(listener.dropped)
            return _unread(host) if listener.is_paused else end
        finally:
            self._finish(listener)

    async def _connect(self) -> tuple[WSTransport, WSListener]:
        """Make the connection; what is not ready in time, or not wanted any more, leaves nothing behind."""
        made: list[_Listener] = []

        def listener(*_: object) -> _Listener:
            made.append(_Listener(self))
            return made[-1]

        try:
            async with asyncio.timeout(CONNECTED_WITHIN_S):
                return await self._open(listener)
        except BaseException:
            for given_up in made:
                given_up.forget()
                given_up.drop("given up")
            raise

    async def _open(self, listener: Callable[..., _Listener]) -> tuple[WSTransport, WSListener]:
        around = self.around
        return await ws_connect(
            listener,
            self.state.link.url,
            ssl_context=around.ssl_context,
            websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            enable_auto_pong=False,
            enable_auto_ping=True,
            auto_ping_idle_timeout=PING_AFTER_IDLE_S,
            auto_ping_reply_timeout=PONG_WITHIN_S,
            max_frame_size=MAX_FRAME_BYTES,
            read_buffer_init_size=READ_BUFFER_BYTES,
            max_redirects=0,
            proxy=websocket_proxy(around.proxy),
            extra_headers={"User-Agent": around.user_agent},
        )

    def _begin(self, listener: _Listener) -> None:
        self.listener = listener
        self.state.connections += 1
        self.state.current = listener
        self.state.open.append(listener)
        self.state.received_ns = self.around.time_ns()  # its handshake was answered
        renew_in_s = self.around.renew_in_s()
        reason = f"it is {renew_in_s / 3600:.1f} hours old, and the exchange cuts at 24"
        self._timer = asyncio.get_running_loop().call_later(renew_in_s, self.renew, reason)

    def _finish(self, listener: _Listener) -> None:
        """Close the connection and give back what it held."""
        if self._timer is not None:
            self._timer.cancel()
        self.state.note_end(listener, asyncio.get_running_loop().time())
        if self.state.current is listener:
            self.state.current = None
        listener.forget()
        listener.resume_reading()
        listener.drop(listener.dropped)


def _unread(host: str) -> _End:
    return _End(
        f"nothing was read from {host}, because what waits to be written fills the queue, and the connection was lost",
        "It is not opened again before there is room",
    )


async def _carry(session: _Session, transport: WSTransport, listener: _Listener) -> _End:
    """Subscribe on an open connection and wait for its end."""
    subscribing = asyncio.create_task(_subscribe(session, transport, listener))
    ended = asyncio.ensure_future(transport.wait_disconnected())
    try:
        await asyncio.wait({subscribing, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            subscribing.result()
            return _End("the exchange did not answer SUBSCRIBE", wait_s=TOO_MANY_WAIT_S)
        try:
            await ended
        except WSError as error:
            return _End(f"the exchange broke the websocket protocol: {_line(error)}", wait_s=TOO_MANY_WAIT_S)
    finally:
        subscribing.cancel()
        ended.cancel()
    return _closed(transport)


async def _subscribe(session: _Session, transport: WSTransport, listener: _Listener) -> None:
    """Keep the streams subscribed for as long as the connection lives; return if the exchange does not answer.

    Where data comes although not all is answered, the connection is worth more than the answer.
    """
    subscription, inbox = listener.subscription, session.around.inbox
    await _send_all(transport, subscription)
    _note_connected(session)
    is_told = False
    while True:
        patience_s = None if is_told else ACKNOWLEDGED_WITHIN_S
        if subscription.is_answered:
            session.subscribed.set()
            patience_s = REFUSED_AGAIN_S if subscription.refused else None
        if await subscription.has_changed(patience_s):
            await _send_all(transport, subscription)
        elif subscription.is_answered:
            subscription.ask(sorted(subscription.refused))
        elif session.had_data:
            is_told = True
            inbox.put(Unacknowledged(session.state, subscription.unanswered))
        else:
            return


async def _send_all(transport: WSTransport, subscription: _Subscription) -> None:
    """Send what is to be asked for, at the allowed pace."""
    while subscription.unsent:
        if subscription.has_sent:
            await asyncio.sleep(SUBSCRIBE_INTERVAL_S)
        transport.send(WSMsgType.TEXT, subscription.next_message())


def _note_connected(session: _Session) -> None:
    state = session.state
    state.connected = True
    state.connected_at_s = asyncio.get_running_loop().time()
    session.around.inbox.put(Connected(state))


def _closed(transport: WSTransport) -> _End:
    """Put the end of a connection into words."""
    handshake = transport.close_handshake
    if handshake is not None and handshake.recv is not None:
        code = handshake.recv.code
        number = code.value if isinstance(code, WSCloseCode) else code
        reason = f": {handshake.recv.reason}" if handshake.recv.reason else ""
        wait_s = TOO_MANY_WAIT_S if code == WSCloseCode.POLICY_VIOLATION else 0.0
        return _End(f"the exchange closed the connection with code {number}{reason}", wait_s=wait_s)
    if handshake is not None and handshake.sent is not None:
        return _End(f"no answer to ping: {handshake.sent.reason}")
    return _End("the connection broke off without a close frame")
