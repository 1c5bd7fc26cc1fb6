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
2. A file under a sealed name is complete and was compared with its CSV. It is never overwritten. Where a numbering
   before has taken a name on the same day, the segment is divided, and sealed in parts (`divide`).
3. An append is all or nothing. After a `DiskError` the files are as before it, and the same append can be repeated. If
   the process is killed inside it, its first rows and a torn one may remain; `recover` cuts the torn one.
4. Rows are *handed over* when `append` has returned (they survive SIGKILL) and *safe* when `sync` has (power loss).
5. After a failed fdatasync nobody knows what the disk holds behind the last safe row, and asking again would be
   answered with success (Linux reports a write-back error once). The file is cut there, and the cut rows are reported.
6. No byte is dropped silently: what `recover` or a failed sync cuts away goes to `data/quarantine/` first.
7. A file that was deleted, moved or changed by somebody else is noticed at the next append, which costs one `stat`.
   What is found in its place goes to quarantine.

Threads: every method may be called from any thread. A lock per feed keeps `append`, `end` and the bookkeeping of `sync`
apart; it is held for the length of a `write`, never during an fdatasync or a seal. `sync` works on a duplicate of the
descriptor, so that a roll or the descriptor limit cannot close it underneath. A second lock keeps `sync` and the
fdatasync at the start of `seal` apart, so that each ended segment is synced, and its failure reported, once. Only the
appends of all feeds that share one `OpenFiles` must come from one thread at a time, because each may close the oldest
descriptor of the others.
"""

import errno
import fcntl
import hashlib
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import lt
from pathlib import Path
from types import TracebackType
from typing import Self

from tickcollect.feed_record import RESTARTS_KEPT, Record, Restart, record_path, write_record
from tickcollect.files import (
    FILE_MODE,
    LOCK_NAME,
    PACKINGS,
    TEMPORARY,
    Compression,
    Digest,
    FeedPath,
    NameRefusedError,
    Segment,
    SegmentError,
    SegmentName,
    chunks_of,
    copying,
    cut_file,
    digest_of,
    make_directory,
    open_csv,
    private,
    read_back,
    sync_directory,
    takes_files,
)
from tickcollect.hours import HourCount
from tickcollect.recovery import (
    FirstTimes,
    Recovered,
    Recovery,
    divide,
    move_aside,
    quarantine,
    sealed_spans,
    this_boot,
)
from tickcollect.salvage import Cut, Numbering

__all__ = [
    "Compression",
    "DiskError",
    "DiskFullError",
    "FeedPath",
    "FileLostError",
    "InUseError",
    "Lock",
    "NameRefusedError",
    "NameTakenError",
    "Numbering",
    "OpenFiles",
    "OutOfSequenceError",
    "Recovered",
    "SealFailedError",
    "Sealed",
    "Segment",
    "SegmentError",
    "SegmentName",
    "Segments",
    "SyncFailedError",
    "lock",
    "open_csv",
    "open_file_limit",
    "this_boot",
]


# Errors -------------------------------------------------------------------------------------------------------------


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

    def __init__(self, action: str, path: Path, error: OSError, meaning: str = "") -> None:
        code = error.errno or errno.EIO
        sentences = (f"cannot {action} {path}: {os.strerror(code)}.", meaning, _REMEDIES.get(code, ""))
        super().__init__(" ".join(filter(None, sentences)))
        self.path = path
        self.errno = code


_OF_THE_PROCESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


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
    """fdatasync failed: the rows `first_id` to `last_id` may not be on the disk, and were cut from the file.

    `remaining` is the segment up to its last safe row, ended and ready to be sealed; None if no row of it was safe.
    """

    def __init__(self, path: Path, error: OSError, lost: tuple[int, int], remaining: Segment | None) -> None:
        self.first_id, self.last_id = lost
        meaning = f"Rows {lost[0]} to {lost[1]} may not be on the disk; they were cut and must be had again."
        super().__init__("sync", path, error, meaning)
        self.remaining = remaining


class NameTakenError(SegmentError):
    """A file under the wanted name, `path`, exists and holds something else; neither was changed."""

    def __init__(self, path: Path, meaning: str) -> None:
        super().__init__(f"{path} exists and {meaning}")
        self.path = path


class SealFailedError(SegmentError):
    """The CSV is not what was appended, or its packed copy did not read back the same; the CSV was kept."""


def _disk_error(action: str, path: Path, error: OSError) -> DiskError:
    kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else DiskError
    return kind(action, path, error)


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
        self._failed: dict[Path, OSError] = {}
        self._lock = threading.Lock()

    def descriptor(self, path: Path, flags: int = 0) -> int:
        """Return a descriptor that appends to `path`; with `flags` (`O_CREAT | O_EXCL`) a new file is made."""
        with self._lock:
            descriptor = self._descriptors.get(path)
            if descriptor is not None:
                self._descriptors.move_to_end(path)
                return descriptor
            while len(self._descriptors) >= self._limit:
                self._close_oldest()
            descriptor = self._open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | flags)
            self._descriptors[path] = descriptor
            return descriptor

    def _open(self, path: Path, flags: int) -> int:
        """Open a file; where the process or the machine has too many open, at the cost of those held here."""
        while True:
            try:
                return os.open(path, flags, FILE_MODE)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE} or not self._descriptors:
                    raise
                self._close_oldest()

    def _close_oldest(self) -> None:
        path, descriptor = self._descriptors.popitem(last=False)
        self._close(path, descriptor)

    def _close(self, path: Path, descriptor: int) -> None:
        """Close a descriptor, which is gone whatever `close` says; a network file system reports lost writes here."""
        try:
            os.close(descriptor)
        except OSError as error:
            self._failed[path] = error

    def duplicate(self, path: Path) -> int:
        """Return a descriptor of the same file that nobody else will close; the caller closes it."""
        with self._lock:
            descriptor = self._descriptors.get(path)
            if descriptor is None:
                return self._open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                return os.dup(descriptor)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                return self._descriptors.pop(path)  # the next append opens it again

    def close(self, path: Path) -> None:
        """Close the descriptor of `path`, if one is open."""
        with self._lock:
            descriptor = self._descriptors.pop(path, None)
            if descriptor is not None:
                self._close(path, descriptor)

    def raise_failed_close(self, path: Path) -> None:
        """Raise what the system said when `path` was closed, once: writes to it may have been lost."""
        with self._lock:
            error = self._failed.pop(path, None)
        if error is not None:
            raise error

    def __len__(self) -> int:
        return len(self._descriptors)


class Lock:
    """The right to write one feed's files, held until `release` or the death of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the right back. The file stays: deleting it would let two processes lock two files of one name."""
        with suppress(OSError):  # also for the copy that a program being started still holds
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        with suppress(OSError):  # nothing is lost: its text is for people
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
        make_directory(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise _disk_error("lock", path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"pid {os.getpid()}, started {started}\n".encode())
    except BlockingIOError:
        holder = ""
        with suppress(OSError):
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise InUseError(path, holder) from None
    except OSError as error:
        os.close(descriptor)
        raise _disk_error("lock", path, error) from error
    return Lock(descriptor)


# One feed -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sealed:
    """A segment under its final name. `size` counts the packed file's bytes; `csv` digests what it unpacks to."""

    path: Path
    segment: Segment
    size: int
    csv: Digest
    hours: list[int]
    """Rows by UTC hour of their trade time."""
    sha256: str
    """Of the packed file, in hex."""


@dataclass(frozen=True, slots=True)
class _Growing:
    """A segment with what tells whether it is still the same file, and its state at the last sync."""

    written: Segment
    inode: tuple[int, int]
    safe: Segment | None = None


class Segments:
    """The files of one feed.

    `root` is the data directory, `rotate_size` the bytes that a CSV may reach. `pool` is shared by all feeds.
    `extra_columns` are the names of the columns behind the stream's own, or their number where nobody knows the names.
    Call `recover` before the first `append`.
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
        extra_columns: Iterable[str] | int = (),
    ) -> None:
        self.feed = feed
        self.directory = feed.directory(root)
        self._root = root
        self._rotate_size = rotate_size
        self._compression = compression
        self._numbering = numbering
        self._extra_columns = ("",) * extra_columns if isinstance(extra_columns, int) else tuple(extra_columns)
        self._record = Record()
        self._pool = pool
        self._open: _Growing | None = None
        self._ended: list[Segment] = []
        self._unsynced: dict[Path, _Growing] = {}
        self._unsealed: set[Path] = set()
        """Files that were ended here and are not sealed yet."""
        self._left_over: set[Path] = set()
        """Files that a failed append has made and could not delete."""
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()

    @property
    def open_segment(self) -> Segment | None:
        """The segment that grows, as of the last append; None between segments."""
        growing = self._open
        return None if growing is None else growing.written

    # Recover

    def recover(self, this_boot_ns: tuple[int, int] | None = None) -> Recovered:
        """Bring the feed's files into order, whatever state they were left in; before the first append.

        What survives in a CSV is told in `tickcollect.salvage`; the bytes cut go to quarantine. Each stretch of rows
        becomes a segment of its own; the newest is continued. What a crash during `seal` left is removed, the sealed
        file if it was not complete, the CSV if it was. `this_boot_ns` (see `this_boot`) allows to believe the kernel
        for large files that were written since the machine started. Raises `DiskError`; it can be repeated.
        """
        with self._sync_lock, self._lock:
            if self._open is not None:
                self._pool.close(self._open.written.path)
            self._open, self._ended, self._unsynced = None, [], {}
            try:
                recovered = Recovery(
                    self._root, self.feed, self._numbering, self._extra_columns, this_boot_ns or (0, 0)
                ).run()
                self._record = recovered.record
                self._unsealed = {segment.path for segment in recovered.finished}
                if recovered.open is not None:
                    state = recovered.open
                    self._open = _Growing(state, _inode(state.path.stat()), safe=state)
            except OSError as error:
                raise _disk_error("recover", self.directory, error) from error
        return recovered

    def sealed_ids(self) -> list[tuple[int, int]]:
        """Return first and last ID of each sealed file here, of the present numbering. Raises `OSError`."""
        return sealed_spans(self.directory, self.feed, self._record)

    def names(self) -> list[tuple[SegmentName, Path]]:
        """Return the name and path of each segment here, of the present numbering. Raises `OSError`."""
        parsed = [(self.feed.parse(path.name), path) for path in self.directory.iterdir()]
        times, current = FirstTimes(self.directory, self.feed), len(self._record.restarts)
        return [
            (name, path)
            for name, path in parsed
            if name is not None and not name.temporary and self._record.numbering_of(name, times) == current
        ]

    def renumber(self, first_id: int, last_id: int, time: int) -> list[Segment]:
        """Begin a new numbering: ID `first_id`, traded at `time` (as sent), comes after `last_id` of the one before.

        It is on record, safe from power loss, before a row of it is written. Returns what is to be sealed. Raises
        `FileLostError`, `DiskError`; it can be repeated then.
        """
        ended, path = self.end(), record_path(self._root, self.feed)
        restart = Restart(first_id, last_id, time)
        try:
            names = [self.feed.parse(path.name) for path in self.directory.iterdir()]
            later = tuple((name.day, name.first_id) for name in names if name is not None and name.day > restart.day)
            restarts = (*self._record.restarts, replace(restart, later=later))[-RESTARTS_KEPT:]
            record = replace(self._record, restarts=restarts)
            write_record(path, record)
        except OSError as error:
            with self._lock:
                self._ended = [*ended, *self._ended]
            raise _disk_error("write", path, error) from error
        self._record = record
        return ended

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
                    rows = len(ids) - row if cut == len(lines) else lines.count(b"\n", at, cut)
                    row += rows
                    current = self._write(current, memoryview(lines)[at:cut], rows, ids[row - 1])
                    at = cut
            except FileExistsError as error:
                self._undo(before, made)
                raise NameTakenError(
                    Path(error.filename), "a new file would begin there. Move it elsewhere."
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
        """Rule 1. A `range` follows by itself; that `lines` are its rows was checked where it was made (`writer`)."""
        counted = isinstance(ids, range)
        if not ids or not lines.endswith(b"\n") or (not counted and lines.count(b"\n") != len(ids)):
            raise OutOfSequenceError(f"{self.directory}: {len(lines)} bytes are not {len(ids)} whole rows.")
        by_one = self._numbering is Numbering.BY_ONE
        if isinstance(ids, range):
            follow = ids.step == 1
        elif by_one:
            follow = list(ids) == list(range(ids[0], ids[0] + len(ids)))
        else:
            follow = all(map(lt, ids, ids[1:]))
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
        self.move_aside(written.path)
        raise FileLostError(written.path, reason, written.first_id, written.last_id)

    def move_aside(self, path: Path) -> Path | None:
        """Clear a name for new rows; return the place in quarantine, None if the file waits to be sealed or stays."""
        if path in self._unsealed:
            return None
        return move_aside(self._root, self.feed, path)

    def refused_alone(self, error: SegmentError) -> bool:
        """Tell whether what was refused concerns this feed's files alone, so that other feeds can go on.

        Descriptors and memory are the process's, space is the file system's. For any other refusal (a directory that
        is gone, replaced, not permitted or fails to be read) a file in the data directory is tried.
        """
        if not isinstance(error, DiskError):
            return True
        if error.errno in _OF_THE_PROCESS:
            return False
        if error.errno in _OF_THE_DISK:
            return _device(self.directory) not in {None, _device(self._root)}
        return takes_files(self._root)

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
        flags = os.O_CREAT | (os.O_TRUNC if path in self._left_over else os.O_EXCL)
        try:
            descriptor = self._pool.descriptor(path, flags)
        except FileNotFoundError:
            make_directory(path.parent)
            descriptor = self._pool.descriptor(path, flags)
        self._left_over.discard(path)
        segment = Segment(path, day, first_id, first_id - 1, 0, 0, self._extra_columns)
        return _Growing(segment, _inode(os.fstat(descriptor)))

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
            try:
                path.unlink(missing_ok=True)
            except OSError:  # it is written over when the append is repeated, or read by the next recovery
                self._left_over.add(path)
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
        self._unsealed.update(segment.path for segment in ended)
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
        except FileNotFoundError:  # deleted by somebody, which the next append or `seal` reports
            with self._lock:
                self._unsynced.pop(path, None)
            return
        except OSError as error:
            raise _disk_error("open", path, error) from error
        try:
            self._pool.raise_failed_close(path)
            if _inode(os.fstat(descriptor)) == job.inode:
                os.fdatasync(descriptor)
            if job.safe is None:
                sync_directory(path.parent)
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
                cut = Cut(keep, written.size, "not on the disk after a failed sync")
                quarantine(self._root, self.feed, path, [cut])
                cut_file(path, keep)
        first_lost = written.first_id if safe is None else safe.last_id + 1
        return SyncFailedError(path, error, (first_lost, written.last_id), safe)

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
            hours = HourCount()
            if final.exists():
                digest = self._already_sealed(segment, final, hours)
            else:
                digest = self._pack(segment, final, hours)
            sync_directory(final.parent)
            size = final.stat().st_size
            with final.open("rb") as packed:
                sha256 = hashlib.file_digest(packed, "sha256").hexdigest()
            segment.path.unlink()
        except OSError as error:
            raise _disk_error("seal", segment.path, error) from error
        self._unsealed.discard(segment.path)
        return Sealed(final, segment, size, digest, hours.hours, sha256)

    def divide(self, segment: Segment) -> list[Segment]:
        """Divide an ended segment whose final name is taken by a file of a numbering before, to be sealed in parts.

        Returns nothing where that is not so, or cannot be done. Raises `DiskError`; the call can be repeated.
        """
        times = FirstTimes(self.directory, self.feed)
        packing = PACKINGS[self._compression].suffix
        begun = SegmentName(segment.day, segment.first_id)
        taken = SegmentName(segment.day, segment.first_id, segment.last_id, packing)
        if self._record.numbering_of(begun, times) == self._record.numbering_of(taken, times):
            return []
        try:
            parts = divide(self.feed, segment, self._compression)
        except (OSError, IndexError, ValueError) as error:
            raise _disk_error(
                "divide", segment.path, error if isinstance(error, OSError) else OSError(error)
            ) from error
        self._unsealed.update(part.path for part in parts)
        return parts

    def _pack(self, segment: Segment, final: Path, hours: HourCount) -> Digest:
        packing = PACKINGS[self._compression]
        temporary = final.with_name(final.name + TEMPORARY)
        member = final.name.removesuffix(packing.suffix)
        try:
            with segment.path.open("rb") as csv, open(temporary, "wb", opener=private) as file:
                with packing.write(file, member, segment.day) as sink:
                    digest = digest_of(copying(_counted(chunks_of(csv, segment.size), hours), sink))
                file.flush()
                os.fsync(file.fileno())
            _check_digest(segment, digest, read_back(temporary, packing.read))
            temporary.rename(final)
        except (OSError, SealFailedError):
            temporary.unlink(missing_ok=True)
            raise
        return digest

    def _already_sealed(self, segment: Segment, final: Path, hours: HourCount) -> Digest:
        """Compare the two files that a crash between the rename and the deletion leaves."""
        with segment.path.open("rb") as csv:
            digest = digest_of(_counted(chunks_of(csv, segment.size), hours))
        if read_back(final, PACKINGS[self._compression].read) != digest:
            raise NameTakenError(final, f"holds other rows than {segment.path}. Both were kept: compare them.")
        return digest


def _counted(chunks: Iterable[bytes], hours: HourCount) -> Iterator[bytes]:
    """Give `chunks` on, each after its rows were counted."""
    for chunk in chunks:
        hours.add(chunk)
        yield chunk


def _device(path: Path) -> int | None:
    try:
        return path.stat().st_dev
    except OSError:
        return None


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _check_digest(segment: Segment, digest: Digest, packed: Digest | None) -> None:
    if (digest.rows, digest.size) != (segment.rows, segment.size) or digest.nul:
        holes = " and NUL bytes" if digest.nul else ""
        raise SealFailedError(
            f"{segment.path} holds {digest.rows} rows in {digest.size} bytes{holes}, but {segment.rows} rows in "
            f"{segment.size} bytes were appended. It was kept; the next start cuts out what is damaged."
        )
    if packed != digest:
        raise SealFailedError(f"{segment.path} did not read back from its packed copy: the disk or memory is failing.")
