"""From what happens to what is told: one message per incident, in words that help. No clock, no thread, no network.

Rules:

1. What happens together is told together: a message waits `COLLECT_S` for what belongs to it. The more often a sort of
   incident comes, the longer its next message waits, up to `PACE_LONGEST_S`; after a quiet time it is quick again.
2. A trouble that is over before it was told is one message. One that was told is told once more when it is over, under
   the same `incident`; while it stands, people are reminded after 1 h, 6 h, 24 h and then daily.
3. Missing rows that are there again within `GAP_OPEN_S` are one message; a gap that stays is told as open, and its end
   later. Lost rows are always told, with IDs and reason.
4. A connection is told as lost when it has been so for longer than was asked for, and the message that it is back says
   what came of the gap. Shorter breaks are counted for the heartbeat; a connection that breaks `BREAKS` times within an
   hour is told, at most once a day.
5. There are never more than `NOTICES` messages within `NOTICES_WITHIN_S`. Where more is due than there is room for, the
   most urgent half of the room is used singly, and the rest is told in one digest. Nothing is dropped without being
   counted.
6. Once a day a heartbeat tells how it goes, what was counted and what is open, so that silence is an alarm. It says
   "all is well" only where nothing is open or unknown, told or not. It and the messages at the end stand beside rule 5.
7. That it is not known whether rows are missing is told after `UNKNOWN_S`, and its end. While the exchange is told as
   not connected that message says so, and this one waits.
8. Memory is bounded, whatever comes: `TROUBLES_KEPT` of a sort are known each, further ones are counted.

All calls come from one thread. `now_s` is a clock that never steps, `now_ns` the time of day.
"""

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tickcollect.alerts.missing import Missing
from tickcollect.alerts.sorts import EVENTS, KINDS, LINES, SORTS, Action, Level, Sort
from tickcollect.alerts.telling import Telling, Trouble, account_of, line_of, say
from tickcollect.alerts.words import NAME_LONGEST, NAMES_SHOWN, clean, counted, duration, number, sentence, utc

__all__ = ["KINDS", "Incidents", "Level", "Notice"]

COLLECT_S = 3.0
PACE_LONGEST_S = 3600.0
QUIET_PACES = 4
"""A sort is quick again when nothing of it was told for this many of its last pauses."""
GAP_OPEN_S = 60.0
BACK_S = 10.0
"""So long a restored connection waits for its gaps to show, and up to `GAP_OPEN_S` for them to be filled."""
UNKNOWN_S = 300.0
"""So long nobody is told that something is unknown: a reconnect and asking the exchange take seconds, with backoff and
a used-up request limit a few minutes, and are no incident."""
BAD_PACE_LONGEST_S = 300.0
"""The longest pause before a loss is told, however often losses come."""
START_WITHIN_S = 600.0
"""What was found at the start waits at most this long to be told together with the start."""
REMINDERS_S = (3600.0, 6 * 3600.0, 24 * 3600.0)
BREAKS = 6
BREAKS_WITHIN_S = 3600.0
NOTICES = 20
NOTICES_WITHIN_S = 600.0
TROUBLES_KEPT = 5000
GROUPS_KEPT = 50
"""Messages of one sort whose incident is not over; further ones join the last."""
AT_THE_END = 3
"""So many messages beside the last one are sent at the end; more are put into one."""
DAY_S = 86_400
_LEVELS: tuple[Level, ...] = ("info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Notice:
    """One message to the people concerned."""

    kind: str
    """One of `KINDS`."""
    level: Level
    title: str
    """One line of plain text: which machine, and what."""
    lines: tuple[str, ...]
    """What more there is to say, one line of plain text each; may be empty."""
    incident: str
    """The same for the beginning and the end of one incident, for channels that can pair them."""
    ended: bool
    """This notice ends its incident, or there is nothing in it that could end."""
    attachments: tuple[Path, ...] = ()
    """Files to send along."""
    lost: tuple[tuple[str, int], ...] = ()
    """Feeds of which IDs are lost, with how many."""

    @property
    def matters(self) -> bool:
        """Whether people need to hear of it, however late: all but plain news."""
        return self.level != "info" or self.kind == "stopped"


@dataclass(frozen=True, slots=True)
class _News:
    """One happening, and when."""

    event: str
    subject: str
    facts: Mapping[str, object]
    now_s: float
    now_ns: int


@dataclass(slots=True, eq=False)
class _Group:
    """Troubles that were told in one message and are not all over, or whose end is not told."""

    incident: str
    open: int = 0
    ended_s: float | None = None
    troubles: dict[str, Trouble] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Topic:
    """One sort of incident: what waits to be told, and what was told and stands."""

    name: str
    sort: Sort
    tell_after_s: float
    """How long a trouble may last before it is told as open."""
    waiting: dict[str, Trouble] = field(default_factory=dict)
    told: dict[str, _Group] = field(default_factory=dict)
    """Of each trouble that was told and whose end was not, the message that told it."""
    groups: list[_Group] = field(default_factory=list)
    more: int = 0
    """Happenings beyond `TROUBLES_KEPT`."""
    told_s: float = -math.inf
    pace_s: float = COLLECT_S
    standing_s: float = 0.0
    """When the first of what stands was told."""
    reminders: int = 0

    def told_trouble(self, key: str) -> Trouble | None:
        """Return a trouble that was told and whose end was not."""
        group = self.told.get(key)
        return None if group is None else group.troubles[key]

    def standing(self) -> list[Trouble]:
        """Return what was told and is not over."""
        return [one for group in self.groups for one in group.troubles.values() if one.ended_s is None]

    def untold(self) -> list[Trouble]:
        """Return what is not over and was not told yet."""
        return [one for one in self.waiting.values() if one.ended_s is None]

    def accounts(self, feed: str) -> list[Missing]:
        """Return what is known to be missing of a feed: what was told, and what waits to be."""
        return [account_of(one) for one in (self.told_trouble(feed), self.waiting.get(feed)) if one is not None]

    def close(self, key: str, news: "_News") -> None:
        """Note the end of what is known under `key`, unless rows are still missing."""
        group = self.told.get(key)
        for trouble in (self.told_trouble(key), self.waiting.get(key)):
            if trouble is None or trouble.ended_s is not None or (trouble.account is not None and trouble.account.open):
                continue
            trouble.ended_s, trouble.ended_ns = news.now_s, news.now_ns
            if group is not None and trouble is group.troubles[key]:
                group.open -= 1
                group.ended_s = news.now_s

    def reopen(self, key: str) -> None:
        """Note that what was told under `key` goes on, if its end was noted and not told."""
        group = self.told.get(key)
        if group is not None and group.troubles[key].ended_s is not None:
            group.troubles[key].ended_s = None
            group.open += 1

    def remind_s(self) -> float:
        """Return when people are reminded of what stands."""
        if not any(group.open for group in self.groups):
            return math.inf
        days_more = max(0, self.reminders - len(REMINDERS_S) + 1)
        return self.standing_s + REMINDERS_S[min(self.reminders, len(REMINDERS_S) - 1)] + days_more * DAY_S

    def told_now(self, now_s: float) -> None:
        """Take the next pause longer, unless the last one is long ago (rule 1)."""
        quiet = now_s - self.told_s > QUIET_PACES * self.pace_s
        self.pace_s = COLLECT_S if quiet else min(self.pace_s * 2, PACE_LONGEST_S)
        self.told_s = now_s


@dataclass(frozen=True, slots=True)
class _Due:
    """One message that is due: of what waits, of a group that is over, or of what still stands."""

    at_s: float
    topic: _Topic
    group: _Group | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class _Told:
    """A message before it goes out, and how many incidents it is about."""

    notice: Notice
    count: int


@dataclass(slots=True)
class _Day:
    """What is counted from one heartbeat to the next."""

    since_ns: int
    events: Counter[str] = field(default_factory=Counter)
    gaps: int = 0
    fetched: int = 0
    absent: int = 0
    lost: int = 0
    outages: int = 0
    breaks: int = 0


class Incidents:
    """Knows what is going on, and what people have been told of it.

    `name` is this collector's, `disconnected_s` how long a connection may be lost before it is told, `heartbeat_at` a
    UTC time such as "08:00" or None, `mute` the kinds of notices that nobody wants. `fetches` is false where nothing
    is fetched from history.
    """

    def __init__(
        self,
        name: str,
        disconnected_s: float,
        heartbeat_at: str | None,
        mute: frozenset[str],
        *,
        fetches: bool = True,
    ) -> None:
        self.name = clean(name, NAME_LONGEST)
        self.changes = 0
        """Counts whatever changes what is not told yet."""
        self._fetches = fetches
        self._disconnected_s = disconnected_s
        self._heartbeat_at = heartbeat_at
        self._mute = mute
        self._topics: dict[str, _Topic] = {}
        self._serial = itertools.count(1)
        self._sent_s: deque[float] = deque(maxlen=NOTICES)
        self._breaks_s: dict[str, deque[float]] = {}
        self._unstable_until_s: dict[str, float] = {}
        self._day: _Day | None = None
        self._heartbeat_ns = 0
        self._started: _News | None = None
        self._stopped: _News | None = None
        self._actions: dict[Action, Callable[[_Topic, _News], None]] = {
            "moment": self._moment,
            "begin": self._begin,
            "end": self._end,
            "hole": self._hole,
        }
        self._holes: dict[str, Callable[[_Topic, _News, tuple[int, int]], None]] = {
            "gap": self._hole_opened,
            "reopened": self._hole_opened,
            "absence_seen": self._hole_opened,
            "damaged": self._hole_opened,
            "file_lost": self._hole_opened,
            "sync_failed": self._hole_opened,
            "fill_waits": self._hole_opened,
            "filled": self._hole_filled,
            "absent": self._hole_absent,
            "lost": self._hole_lost,
        }

    # --- What happens -----------------------------------------------------------------------------------------------

    def note(self, event: str, subject: str, facts: Mapping[str, object], now_s: float, now_ns: int) -> None:
        """Take note of a happening. Cheap; what is due is asked for by `due`."""
        self._today(now_ns).events[event if event in EVENTS else "of an unknown kind"] += 1
        self.changes += 1
        if event != "stopped" and not EVENTS.get(event):
            return
        news = _News(event, clean(subject, NAME_LONGEST) or "?", facts, now_s, now_ns)
        if event == "started":
            self._started = news
        elif event == "stopped":
            self._stopped = news
        for action, sort in EVENTS.get(event, ()):
            for one in _each(news):
                self._actions[action](self._topic(sort), one)

    def _topic(self, name: str) -> _Topic:
        if name not in self._topics:
            patience = {"gap": GAP_OPEN_S, "outage": self._disconnected_s, "unknown": UNKNOWN_S}
            self._topics[name] = _Topic(name, SORTS[name], patience.get(name, 0.0))
        return self._topics[name]

    def _moment(self, topic: _Topic, news: _News) -> None:
        key = news.subject
        if topic.name == "started":
            key = "" if news.event == "started" else f"{news.event} {news.subject}"
        trouble = self._trouble(topic, key, news)
        if trouble is not None:
            trouble.ended_s, trouble.ended_ns = news.now_s, news.now_ns

    def _begin(self, topic: _Topic, news: _News) -> None:
        key = _key(news)
        trouble = topic.told_trouble(key)
        if trouble is not None:
            topic.reopen(key)
            trouble.times += 1
            trouble.detail = line_of(topic.sort.line, news.subject, news.facts)
        else:
            trouble = self._trouble(topic, key, news)
            if trouble is None:
                return
            trouble.ended_s = None
            trouble.since_ns = min(trouble.since_ns, _since_ns(news))
        trouble.streams = _whole(news.facts, "streams") or 0

    def _trouble(self, topic: _Topic, key: str, news: _News) -> Trouble | None:
        """Return what waits to be told under `key`, begun now if nothing does; None where there is no room (rule 8)."""
        line = LINES.get(news.event, topic.sort.line)
        trouble = topic.waiting.get(key)
        if trouble is not None:
            trouble.times += 1
            trouble.last_ns = news.now_ns
            if topic.sort.over and line:
                trouble.detail = line_of(line, news.subject, news.facts)
            return trouble
        if len(topic.waiting) + len(topic.told) >= TROUBLES_KEPT and news.event != "started":
            topic.more += 1
            return None
        is_shown = topic.sort.over or topic.name == "started" or len(topic.waiting) < NAMES_SHOWN
        detail = line_of(line, news.subject, news.facts) if is_shown else ""
        trouble = Trouble(news.subject, news.event, news.now_s, news.now_ns, news.now_ns, detail)
        topic.waiting[key] = trouble
        return trouble

    def _end(self, topic: _Topic, news: _News) -> None:
        key = _key(news)
        trouble = topic.told_trouble(key) or topic.waiting.get(key)
        if trouble is None or trouble.ended_s is not None:
            return
        if topic.name == "outage":
            if key in topic.waiting and news.now_s - trouble.since_s < self._disconnected_s:
                del topic.waiting[key]
                self._note_break(key, trouble, news)
                return
            self._today(news.now_ns).outages += 1
        if topic.name == "unknown" and key in topic.waiting and news.now_s - trouble.since_s < topic.tell_after_s:
            del topic.waiting[key]
            return
        topic.close(key, news)

    def _note_break(self, key: str, trouble: Trouble, news: _News) -> None:
        """Count a short break (rule 4)."""
        self._today(news.now_ns).breaks += 1
        if key not in self._breaks_s and len(self._breaks_s) >= TROUBLES_KEPT:
            return
        breaks_s = self._breaks_s.setdefault(key, deque(maxlen=BREAKS))
        breaks_s.append(news.now_s)
        is_often = len(breaks_s) == BREAKS and news.now_s - breaks_s[0] < BREAKS_WITHIN_S
        if is_often and news.now_s >= self._unstable_until_s.get(key, -math.inf):
            self._unstable_until_s[key] = news.now_s + DAY_S
            facts = {"breaks": BREAKS, "reason": trouble.detail}
            self._moment(self._topic("unstable"), _News("unstable", news.subject, facts, news.now_s, news.now_ns))

    # --- What is missing --------------------------------------------------------------------------------------------

    def _hole(self, topic: _Topic, news: _News) -> None:
        """Keep the account of a feed's missing rows; one that was told goes on beside what waits to be told."""
        first, last = _whole(news.facts, "first_id"), _whole(news.facts, "last_id")
        if first is None or last is None or first > last:
            return
        self._holes[news.event](topic, news, (first, last))
        topic.close(news.subject, news)

    def _new_hole(self, topic: _Topic, news: _News, hole: tuple[int, int]) -> Missing | None:
        """Open a hole that nobody knows of; None where there is no room for a further feed."""
        trouble = self._trouble(topic, news.subject, news)
        if trouble is None:
            return None
        if trouble.account is None:
            trouble.account = Missing(news.subject)
        trouble.account.opened(*hole)
        return trouble.account

    def _hole_opened(self, topic: _Topic, news: _News, hole: tuple[int, int]) -> None:
        known = [account for account in topic.accounts(news.subject) if account.knows(*hole)]
        if not known and news.event == "absence_seen":
            return  # rows may still come by themselves; a gap is on record when it is declared
        if not known:
            self._today(news.now_ns).gaps += 1
            account = self._new_hole(topic, news, hole)
            if account is None:
                return
            trouble = topic.waiting[news.subject]
            if trouble.ended_s is not None:
                trouble.ended_s, trouble.since_s = None, news.now_s
            known = [account]
        for account in known:
            if news.event in _CAUSES:
                account.cause = _fact(news.facts, "detail")
            elif news.event != "gap":
                account.waits = _WAITS.get(news.event, "") or _fact(news.facts, "detail") or _fact(news.facts, "reason")

    def _hole_filled(self, topic: _Topic, news: _News, hole: tuple[int, int]) -> None:
        rows = left = min(_whole(news.facts, "rows") or 0, hole[1] - hole[0] + 1)
        source, took_s, settled = _fact(news.facts, "source"), _seconds(news.facts), 0
        self._today(news.now_ns).fetched += rows
        for account in topic.accounts(news.subject):
            ids, given = account.filled(*hole, left, source, took_s)
            settled, left = settled + ids, left - given
        if not settled:
            self._today(news.now_ns).gaps += 1
            new = self._new_hole(topic, news, hole)
            if new is not None:
                new.filled(*hole, rows, source, took_s)

    def _hole_absent(self, topic: _Topic, news: _News, hole: tuple[int, int]) -> None:
        self._today(news.now_ns).absent += hole[1] - hole[0] + 1
        accounts = topic.accounts(news.subject)
        settled = sum(account.never_published(*hole) for account in accounts)
        if not settled and not any(account.holds(*hole) for account in accounts):
            self._today(news.now_ns).gaps += 1
            new = self._new_hole(topic, news, hole)
            if new is not None:
                new.never_published(*hole)

    def _hole_lost(self, topic: _Topic, news: _News, hole: tuple[int, int]) -> None:
        """Note a loss. Of a gap that was told while others of its message stay open, it is told by itself, at once."""
        reason = _fact(news.facts, "reason")
        self._today(news.now_ns).lost += hole[1] - hole[0] + 1
        told, waits = topic.told_trouble(news.subject), topic.waiting.get(news.subject)
        in_told = told is not None and account_of(told).gone(*hole, reason)
        in_waiting = waits is not None and account_of(waits).gone(*hole, reason)
        goes_on = told is not None and (account_of(told).open or topic.told[news.subject].open > 1)
        if told is not None and in_told and goes_on:
            account_of(told).lost_told += in_told
        settled = in_told or in_waiting
        if settled and not (in_told and goes_on):
            return
        self._today(news.now_ns).gaps += not settled
        new = self._new_hole(topic, news, hole)
        if new is not None:
            new.gone(*hole, reason)

    # --- What is due ------------------------------------------------------------------------------------------------

    def due(self, now_s: float, now_ns: int) -> list[Notice]:
        """Return the messages that are due. Ask once after many happenings, not after each."""
        due = sorted((one for one in self._all_due() if one.at_s <= now_s), key=_urgency)
        room = NOTICES - sum(now_s - sent_s < NOTICES_WITHIN_S for sent_s in self._sent_s)
        if not due or room < 1:
            return []
        singly = len(due) if len(due) < room or len(due) == 1 else room // 2
        told = self._compose(due[:singly], now_s, now_ns)
        told += self._digest(self._compose(due[singly:], now_s, now_ns), now_ns)
        self._sent_s.extend(now_s for _ in told)
        return [one.notice for one in told]

    def next_due_s(self, now_s: float) -> float:
        """Return in how many seconds `due` may have something to tell; infinity while nothing waits."""
        at_s = min((one.at_s for one in self._all_due()), default=math.inf)
        if len(self._sent_s) == NOTICES:
            at_s = max(at_s, self._sent_s[0] + NOTICES_WITHIN_S)
        return max(0.0, at_s - now_s)

    def _all_due(self) -> list[_Due]:
        found = []
        for topic in self._topics.values():
            if topic.waiting:
                found.append(_Due(self._ready_s(topic), topic))
            found += [_Due(self._over_s(topic, group), topic, group) for group in topic.groups if not group.open]
            if topic.groups:
                found.append(_Due(topic.remind_s(), topic, again=True))
        return found

    def _ready_s(self, topic: _Topic) -> float:
        """Return when what waits is told: as soon as nothing of it is open, or what is open has lasted long enough."""
        any_open = any(one.ended_s is None and not _is_urgent(one) for one in topic.waiting.values())
        away = self._away()
        ready_s = min(self._ripe_s(topic, one, away, any_open=any_open) for one in topic.waiting.values())
        is_bad = any(one.account is not None and one.account.is_bad for one in topic.waiting.values())
        pace_s = min(topic.pace_s, BAD_PACE_LONGEST_S) if is_bad else topic.pace_s
        return max(ready_s + COLLECT_S, topic.told_s + pace_s)

    def _ripe_s(self, topic: _Topic, trouble: Trouble, away: AbstractSet[str], *, any_open: bool) -> float:
        """Return from when a trouble can be told, while exchanges are `away` and `any_open` of its sort are open."""
        if topic.name == "started":
            return trouble.since_s + (0.0 if self._started is not None else START_WITHIN_S)
        if topic.name == "unknown" and _exchange(trouble) in away and "disconnected" not in self._mute:
            return math.inf
        if trouble.ended_s is None:
            return trouble.since_s + (0.0 if _is_urgent(trouble) else topic.tell_after_s)
        if topic.name == "gap" and (any_open or _exchange(trouble) in away):
            return max(trouble.ended_s, trouble.since_s + GAP_OPEN_S)
        return trouble.ended_s

    def _away(self) -> AbstractSet[str]:
        """Return the exchanges that were told as not connected and not yet as back, which tells of their gaps, too."""
        outages = self._topics.get("outage")
        return frozenset(key.partition(" ")[0] for key in outages.told) if outages is not None else frozenset()

    def _over_s(self, topic: _Topic, group: _Group) -> float:
        """Return when the end of a group is told; that a connection is back, when its gaps have shown (rule 4)."""
        ended_s = group.ended_s or 0.0
        gaps = self._topics.get("gap")
        if topic.name != "outage":
            return ended_s + COLLECT_S
        exchanges = {one.subject for one in group.troubles.values()}
        if gaps is not None and any(
            one.ended_s is None and _exchange(one) in exchanges for one in gaps.waiting.values()
        ):
            return ended_s + GAP_OPEN_S
        return ended_s + BACK_S

    def _compose(self, due: Iterable[_Due], now_s: float, now_ns: int) -> list[_Told]:
        """Put what is due into words, and note that it was told; without what nobody wants to hear."""
        told = []
        self.changes += 1
        for one in due:
            message: _Told | None
            if one.group is not None and one.group.open:
                continue  # a message before this one told that it goes on
            if one.group is not None:
                message = self._tell_over(one.topic, one.group, now_s, now_ns)
            elif one.again:
                message = self._tell_again(one.topic, now_s, now_ns)
            else:
                message = self._tell_new(one.topic, now_s, now_ns)
            told += [message] if message is not None and message.notice.kind not in self._mute else []
        return told

    def _tell_new(self, topic: _Topic, now_s: float, now_ns: int, *, at_the_end: bool = False) -> _Told | None:
        """Tell what waits and is ripe; what is open of it now stands as told."""
        away = self._away()
        chosen = {
            key: one
            for key, one in topic.waiting.items()
            if at_the_end or self._ripe_s(topic, one, away, any_open=False) <= now_s
        }
        if not chosen:
            return None
        for key in chosen:
            del topic.waiting[key]
        more, topic.more = topic.more, 0
        group = self._stands(topic, {key: one for key, one in chosen.items() if one.ended_s is None}, now_s)
        topic.told_now(now_s)
        incident = group.incident if group is not None else self._incident(topic.name, now_ns)
        return self._message(topic, list(chosen.values()), Telling("new", now_s, now_ns, more), incident)

    def _stands(self, topic: _Topic, opened: Mapping[str, Trouble], now_s: float) -> _Group | None:
        """Note that troubles were told as open, and return the message's group; None where nothing is open."""
        for key, one in opened.items():
            known = topic.told_trouble(key)
            if known is not None:
                account_of(known).add(account_of(one))
                topic.reopen(key)
        fresh = {key: one for key, one in opened.items() if key not in topic.told}
        if not fresh:
            return next((topic.told[key] for key in opened), None)
        if not any(group.open for group in topic.groups):
            topic.standing_s, topic.reminders = now_s, 0
        if len(topic.groups) < GROUPS_KEPT:
            first_ns = min(one.since_ns for one in fresh.values())
            topic.groups.append(_Group(self._incident(topic.name, first_ns)))
        group = topic.groups[-1]
        group.troubles |= fresh
        group.open += len(fresh)
        topic.told |= dict.fromkeys(fresh, group)
        return group

    def _tell_over(self, topic: _Topic, group: _Group, now_s: float, now_ns: int) -> _Told:
        topic.groups.remove(group)
        for key in group.troubles:
            del topic.told[key]
        return self._message(topic, list(group.troubles.values()), Telling("over", now_s, now_ns), group.incident)

    def _tell_again(self, topic: _Topic, now_s: float, now_ns: int) -> _Told | None:
        standing = topic.standing()
        while topic.remind_s() <= now_s:
            topic.reminders += 1
        if not standing:
            return None
        incident = next(group.incident for group in topic.groups if group.open)
        more, topic.more = topic.more, 0
        return self._message(topic, standing, Telling("still", now_s, now_ns, more), incident)

    def _digest(self, told: Sequence[_Told], now_ns: int) -> list[_Told]:
        """Put many messages into one (rule 5); what was lost is told in full there, too."""
        if len(told) < 2:  # noqa: PLR2004 - one needs no digest
            return list(told)
        count = sum(one.count for one in told)
        level = max((one.notice.level for one in told), key=_LEVELS.index)
        lines = []
        for one in told:
            lines.append(one.notice.title.removeprefix(f"{self.name}: ") + ".")
            lines += one.notice.lines if one.notice.kind == "lost" else ()
        title = f"{self.name}: {counted(count, 'more incident')} within a short time"
        incident = self._incident("digest", now_ns)
        lost = tuple(feed for one in told for feed in one.notice.lost)
        return [_Told(Notice("trouble", level, title, tuple(lines), incident, ended=True, lost=lost), count)]

    def _incident(self, what: str, since_ns: int) -> str:
        return f"{self.name}/{what}/{since_ns // 10**9}-{next(self._serial)}"

    def _message(self, topic: _Topic, troubles: Sequence[Trouble], telling: Telling, incident: str) -> _Told:
        is_over = all(one.ended_s is not None for one in troubles)
        telling = replace(telling, fetches=self._fetches)
        if is_over and topic.name == "outage":
            missed, missed_open = self._missed_meanwhile(troubles)
            unknown = self._unknown({one.subject for one in troubles})
            telling = replace(telling, missed=missed, missed_open=missed_open, unknown=unknown)
        said = say(topic.name, troubles, telling)
        title, lost = f"{self.name}: {said.title}", _newly_lost(troubles)
        for one in troubles:
            if one.account is not None:
                one.account.lost_told = one.account.lost
        return _Told(Notice(said.kind, said.level, title, said.lines, incident, is_over, lost=lost), said.count)

    def _unknown(self, exchanges: AbstractSet[str] | None = None) -> int:
        """Return of how many feeds it is not known whether rows are missing, of all exchanges or of some."""
        topic = self._topic("unknown")
        unknown = [*topic.standing(), *topic.untold()]
        return sum(exchanges is None or _exchange(one) in exchanges for one in unknown) + topic.more

    def untold(self, now_s: float, now_ns: int) -> list[Notice]:
        """Return in words what would be grave to forget and waits to be told; nothing is changed by asking."""
        found = []
        for topic in self._topics.values():
            waits = list(topic.waiting.values())
            if not waits:
                continue
            said = say(topic.name, waits, Telling("new", now_s, now_ns, topic.more, fetches=self._fetches))
            if said.level == "error" and said.kind not in self._mute:
                title, lost = f"{self.name}: {said.title}", _newly_lost(waits)
                incident = f"{self.name}/{topic.name}/untold"
                found.append(Notice(said.kind, said.level, title, said.lines, incident, ended=True, lost=lost))
        return found

    def _missed_meanwhile(self, outages: Collection[Trouble]) -> tuple[list[Missing], int]:
        """Take the gaps that outages left out of what waits to be told, and count the feeds whose gap is open."""
        topic = self._topic("gap")
        exchanges, since_s = {one.subject for one in outages}, min(one.since_s for one in outages)
        missed = {key: one for key, one in topic.waiting.items() if _exchange(one) in exchanges}
        settled = [
            key
            for key, one in missed.items()
            if one.ended_s is not None and one.since_s >= since_s and not account_of(one).is_bad
        ]
        open_feeds = sum(one.ended_s is None for one in missed.values())
        return [account_of(topic.waiting.pop(key)) for key in settled], open_feeds

    # --- Once a day, and at the end ---------------------------------------------------------------------------------

    def heartbeat_due(self, now_ns: int) -> bool:
        """Tell whether it is time for the daily heartbeat."""
        self._today(now_ns)
        return bool(self._heartbeat_at) and "heartbeat" not in self._mute and now_ns >= self._heartbeat_ns

    def heartbeat(self, now_s: float, now_ns: int, state: str, *troubles: str) -> Notice:
        """Return the daily message; counting begins anew.

        `state` is how the collector says in one line that it does, `troubles` what it knows to need attention, and
        what it does not know.
        """
        day = self._today(now_ns)
        standing, unknown = self._open_now(now_s, now_ns), self._unknown()
        bad = [f"{counted(len(standing), 'trouble')} open"] if standing else []
        bad += [f"{counted(unknown, 'feed')} unknown"] if unknown else []
        bad += [f"{counted(day.lost, 'row')} lost"] if day.lost else []
        title = f"{self.name}: heartbeat, {' and '.join(bad) or ('not all is well' if troubles else 'all is well')}"
        bad += troubles
        lines = [clean("; ".join((state, *troubles))), *self._counts(day, now_ns), *standing]
        lines.append("This comes every day. If it does not, look at the machine.")
        self._day, self._heartbeat_ns = _Day(now_ns), self._next_heartbeat_ns(now_ns)
        level: Level = "warning" if bad else "info"
        incident = self._incident("heartbeat", now_ns)
        return Notice("heartbeat", level, title, tuple(line for line in lines if line), incident, ended=True)

    def finish(self, now_s: float, now_ns: int) -> list[Notice]:
        """Return what was not told yet and, if there was a stop, its message last, with what is open at the end.

        Further happenings are not expected.
        """
        stopped = self._stopped
        told = []
        for topic in list(self._topics.values()):
            ended = [group for group in topic.groups if not group.open]
            told += [self._tell_over(topic, group, now_s, now_ns) for group in ended]
            if stopped is not None and topic.name in ("gap", "outage", "unknown"):
                self._leave_open(topic, now_s)
            if topic.waiting:
                message = self._tell_new(topic, now_s, now_ns, at_the_end=True)
                told += [message] if message is not None else []
        told = [one for one in told if one.notice.kind not in self._mute]
        if len(told) > AT_THE_END:
            told = self._digest(told, now_ns)
        notices = [one.notice for one in told]
        if stopped is not None and "stopped" not in self._mute:
            notices.append(self._stop_notice(stopped, now_s, now_ns))
        return notices

    def _stop_notice(self, stopped: _News, now_s: float, now_ns: int) -> Notice:
        standing, missing_ids = self._standing(now_s, now_ns), _whole(stopped.facts, "missing") or 0
        unknown = max(self._unknown(), _whole(stopped.facts, "unknown") or 0)
        ran = "" if self._started is None else f" Ran for {duration(int(now_s - self._started.now_s))}."
        lines = [
            line_of("{filled} rows fetched from history; {missing} rows missing.", "", stopped.facts) + ran,
            *standing,
        ]
        if stopped.facts.get("unknown_since"):
            text = "It is not known since {unknown_since} whether rows of {unknown} feeds are missing."
            lines.append(line_of(text, "", stopped.facts))
        elif unknown:
            lines.append(f"Not known whether further rows are missing: {counted(unknown, 'feed')}.")
        if (standing or missing_ids or unknown) and self._fetches:
            lines.append("The next start fetches what can still be had.")
        title = f"{self.name}: stopped after {counted(_whole(stopped.facts, 'rows') or 0, 'row')}"
        title += f", {counted(missing_ids, 'row')} missing" if missing_ids else ""
        title += f", {counted(unknown, 'feed')} unknown" if unknown else ""
        level: Level = "warning" if standing or missing_ids or unknown else "info"
        return Notice("stopped", level, title, tuple(lines), self._incident("stopped", now_ns), ended=True)

    def _leave_open(self, topic: _Topic, now_s: float) -> None:
        """Count what is still open as told: the message of the stop names it."""
        opened = {key: one for key, one in topic.waiting.items() if one.ended_s is None}
        for key in opened:
            del topic.waiting[key]
        if opened:
            self._stands(topic, opened, now_s)

    def _standing(self, now_s: float, now_ns: int) -> list[str]:
        """Return one line for each sort of which something stands."""
        telling = Telling("still", now_s, now_ns)
        found = [(topic.name, topic.standing()) for topic in self._topics.values()]
        titles = [say(name, troubles, telling).title for name, troubles in found if troubles]
        return [f"{title[0].upper()}{title[1:]}." for title in titles]

    def _open_now(self, now_s: float, now_ns: int) -> list[str]:
        """Return one line for each sort of which something stands, and one for each that is open and not told yet."""
        telling = Telling("new", now_s, now_ns)
        untold = [(topic.name, topic.untold()) for topic in self._topics.values()]
        titles = [say(name, troubles, telling).title for name, troubles in untold if troubles]
        return [*self._standing(now_s, now_ns), *(f"{title[0].upper()}{title[1:]}." for title in titles)]

    def _counts(self, day: _Day, now_ns: int) -> list[str]:
        """Return what was counted since the last heartbeat."""
        rows = [
            counted(day.gaps, "gap") if day.gaps else "no gap",
            f"{counted(day.fetched, 'row')} fetched from history" if day.fetched else "",
            f"{number(day.absent)} never published" if day.absent else "",
            f"{number(day.lost)} lost" if day.lost else "none lost",
        ]
        breaks = f"{counted(day.outages, 'disconnection')} of {duration(self._disconnected_s)} or longer"
        odd = [
            f"{event.replace('_', ' ')} {number(day.events[event])}" for event in sorted(day.events) if _is_odd(event)
        ]
        return [
            f"Since {utc(day.since_ns, now_ns)}: {sentence(rows, ', ')}",
            f"{breaks}, {number(day.breaks)} shorter." if day.outages or day.breaks else "No disconnection.",
            f"Also: {', '.join(odd)}." if odd else "",
        ]

    def _today(self, now_ns: int) -> _Day:
        """Return what is counted today; at first, and after the clock was set back by days, set the next heartbeat."""
        if self._day is None:
            self._day = _Day(now_ns)
        if self._heartbeat_ns == 0 or self._heartbeat_ns - now_ns > DAY_S * 10**9:
            self._heartbeat_ns = self._next_heartbeat_ns(now_ns)
        return self._day

    def _next_heartbeat_ns(self, now_ns: int) -> int:
        hours, _, minutes = (self._heartbeat_at or "00:00").partition(":")
        day_ns = DAY_S * 10**9
        at_ns = now_ns // day_ns * day_ns + (int(hours) * 60 + int(minutes)) * 60 * 10**9
        return at_ns if at_ns > now_ns else at_ns + day_ns


_CAUSES = frozenset({"file_lost", "sync_failed", "damaged"})
"""Events by which rows that had been there are gone."""
_WAITS = {"absence_seen": "the exchange's history does not have it; it is asked again before that is believed"}


def _each(news: _News) -> list[_News]:
    """Return an event of several feeds as one of each of them."""
    feeds = news.facts.get("feeds")
    if news.event not in ("unknown", "known") or not isinstance(feeds, list | tuple):
        return [news]
    return [replace(news, subject=f"{news.subject}/{clean(feed, NAME_LONGEST)}") for feed in feeds]


def _since_ns(news: _News) -> int:
    """Return since when something is so: what the event says, unless that makes no sense."""
    try:
        since = datetime.fromisoformat(_fact(news.facts, "since"))
        since_ns = round(since.replace(tzinfo=since.tzinfo or UTC).timestamp() * 1e9)
    except (ValueError, OverflowError, OSError):
        return news.now_ns
    return since_ns if 0 < since_ns <= news.now_ns else news.now_ns


def _newly_lost(troubles: Iterable[Trouble]) -> tuple[tuple[str, int], ...]:
    """Return the feeds of which IDs are lost that nobody was told of, and how many."""
    accounts = [one.account for one in troubles if one.account is not None]
    return tuple((one.feed, one.lost - one.lost_told) for one in accounts if one.lost > one.lost_told)


def _is_odd(event: str) -> bool:
    """Tell whether the heartbeat counts an event by its name: what is neither good news nor counted otherwise."""
    sorts = [sort for action, sort in EVENTS.get(event, ()) if action in ("moment", "begin") and sort != "outage"]
    return event not in EVENTS or any(SORTS[sort].level != "info" for sort in sorts)


def _key(news: _News) -> str:
    """Return what tells one standing trouble from the others of its sort: whose it is, and which connection.

    Of "2 of 3" only the place counts: feeds that begin later add connections.
    """
    link = _fact(news.facts, "link").partition(" of ")[0]
    return f"{news.subject} {link}" if link else news.subject


def _fact(facts: Mapping[str, object], name: str) -> str:
    value = facts.get(name)
    return "" if value is None else clean(value)


def _whole(facts: Mapping[str, object], name: str) -> int | None:
    """Return a count or an ID; None where it is none."""
    value = facts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _ID_END else None


_ID_END = 2**63


def _seconds(facts: Mapping[str, object]) -> float:
    value = facts.get("seconds")
    return float(value) if isinstance(value, int | float) and 0 <= value < _ID_END else 0.0


def _exchange(trouble: Trouble) -> str:
    return trouble.subject.partition("/")[0]


def _is_urgent(trouble: Trouble) -> bool:
    """Tell whether a gap is told at once: rows that had been there are gone."""
    return trouble.account is not None and bool(trouble.account.cause)


def _urgency(due: _Due) -> int:
    """Return a place in the order: what is over last, errors first, and a connection that is back before its gaps."""
    if due.group is not None and due.topic.name != "outage":
        return len(_LEVELS)
    is_bad = any(one.account is not None and one.account.is_bad for one in due.topic.waiting.values())
    return -_LEVELS.index("error" if is_bad else due.topic.sort.level)
