"""The terminal a command runs in, or whatever stands in its place: output, log, signals, the live view.

Rules:

1. A terminal that stops taking output (Ctrl-S, a lost line) stops nothing else: lines are written by a thread, and what
   it does not take is left out.
2. A first signal asks for an end in order, a second one ends at once.
3. Whoever reads along may go away: what is printed then goes nowhere, and the exit code stays what it is.
"""

import asyncio
import atexit
import contextlib
import os
import signal
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

    from tickcollect.config import ConfigError, Problem

    logger.remove()
    plain: dict[str, Any] = {"level": level, "format": LOG_LINE, "diagnose": False}  # no values in tracebacks
    if file is not None:
        try:
            logger.add(file, rotation="20 MB", retention=5, **plain)
        except OSError as error:
            wrong = f"cannot be written: {file}: {error.strerror}"
            raise ConfigError(
                [Problem("log", None, "LOG_FILE", wrong, "Name a file that this user may write")]
            ) from error
    if console is not None:
        above = partial(console.print, end="", markup=False, highlight=False, soft_wrap=True)
        logger.add(_written_aside(above, sys.stdout), **plain)
    else:
        plainly = partial(print, end="", file=sys.stderr, flush=True)
        logger.add(_written_aside(plainly, sys.stderr), colorize=False, **plain)


def _written_aside(write: Callable[[str], object], stream: TextIO) -> Callable[[str], None]:
    """Return what takes lines at once and has a thread write them, which `write` does to `stream`.

    A terminal that stops taking output (Ctrl-S, a lost line) must not stop collecting; what it does not take is left
    out, at the end after a second.
    """
    lines: Queue[str] = Queue(LINES_WAITING)

    def work() -> None:
        while True:
            line = lines.get()
            try:
                write(line)
            except OSError:
                _send_nowhere(stream)
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
