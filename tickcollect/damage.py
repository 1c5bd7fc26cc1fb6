"""Sealed files that are not what was sealed: found at a start, moved to quarantine, and told.

Rules:

1. A file is held against its newest entry `sealed` by its size, which costs one `stat`. A file that was told to be
   damaged before is read whole, because a good copy may have been put in its place since. One without an entry is
   opened as its packing demands, as long as that takes no longer than a start may.
2. Only what is known to be damaged is moved. A file that cannot be read at present (EIO, EACCES) stays, not judged.
3. What a store was proved to hold is not missing; everything else of a damaged file is. That is on record before the
   file is moved: a process killed in between finds it damaged once more.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

from tickcollect.files import UNREADABLE, FeedPath, SegmentName, chunks_of
from tickcollect.journal import Entry
from tickcollect.recovery import is_current
from tickcollect.salvage import Numbering
from tickcollect.sealed import DamagedError, Inspection, SealRecord, UncheckableError

KINDS = frozenset({"sealed", "uploaded", "damaged", "store_lost", "name_taken"})
LOOKED_AT_WITHIN_S = 10.0
"""Time that a start may spend on opening files that are not on record."""
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True, slots=True)
class Damaged:
    """A sealed file that is not what was sealed. `store`, if not empty, was proved to hold what was."""

    path: Path
    name: SegmentName
    detail: str
    store: str
    current: bool
    """Whether it is of the feed's present numbering."""


@dataclass(slots=True)
class OnRecord:
    """What the journal says of the sealed files in `here`, by their paths below the data directory."""

    here: frozenset[str]
    sealed: dict[str, SealRecord] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    """Told to be damaged."""
    stores: dict[str, str] = field(default_factory=dict)
    """The store that was proved to hold what was sealed."""

    def take(self, entries: Iterable[Entry]) -> "OnRecord":
        """Take entries of the journal, oldest first."""
        for entry in entries:
            file = entry.facts.get("file")
            if isinstance(file, str) and file in self.here:
                self._take(entry.event, file, entry.facts)
        return self

    def _take(self, event: str, file: str, facts: dict[str, Any]) -> None:
        match event, facts:
            case "sealed", {"bytes": int(size), "rows": int(rows), "csv_bytes": int(csv_bytes), "csv_sha256": str(csv)}:
                self.sealed[file] = SealRecord(size, rows, csv_bytes, csv, str(facts.get("sha256", "")))
                self.told.discard(file)
            case "uploaded", {"store": str(store), "checked": str(checked)} if checked:
                self.stores[file] = store
            case (("store_lost" | "name_taken"), _):
                self.stores.pop(file, None)
            case "damaged", _:
                self.told.add(file)


def sealed_files(root: Path, feeds: Iterable[FeedPath]) -> frozenset[str]:
    """Return the sealed files of feeds, as paths below `root`. A directory that cannot be read has none."""
    found: list[str] = []
    for feed in feeds:
        directory = feed.directory(root)
        try:
            names = [path.name for path in directory.iterdir()]
        except OSError:
            continue
        parsed = [(name, feed.parse(name)) for name in names]
        found += [
            str((directory / name).relative_to(root)) for name, known in parsed if known is not None and known.sealed
        ]
    return frozenset(found)


def oldest_entry(here: Iterable[str]) -> datetime | None:
    """Return since when the journal may tell of sealed files: a day before the oldest of their days; None without any.

    A file is sealed on its day or later. Of one whose rows are dated ahead no entry is found; it is opened instead.
    """
    days = [date.fromisoformat(found[1]) for path in here if (found := _DAY.search(path))]
    return datetime.combine(min(days), datetime.min.time(), UTC) - timedelta(days=1) if days else None


_DAY = re.compile(r"-(\d{4}-\d\d-\d\d)-\d+-\d+\.csv")


@dataclass(slots=True)
class Damages:
    """Looks at feeds' sealed files, one feed after the other; `clock_s` is a clock that is never set."""

    root: Path
    record: OnRecord
    clock_s: Callable[[], float] = time.monotonic
    _spent_s: float = 0.0

    def of(self, feed: FeedPath, numbering: Numbering) -> list[Damaged]:
        """Return a feed's damaged files; the caller, who holds the feed's lock, tells them and moves them away."""
        found = []
        for file in sorted(sealed_files(self.root, [feed])):
            path = self.root / file
            name = feed.parse(path.name)
            detail = "" if name is None else self._detail(feed, path, name, numbering, file)
            if name is not None and detail:
                store = self.record.stores.get(file, "")
                found.append(Damaged(path, name, detail, store, is_current(self.root, feed, name)))
        return found

    def _detail(self, feed: FeedPath, path: Path, name: SegmentName, numbering: Numbering, file: str) -> str:
        """Return how a file is damaged; empty if that is not known."""
        record = self.record.sealed.get(file)
        try:
            size = path.lstat().st_size
            if path.is_symlink() or not path.is_file():
                return ""
            if record is not None and size != record.bytes:
                return f"it has {size:,} bytes, and {record.bytes:,} were sealed"
            if file in self.record.told:
                inspect(feed, path, name, numbering, record)
            elif record is None and self._spent_s < LOOKED_AT_WITHIN_S:
                self._open(path)
        except DamagedError as error:
            return str(error)
        except (OSError, UncheckableError):
            return ""
        return ""

    def _open(self, path: Path) -> None:
        began_s = self.clock_s()
        try:
            with path.open("rb") as file:
                open_lightly(file, path.name)
        finally:
            self._spent_s += self.clock_s() - began_s


def inspect(feed: FeedPath, path: Path, name: SegmentName, numbering: Numbering, record: SealRecord | None) -> None:
    """Read a file whole. Raises `DamagedError`, `UncheckableError`, `OSError`."""
    inspection = Inspection(feed, name, path.name.removesuffix(name.packing), numbering, record)
    with path.open("rb") as file:
        for chunk in chunks_of(file):
            inspection.feed(chunk)
    inspection.end()


def open_lightly(file: IO[bytes], name: str) -> None:
    """See that a file begins, and a zip also ends, as its packing demands. Raises `DamagedError`."""
    suffix = Path(name).suffix
    head = file.read(4)
    if not head:
        raise DamagedError("it is empty")
    if not head.startswith(_MAGIC.get(suffix, b"")):
        raise DamagedError(f"it does not begin as a {suffix} file does")
    if suffix == ".zip":
        try:
            with ZipFile(file) as archive:
                (member,) = archive.namelist()
        except (RuntimeError, ValueError, *UNREADABLE) as error:
            raise DamagedError(f"it cannot be opened ({error})") from error
        if member != name.removesuffix(suffix):
            raise DamagedError(f"it holds {member[:100]!r}")
