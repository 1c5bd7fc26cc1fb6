"""Salvage: which rows of a CSV file prove themselves after a crash, a power loss or a damaged disk.

Reads; changes nothing. Every byte of the file ends in exactly one row or one cut.

What proves a row:

1. It is a whole line of the stream's form (`events.row_pattern`), of the feed's own symbol, and its time lies in the
   UTC day of the file's name.
2. Where IDs rise by one, its neighbours agree with its ID. A stretch of two rows or more proves itself, if its IDs are
   above those before it. A single row must stand where its ID says: directly behind the row before it (or be the one
   that the file name promises), with no more IDs missing than rows can have stood in the bytes cut there. Rows that
   were there before are a copy and are cut. Where two stretches meet with nothing cut between them, bytes are missing
   or were copied, and the halves of two rows may look like one: the row on either side of such a seam is cut as well.
3. Where IDs rise with holes (placeholders that are not written), a row must lie above the row before it. Of two rows
   that contradict each other, the later is cut if it is a copy or contradicts the row before both too; else both are.

Rows that follow each other form a stretch, and become a segment. Where IDs rise by one, a stretch goes on over cut
bytes if the IDs do. Otherwise every cut ends it, because a row may have stood there.

The file carries no checksums, so what cannot be seen is damage that leaves the row's form, day and ID right: other,
fewer or more digits in a price, quantity, order ID or time, or other text in an extra column; and, where IDs have
holes, two rows joined into one over missing bytes.

Speed: a block of lines is checked at once (one pattern, one split, one comparison of lists), about 8 s a GB; line by
line only where that fails.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from operator import lt
from typing import IO, TypeAlias

from tickcollect.events import MS_PER_DAY, STREAMS, row_pattern

BLOCK = 1 << 20
ID_DIGITS = 19
"""IDs are below 2**63."""
SHORTEST_ROW = 32
"""No row of any stream is shorter, which bounds how many can have stood in damaged bytes."""
CHECKED_TAIL = 2 << 20
"""Bytes at the end of a file that are checked row by row in any case. Where the kernel kept every write, only the last
row can be torn, however large the write was; 300 files of 20 MB are then checked in a quarter of the time."""

CONTRADICTED = "an ID that its neighbours contradict"
SEAM = "a row beside missing or copied bytes"


class Numbering(Enum):
    """How the IDs of a feed's rows follow each other inside a segment."""

    BY_ONE = "by one"
    RISING = "rising"
    """Futures `trade`: placeholders take IDs and are not written."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that stand behind each other in the bytes `start` to `stop`, and do not contradict each other."""

    start: int
    stop: int
    first_id: int
    last_id: int
    count: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Bytes that prove no row, and why."""

    start: int
    stop: int
    reason: str


Piece: TypeAlias = Rows | Cut
Stretch: TypeAlias = list[Rows]


@dataclass(frozen=True)
class Claim:
    """What the name of a file says of its rows. `extra_columns` is what they have behind the stream's own."""

    stream: str
    symbol: str
    day: int
    first_id: int
    numbering: Numbering
    extra_columns: int = 0

    @cached_property
    def row(self) -> re.Pattern[bytes]:
        """The form of one row."""
        return row_pattern(self.stream, self.symbol, self.extra_columns)

    @cached_property
    def block(self) -> re.Pattern[bytes]:
        """The form of any number of rows."""
        return re.compile(b"(?:" + self.row.pattern + b")*+")

    @cached_property
    def columns(self) -> tuple[int, int, int]:
        """The positions of ID and time, and the number of commas in a row."""
        kind = STREAMS[self.stream]
        names = kind.COLUMNS
        return names.index(kind.ID_COLUMN), names.index("T"), len(names) - 1 + self.extra_columns

    def ids(self, texts: Sequence[bytes]) -> tuple[int, int] | None:
        """Return first and last of IDs that follow each other; None if they do not."""
        if max(map(len, texts)) > ID_DIGITS:
            return None
        first = int(texts[0])
        by_one = self.numbering is Numbering.BY_ONE
        values = range(first, first + len(texts)) if by_one else list(map(int, texts))
        if list(map(b"%d".__mod__, values)) != list(texts):  # also refuses leading zeros
            return None
        return (first, values[-1]) if by_one or all(map(lt, values, values[1:])) else None

    def on_day(self, times: Iterable[bytes]) -> bool:
        """Tell whether times of 13 (ms) or 16 digits (microseconds) all lie in the claimed UTC day."""
        times = list(times)
        start, stop = b"%d" % (self.day * MS_PER_DAY), b"%d" % ((self.day + 1) * MS_PER_DAY)
        # as text, because a time in microseconds begins with the same time in milliseconds
        return {13, 16}.issuperset(map(len, times)) and start <= min(times) and max(times) < stop


@dataclass(frozen=True, slots=True)
class Findings:
    """What became of a file's bytes. `holes` are the IDs (first, last) that are missing before or between stretches."""

    claim: Claim
    stretches: list[Stretch]
    cuts: list[Cut]
    holes: list[tuple[int, int]]


def examine(
    source: IO[bytes], size: int, claim: Claim, *, covered: Sequence[tuple[int, int]], kept_by_kernel: bool
) -> Findings:
    """Find the rows of a file that prove themselves.

    `covered` are ID ranges of the same day that other files hold; rows in them are cut. `kept_by_kernel`: the machine
    has not been restarted since the file was written, so every completed write is in it and only its end can be torn;
    of a file above `CHECKED_TAIL` the rest is then checked only for its first and last row, its number of rows, and
    NUL bytes. `claim.extra_columns` is replaced by what most of the first rows have.
    """
    claim = _with_columns_found(source, claim)
    head = None
    if kept_by_kernel and size > CHECKED_TAIL and not any(last >= claim.first_id for _, last in covered):
        head = _trusted_head(source, size - CHECKED_TAIL, claim)
    pieces = [*([] if head is None else [head]), *_scan(source, 0 if head is None else head.stop, size, claim)]
    pieces = _PROOFS[claim.numbering](pieces, claim, source)
    pieces = list(_uncovered(source, pieces, claim, covered))
    stretches = _stretches(pieces, claim.numbering)
    cuts = joined(piece for piece in pieces if isinstance(piece, Cut))
    return Findings(claim, stretches, cuts, list(_holes(stretches, claim.first_id, covered)))


def trade_time(line: bytes, stream: str) -> int:
    """Return the trade time of one row, in the unit it was sent."""
    return int(line.split(b",")[STREAMS[stream].COLUMNS.index("T")])


def row_id(line: bytes, stream: str) -> int:
    """Return the ID of one row."""
    kind = STREAMS[stream]
    return int(line.split(b",")[kind.COLUMNS.index(kind.ID_COLUMN)])


# Reading ------------------------------------------------------------------------------------------------------------


def _with_columns_found(source: IO[bytes], claim: Claim) -> Claim:
    """Rows that lost the newline between them look like one row with many extra columns: the majority decides."""
    own = len(STREAMS[claim.stream].COLUMNS)
    source.seek(0)
    lines = source.read(BLOCK >> 4).split(b"\n")[:-1]
    found = Counter(line.count(b",") + 1 - own for line in lines)
    usual = [
        extra
        for extra, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))
        if 0 <= extra < own or extra == claim.extra_columns
    ]
    extra_columns = usual[0] if usual else claim.extra_columns
    return Claim(claim.stream, claim.symbol, claim.day, claim.first_id, claim.numbering, extra_columns)


def _scan(source: IO[bytes], start: int, stop: int, claim: Claim) -> Iterator[Piece]:
    for at, block in _line_blocks(source, start, stop):
        yield from _check_block(at, block, claim)


def _line_blocks(source: IO[bytes], start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Read whole lines, about a `BLOCK` at once; a piece without any newline is given as it is."""
    source.seek(start)
    rest = b""
    while chunk := source.read(min(BLOCK, stop - start - len(rest))):
        data = rest + chunk
        cut = data.rfind(b"\n") + 1 or (len(data) if len(data) >= BLOCK else 0)
        if cut:
            yield start, data[:cut]
        start, rest = start + cut, data[cut:]
    if rest:
        yield start, rest


def _check_block(at: int, block: bytes, claim: Claim) -> Iterator[Piece]:
    if claim.block.fullmatch(block):
        id_column, time_column, commas = claim.columns
        fields = block.split(b",")
        ends = claim.ids(fields[id_column::commas])
        if ends is not None and claim.on_day(fields[time_column::commas]):
            yield Rows(at, at + len(block), *ends, block.count(b"\n"))
            return
    yield from _check_lines(at, block, claim)


def _check_lines(at: int, block: bytes, claim: Claim) -> Iterator[Piece]:
    lines = block.split(b"\n")
    for line in [*(line + b"\n" for line in lines[:-1]), lines[-1]]:
        if line:
            yield _check_line(at, line, claim)
        at += len(line)


def _check_line(at: int, line: bytes, claim: Claim) -> Piece:
    stop = at + len(line)
    if claim.row.fullmatch(line):
        id_column, time_column, _ = claim.columns
        fields = line.split(b",")
        ends = claim.ids(fields[id_column : id_column + 1])
        if ends is not None and claim.on_day(fields[time_column : time_column + 1]):
            return Rows(at, stop, *ends, 1)
        return Cut(at, stop, "an ID that is none" if ends is None else "a time of another day")
    if b"\0" in line:
        return Cut(at, stop, "NUL bytes")
    return Cut(at, stop, "not a row of this feed" if line.endswith(b"\n") else "torn line")


def _singles(source: IO[bytes], rows: Rows, claim: Claim) -> list[Rows]:
    """Return the same rows one by one."""
    source.seek(rows.start)
    pieces = _check_lines(rows.start, source.read(rows.stop - rows.start), claim)
    return [piece for piece in pieces if isinstance(piece, Rows)]


def _trusted_head(source: IO[bytes], at_least: int, claim: Claim) -> Rows | None:
    """Return the rows before the tail as one piece, if their ends, their number and the absence of NUL bytes fit."""
    source.seek(0)
    first = source.readline(BLOCK)
    source.seek(0)
    stop = count = 0
    while stop < at_least:
        chunk = source.read(BLOCK)
        if not chunk or b"\0" in chunk:
            return None
        stop += len(chunk)
        count += chunk.count(b"\n")
    source.seek(stop - BLOCK)
    whole, newline, torn = source.read(BLOCK).rpartition(b"\n")
    last = whole[whole.rfind(b"\n") + 1 :] + newline
    ends = [piece for line in (first, last) if isinstance(piece := _check_line(0, line, claim), Rows)]
    if len(ends) < len((first, last)) or ends[0].first_id != claim.first_id:
        return None
    between = ends[1].last_id - claim.first_id + 1
    fits = between == count if claim.numbering is Numbering.BY_ONE else between >= count
    return Rows(0, stop - len(torn), claim.first_id, ends[1].last_id, count) if fits else None


# Proof --------------------------------------------------------------------------------------------------------------


def _prove_by_one(pieces: Iterable[Piece], claim: Claim, source: IO[bytes]) -> list[Piece]:
    """Rule 2."""
    kept: list[Rows] = []
    cuts: list[Cut] = []
    seam = 0
    for run in _runs(pieces):
        if isinstance(run, Cut):
            cuts.append(run)
            continue
        missing = run[0].first_id - 1 - (kept[-1].last_id if kept else claim.first_id - 1)
        cut_bytes = run[0].start - (kept[-1].stop if kept else 0)
        if sum(rows.count for rows in run) == 1 and not 0 <= missing <= cut_bytes // SHORTEST_ROW:
            cuts.append(Cut(run[0].start, run[0].stop, CONTRADICTED))
            continue
        met, seam = run[0].start == seam and missing != 0, run[-1].stop
        if met and kept and kept[-1].stop == run[0].start:
            kept[-1:], cut = _without_last(source, kept[-1])
            cuts.append(cut)
        if met:
            run[:1], cut = _without_first(source, run[0])
            cuts.append(cut)
        for piece in _above(run, kept[-1].last_id if kept else claim.first_id - 1, source, claim):
            cuts.append(piece) if isinstance(piece, Cut) else kept.append(piece)
    return sorted([*kept, *cuts], key=_start)


def _start(piece: Piece) -> int:
    return piece.start


def _runs(pieces: Iterable[Piece]) -> Iterator[list[Rows] | Cut]:
    """Join rows whose IDs continue each other with nothing cut between them."""
    run: list[Rows] = []
    for piece in pieces:
        if isinstance(piece, Rows) and run and piece.first_id == run[-1].last_id + 1:
            run.append(piece)
            continue
        if run:
            yield run
        run = [piece] if isinstance(piece, Rows) else []
        if isinstance(piece, Cut):
            yield piece
    if run:
        yield run


def _above(run: Iterable[Rows], last: int, source: IO[bytes], claim: Claim) -> Iterator[Piece]:
    """Cut the rows of a run that are not above `last`."""
    for rows in run:
        if rows.first_id > last:
            yield rows
        elif rows.last_id <= last:
            yield Cut(rows.start, rows.stop, "IDs that came before")
        else:
            yield from _above(_singles(source, rows, claim), last, source, claim)


def _without_last(source: IO[bytes], rows: Rows) -> tuple[list[Rows], Cut]:
    start = max(rows.start, rows.stop - BLOCK)
    source.seek(start)
    stop = start + source.read(rows.stop - start).rfind(b"\n", 0, -1) + 1
    rest = [Rows(rows.start, stop, rows.first_id, rows.last_id - 1, rows.count - 1)] if rows.count > 1 else []
    return rest, Cut(stop, rows.stop, SEAM)


def _without_first(source: IO[bytes], rows: Rows) -> tuple[list[Rows], Cut]:
    source.seek(rows.start)
    start = rows.start + len(source.readline())
    rest = [Rows(start, rows.stop, rows.first_id + 1, rows.last_id, rows.count - 1)] if rows.count > 1 else []
    return rest, Cut(rows.start, start, SEAM)


def _prove_rising(pieces: Iterable[Piece], claim: Claim, source: IO[bytes]) -> list[Piece]:
    """Rule 3."""
    kept: list[Rows] = []
    cuts: list[Cut] = []
    todo = deque(pieces)
    while todo:
        piece = todo.popleft()
        if isinstance(piece, Cut):
            cuts.append(piece)
        elif _rises(piece.first_id, kept, claim) and (kept or cuts or piece.first_id == claim.first_id):
            kept.append(piece)
        elif piece.count > 1:
            todo.extendleft(reversed(_singles(source, piece, claim)))
        else:
            cuts.append(Cut(piece.start, piece.stop, CONTRADICTED))
            if not kept or piece.first_id == kept[-1].last_id:
                continue
            kept[-1:] = _singles(source, kept[-1], claim)
            if piece.first_id > (kept[-2].last_id if len(kept) > 1 else claim.first_id):
                other = kept.pop()
                cuts.append(Cut(other.start, other.stop, CONTRADICTED))
    return sorted([*kept, *cuts], key=_start)


def _rises(first_id: int, kept: list[Rows], claim: Claim) -> bool:
    return first_id > kept[-1].last_id if kept else first_id >= claim.first_id


_PROOFS = {Numbering.BY_ONE: _prove_by_one, Numbering.RISING: _prove_rising}


# Outcome ------------------------------------------------------------------------------------------------------------


def _uncovered(
    source: IO[bytes], pieces: Iterable[Piece], claim: Claim, covered: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    """Cut the rows that other files hold."""
    for piece in pieces:
        overlaps = (
            []
            if isinstance(piece, Cut)
            else [(first, last) for first, last in covered if first <= piece.last_id and piece.first_id <= last]
        )
        if isinstance(piece, Cut) or not overlaps:
            yield piece
        elif any(first <= piece.first_id and piece.last_id <= last for first, last in overlaps):
            yield Cut(piece.start, piece.stop, "rows that another file holds")
        else:
            yield from _uncovered(source, _singles(source, piece, claim), claim, overlaps)


def _stretches(pieces: Iterable[Piece], numbering: Numbering) -> list[Stretch]:
    stretches: list[Stretch] = []
    unbroken = False
    for piece in pieces:
        if isinstance(piece, Cut):
            unbroken = unbroken and numbering is Numbering.BY_ONE
            continue
        if numbering is Numbering.BY_ONE:
            unbroken = bool(stretches) and piece.first_id == stretches[-1][-1].last_id + 1
        if unbroken:
            stretches[-1].append(piece)
        else:
            stretches.append([piece])
        unbroken = True
    return stretches


def joined(cuts: Iterable[Cut]) -> list[Cut]:
    """Join cuts of one reason that follow each other."""
    result: list[Cut] = []
    for cut in cuts:
        if result and (result[-1].stop, result[-1].reason) == (cut.start, cut.reason):
            result[-1] = Cut(result[-1].start, cut.stop, cut.reason)
        else:
            result.append(cut)
    return result


def _holes(stretches: list[Stretch], first_id: int, covered: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for stretch in stretches:
        for first, last in sorted(covered):
            if first <= first_id <= last:
                first_id = last + 1
            elif first_id < first < stretch[0].first_id:
                yield first_id, first - 1
                first_id = last + 1
        if first_id < stretch[0].first_id:
            yield first_id, stretch[0].first_id - 1
        first_id = stretch[-1].last_id + 1
