"""File, environment and command line to one validated `Config`.

Rules:

1. One flat JSON object. Every key can also be given as the environment variable `TICKCOLLECT_<KEY>`; the command line
   wins over the environment, the environment over the file. `Config` has one attribute a key, in lower case.
2. Nothing is guessed. An unknown key, a key given twice, `"yes"` where `true` is needed, values that contradict each
   other: all such mistakes are reported at once, each with its place, its key and its remedy (`ConfigError`).
3. A secret is never repeated, neither in an error nor in `repr`. Errors quote the values of `_QUOTED` keys only. An
   exception that holds the input (pydantic's, json's) never leaves this module, not even as an error's context.
4. An environment variable of a text key is taken as it is. For other keys it is JSON, or text where the key accepts
   text (`1GB`). An empty variable counts as not set. An unknown `TICKCOLLECT_` variable is a mistake where it
   resembles a key and a warning elsewhere: container platforms invent variables (`TICKCOLLECT_SERVICE_HOST`).

The only things opened here are the configuration file and, in `check_data_dir`, a probe file in the data directory.
"""

import difflib
import errno
import json
import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticKnownError

from tickcollect.exchanges import MARKETS, NAMES, STREAMS

DEFAULT_PATH = Path("config.json")
"""Read where no file is named, if it is there."""
PREFIX = "TICKCOLLECT_"
"""What the name of an environment variable adds to the key."""

NOTICE_KINDS = (
    "started", "stopped", "disconnected", "gap", "lost", "unknown", "silent", "disk", "quarantine", "upload", "limits",
    "delisted", "clock", "heartbeat", "trouble",
)  # fmt: skip
"""Kinds of messages that can be muted; `alerts.sorts` tells what each is about."""

_FILE_BYTES_MAX = 1_000_000
_QUOTED_CHARACTERS_MAX = 40


# --- Mistakes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what is wrong, what to do.

    `source` is the file as it was named, a directory, `environment` or `command line`. `line` counts from 1 and is
    None where there is none. `key` is written as in the file, `COLLECT[0].symbols[1]`; empty for the file as a whole.
    """

    source: str
    line: int | None
    key: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        what = f"{self.key} {self.wrong}" if self.key else self.wrong
        return f"{place}: {what}. {self.remedy}"


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every mistake that was found; as text, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


# --- Kinds of values. A description completes the sentence "Write ..." ----------------------------------------------

_SIZE = re.compile(r"([0-9]{1,15}(?:[.][0-9]{1,9})?) ?(B|KB|MB|GB|TB|KIB|MIB|GIB|TIB)?", re.IGNORECASE)
_UNIT_BYTES = {"B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("B", 1000), ("IB", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
_NOT_IN_NAMES = re.compile(r"[^\w .:@-]")
_ALERT_NAME_LONGEST = 60
_STORE_REGION = re.compile(r"[a-z0-9-]{0,40}")
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_SYMBOL = re.compile(r"[^\W_][\w-]{0,39}")
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


def _size(value: object) -> object:
    """Return the bytes meant by `1GB`, `500 MB` or `1GiB`; what is not text is left to the integer's own check."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("is not a size")
    number, unit = match.groups()
    return int(Decimal(number) * _UNIT_BYTES[(unit or "B").upper()])


def _path(value: object) -> object:
    """Return the path meant by text; `~` is the home directory."""
    if not isinstance(value, str):
        return value
    if not value or not value.isprintable():
        raise ValueError("is not a path")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise ValueError("begins with ~, and there is no such home directory") from None


def _one_of(names: Sequence[str]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(map(repr, names))})
        return value

    return AfterValidator(check)


def _matches(pattern: re.Pattern[str], wrong: str) -> AfterValidator:
    def check(value: str) -> str:
        if pattern.fullmatch(value) is None:
            raise ValueError(wrong)
        return value

    return AfterValidator(check)


def _alert_name(value: str) -> str:
    """Check a collector's name, and say which of its characters are wrong: it stands before every message."""
    wrong = "".join(dict.fromkeys(_NOT_IN_NAMES.findall(value)))
    if wrong:
        raise ValueError(f"has {wrong!r} in it; only letters, digits, spaces and . : @ - _ may be in a name")
    if value and not re.match(r"\w", value):
        raise ValueError(f"begins with {value[0]!r}; only a letter, a digit or _ may begin a name")
    if len(value) > _ALERT_NAME_LONGEST:
        raise ValueError(f"is {len(value)} characters long")
    return value


def _address(*schemes: str) -> AfterValidator:
    """Check a URL by its scheme and host. A path is kept; user and password have no place in it, nor has a query."""

    def check(value: str) -> str:
        _check_url(value, schemes)
        parts = urlsplit(value)
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("has a user, a query or a fragment")
        return value

    return AfterValidator(check)


def _proxy(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        _check_url(value.get_secret_value(), ("http", "https", "socks5", "socks5h"))
    return value


def _check_url(value: str, schemes: Sequence[str]) -> None:
    """Raise `ValueError` unless `value` is a URL with one of `schemes`, a host and, if any, a port below 65536."""
    if not value.isprintable() or " " in value:
        raise ValueError("has spaces or invisible characters")
    try:
        parts = urlsplit(value)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.scheme not in schemes:
        raise ValueError(f"is not a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")


def _unspaced(value: SecretStr) -> SecretStr:
    if re.search(r"\s", value.get_secret_value()):
        raise ValueError("has a space or a line break in it")
    return value


def _folder(value: str) -> str:
    """Check a folder's URL. It has three slashes: with two, the folder's first part would be a host's name."""
    if value and (not value.isprintable() or not re.match(r"file:///[^/]", value)):
        raise ValueError("is not a folder as a URL")
    return value


def _alert_url(value: SecretStr) -> SecretStr:
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", value.get_secret_value()) is None:
        raise ValueError("is not a URL")
    return value


def _bucket(value: str) -> str:
    if re.search(r"\s|://", value) or ("/" in value and not value.startswith("arn:")):
        raise ValueError("is not the name of a bucket")
    return value


def _chat(value: object) -> object:
    """Return the chat as text. A colon shows that the token was put here."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and re.search(r"[\s:]", value):
        raise ValueError("is not a chat (a token?)")
    return value


def _extra_column(value: str) -> str:
    if _COLUMN.fullmatch(value) is None:
        raise ValueError("is not the name of a column")
    if value == "e" or any(hasattr(kind, value) for kind in STREAMS.values()):
        raise ValueError("is a column already")
    return value


def _not_empty(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("is empty")
    return values


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    repeated = next((value for number, value in enumerate(values) if value in values[:number]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated} twice")
    return values


Size = Annotated[int, BeforeValidator(_size)]
LocalPath = Annotated[Path, BeforeValidator(_path)]
Secret = Annotated[SecretStr, AfterValidator(_unspaced)]

_A_SIZE = 'bytes (1000000000) or text with a unit ("1GB", "500 MB", "1GiB")'


# --- The configuration ---------------------------------------------------------------------------------------------


class CollectEntry(BaseModel):
    """One entry of `COLLECT`: an exchange, one of its streams, and the symbols to collect there.

    `stream` is the exchange's default stream (trade on spot, aggTrade on futures) where the entry names none.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    exchange: Annotated[str, _one_of(NAMES)] = Field(description=f"one of {', '.join(NAMES)}")
    stream: Annotated[str, _one_of(tuple(STREAMS))] = Field(default="trade", description=f"one of {', '.join(STREAMS)}")
    symbols: Annotated[
        tuple[Annotated[str, _matches(_SYMBOL, "is not a symbol")], ...],
        Strict(strict=False),
        AfterValidator(_not_empty),
    ] = Field(description='a list of symbols as the exchange writes them, at least one, such as ["BTCUSDT"]')
    ws_url: Annotated[str, _address("ws", "wss")] | None = Field(
        default=None, description="the websocket's address, such as wss://data-stream.binance.vision, or leave it out"
    )
    rest_url: Annotated[str, _address("http", "https")] | None = Field(
        default=None, description="the REST address, such as https://data-api.binance.vision, or leave it out"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_default_stream(cls, entry: object) -> object:
        if isinstance(entry, dict) and "stream" not in entry:
            exchange = entry.get("exchange")
            if isinstance(exchange, str) and exchange in MARKETS:
                return entry | {"stream": MARKETS[exchange].default_stream}
        return entry


class Config(BaseModel):
    """Everything that can be set, valid as a whole. Immutable; secrets are `SecretStr` and print as asterisks."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    data_dir: LocalPath = Field(default=Path("data"), description="the directory for the data, as text")
    collect: Annotated[tuple[CollectEntry, ...], Strict(strict=False)] = Field(
        default=(), description='a list of entries such as {"exchange": "binance", "symbols": ["BTCUSDT"]}'
    )
    rotate_size: Size = Field(default=1_000_000_000, ge=1000, description=f"{_A_SIZE}, at least 1 kB")
    compression: Literal["zip", "gzip", "zstd", "none"] = Field(
        default="zip", description="one of zip, gzip, zstd, none"
    )
    extra_columns: Annotated[
        tuple[Annotated[str, AfterValidator(_extra_column)], ...], Strict(strict=False), AfterValidator(_distinct)
    ] = Field(
        default=(),
        description='a list of names that are no column yet, such as ["received_ns", "nq"]: letters, digits and _',
    )
    not_trades: Literal["count", "write"] = Field(default="count", description="one of count, write")
    sync_interval_s: float = Field(default=1.0, ge=0.05, le=60, description="seconds, 0.05 to 60")
    queue_rows: int = Field(default=50_000, ge=100, le=1_000_000, description="a whole number of rows, 100 to 1000000")
    first_data_s: float = Field(default=60.0, ge=1, le=86_400, description="seconds, 1 to 86400")
    gap_patience_s: float = Field(default=1.0, ge=0, le=60, description="seconds, 0 to 60")
    backfill: bool = Field(default=True, description="true or false, without quotes")
    rest_share: float = Field(default=0.5, ge=0.05, le=0.95, description="a part of 1, 0.05 to 0.95")
    binance_api_key: Secret = Field(default=SecretStr(""), description='an API key without any permission, or ""')
    redundancy: int = Field(default=1, ge=1, le=2, description="1 or 2")
    renew_after_h: float = Field(default=23.0, gt=0, le=23.5, description="hours, above 0 and at most 23.5")
    renew_at: Annotated[str, _matches(_TIME_OF_DAY, "is not a time of day")] | None = Field(
        default=None, description='a UTC time such as "03:30", or null'
    )
    seal_at_stop: bool = Field(default=False, description="true or false, without quotes")
    min_free_disk: Size = Field(default=1_000_000_000, ge=0, description=_A_SIZE)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="one of DEBUG, INFO, WARNING, ERROR"
    )
    log_file: LocalPath | None = Field(default=None, description="the path of a file, as text, or null")
    proxy: Annotated[SecretStr | None, AfterValidator(_proxy)] = Field(
        default=None, description="a URL such as http://host:3128 or socks5://host:1080, or null"
    )
    aws_access_key: Secret = Field(default=SecretStr(""), description="the key's ID, or \"\" for boto3's usual chain")
    aws_secret_key: Secret = Field(default=SecretStr(""), description='the secret, or "" for boto3\'s usual chain')
    s3_bucket: Annotated[str, AfterValidator(_bucket)] = Field(
        default="", description="the bucket's bare name; a folder inside it belongs in S3_BUCKET_PATH"
    )
    s3_bucket_path: str = Field(default="", description='the folder inside the bucket, as text, or ""')
    s3_endpoint_url: Annotated[str, _address("http", "https")] | None = Field(
        default=None,
        description="the address of a store that is not Amazon's, such as https://minio.example:9000, or null",
    )
    s3_region: Annotated[str, _matches(_STORE_REGION, "is not a region")] = Field(
        default="", description='a region such as "eu-central-1", or ""'
    )
    s3_checksum: Literal["sha256", "md5"] = Field(default="sha256", description="one of sha256, md5")
    upload_to: Annotated[str, AfterValidator(_folder)] = Field(
        default="", description='a folder such as "file:///mnt/backup", or "" for the bucket'
    )
    upload_parallel: int = Field(default=4, ge=1, le=64, description="a whole number of files, 1 to 64")
    upload_within_h: float = Field(default=6.0, gt=0, le=24, description="hours, above 0 and at most 24")
    telegram_token: Secret = Field(default=SecretStr(""), description='the token that BotFather gave, or ""')
    telegram_chat_id: Annotated[str, BeforeValidator(_chat)] = Field(
        default="", description='the chat\'s number, or its name as text ("@channel"), or ""'
    )
    telegram_api_url: Annotated[str, _address("http", "https")] = Field(
        default="https://api.telegram.org", description="the address of a Bot API server"
    )
    alert_urls: Annotated[tuple[Annotated[SecretStr, AfterValidator(_alert_url)], ...], Strict(strict=False)] = Field(
        default=(), description='a list of apprise URLs such as ["ntfys://ntfy.sh/my-topic"]'
    )
    alert_mute: Annotated[tuple[Annotated[str, _one_of(NOTICE_KINDS)], ...], Strict(strict=False)] = Field(
        default=(), description=f"a list of kinds of messages not to send, of {', '.join(NOTICE_KINDS)}"
    )
    alert_disconnected_s: float = Field(default=60.0, ge=0, le=86_400, description="seconds, 0 to 86400")
    alert_heartbeat_at: Annotated[str, _matches(_TIME_OF_DAY, "is not a time of day")] | None = Field(
        default="08:00", description='a UTC time such as "08:00", or null'
    )
    alert_name: Annotated[str, AfterValidator(_alert_name)] = Field(
        default="", description='a name of up to 60 characters for this collector, or "" for the machine\'s'
    )
    metrics_port: int | None = Field(default=None, ge=1, le=65_535, description="a port, 1 to 65535, or null")
    metrics_address: str = Field(
        default="127.0.0.1", min_length=1, description='an address to listen at, such as "127.0.0.1"'
    )


KEYS: tuple[str, ...] = tuple(name.upper() for name in Config.model_fields)
"""Every key, as written in the file."""

SECRET_KEYS = ("BINANCE_API_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "TELEGRAM_TOKEN", "ALERT_URLS")

_LIST_KEYS = ("COLLECT", "EXTRA_COLUMNS", "ALERT_URLS", "ALERT_MUTE")
_NUMBER_KEYS = (
    "ROTATE_SIZE", "SYNC_INTERVAL_S", "QUEUE_ROWS", "FIRST_DATA_S", "GAP_PATIENCE_S", "BACKFILL", "REST_SHARE",
    "REDUNDANCY", "RENEW_AFTER_H", "SEAL_AT_STOP", "MIN_FREE_DISK", "UPLOAD_PARALLEL", "UPLOAD_WITHIN_H",
    "ALERT_DISCONNECTED_S", "METRICS_PORT",
)  # fmt: skip

_QUOTED = frozenset({
    "exchange", "stream", "symbols", "rotate_size", "compression", "extra_columns", "not_trades", "sync_interval_s",
    "queue_rows", "first_data_s", "gap_patience_s", "backfill", "rest_share", "redundancy", "renew_after_h",
    "renew_at", "seal_at_stop", "min_free_disk", "log_level", "s3_region", "s3_checksum",
    "upload_parallel", "upload_within_h", "alert_mute", "alert_disconnected_s", "alert_heartbeat_at", "alert_name",
    "metrics_port", "metrics_address",
})  # fmt: skip
"""Whose values an error may quote (rule 3): names that everybody knows, and numbers."""

_PAIRS = (("AWS_ACCESS_KEY", "AWS_SECRET_KEY"), ("TELEGRAM_TOKEN", "TELEGRAM_CHAT_ID"))


# --- Reading -------------------------------------------------------------------------------------------------------


def load(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """Return the configuration from a file, the environment and the command line.

    `path` None means `config.json` in the current directory, if there is one. `overrides` is what the command line
    said, with keys as in the file (`DATA_DIR`). Raises `ConfigError` with every mistake in all three.
    """
    file, problems = _from_file(path)
    file_was_read = not any(problem.key == "" for problem in problems)
    environment, unreadable = _from_environment(environ)
    sources = (file, environment, _Source("command line", overrides))
    problems += unreadable + [problem for source in sources for problem in _strangers(source)]
    origins = {key: source for source in sources for key in source.values if key in KEYS}
    values = {key: source.values[key] for key, source in origins.items()}

    config = _validated(values)
    if not isinstance(config, Config):
        problems += [_explained(detail, origins) for detail in config]
    if file_was_read:
        problems += _half_given(values, origins)
    problems += _collected_twice(values.get("COLLECT"), origins) + _two_stores(values, origins)
    if problems or not isinstance(config, Config):
        order = [source.name for source in sources]
        raise ConfigError(sorted(problems, key=lambda problem: (order.index(problem.source), problem.line or 0)))
    return config


def warnings(path: Path | None, environ: Mapping[str, str]) -> list[str]:
    """Return what is allowed but unwise: secrets in a file that others can read, variables that set nothing."""
    found: list[str] = []
    file, _ = _from_file(path)
    if any(file.values.get(key) for key in SECRET_KEYS):
        mode = (path or DEFAULT_PATH).stat().st_mode & 0o777
        if mode & 0o077:
            found.append(
                f"{file.name} holds secrets, and other users of this machine may read it (mode {mode:04o}). "
                f"Run: chmod 600 {shlex.quote(file.name)}"
            )
    found += [
        f"the environment variable {_shown(name)} sets nothing: there is no such key"
        for name in sorted(environ)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in KEYS
    ]
    return found


def check_data_dir(path: Path) -> None:
    """Create the data directory if need be and prove that files can be made there.

    Raises `ConfigError` for what only a person can mend, and `OSError` for what may heal: a disk that is full,
    read-only, failing or not mounted yet, and rights that somebody took from a directory that was in use.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return
    except OSError as error:
        if not is_mistaken(error) or _was_in_use(path, error):
            raise
        wrong = f"cannot be written: {error.strerror}"
    remedy = "Make it a directory that this user may write to, or name another one"
    raise ConfigError([Problem(_printable(str(path)), None, "DATA_DIR", wrong, remedy)])


def is_mistaken(error: OSError) -> bool:
    """Tell whether a path that cannot be used is itself wrong, or its rights: only a person can mend that."""
    return error.errno in _MISTAKEN


_MISTAKEN = frozenset(
    {
        errno.EACCES, errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT,
        errno.ENOTDIR, errno.EPERM,
    }
)  # fmt: skip
"""A disk that is full, read-only or failing says something else."""


def _was_in_use(path: Path, error: OSError) -> bool:
    """Tell whether a directory that cannot be used was good before: it has a journal, or its disk is not mounted."""
    if path.is_symlink() and error.errno == errno.EEXIST:
        return not path.exists()
    try:
        return error.errno in {errno.EACCES, errno.EPERM} and (path / "journal.jsonl").exists()
    except OSError:
        return False


# --- Sources -------------------------------------------------------------------------------------------------------

_Steps = tuple[str | int, ...]
"""The way to a value: `("COLLECT", 0, "symbols", 1)`."""


@dataclass(frozen=True)
class _Source:
    """Values, where they came from and, for a file, the line of each key and list element."""

    name: str
    values: Mapping[str, object] = field(default_factory=dict)
    lines: Mapping[_Steps, int] = field(default_factory=dict)
    prefix: str = ""

    def problem(self, steps: _Steps, wrong: str, remedy: str) -> Problem:
        """Return the mistake at `steps`, with the line of `steps` or of what stands around it."""
        line = next((self.lines[steps[:n]] for n in range(len(steps), 0, -1) if steps[:n] in self.lines), None)
        return Problem(self.name, line, self.prefix + _key(steps), wrong, remedy)


class _UnusableError(Exception):
    """A text that cannot be read at all: the line if known, what is wrong, the remedy."""

    def __init__(self, line: int | None, wrong: str, remedy: str) -> None:
        super().__init__(wrong)
        self.line, self.wrong, self.remedy = line, wrong, remedy


_COPY = "copy config.example.json and change it"
_NAME_A_FILE = "Name a JSON file that this user may read"
_JSON_RULES = 'Write {"KEY": value, ...}: double quotes, a comma between two entries, none after the last, no comments'


def _from_file(path: Path | None) -> tuple[_Source, list[Problem]]:
    """Return what the file says, and its mistakes of form: it cannot be read, is no JSON object, has a key twice."""
    named = path or DEFAULT_PATH
    name = _printable(str(named))
    try:
        values, lines, repeated = _parsed(_text(named))
    except FileNotFoundError:
        missing = Problem(name, None, "", "there is no such file", f"Correct the path, or {_COPY}")
        return _Source(name), [missing] if path else []
    except _UnusableError as error:
        return _Source(name), [Problem(name, error.line, "", error.wrong, error.remedy)]
    if not isinstance(values, dict):
        return _Source(name), [Problem(name, 1, "", f"the file holds {_kind(values)}, not an object", _JSON_RULES)]
    source = _Source(name, values, lines)
    return source, [source.problem(steps, f"was given before, in line {n}", "Keep one") for steps, n in repeated]


def _text(path: Path) -> str:
    """Return the file's text. A byte order mark, which some Windows editors write, is skipped."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _UnusableError(None, f"the file cannot be read: {error.strerror}", _NAME_A_FILE) from None
    if len(content) > _FILE_BYTES_MAX:
        raise _UnusableError(None, f"the file is larger than {_FILE_BYTES_MAX} bytes", _NAME_A_FILE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _UnusableError(line, "the text is not UTF-8", "Save the file with the encoding UTF-8") from None
    if not text.strip():
        raise _UnusableError(None, "the file is empty", f"Write at least {{}}, or {_COPY}")
    return text


def _parsed(text: str) -> tuple[object, dict[_Steps, int], list[tuple[_Steps, int]]]:
    """Return the value, the lines as in `_Source`, and the keys given again, each with its first line."""
    try:
        return json.loads(text), *_lines(text)
    except json.JSONDecodeError as error:
        wrong = f"is not JSON: {error.msg} (column {error.colno})"
        raise _UnusableError(error.lineno, wrong, _JSON_RULES) from None
    except (ValueError, RecursionError):
        raise _UnusableError(None, "has a number too long or lists too deep to be read", _JSON_RULES) from None


_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_STEPS_MAX = 4
"""The deepest value there is: `COLLECT[0].symbols[0]`."""


def _lines(text: str) -> tuple[dict[_Steps, int], list[tuple[_Steps, int]]]:
    """Walk over valid JSON for what the standard library does not tell: lines, and keys that were given before."""
    lines: dict[_Steps, int] = {}
    repeated: list[tuple[_Steps, int]] = []
    steps: list[str | int] = []
    keys: list[dict[str | int, int]] = []
    line, counted_to, key_is_next = 1, 0, False
    for match in _LEXEME.finditer(text):
        lexeme = match.group()
        line += text.count("\n", counted_to, match.start())
        counted_to = match.start()
        is_key = key_is_next and lexeme[0] == '"'
        is_element = bool(steps) and isinstance(steps[-1], int) and lexeme not in ",]"
        if is_key:
            steps[-1] = json.loads(lexeme)
            if steps[-1] in keys[-1]:
                repeated.append((tuple(steps[:_STEPS_MAX]), keys[-1][steps[-1]]))
            keys[-1].setdefault(steps[-1], line)
        if (is_key or is_element) and len(steps) <= _STEPS_MAX:
            lines[tuple(steps)] = line
        if lexeme in "{[":
            steps.append("" if lexeme == "{" else 0)
            keys.append({})
        elif lexeme in "]}":
            steps.pop()
            keys.pop()
        elif lexeme == "," and isinstance(steps[-1], int):
            steps[-1] += 1
        key_is_next = lexeme in "{," and bool(steps) and isinstance(steps[-1], str)
    return lines, repeated


def _from_environment(environ: Mapping[str, str]) -> tuple[_Source, list[Problem]]:
    """Return what the environment says (rule 4), and the lists in it that cannot be read."""
    values: dict[str, object] = {}
    source = _Source("environment", values, prefix=PREFIX)
    problems: list[Problem] = []
    for name, text in environ.items():
        key = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or not text or (key not in KEYS and not _meant_as_key(key)):
            continue
        values[key] = text
        if key in (*_NUMBER_KEYS, *_LIST_KEYS):
            try:
                values[key], _, repeated = _parsed(text)
            except _UnusableError as error:
                if key in _LIST_KEYS:
                    del values[key]
                    remedy = f"Write {Config.model_fields[key.lower()].description}"
                    problems.append(source.problem((key,), error.wrong, remedy))
            else:
                problems += [source.problem((key, *steps), "is given twice", "Keep one") for steps, _ in repeated]
    return source, problems


# --- Mistakes found ------------------------------------------------------------------------------------------------


def _validated(values: Mapping[str, object]) -> Config | list[ErrorDetails]:
    """Return the configuration, or pydantic's list of what is wrong; never its exception (rule 3)."""
    try:
        return Config.model_validate({key.lower(): value for key, value in values.items()})
    except ValidationError as error:
        return error.errors(include_url=False)


def _strangers(source: _Source) -> list[Problem]:
    return [
        source.problem((key,), "is not a key", _did_you_mean(key, KEYS) or "Take it out, or correct it")
        for key in source.values
        if key not in KEYS
    ]


def _explained(detail: ErrorDetails, origins: Mapping[str, _Source]) -> Problem:
    """Say in our words what pydantic found: which value, why not, and what to write instead."""
    first, *rest = detail["loc"]
    key = str(first).upper()
    name = next(step for step in reversed(detail["loc"]) if isinstance(step, str))
    fields = CollectEntry.model_fields if any(isinstance(step, str) for step in rest) else Config.model_fields
    found = partial(origins[key].problem, (key, *rest))
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return found("is not a key of an entry", _did_you_mean(name, fields) or f"The keys are {', '.join(fields)}")
    remedy = f"Write {fields[name].description}"
    if kind == "missing":
        return found("is missing", remedy)
    if kind == "value_error":
        quotation = f": {_given(value)}" if name in _QUOTED and isinstance(value, str | int) else ""
        return found(f"{detail['ctx']['error']}{quotation}", remedy)
    if kind == "literal_error" and isinstance(value, str):
        remedy = " ".join(
            filter(None, (_did_you_mean(value, re.findall("'(.+?)'", detail["ctx"]["expected"])), remedy))
        )
    return found(f"cannot be {_given(value) if name in _QUOTED else _kind(value)}", remedy)


def _half_given(values: Mapping[str, object], origins: Mapping[str, _Source]) -> list[Problem]:
    """Return the keys that stand alone although they work in pairs only."""
    return [
        origins[given].problem((given,), f"is set, {lacking} is not", "Set both or neither")
        for pair in _PAIRS
        for given, lacking in (pair, reversed(pair))
        if values.get(given) and not values.get(lacking)
    ]


def _two_stores(values: Mapping[str, object], origins: Mapping[str, _Source]) -> list[Problem]:
    """Return the folder that stands beside a bucket: files go to one store."""
    if not (values.get("UPLOAD_TO") and values.get("S3_BUCKET")):
        return []
    wrong = "is set, and so is S3_BUCKET"
    return [origins["UPLOAD_TO"].problem(("UPLOAD_TO",), wrong, "Keep one; the other is for `tickcollect upload --to`")]


def _collected_twice(entries: object, origins: Mapping[str, _Source]) -> list[Problem]:
    """Return the feeds that more than one place asks for. Entries with mistakes of their own are left to those."""
    problems: list[Problem] = []
    places: dict[tuple[str, str, str], _Steps] = {}
    for number, raw in enumerate(entries if isinstance(entries, list | tuple) else ()):
        try:
            entry = CollectEntry.model_validate(raw)
        except ValidationError:
            continue
        for index, symbol in enumerate(entry.symbols):
            feed = (entry.exchange, entry.stream, symbol)
            place = ("COLLECT", number, "symbols", index)
            if places.setdefault(feed, place) != place:
                wrong = f"asks for {' '.join(feed)} again, which {_key(places[feed])} asked for"
                problems.append(origins["COLLECT"].problem(place, wrong, "Keep one"))
    return problems


def _meant_as_key(name: str) -> bool:
    """Tell whether an unknown variable resembles a key, and none of those that Kubernetes makes for each service."""
    return not name.startswith(("SERVICE_", "PORT_")) and _nearest(name, KEYS) is not None


def _did_you_mean(text: str, names: Iterable[str]) -> str:
    nearest = _nearest(text, names)
    return f"Did you mean {nearest}?" if nearest else ""


def _nearest(text: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `text` may have meant, whichever case it is in."""
    folded = {name.casefold(): name for name in names}
    matches = difflib.get_close_matches(text.casefold()[:_QUOTED_CHARACTERS_MAX], folded, n=1)
    return folded[matches[0]] if matches else None


def _key(steps: _Steps) -> str:
    """Return the way to a value as it is written in messages: `COLLECT[0].symbols[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{_shown(step)}" for step in steps).removeprefix(".")


def _given(value: object) -> str:
    """Return a value as it may stand in a message, if it is short and simple, or else its kind."""
    if isinstance(value, str):
        return f'"{_shown(value)}"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _shown(str(value))
    return _kind(value)


def _kind(value: object) -> str:
    """Return what a value is, without telling the value of a text or a number."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _shown(text: str) -> str:
    """Return `text` cut short, and with escapes in place of what a terminal could misunderstand."""
    cut = text if len(text) <= _QUOTED_CHARACTERS_MAX else text[:_QUOTED_CHARACTERS_MAX] + "..."
    return _printable(cut)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
