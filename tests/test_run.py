"""`tickcollect run` as a process: signals, restarts, refusals of the exchange, silence, status, terminals, secrets."""

import contextlib
import fcntl
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    GAPS_STAY,
    Exchange,
    Program,
    Programs,
    check_accounts,
    data_files,
    exchange,
    journal,
    quarantined,
    rows,
    rows_told,
    status_of,
    until,
)

from tickcollect.dataset.replay import Answer, Behaviour, Cut, GeneratedMarket, Request

START_MS = 1_784_000_000_000
SPOT = "binance/trade/BTCUSDT"
HTTP_429, HTTP_451 = HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS


def busy_market(**options: Any) -> GeneratedMarket:
    """Return a market that never ends."""
    return GeneratedMarket("binance", START_MS, **{"symbols": 2, "activity": 60, **options})


@pytest.fixture
def at_max() -> Iterator[Exchange]:
    """Serve a market that sends as fast as it is read."""
    with exchange(busy_market()) as served:
        yield served


@pytest.fixture
def live() -> Iterator[Exchange]:
    """Serve a market that goes on whether anybody listens or not."""
    with exchange(busy_market(activity=10), speed=10, clock=lambda: START_MS / 1000) as served:
        yield served


def collecting(programs: Programs, served: Exchange, data_dir: Path, *options: object, **how: Any) -> Program:
    """Start collecting BTCUSDT and wait for its first rows."""
    run = programs.start("run", "--symbol", "BTCUSDT", "--data-dir", data_dir, *served.addresses, *options, **how)
    size = bytes_of(data_dir)
    run.until(lambda: bytes_of(data_dir) > size)
    return run


def bytes_of(data_dir: Path) -> int:
    """Return the size of all data, packed or not."""
    return sum(path.stat().st_size for path in data_dir.glob("*/*/*/*.csv*") if path.exists())


# --- Stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_in_order(number: signal.Signals, at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """At any moment a first signal ends with code 0, a summary that is true, whole files, and a start that goes on."""
    data_dir = tmp_path / "data"
    config = programs.config(**GAPS_STAY)
    told = 0
    for _ in range(2):
        run = collecting(programs, at_max, data_dir, "--config", config)
        time.sleep(random.uniform(0, 0.2))  # any moment
        ended = run.stop(number)
        assert ended.code == 0, ended.said
        told += int(ended.out.partition(" rows in")[0].replace(",", ""))
        assert str(data_dir / SPOT) in ended.out
        assert "stopping: " in ended.err
        assert told == len(rows(data_dir, SPOT))
        assert status_of(data_dir)["state"] == "stopped"
    check_accounts(data_dir, SPOT, busy_market())


def test_two_signals_at_once_are_one_wish(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """A shell or `timeout` that signals the process and its group does not make it break off."""
    run = collecting(programs, at_max, tmp_path / "data")
    run.send(signal.SIGINT, signal.SIGINT)
    assert run.wait().code == 0
    assert status_of(tmp_path / "data")["state"] == "stopped"


def test_nohup_is_respected(live: Exchange, programs: Programs, tmp_path: Path) -> None:
    """Started with SIGHUP ignored, as nohup does, it goes on when its terminal is lost."""
    run = collecting(programs, live, tmp_path / "data", before=("sh", "-c", 'trap "" HUP; exec "$@"', "sh"))
    run.send(signal.SIGHUP)
    size = bytes_of(tmp_path / "data")
    run.until(lambda: bytes_of(tmp_path / "data") > size)
    assert "stopping" not in run.said()
    assert run.stop().code == 0


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace, to make the disk slow")
def test_a_second_signal_stops_at_once(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """Where stopping in order takes long, a second Ctrl-C ends with code 130; the next start recovers the files."""
    slow_disk = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fdatasync",
        "-e",
        "inject=fdatasync:delay_enter=3000000",
    ]
    config = programs.config(SYNC_INTERVAL_S=60, **GAPS_STAY)
    data_dir = tmp_path / "data"
    run = collecting(programs, at_max, data_dir, "--config", config, before=slow_disk)
    pid = run.until(lambda: status_of(data_dir).get("pid"))
    os.kill(pid, signal.SIGINT)
    run.until_said("stopping: ")
    time.sleep(0.6)  # until when a signal counts as the same wish
    os.kill(pid, signal.SIGINT)
    ended = run.wait()
    assert ended.code == 130
    assert "stopped at once; the next start recovers the files" in ended.err
    assert collecting(programs, at_max, data_dir, "--config", config).stop().code == 0
    check_accounts(data_dir, SPOT, busy_market())


def test_a_signal_before_the_exchange_has_answered_ends_it(programs: Programs, tmp_path: Path) -> None:
    """While it still waits for the list of symbols it stops as quickly, and has made nothing."""
    behaviour = Behaviour(rest=lambda _, given: given._replace(delay_s=600.0))
    with exchange(busy_market(), behaviour=behaviour) as served:
        run = programs.start("run", "--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", *served.addresses)
        run.until(lambda: served.server.requests)
        ended = run.stop()
    assert ended.code == 0
    assert not (tmp_path / "data").exists()


# --- The exchange refuses ------------------------------------------------------------------------------------------


def test_an_unknown_symbol_is_refused_before_anything_is_made(
    at_max: Exchange, programs: Programs, tmp_path: Path
) -> None:
    """Typing errors, all of them, are named with the nearest symbols; no directory appears and nothing is connected."""
    data_dir = tmp_path / "data"
    symbols = ("--symbol", "BTCUSTD", "--symbol", "ETHUSDT", "--symbol", "ethusdt", "--symbol", "QQQQQQQQQQ")
    ended = programs.run("run", *symbols, "--data-dir", data_dir, *at_max.addresses)
    assert ended.code == 2
    assert "BTCUSTD is not a symbol of this exchange; did you mean BTCUSDT" in ended.err
    assert "ethusdt is not a symbol of this exchange; did you mean ETHUSDT?" in ended.err
    assert "QQQQQQQQQQ is not a symbol of this exchange; the exchange lists no similar name" in ended.err
    assert "Traceback" not in ended.said
    assert not data_dir.exists()


def test_an_exchange_that_cannot_be_reached_is_asked_again(programs: Programs, tmp_path: Path) -> None:
    """No connection is told in words with the time of the next attempt, and collecting begins when there is one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    addresses = ("--ws-url", f"ws://127.0.0.1:{port}", "--rest-url", f"http://127.0.0.1:{port}")
    run = programs.start("run", "--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", *addresses)
    run.until_said("Next attempt in")
    assert "binance: " in run.said()
    assert "Check the network" in run.said()
    assert not (tmp_path / "data").exists()
    with exchange(busy_market(), port=port):
        run.until(lambda: bytes_of(tmp_path / "data"))
        assert run.stop().code == 0


def test_a_blocked_country_is_told_with_the_way_out(programs: Programs, tmp_path: Path) -> None:
    """451 will not pass by waiting: it ends at once and names the address that serves everybody."""
    blocked = Behaviour(rest=lambda *_: Answer(HTTP_451, b'{"code":0,"msg":"restricted location"}'))
    with exchange(busy_market(), behaviour=blocked) as served:
        ended = programs.run("run", "--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", *served.addresses)
    assert ended.code == 2
    assert "data-stream.binance.vision" in ended.err
    assert "Traceback" not in ended.said
    assert not (tmp_path / "data").exists()


def test_too_many_requests_wait_as_long_as_told(programs: Programs, tmp_path: Path) -> None:
    """After 429 nothing is sent before Retry-After has passed; then it goes on by itself."""
    asked_s: list[float] = []

    def limited(_: Request, given: Answer) -> Answer:
        asked_s.append(time.monotonic())
        if len(asked_s) > 1:
            return given
        return Answer(HTTP_429, b'{"code":-1003,"msg":"Too many requests"}', {"Retry-After": "3"})

    with exchange(busy_market(), behaviour=Behaviour(rest=limited)) as served:
        run = collecting(programs, served, tmp_path / "data")
        assert run.stop().code == 0
    assert asked_s[1] - asked_s[0] >= 3.0
    assert "Next attempt in 3 s" in run.said()


def test_a_refused_connection_is_told_and_tried_again(programs: Programs, tmp_path: Path) -> None:
    """A websocket that is refused at first is told in words; rows come once it is accepted."""
    refusals = iter([Answer(HTTPStatus.BAD_GATEWAY, b""), Answer(HTTPStatus.BAD_GATEWAY, b"")])
    behaviour = Behaviour(handshake=lambda *_: next(refusals, None))
    with exchange(busy_market(), behaviour=behaviour) as served:
        run = collecting(programs, served, tmp_path / "data")
        assert run.stop().code == 0
    refused = journal(tmp_path / "data", "cannot_connect")
    assert len(refused) == 2
    assert "HTTP 502: the exchange has trouble of its own" in refused[0]["reason"]


def test_a_lost_connection_is_made_again(live: Exchange, programs: Programs, tmp_path: Path) -> None:
    """After a cut it connects again; what passed meanwhile is in the journal, and nothing is written twice."""
    run = collecting(programs, live, tmp_path / "data", "--config", programs.config(**GAPS_STAY))
    live.do(lambda: live.server.disconnect(Cut()))
    run.until(lambda: len(journal(tmp_path / "data", "connected")) == 2)
    size = bytes_of(tmp_path / "data")
    run.until(lambda: bytes_of(tmp_path / "data") > size)
    assert run.stop().code == 0
    assert len(journal(tmp_path / "data", "disconnected")) == 1
    check_accounts(tmp_path / "data", SPOT, busy_market(activity=10))


# --- Silence -------------------------------------------------------------------------------------------------------


def test_a_silent_subscription_is_found_and_made_again(programs: Programs, tmp_path: Path) -> None:
    """Acknowledged and then silent while the market trades, as on a wrong route: told, and connected again."""
    handshakes: list[str] = []

    def count(target: str, _: object) -> None:
        handshakes.append(target)

    muted = Behaviour(handshake=count, message=lambda _, __, ___, text: [text] if len(handshakes) > 1 else [])
    config = programs.config(FIRST_DATA_S=1, **GAPS_STAY)
    with exchange(busy_market(activity=10), speed=10, behaviour=muted) as served:
        run = collecting(programs, served, tmp_path / "data", "--config", config)
        run.until(lambda: journal(tmp_path / "data", "data_again"))
        assert run.stop().code == 0
    (silent,) = journal(tmp_path / "data", "silent")
    assert silent["subject"] == SPOT
    assert silent["exchange_id"] > 0
    (again,) = journal(tmp_path / "data", "data_again")
    assert again["subject"] == SPOT
    assert len(journal(tmp_path / "data", "connected")) == 2


def test_a_quiet_market_is_no_alarm(programs: Programs, tmp_path: Path) -> None:
    """Where the exchange has no newer trade either, that is noted once as quiet and nothing is torn down."""
    with exchange(busy_market(duration_s=0.001), behaviour=Behaviour(message=lambda *_: [])) as served:
        config = programs.config(FIRST_DATA_S=1, **GAPS_STAY)
        options = ("--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", "--config", config)
        run = programs.start("run", *options, *served.addresses)
        run.until(lambda: journal(tmp_path / "data", "quiet"))
        assert run.stop().code == 0
    assert journal(tmp_path / "data", "silent", "disconnected") == []
    assert len(journal(tmp_path / "data", "unknown")) == 1, "an open connection is a sign of life before its first row"


# --- Two at once ---------------------------------------------------------------------------------------------------


def test_a_second_collector_of_a_feed_is_refused(live: Exchange, programs: Programs, tmp_path: Path) -> None:
    """The second collector of a feed ends with code 75 and names the first; another feed is welcome."""
    first = collecting(programs, live, tmp_path / "data")
    second = programs.run("run", "--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", *live.addresses)
    assert second.code == 75
    assert f"pid {first.process.pid}" in second.err
    assert "Traceback" not in second.said
    other = programs.start("run", "--symbol", "ETHUSDT", "--data-dir", tmp_path / "data", *live.addresses)
    other.until(lambda: list((tmp_path / "data/binance/trade/ETHUSDT").glob("*.csv")))
    assert (tmp_path / "data/status-2.json").exists()
    shown = programs.run("status", "--data-dir", tmp_path / "data", "--json")
    assert {snapshot["pid"] for snapshot in json.loads(shown.out)} == {first.process.pid, other.process.pid}
    assert other.stop().code == 0
    assert first.stop().code == 0
    stopped = journal(tmp_path / "data", "stopped")
    assert len(stopped) == 2, "the one that was refused had nothing to stop"


def test_the_lock_dies_with_its_holder(live: Exchange, programs: Programs, tmp_path: Path) -> None:
    """After kill -9 the next start is not kept out by what the dead one left."""
    collecting(programs, live, tmp_path / "data").stop(signal.SIGKILL)
    assert collecting(programs, live, tmp_path / "data").stop().code == 0


# --- Many feeds ----------------------------------------------------------------------------------------------------


def test_hundreds_of_feeds_need_few_open_files(programs: Programs, tmp_path: Path) -> None:
    """300 feeds are collected where the shell allows 128 open files, and each has its rows."""
    market = GeneratedMarket("binance", START_MS, symbols=300, activity=4, duration_s=20)
    symbols = [listing.symbol for listing in market.listings]
    sent = Counter(message.stream for message in market.messages([f"{symbol.lower()}@trade" for symbol in symbols]))
    with exchange(market) as served:
        config = programs.config(DATA_DIR=str(tmp_path / "data"), COLLECT=[{**served.entry, "symbols": symbols}])
        run = programs.start("run", "--config", config, before=("sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh"))
        run.until(lambda: rows_told(tmp_path / "data") == sent.total())
        assert run.stop().code == 0
    assert len(list((tmp_path / "data/binance/trade").iterdir())) == 300
    feeds = {stream: f"binance/trade/{stream.partition('@')[0].upper()}" for stream in sent}
    assert {stream: len(rows(tmp_path / "data", feed)) for stream, feed in feeds.items()} == sent


def test_too_few_open_files_are_told(programs: Programs, tmp_path: Path) -> None:
    """Where the hard limit does not even allow the locks, the start ends with the limit to raise."""
    market = GeneratedMarket("binance", START_MS, symbols=300, activity=200)
    with exchange(market) as served:
        entry = {**served.entry, "symbols": [listing.symbol for listing in market.listings]}
        config = programs.config(DATA_DIR=str(tmp_path / "data"), COLLECT=[entry])
        ended = programs.run("run", "--config", config, before=("sh", "-c", 'ulimit -n 128; exec "$@"', "sh"))
    assert ended.code == 1
    assert "ulimit -n" in ended.err
    assert "Traceback" not in ended.said


def test_memory_stays_flat(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """A hundred thousand rows more cost no memory."""
    run = collecting(programs, at_max, tmp_path / "data", "--config", programs.config(ROTATE_SIZE="1MB"))

    def resident_kb() -> int:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{run.process.pid}/status").read_text())
        assert found
        return int(found[1])

    run.until(lambda: at_max.server.sent.total() > 60_000)
    before_kb = resident_kb()
    run.until(lambda: at_max.server.sent.total() > 180_000)
    assert resident_kb() - before_kb < 10_000
    assert run.stop().code == 0


# --- The disk ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_stops_in_order(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """With no space left collecting waits and says so; a signal still ends it in one line, with a code that tells."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", data_dir], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = collecting(programs, at_max, data_dir)
        run.until_said("The disk is full")
        ended = run.stop()
        assert ended.code == 1
        assert "Traceback" not in ended.said
        assert rows(data_dir, SPOT)
    finally:
        subprocess.run(["umount", data_dir], check=True)


# --- Status --------------------------------------------------------------------------------------------------------


def test_status_tells_another_terminal(live: Exchange, programs: Programs, tmp_path: Path) -> None:
    """While it runs, after it stopped, after it was killed and where none ran: in words, as JSON and as exit code."""
    data_dir = tmp_path / "data"
    status = ("status", "--data-dir", data_dir)
    never = programs.run(*status)
    assert (never.code, "no collector has run in" in never.said) == (3, True)
    run = collecting(programs, live, data_dir)
    run.until(lambda: rows_told(data_dir))
    running = programs.run(*status, env={"COLUMNS": "200"})
    assert running.code in {0, 1}, running.said
    assert "BTCUSDT" in running.out
    (snapshot,) = json.loads(programs.run(*status, "--json").out)
    assert (snapshot["state"], snapshot["pid"]) == ("running", run.process.pid)
    assert snapshot["feeds"][0]["rows"] > 0
    assert run.stop().code == 0
    stopped = programs.run(*status)
    assert (stopped.code, "stopped in order" in stopped.out) == (2, True)
    run = collecting(programs, live, data_dir)
    run.until(lambda: status_of(data_dir).get("pid") == run.process.pid)
    run.stop(signal.SIGKILL)
    killed = programs.run(*status)
    assert killed.code == 2
    assert f"process {run.process.pid} is gone" in " ".join(killed.out.split())
    assert "\x1b" not in running.said + stopped.said + killed.said


# --- Terminals -----------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal of some size with a program in it."""

    def __init__(self, columns: int, lines: int, command: list[str], folder: Path) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[1])}
        environment = {name: text for name, text in environment.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=environment
        )
        os.close(slave)
        self.seen = b""
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # all of its programs have ended
            while not self._closed.is_set():
                if select.select([self.master], [], [], 0.05)[0]:
                    self.seen += os.read(self.master, 65536)

    def close(self) -> None:
        """Close the window."""
        self._closed.set()
        self._reader.join()
        os.close(self.master)

    @property
    def text(self) -> str:
        """What was printed, without escape codes."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen.decode("utf-8", "replace")).replace("\r", "")

    def until(self, text: str) -> None:
        """Wait until the program has shown something."""
        until(lambda: text in self.text or self.process.poll() is not None, lambda: self.text)
        assert text in self.text, self.text

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def wait(self) -> int:
        """Wait for the program's end and return its exit code."""
        until(lambda: self.process.poll() is not None, lambda: self.text)
        return self.process.returncode


@pytest.mark.skipif(not shutil.which("setsid"), reason="needs setsid, for a terminal of its own")
@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_a_live_view(columns: int, live: Exchange, tmp_path: Path) -> None:
    """In a terminal the symbols are shown while they come; Ctrl-C leaves a clean screen with the summary below."""
    command = [sys.executable, "-m", "tickcollect", "run", "--symbol", "BTCUSDT", "--symbol", "ETHUSDT"]
    terminal = Terminal(columns, 30, [*command, "--data-dir", str(tmp_path / "data"), *live.addresses], tmp_path)
    try:
        terminal.until("rows/s")
        terminal.until("BTCUSDT")
        until(lambda: rows_told(tmp_path / "data"))
        terminal.type(b"\x03")
        assert terminal.wait() == 0
    finally:
        terminal.process.kill()
        terminal.close()
    assert b"\x1b[?25l" in terminal.seen, "the cursor is hidden while it draws"
    assert terminal.seen.rindex(b"\x1b[?25h") > terminal.seen.rindex(b"\x1b[?25l"), "and shown again at the end"
    assert b"\x1b[?1049h" not in terminal.seen, "what was on the screen before stays"
    last = terminal.text.splitlines()[-6:]
    assert any(re.search(r"[\d,]+ rows in \d+ s; no ID is missing", line) for line in last), last
    assert "Z WARNING stopping: " in terminal.text, "told above the picture, not into it"
    assert "Traceback" not in terminal.text
    assert all(len(line) <= columns for line in terminal.text.splitlines() if "rows/s" in line)


@pytest.mark.skipif(not shutil.which("setsid"), reason="needs setsid, for a terminal of its own")
def test_a_lost_terminal_stops_in_order(live: Exchange, tmp_path: Path) -> None:
    """When the terminal's window is closed, nothing can be told any more, and everything is still written."""
    command = [sys.executable, "-m", "tickcollect", "run", "--symbol", "BTCUSDT"]
    terminal = Terminal(80, 30, [*command, "--data-dir", str(tmp_path / "data"), *live.addresses], tmp_path)
    try:
        until(lambda: rows_told(tmp_path / "data"))
        terminal.close()
        until(lambda: terminal.process.poll() is not None)
    finally:
        terminal.process.kill()
    assert terminal.process.returncode == 0
    assert status_of(tmp_path / "data")["state"] == "stopped"
    assert journal(tmp_path / "data", "stopped")
    assert data_files(tmp_path / "data", SPOT)


def test_without_a_terminal_there_are_plain_lines(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """Into a file goes one line a happening with its UTC time, no escape code and no table."""
    ended = collecting(programs, at_max, tmp_path / "data", env={"FORCE_COLOR": "1"}).stop()
    assert "\x1b" not in ended.said
    log = [line for line in ended.err.splitlines() if not line.startswith("stopping: ")]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING) ", line) for line in log), ended.err
    assert re.fullmatch(r"[\d,]+ rows in \d+ s; no ID is missing up to the stop", ended.out.splitlines()[0])


# --- Secrets -------------------------------------------------------------------------------------------------------


def test_secrets_stay_secret(live: Exchange, programs: Programs, tmp_path: Path) -> None:
    """No key, token or proxy password of the configuration appears in what is said or written, at any log level."""
    secrets = {
        "AWS_ACCESS_KEY": "AKIAPLANTED00SECRET0",
        "AWS_SECRET_KEY": "planted/secret/aws/0123456789abcdefghijk",
        "S3_BUCKET": "ticks",
        "TELEGRAM_TOKEN": "123456789:PLANTEDsecretTelegram_0123456789abc",
        "TELEGRAM_CHAT_ID": "42",
    }
    data_dir = tmp_path / "data"
    config = programs.config(**secrets, LOG_LEVEL="DEBUG", LOG_FILE=str(tmp_path / "log.txt"))
    said = collecting(programs, live, data_dir, "--config", config).stop().said
    said += programs.run("status", "--data-dir", data_dir, "--config", config, "--json").said
    wrong = programs.config(
        **{**secrets, "TELEGRAM_CHAT_ID": [], "PROXY": "http://me:plantedproxy@:x", "ROTATE_SIZE": 1}
    )
    refused = programs.run("run", "--symbol", "BTCUSDT", "--config", wrong, "--data-dir", data_dir, *live.addresses)
    assert refused.code == 2
    said += refused.said
    said += "".join(
        path.read_text("utf-8", "replace")
        for path in tmp_path.rglob("*")
        if path.suffix in {".jsonl", ".json", ".txt"} and path != config
    )
    for secret in (secrets["AWS_ACCESS_KEY"], secrets["AWS_SECRET_KEY"], secrets["TELEGRAM_TOKEN"], "plantedproxy"):
        assert secret not in said


def test_the_log_goes_to_a_file_as_well(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """LOG_FILE gets the lines that the terminal or the error output gets."""
    log = tmp_path / "collect.log"
    ended = collecting(programs, at_max, tmp_path / "data", "--config", programs.config(LOG_FILE=str(log))).stop()
    lines = log.read_text("utf-8").splitlines()
    assert any("connected to" in line for line in lines)
    assert all(line in ended.err for line in lines)


def test_a_log_file_that_cannot_be_written_is_a_mistake(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """It is told in one line before anything is connected."""
    config = programs.config(LOG_FILE=str(tmp_path))
    ended = programs.run(
        "run", "--symbol", "BTCUSDT", "--config", config, "--data-dir", tmp_path / "d", *at_max.addresses
    )
    assert ended.code == 2
    assert "LOG_FILE" in ended.err
    assert "Traceback" not in ended.said


def test_nothing_is_in_quarantine_after_an_ordinary_run(at_max: Exchange, programs: Programs, tmp_path: Path) -> None:
    """Replies, pings and closes are no messages that somebody has to look at."""
    assert collecting(programs, at_max, tmp_path / "data").stop().code == 0
    assert quarantined(tmp_path / "data", "binance") == []
