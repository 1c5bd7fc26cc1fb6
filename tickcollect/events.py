"""The messages as the exchange sends them, and the CSV rows they become.

One class a stream. Its fields carry the exchange's own one-letter names, so a payload of the documentation can be held
beside the class; fields not named here are skipped without cost, because the exchanges add new ones at any time.

Rules:

1. Prices and quantities are text and stay the text that was sent; a message with a number in their place is refused.
2. IDs and times are integers: IDs below 2**63, times in milliseconds or, on a spot connection that asked for it,
   microseconds (`timeUnit`, Binance spot web-socket-streams.md, 2024-12-17). The two units are told apart by size.
3. A row has exactly the stream's columns, in their order, and only what `row_pattern` admits may be written.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from msgspec import Meta, Raw, Struct, defstruct
from msgspec.structs import fields as struct_fields

Id: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Time: TypeAlias = Annotated[int, Meta(ge=10**12, lt=10**17)]

MICROSECONDS_FROM = 10**14
"""A time at or above this is in microseconds: as milliseconds it would lie in the year 5138."""

MS_PER_DAY = 86_400_000

NUMBER = "(?:[0-9]++(?:[.][0-9]*+)?|[.][0-9]*+)"
"""Digits with at most one point among them; never empty."""


class Trade(Struct, gc=False, tag_field="e", tag="trade"):
    """One fill, spot `@trade`.

    `{"e":"trade","E":1784000000105,"s":"BTCUSDT","t":6100000001,"p":"64120.01000000","q":"0.00150000",
    "T":1784000000104,"m":true,"M":true}`; `b` and `a`, the order IDs, came until 2024-06-18.
    """

    E: Time | Literal[""]
    """When the exchange sent the message; empty in a row from its history, which has no such time."""
    s: str
    t: Id
    """Trade ID, rising by one per symbol."""
    p: str
    q: str
    T: Time
    """When the trade happened."""
    m: bool
    """The buyer was the maker: the taker sold."""
    b: Id | Literal[""] = ""
    a: Id | Literal[""] = ""

    STREAM: ClassVar = "trade"
    COLUMNS: ClassVar = ("e", "E", "s", "t", "p", "q", "b", "a", "T", "m")
    ID_COLUMN: ClassVar = "t"

    @staticmethod
    def ids(rows: Sequence[Any]) -> list[int]:
        """Return each row's sequence ID."""
        return [row.t for row in rows]

    @staticmethod
    def lines(rows: Sequence[Any]) -> list[str]:
        """Return each row as a CSV line."""
        return [f"trade,{d.E},{d.s},{d.t},{d.p},{d.q},{d.b},{d.a},{d.T},{'True' if d.m else 'False'}\n" for d in rows]


class FuturesTrade(Trade, gc=False, tag_field="e", tag="trade"):
    """One fill or one placeholder, futures `@trade` (undocumented; observed on `/public` in 2026).

    `X` is `MARKET` for a trade, `RPI` for one of the retail price improvement programme (seen in 2026-09; history lists
    both). What is no trade is in `NOT_TRADES`; it counts for the sequence like the others. Any other `X` is a trade
    until the exchange says otherwise: a row too many can be taken out later, one too few is gone.
    """

    X: str = "MARKET"


class PlainTrade(Struct, gc=False, tag_field="e", tag="trade", forbid_unknown_fields=True):
    """A spot `trade` with exactly the fields that it has in 2026, and so nearly every message of that stream.

    Looking for no others and writing empty order IDs without asking makes it an eighth cheaper than `Trade`, which
    takes whatever this refuses.
    """

    E: Time
    s: str
    t: Id
    p: str
    q: str
    T: Time
    m: bool
    M: bool
    """Documented as to be ignored."""

    STREAM: ClassVar = "trade"
    COLUMNS: ClassVar = Trade.COLUMNS
    ID_COLUMN: ClassVar = "t"

    @staticmethod
    def ids(rows: Sequence[Any]) -> list[int]:
        """Return each row's sequence ID."""
        return [row.t for row in rows]

    @staticmethod
    def lines(rows: Sequence[Any]) -> list[str]:
        """Return each row as a CSV line."""
        return [f"trade,{d.E},{d.s},{d.t},{d.p},{d.q},,,{d.T},{'True' if d.m else 'False'}\n" for d in rows]


class AggTrade(Struct, gc=False, tag_field="e", tag="aggTrade"):
    """Fills joined by the exchange, `@aggTrade` of every market.

    `{"e":"aggTrade","E":1784000000300,"a":3300000001,"s":"BTCUSDT","p":"64111.10","q":"1.250","nq":"1.200",
    "f":8100000001,"l":8100000006,"T":1784000000155,"m":false,"st":1}` (`nq`, `st` on futures).
    `f` and `l` are -1 in rows that the exchange marked as old duplicates (2022-04-12).
    """

    E: Time | Literal[""]
    s: str
    a: Id
    """Aggregate ID, rising by one per symbol."""
    p: str
    q: str
    f: Annotated[int, Meta(ge=-1, le=2**63 - 1)]
    """First trade ID joined here."""
    l: Annotated[int, Meta(ge=-1, le=2**63 - 1)]  # noqa: E741 - the exchange's own name
    T: Time
    m: bool

    STREAM: ClassVar = "aggTrade"
    COLUMNS: ClassVar = ("e", "E", "s", "a", "p", "q", "f", "l", "T", "m")
    ID_COLUMN: ClassVar = "a"

    @staticmethod
    def ids(rows: Sequence[Any]) -> list[int]:
        """Return each row's sequence ID."""
        return [row.a for row in rows]

    @staticmethod
    def lines(rows: Sequence[Any]) -> list[str]:
        """Return each row as a CSV line."""
        return [
            f"aggTrade,{d.E},{d.s},{d.a},{d.p},{d.q},{d.f},{d.l},{d.T},{'True' if d.m else 'False'}\n" for d in rows
        ]


Message: TypeAlias = Trade | PlainTrade | AggTrade
MessageType: TypeAlias = type[Trade] | type[PlainTrade] | type[AggTrade]

STREAMS: dict[str, MessageType] = {"trade": Trade, "aggTrade": AggTrade}
"""The class of each stream, by the exchange's name for it."""

MARKET = "MARKET"
KNOWN_TRADES = frozenset({MARKET, "RPI"})
NOT_TRADES = frozenset({"NA", "ADL", "INSURANCE_FUND"})
"""`X` of the futures `trade` for what takes an ID and is no public trade: a placeholder with price and quantity 0, and
two kinds of internal fills off the book. The exchange's history and archive leave out all three (observed 2026-09)."""
RECEIVED_NS = "received_ns"
"""Extra column: when the message's bytes were read from the socket, nanoseconds since 1970, this machine's clock."""


def with_fields(kind: MessageType, names: Sequence[str]) -> MessageType:
    """Return `kind` with further wire fields, each kept as the JSON text that was sent (`EXTRA_COLUMNS`)."""
    fresh = [(name, Raw, Raw()) for name in names if name not in kind.__struct_fields__]
    if not fresh:
        return kind
    tag = kind.__struct_config__.tag
    return cast("MessageType", defstruct(kind.__name__, fresh, bases=(kind,), gc=False, tag_field="e", tag=tag))


def from_history(kind: MessageType, symbol: str, renamed: Mapping[str, str]) -> MessageType:
    """Return `kind` as the exchange's history sends it: without event time and symbol, under other names (`renamed`).

    Its objects are rows like any other; their `E` is empty.
    """
    types = {field.name: field.type for field in struct_fields(kind)}
    fields: list[Any] = [("E", Literal[""], ""), ("s", str, symbol), *((name, types[name]) for name in renamed)]
    history = defstruct(kind.__name__, fields, bases=(kind,), kw_only=True, gc=False, tag=False, rename=dict(renamed))
    return cast("MessageType", history)


def field_text(row: Message, name: str) -> str:
    """Return one wire field as CSV text: a JSON string without its quotes, booleans as `True`/`False`, else as sent."""
    value = getattr(row, name)
    if not isinstance(value, Raw):
        return str(value)
    text = bytes(value).decode("utf-8", "backslashreplace")
    if text.startswith('"'):
        return text[1:-1]
    return {"true": "True", "false": "False", "null": ""}.get(text, text)


_ID = "[0-9]++"
_COLUMN_PATTERNS = {
    "E": "[0-9]*+",
    "t": _ID,
    "a": "[0-9]*+",
    "b": "[0-9]*+",
    "p": NUMBER,
    "q": NUMBER,
    "f": "-?+[0-9]++",
    "l": "-?+[0-9]++",
    "T": "[0-9]++",
    "m": "(?:True|False)",
}
"""What each column may hold. `E` is empty in rows that came from the exchange's history; `a` and `b` are order IDs in
`trade` (empty since 2024), while `a` as the aggregate ID is never empty (`row_pattern`)."""


@lru_cache(maxsize=8192)
def row_pattern(stream: str, symbol: str, extra_columns: int = 0) -> re.Pattern[bytes]:
    """Return what one whole row of a feed looks like, its newline included.

    `(?:pattern)*+` over a block of rows is the check before anything is written and after anything is recovered. An
    extra column holds any text without comma, quote, control character or a start that a spreadsheet would execute.
    """
    kind = STREAMS[stream]
    fixed = {"e": stream, "s": re.escape(symbol), kind.ID_COLUMN: _ID}
    columns = [fixed.get(name, _COLUMN_PATTERNS.get(name, "")) for name in kind.COLUMNS]
    columns += ['(?![=@+])[^,"\\x00-\\x1f\\x7f]*+'] * extra_columns
    # Atomic, because before 3.11.5 a possessive repetition of what can backtrack ends inside a row (CPython gh-106052).
    return re.compile(("(?>" + ",".join(columns) + "\n)").encode())


class RowCheck:
    """Checks blocks of formatted rows of one feed before they are written."""

    def __init__(self, stream: str, symbol: str, extra_columns: int = 0) -> None:
        self.pattern = row_pattern(stream, symbol, extra_columns)
        self._all = re.compile(b"(?:" + self.pattern.pattern + b")*+")
        self._quick = extra_columns == 0

    def admits(self, block: bytes, rows: int) -> bool:
        """Tell whether a block that `lines` made of `rows` messages is that many rows and each matches the pattern.

        The number matters: a text with a newline in it could make two good rows of one message.
        Rows of one feed differ in their digits and in the last column only. So if the first row matches and has a
        point in its price and in its quantity, and what is left of each row without digits is what is left of the
        first, then all match: IDs and times have digits because they were integers, price and quantity have one point
        each. That takes half the time of the pattern, which decides wherever this does not.
        """
        first = self.pattern.match(block)
        if first is None:
            return False
        shape = first[0].translate(None, _DIGITS).rpartition(b",")[0]
        if self._quick and shape.count(b".") == _NUMBERS:
            left = block.translate(None, _DIGITS)
            true, false = shape + b",True\n", shape + b",False\n"
            makers, takers = left.count(true), left.count(false)
            if makers * len(true) + takers * len(false) == len(left):
                return makers + takers == rows
        return self._all.fullmatch(block) is not None and block.count(b"\n") == rows

    def admits_row(self, line: bytes) -> bool:
        """Tell whether one row matches the pattern."""
        return self.pattern.fullmatch(line) is not None


_DIGITS = b"0123456789"
_NUMBERS = 2
"""Columns that hold a price or a quantity."""


def day_of(time: int) -> int:
    """Return the UTC day of a message's time as days since 1970-01-01, whichever unit the time has."""
    return (time // 1000 if time >= MICROSECONDS_FROM else time) // MS_PER_DAY


def time_ms(time: int) -> int:
    """Return a message's time in milliseconds, whichever unit it has."""
    return time // 1000 if time >= MICROSECONDS_FROM else time
