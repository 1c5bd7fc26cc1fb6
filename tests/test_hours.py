"""Rows per hour against a count that reads every row."""

import random
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcollect.hours import CLOSELY, LONGEST_START, HourCount

DAY_MS = 1_795_132_800_000  # 2026-11-20T00:00:00Z
HOUR_MS = 3_600_000


def row(id_: int, time: int, more: str = "") -> bytes:
    return f"trade,{time},BTCUSDT,{id_},64120.01000000,0.00150000,,,{time},True{more}\n".encode()


def csv_of(times: Iterable[int]) -> bytes:
    return b"".join(row(id_, time) for id_, time in enumerate(times))


def counted(csv: bytes, cuts: Iterable[int] = ()) -> list[int]:
    count = HourCount()
    places = sorted({0, len(csv), *(cut % (len(csv) + 1) for cut in cuts)})
    for start, stop in pairwise(places):
        count.add(csv[start:stop])
    return count.hours


def naive(times: Iterable[int]) -> list[int]:
    hours = [0] * 24
    for time in times:
        hours[(time - DAY_MS) // HOUR_MS] += 1
    return hours


times_of_a_day = st.lists(st.integers(DAY_MS, DAY_MS + 24 * HOUR_MS - 1), max_size=300).map(sorted)


@given(times_of_a_day, st.lists(st.integers(0, 10**6), max_size=6))
def test_rising_times_are_counted_exactly(times: list[int], cuts: list[int]) -> None:
    """However the bytes are cut, each row counts for the hour of its trade time."""
    assert counted(csv_of(times), cuts) == naive(times)


@given(st.lists(st.integers(DAY_MS, DAY_MS + 24 * HOUR_MS - 1), max_size=300), st.lists(st.integers(0, 10**6)))
def test_every_row_counts_once_whatever_the_order(times: list[int], cuts: list[int]) -> None:
    """Times in any order change which hour a row counts for, never how many rows are counted."""
    assert sum(counted(csv_of(times), cuts)) == len(times)


def test_neighbours_out_of_order_at_the_hour_are_counted_exactly() -> None:
    """A few rows that swap places around a full hour each count for their own hour."""
    border = DAY_MS + 7 * HOUR_MS
    before = [border - 60_000 + step for step in range(2000)]
    times = [*before, border + 1, border - 2, border + 2, border - 1, *(border + 10 + step for step in range(2000))]
    assert counted(csv_of(times)) == naive(times)


def test_microseconds_count_like_milliseconds() -> None:
    """A spot connection that asked for microseconds gives the same hours."""
    times = [DAY_MS + hour * HOUR_MS for hour in range(24)]
    assert counted(csv_of(time * 1000 + 999 for time in times)) == [1] * 24


@pytest.mark.parametrize("damage", [b"\0" * 500 + b"\n", b"trade,1,BTCUSDT\n", b"\n", b"x" * 3 * LONGEST_START + b"\n"])
def test_row_without_a_time_counts_nowhere(damage: bytes) -> None:
    """Damage between good rows is passed over, and the good rows count."""
    good = csv_of([DAY_MS + 5 * HOUR_MS + step for step in range(3)])
    assert sum(counted(good + damage + good, [len(good) + 5])) == 6


def test_row_that_never_ends_is_not_kept() -> None:
    """Bytes without a newline, however many, take no memory."""
    count = HourCount()
    for _ in range(1000):
        count.add(b"0" * 10_000)
    assert len(count._torn) == LONGEST_START


def test_extra_columns_do_not_move_the_time() -> None:
    """Columns behind the stream's own change nothing."""
    csv = b"".join(row(id_, DAY_MS + 3 * HOUR_MS, f",{10**18},x") for id_ in range(10))
    assert counted(csv)[3] == 10


def test_large_file_with_every_hour() -> None:
    """A busy day in pieces of a megabyte, as sealing reads it."""
    choose = random.Random(4)
    times = sorted(choose.randrange(DAY_MS, DAY_MS + 24 * HOUR_MS) for _ in range(60_000))
    csv = csv_of(times)
    assert len(csv) > 100 * CLOSELY
    assert counted(csv, range(0, len(csv), 1 << 20)) == naive(times)
