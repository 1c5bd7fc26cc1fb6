"""What has to be well before a collector is left alone for a month: all of it looked at, with what to do.

    Config ──▶ CHECKS, all at once, each with a bound ──▶ findings ──▶ lines or JSON ──▶ exit code

Rules:

1. A check does what the collector will do, with the collector's own parts (`feed.keep`, `Rest`, the store, the
   channels), and leaves nothing behind: no file, no directory, no object. Channels get one message, unless told not to.
2. Every check ends. What gives no answer in time is a finding like any other, and what may block for good (a dead
   network disk) runs in a daemon thread, for which the end does not wait.
3. One check that breaks takes no other with it.

`findings` says what a finding is; `machine`, `exchange` and `delivery` make them.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from traceback import extract_tb
from typing import TypeVar

from tickcollect.check.delivery import look_at_channels, look_at_store
from tickcollect.check.exchange import look_at_exchanges
from tickcollect.check.findings import FAIL, Asked, Finding, Findings, encode, exit_code, lines
from tickcollect.check.machine import (
    look_at_collectors,
    look_at_config,
    look_at_data_dir,
    look_at_disk,
    look_at_limits,
    look_at_log,
    look_at_metrics,
    look_at_schedule,
)

__all__ = ["CHECKS", "Asked", "Finding", "Findings", "check", "encode", "exit_code", "lines"]

Result = TypeVar("Result")

HERE_WITHIN_S = 15.0
"""For whatever may block."""
CHANNELS_WITHIN_S = 30.0
"""They have bounds of their own below this."""


Check = Callable[[Asked], Awaitable[Findings]]


def _here(look: Callable[[Asked], Iterable[Finding]], within_s: float = HERE_WITHIN_S) -> Check:
    """Return what runs `look`, which may block, in a thread that nobody has to wait for (rule 2)."""

    async def check(asked: Asked) -> Findings:
        async with asyncio.timeout(within_s):
            return await _aside(lambda: list(look(asked)))

    return check


async def _aside(work: Callable[[], Result]) -> Result:
    done: Future[Result] = Future()

    def run() -> None:
        done.set_running_or_notify_cancel()
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            done.set_exception(error)

    threading.Thread(target=run, name="check", daemon=True).start()
    return await asyncio.wrap_future(done)


CHECKS: dict[str, Check] = {
    "config": _here(look_at_config),
    "data": _here(look_at_data_dir),
    "disk": _here(look_at_disk),
    "limits": _here(look_at_limits),
    "collector": _here(look_at_collectors),
    "exchanges": look_at_exchanges,
    "store": _here(look_at_store),
    "alerts": _here(look_at_channels, CHANNELS_WITHIN_S),
    "schedule": look_at_schedule,
    "metrics": _here(look_at_metrics),
    "log": _here(look_at_log),
}
"""Every check, in the order in which findings are shown."""


async def check(asked: Asked) -> list[Finding]:
    """Look at everything at once and return all findings."""
    outcomes = await asyncio.gather(*(look(asked) for look in CHECKS.values()), return_exceptions=True)
    findings: list[Finding] = []
    for area, outcome in zip(CHECKS, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            findings.append(_not_checked(area, outcome))
        else:
            findings += outcome
    return findings


def _not_checked(area: str, error: BaseException) -> Finding:
    """Return the finding that a check is which did not end, or broke; an exception's own words may hold secrets."""
    if isinstance(error, TimeoutError):
        return Finding(area, "", FAIL, "no answer in time", "See whether a disk, the network or a service hangs")
    place = extract_tb(error.__traceback__)[-1]
    found = f"this check broke: {type(error).__name__} in {place.name} ({Path(place.filename).name}:{place.lineno})"
    return Finding(area, "", FAIL, found, "Report this as a fault of tickcollect")
