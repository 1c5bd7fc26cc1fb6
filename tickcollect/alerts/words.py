"""How numbers, times, names and foreign text read in a message: short, plain, and harmless whatever came in.

Rules:

1. Text that came from outside (an exchange, a store, a file's name) is one line without control characters, half
   characters and marks that turn the direction of writing, and is cut to a length.
2. Times are UTC and say so; the date stands with them only where it is not today's.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

TEXT_LONGEST = 300
"""Characters of one foreign text, such as the reason that an exchange gave."""
NAME_LONGEST = 80
"""Characters of a feed, file or exchange."""
NAMES_SHOWN = 3
"""Names in a list, before `and 497 more`."""

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_TENTHS_BELOW_S = 10
_LARGEST_NUMBER = 10**24


def clean(value: object, longest: int = TEXT_LONGEST) -> str:
    """Return `value` as one line of harmless text of at most `longest` characters."""
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        return names([clean(item, NAME_LONGEST) for item in value[: NAMES_SHOWN + 1]], len(value))[:longest]
    text = value if isinstance(value, str) else str(value)
    text = text[: longest * 4]
    if not text.isprintable():
        text = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    shown = text.strip()
    return shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"


def number(value: float) -> str:
    """Return a number with its thousands set apart: `1,234,567`."""
    if not abs(value) < _LARGEST_NUMBER:
        return "a number beyond reason"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def counted(count: int, one: str, many: str = "") -> str:
    """Return `1 gap` or `1,200 gaps`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def identity(value: object) -> str:
    """Return an ID as the exchange writes it, without anything between its digits."""
    return str(value) if isinstance(value, int) and abs(value) < _LARGEST_NUMBER else clean(value, NAME_LONGEST)


def names(shown: Sequence[str], total: int) -> str:
    """Return `A, B, C and 497 more`, for `total` names of which `shown` holds the first."""
    first = shown[:NAMES_SHOWN] if total > NAMES_SHOWN else shown
    more = total - len(first)
    return ", ".join(first) + (f" and {number(more)} more" if more > 0 else "")


def sentence(parts: Iterable[str], between: str = "; ") -> str:
    """Join what there is to say, and end it with a full stop."""
    text = between.join(part for part in parts if part)
    return text if not text or text.endswith((".", "…", "?", "!")) else text + "."


def duration(seconds: float) -> str:
    """Return `0.1 s`, `45 s`, `3 min 12 s`, `2 h 5 min` or `3 d 4 h`."""
    if not abs(seconds) < _LARGEST_NUMBER:
        return "an unknown time"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < _MINUTE_S:
        tenths = round(seconds, 1)
        return f"{seconds:.0f} s" if tenths >= _TENTHS_BELOW_S or tenths == int(tenths) else f"{tenths} s"
    for unit_s, unit, part_s, part in (
        (_DAY_S, "d", _HOUR_S, "h"),
        (_HOUR_S, "h", _MINUTE_S, "min"),
        (_MINUTE_S, "min", 1, "s"),
    ):
        if seconds >= unit_s:
            whole, rest = divmod(int(seconds), unit_s)
            return f"{number(whole)} {unit}" + (f" {rest // part_s} {part}" if rest // part_s else "")
    raise AssertionError(seconds)


def size(count_bytes: float) -> str:
    """Return `999 bytes`, `1.3 MB` or `24 GB`, in powers of a thousand."""
    value, unit = float(count_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:  # noqa: PLR2004 - where rounding would show 1000 of a unit
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 9.95 else f"{value:.1f} {unit}"  # noqa: PLR2004 - two digits are enough


def utc(time_ns: int, now_ns: int) -> str:
    """Return a time as `02:24:28 UTC`, with its date where that is not the date of `now_ns`."""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC)
    today = datetime.fromtimestamp(now_ns // 10**9, UTC).date()
    return f"{moment:%H:%M:%S} UTC" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def span(first_ns: int, last_ns: int, now_ns: int) -> str:
    """Return `02:24:28 UTC` or `02:24:28 to 02:25:00 UTC`, with the dates where there are two."""
    first, last = (datetime.fromtimestamp(time_ns // 10**9, UTC) for time_ns in (first_ns, last_ns))
    if first.date() != last.date():
        return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    return utc(first_ns, now_ns) if first == last else f"{utc(first_ns, now_ns)[:-4]} to {last:%H:%M:%S} UTC"
