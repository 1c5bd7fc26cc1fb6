"""What a message says: the title and the lines for troubles of one sort that are told together.

Rules:

1. The title says what, and of whom. The lines say when, how much, what it means, and what to do
   if anything.
2. Of many, the first few are named and all are counted.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import Formatter
from typing import Literal

from tickcollect.alerts import missing
from tickcollect.alerts.missing import Missing
from tickcollect.alerts.sorts import SORTS, Level, Sort
from tickcollect.alerts.words import (
    NAMES_SHOWN,
    clean,
    counted,
    duration,
    identity,
    names,
    number,
    sentence,
    size,
    span,
    utc,
)


@dataclass(slots=True, eq=False)
class Trouble:
    """Something that is wrong, from its beginning to its end. A moment ends as it begins."""

    subject: str
    event: str
    since_s: float
    since_ns: int
    last_ns: int
    """When it was last told of."""
    detail: str = ""
    ended_s: float | None = None
    ended_ns: int = 0
    times: int = 1
    streams: int = 0
    account: Missing | None = None
    """Of a gap: what is missing."""


@dataclass(frozen=True, slots=True)
class Telling:
    """For what a message is, and when it is written."""

    phase: Literal["new", "over", "still"]
    now_s: float
    now_ns: int
    more: int = 0
    """Troubles that were counted and not kept."""
    missed: Sequence[Missing] = ()
    """What an outage left, as far as it is settled."""
    missed_open: int = 0
    """Feeds whose gap after an outage is not settled."""
    unknown: int = 0
    """Feeds of which it is not known whether an outage left a gap."""
    fetches: bool = True
    """Whether what is missing is fetched from history (`BACKFILL`)."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message's content."""

    kind: str
    level: Level
    title: str
    lines: tuple[str, ...]
    count: int
    """How many incidents it is about."""


def say(sort: str, troubles: Sequence[Trouble], telling: Telling) -> Said:
    """Put troubles of one `sort` (of `SORTS`) into words."""
    return _SPECIAL.get(sort, _say_plainly)(SORTS[sort], troubles, telling)


def _say_plainly(sort: Sort, troubles: Sequence[Trouble], telling: Telling) -> Said:
    """Say what the sort's row says."""
    standing = [one for one in troubles if one.ended_s is None]
    shown = standing or troubles
    is_over = bool(sort.over) and not standing
    count = (len(shown) if sort.over else sum(one.times for one in shown)) + telling.more
    whose = names([one.subject for one in shown[: NAMES_SHOWN + 1]], len(shown) + telling.more)
    template = (sort.over if count == 1 else sort.over_many) if is_over else (sort.one if count == 1 else sort.many)
    title = template.format(subject=whose, n=number(count))
    lines = []
    if is_over:
        seen = max(one.times for one in shown)
        often = f", and was seen {number(seen)} times" if seen > 1 else ""
        lines.append(f"It lasted {_lasted(shown, telling)}, {_from_to(shown, telling)}{often}.")
    for one in shown[:NAMES_SHOWN]:
        times = f" ({number(one.times)} times)" if one.times > 1 and len(shown) > 1 else ""
        whose = f"{one.subject}{times}: " if len(shown) > 1 else "It was: " if is_over else ""
        lines.append(whose + one.detail)
    if is_over:
        return Said(sort.kind, "info", title, tuple(lines), count)
    if sort.over:
        lines.append(f"Since {utc(min(one.since_ns for one in shown), telling.now_ns)}.")
    elif count > 1 or telling.now_s - shown[0].since_s > LATE_S:
        lines.append(f"Seen {_seen(shown, telling)}.")
    if len(troubles) > len(shown):
        lines.append(f"{number(len(troubles) - len(shown))} more were over soon.")
    lines.append(sort.advice if telling.fetches else sort.unfetched or sort.advice)
    if telling.phase == "still":
        title = f"still: {title}, for {_lasted(shown, telling)}"
    return Said(sort.kind, sort.level, title, tuple(line for line in lines if line), count)


LATE_S = 60.0
"""A moment that is told later than this is told with its time."""


def _say_gap(_: Sort, troubles: Sequence[Trouble], telling: Telling) -> Said:
    """Say what is or was missing, and what became of it."""
    accounts = [account_of(one) for one in troubles]
    title = missing.title(accounts, more=telling.more)
    lines = missing.lines(accounts, seen=_seen(troubles, telling), more=telling.more, fetches=telling.fetches)
    if telling.phase == "over":
        lines.append(f"It was open for {_lasted(troubles, telling)}.")
    elif telling.phase == "still":
        title = f"still: {title}, for {_lasted(troubles, telling)}"
    is_open = any(one.open for one in accounts)
    kind, level = _gap_kind(accounts, is_open=is_open)
    return Said(kind, level, title, tuple(lines), sum(max(one.gaps, 1) for one in accounts) + telling.more)


def _gap_kind(accounts: Sequence[Missing], *, is_open: bool) -> tuple[str, Level]:
    if any(one.lost for one in accounts):
        return "lost", "error"
    if any(one.cause for one in accounts):
        return "disk", "error" if is_open else "info"
    return "gap", "warning" if is_open else "info"


def _say_outage(sort: Sort, troubles: Sequence[Trouble], telling: Telling) -> Said:
    """Say which connections are lost or back, and what was missed."""
    gone = [one for one in troubles if one.ended_s is None]
    shown = gone or troubles
    exchanges = sorted({one.subject for one in shown})
    whose = names(exchanges, len(exchanges))
    streams = counted(sum(one.streams for one in shown), "stream")
    what = f"{counted(len(shown) + telling.more, 'connection')} with {streams}"
    lasted, count = _lasted(shown, telling), len(troubles) + telling.more
    if not gone:
        attempts = counted(sum(one.times for one in troubles), "attempt")
        lines = [f"Not connected {_from_to(troubles, telling)}: {what}, {attempts} failed.", *_missed(telling)]
        return Said(sort.kind, "info", f"{whose} connected again after {lasted}", tuple(lines), count)
    title = f"{whose} not connected, {streams}"
    since = utc(min(one.since_ns for one in gone), telling.now_ns)
    reasons = Counter(one.detail for one in gone).most_common(NAMES_SHOWN)
    lines = [f"No connection since {since} ({lasted}), {what}.", *(sentence([reason]) for reason, _ in reasons)]
    if len(troubles) > len(gone):
        lines.append(f"{counted(len(troubles) - len(gone), 'more connection')} came back meanwhile.")
    lines.append("Until it is connected nobody knows whether rows are missing.")
    fetched = (
        ", and fetches what is missed" if telling.fetches else "; what is missed is not fetched (BACKFILL is false)"
    )
    lines.append(f"It goes on trying{fetched}. If this lasts, look at this machine's network.")
    title = f"still: {title}, for {lasted}" if telling.phase == "still" else title
    return Said(sort.kind, sort.level, title, tuple(lines), count)


def _missed(telling: Telling) -> list[str]:
    """Return what came of the gap that an outage left."""
    lines = []
    if telling.unknown:
        lines.append(f"Not known yet whether rows are missing: {counted(telling.unknown, 'feed')}.")
    elif not telling.missed and not telling.missed_open:
        lines.append("No gap has shown so far; if one does, you will be told.")
    if telling.missed:
        lines = [f"Missed meanwhile: {missing.title(telling.missed)}."]
        lines += missing.lines(telling.missed, all_there=not telling.missed_open and not telling.unknown)
    if telling.missed_open:
        lines.append(f"Still waiting for history: {counted(telling.missed_open, 'feed')}; you will be told.")
    return lines


def _say_unknown(sort: Sort, troubles: Sequence[Trouble], telling: Telling) -> Said:
    """Say of which feeds it is not known whether rows are missing, since when and why; or that it is again."""
    unknown = [one for one in troubles if one.ended_s is None]
    shown = unknown or troubles
    count = len(shown) + telling.more
    whose = names([one.subject for one in shown[: NAMES_SHOWN + 1]], count)
    if not unknown:
        lines = (
            f"It was not known {_from_to(troubles, telling)}.",
            "A gap of that time is on record now, and told by itself.",
        )
        return Said(sort.kind, "info", f"known again whether rows are missing, {whose}", lines, count)
    since = utc(min(one.since_ns for one in unknown), telling.now_ns)
    title = f"not known whether rows are missing, {whose}"
    reasons = Counter(one.detail for one in unknown).most_common(NAMES_SHOWN)
    found = [f"Not known since {since}, {counted(count, 'feed')}."]
    found += [sentence([reason]) for reason, _ in reasons if reason]
    found.append("Nothing is counted as missing for that time, and nothing is proved. It goes on finding out.")
    title = f"still: {title}, for {_lasted(troubles, telling)}" if telling.phase == "still" else title
    return Said(sort.kind, sort.level, title, tuple(found), count)


def _say_start(sort: Sort, troubles: Sequence[Trouble], telling: Telling) -> Said:
    """Say what begins, and what an earlier run left behind."""
    by_event = {event: [one for one in troubles if one.event == event] for event in _AT_THE_START}
    started = by_event["started"]
    lines = [one.detail for one in started]
    for event, text in _AT_THE_START.items():
        found = by_event[event]
        if found and text:
            lines.append(text.format(what=counted(len(found), "feed")))
            lines += [_of_subject(one) for one in found[:NAMES_SHOWN] if one.detail]
            if len(found) > NAMES_SHOWN:
                lines.append(f"The other {number(len(found) - NAMES_SHOWN)} are in the log.")
    if telling.more:
        lines.append(f"{number(telling.more)} more were found; the log has each.")
    is_crash = bool(by_event["recovered"] or by_event["not_stopped"])
    if is_crash and telling.fetches:
        lines.append("What is missing is asked for now; what history cannot give, you will be told.")
    elif is_crash:
        lines.append("What was missed is not fetched, because BACKFILL is false.")
    title = "started" if started else "files of an earlier run were taken up"
    after = " after a crash" if started and is_crash else ""
    level: Level = "warning" if is_crash or by_event["foreign_file"] else "info"
    return Said(sort.kind, level, title + after, tuple(lines), 1)


def _of_subject(trouble: Trouble) -> str:
    """Return what is said of one, with whose it is unless it is of the program as a whole."""
    if trouble.event == "not_stopped":
        return sentence([trouble.detail[:1].upper() + trouble.detail[1:]])
    return f"{trouble.subject}: {trouble.detail}"


_AT_THE_START = {
    "started": "",
    "not_stopped": "The run before was not stopped in order: it was killed, or the machine lost power.",
    "recovered": "Files of {what} were put right:",
    "foreign_file": "Files that are not tickcollect's lie in the folders of {what}, and were left alone:",
}

_SPECIAL: dict[str, Callable[[Sort, Sequence[Trouble], Telling], Said]] = {
    "gap": _say_gap,
    "outage": _say_outage,
    "unknown": _say_unknown,
    "started": _say_start,
}


# --- One trouble's own line ------------------------------------------------------------------------------------------


def line_of(template: str, subject: str, facts: Mapping[str, object]) -> str:
    """Fill a row's line with an event's facts, each cleaned and cut; what is missing reads `?`."""
    shown = {name: _fact(name, facts.get(name, "?")) for name in _names_in(template)}
    shown["subject"] = subject
    return clean(template.format(**shown), LINE_LONGEST)


LINE_LONGEST = 500
"""Characters of what is said of one trouble."""


@cache
def _names_in(template: str) -> tuple[str, ...]:
    return tuple(name for _, name, _, _ in Formatter().parse(template) if name)


def _fact(name: str, value: object) -> str:
    if isinstance(value, int | float) and abs(value) < REASONABLE:
        return _FORMS.get(name, number)(value)
    return clean(value)


REASONABLE = 10**18
_FORMS: dict[str, Callable[[float], str]] = {
    "bytes": size,
    "waiting_bytes": size,
    "seconds": duration,
    "first_id": identity,
    "last_id": identity,
    "exchange_id": identity,
    "id": identity,
    "offset_ms": lambda value: number(abs(value)),
    "code": identity,
}
"""How a number reads, by its name; others read with their thousands set apart."""

# --- When ------------------------------------------------------------------------------------------------------------


def account_of(trouble: Trouble) -> Missing:
    """Return a gap's account."""
    assert trouble.account is not None
    return trouble.account


def _seen(troubles: Sequence[Trouble], telling: Telling) -> str:
    first_ns, last_ns = min(one.since_ns for one in troubles), max(one.last_ns for one in troubles)
    return span(first_ns, last_ns, telling.now_ns)


def _lasted(troubles: Sequence[Trouble], telling: Telling) -> str:
    ended_s = max(telling.now_s if one.ended_s is None else one.ended_s for one in troubles)
    return duration(max(0, round(ended_s - min(one.since_s for one in troubles))))


def _from_to(troubles: Sequence[Trouble], telling: Telling) -> str:
    first_ns, last_ns = min(one.since_ns for one in troubles), max(one.ended_ns for one in troubles)
    return span(first_ns, last_ns, telling.now_ns)
