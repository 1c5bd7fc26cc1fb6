"""What systemd is told: that it runs, how it goes, that it is alive, that it stops (sd_notify(3), Type=notify).

    collector ──Signs──▶ supervise ──READY, STATUS, WATCHDOG, STOPPING, EXTEND_TIMEOUT_USEC──▶ $NOTIFY_SOCKET

Rules:

1. Without `NOTIFY_SOCKET` nothing is done. With it nothing can be harmed: a message is one datagram that never waits,
   and one that cannot be sent is left out.
2. Ready means that collecting may begin and files may be made, not that anything is connected: an exchange that is down
   or a disk that is waited for must not make the start fail. Before, at a first start whose exchange has not answered,
   more time is asked for, whatever the unit allows. What is waited for is in the status.
3. A sign of life comes from the event loop only, so one that does not turn gives none; and only while the writer
   works (`Progress`). What a new start cannot mend, a disk that refuses or hangs, is no reason to leave it out.
4. A stop that takes longer than systemd would wait, because a large file is being packed, asks for more time as long as
   the loop turns, up to `STOPS_WITHIN_S`.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

TOLD_EVERY_S = 10.0
FIRST_TOLD_AFTER_S = 1.0
"""Before that a status tells only of what has not been looked at yet."""
EXTENDED_BY_S = 30.0
"""More time that a stop asks for, each time; the next message has to come within it."""
STOPS_WITHIN_S = 600.0
"""After this long no stop asks for more time."""
STATUS_MAX = 500
"""Characters of a status line."""


@dataclass(frozen=True, slots=True)
class Notifier:
    """Where systemd listens, and how often it wants a sign of life."""

    address: str = ""
    """A socket's path, or its abstract name after `@`; empty: nobody listens."""
    watchdog_s: float | None = None
    """A service without a sign of life for this long is ended and started anew; None: none is waited for."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], pid: int) -> "Notifier":
        """Read what systemd has put into the environment of process `pid`, as sd_watchdog_enabled(3) has it."""
        address = environ.get("NOTIFY_SOCKET", "")
        period_us = environ.get("WATCHDOG_USEC", "")
        is_meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        watched = bool(address) and is_meant and period_us.isdecimal() and int(period_us) > 0
        return cls(address, int(period_us) / 1e6 if watched else None)

    def ready(self) -> None:
        """Tell that the start is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show a line in `systemctl status`."""
        self._send(f"STATUS={' '.join(text.split())[:STATUS_MAX]}")

    def watchdog(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the stop has begun."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Ask for this much more time to start or to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _send(self, message: str) -> None:
        if not self.address:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode("utf-8", "replace"), address)


@dataclass(frozen=True, slots=True)
class Signs:
    """What the collector tells of itself at one moment."""

    state: Literal["starting", "running", "stopping", "stopped"]
    text: str
    """One line for `systemctl status`."""
    waiting: int
    """Messages received that the writer has not done with."""
    done: int
    """Messages that it has done with; only rises."""
    disk_trouble: bool
    """The disk is known to refuse or to hang."""


@dataclass(slots=True)
class Progress:
    """Tells a writer that is stuck from one that has nothing to do. `patience_s` is how long it may seem stuck."""

    patience_s: float
    _done: int = -1
    _moved_s: float = 0.0

    def is_stuck(self, signs: Signs, now_s: float) -> bool:
        """Whether messages have been waiting for longer than the patience and none was done with. Ask regularly."""
        if signs.done > self._done or signs.waiting == 0 or signs.disk_trouble:
            self._done = max(self._done, signs.done)
            self._moved_s = now_s
        return now_s - self._moved_s > self.patience_s


async def supervise(
    notifier: Notifier,
    look: Callable[[], Signs],
    stop: asyncio.Event,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Tell systemd how it goes until cancelled; for ever without a word where nobody listens.

    `look` is called in the event loop, `stop` is set when the stop begins, `clock` is monotonic seconds.
    """
    if not notifier.address:
        await asyncio.Event().wait()
    period_s = notifier.watchdog_s
    interval_s = TOLD_EVERY_S if period_s is None else min(TOLD_EVERY_S, period_s / 2)
    progress = Progress(TOLD_EVERY_S if period_s is None else period_s)
    while not stop.is_set() and (signs := look()).state == "starting":
        notifier.status(signs.text)
        notifier.extend(EXTENDED_BY_S)
        await _wait(stop, FIRST_TOLD_AFTER_S)
    if not stop.is_set():
        notifier.ready()
    await _wait(stop, min(FIRST_TOLD_AFTER_S, interval_s))
    while not stop.is_set():
        signs = look()
        notifier.status(signs.text)
        if not progress.is_stuck(signs, clock()):
            notifier.watchdog()
        await _wait(stop, interval_s)
    notifier.stopping()
    began_s = clock()
    while True:
        notifier.status(look().text)
        if clock() - began_s < STOPS_WITHIN_S:
            notifier.extend(EXTENDED_BY_S)
        await asyncio.sleep(TOLD_EVERY_S)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
