"""The life of a CSV file: name, append, roll, sync, seal, and recovery after a crash.

A feed's rows go to one *open* segment at a time. It *ends* when it is full, when a row of another UTC day comes, or
when the caller says so (`end`: a gap, midnight on an idle feed, an orderly stop); then it is *sealed*: packed under a
temporary name, read back, compared, renamed, and only then the CSV is deleted.

    data/binance/trade/BTCUSDT/
        BTCUSDT-trade-2026-11-20-6103662806.csv                                   open: day, first ID
        BTCUSDT-trade-2026-11-19-6100000001-6103662805.csv.zip                    sealed: day, first ID, last ID
        BTCUSDT-trade-2026-11-19-6100000001-6103662805.csv.zip.unconfirmed        being sealed

Rules:

1. Rows of one segment are of one UTC day and their IDs follow each other (`Numbering`).
2. A file under a sealed name is complete and was compared with its CSV. It is never overwritten.
3. An append is all or nothing. After a `DiskError` the files are as before it, and the same append can be repeated. If
   the process is killed inside it, its first rows and a torn one may remain; `recover` cuts the torn one.
4. Rows are *handed over* when `append` has returned (they survive SIGKILL) and *safe* when `sync` has (power loss).
5. After a failed fdatasync nobody knows what the disk holds behind the last safe row, and asking again would be
   answered with success (Linux reports a write-back error once). The file is cut there, and the cut rows are reported.
6. No byte is dropped silently: what `recover` or a failed sync cuts away goes to `data/quarantine/` first.
7. A file that was deleted, moved or changed by somebody else is noticed at the next append, which costs one `stat`.

Threads: every method may be called from any thread. A lock per feed keeps `append`, `end` and the bookkeeping of `sync`
apart; it is held for the length of a `write`, never during an fdatasync or a seal. `sync` works on a duplicate of the
descriptor, so that a roll or the descriptor limit cannot close it underneath. A second lock keeps `sync` and the
fdatasync at the start of `seal` apart, so that each ended segment is synced, and its failure reported, once. Only the
appends of all feeds that share one `OpenFiles` must come from one thread at a time, because each may close the oldest
descriptor of the others.
"""

import errno
import fcntl
import gzip
import hashlib
import os
import re
import resource
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from enum import Enum
from operator import lt
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import zstandard

CHUNK = 1 << 20
"""Bytes read, hashed or packed at once: small enough that no call holds the interpreter for long."""

FILE_MODE = 0o640
TEMPORARY = ".unconfirmed"
LOCK_NAME = ".lock"
QUARANTINE = "quarantine"


# Errors -------------------------------------------------------------------------------------------------------------


class SegmentError(Exception):
    """Something about a feed's files that the caller must decide on; the message is one line for a person."""


class NameRefusedError(SegmentError):
    """An exchange, stream or symbol that must not become part of a path."""


class OutOfSequenceError(SegmentError):
    """Rows were given that may not stand in one segment behind each other; the caller should have ended it."""


class InUseError(SegmentError):
    """Another process collects this feed into this directory."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"{path.parent} is in use by {holder or 'another process'}. Two collectors of one feed would mix their "
            "rows: stop that one first, or give this one another data directory."
        )
        self.path = path
        self.holder = holder


_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space.",
    errno.EDQUOT: "The disk quota is used up: free some space or raise the quota.",
    errno.EIO: "The disk or its connection is failing: see dmesg.",
    errno.EROFS: "The file system is read-only, often after a disk error: see dmesg, then remount it.",
    errno.EACCES: "Give the user of this process the right to write there.",
    errno.EPERM: "Give the user of this process the right to write there.",
    errno.EMFILE: "Too many open files: raise the limit (ulimit -n, LimitNOFILE=).",
    errno.ENFILE: "The whole machine has too many open files: raise fs.file-max.",
    errno.EFBIG: "The file system or ulimit -f allows no larger file: set a smaller ROTATE_SIZE.",
}


class DiskError(SegmentError):
    """The operating system refused an operation on `path`; `errno` tells why. Nothing was changed."""

    def __init__(self, action: str, path: Path, error: OSError) -> None:
        code = error.errno or errno.EIO
        super().__init__(f"cannot {action} {path}: {os.strerror(code)}. {_REMEDIES.get(code, '')}".rstrip())
        self.path = path
        self.errno = code


class DiskFullError(DiskError):
    """No space (or quota) is left; the same call will succeed when there is."""


class FileLostError(SegmentError):
    """The open segment was deleted, moved or changed by somebody else.

    Rows `first_id` to `last_id` are no longer known to be under their name. The next append begins a new segment.
    """

    def __init__(self, path: Path, reason: str, first_id: int, last_id: int) -> None:
        super().__init__(
            f"{path} {reason}. Its rows {first_id} to {last_id} count as missing; collecting goes on in a new file. "
            "Files of a running collector must not be touched."
        )
        self.path = path
        self.first_id = first_id
        self.last_id = last_id


class SyncFailedError(DiskError):
    """fdatasync failed: the rows `first_id` to `last_id` are not on the disk, and were cut from the file.

    `remaining` is the segment up to its last safe row, ended and ready to be sealed; None if no row of it was safe.
    """

    def __init__(self, path: Path, error: OSError, lost: tuple[int, int], remaining: "Segment | None") -> None:
        super().__init__("sync", path, error)
        self.first_id, self.last_id = lost
        self.remaining = remaining


class NameTakenError(SegmentError):
    """A file under the wanted name exists and holds something else; neither was changed."""


class SealFailedError(SegmentError):
    """The CSV is not what was appended, or its packed copy did not read back the same; the CSV was kept."""


def _disk_error(action: str, path: Path, error: OSError) -> DiskError:
    kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else DiskError
    return kind(action, path, error)


# Names --------------------------------------------------------------------------------------------------------------


class Compression(Enum):
    """How sealed segments are packed."""

    ZIP = "zip"
    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


class Numbering(Enum):
    """How the IDs of a feed's rows follow each other inside a segment."""

    BY_ONE = "by one"
    RISING = "rising"
    """Futures `trade`: placeholders take IDs and are not written."""


_DAY_ZERO = date(1970, 1, 1).toordinal()
_NAME_PART = re.compile(r"\w+(?:-\w+)*+")
_NAME_PART_BYTES = 80
"""With two IDs of 19 digits, day and endings, a file name stays below the usual limit of 255 bytes."""

_FILE_NAME = re.compile(
    r"-(?P<day>\d{4}-\d\d-\d\d)-(?P<first>0|[1-9]\d{0,18})(?:-(?P<last>0|[1-9]\d{0,18}))?+"
    r"\.csv(?P<packing>\.zip|\.gz|\.zst)?+(?P<temporary>\.unconfirmed)?+",
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


# Descriptors, directories, locks ------------------------------------------------------------------------------------


def open_file_limit(reserved: int) -> int:
    """Return how many segments may be open at once, after raising the soft limit of open files to the hard one.

    `reserved` is what the rest of the process needs: sockets, locks (one a feed), logs, threads that seal.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS reports "unlimited" and then refuses it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return max(8, (1 << 20 if soft == resource.RLIM_INFINITY else soft) - reserved)


class OpenFiles:
    """Descriptors of open segments, at most `limit`: the one not used for longest is closed, and reopened at need."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._descriptors: OrderedDict[Path, int] = OrderedDict()
        self._lock = threading.Lock()

    def descriptor(self, path: Path, flags: int = 0) -> int:
        """Return a descriptor that appends to `path`; with `flags` (`O_CREAT | O_EXCL`) a new file is made."""
        with self._lock:
            descriptor = self._descriptors.get(path)
            if descriptor is not None:
                self._descriptors.move_to_end(path)
                return descriptor
            while len(self._descriptors) >= self._limit:
                os.close(self._descriptors.popitem(last=False)[1])
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | flags, FILE_MODE)
            self._descriptors[path] = descriptor
            return descriptor

    def duplicate(self, path: Path) -> int:
        """Return a descriptor of the same file that nobody else will close; the caller closes it."""
        with self._lock:
            descriptor = self._descriptors.get(path)
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW) if descriptor is None else os.dup(descriptor)

    def close(self, path: Path) -> None:
        """Close the descriptor of `path`, if one is open."""
        with self._lock:
            descriptor = self._descriptors.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._descriptors)


def _make_directory(path: Path) -> None:
    """Make `path` and its parents, each entry synced: a file in a directory that is lost with the power is lost too."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir(mode=0o750)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """The right to write one feed's files, held until `release` or the death of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the right back. The file stays: deleting it would let two processes lock two files of one name."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock(root: Path, feed: FeedPath, started: str) -> Lock:
    """Take the feed's files below `root` for this process; `started` tells others since when.

    The lock is the kernel's (flock), so a killed process never leaves one behind, and started programs do not inherit
    it. It takes one descriptor a feed. Raises `InUseError` with the holder's pid and start, `DiskError`.
    """
    path = feed.directory(root) / LOCK_NAME
    try:
        _make_directory(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise _disk_error("lock", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()}, started {started}\n".encode())
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise InUseError(path, holder) from None
    except OSError as error:
        os.close(descriptor)
        raise _disk_error("lock", path, error) from error
    return Lock(descriptor)


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
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise zipfile.BadZipFile(f"{len(names)} members instead of one")
        with archive.open(names[0]) as member:
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


@dataclass(frozen=True, slots=True)
class Packing:
    """How one kind of sealed file is written (into an open file, with the CSV's name and day) and read."""

    suffix: str
    write: Callable[[IO[bytes], str, int], AbstractContextManager[IO[bytes]]]
    read: Callable[[IO[bytes]], AbstractContextManager[IO[bytes]]]


PACKINGS = {
    Compression.ZIP: Packing(".zip", _write_zip, _read_zip),
    Compression.GZIP: Packing(".gz", _write_gzip, _read_gzip),
    Compression.ZSTD: Packing(".zst", _write_zstd, _read_zstd),
    Compression.NONE: Packing("", _write_plain, _read_plain),
}
_READERS = {packing.suffix: packing.read for packing in PACKINGS.values()}

UNREADABLE = (zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError, zstandard.ZstdError)
"""What reading a damaged sealed file raises, besides `OSError`."""


@contextmanager
def open_csv(path: Path) -> Iterator[IO[bytes]]:
    """Open the CSV bytes of a segment, open or sealed in whichever packing its name says.

    Raises one of `UNREADABLE` at the latest when the end of a damaged file has been read.
    """
    with path.open("rb") as file, _READERS.get(path.suffix, _read_plain)(file) as source:
        yield source


@dataclass(frozen=True, slots=True)
class Digest:
    """What two copies of a CSV must agree in, and what tells a hole in a file (NUL bytes) from rows."""

    size: int
    rows: int
    sha256: str
    nul: bool


def _digest(chunks: Iterable[bytes]) -> Digest:
    size, rows, sha256, nul = 0, 0, hashlib.sha256(), False
    for chunk in chunks:
        size += len(chunk)
        rows += chunk.count(b"\n")
        nul = nul or b"\0" in chunk
        sha256.update(chunk)
    return Digest(size, rows, sha256.hexdigest(), nul)


def _chunks(source: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """Read `source` to its end, or its first `size` bytes."""
    while chunk := source.read(CHUNK if size is None else min(CHUNK, size)):
        yield chunk
        if size is not None:
            size -= len(chunk)


def _copying(chunks: Iterable[bytes], sink: IO[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        sink.write(chunk)
        yield chunk


# One feed -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows of one CSV: `path` up to `size` bytes."""

    path: Path
    day: int
    first_id: int
    last_id: int
    rows: int
    size: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment under its final name. `size` counts the packed file's bytes; `csv` digests what it unpacks to."""

    path: Path
    segment: Segment
    size: int
    csv: Digest


@dataclass(frozen=True, slots=True)
class _Growing:
    """A segment with what tells whether it is still the same file, and its state at the last sync."""

    written: Segment
    inode: tuple[int, int]
    safe: Segment | None = None


class Segments:
    """The files of one feed.

    `root` is the data directory, `rotate_size` the bytes that a CSV may reach. `pool` is shared by all feeds.
    `extra_columns` is the number of columns behind the stream's own. Call `recover` before the first `append`.
    """

    def __init__(
        self,
        root: Path,
        feed: FeedPath,
        *,
        rotate_size: int,
        pool: OpenFiles,
        compression: Compression = Compression.ZIP,
        numbering: Numbering = Numbering.BY_ONE,
        extra_columns: int = 0,
    ) -> None:
        self.feed = feed
        self.directory = feed.directory(root)
        self._root = root
        self._rotate_size = rotate_size
        self._compression = compression
        self._numbering = numbering
        self._extra_columns = extra_columns
        self._pool = pool
        self._open: _Growing | None = None
        self._ended: list[Segment] = []
        self._unsynced: dict[Path, _Growing] = {}
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()

    @property
    def open_segment(self) -> Segment | None:
        """The segment that grows, as of the last append; None between segments."""
        growing = self._open
        return None if growing is None else growing.written

    # Append and roll

    def append(self, lines: bytes, ids: Sequence[int], day: int) -> list[Segment]:
        """Append whole rows, each ended by a newline, of one UTC day (days since 1970-01-01, by trade time).

        Rolls by itself at another day and before the row that would take the file past `rotate_size`. Returns the
        segments that ended, to be sealed. Raises `OutOfSequenceError`, `FileLostError`, `NameTakenError`, `DiskError`;
        nothing was appended then, and except for `OutOfSequenceError` the same rows may be given again.
        """
        with self._lock:
            self._check_sequence(lines, ids, day)
            self._check_file()
            before, current = self._open, self._open
            ended: list[_Growing] = []
            made: list[Path] = []
            at = row = 0
            try:
                while at < len(lines):
                    cut = self._fitting(current, day, lines, at)
                    if current is None or cut == at:
                        ended += [] if current is None else [current]
                        current = self._create(day, ids[row])
                        made.append(current.written.path)
                        continue
                    rows = lines.count(b"\n", at, cut)
                    row += rows
                    current = self._write(current, memoryview(lines)[at:cut], rows, ids[row - 1])
                    at = cut
            except FileExistsError as error:
                self._undo(before, made)
                raise NameTakenError(
                    f"{error.filename} exists and is not this collector's. Move it elsewhere."
                ) from error
            except OSError as error:
                self._undo(before, made)
                raise _disk_error("append to", self.directory, error) from error
            self._open = current
            for growing in ended:
                self._retire(growing)
            return self._take_ended()

    def end(self) -> list[Segment]:
        """End the open segment; the next append begins another. Returns what is to be sealed.

        Raises `FileLostError`, `DiskError`.
        """
        with self._lock:
            self._check_file()
            if self._open is not None:
                self._retire(self._open)
                self._open = None
            return self._take_ended()

    def close(self) -> None:
        """Make everything safe and give the descriptor back; the open segment is continued after the next start."""
        self.sync()
        with self._lock:
            if self._open is not None:
                self._pool.close(self._open.written.path)

    def _check_sequence(self, lines: bytes, ids: Sequence[int], day: int) -> None:
        """Rule 1, at the price of one comparison of two lists."""
        if not ids or not lines.endswith(b"\n") or lines.count(b"\n") != len(ids):
            raise OutOfSequenceError(f"{self.directory}: {len(lines)} bytes are not {len(ids)} whole rows.")
        by_one = self._numbering is Numbering.BY_ONE
        follow = list(ids) == list(range(ids[0], ids[0] + len(ids))) if by_one else all(map(lt, ids, ids[1:]))
        if self._open is not None and self._open.written.day == day:
            last = self._open.written.last_id
            follow = follow and (ids[0] == last + 1 if by_one else ids[0] > last)
        if not follow:
            behind = "nothing" if self._open is None else self._open.written.last_id
            raise OutOfSequenceError(
                f"{self.directory}: the rows {ids[0]} to {ids[-1]} ({len(ids)}) do not rise {self._numbering.value} "
                f"behind {behind}. A gap must end the segment first."
            )

    def _check_file(self) -> None:
        """Rule 7."""
        if self._open is None:
            return
        written = self._open.written
        try:
            found = written.path.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            reason = "was deleted or moved"
        except OSError as error:
            raise _disk_error("look at", written.path, error) from error
        else:
            if (found.st_dev, found.st_ino) != self._open.inode:
                reason = "was replaced by another file"
            elif found.st_size != written.size:
                reason = f"was changed: it has {found.st_size} bytes instead of {written.size}"
            else:
                return
        self._pool.close(written.path)
        self._open = None
        raise FileLostError(written.path, reason, written.first_id, written.last_id)

    def _fitting(self, current: _Growing | None, day: int, lines: bytes, at: int) -> int:
        """Return where the rows that still fit into `current` stop; `at` if not even one does."""
        if current is None or current.written.day != day:
            return at
        room = max(0, self._rotate_size - current.written.size)
        cut = lines.rfind(b"\n", at, at + room) + 1
        if cut <= at and current.written.rows == 0:  # a row longer than the limit gets a file of its own
            return lines.index(b"\n", at) + 1
        return max(cut, at)

    def _create(self, day: int, first_id: int) -> _Growing:
        path = self.directory / self.feed.open_name(day, first_id)
        flags = os.O_CREAT | os.O_EXCL
        try:
            descriptor = self._pool.descriptor(path, flags)
        except FileNotFoundError:
            _make_directory(path.parent)
            descriptor = self._pool.descriptor(path, flags)
        return _Growing(Segment(path, day, first_id, first_id - 1, 0, 0), _inode(os.fstat(descriptor)))

    def _write(self, current: _Growing, view: memoryview, rows: int, last_id: int) -> _Growing:
        written = current.written
        descriptor = self._pool.descriptor(written.path)
        rest = view
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        state = replace(written, last_id=last_id, rows=written.rows + rows, size=written.size + len(view))
        return replace(current, written=state)

    def _undo(self, before: _Growing | None, made: Iterable[Path]) -> None:
        """Rule 3: take back what a failed append has written."""
        for path in made:
            self._pool.close(path)
            with suppress(OSError):  # what cannot be deleted now is read by the next recovery
                path.unlink()
        if before is None:
            return
        try:
            os.ftruncate(self._pool.descriptor(before.written.path), before.written.size)
        except OSError:  # it cannot be cut back: nothing more goes into it, and `seal` takes only its known size
            self._retire(before)
            self._open = None

    def _retire(self, growing: _Growing) -> None:
        self._pool.close(growing.written.path)
        self._ended.append(growing.written)
        if growing.safe != growing.written:
            self._unsynced[growing.written.path] = growing

    def _take_ended(self) -> list[Segment]:
        ended, self._ended = self._ended, []
        return ended

    # Sync

    def sync(self) -> int | None:
        """Make what was appended safe from power loss; return the last safe ID of the open segment, None without one.

        Raises `SyncFailedError`: the rows it names must be had again, and the next append begins a new segment.
        """
        with self._sync_lock:
            with self._lock:
                jobs = list(self._unsynced.values())
                if self._open is not None and self._open.safe != self._open.written:
                    jobs.append(self._open)
            for job in jobs:
                self._make_safe(job)
            growing = self._open
            return growing.safe.last_id if growing is not None and growing.safe is not None else None

    def _make_safe(self, job: _Growing) -> None:
        path = job.written.path
        try:
            descriptor = self._pool.duplicate(path)
        except FileNotFoundError:  # deleted by somebody, which the next append reports
            self._note_safe(job)
            return
        except OSError as error:
            raise _disk_error("open", path, error) from error
        try:
            if _inode(os.fstat(descriptor)) == job.inode:
                os.fdatasync(descriptor)
            if job.safe is None:
                _sync_directory(path.parent)
        except OSError as error:
            raise self._give_up_tail(job, error) from error
        finally:
            os.close(descriptor)
        self._note_safe(job)

    def _note_safe(self, job: _Growing) -> None:
        path = job.written.path
        with self._lock:
            if self._open is not None and self._open.written.path == path:
                self._open = replace(self._open, safe=job.written)
            elif path in self._unsynced:
                state = replace(self._unsynced.pop(path), safe=job.written)
                if state.safe != state.written:
                    self._unsynced[path] = state

    def _give_up_tail(self, job: _Growing, error: OSError) -> SyncFailedError:
        """Rule 5."""
        path = job.written.path
        with self._lock:
            growing = self._unsynced.pop(path, job)
            if self._open is not None and self._open.written.path == path:
                growing, self._open = self._open, None
                self._pool.close(path)
            written, safe = growing.written, growing.safe
            with suppress(OSError, DiskError):  # a failing disk may refuse this too; the rows are reported anyway
                keep = 0 if safe is None else safe.size
                self._quarantine(path, [(keep, written.size)], "not on the disk after a failed sync")
                _cut_file(path, keep)
        first_lost = written.first_id if safe is None else safe.last_id + 1
        return SyncFailedError(path, error, (first_lost, written.last_id), safe)

    def _quarantine(self, path: Path, cuts: Iterable[tuple[int, int]], reason: str) -> Path:
        """Rule 6: append the bytes of `path` from start to stop, each cut under a line that says where it stood."""
        feed = self.feed
        target = feed.directory(self._root / QUARANTINE) / path.name
        _make_directory(target.parent)
        with path.open("rb") as source, open(target, "ab", opener=_private) as sink:
            for start, stop in cuts:
                source.seek(start)
                sink.write(f"# {path.name}, {stop - start} bytes from {start}: {reason}\n".encode())
                sink.writelines(_chunks(source, stop - start))
                sink.write(b"\n")
            sink.flush()
            os.fsync(sink.fileno())
        _sync_directory(target.parent)
        return target

    # Seal

    def seal(self, segment: Segment) -> Sealed:
        """Pack an ended segment under its final name and delete its CSV.

        The packed file is read back from the disk and compared with the CSV first. Raises `SyncFailedError`,
        `SealFailedError`, `NameTakenError`, `DiskError`; the CSV is kept then, and the call can be repeated.
        """
        with self._sync_lock:
            unsafe = self._unsynced.get(segment.path)
            if unsafe is not None:
                self._make_safe(unsafe)
        name = self.feed.sealed_name(segment.day, segment.first_id, segment.last_id, self._compression)
        final = segment.path.with_name(name)
        try:
            digest = self._already_sealed(segment, final) if final.exists() else self._pack(segment, final)
            _sync_directory(final.parent)
            size = final.stat().st_size
            segment.path.unlink()
        except OSError as error:
            raise _disk_error("seal", segment.path, error) from error
        return Sealed(final, segment, size, digest)

    def _pack(self, segment: Segment, final: Path) -> Digest:
        packing = PACKINGS[self._compression]
        temporary = final.with_name(final.name + TEMPORARY)
        member = final.name.removesuffix(packing.suffix)
        try:
            with segment.path.open("rb") as csv, open(temporary, "wb", opener=_private) as file:
                with packing.write(file, member, segment.day) as sink:
                    digest = _digest(_copying(_chunks(csv, segment.size), sink))
                file.flush()
                os.fsync(file.fileno())
            _check_digest(segment, digest, _read_back(temporary, packing))
            temporary.rename(final)
        except (OSError, SealFailedError):
            temporary.unlink(missing_ok=True)
            raise
        return digest

    def _already_sealed(self, segment: Segment, final: Path) -> Digest:
        """Compare the two files that a crash between the rename and the deletion leaves."""
        with segment.path.open("rb") as csv:
            digest = _digest(_chunks(csv, segment.size))
        if _read_back(final, PACKINGS[self._compression]) != digest:
            raise NameTakenError(
                f"{final} exists and holds other rows than {segment.path}. Both were kept: compare them."
            )
        return digest


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, FILE_MODE)


def _cut_file(path: Path, size: int) -> None:
    """Keep the first `size` bytes; a file of which nothing is kept is deleted."""
    if size == 0:
        path.unlink()
        return
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_digest(segment: Segment, digest: Digest, packed: Digest | None) -> None:
    if (digest.rows, digest.size) != (segment.rows, segment.size) or digest.nul:
        holes = " and NUL bytes" if digest.nul else ""
        raise SealFailedError(
            f"{segment.path} holds {digest.rows} rows in {digest.size} bytes{holes}, but {segment.rows} rows in "
            f"{segment.size} bytes were appended. It was kept; the next start cuts out what is damaged."
        )
    if packed != digest:
        raise SealFailedError(f"{segment.path} did not read back from its packed copy: the disk or memory is failing.")


def _read_back(path: Path, packing: Packing) -> Digest | None:
    """Digest what `path` unpacks to, read from the disk, not from memory; None if it cannot be unpacked."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            with packing.read(file) as source:
                return _digest(_chunks(source))
        except UNREADABLE:
            return None
