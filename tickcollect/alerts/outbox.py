"""What one channel still has to say, and when it may say it. No clock, no thread, no network.

    put ──▶ waiting letters ──take──▶ parts of one message ──▶ sent_now, or failed and why

Rules:

1. A message that cannot be sent now is tried again with growing pauses, never before the time the service asked for.
2. What matters is sent late rather than never, and twice rather than not: where nobody knows whether it arrived, it is
   sent until the service says so. News of which nobody knows that is sent once more and not again.
3. What has waited longer than `FRESH_S` because of a failure, or since an earlier run, goes out together when the
   channel works, in the order in which it happened. How much is kept, and what is left of the rest, says `letters`.
4. A message that the service refuses is sent once more with its title only; where that is refused too, what matters
   is kept and tried again with long pauses, and news is let go. A file that is refused is told in the text instead.
5. A channel that takes nothing by the service's own word is left alone for a day, and then tried again: what was said
   may have been put right. A new run tries at once.
6. That a channel fails is reported once, and once that it works again.

Times: `now_s` of a clock that never steps, `now_ns` of day.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tickcollect.alerts.channels import ChannelError, Failure, Part
from tickcollect.alerts.incidents import Notice
from tickcollect.alerts.letters import (
    Delay,
    Letter,
    Sums,
    has_room,
    least,
    letter_as_json,
    letter_of_json,
    sums_as_json,
    sums_of_json,
    together,
)
from tickcollect.alerts.words import clean, duration

FRESH_S = 120.0
RETRY_FIRST_S = 1.0
RETRY_LONGEST_S = 300.0
DOUBTFUL_LONGEST_S = 3600.0
"""Pauses grow up to this where the service seems to refuse: a mail server locks out whoever comes too often."""
CLOSED_S = 86_400.0
"""So long a channel is left alone that takes nothing by the service's own word."""
OBEYED_LONGEST_S = 86_400.0
"""The longest silence that a service is granted: a number beyond this is no wish of a working service."""
TOLD_AFTER_FAILURES = 3
TOLD_AFTER_SILENCE_S = 30.0
"""A failure is reported after so many attempts, or at once where the service wants a longer silence than this."""
SENT_IF_UNSURE = 2
"""News that may have arrived is sent this often in all."""
MOVES = 3
"""A channel that moves more often than this does not know where it is."""
TITLES_SHOWN = 40
_LONGEST_S: dict[Failure, float] = {"doubtful": DOUBTFUL_LONGEST_S}
_PROSPECTS: dict[Failure, str] = {
    "again": "It is tried again",
    "doubtful": "It is tried again, at last once an hour",
    "dead": "It is tried again once a day and at each start; what matters is kept until then",
}


@dataclass(frozen=True, slots=True)
class ChannelState:
    """How a channel does. `failing_since_ns` is None while it works; `error` is one line without secrets."""

    name: str
    failing_since_ns: int | None = None
    error: str = ""
    sent: int = 0
    """Messages that the service took."""
    dropped: int = 0
    """Messages that were not sent, or perhaps not."""
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be reported of a channel, with the details."""

    event: Literal["channel_failed", "channel_again"]
    detail: str


@dataclass
class Outbox:
    """The messages for one channel.

    `collector` and `channel` are names for people, `pause_s` is the shortest time between two messages, `split` makes
    the requests of a notice, `units` is the longest text in UTF-16 units.
    """

    collector: str
    channel: str
    pause_s: float
    split: Callable[[Notice], Sequence[Part]]
    units: int = 4096
    sent: int = 0
    dropped: int = 0
    error: str = ""
    dead: bool = False
    failing_since_ns: int | None = None
    """Since when it fails, where that was reported."""
    failures: int = 0
    """Attempts that failed since the last that did not."""
    changes: int = 0
    """Counts whatever changes what waits."""
    _waiting: deque[Letter] = field(default_factory=deque)
    _in_hand: list[Letter] = field(default_factory=list)
    """What `_parts` say."""
    _parts: deque[Part] = field(default_factory=deque)
    _is_begun: bool = False
    """The service has taken a part of it."""
    _is_cut: bool = False
    """The service refused the text, so that `_parts` are titles only."""
    _sums: Sums = field(default_factory=Sums)
    _sums_in_hand: Sums = field(default_factory=Sums)
    _failed_s: float = math.inf
    """When the first of these failures was."""
    _failed_ns: int = 0
    _reported: str = ""
    """The failure that was reported last."""
    _moves: int = 0
    _rested_s: float = -math.inf
    """When the pause after the last message is over."""
    _retry_s: float = -math.inf
    _silent_until_s: float = -math.inf
    """The service wants silence until then."""

    @property
    def waiting(self) -> int:
        """How many messages are not sent yet."""
        return len(self._waiting) + len(self._in_hand)

    def state(self) -> ChannelState:
        """Return how the channel does; from any thread."""
        return ChannelState(self.channel, self.failing_since_ns, self.error, self.sent, self.dropped, self.waiting)

    def put(self, notice: Notice, now_ns: int) -> None:
        """Take a message; where there is no room, what matters least is counted and its text forgotten."""
        if self.dead:
            self.dropped += 1
            return
        self._waiting.append(Letter(notice, now_ns))
        self.changes += 1
        self._make_room(self._waiting)

    def due_s(self) -> float:
        """Return when something may be sent; infinity while nothing waits."""
        if self.dead or not self.waiting:
            return math.inf
        return max(self._rested_s, self._retry_s, self._silent_until_s)

    def take(self, now_s: float, now_ns: int) -> Part:
        """Return what is to be sent next, which is due; `sent_now` or `failed` has to follow."""
        is_late = now_s - self._failed_s >= FRESH_S or any(one.is_of_earlier_run for one in self._waiting)
        if is_late or (self._sums and not self._parts):
            self.gather(now_s, now_ns)
        if not self._parts:
            letter = self._waiting.popleft()
            self._hold([letter], [letter.notice])
        return self._parts[0]

    def gather(self, now_s: float, now_ns: int) -> None:
        """Put all that waits together, unless it has gone out in part. Not while a part is on its way."""
        letters = deque([*self._in_hand, *self._waiting])
        if self._is_begun or self._is_cut or not letters:
            return
        self._make_room(letters)
        self._waiting.clear()
        self._sums_in_hand = self._sums.copy()
        failing_s = now_s - self._failed_s if self.failures else None
        delay = Delay(now_ns, failing_s, self._failed_ns, self.error)
        self._hold(list(letters), together(self.collector, list(letters), self._sums, delay, self.units))

    def hurry(self, now_s: float, now_ns: int) -> None:
        """Put all that waits together, and let it go as soon as the service allows."""
        self.gather(now_s, now_ns)
        self._retry_s = -math.inf

    def sent_now(self, now_s: float) -> Change | None:
        """Note that the service has what was taken."""
        self._parts.popleft()
        self._is_begun = True
        self.sent += 1
        if not self._parts:
            self._sums.told(self._sums_in_hand)
            self._let_go()
        lasted = duration(now_s - self._failed_s) if self.failures else ""
        was_reported = self.failing_since_ns is not None
        self.failing_since_ns, self.failures, self.error, self._failed_s = None, 0, "", math.inf
        self._rested_s, self._reported = now_s + self.pause_s, ""
        return Change("channel_again", f"it took none for {lasted}") if was_reported else None

    def failed(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Note why what was taken was not sent, and when to go on."""
        match error.kind:
            case "again" | "doubtful":
                return self._try_again(error, now_s, now_ns)
            case "refused":
                return self._refused(error, now_s, now_ns)
            case "moved":
                return self._moved(error, now_s, now_ns)
            case "dead":
                return self._closed(error, now_s, now_ns)

    def give_up(self, why: str, now_ns: int) -> None:
        """Let the channel be, for this run."""
        self.dead, self.error = True, why
        self.failing_since_ns = self.failing_since_ns or now_ns
        self.dropped += self.waiting
        self._waiting.clear()
        self._let_go()

    def left_over(self) -> list[Letter]:
        """Return what is not sent, oldest first."""
        return [*self._in_hand, *self._waiting]

    # --- Across runs ------------------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, object]:
        """Return what waits and matters, and the sums, in a form that JSON knows."""
        letters = [letter_as_json(letter) for letter in self.left_over() if letter.matters]
        return {"letters": letters, "sums": sums_as_json(self._sums)} if letters or self._sums.kinds else {}

    def take_up(self, said: Any) -> None:
        """Take what an earlier run wrote down; it goes out before what has come since."""
        if not isinstance(said, dict):
            return
        letters = said.get("letters")
        found = [letter_of_json(one) for one in letters] if isinstance(letters, list) else []
        self._waiting.extendleft(reversed([letter for letter in found if letter is not None]))
        self._sums.add_all(sums_of_json(said.get("sums")))
        self.changes += 1
        self._make_room(self._waiting)

    # --- What is in hand --------------------------------------------------------------------------------------------

    def _make_room(self, letters: deque[Letter]) -> None:
        while not has_room(letters):
            victim = least(letters)
            letters.remove(victim)
            self._sums.add(victim)
            self.dropped += 1

    def _hold(self, letters: list[Letter], notices: Sequence[Notice]) -> None:
        parts = deque(part for notice in notices for part in self.split(notice))
        self._in_hand, self._parts, self._is_begun, self._is_cut = letters, parts, False, False

    def _let_go(self) -> None:
        self._in_hand, self._parts, self._is_begun, self._is_cut = [], deque(), False, False
        self._sums_in_hand = Sums()
        self.changes += 1

    # --- What follows a failure -------------------------------------------------------------------------------------

    def _try_again(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Keep the message for later; news that may have arrived, not for ever."""
        pause_s = min(RETRY_FIRST_S * 2.0 ** min(self.failures, 20), _LONGEST_S.get(error.kind, RETRY_LONGEST_S))
        silence_s = min(error.after_s, OBEYED_LONGEST_S)
        self._note_failure(error, now_s, now_ns)
        self._retry_s, self._silent_until_s = now_s + max(pause_s, self.pause_s), now_s + silence_s
        if error.unsure:
            self._may_have_arrived()
        is_news = self.failures >= TOLD_AFTER_FAILURES or silence_s > TOLD_AFTER_SILENCE_S
        return self._report(error) if is_news and self.failing_since_ns is None else None

    def _closed(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Leave the channel alone for a day, with what waits for it."""
        self._note_failure(error, now_s, now_ns)
        self._silent_until_s = now_s + CLOSED_S
        return self._report(error) if error.detail != self._reported else None

    def _note_failure(self, error: ChannelError, now_s: float, now_ns: int) -> None:
        if not self.failures:
            self._failed_s, self._failed_ns = now_s, now_ns
        self.failures += 1
        self.error = error.detail

    def _report(self, error: ChannelError) -> Change:
        self.failing_since_ns, self._reported = self._failed_ns, error.detail
        return Change("channel_failed", ". ".join((_advised(error), _PROSPECTS[error.kind])))

    def _may_have_arrived(self) -> None:
        """Let go of news that was sent often enough; of a text that is out, its file."""
        for letter in self._in_hand:
            letter.times_unsure += 1
        if self._is_begun and not self._parts[0].files:
            return
        kept = [one for one in self._in_hand if one.times_unsure < SENT_IF_UNSURE or one.matters]
        if self._is_begun:
            kept = [one for one in self._in_hand if one.times_unsure < SENT_IF_UNSURE]
        let_go = len(self._in_hand) - len(kept)
        if let_go:
            self._sums.unsure += let_go
            self.dropped += let_go
            self._let_go()
            self._waiting.extendleft(reversed(kept))

    def _refused(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Go on without what the service does not want: a text without its file, what matters by its title."""
        part = self._parts[0]
        if part.files:
            return self._refused_file(error, part, now_s)
        if not any(letter.matters for letter in self._in_hand):
            return self._let_refused_go(error, part, now_s)
        if self._is_cut:
            return self._try_again(ChannelError("doubtful", error.detail, error.remedy), now_s, now_ns)
        self._rested_s, self._is_cut = now_s + self.pause_s, True
        titles = [clean(letter.notice.title) for letter in self._in_hand if letter.matters]
        lines = (*titles[-TITLES_SHOWN:], "The service refused the whole text; the journal has it.")
        instead = replace(part.notice, title=f"{self.collector}: a message was refused", lines=lines, attachments=())
        self._parts = deque([Part(instead, has_text=True)])
        return Change("channel_failed", f"the text of one message was refused, its title is sent. {_advised(error)}")

    def _refused_file(self, error: ChannelError, part: Part, now_s: float) -> Change:
        self._parts.popleft()
        self._rested_s = now_s + self.pause_s
        notice = part.notice
        title = notice.title if part.has_text else f"{self.collector}: a file was not sent"
        lines = (*(notice.lines if part.has_text else ()), f"Not sent with it: {error.detail}.")
        instead = replace(notice, title=title, lines=lines, attachments=())
        self._parts.appendleft(Part(instead, has_text=True))
        self.dropped += 1
        return Change("channel_failed", f"one file was given up. {_advised(error)}")

    def _let_refused_go(self, error: ChannelError, part: Part, now_s: float) -> Change:
        self._parts.popleft()
        self._rested_s = now_s + self.pause_s
        self.dropped += len(self._in_hand)
        self._let_go()
        return Change("channel_failed", f"one message was given up. {_advised(error)}. It said: {part.notice.title}")

    def _moved(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Go on at the new place, and say there what to change."""
        self._moves += 1
        if self._moves > MOVES:
            self._moves = 0
            detail = f"it says again and again that it moved. {error.detail}"
            return self._closed(ChannelError("dead", detail, error.remedy), now_s, now_ns)
        self._rested_s = now_s + self.pause_s
        title = f"{self.collector}: the configuration names an old address"
        self.put(Notice("trouble", "warning", title, (f"{_advised(error)}.",), f"{title}/{now_ns}", ended=True), now_ns)
        return Change("channel_again", _advised(error))


def _advised(error: ChannelError) -> str:
    return f"{error.detail.removesuffix('.')}. {error.remedy}" if error.remedy else error.detail.removesuffix(".")
