"""The short forms of the endurance runs (`tests/soak.py`), with a seed of their own each time.

KILLS sets how often the process is killed (8; `make kill` does it 500 times), SEED repeats a run.
"""

import asyncio
import os
import sys
import time

import pytest
import soak

SEED = int(os.environ.get("SEED", str(time.time_ns() % 1_000_000)))
KILLS = int(os.environ.get("KILLS", "8"))
SECONDS = 36.0
"""Under faults; beginning and healing come on top."""


@pytest.mark.timeout(400)
def test_nothing_is_lost_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    """After a minute of random faults every ID is on disk once, and the process is as it was."""
    said: list[str] = []
    verdict = asyncio.run(soak.soak(SECONDS, SEED, said.append))
    report(verdict, said, capsys)


@pytest.mark.timeout(300 + 4 * KILLS)
def test_kills_leave_no_hole_where_history_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """Killed at random moments, the collector fills what it missed while it was dead: in the end no ID is missing."""
    said: list[str] = []
    verdict = asyncio.run(soak.kills(KILLS, SEED, said.append))
    report(verdict, said, capsys)
    assert verdict.lives == KILLS + 1


def report(verdict: soak.Verdict, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Print the seed and assert that nothing was wrong and nothing lost."""
    with capsys.disabled():
        told = f"{verdict.played:,} rows, {verdict.faults.total()} faults, {verdict.lives} lives"
        sys.stdout.write(f"\nsoak: SEED={SEED}, {told}\n")
    assert not verdict.mistakes, "\n".join([*said, *verdict.lines()])
    assert verdict.lost == 0, "\n".join([*said, *verdict.lines()])
