"""What the end-to-end tests share.

An exchange on loopback, the real `tickcollect` in a process of its own, and readers of what it leaves behind that use
none of its code.
"""

import asyncio
import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import zstandard

from tickcollect.dataset.replay import Market, ReplayServer, open_recordings, serve

if TYPE_CHECKING:
    from channels.bot_api import BotApi
    from channels.web import Site
    from stores.proxy import Proxy
    from stores.swift import Bucket, SwiftStore

Result = TypeVar("Result")

SHARED = Path(os.environ.get("TICKCOLLECT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PATIENCE_S = 60.0
"""How long anything is waited for before the test fails; on an idle machine nothing takes a tenth of it."""


LONG_FILES = (
    "test_faults", "test_soak", "test_model", "test_kill", "test_upload_faults", "test_upload_kill", "test_coverage",
    "test_fault_points", "test_starting", "test_told",
)  # fmt: skip
"""Files that take long, however few tests they hold: begun first, so that no worker is left with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def recordings(folder: str) -> pytest.MarkDecorator:
    """Skip where a folder of published recordings is not beside the checkout."""
    path = SHARED / "binance" / folder
    return pytest.mark.skipif(not path.is_dir(), reason=f"no recordings in {path}")


def until(condition: Callable[[], Any], what: Callable[[], str] = str, within_s: float = PATIENCE_S) -> Any:
    """Wait until `condition` gives something true, and return that; fail with what `what` says."""
    ends_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < ends_s, f"waited {within_s} s in vain\n{what()}"
        time.sleep(0.01)
    return found


# --- The exchange --------------------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """A replay server in a thread of this process."""

    server: ReplayServer
    loop: asyncio.AbstractEventLoop

    @property
    def addresses(self) -> list[str]:
        """The command line's two options."""
        return ["--ws-url", self.server.ws_url, "--rest-url", self.server.rest_url]

    @property
    def entry(self) -> dict[str, str]:
        """The same as part of an entry of COLLECT."""
        return {
            "exchange": self.server.market.exchange,
            "ws_url": self.server.ws_url,
            "rest_url": self.server.rest_url,
        }

    def do(self, action: Callable[[], Result]) -> Result:
        """Call something in the server's own thread."""

        async def call() -> Result:
            return action()

        return self.run(call())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await something in the server's own thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)


@contextlib.contextmanager
def exchange(market: Market, **options: Any) -> Iterator[Exchange]:
    """Serve `market` on loopback until the block ends."""
    started: list[Exchange] = []
    ready = threading.Event()

    async def live() -> None:
        async with serve(market, **options) as server:
            started.append(Exchange(server, asyncio.get_running_loop()))
            ready.set()
            await asyncio.Event().wait()

    async def until_cancelled() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await live()

    loop = asyncio.new_event_loop()
    task = loop.create_task(until_cancelled())
    thread = threading.Thread(target=loop.run_until_complete, args=(task,))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def recorded(path: Path, messages: Iterable[str], exchange_name: str | None = None) -> Market:
    """Make a market of messages in the exchange's combined form, one a millisecond."""
    lines = [f"{1_784_000_000_000_000_000 + place * 1_000_000} {text}\n" for place, text in enumerate(messages)]
    path.write_text("".join(lines), encoding="utf-8")
    (market,) = open_recordings([path], exchange_name)
    return market


# --- The program ---------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a process ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All of it."""
        return self.out + self.err


@dataclass
class Program:
    """A running `tickcollect`."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def said(self) -> str:
        """Return what it has said so far."""
        return self.out.read_text("utf-8", "replace") + self.err.read_text("utf-8", "replace")

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something while it runs; fail if it ends first."""

        def now() -> Any:
            found = condition()
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}\n{self.said()}"
            return found

        return until(now, self.said)

    def until_said(self, text: str) -> None:
        """Wait for a text in its output."""
        self.until(lambda: text in self.said())

    def send(self, *numbers: signal.Signals) -> None:
        """Send signals."""
        for number in numbers:
            self.process.send_signal(number)

    def wait(self) -> Ended:
        """Wait for its end."""
        until(lambda: self.process.poll() is not None, self.said)
        return Ended(self.process.returncode, *(f.read_text("utf-8", "replace") for f in (self.out, self.err)))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Ended:
        """Send a signal and wait for the end."""
        self.send(number)
        return self.wait()


@dataclass
class Programs:
    """Starts `tickcollect` processes and sees that none is left."""

    folder: Path
    started: list[Program] = field(default_factory=list)

    def start(self, *arguments: object, env: Mapping[str, str] | None = None, before: Sequence[str] = ()) -> Program:
        """Start `tickcollect ARGUMENTS`, with `env` added to the environment and `before` in front of the command."""
        place = len(self.started)
        out, err = self.folder / f"out-{place}.txt", self.folder / f"err-{place}.txt"
        command = [*before, sys.executable, "-m", "tickcollect", *map(str, arguments)]
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("TICKCOLLECT_")}
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                cwd=self.folder,
                env={**surroundings, "PYTHONPATH": str(Path(__file__).parents[1]), **(env or {})},
            )
        program = Program(process, out, err)
        self.started.append(program)
        return program

    def run(self, *arguments: object, **how: Any) -> Ended:
        """Start it and wait for its end."""
        return self.start(*arguments, **how).wait()

    def config(self, **keys: object) -> Path:
        """Write a configuration file."""
        path = self.folder / "config.json"
        path.write_text(json.dumps(keys), encoding="utf-8")
        path.chmod(0o600)
        return path


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs of one test, all ended with it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    made = Programs(folder)
    yield made
    for program in made.started:
        if program.process.poll() is None:
            program.process.kill()
        program.process.wait()


@pytest.fixture
def nobody(programs: Programs) -> Iterator[tuple[str, ...]]:
    """Have the programs run in a folder that every user may enter; give what makes a command one of another user.

    The folder is none of pytest's: each pytest that starts closes the folder of them all to other users.
    """
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to be nobody")
    before = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    with tempfile.TemporaryDirectory() as name:
        programs.folder = Path(name)
        programs.folder.chmod(0o755)
        if not all(above.stat().st_mode & 0o001 for above in programs.folder.parents):
            pytest.skip("another user cannot reach the folder of temporary files")
        if programs.run("--version", before=before).code:
            pytest.skip("another user cannot read this checkout or its Python")
        yield before


# --- Where it uploads to -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SwiftStore"]:
    """OpenStack Swift, one for all tests; each makes a bucket of its own."""
    from stores.swift import serving, why_not

    folder = tmp_path_factory.mktemp("swift")
    if reason := why_not(folder):
        pytest.skip(reason)
    with serving(folder) as store:
        yield store


@pytest.fixture
def bucket(swift: "SwiftStore") -> Iterator["Bucket"]:
    """Make an empty bucket of Swift's."""
    with swift.bucket() as made:
        yield made


@pytest.fixture
def proxy(swift: "SwiftStore") -> Iterator["Proxy"]:
    """Run a proxy before Swift, which does harm when told to."""
    from stores.proxy import faulty

    with faulty(swift.port) as made:
        yield made


# --- The people concerned ------------------------------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator["BotApi"]:
    """Serve Telegram's Bot API."""
    from channels.bot_api import BotApi
    from channels.web import serving

    bot = BotApi()
    with serving(bot):
        yield bot


@pytest.fixture
def hook() -> Iterator["Site"]:
    """Serve a webhook that takes everything."""
    from channels.web import Answer, Site, serving

    with serving(Site(respond=lambda _: Answer(200, b"{}"))) as site:
        yield site


# --- What it leaves behind -----------------------------------------------------------------------------------------

FILE_NAME = re.compile(r"(.+)-(trade|aggTrade)-(\d{4}-\d\d-\d\d)-(\d+)(?:-(\d+))?\.csv(\.zip|\.gz|\.zst)?")
ID_CELL, TIME_CELL = 3, 8


@dataclass(frozen=True)
class DataFile:
    """One CSV file, open or sealed: what its name claims, and its rows."""

    path: Path
    day: str
    first_id: int
    last_id: int | None
    lines: list[str]

    @property
    def ids(self) -> list[int]:
        """The rows' IDs."""
        return [int(line.split(",")[ID_CELL]) for line in self.lines]


def _content(path: Path) -> bytes:
    match path.suffix:
        case ".zip":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
                assert archive.namelist() == [path.name.removesuffix(".zip")]
                return archive.read(archive.namelist()[0])
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            with zstandard.open(path, "rb") as file:
                return bytes(file.read())
    return path.read_bytes()


def _read(path: Path) -> DataFile:
    """Read a file and check what every file has to hold: a true name, whole lines, one day, rising IDs."""
    name = FILE_NAME.fullmatch(path.name)
    assert name, f"a foreign file: {path}"
    text = _content(path).decode()
    assert text.endswith("\n"), f"{path} is empty or torn"
    last_id = int(name[5]) if name[5] else None
    file = DataFile(path, name[3], int(name[4]), last_id, text.splitlines())
    ids = file.ids
    assert ids[0] == file.first_id, path
    assert last_id in (None, ids[-1]), path
    assert all(before < after for before, after in pairwise(ids)), f"IDs do not rise in {path}"
    assert {utc_day(int(line.split(",")[TIME_CELL])) for line in file.lines} == {file.day}, path
    return file


def utc_day(at: int) -> str:
    """Return the day of a time in milliseconds or microseconds."""
    return time.strftime("%Y-%m-%d", time.gmtime(at // (1_000_000 if at > 10**14 else 1000)))


def data_files(data_dir: Path, feed: str) -> list[DataFile]:
    """Read and check all files of a feed (`binance/trade/BTCUSDT`), in order of day and ID."""
    paths = [path for path in (data_dir / feed).iterdir() if path.name != ".lock"]
    return sorted((_read(path) for path in paths), key=lambda file: (file.day, file.first_id))


def rows(data_dir: Path, feed: str) -> list[str]:
    """Return all rows of a feed in order."""
    return [line for file in data_files(data_dir, feed) for line in file.lines]


def ids(lines: Iterable[str]) -> list[int]:
    """Return the IDs of rows."""
    return [int(line.split(",")[ID_CELL]) for line in lines]


def journal(data_dir: Path, *events: str) -> list[dict[str, Any]]:
    """Return the journal's entries, of some kinds or of all."""
    path = data_dir / "journal.jsonl"
    text = path.read_text("utf-8") if path.exists() else ""
    entries = [json.loads(line) for line in text.splitlines()]
    return [entry for entry in entries if not events or entry["event"] in events]


def missing(data_dir: Path, feed: str) -> set[int]:
    """Return the IDs that the journal calls missing."""
    gaps = [entry for entry in journal(data_dir, "gap", "sync_failed", "file_lost") if entry["subject"] == feed]
    return {id_ for gap in gaps for id_ in range(gap["first_id"], gap["last_id"] + 1)}


def quarantined(data_dir: Path, exchange_name: str) -> list[dict[str, Any]]:
    """Return the messages of an exchange that were refused."""
    path = data_dir / "quarantine" / f"{exchange_name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def status_of(data_dir: Path) -> dict[str, Any]:
    """Return what the status file says; empty before there is one."""
    try:
        status: dict[str, Any] = json.loads((data_dir / "status.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return status


def rows_told(data_dir: Path) -> int:
    """Return how many rows the status file tells of."""
    return sum(feed["rows"] for feed in status_of(data_dir).get("feeds", ()))


def row_of(message: str) -> str:
    """Return the CSV row that a message has to become, without its newline."""
    data = json.loads(message)["data"]
    columns = {"trade": "eEstpqbaTm", "aggTrade": "eEsapqflTm"}[data["e"]]
    return ",".join(str(data.get(column, "")) for column in columns)


def sent_rows(market: Market, stream: str, first_id: int, last_id: int) -> dict[int, str]:
    """Return the rows that a market sends on a stream from one ID to another, by ID."""
    found: dict[int, str] = {}
    for message in market.messages([stream]):
        row = row_of(message.combined.decode())
        (id_,) = ids([row])
        if id_ > last_id:
            return found
        if id_ >= first_id:
            found[id_] = row
    return found


def check_accounts(data_dir: Path, feed: str, market: Market) -> list[int]:
    """Check that each ID between the first row and the last is either one row, as sent, or in the journal as missing.

    Returns the IDs of the rows.
    """
    lines = rows(data_dir, feed)
    numbers = ids(lines)
    assert all(before < after for before, after in pairwise(numbers)), "a row was written twice or out of order"
    gaps, whole = missing(data_dir, feed), set(range(numbers[0], numbers[-1] + 1))
    assert not gaps.intersection(numbers), "the journal calls rows missing that are there"
    assert whole.difference(numbers) == gaps & whole, "IDs of which nothing is known"
    _, kind, symbol = feed.split("/")
    sent = sent_rows(market, f"{symbol.lower()}@{kind}", numbers[0], numbers[-1])
    assert lines == [sent[number] for number in numbers]
    return numbers


def text_of(path: Path) -> list[str]:
    """Return the lines of a packed text."""
    return gzip.decompress(path.read_bytes()).decode().splitlines()


GAPS_STAY: dict[str, object] = {"BACKFILL": False}
"""Configuration with which nothing is fetched from history, so that what is missing stays missing."""
