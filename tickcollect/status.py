"""What a person or a monitor may know while it runs: one small file, a verdict on it, and one table for both.

    collector ──Snapshot──▶ data/status.json ──read──▶ judge ──▶ exit code
                   └──▶ live view ◀── table ──▶ `tickcollect status`

Rules:

1. A status file is replaced whole (temporary name, rename); whoever reads it never sees half of one. It is not synced:
   it tells of now, and after a power loss there is nothing to tell.
2. Each collector of a data directory has a status file of its own: the first `status.json`, others `status-2.json` and
   so on. Which one is decided by a lock (flock), which the kernel frees with the process; so a killed collector's file
   stays as evidence until the next collector takes its place.
3. That a snapshot says `running` proves nothing. It counts only while it is fresh and its process lives, and a pid
   alone is not a process: pids are used again (`alive`).
4. What the numbers show (disconnected, gaps, disk, queue, lag) is derived here, once, for every reader (`judge`).
   `Snapshot.problems` carries only what they do not show.
5. Names and texts are printed, never interpreted: no markup, no control characters, only ASCII where the terminal's
   encoding is not UTF-8. No secret has a field here.

rich is imported where something is drawn: it takes longer to load than all else that `tickcollect status --json` needs.
"""

import asyncio
import fcntl
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import replace

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

STALE_AFTER_S = 10
"""A running collector writes its snapshot every second; one this old tells that it does not run as it should."""
HOUR_NS = 3600 * 10**9
CONNECTED_WITHIN_S = 60
"""For this long after the start a feed that is not connected yet is no trouble."""
KNOWN_WITHIN_S = 10
"""A reconnection takes no longer than this until it is known again whether IDs are missing; more is a trouble."""
DISK_LOW_HOURS = 24
DISK_LOW_BYTES = 1_000_000_000
QUEUE_HIGH = 0.8
LAG_HIGH_MS = 10_000
LAG_OF_A_RECORDING_MS = 86_400_000
"""No exchange is a day late: rows this old are replayed."""
UPLOAD_EVERY_H = 26
"""An upload is due every night; two hours more than a day are left for one that takes long."""
NAMES_TOLD = 3
"""A trouble of many feeds names this many and counts the others."""
REASONS_TOLD = 3
DRAWN_WITHIN_S = 1.0
"""How long the end of the live view waits for a terminal that does not take its output."""

FILE_MODE = 0o640
FILE_NAME = re.compile(r"status(?:-([0-9]+))?\.json")

State = Literal["starting", "running", "stopping", "stopped"]


# --- What is known -------------------------------------------------------------------------------------------------


class FeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One feed, as it was when the snapshot was taken; counts are since the collector's start."""

    exchange: str
    stream: str
    symbol: str
    connected: bool
    """At least one connection carries the feed."""
    rows: int
    """Rows written."""
    rows_per_s: float
    """Rows written per second, over the last seconds (`Rate`)."""
    last_id: int | None
    """ID of the last row written; None before the first."""
    last_price: str
    """Price of the last row, as sent; empty before the first."""
    lag_ms: float | None
    """This machine's clock at arrival minus the exchange's event time, of the last live row: way and clock error."""
    last_row_ns: int | None
    """When the last row arrived, nanoseconds since 1970; None before the first."""
    open_gaps: int
    """Gaps that are neither filled nor given up, those that rows held back wait for included."""
    missing_ids: int
    """IDs known not to be in the files: those of open gaps, those that rows held back wait for, and those lost."""
    lost_ids: int = 0
    """Those of them that nobody can give any more."""
    copies: int
    """Messages dropped because their row was written before."""
    refused: int
    """Messages not written because they could not be right; they are kept in quarantine."""
    not_trades: int
    """Placeholders and internal fills of the futures markets, counted and not written."""
    file: str
    """The open segment, relative to `data_dir`; empty when none is open."""
    file_bytes: int
    files_sealed: int
    note: str
    """What is going on with this feed in a few words, such as `next attempt in 8 s`; mostly empty."""
    unknown_since_ns: int | None = None
    """Since when it is not known whether IDs are missing; None while all up to the newest row is here or in
    `missing_ids`. `judge` and `doubted` say what holds where no collector runs."""
    unknown_reason: str = ""
    """Why it is not known; empty while it is."""

    @property
    def market(self) -> str:
        """Where the rows come from: `binance/trade`."""
        return f"{self.exchange}/{self.stream}"

    @property
    def name(self) -> str:
        """The feed for a person: `BTCUSDT binance/trade`."""
        return f"{self.symbol} {self.market}"


class UploadStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the upload: its last run, and what waits for the next."""

    store: str
    """Where to, without a secret."""
    last_run_ns: int | None
    """When the last run ended, nanoseconds since 1970; None where none is on record."""
    complete: bool
    """The last run has left nothing behind."""
    waiting_files: int
    """Sealed files that are not in the store, as far as is known."""
    waiting_bytes: int
    oldest_ns: int | None
    """Since when the first of them waits; None when none does."""
    failure: str
    """Why the last run has left something behind, or why nothing is known; empty when all went well."""

    @property
    def known(self) -> bool:
        """The other fields tell something: a failure without a run is that of looking."""
        return self.last_run_ns is not None or not self.failure


class ChannelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One channel for alerts."""

    name: str
    """As it is shown, without a secret."""
    failing_since_ns: int | None
    """Since when nothing can be sent; None while it can."""
    error: str
    """Why, in one line without a secret; empty while it works."""
    sent: int
    """Messages sent since the start."""
    dropped: int
    """Messages that were given up."""
    waiting: int
    """Messages not sent yet."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One collector, as it was at `at_ns`. Times are nanoseconds since 1970 by this machine's clock."""

    at_ns: int
    pid: int
    process: str
    """What tells this process from a later one with the same pid (`process_identity`); empty where unknown."""
    version: str
    started_ns: int
    state: State
    data_dir: str
    feeds: list[FeedStatus]
    messages_per_s: float
    """Messages received per second, of whatever kind, over the last seconds."""
    queue_rows: int
    """Messages received and not yet written."""
    queue_limit: int
    """At this many the collector stops reading from the exchange."""
    reconnects: int
    sealing: int
    """Segments that wait to be packed."""
    disk_free_bytes: int
    disk_hours_left: float | None
    """Until the disk is full at the present rate; None while there is no rate."""
    problems: list[str]
    """Present troubles that the other fields do not show, one plain line each."""
    upload: UploadStatus | None = None
    """None where no store is configured."""
    channels: list[ChannelStatus] = []
    """The configured channels for alerts."""
    queue_bytes: int = 0
    """What the messages of `queue_rows` take in memory."""
    queue_limit_bytes: int = 0
    """At this much, too, the collector stops reading; 0 where an older version wrote the file."""

    @property
    def queue_part(self) -> float:
        """How full the queue is, as a part of 1, by messages or by bytes, whichever is more."""
        by_bytes = self.queue_bytes / self.queue_limit_bytes if self.queue_limit_bytes else 0.0
        return max(self.queue_rows / max(1, self.queue_limit), by_bytes)


def encode(snapshots: Sequence[Snapshot]) -> bytes:
    """Return what `tickcollect status --json` prints: a JSON array of what the status files hold."""
    return msgspec.json.encode(snapshots) + b"\n"


@dataclass(slots=True)
class Rate:
    """Events per second over the last `window_s`, from a counter that only rises."""

    window_s: float = 5.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, total: int, now_s: float) -> float:
        """Take the counter's value at `now_s` (a monotonic clock) and return the rate; 0 until there are two values.

        A counter that fell has begun anew, and so does its rate. Memory is bounded: of values less than a twentieth
        of the window apart only the first is kept.
        """
        if self._samples and total < self._samples[-1][1]:
            self._samples.clear()
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - self.window_s:
            self._samples.popleft()
        if not self._samples or now_s - self._samples[-1][0] >= self.window_s / 20:
            self._samples.append((now_s, total))
        since_s, before = self._samples[0]
        return (total - before) / (now_s - since_s) if now_s > since_s else 0.0


# --- The file ------------------------------------------------------------------------------------------------------


class StatusError(Exception):
    """A status file cannot be written or read; the message is one line for a person."""

    def __init__(self, message: str, exit_code: "Health") -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NoStatusError(StatusError):
    """No collector has run with this data directory."""


class DamagedStatusError(StatusError):
    """A status file is there and does not hold a snapshot."""


class StatusFile:
    """This process's status file in `data_dir`, claimed until `finish` or `release` or the end of the process.

    Any thread may call any method. Raises `StatusError` if the directory or its lock cannot be had.
    """

    def __init__(self, data_dir: Path) -> None:
        self._one_at_a_time = RLock()
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            self.path, self._claim = _claim(data_dir)
        except OSError as error:
            raise _not_written(data_dir, error) from error

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file by this snapshot. Raises `StatusError`; the file is then the one before.

        After `finish` or `release` it changes nothing: a write that was still on its way must not have the last word.
        """
        temporary = self.path.with_name(self.path.name + ".unconfirmed")
        with self._one_at_a_time:
            if self._claim < 0:
                return
            try:
                temporary.touch(FILE_MODE)
                temporary.write_bytes(msgspec.json.encode(snapshot) + b"\n")
                temporary.replace(self.path)
            except OSError as error:
                with suppress(OSError):
                    temporary.unlink()
                raise _not_written(self.path, error) from error

    def finish(self, snapshot: Snapshot) -> None:
        """Leave `status.json` behind with the state `stopped`, a further collector's file not at all, and let go."""
        with self._one_at_a_time:
            try:
                if self.path.name == "status.json":
                    self.write(replace(snapshot, state="stopped"))
                elif self._claim >= 0:
                    self.path.unlink(missing_ok=True)
            except OSError as error:
                raise _not_written(self.path, error) from error
            finally:
                self.release()

    def release(self) -> None:
        """Let go of the file as it is. The lock's own file stays: deleting it would let two take it."""
        with self._one_at_a_time:
            if self._claim >= 0:
                os.close(self._claim)
                self._claim = -1


def _claim(data_dir: Path) -> tuple[Path, int]:
    """Return the first status file whose lock is free, and the descriptor that holds the lock."""
    for place in count(1):
        suffix = "" if place == 1 else f"-{place}"
        lock = os.open(data_dir / f".status{suffix}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        except OSError:
            os.close(lock)
            raise
        else:
            return data_dir / f"status{suffix}.json", lock
    raise AssertionError


def _not_written(path: Path, error: OSError) -> StatusError:
    reason = error.strerror or str(error)
    return StatusError(
        f"cannot write the status below {path}: {reason}. Collecting is not concerned, but `tickcollect status` shows "
        "old numbers until the disk or its rights are set right.",
        Health.TROUBLE,
    )


def read(data_dir: Path) -> list[Snapshot]:
    """Return the snapshots of all collectors of `data_dir`, `status.json` first.

    Raises `NoStatusError` if there is none, `DamagedStatusError` if one is not a snapshot, `StatusError` if one may
    not be read; each carries the exit code of `tickcollect status`.
    """
    try:
        found = [(int(match[1] or 1), path) for path in data_dir.iterdir() if (match := FILE_NAME.fullmatch(path.name))]
    except (FileNotFoundError, NotADirectoryError):
        found = []
    except OSError as error:
        raise _not_read(data_dir, error) from error
    snapshots = [snapshot for _, path in sorted(found) if (snapshot := _read_one(path)) is not None]
    if not snapshots:
        raise NoStatusError(
            f"no collector has run in {data_dir}: there is no status.json. Start one with `tickcollect run`, or name "
            "its directory with --data-dir.",
            Health.NEVER_RAN,
        )
    return snapshots


def _read_one(path: Path) -> Snapshot | None:
    """Return the file's snapshot; None if its collector removed it a moment ago."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _not_read(path, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedStatusError(
            f"{path} does not hold a status ({error}). A running collector writes it anew every second; if it stays "
            "so, none is running or it is of another version. The recorded data is not concerned.",
            Health.NOT_COLLECTING,
        ) from error


def _not_read(path: Path, error: OSError) -> StatusError:
    return StatusError(
        f"cannot read {path}: {error.strerror or error}. Run this as the collector's user or as one of its group.",
        Health.NOT_COLLECTING,
    )


# --- Is it alive ---------------------------------------------------------------------------------------------------


STATE, START_TIME = 0, 19
"""Places in what `_stat_fields` returns: fields 3 and 22 of Linux's proc_pid_stat(5)."""


def process_identity(pid: int) -> str:
    """Return what no other process will have: boot, PID namespace and start time; empty where /proc does not tell."""
    machine, fields = _machine(), _stat_fields(pid)
    return f"{machine}/{fields[START_TIME]}" if machine and fields else ""


def alive(snapshot: Snapshot) -> bool | None:
    """Tell whether the snapshot's process still runs; None if that cannot be known from here.

    It cannot be known for a process of another machine, container or boot, nor where /proc hides others' processes.
    """
    machine, _, _ = snapshot.process.rpartition("/")
    if machine != _machine():
        return None
    if not _exists(snapshot.pid):
        return False
    if not machine:
        return True
    fields = _stat_fields(snapshot.pid)
    if not fields:
        return None
    return fields[STATE] not in {"Z", "X"} and process_identity(snapshot.pid) == snapshot.process


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on; empty if they cannot be had.

    The second, the program's name, may hold spaces and parentheses: what follows begins at the last parenthesis.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


# --- The verdict ---------------------------------------------------------------------------------------------------


class Health(IntEnum):
    """The exit codes of `tickcollect status`."""

    WELL = 0
    TROUBLE = 1
    """It collects, and something needs attention."""
    NOT_COLLECTING = 2
    """Stopped, killed, or not answering."""
    NEVER_RAN = 3
    """No collector has run with this data directory."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be thought of one collector."""

    health: Health
    summary: str
    """One line; also fit for a log and for systemd's STATUS=."""
    troubles: tuple[str, ...]
    """What needs attention, one line each."""
    in_order: bool = False
    """It was told to stop, and did."""
    unclear: tuple[str, ...] = ()
    """What is not known for a moment, as after each reconnection, and needs no attention yet."""


def judge(snapshot: Snapshot, now_ns: int, pid_alive: bool | None) -> Verdict:  # noqa: FBT001 - a fact, not a switch
    """Judge a snapshot at `now_ns`; `pid_alive` is what `alive` says of its process.

    A snapshot from the future is as stale as an old one: nobody has written since the clock was set back. Troubles of
    the upload are told of a collector that does not collect, too: the upload goes on without it.
    """
    left = (*snapshot.problems, *_upload_troubles(snapshot, now_ns))
    age_s = (now_ns - snapshot.at_ns) / 1e9
    ago = f"{span(abs(age_s))} {'ago' if age_s >= 0 else 'in the future'}"
    if snapshot.state == "stopped":
        summary = "; ".join((f"stopped in order {ago}", *_lacking(snapshot.feeds, now_ns)))
        return Verdict(Health.NOT_COLLECTING, f"{summary}.", left, in_order=True)
    left = (*_lacking(doubted(snapshot).feeds, now_ns), *left)
    if pid_alive is False:
        summary = (
            f"died while {snapshot.state}: process {snapshot.pid} is gone, its last sign was {ago}. Start it again; "
            "it goes on from its last whole row. If it is not to run any more, delete its status file."
        )
        return Verdict(Health.NOT_COLLECTING, summary, left)
    if abs(age_s) > STALE_AFTER_S:
        summary = f"gives no sign of life: the last was {ago}. " + (
            f"Process {snapshot.pid} is there: it hangs, or its disk does not answer."
            if pid_alive
            else f"Whether process {snapshot.pid} still runs cannot be seen from this boot, container or user."
        )
        return Verdict(Health.NOT_COLLECTING, summary, left)
    troubles = tuple(_troubles(snapshot, now_ns))
    health = Health.TROUBLE if troubles or snapshot.state == "stopping" else Health.WELL
    lately = [
        feed for feed in snapshot.feeds if feed.unknown_since_ns is not None and not _long_unknown(feed, snapshot)
    ]
    unclear = (unknown_text(lately, now_ns),) if lately else ()
    return Verdict(health, _summary(snapshot, now_ns), troubles, unclear=unclear)


def _summary(snapshot: Snapshot, now_ns: int) -> str:
    doing = {"running": "collecting"}.get(snapshot.state, snapshot.state)
    rows_per_s = sum(feed.rows_per_s for feed in snapshot.feeds)
    newest_ns = max((feed.last_row_ns for feed in snapshot.feeds if feed.last_row_ns is not None), default=None)
    last = "no row yet" if newest_ns is None else f"last row {_past(now_ns, newest_ns)} ago"
    return f"{doing} {_plural(len(snapshot.feeds), 'feed')}, {_rate(rows_per_s)} rows/s, {last}"


def doubted(snapshot: Snapshot) -> Snapshot:
    """Return the last snapshot of a collector that died or hangs, with nothing known behind each feed's last row.

    Nobody has said since that nothing came: what the exchange issued later is found by the next start.
    """
    feeds = [
        feed
        if feed.unknown_since_ns is not None
        else replace(
            feed,
            unknown_since_ns=snapshot.at_ns if feed.last_row_ns is None else feed.last_row_ns,
            unknown_reason="the collector died or hangs",
        )
        for feed in snapshot.feeds
    ]
    return replace(snapshot, feeds=feeds)


def unknown_text(feeds: Sequence[FeedStatus], now_ns: int) -> str:
    """Say since when it is not known of `feeds`, of which there is at least one, whether IDs are missing, and why."""
    since_ns = min(feed.unknown_since_ns or now_ns for feed in feeds)
    found = list(dict.fromkeys(feed.unknown_reason for feed in feeds if feed.unknown_reason))
    more = [f"and {len(found) - REASONS_TOLD:,} more reasons"] if len(found) > REASONS_TOLD else []
    reasons = "; ".join(found[:REASONS_TOLD] + more)
    named = _named([replace(feed, note="") for feed in feeds])
    return f"it is not known since {second(since_ns, now_ns)} whether IDs are missing of {named}: {reasons}"


def _lacking(feeds: Sequence[FeedStatus], now_ns: int) -> Iterator[str]:
    """Say what is missing and what is not known at the end of a collector."""
    if missing := sum(feed.missing_ids for feed in feeds):
        yield f"{_plural(missing, 'ID')} missing"
    if unknown := [feed for feed in feeds if feed.unknown_since_ns is not None]:
        yield unknown_text(unknown, now_ns)


def _long_unknown(feed: FeedStatus, snapshot: Snapshot) -> bool:
    """Tell whether it has not been known for longer than a reconnection takes; what was before this run counts not."""
    since_ns = feed.unknown_since_ns
    return since_ns is not None and snapshot.at_ns - max(since_ns, snapshot.started_ns) > KNOWN_WITHIN_S * 1e9


def _troubles(snapshot: Snapshot, now_ns: int) -> Iterator[str]:
    """Tell what needs attention; many feeds in the same trouble are one line."""
    feeds = snapshot.feeds
    if cut := [feed for feed in feeds if _cut_off(feed, snapshot)]:
        yield f"{_plural(len(cut), 'feed')} not connected: {_named(cut)}"
    if unknown := [feed for feed in feeds if _long_unknown(feed, snapshot)]:
        yield unknown_text(unknown, now_ns)
    if gaps := [feed for feed in feeds if feed.open_gaps]:
        missing = f"{sum(feed.missing_ids for feed in gaps):,} IDs missing"
        yield f"{_plural(sum(feed.open_gaps for feed in gaps), 'open gap')} ({missing}): {_named(gaps)}"
    if late := [feed for feed in feeds if feed.connected and LAG_HIGH_MS < (feed.lag_ms or 0) < LAG_OF_A_RECORDING_MS]:
        worst_s = max(feed.lag_ms or 0 for feed in late) / 1000
        yield f"{_plural(len(late), 'feed')} up to {span(worst_s)} behind, or this machine's clock is: {_named(late)}"
    hours = snapshot.disk_hours_left
    if snapshot.disk_free_bytes < DISK_LOW_BYTES or (hours is not None and hours < DISK_LOW_HOURS):
        left = "" if hours is None else f", enough for {span(hours * 3600)}"
        yield f"disk low: {size(snapshot.disk_free_bytes)} free{left}; upload and delete, or give it more space"
    if snapshot.queue_rows and snapshot.queue_part >= QUEUE_HIGH:
        share = f"{snapshot.queue_part:.0%} of what may wait"
        yield f"{snapshot.queue_rows:,} messages wait to be written ({share}): slow disk or CPU"
    yield from _upload_troubles(snapshot, now_ns)
    for channel in snapshot.channels:
        if channel.failing_since_ns is not None:
            dropped = f", {_plural(channel.dropped, 'message')} given up" if channel.dropped else ""
            since = moment(channel.failing_since_ns, now_ns)
            yield f"alerts to {channel.name} fail since {since}{dropped}: {channel.error}"
    yield from snapshot.problems


def _upload_troubles(snapshot: Snapshot, now_ns: int) -> Iterator[str]:
    """Tell that the last upload has failed, or that none has run although files wait."""
    upload = snapshot.upload
    if upload is None:
        return
    waiting = f"{_plural(upload.waiting_files, 'file')} ({size(upload.waiting_bytes)})"
    if not upload.known:
        yield upload.failure
    elif upload.failure:
        left = f", {waiting} waiting" if upload.waiting_files else ""
        yield f"the upload of {moment(upload.last_run_ns or 0, now_ns)} is not complete{left}: {upload.failure}"
    elif _is_past(upload.oldest_ns, now_ns) and (upload.last_run_ns is None or _is_past(upload.last_run_ns, now_ns)):
        last = "none" if upload.last_run_ns is None else moment(upload.last_run_ns, now_ns)
        yield (
            f"no upload for more than {UPLOAD_EVERY_H} h (last: {last}), and {waiting} waiting. See whether cron or "
            "the timer starts it, or run `tickcollect upload`"
        )


def _is_past(then_ns: int | None, now_ns: int) -> bool:
    """Tell whether something is longer ago than an upload may be."""
    return then_ns is not None and now_ns - then_ns > UPLOAD_EVERY_H * HOUR_NS


def _cut_off(feed: FeedStatus, snapshot: Snapshot) -> bool:
    """Tell whether the feed ought to be connected and is not."""
    begun = snapshot.state == "starting" and snapshot.at_ns - snapshot.started_ns > CONNECTED_WITHIN_S * 1e9
    return not feed.connected and (snapshot.state == "running" or begun)


def _troubled(feed: FeedStatus, snapshot: Snapshot) -> bool:
    lags = (feed.lag_ms or 0) > LAG_HIGH_MS
    unknown = feed.connected and feed.unknown_since_ns is not None
    return _cut_off(feed, snapshot) or feed.open_gaps > 0 or lags or unknown


def _named(feeds: Sequence[FeedStatus]) -> str:
    """Name the first feeds, with what they have to say, and count the others."""
    told = [f"{feed.name} ({feed.note})" if feed.note else feed.name for feed in feeds[:NAMES_TOLD]]
    more = len(feeds) - len(told)
    return ", ".join(told) + (f" and {more:,} more" if more else "")


# --- Numbers for people --------------------------------------------------------------------------------------------


SPANS = (
    (9.95, 1, "{:.1f} s"),
    (120, 1, "{:.0f} s"),
    (120 * 60, 60, "{:.0f} min"),
    (48 * 3600, 3600, "{:.0f} h"),
    (float("inf"), 86400, "{:,.0f} d"),
)
"""Up to which seconds, divided by what, a length of time is told how."""

ROUNDS_TO_1000 = 999.5
COUNT_CELLS = len("99,999")


def span(seconds: float) -> str:
    """Return a length of time in one unit: `0.2 s`, `12 s`, `3 min`, `2 h`, `4 d`."""
    return next(text.format(seconds / unit_s) for limit_s, unit_s, text in SPANS if seconds < limit_s)


def moment(then_ns: int, now_ns: int) -> str:
    """Return a time in UTC: `00:10 UTC`, with the date where it is not of the last 24 hours."""
    then = datetime.fromtimestamp(then_ns / 1e9, UTC)
    return f"{then:%H:%M} UTC" if 0 <= now_ns - then_ns < 24 * HOUR_NS else f"{then:%Y-%m-%d %H:%M} UTC"


def second(then_ns: int, now_ns: int) -> str:
    """Return a time in UTC to the second: `00:10:05 UTC`, with the date where it is not of the last 24 hours."""
    then = datetime.fromtimestamp(then_ns / 1e9, UTC)
    return f"{then:%H:%M:%S} UTC" if 0 <= now_ns - then_ns < 24 * HOUR_NS else f"{then:%Y-%m-%d %H:%M:%S} UTC"


def size(number_of_bytes: float) -> str:
    """Return bytes in decimal units with three digits: `512 B`, `1.02 GB`."""
    return _scaled(number_of_bytes, (" B", " kB", " MB", " GB", " TB", " PB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    """Return three digits and the unit that leaves them; whole numbers in the first unit."""
    power = 0
    while abs(value) >= ROUNDS_TO_1000 and power + 1 < len(units):
        value, power = value / 1000, power + 1
    digits = max(0, 3 - len(f"{abs(value):.0f}")) if power else 0
    return f"{value:,.{digits}f}{units[power]}"


def _count(number: float) -> str:
    text = f"{number:,.0f}"
    return text if len(text) <= COUNT_CELLS else _scaled(number, ("", "k", "M", "G", "T"))


def _rate(per_s: float) -> str:
    text = f"{per_s:.1f}"
    return text if len(text) <= len("9.9") else _count(per_s)


def _lag(lag_ms: float) -> str:
    return f"{lag_ms:.0f} ms" if abs(lag_ms) < ROUNDS_TO_1000 else span(lag_ms / 1000)


def _price(text: str) -> str:
    """Leave out the zeros behind a price's last digit; what is cut off besides is seen to be."""
    shown = text.rstrip("0").rstrip(".") if "." in text else text
    return (shown if len(shown) <= PRICE_CELLS else shown[: PRICE_CELLS - 2] + "..") or "-"


def _past(now_ns: int, then_ns: int) -> str:
    return span(max(0.0, (now_ns - then_ns) / 1e9))


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- The table -----------------------------------------------------------------------------------------------------


def table(
    snapshots: Sequence[Snapshot], now_ns: int, verdicts: Sequence[Verdict] = (), lines: int | None = None
) -> "StatusTable":
    """Return the rich renderable that the live view and `tickcollect status` print.

    `verdicts` belong to the snapshots in order; without them the snapshots' ages decide. `lines` is the height to fit
    into: feeds in trouble come first, then the busiest, and one line counts the rest. Without it every feed is shown.
    """
    judged = verdicts or [judge(snapshot, now_ns, None) for snapshot in snapshots]
    share = None if lines is None else lines // max(1, len(snapshots))
    return StatusTable(tuple(zip(snapshots, judged, strict=True)), now_ns, share)


Column = Callable[[FeedStatus, int], str]

COLUMNS: dict[str, Column] = {
    "rows/s": lambda feed, _: _rate(feed.rows_per_s),
    "rows": lambda feed, _: _count(feed.rows),
    "price": lambda feed, _: _price(feed.last_price),
    "lag": lambda feed, _: "-" if feed.lag_ms is None else _lag(feed.lag_ms),
    "last row": lambda feed, now_ns: "-" if feed.last_row_ns is None else _past(now_ns, feed.last_row_ns),
    "gaps": lambda feed, _: _at_least(feed, f"{feed.open_gaps:,}"),
    "missing": lambda feed, _: _at_least(feed, _count(feed.missing_ids)),
    "file": lambda feed, _: size(feed.file_bytes) if feed.file else "-",
    "open file": lambda feed, _: feed.file,
}


def _at_least(feed: FeedStatus, count: str) -> str:
    """Mark a count of what is missing as what is known so far: `?` for none, `5+` for some."""
    if feed.unknown_since_ns is None:
        return count
    return "?" if count == "0" else f"{count}+"


LAYOUTS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (2, ("rows/s", "rows", "price", "lag", "last row", "gaps", "missing", "file", "open file")),
    (2, ("rows/s", "rows", "price", "lag", "last row", "gaps", "missing", "file")),
    (2, ("rows/s", "rows", "price", "lag", "last row", "gaps", "file")),
    (1, ("rows/s", "rows", "price", "lag", "last row", "gaps", "file")),
    (1, ("rows/s", "price", "lag", "last row", "gaps", "file")),
    (1, ("rows/s", "price", "lag", "last row", "gaps")),
    (1, ("rows/s", "lag", "last row", "gaps")),
    (1, ("rows/s", "gaps")),
)
"""Cells between the columns, and the columns behind the feed's name; the first that fits is taken."""

TEXT_COLUMNS = {"feed", "open file"}
NAME_CELLS = 28
"""A longer name is cut before a column is left out."""
PRICE_CELLS = 12


@dataclass(frozen=True, slots=True)
class _Glyphs:
    """The marks of one encoding."""

    well: str
    trouble: str
    cut: str
    rest: str
    between: str
    ellipsis: str


_UTF8 = _Glyphs("●", "!", "✗", "○", " · ", "…")
_ASCII = _Glyphs("*", "!", "x", "-", " | ", "..")


@dataclass(frozen=True, slots=True)
class StatusTable:
    """A rich renderable: per collector a header, its feeds, and its troubles."""

    judged: tuple[tuple[Snapshot, Verdict], ...]
    now_ns: int
    lines: int | None

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Text]":
        """Yield one unwrapped line after the other."""
        pen = _Pen(_ASCII if options.ascii_only else _UTF8, options.max_width, options.ascii_only)
        for place, (snapshot, verdict) in enumerate(self.judged):
            if place:
                yield pen.line()
            yield from _block(snapshot, verdict, self.now_ns, self.lines, pen)


@dataclass(frozen=True, slots=True)
class _Pen:
    """Makes lines that are no wider than the terminal and hold nothing it could misread."""

    glyphs: _Glyphs
    width: int
    ascii_only: bool

    def plain(self, text: str) -> str:
        """Replace what is not to be printed: control and format characters, surrogates, and beyond ASCII on request."""
        return "".join(c if c.isprintable() and (c.isascii() or not self.ascii_only) else "?" for c in text)

    def cells(self, text: str) -> int:
        """Return how many of the terminal's cells `text` takes: two for each Chinese character."""
        from rich.cells import cell_len  # noqa: PLC0415 - see the module's docstring

        return cell_len(text)

    def cut(self, text: str, cells: int) -> str:
        """Shorten `text` to a number of cells."""
        from rich.cells import set_cell_size  # noqa: PLC0415 - see the module's docstring

        if self.cells(text) <= cells:
            return text
        tail = self.glyphs.ellipsis[: max(0, cells)]
        return set_cell_size(text, max(0, cells - len(tail))) + tail

    def line(self, *parts: tuple[str, str]) -> "Text":
        """Return a line of (text, style) parts, cut to the width."""
        from rich.text import Text  # noqa: PLC0415 - see the module's docstring

        line = Text(no_wrap=True, overflow="crop")
        for text, style in parts:
            line.append(self.cut(text, self.width - line.cell_len), style)
        return line

    def column(self, title: str, cells: Iterable[str], width: int | None = None) -> list[str]:
        """Return title and cells, plain, each as wide as the widest or as `width`, texts to the left, numbers right."""
        plain = [title, *map(self.plain, cells)]
        wide = max(map(self.cells, plain)) if width is None else width
        padded = [(text, " " * (wide - self.cells(text))) for text in plain]
        return [text + space if title in TEXT_COLUMNS else space + text for text, space in padded]

    def wrapped(self, text: str, first: str, style: str) -> "list[Text]":
        """Return `text` on as many lines as it needs, behind `first` on the first one and its indentation below."""
        from rich.cells import chop_cells  # noqa: PLC0415 - see the module's docstring

        cells = max(2, self.width - len(first))
        words = [part for word in self.plain(text).split(" ") for part in (chop_cells(word, cells) or [""])]
        lines = self.flow(words, " ", cells)
        return [
            self.line((first if n == 0 else " " * len(first), style), (line, style)) for n, line in enumerate(lines)
        ]

    def flow(self, parts: Iterable[str], between: str, cells: int) -> list[str]:
        """Join parts to lines of at most `cells`, breaking only between parts."""
        lines: list[str] = []
        for part in parts:
            if lines and self.cells(lines[-1] + between + part) <= cells:
                lines[-1] += between + part
            else:
                lines.append(part)
        return lines

    def at_most(self, lines: "list[Text]", number: int) -> "list[Text]":
        """Keep the first lines and count the others."""
        if len(lines) <= number:
            return lines
        more = len(lines) - number + 1
        return [*lines[: number - 1], self.line((f"  and {_plural(more, 'line')} more", "dim"))]


def _block(snapshot: Snapshot, verdict: Verdict, now_ns: int, lines: int | None, pen: _Pen) -> "list[Text]":
    """Return one collector's part of the table, at most `lines` of it if the terminal has room for them at all."""
    shown = snapshot if verdict.health < Health.NOT_COLLECTING else _at_rest(snapshot, verdict)
    header = _header(shown, verdict, now_ns, pen)
    troubles = _trouble_lines(shown, verdict, pen)
    if lines is not None:
        troubles = pen.at_most(troubles, max(2, lines // 3))
    if troubles:
        troubles.insert(0, pen.line())
    room = None if lines is None else lines - len(header) - len(troubles) - 2
    return [*header, pen.line(), *_feed_lines(shown, now_ns, room, pen), *troubles]


def _header(snapshot: Snapshot, verdict: Verdict, now_ns: int, pen: _Pen) -> "list[Text]":
    """Tell of the collector as a whole: that it does not collect, or how it does."""
    if verdict.health >= Health.NOT_COLLECTING:
        mark, style = (pen.glyphs.rest, "bold") if verdict.in_order else (pen.glyphs.cut, "bold red")
        lines = pen.wrapped(verdict.summary, f"{mark} ", style)
        parts = [f"ran for {_past(snapshot.at_ns, snapshot.started_ns)}", *_totals(snapshot)]
    else:
        lines = []
        parts = [*_doings(snapshot, now_ns), *_totals(snapshot), *_resources(snapshot)]
    texts = [pen.plain(part) for part in (f"tickcollect {snapshot.version}", *parts)]
    lines += [pen.line((text, "bold")) for text in pen.flow(texts, pen.glyphs.between, pen.width)]
    return lines + [line for text in _deliveries(snapshot, verdict, now_ns) for line in pen.wrapped(text, "", "")]


def _doings(snapshot: Snapshot, now_ns: int) -> Iterator[str]:
    yield f"{snapshot.state} {'after' if snapshot.state == 'stopping' else 'for'} {_past(now_ns, snapshot.started_ns)}"
    yield f"{_rate(snapshot.messages_per_s)} messages/s"


def _totals(snapshot: Snapshot) -> Iterator[str]:
    """Tell what was collected since the start; the rarer kinds only where there are any."""
    feeds = snapshot.feeds
    if len(markets := {feed.market for feed in feeds}) == 1:
        yield markets.pop()
    yield _plural(len(feeds), "feed")
    yield _plural(sum(feed.rows for feed in feeds), "row")
    rare = {
        "IDs missing": sum(feed.missing_ids for feed in feeds),
        "copies dropped": sum(feed.copies for feed in feeds),
        "refused": sum(feed.refused for feed in feeds),
        "not trades": sum(feed.not_trades for feed in feeds),
    }
    yield from (f"{number:,} {what}" for what, number in rare.items() if number)
    if unknown := sum(feed.unknown_since_ns is not None for feed in feeds):
        yield f"not known of {_plural(unknown, 'feed')} whether IDs are missing"


def _resources(snapshot: Snapshot) -> Iterator[str]:
    hours = snapshot.disk_hours_left
    yield f"disk {size(snapshot.disk_free_bytes)} free" + ("" if hours is None else f", {span(hours * 3600)} left")
    yield f"queue {snapshot.queue_part:.0%}"
    yield f"{_plural(sum(feed.files_sealed for feed in snapshot.feeds), 'file')} sealed, {snapshot.sealing:,} waiting"
    yield _plural(snapshot.reconnects, "reconnect")


def _deliveries(snapshot: Snapshot, verdict: Verdict, now_ns: int) -> Iterator[str]:
    """Tell of the upload and of the channels for alerts, where there are any; a dead collector has no channels."""
    if (upload := snapshot.upload) is not None:
        waiting = "nothing waiting"
        if upload.waiting_files:
            waiting = f"{_plural(upload.waiting_files, 'file')} waiting ({size(upload.waiting_bytes)})"
        if upload.last_run_ns is None:
            yield f"upload: {waiting}, none yet" if upload.known else "upload: not known"
        else:
            last = f"last {moment(upload.last_run_ns, now_ns)} {'ok' if upload.complete else 'not complete'}"
            yield f"upload: {waiting}, {last}"
    if snapshot.channels and verdict.health < Health.NOT_COLLECTING:
        working = [channel.name for channel in snapshot.channels if channel.failing_since_ns is None]
        failing = [f"{channel.name} failing" for channel in snapshot.channels if channel.failing_since_ns is not None]
        yield f"alerts: {', '.join([*failing, *(f'{name} ok' for name in working)])}"


def _feed_lines(snapshot: Snapshot, now_ns: int, room: int | None, pen: _Pen) -> "list[Text]":
    """Return a heading, the feeds that fit into `room` lines, and the count of the others."""
    feeds = sorted(snapshot.feeds, key=lambda feed: (not _troubled(feed, snapshot), -feed.rows_per_s, feed.name))
    shown = feeds if room is None or len(feeds) <= room else feeds[: max(1, room - 1)]
    if not shown:
        return [pen.line(("  no feed yet", "dim"))]
    one_market = len({feed.market for feed in feeds}) == 1
    title, *rows = _grid(shown, one_market, now_ns, pen)
    lines = [pen.line((f"  {title}", "dim"))]
    lines += [
        pen.line(_mark(feed, snapshot, pen), (row, "" if feed.connected else "dim"))
        for feed, row in zip(shown, rows, strict=True)
    ]
    if rest := feeds[len(shown) :]:
        ill = sum(_troubled(feed, snapshot) for feed in rest)
        how = f"{ill:,} of them in trouble" if ill else "no trouble known"
        rate = _rate(sum(feed.rows_per_s for feed in rest))
        lines.append(pen.line((f"  and {len(rest):,} more, {how}, {rate} rows/s", "yellow" if ill else "dim")))
    return lines


def _grid(feeds: Sequence[FeedStatus], one_market: bool, now_ns: int, pen: _Pen) -> list[str]:  # noqa: FBT001 - a fact
    """Return the heading and a row per feed, with the columns of the first layout that fits."""
    names = [feed.symbol if one_market else feed.name for feed in feeds]
    natural = max(len("feed"), *(pen.cells(pen.plain(name)) for name in names))
    columns = {title: pen.column(title, (cell(feed, now_ns) for feed in feeds)) for title, cell in COLUMNS.items()}
    for gap, titles in LAYOUTS:
        room = pen.width - 2 - sum(pen.cells(columns[title][0]) + gap for title in titles)
        if room >= min(natural, NAME_CELLS):
            break
    cells = max(1, min(natural, room))
    cut = names if natural <= cells else [pen.cut(_shorter(feed, cells, one_market, pen), cells) for feed in feeds]
    rows = zip(pen.column("feed", cut, cells), *(columns[title] for title in titles), strict=True)
    return [(" " * gap).join(row).rstrip() for row in rows]


def _shorter(feed: FeedStatus, cells: int, one_market: bool, pen: _Pen) -> str:  # noqa: FBT001 - a fact
    """Shorten a name where it tells least, in the exchange; its symbol and stream tell the feeds apart."""
    symbol, stream = pen.plain(feed.symbol), pen.plain(feed.stream)
    room = cells - len(symbol) - len(stream) - 2
    if one_market or room < len("bin") + len(pen.glyphs.ellipsis):
        return symbol if one_market else pen.plain(feed.name)
    return f"{symbol} {pen.cut(pen.plain(feed.exchange), room)}/{stream}"


def _mark(feed: FeedStatus, snapshot: Snapshot, pen: _Pen) -> tuple[str, str]:
    if _cut_off(feed, snapshot):
        return f"{pen.glyphs.cut} ", "red"
    if _troubled(feed, snapshot):
        return f"{pen.glyphs.trouble} ", "yellow"
    return (f"{pen.glyphs.well} ", "green") if feed.connected else (f"{pen.glyphs.rest} ", "dim")


def _at_rest(snapshot: Snapshot, verdict: Verdict) -> Snapshot:
    """Return what is still true of a snapshot whose collector does not collect: nothing comes any more."""
    snapshot = snapshot if verdict.in_order else doubted(snapshot)
    feeds = [replace(feed, connected=False, rows_per_s=0.0, note="") for feed in snapshot.feeds]
    return replace(snapshot, state="stopped", feeds=feeds)


def _trouble_lines(snapshot: Snapshot, verdict: Verdict, pen: _Pen) -> "list[Text]":
    """Return what needs attention, then what connected feeds have to say, feeds that say the same together."""
    saying: dict[str, list[FeedStatus]] = {}
    for feed in snapshot.feeds:
        if feed.note and feed.connected:
            saying.setdefault(feed.note, []).append(feed)
    told = [(f"{pen.glyphs.trouble} ", trouble, "yellow") for trouble in (*verdict.troubles, *verdict.unclear)]
    told += [
        ("  ", f"{note}: {_named([replace(feed, note='') for feed in feeds])}", "dim") for note, feeds in saying.items()
    ]
    return [line for first, text, style in told for line in pen.wrapped(text, first, style)]


# --- The live view -------------------------------------------------------------------------------------------------


async def live(
    get_snapshot: Callable[[], Snapshot],
    console: "Console",
    interval_s: float = 0.5,
    now_ns: Callable[[], int] = time.time_ns,
) -> None:
    """Show the table on `console`, a terminal, until cancelled; the last table stays on the screen.

    `get_snapshot` is called in the event loop. Drawing is done by a thread, because a terminal may stop taking output
    (Ctrl-S, a lost line) and nothing in the loop may wait for it; pictures it has no time for are left out.
    """
    pending: SimpleQueue[Snapshot | None] = SimpleQueue()
    drawer = Thread(target=_draw, args=(pending, console, now_ns), name="live view", daemon=True)
    drawer.start()
    try:
        while True:
            if pending.empty():
                pending.put(get_snapshot())
            await asyncio.sleep(interval_s)
    finally:
        with suppress(Empty):
            pending.get_nowait()
        pending.put(get_snapshot())
        pending.put(None)
        drawer.join(DRAWN_WITHIN_S)


def _draw(pending: "SimpleQueue[Snapshot | None]", console: "Console", now_ns: Callable[[], int]) -> None:
    """Draw each snapshot that comes, until None."""
    from rich.live import Live  # noqa: PLC0415 - see the module's docstring

    with suppress(OSError), Live(console=console, auto_refresh=False) as display:  # the terminal is gone: nobody looks
        for snapshot in iter(pending.get, None):
            now = now_ns()
            shown = table([snapshot], now, [judge(snapshot, now, pid_alive=True)], console.size.height - 1)
            display.update(shown, refresh=True)
