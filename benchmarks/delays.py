"""How late rows are, seen from outside: when did the file of a feed first hold them.

Rules:

1. While the subject works, only sizes of files are noted, with the real clock. What they mean is worked out afterwards.
2. A row was there at the first look that found the file long enough for it. Looks are `LOOK_S` apart, and a look that
   came late makes a delay longer, never shorter.
"""

import json
import time
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from subject import LOOK_S, VoidError

STATUS_EVERY_S = 1.0


@dataclass
class Sightings:
    """Sizes of the open segments in `place`, each with the time at which it was first seen."""

    place: Path
    status: Path | None = None
    longest_queue: int = 0
    sizes: dict[str, list[int]] = field(default_factory=dict)
    times_s: dict[str, list[float]] = field(default_factory=dict)

    def watch(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Look until `done`, which is asked rarely; raises `VoidError` if that does not come in time."""
        deadline_s = time.monotonic() + timeout_s
        for looks in count():
            self._look()
            if looks % 50 == 0:
                self._note_queue()
                if done():
                    self._look()
                    return
                if time.monotonic() > deadline_s:
                    raise VoidError(f"what was waited for did not come within {timeout_s:.0f} s")
            time.sleep(LOOK_S)

    def first_seen_s(self, path: Path) -> float:
        """Return when an open segment was first seen."""
        return self.times_s[path.name][0]

    def _look(self) -> None:
        for path in self.place.glob("*.csv"):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            sizes = self.sizes.setdefault(path.name, [])
            if not sizes or size > sizes[-1]:
                sizes.append(size)
                self.times_s.setdefault(path.name, []).append(time.time())

    def _note_queue(self) -> None:
        if self.status is not None and self.status.exists():
            self.longest_queue = max(self.longest_queue, json.loads(self.status.read_bytes())["queue_rows"])


@dataclass(frozen=True)
class Delays:
    """Of each row: when its turn came, and how long after that it was stamped (if it was) and in the file, in ms."""

    sent_s: Sequence[float]
    stamped: Sequence[float]
    visible: Sequence[float]


def delays_ms(path: Path, sightings: Sightings) -> Delays:
    """Compare the rows of an open segment, whose `E` is in microseconds, with what was seen of it."""
    sizes, times_s = sightings.sizes[path.name], sightings.times_s[path.name]
    sent_s: list[float] = []
    stamped: list[float] = []
    visible: list[float] = []
    end = 0
    with path.open("rb") as rows:
        for row in rows:
            end += len(row)
            look = bisect_left(sizes, end)
            if look == len(sizes):
                break  # written after the last look, at the stop
            columns = row.split(b",")
            turn_s = int(columns[1]) / 1e6
            sent_s.append(turn_s)
            visible.append((times_s[look] - turn_s) * 1000)
            if len(columns) > 10:
                stamped.append((int(columns[10]) / 1e9 - turn_s) * 1000)
    return Delays(sent_s, stamped, visible)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` of the ordered values do not exceed."""
    if not ordered:
        raise VoidError("nothing was measured")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def sealed_ids(path: Path) -> tuple[int, int]:
    """Return the first and last ID of a sealed zip, whose own checksum is proved by reading it to the end.

    Raises `VoidError` unless its IDs rise by one from the first that its name tells to the last.
    """
    first_named, last_named = (int(part) for part in path.name.removesuffix(".csv.zip").split("-")[-2:])
    wanted = first_named
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as packed:
        for row in packed:
            if int(row.split(b",", 4)[3]) != wanted:
                raise VoidError(f"{path.name} has {row!r} where ID {wanted} belongs")
            wanted += 1
    if wanted != last_named + 1:
        raise VoidError(f"{path.name} ends with ID {wanted - 1}")
    return first_named, last_named
