"""This machine: configuration, disk, limits, collectors at work, ports, and what starts by itself.

What is tried leaves nothing behind: the data directory is not made, a file system is tried in a directory that is gone
afterwards, and a port is held for a moment.
"""

import asyncio
import contextlib
import errno
import fcntl
import math
import os
import pwd
import resource
import shlex
import shutil
import socket
import stat
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tickcollect import status
from tickcollect.check.findings import FAIL, NOTE, OK, WARN, Asked, Finding, Findings, feeds, named
from tickcollect.config import DEFAULT_PATH, Config, warnings
from tickcollect.events import MS_PER_DAY
from tickcollect.files import sync_directory

DAYS_ALONE = 31
DAYS_OF_RATE = 7
"""How much a day takes is the average of so many."""
FULL_SOON_DAYS = 1.0
DESCRIPTORS_BESIDE_FILES = 100
"""Sockets, logs and what libraries open, beside a lock and a file for each feed."""
CRONTAB_WITHIN_S = 10.0
UNIT_DIRECTORIES = (Path("/etc/systemd/system"), Path("/lib/systemd/system"), Path("~/.config/systemd/user"))


def look_at_config(asked: Asked) -> Iterator[Finding]:
    """Tell what is configured, and who else can read or change it."""
    path = asked.config_path or DEFAULT_PATH
    subject = str(path) if path.exists() else "environment"
    counts = Counter(f"{entry.exchange}/{entry.stream}" for entry in asked.config.collect for _ in entry.symbols)
    parts = " and ".join(f"{count:,} of {market}" for market, count in counts.items())
    yield Finding("config", subject, OK, f"valid; feeds to collect: {parts}")
    told = warnings(asked.config_path, asked.environ)
    for warning in told:
        found, _, command = warning.partition(". Run: ")
        yield Finding("config", "", WARN, found, command and f"Run: {command}")
    if path.exists():
        yield from _who_may_change(path, path.stat(), secret=any("chmod" in warning for warning in told))


def _who_may_change(path: Path, found: os.stat_result, *, secret: bool) -> Iterator[Finding]:
    """Tell who else decides what is collected; `secret`: that the mode must change has been told."""
    name = shlex.quote(str(path))
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not secret:
        others = f"other users of this machine may change it (mode {stat.S_IMODE(found.st_mode):04o})"
        yield Finding("config", str(path), WARN, others, f"Run: chmod go-w {name}")
    if found.st_uid not in {0, os.geteuid()}:
        owner, own = _user(found.st_uid), _user(os.geteuid())
        yield Finding(
            "config", str(path), WARN, f"it belongs to {owner}, who may change it", f"Run: chown {own} {name}"
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def look_at_data_dir(asked: Asked) -> Iterator[Finding]:
    """Do there what the collector does with files, in a directory that is gone afterwards."""
    data_dir = asked.config.data_dir.absolute()
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
    files = len(feeds(config)) * DAYS_ALONE
    if room.f_files and room.f_favail < files:
        found = f"only {room.f_favail:,} more files can be made; {DAYS_ALONE} days take at least {files:,}"
        yield Finding("disk", "inodes", WARN, found, "Delete small files there, or use another file system")


def _bytes_per_day(config: Config, today: int) -> float:
    """Return the size of what was sealed of one day, on average over the last days that are here; 0 without any."""
    sizes: Counter[int] = Counter()
    for path in feeds(config):
        try:
            with os.scandir(path.directory(config.data_dir)) as entries:
                for entry in entries:
                    name = path.parse(entry.name)
                    if name is not None and name.sealed and today - DAYS_OF_RATE <= name.day < today:
                        sizes[name.day] += entry.stat().st_size
        except OSError:  # not made yet, or uploaded and deleted meanwhile
            continue
    return sizes.total() / len(sizes) if sizes else 0.0


def look_at_limits(asked: Asked) -> Iterator[Finding]:
    """Compare the limit of open files with the feeds: each has a lock and a file."""
    count = len(feeds(asked.config))
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS_BESIDE_FILES + 2 * count
    allowed = math.inf if limit == resource.RLIM_INFINITY else limit
    found = f"{limit:,} allowed, {needed:,} needed" if allowed < math.inf else f"no limit, {needed:,} needed"
    remedy = f"Raise the limit: ulimit -n {needed * 2}, or LimitNOFILE={needed * 2} in the systemd unit"
    if allowed < DESCRIPTORS_BESIDE_FILES + count:
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
        yield Finding("collector", "", NOTE, "none has run in this data directory yet", "Start one: tickcollect run")
        return
    except status.StatusError as error:
        yield Finding("collector", "", WARN, str(error))
        return
    collected = set()
    for snapshot in snapshots:
        verdict = status.judge(snapshot, now_ns, status.alive(snapshot))
        if verdict.health >= status.Health.NOT_COLLECTING:
            found, _, remedy = verdict.summary.rstrip(".").partition(". ")
            level = NOTE if verdict.in_order else WARN
            yield Finding("collector", "", level, f"the last one {found}", remedy or "Start one: tickcollect run")
            continue
        collected |= {(feed.exchange, feed.stream, feed.symbol) for feed in snapshot.feeds}
        yield Finding("collector", f"pid {snapshot.pid}", OK, verdict.summary)
        for trouble in verdict.troubles:
            yield Finding("collector", f"pid {snapshot.pid}", WARN, trouble, "See: tickcollect status")
    missing = [path for path in feeds(config) if (path.exchange, path.stream, path.symbol) not in collected]
    if collected and missing:
        names = named([f"{path.symbol} {path.exchange}/{path.stream}" for path in missing])
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


def _unit_directories() -> list[Path]:
    """Return where units of systemd lie, as far as this user may look there."""
    places = []
    for directory in UNIT_DIRECTORIES:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody knows this user's home
            place = directory.expanduser()
            next(place.iterdir(), None)
            places.append(place)
    return places


def _scheduled(job: _Job, config: Path, crontab: Sequence[str]) -> Finding:
    finding = partial(Finding, "schedule", job.name)
    if any([*place.glob(f"*.wants/{job.unit}")] for place in _unit_directories()):
        return finding(OK, f"{job.unit} is enabled")
    if any((place / job.unit).exists() for place in _unit_directories()):
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
        async with asyncio.timeout(CRONTAB_WITHIN_S):
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
