"""`tickcollect check`: each thing that can be wrong before a month alone, found and told with what to do."""

import asyncio
import errno
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import Exchange, Programs, exchange, rows_told, until
from rich.console import Console
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from tickcollect import check
from tickcollect.check import CHECKS, Asked, Finding, lines, machine
from tickcollect.check import exchange as exchange_checks
from tickcollect.check.findings import FAIL, OK
from tickcollect.cli import main
from tickcollect.config import Config
from tickcollect.dataset.replay import Answer, Behaviour, Cut, GeneratedMarket, Request

KEY = "planted0binance0api0key0000000000000000"


def market(name: str = "binance", **options: Any) -> GeneratedMarket:
    """Return a market that trades now and often."""
    return GeneratedMarket(name, int(time.time() * 1000), **{"symbols": 3, "activity": 200, **options})


@contextmanager
def served(name: str = "binance", behaviour: Behaviour | None = None, **options: Any) -> Iterator[Exchange]:
    """Serve a market that goes on by the clock."""
    clock = options.pop("clock", time.time)
    with exchange(market(name, **options), speed=1, behaviour=behaviour, clock=clock) as running:
        running.do(running.server.start)
        yield running


@pytest.fixture(autouse=True)
def in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where no configuration lies, with nothing that starts by itself."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(machine, "UNIT_DIRECTORIES", (tmp_path / "units",))
    crontab(tmp_path / "bin", "", monkeypatch)


def crontab(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a `crontab` with these lines in front of the machine's own."""
    folder.mkdir(exist_ok=True)
    (folder / "lines").write_text(lines)
    program = folder / "crontab"
    program.write_text(f"#!/bin/sh\nexec cat '{folder}/lines'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def configured(served_at: Exchange, *symbols: str, stream: str = "", **keys: Any) -> dict[str, Any]:
    """Return a configuration that collects symbols of an exchange."""
    entry: dict[str, Any] = {**served_at.entry, "symbols": symbols or ("BTCUSDT",)}
    if stream:
        entry["stream"] = stream
    return {"DATA_DIR": "data", "COLLECT": [entry], **keys}


def checked(keys: dict[str, Any], *options: str) -> tuple[int, list[dict[str, str]]]:
    """Write the configuration, check it by the command, and return exit code and findings."""
    path = Path("config.json")
    if not path.exists():
        path.touch(0o600)
    path.write_text(json.dumps(keys))
    result = CliRunner().invoke(main, ["check", "--json", "--no-send", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, json.loads(result.stdout)["findings"]


def of(findings: list[dict[str, str]], area: str, level: str = "") -> list[dict[str, str]]:
    """Return the findings of an area, all of them or of one level."""
    return [each for each in findings if each["area"] == area and level in ("", each["level"])]


def not_well(findings: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return what is to be done."""
    return [each for each in findings if each["level"] in {"warn", "fail"}]


# --- All well ------------------------------------------------------------------------------------------------------


def test_all_well_is_told_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """Where all is well the exit code is 0, every part was looked at, and no file or directory has appeared."""
    (tmp_path / "backup").mkdir()
    with served() as spot, served("binance-futures") as futures, free_port() as port:
        keys = configured(
            spot,
            "BTCUSDT",
            "ETHUSDT",
            UPLOAD_TO=f"file://{tmp_path / 'backup'}",
            LOG_FILE="run.log",
            METRICS_PORT=port,
            BINANCE_API_KEY=KEY,
        )
        keys["COLLECT"] += configured(futures, stream="trade")["COLLECT"]
        code, findings = checked(keys)
        asked_with_key = [request for request in futures.server.requests if "x-mbx-apikey" in request.headers]
    assert code == 0
    assert not_well(of(findings, "alerts") and [each for each in findings if each["area"] != "alerts"]) == []
    areas = {"config", "data", "disk", "limits", "collector", "exchange", "clock", "streams", "history", "store"}
    assert {each["area"] for each in findings} >= areas | {"schedule", "metrics", "log"}
    assert [each["found"].partition(" within")[0] for each in of(findings, "streams", "ok")] == [
        "BTCUSDT trade, ETHUSDT trade: a live message of each of the 2",
        "BTCUSDT trade: a live message",
    ]
    assert len(asked_with_key) == 1
    assert [path.name for path in Path().iterdir()] == ["config.json"]
    assert list((tmp_path / "backup").iterdir()) == []


@contextmanager
def free_port() -> Iterator[int]:
    """Yield a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    yield port


def test_a_person_reads_lines_that_fit(programs: Programs) -> None:
    """As a process, in a narrow terminal that knows ASCII only: no line is longer, nothing is lost, the last one tells."""
    with served() as spot:
        config = programs.config(**configured(spot, "BTCUSDT", "BTCUSTD", "币安人生USDT"))
        surroundings = {"COLUMNS": "60", "PYTHONIOENCODING": "ascii"}
        ended = programs.run("check", "--config", config, "--no-send", env=surroundings)
    assert ended.code == 1
    assert ended.out.isascii()
    assert all(len(line) <= 60 and line == line.rstrip() for line in ended.out.splitlines())
    text = " ".join(ended.out.split())
    assert "FAIL exchange binance trade: BTCUSTD is not a symbol of this exchange; did you mean BTCUSDT?" in text
    assert "-> Correct it in COLLECT, or take it out" in text
    assert "????USDT is not a symbol" in text
    assert ended.out.splitlines()[-1].startswith("Not ready: 2 things to do before leaving it alone")
    assert ended.err == ""


def test_ready_is_said_with_the_feeds(programs: Programs) -> None:
    """The last line of a good check counts the feeds and the warnings, and the exit code is 0."""
    with served() as spot:
        config = programs.config(**configured(spot, "BTCUSDT", "ETHUSDT"))
        ended = programs.run("check", "--config", config, "--no-send")
    assert ended.code == 0, ended.out
    assert ended.out.splitlines()[-1].startswith("Ready: 2 feeds")


def test_hundreds_of_feeds_are_a_line_a_connection() -> None:
    """300 feeds are told by connection, each with the first names and the number of the others."""
    once = Behaviour(message=lambda _, __, n, text: [text] if n == 0 else [])
    with exchange(market(symbols=300, activity=4), behaviour=once) as running:
        symbols = sorted(listing.symbol for listing in running.server.market.listings)
        code, findings = checked(configured(running, *symbols))
    assert code == 0
    assert len(findings) < 20
    told = of(findings, "streams")
    assert [each["subject"] for each in told] == ["binance connection 1 of 2", "binance connection 2 of 2"]
    assert [each["level"] for each in told] == ["ok", "ok"]
    first = ", ".join(f"{symbol} trade" for symbol in symbols[:5])
    assert told[0]["found"].startswith(f"{first} and 195 more: a live message of each of the 200 within ")


def test_mistakes_of_the_configuration_come_first(programs: Programs) -> None:
    """As for `run`, all of them are told at once, with code 2, before anything is connected."""
    ended = programs.run("check", "--config", programs.config(COLLECT=[{"exchange": "binanse"}], QUEUE_ROWS=1))
    assert ended.code == 2
    assert "COLLECT[0].exchange" in ended.err
    assert "QUEUE_ROWS" in ended.err
    ended = programs.run("check", "--config", programs.config(DATA_DIR="data"))
    assert ended.code == 2
    assert "nothing to collect: name what to collect in COLLECT" in ended.err


# --- The exchange --------------------------------------------------------------------------------------------------


def changed_info(change: Callable[[dict[str, Any]], None]) -> Behaviour:
    """Return an exchange whose list of symbols is changed."""

    def rest(request: Request, given: Answer) -> Answer:
        if not request.path.endswith("exchangeInfo"):
            return given
        info = json.loads(given.body)
        change(info)
        return given._replace(body=json.dumps(info).encode())

    return Behaviour(rest=rest)


def answering(ending: str, status: HTTPStatus, body: str) -> Behaviour:
    """Return an exchange that answers one kind of request in this way."""
    refusal = Answer(status, body.encode())
    return Behaviour(rest=lambda request, given: refusal if request.path.endswith(ending) else given)


SILENT = Behaviour(message=lambda *_: [])

EXCHANGES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str, str, str]] = {
    "resting symbol": (
        "binance",
        {"behaviour": changed_info(lambda info: info["symbols"][0].update(status="BREAK"))},
        {},
        "exchange",
        "warn",
        "the exchange says BREAK of BTCUSDT, so nothing may come",
        "Take it out of COLLECT if it does not trade again",
    ),
    "lower limit": (
        "binance",
        {"behaviour": changed_info(lambda info: info["rateLimits"][0].update(limit=1200))},
        {},
        "exchange",
        "warn",
        "allows less than usual (6,000): filling gaps takes longer",
        "See the exchange's announcements",
    ),
    "blocked country": (
        "binance",
        {"behaviour": answering("", HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS, "{}")},
        {},
        "exchange",
        "fail",
        "HTTP 451",
        "The exchange does not serve this country or cloud. Spot market data is also offered at "
        "https://data-api.binance.vision and wss://data-stream.binance.vision; futures need a machine elsewhere.",
    ),
    "clock far behind": (
        "binance",
        {"clock": lambda: time.time() + 3},
        {},
        "clock",
        "fail",
        "ms behind",
        "Run an NTP client: apt install chrony, or timedatectl set-ntp true",
    ),
    "clock ahead": (
        "binance",
        {"clock": lambda: time.time() - 0.9},
        {},
        "clock",
        "warn",
        "ms ahead",
        "Run an NTP client: apt install chrony, or timedatectl set-ntp true",
    ),
    "no key": (
        "binance-futures",
        {},
        {"stream": "trade"},
        "history",
        "warn",
        "gaps of this stream can be filled only with an API key",
        "Set BINANCE_API_KEY: a key without any permission is enough",
    ),
    "wrong key": (
        "binance-futures",
        {"behaviour": answering("Trades", HTTPStatus.UNAUTHORIZED, '{"code":-2014,"msg":"API-key format invalid."}')},
        {"stream": "trade", "BINANCE_API_KEY": KEY},
        "history",
        "fail",
        "HTTP 401, code -2014: API-key format invalid",
        "Correct BINANCE_API_KEY: a key without any permission is enough",
    ),
    "no budget for the key": (
        "binance-futures",
        {},
        {"stream": "trade", "BINANCE_API_KEY": KEY, "REST_SHARE": 0.05},
        "history",
        "warn",
        "never fits into 120 a minute",
        "Raise REST_SHARE: gaps of this stream cannot be filled",
    ),
    "silent stream": (
        "binance",
        {"behaviour": SILENT},
        {},
        "streams",
        "fail",
        " ago): subscribed, but silent although the market trades",
        "Check ws_url in COLLECT; if it is right, look for a newer tickcollect",
    ),
    "refused connection": (
        "binance",
        {"behaviour": Behaviour(handshake=lambda *_: Answer(HTTPStatus.FORBIDDEN, b""))},
        {},
        "streams",
        "fail",
        "answered HTTP 403: the exchange's firewall refuses this IP",
        "It is tried again every 5 minutes; stop other programs that use this IP",
    ),
    "connection that never stays": (
        "binance",
        {"behaviour": Behaviour(message=lambda *_: [Cut()])},
        {},
        "streams",
        "fail",
        "BTCUSDT trade: the connection broke off without a close frame",
        "Check ws_url in COLLECT, and the network",
    ),
    "messages that cannot be read": (
        "binance",
        {"behaviour": Behaviour(message=lambda _, __, ___, text: [text.replace(b'"p":', b'"P":'), text])},
        {},
        "streams",
        "warn",
        " cannot be read: ",
        "Look for a newer version; until then such messages are kept in quarantine",
    ),
}


@pytest.mark.parametrize("case", EXCHANGES)
def test_what_is_wrong_with_an_exchange_is_told_with_what_to_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault is one finding with its remedy, and decides the exit code."""
    monkeypatch.setattr(exchange_checks, "SUBSCRIBING_MS", 0)
    monkeypatch.setattr(exchange_checks, "LATE_WITHIN_S", 0.2)
    name, options, keys, area, level, found, remedy = EXCHANGES[case]
    with served(name, **options) as running:
        code, findings = checked(configured(running, **keys), "--wait", "1.5")
    told = of(findings, area, level)
    assert len(told) == 1, findings
    assert found in told[0]["found"]
    assert told[0]["remedy"] == remedy
    assert told[0]["subject"].partition(" ")[0] == name
    assert code == (level == "fail")
    assert KEY not in json.dumps(findings)


def test_a_quiet_market_is_well() -> None:
    """A stream without data, whose market has not traded since it was subscribed, is well, and told with its last trade."""
    start_ms = int(time.time() * 1000) - 150_000
    quiet = GeneratedMarket("binance", start_ms, symbols=1, activity=5, duration_s=0.001)
    with exchange(quiet, speed=1, behaviour=SILENT) as running:
        code, findings = checked(configured(running), "--wait", "1")
    assert code == 0
    (told,) = of(findings, "streams")
    assert told["level"] == "ok"
    assert told["found"] == "BTCUSDT trade (last trade 3 min ago): subscribed, and as silent as the market"


def test_silence_without_a_clock_is_unclear() -> None:
    """Where the exchange does not tell its time, a silent stream is neither called well nor broken."""
    behaviour = answering("/time", HTTPStatus.NOT_FOUND, "{}")
    behaviour.message = lambda *_: []
    with served(behaviour=behaviour) as running:
        code, findings = checked(configured(running), "--wait", "1")
    assert code == 0
    (told,) = of(findings, "streams")
    assert told["level"] == "warn"
    assert told["found"].endswith("whether its market trades is unclear: the exchange's clock could not be asked")
    assert [each["level"] for each in of(findings, "clock")] == ["warn"]


def test_a_connection_that_is_made_again_is_told() -> None:
    """Streams that come on the second connection are well, and that the first one broke is a warning."""
    handshakes: list[str] = []

    def count(target: str, _: object) -> None:
        handshakes.append(target)

    behaviour = Behaviour(handshake=count, message=lambda _, __, ___, text: [text] if len(handshakes) > 1 else [Cut()])
    with served(behaviour=behaviour) as running:
        code, findings = checked(configured(running))
    assert code == 0
    assert [each["level"] for each in of(findings, "streams")] == ["ok", "warn"]
    assert "had to be made again, because the connection broke off" in of(findings, "streams", "warn")[0]["found"]


def test_an_exchange_that_is_away_is_told_once_a_part() -> None:
    """Without anybody at the address, REST and websocket are each one line in words, and it ends soon."""
    with free_port() as port:
        addresses = {"ws_url": f"ws://127.0.0.1:{port}", "rest_url": f"http://127.0.0.1:{port}"}
        entry = {"exchange": "binance", "symbols": ["BTCUSDT"], **addresses}
        code, findings = checked({"DATA_DIR": "data", "COLLECT": [entry]})
    assert code == 1
    assert [each["area"] for each in findings if each["level"] == "fail"] == ["exchange", "streams"]
    (away,) = of(findings, "exchange")
    assert away["found"].endswith("the connection failed (Connection refused)")
    assert away["remedy"].startswith("Check the network")
    (silent,) = of(findings, "streams")
    assert silent["found"] == f"BTCUSDT trade: 127.0.0.1:{port} cannot be reached: Connection refused"


def test_typing_errors_are_told_each_and_then_counted() -> None:
    """Ten symbols that the exchange does not list are told one by one, the others counted; the listed ones are tried."""
    with served() as running:
        wrong = [f"BTCUSDT{number}" for number in range(12)]
        code, findings = checked(configured(running, "BTCUSDT", *wrong))
    assert code == 1
    told = of(findings, "exchange", "fail")
    assert len(told) == 11
    assert told[0]["subject"] == "binance trade"
    assert told[0]["found"].startswith("BTCUSDT0 is not a symbol of this exchange; did you mean BTCUSDT")
    assert told[-1]["found"] == "2 more are no symbols of this exchange"
    assert [each["level"] for each in of(findings, "streams")] == ["ok"]


def test_a_refused_subscription_is_told_with_the_exchange_s_words() -> None:
    """An error in answer to SUBSCRIBE is a finding of its own, not a silence."""

    def refuse(connection: ServerConnection) -> None:
        for message in connection:
            error = {"code": 2, "msg": "Invalid request: unknown stream"}
            connection.send(json.dumps({"error": error, "id": json.loads(message)["id"]}))

    with served() as running, serve_websocket(refuse, "127.0.0.1", 0) as refusing:
        thread = threading.Thread(target=refusing.serve_forever)
        thread.start()
        keys = configured(running)
        keys["COLLECT"][0]["ws_url"] = f"ws://127.0.0.1:{refusing.socket.getsockname()[1]}"
        code, findings = checked(keys)
        refusing.shutdown()
        thread.join()
    assert code == 1
    (told,) = of(findings, "streams")
    assert told["found"] == "BTCUSDT trade: refused by the exchange: Invalid request: unknown stream (code 2)"
    assert told["remedy"] == "Correct it in COLLECT"


def test_both_hosts_of_a_redundant_feed_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With REDUNDANCY 2 each connection that the collector would make is tried on its own."""
    with served() as running:
        code, findings = checked(configured(running, REDUNDANCY=2))
        assert len(running.server.sent) > 0
    assert code == 0
    assert [each["subject"] for each in of(findings, "streams", "ok")] == [
        "binance connection 1 of 2",
        "binance connection 2 of 2",
    ]
