"""Is a sealed file what was sealed? Every byte of one may be damaged, in each packing, with and without a record."""

import gzip
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tickcollect.files import FeedPath
from tickcollect.salvage import Numbering
from tickcollect.sealed import DamagedError, Inspection, SealRecord, UncheckableError

FEED = FeedPath("binance", "trade", "BTCUSDT")
NOON_MS = 1_795_089_600_000
"""2026-11-19 12:00 UTC."""
PACKINGS = [".zip", ".gz", ".zst", ""]


def row(trade_id: int, *, symbol: str = "BTCUSDT", time_ms: int = NOON_MS, extra: str = "") -> bytes:
    """Return one row as the collector writes it."""
    return f"trade,{time_ms},{symbol},{trade_id},64120.01,0.0015,,,{time_ms},True{extra}\n".encode()


def rows(first: int, last: int) -> bytes:
    return b"".join(row(n) for n in range(first, last + 1))


CSV = rows(100, 139)
MEMBER = "BTCUSDT-trade-2026-11-19-100-139.csv"


def packed(packing: str, csv: bytes = CSV, member: str = MEMBER) -> bytes:
    """Pack a CSV as any tool of the format would."""
    match packing:
        case ".zip":
            sink = io.BytesIO()
            with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(zipfile.ZipInfo(member), csv, zipfile.ZIP_DEFLATED)
            return sink.getvalue()
        case ".gz":
            return gzip.compress(csv, mtime=0)
        case ".zst":
            return zstandard.ZstdCompressor(write_checksum=True).compress(csv)
    return csv


def record_of(data: bytes, csv: bytes = CSV, *, knows_packed: bool = True) -> SealRecord:
    """Return what the journal says of a file that was sealed like this."""
    sha256 = hashlib.sha256(data).hexdigest() if knows_packed else ""
    return SealRecord(len(data), csv.count(b"\n"), len(csv), hashlib.sha256(csv).hexdigest(), sha256)


def inspected(
    data: bytes,
    packing: str,
    record: SealRecord | None = None,
    *,
    feed: FeedPath = FEED,
    numbering: Numbering = Numbering.BY_ONE,
    step: int = 7,
) -> str:
    """Inspect bytes given in small pieces, so that everything is cut everywhere."""
    name = FEED.parse(MEMBER + packing)
    assert name is not None
    inspection = Inspection(feed, name, MEMBER, numbering, record)
    for start in range(0, len(data), step):
        inspection.feed(data[start : start + step])
    return inspection.end()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_whole_file_passes(packing: str, step: int) -> None:
    """A file that is as it was sealed passes, and what it was held against is told."""
    data = packed(packing)
    assert inspected(data, packing, record_of(data), step=step) == "sealed"
    assert inspected(data, packing, record_of(data, knows_packed=False), step=step) == "sealed"
    assert inspected(data, packing, step=step) == "rows"


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_flipped_byte_is_found(packing: str) -> None:
    """With the packed file's checksum on record no byte may differ, in rows, headers, names or directory."""
    data = packed(packing)
    record = record_of(data)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x20
        with pytest.raises(DamagedError):
            inspected(bytes(damaged), packing, record, step=1 << 20)


@pytest.mark.parametrize("packing", [".zip", ".gz", ".zst"])
@pytest.mark.parametrize("record", [None, record_of(packed(".zip"), knows_packed=False)])
def test_no_flipped_byte_changes_a_row_unseen(packing: str, record: SealRecord | None) -> None:
    """Without the packed file's checksum: what passes still unpacks to the very rows that were sealed."""
    data = packed(packing)
    record = record and record_of(data, knows_packed=False)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x20
        try:
            inspected(bytes(damaged), packing, record, step=1 << 20)
        except DamagedError:
            continue
        assert unpacked(bytes(damaged), packing) == CSV, place


def unpacked(data: bytes, packing: str) -> bytes:
    """Unpack with the format's own library."""
    match packing:
        case ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                (member,) = archive.namelist()
                return archive.read(member)
        case ".gz":
            return gzip.decompress(data)
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=1 << 20)


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_shorter_file_is_found(packing: str) -> None:
    """Wherever a file is cut off, from nothing to its last byte, it is damaged, with a record and without."""
    data = packed(packing)
    for record in (record_of(data), record_of(data, knows_packed=False), None):
        for size in range(len(data)):
            with pytest.raises(DamagedError):
                inspected(data[:size], packing, record, step=1 << 20)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("more", [b"\0", b"x", b"PK", row(140), bytes(5000)], ids=len)
def test_bytes_behind_the_end_are_found(packing: str, more: bytes) -> None:
    """What stands behind the end was not sealed, whether the packing's own readers mind or not."""
    data = packed(packing)
    for record in (record_of(data), None):
        with pytest.raises(DamagedError):
            inspected(data + more, packing, record)


OTHER_ROWS: dict[str, bytes] = {
    "none": b"",
    "fewer": rows(100, 138),
    "more": rows(100, 140),
    "begin-later": rows(101, 139),
    "hole": rows(100, 119) + rows(121, 139),
    "twice": rows(100, 119) + rows(119, 139),
    "other-order": rows(120, 139) + rows(100, 119),
    "other-ids": rows(200, 239),
    "other-symbol": CSV.replace(b"BTCUSDT", b"ETHUSDT"),
    "other-stream": CSV.replace(b"trade,", b"aggTrade,"),
    "other-day": CSV.replace(b"1795089600000", b"1795176000000"),
    "one-row-of-another-day": CSV[:-1].rpartition(b"\n")[0] + b"\n" + row(139, time_ms=NOON_MS + 86_400_000),
    "torn": CSV[:-1],
    "torn-row-inside": CSV.replace(b"120,64120.01", b"120,64", 1).replace(b"0.0015,,,1795089600000,True\n", b"", 1),
    "nul": CSV.replace(b"64120.01", b"6412\0.01", 1),
    "page-of-nul": CSV[:1000] + bytes(512) + CSV[1512:],
    "no-rows": b"hello\n" * 40,
    "one-long-line": b"x" * 3_000_000,
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("case", OTHER_ROWS)
def test_valid_packing_of_other_rows_is_found(packing: str, case: str) -> None:
    """A file that unpacks without a complaint to anything else than its rows is damaged."""
    other = packed(packing, OTHER_ROWS[case])
    for record in (record_of(packed(packing)), None):
        with pytest.raises(DamagedError):
            inspected(other, packing, record, step=1 << 20)


def test_other_price_is_found_where_it_is_on_record() -> None:
    """A row of right form with another price is told by the checksum of the rows alone."""
    other = packed(".zip", CSV.replace(b"64120.01", b"64120.02", 1))
    with pytest.raises(DamagedError, match="SHA-256"):
        inspected(other, ".zip", SealRecord(len(other), 40, len(CSV), hashlib.sha256(CSV).hexdigest()))


def two_members() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, CSV)
        archive.writestr("more.csv", CSV)
    return sink.getvalue()


def with_comment() -> bytes:
    sink = io.BytesIO(packed(".zip"))
    with zipfile.ZipFile(sink, "a") as archive:
        archive.comment = b"repacked"
    return sink.getvalue()


def encrypted() -> bytes:
    data = bytearray(packed(".zip"))
    data[6] |= 1
    return bytes(data)


STRANGE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "two-members": (".zip", two_members),
    "other-name": (".zip", lambda: packed(".zip", member="other.csv")),
    "comment": (".zip", with_comment),
    "before": (".zip", lambda: b"#!/bin/sh\n" + packed(".zip")),
    "encrypted": (".zip", encrypted),
    "gzip-members": (".gz", lambda: gzip.compress(CSV[:1000]) + gzip.compress(CSV[1000:])),
    "zstd-frames": (".zst", lambda: packed(".zst", CSV[:1000]) + packed(".zst", CSV[1000:])),
    "gzip-as-zip": (".zip", lambda: packed(".gz")),
    "zip-as-gzip": (".gz", lambda: packed(".zip")),
    "csv-as-zip": (".zip", lambda: CSV),
    "page": (".zip", lambda: b"<html>not found</html>"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_another_packing_than_ours_is_found(case: str) -> None:
    """More than one member or frame, another name inside, a comment, something before it: not what was sealed."""
    packing, make = STRANGE[case]
    with pytest.raises(DamagedError):
        inspected(make(), packing)


def test_zip_that_was_streamed_or_stored_passes() -> None:
    """Files that were packed anew by another tool, with sizes behind the data or unpacked, hold the same rows."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        tell = seek

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, CSV)
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive, archive.open(zipfile.ZipInfo(MEMBER), "w", force_zip64=True) as sink:
        sink.write(CSV)
    for data in (pipe.getvalue(), stored.getvalue()):
        assert inspected(data, ".zip") == "rows"


def test_further_columns_belong_to_rows() -> None:
    """How many further columns there are, the first row shows; the others have as many."""
    csv = b"".join(row(n, extra=",1795089600000123456,NA") for n in range(100, 140))
    assert inspected(packed(".gz", csv), ".gz") == "rows"
    with pytest.raises(DamagedError):
        inspected(packed(".gz", csv.replace(b",NA", b"", 1)), ".gz")


def test_ids_with_holes_pass_where_they_may_have_some() -> None:
    """Futures `trade` leaves out placeholders, so that IDs rise; falling or repeated ones are damage there too."""
    rising = rows(100, 110) + rows(130, 139)
    assert inspected(packed(".gz", rising), ".gz", numbering=Numbering.RISING) == "rows"
    for csv in (rows(100, 110) + rows(110, 139), rows(100, 120) + rows(110, 139)):
        with pytest.raises(DamagedError):
            inspected(packed(".gz", csv), ".gz", numbering=Numbering.RISING)


def test_unknown_stream_is_held_against_its_record_only() -> None:
    """Where neither a record nor a form of rows is known, nothing is claimed."""
    feed = FeedPath("binance", "depth", "BTCUSDT")
    data = packed(".gz", b"anything,1\n")
    with pytest.raises(UncheckableError, match="depth"):
        inspected(data, ".gz", feed=feed)
    assert inspected(data, ".gz", record_of(data, b"anything,1\n"), feed=feed) == "sealed"


def test_small_file_that_unpacks_to_much_fills_no_memory(tmp_path: Path) -> None:
    """A gigabyte of one letter in a megabyte is found to be no row long before it is unpacked."""
    path = tmp_path / "bomb"
    with gzip.open(path, "wb") as sink:
        for _ in range(64):
            sink.write(b"x" * (1 << 20))
    with pytest.raises(DamagedError, match="no row"):
        inspected(path.read_bytes(), ".gz", step=1 << 20)
