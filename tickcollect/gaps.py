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
6. ID below `next` and trade time later than the newest written: the exchange may have restarted its numbering. That
   too is believed only when the row after it continues it (`Restarted`), otherwise the row is refused.

A hole that history can fill is asked for before it is declared: `holes` names it, `postpone` gives the answer time, the
rows of the answer come in through `take` like any others, and `declare` gives up what is still missing.

Every row that comes in leaves in exactly one of `Run`, `Copies`, `Late`, `Refused`, or is still held; there are never
more than `hold_limit` held and `GAPS_REMEMBERED` gaps remembered.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from operator import eq
from typing import Generic, TypeVar

Row = TypeVar("Row")

GAPS_REMEMBERED = 1000
SOURCES_REMEMBERED = 8
HISTORY = -1
"""The source of rows that were fetched."""
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
    rows: Rows[Row]


@dataclass(frozen=True, slots=True)
class Restarted:
    """The exchange's numbering began anew: what follows does not continue what was."""

    last: int
    first: int


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
    due_s: float | None = None
    """When `expire` has something to decide; None while no hole waits."""
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """Declared gaps, oldest first, at most `GAPS_REMEMBERED`."""
    _held: dict[int, _Held[Row]] = field(default_factory=dict)
    _arrived: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each source while rows are held: the number of new rows it brought, and the ID of the latest."""
    _suspect: tuple[int, Row, int] | None = None

    @property
    def newest_known_id(self) -> int | None:
        """The highest ID that was written or waits behind a hole; None before the first row."""
        newest = max(self._held, default=-1)
        return None if self.next_id is None else max(self.next_id - 1, newest)

    @property
    def held(self) -> int:
        """How many rows wait for a hole before them."""
        return len(self._held) + (self._suspect is not None)

    def take(self, ids: list[int], times: list[int], rows: Rows[Row], now_s: float, source: int = 0) -> list[Step[Row]]:
        """Accept rows in the order of their arrival and return what follows from them, in order.

        `source` is the connection that brought them: only within one connection does order prove anything (rule 4).
        """
        first = self.next_id
        if first is not None and not self._held and self._suspect is None:
            expected = range(first, first + len(ids))
            if ids and ids == list(expected):
                self.next_id = expected.stop
                newest_time = max(times)
                self.newest_time = max(self.newest_time, newest_time)
                return [Run(expected, times, rows)]
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
                self._held[id_] = _Held(row, time, HISTORY, 0)
            else:
                steps.copy(id_, row)
        return steps.closed()

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
        self._refuse_suspect(steps)
        for id_ in sorted(self._believed()):
            self._release(id_, steps)
        for id_, held in sorted(self._held.items()):
            reason = f"ID {id_} is far from the row before it ({self.next_id}), and none came after it before the end"
            steps.add(Refused(id_, held.row, reason))
        self._held.clear()
        self.due_s = None
        return steps.closed()

    def _take_one(self, id_: int, time: int, row: Row, source: int, now_s: float, steps: "_Steps[Row]") -> None:
        if self._suspect is not None and self._restarts(id_, steps):
            self._write(id_, time, row, steps)
        elif self.next_id is None or id_ == self.next_id:
            self._note_arrival(source, id_)
            self._write(id_, time, row, steps)
            self._release_following(now_s, steps)
        elif id_ > self.next_id and id_ not in self._held:
            self._hold(id_, time, row, source, now_s, steps)
        elif id_ in self._held and not self.alike(row, self._held[id_].row):
            steps.add(Refused(id_, row, f"ID {id_} came twice, and not with the same content"))
        elif self._in_gap(id_):
            steps.late(id_, row)
        elif id_ < self.next_id and time > self.newest_time:
            self._refuse_suspect(steps)
            self._suspect = (id_, row, time)
        else:
            steps.copy(id_, row)

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

    def _hold(self, id_: int, time: int, row: Row, source: int, now_s: float, steps: "_Steps[Row]") -> None:
        self._held[id_] = _Held(row, time, source, self._note_arrival(source, id_))
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
        held = self._held.pop(id_)
        if self.next_id is not None and id_ > self.next_id:
            self._declare(self.next_id, id_ - 1, steps)
        self._write(id_, held.time, held.row, steps)

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
                del self._held[id_]
                steps.add(Refused(id_, held.row, f"ID {id_} is far from those that came after it ({arrived_id})"))
        full = len(self._held) >= self.hold_limit
        for id_ in sorted(self._believed() or (self._held if full else ())):
            self._release(id_, steps)
        self.due_s = now_s + self.patience_s if self._held else None

    def _restarts(self, id_: int, steps: "_Steps[Row]") -> bool:
        """Tell whether `id_` continues the suspect row, and if so begin the new numbering with that row (rule 6)."""
        if self._suspect is None:
            return False
        first, row, time = self._suspect
        if id_ != first + 1:
            if id_ == self.next_id or id_ in self._held:
                self._refuse_suspect(steps)
            return False
        self._suspect = None
        for held_id in sorted(self._held):
            self._release(held_id, steps)
        steps.add(Restarted((self.next_id or 0) - 1, first))
        self.due_s = None
        self.gaps.clear()
        self._write(first, time, row, steps)
        return True

    def _refuse_suspect(self, steps: "_Steps[Row]") -> None:
        if self._suspect is None:
            return
        id_, row, _ = self._suspect
        self._suspect = None
        steps.add(Refused(id_, row, f"ID {id_} is below the sequence ({self.next_id}) although its trade is newer"))


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

    @property
    def count(self) -> int:
        """How many IDs these are."""
        return sum(last - first + 1 for first, last in self.spans)


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

    def late(self, id_: int, row: Row) -> None:
        self._join(Late, id_)
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
            self._done.append(Late(self._ids, self._rows))
        elif self._kind is Copies:
            self._done.append(Copies(self._ids, self._rows))
        self._kind, self._ids, self._times, self._rows = None, [], [], []
