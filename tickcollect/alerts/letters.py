"""Messages that wait for a channel: how many are kept, what is left of the others, and how they are told together.

Rules:

1. At most `LETTERS_KEPT` messages and `BYTES_KEPT` characters of text are kept. Where there is no room, what matters
   least goes first: the oldest news, then the oldest warning, then the oldest error.
2. Of what went, the sums are kept: how many messages of which kind, how many IDs of which feeds were lost, and the
   text of the gravest.
3. Together they are told in the order in which they happened, each with its time. Texts become shorter, the least
   important first, until all of it fits into `MESSAGES_TOGETHER` messages of the channel.
4. What matters can be written down and read back, so that a restart does not forget it. Nothing in it is a secret that
   the message itself would not tell.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from tickcollect.alerts.channels import utf16_units
from tickcollect.alerts.incidents import Level, Notice
from tickcollect.alerts.words import clean, counted, duration, names, number, utc

LETTERS_KEPT = 200
BYTES_KEPT = 256_000
MESSAGES_TOGETHER = 5
FEEDS_KEPT = 50
"""Feeds whose lost IDs are counted each; those of further feeds are counted together."""
FURTHER = "further feeds"
LINES_READ = 500
"""Lines of one message that are read back."""
LINE_READ = 2000
"""Characters of one line that are read back."""
_TIME_END_NS = 2**63
_COUNT_MAX = 2**53
"""Counts grow no further: beyond this, JSON's readers lose digits."""

Grade = Literal["error", "warning", "info"]
_GRADES: tuple[Grade, ...] = ("info", "warning", "error")
_LEVELS: tuple[Level, ...] = ("info", "warning", "error")


@dataclass(slots=True)
class Letter:
    """A message that waits, and since when."""

    notice: Notice
    at_ns: int
    times_unsure: int = 0
    """How often it may have arrived."""
    is_of_earlier_run: bool = False

    @property
    def matters(self) -> bool:
        """Whether it is sent late rather than never, and twice rather than not."""
        return self.notice.matters

    @property
    def grade(self) -> Grade:
        """How bad it would be if nobody read it."""
        if self.notice.level == "error" or self.notice.kind == "stopped":
            return "error"
        return "warning" if self.matters else "info"

    @property
    def length(self) -> int:
        """Characters of its text."""
        return len(self.notice.title) + sum(map(len, self.notice.lines))


@dataclass(slots=True)
class Sums:
    """What is left of messages for which there was no room, and of those that may have arrived."""

    kinds: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    """Lost IDs, by feed."""
    gravest: Letter | None = None
    unsure: int = 0
    """News that got no answer twice and was not sent again."""

    def __bool__(self) -> bool:
        return bool(self.kinds) or self.unsure > 0

    def add(self, letter: Letter) -> None:
        """Count a message whose text is let go, unless it is the gravest so far."""
        self.kinds[letter.notice.kind] += 1
        _add_lost(self.lost, letter.notice.lost)
        if letter.matters and (self.gravest is None or _gravity(letter) > _gravity(self.gravest)):
            self.gravest = letter

    def add_all(self, other: "Sums") -> None:
        """Take over what another run counted."""
        self.kinds += other.kinds
        _add_lost(self.lost, other.lost.items())
        if other.gravest is not None and (self.gravest is None or _gravity(other.gravest) > _gravity(self.gravest)):
            self.gravest = other.gravest

    def copy(self) -> "Sums":
        """Return the sums as they are now."""
        return replace(self, kinds=self.kinds.copy(), lost=self.lost.copy())

    def told(self, told: "Sums") -> None:
        """Let go of what people know."""
        self.kinds -= told.kinds
        self.lost -= told.lost
        self.unsure -= told.unsure
        self.gravest = None if self.gravest is told.gravest else self.gravest

    def lines(self, now_ns: int) -> list[str]:
        """Return what is left to say."""
        found = []
        if self.kinds:
            found.append(f"Of older messages only the sums are left: {kinds_text(self.kinds)}.")
        if self.lost:
            found.append(lost_text("Lost in these", self.lost))
        if self.gravest is not None:
            found += [f"The gravest of these, {_line(self.gravest, now_ns)}", *self.gravest.notice.lines]
        if self.unsure:
            found.append(f"{counted(self.unsure, 'message')} got no answer, and may be missing or have come twice.")
        return found


def _add_lost(lost: Counter[str], more: Iterable[tuple[str, int]]) -> None:
    for feed, ids in more:
        name = feed if feed in lost or len(lost) < FEEDS_KEPT else FURTHER
        lost[name] = min(lost[name] + ids, _COUNT_MAX)


def _gravity(letter: Letter) -> tuple[int, int]:
    return _GRADES.index(letter.grade), sum(ids for _, ids in letter.notice.lost)


def least(letters: Sequence[Letter]) -> Letter:
    """Return the message that goes first where there is no room: the oldest of those that matter least."""
    return min(letters, key=lambda letter: _GRADES.index(letter.grade))


def has_room(letters: Sequence[Letter]) -> bool:
    """Tell whether these messages may all be kept."""
    return len(letters) <= 1 or (
        len(letters) <= LETTERS_KEPT and sum(letter.length for letter in letters) <= BYTES_KEPT
    )


def kinds_text(counts: Mapping[str, int]) -> str:
    """Return `3 gap, 1 started`."""
    return ", ".join(f"{number(count)} {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def lost_text(words: str, lost: Counter[str]) -> str:
    """Return how many IDs are lost, and those of the feeds with most."""
    shown = [f"{clean(feed)} ({number(ids)})" for feed, ids in lost.most_common()]
    return f"{words}: {counted(lost.total(), 'ID')} of {names(shown, len(shown))}."


def _line(letter: Letter, now_ns: int) -> str:
    return f"{utc(letter.at_ns, now_ns)}: {letter.notice.title}"


# --- Together --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Delay:
    """Why messages come together: `error` and since when where the channel failed, else they only waited."""

    now_ns: int
    failing_s: float | None = None
    since_ns: int = 0
    error: str = ""


_WHOLE, _TITLE, _COUNTED = 2, 1, 0
_FORMS: tuple[tuple[dict[Grade, int], int], ...] = (
    ({"error": _WHOLE, "warning": _WHOLE, "info": _WHOLE}, 1),
    ({"error": _WHOLE, "warning": _WHOLE, "info": _TITLE}, 1),
    ({"error": _WHOLE, "warning": _WHOLE, "info": _COUNTED}, MESSAGES_TOGETHER),
    ({"error": _WHOLE, "warning": _TITLE, "info": _COUNTED}, MESSAGES_TOGETHER),
    ({"error": _TITLE, "warning": _TITLE, "info": _COUNTED}, MESSAGES_TOGETHER),
)
"""How much of a message is told by its grade, and how many messages that may take; the first form that fits is used."""


def together(collector: str, letters: Sequence[Letter], sums: Sums, delay: Delay, units: int) -> list[Notice]:
    """Return messages of at most `units` UTF-16 units each that tell all of `letters`, and the sums."""
    is_late = delay.failing_s is not None or any(letter.is_of_earlier_run for letter in letters)
    if len(letters) == 1:
        return [_alone(letters[0], sums, delay, is_late=is_late)]
    title = _title(collector, letters, sums, delay) if is_late else _title_at_the_stop(letters)
    shown, left = list(letters), sums.copy()
    while True:
        for form, most in _FORMS:
            pages = _pages(title, _lines(shown, left, delay, form, is_late=is_late), units)
            if len(pages) <= most:
                return _notices(collector, letters, title, pages, delay.now_ns)
        victim = least(shown)
        shown.remove(victim)
        left.add(victim)


def _alone(letter: Letter, sums: Sums, delay: Delay, *, is_late: bool) -> Notice:
    """Return one message as it is, with a word on its delay."""
    late = [f"From {utc(letter.at_ns, delay.now_ns)}; it could not be sent before."] if is_late else []
    return replace(letter.notice, lines=(*letter.notice.lines, *late, *sums.lines(delay.now_ns)))


def _title(collector: str, letters: Sequence[Letter], sums: Sums, delay: Delay) -> str:
    count = counted(len(letters) + sums.kinds.total(), "message")
    lasted_s = max(delay.failing_s or 0.0, (delay.now_ns - letters[0].at_ns) / 1e9)
    return f"{collector}: {count} held up for {duration(lasted_s)}"


def _title_at_the_stop(letters: Sequence[Letter]) -> str:
    return f"{letters[-1].notice.title} (and {counted(len(letters) - 1, 'more message')})"


def _lines(
    letters: Sequence[Letter], sums: Sums, delay: Delay, form: Mapping[Grade, int], *, is_late: bool
) -> list[str]:
    """Return what is said of each message in this form; what only waited for the last one follows it."""
    found, rest = [], list(letters)
    if delay.failing_s is not None:
        found.append(f"Not sent since {utc(delay.since_ns, delay.now_ns)}: {delay.error}. In the order of events:")
    elif not is_late:
        found += rest.pop().notice.lines
    lost: Counter[str] = Counter()
    for letter in letters:
        _add_lost(lost, letter.notice.lost)
    if sum(bool(letter.notice.lost) for letter in letters) > 1:
        found.append(lost_text("Lost in all of these", lost))
    not_shown: Counter[str] = Counter()
    for letter in rest:
        shown = form[letter.grade]
        if shown == _COUNTED:
            not_shown[letter.notice.kind] += 1
            continue
        found.append(f"{utc(letter.at_ns, delay.now_ns)}: {_untitled(letter)}")
        found += letter.notice.lines if shown == _WHOLE else ()
    if not_shown:
        found.append(f"Less important ones are only counted: {kinds_text(not_shown)}.")
    return [*found, *sums.lines(delay.now_ns)]


def _untitled(letter: Letter) -> str:
    """Return a message's title without the collector's name, which the whole begins with."""
    return letter.notice.title.partition(": ")[2] or letter.notice.title


_PAGE_TITLE_UNITS = 40
"""Room for `, part 2 of 5` and the line breaks."""


def _pages(title: str, lines: Sequence[str], units: int) -> list[list[str]]:
    """Share lines out to messages; a line that is longer than a message is cut by the channel."""
    room = max(1, units - utf16_units(title) - _PAGE_TITLE_UNITS)
    pages: list[list[str]] = [[]]
    left = room
    for line in lines:
        length = min(utf16_units(line) + 1, room)
        if length > left and pages[-1]:
            pages.append([])
            left = room
        pages[-1].append(line)
        left -= length
    return pages


def _notices(
    collector: str, letters: Sequence[Letter], title: str, pages: Sequence[list[str]], now_ns: int
) -> list[Notice]:
    level = max((letter.notice.level for letter in letters), key=_LEVELS.index)
    incident = f"{collector}/held-up/{now_ns}"
    return [
        Notice(
            "trouble",
            level,
            title if place == 0 else f"{title}, part {place + 1} of {len(pages)}",
            tuple(lines),
            incident,
            ended=True,
        )
        for place, lines in enumerate(pages)
    ]


# --- Written down ----------------------------------------------------------------------------------------------------


def letter_as_json(letter: Letter) -> dict[str, object]:
    """Return a message in a form that JSON knows; files are not kept."""
    notice = letter.notice
    return {
        "at_ns": letter.at_ns,
        "kind": notice.kind,
        "level": notice.level,
        "title": _encodable(notice.title),
        "lines": [_encodable(line) for line in notice.lines],
        "incident": notice.incident,
        "ended": notice.ended,
        "lost": [list(one) for one in notice.lost],
    }


def _encodable(text: str) -> str:
    """Return the text without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def letter_of_json(said: Any) -> Letter | None:
    """Return a message that was written down; None for anything else. Whatever it holds, it is bounded."""
    match said:
        case {"at_ns": int(at_ns), "kind": str(kind), "level": level, "title": str(title), "incident": str(incident)}:
            if level not in get_args(Level) or not 0 <= at_ns < _TIME_END_NS:
                return None
        case _:
            return None
    lines = [line[:LINE_READ] for line in _listed(said.get("lines"))[:LINES_READ] if isinstance(line, str)]
    lost = [(one[0], one[1]) for one in _listed(said.get("lost")) if _is_lost(one)][: FEEDS_KEPT + 1]
    notice = Notice(
        kind, level, title[:LINE_READ], tuple(lines), incident[:LINE_READ], bool(said.get("ended", True)),
        lost=tuple(lost),
    )  # fmt: skip
    return Letter(notice, at_ns, is_of_earlier_run=True)


def sums_as_json(sums: Sums) -> dict[str, object]:
    """Return sums in a form that JSON knows."""
    gravest = None if sums.gravest is None else letter_as_json(sums.gravest)
    return {"kinds": dict(sums.kinds), "lost": dict(sums.lost), "gravest": gravest}


def sums_of_json(said: Any) -> Sums:
    """Return sums that were written down, as far as they make sense."""
    if not isinstance(said, dict):
        return Sums()
    kinds, lost = (_counter(said.get(name)) for name in ("kinds", "lost"))
    return Sums(kinds, lost, letter_of_json(said.get("gravest")))


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_lost(value: object) -> bool:
    match value:
        case [str(), int(ids)]:
            return ids > 0
    return False


def _counter(value: object) -> Counter[str]:
    found = value.items() if isinstance(value, dict) else ()
    return Counter(
        {
            str(name)[:LINE_READ]: count
            for name, count in list(found)[: FEEDS_KEPT + 1]
            if isinstance(count, int) and count > 0
        }
    )
