"""Processes under measurement: start them on a core of their own, watch their files, stop them, read their costs.

Rules:

1. Processor time is what the kernel charged to the whole process, user and system, all threads included.
2. Peak memory is the kernel's high-water mark of the resident size (`VmHWM`), read before the process is stopped.
3. That a row is there is seen from outside, in the file, as any other program would see it.
4. Every wait has an end; what does not come makes the measurement void (`VoidError`), never a number.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from tape import FIRST_ID, Tape

HERE = Path(__file__).parent
TICKCOLLECT = Path(sys.executable).with_name("tickcollect")
LOOK_S = 0.002
"""Between two looks at the files: what the delays seen there may be too long by."""
LONGEST_ROW_BYTES = 200


class VoidError(Exception):
    """A measurement that did not measure what it says: rows are missing, or something never came."""


@dataclass(frozen=True)
class Cores:
    """Where the processes run: the measured one alone on `subject`, everything else on `rest`; None where unpinned."""

    subject: int | None
    rest: int | None


def split_cores() -> Cores:
    """Give the subject a core of its own, where the machine has two and lets us choose."""
    if not hasattr(os, "sched_setaffinity"):
        return Cores(None, None)
    available = sorted(os.sched_getaffinity(0))
    if len(available) == 1:
        return Cores(None, None)
    cores = Cores(available[-1], available[0])
    os.sched_setaffinity(0, {available[0]})
    return cores


@dataclass(frozen=True)
class Cost:
    """What a process used, from its start to its end."""

    cpu_s: float
    peak_bytes: int
    exit_code: int


class Process:
    """A running subject; `stop` ends it and tells its cost."""

    def __init__(
        self, command: Sequence[str | Path], directory: Path, env: Mapping[str, str], core: int | None
    ) -> None:
        self.log = directory / "log"
        self.started_s = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={"PATH": os.defpath, "HOME": str(directory), "LC_ALL": "C.UTF-8", **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    @property
    def alive(self) -> bool:
        """Whether it still runs, as far as `/proc` tells; it is not reaped here."""
        try:
            return "\nState:\tZ" not in self._proc("status")
        except OSError:
            return False

    def cpu_s(self) -> float:
        """Return the processor time used so far."""
        fields = self._proc("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self) -> int:
        """Return the high-water mark of the resident size."""
        line = next(line for line in self._proc("status").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def stop(self, timeout_s: float = 60.0) -> Cost:
        """End it in order with SIGTERM, unless it has ended; kill it if that takes too long."""
        peak_bytes = self.peak_bytes() if self.alive else 0
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s, peak_bytes)

    def wait(self, timeout_s: float = 60.0, peak_bytes: int = 0) -> Cost:
        """Wait for its own end."""
        try:
            until(lambda: not self.alive, timeout_s, "the process did not end")
        except VoidError:
            self._process.kill()
            self._process.wait()
            raise
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Cost(usage.ru_utime + usage.ru_stime, peak_bytes, self._process.returncode)

    def kill(self) -> None:
        """Make sure that it is gone."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def until(self, condition: Callable[[], object], timeout_s: float, otherwise: str) -> None:
        """Look until `condition` holds; raise `VoidError` if that does not come in time, or the process ends before."""
        until(lambda: condition() or not self.alive, timeout_s, otherwise)
        if not self.alive:
            raise VoidError("the process ended by itself")

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text()


@contextmanager
def running(
    command: Sequence[str | Path], directory: Path, env: Mapping[str, str], core: int | None
) -> Iterator[Process]:
    """Start a subject in `directory`, which is made; it is gone when the block is left."""
    directory.mkdir(parents=True, exist_ok=True)
    process = Process(command, directory, env, core)
    try:
        yield process
    except VoidError as error:
        error.add_note(process.log.read_text(errors="replace")[-2000:])
        raise
    finally:
        process.kill()


def until(condition: Callable[[], object], timeout_s: float, otherwise: str) -> None:
    """Look until `condition` holds; raise `VoidError` if it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise VoidError(f"{otherwise} within {timeout_s:.0f} s")
        time.sleep(LOOK_S)


# --- The other end -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transport:
    """Plain or TLS: the schemes, the feeder's certificate, and what makes a client trust it."""

    name: str
    certificate: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def url(self, scheme: str, port: int) -> str:
        """Return the feeder's address; `scheme` is ws or http."""
        return f"{scheme}{'s' if self.certificate else ''}://127.0.0.1:{port}"


def transports(directory: Path) -> tuple[Transport, Transport]:
    """Return plain and TLS, with a certificate made for this run."""
    authority = trustme.CA()
    server, trusted = directory / "server.pem", directory / "authority.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
    authority.cert_pem.write_to_path(str(trusted))
    return Transport("plain"), Transport("TLS", server, {"SSL_CERT_FILE": str(trusted)})


class Feeder:
    """The loopback exchange: its port, and when it began and ended sending, by the monotonic clock."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._told: dict[str, dict[str, float]] = {}
        threading.Thread(target=self._listen, daemon=True).start()
        self.port = int(self._wait("listening", 120.0)["port"])

    def started_s(self) -> float:
        """Wait for the first trade, which follows the subscription, and return when it was sent."""
        return self._wait("started", 30.0)["at_s"]

    def sent_s(self) -> float:
        """Wait until the last trade has been sent, and return when."""
        return self._wait("sent", 30.0)["at_s"]

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            told = json.loads(line)
            self._told[told.pop("event")] = told

    def _wait(self, event: str, timeout_s: float) -> dict[str, float]:
        until(lambda: event in self._told, timeout_s, f"the feeder did not say '{event}'")
        return self._told[event]


@contextmanager
def feeding(tape: Tape, transport: Transport, *, count: int, first: int = 0, per_s: float = 0) -> Iterator[Feeder]:
    """Start a feeder for `count` trades from number `first` on; it ends with the block."""
    order = {"--symbols": tape.symbols, "--day": tape.day, "--count": count, "--first": first, "--per-s": per_s}
    command = [sys.executable, str(HERE / "feeder.py"), *(str(part) for item in order.items() for part in item)]
    if transport.certificate:
        command += ["--certificate", str(transport.certificate)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Feeder(process)
        finally:
            process.kill()


# --- Rows ----------------------------------------------------------------------------------------------------------


def feed_directory(data: Path, symbol: str) -> Path:
    """Return where `tickcollect` keeps a symbol's files."""
    return data / "binance" / "trade" / symbol


def newest_id(path: Path) -> int:
    """Return the ID of the last whole row of a CSV file, or 0."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * LONGEST_ROW_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return 0
    columns = lines[-2].split(b",") if len(lines) > 1 else []
    return int(columns[3]) if len(columns) > 3 else 0


def is_complete(directory: Path, last_id: int) -> bool:
    """Whether the open segment in `directory` has come to `last_id`."""
    return any(newest_id(path) >= last_id for path in directory.glob("*.csv"))


def check_rows(path: Path, tape: Tape, symbol: int, count: int) -> None:
    """Raise `VoidError` unless `path` holds the first `count` trades of a symbol, each once, in order, as sent."""
    seen = 0
    with path.open() as rows:
        for seen, (row, expected) in enumerate(zip(rows, tape.columns(symbol, 0, count), strict=False), start=1):
            kind, _, columns = row.split(",", 2)
            if kind != "trade" or columns != f"{expected}\n":
                raise VoidError(f"row {seen} of {path.name} is {row!r}, expected {expected!r}")
        if seen < count or next(rows, None) is not None:
            raise VoidError(f"{path.name} has not exactly {count} rows, from ID {FIRST_ID} on")
