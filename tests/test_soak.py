"""The short form of the endurance run (`tests/soak.py`): about a minute, with a seed of its own each time."""

import asyncio
import os
import sys
import time

import pytest
import soak

SEED = int(os.environ.get("SEED", str(time.time_ns() % 1_000_000)))
SECONDS = 36.0
"""Under faults; beginning and healing come on top."""


@pytest.mark.timeout(400)
def test_nothing_is_lost_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    """After a minute of random faults every ID is on disk once or given up on record, and the process is as it was."""
    said: list[str] = []
    verdict = asyncio.run(soak.soak(SECONDS, SEED, said.append))
    with capsys.disabled():
        told = f"{verdict.played:,} rows, {verdict.faults.total()} faults, {verdict.lives} lives"
        sys.stdout.write(f"\nsoak: SEED={SEED}, {told}\n")
    assert not verdict.mistakes, "\n".join([*said, *verdict.lines()])
    assert verdict.lost == 0, "\n".join([*said, *verdict.lines()])
