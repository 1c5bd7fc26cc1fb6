"""One run of the upload: every sealed file to the store, proved there, recorded; and, if asked, deleted here.

    sealed files, oldest first ─▶ inspect and digest ─▶ look ─▶ put ─▶ prove ─▶ journal `uploaded`
                                       │                                            └─▶ (journal `deleted`, unlink)
                                       └─▶ damaged: held back and told

Rules:

1. A file counts as delivered when the journal says so for this store and these bytes. The entry is written after the
   proof (`store.arrival`) and synced; whatever kills a run before loses only the entry, and the next run finds the file
   there and looks whether it is the same. What contradicts an entry later (`store_lost`, `name_taken`) is journaled
   too, so that no later run believes it.
2. A name that is taken by other content is never written again: the file stays here and is told.
3. One file's failure holds up no other. What concerns all (credentials, no bucket) stops the run at once. What may pass
   is tried again, patiently, until the run's deadline.
4. A local file is deleted only if its day is over for long enough, the journal has the proof, its bytes are still those
   that were proved, and the store, asked once more, holds them. The journal has the deletion before it happens.
5. One run at a time in a data directory; the collector is not disturbed. A killed run leaves nothing to clean up by
   hand.
6. What is sent, counted as there or deleted is what was sealed: the bytes are inspected (`sealed`) as they are
   digested, and the digests are what the store's are compared with. A damaged file is held back, told and journaled
   (`damaged`); it is never sent and never deleted, and other files go on.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from loguru import logger

from tickcollect.backlog import BacklogError, UploadRun, read_run, write_run
from tickcollect.config import Config
from tickcollect.deliveries import KINDS, Deliveries, Proof
from tickcollect.events import FuturesTrade
from tickcollect.exchanges import MARKETS
from tickcollect.files import FILE_MODE, QUARANTINE, FeedPath, NameRefusedError, SegmentName, sync_directory
from tickcollect.happenings import HAPPENINGS, utc_text
from tickcollect.journal import Journal, JournalError
from tickcollect.journal import read as journal_entries
from tickcollect.salvage import Numbering
from tickcollect.sealed import DamagedError, Inspection, UncheckableError
from tickcollect.status import size, span
from tickcollect.store import (
    Absent,
    BrokenOffError,
    CannotTell,
    Digests,
    Held,
    NameTakenError,
    RefusedError,
    Source,
    Store,
    StoreError,
    TemporaryError,
    UnusableError,
    arrival,
    open_source,
    same_bytes,
)

if TYPE_CHECKING:
    import rich.progress
    from rich.console import Console

Result = TypeVar("Result")
Note: TypeAlias = tuple[str, str, dict[str, object]]
"""Something to be told: event, subject, facts."""

LOCK_NAME = ".upload.lock"
NS_PER_S = 1_000_000_000
S_PER_DAY = 86_400
LEFTOVERS_AFTER = timedelta(days=1)
"""Parts of an upload that was begun longer ago belong to no run that is still alive."""
FEW_ATTEMPTS = 5
"""For what waiting does not heal by itself, such as damaged bytes."""
WAITING_HEALS = frozenset({"busy", "network"})
NOT_THERE = frozenset({"name_taken", "wrong_bytes", "unproven", "gone", "damaged_file", "uncheckable"})
"""Failures that contradict a record of the file's arrival; others leave it standing."""
GRAVE = frozenset({"damaged_file", "store_lost", "name_taken"})
"""Failures that are told whatever else went wrong."""
FAILURES_TOLD = 10


class BusyError(Exception):
    """Another run is at work in this data directory; the text is one line."""


class UploadError(Exception):
    """The run cannot begin; the text is one line."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of a run beside sending. `delete_after_days` None: nothing is deleted."""

    verify: bool = False
    """Ask the store about files that the journal knows to be there, too."""
    delete_after_days: int | None = None
    trust_receipt: bool = False
    """Where the key may not look, the store's answer to the upload is proof enough for deleting."""
    rename_taken: bool = False
    """A file whose name is taken goes beside it, under a name with its checksum."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How what may pass is tried again: pauses in seconds, doubled each time, and when to stop."""

    within_s: float
    first_s: float = 1.0
    longest_s: float = 300.0


@dataclass(frozen=True, slots=True)
class World:
    """Clocks, chance, and the wish to stop: `halt` is set by a signal, or by the run itself when nothing can go on."""

    time_ns: Callable[[], int]
    monotonic_s: Callable[[], float]
    uniform: Callable[[float, float], float]
    halt: threading.Event


class Progress(Protocol):
    """Is told how it goes, from any thread."""

    def begin(self, files: int, total_bytes: int) -> None:
        """Be told what there is to do."""

    def went(self, count: int) -> None:
        """Be told of bytes that went, or, if negative, that will have to go again."""

    def ended(self, file: str) -> None:
        """Be told that a file is settled, well or not."""


class Silent:
    """Progress that nobody looks at."""

    def begin(self, files: int, total_bytes: int) -> None:
        """Leave it."""

    def went(self, count: int) -> None:
        """Leave it."""

    def ended(self, file: str) -> None:
        """Leave it."""


# --- What there is to do -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """One sealed file. `file` is its path below the data directory, and its name in the store."""

    file: str
    path: Path
    feed: FeedPath
    name: SegmentName
    bytes: int
    mtime_ns: int

    @property
    def feed_name(self) -> str:
        """The feed as people read it."""
        return f"{self.feed.exchange}/{self.feed.stream}/{self.feed.symbol}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a file is not there, or not deleted. `kind` groups them."""

    file: str
    kind: str
    text: str


def _listed(data_dir: Path) -> tuple[list[Item], list[Failure]]:
    try:
        return sealed_items(data_dir)
    except OSError as error:
        raise UploadError(
            f"{error.filename or data_dir}: cannot be read: {error.strerror}. Correct DATA_DIR, or its mode."
        ) from error


def sealed_items(data_dir: Path) -> tuple[list[Item], list[Failure]]:
    """Return all sealed files, oldest day first, and what stands where a feed should and is not looked into.

    Symbolic links are not followed, and told: whoever moved a feed to another disk would believe it uploaded.
    """
    items: list[Item] = []
    strange: list[Failure] = []
    for feed, directory in _feeds(data_dir, strange):
        for entry in os.scandir(directory):
            name = feed.parse(entry.name)
            if name is None or not name.sealed:
                continue
            file = f"{feed.exchange}/{feed.stream}/{feed.symbol}/{entry.name}"
            if not entry.is_file(follow_symlinks=False):
                strange.append(_link(file))
                continue
            with suppress(FileNotFoundError):  # moved or deleted a moment ago
                found = entry.stat(follow_symlinks=False)
                items.append(Item(file, Path(entry.path), feed, name, found.st_size, found.st_mtime_ns))
    items.sort(key=lambda item: (item.name.day, item.file))
    return items, strange


def _feeds(data_dir: Path, strange: list[Failure]) -> Iterator[tuple[FeedPath, Path]]:
    """Yield the feeds' directories, three levels down."""
    found: list[tuple[tuple[str, ...], Path]] = [((), data_dir)]
    for _ in range(3):
        deeper = []
        for parts, directory in found:
            for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name == QUARANTINE:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    deeper.append(((*parts, entry.name), Path(entry.path)))
                elif entry.is_symlink() and entry.is_dir():
                    strange.append(_link("/".join((*parts, entry.name))))
        found = deeper
    for parts, directory in found:
        try:
            yield FeedPath(*parts), directory
        except NameRefusedError:
            continue


def _link(file: str) -> Failure:
    return Failure(
        file, "link", f"{file} is a symbolic link, which is not followed: put what it points to in its place"
    )


def inspection_of(feed: FeedPath, name: SegmentName, file: str, known: Deliveries) -> Inspection:
    """Return what holds a file against what is on record of it. Raises `UncheckableError`."""
    member = Path(file).name.removesuffix(name.packing)
    return Inspection(feed, name, member, _numbering(feed), known.sealed.get(file))


def _numbering(feed: FeedPath) -> Numbering:
    market = MARKETS.get(feed.exchange)
    kind = None if market is None else market.message_types.get(feed.stream)
    is_proved = kind is not None and not issubclass(kind, FuturesTrade)
    return Numbering.BY_ONE if is_proved else Numbering.RISING


def is_known(item: Item, proof: Proof | None) -> bool:
    """Tell whether a file is one that was proved, without reading it: nothing writes to a sealed file."""
    return proof is not None and (proof.bytes, proof.mtime_ns) == (item.bytes, item.mtime_ns)


def is_due(item: Item, options: Options, now_ns: int) -> bool:
    """Tell whether a file's day is past for longer than the days after which files are deleted."""
    today = now_ns // NS_PER_S // S_PER_DAY
    return options.delete_after_days is not None and today - item.name.day > options.delete_after_days


def renamed(file: str, sha256: str) -> str:
    """Return the name beside a taken one: `….sha256-0123abcd.csv.zip`."""
    head, dot, ending = file.rpartition(".csv")
    return f"{head}.sha256-{sha256[:8]}{dot}{ending}"


# --- One run at a time ---------------------------------------------------------------------------------------------


@contextmanager
def one_at_a_time(data_dir: Path, started: str) -> Iterator[None]:
    """Hold the run's lock. It is the kernel's (flock): a killed run never leaves one behind.

    Raises `BusyError` with the holder's pid and start, `UploadError` if the lock cannot be taken.
    """
    path = data_dir / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        raise UploadError(f"{path}: cannot be opened: {error.strerror}. Let this user write there.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}, started {started}\n".encode(), 0)
        yield
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise BusyError(
            f"another upload of {data_dir} is at work ({holder or 'just starting'}). It takes what is waiting; nothing "
            "needs to be done."
        ) from None
    finally:
        os.close(descriptor)


# --- What a run comes to -------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one run did. `waiting` are the files that are not in the store as far as is known."""

    store: str
    started_ns: int
    ended_ns: int = 0
    sent: int = 0
    sent_bytes: int = 0
    already: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    waiting: list[Item] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    stopped_by: UnusableError | None = None
    interrupted: bool = False
    told: list[Note] = field(default_factory=list)
    """What was told of single files: names that were taken, files that are damaged, objects that are gone."""
    lost_before: int = 0
    """Files that an earlier run found missing or changed in the store, and that are not here."""

    went_well_before: bool = False
    """The run before this one to the same store left nothing behind."""

    @property
    def is_news(self) -> bool:
        """There is something that people have not been told: not where nothing was to be done, now and before."""
        did = self.sent or self.deleted or self.told
        return bool(did) or not (self.complete and self.went_well_before)

    @property
    def complete(self) -> bool:
        """Everything is there, and all that was asked for is done."""
        return not (self.waiting or self.failures or self.stopped_by or self.interrupted)

    @property
    def waiting_bytes(self) -> int:
        """The bytes that are not there."""
        return sum(item.bytes for item in self.waiting)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended_ns - self.started_ns) / NS_PER_S

    @property
    def reasons(self) -> list[str]:
        """Why not everything is there: a line a reason, each with the number of its files."""
        stopped = [] if self.stopped_by is None else [str(self.stopped_by)]
        groups: dict[str, list[Failure]] = {}
        for failure in self.failures:
            if not stopped or failure.kind in GRAVE:  # what stopped the run explains the rest
                groups.setdefault(failure.kind, []).append(failure)
        if len(groups) > 1:
            groups.pop("late", None)  # the time is over because of the others
        lines = [
            group[0].text if len(group) == 1 else f"{group[0].text} (and {len(group) - 1:,} more files)"
            for group in groups.values()
        ]
        lines = stopped + lines
        return lines or (["stopped by a signal; the next run goes on"] if self.interrupted else [])

    def lines(self) -> list[str]:
        """Return the run in words; `reasons` tell what is missing."""
        took = span(self.seconds)
        sent = f"sent {_files(self.sent)} ({size(self.sent_bytes)}) in {took}"
        waits = f"{len(self.waiting):,} waiting" + (f" ({size(self.waiting_bytes)})" if self.waiting else "")
        lines = [f"{self.store}: {sent}; {self.already:,} were there already; {waits}"]
        if self.deleted:
            lines.append(f"deleted {_files(self.deleted)} here ({size(self.deleted_bytes)})")
        if self.waiting:
            lines.append(f"oldest waiting: {self.waiting[0].file}")
        if self.lost_before:
            lines.append(
                f"not here, and found missing or changed there by an earlier --verify: {_files(self.lost_before)} "
                "(see `store_lost` in journal.jsonl)"
            )
        return lines

    def notes(self) -> list[Note]:
        """Return what is to be told of the run: of single files, and last of the run as a whole.

        Damaged files are among the reasons of the last.
        """
        if self.complete:
            facts: dict[str, object] = {
                "files": self.sent,
                "bytes": self.sent_bytes,
                "already": self.already,
                "seconds": round(self.seconds, 1),
            }
            return [*self.told, ("upload_done", self.store, facts)]
        facts = {
            "sent": self.sent,
            "waiting": len(self.waiting),
            "waiting_bytes": self.waiting_bytes,
            "reason": " | ".join(self.reasons),
        }
        return [*self.told, ("upload_failed", self.store, facts)]

    def as_run(self) -> UploadRun:
        """Return what is kept for the status."""
        return UploadRun(
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            store=self.store,
            sent=self.sent,
            sent_bytes=self.sent_bytes,
            already=self.already,
            waiting=len(self.waiting),
            waiting_bytes=self.waiting_bytes,
            oldest_waiting=self.waiting[0].file if self.waiting else "",
            failures=self.reasons[:FAILURES_TOLD],
            complete=self.complete,
        )


def not_begun(store: str, error: Exception) -> Note:
    """Return what is to be told of a run that could not begin."""
    return "upload_failed", store, {"sent": 0, "waiting": 0, "waiting_bytes": 0, "reason": str(error)}


def _files(count: int) -> str:
    return f"{count:,} file" if count == 1 else f"{count:,} files"


# --- What would be done --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a run would do with a file, as far as can be told without reading it. `doing` is empty for nothing."""

    item: Item
    doing: str


def foresee(data_dir: Path, store: Store, options: Options, now_ns: int) -> tuple[list[Foreseen], list[Failure]]:
    """Return what a run would do, asking the store but changing nothing. Raises `StoreError`, `JournalError`.

    Also where nothing is to be sent the store is asked, so that a wrong key or a missing bucket shows now.
    """
    items, strange = _listed(data_dir)
    store.probe()
    known = _deliveries(data_dir, store.name, items, options)
    found = []
    for item in items:
        proof = known.proof(item.file)
        doing = "" if _is_settled(item, known) and not options.verify else _foreseen(store, item, proof)
        sealed = known.sealed.get(item.file)
        if sealed is not None and sealed.bytes != item.bytes:
            doing = f"keep: it is damaged, {sealed.bytes:,} bytes were sealed"
        if is_due(item, options, now_ns) and not doing.startswith("keep"):
            doing = f"{doing}, delete here" if doing else "delete here"
        found.append(Foreseen(item, doing))
    return found, strange


def _deliveries(data_dir: Path, store: str, items: Iterable[Item], options: Options) -> Deliveries:
    """Read what the journal says of these files and this store; of all files where they are to be verified."""
    wanted = None if options.verify else {item.file for item in items}
    return Deliveries(store, wanted).take(journal_entries(data_dir / "journal.jsonl", KINDS))


def _is_settled(item: Item, known: Deliveries) -> bool:
    """Tell whether a file needs no look: it was proved to be there, and nothing on record speaks against it."""
    sealed = known.sealed.get(item.file)
    is_as_sealed = sealed is None or sealed.bytes == item.bytes
    return is_known(item, known.proof(item.file)) and is_as_sealed and item.file not in known.damaged


def _foreseen(store: Store, item: Item, proof: Proof | None) -> str:
    held = store.look(proof.key if proof else item.file)
    if isinstance(held, Held):
        return "compare" if held.size == item.bytes else "keep: its name is taken by other content"
    return "send"


# --- The run -------------------------------------------------------------------------------------------------------


def run(
    config: Config, store: Store, options: Options, world: World, patience: Patience, progress: Progress | None = None
) -> Outcome:
    """Bring every sealed file below `DATA_DIR` to the store, once; the outcome tells what is there and what is not.

    Raises `BusyError`, `UploadError` and `JournalError` (it cannot be read) before anything is sent.
    """
    if not config.data_dir.is_dir():
        raise UploadError(f"{config.data_dir}: there is no such directory. Correct DATA_DIR, or collect first.")
    with one_at_a_time(config.data_dir, utc_text(world.time_ns())):
        journal = Journal(config.data_dir / "journal.jsonl", world.time_ns)
        try:
            return Run(store, journal, options, patience, world, progress or Silent()).go(
                config.data_dir, config.upload_parallel
            )
        finally:
            with suppress(JournalError):  # what had to be safe was synced
                journal.close()


def _went_well_before(data_dir: Path, store: str) -> bool:
    try:
        before = read_run(data_dir, store)
    except BacklogError:
        return False
    return before is not None and before.complete


class Run:
    """One run: `settle` brings one file to the store, and deletes it here if it is due; from several threads."""

    def __init__(
        self, store: Store, journal: Journal, options: Options, patience: Patience, world: World, progress: Progress
    ) -> None:
        self._store = store
        self._journal = journal
        self._options = options
        self._patience = patience
        self._world = world
        self._progress = progress
        self._deadline_s = world.monotonic_s() + patience.within_s
        self._known = Deliveries(store.name, None)
        self._taken: set[str] = set()
        self._most_attempts = 0
        self._may_look = False
        self._tried = threading.Event()
        self._lock = threading.Lock()
        self.outcome = Outcome(store.name, world.time_ns())

    def go(self, data_dir: Path, parallel: int) -> Outcome:
        """Settle everything. Raises `UploadError`, `JournalError`."""
        items, strange = _listed(data_dir)
        self.outcome.failures += strange
        self._known = _deliveries(data_dir, self._store.name, items, self._options)
        gone = self._gone(items)
        self.outcome.lost_before = 0 if self._options.verify else len(self._known.lost.keys() - {i.file for i in items})
        todo = [item for item in items if self._has_to_be_looked_at(item)]
        self._progress.begin(len(todo), sum(item.bytes for item in todo))
        waiting = self._settle_all(todo, gone, parallel)
        self.outcome.waiting = sorted(waiting, key=lambda item: (item.name.day, item.file))
        self.outcome.already = len(items) - self.outcome.sent - len(waiting)
        self.outcome.ended_ns = self._world.time_ns()
        self.outcome.interrupted = self._world.halt.is_set() and self.outcome.stopped_by is None
        self._finish(data_dir)
        return self.outcome

    def _finish(self, data_dir: Path) -> None:
        """Put the run on record."""
        try:
            event, subject, facts = self.outcome.notes()[-1]
            self._journal.append(event, subject=subject, **facts)
            self.outcome.went_well_before = _went_well_before(data_dir, self._store.name)
            write_run(data_dir, self.outcome.as_run())
        except (JournalError, BacklogError) as error:
            self._note(Failure("", "journal", str(error)), error)

    def _has_to_be_looked_at(self, item: Item) -> bool:
        due = is_due(item, self._options, self._world.time_ns())
        return self._options.verify or due or not _is_settled(item, self._known)

    def _gone(self, items: Iterable[Item]) -> list["Gone"]:
        """Return the files that the store was proved to hold and that are not here, where they are to be verified."""
        here = {item.file for item in items}
        proved = self._known.proved.items() if self._options.verify else ()
        return [gone for file, proof in proved if file not in here and (gone := Gone.of(file, proof))]

    def _settle_all(self, todo: list[Item], gone: list["Gone"], parallel: int) -> list[Item]:
        """Return the files that are not there afterwards."""
        waiting = [item for item in todo if not is_known(item, self._known.proof(item.file))]
        try:
            probe = self._patiently("looking at the store", self._store.probe)
            logger.debug("{}: {}", self._store.name, probe.text)
            self._may_look = probe.may_look
            older_than = datetime.fromtimestamp(self._world.time_ns() / NS_PER_S, UTC) - LEFTOVERS_AFTER
            remove = partial(self._store.abort_leftovers, older_than)
            if leftovers := self._patiently("removing what interrupted uploads left", remove):
                logger.info("{}: {} interrupted uploads of earlier runs removed", self._store.name, leftovers)
        except StoreError as error:
            self._note(Failure("", error.kind, str(error)), error)
            return waiting
        waiting = self._settle_each(todo, parallel) if todo else []
        with ThreadPoolExecutor(parallel, "verify") as threads:
            list(threads.map(self._verify_gone, gone))
        return waiting

    def _settle_each(self, todo: list[Item], parallel: int) -> list[Item]:
        """Settle the smallest file first, alone until it has been tried once: what concerns all files shows on it."""
        smallest = min(todo, key=lambda item: item.bytes)
        others = [item for item in todo if item is not smallest]
        self._tried.clear()
        with ThreadPoolExecutor(parallel, "upload") as threads:
            first = threads.submit(self._settle, smallest)
            self._tried.wait()
            there = dict(zip(others, threads.map(self._settle, others), strict=True))
        there[smallest] = first.result()
        return [item for item in todo if not there[item]]

    def _settle(self, item: Item) -> bool:
        """Bring one file to the store, and delete it here if it is due; return whether it is there, as far as known."""
        try:
            return self._bring(item)
        finally:
            self._tried.set()
            self._progress.ended(item.file)

    def _bring(self, item: Item) -> bool:
        there = is_known(item, self._known.proof(item.file))
        if self._world.monotonic_s() > self._deadline_s:
            text = "the time for this run is over (UPLOAD_WITHIN_H); the next run goes on"
            self._note(Failure(item.file, "late", text), None)
            return there
        try:
            with open_source(item.path, look_up=self._look_up) as source:
                digests, checked = self._inspected(item, source)
                key = self._delivered(item, source, digests, checked)
                there = True
                if is_due(item, self._options, self._world.time_ns()):
                    self._patiently(f"deleting {item.file}", partial(self._delete, item, source, digests, key))
        except BrokenOffError:
            pass
        except DamagedError as error:
            there = self._hold_back(item, str(error))
        except StoreError as error:
            there = there and error.kind not in NOT_THERE
            self._note(Failure(item.file, error.kind, _with_file(item.file, str(error))), error)
        except JournalError as error:
            there = True
            self._note(Failure(item.file, "journal", str(error)), error)
        return there

    def _inspected(self, item: Item, source: Source) -> tuple[Digests, str]:
        """Read a file once; return its digests and what it was held against. Raises `DamagedError`, `RefusedError`."""
        try:
            inspection = inspection_of(item.feed, item.name, item.file, self._known)
            digests = source.digests(self._store.limits, inspection.feed)
            return digests, inspection.end()
        except UncheckableError as error:
            raise RefusedError("uncheckable", f"{item.file}: held back, because {error}.") from error
        except RefusedError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
                raise DamagedError("the disk cannot read it (input/output error)") from error
            raise
        except DamagedError as error:
            if (source.size, source.mtime_ns) != (item.bytes, item.mtime_ns):
                raise RefusedError(
                    "changed", f"{item.file}: became another file since this run began. The next run takes it."
                ) from error
            raise

    def _hold_back(self, item: Item, detail: str) -> bool:
        """Tell that a file is damaged; return whether the store still holds the bytes that were proved before."""
        proof = self._known.proof(item.file)
        held = False
        if proof is not None and proof.checked:
            with suppress(StoreError):  # then it is not known, and not claimed
                gone = Gone(item.file, item.feed, item.name, proof)
                held = not self._patiently(f"looking at {item.file}", partial(self._contradiction, gone))
        there = f" {self._store.name} still holds the bytes that were sealed." if held else ""
        text = (
            f"{item.file} is damaged: {detail}. It is neither sent nor deleted.{there} Put a good copy in its place, "
            "or restart the collector: it moves the file to quarantine and fetches its rows again."
        )
        if self._known.damaged.get(item.file) != detail:
            where = {"store": self._store.name} if held else {}
            self._tell_of(item.feed, "damaged", item.file, item.name, detail=detail, **where)
        self._note(Failure(item.file, "damaged_file", text), None)
        return held

    def _note(self, failure: Failure, error: Exception | None) -> None:
        """Keep a failure; one that concerns all files stops the run."""
        if isinstance(error, BrokenOffError):
            return
        with self._lock:
            if not isinstance(error, UnusableError):
                self.outcome.failures.append(failure)
            elif self.outcome.stopped_by is None:
                self.outcome.stopped_by = error
                self._world.halt.set()
        logger.debug("{}", failure.text)

    def _look_up(self) -> None:
        if self._world.halt.is_set():
            raise BrokenOffError("stopped", "stopped")

    def _patiently(self, doing: str, attempt: Callable[[], Result]) -> Result:
        """Return what `attempt` returns, tried again while that may help and there is time."""
        pause_s, attempts = self._patience.first_s, 0
        while True:
            self._look_up()
            try:
                result = attempt()
            except TemporaryError as error:
                attempts += 1
                wait_s = max(self._world.uniform(pause_s / 2, pause_s), error.retry_after_s)
                too_late = self._world.monotonic_s() + wait_s > self._deadline_s
                if too_late or (error.kind not in WAITING_HEALS and attempts >= FEW_ATTEMPTS):
                    raise
                self._tell_waiting(doing, error, attempts, wait_s)
            else:
                self._most_attempts = 0
                return result
            self._world.halt.wait(wait_s)
            pause_s = min(pause_s * 2, self._patience.longest_s)

    def _tell_waiting(self, doing: str, error: TemporaryError, attempts: int, wait_s: float) -> None:
        """Say that the store is waited for: once for each round, not for each file."""
        self._tried.set()
        with self._lock:
            level = "WARNING" if attempts > self._most_attempts else "DEBUG"
            self._most_attempts = max(self._most_attempts, attempts)
        logger.log(level, "{}, attempt {}: {} Again in {}.", doing, attempts, error, span(wait_s))

    # Delivering

    def _delivered(self, item: Item, source: Source, digests: Digests, checked: str) -> str:
        """Return the name under which the store holds the file, proved and recorded."""
        proof = self._known.proved.get(item.file)
        key = proof.key if proof is not None and proof.sha256 == digests.sha256 else item.file
        doing = f"sending {item.file}"
        try:
            return self._patiently(doing, partial(self._deliver, item, key, source, digests, checked))
        except NameTakenError as error:
            if not self._options.rename_taken or key != item.file:
                where = {"store": self._store.name, "key": key, "detail": str(error)}
                self._tell_of(item.feed, "name_taken", item.file, item.name, **where)
                raise NameTakenError(
                    error.kind,
                    f"{error} It is not overwritten, and the file stays here. See which of the two is right; "
                    "--rename-taken sends this one under another name.",
                ) from error
            key = renamed(item.file, digests.sha256)
            logger.warning("{} This file goes beside it, as {}.", error, key)
        return self._patiently(doing, partial(self._deliver, item, key, source, digests, checked))

    def _deliver(self, item: Item, key: str, source: Source, digests: Digests, checked: str) -> str:
        """Look, put, prove, record: one attempt."""
        known = self._known.proof(item.file)
        is_on_record = known is not None and (known.sha256, known.key) == (digests.sha256, key)
        found = self._look(key)
        if isinstance(found, Held):
            by = self._same(key, found, digests)
            if item.file in self._taken:
                self._count_sent(item)
            is_as_recorded = known is not None and (known.mtime_ns, bool(known.checked)) == (source.mtime_ns, True)
            if not is_on_record or not is_as_recorded or item.file in self._known.damaged:
                self._record(item, source, key, digests, f"held: {by}", found, checked)
            self._progress.went(item.bytes)
            return key
        if isinstance(found, CannotTell) and is_on_record:
            if self._options.verify:
                raise RefusedError(
                    "cannot_look", f"{self._store.name}: {key} cannot be verified: the key may not look (s3:GetObject)."
                )
            self._progress.went(item.bytes)
            return key
        if is_on_record:
            detail = f"{self._store.name}: {key} was there and is gone"
            logger.warning("{}. It is sent again.", detail)
            self._lose(item.feed, item.file, item.name, key, detail)
        went = _Counted(self._progress)
        source.went = went
        try:
            receipt = self._store.put(key, source, digests)
            self._taken.add(item.file)
            proof = arrival(self._store, key, digests, receipt)
        except NameTakenError:
            went.undo()
            return self._look_at_taken(item, source, key, digests, checked)
        except BaseException:
            went.undo()
            raise
        self._count_sent(item)
        self._record(item, source, key, digests, proof, receipt.said, checked)
        return key

    def _count_sent(self, item: Item) -> None:
        with self._lock:
            self._taken.discard(item.file)
            self.outcome.sent += 1
            self.outcome.sent_bytes += item.bytes

    def _look(self, key: str) -> Held | Absent | CannotTell:
        """Look; a key that could look when the run began and now cannot has expired, or something like it."""
        found = self._store.look(key)
        if isinstance(found, CannotTell) and self._may_look:
            self._store.probe()
        return found

    def _same(self, key: str, found: Held, digests: Digests) -> str:
        same, by = same_bytes(self._store, key, found, digests)
        if not same:
            raise NameTakenError("name_taken", f"{self._store.name}: {key} is taken by other content ({by}).")
        return by

    def _look_at_taken(self, item: Item, source: Source, key: str, digests: Digests, checked: str) -> str:
        """Find out what a name is taken by: the same, when an answer was lost on its way or two runs met."""
        found = self._look(key)
        if isinstance(found, Absent):
            raise TemporaryError("conflict", f"{self._store.name}: {key} was taken and is not there.")
        if isinstance(found, CannotTell):
            raise NameTakenError(
                "name_taken",
                f"{self._store.name}: {key} is taken, and this access key may not look by what (s3:GetObject).",
            )
        by = self._same(key, found, digests)
        self._progress.went(item.bytes)
        self._record(item, source, key, digests, f"held: {by}", found, checked)
        return key

    def _record(
        self, item: Item, source: Source, key: str, digests: Digests, proof: str, held: Held, checked: str
    ) -> None:
        """Put a delivery on record, safe from power loss. Raises `JournalError`."""
        self._tell(
            "uploaded",
            item.feed_name,
            file=item.file,
            bytes=digests.size,
            mtime_ns=source.mtime_ns,
            sha256=digests.sha256,
            store=self._store.name,
            key=key,
            proof=proof,
            etag=held.etag,
            checked=checked,
        )
        self._journal.sync()
        with self._lock:
            self._known.prove(
                item.file, Proof(digests.size, source.mtime_ns, digests.sha256, key, proof, checked, held.etag)
            )

    def _tell(self, event: str, subject: str, **facts: object) -> None:
        level, text = HAPPENINGS[event]
        logger.log(level, "{}", text.format(subject=subject, **facts))
        self._journal.append(event, subject=subject, **facts)

    def _tell_of(self, feed: FeedPath, event: str, file: str, name: SegmentName, **facts: object) -> None:
        """Tell of a file's IDs, at once and safely, because a later run must not believe what was before."""
        assert name.last_id is not None
        whole = {"file": file, "first_id": name.first_id, "last_id": name.last_id}
        whole |= {"count": name.last_id - name.first_id + 1, **facts}
        subject = f"{feed.exchange}/{feed.stream}/{feed.symbol}"
        if event != "damaged":
            with self._lock:
                self.outcome.told.append((event, subject, whole))
        try:
            self._journal.append(event, subject=subject, **whole)
            self._journal.sync()
        except JournalError as error:
            self._note(Failure(file, "journal", str(error)), error)

    # Verifying what is not here

    def _lose(self, feed: FeedPath, file: str, name: SegmentName, key: str, detail: str) -> None:
        """Put on record that the store does not hold what it was proved to hold."""
        with self._lock:
            self._known.lost[file] = detail
        self._tell_of(feed, "store_lost", file, name, store=self._store.name, key=key, detail=detail)

    def _verify_gone(self, gone: "Gone") -> None:
        """Ask the store for a file that it alone holds; tell and record if it holds it no more, or again."""
        proof, file = gone.proof, gone.file
        try:
            detail = self._patiently(f"verifying {file}", partial(self._contradiction, gone))
            if detail:
                if file not in self._known.lost:
                    self._lose(gone.feed, file, gone.name, proof.key, detail)
                text = f"{detail}. It was deleted here: look for another copy, or an older version there ({file})."
                self._note(Failure(file, "store_lost", text), None)
            elif file in self._known.lost:
                self._tell("uploaded", gone.feed_name, file=file, store=self._store.name, **gone.facts())
                self._journal.sync()
        except StoreError as error:
            self._note(Failure(file, error.kind, _with_file(file, str(error))), error)
        except JournalError as error:
            self._note(Failure(file, "journal", str(error)), error)

    def _contradiction(self, gone: "Gone") -> str:
        """Return how the store does not hold what it was proved to hold; empty if it does. Raises `StoreError`."""
        proof, where = gone.proof, f"{self._store.name}: {gone.proof.key}"
        sealed = self._known.sealed.get(gone.file)
        if sealed is not None and (sealed.bytes, sealed.sha256 or proof.sha256) != (proof.bytes, proof.sha256):
            return f"{where} was damaged before it was sent: it is not what was sealed"
        found = self._look(proof.key)
        if isinstance(found, Absent):
            return f"{where} is there no more"
        if isinstance(found, CannotTell):
            raise RefusedError("cannot_look", f"{where} cannot be verified: the key may not look (s3:GetObject).")
        if found.size != proof.bytes:
            return f"{where} has been changed: {found.size:,} bytes there, {proof.bytes:,} were proved"
        of_parts = "-" in found.etag
        if found.sha256 and not of_parts:
            return "" if found.sha256 == proof.sha256 else f"{where} has been changed (SHA-256)"
        if found.etag and found.etag == proof.etag:
            return ""
        return self._read_contradiction(gone, where)

    def _read_contradiction(self, gone: "Gone", where: str) -> str:
        """Download an object; compare its bytes, and inspect them where nobody did before they were sent."""
        inspection = None
        with suppress(UncheckableError):
            inspection = inspection_of(gone.feed, gone.name, gone.file, self._known)
        try:
            theirs = self._store.read_back(gone.proof.key, inspection.feed if inspection else _leave)
            if theirs == gone.proof.sha256 and inspection is not None:
                inspection.end()
        except DamagedError as error:
            return f"{where} is damaged: {error}"
        return "" if theirs == gone.proof.sha256 else f"{where} has been changed (SHA-256)"

    # Deleting

    def _delete(self, item: Item, source: Source, digests: Digests, key: str) -> None:
        """Delete a local file whose bytes the store has shown once more to hold (rule 4)."""
        proof = self._known.proof(item.file)
        if proof is None or (proof.bytes, proof.sha256, proof.key) != (digests.size, digests.sha256, key):
            raise RefusedError("no_record", f"{item.file}: kept here, because the journal has no proof of these bytes.")
        source.check()
        found = self._look(key)
        if isinstance(found, Absent):
            self._lose(item.feed, item.file, item.name, key, f"{self._store.name}: {key} is there no more")
            raise RefusedError("gone", f"{self._store.name}: {key} is there no more. The file is kept here.")
        if isinstance(found, Held):
            detail = f"{self._store.name} holds the same ({self._same(key, found, digests)})"
        elif self._options.trust_receipt:
            detail = f"{self._store.name} has said that it holds the same ({proof.text})"
        else:
            raise RefusedError(
                "cannot_look",
                f"{item.file}: kept here, because the key may not look whether the store holds it. Allow s3:GetObject "
                "on the folder, or give --trust-receipt.",
            )
        source.check()
        if not _is_at(item.path, source):
            raise RefusedError("changed", f"{item.file}: kept here, because it is another file now.")
        self._tell(
            "deleted",
            item.feed_name,
            file=item.file,
            first_id=item.name.first_id,
            last_id=item.name.last_id,
            bytes=item.bytes,
            store=self._store.name,
            key=key,
            detail=detail,
        )
        self._journal.sync()
        try:
            item.path.unlink()
            sync_directory(item.path.parent)
        except OSError as error:
            raise RefusedError("refused", f"{item.file}: cannot be deleted here: {error.strerror}.") from error
        with self._lock:
            self.outcome.deleted += 1
            self.outcome.deleted_bytes += item.bytes


def _is_at(path: Path, source: Source) -> bool:
    """Tell whether a name still is that of the file that was opened."""
    try:
        return os.path.samestat(os.fstat(source.file.fileno()), path.lstat())
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Gone:
    """A file that the store was proved to hold, and that is looked at there and not here."""

    file: str
    feed: FeedPath
    name: SegmentName
    proof: Proof

    @classmethod
    def of(cls, file: str, proof: Proof) -> "Gone | None":
        """Return what a name in the journal says; None for one that is no sealed file's."""
        *parts, last = file.split("/")
        try:
            feed = FeedPath(*parts)
        except (TypeError, NameRefusedError):
            return None
        name = feed.parse(last)
        return cls(file, feed, name, proof) if name is not None and name.sealed else None

    @property
    def feed_name(self) -> str:
        """The feed as people read it."""
        return f"{self.feed.exchange}/{self.feed.stream}/{self.feed.symbol}"

    def facts(self) -> dict[str, object]:
        """Return what an entry `uploaded` says of it."""
        return {
            "bytes": self.proof.bytes,
            "mtime_ns": self.proof.mtime_ns,
            "sha256": self.proof.sha256,
            "key": self.proof.key,
            "proof": "held: as proved before",
            "etag": self.proof.etag,
            "checked": self.proof.checked,
        }


def _leave(_chunk: bytes) -> None:
    """Take bytes that nobody inspects."""


@dataclass
class _Counted:
    """Counts the bytes of one attempt, so that a failed one can be taken back."""

    progress: Progress
    count: int = 0

    def __call__(self, count: int) -> None:
        self.count += count
        self.progress.went(count)

    def undo(self) -> None:
        self.progress.went(-self.count)
        self.count = 0


def _with_file(file: str, text: str) -> str:
    return text if file in text else f"{text} ({file})"


# --- Seen in a terminal --------------------------------------------------------------------------------------------


@contextmanager
def bar(console: "Console") -> Iterator[Progress]:
    """Draw the progress: files, bytes, speed, what remains."""
    from rich import progress as rich  # noqa: PLC0415 - for terminals only

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as drawing:
        yield _Drawn(drawing)


class _Drawn:
    def __init__(self, drawing: "rich.progress.Progress") -> None:
        self._drawing = drawing
        self._task = drawing.add_task("looking for files", total=None)
        self._files, self._ended = 0, 0
        self._lock = threading.Lock()

    def begin(self, files: int, total_bytes: int) -> None:
        self._files = files
        self._drawing.update(self._task, total=total_bytes, description=f"0 of {_files(files)}")

    def went(self, count: int) -> None:
        self._drawing.advance(self._task, count)

    def ended(self, _file: str) -> None:
        with self._lock:
            self._ended += 1
            self._drawing.update(self._task, description=f"{self._ended:,} of {_files(self._files)}")
