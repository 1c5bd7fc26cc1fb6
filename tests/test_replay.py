"""The replay server: what it sends, in which form and order, what REST answers, and how it misbehaves on command."""

import asyncio
import gzip
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import websockets
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect

from tickcollect.dataset.replay import (
    Answer,
    Behaviour,
    Bytes,
    Close,
    Connection,
    Cut,
    GeneratedMarket,
    Market,
    RecordedMarket,
    RecordingError,
    ReplayOptions,
    ReplayServer,
    Request,
    Reset,
    frame,
    open_recordings,
    play,
    recorded,
    serve,
)
from tickcollect.dataset.replay import server as server_module
from tickcollect.dataset.replay.endpoints import Meter, Wanted
from tickcollect.dataset.replay.server import Step
from tickcollect.dataset.replay.venue import VENUES, Message

START_MS = 1_784_000_000_000
SHARED = Path(os.environ.get("TICKCOLLECT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
HFTBACKTEST = SHARED / "binance" / "hftbacktest"
needs_recordings = pytest.mark.skipif(not HFTBACKTEST.is_dir(), reason=f"no recordings in {HFTBACKTEST}")

SPOT_LINE = (
    '{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"s":"BTCUSDT","t":%d,"p":"64120.01000000",'
    '"q":"0.00150000","T":%d,"m":true,"M":true}}'
)


def run(test: Callable[[], Awaitable[None]], *, timeout_s: float = 20) -> None:
    async def limited() -> None:
        async with asyncio.timeout(timeout_s):
            await test()

    asyncio.run(limited())


def generated(exchange: str = "binance", **more: Any) -> GeneratedMarket:
    return GeneratedMarket(exchange, **{"start_ms": START_MS, "symbols": 3, "duration_s": 20.0, **more})


def recording(path: Path, ids: range, *, stream: str = "btcusdt@trade") -> Path:
    """Write a raw recording of spot trades, one a millisecond."""
    lines = [f"{(START_MS + i) * 1_000_000} {SPOT_LINE % (START_MS + i, i, START_MS + i)}" for i in ids]
    path.write_text("\n".join(lines).replace("btcusdt@trade", stream) + "\n")
    return path


@asynccontextmanager
async def client(server: ReplayServer, path: str) -> AsyncIterator[ClientConnection]:
    async with connect(server.ws_url + path, compression=None, max_queue=None) as socket:
        yield socket


async def until_closed(socket: ClientConnection) -> tuple[list[str], websockets.ConnectionClosed]:
    """Receive everything up to the end of the connection."""
    got: list[str] = []
    while True:
        try:
            got.append(str(await socket.recv()))
        except websockets.ConnectionClosed as closed:
            return got, closed


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (the state of another end of a socket has no event)
        await asyncio.sleep(0.005)


async def ask(socket: ClientConnection, request: Any) -> Any:
    """Send one control message; its reply, data in between left out."""
    await socket.send(request if isinstance(request, str) else orjson.dumps(request).decode())
    while True:
        reply = orjson.loads(await socket.recv())
        if not {"stream", "e"} & reply.keys():
            return reply


async def rest(server: ReplayServer, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.rest_url) as http:
        return await http.get(path, headers=headers)


# Recordings


@needs_recordings
@pytest.mark.parametrize("exchange", ["binance", "binance-futures", "binance-delivery"])
def test_every_recorded_trade_arrives_once_as_recorded(exchange: str) -> None:
    """Collectors that come one after the other get every trade of every file, in order, byte for byte."""
    files = sorted(
        HFTBACKTEST.glob({"binance": "spot_*", "binance-futures": "usdm_*", "binance-delivery": "cm_*"}[exchange])
    )
    lines = [line for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    prefix = "/public" if exchange == "binance-futures" else ""

    async def test() -> None:
        (market,) = open_recordings(files)
        assert market.exchange == exchange
        async with serve(market) as server:
            for stream in [name for name in market.streams if name.endswith("@trade")]:
                recorded_texts = [line.partition(" ")[2] for line in lines if f'"{stream}"' in line]
                async with client(server, f"{prefix}/stream") as socket:
                    assert await ask(socket, {"method": "SUBSCRIBE", "params": [stream], "id": 1}) == {
                        "result": None,
                        "id": 1,
                    }
                    assert [await socket.recv() for _ in recorded_texts] == recorded_texts
            await server.finished()
            assert set(server.sent.values()) == {len([x for x in lines if f'"{s}"' in x]) for s in server.sent}

    run(test)


@needs_recordings
def test_recordings_name_their_exchange_and_symbols() -> None:
    """The three markets are told apart by their messages, and REST snapshots among them are counted, not sent."""
    markets = {market.exchange: market for market in open_recordings([HFTBACKTEST])}
    assert set(markets) == set(VENUES)
    assert [each.symbol for each in markets["binance"].listings] == ["BTCUSDT", "ETHUSDT"]
    assert {name: market.skipped for name, market in markets.items()} == {
        "binance": 2,
        "binance-futures": 2,
        "binance-delivery": 1,
    }


def test_raw_and_combined_connections_get_the_recorded_text(tmp_path: Path) -> None:
    """A combined connection gets the wrapper as recorded, a raw one the data alone, spaces and odd fields included."""
    odd = '{"stream":"btcusdt@trade","data":{"e": "trade", "s":"BTCUSDT","t":1,"new":[{}],"M":true}}'
    reordered = '{"data":{"e":"trade","s":"BTCUSDT","t":2,"M":true},"stream":"btcusdt@trade"}'
    bare = '{"e":"trade","s":"BTCUSDT","t":3,"M":true}'
    broken = '{"stream":"btcusdt@trade","data":{"e":"trade","t":}}'
    path = tmp_path / "recording.txt"
    path.write_text("\n".join(f"{10**18 + n} {text}" for n, text in enumerate([odd, reordered, bare, broken])))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with (
            serve(market, start_delay_s=0.1) as server,
            client(server, "/ws/btcusdt@trade") as raw,
            client(server, "/stream?streams=btcusdt@trade") as both,
        ):
            assert [await both.recv() for _ in range(4)] == [
                odd,
                reordered,
                f'{{"stream":"btcusdt@trade","data":{bare}}}',
                broken,
            ]
            assert [await raw.recv() for _ in range(4)] == [
                odd[len('{"stream":"btcusdt@trade","data":') : -1],
                '{"e":"trade","s":"BTCUSDT","t":2,"M":true}',
                bare,
                '{"e":"trade","t":}',
            ]

    run(test)


def test_files_play_as_one_timeline(tmp_path: Path) -> None:
    """Files of one symbol follow each other, files of different symbols are merged by time."""
    files = [
        recording(tmp_path / "a1.txt", range(100)),
        recording(tmp_path / "a2.txt", range(100, 200)),
        recording(tmp_path / "b.txt", range(50, 150), stream="ethusdt@trade"),
    ]
    (market,) = open_recordings(files[::-1])
    played = list(market.messages(market.streams))
    assert [message.at_ns for message in played] == sorted(message.at_ns for message in played)
    ids = [orjson.loads(each.data)["t"] for each in played if each.stream == "btcusdt@trade"]
    assert ids == list(range(200))
    assert len(played) == market.total == 300


@pytest.mark.parametrize(
    ("line", "at_ns"),
    [
        ("1723161254087896568 " + SPOT_LINE % (START_MS, 1, START_MS), 1723161254087896568),
        ("1723161254087 " + SPOT_LINE % (START_MS, 1, START_MS), 1723161254087000000),
        ("1633998512.0633569: " + SPOT_LINE % (START_MS, 1, START_MS), 1633998512063356900),
        (SPOT_LINE % (START_MS, 1, START_MS), START_MS * 1_000_000),
        (SPOT_LINE % (START_MS * 1000 + 7, 1, START_MS), START_MS * 1_000_000 + 7_000),
    ],
)
def test_time_of_a_line(line: str, at_ns: int) -> None:
    """Receive times in ns or seconds are read; without one the message's own time counts, in ms or microseconds."""
    parsed = recorded._parse_line(line.encode(), 0)
    assert parsed is not None
    assert parsed.at_ns == at_ns
    assert parsed.stream == "btcusdt@trade"


@given(st.binary(max_size=200), st.integers(min_value=10**18, max_value=2 * 10**18))
def test_no_line_breaks_the_reader(content: bytes, at_ns: int) -> None:
    """Any line is either skipped or becomes a message; what stands in a wrapper comes out unchanged."""
    recorded._parse_line(content, 0)
    wrapped = recorded._parse_line(b'%d {"stream":"x@trade","data":%b}' % (at_ns, content), 0)
    if not content[:1].isspace():
        assert wrapped == Message(at_ns, "x@trade", b'{"stream":"x@trade","data":%b}' % content, content)


ROWS = (
    f"trade,{START_MS},BTCUSDT,1,64120.01000000,0.00150000,11,12,{START_MS - 1},True\n"
    f"trade,{START_MS + 1},BTCUSDT,2,64120.02000000,0.10000000,,,{START_MS},False\n"
    f"trade,,BTCUSDT,3,64120.02000000,0.20000000,,,{START_MS + 1},False\n"
)
ROWS_AS_SENT = (
    f'{{"e":"trade","E":{START_MS},"s":"BTCUSDT","t":1,"p":"64120.01000000","q":"0.00150000","b":11,"a":12,'
    f'"T":{START_MS - 1},"m":true,"M":true}}\n'
    f'{{"e":"trade","E":{START_MS + 1},"s":"BTCUSDT","t":2,"p":"64120.02000000","q":"0.10000000",'
    f'"T":{START_MS},"m":false,"M":true}}\n'
    f'{{"e":"trade","E":{START_MS + 1},"s":"BTCUSDT","t":3,"p":"64120.02000000","q":"0.20000000",'
    f'"T":{START_MS + 1},"m":false,"M":true}}'
).split("\n")


def write_packed(path: Path, text: str) -> None:
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        case ".zst":
            path.write_bytes(zstandard.compress(text.encode()))
        case ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(path.stem, text)
        case _:
            path.write_text(text)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zst", ".csv.zip"])
@pytest.mark.parametrize("torn", ["", "trade,17840000", f"trade,,BTCUSDT,4,1,1,,,{START_MS},Tr"])
def test_segments_become_the_messages_of_the_exchange(tmp_path: Path, suffix: str, torn: str) -> None:
    """A segment in any packing is sent as the exchange would have sent it; a torn last line is left out."""
    folder = tmp_path / "binance" / "trade" / "BTCUSDT"
    folder.mkdir(parents=True)
    write_packed(folder / f"BTCUSDT-trade-2026-07-14-1{suffix}", ROWS + torn)
    (market,) = open_recordings([tmp_path])
    assert market.exchange == "binance"
    assert [message.data.decode() for message in market.messages(market.streams)] == ROWS_AS_SENT


def test_aggregate_segments_of_futures(tmp_path: Path) -> None:
    """An aggTrade row of a futures segment becomes a futures message."""
    folder = tmp_path / "binance-futures" / "aggTrade" / "BTCUSDT"
    folder.mkdir(parents=True)
    row = f"aggTrade,{START_MS},BTCUSDT,476905218,55845.13,1.887,777675070,777675082,{START_MS - 1},True"
    (folder / "BTCUSDT-aggTrade-2026-07-14-476905218.csv").write_text(row + "\n")
    (market,) = open_recordings([tmp_path])
    (message,) = market.messages(market.streams)
    assert message.stream == "btcusdt@aggTrade"
    assert orjson.loads(message.data) == {
        "e": "aggTrade",
        "E": START_MS,
        "a": 476905218,
        "s": "BTCUSDT",
        "p": "55845.13",
        "q": "1.887",
        "f": 777675070,
        "l": 777675082,
        "T": START_MS - 1,
        "m": True,
        "st": 1,
    }


def test_segments_of_a_feed_follow_their_ids(tmp_path: Path) -> None:
    """A segment from history, whose times are earlier than the event times before it, still comes after them."""
    folder = tmp_path / "binance" / "trade" / "BTCUSDT"
    folder.mkdir(parents=True)
    live = "".join(f"trade,{START_MS + 50},BTCUSDT,{i},1.0,1.0,,,{START_MS + i},True\n" for i in (8, 9, 10))
    history = "".join(f"trade,,BTCUSDT,{i},1.0,1.0,,,{START_MS + i},True\n" for i in (11, 12))
    (folder / "BTCUSDT-trade-2026-07-14-8.csv").write_text(live)
    (folder / "BTCUSDT-trade-2026-07-14-11.csv").write_text(history)
    (market,) = open_recordings([tmp_path])
    assert [orjson.loads(each.data)["t"] for each in market.messages(market.streams)] == [8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.gz", None, ["missing.gz", "no such file"]),
        ("x.gz", b"no gzip", ["x.gz", "cannot be read"]),
        ("x.txt", b"hello\nworld\n", ["x.txt", "none of its 2 lines"]),
        (
            "kline.txt",
            b'1784000000000000000 {"stream":"a@kline_1m","data":{"e":"kline"}}\n',
            ["kline.txt", "--exchange"],
        ),
        ("x.csv", ROWS.encode(), ["x.csv", "--exchange"]),
        ("two.csv.zip", "zip", ["two.csv.zip", "holds 2 files"]),
    ],
)
def test_what_cannot_be_replayed_is_refused_by_name(tmp_path: Path, name: str, content: Any, words: list[str]) -> None:
    """A file that cannot be replayed ends in one line with its name and the remedy."""
    path = tmp_path / name
    if content == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "")
            archive.writestr("b", "")
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordingError) as refused:
        open_recordings([path], "binance" if content == "zip" else None)
    assert all(word in str(refused.value) for word in words)


def test_damage_inside_a_file_ends_the_playing_with_its_place(tmp_path: Path) -> None:
    """A row that is none in the middle of a segment, and a recording cut short, are named when they are reached."""
    path = tmp_path / "x.csv"
    path.write_text(ROWS.replace("BTCUSDT,2,", "BTCUSDT,two,"))
    (market,) = open_recordings([path], "binance")
    with pytest.raises(RecordingError, match=r"x\.csv, line 2"):
        list(market.messages(market.streams))

    async def test() -> None:
        async with serve(market) as server, client(server, "/ws/btcusdt@trade") as socket:
            assert orjson.loads(await socket.recv())["t"] == 1
            await server.finished()

    with pytest.raises(RecordingError, match=r"x\.csv, line 2"):
        run(test)


def test_a_directory_may_hold_other_files(tmp_path: Path) -> None:
    """What is no recording is left out of a directory, and told."""
    recording(tmp_path / "good.txt", range(3))
    (tmp_path / "notes.txt").write_text("hello\n")
    told: list[str] = []
    (market,) = open_recordings([tmp_path], tell=told.append)
    assert market.total == 3
    assert len(told) == 1
    assert "notes.txt" in told[0]


# The generated market


@settings(max_examples=25, deadline=None)
@given(
    exchange=st.sampled_from(sorted(VENUES)),
    seed=st.integers(0, 10**6),
    start_s=st.integers(0, 300_000_000),
    symbols=st.integers(1, 12),
    activity=st.sampled_from([0.2, 1.0, 70.0]),
)
def test_generated_streams_are_contiguous_and_agree(
    exchange: str, seed: int, start_s: int, symbols: int, activity: float
) -> None:
    """IDs rise by one, times never fall, and each aggregate is the sum of the trades that its `f` and `l` name."""
    market = GeneratedMarket(exchange, 1_577_836_800_000 + start_s * 1000, seed, symbols, activity)
    name = market.listings[-1].symbol.lower()
    trades = [orjson.loads(each.data) for each in islice(market.messages([f"{name}@trade"]), 1500)]
    assert all(after["t"] == before["t"] + 1 for before, after in pairwise(trades))
    assert all(after["E"] >= before["E"] and after["T"] >= before["T"] for before, after in pairwise(trades))
    assert all(each["E"] >= each["T"] for each in trades)
    by_id = {each["t"]: each for each in trades if each.get("X", "MARKET") == "MARKET"}
    aggregates = [orjson.loads(each.data) for each in islice(market.messages([f"{name}@aggTrade"]), 500)]
    assert all(after["a"] == before["a"] + 1 and after["f"] > before["l"] for before, after in pairwise(aggregates))
    for each in aggregates:
        covered = [by_id[i] for i in range(each["f"], each["l"] + 1) if i in by_id]
        if len(covered) == each["l"] - each["f"] + 1:
            assert {(one["p"], one["T"], one["m"]) for one in covered} == {(each["p"], each["T"], each["m"])}
            units = [int(one["q"].replace(".", "")) for one in covered]
            assert sum(units) == int(each["q"].replace(".", ""))
    if exchange == "binance":
        assert all(after["f"] == before["l"] + 1 for before, after in pairwise(aggregates))


def test_the_same_seed_makes_the_same_market() -> None:
    """A market follows from its seed alone, whenever it starts: the same ID is the same row."""
    first, again = generated(seed=4), generated(seed=4)
    streams = first.streams
    whole = list(first.messages(streams))
    assert whole == list(again.messages(streams))
    assert whole != list(generated(seed=5).messages(streams))
    later = GeneratedMarket("binance", START_MS + 7_000, seed=4, symbols=3, duration_s=13)
    assert list(later.messages(streams)) == [each for each in whole if each.at_ns >= (START_MS + 7_000) * 1_000_000]


def test_generated_traffic_is_bursty() -> None:
    """An ordinary quarter of an hour has empty tenths of seconds, crowded ones, and many trades with one time."""
    market = GeneratedMarket("binance", START_MS, seed=1, symbols=4, duration_s=900)
    rows = [orjson.loads(each.data) for each in market.messages(["btcusdt@trade"])]
    per_100ms = Counter(row["E"] // 100 for row in rows)
    assert 20_000 < len(rows) < 40_000
    assert 0.4 < 1 - len(per_100ms) / 9_000 < 0.8
    assert max(per_100ms.values()) > 200
    assert max(Counter(row["T"] for row in rows).values()) > 100


def test_futures_have_placeholders_that_no_aggregate_covers_and_rest_leaves_out() -> None:
    """`NA` frames keep `t` contiguous on the stream; aggregates and REST rows skip their IDs."""
    market = GeneratedMarket("binance-futures", START_MS, symbols=1, activity=10.0, duration_s=60)
    messages = list(market.messages(["btcusdt@trade"]))
    rows = [orjson.loads(each.data) for each in messages]
    unusual = {row["t"] for row in rows if row["X"] != "MARKET"}
    assert {(row["p"], row["q"]) for row in rows if row["X"] == "NA"} == {("0", "0")}
    covered = {
        row_id
        for each in market.messages(["btcusdt@aggTrade"])
        for row_id in range(orjson.loads(each.data)["f"], orjson.loads(each.data)["l"] + 1)
    }
    assert unusual
    assert not unusual & covered
    market.passed(messages[-1])
    history = market.trades("BTCUSDT", Wanted(1000, from_id=rows[0]["t"]))
    assert not unusual & {row.id for row in history}


def test_coin_margined_futures_have_no_placeholders() -> None:
    """Their trade IDs are consecutive on the stream and in REST, as in the exchange's archive."""
    market = GeneratedMarket("binance-delivery", START_MS, symbols=1, activity=10.0, duration_s=60)
    messages = list(market.messages(["btcusd_perp@trade"]))
    market.passed(messages[-1])
    rows = [orjson.loads(each.data) for each in messages]
    assert {row["X"] for row in rows} == {"MARKET"}
    history = market.trades("BTCUSD_PERP", Wanted(1000, from_id=rows[0]["t"]))
    assert [row.id for row in history] == [row["t"] for row in rows][:1000]


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_generated_history_is_what_the_streams_sent(exchange: str) -> None:
    """REST shows the rows that have passed and no later one, and rows from long before the start."""
    market = generated(exchange)
    symbol = market.listings[0].symbol
    stream = f"{symbol.lower()}@aggTrade"
    sent = list(market.messages([stream]))
    rows = [orjson.loads(each.data) for each in sent]
    before = market.aggregates(symbol, Wanted(10))
    assert before[-1].id == rows[0]["a"] - 1
    market.passed(sent[49])
    newest = market.aggregates(symbol, Wanted(50))
    assert [(row.id, row.price, row.quantity, row.first_id) for row in newest] == [
        (row["a"], row["p"], row["q"], row["f"]) for row in rows[:50]
    ]
    assert [row.id for row in market.aggregates(symbol, Wanted(1000, from_id=rows[40]["a"]))] == [
        row["a"] for row in rows[40:50]
    ]
    at = rows[20]["T"]
    assert [row.id for row in market.aggregates(symbol, Wanted(500, start_ms=at, end_ms=at))] == [
        row["a"] for row in rows[:50] if row["T"] == at
    ]
    assert [row.id for row in market.aggregates(symbol, Wanted(3, from_id=0))] == [1, 2, 3]


# Connections and control messages


CONTROL = [
    ('{"method":"SUBSCRIBE","params":["nosuch@trade"],"id":7}', {"result": None, "id": 7}),
    ('{"method":"UNSUBSCRIBE","params":["nosuch@trade"],"id":8}', {"result": None, "id": 8}),
    ('{"method":"LIST_SUBSCRIPTIONS","id":9}', {"result": ["xrpusdt@depth"], "id": 9}),
    ('{"method":"SET_PROPERTY","params":["combined",true],"id":10}', {"result": None, "id": 10}),
    ('{"method":"GET_PROPERTY","params":["combined"],"id":11}', {"result": False, "id": 11}),
    ('{"method":"GET_PROPERTY","params":["colour"],"id":1}', (0, "Unknown property", 1)),
    ('{"method":"SET_PROPERTY","params":["combined",1],"id":1}', (1, "Invalid value type", 1)),
    ('{"method":"SET_PROPERTY","params":[1],"id":1}', (2, "property name must be a string", 1)),
    ('{"method":"GET_PROPERTY","params":["combined",true],"id":1}', (2, "too many parameters", 1)),
    ('{"method":"DANCE","id":1}', (2, "unknown variant `DANCE`", 1)),
    ('{"id":1}', (2, "missing field `method`", 1)),
    ('{"method":"SUBSCRIBE","params":"btcusdt@trade","id":1}', (2, "Invalid request", 1)),
    ('{"method":"SUBSCRIBE","params":["btcusdt@trade"]}', (2, "request ID", None)),
    ('{"method":"LIST_SUBSCRIPTIONS","id":1.5}', (2, "request ID", None)),
    ("[1]", (2, "Invalid request", None)),
    ("{", (3, "Invalid JSON", None)),
]


@pytest.mark.parametrize("exchange", ["binance", "binance-futures"])
@pytest.mark.parametrize(("request_text", "expected"), CONTROL)
def test_control_messages(exchange: str, request_text: str, expected: Any) -> None:
    """Control messages are answered unwrapped; errors are bare on spot and inside `error` on futures."""

    async def test() -> None:
        async with serve(generated(exchange)) as server, client(server, "/ws/xrpusdt@depth") as socket:
            reply = await ask(socket, request_text)
            if isinstance(expected, dict):
                assert reply == expected
                return
            code, words, request_id = expected
            error = reply["error"] if exchange == "binance-futures" else reply
            assert (error["code"], reply["id"]) == (code, request_id)
            assert words in error["msg"]

    run(test)


def test_ids_of_requests_differ_between_markets() -> None:
    """Spot takes a word, a UUID, null or a negative number as `id`, futures only unsigned numbers."""

    async def test() -> None:
        for exchange, accepted in (("binance", True), ("binance-delivery", False)):
            for request_id in ("abc1", None, -1, "0194f3d2-8a4b-7c6e-9f10-2b3c4d5e6f70"):
                async with serve(generated(exchange)) as server, client(server, "/ws") as socket:
                    reply = await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": request_id})
                    assert (reply == {"result": [], "id": request_id}) is accepted

    run(test)


def test_switching_to_combined_and_back() -> None:
    """SET_PROPERTY changes the form of what follows on that connection."""

    async def test() -> None:
        async with serve(generated(), speed=1) as server, client(server, "/stream?streams=btcusdt@trade") as socket:
            server.start()
            assert "stream" in orjson.loads(await socket.recv())
            await ask(socket, {"method": "SET_PROPERTY", "params": ["combined", False], "id": 1})
            assert orjson.loads(await socket.recv())["e"] == "trade"

    run(test)


@pytest.mark.parametrize(
    ("exchange", "path", "delivered"),
    [
        ("binance", "/ws/btcusdt@trade", True),
        ("binance", "/stream?streams=btcusdt%40trade%2Fbtcusdt%40aggTrade", True),
        ("binance", "/ws/BTCUSDT@trade", False),
        ("binance", "/ws/nosuchusdt@trade", False),
        ("binance-futures", "/public/ws/btcusdt@trade", True),
        ("binance-futures", "/market/stream?streams=btcusdt@aggTrade", True),
        ("binance-futures", "/market/ws/btcusdt@trade", False),
        ("binance-futures", "/public/ws/btcusdt@aggTrade", False),
        ("binance-futures", "/ws/btcusdt@trade", True),
        ("binance-futures", "/ws/btcusdt@aggTrade", False),
        ("binance-futures", "/private/stream?streams=btcusdt@trade", False),
        ("binance-futures", "/private/ws/btcusdt@aggTrade", False),
        ("binance-delivery", "/ws/btcusd_perp@aggTrade", True),
    ],
)
def test_which_paths_deliver(exchange: str, path: str, delivered: bool) -> None:  # noqa: FBT001 (a column of the table)
    """A stream on the wrong path, of an unknown symbol or in upper case is listed and silent; the others send."""

    async def test() -> None:
        async with serve(generated(exchange)) as server, client(server, path) as socket:
            if delivered:
                assert b"rade" in str(await socket.recv()).encode()
            else:
                listed = await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
                assert len(listed["result"]) == 1
                assert not server.played

    run(test)


@pytest.mark.parametrize("path", ["/", "/socket", "/public/ws/btcusdt@trade", "/ws/a@trade?timeUnit=DAYS"])
def test_other_paths_are_refused(path: str) -> None:
    """A path that the exchange does not serve is answered with 404."""

    async def test() -> None:
        async with serve(generated()) as server:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await connect(server.ws_url + path)
            assert refused.value.response.status_code == 404

    run(test)


def test_half_a_handshake_starts_nothing() -> None:
    """An upgrade without its key is refused, and neither subscribes nor starts the market."""

    async def test() -> None:
        async with serve(generated()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /ws/btcusdt@trade HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 4")
            writer.close()
            await rest(server, "/api/v3/ping")
            assert not server.played

    run(test)


def test_microseconds_on_request() -> None:
    """With timeUnit=MICROSECOND all times of a spot connection have 16 digits."""

    async def test() -> None:
        async with serve(generated()) as server, client(server, "/ws/btcusdt@trade?timeUnit=microsecond") as socket:
            row = orjson.loads(await socket.recv())
            assert row["E"] // 10**15 == 1
            assert row["T"] // 10**15 == 1
            assert row["t"] < 10**13

    run(test)


def test_unsubscribed_streams_stop() -> None:
    """After UNSUBSCRIBE nothing of that stream is delivered any more."""

    async def test() -> None:
        async with (
            serve(generated(), speed=1) as server,
            client(server, "/ws/btcusdt@trade/btcusdt@aggTrade") as socket,
        ):
            server.start()
            await ask(socket, {"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": 1})
            sent = server.sent["btcusdt@trade"]
            for _ in range(20):
                assert orjson.loads(await socket.recv())["e"] == "aggTrade"
            assert server.sent["btcusdt@trade"] == sent

    run(test)


def test_too_many_streams_end_the_connection() -> None:
    """The 1025th stream is answered with error 4, and the connection is closed with 1008."""

    async def test() -> None:
        async with serve(generated("binance-futures")) as server, client(server, "/public/ws") as socket:
            for hundred in range(10):
                names = [f"s{hundred}x{n}@trade" for n in range(103)]
                await socket.send(orjson.dumps({"method": "SUBSCRIBE", "params": names, "id": hundred}).decode())
            got, closed = await until_closed(socket)
            assert orjson.loads(got[-1])["error"]["code"] == 4
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1008

    run(test)


def test_long_control_messages_get_no_reply_on_spot() -> None:
    """A control message of more than 4096 bytes is not answered, a later short one is."""

    async def test() -> None:
        async with serve(generated()) as server, client(server, "/ws") as socket:
            names = [f"symbol{n}usdt@aggTrade" for n in range(200)]
            await socket.send(orjson.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}).decode())
            assert await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 2}) == {"result": [], "id": 2}

    run(test)


def test_a_client_that_talks_too_fast_is_closed() -> None:
    """More messages in a second than the exchange allows end the connection with 1008, and the reason arrives."""

    async def test() -> None:
        async with serve(generated()) as server, client(server, "/ws") as socket:
            for request_id in range(40):
                await socket.send(f'{{"method":"LIST_SUBSCRIPTIONS","id":{request_id}}}')
            got, closed = await until_closed(socket)
            assert len(got) == VENUES["binance"].client_messages_per_s
            assert closed.rcvd is not None
            assert (closed.rcvd.code, closed.rcvd.reason) == (1008, "Too many requests")

    run(test)


def test_pings_come_and_silence_is_cut() -> None:
    """The server pings at its interval, lives on with a client that answers, and cuts one that does not."""

    async def test() -> None:
        async with serve(generated(), ping_interval_s=0.3, pong_timeout_s=0.5, life_s=3600) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            async with client(server, "/ws") as answering:
                writer.write(HANDSHAKE)
                received = await reader.read()  # until the server ends it
                assert b"\x89\x0d" in received  # ping frames, 13 digits of ms
                assert received.count(b"\x89\x0d") >= 2
                assert (await ask(answering, {"method": "LIST_SUBSCRIPTIONS", "id": 1}))["id"] == 1
            writer.close()

    run(test)


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_a_connection_ends_after_its_life() -> None:
    """After its life, 24 hours by default, a connection is closed."""

    async def test() -> None:
        async with serve(generated(), life_s=0.1) as server, client(server, "/ws") as socket:
            _, closed = await until_closed(socket)
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1000

    run(test)


# The timeline


def test_at_max_each_stream_waits_for_its_first_subscriber(tmp_path: Path) -> None:
    """Streams asked for later, even by another client after the first has gone, start at their beginning."""
    paths = [recording(tmp_path / f"{s}.txt", range(500), stream=f"{s}@trade") for s in ("ausdt", "busdt")]

    async def test() -> None:
        (market,) = open_recordings(paths)
        async with serve(market) as server:
            for stream in ("ausdt@trade", "busdt@trade"):
                async with client(server, f"/ws/{stream}") as socket:
                    assert [orjson.loads(await socket.recv())["t"] for _ in range(500)] == list(range(500))
            await server.finished()

    run(test)


def test_at_max_nothing_moves_while_nobody_listens(tmp_path: Path) -> None:
    """A client that comes back finds the market where it left it, but for what was on the way to it."""
    path = recording(tmp_path / "a.txt", range(200_000))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with serve(market) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HANDSHAKE.replace(b"/ws", b"/ws/btcusdt@trade"))
            await reader.readuntil(b'"t":100,')
            writer.transport.abort()
            await until(lambda: not server.connections)
            played = server.played["btcusdt@trade"]
            assert 100 < played < 200_000
            assert server.sent == server.played
            async with client(server, "/ws/btcusdt@trade") as socket:
                got = [orjson.loads(await socket.recv())["t"] for _ in range(200_000 - played)]
                assert got == list(range(played, 200_000))

    run(test)


def test_a_slow_reader_holds_the_market_back_at_max(tmp_path: Path) -> None:
    """While a client does not read, little is played; when it reads, it gets everything."""
    path = recording(tmp_path / "a.txt", range(200_000))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with (
            serve(market) as server,
            connect(server.ws_url + "/ws/btcusdt@trade", compression=None, max_queue=2) as socket,
        ):
            await socket.recv()
            (connection,) = server.connections
            await until(lambda: not connection.writable.is_set())
            played = server.played["btcusdt@trade"]
            assert played < 190_000
            for _ in range(20):
                await rest(server, "/api/v3/ping")
            assert server.played["btcusdt@trade"] == played
            assert connection.unsent_bytes < 4 * 2**20
            for expected in range(1, 200_000):
                text = str(await socket.recv())
                if expected % 1000 == 0:
                    assert f'"t":{expected},' in text
            await server.finished()

    run(test, timeout_s=60)


def test_at_a_speed_the_market_goes_on_for_everyone(tmp_path: Path) -> None:
    """At a speed all streams pass on one clock from the first subscription on, listened to or not."""
    paths = [recording(tmp_path / f"{s}.txt", range(1000), stream=f"{s}@trade") for s in ("ausdt", "busdt")]

    async def test() -> None:
        (market,) = open_recordings(paths)
        async with serve(market, speed=10) as server, client(server, "/ws/ausdt@trade") as socket:
            assert [orjson.loads(await socket.recv())["t"] for _ in range(1000)] == list(range(1000))
            await server.finished()
            assert server.played == {"ausdt@trade": 1000, "busdt@trade": 1000}
            assert server.sent == {"ausdt@trade": 1000}

    run(test)


def test_a_generated_market_sends_nothing_before_its_time() -> None:
    """Started by hand, whatever the delay for subscriptions is, it keeps to this machine's clock from its start on."""

    async def test() -> None:
        market = generated(start_ms=int(time.time() * 1000), activity=20.0)
        async with serve(market, speed=1, start_delay_s=3600) as server:
            server.start()
            async with client(server, "/ws/btcusdt@trade") as socket:
                for _ in range(30):
                    event_ms = orjson.loads(await socket.recv())["E"]
                    assert time.time() * 1000 >= event_ms - 50  # the wall clock and the loop's may differ a little

    run(test)


def test_pausing_holds_the_market(tmp_path: Path) -> None:
    """Paused before the first subscription, nothing is played until the market is resumed."""
    path = recording(tmp_path / "a.txt", range(10))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with serve(market) as server:
            server.pause()
            async with client(server, "/ws/btcusdt@trade") as first, client(server, "/ws/btcusdt@trade") as second:
                await ask(second, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
                assert not server.played
                server.resume()
                for socket in (first, second):
                    assert [orjson.loads(await socket.recv())["t"] for _ in range(10)] == list(range(10))

    run(test)


def test_a_slow_reader_is_cut_at_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a speed the market does not wait: a connection with too much unsent is reset."""
    monkeypatch.setattr(server_module, "SLOW_READER_BYTES", 100_000)

    async def test() -> None:
        market = generated(activity=100.0, duration_s=600.0)
        async with (
            serve(market, speed=10_000.0) as server,
            connect(server.ws_url + "/ws/btcusdt@trade", compression=None, max_queue=2) as socket,
        ):
            await until(lambda: not server.connections)
            _, closed = await until_closed(socket)
            assert closed.rcvd is None

    run(test)


def test_a_market_at_max_cannot_be_started_by_hand() -> None:
    """At max the readers set the pace, so that starting without one is refused."""

    async def test() -> None:
        async with serve(generated()) as server:
            with pytest.raises(ValueError, match="first subscription"):
                server.start()

    run(test)


# REST


def test_recorded_history_grows_with_the_playing(tmp_path: Path) -> None:
    """REST knows a recorded row once it has been played: none before, all after, by ID and by limit."""
    path = recording(tmp_path / "a.txt", range(1, 2501))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with serve(market) as server:
            assert (await rest(server, "/api/v3/trades?symbol=BTCUSDT")).json() == []
            async with client(server, "/ws/btcusdt@trade"):
                await server.finished()
            newest = (await rest(server, "/api/v3/trades?symbol=BTCUSDT&limit=2")).json()
            assert newest[-1] == {
                "id": 2500,
                "price": "64120.01000000",
                "qty": "0.00150000",
                "quoteQty": "96.1800150000000000",
                "time": START_MS + 2500,
                "isBuyerMaker": True,
                "isBestMatch": True,
            }
            page = (await rest(server, "/api/v3/historicalTrades?symbol=BTCUSDT&fromId=10&limit=5000")).json()
            assert [row["id"] for row in page] == list(range(10, 1010))

    run(test)


def test_recorded_aggregates_by_time(tmp_path: Path) -> None:
    """Aggregates are found by inclusive times and by ID; placeholders are not among the trades of futures."""
    path = tmp_path / "a.jsonl"
    aggregate = (
        '{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":%d,"a":%d,"s":"BTCUSDT","p":"1.5","q":"2",'
        '"nq":"1","f":%d,"l":%d,"T":%d,"m":false,"st":1}}'
    )
    trade = (
        '{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"T":%d,"s":"BTCUSDT","t":%d,"p":"1.5","q":"2",'
        '"X":"%s","m":false,"st":1}}'
    )
    lines = []
    for i in range(1, 11):
        at = START_MS + i
        lines += [aggregate % (at, i, i, i, at), trade % (at, at, i, "NA" if i % 3 == 0 else "MARKET")]
    path.write_text("\n".join(lines))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with serve(market, speed=1000) as server, client(server, "/market/ws/btcusdt@aggTrade"):
            await server.finished()
            base = "/fapi/v1/aggTrades?symbol=BTCUSDT"
            found = (await rest(server, f"{base}&startTime={START_MS + 3}&endTime={START_MS + 5}")).json()
            assert [row["a"] for row in found] == [3, 4, 5]
            assert found[0] == {"a": 3, "p": "1.5", "q": "2", "nq": "1", "f": 3, "l": 3, "T": START_MS + 3, "m": False}
            assert [row["a"] for row in (await rest(server, f"{base}&endTime={START_MS + 5}&limit=2")).json()] == [4, 5]
            assert [row["a"] for row in (await rest(server, f"{base}&fromId=9")).json()] == [9, 10]
            trades = (await rest(server, "/fapi/v1/trades?symbol=BTCUSDT")).json()
            assert [row["id"] for row in trades] == [1, 2, 4, 5, 7, 8, 10]

    run(test)


REFUSALS = [
    ("binance", "/api/v3/trades", 400, -1102),
    ("binance", "/api/v3/trades?symbol=", 400, -1102),
    ("binance", "/api/v3/trades?symbol=btcusdt", 400, -1100),
    ("binance", "/api/v3/trades?symbol=NOSUCH", 400, -1121),
    ("binance", "/api/v3/trades?symbol=BTCUSDT&limit=x", 400, -1100),
    ("binance", "/api/v3/trades?symbol=BTCUSDT&limit=", 400, -1105),
    ("binance", "/api/v3/trades?symbol=BTCUSDT&limit=0", 400, -1130),
    ("binance", "/api/v3/trades?symbol=BTCUSDT&colour=red", 400, -1104),
    ("binance", "/api/v3/trades?symbol=BTCUSDT&symbol=ETHUSDT", 400, -1101),
    ("binance", "/api/v3/exchangeInfo?symbol=NOSUCH", 400, -1121),
    ("binance", '/api/v3/exchangeInfo?symbols=["NOSUCH"]', 400, -1121),
    ("binance-futures", "/fapi/v1/historicalTrades?symbol=BTCUSDT", 401, -2014),
    ("binance-futures", "/fapi/v1/trades?symbol=BTCUSDT&limit=1001", 400, -1130),
    ("binance-futures", "/fapi/v1/aggTrades?symbol=BTCUSDT&fromId=1", 400, -4166),
    ("binance-futures", f"/fapi/v1/aggTrades?symbol=BTCUSDT&startTime={START_MS - 3 * 86_400_000}", 400, -4166),
    ("binance-delivery", "/dapi/v1/aggTrades?symbol=BTCUSD_PERP&fromId=1", 400, -4166),
]


@pytest.mark.parametrize(("exchange", "path", "status", "code"), REFUSALS)
def test_rest_refusals(exchange: str, path: str, status: int, code: int) -> None:
    """A request that the exchange refuses is refused with its status and code, and costs its weight."""

    async def test() -> None:
        async with serve(generated(exchange)) as server:
            answer = await rest(server, path)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
            assert int(answer.headers["X-MBX-USED-WEIGHT-1M"]) > 0

    run(test)


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_what_is_not_served_is_answered_in_json_and_told_once(exchange: str) -> None:
    """A path or a stream that nothing serves is told once each, and a client can read the refusal."""
    told: list[str] = []

    async def test() -> None:
        path = f"{VENUES[exchange].api}/klines"
        async with serve(generated(exchange), tell=told.append) as server:
            for _ in range(3):
                answer = await rest(server, f"{path}?symbol=BTCUSDT")
                assert answer.status_code == 404
                assert answer.headers["Content-Type"].startswith("application/json")
                assert answer.json() == {"code": -5000, "msg": f"Path {path}, Method GET is invalid"}
            for _ in range(2):
                async with client(server, "/ws/btcusdt@kline_1m") as socket:
                    await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
        assert told == [
            f"{exchange}: a client asked for GET {path}, which is not served here",
            f"{exchange}: a client asked for stream btcusdt@kline_1m, which is not served here",
        ]

    run(test)


@pytest.mark.parametrize("exchange", sorted(VENUES))
def test_rest_lists_symbols_and_tells_the_time(exchange: str) -> None:
    """The listing shows what is played, in the market's own fields; time and ping answer."""

    async def test() -> None:
        async with serve(generated(exchange), clock=lambda: 1_784_000_000.5) as server:
            api = VENUES[exchange].api
            info = (await rest(server, f"{api}/exchangeInfo")).json()
            assert [each["symbol"] for each in info["symbols"]] == [each.symbol for each in server.market.listings]
            status = "contractStatus" if exchange == "binance-delivery" else "status"
            assert info["symbols"][0][status] == "TRADING"
            assert info["symbols"][0]["filters"][0]["filterType"] == "PRICE_FILTER"
            assert info["rateLimits"][0]["limit"] == VENUES[exchange].weight_per_minute
            assert (await rest(server, f"{api}/time")).json() == {"serverTime": 1_784_000_000_500}
            assert (await rest(server, f"{api}/ping")).json() == {}
            with_key = await rest(
                server, f"{api}/historicalTrades?symbol={info['symbols'][0]['symbol']}", **{"X-MBX-APIKEY": "k"}
            )
            assert len(with_key.json()) == (500 if exchange == "binance" else 100)
            assert [each.path for each in server.requests][:2] == [f"{api}/exchangeInfo", f"{api}/time"]

    run(test)


def test_weights_are_counted_by_the_minute() -> None:
    """Beyond the limit comes 429 until the minute ends, then service again; going on regardless ends in 418."""
    meter = Meter(100)
    assert meter.charge(60, 0.0) is None
    assert meter.used == 60
    refused = meter.charge(60, 15.0)
    assert refused is not None
    assert (refused.status, refused.headers["Retry-After"]) == (429, "45")
    assert meter.charge(60, 60.0) is None
    statuses = [answer.status if (answer := meter.charge(60, 61.0)) else 200 for _ in range(12)]
    assert statuses == [429] * 10 + [418] * 2
    banned = meter.charge(1, 130.0)
    assert banned is not None
    assert (banned.status, banned.headers["Retry-After"]) == (418, "52")
    assert meter.charge(1, 61.0 + 120) is None


def test_one_http_connection_serves_many_requests() -> None:
    """Keep-alive works, a request cut into single bytes too, and `Connection: close` is obeyed."""

    async def test() -> None:
        async with serve(generated()) as server:
            async with httpx.AsyncClient(base_url=server.rest_url) as http:
                for _ in range(5):
                    assert (await http.get("/api/v3/ping")).status_code == 200
                assert len(server.connections) == 1
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for byte in b"GET /api/v3/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
                writer.write(bytes([byte]))
                await writer.drain()
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.close()
            async with httpx.AsyncClient(base_url=server.rest_url) as http:
                assert (await http.post("/api/v3/ping")).status_code == 405

    run(test)


# Misbehaviour


def scripted(steps: dict[int, Callable[[bytes], list[Step]]]) -> Behaviour:
    """Depart from the exchange at some messages of each stream, by number."""

    def message(_: Connection, __: str, number: int, payload: bytes) -> list[Step]:
        return steps[number](payload) if number in steps else [payload]

    return Behaviour(message=message)


def test_messages_can_be_dropped_doubled_and_replaced(tmp_path: Path) -> None:
    """A script decides message by message what the client gets."""
    path = recording(tmp_path / "a.txt", range(5))
    behaviour = scripted({1: lambda _: [], 2: lambda same: [same, same], 3: lambda _: [b"garbage"]})

    async def test() -> None:
        (market,) = open_recordings([path])
        async with serve(market, behaviour=behaviour) as server, client(server, "/ws/btcusdt@trade") as socket:
            got = [str(await socket.recv()) for _ in range(5)]
            assert ["garbage" if text == "garbage" else orjson.loads(text)["t"] for text in got] == [
                0,
                2,
                2,
                "garbage",
                4,
            ]

    run(test)


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([Close(1012, "restart")], 1012),
        ([Cut()], None),
        ([Reset()], None),
        ([Bytes(frame(b'{"e":"trade"}')[:7]), Cut()], None),
        ([Bytes(b"\xc1\x00")], None),
    ],
)
def test_connections_can_end_in_every_way(tmp_path: Path, steps: list[Step], code: int | None) -> None:
    """A close frame, a FIN, a RST, half a frame or an illegal one ends a connection after the messages before it."""
    path = recording(tmp_path / "a.txt", range(1000))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with (
            serve(market, behaviour=scripted({3: lambda _: steps})) as server,
            client(server, "/ws/btcusdt@trade") as socket,
        ):
            got, closed = await until_closed(socket)
            assert len(got) == 3 or isinstance(steps[0], Reset)
            assert (closed.rcvd.code if closed.rcvd else None) == code

    run(test)


def test_after_a_scripted_end_the_market_stands(tmp_path: Path) -> None:
    """When a script ends the only connection, the next client gets the next message."""
    path = recording(tmp_path / "a.txt", range(1000))

    async def test() -> None:
        (market,) = open_recordings([path])
        async with serve(market, behaviour=scripted({3: lambda same: [same, Cut()]})) as server:
            for expected in (range(4), range(4, 1000)):
                async with client(server, "/ws/btcusdt@trade") as socket:
                    assert [orjson.loads(await socket.recv())["t"] for _ in expected] == list(expected)

    run(test)


def test_handshakes_can_be_refused() -> None:
    """A handshake hook answers with any status and headers."""
    banned = Answer(429, b'{"code":-1003}', {"Retry-After": "17"})

    async def test() -> None:
        async with serve(generated(), behaviour=Behaviour(handshake=lambda _, __: banned)) as server:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await connect(server.ws_url + "/ws")
            assert refused.value.response.status_code == 429
            assert refused.value.response.headers["Retry-After"] == "17"
            server.behaviour = Behaviour()
            async with client(server, "/ws") as socket:
                assert await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})

    run(test)


def test_rest_answers_can_be_replaced_and_held_back() -> None:
    """A REST hook sees the request and the true answer, and may give another, later."""

    def late(request: Request, answer: Answer) -> Answer:
        assert dict(request.query) == {"symbol": "BTCUSDT"}
        return Answer(503, b"<html>", {"Content-Type": "text/html", "X-Was": str(answer.status)}, delay_s=0.05)

    async def test() -> None:
        async with serve(generated(), behaviour=Behaviour(rest=late)) as server:
            answer = await rest(server, "/api/v3/trades?symbol=BTCUSDT")
            assert (answer.status_code, answer.text, answer.headers["X-Was"]) == (503, "<html>", "200")

    run(test)


def test_pongs_can_be_withheld() -> None:
    """A server that swallows pongs still takes control messages."""

    async def test() -> None:
        async with (
            serve(generated(), behaviour=Behaviour(answers_pings=False)) as server,
            client(server, "/ws") as socket,
        ):
            pong = asyncio.ensure_future(await socket.ping())
            assert await ask(socket, {"method": "LIST_SUBSCRIPTIONS", "id": 1})
            assert not pong.done()
            server.behaviour.answers_pings = True
            await (await socket.ping())

    run(test)


def test_all_websockets_can_be_told_and_ended_at_once() -> None:
    """The shutdown event comes in each connection's form; then every connection ends as asked."""

    async def test() -> None:
        async with (
            serve(generated(), clock=lambda: 1_784_000_000.123) as server,
            client(server, "/ws") as raw,
            client(server, "/stream") as combined,
        ):
            server.announce_shutdown()
            notice = {"e": "serverShutdown", "E": 1_784_000_000_123}
            assert orjson.loads(await raw.recv()) == notice
            assert orjson.loads(await combined.recv()) == {"stream": "!serverShutdown", "data": notice}
            server.disconnect(Close(1001))
            for socket in (raw, combined):
                _, closed = await until_closed(socket)
                assert closed.rcvd is not None
                assert closed.rcvd.code == 1001

    run(test)


def test_the_answer_to_a_close_frame_is_awaited() -> None:
    """The connection stays until the client has answered the close frame: else what it still sends resets it."""

    async def test() -> None:
        async with serve(generated()) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            server.disconnect(Close(1012))
            assert await reader.readexactly(4) == b"\x88\x02\x03\xf4"
            await rest(server, "/api/v3/ping")
            assert not reader.at_eof()
            writer.write(b"\x88\x82\x00\x00\x00\x00\x03\xf4")
            assert await reader.read() == b""
            writer.close()

    run(test)


# The command


def test_play_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """The command prints where to connect, tells when all is sent, and ends in order on SIGTERM."""
    path = recording(tmp_path / "a.txt", range(100))
    program = (
        "import asyncio, functools, math, sys; from pathlib import Path\n"
        "from tickcollect.dataset.replay import ReplayOptions, play\n"
        "options = ReplayOptions([Path(sys.argv[1])], speed=math.inf, start_delay_s=0)\n"
        "asyncio.run(play(options, functools.partial(print, flush=True)))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "binance: BTCUSDT" in process.stdout.readline()
        url = process.stdout.readline().split()[1]
        assert "tickcollect run" in process.stdout.readline()

        async def test() -> None:
            async with connect(url + "/ws/btcusdt@trade") as socket:
                assert [orjson.loads(await socket.recv())["t"] for _ in range(100)] == list(range(100))

        run(test)
        assert "all 100 messages" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopped: 100 messages sent\n"
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    "options", [{"speed": 0}, {"speed": math.nan}, {"exchange": "kraken"}, {"symbols": 0}, {"activity": -1}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    """Options that make no sense are refused before anything is opened."""
    with pytest.raises(ValueError, match=r".+"):
        ReplayOptions(**options)


def test_play_refuses_a_bad_file(tmp_path: Path) -> None:
    """What cannot be replayed ends the command with its one typed error."""
    with pytest.raises(RecordingError, match="no such file"):
        asyncio.run(play(ReplayOptions([tmp_path / "nothing.gz"]), lambda _: None))


def test_markets_fit_the_servers_protocol() -> None:
    """Both kinds of market are what the server plays (checked by the type checker)."""
    markets: list[type[Market]] = [RecordedMarket, GeneratedMarket]
    assert len(markets) == 2
