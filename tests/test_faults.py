"""The fault kit on the real collector, one variant of each fault; and whether its judge sees what it must see.

`python -m tests.faults --all` runs every variant. `SEED` repeats a run.
"""

import asyncio
import json
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
from faults.claims import IN_A_ROW, Claim, Doubts, claims, summary, untrue_summary
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
        f"{letter}{n}"
        for letter, count in (("N", 16), ("P", 6), ("D", 6), ("C", 3), ("X", 1), ("Q", 2))
        for n in range(1, count + 1)
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


@pytest.mark.parametrize("opened", ["reopened", "damaged"])
def test_what_was_stated_and_opened_again_is_missing(tmp_path: Path, opened: str) -> None:
    """A row called absent, whose ID is open again later, has to be in a file."""
    market = issued()
    stored(tmp_path, market["BTCUSDT"][:10])
    ids = {"subject": "binance/trade/BTCUSDT", "first_id": 4000010, "last_id": 4000019}
    entries = [{"event": "absent", **ids}, {"event": opened, **ids}]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert judged(tmp_path, market).lost == 10


def test_a_trade_that_was_ever_called_absent_is_found(tmp_path: Path) -> None:
    """An ID of a trade that history has is named even if it was opened again; one that history lacks is not."""
    tape = Tape(start_ms=1_784_000_000_000, unpublished={4000012})
    tape.issued = issued()
    ids = {"subject": "binance/trade/BTCUSDT", "first_id": 4000011, "last_id": 4000012}
    entries = [{"event": "absent", **ids}, {"event": "reopened", **ids}]
    assert judge.wrongly_absent(entries, tape) == [4000011]


def test_state_files_are_no_data_and_strangers_are(tmp_path: Path) -> None:
    """What a data directory holds beside rows is not read for rows; a file of another name is."""
    market = issued()
    stored(tmp_path, market["BTCUSDT"])
    for name in (
        "alerts-waiting.json",
        "alerts-waiting-2.json",
        "exchanges.json",
        "status-2.json",
        ".feeds/x/BTCUSDT.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert judged(tmp_path, market).failures == []
    (tmp_path / "binance" / "exchanges.json").write_text("{}\n")
    assert "no name of a segment" in " ".join(judged(tmp_path, market).failures)


# --- What is claimed -------------------------------------------------------------------------------------------------


def played(rows: int = 20, age_s: float = 10.0) -> Tape:
    """Return a market that issued rows `age_s` ago."""
    tape = Tape(start_ms=1_784_000_000_000)
    tape.issued = issued(rows)
    tape.issued_s = {"BTCUSDT": [time.monotonic() - age_s] * rows}
    return tape


def untrue_claims(directory: Path, tape: Tape, looks: int, **claimed: object) -> list[str]:
    """Return what is untrue of a claim that stands for so many snapshots."""
    doubts = Doubts()
    state = judge.read(directory, tape.issued, TICKCOLLECT), judge.journal(directory)
    for at_ns in range(looks):
        fields = {"last_id": 4000019, "missing": 0, "is_known": True, **claimed}
        doubts.judge(Claim(at_ns, 1, "BTCUSDT", **fields), tape, {"BTCUSDT": 0}, state)  # type: ignore[arg-type]  # by name
    return doubts.untrue


def lacking(directory: Path, tape: Tape) -> None:
    """Write all rows but two in the middle."""
    stored(directory, tape.issued["BTCUSDT"][:8])
    stored(directory, tape.issued["BTCUSDT"][10:])


@pytest.mark.parametrize(
    ("claimed", "untrue"),
    [
        ({}, 1),
        ({"missing": 1}, 1),
        ({"missing": 2}, 0),
        ({"is_known": False}, 0),
        ({"last_id": 4000008}, 0),
        ({"last_id": None}, 0),
    ],
)
def test_a_claim_is_untrue_where_rows_before_its_newest_are_in_no_file(
    tmp_path: Path, claimed: dict[str, object], untrue: int
) -> None:
    """Two rows are in no file: whoever knows everything has to count both, unless they lie behind its newest row."""
    tape = played()
    lacking(tmp_path, tape)
    assert len(untrue_claims(tmp_path, tape, IN_A_ROW, **claimed)) == untrue
    assert not untrue_claims(tmp_path, tape, IN_A_ROW - 1, **claimed)


@pytest.mark.parametrize(("age_s", "untrue"), [(40.0, 1), (10.0, 0)])
def test_a_claim_does_not_stand_for_long_when_the_exchange_has_gone_on(
    tmp_path: Path, age_s: float, untrue: int
) -> None:
    """Rows behind the newest that were issued long ago contradict a collector that calls all known."""
    tape = played(age_s=age_s)
    stored(tmp_path, tape.issued["BTCUSDT"][:10])
    assert len(untrue_claims(tmp_path, tape, IN_A_ROW, last_id=4000009)) == untrue


@pytest.mark.parametrize(
    ("text", "lacking_rows", "untrue"),
    [
        ("no ID is missing up to the stop", 0, 0),
        ("no ID is missing up to the stop", 2, 1),
        ("1 IDs are missing, see journal.jsonl", 2, 1),
        ("2 IDs are missing, see journal.jsonl", 2, 0),
        ("3 IDs are missing, see journal.jsonl", 2, 1),
        ("it is not known since 10:00:00 UTC whether IDs are missing (1 feed): disconnected", 2, 0),
    ],
)
def test_the_last_line_of_a_run_is_held_against_the_truth(
    tmp_path: Path, text: str, lacking_rows: int, untrue: int
) -> None:
    """Of two rows in no file the last line has to say 2, or that it is not known."""
    tape = played()
    stored(tmp_path, tape.issued["BTCUSDT"][: 20 - lacking_rows])
    said = summary(f"18 rows in 3 s; {text}\n  a.csv\n")
    assert said is not None
    findings = judge.read(tmp_path, tape.issued, TICKCOLLECT)
    assert len(untrue_summary(said, time.monotonic(), tape, {"BTCUSDT": 0}, (findings, []))) == untrue


def test_the_journal_says_what_the_last_line_says(tmp_path: Path) -> None:
    """A `stopped` with another count, or that knows more, is named."""
    tape = played()
    stored(tmp_path, tape.issued["BTCUSDT"])
    said = summary("20 rows in 3 s; no ID is missing up to the stop\n")
    assert said is not None
    for missing, unknown, is_true in ((0, 0, True), (1, 0, False), (0, 1, False)):
        state = (
            judge.read(tmp_path, tape.issued, TICKCOLLECT),
            [{"event": "stopped", "missing": missing, "unknown": unknown}],
        )
        found = untrue_summary(said, time.monotonic(), tape, {"BTCUSDT": 0}, state)
        assert (not found) is is_true


def test_claims_are_read_from_the_status_of_a_running_collector(tmp_path: Path) -> None:
    """A feed is one claim; half a file and a collector that has stopped claim nothing."""
    feed = {"symbol": "BTCUSDT", "last_id": 7, "missing_ids": 2, "unknown_since_ns": None}
    snapshot = {"at_ns": 5, "pid": 3, "state": "running", "feeds": [feed]}
    (tmp_path / "status.json").write_text(json.dumps(snapshot))
    assert claims(tmp_path) == [Claim(5, 3, "BTCUSDT", 7, 2, True)]
    (tmp_path / "status.json").write_text(json.dumps(snapshot | {"state": "stopped"}))
    assert claims(tmp_path) == []
    (tmp_path / "status.json").write_text(json.dumps(snapshot)[:-5])
    assert claims(tmp_path) == []


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
