"""Alerts that are not sent yet, in a small file, so that neither a restart nor a kill forgets them.

Rules:

1. A thread of its own reads and writes: a disk that hangs holds up neither collecting nor sending. Of what is to be
   written only the newest counts.
2. The file is written whole under another name, made durable and renamed: it is there as it was or as it is. It is
   gone when nothing waits.
3. Each collector of a directory has a file of its own, claimed by a lock of the kernel's (flock), which a killed
   process never leaves behind. What another program left is taken up by whoever finds it without an owner, and its file
   deleted only once all of it stands in the finder's own: a kill between the two sends a message twice rather than not
   at all.
4. A file that cannot be read is put aside under a name that says so, and told. It is bounded in both directions.
"""

import contextlib
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

OF_THE_COLLECTOR = "alerts-waiting.json"
OF_A_FURTHER_COLLECTOR = "alerts-waiting-{place}.json"
OF_THE_UPLOAD = "alerts-waiting-upload.json"
LOCK = ".{file}.lock"
FILE_BYTES_MAX = 16_000_000
LOOK_EVERY_S = 30.0
"""How often files of other programs are looked for, and a write that the disk refused is tried again."""
OTHERS_AFTER_S = 120.0
"""A file of another program is taken up when it is this old: until then that program may still send it."""
FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Found:
    """What a file held, by channel, and the file."""

    path: Path
    channels: Mapping[str, Any]


def read(path: Path) -> Found | None:
    """Return what a file holds; None if there is none. Raises `OSError`, and `ValueError` for what is no such file."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    said = orjson.loads(content) if len(content) <= FILE_BYTES_MAX else None
    match said:
        case {"channels": dict(channels)}:
            return Found(path, channels)
    raise ValueError(f"{path} is not a file of alerts")


def write(path: Path, channels: Mapping[str, Any]) -> None:
    """Replace the file, durably; remove it where nothing waits. Raises `OSError`."""
    if not channels:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps({"channels": channels}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def put_aside(path: Path) -> None:
    """Rename a file that cannot be read, so that a person can look at it."""
    with contextlib.suppress(OSError):
        path.replace(path.with_name(f"{path.name}.damaged"))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be written, and the files of others that are then not needed any more."""

    channels: Mapping[str, Any]
    instead_of: Sequence[Path]


@dataclass
class Keeper:
    """Keeps one collector's file in `directory`, and takes up what others left there.

    `warn` is told once of each trouble, from the keeper's thread.
    """

    directory: Path
    warn: Callable[[str], None]
    now_s: Callable[[], float] = time.time
    """The time of day, which files carry too."""
    _found: list[Found] | None = None
    """None until the collector's own file has been looked for."""
    _own: Path | None = None
    _locks: dict[Path, int] = field(default_factory=dict)
    """Files that are this process's, with the descriptors that say so."""
    _taken: dict[Path, float] = field(default_factory=dict)
    """Files of others that were taken up, with the time of their last change: once each."""
    _order: _Order | None = None
    _is_busy: bool = True
    """Until everything that was given is on disk."""
    _is_over: bool = False
    _last_trouble: str = ""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def start(self) -> None:
        """Begin: read what earlier runs left, then write what is given."""
        threading.Thread(target=self._work, name="alerts-kept", daemon=True).start()

    def found(self) -> list[Found] | None:
        """Return what was found since it was asked last; None while the disk has not answered. Never waits for it.

        Until it has, nothing may be given to `keep`: what an earlier run left would be overwritten unread.
        """
        with self._changed:
            if self._found is None:
                return None
            found, self._found = self._found, []
            return found

    def keep(self, channels: Mapping[str, Any], instead_of: Iterable[Path] = ()) -> None:
        """Have this written as soon as the disk is ready; the files `instead_of` which it stands are then deleted."""
        with self._changed:
            before = self._order.instead_of if self._order is not None else ()
            self._order, self._is_busy = _Order(channels, (*before, *instead_of)), True
            self._changed.notify_all()

    def end(self, within_s: float) -> bool:
        """Wait until all that was given is on disk, and leave the file to the next run; tell whether it is.

        A disk that has not answered by then keeps file and lock until the process ends.
        """
        with self._changed:
            is_settled = self._changed.wait_for(lambda: not self._is_busy, within_s)
            self._is_over = True
            self._changed.notify_all()
            if is_settled:
                for lock in self._locks.values():
                    os.close(lock)
                self._locks = {}
        return is_settled

    # --- In the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._has_claimed():
            with self._changed:
                if self._changed.wait_for(lambda: self._is_over, LOOK_EVERY_S):
                    return
        with self._changed:
            self._found, self._is_busy = self._found or [], False
        while not self._is_over:
            for path in self._left_by_others():
                self._take_up(path)
            with self._changed:
                order, self._order = self._order, None
            is_written = order is None or self._is_written(order)
            with self._changed:
                if order is not None and not is_written:
                    newer = self._order or order
                    self._order = _Order(newer.channels, tuple({*order.instead_of, *newer.instead_of}))
                self._is_busy = self._order is not None
                self._changed.notify_all()
                if not self._is_over and (self._order is None or not is_written):
                    self._changed.wait(LOOK_EVERY_S)

    def _has_claimed(self) -> bool:
        """Make the first file that no living collector has this process's own, and read what is in it."""
        further = (OF_A_FURTHER_COLLECTOR.format(place=place) for place in itertools.count(2))
        try:
            for name in itertools.chain([OF_THE_COLLECTOR], further):
                if self._is_locked(self.directory / name):
                    self._own = self.directory / name
                    self._take_up(self._own)
                    return True
        except OSError as error:
            self._say(f"{self.directory}: alerts that wait cannot be kept: {error.strerror}")
        return False

    def _is_locked(self, path: Path) -> bool:
        """Lock a collector's file; tell whether that could be done. Raises `OSError`."""
        if path in self._locks:
            return True
        lock = os.open(path.with_name(LOCK.format(file=path.name)), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        except OSError:
            os.close(lock)
            raise
        self._locks[path] = lock
        return True

    def _left_by_others(self) -> Iterator[Path]:
        """Yield the files of collectors that live no more, and that of an upload that is surely over."""
        with contextlib.suppress(OSError):
            for path in sorted(self.directory.glob(OF_A_FURTHER_COLLECTOR.format(place="[0-9]*"))):
                if path != self._own and self._is_locked(path):
                    yield path
        upload = self.directory / OF_THE_UPLOAD
        with contextlib.suppress(OSError):
            if abs(self.now_s() - upload.stat().st_mtime) >= OTHERS_AFTER_S:
                yield upload

    def _take_up(self, path: Path) -> None:
        """Read a file that is nobody else's, once."""
        try:
            changed_s = path.stat().st_mtime
            if self._taken.get(path) == changed_s:
                return
            found = read(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._say(f"{path}: alerts that were not sent before cannot be read: {error.strerror}")
            return
        except ValueError:
            put_aside(path)
            self._say(f"{path} is damaged and was put aside: alerts that were not sent before may be missing")
            return
        if found is not None:
            self._taken[path] = changed_s
            with self._changed:
                self._found = [*(self._found or []), found]

    def _is_written(self, order: _Order) -> bool:
        own = self._own
        assert own is not None, "nothing is given before a file was claimed"
        try:
            write(own, order.channels)
            for path in order.instead_of:
                if path != own:
                    path.unlink(missing_ok=True)
        except OSError as error:
            self._say(f"{own}: alerts that wait cannot be kept: {error.strerror}. They are lost if this run is killed.")
            return False
        self._last_trouble = ""
        return True

    def _say(self, trouble: str) -> None:
        if trouble != self._last_trouble:
            self.warn(trouble)
        self._last_trouble = trouble
