"""SIGKILL at random moments, while rows are written, files roll and are packed.

What is on disk is whole, and no ID is unaccounted for. KILLS sets how often (12; `make kill` does it 500 times), SEED
repeats a run.
"""

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import (
    GAPS_STAY,
    Exchange,
    Programs,
    check_accounts,
    data_files,
    exchange,
    journal,
)

from tickcollect.dataset.replay import GeneratedMarket

KILLS = int(os.environ.get("KILLS", "12"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
START_MS = 1_784_073_588_000
"""Twelve seconds before midnight, which the market passes after three."""
FEED = "binance/trade/BTCUSDT"


def market() -> GeneratedMarket:
    """Return a market of one busy symbol: about 600 trades in a second of market time."""
    return GeneratedMarket("binance", START_MS, symbols=1, activity=20)


def kill_once(programs: Programs, served: Exchange, data_dir: Path, dice: random.Random) -> int:
    """Let it collect, kill it at a random moment, and return the memory that it had taken, in kB."""
    keys = {"ROTATE_SIZE": dice.choice(["1kB", "5kB", "40kB"]), "COMPRESSION": dice.choice(["zip", "gzip", "zstd"])}
    config = programs.config(**keys, SYNC_INTERVAL_S=0.05, GAP_PATIENCE_S=0.05, **GAPS_STAY)
    options = ("--symbol", "BTCUSDT", "--data-dir", data_dir, "--config", config)
    connected = len(journal_lines(data_dir, "connected"))
    run = programs.start("run", *options, *served.addresses)
    run.until(lambda: len(journal_lines(data_dir, "connected")) > connected)
    time.sleep(dice.uniform(0, 0.4))  # any moment
    status = Path(f"/proc/{run.process.pid}/status").read_text()
    assert run.stop(signal.SIGKILL).code == -signal.SIGKILL
    assert "Traceback" not in run.said()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    assert peak
    return int(peak[1])


def journal_lines(data_dir: Path, event: str) -> list[str]:
    """Return the journal's lines of one kind; a torn one is still a line."""
    path = data_dir / "journal.jsonl"
    text = path.read_text("utf-8") if path.exists() else ""
    return [line for line in text.splitlines() if f'"{event}"' in line]


@pytest.mark.timeout(120 + 4 * KILLS)
def test_killed_at_any_moment(
    programs: Programs, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """After every kill the next start goes on: nothing torn, doubled or lost, every packed file opens, names are true.

    The market goes on meanwhile, so what is missed while nobody collects is a gap in the journal.
    """
    record_property("SEED", SEED)
    dice = random.Random(SEED)
    data_dir = tmp_path / "data"
    with exchange(market(), speed=4) as served:
        peaks_kb = [kill_once(programs, served, data_dir, dice) for _ in range(KILLS)]
        config = programs.config(GAP_PATIENCE_S=0.05, SEAL_AT_STOP=True, **GAPS_STAY)
        last = programs.start(
            "run", "--symbol", "BTCUSDT", "--data-dir", data_dir, "--config", config, *served.addresses
        )
        last.until(lambda: len(journal_lines(data_dir, "connected")) > KILLS)
        ended = last.stop()
    assert ended.code == 0
    numbers = check_accounts(data_dir, FEED, market())
    assert len(numbers) > 100 * KILLS, f"SEED={SEED}"
    files = data_files(data_dir, FEED)
    assert all(file.last_id is not None for file in files), "all is sealed at the end"
    assert all(file.ids[-1] - file.ids[0] + 1 == len(file.lines) for file in files), "a hole inside a file"
    assert [json.loads(line)["event"] for line in journal_lines(data_dir, "stopped")] == ["stopped"]
    assert not [
        path for path in data_dir.rglob("*") if path.name.endswith(".unconfirmed") and "status" not in path.name
    ]
    assert max(peaks_kb[len(peaks_kb) // 2 :]) - min(peaks_kb) < 20_000, "memory grows with what is on disk"
    assert journal(data_dir, "seal_failed", "file_lost", "foreign_file") == []
