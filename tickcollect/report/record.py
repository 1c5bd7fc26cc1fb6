"""What is on record of some days: file names, the journal, and the rows of what the journal does not know.

Rules:

1. A file's name tells its IDs, and what was written when it was sealed (the journal's `sealed`) its rows, bytes and
   hours. A file is believed to be that one while it has the bytes that it was sealed with; otherwise it is read.
2. A file that is not here any more counts as stored if the journal tells that a store has proved to hold it
   (`uploaded`, `deleted`), and as gone if not.
3. A growing CSV is read up to the size that it had when it was opened, and to its last whole row.
4. Of days that were not asked for only the nearest before and after with rows are kept: they prove that a day begins
   and ends where its neighbours do. So memory does not grow with the years on record, nor with a file's size.
5. A line or a file that cannot be understood is counted and told; it proves nothing.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from tickcollect.events import FuturesTrade
from tickcollect.exchanges import MARKETS
from tickcollect.files import QUARANTINE, UNREADABLE, FeedPath, NameRefusedError, SegmentName, chunks_of, open_csv
from tickcollect.hours import HourCount
from tickcollect.journal import Entry
from tickcollect.journal import read as read_journal
from tickcollect.measured import FOLDER

DAY_ZERO = date(1970, 1, 1).toordinal()
ID_COLUMN = 3
"""Where a row's ID stands, in every stream."""
LONGEST_ID = 19
JOURNAL = "journal.jsonl"
LOOKED_AGAIN = 3
"""Times that a feed's files are listed, if one of them is sealed or deleted between its listing and its reading."""
TAIL = 1 << 16
"""Bytes at the end of a CSV in which its last row is looked for."""

Kept = TypeVar("Kept")


def day_text(day: int) -> str:
    """Return a day counted from 1970 as text: `2026-11-20`."""
    return date.fromordinal(DAY_ZERO + day).isoformat()


def day_number(at: datetime) -> int:
    """Return the UTC day of a time, counted from 1970."""
    return at.astimezone(UTC).toordinal() - DAY_ZERO


class ReportError(Exception):
    """The report cannot be made; the message is one line for a person."""


# --- What is known ---------------------------------------------------------------------------------------------------


class Place(Enum):
    """Where the rows of a segment are, as far as it is proved."""

    HERE = "here"
    """Sealed, below the data directory."""
    OPEN = "open"
    """In a CSV that is not sealed yet."""
    STORED = "stored"
    """Only in a store, which has proved to hold them."""
    GONE = "gone"
    """They were sealed; the file is no longer here, and no store has proved to hold it."""
    DAMAGED = "damaged"
    """In a file that cannot be read, or holds other rows than its name says."""


HELD = frozenset({Place.HERE, Place.OPEN, Place.STORED})


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One segment. What is not known of a neighbouring day's file, because nobody asks, is zero or None."""

    name: str
    first_id: int
    last_id: int
    place: Place
    rows: int = 0
    size: int = 0
    """Bytes of the file itself."""
    csv_size: int = 0
    hours: list[int] | None = None
    uploaded: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What the journal told of some IDs of a feed."""

    at: datetime
    event: str
    first_id: int
    last_id: int
    source: str = ""
    reason: str = ""


@dataclass(slots=True)
class FeedRecord:
    """What is on record of one feed."""

    path: FeedPath
    files: dict[int, list[KnownFile]] = field(default_factory=dict)
    """By day (days since 1970), in order of IDs."""
    told: list[Told] = field(default_factory=list)
    moments: dict[str, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    """When its numbering began anew (`numbering_restarted`), and when nothing came although it traded (`silent`)."""

    @property
    def name(self) -> str:
        """The feed as the journal writes it."""
        return f"{self.path.exchange}/{self.path.stream}/{self.path.symbol}"

    @property
    def has_placeholders(self) -> bool:
        """Whether some of its IDs belong to messages that are no trades and have no row (futures `trade`)."""
        market = MARKETS.get(self.path.exchange)
        kind = None if market is None else market.message_types.get(self.path.stream)
        return kind is not None and issubclass(kind, FuturesTrade)


@dataclass(slots=True)
class Record:
    """What is on record of some days."""

    feeds: dict[str, FeedRecord] = field(default_factory=dict)
    clocks: dict[tuple[int, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    """By day and exchange: how far its clock was measured to be ahead of this machine's, in ms."""
    starts: list[datetime] = field(default_factory=list)
    """When a collector was started."""
    stores: set[str] = field(default_factory=set)
    """Where files were uploaded to."""
    troubles: list[str] = field(default_factory=list)
    """What could not be understood, a line each."""


class _Sealed(msgspec.Struct, frozen=True):
    """The journal's `sealed`."""

    subject: str
    file: str
    rows: int
    bytes: int
    csv_bytes: int
    hours: list[int] | None = None


class _Delivered(msgspec.Struct, frozen=True):
    """The journal's `uploaded` and `deleted`."""

    subject: str
    file: str
    store: str = ""


class _Numbers(msgspec.Struct, frozen=True):
    """What the journal tells of IDs."""

    subject: str
    first_id: int
    last_id: int
    source: str = ""
    reason: str = ""


class _Clock(msgspec.Struct, frozen=True):
    """The journal's `clock_offset`, `clock_wrong` and `exchange_clock_wrong`."""

    subject: str
    offset_ms: int


class _Moment(msgspec.Struct, frozen=True):
    """An event of a feed of which only the time counts."""

    subject: str


class _Start(msgspec.Struct, frozen=True):
    """The journal's `started`."""


_LINES: dict[str, type[msgspec.Struct]] = {
    "sealed": _Sealed,
    "uploaded": _Delivered,
    "deleted": _Delivered,
    **dict.fromkeys(("gap", "file_lost", "sync_failed", "reopened", "filled", "absent", "lost"), _Numbers),
    **dict.fromkeys(("clock_offset", "clock_wrong", "exchange_clock_wrong"), _Clock),
    **dict.fromkeys(("numbering_restarted", "silent"), _Moment),
    "started": _Start,
}
"""The kinds of entries that the report looks at, and what each must hold."""


@dataclass(slots=True)
class _Near(Generic[Kept]):
    """Keeps what belongs to the days asked for and to the nearest day before and after them (rule 4)."""

    first_day: int
    last_day: int
    days: dict[int, dict[str, Kept]] = field(default_factory=dict)

    def put(self, day: int, key: str, value: Kept) -> None:
        before = [known for known in self.days if known < self.first_day]
        after = [known for known in self.days if known > self.last_day]
        if (day < self.first_day and before and day < before[0]) or (day > self.last_day and after and day > after[0]):
            return
        for farther in before if day < self.first_day else after if day > self.last_day else ():
            if farther != day:
                del self.days[farther]
        self.days.setdefault(day, {})[key] = value


def read_record(data_dir: Path, first_day: int, last_day: int) -> Record:
    """Return what is on record of the UTC days `first_day` to `last_day` (days since 1970).

    Raises `ReportError` for a directory or file that may not be read, `JournalError` for such a journal.
    """
    journal = _JournalReader(first_day, last_day)
    journal.read(data_dir / JOURNAL)
    record = journal.record
    for path in _feed_paths(data_dir):
        feed = FeedRecord(path)
        record.feeds.setdefault(feed.name, feed)
    for feed in record.feeds.values():
        files = _FileReader(data_dir, feed, journal.sealed[feed.name], journal.stored[feed.name], record.troubles)
        feed.files = files.read()
    return record


# --- The journal -----------------------------------------------------------------------------------------------------


class _JournalReader:
    """Sorts the journal's lines by feed."""

    def __init__(self, first_day: int, last_day: int) -> None:
        self.first_day, self.last_day = first_day, last_day
        self.record = Record()
        self.sealed: dict[str, _Near[_Sealed]] = defaultdict(lambda: _Near(first_day, last_day))
        self.stored: dict[str, _Near[None]] = defaultdict(lambda: _Near(first_day, last_day))
        """The files that a store has proved to hold."""

    def read(self, path: Path) -> None:
        """Read all of it. Raises `JournalError`."""
        reading = read_journal(path, frozenset(_LINES))
        damaged = 0
        for entry in reading:
            try:
                self._take(entry, msgspec.convert(entry.facts, _LINES[entry.event]))
            except (msgspec.ValidationError, NameRefusedError):
                damaged += 1
        damaged += reading.damaged
        if damaged:
            self.record.troubles.append(f"{path}: {damaged:,} lines cannot be read; what they told is not known here")
        elif not path.exists():
            self.record.troubles.append(f"{path} does not exist: which gaps were found and filled is not known")

    def _take(self, entry: Entry, line: msgspec.Struct) -> None:
        if entry.at.tzinfo is None:
            raise msgspec.ValidationError(f"a time without a zone: {entry.at}")
        at = entry.at.astimezone(UTC)
        day = day_number(at)
        match line:
            case _Sealed():
                self._put(self.sealed, line.subject, line.file, line)
            case _Delivered():
                self._put(self.stored, line.subject, line.file, None)
                self.record.stores.update(filter(None, [line.store]))
            case _Moment():
                self._feed(line.subject).moments[entry.event].append(at)
            case _Numbers() if day >= self.first_day - 1:  # clocks differ: what begins a day may be told before it
                told = Told(at, entry.event, line.first_id, line.last_id, line.source, line.reason)
                self._feed(line.subject).told.append(told)
            case _Clock() if self.first_day <= day <= self.last_day:
                self.record.clocks[day, line.subject].append(line.offset_ms)
            case _Start() if self.first_day <= day <= self.last_day:
                self.record.starts.append(at)

    def _put(self, kept: dict[str, "_Near[Kept]"], subject: str, file: str, value: Kept) -> None:
        name = Path(file).name
        found = self._feed(subject).path.parse(name)
        if found is None or not found.sealed:
            raise NameRefusedError(f"{name!r} is not the name of a sealed file")
        kept[subject].put(found.day, name, value)

    def _feed(self, subject: str) -> FeedRecord:
        feed = self.record.feeds.get(subject)
        if feed is None:
            exchange, _, rest = subject.partition("/")
            stream, _, symbol = rest.partition("/")
            feed = self.record.feeds[subject] = FeedRecord(FeedPath(exchange, stream, symbol))
        return feed


# --- The files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the rows of one CSV are."""

    rows: int
    first_id: int
    last_id: int
    csv_size: int
    hours: list[int]


class _WrongRowsError(Exception):
    """A file's rows are not what they should be; the text goes on after the file's name."""


def _feed_paths(data_dir: Path) -> Iterator[FeedPath]:
    """Yield the feeds that have a directory."""
    for exchange in _folders(data_dir):
        if exchange.name not in {QUARANTINE, FOLDER}:
            for stream in _folders(exchange):
                for symbol in _folders(stream):
                    yield FeedPath(exchange.name, stream.name, symbol.name)


def _folders(path: Path) -> Iterator[Path]:
    """Yield the directories in one whose names may be parts of a feed's name."""
    try:
        for entry in path.iterdir():
            with suppress(NameRefusedError):
                FeedPath(entry.name, entry.name, entry.name)
                if entry.is_dir():
                    yield entry
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_read(path, error) from error


@dataclass
class _FileReader:
    """Finds one feed's files: by the directory, the journal, and what is to be read."""

    data_dir: Path
    feed: FeedRecord
    sealed: _Near[_Sealed]
    stored: _Near[None]
    troubles: list[str]

    def read(self) -> dict[int, list[KnownFile]]:
        """Return what is known of each file, by day. Raises `ReportError`."""
        for _ in range(LOOKED_AGAIN):
            troubles: list[str] = []
            try:
                found = self._read_once(troubles)
            except FileNotFoundError:  # sealed or deleted a moment ago
                continue
            self.troubles += troubles
            return found
        raise ReportError(f"the files of {self.feed.name} change all the time; try again")

    def _read_once(self, troubles: list[str]) -> dict[int, list[KnownFile]]:
        directory = self.feed.path.directory(self.data_dir)
        near = _Near[SegmentName](self.sealed.first_day, self.sealed.last_day)
        try:
            here = {path.name for path in directory.iterdir()}
        except FileNotFoundError:
            here = set()
        except OSError as error:
            raise _not_read(directory, error) from error
        known = [name for journal in (self.sealed, self.stored) for names in journal.days.values() for name in names]
        for name in here.union(known):
            parsed = self.feed.path.parse(name)
            if parsed is not None and not parsed.temporary:
                near.put(parsed.day, name, parsed)
        return {day: self._of_day(directory, names, here, troubles) for day, names in near.days.items()}

    def _of_day(
        self, directory: Path, names: dict[str, SegmentName], here: set[str], troubles: list[str]
    ) -> list[KnownFile]:
        sealed_first = {name.first_id for text, name in names.items() if name.sealed and text in here}
        found = []
        for text, name in names.items():
            path = directory / text
            try:
                if text not in here:
                    found.append(self._elsewhere(text, name))
                elif name.sealed:
                    found.append(self._sealed(path, name, troubles))
                elif name.first_id not in sealed_first:  # else a crash came between its sealing and its deletion
                    found += self._open(path, name)
            except _WrongRowsError as error:
                troubles.append(f"{path} {error}")
                found.append(KnownFile(text, name.first_id, name.last_id or name.first_id, Place.DAMAGED))
        return sorted(found, key=lambda file: (file.first_id, file.last_id))

    def _elsewhere(self, text: str, name: SegmentName) -> KnownFile:
        """Tell of a file that is not here (rule 2)."""
        assert name.last_id is not None
        stored = text in self.stored.days.get(name.day, {})
        facts = self.sealed.days.get(name.day, {}).get(text)
        place = Place.STORED if stored else Place.GONE
        if facts is None:
            rows = 0 if self.feed.has_placeholders else name.last_id - name.first_id + 1
            return KnownFile(text, name.first_id, name.last_id, place, rows, uploaded=stored)
        return KnownFile(
            text, name.first_id, name.last_id, place, facts.rows, facts.bytes, facts.csv_bytes, facts.hours, stored
        )

    def _sealed(self, path: Path, name: SegmentName, troubles: list[str]) -> KnownFile:
        """Tell of a sealed file, by the journal or by its rows (rule 1)."""
        assert name.last_id is not None
        uploaded = path.name in self.stored.days.get(name.day, {})
        if not self._is_asked(name):
            return KnownFile(path.name, name.first_id, name.last_id, Place.HERE, uploaded=uploaded)
        facts = self.sealed.days.get(name.day, {}).get(path.name)
        size = path.stat().st_size
        if facts is not None and facts.hours is not None and facts.bytes == size:
            rows = _Rows(facts.rows, name.first_id, name.last_id, facts.csv_bytes, facts.hours)
        else:
            rows = _rows_of(path)
        if (rows.first_id, rows.last_id) != (name.first_id, name.last_id):
            raise _WrongRowsError(f"holds the IDs {rows.first_id} to {rows.last_id}, not those of its name")
        self._check_count(rows)
        if facts is not None and facts.bytes != size:
            troubles.append(
                f"{path} has {size:,} bytes instead of the {facts.bytes:,} it was sealed with; its rows were read, and "
                "they are those of its name"
            )
        return KnownFile(
            path.name, rows.first_id, rows.last_id, Place.HERE, rows.rows, size, rows.csv_size, rows.hours, uploaded
        )

    def _open(self, path: Path, name: SegmentName) -> list[KnownFile]:
        """Tell of a CSV that is not sealed yet; it may hold no whole row."""
        if not self._is_asked(name):
            last_id = _last_id(path)
            return [] if last_id is None else [KnownFile(path.name, name.first_id, last_id, Place.OPEN)]
        if _last_id(path) is None:
            return []
        rows = _rows_of(path)
        if rows.first_id != name.first_id:
            raise _WrongRowsError(f"begins with ID {rows.first_id}, not with that of its name")
        self._check_count(rows)
        size = rows.csv_size
        return [KnownFile(path.name, rows.first_id, rows.last_id, Place.OPEN, rows.rows, size, size, rows.hours)]

    def _is_asked(self, name: SegmentName) -> bool:
        return self.sealed.first_day <= name.day <= self.sealed.last_day

    def _check_count(self, rows: _Rows) -> None:
        """Hold the number of rows against the IDs: each has one, unless placeholders take some."""
        span = rows.last_id - rows.first_id + 1
        if rows.rows > span or (rows.rows < span and not self.feed.has_placeholders):
            raise _WrongRowsError(f"holds {rows.rows:,} rows for the {span:,} IDs {rows.first_id} to {rows.last_id}")


def _rows_of(path: Path) -> _Rows:
    """Read a CSV to its last whole row, sealed or as large as it is now (rule 3)."""
    hours, rows, size, head, tail = HourCount(), 0, 0, b"", b""
    try:
        with open_csv(path) as source:
            limit = None if path.suffix != ".csv" else os.fstat(source.fileno()).st_size
            for chunk in chunks_of(source, limit):
                hours.add(chunk)
                rows += chunk.count(b"\n")
                size += len(chunk)
                head = head or chunk[:TAIL]
                tail = (tail + chunk[-TAIL:])[-TAIL:]
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise _not_read(path, error) from error
    except (*UNREADABLE, OSError) as error:
        raise _WrongRowsError(f"cannot be read: {error}") from error
    end = tail.rfind(b"\n") + 1
    last = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
    return _Rows(rows, _id_of(head), _id_of(tail[last:end]), size - (len(tail) - end), hours.hours)


def _last_id(path: Path) -> int | None:
    """Return the ID of an open CSV's last whole row; None if it has none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read(TAIL)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_read(path, error) from error
    end = tail.rfind(b"\n") + 1
    return _id_of(tail[tail.rfind(b"\n", 0, end - 1) + 1 : end]) if end else None


def _id_of(row: bytes) -> int:
    columns = row.split(b",", ID_COLUMN + 1)
    text = columns[ID_COLUMN] if len(columns) > ID_COLUMN else b""
    if not text.isdigit() or len(text) > LONGEST_ID:
        raise _WrongRowsError("holds something else than rows")
    return int(text)


def _not_read(path: Path, error: OSError) -> ReportError:
    reason = error.strerror or str(error)
    return ReportError(f"cannot read {path}: {reason}. Run this as the collector's user or as one of its group.")
