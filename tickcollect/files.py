"""A feed's files: what they are called, how sealed ones are packed, and what makes a file last.

    data/binance/trade/BTCUSDT/
        BTCUSDT-trade-2026-11-20-6103662806.csv                                   open: day, first ID
        BTCUSDT-trade-2026-11-19-6100000001-6103662805.csv.zip                    sealed: day, first ID, last ID
        BTCUSDT-trade-2026-11-19-6100000001-6103662805.csv.zip.unconfirmed        being sealed

Rules:

1. Names are built and read here and nowhere else; no text becomes part of a path unchecked (`FeedPath`).
2. A packed file depends on nothing but the CSV, its name and its day: the same rows give the same bytes on every run.
3. Files are for their owner and group (0640, less the umask), and no symbolic link is written through.
4. A created, renamed or deleted entry survives a power loss only after its directory was synced.
"""

import errno
import gzip
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import IO, TypeAlias, cast

import zstandard

CHUNK = 1 << 20
"""Bytes read, hashed or packed at once: small enough that no call holds the interpreter for long."""

FILE_MODE = 0o640
TEMPORARY = ".unconfirmed"
LOCK_NAME = ".lock"
QUARANTINE = "quarantine"


class SegmentError(Exception):
    """Something about a feed's files that the caller must decide on; the message is one line for a person."""


class NameRefusedError(SegmentError):
    """An exchange, stream or symbol that must not become part of a path."""


# Names --------------------------------------------------------------------------------------------------------------


class Compression(Enum):
    """How sealed segments are packed."""

    ZIP = "zip"
    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


_DAY_ZERO = date(1970, 1, 1).toordinal()
_NAME_PART = re.compile(r"\w+(?:-\w+)*")
_NAME_PART_BYTES = 80
"""With two IDs of 19 digits, day and endings, a file name stays below the usual limit of 255 bytes."""

_FILE_NAME = re.compile(
    r"-(?P<day>\d{4}-\d\d-\d\d)-(?P<first>0|[1-9]\d{0,18})(?:-(?P<last>0|[1-9]\d{0,18}))?"
    r"\.csv(?P<packing>\.zip|\.gz|\.zst)?(?P<temporary>\.unconfirmed)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """What a segment's file name says. `last_id` is None while it is open; `day` counts from 1970-01-01."""

    day: int
    first_id: int
    last_id: int | None = None
    packing: str = ""
    temporary: bool = False

    @property
    def open(self) -> bool:
        """The name of a segment that may still grow."""
        return self.last_id is None and not self.temporary

    @property
    def sealed(self) -> bool:
        """The name of a complete, verified file."""
        return self.last_id is not None and not self.temporary


@dataclass(frozen=True, slots=True)
class FeedPath:
    """One feed's place below the data directory; the only code that builds or reads segment names.

    Raises `NameRefusedError` for anything but letters (of any script), digits, `_` and single inner `-`, so that no
    text from the network can leave the directory, hide a file or hold a control character.
    """

    exchange: str
    stream: str
    symbol: str

    def __post_init__(self) -> None:
        for part in (self.exchange, self.stream, self.symbol):
            if not _NAME_PART.fullmatch(part) or len(part.encode()) > _NAME_PART_BYTES:
                raise NameRefusedError(
                    f"{part[:100]!r} cannot be part of a file name: allowed are letters, digits, '_' and inner '-', "
                    f"at most {_NAME_PART_BYTES} bytes."
                )

    def directory(self, root: Path) -> Path:
        """Return the feed's directory below the data directory `root`."""
        return root / self.exchange / self.stream / self.symbol

    def open_name(self, day: int, first_id: int) -> str:
        """Return the file name of an open segment."""
        return f"{self.symbol}-{self.stream}-{_day_text(day)}-{first_id}.csv"

    def sealed_name(self, day: int, first_id: int, last_id: int, compression: Compression) -> str:
        """Return the final file name of a segment."""
        suffix = PACKINGS[compression].suffix
        return f"{self.symbol}-{self.stream}-{_day_text(day)}-{first_id}-{last_id}.csv{suffix}"

    def name_of(self, name: SegmentName) -> str:
        """Return the file name that was parsed to `name`."""
        last = "" if name.last_id is None else f"-{name.last_id}"
        ending = name.packing + (TEMPORARY if name.temporary else "")
        return f"{self.symbol}-{self.stream}-{_day_text(name.day)}-{name.first_id}{last}.csv{ending}"

    def parse(self, name: str) -> SegmentName | None:
        """Return what the name of one of this feed's files says; None for a file that is not a segment of it."""
        prefix = f"{self.symbol}-{self.stream}"
        found = _FILE_NAME.fullmatch(name, len(prefix)) if name.startswith(prefix) else None
        if found is None or (found["packing"] and not found["last"]):
            return None
        try:
            day = date.fromisoformat(found["day"]).toordinal() - _DAY_ZERO
        except ValueError:
            return None
        last = None if found["last"] is None else int(found["last"])
        return SegmentName(day, int(found["first"]), last, found["packing"] or "", found["temporary"] is not None)


def _day_text(day: int) -> str:
    return date.fromordinal(_DAY_ZERO + day).isoformat()


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one CSV: `path` up to `size` bytes."""

    path: Path
    day: int
    first_id: int
    last_id: int
    rows: int
    size: int
    extra_columns: tuple[str, ...] | None = ()
    """The names of the columns behind the stream's own; None if they are not known."""


# Packing ------------------------------------------------------------------------------------------------------------


@contextmanager
def _write_zip(file: IO[bytes], member: str, day: int) -> Iterator[IO[bytes]]:
    """Write one member, deflated at level 6, stamped with its day, so that the same rows give the same file.

    Level 6 against level 1 on look-alike trade rows: 12 % of the CSV's size in 11.6 s a GB against 16 % in 3.9 s. The
    file is kept for years and sent over the network; the seconds are spent in the background, a few times a day.
    """
    entry = zipfile.ZipInfo(member, date.fromordinal(_DAY_ZERO + day).timetuple()[:6])
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system = 3  # Unix, whichever system writes it
    entry.external_attr = FILE_MODE << 16
    with zipfile.ZipFile(file, "w") as archive, archive.open(entry, "w", force_zip64=True) as sink:
        yield sink


@contextmanager
def _read_zip(file: IO[bytes]) -> Iterator[IO[bytes]]:
    try:
        archive = zipfile.ZipFile(file)
        (entry,) = archive.infolist()
        if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise zipfile.BadZipFile("packed by another method")
        member = archive.open(entry)
    except (RuntimeError, ValueError, struct.error) as error:
        raise zipfile.BadZipFile(str(error)) from error  # a damaged header may ask for anything, passwords included
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is a damaged offset
            raise
        raise zipfile.BadZipFile(str(error)) from error
    with archive, member:
        yield member


@contextmanager
def _write_gzip(file: IO[bytes], member: str, day: int) -> Iterator[IO[bytes]]:
    with gzip.GzipFile(member, "wb", compresslevel=6, fileobj=file, mtime=day * 86_400) as sink:
        yield cast("IO[bytes]", sink)


@contextmanager
def _read_gzip(file: IO[bytes]) -> Iterator[IO[bytes]]:
    with gzip.GzipFile(fileobj=file, mode="rb") as source:
        yield cast("IO[bytes]", source)


@contextmanager
def _write_zstd(file: IO[bytes], _member: str, _day: int) -> Iterator[IO[bytes]]:
    with zstandard.ZstdCompressor(level=9, write_checksum=True).stream_writer(file, closefd=False) as sink:
        yield cast("IO[bytes]", sink)


@contextmanager
def _read_zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as source:
        yield cast("IO[bytes]", source)


@contextmanager
def _write_plain(file: IO[bytes], _member: str, _day: int) -> Iterator[IO[bytes]]:
    yield file


@contextmanager
def _read_plain(file: IO[bytes]) -> Iterator[IO[bytes]]:
    yield file


Writer: TypeAlias = Callable[[IO[bytes], str, int], AbstractContextManager[IO[bytes]]]
Reader: TypeAlias = Callable[[IO[bytes]], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True, slots=True)
class Packing:
    """How one kind of sealed file is written (into an open file, with the CSV's name and day) and read."""

    suffix: str
    write: Writer
    read: Reader


PACKINGS = {
    Compression.ZIP: Packing(".zip", _write_zip, _read_zip),
    Compression.GZIP: Packing(".gz", _write_gzip, _read_gzip),
    Compression.ZSTD: Packing(".zst", _write_zstd, _read_zstd),
    Compression.NONE: Packing("", _write_plain, _read_plain),
}
READERS = {packing.suffix: packing.read for packing in PACKINGS.values()}

UNREADABLE = (zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError, zstandard.ZstdError)
"""What reading a damaged sealed file raises, besides `OSError`."""


@contextmanager
def open_csv(path: Path) -> Iterator[IO[bytes]]:
    """Open the CSV bytes of a segment, open or sealed in whichever packing its name says.

    Raises one of `UNREADABLE` at the latest when the end of a damaged file has been read.
    """
    with path.open("rb") as file, READERS.get(path.suffix, _read_plain)(file) as source:
        yield source


@dataclass(frozen=True, slots=True)
class Digest:
    """What two copies of a CSV must agree in, and what tells a hole in a file (NUL bytes) from rows."""

    size: int
    rows: int
    sha256: str
    nul: bool


def digest_of(chunks: Iterable[bytes]) -> Digest:
    """Digest the bytes of a CSV."""
    size, rows, sha256, nul = 0, 0, hashlib.sha256(), False
    for chunk in chunks:
        size += len(chunk)
        rows += chunk.count(b"\n")
        nul = nul or b"\0" in chunk
        sha256.update(chunk)
    return Digest(size, rows, sha256.hexdigest(), nul)


def chunks_of(source: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """Read `source` to its end, or its first `size` bytes."""
    while chunk := source.read(CHUNK if size is None else min(CHUNK, size)):
        yield chunk
        if size is not None:
            size -= len(chunk)


def copying(chunks: Iterable[bytes], sink: IO[bytes]) -> Iterator[bytes]:
    """Give `chunks` on, each after it was written to `sink`."""
    for chunk in chunks:
        sink.write(chunk)
        yield chunk


def read_back(path: Path, read: Reader) -> Digest | None:
    """Digest what `path` unpacks to, read from the disk, not from memory; None if it cannot be unpacked."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with read(file) as source:
                return digest_of(chunks_of(source))
        except UNREADABLE:
            return None


# Files that last ----------------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make `path` and its parents, each entry synced: a file in a directory that is lost with the power is lost too."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir(mode=0o750)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was created, renamed or deleted in `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def takes_files(directory: Path) -> bool:
    """Tell whether a file can be made, written and deleted in `directory`."""
    probe = directory / f".probe-{os.getpid()}"
    try:
        with open(probe, "wb", opener=private) as file:
            file.write(b"\n")
        probe.unlink()
    except OSError:
        return False
    return True


def private(path: str, flags: int) -> int:
    """Open a file as rule 3 says; for `open(..., opener=private)`."""
    return os.open(path, flags | os.O_NOFOLLOW, FILE_MODE)


def cut_file(path: Path, size: int) -> None:
    """Keep the first `size` bytes; a file of which nothing is kept is deleted."""
    if size == 0:
        path.unlink()
        return
    descriptor = os.open(path, os.O_WRONLY)
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
