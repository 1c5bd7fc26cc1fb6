"""Segments: names, appends, rolls, syncs and seals, on real files."""

import errno
import gzip
import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import TypeAlias

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tickcollect.files import UNREADABLE, Digest, Reader, SegmentName, read_back
from tickcollect.segments import (
    Compression,
    DiskError,
    DiskFullError,
    FeedPath,
    FileLostError,
    InUseError,
    NameRefusedError,
    NameTakenError,
    Numbering,
    OpenFiles,
    OutOfSequenceError,
    SealFailedError,
    Segment,
    Segments,
    SyncFailedError,
    lock,
    open_csv,
    open_file_limit,
)

FEED = FeedPath("binance", "trade", "BTCUSDT")
DAY = 20_648  # 2026-07-14
DAY_MS = 86_400_000


def row(id_: int, day: int = DAY) -> bytes:
    return b"trade,%d,BTCUSDT,%d,64120.01000000,0.00150000,,,%d,True\n" % (day * DAY_MS + 105, id_, day * DAY_MS + 104)


def rows(ids: Sequence[int], day: int = DAY) -> bytes:
    return b"".join(row(id_, day) for id_ in ids)


ROW = len(row(100))


@pytest.fixture
def feed(tmp_path: Path) -> Segments:
    return new(tmp_path)


def new(
    root: Path,
    *,
    rotate_size: int = 10 * ROW,
    pool: OpenFiles | None = None,
    compression: Compression = Compression.ZIP,
    numbering: Numbering = Numbering.BY_ONE,
) -> Segments:
    pool = pool or OpenFiles(8)
    return Segments(root, FEED, rotate_size=rotate_size, pool=pool, compression=compression, numbering=numbering)


def add(segments: Segments, ids: Sequence[int], day: int = DAY) -> list[Segment]:
    return segments.append(rows(ids, day), ids, day)


def names(segments: Segments) -> list[str]:
    return sorted(path.name for path in segments.directory.iterdir())


def content(segments: Segments) -> bytes:
    """Return every row of the feed's files, unpacked, in the order of day and first ID."""
    found = {FEED.parse(path.name): path for path in segments.directory.iterdir()}
    parts = []
    for name in sorted((name for name in found if name is not None), key=lambda name: (name.day, name.first_id)):
        with open_csv(found[name]) as csv:
            parts.append(csv.read())
    return b"".join(parts)


# Names


def test_names_carry_day_and_ids() -> None:
    """The open and the sealed name say symbol, stream, UTC day, first and last ID, and are read back the same."""
    opened = FEED.open_name(DAY, 2**53 + 1)
    sealed = FEED.sealed_name(DAY, 0, 2**63 - 1, Compression.ZSTD)
    assert opened == "BTCUSDT-trade-2026-07-14-9007199254740993.csv"
    assert sealed == "BTCUSDT-trade-2026-07-14-0-9223372036854775807.csv.zst"
    assert FEED.parse(opened) == SegmentName(DAY, 2**53 + 1)
    assert FEED.parse(sealed) == SegmentName(DAY, 0, 2**63 - 1, ".zst")
    assert FEED.parse(sealed + ".unconfirmed") == SegmentName(DAY, 0, 2**63 - 1, ".zst", temporary=True)


@pytest.mark.parametrize(
    "name",
    [
        "ETHUSDT-trade-2026-07-14-1.csv",
        "BTCUSDT-aggTrade-2026-07-14-1.csv",
        "BTCUSDT-trade-2026-02-30-1.csv",
        "BTCUSDT-trade-2026-07-14-01.csv",
        "BTCUSDT-trade-2026-07-14-1.csv.zip",
        "BTCUSDT-trade-2026-07-14-1-2.csv.rar",
        "BTCUSDT-trade-2026-07-14-1.csv~",
        "BTCUSDT-trade-2026-07-14-.csv",
        "BTCUSDT-trade-2026-07-14-\u0661.csv",
        "BTCUSDT-trade-2026-07-14-99999999999999999999.csv",
        "XBTCUSDT-trade-2026-07-14-1.csv",
        "notes.txt",
        "",
    ],
)
def test_other_names_are_foreign(name: str) -> None:
    """A name that this feed does not build is not read as one of its segments."""
    assert FEED.parse(name) is None


@pytest.mark.parametrize(
    "symbol",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "a.b",
        "a b",
        "a\nb",
        "a\0b",
        "-a",
        "a-",
        "a--b",
        "\uff41" * 27,
        "a\u202eb",
        "~",
        "*",
    ],
)
def test_names_that_could_leave_the_directory_are_refused(symbol: str) -> None:
    """Separators, dots, control characters, edges that a shell misreads, and over-long names never reach a path."""
    for parts in (("binance", "trade", symbol), ("binance", symbol, "BTCUSDT"), (symbol, "trade", "BTCUSDT")):
        with pytest.raises(NameRefusedError):
            FeedPath(*parts)


@given(st.text())
def test_no_accepted_name_leaves_the_directory(symbol: str) -> None:
    """Whatever text is accepted stays one visible path component that can be read back."""
    try:
        path = FeedPath("binance-futures", "aggTrade", symbol)
    except NameRefusedError:
        return
    name = path.sealed_name(DAY, 2**63 - 1, 2**63 - 1, Compression.ZIP) + ".unconfirmed"
    assert Path("/data", name).name == name
    assert len(name.encode()) <= 255
    assert path.directory(Path("/data")).parts == ("/", "data", "binance-futures", "aggTrade", symbol)
    assert path.parse(name) is not None


def test_symbols_of_every_script_are_accepted() -> None:
    """Exchanges have symbols in Chinese characters, with digits and with underscores."""
    for symbol in ("币安人生USDT", "1000SHIBUSDT", "BTCUSD_PERP", "BTC-USD", "BTCUSDT_260925"):
        assert FeedPath("binance", "trade", symbol).parse(f"{symbol}-trade-2026-07-14-1.csv") == SegmentName(DAY, 1)


# Append and roll


def test_rows_are_in_the_file_when_append_returns(feed: Segments) -> None:
    """Appended rows stand in the open file, named by day and first ID, readable by owner and group only."""
    assert add(feed, [100, 101]) == []
    assert add(feed, [102]) == []
    path = feed.directory / "BTCUSDT-trade-2026-07-14-100.csv"
    assert path.read_bytes() == rows([100, 101, 102])
    assert path.stat().st_mode & 0o137 == 0
    assert feed.open_segment == Segment(path, DAY, 100, 102, 3, 3 * ROW)


def test_a_batch_is_cut_at_the_row_that_does_not_fit(feed: Segments) -> None:
    """One batch over several size limits makes as many segments, each at most the limit, no row split or lost."""
    ended = add(feed, range(100, 135))
    assert [(s.first_id, s.last_id, s.rows, s.size) for s in ended] == [
        (100, 109, 10, 10 * ROW),
        (110, 119, 10, 10 * ROW),
        (120, 129, 10, 10 * ROW),
    ]
    assert [s.path.read_bytes() for s in ended] == [rows(range(n, n + 10)) for n in (100, 110, 120)]
    assert feed.open_segment is not None
    assert (feed.open_segment.first_id, feed.open_segment.rows) == (130, 5)


def test_the_size_limit_is_exact(tmp_path: Path) -> None:
    """A file may reach the limit, not pass it."""
    for limit, expected in ((3 * ROW, 3), (3 * ROW - 1, 2), (2 * ROW, 2)):
        segments = new(tmp_path / str(limit), rotate_size=limit)
        add(segments, [100])
        ended = add(segments, [101, 102, 103, 104])
        assert ended[0].rows == expected


def test_a_row_longer_than_the_limit_has_its_own_file(tmp_path: Path) -> None:
    """A limit below the length of a row gives one row a file."""
    ended = add(new(tmp_path, rotate_size=1), [100, 101, 102])
    assert [s.rows for s in ended] == [1, 1]


def test_another_day_ends_the_segment(feed: Segments) -> None:
    """Rows of the next UTC day begin a file of that day."""
    add(feed, [100, 101])
    (ended,) = add(feed, [102], DAY + 1)
    assert (ended.day, ended.last_id) == (DAY, 101)
    assert names(feed) == ["BTCUSDT-trade-2026-07-14-100.csv", "BTCUSDT-trade-2026-07-15-102.csv"]


def test_end_closes_the_open_segment_once(feed: Segments) -> None:
    """After end there is no open segment, and the next rows begin a new file, behind a gap or not."""
    assert feed.end() == []
    add(feed, [100, 101])
    assert [s.last_id for s in feed.end()] == [101]
    assert feed.end() == []
    add(feed, [200])
    assert len(names(feed)) == 2


@pytest.mark.parametrize(
    ("lines", "ids"),
    [
        (rows([102, 104]), [102, 104]),
        (rows([103]), [103]),
        (rows([101]), [101]),
        (rows([103, 102]), [103, 102]),
        (rows([102, 103]), [102]),
        (rows([102])[:-1], [102]),
        (b"", []),
    ],
)
def test_rows_that_do_not_continue_the_segment_are_refused(feed: Segments, lines: bytes, ids: list[int]) -> None:
    """Holes, copies, disorder and torn rows never get into a segment; the file stays as it was."""
    add(feed, [100, 101])
    with pytest.raises(OutOfSequenceError):
        feed.append(lines, ids, DAY)
    assert content(feed) == rows([100, 101])
    add(feed, [102])


def test_placeholders_may_be_missing_where_ids_rise_with_holes(tmp_path: Path) -> None:
    """A feed whose placeholders are not written has holes, but never falls or repeats."""
    segments = new(tmp_path, numbering=Numbering.RISING)
    add(segments, [100, 103])
    add(segments, [110])
    for ids in ([110], [109], [120, 119]):
        with pytest.raises(OutOfSequenceError):
            add(segments, ids)
    assert content(segments) == rows([100, 103, 110])


@settings(deadline=None)  # a busy disk is slow
@given(st.data())
def test_any_batches_make_the_same_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """However rows are batched, rolled, ended and dated, all of them are on the disk once and in order."""
    limit = data.draw(st.integers(1, 12 * ROW))
    segments = new(tmp_path_factory.mktemp("data"), rotate_size=limit, pool=OpenFiles(1))
    expected, next_id, day, ended = b"", 100, DAY, []
    for size, event in data.draw(
        st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["", "day", "end", "gap"])), max_size=8)
    ):
        day += event == "day"
        ended += segments.end() if event in {"end", "gap"} else []
        next_id += event == "gap"
        ids = range(next_id, next_id + size)
        ended += add(segments, ids, day)
        expected += rows(ids, day)
        next_id += size
    ended += segments.end()
    assert b"".join(s.path.read_bytes() for s in ended) == expected
    for s in ended:
        assert s.path.read_bytes() == rows(range(s.first_id, s.last_id + 1), s.day)
        assert s.size == s.path.stat().st_size
        assert s.size <= limit or s.rows == 1


# The disk refuses


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel cut writes short at `size` bytes a file, and refuse the next."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("limit", [1, ROW, 2 * ROW + 5, 3 * ROW - 1])
def test_a_short_write_is_cut_back_and_can_be_repeated(feed: Segments, limit: int) -> None:
    """After a write that was cut short in the middle of a row, the file is as before, and the same append succeeds."""
    add(feed, [100])
    with file_size_limit(ROW + limit), pytest.raises(DiskError, match="ROTATE_SIZE") as caught:
        add(feed, [101, 102, 103, 104])
    assert caught.value.errno == errno.EFBIG
    assert content(feed) == row(100)
    add(feed, [101, 102, 103, 104])
    assert content(feed) == rows(range(100, 105))


def test_a_failed_append_takes_its_rolls_back(tmp_path: Path) -> None:
    """If the third file of one append fails, the first two are undone as well, so that repeating it copies nothing."""
    segments = new(tmp_path, rotate_size=3 * ROW)
    add(segments, [100, 101])
    batch = rows(range(102, 108)) + row(108).replace(b",,,", b",%b,," % (b"7" * 200))
    with file_size_limit(3 * ROW), pytest.raises(DiskError):
        segments.append(batch, range(102, 109), DAY)
    assert names(segments) == ["BTCUSDT-trade-2026-07-14-100.csv"]
    assert content(segments) == rows([100, 101])
    ended = segments.append(batch, range(102, 109), DAY)
    assert [(s.first_id, s.last_id) for s in ended] == [(100, 102), (103, 105), (106, 107)]
    assert content(segments) == rows([100, 101]) + batch


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 64 KiB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_is_waited_out(small_disk: Path) -> None:
    """On a full disk nothing is lost or doubled: the append that failed succeeds when there is space, sealing too."""
    segments = new(small_disk, rotate_size=1 << 20, compression=Compression.NONE)
    segments.directory.mkdir(parents=True)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 45_056)
    next_id, refused = 100, 0
    while refused < 3:
        ids = range(next_id, next_id + 37)
        try:
            add(segments, ids)
        except DiskFullError:
            refused += 1
        else:
            next_id += 37
    assert content(segments) == rows(range(100, next_id))
    (ended,) = segments.end()
    with pytest.raises(DiskFullError) as caught:
        segments.seal(ended)
    assert caught.value.errno == errno.ENOSPC
    assert names(segments) == [ended.path.name]
    filler.unlink()
    add(segments, range(next_id, next_id + 37))
    sealed = segments.seal(ended)
    assert sealed.path.read_bytes() == rows(range(100, next_id))


def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    """A path that is no directory is a typed error with the path in it."""
    (tmp_path / "binance").write_text("in the way")
    with pytest.raises(DiskError, match="binance"):
        add(new(tmp_path), [100])


Meddle: TypeAlias = Callable[[Segments, Path], object]


def _move_file(segments: Segments, path: Path) -> None:
    path.rename(path.with_name("elsewhere.csv"))


def _replace_file(segments: Segments, path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.with_name("spare").write_bytes(b"")  # so that the inode is not given out again
    path.write_bytes(data)


def _move_directory(segments: Segments, path: Path) -> None:
    segments.directory.rename(segments.directory.with_name("moved"))


def _truncate(segments: Segments, path: Path) -> None:
    os.truncate(path, 10)


def _extend(segments: Segments, path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"hello\n")


@pytest.mark.parametrize(
    "meddle",
    [lambda _, path: path.unlink(), _move_file, _replace_file, _move_directory, _truncate, _extend],
    ids=["deleted", "moved", "replaced", "directory moved", "truncated", "extended"],
)
def test_meddling_is_noticed_at_the_next_append(feed: Segments, meddle: Meddle) -> None:
    """An open file that was taken away or changed is reported with its rows; the same append starts a new file."""
    add(feed, [100, 101])
    assert feed.open_segment is not None
    meddle(feed, feed.open_segment.path)
    with pytest.raises(FileLostError, match="must not be touched") as caught:
        add(feed, [102])
    assert (caught.value.first_id, caught.value.last_id) == (100, 101)
    add(feed, [102])
    assert feed.open_segment.path.read_bytes() == row(102)
    assert feed.sync() == 102


def test_a_deleted_file_is_not_called_safe(tmp_path: Path) -> None:
    """A sync that does not find the file any more claims nothing; the next append reports the loss."""
    segments = new(tmp_path)
    add(segments, [100])
    assert segments.sync() == 100
    add(segments, [101])
    assert segments.open_segment is not None
    segments.close()
    add(segments, [102])
    segments._pool.close(segments.open_segment.path)
    segments.open_segment.path.unlink()
    assert segments.sync() == 101
    with pytest.raises(FileLostError):
        add(segments, [103])


def test_meddling_is_noticed_at_the_end_of_the_segment(feed: Segments) -> None:
    """A file that is gone is not given out to be sealed."""
    add(feed, [100])
    assert feed.open_segment is not None
    feed.open_segment.path.unlink()
    with pytest.raises(FileLostError):
        feed.end()
    assert feed.end() == []


def test_a_file_in_the_way_is_not_touched(feed: Segments) -> None:
    """Where the name of a new segment is taken, nothing is overwritten and the rows are refused by name."""
    feed.directory.mkdir(parents=True)
    stranger = feed.directory / FEED.open_name(DAY, 100)
    stranger.write_text("mine")
    with pytest.raises(NameTakenError, match=re.escape(stranger.name)):
        add(feed, [100])
    assert stranger.read_text() == "mine"


@pytest.mark.parametrize("meddle", [_truncate, _extend])
def test_what_is_found_in_place_of_a_file_goes_to_quarantine(feed: Segments, tmp_path: Path, meddle: Meddle) -> None:
    """A changed file is kept, whole, and its name is free for the rows that are had again."""
    add(feed, [100, 101])
    assert feed.open_segment is not None
    path = feed.open_segment.path
    meddle(feed, path)
    changed = path.read_bytes()
    with pytest.raises(FileLostError):
        add(feed, [102])
    (kept,) = (tmp_path / "quarantine").rglob("*.csv*")
    assert kept.read_bytes() == changed
    add(feed, [100, 101])
    assert path.read_bytes() == rows([100, 101])


def test_a_tail_that_could_not_be_cut_is_never_appended_to(
    feed: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a failed append can neither be finished nor cut away, the rows go to another file, and each is kept once."""
    add(feed, [100, 101])
    write = os.write

    def write_half(descriptor: int, data: memoryview) -> int:
        if len(data) <= ROW // 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: len(data) - ROW // 2])

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(DiskFullError):
            add(feed, [102, 103])
    (ended,) = add(feed, [102, 103])
    assert (ended.last_id, ended.size) == (101, 2 * ROW)
    assert feed.open_segment is not None
    assert feed.open_segment.path.read_bytes() == rows([102, 103])
    feed.seal(ended)
    assert content(feed) == rows([100, 101, 102, 103])


# Descriptors


def test_the_descriptor_not_used_for_longest_is_given_up(tmp_path: Path) -> None:
    """A busy file keeps its descriptor, however early it was opened."""
    pool = OpenFiles(2)
    busy, idle, other = (tmp_path / name for name in ("busy", "idle", "other"))
    kept = pool.descriptor(busy, os.O_CREAT)
    pool.descriptor(idle, os.O_CREAT)
    assert pool.descriptor(busy) == kept
    pool.descriptor(other, os.O_CREAT)
    held = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert busy in held
    assert idle not in held
    for path in (busy, other):
        pool.close(path)


def test_where_descriptors_run_out_those_of_other_files_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that somebody else has used up costs descriptors held here, not rows."""
    pool = OpenFiles(100)
    paths = [tmp_path / str(number) for number in range(10)]
    for path in paths:
        pool.descriptor(path, os.O_CREAT)
    refused, real = iter(range(2)), os.open

    def refuse_twice(path: Path, flags: int, mode: int) -> int:
        if next(refused, None) is not None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse_twice)
        paths.append(tmp_path / "one more")
        pool.descriptor(paths[-1], os.O_CREAT)
    assert len(pool) == 9
    for path in paths:
        pool.close(path)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_feeds_share_few_descriptors(tmp_path: Path) -> None:
    """Fifty feeds are written in turns with eight descriptors; closed files are opened again where they ended."""
    pool = OpenFiles(8)
    before = open_descriptors()
    feeds = [
        Segments(tmp_path, FeedPath("binance", "trade", f"S{n}"), rotate_size=1 << 20, pool=pool) for n in range(50)
    ]
    for id_ in range(100, 110):
        for segments in feeds:
            segments.append(row(id_), [id_], DAY)
            assert len(pool) <= 8
        assert open_descriptors() <= before + 8
    for segments in feeds:
        assert segments.sync() == 109
        assert segments.open_segment is not None
        assert segments.open_segment.path.read_bytes() == rows(range(100, 110))
        segments.close()
    assert open_descriptors() == before


def test_the_limit_of_open_files_is_raised_and_shared(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one, what the process needs is left, and a small limit still works."""
    code = "import resource as r; from tickcollect.segments import *; "
    code += "print(open_file_limit(100), r.getrlimit(r.RLIMIT_NOFILE)[0])"
    for soft, hard, reserved in ((64, 512, 412), (64, 64, 8)):
        done = subprocess.run(
            ["sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$0" -c "$1"', sys.executable, code],
            capture_output=True,
            check=True,
            text=True,
        )
        assert done.stdout.split() == [str(reserved), str(hard)]
    assert open_file_limit(10) >= 8


def test_too_many_open_files_are_an_error_with_a_remedy(feed: Segments) -> None:
    """Without a descriptor left the append fails by name, and succeeds when there is one."""
    feed.directory.mkdir(parents=True)
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, old[1]))
    try:
        with pytest.raises(DiskError, match="ulimit -n"):
            add(feed, [100])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    add(feed, [100])


# Sync


class Calls:
    """What the system is asked to do to files, in order: `fsync NAME`, `rename NAME`, `unlink NAME`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        for call in ("fsync", "fdatasync", "rename", "unlink"):
            patch.setattr(os, call, self._noting(call, getattr(os, call)))

    def _noting(self, call: str, real: Callable[..., None]) -> Callable[..., None]:
        def noting(what: int | Path, *more: object, **options: object) -> None:
            path = Path(f"/proc/self/fd/{what}").readlink() if isinstance(what, int) else Path(what)
            self.made.append(f"{call} {path.name}")
            real(what, *more, **options)

        return noting


def test_a_new_file_is_entered_in_its_directory_for_good(feed: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sync of a file makes its name safe too, because a file without a name is lost with the power."""
    add(feed, [100])
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        feed.sync()
        add(feed, [101])
        feed.sync()
    name = FEED.open_name(DAY, 100)
    assert calls.made == [f"fdatasync {name}", "fsync BTCUSDT", f"fdatasync {name}"]


def test_a_csv_goes_only_when_its_packed_copy_is_safe(feed: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealing: the rows are safe, the packed bytes are safe, they have their name, the name is safe; then it goes."""
    add(feed, [100])
    (ended,) = feed.end()
    with monkeypatch.context() as patch:
        calls = Calls(patch)
        feed.seal(ended)
    csv, packed = FEED.open_name(DAY, 100), FEED.sealed_name(DAY, 100, 100, Compression.ZIP)
    assert calls.made == [
        f"fdatasync {csv}",
        "fsync BTCUSDT",
        f"fsync {packed}.unconfirmed",
        f"rename {packed}.unconfirmed",
        "fsync BTCUSDT",
        f"unlink {csv}",
    ]


def test_a_refused_close_is_a_failed_sync(feed: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system that tells lost writes when a file is closed is believed: the rows are had again."""
    add(feed, [100])
    feed.sync()
    add(feed, [101])
    close = os.close

    def refuse(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", refuse)
        (ended,) = feed.end()
    with pytest.raises(SyncFailedError) as caught:
        feed.seal(ended)
    assert (caught.value.first_id, caught.value.last_id) == (101, 101)
    assert caught.value.remaining is not None
    assert caught.value.remaining.last_id == 100


def test_sync_names_the_last_safe_row(feed: Segments) -> None:
    """Sync returns the last safe ID of the open segment, over rolls and ends."""
    assert feed.sync() is None
    add(feed, [100])
    assert feed.sync() == 100
    assert feed.sync() == 100
    add(feed, range(101, 125))
    assert feed.sync() == 124
    feed.end()
    assert feed.sync() is None


class FailingDisk:
    """fdatasync that fails with EIO on the calls named, and does its work on the others."""

    def __init__(self, *failing: int) -> None:
        self.calls = 0
        self.failing = failing
        self.real = os.fdatasync

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.real(descriptor)


def test_a_failed_sync_cuts_the_file_at_the_last_safe_row(
    feed: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After EIO the unsafe rows are reported and set aside, the safe ones can be sealed, and new rows go elsewhere."""
    disk = FailingDisk(2)
    monkeypatch.setattr(os, "fdatasync", disk)
    add(feed, [100, 101])
    assert feed.sync() == 101
    add(feed, [102, 103])
    with pytest.raises(SyncFailedError, match="dmesg") as caught:
        feed.sync()
    assert (caught.value.first_id, caught.value.last_id, caught.value.errno) == (102, 103, errno.EIO)
    assert feed.open_segment is None
    remaining = caught.value.remaining
    assert remaining is not None
    assert remaining.path.read_bytes() == rows([100, 101])
    (aside,) = (tmp_path / "quarantine").rglob("*.csv")
    assert rows([102, 103]) in aside.read_bytes()
    add(feed, [102, 103])
    assert feed.sync() == 103
    feed.seal(remaining)
    assert content(feed) == rows(range(100, 104))


def test_a_segment_without_a_safe_row_is_given_up(
    feed: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first sync of a file fails, nothing remains under its name, and the rows can be appended again."""
    monkeypatch.setattr(os, "fdatasync", FailingDisk(1))
    add(feed, [100, 101])
    with pytest.raises(SyncFailedError) as caught:
        feed.sync()
    assert caught.value.remaining is None
    assert (caught.value.first_id, caught.value.last_id) == (100, 101)
    add(feed, [100, 101])
    assert feed.sync() == 101
    assert content(feed) == rows([100, 101])


def test_an_ended_segment_is_synced_before_it_is_sealed(feed: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended between two syncs is synced by seal; if that fails, it is not sealed, and never trusted later."""
    monkeypatch.setattr(os, "fdatasync", FailingDisk(2))
    add(feed, [100])
    feed.sync()
    add(feed, [101])
    (ended,) = feed.end()
    with pytest.raises(SyncFailedError) as caught:
        feed.seal(ended)
    assert (caught.value.first_id, caught.value.last_id) == (101, 101)
    with pytest.raises(SealFailedError):
        feed.seal(ended)
    assert caught.value.remaining is not None
    feed.seal(caught.value.remaining)
    assert content(feed) == row(100)


# Seal


@pytest.mark.parametrize("compression", Compression)
def test_a_sealed_file_unpacks_to_the_rows(tmp_path: Path, compression: Compression) -> None:
    """Each packing gives one file under its final name, with the same rows, the same on every run; the CSV is gone."""
    packed = []
    for run in ("one", "two"):
        segments = new(tmp_path / run, compression=compression)
        add(segments, range(100, 105))
        (ended,) = segments.end()
        sealed = segments.seal(ended)
        assert names(segments) == [FEED.sealed_name(DAY, 100, 104, compression)]
        assert content(segments) == rows(range(100, 105))
        assert sealed.size == sealed.path.stat().st_size
        assert sealed.csv.sha256 == hashlib.sha256(rows(range(100, 105))).hexdigest()
        assert sealed.hours == [5] + [0] * 23
        assert sealed.path.stat().st_mode & 0o137 == 0
        packed.append(sealed.path.read_bytes())
    assert packed[0] == packed[1]


def test_common_tools_read_the_packed_files(tmp_path: Path) -> None:
    """The zip has one deflated member named as the CSV, of its day; gzip and zstd open with their own libraries."""
    sealed = {}
    for compression in Compression:
        segments = new(tmp_path / compression.value, compression=compression)
        add(segments, [100, 101])
        sealed[compression] = segments.seal(segments.end()[0]).path
    with zipfile.ZipFile(sealed[Compression.ZIP]) as archive:
        (member,) = archive.infolist()
        assert member.filename == "BTCUSDT-trade-2026-07-14-100-101.csv"
        assert member.date_time == (2026, 7, 14, 0, 0, 0)
        assert member.compress_type == zipfile.ZIP_DEFLATED
        assert archive.read(member) == rows([100, 101])
    assert gzip.decompress(sealed[Compression.GZIP].read_bytes()) == rows([100, 101])
    data = zstandard.ZstdDecompressor().decompressobj().decompress(sealed[Compression.ZSTD].read_bytes())
    assert data == rows([100, 101])


@pytest.mark.parametrize("compression", [Compression.ZIP, Compression.GZIP, Compression.ZSTD])
def test_no_damaged_byte_of_a_packed_file_is_read_as_other_rows(tmp_path: Path, compression: Compression) -> None:
    """Whichever byte of a sealed file is damaged: it unpacks to the same rows, or to none, or is called unreadable."""
    segments = new(tmp_path, compression=compression)
    add(segments, range(100, 105))
    path = segments.seal(segments.end()[0]).path
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damage in (0x01, 0x08, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ damage]) + whole[at + 1 :])
            try:
                with open_csv(path) as csv:
                    found = csv.read()
            except UNREADABLE:
                continue
            assert found in {rows(range(100, 105)), b""}, (at, damage)


def test_a_csv_that_was_changed_is_not_sealed(feed: Segments) -> None:
    """Rows or bytes missing, and NUL bytes in their place, are found before anything is renamed or deleted."""
    add(feed, [100, 101])
    (ended,) = feed.end()
    whole = ended.path.read_bytes()
    for damaged in (whole[:-1], row(100), whole[:-9] + b"\0" * 8 + b"\n", whole.replace(b"\n", b" ")):
        ended.path.write_bytes(damaged)
        with pytest.raises(SealFailedError, match="next start"):
            feed.seal(ended)
        assert names(feed) == [ended.path.name]
        assert ended.path.read_bytes() == damaged
    ended.path.write_bytes(whole)
    feed.seal(ended)


@pytest.mark.parametrize("compression", Compression)
def test_a_packed_copy_that_differs_is_not_trusted(
    tmp_path: Path, compression: Compression, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk returns another byte than was written, the CSV stays and the copy goes."""
    segments = new(tmp_path, compression=compression)
    add(segments, range(100, 105))
    (ended,) = segments.end()

    def damaging(path: Path, read: Reader) -> Digest | None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return read_back(path, read)

    monkeypatch.setattr("tickcollect.segments.read_back", damaging)
    with pytest.raises(SealFailedError, match="did not read back"):
        segments.seal(ended)
    assert names(segments) == [ended.path.name]
    monkeypatch.undo()
    segments.seal(ended)


def test_a_name_that_is_taken_is_never_overwritten(feed: Segments) -> None:
    """The same content under the final name completes the seal; other content is an error, and both files stay."""
    add(feed, [100])
    (ended,) = feed.end()
    csv = ended.path.read_bytes()
    sealed = feed.seal(ended)
    first = sealed.path.read_bytes()
    ended.path.write_bytes(csv)
    assert feed.seal(ended).path == sealed.path
    assert names(feed) == [sealed.path.name]
    assert sealed.path.read_bytes() == first
    ended.path.write_bytes(csv)
    for other in (b"no zip", b""):
        sealed.path.write_bytes(other)
        with pytest.raises(NameTakenError, match="Both were kept"):
            feed.seal(ended)
        assert sealed.path.read_bytes() == other
        assert ended.path.read_bytes() == csv


def test_numberings_of_one_day_may_have_the_same_ids(tmp_path: Path) -> None:
    """A file of an earlier numbering keeps its name; the next one with the same IDs is sealed in two parts."""
    feed = new(tmp_path)
    feed.recover()
    kept: list[bytes] = []
    for number in range(3):
        at_ms = DAY * DAY_MS + 1000 * number
        lines = rows([1, 2, 3, 4]).replace(b"%d,True" % (DAY * DAY_MS + 104), b"%d,True" % at_ms)
        if number:
            feed.renumber(1, 4, at_ms)
        feed.append(lines, [1, 2, 3, 4], DAY)
        (ended,) = feed.end()
        parts = [ended]
        if number:
            with pytest.raises(NameTakenError):
                feed.seal(ended)
            parts = feed.divide(ended)
        for part in parts:
            feed.seal(part)
        kept += lines.splitlines(keepends=True)
        assert [(part.first_id, part.last_id, part.rows) for part in parts] == [
            [(1, 4, 4)],
            [(1, 3, 3), (4, 4, 1)],
            [(1, 2, 2), (3, 4, 2)],
        ][number]
        assert sum(part.size for part in parts) == len(lines)
    assert sorted(content(feed).splitlines(keepends=True)) == sorted(kept)
    assert sorted(feed.sealed_ids()) == [(1, 2), (3, 4)]
    recovered = new(tmp_path).recover()
    assert (recovered.last_id, recovered.lines) == (4, [])


def test_a_name_taken_in_the_same_numbering_divides_nothing(feed: Segments) -> None:
    """Rows that another file has with the same IDs are not written a second time under another name."""
    feed.recover()
    add(feed, [100, 101])
    (ended,) = feed.end()
    csv = ended.path.read_bytes()
    feed.seal(ended).path.write_bytes(b"other")
    ended.path.write_bytes(csv)
    assert feed.divide(ended) == []
    assert ended.path.read_bytes() == csv


def test_a_leftover_of_an_earlier_seal_is_replaced(feed: Segments) -> None:
    """A half-written temporary does not hinder the next seal."""
    add(feed, [100])
    (ended,) = feed.end()
    temporary = feed.directory / (FEED.sealed_name(DAY, 100, 100, Compression.ZIP) + ".unconfirmed")
    temporary.write_bytes(b"half" * 10_000)
    sealed = feed.seal(ended)
    assert zipfile.ZipFile(sealed.path).testzip() is None
    assert names(feed) == [sealed.path.name]


def test_appends_syncs_and_seals_go_on_side_by_side(tmp_path: Path) -> None:
    """With one thread appending, one syncing and one sealing, all rows are sealed once and no descriptor is left."""
    pool = OpenFiles(1)
    segments = new(tmp_path, pool=pool, rotate_size=40 * ROW)
    other = Segments(tmp_path, FeedPath("binance", "trade", "ETHUSDT"), rotate_size=1 << 20, pool=pool)
    before = open_descriptors()
    waiting: Queue[Segment | None] = Queue()
    appended = threading.Event()

    def append() -> None:
        for start in range(100, 6100, 5):
            for ended in add(segments, range(start, start + 5)):
                waiting.put(ended)
            other.append(row(start // 5), [start // 5], DAY)  # takes the only descriptor each time
        for ended in segments.end():
            waiting.put(ended)
        waiting.put(None)
        appended.set()

    def sync() -> None:
        while not appended.is_set():
            segments.sync()
            other.sync()

    def seal() -> None:
        for segment in iter(waiting.get, None):
            segments.seal(segment)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(work) for work in (append, sync, seal)]:
            done.result()
    segments.sync()
    other.close()
    assert content(segments) == rows(range(100, 6100))
    assert {Path(name).suffix for name in names(segments)} == {".zip"}
    assert open_descriptors() == before


# Lock

HOLDER = """
import sys, time
from pathlib import Path
from tickcollect.segments import FeedPath, lock
held = lock(Path(sys.argv[1]), FeedPath("binance", "trade", "BTCUSDT"), "2026-11-20 07:00:00 UTC")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    yield child
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


def test_a_second_collector_of_a_feed_is_refused(tmp_path: Path) -> None:
    """It is told who holds the feed and since when; other feeds are free; a killed holder blocks nobody."""
    with holder(tmp_path) as child:
        with pytest.raises(InUseError) as caught:
            lock(tmp_path, FEED, "now")
        assert f"pid {child.pid}, started 2026-11-20 07:00:00 UTC" in str(caught.value)
        lock(tmp_path, FeedPath("binance", "trade", "ETHUSDT"), "now").release()
        child.kill()
        child.wait()
        with lock(tmp_path, FEED, "a new start"):
            assert f"pid {os.getpid()}, started a new start\n" == (FEED.directory(tmp_path) / ".lock").read_text()


def test_started_programs_do_not_hold_the_lock(tmp_path: Path) -> None:
    """A program started while the lock is held does not inherit it."""
    held = lock(tmp_path, FEED, "now")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    held.release()
    lock(tmp_path, FEED, "again").release()
    child.communicate(b"\n")
