"""What a start does with the files that it finds: cut, split, finish or undo, and say so.

Rules:

1. What survives in a CSV is told in `salvage`. Bytes cut away go to `data/quarantine/` before they are cut.
2. Rows are copied into complete new files before the old one is cut or deleted; repeating an interrupted recovery gives
   the same result.
3. Of a CSV and its sealed file the CSV is deleted if the sealed file holds the same bytes; otherwise both are kept.
4. Rows that a sealed file or an older CSV of the same day holds are not kept a second time.
5. What is not this feed's is left alone and named.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tickcollect.files import (
    CHUNK,
    LOCK_NAME,
    QUARANTINE,
    READERS,
    TEMPORARY,
    UNREADABLE,
    FeedPath,
    Segment,
    SegmentName,
    chunks_of,
    cut_file,
    digest_of,
    make_directory,
    open_csv,
    private,
    read_back,
    sync_directory,
)
from tickcollect.salvage import Claim, Cut, Findings, Numbering, Stretch, examine, joined, trade_time


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found. `open` goes on to grow; `finished` wait to be sealed.

    `last_id` and `last_time` (as sent) are those of the feed's newest row, None where there is none or its file cannot
    be read. `holes` are IDs (first, last) that damage has taken out of the files. `lines` say in words what was done to
    which file; `foreign` are files that are not this feed's and were left alone. `rows` counts those kept in CSV files.
    """

    open: Segment | None
    finished: list[Segment]
    last_id: int | None
    last_time: int | None
    holes: list[tuple[int, int]]
    lines: list[str]
    foreign: list[Path]
    rows: int
    quarantined_bytes: int


def this_boot() -> tuple[int, int]:
    """Return when the machine was started and the time now, ns since 1970: what `recover` needs to know of it.

    A file last written between the two was written to this kernel. Without /proc, or with a clock that is not set yet,
    no file is.
    """
    with suppress(OSError), Path("/proc/stat").open() as lines:
        for line in lines:
            if line.startswith("btime "):
                return int(line.split()[1]) * 10**9, time.time_ns()
    return 0, 0


class Recovery:
    """One run of `Segments.recover`: what it has found and done so far."""

    def __init__(self, root: Path, feed: FeedPath, numbering: Numbering, this_boot_ns: tuple[int, int]) -> None:
        self._root = root
        self._feed = feed
        self._directory = feed.directory(root)
        self._numbering = numbering
        self._this_boot_ns = this_boot_ns
        self._files: dict[SegmentName, Path] = {}
        self._segments: list[Segment] = []
        self._extra_columns: dict[Path, int] = {}
        self._holes: list[tuple[int, int]] = []
        self._lines: list[str] = []
        self._foreign: list[Path] = []
        self._quarantined_bytes = 0

    def run(self, extra_columns: int) -> Recovered:
        """Bring the files into order; a segment whose rows have other columns is not continued."""
        self._list_files()
        self._remove_temporaries()
        for name in sorted(name for name in self._files if name.open):
            self._recover_csv(name, self._files[name], extra_columns)
        files = [(segment.day, segment.last_id, segment.path) for segment in self._segments]
        files += [(name.day, name.last_id, path) for name, path in self._files.items() if name.last_id is not None]
        _, last_id, newest = max(files, default=(None, None, None))
        # A name tells that its first row existed even if nothing of the file is left: what is missing begins there.
        begun = max((name.first_id for name in self._files if name.open), default=None)
        if begun is not None and (last_id is None or last_id < begun - 1):
            last_id, newest = begun - 1, None
        going_on = next((segment for segment in self._segments if segment.path == newest), None)
        if going_on is not None and self._extra_columns[going_on.path] != extra_columns:
            going_on = None
        return Recovered(
            open=going_on,
            finished=[segment for segment in self._segments if segment is not going_on],
            last_id=last_id,
            last_time=None if newest is None else self._last_time(newest),
            holes=self._holes,
            lines=self._lines,
            foreign=self._foreign,
            rows=sum(segment.rows for segment in self._segments),
            quarantined_bytes=self._quarantined_bytes,
        )

    def _list_files(self) -> None:
        if not self._directory.exists():
            return
        for path in sorted(self._directory.iterdir()):
            name = self._feed.parse(path.name)
            if path.name == LOCK_NAME:
                continue
            if name is None or path.is_symlink() or not path.is_file():
                self._foreign.append(path)
            else:
                self._files[name] = path

    def _remove_temporaries(self) -> None:
        """Undo what was begun: a temporary's rows are still in the file that it was made from, which is cut last."""
        for name in [name for name in self._files if name.temporary]:
            path = self._files.pop(name)
            if name.last_id is None or SegmentName(name.day, name.first_id) in self._files:
                path.unlink()
                self._lines.append(f"{path.name}: removed, it was not finished")
            else:
                self._foreign.append(path)
                self._lines.append(f"{path.name}: left alone, the CSV that it was made from is gone")

    def _recover_csv(self, name: SegmentName, path: Path, extra_columns: int) -> None:
        found = path.stat()
        if found.st_size == 0:
            path.unlink()
            self._lines.append(f"{path.name}: removed, it was empty")
            return
        if self._has_sealed_twin(name, path):
            return
        claim = Claim(self._feed.stream, self._feed.symbol, name.day, name.first_id, self._numbering, extra_columns)
        covered = [(other.first_id, other.last_id) for other in self._segments if other.day == name.day]
        covered += [(n.first_id, n.last_id) for n in self._files if n.last_id is not None and n.day == name.day]
        since, now = self._this_boot_ns
        same_boot = since <= found.st_mtime_ns <= now
        with path.open("rb") as source:
            findings = examine(source, found.st_size, claim, covered=covered, kept_by_kernel=same_boot)
        self._set_aside(path, findings.cuts)
        self._holes += findings.holes
        self._place(path, findings)

    def _has_sealed_twin(self, name: SegmentName, path: Path) -> bool:
        """Finish what a crash between the rename and the deletion in `seal` left."""
        for other, twin in self._files.items():
            if other.last_id is None or (other.day, other.first_id) != (name.day, name.first_id):
                continue
            with path.open("rb") as csv:
                same = read_back(twin, READERS[other.packing]) == digest_of(chunks_of(csv))
            if same:
                path.unlink()
                self._lines.append(f"{path.name}: removed, {twin.name} holds all of it")
            else:
                self._foreign.append(path)
                self._lines.append(
                    f"{path.name}: left alone, {twin.name} begins with the same ID but holds other bytes"
                )
            return True
        return False

    def _set_aside(self, path: Path, cuts: Sequence[Cut]) -> None:
        if not cuts:
            return
        target = quarantine(self._root, self._feed, path, cuts)
        lost = sum(cut.stop - cut.start for cut in cuts)
        reasons = ", ".join(dict.fromkeys(cut.reason for cut in cuts))
        self._quarantined_bytes += lost
        self._lines.append(f"{path.name}: cut {lost} bytes ({reasons}), kept in {target.relative_to(self._root)}")

    def _place(self, path: Path, findings: Findings) -> None:
        """Give each stretch a file of its own; the old file is cut or deleted when all others are complete."""
        stretches = findings.stretches
        targets = [path.with_name(self._feed.open_name(findings.claim.day, rows[0].first_id)) for rows in stretches]
        keep = 0
        if targets[:1] == [path] and _unbroken_from(0, stretches[0]):
            keep = stretches[0][-1].stop
            self._add(path, stretches[0], findings.claim)
        for target, stretch in sorted(zip(targets, stretches, strict=True), key=lambda pair: pair[0] == path):
            if (target != path or not keep) and self._copy_rows(path, target, stretch):
                self._add(target, stretch, findings.claim)
        if keep:
            cut_file(path, keep)
        elif path not in targets:
            path.unlink()
        sync_directory(self._directory)

    def _copy_rows(self, path: Path, target: Path, stretch: Stretch) -> bool:
        """Make `target` of some rows of `path`; False if another file has that name, which keeps it."""
        temporary = target.with_name(target.name + TEMPORARY)
        with path.open("rb") as source, open(temporary, "wb", opener=private) as sink:
            for rows in stretch:
                source.seek(rows.start)
                sink.writelines(chunks_of(source, rows.stop - rows.start))
            sink.flush()
            os.fsync(sink.fileno())
        if target == path or not target.exists():
            temporary.rename(target)
            origin = "joined again" if target == path else f"of {path.name}"
            self._lines.append(f"{target.name}: rows {stretch[0].first_id} to {stretch[-1].last_id} {origin}")
            return True
        if temporary.read_bytes() != target.read_bytes():
            cuts = [Cut(rows.start, rows.stop, "rows that another file holds differently") for rows in stretch]
            self._set_aside(path, joined(cuts))
        temporary.unlink()
        return False

    def _add(self, path: Path, stretch: Stretch, claim: Claim) -> None:
        count, size = sum(rows.count for rows in stretch), sum(rows.stop - rows.start for rows in stretch)
        ends = stretch[0].first_id, stretch[-1].last_id
        self._segments.append(Segment(path, claim.day, *ends, count, size))
        self._extra_columns[path] = claim.extra_columns

    def _last_time(self, path: Path) -> int | None:
        """Return the trade time of a file's last row; None if it cannot be read."""
        before = last = b""
        try:
            with open_csv(path) as source:
                if path.suffix == ".csv":
                    source.seek(max(0, path.stat().st_size - CHUNK))
                for chunk in chunks_of(source):
                    before, last = last, chunk
            return trade_time((before + last).splitlines()[-1], self._feed.stream)
        except (*UNREADABLE, IndexError, ValueError):
            self._lines.append(f"{path.name}: its last row cannot be read; unpack it to see what is damaged")
            return None


def _unbroken_from(start: int, stretch: Stretch) -> bool:
    for rows in stretch:
        if rows.start != start:
            return False
        start = rows.stop
    return True


def quarantine(root: Path, feed: FeedPath, path: Path, cuts: Iterable[Cut]) -> Path:
    """Append bytes of `path` to its file in quarantine, each cut under a line that says where it stood."""
    target = feed.directory(root / QUARANTINE) / path.name
    make_directory(target.parent)
    with path.open("rb") as source, open(target, "ab", opener=private) as sink:
        for cut in cuts:
            source.seek(cut.start)
            sink.write(f"# {path.name}, {cut.stop - cut.start} bytes from {cut.start}: {cut.reason}\n".encode())
            sink.writelines(chunks_of(source, cut.stop - cut.start))
            sink.write(b"\n")
        sink.flush()
        os.fsync(sink.fileno())
    sync_directory(target.parent)
    return target


def move_aside(root: Path, feed: FeedPath, path: Path) -> Path | None:
    """Move a whole file to quarantine, under a name that is not taken; None if that cannot be done."""
    try:
        target = feed.directory(root / QUARANTINE) / f"{path.name}.{path.lstat().st_mtime_ns}"
        make_directory(target.parent)
        for place in range(1, 100):
            if not os.path.lexists(target):
                break
            target = target.with_name(f"{path.name}.{path.lstat().st_mtime_ns}-{place}")
        path.rename(target)
        sync_directory(target.parent)
    except OSError:
        return None
    return target
