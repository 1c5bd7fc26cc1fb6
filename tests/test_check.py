"""`tickcollect check`: each thing that can be wrong before a month alone, found and told with what to do."""

import fcntl
import json
import os
import signal
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
from channels.bot_api import CHAT, TOKEN, BotApi
from channels.web import serving
from click.testing import CliRunner
from conftest import Exchange, Programs, exchange, rows_told, until
from stores.bad import Manners, careless
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from tickcollect import check
from tickcollect.check import CHECKS, Asked, Finding, machine
from tickcollect.check import exchange as exchange_checks
from tickcollect.cli import main
from tickcollect.dataset.replay import Answer, Behaviour, Cut, GeneratedMarket, Request

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""A check ends its connections wherever they are; one in the middle of its handshake is picows' to close, which leaves
that to the garbage collector of a process that is about to end."""

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
    """Write the configuration, check it by the command, without messages unless asked, and return code and findings."""
    path = Path("config.json")
    if not path.exists():
        path.touch(0o600)
    path.write_text(json.dumps(keys))
    result = CliRunner().invoke(main, ["check", "--json", *(options or ("--no-send",))])
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
    with served() as spot, served("binance-futures") as futures, free_port() as port, serving(api := BotApi()):
        keys = configured(
            spot,
            "BTCUSDT",
            "ETHUSDT",
            UPLOAD_TO=f"file://{tmp_path / 'backup'}",
            LOG_FILE="run.log",
            METRICS_PORT=port,
            BINANCE_API_KEY=KEY,
            **telegram(api),
        )
        keys["COLLECT"] += configured(futures, stream="trade")["COLLECT"]
        code, findings = checked(keys)
        asked_with_key = [request for request in futures.server.requests if "x-mbx-apikey" in request.headers]
    assert code == 0
    assert not_well(findings) == []
    areas = {
        "config",
        "data",
        "disk",
        "limits",
        "collector",
        "exchange",
        "clock",
        "streams",
        "history",
        "store",
        "alerts",
    }
    assert {each["area"] for each in findings} >= areas | {"schedule", "metrics", "log"}
    assert [each["found"].partition(" within")[0] for each in of(findings, "streams", "ok")] == [
        "BTCUSDT, ETHUSDT: a live message of each",
        "BTCUSDT: a live message",
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
    """In a narrow terminal that knows ASCII only no line is longer, nothing is lost, and the last one tells."""
    with served() as spot:
        config = programs.config(**configured(spot, "BTCUSDT", "BTCUSTD", "币安人生USDT"))
        surroundings = {"COLUMNS": "60", "PYTHONIOENCODING": "ascii"}
        ended = programs.run("check", "--config", config, "--no-send", env=surroundings)
    assert ended.code == 1
    assert ended.out.isascii()
    assert [line for line in ended.out.splitlines() if len(line) > 60 or line != line.rstrip()] == []
    text = " ".join(ended.out.split())
    assert "FAIL exchange binance trade: BTCUSTD is not a symbol of this exchange; did you mean BTCUSDT?" in text
    assert "-> Correct it in COLLECT, or take it out" in text
    assert "????USDT is not a symbol" in text
    assert text.endswith(" Not ready: 2 things to do before leaving it alone, and 1 warning.")
    assert ended.err == ""


def test_ready_is_said_with_the_feeds(programs: Programs) -> None:
    """The last line of a good check counts the feeds and the warnings, and the exit code is 0."""
    with served() as spot:
        config = programs.config(**configured(spot, "BTCUSDT", "ETHUSDT"))
        ended = programs.run("check", "--config", config, "--no-send")
    assert ended.code == 0, ended.out
    assert ended.out.splitlines()[-1].startswith("Ready to be left alone: 2 feeds")


def test_hundreds_of_feeds_are_a_line_a_connection() -> None:
    """300 feeds are told by connection, each with the first names and the number of the others."""
    once = Behaviour(message=lambda _, __, n, text: [text] if n == 0 else [])
    with exchange(market(symbols=300, activity=4), behaviour=once) as running:
        symbols = sorted(listing.symbol for listing in running.server.market.listings)
        code, findings = checked(configured(running, *symbols))
    assert code == 0
    assert len(findings) < 20
    told = of(findings, "streams")
    assert [each["subject"] for each in told] == ["binance trade connection 1 of 2", "binance trade connection 2 of 2"]
    assert [each["level"] for each in told] == ["ok", "ok"]
    assert told[0]["found"].startswith(f"{', '.join(symbols[:5])} and 195 more: a live message of each within ")


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

BLOCKED = (
    "The exchange does not serve this country or this cloud region: run it elsewhere; spot market data is also offered "
    "at https://data-api.binance.vision and wss://data-stream.binance.vision."
)

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
        BLOCKED,
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
        "filled one request a minute: its weight 200 is more than the 120 that REST_SHARE allows",
        "Raise REST_SHARE to 0.09 or more",
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
        "answered HTTP 403: a firewall before the exchange refuses this IP address",
        "It is tried again every 5 minutes; stop other programs that use this IP address, or use another one",
    ),
    "connection that never stays": (
        "binance",
        {"behaviour": Behaviour(message=lambda *_: [Cut()])},
        {},
        "streams",
        "fail",
        "BTCUSDT: the connection broke off without a close frame",
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


def test_a_proxy_that_is_no_address_is_a_finding() -> None:
    """What the configuration's form admits and no library can use is told with its key, and ends nothing."""
    with served("binance") as running:
        _, findings = checked(configured(running, PROXY="socks5://256.1.1.1:1080"), "--no-send", "--wait", "1.5")
    (told,) = of(findings, "exchange", "fail")
    assert "PROXY cannot be used: its host is no name and no IP address" in told["found"]
    assert told["remedy"] == "Correct the address in the configuration"


@pytest.mark.parametrize("case", EXCHANGES)
def test_what_is_wrong_with_an_exchange_is_told_with_what_to_do(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault is one finding with its remedy, and decides the exit code."""
    monkeypatch.setattr(exchange_checks, "SUBSCRIBING_MS", 0)
    monkeypatch.setattr(exchange_checks, "LATE_WITHIN_S", 0.2)
    name, options, keys, area, level, found, remedy = EXCHANGES[case]
    with served(name, **options) as running:
        for patience_s in ("1.5", "6", "24"):  # a busy machine needs more of it before the fault is met
            code, findings = checked(configured(running, **keys), "--no-send", "--wait", patience_s)
            if told := of(findings, area, level):
                break
    assert len(told) == 1, findings
    assert found in told[0]["found"]
    assert told[0]["remedy"] == remedy
    assert told[0]["subject"].partition(" ")[0] == name
    assert code == (level == "fail")
    assert KEY not in json.dumps(findings)


def test_a_quiet_market_is_well() -> None:
    """A stream whose market has not traded since it was subscribed is well, and told with its last trade."""
    start_ms = int(time.time() * 1000) - 150_000
    quiet = GeneratedMarket("binance", start_ms, symbols=1, activity=5, duration_s=0.001)
    with exchange(quiet, speed=1, behaviour=SILENT) as running:
        code, findings = checked(configured(running), "--no-send", "--wait", "1")
    assert code == 0
    (told,) = of(findings, "streams")
    assert told["level"] == "ok"
    assert told["found"] == "BTCUSDT (last trade 3 min ago): subscribed, and as silent as the market"


def test_silence_without_a_clock_is_unclear() -> None:
    """Where the exchange does not tell its time, a silent stream is neither called well nor broken."""
    behaviour = answering("/time", HTTPStatus.NOT_FOUND, "{}")
    behaviour.message = lambda *_: []
    with served(behaviour=behaviour) as running:
        code, findings = checked(configured(running), "--no-send", "--wait", "1")
    assert code == 0
    (told,) = of(findings, "streams")
    assert told["level"] == "warn"
    assert told["found"].endswith("whether its market trades is unclear: the exchange's clock could not be asked")
    assert [each["level"] for each in of(findings, "clock")] == ["warn"]


def test_what_cannot_be_connected_is_not_asked_for_ever() -> None:
    """After three connections that broke, and after one refusal of this address, nothing more is tried."""
    handshakes: list[str] = []
    refusal: list[Answer] = []

    def answered(target: str, _: object) -> Answer | None:
        handshakes.append(target)
        return refusal[0] if refusal else None

    with served(behaviour=Behaviour(handshake=answered, message=lambda *_: [Cut()])) as running:
        checked(configured(running), "--no-send", "--wait", "20")
        assert len(handshakes) == 3
        refusal.append(Answer(HTTPStatus.FORBIDDEN, b""))
        checked(configured(running), "--no-send", "--wait", "20")
        assert len(handshakes) == 4


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
    assert silent["found"] == f"BTCUSDT: 127.0.0.1:{port} cannot be reached: Connection refused"


def test_typing_errors_are_told_each_and_then_counted() -> None:
    """Ten wrong symbols are told one by one, the others counted; what the exchange lists is tried."""
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
    assert told["found"] == "BTCUSDT: refused by the exchange: Invalid request: unknown stream (code 2)"
    assert told["remedy"] == "Correct it in COLLECT"


def test_two_streams_of_a_symbol_are_told_apart() -> None:
    """Where trades and aggregates come on one connection, each is waited for and named."""
    with served() as running:
        keys = configured(running)
        keys["COLLECT"] += configured(running, stream="aggTrade")["COLLECT"]
        _, findings = checked(keys)
    (told,) = of(findings, "streams")
    assert told["subject"] == "binance aggTrade and trade"
    assert told["found"].startswith("BTCUSDT aggTrade, BTCUSDT trade: a live message of each within ")


def test_both_hosts_of_a_redundant_feed_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With REDUNDANCY 2 each connection that the collector would make is tried on its own."""
    with served() as running:
        code, findings = checked(configured(running, REDUNDANCY=2))
        assert len(running.server.sent) > 0
    assert code == 0
    assert [each["subject"] for each in of(findings, "streams", "ok")] == [
        "binance trade connection 1 of 2",
        "binance trade connection 2 of 2",
    ]


# --- This machine --------------------------------------------------------------------------------------------------


def sealed_yesterday(size: int) -> None:
    """Put a sealed file of BTCUSDT's yesterday of this size, which takes no room, into the data directory."""
    day = datetime.now(UTC).date() - timedelta(days=1)
    path = Path("data/binance/trade/BTCUSDT") / f"BTCUSDT-trade-{day.isoformat()}-1-9.csv.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


def test_a_configuration_that_others_can_read_or_change_is_told() -> None:
    """Secrets that others may read, and settings that they may change, are warnings with the command that ends them."""
    with served() as running:
        keys = configured(running)
        Path("config.json").touch(0o600)
        for mode, secret, found, remedy in (
            (0o644, KEY, "other users of this machine may read it (mode 0644)", "Run: chmod 600 config.json"),
            (0o664, KEY, "other users of this machine may read it (mode 0664)", "Run: chmod 600 config.json"),
            (0o664, "", "other users of this machine may change it (mode 0664)", "Run: chmod go-w config.json"),
        ):
            Path("config.json").chmod(mode)
            code, findings = checked({**keys, "BINANCE_API_KEY": secret})
            (told,) = of(findings, "config", "warn")
            assert found in told["found"]
            assert told["remedy"] == remedy
            assert code == 0
    assert KEY not in json.dumps(findings)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_configuration_of_another_user_is_told() -> None:
    """Whoever owns the file decides what is collected and where it goes."""
    Path("config.json").touch(0o600)
    os.chown("config.json", 65534, -1)
    with served() as running:
        _, findings = checked(configured(running))
    (told,) = of(findings, "config", "warn")
    assert told["found"].endswith(", who may change it")
    assert told["remedy"] == "Run: chown root config.json"


BAD_DIRECTORIES = {
    "a file": ("config.json", "cannot make a directory there: Not a directory", "Name a directory in DATA_DIR"),
    "below a file": ("config.json/x", "cannot make a directory there: Not a directory", "Name a directory in DATA_DIR"),
}


@pytest.mark.parametrize("case", BAD_DIRECTORIES)
def test_a_data_directory_that_cannot_be_used_is_told(case: str) -> None:
    """What stands in the way is told with the directory and what to do."""
    data_dir, found, remedy = BAD_DIRECTORIES[case]
    with served() as running:
        code, findings = checked({**configured(running), "DATA_DIR": data_dir})
    assert code == 1
    (told,) = of(findings, "data")
    assert told["subject"] == str(Path(data_dir).absolute())
    assert told["found"] == found
    assert told["remedy"] == remedy


def test_what_this_user_may_not_write_is_told(programs: Programs, nobody: tuple[str, ...]) -> None:
    """As a user without the right to write there, data directory and log file are told, and nothing is made."""
    data_dir = programs.folder / "data"
    data_dir.mkdir(mode=0o755)
    with served() as running:
        keys = {**configured(running), "DATA_DIR": str(data_dir), "LOG_FILE": str(data_dir / "log")}
        config = programs.config(**keys)
        config.chmod(0o644)
        ended = programs.run("check", "--config", config, "--no-send", "--json", before=nobody)
    assert ended.code == 1, ended.said
    findings = json.loads(ended.out)["findings"]
    (data,), (log,) = of(findings, "data"), of(findings, "log")
    assert data["found"] == "cannot make a directory there: Permission denied"
    assert data["remedy"] == "Make it writable for this user (chown, chmod), or name another one in DATA_DIR"
    assert (log["level"], log["found"]) == ("fail", "cannot be written: Permission denied")
    assert list(data_dir.iterdir()) == []


def test_a_file_system_that_lets_two_lock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a second lock of the same file is granted, two collectors would write the same files."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    with served() as running:
        code, findings = checked(configured(running))
    assert code == 1
    (told,) = of(findings, "data")
    assert told["found"] == "cannot lock a file there: two programs can lock the same file"
    assert told["remedy"].startswith("Name a directory on a local file system in DATA_DIR")


def test_how_long_the_disk_lasts_is_told() -> None:
    """What is free is divided by what a day takes: less than a month is a warning, less than a day a failure."""
    room = os.statvfs(".")
    free = room.f_bavail * room.f_frsize
    with served() as running:
        keys = configured(running)
        for part, days, code, level in ((100, 100, 0, "ok"), (10, 10, 0, "warn"), (0.5, 0, 1, "fail")):
            sealed_yesterday(int(free / part))
            ended, findings = checked(keys)
            (told,) = of(findings, "disk")
            assert told["level"] == level
            assert f" free, enough for {days} d at " in told["found"] or days == 0
            assert ended == code
            assert "--delete-after 7" in told["remedy"] or level == "ok"
        sealed_yesterday(1)
        code, findings = checked({**keys, "MIN_FREE_DISK": "900000 TB"})
    assert code == 1
    (told,) = of(findings, "disk")
    assert told["found"].endswith("MIN_FREE_DISK is 900 PB")


def test_too_few_open_files_are_told(programs: Programs) -> None:
    """A hard limit below what the feeds need is told with the limit to set."""
    with served(symbols=120, activity=100) as running:
        symbols = [listing.symbol for listing in running.server.market.listings]
        config = programs.config(**configured(running, *symbols))
        for limit, level in ((300, "warn"), (200, "fail")):
            before = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
            ended = programs.run("check", "--config", config, "--no-send", "--json", "--wait", "1", before=before)
            (told,) = of(json.loads(ended.out)["findings"], "limits")
            assert told["level"] == level
            assert told["found"].startswith(f"{limit} allowed, 340 needed: ")
            assert told["remedy"] == "Raise the limit: ulimit -n 680, or LimitNOFILE=680 in the systemd unit"


def test_a_running_collector_is_told_and_nothing_is_wrong_with_it(programs: Programs, tmp_path: Path) -> None:
    """While one collects here a check may run beside it; what it does not collect is told, and what a dead one left."""
    with served() as running, free_port() as port:
        config = programs.config(**configured(running), METRICS_PORT=port)
        run = programs.start("run", "--config", config)
        run.until(lambda: rows_told(programs.folder / "data") and listens(port))

        def untroubled() -> list[dict[str, Any]]:
            ended = programs.run("check", "--config", config, "--no-send", "--json")
            found: list[dict[str, Any]] = json.loads(ended.out)["findings"]
            return found if len(of(found, "collector")) == 1 else []

        findings = until(untroubled)  # on a busy machine the collector may be behind for a while, and say so
        (told,) = of(findings, "collector")
        assert told["level"] == "ok"
        assert told["subject"] == f"pid {run.process.pid}"
        assert told["found"].startswith("collecting 1 feed, ")
        assert of(findings, "metrics")[0]["found"] == "in use, as it should be while a collector runs"
        config = programs.config(**configured(running, "BTCUSDT", "ETHUSDT"))
        findings = json.loads(programs.run("check", "--config", config, "--no-send", "--json").out)["findings"]
        (told,) = [warning for warning in of(findings, "collector", "warn") if not warning["subject"]]
        assert told["found"].startswith("what runs does not collect ETHUSDT binance/trade: ")
        run.stop(signal.SIGKILL)
        findings = json.loads(programs.run("check", "--config", config, "--no-send", "--json").out)["findings"]
        (told,) = of(findings, "collector")
        assert told["level"] == "warn"
        assert told["found"].startswith("the last one died while running: ")
        assert told["remedy"].startswith("Start it again")


def listens(port: int) -> bool:
    """Tell whether somebody listens at a port."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def test_ports_and_log_files_that_cannot_be_had_are_told() -> None:
    """A taken port, an address of another machine and a log file that is none are each told with what to do."""
    with served() as running, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, findings = checked(configured(running, METRICS_PORT=port, LOG_FILE="."))
        assert code == 1
        (metrics,), (log,) = of(findings, "metrics"), of(findings, "log")
        assert metrics["found"] == "cannot listen there: Address already in use"
        assert metrics["remedy"].startswith("Choose another METRICS_PORT, or end the program that has it")
        assert log["found"] == "cannot be written: Is a directory"
        assert log["remedy"] == "Name a file in LOG_FILE that this user may write"
        code, findings = checked(configured(running, METRICS_PORT=port, METRICS_ADDRESS="192.0.2.1"))
        assert of(findings, "metrics", "fail")[0]["remedy"] == "Correct METRICS_ADDRESS: an address of this machine"


def test_what_starts_by_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crontab's line of this configuration, an enabled unit and one that is not enabled are told apart."""
    here = Path("config.json").absolute()
    with served() as running:
        keys = configured(running)

        def told() -> dict[str, tuple[str, str]]:
            _, findings = checked(keys)
            return {each["subject"]: (each["level"], each["found"]) for each in of(findings, "schedule")}

        absent = {
            "nightly": ("note", "nothing uploads and reports by itself"),
            "reboot": ("note", "nothing starts the collector after a reboot"),
        }
        assert told() == absent
        monkeypatch.setattr(machine, "_cron_runs", lambda: True)
        crontab(tmp_path / "bin", f"10 * * * * sh # tickcollect:nightly {here}\n@reboot sh # other\n", monkeypatch)
        assert told() == {**absent, "nightly": ("ok", "it is in the crontab")}
        monkeypatch.setattr(machine, "_cron_runs", lambda: False)
        assert told()["nightly"] == ("warn", "it is in the crontab, but no cron is running")
        crontab(tmp_path / "bin", f"10 * * * * sh # tickcollect:nightly {here}.old\n", monkeypatch)
        assert told()["nightly"][1].endswith("; the crontab has it for another configuration")
        units = tmp_path / "units"
        (units / "multi-user.target.wants").mkdir(parents=True)
        (units / "tickcollect.service").touch()
        (units / "multi-user.target.wants/tickcollect.service").touch()
        (units / "tickcollect-upload.timer").touch()
        assert told() == {
            "nightly": ("warn", "tickcollect-upload.timer is there, but not enabled"),
            "reboot": ("ok", "tickcollect.service is enabled"),
        }


@pytest.mark.parametrize("home", ["nobody", "a file", "a loop"])
def test_a_home_that_cannot_be_looked_into_breaks_no_check(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this user's units lie, or whether there is a home at all, is no reason to call the schedule broken."""
    place = tmp_path / "no home"
    if home == "a file":
        place.write_text("")
    elif home == "a loop":
        place.symlink_to(place)
    monkeypatch.setattr(machine, "UNIT_DIRECTORIES", (Path("~nosuchuser/units"), place / "units", tmp_path / "none"))
    with served() as running:
        _, findings = checked(configured(running))
    assert {each["level"] for each in of(findings, "schedule")} == {"note"}


# --- The store -----------------------------------------------------------------------------------------------------

STORE_KEYS = {"AWS_ACCESS_KEY": "AKIAPLANTED00SECRET0", "AWS_SECRET_KEY": "planted/secret/aws/0123456789abcdefghijk"}


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """A disk that is not mounted is no folder to fill."""
    with served() as running:
        code, findings = checked(configured(running, UPLOAD_TO=f"file://{tmp_path}/backup"))
    assert code == 1
    (told,) = of(findings, "store")
    assert told["subject"] == f"file://{tmp_path}/backup"
    assert told["found"] == "there is no such folder"
    assert told["remedy"] == "Mount the disk, or make the folder by hand"


def test_a_bucket_is_asked_and_nothing_is_put_there() -> None:
    """A bucket that answers is well; a key that may not look is a note with the permission; one that is away fails."""
    with served() as running, careless() as store, free_port() as port:
        keys = configured(running, S3_BUCKET="ticks", S3_ENDPOINT_URL=store.endpoint, **STORE_KEYS)
        code, findings = checked(keys)
        assert (code, [each["level"] for each in of(findings, "store")]) == (0, ["ok"])
        assert of(findings, "store")[0]["subject"].startswith("s3://ticks at 127.0.0.1:")
        store.manners = Manners(head="forbidden")
        code, findings = checked(keys)
        (told,) = of(findings, "store")
        assert (code, told["level"]) == (0, "note")
        assert "s3:GetObject" in told["remedy"]
        assert store.objects == {}
        code, findings = checked({**keys, "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    (told,) = of(findings, "store")
    assert (code, told["level"]) == (1, "fail")
    assert told["found"] == "refuses connections there"
    assert told["remedy"] == "See S3_ENDPOINT_URL"
    assert all(secret not in json.dumps(findings) for secret in STORE_KEYS.values())


# --- The channels --------------------------------------------------------------------------------------------------


def telegram(api: BotApi, **keys: Any) -> dict[str, Any]:
    """Return the configuration of a Telegram channel."""
    return {"TELEGRAM_TOKEN": api.token, "TELEGRAM_CHAT_ID": CHAT, "TELEGRAM_API_URL": api.address, **keys}


def test_each_channel_gets_one_message_unless_told_not_to() -> None:
    """A message proves that people would hear; with --no-send the channel is asked and hears nothing."""
    with served() as running, serving(api := BotApi()):
        code, findings = checked(configured(running, **telegram(api)), "--wait", "30")
        (told,) = of(findings, "alerts")
        assert (code, told["level"], told["found"]) == (0, "ok", "a message was sent")
        assert len(api.messages) == 1
        assert api.messages[0].chat == CHAT
        code, findings = checked(configured(running, **telegram(api)), "--no-send")
        assert [each["level"] for each in of(findings, "alerts")] == ["ok"]
        assert len(api.messages) == 1
        assert api.methods()[-1] == "getMe"
    assert TOKEN not in json.dumps(findings)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what apprise imports to look for a service
@pytest.mark.parametrize("option", ["--no-send", "--wait=30"])
def test_a_channel_that_does_not_take_messages_is_told(option: str) -> None:
    """A wrong token and a URL that says nothing are each told with what to do, and without a secret."""
    wrong = TOKEN.replace("Planted", "planted")
    with served() as running, serving(api := BotApi()):
        keys = configured(running, **telegram(api, TELEGRAM_TOKEN=wrong))
        code, findings = checked(keys, option)
        (told,) = of(findings, "alerts")
        assert (code, told["level"]) == (1, "fail")
        assert "TELEGRAM_TOKEN" in told["remedy"]
        code, findings = checked({**keys, "ALERT_URLS": [f"mailto://{KEY}"]}, option)
    (told,) = of(findings, "alerts")
    assert (code, told["level"], told["subject"]) == (1, "fail", "ALERT_URLS[0]"), told
    assert told["remedy"]
    assert wrong not in json.dumps(findings)
    assert KEY not in json.dumps(findings)


def test_that_nobody_would_hear_is_a_warning() -> None:
    """Without a channel it works, and nobody hears of trouble for a month."""
    with served() as running:
        code, findings = checked(configured(running))
    (told,) = of(findings, "alerts")
    assert (code, told["level"]) == (0, "warn")
    assert told["remedy"] == "Set TELEGRAM_TOKEN and TELEGRAM_CHAT_ID, or ALERT_URLS"


# --- Whatever happens ----------------------------------------------------------------------------------------------


def test_what_hangs_or_breaks_is_told_and_keeps_nothing_else_from_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that never answers and a fault of a check itself are findings; the check ends, and says no secret."""
    released = threading.Event()

    def hang(_: Asked) -> Iterator[Finding]:
        released.wait()
        yield from ()

    def break_down(_: Asked) -> Iterator[Finding]:
        raise KeyError(KEY)

    monkeypatch.setitem(CHECKS, "data", check._here(hang, 0.2))
    monkeypatch.setitem(CHECKS, "disk", check._here(break_down))
    with served() as running:
        code, findings = checked(configured(running))
    released.set()
    assert code == 1
    assert of(findings, "data")[0]["found"] == "no answer in time"
    assert of(findings, "disk")[0]["found"].startswith("this check broke: KeyError in break_down (test_check.py:")
    assert [each["level"] for each in of(findings, "streams")] == ["ok"]
    assert KEY not in json.dumps(findings)
