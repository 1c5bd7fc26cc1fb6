"""The terminal a command runs in, or whatever stands in its place: output, log, signals, the live view.

Rules:

1. A terminal that stops taking output (Ctrl-S, a lost line), or a log file whose disk hangs or is full, stops nothing
   else: lines are written by threads, and what is not taken is left out.
2. A first signal asks for an end in order, a second one ends at once.
3. Whoever reads along may go away: what is printed then goes nowhere, and the exit code stays what it is.
"""

import asyncio
import atexit
import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from tickcollect.collector import Show
    from tickcollect.status import Snapshot

EXIT_AT_ONCE = 130
LINES_WAITING = 10_000
LINES_WRITTEN_WITHIN_S = 1.0
LOG_FILE_BYTES = 20_000_000
LOG_FILES_KEPT = 5
LOG_FILE_MODE = 0o640

# --- Output --------------------------------------------------------------------------------------------------------


def say(*lines: str, err: bool = False) -> None:
    """Print lines for whoever still listens: a terminal that was closed changes nothing, not even the exit code."""
    try:
        for line in lines:
            click.echo(line, err=err)
    except OSError:
        _send_nowhere(sys.stderr if err else sys.stdout)


def _send_nowhere(stream: TextIO) -> None:
    """Let what goes to a closed terminal go nowhere; or Python's last flush would fail, and the exit code be 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def terminal() -> "Console | None":
    """Return the terminal on which a live view can be drawn, None where there is none."""
    from rich.console import Console

    console = Console()  # believes FORCE_COLOR too, which makes no terminal of a file
    return console if sys.stdout.isatty() and not console.is_dumb_terminal else None


def live_view(console: "Console") -> "Show":
    """Return what draws the live view while collecting goes on, with the log above it."""
    from tickcollect import status as state

    @contextlib.asynccontextmanager
    async def view(snapshot: "Callable[[], Snapshot]") -> AsyncIterator[None]:
        drawing = asyncio.create_task(state.live(snapshot, console))
        try:
            yield
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})

    return view


# --- The log -------------------------------------------------------------------------------------------------------

LOG_LINE = "{time:YYYY-MM-DDTHH:mm:ss.SSS!UTC}Z {level: <7} {message}"


def log_to(file: Path | None, level: str, console: "Console | None" = None) -> None:
    """Send the log above the live view of `console`, or to the error side of whatever there is; and to a file."""
    from loguru import logger

    from tickcollect.config import ConfigError, Problem, is_mistaken

    logger.remove()
    plain: dict[str, Any] = {"level": level, "format": LOG_LINE, "diagnose": False}  # no values in tracebacks
    if file is not None:
        log_file = _LogFile(file)
        try:
            log_file.open()
        except OSError as error:
            wrong = f"cannot be written: {file}: {error.strerror}"
            if is_mistaken(error):
                raise ConfigError(
                    [Problem("log", None, "LOG_FILE", wrong, "Name a file that this user may write")]
                ) from error
            say(f"Warning: LOG_FILE {wrong}. It is tried again with each line.", err=True)
        logger.add(_written_aside(log_file.write, lambda: None), colorize=False, **plain)
    if console is not None:
        above = partial(console.print, end="", markup=False, highlight=False, soft_wrap=True)
        logger.add(_written_aside(above, partial(_send_nowhere, sys.stdout)), **plain)
    else:
        plainly = partial(print, end="", file=sys.stderr, flush=True)
        logger.add(_written_aside(plainly, partial(_send_nowhere, sys.stderr)), colorize=False, **plain)


class _LogFile:
    """A log file that begins anew at its size; `LOG_FILES_KEPT` older ones stay beside it as `NAME.1` and so on.

    It writes by descriptor: what Python buffers would be flushed at the end, for as long as a disk hangs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def open(self) -> None:
        """Open the file. Raises `OSError`; `write` tries again."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = self._opened()

    def write(self, line: str) -> None:
        """Append a line. Raises `OSError`."""
        if self._descriptor < 0:
            self.open()
        found = os.fstat(self._descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_size > LOG_FILE_BYTES - len(line):
            for n in range(LOG_FILES_KEPT, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    (self._older(n - 1) if n > 1 else self._path).rename(self._older(n))
            before, self._descriptor = self._descriptor, self._opened()
            os.close(before)
        os.write(self._descriptor, line.encode("utf-8", "backslashreplace"))

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, LOG_FILE_MODE)

    def _older(self, n: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{n}")


def _written_aside(write: Callable[[str], object], refused: Callable[[], None]) -> Callable[[str], None]:
    """Return what takes lines at once and has a thread `write` them; `refused` is called when that raises `OSError`.

    Whoever stops taking output must not stop collecting; what is not taken is left out, at the end after a second.
    """
    lines: Queue[str] = Queue(LINES_WAITING)

    def work() -> None:
        while True:
            line = lines.get()
            try:
                write(line)
            except OSError:
                refused()
            lines.task_done()

    def finish() -> None:
        deadline_s = time.monotonic() + LINES_WRITTEN_WITHIN_S
        while lines.unfinished_tasks and time.monotonic() < deadline_s:
            time.sleep(0.005)

    def take(line: str) -> None:
        with contextlib.suppress(Full):
            lines.put_nowait(str(line))

    threading.Thread(target=work, name="log", daemon=True).start()
    atexit.register(finish)
    return take


# --- Signals -------------------------------------------------------------------------------------------------------

SAME_WISH_S = 0.5
"""A signal this soon after the first is the same wish: shells and `timeout` send one to the process and its group."""


STOPPING = "stopping: closing sockets, writing what was received (again to stop at once)"


def stop_on_signals(stop: asyncio.Event, console: "Console | None" = None) -> None:
    """Let the first signal stop in order and the second at once; the next start recovers what that leaves.

    `console` is the one with the live view, where there is one.
    """
    from loguru import logger

    loop = asyncio.get_running_loop()
    first_s: list[float] = []

    def on_signal() -> None:
        if not first_s:
            first_s.append(loop.time())
            stop.set()
            if console is None:
                say(STOPPING, err=True)
            else:
                logger.warning(STOPPING)  # the log stands above the live view; anything else would tear it
        elif loop.time() - first_s[0] > SAME_WISH_S:
            say("stopped at once; the next start recovers the files", err=True)
            os._exit(EXIT_AT_ONCE)

    loop.add_signal_handler(signal.SIGINT, on_signal)
    loop.add_signal_handler(signal.SIGTERM, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it ignored
        loop.add_signal_handler(signal.SIGHUP, on_signal)


def halt_on_signals(halt: threading.Event) -> None:
    """Let the first signal break off in order and the second at once; the next run goes on."""
    first_s: list[float] = []

    def on_signal(*_: object) -> None:
        if not first_s:
            first_s.append(time.monotonic())
            halt.set()
            say("stopping: what has arrived is recorded (again to stop at once)", err=True)
        elif time.monotonic() - first_s[0] > SAME_WISH_S:
            os._exit(EXIT_AT_ONCE)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it ignored
        signal.signal(signal.SIGHUP, on_signal)
