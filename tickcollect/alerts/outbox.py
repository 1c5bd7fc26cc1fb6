"""What one channel still has to say, and when it may say it. No clock, no thread, no network.

    put ──▶ waiting letters ──take──▶ parts of one message ──▶ sent_now, or failed and why

Rules:

1. A message that cannot be sent now is tried again with growing pauses, never before the time the service asked for.
   One of which nobody knows whether it arrived is sent once more and not again.
2. What has waited longer than `FRESH_S` because of a failure goes out as one message when the channel works again.
   `LETTERS_KEPT` messages are kept; of older ones the count is, and it is told.
3. A message that the service refuses is let go and reported. A file that it refuses is told in the text instead.
4. A channel that takes nothing until somebody changes something is given up for this run.
5. That a channel fails is reported once, and once that it works again.

Times: `now_s` of a clock that never steps, `now_ns` of day.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tickcollect.alerts.channels import ChannelError, Part
from tickcollect.alerts.incidents import Level, Notice
from tickcollect.alerts.words import counted, duration, utc

LETTERS_KEPT = 200
FRESH_S = 120.0
RETRY_FIRST_S = 1.0
RETRY_LONGEST_S = 300.0
OBEYED_LONGEST_S = 86_400.0
"""The longest silence that a service is granted: a number beyond this is no wish of a working service."""
TOLD_AFTER_FAILURES = 3
TOLD_AFTER_SILENCE_S = 30.0
"""A failure is reported after so many attempts, or at once where the service wants a longer silence than this."""
SENT_IF_UNSURE = 2
"""A message that may have arrived is sent this often in all."""
MOVES = 3
"""A channel that moves more often than this does not know where it is."""
SHOWN_WHOLE = 3
"""As many held-up messages are told with all their lines; more with their titles."""
TITLES_SHOWN = 40

_LEVELS: tuple[Level, ...] = ("info", "warning", "error")


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


@dataclass(slots=True)
class _Letter:
    """A message that waits, and since when."""

    notice: Notice
    at_ns: int
    times_unsure: int = 0
    """How often it may have arrived."""


@dataclass(slots=True)
class _Losses:
    """Messages that cannot be told any more: how many of which kind, and how many may have arrived."""

    forgotten: Counter[str] = field(default_factory=Counter)
    unsure: int = 0

    def __bool__(self) -> bool:
        return bool(self.forgotten) or self.unsure > 0

    def copy(self) -> "_Losses":
        """Return the losses as they are now."""
        return _Losses(self.forgotten.copy(), self.unsure)

    def told(self, told: "_Losses") -> None:
        """Let go of what people know."""
        self.forgotten -= told.forgotten
        self.unsure -= told.unsure


@dataclass
class Outbox:
    """The messages for one channel.

    `collector` and `channel` are names for people, `pause_s` is the shortest time between two messages, `split` makes
    the requests of a notice.
    """

    collector: str
    channel: str
    pause_s: float
    split: Callable[[Notice], Sequence[Part]]
    sent: int = 0
    dropped: int = 0
    error: str = ""
    dead: bool = False
    failing_since_ns: int | None = None
    """Since when it fails, where that was reported."""
    failures: int = 0
    """Attempts that failed since the last that did not."""
    _waiting: deque[_Letter] = field(default_factory=deque)
    _in_hand: list[_Letter] = field(default_factory=list)
    """What `_parts` say."""
    _parts: deque[Part] = field(default_factory=deque)
    _is_begun: bool = False
    """The service has taken a part of it."""
    _losses: _Losses = field(default_factory=_Losses)
    _losses_in_hand: _Losses = field(default_factory=_Losses)
    _failed_s: float = math.inf
    """When the first of these failures was."""
    _failed_ns: int = 0
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
        """Take a message; where there is no room, the oldest is counted and forgotten."""
        if self.dead:
            self.dropped += 1
            return
        self._waiting.append(_Letter(notice, now_ns))
        if len(self._waiting) > LETTERS_KEPT:
            self._forget(self._waiting.popleft())

    def due_s(self) -> float:
        """Return when something may be sent; infinity while nothing waits."""
        if self.dead or not self.waiting:
            return math.inf
        return max(self._rested_s, self._retry_s, self._silent_until_s)

    def take(self, now_s: float, now_ns: int) -> Part:
        """Return what is to be sent next, which is due; `sent_now` or `failed` has to follow."""
        if now_s - self._failed_s >= FRESH_S or (self._losses and not self._parts):
            self.gather(now_ns)
        if not self._parts:
            letter = self._waiting.popleft()
            self._hold([letter], letter.notice)
        return self._parts[0]

    def gather(self, now_ns: int) -> None:
        """Make one message of all that waits, unless one has gone out in part. Not while a part is on its way."""
        letters = [*self._in_hand, *self._waiting]
        if self._is_begun or not letters:
            return
        for letter in letters[:-LETTERS_KEPT]:
            self._forget(letter)
        letters = letters[-LETTERS_KEPT:]
        self._waiting.clear()
        self._losses_in_hand = self._losses.copy()
        self._hold(letters, self._gathered(letters, now_ns))

    def hurry(self, now_ns: int) -> None:
        """Make one message of all that waits, and let it go as soon as the service allows."""
        self.gather(now_ns)
        self._retry_s = -math.inf

    def sent_now(self, now_s: float) -> Change | None:
        """Note that the service has what was taken."""
        self._parts.popleft()
        self._is_begun = True
        self.sent += 1
        if not self._parts:
            self._losses.told(self._losses_in_hand)
            self._let_go()
        lasted = duration(now_s - self._failed_s) if self.failures else ""
        was_reported = self.failing_since_ns is not None
        self.failing_since_ns, self.failures, self.error, self._failed_s = None, 0, "", math.inf
        self._rested_s = now_s + self.pause_s
        return Change("channel_again", f"it took none for {lasted}") if was_reported else None

    def failed(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Note why what was taken was not sent, and when to go on."""
        match error.kind:
            case "again":
                return self._try_again(error, now_s, now_ns)
            case "refused":
                return self._refused(error, now_s)
            case "moved":
                return self._moved(error, now_s, now_ns)
            case "dead":
                self.give_up(error.detail, now_ns)
                return Change("channel_failed", f"{_advised(error)}. Until the next start nothing more is sent there")

    def give_up(self, why: str, now_ns: int) -> None:
        """Let the channel be, for this run."""
        self.dead, self.error = True, why
        self.failing_since_ns = self.failing_since_ns or now_ns
        self.dropped += self.waiting
        self._waiting.clear()
        self._let_go()

    def left_over(self) -> str:
        """Return the titles of what is not sent, for the log."""
        return "; ".join(letter.notice.title for letter in [*self._in_hand, *self._waiting])

    # --- What is in hand --------------------------------------------------------------------------------------------

    def _forget(self, letter: _Letter) -> None:
        self.dropped += 1
        self._losses.forgotten[letter.notice.kind] += 1

    def _hold(self, letters: list[_Letter], notice: Notice) -> None:
        self._in_hand, self._parts, self._is_begun = letters, deque(self.split(notice)), False

    def _let_go(self) -> None:
        self._in_hand, self._parts, self._is_begun, self._losses_in_hand = [], deque(), False, _Losses()

    def _gathered(self, letters: Sequence[_Letter], now_ns: int) -> Notice:
        """Put several messages into one, the newest first; one alone stays what it is, with a word on its delay."""
        failing = self.failures > 0
        losses = list(self._loss_lines())
        newest = letters[-1].notice
        if len(letters) == 1:
            late = [f"From {utc(letters[0].at_ns, now_ns)}; it could not be sent before."] if failing else []
            return replace(newest, lines=(*newest.lines, *late, *losses))
        count = len(letters) + self._losses.forgotten.total()
        held_up = (
            f"{self.collector}: {counted(count, 'message')} held up for {duration((now_ns - self._failed_ns) / 1e9)}"
        )
        title = held_up if failing else f"{newest.title} (and {counted(len(letters) - 1, 'more message')})"
        lines = []
        if failing:
            lines = [f"Not sent since {utc(self._failed_ns, now_ns)}: {self.error}. Newest first:"]
        for letter in reversed(letters[-TITLES_SHOWN:]):
            notice = letter.notice
            if failing or notice is not newest:
                lines.append(f"{utc(letter.at_ns, now_ns)}: {notice.title.removeprefix(f'{self.collector}: ')}")
            lines += notice.lines if len(letters) <= SHOWN_WHOLE else ()
        older = Counter(letter.notice.kind for letter in letters[:-TITLES_SHOWN])
        lines += [f"Before these: {_kinds(older)}."] if older else []
        level = max((letter.notice.level for letter in letters), key=_LEVELS.index)
        return Notice("trouble", level, title, (*lines, *losses), f"{self.collector}/held-up/{now_ns}", ended=True)

    def _loss_lines(self) -> Sequence[str]:
        forgotten, unsure = self._losses.forgotten, self._losses.unsure
        lines = [f"Of older messages only the count is left: {_kinds(forgotten)}."] if forgotten else []
        if unsure:
            lines.append(f"{counted(unsure, 'message')} got no answer, and may be missing or have come twice.")
        return lines

    # --- What follows a failure -------------------------------------------------------------------------------------

    def _try_again(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Keep the message for later; one that may have arrived, not for ever."""
        if not self.failures:
            self._failed_s, self._failed_ns = now_s, now_ns
        pause_s = min(RETRY_FIRST_S * 2.0 ** min(self.failures, 20), RETRY_LONGEST_S)
        silence_s = min(error.after_s, OBEYED_LONGEST_S)
        self.failures += 1
        self.error = error.detail
        self._retry_s, self._silent_until_s = now_s + max(pause_s, self.pause_s), now_s + silence_s
        if error.unsure:
            self._may_have_arrived()
        is_news = self.failures >= TOLD_AFTER_FAILURES or silence_s > TOLD_AFTER_SILENCE_S
        if self.failing_since_ns is not None or not is_news:
            return None
        self.failing_since_ns = self._failed_ns
        return Change("channel_failed", _advised(error))

    def _may_have_arrived(self) -> None:
        for letter in self._in_hand:
            letter.times_unsure += 1
        kept = [letter for letter in self._in_hand if letter.times_unsure < SENT_IF_UNSURE]
        lost = len(self._in_hand) - len(kept)
        if lost:
            self._losses.unsure += lost
            self.dropped += lost
            self._let_go()
            self._waiting.extendleft(reversed(kept))

    def _refused(self, error: ChannelError, now_s: float) -> Change | None:
        """Let go of what the service does not want; a text does without its file."""
        part = self._parts.popleft()
        self._rested_s = now_s + self.pause_s
        notice = part.notice
        if part.files:
            title = notice.title if part.has_text else f"{self.collector}: a file was not sent"
            lines = (*(notice.lines if part.has_text else ()), f"Not sent with it: {error.detail}.")
            instead = replace(notice, title=title, lines=lines, attachments=())
            self._parts.appendleft(Part(instead, has_text=True))
            self.dropped += 1
            return Change("channel_failed", f"one file was given up. {_advised(error)}")
        self.dropped += len(self._in_hand)
        if not self._parts:
            self._let_go()
        return Change("channel_failed", f"one message was given up. {_advised(error)}. It said: {notice.title}")

    def _moved(self, error: ChannelError, now_s: float, now_ns: int) -> Change | None:
        """Go on at the new place, and say there what to change."""
        self._moves += 1
        if self._moves > MOVES:
            self.give_up(error.detail, now_ns)
            return Change("channel_failed", f"it says again and again that it moved. {_advised(error)}")
        self._rested_s = now_s + self.pause_s
        title = f"{self.collector}: the configuration names an old address"
        self.put(Notice("trouble", "warning", title, (f"{_advised(error)}.",), f"{title}/{now_ns}", ended=True), now_ns)
        return Change("channel_again", _advised(error))


def _advised(error: ChannelError) -> str:
    return f"{error.detail.removesuffix('.')}. {error.remedy}" if error.remedy else error.detail.removesuffix(".")


def _kinds(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
