"""`config`: mistakes by name and place, never a secret, and documents that tell the truth."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickcollect import config
from tickcollect.config import Config, ConfigError

ROOT = Path(__file__).resolve().parents[1]
SECRET = "pl4ntedS3cret"


def load_text(folder: Path, text: str | bytes, environ: dict[str, str] | None = None, **overrides: object) -> Config:
    path = folder / "config.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load(path, environ or {}, overrides)


def mistakes(folder: Path, text: str | bytes, environ: dict[str, str] | None = None, **overrides: object) -> list[str]:
    """Return the lines of the error, each without the folder's name."""
    with pytest.raises(ConfigError) as error:
        load_text(folder, text, environ, **overrides)
    assert str(error.value) == "\n".join(map(str, error.value.problems))
    return [line.removeprefix(f"{folder}/") for line in str(error.value).split("\n")]


# --- What is accepted ----------------------------------------------------------------------------------------------


def test_nothing_said_means_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file, a variable or an option the configuration is the default one."""
    monkeypatch.chdir(tmp_path)
    assert config.load(None, {}, {}) == Config() == load_text(tmp_path, "{}")


def test_the_file_in_the_current_directory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config.json` needs no naming where it lies in the current directory."""
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text('{"QUEUE_ROWS": 123}')
    assert config.load(None, {}, {}).queue_rows == 123


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    """Each of three keys comes from the strongest source that has it."""
    text = '{"LOG_LEVEL": "DEBUG", "COMPRESSION": "gzip", "S3_BUCKET": "from-file"}'
    environ = {"TICKCOLLECT_LOG_LEVEL": "ERROR", "TICKCOLLECT_COMPRESSION": "zstd"}
    result = load_text(tmp_path, text, environ, LOG_LEVEL="WARNING")
    assert (result.log_level, result.compression, result.s3_bucket) == ("WARNING", "zstd", "from-file")


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("1000000000", 10**9),
        ('"1GB"', 10**9),
        ('"500 MB"', 5 * 10**8),
        ('"1GiB"', 2**30),
        ('"1.5 kib"', 1536),
        ('"2tb"', 2 * 10**12),
        ('"4096"', 4096),
        ('"1000 B"', 1000),
    ],
)
def test_sizes(tmp_path: Path, written: str, size_bytes: int) -> None:
    """A size is a number of bytes, or text with a decimal or binary unit."""
    assert load_text(tmp_path, f'{{"ROTATE_SIZE": {written}}}').rotate_size == size_bytes
    environ = {"TICKCOLLECT_ROTATE_SIZE": written.strip('"')}
    assert load_text(tmp_path, "{}", environ).rotate_size == size_bytes


@pytest.mark.parametrize(
    ("exchange", "stream"), [("binance", "trade"), ("binance-futures", "aggTrade"), ("binance-delivery", "aggTrade")]
)
def test_each_exchange_has_its_default_stream(tmp_path: Path, exchange: str, stream: str) -> None:
    """An entry without a stream gets the one that is usual on its exchange."""
    entry = {"exchange": exchange, "symbols": ["BTCUSDT"]}
    result = load_text(tmp_path, json.dumps({"COLLECT": [entry]}))
    assert result.collect[0].stream == stream
    assert load_text(tmp_path, json.dumps({"COLLECT": [entry | {"stream": "trade"}]})).collect[0].stream == "trade"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Files from editors that begin them with a byte order mark are read."""
    assert load_text(tmp_path, b'\xef\xbb\xbf{"QUEUE_ROWS": 123}').queue_rows == 123


def test_symbols_of_other_alphabets_and_delivery_dates(tmp_path: Path) -> None:
    """Symbols are names, not only Latin letters; what would be a path is not among them."""
    symbols = ["BTCUSDT_261225", "币安人生USDT", "BTC-USD"]
    text = json.dumps({"COLLECT": [{"exchange": "binance", "symbols": symbols}]})
    assert load_text(tmp_path, text).collect[0].symbols == tuple(symbols)


def test_the_chat_is_a_number_or_a_name(tmp_path: Path) -> None:
    """Both ways in which existing users write their chat are accepted and mean the same text."""
    for written in ("-1001234", '"-1001234"'):
        text = f'{{"TELEGRAM_TOKEN": "1:a", "TELEGRAM_CHAT_ID": {written}}}'
        assert load_text(tmp_path, text).telegram_chat_id == "-1001234"


def test_the_environment_speaks_json_for_lists_and_text_otherwise(tmp_path: Path) -> None:
    """Numbers, booleans and lists come as JSON, text as it is, and an empty variable is none."""
    result = load_text(
        tmp_path,
        '{"S3_BUCKET": "b"}',
        {
            "TICKCOLLECT_COLLECT": '[{"exchange": "binance", "symbols": ["BTCUSDT"]}]',
            "TICKCOLLECT_SEAL_AT_STOP": "true",
            "TICKCOLLECT_FIRST_DATA_S": "90",
            "TICKCOLLECT_S3_BUCKET_PATH": "12",
            "TICKCOLLECT_TELEGRAM_CHAT_ID": "-5",
            "TICKCOLLECT_TELEGRAM_TOKEN": "1:a",
            "TICKCOLLECT_S3_BUCKET": "",
            "OTHER": "x",
        },
    )
    assert result.collect[0].symbols == ("BTCUSDT",)
    assert result.seal_at_stop is True
    assert result.first_data_s == 90.0
    assert (result.s3_bucket, result.s3_bucket_path, result.telegram_chat_id) == ("b", "12", "-5")


def test_what_container_platforms_put_into_the_environment(tmp_path: Path) -> None:
    """A variable that resembles no key changes nothing, and a warning tells of it."""
    environ = {
        "TICKCOLLECT_SERVICE_HOST": "10.0.0.1",
        "TICKCOLLECT_SERVICE_PORT": "80",
        "TICKCOLLECT_PORT": "tcp://10.0.0.1:80",
    }
    assert load_text(tmp_path, "{}", environ) == Config()
    assert config.warnings(tmp_path / "config.json", environ) == [
        "the environment variable TICKCOLLECT_PORT sets nothing: there is no such key",
        "the environment variable TICKCOLLECT_SERVICE_HOST sets nothing: there is no such key",
        "the environment variable TICKCOLLECT_SERVICE_PORT sets nothing: there is no such key",
    ]


def test_a_configuration_cannot_be_changed() -> None:
    """What was checked stays as it was checked."""
    with pytest.raises(ValueError, match="frozen"):
        Config().queue_rows = 1


# --- What is refused -----------------------------------------------------------------------------------------------


def entry(text: str) -> str:
    return f'{{"COLLECT": [\n{{"exchange": "binance",\n"symbols": ["BTCUSDT"], {text}}}]}}'


BAD_FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty file": (b"", ["config.json: the file is empty"]),
    "only spaces": ("\n \n", ["config.json: the file is empty"]),
    "only a byte order mark": (b"\xef\xbb\xbf", ["config.json: the file is empty"]),
    "missing comma": (
        '{\n"DATA_DIR": "x"\n"LOG_FILE": null}',
        ["config.json:3: is not JSON: Expecting ',' delimiter (column 1)"],
    ),
    "comma after the last": ('{\n"DATA_DIR": "x",\n}', ["config.json:"]),
    "comment": ('{"DATA_DIR": "x"} // mine', ["config.json:1: is not JSON: Extra data (column 19)"]),
    "single quotes": ("{'DATA_DIR': 1}", ["config.json:1: is not JSON: Expecting property name"]),
    "cut off": ('{"DATA_DIR": "x', ["config.json:1: is not JSON: Unterminated string"]),
    "a list": ("[]", ["config.json:1: the file holds a list, not an object"]),
    "a text": ('"x"', ["config.json:1: the file holds text, not an object"]),
    "null": ("null", ["config.json:1: the file holds null, not an object"]),
    "not UTF-8": (b'{\n"DATA_DIR": "caf\xe9"}', ["config.json:2: the text is not UTF-8"]),
    "UTF-16": ('{"DATA_DIR": "x"}'.encode("utf-16"), ["config.json:1: the text is not UTF-8"]),
    "endless number": ('{"QUEUE_ROWS": ' + "9" * 5000 + "}", ["config.json: has a number too long or lists too deep"]),
    "too deep": ('{"COLLECT": ' + "[" * 200_000 + "}", ["config.json: has a number too long or lists too deep"]),
    "too large": ('{"DATA_DIR": "' + "x" * 1_000_000 + '"}', ["config.json: the file is larger than 1000000 bytes"]),
    "key twice": ('{\n"DATA_DIR": "a",\n\n"DATA_DIR": "b"}', ["config.json:4: DATA_DIR was given before, in line 2. "]),
    "key twice, disguised": (
        '{"DATA_DIR": "a",\n"DATA\\u005fDIR": "b"}',
        ["config.json:2: DATA_DIR was given before, in line 1. "],
    ),
    "key of an entry twice": (
        entry('\n"exchange": "binance"'),
        ["config.json:4: COLLECT[0].exchange was given before, in line 2. "],
    ),
    "unknown key": ('{\n"DATADIR": "a"}', ["config.json:2: DATADIR is not a key. Did you mean DATA_DIR?"]),
    "key in lower case": ('{"s3_bucket": "a"}', ["config.json:1: s3_bucket is not a key. Did you mean S3_BUCKET?"]),
    "key with hyphens": ('{"rotate-size": 1}', ["config.json:1: rotate-size is not a key. Did you mean ROTATE_SIZE?"]),
    "unknown key like none": ('{"zzz": 1}', ["config.json:1: zzz is not a key. Take it out"]),
    "hostile key": ('{"\\u001b[2J\\ud800": 1}', ["config.json:1: \\x1b[2J\\ud800 is not a key. "]),
    "unknown key of an entry": (
        entry('\n"symbol": "X"'),
        ["config.json:4: COLLECT[0].symbol is not a key of an entry. Did you mean symbols?"],
    ),
    "text for true": (
        '{"SEAL_AT_STOP": "yes"}',
        ['config.json:1: SEAL_AT_STOP cannot be "yes". Write true or false, without quotes'],
    ),
    "number for true": ('{"SEAL_AT_STOP": 1}', ["config.json:1: SEAL_AT_STOP cannot be 1. "]),
    "text for a number": ('{\n"QUEUE_ROWS": "9000"}', ['config.json:2: QUEUE_ROWS cannot be "9000". ']),
    "true for a number": ('{"QUEUE_ROWS": true}', ["config.json:1: QUEUE_ROWS cannot be true. "]),
    "fraction of a row": ('{"QUEUE_ROWS": 1000.5}', ["config.json:1: QUEUE_ROWS cannot be 1000.5. "]),
    "below the bound": (
        '{"QUEUE_ROWS": 5}',
        ["config.json:1: QUEUE_ROWS cannot be 5. Write a whole number of rows, 100 to 1000000"],
    ),
    "above the bound": ('{"SYNC_INTERVAL_S": 61}', ["config.json:1: SYNC_INTERVAL_S cannot be 61. "]),
    "not a number at all": ('{"GAP_PATIENCE_S": NaN}', ["config.json:1: GAP_PATIENCE_S cannot be nan. "]),
    "infinite": ('{"FIRST_DATA_S": 1e999}', ["config.json:1: FIRST_DATA_S cannot be inf. "]),
    "unknown unit": ('{"ROTATE_SIZE": "1XB"}', ['config.json:1: ROTATE_SIZE is not a size: "1XB". Write bytes']),
    "negative size": ('{"MIN_FREE_DISK": -1}', ["config.json:1: MIN_FREE_DISK cannot be -1. "]),
    "size too small": ('{"ROTATE_SIZE": "999B"}', ["config.json:1: ROTATE_SIZE cannot be "]),
    "size from false": ('{"ROTATE_SIZE": false}', ["config.json:1: ROTATE_SIZE cannot be false. "]),
    "unknown compression": (
        '{"COMPRESSION": "zipp"}',
        ['config.json:1: COMPRESSION cannot be "zipp". Did you mean zip? Write one of zip,'],
    ),
    "level in lower case": (
        '{"LOG_LEVEL": "debug"}',
        ['config.json:1: LOG_LEVEL cannot be "debug". Did you mean DEBUG?'],
    ),
    "empty directory name": ('{"DATA_DIR": ""}', ["config.json:1: DATA_DIR is not a path. "]),
    "NUL in a path": ('{"LOG_FILE": "a\\u0000b"}', ["config.json:1: LOG_FILE is not a path. "]),
    "number for a path": ('{"DATA_DIR": 5}', ["config.json:1: DATA_DIR cannot be a number. "]),
    "home of nobody": ('{"DATA_DIR": "~no-such-user/x"}', ["config.json:1: DATA_DIR begins with ~"]),
    "object for a list": ('{"COLLECT": {}}', ["config.json:1: COLLECT cannot be an object. Write a list of entries"]),
    "text for an entry": ('{"COLLECT": [\n"BTCUSDT"]}', ["config.json:2: COLLECT[0] cannot be text. "]),
    "entry without exchange": (
        '{"COLLECT": [\n{"symbols": ["A"]}]}',
        ["config.json:2: COLLECT[0].exchange is missing. Write one of binance, "],
    ),
    "entry without symbols": (
        '{"COLLECT": [{"exchange": "binance"}]}',
        ["config.json:1: COLLECT[0].symbols is missing. "],
    ),
    "no symbols": (
        '{"COLLECT": [{"exchange": "binance", "symbols": []}]}',
        ["config.json:1: COLLECT[0].symbols is empty. "],
    ),
    "one symbol as text": (
        '{"COLLECT": [{"exchange": "binance", "symbols": "BTCUSDT"}]}',
        ['config.json:1: COLLECT[0].symbols cannot be "BTCUSDT". Write a list of symbols'],
    ),
    "unknown exchange": (
        '{"COLLECT": [{"exchange": "binanse", "symbols": ["A"]}]}',
        ['config.json:1: COLLECT[0].exchange cannot be "binanse". Did you mean binance? Write one of binance, '],
    ),
    "exchange as a list": (
        '{"COLLECT": [{"exchange": [], "symbols": ["A"]}]}',
        ["config.json:1: COLLECT[0].exchange "],
    ),
    "unknown stream": (
        entry('\n"stream": "aggtrade"'),
        ['config.json:4: COLLECT[0].stream cannot be "aggtrade". Did you mean aggTrade? Write one of trade, aggTrade'],
    ),
    "symbol with a path": (
        '{"COLLECT": [{"exchange": "binance", "symbols": [\n"A",\n"../x"]}]}',
        ['config.json:3: COLLECT[0].symbols[1] is not a symbol: "../x". '],
    ),
    "symbol with a formula": (
        '{"COLLECT": [{"exchange": "binance", "symbols": ["=A"]}]}',
        ['config.json:1: COLLECT[0].symbols[0] is not a symbol: "=A". '],
    ),
    "symbol with a line break": (
        '{"COLLECT": [{"exchange": "binance", "symbols": ["A\\n"]}]}',
        ['config.json:1: COLLECT[0].symbols[0] is not a symbol: "A\\n". '],
    ),
    "wrong scheme for the websocket": (
        entry('\n"ws_url": "https://x.example"'),
        ["config.json:4: COLLECT[0].ws_url is not a URL that begins with ws:// or wss://. "],
    ),
    "wrong scheme for REST": (
        entry('"rest_url": "wss://x"'),
        ["config.json:3: COLLECT[0].rest_url is not a URL that "],
    ),
    "address without a host": (
        entry('"rest_url": "https://"'),
        ["config.json:3: COLLECT[0].rest_url is not a URL that "],
    ),
    "address with a wrong port": (
        entry('"rest_url": "https://x:99999"'),
        ["config.json:3: COLLECT[0].rest_url is not a URL that "],
    ),
    "address with a password": (
        entry(f'"rest_url": "https://u:{SECRET}@x"'),
        ["config.json:3: COLLECT[0].rest_url has a user, a query or a "],
    ),
    "feed twice in an entry": (
        '{"COLLECT": [{"exchange": "binance", "symbols": ["A",\n"A"]}]}',
        ["config.json:2: COLLECT[0].symbols[1] asks for binance trade A again, which COLLECT[0].symbols[0] "],
    ),
    "feed twice in two entries": (
        """{"COLLECT": [{"exchange": "binance", "symbols": ["A"]},
            {"exchange": "binance", "stream": "trade", "symbols": ["B", "A"], "ws_url": "wss://x"}]}""",
        ["config.json:2: COLLECT[1].symbols[1] asks for binance trade A again, which COLLECT[0].symbols[0] "],
    ),
    "column twice": ('{"EXTRA_COLUMNS": ["nq", "X", "nq"]}', ["config.json:1: EXTRA_COLUMNS names nq twice"]),
    "column that is there": (
        '{"EXTRA_COLUMNS": ["nq",\n"e"]}',
        ['config.json:2: EXTRA_COLUMNS[1] is a column already: "e"'],
    ),
    "column that cannot be": (
        '{"EXTRA_COLUMNS": ["a,b"]}',
        ["config.json:1: EXTRA_COLUMNS[0] is not the name of a column"],
    ),
    "method for a column": (
        '{"EXTRA_COLUMNS": ["lines"]}',
        ['config.json:1: EXTRA_COLUMNS[0] is a column already: "lines"'],
    ),
    "proxy of an unknown kind": (
        '{"PROXY": "ftp://h"}',
        ["config.json:1: PROXY is not a URL that begins with http://"],
    ),
    "access key alone": ('{"AWS_ACCESS_KEY": "x"}', ["config.json:1: AWS_ACCESS_KEY is set, AWS_SECRET_KEY is not. "]),
    "secret key alone": ('{"AWS_SECRET_KEY": "x"}', ["config.json:1: AWS_SECRET_KEY is set, AWS_ACCESS_KEY is not. "]),
    "token alone": ('{"TELEGRAM_TOKEN": "1:x"}', ["config.json:1: TELEGRAM_TOKEN is set, TELEGRAM_CHAT_ID is not. "]),
    "key with a line break": (
        '{"AWS_ACCESS_KEY": "x", "AWS_SECRET_KEY": "y\\n"}',
        ["config.json:1: AWS_SECRET_KEY has a space or a line break in it. "],
    ),
    "address of a bucket": ('{"S3_BUCKET": "s3://b"}', ["config.json:1: S3_BUCKET is not the name of a bucket. "]),
    "folder that is none": (
        '{"UPLOAD_TO": "/mnt/backup"}',
        ["config.json:1: UPLOAD_TO is not a folder as a URL. "],
    ),
    "folder on a host": (
        '{"UPLOAD_TO": "file://mnt/backup"}',
        ["config.json:1: UPLOAD_TO is not a folder as a URL. "],
    ),
    "two stores": (
        '{"S3_BUCKET": "ticks",\n"UPLOAD_TO": "file:///mnt/backup"}',
        ["config.json:2: UPLOAD_TO is set, and so is S3_BUCKET. Keep one; the other is for "],
    ),
    "unknown kind of message": (
        '{"ALERT_MUTE": ["gap", "startet"]}',
        ['config.json:1: ALERT_MUTE[1] cannot be "startet". Did you mean started? '],
    ),
    "channel that is no URL": (
        '{"ALERT_URLS": ["ntfy.sh/x"]}',
        ["config.json:1: ALERT_URLS[0] is not a URL. Write a list "],
    ),
    "port out of range": ('{"METRICS_PORT": 70000}', ["config.json:1: METRICS_PORT cannot be 70000. "]),
    "folder in a bucket": ('{"S3_BUCKET": "b/c"}', ["config.json:1: S3_BUCKET is not the name of a bucket. "]),
    "chat true": (
        '{"TELEGRAM_TOKEN": "1:x", "TELEGRAM_CHAT_ID": true}',
        ["config.json:1: TELEGRAM_CHAT_ID cannot be true. "],
    ),
    "null for text": ('{"S3_BUCKET_PATH": null}', ["config.json:1: S3_BUCKET_PATH cannot be null. "]),
    "several, in order": (
        '{\n"QUEUE_ROWS": 1,\n"LOGLEVEL": "INFO",\n"COLLECT": [7],\n"AWS_SECRET_KEY": "x",\n"QUEUE_ROWS": 2}',
        [
            "config.json:3: LOGLEVEL is not a key. Did you mean LOG_LEVEL?",
            "config.json:4: COLLECT[0] cannot be a number. ",
            "config.json:5: AWS_SECRET_KEY is set, AWS_ACCESS_KEY is not. ",
            "config.json:6: QUEUE_ROWS was given before, in line 2. ",
            "config.json:6: QUEUE_ROWS cannot be 2. ",
        ],
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_each_mistake_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    """File, line, key and remedy of every mistake in the file, one line each, and nothing else."""
    text, expected = BAD_FILES[name]
    lines = mistakes(tmp_path, text)
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)
        assert re.fullmatch(r"[^.].*[.?] ?.*\S", line)


def test_a_problem_as_data(tmp_path: Path) -> None:
    """A problem's parts can be had one by one."""
    with pytest.raises(ConfigError) as error:
        load_text(tmp_path, '{\n"COLECT": []}')
    (problem,) = error.value.problems
    expected = (str(tmp_path / "config.json"), 2, "COLECT", "is not a key", "Did you mean COLLECT?")
    assert (problem.source, problem.line, problem.key, problem.wrong, problem.remedy) == expected


def test_mistakes_of_all_sources_come_together(tmp_path: Path) -> None:
    """File, environment and command line are reported in one go, each under its own name."""
    environ = {
        "TICKCOLLECT_ROTATE_SIZ": "1",
        "TICKCOLLECT_COLLECT": "[oops",
        "TICKCOLLECT_FIRST_DATA_S": "soon",
        "TICKCOLLECT_EXTRA_COLUMNS": '"nq"',
    }
    lines = mistakes(tmp_path, '{"NO_SUCH": 1}', environ, LOG_LEVEL="LOUD")
    assert [line.split(". ")[0] for line in lines] == [
        "config.json:1: NO_SUCH is not a key",
        "environment: TICKCOLLECT_COLLECT is not JSON: Expecting value (column 2)",
        "environment: TICKCOLLECT_ROTATE_SIZ is not a key",
        'environment: TICKCOLLECT_EXTRA_COLUMNS cannot be "nq"',
        'environment: TICKCOLLECT_FIRST_DATA_S cannot be "soon"',
        'command line: LOG_LEVEL cannot be "LOUD"',
    ]


def test_a_repeated_key_in_a_variable(tmp_path: Path) -> None:
    """A key given twice is refused in the environment's JSON as well."""
    environ = {"TICKCOLLECT_COLLECT": '[{"exchange": "binance", "exchange": "binance", "symbols": ["A"]}]'}
    assert mistakes(tmp_path, "{}", environ) == [
        "environment: TICKCOLLECT_COLLECT[0].exchange is given twice. Keep one"
    ]


def test_a_broken_file_does_not_make_pairs_look_half_given(tmp_path: Path) -> None:
    """Only the real mistake is reported where the other half of a pair is in a file that cannot be read."""
    lines = mistakes(tmp_path, "{", {"TICKCOLLECT_AWS_SECRET_KEY": "x"})
    assert len(lines) == 1
    assert lines[0].startswith("config.json:1: is not JSON")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A named file must exist; the message says so and how to make one."""
    with pytest.raises(ConfigError, match=r"nowhere\.json: there is no such file.*config\.example\.json"):
        config.load(tmp_path / "nowhere.json", {}, {})


def test_a_directory_in_place_of_the_file(tmp_path: Path) -> None:
    """A directory is told as such."""
    with pytest.raises(ConfigError, match="the file cannot be read: Is a directory"):
        config.load(tmp_path, {}, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    """A file that this user may not read is told as such."""
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(ConfigError, match="the file cannot be read: Permission denied"):
        config.load(path, {}, {})


# --- The data directory --------------------------------------------------------------------------------------------


def test_the_data_directory_is_made_and_left_empty(tmp_path: Path) -> None:
    """A directory that is not there yet is made with its parents; the probe leaves nothing behind."""
    config.check_data_dir(tmp_path / "a" / "b")
    config.check_data_dir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_place_of_the_data_directory(tmp_path: Path, below: str) -> None:
    """A file in the way is an error with its path, not a traceback."""
    (tmp_path / "data").write_text("x")
    with pytest.raises(ConfigError, match=r"/data.*: DATA_DIR cannot be written: "):
        config.check_data_dir(tmp_path / "data" / below)


def test_a_data_directory_that_cannot_be_written() -> None:
    """Where even root may not write, the reason is told."""
    if not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(ConfigError, match="DATA_DIR cannot be written: "):
        config.check_data_dir(Path("/proc/tickcollect"))


# --- Secrets -------------------------------------------------------------------------------------------------------


def chain(error: BaseException | None) -> str:
    """Return everything that an exception and what led to it can be made to say."""
    if error is None:
        return ""
    return f"{error!s} {error!r} {vars(error)!r}" + chain(error.__cause__) + chain(error.__context__)


SECRET_HOLDERS: list[dict[str, Any]] = [
    {"AWS_ACCESS_KEY": SECRET, "AWS_SECRET_KEY": f"{SECRET}\n"},
    {"AWS_SECRET_KEY": SECRET},
    {"AWS_SECRET_KEY": [SECRET]},
    {"AWS_SECRET_KEY": {"value": SECRET}},
    {"TELEGRAM_TOKEN": f"12: {SECRET}", "TELEGRAM_CHAT_ID": 5},
    {"TELEGRAM_TOKEN": "5", "TELEGRAM_CHAT_ID": f"12:{SECRET}"},
    {"S3_BUCKET": f"s3://{SECRET}"},
    {"S3_BUCKET_PATH": [SECRET]},
    {"ALERT_URLS": [SECRET]},
    {"ALERT_URLS": SECRET},
    {"ALERT_URLS": [f"slack://{SECRET} x"]},
    {"ALERT_URLS": [f"slack://{SECRET}"], "UPLOAD_TO": SECRET, "S3_ENDPOINT_URL": f"https://u:{SECRET}@h"},
    {"PROXY": f"ftp://user:{SECRET}@host"},
    {"PROXY": f"http://user:{SECRET}@host:99999"},
    {"TELEGRAM_TOKE": SECRET},
    {"COLLECT": [SECRET]},
    {"COLLECT": [{"exchange": "binance", "symbols": ["A"], "key": SECRET}]},
    {"COLLECT": [{"exchange": "binance", "symbols": ["A"], "rest_url": f"https://u:{SECRET}@h"}]},
    {"COLLECT": [{"exchange": "binance", "symbols": ["A"], "ws_url": f"wss://h/?token={SECRET}"}]},
]


@pytest.mark.parametrize("values", SECRET_HOLDERS)
def test_no_error_repeats_a_secret(tmp_path: Path, values: dict[str, Any]) -> None:
    """Wherever a secret stands in a wrong configuration, neither the error nor what led to it holds it."""
    environ = {f"TICKCOLLECT_{key}": value for key, value in values.items() if isinstance(value, str)}
    path = tmp_path / "config.json"
    for text, variables in ((json.dumps(values), {}), (json.dumps(values) + ",", {}), ("{}", environ)):
        if text == "{}" and not variables:
            continue
        path.write_text(text)
        with pytest.raises(ConfigError) as error:
            config.load(path, variables, {})
        assert SECRET not in chain(error.value)


def test_a_good_configuration_prints_no_secret(tmp_path: Path) -> None:
    """The text of a configuration has asterisks in place of keys, token and proxy."""
    keys = {"AWS_ACCESS_KEY": SECRET, "AWS_SECRET_KEY": SECRET, "TELEGRAM_TOKEN": SECRET, "TELEGRAM_CHAT_ID": 1}
    result = load_text(tmp_path, json.dumps(keys | {"PROXY": f"http://u:{SECRET}@h"}))
    assert SECRET not in f"{result} {result!r} {vars(result)}"
    assert result.aws_secret_key.get_secret_value() == SECRET
    assert result.proxy is not None
    assert result.proxy.get_secret_value() == f"http://u:{SECRET}@h"


@pytest.mark.parametrize(
    ("text", "mode", "count"),
    [
        (f'{{"AWS_SECRET_KEY": "{SECRET}"}}', 0o644, 1),
        (f'{{"TELEGRAM_TOKEN": "{SECRET}"}}', 0o640, 1),
        (f'{{"TELEGRAM_TOKEN": "{SECRET}"}}', 0o600, 0),
        ('{"TELEGRAM_TOKEN": "", "S3_BUCKET": "x"}', 0o644, 0),
        ("{broken", 0o644, 0),
    ],
)
def test_a_file_with_secrets_that_others_can_read(tmp_path: Path, text: str, mode: int, count: int) -> None:
    """Secrets in a file that others can read are worth a warning with the command that mends it."""
    path = tmp_path / "my config.json"
    path.write_text(text)
    path.chmod(mode)
    found = config.warnings(path, {})
    assert len(found) == count
    for warning in found:
        assert warning.endswith(f"(mode {mode:04o}). Run: chmod 600 '{path}'")
        assert SECRET not in warning


# --- Anything at all -----------------------------------------------------------------------------------------------

ENTRY_KEYS = st.text(max_size=5) | st.sampled_from(["exchange", "stream", "symbols", "ws_url"])
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1GB", "binance", "trade", "BTCUSDT", "wss://x", "https://x", "zip", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ENTRY_KEYS, inner, max_size=4),
    max_leaves=12,
)
CONFIGURATIONS = st.dictionaries(st.sampled_from(config.KEYS) | st.text(max_size=6), JSON_VALUES, max_size=6)


def load_or_refuse(path: Path, content: bytes, environ: dict[str, str]) -> None:
    path.write_bytes(content)
    told = "fine"
    try:
        config.load(path, environ, {})
    except ConfigError as error:
        told = str(error)
    assert told
    assert all(line.isprintable() for line in told.split("\n"))
    config.warnings(path, environ)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda tail: b'{"DATA_DIR": "x", ' + tail))
@settings(deadline=None, max_examples=300)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a file holds, the outcome is a configuration or a `ConfigError`."""
    load_or_refuse(tmp_path_factory.getbasetemp() / "bytes.json", content, {})


@given(CONFIGURATIONS, st.sampled_from(["utf-8", "ascii"]))
@settings(deadline=None, max_examples=400)
def test_any_values(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], encoding: str) -> None:
    """Whatever JSON stands in file and environment, the outcome is a configuration or a `ConfigError`."""
    text = json.dumps(values, ensure_ascii=encoding == "ascii", indent=1)
    environ = {f"TICKCOLLECT_{key}": json.dumps(value) for key, value in values.items()}
    path = tmp_path_factory.getbasetemp() / "values.json"
    load_or_refuse(path, text.encode(errors="surrogatepass"), {})
    load_or_refuse(path, b"{}", environ)


@given(CONFIGURATIONS, st.sampled_from([None, 0, 1, 4]))
@settings(deadline=None, max_examples=200)
def test_lines_are_those_of_the_text(values: dict[str, Any], indent: int | None) -> None:
    """The line recorded for each key is the one on which the key stands, however the file is laid out."""
    text = json.dumps(values, indent=indent)
    lines, repeated = config._lines(text)
    assert repeated == []
    rows = text.split("\n")
    for steps, line in lines.items():
        if isinstance(steps[-1], str):
            assert json.dumps(steps[-1]) + ":" in rows[line - 1]
    assert {steps[0] for steps in lines} == set(values)


# --- Documents -----------------------------------------------------------------------------------------------------


def documented() -> dict[str, str]:
    """Return the default of each key as the table in the documentation writes it."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    return dict(re.findall(r"^\| `([A-Z0-9_]+)` \| `([^`]+)` \|", text, re.MULTILINE))


def test_the_example_is_complete_and_valid() -> None:
    """The example has exactly the keys that there are, loads without a mistake, and holds no secret."""
    path = ROOT / "config.example.json"
    assert list(json.loads(path.read_text())) == list(config.KEYS)
    assert config.load(path, {}, {}).collect
    assert config.warnings(path, {}) == []


def test_the_documentation_has_every_key_and_no_other() -> None:
    """The table of keys is complete and in the same order."""
    assert list(documented()) == list(config.KEYS)


@pytest.mark.parametrize("key", config.KEYS)
def test_the_documented_default_is_the_real_one(tmp_path: Path, key: str) -> None:
    """Writing a key's documented default into the file changes nothing."""
    path = tmp_path / "config.json"
    path.write_text(f'{{"{key}": {documented()[key]}}}')
    assert config.load(path, {}, {}) == Config()


def test_entry_keys_are_documented() -> None:
    """Each key of an entry of COLLECT has its row."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    assert re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE) == list(config.CollectEntry.model_fields)
