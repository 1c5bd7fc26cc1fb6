"""Binance: three markets as rows of one table, and the protocol they share. Bytes in, events out; no I/O.

What the markets have in common is code here; what sets them apart is a row of `MARKETS`. Sources: Binance's spot
documents (web-socket-streams.md and rest-api.md, 2026-07-21) and its derivatives documents (USD-M and COIN-M "Connect"
and "Live Subscribing" pages, 2026-08/09; "Important WebSocket Change Notice", 2026-03-05).

1. A stream is named `<symbol in lower case>@<stream>`; an upper-case symbol is acknowledged and then stays silent.
2. USD-M routes streams by path, `/public` or `/market`. A stream subscribed on the wrong path is acknowledged and
   never sends anything: the route is part of the table and an acknowledgement proves nothing.
3. Control replies are never wrapped in `{"stream":..,"data":..}`, and errors come in two shapes, `{"code":..,"msg":..}`
   and `{"error":{"code":..,"msg":..}}`.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Union
from urllib.parse import urlsplit

import msgspec
import orjson

from tickcollect.events import (
    AggTrade,
    FuturesTrade,
    Message,
    MessageType,
    PlainTrade,
    Time,
    Trade,
    from_history,
    time_ms,
    with_fields,
)

STREAMS_PER_SUBSCRIBE = 100
"""Names in one SUBSCRIBE. A frame above 4 KiB (about 216 names) made the spot server hang (2024-12)."""
SUBSCRIBE_BYTES = 3500
STREAMS_PER_CONNECTION = 200
"""COIN-M's limit by the older documents; 1024 elsewhere. Fewer also means that one cut connection stops fewer feeds."""
SUBSCRIBE_INTERVAL_S = 0.5
"""Between control messages: 2 a second, where 5 (spot) and 10 (futures) are allowed, pings and pongs included."""


@dataclass(frozen=True)
class Source:
    """The REST call that gives rows of one stream: their newest, or from an ID on (`fromId`), oldest first."""

    path: str
    weight: int
    limit: int
    """Rows in one answer at most."""
    renamed: Mapping[str, str]
    """Where a field has another name than on the stream."""
    key_header: str = ""
    """The header that must carry an API key; empty where none is needed."""
    reaches_back: str = "without limit"
    """How old a row may be, as Binance says it."""


@dataclass(frozen=True)
class Tickers:
    """The REST call that names the newest single trade of many symbols (`lastId`): the last 24 hours' statistics.

    Binance rest-api.md, "24hr ticker price change statistics" (2026-07): weight 2 for up to 20 symbols, 40 for up to
    100, 80 for more; its derivatives' "24hr Ticker Price Change Statistics" (2026-08): 40 for all symbols at once.
    """

    path: str
    weight: int
    symbols: int | None
    """How many symbols are named in one request; None: they cannot be named, and all come."""


_TRADE_NAMES = {"t": "id", "p": "price", "q": "qty", "T": "time", "m": "isBuyerMaker"}
_FUTURES_LATEST = {
    "trade": Source("/trades", 5, 1000, _TRADE_NAMES),
    "aggTrade": Source("/aggTrades", 20, 1000, {}),
}


@dataclass(frozen=True)
class Market:
    """One Binance market: what sets it apart from the other two."""

    name: str
    ws_url: str
    second_ws_url: str
    """Another host, or at least another address of it, for a second connection that carries the same streams."""
    rest_url: str
    rest_prefix: str
    default_stream: str
    routes: Mapping[str, str]
    """Path before `/stream`, by stream."""
    message_types: Mapping[str, MessageType]
    status_field: str
    """Where exchangeInfo says whether a symbol trades."""
    exchange_info_weight: int
    weight_per_minute: int
    """The IP's budget, until exchangeInfo has told today's."""
    weight_pool: str
    """What counts into one budget: USD-M and COIN-M do (notice of 2026-06-10)."""
    latest: Mapping[str, Source]
    """Where the newest rows of each stream are."""
    history: Mapping[str, Source]
    """Where older rows of each stream are, by ID."""
    tickers: Tickers
    """Where the newest trades of many symbols are named at once."""


MARKETS: dict[str, Market] = {
    market.name: market
    for market in (
        Market(
            name="binance",
            ws_url="wss://stream.binance.com:9443",
            second_ws_url="wss://data-stream.binance.vision",
            rest_url="https://api.binance.com",
            rest_prefix="/api/v3",
            default_stream="trade",
            routes={"trade": "", "aggTrade": ""},
            message_types={"trade": Trade, "aggTrade": AggTrade},
            status_field="status",
            exchange_info_weight=20,
            weight_per_minute=6000,
            weight_pool="spot",
            latest={
                "trade": Source("/trades", 25, 1000, _TRADE_NAMES),
                "aggTrade": Source("/aggTrades", 4, 1000, {}),
            },
            history={
                "trade": Source("/historicalTrades", 25, 1000, _TRADE_NAMES),
                "aggTrade": Source("/aggTrades", 4, 1000, {}),
            },
            tickers=Tickers("/ticker/24hr", 2, 20),
        ),
        Market(
            name="binance-futures",
            ws_url="wss://fstream.binance.com",
            second_ws_url="wss://fstream.binance.com:443",
            rest_url="https://fapi.binance.com",
            rest_prefix="/fapi/v1",
            default_stream="aggTrade",
            routes={"trade": "/public", "aggTrade": "/market"},
            message_types={"trade": FuturesTrade, "aggTrade": AggTrade},
            status_field="status",
            exchange_info_weight=1,
            weight_per_minute=2400,
            weight_pool="futures",
            latest=_FUTURES_LATEST,
            history={
                "trade": Source("/historicalTrades", 200, 500, _TRADE_NAMES, "X-MBX-APIKEY", "one month"),
                "aggTrade": Source("/aggTrades", 20, 1000, {}, "", "48 hours"),
            },
            tickers=Tickers("/ticker/24hr", 40, None),
        ),
        Market(
            name="binance-delivery",
            ws_url="wss://dstream.binance.com",
            second_ws_url="wss://dstream.binance.com:443",
            rest_url="https://dapi.binance.com",
            rest_prefix="/dapi/v1",
            default_stream="aggTrade",
            routes={"trade": "", "aggTrade": ""},
            message_types={"trade": FuturesTrade, "aggTrade": AggTrade},
            status_field="contractStatus",
            exchange_info_weight=1,
            weight_per_minute=2400,
            weight_pool="futures",
            latest=_FUTURES_LATEST,
            history={
                "trade": Source("/historicalTrades", 200, 500, _TRADE_NAMES, "X-MBX-APIKEY", "one month"),
                "aggTrade": Source("/aggTrades", 20, 1000, {}, "", "24 hours"),
            },
            tickers=Tickers("/ticker/24hr", 40, None),
        ),
    )
}


# --- What we say ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One connection to be made: where to, and which streams it shall carry."""

    url: str
    streams: tuple[str, ...]
    """Stream names as subscribed, `btcusdt@trade`."""


def stream_name(symbol: str, stream: str) -> str:
    """Return the exchange's name for one symbol's stream (rule 1)."""
    return f"{symbol.lower()}@{stream}"


def links(market: Market, feeds: Sequence[tuple[str, str]], ws_url: str | None = None) -> list[Link]:
    """Plan the connections for `feeds`, pairs of (stream, symbol): one or more a route, each with a bounded load.

    `ws_url` replaces the market's own host; a route, `/ws` or `/stream` at its end is not doubled.
    """
    base = (ws_url or market.ws_url).rstrip("/").removesuffix("/stream").removesuffix("/ws")
    for route in set(market.routes.values()):
        base = base.removesuffix(route)
    by_route: dict[str, list[str]] = {}
    for stream, symbol in feeds:
        by_route.setdefault(market.routes[stream], []).append(stream_name(symbol, stream))
    return [
        Link(f"{base}{route}/stream", tuple(names[start : start + STREAMS_PER_CONNECTION]))
        for route, names in by_route.items()
        for start in range(0, len(names), STREAMS_PER_CONNECTION)
    ]


REST_TWINS: Mapping[str, str] = {
    "stream.binance.com": "https://api.binance.com",
    "data-stream.binance.vision": "https://data-api.binance.vision",
    "stream.testnet.binance.vision": "https://testnet.binance.vision",
    "demo-stream.binance.com": "https://demo-api.binance.com",
    "fstream.binance.com": "https://fapi.binance.com",
    "demo-fstream.binance.com": "https://demo-fapi.binance.com",
    "fstream.binancefuture.com": "https://testnet.binancefuture.com",
    "dstream.binance.com": "https://dapi.binance.com",
    "demo-dstream.binance.com": "https://demo-dapi.binance.com",
}
"""Where REST answers for a websocket host (the documents' host lists, 2026)."""


def rest_url_for(market: Market, ws_url: str | None) -> str:
    """Return the REST address that belongs to a websocket address: Binance's own twin, or else the same server."""
    if ws_url is None:
        return market.rest_url
    address = urlsplit(ws_url)
    scheme = "https" if address.scheme == "wss" else "http"
    return REST_TWINS.get(address.hostname or "", f"{scheme}://{address.netloc}")


@dataclass(frozen=True)
class Subscribe:
    """One SUBSCRIBE message: its ID, the streams it asks for, and the text to send."""

    id: int
    streams: tuple[str, ...]
    payload: bytes


def subscribe_messages(names: Sequence[str], first_id: int = 1) -> list[Subscribe]:
    """Return the SUBSCRIBE messages for `names`, to be sent `SUBSCRIBE_INTERVAL_S` apart."""
    groups: list[list[str]] = []
    room = 0
    for name in names:
        size = len(name.encode()) + 3
        if not groups or room < size or len(groups[-1]) == STREAMS_PER_SUBSCRIBE:
            groups.append([])
            room = SUBSCRIBE_BYTES
        groups[-1].append(name)
        room -= size
    return [
        Subscribe(id_, tuple(group), orjson.dumps({"method": "SUBSCRIBE", "params": group, "id": id_}))
        for id_, group in enumerate(groups, start=first_id)
    ]


# --- What the exchange says on a connection ------------------------------------------------------------------------


@dataclass(frozen=True)
class Acknowledged:
    """A control message was understood, which proves nothing more (rule 2)."""

    id: int | str | None


@dataclass(frozen=True)
class ControlError:
    """The exchange refused a control message."""

    code: int
    message: str
    id: int | str | None


@dataclass(frozen=True)
class ServerShutdown:
    """The server will close this connection soon; no lead time is promised (spot, since 2026-05-08)."""


@dataclass(frozen=True)
class UnknownEvent:
    """A well-formed message of a kind that was not asked for."""

    name: str


@dataclass(frozen=True)
class Refused:
    """A message that cannot be what it should be; `reason` names the field."""

    reason: str


Notice = Acknowledged | ControlError | ServerShutdown | UnknownEvent | Refused

LONGEST_NAME = 80
"""Characters of an unknown event's name that are kept: it comes from outside and is remembered."""

_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises: for other JSON than it should be, for other text than UTF-8, for nesting without end."""


_FIRST, _LAST = itemgetter(0), itemgetter(-1)
_OPENING, _CLOSING = {ord("{")}, {ord("}")}


USUAL: Mapping[MessageType, MessageType] = {Trade: PlainTrade}
"""Classes that take only what is usual today, and are tried first."""


def _union(kinds: Iterable[MessageType]) -> Any:
    return Union[tuple(kinds)]  # noqa: UP007 - of as many classes as there are


def _combined(kinds: Iterable[MessageType]) -> "msgspec.json.Decoder[Any]":
    """Return the decoder of `{"stream":..,"data":{..}}` for messages of these classes."""
    wrapper: Any = msgspec.defstruct("Combined", [("data", _union(kinds))], gc=False)
    return msgspec.json.Decoder(wrapper)


class Decoder:
    """Turns the payloads of one connection into messages and notices."""

    def __init__(
        self, market: Market, extra_fields: Sequence[str] = (), streams: Sequence[str] = ("trade", "aggTrade")
    ) -> None:
        self.kinds: Mapping[str, MessageType] = {
            stream: with_fields(market.message_types[stream], extra_fields) for stream in streams
        }
        """The class of each stream's messages as this decoder makes them."""
        self._general = _combined(self.kinds.values())
        self._raw: msgspec.json.Decoder[Message] = msgspec.json.Decoder(_union(self.kinds.values()))
        usual = [USUAL.get(kind, kind) for kind in self.kinds.values()]
        self._in_order_of_likelihood = [*([_combined(usual)] if usual != [*self.kinds.values()] else []), self._general]

    def messages(self, payloads: Sequence[bytes]) -> list[Message] | None:
        """Decode many payloads at once, or return None if one of them is not an ordinary message.

        One call into C for many payloads costs two thirds of a call per message. Each payload gave exactly one message
        if there are as many as payloads: none can have given less, because what joins two is a newline between the
        braces of two objects, which no JSON value can span. All messages of a stream are of one class.
        """
        if not all(payloads) or {*map(_FIRST, payloads)} != _OPENING or {*map(_LAST, payloads)} != _CLOSING:
            return None
        block = b"\n".join(payloads)
        for decoder in self._in_order_of_likelihood:
            try:
                decoded = decoder.decode_lines(block)
            except _UNDECODABLE:
                continue
            return [wrapper.data for wrapper in decoded] if len(decoded) == len(payloads) else None
        return None

    def message(self, payload: bytes) -> Message | Notice:
        """Decode one payload of any kind: wrapped, bare, a control reply, a shutdown notice, or nonsense."""
        try:
            message: Message = self._general.decode(payload).data
        except _UNDECODABLE as error:
            return self._notice(payload, error)
        return message

    def _notice(self, payload: bytes, error: Exception) -> Message | Notice:
        try:
            value = msgspec.json.decode(payload)
        except _UNDECODABLE as broken:
            return Refused(f"not JSON: {broken}")
        if not isinstance(value, dict):
            return Refused("not a JSON object")
        if "data" in value and "stream" in value:
            inner = value["data"]
            name = inner.get("e", value["stream"]) if isinstance(inner, dict) else value["stream"]
            return self._stranger(name, error)
        if "e" in value:
            return self._bare(payload, value["e"])
        return control(value)

    def _bare(self, payload: bytes, name: object) -> Message | Notice:
        try:
            return self._raw.decode(payload)
        except _UNDECODABLE as error:
            return self._stranger(name, error)

    def _stranger(self, name: object, error: Exception) -> Notice:
        if name == "serverShutdown":
            return ServerShutdown()
        if not isinstance(name, str) or name in self.kinds:
            return Refused(str(error))
        return UnknownEvent(name[:LONGEST_NAME])


def control(value: Mapping[str, Any]) -> Notice:
    """Understand an unwrapped control reply (rule 3)."""
    error = value.get("error", value)
    if isinstance(error, dict) and isinstance(error.get("code"), int):
        return ControlError(error["code"], str(error.get("msg", "")), value.get("id"))
    if "result" in value:
        return Acknowledged(value.get("id"))
    return UnknownEvent(",".join(sorted(value))[:LONGEST_NAME])


# --- What the exchange says over REST ------------------------------------------------------------------------------


class UnreadableAnswerError(ValueError):
    """An answer over REST that is JSON at its ends, but not what it should be; the text names what is wrong."""


def _decoded(body: bytes, kind: Any) -> Any:
    """Decode an answer as `kind`. Raises `UnreadableAnswerError` for whatever else it is, however it is nested."""
    try:
        return msgspec.json.decode(body, type=kind)
    except _UNDECODABLE as error:
        raise UnreadableAnswerError(str(error) or type(error).__name__) from error


@dataclass(frozen=True)
class ExchangeInfo:
    """The exchange's own list of symbols with their states, and the IP's weight budget for a minute."""

    statuses: Mapping[str, str]
    weight_per_minute: int


def exchange_info(market: Market, body: bytes) -> ExchangeInfo:
    """Read an exchangeInfo answer.

    Raises `UnreadableAnswerError` where the answer has no symbols: an empty list is an outage (COIN-M, 2026-06-29), not
    a market without symbols. An unknown status is kept as it is. The limit is what the exchange says, plausible or not.
    """
    value = _decoded(body, Any)
    symbols = value.get("symbols") if isinstance(value, dict) else None
    statuses = {
        entry["symbol"]: _state(entry.get(market.status_field, ""))
        for entry in _objects(symbols)
        if isinstance(entry.get("symbol"), str)
    }
    if not statuses:
        raise UnreadableAnswerError("the exchange's list of symbols is empty")
    weight = next(
        (
            limit["limit"]
            for limit in _objects(value.get("rateLimits"))
            if limit.get("rateLimitType") == "REQUEST_WEIGHT"
            and limit.get("interval") == "MINUTE"
            and limit.get("intervalNum", 1) == 1
            and type(limit.get("limit")) is int
        ),
        market.weight_per_minute,
    )
    return ExchangeInfo(statuses, weight)


def _state(value: object) -> str:
    """Return a symbol's state as text that may be kept and told: short, and nothing nested."""
    return str(value)[:LONGEST_NAME] if isinstance(value, str | int | float | None) else ""


def _objects(value: object) -> list[dict[str, Any]]:
    """Return the objects of a JSON list; whatever is neither is left out."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def server_time_ms(body: bytes) -> int:
    """Read the answer of `/time`. Raises `UnreadableAnswerError` for anything else."""
    answer: _ServerTime = _decoded(body, _ServerTime)
    return time_ms(answer.serverTime)


class _ServerTime(msgspec.Struct):
    serverTime: Time  # noqa: N815 - the exchange's own name


OUTSIDE_HISTORY = -4166
"""Error code: what was asked for is older than the call reaches back (USD-M, 2026-08)."""


def history_type(market: Market, stream: str, symbol: str, extra_fields: Sequence[str] = ()) -> MessageType:
    """Return the class of rows that a stream's REST calls give."""
    kind = with_fields(market.message_types[stream], extra_fields)
    return from_history(kind, symbol, market.history[stream].renamed)


def history_rows(kind: MessageType, body: bytes) -> list[Message]:
    """Read the answer of a `latest` or `history` call; `kind` is its `history_type`.

    Raises `UnreadableAnswerError` for anything but a list of such rows.
    """
    rows: list[Message] = _decoded(body, list[kind])  # type: ignore[valid-type]  # a class made above
    return rows


def ticker_params(tickers: Tickers, symbols: Sequence[str]) -> dict[str, str | int]:
    """Return what to ask for the statistics of these symbols with."""
    return {} if tickers.symbols is None else {"symbols": orjson.dumps(symbols).decode(), "type": "MINI"}


def newest_trade_ids(body: bytes) -> dict[str, int]:
    """Read the statistics of many symbols: the ID of the newest trade of each, or -1.

    Raises `UnreadableAnswerError` for anything else, and where two entries of one symbol contradict each other.
    """
    found: dict[str, int] = {}
    for entry in _decoded(body, list[_Ticker]):
        if found.setdefault(entry.symbol, entry.lastId) != entry.lastId:
            raise UnreadableAnswerError(f"two newest trades of {entry.symbol}")
    return found


class _Ticker(msgspec.Struct):
    symbol: str
    lastId: int  # noqa: N815 - the exchange's own name


def nearest_symbols(name: str, known: Sequence[str]) -> list[str]:
    """Return up to three valid symbols that `name` may have meant."""
    wanted = "".join(char for char in name.upper() if char.isalnum() or char == "_")
    if wanted in known:
        return [wanted]
    return difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)
