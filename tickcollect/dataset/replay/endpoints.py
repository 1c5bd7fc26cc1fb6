"""Binance's public REST endpoints, answered from a market's history: rows, limits, weights, errors.

The rules, all pure (the time comes in as an argument):

* Each request costs its weight, a refused one too. The weight is counted per clock minute. Over the limit: 429 with
  ``Retry-After`` up to the next minute. Whoever goes on asking is banned: 418, longer each time.
* ``fromId`` is the first row wanted; rows rise by ID. Without an ID or times: the newest rows. ``startTime``: the
  oldest from there. ``endTime`` alone: the newest up to there. Both times are inclusive.
* Futures: rows of single trades leave out placeholders, liquidations by the insurance fund and ADL;
  ``historicalTrades`` needs an API key header (any is accepted) and reaches back one month, ``aggTrades`` two days
  (USD-M) or one (COIN-M), before the market's own newest row.

Sources: binance-spot-api-docs, rest-api.md and errors.md (2026-07-21); developers.binance.com, USD-M and COIN-M market
data (2026-08) and change log (to 2026-10).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote

import orjson

from tickcollect.dataset.replay.venue import Aggregate, Listing, Trade, Venue

_DAY_MS = 86_400_000
_MICROSECONDS_FROM = 10**14  # a time above this cannot be in milliseconds
_FAR_FUTURE_MS = 4_133_404_800_000  # the delivery date that a perpetual contract carries


class Request(NamedTuple):
    """One GET: its path, its query in order, its headers by lower-case name."""

    path: str
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What goes back; `delay_s` holds it back that long."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}
    delay_s: float = 0.0


class Wanted(NamedTuple):
    """Which rows of a history: by first ID or by inclusive times in ms, at most `limit`."""

    limit: int
    from_id: int | None = None
    start_ms: int | None = None
    end_ms: int | None = None


class History(Protocol):
    """What a market has traded so far. A row appears once its stream has passed it."""

    @property
    def listings(self) -> Sequence[Listing]:
        """The symbols of the market."""

    def trades(self, symbol: str, wanted: Wanted) -> list[Trade]:
        """Return the public single trades, rising by ID."""

    def aggregates(self, symbol: str, wanted: Wanted) -> list[Aggregate]:
        """Return the aggregate trades, rising by ID."""

    def newest_ms(self, symbol: str) -> int:
        """Return the time of the symbol's newest row, 0 where there is none."""


def parse_request(target: str, headers: Mapping[str, str]) -> Request:
    """Read a request from its target as it stands in the request line."""
    path, _, query = target.partition("?")
    return Request(unquote(path), tuple(parse_qsl(query, keep_blank_values=True)), headers)


# Weights and bans


@dataclass
class Meter:
    """The weight that one address has used, and what became of it."""

    per_minute: int
    minute: int = 0
    used: int = 0
    ignored: int = 0  # requests sent in spite of 429, within this minute
    bans: int = 0
    banned_until_s: float = 0.0

    PATIENCE = 10  # ignored answers before the ban
    FIRST_BAN_S = 120
    LONGEST_BAN_S = 3 * 86_400

    def charge(self, weight: int, now_s: float) -> Answer | None:
        """Count one request; the refusal, or None where it may be answered."""
        if now_s < self.banned_until_s:
            return self._banned(now_s)
        minute = int(now_s // 60)
        if minute != self.minute:
            self.minute, self.used, self.ignored = minute, 0, 0
        self.used += weight
        if self.used <= self.per_minute:
            return None
        self.ignored += 1
        if self.ignored > self.PATIENCE:
            self.banned_until_s = now_s + min(self.FIRST_BAN_S * 2**self.bans, self.LONGEST_BAN_S)
            self.bans += 1
            return self._banned(now_s)
        text = (
            f"Too much request weight used; current limit is {self.per_minute} request weight per 1 MINUTE. "
            "Please use WebSocket Streams for live updates to avoid polling the API."
        )
        return _error(429, -1003, text, {"Retry-After": str(60 - int(now_s % 60))})

    def _banned(self, now_s: float) -> Answer:
        text = (
            f"Way too much request weight used; IP banned until {int(self.banned_until_s * 1000)}. "
            "Please use WebSocket Streams for live updates to avoid bans."
        )
        return _error(418, -1003, text, {"Retry-After": str(int(self.banned_until_s - now_s) + 1)})


# The endpoints, by venue


class _Call(NamedTuple):
    venue: Venue
    history: History
    request: Request
    arguments: dict[str, str]
    endpoint: "_Endpoint"
    now_ms: int


@dataclass(frozen=True)
class _Endpoint:
    """One endpoint of one venue: its cost, its parameters, its limits (rows), how far back it reaches."""

    answer: Callable[[_Call], Any]
    weight: int
    parameters: tuple[str, ...] = ()
    default_limit: int = 500
    max_limit: int = 1000
    needs_key: bool = False
    window_ms: int | None = None
    window: str = ""


class _RefusedError(Exception):
    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


def answer(venue: Venue, history: History, meter: Meter, request: Request, now_s: float) -> Answer:
    """Answer one GET as the exchange would."""
    endpoint = _ENDPOINTS[venue.exchange].get(request.path.removeprefix(f"{venue.api}/"))
    if endpoint is None or not request.path.startswith(venue.api):
        return _error(404, -5000, f"Path {request.path}, Method GET is invalid", {})
    refusal = meter.charge(endpoint.weight, now_s)
    headers = {"X-MBX-USED-WEIGHT": str(meter.used), "X-MBX-USED-WEIGHT-1M": str(meter.used)}
    if refusal is not None:
        return refusal._replace(headers={**refusal.headers, **headers})
    try:
        arguments = _arguments(endpoint, request)
        body = endpoint.answer(_Call(venue, history, request, arguments, endpoint, int(now_s * 1000)))
    except _RefusedError as refused:
        return _error(refused.status, refused.code, str(refused), headers)
    return Answer(200, orjson.dumps(body), headers)


def _error(status: int, code: int, text: str, headers: Mapping[str, str]) -> Answer:
    return Answer(status, orjson.dumps({"code": code, "msg": text}), headers)


def _arguments(endpoint: _Endpoint, request: Request) -> dict[str, str]:
    arguments = dict(request.query)
    if len(arguments) < len(request.query):
        raise _RefusedError(-1101, "Duplicate values for a parameter detected.")
    unread = [name for name in arguments if name not in endpoint.parameters]
    if unread and endpoint.parameters:
        read, sent = len(arguments) - len(unread), len(arguments)
        raise _RefusedError(
            -1104, f"Not all sent parameters were read; read '{read}' parameter(s) but was sent '{sent}'."
        )
    if endpoint.needs_key and not request.headers.get("x-mbx-apikey"):
        raise _RefusedError(-2014, "API-key format invalid.", status=401)
    return arguments


def _symbol(call: _Call) -> Listing:
    symbol = call.arguments.get("symbol", "")
    if not symbol:
        raise _RefusedError(-1102, "Mandatory parameter 'symbol' was not sent, was empty/null, or malformed.")
    if not re.fullmatch(r"[\w\-.&]{1,50}", symbol) or re.search("[a-z]", symbol):
        raise _RefusedError(
            -1100, r"Illegal characters found in parameter 'symbol'; legal range is '^[\w\-._&&[^a-z]]{1,50}$'."
        )
    for listing in call.history.listings:
        if listing.symbol == symbol:
            return listing
    raise _RefusedError(-1121, "Invalid symbol.")


def _number(call: _Call, name: str) -> int | None:
    text = call.arguments.get(name)
    if text is None:
        return None
    if text == "":
        raise _RefusedError(-1105, f"Parameter '{name}' was empty.")
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII):
        raise _RefusedError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.")
    return int(text)


def _wanted(call: _Call) -> Wanted:
    limit = _number(call, "limit")
    limit = call.endpoint.default_limit if limit is None else limit
    if limit > call.endpoint.max_limit and call.venue.is_spot:
        limit = call.endpoint.max_limit
    if not 1 <= limit <= call.endpoint.max_limit:
        raise _RefusedError(-1130, "Data sent for parameter 'limit' is not valid.")
    times = [_number(call, name) for name in ("startTime", "endTime")]
    start_ms, end_ms = (time // 1000 if time and time >= _MICROSECONDS_FROM else time for time in times)
    return Wanted(limit, _number(call, "fromId"), start_ms, end_ms)


def _refuse_beyond_window(call: _Call, symbol: str, oldest_ms: int | None) -> None:
    window_ms = call.endpoint.window_ms
    if window_ms is None or oldest_ms is None:
        return
    if oldest_ms < call.history.newest_ms(symbol) - window_ms:
        raise _RefusedError(-4166, f"Search window is restricted to recent {call.endpoint.window} only.")


# The answers


def _ping(_: _Call) -> dict[str, Any]:
    return {}


def _time(call: _Call) -> dict[str, int]:
    return {"serverTime": call.now_ms * _time_factor(call)}


def _time_factor(call: _Call) -> int:
    unit = call.request.headers.get("x-mbx-time-unit", "").upper()
    return 1000 if call.venue.is_spot and unit == "MICROSECOND" else 1


def _trades(call: _Call) -> list[dict[str, Any]]:
    listing = _symbol(call)
    wanted = _wanted(call)
    rows = call.history.trades(listing.symbol, wanted)
    if wanted.from_id is not None and rows:
        _refuse_beyond_window(call, listing.symbol, rows[0].time_ms)
    row_of, factor = _TRADE_ROWS[call.venue.exchange], _time_factor(call)
    return [row_of(listing, row, row.time_ms * factor) for row in rows]


def _value(row: Trade) -> str:
    return format(Decimal(row.price) * Decimal(row.quantity), "f")


def _base_quantity(listing: Listing, row: Trade) -> str:
    """Return what `quantity` contracts come to in the base asset."""
    return format(Decimal(row.quantity) * _contract_size(listing) / Decimal(row.price), ".8f")


def _contract_size(listing: Listing) -> int:
    """Return what a COIN-M contract is worth in USD."""
    return 100 if listing.base == "BTC" else 10


_TRADE_ROWS: Mapping[str, Callable[[Listing, Trade, int], dict[str, Any]]] = {
    "binance": lambda _, row, time: {
        "id": row.id,
        "price": row.price,
        "qty": row.quantity,
        "quoteQty": _value(row),
        "time": time,
        "isBuyerMaker": row.buyer_is_maker,
        "isBestMatch": True,
    },
    "binance-futures": lambda _, row, time: {
        "id": row.id,
        "price": row.price,
        "qty": row.quantity,
        "quoteQty": _value(row),
        "time": time,
        "isBuyerMaker": row.buyer_is_maker,
        "isRPITrade": False,
    },
    "binance-delivery": lambda listing, row, time: {
        "id": row.id,
        "price": row.price,
        "qty": row.quantity,
        "baseQty": _base_quantity(listing, row),
        "time": time,
        "isBuyerMaker": row.buyer_is_maker,
    },
}


def _aggregates(call: _Call) -> list[dict[str, Any]]:
    listing = _symbol(call)
    wanted = _wanted(call)
    _refuse_beyond_window(call, listing.symbol, wanted.start_ms)
    _refuse_beyond_window(call, listing.symbol, wanted.end_ms)
    rows = call.history.aggregates(listing.symbol, wanted)
    if wanted.from_id is not None and rows:
        _refuse_beyond_window(call, listing.symbol, rows[0].time_ms)
    factor = _time_factor(call)
    return [_aggregate_row(call.venue, row, row.time_ms * factor) for row in rows]


def _aggregate_row(venue: Venue, row: Aggregate, time: int) -> dict[str, Any]:
    normal = {"nq": row.normal_quantity} if row.normal_quantity else {}
    best = {"M": True} if venue.is_spot else {}
    return {
        "a": row.id,
        "p": row.price,
        "q": row.quantity,
        **normal,
        "f": row.first_id,
        "l": row.last_id,
        "T": time,
        "m": row.buyer_is_maker,
        **best,
    }


def _exchange_info(call: _Call) -> dict[str, Any]:
    listings = list(call.history.listings)
    if "symbol" in call.arguments:
        listings = [_symbol(call)]
    elif "symbols" in call.arguments:
        listings = _listed(call)
    symbols = [_listing(call.venue, listing) for listing in listings]
    limits = [
        {
            "rateLimitType": "REQUEST_WEIGHT",
            "interval": "MINUTE",
            "intervalNum": 1,
            "limit": call.venue.weight_per_minute,
        }
    ]
    info = {"timezone": "UTC", "serverTime": call.now_ms, "rateLimits": limits, "exchangeFilters": []}
    if not call.venue.is_spot:
        info["assets"] = [
            {"asset": asset, "marginAvailable": True, "autoAssetExchange": "0"}
            for asset in dict.fromkeys(_margin_asset(call.venue, listing) for listing in listings)
        ]
    return {**info, "symbols": symbols}


def _listed(call: _Call) -> list[Listing]:
    try:
        names = orjson.loads(call.arguments["symbols"])
    except orjson.JSONDecodeError:
        names = None
    if not isinstance(names, list):
        raise _RefusedError(-1100, "Illegal characters found in parameter 'symbols'; legal range is '^\\[.*\\]$'.")
    known = {listing.symbol: listing for listing in call.history.listings}
    if not all(name in known for name in names):
        raise _RefusedError(-1121, "Invalid symbol.")
    return [known[name] for name in names]


def _margin_asset(venue: Venue, listing: Listing) -> str:
    return listing.quote if venue.exchange == "binance-futures" else listing.base


def _decimals(smallest: str) -> int:
    exponent = Decimal(smallest).normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _listing(venue: Venue, listing: Listing) -> dict[str, Any]:
    base = {
        "symbol": listing.symbol,
        "baseAsset": listing.base,
        "quoteAsset": listing.quote,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "filters": _filters(venue, listing),
    }
    return {**base, **(_spot_listing() if venue.is_spot else _contract_listing(venue, listing))}


def _spot_listing() -> dict[str, Any]:
    return {
        "status": "TRADING",
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": ["EXPIRE_TAKER", "EXPIRE_MAKER", "EXPIRE_BOTH"],
    }


def _contract_listing(venue: Venue, listing: Listing) -> dict[str, Any]:
    pair, _, delivery = listing.symbol.partition("_")
    perpetual = delivery in {"", "PERP"}
    contract = {
        "pair": pair,
        "contractType": "PERPETUAL" if perpetual else "CURRENT_QUARTER",
        "deliveryDate": _FAR_FUTURE_MS,
        "onboardDate": 1_569_398_400_000,
        "marginAsset": _margin_asset(venue, listing),
        "pricePrecision": _decimals(listing.tick),
        "quantityPrecision": _decimals(listing.step),
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
    }
    if venue.exchange == "binance-delivery":
        size = _contract_size(listing)
        return {**contract, "contractStatus": "TRADING", "contractSize": size, "equalQtyPrecision": 4}
    return {**contract, "status": "TRADING"}


def _filters(venue: Venue, listing: Listing) -> list[dict[str, Any]]:
    tick, step = listing.tick, listing.step
    notional = (
        {"filterType": "NOTIONAL", "minNotional": "5.00000000", "applyMinToMarket": True, "avgPriceMins": 5}
        if venue.is_spot
        else {"filterType": "MIN_NOTIONAL", "notional": "5"}
    )
    return [
        {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
        {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "9000", "stepSize": step},
        {"filterType": "MARKET_LOT_SIZE", "minQty": step, "maxQty": "900", "stepSize": step},
        notional,
        {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200, "limit": 200},
    ]


_LATEST = ("symbol", "limit")
_BY_ID = ("symbol", "limit", "fromId")
_BY_ID_OR_TIME = ("symbol", "limit", "fromId", "startTime", "endTime")
_LISTED = ("symbol", "symbols", "permissions", "showPermissionSets", "symbolStatus")


def _contracts(aggregate_window_ms: int, aggregate_window: str) -> dict[str, _Endpoint]:
    return {
        "ping": _Endpoint(_ping, weight=1),
        "time": _Endpoint(_time, weight=1),
        "exchangeInfo": _Endpoint(_exchange_info, weight=1),
        "trades": _Endpoint(_trades, weight=5, parameters=_LATEST),
        "historicalTrades": _Endpoint(
            _trades,
            weight=200,
            parameters=_BY_ID,
            default_limit=100,
            max_limit=500,
            needs_key=True,
            window_ms=30 * _DAY_MS,
            window="1 months",
        ),
        "aggTrades": _Endpoint(
            _aggregates,
            weight=20,
            parameters=_BY_ID_OR_TIME,
            window_ms=aggregate_window_ms,
            window=aggregate_window,
        ),
    }


_ENDPOINTS: Mapping[str, Mapping[str, _Endpoint]] = {
    "binance": {
        "ping": _Endpoint(_ping, weight=1),
        "time": _Endpoint(_time, weight=1),
        "exchangeInfo": _Endpoint(_exchange_info, weight=20, parameters=_LISTED),
        "trades": _Endpoint(_trades, weight=25, parameters=_LATEST),
        "historicalTrades": _Endpoint(_trades, weight=25, parameters=_BY_ID),
        "aggTrades": _Endpoint(_aggregates, weight=4, parameters=_BY_ID_OR_TIME),
    },
    "binance-futures": _contracts(2 * _DAY_MS, "2 days"),
    "binance-delivery": _contracts(_DAY_MS, "1 days"),
}
