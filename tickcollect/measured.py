"""What the collector measures and no file of rows holds: latency, time connected, connections that broke.

    writer, collector ──▶ Meter (one a feed) ──look──▶ lines that wait ──write──▶ data/measured/2026-11-20.jsonl
                                                                                       └──▶ read_days ──▶ report

    {"at":"2026-11-20T09:50:00.412Z","event":"measured","feed":"binance/trade/BTCUSDT","since":"2026-11-20T09:40:00Z",
     "seconds":600.4,"connected_s":600.4,"reconnects":0,"rows":81200,"latency_ms":{"11.52":52011,"12.03":29189}}

Rules:

1. A line tells of one feed from `since` on, for `seconds`; it belongs to the UTC hour in which it begins. Lines are cut
   at full ten minutes, so a killed process loses what it measured in ten at most. Lines are added up by readers.
2. Latency is the time of arrival by this machine's clock less the exchange's event time, and so holds the difference
   of the two clocks: it may be negative. It is counted in buckets 3 to 6 % wide, because its five highest binary digits
   are kept; each is named by its middle. Of the messages of one socket read only the first and the last are looked at,
   each for half of them.
3. Only rows that came live count, and each once: neither copies nor rows of history.
4. Measuring never fails and never waits. Lines are written by a thread of the disk; what the disk refuses waits, up to
   a limit, and the reason is in `Measured.refused`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol

import msgspec

from tickcollect.journal import Journal, JournalError
from tickcollect.journal import read as read_journal

FOLDER = "measured"
CUT_EVERY_S = 600
LINES_WAITING = 50_000
BUCKETS_A_LINE = 250
"""So that a line is no longer than a journal's may be; the other buckets are in further lines."""
HOURS = 24
DAY_LENGTH = len("2026-11-20")

SMALLEST_US = 1 << 6
"""Below this, latency counts as none."""
LARGEST_US = 1 << 32
"""What is later than this, 72 minutes, counts as that late."""
_DIGITS_KEPT = 5
_FEWEST_DIGITS, _MOST_DIGITS = SMALLEST_US.bit_length(), LARGEST_US.bit_length() - 1
_MICROSECONDS_FROM = 10**14


class Line(msgspec.Struct, frozen=True):
    """What was measured of one feed in one stretch of time; the journal adds when it was written."""

    feed: str
    since: Annotated[str, msgspec.Meta(pattern=r"^[0-9-]{10}T([01][0-9]|2[0-3])(:[0-5][0-9]){2}Z$")]
    """UTC, to the second."""
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    connected_s: Annotated[float, msgspec.Meta(ge=0)]
    """How long at least one connection carried the feed."""
    reconnects: Annotated[int, msgspec.Meta(ge=0)]
    """Connections that broke; a planned renewal is none."""
    rows: Annotated[int, msgspec.Meta(ge=0)]
    latency_ms: dict[float, int]
    """Rows by latency, each bucket by its middle."""


@dataclass(slots=True)
class Meter:
    """What is measured of one feed since the last line was cut. Used by the event loop only."""

    rows: int = 0
    connected_s: float = 0.0
    reconnects: int = 0
    """Connections that broke; a planned renewal is none."""
    buckets: dict[int, int] = field(default_factory=dict)
    """Rows by latency in microseconds, rounded down (`_bucket`)."""
    looked_s: float = 0.0

    def take(self, received_ns: int, first_event: int | str, last_event: int | str, rows: int) -> None:
        """Count `rows` of one socket read, given its time and the event times `E` of its first and last message.

        Event times are in milliseconds or microseconds, as sent; rows without one are counted and have no latency.
        """
        self.rows += rows
        if not isinstance(first_event, int) or not isinstance(last_event, int):
            return
        in_ms = first_event < _MICROSECONDS_FROM
        bucket = _bucket(received_ns // 1000 - (first_event * 1000 if in_ms else first_event))
        if rows > 1:
            last = _bucket(received_ns // 1000 - (last_event * 1000 if in_ms else last_event))
            self.buckets[last] = self.buckets.get(last, 0) + rows // 2
            rows -= rows // 2
        self.buckets[bucket] = self.buckets.get(bucket, 0) + rows


class Link(Protocol):
    """A connection, as far as it is measured."""

    connected: bool


@dataclass
class Measured:
    """Turns what the meters hold into lines, and writes them below the data directory."""

    data_dir: Path
    feeds: Mapping[str, Meter]
    """The feeds' names and their meters."""
    links: Sequence[tuple[Link, Sequence[Meter]]]
    """Each connection with the meters of the feeds that it carries."""
    time_ns: Callable[[], int]
    refused: str = ""
    """Why lines cannot be written at present; empty while they can."""
    _waiting: deque[Line] = field(default_factory=lambda: deque(maxlen=LINES_WAITING))
    _since_ns: int = 0
    _since_s: float = 0.0
    _looked_s: float = 0.0
    _journal: tuple[str, Journal] | None = None

    def look(self, now_s: float) -> None:
        """Note who is connected, about once a second; `now_s` is a clock that is never set. In the event loop."""
        now_ns = self.time_ns()
        if not self._since_ns:
            self._since_ns, self._since_s, self._looked_s = now_ns, now_s, now_s
        passed_s = now_s - self._looked_s
        self._looked_s = now_s
        for link, meters in self.links:
            for meter in meters if link.connected else ():
                if meter.looked_s != now_s:  # another connection that carries the feed may have counted already
                    meter.looked_s = now_s
                    meter.connected_s += passed_s
        if now_ns // (CUT_EVERY_S * 10**9) != self._since_ns // (CUT_EVERY_S * 10**9):
            self.cut(now_s)

    def cut(self, now_s: float) -> None:
        """End the present lines, which then wait for `write`; also to be called before a stop. In the event loop."""
        if not self._since_ns:
            return
        since = f"{datetime.fromtimestamp(self._since_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}"
        for name, meter in self.feeds.items():
            latency = [(_middle_ms(number), meter.buckets[number]) for number in sorted(meter.buckets)]
            line = Line(
                feed=name,
                since=since,
                seconds=round(now_s - self._since_s, 1),
                connected_s=round(meter.connected_s, 1),
                reconnects=meter.reconnects,
                rows=meter.rows,
                latency_ms=dict(latency[:BUCKETS_A_LINE]),
            )
            self._waiting.append(line)
            for start in range(BUCKETS_A_LINE, len(latency), BUCKETS_A_LINE):
                more = dict(latency[start : start + BUCKETS_A_LINE])
                self._waiting.append(Line(name, since, 0.0, 0.0, 0, 0, more))
            meter.rows, meter.connected_s, meter.reconnects, meter.buckets = 0, 0.0, 0, {}
        self._since_ns, self._since_s, self._looked_s = self.time_ns(), now_s, now_s

    def write(self) -> None:
        """Append the lines that wait. From one thread at a time, not from the event loop."""
        try:
            while self._waiting:
                line = self._waiting[0]
                self._file_of(line.since[:DAY_LENGTH]).append("measured", **msgspec.to_builtins(line, str_keys=True))
                self._waiting.popleft()
        except JournalError as error:
            self.refused = str(error)
        else:
            self.refused = ""

    def close(self) -> None:
        """Write what waits, make it safe from power loss and give the file back."""
        self.write()
        if self._journal is not None:
            try:
                self._journal[1].close()
            except JournalError as error:
                self.refused = str(error)
            self._journal = None

    def _file_of(self, day: str) -> Journal:
        if self._journal is None or self._journal[0] != day:
            if self._journal is not None:
                self._journal[1].close()
            self._journal = day, Journal(_path(self.data_dir, day), self.time_ns)
        return self._journal[1]


def _bucket(latency_us: int) -> int:
    """Return the latency rounded down to its five highest binary digits."""
    digits = latency_us.bit_length()
    if _FEWEST_DIGITS <= digits <= _MOST_DIGITS:
        digits -= _DIGITS_KEPT
        return latency_us >> digits << digits
    if digits < _FEWEST_DIGITS:
        return 0
    return LARGEST_US if latency_us > 0 else -LARGEST_US


def _middle_ms(bucket: int) -> float:
    """Return the latency in the middle of a bucket in milliseconds, to four digits."""
    width = 1 << max(0, bucket.bit_length() - _DIGITS_KEPT)
    return float(f"{(bucket + width / 2) / 1000:.4g}") if bucket else 0.0


def _path(data_dir: Path, day: str) -> Path:
    return data_dir / FOLDER / f"{day}.jsonl"


# --- Reading -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FeedMeasured:
    """What was measured of one feed on one UTC day."""

    rows: int = 0
    seconds: float = 0.0
    """How long it was measured: the collector ran."""
    connected_s: float = 0.0
    reconnects: int = 0
    latency_ms: dict[float, int] = field(default_factory=dict)
    """Rows by latency, each bucket by its middle."""
    connected_by_hour_s: list[float] = field(default_factory=lambda: [0.0] * HOURS)
    connected_until_s: float = 0.0
    """Seconds of the day up to which it is known to have been connected."""

    def latency_at(self, share: float) -> float | None:
        """Return the latency in milliseconds that this share of the rows did not exceed; None without any."""
        left = share * sum(self.latency_ms.values())
        for latency_ms in sorted(self.latency_ms):
            left -= self.latency_ms[latency_ms]
            if left <= 0:
                return latency_ms
        return None


@dataclass(slots=True)
class Readings:
    """What was measured on some days, by day and feed; `damaged` counts the lines that could not be read."""

    feeds: dict[tuple[str, str], FeedMeasured] = field(default_factory=dict)
    damaged: int = 0


def read_days(data_dir: Path, days: Iterable[str]) -> Readings:
    """Add up what was measured on each of `days` ("2026-11-20"). Raises `JournalError` for a file not to be read."""
    found = Readings()
    for day in days:
        reading = read_journal(_path(data_dir, day))
        for entry in reading:
            try:
                line = msgspec.convert(entry.facts, Line, str_keys=True)
            except msgspec.ValidationError:
                found.damaged += 1
            else:
                _add(found.feeds.setdefault((day, line.feed), FeedMeasured()), line)
        found.damaged += reading.damaged
    return found


def _add(found: FeedMeasured, line: Line) -> None:
    hours, minutes, seconds = map(int, line.since[DAY_LENGTH + 1 : -1].split(":"))
    found.rows += line.rows
    found.reconnects += line.reconnects
    found.seconds += line.seconds
    found.connected_s += line.connected_s
    found.connected_by_hour_s[hours] += line.connected_s
    if line.connected_s > line.seconds / 2:
        found.connected_until_s = max(found.connected_until_s, (hours * 60 + minutes) * 60 + seconds + line.seconds)
    for latency_ms, rows in line.latency_ms.items():
        found.latency_ms[latency_ms] = found.latency_ms.get(latency_ms, 0) + rows
