"""The request weight that may be spent at an exchange, and who may spend it next. No I/O and no clock happen here.

Rules, from Binance's rest-api.md ("Limits", 2026-07-21), its derivatives "General Info" page (2026-06) and its notice
on the integration of COIN-M and USD-M (2026-06-10):

1. Weight is limited per IP address and UTC clock minute; USD-M and COIN-M count into one limit. So whatever shares a
   limit shares one `Budget`. Each exchange states the limit for itself (exchangeInfo); the smallest counts, and none is
   believed that is above what this version knows, or so low that the dearest request would not fit.
2. The address may be filled up to `share` of the limit, half by default: then even a clock that is wrong, which lays
   one of our minutes across two of theirs, cannot pass the limit.
3. A request is booked before it is sent, in the minute of its sending, and once more in the next minute if it is still
   unanswered when that begins: the exchange may count it in either. A refused request costs its weight too.
4. Each answer tells the weight used by the whole address. If that is more than we booked, another program uses it too.
   It may have requests on their way that no answer tells of yet; so what is on our way is never more than a quarter of
   what is left, and beside others the end of the limit stays free.
5. A request that is heavier than the share is let in alone, in a minute in which nothing else was asked.
6. Repairs go first, then what settles the unknown, then looks; within a purpose, who came first. Looks take no more
   than a quarter of a minute's share, settling no more than a half and repairs nine tenths: so a repair that comes
   later finds room, and a long repair leaves some to who cannot wait. After two minutes a request goes before all who
   came later.
7. A minute that begins by our clock frees what the last one used, except after a step of the clock: then a minute must
   also have passed by the monotonic clock. In the first second after a minute that was well used nothing is sent, since
   the exchange's clock may be a little behind.
"""

import enum
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tickcollect.refusals import LONGEST_BAN_S

MINUTE_S = 60.0
LONG_WAIT_S = 120.0
CLOCK_STEP_S = 1.0
FIRST_SECOND_S = 1.0
ON_THE_WAY_PART = 0.25
"""How much of what is left of a minute may be on its way at once: three other programs may do the same (rule 4)."""
OTHERS_REQUESTS = 2
"""Beside others, room is left for this many requests like the one that is let in: theirs may be on their way."""
OTHERS_REMEMBERED_MINUTES = 10
LOWEST_PART = 0.1
"""A stated limit below this part of the known one is not believed (rule 1)."""
HIGHEST_PART = 10
"""Nor is one above this many times the known one."""


class Purpose(enum.IntEnum):
    """What a request is for: the lower, the sooner it is let in (rule 6)."""

    REPAIR = 0
    """Fetching rows that are missing."""
    SETTLE = 1
    """Learning whether rows are missing: after a reconnect, at a stop."""
    LOOK = 2
    """Looking after what may be wrong: silence, the list of symbols, the clock."""


_PARTS = {Purpose.REPAIR: 0.9, Purpose.SETTLE: 0.5, Purpose.LOOK: 0.25}


@dataclass(eq=False)
class Ticket:
    """One request in the line. `wake` is called when it is worth asking for admission again."""

    weight: int
    purpose: Purpose
    since_s: float
    """Monotonic seconds of its coming."""
    wake: Callable[[], None]


def is_plausible_limit(stated: int, known: int) -> bool:
    """Tell whether a limit that an exchange states can be meant, by the one that this version knows (rule 1)."""
    return known * LOWEST_PART <= stated <= known * HIGHEST_PART


@dataclass
class Budget:
    """The weight that one IP address may spend at exchanges that count together. All times come as arguments.

    `known_limit` is the limit a minute that this version knows; `share` the part of it that may be filled.
    """

    known_limit: int
    share: float = 0.5
    _stated: dict[str, int] = field(default_factory=dict, init=False)
    _line: list[Ticket] = field(default_factory=list, init=False)
    _minute: int = field(default=-1, init=False)
    _used: int = field(default=0, init=False)
    """By the whole address, as far as we know, with all that is on its way."""
    _booked: int = field(default=0, init=False)
    """By ourselves."""
    _booked_for: Counter[Purpose] = field(default_factory=Counter, init=False)
    _used_before: int = field(default=0, init=False)
    """In the minute before this one."""
    _unanswered: int = field(default=0, init=False)
    _others_seen_minute: int | None = field(default=None, init=False)
    _clock_offset_s: float | None = field(default=None, init=False)
    _frees_from_s: float = field(default=-math.inf, init=False)
    _closed_until_s: float = field(default=-math.inf, init=False)

    @property
    def limit(self) -> int:
        """The weight a minute that the exchange allows: the smallest limit stated."""
        return min([self.known_limit, *self._stated.values()])

    @property
    def allowance(self) -> int:
        """The weight up to which the address may be filled in a minute."""
        return int(self.limit * self.share)

    def learn(self, exchange: str, stated: int) -> None:
        """Take over the limit that an exchange states for itself, within what can be meant (rule 1)."""
        lowest = math.ceil(self.known_limit * LOWEST_PART)
        self._stated[exchange] = max(lowest, stated) if stated > 0 else self.known_limit

    # The line

    def join(self, ticket: Ticket) -> None:
        """Put a request at the end of the line."""
        self._line.append(ticket)

    def leave(self, ticket: Ticket, monotonic_s: float) -> None:
        """Take a request out of the line that was not let in."""
        if ticket in self._line:
            self._line.remove(ticket)
            self._wake_next(monotonic_s)

    def reserve(self, ticket: Ticket, wall_s: float, monotonic_s: float) -> float:
        """Book a request that stands in the line, which takes it out, and return 0.0; or book nothing.

        Then the seconds after which to ask again are returned; infinity where only an answer, or another one's leaving,
        can help: the ticket is woken by that.
        """
        wait_s = self.least_wait_s(ticket, wall_s, monotonic_s)
        if self._closed_until_s > monotonic_s:
            return wait_s
        first = self._next(monotonic_s)
        if first is not None and first is not ticket:
            first.wake()
            return math.inf
        if wait_s:
            return wait_s
        self._line.remove(ticket)
        self._used += ticket.weight
        self._booked += ticket.weight
        self._booked_for[ticket.purpose] += ticket.weight
        self._unanswered += ticket.weight
        self._wake_next(monotonic_s)
        return 0.0

    def least_wait_s(self, ticket: Ticket, wall_s: float, monotonic_s: float) -> float:
        """Return for how long a request cannot be let in, whoever else waits; infinity until an answer comes."""
        self._begin_minute(wall_s, monotonic_s)
        if self._closed_until_s > monotonic_s:
            return self._closed_until_s - monotonic_s
        next_minute_s = MINUTE_S - wall_s % MINUTE_S
        if self._is_spent_for(ticket) or not self._has_room(ticket.weight):
            return next_minute_s
        if self._used_before * 2 > self.allowance and wall_s % MINUTE_S < FIRST_SECOND_S:
            return FIRST_SECOND_S - wall_s % MINUTE_S
        left = self.allowance - (self._used - self._unanswered)
        if self._unanswered and self._unanswered + ticket.weight > left * ON_THE_WAY_PART:
            return math.inf
        return 0.0

    def _is_spent_for(self, ticket: Ticket) -> bool:
        """Tell whether a purpose has had its part of this minute; one request is always within it."""
        booked = self._booked_for[ticket.purpose]
        return bool(booked) and booked + ticket.weight > self.allowance * _PARTS[ticket.purpose]

    def _has_room(self, weight: int) -> bool:
        """Tell whether this minute has room for a request (rules 2, 4 and 5)."""
        if not self._used:
            return True
        if self._has_others and self._used + weight * (1 + OTHERS_REQUESTS) > self.limit:
            return False
        return self._used + weight <= self.allowance

    @property
    def _has_others(self) -> bool:
        """Whether another program was seen to use this address, not long ago."""
        seen = self._others_seen_minute
        return seen is not None and abs(self._minute - seen) <= OTHERS_REMEMBERED_MINUTES

    def _next(self, monotonic_s: float) -> Ticket | None:
        """Return whose turn it is (rule 6); None where each one's purpose has had its part of this minute."""

        def turn(ticket: Ticket) -> int:
            return Purpose.REPAIR if monotonic_s - ticket.since_s > LONG_WAIT_S else ticket.purpose

        waiting = (ticket for ticket in self._line if not self._is_spent_for(ticket))
        return min(waiting, key=lambda ticket: (turn(ticket), ticket.since_s), default=None)

    def _wake_next(self, monotonic_s: float) -> None:
        first = self._next(monotonic_s)
        if first is not None:
            first.wake()

    # What came of it

    def settle(self, ticket: Ticket, sent_s: float, wall_s: float, monotonic_s: float, used: int | None) -> None:
        """Close a booking made at `sent_s`; `used` is the address's weight in this minute as the answer told it.

        What was told to a request of the minute before is not taken over: it may be that minute's.
        """
        self._begin_minute(wall_s, monotonic_s)
        self._unanswered -= ticket.weight
        if used is not None and sent_s // MINUTE_S == wall_s // MINUTE_S:
            if used > self._booked:
                self._others_seen_minute = self._minute
            self._used = max(self._used, used + self._unanswered)
        self._wake_next(monotonic_s)

    def close(self, seconds: float, monotonic_s: float) -> None:
        """Let nothing pass for `seconds`, three days at most: longer bans there are not."""
        self._closed_until_s = max(self._closed_until_s, monotonic_s + min(seconds, LONGEST_BAN_S))
        for ticket in [*self._line]:
            ticket.wake()

    def closed_for_s(self, monotonic_s: float) -> float:
        """Return how long a ban goes on, 0.0 where there is none."""
        return max(0.0, self._closed_until_s - monotonic_s)

    def _begin_minute(self, wall_s: float, monotonic_s: float) -> None:
        """Free what the last minute used, if a new one has begun (rule 7)."""
        offset_s = wall_s - monotonic_s
        if self._clock_offset_s is not None and abs(offset_s - self._clock_offset_s) > CLOCK_STEP_S:
            self._frees_from_s = monotonic_s + MINUTE_S
            self._minute = -1
        self._clock_offset_s = offset_s
        minute = int(wall_s // MINUTE_S)
        if minute > self._minute and monotonic_s >= self._frees_from_s:
            self._used_before = self._used if minute == self._minute + 1 else 0
            self._used = self._booked = self._unanswered
            self._booked_for.clear()
            self._minute = minute
