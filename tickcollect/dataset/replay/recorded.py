"""Recorded files as a market: raw recordings and our own segments, by time, in bounded memory.

The rules:

* A raw recording is one message a line: after its receive time (``<ns> <message>``, or cryptofeed's
  ``<seconds>: <message>``) or without (then the message's own ``E`` or ``T`` gives the spacing). Plain, ``.gz`` or
  ``.zst``. A message is combined (``{"stream":...,"data":...}``) or raw.
* A message is passed on byte for byte, whatever it contains: what it belongs to is found, what it says is not judged.
  A line that belongs to no stream (a REST snapshot, a blank line, a comment of the recorder) is skipped and counted.
* A segment is CSV in the order of our columns; each row becomes the message the exchange would have sent. A row from
  history has no event time and gets its trade time.
* Files of one exchange play as one timeline, merged by time; a file is opened when its time has come, so that neither
  the number nor the size of the files costs memory.
* History (for REST) is what has been played so far, kept in a temporary database on disk.
"""

import gzip
import heapq
import io
import re
import sqlite3
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import msgspec
import zstandard

from tickcollect.dataset.replay.endpoints import Wanted
from tickcollect.dataset.replay.venue import (
    VENUES,
    Aggregate,
    Listing,
    Message,
    Trade,
    aggregate_data,
    message,
    trade_data,
)

_NS_PER_MS = 1_000_000
_MICROSECONDS_FROM = 10**14  # a time above this is in microseconds
_HISTORY_BATCH = 2_000  # rows kept in memory before they go to the database
_QUOTES = ("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "USD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "JPY")


class RecordingError(Exception):
    """A file that cannot be replayed: which, why, and what to do."""


class NoRecordingError(RecordingError):
    """A file that can be read, but holds no message."""


# Opening


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_zstd(path: Path) -> IO[bytes]:
    packed = path.open("rb")
    reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True, closefd=True)
    return io.BufferedReader(reader)


_OPENERS: Mapping[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: io.BufferedReader(gzip.GzipFile(path)),
    ".zst": _open_zstd,
}


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[bytes]]:
    """Open the lines of a file, without their ends, whatever it is packed in."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(_only_member(path, archive)) as member:
                yield _stripped(member)
        else:
            with _OPENERS.get(path.suffix, _open_plain)(path) as opened:
                yield _stripped(opened)
    except (OSError, EOFError, zipfile.BadZipFile, zstandard.ZstdError) as error:
        raise RecordingError(f"{path}: cannot be read ({error}). Check that the file is whole.") from error


def _only_member(path: Path, archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    if len(names) != 1:
        raise RecordingError(f"{path}: holds {len(names)} files, one was expected. Unpack it and name the files.")
    return names[0]


def _stripped(opened: Iterable[bytes]) -> Iterator[bytes]:
    return (line.rstrip(b"\r\n") for line in opened)


# Raw recordings


_HEAD = re.compile(rb"(\d{9,19})(\.\d+)?:? ")
_STREAM_FIRST = re.compile(rb'\{\s*"stream"\s*:\s*"([^"\\]+)"\s*,\s*"data"\s*:\s*')
_ANY_TIME = re.compile(rb'"[ET]"\s*:\s*(\d{13,16})')
_STREAM_TYPES = {"depthUpdate": "depth", "24hrTicker": "ticker", "24hrMiniTicker": "miniTicker"}


class _Wrapper(msgspec.Struct):
    stream: str
    data: msgspec.Raw


class _Bare(msgspec.Struct):
    event: str = msgspec.field(name="e")
    symbol: str = msgspec.field(name="s")


_decode_wrapper = msgspec.json.Decoder(_Wrapper).decode
_decode_bare = msgspec.json.Decoder(_Bare).decode


def _parse_line(line: bytes, before_ns: int) -> Message | None:
    """Return the message of one line, or None where it belongs to no stream; without any time it is at `before_ns`."""
    at_ns = 0
    head = _HEAD.match(line)
    if head:
        at_ns = _receive_ns(head)
        line = line[head.end() :]
    if not line.startswith(b"{"):
        return None
    found = _STREAM_FIRST.match(line)
    if found and line.endswith(b"}"):
        parsed = Message(at_ns, found[1].decode(errors="replace"), line, line[found.end() : -1])
    else:
        parsed_or_none = _parse_unusual(line, at_ns)
        if parsed_or_none is None:
            return None
        parsed = parsed_or_none
    return parsed if at_ns else parsed._replace(at_ns=_own_time_ns(parsed.data) or before_ns)


def _receive_ns(head: re.Match[bytes]) -> int:
    """Return a receive time in ns. Its digits tell its unit: 10 are seconds, 13 ms, 16 microseconds, 19 ns."""
    whole, fraction = head[1].ljust(19, b"0"), (head[2] or b".")[1:10].ljust(9, b"0")
    return int(whole) + int(fraction)


def _parse_unusual(line: bytes, at_ns: int) -> Message | None:
    """Read a wrapper with its keys in another order, or a raw message that names its stream by event and symbol."""
    try:
        wrapper = _decode_wrapper(line)
    except msgspec.MsgspecError:
        try:
            bare = _decode_bare(line)
        except msgspec.MsgspecError:
            return None
        stream = f"{bare.symbol.lower()}@{_STREAM_TYPES.get(bare.event, bare.event)}"
        return message(at_ns, stream, line)
    return Message(at_ns, wrapper.stream, line, bytes(wrapper.data))


def _own_time_ns(data: bytes) -> int:
    found = _ANY_TIME.search(data)
    return _ns(int(found[1])) if found else 0


def _ns(time: int) -> int:
    return time * 1000 if time >= _MICROSECONDS_FROM else time * _NS_PER_MS


# What tells the markets apart, most telling first. Only the first 600 bytes of a message are looked at.
_MARKS: Sequence[tuple[re.Pattern[bytes], str]] = (
    (re.compile(rb'"st":2\b|"s":"[A-Z0-9]+USD_(?:PERP|\d{6})"'), "binance-delivery"),
    (re.compile(rb'"st":1\b|"X":"|"pu":\d|"nq":"|"e":"bookTicker"|"s":"[A-Z0-9]+_\d{6}"'), "binance-futures"),
    (re.compile(rb'"M":(?:true|false)|"u":\d+,"s":"[^"]+","b":"|"U":\d+,"u":\d+,"b":'), "binance"),
)


def _exchange_of(data: bytes) -> str | None:
    head = data[:600]
    return next((exchange for mark, exchange in _MARKS if mark.search(head)), None)


# Segments


@dataclass(frozen=True)
class _File:
    """One file: what it holds, and when it begins."""

    path: Path
    exchange: str
    begins_ns: int
    streams: Counter[str]  # messages of each; of a segment, which is not read beforehand, 0
    listings: Mapping[str, Listing]
    first_id: int | None = None  # of a segment
    skipped: int = 0

    @property
    def is_segment(self) -> bool:
        """Whether it is one of our CSV files."""
        return self.first_id is not None

    def messages(self) -> Iterator[Message]:
        """All messages of the file, in its order."""
        with _lines(self.path) as lines:
            if self.is_segment:
                yield from _segment_messages(self.path, self.exchange, lines)
            else:
                at_ns = self.begins_ns
                for line in lines:
                    parsed = _parse_line(line, at_ns)
                    if parsed is not None:
                        at_ns = parsed.at_ns
                        yield parsed


def _is_segment(path: Path) -> bool:
    return ".csv" in path.suffixes[-2:]


def _segment_messages(path: Path, exchange: str, lines: Iterator[bytes]) -> Iterator[Message]:
    """Yield the rows of a segment as messages. A torn last line, as a crash leaves it, is left out."""
    torn: RecordingError | None = None
    for number, line in enumerate(lines, start=1):
        if torn:
            raise torn
        cells = line.decode(errors="replace").split(",")  # no field of ours holds a comma
        try:
            yield _row_message(exchange, cells)
        except (ValueError, IndexError, KeyError):
            torn = RecordingError(
                f"{path}, line {number}: not a row of a trade or aggTrade segment ({','.join(cells)[:80]!r}). "
                "Remove the line, or leave the file out."
            )


def _row_message(exchange: str, cells: list[str]) -> Message:
    venue = VENUES[exchange]
    symbol = cells[2]
    maker = {"True": True, "False": False, "true": True, "false": False}[cells[9]]
    if cells[0] == "trade":
        trade = Trade(int(cells[3]), cells[4], cells[5], int(cells[8]), maker)
        event = int(cells[1]) if cells[1] else trade.time_ms
        data = trade_data(venue, symbol, trade, event, (cells[6], cells[7]))
    elif cells[0] == "aggTrade":
        row = Aggregate(int(cells[3]), cells[4], cells[5], int(cells[6]), int(cells[7]), int(cells[8]), maker)
        event = int(cells[1]) if cells[1] else row.time_ms
        data = aggregate_data(venue, symbol, row, event)
    else:
        raise ValueError(cells[0])
    return message(_ns(event), f"{symbol.lower()}@{cells[0]}", data)


# History


_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # what the database can hold


class _TradeRow(msgspec.Struct):
    id: _Int64 = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    time: _Int64 = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")
    kind: str = msgspec.field(name="X", default="MARKET")


class _AggregateRow(msgspec.Struct):
    id: _Int64 = msgspec.field(name="a")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    first_id: _Int64 = msgspec.field(name="f")
    last_id: _Int64 = msgspec.field(name="l")
    time: _Int64 = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")
    normal_quantity: str = msgspec.field(name="nq", default="")


_TABLES = """
CREATE TABLE trade (symbol, id INTEGER, price, quantity, time_ms INTEGER, maker INTEGER, kind,
                    PRIMARY KEY (symbol, id)) WITHOUT ROWID;
CREATE TABLE aggregate (symbol, id INTEGER, price, quantity, first_id INTEGER, last_id INTEGER, time_ms INTEGER,
                        maker INTEGER, normal_quantity, PRIMARY KEY (symbol, id)) WITHOUT ROWID;
"""


class _Kind(NamedTuple):
    """How the rows of one kind of stream go into the history and come out of it."""

    decode: Callable[[bytes], _TradeRow | _AggregateRow]
    insert: str
    select: str


_KINDS: Mapping[str, _Kind] = {
    "trade": _Kind(
        msgspec.json.Decoder(_TradeRow).decode,
        "INSERT OR IGNORE INTO trade VALUES (?,?,?,?,?,?,?)",
        "SELECT id, price, quantity, time_ms, maker, kind FROM trade WHERE symbol = ? AND id >= ? "
        "AND time_ms BETWEEN ? AND ? AND kind = 'MARKET' ORDER BY id ",
    ),
    "aggTrade": _Kind(
        msgspec.json.Decoder(_AggregateRow).decode,
        "INSERT OR IGNORE INTO aggregate VALUES (?,?,?,?,?,?,?,?,?)",
        "SELECT id, price, quantity, first_id, last_id, time_ms, maker, normal_quantity FROM aggregate "
        "WHERE symbol = ? AND id >= ? AND time_ms BETWEEN ? AND ? ORDER BY id ",
    ),
}


# Looking through the files


def open_recordings(
    paths: Sequence[Path], exchange: str | None = None, *, tell: Callable[[str], None] = lambda _: None
) -> list["RecordedMarket"]:
    """Open the markets that `paths` (files, or directories of them) hold: one for each exchange.

    `exchange` says which it is where the files cannot tell. `tell` hears of each file in a directory that is no
    recording and is left out; a file named itself must be one. Raises RecordingError, naming the file.
    """
    files: list[_File] = []
    for path in paths:
        if path.is_dir():
            files += _look_through_directory(path, exchange, tell)
        elif path.exists():
            files.append(_look_through(path, exchange))
        else:
            raise RecordingError(f"{path}: no such file or directory.")
    if not files:
        named = ", ".join(str(path) for path in paths)
        raise RecordingError(f"{named}: no recording found. Name .gz, .zst, .jsonl, .csv or .csv.zip files.")
    by_exchange = attrgetter("exchange")
    return [
        RecordedMarket(name, list(group)) for name, group in groupby(sorted(files, key=by_exchange), key=by_exchange)
    ]


_PLAYABLE = re.compile(r".*\.(?:csv|jsonl|txt|gz|zst|csv\.zip)")


def _look_through_directory(directory: Path, exchange: str | None, tell: Callable[[str], None]) -> Iterator[_File]:
    for path in sorted(directory.rglob("*")):
        if path.is_file() and _PLAYABLE.fullmatch(path.name):
            try:
                yield _look_through(path, exchange)
            except NoRecordingError as error:
                tell(f"left out: {error}")


def _look_through(path: Path, exchange: str | None) -> _File:
    return _look_through_segment(path, exchange) if _is_segment(path) else _look_through_raw(path, exchange)


def _look_through_raw(path: Path, exchange: str | None) -> _File:
    streams: Counter[str] = Counter()
    listings: dict[str, Listing] = {}
    found, begins_ns, at_ns, skipped = exchange, 0, 0, 0
    with _lines(path) as lines:
        for line in lines:
            parsed = _parse_line(line, at_ns)
            if parsed is None:
                skipped += 1
                continue
            at_ns = parsed.at_ns
            begins_ns = begins_ns or at_ns
            found = found or _exchange_of(parsed.data)
            streams[parsed.stream] += 1
            symbol = parsed.stream.partition("@")[0].upper()
            if symbol and symbol not in listings:
                listing = _listing(symbol, parsed.data)
                if listing:
                    listings[symbol] = listing
    if not streams:
        raise NoRecordingError(f"{path}: none of its {skipped} lines is a stream message. Is it a recording?")
    if found is None:
        raise RecordingError(f"{path}: cannot tell which exchange this is. Say it with --exchange.")
    return _File(path, found, begins_ns, streams, listings, skipped=skipped)


_PRICE = re.compile(rb'"p"\s*:\s*"([\d.]+)"\s*,\s*"q"\s*:\s*"([\d.]+)"')


def _listing(symbol: str, data: bytes) -> Listing | None:
    """Describe the symbol as exchangeInfo is to list it, from the first price and quantity seen of it."""
    found = _PRICE.search(data)
    return _listed(symbol, found[1].decode(), found[2].decode()) if found else None


def _listed(symbol: str, price: str, quantity: str) -> Listing:
    pair = symbol.partition("_")[0]
    quote = next((quote for quote in _QUOTES if pair.endswith(quote) and pair != quote), "")
    base = pair.removesuffix(quote) if quote else pair
    return Listing(symbol, base, quote or "USDT", _smallest(price), _smallest(quantity))


def _smallest(number: str) -> str:
    decimals = len(number.partition(".")[2])
    return f"0.{'1':0>{decimals}}" if decimals else "1"


def _look_through_segment(path: Path, exchange: str | None) -> _File:
    found = exchange or next((part for part in reversed(path.parts) if part in VENUES), None)
    if found is None:
        raise RecordingError(
            f"{path}: its path does not name the exchange (as in binance/trade/BTCUSDT/). Say it with --exchange."
        )
    with _lines(path) as lines:
        first = next(_segment_messages(path, found, lines), None)
    if first is None:
        raise NoRecordingError(f"{path}: holds no row.")
    symbol, _, kind = first.stream.partition("@")
    listing = _listing(symbol.upper(), first.data)
    listings = {listing.symbol: listing} if listing else {}
    first_id = _KINDS[kind].decode(first.data).id
    return _File(path, found, first.at_ns, Counter({first.stream: 0}), listings, first_id)


# The market


@dataclass
class RecordedMarket:
    """The recordings of one exchange as one market. `skipped` lines belonged to no stream."""

    exchange: str
    files: Sequence[_File]
    _waiting: dict[str, list[tuple[object, ...]]] = field(init=False, repr=False, default_factory=dict)
    _newest_ms: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        # The empty name is SQLite's own temporary file: on disk once it grows, gone with the connection.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(_TABLES)
        weakref.finalize(self, self._database.close)
        self._waiting = {kind: [] for kind in _KINDS}

    @property
    def listings(self) -> Sequence[Listing]:
        """The symbols of which a trade was recorded, and the others with made-up steps."""
        known: dict[str, Listing] = {}
        for file in self.files:
            for stream in file.streams:
                symbol = stream.partition("@")[0].upper()
                if symbol and not symbol.startswith("!"):
                    known.setdefault(symbol, file.listings.get(symbol) or _listed(symbol, "0.01", "0.001"))
        return list(known.values())

    @property
    def streams(self) -> Collection[str]:
        """Every stream that was recorded."""
        return sorted({stream for file in self.files for stream in file.streams})

    @property
    def starts_ns(self) -> int | None:
        """Return None: a recording begins with its first message."""
        return None

    @property
    def total(self) -> int | None:
        """How many messages it holds; None where segments are among the files, which are not counted beforehand."""
        if any(file.is_segment for file in self.files):
            return None
        return sum(file.streams.total() for file in self.files)

    @property
    def skipped(self) -> int:
        """How many lines belong to no stream."""
        return sum(file.skipped for file in self.files)

    def messages(self, streams: Collection[str]) -> Iterator[Message]:
        """Yield the messages of `streams` by time, those of one file in its order."""
        wanted = frozenset(streams)
        return _merged(_in_lanes(file for file in self.files if wanted & file.streams.keys()), wanted)

    def passed(self, played: Message) -> None:
        """Add a message that was played to the history."""
        symbol, _, kind = played.stream.partition("@")
        row_kind = _KINDS.get(kind)
        if row_kind is None:
            return
        try:
            row = row_kind.decode(played.data)
        except msgspec.MsgspecError:
            return  # a message that is no trade leaves no trace in the exchange's history either
        name = symbol.upper()
        time_ms = row.time // 1000 if row.time >= _MICROSECONDS_FROM else row.time
        self._newest_ms[name] = max(time_ms, self._newest_ms.get(name, 0))
        waiting = self._waiting[kind]
        waiting.append(_history_row(name, row, time_ms))
        if len(waiting) >= _HISTORY_BATCH:
            self._write_history(kind)

    def _write_history(self, kind: str) -> None:
        waiting = self._waiting[kind]
        if waiting:
            self._database.execute("BEGIN")
            self._database.executemany(_KINDS[kind].insert, waiting)
            self._database.execute("COMMIT")
            waiting.clear()

    def trades(self, symbol: str, wanted: Wanted) -> list[Trade]:
        """Return the public trades played so far."""
        return [
            Trade(row_id, price, quantity, time_ms, bool(maker), kind)
            for row_id, price, quantity, time_ms, maker, kind in self._select("trade", symbol, wanted)
        ]

    def aggregates(self, symbol: str, wanted: Wanted) -> list[Aggregate]:
        """Return the aggregates played so far."""
        return [
            Aggregate(row_id, price, quantity, first_id, last_id, time_ms, bool(maker), normal)
            for row_id, price, quantity, first_id, last_id, time_ms, maker, normal in self._select(
                "aggTrade", symbol, wanted
            )
        ]

    def newest_ms(self, symbol: str) -> int:
        """Return the trade time of the newest row played."""
        return self._newest_ms.get(symbol, 0)

    def _select(self, kind: str, symbol: str, wanted: Wanted) -> list[tuple[Any, ...]]:
        self._write_history(kind)
        bounds = [
            -(2**63) if wanted.from_id is None else min(wanted.from_id, 2**63 - 1),
            0 if wanted.start_ms is None else wanted.start_ms,
            2**62 if wanted.end_ms is None else wanted.end_ms,
        ]
        oldest_first = wanted.from_id is not None or wanted.start_ms is not None
        query = _KINDS[kind].select + ("ASC LIMIT ?" if oldest_first else "DESC LIMIT ?")
        rows = self._database.execute(query, [symbol, *bounds, wanted.limit]).fetchall()
        return rows if oldest_first else rows[::-1]


def _history_row(symbol: str, row: _TradeRow | _AggregateRow, time_ms: int) -> tuple[object, ...]:
    if isinstance(row, _TradeRow):
        return symbol, row.id, row.price, row.quantity, time_ms, row.buyer_is_maker, row.kind
    ids = (row.first_id, row.last_id)
    return symbol, row.id, row.price, row.quantity, *ids, time_ms, row.buyer_is_maker, row.normal_quantity


def _in_lanes(files: Iterable[_File]) -> list[list[_File]]:
    """Put the files that follow each other in one lane: a feed's segments by ID, a raw recording alone.

    Time does not order the segments of a feed: rows from history carry the trade's time, live ones the event's.
    """
    lanes: list[list[_File]] = []
    feeds: dict[str, list[_File]] = {}
    for file in files:
        if file.is_segment:
            feeds.setdefault(next(iter(file.streams)), []).append(file)
        else:
            lanes.append([file])
    lanes += [sorted(feed, key=lambda file: file.first_id or 0) for feed in feeds.values()]
    return sorted(lanes, key=lambda lane: lane[0].begins_ns)


def _merged(lanes: Sequence[Sequence[_File]], wanted: frozenset[str]) -> Iterator[Message]:
    """Merge lanes by time; each is opened only when the others have come to its beginning."""
    waiting = list(reversed(lanes))
    playing: list[tuple[int, int, Message, Iterator[Message]]] = []
    while waiting or playing:
        if waiting and (not playing or waiting[-1][0].begins_ns <= playing[0][0]):
            messages = _lane_messages(waiting.pop(), wanted)
            first = next(messages, None)
            if first is not None:
                heapq.heappush(playing, (first.at_ns, len(waiting), first, messages))
            continue
        _, place, played, messages = playing[0]
        yield played
        following = next(messages, None)
        if following is None:
            heapq.heappop(playing)
        else:
            heapq.heapreplace(playing, (following.at_ns, place, following, messages))


def _lane_messages(lane: Sequence[_File], wanted: frozenset[str]) -> Iterator[Message]:
    return (each for file in lane for each in file.messages() if each.stream in wanted)
