"""One websocket kept alive: connect, subscribe, stamp the arrival, decode, hand over, reconnect with patience.

Rules:

1. Arrival is stamped when the bytes of a socket read are handed to us; every message of that read gets this stamp.
2. Nothing here waits for the writer. What arrives goes into the `Inbox`, which is bounded: when it is full the
   connections stop reading, so that the memory stays as it is and the exchange, or in the end the lost connection,
   notices. What is missed then is a gap like any other.
3. The wait before the next attempt grows with each attempt that brought no data and begins anew once data came. That
   a connection opened proves nothing. Binance allows 300 attempts per 5 minutes and IP (spot web-socket-streams.md), so
   connections that break again and again are held back even if each brings something.
4. A refusal is understood by its status and answered with patience of its own (`REFUSALS`); `Retry-After` is obeyed.
5. A connection is replaced before the exchange cuts it at 24 hours, and at once on `serverShutdown`: the new one first,
   both for a moment, then the old one is closed.
6. Every end of a connection, whatever its cause, is an event in the same queue as the data, in its place.
"""

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from itertools import count
from socket import gaierror

from picows import WSCloseCode, WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect
from python_socks import ProxyError

from tickcollect.events import Message
from tickcollect.exchanges.binance import (
    SUBSCRIBE_INTERVAL_S,
    Acknowledged,
    ControlError,
    Decoder,
    Link,
    Notice,
    ServerShutdown,
    subscribe_messages,
)

CONTROL_FRAME_BYTES = 125
DECODED_AT_ONCE = 500
MAX_FRAME_BYTES = 4 * 1024 * 1024
"""Of one frame, and of a message that comes in several."""
USUAL_BYTES = 256
"""What one message takes at most as a rule."""
LARGE_BYTES = 1024
"""What no message takes that was asked for; whatever does counts by its size in the queue."""
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
ATTEMPTS_AT_EASE = 30
"""Reconnections of one link within five minutes before each is held back; ten links then stay below 300 for the IP."""
ATTEMPTS_COUNTED_S = 300.0
CROWDED_WAIT_S = 10.0
LONGEST_BAN_S = 3 * 86_400.0
"""Bans last from 2 minutes to 3 days (Binance rest-api.md, "IP Limits")."""


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
class SubscriptionRefused:
    """The exchange answered a SUBSCRIBE with an error."""

    link: "LinkState"
    streams: Sequence[str]
    error: ControlError


Item = Batch | Odd | Connected | Disconnected | Renewing | Renewed | SubscriptionRefused


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


class Inbox:
    """The bounded queue between the connections and the writer, counted in messages.

    Messages count from their arrival until the writer says that it has done with them (`done`), so the limit bounds
    all that is in memory; an odd payload counts as the messages that its size would hold. At the limit every
    connection that delivers is paused; at half of it all go on.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting = 0
        self.pauses = 0
        self._items: deque[Item] = deque()
        self._taken = 0
        self._filled = asyncio.Event()
        self._paused: list[_Listener] = []

    def put(self, item: Item, source: "_Listener | None" = None) -> None:
        """Add an item; pause `source` if that fills the queue."""
        self._items.append(item)
        self._filled.set()
        match item:
            case Batch():
                self.waiting += len(item.payloads)
            case Odd():
                self.waiting += 1 + len(item.payload) // USUAL_BYTES
            case _:
                self.waiting += 1
        if self.waiting >= self.limit and source is not None and source not in self._paused:
            self.pauses += 1
            source.pause_reading()
            self._paused.append(source)

    async def take(self, timeout_s: float | None = None) -> list[Item]:
        """Return all that has come, waiting for something; an empty list after `timeout_s`."""
        if not self._items:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return []
        self._filled.clear()
        items = list(self._items)
        self._items.clear()
        self._taken = self.waiting
        return items

    def wake(self) -> None:
        """Let a waiting `take` return, or else the next one."""
        self._filled.set()

    def done(self) -> None:
        """All that was taken has been handed over; let the connections go on."""
        self.waiting -= self._taken
        self._taken = 0
        if self._paused and self.waiting <= self.limit // 2:
            paused, self._paused = self._paused, []
            for listener in paused:
                listener.resume_reading()


# --- Patience ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """What an HTTP status at the handshake means, and how long to wait at least."""

    meaning: str
    remedy: str
    wait_s: float


_BANNED = "requests from this IP pass the exchange's limit"
REFUSALS: dict[int, Refusal] = {
    403: Refusal(
        "the exchange's firewall refuses this IP",
        "it is tried again every 5 minutes; stop other programs that use this IP",
        300.0,
    ),
    418: Refusal(
        f"this IP is banned: {_BANNED}", "nothing is sent until the ban is over; stop other programs on this IP", 120.0
    ),
    429: Refusal(_BANNED, "it is tried again when the exchange allows; stop other programs on this IP", 60.0),
    451: Refusal(
        "the exchange does not serve this country or this cloud region",
        "run it elsewhere or, for spot, use --ws-url wss://data-stream.binance.vision",
        300.0,
    ),
}
"""Statuses that need more than a moment (Binance rest-api.md and several reports of 451 at the handshake)."""

TOO_MANY_WAIT_S = 10.0
"""After a close with 1008, which is how Binance ends a connection that sent too much; bans follow repeated offences."""


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


def _refused_by(error: Exception, host: str) -> _End:
    """Put the failure to connect into words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _End(
            f"the certificate of {host} is not trusted: {error.verify_message}",
            "check this machine's clock and its ca-certificates; somebody may be listening in",
            60.0,
            opened=False,
            urgent=True,
        )
    if isinstance(error, gaierror):
        return _End(
            f"the name {host} cannot be resolved ({error.strerror})", "check the network and its DNS", opened=False
        )
    if isinstance(error, ProxyError):
        return _End(f"the proxy does not connect to {host}: {error}", "check PROXY", opened=False, urgent=True)
    if isinstance(error, TimeoutError):
        return _End(f"{host} does not answer", "check the network", opened=False)
    if isinstance(error, WSHandshakeError) and error.response is not None:
        return _refused_with(int(error.response.status), error.response.headers.get("Retry-After"), host)
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    detail = os.strerror(number) if number else str(error) or type(error).__name__
    return _End(f"{host} cannot be reached: {detail}", "check the network", opened=False)


def _refused_with(status: int, retry_after: str | None, host: str) -> _End:
    refusal = REFUSALS.get(status)
    if refusal is None:
        is_trouble = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        meaning = "its server has trouble" if is_trouble else "that is not a websocket address of the exchange"
        wait_s = 0.0 if is_trouble else 60.0
        return _End(f"{host} answered HTTP {status}: {meaning}", "", wait_s, opened=False, urgent=not is_trouble)
    wait_s = max(refusal.wait_s, retry_after_s(retry_after))
    return _End(f"{host} answered HTTP {status}: {refusal.meaning}", refusal.remedy, wait_s, opened=False, urgent=True)


def retry_after_s(value: str | None) -> float:
    """Read a Retry-After header: seconds, up to the longest ban, or a date, which counts as an hour."""
    if not value:
        return 0.0
    if value.strip().isascii() and value.strip().isdigit():
        return min(float(value), LONGEST_BAN_S)
    try:
        parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return 3600.0


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


@dataclass
class _Subscription:
    """Which SUBSCRIBE messages still wait for their answer."""

    pending: dict[int, tuple[str, ...]] = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, id_: object) -> tuple[str, ...]:
        streams = self.pending.pop(id_, ()) if isinstance(id_, int) else ()
        if not self.pending:
            self.answered.set()
        return streams


class _Listener(WSListener):
    """Takes the frames of one connection: payloads are gathered until the socket read is used up, then handed over."""

    def __init__(self, session: "_Session") -> None:
        self.state = session.state
        self.number = next(session.around.numbers)
        self.subscription = _Subscription()
        self.dropped = ""
        self._session = session
        self._decoder = session.decoder
        self._inbox = session.around.inbox
        self._time_ns = session.around.time_ns
        self._transport: WSTransport | None = None
        self._payloads: list[bytes] = []
        self._received_ns = 0
        self._fragments = bytearray()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        if hasattr(socket, "TCP_WINDOW_CLAMP"):
            connection = transport.underlying_transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, UNREAD_BYTES)
        if self._session.task.done():  # given up while the handshake was on its way
            transport.disconnect()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        # Called for every message. No control frame is longer than 125 bytes (RFC 6455 5.5) and nearly every message
        # is, so its size tells what asking for the frame's type would cost four times as much to tell.
        if CONTROL_FRAME_BYTES < frame.payload_size < LARGE_BYTES and frame.fin and not self._fragments:
            payloads = self._payloads
            if not payloads:
                self._received_ns = self._time_ns()
            payloads.append(frame.get_payload_as_bytes())
        else:
            self._unusual(transport, frame)
        if frame.last_in_buffer:
            self._hand_over()

    def is_user_specific_pong(self, frame: WSFrame) -> bool:
        """Tell whether a frame answers our ping; then it does not come to `on_ws_frame`, though a read may end here."""
        is_pong = frame.msg_type == WSMsgType.PONG
        if is_pong and frame.last_in_buffer:
            self._hand_over()
        return is_pong

    def _unusual(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a short or large frame, a fragment, a ping, or the end of the connection.

        Pings are answered here and not by the library, because it keeps them to itself: a ping at the end of a read
        would hide that the read is over.
        """
        if frame.msg_type == WSMsgType.CLOSE:
            self._hand_over()
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type in _DATA_FRAMES:
            self._join(frame)

    def subscribe_again(self, stream: str) -> None:
        """Ask once more for a stream that stays silent."""
        again = subscribe_messages([stream])[0]
        if self._transport is not None:
            self._transport.send(WSMsgType.TEXT, again.payload)

    def drop(self, reason: str) -> None:
        """End the connection ourselves."""
        self.dropped = reason
        if self._transport is not None:
            self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_disconnected:
            self._transport.underlying_transport.resume_reading()

    def _join(self, frame: WSFrame) -> None:
        """Put together a message sent in fragments (RFC 6455 5.4)."""
        if frame.msg_type != WSMsgType.CONTINUATION:
            self._fragments.clear()
        self._fragments += frame.get_payload_as_bytes()
        if len(self._fragments) > MAX_FRAME_BYTES:
            self._fragments.clear()
            self.drop(f"a message of the exchange is larger than {MAX_FRAME_BYTES} bytes")
        elif frame.fin:
            payload = bytes(self._fragments)
            self._fragments.clear()
            self._take(payload)

    def _take(self, payload: bytes) -> None:
        """Gather a message; a short one may be the answer to one of ours, a large one is odd: both are seen now."""
        if not self._payloads:
            self._received_ns = self._time_ns()
        if CONTROL_FRAME_BYTES < len(payload) < LARGE_BYTES or self.decode([payload]):
            self._payloads.append(payload)

    def _hand_over(self) -> None:
        if not self._payloads:
            return
        payloads, self._payloads = self._payloads, []
        if not self._session.first_data.is_set() and self._holds_message(payloads):
            self._session.first_data.set()
        self.state.messages += len(payloads)
        self._inbox.put(Batch(self.state, self.number, self._received_ns, payloads, self.decode), self)

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
            case Acknowledged(id_):
                self.subscription.answer(id_)
            case ControlError() as error:
                streams = self.subscription.answer(error.id)
                self._inbox.put(SubscriptionRefused(self.state, streams, error), self)
            case ServerShutdown():
                self._session.renew("the exchange announced that this server shuts down")
            case _:
                self._inbox.put(Odd(self.state, self._received_ns, payload, notice), self)


_DATA_FRAMES = (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION)


async def keep(state: LinkState, decoder: Decoder, around: Surroundings) -> None:
    """Keep one link alive until cancelled; all that happens goes into the inbox."""
    waits = backoff(around.uniform)
    attempts_s: deque[float] = deque(maxlen=ATTEMPTS_AT_EASE)
    session = _Session(state, decoder, around)
    try:
        while True:
            reason = await session.until_due()
            if reason:
                session = await _renewed(session, reason)
                continue
            end = session.end
            if session.had_data:
                waits = backoff(around.uniform)
            state.connected = False
            wait_s = max(next(waits), end.wait_s, _crowded_s(attempts_s, asyncio.get_running_loop().time()))
            around.inbox.put(Disconnected(state, end.reason, end.remedy, wait_s, end.opened, end.urgent))
            await asyncio.sleep(wait_s)
            session = _Session(state, decoder, around)
    finally:
        await session.close()


def _crowded_s(attempts_s: deque[float], now_s: float) -> float:
    """Note an attempt, and return how long to wait at least if there were many within five minutes (rule 3)."""
    many = len(attempts_s) == attempts_s.maxlen and now_s - attempts_s[0] < ATTEMPTS_COUNTED_S
    attempts_s.append(now_s)
    return CROWDED_WAIT_S if many else 0.0


async def _renewed(old: "_Session", reason: str) -> "_Session":
    """Open a connection beside `old`, let both deliver for a moment, close the old one; return the one to go on with.

    No row is lost between them, and what both bring is written once (`gaps`). A quiet market may bring nothing on the
    new connection: then its acknowledged subscription has to do.
    """
    inbox, state = old.around.inbox, old.state
    inbox.put(Renewing(state, reason))
    new = _Session(state, old.decoder, old.around)
    try:
        await new.until(new.subscribed, SUBSCRIBED_WITHIN_S)
        if not new.subscribed.is_set():
            await new.close()
            state.current = old.listener
            old.renew_again_after(RENEW_AGAIN_S)
            return old
        await new.until(new.first_data, FIRST_DATA_WITHIN_S)
        await asyncio.sleep(OVERLAP_S)
        await old.close()
    except asyncio.CancelledError:
        await new.close()
        raise
    state.connected = not new.task.done()
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
        self.due = asyncio.Event()
        self.due_reason = ""
        self.end = _End("not connected", opened=False)
        self._timer: asyncio.TimerHandle | None = None
        self.task = asyncio.create_task(self._live())

    @property
    def had_data(self) -> bool:
        """Whether it brought at least one message."""
        return self.first_data.is_set()

    async def until_due(self) -> str:
        """Wait for the end, or until it should be replaced; then return why."""
        await self.until(self.due, None)
        if self.task.done():
            self.task.result()
            return ""
        return self.due_reason

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
        """Make the connection and see it through to its end."""
        state, around = self.state, self.around
        host = state.link.url.split("/")[2]
        try:
            async with asyncio.timeout(CONNECTED_WITHIN_S):
                transport, listener = await ws_connect(
                    lambda: _Listener(self),
                    state.link.url,
                    ssl_context=around.ssl_context,
                    websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                    enable_auto_pong=False,
                    enable_auto_ping=True,
                    auto_ping_idle_timeout=PING_AFTER_IDLE_S,
                    auto_ping_reply_timeout=PONG_WITHIN_S,
                    max_frame_size=MAX_FRAME_BYTES,
                    read_buffer_init_size=READ_BUFFER_BYTES,
                    max_redirects=0,
                    proxy=around.proxy,
                    extra_headers={"User-Agent": around.user_agent},
                )
        except (OSError, WSError, ProxyError, UnicodeError) as error:  # UnicodeError: a host that is no name
            self.end = _refused_by(error, host)
            return
        if not isinstance(listener, _Listener):
            self.end = _End(f"{host} closed the connection during the handshake", opened=False)
            return
        self.listener = listener
        state.connections += 1
        state.current = listener
        renew_in_s = around.renew_in_s()
        self._timer = asyncio.get_running_loop().call_later(
            renew_in_s, self.renew, f"it is {renew_in_s / 3600:.1f} hours old, and the exchange cuts at 24"
        )
        try:
            self.end = await _carry(self, transport, listener)
        finally:
            self._timer.cancel()
            if state.current is listener:
                state.current = None
            listener.resume_reading()
            listener.drop(listener.dropped)
        if listener.dropped:
            self.end = _End(listener.dropped)


async def _carry(session: _Session, transport: WSTransport, listener: _Listener) -> _End:
    """Subscribe on an open connection and wait for its end."""
    subscribing = asyncio.create_task(_subscribe(session, transport, listener))
    ended = asyncio.ensure_future(transport.wait_disconnected())
    try:
        await asyncio.wait({subscribing, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and not subscribing.result():
            return _End("the exchange did not answer SUBSCRIBE", wait_s=TOO_MANY_WAIT_S)
        try:
            await ended
        except WSError as error:
            return _End(f"the exchange broke the websocket protocol: {error}", wait_s=TOO_MANY_WAIT_S)
    finally:
        subscribing.cancel()
        ended.cancel()
    return _closed(transport)


async def _subscribe(session: _Session, transport: WSTransport, listener: _Listener) -> bool:
    """Send the SUBSCRIBE messages at the allowed pace and tell whether all were answered."""
    state, subscription = session.state, listener.subscription
    asked = subscribe_messages(state.link.streams)
    subscription.pending = {subscribe.id: subscribe.streams for subscribe in asked}
    for subscribe in asked:
        if subscribe is not asked[0]:
            await asyncio.sleep(SUBSCRIBE_INTERVAL_S)
        transport.send(WSMsgType.TEXT, subscribe.payload)
    state.connected = True
    state.connected_at_s = asyncio.get_running_loop().time()
    session.around.inbox.put(Connected(state))
    try:
        async with asyncio.timeout(ACKNOWLEDGED_WITHIN_S):
            await subscription.answered.wait()
    except TimeoutError:
        return False
    session.subscribed.set()
    return True


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
