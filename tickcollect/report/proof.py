"""What the record proves of one feed on one UTC day. Pure: what is known in, what it shows out.

Rules:

1. A day reaches from the ID behind the last row of the nearest earlier day to the ID before the first row of the
   nearest later day. Where no such day is on record it begins with its first row, or ends with its last. So a hole
   across midnight counts with both days: nobody knows on which side its trades fell.
2. Each ID of a day is in exactly one place: it is held (a file that is here, or proved to be in a store, has it in its
   name), absent (the exchange's history shows that it was never published), no trade (a placeholder or internal fill
   of the futures `trade`, which has no row), or missing for one of the reasons in `MISSING`.
3. The names of the files decide what is held, never what the journal says was filled. The journal gives reasons.
4. Inside a file of a feed whose IDs rise by one, rows and IDs must be equally many. Where placeholders take IDs, a file
   passes over those that the collector saw, and names do not prove what is between two files: a hole there that the
   journal does not know is taken for placeholders and counted as `assumed`. Where the journal does not reach back so
   far, it is unexplained.
5. An ID that was called absent and opened again counts as missing until it is settled, also inside a file that passes
   over it.
6. A day that is over is complete only if a later row continues it, or if the feed was known to be complete at a moment
   after the day's end (`known_until`). A day that is not over is complete so far only if a live collector knows the
   feed up to now. Times are the exchange's: this machine's clock corrected by what was measured.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from tickcollect.gaps import Ranges
from tickcollect.hours import HOURS
from tickcollect.measured import FeedMeasured
from tickcollect.report.record import (
    DAY_ZERO,
    HELD,
    OPENING,
    SETTLING,
    FeedRecord,
    KnownFile,
    Place,
    Told,
    day_number,
    day_text,
)
from tickcollect.report.vouched import Vouch

DAY_S = 86_400
NO_HOURS = [0] * HOURS
MARGIN_S = 15.0
"""A connection may have been half open for so long before that is noticed."""
MOST_OF_A_DAY_S = 0.9 * DAY_S
"""Connected for so long, a feed that never had a row was looked at on that day."""
NOBODY = "no collector runs"

MISSING = ("gone", "damaged", "lost", "open", "unexplained")
"""Why an ID is missing, in the order in which the reasons are looked for: it was in a sealed file that is not here any
more and that no store has proved to hold; it is in a file that is not what was sealed; the journal calls it lost; the
journal has found it missing and has not given it up; nothing on record tells why."""

FOUND = (OPENING | SETTLING) - {"damaged"}

State = Literal["complete", "incomplete", "quiet", "missing", "unknown"]
Begin = Literal["follows", "first", "renumbered"]
End = Literal["followed", "watched", "running", "unknown", "unproved", "renumbered"]


# --- What is shown ---------------------------------------------------------------------------------------------------


class Ids(msgspec.Struct, frozen=True, kw_only=True):
    """A day's IDs, each counted in one place (rule 2)."""

    first: int | None
    """ID of the first row; None on a day without rows."""
    last: int | None
    begins: Begin
    """`follows` the row before; `first`: nothing older is on record; `renumbered`: the numbering began anew."""
    ends: End
    """`followed` by a later row; `watched`: known to be complete after midnight, without a further row; `running`: the
    day is not over, and a collector knows that nothing is missing so far; `unknown`: it is not over, and nobody knows;
    `unproved`: it is over, and nothing shows that no row is missing at the end; `renumbered`."""
    expected: int
    held: int
    absent: int
    not_trades: int
    assumed: int
    """Those of `not_trades` between two files, where nothing on record shows that no trade is missing."""
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
    """Why IDs are lost, damaged or gone; empty if none are, or nothing tells."""


class Files(msgspec.Struct, frozen=True, kw_only=True):
    """A day's segments."""

    sealed: int
    open: int
    size: int
    """Bytes, as packed."""
    csv_size: int
    """Bytes of rows, unpacked."""
    uploaded: int | None
    """How many sealed ones are proved to be in the configured store, or in any where none is configured; None where
    none is used."""
    not_uploaded: list[str]
    stores: dict[str, int]
    """How many sealed ones are proved to be in each store."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """What the collector measured on the day; times in seconds, latency in milliseconds."""

    measured_s: float
    connected_s: float
    reconnects: int
    """Connections that broke while they carried this feed: one that carried many is counted with each."""
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
    """`complete`; `incomplete`; `quiet`: no trade happened; `missing`: a market without rows; `unknown`: no ID is known
    to be missing, but not whether any is."""
    percent: float | None
    """IDs known of the day that are not missing, rounded down; 100 only if none is. None where no ID is known, or none
    known to be missing and the day's end not known either."""
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
    unknown_since: str = ""
    """UTC: since when it is not known whether IDs are missing; empty where it is known, or nobody tells since when."""
    unknown_reason: str = ""
    """Why it is not known; empty where it is."""

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
    """What a feed's day is looked at with. Times are this machine's."""

    day: int
    now: datetime
    clock_offset: timedelta
    """How far the exchange's clock is ahead of this machine's."""
    wanted: bool
    """The feed is to be collected by the configuration."""
    store: str | None
    """The store of which the files are counted; empty: any store; None where none is used."""
    measured: FeedMeasured | None
    measured_after: FeedMeasured | None
    """What was measured on the day after."""
    vouch: Vouch | None
    """What collectors say of the feed now."""

    @property
    def is_over(self) -> bool:
        """The day is over where the exchange is."""
        return day_number(self.now + self.clock_offset) > self.day

    @property
    def end(self) -> datetime:
        """The day's end by the exchange's clock."""
        return datetime.fromordinal(DAY_ZERO + self.day + 1).replace(tzinfo=UTC)


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
    notes += [*_overlap(feed, held_files), *_unchecked(held_files)]
    if sum(by_hour) != rows:
        notes.append(f"the hours of {rows - sum(by_hour):,} rows are not known")
    is_open = state == "unknown" or (ids is not None and ids.ends in {"unknown", "unproved"})
    since, reason = _unknown(feed, asked) if is_open else ("", "")
    return FeedDay(
        day=day_text(asked.day),
        exchange=feed.path.exchange,
        stream=feed.path.stream,
        symbol=feed.path.symbol,
        state=state,
        percent=_percent(ids, is_open=is_open),
        rows=rows,
        rows_per_hour=by_hour,
        ids=ids,
        holes=holes,
        files=_counted(files, asked.store),
        connection=None if asked.measured is None else _connection(asked.measured),
        notes=notes,
        unknown_since=since,
        unknown_reason=reason,
    )


def _percent(ids: Ids | None, *, is_open: bool) -> float | None:
    if ids is None or (is_open and not ids.missing_total):
        return None
    return percent_of(ids.missing_total, ids.expected)


# --- What is known of a day's end ------------------------------------------------------------------------------------


def known_until(feed: FeedRecord, asked: Asked) -> datetime | None:
    """Return a moment up to which nothing is missing behind the newest row, by the exchange's clock; None if none is.

    A collector that lives tells it; else its last word in the journal, or what was measured on the day after. All are
    taken less what a half-open connection hides.
    """
    moments = [feed.known_at] if feed.known_at is not None else []
    if asked.vouch is not None and asked.vouch.known:
        moments.append(asked.vouch.since)
    if asked.measured_after is not None and asked.measured_after.connected_until_s:
        at = asked.end + timedelta(seconds=asked.measured_after.connected_until_s)
        if feed.doubt is None or at < feed.doubt.since:
            moments.append(at)
    if not moments:
        return None
    return max(moments) + asked.clock_offset - timedelta(seconds=MARGIN_S)


def _is_end_known(feed: FeedRecord, asked: Asked) -> bool:
    """Tell whether it is known that nothing came behind the newest row, up to the day's end or up to now (rule 6)."""
    if not asked.is_over:
        return asked.vouch is not None and asked.vouch.known
    until = known_until(feed, asked)
    return until is not None and until >= asked.end


def _unknown(feed: FeedRecord, asked: Asked) -> tuple[str, str]:
    """Return since when it is not known whether IDs are missing, if somebody tells, and why."""
    if _unseen(feed, asked.day):
        return "", UNSEEN
    if asked.vouch is not None and not asked.vouch.known:
        since, reason = asked.vouch.since, asked.vouch.reason
    elif feed.doubt is not None:
        since, reason = feed.doubt.since, feed.doubt.reason
    else:
        return "", NOBODY if asked.vouch is None else "no later row has come"
    return f"{since:%Y-%m-%dT%H:%M:%SZ}", reason


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
        ends = "renumbered" if _was_seen(feed, asked.day) else "unproved"
    elif asked.is_over:
        ends = "watched" if _is_end_known(feed, asked) else "unproved"
    else:
        ends = "running" if _is_end_known(feed, asked) else "unknown"
    ids = Ranges([(low, high)] if low <= high else [])
    window = _Window(ids, first, last, begins, ends, others)
    for _ in _restarts(feed, asked.day):
        window = _parted(window, files, earlier, later)
    return window


def _parted(
    window: _Window, files: Sequence[KnownFile], earlier: Sequence[KnownFile], later: Sequence[KnownFile]
) -> _Window:
    """Take out what lies between a day's two numberings; join the old to the day before, the new to the day after."""
    known = _union((file.first_id, file.last_id) for file in files)
    between = max(_minus(window.ids, known).spans, key=lambda span: span[1] - span[0], default=None)
    if between is None:
        return window
    window.ids.remove(*between)
    begins, ends = window.begins, window.ends
    before = max((file.last_id for file in earlier if between[0] <= file.last_id <= between[1]), default=None)
    old_first = min((file.first_id for file in files if file.first_id > between[1]), default=None)
    if before is not None and old_first is not None:
        begins = "follows"
        if before + 1 < old_first:
            window.ids.add(before + 1, old_first - 1)
    after = min((file.first_id for file in later if between[0] <= file.first_id <= between[1]), default=None)
    new_last = max((file.last_id for file in files if file.last_id < between[0]), default=None)
    if after is not None and new_last is not None:
        ends = "followed"
        if new_last + 1 < after:
            window.ids.add(new_last + 1, after - 1)
    return replace(window, begins=begins, ends=ends)


def _restarts(feed: FeedRecord, day: int) -> list[datetime]:
    return [at for at in feed.moments["numbering_restarted"] if day_number(at) == day]


def _was_seen(feed: FeedRecord, day: int) -> bool:
    """Tell whether the collector was there when the next numbering after a day's began, so that nothing was missed."""
    later = [at for at in feed.moments["numbering_restarted"] if day_number(at) > day]
    return bool(later) and min(later) not in feed.moments["restarted_unseen"]


def _account(feed: FeedRecord, day: int, window: _Window) -> tuple[Ids, list[Hole]]:
    """Put each ID of the window where it belongs (rule 2)."""
    files = feed.files.get(day, [])
    own = _union((file.first_id, file.last_id) for file in files if file.place in HELD)
    ids = _minus(window.ids, _minus(window.others, own))
    rest = _minus(ids, own)
    told = _told_of(feed, day, ids)
    standing = _standing(told, closes_when_filled=feed.has_placeholders)
    passed_over = Ranges()
    if feed.has_placeholders:
        passed_over = _minus(_split(own, standing.reopened)[0], _at_the_ends(files, standing.reopened))
    own, rest = _minus(own, passed_over), _union([*rest.spans, *passed_over.spans])
    reasons = {
        "gone": _union((file.first_id, file.last_id) for file in files if file.place is Place.GONE),
        "damaged": _union((file.first_id, file.last_id) for file in files if file.place is Place.DAMAGED),
        "absent": standing.absent,
        "lost": standing.lost,
        "open": standing.open,
    }
    parts = {}
    for reason, known in reasons.items():
        parts[reason], rest = _split(rest, known)
    absent = parts.pop("absent")
    assumed = _on_record(feed, day, rest) if feed.has_placeholders else Ranges()
    parts["unexplained"] = _minus(rest, assumed)
    without_row = assumed.count
    if feed.has_placeholders:
        without_row += _passed_over(files) - passed_over.count
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
        assumed=assumed.count,
        missing=missing,
    )
    filled = _split(_union(_spans(told, {"filled"})), own)[0]
    return counts, _holes(ids, told, parts, {"filled": filled, "absent": absent})


def _on_record(feed: FeedRecord, day: int, rest: Ranges) -> Ranges:
    """Return which IDs between files, of which the journal tells nothing, it would have told if they were missing."""
    if feed.journal_begins is not None and feed.journal_begins <= day:
        return rest
    earlier, _ = _neighbours(feed, day)
    ends = {file.last_id for file in (*earlier, *feed.files.get(day, ())) if file.recorded}
    return Ranges([(first, last) for first, last in rest.spans if first - 1 in ends])


def _passed_over(files: Sequence[KnownFile]) -> int:
    """Return how many IDs held files pass over; a file with late rows may lie within another's range."""
    held = [file for file in files if file.place in HELD and file.rows_known]
    return max(0, _union((file.first_id, file.last_id) for file in held).count - sum(file.rows for file in held))


def _at_the_ends(files: Sequence[KnownFile], ids: Ranges) -> Ranges:
    """Return which IDs begin or end a held file, so that it has their rows and does not pass over them."""
    ends = {id_ for file in files if file.place in HELD for id_ in (file.first_id, file.last_id)}
    return _union((id_, id_) for id_ in ends if _within(ids, id_, id_))


@dataclass(slots=True)
class _Standing:
    """How IDs stand by what the journal has told of them last."""

    absent: Ranges = field(default_factory=Ranges)
    lost: Ranges = field(default_factory=Ranges)
    open: Ranges = field(default_factory=Ranges)
    """Told to be missing at some time; what a file has is not missing (rule 3)."""
    reopened: Ranges = field(default_factory=Ranges)
    """Opened again after they were settled, and not settled since (rule 5)."""


def _standing(told: Sequence[Told], *, closes_when_filled: bool) -> _Standing:
    """Return how IDs stand after all that was told, in order.

    Where placeholders take IDs, names do not show what was missing: there `filled` closes what is open.
    """
    now = _Standing()
    for line in told:
        first, last = line.first_id, line.last_id
        if line.event == "reopened":
            now.reopened.add(first, last)
        elif line.event in SETTLING:
            now.reopened.remove(first, last)
        if line.event in OPENING or line.event in {"absence_seen", "store_lost"}:
            now.open.add(first, last)
        if line.event in OPENING:
            now.absent.remove(first, last)
            now.lost.remove(first, last)
        elif line.event == "absent":
            now.absent.add(first, last)
        elif line.event == "lost":
            now.lost.add(first, last)
        elif line.event == "filled" and closes_when_filled:
            now.open.remove(first, last)
    return now


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


WHY = (("lost", "lost"), ("damaged", "damaged"), ("gone", "store_lost"))
"""Of which entry of the journal the reason is told, by why IDs are missing."""


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
        why = {line.event: line.reason for line in reversed(lines) if line.reason}
        told_why = [why[event] for reason, event in WHY if counts[reason] and event in why]
        holes.append(
            Hole(
                first_id=first,
                last_id=last,
                found_at=min((f"{line.at:%Y-%m-%dT%H:%M:%SZ}" for line in lines), default=""),
                filled=_within(settled["filled"], first, last),
                absent=_within(settled["absent"], first, last),
                missing={reason: number for reason, number in counts.items() if number},
                source=next((line.source for line in lines if line.source), ""),
                reason=told_why[0] if told_why else "",
            )
        )
    return holes


def _is_expected(feed: FeedRecord, asked: Asked) -> bool:
    """Tell whether a feed should have rows on a day on which it has none: it was collected before, or is to be now."""
    earlier, later = _neighbours(feed, asked.day)
    seen_before = bool(feed.files.get(asked.day - 1))
    is_collected = asked.vouch is not None and not asked.is_over
    return bool((earlier and later) or seen_before or is_collected or (asked.wanted and not (later and not earlier)))


def _judged(feed: FeedRecord, asked: Asked, ids: Ids | None) -> tuple[State, list[str]]:
    """Return the verdict on a feed's day, and what has to be said of how it is known."""
    if feed.files.get(asked.day):
        assert ids is not None
        notes = [NOTES[place] for place in (ids.begins, ids.ends) if place in NOTES]
        notes += [UNSEEN] if _unseen(feed, asked.day) else [ANEW] if _restarts(feed, asked.day) else []
        notes += [ASSUMED.format(ids.assumed)] if ids.assumed else []
        if ids.missing_total or ids.ends == "unproved":
            return "incomplete", notes
        return "unknown" if ids.ends == "unknown" or _unseen(feed, asked.day) else "complete", notes
    if ids is not None:
        if ids.missing_total:
            return "missing", ["not one row came, although the market traded: its IDs went on"]
        if ids.assumed:
            return "quiet", ["not one row came", ASSUMED.format(ids.assumed)]
        return "quiet", ["no trade happened: the rows before and after the day follow each other"]
    return _judged_without_row(feed, asked)


def _judged_without_row(feed: FeedRecord, asked: Asked) -> tuple[State, list[str]]:
    """Return the verdict on a day of which no ID is known."""
    if any(day_number(at) == asked.day for at in feed.moments["silent"]):
        return "missing", ["not one row came, although its market traded"]
    connected_s = 0.0 if asked.measured is None else asked.measured.connected_s
    was_looked_at = connected_s >= MOST_OF_A_DAY_S
    earlier, _ = _neighbours(feed, asked.day)
    if _is_end_known(feed, asked) and (earlier or was_looked_at or not asked.is_over):
        return "quiet", ["no row came while it was collected; the next row's ID will prove that none was missed"]
    if was_looked_at or (not asked.is_over and (asked.vouch is not None or earlier)):
        return "unknown", ["not one row came"]
    return "missing", [f"not one row came{', and it was not connected all day' if connected_s else ''}"]


def _unseen(feed: FeedRecord, day: int) -> bool:
    """Tell whether a numbering began on the day of which nobody saw the beginning."""
    return any(day_number(at) == day for at in feed.moments["restarted_unseen"])


NOTES = {
    "first": "nothing older is on record",
    "renumbered": "the exchange began its numbering anew, so the IDs of the days beside it do not join",
    "watched": "the next row has not come yet; it was known after the end of the day that none was missing",
    "unproved": "what came after its last row is not known: no later row continues it, and nobody knew at the end of "
    "the day or later that it was the last",
}
"""What is said of a day's beginning and end; nothing of what is usual."""
ANEW = "the exchange began its numbering anew on this day"
UNSEEN = (
    "the exchange began its numbering anew while nobody watched, so nothing shows whether rows around that are missing"
)
ASSUMED = "{:,} IDs without a row between files are taken for placeholders, which nothing proves"


def _overlap(feed: FeedRecord, files: Sequence[KnownFile]) -> list[str]:
    """Tell of IDs in two files; where files pass over IDs, one with late rows may lie within another's range."""
    if feed.has_placeholders:
        return []
    spans = [(file.first_id, file.last_id) for file in files]
    twice = sum(last - first + 1 for first, last in spans) - _union(spans).count
    return [f"{twice:,} IDs are in more than one file"] if twice else []


def _unchecked(files: Sequence[KnownFile]) -> list[str]:
    """Tell of files that only a store holds, sent by a version that did not look into them."""
    count = sum(file.place is Place.STORED and not file.inspected for file in files)
    sent = "1 file was" if count == 1 else f"{count:,} files were"
    said = "that only a store holds, sent by an earlier version, which compared no rows; as many bytes as were sealed"
    return [f"{sent} {said}"] if count else []


def _counted(files: Sequence[KnownFile], store: str | None) -> Files:
    held = [file for file in files if file.place in HELD]
    sealed = [file for file in held if file.place is not Place.OPEN]
    there = [file for file in sealed if (file.stores if store == "" else store in file.stores)]
    names = {file.name for file in there}
    return Files(
        sealed=len(sealed),
        open=len(held) - len(sealed),
        size=sum(file.size for file in held),
        csv_size=sum(file.csv_size for file in held),
        uploaded=None if store is None else len(there),
        not_uploaded=[] if store is None else [file.name for file in sealed if file.name not in names],
        stores=dict(sorted(Counter(name for file in sealed for name in file.stores if name).items())),
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
