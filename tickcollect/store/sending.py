"""The file that is sent: opened once, digested, and read from that same descriptor while it goes."""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tickcollect.files import CHUNK
from tickcollect.store.failures import RefusedError

ONE_PUT_BYTES = 5 * 10**9
"""Amazon takes up to 5 GiB in one request; a larger file is sent in parts."""
PART_BYTES = 64 << 20
PARTS = 9000
"""At most; Amazon takes 10,000."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a file that is too large for one request."""

    size: int
    sha256: bytes
    md5: bytes


@dataclass(frozen=True, slots=True)
class Digests:
    """A file's size in bytes and checksums in hex; `parts` is empty for a file that goes in one request."""

    size: int
    sha256: str
    md5: str
    parts: tuple[Part, ...] = ()

    @property
    def etags(self) -> tuple[str, ...]:
        """What S3 calls an object of these bytes: their MD5, and for one sent in these parts the MD5 of the parts'."""
        of_parts = _md5(b"".join(part.md5 for part in self.parts)).hexdigest()
        return (self.md5, f"{of_parts}-{len(self.parts)}") if self.parts else (self.md5,)

    @property
    def sha256_of_parts(self) -> str:
        """What S3 tells as the composite checksum of these parts."""
        return f"{as_base64(hashlib.sha256(b''.join(part.sha256 for part in self.parts)).digest())}-{len(self.parts)}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a file may be that is sent in one request, and the smallest part of a larger one, in bytes."""

    one_put_bytes: int = ONE_PUT_BYTES
    part_bytes: int = PART_BYTES

    def part_size(self, size: int) -> int:
        """Return the bytes of each part of a file but the last: the same file always has the same parts."""
        least = -(-size // PARTS)
        return self.part_bytes if least <= self.part_bytes else -(-least // CHUNK) * CHUNK


@dataclass(eq=False)
class Source:
    """A local file, opened once: what is digested is what is sent.

    `went` is called with the number of bytes that have just been handed to the store, `look_up` before each chunk that
    is read, for whatever purpose. Both may raise a `StoreError` to break off.
    """

    path: Path
    file: IO[bytes]
    size: int
    mtime_ns: int
    ctime_ns: int
    went: Callable[[int], None] = lambda _count: None
    look_up: Callable[[], None] = lambda: None

    def read_at(self, position: int, count: int) -> bytes:
        """Return exactly `count` bytes; raises `RefusedError` where the file has fewer or cannot be read."""
        self.look_up()
        data = b""
        try:
            while len(data) < count and (more := os.pread(self.file.fileno(), count - len(data), position + len(data))):
                data = data + more if data else more
        except OSError as error:
            raise RefusedError("unreadable", f"{self.path}: cannot be read: {error.strerror}") from error
        if len(data) < count:
            raise self._changed()
        return data

    def chunks(self, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Read `size` bytes from `start`, or all."""
        end = self.size if size is None else start + size
        while start < end:
            yield (chunk := self.read_at(start, min(CHUNK, end - start)))
            start += len(chunk)

    def check(self) -> None:
        """Raise `RefusedError` if the file is not as it was when it was opened."""
        found = os.fstat(self.file.fileno())
        # The time of the last change of the entry cannot be set back, as that of the content can.
        if (found.st_size, found.st_mtime_ns, found.st_ctime_ns) != (self.size, self.mtime_ns, self.ctime_ns):
            raise self._changed()

    def digests(self, limits: Limits, also: Callable[[bytes], None] = lambda _chunk: None) -> Digests:
        """Read the file once and digest it; `also` is given the same bytes, in order."""
        whole = (hashlib.sha256(), _md5())
        step = limits.part_size(self.size) if self.size > limits.one_put_bytes else 0
        parts = []
        for start in range(0, self.size, step or self.size or 1):
            size = min(step or self.size, self.size - start)
            part = (hashlib.sha256(), _md5())
            for chunk in self.chunks(start, size):
                also(chunk)
                for digest in (*whole, *part) if step else whole:
                    digest.update(chunk)
            parts.append(Part(size, part[0].digest(), part[1].digest()))
        self.check()
        return Digests(self.size, whole[0].hexdigest(), whole[1].hexdigest(), tuple(parts) if step else ())

    def _changed(self) -> RefusedError:
        return RefusedError(
            "changed",
            f"{self.path}: changed while it was read. Sealed files do not change by themselves: see what writes it.",
        )


@contextmanager
def open_source(
    path: Path, went: Callable[[int], None] = lambda _count: None, look_up: Callable[[], None] = lambda: None
) -> Iterator[Source]:
    """Open a local file to be sent. Raises `RefusedError`; no symbolic link is followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise RefusedError("unreadable", f"{path}: cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        yield Source(path, file, found.st_size, found.st_mtime_ns, found.st_ctime_ns, went, look_up)


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


def as_base64(digest: bytes) -> str:
    """Return a checksum as S3 writes it."""
    return base64.b64encode(digest).decode()
