"""The market of the kit, and an exchange that does not even speak HTTP properly.

`Tape` is a market for `tickcollect.dataset.replay`. Rules:

1. A row follows from its symbol and its number (0, 1, 2, ...) alone; its price text occurs once in the whole market.
   Whoever finds an ID together with its price has found that very row.
2. `numbering` makes the number an ID. It may jump, begin anew, or pass 2^53.
3. `issued` holds the rows that have passed, sent or not, in order; history shows those of the newest numbering, except
   those in `unpublished`.
4. `kinds` makes a number the `X` of the futures `trade`: placeholders and internal fills take an ID, and are neither
   trades nor in history.
"""

import asyncio
import heapq
import json
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from operator import attrgetter
from ssl import SSLContext
from typing import Any

from tickcollect.dataset.replay.endpoints import Wanted
from tickcollect.dataset.replay.venue import (
    VENUES,
    Aggregate,
    Listing,
    Message,
    Trade,
    aggregate_data,
    message,
    trade_data,
)

FIRST_ID = 4_000_000
SYMBOLS = ("BTCUSDT", "ETHUSDT")
NO_TRADES = frozenset({"NA", "ADL", "INSURANCE_FUND"})
"""What takes an ID of the futures `trade` and is no trade (observed on the wire, 2026-09)."""


def counting(number: int) -> int:
    """Count on from the first ID, as the exchange does."""
    return FIRST_ID + number


def trades_only(_: int) -> str:
    """Let every row be an ordinary trade."""
    return "MARKET"


@dataclass(frozen=True, slots=True)
class Issued:
    """One row as the exchange issued it."""

    symbol: str
    number: int
    trade: Trade

    @property
    def fields(self) -> tuple[bytes, bytes]:
        """What proves this row in any text: its ID and its price."""
        return str(self.trade.id).encode(), self.trade.price.encode()

    @property
    def is_trade(self) -> bool:
        """Whether it is a trade, which has to be kept; placeholders and internal fills are none."""
        return self.trade.kind not in NO_TRADES

    @property
    def aggregate(self) -> Aggregate:
        """The same row on the stream of aggregates: every trade is one of its own here."""
        trade = self.trade
        return Aggregate(trade.id, trade.price, trade.quantity, trade.id, trade.id, trade.time_ms, trade.buyer_is_maker)

    @property
    def event_ms(self) -> int:
        """When the exchange sent it."""
        return self.trade.time_ms + 1


@dataclass
class Tape:
    """A market of `symbols` with `rows_per_s` each, from `start_ms` on, without end."""

    start_ms: int
    rows_per_s: float = 50.0
    symbols: Sequence[str] = SYMBOLS[:1]
    numbering: Callable[[int], int] = counting
    unpublished: set[int] = field(default_factory=set)
    """IDs that history does not show."""
    exchange: str = "binance"
    kinds: Callable[[int], str] = trades_only
    same_ms: tuple[int, int] = (0, 0)
    """The numbers from the first of these up to the second share one millisecond."""
    issued: dict[str, list[Issued]] = field(init=False)
    issued_s: dict[str, list[float]] = field(init=False)
    """When each of them was, by the monotonic clock."""
    _begun: dict[str, int] = field(default_factory=dict)
    """By symbol, the number with which its numbering last began anew."""

    def __post_init__(self) -> None:
        self.issued = {symbol: [] for symbol in self.symbols}
        self.issued_s = {symbol: [] for symbol in self.symbols}

    def row(self, symbol: str, number: int) -> Issued:
        """Return a row by its number."""
        place = self.symbols.index(symbol)
        price = f"{64_000 + place}.{number:08d}"
        quantity = f"0.{number % 997 + 1:05d}000"
        counted = self.same_ms[0] if self.same_ms[0] <= number < self.same_ms[1] else number
        time_ms = self.start_ms + int(counted * 1000 / self.rows_per_s)
        kind = self.kinds(number)
        if kind == "NA":  # a placeholder
            price = quantity = "0"
        return Issued(symbol, number, Trade(self.numbering(number), price, quantity, time_ms, number % 3 == 0, kind))

    # The market as `serve` wants it

    @property
    def listings(self) -> Sequence[Listing]:
        """The symbols."""
        return [Listing(symbol, symbol[:-4], "USDT", "0.00000001", "0.00001000") for symbol in self.symbols]

    @property
    def streams(self) -> Collection[str]:
        """Every stream."""
        return [f"{symbol.lower()}@{kind}" for symbol in self.symbols for kind in ("trade", "aggTrade")]

    @property
    def starts_ns(self) -> int | None:
        """The market time at which playing begins."""
        return self.start_ms * 1_000_000

    @property
    def total(self) -> int | None:
        """Return None: it has no end."""
        return None

    def messages(self, streams: Collection[str]) -> Iterator[Message]:
        """Yield the messages by time."""
        playing = [self._stream(stream) for stream in self.streams if stream in streams]
        return heapq.merge(*playing, key=attrgetter("at_ns"))

    def _stream(self, stream: str) -> Iterator[Message]:
        name, _, kind = stream.partition("@")
        symbol, venue = name.upper(), VENUES[self.exchange]
        for number in count():
            row = self.row(symbol, number)
            at_ns = int((self.start_ms + number * 1000 / self.rows_per_s) * 1_000_000)
            if kind == "trade":
                yield message(at_ns, stream, trade_data(venue, symbol, row.trade, row.event_ms))
            else:
                yield message(at_ns, stream, aggregate_data(venue, symbol, row.aggregate, row.event_ms))

    def passed(self, played: Message) -> None:
        """Note that a message has been played."""
        name, _, kind = played.stream.partition("@")
        symbol = name.upper()
        if kind == "trade":
            row = self.row(symbol, len(self.issued[symbol]))
            if row.trade.id < self.newest_id(symbol):
                self._begun[symbol] = row.number
            self.issued[symbol].append(row)
            self.issued_s[symbol].append(time.monotonic())

    def trades(self, symbol: str, wanted: Wanted) -> list[Trade]:
        """Return history: by ID, or the newest."""
        rows = self._newest_numbering(symbol)
        if wanted.from_id is not None:
            rows = rows[bisect_left(rows, wanted.from_id, key=lambda row: row.trade.id) :]
        shown = (row.trade for row in (rows if wanted.from_id is not None else reversed(rows)) if self._is_public(row))
        found = list(islice(shown, wanted.limit))
        return found if wanted.from_id is not None else found[::-1]

    def _is_public(self, row: Issued) -> bool:
        return row.is_trade and row.trade.id not in self.unpublished

    def _newest_numbering(self, symbol: str) -> list[Issued]:
        """Return the rows since the numbering last began anew: an ID of before names another row now."""
        return self.issued[symbol][self._begun.get(symbol, 0) :]

    def aggregates(self, symbol: str, wanted: Wanted) -> list[Aggregate]:
        """Return history: by ID, or the newest."""
        shown = {trade.id for trade in self.trades(symbol, wanted)}
        return [row.aggregate for row in self.issued[symbol] if row.trade.id in shown]

    def newest_ms(self, symbol: str) -> int:
        """Return the time of the newest row."""
        return self.issued[symbol][-1].trade.time_ms if self.issued[symbol] else 0

    def newest_id(self, symbol: str) -> int:
        """Return the ID of the newest row, or -1."""
        return self.issued[symbol][-1].trade.id if self.issued[symbol] else -1


def data_of(payload: bytes) -> dict[str, Any]:
    """Return the data of a message, combined or raw."""
    whole: dict[str, Any] = json.loads(payload)
    data: dict[str, Any] = whole.get("data", whole)
    return data


def altered(payload: bytes, fields: Mapping[str, object]) -> bytes:
    """Return a message, combined or raw, with other values in its data; None takes a field out."""
    whole = json.loads(payload)
    data = whole.get("data", whole)
    for name, value in fields.items():
        if value is None:
            data.pop(name, None)
        else:
            data[name] = value
    return json.dumps(whole, separators=(",", ":")).encode()


@dataclass
class Reply:
    """A server that reads a request and answers every one with the same bytes, or, where these are None, never."""

    answer: bytes | None
    attempts_s: list[float] = field(default_factory=list)
    """When somebody came, by the event loop's clock."""
    port: int = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection."""
        self.attempts_s.append(asyncio.get_running_loop().time())
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.answer is None:
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def replying(answer: bytes | None, tls: SSLContext | None = None) -> AsyncIterator[Reply]:
    """Run a `Reply` on a free port of loopback."""
    reply = Reply(answer)
    server = await asyncio.start_server(reply.take, "127.0.0.1", 0, ssl=tls)
    reply.port = server.sockets[0].getsockname()[1]
    try:
        yield reply
    finally:
        server.close()
