"""Recordings of the real exchanges, played to the real program: every trade once, in order, as it was sent."""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    SHARED,
    Programs,
    data_files,
    ids,
    journal,
    missing,
    quarantined,
    recordings,
    row_of,
    rows,
    rows_told,
    text_of,
    utc_day,
)

HFTBACKTEST, CRYPTOFEED, POLYSIM = (SHARED / "binance" / name for name in ("hftbacktest", "cryptofeed", "polysim"))
MARKETS = {"spot": "binance", "usdm": "binance-futures", "cm": "binance-delivery"}


def messages_of(path: Path) -> list[str]:
    """Return the texts of a recording, whatever stands before them, of combined stream messages only."""
    return [line[line.index("{") :] for line in text_of(path) if '"stream":' in line and '"data":' in line]


def addresses(said: str) -> dict[str, dict[str, str]]:
    """Read from the replay's output where each exchange is."""
    found = re.findall(r"(?m)^(binance\S*): .*\n  websocket (\S+)   REST (\S+)", said)
    return {name: {"exchange": name, "ws_url": ws, "rest_url": rest} for name, ws, rest in found}


def collect(programs: Programs, files: list[Path], stream: str, data_dir: Path, **keys: Any) -> dict[str, list[str]]:
    """Replay `files` at full speed into `tickcollect run` until all of `stream` is there; return the rows expected."""
    expected: dict[str, list[str]] = defaultdict(list)
    options = ("--exchange", keys.pop("exchange")) if "exchange" in keys else ()
    replay = programs.start("replay", *files, "--speed", "max", "--start-delay", "0.2", *options)
    replay.until_said("tickcollect run")
    servers = addresses(replay.said())
    for file in files:
        market = options[1] if options else next(name for key, name in MARKETS.items() if file.name.startswith(key))
        for message in messages_of(file):
            if (data := json.loads(message)["data"]).get("e") == stream:
                expected[f"{market}/{stream}/{data['s']}"].append(row_of(message))
    entries = [
        {
            **servers[market],
            "stream": stream,
            "symbols": sorted(f.split("/")[2] for f in expected if f.startswith(market + "/")),
        }
        for market in {feed.split("/")[0] for feed in expected}
    ]
    run = programs.start("run", "--config", programs.config(DATA_DIR=str(data_dir), COLLECT=entries, **keys))
    total = sum(map(len, expected.values()))
    run.until(lambda: rows_told(data_dir) >= total)
    ended = run.stop()
    assert ended.code == 0
    assert f"{total:,} rows" in ended.out
    assert "no ID is missing" in ended.out
    assert replay.stop().code == 0
    return expected


@recordings("hftbacktest")
@pytest.mark.parametrize("seal", [False, True])
def test_every_trade_of_three_markets_is_collected_once(programs: Programs, tmp_path: Path, *, seal: bool) -> None:
    """All trades of the eight files, of three exchanges in one process, are in the files once, in order, as sent."""
    files = sorted(HFTBACKTEST.glob("*.gz"))
    expected = collect(programs, files, "trade", tmp_path / "data", SEAL_AT_STOP=seal, COMPRESSION="zip")
    assert len(files) == 8
    assert sum(map(len, expected.values())) == 75_043
    for feed, lines in expected.items():
        found = data_files(tmp_path / "data", feed)
        assert [line for file in found for line in file.lines] == lines
        days = {utc_day(int(line.split(",")[8])) for line in lines}
        assert [file.day for file in found] == sorted(days), "one file a day, by trade time"
        assert all(file.last_id is not None for file in (found if seal else found[:-1]))
        assert missing(tmp_path / "data", feed) == set()
    assert journal(tmp_path / "data", "gap", "refused_message", "late_rows", "numbering_restarted") == []


@recordings("hftbacktest")
def test_the_day_of_a_row_is_that_of_its_trade(programs: Programs, tmp_path: Path) -> None:
    """The 19 trades behind midnight in the file of the day before begin the next day's file."""
    collect(programs, [HFTBACKTEST / "spot_btcusdt_20240808.gz"], "trade", tmp_path / "data")
    first, second = data_files(tmp_path / "data", "binance/trade/BTCUSDT")
    assert (first.day, second.day) == ("2024-08-08", "2024-08-09")
    assert (first.first_id, first.last_id, second.first_id) == (3735683259, 3735693015 - 19, 3735693015 - 18)
    assert len(second.lines) == 19


@recordings("cryptofeed")
@pytest.mark.parametrize(
    ("file", "exchange"),
    [
        ("BINANCE.ws.1.0.txt.gz", "binance"),
        ("BINANCE_FUTURES.ws.1.0.txt.gz", "binance-futures"),
        ("BINANCE_DELIVERY.ws.1.0.txt.gz", "binance-delivery"),
        ("BINANCE_US.ws.1.0.txt.gz", "binance"),
    ],
)
def test_aggregates_of_2021_are_collected(file: str, exchange: str, programs: Programs, tmp_path: Path) -> None:
    """Aggregate trades with the fields of 2021, of quiet symbols and of dated contracts, are all there."""
    expected = collect(programs, [CRYPTOFEED / file], "aggTrade", tmp_path / "data", exchange=exchange)
    assert expected
    for feed, lines in expected.items():
        assert rows(tmp_path / "data", feed) == lines
        assert len(set(ids(lines))) == len(lines)


@recordings("polysim")
@pytest.mark.parametrize(("file", "exchange"), [("spot", "binance"), ("perp", "binance-futures")])
def test_aggregates_of_2026_are_collected(file: str, exchange: str, programs: Programs, tmp_path: Path) -> None:
    """Fields that came later (`nq`, `st`) disturb nothing, and EXTRA_COLUMNS keeps them as they were sent."""
    path = POLYSIM / f"{file}_aggTrade.jsonl.gz"
    extra = ["nq", "st"]
    expected = collect(programs, [path], "aggTrade", tmp_path / "data", exchange=exchange, EXTRA_COLUMNS=extra)
    ((feed, lines),) = expected.items()
    sent = [json.loads(message)["data"] for message in messages_of(path)]
    with_extra = [
        ",".join([line, *(str(data.get(n, "")) for n in extra)]) for line, data in zip(lines, sent, strict=True)
    ]
    assert rows(tmp_path / "data", feed) == with_extra
    assert quarantined(tmp_path / "data", exchange) == []
