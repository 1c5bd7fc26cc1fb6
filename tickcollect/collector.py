"""Puts the path together. Read this first.

    keep (one a connection) ─▶ Inbox ─▶ Writer ─▶ Segments (disk thread) ─▶ sealing (its own thread) ─▶ .csv.zip
                                          │
                                          └─▶ happenings ─▶ journal, log, status

`collect` is the life of one run:

1. Prepare. Ask each exchange for its symbols and refuse what it does not list, before any file is made. Then take the
   feeds' locks and recover their files (`Collector.open`).
2. Run. One task a connection, one writer, and a few that look around now and then: sync, seal, silence, midnight,
   disk, status. All of them are in one `TaskGroup`: none can die unnoticed.
3. Stop in order. Close the sockets, drain the queue, end what waits, sync, write the last status, tell what was done.
   A second signal ends the process at once; the next start recovers.

Slow work never runs in the event loop: appends have a thread, syncs have one, sealing has one with a low priority.
"""

import asyncio
import contextlib
import gc
import math
import os
import random
import re
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import orjson
from loguru import logger

from tickcollect import __version__, gaps, status
from tickcollect.backfill import Backfill, open_gaps
from tickcollect.config import CollectEntry, Config, check_data_dir
from tickcollect.events import MS_PER_DAY, FuturesTrade, MessageType, RowCheck, time_ms, with_fields
from tickcollect.exchanges.binance import (
    MARKETS,
    Decoder,
    ExchangeInfo,
    Link,
    Market,
    exchange_info,
    history_rows,
    history_type,
    links,
    nearest_symbols,
    rest_url_for,
    server_time_ms,
    stream_name,
)
from tickcollect.feed import Inbox, LinkState, Surroundings, keep
from tickcollect.gaps import Ranges
from tickcollect.journal import Journal, JournalError
from tickcollect.journal import read as journal_entries
from tickcollect.recovery import this_boot
from tickcollect.repair import Absent, Found, History, Lost, history_of
from tickcollect.rest import BadRequestError, BlockedError, Budget, Rest, RestError
from tickcollect.segments import (
    Compression,
    FeedPath,
    Lock,
    Numbering,
    OpenFiles,
    Segment,
    SegmentError,
    Segments,
    SyncFailedError,
    lock,
    open_file_limit,
)
from tickcollect.writer import FETCHED_IN_PLACE, FETCHED_WITHIN_S, Feed, Routes, Writer

Result = TypeVar("Result")

PROGRAM = f"tickcollect {__version__}"
USER_AGENT = f"tickcollect/{__version__}"
STATUS_INTERVAL_S = 1.0
LOOK_INTERVAL_S = 1.0
IDLE_END_S = 60.0
"""After a day is over, a feed that has been silent this long has its segment ended, so that it can be sealed."""
SHORTEST_SILENCE_S = 10.0
SILENT_INTERVALS = 20
"""A feed is looked into when it is silent for this many of its usual intervals."""
SUBSCRIBED_AGAIN_S = 5.0
LONGEST_QUIET_CHECK_S = 3600.0
CLOCK_STEP_S = 1.0
CLOCK_INTERVAL_S = 600.0
CLOCK_WRONG_MS = 2000
RENEWALS_SPREAD = 0.05
STOP_WITHIN_S = 10.0
DESCRIPTORS_BESIDE_FILES = 100
"""Sockets, locks of the process and what libraries open."""
HAPPENINGS_KEPT = 10_000
"""Happenings that wait for a journal which the disk refuses; older ones are then only in the log."""
QUARANTINE_LIMIT_BYTES = 100_000_000
"""A file of refused messages grows no further than this; after that they are counted only."""
QUARANTINE_KINDS = 1000
"""Reasons that are told and counted each on its own."""
_NUMBERS = re.compile(r"[0-9]+")


class StartError(Exception):
    """Collecting cannot begin, and waiting would not help; the message says what to do."""


class UnknownSymbolError(StartError):
    """Symbols that the exchange does not list."""


# --- What happened -------------------------------------------------------------------------------------------------

HAPPENINGS: dict[str, tuple[str, str]] = {
    "started": ("INFO", "{subject}: collecting {feeds} feeds into {data_dir}"),
    "recovered": ("WARNING", "{subject}: {detail}"),
    "foreign_file": ("WARNING", "{subject}: {file} is not one of its files and was left alone"),
    "continued": ("INFO", "{subject}: goes on after ID {last_id}"),
    "not_trading": ("WARNING", "{subject}: the exchange says {state}, so nothing may come"),
    "connected": ("INFO", "{subject}: connected to {url}, {streams} streams"),
    "disconnected": ("WARNING", "{subject}: {reason}. Next attempt in {retry_in_s} s. {remedy}"),
    "cannot_connect": ("WARNING", "{subject}: {reason}. Next attempt in {retry_in_s} s. {remedy}"),
    "renewing": ("INFO", "{subject}: a new connection to {url} is opened beside the old one, because {reason}"),
    "renewed": ("INFO", "{subject}: the new connection to {url} delivers, the old one is closed"),
    "joined": (
        "DEBUG",
        "{subject}: connection {connection} begins at {first_id}, the one before had come to {last_id}",
    ),
    "missed_by_one": ("INFO", "{subject}: {url} missed {first_id} to {last_id}; another connection brought them"),
    "subscription_refused": ("ERROR", "{subject}: the exchange refuses {streams}: {message} (code {code})"),
    "silent": ("ERROR", "{subject}: no data for {seconds} s although the exchange has IDs up to {exchange_id}"),
    "quiet": ("INFO", "{subject}: no data for {seconds} s, and the exchange has none either"),
    "silence_unclear": ("WARNING", "{subject}: no data for {seconds} s, and the exchange cannot be asked: {detail}"),
    "unknown_message": ("WARNING", "{subject}: sends messages of a kind that was not asked for: {name}"),
    "refused_message": ("WARNING", "{subject}: a message was put into quarantine: {reason}"),
    "quarantine_failed": ("ERROR", "{subject}: refused messages cannot be kept and are only counted: {detail}"),
    "gap": ("WARNING", "{subject}: {count} IDs are missing, {first_id} to {last_id}"),
    "filled": ("INFO", "{subject}: {first_id} to {last_id} filled with {rows} rows of {source} in {seconds} s"),
    "fill_waits": (
        "WARNING",
        "{subject}: {first_id} to {last_id} cannot be filled yet: {detail} Again in {again_in_s:.0f} s",
    ),
    "absent": ("INFO", "{subject}: {count} IDs were never published by the exchange, {first_id} to {last_id}"),
    "lost": ("ERROR", "{subject}: {count} IDs are lost, {first_id} to {last_id}: {reason}"),
    "numbering_restarted": ("WARNING", "{subject}: numbering began anew at {first_id} after {last_id}"),
    "late_rows": ("WARNING", "{subject}: {count} rows came after their gap was declared, {first_id} to {last_id}"),
    "disk_trouble": ("ERROR", "{subject}: {detail} Collecting waits, and tries again every second."),
    "disk_again": ("INFO", "{subject}: {detail}"),
    "disk_low": ("WARNING", "{subject}: only {free_mb} MB are free"),
    "file_lost": ("ERROR", "{subject}: {detail}"),
    "sync_failed": ("ERROR", "{subject}: {detail} The rows {first_id} to {last_id} are not safe and count as missing."),
    "sealed": ("INFO", "{subject}: sealed {file}, {rows} rows, {bytes} bytes"),
    "seal_failed": ("ERROR", "{subject}: {detail}"),
    "clock_stepped": ("WARNING", "{subject}: its clock was set by {seconds} s; times of arrival step with it"),
    "clock_offset": ("DEBUG", "{subject}: its clock is {offset_ms} ms ahead of this machine's"),
    "clock_wrong": ("WARNING", "{subject}: this machine's clock is wrong by {offset_ms} ms; run an NTP client"),
    "stopped": ("INFO", "{subject}: stopped after {rows} rows"),
}
"""Every happening: how loud it is, and how it reads. The journal keeps the facts."""


@dataclass
class Happenings:
    """What happened: logged at once, kept for the journal until a thread of the disk writes it."""

    journal: Journal
    _waiting: deque[tuple[str, dict[str, object]]] = field(default_factory=lambda: deque(maxlen=HAPPENINGS_KEPT))
    refused: str = ""
    """Why the journal cannot be written at present; empty while it can."""
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, event: str, subject: str, /, **facts: object) -> None:
        """Say that something happened; from any thread."""
        level, text = HAPPENINGS[event]
        logger.log(level, "{}", text.format(subject=subject, **facts).strip())
        self._waiting.append((event, {"subject": subject, **facts}))

    def write(self) -> None:
        """Append what waits to the journal; what the disk refuses stays waiting. From any thread, not from the loop."""
        with self._writing:
            try:
                while self._waiting:
                    event, facts = self._waiting[0]
                    self.journal.append(event, **facts)
                    self._waiting.popleft()
            except JournalError as error:
                self._note_refusal(error)
            else:
                self.refused = ""

    def sync(self) -> None:
        """Append what waits, and make the journal safe from power loss."""
        self.write()
        try:
            self.journal.sync()
        except JournalError as error:
            self._note_refusal(error)

    def _note_refusal(self, error: JournalError) -> None:
        if not self.refused:
            logger.error("{}", error)
        self.refused = str(error)


@dataclass
class Quarantine:
    """Keeps refused messages, one JSON line each, in a file an exchange."""

    directory: Path
    tell: Callable[..., None]
    time_ns: Callable[[], int]
    counts: dict[str, int] = field(default_factory=dict)
    """By exchange and kind of reason, at most a few more than `QUARANTINE_KINDS`."""
    failing: bool = False
    """The disk refused the last message; it was counted only."""

    def keep(self, exchange: str, payload: bytes, reason: str) -> None:
        """Keep one message with its reason; the first of each kind is told, all are counted."""
        kind = f"{exchange}: {_NUMBERS.sub('#', reason.split(' - ', maxsplit=1)[0])[:60]}"
        if kind not in self.counts:
            if len(self.counts) < QUARANTINE_KINDS:
                self.tell("refused_message", exchange, reason=reason)
            else:
                kind = f"{exchange}: another reason"
        self.counts[kind] = self.counts.get(kind, 0) + 1
        line = {
            "at": _utc_text(self.time_ns()),
            "reason": reason,
            "message": payload[:100_000].decode("utf-8", "backslashreplace"),
        }
        try:
            self._append(exchange, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        except OSError as error:
            if not self.failing:
                self.tell("quarantine_failed", exchange, detail=f"{self.directory}: {error.strerror}")
            self.failing = True
        else:
            self.failing = False

    def _append(self, exchange: str, line: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{exchange}.jsonl").open("ab") as file:
            if file.tell() < QUARANTINE_LIMIT_BYTES:
                file.write(line)

    @property
    def total(self) -> int:
        """How many messages were refused in this run."""
        return sum(self.counts.values())


def _utc_text(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- 1. Prepare ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Venue:
    """One address of one exchange, and what is collected there."""

    market: Market
    ws_url: str | None
    rest: Rest
    entries: tuple[CollectEntry, ...]
    budget: Budget

    @property
    def feeds(self) -> list[tuple[str, str]]:
        """Pairs of stream and symbol."""
        return [(entry.stream, symbol) for entry in self.entries for symbol in entry.symbols]


def venues(config: Config) -> list[Venue]:
    """Group what shall be collected by exchange and address; USD-M and COIN-M share one budget (2026-06-24)."""
    grouped: dict[tuple[str, str | None, str], list[CollectEntry]] = {}
    for entry in config.collect:
        market = MARKETS[entry.exchange]
        rest_url = entry.rest_url or rest_url_for(market, entry.ws_url)
        grouped.setdefault((entry.exchange, entry.ws_url, rest_url), []).append(entry)
    budgets: dict[str, Budget] = {}
    found = []
    proxy = config.proxy.get_secret_value() if config.proxy else None
    for (exchange, ws_url, rest_url), entries in grouped.items():
        market = MARKETS[exchange]
        pool = "spot" if exchange == "binance" else "futures"
        budget = budgets.setdefault(pool, Budget(market.weight_per_minute, config.rest_share))
        rest = Rest(rest_url, budget=budget, proxy=proxy, user_agent=USER_AGENT)
        found.append(Venue(market, ws_url, rest, tuple(entries), budget))
    return found


async def ask_symbols(venue: Venue) -> ExchangeInfo:
    """Return the exchange's list of symbols, trying again with patience where that can help.

    Raises `StartError` where it cannot.
    """
    market = venue.market
    delay_s = 2.0
    while True:
        try:
            body = await venue.rest.get(f"{market.rest_prefix}/exchangeInfo", weight=market.exchange_info_weight)
            return exchange_info(market, body)
        except (BlockedError, BadRequestError) as error:
            raise StartError(f"{market.name}: {error}") from error
        except (RestError, ValueError) as error:
            wait_s = max(delay_s, getattr(error, "retry_after_s", None) or 0.0)
            logger.error("{}: {} Next attempt in {:.0f} s.", market.name, error, wait_s)
        await asyncio.sleep(wait_s)
        delay_s = min(delay_s * 2, 60.0)


def check_symbols(venue: Venue, info: ExchangeInfo) -> None:
    """Refuse symbols that the exchange does not list, all of them at once, each with its nearest names."""
    known = list(info.statuses)
    lines = []
    for stream, symbol in venue.feeds:
        if symbol not in info.statuses:
            near = nearest_symbols(symbol, known)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; the exchange lists no similar name"
            lines.append(f"{venue.market.name} {stream}: {symbol} is not a symbol of this exchange{hint}")
    if lines:
        raise UnknownSymbolError("\n".join(lines))


# --- 2. Run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What one run did."""

    rows: int
    gaps: int
    missing: int
    filled: int
    copies: int
    refused: int
    files: Sequence[Path]
    """Files that this run wrote to or sealed, as they lie there now."""
    seconds: float


@dataclass
class Silence:
    """A feed's silence: since when, and what was done about it."""

    since_s: float = -math.inf
    check_after_s: float = 0.0
    """How long it may last before the exchange is asked (again)."""
    newest_id: int | None = None
    """The exchange's newest ID when it was asked before: only a newer one shows that the market trades."""
    asked_again: bool = False
    """Whether the stream was subscribed a second time."""


class Collector:
    """The running parts of one collection."""

    def __init__(self, config: Config, venue_infos: Sequence[tuple[Venue, ExchangeInfo]]) -> None:
        self.config = config
        self.started_ns = time.time_ns()
        self.started_s = time.monotonic()
        self.state: status.State = "starting"
        self.inbox = Inbox(config.queue_rows)
        self.happenings = Happenings(Journal(config.data_dir / "journal.jsonl"))
        self.tell = self.happenings.tell
        self.quarantine = Quarantine(config.data_dir / "quarantine", self.tell, time.time_ns)
        self.feeds: list[Feed] = []
        self.links: dict[LinkState, Venue] = {}
        self.decoders: dict[LinkState, Decoder] = {}
        self.routes: dict[LinkState, Routes] = {}
        self.sealed: list[Path] = []
        self.sealing: asyncio.Queue[tuple[Feed, Segment]] = asyncio.Queue()
        self.sealing_now: asyncio.Future[None] | None = None
        self.disk_free = 0
        self.disk_low = False
        self.silences: dict[Feed, Silence] = {}
        self.histories: dict[Feed, History] = {}
        self.backfills: dict[Feed, Backfill] = {}
        self._fetching: set[asyncio.Task[None]] = set()
        self.clock_offsets_ms: dict[str, int] = {}
        self._unsealed: dict[Feed, Ranges] = {}
        self.process = status.process_identity(os.getpid())
        self._rates: dict[str, status.Rate] = {}
        self._disk_rate = status.Rate(window_s=600.0)
        self._sealed_ratio = 1.0
        self.sealed_counts: Counter[Feed] = Counter()
        self._uniform = random.SystemRandom().uniform
        self._loop = asyncio.get_running_loop()
        self._locks: list[Lock] = []
        self._pool = OpenFiles(
            open_file_limit(DESCRIPTORS_BESIDE_FILES + sum(len(venue.feeds) for venue, _ in venue_infos))
        )
        self._venues = venue_infos
        self.disk = ThreadPoolExecutor(1, "disk")
        self.syncer = ThreadPoolExecutor(1, "sync")
        self.sealer = ThreadPoolExecutor(1, "seal", initializer=_lower_priority)
        self.writer = Writer(
            self.inbox,
            self.routes,
            self.disk,
            self.tell,
            self.quarantine.keep,
            self._ended,
            self.happenings.write,
            fetch=self._fetch if config.backfill else None,
            fetch_later=self._fetch_later,
            miss=self._miss,
        )

    async def open(self) -> None:
        """Lock and recover every feed's files, in the disk thread. Raises `SegmentError`."""
        for venue, info in self._venues:
            await self._loop.run_in_executor(self.disk, self._open_venue, venue, info)
        await self._loop.run_in_executor(self.disk, self._take_up_gaps)
        for feed in self.feeds:
            for first, last in list(feed.open.spans):
                self._fetch_later(feed, first, last)
        self.tell("started", PROGRAM, feeds=len(self.feeds), data_dir=str(self.config.data_dir))

    def _open_venue(self, venue: Venue, info: ExchangeInfo) -> None:
        by_name: dict[str, Feed] = {}
        backfill = Backfill(
            self.histories.__getitem__, self._segments_of, self.writer.checked, self.disk, self.tell, self._ended
        )
        for stream, symbol in venue.feeds:
            feed = self._open_feed(venue, stream, symbol)
            self.backfills[feed] = backfill
            self.histories[feed] = history_of(
                venue.rest,
                venue.market,
                stream,
                symbol,
                extra_fields=self.config.extra_columns,
                api_key=self.config.binance_api_key.get_secret_value(),
            )
            by_name[stream_name(symbol, stream)] = feed
            self.feeds.append(feed)
            state = info.statuses[symbol]
            if state != "TRADING":
                self.tell("not_trading", feed.name, state=state)
        for copy in range(self.config.redundancy):
            ws_url = venue.ws_url or (venue.market.ws_url, venue.market.second_ws_url)[copy]
            for link in links(venue.market, venue.feeds, ws_url):
                self._plan_link(venue, link, by_name)

    def _take_up_gaps(self) -> None:
        """Find the gaps that earlier runs left open."""
        by_name = {feed.name: feed for feed in self.feeds}
        journal = self.config.data_dir / "journal.jsonl"
        if not journal.exists():
            return
        for name, ranges in open_gaps(journal_entries(journal)).items():
            feed = by_name.get(name)
            if feed is None:
                continue
            for first, last in (*_sealed_ids(feed).spans, *self._unsealed[feed].spans):
                ranges.remove(first, last)
            for first, last in ranges.spans:
                feed.open.add(first, last)

    # Gaps

    def _fetch(self, feed: Feed, holes: Sequence[tuple[int, int]]) -> None:
        """Ask history for holes that are held open; the answer goes to the writer."""
        task = asyncio.ensure_future(self._fetch_in_place(feed, holes))
        self._fetching.add(task)
        task.add_done_callback(self._fetching.discard)

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
        started_s = self._loop.time()
        history = self.histories[feed]
        rows = 0
        async for outcome in history.fetch(first, last):
            match outcome:
                case Found(found):
                    rows += len(found)
                    self.writer.fill(feed, list(found), self._loop.time())
                case Absent(low, high):
                    self.writer.note_absent(feed, low, high, self._loop.time())
                case Lost():
                    return
        seconds = round(self._loop.time() - started_s, 1)
        self.tell("filled", feed.name, first_id=first, last_id=last, rows=rows, source=history.path, seconds=seconds)

    def _fetch_later(self, feed: Feed, first: int, last: int) -> None:
        """Leave a declared gap to the background, or say why nobody will look for it."""
        if not self.config.backfill:
            feed.lost += last - first + 1
            feed.open.remove(first, last)
            reason = "not asked for (BACKFILL is false)"
            self.tell("lost", feed.name, first_id=first, last_id=last, count=last - first + 1, reason=reason)
            return
        self.backfills[feed].add(feed, first, last)

    def _miss(self, feed: Feed, first: int, last: int) -> None:
        """Fetch again what was in a file and is gone with it; from any thread but the loop's."""
        self._loop.call_soon_threadsafe(self._note_missing, feed, first, last)

    def _note_missing(self, feed: Feed, first: int, last: int) -> None:
        feed.open.add(first, last)
        self._fetch_later(feed, first, last)

    # Connections

    def _plan_link(self, venue: Venue, link: Link, by_name: dict[str, Feed]) -> None:
        state = LinkState(venue.market.name, link)
        self.links[state] = venue
        streams = sorted({by_name[name].path.stream for name in link.streams})
        self.decoders[state] = Decoder(venue.market, self.config.extra_columns, streams)
        routes: dict[str, dict[str, Feed]] = {stream: {} for stream in streams}
        for name in link.streams:
            routes[by_name[name].path.stream][by_name[name].path.symbol] = by_name[name]
        self.routes[state] = routes

    def _open_feed(self, venue: Venue, stream: str, symbol: str) -> Feed:
        config = self.config
        path = FeedPath(venue.market.name, stream, symbol)
        kind = venue.market.message_types[stream]
        self._locks.append(lock(config.data_dir, path, _utc_text(self.started_ns)))
        segments = self._new_segments(path, kind)
        feed = Feed(
            path,
            with_fields(kind, config.extra_columns),
            RowCheck(stream, symbol, len(config.extra_columns)),
            gaps.Sequence(config.gap_patience_s),
            segments,
            config.extra_columns,
            write_not_trades=config.not_trades == "write",
        )
        self._recover(feed)
        return feed

    def _new_segments(self, path: FeedPath, kind: MessageType) -> Segments:
        return Segments(
            self.config.data_dir,
            path,
            rotate_size=self.config.rotate_size,
            pool=self._pool,
            compression=Compression(self.config.compression),
            numbering=Numbering.RISING if issubclass(kind, FuturesTrade) else Numbering.BY_ONE,
            extra_columns=len(self.config.extra_columns),
        )

    def _segments_of(self, feed: Feed) -> Segments:
        """Return another set of files in a feed's directory, for what is fetched in the background."""
        return self._new_segments(feed.path, feed.kind)

    def _recover(self, feed: Feed) -> None:
        recovered = feed.segments.recover(this_boot())
        self._unsealed[feed] = Ranges()
        for segment in (*recovered.finished, *([recovered.open] if recovered.open else [])):
            self._unsealed[feed].add(segment.first_id, segment.last_id)
        for line in recovered.lines:
            self.tell("recovered", feed.name, detail=line)
        for path in recovered.foreign:
            self.tell("foreign_file", feed.name, file=str(path))
        for first, last in recovered.holes:
            feed.gaps += 1
            feed.open.add(first, last)
            self.tell("gap", feed.name, first_id=first, last_id=last, count=last - first + 1)
        if recovered.last_id is not None:
            feed.sequence.next_id = recovered.last_id + 1
            feed.sequence.newest_time = recovered.last_time or 0
            self.tell("continued", feed.name, last_id=recovered.last_id)
        self._ended(recovered.finished, feed)

    def _ended(self, segments: Iterable[Segment], feed: Feed) -> None:
        """Queue segments for sealing; from any thread but the loop's.

        What ended them is put on record first: whoever is killed after the next row has been appended behind a gap
        leaves a journal that knows the gap.
        """
        self.happenings.write()
        for segment in segments:
            self._loop.call_soon_threadsafe(self.sealing.put_nowait, (feed, segment))

    async def run(self, stop: asyncio.Event) -> None:
        """Collect until `stop` is set, then stop in order."""
        self.state = "running"
        gc.freeze()  # what exists now stays: the collector of cycles need not look at it again
        background = [self._sync(), self._seal(), self._look_around(), self._watch_clocks()]
        around = Surroundings(
            self.inbox,
            time.time_ns,
            self._uniform,
            USER_AGENT,
            self._renew_in_s,
            self.config.proxy.get_secret_value() if self.config.proxy else None,
        )
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self.writer.run())
            connections = [tasks.create_task(keep(state, self.decoders[state], around)) for state in self.links]
            background += [backfill.run() for backfill in set(self.backfills.values())]
            helpers = [tasks.create_task(job) for job in background]
            await stop.wait()
            self.state = "stopping"
            for task in (*connections, *self._fetching):
                task.cancel()
            await asyncio.wait(connections)
            self.writer.stop()
            await writing
            for task in helpers:
                task.cancel()

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
        """Hand over what is held, make it safe, seal if asked, and tell what was done."""
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await self.writer.finish(self._loop.time())
        except (TimeoutError, SegmentError) as error:
            logger.error("Not all rows could be written at the end: {}", str(error) or "the disk does not answer")
        if self.sealing_now is not None:
            await self.sealing_now
        if self.config.seal_at_stop:
            await self._seal_all()
        await self._loop.run_in_executor(self.syncer, self._sync_all)
        summary = self._summary()
        self.tell(
            "stopped",
            PROGRAM,
            rows=summary.rows,
            gaps=summary.gaps,
            missing=summary.missing,
            filled=summary.filled,
            copies=summary.copies,
            refused=summary.refused,
        )
        self.state = "stopped"
        return summary

    async def release(self) -> None:
        """Put on record what was not yet, and give everything back; the locks last, when nothing works any more."""
        await self._loop.run_in_executor(self.syncer, self.happenings.sync)
        for feed in self.feeds:
            with contextlib.suppress(SegmentError):
                feed.segments.close()
        for executor in (self.disk, self.syncer, self.sealer):
            executor.shutdown(wait=False, cancel_futures=True)
        for held in self._locks:
            held.release()

    # --- Beside the path -------------------------------------------------------------------------------------------

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(self.config.sync_interval_s)
            await self._loop.run_in_executor(self.syncer, self._sync_all)

    def _sync_all(self) -> None:
        self.happenings.sync()
        for feed in self.feeds:
            try:
                feed.segments.sync()
            except SyncFailedError as error:
                self._tell_unsafe(feed, error)
                if error.remaining is not None:
                    self._ended([error.remaining], feed)

    def _tell_unsafe(self, feed: Feed, error: SyncFailedError) -> None:
        self.tell("sync_failed", feed.name, detail=str(error), first_id=error.first_id, last_id=error.last_id)
        self._miss(feed, error.first_id, error.last_id)

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
            self._tell_unsafe(feed, error)
        except SegmentError as error:
            self.tell("seal_failed", feed.name, detail=str(error))
        else:
            self.sealed.append(sealed.path)
            self.sealed_counts[feed] += 1
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
            )

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
        """Look after silence, midnight and the disk."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            now_s = self._loop.time()
            self._end_finished_days(now_s, time.time())
            self._look_at_disk()
            for state, venue in self.links.items():
                for feed in self._feeds_of(state):
                    if self._is_silent(feed, state, now_s):
                        await self._look_into_silence(feed, state, venue, now_s)

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
        self.disk_low = low

    def _is_silent(self, feed: Feed, state: LinkState, now_s: float) -> bool:
        """Tell whether a feed has been silent for so long, by its own rate, that the exchange should be asked."""
        if not state.connected:
            return False
        silence = self.silences.setdefault(feed, Silence())
        since_s = max(feed.last_seen_s, state.connected_at_s)
        if silence.since_s != since_s:
            silence.since_s = since_s
            silence.asked_again = False
            usual_s = feed.interval_s * SILENT_INTERVALS
            silence.check_after_s = (
                min(max(usual_s, SHORTEST_SILENCE_S), LONGEST_QUIET_CHECK_S)
                if feed.last_seen_s > state.connected_at_s
                else self.config.first_data_s
            )
        return now_s - since_s > silence.check_after_s

    async def _look_into_silence(self, feed: Feed, state: LinkState, venue: Venue, now_s: float) -> None:
        """Ask once whether the market has traded past our last ID, before anybody is alarmed."""
        silence = self.silences[feed]
        seconds = round(now_s - silence.since_s)
        source = venue.market.latest[feed.path.stream]
        params: dict[str, str | int] = {"symbol": feed.path.symbol, "limit": 1}
        try:
            body = await venue.rest.get(venue.market.rest_prefix + source.path, params, weight=source.weight)
            kind = history_type(venue.market, feed.path.stream, feed.path.symbol)
            newest = max(kind.ids(history_rows(kind, body)), default=None)
        except (RestError, ValueError) as error:
            silence.check_after_s = seconds + self.config.first_data_s
            self.tell("silence_unclear", feed.name, seconds=seconds, detail=str(error))
            return
        if feed.last_seen_s > silence.since_s:
            return
        self._fetch_unseen(feed, newest)
        known = max(
            (id_ for id_ in (feed.sequence.newest_known_id, silence.newest_id) if id_ is not None), default=None
        )
        silence.newest_id = newest
        if newest is None or known is None or newest <= known:
            if known is not None:
                self.tell("quiet", feed.name, seconds=seconds)
            silence.check_after_s = min(seconds * 2.0, seconds + LONGEST_QUIET_CHECK_S)
            return
        self._end_silence(feed, state, newest, seconds)

    def _fetch_unseen(self, feed: Feed, newest_id: int | None) -> None:
        """Fetch what the exchange has behind our last ID: a slow market's next row may be long in coming."""
        known = feed.sequence.newest_known_id
        if newest_id is not None and known is not None and self.config.backfill:
            missing = newest_id - known
            if 0 < missing <= FETCHED_IN_PLACE:
                self._fetch(feed, [(known + 1, newest_id)])

    def _end_silence(self, feed: Feed, state: LinkState, newest_id: int, seconds: int) -> None:
        """Do something about a feed that is silent while its market trades: subscribe again, then connect anew."""
        silence = self.silences[feed]
        if state.current is None:
            return
        if feed.last_seen_s > state.connected_at_s and not silence.asked_again:
            silence.asked_again = True
            silence.check_after_s = seconds + SUBSCRIBED_AGAIN_S
            state.current.subscribe_again(stream_name(feed.path.symbol, feed.path.stream))
            return
        self.tell("silent", feed.name, seconds=seconds, exchange_id=newest_id)
        state.current.drop(f"{feed.path.stream} of {feed.path.symbol} is silent although its market trades")

    # --- Clocks ----------------------------------------------------------------------------------------------------

    async def _watch_clocks(self) -> None:
        """Notice steps of this machine's clock, and measure its offset to the exchanges'."""
        before_s = time.time() - time.monotonic()
        measured_s = -math.inf
        while True:
            offset_s = time.time() - time.monotonic()
            if abs(offset_s - before_s) > CLOCK_STEP_S:
                self.tell("clock_stepped", "this machine", seconds=round(offset_s - before_s, 1))
                measured_s = -math.inf
            before_s = offset_s
            if time.monotonic() - measured_s > CLOCK_INTERVAL_S:
                measured_s = time.monotonic()
                for venue, _ in self._venues:
                    await self._measure_clock(venue)
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _measure_clock(self, venue: Venue) -> None:
        started_s, asked_s = time.time(), time.monotonic()
        try:
            body = await venue.rest.get(f"{venue.market.rest_prefix}/time", weight=1)
            server_s = server_time_ms(body) / 1000
        except (RestError, ValueError) as error:
            logger.debug("{}: its clock cannot be asked: {}", venue.market.name, error)
            return
        took_s = time.monotonic() - asked_s
        offset_ms = round((server_s - (started_s + took_s / 2)) * 1000)
        self.clock_offsets_ms[venue.market.name] = offset_ms
        event = "clock_offset" if abs(offset_ms) < CLOCK_WRONG_MS else "clock_wrong"
        self.tell(event, venue.market.name, offset_ms=offset_ms, round_trip_ms=round(took_s * 1000))

    # --- What others may know --------------------------------------------------------------------------------------

    def snapshot(self) -> status.Snapshot:
        """Return the present state for the status file and the live view."""
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
            feeds=[self._feed_status(feed, connected=connected[feed], now_s=now_s) for feed in self.feeds],
            queue_rows=self.inbox.waiting,
            queue_limit=self.inbox.limit,
            reconnects=sum(max(0, state.connections - 1) for state in self.links),
            sealing=self.sealing.qsize() + (self.sealing_now is not None),
            disk_free_bytes=self.disk_free,
            disk_hours_left=self._disk_hours_left(now_s),
            problems=self._problems(),
            messages_per_s=self._rate("", sum(state.messages for state in self.links), now_s),
        )

    def _feed_status(self, feed: Feed, *, connected: bool, now_s: float) -> status.FeedStatus:
        segment = feed.segments.open_segment
        last = feed.last
        return status.FeedStatus(
            exchange=feed.path.exchange,
            stream=feed.path.stream,
            symbol=feed.path.symbol,
            connected=connected,
            rows=feed.rows,
            rows_per_s=self._rate(feed.name, feed.rows, now_s),
            last_id=None if feed.sequence.next_id is None else feed.sequence.next_id - 1,
            last_price="" if last is None else last.p,
            lag_ms=None if last is None or last.E == "" else feed.last_received_ns / 1e6 - time_ms(last.E),
            last_row_ns=feed.last_received_ns or None,
            open_gaps=len(feed.open.spans),
            missing_ids=feed.open.count + feed.lost,
            copies=feed.copies,
            refused=feed.refused,
            not_trades=feed.not_trades,
            file="" if segment is None else str(segment.path.relative_to(self.config.data_dir)),
            file_bytes=0 if segment is None else segment.size,
            files_sealed=self.sealed_counts[feed],
            note=self._note(feed),
        )

    def _note(self, feed: Feed) -> str:
        if self.backfills[feed].at_work.startswith(f"{feed.name}:"):
            return "filling a gap"
        return "waiting for history" if feed.sequence.held else ""

    def _disk_hours_left(self, now_s: float) -> float | None:
        """Return how long the free disk lasts at the present rate, with sealing at the ratio seen so far."""
        per_s = self._disk_rate.update(self.writer.bytes_written, now_s) * self._sealed_ratio
        return self.disk_free / per_s / 3600 if per_s > 0 and self.disk_free else None

    def _rate(self, name: str, total: int, now_s: float) -> float:
        return self._rates.setdefault(name, status.Rate()).update(total, now_s)

    def _problems(self) -> list[str]:
        found = [] if not self.writer.disk_trouble else [self.writer.disk_trouble]
        if self.happenings.refused:
            found.append(self.happenings.refused)
        return found

    def _summary(self) -> Summary:
        open_files = [feed.segments.open_segment.path for feed in self.feeds if feed.segments.open_segment]
        return Summary(
            rows=sum(feed.rows for feed in self.feeds),
            gaps=sum(feed.gaps for feed in self.feeds),
            missing=sum(feed.open.count + feed.lost for feed in self.feeds),
            filled=sum(feed.filled for feed in self.feeds),
            copies=sum(feed.copies for feed in self.feeds),
            refused=self.quarantine.total,
            files=[*self.sealed, *open_files],
            seconds=time.monotonic() - self.started_s,
        )


def _sealed_ids(feed: Feed) -> Ranges:
    """Return the IDs that a feed's sealed files hold, by their names."""
    ranges = Ranges()
    for path in feed.segments.directory.iterdir():
        name = feed.path.parse(path.name)
        if name is not None and name.last_id is not None and not name.temporary:
            ranges.add(name.first_id, name.last_id)
    return ranges


def _lower_priority() -> None:
    """Let sealing use only the processor time that collecting leaves (on Linux a thread has its own priority)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


# --- 3. One run from beginning to end ------------------------------------------------------------------------------

Show = Callable[[Callable[[], status.Snapshot]], contextlib.AbstractAsyncContextManager[None]]
"""Shows the state while collecting goes on: given how to ask for it, returns what to enter."""


async def collect(config: Config, stop: asyncio.Event, show: Show | None = None) -> Summary:
    """Collect what `config` names until `stop` is set, and return what was done.

    Raises `StartError` where it cannot begin, `ConfigError` for a data directory that cannot be written, and
    `SegmentError` for files in use or a disk that refuses; then, too, everything that could be saved was.
    """
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for venue in venues(config):
            stack.push_async_callback(venue.rest.close)
            info = await _unless_stopped(ask_symbols(venue), stop)
            if info is None:
                return Summary(0, 0, 0, 0, 0, 0, (), 0.0)
            check_symbols(venue, info)
            venue.budget.limit = info.weight_per_minute
            found.append((venue, info))
        check_data_dir(config.data_dir)
        collector = Collector(config, found)
        stack.push_async_callback(collector.release)
        await collector.open()
        async with _status_kept(collector, config.data_dir):
            try:
                async with (show or _unseen)(collector.snapshot):
                    await collector.run(stop)
            except ExceptionGroup as failed:
                raise _first_of(failed) from failed
            finally:
                summary = await collector.close()
        return summary


def _first_of(failed: ExceptionGroup[Exception]) -> Exception:
    """Return what failed first in a task group; the tasks beside it were then cancelled."""
    first = failed.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


async def _unless_stopped(work: Coroutine[None, None, Result], stop: asyncio.Event) -> Result | None:
    """Return what `work` gives, or None if `stop` is set before."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        stopped.cancel()
        task.cancel()


@contextlib.asynccontextmanager
async def _unseen(_: Callable[[], status.Snapshot]) -> AsyncIterator[None]:
    yield


@contextlib.asynccontextmanager
async def _status_kept(collector: Collector, data_dir: Path) -> AsyncIterator[None]:
    """Write the status file every second, and once more at the end. That it cannot be written stops nothing else."""
    file = await asyncio.to_thread(status.StatusFile, data_dir)

    async def keep_writing() -> None:
        told = False
        while True:
            try:
                await asyncio.to_thread(file.write, collector.snapshot())
                told = False
            except status.StatusError as error:
                if not told:
                    logger.warning("{}", error)
                told = True
            await asyncio.sleep(STATUS_INTERVAL_S)

    task = asyncio.create_task(keep_writing())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        with contextlib.suppress(status.StatusError):
            file.finish(collector.snapshot())
