"""Listings: what each exchange says of its symbols and its request limit, asked until it answers, and kept on disk.

Rules:

1. Each exchange is asked on its own, again and again, for as long as the program runs; one that refuses for good (451,
   404) is asked seldom. What to do without an answer is decided in `starting`.
2. The list is read again every six hours: a symbol that stops trading, or is gone from the list, and a changed request
   limit are told of, and the limit is kept from then on.
3. A list that lacks many of the symbols collected here, all at once, is doubted and told of; nothing follows from it.
4. `exchanges.json` in the data directory keeps the last list and the end of a ban, by exchange and REST address. While
   a ban is kept, nothing is asked: going on asking makes bans longer (rest-api.md, "IP Limits", 2026-07-21). A ban
   lasts three days at most, whatever an answer or the file says. A file that cannot be read is told of and replaced.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
from loguru import logger
from msgspec.structs import replace

from tickcollect.budget import Purpose, is_plausible_limit
from tickcollect.exchanges.binance import ExchangeInfo, UnreadableAnswerError, exchange_info
from tickcollect.files import private
from tickcollect.refusals import LONGEST_BAN_S
from tickcollect.rest import BadRequestError, BlockedError, NotAdmittedError, RestError
from tickcollect.venues import Venue

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
REFUSED_PAUSE_S = 300.0
"""Between two questions to an exchange that does not serve this place, or not at this address."""
ADMITTED_WITHIN_S = 90.0
"""More than the minute that a used-up budget lasts; a ban is known at once."""
READ_AGAIN_S = 6 * 3600.0
GONE = "gone from its list"
FEW_GONE = 3
"""So many symbols may leave a list at once without doubt; above that, half of those collected."""

FILE_NAME = "exchanges.json"
FILE_BYTES_MAX = 8 * 2**20
SYMBOLS_KEPT = 20_000
"""No exchange lists near this; of a longer list only the symbols collected are kept."""
ADDRESSES_KEPT = 20
SHORTEST_BAN_KEPT_S = 5.0
KEPT_WITHIN_S = 1.0
KEPT_AGAIN_S = 60.0


class Tell(Protocol):
    """Says that something happened; from any thread."""

    def __call__(self, event: str, subject: str, /, **facts: object) -> None:
        """`subject` is the feed, exchange or file concerned."""


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of one REST address of one exchange."""

    exchange: str
    rest_url: str
    symbols: dict[str, list[str]] = {}
    """The list's symbols by their state."""
    listed_at: datetime | None = None
    """When the exchange gave that list."""
    banned_until: datetime | None = None
    ban_seen_at: datetime | None = None
    """When that end was told, by this machine's clock."""

    @property
    def statuses(self) -> dict[str, str]:
        """Each symbol's state."""
        return {symbol: state for state, symbols in self.symbols.items() for symbol in symbols}

    def ban_left_s(self, now: datetime) -> float:
        """Return how long the ban goes on, three days at most, also where the clock has been set back meanwhile."""
        if self.banned_until is None:
            return 0.0
        since = max(now, self.ban_seen_at or now)
        return min(max(0.0, (self.banned_until - since).total_seconds()), LONGEST_BAN_S)


def _address(venue: Venue) -> tuple[str, str]:
    return venue.market.name, venue.rest.base_url


def _by_state(venue: Venue, info: ExchangeInfo) -> dict[str, list[str]]:
    """Return the symbols of a list by their state: of a list beyond all measure those that are collected."""
    own = {symbol for _, symbol in venue.feeds}
    found: dict[str, list[str]] = {}
    for symbol, state in info.statuses.items():
        if len(info.statuses) <= SYMBOLS_KEPT or symbol in own:
            found.setdefault(state, []).append(symbol)
    return found


# --- One exchange's list ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Listing:
    """One exchange's list at one address: asked for until there is an answer, then read again."""

    venue: Venue
    tell: Tell
    news: asyncio.Event
    """Set whenever something here has changed."""
    read_again_s: float = READ_AGAIN_S
    kept: Kept | None = None
    """What an earlier run knew."""
    info: ExchangeInfo | None = None
    """The last answer; None before the first."""
    refused: str = ""
    """Why the exchange does not serve us, where asking again will hardly help; empty otherwise."""
    failed: bool = False
    """It was asked and has not answered since."""
    doubted: bool = False
    """The last answer lacks many symbols that are collected here."""

    def __post_init__(self) -> None:
        self._limit = self.venue.market.weight_per_minute

    @property
    def statuses(self) -> Mapping[str, str]:
        """The symbols' states as told last; as kept while the exchange does not answer; empty where none is known."""
        if self.info is not None:
            return self.info.statuses
        banned = self.venue.budget.closed_for_s(time.monotonic()) > 0
        return self.kept.statuses if self.kept is not None and (self.failed or banned) else {}

    async def run(self) -> None:
        """Ask until there is an answer, then again every `read_again_s`, for ever."""
        await self._until_answered()
        while True:
            await asyncio.sleep(self.read_again_s)
            try:
                self._take(await self._ask(Purpose.LOOK))
            except (RestError, UnreadableAnswerError) as error:
                logger.debug("{}: its list of symbols cannot be read again: {}", self.venue.market.name, error)

    async def _until_answered(self) -> None:
        """Ask with backoff; each failure is told, and the success after failures, as of a connection."""
        name = self.venue.market.name
        told = partial(self.tell, link="list of symbols", url=self.venue.rest.base_url, streams=len(self.venue.feeds))
        pause_s, is_told = FIRST_PAUSE_S, False
        while self.info is None:
            try:
                self._take(await self._ask(Purpose.REPAIR))
            except NotAdmittedError as error:  # nothing was asked: a ban that is told of already, or a used-up minute
                await self._wait(error.retry_after_s or pause_s)
            except (RestError, UnreadableAnswerError) as error:
                self.refused = str(error) if isinstance(error, BlockedError | BadRequestError) else ""
                least_s = REFUSED_PAUSE_S if self.refused else 0.0
                wait_s = min(max(pause_s, least_s, getattr(error, "retry_after_s", None) or 0.0), LONGEST_BAN_S)
                told("cannot_connect", name, reason=str(error).rstrip("."), remedy="", retry_in_s=round(wait_s))
                is_told = True
                await self._wait(wait_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        if is_told:
            told("connected", name)
        self.failed, self.refused = False, ""

    async def _wait(self, seconds: float) -> None:
        """Wait before the next question; what was kept counts meanwhile."""
        self.failed = True
        self.news.set()
        await asyncio.sleep(seconds)

    async def _ask(self, purpose: Purpose) -> ExchangeInfo:
        market = self.venue.market
        body = await self.venue.rest.get(
            f"{market.rest_prefix}/exchangeInfo",
            weight=market.exchange_info_weight,
            retry_delays_s=(),
            purpose=purpose,
            admitted_within_s=ADMITTED_WITHIN_S,
        )
        return await asyncio.to_thread(exchange_info, market, body)

    def _take(self, info: ExchangeInfo) -> None:
        """Tell what is new in a list, and keep it; one that lacks many of our symbols is doubted."""
        self._take_limit(info.weight_per_minute)
        if self.info is not None:
            self._tell_changes(self.info.statuses, info.statuses)
        if not self.doubted:
            self.info = info
        self.news.set()

    def _take_limit(self, stated: int) -> None:
        """Tell of a request limit that is new, and let the budget have it; it keeps what can be meant."""
        market, budget = self.venue.market, self.venue.budget
        budget.learn(market.name, stated)
        if stated != self._limit and is_plausible_limit(stated, market.weight_per_minute):
            self.tell("limits_changed", market.name, was=self._limit, now=stated)
        elif stated != self._limit:
            self.tell("limit_doubted", market.name, stated=stated, kept=budget.limit)
        self._limit = stated

    def _tell_changes(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        feeds = self.venue.feeds
        listed = [symbol for _, symbol in feeds if symbol in before]
        gone = [symbol for symbol in listed if symbol not in now]
        doubted = are_too_many(len(gone), len(listed))
        if doubted and not self.doubted:
            self.tell("list_doubted", self.venue.market.name, count=len(gone), of=len(listed))
        self.doubted = doubted
        for stream, symbol in feeds if not doubted else ():
            was, state = before.get(symbol, GONE), now.get(symbol, GONE)
            if was != state:
                self.tell("state_changed", f"{self.venue.market.name}/{stream}/{symbol}", was=was, state=state)


def are_too_many(gone: int, feeds: int) -> bool:
    """Tell whether so many of our feeds are missing from a list that the list is doubted (rule 3)."""
    return gone > max(FEW_GONE, feeds / 2)


# --- The file --------------------------------------------------------------------------------------------------------


class ListingsFile:
    """`exchanges.json`: what is kept of each exchange. Its methods wait for the disk: not for the event loop."""

    def __init__(self, data_dir: Path, tell: Tell) -> None:
        self._path = data_dir / FILE_NAME
        self._tell = tell
        self.failing = ""
        """Why it could not be written the last time; empty when it was."""
        self._damage_told = False

    def read(self) -> dict[tuple[str, str], Kept]:
        """Return what is kept, by exchange and REST address; nothing where the file is damaged, which is told."""
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            return self._damaged(error.strerror or str(error))
        if len(data) > FILE_BYTES_MAX:
            return self._damaged(f"it has more than {FILE_BYTES_MAX} bytes")
        try:
            found = msgspec.json.decode(data, type=list[Kept])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._damaged(str(error))
        return {(kept.exchange, kept.rest_url): kept for kept in found if _is_zoned(kept)}

    def _damaged(self, detail: str) -> dict[tuple[str, str], Kept]:
        if not self._damage_told:
            self._tell("listings_damaged", "exchanges", file=FILE_NAME, detail=detail)
        self._damage_told = True
        return {}

    def write(self, news: Iterable[Kept]) -> None:
        """Put `news` into the file, beside what another collector has put there; that it fails is in `failing`."""
        try:
            kept = self.read()
            for one in news:
                kept.pop((one.exchange, one.rest_url), None)
                kept[one.exchange, one.rest_url] = one
            self._replace(list(kept.values())[-ADDRESSES_KEPT:])
        except OSError as error:
            if not self.failing:
                logger.warning(
                    "cannot write {}: {}. The next start does not know the lists.", self._path, error.strerror
                )
            self.failing = error.strerror or str(error)
        else:
            self.failing = ""

    def _replace(self, kept: Sequence[Kept]) -> None:
        temporary = self._path.with_name(f"{FILE_NAME}.{os.getpid()}.unconfirmed")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb", opener=private) as file:
                file.write(msgspec.json.encode(kept) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def _is_zoned(kept: Kept) -> bool:
    """Tell whether all times of an entry, which somebody may have edited, can be compared with the clock."""
    times = (kept.listed_at, kept.banned_until, kept.ban_seen_at)
    return all(time is None or time.tzinfo is not None for time in times)


@dataclass
class Keeper:
    """Keeps the lists and the ends of bans on disk, off the event loop, whenever they change."""

    listings: Sequence[Listing]
    file: ListingsFile
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _known: dict[tuple[str, str], Kept] = field(default_factory=dict)
    _lists: dict[Listing, ExchangeInfo] = field(default_factory=dict)

    def take_up(self, kept: Mapping[tuple[str, str], Kept]) -> None:
        """Give each exchange what was kept of it; of a ban that goes on it is told, and nothing is asked until then."""
        for listing in self.listings:
            venue = listing.venue
            address = _address(venue)
            listing.kept = kept.get(address)
            if listing.kept is None:
                continue
            self._known[address] = listing.kept
            left_s = listing.kept.ban_left_s(self.now())
            if left_s > venue.budget.closed_for_s(time.monotonic()) + SHORTEST_BAN_KEPT_S:
                venue.budget.close(left_s, time.monotonic())
                until = self.now() + timedelta(seconds=left_s)
                listing.tell("ban_remembered", venue.market.name, until=f"{until:%Y-%m-%dT%H:%M:%SZ}")

    async def run(self, write: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Write what has changed, for ever; `write` runs a call off the event loop."""
        while True:
            lists = {listing: listing.info for listing in self.listings if listing.info is not None}
            if news := self._news():
                await write(partial(self.file.write, list(news.values())))
                if not self.file.failing:
                    self._known |= news
                    self._lists |= lists
            await asyncio.sleep(KEPT_AGAIN_S if self.file.failing else KEPT_WITHIN_S)

    def _news(self) -> dict[tuple[str, str], Kept]:
        """Return what is to be written: new lists, and bans whose end is new."""
        found: dict[tuple[str, str], Kept] = {}
        now = self.now()
        for listing in self.listings:
            venue, info = listing.venue, listing.info
            address = _address(venue)
            known = self._known.get(address) or Kept(exchange=address[0], rest_url=address[1])
            kept = known
            if info is not None and not listing.doubted and info is not self._lists.get(listing):
                kept = replace(kept, symbols=_by_state(venue, info), listed_at=now)
            banned_s = min(venue.budget.closed_for_s(time.monotonic()), LONGEST_BAN_S)
            until = now + timedelta(seconds=banned_s)
            told = abs((until - kept.banned_until).total_seconds()) if kept.banned_until is not None else math.inf
            if banned_s > SHORTEST_BAN_KEPT_S and told > SHORTEST_BAN_KEPT_S:
                kept = replace(kept, banned_until=until, ban_seen_at=now)
            if kept is not known:
                found[address] = kept
        return found
