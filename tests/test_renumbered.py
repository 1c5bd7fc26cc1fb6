"""A numbering that begins anew, the first rows of which nobody saw: they are asked for, and never forgotten."""

import signal
from pathlib import Path

import pytest
from byhand import ByHand, Reply, by_hand, claims_all, lacking
from conftest import Program, Programs, ids, journal, rows, rows_told, status_of

BTC = "BTCUSDT"
FEED = f"binance/trade/{BTC}"


def started(programs: Programs, exchange: ByHand, **keys: object) -> tuple[Program, Path]:
    data_dir = programs.folder / "data"
    config = programs.config(DATA_DIR=str(data_dir), COLLECT=[exchange.entry()], MIN_FREE_DISK=0, **keys)
    return programs.start("run", "--config", config), data_dir


def old_numbering(programs: Programs, exchange: ByHand, **keys: object) -> tuple[Program, Path]:
    """Collect five rows of the numbering that will end."""
    run, data_dir = started(programs, exchange, **keys)
    run.until(lambda: exchange.listeners(BTC))
    exchange.issue(BTC, 5)
    run.until(lambda: rows_told(data_dir) == 5)
    return run, data_dir


def filled(data_dir: Path) -> list[tuple[int, int]]:
    """Return which IDs the journal calls filled."""
    return [(entry["first_id"], entry["last_id"]) for entry in journal(data_dir, "filled")]


def silent(path: str, _: dict[str, str], reply: Reply) -> Reply | None:
    """Give no history."""
    return None if path == "historicalTrades" else reply


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_rows_of_a_numbering_that_began_while_nobody_collected(programs: Programs, end: signal.Signals) -> None:
    """The exchange begins anew while the collector is away; what it traded until then is fetched."""
    with by_hand() as exchange:
        run, data_dir = old_numbering(programs, exchange)
        run.send(end)
        run.wait()
        exchange.renumber(BTC, 1)
        exchange.issue(BTC, 40, sent=False)
        run, _ = started(programs, exchange)
        run.until(lambda: exchange.listeners(BTC))
        exchange.issue(BTC, 5)
        run.until(lambda: filled(data_dir) == [(1, 40)])
        ended = run.stop()
    assert ended.code == 0, ended.said
    assert sorted(ids(rows(data_dir, FEED))) == [*range(1, 46), *range(7000, 7005)]
    (begins,) = journal(data_dir, "numbering_begins")
    assert (begins["first_id"], begins["last_id"]) == (1, 41)


def test_a_numbering_that_is_seen_from_its_first_row_lacks_nothing(programs: Programs) -> None:
    """Where history shows nothing before the first row that came, no ID is called missing."""
    with by_hand() as exchange:
        run, data_dir = old_numbering(programs, exchange)
        exchange.renumber(BTC, 500)
        exchange.issue(BTC, 5)
        run.until(lambda: journal(data_dir, "numbering_begins"))
        ended = run.stop()
    assert claims_all(ended)
    assert not journal(data_dir, "gap")
    assert lacking(exchange, data_dir) == {}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_what_history_did_not_tell_is_asked_at_the_next_start(programs: Programs, end: signal.Signals) -> None:
    """As long as nobody knows where the numbering began, what may lie before its first row counts as missing."""
    with by_hand() as exchange:
        run, data_dir = old_numbering(programs, exchange)
        exchange.rest = silent
        exchange.renumber(BTC, 1)
        exchange.issue(BTC, 8, sent=False)
        exchange.issue(BTC, 5)
        run.until(lambda: journal(data_dir, "numbering_restarted") and rows_told(data_dir) == 10)
        (feed,) = status_of(data_dir)["feeds"]
        assert feed["unknown_since_ns"], "as long as history is asked, nobody knows"
        assert "numbering" in feed["unknown_reason"]
        run.send(end)
        ended = run.wait()
        if end is signal.SIGTERM:
            (gap,) = journal(data_dir, "gap")
            assert (gap["first_id"], gap["last_id"]) == (1, 8)
            assert not claims_all(ended)
        exchange.rest = lambda path, asked, reply: reply
        run, _ = started(programs, exchange)
        run.until(lambda: filled(data_dir) == [(1, 8)])
        run.stop()
    assert sorted(ids(rows(data_dir, FEED))) == [*range(1, 14), *range(7000, 7005)]


def test_one_row_alone_of_a_new_numbering_leaves_its_feed_unknown(programs: Programs) -> None:
    """As long as one row only may begin a new numbering it is in no file, and nobody says that nothing is missing."""
    with by_hand() as exchange:
        run, data_dir = old_numbering(programs, exchange)
        run.until(lambda: journal(data_dir, "known"))
        exchange.renumber(BTC, 1)
        exchange.issue(BTC, 1)
        run.until(lambda: "numbering" in status_of(data_dir)["feeds"][0]["unknown_reason"])
        ended = run.stop()
    assert not claims_all(ended)
    assert ids(rows(data_dir, FEED)) == [*range(7000, 7005)]


def test_what_nobody_asks_for_is_lost(programs: Programs) -> None:
    """Without BACKFILL the IDs before the first row of a new numbering are on record like those of any gap."""
    with by_hand() as exchange:
        run, data_dir = old_numbering(programs, exchange, BACKFILL=False)
        exchange.renumber(BTC, 1)
        exchange.issue(BTC, 8, sent=False)
        exchange.issue(BTC, 5)
        run.until(lambda: journal(data_dir, "lost") and rows_told(data_dir) == 10)
        ended = run.stop()
    assert [(entry["first_id"], entry["last_id"]) for entry in journal(data_dir, "lost")] == [(1, 8)]
    assert not claims_all(ended)
