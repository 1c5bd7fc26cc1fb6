"""Watches: a feed's silence and the clocks, which no message tells of.

Rules:

1. A silent feed is no gap, because only a later ID proves one. So a feed that is silent for much longer than it usually
   is gets one look at the exchange: has its market traded past our last ID? All that are silent are asked about in as
   few requests as the exchange allows (`newest`); those whose rows have stopped coming do not wait for the others.
2. If it has not, the market is quiet, and the next look comes later. If it has, the stream is subscribed again; and if
   that does not help, or nothing ever came (a stream on a wrong route is acknowledged and stays silent), the connection
   is dropped for a new one. What was missed is unknown until then, and fetched (`coverage`).
3. A step of this machine's clock is noticed by comparing it with the monotonic clock. Its offset to the exchanges' is
   measured every ten minutes, because `T` and `E` are theirs and the time of arrival is ours. Half the round trip of an
   answer is not known, so nobody is alarmed for it; the quickest of some answers counts. Where another exchange agrees
   with this machine, it is the exchange's clock that is wrong.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loguru import logger

from tickcollect.budget import Purpose
from tickcollect.exchanges.binance import (
    server_time_ms,
    stream_name,
)
from tickcollect.feed import LinkState
from tickcollect.newest import Answer, Manner, Newest, NotNamed
from tickcollect.rest import Clock, RestError
from tickcollect.venues import Venue
from tickcollect.writer import Feed, Tell

SHORTEST_SILENCE_S = 10.0
SILENT_INTERVALS = 20
"""A feed is looked into when it is silent for this many of its usual intervals."""
SUBSCRIBED_AGAIN_S = 5.0
SILENCE_LOOK_S = 1.0
LOOK = Manner(Purpose.LOOK, admitted_within_s=20.0)
LOOK_AT_STOPPED = Manner(Purpose.SETTLE, admitted_within_s=20.0)
"""For feeds whose rows have stopped coming: hundreds that never had one do not hold this up."""
LONGEST_QUIET_CHECK_S = 3600.0
CLOCK_LOOK_S = 1.0
CLOCK_STEP_S = 1.0
CLOCK_INTERVAL_S = 600.0
CLOCK_WRONG_MS = 2000
CLOCK_TRIES = 3
CLOCK_ANSWER_S = 10.0


@dataclass
class _Silence:
    """A feed's silence: since when, and what was done about it."""

    since_s: float = -math.inf
    begun_s: float = -math.inf
    """Since when, where it outlasts connections."""
    check_after_s: float = 0.0
    """How long it may last before the exchange is asked (again)."""
    newest_id: int | None = None
    """The exchange's newest ID when it was asked before: only a newer one shows that the market trades."""
    asked_again: bool = False
    """Whether the stream was subscribed a second time."""
    told_s: float | None = None
    """When it was told that the feed is silent; None while it is not."""


@dataclass
class SilenceWatch:
    """Knows for how long each feed has been silent, and what to do about it (rules 1 and 2)."""

    links: Mapping[LinkState, Venue]
    feeds_of: Callable[[LinkState], Sequence[Feed]]
    newest_of: Callable[[Venue], Newest]
    tell: Tell
    first_data_s: float
    """How long a new subscription may bring nothing."""
    note_issued: Callable[[Feed, int], None]
    """Told of rows that the exchange has and a silent feed has not."""
    can_read: Callable[[], bool]
    """Whether rows are read at present; while they are not, it is we who are silent."""
    _silences: dict[Feed, _Silence] = field(default_factory=dict)
    _asking: dict[tuple[Newest, Manner], asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        """Look for silent feeds, until cancelled; a ban or a slow answer holds up the looks at that exchange only."""
        try:
            while True:
                await asyncio.sleep(SILENCE_LOOK_S)
                if self.can_read():
                    self._look(asyncio.get_running_loop().time())
        finally:
            for task in self._asking.values():
                task.cancel()

    def _look(self, now_s: float) -> None:
        silent: dict[tuple[Newest, Manner], dict[Feed, LinkState]] = {}
        for state, venue in list(self.links.items()):
            for feed in self.feeds_of(state):
                if self._is_silent(feed, state, now_s):
                    manner = LOOK_AT_STOPPED if feed.last_seen_s > state.connected_at_s else LOOK
                    silent.setdefault((self.newest_of(venue), manner), {})[feed] = state
        for key, feeds in silent.items():
            asking = self._asking.get(key)
            if asking is None or asking.done():
                self._asking[key] = asyncio.create_task(self._look_into(*key, feeds, now_s))

    def _is_silent(self, feed: Feed, state: LinkState, now_s: float) -> bool:
        """Tell whether a feed has been silent for so long, by its own rate, that the exchange should be asked."""
        if not state.connected:
            return False
        silence = self._silences.setdefault(feed, _Silence())
        if silence.told_s is not None and feed.last_seen_s > silence.told_s:
            self.tell("data_again", feed.name, seconds=round(feed.last_seen_s - silence.begun_s))
            silence.told_s = None
        since_s = max(feed.last_seen_s, state.connected_at_s)
        if silence.since_s != since_s:
            silence.since_s = since_s
            silence.asked_again = False
            usual_s = feed.interval_s * SILENT_INTERVALS
            silence.check_after_s = (
                min(max(usual_s, SHORTEST_SILENCE_S), LONGEST_QUIET_CHECK_S)
                if feed.last_seen_s > state.connected_at_s
                else self.first_data_s
            )
        return now_s - since_s > silence.check_after_s

    async def _look_into(self, newest: Newest, manner: Manner, silent: Mapping[Feed, LinkState], now_s: float) -> None:
        """Ask once whether the markets have traded past our last IDs, before anybody is alarmed."""
        since_s = {feed: self._silences[feed].since_s for feed in silent}

        def judge(feed: Feed, answer: Answer) -> None:
            self._judge(feed, silent[feed], answer, since_s[feed], now_s)

        await newest.ask(sorted(silent, key=since_s.__getitem__), manner, judge)

    def _judge(self, feed: Feed, state: LinkState, answer: Answer, since_s: float, now_s: float) -> None:
        """Decide what an answer means for a feed that was silent since `since_s` when it was asked about."""
        silence = self._silences[feed]
        if silence.since_s != since_s or feed.last_seen_s > since_s:
            return
        seconds = round(now_s - since_s)
        if isinstance(answer, NotNamed):
            silence.check_after_s = seconds + self.first_data_s
            self.tell("silence_unclear", feed.name, seconds=seconds, detail=answer.reason)
            return
        if answer.id is not None and feed.newest_id is not None and answer.id > feed.newest_id:
            self.note_issued(feed, answer.id)
        known = max(
            (id_ for id_ in (feed.sequence.newest_known_id, silence.newest_id) if id_ is not None), default=None
        )
        silence.newest_id = answer.id
        if answer.id is None or known is None or answer.id <= known:
            if known is not None:
                self.tell("quiet", feed.name, seconds=seconds)
            silence.check_after_s = min(seconds * 2.0, seconds + LONGEST_QUIET_CHECK_S)
            return
        self._end_silence(feed, state, answer.id, seconds)

    def _end_silence(self, feed: Feed, state: LinkState, newest_id: int, seconds: int) -> None:
        """Do something about a feed that is silent while its market trades: subscribe again, then connect anew."""
        silence = self._silences[feed]
        if state.current is None:
            return
        if feed.last_seen_s > state.connected_at_s and not silence.asked_again:
            silence.asked_again = True
            silence.check_after_s = seconds + SUBSCRIBED_AGAIN_S
            state.current.subscribe_again(stream_name(feed.path.symbol, feed.path.stream))
            return
        if silence.told_s is None:
            silence.begun_s = silence.since_s
        silence.told_s = asyncio.get_running_loop().time()
        self.tell("silent", feed.name, seconds=seconds, exchange_id=newest_id)
        state.current.drop(f"{feed.path.stream} of {feed.path.symbol} is silent although its market trades")


@dataclass(frozen=True, slots=True)
class ClockReading:
    """How far an exchange's clock seemed ahead of this machine's, and how long the answer took, both in milliseconds.

    The exchange read its clock at some moment between question and answer: half the round trip is not known.
    """

    offset_ms: int
    round_trip_ms: int

    @property
    def is_wrong(self) -> bool:
        """Whether the clocks differ by too much wherever in the round trip the exchange read its own."""
        return abs(self.offset_ms) - self.round_trip_ms / 2 >= CLOCK_WRONG_MS

    @property
    def is_right(self) -> bool:
        """Whether they do not differ by too much wherever in the round trip that was."""
        return abs(self.offset_ms) + self.round_trip_ms / 2 < CLOCK_WRONG_MS


@dataclass
class ClockWatch:
    """Watches this machine's clock (rule 3)."""

    venues: Sequence[Venue]
    tell: Tell
    offsets_ms: dict[str, int] = field(default_factory=dict)
    """How far each exchange's clock is ahead of this machine's."""
    clock: Clock = field(default_factory=Clock)
    _again: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the offsets should be measured before their time."""

    async def run(self) -> None:
        """Notice steps of this machine's clock, and measure its offset to the exchanges', until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._notice_steps())
            tasks.create_task(self._measure_now_and_then())

    async def _notice_steps(self) -> None:
        before_s = self.clock.wall() - self.clock.monotonic()
        while True:
            await self.clock.sleep(CLOCK_LOOK_S)
            offset_s = self.clock.wall() - self.clock.monotonic()
            if abs(offset_s - before_s) > CLOCK_STEP_S:
                self.tell("clock_stepped", "this machine", seconds=round(offset_s - before_s, 1))
                self._again.set()
            before_s = offset_s

    async def _measure_now_and_then(self) -> None:
        while True:
            self._again.clear()
            await self.measure()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOCK_INTERVAL_S):
                    await self._again.wait()

    async def measure(self) -> None:
        """Ask each exchange for its time, all at once, and tell whose clock is right and whose is not."""
        readings = await asyncio.gather(*(self._measure(venue) for venue in self.venues))
        told = [(venue, reading) for venue, reading in zip(self.venues, readings, strict=True) if reading]
        wrong = {venue.market.name: reading for venue, reading in told if reading.is_wrong}
        right = {venue.market.name for venue, reading in told if reading.is_right}
        # One clock against several: the odd one is wrong. This machine's is one of those that agree with it.
        event = "exchange_clock_wrong" if len(right) >= max(1, len(wrong)) else "clock_wrong"
        for name, reading in wrong.items():
            self._tell(event, name, reading)

    async def _measure(self, venue: Venue) -> ClockReading | None:
        """Return the quickest of some answers, or None without any; more than one is asked for only while in doubt.

        A clock that is right is told at once: other exchanges may take their time.
        """
        quickest: ClockReading | None = None
        for _ in range(CLOCK_TRIES):
            reading = await self._ask(venue)
            if reading is None:
                break
            if quickest is None or reading.round_trip_ms < quickest.round_trip_ms:
                quickest = reading
            if quickest.is_right:
                self._tell("clock_offset", venue.market.name, quickest)
                break
        return quickest

    async def _ask(self, venue: Venue) -> ClockReading | None:
        asked_s, started_s = self.clock.wall(), self.clock.monotonic()
        try:
            body = await venue.rest.get(
                f"{venue.market.rest_prefix}/time",
                weight=1,
                timeout_s=CLOCK_ANSWER_S,
                retry_delays_s=(),
                purpose=Purpose.LOOK,
                admitted_within_s=CLOCK_ANSWER_S,
            )
            server_s = server_time_ms(body) / 1000
        except (RestError, ValueError) as error:
            logger.debug("{}: its clock cannot be asked: {}", venue.market.name, error)
            return None
        took_s = self.clock.monotonic() - started_s
        return ClockReading(round((server_s - (asked_s + took_s / 2)) * 1000), round(took_s * 1000))

    def _tell(self, event: str, name: str, reading: ClockReading) -> None:
        self.offsets_ms[name] = reading.offset_ms
        self.tell(event, name, offset_ms=reading.offset_ms, round_trip_ms=reading.round_trip_ms)
