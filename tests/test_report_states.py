"""What the report says of today in each state of a collector, held against what the exchange has issued."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from byhand import ByHand, by_hand, lacking
from click.testing import CliRunner
from conftest import Program, Programs, journal
from test_coverage import BTC, ETH, collected, hangs, started, until_known, until_unknown

from tickcollect.cli import main

UNKNOWN = 4
CLAIMS = ("complete so far", "100 %", "Every ID", "every ID")
"""What may be said only while it is known that nothing is missing."""


@pytest.fixture
def exchange() -> Iterator[ByHand]:
    with by_hand() as served:
        yield served


class Reported:
    """One report on today, as text and as JSON."""

    def __init__(self, programs: Programs, data_dir: Path) -> None:
        config = str(programs.folder / "config.json")
        asked = ["report", "--date", "today", "--data-dir", str(data_dir), "--config", config]
        text, facts = CliRunner().invoke(main, asked), CliRunner().invoke(main, [*asked, "--json"])
        self.code, self.text = text.exit_code, " ".join(text.output.split())
        assert text.exit_code == facts.exit_code, text.output + facts.output
        self.facts: dict[str, Any] = json.loads(facts.output)

    @property
    def claims(self) -> bool:
        """Whether anything in it says that nothing is missing."""
        said = any(claim in self.text for claim in CLAIMS)
        percent = any(feed["percent"] == 100 for feed in self.facts["feeds"])
        return said or percent or self.code == 0 or self.facts["verdict"] == "complete"

    def check_unknown(self, reason: str, symbol: str = BTC) -> None:
        """Hold it against what must be said where nobody knows."""
        assert not self.claims, self.text
        assert (self.code, self.facts["verdict"]) == (UNKNOWN, "unknown")
        (feed,) = [feed for feed in self.facts["feeds"] if feed["symbol"] == symbol]
        assert (feed["state"], feed["percent"]) == ("unknown", None)
        assert feed["unknown_since"].endswith("Z")
        assert reason in feed["unknown_reason"]
        assert f"unknown since {feed['unknown_since'][11:19]} UTC ({feed['unknown_reason']}" in self.text


def reported(run: Program, programs: Programs, data_dir: Path, when: Callable[[Reported], object]) -> Reported:
    """Report until it says what it should: the status file is up to a second old."""
    return run.until(lambda: (found := Reported(programs, data_dir)) and when(found) and found)  # type: ignore[no-any-return]


def test_while_all_is_known_it_is_complete_so_far(programs: Programs, exchange: ByHand) -> None:
    """Connected, and the newest row is the exchange's newest: then, and only then, so far nothing is missing."""
    run, data_dir = started(programs, exchange)
    collected(run, exchange, data_dir)
    report = Reported(programs, data_dir)
    assert report.claims
    assert lacking(exchange, data_dir) == {}
    assert (report.code, report.facts["verdict"]) == (0, "complete")
    assert "complete so far" in report.text
    assert report.facts["feeds"][0]["ids"]["ends"] == "running"
    run.stop()


def test_never_connected_is_unknown(programs: Programs) -> None:
    """The exchange lets nobody in: no row is here, and whether there are any is not known."""
    with by_hand(lets_in=lambda _: False) as exchange:
        run, data_dir = started(programs, exchange)
        run.until(lambda: journal(data_dir, "cannot_connect"))
        exchange.issue(BTC, 9)
        run.until(lambda: until_unknown(run, data_dir)["unknown_reason"] == "not connected yet")
        Reported(programs, data_dir).check_unknown("not connected yet")
        run.stop()


def test_disconnected_reconnected_and_stopped_are_unknown(programs: Programs, exchange: ByHand) -> None:
    """From the cut on nothing is claimed: not while cut off, not before a row after it, and not after a stop."""
    run, data_dir = started(programs, exchange)
    collected(run, exchange, data_dir)
    exchange.lets_in, exchange.rest = lambda _: False, hangs
    exchange.cut()
    exchange.issue(BTC, 18)
    until_unknown(run, data_dir)
    Reported(programs, data_dir).check_unknown("disconnected")
    exchange.lets_in = lambda _: True
    run.until(lambda: exchange.listeners(BTC))
    report = reported(run, programs, data_dir, lambda found: "disconnected (" not in found.text)
    report.check_unknown("")
    assert len(lacking(exchange, data_dir)[BTC]) == 18
    exchange.lets_in = lambda _: False
    exchange.cut()
    assert run.stop().code == 0
    report = Reported(programs, data_dir)
    assert len(lacking(exchange, data_dir)[BTC]) == 18
    assert not report.claims, report.text
    assert report.code == UNKNOWN


def test_after_a_reconnection_a_row_ends_the_doubt(programs: Programs, exchange: ByHand) -> None:
    """Once a row has come live and the hole before it is filled, today is complete so far again."""
    run, data_dir = started(programs, exchange)
    collected(run, exchange, data_dir)
    exchange.lets_in = lambda _: False
    exchange.cut()
    exchange.issue(BTC, 18)
    until_unknown(run, data_dir)
    exchange.lets_in = lambda _: True
    run.until(lambda: exchange.listeners(BTC))
    exchange.issue(BTC)
    until_known(run, data_dir)
    report = reported(run, programs, data_dir, lambda found: found.code == 0)
    assert lacking(exchange, data_dir) == {}
    assert "complete so far" in report.text
    run.stop()


def test_stopped_in_order_nothing_is_known_of_what_comes_then(programs: Programs, exchange: ByHand) -> None:
    """At the stop all was known; what the exchange issues afterwards is not."""
    run, data_dir = started(programs, exchange)
    collected(run, exchange, data_dir)
    assert run.stop().code == 0
    exchange.issue(BTC, 7)
    Reported(programs, data_dir).check_unknown("the collector was stopped")


def test_killed_nothing_is_known_since_the_last_row(programs: Programs, exchange: ByHand) -> None:
    """A killed collector has left no word: its process is gone, and so is what it knew."""
    run, data_dir = started(programs, exchange)
    collected(run, exchange, data_dir)
    run.send(signal.SIGKILL)
    run.wait()
    exchange.issue(BTC, 7)
    report = Reported(programs, data_dir)
    report.check_unknown("died or hangs")
    assert len(lacking(exchange, data_dir)[BTC]) == 7
    (data_dir / "status.json").unlink()
    report = Reported(programs, data_dir)
    assert not report.claims, report.text
    assert report.code == UNKNOWN


def test_one_feed_that_is_away_leaves_the_others_known(programs: Programs) -> None:
    """One exchange is collected, of the other nothing is known: that is told of the other's feed only."""
    with by_hand(BTC) as exchange, by_hand(ETH) as away:
        away.lets_in, away.rest = lambda _: False, hangs
        run, data_dir = started(programs, exchange, away)
        collected(run, exchange, data_dir)
        until_unknown(run, data_dir, ETH)
        report = Reported(programs, data_dir)
        run.stop()
    states = {feed["symbol"]: feed["state"] for feed in report.facts["feeds"]}
    assert states == {BTC: "complete", ETH: "unknown"}
    assert report.code == UNKNOWN
    assert "1 of 2 feeds" in report.text


def test_one_cut_of_many_feeds_is_one_connection_that_broke(programs: Programs) -> None:
    """A connection that carried eight feeds broke once, whatever each feed counts."""
    symbols = [f"S{number}USDT" for number in range(8)]
    with by_hand(*symbols) as exchange:
        run, data_dir = started(programs, exchange)
        run.until(lambda: exchange.listeners(symbols[-1]))
        for symbol in symbols:
            exchange.issue(symbol)
        until_known(run, data_dir, symbols[-1])
        exchange.cut()
        run.until(lambda: journal(data_dir, "disconnected"))
        run.until(lambda: len(journal(data_dir, "connected")) > 1)
        run.stop()
        report = Reported(programs, data_dir)
    assert report.facts["disconnects"] == 1
    assert "1 connection broke" in report.text
