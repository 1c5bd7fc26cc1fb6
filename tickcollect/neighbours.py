"""Rows known to exist beside missing IDs: what an answer of history is held against (`repair`, rule 3).

They are looked for in memory, among what was written lately or is held, and in the feed's files: the file that begins
nearest above the gap, and the one that comes nearest below it. What cannot be read is left out; an answer then has less
to prove itself by, and is believed less.
"""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

from tickcollect.files import UNREADABLE, SegmentName, chunks_of, open_csv
from tickcollect.repair import Beside, KnownRow, known_line
from tickcollect.writer import Feed

ROWS_COMPARED = 3
"""On each side: should history lack one of them, the others still show whose rows it gives."""
NEAR = 256
"""Rows further than this from the gap are not those beside it: files have nearer ones."""


async def beside(feed: Feed, first: int, last: int) -> Beside:
    """Return rows known beside the IDs `first` to `last`; files are read, in a thread, only where memory has none."""
    below, above = feed.sequence.ids_beside(first, last)
    before, behind = _from_memory(feed, below), _from_memory(feed, above)
    is_newest = feed.sequence.next_id is None or last >= feed.sequence.next_id
    if not before or first - before[0].id > NEAR or (not is_newest and (not behind or behind[0].id - last > NEAR)):
        before, behind = await asyncio.to_thread(_with_files, feed, first, last, before, behind)
    all_public = not (feed.has_placeholders and feed.write_not_trades)
    return Beside(before[::-1], behind, all_public=all_public, since_ms=feed.begun_ms)


def _with_files(
    feed: Feed, first: int, last: int, before: list[KnownRow], behind: list[KnownRow]
) -> tuple[list[KnownRow], list[KnownRow]]:
    names = _names(feed)
    before = _nearest([*before, *_rows_below(feed, names, first)], descending=True)
    return before, _nearest([*behind, *_rows_above(feed, names, last)], descending=False)


def _from_memory(feed: Feed, ids: Iterable[int]) -> list[KnownRow]:
    """Return the first trades among rows in memory, as they were formatted."""
    found: list[KnownRow] = []
    for id_ in ids:
        line = feed.sequence.remembered(id_)
        if line is not None and id_ not in feed.not_in_history:
            found.append(known_line(feed.kind, line))
        if len(found) == ROWS_COMPARED:
            break
    return found


def _nearest(rows: Iterable[KnownRow], *, descending: bool) -> list[KnownRow]:
    by_id = {row.id: row for row in rows}
    return [by_id[id_] for id_ in sorted(by_id, reverse=descending)][:ROWS_COMPARED]


def _names(feed: Feed) -> list[tuple[SegmentName, Path]]:
    try:
        return feed.segments.names()
    except OSError:
        return []


def _rows_above(feed: Feed, names: list[tuple[SegmentName, Path]], last: int) -> list[KnownRow]:
    """Return the first rows of the file that begins nearest above `last`."""
    nearest = min((entry for entry in names if entry[0].first_id > last), key=lambda e: e[0].first_id, default=None)
    if nearest is None:
        return []
    lines: list[bytes] = []
    try:
        for some in _lines(nearest[1]):
            lines += some[:ROWS_COMPARED]
            if len(lines) >= ROWS_COMPARED:
                break
    except (*UNREADABLE, OSError):
        return []
    return _known(feed, lines)


def _rows_below(feed: Feed, names: list[tuple[SegmentName, Path]], first: int) -> list[KnownRow]:
    """Return the last rows below `first` of the file that begins nearest below it."""
    nearest = max((entry for entry in names if entry[0].first_id < first), key=lambda e: e[0].first_id, default=None)
    if nearest is None:
        return []
    lines: list[bytes] = []
    try:
        for some in _lines(nearest[1]):
            inside = _id_of(feed, some[-1]) >= first
            lines = (lines + [line for line in some if not inside or _id_of(feed, line) < first])[-ROWS_COMPARED:]
            if inside:
                break
    except (*UNREADABLE, OSError, ValueError, IndexError):
        return []
    return _known(feed, lines)


def _lines(path: Path) -> Iterator[list[bytes]]:
    """Read a CSV's whole lines, many at a time."""
    rest = b""
    with open_csv(path) as source:
        for chunk in chunks_of(source):
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                yield lines


def _id_of(feed: Feed, line: bytes) -> int:
    column = feed.kind.COLUMNS.index(feed.kind.ID_COLUMN)
    return int(line.split(b",", column + 1)[column])


def _known(feed: Feed, lines: Iterable[bytes]) -> list[KnownRow]:
    found = []
    for line in lines:
        try:
            found.append(known_line(feed.kind, line.decode("utf-8", "replace")))
        except ValueError:
            continue
    return found
