"""Backfill: gaps that were too large to wait for, filled in the background as segments of their own.

Rules:

1. A gap is open until each of its IDs is on disk, shown to be absent, or lost for a reason; the journal says which.
2. Gaps of one exchange are filled one after the other, so that the weight budget is not spent on many halves. One that
   cannot be had at present goes to the end of the line and is tried again, patiently, while history may have it.
3. What was filled is journaled after its rows were handed over. A crash in between leaves a segment whose name tells
   what it holds, and the next start subtracts it.
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


def open_gaps(entries: Iterable[Entry]) -> dict[str, Ranges]:
    """Return what the journal's `entries` leave open, by feed; what is on disk must still be taken out (rule 3)."""
    found: dict[str, Ranges] = {}
    for entry in entries:
        feed, first, last = (entry.facts.get(name) for name in ("subject", "first_id", "last_id"))
        if not isinstance(feed, str) or not isinstance(first, int) or not isinstance(last, int):
            continue
        if entry.event in OPENING:
            found.setdefault(feed, Ranges()).add(first, last)
        elif entry.event in CLOSING and feed in found:
            found[feed].remove(first, last)
    return found


OPENING = frozenset({"gap", "file_lost", "sync_failed"})
CLOSING = frozenset({"filled", "absent", "lost"})
