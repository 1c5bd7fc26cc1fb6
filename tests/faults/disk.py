"""Faults of the disk (D1 to D6)."""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from .exchange import FIRST_ID
from .scene import Case, Scene, UnmetError, tracing

NOBODY = 65534


def open_file(scene: Scene) -> Path:
    """Return the file to which rows go."""
    return max(scene.feed_dir.glob("*.csv"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))


async def run(*command: str) -> None:
    """Run a command; it has to succeed."""
    process = await asyncio.create_subprocess_exec(*command)
    if await process.wait() != 0:
        raise UnmetError(f"{' '.join(command)} works here")


async def on_small_disk(scene: Scene, size: str) -> None:
    """Move the collection to a file system of its own."""
    await scene.stop()
    content = scene.directory / "before"
    scene.data_dir.rename(content)
    scene.data_dir.mkdir()
    await run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(scene.data_dir))
    shutil.copytree(content, scene.data_dir, dirs_exist_ok=True)
    await scene.start()
    await scene.until_current()


async def off_small_disk(scene: Scene) -> None:
    """Undo `on_small_disk`; what was collected stays."""
    if scene.running is not None:
        await scene.stop()
    kept = scene.directory / "kept"
    shutil.copytree(scene.data_dir, kept)
    await run("umount", "-l", str(scene.data_dir))
    shutil.copytree(kept, scene.data_dir, dirs_exist_ok=True)
    shutil.rmtree(kept)


# --- D1: full --------------------------------------------------------------------------------------------------------


async def full_disk(scene: Scene) -> None:
    """Fill the disk to the last byte, wait until rows are refused, free it again."""
    await on_small_disk(scene, "1m")
    try:
        fill(scene.data_dir / "somebody-elses")
        await scene.until_said("full", within_s=40)
        await asyncio.sleep(3)
        if scene.collector.code is not None:
            raise UnmetError("it waits for space; it has ended")
        (scene.data_dir / "somebody-elses").unlink()
        await scene.until_current()
    finally:
        await off_small_disk(scene)
    await scene.start()


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


async def full_at(scene: Scene, calls: str, times: int) -> None:
    """Refuse some calls on the open file for want of space."""
    async with tracing(scene, open_file(scene), f"inject={calls}:error=ENOSPC:when=1..{times}"):
        await scene.until_said("full|No space", within_s=30)


# --- D2: input/output errors -----------------------------------------------------------------------------------------


async def bad_sectors(scene: Scene, calls: str, when: str, says: str) -> None:
    """Let calls on the open file fail with EIO."""
    async with tracing(scene, open_file(scene), f"inject={calls}:error=EIO:when={when}"):
        await scene.until_said(says, within_s=30)


# --- D3: taken away --------------------------------------------------------------------------------------------------


async def meddle(scene: Scene, how: Callable[[Scene], None]) -> None:
    """Do something to the files while they are written."""
    how(scene)
    await scene.until_said(r"\.csv|directory", within_s=20)


def delete_file(scene: Scene) -> None:
    """Delete the open file."""
    open_file(scene).unlink()


def rename_file(scene: Scene) -> None:
    """Move the open file out of the data."""
    open_file(scene).rename(scene.directory / "moved.csv")


def truncate_file(scene: Scene) -> None:
    """Empty the open file, as a log rotation with copytruncate does."""
    os.truncate(open_file(scene), 0)


def delete_directory(scene: Scene) -> None:
    """Delete the feed's directory with all that is in it."""
    shutil.rmtree(scene.feed_dir)


def move_directory(scene: Scene) -> None:
    """Move the whole data directory out of the way."""
    scene.data_dir.rename(scene.directory / "moved")


async def read_only(scene: Scene) -> None:
    """Remount the disk read-only, and writable again."""
    await on_small_disk(scene, "8m")
    try:
        # A file system with files open for writing cannot be remounted; a read-only view can be laid over it, and then
        # no name in it can be made, renamed or deleted.
        await run("mount", "--bind", str(scene.data_dir), str(scene.data_dir))
        await run("mount", "-o", "remount,bind,ro", str(scene.data_dir))
        await scene.until_said("Read-only", within_s=20)
        await asyncio.sleep(1)
        await run("umount", "-l", str(scene.data_dir))
        await scene.until_current()
    finally:
        await off_small_disk(scene)
    await scene.start()


async def no_permission(scene: Scene) -> None:
    """Take the right to write from a collector that is not root, and give it back."""
    await scene.stop()
    for path in (scene.directory, *scene.directory.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    scene.wrapper = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    await scene.start()
    await scene.until_current()
    scene.feed_dir.chmod(0o500)
    open_file(scene).unlink()
    await scene.until_said("Permission denied|may not", within_s=20)
    scene.feed_dir.chmod(0o755)


async def few_descriptors(scene: Scene) -> None:
    """Allow so few open files that connecting anew may fail for want of one."""
    await scene.stop()
    scene.wrapper = ("prlimit", "--nofile=40:40")
    await scene.start()
    await scene.until_current()


# --- D4: found damaged -----------------------------------------------------------------------------------------------

Damage = Callable[[Path], None]


def torn(path: Path) -> None:
    """Cut the file inside its last line."""
    os.truncate(path, path.stat().st_size - 17)


def zeros(path: Path) -> None:
    """Let the last 300 bytes be zeros, as after a power loss on ext4."""
    content = path.read_bytes()
    path.write_bytes(content[:-300] + b"\0" * 300)


def bad_byte(path: Path) -> None:
    """Change a byte of an ID in the middle."""
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    lines[middle] = lines[middle].replace(b",40", b",4x", 1)
    path.write_bytes(b"".join(lines))


def missing_line(path: Path) -> None:
    """Take out lines in the middle."""
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    path.write_bytes(b"".join(lines[: middle - 1] + lines[middle + 1 :]))


def no_newline(path: Path) -> None:
    """Take away the last newline."""
    os.truncate(path, path.stat().st_size - 1)


def emptied(path: Path) -> None:
    """Empty the file."""
    os.truncate(path, 0)


def crowded(path: Path) -> None:
    """Put things beside it that are nobody's segments."""
    (path.parent / "notes.txt").write_text("")
    (path.parent / "BTCUSDT-trade-2026-13-45-1.csv").write_text("")
    (path.parent / f"ETHUSDT-trade-2026-01-01-{FIRST_ID}.csv").write_text("")


def half_packed(path: Path) -> None:
    """Leave half a packed file under its temporary name."""
    last_id = path.read_text().rpartition("\n")[0].rpartition("\n")[2].split(",")[3]
    (path.parent / f"{path.stem}-{last_id}.csv.zip.unconfirmed").write_bytes(b"PK\3\4" + b"\0" * 50)


async def found_damaged(scene: Scene, damage: Damage) -> None:
    """Kill the collector, damage its file, start it again."""
    await scene.kill()
    path = open_file(scene)
    damage(path)
    await scene.start()
    await scene.until_current()
    for stranger in ("notes.txt", "BTCUSDT-trade-2026-13-45-1.csv", f"ETHUSDT-trade-2026-01-01-{FIRST_ID}.csv"):
        if damage is crowded and not (scene.feed_dir / stranger).exists():
            raise UnmetError(f"{stranger} is not its own and stays")
        (scene.feed_dir / stranger).unlink(missing_ok=True)


# --- D5, D6: cut off in between --------------------------------------------------------------------------------------


async def killed_at(scene: Scene, calls: str) -> None:
    """Kill it at the first, second, ... of the calls that end and pack a file."""
    for number in (1, 2, 3):
        async with tracing(scene, None, f"inject={calls}:signal=SIGKILL:when={number}"):
            code = await scene.collector.ended(30)
        if code != -signal.SIGKILL:
            raise UnmetError(f"the {number}. {calls} comes; code {code}")
        await scene.start()
        await scene.until_current()


async def power_loss(scene: Scene, garbled: bytes) -> None:
    """Kill it and take away all that was written within the last second, or put something else there."""
    path = open_file(scene)
    safe = path.stat().st_size
    await asyncio.sleep(1)
    await scene.kill()
    behind = path.stat().st_size - safe
    os.truncate(path, safe)
    with path.open("ab") as file:
        file.write((garbled * behind)[:behind])
    await scene.start()


_ROLLING = partial(Case, rows_per_s=300.0, settings={"TICKCOLLECT_ROTATE_SIZE": "8000"}, needs=("strace",))

CASES: Sequence[Case] = (
    Case("disk-full", "D1", "the disk is full, later there is space again",
         "told; the reading stops; goes on by itself and fills", full_disk, "disk is full", needs=("root",),
         quick=True),
    Case("disk-full-packing", "D1", "the disk fills while files are ended and packed all the time",
         "no half file stays; collecting comes first; goes on by itself", full_disk, "disk is full", needs=("root",),
         settings={"TICKCOLLECT_ROTATE_SIZE": "8000"}, rows_per_s=200.0),
    Case("no-space-write", "D1", "five writes to the open file find no space", "nothing half is left; goes on",
         partial(full_at, calls="write,pwrite64,writev", times=5), "disk is full", needs=("strace",)),
    Case("io-error-write", "D2", "three writes fail with EIO", "told; no row is lost or twice",
         partial(bad_sectors, calls="write,pwrite64,writev", when="1..3", says="[Ii]nput/output|disk"), "disk|output",
         needs=("strace",)),
    Case("io-error-sync", "D2", "an fdatasync fails with EIO",
         "what it may have lost counts as missing and is fetched again; the file is not trusted any further",
         partial(bad_sectors, calls="fdatasync,fsync", when="1", says="not safe"), "not safe", needs=("strace",),
         quick=True),
    *(Case(name, "D3", what, must, partial(meddle, how=how), tells, quick=quick)
      for name, what, must, how, tells, quick in (
          ("file-deleted", "the open file is deleted", "noticed at once; its rows are fetched again", delete_file,
           "deleted", True),
          ("file-moved", "the open file is moved away", "the same", rename_file, "moved", False),
          ("file-emptied", "the open file is cut to nothing (copytruncate)", "the same", truncate_file, "csv", False),
          ("directory-deleted", "the feed's directory is deleted", "made again; its rows are fetched again",
           delete_directory, "csv|directory", True),
          ("directory-moved", "the data directory is moved away", "the same", move_directory, "csv|directory", False))),
    Case("read-only", "D3", "the disk becomes read-only for a while", "told; waits, goes on, fills", read_only,
         "Read-only", needs=("root",), rows_per_s=200.0, settings={"TICKCOLLECT_ROTATE_SIZE": "8000"}),
    Case("no-permission", "D3", "the right to write is taken from it for a while", "told with the path; goes on",
         no_permission, "Permission denied|may not", needs=("root", "setpriv")),
    Case("few-descriptors", "D3", "only 40 open files are allowed", "works", few_descriptors, needs=("prlimit",)),
    *(Case(f"found-{name}", "D4", f"at the start its file {what}", must, partial(found_damaged, damage=damage), tells,
           quick=name in {"torn", "bad-byte"})
      for name, what, must, damage, tells in (
          ("torn", "ends inside a line", "cut to the last whole line; the rest is fetched", torn,
           "cut [0-9]+ bytes"),
          ("zeros", "ends with zeros", "cut; fetched", zeros,
           "cut [0-9]+ bytes"),
          ("bad-byte", "has a bad byte in the middle",
           "what follows is kept where its IDs prove it; the line is fetched", bad_byte,
           "cut [0-9]+ bytes"),
          ("missing-line", "lacks lines in the middle", "the hole is found and fetched", missing_line,
           "IDs are missing"),
          ("no-newline", "lacks its last newline", "cut; fetched", no_newline,
           "cut [0-9]+ bytes"),
          ("empty", "is empty", "the rows are gone with all that named them", emptied, "it was empty"),
          ("crowded", "has strangers beside it", "they are named and left alone", crowded, "left alone"),
          ("half-packed", "has half a packed one beside it", "the half is thrown away", half_packed,
           "not finished"))),
    _ROLLING("killed-at-rename", "D5", "killed at each of the first renames", "nothing lost, nothing twice",
             partial(killed_at, calls="rename,renameat,renameat2,link,linkat"), "goes on after"),
    _ROLLING("killed-at-unlink", "D5", "killed at each of the first deletions", "the same",
             partial(killed_at, calls="unlink,unlinkat"), "goes on after", quick=True),
    Case("power-loss", "D6", "killed, and the last second's bytes are gone", "fetched again",
         partial(power_loss, garbled=b""), "goes on after", quick=True),
    Case("power-loss-zeros", "D6", "killed, and the last second's bytes are zeros", "cut; fetched again",
         partial(power_loss, garbled=b"\0"), "goes on after"),
)  # fmt: skip
