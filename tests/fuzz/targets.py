"""What is fuzzed: one function a target, which takes any bytes and raises `AssertionError` where its promise is broken.

* `frames`: payloads of a connection, through decoding, understanding, checking and sequencing. Each ends in a row, in a
  count of copies, in quarantine, or as an answer that was understood.
* `salvage`: a CSV file as a crash or a bad disk may leave it. Each byte ends in one row or one cut.
* `journal`: a journal file. Each line is an entry or is counted; appending goes on behind anything.
* `config`: a configuration file. It is loaded, or refused with named mistakes.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tickcollect import config, gaps
from tickcollect.backfill import accounts
from tickcollect.events import RowCheck, row_pattern, with_fields
from tickcollect.exchanges.binance import MARKETS, Acknowledged, ControlError, Decoder, Link, Market, ServerShutdown
from tickcollect.feed import Batch, Inbox, LinkState, Odd, SubscriptionRefused, Surroundings, _Listener, _Session
from tickcollect.files import FeedPath
from tickcollect.journal import MAX_LINE, Journal, read
from tickcollect.salvage import Claim, Numbering, examine
from tickcollect.segments import Segments
from tickcollect.writer import Feed, Piece, Routes, Writer

SEPARATOR = b"\x1e"
"""Between two payloads of one input: no JSON text holds this byte."""
SCRATCH = Path(tempfile.mkdtemp(prefix="tickcollect-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

# --- frames --------------------------------------------------------------------------------------------------------

TRADE = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1784000000105,"s":"BTCUSDT","t":%d,"p":"64120.01000000",'
    b'"q":"0.00150000","T":1784000000104,"m":true,"M":true}}'
)
AGGREGATE = (
    b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1784000000300,"a":%d,"s":"BTCUSDT","p":"64111.10",'
    b'"q":"1.250","nq":"1.200","f":8100000001,"l":8100000006,"T":1784000000155,"m":false,"st":1}}'
)
PLACEHOLDER = (
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1784000000105,"T":1784000000104,"s":"BTCUSDT","t":%d,"p":"0",'
    b'"q":"0","X":"NA","m":true}}'
)
OTHERS = (
    b'{"result":null,"id":1}',
    b'{"error":{"code":2,"msg":"Invalid request: unknown variant"},"id":"x"}',
    b'{"code":3,"msg":"Invalid JSON"}',
    b'{"stream":"x","data":{"e":"serverShutdown","E":1784000000000}}',
    b'{"e":"serverShutdown","E":1784000000000}',
    b"[]",
    b"",
)
STREAMS = ("trade", "aggTrade")


@dataclass
class Told:
    """Where the payloads of one input ended."""

    ends: Counter[str] = field(default_factory=Counter)
    odd: list[Odd] = field(default_factory=list)
    quarantined: list[bytes] = field(default_factory=list)

    def put(self, item: object, _source: object = None) -> None:
        if isinstance(item, Odd):
            self.odd.append(item)
        assert isinstance(item, Odd | SubscriptionRefused)

    def quarantine(self, _exchange: str, payload: bytes, reason: str) -> None:
        assert reason
        self.quarantined.append(payload)


def frames(data: bytes) -> Counter[str]:
    """Send payloads through a connection's listener and the writer; return where they ended."""
    market = MARKETS["binance-futures" if data[:1] < b"\x80" else "binance"]
    payloads = data[1:].split(SEPARATOR)
    decoder = Decoder(market)
    told = Told()
    link = LinkState(market.name, Link("ws://127.0.0.1", ()))
    feeds = {stream: _feed(market, stream) for stream in STREAMS}
    routes: Routes = {stream: {"BTCUSDT": feed} for stream, feed in feeds.items()}
    writer = Writer(
        Inbox(1 << 30), {link: routes}, cast("Executor", None), _silent, told.quarantine, _nothing, _nothing
    )
    listener = _listener(link, decoder, told)
    seen: list[Any] = []

    def decode(some: Sequence[bytes]) -> list[Any]:
        seen.extend(listener.decode(some))
        return seen

    writer._accept(Batch(link, 1, 0, payloads, decode), 0.0)
    to_nothing = [odd.payload for odd in told.odd]  # answers to nothing that was asked are kept as odd
    answers = _answers(decoder, payloads) - _answers(decoder, to_nothing)
    assert len(seen) + answers + len(told.odd) == len(payloads), "a payload ended nowhere, or twice"
    strays = len(told.quarantined)
    for odd in told.odd:
        writer._accept(odd, 0.0)
    assert len(told.quarantined) == strays + len(told.odd), "a refused message is not in quarantine"
    ends = Counter(answers=answers, quarantined=len(told.quarantined))
    for feed in feeds.values():
        ends.update(_ends_of(feed))
        writer._take_steps(feed, feed.sequence.finish())
    rows = sum(ends[name] for name in ("rows", "held", "copies", "not trades"))
    assert rows + strays + answers + len(told.odd) == len(payloads), f"{dict(ends)} of {len(payloads)}"
    return ends


def _answers(decoder: Decoder, payloads: Iterable[bytes]) -> int:
    understood = map(decoder.message, payloads)
    return sum(isinstance(each, Acknowledged | ControlError | ServerShutdown) for each in understood)


def _feed(market: Market, stream: str) -> Feed:
    return Feed(
        FeedPath(market.name, stream, "BTCUSDT"),
        with_fields(market.message_types[stream], ()),
        RowCheck(stream, "BTCUSDT"),
        gaps.Sequence(hold_limit=4),
        cast("Segments", None),
    )


def _ends_of(feed: Feed) -> Counter[str]:
    pieces = [piece for piece in feed.pending if isinstance(piece, Piece)]
    for piece in pieces:
        block = b"".join(piece.blocks)
        lines = block.splitlines(keepends=True)
        pattern = row_pattern(feed.path.stream, "BTCUSDT")
        assert len(lines) == len(piece.ids), "not as many rows as IDs"
        assert all(pattern.fullmatch(line) for line in lines), "a row that is none would be written"
    written = sum(len(piece.ids) for piece in pieces)
    return Counter({"rows": written, "held": feed.sequence.held, "copies": feed.copies, "not trades": feed.not_trades})


def _listener(link: LinkState, decoder: Decoder, told: Told) -> _Listener:
    around = Surroundings(cast("Inbox", told), lambda: 0, lambda low, _: low, "fuzz")
    session = SimpleNamespace(state=link, decoder=decoder, around=around, renew=_nothing)
    return _Listener(cast("_Session", session))


def _silent(_event: str, _subject: str, /, **_facts: object) -> None:
    """Take what is told."""


def _nothing(*_: object) -> None:
    """Do nothing."""


# --- files -----------------------------------------------------------------------------------------------------------

DAY = 20_648
CLAIMS = [Claim(stream, "BTCUSDT", DAY, 100, numbering) for stream in STREAMS for numbering in Numbering]


def row(stream: str, id_: int) -> bytes:
    """Return a good row."""
    time_ms = DAY * 86_400_000 + id_
    between = b"" if stream == "trade" else b"1"
    return b"%s,%d,BTCUSDT,%d,64120.01,0.0015,%s,%s,%d,True\n" % (
        stream.encode(), time_ms, id_, between, between, time_ms,
    )  # fmt: skip


def salvage(data: bytes) -> Counter[str]:
    """Examine a damaged file; return how many rows and cuts it has."""
    claim = CLAIMS[data[0] % len(CLAIMS) if data else 0]
    csv = data[1:]
    found = examine(BytesIO(csv), len(csv), claim, covered=(), kept_by_kernel=False)
    rows = [rows for stretch in found.stretches for rows in stretch]
    pieces = sorted([*((each.start, each.stop) for each in rows), *((each.start, each.stop) for each in found.cuts)])
    assert all(left[1] == right[0] for left, right in pairwise([(0, 0), *pieces, (len(csv), 0)])), "bytes not accounted"
    pattern = row_pattern(claim.stream, claim.symbol, found.claim.extra_columns)
    last_id = claim.first_id - 1
    for each in rows:
        lines = csv[each.start : each.stop].splitlines(keepends=True)
        ids = [int(line.split(b",")[3]) for line in lines]
        assert all(pattern.fullmatch(line) for line in lines)
        assert (ids[0], ids[-1], len(ids)) == (each.first_id, each.last_id, each.count)
        assert all(before < after for before, after in pairwise([last_id, *ids])), "IDs that do not rise"
        if claim.numbering is Numbering.BY_ONE:
            assert ids == list(range(ids[0], ids[-1] + 1))
        last_id = ids[-1]
    return Counter(rows=sum(each.count for each in rows), cuts=len(found.cuts))


def journal(data: bytes) -> Counter[str]:
    """Read a damaged journal, append to it, and read it again; return how many lines were good and bad."""
    path = SCRATCH / "journal.jsonl"
    path.write_bytes(data)
    before = read(path)
    entries = list(before)
    accounts(entries)
    lines = data.split(b"\n")
    if max(map(len, lines)) < MAX_LINE:
        assert len(entries) + before.damaged == len(lines) - (not lines[-1]), "a line not accounted for"
    writing = Journal(path, lambda: 1_784_000_000_000_000_000)
    writing.append("fuzzed", number=1)
    writing.append("fuzzed", number=2)
    writing.close()
    numbers = [entry.facts["number"] for entry in list(read(path))[-2:]]
    assert numbers == [1, 2], "what was appended cannot be read"
    return Counter(entries=len(entries), damaged=before.damaged)


def configuration(data: bytes) -> Counter[str]:
    """Load a configuration file; return whether it was good."""
    path = SCRATCH / "config.json"
    path.write_bytes(data)
    try:
        config.load(path, {}, {})
    except config.ConfigError as error:
        problems = error.problems
    else:
        return Counter(loaded=1)
    assert problems
    assert all(problem.wrong and problem.remedy for problem in problems)
    return Counter(refused=1)


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A function to be fuzzed, and good inputs to begin with."""

    run: Callable[[bytes], Counter[str]]
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    """What a mutation may put in."""


_ROWS = {stream: b"".join(row(stream, id_) for id_ in range(100, 106)) for stream in STREAMS}
_NUMBERS = (b"9007199254740993", b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"-1", b"1e5")
TARGETS = {
    "frames": Target(
        frames,
        [
            b"\xff" + SEPARATOR.join([TRADE % 1, TRADE % 2, TRADE % 4, TRADE % 5]),
            b"\x00" + SEPARATOR.join([AGGREGATE % 7, AGGREGATE % 7, AGGREGATE % 8]),
            b"\x00" + SEPARATOR.join([PLACEHOLDER % 3, TRADE % 4, AGGREGATE % 8]),
            b"\xff" + SEPARATOR.join([*OTHERS, TRADE % 1]),
        ],
        [b'"e":"trade"', b'"s":"ETHUSDT"', b"\\n", b"\\u002c", b",,", b"{", b"}", b"[" * 200, SEPARATOR, *_NUMBERS],
    ),
    "salvage": Target(
        salvage,
        [bytes([number]) + _ROWS[claim.stream] for number, claim in enumerate(CLAIMS)],
        [_ROWS["trade"], row("trade", 103), row("aggTrade", 103), bytes(80), b"\n", b",", b",x", *_NUMBERS],
    ),
    "journal": Target(
        journal,
        [
            b'{"at":"2026-11-20T00:00:00.123456Z","event":"gap","subject":"a/b/C","first_id":1,"last_id":5}\n' * 3,
            b'{"at":"2026-11-20T00:00:00.123456Z","event":"lost","subject":"a/b/C","first_id":3,"last_id":4}\n{"at"',
        ],
        [b"null", b'"at":', b"\n", b"9" * 30, b"[" * 2000, b"\xff", b'"first_id":9,"last_id":1', *_NUMBERS],
    ),
    "config": Target(
        configuration,
        [b'{"COLLECT":[{"exchange":"binance","symbols":["BTCUSDT"]}],"ROTATE_SIZE":"1GB","REDUNDANCY":2}'],
        [b'"DATA_DIR":', b'"REST_SHARE":0.5', b'"RENEW_AT":"25:00"', b"[" * 2000, b"NaN", b"\xef\xbb\xbf", *_NUMBERS],
    ),
}


def mutated(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """Return `data` with a few small changes: bytes flipped, left out, doubled, moved, or words put in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at, length = chance.randrange(len(changed) + 1), chance.choice((1, 1, 2, 4, 16, 100))
        piece = bytes(changed[at : at + length])
        match chance.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = piece
            case 3:
                changed[at : at + length] = chance.choice(words)
            case 4:
                changed[at:at] = chance.choice(words)
            case _:
                to = chance.randrange(len(changed) + 1)
                changed[to : to + length] = piece
    return bytes(changed)
