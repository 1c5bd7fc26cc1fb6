"""The journal: what happened and when, one JSON object a line, appended and never changed.

    {"at":"2026-11-20T00:00:00.123456Z","event":"gap","subject":"binance/trade/BTCUSDT","first_id":101,"last_id":105}

Rules:

1. A line is written with one `write` to the end of the file, so processes that share a journal do not mix their lines.
2. A line is at most `MAX_LINE` bytes: the longest texts are shortened, and then end in an ellipsis.
3. A line that a crash or a full disk has torn is kept, ended by a newline and skipped by readers, who count it. The
   entry that did not fit is not in the journal; the caller was told so by `JournalError`.
4. An entry is handed over when `append` has returned (it survives SIGKILL) and safe when `sync` has (power loss).

Any thread may append. Times come from the clock given, in UTC.
"""

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import orjson

MAX_LINE = 8192
FILE_MODE = 0o640
_OWN = ("at", "event")
SEARCHED_BYTES = 1_000_000
"""A stretch of the journal that is read rather than halved."""
ENTRIES_TRIED = 100
"""Damaged lines that are passed over in search of one that tells its time."""
_SHORTENED = 200
"""Characters that a text keeps in a line that would be too long."""


_UNRECORDED = "What happens now is not on record; see whether the disk is full or read-only."
_MEANING = {
    "append to": _UNRECORDED,
    "sync": _UNRECORDED,
    "read": "What it holds is not known; let this user read it, and see whether the disk is failing.",
}


class JournalError(OSError):
    """The journal could not be written or read; `errno` tells why. Its text is one line for a person."""

    def __init__(self, action: str, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self._text = f"cannot {action} the journal {path}: {error.strerror}. {_MEANING[action]}"

    def __str__(self) -> str:
        return self._text


@dataclass(frozen=True, slots=True)
class Entry:
    """One happening: its UTC time, its kind and what is known of it."""

    at: datetime
    event: str
    facts: dict[str, Any]


class Journal:
    """The journal at `path`, opened at the first append; `time_ns` is the clock (ns since 1970)."""

    def __init__(self, path: Path, time_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._time_ns = time_ns
        self._descriptor = -1
        self._torn = False
        self._lock = threading.Lock()

    def append(self, event: str, /, **facts: object) -> None:
        """Append one entry, stamped with the clock's time. Raises `JournalError`; the same may be given again."""
        line = _line(self._time_ns(), event, facts)
        with self._lock:
            try:
                self._open()
                data = b"\n" + line if self._torn else line
                # marked before: whatever stops the write leaves a line that must be ended first
                self._torn = True
                if os.write(self._descriptor, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - a short write has no errno
                self._torn = False
            except OSError as error:
                raise JournalError("append to", self._path, error) from error

    def sync(self) -> None:
        """Make what was appended safe from power loss. Raises `JournalError`."""
        with self._lock:
            if self._descriptor < 0:
                return
            try:
                descriptor = os.dup(self._descriptor)
            except OSError as error:
                raise JournalError("sync", self._path, error) from error
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            raise JournalError("sync", self._path, error) from error
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Sync and give the descriptor back; another append opens the file again. Raises `JournalError`."""
        try:
            self.sync()
        finally:
            with self._lock:
                self._close()

    def _open(self) -> None:
        """Open the file that the path names now: it may have been rotated away since the last append."""
        if self._descriptor >= 0 and not _same_file(self._descriptor, self._path):
            self._close()
        if self._descriptor >= 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, FILE_MODE)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


@dataclass(slots=True)
class Reading:
    """A journal's entries, oldest first, of some kinds or of all. `damaged` counts the lines that are no entry.

    A line of another kind is passed over by its bytes, unread: a journal of years has few entries that one wants.
    """

    path: Path
    only: frozenset[str] | None = None
    last_bytes: int | None = None
    """Read no more than this much of its end."""
    begin: int = 0
    """Read from this place on, which is the begin of a line."""
    since: datetime | None = None
    """Pass over the entries before this time, as far as times rise: none that is later is passed over but for a clock
    that was set back."""
    damaged: int = field(default=0, init=False)
    end: int = field(default=0, init=False)
    """After reading: the place behind the last whole line."""

    def __iter__(self) -> Iterator[Entry]:
        self.damaged = 0
        wanted = None if self.only is None else _kinds(self.only)
        try:
            with self.path.open("rb") as file:
                self._go_to_begin(file)
                while line := file.readline(MAX_LINE):
                    if wanted is not None and line.endswith(b"}\n") and wanted.search(line) is None:
                        continue
                    entry = _parse(line)
                    if entry is None:
                        self.damaged += 1
                        _skip_rest(file, line)
                    elif self.only is None or entry.event in self.only:
                        yield entry
                self.end = self._last_end(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise JournalError("read", self.path, error) from error

    def _go_to_begin(self, file: IO[bytes]) -> None:
        """Pass over what is not wanted."""
        size = os.fstat(file.fileno()).st_size
        skipped = 0 if self.last_bytes is None else size - self.last_bytes
        if skipped > 0:
            file.seek(skipped)
            file.readline()
        elif self.since is not None:
            file.seek(_place_of(file, self.since, size))
        else:
            file.seek(self.begin)

    def _last_end(self, file: IO[bytes]) -> int:
        """Return the place behind the last newline read; where none stands near, the place that reading began at."""
        read = file.tell()
        near = max(self.begin, read - 2 * MAX_LINE)
        newline = os.pread(file.fileno(), read - near, near).rfind(b"\n")
        return self.begin if newline < 0 else near + newline + 1


def read(
    path: Path,
    only: frozenset[str] | None = None,
    last_bytes: int | None = None,
    *,
    begin: int = 0,
    since: datetime | None = None,
) -> Reading:
    """Return the entries of a journal, all or those of some kinds, of its end or since a time; none without a file.

    Iterating raises `JournalError`.
    """
    return Reading(path, only, last_bytes, begin, since)


def _place_of(file: IO[bytes], since: datetime, size: int) -> int:
    """Return a place, the begin of a line, before which entries are older than `since`: by halving the file."""
    low, high = 0, size
    while high - low > SEARCHED_BYTES:
        middle = (low + high) // 2
        place, entry = _entry_behind(file, middle)
        if entry is None or place >= high or entry.at >= since:
            high = middle
        else:
            low = place
    return low


def _entry_behind(file: IO[bytes], place: int) -> tuple[int, Entry | None]:
    """Return the first entry of a line that begins behind a place, and where it begins; None where none is near."""
    file.seek(place)
    file.readline()
    for _ in range(ENTRIES_TRIED):
        begin = file.tell()
        entry = _parse(file.readline(MAX_LINE))
        if entry is not None and entry.at.tzinfo is not None:
            return begin, entry
    return place, None


def _kinds(events: frozenset[str]) -> re.Pattern[bytes]:
    """Return what a line of one of these kinds contains; the line as a whole still has to be looked at."""
    return re.compile(b'"event": ?"(?:%s)"' % b"|".join(re.escape(event).encode() for event in sorted(events)))


def _line(time_ns: int, event: str, facts: dict[str, object]) -> bytes:
    if not facts.keys().isdisjoint(_OWN):
        raise ValueError(f"'at' and 'event' are the journal's own: {sorted(facts)}")
    microseconds = time_ns // 1000
    at = datetime.fromtimestamp(microseconds // 10**6, UTC).replace(microsecond=microseconds % 10**6)
    head = {"at": f"{at:%Y-%m-%dT%H:%M:%S.%f}Z", "event": event}
    line = _json(head | facts)
    if len(line) > MAX_LINE:
        line = _json(head | {name: _shortened(value) for name, value in facts.items()})
    if len(line) > MAX_LINE:
        line = _json(head | {"left_out": [name[:_SHORTENED] for name in list(facts)[:10]]})
    return line


def _shortened(value: object) -> object:
    if isinstance(value, str) and len(value) > _SHORTENED:
        return value[:_SHORTENED] + "…"
    return value


def _json(entry: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(entry, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number above 64 bits, or text that is not Unicode, such as part of a file name
        own = {name: entry[name] for name in _OWN}
        plain = {ascii(name): ascii(value) for name, value in entry.items() if name not in _OWN}
        return orjson.dumps(own | plain, option=orjson.OPT_APPEND_NEWLINE)


def _parse(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = orjson.loads(line)
        if isinstance(entry, dict):
            at, event = entry.pop("at"), entry.pop("event")
            if isinstance(event, str):
                return Entry(datetime.fromisoformat(at), event, entry)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    return None


def _skip_rest(file: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE)


def _same_file(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
