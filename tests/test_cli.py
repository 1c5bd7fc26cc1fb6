"""The command line: what a mistake is answered with, and that it leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Programs, exchange

from tickcollect import __version__
from tickcollect.cli import main, summary_lines
from tickcollect.collector import Summary
from tickcollect.dataset.replay import GeneratedMarket


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


MISTAKES = [
    (["run"], "nothing to collect: give --symbol BTCUSDT, or COLLECT in config.json"),
    (["run", "--exchange", "binance-futures"], "--exchange goes with --symbol: name at least one"),
    (["run", "--ws-url", "ws://127.0.0.1:1"], "--ws-url goes with --symbol"),
    (["run", "--symbol", "BTCUSDT", "--exchange", "binanse"], "'binanse' is not one of"),
    (["run", "--symbol", "BTCUSDT", "--stream", "trades"], "'trades' is not one of"),
    (["run", "--symbol", "../../etc/passwd"], "../../etc/passwd"),
    (["run", "--symbol", "BTC USDT"], "BTC USDT"),
    (["run", "--symbol", ""], "symbols"),
    (["run", "--symbol", "BTCUSDT", "--ws-url", "http://127.0.0.1"], "ws_url"),
    (["run", "--symbol", "BTCUSDT", "--config", "missing.json"], "missing.json"),
    (["run", "--sybmol", "BTCUSDT"], "No such option"),
    (["runn"], "No such command"),
    (["replay", "missing.gz"], "missing.gz"),
    (["replay", "--speed", "fast"], "--speed takes a number or max"),
    (["replay", "--speed", "-1"], "speed"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_a_mistake_is_told_and_leaves_nothing(arguments: list[str], told: str, tmp_path: Path) -> None:
    """Every mistake ends with code 2 and a line that names it; no file is made and no traceback shown."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert told in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_configuration_is_told_with_line_and_key(tmp_path: Path) -> None:
    """All mistakes of a file at once, each with its line, its key and what to write instead."""
    path = tmp_path / "config.json"
    path.write_text(
        '{\n  "COLLECT": [{"exchange": "binance", "symbols": ["BTCUSDT"]}],\n  "ROTATE_SZE": 1,\n  "QUEUE_ROWS": 1\n}'
    )
    result = CliRunner().invoke(main, ["run"])
    assert result.exit_code == 2
    assert "config.json:3: ROTATE_SZE" in result.output
    assert "ROTATE_SIZE" in result.output
    assert "config.json:4: QUEUE_ROWS" in result.output
    assert list(tmp_path.iterdir()) == [path]


def test_the_version_and_the_help_are_told() -> None:
    """`--version` names the program; each command's help says what it does and shows examples where it has options."""
    assert CliRunner().invoke(main, ["--version"]).output == f"tickcollect, version {__version__}\n"
    overview = CliRunner().invoke(main, ["-h"]).output
    for command in ("run", "status", "replay", "demo"):
        assert f"  {command} " in overview
        result = CliRunner().invoke(main, [command, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: main {command}")
    assert "tickcollect run --symbol BTCUSDT" in CliRunner().invoke(main, ["run", "-h"]).output


def test_help_loads_nothing_heavy() -> None:
    """`--help` does not wait for what only collecting needs."""
    code = (
        "import sys\n"
        "from tickcollect.cli import main\n"
        "main(['run', '--help'], standalone_mode=False)\n"
        "heavy = {'picows', 'httpx', 'rich', 'pydantic', 'msgspec', 'loguru'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1]
    )
    assert found.returncode == 0, found.stderr


def test_a_directory_that_cannot_be_written_is_told(programs: Programs, nobody: tuple[str, ...]) -> None:
    """As another user without the right to write there: code 2 and the path, before the exchange is needed for long."""
    data_dir = programs.folder / "data"
    data_dir.mkdir(mode=0o755)
    with exchange(GeneratedMarket("binance", 1_784_000_000_000)) as served:
        ended = programs.run("run", "--symbol", "BTCUSDT", "--data-dir", data_dir, *served.addresses, before=nobody)
    assert ended.code == 2, ended.said
    assert str(data_dir) in ended.err
    assert "Traceback" not in ended.said
    assert list(data_dir.iterdir()) == []


def test_the_summary_counts_what_it_does_not_show() -> None:
    """Of hundreds of files twenty are named, and how many were sealed is counted."""
    files = [Path(f"data/{n}.csv") for n in range(300)]
    summary = Summary(
        rows=1_234_567, gaps=2, missing=7, filled=40, copies=3, refused=1, sealed=4, files=files, seconds=61.2
    )
    lines = summary_lines(summary, Path("data"))
    assert lines[0].startswith("1,234,567 rows in 61 s; 7 IDs are missing")
    assert "3 copies dropped" in lines
    assert "4 files sealed" in lines
    assert sum(line.startswith("  data/") for line in lines) == 20
    assert lines[-1] == "  and more below data"
