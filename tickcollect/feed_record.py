"""What the names of a feed's files do not say: its numberings and the names of extra columns.

    data/binance/trade/.BTCUSDT.json                                          beside the feed's directory BTCUSDT/
    {"restarts":[{"first_id":1,"last_id":4000049,"time":1790000000005,"later":[]}],"columns":["X"],"earlier_columns":{}}

Rules:

1. Each time the exchange begins its numbering anew, a `Restart` is added, safe on the disk before the first row of the
   new numbering is written. So IDs on disk are never taken for those of another numbering, whatever the journal holds.
2. Which numbering a file is of follows from its day, and on the day of a restart from the trade time of its first row.
   A file dated later that was there before (one row with a wrong time) is named in the restart.
3. A feed that has neither had a restart nor extra columns has no such file. Without one, and where it cannot be read,
   the files tell: see `recovery`.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tickcollect.events import MS_PER_DAY, time_ms
from tickcollect.files import TEMPORARY, FeedPath, SegmentName, make_directory, private, sync_directory

RESTARTS_KEPT = 50


@dataclass(frozen=True, slots=True)
class Restart:
    """The exchange began its numbering anew: `first_id` came after `last_id`, traded at `time` (as sent)."""

    first_id: int
    last_id: int
    time: int
    later: tuple[tuple[int, int], ...] = ()
    """Day and first ID of the files of later days that were there before."""

    @property
    def day(self) -> int:
        """The UTC day of its first row, counted from 1970-01-01."""
        return time_ms(self.time) // MS_PER_DAY

    def is_after(self, name: SegmentName, first_time: Callable[[SegmentName], int | None]) -> bool:
        """Tell whether a file is of a numbering before this restart (rule 2)."""
        if name.day != self.day:
            return name.day < self.day or (name.day, name.first_id) in self.later
        time = first_time(name)
        return time is not None and time_ms(time) < time_ms(self.time)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept. `columns` are the extra columns of files begun now, None where that was never noted."""

    restarts: tuple[Restart, ...] = ()
    columns: tuple[str, ...] | None = None
    earlier_columns: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    """Those of CSV files begun before `columns` changed, by file name; None where they are not known."""

    def numbering_of(self, name: SegmentName, first_time: Callable[[SegmentName], int | None]) -> int:
        """Return how many restarts were before the file of this name was begun."""
        for place in range(len(self.restarts), 0, -1):
            if not self.restarts[place - 1].is_after(name, first_time):
                return place
        return 0

    def columns_of(self, file: str) -> tuple[str, ...] | None:
        """Return the extra columns of a CSV file that was begun before this start; None if they are not known."""
        return self.earlier_columns.get(file, self.columns)


def record_path(root: Path, feed: FeedPath) -> Path:
    """Return where a feed's record is kept below the data directory `root`."""
    return feed.directory(root).with_name(f".{feed.symbol}.json")


def read_record(path: Path) -> Record | None:
    """Return a feed's record; None if there is none. Raises `ValueError` if it is damaged, `OSError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def write_record(path: Path, record: Record) -> None:
    """Replace a feed's record; it is safe from power loss when this returns. Raises `OSError`."""
    temporary = path.with_name(path.name + TEMPORARY)
    make_directory(path.parent)
    try:
        with open(temporary, "wb", opener=private) as file:
            file.write(msgspec.json.encode(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
