"""Repair: missing IDs in; their rows from the exchange's history, or a proof or a reason for their absence, out.

Rules:

1. Rows are asked for by ID (`fromId`), never by time: several trades share a millisecond (Binance rest-api.md).
2. An answer is checked before it is believed: rows of the right form, in rising order, none twice, none below what was
   asked for, no more than the limit. One that is wrong is asked for again, with longer and longer pauses
   (`AGAIN_AFTER_S`), and then given up with its reason.
3. An ID that is missing between two rows of an answer, or before a later one, does not exist at the exchange
   (`Absent`): its archive has such holes, and futures history leaves out placeholders and internal fills. Except for
   those, a second answer must show the same.
4. An empty answer, or one that ends before the ID asked for, proves nothing: history may lag, and during COIN-M's
   migration (2026-06-29) it answered 200 with an empty list. It is asked again, patiently.
5. `Lost` is said only where asking again cannot help: older than the call reaches back, or a key is needed and not
   there. Everything else is a `RestError`, for the caller to wait and try again with what is still missing.

The weight of the calls is bounded by the `Budget` that all feeds of an IP share (`rest`).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tickcollect.events import FuturesTrade, Message, MessageType
from tickcollect.exchanges.binance import OUTSIDE_HISTORY, Market, Source, history_rows, history_type
from tickcollect.rest import BadAnswerError, BadRequestError, Rest

REFUSED_FOR_GOOD = range(-1199, -1099)
"""Error codes that tell a wrong request, such as a symbol that is no more (errors.md, "11xx"): it stays wrong."""
AGAIN_AFTER_S = (1.0, 5.0, 20.0)
"""Waits between the tries where an answer was empty or wrong."""


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of history, in order; their IDs lie in the range asked for."""

    rows: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Absent:
    """IDs that history shows never to have been published: rows around them are there."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Lost:
    """IDs that history cannot give any more, and why."""

    first: int
    last: int
    reason: str


class HistorySilentError(BadAnswerError):
    """History answers, but not with the rows asked for; it may do so later."""

    advice = "It is asked again later."


Outcome = Found | Absent | Lost


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

    async def fetch(self, first: int, last: int) -> AsyncIterator[Outcome]:
        """Yield what becomes of the IDs `first` to `last`, in order, page by page.

        Raises `RestError` where the rest can only be had later; what was yielded before stays true.
        """
        if self.source.key_header and self.source.key_header not in self.headers:
            yield Lost(first, last, "the exchange gives this history only with an API key: set BINANCE_API_KEY")
            return
        wanted = first
        while wanted <= last:
            try:
                rows, outcomes = await self._agreed_page(wanted, last)
            except BadRequestError as error:
                if error.code == OUTSIDE_HISTORY:
                    yield Lost(wanted, last, f"the exchange's history reaches back {self.source.reaches_back} only")
                elif error.code in REFUSED_FOR_GOOD:
                    yield Lost(wanted, last, f"the exchange refuses to give it: {error}")
                else:
                    raise
                return
            for outcome in outcomes:
                yield outcome
            wanted = self.kind.ids(rows[-1:])[0] + 1

    async def _agreed_page(self, wanted: int, last: int) -> tuple[list[Message], list[Outcome]]:
        """Return an answer and what it says; where it shows IDs not to exist, a second one must agree (rule 3)."""
        rows = await self._page(wanted, last)
        outcomes = sorted_out(self.kind, rows, wanted, last)
        if issubclass(self.kind, FuturesTrade) or not any(isinstance(outcome, Absent) for outcome in outcomes):
            return rows, outcomes
        again = await self._page(wanted, last)
        if sorted_out(self.kind, again, wanted, last) != outcomes:
            raise HistorySilentError(f"{self.symbol}: IDs {wanted} to {last}: two answers contradict each other")
        return rows, outcomes

    async def _page(self, wanted: int, last: int) -> list[Message]:
        """Return a checked answer that holds at least one row from `wanted` on (rules 2 and 4)."""
        params: dict[str, str | int] = {"symbol": self.symbol, "fromId": wanted, "limit": self.source.limit}
        trouble = ""
        for pause_s in (*AGAIN_AFTER_S, None):
            body = await self.rest.get(self.path, params, weight=self.source.weight, headers=self.headers)
            try:
                rows = history_rows(self.kind, body)
            except ValueError as error:
                trouble = f"the answer is not what it should be: {error}"
            else:
                trouble = self._mistake(rows, wanted)
            if not trouble:
                return rows
            if pause_s is not None:
                await self.sleep(pause_s)
        raise HistorySilentError(f"{self.symbol}: IDs {wanted} to {last}: {trouble}")

    def _mistake(self, rows: Sequence[Message], wanted: int) -> str:
        """Say what is wrong with an answer; empty if nothing is."""
        ids = self.kind.ids(rows)
        if not ids:
            return "the answer is empty, which proves nothing"
        if len(ids) > self.source.limit:
            return f"the answer has {len(ids)} rows although {self.source.limit} were asked for"
        if ids[0] < wanted:
            return f"the answer begins at {ids[0]}, before what was asked for"
        if any(after <= before for before, after in pairwise(ids)):
            return "the answer's IDs do not rise"
        return ""


def sorted_out(kind: MessageType, rows: Sequence[Message], wanted: int, last: int) -> list[Outcome]:
    """Cut a checked answer to the range `wanted` to `last` and name the IDs that it shows not to exist (rule 3)."""
    outcomes: list[Outcome] = []
    found: list[Message] = []
    expected = wanted
    for id_, row in zip(kind.ids(rows), rows, strict=True):
        if expected < min(id_, last + 1):
            if found:
                outcomes.append(Found(found))
                found = []
            outcomes.append(Absent(expected, min(id_ - 1, last)))
        if id_ > last:
            break
        found.append(row)
        expected = id_ + 1
    if found:
        outcomes.append(Found(found))
    return outcomes


def history_of(
    rest: Rest, market: Market, stream: str, symbol: str, *, extra_fields: Sequence[str] = (), api_key: str = ""
) -> History:
    """Return the history of one feed; `api_key` is sent only to calls that need one."""
    source = market.history[stream]
    headers = {source.key_header: api_key} if api_key and source.key_header else {}
    kind = history_type(market, stream, symbol, extra_fields)
    return History(rest, market.rest_prefix + source.path, source, symbol, kind, headers)
