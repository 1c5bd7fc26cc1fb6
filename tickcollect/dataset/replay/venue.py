"""How Binance's three markets speak on a websocket: shapes, paths, limits, control messages.

The rules, all pure (no socket, no clock):

* A frame is combined (``{"stream":...,"data":...}``) or raw (the data alone). ``/stream`` starts combined, ``/ws`` raw;
  SET_PROPERTY changes it. Replies to control messages are never wrapped.
* An acknowledgement says only that the request was understood: an unknown symbol, an uppercase one, and on USD-M a
  stream asked for on the wrong path are acknowledged, listed, and never deliver anything.
* More than ``MAX_STREAMS`` streams on a connection end it: error 4, then close code 1008.

Sources: binance-spot-api-docs, web-socket-streams.md (2026-07-21); developers.binance.com, "Connect" and "Live
Subscribing" of USD-M and COIN-M (2026-08); for what those pages leave open (the error's shape on futures, the silent
wrong path, error 4), frames that others have published.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import orjson

MAX_STREAMS = 1024
CLOSE_POLICY = 1008
METHODS = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")


class Message(NamedTuple):
    """One message of one stream, ready to be sent in either form."""

    at_ns: int  # market time: when it was received, or published
    stream: str
    combined: bytes
    data: bytes


class Trade(NamedTuple):
    """One trade ID. `kind` is the futures stream's `X`; only MARKET rows are part of the public history."""

    id: int
    price: str
    quantity: str
    time_ms: int
    buyer_is_maker: bool
    kind: str = "MARKET"


class Aggregate(NamedTuple):
    """One aggregate trade; `normal_quantity` is USD-M's `nq`, empty where the message had none."""

    id: int
    price: str
    quantity: str
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool
    normal_quantity: str = ""


@dataclass(frozen=True)
class Listing:
    """A symbol as exchangeInfo lists it; tick and step are the smallest differences of price and quantity, as text."""

    symbol: str
    base: str
    quote: str
    tick: str
    step: str


class Carries(Enum):
    """Which streams a websocket path delivers."""

    EVERYTHING = "everything"
    BOOK_AND_TRADES = "book and trades"
    THE_REST = "the rest"
    NOTHING_PUBLIC = "nothing public"


_BOOK_OR_TRADE = re.compile(r"!?(?:[^@]*@)?(?:trade|bookTicker|depth\d*|rpiDepth)(?:@|$)")


@dataclass(frozen=True)
class Venue:
    """What differs between the three markets on the websocket and in the limits. Times in seconds."""

    exchange: str
    api: str  # what every REST path begins with
    paths: Mapping[str, Carries]
    ping_interval_s: float
    pong_timeout_s: float
    client_messages_per_s: int
    weight_per_minute: int
    wraps_errors: bool  # {"error": {...}, "id": ..} instead of {"code": .., "msg": .., "id": ..}
    market_type: int  # the `st` of futures messages, 0 on spot
    control_bytes: int | None = None  # a longer control message gets no reply at all

    @property
    def is_spot(self) -> bool:
        """Whether rows have the spot market's fields."""
        return self.market_type == 0


VENUES: Mapping[str, Venue] = MappingProxyType(
    {
        venue.exchange: venue
        for venue in (
            Venue(
                exchange="binance",
                api="/api/v3",
                paths={"": Carries.EVERYTHING},
                ping_interval_s=20,
                pong_timeout_s=60,
                client_messages_per_s=5,
                weight_per_minute=6000,
                wraps_errors=False,
                market_type=0,
                # binance-connector-rust issue 27 (2024-12): 4088 bytes are answered, more than 4096 are not.
                control_bytes=4096,
            ),
            Venue(
                exchange="binance-futures",
                api="/fapi/v1",
                # The unrouted path was to end on 2026-04-23 and has since behaved like /public.
                paths={
                    "/public": Carries.BOOK_AND_TRADES,
                    "/market": Carries.THE_REST,
                    # For user data; clients open it beside the others. Here there are no users, so it stays silent.
                    "/private": Carries.NOTHING_PUBLIC,
                    "": Carries.BOOK_AND_TRADES,
                },
                ping_interval_s=180,
                pong_timeout_s=600,
                client_messages_per_s=10,
                weight_per_minute=2400,
                wraps_errors=True,
                market_type=1,
            ),
            Venue(
                exchange="binance-delivery",
                api="/dapi/v1",
                paths={"": Carries.EVERYTHING},
                ping_interval_s=180,
                pong_timeout_s=600,
                client_messages_per_s=10,
                weight_per_minute=2400,
                wraps_errors=True,
                market_type=2,
            ),
        )
    }
)


# Message shapes


def message(at_ns: int, stream: str, data: bytes) -> Message:
    """Make a message whose combined form is the plain wrapper around `data`."""
    return Message(at_ns, stream, b'{"stream":"%b","data":%b}' % (stream.encode(), data), data)


def trade_data(venue: Venue, symbol: str, trade: Trade, event_ms: int, orders: tuple[str, str] = ("", "")) -> bytes:
    """Write the `trade` message. `orders` are the buyer's and seller's order IDs of before 2024-06-18, empty since."""
    price, quantity, maker = trade.price, trade.quantity, "true" if trade.buyer_is_maker else "false"
    if venue.is_spot:
        buyer, seller = orders
        old = f'"b":{buyer},"a":{seller},' if buyer and seller else ""
        return (
            f'{{"e":"trade","E":{event_ms},"s":"{symbol}","t":{trade.id},"p":"{price}","q":"{quantity}",{old}'
            f'"T":{trade.time_ms},"m":{maker},"M":true}}'
        ).encode()
    return (
        f'{{"e":"trade","E":{event_ms},"T":{trade.time_ms},"s":"{symbol}","t":{trade.id},"p":"{price}",'
        f'"q":"{quantity}","X":"{trade.kind}","m":{maker},"st":{venue.market_type}}}'
    ).encode()


def aggregate_data(venue: Venue, symbol: str, row: Aggregate, event_ms: int) -> bytes:
    """Write the `aggTrade` message."""
    maker = "true" if row.buyer_is_maker else "false"
    ids = f'"f":{row.first_id},"l":{row.last_id},"T":{row.time_ms},"m":{maker}'
    if venue.is_spot:
        return (
            f'{{"e":"aggTrade","E":{event_ms},"s":"{symbol}","a":{row.id},"p":"{row.price}","q":"{row.quantity}",'
            f'{ids},"M":true}}'
        ).encode()
    normal = f'"nq":"{row.normal_quantity}",' if row.normal_quantity else ""
    return (
        f'{{"e":"aggTrade","E":{event_ms},"a":{row.id},"s":"{symbol}","p":"{row.price}","q":"{row.quantity}",'
        f'{normal}{ids},"st":{venue.market_type}}}'
    ).encode()


def shutdown_data(event_ms: int) -> Message:
    """Make the notice that the server will go down (spot, since 2026-05-08)."""
    return message(event_ms * 1_000_000, "!serverShutdown", b'{"e":"serverShutdown","E":%d}' % event_ms)


_TIMES_MS = re.compile(rb'"(E|T)":(\d{13})(?=\D)')


def in_microseconds(data: bytes) -> bytes:
    """Return the same message as a connection with `timeUnit=MICROSECOND` gets it."""
    return _TIMES_MS.sub(rb'"\1":\g<2>000', data)


# The connection's address


@dataclass
class Session:
    """What one connection has asked for: its path's reach, its form, its streams in the order they were asked for."""

    venue: Venue
    carries: Carries
    combined: bool
    microseconds: bool = False
    streams: dict[str, None] = field(default_factory=dict)

    def delivers(self, stream: str) -> bool:
        """Whether this connection's path ever sends `stream`."""
        if self.carries in {Carries.EVERYTHING, Carries.NOTHING_PUBLIC}:
            return self.carries is Carries.EVERYTHING
        return bool(_BOOK_OR_TRADE.match(stream)) is (self.carries is Carries.BOOK_AND_TRADES)


def open_session(venue: Venue, target: str) -> tuple[Session, list[str]] | None:
    """Open the session that the request target opens and the streams it names, or None where no websocket is served.

    Spot reads percent-encoded targets since 2025-12; they are read on all three here.
    """
    path, _, query = target.partition("?")
    path = unquote(path).rstrip("/")
    # A plus stands for itself in a stream name (`@kline_1d@+08:00`).
    parameters = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))
    unit = parameters.get("timeUnit", "").upper()
    if unit not in {"", "MILLISECOND", "MICROSECOND"} or (unit and not venue.is_spot):
        return None
    for prefix, carries in venue.paths.items():
        if not path.startswith(f"{prefix}/"):
            continue
        session = Session(venue, carries, combined=False, microseconds=unit == "MICROSECOND")
        form, _, named = path.removeprefix(f"{prefix}/").partition("/")
        if form == "ws":
            return session, _names(named)
        if form == "stream" and not named:
            session.combined = True
            return session, _names(parameters.get("streams", ""))
    return None


def _names(text: str) -> list[str]:
    return [name for name in text.split("/") if name]


# Control messages


class Outcome(NamedTuple):
    """What a control message leads to: the reply (None: silence), and the streams that came and went."""

    reply: bytes | None
    added: list[str]
    removed: list[str]
    close: tuple[int, str] | None = None


class _RefusedError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def control(session: Session, text: bytes) -> Outcome:
    """Carry out one control message on `session`."""
    venue = session.venue
    if venue.control_bytes is not None and len(text) > venue.control_bytes:
        return Outcome(None, [], [])
    request_id: Any = None
    try:
        request = _parse(text)
        request_id = _request_id(venue, request)
        return _carry_out(session, request, request_id)
    except _RefusedError as refused:
        error = {"code": refused.code, "msg": str(refused)}
        reply = {"error": error, "id": request_id} if venue.wraps_errors else {**error, "id": request_id}
        return Outcome(orjson.dumps(reply), [], [])


def subscribe(session: Session, names: Iterable[str]) -> Outcome:
    """Add `names` to the session: what a connection's address does, and SUBSCRIBE."""
    added = [name for name in dict.fromkeys(names) if name not in session.streams]
    if len(session.streams) + len(added) > MAX_STREAMS:
        error = {"code": 4, "msg": "Too many subscriptions"}
        reply = {"error": error} if session.venue.wraps_errors else error
        return Outcome(orjson.dumps(reply), [], [], close=(CLOSE_POLICY, "Too many subscriptions"))
    session.streams.update(dict.fromkeys(added))
    return Outcome(None, added, [])


def _parse(text: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _RefusedError(3, f"Invalid JSON: expected value at line {error.lineno} column {error.colno}") from error
    if not isinstance(request, dict):
        raise _RefusedError(2, "Invalid request: expected an object")
    return request


def _request_id(venue: Venue, request: dict[str, Any]) -> Any:
    """Return the request's `id`: an unsigned number; on spot also a negative one, a short text or null.

    Spot's documents say alphanumeric; Binance's own SDKs send UUIDs with their dashes, and are answered.
    """
    value = request.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        valid = value >= (-(2**63) if venue.is_spot else 0)
    elif isinstance(value, str):
        valid = venue.is_spot and re.fullmatch(r"[0-9A-Za-z_-]{1,36}", value) is not None
    else:
        valid = venue.is_spot and value is None and "id" in request
    if not valid:
        raise _RefusedError(2, "Invalid request: request ID must be an unsigned integer")
    return value


def _carry_out(session: Session, request: dict[str, Any], request_id: Any) -> Outcome:
    method = request.get("method")
    if method is None:
        raise _RefusedError(2, "Invalid request: missing field `method` at line 1 column 1")
    match method:
        case "SUBSCRIBE":
            outcome = subscribe(session, _stream_names(request))
            return outcome if outcome.close else outcome._replace(reply=_result(None, request_id))
        case "UNSUBSCRIBE":
            removed = [name for name in _stream_names(request) if name in session.streams]
            for name in removed:
                session.streams.pop(name, None)
            return Outcome(_result(None, request_id), [], removed)
        case "LIST_SUBSCRIPTIONS":
            return Outcome(_result(list(session.streams), request_id), [], [])
        case "SET_PROPERTY" | "GET_PROPERTY":
            return Outcome(_result(_property(session, method, request.get("params")), request_id), [], [])
    known = ", ".join(f"`{name}`" for name in METHODS)
    raise _RefusedError(2, f"Invalid request: unknown variant `{method}`, expected one of {known} at line 1 column 1")


def _stream_names(request: dict[str, Any]) -> list[str]:
    names = request.get("params")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _RefusedError(2, "Invalid request: params must be a list of stream names")
    return names


def _property(session: Session, method: str, params: Any) -> bool | None:
    expected = 1 if method == "GET_PROPERTY" else 2
    if not isinstance(params, list) or not params or not isinstance(params[0], str):
        raise _RefusedError(2, "Invalid request: property name must be a string")
    if len(params) > expected:
        raise _RefusedError(2, "Invalid request: too many parameters")
    if params[0] != "combined":
        raise _RefusedError(0, "Unknown property")
    if method == "GET_PROPERTY":
        return session.combined
    if len(params) < expected or not isinstance(params[1], bool):
        raise _RefusedError(1, "Invalid value type: expected Boolean")
    session.combined = params[1]
    return None


def _result(value: Any, request_id: Any) -> bytes:
    return orjson.dumps({"result": value, "id": request_id})
