"""What a start does with the files that it finds: cut, split, finish or undo, and say so.

Rules:

1. What survives in a CSV is told in `salvage`. Bytes cut away go to `data/quarantine/` before they are cut.
2. Rows are copied into complete new files before the old one is cut or deleted; repeating an interrupted recovery gives
   the same result.
3. Of a CSV and its sealed file the CSV is deleted if the sealed file holds the same bytes; otherwise both are kept.
4. Rows that a sealed file or an older CSV of the same day and numbering holds are not kept a second time. Where IDs
   have holes, a name does not tell what is in between: there the file is read, if a CSV begins inside its name.
5. What is not this feed's is left alone and named.
6. The newest row is the one with the highest ID of the present numbering, whatever day its file is of: one trade with a
   wrong time makes a file that is dated ahead. Where the numbering began anew is on record (`feed_record`). Where no
   record is left, and IDs rise by one, a file tells it: rows that were all traded after the highest ID was, and that
   do not continue rows traded before. Where IDs have holes and no record is left, the highest ID counts.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tickcollect.feed_record import RESTARTS_KEPT, Record, Restart, read_record, record_path, write_record
from tickcollect.files import (
    CHUNK,
    LOCK_NAME,
    QUARANTINE,
    READERS,
    TEMPORARY,
    UNREADABLE,
    Compression,
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
from tickcollect.salvage import Claim, Cut, Findings, Numbering, Stretch, examine, joined, row_id, trade_time

NS_PER_DAY = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found. `open` goes on to grow; `finished` wait to be sealed.

    `last_id` and `last_time` (as sent) are those of the feed's newest row, None where there is none or its file cannot
    be read. Both are of the present numbering, which `restart` began; None where none is known. `holes` are IDs (first,
    last) that damage has taken out of the files. `lines` say in words what was done to which file; `foreign` are files
    that are not this feed's and were left alone. `rows` counts those kept in CSV files.
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
    record: Record
    current: tuple[tuple[int, int], ...] = ()
    """First and last ID of the segments in CSV files that are of the present numbering."""

    @property
    def restart(self) -> Restart | None:
        """Where the present numbering began; None if the feed has had only one, as far as is known."""
        return self.record.restarts[-1] if self.record.restarts else None


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

    def __init__(
        self,
        root: Path,
        feed: FeedPath,
        numbering: Numbering,
        extra_columns: tuple[str, ...],
        this_boot_ns: tuple[int, int],
    ) -> None:
        self._root = root
        self._feed = feed
        self._directory = feed.directory(root)
        self._record_path = record_path(root, feed)
        self._numbering = numbering
        self._extra_columns = extra_columns
        self._this_boot_ns = this_boot_ns
        self._record = self._kept_record = Record()
        self._first_times = FirstTimes(self._directory, feed)
        self._files: dict[SegmentName, Path] = {}
        self._segments: list[Segment] = []
        self._numbering_of: dict[Path, int] = {}
        self._counted_columns: dict[Path, int] = {}
        self._holes: list[tuple[int, int]] = []
        self._lines: list[str] = []
        self._foreign: list[Path] = []
        self._quarantined_bytes = 0

    def run(self) -> Recovered:
        """Bring the files into order; a segment whose rows have other columns is not continued."""
        self._list_files()
        self._remove_temporaries()
        self._read_record()
        for name in sorted(name for name in self._files if name.open):
            self._recover_csv(name, self._files[name])
        last_id, newest = self._newest()
        going_on = next((segment for segment in self._segments if segment.path == newest), None)
        if going_on is not None and not self._may_go_on(going_on):
            going_on = None
        self._keep_record()
        return Recovered(
            open=going_on,
            finished=[segment for segment in self._segments if segment is not going_on],
            last_id=last_id,
            last_time=self._newest_time(newest),
            holes=self._holes,
            lines=self._lines,
            foreign=self._foreign,
            rows=sum(segment.rows for segment in self._segments),
            quarantined_bytes=self._quarantined_bytes,
            record=self._record,
            current=tuple((segment.first_id, segment.last_id) for segment in self._current_segments()),
        )

    # The record

    def _read_record(self) -> None:
        try:
            found = read_record(self._record_path)
        except ValueError as error:
            found = None
            self._lines.append(
                f"{self._record_path}: it is damaged ({error}); the files themselves tell its numberings"
            )
        self._record = self._kept_record = found or Record()
        if found is None and self._numbering is Numbering.BY_ONE:
            restart = self._unrecorded_restart()
            if restart is not None:
                self._record = Record((restart,))
                self._lines.append(
                    f"its rows from ID {restart.first_id} on were traded after ID {restart.last_id}, the highest, and "
                    "continue nothing: they are taken for those of a new numbering"
                )

    def _keep_record(self) -> None:
        """Note what the next start must know, before a row is written that depends on it."""
        noted = self._record.columns is not None or self._extra_columns
        earlier = {
            segment.path.name: segment.extra_columns
            for segment in self._segments
            if segment.extra_columns != self._extra_columns
        }
        columns = (self._extra_columns, earlier) if noted else (None, {})
        record = Record(self._record.restarts[-RESTARTS_KEPT:], *columns)
        if record != self._kept_record:
            write_record(self._record_path, record)
        self._record = record

    def _names_of(self, path: Path, count: int) -> tuple[str, ...] | None:
        """Return the names of a CSV's extra columns, of which its rows have `count`; None if they are not known."""
        names = self._record.columns_of(path.name)
        if names is not None and len(names) == count:
            return names
        return None if count else ()

    def _may_go_on(self, segment: Segment) -> bool:
        if segment.extra_columns is None:  # begun before the names were kept
            return self._counted_columns[segment.path] == len(self._extra_columns)
        return segment.extra_columns == self._extra_columns

    # Which numbering, which row is the newest

    def _is_current(self, path: Path, name: SegmentName) -> bool:
        return self._place_of(path, name) == len(self._record.restarts)

    def _place_of(self, path: Path, name: SegmentName) -> int:
        """Return which numbering a file is of, counted from 0; one that was split keeps that of the whole."""
        if path not in self._numbering_of:
            self._numbering_of[path] = self._record.numbering_of(name, self._first_times)
        return self._numbering_of[path]

    def _newest(self) -> tuple[int | None, Path | None]:
        """Return the highest ID of the present numbering, and its file (rule 6)."""
        current = {name: path for name, path in self._files.items() if self._is_current(path, name)}
        files = [(name.last_id, path) for name, path in current.items() if name.last_id is not None]
        files += [(segment.last_id, segment.path) for segment in self._current_segments()]
        last_id, newest = max(files, default=(None, None))
        # A name tells that its first row existed even if nothing of the file is left: what is missing begins there.
        begun = [name.first_id for name in current if name.open]
        begun += [restart.first_id for restart in self._record.restarts[-1:]]
        if begun and (last_id is None or last_id < max(begun) - 1):
            return max(begun) - 1, None
        return last_id, newest

    def _current_segments(self) -> list[Segment]:
        current = len(self._record.restarts)
        return [segment for segment in self._segments if self._numbering_of[segment.path] == current]

    def _newest_time(self, newest: Path | None) -> int | None:
        if newest is not None:
            return self._last_time(newest)
        return self._record.restarts[-1].time if self._record.restarts else None

    def _unrecorded_restart(self) -> Restart | None:
        """Find a new numbering that is not on record (rule 6), where a file is newer than the highest ID."""
        last_ids = {name: self._last_id(name) for name in self._files}
        ends = {last_id: name for name, last_id in last_ids.items() if last_id is not None}
        if len(ends) <= 1:
            return None
        highest = ends[max(ends)]
        latest = max(ends.values(), key=lambda name: (not self._is_ahead(name), name.day, last_ids[name] or 0))
        others = {name for name in ends.values() if name.open} | {latest}
        times = {name: self._last_time(self._files[name]) or 0 for name in others if name != highest}
        if not times:
            return None
        newest, highest_time = max(times, key=times.__getitem__), self._last_time(self._files[highest]) or 0
        begin = newest
        while (before := ends.get(begin.first_id - 1)) is not None:
            begin = before
        begin_time, last_id = self._first_times(begin) or 0, last_ids[newest] or 0
        is_continued = any(name.first_id == last_id + 1 for name in self._files)
        if is_continued or begin_time <= highest_time or last_id == begin.first_id:
            return None
        restart = Restart(begin.first_id, max(ends), begin_time)
        later = tuple((name.day, name.first_id) for name in self._files if name.day > restart.day and name != newest)
        return replace(restart, later=later)

    def _is_ahead(self, name: SegmentName) -> bool:
        """Tell whether a file is dated more than a day ahead of this machine's clock."""
        now_ns = self._this_boot_ns[1] or time.time_ns()
        return name.day > now_ns // NS_PER_DAY + 1

    def _last_id(self, name: SegmentName) -> int | None:
        if name.last_id is not None:
            return name.last_id
        try:
            return row_id(self._last_line(self._files[name]), self._feed.stream)
        except (IndexError, ValueError):
            return None

    # The files

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

    def _recover_csv(self, name: SegmentName, path: Path) -> None:
        found = path.stat()
        if found.st_size == 0:
            path.unlink()
            self._lines.append(f"{path.name}: removed, it was empty")
            return
        if self._has_sealed_twin(name, path):
            return
        columns = self._record.columns_of(path.name)
        count = len(self._extra_columns if columns is None else columns)
        claim = Claim(self._feed.stream, self._feed.symbol, name.day, name.first_id, self._numbering, count)
        covered = self._covered(name, path)
        since, now = self._this_boot_ns
        same_boot = since <= found.st_mtime_ns <= now
        with path.open("rb") as source:
            findings = examine(source, found.st_size, claim, covered=covered, kept_by_kernel=same_boot)
        self._set_aside(path, findings.cuts)
        self._holes += findings.holes
        self._place(path, findings)

    def _covered(self, name: SegmentName, path: Path) -> list[tuple[int, int]]:
        """Return the IDs that other files of its day and numbering hold."""
        place = self._place_of(path, name)
        others = [
            (other.first_id, other.last_id, other.path)
            for other in self._segments
            if other.day == name.day and self._numbering_of[other.path] == place
        ]
        for other, twin in self._files.items():
            if other.last_id is not None and other.day == name.day and self._place_of(twin, other) == place:
                others.append((other.first_id, other.last_id, twin))
        covered = []
        for first, last, file in others:
            inside = self._numbering is Numbering.RISING and first < name.first_id <= last
            covered += self._held_in(file, first, last) if inside else [(first, last)]
        return covered

    def _held_in(self, path: Path, first: int, last: int) -> list[tuple[int, int]]:
        """Return the IDs in a file that passes over some: a row that came late has a file inside its name."""
        spans: list[tuple[int, int]] = []
        rest = b""
        try:
            with open_csv(path) as source:
                for chunk in chunks_of(source):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for id_ in (row_id(line, self._feed.stream) for line in lines):
                        if spans and id_ == spans[-1][1] + 1:
                            spans[-1] = spans[-1][0], id_
                        else:
                            spans.append((id_, id_))
        except (*UNREADABLE, IndexError, ValueError):
            return [(first, last)]
        return spans

    def _has_sealed_twin(self, name: SegmentName, path: Path) -> bool:
        """Finish what a crash between the rename and the deletion in `seal` left."""
        for other, twin in self._files.items():
            if other.last_id is None or (other.day, other.first_id) != (name.day, name.first_id):
                continue
            if self._place_of(twin, other) != self._place_of(path, name):
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
            self._add(path, path, stretches[0], findings.claim)
        for target, stretch in sorted(zip(targets, stretches, strict=True), key=lambda pair: pair[0] == path):
            if (target != path or not keep) and self._copy_rows(path, target, stretch):
                self._add(target, path, stretch, findings.claim)
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

    def _add(self, path: Path, origin: Path, stretch: Stretch, claim: Claim) -> None:
        count, size = sum(rows.count for rows in stretch), sum(rows.stop - rows.start for rows in stretch)
        ends = stretch[0].first_id, stretch[-1].last_id
        names = self._names_of(origin, claim.extra_columns)
        self._segments.append(Segment(path, claim.day, *ends, count, size, names))
        self._counted_columns[path] = claim.extra_columns
        self._numbering_of[path] = self._numbering_of[origin]

    def _last_time(self, path: Path) -> int | None:
        """Return the trade time of a file's last row; None if it cannot be read."""
        try:
            return trade_time(self._last_line(path), self._feed.stream)
        except (*UNREADABLE, IndexError, ValueError):
            self._lines.append(f"{path.name}: its last row cannot be read; unpack it to see what is damaged")
            return None

    def _last_line(self, path: Path) -> bytes:
        """Return the last whole line. Raises one of `UNREADABLE`, `IndexError` if there is none."""
        before = last = b""
        with open_csv(path) as source:
            if path.suffix == ".csv":
                source.seek(max(0, path.stat().st_size - CHUNK))
            for chunk in chunks_of(source):
                before, last = last, chunk
        return (before + last).rpartition(b"\n")[0].splitlines()[-1]


class FirstTimes:
    """The trade times of files' first rows, each read once; None for one that cannot be read."""

    def __init__(self, directory: Path, feed: FeedPath) -> None:
        self._directory = directory
        self._feed = feed
        self._known: dict[SegmentName, int | None] = {}

    def __call__(self, name: SegmentName) -> int | None:
        """Return the time as sent."""
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def _read(self, name: SegmentName) -> int | None:
        try:
            with open_csv(self._directory / self._feed.name_of(name)) as source:
                return trade_time(source.readline(CHUNK), self._feed.stream)
        except (FileNotFoundError, *UNREADABLE, IndexError, ValueError):
            return None


def sealed_spans(directory: Path, feed: FeedPath, record: Record) -> list[tuple[int, int]]:
    """Return first and last ID of each sealed file of the present numbering. Raises `OSError`."""
    names = [name for path in directory.iterdir() if (name := feed.parse(path.name)) is not None and name.sealed]
    times = FirstTimes(directory, feed)
    current = len(record.restarts)
    return [
        (name.first_id, name.last_id)
        for name in names
        if name.last_id is not None and record.numbering_of(name, times) == current
    ]


def is_current(root: Path, feed: FeedPath, name: SegmentName) -> bool:
    """Tell whether a file is of the feed's present numbering; one whose rows cannot be read is, if its day allows."""
    try:
        record = read_record(record_path(root, feed)) or Record()
    except ValueError:
        record = Record()
    return record.numbering_of(name, FirstTimes(feed.directory(root), feed)) == len(record.restarts)


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


def divide(feed: FeedPath, segment: Segment, compression: Compression) -> list[Segment]:
    """Divide an ended segment in two whose names are free; return nothing where its last rows cannot be told apart so.

    If it is broken off, both files hold the last rows; the next start keeps them once (rule 4). Raises `OSError`.
    """
    with segment.path.open("rb") as csv:
        start = csv.seek(max(0, segment.size - CHUNK))
        lines = csv.read(segment.size - start).splitlines(keepends=True)[1 if start else 0 :]
    at, ids = segment.size, [row_id(line, feed.stream) for line in lines]
    for place in range(len(lines) - 1, 0, -1):
        at, count = at - len(lines[place]), len(lines) - place
        begin = segment.path.with_name(feed.open_name(segment.day, ids[place]))
        parts = [
            replace(segment, last_id=ids[place - 1], rows=segment.rows - count, size=at),
            replace(segment, path=begin, first_id=ids[place], rows=count, size=segment.size - at),
        ]
        names = [feed.sealed_name(part.day, part.first_id, part.last_id, compression) for part in parts]
        if begin.exists() or any(begin.with_name(name).exists() for name in names):
            continue
        temporary = begin.with_name(begin.name + TEMPORARY)
        with open(temporary, "wb", opener=private) as sink:
            sink.writelines(lines[place:])
            sink.flush()
            os.fsync(sink.fileno())
        temporary.rename(begin)
        sync_directory(begin.parent)
        cut_file(segment.path, at)
        return parts
    return []


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
