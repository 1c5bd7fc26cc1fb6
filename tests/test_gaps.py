"""Every row leaves `gaps` exactly once, in order, and every hole is named."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcollect.gaps import (
    ABSENCE_AGAIN_S,
    HELD_ROW_BYTES,
    ROWS_REMEMBERED,
    SUSPECTS,
    Copies,
    Gap,
    Late,
    Ranges,
    Refused,
    Restarted,
    Run,
    Sequence,
    Shown,
    Step,
)

T0 = 1_784_000_000_000


def feed(sequence: Sequence[str], ids: list[int], now_s: float = 0.0, time: int | None = None) -> list[Step[str]]:
    """Hand over rows whose text is their ID and whose trade time rises with it."""
    times = [T0 + id_ % 10**6 if time is None else time for id_ in ids]
    return sequence.take(ids, times, [str(id_) for id_ in ids], now_s)


def run(*ids: int, times: list[int] | None = None) -> Run[str]:
    """Return the run of rows that `feed` made of these IDs."""
    return Run(range(ids[0], ids[-1] + 1), times or [T0 + id_ % 10**6 for id_ in ids], [str(id_) for id_ in ids])


def begun(at: int = 1, **settings: float) -> Sequence[str]:
    sequence = Sequence[str](
        patience_s=settings.get("patience_s", 1.0), hold_limit=int(settings.get("hold_limit", 100))
    )
    feed(sequence, [at])
    return sequence


def test_first_row_begins() -> None:
    """The first row ever begins the sequence wherever it stands."""
    assert feed(Sequence[str](), [6_100_000_001]) == [run(6_100_000_001)]


def test_contiguous_rows_pass_as_one_run() -> None:
    """Rows that rise by one pass as they came."""
    assert feed(begun(), [2, 3, 4]) == [run(2, 3, 4)]


def test_swapped_rows_are_sorted_in() -> None:
    """A row that comes a moment late takes its place, and no gap is declared."""
    assert feed(begun(), [3, 2, 4]) == [run(2, 3, 4)]


def test_hole_is_declared_after_patience() -> None:
    """A hole is a gap once its followers have waited long enough, and not before."""
    sequence = begun()
    assert feed(sequence, [5, 6], now_s=10.0) == []
    assert sequence.expire(10.9) == []
    assert sequence.expire(11.0) == [Gap(2, 4), run(5, 6)]
    assert sequence.held == 0
    assert sequence.due_s is None


def test_two_holes_are_two_gaps() -> None:
    """Each hole is named by itself."""
    sequence = begun()
    feed(sequence, [3, 5, 6])
    assert sequence.expire(1.0) == [
        Gap(2, 2),
        run(3),
        Gap(4, 4),
        run(5, 6),
    ]


def test_full_hold_decides_at_once() -> None:
    """The number of held rows has a limit, and reaching it declares the gap."""
    sequence = begun(hold_limit=3)
    assert feed(sequence, [4, 5, 6]) == [Gap(2, 3), run(4, 5, 6)]


def test_lone_jump_waits_for_a_second_row() -> None:
    """A single row far ahead is neither believed nor lost until another goes on behind it."""
    sequence = begun()
    feed(sequence, [50])
    assert sequence.expire(5.0) == []
    assert feed(sequence, [51], now_s=6.0) == []
    assert sequence.expire(9.0) == [Gap(2, 49), run(50, 51)]


def test_damaged_id_ahead_is_refused_and_named() -> None:
    """One ID far above its neighbours leaves a gap of its own ID only, and the sequence goes on."""
    sequence = begun()
    assert feed(sequence, [2, 900, 4, 5]) == [run(2)]
    steps = sequence.expire(1.0)
    assert steps == [
        Refused(900, "900", "ID 900 is far from those that came after it (5)"),
        Gap(3, 3),
        run(4, 5),
    ]
    assert feed(sequence, [6]) == [run(6)]


def test_damaged_id_ahead_with_nothing_missing() -> None:
    """A stray ID above a sequence that goes on without a hole is refused."""
    sequence = begun()
    feed(sequence, [900, 2, 3])
    steps = sequence.expire(1.0)
    assert [type(step) for step in steps] == [Refused]
    assert sequence.next_id == 4


def test_damaged_id_below_is_refused() -> None:
    """One ID far below its neighbours is not taken for a new numbering."""
    sequence = begun(1000)
    assert feed(sequence, [1001], time=T0 + 5000) == [run(1001, times=[T0 + 5000])]
    assert feed(sequence, [5], time=T0 + 6000) == []
    steps = feed(sequence, [1002], time=T0 + 6000)
    assert [type(step) for step in steps] == [Refused, Run]


def test_copies_are_dropped_and_counted() -> None:
    """Rows that were written already are copies, however many."""
    sequence = begun()
    feed(sequence, [2, 3])
    assert feed(sequence, [1, 2, 3, 4]) == [Copies([1, 2, 3], ["1", "2", "3"]), run(4)]


def test_copy_of_a_held_row() -> None:
    """A second copy of a row that still waits is a copy too."""
    sequence = begun()
    assert feed(sequence, [3, 3]) == [Copies([3], ["3"])]


def test_late_row_of_a_declared_gap_is_not_a_copy() -> None:
    """A row that comes after its gap was declared is handed out, not dropped."""
    sequence = begun()
    feed(sequence, [4, 5])
    sequence.expire(1.0)
    assert feed(sequence, [3]) == [Late([3], [T0 + 3], ["3"])]


def test_restarted_numbering_is_recognised() -> None:
    """Two newer trades in a row with low IDs begin a new numbering."""
    sequence = begun(10**9)
    assert feed(sequence, [1], time=T0 + 900_000) == []
    assert feed(sequence, [2], time=T0 + 900_001) == [
        Restarted(10**9, 1),
        run(1, 2, times=[T0 + 900_000, T0 + 900_001]),
    ]
    assert feed(sequence, [3], time=T0 + 900_002) == [run(3, times=[T0 + 900_002])]


def test_a_second_connection_does_not_contradict_the_first() -> None:
    """Rows that another connection brings late fill the hole; they prove nothing against the rows ahead."""
    sequence = begun()
    sequence.take([8, 9], [T0, T0], ["8", "9"], 0.0, source=1)
    assert sequence.take([2, 3, 4], [T0] * 3, ["2", "3", "4"], 0.5, source=2) == [run(2, 3, 4, times=[T0] * 3)]
    assert sequence.expire(1.6) == [Gap(5, 7), run(8, 9, times=[T0, T0])]


def test_holes_are_named_and_filled_from_history() -> None:
    """What is missing can be asked for, comes in between, and the rows behind it follow in order."""
    sequence = begun()
    feed(sequence, [4, 6, 7])
    assert sequence.holes() == [(2, 3), (5, 5)]
    sequence.postpone(20.0)
    assert sequence.expire(5.0) == []
    assert sequence.fill([2, 3, 5], [T0] * 3, ["2", "3", "5"], 6.0) == [
        Run(range(2, 8), [T0, T0, T0 + 4, T0, T0 + 6, T0 + 7], ["2", "3", "4", "5", "6", "7"])
    ]
    assert sequence.due_s is None


def test_history_that_lacks_an_id() -> None:
    """What history does not have is declared at once when it is given up."""
    sequence = begun()
    feed(sequence, [6, 7])
    assert sequence.fill([2, 4, 5], [T0] * 3, ["2", "4", "5"], 1.0) == [run(2, times=[T0])]
    assert sequence.declare() == [
        Gap(3, 3),
        Run(range(4, 8), [T0, T0, T0 + 6, T0 + 7], ["4", "5", "6", "7"]),
    ]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 12)), max_size=40))
def test_ranges_are_a_set_of_ids(changes: list[tuple[bool, int, int]]) -> None:
    """Ranges behave like the set of all their IDs, stay sorted and never touch."""
    ranges, model = Ranges(), set[int]()
    for adds, first, length in changes:
        ids = range(first, first + length + 1)
        (ranges.add if adds else ranges.remove)(ids[0], ids[-1])
        model = model | set(ids) if adds else model - set(ids)
        assert {id_ for low, high in ranges.spans for id_ in range(low, high + 1)} == model
        assert ranges.count == len(model)
        assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges.spans))


def test_ids_beyond_double_precision() -> None:
    """IDs around 2**53 and up to 2**63 are told apart."""
    for start in (2**53 - 1, 2**63 - 4):
        sequence = begun(start)
        assert feed(sequence, [start + 1, start + 2]) == [run(start + 1, start + 2)]


def test_finish_releases_what_is_held() -> None:
    """At the end nothing stays behind: the hole is named and the rows after it are written."""
    sequence = begun()
    feed(sequence, [7, 8])
    assert sequence.finish() == [Gap(2, 6), run(7, 8)]
    assert sequence.held == 0


def test_finish_does_not_believe_a_lone_jump() -> None:
    """A damaged ID just before the end neither becomes a gap of a trillion IDs nor is dropped silently."""
    sequence = begun()
    feed(sequence, [2, 2**53 + 1])
    steps = sequence.finish()
    assert [type(step) for step in steps] == [Refused]
    assert sequence.next_id == 3


def test_one_id_with_two_contents() -> None:
    """Of two different rows with one ID the first stays, and the second is handed out as refused."""
    sequence = begun()
    sequence.take([5, 5], [T0, T0], ["5", "five"], 0.0)
    assert sequence.take([6], [T0], ["6"], 0.0) == []
    sequence = begun()
    steps = sequence.take([5, 5], [T0, T0], ["5", "five"], 0.0)
    assert steps == [Refused(5, "five", "ID 5 came twice, and not with the same content")]


def test_copies_among_many_gaps_stay_cheap_and_bounded() -> None:
    """The memory of gaps has a limit, and the oldest are forgotten first."""
    sequence = begun()
    for start in range(3, 3 + 2 * 1500, 2):
        feed(sequence, [start])
    sequence.finish()
    assert len(sequence.gaps) == 1000
    assert feed(sequence, [sequence.gaps[0][0]]) != []


@given(st.lists(st.integers(1, 40), max_size=120), st.integers(0, 2**32))
def test_any_interleaving_of_two_copies_gives_each_id_once(extra: list[int], seed: int) -> None:
    """Two connections that carry the same rows, each in order, give each row once and in order."""
    rng = random.Random(seed)
    queues = [list(range(1, 41)), list(range(1, 41))]
    sequence = Sequence[str]()
    steps: list[Step[str]] = []
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        steps += feed(sequence, [queue.pop(0)])
    written = [id_ for step in steps if isinstance(step, Run) for id_ in step.ids]
    assert written == list(range(1, 41))
    assert sum(len(step.ids) for step in steps if isinstance(step, Copies)) == 40


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5), st.booleans()), max_size=200))
def test_every_row_leaves_once(arrivals: list[tuple[int, int, bool]]) -> None:
    """Whatever comes in leaves once; runs rise by one; a break between runs is a gap or a restart."""
    sequence = Sequence[str](patience_s=1.0, hold_limit=10)
    steps: list[Step[str]] = []
    for now, (id_, time, expire) in enumerate(arrivals):
        steps += sequence.take([id_], [T0 + time], [str(id_)], float(now))
        assert sequence.held <= 10 + SUSPECTS
        if expire:
            steps += sequence.expire(now + 0.5)
    steps += sequence.finish()
    out: list[int] = []
    expected: int | None = None
    for step in steps:
        match step:
            case Run():
                assert list(step.rows) == [str(id_) for id_ in step.ids]
                assert expected in (None, step.ids[0])
                assert list(step.ids) == list(range(step.ids[0], step.ids[0] + len(step.ids)))
                expected = step.ids[-1] + 1
                out += step.ids
            case Gap():
                assert step.first == expected
                assert step.last >= step.first
                expected = step.last + 1
            case Restarted():
                assert step.last + 1 == expected
                expected = step.first
            case Refused():
                out.append(step.id)
            case Late() | Copies():
                out += step.ids
    assert sorted(out) == sorted(id_ for id_, _, _ in arrivals)


def test_a_held_row_that_others_pass_over_is_late() -> None:
    """The sequence never goes back to a row that was doubted when those behind it were believed."""
    sequence = Sequence[str]()
    take(sequence, 1, *[(id_, 0) for id_ in range(1, 11)])
    take(sequence, 1, (15, 1), (13, 1))
    take(sequence, 2, (20, 2), (21, 2))
    steps = sequence.expire(10.0)
    assert written(steps) == ["new 13", "new 20", "new 21"]
    assert [step.ids for step in steps if isinstance(step, Late)] == [[15]]
    take(sequence, 1, (22, 3), (25, 3), (26, 3))
    steps = sequence.expire(20.0)
    assert written(steps) == ["new 25", "new 26"]
    assert (sequence.next_id, sequence.held) == (27, 0)


# --- A numbering that begins anew ----------------------------------------------------------------------------------


def take(sequence: Sequence[str], source: int, *rows: tuple[int, int], prefix: str = "new ") -> list[Step[str]]:
    """Hand over rows (ID, time behind T0) of one connection; their text tells them from those of another numbering."""
    texts = [f"{prefix}{id_}" for id_, _ in rows]
    return sequence.take([id_ for id_, _ in rows], [T0 + time for _, time in rows], texts, 0.0, source)


def written(steps: list[Step[str]]) -> list[str]:
    return [row for step in steps if isinstance(step, Run) for row in step.rows]


def old(at: int = 1000, count: int = 20, time: int = 5) -> Sequence[str]:
    """Return a sequence that has written rows at one and the same time."""
    sequence = Sequence[str]()
    for id_ in range(at, at + count):
        take(sequence, 1, (id_, time), prefix="old ")
    return sequence


def test_a_restart_in_the_same_millisecond() -> None:
    """A new numbering may begin at the very time of the last row of the old one: nothing of it is lost."""
    sequence = old()
    steps = take(sequence, 1, (1, 5), (2, 5), (3, 5), (4, 6), (5, 6))
    assert written(steps) == ["new 1", "new 2", "new 3", "new 4", "new 5"]
    assert [step for step in steps if isinstance(step, Restarted)] == [Restarted(1019, 1)]


def test_rows_that_an_earlier_process_wrote_in_the_same_millisecond_are_no_restart() -> None:
    """What was written before the start is not remembered, so rows of its newest time are copies, not a new numbering.

    Rows of a later time still prove one.
    """
    sequence = Sequence[str](hold_limit=100)
    sequence.resume(1019, T0 + 5)
    steps = take(sequence, 1, (1018, 5), (1019, 5), (1020, 6), (1021, 6))
    assert written(steps) == ["new 1020", "new 1021"]
    assert not [step for step in steps if isinstance(step, Restarted | Refused)]
    steps = take(sequence, 2, (1, 7), (2, 7))
    assert [step for step in steps if isinstance(step, Restarted)] == [Restarted(1021, 1)]


def test_a_replay_of_old_rows_is_no_restart() -> None:
    """Another connection that repeats rows, all of one time, brings copies, however low their IDs and however many."""
    sequence = old()
    steps = take(sequence, 2, *[(id_, 5) for id_ in range(1000, 1020)], prefix="old ")
    assert [type(step) for step in steps] == [Copies]
    assert sequence.next_id == 1020


def test_rows_from_before_the_first_are_no_restart() -> None:
    """A connection that began earlier brings rows from before the first one, of the same time, until it comes to it."""
    sequence = old()
    steps = take(sequence, 2, *[(id_, 5) for id_ in range(990, 1010)], prefix="old ")
    assert {type(step) for step in steps} == {Copies}
    assert sequence.next_id == 1020
    assert sequence.held == 0


def test_the_other_connection_may_still_be_in_the_old_numbering() -> None:
    """Rows of the old numbering that a slower connection brings neither refute the new one nor belong to it."""
    sequence = old()
    steps = take(sequence, 1, (1, 6))
    steps += take(sequence, 2, (1018, 5), (1019, 5), prefix="old ")
    steps += take(sequence, 1, (2, 7), (3, 7))
    steps += take(sequence, 2, (1019, 5), prefix="old ")
    steps += take(sequence, 2, (1, 6), (2, 7), (3, 7))
    steps += take(sequence, 1, (4, 8))
    assert written(steps) == ["new 1", "new 2", "new 3", "new 4"]
    assert not [step for step in steps if isinstance(step, Gap | Refused)]
    assert sequence.held == 0


def test_rows_of_the_old_numbering_that_were_not_seen_are_refused() -> None:
    """What a slower connection brings of the old numbering behind its end is no hole of the new one."""
    sequence = old()
    take(sequence, 1, (1, 6), (2, 7), (3, 7))
    take(sequence, 2, (1020, 5), (1021, 5), prefix="old ")
    take(sequence, 2, (1, 6), (2, 7), (3, 7))
    steps = sequence.expire(10.0)
    assert [step.id for step in steps if isinstance(step, Refused)] == [1020, 1021]
    assert sequence.next_id == 4


@pytest.mark.parametrize("ends", [(1025,), (1025, 1026, 1030)])
def test_rows_behind_a_hole_are_written_before_a_new_numbering(ends: tuple[int, ...]) -> None:
    """Rows of a new numbering do not contradict those of the old one that wait for a hole: both are true."""
    sequence = old()
    take(sequence, 1, *[(id_, 6) for id_ in ends], prefix="old ")
    steps = take(sequence, 1, (1, 7), (2, 8), (3, 9))
    assert written(steps) == [*(f"old {id_}" for id_ in ends), "new 1", "new 2", "new 3"]
    assert next((step.first, step.last) for step in steps if isinstance(step, Gap)) == (1020, 1024)
    assert [step for step in steps if isinstance(step, Restarted)] == [Restarted(ends[-1], 1)]
    assert not [step for step in steps if isinstance(step, Refused)]


def test_a_lone_row_far_ahead_is_refused_at_a_new_numbering() -> None:
    """A damaged ID is not made the end of a numbering: nothing came behind it."""
    sequence = old()
    take(sequence, 1, (10**9, 6), prefix="old ")
    steps = take(sequence, 1, (1, 7), (2, 8))
    assert [step.id for step in steps if isinstance(step, Refused)] == [10**9]
    assert [step for step in steps if isinstance(step, Restarted)] == [Restarted(1019, 1)]


def test_both_connections_bring_the_first_row_of_a_new_numbering() -> None:
    """Whichever connection goes on with it proves it, and the other's rows are copies."""
    sequence = old()
    steps = (
        take(sequence, 1, (1, 6)) + take(sequence, 2, (1, 6)) + take(sequence, 2, (2, 7)) + take(sequence, 1, (2, 7))
    )
    assert written(steps) == ["new 1", "new 2"]
    assert sum(len(step.ids) for step in steps if isinstance(step, Copies)) == 2


def test_a_new_numbering_that_a_second_connection_proves_begins_with_the_first_row_seen() -> None:
    """If the connection that brought its first row ends, what another proves later leaves a hole, not a loss."""
    sequence = old()
    take(sequence, 1, (1, 6))
    steps = take(sequence, 2, (4, 7), (5, 8))
    assert steps[0] == Restarted(1019, 1)
    assert written(steps) == ["new 1"]
    assert sequence.holes() == [(2, 3)]


def test_gaps_of_the_old_numbering_are_forgotten_with_it() -> None:
    """A row of the new numbering is not taken for a late one of an old gap."""
    sequence = begun()
    feed(sequence, [10, 11])
    sequence.expire(1.0)
    take(sequence, 0, (1, 10**6), (2, 10**6 + 1))
    assert sequence.gaps == []
    steps = take(sequence, 0, *[(id_, 10**6 + id_) for id_ in range(3, 9)])
    assert written(steps) == [f"new {id_}" for id_ in range(3, 9)]


def test_a_row_of_a_gap_is_late_and_no_new_numbering() -> None:
    """Two rows of a declared gap, of the newest time, are late rows and begin nothing."""
    sequence = Sequence[str]()
    take(sequence, 1, (1, 5), (5, 5), (6, 5))
    sequence.expire(1.0)
    steps = take(sequence, 2, (2, 5), (3, 5))
    assert steps == [Late([2, 3], [T0 + 5] * 2, ["new 2", "new 3"])]


# --- Rules that had no test ----------------------------------------------------------------------------------------


def test_history_does_not_overwrite_a_held_row() -> None:
    """What came live stays when history brings the same ID."""
    sequence = begun()
    sequence.take([4, 5], [T0, T0], ["live 4", "live 5"], 0.0)
    assert sequence.fill([3, 4], [T0, T0], ["history 3", "history 4"], 0.5) == [Copies([4], ["history 4"])]
    steps = sequence.fill([2], [T0], ["history 2"], 0.5)
    assert written(steps) == ["history 2", "history 3", "live 4", "live 5"]


def test_the_same_id_again_does_not_contradict() -> None:
    """A copy of a held row, which is not below it, is no reason to refuse it."""
    sequence = begun()
    feed(sequence, [5, 5, 5, 6])
    assert sequence.expire(1.0) == [Gap(2, 4), run(5, 6)]


def test_a_second_hole_waits_its_own_patience() -> None:
    """When a hole closes, the one behind it has its patience from then on."""
    sequence = begun()
    feed(sequence, [3, 5, 6], now_s=0.0)
    feed(sequence, [2], now_s=0.9)
    assert sequence.expire(1.0) == []
    assert sequence.due_s == 1.9


def test_a_full_hold_of_one_is_released() -> None:
    """A limit of one cannot wait for a second row to prove the first."""
    assert feed(begun(hold_limit=1), [4]) == [Gap(2, 3), run(4)]


def test_declared_holes_leave_nothing_to_wait_for() -> None:
    """After everything was declared nothing is due."""
    sequence = begun()
    feed(sequence, [4, 5])
    sequence.declare()
    assert sequence.due_s is None
    assert sequence.held_bytes == 0


def test_held_rows_are_weighed() -> None:
    """What is held is known in bytes, as it comes and as it goes."""
    sequence = begun()
    feed(sequence, [10, 11])
    assert sequence.held_bytes == 2 * (2 + HELD_ROW_BYTES)
    sequence.finish()
    assert sequence.held_bytes == 0


def test_written_rows_are_remembered_in_bounds() -> None:
    """The newest rows can be compared with copies; older ones are forgotten."""
    sequence = begun()
    feed(sequence, list(range(2, 2000)))
    for id_ in range(2000, 2000 + ROWS_REMEMBERED):
        feed(sequence, [id_])
    assert sequence.remembered(2000) == "2000"
    assert sequence.remembered(1999 + ROWS_REMEMBERED) == str(1999 + ROWS_REMEMBERED)
    assert sequence.remembered(1) is None


def test_late_rows_are_expected_of_earlier_gaps() -> None:
    """A gap that was declared before this start is known like one of this run."""
    sequence = begun(100)
    sequence.expect_late(40, 50)
    sequence.expect_late(10, 20)
    assert sequence.gaps == [(10, 20), (40, 50)]
    assert feed(sequence, [15, 45, 60]) == [Late([15, 45], [T0 + 15, T0 + 45], ["15", "45"]), Copies([60], ["60"])]


# --- Two proofs ------------------------------------------------------------------------------------------------------


def test_absence_is_proved_by_two_answers_far_enough_apart() -> None:
    """What is shown once, or twice at once, is not proved."""
    shown = Shown()
    assert shown.note(10, 20, 0.0) == ([], [(10, 20)])
    assert shown.note(10, 20, ABSENCE_AGAIN_S - 1) == ([], [])
    assert shown.due_s(10, 20) == ABSENCE_AGAIN_S
    assert shown.note(10, 20, ABSENCE_AGAIN_S) == ([(10, 20)], [])
    assert shown.due_s(10, 20) is None


def test_only_what_both_answers_show_is_proved() -> None:
    """Each ID needs two answers of its own."""
    shown = Shown()
    shown.note(10, 20, 0.0)
    assert shown.note(15, 25, ABSENCE_AGAIN_S) == ([(15, 20)], [(21, 25)])
    assert shown.note(10, 25, 2 * ABSENCE_AGAIN_S) == ([(10, 14), (21, 25)], [(15, 20)])


def test_an_answer_that_has_the_row_ends_the_proof() -> None:
    """After a row was seen, two new answers are needed."""
    shown = Shown()
    shown.note(10, 20, 0.0)
    shown.forget(12, 12)
    assert shown.note(10, 20, ABSENCE_AGAIN_S) == ([(10, 11), (13, 20)], [(12, 12)])


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4), st.booleans(), st.integers(0, 100)), max_size=30))
def test_no_id_is_proved_without_two_answers(answers: list[tuple[int, int, bool, int]]) -> None:
    """Whatever order answers come in: what is proved was shown before, long enough ago, and not seen since."""
    shown, since, now_s = Shown(), dict[int, float](), 0.0
    for first, length, has_rows, later in answers:
        now_s += later
        ids = range(first, first + length + 1)
        if has_rows:
            shown.forget(ids[0], ids[-1])
            for id_ in ids:
                since.pop(id_, None)
            continue
        proved = {id_ for low, high in shown.note(ids[0], ids[-1], now_s)[0] for id_ in range(low, high + 1)}
        due = {id_ for id_ in ids if id_ in since and now_s - since[id_] >= ABSENCE_AGAIN_S}
        assert proved == due
        for id_ in ids:
            if id_ in proved:
                del since[id_]
            else:
                since.setdefault(id_, now_s)
