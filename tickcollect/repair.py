"""Repair: missing IDs in; pages of the exchange's history that prove themselves out.

Rules:

1. Rows are asked for by ID (`fromId`), never by time: several trades share a millisecond (Binance rest-api.md).
2. An answer is checked before it is believed: rows of the right form, in rising order, none twice, none below what was
   asked for, no more than the limit. One that is wrong is asked for again, with longer and longer pauses
   (`AGAIN_AFTER_S`), and then given up with its reason.
3. An answer proves itself by rows that are known to exist (`Beside`). It is asked for from the row before the gap, or
   from the last row of the page before, and through to the row behind the gap; at least one of them must be in it, and
   each that is must have the price, quantity and time that are known. So another symbol's page, a page of other IDs and
   one that passes over what exists are noticed, however well formed they are. Where nothing before the gap is known, as
   at the begin of a new numbering, a page may lie wholly before what is: then its rows must be newer than the old ones.
4. `Page.lacking` names IDs that an answer passes over, if it begins with a known row and goes on to a known one or is
   full: an answer that begins late or ends early shows nothing. One such answer is no proof; `gaps.Shown` says when two
   are. Archives do have such holes, and futures history leaves out placeholders and internal fills.
5. A row whose time is not between its neighbours' (`TIME_TOLERANCE_MS`) is kept apart (`Page.odd`).
6. An empty answer, or one that ends before the ID asked for, proves nothing: history may lag, and during COIN-M's
   migration (2026-06-29) it answered 200 with an empty list. It is asked again, patiently.
7. `Lost` is said only where asking again cannot help: older than the call reaches back, or a key is needed and not
   there. Everything else is a `RestError`, for the caller to wait and try again with what is still missing.

The weight of the calls is bounded by the `Budget` that all feeds of an IP share (`rest`).
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from tickcollect.events import Message, MessageType, time_ms
from tickcollect.exchanges.binance import OUTSIDE_HISTORY, Market, Source, history_rows, history_type
from tickcollect.gaps import FIRST_ID
from tickcollect.rest import BadAnswerError, BadRequestError, Rest

REFUSED_FOR_GOOD = range(-1199, -1099)
"""Error codes that tell a wrong request, such as a symbol that is no more (errors.md, "11xx"): it stays wrong."""
AGAIN_AFTER_S = (1.0, 5.0, 20.0)
"""Waits between the tries where an answer was empty or wrong."""
TIME_TOLERANCE_MS = 60_000
"""How far a row's time may lie outside its neighbours': times rise with the IDs but for moments."""
SAME_TIME_MS = 1000
"""How far the times of one row may differ between stream and history; Binance promises nothing about it."""


@dataclass(frozen=True, slots=True)
class KnownRow:
    """What is compared of a row that is known to exist: price and quantity as numbers, as `1.50` may come as `1.5`."""

    id: int
    price: Decimal
    quantity: Decimal
    time_ms: int

    def is_same(self, other: "KnownRow") -> bool:
        """Tell whether both are one trade."""
        same = (self.id, self.price, self.quantity) == (other.id, other.price, other.quantity)
        return same and abs(self.time_ms - other.time_ms) <= SAME_TIME_MS


@dataclass(frozen=True, slots=True)
class Beside:
    """Rows known to exist on both sides of a gap, in rising order; empty where none is known."""

    before: Sequence[KnownRow] = ()
    behind: Sequence[KnownRow] = ()
    all_public: bool = True
    """Each of them must be in history. False where some may be internal fills, which history leaves out."""
    since_ms: int = 0
    """The numbering began after this time, that of the newest row of the numbering before; 0 where none was."""


@dataclass(frozen=True, slots=True)
class Page:
    """One believed answer, cut to the range asked for."""

    rows: Sequence[Message]
    """In order, and not more than what was asked for."""
    lacking: Sequence[tuple[int, int]] = ()
    """IDs (first, last) that it shows not to exist (rule 4)."""
    odd: Sequence[Message] = ()
    """Rows whose time cannot be right (rule 5)."""


@dataclass(frozen=True, slots=True)
class Lost:
    """IDs that history cannot give any more, and why."""

    first: int
    last: int
    reason: str


class HistorySilentError(BadAnswerError):
    """History answers, but not with the rows asked for; it may do so later."""

    advice = "It is asked again later."


Outcome = Page | Lost


def known_row(row: Message) -> KnownRow:
    """Return what is compared of a row."""
    (id_,) = row.ids([row])
    return KnownRow(id_, Decimal(row.p), Decimal(row.q), time_ms(row.T))


def known_line(kind: MessageType, line: str) -> KnownRow:
    """Return what is compared of a row that is in a file. Raises `ValueError` for anything else."""
    columns = line.rstrip("\n").split(",")
    values = dict(zip(kind.COLUMNS, columns, strict=False))
    try:
        id_, time = int(values[kind.ID_COLUMN]), int(values["T"])
        return KnownRow(id_, Decimal(values["p"]), Decimal(values["q"]), time_ms(time))
    except (KeyError, ArithmeticError) as error:
        raise ValueError(f"not a row: {line[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class _Request:
    """One page to be asked for."""

    first: int
    last: int
    """The gap's last ID."""
    before: Sequence[KnownRow]
    """Known rows with which the answer should begin: before the gap, or the last row of the page before."""
    beside: Beside

    @property
    def from_ids(self) -> Sequence[int]:
        """Where to ask from: the nearest known row; should history lack that one, the furthest."""
        return (self.before[-1].id, self.before[0].id) if self.before else (self.first,)

    @property
    def known(self) -> Mapping[int, KnownRow]:
        return {row.id: row for row in (*self.before, *self.beside.behind)}


@dataclass(frozen=True)
class History:
    """One feed's history: where it is asked for and what its rows are."""

    rest: Rest
    path: str
    source: Source
    symbol: str
    kind: MessageType
    headers: Mapping[str, str]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def fetch(self, first: int, last: int, beside: Beside = Beside()) -> AsyncIterator[Outcome]:
        """Yield what history says of the IDs `first` to `last`, in order, page by page.

        Raises `RestError` where the rest can only be had later; what was yielded before stays true.
        """
        if self.source.key_header and self.source.key_header not in self.headers:
            yield Lost(first, last, "the exchange gives this history only with an API key: set BINANCE_API_KEY")
            return
        before = beside.before
        wanted = first
        while wanted <= last:
            request = _Request(wanted, last, before, beside)
            try:
                rows = await self._page(request)
            except BadRequestError as error:
                if error.code == OUTSIDE_HISTORY and before and before is beside.before:
                    before = ()  # the row before the gap is older than history reaches back, the gap may not be
                    continue
                yield self._lost(wanted, last, error)
                return
            yield cut(request, rows, self.source.limit)
            newest = known_row(rows[-1])
            before, wanted = (newest,), max(wanted, newest.id + 1)

    async def begin(self, first: int, beside: Beside, since_ms: int) -> int:
        """Return the lowest ID that history shows of a numbering that began after `since_ms`, `first` if none is lower.

        `first` is known to exist, and `beside` holds rows from there on. Raises `RestError` where nobody can tell.
        """
        if self.source.key_header and self.source.key_header not in self.headers:
            raise HistorySilentError(f"{self.symbol}: history is given only with an API key")
        rows = await self._page(_Request(FIRST_ID, first - 1, (), beside))
        ids = zip(self.kind.ids(rows), rows, strict=True)
        return min((id_ for id_, row in ids if id_ < first and time_ms(row.T) >= since_ms), default=first)

    def _lost(self, first: int, last: int, error: BadRequestError) -> Lost:
        if error.code == OUTSIDE_HISTORY:
            return Lost(first, last, f"the exchange's history reaches back {self.source.reaches_back} only")
        if error.code in REFUSED_FOR_GOOD:
            return Lost(first, last, f"the exchange refuses to give it: {error}")
        raise error

    async def _page(self, request: _Request) -> list[Message]:
        """Return an answer that proves itself and holds at least one row from `request.first` on (rules 2, 3, 6)."""
        trouble = ""
        for number, pause_s in enumerate((*AGAIN_AFTER_S, None)):
            from_id = request.from_ids[number % len(request.from_ids)]
            params: dict[str, str | int] = {"symbol": self.symbol, "fromId": from_id, "limit": self.source.limit}
            body = await self.rest.get(self.path, params, weight=self.source.weight, headers=self.headers)
            try:
                rows = history_rows(self.kind, body)
                trouble = self._mistake(rows, request, from_id)
            except (ValueError, ArithmeticError, RecursionError) as error:
                trouble = f"the answer is not what it should be: {error}"
            if not trouble:
                return rows
            if pause_s is not None:
                await self.sleep(pause_s)
        raise HistorySilentError(f"{self.symbol}: IDs {request.first} to {request.last}: {trouble}")

    def _mistake(self, rows: Sequence[Message], request: _Request, from_id: int) -> str:
        """Say what is wrong with an answer; empty if nothing is."""
        ids = self.kind.ids(rows)
        if not ids:
            return "the answer is empty, which proves nothing"
        if len(ids) > self.source.limit:
            return f"the answer has {len(ids)} rows although {self.source.limit} were asked for"
        if ids[0] < from_id:
            return f"the answer begins at {ids[0]}, before what was asked for"
        if any(after <= before for before, after in pairwise(ids)):
            return "the answer's IDs do not rise"
        goes_on = len(ids) == self.source.limit and ids[-1] > from_id  # the next page begins with its last row
        if ids[-1] < request.first and not goes_on:
            return f"the answer ends at {ids[-1]}, before what is missing"
        known_row(rows[-1])  # the next page begins with it
        return _contradiction(rows, ids, request)


def _contradiction(rows: Sequence[Message], ids: Sequence[int], request: _Request) -> str:
    """Say where an answer does not agree with rows that are known to exist (rule 3); empty if it does."""
    known = request.known
    found = {id_: row for id_, row in zip(ids, rows, strict=True) if id_ in known}
    for id_, row in found.items():
        if not known[id_].is_same(known_row(row)):
            return f"its row {id_} is not the one that is known, so it may be of another market"
    behind = request.beside.behind
    if behind and ids[-1] >= behind[-1].id and not any(row.id in found for row in behind):
        return f"it passes over ID {behind[0].id}, which is known to exist"
    if found:
        return ""
    if request.before:
        return f"it does not hold ID {request.before[-1].id}, which is known to exist"
    if ids[0] != request.first:
        return f"it begins at {ids[0]}, and nothing in it is known to exist"
    return "" if time_ms(rows[-1].T) > request.beside.since_ms else "it is of the numbering before"


def cut(request: _Request, rows: Sequence[Message], limit: int) -> Page:
    """Cut a checked answer to what was asked for, and name what it shows not to exist (rule 4)."""
    ids = rows[0].ids(rows)
    behind = request.beside.behind
    lowest = request.before[-1].time_ms - TIME_TOLERANCE_MS if request.before else 0
    highest = behind[0].time_ms + TIME_TOLERANCE_MS if behind else math.inf
    right: list[Message] = []
    odd: list[Message] = []
    for id_, row in zip(ids, rows, strict=True):
        if request.first <= id_ <= request.last:
            (right if lowest <= time_ms(row.T) <= highest else odd).append(row)
    return Page(right, _lacking(request, ids, limit), odd)


def _lacking(request: _Request, ids: Sequence[int], limit: int) -> list[tuple[int, int]]:
    known, held = request.known, set(ids)
    due = [id_ for id_ in known if ids[0] <= id_ <= ids[-1]]
    if request.beside.all_public and not held.issuperset(due):
        return []
    goes_on = len(ids) == limit or any(row.id in held for row in request.beside.behind)
    if not goes_on:
        return []
    begins = not request.before or any(row.id in held for row in request.before)
    low = request.first if begins else max(request.first, ids[0])
    found = []
    for id_ in ids:
        if id_ > low:
            found.append((low, min(id_ - 1, request.last)))
        low = max(low, id_ + 1)
        if low > request.last:
            break
    return found


def history_of(
    rest: Rest, market: Market, stream: str, symbol: str, *, extra_fields: Sequence[str] = (), api_key: str = ""
) -> History:
    """Return the history of one feed; `api_key` is sent only to calls that need one."""
    source = market.history[stream]
    headers = {source.key_header: api_key} if api_key and source.key_header else {}
    kind = history_type(market, stream, symbol, extra_fields)
    return History(rest, market.rest_prefix + source.path, source, symbol, kind, headers)
