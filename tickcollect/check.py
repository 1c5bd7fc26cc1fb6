"""What has to be well before a collector is left alone for a month: all of it looked at, with what to do.

    Config ──▶ CHECKS, all at once, each with a bound ──▶ findings ──▶ table or JSON ──▶ exit code

Rules:

1. A check does what the collector will do, with the collector's own parts (`feed.keep`, `Rest`, the store, the
   channels), and leaves nothing behind: no file, no directory, no object. Channels get one message, unless told not to.
2. A finding says what was found and, where that is not well, what to do. `fail`: something will not work. `warn`: it
   works, but not for a month. `note`: worth knowing.
3. Every check ends. What gives no answer within its bound is a finding like any other, and what may block for good (a
   dead network disk) runs in a daemon thread, for which the end does not wait.
4. An acknowledged subscription proves nothing (Binance's routes, 2026-03-05). A stream is well when a message of it has
   come, or when the exchange shows over REST that its market has not traded meanwhile.
5. Findings name files, hosts and symbols, never a secret.
"""

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import pwd
import random
import resource
import shutil
import socket
import stat
import tempfile
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, TypeVar

import orjson

from tickcollect import status
from tickcollect.config import DEFAULT_PATH, Config, warnings
from tickcollect.events import MS_PER_DAY, time_ms
from tickcollect.exchanges.binance import (
    Decoder,
    ExchangeInfo,
    Refused,
    UnknownEvent,
    exchange_info,
    history_rows,
    history_type,
    links,
    server_time_ms,
    stream_name,
)
from tickcollect.feed import (
    Batch,
    Connected,
    Disconnected,
    Inbox,
    Item,
    LinkState,
    Odd,
    SubscriptionRefused,
    Surroundings,
    keep,
)
from tickcollect.files import FeedPath, sync_directory
from tickcollect.rest import RestError
from tickcollect.store import NotConfiguredError, StoreError, open_store
from tickcollect.venues import USER_AGENT, UnknownSymbolError, Venue, check_symbols, venues

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Result = TypeVar("Result")

LOCAL_WITHIN_S = 15.0
"""For whatever asks this machine only."""
ANSWER_WITHIN_S = 10.0
"""For one answer of an exchange over REST."""
PROOF_WITHIN_S = 15.0
"""For all questions together whether the markets of silent streams have traded."""
LATE_WITHIN_S = 5.0
"""A trade that the exchange shows over REST has come by websocket after this time."""
SUBSCRIBING_MS = 2000
"""A trade this soon after a subscription may have been before it."""
ATTEMPTS = 3
"""A connection that failed this often is not tried any more."""
CLOCK_QUESTIONS = 3
CLOCK_WARN_MS = 250
CLOCK_FAIL_MS = 2000
DAYS_ALONE = 31
DAYS_OF_RATE = 7
FULL_SOON_DAYS = 1.0
DESCRIPTORS_BESIDE_FILES = 100
"""Sockets, logs and what libraries open, beside a lock and a file for each feed."""
NAMES_SHOWN = 5
LINES_SHOWN = 10
NTP = "Run an NTP client: apt install chrony, or timedatectl set-ntp true"
UNIT_DIRECTORIES = (Path("/etc/systemd/system"), Path("/lib/systemd/system"), Path("~/.config/systemd/user"))


class Level(StrEnum):
    """How well something is (rule 2), from the best."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


OK, NOTE, WARN, FAIL = Level


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has shown."""

    area: str
    """Which check: a key of `CHECKS`."""
    subject: str
    """What exactly was looked at: a file, an exchange, a channel; empty where the area says it."""
    level: Level
    found: str
    remedy: str = ""
    """What to do, where something is to be done."""


Findings = Sequence[Finding]


@dataclass(frozen=True)
class Asked:
    """What is to be checked, and with what."""

    config: Config
    config_path: Path | None
    """The file as it was named; None for the usual one, if it is there."""
    environ: Mapping[str, str]
    send: bool = True
    """Whether each channel may be sent a message."""
    wait_s: float = 30.0
    """How long a stream may be silent before its market is asked about."""
    time_ns: Callable[[], int] = time.time_ns
    uniform: Callable[[float, float], float] = random.SystemRandom().uniform


# --- This machine --------------------------------------------------------------------------------------------------


def look_at_config(asked: Asked) -> Iterator[Finding]:
    """Tell what is configured, and who else can read or change it."""
    path = asked.config_path or DEFAULT_PATH
    subject = str(path) if path.exists() else "environment"
    counts = Counter(f"{entry.exchange}/{entry.stream}" for entry in asked.config.collect for _ in entry.symbols)
    parts = ", ".join(f"{count:,} of {market}" for market, count in counts.items())
    yield Finding("config", subject, OK, f"{_plural(counts.total(), 'feed')}: {parts}")
    for warning in warnings(asked.config_path, asked.environ):
        found, _, command = warning.partition(". Run: ")
        yield Finding("config", "", WARN, found, command and f"Run: {command}")
    if path.exists():
        yield from _who_may_change(path, path.stat())


def _who_may_change(path: Path, found: os.stat_result) -> Iterator[Finding]:
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
        yield Finding(
            "config", str(path), WARN, f"other users of this machine may change it ({mode})", "Run: chmod go-w on it"
        )
    if found.st_uid not in {0, os.geteuid()}:
        yield Finding(
            "config", str(path), WARN, f"it belongs to {_user(found.st_uid)}, who may change it", "Run: chown on it"
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def look_at_data_dir(asked: Asked) -> Iterator[Finding]:
    """Do there what the collector does with files, in a directory that is gone afterwards."""
    data_dir = asked.config.data_dir
    base = _nearest_existing(data_dir)
    action = "make a directory"
    try:
        with tempfile.TemporaryDirectory(prefix=".check-", dir=base) as name:
            for action, step in FILE_STEPS.items():  # noqa: B007 - which step failed is told below
                step(Path(name))
    except OSError as error:
        remedy = next((text for numbers, text in FILE_REMEDIES.items() if error.errno in numbers), OTHER_FILE_REMEDY)
        yield Finding("data", str(data_dir), FAIL, f"cannot {action} there: {error.strerror}", remedy)
        return
    found = "writable; files can be synced, renamed and locked"
    yield Finding("data", str(data_dir), OK, found if base == data_dir else f"will be made; {found} in {base}")


def _write(directory: Path) -> None:
    (directory / "a").write_bytes(bytes(4096))


def _sync(directory: Path) -> None:
    with (directory / "a").open("rb+") as file:
        os.fsync(file.fileno())


def _rename(directory: Path) -> None:
    (directory / "a").rename(directory / "b")
    sync_directory(directory)


def _lock(directory: Path) -> None:
    """Lock a file twice: the second time has to be refused."""
    with (directory / "b").open("rb+") as first, (directory / "b").open("rb+") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise OSError(errno.ENOLCK, "two programs can lock the same file")


FILE_STEPS: dict[str, Callable[[Path], None]] = {
    "write a file": _write,
    "force a file to the disk": _sync,
    "rename a file": _rename,
    "lock a file": _lock,
}

FILE_REMEDIES: dict[tuple[int, ...], str] = {
    (errno.EACCES, errno.EPERM): "Make it writable for this user (chown, chmod), or name another one in DATA_DIR",
    (errno.EROFS,): "It is mounted read-only: see dmesg, mount it for writing, or name another one in DATA_DIR",
    (errno.ENOSPC, errno.EDQUOT): "Free space there, or name another one in DATA_DIR",
    (errno.ENOTDIR, errno.EEXIST): "Name a directory in DATA_DIR",
    (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL): (
        "Name a directory on a local file system in DATA_DIR: this one cannot keep files safe"
    ),
}
OTHER_FILE_REMEDY = "See dmesg: the disk or its connection has trouble"


def _nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest directory above it that is there."""
    for candidate in (path, *path.absolute().parents):
        try:
            candidate.stat()
        except OSError:
            continue
        return candidate
    return Path("/")


def look_at_disk(asked: Asked) -> Iterator[Finding]:
    """Compare what is free with what is collected in a day."""
    config = asked.config
    room = os.statvfs(_nearest_existing(config.data_dir))
    free = room.f_bavail * room.f_frsize
    per_day = _bytes_per_day(config, asked.time_ns() // (MS_PER_DAY * 1_000_000))
    days = free / per_day if per_day else math.inf
    found = f"{status.size(free)} free"
    if per_day:
        found += f", enough for {status.span(days * 86_400)} at {status.size(per_day)} a day, if nothing is deleted"
    else:
        found += "; how much a day takes is known when a day is over"
    remedy = "Let the nightly upload delete what has arrived (--delete-after 7), or give it more space"
    if free < config.min_free_disk:
        yield Finding("disk", "", FAIL, f"{found}; MIN_FREE_DISK is {status.size(config.min_free_disk)}", remedy)
    elif days < DAYS_ALONE:
        yield Finding("disk", "", FAIL if days < FULL_SOON_DAYS else WARN, found, remedy)
    else:
        yield Finding("disk", "", OK, found)
    files = len(_feeds(config)) * DAYS_ALONE
    if room.f_files and room.f_favail < files:
        found = f"only {room.f_favail:,} more files can be made; {DAYS_ALONE} days take at least {files:,}"
        yield Finding("disk", "inodes", WARN, found, "Delete small files there, or use another file system")


def _bytes_per_day(config: Config, today: int) -> float:
    """Return the size of what was sealed of one day, on average over the last days that are here; 0 without any."""
    sizes: Counter[int] = Counter()
    for path in _feeds(config):
        try:
            with os.scandir(path.directory(config.data_dir)) as entries:
                for entry in entries:
                    name = path.parse(entry.name)
                    if name is not None and name.sealed and today - DAYS_OF_RATE <= name.day < today:
                        sizes[name.day] += entry.stat().st_size
        except OSError:  # not made yet, or uploaded and deleted meanwhile
            continue
    return sizes.total() / len(sizes) if sizes else 0.0


def _feeds(config: Config) -> list[FeedPath]:
    return [FeedPath(entry.exchange, entry.stream, symbol) for entry in config.collect for symbol in entry.symbols]


def look_at_limits(asked: Asked) -> Iterator[Finding]:
    """Compare the limit of open files with the feeds: each has a lock and a file."""
    feeds = len(_feeds(asked.config))
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS_BESIDE_FILES + 2 * feeds
    allowed = math.inf if limit == resource.RLIM_INFINITY else limit
    found = f"{limit:,} allowed, {needed:,} needed" if allowed < math.inf else f"no limit, {needed:,} needed"
    remedy = f"Raise the limit: ulimit -n {needed * 2}, or LimitNOFILE={needed * 2} in the systemd unit"
    if allowed < DESCRIPTORS_BESIDE_FILES + feeds:
        yield Finding("limits", "open files", FAIL, f"{found}: not even for the locks", remedy)
    elif allowed < needed:
        yield Finding("limits", "open files", WARN, f"{found}: files are closed and opened again all the time", remedy)
    else:
        yield Finding("limits", "open files", OK, found)


def look_at_collectors(asked: Asked) -> Iterator[Finding]:
    """Tell of the collectors in the data directory, and whether they collect what is configured."""
    config, now_ns = asked.config, asked.time_ns()
    try:
        snapshots = status.read(config.data_dir)
    except status.NoStatusError:
        yield Finding("collector", "", NOTE, f"none has run in {config.data_dir} yet", "Start one: tickcollect run")
        return
    except status.StatusError as error:
        yield Finding("collector", "", WARN, str(error))
        return
    collected = set()
    for snapshot in snapshots:
        verdict = status.judge(snapshot, now_ns, status.alive(snapshot))
        if verdict.health >= status.Health.NOT_COLLECTING:
            level = NOTE if verdict.in_order else WARN
            yield Finding("collector", "", level, f"the last one {verdict.summary}", "Start one: tickcollect run")
            continue
        collected |= {(feed.exchange, feed.stream, feed.symbol) for feed in snapshot.feeds}
        yield Finding("collector", f"pid {snapshot.pid}", OK, verdict.summary)
        for trouble in verdict.troubles:
            yield Finding("collector", f"pid {snapshot.pid}", WARN, trouble, "See: tickcollect status")
    missing = [path for path in _feeds(config) if (path.exchange, path.stream, path.symbol) not in collected]
    if collected and missing:
        names = _named([f"{path.symbol} {path.exchange}/{path.stream}" for path in missing])
        found = f"what runs does not collect {names}: it was started with another configuration"
        yield Finding("collector", "", WARN, found, "Stop it and start it again; what it misses meanwhile is fetched")


def _is_running(config: Config, now_ns: int) -> bool:
    try:
        snapshots = status.read(config.data_dir)
    except status.StatusError:
        return False
    verdicts = (status.judge(snapshot, now_ns, status.alive(snapshot)) for snapshot in snapshots)
    return any(verdict.health < status.Health.NOT_COLLECTING for verdict in verdicts)


def look_at_metrics(asked: Asked) -> Iterator[Finding]:
    """Listen for a moment where the metrics are to be had."""
    address, port = asked.config.metrics_address, asked.config.metrics_port
    if port is None:
        return
    subject = f"{address}:{port}"
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _is_running(asked.config, asked.time_ns()):
            yield Finding("metrics", subject, OK, "in use, as it should be while a collector runs")
            return
        remedy = METRICS_REMEDIES.get(error.errno or 0, "Correct METRICS_ADDRESS: an address of this machine")
        yield Finding("metrics", subject, FAIL, f"cannot listen there: {error.strerror}", remedy)
        return
    yield Finding("metrics", subject, OK, "free")
    if place[0] not in {"127.0.0.1", "::1"}:
        found = "whoever can reach this address can read the metrics"
        yield Finding("metrics", subject, NOTE, found, "Let a firewall decide who can, or use 127.0.0.1")


METRICS_REMEDIES = {
    errno.EADDRINUSE: "Choose another METRICS_PORT, or end the program that has it (ss -ltnp)",
    errno.EACCES: "Choose a METRICS_PORT of 1024 or above",
}


def look_at_log(asked: Asked) -> Iterator[Finding]:
    """Open the log file for writing, or see that it can be made; nothing is written."""
    path = asked.config.log_file
    if path is None:
        return
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=_nearest_existing(path.parent)).close()
    except OSError as error:
        found = f"cannot be written: {error.strerror}"
        yield Finding("log", str(path), FAIL, found, "Name a file in LOG_FILE that this user may write")
    else:
        yield Finding("log", str(path), OK, "writable")


# --- Where files go, and what starts by itself ---------------------------------------------------------------------


def look_at_store(asked: Asked) -> Iterator[Finding]:
    """Ask the store harmlessly whether it can be used, and whether arrival can be proved by looking."""
    name = ""
    try:
        with contextlib.closing(open_store(asked.config)) as store:
            name = store.name
            probe = store.probe()
    except NotConfiguredError:
        remedy = "Set S3_BUCKET, or UPLOAD_TO to a folder of another disk, to have them delivered"
        yield Finding("store", "", NOTE, "none is configured: sealed files stay on this machine", remedy)
    except StoreError as error:
        found, _, remedy = str(error).removeprefix(f"{name}: ").rstrip(".").partition(". ")
        yield Finding("store", name, FAIL, found, remedy or "Check the network and the store, then check again")
    else:
        remedy = (
            "" if probe.may_look else "Allow the key s3:GetObject to have arrival proved by looking (docs/upload.md)"
        )
        yield Finding("store", name, OK if probe.may_look else NOTE, probe.text, remedy)


async def look_at_schedule(asked: Asked) -> Findings:
    """Tell what runs by itself: the nightly upload, and the collector after the machine was started again."""
    crontab = await _crontab()
    config = (asked.config_path or DEFAULT_PATH).resolve()
    return [_scheduled(job, config, crontab) for job in JOBS]


@dataclass(frozen=True, slots=True)
class _Job:
    """Something that has to start by itself."""

    name: str
    """In the mark of its line in the crontab."""
    unit: str
    """Its systemd unit."""
    absent: str
    """What is so without both."""
    remedy: str


JOBS = (
    _Job(
        "nightly",
        "tickcollect-upload.timer",
        "nothing uploads and reports by itself",
        "Run ./add_cron.sh, or enable deploy/tickcollect-upload.timer",
    ),
    _Job(
        "reboot",
        "tickcollect.service",
        "nothing starts the collector after a reboot",
        "Run ./add_cron.sh --reboot, or enable deploy/tickcollect.service",
    ),
)


def _scheduled(job: _Job, config: Path, crontab: Sequence[str]) -> Finding:
    finding = partial(Finding, "schedule", job.name)
    places = [directory.expanduser() for directory in UNIT_DIRECTORIES]
    if any([*place.glob(f"*.wants/{job.unit}")] for place in places):
        return finding(OK, f"{job.unit} is enabled")
    if any((place / job.unit).exists() for place in places):
        return finding(WARN, f"{job.unit} is there, but not enabled", f"Run: systemctl enable --now {job.unit}")
    marks = [line.partition(f"# tickcollect:{job.name} ")[2].replace("\\%", "%") for line in crontab]
    belonging = [
        mark
        for mark in filter(None, marks)
        if config in {Path(mark).resolve(), Path(mark.rpartition(" /")[0]).resolve()}
    ]
    if belonging and not _cron_runs():
        return finding(WARN, "it is in the crontab, but no cron is running", "Run: systemctl enable --now cron")
    if belonging:
        return finding(OK, "it is in the crontab")
    elsewhere = "; the crontab has it for another configuration" if any(marks) else ""
    return finding(NOTE, job.absent + elsewhere, job.remedy)


async def _crontab() -> list[str]:
    """Return the lines of this user's crontab; none where there is no cron, or it does not answer."""
    program = shutil.which("crontab")
    if program is None:
        return []
    process = await asyncio.create_subprocess_exec(program, "-l", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(LOCAL_WITHIN_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said.decode(errors="replace").splitlines()


def _cron_runs() -> bool:
    """Tell whether a cron is among the processes; yes where that cannot be seen."""
    names = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            names.add(path.read_text(encoding="utf-8", errors="replace").strip())
    return not names or not names.isdisjoint({"cron", "crond", "fcron"})


# --- The exchanges -------------------------------------------------------------------------------------------------


async def look_at_exchanges(asked: Asked) -> Findings:
    """Look at each exchange and address: its list, its clock, its streams, its history."""
    return list(chain.from_iterable(await asyncio.gather(*(_visit(asked, venue) for venue in venues(asked.config)))))


async def _visit(asked: Asked, venue: Venue) -> Findings:
    """Look at one exchange; what one question shows is needed for the next."""
    try:
        info, findings = await _listed(venue)
        ahead_ms, clock = await _clock(venue, asked.time_ns)
        feeds = [feed for feed in venue.feeds if info is None or feed[1] in info.statuses]
        streams, key = await asyncio.gather(_streams(asked, venue, feeds, ahead_ms), _history(asked.config, venue))
        return [*findings, *clock, *streams, *key]
    finally:
        await venue.rest.close()


async def _ask(
    venue: Venue,
    path: str,
    params: Mapping[str, str | int] | None = None,
    *,
    weight: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return an answer, asked for twice where that can help. Raises `RestError`."""
    try:
        async with asyncio.timeout(3 * ANSWER_WITHIN_S):
            return await venue.rest.get(
                venue.market.rest_prefix + path,
                params,
                weight=weight,
                headers=headers,
                timeout_s=ANSWER_WITHIN_S,
                retry_delays_s=(1.0,),
            )
    except TimeoutError:
        raise RestError(f"{venue.market.name}{path}: no request is allowed at present") from None


def _refused(area: str, subject: str, level: Level, error: RestError, remedy: str = "") -> Finding:
    """Return the finding that a failed question is; the error brings its own remedy."""
    return Finding(area, subject, level, str(error).removesuffix(error.advice).rstrip(". "), remedy or error.advice)


async def _listed(venue: Venue) -> tuple[ExchangeInfo | None, Findings]:
    """Ask for the list of symbols and compare it with what is to be collected; None where there is no answer."""
    market = venue.market
    try:
        body = await _ask(venue, "/exchangeInfo", weight=market.exchange_info_weight)
        info = await asyncio.to_thread(exchange_info, market, body)
    except RestError as error:
        return None, [_refused("exchange", market.name, FAIL, error)]
    except ValueError as error:
        found = f"its list of symbols cannot be read: {error}"
        return None, [Finding("exchange", market.name, FAIL, found, "Check rest_url; if it is right, try again later")]
    venue.budget.limit = info.weight_per_minute
    found = f"answers; lists {_plural(len(info.statuses), 'symbol')}, allows {info.weight_per_minute:,} weight a minute"
    findings = [Finding("exchange", market.name, OK, found)]
    if info.weight_per_minute < market.weight_per_minute:
        found = f"allows less than usual ({market.weight_per_minute:,}): filling gaps takes longer"
        findings.append(Finding("exchange", market.name, WARN, found, "See the exchange's announcements"))
    return info, [*findings, *_unlisted(venue, info), *_not_trading(venue, info)]


def _unlisted(venue: Venue, info: ExchangeInfo) -> Iterator[Finding]:
    try:
        check_symbols(venue, info)
    except UnknownSymbolError as error:
        lines = str(error).splitlines()
        for line in lines[:LINES_SHOWN]:
            subject, _, found = line.partition(": ")
            yield Finding("exchange", subject, FAIL, found, "Correct it in COLLECT, or take it out")
        if len(lines) > LINES_SHOWN:
            found = f"{len(lines) - LINES_SHOWN:,} more are no symbols of this exchange"
            yield Finding("exchange", venue.market.name, FAIL, found, "Correct `exchange` in that entry of COLLECT")


def _not_trading(venue: Venue, info: ExchangeInfo) -> Iterator[Finding]:
    resting: dict[str, list[str]] = {}
    for _, symbol in venue.feeds:
        state = info.statuses.get(symbol, "TRADING")
        if state != "TRADING":
            resting.setdefault(state, []).append(symbol)
    for state, symbols in resting.items():
        found = f"the exchange says {state} of {_named(symbols)}, so nothing may come"
        yield Finding("exchange", venue.market.name, WARN, found, "Take it out of COLLECT if it does not trade again")


async def _clock(venue: Venue, time_ns: Callable[[], int]) -> tuple[float | None, Findings]:
    """Measure how many ms the exchange's clock is ahead of this machine's; the quickest answer tells it best."""
    name = venue.market.name
    trips: list[tuple[float, float]] = []
    try:
        for _ in range(CLOCK_QUESTIONS):
            sent_ns = time_ns()
            body = await _ask(venue, "/time", weight=1)
            come_ns = time_ns()
            trips.append(((come_ns - sent_ns) / 1e6, server_time_ms(body) - (sent_ns + come_ns) / 2e6))
    except RestError as error:
        return None, [_refused("clock", name, WARN, error)]
    except ValueError as error:
        return None, [Finding("clock", name, WARN, f"its clock cannot be read: {error}", "Check rest_url")]
    trip_ms, ahead_ms = min(trips)
    side = "behind" if ahead_ms > 0 else "ahead"
    found = f"this machine's clock is {abs(ahead_ms):,.0f} ms {side}, give or take {trip_ms / 2:.0f} ms"
    wrong_ms = abs(ahead_ms) - trip_ms / 2
    level = FAIL if wrong_ms > CLOCK_FAIL_MS else WARN if wrong_ms > CLOCK_WARN_MS else OK
    return ahead_ms, [Finding("clock", name, level, found, "" if level is OK else NTP)]


async def _history(config: Config, venue: Venue) -> Findings:
    """Ask the history that needs an API key for one row."""
    market = venue.market
    feeds = {stream: symbol for stream, symbol in venue.feeds if market.history[stream].key_header}
    if not feeds or not config.backfill:
        return []
    (stream, symbol), key = next(iter(feeds.items())), config.binance_api_key.get_secret_value()
    subject, source = f"{market.name} {stream}", market.history[stream]
    if not key:
        found = "gaps of this stream can be filled only with an API key"
        return [Finding("history", subject, WARN, found, "Set BINANCE_API_KEY: a key without any permission is enough")]
    params: dict[str, str | int] = {"symbol": symbol, "limit": 1}
    try:
        await _ask(venue, source.path, params, weight=source.weight, headers={source.key_header: key})
    except RestError as error:
        remedy = "Correct BINANCE_API_KEY: a key without any permission is enough" if error.code in KEY_REFUSED else ""
        return [_refused("history", subject, FAIL, error, remedy)]
    except ValueError as error:
        return [Finding("history", subject, WARN, str(error), "Raise REST_SHARE: gaps of this stream cannot be filled")]
    return [Finding("history", subject, OK, "BINANCE_API_KEY is accepted")]


KEY_REFUSED = (-2014, -2015)
"""Error codes: the key has a wrong form; key, address or permission are refused (Binance errors.md)."""


# --- The streams ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Newest:
    """When a market last traded, ms since 1970 by its own clock; None where it never did, or where it is `unknown`."""

    at_ms: float | None = None
    unknown: str = ""


@dataclass(eq=False)
class _Listening:
    """One connection under test: what was asked for and what has come."""

    state: LinkState
    decoder: Decoder
    subject: str
    """The exchange, and which of its connections where there are several."""
    silent: set[str]
    """Streams of which nothing has come yet, by the exchange's names."""
    slowest_s: float = 0.0
    """From the subscription to the last first message."""
    is_open: bool = False
    ends: int = 0
    """How often it ended, or could not be made."""
    end: Disconnected | None = None
    """The last of these."""
    refused: dict[str, str] = field(default_factory=dict)
    """Streams that the exchange refuses, with its words."""
    odd: int = 0
    """Messages that cannot be read."""
    odd_reason: str = ""

    @property
    def settled(self) -> bool:
        """Whether waiting longer would show nothing new."""
        hopeless = self.end is not None and (self.end.urgent or self.ends >= ATTEMPTS)
        return hopeless or not self.silent - self.refused.keys()

    def take(self, item: Item, now_s: float) -> None:
        """Note what has come."""
        match item:
            case Batch() if self.silent:
                names = {stream_name(row.s, row.STREAM) for rows in item.messages() for row in rows}
                if names & self.silent:
                    self.slowest_s = now_s - self.state.connected_at_s
                self.silent -= names
            case Connected():
                self.is_open = True
            case Disconnected():
                self.is_open, self.end = False, item
                self.ends += 1
            case SubscriptionRefused():
                reason = f"{item.error.message} (code {item.error.code})"
                self.refused |= dict.fromkeys(item.streams or self.silent, reason)
            case Odd(notice=Refused(reason) | UnknownEvent(reason)):
                self.odd += 1
                self.odd_reason = reason


@dataclass(frozen=True)
class _Heard:
    """What came on an exchange's connections, judged at one moment."""

    feeds: Mapping[str, tuple[str, str]]
    """Stream and symbol, by the exchange's name for both."""
    newest: Mapping[str, _Newest]
    """Of the silent streams."""
    now_ms: float
    """By the exchange's clock."""
    now_s: float
    """By the event loop's clock."""

    def named(self, names: Iterable[str], tail: Callable[[str], str] = lambda _: "") -> str:
        """Name streams for a person; `tail` says something about each."""
        return _named([f"{self.feeds[name][1]} {self.feeds[name][0]}{tail(name)}" for name in sorted(names)])

    def ago(self, name: str) -> str:
        """Say when a market last traded."""
        at_ms = self.newest[name].at_ms
        if at_ms is None:
            return " (never traded)"
        return f" (last trade {status.span(max(0.0, self.now_ms - at_ms) / 1000)} ago)"

    def of(self, one: _Listening) -> Iterator[Finding]:
        """Tell of one connection: what came, what was refused, and whether it stayed."""
        finding = partial(Finding, "streams", one.subject)
        if came := set(one.state.link.streams) - one.silent:
            what = "a live message" if len(came) == 1 else f"a live message of each of the {len(came):,}"
            yield finding(OK, f"{self.named(came)}: {what} within {status.span(max(0.1, one.slowest_s))}")
        for reason in sorted(set(one.refused.values())):
            names = [name for name, said in one.refused.items() if said == reason]
            yield finding(FAIL, f"{self.named(names)}: refused by the exchange: {reason}", "Correct it in COLLECT")
        silent = one.silent - one.refused.keys()
        if silent and not one.is_open:
            reason = one.end.reason if one.end else "the connection is not made in time"
            remedy = (one.end.remedy if one.end else "") or "check ws_url in COLLECT, and the network"
            yield finding(FAIL, f"{self.named(silent)}: {reason}", remedy[0].upper() + remedy[1:])
        elif silent:
            yield from self._silent(one, silent)
        if one.is_open and one.end:
            found = f"the connection had to be made again, because {one.end.reason}"
            yield finding(WARN, found, "Check again; if it stays so, check the network and other programs that use it")
        if one.odd:
            found = f"{_plural(one.odd, 'message')} cannot be read: {one.odd_reason}"
            yield finding(WARN, found, "Look for a newer version; until then such messages are kept in quarantine")

    def of_silence(self, one: _Listening, name: str) -> Level:
        """Tell what a silent stream of an open connection means (rule 4): FAIL its own, OK its market's, WARN either."""
        newest = self.newest.get(name, _Newest(unknown=NOT_ASKED))
        subscribed_ms = self.now_ms - (self.now_s - one.state.connected_at_s) * 1000
        if newest.unknown:
            return WARN
        if newest.at_ms is None or newest.at_ms < subscribed_ms:
            return OK
        return FAIL if newest.at_ms > subscribed_ms + SUBSCRIBING_MS else WARN

    def _silent(self, one: _Listening, silent: set[str]) -> Iterator[Finding]:
        finding = partial(Finding, "streams", one.subject)
        meaning = {name: self.of_silence(one, name) for name in silent}
        if missed := [name for name in silent if meaning[name] is FAIL]:
            found = f"{self.named(missed, self.ago)}: subscribed, but silent although the market trades"
            yield finding(FAIL, found, "Check ws_url in COLLECT; if it is right, look for a newer tickcollect")
        if unclear := sorted(name for name in silent if meaning[name] is WARN):
            reason = self.newest.get(unclear[0], _Newest(unknown=NOT_ASKED)).unknown or "it has hardly traded"
            found = f"{self.named(unclear)}: subscribed, but silent, and whether its market trades is unclear: {reason}"
            yield finding(WARN, found, "Check again with more patience: tickcollect check --wait 300")
        if quiet := [name for name in silent if meaning[name] is OK]:
            yield finding(OK, f"{self.named(quiet, self.ago)}: subscribed, and as silent as the market")


NOT_ASKED = "there was no time to ask"


async def _streams(asked: Asked, venue: Venue, feeds: Sequence[tuple[str, str]], ahead_ms: float | None) -> Findings:
    """Connect as the collector does, and wait until each stream has brought a message or has to be asked about."""
    config = asked.config
    inbox = Inbox(config.queue_rows)
    proxy = config.proxy.get_secret_value() if config.proxy else None
    around = Surroundings(inbox, asked.time_ns, asked.uniform, USER_AGENT, proxy=proxy)
    listening = _plan(config, venue, feeds)
    by_name = {stream_name(symbol, stream): (stream, symbol) for stream, symbol in feeds}
    loop = asyncio.get_running_loop()

    def heard(newest: Mapping[str, _Newest]) -> _Heard:
        return _Heard(by_name, newest, asked.time_ns() / 1e6 + (ahead_ms or 0.0), loop.time())

    connections = [asyncio.create_task(keep(one.state, one.decoder, around)) for one in listening.values()]
    try:
        await _listen(listening, inbox, loop.time() + asked.wait_s)
        silent = {name: by_name[name] for one in listening.values() if one.is_open for name in sorted(one.silent)}
        newest = await _newest_trades(venue, silent, ahead_ms)
        now = heard(newest)
        if any(now.of_silence(one, name) is FAIL for one in listening.values() if one.is_open for name in one.silent):
            await _listen(listening, inbox, loop.time() + LATE_WITHIN_S)
        return [finding for one in listening.values() for finding in heard(newest).of(one)]
    finally:
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _plan(config: Config, venue: Venue, feeds: Sequence[tuple[str, str]]) -> dict[LinkState, _Listening]:
    """Return the connections that the collector would make for `feeds`."""
    market = venue.market
    hosts = [venue.ws_url or url for url in (market.ws_url, market.second_ws_url)[: config.redundancy]]
    planned = [link for host in hosts for link in links(market, feeds, host)]
    listening = {}
    for number, link in enumerate(planned, start=1):
        subject = f"{market.name} connection {number} of {len(planned)}" if len(planned) > 1 else market.name
        state = LinkState(market.name, link)
        streams = sorted({name.rpartition("@")[2] for name in link.streams})
        decoder = Decoder(market, config.extra_columns, streams)
        listening[state] = _Listening(state, decoder, subject, set(link.streams))
    return listening


async def _listen(listening: Mapping[LinkState, _Listening], inbox: Inbox, ends_s: float) -> None:
    """Take what comes until every connection is settled, at most until `ends_s`."""
    loop = asyncio.get_running_loop()
    while loop.time() < ends_s and not all(one.settled for one in listening.values()):
        for item in await inbox.take(ends_s - loop.time()):
            listening[item.link].take(item, loop.time())
        inbox.done()


async def _newest_trades(
    venue: Venue, silent: Mapping[str, tuple[str, str]], ahead_ms: float | None
) -> dict[str, _Newest]:
    """Ask when the markets of silent streams last traded, as far as time and request limit go."""
    market = venue.market
    if ahead_ms is None:
        return dict.fromkeys(silent, _Newest(unknown="the exchange's clock could not be asked"))
    found = dict.fromkeys(silent, _Newest(unknown=NOT_ASKED))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PROOF_WITHIN_S):
            for name, (stream, symbol) in silent.items():
                source, kind = market.latest[stream], history_type(market, stream, symbol)
                params: dict[str, str | int] = {"symbol": symbol, "limit": 1}
                try:
                    rows = history_rows(kind, await _ask(venue, source.path, params, weight=source.weight))
                except (RestError, ValueError) as error:
                    found[name] = _Newest(unknown=str(error))
                else:
                    found[name] = _Newest(max((float(time_ms(row.T)) for row in rows), default=None))
    return found


# --- All of it -----------------------------------------------------------------------------------------------------


Check = Callable[[Asked], Awaitable[Findings]]


def _here(look: Callable[[Asked], Iterable[Finding]]) -> Check:
    """Return what runs `look`, which may block, in a thread that nobody has to wait for (rule 3)."""

    async def check(asked: Asked) -> Findings:
        async with asyncio.timeout(LOCAL_WITHIN_S):
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


def exit_code(findings: Findings) -> int:
    """Return 1 if something will not work, else 0."""
    return int(any(finding.level is FAIL for finding in findings))


def encode(findings: Findings, now_ns: int) -> bytes:
    """Return what `tickcollect check --json` prints."""
    value = {
        "at": datetime.fromtimestamp(now_ns // 10**9, UTC).isoformat().replace("+00:00", "Z"),
        "ready": exit_code(findings) == 0,
        "findings": [asdict(finding) for finding in findings],
    }
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_INDENT_2)


STYLES = {OK: "green", NOTE: "dim", WARN: "yellow", FAIL: "bold red"}


def lines(findings: Findings, console: "Console") -> "Iterator[Text]":
    """Yield what a terminal of any width and encoding shows: level, area, what was found, and what to do."""
    from rich.text import Text  # noqa: PLC0415 - takes longer to load than a check

    wide = max((len(finding.area) for finding in findings), default=0)
    margin = len("FAIL  ") + wide + 2
    for finding in findings:
        found = f"{finding.subject}: {finding.found}" if finding.subject else finding.found
        told = Text(_printable(found, console.encoding))
        if finding.remedy:
            told.append(f"\n-> {_printable(finding.remedy, console.encoding)}", "bold")
        level = finding.level.upper() if finding.level is FAIL else finding.level
        head = Text.assemble((f"{level:<6}", STYLES[finding.level]), f"{finding.area:<{wide + 2}}")
        for line in told.wrap(console, max(20, console.width - margin)):
            line.rstrip()
            yield Text.assemble(head, line)
            head = Text(" " * margin)


def closing(asked: Asked, findings: Findings) -> str:
    """Return the last line: whether it can be left alone."""
    levels = Counter(finding.level for finding in findings)
    if levels[FAIL]:
        others = f", and {_plural(levels[WARN], 'warning')}" if levels[WARN] else ""
        return f"Not ready: {_plural(levels[FAIL], 'thing')} to do before leaving it alone{others}."
    feeds = len(_feeds(asked.config))
    found = f"Ready: {_plural(feeds, 'feed')}"
    return f"{found}, {_plural(levels[WARN], 'warning')}." if levels[WARN] else f"{found}, all is well."


def _printable(text: str, encoding: str) -> str:
    """Replace what is not to be printed: control characters, and what the terminal's encoding does not have."""
    shown = "".join(char if char.isprintable() else "?" for char in text)
    return shown.encode(encoding, "replace").decode(encoding)


def _named(names: Sequence[str]) -> str:
    """Name the first, count the others."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
