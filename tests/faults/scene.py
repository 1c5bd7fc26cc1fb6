"""How a case is played: the exchange, the proxy and the collector together, from the first row to the verdict."""

import asyncio
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tickcollect.dataset.replay import Answer, Behaviour, Connection, ReplayServer, Request, serve
from tickcollect.dataset.replay.server import Step

from . import judge
from .certificates import YEARS, certificate
from .claims import ON_THEIR_WAY_S, Claim, Doubts, claims, summary, untrue_summary
from .exchange import SYMBOLS, Tape, counting, trades_only
from .judge import Findings, Score
from .proxy import Proxy, proxying
from .target import Addresses, Running, Target, start

BEGUN_ROWS = 10
BEGUN_WITHIN_S = 60.0
SETTLED_WITHIN_S = 90.0
PEERS_SETTLE_S = 5.0
LONGEST_CASE_S = 240.0
STOPPED_WITHIN_S = 20.0
LOOK_S = 0.1
CLAIMS_S = 1.0
"""Between two looks at what the collector claims; it writes its status once a second."""

MessageTwist = Callable[[Connection, str, int, bytes], Iterable[Step]]
RestTwist = Callable[[Request, Answer], Answer]
HandshakeTwist = Callable[[str, Mapping[str, str]], Answer | None]


class UnmetError(Exception):
    """Something that had to happen did not happen in time."""


@dataclass(frozen=True)
class Case:
    """One fault: what it is, what must happen, and the coroutine that provokes it and heals it again."""

    name: str
    group: str
    """Its place in docs/faults.md: N network and exchange, P process, D disk, C configuration."""
    what: str
    must: str
    provoke: Callable[["Scene"], Awaitable[None]]
    tells: str = ""
    """A regular expression that must be met by what the user is told; empty where nothing need be said."""
    settings: Mapping[str, str] = field(default_factory=dict)
    symbols: int = 1
    rows_per_s: float = 50.0
    numbering: Callable[[int], int] = counting
    life_s: float = 24 * 3600.0
    market_time_s: Callable[[float], float] = lambda wall_s: wall_s
    """The market's time at the beginning, from this machine's."""
    peers: bool = False
    """Whether it means something for any collector."""
    needs: Sequence[str] = ()
    """Names in `NEEDS`."""
    quick: bool = False
    """Whether it belongs to the selection of an ordinary test run."""
    memory_mb: float = judge.MORE_MEMORY_MB
    """What the process may have grown by."""
    settle_s: float = SETTLED_WITHIN_S
    """How long it may take at the end until every row is in a file or stated."""
    exchange: str = "binance"
    stream: str = "trade"
    kinds: Callable[[int], str] = trades_only
    """The `X` of each row of the futures `trade`."""
    must_be_filled: bool = False
    """Whether a row that history seems to lack (`absence_seen`) does not count as settled: it has it in the end."""
    may_stay_unknown: bool = False
    """Whether the last line of the last run may say that something is not known."""


@dataclass
class Scene:
    """All that a case can reach."""

    case: Case
    target: Target
    directory: Path
    market: Tape
    server: ReplayServer
    proxy: Proxy
    chance: random.Random
    settings: dict[str, str] = field(default_factory=dict)
    wrapper: Sequence[str] = ()
    """What stands before the command: prlimit, setpriv, strace."""
    running: Running | None = None
    message: MessageTwist | None = None
    rest: RestTwist | None = None
    messages: list[MessageTwist] = field(default_factory=list)
    """Further ones, each given what those before it have made of a message."""
    rests: list[RestTwist] = field(default_factory=list)
    doubts: Doubts = field(default_factory=Doubts)
    """What the collector has claimed and is not true."""
    handshake: HandshakeTwist | None = None
    begins: dict[str, int] = field(default_factory=dict)
    """By symbol, the number of the first row that was sent to anybody."""
    provoked: int = 0
    """How many characters had been printed before the fault."""
    handshakes_s: list[float] = field(default_factory=list)
    """When a websocket was asked for."""
    processes: list[Running] = field(default_factory=list)
    ws_url: str = ""
    is_settled: bool = False
    """The market rests, and what it has issued has had the time to arrive."""
    _read: judge.Read = field(default_factory=dict)
    last_line: str = ""
    """What the run that was stopped last has said of what is missing."""

    def __post_init__(self) -> None:
        self.ws_url = f"ws://127.0.0.1:{self.proxy.port}"
        self.server.behaviour = Behaviour(self._handshake, self._message, self._rest)

    @property
    def data_dir(self) -> Path:
        """Where the collector writes."""
        return self.directory / "data"

    @property
    def output_path(self) -> Path:
        """Where its output goes."""
        return self.directory / "output.log"

    @property
    def feed_dir(self) -> Path:
        """Where tickcollect keeps the first symbol's files."""
        return self.data_dir / self.case.exchange / self.case.stream / self.market.symbols[0]

    # What the exchange does

    def _message(self, connection: Connection, stream: str, number: int, payload: bytes) -> Iterator[Step]:
        steps: list[Step] = [payload]
        for twist in (*filter(None, (self.message,)), *self.messages):
            made = (
                [step] if not isinstance(step, bytes) else twist(connection, stream, number, step) for step in steps
            )
            steps = [step for some in made for step in some]
        if payload in steps:
            self.begins.setdefault(stream.partition("@")[0].upper(), number)
        return iter(steps)

    def _rest(self, request: Request, answer: Answer) -> Answer:
        for twist in (*filter(None, (self.rest,)), *self.rests):
            answer = twist(request, answer)
        return answer

    def _handshake(self, target: str, headers: Mapping[str, str]) -> Answer | None:
        self.handshakes_s.append(asyncio.get_running_loop().time())
        return self.handshake(target, headers) if self.handshake else None

    def drop_rows(self, count: int) -> None:
        """Do not send the next `count` rows of the first symbol; history has them."""
        symbol = self.market.symbols[0]
        until = len(self.market.issued[symbol]) + count

        def twist(_: Connection, name: str, number: int, payload: bytes) -> list[Step]:
            return [] if name.startswith(symbol.lower()) and number < until else [payload]

        self.message = twist

    @contextmanager
    def sending(self, twist: MessageTwist) -> Iterator[None]:
        """Send what `twist` makes of each message, as long as the block lasts."""
        self.messages.append(twist)
        try:
            yield
        finally:
            self.messages.remove(twist)

    @contextmanager
    def answering(self, twist: RestTwist) -> Iterator[None]:
        """Answer REST with what `twist` makes of each answer, as long as the block lasts."""
        self.rests.append(twist)
        try:
            yield
        finally:
            self.rests.remove(twist)

    def history_requests(self) -> int:
        """Count the requests for rows of history by ID so far."""
        return sum(dict(request.query).get("fromId") is not None for request in self.server.requests)

    # What the collector does

    def command(self, *more: str, data_dir: Path | None = None) -> list[str]:
        """Return the collector's command line."""
        addresses = Addresses(
            self.ws_url, f"http://127.0.0.1:{self.proxy.port}", self.market.symbols, data_dir or self.data_dir
        )
        market = [] if self.case.exchange == "binance" else ["--exchange", self.case.exchange, "--stream", "trade"]
        return [*self.wrapper, *self.target.command_line(addresses), *market, *more]

    async def start(self) -> Running:
        """Start the collector (again)."""
        settings = {**self.target.settings, **self.case.settings, **self.settings}
        self.running = await start(self.command(), settings, self.output_path)
        self.processes.append(self.running)
        return self.running

    async def start_another(self, command: Sequence[str], **settings: str) -> tuple[int | None, str]:
        """Run a command beside the collector to its end, and return its exit code and its output."""
        path = self.directory / f"other-{len(self.processes)}.log"
        other = await start(command, {**self.target.settings, **settings}, path)
        self.processes.append(other)
        return await other.ended(STOPPED_WITHIN_S), other.output()

    @property
    def collector(self) -> Running:
        """The running collector."""
        assert self.running is not None
        return self.running

    async def stop(self) -> int | None:
        """Ask the collector to stop, and return its exit code."""
        printed, surely_s = (
            len(self.collector.output()),
            time.monotonic() - (0.0 if self.is_settled else ON_THEIR_WAY_S),
        )
        self.collector.send(signal.SIGTERM)
        code = await self.collector.ended(STOPPED_WITHIN_S)
        await self.collector.finish_off()
        said = summary(self.collector.output()[printed:])
        if said is not None and code == 0 and self.target.keeps_journal:
            self.last_line = said.text
            self.doubts.untrue += untrue_summary(said, surely_s, self.market, self.begins, self.state())
        return code

    async def stop_well(self) -> None:
        """Stop the collector: it has to end in time and say what is missing; code 1 if rows could not be written."""
        printed, self.last_line = len(self.collector.output()), ""
        code = await self.stop()
        if not self.target.keeps_journal:
            return
        output = self.collector.output()[printed:]
        in_order = code == 0 and self.last_line
        not_written = code == 1 and "in no file" in output and "Error: cannot" in output
        if not in_order and not not_written:
            raise UnmetError(f"asked to stop, it ends within {STOPPED_WITHIN_S:.0f} s and says so; code {code}")

    async def kill(self) -> None:
        """Kill the collector."""
        self.collector.send(signal.SIGKILL)
        await self.collector.process.wait()

    def findings(self) -> Findings:
        """Read its files."""
        return judge.read(self.data_dir, self.market.issued, self.target, self._read)

    def state(self) -> tuple[Findings, list[judge.Entry]]:
        """Read its files and its journal."""
        entries = judge.journal(self.data_dir)
        return self.findings(), entries

    def unsettled(self) -> int:
        """Count the rows that are neither in a file nor stated."""
        findings, entries = self.state()
        silent, told = judge.missing(self.market.issued, self.begins, findings, entries)
        return len(silent) + (len(told) if self.case.must_be_filled else 0)

    def claims(self) -> list[Claim]:
        """Return what the running collector's status says."""
        return [claim for claim in claims(self.data_dir) if claim.pid == self.collector.pid]

    async def look_at_claims(self) -> None:
        """Hold what the collector claims against the truth, for ever."""
        while True:
            await asyncio.sleep(CLAIMS_S)
            running = self.running
            if running is None or running.code is not None:
                continue
            fresh = self.doubts.fresh(self.data_dir, running.pid)  # before the files are read
            state = self.state() if any(claim.is_known for claim in fresh) else (Findings(), [])
            for claim in fresh:
                self.doubts.judge(claim, self.market, self.begins, state)

    def said(self) -> str:
        """Return what it has printed since the fault."""
        with suppress(FileNotFoundError):
            return self.output_path.read_text(errors="replace")[self.provoked :]
        return ""

    # Waiting

    async def until(self, condition: Callable[[], bool], what: str, within_s: float = SETTLED_WITHIN_S) -> None:
        """Wait until a condition holds. Raises `UnmetError`."""
        deadline_s = time.monotonic() + within_s
        while True:
            asked_s = time.monotonic()
            if condition():
                return
            if time.monotonic() > deadline_s:
                raise UnmetError(f"not within {within_s:.0f} s: {what}")
            # The exchange lives in this event loop too: a look that takes long leaves it more time before the next.
            await asyncio.sleep(max(LOOK_S, 3 * (time.monotonic() - asked_s)))

    async def until_said(self, pattern: str, within_s: float = SETTLED_WITHIN_S) -> None:
        """Wait until the collector has said something since the fault."""
        await self.until(lambda: re.search(pattern, self.said()) is not None, f"it says {pattern!r}", within_s)

    async def until_stored(self, count: int, within_s: float = BEGUN_WITHIN_S) -> None:
        """Wait until the files hold so many rows."""
        await self.until(lambda: len(self.findings().rows) >= count, f"{count} rows are in files", within_s)

    async def until_current(self, within_s: float = SETTLED_WITHIN_S) -> None:
        """Wait until a row of each symbol that is issued from now on is in a file."""
        marks = {symbol: len(rows) for symbol, rows in self.market.issued.items()}

        def current() -> bool:
            newest: dict[str, int] = {}
            for symbol, number in self.findings().rows:
                newest[symbol] = max(number, newest.get(symbol, -1))
            return all(newest.get(symbol, -1) >= mark for symbol, mark in marks.items())

        await self.until(current, "rows that were issued after the fault are in files", within_s)


# --- Playing ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def staged(case: Case, target: Target, seed: int) -> AsyncIterator[Scene]:
    """Set up everything for one case, and take it down."""
    directory = Path(tempfile.mkdtemp(prefix=f"fault-{case.name}-"))
    directory.chmod(0o755)
    market = Tape(
        int(case.market_time_s(time.time()) * 1000),
        case.rows_per_s,
        SYMBOLS[: case.symbols],
        case.numbering,
        exchange=case.exchange,
        kinds=case.kinds,
    )
    tls, trusted = certificate(directory, "DNS:localhost", YEARS) if target.needs_tls else (None, None)
    try:
        async with (
            serve(market, speed=1.0, life_s=case.life_s) as server,
            proxying(server.port, tls) as proxy,
        ):
            scene = Scene(case, target, directory, market, server, proxy, random.Random(f"{seed}/{case.name}"))
            scene.data_dir.mkdir()
            if trusted is not None:
                scene.ws_url = f"wss://localhost:{proxy.tls_port}"
                scene.settings = {"SSL_CERT_FILE": str(trusted)}
            server.start()
            try:
                yield scene
            finally:
                for process in scene.processes:
                    await process.finish_off()
    finally:
        if not os.environ.get("FAULTS_KEEP"):
            shutil.rmtree(directory, ignore_errors=True)


async def play(case: Case, target: Target, seed: int = 0) -> Score:
    """Play a case and judge it."""
    score = Score(case.name, target.name)
    for need in case.needs:
        if reason := NEEDS[need]():
            score.skipped = reason
            return score
    async with staged(case, target, seed) as scene:
        try:
            longest_s = LONGEST_CASE_S + case.settle_s - SETTLED_WITHIN_S
            async with asyncio.timeout(longest_s):
                await _play_watched(scene, score)
        except (UnmetError, TimeoutError) as unmet:
            score.failures.append(str(unmet) or f"not done within {longest_s:.0f} s")
        except OSError as error:  # one case that cannot be played must not end the others
            score.failures.append(f"cannot be played here: {error}")
            score.exit_code = scene.collector.code if scene.running else None
        await _judge(scene, score)
    return score


async def _play_watched(scene: Scene, score: Score) -> None:
    if not scene.target.keeps_journal:
        await _play(scene, score)
        return
    looking = asyncio.create_task(scene.look_at_claims())
    try:
        await _play(scene, score)
    finally:
        looking.cancel()
        await asyncio.wait({looking})
        if not looking.cancelled():
            looking.result()


async def _play(scene: Scene, score: Score) -> None:
    case, target = scene.case, scene.target
    await scene.start()
    await scene.until_stored(BEGUN_ROWS)
    memory_mb, descriptors = scene.collector.resident_mb(), scene.collector.descriptors()
    began_with = scene.collector
    scene.provoked = len(scene.output_path.read_text(errors="replace"))
    await case.provoke(scene)
    healed_s = time.monotonic()
    await scene.until_current()
    score.recovered_s = round(time.monotonic() - healed_s, 1)
    scene.server.pause()
    settle_s = case.settle_s if target.keeps_journal else PEERS_SETTLE_S
    with suppress(UnmetError):
        await scene.until(lambda: scene.unsettled() == 0, "all rows are in files", settle_s)
    if target.keeps_journal and scene.collector is began_with and scene.collector.code is None:
        grown_mb = scene.collector.resident_mb() - memory_mb
        more = scene.collector.descriptors() - descriptors
        if grown_mb > case.memory_mb:
            score.failures.append(f"its memory has grown by {grown_mb:.0f} MB")
        if more > judge.MORE_DESCRIPTORS:
            score.failures.append(f"it holds {more} descriptors more than before")
    scene.is_settled = True
    score.exit_code = await scene.stop()
    if target.keeps_journal and score.exit_code != 0:
        score.failures.append(f"asked to stop, it ended with code {score.exit_code}")
    elif target.keeps_journal and "not known" in scene.last_line and not case.may_stay_unknown:
        score.failures.append(f"all is healed, and its last line is {scene.last_line!r}")


async def _judge(scene: Scene, score: Score) -> None:
    for process in scene.processes:
        await process.finish_off()
    issued, begins = scene.market.issued, scene.begins
    score.sent = sum(row.is_trade for symbol, rows in issued.items() for row in rows[begins.get(symbol, len(rows)) :])
    findings = scene.findings()
    rows_missing = judge.missing(issued, begins, findings, judge.journal(scene.data_dir))
    judge.judge(score, findings, rows_missing, scene.target)
    lines = [line for line in scene.said().splitlines() if line.strip()]
    score.noticed = bool(lines)
    told = next((line for line in lines if scene.case.tells and re.search(scene.case.tells, line)), "")
    score.told = told or (lines[0] if lines else "")
    if scene.target.keeps_journal:
        score.failures += scene.doubts.untrue[:3]
        if wrong := judge.wrongly_absent(judge.journal(scene.data_dir), scene.market):
            score.failures.append(f"{len(wrong)} IDs of trades were called absent, the first {wrong[0]}")
        if scene.case.must_be_filled and score.stated:
            score.failures.append(f"history has {score.stated} rows that are only stated")
        if scene.case.tells and not told:
            score.failures.append(f"nothing was said that matches {scene.case.tells!r}")
        score.failures += judge.secrets_in(scene.directory)
        if "Traceback" in scene.output_path.read_text(errors="replace"):
            score.failures.append("it printed a traceback")
    if score.failures and os.environ.get("FAULTS_KEEP"):
        score.failures.append(f"kept in {scene.directory}")


# --- Tools of several cases ---


@asynccontextmanager
async def tracing(scene: Scene, path: Path | None, *expressions: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Let strace inject faults into the running collector's calls, those on one file if it is given."""
    calls = [part for expression in expressions for part in ("-e", expression)]
    only = [] if path is None else ["-P", str(path)]
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-qq", "-o", "/dev/null", "-p", str(scene.collector.pid), *only, *calls,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await scene.until(lambda: traced(scene.collector.pid), "strace has attached", within_s=10)
        yield tracer
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, TimeoutError):
                if tracer.returncode is None:
                    os.kill(tracer.pid, number)
                    await asyncio.wait_for(tracer.wait(), 10)


def traced(pid: int) -> bool:
    """Tell whether every thread of a process is traced, or the process has ended already."""
    try:
        statuses = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended, or all of them
        return not Path(f"/proc/{pid}/task").exists()
    return all(re.search(r"TracerPid:\s+[1-9]", status) for status in statuses)


# --- What a case may need --------------------------------------------------------------------------------------------


def _root() -> str:
    return "" if os.geteuid() == 0 else "only root may do that"


def _program(name: str, remedy: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"{name} is not installed ({remedy})"


def _strace() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed (apt-get install strace)"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() != 0 and scope.exists() and scope.read_text().strip() != "0":
        return "strace may not attach here (kernel.yama.ptrace_scope)"
    return ""


FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")

NEEDS: Mapping[str, Callable[[], str]] = {
    "root": _root,
    "strace": _strace,
    "openssl": _program("openssl", "apt-get install openssl"),
    "setpriv": _program("setpriv", "apt-get install util-linux"),
    "prlimit": _program("prlimit", "apt-get install util-linux"),
    "faketime": lambda: "" if FAKETIME else "libfaketime is not installed (apt-get install faketime)",
    "memory-cgroup": lambda: (
        ""
        if os.access(MEMORY_CGROUP / "memory.limit_in_bytes", os.F_OK) and os.access(MEMORY_CGROUP, os.W_OK)
        else "no memory cgroup (version 1) can be made here"
    ),
}
"""What may be missing on a machine: each returns the reason to skip, or nothing."""
