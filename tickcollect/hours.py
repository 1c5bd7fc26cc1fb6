"""Rows per hour: when a feed's trades of one UTC day happened, counted while its CSV passes by anyway.

Rules:

1. A row's hour is that of its trade time `T`, the ninth column in every stream, in milliseconds or microseconds.
2. Every row with a readable time counts once. The others count nowhere, so fewer counted than rows tells of damage.
3. Trade times rise, but for neighbours out of order by milliseconds. So a stretch of rows whose first and last lie in
   one hour is counted for that hour as a whole, without reading what lies between; any other stretch is halved down to
   `CLOSELY` bytes, which are read row by row. Where times rise, the count is exact. Where they do not, a row inside a
   longer stretch counts for the hour of the stretch's ends.

Pure: bytes in, numbers out.
"""

HOURS = 24
CLOSELY = 2048
"""Bytes below which each row is looked at: about 20 rows."""
LONGEST_START = 1024
"""Bytes of a row within which its time stands; a row cut between two chunks is remembered so far."""

_TIME_COLUMN = 8
_MS_DIGITS = 13
"""A time's first digits are milliseconds in either unit, from the year 2001 to 2286."""
_MS_PER_HOUR = 3_600_000


class HourCount:
    """Counts the rows of one CSV; `hours` holds the 24 numbers as of the last whole row."""

    def __init__(self) -> None:
        self.hours = [0] * HOURS
        self._torn = b""

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the CSV, cut wherever."""
        start = chunk.find(b"\n") + 1
        if not start:
            self._torn = (self._torn + chunk)[:LONGEST_START]
            return
        if self._torn:
            self._count_row(_hour(self._torn + chunk[:start], 0))
        else:
            start = 0
        stop = chunk.rfind(b"\n") + 1
        self._count(chunk, start, stop)
        self._torn = chunk[stop : stop + LONGEST_START]

    def _count(self, data: bytes, start: int, stop: int) -> None:
        """Count the whole rows of `data` from `start` to `stop` (rule 3)."""
        stretches = [(start, stop)] if start < stop else []
        while stretches:
            start, stop = stretches.pop()
            last = data.rfind(b"\n", start, stop - 1) + 1 or start
            hour = _hour(data, start)
            if hour is not None and hour == _hour(data, last):
                self.hours[hour] += data.count(b"\n", start, stop)
                continue
            middle = data.rfind(b"\n", start, (start + stop) // 2) + 1
            if stop - start > CLOSELY and middle > start:
                stretches += [(start, middle), (middle, stop)]
                continue
            while start < stop:
                self._count_row(_hour(data, start))
                start = data.index(b"\n", start) + 1

    def _count_row(self, hour: int | None) -> None:
        if hour is not None:
            self.hours[hour] += 1


def _hour(data: bytes, start: int) -> int | None:
    """Return the UTC hour of the row that begins at `start`; None if it holds no time."""
    columns = data[start : start + LONGEST_START].split(b",", _TIME_COLUMN + 1)
    time = columns[_TIME_COLUMN][:_MS_DIGITS] if len(columns) > _TIME_COLUMN + 1 else b""
    return int(time) // _MS_PER_HOUR % HOURS if len(time) == _MS_DIGITS and time.isdigit() else None
