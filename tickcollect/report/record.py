"""What is on record of some days: file names, the journal, and the rows of what the journal does not know.

Rules:

1. A file's name tells its IDs, and what was written when it was sealed (the journal's `sealed`) its rows, bytes and
   hours. A file is believed to be that one while it has the bytes that it was sealed with; otherwise it is read. One
   that was told to be damaged is inspected whole, because a good copy may have been put in its place since.
2. A file that is not here any more, or damaged, counts as stored if a store is proved to hold what was sealed
   (`delivered`). If not, it counts as gone, or damaged.
3. A growing CSV is read up to the size that it had when it was opened, and to its last whole row.
4. Of days that were not asked for only the nearest before and after with rows are kept: they prove that a day begins
   and ends where its neighbours do. So memory does not grow with the years on record, nor with a file's size.
5. A line or a file that cannot be understood is counted and told; it proves nothing.
6. A collector says when it does not know of a feed whether IDs are missing (`unknown`) and when it knows again
   (`known`). Of the first the open one is kept, of the second the newest: what lies between is settled.
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
from tickcollect.gaps import Ranges
from tickcollect.hours import HourCount
from tickcollect.journal import Entry
from tickcollect.journal import read as read_journal
from tickcollect.measured import FOLDER
from tickcollect.report.delivered import Delivered, OnRecord, Sealed
from tickcollect.salvage import Numbering
from tickcollect.sealed import DamagedError, Inspection, SealRecord, UncheckableError

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
    """In a file that is not what was sealed: it cannot be read, or holds other rows than its name says."""


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
    stores: frozenset[str] = frozenset()
    """The stores that are proved to hold it."""
    recorded: bool = False
    """The journal tells of its sealing, so that it reaches back to it."""
    rows_known: bool = True
    inspected: bool = True
    """Of a file that only a store holds: what was sent had been compared with what was sealed."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the journal told of some IDs of a feed."""

    at: datetime
    event: str
    first_id: int
    last_id: int
    source: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Doubt:
    """It is not known since when, and why, whether IDs are missing."""

    since: datetime
    reason: str


@dataclass(slots=True)
class FeedRecord:
    """What is on record of one feed."""

    path: FeedPath
    files: dict[int, list[KnownFile]] = field(default_factory=dict)
    """By day (days since 1970), in order of IDs."""
    told: list[Told] = field(default_factory=list)
    moments: dict[str, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    """When its numbering began anew (`numbering_restarted`), when it did while it was not known what had come before
    (`restarted_unseen`), and when nothing came although it traded (`silent`)."""
    open: Ranges = field(default_factory=Ranges)
    """What the whole journal tells to be missing and not settled."""
    known_at: datetime | None = None
    """When the journal has told last that nothing was missing behind the newest row."""
    doubt: Doubt | None = None
    """What the journal has told since of its not being known."""
    journal_begins: int | None = None
    """The day of the journal's first entry; None without one."""

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
    newest_clocks: dict[str, tuple[datetime, int]] = field(default_factory=dict)
    """By exchange: the newest of these measurements, and when it was made."""
    starts: list[datetime] = field(default_factory=list)
    """When a collector was started."""
    disconnects: list[tuple[datetime, str]] = field(default_factory=list)
    """When an open connection broke, and to which exchange; each once, however many feeds it carried."""
    stores: dict[str, datetime] = field(default_factory=dict)
    """Where files were uploaded to, and when the last one was."""
    troubles: list[str] = field(default_factory=list)
    """What could not be understood, a line each."""

    def feed(self, path: FeedPath) -> FeedRecord:
        """Return what is on record of a feed; nothing yet, if it is new."""
        feed = FeedRecord(path)
        return self.feeds.setdefault(feed.name, feed)


class _Numbers(msgspec.Struct, frozen=True):
    """What the journal tells of IDs."""

    subject: str
    first_id: int
    last_id: int
    source: str = ""
    reason: str = ""
    detail: str = ""
    store: str = ""


class _Unknown(msgspec.Struct, frozen=True):
    """The journal's `unknown` and `known`: of an exchange's feeds (`trade/BTCUSDT`)."""

    subject: str
    feeds: list[str]
    since: datetime | None = None
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


OPENING = frozenset({"gap", "file_lost", "sync_failed", "damaged", "reopened"})
"""Entries after which IDs are missing; `damaged` only where no store was found to hold what was sealed."""
SETTLING = frozenset({"filled", "absent", "lost"})
_DELIVERY = frozenset({"uploaded", "deleted", "damaged", "store_lost", "name_taken"})

_LINES: dict[str, type[msgspec.Struct]] = {
    "sealed": Sealed,
    **dict.fromkeys(_DELIVERY, Delivered),
    **dict.fromkeys(("gap", "file_lost", "sync_failed", "reopened", "absence_seen", *SETTLING), _Numbers),
    **dict.fromkeys(("unknown", "known"), _Unknown),
    **dict.fromkeys(("clock_offset", "clock_wrong", "exchange_clock_wrong"), _Clock),
    **dict.fromkeys(("numbering_restarted", "silent", "disconnected"), _Moment),
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

    Where a file seems to be gone, all is read once more: an upload may have delivered and deleted it meanwhile. Raises
    `ReportError` for a directory or file that may not be read, `JournalError` for such a journal.
    """
    record = _read_once(data_dir, first_day, last_day)
    files = [file for feed in record.feeds.values() for of_day in feed.files.values() for file in of_day]
    if any(file.place is Place.GONE for file in files):
        record = _read_once(data_dir, first_day, last_day)
    return record


def _read_once(data_dir: Path, first_day: int, last_day: int) -> Record:
    journal = _JournalReader(first_day, last_day)
    journal.read(data_dir / JOURNAL)
    record = journal.record
    for path in _feed_paths(data_dir):
        record.feed(path)
    for feed in record.feeds.values():
        feed.journal_begins = journal.begins
        feed.files = _FileReader(data_dir, feed, journal.files[feed.name], record.troubles).read()
    return record


# --- The journal -----------------------------------------------------------------------------------------------------


class _JournalReader:
    """Sorts the journal's lines by feed."""

    def __init__(self, first_day: int, last_day: int) -> None:
        self.first_day, self.last_day = first_day, last_day
        self.record = Record()
        self.files: dict[str, _Near[OnRecord]] = defaultdict(lambda: _Near(first_day, last_day))
        """What is on record of sealed files, by feed, day and name."""
        self.begins: int | None = None
        """The day of the first entry."""
        self.known_at: dict[str, dict[str, datetime]] = defaultdict(dict)
        """By exchange and feed (`trade/BTCUSDT`): when it was known last."""
        self.doubts: dict[str, dict[str, Doubt]] = defaultdict(dict)
        """By exchange and feed: what is told since of its not being known."""

    def read(self, path: Path) -> None:
        """Read all of it. Raises `JournalError`."""
        reading = read_journal(path, frozenset(_LINES))
        damaged = 0
        for entry in reading:
            try:
                self._take(entry, msgspec.convert(entry.facts, _LINES[entry.event]))
            except (msgspec.ValidationError, NameRefusedError):
                damaged += 1
                self._take_shortened(entry)
        damaged += reading.damaged
        self._hand_over_knowledge()
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
            case Sealed() | Delivered():
                self._take_file(at, entry, line)
            case _Moment():
                self._take_moment(at, entry.event, line.subject)
            case _Numbers():
                self._take_numbers(at, entry.event, line)
            case _Unknown():
                self._take_unknown(at, entry.event, line)
            case _Clock():
                self._take_clock(at, line)
            case _Start() if self.first_day <= day <= self.last_day:
                self.record.starts.append(at)
        self.begins = day if self.begins is None else min(self.begins, day)

    def _take_shortened(self, entry: Entry) -> None:
        """Take an entry that was too long for the journal (`left_out`): whose feeds are unknown is then unknown."""
        if entry.event == "unknown" and "left_out" in entry.facts and entry.at.tzinfo is not None:
            doubt = Doubt(entry.at.astimezone(UTC), "an entry of the journal was too long to name its feeds")
            for name in self.record.feeds:
                exchange, _, short = name.partition("/")
                self.doubts[exchange].setdefault(short, doubt)

    def _take_clock(self, at: datetime, line: _Clock) -> None:
        self.record.newest_clocks[line.subject] = at, line.offset_ms
        if self.first_day <= day_number(at) <= self.last_day:
            self.record.clocks[day_number(at), line.subject].append(line.offset_ms)

    def _take_file(self, at: datetime, entry: Entry, line: Sealed | Delivered) -> None:
        name = line.file.rpartition("/")[2]
        feed = self._feed(line.subject)
        found = feed.path.parse(name)
        if found is None or not found.sealed:
            raise NameRefusedError(f"{name!r} is not the name of a sealed file")
        near = self.files[feed.name]
        known = near.days.get(found.day, {}).get(name) or OnRecord()
        known.take(entry.event, line)
        near.put(found.day, name, known)
        if isinstance(line, Delivered) and entry.event == "uploaded" and line.store:
            self.record.stores[line.store] = at
        if entry.event in {"damaged", "store_lost"}:
            self._take_numbers(at, entry.event, msgspec.convert(entry.facts, _Numbers))

    def _take_numbers(self, at: datetime, event: str, line: _Numbers) -> None:
        feed = self._feed(line.subject)
        if line.first_id > line.last_id:
            return
        if event in OPENING and not (event == "damaged" and line.store):
            feed.open.add(line.first_id, line.last_id)
        elif event in SETTLING:
            feed.open.remove(line.first_id, line.last_id)
        if day_number(at) >= self.first_day - 1:  # clocks differ: what begins a day may be told before it
            told = "held by a store" if event == "damaged" and line.store else event
            reason = line.reason or line.detail
            feed.told.append(Told(at, told, line.first_id, line.last_id, line.source, reason))

    def _take_moment(self, at: datetime, event: str, subject: str) -> None:
        if event == "disconnected":
            if self.first_day <= day_number(at) <= self.last_day:
                self.record.disconnects.append((at, subject))
            return
        feed = self._feed(subject)
        feed.moments[event].append(at)
        if event == "numbering_restarted":
            feed.open = Ranges()
            exchange, _, short = subject.partition("/")
            if short in self.doubts[exchange]:
                feed.moments["restarted_unseen"].append(at)

    def _take_unknown(self, at: datetime, event: str, line: _Unknown) -> None:
        doubts = self.doubts[line.subject]
        if event == "known":
            self.known_at[line.subject].update(dict.fromkeys(line.feeds, at))
            for short in doubts.keys() & line.feeds:
                del doubts[short]
            return
        since = line.since.astimezone(UTC) if line.since is not None and line.since.tzinfo is not None else at
        doubt = Doubt(min(since, at), line.reason)
        for short in line.feeds:
            doubts.setdefault(short, doubt)

    def _hand_over_knowledge(self) -> None:
        """Note with each feed what the journal has told last of its being known."""
        for exchange, known_at in self.known_at.items():
            for short, at in known_at.items():
                with suppress(NameRefusedError):  # no feed of ours
                    self._feed(f"{exchange}/{short}").known_at = at
        for exchange, doubts in self.doubts.items():
            for short, doubt in doubts.items():
                with suppress(NameRefusedError):
                    self._feed(f"{exchange}/{short}").doubt = doubt

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
    on_record: _Near[OnRecord]
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
        near = _Near[SegmentName](self.on_record.first_day, self.on_record.last_day)
        try:
            here = {path.name for path in directory.iterdir()}
        except FileNotFoundError:
            here = set()
        except OSError as error:
            raise _not_read(directory, error) from error
        known = [name for names in self.on_record.days.values() for name in names]
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
            on_record = self.on_record.days.get(name.day, {}).get(text) or OnRecord()
            try:
                if text not in here:
                    found.append(self._elsewhere(text, name, on_record))
                elif name.sealed:
                    found.append(self._sealed(path, name, on_record, troubles))
                elif name.first_id not in sealed_first:  # else a crash came between its sealing and its deletion
                    found += self._open(path, name)
            except _WrongRowsError as error:
                troubles.append(f"{path} {error}")
                found.append(self._damaged(text, name, on_record))
        troubles += [f"{directory / file.name}: {why}" for file in found if (why := self._doubtful(file))]
        return sorted(found, key=lambda file: (file.first_id, file.last_id))

    def _doubtful(self, file: KnownFile) -> str:
        """Say why a file that is not here is not believed to be in the store that it was sent to."""
        if file.place is not Place.DAMAGED:
            return ""
        day = next(name.day for name in [self.feed.path.parse(file.name)] if name is not None)
        on_record = self.on_record.days.get(day, {}).get(file.name)
        return "" if on_record is None else on_record.contradiction

    def _elsewhere(self, text: str, name: SegmentName, on_record: OnRecord) -> KnownFile:
        """Tell of a file that is not here (rule 2)."""
        stores = on_record.stores
        lost = Place.DAMAGED if on_record.damaged or on_record.contradiction else Place.GONE
        return self._recorded(text, name, on_record, Place.STORED if stores else lost)

    def _damaged(self, text: str, name: SegmentName, on_record: OnRecord) -> KnownFile:
        """Tell of a file that is here and not what its name says (rule 2)."""
        if name.sealed and on_record.stores:
            return self._recorded(text, name, on_record, Place.STORED)
        return KnownFile(text, name.first_id, name.last_id or name.first_id, Place.DAMAGED)

    def _recorded(self, text: str, name: SegmentName, on_record: OnRecord, place: Place) -> KnownFile:
        """Tell of a file by what was written when it was sealed."""
        assert name.last_id is not None
        facts, stores, inspected = on_record.sealed, on_record.stores, on_record.is_inspected
        if facts is None:
            known = not self.feed.has_placeholders
            rows = name.last_id - name.first_id + 1 if known else 0
            return KnownFile(
                text, name.first_id, name.last_id, place, rows, stores=stores, rows_known=known, inspected=inspected
            )
        return KnownFile(
            text, name.first_id, name.last_id, place, facts.rows, facts.bytes, facts.csv_bytes, facts.hours, stores,
            recorded=True, inspected=inspected,
        )  # fmt: skip

    def _sealed(self, path: Path, name: SegmentName, on_record: OnRecord, troubles: list[str]) -> KnownFile:
        """Tell of a sealed file, by the journal or by its rows (rule 1)."""
        assert name.last_id is not None
        facts = on_record.sealed
        if on_record.damaged:
            self._inspect(path, name, facts)
        if not self._is_asked(name):
            return KnownFile(
                path.name, name.first_id, name.last_id, Place.HERE, stores=on_record.stores, recorded=facts is not None
            )
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
            path.name, rows.first_id, rows.last_id, Place.HERE, rows.rows, size, rows.csv_size, rows.hours,
            on_record.stores, recorded=facts is not None,
        )  # fmt: skip

    def _inspect(self, path: Path, name: SegmentName, facts: Sealed | None) -> None:
        """Read a file whole that was told to be damaged. Raises `_WrongRowsError` if it is."""
        seal = None
        if facts is not None:
            seal = SealRecord(facts.bytes, facts.rows, facts.csv_bytes, facts.csv_sha256, facts.sha256)
        numbering = Numbering.RISING if self.feed.has_placeholders else Numbering.BY_ONE
        try:
            inspection = Inspection(self.feed.path, name, path.name.removesuffix(name.packing), numbering, seal)
            with path.open("rb") as file:
                for chunk in chunks_of(file):
                    inspection.feed(chunk)
            inspection.end()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise _not_read(path, error) from error
        except (DamagedError, UncheckableError, OSError) as error:
            raise _WrongRowsError(f"is not what was sealed: {error}") from error

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
        return self.on_record.first_day <= name.day <= self.on_record.last_day

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
