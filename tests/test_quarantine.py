"""Refused messages and the log: written beside the path of the rows, whatever the disk does."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from tickcollect.happenings import QUARANTINE_WAITING_BYTES, Happenings, Quarantine
from tickcollect.journal import Journal, read

WAIT_S = 60


class Told(list[tuple[str, str, dict[str, Any]]]):
    def __call__(self, event: str, subject: str, **facts: Any) -> None:
        self.append((event, subject, facts))

    def events(self) -> list[str]:
        return [event for event, _, _ in self]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def quarantine(tmp_path: Path, told: Told) -> Quarantine:
    return Quarantine(tmp_path / "quarantine", told, lambda: 1_784_000_000_000_000_000)


@pytest.fixture
def hanging(quarantine: Quarantine) -> Iterator[Path]:
    """Put a file in place that hangs whoever opens it, until somebody reads it."""
    quarantine.directory.mkdir()
    path = quarantine.directory / "binance.jsonl"
    os.mkfifo(path)
    yield path
    if path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def kept(quarantine: Quarantine) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (quarantine.directory / "binance.jsonl").read_text().splitlines()]


def test_a_refused_message_is_written_as_it_came_with_its_reason(quarantine: Quarantine) -> None:
    """Nothing is written by whoever refuses; `write` does it."""
    quarantine.keep("binance", b'{"t":1\xff', "not JSON")
    assert not quarantine.directory.exists()
    quarantine.write()
    assert kept(quarantine) == [
        {"at": "2026-07-14T03:33:20.000Z", "reason": "not JSON", "message": '{"t":1\\xff'},
    ]


def test_a_disk_that_hangs_holds_up_nobody_who_refuses(quarantine: Quarantine, hanging: Path) -> None:
    """While one thread hangs in the file, others refuse messages without waiting; all are written in the end."""
    with ThreadPoolExecutor(1) as disk:
        quarantine.keep("binance", b"first", "a reason")
        writing = disk.submit(quarantine.write)
        for n in range(100):
            quarantine.keep("binance", b"%d" % n, "a reason")
        assert quarantine.total == 101
        assert not writing.done()
        with hanging.open("rb") as reader:
            received = b""
            while received.count(b"\n") < 101:
                received += reader.read(65536)
            writing.result(WAIT_S)
    messages = [json.loads(line)["message"] for line in received.splitlines()]
    assert messages == ["first", *map(str, range(100))]


def test_what_waits_for_the_disk_is_bounded_and_the_rest_is_counted(quarantine: Quarantine, told: Told) -> None:
    """However many messages are refused while the disk refuses, memory stays bounded, and it is told once."""
    quarantine.directory.write_text("a file where the directory should be")
    big = b"x" * 90_000
    count = 3 * QUARANTINE_WAITING_BYTES // len(big)
    for _ in range(count):
        quarantine.keep("binance", big, "a reason")
        quarantine.write()
    assert quarantine.total == count
    assert told.events().count("quarantine_failed") == 1
    quarantine.directory.unlink()
    quarantine.write()
    written = (quarantine.directory / "binance.jsonl").stat().st_size
    assert 0 < written <= QUARANTINE_WAITING_BYTES
    assert all(line["message"] == big.decode() for line in kept(quarantine))


def test_two_threads_count_every_message(quarantine: Quarantine) -> None:
    """Live rows are refused in the event loop, fetched ones in the disk's thread."""
    start = threading.Barrier(4)

    def refuse(n: int) -> None:
        start.wait(WAIT_S)
        for _ in range(500):
            quarantine.keep("binance", b"x", f"reason {chr(97 + n)}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(refuse, range(4)))
    quarantine.write()
    assert quarantine.total == sum(quarantine.counts.values()) == len(kept(quarantine)) == 2000


LOGGING = """
import sys
from pathlib import Path
from loguru import logger
from tickcollect.terminal import log_to
log_to(Path(sys.argv[1]), "INFO")
for n in range(5000):
    logger.info("line {} " + "x" * 100, n)
print("done")
"""


def test_a_log_file_that_hangs_or_is_full_holds_up_nothing(tmp_path: Path) -> None:
    """Whoever logs goes on while the log's disk does not; the end waits for it a moment only."""
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    unread = os.open(pipe, os.O_RDWR)
    try:
        for file in (str(pipe), "/dev/full"):
            ended = subprocess.run(
                [sys.executable, "-c", LOGGING, file], capture_output=True, text=True, timeout=WAIT_S, check=False
            )
            assert (ended.returncode, ended.stdout) == (0, "done\n")
            assert "Traceback" not in ended.stderr
    finally:
        os.close(unread)


def test_a_log_file_begins_anew_at_its_size_and_old_ones_go(tmp_path: Path) -> None:
    """The newest lines are in the named file; five older files are kept."""
    file = tmp_path / "run.log"
    program = LOGGING.replace(
        "from tickcollect.terminal import log_to",
        "from tickcollect import terminal\nterminal.LOG_FILE_BYTES = 50_000\nlog_to = terminal.log_to",
    )
    subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, timeout=WAIT_S, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.log", *(f"run.log.{n}" for n in range(1, 6))]
    lines = [line for n in ("", ".1") for line in (tmp_path / f"run.log{n}").read_text().splitlines()]
    assert any("line 4999 " in line for line in lines)
    assert all((tmp_path / f"run.log.{n}").stat().st_size <= 50_000 for n in range(1, 6))


def test_what_an_exchange_says_is_one_line_of_the_log(tmp_path: Path) -> None:
    """A refusal's text can neither forge a line of the log nor steer the terminal; the journal keeps it as it came."""
    message = "\x1b]0;title\x07\x1b[2J\n2026-11-26T00:00:00.000Z INFO    binance/trade/BTCUSDT: 1 to 2 filled"
    said: list[str] = []
    sink = logger.add(said.append, level="INFO", format="{message}")
    happenings = Happenings(Journal(tmp_path / "journal.jsonl"))
    try:
        happenings.tell("subscription_refused", "binance", streams=["btcusdt@trade"], message=message, code=2)
    finally:
        logger.remove(sink)
    happenings.write()
    (line,) = said
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert "1 to 2 filled (code 2)" in line
    assert [entry.facts["message"] for entry in read(tmp_path / "journal.jsonl")] == [message]
