"""Every system call in the life of a small segment fails once: with a full disk, with an I/O error, with SIGKILL.

strace lets the n-th call of a kind fail, for rising n, until the life passes untouched; so no point is left out, and
nothing in the program knows of it. `LIFE` does what the collector does with its files, in one thread, so that n means
the same call in every run. `FAULT_POINTS=all` leaves out nothing; an ordinary run visits every third of the calls that
only look (`LOOKING`), and of the real process the first of each kind.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import soak

from tickcollect import journal
from tickcollect.dataset.replay import ReplayServer, serve
from tickcollect.segments import FeedPath, OpenFiles, Segments

DAY = 20_648
DAY_MS = 86_400_000
FEED = FeedPath("binance", "trade", "BTCUSDT")
ALL_IDS = {1, 2, 3, 4, 5, 8, 9, 10, 11}
LAST_ID = 11
ROWS_A_FILE = 3

LIFE = '''
"""The life of three small segments and a journal: create, write, sync, roll, gap, end, seal; say what is done."""
import sys
from pathlib import Path
from tickcollect.journal import Journal, JournalError
from tickcollect.segments import DiskError, FeedPath, OpenFiles, Segments, SegmentError, SyncFailedError

root = Path(sys.argv[1])
row = {row}
journal = Journal(root / "journal.jsonl")
feed = Segments(root, FeedPath("binance", "trade", "BTCUSDT"), rotate_size={rotate_size}, pool=OpenFiles(2))
waiting = []

def say(*words):
    print(*words, flush=True)

def again(action, *arguments):
    """Repeat what the disk refuses, as the writer does."""
    for _ in range(3):
        try:
            return action(*arguments)
        except (DiskError, JournalError) as error:
            if isinstance(error, SyncFailedError):
                raise
    raise SystemExit("the disk refuses for ever")

def tell(number):
    again(lambda: journal.append("step", number=number))
    say("told", number)

def append(*ids):
    waiting.extend(again(feed.append, b"".join(map(row, ids)), ids, {day}))
    say("handed_over", *ids)

def unsafe(error):
    say("unsafe", *range(error.first_id, error.last_id + 1))

def sync():
    try:
        again(feed.sync)
    except SyncFailedError as error:
        unsafe(error)
        if error.remaining is not None:
            waiting.append(error.remaining)
    else:
        say("safe")

def seal():
    while waiting:
        try:
            again(feed.seal, waiting.pop(0))
        except SyncFailedError as error:
            unsafe(error)
        except SegmentError:
            pass  # the CSV stays, and the next start seals it

say("recovered", again(feed.recover).last_id)
append(1, 2)
tell(1)
sync()
append(3, 4)
seal()
sync()
append(5)
waiting.extend(again(feed.end))
tell(2)
append(8, 9)
sync()
append(10, 11)
again(journal.sync)
waiting.extend(again(feed.end))
seal()
sync()
tell(3)
'''


def row(id_: int) -> bytes:
    time_ms = DAY * DAY_MS + id_
    return b"trade,%d,BTCUSDT,%d,64120.01000000,0.00150000,,,%d,True\n" % (time_ms + 1, id_, time_ms)


SCRIPT = LIFE.format(
    row=f'lambda i: b"trade,%d,BTCUSDT,%d,64120.01000000,0.00150000,,,%d,True\\n" % ({DAY * DAY_MS} + i + 1, i, '
    f"{DAY * DAY_MS} + i)",
    rotate_size=ROWS_A_FILE * len(row(11)) + 1,
    day=DAY,
)

REFUSED = {"full disk": "error=ENOSPC", "I/O error": "error=EIO"}
OTHERS = {"no descriptor": "error=EMFILE", "stale": "error=ESTALE", "no right": "error=EACCES"}
"""What a process that has used up its limit, a network file system, or somebody's `chmod` makes of an `open`."""
KILLED = {"kill": "signal=SIGKILL"}
POINTS: dict[str, Sequence[str]] = {
    "openat": (*REFUSED, *OTHERS, *KILLED),
    "write": (*REFUSED, *KILLED),
    "fsync": (*REFUSED, *KILLED),
    "fdatasync": (*REFUSED, *KILLED),
    "rename": (*REFUSED, *KILLED),
    "mkdir": (*REFUSED, *KILLED),
    "unlink": ("I/O error", *KILLED),
    "read": ("I/O error",),
    "newfstatat": ("I/O error",),
}
"""The calls that a segment's life is made of, and what can become of them."""
ALL = os.environ.get("FAULT_POINTS") == "all"
LOOKING = {"openat", "read", "newfstatat"}
AT_A_TIME = 4


@pytest.fixture(scope="module")
def strace() -> str:
    """Return a strace that may inject faults here."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    tried = subprocess.run(
        [found, "-f", "-e", "inject=fdatasync:error=EIO", "true"], check=False, capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()[:200]}")
    return found


def traced(strace: str, log: Path, call: str, fault: str, n: int, paths: Sequence[Path]) -> list[str]:
    """Return the command that lets the n-th `call` on one of `paths` fail."""
    inject = f"inject={call}:{(REFUSED | OTHERS | KILLED)[fault]}:when={n}"
    chosen = [word for path in paths for word in ("-P", str(path))]
    quick = ["--seccomp-bpf"] if fault not in KILLED else []  # with it, strace 6.1 sends no signals
    return [strace, "-f", "-qq", *quick, "-o", str(log), "-e", f"trace={call}", "-e", inject, *chosen]


def paths_of_life(root: Path) -> list[Path]:
    """Return every path that `LIFE` may touch."""
    directory = FEED.directory(root)
    names = [f"BTCUSDT-trade-2026-07-14-{first}" for first in range(1, LAST_ID + 1)]
    sealed = [f"{name}-{last}.csv.zip" for name in names for last in range(1, LAST_ID + 1)]
    quarantine = FEED.directory(root / "quarantine")
    return [
        root / "journal.jsonl",
        *(above for above in (directory, *directory.parents) if above.is_relative_to(root)),
        *(directory / f"{name}.csv" for name in names),
        *(directory / name for name in sealed),
        *(directory / f"{name}.unconfirmed" for name in sealed),
        *(above for above in (quarantine, *quarantine.parents) if above.is_relative_to(root) and above != root),
        *(quarantine / f"{name}.csv" for name in names),
    ]


@dataclass
class Said:
    """What `LIFE` said before it ended."""

    handed_over: set[int]
    safe: set[int]
    unsafe: set[int]
    told: list[int]

    @classmethod
    def of(cls, output: str) -> "Said":
        said = cls(set(), set(), set(), [])
        for line in output.splitlines():
            word, *numbers = line.split()
            if word == "handed_over":
                said.handed_over.update(map(int, numbers))
            elif word == "unsafe":
                said.unsafe.update(map(int, numbers))
            elif word == "safe":
                said.safe = said.handed_over - said.unsafe
            elif word == "told":
                said.told += map(int, numbers)
        return said


def sealed_ids(root: Path) -> Counter[int]:
    """Return the IDs in sealed files, after checking that each opens, that its rows are right and its name true."""
    found: Counter[int] = Counter()
    for path in FEED.directory(root).glob("*.zip"):
        first, last = map(int, path.name.removesuffix(".csv.zip").split("-")[-2:])
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(archive.namelist()[0]).splitlines(keepends=True)
        assert lines == [row(id_) for id_ in range(first, last + 1)], path.name
        found.update(range(first, last + 1))
    return found


def judge(root: Path, said: Said) -> None:
    """Recover, seal everything, and compare what is there with what was said."""
    sealed_ids(root)
    feed = Segments(root, FEED, rotate_size=1 << 30, pool=OpenFiles(2))
    for segment in [*feed.recover().finished, *feed.end()]:
        feed.seal(segment)
    assert {path.suffix for path in FEED.directory(root).glob("*")} <= {".zip"}
    found = sealed_ids(root)
    assert set(found.values()) <= {1}, "an ID twice"
    assert found.keys() <= set(range(1, LAST_ID + 1))
    assert said.handed_over - said.unsafe <= found.keys(), "rows lost that were handed over"
    assert not said.safe & said.unsafe, "rows given up that were safe"
    entries = [entry.facts["number"] for entry in journal.read(root / "journal.jsonl")]
    assert entries[: len(said.told)] == said.told
    assert len(entries) <= len(said.told) + 1


def live(root: Path, log: Path, *prefix: str) -> bool:
    """Let `LIFE` happen below `root`, judge what it leaves, and tell whether it went through untouched."""
    root.mkdir()
    done = subprocess.run(
        [*prefix, sys.executable, "-I", "-c", SCRIPT, str(root)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = Said.of(done.stdout)
    injected = "INJECTED" in log.read_text()
    try:
        assert done.stderr == ""
        assert done.returncode in {0, -signal.SIGKILL}
        judge(root, said)
        if done.returncode == 0 and not injected:
            assert sealed_ids(root).keys() == said.handed_over == ALL_IDS
    except Exception as error:
        error.add_note(f"it said:\n{done.stdout}{log.read_text()}")
        raise
    shutil.rmtree(root)
    return done.returncode == 0 and not injected


def visit(live_at: Callable[[int], bool], stride: int = 1) -> None:
    """Visit the points n = 1, 1 + stride, ... some at a time, until a life goes through untouched."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for first in range(1, 1000, AT_A_TIME * stride):
            untouched = list(pool.map(live_at, range(first, first + AT_A_TIME * stride, stride)))
            assert not (first == 1 and untouched[0]), "it was never called"
            if untouched[-1]:
                return
    pytest.fail("the life never passed untouched")


@pytest.mark.parametrize(("call", "fault"), [(call, fault) for call, faults in POINTS.items() for fault in faults])
def test_each_call_of_a_segments_life_may_fail(tmp_path: Path, strace: str, call: str, fault: str) -> None:
    """Whichever call fails or is the last, a row handed over is on disk once, or its sync was said to have failed."""

    def live_at(n: int) -> bool:
        root, log = tmp_path / str(n), tmp_path / f"{n}.strace"
        return live(root, log, *traced(strace, log, call, fault, n, paths_of_life(root)))

    visit(live_at, 3 if call in LOOKING and not ALL else 1)


@pytest.mark.parametrize("second", ["ftruncate", "unlink"])
@pytest.mark.parametrize("fault", REFUSED)
def test_taking_back_may_fail_too(tmp_path: Path, strace: str, fault: str, second: str) -> None:
    """A write that fails and cannot be taken back either leaves no row twice, and appending goes on."""

    def live_at(n: int) -> bool:
        root, log = tmp_path / str(n), tmp_path / f"{n}.strace"
        command = traced(strace, log, "write", fault, n, paths_of_life(root))
        untouched = live(root, log, *command, "-e", f"trace=write,{second}", "-e", f"inject={second}:error=EIO:when=1")
        return untouched or not re.search(r"write\(.*INJECTED", log.read_text())

    visit(live_at)


# The real process ---------------------------------------------------------------------------------------------------

START_MS = 1_784_000_000_000
PROCESS_POINTS = [
    (call, fault, n)
    for call, faults in {
        "write": (*REFUSED, *KILLED),
        "openat": ("I/O error", *OTHERS, *KILLED),
        "fdatasync": ("I/O error", *KILLED),
        "fsync": ("I/O error", *KILLED),
        "rename": ("I/O error", *KILLED),
        "unlink": ("I/O error", *KILLED),
    }.items()
    for fault in faults
    for n in (range(1, 9) if ALL else (2,) if call in {"write", "openat"} else (1,))
]


def first_files(directory: Path, market: soak.RememberedMarket, rotate_size: int) -> list[Path]:
    """Return the names, open, sealed and unconfirmed, of the first three segments of a market's busiest feed."""
    found: list[Path] = []
    ids: list[int] = []
    size = 0
    for message in market.messages(["btcusdt@trade"]):
        value = json.loads(message.data)
        line = soak.LINES["trade"](value, value["E"])
        if size + len(line) > rotate_size:
            name = f"BTCUSDT-trade-2026-07-14-{ids[0]}"
            zipped = directory / f"{name}-{ids[-1]}.csv.zip"
            found += [directory / f"{name}.csv", zipped, zipped.with_name(f"{zipped.name}.unconfirmed")]
            ids, size = [], 0
        if len(found) == 9:
            return found
        ids.append(value["t"])
        size += len(line)
    return found


@dataclass
class Run:
    """One collector of one busy feed, whose market lasts some seconds."""

    root: Path
    server: ReplayServer
    market: soak.RememberedMarket

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def played(self) -> soak.Played:
        return self.market.rows["BTCUSDT"]

    def is_complete(self) -> bool:
        ends = soak.ends(self.data_dir, PROCESS_FEED)
        over = self.server.played["btcusdt@trade"] > 0 and not any(not play.done() for play in self.server._plays)
        return (
            over and bool(ends) and soak.complete_up_to(self.data_dir, PROCESS_FEED, ends[0][0]) == self.played.last_id
        )

    def starts(self) -> int:
        """Return how often it has recovered its files and begun."""
        path = self.data_dir / "journal.jsonl"
        return path.read_bytes().count(b'"event":"started"') if path.exists() else 0

    async def live(self, *prefix: str) -> str:
        """Let the process live until it ends by itself or has everything, and then stop it; return what it said."""
        command = [*prefix, sys.executable, "-m", "tickcollect", "run", "--config", str(self.root / "config.json")]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.root
        )
        said = asyncio.ensure_future(process.communicate())
        before = self.starts()
        try:
            within_s = 30 if prefix else 120  # the life with the fault may never come so far, the one after it has to
            await soak.until(lambda: said.done() or (self.starts() > before and self.is_complete()), within_s)
        finally:
            if not said.done():
                os.kill(_traced_by(process.pid) if prefix else process.pid, signal.SIGTERM)
        return (await said)[0].decode()


PROCESS_FEED = ("binance", "trade", "BTCUSDT")
ROTATE_SIZE = 20_000


def _traced_by(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0])


async def fail_once(root: Path, strace: str, call: str, fault: str, n: int) -> soak.Verdict | None:
    """Let the `n`-th call of the real process fail, start it again without faults, and judge what is left.

    None if the market was over before the first row was kept, which leaves nothing to judge.
    """
    root.mkdir(parents=True)
    market = soak.RememberedMarket("binance", START_MS, symbols=1, activity=10.0, duration_s=30.0)
    async with serve(market, speed=10.0) as server:
        run = Run(root, server, market)
        settings = soak.configuration(run.data_dir, [server])
        (root / "config.json").write_text(json.dumps(settings | {"ROTATE_SIZE": ROTATE_SIZE, "FIRST_DATA_S": 1}))
        directory = soak.directory_of(run.data_dir, PROCESS_FEED)
        paths = [run.data_dir / "journal.jsonl", directory, *first_files(directory, market, ROTATE_SIZE)]
        said = await run.live(*traced(strace, root / "strace", call, fault, n, paths))
        said += await run.live()
        complete = run.is_complete()
    ends = soak.ends(run.data_dir, PROCESS_FEED)
    if not ends:
        return None
    verdict = soak.Verdict(0)
    before_first = set(range(run.played.first_id, ends[0][0]))
    soak.check_feed(directory, PROCESS_FEED, run.played, before_first, verdict)
    if not complete or "Traceback" in said:
        verdict.mistakes.append(f"not complete in the end: {said[-3000:]}")
    if fault in REFUSED and "INJECTED" not in (root / "strace").read_text():
        verdict.mistakes.append("it was never called")
    return verdict


@pytest.mark.timeout(600)
def test_each_call_of_the_process_may_fail(tmp_path: Path, strace: str) -> None:
    """Whatever fails in the real process, after its next start no ID that was sent behind the first row is missing."""

    async def all_points() -> dict[tuple[str, str, int], soak.Verdict]:
        turn = asyncio.Semaphore(AT_A_TIME)

        async def one(call: str, fault: str, n: int) -> soak.Verdict:
            root = tmp_path / f"{call}-{fault.replace('/', '')}-{n}"
            async with turn:
                for attempt in range(3):
                    verdict = await fail_once(root / str(attempt), strace, call, fault, n)
                    if verdict is not None:
                        return verdict
            return soak.Verdict(0, mistakes=["no row was ever kept"])

        return dict(zip(PROCESS_POINTS, await asyncio.gather(*(one(*p) for p in PROCESS_POINTS)), strict=True))

    wrong = {point: verdict.mistakes for point, verdict in asyncio.run(all_points()).items() if verdict.mistakes}
    assert not wrong
