"""Backfill: gaps that were too large to wait for, filled in the background as segments of their own.

Rules:

1. A gap is open until each of its IDs is on disk, shown to be absent, or lost for a reason; the journal says which.
2. Gaps of one exchange are filled one after the other, so that the weight budget is not spent on many halves. One that
   cannot be had at present goes to the end of the line and is tried again, patiently, while history may have it.
3. What was filled is journaled after its rows were handed over. A crash in between leaves a segment whose name tells
   what it holds, and the next start subtracts it.
4. A power failure may take the end of one file and leave the next one, whatever was written first, and a killed process
   may not have written its journal. So a start also holds the file names against each other: IDs missing between them
   that nothing on record explains are a gap.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import groupby

from tickcollect.events import Message, day_of
from tickcollect.gaps import Ranges
from tickcollect.journal import Entry
from tickcollect.repair import Absent, Found, History, Lost
from tickcollect.rest import BadAnswerError, RestError
from tickcollect.segments import Segment, SegmentError, Segments
from tickcollect.writer import Feed, Tell

FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 600.0


@dataclass(slots=True)
class Job:
    """One gap to be filled."""

    feed: Feed
    first: int
    last: int
    pause_s: float = FIRST_PAUSE_S


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
    jobs: asyncio.Queue[Job] = field(default_factory=asyncio.Queue)
    at_work: str = ""
    """What is being filled, for the status; empty while nothing is."""

    def add(self, feed: Feed, first: int, last: int) -> None:
        """Queue a gap."""
        self.jobs.put_nowait(Job(feed, first, last))

    async def run(self) -> None:
        """Fill gap after gap, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            job = await self.jobs.get()
            self.at_work = f"{job.feed.name}: filling {job.first} to {job.last}"
            try:
                await self._fill(job)
            except (RestError, SegmentError) as error:
                wait_s = max(job.pause_s, getattr(error, "retry_after_s", None) or 0.0)
                self.tell(
                    "fill_waits",
                    job.feed.name,
                    first_id=job.first,
                    last_id=job.last,
                    detail=str(error),
                    again_in_s=wait_s,
                )
                job.pause_s = min(job.pause_s * 2, LONGEST_PAUSE_S)
                loop.call_later(wait_s, self.jobs.put_nowait, job)
            finally:
                self.at_work = ""

    async def _fill(self, job: Job) -> None:
        """Fetch a gap and write it; `job.first` moves on with what has been settled."""
        loop = asyncio.get_running_loop()
        feed, started_s = job.feed, loop.time()
        files = self.segments(feed)
        begun, rows = job.first, 0
        try:
            async for outcome in self.history(feed).fetch(job.first, job.last):
                match outcome:
                    case Found(found):
                        count = await loop.run_in_executor(self.disk, self._write, files, feed, list(found))
                        feed.filled += count
                        rows += count
                        job.first = feed.kind.ids(found[-1:])[0] + 1
                    case Absent(first, last):
                        if not feed.has_placeholders:
                            await self._end(files, feed)
                            self.tell("absent", feed.name, first_id=first, last_id=last, count=last - first + 1)
                        feed.absent += last - first + 1
                        job.first = last + 1
                    case Lost(first, last, reason):
                        feed.lost += last - first + 1
                        self.tell(
                            "lost", feed.name, first_id=first, last_id=last, count=last - first + 1, reason=reason
                        )
                        feed.open.remove(first, last)
                        job.last = first - 1
        finally:
            await self._end(files, feed)
            if job.first > begun:
                feed.open.remove(begun, job.first - 1)
            if rows or (feed.has_placeholders and job.first > begun):
                self.tell(
                    "filled",
                    feed.name,
                    first_id=begun,
                    last_id=job.first - 1,
                    rows=rows,
                    source=self.history(feed).path,
                    seconds=round(loop.time() - started_s, 1),
                )

    async def _end(self, files: Segments, feed: Feed) -> None:
        finished = await asyncio.get_running_loop().run_in_executor(self.disk, files.end)
        self.ended(finished, feed)

    def _write(self, files: Segments, feed: Feed, rows: list[Message]) -> int:
        """Append rows of history to the files; in the disk thread."""
        good, lines = self.checked(feed, rows)
        if len(good) < len(rows):
            raise BadAnswerError(f"{feed.name}: {len(rows) - len(good)} rows of history hold what no row may hold")
        ids = feed.kind.ids(rows)
        start = 0
        for day, group in groupby(rows, key=lambda row: day_of(row.T)):
            stop = start + sum(1 for _ in group)
            finished = files.append("".join(lines[start:stop]).encode(), ids[start:stop], day)
            self.ended(finished, feed)
            start = stop
        feed.rows += len(rows)
        return len(rows)


# --- What is missing at a start --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Account:
    """What the journal says of one feed's IDs."""

    open: Ranges = field(default_factory=Ranges)
    """Missing, and not settled since."""
    settled: Ranges = field(default_factory=Ranges)
    """Sealed (and perhaps deleted here since, once the store held the file), never published, or lost."""
    renumbered: bool = False
    """The numbering has begun anew once, so that IDs on disk may be of another one."""


def accounts(entries: Iterable[Entry]) -> dict[str, Account]:
    """Return what the journal's `entries` say, by feed."""
    found: dict[str, Account] = {}
    for entry in entries:
        name, first, last = (entry.facts.get(key) for key in ("subject", "first_id", "last_id"))
        if not isinstance(name, str) or not isinstance(first, int) or not isinstance(last, int):
            continue
        account = found.setdefault(name, Account())
        if entry.event in OPENING:
            account.open.add(first, last)
            account.settled.remove(first, last)
        elif entry.event == "deleted" and account.renumbered:
            continue  # perhaps a file of the numbering before
        elif entry.event in CLOSING:
            account.open.remove(first, last)
            if entry.event in SETTLING:
                account.settled.add(first, last)
        elif entry.event == "numbering_restarted":
            found[name] = Account(renumbered=True)
    return found


OPENING = frozenset({"gap", "file_lost", "sync_failed"})
SETTLING = frozenset({"sealed", "absent", "lost", "deleted"})
CLOSING = SETTLING | {"filled"}


def still_open(account: Account, on_disk: Ranges, next_id: int | None) -> Ranges:
    """Return the gaps of earlier runs (rule 3), without what the sequence, going on at `next_id`, will miss itself."""
    found = Ranges(list(account.open.spans))
    for first, last in on_disk.spans:
        found.remove(first, last)
    if next_id is not None:
        found.remove(next_id, NO_ID)
    return found


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
