"""Coverage: of which feeds it is known that nothing is missing, and since when it is not known of the others.

That nothing is missing is proved by a later ID only. While nothing comes, nobody knows.

Rules:

1. A feed is unknown from the start, and from the moment that the last connection ended that carried it: since that
   connection's last sign of life, because what was sent later may not have arrived. A connection without any sign of
   life for `HEARD_WITHIN_S` may be half open, and tells nothing either.
2. It is known again as soon as a newer row comes live on a later connection and is written, because then each hole
   before that row has been filled or declared; or when the exchange, asked after it has acknowledged the subscription,
   names our newest row as its newest.
3. The exchange is asked when `ASK_AFTER_S` have brought no row, and again and again while none comes, with growing
   pauses: a subscription may be acknowledged and dead, so what it named is true of that moment only.
4. What it has beyond our newest row is fetched. Rows prove it, not a number: until they are here the feed stays
   unknown, and only what was named twice counts as missing. A number below our newest row, or absurdly far above,
   proves nothing.
5. At an orderly stop every feed is asked about, first those of which the newest moment is not covered by a row and a
   sign of life. Of these, what cannot be found out within the time given stays unknown, and is on record as that.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from tickcollect.budget import Purpose
from tickcollect.exchanges.binance import stream_name
from tickcollect.feed import Cut, LinkState
from tickcollect.happenings import utc_text
from tickcollect.newest import Answer, Manner, Named, Newest, NotNamed
from tickcollect.venues import Venue
from tickcollect.writer import FETCHED_IN_PLACE, PLAUSIBLE_IDS, Feed, Tell

LOOK_INTERVAL_S = 0.25
ASK_AFTER_S = 1.5
"""An acknowledged subscription brings a row by then, or its market is quiet. The exchange's own statistics may be a
second old: what they show is then no older than the subscription."""
SHORTEST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
LONGEST_PROVED_PAUSE_S = 300.0
ON_ITS_WAY_S = 0.5
"""A row that the exchange has named may still come live."""
HEARD_WITHIN_S = 15.0
"""A connection that lives gives a sign at least every 10 s, because it is pinged when it is idle."""
SURE_FOR_S = 1.0
"""At the stop: what came this lately needs no question."""
USUAL_INTERVALS = 3
KNOWN_TOLD_S = 1.0
SETTLE_INTERVAL_S = 0.05
SLEWED_NS = 10**9
"""A clock that is corrected a little has not been set back."""
NAMES_BYTES = 6000
"""What names may take of an entry of the journal, which has 8 kB (`journal.MAX_LINE`)."""
QUOTED = len('"",')
WHILE_COLLECTING = Manner(Purpose.SETTLE)
TO_BE_SURE = Manner(Purpose.LOOK)
AT_THE_STOP = Manner(Purpose.SETTLE, admitted_within_s=1.0, answered_within_s=2.5)

NEVER = "not connected yet"
CUT = "disconnected"
NO_SIGN = "the connection gives no sign of life"
WAITING = "connected again, and no row has come yet"
BEHIND = "the exchange has newer rows, which are being fetched"
NOT_FETCHED = "the exchange has newer rows"
STALE = "the exchange names an older row than ours as its newest"
ABSURD = "the exchange names an ID as its newest that cannot be"
ROWLESS = "no row has come yet"
UNSURE = "it was not confirmed in time"


@dataclass(slots=True)
class _Doubt:
    """What is open about one feed, since its last connection ended."""

    begun_s: float
    """By the event loop's clock; a row that came later is live."""
    after: int = 0
    """Connections up to this number prove nothing."""
    ask_at_s: float = -math.inf
    """When to ask (again), once the subscription is acknowledged."""
    pause_s: float = SHORTEST_PAUSE_S
    proved_ns: int = 0
    """When the exchange has named our newest row as its newest, by the wall clock; 0 where that is not so any more."""
    live_id: int | None = None
    """The newest row that came live since."""
    named_id: int | None = None
    """The newest row that the exchange has named since."""
    fetch_at_s: float = math.inf
    """When to fetch what was named, unless it has come by then."""
    fetching: "asyncio.Future[None] | None" = None
    reason: str = UNSURE
    """Why the last question has not settled it."""


@dataclass
class _Unknown:
    """Marks feeds as unknown and as known again, and puts both on record, many feeds in one entry."""

    tell: Tell
    _known: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def begin(self, since_ns: Mapping[Feed, int], reason: str) -> None:
        """Mark feeds as unknown that are not yet; those of one exchange are one entry of the journal."""
        self.tell_known()
        by_exchange: defaultdict[str, list[Feed]] = defaultdict(list)
        for feed in since_ns:
            if feed.unknown_since_ns is None:
                feed.unknown_since_ns, feed.unknown_reason = since_ns[feed], reason
                by_exchange[feed.path.exchange].append(feed)
        for exchange, feeds in by_exchange.items():
            since = utc_text(min(since_ns[feed] for feed in feeds))
            for names in _lots([_short(feed) for feed in feeds]):
                self.tell("unknown", exchange, since=since, reason=reason, count=len(names), feeds=names)

    def end(self, feed: Feed) -> None:
        """Mark a feed as known; that is told with the next ones."""
        feed.issued_id = None
        if feed.unknown_since_ns is not None:
            feed.unknown_since_ns, feed.unknown_reason = None, ""
            self._known[feed.path.exchange].append(_short(feed))

    def tell_known(self) -> None:
        """Put on record what is known again."""
        for exchange, all_names in self._known.items():
            for names in _lots(all_names):
                self.tell("known", exchange, count=len(names), feeds=names)
        self._known.clear()


@dataclass
class _Carriers:
    """Which connections carry each feed, and how they are."""

    time_ns: Callable[[], int]
    links_of: dict[Feed, list[LinkState]] = field(default_factory=dict)

    def add(self, feed: Feed, link: LinkState) -> None:
        """Note that a connection carries a feed."""
        links = self.links_of.setdefault(feed, [])
        if link not in links:
            links.append(link)

    def since_s(self, feed: Feed) -> float:
        """Return since when a connection carries a feed, by the event loop's clock; infinity where none does."""
        name = stream_name(feed.path.symbol, feed.path.stream)
        found = (link.acknowledged_at_s(name) for link in self.links_of.get(feed, ()))
        return min((at_s for at_s in found if at_s is not None), default=math.inf)

    def is_heard(self, link: LinkState, within_s: float) -> bool:
        """Tell whether an open connection has given a sign of life lately; not where the clock was set back since."""
        return bool(link.open) and -SLEWED_NS <= self.time_ns() - link.received_ns < within_s * 1e9

    def any_heard(self, feed: Feed, within_s: float) -> bool:
        """Tell whether one of a feed's connections has given a sign of life lately."""
        return any(self.is_heard(link, within_s) for link in self.links_of.get(feed, ()))

    def last_sign_ns(self, feed: Feed) -> int:
        """Return the last sign of life of a feed's open connections; 0 where there is none."""
        return max((link.received_ns for link in self.links_of.get(feed, ()) if link.open), default=0)


@dataclass
class Coverage:
    """Keeps `Feed.unknown_since_ns` and `Feed.unknown_reason` true."""

    links: Mapping[LinkState, Venue]
    feeds_of: Callable[[LinkState], Sequence[Feed]]
    newest_of: Callable[[Venue], Newest]
    tell: Tell
    fetch: Callable[[Feed, Sequence[tuple[int, int]]], "asyncio.Future[None]"] | None
    """Fetches what is missing behind the newest row; None where that is not wanted."""
    can_read: Callable[[], bool]
    """Whether rows are read at present: while the queue is full they wait in the connections."""
    now_s: Callable[[], float]
    """The event loop's clock."""
    time_ns: Callable[[], int] = time.time_ns
    _doubts: dict[Feed, _Doubt] = field(default_factory=dict)
    _baselines: dict[Feed, int] = field(default_factory=dict)
    """Of feeds without a row: the newest ID that the exchange named first, -1 for none. What is newer is missing."""
    _asking: dict[tuple[Newest, Manner], asyncio.Task[None]] = field(default_factory=dict)
    _known_told_s: float = -math.inf
    _is_ending: bool = False
    _is_over: bool = False

    def __post_init__(self) -> None:
        self._unknown = _Unknown(self.tell)
        self._carriers = _Carriers(self.time_ns)

    def begin(self, feeds: Sequence[Feed], since_ns: Mapping[Feed, int]) -> None:
        """Take up feeds that are collected from now on; `since_ns` is the time of their newest row on disk."""
        started_ns = self.time_ns()
        for link in list(self.links):
            for feed in self.feeds_of(link):
                self._carriers.add(feed, link)
        for feed in feeds:
            self._doubts[feed] = _Doubt(self.now_s())
        for group in ([feed for feed in feeds if feed in since_ns], [feed for feed in feeds if feed not in since_ns]):
            self._unknown.begin({feed: min(since_ns.get(feed, started_ns), started_ns) for feed in group}, NEVER)

    async def run(self) -> None:
        """Look after all feeds, until cancelled."""
        try:
            while True:
                self.look()
                self._ask()
                await asyncio.sleep(LOOK_INTERVAL_S)
        finally:
            self._ask_no_more()

    def look(self) -> None:
        """Take note of connections that ended and of rows that came; tell what is known since."""
        if self._is_over:
            return
        for link in list(self.links):
            if link.cuts:
                cuts, link.cuts = link.cuts, {}
                self._note_cuts(link, cuts)
            if link.open and self.can_read() and not self._carriers.is_heard(link, HEARD_WITHIN_S):
                self._note_silence(link)
        now_s = self.now_s()
        for feed, doubt in list(self._doubts.items()):
            self._decide(feed, doubt, now_s)
        if now_s - self._known_told_s >= KNOWN_TOLD_S:
            self._known_told_s = now_s
            self._unknown.tell_known()

    def note_live(self, feed: Feed, connection: int, id_: int) -> None:
        """Take note of a newer row of a feed that is unknown (rule 2)."""
        doubt = self._doubts.get(feed)
        if doubt is not None and connection > doubt.after:
            doubt.live_id = id_
            self._decide(feed, doubt, self.now_s())

    def note_issued(self, feed: Feed, id_: int) -> None:
        """Take note that the exchange has named a row above our newest although its stream is silent."""
        doubt = self._doubts.setdefault(feed, _Doubt(self.now_s()))
        self._judge(feed, doubt, id_, feed.newest_public_id)

    def note_unused(self, since_ns: Mapping[Feed, int], reason: str) -> None:
        """Take note that rows which had come could not be used at the end of collecting, and of the time before."""
        self._unknown.begin({feed: min(at_ns, self.time_ns()) for feed, at_ns in since_ns.items()}, reason)

    # --- What is not known ------------------------------------------------------------------------------------------

    def _note_cuts(self, link: LinkState, cuts: Mapping[str, Cut]) -> None:
        """Doubt the feeds that no connection carries on (rule 1)."""
        since_ns: dict[Feed, int] = {}
        for feed in self.feeds_of(link):
            cut = cuts.get(stream_name(feed.path.symbol, feed.path.stream))
            if cut is None or self._carriers.since_s(feed) < cut.at_s:
                continue
            before = self._doubts.get(feed)
            self._doubts[feed] = _Doubt(cut.at_s, max(cut.connection, before.after if before else 0))
            since_ns[feed] = self._current_ns(feed, cut.heard_ns)
        self._unknown.begin(since_ns, CUT)

    def _note_silence(self, link: LinkState) -> None:
        """Doubt the feeds of a connection that may be half open (rule 1)."""
        since_ns = {
            feed: self._current_ns(feed, link.received_ns)
            for feed in self.feeds_of(link)
            if feed.unknown_since_ns is None and not self._carriers.any_heard(feed, HEARD_WITHIN_S)
        }
        for feed in since_ns:
            self._doubts[feed] = _Doubt(self.now_s())
        self._unknown.begin(since_ns, NO_SIGN)

    def _current_ns(self, feed: Feed, heard_ns: int) -> int:
        """Return up to when all is known that was sent, no later than now."""
        doubt = self._doubts.get(feed)
        known_ns = max(feed.last_received_ns, heard_ns, doubt.proved_ns if doubt else 0)
        return min(known_ns or self.time_ns(), self.time_ns())

    # --- What is known again ----------------------------------------------------------------------------------------

    def _decide(self, feed: Feed, doubt: _Doubt, now_s: float) -> None:
        """Decide from what has come since (rules 2 and 4)."""
        newest = feed.newest_id
        if newest is not None and doubt.live_id is not None and doubt.live_id <= newest:
            self._unknown.end(feed)
            del self._doubts[feed]
        elif doubt.proved_ns:
            if feed.last_seen_s > doubt.begun_s:
                del self._doubts[feed]
        elif doubt.named_id is not None:
            if newest is not None and doubt.named_id <= newest:
                self._prove(feed, doubt)
            elif now_s >= doubt.fetch_at_s:
                self._fetch(feed, doubt)
        elif feed.unknown_reason in (NEVER, CUT, NO_SIGN) and self._carriers.since_s(feed) < math.inf:
            feed.unknown_reason = WAITING

    def _prove(self, feed: Feed, doubt: _Doubt) -> None:
        """Note that the exchange has nothing newer at this moment; until a row comes it is asked again (rule 3)."""
        doubt.proved_ns = self.time_ns()
        doubt.named_id, doubt.fetch_at_s = None, math.inf
        self._unknown.end(feed)

    def _fetch(self, feed: Feed, doubt: _Doubt) -> None:
        """Fetch what lies behind the newest row, unless rows that came live wait for it anyway."""
        doubt.fetch_at_s = math.inf
        first = 1 + (self._baselines.get(feed, -1) if feed.newest_id is None else feed.newest_id)
        last = doubt.named_id or 0
        too_much = feed.newest_id is None and last - first >= FETCHED_IN_PLACE
        is_fetched = doubt.fetching is not None and not doubt.fetching.done()
        if self.fetch is None or too_much or feed.sequence.held or is_fetched:
            self._explain(feed, doubt, NOT_FETCHED)
            return
        self._explain(feed, doubt, BEHIND)
        doubt.fetching = self.fetch(feed, [(first, last)])

    def _explain(self, feed: Feed, doubt: _Doubt, reason: str) -> None:
        doubt.reason = reason
        if feed.unknown_since_ns is not None:
            feed.unknown_reason = reason

    # --- Asking -----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Ask each exchange about the feeds that are due, if it is not being asked (rule 3).

        Those behind whose rows something may be missing do not wait for those that only may have traded since.
        """
        if self._is_ending or not self.can_read():
            return
        now_s = self.now_s()
        due: defaultdict[tuple[Newest, Manner], list[Feed]] = defaultdict(list)
        for feed, doubt in self._doubts.items():
            if now_s >= doubt.ask_at_s and now_s >= self._carriers.since_s(feed) + ASK_AFTER_S:
                is_urgent = not doubt.proved_ns and feed.newest_id is not None
                due[self._newest(feed), WHILE_COLLECTING if is_urgent else TO_BE_SURE].append(feed)
        for key, feeds in due.items():
            asking = self._asking.get(key)
            if asking is None or asking.done():
                newest, manner = key
                self._asking[key] = asyncio.create_task(self._ask_about(newest, feeds, manner))

    async def _ask_about(self, newest: Newest, feeds: Sequence[Feed], manner: Manner) -> None:
        asked = {feed: (self._doubts[feed], feed.newest_public_id) for feed in feeds}
        await newest.ask(feeds, manner, partial(self._note_answer, asked))

    def _ask_no_more(self) -> None:
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()

    def _newest(self, feed: Feed) -> Newest:
        return self.newest_of(self.links[self._carriers.links_of[feed][0]])

    def _note_answer(self, asked: Mapping[Feed, tuple[_Doubt, int | None]], feed: Feed, answer: Answer) -> None:
        """Judge an answer (rule 4), unless a connection has ended since the question: then it is of before."""
        doubt, (doubted, public_id) = self._doubts.get(feed), asked[feed]
        if doubt is None or doubt is not doubted:
            return
        doubt.ask_at_s = self.now_s() + doubt.pause_s
        doubt.pause_s = min(doubt.pause_s * 2, LONGEST_PROVED_PAUSE_S if doubt.proved_ns else LONGEST_PAUSE_S)
        match answer:
            case NotNamed(reason) if self._carriers.since_s(feed) < math.inf or not feed.unknown_reason:
                self._explain(feed, doubt, f"the exchange cannot be asked: {reason}")
            case Named(id_):
                self._judge(feed, doubt, id_, public_id)

    def _judge(self, feed: Feed, doubt: _Doubt, id_: int | None, public: int | None) -> None:
        """Judge what the exchange names; `public` is the newest row of ours that it could know when it was asked."""
        newest = feed.newest_id
        if newest is None and self._is_ending and feed not in self._baselines:
            self._explain(feed, doubt, ROWLESS)
            return
        if newest is None or public is None:
            newest = public = self._baselines.setdefault(feed, -1 if id_ is None else id_)
        id_ = -1 if id_ is None else id_
        if id_ < public:
            self._explain(feed, doubt, STALE)
        elif id_ <= newest:
            self._prove(feed, doubt)
        elif id_ - newest >= PLAUSIBLE_IDS:
            self._explain(feed, doubt, ABSURD)
        else:
            self._note_ahead(feed, doubt, id_)

    def _note_ahead(self, feed: Feed, doubt: _Doubt, id_: int) -> None:
        """Note that the exchange has more than we: the row may be on its way, else it is fetched (rule 4)."""
        since_ns = self._current_ns(feed, 0)
        if doubt.proved_ns:
            doubt.proved_ns, doubt.pause_s = 0, SHORTEST_PAUSE_S
            doubt.ask_at_s = self.now_s() + SHORTEST_PAUSE_S
        elif doubt.named_id is not None and id_ >= doubt.named_id:
            feed.issued_id = doubt.named_id
        if not self._is_ending:
            self._unknown.begin({feed: since_ns}, NOT_FETCHED)
        doubt.named_id = id_
        doubt.fetch_at_s = self.now_s() + ON_ITS_WAY_S

    # --- The end ----------------------------------------------------------------------------------------------------

    async def conclude(self, within_s: float) -> None:
        """Find out what can be found out before an orderly stop (rule 5); what is known then stays so."""
        self.look()
        self._is_ending = True
        self._ask_no_more()
        since_ns = {feed: self._current_ns(feed, self._carriers.last_sign_ns(feed)) for feed in self._carriers.links_of}
        sure = {feed for feed in since_ns if self._is_sure(feed)}
        for feed in since_ns:
            doubt = self._doubts.setdefault(feed, _Doubt(self.now_s()))
            doubt.proved_ns, doubt.reason = 0, feed.unknown_reason or UNSURE
        try:
            async with asyncio.timeout(within_s):
                await self._settle(sorted(since_ns, key=lambda feed: (feed in sure, feed.unknown_since_ns is None)))
        except TimeoutError:
            pass  # what is not settled stays unknown
        self._give_up({feed: at_ns for feed, at_ns in since_ns.items() if feed not in sure or self._is_behind(feed)})

    def _is_behind(self, feed: Feed) -> bool:
        doubt = self._doubts.get(feed)
        return doubt is not None and doubt.named_id is not None

    async def _settle(self, feeds: Iterable[Feed]) -> None:
        """Ask about feeds, and wait until what the exchange has beyond our rows was fetched."""
        by_exchange: defaultdict[Newest, list[Feed]] = defaultdict(list)
        for feed in feeds:
            by_exchange[self._newest(feed)].append(feed)
        await asyncio.gather(*(self._ask_about(newest, some, AT_THE_STOP) for newest, some in by_exchange.items()))
        while any(doubt.named_id is not None and _may_come(doubt) for doubt in self._doubts.values()):
            await asyncio.sleep(SETTLE_INTERVAL_S)
            self.look()

    def _give_up(self, since_ns: Mapping[Feed, int]) -> None:
        """Put on record what could not be settled."""
        self.look()
        by_reason: defaultdict[str, dict[Feed, int]] = defaultdict(dict)
        for feed, at_ns in since_ns.items():
            doubt = self._doubts.get(feed)
            if doubt is not None and not doubt.proved_ns and (doubt.named_id or feed.last_seen_s <= doubt.begun_s):
                by_reason[doubt.reason][feed] = at_ns
                self._explain(feed, doubt, doubt.reason)
        for reason, some in by_reason.items():
            self._unknown.begin(some, reason)
        self._unknown.tell_known()
        self._is_over = True

    def _is_sure(self, feed: Feed) -> bool:
        """Tell whether it is known up to this moment, without a question."""
        usual_s = max(SURE_FOR_S, USUAL_INTERVALS * feed.interval_s)
        is_heard = self._carriers.any_heard(feed, SURE_FOR_S)
        return feed.unknown_since_ns is None and is_heard and self.now_s() - feed.last_seen_s < usual_s


def _short(feed: Feed) -> str:
    return f"{feed.path.stream}/{feed.path.symbol}"


def _lots(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield names so many together that an entry of the journal holds them: it would leave out a longer list."""
    lot: list[str] = []
    for name in names:
        if lot and sum(map(len, lot)) + QUOTED * len(lot) + len(name) > NAMES_BYTES:
            yield lot
            lot = []
        lot.append(name)
    if lot:
        yield lot


def _may_come(doubt: _Doubt) -> bool:
    """Tell whether rows that the exchange has named are still waited for."""
    return doubt.fetch_at_s < math.inf or (doubt.fetching is not None and not doubt.fetching.done())
