"""The journal's checkpoint: a start reads what is new, and knows what reading everything would tell."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickcollect.backfill import ACCOUNTED, Account, accounts
from tickcollect.checkpoint import Checkpoint
from tickcollect.journal import Journal, read

FEED = "binance/trade/BTCUSDT"
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Diary:
    """A journal with a clock by hand."""

    path: Path
    now: datetime = START
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self.path, lambda: int(self.now.timestamp() * 1e9))

    def write(self, event: str, first: int, last: int, feed: str = FEED) -> None:
        self.now += timedelta(seconds=1)
        self.journal.append(event, subject=feed, first_id=first, last_id=last)

    @property
    def checkpoint(self) -> Checkpoint[dict[str, Account]]:
        return Checkpoint(self.path.with_name("checkpoint"), self.path, dict[str, Account], "1")

    def start(self, *, keeps: bool = True) -> dict[str, Account]:
        """Read as a start does."""
        before, begin = self.checkpoint.load()
        reading = read(self.path, ACCOUNTED, begin=begin)
        found = accounts(reading, before)
        if keeps:
            self.checkpoint.keep(found, reading.end)
        return found


@pytest.fixture
def diary(tmp_path: Path) -> Diary:
    return Diary(tmp_path / "journal.jsonl")


def test_only_what_is_new_is_read(diary: Diary) -> None:
    """What stands before the checkpoint is known without being read again."""
    diary.write("gap", 1, 9)
    diary.write("filled", 1, 4)
    assert diary.start()[FEED].open.spans == [(5, 9)]
    size = diary.path.stat().st_size
    diary.write("filled", 5, 6)
    assert diary.checkpoint.load()[1] == size
    reading = read(diary.path, begin=size)
    assert [entry.facts["first_id"] for entry in reading] == [5]
    assert diary.start()[FEED].open.spans == [(7, 9)]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([*sorted(ACCOUNTED), "connected", "joined"]),
        st.integers(1, 40),
        st.integers(0, 9),
        st.sampled_from(["binance/trade/A", "binance/trade/B"]),
        st.sampled_from(["", "", "", "start", "torn"]),
    ),
    max_size=40,
)


@given(events=EVENTS)
@settings(deadline=None, max_examples=60)
def test_a_checkpoint_changes_nothing_that_is_known(
    events: list[tuple[str, int, int, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is written, and wherever starts lie between, the state is that of the whole journal."""
    diary = Diary(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for event, first, more, feed, then in events:
        diary.write(event, first, first + more, feed)
        if then == "start":
            diary.start()
        elif then == "torn":
            diary.journal.close()
            with diary.path.open("ab") as file:
                file.write(b'{"at":"2026-01-01T00:00:00Z","event":"gap","subj')
            diary.start()
    assert {name: account for name, account in diary.start().items() if account != Account()} == {
        name: account for name, account in accounts(read(diary.path)).items() if account != Account()
    }


@pytest.mark.parametrize("change", ["rotated", "cut", "rewritten", "longer but other", "gone"])
def test_a_checkpoint_of_another_journal_is_ignored(change: str, diary: Diary) -> None:
    """The journal alone is the truth: one that was rotated, cut or changed is read from its first line."""
    for n in range(50):
        diary.write("gap", 10 * n, 10 * n + 5)
    diary.start()
    diary.journal.close()
    text = diary.path.read_bytes()
    new = {
        "rotated": b"",
        "cut": text[:-300],
        "rewritten": text.replace(b'"last_id":495', b'"last_id":494'),
        "longer but other": text.replace(b'"last_id":495', b'"last_id":494') * 2,
        "gone": None,
    }[change]
    diary.path.unlink()
    if new is not None:
        diary.path.write_bytes(new)
    assert diary.checkpoint.load() == (None, 0)
    assert diary.start() == accounts(read(diary.path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rules":"1"}', b"\xff" * 100, b"[" * 100_000])
def test_a_damaged_checkpoint_is_ignored(content: bytes, diary: Diary) -> None:
    """Whatever stands in its place, a start reads the journal."""
    diary.write("gap", 1, 9)
    diary.checkpoint.path.write_bytes(content)
    assert diary.start()[FEED].open.spans == [(1, 9)]


def test_a_checkpoint_of_another_version_is_ignored(diary: Diary) -> None:
    """Another version may read entries in another way."""
    diary.write("gap", 1, 9)
    diary.start()
    other = Checkpoint(diary.checkpoint.path, diary.path, dict[str, Account], "2")
    assert other.load() == (None, 0)


def test_a_place_that_cannot_be_written_costs_only_time(diary: Diary) -> None:
    """Without a checkpoint everything is read, and nothing is said."""
    diary.checkpoint.path.mkdir()
    diary.write("gap", 1, 9)
    for _ in range(2):
        assert diary.start()[FEED].open.spans == [(1, 9)]


def test_a_journal_is_read_since_a_time(diary: Diary) -> None:
    """Halving finds the place: no entry since that time is passed over, and nearly all before it are."""
    for n in range(20_000):
        diary.write("gap", n, n, feed="x" * 150)
    for since in (0, 1, 5_000, 12_345, 19_999, 20_000, 30_000):
        at = START + timedelta(seconds=since)
        ids = [entry.facts["first_id"] for entry in read(diary.path, since=at)]
        wanted = [n for n in range(20_000) if START + timedelta(seconds=n + 1) >= at]
        assert ids[len(ids) - len(wanted) :] == wanted
        assert len(ids) - len(wanted) < 6_000
