"""Is a sealed file still what was sealed? Its bytes are unpacked as they are read, and held against what is on record.

    bytes of the file ─▶ unpacker of its packing ─▶ CSV ─▶ size, rows, SHA-256, first and last row, or every row

Rules:

1. With an entry `sealed` in the journal, the file must have the size that was written, unpack to the same rows
   (number, bytes, SHA-256), and begin and end with the IDs of its name. Newer entries have the packed file's SHA-256
   too, so that no byte of it may differ; with an older one, bytes that mean nothing (a time stamp, a mode) may.
2. Without an entry (an older file, one that was moved in, a lost journal) every row must prove itself: its form, its
   feed, its day, an ID that follows the one before it; and the first and last ID must be those of the name.
3. A packed file is one member, or one frame, and nothing before or behind it.

The caller reads the file once and gives the same bytes to the inspection and to its own digests. So what was inspected
is what is sent, whatever happens to the file meanwhile. Costs: see docs/upload.md.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import zstandard

from tickcollect.events import STREAMS
from tickcollect.files import FeedPath, SegmentName
from tickcollect.salvage import Claim, Numbering

UNPACKED = 4 << 20
"""Bytes that are unpacked at once: a small file that unpacks to very much fills no memory."""
ZSTD_STEP = 4096
LONGEST_ROW = 1 << 20


class DamagedError(Exception):
    """A sealed file is not what was sealed; the text is half a line that says how."""


class UncheckableError(Exception):
    """Nothing tells what a file should hold; the text is half a line."""


@dataclass(frozen=True, slots=True)
class SealRecord:
    """What the journal's entry `sealed` says of a file. `sha256` is the packed file's, empty in older entries."""

    bytes: int
    rows: int
    csv_bytes: int
    csv_sha256: str
    sha256: str = ""


class Inspection:
    """Inspects one file: `feed` takes its bytes in order, `end` gives the verdict."""

    def __init__(
        self, feed: FeedPath, name: SegmentName, member: str, numbering: Numbering, record: SealRecord | None
    ) -> None:
        """`member` is the name of the CSV inside; raises `UncheckableError` without record and known stream."""
        if record is None and feed.stream not in STREAMS:
            raise UncheckableError(f"no record tells what it should hold, and the stream {feed.stream} is not known")
        self._record = record
        self._packed_bytes = 0
        self._packed = hashlib.sha256()
        self._unpacker = _UNPACKERS[name.packing](member)
        self._knows_rows = record is not None and record.csv_sha256 != ""
        self._csv = _Csv(_claims(feed, name, numbering), name, by_itself=not self._knows_rows)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file. Raises `DamagedError`."""
        self._packed_bytes += len(data)
        self._packed.update(data)
        for csv in self._unpacker.feed(data):
            self._csv.feed(csv)

    def end(self) -> str:
        """Return what the file was held against: `sealed` (rule 1) or `rows` (rule 2). Raises `DamagedError`."""
        record = self._record
        if record is not None and self._packed_bytes != record.bytes:
            raise DamagedError(f"it has {self._packed_bytes:,} bytes, and {record.bytes:,} were sealed")
        self._unpacker.end()
        self._csv.end()
        if record is None:
            return "rows"
        for what, found, sealed in (
            ("rows", self._csv.rows, record.rows),
            ("bytes of CSV", self._csv.size, record.csv_bytes),
        ):
            if found != sealed:
                raise DamagedError(f"it holds {found:,} {what}, and {sealed:,} were sealed")
        if self._knows_rows and self._csv.sha256 != record.csv_sha256:
            raise DamagedError("its rows are others than those that were sealed (SHA-256)")
        if record.sha256 and self._packed.hexdigest() != record.sha256:
            raise DamagedError("its rows are right, but the packing around them has changed (SHA-256)")
        return "sealed" if self._knows_rows else "rows"


def _claims(feed: FeedPath, name: SegmentName, numbering: Numbering) -> "_Claims | None":
    return _Claims(feed, name, numbering) if feed.stream in STREAMS else None


@dataclass(frozen=True, slots=True)
class _Claims:
    """What a file's name promises of its rows; how many further columns they have, its first row shows."""

    feed: FeedPath
    name: SegmentName
    numbering: Numbering

    def of(self, first_row: bytes) -> Claim:
        feed, own = self.feed, len(STREAMS[self.feed.stream].COLUMNS)
        extra = max(0, first_row.count(b",") + 1 - own)
        return Claim(feed.stream, feed.symbol, self.name.day, self.name.first_id, self.numbering, extra)


# The CSV ------------------------------------------------------------------------------------------------------------


class _Csv:
    """Counts and digests the CSV; checks its first and last row, or each one (`by_itself`)."""

    def __init__(self, claims: _Claims | None, name: SegmentName, *, by_itself: bool) -> None:
        self._claims = claims
        self._name = name
        self._by_itself = by_itself
        self._claim: Claim | None = None
        self._rest = b""
        self._last_row = b""
        self._last_id = -1
        self._digest = hashlib.sha256()
        self.size = 0
        self.rows = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of the CSV so far, in hex."""
        return self._digest.hexdigest()

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        self.rows += data.count(b"\n")
        if b"\0" in data:
            raise DamagedError("NUL bytes stand among its rows")
        if not self._by_itself:
            self._digest.update(data)
        data = self._rest + data
        cut = data.rfind(b"\n") + 1
        block, self._rest = data[:cut], data[cut:]
        if len(self._rest) > LONGEST_ROW:
            raise DamagedError("it holds something that is no row")
        if block:
            self._take(block)

    def _take(self, block: bytes) -> None:
        """Take whole lines."""
        if self._claims is None:
            return
        if self._claim is None:
            first_row = block[: block.index(b"\n") + 1]
            self._claim = self._claims.of(first_row)
            first, _ = _ids(first_row, self._claim)
            if first != self._name.first_id:
                raise DamagedError(f"it begins with ID {first}, and its name says {self._name.first_id}")
        if self._by_itself:
            self._follow(*_ids(block, self._claim))
        else:
            self._last_row = block[block.rfind(b"\n", 0, -1) + 1 :]

    def _follow(self, first: int, last: int) -> None:
        by_one = self._claim is not None and self._claim.numbering is Numbering.BY_ONE
        if self._last_id >= 0 and (first != self._last_id + 1 if by_one else first <= self._last_id):
            raise DamagedError(f"ID {first} stands behind ID {self._last_id}")
        self._last_id = last

    def end(self) -> None:
        """Raise `DamagedError` where the end is none."""
        if self._rest:
            raise DamagedError("its last row is torn")
        if not self.rows:
            raise DamagedError("it holds no row")
        if self._claim is None:
            return
        last = self._last_id
        if not self._by_itself and self._claims is not None:  # which may have further columns that the first had not
            last = _ids(self._last_row, self._claims.of(self._last_row))[1]
        if last != self._name.last_id:
            raise DamagedError(f"it ends with ID {last}, and its name says {self._name.last_id}")


def _ids(block: bytes, claim: Claim) -> tuple[int, int]:
    """Return the first and last ID of whole rows. Raises `DamagedError` unless each proves itself."""
    if not claim.block.fullmatch(block):
        raise DamagedError(f"it holds lines that are no rows of {claim.symbol} {claim.stream}")
    id_column, time_column, commas = claim.columns
    fields = block.split(b",")
    ends = claim.ids(fields[id_column::commas])
    if ends is None:
        raise DamagedError(f"the IDs of its rows do not rise {claim.numbering.value}")
    if not claim.on_day(fields[time_column::commas]):
        raise DamagedError("it holds rows of another day than its name says")
    return ends


# Unpackers ----------------------------------------------------------------------------------------------------------


class _Unpacker(Protocol):
    """Unpacks bytes as they come; `end` raises `DamagedError` if the packing does not end there."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def end(self) -> None: ...


CUT_SHORT = "it is cut short, so that it does not unpack to its end"
BEHIND = "something stands behind its end"


def _inflated(inflater: Any, data: bytes) -> Iterator[bytes]:
    """Yield what `data` unpacks to, a bounded piece at a time."""
    while data and not inflater.eof:
        try:
            yield inflater.decompress(data, UNPACKED)
        except zlib.error as error:
            raise DamagedError(f"it does not unpack ({error})") from error
        data = inflater.unconsumed_tail


class _Gzip:
    def __init__(self, _member: str) -> None:
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._inflater.eof:
            raise DamagedError(BEHIND)
        yield from _inflated(self._inflater, data)
        if self._inflater.unused_data:
            raise DamagedError(BEHIND)

    def end(self) -> None:
        if not self._inflater.eof:
            raise DamagedError(CUT_SHORT)


class _Zstd:
    def __init__(self, _member: str) -> None:
        self._decompressor = zstandard.ZstdDecompressor().decompressobj()

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), ZSTD_STEP):
            if self._decompressor.eof:
                raise DamagedError(BEHIND)
            try:
                yield self._decompressor.decompress(data[start : start + ZSTD_STEP])
            except zstandard.ZstdError as error:
                raise DamagedError(f"it does not unpack ({error})") from error
            if self._decompressor.unused_data:
                raise DamagedError(BEHIND)

    def end(self) -> None:
        if not self._decompressor.eof:
            raise DamagedError(CUT_SHORT)


class _Plain:
    def __init__(self, _member: str) -> None:
        pass

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        pass


_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END_64_BYTES = 56 + 20
_IN_EXTRA = 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _SIZES_BEHIND = 1, 8
_LONGEST_TAIL = 4096


class _Zip:
    """One member from the first byte to the last; the directory at the end must say the same of it.

    The layout is that of PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.12 and 4.3.16 (directory).
    """

    def __init__(self, member: str) -> None:
        self._member = member.encode()
        self._head = b""
        self._body = 0
        self._tail = b""
        self._inflater: Any = None
        self._left = -1
        self._crc = 0
        self._size = 0
        self._read = 0
        self._fields: tuple[Any, ...] = ()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._read += len(data)
        if not self._body:
            self._head += data
            if not self._begin():
                return
            data, self._head = self._head[self._body :], self._head[: self._body]
        for csv in self._unpacked(data):
            self._crc = zlib.crc32(csv, self._crc)
            self._size += len(csv)
            yield csv
        if len(self._tail) > _LONGEST_TAIL:
            raise DamagedError(BEHIND)

    def _begin(self) -> bool:
        """Read the header, once it is there as a whole."""
        if len(self._head) < _LOCAL.size:
            return False
        self._fields = fields = _LOCAL.unpack_from(self._head)
        signature, _, flags, method, *_, name_bytes, extra_bytes = fields
        if signature != b"PK\3\4" or flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            raise DamagedError("it does not begin as a zip file of ours")
        end = _LOCAL.size + name_bytes + extra_bytes
        if len(self._head) < end:
            return False
        if self._head[_LOCAL.size : _LOCAL.size + name_bytes] != self._member:
            raise DamagedError(f"the file inside is not called {self._member.decode()}")
        self._body = end
        if method == _DEFLATED:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        else:
            self._left = self._sizes()[1]
        return True

    def _sizes(self) -> tuple[int, int]:
        """Return the packed and unpacked size that the header tells."""
        packed, unpacked, name_bytes = self._fields[7:10]
        extra = self._head[_LOCAL.size + name_bytes : self._body]
        if _IN_EXTRA in (packed, unpacked) and extra[:4] == b"\1\0\x10\0" and len(extra) >= 20:  # noqa: PLR2004
            unpacked, packed = struct.unpack_from("<2Q", extra, 4)
        return packed, unpacked

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            if body := data[: self._left]:
                yield body
            self._left -= len(body)
            self._tail += data[len(body) :]
        elif self._inflater.eof:
            self._tail += data
        else:
            yield from _inflated(self._inflater, data)
            self._tail += self._inflater.unused_data

    def end(self) -> None:
        if not self._body or self._left > 0 or (self._inflater is not None and not self._inflater.eof):
            raise DamagedError(CUT_SHORT)
        tail_start = self._read - len(self._tail)
        packed = tail_start - self._body
        flags, crc = self._fields[2], self._fields[6]
        at = 0
        if flags & _SIZES_BEHIND:
            at = max(0, self._tail.find(b"PK\1\2"))
        elif crc != self._crc or self._sizes() != (packed, self._size):
            raise DamagedError("its rows do not fit their checksum (CRC-32) or size")
        if not self._is_directory(at, packed, tail_start):
            raise DamagedError("its directory is damaged, or of more than this one file")

    def _is_directory(self, at: int, packed: int, tail_start: int) -> bool:
        """Tell whether from `at` on the tail is the directory of this one member, and nothing else."""
        tail = self._tail
        if len(tail) < at + _CENTRAL.size + _END.size:
            return False
        entry = _CENTRAL.unpack_from(tail, at)
        name_bytes, extra_bytes, comment_bytes, disk = entry[10:14]
        length = _CENTRAL.size + name_bytes + extra_bytes + comment_bytes
        end = _END.unpack_from(tail, len(tail) - _END.size)
        between = len(tail) - _END.size - at - length
        name = tail[at + _CENTRAL.size : at + _CENTRAL.size + name_bytes]
        agrees = (
            entry[0] == b"PK\1\2"
            and entry[3:7] == self._fields[2:6]  # flags, method, time, date: as in the header
            and entry[7] == self._crc
            and entry[8] in (packed, _IN_EXTRA)
            and entry[9] in (self._size, _IN_EXTRA)
            and (name, comment_bytes, disk, entry[16]) == (self._member, 0, 0, 0)
        )
        ends = end[0] == b"PK\5\6" and between in (0, _END_64_BYTES) and end[1:5] == (0, 0, 1, 1) and end[7] == 0
        return agrees and ends and end[5] in (length, _IN_EXTRA) and end[6] in (tail_start + at, _IN_EXTRA)


_UNPACKERS: dict[str, Callable[[str], _Unpacker]] = {".zip": _Zip, ".gz": _Gzip, ".zst": _Zstd, "": _Plain}
"""By the ending of the file's name."""
