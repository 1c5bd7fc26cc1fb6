"""Messages become the rows that the documents promise, and nothing else passes the check before the file."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcollect.events import (
    STREAMS,
    Message,
    RowCheck,
    Trade,
    day_of,
    field_text,
    row_pattern,
    time_ms,
    with_fields,
)
from tickcollect.exchanges.binance import MARKETS, Decoder, Refused
from tickcollect.writer import with_extra_columns

TRADE: dict[str, Any] = {
    "e": "trade",
    "E": 1784000000105,
    "s": "BTCUSDT",
    "t": 6100000001,
    "p": "64120.01000000",
    "q": "0.00150000",
    "T": 1784000000104,
    "m": True,
    "M": True,
}
AGGREGATE: dict[str, Any] = {
    "e": "aggTrade",
    "E": 1784000000300,
    "a": 3300000001,
    "s": "BTCUSDT",
    "p": "64111.10",
    "q": "1.250",
    "nq": "1.200",
    "f": 8100000001,
    "l": 8100000006,
    "T": 1784000000155,
    "m": False,
    "st": 1,
}
FUTURES_TRADE: dict[str, Any] = {
    "e": "trade",
    "E": 1784000000156,
    "T": 1784000000155,
    "s": "BTCUSDT",
    "t": 8100000001,
    "p": "64111.10",
    "q": "0.500",
    "X": "MARKET",
    "m": False,
    "st": 1,
}


def decoded(fields: dict[str, Any], exchange: str = "binance", extra: tuple[str, ...] = ()) -> Message:
    """Decode one message as the collector does."""
    payload = json.dumps({"stream": f"btcusdt@{fields['e']}", "data": fields}).encode()
    message = Decoder(MARKETS[exchange], extra).message(payload)
    assert isinstance(message, Message), message
    return message


def line(message: Message) -> str:
    (text,) = type(message).lines([message])
    return text


@pytest.mark.parametrize(
    ("exchange", "fields", "row"),
    [
        (
            "binance",
            {"e": "trade", "E": 1620744948060, "s": "BTCUSDT", "t": 851651093, "p": "39307.24000000",
             "q": "0.05838400", "b": 6046158371, "a": 6046157885, "T": 1620744948059, "m": False, "M": True},
            "trade,1620744948060,BTCUSDT,851651093,39307.24000000,0.05838400,6046158371,6046157885,1620744948059,False\n",
        ),
        (
            "binance",
            TRADE,
            "trade,1784000000105,BTCUSDT,6100000001,64120.01000000,0.00150000,,,1784000000104,True\n",
        ),
        (
            "binance",
            TRADE | {"E": 1784000000105123, "T": 1784000000104999},
            "trade,1784000000105123,BTCUSDT,6100000001,64120.01000000,0.00150000,,,1784000000104999,True\n",
        ),
        (
            "binance-futures",
            FUTURES_TRADE,
            "trade,1784000000156,BTCUSDT,8100000001,64111.10,0.500,,,1784000000155,False\n",
        ),
        (
            "binance-futures",
            {"e": "aggTrade", "E": 1620744948060, "a": 476905218, "s": "BTCUSDT", "p": "55845.13", "q": "1.887",
             "f": 777675070, "l": 777675082, "T": 1620744948055, "m": True},
            "aggTrade,1620744948060,BTCUSDT,476905218,55845.13,1.887,777675070,777675082,1620744948055,True\n",
        ),
        (
            "binance-futures",
            AGGREGATE,
            "aggTrade,1784000000300,BTCUSDT,3300000001,64111.10,1.250,8100000001,8100000006,1784000000155,False\n",
        ),
        (
            "binance",
            AGGREGATE | {"f": -1, "l": -1, "q": "0.00000000"},
            "aggTrade,1784000000300,BTCUSDT,3300000001,64111.10,0.00000000,-1,-1,1784000000155,False\n",
        ),
        (
            "binance-delivery",
            FUTURES_TRADE | {"s": "BTCUSD_PERP", "q": "3", "st": 2},
            "trade,1784000000156,BTCUSD_PERP,8100000001,64111.10,3,,,1784000000155,False\n",
        ),
        (
            "binance",
            TRADE | {"t": 2**63 - 1, "p": "0.00000001"},
            "trade,1784000000105,BTCUSDT,9223372036854775807,0.00000001,0.00150000,,,1784000000104,True\n",
        ),
    ],
)  # fmt: skip
def test_rows(exchange: str, fields: dict[str, Any], row: str) -> None:
    """A message becomes exactly the documented columns, its numbers as they were sent, and the check admits it."""
    message = decoded(fields, exchange)
    assert line(message) == row
    check = RowCheck(fields["e"], fields["s"])
    assert check.admits(row.encode(), 1)
    assert check.admits_row(row.encode())


@pytest.mark.parametrize("stream", STREAMS)
def test_row_has_the_columns_of_its_stream(stream: str) -> None:
    """The table of columns, the rows and the ID column agree with each other."""
    kind = STREAMS[stream]
    message = decoded({"trade": TRADE, "aggTrade": AGGREGATE}[stream])
    cells = line(message).rstrip("\n").split(",")
    assert len(cells) == len(kind.COLUMNS)
    by_name = dict(zip(kind.COLUMNS, cells, strict=True))
    assert by_name.pop("e") == stream
    assert by_name == {name: str(getattr(message, name)) for name in kind.COLUMNS if name != "e"}
    assert kind.ids([message, message]) == [int(by_name[kind.ID_COLUMN])] * 2


GOOD = b"trade,1784000000105,BTCUSDT,6100000001,64120.01,0.0015,,,1784000000104,True\n"
GOOD_AGGREGATE = b"aggTrade,1784000000105,BTCUSDT,39,64120.01,0.0015,61,63,1784000000104,True\n"


@pytest.mark.parametrize(
    ("row", "admitted"),
    [
        (GOOD, True),
        (GOOD.replace(b",,,", b",17,18,"), True),
        (GOOD.replace(b"1784000000105", b""), True),
        (GOOD.replace(b"64120.01", b"64120"), True),
        (GOOD.replace(b"64120.01", b"64120."), True),
        (GOOD.replace(b"64120.01", b".5"), True),
        (GOOD.replace(b"64120.01", b"0"), True),
        (GOOD.replace(b"True", b"False"), True),
        (GOOD_AGGREGATE, True),
        (GOOD_AGGREGATE.replace(b",61,63,", b",-1,-1,"), True),
        (GOOD.replace(b"64120.01", b""), False),
        (GOOD.replace(b"64120.01", b"-1"), False),
        (GOOD.replace(b"64120.01", b"+1"), False),
        (GOOD.replace(b"64120.01", b"1e5"), False),
        (GOOD.replace(b"64120.01", b"1.2.3"), False),
        (GOOD.replace(b"64120.01", b"NaN"), False),
        (GOOD.replace(b"64120.01", b"1 "), False),
        (GOOD.replace(b"64120.01", b"1,2"), False),
        (GOOD.replace(b"64120.01", "٣".encode()), False),
        (GOOD.replace(b"6100000001", b""), False),
        (GOOD.replace(b"6100000001", b"-1"), False),
        (GOOD.replace(b"1784000000104", b""), False),
        (GOOD.replace(b"BTCUSDT", b"BTCUSD"), False),
        (GOOD.replace(b"BTCUSDT", b"btcusdt"), False),
        (GOOD.replace(b"True", b"true"), False),
        (GOOD.replace(b"True", b""), False),
        (GOOD.replace(b"trade", b"trades"), False),
        (GOOD[:-1], False),
        (GOOD[:-1] + b"\r\n", False),
        (GOOD[:-1] + b",\n", False),
        (b"\xef\xbb\xbf" + GOOD, False),
        (b"\x00" * len(GOOD), False),
        (b"\n", False),
        (b"", False),
        (GOOD_AGGREGATE.replace(b",39,", b",,"), False),
        (GOOD_AGGREGATE.replace(b",61,63,", b",,,"), False),
        (GOOD_AGGREGATE.replace(b",61,63,", b",--1,63,"), False),
    ],
)
def test_row_pattern(row: bytes, admitted: bool) -> None:  # noqa: FBT001 - a column of the table above
    """The pattern of a row admits what the exchange can send and refuses what would not be a row of this feed."""
    stream = "aggTrade" if row.startswith(b"agg") else "trade"
    assert (row_pattern(stream, "BTCUSDT").fullmatch(row) is not None) is admitted
    assert RowCheck(stream, "BTCUSDT").admits_row(row) is admitted


def test_symbol_is_text_and_not_a_pattern() -> None:
    """A symbol with signs of a pattern's language, or in Chinese, admits itself only."""
    row = GOOD.replace(b"BTCUSDT", "币安.USDT".encode())
    assert RowCheck("trade", "币安.USDT").admits(row, 1)
    assert not RowCheck("trade", "币安xUSDT").admits(row, 1)
    assert not RowCheck("trade", "币安.USDT").admits(row.replace(b".USDT", b"xUSDT"), 1)


ODD_NUMBERS = st.one_of(
    st.from_regex(r"[0-9]{1,6}\.[0-9]{1,8}", fullmatch=True),
    st.from_regex(r"[0-9]{0,3}\.?[0-9]{0,3}", fullmatch=True),
    st.text(alphabet='0123456789.,-+eE\n\r"\\ =TrueFals\u0661', max_size=12),
    st.just("1.5,2.5,,,1784000000104,True\ntrade,1784000000105,BTCUSDT,6100000002,1.0"),
    st.text(max_size=8),
)


@given(st.lists(st.tuples(ODD_NUMBERS, ODD_NUMBERS, st.booleans()), min_size=1, max_size=6))
def test_block_is_admitted_exactly_if_each_row_is(texts: list[tuple[str, str, bool]]) -> None:
    """However odd price and quantity are, a block passes if and only if each message made one row of the pattern."""
    rows = []
    for number, (price, quantity, maker) in enumerate(texts):
        fields = TRADE | {"t": 6100000001 + number, "p": price, "q": quantity, "m": maker}
        message = Decoder(MARKETS["binance"]).message(json.dumps({"stream": "x", "data": fields}).encode())
        if isinstance(message, Refused):  # a lone surrogate is no text
            continue
        assert isinstance(message, Trade)
        rows.append(message)
    lines = Trade.lines(rows)
    check = RowCheck("trade", "BTCUSDT")
    pattern = row_pattern("trade", "BTCUSDT")
    each = all(pattern.fullmatch(line.encode()) for line in lines)
    if rows:
        assert check.admits("".join(lines).encode(), len(rows)) is each


def test_a_row_inside_a_price_is_refused() -> None:
    """A price that holds a newline and the rest of another row does not smuggle that row in."""
    evil = decoded(TRADE | {"p": "1.5,2.5,,,1784000000104,True\ntrade,1784000000105,BTCUSDT,7,1.0"})
    good = line(decoded(TRADE))
    check = RowCheck("trade", "BTCUSDT")
    assert re.fullmatch(b"(?:%b){2}" % check.pattern.pattern, line(evil).encode()), "two good rows of one message"
    assert not check.admits(line(evil).encode(), 1)
    assert not check.admits((good + line(evil)).encode(), 2)
    assert not check.admits_row(line(evil).encode())


# --- EXTRA_COLUMNS -------------------------------------------------------------------------------------------------


def extra_row(fields: dict[str, Any], names: tuple[str, ...], exchange: str = "binance-futures") -> tuple[str, bool]:
    """Return the extra cells of a message and whether its row is admitted."""
    message = decoded(fields, exchange, names)
    plain = type(message).lines([message])
    (text,) = with_extra_columns(plain, [message], names, 1784000000200000001)
    assert text.startswith(plain[0][:-1] + ",")
    check = RowCheck(fields["e"], fields["s"], len(names))
    return text[len(plain[0]) : -1], check.admits(text.encode(), 1)


@pytest.mark.parametrize(
    ("fields", "names", "cells"),
    [
        (AGGREGATE, ("received_ns",), "1784000000200000001"),
        (AGGREGATE, ("nq",), "1.200"),
        (AGGREGATE, ("st", "nq", "received_ns"), "1,1.200,1784000000200000001"),
        (AGGREGATE | {"M": True}, ("M",), "True"),
        (AGGREGATE | {"M": False}, ("M",), "False"),
        (AGGREGATE, ("M", "nq"), ",1.200"),
        (AGGREGATE | {"nq": None}, ("nq",), ""),
        (AGGREGATE | {"nq": 1.25}, ("nq",), "1.25"),
        (AGGREGATE | {"nq": -3}, ("nq",), "-3"),
        (FUTURES_TRADE, ("X",), "MARKET"),
        (FUTURES_TRADE | {"X": "NA"}, ("X", "st"), "NA,1"),
        (AGGREGATE | {"ps": "币安"}, ("ps",), "币安"),
    ],
)
def test_extra_columns(fields: dict[str, Any], names: tuple[str, ...], cells: str) -> None:
    """An extra column holds the field as it was sent, and nothing where the exchange did not send it."""
    # json.dumps escapes what is not ASCII, so the Chinese name arrives as \\u escapes and is kept as such.
    escaped = json.dumps(cells)[1:-1]
    assert extra_row(fields, names) == (escaped, True)


@pytest.mark.parametrize(
    "value",
    ["a,b", 'a"b', "=HYPERLINK(1)", "@SUM(1)", "+1", {"a": 1}, [1, 2], {"a": ["=1"]}, '","', "tab\there"],
)
def test_evil_extra_field(value: object) -> None:
    """A field that would break the row or start a formula is refused or stays harmless text in its one cell."""
    cells, admitted = extra_row(AGGREGATE | {"nq": value}, ("nq",))
    if admitted:
        assert "," not in cells
        assert '"' not in cells
        assert cells[:1] not in {"=", "+", "@"}


def test_evil_field_of_a_futures_trade() -> None:
    """The kind of a futures trade is decoded as text, so what an escape stands for is checked too."""
    for text in ("NA,1", "NA\n", 'N"A', "=1"):
        assert not extra_row(FUTURES_TRADE | {"X": text}, ("X",))[1]


def test_fields_that_are_columns_already_change_nothing() -> None:
    """Asking for a field that the class has gives that very class."""
    assert with_fields(Trade, ["p", "q"]) is Trade
    assert field_text(decoded(TRADE), "p") == "64120.01000000"


# --- Times ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "day"),
    [
        (1784073599999, 20648),
        (1784073600000, 20649),
        (1784073599999999, 20648),
        (1784073600000000, 20649),
        (99_999_999_999_999, 1_157_407),
        (100_000_000_000_000, 1_157),
    ],
)
def test_day_of(time: int, day: int) -> None:
    """A time's UTC day is the same in milliseconds and in microseconds."""
    assert day_of(time) == day


@given(st.integers(10**12, 10**14 - 1))
def test_units_agree(ms: int) -> None:
    """The same moment in either unit is the same millisecond and the same day, wherever both units are told apart."""
    if ms * 1000 < 10**17:
        assert time_ms(ms) == time_ms(ms * 1000 + 999) == ms
        assert day_of(ms) == day_of(ms * 1000 + 999)


@pytest.mark.parametrize("field", ["E", "T"])
@pytest.mark.parametrize("value", [0, -1, 10**12 - 1, 10**17, 2**63, 1784000000104.5, "1784000000104", None, True])
def test_impossible_times_are_refused(field: str, value: object) -> None:
    """A time that is neither milliseconds nor microseconds of our age is a broken message, named by its field."""
    payload = json.dumps({"stream": "btcusdt@trade", "data": TRADE | {field: value}}).encode()
    answer = Decoder(MARKETS["binance"]).message(payload)
    assert isinstance(answer, Refused)
    assert f"$.data.{field}" in answer.reason
