"""What a check has shown, and how it is told: in lines for a person, in JSON for a program, by an exit code.

A finding says what was found and, where that is not well, what to do. `fail`: something will not work. `warn`: it
works, but not for a month. `note`: worth knowing. It names files, hosts and symbols, never a secret.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tickcollect.config import Config
from tickcollect.files import FeedPath

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NAMES_SHOWN = 5


class Level(StrEnum):
    """How well something is, from the best."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


OK, NOTE, WARN, FAIL = Level


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has shown."""

    area: str
    """What was looked at, in one word: `disk`, `clock`, `streams`."""
    subject: str
    """Which one, where there can be several: a file, an exchange, a channel; else empty."""
    level: Level
    found: str
    remedy: str = ""
    """What to do, where something is to be done."""


Findings = Sequence[Finding]


@dataclass(frozen=True)
class Asked:
    """What is to be checked, and with what."""

    config: Config
    config_path: Path | None
    """The file as it was named; None for the usual one, if it is there."""
    environ: Mapping[str, str]
    send: bool = True
    """Whether each channel may be sent a message."""
    wait_s: float = 30.0
    """How long a stream may be silent before its market is asked about."""
    time_ns: Callable[[], int] = time.time_ns
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform


def exit_code(findings: Findings) -> int:
    """Return 1 if something will not work, else 0."""
    return int(any(finding.level is FAIL for finding in findings))


def encode(findings: Findings, now_ns: int) -> bytes:
    """Return what `tickcollect check --json` prints."""
    value = {
        "at": datetime.fromtimestamp(now_ns // 10**9, UTC).isoformat().replace("+00:00", "Z"),
        "ready": exit_code(findings) == 0,
        "findings": [asdict(finding) for finding in findings],
    }
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2)


STYLES = {OK: "green", NOTE: "dim", WARN: "yellow", FAIL: "bold red"}


def lines(asked: Asked, findings: Findings, console: "Console") -> "Iterator[Text]":
    """Yield what a terminal of any width and encoding shows: each finding and what to do, then what it comes to."""
    from rich.text import Text  # noqa: PLC0415 - takes longer to load than a check

    wide = max((len(finding.area) for finding in findings), default=0)
    margin = len("FAIL  ") + wide + 2
    for finding in findings:
        found = f"{finding.subject}: {finding.found}" if finding.subject else finding.found
        told = Text(_printable(found, console.encoding))
        if finding.remedy:
            told.append(f"\n-> {_printable(finding.remedy, console.encoding)}", "bold")
        level = finding.level.upper() if finding.level is FAIL else finding.level
        head = Text.assemble((f"{level:<6}", STYLES[finding.level]), f"{finding.area:<{wide + 2}}")
        for line in told.wrap(console, max(20, console.width - margin)):
            line.rstrip()
            yield Text.assemble(head, line)
            head = Text(" " * margin)
    yield Text()
    for line in Text(closing(asked, findings)).wrap(console, console.width):
        line.rstrip()
        yield line


def closing(asked: Asked, findings: Findings) -> str:
    """Return the last line: whether it can be left alone."""
    levels = Counter(finding.level for finding in findings)
    if levels[FAIL]:
        others = f", and {plural(levels[WARN], 'warning')}" if levels[WARN] else ""
        return f"Not ready: {plural(levels[FAIL], 'thing')} to do before leaving it alone{others}."
    warned = f", {plural(levels[WARN], 'warning')}" if levels[WARN] else ""
    return f"Ready to be left alone: {plural(len(feeds(asked.config)), 'feed')}{warned}."


def _printable(text: str, encoding: str) -> str:
    """Replace what is not to be printed: control characters, and what the terminal's encoding does not have."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown.encode(encoding, "replace").decode(encoding)


def feeds(config: Config) -> list[FeedPath]:
    """Return what is to be collected."""
    return [FeedPath(entry.exchange, entry.stream, symbol) for entry in config.collect for symbol in entry.symbols]


def named(names: Sequence[str]) -> str:
    """Name the first, count the others."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def plural(number: int, noun: str) -> str:
    """Return a number and a noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
