"""A market made from a seed: any row of any symbol follows from (seed, symbol, ID), so nothing is kept.

How it is built:

* A symbol's time is cut into epochs of equal length. An epoch holds a number of trades that depends only on its place
  in a short cycle of quiet and busy epochs; so the first ID of every epoch is arithmetic, in both directions.
* What happens within an epoch comes from a random generator seeded with (seed, symbol, epoch): taker orders that come
  in clumps, each filling at one price or sweeping several, each price one aggregate trade of one or many trades.
* Trades and aggregates are the same events: on spot, `f` and `l` of the aggregates cover every trade ID once. On
  USD-M some trade IDs are placeholders (`X` = `NA`) that no aggregate covers, as on the real stream. COIN-M has none,
  as in the one day of its archive that was looked at.
* IDs count from the start of 2020, whatever moment playing starts at: history reaches back to row 1.

The figures are those of recorded minutes of BTCUSDT (August 2024 and July 2026) in orders of magnitude, not a fit:
half of all 100 ms empty, hundreds of trades in the busiest, up to hundreds with one and the same time.
"""

import heapq
import math
import random
import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, count, islice, product
from operator import itemgetter
from typing import NamedTuple

from tickcollect.dataset.replay.endpoints import Wanted
from tickcollect.dataset.replay.venue import (
    VENUES,
    Aggregate,
    Listing,
    Message,
    Trade,
    Venue,
    aggregate_data,
    message,
    trade_data,
)

_ORIGIN_MS = 1_577_836_800_000  # 2020-01-01: row 1 of every symbol
_BUSIEST_PER_MINUTE = 1836  # trades of the busiest symbol at activity 1: 30.6 a second
_QUIETEST_PER_MINUTE = 1
_MOST_PER_EPOCH = 500  # so that an epoch is made in milliseconds, however busy the symbol
_FEWEST_PER_EPOCH = 3
_CYCLE = (1.0, 0.4, 0.7, 2.6, 0.5, 0.3, 1.2, 0.8, 0.3, 3.1, 0.6, 0.5)  # how busy one epoch after another is
_TRADES_PER_AGGREGATE = 1.9
_AGGREGATES_PER_ORDER = 1.4
_SWEEP = 1.1  # exponent of the sizes of aggregates: most of one trade, few of hundreds
_ORDERS_PER_CLUMP = 9
_CLUMPED = 0.75  # the share of orders that fall into clumps
_CLUMP_MS = 35.0  # mean distance of an order from its clump's beginning
_PLACEHOLDERS_PER_TRADE = 1 / 280  # 19,725 of 5.4 million in one day of USD-M BTCUSDT
_WITH_PLACEHOLDERS = frozenset({"binance-futures"})
_UNUSUAL = ("NA",) * 18 + ("INSURANCE_FUND", "ADL")  # what an ID without a public trade is
_TRADE_DELAY_MS = 3  # from trade to message, at most
_AGGREGATE_DELAY_MS = {"binance": 3, "binance-futures": 171, "binance-delivery": 171}

_QUANTITIES = 0.8  # exponent of the trades' quantities: mostly a few smallest units, seldom thousands
_MOST_UNITS = 100_000
_NOISE = 2e-5  # how far a price strays from one order to the next, as a share
_LOWEST_TICKS = 100  # no price falls lower
_NS_PER_MS = 1_000_000
_KINDS = ("trade", "aggTrade")

_KNOWN = {"BTC": 64_000.0, "ETH": 2_700.0, "SOL": 150.0, "XRP": 0.58, "DOGE": 0.12, "BNB": 570.0}
_CENTS_FROM = 10_000.0  # the price from which two decimals are enough


class _Scale(NamedTuple):
    """How a number of smallest units is written: `decimals` of meaning, then zeros, as the exchange pads on spot."""

    decimals: int
    padding: str = ""


@lru_cache(maxsize=100_000)
def _text(units: int, scale: _Scale) -> str:
    if scale.decimals == 0:
        return str(units)
    whole, part = divmod(units, 10**scale.decimals)
    return f"{whole}.{part:0{scale.decimals}d}{scale.padding}"


class _Rows(NamedTuple):
    """The rows of one epoch with the ns at which each is sent, rising, no two alike."""

    trades: list[tuple[int, Trade]]
    aggregates: list[tuple[int, Aggregate]]


@dataclass(frozen=True)
class _Book:
    """One symbol: how fast it trades, at which price, and how many rows each epoch of a cycle has."""

    listing: Listing
    base_ticks: int
    price: _Scale
    quantity: _Scale
    epoch_ms: int
    trades: tuple[int, ...]
    aggregates: tuple[int, ...]

    def first_id(self, counts: tuple[int, ...], epoch: int) -> int:
        """Return the ID of the first row of `epoch`."""
        cycles, place = divmod(epoch, len(counts))
        return 1 + cycles * sum(counts) + sum(counts[:place])

    def epoch_of_id(self, counts: tuple[int, ...], row_id: int) -> int:
        """Return the epoch that holds the row `row_id`."""
        cycles, rest = divmod(max(row_id, 1) - 1, sum(counts))
        return cycles * len(counts) + bisect_right(list(accumulate(counts)), rest)

    def epoch_at(self, time_ms: int) -> int:
        """Return the epoch that `time_ms` falls into."""
        return max(0, (time_ms - _ORIGIN_MS) // self.epoch_ms)


@dataclass
class GeneratedMarket:
    """A market of `symbols` symbols, from very busy to nearly silent.

    `activity` multiplies every rate: 1 is an ordinary minute (about 31 trades a second in the busiest symbol), 70 a
    very busy one. `start_ms` is the market time at which playing begins, `duration_s` how long it goes on (market
    time; None: without end).
    """

    exchange: str
    start_ms: int
    seed: int = 0
    symbols: int = 5
    activity: float = 1.0
    duration_s: float | None = None
    _books: dict[str, _Book] = field(init=False, repr=False)
    _present_ns: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._venue = VENUES[self.exchange]
        # Each symbol is slower than the one before by the same factor.
        slowing = (_QUIETEST_PER_MINUTE / _BUSIEST_PER_MINUTE) ** (1 / max(1, self.symbols - 1))
        books = [
            _book(self.exchange, base, price, _BUSIEST_PER_MINUTE * self.activity * slowing**rank)
            for rank, (base, price) in enumerate(_names(self.symbols))
        ]
        self._books = {book.listing.symbol: book for book in books}
        self._epoch = lru_cache(maxsize=3 * self.symbols + 32)(self._make_epoch)

    @property
    def listings(self) -> Sequence[Listing]:
        """The symbols, busiest first."""
        return [book.listing for book in self._books.values()]

    @property
    def streams(self) -> Collection[str]:
        """Every stream it can play."""
        return [_stream_name(symbol, kind) for symbol in self._books for kind in _KINDS]

    @property
    def starts_ns(self) -> int | None:
        """The market time at which playing begins."""
        return self.start_ms * _NS_PER_MS

    @property
    def total(self) -> int | None:
        """How many messages it holds: not known before they are made."""
        return None

    def messages(self, streams: Collection[str]) -> Iterator[Message]:
        """Yield the messages of `streams` from the start on, by market time."""
        wanted = set(streams)
        playing = [
            self._stream(symbol, kind)
            for symbol in self._books
            for kind in _KINDS
            if _stream_name(symbol, kind) in wanted
        ]
        return playing[0] if len(playing) == 1 else heapq.merge(*playing, key=itemgetter(0))

    def passed(self, played: Message) -> None:
        """Note that the market has come to this message."""
        self._present_ns[played.stream] = played.at_ns

    # History

    def trades(self, symbol: str, wanted: Wanted) -> list[Trade]:
        """Return the public trades up to the market's present."""
        rows = (row for row in self._history(symbol, "trade", wanted) if isinstance(row, Trade))
        return list(rows)

    def aggregates(self, symbol: str, wanted: Wanted) -> list[Aggregate]:
        """Return the aggregates up to the market's present."""
        rows = (row for row in self._history(symbol, "aggTrade", wanted) if isinstance(row, Aggregate))
        return list(rows)

    def newest_ms(self, symbol: str) -> int:
        """Return the market's present for `symbol`, in ms."""
        return max(self._present(symbol, kind) for kind in _KINDS) // _NS_PER_MS

    def _present(self, symbol: str, kind: str) -> int:
        """Return the ns up to which the rows of a stream are history."""
        return self._present_ns.get(_stream_name(symbol, kind), self.start_ms * _NS_PER_MS - 1)

    def _history(self, symbol: str, kind: str, wanted: Wanted) -> list[Trade | Aggregate]:
        book = self._books[symbol]
        present_ms = self._present(symbol, kind) // _NS_PER_MS
        if wanted.from_id is None and wanted.start_ms is None:
            end_ms = present_ms if wanted.end_ms is None else min(wanted.end_ms, present_ms)
            return self._newest(symbol, kind, wanted, book.epoch_at(end_ms))
        if wanted.from_id is None:
            begin = book.epoch_at(wanted.start_ms or 0)
        else:
            begin = book.epoch_of_id(book.trades if kind == "trade" else book.aggregates, wanted.from_id)
        return self._oldest(symbol, kind, wanted, range(begin, book.epoch_at(present_ms) + 1))

    def _newest(self, symbol: str, kind: str, wanted: Wanted, last_epoch: int) -> list[Trade | Aggregate]:
        found: list[Trade | Aggregate] = []
        for epoch in range(last_epoch, -1, -1):
            found = [row for row in self._public(symbol, kind, epoch) if _matches(row, wanted)] + found
            if len(found) >= wanted.limit:
                break
        return found[-wanted.limit :]

    def _oldest(self, symbol: str, kind: str, wanted: Wanted, epochs: range) -> list[Trade | Aggregate]:
        found: list[Trade | Aggregate] = []
        for epoch in epochs:
            rows = self._public(symbol, kind, epoch)
            found += [row for row in rows if _matches(row, wanted)]
            is_past = wanted.end_ms is not None and bool(rows) and rows[-1].time_ms > wanted.end_ms
            if is_past or len(found) >= wanted.limit:
                break
        return found[: wanted.limit]

    def _public(self, symbol: str, kind: str, epoch: int) -> list[Trade | Aggregate]:
        """Return what REST may show of an epoch: rows already played, without placeholders and their like."""
        present_ns, made = self._present(symbol, kind), self._epoch(symbol, epoch)
        if kind == "trade":
            return [row for at_ns, row in made.trades if at_ns <= present_ns and row.kind == "MARKET"]
        return [row for at_ns, row in made.aggregates if at_ns <= present_ns]

    # Playing

    def _stream(self, symbol: str, kind: str) -> Iterator[Message]:
        book, stream, venue = self._books[symbol], _stream_name(symbol, kind), self._venue
        start_ns = self.start_ms * _NS_PER_MS
        end_ns = math.inf if self.duration_s is None else start_ns + self.duration_s * 1e9
        for epoch in count(book.epoch_at(self.start_ms)):
            made = self._epoch(symbol, epoch)
            sent: Iterable[tuple[int, bytes]]
            if kind == "trade":
                sent = ((at, trade_data(venue, symbol, row, at // _NS_PER_MS)) for at, row in made.trades)
            else:
                sent = ((at, aggregate_data(venue, symbol, row, at // _NS_PER_MS)) for at, row in made.aggregates)
            for at_ns, data in sent:
                if at_ns >= end_ns:
                    return
                if at_ns >= start_ns:
                    yield message(at_ns, stream, data)
            if (_ORIGIN_MS + (epoch + 1) * book.epoch_ms) * _NS_PER_MS >= end_ns:
                return

    def _make_epoch(self, symbol: str, epoch: int) -> _Rows:
        # Seeding with text gives the same numbers on every version of Python.
        rng = random.Random(f"{self.seed}/{symbol}/{epoch}")  # noqa: S311 (a market, not a secret)
        return _Epoch(self._venue, self._books[symbol], self.seed, epoch, rng).make()


def _stream_name(symbol: str, kind: str) -> str:
    return f"{symbol.lower()}@{kind}"


def _matches(row: Trade | Aggregate, wanted: Wanted) -> bool:
    return (
        (wanted.from_id is None or row.id >= wanted.from_id)
        and (wanted.start_ms is None or row.time_ms >= wanted.start_ms)
        and (wanted.end_ms is None or row.time_ms <= wanted.end_ms)
    )


# One epoch


class _Order(NamedTuple):
    """A taker's order: when, at which price it begins, and the number of trades at each price it takes."""

    time_ms: int
    ticks: int
    buyer_is_maker: bool
    sizes: list[int]


@dataclass
class _Epoch:
    """The making of one epoch."""

    venue: Venue
    book: _Book
    seed: int
    number: int
    rng: random.Random

    def __post_init__(self) -> None:
        self._rows = _Rows([], [])
        self._begin_ms = _ORIGIN_MS + self.number * self.book.epoch_ms
        self._trade_id = self.book.first_id(self.book.trades, self.number)
        self._aggregate_id = self.book.first_id(self.book.aggregates, self.number)
        self._trade_ns = self._aggregate_ns = self._begin_ms * _NS_PER_MS

    def make(self) -> _Rows:
        """Make the epoch's rows."""
        place = self.number % len(_CYCLE)
        ids, aggregates = self.book.trades[place], self.book.aggregates[place]
        placeholders = 0
        if self.venue.exchange in _WITH_PLACEHOLDERS:
            placeholders = min(int(ids * _PLACEHOLDERS_PER_TRADE + self.rng.random()), ids - aggregates)
        orders = self._orders(self._sizes(aggregates, ids - aggregates - placeholders))
        before = Counter(self.rng.randrange(len(orders)) for _ in range(placeholders))
        for number, order in enumerate(orders):
            self._advance(order)
            for _ in range(before[number]):
                self._add_placeholder(order)
            self._fill(order)
        return self._rows

    def _sizes(self, aggregates: int, spare: int) -> list[int]:
        """Draw how many trades each aggregate has: one each, and the spare ones by a heavy-tailed share."""
        weights = [self.rng.paretovariate(_SWEEP) - 1 for _ in range(aggregates)]
        total = sum(weights) or 1.0
        extra = [int(weight / total * spare) for weight in weights]
        for place in range(spare - sum(extra)):
            extra[place % aggregates] += 1
        return [1 + more for more in extra]

    def _orders(self, sizes: list[int]) -> list[_Order]:
        """Group aggregates to orders, and give each its time, price and side."""
        grouped: list[list[int]] = []
        for size in sizes:
            if grouped and self.rng.random() > 1 / _AGGREGATES_PER_ORDER:
                grouped[-1].append(size)
            else:
                grouped.append([size])
        times, prices = self._times(len(grouped)), self._prices(len(grouped))
        sides = [self.rng.getrandbits(1) == 1 for _ in grouped]
        return [_Order(*facts) for facts in zip(times, prices, sides, grouped, strict=True)]

    def _times(self, orders: int) -> list[int]:
        """Draw when the orders come: most in clumps, the rest anywhere."""
        length, rng = self.book.epoch_ms, self.rng
        clumps = [rng.random() * length for _ in range(1 + orders // _ORDERS_PER_CLUMP)]
        times = [
            rng.choice(clumps) + rng.expovariate(1 / _CLUMP_MS) if rng.random() < _CLUMPED else rng.random() * length
            for _ in range(orders)
        ]
        return sorted(self._begin_ms + int(time) % length for time in times)

    def _prices(self, orders: int) -> list[int]:
        """Draw the price of each order in ticks: from this epoch's level to the next one's, with noise between."""
        begin, end = self._level(self.number), self._level(self.number + 1)
        width = max(2.0, self.book.base_ticks * _NOISE)
        noise, prices = 0.0, []
        for place in range(orders):
            noise = noise * 0.97 + self.rng.gauss(0, width)
            part = place / orders
            prices.append(max(_LOWEST_TICKS, round(begin + (end - begin) * part + noise * part * (1 - part))))
        return prices

    def _level(self, epoch: int) -> int:
        """Return the price in ticks at the beginning of an epoch: two slow waves around the symbol's own."""
        minutes = epoch * self.book.epoch_ms / 60_000
        phase = self.seed % 100 + self.book.base_ticks % 7
        wave = 0.02 * math.sin(minutes / 700 + phase) + 0.004 * math.sin(minutes / 45 + 2 * phase)
        return round(self.book.base_ticks * (1 + wave))

    def _advance(self, order: _Order) -> None:
        """Move to when the order's messages are sent, which stays within the epoch."""
        trade_ms = order.time_ms + self.rng.randrange(_TRADE_DELAY_MS)
        aggregate_ms = order.time_ms + self.rng.randrange(_AGGREGATE_DELAY_MS[self.venue.exchange])
        end_ms = self._begin_ms + self.book.epoch_ms - 1
        self._trade_ns = max(self._trade_ns, min(trade_ms, end_ms) * _NS_PER_MS)
        self._aggregate_ns = max(self._aggregate_ns, min(aggregate_ms, end_ms) * _NS_PER_MS)

    def _fill(self, order: _Order) -> None:
        """Add the order's trades, and the aggregates that cover them."""
        trades, scale, pareto = self._rows.trades, self.book.quantity, self.rng.paretovariate
        time_ms, ticks, maker, sizes = order
        for size in sizes:
            price, total, first_id, at_ns = _text(ticks, self.book.price), 0, self._trade_id, self._trade_ns
            for offset in range(size):
                quantity = 1 + int(pareto(_QUANTITIES) * 10) % _MOST_UNITS
                total += quantity
                row = Trade(first_id + offset, price, _text(quantity, scale), time_ms, maker)
                trades.append((at_ns + offset, row))
            self._trade_id, self._trade_ns = first_id + size, at_ns + size
            self._add_aggregate(first_id, price, _text(total, scale), order)
            ticks += -1 if maker else 1

    def _add_aggregate(self, first_id: int, price: str, quantity: str, order: _Order) -> None:
        normal = quantity if self.venue.exchange == "binance-futures" else ""
        ids = (first_id, self._trade_id - 1)
        row = Aggregate(self._aggregate_id, price, quantity, *ids, order.time_ms, order.buyer_is_maker, normal)
        self._rows.aggregates.append((self._aggregate_ns, row))
        self._aggregate_id += 1
        self._aggregate_ns += 1

    def _add_placeholder(self, order: _Order) -> None:
        """Add a trade ID that stands for no public trade."""
        kind = self.rng.choice(_UNUSUAL)
        price, quantity = _text(order.ticks, self.book.price), _text(1, self.book.quantity)
        if kind == "NA":
            price = quantity = "0"
        row = Trade(self._trade_id, price, quantity, order.time_ms, order.buyer_is_maker, kind)
        self._rows.trades.append((self._trade_ns, row))
        self._trade_id += 1
        self._trade_ns += 1


# Symbols


def _names(number: int) -> list[tuple[str, float]]:
    """Return `number` base assets and the price around which each trades: known ones first, then made-up ones."""
    letters = string.ascii_uppercase
    made_up = (("Q" + "".join(name), 10.0 ** (1 - place % 4)) for place, name in enumerate(product(letters, repeat=3)))
    return list(islice(chain(_KNOWN.items(), made_up), number))


def _book(exchange: str, base: str, price: float, per_minute: float) -> _Book:
    form = _FORMS[exchange]
    decimals = max(1, 5 - math.ceil(math.log10(price)) if price < _CENTS_FROM else 2)
    scale = _Scale(decimals, "0" * max(0, form.printed_decimals - decimals))
    mean = max(_FEWEST_PER_EPOCH, min(_MOST_PER_EPOCH, round(per_minute)))
    trades = tuple(max(1, round(mean * share)) for share in _CYCLE)
    return _Book(
        listing=Listing(form.symbol.format(base=base), base, form.quote, _text(1, scale), _text(1, form.quantity)),
        base_ticks=round(price * 10**decimals),
        price=scale,
        quantity=form.quantity,
        epoch_ms=max(1, round(mean / per_minute * 60_000)),
        trades=trades,
        aggregates=tuple(max(1, math.ceil(each / _TRADES_PER_AGGREGATE)) for each in trades),
    )


class _Form(NamedTuple):
    """How a market names its symbols and writes its numbers."""

    symbol: str
    quote: str
    quantity: _Scale
    printed_decimals: int


_FORMS: Mapping[str, _Form] = {
    "binance": _Form("{base}USDT", "USDT", _Scale(5, "000"), 8),
    "binance-futures": _Form("{base}USDT", "USDT", _Scale(3), 0),
    "binance-delivery": _Form("{base}USD_PERP", "USD", _Scale(0), 0),
}
