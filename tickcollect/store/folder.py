"""A folder of this machine as a store: another disk, or a network share that is mounted."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tickcollect.files import TEMPORARY, chunks_of, make_directory, sync_directory
from tickcollect.store.arrival import Absent, CannotTell, Held, Probe, Receipt
from tickcollect.store.failures import NameTakenError, RefusedError, StoreError, TemporaryError, UnusableError
from tickcollect.store.sending import Digests, Limits, Source

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer (FAT, some network shares)."""

_FOLDER_FULL = (UnusableError, "full", "Make room there")
_FOLDER_CLOSED = (UnusableError, "permission", "Let this user write there")
_FOLDER_AWAY = (TemporaryError, "network", "See the mount")
_ERRNOS: dict[int, tuple[type[StoreError], str, str]] = {
    errno.ENOSPC: _FOLDER_FULL,
    errno.EDQUOT: _FOLDER_FULL,
    errno.EACCES: _FOLDER_CLOSED,
    errno.EPERM: _FOLDER_CLOSED,
    errno.EROFS: _FOLDER_CLOSED,
    errno.ESTALE: _FOLDER_AWAY,
    errno.EIO: _FOLDER_AWAY,
    errno.ENOTCONN: _FOLDER_AWAY,
    errno.ETIMEDOUT: _FOLDER_AWAY,
    errno.EHOSTDOWN: _FOLDER_AWAY,
}


@dataclass(eq=False)
class Folder:
    """A folder of this machine: another disk, or a network share that is mounted.

    It has to exist, and to stay on the same file system during a run: under the mount point of a disk that is not there
    lies the machine's own disk, which must not be filled. So name a folder on the disk, not the mount point itself.
    """

    path: Path
    data_dir: Path
    limits: Limits = field(default_factory=lambda: Limits(one_put_bytes=2**63))
    _device: int | None = None

    @property
    def name(self) -> str:
        """The folder as a URL."""
        return f"file://{self.path}"

    def close(self) -> None:
        """Nothing is held."""

    def probe(self) -> Probe:
        """See that the folder is there and takes a file. Raises `UnusableError`."""
        self._check()
        with self._told(), tempfile.TemporaryFile(dir=self.path):
            return Probe("writable", may_look=True)

    def _check(self) -> None:
        try:
            device = self.path.stat().st_dev if self.path.is_dir() else None
        except OSError:
            device = None
        if device is None or device != (self._device or device):
            raise UnusableError(
                "folder_missing", f"{self.name}: there is no such folder. Mount the disk, or make the folder by hand."
            )
        self._device = device
        folder, data = self.path.resolve(), self.data_dir.resolve()
        if folder.is_relative_to(data) or data.is_relative_to(folder) or _same_file(folder, data):
            raise UnusableError(
                "settings", f"{self.name}: this folder and DATA_DIR lie in one another. Name one on another disk."
            )

    def look(self, key: str) -> Held | Absent | CannotTell:
        """Return a file's size. Raises `StoreError`."""
        self._check()
        target = self.path / key
        with self._told():
            try:
                found = target.lstat()
            except FileNotFoundError:
                return Absent()
            except NotADirectoryError:
                raise RefusedError("name_taken", f"{self.name}: a file is in the way of the folder of {key}") from None
            if not stat.S_ISREG(found.st_mode):
                raise RefusedError("name_taken", f"{self.name}: {key} is there and is no ordinary file")
        if found.st_nlink == 1 and _same_file(target, self.data_dir / key):
            raise UnusableError("settings", f"{self.name}: {key} is the file in DATA_DIR itself, no copy of it.")
        return Held(found.st_size)

    def put(self, key: str, source: Source, digests: Digests) -> Receipt:
        """Copy a file, read the copy back, and only then give it its name. Raises `StoreError`."""
        self._check()
        target = self.path / key
        with self._told():
            make_directory(target.parent)
            descriptor, name = tempfile.mkstemp(TEMPORARY, f".{target.name}.", target.parent)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as sink:
                    for chunk in source.chunks():
                        sink.write(chunk)
                        source.went(len(chunk))
                    sink.flush()
                    os.fchmod(descriptor, stat.S_IMODE(os.fstat(source.file.fileno()).st_mode))
                    os.fsync(descriptor)
                source.check()
                if _sha256_on_disk(temporary) != digests.sha256:
                    raise TemporaryError("damaged", f"{self.name}: what was written of {key} reads back differently.")
                self._give_name(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(target.parent)
        return Receipt(Held(digests.size, digests.sha256), read_back=True)

    def _give_name(self, temporary: Path, target: Path) -> None:
        """Name the copy, unless the name is taken."""
        try:
            try:
                target.hardlink_to(temporary)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW))
                temporary.replace(target)  # the empty file that now holds the name for us
        except FileExistsError:
            raise NameTakenError("name_taken", f"{self.name}: {target.relative_to(self.path)} is taken") from None

    def read_back(self, key: str, also: Callable[[bytes], None] = lambda _chunk: None) -> str:
        """Return the SHA-256 of a file as it is on the disk. Raises `StoreError`."""
        with self._told():
            return _sha256_on_disk(self.path / key, also)

    def abort_leftovers(self, older_than: datetime) -> int:
        """Remove temporary copies that killed runs have left."""
        count = 0
        with self._told():
            for path in self.path.glob(f"*/*/*/.*{TEMPORARY}"):
                if datetime.fromtimestamp(path.lstat().st_mtime, UTC) < older_than:
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = _ERRNOS.get(error.errno or 0, (RefusedError, "refused", "See the disk"))
            raise kind[0](kind[1], f"{self.name}: {error.strerror or error}. {kind[2]}.") from error


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.stat(), other.stat())
    except OSError:
        return False


def _sha256_on_disk(path: Path, also: Callable[[bytes], None] = lambda _chunk: None) -> str:
    """Digest a file, read from the disk where the system allows it, not from memory."""
    sha256 = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for chunk in chunks_of(file):
            sha256.update(chunk)
            also(chunk)
    return sha256.hexdigest()
