"""The writer: from the queue to the files, the one place that every row passes.

    Inbox ─▶ group by feed ─▶ format ─▶ check the text ─▶ check the sequence ─▶ append (disk thread)

Rules:

1. A row is formatted and its text checked before its ID counts. A row that fails goes to quarantine, and the hole that
   it leaves is found by its ID like any other.
2. Rows are appended in the order of the sequence; a gap, a restart of the numbering and another day end the segment.
3. Appends happen in one thread of their own, at most every `WRITE_INTERVAL_S`, while the next rows gather. What the
   disk does not take stays here, the queue fills, and the reading stops (`Inbox`): nothing is thrown away. What is
   wrong with one feed's files alone holds up that feed only: it is tried again with backoff, and its rows wait. All
   rows that wait so are bounded in bytes; beyond that they are declared missing, to be had again from history.
4. Whatever is not an ordinary row ends in a count, and in quarantine or as a happening.
5. A small hole is fetched from the exchange's history before it is declared, while its feed's later rows are held; the
   rows of history go through the same checks as live ones (`fill`). What cannot be had so is declared, ends the
   segment, and is left to `backfill`. `filled` is told of rows of history once they are in a file, and of no others.
6. What all feeds together hold so is bounded (`HELD_BYTES`): beyond it the feed that holds most declares its holes.
7. A row that comes after its gap was declared, or for an ID that was thought not to exist, gets a segment of its own
   (`late`, in `backfill`).
8. Days follow the rows' times, so a time that cannot be right must not make a file. Before a row's ID counts, its time
   is held against the row before it and against this machine's clock; `FAR_MS` from both is refused. A clock that did
   not agree with the row before it is no witness: then the next row decides, and the refused one is had again from
   history, which compares it with both its neighbours.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, Protocol

import msgspec

from tickcollect import gaps
from tickcollect.events import (
    KNOWN_TRADES,
    MICROSECONDS_FROM,
    MS_PER_DAY,
    NOT_TRADES,
    RECEIVED_NS,
    FuturesTrade,
    Message,
    MessageType,
    RowCheck,
    day_of,
    field_text,
    time_ms,
)
from tickcollect.exchanges.binance import LONGEST_NAME, Refused, UnknownEvent
from tickcollect.feed import (
    Batch,
    Connected,
    Disconnected,
    Inbox,
    Item,
    LinkState,
    Odd,
    RenewalFailed,
    Renewed,
    Renewing,
    SubscriptionAccepted,
    SubscriptionRefused,
    Unacknowledged,
)
from tickcollect.measured import Meter
from tickcollect.segments import (
    DiskError,
    FeedPath,
    FileLostError,
    NameTakenError,
    OutOfSequenceError,
    Segment,
    Segments,
)

WRITE_INTERVAL_S = 0.02
"""Between two writes while little comes: what a killed process may have received and not yet handed over."""
RETRY_DISK_S = 1.0
HANGING_S = 5.0
"""A write that takes longer is told of: nothing fails, and yet nothing goes on."""
HOLE_CHECK_S = 0.1
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""Between two attempts to write to the files of a feed that alone is refused."""
BLOCKED_BYTES = 64 << 20
"""Rows of such feeds, all together, that wait in memory."""
NAME_FREED_WITHIN_S = 60.0
"""A file in the way of a new one may only wait for its sealing; after this long it is moved aside."""
UNKNOWN_REMEMBERED = 100
"""Kinds of unknown messages that are told, each once; more are only put into quarantine."""
FETCHED_IN_PLACE = 5000
"""IDs that a hole may lack to be fetched while later rows wait: five answers of the exchange."""
FETCHED_WITHIN_S = 20.0
ASK_AGAIN_S = 30.0
PLAUSIBLE_IDS = 1_000_000_000
"""A hole larger than this is a damaged ID until rows prove it: ten days of the busiest market."""
HELD_BYTES = 64_000_000
"""What the rows of all feeds may take in memory while history is asked for the holes before them."""
FAR_MS = MS_PER_DAY
"""Further than this from the feed's rows and from this machine's clock no trade's time can be right: the exchanges keep
theirs to the millisecond, and a machine's clock may be hours off where nobody sets it."""
BEGIN_ASKED = "the exchange has begun its numbering anew, and is asked for what came before the first row here"
SUSPECTED = "a row has a lower ID than those before it: the next one tells whether the numbering has begun anew"
INTERVALS_AVERAGED = 20
IDS_REMEMBERED = 1000
CARRIERS_REMEMBERED = 4
"""Connections a feed: two, and twice that while they are renewed."""


class End:
    """In a feed's pending pieces: the open segment ends here."""


END = End()


@dataclass(frozen=True, slots=True)
class Renumbered:
    """In a feed's pending pieces: the numbering begins anew, with `first_id`, traded at `time`, after `last_id`."""

    first_id: int
    last_id: int
    time: int


@dataclass(frozen=True, slots=True)
class Filled:
    """In a feed's pending pieces: the rows of history with these IDs are handed over here."""

    first: int
    last: int
    source: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LateRows:
    """Rows of one feed, formatted, that came when their place was passed."""

    ids: Sequence[int]
    times: Sequence[int]
    lines: Sequence[str]
    not_trades: AbstractSet[int]
    """Those of `ids` that are no trades."""


@dataclass(slots=True)
class Piece:
    """Rows of one day that follow each other, formatted."""

    day: int
    ids: range | list[int]
    blocks: list[bytes]


@dataclass(slots=True)
class Job:
    """What one feed's files have not taken yet, in order; `trouble` says why, while that concerns this feed alone."""

    pieces: list[Piece | End | Filled | Renumbered] = field(default_factory=list)
    trouble: str = ""
    since_s: float = 0.0
    again_s: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    size: int = 0
    """Bytes of the pieces, counted while there is trouble."""


@dataclass(slots=True, eq=False)
class Feed:
    """One feed while it is collected: its rules, its files, its counts."""

    path: FeedPath
    kind: MessageType
    check: RowCheck
    sequence: gaps.Sequence[str]
    segments: Segments
    extra_columns: tuple[str, ...] = ()
    write_not_trades: bool = False
    pending: list[Piece | End | Filled | Renumbered] = field(default_factory=list)
    """What waits for the disk thread."""
    not_trade_ids: set[int] = field(default_factory=set)
    """IDs of held rows that are not trades."""
    not_in_history: deque[int] = field(default_factory=lambda: deque(maxlen=IDS_REMEMBERED))
    """IDs of the latest rows that history does not list, or perhaps not."""
    open: gaps.Ranges = field(default_factory=gaps.Ranges)
    """IDs known to be missing that history may still give."""
    called_absent: gaps.Ranges = field(default_factory=gaps.Ranges)
    """IDs that history has proved not to exist, or no trades: open to doubt, as it may have erred."""
    unconfirmed: gaps.Ranges = field(default_factory=gaps.Ranges)
    """Those of them from earlier runs, which this run asks for once more."""
    given_up: gaps.Ranges = field(default_factory=gaps.Ranges)
    """IDs that were called lost in this run; should one come after all, it is written."""
    shown: gaps.Shown = field(default_factory=gaps.Shown)
    """IDs that history has shown once not to exist."""
    shown_odd: gaps.Shown = field(default_factory=gaps.Shown)
    """IDs that history has given once with a time that cannot be right."""
    given: gaps.Ranges = field(default_factory=gaps.Ranges)
    """IDs whose rows history gave in place and that are not among the pending pieces yet."""
    given_by: tuple[str, float] = ("", 0.0)
    """Which call gave them, and when it was asked."""
    begun_ms: int = 0
    """The numbering began after this time, if it began in this run."""
    begin_asked_ns: int | None = None
    """Since when it is asked, by the wall clock, what came in a new numbering before its first row that was seen; None
    where that is known."""
    newest_ms: int | None = None
    """The time of the row that was accepted last."""
    plausible: tuple[int, int] = (0, 0)
    """Times, in the rows' own unit, that need no closer look."""
    clock_agrees: bool = False
    """This machine's clock was near the time of the row accepted last."""
    odd: tuple[int, int] | None = None
    """ID and time (ms) of the row before, if it was refused for its time."""
    carried: dict[int, int] = field(default_factory=dict)
    """The last ID that each connection brought."""
    asked: tuple[int, float] = (-1, 0.0)
    """The last hole that history was asked for: its first ID, and when."""
    rows: int = 0
    """Rows handed over to the files."""
    written_id: int | None = None
    """The ID of the newest row that was handed over, in this run or an earlier one; None before the first."""
    filled: int = 0
    """Rows that came from history."""
    absent: int = 0
    """IDs that the exchange never published."""
    lost: int = 0
    """IDs that nobody can give any more."""
    copies: int = 0
    late: int = 0
    refused: int = 0
    not_trades: int = 0
    gaps: int = 0
    restarts: int = 0
    last: Message | None = None
    last_received_ns: int = 0
    interval_s: float = 0.0
    """Mean time between its messages (of one socket read) of late."""
    last_seen_s: float = float("-inf")
    """When the last row came, by the event loop's clock."""
    meter: Meter = field(default_factory=Meter)
    unknown_since_ns: int | None = None
    """Since when it is not known whether IDs are missing, by the wall clock; None while everything up to the newest row
    is known to be here or on record as missing. Kept by `Coverage`."""
    unknown_reason: str = ""
    issued_id: int | None = None
    """The exchange has said more than once that it has rows up to this ID; None where we have what it has."""
    public_ids: tuple[int, int] = (-1, -1)
    """The ID of the newest trade, and that of the newest row behind it that is none."""

    @property
    def newest_id(self) -> int | None:
        """The ID of the newest row that was written or is about to be; None before the first."""
        return None if self.sequence.next_id is None else self.sequence.next_id - 1

    @property
    def newest_public_id(self) -> int | None:
        """The ID of the newest row that the exchange's REST knows too: placeholders are on the stream only."""
        trade_id, id_ = self.public_ids
        return trade_id if id_ == self.newest_id else self.newest_id

    @property
    def held_gaps(self) -> list[tuple[int, int]]:
        """What is missing before rows that are held: not declared yet, and not here either."""
        if not self.sequence.held:
            return []
        return [(first, last) for first, last in self.sequence.holes() if last - first < PLAUSIBLE_IDS]

    @property
    def missing_ids(self) -> int:
        """How many IDs are known not to be in the files."""
        held = sum(last - first + 1 for first, last in self.held_gaps)
        newest = self.sequence.newest_known_id
        ahead = 0 if self.issued_id is None or newest is None else max(0, self.issued_id - newest)
        return self.open.count + self.lost + held + ahead

    @property
    def unknown(self) -> tuple[int | None, str]:
        """Since when, and why, it is not known whether IDs are missing; None and empty where it is."""
        if self.unknown_since_ns is not None:
            return self.unknown_since_ns, self.unknown_reason
        if self.begin_asked_ns is not None:
            return self.begin_asked_ns, BEGIN_ASKED
        return (self.last_received_ns, SUSPECTED) if self.sequence.is_suspecting else (None, "")

    @property
    def has_placeholders(self) -> bool:
        """Whether some of its messages take an ID and are no trades (futures `trade`)."""
        return issubclass(self.kind, FuturesTrade)

    @property
    def name(self) -> str:
        """The feed as people read it."""
        return f"{self.path.exchange}/{self.path.stream}/{self.path.symbol}"


Routes = Mapping[str, Mapping[str, Feed]]
"""The feeds of one link, by stream and symbol."""


class Tell(Protocol):
    """Says that something happened, to the journal and to the log; from any thread."""

    def __call__(self, event: str, subject: str, /, **facts: object) -> None:
        """`subject` is the feed, exchange or file concerned."""


@dataclass
class Writer:
    """Drains the inbox until `stop`; `finish` hands over what is left."""

    inbox: Inbox
    routes: Mapping[LinkState, Routes]
    disk: Executor
    """One thread: all appends of all feeds happen there, in order."""
    tell: Tell
    quarantine: Callable[[str, bytes, str], None]
    """Keep a payload that cannot be used: `quarantine(exchange, payload, reason)`."""
    ended: Callable[[Sequence[Segment], Feed], None]
    """Takes segments that wait for sealing."""
    write_journal: Callable[[], None]
    """Called in the disk thread, before a segment ends at a gap and after each write."""
    fetch: Callable[[Feed, Sequence[tuple[int, int]]], object] | None = None
    """Asks history for small holes; the answer comes by `fill`, `note_lacking` and in any case `settle`."""
    fetch_later: Callable[[Feed, int, int], None] | None = None
    """Leaves a declared gap to the background."""
    find_begin: Callable[[Feed, int, int], None] | None = None
    """Asks for what came in a new numbering before its first row that was seen: its ID, and the old one's newest time
    in ms. The answer comes by `begin_numbering`."""
    note_live: Callable[[Feed, int, int], None] | None = None
    """Told, while it is not known whether IDs of a feed are missing, of a newer row: its connection and its ID."""
    late: Callable[[Feed, LateRows], None] | None = None
    """Takes rows that came when their place was passed, to segments of their own."""
    miss: Callable[[Feed, int, int], None] | None = None
    """Told in the disk thread of rows that were in a file and are gone with it."""
    held_limit: int = HELD_BYTES
    stopping: bool = False
    unconfirmed: dict[Feed, None] = field(default_factory=dict)
    """Feeds of which a row came last that nothing contradicts and none after it confirmed before the end."""
    rows_written: int = 0
    bytes_written: int = 0
    disk_trouble: str = ""
    """Why nothing can be written at the moment; empty while the disk takes rows."""
    _touched: dict[Feed, None] = field(default_factory=dict)
    _waiting: dict[Feed, None] = field(default_factory=dict)
    _jobs: dict[Feed, Job] = field(default_factory=dict)
    """What the disk has not taken yet; it outlives a `flush` that was given up."""
    _unknown: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Move rows from the queue to the files until told to stop, which is between two writes, never inside one."""
        loop = asyncio.get_running_loop()
        while not self.stopping:
            started_s = loop.time()
            for item in await self.inbox.take(HOLE_CHECK_S if self._waiting or self._jobs else None):
                self._accept(item, loop.time())
            self._decide_holes(loop.time())
            await self.flush()
            self.inbox.done()
            if self.inbox.waiting < self.inbox.limit // 2:
                await asyncio.sleep(max(0.0, started_s + WRITE_INTERVAL_S - loop.time()))

    def stop(self) -> None:
        """Let `run` return."""
        self.stopping = True
        self.inbox.wake()

    async def finish(self, now_s: float) -> None:
        """Hand over what the queue and the sequences still hold, at the end of collecting."""
        while True:
            for item in self.inbox.take_now():
                self._accept(item, now_s)
            for feed in self._feeds():
                holes, is_suspecting = feed.sequence.holes(), feed.sequence.is_suspecting
                self._take_steps(feed, feed.sequence.finish())
                if is_suspecting or (holes and (feed.newest_id or 0) <= holes[-1][1]):
                    self.unconfirmed[feed] = None
            await self.flush()
            self.inbox.done()
            if not self.inbox.waiting:  # what is odd is found while a batch is decoded, and put back there
                return

    def unwritten(self) -> dict[Feed, list[int]]:
        """Return the IDs of each feed's rows that no file has taken, in order."""
        ids: defaultdict[Feed, list[int]] = defaultdict(list)
        taken = [(feed, job.pieces) for feed, job in self._jobs.items()]
        for feed, pieces in [*taken, *((feed, feed.pending) for feed in self._touched)]:
            for piece in list(pieces):
                if isinstance(piece, Piece):
                    ids[feed] += piece.ids
        return dict(ids)

    async def flush(self) -> None:
        """Append what is pending, waiting for as long as the disk refuses; not for a feed that alone is refused."""
        for feed in self._touched:
            job = self._jobs.setdefault(feed, Job())
            job.pieces += feed.pending
            job.size += _size_of(feed.pending) if job.trouble else 0
            feed.pending = []
        self._touched.clear()
        loop = asyncio.get_running_loop()
        while True:
            writing = loop.run_in_executor(self.disk, self._write, loop.time())
            done, _ = await asyncio.wait({writing}, timeout=HANGING_S)
            if not done:
                self._note_trouble("disk", f"a write has not returned for {HANGING_S:.0f} s.")
            try:
                await writing
            except DiskError as error:
                self._note_trouble("disk", str(error))
                if self.stopping:
                    raise
                await asyncio.sleep(RETRY_DISK_S)
            else:
                break
        if self.disk_trouble:
            self.disk_trouble = ""
            self.tell("disk_again", "disk", detail="it takes rows again; collecting goes on")

    def _note_trouble(self, subject: str, detail: str) -> None:
        if not self.disk_trouble:
            self.tell("disk_trouble", subject, detail=detail)
        self.disk_trouble = detail

    def _feeds(self) -> Iterable[Feed]:
        return [feed for routes in self.routes.values() for by_symbol in routes.values() for feed in by_symbol.values()]

    # --- In the event loop: accept, format, check --------------------------------------------------------------

    def _accept(self, item: Item, now_s: float) -> None:
        match item:
            case Batch():
                self._take_batch(item, now_s)
            case Odd():
                self._take_odd(item)
            case SubscriptionRefused() | SubscriptionAccepted() | Unacknowledged():
                self._tell_of_subscription(item)
            case _:
                self._tell_of(item)

    def _take_odd(self, odd: Odd) -> None:
        exchange = odd.link.exchange
        match odd.notice:
            case Refused(reason):
                self.quarantine(exchange, odd.payload, reason)
            case UnknownEvent(name):
                if name not in self._unknown and len(self._unknown) < UNKNOWN_REMEMBERED:
                    self._unknown.add(name)
                    self.tell("unknown_message", exchange, name=name)
                self.quarantine(exchange, odd.payload, f"a kind of message that was not asked for: {name}")
            case notice:
                self.quarantine(exchange, odd.payload, f"unexpected: {notice}")

    def _tell_of(self, item: Connected | Disconnected | Renewing | Renewed | RenewalFailed) -> None:
        exchange, url = item.link.exchange, item.link.link.url
        match item:
            case Connected(link):
                self.tell("connected", exchange, url=url, link=self._place(link), streams=len(link.link.streams))
            case Disconnected(link):
                for by_symbol in self.routes[link].values() if item.opened else ():
                    for feed in by_symbol.values():
                        feed.meter.reconnects += 1
                self.tell(
                    "disconnected" if item.opened else "cannot_connect",
                    exchange,
                    url=url,
                    link=self._place(link),
                    streams=len(link.link.streams),
                    reason=item.reason,
                    remedy=item.remedy,
                    retry_in_s=round(item.retry_in_s, 1),
                    seen=item.seen,
                )
            case Renewing(_, reason):
                self.tell("renewing", exchange, url=url, reason=reason)
            case Renewed():
                self.tell("renewed", exchange, url=url)
            case RenewalFailed(_, reason, retry_in_s):
                self.tell("renewal_failed", exchange, url=url, reason=reason, retry_in_s=round(retry_in_s, 1))

    def _tell_of_subscription(self, item: SubscriptionRefused | SubscriptionAccepted | Unacknowledged) -> None:
        exchange, streams = item.link.exchange, list(item.streams)
        match item:
            case SubscriptionRefused(error=error):
                self.tell("subscription_refused", exchange, streams=streams, code=error.code, message=error.message)
            case SubscriptionAccepted():
                self.tell("subscription_accepted", exchange, streams=streams)
            case Unacknowledged():
                self.tell("unacknowledged", exchange, url=item.link.link.url, streams=streams)

    def _place(self, link: LinkState) -> str:
        """Tell one of an exchange's connections from the others: `2 of 3`."""
        of_exchange = [other for other in self.routes if other.exchange == link.exchange]
        return f"{of_exchange.index(link) + 1} of {len(of_exchange)}"

    def _take_batch(self, batch: Batch, now_s: float) -> None:
        """Decode a batch and group it by feed, keeping each feed's order."""
        routes = self.routes[batch.link]
        for messages in batch.messages():
            for stream, by_symbol in routes.items():
                of_stream = messages if len(routes) == 1 else [row for row in messages if stream == row.STREAM]
                for symbol, rows in _by_symbol(of_stream).items():
                    feed = by_symbol.get(symbol)
                    if feed is None:
                        self._set_strays_aside(batch.link, rows)
                    else:
                        self._take_rows(feed, rows, batch, now_s)

    def _take_rows(self, feed: Feed, rows: list[Message], batch: Batch, now_s: float) -> None:
        times = [row.T for row in rows]
        ends = min(times), max(times)
        if ends[0] < feed.plausible[0] or feed.plausible[1] < ends[1]:
            rows = self._in_time(feed, rows, batch.received_ns)
            times = [row.T for row in rows]
            ends = min(times, default=0), max(times, default=0)
        if rows:
            self._take_in_time(feed, rows, times, ends, batch, now_s)

    def _take_in_time(
        self, feed: Feed, rows: list[Message], times: list[int], ends: tuple[int, int], batch: Batch, now_s: float
    ) -> None:
        """Format and check rows, and take what follows from their IDs; `ends` are their earliest and latest time."""
        if feed.last is not None:
            feed.interval_s += (now_s - feed.last_seen_s - feed.interval_s) / INTERVALS_AVERAGED
        feed.last, feed.last_received_ns, feed.last_seen_s = rows[-1], batch.received_ns, now_s
        kind = rows[0].__class__
        lines = kind.lines(rows)
        if feed.extra_columns:
            lines = with_extra_columns(lines, rows, feed.extra_columns, batch.received_ns)
        block = "".join(lines).encode()
        if not feed.check.admits(block, len(rows)):
            rows, lines = self._admitted(feed, rows, lines)
            block = "".join(lines).encode()
            times = [row.T for row in rows]  # their ends may then lie further apart than they do: that does no harm
            if not rows:
                return
        ids = kind.ids(rows)
        if feed.has_placeholders:
            self._note_not_trades(feed, rows)
        if feed.carried.get(batch.connection) != ids[0] - 1:
            self._note_carrier(feed, batch, ids[0])
        feed.carried[batch.connection] = ids[-1]
        expected_id = feed.sequence.next_id
        steps = feed.sequence.take(ids, times, lines, now_s, batch.connection)
        if len(steps) == 1 and isinstance(steps[0], gaps.Run) and steps[0].rows is lines and not feed.not_trade_ids:
            self._add(feed, steps[0].ids, steps[0].times, lines, block, ends)
            feed.meter.take(batch.received_ns, rows[0].E, rows[-1].E, len(rows))
        else:
            self._take_unusual(feed, steps, rows, batch)
        if feed.sequence.held:
            self._waiting[feed] = None
        else:
            feed.not_trade_ids.clear()
        if feed.unknown_since_ns is not None:
            self._note_newer(feed, batch.connection, ids[-1], expected_id)

    def _take_unusual(self, feed: Feed, steps: Sequence[gaps.Step[str]], rows: Sequence[Message], batch: Batch) -> None:
        """Take rows that are not just the next ones; copies do not count for the feed's latency."""
        copies = feed.copies
        self._take_steps(feed, steps)
        copies = feed.copies - copies
        batch.link.copies += copies
        if copies < len(rows):
            feed.meter.take(batch.received_ns, rows[0].E, rows[-1].E, len(rows) - copies)

    def _note_newer(self, feed: Feed, connection: int, id_: int, expected_id: int | None) -> None:
        """Say of a feed of which it is not known whether IDs are missing that a row newer than all others came."""
        if self.note_live is not None and (expected_id is None or id_ >= expected_id):
            self.note_live(feed, connection, id_)

    def _note_not_trades(self, feed: Feed, rows: Sequence[Message]) -> None:
        """Remember which of these rows are no trades; tell once of a kind that nobody knows, which is written."""
        for row in rows:
            if not isinstance(row, FuturesTrade) or row.X in KNOWN_TRADES:
                continue
            feed.not_in_history.append(row.t)
            if row.X in NOT_TRADES:
                feed.not_trade_ids.add(row.t)
            elif row.X not in self._unknown and len(self._unknown) < UNKNOWN_REMEMBERED:
                self._unknown.add(row.X)
                self.tell("unknown_trade_kind", feed.name, name=row.X[:LONGEST_NAME], id=row.t)

    def _in_time(self, feed: Feed, rows: Sequence[Message], received_ns: int) -> list[Message]:
        """Keep the rows whose time can be right; the others go to quarantine (rule 8)."""
        clock_ms = received_ns // 1_000_000
        if feed.last is not None:
            feed.newest_ms = time_ms(feed.last.T)
        good = []
        for row in rows:
            (id_,), at_ms = row.ids([row]), time_ms(row.T)
            before = [] if feed.newest_ms is None else [feed.newest_ms, clock_ms]
            if feed.odd is not None and feed.odd[0] == id_ - 1 and not feed.clock_agrees:
                before.append(feed.odd[1])
            if before and all(abs(at_ms - other_ms) > FAR_MS for other_ms in before):
                feed.odd = (id_, at_ms)
                feed.refused += 1
                reason = f"its time, {row.T}, is more than a day from the row before it and from this machine's clock"
                self.quarantine(feed.path.exchange, row.lines([row])[0].encode(), reason)
                continue
            good.append(row)
            feed.odd, feed.newest_ms, feed.clock_agrees = None, at_ms, abs(at_ms - clock_ms) <= FAR_MS
            far = FAR_MS // 2 * (1 if row.T < MICROSECONDS_FROM else 1000)
            feed.plausible = (row.T - far, row.T + far)
        return good

    def _admitted(self, feed: Feed, rows: list[Message], lines: list[str]) -> tuple[list[Message], list[str]]:
        """Keep the rows whose text is right; the others go to quarantine (rule 1)."""
        good: tuple[list[Message], list[str]] = ([], [])
        for row, line in zip(rows, lines, strict=True):
            if feed.check.admits_row(line.encode()):
                good[0].append(row)
                good[1].append(line)
            else:
                feed.refused += 1
                self.quarantine(feed.path.exchange, line.encode(), "a field holds what cannot stand in its column")
        return good

    def _note_carrier(self, feed: Feed, batch: Batch, first_id: int) -> None:
        """Put on record how a connection joins those before it, or what it missed that another brought."""
        before = feed.carried.get(batch.connection)
        written = feed.sequence.next_id
        if before is None:
            while len(feed.carried) >= CARRIERS_REMEMBERED:
                del feed.carried[next(iter(feed.carried))]
            if written is not None:
                overlap = written - first_id
                self.tell(
                    "joined",
                    feed.name,
                    connection=batch.connection,
                    last_id=written - 1,
                    first_id=first_id,
                    overlap=overlap,
                )
        elif written is not None and before < first_id - 1 <= written - 1:
            batch.link.missed += first_id - 1 - before
            self.tell(
                "missed_by_one",
                feed.name,
                connection=batch.connection,
                url=batch.link.link.url,
                first_id=before + 1,
                last_id=first_id - 1,
            )

    def _set_strays_aside(self, link: LinkState, rows: Sequence[Message]) -> None:
        for row in rows:
            reason = f"a message for {row.s[:40]}, which was not asked for on this connection"
            self.quarantine(link.exchange, msgspec.json.encode(row), reason)

    def _decide_holes(self, now_s: float) -> None:
        self._bound_held()
        for feed in list(self._waiting):
            due_s = feed.sequence.due_s
            if due_s is not None and now_s >= due_s and not self._asked_history(feed, now_s):
                self._take_steps(feed, feed.sequence.expire(now_s))
            if not feed.sequence.held:
                del self._waiting[feed]

    def _bound_held(self) -> None:
        """Let the feeds that hold most declare their holes until all together hold no more than they may (rule 6)."""
        held = {feed: feed.sequence.held_bytes for feed in self._waiting}
        while sum(held.values()) > self.held_limit:
            most = max(held, key=held.__getitem__)
            self._take_steps(most, most.sequence.declare())
            del held[most]

    def _asked_history(self, feed: Feed, now_s: float) -> bool:
        """Ask history for the feed's holes if they are small and were not asked for just now (rule 5)."""
        holes = feed.sequence.holes()
        if self.fetch is None or not holes or sum(last - first + 1 for first, last in holes) > FETCHED_IN_PLACE:
            return False
        first_id, asked_s = feed.asked
        if holes[0][0] == first_id and now_s - asked_s < ASK_AGAIN_S:
            return False
        feed.asked = (holes[0][0], now_s)
        feed.sequence.postpone(now_s + FETCHED_WITHIN_S)
        self.fetch(feed, holes)
        return True

    # --- What history answers --------------------------------------------------------------------------------------

    def fill(self, feed: Feed, rows: list[Message], now_s: float, given_by: tuple[str, float] = ("", 0.0)) -> None:
        """Accept rows of history for a hole that is held open; `given_by` names the call and when it was asked.

        Rows whose hole was declared meanwhile are not taken: `backfill` has them to fetch.
        """
        rows, lines = self.checked(feed, rows)
        ids = feed.kind.ids(rows)
        steps = feed.sequence.fill(ids, [row.T for row in rows], lines, now_s)
        refused = {id_ for step in steps if isinstance(step, gaps.Copies) for id_ in step.ids}
        feed.given_by = given_by
        for id_ in ids:
            if id_ not in refused:
                feed.given.add(id_, id_)
                feed.shown.forget(id_, id_)
        self._take_steps(feed, [step for step in steps if not isinstance(step, gaps.Copies)])
        self.inbox.wake()

    def note_lacking(self, feed: Feed, first: int, last: int, now_s: float) -> None:
        """Note that an answer shows these IDs not to exist: that is no proof yet, so they stay missing."""
        if feed.shown.due_s(first, last) is None:
            feed.shown.note(first, last, now_s)
            self.tell("absence_seen", feed.name, first_id=first, last_id=last, count=last - first + 1)

    def settle(self, feed: Feed) -> None:
        """End the wait for history: what is still missing is declared now."""
        self._take_steps(feed, feed.sequence.declare())
        self.inbox.wake()

    def checked(self, feed: Feed, rows: list[Message]) -> tuple[list[Message], list[str]]:
        """Return rows of history with their lines; those whose text is wrong go to quarantine."""
        lines = feed.kind.lines(rows)
        if feed.extra_columns:
            lines = with_extra_columns(lines, rows, feed.extra_columns, "")
        return self._admitted(feed, rows, lines)

    # --- Steps of the sequence -------------------------------------------------------------------------------------

    def _take_steps(self, feed: Feed, steps: Sequence[gaps.Step[str]]) -> None:
        for step in steps:
            match step:
                case gaps.Run(ids, times, rows):
                    self._add(feed, ids, times, rows, None)
                case gaps.Gap(first, last):
                    self._declare(feed, first, last)
                case gaps.Copies(ids, rows):
                    feed.copies += len(ids) - self._contradicting(feed, ids, rows)
                case gaps.Restarted(last, first, newest_time):
                    feed.restarts += 1
                    feed.begun_ms = time_ms(newest_time)
                    feed.pending.append(Renumbered(first, last, _time_of(first, steps, feed.sequence.newest_time)))
                    self._touched[feed] = None
                    self._lose_open(feed, "the exchange has begun its numbering anew since")
                    self.tell("numbering_restarted", feed.name, last_id=last, first_id=first)
                    feed.begin_asked_ns = None
                    if self.find_begin is not None and first > gaps.FIRST_ID:
                        feed.begin_asked_ns = feed.last_received_ns
                        self.find_begin(feed, first, time_ms(newest_time))
                case gaps.Late(ids, times, rows):
                    self._take_late(feed, ids, times, rows)
                case gaps.Refused(_, row, reason):
                    feed.refused += 1
                    self.set_aside(feed, [row], reason)

    def _take_late(self, feed: Feed, ids: Sequence[int], times: Sequence[int], lines: Sequence[str]) -> None:
        """Pass on rows of passed gaps that are still missing, or were thought not to exist; the others are copies."""
        late = [
            (id_, time, line)
            for id_, time, line in zip(ids, times, lines, strict=True)
            if any(ranges.holds(id_) for ranges in (feed.open, feed.called_absent, feed.given_up))
        ]
        feed.copies += len(ids) - len(late)
        if not late:
            return
        feed.late += len(late)
        late_ids = [id_ for id_, _, _ in late]
        self.tell("late_rows", feed.name, first_id=late_ids[0], last_id=late_ids[-1], count=len(late))
        if self.late is None:
            self.set_aside(feed, [line for _, _, line in late], "came after its gap was declared")
            return
        rows = LateRows(
            late_ids,
            [time for _, time, _ in late],
            [line for _, _, line in late],
            frozenset(feed.not_trade_ids.intersection(late_ids)),
        )
        self.late(feed, rows)

    def _contradicting(self, feed: Feed, ids: Sequence[int], lines: Sequence[str]) -> int:
        """Keep the copies that are none, because a row written lately has their ID and other content; count them."""
        count = 0
        for id_, line in zip(ids, lines, strict=True):
            written = feed.sequence.remembered(id_)
            if written is not None and not feed.sequence.alike(line, written):
                count += 1
                feed.refused += 1
                self.tell("contradicted", feed.name, id=id_, written=written.strip(), refused=line.strip())
                self.set_aside(feed, [line], f"ID {id_} was written before, with other content")
        return count

    def _declare(self, feed: Feed, first: int, last: int) -> None:
        self._end(feed)
        self._miss_range(feed, first, last)

    def _miss_range(self, feed: Feed, first: int, last: int) -> None:
        feed.gaps += 1
        feed.open.add(first, last)
        self.tell("gap", feed.name, first_id=first, last_id=last, count=last - first + 1)
        if self.fetch_later is not None:
            self.fetch_later(feed, first, last)

    def begin_numbering(self, feed: Feed, lowest: int, first: int) -> None:
        """Accept where a new numbering begins; what lies before its first row that was seen is missing."""
        self.tell("numbering_begins", feed.name, first_id=lowest, last_id=first)
        feed.begin_asked_ns = None
        if lowest < first:
            feed.sequence.expect_late(lowest, first - 1)
            self._miss_range(feed, lowest, first - 1)

    def _lose_open(self, feed: Feed, reason: str) -> None:
        for first, last in feed.open.spans:
            feed.lost += last - first + 1
            self.tell("lost", feed.name, first_id=first, last_id=last, count=last - first + 1, reason=reason)
        for ranges in (feed.open, feed.called_absent, feed.given_up, feed.unconfirmed, feed.given):
            ranges.spans.clear()
        feed.shown, feed.shown_odd = gaps.Shown(), gaps.Shown()

    def set_aside(self, feed: Feed, lines: Sequence[str], reason: str) -> None:
        """Put rows into quarantine."""
        for line in lines:
            self.quarantine(feed.path.exchange, line.encode(), reason)

    def _end(self, feed: Feed) -> None:
        feed.pending.append(END)
        self._touched[feed] = None

    def end_idle(self, feed: Feed) -> None:
        """End a feed's open segment because its day is over and nothing comes."""
        self._end(feed)
        self.inbox.wake()

    def _add(
        self,
        feed: Feed,
        ids: range,
        times: Sequence[int],
        lines: Sequence[str],
        block: bytes | None,
        ends: tuple[int, int] | None = None,
    ) -> None:
        """Put rows that follow each other among the pending pieces, split where the day changes.

        `block` are the lines as bytes, and `ends` their earliest and latest time, where somebody has them already.
        """
        self._touched[feed] = None
        if feed.not_trade_ids:
            self._add_trades(feed, ids, times, lines)
        else:
            self._add_rows(feed, ids, times, lines, block, ends or (min(times), max(times)))
        if feed.given.spans:
            self._add_filled(feed, ids)

    def _add_rows(
        self,
        feed: Feed,
        ids: range,
        times: Sequence[int],
        lines: Sequence[str],
        block: bytes | None,
        ends: tuple[int, int],
    ) -> None:
        first_day, last_day = day_of(ends[0]), day_of(ends[1])
        if first_day == last_day:
            self._add_piece(feed, first_day, ids, block or "".join(lines).encode())
            return
        start = 0
        for day, group in groupby(times, key=day_of):
            stop = start + sum(1 for _ in group)
            self._add_piece(feed, day, ids[start:stop], "".join(lines[start:stop]).encode())
            start = stop

    def _add_filled(self, feed: Feed, ids: range) -> None:
        """Put behind rows that were added which of them history gave: they are told of once they are handed over."""
        source, asked_s = feed.given_by
        seconds = round(asyncio.get_running_loop().time() - asked_s, 1)
        for first, last in feed.given.within(ids.start, ids.stop - 1):
            feed.given.remove(first, last)
            feed.filled += last - first + 1
            feed.pending.append(Filled(first, last, source, seconds))

    def _add_trades(self, feed: Feed, ids: range, times: Sequence[int], lines: Sequence[str]) -> None:
        """Add a run that holds placeholders or internal fills: they are counted, and written only if asked for."""
        not_trades = [id_ for id_ in ids if id_ in feed.not_trade_ids]
        feed.not_trades += len(not_trades)
        kept = [
            (id_, time, line)
            for id_, time, line in zip(ids, times, lines, strict=True)
            if feed.write_not_trades or id_ not in feed.not_trade_ids
        ]
        feed.not_trade_ids.difference_update(not_trades)
        trade_id = feed.public_ids[0] if feed.public_ids[1] == ids.start - 1 else ids.start - 1
        feed.public_ids = (max(set(ids).difference(not_trades), default=trade_id), ids[-1])
        for day, group in groupby(kept, key=lambda row: day_of(row[1])):
            rows = list(group)
            self._add_piece(feed, day, [row[0] for row in rows], "".join(row[2] for row in rows).encode())

    def _add_piece(self, feed: Feed, day: int, ids: range | list[int], block: bytes) -> None:
        last = feed.pending[-1] if feed.pending else END
        if isinstance(last, Piece) and last.day == day:
            if isinstance(last.ids, range) and isinstance(ids, range) and last.ids.stop == ids.start:
                last.ids = range(last.ids.start, ids.stop)
            else:
                last.ids = [*last.ids, *ids]
            last.blocks.append(block)
        else:
            feed.pending.append(Piece(day, ids, [block]))

    # --- In the disk thread ----------------------------------------------------------------------------------------

    def _write(self, now_s: float) -> None:
        """Append what waits; what has been done is taken out of `_jobs`, so that the call can be repeated."""
        for feed, job in list(self._jobs.items()):
            if job.trouble and now_s < job.again_s and not self.stopping:
                continue
            try:
                self._append_all(feed, job.pieces)
            except (DiskError, NameTakenError) as error:
                if not feed.segments.refused_alone(error):
                    raise
                self._block(feed, job, error, now_s)
            else:
                del self._jobs[feed]
                if job.trouble:
                    self.tell("files_again", feed.name)
        self._bound_blocked()
        self.write_journal()

    def _append_all(self, feed: Feed, pieces: list[Piece | End | Filled | Renumbered]) -> None:
        while pieces:
            try:
                self._append(feed, pieces[0])
            except FileLostError as error:
                self.tell("file_lost", feed.name, first_id=error.first_id, last_id=error.last_id, detail=str(error))
                self._miss(feed, error.first_id, error.last_id)
                continue
            del pieces[0]

    def _miss(self, feed: Feed, first: int, last: int) -> None:
        if self.miss is not None:
            self.miss(feed, first, last)

    def _block(self, feed: Feed, job: Job, error: DiskError | NameTakenError, now_s: float) -> None:
        """Let one feed wait for its own files, while the others go on."""
        if not job.trouble:
            job.since_s, job.size = now_s, _size_of(job.pieces)
            self.tell("files_refused", feed.name, detail=str(error))
        job.trouble = str(error)
        job.again_s = now_s + job.pause_s
        job.pause_s = min(2 * job.pause_s, LONGEST_PAUSE_S)
        if isinstance(error, NameTakenError) and now_s - job.since_s > NAME_FREED_WITHIN_S:
            kept = feed.segments.move_aside(error.path)
            if kept is not None:
                self.tell("moved_aside", feed.name, file=str(error.path), kept=str(kept))
                job.again_s = now_s

    def _bound_blocked(self) -> None:
        """Keep what waits for refused files below its limit: the feed with most of it gives its rows up."""
        blocked = {feed: job for feed, job in self._jobs.items() if job.trouble}
        while sum(job.size for job in blocked.values()) > BLOCKED_BYTES:
            feed = max(blocked, key=lambda feed: blocked[feed].size)
            self._give_up(feed, blocked[feed])

    def _give_up(self, feed: Feed, job: Job) -> None:
        """Declare the rows missing that a feed's files do not take; history has them when its files are back."""
        missing, before, left = (
            gaps.Ranges(),
            gaps.Ranges(),
            [piece for piece in job.pieces if isinstance(piece, Renumbered)],
        )
        for piece in job.pieces:
            if isinstance(piece, Renumbered):
                before.spans, missing = [*before.spans, *missing.spans], gaps.Ranges()
            elif isinstance(piece, Piece):
                missing.add(piece.ids[0], piece.ids[-1])
        job.pieces, job.size = [END, *left], 0
        for first, last in before.spans:
            feed.lost += last - first + 1
            reason = "its files took nothing, and the exchange has begun its numbering anew since"
            self.tell("lost", feed.name, first_id=first, last_id=last, count=last - first + 1, reason=reason)
        for first, last in missing.spans:
            feed.gaps += 1
            self.tell("gap", feed.name, first_id=first, last_id=last, count=last - first + 1)
            self._miss(feed, first, last)

    @property
    def blocked(self) -> list[str]:
        """What is wrong with the files of single feeds, which wait while the others go on."""
        return [f"{feed.name}: {job.trouble}" for feed, job in list(self._jobs.items()) if job.trouble]

    def _append(self, feed: Feed, piece: Piece | End | Filled | Renumbered) -> None:
        if isinstance(piece, End):
            self.write_journal()
            self.ended(feed.segments.end(), feed)
            return
        if isinstance(piece, Renumbered):
            self.write_journal()
            self.ended(feed.segments.renumber(piece.first_id, piece.last_id, piece.time), feed)
            return
        if isinstance(piece, Filled):
            facts = {"rows": piece.last - piece.first + 1, "source": piece.source, "seconds": piece.seconds}
            self.tell("filled", feed.name, first_id=piece.first, last_id=piece.last, **facts)
            return
        block = b"".join(piece.blocks)
        try:
            finished = feed.segments.append(block, piece.ids, piece.day)
        except OutOfSequenceError as error:
            self._set_apart(feed, piece, str(error))
            return
        self.bytes_written += len(block)
        feed.rows += len(piece.ids)
        feed.written_id = piece.ids[-1]
        self.rows_written += len(piece.ids)
        if finished:
            self.ended(finished, feed)

    def _set_apart(self, feed: Feed, piece: Piece, reason: str) -> None:
        """Keep rows out of the file that cannot stand behind those in it: one feed's fault must not end the others.

        They go to quarantine, and the IDs that are not in a file yet are missing, and fetched like any others.
        """
        for block in piece.blocks:
            self.quarantine(feed.path.exchange, block, reason)
        feed.refused += len(piece.ids)
        self.ended(feed.segments.end(), feed)
        first, last = piece.ids[0], piece.ids[-1]
        if feed.written_id is not None:
            first = max(first, feed.written_id + 1)
        if first <= last:
            self.tell("gap", feed.name, first_id=first, last_id=last, count=last - first + 1)
            self._miss(feed, first, last)


def _time_of(first_id: int, steps: Iterable[gaps.Step[str]], otherwise: int) -> int:
    """Return the trade time of the row that begins a numbering."""
    runs = (step for step in steps if isinstance(step, gaps.Run))
    return next((run.times[0] for run in runs if run.ids[0] == first_id), otherwise)


def _size_of(pieces: Iterable[Piece | End | Filled | Renumbered]) -> int:
    return sum(len(block) for piece in pieces if isinstance(piece, Piece) for block in piece.blocks)


def _by_symbol(messages: list[Message]) -> Mapping[str, list[Message]]:
    """Group messages, keeping their order; many are of one symbol only."""
    symbols = {row.s for row in messages}
    if len(symbols) == 1:
        return {symbols.pop(): messages}
    groups: defaultdict[str, list[Message]] = defaultdict(list)
    for row in messages:
        groups[row.s].append(row)
    return groups


def with_extra_columns(
    lines: Sequence[str], rows: Sequence[Message], names: Sequence[str], received_ns: int | Literal[""]
) -> list[str]:
    """Append the columns that `EXTRA_COLUMNS` asks for; rows of history were not received at any time."""
    return [
        ",".join(
            [
                line[:-1],
                *(str(received_ns) if name == RECEIVED_NS else field_text(row, name) for name in names),
            ]
        )
        + "\n"
        for line, row in zip(lines, rows, strict=True)
    ]
