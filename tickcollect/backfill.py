"""Backfill: missing IDs that were too many to wait for, filled in the background as segments of their own.

Rules:

1. A gap is open until each of its IDs is on disk, proved to be absent, or lost for a reason; the journal says which.
2. Gaps of one exchange are filled one after the other, so that the weight budget is not spent on many halves. One that
   cannot be had at present goes to the end of the line and is tried again, patiently, while history may have it.
3. What was filled is journaled after its rows were handed over and synced, with the exact IDs. A crash in between
   leaves a segment whose name tells what it holds, and the next start subtracts it. Rows of a file that is lost before
   that are open again at once.
4. A power failure may take the end of one file and leave the next one, whatever was written first, and a killed process
   may not have written its journal. So a start also holds the file names against each other: IDs missing between them
   that nothing on record explains are a gap.
5. IDs that an answer passes over stay open (`absence_seen`). A second answer, `ABSENCE_AGAIN_S` later, makes them
   `absent`; the next start asks once more (`absence_confirmed`). Whatever shows such an ID after all, history or a
   row that comes live, opens it again (`reopened`), and its row gets a file.
6. Where placeholders take IDs (futures `trade`) nearly every answer passes over some. There a page that does is written
   when they are proved: otherwise each would end a segment. So a gap takes two passes there.
7. A row whose time cannot be right is no proof of anything. If history gives it so twice, as far apart as in rule 5, it
   goes to quarantine and its ID is `lost` with that reason: a file named by such a day would mislead every reader.
8. Rows that came live when their place was passed (`LateRows`) are written here too, between two gaps, so that no ID is
   written twice. Not more than `LATE_ROWS` of them wait; beyond, they go to quarantine and are had from history.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from tickcollect.events import Message, day_of
from tickcollect.gaps import FIRST_ID, Ranges
from tickcollect.journal import Entry
from tickcollect.neighbours import beside
from tickcollect.repair import History, Lost, Page
from tickcollect.rest import BadAnswerError, RestError
from tickcollect.segments import FileLostError, Segment, SegmentError, Segments, SyncFailedError
from tickcollect.writer import Feed, LateRows, Tell

FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 600.0
ASKED_TOGETHER = 400
"""Gaps of a feed that lie no further apart are asked for together: one answer has 500 rows or more."""
LATE_ROWS = 10_000
LATE = "live, late"
"""The source of rows that history did not have to give."""
ODD_TIME = "the exchange gives it with a time that cannot be right; the row is in quarantine"


@dataclass(slots=True)
class Job:
    """IDs of one feed to be asked for; what of them is open, or to be confirmed, is known to the feed."""

    feed: Feed
    first: int
    last: int
    pause_s: float = FIRST_PAUSE_S


@dataclass(slots=True)
class _Files:
    """The segments that one job writes, and what was written to them and not told of yet."""

    segments: Segments
    written: Ranges = field(default_factory=Ranges)
    last_id: int | None = None
    """Of the row written last; None after a segment's end."""
    source: str = ""


@dataclass(eq=False)
class Backfill:
    """Fills the gaps of one exchange's feeds, until cancelled."""

    history: Callable[[Feed], History]
    segments: Callable[[Feed], Segments]
    """A further set of files in the feed's directory, beside those that live rows go to."""
    checked: Callable[[Feed, list[Message]], tuple[list[Message], list[str]]]
    disk: Executor
    tell: Tell
    ended: Callable[[Sequence[Segment], Feed], None]
    set_aside: Callable[[Feed, Sequence[str], str], None] = lambda _feed, _lines, _reason: None
    """Keeps rows in quarantine, with the reason."""
    now_s: Callable[[], float] = time.monotonic
    jobs: asyncio.Queue[Job | tuple[Feed, LateRows]] = field(default_factory=asyncio.Queue)
    at_work: str = ""
    """What is being filled, for the status; empty while nothing is."""
    _planned: list[Job] = field(default_factory=list)
    """Jobs that are in line, or wait for their time."""
    _late: int = 0
    """Late rows in line."""

    def add(self, feed: Feed, first: int, last: int) -> None:
        """Queue IDs that are open or to be confirmed, together with others of the feed that are near."""
        for job in self._planned:
            if job.feed is feed and first - job.last <= ASKED_TOGETHER and job.first - last <= ASKED_TOGETHER:
                job.first, job.last = min(job.first, first), max(job.last, last)
                return
        self._plan(Job(feed, first, last))

    def add_late(self, feed: Feed, rows: LateRows) -> None:
        """Queue rows that came when their place was passed (rule 8)."""
        if self._late + len(rows.ids) > LATE_ROWS:
            self.set_aside(feed, rows.lines, "came after its gap was declared, and too many did")
            return
        self._late += len(rows.ids)
        self.jobs.put_nowait((feed, rows))

    def _plan(self, job: Job) -> None:
        self._planned.append(job)
        self.jobs.put_nowait(job)

    def _plan_later(self, job: Job, wait_s: float) -> None:
        self._planned.append(job)
        asyncio.get_running_loop().call_later(wait_s, self.jobs.put_nowait, job)

    async def run(self) -> None:
        """Fill gap after gap, for ever."""
        while True:
            await self._work(await self.jobs.get())

    async def _work(self, job: Job | tuple[Feed, LateRows]) -> None:
        feed = job.feed if isinstance(job, Job) else job[0]
        self.at_work = f"{feed.name}: filling"
        try:
            if isinstance(job, Job):
                self._planned.remove(job)
                await self._do(job)
            else:
                self._late -= len(job[1].ids)
                await self._write_late(*job)
        finally:
            self.at_work = ""

    async def _do(self, job: Job) -> None:
        """Ask for what a job still lacks, and plan when to ask for what is left."""
        feed = job.feed
        try:
            await self._fill(job)
        except (RestError, SegmentError) as error:
            wait_s = max(job.pause_s, getattr(error, "retry_after_s", None) or 0.0)
            self.tell(
                "fill_waits", feed.name, first_id=job.first, last_id=job.last, detail=str(error), again_in_s=wait_s
            )
            job.pause_s = min(job.pause_s * 2, LONGEST_PAUSE_S)
            self._plan_later(job, wait_s)
            return
        left = [*feed.open.within(job.first, job.last), *feed.unconfirmed.within(job.first, job.last)]
        if left:
            due = [feed.shown.due_s(job.first, job.last), feed.shown_odd.due_s(job.first, job.last)]
            wait_s = max([at_s - self.now_s() for at_s in due if at_s is not None], default=job.pause_s)
            self._plan_later(Job(feed, min(left)[0], max(last for _, last in left)), max(0.0, wait_s))

    async def _fill(self, job: Job) -> None:
        """Fetch what is open or to be confirmed of a job's range, and write it."""
        feed = job.feed
        spans = sorted([*feed.open.within(job.first, job.last), *feed.unconfirmed.within(job.first, job.last)])
        if not spans:
            return
        first, last = spans[0][0], max(last for _, last in spans)
        known = await beside(feed, first, last)
        history = self.history(feed)
        files = _Files(self.segments(feed), source=history.path)
        started_s = self.now_s()
        try:
            async for outcome in history.fetch(first, last, known):
                if isinstance(outcome, Lost):
                    self._lose(feed, outcome)
                else:
                    await self._take(files, feed, outcome)
        finally:
            await self._end(files, feed, started_s)

    # --- One answer ------------------------------------------------------------------------------------------------

    async def _take(self, files: _Files, feed: Feed, page: Page) -> None:
        """Write the rows of an answer that are missing, and settle what it proves not to exist."""
        self._reopen(feed, page.rows)
        for first, last in page.lacking:
            self._settle(feed, first, last)
        self._settle_odd(feed, page.odd)
        unproved = [span for low, high in page.lacking for span in feed.open.within(low, high)]
        if feed.has_placeholders and unproved:
            return  # rule 6
        ids = feed.kind.ids(page.rows)
        rows = [row for id_, row in zip(ids, page.rows, strict=True) if feed.open.holds(id_)]
        good, lines = self.checked(feed, rows)
        if len(good) < len(rows):
            raise BadAnswerError(f"{feed.name}: {len(rows) - len(good)} rows of history hold what no row may hold")
        await self._write(files, feed, feed.kind.ids(rows), [row.T for row in rows], lines)

    def _reopen(self, feed: Feed, rows: Sequence[Message]) -> None:
        """Open again what was called absent and is in an answer (rule 5)."""
        if not rows:
            return
        ids = feed.kind.ids(rows)
        found = Ranges()
        for first, last in feed.called_absent.within(ids[0], ids[-1]):
            for id_ in ids:
                if first <= id_ <= last:
                    found.add(id_, id_)
        for first, last in found.spans:
            self._open_again(feed, first, last, "history has its row after all")
        for id_ in ids if feed.shown.due_s(ids[0], ids[-1]) is not None else ():
            feed.shown.forget(id_, id_)

    def _open_again(self, feed: Feed, first: int, last: int, reason: str) -> None:
        feed.absent -= min(feed.absent, _count(feed.called_absent.within(first, last)))
        feed.lost -= _count(feed.given_up.within(first, last))
        for ranges in (feed.called_absent, feed.unconfirmed, feed.given_up):
            ranges.remove(first, last)
        feed.open.add(first, last)
        self.tell("reopened", feed.name, first_id=first, last_id=last, count=last - first + 1, reason=reason)

    def _settle(self, feed: Feed, first: int, last: int) -> None:
        """Take what an answer passes over one step further: seen, absent, confirmed (rule 5)."""
        for low, high in feed.unconfirmed.within(first, last):
            feed.unconfirmed.remove(low, high)
            self._tell_of("absence_confirmed", feed, low, high)
        for low, high in feed.open.within(first, last):
            proved, fresh = feed.shown.note(low, high, self.now_s())
            for span in fresh:
                self._tell_of("absence_seen", feed, *span)
            for span in proved:
                feed.open.remove(*span)
                feed.called_absent.add(*span)
                feed.sequence.expect_late(*span)
                feed.absent += span[1] - span[0] + 1
                self._tell_of("absent", feed, *span)

    def _settle_odd(self, feed: Feed, rows: Sequence[Message]) -> None:
        """Give up IDs whose rows history gives twice with a time that cannot be right (rule 7)."""
        for row in rows:
            (id_,) = row.ids([row])
            if feed.open.holds(id_) and feed.shown_odd.note(id_, id_, self.now_s())[0]:
                self.set_aside(feed, row.lines([row]), f"its time, {row.T}, is not between those of its neighbours")
                self._lose(feed, Lost(id_, id_, ODD_TIME))

    def _lose(self, feed: Feed, lost: Lost) -> None:
        for first, last in feed.open.within(lost.first, lost.last):
            feed.open.remove(first, last)
            feed.shown.forget(first, last)
            feed.lost += last - first + 1
            feed.given_up.add(first, last)
            self._tell_of("lost", feed, first, last, reason=lost.reason)
        feed.unconfirmed.remove(0, lost.last)  # it stays absent, and the next start asks again

    def _tell_of(self, event: str, feed: Feed, first: int, last: int, **facts: object) -> None:
        self.tell(event, feed.name, first_id=first, last_id=last, count=last - first + 1, **facts)

    # --- Rows that came late ---------------------------------------------------------------------------------------

    async def _write_late(self, feed: Feed, late: LateRows) -> None:
        """Write late rows that are still missing, or were thought not to exist (rule 8)."""
        closed = Ranges()
        for id_ in late.ids:
            given_up = feed.called_absent.holds(id_) or feed.given_up.holds(id_)
            if given_up and id_ not in late.not_trades:
                closed.add(id_, id_)
        for first, last in closed.spans:
            self._open_again(feed, first, last, "its row came live after all")
        rows = [row for row in zip(late.ids, late.times, late.lines, strict=True) if feed.open.holds(row[0])]
        rows.sort()
        for id_ in sorted(late.not_trades):
            if feed.open.holds(id_):
                feed.open.remove(id_, id_)
                feed.not_trades += 1
                self._tell_of("absent", feed, id_, id_)
        kept = [row for row in rows if row[0] not in late.not_trades or feed.write_not_trades]
        files = _Files(self.segments(feed), source=LATE)
        started_s = self.now_s()
        try:
            await self._write(files, feed, *([row[column] for row in kept] for column in range(3)))  # type: ignore[arg-type]  # three lists
        except SegmentError as error:
            self.tell(
                "fill_waits", feed.name, first_id=late.ids[0], last_id=late.ids[-1], detail=str(error), again_in_s=0
            )
        finally:
            await self._end(files, feed, started_s)

    # --- Files -----------------------------------------------------------------------------------------------------

    async def _write(
        self, files: _Files, feed: Feed, ids: Sequence[int], times: Sequence[int], lines: Sequence[str]
    ) -> None:
        """Append rows; a segment ends where the next row does not follow, but for IDs that are no trades."""
        start = 0
        for stop in range(1, len(ids) + 1):
            if (
                stop < len(ids)
                and day_of(times[stop]) == day_of(times[start])
                and _follows(feed, ids[stop - 1], ids[stop])
            ):
                continue
            if files.last_id is not None and not _follows(feed, files.last_id, ids[start]):
                await self._finish(files, feed)
            block = "".join(lines[start:stop]).encode()
            await self._append(files, feed, block, ids[start:stop], day_of(times[start]))
            start = stop

    async def _append(self, files: _Files, feed: Feed, block: bytes, ids: Sequence[int], day: int) -> None:
        """Append rows of one day; once they are in the file, nothing else of theirs is open."""
        loop = asyncio.get_running_loop()
        try:
            finished = await loop.run_in_executor(self.disk, _append_counted, files.segments, feed, block, ids, day)
        except FileLostError as error:
            self._lose_file(files, feed, error)
            raise
        await self._hand_on(finished, feed)
        files.last_id = ids[-1]
        for id_first, id_last in _spans(ids):
            files.written.add(id_first, id_last)
            feed.open.remove(id_first, id_last)

    async def _finish(self, files: _Files, feed: Feed) -> None:
        """End the open segment."""
        try:
            finished = await asyncio.get_running_loop().run_in_executor(self.disk, files.segments.end)
        except FileLostError as error:
            self._lose_file(files, feed, error)
            raise
        files.last_id = None
        await self._hand_on(finished, feed)

    async def _hand_on(self, finished: Sequence[Segment], feed: Feed) -> None:
        if finished:
            await asyncio.to_thread(self.ended, finished, feed)

    async def _end(self, files: _Files, feed: Feed, started_s: float) -> None:
        """End the last segment, make all of them safe, and put on record what is in them."""
        try:
            if files.written.spans:
                await self._make_safe(files, feed)
        finally:
            seconds = round(self.now_s() - started_s, 1)
            for first, last in files.written.spans:
                rows = last - first + 1
                feed.filled += rows
                self.tell(
                    "filled",
                    feed.name,
                    first_id=first,
                    last_id=last,
                    rows=rows,
                    source=files.source,
                    seconds=seconds,
                )

    async def _make_safe(self, files: _Files, feed: Feed) -> None:
        try:
            await asyncio.to_thread(files.segments.sync)
        except SyncFailedError as error:
            self.tell("sync_failed", feed.name, detail=str(error), first_id=error.first_id, last_id=error.last_id)
            self._take_back(files, feed, error.first_id, error.last_id)
            if error.remaining is not None:
                await self._hand_on([error.remaining], feed)
            raise
        await self._finish(files, feed)

    def _lose_file(self, files: _Files, feed: Feed, error: FileLostError) -> None:
        self.tell("file_lost", feed.name, first_id=error.first_id, last_id=error.last_id, detail=str(error))
        self._take_back(files, feed, error.first_id, error.last_id)
        files.last_id = None

    def _take_back(self, files: _Files, feed: Feed, first: int, last: int) -> None:
        """Open again what was written and is gone; the error that follows has it fetched again."""
        for low, high in files.written.within(first, last):
            feed.open.add(low, high)
        files.written.remove(first, last)


def _append_counted(segments: Segments, feed: Feed, block: bytes, ids: Sequence[int], day: int) -> list[Segment]:
    """Append rows and count them; in the disk thread, which alone changes that count."""
    finished = segments.append(block, ids, day)
    feed.rows += len(ids)
    return finished


def _follows(feed: Feed, before: int, id_: int) -> bool:
    """Tell whether a row may stand behind another in one segment: what its name spans is in it or no trade."""
    if id_ == before + 1:
        return True
    if not feed.has_placeholders or id_ < before:
        return False
    return feed.called_absent.within(before + 1, id_ - 1) == [(before + 1, id_ - 1)]


def _count(spans: Sequence[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in spans)


def _spans(ids: Sequence[int]) -> list[tuple[int, int]]:
    ranges = Ranges()
    for id_ in ids:
        ranges.add(id_, id_)
    return ranges.spans


# --- What is missing at a start --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Account:
    """What the journal says of one feed's IDs."""

    open: Ranges = field(default_factory=Ranges)
    """Missing, and not settled since."""
    settled: Ranges = field(default_factory=Ranges)
    """Sealed (and perhaps deleted here since, once the store held the file), never published, or lost."""
    absent: Ranges = field(default_factory=Ranges)
    """Called absent, and not reopened since."""
    unconfirmed: Ranges = field(default_factory=Ranges)
    """Those of them that no later start has asked for again."""
    reopened: Ranges = field(default_factory=Ranges)
    """Opened again after they were called absent, and not settled since; a file whose name spans them may lack them."""
    renumbered: bool = False
    """The numbering has begun anew once, so that IDs on disk may be of another one."""
    begun_at: int | None = None
    """The first ID seen of the present numbering, as long as nobody knows what came in it before; else None."""


def accounts(entries: Iterable[Entry], before: dict[str, Account] | None = None) -> dict[str, Account]:
    """Return what the journal's `entries` say, by feed; `before` is what earlier ones said, and is carried on."""
    found: dict[str, Account] = {} if before is None else before
    for entry in entries:
        name, first, last = (entry.facts.get(key) for key in ("subject", "first_id", "last_id"))
        if not isinstance(name, str) or not isinstance(first, int) or not isinstance(last, int):
            continue
        account = found.setdefault(name, Account())
        if entry.event == "damaged" and entry.facts.get("store"):
            continue  # a store holds what was sealed
        if entry.event == "numbering_restarted":
            found[name] = Account(renumbered=True, begun_at=first if first > FIRST_ID else None)
        elif entry.event == "numbering_begins":
            account.begun_at = None
        elif entry.event == "absence_confirmed":
            account.unconfirmed.remove(first, last)
        elif not (entry.event == "deleted" and account.renumbered):  # perhaps a file of the numbering before
            _note(account, entry.event, first, last)
    return found


def _note(account: Account, event: str, first: int, last: int) -> None:
    """Take over what one entry says of a feed's IDs."""
    if event == "reopened":
        account.reopened.add(first, last)
    elif event in CLOSING - SEALED:
        account.reopened.remove(first, last)
    if event in OPENING:
        account.open.add(first, last)
        for ranges in (account.settled, account.absent, account.unconfirmed):
            ranges.remove(first, last)
    elif event in CLOSING:
        account.open.remove(first, last)
        if event in SETTLING:
            account.settled.add(first, last)
        if event == "absent":
            account.absent.add(first, last)
            account.unconfirmed.add(first, last)


OPENING = frozenset({"gap", "file_lost", "sync_failed", "damaged", "reopened"})
SEALED = frozenset({"sealed", "deleted"})
SETTLING = SEALED | {"absent", "lost"}
CLOSING = SETTLING | {"filled"}
ACCOUNTED = OPENING | CLOSING | {"absence_confirmed", "numbering_restarted", "numbering_begins"}
"""Every kind of entry that `accounts` goes by."""


def still_open(account: Account, on_disk: Ranges, next_id: int | None) -> Ranges:
    """Return the gaps of earlier runs (rule 3), without what the sequence, going on at `next_id`, will miss itself."""
    found = Ranges(list(account.open.spans))
    for first, last in on_disk.spans:
        found.remove(first, last)
    if next_id is not None:
        found.remove(next_id, NO_ID)
    return found


def closed_by(files: Iterable[tuple[int, int]], missing: Ranges) -> Ranges:
    """Return which of the missing IDs are in files, by the names of a feed whose files pass over IDs.

    A gap inside a file is not: the file's rows pass over IDs that were taken for no trades and were opened again.
    """
    held = Ranges()
    for first, last in files:
        for low, high in missing.within(first, last):
            if low == first or high == last:
                held.add(low, high)
    return held


def unexplained(account: Account, on_disk: Ranges, next_id: int | None) -> list[tuple[int, int]]:
    """Return IDs below `next_id` that nothing on record explains, of a feed whose IDs rise by one (rule 4)."""
    if account.renumbered or not on_disk.spans:
        return []
    missing = Ranges([(on_disk.spans[0][0], max(on_disk.spans[-1][1], (next_id or 0) - 1))])
    for spans in (on_disk.spans, account.settled.spans, account.open.spans):
        for first, last in spans:
            missing.remove(first, last)
    return missing.spans


NO_ID = 2**63
"""Above every ID."""
