"""What is claimed in each state of a collector, held against what the exchange has issued."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from byhand import ByHand, Reply, by_hand, claims_all, lacking
from conftest import GAPS_STAY, Program, Programs, journal, status_of

BTC, ETH = "BTCUSDT", "ETHUSDT"
STOPPED_WITHIN_S = 15.0
"""With both cores busy; three seconds of it may be questions."""


def started(programs: Programs, *exchanges: ByHand, **keys: object) -> tuple[Program, Path]:
    """Start collecting all that these exchanges have."""
    data_dir = programs.folder / "data"
    entries = [exchange.entry() for exchange in exchanges]
    config = programs.config(DATA_DIR=str(data_dir), COLLECT=entries, **{"MIN_FREE_DISK": 0, **keys})
    return programs.start("run", "--config", config), data_dir


def feed_of(data_dir: Path, symbol: str = BTC) -> dict[str, Any]:
    """Return what the status file says of a feed; empty before there is one."""
    feeds: list[dict[str, Any]] = status_of(data_dir).get("feeds", [])
    return next((feed for feed in feeds if feed["symbol"] == symbol), {})


def until_known(run: Program, data_dir: Path, symbol: str = BTC) -> None:
    """Wait until the status says of a feed that all is known."""
    run.until(lambda: (feed := feed_of(data_dir, symbol)) and feed["connected"] and feed["unknown_since_ns"] is None)


def until_unknown(run: Program, data_dir: Path, symbol: str = BTC) -> dict[str, Any]:
    """Wait until the status says of a feed that nothing is known, and return what it says."""
    found: dict[str, Any] = run.until(
        lambda: (feed := feed_of(data_dir, symbol)) and feed["unknown_since_ns"] is not None and feed
    )
    return found


def collected(run: Program, exchange: ByHand, data_dir: Path, symbol: str = BTC, number: int = 5) -> None:
    """Issue trades on an open connection and wait until they are in the files and known to be all."""
    run.until(lambda: exchange.listeners(symbol))
    exchange.issue(symbol, number)
    run.until(lambda: feed_of(data_dir, symbol).get("rows", 0) >= number)
    until_known(run, data_dir, symbol)


def hangs(path: str, _: dict[str, str], reply: Reply) -> Reply | None:
    """Answer what the start needs, and nothing else."""
    return reply if path in ("exchangeInfo", "time") else None


def banned(path: str, _: dict[str, str], reply: Reply) -> Reply | None:
    """Answer what the start needs, and 418 to everything else."""
    return reply if path in ("exchangeInfo", "time") else (418, {"code": -1003, "msg": "banned"})


# --- The stop, in each state ---------------------------------------------------------------------------------------


def test_a_stop_without_any_connection_claims_nothing(programs: Programs) -> None:
    """Where the exchange never let us in, nothing is known, and that is what the last line says."""
    with by_hand(lets_in=lambda _: False) as exchange:
        run, data_dir = started(programs, exchange)
        run.until(lambda: journal(data_dir, "cannot_connect"))
        exchange.issue(BTC, 9)
        ended = run.stop()
    assert ended.code == 0, ended.said
    assert not claims_all(ended)
    assert "0 rows in" in ended.out
    assert "nothing is known: no connection was made" in ended.out
    (stopped,) = journal(data_dir, "stopped")
    assert (stopped["connections"], stopped["unknown"]) == (0, 1)
    (unknown,) = journal(data_dir, "unknown")
    assert (unknown["subject"], unknown["feeds"]) == ("binance", ["trade/BTCUSDT"])
    assert stopped["unknown_since"] == unknown["since"]


def test_a_stop_before_the_subscription_is_acknowledged_claims_nothing(programs: Programs) -> None:
    """An open connection alone proves nothing: what was issued on it did not come."""
    with by_hand(acknowledges=False) as exchange:
        run, data_dir = started(programs, exchange)
        run.until(lambda: journal(data_dir, "connected"))
        exchange.issue(BTC, 3)
        ended = run.stop()
    assert not claims_all(ended)
    assert "it is not known since" in ended.out
    assert lacking(exchange, data_dir) == {}, "no row at all"


@pytest.mark.parametrize("rest", [hangs, banned], ids=["REST hangs", "REST is banned"])
def test_a_stop_while_disconnected_says_since_when_nothing_is_known(programs: Programs, rest: Any) -> None:
    """What was issued meanwhile is neither here nor known, and the stop is quick all the same."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        last_ms = exchange.issued[BTC][-1]["time"]
        exchange.lets_in = lambda _: False
        exchange.rest = rest
        exchange.cut()
        exchange.issue(BTC, 18)
        told = until_unknown(run, data_dir)
        began_s = time.monotonic()
        ended = run.stop()
        assert time.monotonic() - began_s < STOPPED_WITHIN_S
    assert ended.code == 0, ended.said
    assert len(lacking(exchange, data_dir)[BTC]) == 18
    assert not claims_all(ended)
    assert "it is not known since" in ended.out
    assert "(1 feed): disconnected" in ended.out
    assert last_ms <= told["unknown_since_ns"] / 1e6 <= time.time() * 1000
    (stopped,) = journal(data_dir, "stopped")
    assert stopped["unknown"] == 1
    shown = programs.run("status", "--data-dir", data_dir)
    assert "stopped in order" in shown.out
    assert "it is not known since" in " ".join(shown.out.split())


def test_a_stop_while_disconnected_fetches_what_it_can(programs: Programs) -> None:
    """Where the exchange answers over REST, what was missed is fetched before the end, and then nothing is missing."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        exchange.lets_in = lambda _: False
        exchange.cut()
        exchange.issue(BTC, 18)
        until_unknown(run, data_dir)
        ended = run.stop()
    assert lacking(exchange, data_dir) == {}
    assert claims_all(ended), ended.said


def test_a_stop_while_disconnected_without_backfill_does_not_fetch_and_does_not_claim(programs: Programs) -> None:
    """With BACKFILL false the exchange is asked, but what it has is not fetched: that stays said."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange, **GAPS_STAY)
        collected(run, exchange, data_dir)
        exchange.lets_in = lambda _: False
        exchange.cut()
        exchange.issue(BTC, 18)
        until_unknown(run, data_dir)
        ended = run.stop()
    assert len(lacking(exchange, data_dir)[BTC]) == 18
    assert not claims_all(ended)


def test_a_stop_on_a_connection_that_is_half_open_is_found_out(programs: Programs) -> None:
    """A connection may be open here and gone there; the exchange is asked, and what did not come is fetched."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        exchange.issue(BTC, 4, sent=False)
        ended = run.stop()
    assert lacking(exchange, data_dir) == {}
    assert claims_all(ended), ended.said


def test_a_stop_on_a_connection_that_may_be_half_open_claims_nothing_unasked(programs: Programs) -> None:
    """If the exchange does not answer, it is not known whether more was issued since the last sign of life."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        exchange.rest = hangs
        exchange.issue(BTC, 4, sent=False)
        run.until(lambda: time.time() * 1000 - exchange.issued[BTC][0]["time"] > 2000)
        ended = run.stop()
    assert len(lacking(exchange, data_dir)[BTC]) == 4
    assert not claims_all(ended)
    assert "it is not known since" in ended.out


# --- After a reconnection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tickers", [True, False], ids=["many at once", "one by one"])
def test_what_an_outage_took_from_quiet_markets_is_fetched_at_once(programs: Programs, *, tickers: bool) -> None:
    """No row comes after the reconnection, and yet the rows of the outage are fetched and nothing is claimed before."""
    with by_hand(BTC, ETH, has_tickers=tickers) as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir, BTC)
        collected(run, exchange, data_dir, ETH)
        exchange.lets_in = lambda _: False
        exchange.cut()
        exchange.issue(BTC, 18)
        until_unknown(run, data_dir, BTC)
        until_unknown(run, data_dir, ETH)
        exchange.lets_in = lambda _: True
        until_known(run, data_dir, BTC)
        assert BTC not in lacking(exchange, data_dir), "it was called known before it was here"
        until_known(run, data_dir, ETH)
        assert claims_all(run.stop())
    kinds = [entry["event"] for entry in journal(data_dir, "unknown", "known")]
    assert kinds[:2] == ["unknown", "known"]
    (cut,) = [entry for entry in journal(data_dir, "unknown") if entry["reason"] == "disconnected"]
    assert cut["feeds"] == ["trade/BTCUSDT", "trade/ETHUSDT"], "one entry for all feeds of a connection"


def test_a_subscription_that_is_acknowledged_and_dead_is_asked_about_again(programs: Programs) -> None:
    """Quiet at first and then trading without a word: each question is true of its moment only."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        exchange.cut()
        run.until(lambda: len(journal(data_dir, "connected")) > 1)
        run.until(lambda: len(journal(data_dir, "known")) > 1)
        exchange.issue(BTC, 7, sent=False)
        run.until(lambda: not lacking(exchange, data_dir))
        run.stop()


def test_feeds_of_an_exchange_that_is_away_are_not_vouched_for(programs: Programs) -> None:
    """One exchange collects, the other lets nobody in and hangs: the stop says it of the other's feeds only."""
    with by_hand(BTC) as exchange, by_hand(ETH) as away:
        away.lets_in = lambda _: False
        away.rest = hangs
        run, data_dir = started(programs, exchange, away)
        collected(run, exchange, data_dir)
        until_unknown(run, data_dir, ETH)
        ended = run.stop()
    assert not claims_all(ended)
    assert "(1 feed): not connected yet" in ended.out
    known = {name for entry in journal(data_dir, "known") for name in entry["feeds"]}
    assert known == {"trade/BTCUSDT"}


def test_a_connection_that_is_replaced_leaves_nothing_unknown(programs: Programs) -> None:
    """A renewal opens the new connection first, so that nothing is doubted in between."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        exchange.announce_shutdown()
        run.until(lambda: exchange.listeners(BTC) == 2)
        exchange.issue(BTC, 3)
        run.until(lambda: journal(data_dir, "renewed"))
        exchange.issue(BTC, 3)
        run.until(lambda: feed_of(data_dir)["rows"] == 11)
        ended = run.stop()
    assert len(journal(data_dir, "unknown")) == 1, "that of the start"
    assert claims_all(ended)
    assert lacking(exchange, data_dir) == {}


def test_one_of_two_connections_is_enough(programs: Programs) -> None:
    """With REDUNDANCY 2 nothing becomes unknown while one connection carries on."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange, REDUNDANCY=2)
        run.until(lambda: exchange.listeners(BTC) == 2)
        collected(run, exchange, data_dir)
        exchange.lets_in = lambda _: False
        exchange.cut(1)
        run.until(lambda: journal(data_dir, "disconnected"))
        exchange.issue(BTC, 5)
        run.until(lambda: feed_of(data_dir)["rows"] == 10)
        assert feed_of(data_dir)["unknown_since_ns"] is None
        assert len(journal(data_dir, "unknown")) == 1, "that of the start"
        exchange.cut()
        until_unknown(run, data_dir)
        exchange.rest = hangs
        ended = run.stop()
    assert not claims_all(ended)


def test_a_kill_leaves_nothing_that_claims(programs: Programs) -> None:
    """Of a killed collector nobody knows what came after its last row: text, JSON and code say so."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        run.send(signal.SIGKILL)
        run.wait()
    shown = programs.run("status", "--data-dir", data_dir)
    assert shown.code == 2
    assert "it is not known since" in shown.out
    (snapshot,) = json.loads(programs.run("status", "--data-dir", data_dir, "--json").out)
    (feed,) = snapshot["feeds"]
    assert feed["unknown_since_ns"] == feed["last_row_ns"]
    assert feed["unknown_reason"]


# --- Answers that lie ----------------------------------------------------------------------------------------------


def newest_is(id_: int) -> Callable[[str, dict[str, str], Reply], Reply | None]:
    """Name another newest ID than the true one, wherever it is asked."""

    def answer(path: str, asked: dict[str, str], reply: Reply) -> Reply | None:
        if path == "24hr":
            return 404, {}
        if path == "trades":
            return 200, [{"id": id_, "price": "1.0", "qty": "1.0", "time": 1_784_000_000_000, "isBuyerMaker": True}]
        return reply

    return answer


LIES: dict[str, Any] = {
    "absurd": newest_is(2**62),
    "of another symbol, far above": newest_is(900_000),
    "older than ours": newest_is(7_001),
    "garbage": lambda path, _, reply: (200, b'[{"id":"x"}]') if path in ("trades", "24hr") else reply,
    "empty": lambda path, _, reply: (200, []) if path in ("trades", "24hr") else reply,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_the_newest_row_proves_nothing(programs: Programs, lie: str) -> None:
    """Neither a false claim that all is here nor a false gap follows; a live row ends the doubt."""
    with by_hand() as exchange:
        run, data_dir = started(programs, exchange)
        collected(run, exchange, data_dir)
        exchange.rest = LIES[lie]
        exchange.cut()
        exchange.issue(BTC, 2, sent=False)
        run.until(lambda: len(journal(data_dir, "connected")) > 1)
        asked = exchange.counts()["trades"]
        run.until(lambda: exchange.counts()["trades"] >= asked + 2)
        feed = until_unknown(run, data_dir)
        assert feed["missing_ids"] in (0, 900_000 - 7_004), (
            "an ID that no row confirms is no gap, but for one named twice"
        )
        exchange.rest = lambda path, asked, reply: reply
        exchange.issue(BTC, 2)
        until_known(run, data_dir)
        ended = run.stop()
    assert lacking(exchange, data_dir) == {}
    assert claims_all(ended), ended.said
    assert not [gap for gap in journal(data_dir, "gap") if gap["count"] > 2]


# --- Many silent feeds ---------------------------------------------------------------------------------------------


def test_many_silent_feeds_are_asked_about_in_few_requests(programs: Programs) -> None:
    """A hundred quiet markets cost five requests, not a hundred."""
    quiet = [f"Q{number}USDT" for number in range(100)]
    with by_hand(*quiet) as exchange:
        for symbol in quiet:
            exchange.issue(symbol)
        run, data_dir = started(programs, exchange)
        run.until(lambda: exchange.listeners(quiet[-1]))
        for symbol in quiet:
            exchange.issue(symbol)
        until_known(run, data_dir, quiet[-1])
        exchange.asked.clear()
        exchange.cut()
        run.until(lambda: len(journal(data_dir, "known")) and exchange.counts()["24hr"] >= 5)
        for symbol in quiet:
            until_known(run, data_dir, symbol)
        assert exchange.counts()["trades"] == 0
        run.stop()


def test_a_ban_holds_up_neither_the_disk_watch_nor_the_status(programs: Programs) -> None:
    """While REST is banned and a feed is silent, the rest of the watching goes on."""
    with by_hand(BTC, ETH, rest=banned) as exchange:
        run, data_dir = started(programs, exchange, FIRST_DATA_S=1, MIN_FREE_DISK=10**18)
        run.until(lambda: journal(data_dir, "silence_unclear"))
        collected(run, exchange, data_dir, ETH)
        run.until(lambda: journal(data_dir, "disk_low"))
        assert until_unknown(run, data_dir, BTC)["unknown_reason"].startswith("the exchange cannot be asked")
        ended = run.stop()
    assert not claims_all(ended)
