"""What Binance says and wants to hear, held against the payloads of its own documents."""

import json
from typing import Any

import msgspec
import pytest

from tickcollect.events import AggTrade, FuturesTrade, Message, Trade
from tickcollect.exchanges.binance import (
    MARKETS,
    STREAMS_PER_CONNECTION,
    STREAMS_PER_SUBSCRIBE,
    Acknowledged,
    ControlError,
    Decoder,
    Notice,
    Refused,
    ServerShutdown,
    UnknownEvent,
    exchange_info,
    links,
    nearest_symbols,
    rest_url_for,
    stream_name,
    subscribe_messages,
)

SPOT, USD_M, COIN_M = MARKETS["binance"], MARKETS["binance-futures"], MARKETS["binance-delivery"]

SPOT_TRADE = (
    b'{"e":"trade","E":1784000000105,"s":"BTCUSDT","t":6100000001,"p":"64120.01000000","q":"0.00150000",'
    b'"T":1784000000104,"m":true,"M":true}'
)
SPOT_AGGREGATE = (
    b'{"e":"aggTrade","E":1784000000105,"s":"BTCUSDT","a":3900000001,"p":"64120.01000000","q":"0.00450000",'
    b'"f":6100000001,"l":6100000003,"T":1784000000104,"m":true,"M":true}'
)
USD_M_AGGREGATE = (
    b'{"e":"aggTrade","E":1784000000300,"a":3300000001,"s":"BTCUSDT","p":"64111.10","q":"1.250","nq":"1.200",'
    b'"f":8100000001,"l":8100000006,"T":1784000000155,"m":false,"st":1}'
)
USD_M_TRADE = (
    b'{"e":"trade","E":1784000000156,"T":1784000000155,"s":"BTCUSDT","t":8100000001,"p":"64111.10","q":"0.500",'
    b'"X":"MARKET","m":false,"st":1}'
)
PLACEHOLDER = (
    b'{"e":"trade","E":1784000000156,"T":1784000000155,"s":"BTCUSDT","t":8100000002,"p":"0","q":"0","X":"NA",'
    b'"m":false,"st":1}'
)
COIN_M_TRADE = (
    b'{"e":"trade","E":1784000000156,"T":1784000000155,"s":"BTCUSD_PERP","t":991,"p":"64111.1","q":"3","m":false,'
    b'"X":"MARKET","st":2}'
)
DEPTH = (
    b'{"e":"depthUpdate","E":1784000000200,"s":"BTCUSDT","U":90000000101,"u":90000000140,'
    b'"b":[["64120.01000000","1.20000000"]],"a":[["64120.02000000","0.00000000"]]}'
)
FORCE_ORDER = (
    b'{"e":"forceOrder","E":1784000000400,"o":{"s":"BTCUSDT","S":"SELL","o":"LIMIT","f":"IOC","q":"0.014",'
    b'"p":"63910.00","ap":"64010.00","X":"FILLED","l":"0.014","z":"0.014","T":1784000000393}}'
)
BOOK_TICKER = b'{"u":90000000140,"s":"BTCUSDT","b":"64120.01","B":"1.2","a":"64120.03","A":"0.4"}'


def wrapped(data: bytes, stream: bytes = b"btcusdt@trade") -> bytes:
    return b'{"stream":"%b","data":%b}' % (stream, data)


def with_field(payload: bytes, name: str, value: Any) -> bytes:
    return json.dumps(json.loads(payload) | {name: value}).encode()


def without_field(payload: bytes, name: str) -> bytes:
    fields = json.loads(payload)
    del fields[name]
    return json.dumps(fields).encode()


@pytest.mark.parametrize("wrap", [wrapped, bytes], ids=["combined", "raw"])
@pytest.mark.parametrize(
    ("exchange", "data", "message"),
    [
        (
            "binance",
            SPOT_TRADE,
            Trade(1784000000105, "BTCUSDT", 6100000001, "64120.01000000", "0.00150000", 1784000000104, m=True),
        ),
        (
            "binance",
            SPOT_TRADE.replace(b'"T":', b'"b":6046158371,"a":6046157885,"T":'),
            Trade(
                1784000000105, "BTCUSDT", 6100000001, "64120.01000000", "0.00150000", 1784000000104, True,
                6046158371, 6046157885,
            ),
        ),
        (
            "binance",
            SPOT_AGGREGATE,
            AggTrade(
                1784000000105, "BTCUSDT", 3900000001, "64120.01000000", "0.00450000", 6100000001, 6100000003,
                1784000000104, m=True,
            ),
        ),
        (
            "binance-futures",
            USD_M_AGGREGATE,
            AggTrade(
                1784000000300, "BTCUSDT", 3300000001, "64111.10", "1.250", 8100000001, 8100000006, 1784000000155,
                m=False,
            ),
        ),
        (
            "binance-futures",
            USD_M_TRADE,
            FuturesTrade(1784000000156, "BTCUSDT", 8100000001, "64111.10", "0.500", 1784000000155, m=False),
        ),
        (
            "binance-futures",
            PLACEHOLDER,
            FuturesTrade(1784000000156, "BTCUSDT", 8100000002, "0", "0", 1784000000155, m=False, X="NA"),
        ),
        (
            "binance-delivery",
            COIN_M_TRADE,
            FuturesTrade(1784000000156, "BTCUSD_PERP", 991, "64111.1", "3", 1784000000155, m=False),
        ),
    ],
)  # fmt: skip
def test_documented_payloads(wrap: Any, exchange: str, data: bytes, message: Message) -> None:
    """The documents' own payloads, wrapped or bare, decode to the fields that they show."""
    assert Decoder(MARKETS[exchange]).message(wrap(data)) == message


def test_batch_of_a_read() -> None:
    """Many ordinary payloads decode at once to what each is by itself."""
    decoder = Decoder(SPOT)
    payloads = [wrapped(SPOT_TRADE), wrapped(SPOT_AGGREGATE, b"btcusdt@aggTrade"), wrapped(SPOT_TRADE)]
    together = decoder.messages(payloads)
    assert together is not None
    by_themselves = [decoder.message(payload) for payload in payloads]
    assert [type(row).lines([row]) for row in together] == [
        type(row).lines([row]) for row in by_themselves if isinstance(row, Message)
    ]


@pytest.mark.parametrize(
    "odd",
    [
        b'{"result":null,"id":1}',
        SPOT_TRADE,
        wrapped(DEPTH),
        b"",
        b"\n",
        b"{}",
        wrapped(SPOT_TRADE) + wrapped(SPOT_TRADE),
        wrapped(SPOT_TRADE)[:-1],
        wrapped(SPOT_TRADE) + b"\n",
        b" " + wrapped(SPOT_TRADE),
        wrapped(SPOT_TRADE).replace(b"64120", b"\xff"),
    ],
)
def test_batch_with_something_odd(odd: bytes) -> None:
    """A read that holds anything else is left to be decoded one by one, wherever the odd payload stands."""
    decoder = Decoder(SPOT)
    good = wrapped(SPOT_TRADE)
    for payloads in ([odd], [odd, good], [good, odd], [good, odd, good]):
        assert decoder.messages(payloads) is None


def test_two_messages_in_one_payload_do_not_stand_for_an_empty_one() -> None:
    """The number of messages alone proves nothing: payloads that share them are seen through."""
    decoder = Decoder(SPOT)
    good = wrapped(SPOT_TRADE)
    assert decoder.messages([good + good, b""]) is None
    assert decoder.messages([good + good, b" "]) is None
    assert decoder.messages([b'{"data":', SPOT_TRADE + b"}", good + good]) is None
    assert decoder.messages([b'{"data":{"x":{}', b"}}", good + good]) is None


# --- Everything that is no message ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "notice"),
    [
        (b'{"result":null,"id":7}', Acknowledged(7)),
        (b'{"id":7,"result":null}', Acknowledged(7)),
        (b'{"result":["btcusdt@trade"],"id":3}', Acknowledged(3)),
        (b'{"result":null,"id":"abc"}', Acknowledged("abc")),
        (b'{"result":null,"id":null}', Acknowledged(None)),
        (b'{"code":2,"msg":"Invalid request: y","id":7}', ControlError(2, "Invalid request: y", 7)),
        (b'{"code":0,"msg":"Unknown property"}', ControlError(0, "Unknown property", None)),
        (b'{"error":{"code":2,"msg":"Invalid request: x"},"id":7}', ControlError(2, "Invalid request: x", 7)),
        (b'{"id":1,"error":{"code":4,"msg":"Too many subscriptions"}}', ControlError(4, "Too many subscriptions", 1)),
        (b'{"error":{"code":3},"id":7}', ControlError(3, "", 7)),
        (b'{"e":"serverShutdown","E":1784000000123}', ServerShutdown()),
        (wrapped(b'{"e":"serverShutdown","E":1784000000123}', b"!serverShutdown"), ServerShutdown()),
        (wrapped(DEPTH, b"btcusdt@depth"), UnknownEvent("depthUpdate")),
        (DEPTH, UnknownEvent("depthUpdate")),
        (wrapped(FORCE_ORDER, b"!forceOrder@arr"), UnknownEvent("forceOrder")),
        (wrapped(BOOK_TICKER, b"btcusdt@bookTicker"), UnknownEvent("btcusdt@bookTicker")),
        (wrapped(b"[" + DEPTH + b"]", b"!ticker@arr"), UnknownEvent("!ticker@arr")),
        (wrapped(b"null", b"btcusdt@kline_1m"), UnknownEvent("btcusdt@kline_1m")),
        (BOOK_TICKER, UnknownEvent("A,B,a,b,s,u")),
        (b"{}", UnknownEvent("")),
    ],
)  # fmt: skip
def test_notices(payload: bytes, notice: Notice) -> None:
    """Control replies in both shapes, shutdown notices in both shapes and strangers are each told apart."""
    assert Decoder(USD_M).message(payload) == notice


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        (b"", "not JSON"),
        (b"\x00", "not JSON"),
        (b"pong", "not JSON"),
        (b"<html>403</html>", "not JSON"),
        (wrapped(SPOT_TRADE)[:-2], "not JSON"),
        (wrapped(SPOT_TRADE) + b"x", "not JSON"),
        (wrapped(SPOT_TRADE) * 2, "not JSON"),
        (b"\xef\xbb\xbf" + wrapped(SPOT_TRADE), "not JSON"),
        (wrapped(SPOT_TRADE).replace(b"64120.01", b"64120\xff01"), "not JSON"),
        (wrapped(SPOT_TRADE).replace(b"64120.01", b"64120\n01"), "not JSON"),
        (wrapped(SPOT_TRADE).replace(b"64120.01", b"\\ud800"), "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"stream":' + b"[" * 100_000, "not JSON"),
        (b'{"stream":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON"),
        (b'{"data":' * 50_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"e":["trade"]}', "e"),
        (b'{"e":{}}', "e"),
        (b'{"e":null}', "e"),
        (b'{"stream":[],"data":{}}', "data"),
        (b'{"stream":{"a":1},"data":[]}', "data"),
        (wrapped(b'{"e":["trade"]}'), "$.data.e"),
        *((wrapped(without_field(SPOT_TRADE, name)), f"`{name}`") for name in "EstpqTm"),
        *((wrapped(without_field(SPOT_AGGREGATE, name)), f"`{name}`") for name in "EsapqflTm"),
        *((without_field(SPOT_TRADE, name), f"`{name}`") for name in "tp"),
        (wrapped(with_field(SPOT_TRADE, "p", 64120.01)), "$.data.p"),
        (wrapped(with_field(SPOT_TRADE, "q", 1)), "$.data.q"),
        (wrapped(with_field(SPOT_TRADE, "q", None)), "$.data.q"),
        (wrapped(with_field(SPOT_TRADE, "s", 1)), "$.data.s"),
        (wrapped(with_field(SPOT_TRADE, "m", 1)), "$.data.m"),
        (wrapped(with_field(SPOT_TRADE, "m", "true")), "$.data.m"),
        (wrapped(with_field(SPOT_TRADE, "t", "6100000001")), "$.data.t"),
        (wrapped(with_field(SPOT_TRADE, "t", 6.5)), "$.data.t"),
        (wrapped(with_field(SPOT_TRADE, "t", -1)), "$.data.t"),
        (wrapped(with_field(SPOT_TRADE, "t", 2**63)), "$.data.t"),
        (wrapped(with_field(SPOT_TRADE, "t", 2**64)), "$.data.t"),
        (wrapped(with_field(SPOT_TRADE, "t", 10**40)), "$.data.t"),
        (wrapped(with_field(SPOT_TRADE, "b", -1)), "$.data.b"),
        (wrapped(with_field(SPOT_AGGREGATE, "f", -2)), "$.data.f"),
        (with_field(SPOT_TRADE, "t", 2**63), "$.t"),
    ],
    ids=lambda value: str(value[:60]),
)
def test_refused(payload: bytes, word: str) -> None:
    """A message that cannot be what it should be is refused with the place of the fault, never with an exception."""
    answer = Decoder(SPOT).message(payload)
    assert isinstance(answer, Refused), answer
    assert word in answer.reason
    assert Decoder(SPOT).messages([payload]) is None


@pytest.mark.parametrize("number", [2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1])
def test_large_ids_stay_whole(number: int) -> None:
    """IDs beyond what a float can hold arrive digit by digit."""
    message = Decoder(SPOT).message(wrapped(with_field(SPOT_TRADE, "t", number)))
    assert isinstance(message, Trade)
    assert message.t == number
    assert f",{number}," in Trade.lines([message])[0]


def test_new_fields_are_normal() -> None:
    """A field that the exchange adds changes nothing, whatever it holds."""
    for value in (1, "x", None, [1, [2]], {"p": "1"}):
        assert Decoder(SPOT).message(wrapped(with_field(SPOT_TRADE, "zz", value))) == Decoder(SPOT).message(SPOT_TRADE)


def test_names_from_outside_are_kept_short() -> None:
    """The name of an unknown event is remembered by others, so it has a limit."""
    for payload in (b'{"e":"%b"}' % (b"x" * 10**6), b'{"%b":1}' % (b"x" * 10**6)):
        answer = Decoder(SPOT).message(payload)
        assert isinstance(answer, UnknownEvent)
        assert len(answer.name) <= 80


# --- Links and subscriptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("market", "stream", "url"),
    [
        (SPOT, "trade", "wss://stream.binance.com:9443/stream"),
        (SPOT, "aggTrade", "wss://stream.binance.com:9443/stream"),
        (USD_M, "trade", "wss://fstream.binance.com/public/stream"),
        (USD_M, "aggTrade", "wss://fstream.binance.com/market/stream"),
        (COIN_M, "trade", "wss://dstream.binance.com/stream"),
        (COIN_M, "aggTrade", "wss://dstream.binance.com/stream"),
    ],
)
def test_routes(market: Any, stream: str, url: str) -> None:
    """Each stream of each market has the path on which Binance delivers it."""
    (link,) = links(market, [(stream, "BTCUSDT")])
    assert (link.url, link.streams) == (url, (f"btcusdt@{stream}",))


@pytest.mark.parametrize(
    "ws_url",
    [
        "ws://127.0.0.1:9",
        "ws://127.0.0.1:9/",
        "ws://127.0.0.1:9/ws",
        "ws://127.0.0.1:9/stream",
        "ws://127.0.0.1:9/stream/",
        "ws://127.0.0.1:9/market",
        "ws://127.0.0.1:9/market/stream",
        "ws://127.0.0.1:9/public/ws",
    ],
)
def test_ws_url_as_people_write_it(ws_url: str) -> None:
    """Another address may end in the paths of the documents; they are not doubled, and the route stays the stream's."""
    plan = links(USD_M, [("aggTrade", "BTCUSDT"), ("trade", "BTCUSDT")], ws_url)
    assert [link.url for link in plan] == ["ws://127.0.0.1:9/market/stream", "ws://127.0.0.1:9/public/stream"]
    (spot,) = links(SPOT, [("trade", "BTCUSDT")], ws_url.replace("/market", "").replace("/public", ""))
    assert spot.url == "ws://127.0.0.1:9/stream"


def test_load_of_a_connection_is_bounded() -> None:
    """Many feeds are spread over connections, each stream on exactly one of them, in the order asked for."""
    feeds = [("trade", f"S{number}USDT") for number in range(2 * STREAMS_PER_CONNECTION + 1)]
    plan = links(USD_M, [*feeds, ("aggTrade", "BTCUSDT")])
    assert [len(link.streams) for link in plan] == [STREAMS_PER_CONNECTION, STREAMS_PER_CONNECTION, 1, 1]
    assert [name for link in plan[:3] for name in link.streams] == [stream_name(symbol, "trade") for _, symbol in feeds]


CHINESE = [f"币安人生{number}USDT" for number in range(200)]


@pytest.mark.parametrize(
    "symbols",
    [["BTCUSDT"], [f"SYMBOL{number}USDT" for number in range(200)], CHINESE, ["X" * 40 + str(n) for n in range(200)]],
    ids=["one", "many", "chinese", "long"],
)
def test_subscribe_messages(symbols: list[str]) -> None:
    """Subscriptions stay below what made the exchange hang, number themselves, and leave nobody out."""
    names = [stream_name(symbol, "aggTrade") for symbol in symbols]
    messages = subscribe_messages(names)
    asked: list[str] = []
    for number, message in enumerate(messages, start=1):
        content = json.loads(message.payload)
        assert content == {"method": "SUBSCRIBE", "params": list(message.streams), "id": number}
        assert 1 <= len(message.streams) <= STREAMS_PER_SUBSCRIBE
        assert len(message.payload) <= 3584
        assert message.id == number
        asked += content["params"]
    assert asked == names


def test_chinese_symbols_are_sent_as_they_are() -> None:
    """A SUBSCRIBE carries names as UTF-8, not escaped."""
    (message,) = subscribe_messages([stream_name("币安人生USDT", "trade")])
    assert "币安人生usdt@trade".encode() in message.payload


def test_nothing_to_subscribe() -> None:
    """No names, no message."""
    assert subscribe_messages([]) == []
    assert links(SPOT, []) == []


@pytest.mark.parametrize(
    ("exchange", "ws_url", "rest_url"),
    [
        ("binance", None, "https://api.binance.com"),
        ("binance-futures", None, "https://fapi.binance.com"),
        ("binance-delivery", None, "https://dapi.binance.com"),
        ("binance", "wss://stream.binance.com:443", "https://api.binance.com"),
        ("binance", "wss://data-stream.binance.vision", "https://data-api.binance.vision"),
        ("binance", "wss://DATA-STREAM.binance.vision:9443/ws", "https://data-api.binance.vision"),
        ("binance", "wss://stream.testnet.binance.vision/ws", "https://testnet.binance.vision"),
        ("binance", "wss://demo-stream.binance.com", "https://demo-api.binance.com"),
        ("binance-futures", "wss://fstream.binancefuture.com", "https://testnet.binancefuture.com"),
        ("binance-futures", "wss://demo-fstream.binance.com", "https://demo-fapi.binance.com"),
        ("binance-delivery", "wss://demo-dstream.binance.com", "https://demo-dapi.binance.com"),
        ("binance", "ws://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("binance", "ws://127.0.0.1:8080/stream", "http://127.0.0.1:8080"),
        ("binance", "wss://collector.example:8443", "https://collector.example:8443"),
        ("binance", "ws://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_rest_url_for(exchange: str, ws_url: str | None, rest_url: str) -> None:
    """REST is asked at the twin of the websocket's host, or at the same server where Binance has none."""
    assert rest_url_for(MARKETS[exchange], ws_url) == rest_url


# --- exchangeInfo and names ----------------------------------------------------------------------------------------

WEIGHT = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 1234}


def info_body(market: Any, **more: Any) -> bytes:
    listed = [{"symbol": "BTCUSDT", market.status_field: "TRADING"}, {"symbol": "OLD", market.status_field: "BREAK"}]
    return json.dumps({"timezone": "UTC", "symbols": listed} | more).encode()


@pytest.mark.parametrize("exchange", MARKETS)
def test_exchange_info(exchange: str) -> None:
    """Symbols come with the state that the market's own field gives, the budget with the exchange's own number."""
    market = MARKETS[exchange]
    limits = [{"rateLimitType": "RAW_REQUESTS", "interval": "MINUTE", "intervalNum": 5, "limit": 61000}, WEIGHT]
    info = exchange_info(market, info_body(market, rateLimits=limits))
    assert info.statuses == {"BTCUSDT": "TRADING", "OLD": "BREAK"}
    assert info.weight_per_minute == 1234


def test_coin_m_names_its_state_differently() -> None:
    """COIN-M says `contractStatus` where the others say `status`."""
    body = b'{"symbols":[{"symbol":"BTCUSD_PERP","contractStatus":"TRADING","status":"x"}]}'
    assert exchange_info(COIN_M, body).statuses == {"BTCUSD_PERP": "TRADING"}
    assert exchange_info(USD_M, body).statuses == {"BTCUSD_PERP": "x"}


@pytest.mark.parametrize(
    "rate_limits", [None, [], {}, "x", 7, ["x"], [{}], [WEIGHT | {"limit": "6000"}], [{**WEIGHT, "interval": "DAY"}]]
)
def test_odd_rate_limits(rate_limits: Any) -> None:
    """Where the answer has no usable budget, the documented one stays."""
    assert exchange_info(SPOT, info_body(SPOT, rateLimits=rate_limits)).weight_per_minute == 6000
    assert exchange_info(SPOT, info_body(SPOT)).weight_per_minute == 6000


def test_unknown_states_are_kept() -> None:
    """A state that nobody has heard of, or none at all, is no reason to fail."""
    body = b'{"symbols":[{"symbol":"A","status":"PAUSED_2027"},{"symbol":"B"},{"symbol":"C","status":null},7,{"x":1}]}'
    assert exchange_info(SPOT, body).statuses == {"A": "PAUSED_2027", "B": "", "C": "None"}


@pytest.mark.parametrize(
    "body",
    [b'{"symbols":[]}', b"{}", b"[]", b"null", b'{"symbols":null}', b'{"symbols":{"a":1}}', b'{"symbols":[1,"x",{}]}',
     b"", b"<html>", b'{"symbols":'],
)  # fmt: skip
def test_an_empty_list_of_symbols_is_an_outage(body: bytes) -> None:
    """An answer without symbols is an error to be tried again, not a market without symbols."""
    with pytest.raises(ValueError, match=r"."):
        exchange_info(SPOT, body)


KNOWN = ["BTCUSDT", "BTCUSDC", "ETHUSDT", "ETHBTC", "BTCUSD_PERP", "1000SHIBUSDT", "BNBUSDT", "币安人生USDT"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("BTCUSTD", "BTCUSDT"),
        ("btcusdt", "BTCUSDT"),
        ("BTC-USDT", "BTCUSDT"),
        ("BTC/USDT", "BTCUSDT"),
        ("btc_usdt", "BTCUSDT"),
        ("btc:usdt", "BTCUSDT"),
        ("ETHUSD", "ETHUSDT"),
        ("BTCUSD-PERP", "BTCUSD_PERP"),
        ("btcusd_perp", "BTCUSD_PERP"),
        ("1000shib/usdt", "1000SHIBUSDT"),
        ("币安人生usdt", "币安人生USDT"),
        ("XYZQ", None),
        ("", None),
        ("///", None),
    ],
)
def test_nearest_symbols(name: str, first: str | None) -> None:
    """A mistyped symbol is answered with the names it may have meant, the likeliest first; nonsense with none."""
    near = nearest_symbols(name, KNOWN)
    assert (near[0] if near else None) == first
    assert len(near) <= 3
    assert set(near) <= set(KNOWN)


def test_extra_fields_of_one_decoder_stay_its_own() -> None:
    """Two decoders with different extra fields do not share classes, and decode the same message equally well."""
    plain, rich = Decoder(USD_M), Decoder(USD_M, ["nq", "st"])
    assert plain.kinds["aggTrade"] is AggTrade
    assert rich.kinds["aggTrade"] is not AggTrade
    message = rich.message(wrapped(USD_M_AGGREGATE))
    assert isinstance(message, rich.kinds["aggTrade"])
    assert bytes(message.nq) == b'"1.200"'  # type: ignore[union-attr]  # a field added at run time
    assert msgspec.structs.asdict(message)["a"] == 3300000001
