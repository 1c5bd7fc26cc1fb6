"""Sequence: the rows of one feed in; what may be written next, what is missing, what is a copy out.

Pure: no I/O, no clock; `now_s` comes in as an argument. It knows IDs and trade times, nothing of exchanges.

What an ID means for each stream (Binance documents of 2026; observations of 2026-09 where they are silent):

* spot `trade` `t`, and `a` of `aggTrade` on every market: the next ID is the previous one plus one.
* futures `trade` `t`: the same, if the placeholders (`NA`) and internal fills (`ADL`, `INSURANCE_FUND`) are counted,
  which is why they pass through here like any other row and are taken out behind it.
* `f` and `l` of futures `aggTrade` have natural holes and prove nothing.

Rules, `next` being the ID that would continue the sequence:

1. The first row ever begins the sequence.
2. ID equals `next`: the row is written (`Run`).
3. ID above `next`: the row is held, because on one connection the exchange sends in order, but another connection or a
   replay may still bring what is missing. Whatever becomes contiguous is released in order.
4. A hole is declared (`Gap`) when rows have been held for `patience_s`, or `hold_limit` rows are held. A jump is
   believed only when a second row goes on behind it: one damaged ID must not cut the sequence in two. A held row that
   later arrivals on its connection contradict, because they come with lower IDs, is refused (`Refused`).
   A held row stays when its ID comes again; if the content is another, the later one is refused.
5. ID below `next` and trade time not later than the newest written: a copy, dropped and counted (`Copies`), unless it
   lies in a declared gap: then it came too late to stand in its place (`Late`).
6. ID below `next` and trade time not earlier than the newest written, but not a row that was written lately: the
   exchange may have restarted its numbering. That is believed (`Restarted`) only when the connection that brought it
   goes on with the next ID, at a time later than the newest written. A connection that goes on elsewhere has brought
   a damaged ID (`Refused`), one that comes to a row that was written has brought copies. Other connections may still
   be in the old numbering meanwhile, or after it: what they bring of it again is a copy.

A hole that history can fill is asked for before it is declared: `holes` names it, `postpone` gives the answer time, the
rows of the answer come in through `take` like any others, and `declare` gives up what is still missing.

Every row that comes in leaves in exactly one of `Run`, `Copies`, `Late`, `Refused`, or is still held; there are never
more than `hold_limit` rows held, `SUSPECTS` rows under suspicion of a new numbering a connection and `GAPS_REMEMBERED`
gaps remembered. Who holds many sequences bounds them together by `held_bytes`.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from operator import eq
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")

FIRST_ID = 1
"""With which a numbering begins that begins anew, for all that is known before history is asked."""
GAPS_REMEMBERED = 1000
SOURCES_REMEMBERED = 8
HISTORY = -1
"""The source of rows that were fetched."""
SUSPECTS = 256
"""Rows that may begin a new numbering and are held until that is decided."""
ROWS_REMEMBERED = 256
"""Rows written lately, for copies to be compared with; of large reads more, as reads are remembered whole."""
ABSENCE_AGAIN_S = 120.0
"""Between two answers that together prove IDs not to exist: a replica of the exchange that lags or lacks rows has
caught up by then, or is not asked a second time."""
HELD_ROW_BYTES = 350
"""What holding a row costs beside its text."""
CONTRADICTED_BY = 2
"""New rows with lower IDs that must come after a held row, on its connection, before it is refused."""


@dataclass(frozen=True, slots=True)
class Run(Generic[Row]):
    """Rows to be written now, in this order, their IDs rising by one; `times` are their trade times."""

    ids: range
    times: Rows[int]
    rows: Rows[Row]


@dataclass(frozen=True, slots=True)
class Gap:
    """IDs that did not come, between the rows written before and those that follow."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Copies(Generic[Row]):
    """Rows whose IDs were written before, or wait already."""

    ids: Rows[int]
    rows: Rows[Row]


@dataclass(frozen=True, slots=True)
class Late(Generic[Row]):
    """Rows of a gap that was declared already."""

    ids: Rows[int]
    times: Rows[int]
    rows: Rows[Row]


@dataclass(frozen=True, slots=True)
class Restarted:
    """The exchange's numbering began anew: what follows does not continue what was."""

    last: int
    first: int
    newest_time: int = field(default=0, compare=False)
    """The latest trade time written before."""


@dataclass(frozen=True, slots=True)
class Refused(Generic[Row]):
    """A row whose ID the rows around it contradict."""

    id: int
    row: Row
    reason: str


Step = Run[Row] | Gap | Copies[Row] | Late[Row] | Restarted | Refused[Row]


@dataclass(slots=True)
class _Held(Generic[Row]):
    row: Row
    time: int
    source: int
    number: int
    """Which arrival of its source it was."""


@dataclass(slots=True)
class _Suspect(Generic[Row]):
    """Rows, rising by one, that may begin a new numbering."""

    first: int
    rows: list[tuple[int, Row]]
    """Time and row of each."""
    sources: set[int]
    """The connections that brought the last of them."""

    @property
    def next_id(self) -> int:
        return self.first + len(self.rows)


@dataclass(slots=True)
class Sequence(Generic[Row]):
    """The state of one feed's numbering."""

    patience_s: float = 1.0
    hold_limit: int = 10_000
    next_id: int | None = None
    """The ID that would continue the sequence; None until the first row."""
    newest_time: int = 0
    """The latest trade time written, in the exchange's unit."""
    alike: Callable[[Row, Row], bool] = eq
    """Whether two rows with one ID are copies of each other."""
    weigh: Callable[[Any], int] = len
    """How many bytes a row has."""
    due_s: float | None = None
    """When `expire` has something to decide; None while no hole waits."""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Declared gaps, oldest first, at most `GAPS_REMEMBERED`."""
    _held: dict[int, _Held[Row]] = field(default_factory=dict)
    _arrived: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each source while rows are held: the number of new rows it brought, and the ID of the latest."""
    held_bytes: int = 0
    """Memory that the held rows take, about."""
    _suspects: list[_Suspect[Row]] = field(default_factory=list)
    _recent: deque[Run[Row]] = field(default_factory=deque)
    """What was written lately, at least `ROWS_REMEMBERED` rows where there were so many."""
    _recent_rows: int = 0
    _forgotten: bool = False
    """Rows of this numbering were written that `_recent` does not hold."""
    _old: list[Run[Row]] = field(default_factory=list)
    """The last rows of the numbering before."""

    @property
    def newest_known_id(self) -> int | None:
        """The highest ID that was written or waits behind a hole; None before the first row."""
        newest = max(self._held, default=-1)
        return None if self.next_id is None else max(self.next_id - 1, newest)

    @property
    def held(self) -> int:
        """How many rows wait for a hole before them, or for the proof of a new numbering."""
        return len(self._held) + sum(len(suspect.rows) for suspect in self._suspects)

    def resume(self, last_id: int, newest_time: int) -> None:
        """Go on after rows that an earlier process wrote: they are not remembered."""
        self.next_id, self.newest_time, self._forgotten = last_id + 1, newest_time, True

    @property
    def is_suspecting(self) -> bool:
        """Whether a row came that may begin a new numbering, and is held until the next one tells (rule 6)."""
        return bool(self._suspects)

    def take(self, ids: list[int], times: list[int], rows: Rows[Row], now_s: float, source: int = 0) -> list[Step[Row]]:
        """Accept rows in the order of their arrival and return what follows from them, in order.

        `source` is the connection that brought them: only within one connection does order prove anything (rule 4).
        """
        first = self.next_id
        if first is not None and not self._held and not self._suspects:
            expected = range(first, first + len(ids))
            if ids and ids == list(expected):
                self.next_id = expected.stop
                newest_time = max(times)
                self.newest_time = max(self.newest_time, newest_time)
                run = Run(expected, times, rows)
                self._remember(run)
                return [run]
        steps = _Steps[Row]()
        for id_, time, row in zip(ids, times, rows, strict=True):
            self._take_one(id_, time, row, source, now_s, steps)
        return steps.closed()

    def fill(self, ids: Rows[int], times: Rows[int], rows: Rows[Row], now_s: float) -> list[Step[Row]]:
        """Accept rows of the exchange's history, which prove nothing about the order of what arrives."""
        steps = _Steps[Row]()
        for id_, time, row in zip(ids, times, rows, strict=True):
            if self.next_id is None or id_ == self.next_id:
                self._write(id_, time, row, steps)
                self._release_following(now_s, steps)
            elif id_ > self.next_id and id_ not in self._held:
                self._hold(id_, _Held(row, time, HISTORY, 0))
            else:
                steps.copy(id_, row)
        return steps.closed()

    def remembered(self, id_: int) -> Row | None:
        """Return the row with an ID that was written lately or is held; None if it is not remembered."""
        held = self._held.get(id_)
        return held.row if held is not None else _found(reversed(self._recent), id_)

    def ids_beside(self, first: int, last: int) -> tuple[list[int], list[int]]:
        """Return the remembered IDs below `first`, the nearest first, and those above `last`, the nearest first."""
        ids = [id_ for run in self._recent for id_ in run.ids]
        held = (id_ for id_, row in self._held.items() if row.source != HISTORY)
        below = sorted({id_ for id_ in ids if id_ < first}, reverse=True)
        return below, sorted({id_ for id_ in (*ids, *held) if id_ > last})

    def expire(self, now_s: float) -> list[Step[Row]]:
        """Decide about the holes that have waited long enough (rule 4)."""
        steps = _Steps[Row]()
        if self.due_s is not None and now_s >= self.due_s:
            self._decide(now_s, steps)
        return steps.closed()

    def holes(self) -> list[tuple[int, int]]:
        """Return what is missing before held rows that nothing contradicts, even a lone one: history can tell."""
        found = []
        expected = self.next_id
        for id_ in sorted(self._plausible()):
            if expected is not None and id_ > expected:
                found.append((expected, id_ - 1))
            expected = id_ + 1
        return found

    def postpone(self, due_s: float) -> None:
        """Decide about the holes later, because somebody fetches what is missing."""
        self.due_s = due_s

    def declare(self) -> list[Step[Row]]:
        """Give up the holes at once: declare them and release what was held behind them."""
        steps = _Steps[Row]()
        for id_ in sorted(self._believed()):
            self._release(id_, steps)
        self._pass_over(steps)
        if not self._held:
            self.due_s = None
        return steps.closed()

    def _plausible(self) -> list[int]:
        """Held rows that no later arrival of their source contradicts."""
        return [id_ for id_, held in self._held.items() if self._lower_since(id_, held) == 0]

    def _believed(self) -> list[int]:
        """Held rows that are neither contradicted nor alone (rule 4)."""
        plausible = self._plausible()
        return plausible if len(plausible) > 1 else []

    def _lower_since(self, id_: int, held: _Held[Row]) -> int:
        """Count the arrivals since `held` if the latest of its source has a lower ID."""
        number, arrived_id = self._arrived.get(held.source, (0, id_))
        return number - held.number if arrived_id < id_ else 0

    def finish(self) -> list[Step[Row]]:
        """Release what is held and believed, at the end of collecting; refuse what nothing more will confirm."""
        steps = _Steps[Row]()
        for suspect in list(self._suspects):
            self._refuse_suspect(suspect, steps)
        for id_ in sorted(self._believed()):
            self._release(id_, steps)
        self._pass_over(steps)
        self._refuse_held("none came after it before the end", steps)
        return steps.closed()

    def _refuse_held(self, why: str, steps: "_Steps[Row]") -> None:
        for id_ in sorted(self._held):
            reason = f"ID {id_} is far from the row before it ({self.next_id}), and {why}"
            steps.add(Refused(id_, self._let_go(id_).row, reason))
        self.due_s = None

    def _take_one(self, id_: int, time: int, row: Row, source: int, now_s: float, steps: "_Steps[Row]") -> None:
        if self._suspects and self._goes_on_anew(id_, time, row, source, steps):
            return
        if self.next_id is None or id_ == self.next_id:
            self._note_arrival(source, id_)
            self._write(id_, time, row, steps)
            self._release_following(now_s, steps)
        elif id_ < self.next_id:
            self._take_below(id_, time, row, source, steps)
        elif id_ in self._held:
            if self.alike(row, self._held[id_].row):
                steps.copy(id_, row)
            else:
                steps.add(Refused(id_, row, f"ID {id_} came twice, and not with the same content"))
        elif self._is_copy(_found(self._old, id_), row):
            steps.copy(id_, row)
        else:
            self._wait(id_, time, row, source, now_s, steps)

    def _take_below(self, id_: int, time: int, row: Row, source: int, steps: "_Steps[Row]") -> None:
        """Take a row whose ID was passed already (rules 5 and 6)."""
        written = _found(reversed(self._recent), id_)
        is_new = not self._is_copy(written, row) and self._may_be_new(time, written)
        if self._held and not is_new:  # what its connection brought before with higher IDs is contradicted (rule 4)
            self._note_arrival(source, id_)
        if written is None and self._in_gap(id_) and (time <= self.newest_time or not self.newest_time):
            steps.late(id_, time, row)
        elif is_new:
            if len(self._suspects) >= SOURCES_REMEMBERED:
                self._refuse_suspect(self._suspects[0], steps)
            self._suspects.append(_Suspect(id_, [(time, row)], {source}))
        else:
            steps.copy(id_, row)

    def _is_copy(self, written: Row | None, row: Row) -> bool:
        return written is not None and self.alike(row, written)

    def _may_be_new(self, time: int, written: Row | None) -> bool:
        """Tell whether a row that was passed may be of a new numbering, by its time (rule 6).

        At the newest time itself that can be told only if all rows of that time are remembered.
        """
        if time != self.newest_time:
            return time > self.newest_time
        known = not self._forgotten or (bool(self._recent) and self._recent[0].times[0] < self.newest_time)
        return written is None and known

    def expect_late(self, first: int, last: int) -> None:
        """Take rows of these IDs as late, not as copies, because they are missing or were thought not to exist."""
        if not self._in_gap(first):
            insort(self.gaps, (first, last))
            del self.gaps[:-GAPS_REMEMBERED]

    def _note_arrival(self, source: int, id_: int) -> int:
        number = self._arrived.pop(source, (0, 0))[0] + 1
        self._arrived[source] = (number, id_)
        if len(self._arrived) > SOURCES_REMEMBERED:
            del self._arrived[next(iter(self._arrived))]
        return number

    def _in_gap(self, id_: int) -> bool:
        place = bisect_right(self.gaps, id_, key=lambda gap: gap[0])
        return place > 0 and id_ <= self.gaps[place - 1][1]

    def _write(self, id_: int, time: int, row: Row, steps: "_Steps[Row]") -> None:
        steps.run(id_, time, row)
        self.next_id = id_ + 1
        self.newest_time = max(self.newest_time, time)
        self._remember(Run(range(id_, id_ + 1), (time,), (row,)))

    def _remember(self, run: Run[Row]) -> None:
        self._recent.append(run)
        self._recent_rows += len(run.ids)
        while self._recent_rows - len(self._recent[0].ids) >= ROWS_REMEMBERED:
            self._recent_rows -= len(self._recent.popleft().ids)
            self._forgotten = True

    def _hold(self, id_: int, held: _Held[Row]) -> None:
        self._held[id_] = held
        self.held_bytes += self.weigh(held.row) + HELD_ROW_BYTES

    def _let_go(self, id_: int) -> _Held[Row]:
        held = self._held.pop(id_)
        self.held_bytes -= self.weigh(held.row) + HELD_ROW_BYTES
        return held

    def _wait(self, id_: int, time: int, row: Row, source: int, now_s: float, steps: "_Steps[Row]") -> None:
        self._hold(id_, _Held(row, time, source, self._note_arrival(source, id_)))
        if self.due_s is None:
            self.due_s = now_s + self.patience_s
        if len(self._held) >= self.hold_limit:
            self._decide(now_s, steps)

    def _release_following(self, now_s: float, steps: "_Steps[Row]") -> None:
        if not self._held:
            return
        before = len(self._held)
        while self.next_id in self._held:
            self._release(self.next_id, steps)
        if not self._held:
            self.due_s = None
        elif len(self._held) < before:
            self.due_s = now_s + self.patience_s

    def _release(self, id_: int, steps: "_Steps[Row]") -> None:
        """Write a held row, declaring whatever is missing before it."""
        held = self._let_go(id_)
        if self.next_id is not None and id_ > self.next_id:
            self._declare(self.next_id, id_ - 1, steps)
        self._write(id_, held.time, held.row, steps)

    def _pass_over(self, steps: "_Steps[Row]") -> None:
        """Let go of held rows in gaps that were just declared: rows behind them were believed before they were."""
        for id_ in sorted(id_ for id_ in self._held if id_ < (self.next_id or 0)):
            steps.late(id_, self._held[id_].time, self._let_go(id_).row)

    def _declare(self, first: int, last: int, steps: "_Steps[Row]") -> None:
        steps.add(Gap(first, last))
        self.gaps.append((first, last))
        del self.gaps[:-GAPS_REMEMBERED]

    def _decide(self, now_s: float, steps: "_Steps[Row]") -> None:
        """Refuse the held rows that later arrivals contradict, release the others behind declared gaps (rule 4)."""
        for id_ in sorted(self._held):
            held = self._held[id_]
            if self._lower_since(id_, held) >= CONTRADICTED_BY:
                arrived_id = self._arrived[held.source][1]
                self._let_go(id_)
                steps.add(Refused(id_, held.row, f"ID {id_} is far from those that came after it ({arrived_id})"))
        full = len(self._held) >= self.hold_limit
        for id_ in sorted(self._believed() or (self._held if full else ())):
            self._release(id_, steps)
        self._pass_over(steps)
        self.due_s = now_s + self.patience_s if self._held else None

    def _goes_on_anew(self, id_: int, time: int, row: Row, source: int, steps: "_Steps[Row]") -> bool:
        """Tell whether a row belongs to a numbering that may be a new one; decide about it (rule 6)."""
        for suspect in self._suspects:
            place = id_ - suspect.first
            if 0 <= place < len(suspect.rows) and self.alike(row, suspect.rows[place][1]):
                if id_ == suspect.next_id - 1:
                    suspect.sources.add(source)
                steps.copy(id_, row)
                return True
        for suspect in [suspect for suspect in self._suspects if source in suspect.sources]:
            if id_ != suspect.next_id:
                self._refuse_suspect(suspect, steps)
            elif self._is_copy(_found(reversed(self._recent), id_), row):
                self._suspects.remove(suspect)
                for number, (_, copy) in enumerate(suspect.rows):
                    steps.copy(suspect.first + number, copy)
            else:
                suspect.rows.append((time, row))
                suspect.sources = {source}
                if max(time, suspect.rows[0][0]) > self.newest_time or len(suspect.rows) >= SUSPECTS:
                    self._restart(suspect, steps)
                return True
        return False

    def _restart(self, proved: _Suspect[Row], steps: "_Steps[Row]") -> None:
        """Begin the new numbering with its lowest row; what lies between it and the proved ones is a hole.

        What is held of the old one is released, even a lone row that is near: none can come behind it any more.
        """
        near = (self.next_id or 0) + self.hold_limit
        for held_id in sorted(self._believed() or (id_ for id_ in self._plausible() if id_ < near)):
            self._release(held_id, steps)
        self._pass_over(steps)
        self._refuse_held("the numbering began anew", steps)
        suspects = sorted(self._suspects, key=lambda suspect: suspect.first)
        begun = [suspect for suspect in suspects if suspect.first <= proved.first]
        self._suspects = [suspect for suspect in suspects if suspect.first > proved.first]
        steps.add(Restarted((self.next_id or 0) - 1, begun[0].first, self.newest_time))
        self._old = list(self._recent)
        self._recent.clear()
        self._recent_rows, self._forgotten = 0, False
        self.gaps.clear()
        self._arrived.clear()
        self.next_id = begun[0].first
        for suspect in begun:
            for id_, (time, row) in enumerate(suspect.rows, suspect.first):
                if id_ == self.next_id:
                    self._write(id_, time, row, steps)
                elif id_ > self.next_id and id_ not in self._held:
                    self._hold(id_, _Held(row, time, min(suspect.sources), 0))
                else:
                    steps.copy(id_, row)
        if self._held:
            self.due_s = 0.0

    def _refuse_suspect(self, suspect: _Suspect[Row], steps: "_Steps[Row]") -> None:
        self._suspects.remove(suspect)
        for id_, (_, row) in enumerate(suspect.rows, suspect.first):
            reason = f"ID {id_} is below the sequence ({self.next_id}) although its trade is newer"
            steps.add(Refused(id_, row, reason))


def _found(runs: Iterable[Run[Row]], id_: int) -> Row | None:
    """Return the row with this ID of the first run that has it."""
    return next((run.rows[id_ - run.ids.start] for run in runs if id_ in run.ids), None)


@dataclass(slots=True)
class Ranges:
    """A set of IDs as ranges (first, last), sorted, never touching each other."""

    spans: list[tuple[int, int]] = field(default_factory=list)

    def add(self, first: int, last: int) -> None:
        """Add all IDs from `first` to `last`."""
        start = bisect_left(self.spans, first - 1, key=lambda span: span[1])
        stop = bisect_right(self.spans, last + 1, key=lambda span: span[0])
        if start < stop:
            first = min(first, self.spans[start][0])
            last = max(last, self.spans[stop - 1][1])
        self.spans[start:stop] = [(first, last)]

    def remove(self, first: int, last: int) -> None:
        """Take out all IDs from `first` to `last`."""
        start = bisect_left(self.spans, first, key=lambda span: span[1])
        stop = bisect_right(self.spans, last, key=lambda span: span[0])
        if start >= stop:
            return
        left = (self.spans[start][0], first - 1)
        right = (last + 1, self.spans[stop - 1][1])
        self.spans[start:stop] = [span for span in (left, right) if span[0] <= span[1]]

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return what of this set lies from `first` to `last`."""
        start = bisect_left(self.spans, first, key=lambda span: span[1])
        stop = bisect_right(self.spans, last, key=lambda span: span[0])
        return [(max(first, low), min(last, high)) for low, high in self.spans[start:stop]]

    def holds(self, id_: int) -> bool:
        """Tell whether an ID is in this set."""
        return bool(self.within(id_, id_))

    @property
    def count(self) -> int:
        """How many IDs these are."""
        return sum(last - first + 1 for first, last in self.spans)


@dataclass(slots=True)
class Shown:
    """IDs that one answer of history has shown not to exist, until a second, later one proves it."""

    again_s: float = ABSENCE_AGAIN_S
    _since: list[tuple[float, Ranges]] = field(default_factory=list)
    """When, and which; oldest first."""

    def note(self, first: int, last: int, now_s: float) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Note what an answer shows; return what of it was shown long enough ago, and what is shown first now.

        What is proved is forgotten here; what was shown only a moment ago is in neither.
        """
        fresh = Ranges([(first, last)])
        proved = Ranges()
        for since_s, ranges in self._since:
            for low, high in ranges.within(first, last):
                fresh.remove(low, high)
                if now_s - since_s >= self.again_s:
                    proved.add(low, high)
        for low, high in proved.spans:
            self.forget(low, high)
        if fresh.spans:
            if not self._since or self._since[-1][0] != now_s:
                self._since.append((now_s, Ranges()))
            for low, high in fresh.spans:
                self._since[-1][1].add(low, high)
        return proved.spans, list(fresh.spans)

    def forget(self, first: int, last: int) -> None:
        """Drop what was shown of these IDs: an answer has them, or they are settled."""
        for _, ranges in self._since:
            ranges.remove(first, last)
        self._since = [(since_s, ranges) for since_s, ranges in self._since if ranges.spans]

    def due_s(self, first: int, last: int) -> float | None:
        """Return when all that was shown of these IDs may be proved; None if nothing was."""
        found = [since_s for since_s, ranges in self._since if ranges.within(first, last)]
        return max(found) + self.again_s if found else None


class _Steps(Generic[Row]):
    """Collects steps, joining neighbours of one kind."""

    def __init__(self) -> None:
        self._done: list[Step[Row]] = []
        self._kind: type[Run[Row] | Late[Row] | Copies[Row]] | None = None
        self._ids: list[int] = []
        self._times: list[int] = []
        self._rows: list[Row] = []

    def run(self, id_: int, time: int, row: Row) -> None:
        self._join(Run, id_)
        self._times.append(time)
        self._rows.append(row)

    def late(self, id_: int, time: int, row: Row) -> None:
        self._join(Late, id_)
        self._times.append(time)
        self._rows.append(row)

    def copy(self, id_: int, row: Row) -> None:
        self._join(Copies, id_)
        self._rows.append(row)

    def add(self, step: Step[Row]) -> None:
        self._close()
        self._done.append(step)

    def closed(self) -> list[Step[Row]]:
        self._close()
        return self._done

    def _join(self, kind: type[Run[Row] | Late[Row] | Copies[Row]], id_: int) -> None:
        if kind is not self._kind:
            self._close()
            self._kind = kind
        self._ids.append(id_)

    def _close(self) -> None:
        if self._kind is Run:
            self._done.append(Run(range(self._ids[0], self._ids[-1] + 1), self._times, self._rows))
        elif self._kind is Late:
            self._done.append(Late(self._ids, self._times, self._rows))
        elif self._kind is Copies:
            self._done.append(Copies(self._ids, self._rows))
        self._kind, self._ids, self._times, self._rows = None, [], [], []
