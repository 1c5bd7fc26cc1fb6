"""The fault kit on the real collector, one variant of each fault; and whether its judge sees what it must see.

`python -m tests.faults --all` runs every variant. `SEED` repeats a run.
"""

import asyncio
import os
import shlex
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from faults import judge
from faults.__main__ import CASES, play_all
from faults.exchange import Issued, Tape
from faults.judge import Score
from faults.target import SECRETS, TICKCOLLECT, target_of

SEED = int(os.environ.get("SEED", str(time.time_ns() % 10**6)))
QUICK = [case for case in CASES if case.quick]
JOBS = 6


@pytest.fixture(scope="module")
def scores() -> Mapping[str, Score]:
    """Play the quick cases side by side, once."""
    return {score.case: score for score in asyncio.run(play_all(QUICK, TICKCOLLECT, SEED, JOBS))}


@pytest.mark.timeout(480)
@pytest.mark.parametrize("name", [case.name for case in QUICK])
def test_nothing_is_lost_and_what_happened_is_told(scores: Mapping[str, Score], name: str) -> None:
    """After a fault every row is in one place, in order, whole, or stated; the user was told; nothing else broke."""
    score = scores[name]
    if score.skipped:
        pytest.skip(f"{name}: {score.skipped}")
    assert score.failures == [], f"seed {SEED}"
    assert (score.lost, score.duplicates, score.out_of_order, score.torn, score.altered) == (0, 0, 0, 0, 0)
    assert score.stored + score.stated == score.sent
    if name != "hole-at-exchange":
        assert score.stated == 0, "history could answer"


def test_every_group_of_faults_has_a_case() -> None:
    """Each group that docs/faults.md describes has at least one case, each case has its own name and a group there."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "faults.md").read_text()
    groups = {case.group for case in CASES}
    wanted = {
        f"{letter}{n}" for letter, count in (("N", 16), ("P", 6), ("D", 6), ("C", 3)) for n in range(1, count + 1)
    }
    assert groups == wanted
    assert {case.group for case in QUICK} == wanted
    assert all(f"| {group} |" in text for group in groups)
    assert len({case.name for case in CASES}) == len(CASES)


# --- The judge -------------------------------------------------------------------------------------------------------


def issued(rows: int = 20) -> dict[str, list[Issued]]:
    """Return the first rows of a market."""
    tape = Tape(start_ms=1_784_000_000_000)
    return {"BTCUSDT": [tape.row("BTCUSDT", number) for number in range(rows)]}


def stored(directory: Path, rows: list[Issued]) -> Path:
    """Write rows as the collector does."""
    folder = directory / "binance" / "trade" / "BTCUSDT"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"BTCUSDT-trade-2026-07-14-{rows[0].trade.id}.csv"
    path.write_bytes(b"".join(judge.own_lines(row)[0] for row in rows))
    return path


def judged(directory: Path, market: Mapping[str, list[Issued]]) -> Score:
    """Judge what lies in a directory."""
    score = Score("none", TICKCOLLECT.name)
    findings = judge.read(directory, market, TICKCOLLECT)
    rows_missing = judge.missing(market, {"BTCUSDT": 0}, findings, judge.journal(directory))
    judge.judge(score, findings, rows_missing, TICKCOLLECT)
    return score


def test_whole_files_are_not_complained_about(tmp_path: Path) -> None:
    """Two files that hold all rows once, one of them with rows from history, are in order."""
    market = issued()
    rows = market["BTCUSDT"]
    stored(tmp_path, rows[:10])
    stored(tmp_path, rows[10:]).write_bytes(b"".join(judge.own_lines(row)[1] for row in rows[10:]))
    assert judged(tmp_path, market).failures == []


def _lose(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5] + lines[6:]))


def _double(path: Path) -> None:
    path.with_name("BTCUSDT-trade-2026-07-14-4000000-4000019.csv").write_bytes(path.read_bytes())


def _swap(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], lines[6], lines[5], *lines[7:]]))


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _round(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.00003000", b"0.00003", 1))


def _misname(path: Path) -> None:
    path.rename(path.with_name("BTCUSDT-trade-2026-07-14-4000001.csv"))


def _half_zip(path: Path) -> None:
    packed = path.with_name("BTCUSDT-trade-2026-07-14-4000000-4000019.csv.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(path, path.name)
    packed.write_bytes(packed.read_bytes()[:-30])
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "seen"),
    [
        (_lose, "rows are nowhere"),
        (_double, "there twice"),
        (_swap, "stand behind later ones"),
        (_tear, "torn"),
        (_round, "altered"),
        (_misname, "holds 4000000 to 4000019"),
        (_half_zip, "torn"),
    ],
)
def test_the_judge_sees_each_kind_of_harm(tmp_path: Path, harm: Callable[[Path], None], seen: str) -> None:
    """A row that is lost, double, misplaced, torn or altered, a false name and half a zip are each found."""
    market = issued()
    harm(stored(tmp_path, market["BTCUSDT"]))
    assert seen in " ".join(judged(tmp_path, market).failures)


def test_a_stated_loss_is_no_silent_one(tmp_path: Path) -> None:
    """Rows that the journal calls lost are counted apart; one row more than it states is a failure."""
    market = issued()
    rows = market["BTCUSDT"]
    stored(tmp_path, rows[:10])
    line = '{"event":"lost","subject":"binance/trade/BTCUSDT","first_id":%d,"last_id":4000019,"reason":"gone"}\n'
    (tmp_path / "journal.jsonl").write_text(line % 4000010)
    assert (judged(tmp_path, market).stated, judged(tmp_path, market).failures) == (10, [])
    (tmp_path / "journal.jsonl").write_text(line % 4000011)
    assert judged(tmp_path, market).lost == 1


def test_a_planted_secret_is_found_wherever_it_comes_out(tmp_path: Path) -> None:
    """A secret in any file below the run's directory is named, the secret itself not repeated."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "run.log").write_text(f"url?token={SECRETS['TICKCOLLECT_TELEGRAM_TOKEN']}")
    assert judge.secrets_in(tmp_path) == ["run.log holds TICKCOLLECT_TELEGRAM_TOKEN"]


NAIVE = """
import asyncio, json, sys
from websockets.asyncio.client import connect

async def collect(ws_url, symbol, data_dir):
    async for socket in connect(f"{ws_url}/ws/{symbol.lower()}@trade"):
        with open(f"{data_dir}/trades.txt", "a") as file:
            async for text in socket:
                row = json.loads(text)
                print(row["p"], row["t"], file=file, flush=True)

asyncio.run(collect(*sys.argv[1:]))
"""


def test_any_collector_can_be_judged(tmp_path: Path) -> None:
    """A collector of ten lines, given as a command, is found to lose exactly the rows that the exchange skipped."""
    script = tmp_path / "naive.py"
    script.write_text(NAIVE)
    words = " ".join(map(shlex.quote, (sys.executable, str(script))))
    target = target_of(f"{words} {{ws_url}} {{symbol}} {{data_dir}}")
    cases = [case for case in CASES if case.name in {"gap", "doubled"}]
    found = {score.case: score for score in asyncio.run(play_all(cases, target, SEED, 2))}
    assert found["gap"].lost == 40
    assert found["doubled"].duplicates > 0
    assert (found["doubled"].lost, found["doubled"].torn, found["doubled"].altered) == (0, 0, 0)
