"""An exchange that lies: well-formed answers and messages that are not true (N5 to N7, N13)."""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tickcollect.dataset.replay import Answer, Connection, Cut, Request
from tickcollect.dataset.replay.server import Step

from .exchange import FIRST_ID, Issued, altered, counting, data_of
from .judge import journal
from .network import gap
from .scene import Case, Scene, UnmetError

DAY_MS = 86_400_000
GAP_ROWS = 30
LATER_S = 200.0
"""Two answers prove that an ID does not exist only where they are 120 s apart; a case that needs the second waits."""

Rows = list[dict[str, Any]]
Lie = Callable[[Request, Rows, Scene], Rows]

# --- N13: history ----------------------------------------------------------------------------------------------------


def begins_late(_: Request, rows: Rows, __: Scene) -> Rows:
    """Leave out the first rows: the one that was asked for, and ten of those that are missing."""
    return rows[11:]


def leaves_out(_: Request, rows: Rows, __: Scene) -> Rows:
    """Leave out a stretch, with true rows on both its sides."""
    return rows[:6] + rows[16:]


def foreign(_: Request, rows: Rows, __: Scene) -> Rows:
    """Give another symbol's rows under the same IDs."""
    return [row | {"price": "3911.42", "qty": "1.50000000", "time": row["time"] - 7000} for row in rows]


def foreign_ids(_: Request, rows: Rows, __: Scene) -> Rows:
    """Give another symbol's rows, with its own IDs, all above those that were asked for."""
    return [row | {"id": row["id"] + 700_000_000, "price": "3911.42"} for row in rows]


def earlier(_: Request, __: Rows, scene: Scene) -> Rows:
    """Give the very first rows, whatever was asked for."""
    return [shown(row) for row in scene.market.issued[scene.market.symbols[0]][:10]]


def later(_: Request, rows: Rows, scene: Scene) -> Rows:
    """Give the newest rows, whatever was asked for."""
    return [shown(row) for row in scene.market.issued[scene.market.symbols[0]][-5:]] or rows


def ends_early(_: Request, rows: Rows, __: Scene) -> Rows:
    """Give what a server has that has not caught up yet: the first few rows."""
    return rows[:8]


def ends_at_the_row_asked_for(_: Request, rows: Rows, __: Scene) -> Rows:
    """Give nothing newer than the row that was asked for."""
    return rows[:1]


def unordered(_: Request, rows: Rows, __: Scene) -> Rows:
    """Give the right rows from the last to the first."""
    return rows[::-1]


def doubled(_: Request, rows: Rows, __: Scene) -> Rows:
    """Give each row twice."""
    return [row for row in rows for _ in range(2)]


def years_ago(_: Request, rows: Rows, __: Scene) -> Rows:
    """Date all rows five years back."""
    return [row | {"time": row["time"] - 5 * 365 * DAY_MS} for row in rows]


def dated_wrongly(_: Request, rows: Rows, __: Scene) -> Rows:
    """Date some of the missing rows five years back."""
    return rows[:6] + years_ago(_, rows[6:9], __) + rows[9:]


def empty(_: Request, __: Rows, ___: Scene) -> Rows:
    """Give nothing."""
    return []


def shown(row: Issued) -> dict[str, Any]:
    """Return a row as history shows it."""
    trade = row.trade
    return {
        "id": trade.id, "price": trade.price, "qty": trade.quantity, "quoteQty": "1", "time": trade.time_ms,
        "isBuyerMaker": trade.buyer_is_maker, "isBestMatch": True,
    }  # fmt: skip


def is_history(request: Request) -> bool:
    """Tell whether rows are asked for by ID."""
    return "fromId" in dict(request.query)


def lying(scene: Scene, lie: Lie, times: int) -> Callable[[Request, Answer], Answer]:
    """Return what makes the next `times` answers of history a lie."""
    left = times

    def twist(request: Request, answer: Answer) -> Answer:
        nonlocal left
        if left <= 0 or not is_history(request) or answer.status != 200:
            return answer
        left -= 1
        return answer._replace(body=json.dumps(lie(request, json.loads(answer.body), scene)).encode())

    return twist


async def lied_to(scene: Scene, lie: Lie, times: int) -> None:
    """Lose rows, and let the first answers of history be lies."""
    with scene.answering(lying(scene, lie, times)):
        before = scene.history_requests()
        await gap(scene, GAP_ROWS)
        within_s = 60.0 if times > 1 else 20.0
        await scene.until(lambda: scene.history_requests() >= before + times, "history is asked again", within_s)
        await scene.until_current()


def without_a_stretch() -> Callable[[Request, Answer], Answer]:
    """Return what leaves the same ten missing rows out of every answer, with true rows on both sides."""
    stretch: set[int] = set()

    def twist(request: Request, answer: Answer) -> Answer:
        if not is_history(request) or answer.status != 200:
            return answer
        rows = json.loads(answer.body)
        if not stretch:
            stretch.update(row["id"] for row in rows[6:16])
        return answer._replace(body=json.dumps([row for row in rows if row["id"] not in stretch]).encode())

    return twist


async def lied_to_and_restarted(scene: Scene) -> None:
    """Let answers lie in the same way before a restart and after it: no two proofs, but one moment."""
    with scene.answering(without_a_stretch()):
        await gap(scene, GAP_ROWS)
        await scene.until_said("history does not have")
        await scene.stop()
        before = scene.history_requests()
        await scene.start()
        await scene.until(lambda: scene.history_requests() > before, "history is asked at the start", within_s=LATER_S)
        await scene.until_current()


async def same_page(scene: Scene, times: int) -> None:
    """Lose more rows than a page has, and give the first page again and again."""
    first: list[bytes] = []

    def twist(request: Request, answer: Answer) -> Answer:
        if not is_history(request) or len(first) > times:
            return answer
        first.append(answer.body)
        return answer._replace(body=first[0])

    with scene.answering(twist):
        await gap(scene, 2500)
        await scene.until(lambda: len(first) > times, "history is asked again")


# --- The newest ID ---------------------------------------------------------------------------------------------------


def newest(scene: Scene, id_of: Callable[[int], int | None]) -> Callable[[Request, Answer], Answer]:
    """Return what lets the exchange name another newest ID than its own."""

    def twist(request: Request, answer: Answer) -> Answer:
        if not request.path.endswith("/trades"):
            return answer
        id_ = id_of(scene.market.newest_id(scene.market.symbols[0]))
        rows = [] if id_ is None else [row | {"id": id_} for row in json.loads(answer.body)[-1:]]
        return answer._replace(body=json.dumps(rows).encode())

    return twist


async def newest_is_a_lie(scene: Scene, id_of: Callable[[int], int | None]) -> None:
    """Let a new connection stay silent, and name a wrong ID as the newest: then it is not known what is missing."""
    asked = sum(request.path.endswith("/trades") for request in scene.server.requests)
    with scene.sending(lambda _, __, ___, ____: []), scene.answering(newest(scene, id_of)):
        scene.server.disconnect(Cut())
        await scene.until(
            lambda: sum(request.path.endswith("/trades") for request in scene.server.requests) >= asked + 2,
            "the exchange is asked for its newest ID",
        )
        snapshots = claims_of(scene)
        await scene.until(lambda: len(snapshots()) >= 3, "it writes its status")
        if any(known for known in snapshots().values()):
            raise UnmetError("while nothing comes and the exchange names what cannot be, nothing is known")


def claims_of(scene: Scene) -> Callable[[], dict[int, bool]]:
    """Return what collects the snapshots from now on: when each was, and whether it calls the feed known."""
    found: dict[int, bool] = {}

    def look() -> dict[int, bool]:
        found.update({claim.at_ns: claim.is_known for claim in scene.claims()})
        return found

    return look


# --- Its clock and its list ------------------------------------------------------------------------------------------


async def slow_time(scene: Scene) -> None:
    """Let each answer that tells the time come 5 s late."""

    def twist(request: Request, answer: Answer) -> Answer:
        return answer._replace(delay_s=5.0) if request.path.endswith("/time") else answer

    with scene.answering(twist):
        await scene.stop()
        asked = len(times_asked(scene))
        await scene.start()
        await scene.until(lambda: len(times_asked(scene)) > asked, "it asks for the time")
        await asyncio.sleep(6)
        await scene.until_current()
    if "clock is wrong" in scene.said():
        raise UnmetError("an answer that comes late is no proof of a wrong clock")


def times_asked(scene: Scene) -> list[Request]:
    """Return the requests for the exchange's time."""
    return [request for request in scene.server.requests if request.path.endswith("/time")]


async def lying_list(scene: Scene, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let the list of symbols be untrue at a start, and a while afterwards, and lose rows meanwhile."""

    def twist(request: Request, answer: Answer) -> Answer:
        if not request.path.endswith("exchangeInfo"):
            return answer
        return answer._replace(body=json.dumps(change(json.loads(answer.body))).encode())

    with scene.answering(twist):
        await scene.stop()
        await scene.start()
        await scene.until_current()
        await gap(scene, GAP_ROWS)
        await scene.until_current()
        await scene.until_said("filled with")


def without(info: dict[str, Any], keep: int) -> dict[str, Any]:
    """Return a list with only so many symbols."""
    return info | {"symbols": info["symbols"][:keep]}


def limited(info: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return a list that allows so much request weight a minute."""
    return info | {"rateLimits": [{**each, "limit": limit} for each in info["rateLimits"]]}


# --- N5 to N7: messages ----------------------------------------------------------------------------------------------


async def old_rows(scene: Scene) -> None:
    """Let each new connection begin with all rows of the last minute."""
    begun: set[Connection] = set(scene.server.connections)
    before: list[bytes] = []

    def twist(connection: Connection, _: str, __: int, payload: bytes) -> list[Step]:
        steps: list[Step] = [payload]
        if connection not in begun:
            begun.add(connection)
            steps = [*before, payload]
        before.append(payload)
        return steps

    with scene.sending(twist):
        for _ in range(3):
            seen = len(before)
            await scene.until(lambda seen=seen: len(before) > seen + 40, "rows come")  # type: ignore[misc]  # mypy infers no default
            scene.server.disconnect(Cut())
            await scene.until_current()


async def every(scene: Scene, interval: int, count: int, made: Callable[[bytes], Sequence[Step]]) -> None:
    """Send what `made` makes of each `interval`-th message, `count` times."""
    seen = 0

    def twist(_: Connection, __: str, ___: int, payload: bytes) -> Sequence[Step]:
        nonlocal seen
        seen += 1
        return made(payload) if seen % interval == 0 and seen <= interval * count else [payload]

    with scene.sending(twist):
        await scene.until(lambda: seen > interval * count, "all is sent")
        await scene.until_current()


def with_foreign(payload: bytes) -> list[Step]:
    """Put another symbol's row before a message, under this symbol's name."""
    return [foreign_to(payload, 900_000_000), payload]


def with_foreign_below(payload: bytes) -> list[Step]:
    """Put a row of another symbol there whose IDs are lower."""
    return [foreign_to(payload, 70_000), payload]


def foreign_to(payload: bytes, from_id: int) -> bytes:
    """Return a message with another symbol's ID, from `from_id` on, price and quantity."""
    data = data_of(payload)
    name = "t" if "t" in data else "a"
    id_ = from_id + data[name] % 100
    return altered(payload, {name: id_, "p": "3911.42000000", "q": "2.00000000"})


def dated(payload: bytes, days: int) -> list[Step]:
    """Send a message with a trade time that is days off."""
    return [altered(payload, {"T": data_of(payload)["T"] + days * DAY_MS})]


async def misdated(scene: Scene, days: int) -> None:
    """Date one row wrongly, restart, and lose some rows."""
    await every(scene, 10, 1, partial(dated, days=days))
    await scene.stop()
    await scene.start()
    await scene.until_current()
    await gap(scene, GAP_ROWS)


def renumbered_from(first: int) -> Callable[[int], int]:
    """Count as ever up to a number, and from 1 on behind it."""
    return lambda number: counting(number) if number < first else number - first + 1


async def renumber_in_same_ms(scene: Scene) -> None:
    """Begin the numbering anew between rows of one millisecond."""
    first = len(scene.market.issued[scene.market.symbols[0]]) + 30
    scene.market.same_ms = (first - 4, first + 4)
    scene.market.numbering = renumbered_from(first)
    await scene.until(lambda: len(scene.market.issued[scene.market.symbols[0]]) > first + 10, "numbers begin anew")
    await scene.until_current()


async def renumber_twice(scene: Scene) -> None:
    """Begin the numbering anew, restart the collector on the same day, and do both once more."""
    for times in (1, 2):
        await renumber_now(scene)
        await scene.until(partial(has_told_restarts, scene, times), "it says that the numbering began anew")
        await scene.until_current()
        await scene.stop()
        await scene.start()
        await scene.until_current()


async def renumber_now(scene: Scene) -> None:
    """Begin the numbering anew at 1, some rows from now."""
    rows, before = scene.market.issued[scene.market.symbols[0]], scene.market.numbering
    first = len(rows) + 60
    scene.market.numbering = lambda number: before(number) if number < first else number - first + 1
    await scene.until(lambda: len(rows) > first, "numbers begin anew")


def has_told_restarts(scene: Scene, times: int) -> bool:
    """Tell whether the collector has seen so many numberings begin."""
    told = [entry for entry in journal(scene.data_dir) if entry["event"] == "numbering_restarted"]
    return len(told) == times


async def renumber_while_down(scene: Scene) -> None:
    """Begin the numbering anew while the collector is killed."""
    await scene.kill()
    await renumber_now(scene)
    await scene.start()
    await scene.until_said("numbering began anew")


# --- Futures ---------------------------------------------------------------------------------------------------------


def many_kinds(number: int) -> str:
    """Mix trades with RPI trades, placeholders, internal fills, and a kind that nobody knows."""
    for every_so_many, kind in ((61, "NEW_KIND"), (41, "ADL"), (37, "INSURANCE_FUND"), (7, "NA"), (5, "RPI")):
        if number % every_so_many == every_so_many - 1:
            return kind
    return "MARKET"


async def new_kinds(scene: Scene) -> None:
    """Let every kind come, some rows from now."""
    rows = scene.market.issued[scene.market.symbols[0]]
    first = len(rows) + 60
    scene.market.kinds = lambda number: "MARKET" if number < first else many_kinds(number)
    await scene.until_said("is of kind NEW_KIND")
    await scene.until(lambda: len(rows) > first + 150, "every kind has come")


def rpi_only(number: int) -> str:
    """Let every third trade be an RPI trade."""
    return "RPI" if number % 3 == 0 else "MARKET"


_LIE = partial(Case, group="N13")
_FUTURES = partial(Case, exchange="binance-futures")
_TIMES = {1: "once", 2: "twice", 4: "four times"}

CASES: Sequence[Case] = (
    *(_LIE(f"history-{name}-{count}", what=f"history {what}, {_TIMES[count]} in the same way",
           must="it proves nothing; the rows are had from a later answer",
           provoke=partial(lied_to, lie=lie, times=count),
           tells="filled", must_be_filled=True, quick=(name, count) in quick)
      for quick in ({("begins-late", 2), ("foreign", 2), ("later-page", 2)},)
      for name, what, lie, counts in (
          ("begins-late", "begins ten rows too late", begins_late, (1, 2, 4)),
          ("foreign", "gives another symbol's rows under the same IDs", foreign, (1, 2)),
          ("foreign-ids", "gives another symbol's rows with its own IDs", foreign_ids, (1, 2)),
          ("earlier-page", "gives the oldest rows", earlier, (1, 2)),
          ("later-page", "gives the newest rows", later, (1, 2)),
          ("ends-early", "ends after a few rows", ends_early, (2, 4)),
          ("lags", "ends at the row before the gap", ends_at_the_row_asked_for, (4,)),
          ("empty-a-while", "is empty", empty, (4,)),
          ("unordered", "gives its rows backwards", unordered, (2,)),
          ("doubled", "gives each row twice", doubled, (2,)),
          ("years-ago", "dates its rows five years back", years_ago, (2,)),
      )
      for count in counts),
    _LIE("history-leaves-out", what="one answer leaves out ten rows, with true rows on both sides",
         must="one answer proves nothing; the next, minutes later, has them",
         provoke=partial(lied_to, lie=leaves_out, times=1),
         tells="asked again to be sure", must_be_filled=True, settle_s=LATER_S, rows_per_s=20.0),
    _LIE("history-leaves-out-2", what="the same before and after a restart, within moments",
         must="two answers of one moment are one; never called absent",
         provoke=lied_to_and_restarted, tells="asked again to be sure", must_be_filled=True,
         settle_s=LATER_S, rows_per_s=20.0),
    _LIE("history-dates-wrongly", what="one answer dates three of the missing rows five years back",
         must="they are not written so; the next answer, minutes later, has them right",
         provoke=partial(lied_to, lie=dated_wrongly, times=1), must_be_filled=True, settle_s=LATER_S, rows_per_s=20.0),
    _LIE("history-same-page", what="2,500 rows are missing, and the first page comes again and again",
         must="it is not taken for the next one", provoke=partial(same_page, times=3), tells="filled",
         must_be_filled=True, rows_per_s=1000.0, memory_mb=40.0),
    *(_LIE(f"newest-{name}", what=f"a new connection stays silent, and the exchange names {what} as its newest ID",
           must="what is missing is not known meanwhile, and nothing else is said",
           provoke=partial(newest_is_a_lie, id_of=id_of), quick=name == "absurd")
      for name, what, id_of in (
          ("stale", "one far below ours", lambda id_: id_ - 100_000),
          ("none", "none", lambda _: None),
          ("foreign", "another symbol's", lambda id_: id_ + 700_000_000),
          ("absurd", "2^62", lambda _: 2**62),
          ("first", "its very first", lambda _: FIRST_ID))),
    _LIE("time-late", what="the exchange tells its time 5 s late", must="nobody's clock is called wrong",
         provoke=slow_time),
    *(_LIE(f"list-{name}", what=f"the list of symbols {what}", must="what is collected stays collected and repaired",
           provoke=partial(lying_list, change=change), symbols=2, quick=name == "empty")
      for name, what, change in (
          ("partial", "lacks one of the two", partial(without, keep=1)),
          ("empty", "is empty", partial(without, keep=0)),
          ("limit-0", "allows a request weight of 0", partial(limited, limit=0)),
          ("limit-1", "allows a request weight of 1", partial(limited, limit=1)),
          ("limit-huge", "allows a request weight of 10^15", partial(limited, limit=10**15)))),
    Case("old-rows-first", "N5", "each new connection begins with all rows of the last minute",
         "each row is written once", old_rows, peers=True, quick=True),
    Case("foreign-rows", "N5", "another symbol's rows come under this one's name, with higher IDs",
         "none of them is written, nothing is lost", partial(every, interval=15, count=5, made=with_foreign),
         peers=True, quick=True),
    Case("foreign-rows-below", "N5", "the same with lower IDs", "the same",
         partial(every, interval=15, count=5, made=with_foreign_below), peers=True),
    Case("dated-ahead", "N9", "one row is dated 30 days ahead; then a restart and a gap",
         "it does not name a file; it is fetched as it is; the restart goes on by ID", partial(misdated, days=30),
         "quarantine", peers=True, quick=True),
    Case("dated-back", "N9", "one row is dated 30 days back; then a restart and a gap", "the same",
         partial(misdated, days=-30), "quarantine", peers=True),
    Case("renumbered-same-ms", "N7", "the numbering begins anew between rows of one millisecond",
         "a new file begins; nothing is taken for a copy", renumber_in_same_ms, "numbering began anew", peers=True,
         quick=True),
    Case("renumbered-twice", "N7", "the numbering begins anew twice within a day, each time before a restart",
         "each is seen, and each start goes on in the newest one", renumber_twice, "numbering began anew"),
    Case("renumbered-down", "N7", "the numbering begins anew while the collector is killed",
         "seen at the first rows; what was issued meanwhile is on record as not proved", renumber_while_down,
         "numbering began anew"),
    _FUTURES("futures-kinds", "N9", "futures `trade` with RPI trades, placeholders, fills and an unknown kind",
             "every trade is written, the unknown kind too and told; what is no trade is not",
             new_kinds, "is of kind NEW_KIND", quick=True),
    _FUTURES("futures-gap", "N6", "40 rows of the futures `trade` are skipped", "they are filled in their place",
             partial(gap, rows=40), "filled with 40 rows", kinds=rpi_only, must_be_filled=True),
    _FUTURES("futures-gap-holes", "N6", "40 rows of the futures `trade` are skipped, placeholders among them",
             "the trades are filled; the placeholders count as missing until two answers, minutes apart, lack them",
             partial(gap, rows=40), "filled with", kinds=many_kinds, must_be_filled=True, settle_s=LATER_S,
             rows_per_s=20.0),
    *(_FUTURES(f"futures-history-{name}", "N13", f"one answer of the history of the futures `trade` {what}",
               "it proves nothing; the rows are had from the next", partial(lied_to, lie=lie, times=1), "filled",
               kinds=rpi_only, must_be_filled=True, quick=name == "begins-late")
      for name, what, lie in (
          ("begins-late", "begins ten rows too late", begins_late),
          ("foreign", "gives another symbol's rows", foreign),
          ("foreign-ids", "gives another symbol's rows with its own IDs", foreign_ids),
          ("earlier-page", "gives the oldest rows", earlier))),
)  # fmt: skip
"""Lies."""
