"""Puts the path together. Read this first.

    keep (one a connection) ─▶ Inbox ─▶ Writer ─▶ Segments (disk thread) ─▶ sealing (its own thread) ─▶ .csv.zip
                                          │
                                          └─▶ happenings ─▶ journal, log, alerts
                                                              snapshot ─▶ status, metrics, systemd

`collect` is the life of one run:

1. Start. Take the metrics' port and begin to tell people. Ask all exchanges for their symbols; at a first start refuse
   what they do not list, before any file is made. Wait for a disk that takes files. Then begin feed after feed, each as
   soon as it may (`starting`): take its lock, recover its files, take up its gaps, connect (`Collector.begin`).
2. Run. One task a connection, one writer, and a few that look around now and then: sync, seal, silence, midnight,
   disk, the exchanges' lists, what waits for the upload. All of them are in one `TaskGroup`: none can die unnoticed.
3. Stop in order. Close the sockets, drain the queue, end what waits, sync, write the last status, tell what was done.
   A second signal ends the process at once; the next start recovers.

Slow work never runs in the event loop: recovery has a thread, appends have one, syncs have one, sealing has one with a
low priority, and alerts and metrics have theirs.
"""

import asyncio
import contextlib
import dataclasses
import gc
import os
import random
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from loguru import logger

from tickcollect import __version__, gaps, status
from tickcollect.alerts.post import Alerts, ChannelState
from tickcollect.backfill import ACCOUNTED, Account, Backfill, accounts, closed_by, still_open, unexplained
from tickcollect.backlog import destination, upload_status
from tickcollect.checkpoint import Checkpoint
from tickcollect.config import Config, check_data_dir
from tickcollect.coverage import Coverage
from tickcollect.damage import KINDS as DAMAGE_KINDS
from tickcollect.damage import Damaged, Damages, OnRecord, oldest_entry, sealed_files
from tickcollect.events import MS_PER_DAY, FuturesTrade, MessageType, RowCheck, time_ms, with_fields
from tickcollect.exchanges.binance import (
    Decoder,
    Link,
    links,
    stream_name,
)
from tickcollect.feed import ATTEMPTS_REMEMBERED_S, Attempts, Inbox, LinkState, Surroundings, keep
from tickcollect.files import QUARANTINE, UNREADABLE
from tickcollect.gaps import FIRST_ID, Ranges
from tickcollect.happenings import Happenings, Quarantine, utc_text
from tickcollect.journal import Journal, JournalError
from tickcollect.journal import read as journal_entries
from tickcollect.listings import Keeper, Kept, Listing, ListingsFile
from tickcollect.measured import Measured
from tickcollect.neighbours import beside
from tickcollect.newest import Newest
from tickcollect.recovery import this_boot
from tickcollect.repair import History, Lost, history_of
from tickcollect.rest import Rest, RestError
from tickcollect.segments import (
    Compression,
    DiskError,
    FeedPath,
    Lock,
    NameRefusedError,
    NameTakenError,
    Numbering,
    OpenFiles,
    Segment,
    SegmentError,
    Segments,
    SyncFailedError,
    lock,
    open_file_limit,
)
from tickcollect.starting import Failures, Starting, Waiting
from tickcollect.systemd import Notifier, Signs, supervise
from tickcollect.venues import USER_AGENT, StartError, Venue, venues
from tickcollect.watch import ClockWatch, SilenceWatch
from tickcollect.writer import FETCHED_WITHIN_S, Feed, LateRows, Routes, Writer

Result = TypeVar("Result")

PROGRAM = f"tickcollect {__version__}"
END_LOOKED_AT_BYTES = 1_000_000
"""Of the journal's end, for how the run before ended; all of it only where that says nothing."""
CHECKPOINT_EVERY_BYTES = 4_000_000
"""Of the journal: read in a tenth of a second."""
STATUS_INTERVAL_S = 1.0
DISK_AGAIN_S = 1.0
LOOK_INTERVAL_S = 1.0
SEAL_AGAIN_S = 30.0
"""After a seal that the disk has refused."""
IDLE_END_S = 60.0
"""After a day is over, a feed that has been silent this long has its segment ended, so that it can be sealed."""
CARRIERS_COMPARED_S = 3600.0
BACKLOG_INTERVAL_S = 60.0
RENEWALS_SPREAD = 0.05
STOP_WITHIN_S = 10.0
CONCLUDED_WITHIN_S = 3.0
"""How long a stop may take to find out whether the exchange has rows that did not come."""
PROBLEMS_SHOWN = 5
"""Feeds whose files are refused, that the status names."""
FILES_TOLD = 100
FEEDS_NAMED = 20
THREADS_ASIDE = 64
"""Two look-ups of a name for each of the 30 connections of a large collection; they are made as they are needed."""
ATTEMPTS_LOOKED_FOR_BYTES = 1_000_000
"""Of the journal's end: 4,000 entries of connections."""
DISK_RATE_AFTER_S = 60.0
"""How long rows must have come before the disk's end is foreseen."""
DESCRIPTORS_BESIDE_FILES = 100
"""Sockets, locks of the process and what libraries open."""


# --- The parts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What one run did."""

    rows: int
    gaps: int
    missing: int
    filled: int
    copies: int
    refused: int
    sealed: int
    """How many segments were sealed."""
    files: Sequence[Path]
    """The newest files that this run wrote to or sealed, as they lie there now."""
    seconds: float
    connections: int = 0
    """How many connections were made; with none, nothing is known of what the exchange issued."""
    unknown_feeds: int = 0
    """Of how many feeds it is not known whether IDs are missing."""
    unknown_since_ns: int | None = None
    """Since when, of the first of them; None where there is none."""
    unknown_reasons: tuple[str, ...] = ()


NOTHING_DONE = Summary(0, 0, 0, 0, 0, 0, 0, (), 0.0)

NOT_OPENED = (SegmentError, OSError, ValueError, LookupError, *UNREADABLE)
"""What a feed's lock and recovery may raise, whatever stands in its directory: that feed is left out."""


class Collector:
    """The running parts of one collection."""

    def __init__(self, config: Config, venues: Sequence[Venue], happenings: Happenings) -> None:
        self.config = config
        self.started_ns = time.time_ns()
        self.started_s = time.monotonic()
        self.state: status.State = "starting"
        self.inbox = Inbox(config.queue_rows)
        self.happenings = happenings
        self.tell = happenings.tell
        self.quarantine = Quarantine(config.data_dir / "quarantine", self.tell, time.time_ns)
        self.feeds: list[Feed] = []
        self.links: dict[LinkState, Venue] = {}
        self.decoders: dict[LinkState, Decoder] = {}
        self.routes: dict[LinkState, Routes] = {}
        self.sealed: deque[Path] = deque(maxlen=FILES_TOLD)
        self.sealing: asyncio.Queue[tuple[Feed, Segment]] = asyncio.Queue()
        self.sealing_now: asyncio.Future[None] | None = None
        self.upload: status.UploadStatus | None = None
        self.channels: Callable[[], Iterable[ChannelState]] = tuple
        self.has_feeds: Callable[[], None] = lambda: None  # called once feeds are this process's own
        self.disk_free = 0
        self.disk_low = False
        self.histories: dict[Feed, History] = {}
        self.backfills: dict[Feed, Backfill] = {}
        self.may_write = asyncio.Event()  # set once files may be made: a mistake at a first start leaves none
        self._fetching: set[asyncio.Task[None]] = set()
        self._files: dict[Feed, list[tuple[int, int]]] = {}  # by first and last ID, until gaps are taken up
        self.process = status.process_identity(os.getpid())
        self._rates: dict[str, status.Rate] = {}
        self._disk_rate = status.Rate(window_s=600.0)
        self._sealed_ratio = 1.0
        self.sealed_counts: Counter[Feed] = Counter()
        self._unsafe: set[Feed] = set()
        """Feeds whose newest rows could not be made safe the last time."""
        self._uniform = random.SystemRandom().uniform
        self._loop = asyncio.get_running_loop()
        self._locks: dict[Feed, Lock] = {}
        self._finished: dict[Feed, Sequence[Segment]] = {}  # what a feed's recovery has left for sealing
        self._backfill_of: dict[Listing, Backfill] = {}
        self._pool = OpenFiles(open_file_limit(DESCRIPTORS_BESIDE_FILES + sum(len(venue.feeds) for venue in venues)))
        self.disk = ThreadPoolExecutor(1, "disk")
        self.opener = ThreadPoolExecutor(1, "open")
        self.syncer = ThreadPoolExecutor(1, "sync")
        self.sealer = ThreadPoolExecutor(1, "seal", initializer=_lower_priority)
        self.writer = self._new_writer()
        self._newest: dict[Rest, Newest] = {}
        self.coverage = self._new_coverage()
        self.silence = self._new_silence()
        self.measured = Measured(config.data_dir, {}, [], time.time_ns)
        self.starting = Starting(venues, self.tell, self._look_for_files, self.begin, self._tell_started)
        self.keeper = Keeper(self.starting.listings, ListingsFile(config.data_dir, self.tell))
        self._running: _Running | None = None

    def _new_writer(self) -> Writer:
        return Writer(
            self.inbox,
            self.routes,
            self.disk,
            self.tell,
            self.quarantine.keep,
            self._ended,
            self._write_records,
            fetch=self._fetch if self.config.backfill else None,
            fetch_later=self._fetch_later,
            find_begin=self._find_begin,
            late=self._take_late,
            miss=self._miss,
        )

    def _new_coverage(self) -> Coverage:
        coverage = Coverage(
            self.links,
            self._feeds_of,
            self._newest_of,
            self.tell,
            self._fetch if self.config.backfill else None,
            self._can_read,
            self._loop.time,
        )
        self.writer.note_live = coverage.note_live
        return coverage

    def _new_silence(self) -> SilenceWatch:
        return SilenceWatch(
            self.links,
            self._feeds_of,
            self._newest_of,
            self.tell,
            self.config.first_data_s,
            self.coverage.note_issued,
            self._can_read,
        )

    # --- Feeds begin -----------------------------------------------------------------------------------------------

    async def begin(self, listing: Listing, feeds: Sequence[Waiting]) -> Failures:
        """Lock and recover the files of some feeds of one exchange, take up their gaps, and connect them.

        Returns those that could not be opened; nothing of them is held. The disk's work has a thread of its own, in
        which one feed is opened after the other, so that a stop waits for one at most.
        """
        try:
            damages = await self._opening(self._look_for_damage, listing, feeds)
        except NOT_OPENED as error:
            return dict.fromkeys(feeds, error)
        opened: dict[Waiting, Feed] = {}
        failed: dict[Waiting, Exception] = {}
        for one in feeds:
            try:
                opened[one] = await self._opening(self._open_feed, listing, one.stream, one.symbol, damages)
            except NOT_OPENED as error:
                failed[one] = error
        failed |= await self._take_up(opened)
        begun = [feed for one, feed in opened.items() if one not in failed]
        if begun and not self.feeds:
            with contextlib.suppress(JournalError):  # it was read a moment ago, and what is wrong with it now is told
                await self._opening(self._look_for_crash, begun)
        await self._opening(self._write_records)  # before what a recovery has ended is sealed
        self._add(listing, begun)
        return failed

    async def _take_up(self, opened: Mapping[Waiting, Feed]) -> Failures:
        """Take up the gaps of feeds that were opened; let go those whose files or journal cannot be read."""
        try:
            await self._opening(self._take_up_gaps, list(opened.values()))
        except NOT_OPENED as error:
            logger.debug("gaps cannot be taken up at once: {}", error)
        else:
            return {}
        failed: dict[Waiting, Exception] = {}
        for one, feed in opened.items():
            try:
                await self._opening(self._take_up_gaps, [feed])
            except NOT_OPENED as error:
                self._let_go(feed)
                failed[one] = error
        return failed

    async def _opening(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await self._loop.run_in_executor(self.opener, work, *arguments)

    async def _look_for_files(self, waiting: Sequence[Waiting]) -> None:
        await self._opening(_note_files, self.config.data_dir, waiting)

    def _add(self, listing: Listing, feeds: Sequence[Feed]) -> None:
        """Let feeds whose files are in order take part in everything from now on."""
        if not feeds:
            return
        venue = listing.venue
        self.feeds += feeds
        self.measured.feeds = {feed.name: feed.meter for feed in self.feeds}
        by_name = {stream_name(feed.path.symbol, feed.path.stream): feed for feed in feeds}
        for feed in feeds:
            for segment in self._finished.pop(feed):
                self.sealing.put_nowait((feed, segment))
            for first, last in list(feed.open.spans):
                self._fetch_later(feed, first, last)
            for first, last in reversed(feed.unconfirmed.spans) if self.config.backfill else ():
                self.backfills[feed].add(feed, first, last)  # the newest first: history reaches back from now
        for copy in range(self.config.redundancy):
            ws_url = venue.ws_url or (venue.market.ws_url, venue.market.second_ws_url)[copy]
            for link in links(venue.market, [(feed.path.stream, feed.path.symbol) for feed in feeds], ws_url):
                self._connect(self._plan_link(venue, link, by_name))
        self._run_backfill(self._backfill(listing))
        self.coverage.begin(feeds, {feed: _newest_ns(feed) for feed in feeds if feed.sequence.newest_time})
        self.measured.links = [(state, [feed.meter for feed in self._feeds_of(state)]) for state in self.links]

    def _connect(self, state: LinkState) -> None:
        if self._running is not None and self._running.around is not None:
            keeping = keep(state, self.decoders[state], self._running.around)
            self._running.connections.append(self._running.tasks.create_task(keeping))

    def _tell_started(self, feeds: int) -> None:
        gc.freeze()  # what exists now stays: the collector of cycles need not look at it again
        self.has_feeds()
        self.tell("started", PROGRAM, feeds=feeds, data_dir=str(self.config.data_dir))

    def _take_up_gaps(self, feeds: Sequence[Feed]) -> None:
        """Find what is missing: gaps that earlier runs left open, and holes between files that nobody knows of."""
        found = _accounts(self.config.data_dir)
        for feed in feeds:
            account = found.get(feed.name, Account())
            files = self._files.pop(feed)
            on_disk = Ranges()
            for first, last in files:
                on_disk.add(first, last)
            for first, last in feed.open.spans:
                account.open.add(first, last)
            if feed.sequence.next_id is None:
                self._go_on_from_journal(feed, account)
            if account.begun_at is not None:  # the run before ended before it was known
                self.tell("numbering_begins", feed.name, first_id=FIRST_ID, last_id=account.begun_at)
                self._open_gap(feed, account, FIRST_ID, account.begun_at - 1)
            if not feed.has_placeholders:
                for first, last in unexplained(account, on_disk, feed.sequence.next_id):
                    self._open_gap(feed, account, first, last)
            for first, last in account.reopened.spans if feed.has_placeholders else ():
                account.open.add(first, last)
            held = closed_by(files, account.open) if feed.has_placeholders else on_disk
            feed.open = still_open(account, held, feed.sequence.next_id)
            feed.called_absent, feed.unconfirmed = account.absent, account.unconfirmed
            for first, last in (*feed.open.spans, *feed.called_absent.spans[-gaps.GAPS_REMEMBERED :]):
                feed.sequence.expect_late(first, last)

    def _open_gap(self, feed: Feed, account: Account, first: int, last: int) -> None:
        account.open.add(first, last)
        feed.gaps += 1
        self.tell("gap", feed.name, first_id=first, last_id=last, count=last - first + 1)

    def _look_for_crash(self, feeds: Sequence[Feed]) -> None:
        """Say so if the run before has left no word of its end: it was killed, or the machine lost power.

        Since when nothing was collected, the newest row of the `feeds` that begin first tells. While another collector
        runs in the directory nothing is said: the last word may be its own.
        """
        with contextlib.suppress(status.StatusError):
            others = [one for one in status.read(self.config.data_dir) if one.pid != os.getpid()]
            if any(status.alive(one) for one in others):
                return
        if not _ended_without_a_word(self.config.data_dir / "journal.jsonl"):
            return
        newest_ms = max((time_ms(feed.sequence.newest_time) for feed in feeds), default=0)
        newest = utc_text(newest_ms * 10**6) if newest_ms else None
        what = f"its newest row is of {newest}, and nothing after that" if newest else "it left no row, and nothing"
        self.tell("not_stopped", PROGRAM, newest_row=newest, detail=f"{what} was collected until now")

    def _go_on_from_journal(self, feed: Feed, account: Account) -> None:
        """Go on where a feed without any file had come to: they were lost, or moved away once they were sealed."""
        last_id = max(
            (last for spans in (account.open.spans, account.settled.spans) for _, last in spans), default=None
        )
        if last_id is not None:
            feed.written_id = last_id
            feed.sequence.resume(last_id, newest_time=0)
            self.tell("continued", feed.name, last_id=last_id)

    # Gaps

    def _fetch(self, feed: Feed, holes: Sequence[tuple[int, int]]) -> asyncio.Task[None]:
        """Ask history for holes that are held open, or for what came after them; the answer goes to the writer."""
        return self._ask(self._fetch_in_place(feed, holes))

    def _ask(self, question: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(question)
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)
        return task

    def _find_begin(self, feed: Feed, first: int, since_ms: int) -> None:
        """Ask history where a new numbering began, if it may be asked; the answer goes to the writer."""
        if self.config.backfill:
            self._ask(self._find_begin_of(feed, first, since_ms))
        else:
            self.writer.begin_numbering(feed, FIRST_ID, first)

    async def _find_begin_of(self, feed: Feed, first: int, since_ms: int) -> None:
        restarts, lowest = feed.restarts, FIRST_ID
        try:
            async with asyncio.timeout(FETCHED_WITHIN_S):
                lowest = await self.histories[feed].begin(first, await beside(feed, FIRST_ID, first - 1), since_ms)
        except (RestError, TimeoutError) as error:
            logger.debug("{}: where its numbering began is not known: {}", feed.name, error or "no answer in time")
        finally:  # also at a stop: what nobody has asked for is missing, and the next start asks for it
            if feed.restarts == restarts:
                self.writer.begin_numbering(feed, lowest, first)

    async def _fetch_in_place(self, feed: Feed, holes: Sequence[tuple[int, int]]) -> None:
        try:
            async with asyncio.timeout(FETCHED_WITHIN_S):
                for first, last in holes:
                    await self._fetch_hole(feed, first, last)
        except (RestError, TimeoutError) as error:
            logger.debug("{}: not filled in place: {}", feed.name, error or "no answer in time")
        finally:
            self.writer.settle(feed)

    async def _fetch_hole(self, feed: Feed, first: int, last: int) -> None:
        history, asked_s = self.histories[feed], self._loop.time()
        restarts = feed.restarts
        async for outcome in history.fetch(first, last, await beside(feed, first, last)):
            if isinstance(outcome, Lost) or feed.restarts != restarts:  # what is asked for is of another numbering now
                return
            self.writer.fill(feed, list(outcome.rows), self._loop.time(), (history.path, asked_s))
            for low, high in outcome.lacking:
                self.writer.note_lacking(feed, low, high, self._loop.time())

    def _fetch_later(self, feed: Feed, first: int, last: int) -> None:
        """Leave a declared gap to the background, or say why nobody will look for it."""
        if not self.config.backfill:
            feed.lost += last - first + 1
            feed.open.remove(first, last)
            feed.given_up.add(first, last)
            reason = "not asked for (BACKFILL is false)"
            self.tell("lost", feed.name, first_id=first, last_id=last, count=last - first + 1, reason=reason)
            return
        self.backfills[feed].add(feed, first, last)

    def _take_late(self, feed: Feed, rows: LateRows) -> None:
        self.backfills[feed].add_late(feed, rows)

    def _miss(self, feed: Feed, first: int, last: int) -> None:
        """Fetch again what was in a file and is gone with it; from any thread but the loop's."""
        self._loop.call_soon_threadsafe(self._note_missing, feed, first, last)

    def _note_missing(self, feed: Feed, first: int, last: int) -> None:
        feed.open.add(first, last)
        feed.sequence.expect_late(first, last)
        self._fetch_later(feed, first, last)

    # Connections

    def _plan_link(self, venue: Venue, link: Link, by_name: dict[str, Feed]) -> LinkState:
        state = LinkState(venue.market.name, link)
        self.links[state] = venue
        streams = sorted({by_name[name].path.stream for name in link.streams})
        self.decoders[state] = Decoder(venue.market, self.config.extra_columns, streams)
        routes: dict[str, dict[str, Feed]] = {stream: {} for stream in streams}
        for name in link.streams:
            routes[by_name[name].path.stream][by_name[name].path.symbol] = by_name[name]
        self.routes[state] = routes
        return state

    def _open_feed(self, listing: Listing, stream: str, symbol: str, damages: Damages) -> Feed:
        config, venue = self.config, listing.venue
        path = FeedPath(venue.market.name, stream, symbol)
        kind = venue.market.message_types[stream]
        held = lock(config.data_dir, path, utc_text(self.started_ns))
        segments = self._new_segments(path, kind)
        feed = Feed(
            path,
            with_fields(kind, config.extra_columns),
            RowCheck(stream, symbol, len(config.extra_columns)),
            gaps.Sequence(config.gap_patience_s, alike=_same_trade),
            segments,
            config.extra_columns,
            write_not_trades=config.not_trades == "write",
        )
        self._locks[feed] = held
        try:
            for damaged in damages.of(path, _numbering(kind)):
                self._move_away(feed, damaged)
            self._recover(feed)
        except BaseException:
            self._let_go(feed)
            raise
        self.backfills[feed] = self._backfill(listing)
        self.histories[feed] = history_of(
            venue.rest,
            venue.market,
            stream,
            symbol,
            extra_fields=config.extra_columns,
            api_key=config.binance_api_key.get_secret_value(),
        )
        return feed

    def _look_for_damage(self, listing: Listing, feeds: Sequence[Waiting]) -> Damages:
        """Read what the journal says of the sealed files that are here."""
        root = self.config.data_dir
        paths = []
        for one in feeds:
            with contextlib.suppress(NameRefusedError):  # which is told when that feed is opened
                paths.append(FeedPath(listing.venue.market.name, one.stream, one.symbol))
        here = sealed_files(root, paths)
        on_record = OnRecord(here)
        with contextlib.suppress(JournalError):  # which is told when gaps are taken up
            since = oldest_entry(here)
            on_record.take(journal_entries(root / "journal.jsonl", DAMAGE_KINDS, since=since) if here else ())
        return Damages(root, on_record)

    def _move_away(self, feed: Feed, one: Damaged) -> None:
        """Tell of a damaged file, and move it to quarantine; its IDs are missing, unless a store holds them."""
        first, last = one.name.first_id, one.name.last_id or one.name.first_id
        file = str(one.path.relative_to(self.config.data_dir))
        if one.current:
            facts = {"store": one.store} if one.store else {}
            count, detail = last - first + 1, f"{one.detail}. It goes to {QUARANTINE}/."
            self.tell(
                "damaged", feed.name, file=file, first_id=first, last_id=last, count=count, detail=detail, **facts
            )
            if not one.store:
                feed.open.add(first, last)
        else:
            detail = f"{file}: {one.detail}. Its numbering has ended since; nobody can give its rows again."
            self.tell("recovered", feed.name, detail=f"{detail} It goes to {QUARANTINE}/.")
        self.happenings.write()
        feed.segments.move_aside(one.path)

    def _let_go(self, feed: Feed) -> None:
        """Give back what a feed holds of the disk."""
        with contextlib.suppress(SegmentError):
            feed.segments.close()
        self._locks.pop(feed).release()

    def _run_backfill(self, backfill: Backfill) -> None:
        if self._running is not None and backfill not in self._running.filling:
            self._running.filling.add(backfill)
            self._running.help(backfill.run())

    def _backfill(self, listing: Listing) -> Backfill:
        """Return what fills the gaps of an exchange's feeds: one for all of them."""
        found = self._backfill_of.get(listing)
        if found is None:
            found = self._backfill_of[listing] = Backfill(
                self.histories.__getitem__,
                self._segments_of,
                self.writer.checked,
                self.disk,
                self.tell,
                self._ended,
                self.writer.set_aside,
            )
        return found

    def _new_segments(self, path: FeedPath, kind: MessageType) -> Segments:
        return Segments(
            self.config.data_dir,
            path,
            rotate_size=self.config.rotate_size,
            pool=self._pool,
            compression=Compression(self.config.compression),
            numbering=_numbering(kind),
            extra_columns=self.config.extra_columns,
        )

    def _segments_of(self, feed: Feed) -> Segments:
        """Return another set of files in a feed's directory, for what is fetched in the background."""
        return self._new_segments(feed.path, feed.kind)

    def _recover(self, feed: Feed) -> None:
        recovered = feed.segments.recover(this_boot())
        self._files[feed] = [*feed.segments.sealed_ids(), *recovered.current]
        for line in recovered.lines:
            self.tell("recovered", feed.name, detail=line)
        for path in recovered.foreign:
            self.tell("foreign_file", feed.name, file=str(path))
        for first, last in recovered.holes:
            feed.gaps += 1
            feed.open.add(first, last)
            self.tell("gap", feed.name, first_id=first, last_id=last, count=last - first + 1)
        if recovered.last_id is not None:
            feed.written_id = recovered.last_id
            feed.sequence.resume(recovered.last_id, recovered.last_time or 0)
            self.tell("continued", feed.name, last_id=recovered.last_id)
        self._finished[feed] = recovered.finished

    def _ended(self, segments: Iterable[Segment], feed: Feed) -> None:
        """Queue segments for sealing; from any thread but the loop's.

        What ended them is put on record first: whoever is killed after the next row has been appended behind a gap
        leaves a journal that knows the gap.
        """
        self.happenings.write()
        for segment in segments:
            self._loop.call_soon_threadsafe(self.sealing.put_nowait, (feed, segment))

    async def run(self, stop: asyncio.Event, show: "Show | None" = None) -> None:
        """Collect until `stop` is set, then stop in order; `show` shows it once collecting may begin.

        Raises `StartError` and `ConfigError` for a mistake at a first start, `SegmentError` where no feed at all can be
        opened and waiting would not help.
        """
        async with contextlib.AsyncExitStack() as shown, asyncio.TaskGroup() as tasks:
            running = self._running = _Running(tasks)
            starting = tasks.create_task(self._start(running))
            await _first_set(self.may_write, stop)
            if not stop.is_set():
                await shown.enter_async_context((show or _unseen)(self.snapshot))
            await stop.wait()
            self.state = "stopping"
            starting.cancel()
            await asyncio.wait({starting})
            await self.coverage.conclude(CONCLUDED_WITHIN_S)
            for task in (*running.connections, *self._fetching):
                task.cancel()
            if running.connections:
                await asyncio.wait(running.connections)
            self.writer.stop()
            if running.writing is not None:
                await running.writing
            for task in running.helpers:
                task.cancel()

    async def _surroundings(self) -> Surroundings:
        return Surroundings(
            self.inbox,
            time.time_ns,
            self._uniform,
            USER_AGENT,
            self._renew_in_s,
            self.config.proxy.get_secret_value() if self.config.proxy else None,
            attempts=await self._opening(
                attempts_before, self.config.data_dir / "journal.jsonl", time.time(), self._loop.time()
            ),
        )

    async def _start(self, running: "_Running") -> None:
        """Ask the exchanges, wait for the disk, then begin feed after feed, for ever."""
        kept = await self._once_disk_answers(self._read_listings)
        self.keeper.take_up(kept)
        for listing in self.starting.listings:
            running.help(listing.run())
        await self.starting.check_first()
        await self._once_disk_answers(partial(check_data_dir, self.config.data_dir))
        self.keeper.take_up(await self._once_disk_answers(self._read_listings))  # a disk may have come only now
        self.may_write.set()
        self.state = "running"
        self._look_at_disk()
        running.writing = running.tasks.create_task(self.writer.run())
        for job in (self._sync(), self._seal(), self._look_around(), self._look_at_backlog()):
            running.help(job)
        clocks = ClockWatch([one.venue for one in self.starting.listings], self.tell)
        for job in (clocks.run(), self.coverage.run(), self.silence.run(), self.keeper.run(self._opening)):
            running.help(job)
        running.around = await self._surroundings()
        await self.starting.run()

    def _read_listings(self) -> Mapping[tuple[str, str], Kept]:
        _note_files(self.config.data_dir, self.starting.waiting)
        return self.keeper.file.read()

    async def _once_disk_answers(self, work: Callable[[], Result]) -> Result:
        """Return what `work` gives, waiting for a disk that is not there yet, full, read-only or failing."""
        while True:
            try:
                found = await self._opening(work)
            except OSError as error:
                self.starting.note_disk(f"{self.config.data_dir} cannot be used: {error.strerror}.")
                await asyncio.sleep(DISK_AGAIN_S)
            else:
                self.starting.note_disk("")
                return found

    def _tell_not_written(self, detail: str) -> None:
        """Say exactly what is in no file, so that nobody takes it for collected."""
        unwritten = self.writer.unwritten()
        feeds = [f"{feed.name} {ids[0]} to {ids[-1]}" for feed, ids in unwritten.items()]
        if len(feeds) > FEEDS_NAMED:
            feeds[FEEDS_NAMED:] = [f"and {len(feeds) - FEEDS_NAMED} more feeds"]
        count = sum(map(len, unwritten.values()))
        self.tell("not_written", PROGRAM, count=count, feeds=feeds, detail=detail)

    def _renew_in_s(self) -> float:
        """Return after how long a connection that opens now is replaced: spread, so that not all are at once."""
        renew_in_s = self.config.renew_after_h * 3600 * self._uniform(1 - RENEWALS_SPREAD, 1)
        if self.config.renew_at is not None:
            hours, minutes = map(int, self.config.renew_at.split(":"))
            at_s = (hours * 60 + minutes) * 60 - time.time() % 86_400
            at_s += self._uniform(0, RENEWALS_SPREAD * 3600)
            renew_in_s = min(renew_in_s, at_s if at_s > 0 else at_s + 86_400)
        return renew_in_s

    async def close(self) -> Summary:
        """Hand over what is held, make it safe, seal if asked, and tell what was done; nothing if nothing had begun."""
        if not self.feeds:
            self.state = "stopped"
            return NOTHING_DONE
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await self.writer.finish(self._loop.time())
        except (TimeoutError, SegmentError) as error:
            self._tell_not_written(str(error) or "the disk does not answer.")
        else:
            if self.writer.unwritten():
                self._tell_not_written(self.writer.blocked[0])
        alone = {feed: _newest_ns(feed) for feed in self.writer.unconfirmed}
        self.coverage.note_unused(alone, "the last row does not follow those before it, and none came after it")
        if self.sealing_now is not None:
            await self.sealing_now
        if self.config.seal_at_stop:
            await self._seal_all()
        self.measured.cut(self._loop.time())
        await self._loop.run_in_executor(self.syncer, self._sync_all)
        await self._loop.run_in_executor(self.syncer, self.measured.close)
        summary = self._summary()
        self._tell_carriers()
        self.tell(
            "stopped",
            PROGRAM,
            rows=summary.rows,
            gaps=summary.gaps,
            missing=summary.missing,
            filled=summary.filled,
            copies=summary.copies,
            refused=summary.refused,
            connections=summary.connections,
            unknown=summary.unknown_feeds,
            unknown_since=None if summary.unknown_since_ns is None else utc_text(summary.unknown_since_ns),
        )
        self.state = "stopped"
        return summary

    async def release(self) -> None:
        """Put on record what was not yet, and give everything back; the locks last, when nothing works any more."""
        held = list(self._locks)
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await self._opening(_nothing)  # a feed that is being opened when the stop comes
            held = list(self._locks)
        except TimeoutError:
            held = self.feeds  # the lock of the other goes with the process, when its recovery is over
        if self.may_write.is_set():
            await self._loop.run_in_executor(self.syncer, self.quarantine.write)
            await self._loop.run_in_executor(self.syncer, self.happenings.sync)
        for executor in (self.opener, self.disk, self.syncer, self.sealer):
            executor.shutdown(wait=False, cancel_futures=True)
        for feed in held:
            self._let_go(feed)

    # --- Beside the path -------------------------------------------------------------------------------------------

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(self.config.sync_interval_s)
            await self._loop.run_in_executor(self.syncer, self._sync_all)

    def _write_records(self) -> None:
        """Hand over what the journal and the quarantine have waiting; from any thread but the loop's."""
        self.happenings.write()
        self.quarantine.write()

    def _sync_all(self) -> None:
        self.quarantine.write()
        self.happenings.sync()
        self.measured.write()
        for feed in self.feeds:
            self._sync_feed(feed)

    def _sync_feed(self, feed: Feed) -> None:
        """Make a feed's rows safe; what refuses to be opened is tried again at the next time, and told once."""
        try:
            feed.segments.sync()
        except SyncFailedError as error:
            self._give_up_unsafe(feed, error)
        except SegmentError as error:
            if feed not in self._unsafe:
                self._unsafe.add(feed)
                self.tell("sync_waits", feed.name, detail=str(error))
        else:
            self._unsafe.discard(feed)

    def _give_up_unsafe(self, feed: Feed, error: SyncFailedError) -> None:
        """Have the rows again that may not be on the disk, and seal what is there of their file."""
        self.tell("sync_failed", feed.name, detail=str(error), first_id=error.first_id, last_id=error.last_id)
        self._miss(feed, error.first_id, error.last_id)
        if error.remaining is not None:
            self._ended([error.remaining], feed)

    async def _seal(self) -> None:
        while True:
            feed, segment = await self.sealing.get()
            self.sealing_now = self._loop.run_in_executor(self.sealer, self._seal_one, feed, segment)
            # Shielded, because a seal cannot be broken off: a stop waits for it (`close`).
            await asyncio.shield(self.sealing_now)
            self.sealing_now = None

    def _seal_one(self, feed: Feed, segment: Segment) -> None:
        try:
            sealed = feed.segments.seal(segment)
        except SyncFailedError as error:
            self._give_up_unsafe(feed, error)
        except SegmentError as error:
            if isinstance(error, NameTakenError) and self._divide(feed, segment):
                return
            self.tell("seal_failed", feed.name, detail=str(error))
            self._after_failed_seal(feed, segment, error)
        else:
            self.sealed.append(sealed.path)
            self.sealed_counts[feed] += 1
            extra = segment.extra_columns
            columns = None if extra is None else [*feed.kind.COLUMNS, *extra]
            self._sealed_ratio = sealed.size / max(1, segment.size)
            self.tell(
                "sealed",
                feed.name,
                file=str(sealed.path.relative_to(self.config.data_dir)),
                first_id=segment.first_id,
                last_id=segment.last_id,
                rows=segment.rows,
                bytes=sealed.size,
                csv_bytes=segment.size,
                csv_sha256=sealed.csv.sha256,
                columns=columns,
                sha256=sealed.sha256,
                hours=sealed.hours,
            )

    def _divide(self, feed: Feed, segment: Segment) -> bool:
        """Have a segment sealed in parts, if its name is taken by a numbering before; tell whether that is so."""
        try:
            parts = feed.segments.divide(segment)
        except SegmentError as error:
            logger.debug("{}: {}", feed.name, error)
            return False
        self._ended(parts, feed)
        return bool(parts)

    def _after_failed_seal(self, feed: Feed, segment: Segment, error: SegmentError) -> None:
        """Have the rows again if the file is gone; seal it later if the disk refused, or if that cannot be told."""
        try:
            gone = not _exists(segment.path) and not _is_sealed(feed, segment)
        except OSError:
            gone = False
        else:
            if not gone and not isinstance(error, DiskError):
                return
        if gone:
            self._miss(feed, segment.first_id, segment.last_id)
        else:
            again = partial(self._loop.call_later, SEAL_AGAIN_S, self.sealing.put_nowait, (feed, segment))
            self._loop.call_soon_threadsafe(again)

    async def _seal_all(self) -> None:
        """End and seal everything (`SEAL_AT_STOP`)."""
        for feed in self.feeds:
            try:
                for segment in feed.segments.end():
                    self.sealing.put_nowait((feed, segment))
            except SegmentError as error:
                self.tell("seal_failed", feed.name, detail=str(error))
        while not self.sealing.empty():
            await self._loop.run_in_executor(self.sealer, self._seal_one, *self.sealing.get_nowait())

    async def _look_around(self) -> None:
        """Look after midnight, the disk and the connections that carry the same. Nothing here waits for the network."""
        compared_s = self._loop.time()
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            now_s = self._loop.time()
            self.measured.look(now_s)
            if now_s - compared_s > CARRIERS_COMPARED_S:
                compared_s = now_s
                self._tell_carriers()
            self._end_finished_days(now_s, time.time())
            self._look_at_disk()

    async def _look_at_backlog(self) -> None:
        """Look now and then what waits for the upload, where a store is configured."""
        config = self.config
        to = destination(config.upload_to, config.s3_bucket, config.s3_bucket_path, config.s3_endpoint_url)
        while to:
            self.upload = await asyncio.to_thread(upload_status, config.data_dir, to)
            await asyncio.sleep(BACKLOG_INTERVAL_S)

    def _tell_carriers(self) -> None:
        """Compare the connections that carry the same streams (`REDUNDANCY`)."""
        for state in self.links if self.config.redundancy > 1 else ():
            self.tell(
                "carried",
                state.exchange,
                url=state.link.url,
                messages=state.messages,
                copies=state.copies,
                missed=state.missed,
            )

    def _newest_of(self, venue: Venue) -> Newest:
        return self._newest.setdefault(venue.rest, Newest(venue, self._loop.time))

    def _can_read(self) -> bool:
        """Tell whether rows are read at present: not while the disk takes nothing, or the queue is full."""
        return not self.writer.disk_trouble and not self.inbox.is_full

    def _feeds_of(self, state: LinkState) -> list[Feed]:
        return [feed for by_symbol in self.routes[state].values() for feed in by_symbol.values()]

    def _end_finished_days(self, now_s: float, wall_s: float) -> None:
        today = int(wall_s * 1000) // MS_PER_DAY
        for feed in self.feeds:
            segment = feed.segments.open_segment
            quiet = now_s - max(feed.last_seen_s, self.started_s) > IDLE_END_S
            if segment is not None and segment.day < today and quiet and not feed.sequence.held:
                self.writer.end_idle(feed)
                self.inbox.wake()

    def _look_at_disk(self) -> None:
        try:
            self.disk_free = shutil.disk_usage(self.config.data_dir).free
        except OSError:
            return
        low = self.disk_free < self.config.min_free_disk
        if low and not self.disk_low:
            self.tell("disk_low", str(self.config.data_dir), free_mb=self.disk_free // 1_000_000)
        if self.disk_low and not low:
            self.tell("disk_enough", str(self.config.data_dir), free_mb=self.disk_free // 1_000_000)
        self.disk_low = low

    # --- What others may know --------------------------------------------------------------------------------------

    def signs(self) -> Signs:
        """Return what systemd is told of."""
        verdict = status.judge(self.snapshot(), time.time_ns(), pid_alive=True)
        received = sum(state.messages for state in self.links)
        waiting = self.inbox.waiting
        text = "; ".join((verdict.summary, *verdict.troubles, *verdict.unclear))
        return Signs(self.state, text, waiting, received - waiting, bool(self.writer.disk_trouble))

    def snapshot(self) -> status.Snapshot:
        """Return the present state for the status file and the live view."""
        self.coverage.look()
        now_s = self._loop.time()
        connected = {feed: state.connected for state in self.links for feed in self._feeds_of(state)}
        return status.Snapshot(
            at_ns=time.time_ns(),
            pid=os.getpid(),
            process=self.process,
            version=__version__,
            started_ns=self.started_ns,
            state=self.state,
            data_dir=str(self.config.data_dir),
            feeds=[
                *(self._feed_status(feed, connected=connected[feed], now_s=now_s) for feed in self.feeds),
                *(_waiting_status(one, self.started_ns) for one in self.starting.waiting),
            ],
            queue_rows=self.inbox.waiting,
            queue_limit=self.inbox.limit,
            queue_bytes=self.inbox.waiting_bytes,
            queue_limit_bytes=self.inbox.limit_bytes,
            reconnects=sum(max(0, state.connections - 1) for state in self.links),
            sealing=self.sealing.qsize() + (self.sealing_now is not None),
            disk_free_bytes=self.disk_free,
            disk_hours_left=self._disk_hours_left(now_s),
            problems=self._problems(),
            upload=self.upload,
            channels=[status.ChannelStatus(**dataclasses.asdict(channel)) for channel in self.channels()],
            messages_per_s=self._rate("", sum(state.messages for state in self.links), now_s),
        )

    def _feed_status(self, feed: Feed, *, connected: bool, now_s: float) -> status.FeedStatus:
        segment = feed.segments.open_segment
        last = feed.last
        unknown_since_ns, unknown_reason = feed.unknown
        return status.FeedStatus(
            exchange=feed.path.exchange,
            stream=feed.path.stream,
            symbol=feed.path.symbol,
            connected=connected,
            rows=feed.rows,
            rows_per_s=self._rate(feed.name, feed.rows, now_s),
            last_id=feed.written_id,
            last_price="" if last is None else last.p,
            lag_ms=None if last is None or last.E == "" else feed.last_received_ns / 1e6 - time_ms(last.E),
            last_row_ns=feed.last_received_ns or None,
            open_gaps=len(feed.open.spans) + len(feed.held_gaps),
            missing_ids=feed.missing_ids,
            lost_ids=feed.lost,
            copies=feed.copies,
            refused=feed.refused,
            not_trades=feed.not_trades,
            file="" if segment is None else str(segment.path.relative_to(self.config.data_dir)),
            file_bytes=0 if segment is None else segment.size,
            files_sealed=self.sealed_counts[feed],
            note=self._note(feed),
            unknown_since_ns=unknown_since_ns,
            unknown_reason=unknown_reason,
        )

    def _note(self, feed: Feed) -> str:
        if self.backfills[feed].at_work.startswith(f"{feed.name}:"):
            return "filling a gap"
        return "waiting for history" if feed.sequence.held else ""

    def _disk_hours_left(self, now_s: float) -> float | None:
        """Return how long the free disk lasts at the present rate, with sealing at the ratio seen so far."""
        per_s = self._disk_rate.update(self.writer.bytes_written, now_s) * self._sealed_ratio
        if now_s - self.started_s < DISK_RATE_AFTER_S or per_s <= 0 or not self.disk_free:
            return None
        return self.disk_free / per_s / 3600

    def _rate(self, name: str, total: int, now_s: float) -> float:
        return self._rates.setdefault(name, status.Rate()).update(total, now_s)

    def _problems(self) -> list[str]:
        found = [self.writer.disk_trouble, self.starting.disk_trouble, *self.writer.blocked[:PROBLEMS_SHOWN]]
        return [text for text in (*found, self.happenings.refused, self.measured.refused) if text]

    def _summary(self) -> Summary:
        open_files = [feed.segments.open_segment.path for feed in self.feeds if feed.segments.open_segment]
        unknown = [feed for feed in self.feeds if feed.unknown_since_ns is not None]
        waiting = self.starting.waiting
        since = [feed.unknown_since_ns for feed in unknown] + [self.started_ns] * len(waiting)
        reasons = [feed.unknown_reason for feed in unknown] + [one.note for one in waiting]
        return Summary(
            rows=sum(feed.rows for feed in self.feeds),
            gaps=sum(feed.gaps for feed in self.feeds),
            missing=sum(feed.missing_ids for feed in self.feeds) + sum(map(len, self.writer.unwritten().values())),
            filled=sum(feed.filled for feed in self.feeds),
            copies=sum(feed.copies for feed in self.feeds),
            refused=self.quarantine.total,
            sealed=self.sealed_counts.total(),
            files=[*self.sealed, *open_files],
            seconds=time.monotonic() - self.started_s,
            connections=sum(state.connections for state in self.links),
            unknown_feeds=len(unknown) + len(waiting),
            unknown_since_ns=min((since_ns for since_ns in since if since_ns), default=None),
            unknown_reasons=tuple(dict.fromkeys(reasons)),
        )


@dataclass(eq=False)
class _Running:
    """The tasks of a run."""

    tasks: asyncio.TaskGroup
    around: Surroundings | None = None
    """What the connections need; None before the first begins."""
    connections: list[asyncio.Task[None]] = field(default_factory=list)
    helpers: list[asyncio.Task[None]] = field(default_factory=list)
    writing: asyncio.Task[None] | None = None
    filling: set[Backfill] = field(default_factory=set)
    """Those whose task runs."""

    def help(self, job: Coroutine[None, None, None]) -> None:
        """Run what goes on beside the path until the stop."""
        self.helpers.append(self.tasks.create_task(job))


def _same_trade(line: str, other: str) -> bool:
    """Tell whether two rows are one trade: event time and time of arrival may differ between connections."""
    return line.rstrip("\n").split(",")[2:10] == other.rstrip("\n").split(",")[2:10]


def _newest_ns(feed: Feed) -> int:
    """Return the time of the newest trade written, nanoseconds since 1970, by the exchange's clock."""
    return int(time_ms(feed.sequence.newest_time) * 1e6)


def _exists(path: Path) -> bool:
    """Tell whether there is a file; unlike `Path.exists`, a directory that cannot be searched is an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_sealed(feed: Feed, segment: Segment) -> bool:
    spans = feed.segments.sealed_ids() if _exists(feed.segments.directory) else []
    return any(first <= segment.first_id and segment.last_id <= last for first, last in spans)


def attempts_before(journal: Path, wall_s: float, loop_s: float) -> Attempts:
    """Return the pace of connecting, with what earlier processes have tried just now: this may be the hundredth start.

    `wall_s` (Unix seconds) and `loop_s` (the event loop's clock) are the same moment.
    """
    attempts = Attempts()
    kinds = frozenset({"connected", "cannot_connect"})
    with contextlib.suppress(JournalError):  # it was read as a whole at the start, and what is wrong with it told there
        for entry in journal_entries(journal, kinds, ATTEMPTS_LOOKED_FOR_BYTES):
            age_s = wall_s - entry.at.timestamp()
            exchange = entry.facts.get("subject")
            if 0 <= age_s < ATTEMPTS_REMEMBERED_S and isinstance(exchange, str) and entry.facts.get("seen", True):
                attempts.take(exchange, loop_s - age_s)
    return attempts


def _accounts(data_dir: Path) -> dict[str, Account]:
    """Return what the journal says of each feed's IDs, and keep a checkpoint of it once it has grown enough.

    Raises `JournalError`.
    """
    journal = data_dir / "journal.jsonl"
    fields = ",".join(Account.__slots__)
    checkpoint = Checkpoint(
        data_dir / "journal.checkpoint.json", journal, dict[str, Account], f"{__version__} {fields} {sorted(ACCOUNTED)}"
    )
    before, begin = checkpoint.load()
    reading = journal_entries(journal, ACCOUNTED, begin=begin)
    found = accounts(reading, before)
    if reading.end - begin > CHECKPOINT_EVERY_BYTES:
        checkpoint.keep(found, reading.end)
    return found


def _note_files(data_dir: Path, waiting: Iterable[Waiting]) -> None:
    """Note which feeds have files here: whatever stands at the place of their directory, readable or not."""
    for one in waiting:
        try:
            FeedPath(one.exchange, one.stream, one.symbol).directory(data_dir).lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError, NameRefusedError):
            continue
        except OSError:  # a disk that fails says so also when it is opened, and that is told
            pass
        one.has_files = True


def _waiting_status(waiting: Waiting, started_ns: int) -> status.FeedStatus:
    """Return the status of a feed that is not collected yet."""
    return status.FeedStatus(
        exchange=waiting.exchange,
        stream=waiting.stream,
        symbol=waiting.symbol,
        connected=False,
        rows=0,
        rows_per_s=0.0,
        last_id=None,
        last_price="",
        lag_ms=None,
        last_row_ns=None,
        open_gaps=0,
        missing_ids=0,
        copies=0,
        refused=0,
        not_trades=0,
        file="",
        file_bytes=0,
        files_sealed=0,
        note=waiting.note,
        unknown_since_ns=started_ns,
        unknown_reason=waiting.note,
    )


def _nothing() -> None:
    """Do nothing: what comes behind everything else in a thread."""


def _ended_without_a_word(journal: Path) -> bool:
    """Tell whether the last run to begin here is not on record as stopped; no run at all has nothing to say.

    Raises `JournalError`.
    """
    kinds = frozenset({"started", "stopped"})
    last = ""
    for most in (END_LOOKED_AT_BYTES, None):
        for entry in journal_entries(journal, kinds, most):
            last = entry.event
        if last:
            break
    return last == "started"


def _numbering(kind: MessageType) -> Numbering:
    return Numbering.RISING if issubclass(kind, FuturesTrade) else Numbering.BY_ONE


def _lower_priority() -> None:
    """Let sealing use only the processor time that collecting leaves (on Linux a thread has its own priority)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


# --- One run from beginning to end -----------------------------------------------------------------------------------

Show = Callable[[Callable[[], status.Snapshot]], contextlib.AbstractAsyncContextManager[None]]
"""Shows the state while collecting goes on: given how to ask for it, returns what to enter."""


async def collect(config: Config, stop: asyncio.Event, show: Show | None = None) -> Summary:
    """Collect what `config` names until `stop` is set, and return what was done.

    Raises `StartError` where it cannot begin, `ConfigError` for a data directory that cannot be written, and
    `SegmentError` for files in use or a disk that refuses; then, too, everything that could be saved was.
    """
    newest: deque[status.Snapshot] = deque(maxlen=1)
    prepare_loop(asyncio.get_running_loop())
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(_metrics_served(config, lambda: newest[0] if newest else None))
        happenings = Happenings(Journal(config.data_dir / "journal.jsonl"))
        alerts = _alerts(config, happenings, newest)
        if alerts is not None:
            stack.push_async_callback(asyncio.to_thread, alerts.stop)
        found = venues(config)
        for venue in found:
            stack.push_async_callback(venue.rest.close)
        collector = Collector(config, found, happenings)
        stack.push_async_callback(collector.release)
        if alerts is not None:
            collector.channels = alerts.states
            stack.push_async_callback(asyncio.to_thread, alerts.stop)  # before the journal is closed
            collector.has_feeds = partial(alerts.keep_in, config.data_dir)
        async with _status_kept(collector, newest), _supervised(collector, stop):
            try:
                await collector.run(stop, show)
            except ExceptionGroup as failed:
                raise _first_of(failed) from failed
            finally:
                summary = await collector.close()
        return summary


def prepare_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Give the loop threads enough for names that resolve slowly, and let what nobody awaits be told in one line.

    Names are looked up in the loop's own threads, of which there are six on two cores: a name server that does not
    answer would hold up all else that is done there, the status file first.
    """
    loop.set_default_executor(ThreadPoolExecutor(THREADS_ASIDE, "aside"))
    loop.set_exception_handler(_tell_stray)


def _tell_stray(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tell of a failure that stopped nothing, because nobody waited for what failed."""
    error = context.get("exception")
    what = f"{type(error).__name__}: {error}" if error is not None else ""
    logger.error("Not foreseen, and it has stopped nothing: {} {}", context["message"], " ".join(what.split()))
    logger.opt(exception=error).debug("{}", context["message"])


def _alerts(config: Config, happenings: Happenings, newest: Sequence[status.Snapshot]) -> Alerts | None:
    """Begin to tell people what happens, where channels are configured. Raises `ConfigError`."""
    if not config.telegram_token.get_secret_value() and not config.alert_urls:
        return None

    def heartbeat() -> tuple[str, ...]:
        if not newest:
            return "it waits for the exchange's list of symbols", "nothing is collected yet"
        verdict = status.judge(newest[0], time.time_ns(), pid_alive=True)
        return verdict.summary, *verdict.troubles, *verdict.unclear

    def on_channel(event: str, channel: str, detail: str) -> None:
        happenings.tell(event, channel, detail=detail)

    alerts = Alerts(config, heartbeat, on_channel)
    happenings.also = alerts.note
    alerts.start()
    return alerts


@contextlib.contextmanager
def _metrics_served(config: Config, newest: Callable[[], status.Snapshot | None]) -> Iterator[None]:
    """Serve metrics where that is configured. Raises `StartError`."""
    if config.metrics_port is None:
        yield
        return
    from tickcollect.metrics import MetricsError, MetricsServer  # noqa: PLC0415 - only those who want it pay for it

    try:
        server = MetricsServer(config.metrics_address, config.metrics_port, newest)
    except MetricsError as error:
        raise StartError(str(error)) from error
    try:
        yield
    finally:
        server.close()


def _first_of(failed: ExceptionGroup[Exception]) -> Exception:
    """Return what failed first in a task group; the tasks beside it were then cancelled."""
    first = failed.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


async def _first_set(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


@contextlib.asynccontextmanager
async def _unseen(_: Callable[[], status.Snapshot]) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def _status_kept(collector: Collector, newest: deque[status.Snapshot]) -> AsyncIterator[None]:
    """Write the status file every second, and once more at the end. That it cannot be written stops nothing else.

    What was written last is in `newest`, for whoever else tells of it.
    """
    file: status.StatusFile | None = None
    may_write = collector.may_write

    async def keep_writing() -> None:
        nonlocal file
        told = False
        while True:
            newest.append(collector.snapshot())
            try:
                if may_write.is_set() and file is None:
                    file = await asyncio.to_thread(status.StatusFile, collector.config.data_dir)
                if file is not None:
                    await asyncio.to_thread(file.write, newest[0])
                told = False
            except status.StatusError as error:
                if not told:
                    logger.warning("{}", error)
                told = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_INTERVAL_S):
                    await (may_write.wait() if file is None and not told else asyncio.Event().wait())

    task = asyncio.create_task(keep_writing())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if file is not None:
            with contextlib.suppress(status.StatusError):
                file.finish(collector.snapshot())


@contextlib.asynccontextmanager
async def _supervised(collector: Collector, stop: asyncio.Event) -> AsyncIterator[None]:
    """Tell systemd how it goes, where it has started this process, until all is closed."""
    task = asyncio.create_task(supervise(Notifier.from_environment(os.environ, os.getpid()), collector.signs, stop))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
