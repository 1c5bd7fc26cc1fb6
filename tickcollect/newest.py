"""Asks an exchange for the newest IDs of many feeds, in as few requests as it allows.

Rules:

1. Where one call names the newest trade of many symbols (`Tickers`), it is asked first, and believed only where it
   names a row that we have and that was our newest when we asked, or came since. Whatever else it says, or leaves out,
   is asked again feed by feed.
2. A single feed is asked for its newest row, not for a number: the answer has to be rows of the right form.
3. Nothing waits for long: each request has a time for its admission and one for its answer. A failure that concerns
   the address (a ban, no network, no room in the budget) is the answer for all feeds that were not asked yet.
4. What comes back is what the exchange says. Whether it can be believed is the caller's to judge (`coverage`, `watch`).
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tickcollect.budget import Purpose
from tickcollect.events import AggTrade
from tickcollect.exchanges.binance import (
    UnreadableAnswerError,
    history_rows,
    history_type,
    newest_trade_ids,
    ticker_params,
)
from tickcollect.rest import (
    BadRequestError,
    BannedError,
    BlockedError,
    CertificateError,
    ForbiddenError,
    NotAdmittedError,
    RestError,
    UnreachableError,
)
from tickcollect.venues import Venue
from tickcollect.writer import Feed

TOGETHER_FROM = 2
"""So many feeds are asked about in one request."""
AT_ONCE = 4
REFUSED_AGAIN_S = 3600.0
"""After the exchange has refused to answer for many symbols at once."""
_FOR_ALL = (
    BannedError,
    BlockedError,
    CertificateError,
    ForbiddenError,
    NotAdmittedError,
    UnreachableError,
)
"""Failures that the next feed would meet too."""


@dataclass(frozen=True, slots=True)
class Named:
    """The ID of a feed's newest row, as the exchange says; None: it has no row."""

    id: int | None


@dataclass(frozen=True, slots=True)
class NotNamed:
    """The exchange could not be asked, or its answer was none, and why."""

    reason: str


Answer = Named | NotNamed
Note = Callable[[Feed, Answer], None]


@dataclass(frozen=True, slots=True)
class Manner:
    """How urgently to ask, and how long to wait for it."""

    purpose: Purpose
    admitted_within_s: float = 5.0
    answered_within_s: float = 5.0


@dataclass(eq=False)
class Newest:
    """Asks one exchange; `now_s` is a monotonic clock."""

    venue: Venue
    now_s: Callable[[], float]
    _together_from_s: float = field(default=float("-inf"), init=False)
    """When many may be asked for at once (again)."""

    async def ask(self, feeds: Sequence[Feed], manner: Manner, note: Note) -> None:
        """Ask for the newest IDs of `feeds`, the first ones first; `note` gets one answer for each, when it comes."""
        left = list(feeds)
        if len(left) >= TOGETHER_FROM and self.now_s() >= self._together_from_s:
            left = await self._ask_together(left, manner, note)
        waiting = deque(left)
        workers = [self._ask_each(waiting, manner, note) for _ in range(min(AT_ONCE, len(waiting)))]
        await asyncio.gather(*workers)

    async def _ask_together(self, feeds: list[Feed], manner: Manner, note: Note) -> list[Feed]:
        """Note the answer for those feeds whose newest row is the exchange's, and return the others (rule 1)."""
        by_symbol: defaultdict[str, list[Feed]] = defaultdict(list)
        for feed in feeds:
            by_symbol[feed.path.symbol].append(feed)
        symbols = list(by_symbol)
        size = self.venue.market.tickers.symbols or len(symbols)
        places = asyncio.Semaphore(AT_ONCE)

        async def ask_some(some: Sequence[str]) -> list[Feed]:
            asked = {feed: _newest_trade(feed) for symbol in some for feed in by_symbol[symbol]}
            async with places:
                newest = await self._statistics(some, manner)
            left = []
            for feed, before in asked.items():
                id_ = _confirmed(feed, before, newest.get(feed.path.symbol))
                if id_ is None:
                    left.append(feed)
                else:
                    note(feed, Named(id_))
            return left

        found = await asyncio.gather(*(ask_some(symbols[at : at + size]) for at in range(0, len(symbols), size)))
        left = {feed for some in found for feed in some}
        return [feed for feed in feeds if feed in left]

    async def _statistics(self, symbols: Sequence[str], manner: Manner) -> dict[str, int]:
        """Return the newest trade of each symbol, or nothing where the exchange does not say: each is asked then."""
        market, tickers = self.venue.market, self.venue.market.tickers
        if self.now_s() < self._together_from_s:
            return {}
        try:
            params = ticker_params(tickers, symbols)
            return newest_trade_ids(await self._get(market.rest_prefix + tickers.path, params, tickers.weight, manner))
        except (BadRequestError, UnreadableAnswerError):
            self._together_from_s = self.now_s() + REFUSED_AGAIN_S
        except RestError:
            pass  # each feed's own question tells why
        return {}

    async def _ask_each(self, waiting: deque[Feed], manner: Manner, note: Note) -> None:
        while waiting:
            feed = waiting.popleft()
            try:
                note(feed, Named(await self._ask_one(feed, manner)))
            except (RestError, UnreadableAnswerError) as error:
                answer = NotNamed(str(error))
                note(feed, answer)
                if isinstance(error, _FOR_ALL):
                    _note_all(_taken(waiting), answer, note)

    async def _ask_one(self, feed: Feed, manner: Manner) -> int | None:
        """Return the newest ID of one feed. Raises `RestError`, and `UnreadableAnswerError` for another form."""
        market = self.venue.market
        source = market.latest[feed.path.stream]
        params: dict[str, str | int] = {"symbol": feed.path.symbol, "limit": 1}
        body = await self._get(market.rest_prefix + source.path, params, source.weight, manner)
        kind = history_type(market, feed.path.stream, feed.path.symbol)
        return max(kind.ids(history_rows(kind, body)), default=None)

    async def _get(self, path: str, params: dict[str, str | int], weight: int, manner: Manner) -> bytes:
        return await self.venue.rest.get(
            path,
            params,
            weight=weight,
            timeout_s=manner.answered_within_s,
            retry_delays_s=(),
            purpose=manner.purpose,
            admitted_within_s=manner.admitted_within_s,
        )


def _confirmed(feed: Feed, before: int | None, trade_id: int | None) -> int | None:
    """Return our row that the statistics name (rule 1), `before` being our newest trade when they were asked for."""
    now = _newest_trade(feed)
    if before is None or now is None or trade_id is None or not before <= trade_id <= now:
        return None
    if feed.path.stream == "trade":
        return trade_id
    return feed.newest_id if trade_id == now else None


def _newest_trade(feed: Feed) -> int | None:
    """Return the ID of the newest single trade in a feed's newest row, as the statistics name it; None if unknown."""
    if feed.path.stream == "trade":
        return feed.newest_public_id
    last = feed.last
    return last.l if isinstance(last, AggTrade) and last.a == feed.newest_id and isinstance(last.l, int) else None


def _taken(waiting: deque[Feed]) -> list[Feed]:
    left = list(waiting)
    waiting.clear()
    return left


def _note_all(feeds: Iterable[Feed], answer: Answer, note: Note) -> None:
    for feed in feeds:
        note(feed, answer)
