"""What history says is believed as far as it proves itself: by rows that are known to exist."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import pytest

from tickcollect.exchanges.binance import MARKETS
from tickcollect.repair import Beside, History, HistorySilentError, KnownRow, Lost, Outcome, Page, history_of
from tickcollect.rest import BadRequestError, Rest

T0 = 1_784_000_000_000
LIMIT = 10
FIRST, LAST = 100, 129
"""The gap; 99 was written before it, 130 came live behind it."""


def time_of(id_: int) -> int:
    return T0 + id_ * 10


def price_of(id_: int) -> str:
    return f"{100 + id_ % 7}.50"


def known(*ids: int) -> list[KnownRow]:
    return [KnownRow(id_, Decimal(price_of(id_)), Decimal("1.5"), time_of(id_)) for id_ in ids]


def given(*ids: int, **other: object) -> list[dict[str, Any]]:
    """Return rows as the call gives them (Binance rest-api.md, historicalTrades)."""
    return [
        {"id": id_, "price": price_of(id_), "qty": "1.50", "time": time_of(id_), "isBuyerMaker": True} | other
        for id_ in ids
    ]


class Answers:
    """Answers one after the other, the last one for ever; or the rows that there are, as the exchange does."""

    def __init__(self, *answers: object, published: Sequence[int] = ()) -> None:
        self.answers = list(answers)
        self.published = published
        self.asked: list[int] = []

    async def get(self, _path: str, params: dict[str, int], **_: object) -> bytes:
        self.asked.append(params["fromId"])
        if self.answers:
            answer = self.answers.pop(0) if len(self.answers) > 1 or self.published else self.answers[0]
        else:
            answer = given(*[id_ for id_ in self.published if id_ >= params["fromId"]][:LIMIT])
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


async def no_pause(_: float) -> None:
    return


def history(answers: Answers, market: str = "binance") -> History:
    found = history_of(cast("Rest", answers), MARKETS[market], "trade", "BTCUSDT", api_key="k")
    return replace(found, source=replace(found.source, limit=LIMIT), sleep=no_pause)


def outcomes(
    answers: Answers, beside: Beside, first: int = FIRST, last: int = LAST, market: str = "binance"
) -> tuple[list[Outcome], str]:
    """Return what was believed, and the error that ended it."""

    async def collect() -> tuple[list[Outcome], str]:
        found: list[Outcome] = []
        try:
            async for outcome in history(answers, market).fetch(first, last, beside):
                found.append(outcome)  # noqa: PERF401 - what came before an error counts
        except HistorySilentError as error:
            return found, str(error)
        return found, ""

    return asyncio.run(collect())


def ids(found: Sequence[Outcome]) -> list[int]:
    return [row.t for page in found if isinstance(page, Page) for row in page.rows]  # type: ignore[union-attr]  # trades


def lacking(found: Sequence[Outcome]) -> list[tuple[int, int]]:
    return [span for page in found if isinstance(page, Page) for span in page.lacking]


BESIDE = Beside(known(99), known(130))
SMALL = Beside(known(99), known(105))


def test_pages_of_a_large_gap_adjoin_each_other() -> None:
    """Each page is asked for from the last row of the one before, and the last one goes on to the live row."""
    answers = Answers(published=range(90, 200))
    found, error = outcomes(answers, BESIDE)
    assert (ids(found), lacking(found), error) == (list(range(100, 130)), [], "")
    assert answers.asked == [99, 108, 117, 126]


def test_what_is_not_there_is_named() -> None:
    """IDs that a page passes over, between rows known to exist, are named and not more than that."""
    answers = Answers(published=[99, 100, 103, 104, 105, 106])
    assert lacking(outcomes(answers, SMALL, 100, 104)[0]) == [(101, 102)]


@pytest.mark.parametrize("market", ["binance", "binance-futures"])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(given(*range(150, 160)), id="IDs too late"),
        pytest.param(given(*range(99, 106), price="1.5"), id="the prices of another market"),
        pytest.param(given(*range(99, 106), qty="7"), id="the quantities of another market"),
        pytest.param(given(*range(99, 106), time=T0 - 10**9), id="the times of another market"),
        pytest.param(given(99, 100, 101, 102, 103, 104, 106), id="without the live row behind the gap"),
        pytest.param(given(*range(101, 105)), id="without a known row"),
        pytest.param([], id="empty"),
        pytest.param(given(99), id="ended before the gap"),
        pytest.param(given(99, 101, 100, 102, 105), id="unordered"),
        pytest.param(given(99, 100, 100, 101, 105), id="doubled"),
        pytest.param(given(*range(98, 106)), id="begun below what was asked for"),
        pytest.param(given(*range(99, 110)), id="more rows than asked for"),
        pytest.param(given(2**63), id="an ID that is none"),
        pytest.param(given(2**63 - 1), id="the highest ID"),
        pytest.param(b"[" * 100_000, id="nested without end"),
        pytest.param({"code": 0}, id="no list"),
        pytest.param(given(*range(99, 106), price="abc"), id="a price that is no number"),
        pytest.param(b"[{]", id="no JSON"),
    ],
)
def test_an_answer_that_does_not_prove_itself_shows_nothing(answer: object, market: str) -> None:
    """Whatever is wrong with an answer, and however often it comes: no row is taken from it and no ID called absent."""
    found, error = outcomes(Answers(answer), SMALL, 100, 104, market)
    assert found == []
    assert error


def test_a_stale_replica_gives_what_it_has_and_proves_nothing_else() -> None:
    """Rows that adjoin the row before the gap are taken; that the answer ends there says nothing of the others."""
    found, error = outcomes(Answers(given(99, 100, 102), given(102)), SMALL, 100, 104)
    assert ids(found) == [100, 102]
    assert lacking(found) == []
    assert "ends at 102" in error


def test_an_answer_that_begins_late_proves_nothing_of_what_is_before() -> None:
    """An answer with the row behind the gap but not the one before it: its rows are real, what it lacks may exist."""
    found, error = outcomes(Answers(given(102, 103, 104, 105)), SMALL, 100, 104)
    assert (ids(found), lacking(found), error) == ([102, 103, 104], [], "")


def test_a_full_page_shows_what_it_passes_over() -> None:
    """In the middle of a large gap there is no live row; a page that is full goes on, so it does not end early."""
    published = [99, 100, 104, *range(105, 200)]
    assert lacking(outcomes(Answers(published=published), BESIDE)[0]) == [(101, 103)]


def test_the_next_page_must_hold_the_last_row_of_the_page_before() -> None:
    """A second page of another market is noticed by its first row."""
    answers = Answers(given(*range(99, 109)), given(*range(108, 118), price="1.5"))
    found, error = outcomes(answers, BESIDE)
    assert ids(found) == list(range(100, 109))
    assert "108" in error


def test_a_row_that_history_lacks_itself_does_not_stop_the_others() -> None:
    """If the row before the gap is not in the archive, one before that proves whose rows they are."""
    answers = Answers(published=[97, 98, *range(100, 200)])
    found, error = outcomes(answers, Beside(known(97, 98, 99), known(130)))
    assert (ids(found), error) == (list(range(100, 130)), "")


def test_an_impossible_time_is_kept_apart() -> None:
    """A row between its neighbours by ID and years from them by time is not among the rows, and not absent."""
    answer = given(99, 100) + given(101, time=T0 * 2) + given(102, 103, 104, 105)
    found, _ = outcomes(Answers(answer), SMALL, 100, 104)
    assert ids(found) == [100, 102, 103, 104]
    assert lacking(found) == []
    assert [row.t for page in found if isinstance(page, Page) for row in page.odd] == [101]  # type: ignore[union-attr]  # trades


def test_a_gap_at_the_end_of_what_history_reaches() -> None:
    """The row before the gap may be too old to be asked for while the gap is not."""
    too_old = BadRequestError("Search window is restricted to recent 2 days only.", code=-4166)
    found, error = outcomes(Answers(too_old, published=range(90, 200)), SMALL, 100, 104)
    assert (ids(found), error) == (list(range(100, 105)), "")
    found, _ = outcomes(Answers(too_old), SMALL, 100, 104)
    assert isinstance(found[0], Lost)


def test_rows_of_the_numbering_before_are_not_taken_for_those_of_a_new_one() -> None:
    """Where history lags behind a new numbering, a page may hold the old rows with the IDs that are asked for."""
    beside = Beside((), known(130), since_ms=time_of(115))
    lagging = Answers(given(*range(100, 100 + LIMIT)))
    found, error = outcomes(lagging, beside, 100, 129)
    assert (found, "of the numbering before" in error) == ([], True)
    with pytest.raises(HistorySilentError):
        asyncio.run(history(Answers(given(*range(1, 1 + LIMIT)))).begin(130, beside, beside.since_ms))
    found, error = outcomes(Answers(published=range(120, 200)), replace(beside, behind=known(150)), 120, 149)
    assert (ids(found), error) == (list(range(120, 150)), "")


def test_what_cannot_be_had_any_more_is_lost_and_anything_else_is_not() -> None:
    """A symbol that is no more stays gone; a refusal that nobody knows may be another one tomorrow."""
    gone = BadRequestError("Invalid symbol.", code=-1121)
    (lost,), _ = outcomes(Answers(gone), SMALL, 100, 104)
    assert isinstance(lost, Lost)
    assert (lost.first, lost.last) == (100, 104)
    with pytest.raises(BadRequestError):
        outcomes(Answers(BadRequestError("Mandatory parameter.", code=-2000)), SMALL, 100, 104)


def test_an_answer_that_lacks_a_known_row_shows_nothing_absent() -> None:
    """A row behind the gap that exists is not in the answer, so others that exist may not be, either."""
    beside = Beside(known(99), known(105, 106, 107))
    found, _ = outcomes(Answers(published=[99, 100, 105, 107, 108]), beside, 100, 104)
    assert (ids(found), lacking(found)) == ([100], [])
    found, _ = outcomes(Answers(published=[99, 100, 105, 107, 108]), replace(beside, all_public=False), 100, 104)
    assert lacking(found) == [(101, 104)]


def test_another_scale_of_a_number_is_the_same_number() -> None:
    """The stream writes `1.50000000` where history writes `1.5`."""
    beside = Beside([replace(known(99)[0], quantity=Decimal("1.50000000"))], known(105))
    assert ids(outcomes(Answers(given(*range(99, 106))), beside, 100, 104)[0]) == [100, 101, 102, 103, 104]
