"""A collector's files under SIGKILL: at random moments, and at each system call that changes a file.

`KILLS=500` asks for more random kills than the 40 of an ordinary run; `SEED` repeats a run.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tickcollect.segments import FeedPath, OpenFiles, Segments

KILLS = int(os.environ.get("KILLS", "40"))
SEED = int(os.environ.get("SEED", str(time.time_ns())))
DAY = 20_648
ROWS_A_DAY = 4000

CHILD = f'''
"""Recover, go on behind the last row, append, roll, sync and seal for ever; print each ID that was handed over."""
import os, queue, sys, threading
from pathlib import Path
from tickcollect.segments import FeedPath, OpenFiles, Segments

def report(kind, error):
    os.write(2, f"{{kind.__module__}}.{{kind.__name__}}: {{error}}\\n".encode())

sys.excepthook = lambda kind, error, _: report(kind, error)
threading.excepthook = lambda failed: report(failed.exc_type, failed.exc_value)

root, limit = Path(sys.argv[1]), int(sys.argv[2])
feed = Segments(root, FeedPath("binance", "trade", "BTCUSDT"), rotate_size=20_000, pool=OpenFiles(1))

def tell(*words):
    if "silent" not in sys.argv:
        print(*words, flush=True)

def row(i):
    time_ms = ({DAY} + i // {ROWS_A_DAY}) * 86_400_000 + i % 1000
    return b"trade,%d,BTCUSDT,%d,64120.01000000,0.00150000,,,%d,True\\n" % (time_ms + 1, i, time_ms)

recovered = feed.recover()
tell("recovered", recovered.last_id)
waiting = queue.Queue(20)

def seal():
    for segment in iter(waiting.get, None):
        feed.seal(segment)
        feed.sync()

thread = threading.Thread(target=seal, daemon=True)
thread.start()
for segment in recovered.finished:
    waiting.put(segment)
next_id, step = (recovered.last_id or 0) + 1, 0
while next_id < limit:
    step = step % 37 + 7
    day_end = (next_id // {ROWS_A_DAY} + 1) * {ROWS_A_DAY}
    ids = range(next_id, min(next_id + step, day_end, limit))
    for segment in feed.append(b"".join(map(row, ids)), ids, {DAY} + next_id // {ROWS_A_DAY}):
        waiting.put(segment)
    next_id = ids.stop
    tell(ids[-1])
for segment in feed.end():
    waiting.put(segment)
waiting.put(None)
thread.join()
'''


def row(id_: int) -> bytes:
    """Return the row that the child writes for an ID, from this test's own knowledge of the format."""
    time_ms = (DAY + id_ // ROWS_A_DAY) * 86_400_000 + id_ % 1000
    return f"trade,{time_ms + 1},BTCUSDT,{id_},64120.01000000,0.00150000,,,{time_ms},True\n".encode()


def check(root: Path) -> int:
    """Check every file as a stranger would, and return the last ID: all IDs from 1 on are there, once.

    A sealed file opens, holds whole rows, and its name is true. A CSV whose rows are all in a sealed file is what a
    kill before the deletion leaves; the last line of the newest CSV may be torn.
    """
    ids: dict[int, str] = {}
    opened: list[tuple[int, str, list[bytes]]] = []
    for path in (root / "binance" / "trade" / "BTCUSDT").glob("*"):
        parts = path.name.split(".")[0].split("-")
        if path.name.endswith(".unconfirmed"):
            continue
        if path.suffix == ".csv":
            opened.append((int(parts[5]), path.name, path.read_bytes().splitlines(keepends=True)))
            continue
        with zipfile.ZipFile(path) as archive:
            lines = archive.read(archive.namelist()[0]).splitlines(keepends=True)
        assert lines == [row(id_) for id_ in range(int(parts[5]), int(parts[6]) + 1)], path.name
        for id_ in range(int(parts[5]), int(parts[6]) + 1):
            assert ids.setdefault(id_, path.name) == path.name
    for first_id, name, lines in sorted(opened):
        if lines and not lines[-1].endswith(b"\n"):
            assert first_id == max(opened)[0]
            lines.pop()
        assert lines == [row(id_) for id_ in range(first_id, first_id + len(lines))], name
        new = {first_id + n for n in range(len(lines))} - ids.keys()
        assert len(new) in {0, len(lines)}
        ids |= dict.fromkeys(new, name)
    assert sorted(ids) == list(range(1, len(ids) + 1))
    return len(ids)


def start(root: Path, limit: int, *prefix: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", CHILD, str(root), str(limit)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill_at_random(root: Path, chance: random.Random, before: int) -> int:
    """Start a collector whose files end with the ID `before`, kill it, check the files; return their last ID."""
    child = start(root, 1 << 60)
    assert child.stdout is not None
    handed_over = before
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0.05, 0.2))  # while it starts and recovers
    else:
        recovered = child.stdout.readline().split()
        assert recovered == [b"recovered", b"%d" % before if before else b"None"]
        kill_at = time.monotonic() + chance.expovariate(1 / 0.05)
        while time.monotonic() < kill_at:
            handed_over = int(child.stdout.readline())
    child.kill()
    rest, errors = child.communicate()
    assert errors == b""
    printed = [int(line) for line in rest.splitlines(keepends=True) if re.fullmatch(rb"\d+\n", line)]
    found = check(root)
    assert found >= max([handed_over, *printed])
    return found


@pytest.mark.parametrize("life", range(max(1, KILLS // 20)))
def test_random_kills_lose_nothing_that_was_handed_over(tmp_path: Path, life: int) -> None:
    """Killed at any moment of appending, rolling, sealing and recovering, a collector goes on without hole or copy."""
    sys.stdout.write(f"SEED={SEED}\n")  # shown if the test fails
    chance = random.Random(f"{SEED} {life}")
    last = 0
    for _ in range(20):
        last = kill_at_random(tmp_path, chance, last)
    done = start(tmp_path, last + 100)
    _, errors = done.communicate()
    assert (done.returncode, errors) == (0, b"")
    assert check(tmp_path) == last + 99
    left = {path.suffix for path in (tmp_path / "binance" / "trade" / "BTCUSDT").iterdir()}
    assert left == {".zip"}


CALLS = ["rename", "unlink", "fsync", "fdatasync", "ftruncate", "mkdir", "write"]
STRIDE = 1 if KILLS > 40 else 8
"""An ordinary run visits every eighth of the calls, another eighth each time."""


@pytest.fixture(scope="module")
def strace() -> str:
    """Return a strace that may trace and inject faults here."""
    found = shutil.which("strace")
    if found is None:
        pytest.skip("needs strace")
    tried = subprocess.run([found, "-f", "-e", "inject=fsync:error=EIO", "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.decode()[-200:]}")
    return found


def damaged_start(root: Path) -> None:
    """Leave a sealed file beside its CSV, and a CSV with a bad line in the middle and a torn end."""
    directory = root / "binance" / "trade" / "BTCUSDT"
    directory.mkdir(parents=True)
    earlier = b"".join(map(row, range(1, 6)))
    (directory / "BTCUSDT-trade-2026-07-14-1.csv").write_bytes(earlier)
    with zipfile.ZipFile(directory / "BTCUSDT-trade-2026-07-14-1-5.csv.zip", "w") as archive:
        archive.writestr("BTCUSDT-trade-2026-07-14-1-5.csv", earlier)
    rows = b"".join(map(row, range(6, 9))) + b"?" + row(9) + b"".join(map(row, range(10, 13))) + row(13)[:30]
    (directory / "BTCUSDT-trade-2026-07-14-6.csv").write_bytes(rows)


def run(root: Path, *prefix: str) -> subprocess.CompletedProcess[bytes]:
    """Recover, append up to row 900 (four segments), seal; with `prefix`, under strace."""
    return subprocess.run(
        [*prefix, sys.executable, "-B", "-c", CHILD, str(root), "900", "silent"], check=False, capture_output=True
    )


def sealed_ids(root: Path) -> list[int]:
    """Return all IDs, after checking that each file is sealed and holds what its name says."""
    ids: list[int] = []
    for path in (root / "binance" / "trade" / "BTCUSDT").iterdir():
        first_id, last_id = map(int, path.name.removesuffix(".csv.zip").split("-")[5:])
        with zipfile.ZipFile(path) as archive:
            rows = archive.read(archive.namelist()[0])
        assert rows == b"".join(map(row, range(first_id, last_id + 1)))
        ids += range(first_id, last_id + 1)
    return sorted(ids)


@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_at_each_system_call_leaves_files_that_recover(
    tmp_path: Path, strace: str, call: str, fault: str
) -> None:
    """Killed or refused at the n-th call of a kind, the next start seals every row once; errors are typed."""
    trace = tmp_path / "trace"
    damaged_start(tmp_path / "dry")
    assert run(tmp_path / "dry", strace, "-f", "-o", str(trace), "-e", f"trace={call}").returncode == 0
    calls = trace.read_text().count(f"{call}(")
    for n in range(1 + SEED % STRIDE, calls + 1, STRIDE):
        root = tmp_path / str(n)
        damaged_start(root)
        hit = run(root, strace, "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={n}")
        if fault.startswith("error"):
            for line in hit.stderr.decode().splitlines():
                assert re.match(r"tickcollect\.segments\.\w+Error: ", line), line
        done = run(root)
        assert (done.returncode, done.stderr) == (0, b""), (call, n)
        # a failed sync of a segment that others followed leaves a hole, and says which; `recover` does not fill holes
        reported = re.findall(rb"Rows (\d+) to (\d+) may not be on the disk", hit.stderr)
        lost = {id_ for first, last in reported for id_ in range(int(first), int(last) + 1)}
        ids, every = sealed_ids(root), {*range(1, 9), *range(10, 900)}
        assert every - lost <= set(ids) <= every, (call, n)
        assert len(ids) == len(set(ids)), (call, n)
        assert b"?" + row(9) in b"".join(path.read_bytes() for path in (root / "quarantine").rglob("*.csv"))
        shutil.rmtree(root)


# A numbering that begins anew ----------------------------------------------------------------------------------------

RENUMBERED = f'''
"""Five rows, a new numbering, five rows of it; say what is done."""
import sys
from pathlib import Path
from tickcollect.segments import FeedPath, OpenFiles, Segments

row = lambda id_, at: b"trade,%d,BTCUSDT,%d,64120.01000000,0.00150000,,,%d,True\\n" % (at + 1, id_, at)
NOON = {DAY} * 86_400_000 + 43_200_000
feed = Segments(Path(sys.argv[1]), FeedPath("binance", "trade", "BTCUSDT"), rotate_size=20_000, pool=OpenFiles(1))
feed.recover()
feed.append(b"".join(row(id_, NOON) for id_ in range(4000, 4005)), range(4000, 4005), {DAY})
print("old", flush=True)
ended = feed.renumber(1, 4004, NOON + 1)
print("renumbered", flush=True)
feed.append(b"".join(row(id_, NOON + 1) for id_ in range(1, 6)), range(1, 6), {DAY})
print("new", flush=True)
for segment in ended + feed.end():
    feed.seal(segment)
'''


def ids_of(path: Path) -> list[int]:
    with zipfile.ZipFile(path) as archive:
        return [int(line.split(b",")[3]) for line in archive.read(archive.namelist()[0]).splitlines()]


@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO"])
@pytest.mark.parametrize("call", ["write", "fsync", "rename", "unlink"])
def test_a_fault_at_a_restart_of_the_numbering_mixes_nothing(
    tmp_path: Path, strace: str, call: str, fault: str
) -> None:
    """Wherever it stops, the next start goes on with the numbering of the newest row, and every row is kept once."""
    for n in range(1, 20):
        root, trace = tmp_path / str(n), tmp_path / f"{n}.trace"
        inject = f"inject={call}:{fault}:when={n}"
        watched = [word for path in sorted(paths_renumbered(root)) for word in ("-P", str(path))]
        traced = [strace, "-f", "-o", str(trace), "-e", f"trace={call}", "-e", inject, *watched]
        command = [*traced, sys.executable, "-B", "-c", RENUMBERED, str(root)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        said = done.stdout.split()
        feed = Segments(root, FeedPath("binance", "trade", "BTCUSDT"), rotate_size=20_000, pool=OpenFiles(1))
        recovered = feed.recover()
        # after a failed sync nobody knows what the disk holds: those rows were reported, and are had again
        reported = re.findall(r"Rows (\d+) to (\d+) may not be on the disk", done.stderr)
        unsafe = {id_ for first, last in reported for id_ in range(int(first), int(last) + 1)}
        if "new" in said and unsafe.isdisjoint(range(1, 6)):
            assert recovered.last_id == 5, (n, said)
        elif "renumbered" in said:
            assert recovered.last_id in range(6), (n, said)
        elif "old" in said:
            assert recovered.last_id in {4004, 0}, (n, said)
        for segment in [*recovered.finished, *feed.end()]:
            feed.seal(segment)
        found = sorted(id_ for path in feed.directory.glob("*.zip") for id_ in ids_of(path))
        assert len(found) == len(set(found))
        assert set(found) >= ({1, 2, 3, 4, 5} if "new" in said else set()) - unsafe
        assert set(found) >= (set(range(4000, 4005)) if "old" in said else set()) - unsafe
        if done.returncode == 0 and trace.read_text().count("INJECTED") == 0:
            assert n > 1, "the call was never made"
            return
    pytest.fail("the life never passed untouched")


def paths_renumbered(root: Path) -> list[Path]:
    """Return every path that `RENUMBERED` may touch."""
    directory, records = root / "binance" / "trade" / "BTCUSDT", root / "binance" / "trade"
    names = [f"BTCUSDT-trade-2026-07-14-{ends}" for ends in ("4000.csv", "1.csv", "4000-4004.csv.zip", "1-5.csv.zip")]
    record = records / ".BTCUSDT.json"
    files = [*(directory / name for name in names), record]
    return [directory, records, *files, *(path.with_name(path.name + ".unconfirmed") for path in files)]
