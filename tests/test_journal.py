"""The journal: whole lines whatever happens to the file, and readers that skip and count what is none."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcollect.journal import MAX_LINE, Journal, JournalError, read

AT_NS = 1_795_132_800_123_456_789  # 2026-11-20T00:00:00.123456789Z


def clock() -> int:
    return AT_NS


def test_an_entry_is_one_line_with_its_utc_time(tmp_path: Path) -> None:
    """An entry is written as one JSON line and read back with its time, kind and facts."""
    path = tmp_path / "data" / "journal.jsonl"
    Journal(path, clock).append("gap", feed="binance/trade/BTCUSDT", first_id=101, last_id=2**63 - 1)
    assert path.read_bytes() == (
        b'{"at":"2026-11-20T00:00:00.123456Z","event":"gap","feed":"binance/trade/BTCUSDT","first_id":101,'
        b'"last_id":9223372036854775807}\n'
    )
    (entry,) = read(path)
    assert entry.at == datetime(2026, 11, 20, 0, 0, 0, 123456, tzinfo=UTC)
    assert (entry.event, entry.facts["first_id"]) == ("gap", 101)
    assert path.stat().st_mode & 0o137 == 0


def test_a_missing_journal_has_no_entries(tmp_path: Path) -> None:
    """Reading a journal that does not exist yet gives nothing."""
    assert list(read(tmp_path / "none.jsonl")) == []


@given(cut=st.integers(min_value=1, max_value=58))
def test_a_torn_last_line_is_kept_ended_and_skipped(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever a crash cut the last line, later entries are whole, and readers count one damaged line, if any is."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    Journal(path, clock).append("first")
    whole = path.read_bytes()
    Journal(path, clock).append("torn", n=1)
    os.truncate(path, path.stat().st_size - cut)
    fragment = path.read_bytes()[len(whole) :]
    journal = Journal(path, clock)
    journal.append("next")
    journal.append("last")
    reading = read(path)
    only_its_end_is_missing = ["torn"] if fragment.endswith(b"}") else []
    assert [entry.event for entry in reading] == ["first", *only_its_end_is_missing, "next", "last"]
    assert reading.damaged == (0 if fragment == b"" or only_its_end_is_missing else 1)
    assert path.read_bytes().startswith(whole + fragment)


def test_only_some_kinds_of_entries_are_read(tmp_path: Path) -> None:
    """Entries of other kinds are passed over, also those whose facts speak of the kind; torn lines are counted."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, clock)
    journal.append("gap", first_id=1)
    journal.append("sealed", file="a.zip")
    journal.append("note", inner={"event": "sealed"}, text='"event":"sealed"')
    path.write_bytes(
        path.read_bytes() + b'{"at":"2026-11-20T00:00:00Z","event":"sea\n{"event": "sealed", "at": "soon"}\n'
    )
    journal.append("sealed", file="b.zip")
    reading = read(path, frozenset({"sealed", "uploaded"}))
    assert [entry.facts["file"] for entry in reading] == ["a.zip", "b.zip"]
    assert reading.damaged == 2


def test_only_the_end_of_a_long_journal_is_read(tmp_path: Path) -> None:
    """Whoever wants what happened just now is not kept by years of entries, nor by the half line at the beginning."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, clock)
    for number in range(1000):
        journal.append("connected", number=number)
    size = path.stat().st_size
    reading = read(path, frozenset({"connected"}), size // 2)
    numbers = [entry.facts["number"] for entry in reading]
    assert numbers == list(range(1000))[-len(numbers) :]
    assert 490 <= len(numbers) <= 500
    assert reading.damaged == 0
    assert len(list(read(path, None, 2 * size))) == 1000


DAMAGED = {
    "not JSON": b"?\n",
    "empty line": b"\n",
    "NUL bytes": b"\0" * 100 + b"\n",
    "a list": b"[1]\n",
    "no time": b'{"event":"gap"}\n',
    "a time that is none": b'{"at":"yesterday","event":"gap"}\n',
    "an event that is none": b'{"at":"2026-11-20T00:00:00Z","event":7}\n',
    "a time without text": b'{"at":1,"event":"gap"}\n',
    "a line longer than any entry": b"x" * (3 * MAX_LINE) + b"\n",
    "bad UTF-8": b'{"at":"2026-11-20T00:00:00Z","event":"\xff"}\n',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_lines_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    """A damaged line between two entries costs neither of them."""
    path = tmp_path / "journal.jsonl"
    Journal(path, clock).append("before")
    with path.open("ab") as file:
        file.write(DAMAGED[name])
    Journal(path, clock).append("after")
    reading = read(path)
    assert [entry.event for entry in reading] == ["before", "after"]
    assert reading.damaged == 1
    assert len(list(reading)) == 2
    assert reading.damaged == 1


def test_lines_are_bounded(tmp_path: Path) -> None:
    """Long texts are shortened, and too many facts left out by name, so that no line exceeds the bound."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, clock)
    journal.append("long", detail="é" * 100_000, code=1006)
    journal.append("many", **{f"fact_{n}_{'x' * 50}": "y" * 300 for n in range(1000)})
    long, many = read(path)
    assert long.facts["code"] == 1006
    assert long.facts["detail"].endswith("é…")
    assert len(many.facts["left_out"]) == 10
    assert max(map(len, path.read_bytes().splitlines(keepends=True))) <= MAX_LINE


@given(
    facts=st.dictionaries(
        st.text(st.characters(codec="utf-8")).filter(lambda n: n not in {"at", "event", "self"}),
        st.text() | st.integers() | st.none() | st.binary(max_size=5),
    )
)
def test_no_fact_breaks_the_line(tmp_path_factory: pytest.TempPathFactory, facts: dict[str, object]) -> None:
    """Any text (newlines, lone surrogates) and any number becomes exactly one line that can be read."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    Journal(path, clock).append("odd", **facts)
    assert path.read_bytes().count(b"\n") == 1
    (entry,) = read(path)
    assert entry.event == "odd"


def test_the_journals_own_names_are_refused(tmp_path: Path) -> None:
    """A fact cannot replace the entry's time or kind."""
    with pytest.raises(ValueError, match="'at' and 'event'"):
        Journal(tmp_path / "journal.jsonl", clock).append("gap", at="now")


def test_a_rotated_journal_goes_on_under_its_name(tmp_path: Path) -> None:
    """After the file was moved or deleted, the next entry is in a new file of the name."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, clock)
    journal.append("one")
    path.rename(tmp_path / "journal.1")
    journal.append("two")
    path.unlink()
    journal.append("three")
    assert [entry.event for entry in read(path)] == ["three"]
    assert [entry.event for entry in read(tmp_path / "journal.1")] == ["one"]


def test_sync_and_close_can_be_called_at_any_time(tmp_path: Path) -> None:
    """Before the first entry and after close there is nothing to sync, and no error."""
    journal = Journal(tmp_path / "journal.jsonl", clock)
    journal.sync()
    journal.append("one")
    journal.sync()
    journal.close()
    journal.close()
    journal.append("two")
    journal.close()
    assert [entry.event for entry in read(tmp_path / "journal.jsonl")] == ["one", "two"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    """Entries of several threads and of a sync in between are all there, whole."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)

    def work(name: str) -> None:
        for n in range(200):
            journal.append(name, n=n)
            if n % 50 == 0:
                journal.sync()

    threads = [threading.Thread(target=work, args=(f"t{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reading = read(path)
    assert sorted((e.event, e.facts["n"]) for e in reading) == sorted(
        (f"t{k}", n) for k in range(4) for n in range(200)
    )
    assert reading.damaged == 0


def _with_file_size_limit(limit: int, work: Callable[[], None]) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
    """An entry that only partly fits is reported, and once there is space again the journal goes on."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, clock)
    journal.append("before")

    def fill() -> None:
        for _ in range(2):
            with pytest.raises(JournalError, match="cannot append to the journal") as caught:
                journal.append("torn", n=1)
            assert caught.value.errno in {errno.ENOSPC, errno.EFBIG}

    _with_file_size_limit(path.stat().st_size + 10, fill)
    journal.append("after")
    reading = read(path)
    assert [entry.event for entry in reading] == ["before", "after"]
    assert reading.damaged == 1


def test_dev_full_is_a_journal_error() -> None:
    """A device without space refuses with the system's own error number."""
    with pytest.raises(JournalError) as caught:
        Journal(Path("/dev/full"), clock).append("gap")
    assert caught.value.errno == errno.ENOSPC


CHILD = """
import sys, itertools
from pathlib import Path
from tickcollect.journal import Journal
journal = Journal(Path(sys.argv[1]))
for n in itertools.count():
    journal.append("n", n=n)
    print(n, flush=True)
"""


def test_what_was_appended_survives_a_kill(tmp_path: Path) -> None:
    """After SIGKILL every entry whose append had returned is in the journal."""
    path = tmp_path / "journal.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (not path.exists() or path.stat().st_size < 5000):
        child.stdout.readline()
    child.kill()
    printed = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    numbers = [entry.facts["n"] for entry in read(path)]
    assert numbers == list(range(len(numbers)))
    assert not printed or len(numbers) > int(printed[-1] if printed[-1:] else 0)
    assert orjson.loads(path.read_bytes().splitlines()[0])["event"] == "n"
