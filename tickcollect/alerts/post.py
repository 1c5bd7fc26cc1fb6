"""From happenings to people, without ever holding up who tells them: one thread, and an outbox for each channel.

    any thread ──note──▶ queue ──▶ incidents ──▶ outbox ──▶ channel
                                       └───────▶ outbox ──▶ channel

Rules:

1. `note` appends to a bounded queue and returns; what finds no room is counted by its kind, and told. All else is done
   in a thread with an event loop of its own, in small slices, so that collecting shares no task and no waiting with it.
2. Each channel has an outbox and a task: one that is slow, hangs or is dead delays no other.
3. What becomes of a channel is told to the caller and to the other channels, never to itself.
4. At the stop all that waits in an outbox goes out as one message, within the time that is given.
5. What matters and is not sent yet stands in a small file of the data directory (`kept`), so that the next start sends
   it, also after a kill. A short program leaves its own there, which the collector or its next run sends.
6. What fails here stays here. A mistake of this program ends the alerts of the run, is reported as a failed channel
   and stands in the states.

Channels are opened when `Alerts` is made: its imports (about 0.3 s) then come before collecting begins, and a URL that
nobody understands is a `ConfigError` at the start instead of silence at night.
"""

import asyncio
import math
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loguru import logger

from tickcollect.alerts import kept
from tickcollect.alerts.channels import Channel, ChannelError, open_channels
from tickcollect.alerts.incidents import Incidents, Level, Notice
from tickcollect.alerts.kept import Found, Keeper
from tickcollect.alerts.letters import Letter, letter_as_json, lost_text
from tickcollect.alerts.outbox import Change, ChannelState, Outbox
from tickcollect.alerts.words import NAME_LONGEST, clean, counted, number
from tickcollect.config import Config, ConfigError

__all__ = [
    "Alerts", "ChannelResult", "ChannelState", "collector_name", "send_files", "tell_once", "try_channels",
]  # fmt: skip

NEWS_KEPT = 20_000
"""Happenings that wait for the thread."""
TEXT_KEPT = 2000
"""Characters that are kept of a fact."""
SLICE = 100
"""Happenings that are taken in one go; after each, other threads get their turn."""
SLICE_PAUSE_S = 0.002
LOOK_EVERY_S = 0.25
OVERFLOW_TOLD_EVERY_S = 600.0
JOINED_WITHIN_S = 2.0
"""How long the thread may take for its end, beyond the time for sending."""
KEPT_EVERY_S = 1.0
KEPT_WITHIN_S = 1.0
"""So long the end waits for the disk."""
FOR_ALL = "*"
"""In the file, what was not told on any channel yet."""
LOSSES_COUNTED = 1000
"""Feeds whose lost IDs are counted where events come too fast."""
_OF_CHANNELS = frozenset({"channel_failed", "channel_again"})

OnChannel = Callable[[str, str, str], None]
"""Told of a channel's fate: the event (`channel_failed`, `channel_again`), its name, the details. From the thread."""


@dataclass(frozen=True, slots=True)
class ChannelResult:
    """What became of one test message, and what to do."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        said = "; ".join(part.removesuffix(".") for part in (self.detail, self.remedy) if part)
        return f"{'ok    ' if self.ok else 'FAILED'}  {self.name}: {said}."


@dataclass(frozen=True, slots=True)
class Clock:
    """Where times come from: a clock that never steps, in seconds, and the time of day, in nanoseconds since 1970."""

    now_s: Callable[[], float] = time.monotonic
    now_ns: Callable[[], int] = time.time_ns


def collector_name(config: Config) -> str:
    """Return what this collector is called in messages: `ALERT_NAME`, or the machine's name."""
    return config.alert_name or clean(socket.gethostname(), NAME_LONGEST)


# --- One channel ---------------------------------------------------------------------------------------------------


@dataclass
class _Poster:
    """Takes an outbox's messages to its channel."""

    channel: Channel
    outbox: Outbox
    clock: Clock
    report: Callable[["_Poster", Change], None]
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _ends_s: float | None = None

    def put(self, notice: Notice) -> None:
        """Send a message in its turn."""
        self.outbox.put(notice, self.clock.now_ns())
        self._woken.set()

    def wake(self) -> None:
        """Look again at what is due."""
        self._woken.set()

    def end(self, ends_s: float) -> None:
        """Send what waits as one message, and end with it; no later than at `ends_s`."""
        self._ends_s = ends_s
        self._woken.set()

    async def run(self) -> None:
        """Send until the end."""
        has_hurried = False
        while True:
            if self._ends_s is not None and not has_hurried:
                self.outbox.hurry(self.clock.now_s(), self.clock.now_ns())
                has_hurried = True
            due_s = self.outbox.due_s()
            if self._ends_s is not None and due_s >= self._ends_s:
                return
            if due_s > self.clock.now_s():
                await self._sleep(due_s - self.clock.now_s())
            else:
                await self._attempt()

    async def _sleep(self, seconds: float) -> None:
        self._woken.clear()
        try:
            await asyncio.wait_for(self._woken.wait(), None if seconds == math.inf else seconds)
        except TimeoutError:
            return

    async def _attempt(self) -> None:
        """Send the next part, once. While the channel fails it is first asked whether it is there."""
        now = self.clock
        part = self.outbox.take(now.now_s(), now.now_ns())
        try:
            if self.outbox.failures:
                await self.channel.reach()
            await self.channel.send(part)
        except ChannelError as error:
            change = self.outbox.failed(error, now.now_s(), now.now_ns())
        else:
            change = self.outbox.sent_now(now.now_s())
        if change is not None:
            self.report(self, change)


# --- All channels --------------------------------------------------------------------------------------------------


class Alerts:
    """Tells people what happens, on all configured channels.

    `heartbeat` gives the collector's state in one line, and then its troubles; it is called from the thread, as is
    `on_channel`. Raises `ConfigError` where a channel's address makes no sense.
    """

    def __init__(
        self,
        config: Config,
        heartbeat: Callable[[], tuple[str, ...]],
        on_channel: OnChannel,
        clock: Clock | None = None,
    ) -> None:
        self.name = collector_name(config)
        self._clock = clock or Clock()
        self._heartbeat = heartbeat
        self._on_channel = on_channel
        self._mute = frozenset(config.alert_mute)
        self._incidents = Incidents(
            self.name, config.alert_disconnected_s, config.alert_heartbeat_at, self._mute, fetches=config.backfill
        )
        self._posters = [self._poster(channel) for channel in open_channels(config)]
        self._news: deque[tuple[str, str, Mapping[str, object], float, int]] = deque()
        self._overflow: Counter[str] = Counter()
        self._overflow_lost: Counter[str] = Counter()
        self._keeper: Keeper | None = None
        self._has_taken_up = False
        """What an earlier run left is known; until then nothing may be written in its place."""
        self._kept: tuple[int, ...] = ()
        self._kept_s = -math.inf
        self._instead_of: list[Path] = []
        """Files whose messages were taken over and are not in the collector's own yet."""
        self._overflow_told_s = -math.inf
        self._counting = threading.Lock()
        self._stop_within_s: float | None = None
        self._thread = threading.Thread(target=self._work, name="alerts", daemon=True)

    def _poster(self, channel: Channel) -> _Poster:
        outbox = Outbox(self.name, channel.name, channel.pause_s, channel.parts, channel.units)
        return _Poster(channel, outbox, self._clock, self._report)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def keep_in(self, directory: Path) -> None:
        """From now on keep what is not sent in a file there, and send what earlier runs left. Never waits."""
        keeper = Keeper(directory, lambda trouble: logger.warning("{}", trouble))
        keeper.start()
        self._keeper = keeper

    def note(self, event: str, subject: str, facts: Mapping[str, object]) -> None:
        """Take note of a happening. From any thread; it never waits and never fails."""
        if event in _OF_CHANNELS:
            return  # told to the others as it is reported; from here it would come back to the channel itself
        if len(self._news) >= NEWS_KEPT:
            self._count_overflow(event, subject, facts)
            return
        kept = {name: fact[:TEXT_KEPT] if isinstance(fact, str) else fact for name, fact in facts.items()}
        self._news.append((event, subject, kept, self._clock.now_s(), self._clock.now_ns()))

    def _count_overflow(self, event: str, subject: str, facts: Mapping[str, object]) -> None:
        with self._counting:
            self._overflow[event] += 1
            count = facts.get("count")
            if event == "lost" and isinstance(count, int) and len(self._overflow_lost) < LOSSES_COUNTED:
                self._overflow_lost[clean(subject, NAME_LONGEST)] += count

    def states(self) -> tuple[ChannelState, ...]:
        """Return how each channel does; from any thread."""
        return tuple(poster.outbox.state() for poster in self._posters)

    def stop(self, within_s: float = 5.0) -> None:
        """Send what waits, the message of the stop among it, and end. What cannot be sent by then is reported."""
        self._stop_within_s = within_s
        if self._thread.is_alive():
            self._thread.join(within_s + JOINED_WITHIN_S)

    # --- In the thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as error:  # noqa: BLE001 - rule 6: told here, because nobody waits for this thread
            detail = f"a mistake in tickcollect ended the alerts of this run: {_place(error)}"
            for poster in self._posters:
                poster.outbox.give_up(detail, self._clock.now_ns())
                self._on_channel("channel_failed", poster.outbox.channel, detail)

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            sending = [tasks.create_task(poster.run()) for poster in self._posters]
            while self._stop_within_s is None:
                await self._look()
                await asyncio.sleep(LOOK_EVERY_S)
            ends_s = self._clock.now_s() + self._stop_within_s
            await self._look()
            for notice in self._incidents.finish(self._clock.now_s(), self._clock.now_ns()):
                self._tell(notice)
            self._keep()
            await _ended(self._posters, sending, ends_s, self._clock)
        is_kept = self._keep() and self._keeper is not None and self._keeper.end(KEPT_WITHIN_S)
        for poster in self._posters:
            self._report_left_over(poster, is_kept=is_kept)

    async def _look(self) -> None:
        """Take what was noted, and tell what is due."""
        clock = self._clock
        self._take_up()
        for _ in range(NEWS_KEPT // SLICE):
            if not self._news:
                break
            for _ in range(min(SLICE, len(self._news))):
                self._incidents.note(*self._news.popleft())
            await asyncio.sleep(SLICE_PAUSE_S)
        for notice in self._incidents.due(clock.now_s(), clock.now_ns()):
            self._tell(notice)
        if self._incidents.heartbeat_due(clock.now_ns()):
            self._tell(self._incidents.heartbeat(clock.now_s(), clock.now_ns(), *self._heartbeat()))
        if self._overflow and clock.now_s() - self._overflow_told_s > OVERFLOW_TOLD_EVERY_S:
            self._tell_overflow()
        if clock.now_s() - self._kept_s >= KEPT_EVERY_S:
            self._keep()

    def _take_up(self) -> None:
        """Take over what earlier runs and other programs wrote down."""
        all_found = self._keeper.found() if self._keeper is not None else None
        self._has_taken_up = self._has_taken_up or all_found is not None
        for found in all_found or ():
            _share_out(found, [poster.outbox for poster in self._posters])
            self._instead_of.append(found.path)
            for poster in self._posters:
                poster.wake()

    def _keep(self) -> bool:
        """Have what is not sent written down, if anything of it changed. Tell whether it is, or will be."""
        if self._keeper is None or not self._has_taken_up:
            return False
        marks = (self._incidents.changes, *(poster.outbox.changes for poster in self._posters))
        if marks != self._kept or self._instead_of:
            self._kept, self._kept_s = marks, self._clock.now_s()
            untold = self._incidents.untold(self._clock.now_s(), self._clock.now_ns())
            boxes = [poster.outbox for poster in self._posters]
            self._keeper.keep(_written(boxes, untold, self._clock.now_ns()), self._instead_of)
            self._instead_of = []
        return True

    def _tell(self, notice: Notice, but: _Poster | None = None) -> None:
        for poster in self._posters:
            if poster is not but:
                poster.put(notice)

    def _tell_overflow(self) -> None:
        with self._counting:
            counts, self._overflow = self._overflow, Counter()
            lost, self._overflow_lost = self._overflow_lost, Counter()
        self._overflow_told_s = self._clock.now_s()
        title = f"{self.name}: {counted(counts.total(), 'happening')} came too fast for messages"
        kinds = ", ".join(f"{number(count)} {event}" for event, count in counts.most_common())
        lines = [f"{kinds}.", "The log and the journal have them; collecting is not affected."]
        lines += [lost_text("Lost among them", lost)] if lost else []
        kind = "lost" if lost else "trouble"
        level: Level = "error" if lost else "warning"
        if kind not in self._mute:
            incident = f"{title}/{self._clock.now_ns()}"
            self._tell(Notice(kind, level, title, tuple(lines), incident, ended=True, lost=tuple(lost.items())))

    def _report(self, poster: _Poster, change: Change) -> None:
        """Report a channel's fate, and tell it on the others (rule 3)."""
        channel, failed = poster.outbox.channel, change.event == "channel_failed"
        self._on_channel(change.event, channel, change.detail)
        what = f"messages to {channel} fail" if failed else f"messages to {channel} arrive again"
        if "trouble" not in self._mute:
            incident = f"{self.name}/channel/{channel}"
            level: Level = "warning" if failed else "info"
            notice = Notice("trouble", level, f"{self.name}: {what}", (f"{change.detail}.",), incident, not failed)
            self._tell(notice, but=poster)

    def _report_left_over(self, poster: _Poster, *, is_kept: bool) -> None:
        outbox, left = poster.outbox, poster.outbox.left_over()
        if left:
            titles = clean("; ".join(letter.notice.title for letter in left))
            detail = f"{counted(len(left), 'message')} not sent before the stop: {titles}"
            kept_count = sum(letter.matters for letter in left) if is_kept else 0
            detail += f". The next start sends {number(kept_count)} of them" if kept_count else ""
            outbox.dropped += len(left) - kept_count
            self._on_channel("channel_failed", outbox.channel, detail)


def _written(boxes: Sequence[Outbox], untold: Sequence[Notice], now_ns: int) -> dict[str, Any]:
    """Return what stands in the file: every channel, so that a new one can be told from one that had nothing to say.

    Empty where nothing waits at all.
    """
    channels: dict[str, Any] = {box.channel: box.as_json() for box in boxes}
    if untold:
        channels[FOR_ALL] = {"letters": [letter_as_json(Letter(notice, now_ns)) for notice in untold]}
    return channels if any(channels.values()) else {}


def _share_out(found: Found, boxes: Sequence[Outbox]) -> None:
    """Give each channel what it had not sent; what a channel had that is not configured any more, to the new ones."""
    by_name = {box.channel: box for box in boxes}
    new = [box for box in boxes if box.channel not in found.channels]
    for name, said in found.channels.items():
        takers = boxes if name == FOR_ALL else [by_name[name]] if name in by_name else new
        for box in takers:
            box.take_up(said)


async def _ended(
    posters: Sequence[_Poster], sending: Sequence[asyncio.Task[None]], ends_s: float, clock: Clock
) -> None:
    """Let the posters send what they have until `ends_s`, and close their channels."""
    for poster in posters:
        poster.end(ends_s)
    if sending:
        await asyncio.wait(sending, timeout=max(0.0, ends_s - clock.now_s()))
    for task in sending:
        task.cancel()
    if sending:
        await asyncio.wait(sending)
    for poster in posters:
        await poster.channel.close()


def _place(error: BaseException) -> str:
    """Return what kind of error it was and where, without any value."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


# --- At once, for programs that end --------------------------------------------------------------------------------


def tell_once(
    config: Config, news: Sequence[tuple[str, str, Mapping[str, object]]], within_s: float = 20.0
) -> list[ChannelState]:
    """Tell what a short program did: each happening as event, subject, facts. Returns how each channel did.

    A channel that fails raises nothing: its state has `error`, and counts what was not sent in `dropped`. What matters
    of that stands in the data directory, if there is one; the collector, or the next such program, sends it.
    """
    clock = Clock()
    incidents = Incidents(
        collector_name(config),
        config.alert_disconnected_s,
        None,
        frozenset(config.alert_mute),
        fetches=config.backfill,
    )
    now_s, now_ns = clock.now_s(), clock.now_ns()
    for event, subject, facts in news:
        incidents.note(event, subject, facts, now_s, now_ns)
    keep_in = config.data_dir if config.data_dir.is_dir() else None
    return _deliver(config, incidents.finish(now_s, now_ns), within_s, clock, keep_in)


def send_files(config: Config, notice: Notice, within_s: float = 120.0) -> list[ChannelState]:
    """Send a notice with its attachments to every channel. Returns how each channel did, as `tell_once`."""
    return _deliver(config, [notice], within_s, Clock(), None)


def try_channels(config: Config, within_s: float = 60.0) -> list[ChannelResult]:
    """Send one message to each channel and return what became of it. Raises `ConfigError` as `open_channels`."""
    name = collector_name(config)
    lines = ("This is only a test: what this collector has to tell comes here.",)
    notice = Notice("test", "info", f"{name}: test message", lines, f"{name}/test", ended=True)
    channels = open_channels(config)
    silent = f"no answer within {within_s:.0f} s"
    results = [ChannelResult(channel.name, ok=False, detail=silent, remedy="Check the network") for channel in channels]

    async def try_one(place: int) -> None:
        results[place] = await _tried(channels[place], notice)

    async def try_all() -> None:
        await asyncio.gather(*(try_one(place) for place in range(len(channels))))

    _in_thread(try_all(), within_s)
    return list(results)


async def _tried(channel: Channel, notice: Notice) -> ChannelResult:
    """Send one message, once; to its new place where the channel has moved."""
    name, advice = channel.name, ""
    (part,) = channel.parts(notice)
    try:
        try:
            await channel.send(part)
        except ChannelError as error:
            if error.kind != "moved":
                raise
            advice = f"; {error.detail}. {error.remedy}"
            await channel.send(part)
    except ChannelError as error:
        return ChannelResult(name, ok=False, detail=error.detail, remedy=error.remedy)
    finally:
        await channel.close()
    return ChannelResult(name, ok=True, detail=f"a message was sent{advice}")


def _deliver(
    config: Config, notices: Sequence[Notice], within_s: float, clock: Clock, keep_in: Path | None
) -> list[ChannelState]:
    """Send notices to every channel, each as often as time allows until it is taken.

    What is not taken stays in a file of the directory `keep_in`; before they are sent, all that matters does.
    """
    name = collector_name(config)
    try:
        channels = open_channels(config)
    except ConfigError as error:
        return [ChannelState(str(problem.key), clock.now_ns(), str(problem)) for problem in error.problems]
    failures: dict[str, str] = {}

    def report(poster: _Poster, change: Change) -> None:
        failures[poster.outbox.channel] = change.detail if change.event == "channel_failed" else ""

    boxes = [Outbox(name, one.name, one.pause_s, one.parts, one.units) for one in channels]
    for box in boxes:
        for notice in notices:
            box.put(notice, clock.now_ns())
    if keep_in is not None:
        _take_up_from(keep_in, boxes)
        _keep_in(keep_in, boxes, clock.now_ns())

    async def send() -> None:
        posters = [_Poster(channel, box, clock, report) for channel, box in zip(channels, boxes, strict=True)]
        sending = [asyncio.create_task(poster.run()) for poster in posters]
        await _ended(posters, sending, clock.now_s() + within_s, clock)

    _in_thread(send(), within_s + JOINED_WITHIN_S)
    is_kept = keep_in is not None and _keep_in(keep_in, boxes, clock.now_ns())
    states = [_at_the_end(box, failures.get(box.channel, ""), within_s, clock) for box in boxes]
    return [_with_prospect(state, box) if is_kept else state for state, box in zip(states, boxes, strict=True)]


def _take_up_from(directory: Path, boxes: Sequence[Outbox]) -> None:
    path = directory / kept.OF_THE_UPLOAD
    try:
        found = kept.read(path)
    except OSError as error:
        logger.warning("{}: alerts that were not sent before cannot be read: {}", path, error.strerror)
    except ValueError as error:
        kept.put_aside(path)
        logger.warning("{}; it was put aside", error)
    else:
        if found is not None:
            _share_out(found, boxes)


def _keep_in(directory: Path, boxes: Sequence[Outbox], now_ns: int) -> bool:
    path = directory / kept.OF_THE_UPLOAD
    try:
        kept.write(path, _written(boxes, (), now_ns))
    except OSError as error:
        logger.warning("{}: alerts that wait cannot be kept: {}", path, error.strerror)
        return False
    return True


def _with_prospect(state: ChannelState, box: Outbox) -> ChannelState:
    """Return a channel's state with a word on what will still be sent."""
    if not state.error or not any(letter.matters for letter in box.left_over()):
        return state
    return replace(state, error=f"{state.error.removesuffix('.')}. The collector, or the next upload, sends it")


def _at_the_end(box: Outbox, failure: str, within_s: float, clock: Clock) -> ChannelState:
    """Return a channel's state after its only messages: what still waits was not sent."""
    state = box.state()
    if state.waiting:
        error = state.error or failure or f"not sent within {within_s:.0f} s"
        dropped, since_ns = state.dropped + state.waiting, state.failing_since_ns or clock.now_ns()
        return replace(state, failing_since_ns=since_ns, error=error, dropped=dropped, waiting=0)
    if state.dropped:
        return replace(state, error=state.error or failure or "it gave no answer")
    return state


def _in_thread(work: Coroutine[Any, Any, None], within_s: float) -> None:
    """Run a coroutine in a thread that dies with the process, and wait for it that long at most."""
    thread = threading.Thread(target=asyncio.run, args=(work,), name="alerts", daemon=True)
    thread.start()
    thread.join(within_s)
