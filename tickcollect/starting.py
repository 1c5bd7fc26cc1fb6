"""Starting: which feeds may begin now, and which wait for what.

    Listing ──news──▶ Starting ──begin──▶ Collector: lock, recover, connect
                         ▲                    │
                         └── tried again ◀── could not be opened

Rules:

1. Each feed begins as soon as it may, whatever becomes of the others: at once if it has files here, because its symbol
   was checked when they were made; otherwise when the exchange's list has its symbol, or the list kept from an earlier
   run has it while the exchange does not answer.
2. At a first start (no feed has files here) no file is made before an exchange has answered; a symbol that an exchange
   does not list, or that nobody serves us, is then a mistake that ends the program, all of them told at once. Once
   something is collected, such a feed is left out and told of; it begins when a later list has it.
3. A feed that has files here and is gone from the list stays subscribed: that is acknowledged, costs nothing, and a
   list that lies does no harm.
4. A feed whose files cannot be opened (in use, a file in place of its directory, a damaged disk) is left out, told of
   and tried again; if that is so of all of them, the disk is waited for, and what waiting cannot mend ends the start.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tickcollect.listings import Listing, Tell, are_too_many
from tickcollect.segments import DiskError, InUseError
from tickcollect.venues import StartError, UnknownSymbolError, Venue, unknown_symbols

GRACE_S = 5.0
"""At a first start, how long the other exchanges may take once one has answered."""
FIRST_AGAIN_S = 1.0
LONGEST_AGAIN_S = 15.0
LOOK_AGAIN_S = 60.0
"""A ban that begins lets the kept list count, and nobody tells of it."""

FOR_LIST = "waiting for the exchange's list of symbols"
NOT_LISTED = "not in the exchange's list of symbols"
FOR_DISK = "waiting for the disk"

HEALS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN,
        errno.ETIMEDOUT, errno.EBUSY, errno.ENOMEM, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EAGAIN, errno.EINTR,
        errno.EUCLEAN, errno.ENOMEDIUM, errno.EREMOTEIO,
    }
)  # fmt: skip
"""What a disk that is full, read-only, failing or not there yet answers: worth waiting for."""


def heals(error: Exception) -> bool:
    """Tell whether waiting may mend it."""
    return isinstance(error, DiskError | OSError) and error.errno in HEALS


@dataclass(eq=False, slots=True)
class Waiting:
    """A feed that is not collected yet."""

    listing: Listing
    stream: str
    symbol: str
    has_files: bool = False
    note: str = FOR_LIST
    """What it waits for."""
    told: str = ""
    """Why it could not be opened, as it was told."""
    pause_s: float = FIRST_AGAIN_S
    again_at_s: float = float("-inf")

    @property
    def exchange(self) -> str:
        """The exchange's name."""
        return self.listing.venue.market.name

    @property
    def name(self) -> str:
        """The feed as people read it."""
        return f"{self.exchange}/{self.stream}/{self.symbol}"


Failures = Mapping[Waiting, Exception]


@dataclass(eq=False)
class Starting:
    """Begins the feeds of all exchanges, each as soon as it may."""

    venues: Sequence[Venue]
    tell: Tell
    look: Callable[[Sequence[Waiting]], Awaitable[None]]
    """Notes which of these feeds have files here."""
    begin: Callable[[Listing, Sequence[Waiting]], Awaitable[Failures]]
    """Opens and connects feeds of one exchange; returns those that could not be opened."""
    started: Callable[[int], None]
    """Told how many feeds the first round has begun."""

    def __post_init__(self) -> None:
        self.news = asyncio.Event()
        """Set whenever a listing has changed."""
        self.listings = [Listing(venue, self.tell, self.news) for venue in self.venues]
        self.waiting = [Waiting(one, *feed) for one in self.listings for feed in one.venue.feeds]
        self.disk_trouble = ""
        """Why no feed's files can be opened; empty while some can."""
        self.begun = 0
        """Feeds that were begun."""
        self._feeds = list(self.waiting)
        self._compared: set[Listing] = set()
        self._is_started = False

    def note_disk(self, trouble: str) -> None:
        """Note why the disk cannot be used at present, or "" that it can: each is told once."""
        if trouble and not self.disk_trouble:
            self.tell("disk_trouble", "disk", detail=trouble)
        if self.disk_trouble and not trouble:
            self.tell("disk_again", "disk", detail="it can be used; collecting begins")
        self.disk_trouble = trouble

    # --- A first start -----------------------------------------------------------------------------------------

    async def check_first(self) -> None:
        """At a first start, wait for the first answers and refuse what is a mistake (rule 2)."""
        if any(feed.has_files for feed in self.waiting):
            return
        while not any(one.info for one in self.listings):
            if all(one.refused for one in self.listings):
                raise StartError("\n".join(f"{one.venue.market.name}: {one.refused}" for one in self.listings))
            await self._news()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while not all(one.info or one.refused for one in self.listings):
                    await self._news()
        lines = [line for one in self.listings if one.info for line in unknown_symbols(one.venue, one.info).values()]
        if lines:
            raise UnknownSymbolError("\n".join(lines))

    async def _news(self) -> None:
        self.news.clear()
        await self.news.wait()

    # --- Beginning ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Begin each feed when it may, for ever. Raises what waiting cannot mend if no feed at all can be opened."""
        loop = asyncio.get_running_loop()
        while True:
            self.news.clear()
            await self.look([feed for feed in self.waiting if not feed.has_files])
            for listing in self.listings:
                if listing.info is not None and listing not in self._compared:
                    self._compare_first(listing)
            await self._begin_ready(loop.time())
            due_s = [feed.again_at_s for feed in self.waiting if feed.again_at_s > float("-inf")]
            until_s = min([*due_s, loop.time() + LOOK_AGAIN_S]) if self.waiting else None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until_s):
                    await self.news.wait()

    async def _begin_ready(self, now_s: float) -> None:
        """Begin what may begin now, exchange by exchange."""
        ready = [
            feed
            for feed in self.waiting
            if feed.again_at_s <= now_s and (feed.has_files or feed.symbol in feed.listing.statuses)
        ]
        failed: dict[Waiting, Exception] = {}
        for listing in self.listings:
            group = [feed for feed in ready if feed.listing is listing]
            if group:
                failures = await self.begin(listing, group)
                failed |= failures
                self._note_begun(listing, [feed for feed in group if feed not in failures])
        if failed:
            self._note_failed(failed, now_s)
        if self.begun:
            self.note_disk("")
        if self.begun and not self._is_started:
            self._is_started = True
            self.started(self.begun)

    def _note_begun(self, listing: Listing, begun: Sequence[Waiting]) -> None:
        self.waiting = [feed for feed in self.waiting if feed not in begun]
        for feed in begun:
            if feed.told:
                self.tell("feed_taken_up", feed.name)
        if listing in self._compared:
            self._tell_states(begun)
        self.begun += len(begun)
        if self._is_started and begun:
            self.tell("feeds_added", listing.venue.market.name, feeds=len(begun))

    # --- What cannot be opened ---------------------------------------------------------------------------------

    def _note_failed(self, failed: Failures, now_s: float) -> None:
        """Tell what is left out, and plan when it is tried again (rule 4)."""
        errors = list(failed.values())
        is_all = self.begun == 0 and len(failed) == len(self.waiting)
        too_few_files = [error for error in errors if getattr(error, "errno", 0) == errno.EMFILE]
        if too_few_files and not self._is_started:
            raise too_few_files[0]
        if is_all and not any(map(heals, errors)):
            raise next((error for error in errors if not isinstance(error, InUseError)), errors[0])
        of_disk = self.begun == 0 and all(map(heals, errors))
        if of_disk:
            self.note_disk(str(errors[0]))
        for feed, error in failed.items():
            feed.again_at_s = now_s + feed.pause_s
            feed.pause_s = min(feed.pause_s * 2, LONGEST_AGAIN_S)
            feed.note = FOR_DISK if heals(error) else f"left out: {error}"
            if not of_disk and feed.told != str(error):
                feed.told = str(error)
                self.tell("feed_left_out", feed.name, detail=str(error))

    # --- The lists ---------------------------------------------------------------------------------------------

    def _compare_first(self, listing: Listing) -> None:
        """Tell what the first list of an exchange says of feeds that it does not have, or that are not trading."""
        self._compared.add(listing)
        info = listing.info
        if info is None:
            return
        feeds = [feed for feed in self._feeds if feed.listing is listing]
        known = [feed for feed in feeds if feed.has_files]
        gone = [feed for feed in known if feed.symbol not in info.statuses]
        listing.doubted = are_too_many(len(gone), len(known))
        if listing.doubted:
            self.tell("list_doubted", listing.venue.market.name, count=len(gone), of=len(known))
        for feed in gone if not listing.doubted else ():
            self.tell("delisted", feed.name)
        unknown = unknown_symbols(listing.venue, info)
        for feed in feeds:
            if not feed.has_files and feed.symbol not in info.statuses:
                feed.note = NOT_LISTED
                self.tell("symbol_unknown", feed.name, detail=unknown[feed.stream, feed.symbol])
        self._tell_states([feed for feed in feeds if feed not in self.waiting])

    def _tell_states(self, feeds: Iterable[Waiting]) -> None:
        for feed in feeds:
            state = feed.listing.statuses.get(feed.symbol, "TRADING")
            if state != "TRADING":
                self.tell("not_trading", feed.name, state=state)
