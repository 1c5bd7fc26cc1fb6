"""What is judged: a collector as a process of its own.

The contract for any collector. `Target.command` is a command line in which these words are replaced:

    {ws_url}     the exchange's websocket, ws://127.0.0.1:PORT (streams at /ws/NAME and /stream?streams=NAME)
    {rest_url}   its REST, http://127.0.0.1:PORT (below it /api/v3/...)
    {symbol}     what to collect: the trades of this symbol; {symbols} has all of a case, separated by commas
    {data_dir}   an empty directory, in which it writes text files, one row a line

A row is found by its ID and its price, as the exchange wrote them, anywhere in a line; .zip and .gz are opened. SIGTERM
asks the collector to stop. What it prints is what it says.
"""

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ADAPTERS = Path(__file__).resolve().parent / "adapters"

SECRETS = {
    "TICKCOLLECT_BINANCE_API_KEY": "planted-binance-key-5f1c",
    "TICKCOLLECT_AWS_ACCESS_KEY": "AKIAPLANTEDKEY77",
    "TICKCOLLECT_AWS_SECRET_KEY": "planted/aws+secret/9a2e",
    "TICKCOLLECT_TELEGRAM_TOKEN": "123456:planted-telegram-token-3d",
}
"""Planted in every run of tickcollect; none may come out again."""

QUICK = {
    "TICKCOLLECT_SYNC_INTERVAL_S": "0.2",
    "TICKCOLLECT_GAP_PATIENCE_S": "0.3",
    "TICKCOLLECT_FIRST_DATA_S": "3",
    "TICKCOLLECT_MIN_FREE_DISK": "0",
    "TICKCOLLECT_TELEGRAM_CHAT_ID": "1",
}


@dataclass(frozen=True)
class Addresses:
    """Where a target finds its exchange, and where it writes."""

    ws_url: str
    rest_url: str
    symbols: Sequence[str]
    data_dir: Path


@dataclass(frozen=True)
class Target:
    """A collector under test."""

    name: str
    command: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Its environment, beside this process's own."""
    needs_tls: bool = False
    """Whether it takes wss:// addresses only; SSL_CERT_FILE then names the certificate to trust."""
    keeps_journal: bool = False
    """Whether it states its losses in tickcollect's journal; then its files are held to tickcollect's rules too."""

    def command_line(self, addresses: Addresses) -> list[str]:
        """Return the command for one run."""
        words = {
            "ws_url": addresses.ws_url,
            "rest_url": addresses.rest_url,
            "symbol": addresses.symbols[0],
            "symbols": ",".join(addresses.symbols),
            "data_dir": str(addresses.data_dir),
        }
        line = [word.format(**words) for word in shlex.split(self.command)]
        if self.keeps_journal:
            line += [part for symbol in addresses.symbols for part in ("--symbol", symbol)]
        return line


TICKCOLLECT = Target(
    "tickcollect",
    f"{shlex.quote(sys.executable)} -m tickcollect run --ws-url {{ws_url}} --rest-url {{rest_url}} "
    "--data-dir {data_dir}",
    {**QUICK, **SECRETS},
    keeps_journal=True,
)

PEERS = {
    "python-binance": "python_binance_trades.py",
    "cryptofeed": "cryptofeed_trades.py",
    "unicorn": "unicorn_trades.py",
}
"""Collectors from PyPI, and the scripts that run them."""
NEED_TLS = {"cryptofeed"}


def target_of(name: str, python: str = sys.executable) -> Target:
    """Return a target by its name or command; `python` runs the script of a peer."""
    if name == TICKCOLLECT.name:
        return TICKCOLLECT
    if name in PEERS:
        script = shlex.quote(str(ADAPTERS / PEERS[name]))
        command = f"{shlex.quote(python)} {script} {{ws_url}} {{rest_url}} {{symbol}} {{data_dir}}"
        return Target(name, command, needs_tls=name in NEED_TLS)
    return Target(Path(shlex.split(name)[0]).name, name)


@dataclass
class Running:
    """A started process."""

    process: asyncio.subprocess.Process
    output_path: Path

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.returncode

    def output(self) -> str:
        """Return what it has printed until now."""
        return self.output_path.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        # Not by the process object, which would look for its end, and take it from the event loop's own waiting.
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ended(self, within_s: float) -> int | None:
        """Wait for its end; None if it goes on after `within_s`."""
        try:
            return await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            return None

    async def finish_off(self) -> None:
        """Kill it and what it started, if it is still there."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.process.wait()

    def resident_mb(self) -> float:
        """Return its memory in MB."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        return int(found.group(1)) / 1024 if found else 0.0

    def descriptors(self) -> int:
        """Return how many files and sockets it holds open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


async def start(command: Sequence[str], settings: Mapping[str, str], output_path: Path) -> Running:
    """Start a process in a session of its own; what it prints is appended to a file."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TICKCOLLECT_")}
    python_path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": python_path, **settings}
    with output_path.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            cwd=output_path.parent,
            env=environment,
            start_new_session=True,
        )
    return Running(process, output_path)
