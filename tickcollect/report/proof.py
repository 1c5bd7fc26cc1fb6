"""What the record proves of one feed on one UTC day. Pure: what is known in, what it shows out.

Rules:

1. A day reaches from the ID behind the last row of the nearest earlier day to the ID before the first row of the
   nearest later day. Where no such day is on record it begins with its first row, or ends with its last. So a hole
   across midnight counts with both days: nobody knows on which side its trades fell.
2. Each ID of a day is in exactly one place: it is held (a file that is here, or proved to be in a store, has it in its
   name), absent (the exchange's history shows that it was never published), no trade (a placeholder or internal fill
   of the futures `trade`, which has no row), or missing for one of the reasons in `MISSING`.
3. The names of the files decide what is held, never what the journal says was filled. The journal gives reasons.
4. Inside a file of a feed whose IDs rise by one, rows and IDs must be equally many. Where placeholders take IDs, names
   cannot prove that: there a hole that the journal does not know is taken for placeholders.
5. An ID that was called absent and opened again counts as missing until it is settled, also inside a file that passes
   over it.
6. A day without a later row is complete only if the feed was connected up to its end, or if it is not over.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from tickcollect.gaps import Ranges
from tickcollect.hours import HOURS
from tickcollect.measured import FeedMeasured
from tickcollect.report.record import HELD, FeedRecord, KnownFile, Place, Told, day_number, day_text

DAY_S = 86_400
NO_HOURS = [0] * HOURS
CONNECTED_TO_THE_END_S = DAY_S - 30
MOST_OF_A_DAY = 0.9
"""A share of the day: connected for so long, without a row and without an alarm, a feed counts as quiet."""

MISSING = ("gone", "damaged", "lost", "open", "unexplained")
"""Why an ID is missing, in the order in which the reasons are looked for: it was in a sealed file that is not here any
more and that no store has proved to hold; it is in a file that cannot be read; the journal calls it lost; the journal
has found it missing and has not given it up; nothing on record tells why."""

OPENING = frozenset({"gap", "file_lost", "sync_failed", "reopened"})
SETTLING = frozenset({"filled", "absent", "lost"})
FOUND = OPENING | SETTLING

State = Literal["complete", "incomplete", "quiet", "missing"]
Begin = Literal["follows", "first", "renumbered"]
End = Literal["followed", "watched", "running", "unproved", "renumbered"]


# --- What is shown ---------------------------------------------------------------------------------------------------


class Ids(msgspec.Struct, frozen=True, kw_only=True):
    """A day's IDs, each counted in one place (rule 2)."""

    first: int | None
    """ID of the first row; None on a day without rows."""
    last: int | None
    begins: Begin
    """`follows` the row before; `first`: nothing older is on record; `renumbered`: the numbering began anew."""
    ends: End
    """`followed` by a later row; `watched`: connected up to midnight without a further row; `running`: the day is not
    over; `unproved`: nothing shows that no row is missing at the end; `renumbered`."""
    expected: int
    held: int
    absent: int
    not_trades: int
    missing: dict[str, int]
    """By reason (`MISSING`); empty when nothing is missing."""

    @property
    def missing_total(self) -> int:
        """How many IDs are missing for whatever reason."""
        return sum(self.missing.values())


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """IDs that did not come when they should have, or are missing now."""

    first_id: int
    last_id: int
    found_at: str
    """UTC; empty if nothing tells."""
    filled: int
    absent: int
    missing: dict[str, int]
    source: str
    """Where rows were fetched from; empty if none were."""
    reason: str
    """Why IDs are lost; empty if none are."""


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """A day's segments."""

    sealed: int
    open: int
    size: int
    """Bytes, as packed."""
    csv_size: int
    """Bytes of rows, unpacked."""
    uploaded: int | None
    """How many sealed ones are proved to be in the store; None where none is used."""
    not_uploaded: list[str]


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What the collector measured on the day; times in seconds, latency in milliseconds."""

    measured_s: float
    connected_s: float
    reconnects: int
    live_rows: int
    latency_median_ms: float | None
    latency_p99_ms: float | None


class FeedDay(msgspec.Struct, frozen=True, kw_only=True):
    """One feed on one UTC day."""

    day: str
    exchange: str
    stream: str
    symbol: str
    state: State
    """`complete`; `incomplete`; `quiet`: no trade happened; `missing`: a market without rows."""
    percent: float | None
    """IDs of the day that are not missing, rounded down; 100 only if none is. None where no ID is known."""
    rows: int
    rows_per_hour: list[int]
    """Rows in each UTC hour, by trade time."""
    ids: Ids | None
    """None on a day without rows whose neighbours tell of no IDs either."""
    holes: list[Hole]
    files: Files
    connection: Connection | None
    """None if nothing was measured."""
    notes: list[str]

    @property
    def market(self) -> str:
        """Where the rows come from: `binance/trade`."""
        return f"{self.exchange}/{self.stream}"

    @property
    def name(self) -> str:
        """The feed for a person: `BTCUSDT binance/trade`."""
        return f"{self.symbol} {self.market}"

    @property
    def in_order(self) -> bool:
        """Nothing is missing or open."""
        return self.state in {"complete", "quiet"}


def percent_of(missing: int, expected: int) -> float:
    """Return how much of `expected` is not missing, rounded down to four digits: 100 only if nothing is."""
    return (expected - missing) * 1_000_000 // expected / 10_000 if expected else 100.0


# --- The proof -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What a feed's day is looked at with."""

    day: int
    today: int
    wanted: bool
    """The feed is to be collected by the configuration."""
    has_store: bool
    measured: FeedMeasured | None


def prove(feed: FeedRecord, asked: Asked) -> FeedDay | None:
    """Return what is proved of a feed's day; None if the feed was not collected then, and did not have to be."""
    files = feed.files.get(asked.day, [])
    window = _window(feed, asked)
    if not files and not _is_expected(feed, asked):
        return None
    held_files = [file for file in files if file.place in HELD]
    ids, holes = (None, []) if window is None else _account(feed, asked.day, window)
    state, notes = _judged(feed, asked, ids)
    rows = sum(file.rows for file in held_files)
    by_hour = [sum(hour) for hour in zip(*(file.hours or NO_HOURS for file in held_files), NO_HOURS, strict=True)]
    notes += _overlap(held_files)
    if sum(by_hour) != rows:
        notes.append(f"the hours of {rows - sum(by_hour):,} rows are not known")
    return FeedDay(
        day=day_text(asked.day),
        exchange=feed.path.exchange,
        stream=feed.path.stream,
        symbol=feed.path.symbol,
        state=state,
        percent=None if ids is None else percent_of(ids.missing_total, ids.expected),
        rows=rows,
        rows_per_hour=by_hour,
        ids=ids,
        holes=holes,
        files=_counted(files, has_store=asked.has_store),
        connection=None if asked.measured is None else _connection(asked.measured),
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _Window:
    """The IDs of a day (rule 1)."""

    ids: Ranges
    first: int | None
    last: int | None
    begins: Begin
    ends: End
    others: Ranges
    """IDs that files of the neighbouring days hold."""


def _neighbours(feed: FeedRecord, day: int) -> tuple[list[KnownFile], list[KnownFile]]:
    """Return the files of the nearest earlier and the nearest later day with rows."""
    earlier = max((known for known, files in feed.files.items() if known < day and files), default=None)
    later = min((known for known, files in feed.files.items() if known > day and files), default=None)
    return feed.files.get(earlier, []) if earlier else [], feed.files.get(later, []) if later else []


def _window(feed: FeedRecord, asked: Asked) -> _Window | None:
    files = feed.files.get(asked.day, [])
    earlier, later = _neighbours(feed, asked.day)
    first = min((file.first_id for file in files), default=None)
    last = max((file.last_id for file in files), default=None)
    before = max((file.last_id for file in earlier if first is None or file.last_id < first), default=None)
    after = min((file.first_id for file in later if last is None or file.first_id > last), default=None)
    low = first if before is None else before + 1
    high = last if after is None else after - 1
    if low is None or high is None:
        return None
    others = _union((file.first_id, file.last_id) for file in (*earlier, *later) if file.place in HELD)
    begins: Begin = "follows" if before is not None else "renumbered" if earlier else "first"
    ends: End
    if after is not None:
        ends = "followed"
    elif later:
        ends = "renumbered"
    elif asked.day >= asked.today:
        ends = "running"
    else:
        watched = asked.measured is not None and asked.measured.connected_until_s >= CONNECTED_TO_THE_END_S
        ends = "watched" if watched else "unproved"
    ids = Ranges([(low, high)] if low <= high else [])
    for _ in _restarts(feed, asked.day):  # two numberings: what lies between them is no hole
        known = _union((file.first_id, file.last_id) for file in files)
        between = max(_minus(ids, known).spans, key=lambda span: span[1] - span[0], default=None)
        if between is not None:
            ids.remove(*between)
    return _Window(ids, first, last, begins, ends, others)


def _restarts(feed: FeedRecord, day: int) -> list[datetime]:
    return [at for at in feed.moments["numbering_restarted"] if day_number(at) == day]


def _account(feed: FeedRecord, day: int, window: _Window) -> tuple[Ids, list[Hole]]:
    """Put each ID of the window where it belongs (rule 2)."""
    files = feed.files.get(day, [])
    own = _union((file.first_id, file.last_id) for file in files if file.place in HELD)
    ids = _minus(window.ids, _minus(window.others, own))
    rest = _minus(ids, own)
    told = _told_of(feed, day, ids)
    absent_now, reopened = _standing(told)
    passed_over = _split(own, reopened)[0] if feed.has_placeholders else Ranges()
    own, rest = _minus(own, passed_over), _union([*rest.spans, *passed_over.spans])
    reasons = {
        "gone": _union((file.first_id, file.last_id) for file in files if file.place is Place.GONE),
        "damaged": _union((file.first_id, file.last_id) for file in files if file.place is Place.DAMAGED),
        "absent": absent_now,
        "lost": _union(_spans(told, {"lost"})),
        "open": _union(_spans(told, OPENING)),
    }
    parts = {}
    for reason, known in reasons.items():
        parts[reason], rest = _split(rest, known)
    absent = parts.pop("absent")
    without_row = 0
    if feed.has_placeholders:
        without_row = rest.count + sum(f.last_id - f.first_id + 1 - f.rows for f in files if f.place in HELD)
        without_row -= passed_over.count
    else:
        parts["unexplained"] = rest
    missing = {reason: parts[reason].count for reason in MISSING if reason in parts and parts[reason].spans}
    counts = Ids(
        first=window.first,
        last=window.last,
        begins=window.begins,
        ends=window.ends,
        expected=ids.count,
        held=ids.count - sum(missing.values()) - absent.count - without_row,
        absent=absent.count,
        not_trades=without_row,
        missing=missing,
    )
    filled = _split(_union(_spans(told, {"filled"})), own)[0]
    return counts, _holes(ids, told, parts, {"filled": filled, "absent": absent})


def _standing(told: Sequence[Told]) -> tuple[Ranges, Ranges]:
    """Return the IDs that still count as absent, and those that were opened again and not settled since (rule 5)."""
    absent, reopened = Ranges(), Ranges()
    for line in told:
        if line.event == "reopened":
            absent.remove(line.first_id, line.last_id)
            reopened.add(line.first_id, line.last_id)
        elif line.event in SETTLING:
            reopened.remove(line.first_id, line.last_id)
        if line.event == "absent":
            absent.add(line.first_id, line.last_id)
    return absent, reopened


def _told_of(feed: FeedRecord, day: int, ids: Ranges) -> list[Told]:
    """Return what the journal tells of IDs of a day, as long as they were those of its numbering."""
    if not ids.spans:
        return []
    first, last = ids.spans[0][0], ids.spans[-1][1]
    until = min((at for at in feed.moments["numbering_restarted"] if day_number(at) > day), default=None)
    return [
        told
        for told in feed.told
        if told.first_id <= last and first <= told.last_id and (until is None or told.at < until)
    ]


def _holes(ids: Ranges, told: Sequence[Told], missing: dict[str, Ranges], settled: dict[str, Ranges]) -> list[Hole]:
    """Return each stretch of the day in which IDs did not come or are missing."""
    stretches = _split(ids, _union(_spans(told, FOUND)))[0]
    for part in missing.values():
        for first, last in part.spans:
            stretches.add(first, last)
    holes = []
    for first, last in stretches.spans:
        lines = [line for line in told if line.first_id <= last and first <= line.last_id]
        counts = {reason: _within(part, first, last) for reason, part in missing.items()}
        lost = [line.reason for line in lines if line.event == "lost"]
        holes.append(
            Hole(
                first_id=first,
                last_id=last,
                found_at=min((f"{line.at:%Y-%m-%dT%H:%M:%SZ}" for line in lines), default=""),
                filled=_within(settled["filled"], first, last),
                absent=_within(settled["absent"], first, last),
                missing={reason: number for reason, number in counts.items() if number},
                source=next((line.source for line in lines if line.source), ""),
                reason=lost[0] if lost and counts["lost"] else "",
            )
        )
    return holes


def _is_expected(feed: FeedRecord, asked: Asked) -> bool:
    """Tell whether a feed should have rows on a day on which it has none: it was collected before, or is to be now."""
    earlier, later = _neighbours(feed, asked.day)
    seen_before = bool(feed.files.get(asked.day - 1))
    return bool((earlier and later) or seen_before or (asked.wanted and not (later and not earlier)))


def _judged(feed: FeedRecord, asked: Asked, ids: Ids | None) -> tuple[State, list[str]]:
    """Return the verdict on a feed's day, and what has to be said of how it is known."""
    if feed.files.get(asked.day):
        assert ids is not None
        notes = [NOTES[place] for place in (ids.begins, ids.ends) if place in NOTES]
        return "incomplete" if ids.missing_total or ids.ends == "unproved" else "complete", notes
    if ids is not None:
        if ids.missing_total:
            return "missing", ["not one row came, although the market traded: its IDs went on"]
        return "quiet", ["no trade happened: the rows before and after the day follow each other"]
    silent = any(day_number(at) == asked.day for at in feed.moments["silent"])
    connected_s = 0.0 if asked.measured is None else asked.measured.connected_s
    enough_s = MOST_OF_A_DAY * (DAY_S if asked.day < asked.today or asked.measured is None else asked.measured.seconds)
    if connected_s >= enough_s > 0 and not silent:
        return "quiet", ["no row came while it was connected; the next row's ID will prove that none was missed"]
    why = ", although its market traded" if silent else ", and it was not connected all day" if connected_s else ""
    return "missing", [f"not one row came{why}"]


NOTES = {
    "first": "nothing older is on record",
    "renumbered": "the exchange began its numbering anew, so the IDs of the days beside it do not join",
    "watched": "the next row has not come yet; it was connected up to the end of the day",
    "unproved": "what came after its last row is not known: no later row is here, and nothing shows that it was "
    "connected up to midnight",
}
"""What is said of a day's beginning and end; nothing of what is usual."""


def _overlap(files: Sequence[KnownFile]) -> list[str]:
    spans = [(file.first_id, file.last_id) for file in files]
    twice = sum(last - first + 1 for first, last in spans) - _union(spans).count
    return [f"{twice:,} IDs are in more than one file"] if twice else []


def _counted(files: Sequence[KnownFile], *, has_store: bool) -> Files:
    held = [file for file in files if file.place in HELD]
    sealed = [file for file in held if file.place is not Place.OPEN]
    return Files(
        sealed=len(sealed),
        open=len(held) - len(sealed),
        size=sum(file.size for file in held),
        csv_size=sum(file.csv_size for file in held),
        uploaded=sum(file.uploaded for file in sealed) if has_store else None,
        not_uploaded=[file.name for file in sealed if not file.uploaded] if has_store else [],
    )


def _connection(measured: FeedMeasured) -> Connection:
    return Connection(
        measured_s=round(measured.seconds, 1),
        connected_s=round(measured.connected_s, 1),
        reconnects=measured.reconnects,
        live_rows=measured.rows,
        latency_median_ms=measured.latency_at(0.5),
        latency_p99_ms=measured.latency_at(0.99),
    )


# --- Sets of IDs -----------------------------------------------------------------------------------------------------


def _spans(lines: Iterable[Told], events: Iterable[str]) -> Iterable[tuple[int, int]]:
    return [(told.first_id, told.last_id) for told in lines if told.event in events and told.first_id <= told.last_id]


def _union(spans: Iterable[tuple[int, int]]) -> Ranges:
    union = Ranges()
    for first, last in sorted(spans):
        union.add(first, last)
    return union


def _minus(ids: Ranges, others: Ranges) -> Ranges:
    left = Ranges(list(ids.spans))
    for first, last in others.spans:
        left.remove(first, last)
    return left


def _split(ids: Ranges, by: Ranges) -> tuple[Ranges, Ranges]:
    """Return the IDs that are in `by`, and those that are not."""
    out = _minus(ids, by)
    return _minus(ids, out), out


def _within(ids: Ranges, first: int, last: int) -> int:
    """Return how many IDs lie from `first` to `last`."""
    found = 0
    for place in range(bisect_left(ids.spans, first, key=lambda span: span[1]), len(ids.spans)):
        low, high = ids.spans[place]
        if low > last:
            break
        found += min(high, last) - max(low, first) + 1
    return found
