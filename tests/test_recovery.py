"""Recovery: from any state of the files, exactly the rows that prove themselves survive, and nothing vanishes."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tickcollect import salvage
from tickcollect.feed_record import Record
from tickcollect.files import SegmentName
from tickcollect.segments import (
    Compression,
    DiskError,
    FeedPath,
    Numbering,
    OpenFiles,
    Recovered,
    Segment,
    Segments,
    open_csv,
    this_boot,
)

FEED = FeedPath("binance", "trade", "BTCUSDT")
DAY = 20_648  # 2026-07-14
DAY_MS = 86_400_000
NAME = FEED.open_name(DAY, 100)


def row(id_: int, day: int = DAY, extra: str = "") -> bytes:
    time_ms = day * DAY_MS + 50_000_000 + id_
    return f"trade,{time_ms + 1},BTCUSDT,{id_},64120.01000000,0.00150000,,,{time_ms},True{extra}\n".encode()


def rows(first: int, last: int, day: int = DAY) -> bytes:
    return b"".join(row(id_, day) for id_ in range(first, last + 1))


def new(
    root: Path, numbering: Numbering = Numbering.BY_ONE, extra_columns: int = 0, rotate_size: int = 1 << 30
) -> Segments:
    return Segments(
        root,
        FEED,
        rotate_size=rotate_size,
        pool=OpenFiles(4),
        numbering=numbering,
        extra_columns=tuple(f"x{n}" for n in range(extra_columns)),
    )


def put(root: Path, name: str, data: bytes) -> Path:
    path = FEED.directory(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def kept(recovered: Recovered) -> list[tuple[int, int]]:
    """Return first and last ID of the segments in CSV files; the one that goes on stands last."""
    segments = [*recovered.finished, *([] if recovered.open is None else [recovered.open])]
    for segment in segments:
        assert segment.path.stat().st_size == segment.size
        assert segment.path.read_bytes().count(b"\n") == segment.rows
        assert segment.path.name == FEED.open_name(segment.day, segment.first_id)
    return [(segment.first_id, segment.last_id) for segment in segments]


def csv_rows(root: Path) -> list[bytes]:
    """Return the lines of the feed's CSV files, by day and first ID."""
    files = sorted((name.day, name.first_id, path) for name, path in named(root) if name.open)
    return [line for _, _, path in files for line in path.read_bytes().splitlines(keepends=True)]


def quarantined(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((root / "quarantine").rglob("*.csv")))


# Damaged files

JOINED = rows(100, 102)[:-1] + b"," + rows(103, 105)
BY_ONE: dict[str, tuple[bytes, list[tuple[int, int]]]] = {
    "whole": (rows(100, 105), [(100, 105)]),
    "empty": (b"", []),
    "only a torn line": (b"trade,17", []),
    "torn last line": (rows(100, 104) + row(105)[:40], [(100, 104)]),
    "last newline missing": (rows(100, 105)[:-1], [(100, 104)]),
    "NUL bytes behind the last row": (rows(100, 105) + bytes(5000), [(100, 105)]),
    "NUL bytes for the last rows": (rows(100, 103) + bytes(2 * len(row(104))), [(100, 103)]),
    "NUL bytes only": (bytes(4096), []),
    "NUL bytes in the middle": (rows(100, 101) + bytes(len(row(102))) + rows(103, 105), [(100, 101), (104, 105)]),
    "NUL bytes and a newline in the middle": (
        rows(100, 101) + bytes(80) + b"\n" + rows(103, 105),
        [(100, 101), (103, 105)],
    ),
    "two rows without a newline between": (rows(100, 101)[:-1] + rows(102, 105), [(100, 100), (103, 105)]),
    "a comma instead of a newline": (JOINED, [(100, 101), (104, 105)]),
    "a carriage return": (rows(100, 101)[:-1] + b"\r\n" + rows(102, 105), [(100, 100), (102, 105)]),
    "a bad byte in the middle": (
        rows(100, 101) + row(102).replace(b"BTC", b"B\xffC") + rows(103, 105),
        [(100, 101), (103, 105)],
    ),
    "a line in between": (rows(100, 102) + b"hello\n" + rows(103, 105), [(100, 105)]),
    "an empty line in between": (rows(100, 102) + b"\n" + rows(103, 105), [(100, 105)]),
    "the first row damaged": (b"X" + rows(100, 105), [(101, 105)]),
    "the first rows missing": (rows(103, 105), [(104, 105)]),
    "rows missing in the middle": (rows(100, 102) + rows(105, 107), [(100, 101), (106, 107)]),
    "a lonely row behind a hole": (rows(100, 103) + row(105), [(100, 103)]),
    "a lonely row behind a damaged one": (rows(100, 103) + b"?" + rows(104, 105), [(100, 103), (105, 105)]),
    "another symbol": (
        rows(100, 101) + row(102).replace(b"BTCUSDT", b"ETHUSDT") + rows(103, 105),
        [(100, 101), (103, 105)],
    ),
    "another stream": (
        rows(100, 101) + row(102).replace(b"trade", b"aggTrade") + rows(103, 105),
        [(100, 101), (103, 105)],
    ),
    "another day": (rows(100, 103) + rows(104, 105, DAY + 1), [(100, 103)]),
    "a time in seconds": (
        rows(100, 103) + row(104).replace(b"104,True", b",True") + row(105),
        [(100, 103), (105, 105)],
    ),
    "an ID too high": (rows(100, 102) + row(902) + rows(104, 105), [(100, 102), (104, 105)]),
    "an ID too low": (rows(100, 102) + row(3) + rows(104, 105), [(100, 102), (104, 105)]),
    "an ID with a zero before it": (
        rows(100, 102) + row(103).replace(b",103,", b",0103,") + rows(104, 105),
        [(100, 102), (104, 105)],
    ),
    "an ID without end": (
        rows(100, 102) + row(103).replace(b",103,", b",%b," % (b"1" * 5000)) + rows(104, 105),
        [(100, 102), (104, 105)],
    ),
    "rows twice": (rows(100, 103) + rows(102, 105), [(100, 105)]),
    "two halves of rows": (rows(100, 103) + row(104)[:50] + row(109)[50:] + rows(110, 111), [(100, 103), (111, 111)]),
    "two halves, the second with the ID": (
        rows(100, 103) + row(104)[:8] + row(109)[8:] + row(110),
        [(100, 102), (110, 110)],
    ),
    "a row twice": (rows(100, 103) + row(103) + rows(104, 105), [(100, 102), (104, 105)]),
    "an earlier part at the end": (rows(100, 105) + rows(100, 102), [(100, 104)]),
    "a column too many": (rows(100, 102) + row(103, extra=",x") + rows(104, 105), [(100, 102), (104, 105)]),
    "junk longer than a block": (rows(100, 102) + b"\xaa" * (3 << 20) + b"\n" + rows(103, 105), [(100, 105)]),
    "nothing but another file": (b"PK\x03\x04" + bytes(range(256)) * 20, []),
}

RISING: dict[str, tuple[bytes, list[tuple[int, int]]]] = {
    "whole": (rows(100, 105), [(100, 105)]),
    "holes of placeholders": (rows(100, 101) + rows(104, 104) + rows(109, 110), [(100, 110)]),
    "torn last line": (rows(100, 104) + row(105)[:40], [(100, 104)]),
    "a bad line may have been a row": (rows(100, 101) + b"?" + rows(102, 105), [(100, 101), (103, 105)]),
    "a line in between": (rows(100, 102) + b"hello\n" + rows(103, 105), [(100, 102), (103, 105)]),
    "an ID too high": (rows(100, 102) + row(902) + rows(104, 107), [(100, 102), (105, 107)]),
    "an ID too low": (rows(100, 102) + row(3) + rows(104, 105), [(100, 102), (104, 105)]),
    "rows twice": (rows(100, 103) + rows(102, 105), [(100, 103), (104, 105)]),
    "the first ID too high": (row(900) + rows(101, 105), [(101, 105)]),
    "the first row damaged": (b"X" + rows(100, 105), [(101, 105)]),
}

CASES = [(Numbering.BY_ONE, name, *case) for name, case in BY_ONE.items()]
CASES += [(Numbering.RISING, name, *case) for name, case in RISING.items()]


@pytest.mark.parametrize(
    ("numbering", "data", "expected"),
    [(numbering, data, expected) for numbering, _, data, expected in CASES],
    ids=[f"{numbering.value}: {name}" for numbering, name, _, _ in CASES],
)
def test_exactly_the_rows_that_prove_themselves_survive(
    tmp_path: Path, numbering: Numbering, data: bytes, expected: list[tuple[int, int]]
) -> None:
    """Each damage costs the rows that it makes doubtful, no other; what is cut is in quarantine and told in words."""
    put(tmp_path, NAME, data)
    segments = new(tmp_path, numbering)
    recovered = segments.recover()
    lines = csv_rows(tmp_path)
    assert kept(recovered) == expected
    assert set(lines) <= set(data.splitlines(keepends=True))
    assert (recovered.open is not None) == bool(expected)
    assert recovered.last_id == (expected[-1][1] if expected else 99)  # the name tells that 100 existed
    assert recovered.last_time == (DAY * DAY_MS + 50_000_000 + expected[-1][1] if expected else None)
    missing = len(data) - sum(map(len, lines))
    assert recovered.quarantined_bytes == missing
    assert len(quarantined(tmp_path)) >= missing
    untouched = segments.directory / NAME
    assert (recovered.lines == []) == (untouched.exists() and untouched.read_bytes() == data)
    again = new(tmp_path, numbering).recover()
    assert (kept(again), again.quarantined_bytes) == (expected, 0)
    next_id = (recovered.last_id or 99) + 1
    segments.append(row(next_id), [next_id], DAY)
    assert csv_rows(tmp_path) == [*lines, row(next_id)]


@pytest.mark.parametrize("name", ["rows missing in the middle", "the first rows missing", "a bad byte in the middle"])
def test_holes_that_damage_made_are_named(tmp_path: Path, name: str) -> None:
    """The IDs that the files no longer hold are given out as ranges, to be filled."""
    put(tmp_path, NAME, BY_ONE[name][0])
    expected = {"rows missing in the middle": (102, 105), "the first rows missing": (100, 103)}.get(name, (102, 102))
    assert new(tmp_path).recover().holes == [expected]


@pytest.mark.parametrize("ending", [".csv", ".zip"])
def test_a_late_row_inside_the_name_of_another_file_is_kept(tmp_path: Path, ending: str) -> None:
    """Where IDs have holes a file's name spans IDs that it does not hold: a row that came late is no copy of them."""
    segments = new(tmp_path, Numbering.RISING)
    segments.append(rows(100, 104) + rows(106, 110), [*range(100, 105), *range(106, 111)], DAY)
    (ended,) = segments.end()
    if ending == ".zip":
        segments.seal(ended)
    put(tmp_path, FEED.open_name(DAY, 105), row(105))
    put(tmp_path, FEED.open_name(DAY, 107), row(107))
    recovered = new(tmp_path, Numbering.RISING).recover()
    assert (105, 105) in kept(recovered)
    assert (107, 107) not in kept(recovered)
    assert row(107) in quarantined(tmp_path)
    assert row(105) not in quarantined(tmp_path)


@pytest.mark.parametrize("numbering", Numbering)
@given(cut=st.integers(0, 3 * len(row(100))))
def test_a_file_cut_anywhere_keeps_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, numbering: Numbering, cut: int
) -> None:
    """A file of three rows, cut at any byte, keeps the rows before the cut."""
    root = tmp_path_factory.mktemp("data")
    data = rows(100, 102)[:cut]
    put(root, NAME, data)
    new(root, numbering).recover()
    assert b"".join(csv_rows(root)) == data[: data.rfind(b"\n") + 1]


UNPROVABLE = {name: position for position, name in enumerate(("e", "E", "s", "t", "p", "q", "b", "a", "T", "m"))}
UNPROVABLE = {name: UNPROVABLE[name] for name in ("E", "p", "q", "b", "a", "T")}


@pytest.mark.parametrize("numbering", Numbering)
@settings(max_examples=400)
@given(at=st.integers(0, 3 * len(row(100)) - 1), byte=st.integers(0, 255))
def test_no_byte_changes_a_row_silently(
    tmp_path_factory: pytest.TempPathFactory, numbering: Numbering, at: int, byte: int
) -> None:
    """Whatever one byte becomes, the rows that survive are the original ones, but for what no rule can see.

    That is a digit or the decimal point of a price or quantity, a digit of a time or order ID, all in the same form,
    and an ID that still rises where IDs may have holes.
    """
    root = tmp_path_factory.mktemp("data")
    data = bytearray(rows(100, 102))
    data[at] = byte
    put(root, NAME, bytes(data))
    new(root, numbering).recover()
    originals = {line.split(b",")[3]: line for line in rows(100, 102).splitlines(keepends=True)}
    survivors = csv_rows(root)
    assert len(survivors) >= 1
    for line in survivors:
        columns = line.split(b",")
        if numbering is Numbering.RISING and columns[3] not in originals:
            continue
        assert len(line) == len(row(100))
        differing = [
            n for n, (a, b) in enumerate(zip(columns, originals[columns[3]].split(b","), strict=True)) if a != b
        ]
        assert set(differing) <= set(UNPROVABLE.values())


def test_every_byte_of_an_id_is_checked(tmp_path: Path) -> None:
    """Where IDs rise by one, no digit of any ID can change without the row being cut, and only that row."""
    data = rows(100, 102)
    for n in range(3):
        start = n * len(row(100)) + row(100).index(b",100,") + 1
        for at in range(start, start + 3):
            for digit in b"0123456789":
                if data[at] == digit:
                    continue
                root = tmp_path / f"{at}-{digit}"
                put(root, NAME, data[:at] + bytes([digit]) + data[at + 1 :])
                new(root).recover()
                assert csv_rows(root) == [row(id_) for id_ in (100, 101, 102) if id_ != 100 + n]


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_of_a_large_file(tmp_path: Path, seed: int) -> None:
    """Several damages across the blocks of a file of 3 MB: every surviving row is original, in order, and once."""
    import random

    chance = random.Random(seed)
    whole = rows(100, 40_000)
    data = bytearray(whole)
    for _ in range(chance.randrange(1, 12)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at : at + chance.randrange(1, 9000)] = bytes(chance.randrange(1, 9000))
            case 1:
                del data[at : at + chance.randrange(200, 9000)]  # more than a row: less may only shorten a number
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(1, 9000))
            case _:
                data[at:at] = data[at : at + chance.randrange(1, 9000)]
    put(tmp_path, NAME, bytes(data))
    recovered = new(tmp_path).recover()
    lines = csv_rows(tmp_path)
    ids = [int(line.split(b",")[3]) for line in lines]
    assert lines == [row(id_) for id_ in ids]
    assert ids == sorted(set(ids))
    assert len(ids) > 35_000 - 12 * 250
    missing = set(range(100, ids[-1] + 1)) - set(ids)
    assert missing == {id_ for first, last in recovered.holes for id_ in range(first, last + 1)}


def test_microseconds_and_history_rows_are_rows(tmp_path: Path) -> None:
    """Times in microseconds, rows of the exchange's history without E, and order IDs are as good as any."""
    day = DAY * DAY_MS
    data = (
        b"trade,%d,BTCUSDT,100,64120.01000000,0.00150000,,,%d123,True\n"
        b"trade,,BTCUSDT,101,64120,1,,,%d,False\n"
        b"trade,%d,BTCUSDT,102,64120.01,1.5,8100000001,8100000002,%d999,False\n"
    ) % (day, day, day, day, day + DAY_MS - 1)
    put(tmp_path, NAME, data)
    recovered = new(tmp_path).recover()
    assert (kept(recovered), recovered.lines) == ([(100, 102)], [])
    assert recovered.last_time == (day + DAY_MS - 1) * 1000 + 999
    data = data.replace(b"%d999" % (day + DAY_MS - 1), b"%d000" % (day + DAY_MS))
    put(tmp_path, NAME, data)
    assert kept(new(tmp_path).recover()) == [(100, 101)]


def test_aggregates_and_symbols_of_other_scripts(tmp_path: Path) -> None:
    """The rules hold for aggTrade, for IDs beyond 2**53 and for a symbol in Chinese characters."""
    feed = FeedPath("binance-futures", "aggTrade", "币安人生USDT")
    path = feed.directory(tmp_path) / feed.open_name(DAY, 2**62)
    path.parent.mkdir(parents=True)
    lines = [f"aggTrade,,币安人生USDT,{2**62 + n},1.5,2,{7 + n},-1,{DAY * DAY_MS},False\n".encode() for n in range(3)]
    path.write_bytes(b"".join(lines) + lines[0][:9])
    recovered = Segments(tmp_path, feed, rotate_size=1000, pool=OpenFiles(1)).recover()
    assert (recovered.last_id, recovered.rows, recovered.quarantined_bytes) == (2**62 + 2, 3, 9)


def test_extra_columns_are_kept_and_a_change_of_columns_ends_the_file(tmp_path: Path) -> None:
    """Rows with other columns than those asked for now are whole, but no rows are appended behind them."""
    data = b"".join(row(id_, extra=f",{id_}000,MARKET") for id_ in range(100, 104))
    put(tmp_path, NAME, data + row(104))
    same, other = new(tmp_path / "same", extra_columns=2), new(tmp_path, extra_columns=1)
    put(tmp_path / "same", NAME, data)
    recovered = other.recover()
    assert recovered.open is None
    assert (kept(recovered), recovered.last_id, recovered.quarantined_bytes) == ([(100, 103)], 103, len(row(104)))
    assert kept(same.recover()) == [(100, 103)]
    assert same.open_segment is not None


# Several files


def test_only_the_newest_file_goes_on(tmp_path: Path) -> None:
    """Of several open files the newest is continued, the others wait to be sealed."""
    put(tmp_path, FEED.open_name(DAY - 1, 50), rows(50, 99, DAY - 1))
    put(tmp_path, NAME, rows(100, 105))
    put(tmp_path, FEED.open_name(DAY, 200), rows(200, 205))
    recovered = new(tmp_path).recover()
    assert kept(recovered) == [(50, 99), (100, 105), (200, 205)]
    assert recovered.open is not None
    assert recovered.holes == []


def test_a_file_older_than_a_sealed_one_does_not_go_on(tmp_path: Path) -> None:
    """What a background repair left open is sealed; the newest row is the sealed file's."""
    segments = new(tmp_path)
    segments.append(rows(200, 205), range(200, 206), DAY)
    segments.seal(segments.end()[0])
    put(tmp_path, NAME, rows(100, 105))
    recovered = new(tmp_path).recover()
    assert recovered.open is None
    assert kept(recovered) == [(100, 105)]
    assert (recovered.last_id, recovered.last_time) == (205, DAY * DAY_MS + 50_000_205)


def test_rows_that_are_sealed_are_not_kept_twice(tmp_path: Path) -> None:
    """Of a CSV that overlaps a sealed file of its day, the new rows become a segment, the others go to quarantine."""
    segments = new(tmp_path)
    segments.append(rows(103, 107), range(103, 108), DAY)
    segments.seal(segments.end()[0])
    put(tmp_path, NAME, rows(100, 110))
    recovered = new(tmp_path).recover()
    assert kept(recovered) == [(100, 102), (108, 110)]
    assert recovered.holes == []
    assert rows(103, 107) in quarantined(tmp_path)


def test_the_same_ids_on_another_day_are_other_rows(tmp_path: Path) -> None:
    """A numbering that began anew is not mistaken for a copy of the days before."""
    segments = new(tmp_path)
    segments.append(rows(1, 200, DAY - 1), range(1, 201), DAY - 1)
    segments.seal(segments.end()[0])
    put(tmp_path, NAME, rows(100, 105))
    recovered = new(tmp_path).recover()
    assert (kept(recovered), recovered.last_id, recovered.quarantined_bytes) == ([(100, 105)], 105, 0)


def test_overlapping_open_files_are_separated(tmp_path: Path) -> None:
    """Rows that an older open file holds are cut from the newer one."""
    put(tmp_path, NAME, rows(100, 105))
    put(tmp_path, FEED.open_name(DAY, 103), rows(103, 109))
    assert kept(new(tmp_path).recover()) == [(100, 105), (106, 109)]
    assert csv_rows(tmp_path) == rows(100, 109).splitlines(keepends=True)


def test_what_is_not_ours_is_left_alone_and_named(tmp_path: Path) -> None:
    """Foreign files, directories and links stay as they are."""
    put(tmp_path, NAME, rows(100, 101))
    strangers = [
        put(tmp_path, name, b"mine") for name in ("notes.txt", "ETHUSDT-trade-2026-07-14-1.csv", "x.unconfirmed")
    ]
    (FEED.directory(tmp_path) / "old").mkdir()
    (FEED.directory(tmp_path) / FEED.open_name(DAY, 1)).symlink_to(strangers[0])
    recovered = new(tmp_path).recover()
    assert {path.name for path in recovered.foreign} == {
        *(path.name for path in strangers),
        "old",
        FEED.open_name(DAY, 1),
    }
    assert all(path.read_bytes() == b"mine" for path in strangers)
    assert kept(recovered) == [(100, 101)]


def test_an_empty_or_missing_directory_is_a_beginning(tmp_path: Path) -> None:
    """A new feed has nothing to recover."""
    recovered = new(tmp_path).recover()
    assert recovered == Recovered(None, [], None, None, [], [], [], 0, 0, Record())


def test_an_unreadable_newest_file_is_told(tmp_path: Path) -> None:
    """A damaged sealed file is named, left alone, and its ID still counts."""
    path = put(tmp_path, FEED.sealed_name(DAY, 100, 105, Compression.ZIP), b"no zip")
    recovered = new(tmp_path).recover()
    assert (recovered.last_id, recovered.last_time) == (105, None)
    assert path.name in recovered.lines[0]
    assert path.read_bytes() == b"no zip"


# Numberings, and rows with a wrong time

AHEAD = DAY + 30
NOW_NS = (0, (DAY * 86_400 + 86_000) * 10**9)
"""No file is of this boot, and it is the evening of the day."""


def seal(root: Path, first: int, last: int, day: int = DAY) -> None:
    """Leave a sealed file."""
    segments = new(root)
    segments.append(rows(first, last, day), range(first, last + 1), day)
    segments.seal(segments.end()[0])


def later_rows(first: int, last: int, by_ms: int = 1_000_000, day: int = DAY) -> bytes:
    """Return rows that were traded later in the day than their IDs tell."""
    found = []
    for id_ in range(first, last + 1):
        at = day * DAY_MS + 50_000_000 + by_ms + id_
        found.append(f"trade,{at + 1},BTCUSDT,{id_},64120.01000000,0.00150000,,,{at},True\n".encode())
    return b"".join(found)


def began_anew(root: Path) -> Segments:
    """Leave IDs 4000 to 4099 sealed, a new numbering with 1 to 50 open, and where it began on record."""
    seal(root, 4000, 4099)
    segments = new(root)
    segments.recover(NOW_NS)
    first_time = DAY * DAY_MS + 50_000_000 + 1_000_000 + 1
    assert segments.renumber(1, 4099, first_time) == []
    segments.append(later_rows(1, 50), range(1, 51), DAY)
    return segments


def test_a_file_dated_ahead_is_not_the_newest(tmp_path: Path) -> None:
    """One trade with a wrong time makes a file of a later day; start after start the highest ID is the newest."""
    seal(tmp_path, 100, 149)
    seal(tmp_path, 150, 150, AHEAD)
    put(tmp_path, FEED.open_name(DAY, 151), rows(151, 160))
    for last in (160, 161, 162):
        segments = new(tmp_path)
        recovered = segments.recover(NOW_NS)
        assert (recovered.last_id, recovered.restart) == (last, None)
        assert segments.open_segment is not None
        segments.append(row(last + 1), [last + 1], DAY)
        segments.close()
    assert csv_rows(tmp_path) == rows(151, 163).splitlines(keepends=True)


@pytest.mark.parametrize("kind", ["kill", "nothing of it written yet", "sealed"])
def test_a_new_numbering_of_the_same_day_goes_on(tmp_path: Path, kind: str) -> None:
    """After a restart of the numbering each start goes on with the new one, whose rows are never taken for copies."""
    segments = began_anew(tmp_path)
    if kind == "sealed":
        segments.seal(segments.end()[0])
    elif kind == "nothing of it written yet":
        (FEED.directory(tmp_path) / FEED.open_name(DAY, 1)).unlink()
    for _ in range(2):
        again = new(tmp_path)
        recovered = again.recover(NOW_NS)
        assert recovered.restart is not None
        assert (recovered.restart.first_id, recovered.restart.last_id) == (1, 4099)
        assert recovered.last_id == (0 if kind.startswith("nothing") else 50)
        assert recovered.holes == []
        assert again.sealed_ids() == ([(1, 50)] if kind == "sealed" else [])


def test_numberings_that_overlap_on_one_day_are_kept_apart(tmp_path: Path) -> None:
    """The rows of a new numbering are kept although files of the one before hold the same IDs of the same day."""
    seal(tmp_path, 1, 20)
    segments = new(tmp_path)
    segments.recover(NOW_NS)
    segments.append(rows(21, 40), range(21, 41), DAY)
    ended = segments.renumber(5, 40, DAY * DAY_MS + 51_000_005)
    segments.append(later_rows(5, 30), range(5, 31), DAY)
    assert [segment.path.name for segment in ended] == [FEED.open_name(DAY, 21)]
    recovered = new(tmp_path).recover(NOW_NS)
    assert (recovered.last_id, recovered.quarantined_bytes, recovered.foreign) == (30, 0, [])
    assert kept(recovered) == [(21, 40), (5, 30)]
    assert csv_rows(tmp_path) == (later_rows(5, 30) + rows(21, 40)).splitlines(keepends=True)


def test_a_new_numbering_that_begins_with_the_same_id(tmp_path: Path) -> None:
    """A sealed file of the numbering before with the same first ID is no copy of the new one's file."""
    seal(tmp_path, 1, 20)
    segments = new(tmp_path)
    segments.recover(NOW_NS)
    segments.renumber(1, 20, DAY * DAY_MS + 51_000_001)
    segments.append(later_rows(1, 3), range(1, 4), DAY)
    again = new(tmp_path)
    recovered = again.recover(NOW_NS)
    assert (kept(recovered), recovered.last_id, recovered.foreign) == ([(1, 3)], 3, [])
    again.append(later_rows(4, 6), range(4, 7), DAY)
    again.seal(again.end()[0])
    assert sorted(path.name for path in FEED.directory(tmp_path).glob("*.zip")) == [
        "BTCUSDT-trade-2026-07-14-1-20.csv.zip",
        "BTCUSDT-trade-2026-07-14-1-6.csv.zip",
    ]
    assert new(tmp_path).recover(NOW_NS).last_id == 6


def test_a_second_restart_of_a_numbering(tmp_path: Path) -> None:
    """Of three numberings the last goes on, with files of the one before still open and one dated ahead."""
    segments = began_anew(tmp_path)
    segments.append(rows(51, 51, AHEAD), [51], AHEAD)
    segments.append(later_rows(52, 60), range(52, 61), DAY)
    segments.renumber(700, 60, DAY * DAY_MS + 50_000_000 + 2_000_000 + 700)
    segments.append(later_rows(700, 705, 2_000_000), range(700, 706), DAY)
    for _ in range(2):
        recovered = new(tmp_path).recover(NOW_NS)
        assert recovered.last_id == 705
        assert sorted(kept(recovered)) == [(1, 50), (51, 51), (52, 60), (700, 705)]


@pytest.mark.parametrize("lost", ["deleted", "damaged"])
def test_without_a_record_the_trade_times_tell_a_new_numbering(tmp_path: Path, lost: str) -> None:
    """Rows that were all traded after the highest ID, and continue nothing, are of a new numbering; it is said so."""
    began_anew(tmp_path)
    record = tmp_path / "binance" / "trade" / ".BTCUSDT.json"
    record.unlink() if lost == "deleted" else record.write_bytes(b'{"restarts":[{"fi')
    for start in range(2):
        recovered = new(tmp_path).recover(NOW_NS)
        assert recovered.last_id == 50
        assert any("new numbering" in line for line in recovered.lines) == (start == 0)


@pytest.mark.parametrize("ahead", [DAY, DAY + 1, AHEAD])
def test_rows_with_a_wrong_time_are_no_new_numbering(tmp_path: Path, ahead: int) -> None:
    """A file between its neighbours by ID, dated or timed ahead of them, does not make their numbering an old one."""
    seal(tmp_path, 100, 149)
    segments = new(tmp_path)
    early = later_rows(150, 151, 9_000_000, ahead)
    segments.append(early, [150, 151], ahead)
    segments.seal(segments.end()[0])
    seal(tmp_path, 152, 160)
    recovered = new(tmp_path).recover(NOW_NS)
    assert (recovered.last_id, recovered.restart) == (160, None)


def test_a_killed_restart_of_a_numbering_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the disk refuses changes nothing: the same call succeeds later, and ends the same file."""
    segments = new(tmp_path)
    segments.append(rows(100, 105), range(100, 106), DAY)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DiskError):
            segments.renumber(1, 105, DAY * DAY_MS + 51_000_000)
    assert new(tmp_path).recover(NOW_NS).last_id == 105
    assert [segment.last_id for segment in segments.renumber(1, 105, DAY * DAY_MS + 51_000_000)] == [105]
    assert new(tmp_path).recover(NOW_NS).last_id == 0


# The names of extra columns


def with_columns(root: Path, *names: str) -> Segments:
    return Segments(root, FEED, rotate_size=1 << 30, pool=OpenFiles(4), extra_columns=names)


def test_the_names_of_extra_columns_outlive_the_configuration(tmp_path: Path) -> None:
    """A file keeps the names that it was begun with; another name, though no other number, begins another file."""
    segments = with_columns(tmp_path, "X")
    segments.recover(NOW_NS)
    segments.append(row(100, extra=",MARKET"), [100], DAY)
    segments.close()
    recovered = with_columns(tmp_path, "st").recover(NOW_NS)
    assert recovered.open is None
    assert [segment.extra_columns for segment in recovered.finished] == [("X",)]
    for names in (("st",), ("st", "X"), ()):  # it stays unsealed over several starts
        recovered = with_columns(tmp_path, *names).recover(NOW_NS)
        assert [segment.extra_columns for segment in recovered.finished] == [("X",)]
    recovered = with_columns(tmp_path, "X").recover(NOW_NS)
    assert recovered.open is not None
    assert recovered.open.extra_columns == ("X",)


def test_names_that_nobody_kept_are_not_made_up(tmp_path: Path) -> None:
    """The columns of a file that was begun before names were kept are not known."""
    put(tmp_path, NAME, row(100, extra=",MARKET"))
    recovered = with_columns(tmp_path, "X").recover(NOW_NS)
    assert recovered.open is not None
    assert recovered.open.extra_columns is None


# Half-way states

Root: TypeAlias = Path


def sealed_file(root: Path, scratch: Path, ids: Sequence[int] = range(100, 106)) -> Path:
    """Put the sealed file of these rows below `root`."""
    segments = new(scratch)
    segments.append(rows(ids[0], ids[-1]), ids, DAY)
    sealed = segments.seal(segments.end()[0]).path
    return put(root, sealed.name, sealed.read_bytes())


def _torn_temporary(root: Path, scratch: Path) -> None:
    data = sealed_file(scratch / "x", scratch).read_bytes()
    put(root, FEED.sealed_name(DAY, 100, 105, Compression.ZIP) + ".unconfirmed", data[: len(data) // 2])
    put(root, NAME, rows(100, 105))


def _whole_temporary(root: Path, scratch: Path) -> None:
    data = sealed_file(scratch / "x", scratch).read_bytes()
    put(root, FEED.sealed_name(DAY, 100, 105, Compression.ZIP) + ".unconfirmed", data)
    put(root, NAME, rows(100, 105))


def _empty_temporary(root: Path, scratch: Path) -> None:
    put(root, FEED.sealed_name(DAY, 100, 105, Compression.ZIP) + ".unconfirmed", b"")
    put(root, NAME, rows(100, 105))


def _renamed_not_deleted(root: Path, scratch: Path) -> None:
    sealed_file(root, scratch)
    put(root, NAME, rows(100, 105))


def _all_done(root: Path, scratch: Path) -> None:
    sealed_file(root, scratch)


def _file_created_not_written(root: Path, scratch: Path) -> None:
    put(root, NAME, rows(100, 105))
    put(root, FEED.open_name(DAY, 106), b"")


def _split_copied_not_renamed(root: Path, scratch: Path) -> None:
    put(root, NAME, rows(100, 102) + b"?\n" + rows(103, 105))
    put(root, FEED.open_name(DAY, 103) + ".unconfirmed", row(103))


HALFWAY: dict[str, Callable[[Path, Path], None]] = {
    "packing": _torn_temporary,
    "packed": _whole_temporary,
    "begun to pack": _empty_temporary,
    "renamed": _renamed_not_deleted,
    "deleted": _all_done,
    "rolled": _file_created_not_written,
    "separating": _split_copied_not_renamed,
}


@pytest.mark.parametrize("state", HALFWAY)
def test_every_halfway_state_is_finished_or_undone(tmp_path: Path, state: str) -> None:
    """After a crash at any step each row is in exactly one file, and only the CSV or its sealed file is left."""
    HALFWAY[state](tmp_path / "data", tmp_path / "scratch")
    segments = new(tmp_path / "data")
    recovered = segments.recover()
    assert recovered.last_id == 105
    for segment in [*recovered.finished, *segments.end()]:
        segments.seal(segment)
    assert [path.suffix for path in segments.directory.iterdir()] == [".zip"]
    with open_csv(next(segments.directory.iterdir())) as csv:
        assert csv.read() == rows(100, 105)


def test_a_split_that_was_interrupted_before_its_end_is_repeated(tmp_path: Path) -> None:
    """If the second part was already a file of its own, but the old file not yet cut, nothing is doubled."""
    put(tmp_path, NAME, rows(100, 101) + b"?" + rows(102, 105))
    put(tmp_path, FEED.open_name(DAY, 103), rows(103, 105))
    recovered = new(tmp_path).recover()
    assert kept(recovered) == [(100, 101), (103, 105)]
    assert csv_rows(tmp_path) == (rows(100, 101) + rows(103, 105)).splitlines(keepends=True)


def test_a_split_never_overwrites_another_file(tmp_path: Path) -> None:
    """If another file has the name of the second part, it is kept, and the rows go to quarantine."""
    put(tmp_path, NAME, rows(100, 101) + b"?" + rows(102, 105))
    put(tmp_path, FEED.open_name(DAY, 103), rows(103, 104))
    assert kept(new(tmp_path).recover()) == [(100, 101), (103, 104)]
    assert rows(103, 105) in quarantined(tmp_path)


def test_a_csv_and_a_sealed_file_that_differ_are_both_kept(tmp_path: Path) -> None:
    """Neither is deleted or changed, and both are named."""
    sealed = sealed_file(tmp_path / "data", tmp_path / "scratch")
    before = sealed.read_bytes()
    data = rows(100, 105).replace(b"64120", b"64121")
    csv = put(tmp_path / "data", NAME, data)
    recovered = new(tmp_path / "data").recover()
    assert (csv.read_bytes(), sealed.read_bytes()) == (data, before)
    assert recovered.foreign == [csv]
    assert NAME in recovered.lines[0]
    assert sealed.name in recovered.lines[0]


def test_a_temporary_without_its_csv_is_left_alone(tmp_path: Path) -> None:
    """It may be the only copy of its rows, so it is named and not deleted."""
    path = put(tmp_path, FEED.sealed_name(DAY, 100, 105, Compression.ZIP) + ".unconfirmed", b"data")
    assert new(tmp_path).recover().foreign == [path]
    assert path.read_bytes() == b"data"


def test_a_failed_recovery_can_be_repeated(tmp_path: Path) -> None:
    """If quarantine cannot be written nothing is cut, and the next recovery does all of it."""
    data = rows(100, 102) + b"?\n" + rows(103, 105)
    path = put(tmp_path, NAME, data)
    (tmp_path / "quarantine").write_text("in the way")
    segments = new(tmp_path)
    with pytest.raises(DiskError, match="cannot recover"):
        segments.recover()
    assert path.read_bytes() == data
    (tmp_path / "quarantine").unlink()
    assert kept(segments.recover()) == [(100, 105)]


# Large files


@pytest.mark.parametrize("damage", [b"", b"?" * 60])
def test_a_large_file_of_this_boot_is_believed_but_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    """Since the machine started the kernel kept every write: only the tail is read row by row, and the torn end cut."""
    monkeypatch.setattr(salvage, "CHECKED_TAIL", 100_000)
    data = rows(100, 30_000)
    put(tmp_path, NAME, data + damage)
    since, now = this_boot()
    assert 0 < since < now
    segments = new(tmp_path)
    recovered = segments.recover((since, time.time_ns()))
    assert (kept(recovered), recovered.rows, recovered.quarantined_bytes) == ([(100, 30_000)], 29_901, len(damage))
    segments.append(row(30_001), [30_001], DAY)
    assert b"".join(csv_rows(tmp_path)) == data + row(30_001)


DAMAGED_HEAD = {
    "a row missing": lambda data: data[: 100 * len(row(100))] + data[101 * len(row(100)) :],
    "NUL bytes": lambda data: data[:5000] + bytes(80) + data[5080:],
    "another first row": lambda data: b"?" + data[1:],
}


@pytest.mark.parametrize("name", DAMAGED_HEAD)
def test_a_large_file_that_does_not_add_up_is_checked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """If the number of rows, the ends or NUL bytes contradict the names, every row is looked at."""
    monkeypatch.setattr(salvage, "CHECKED_TAIL", 100_000)
    put(tmp_path, NAME, DAMAGED_HEAD[name](rows(100, 40_000)))
    recovered = new(tmp_path).recover((0, time.time_ns()))
    lines = csv_rows(tmp_path)
    assert set(lines) < set(rows(100, 40_000).splitlines(keepends=True))
    assert len(lines) >= 39_898
    assert recovered.holes != []


def test_a_large_file_of_another_boot_is_checked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file last written before the machine started, or by a clock ahead, is not believed."""
    monkeypatch.setattr(salvage, "CHECKED_TAIL", 100_000)
    half = len(rows(100, 20_000))
    data = bytearray(rows(100, 40_000))
    data[half + 3] ^= 1
    now = time.time_ns()
    for root, boot in ((tmp_path / "before", (now + 10**12, now + 10**13)), (tmp_path / "ahead", (0, now - 10**12))):
        path = put(root, NAME, bytes(data))
        os.utime(path, ns=(now, now))
        assert new(root).recover(boot).holes == [(20_001, 20_001)]


# Against a model


@dataclass
class World:
    """A collector's files, and the rows that must be in them."""

    root: Path
    segments: Segments
    waiting: list[Segment] = field(default_factory=list)
    expected: list[bytes] = field(default_factory=list)
    next_id: int = 100
    day: int = DAY

    def append(self, count: int) -> None:
        ids = range(self.next_id, self.next_id + count)
        block = [row(id_, self.day) for id_ in ids]
        self.waiting += self.segments.append(b"".join(block), ids, self.day)
        self.expected += block
        self.next_id += count

    def gap(self, count: int) -> None:
        self.waiting += self.segments.end()
        self.next_id += count

    def next_day(self, _: int) -> None:
        self.day += 1

    def sync(self, _: int) -> None:
        self.segments.sync()

    def seal(self, _: int) -> None:
        for segment in self.waiting:
            self.segments.seal(segment)
        self.waiting = []

    def kill(self, torn_bytes: int) -> None:
        """Leave part of a row, as a killed write does, and start again."""
        if self.segments.open_segment is not None:
            with self.segments.open_segment.path.open("ab") as file:
                file.write(row(self.next_id, self.day)[:torn_bytes])
        self.segments = new(self.root, rotate_size=5 * len(row(100)))
        recovered = self.segments.recover()
        self.waiting = list(recovered.finished)
        assert recovered.last_id == (int(self.expected[-1].split(b",")[3]) if self.expected else None)
        if recovered.open is not None and recovered.open.last_id + 1 != self.next_id:
            self.waiting += self.segments.end()


STEPS = st.one_of(
    st.tuples(st.just(World.append), st.integers(1, 9)),
    st.tuples(st.just(World.gap), st.integers(1, 3)),
    st.tuples(st.sampled_from([World.next_day, World.seal, World.sync]), st.just(0)),
    st.tuples(st.just(World.kill), st.integers(0, len(row(100)) - 1)),
)


def sealed_lines(root: Path) -> list[bytes]:
    """Return all rows by day and first ID, after checking that each file is sealed and holds what its name says."""
    lines: list[bytes] = []
    files = [(name.day, name.first_id, name.last_id, path) for name, path in named(root)]
    for _, first_id, last_id, path in sorted(files):
        assert last_id is not None
        with open_csv(path) as csv:
            found = csv.read().splitlines(keepends=True)
        assert [int(line.split(b",")[3]) for line in found] == list(range(first_id, last_id + 1))
        lines += found
    return lines


def named(root: Path) -> list[tuple[SegmentName, Path]]:
    paths = list(FEED.directory(root).glob("*"))
    names = [FEED.parse(path.name) for path in paths]
    return [(name, path) for name, path in zip(names, paths, strict=True) if name is not None]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_any_history_of_rolls_kills_and_seals_keeps_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Callable[[World, int], None], int]]
) -> None:
    """Whatever is appended, ended, sealed, synced and killed in between, the files hold all rows, once and in order."""
    root = tmp_path_factory.mktemp("data")
    world = World(root, new(root, rotate_size=5 * len(row(100))))
    for step, amount in steps:
        step(world, amount)
    world.gap(0)
    world.seal(0)
    assert sealed_lines(root) == world.expected
    shutil.rmtree(root)
