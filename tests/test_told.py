"""A running collector and the people concerned: real process, real channel, an exchange that comes and goes."""

import json
import signal
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from channels.bot_api import CHAT, TOKEN, BotApi, failure
from conftest import Exchange, Program, Programs, exchange, ids, journal, rows, rows_told, status_of, until

from tickcollect.dataset.replay import GeneratedMarket

SYMBOL = "BTCUSDT"
FEED = f"binance/trade/{SYMBOL}"


def market() -> GeneratedMarket:
    return GeneratedMarket("binance", start_ms=1_784_000_000_000, symbols=1, activity=20)


def newest_id(served: Exchange) -> int:
    """Ask the exchange for its newest trade."""
    with urllib.request.urlopen(f"{served.server.rest_url}/api/v3/trades?symbol={SYMBOL}&limit=1") as answer:
        (trade,) = json.load(answer)
        return int(trade["id"])


def configured(programs: Programs, api: BotApi, entry: dict[str, str], **keys: object) -> Path:
    """Write a configuration with Telegram as its channel."""
    return programs.config(
        DATA_DIR=str(programs.folder / "data"),
        COLLECT=[{**entry, "symbols": [SYMBOL]}],
        TELEGRAM_TOKEN=TOKEN,
        TELEGRAM_CHAT_ID=CHAT,
        TELEGRAM_API_URL=api.address,
        ALERT_NAME="tick1",
        **keys,
    )


def time_of(row: str) -> str:
    """Return a trade's own time, the ninth column, as the journal writes times."""
    moment = datetime.fromtimestamp(int(row.split(",")[8]) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def until_told(program: Program, api: BotApi, words: str) -> str:
    """Wait for a message with these words, and return it."""

    def found() -> str:
        return next((message.text for message in list(api.messages) if words in message.text), "")

    text: str = program.until(found)
    return text


def test_people_hear_of_start_gap_and_stop(programs: Programs, api: BotApi) -> None:
    """A run is told once at its start and its end, and what a killed one missed with what filled it; no token is."""
    data_dir = programs.folder / "data"
    with exchange(market(), speed=1.0) as served:
        config = configured(programs, api, served.entry, LOG_LEVEL="DEBUG")
        first = programs.start("run", "--config", config)
        until_told(first, api, "tick1: started")
        first.until(lambda: rows_told(data_dir) > 20)
        first.send(signal.SIGKILL)
        first.process.wait()
        kept = rows(data_dir, FEED)
        until(lambda: newest_id(served) > ids(kept)[-1] + 5)
        second = programs.start("run", "--config", config)
        filled = until_told(second, api, "filled")
        assert second.stop().code == 0
        missed = sum(entry["rows"] for entry in journal(data_dir, "filled"))
        assert missed > 0
        assert f"{missed:,} trade" in filled
        assert "Nothing of this is missing any more" in filled
        assert len(rows(data_dir, FEED)) > len(kept) + missed
        titles = api.titles()
    assert [title for title in titles if "started" in title] == ["tick1: started", "tick1: started after a crash"]
    (crash,) = [message.text for message in api.messages if "after a crash" in message.title]
    assert f"Its newest row is of {time_of(kept[-1])}" in crash
    assert sum("stopped after" in title for title in titles) == 1
    everything = first.said() + second.said() + json.dumps([status_of(data_dir), journal(data_dir)])
    assert TOKEN.split(":")[1] not in everything


def test_an_exchange_that_is_down_at_the_start_is_told_and_its_return(programs: Programs, api: BotApi) -> None:
    """Before the exchange has answered at all, people hear that it does not, and then that it does."""
    with exchange(market()) as served:
        entry = served.entry
        ports = served.server.ws_url, served.server.rest_url
    config = configured(programs, api, entry, ALERT_DISCONNECTED_S=1)
    program = programs.start("run", "--config", config)
    assert "binance not connected" in until_told(program, api, "not connected")
    port = int(ports[1].rpartition(":")[2])
    with exchange(market(), port=port):
        until_told(program, api, "connected again")
        until_told(program, api, "tick1: started")
        assert program.stop().code == 0


def test_a_dead_channel_is_in_status_and_log_and_stops_nothing(programs: Programs, api: BotApi) -> None:
    """A revoked token: told in log, journal and status, whose exit code says so, while rows are written; exit 0."""
    api.always = failure(401, "Unauthorized")
    data_dir = programs.folder / "data"
    with exchange(market(), speed=1.0) as served:
        program = programs.start("run", "--config", configured(programs, api, served.entry))
        program.until(lambda: journal(data_dir, "channel_failed"))
        before = rows_told(data_dir)
        program.until(lambda: rows_told(data_dir) > before)

        def failing() -> list[dict[str, Any]]:
            channels = status_of(data_dir).get("channels", [])
            return [channel for channel in channels if channel["failing_since_ns"] is not None]

        (channel,) = program.until(failing)
        assert channel["name"] == f"telegram {CHAT}"
        shown = programs.run("status", "--data-dir", data_dir)
        assert shown.code == 1
        assert "alerts to telegram" in shown.out
        ended = program.stop()
    assert ended.code == 0
    assert TOKEN.split(":")[1] not in ended.said


def test_a_loss_told_while_the_channel_is_away_survives_a_kill(programs: Programs, api: BotApi) -> None:
    """What could not be told when the process was killed is told by the next one."""
    data_dir = programs.folder / "data"
    api.leave()
    with exchange(market(), speed=1.0) as served:
        config = configured(programs, api, served.entry, BACKFILL=False)
        first = programs.start("run", "--config", config)
        first.until(lambda: rows_told(data_dir) > 20)
        first.send(signal.SIGKILL)
        first.process.wait()
        kept = rows(data_dir, FEED)
        until(lambda: newest_id(served) > ids(kept)[-1] + 5)
        second = programs.start("run", "--config", config)
        second.until(lambda: journal(data_dir, "lost"))
        waiting = data_dir / "alerts-waiting.json"
        second.until(lambda: waiting.exists() and "trades lost" in waiting.read_text("utf-8"))
        second.send(signal.SIGKILL)
        second.process.wait()
        api.come_back()
        third = programs.start("run", "--config", config)
        told = until_told(third, api, "trades lost")
        assert f"IDs {ids(kept)[-1] + 1} to" in told
        assert third.stop().code == 0
    assert not waiting.exists()
    assert TOKEN.split(":")[1] not in third.said()


def test_beside_a_collector_that_runs_no_crash_is_claimed(programs: Programs, api: BotApi) -> None:
    """A second collector of the directory finds the first one's start in the journal and does not call it a crash."""
    data_dir = programs.folder / "data"
    with exchange(market(), speed=1.0) as served:
        config = configured(programs, api, served.entry)
        first = programs.start("run", "--config", config)
        first.until(lambda: rows_told(data_dir) > 0)
        beside = programs.start(
            "run", "--symbol", SYMBOL, "--stream", "aggTrade", "--data-dir", data_dir, *served.addresses
        )
        beside.until(lambda: len(journal(data_dir, "started")) > 1)
        assert journal(data_dir, "not_stopped") == []
        assert beside.stop().code == 0
        assert first.stop().code == 0
