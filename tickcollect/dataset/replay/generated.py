"""A market made from a seed: any row of any symbol follows from (seed, symbol, ID), so nothing is kept.

How it is built:

* A symbol's time is cut into epochs of equal length. An epoch holds a number of trades that depends only on its place
  in a short cycle of quiet and busy epochs; so the first ID of every epoch is arithmetic, in both directions.
* What happens within an epoch comes from a random generator seeded with (seed, symbol, epoch): taker orders that come
  in clumps, each filling at one price or sweeping several, each price one aggregate trade of one or many trades.
* Trades and aggregates are the same events: on spot, `f` and `l` of the aggregates cover every trade ID once. On
  futures some trade IDs are placeholders (`X` = `NA`) that no aggregate covers, as on the real stream.
* IDs count from the start of 2020, whatever moment playing starts at: history reaches back to row 1.

The figures are those of recorded minutes of BTCUSDT (August 2024 and July 2026) in orders of magnitude, not a fit:
half of all 100 ms empty, hundreds of trades in the busiest, up to hundreds with one and the same time.
"""

import heapq
import math
import random
import string
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, islice, product
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
_UNUSUAL = ("NA",) * 18 + ("INSURANCE_FUND", "ADL")  # what an ID without a public trade is
_TRADE_DELAY_MS = 3  # from trade to message, at most
_AGGREGATE_DELAY_MS = {"binance": 3, "binance-futures": 171, "binance-delivery": 171}

_KNOWN = {"BTC": 64_000.0, "ETH": 2_700.0, "SOL": 150.0, "XRP": 0.58, "DOGE": 0.12, "BNB": 570.0}
_CENTS_FROM = 10_000.0  # the price from which two decimals are enough


class _Epoch(NamedTuple):
    trades: list[tuple[int, Trade]]  # (time of the message in ms, row)
    aggregates: list[tuple[int, Aggregate]]


class _Scale(NamedTuple):
    """How a number of smallest units is written: `decimals` of meaning, then zeros, as the exchange pads on spot."""

    decimals: int
    padding: str = ""

    def text(self, units: int) -> str:
        """`units` as decimal text."""
        if self.decimals == 0:
            return str(units)
        whole, part = divmod(units, 10**self.decimals)
        return f"{whole}.{part:0{self.decimals}d}{self.padding}"


@dataclass(frozen=True)
class _Book:
    """One symbol: how fast it trades, at which price, and the numbers of its rows."""

    listing: Listing
    base_ticks: int
    price: "_Scale"
    quantity: "_Scale"
    epoch_ms: int
    trades: tuple[int, ...]  # how many IDs each epoch of a cycle has
    aggregates: tuple[int, ...]

    def first_id(self, counts: tuple[int, ...], epoch: int) -> int:
        """The ID of the first row of `epoch`."""
        cycles, place = divmod(epoch, len(counts))
        return 1 + cycles * sum(counts) + sum(counts[:place])

    def epoch_of_id(self, counts: tuple[int, ...], row_id: int) -> int:
        """The epoch that holds the row `row_id`."""
        cycles, rest = divmod(max(row_id, 1) - 1, sum(counts))
        return cycles * len(counts) + bisect_right(list(accumulate(counts)), rest)

    def epoch_at(self, time_ms: int) -> int:
        """The epoch that `time_ms` falls into."""
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
    _passed_ms: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._venue = VENUES[self.exchange]
        slowing = _QUIETEST_PER_MINUTE / _BUSIEST_PER_MINUTE
        books = [
            _book(self.exchange, base, price, _BUSIEST_PER_MINUTE * self.activity * slowing ** (rank / self.symbols))
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
        return [f"{name.lower()}@{kind}" for name in self._books for kind in ("trade", "aggTrade")]

    @property
    def total(self) -> int | None:
        """How many messages it holds: not known before they are made."""
        return None

    def messages(self, streams: Collection[str]) -> Iterator[Message]:
        """The messages of `streams` from the start on, by market time."""
        wanted = set(streams)
        playing = [
            self._stream(book, kind)
            for name, book in self._books.items()
            for kind in ("trade", "aggTrade")
            if f"{name.lower()}@{kind}" in wanted
        ]
        return playing[0] if len(playing) == 1 else heapq.merge(*playing, key=itemgetter(0))

    def passed(self, played: Message) -> None:
        """Note that the market has come to this message."""
        self._passed_ms[played.stream] = played.at_ns // 1_000_000

    # History

    def trades(self, symbol: str, wanted: Wanted) -> list[Trade]:
        """The public trades up to the market's present."""
        rows = self._rows(symbol, "trade", wanted)
        return [row for row in rows if isinstance(row, Trade)]

    def aggregates(self, symbol: str, wanted: Wanted) -> list[Aggregate]:
        """The aggregates up to the market's present."""
        rows = self._rows(symbol, "aggTrade", wanted)
        return [row for row in rows if isinstance(row, Aggregate)]

    def newest_ms(self, symbol: str) -> int:
        """The market's present for `symbol`, in ms."""
        return max(self._present_ms(symbol, "trade"), self._present_ms(symbol, "aggTrade"))

    def _present_ms(self, symbol: str, kind: str) -> int:
        return self._passed_ms.get(f"{symbol.lower()}@{kind}", self.start_ms - 1)

    def _rows(self, symbol: str, kind: str, wanted: Wanted) -> list[Trade | Aggregate]:
        book = self._books[symbol]
        counts = book.trades if kind == "trade" else book.aggregates
        present_ms = self._present_ms(symbol, kind)
        newest_first = wanted.from_id is None and wanted.start_ms is None
        if wanted.from_id is not None:
            epoch = book.epoch_of_id(counts, wanted.from_id)
        elif wanted.start_ms is not None:
            epoch = book.epoch_at(wanted.start_ms)
        else:
            epoch = book.epoch_at(present_ms if wanted.end_ms is None else min(wanted.end_ms, present_ms))
        found: list[Trade | Aggregate] = []
        last_epoch = book.epoch_at(present_ms)
        while 0 <= epoch <= last_epoch and len(found) < wanted.limit:
            made = self._epoch(symbol, epoch)
            rows = made.trades if kind == "trade" else made.aggregates
            matching = [row for at_ms, row in rows if at_ms <= present_ms and _matches(row, wanted)]
            found = matching + found if newest_first else found + matching
            epoch += -1 if newest_first else 1
            if matching == [] and _is_past(rows, wanted):
                break
        return found[-wanted.limit :] if newest_first else found[: wanted.limit]

    # Playing

    def _stream(self, book: _Book, kind: str) -> Iterator[Message]:
        symbol = book.listing.symbol
        stream = f"{symbol.lower()}@{kind}"
        end_ms = math.inf if self.duration_s is None else self.start_ms + self.duration_s * 1000
        epoch = book.epoch_at(self.start_ms)
        while True:
            made = self._epoch(symbol, epoch)
            rows = made.trades if kind == "trade" else made.aggregates
            for at_ms, row in rows:
                if at_ms < self.start_ms:
                    continue
                if at_ms >= end_ms:
                    return
                yield message(at_ms * 1_000_000, stream, self._data(symbol, row, at_ms))
            epoch += 1
            if _ORIGIN_MS + epoch * book.epoch_ms >= end_ms:
                return

    def _data(self, symbol: str, row: Trade | Aggregate, at_ms: int) -> bytes:
        if isinstance(row, Trade):
            return trade_data(self._venue, symbol, row, at_ms)
        return aggregate_data(self._venue, symbol, row, at_ms)

    # Making

    def _make_epoch(self, symbol: str, epoch: int) -> _Epoch:
        # Seeding with text gives the same numbers on every version of Python.
        rng = random.Random(f"{self.seed}/{symbol}/{epoch}")  # noqa: S311 (a market, not a secret)
        return _Making(self._venue, self._books[symbol], self.seed, epoch, rng).run()


def _matches(row: Trade | Aggregate, wanted: Wanted) -> bool:
    if isinstance(row, Trade) and row.kind != "MARKET":
        return False
    return (
        (wanted.from_id is None or row.id >= wanted.from_id)
        and (wanted.start_ms is None or row.time_ms >= wanted.start_ms)
        and (wanted.end_ms is None or row.time_ms <= wanted.end_ms)
    )


def _is_past(rows: Sequence[tuple[int, Trade | Aggregate]], wanted: Wanted) -> bool:
    """Whether an epoch lies behind the end that was asked for, so that looking further finds nothing."""
    if wanted.end_ms is None or not rows or (wanted.from_id is None and wanted.start_ms is None):
        return False
    return rows[0][1].time_ms > wanted.end_ms


# One epoch


@dataclass
class _Making:
    """The making of one epoch, from its order times to its rows."""

    venue: Venue
    book: _Book
    seed: int
    epoch: int
    rng: random.Random

    def run(self) -> _Epoch:
        """Make the epoch's rows."""
        place = self.epoch % len(_CYCLE)
        ids, aggregates = self.book.trades[place], self.book.aggregates[place]
        placeholders = 0 if self.venue.is_spot else int(ids * _PLACEHOLDERS_PER_TRADE + self.rng.random())
        placeholders = min(placeholders, ids - aggregates)
        sizes = self._sizes(aggregates, ids - aggregates - placeholders)
        orders = self._orders(sizes)
        return self._rows(orders, self._times(len(orders)), placeholders)

    def _sizes(self, aggregates: int, spare: int) -> list[int]:
        """How many trades each aggregate has: one each, and the spare ones by a heavy-tailed share."""
        weights = [self.rng.paretovariate(_SWEEP) - 1 for _ in range(aggregates)]
        total = sum(weights) or 1.0
        extra = [int(weight / total * spare) for weight in weights]
        for place in range(spare - sum(extra)):
            extra[place % aggregates] += 1
        return [1 + more for more in extra]

    def _orders(self, sizes: list[int]) -> list[list[int]]:
        orders: list[list[int]] = []
        for size in sizes:
            if orders and self.rng.random() > 1 / _AGGREGATES_PER_ORDER:
                orders[-1].append(size)
            else:
                orders.append([size])
        return orders

    def _times(self, orders: int) -> list[int]:
        """When the orders come, in ms from the epoch's beginning: most in clumps, the rest anywhere."""
        length, rng = self.book.epoch_ms, self.rng
        clumps = [rng.random() * length for _ in range(1 + orders // _ORDERS_PER_CLUMP)]
        times = [
            rng.choice(clumps) + rng.expovariate(1 / _CLUMP_MS) if rng.random() < _CLUMPED else rng.random() * length
            for _ in range(orders)
        ]
        return sorted(int(time) % length for time in times)

    def _rows(self, orders: list[list[int]], times: list[int], placeholders: int) -> _Epoch:
        rng, made = self.rng, _Epoch([], [])
        trade_id = self.book.first_id(self.book.trades, self.epoch)
        row_id = self.book.first_id(self.book.aggregates, self.epoch)
        unusual = sorted(rng.randrange(len(orders)) for _ in range(placeholders))
        begin_ms = _ORIGIN_MS + self.epoch * self.book.epoch_ms
        end_ms = begin_ms + self.book.epoch_ms - 1
        prices = self._prices(len(orders))
        trade_sent = aggregate_sent = begin_ms
        for order, (offset, sizes, price) in enumerate(zip(times, orders, prices, strict=True)):
            time_ms = begin_ms + offset
            trade_sent = max(trade_sent, min(time_ms + rng.randrange(_TRADE_DELAY_MS), end_ms))
            delay = rng.randrange(_AGGREGATE_DELAY_MS[self.venue.exchange])
            aggregate_sent = max(aggregate_sent, min(time_ms + delay, end_ms))
            while unusual and unusual[0] == order:
                unusual.pop(0)
                made.trades.append((trade_sent, self._unusual(trade_id, time_ms, price)))
                trade_id += 1
            maker = rng.random() < 0.5  # noqa: PLR2004 (a fair coin)
            for size in sizes:
                row = self._fill(made, (row_id, trade_id, time_ms, price), size, maker, trade_sent)
                made.aggregates.append((aggregate_sent, row))
                row_id += 1
                trade_id += size
                price += -1 if maker else 1  # noqa: PLW2901 (the order goes on at the next price)
        return made

    def _fill(
        self,
        made: _Epoch,
        start: tuple[int, int, int, int],
        size: int,
        maker: bool,
        sent_ms: int,  # noqa: FBT001 (a field of the row)
    ) -> Aggregate:
        """Append one aggregate's trades; the aggregate that covers them."""
        row_id, trade_id, time_ms, ticks = start
        price = self.book.price.text(ticks)
        total = 0
        for each in range(trade_id, trade_id + size):
            quantity = 1 + int(self.rng.paretovariate(0.8) * 10) % 100_000
            total += quantity
            text = self.book.quantity.text(quantity)
            made.trades.append((sent_ms, Trade(each, price, text, time_ms, maker)))
        text = self.book.quantity.text(total)
        normal = text if self.venue.exchange == "binance-futures" else ""
        return Aggregate(row_id, price, text, trade_id, trade_id + size - 1, time_ms, maker, normal)

    def _unusual(self, trade_id: int, time_ms: int, ticks: int) -> Trade:
        kind = self.rng.choice(_UNUSUAL)
        if kind == "NA":
            return Trade(trade_id, "0", "0", time_ms, buyer_is_maker=False, kind=kind)
        price = self.book.price.text(ticks)
        return Trade(trade_id, price, self.book.quantity.text(1), time_ms, buyer_is_maker=True, kind=kind)

    def _prices(self, orders: int) -> list[int]:
        """The price of each order in ticks: from this epoch's level to the next one's, with noise between."""
        begin, end = self._level(self.epoch), self._level(self.epoch + 1)
        width = max(2.0, self.book.base_ticks * 2e-5)
        noise, prices = 0.0, []
        for place in range(orders):
            noise = noise * 0.97 + self.rng.gauss(0, width / 4)
            part = place / orders
            prices.append(max(100, round(begin + (end - begin) * part + noise * 4 * part * (1 - part))))
        return prices

    def _level(self, epoch: int) -> int:
        minutes = epoch * self.book.epoch_ms / 60_000
        phase = self.seed % 100 + self.book.base_ticks % 7
        wave = 0.02 * math.sin(minutes / 700 + phase) + 0.004 * math.sin(minutes / 45 + 2 * phase)
        return round(self.book.base_ticks * (1 + wave))


# Symbols


def _names(count: int) -> list[tuple[str, float]]:
    """`count` base assets and the price around which each trades: known ones first, then made-up ones."""
    letters = string.ascii_uppercase
    made_up = (("Q" + "".join(name), 10.0 ** (1 - place % 4)) for place, name in enumerate(product(letters, repeat=3)))
    return list(islice(chain(_KNOWN.items(), made_up), count))


def _book(exchange: str, base: str, price: float, per_minute: float) -> _Book:
    form = _FORMS[exchange]
    decimals = max(1, 5 - math.ceil(math.log10(price)) if price < _CENTS_FROM else 2)
    scale = _Scale(decimals, "0" * max(0, form.printed_decimals - decimals))
    mean = max(_FEWEST_PER_EPOCH, min(_MOST_PER_EPOCH, round(per_minute)))
    trades = tuple(max(2, round(mean * share)) for share in _CYCLE)
    return _Book(
        listing=Listing(form.symbol.format(base=base), base, form.quote, scale.text(1), form.quantity.text(1)),
        base_ticks=round(price * 10**decimals),
        price=scale,
        quantity=form.quantity,
        epoch_ms=max(1, round(mean / per_minute * 60_000)),
        trades=trades,
        aggregates=tuple(max(1, math.ceil(count / _TRADES_PER_AGGREGATE)) for count in trades),
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
