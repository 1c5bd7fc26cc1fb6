"""What the store does not have yet: the last upload run, and what was sealed since.

    upload ──UploadRun──▶ data/upload.json ──▶ backlog ◀── names and times of sealed files

Rules:

1. `upload.json` holds the last run to each store, as a JSON array. It is replaced whole, so that a reader sees the one
   before or the new one. Only the uploader writes it, under its own lock.
2. A run knows what it left behind; afterwards only sealing adds files. So what waits is what waited when the last run
   ended and every sealed file that came after it began. No file is opened, and nothing is asked of the store.
3. A file came when it got its name, or when it was last written, whichever is later: `max(mtime, ctime)`. Where its
   owner or mode was changed since, it counts once more. So the backlog is rather too large than too small, until the
   next run counts anew.

Synchronous: for a thread, or for a command.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec.structs import replace

from tickcollect.files import FeedPath, NameRefusedError, private, sync_directory
from tickcollect.status import Snapshot, UploadStatus

FILE_NAME = "upload.json"
STORES_KEPT = 10
"""Runs to other stores than these many newest ones are forgotten."""


class BacklogError(Exception):
    """What waits cannot be known or kept; the message is one line for a person."""


class UploadRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the upload, as it ended. Times are nanoseconds since 1970 by this machine's clock."""

    started_ns: int
    ended_ns: int
    store: str
    """Where to, as it is shown: no secret is in it."""
    sent: int
    """Files sent and proved in this run."""
    sent_bytes: int
    already: int
    """Files that were there before."""
    waiting: int
    """Files that are not there, as far as is known."""
    waiting_bytes: int
    oldest_waiting: str
    """The first of them, relative to the data directory; empty when none waits."""
    failures: list[str]
    """Why not everything is there, one line a reason."""
    complete: bool
    """Everything is there."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Sealed files that are not in the store, as far as is known."""

    files: int
    bytes: int
    oldest_ns: int | None
    """Since when the first of them waits, nanoseconds since 1970; None when none does."""


# --- The last run --------------------------------------------------------------------------------------------------


def write_run(data_dir: Path, run: UploadRun) -> None:
    """Keep a run as the last one to its store. Raises `BacklogError`; the file is then the one before."""
    path = data_dir / FILE_NAME
    temporary = path.with_name(path.name + ".unconfirmed")
    try:
        before = _read_runs(data_dir)
    except BacklogError:
        before = []  # what is damaged cannot be kept; this run is the newest anyway
    runs = [run, *(other for other in before if other.store != run.store)][:STORES_KEPT]
    try:
        with open(temporary, "wb", opener=private) as file:
            file.write(msgspec.json.encode(runs) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(data_dir)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise BacklogError(
            f"cannot write {path}: {error.strerror or error}. What was sent is on record in the journal, but "
            "`tickcollect status` tells of an older upload; set the disk or its rights right."
        ) from error


def destination(upload_to: str, bucket: str, folder: str, endpoint: str | None = None) -> str:
    """Return what the configuration says of where to upload, as a store's name begins; empty where it says nothing.

    The arguments are the keys UPLOAD_TO, S3_BUCKET, S3_BUCKET_PATH and S3_ENDPOINT_URL. A store that is not Amazon's
    goes on with its host (`s3://ticks/all at minio.example`); where no endpoint is configured (a profile may name one),
    only its client knows it.
    """
    if upload_to:
        return f"file://{Path(unquote(upload_to.removeprefix('file://')))}"
    name = f"s3://{'/'.join(filter(None, (bucket, *folder.split('/'))))}" if bucket else ""
    return name + at_host(endpoint) if name and endpoint else name


def at_host(endpoint: str) -> str:
    """Return what tells a store at this address from others of its name; nothing for Amazon's."""
    address = urlsplit(endpoint)
    host = address.hostname or ""
    if re.search(r"(^|\.)amazonaws\.com(\.cn)?$", host):
        return ""
    return f" at {host}" + (f":{address.port}" if address.port else "")


def read_run(data_dir: Path, to: str) -> UploadRun | None:
    """Return the last run to a `destination`; None if there was none. Raises `BacklogError`."""
    found = (run for run in _read_runs(data_dir) if run.store == to or run.store.startswith(f"{to} at "))
    return max(found, key=lambda run: run.started_ns, default=None)


def _read_runs(data_dir: Path) -> list[UploadRun]:
    path = data_dir / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[UploadRun])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(path, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BacklogError(
            f"{path} does not tell of an upload ({error}). The next upload writes it anew; run `tickcollect upload`."
        ) from error


def _unreadable(path: Path, error: OSError) -> BacklogError:
    return BacklogError(
        f"cannot read {error.filename or path}: {error.strerror or error}. What waits for the upload is not known; let "
        "this user read there."
    )


def upload_status(data_dir: Path, to: str) -> UploadStatus:
    """Return what the status tells of the upload to a `destination`; also that it cannot be known."""
    try:
        run = read_run(data_dir, to)
        waits = backlog(data_dir, run)
        failure = "" if run is None else _failure(run)
    except BacklogError as error:
        run, waits, failure = None, Backlog(0, 0, None), str(error)
    return UploadStatus(
        store=to if run is None else run.store,
        last_run_ns=None if run is None else run.ended_ns,
        complete=run is not None and run.complete,
        waiting_files=waits.files,
        waiting_bytes=waits.bytes,
        oldest_ns=waits.oldest_ns,
        failure=failure,
    )


def renewed(data_dir: Path, snapshot: Snapshot) -> Snapshot:
    """Return a snapshot whose upload is told as it is now: for one whose collector does not look any more."""
    if snapshot.upload is None:
        return snapshot
    return replace(snapshot, upload=upload_status(data_dir, snapshot.upload.store))


def _failure(run: UploadRun) -> str:
    """Return the first reason why a run left something behind, and the number of others."""
    if run.complete:
        return ""
    reason, *others = run.failures or ["its reason is not on record"]
    return f"{reason} (and {len(others)} more reasons, see the log)" if others else reason


# --- What waits ----------------------------------------------------------------------------------------------------


def backlog(data_dir: Path, run: UploadRun | None) -> Backlog:
    """Return what waits, given the last run to the store in question; without one, every sealed file waits.

    Raises `BacklogError` if a directory cannot be read.
    """
    files, waiting_bytes, oldest_ns = 0, 0, _waits_since(data_dir, run)
    since_ns = 0
    if run is not None:
        files, waiting_bytes, since_ns = run.waiting, run.waiting_bytes, run.started_ns
    try:
        for came_ns, file_bytes in _sealed_since(data_dir, since_ns):
            files += 1
            waiting_bytes += file_bytes
            oldest_ns = came_ns if oldest_ns is None else min(oldest_ns, came_ns)
    except OSError as error:
        raise _unreadable(data_dir, error) from error
    return Backlog(files, waiting_bytes, oldest_ns)


def _waits_since(data_dir: Path, run: UploadRun | None) -> int | None:
    """Return since when the first file that a run left behind waits: at the latest since the run began."""
    if run is None or not run.waiting:
        return None
    try:
        return min(run.started_ns, _came_ns((data_dir / run.oldest_waiting).lstat()))
    except OSError:
        return run.started_ns


def _sealed_since(data_dir: Path, since_ns: int) -> Iterator[tuple[int, int]]:
    """Yield time and bytes of each sealed file that came at `since_ns` or later.

    A directory in which nothing was created, renamed or deleted since is not looked into: its own time tells.
    """
    for feed, directory in _feeds(data_dir):
        for entry in _entries(directory) if _changed_since(directory, since_ns) else ():
            with suppress(FileNotFoundError):  # deleted after its upload, a moment ago
                found = entry.stat(follow_symlinks=False)
                if _came_ns(found) >= since_ns and stat.S_ISREG(found.st_mode) and _is_sealed(feed, entry.name):
                    yield _came_ns(found), found.st_size


def _is_sealed(feed: FeedPath, file: str) -> bool:
    name = feed.parse(file)
    return name is not None and name.sealed


def _changed_since(directory: Path, since_ns: int) -> bool:
    try:
        return _came_ns(directory.stat()) >= since_ns
    except FileNotFoundError:
        return False


def _came_ns(found: os.stat_result) -> int:
    return max(found.st_mtime_ns, found.st_ctime_ns)


def _feeds(data_dir: Path) -> Iterator[tuple[FeedPath, Path]]:
    """Yield the feeds' directories: exchange, stream, symbol."""
    for exchange in _directories(data_dir):
        for stream in _directories(exchange):
            for symbol in _directories(stream):
                with suppress(NameRefusedError):
                    yield FeedPath(exchange.name, stream.name, symbol.name), symbol


def _directories(directory: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(directory) if entry.is_dir(follow_symlinks=False)]


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """Return what is in a directory; nothing if there is none (any more)."""
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
