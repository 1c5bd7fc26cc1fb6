"""Each fuzz target on its seeds, on mutations of them, and on what hypothesis makes up."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .targets import SEPARATOR, TARGETS, frames, mutated


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_good(name: str) -> None:
    """Undamaged inputs are understood, so that their mutations reach deep."""
    target = TARGETS[name]
    ends = sum((target.run(seed) for seed in target.seeds), Counter[str]())
    assert {"frames": ends["rows"], "salvage": ends["rows"], "journal": ends["entries"], "config": ends["loaded"]}[name]


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutations_keep_the_promise(name: str, data: st.DataObject) -> None:
    """A few damaged bytes in a good input: nothing crashes, nothing vanishes."""
    target = TARGETS[name]
    chance = random.Random(data.draw(st.integers(0, 2**64)))
    target.run(mutated(data.draw(st.sampled_from(target.seeds)), target.words, chance))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=2000))
def test_any_bytes_keep_the_promise(name: str, data: bytes) -> None:
    """Bytes that were never good: nothing crashes, nothing vanishes."""
    TARGETS[name].run(data)


def test_each_refused_frame_is_in_quarantine() -> None:
    """What cannot be a message is kept aside, once each, and what is around it becomes rows."""
    good, *_ = TARGETS["frames"].seeds
    ends = frames(good + SEPARATOR + b"nonsense" + SEPARATOR + b'{"e":"kline"}')
    assert ends["quarantined"] == 2
    assert ends["rows"] == 2
    assert ends["held"] == 2
