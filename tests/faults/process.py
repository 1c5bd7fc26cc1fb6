"""Faults of the process and of the machine (P1 to P6)."""

import asyncio
import os
import signal
from collections.abc import Sequence
from functools import partial

from tickcollect.dataset.replay import Close, Cut, Reset

from .scene import FAKETIME, MEMORY_CGROUP, STOPPED_WITHIN_S, Case, Scene, UnmetError, tracing

ENDINGS = (Cut(), Reset(), Close(1001))

# --- P1, P2: signals -------------------------------------------------------------------------------------------------


async def signalled(scene: Scene, numbers: Sequence[signal.Signals], code: int, apart_s: float = 0.0) -> None:
    """Send signals under load, and expect an exit code; then start again."""
    await asyncio.sleep(scene.chance.uniform(0, 0.5))
    for number in numbers:
        scene.collector.send(number)
        await asyncio.sleep(apart_s)
    ended = await scene.collector.ended(STOPPED_WITHIN_S)
    if ended != code:
        raise UnmetError(f"it ends with code {code}; it was {ended}")
    await asyncio.sleep(1)
    await scene.start()


async def second_interrupt(scene: Scene) -> None:
    """Let the disk hang while it stops, and ask a second time."""
    path = next(scene.feed_dir.glob("*.csv"))
    async with tracing(scene, path, "inject=fdatasync,fsync:delay_enter=5000000"):
        await asyncio.sleep(1)
        scene.collector.send(signal.SIGINT)
        await asyncio.sleep(1)
        scene.collector.send(signal.SIGINT)
        ended = await scene.collector.ended(STOPPED_WITHIN_S)
    if ended != 130:
        raise UnmetError(f"the second interrupt ends it at once with code 130; it was {ended}")
    await scene.start()


async def killed(scene: Scene, times: int) -> None:
    """Kill at random moments, and start again each time."""
    for _ in range(times):
        await asyncio.sleep(scene.chance.uniform(0.1, 1.5))
        await scene.kill()
        await asyncio.sleep(scene.chance.uniform(0, 0.3))
        await scene.start()
        await scene.until_current()


# --- P3: memory ------------------------------------------------------------------------------------------------------


async def out_of_memory(scene: Scene) -> None:
    """Give it less memory than it needs, so that the kernel kills it; then let it start again."""
    group = MEMORY_CGROUP / f"fault-{os.getpid()}-{scene.collector.pid}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(8 * 2**20))
        await scene.stop()
        scene.wrapper = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        await scene.start()
        code = await scene.collector.ended(30)
        if code != -signal.SIGKILL:
            raise UnmetError(f"the kernel kills it for want of memory; it ended with {code}")
        scene.wrapper = ()
        await scene.start()
    finally:
        await scene.until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


# --- P4: standing still ----------------------------------------------------------------------------------------------


async def frozen(scene: Scene, seconds: float) -> None:
    """Stop the whole process for a while, as a sleeping machine does."""
    scene.collector.send(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    scene.collector.send(signal.SIGCONT)


# --- P5: clocks ------------------------------------------------------------------------------------------------------


async def clock_steps(scene: Scene, steps: Sequence[str]) -> None:
    """Run it with a clock that is set to and fro."""
    await scene.stop()
    control = scene.directory / "clock"
    control.write_text("+0")
    scene.settings = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(control),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    await scene.start()
    await scene.until_current()
    for step in steps:
        control.write_text(step)
        await scene.until_said(r"clock was set by", within_s=20)
        scene.server.disconnect(scene.chance.choice(ENDINGS))
        await scene.until_current()


async def midnight_passes(scene: Scene) -> None:
    """Wait for the next day of the market."""
    await scene.until(lambda: len({path.name[14:24] for path in scene.feed_dir.glob("BTC*")}) > 1, "a new day's file")
    await scene.until_said("sealed", within_s=30)


def before_midnight(wall_s: float) -> float:
    """Return a market time 10 s before the last midnight."""
    return wall_s - wall_s % 86_400 - 10


# --- P6: two at once -------------------------------------------------------------------------------------------------


async def second_collector(scene: Scene) -> None:
    """Start another one on the same directory."""
    code, output = await scene.start_another(scene.command())
    if code != 75 or str(scene.collector.pid) not in output:
        raise UnmetError(
            f"the second one is refused with the first one's pid and code 75; code {code}: {output[-300:]}"
        )


async def lock_left_behind(scene: Scene) -> None:
    """Kill the holder of the lock, and start again at once."""
    await scene.kill()
    await scene.start()
    await scene.until_current()


_LOADED = partial(Case, rows_per_s=300.0)

CASES: Sequence[Case] = (
    _LOADED("sigterm", "P1", "SIGTERM under load", "everything received is written; code 0; the next start fills",
            partial(signalled, numbers=[signal.SIGTERM], code=0), "stopping", quick=True),
    _LOADED("sigint", "P1", "SIGINT under load", "the same", partial(signalled, numbers=[signal.SIGINT], code=0),
            "stopping"),
    _LOADED("sighup", "P1", "the terminal is lost (SIGHUP)", "the same",
            partial(signalled, numbers=[signal.SIGHUP], code=0), "stopping"),
    Case("second-sigint", "P1", "a second SIGINT while the disk hangs", "ends at once with code 130; files recover",
         second_interrupt, "at once", needs=("strace",)),
    _LOADED("sigkill", "P2", "SIGKILL at five random moments", "the next start goes on after the last whole row",
            partial(killed, times=5), "goes on after", quick=True),
    _LOADED("sigkill-rolling", "P2", "SIGKILL at random moments while files are ended and sealed all the time",
            "no file is lost or half; what was begun is finished", partial(killed, times=8), "goes on after",
            settings={"TICKCOLLECT_ROTATE_SIZE": "8000"}),
    Case("out-of-memory", "P3", "the kernel kills it for want of memory", "the next start fills",
         out_of_memory, "goes on after", needs=("root", "memory-cgroup"), quick=True),
    Case("frozen-5s", "P4", "the whole process stands still for 5 s", "goes on; nothing is lost, no alarm",
         partial(frozen, seconds=5), quick=True, peers=True),
    Case("frozen-70s", "P4", "the whole process stands still for 70 s", "goes on; what the exchange dropped is filled",
         partial(frozen, seconds=70), peers=True),
    Case("clock-steps", "P5", "the clock is set forward by an hour, and back by two",
         "told; timers and file names do not care; connections are made anew as ever",
         partial(clock_steps, steps=["+3600", "-3600"]), "clock was set by", needs=("faketime",), quick=True),
    Case("midnight", "P5", "the market's day ends while the machine's does not",
         "each row stands in the file of its own day; the day that is over is sealed", midnight_passes,
         market_time_s=before_midnight, tells="sealed", quick=True),
    Case("two-collectors", "P6", "a second collector on the same directory",
         "refused with the first one's pid; code 75", second_collector, quick=True),
    Case("lock-left-behind", "P6", "the lock's holder is killed", "the next start is not held up", lock_left_behind,
         "goes on after"),
)  # fmt: skip
