"""Endurance: the real collector and a market that goes on, while everything around them fails at random.

    python -m tests.soak --minutes 30 --seed 7

Two exchanges on loopback (spot `trade`, USD-M `aggTrade`) play generated markets in real time. `tickcollect run` is its
own process. Every few seconds a fault of `FAULTS` begins, chosen by the seed; faults overlap. Then all is healed, and:

1. every ID played since the collector's first row is on disk exactly once, as sent, or given up in the journal;
2. every file is whole, and its name is true;
3. the process never ended unless it was told to, and then with 0 (SIGTERM);
4. in the last life of the process, which is a third of the time, memory and descriptors stay flat.

The seed decides which fault begins when. What the operating system does in between differs from run to run.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import orjson

from tickcollect.dataset.replay import (
    Answer,
    Behaviour,
    Bytes,
    Close,
    Connection,
    Cut,
    GeneratedMarket,
    ReplayServer,
    Request,
    Reset,
    frame,
    serve,
)
from tickcollect.dataset.replay.venue import Message

MEAN_PAUSE_S = 3.0
"""Between the beginnings of two faults, on average."""
WARM_S = 20.0
"""How long the last life collects, under faults, before its memory is taken as the measure."""
HEALED_WITHIN_S = 150.0
MEMORY_GROWTH_BYTES = 10_000_000
REST_CONNECTIONS = 8
"""Idle ones, four an exchange at most, that may or may not be open when descriptors are counted."""
DISK_BYTES = 96 << 20

STREAMS = {"binance": "trade", "binance-futures": "aggTrade"}
"""What is collected of each exchange."""
SYMBOLS = 4
"""Of each exchange's eight: the busiest sends hundreds of rows a second, the fourth some."""
YOUNG_S = 3.0
"""A process that is younger may not have come to handle signals yet."""

Feed = tuple[str, str, str]
"""Exchange, stream, symbol."""


# What was played ----------------------------------------------------------------------------------------------------


@dataclass
class Played:
    """The rows of one feed, as hashes of the CSV lines they must become: live, and from history (without `E`)."""

    first_id: int
    live: "array[int]" = field(default_factory=lambda: array("q"))
    history: "array[int]" = field(default_factory=lambda: array("q"))

    @property
    def last_id(self) -> int:
        return self.first_id + len(self.live) - 1


LINES: dict[str, Callable[[dict[str, object], object], str]] = {
    "trade": lambda d, event_time: f"trade,{event_time},{d['s']},{d['t']},{d['p']},{d['q']},,,{d['T']},{d['m']}\n",
    "aggTrade": lambda d, event_time: (
        f"aggTrade,{event_time},{d['s']},{d['a']},{d['p']},{d['q']},{d['f']},{d['l']},{d['T']},{d['m']}\n"
    ),
}
"""What a message must look like on disk, from this test's own knowledge of the format."""
ID_FIELDS = {"trade": "t", "aggTrade": "a"}
ID_COLUMN = 3


@dataclass
class RememberedMarket(GeneratedMarket):
    """A market that remembers what it has played."""

    rows: dict[str, Played] = field(default_factory=dict)
    """By symbol, of the stream that is collected."""

    def passed(self, played: Message) -> None:
        """Note one message."""
        super().passed(played)
        stream = STREAMS[self.exchange]
        if not played.stream.endswith(f"@{stream}"):
            return
        value = orjson.loads(played.data)
        feed = self.rows.setdefault(value["s"], Played(value[ID_FIELDS[stream]]))
        feed.live.append(hash(LINES[stream](value, value["E"])))
        feed.history.append(hash(LINES[stream](value, "")))


# What goes wrong ----------------------------------------------------------------------------------------------------


@dataclass
class Weather:
    """What goes wrong at the exchanges at the moment, by how many faults."""

    chance: random.Random
    active: Counter[str] = field(default_factory=Counter)
    _kept_back: dict[tuple[Connection, str], bytes] = field(default_factory=dict)

    def behaviour(self) -> Behaviour:
        return Behaviour(handshake=self.handshake, message=self.message, rest=self.rest)

    @contextlib.contextmanager
    def of(self, *kinds: str) -> Iterator[None]:
        self.active.update(kinds)
        try:
            yield
        finally:
            self.active.subtract(kinds)

    def handshake(self, _target: str, _headers: Mapping[str, str]) -> Answer | None:
        return Answer(503, b"") if self.active["closed"] > 0 else None

    def message(self, connection: Connection, stream: str, _n: int, payload: bytes) -> Iterable[bytes]:
        before = self._kept_back.pop((connection, stream), None)
        if self.active["silent"] > 0:
            return []
        if self.active["swapping"] > 0 and before is None and self.chance.random() < 0.2:
            self._kept_back[connection, stream] = payload
            return []
        sent = [payload] if before is None else [payload, before]
        if self.active["losing"] > 0 and self.chance.random() < 0.1:
            return []
        if self.active["mangling"] > 0 and self.chance.random() < 0.1:
            return [mangled(payload, self.chance)]
        return sent * 2 if self.active["doubling"] > 0 else sent

    def rest(self, _request: Request, answer: Answer) -> Answer:
        for kind, instead in REST_TROUBLES.items():
            if self.active[kind] > 0:
                return instead(answer)
        return answer


REST_TROUBLES: dict[str, Callable[[Answer], Answer]] = {
    "too many requests": lambda _: Answer(429, b'{"code":-1003,"msg":"Too many requests."}', {"Retry-After": "2"}),
    "unavailable": lambda _: Answer(503, b"<html>busy</html>"),
    "empty": lambda _: Answer(200, b"[]"),
    "half an answer": lambda answer: answer._replace(body=answer.body[: len(answer.body) // 2]),
    "slow": lambda answer: answer._replace(delay_s=3.0),
}


def mangled(payload: bytes, chance: random.Random) -> bytes:
    """Return a payload that cannot be the message any more, as a damaged line would bring it."""
    at = chance.randrange(2, len(payload) - 2)
    return chance.choice([payload[:at], b"\xff" + payload, payload[:at] + b'"' + payload[at:], b"null", b""])


@dataclass
class Subject:
    """The process under test; it is started, ended and looked at only here."""

    command: list[str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    lives: int = 0
    started_s: float = 0.0
    complaints: list[str] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever ends or freezes the process."""

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(*self.command, stdout=log, stderr=log)
        self.lives += 1
        self.started_s = time.monotonic()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def end(self, how: signal.Signals) -> None:
        """End the process and say what was wrong with the way it ended."""
        assert self.process is not None
        accepted = {0, -how} if time.monotonic() - self.started_s < YOUNG_S or how is signal.SIGKILL else {0}
        if self.process.returncode is not None:
            self.complaints.append(f"life {self.lives} had ended by itself with {self.process.returncode}")
            return
        self.process.send_signal(how)
        try:
            code = await asyncio.wait_for(self.process.wait(), 60)
        except TimeoutError:
            self.complaints.append(f"life {self.lives} did not end within 60 s of {how.name}")
            self.process.kill()
            code = await self.process.wait()
        if code not in accepted:
            self.complaints.append(f"life {self.lives} ended with {code} after {how.name}")

    def abandon(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def memory_bytes(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0

    def descriptors(self) -> Counter[str]:
        """Count open files and sockets."""
        kinds: Counter[str] = Counter()
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                kinds["sockets" if str(path.readlink()).startswith("socket:") else "files"] += 1
        return kinds


@dataclass
class World:
    """Everything that a fault may touch."""

    chance: random.Random
    """Decides how a fault goes; which one begins when is decided by `storm`."""
    weather: Weather
    markets: list[RememberedMarket]
    servers: list[ReplayServer]
    subject: Subject
    data_dir: Path

    async def wait(self, shortest_s: float, longest_s: float) -> None:
        await asyncio.sleep(self.chance.uniform(shortest_s, longest_s))


Fault: TypeAlias = Callable[[World], Coroutine[None, None, None]]


async def cut_off(world: World) -> None:
    """Cut the line."""
    ways: list[Reset | Cut | Close] = [Reset(), Cut(), Close(1000), Close(1008, "policy"), Close(1012)]
    for server in world.servers:
        server.disconnect(world.chance.choice(ways))


async def cut_inside_a_frame(world: World) -> None:
    """Cut the line inside a frame."""
    half = frame(b'{"stream":"x","data":{"e":"trade","E":17840')[:-9]
    for connection in [each for server in world.servers for each in server.connections if each.session is not None]:
        connection.take(Bytes(half))
        connection.end(Reset() if world.chance.random() < 0.5 else Cut())


async def announced_shutdown(world: World) -> None:
    """Announce that the exchange will close, and close."""
    for server in world.servers:
        server.announce_shutdown()
    await world.wait(0, 4)
    for server in world.servers:
        server.disconnect(Close(1001, "going away"))


def weather_of(*kinds: str, shortest_s: float = 1, longest_s: float = 5) -> Fault:
    """Return a fault that is bad weather for some seconds."""

    async def fault(world: World) -> None:
        with world.weather.of(*kinds):
            await world.wait(shortest_s, longest_s)

    return fault


def cut_off_while(*kinds: str) -> Fault:
    """Return a fault that cuts the line in bad weather."""

    async def fault(world: World) -> None:
        with world.weather.of(*kinds):
            await cut_off(world)
            await world.wait(1, 8)

    return fault


async def half_open(world: World) -> None:
    """Send nothing and answer no ping, but keep the line."""
    for server in world.servers:
        server.behaviour.answers_pings = False
    with world.weather.of("silent"):
        await world.wait(2, 12)
    for server in world.servers:
        server.behaviour.answers_pings = True


async def frozen(world: World) -> None:
    """Let the process stand still."""
    async with world.subject.turn:
        os.kill(world.subject.pid, signal.SIGSTOP)
        await asyncio.sleep(2)
        os.kill(world.subject.pid, signal.SIGCONT)


async def killed(world: World) -> None:
    """Kill the process, and start it again after a while."""
    async with world.subject.turn:
        await world.subject.end(signal.SIGKILL)
        await world.wait(0, 4)
        await world.subject.start()


async def restarted(world: World) -> None:
    """Stop the process in order, and start it again."""
    async with world.subject.turn:
        await world.subject.end(signal.SIGTERM)
        await world.wait(0, 3)
        await world.subject.start()


async def disk_full(world: World) -> None:
    """Fill the disk for some seconds."""
    ballast = world.data_dir.parent / f"ballast-{time.monotonic_ns()}"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    await world.wait(1, 4)
    ballast.unlink(missing_ok=True)


ENDINGS = {"killed": killed, "restarted": restarted}
"""Faults that begin another life of the process."""
DISK = {"disk full": disk_full}
"""Only where a file system of a known size can be mounted."""
FAULTS: dict[str, Fault] = {
    "cut off": cut_off,
    "cut off inside a frame": cut_inside_a_frame,
    "announced shutdown": announced_shutdown,
    "silent": weather_of("silent", longest_s=15),
    "half open": half_open,
    "rows lost": weather_of("losing"),
    "rows twice": weather_of("doubling"),
    "rows swapped": weather_of("swapping"),
    "rows mangled": weather_of("mangling"),
    "no handshake": cut_off_while("closed"),
    "history: too many requests": cut_off_while("too many requests"),
    "history: unavailable": cut_off_while("unavailable"),
    "history: empty": cut_off_while("empty"),
    "history: half an answer": cut_off_while("half an answer"),
    "history: slow": cut_off_while("slow"),
    "frozen": frozen,
}


# What is on disk ----------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What the files and the journal hold, against what was played."""

    seed: int
    played: int = 0
    stored: int = 0
    from_history: int = 0
    twice: int = 0
    lost: int = 0
    lives: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    memory_bytes: tuple[int, int] = (0, 0)
    """Of the last life, before and after."""
    descriptors: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    mistakes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Say it."""
        before, after = self.memory_bytes
        yield f"faults: {', '.join(f'{name} {count}' for name, count in sorted(self.faults.items()))}"
        yield f"lives of the process: {self.lives}"
        yield f"rows played {self.played:,}, stored {self.stored:,} ({self.from_history:,} from history)"
        yield f"twice {self.twice:,}, lost and on record {self.lost:,}"
        yield f"memory of the last life: {before / 1e6:.1f} MB, then {after / 1e6:.1f} MB"
        yield f"descriptors of the last life: {dict(self.descriptors[0])}, then {dict(self.descriptors[1])}"
        yield from (f"WRONG: {mistake}" for mistake in self.mistakes)
        yield f"seed {self.seed}: {'NOT in order' if self.mistakes else 'everything in order'}"


def rows_of(path: Path) -> list[bytes]:
    """Return the lines of a segment; a file that does not open, or ends inside a row, is a ValueError."""
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                data = archive.read(archive.namelist()[0])
        except (zipfile.BadZipFile, IndexError, EOFError) as error:
            raise ValueError(f"{path.name} does not open: {error}") from error
    else:
        data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        raise ValueError(f"{path.name} ends inside a row")
    return data.splitlines(keepends=True)


def check_name(path: Path, ids: list[int]) -> str:
    """Say what is wrong with a file's name; empty if it is true."""
    name = re.fullmatch(r".*-\d{4}-\d\d-\d\d-(\d+)(?:-(\d+))?\.csv(?:\.zip)?", path.name)
    if name is None or (name[2] is None) == (path.suffix == ".zip"):
        return f"{path.name} is no name of a segment"
    if ids != list(range(ids[0], ids[0] + len(ids))):
        return f"{path.name} is not contiguous"
    if ids[0] != int(name[1]) or ids[-1] != int(name[2] or ids[-1]):
        return f"{path.name} holds {ids[0]} to {ids[-1]}"
    return ""


def check_feed(directory: Path, feed: Feed, played: Played, excused: set[int], verdict: Verdict) -> None:
    """Compare one feed's files with what was played."""
    found: Counter[int] = Counter()
    for path in sorted(directory.glob("*.csv*")):
        try:
            lines = rows_of(path)
        except ValueError as error:
            verdict.mistakes.append(str(error))
            continue
        ids = [int(line.split(b",")[ID_COLUMN]) for line in lines]
        mistake = check_name(path, ids) if ids else f"{path.name} is empty"
        if mistake:
            verdict.mistakes.append(mistake)
        for id_, line in zip(ids, lines, strict=True):
            found[id_] += 1
            from_history = line.split(b",", 2)[1] == b""
            verdict.from_history += from_history
            rows = played.history if from_history else played.live
            if not played.first_id <= id_ <= played.last_id or hash(line.decode()) != rows[id_ - played.first_id]:
                verdict.mistakes.append(f"{path.name}: {line!r} was never sent")
    if not found:
        verdict.mistakes.append(f"{'/'.join(feed)}: nothing on disk")
        return
    verdict.played += played.last_id - played.first_id + 1
    verdict.stored += len(found)
    twice = [id_ for id_, count in found.items() if count > 1]
    verdict.twice += len(twice)
    if twice:
        verdict.mistakes.append(f"{'/'.join(feed)}: {len(twice)} IDs twice, {_ranges(twice)}")
    missing = set(range(played.first_id, max(found) + 1)) - found.keys()
    verdict.lost += len(missing & excused)
    if missing - excused:
        verdict.mistakes.append(f"{'/'.join(feed)}: {len(missing - excused)} IDs missing, {_ranges(missing - excused)}")


def _ranges(ids: Iterable[int]) -> str:
    """Write IDs as ranges, the first few."""
    spans: list[list[int]] = []
    for id_ in sorted(ids):
        if spans and spans[-1][1] == id_ - 1:
            spans[-1][1] = id_
        else:
            spans.append([id_, id_])
    return ", ".join(f"{first} to {last}" for first, last in spans[:10])


def on_record(data_dir: Path) -> dict[str, set[int]]:
    """Return the IDs that the journal gives up, by feed."""
    found: dict[str, set[int]] = {}
    for line in (data_dir / "journal.jsonl").read_bytes().splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):
            entry = orjson.loads(line)
            if entry["event"] in {"lost", "absent"}:
                found.setdefault(entry["subject"], set()).update(range(entry["first_id"], entry["last_id"] + 1))
    return found


def directory_of(data_dir: Path, feed: Feed) -> Path:
    return data_dir.joinpath(*feed)


def ends(data_dir: Path, feed: Feed) -> list[tuple[int, int]]:
    """Return first and last ID of each file: of sealed ones by their names, which are checked at the end."""
    found = []
    for path in directory_of(data_dir, feed).glob("*.csv*"):
        if path.suffix == ".zip":
            first, last = path.name.removesuffix(".csv.zip").split("-")[-2:]
            found.append((int(first), int(last)))
        elif path.suffix == ".csv":
            with contextlib.suppress(FileNotFoundError):  # it was sealed just now
                lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
                ids = [line.split(b",")[ID_COLUMN] for line in lines]
                found += [(int(ids[0]), int(ids[-1]))] if ids else []
    return sorted(found)


def complete_up_to(data_dir: Path, feed: Feed, first_id: int) -> int:
    """Return the last ID up to which nothing is missing from `first_id` on."""
    reached = first_id - 1
    for first, last in ends(data_dir, feed):
        if first > reached + 1:
            break
        reached = max(reached, last)
    return reached


# One run ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def disk(parent: Path) -> Iterator[bool]:
    """Mount a small file system at `parent`, where that is allowed; say whether it was."""
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(parent)], check=False, capture_output=True
        ).returncode
        == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(parent)], check=True)


def configuration(data_dir: Path, servers: list[ReplayServer]) -> dict[str, object]:
    """Collect everything that both exchanges play, with small files and short patience, so that more happens."""
    entries = [
        {
            "exchange": server.market.exchange,
            "stream": STREAMS[server.market.exchange],
            "symbols": [listing.symbol for listing in server.market.listings[:SYMBOLS]],
            "ws_url": server.ws_url,
            "rest_url": server.rest_url,
        }
        for server in servers
    ]
    return {
        "DATA_DIR": str(data_dir),
        "COLLECT": entries,
        "ROTATE_SIZE": "150kB",
        "GAP_PATIENCE_S": 0.5,
        "SYNC_INTERVAL_S": 0.3,
        "FIRST_DATA_S": 5,
        "REST_SHARE": 0.9,
        "MIN_FREE_DISK": "1kB",
    }


def markets(seed: int) -> list[RememberedMarket]:
    """Return what the two exchanges play."""
    start_ms = int(time.time() * 1000)
    return [
        RememberedMarket("binance", start_ms=start_ms, seed=seed, symbols=8, activity=12.0),
        RememberedMarket("binance-futures", start_ms=start_ms, seed=seed, symbols=8, activity=6.0),
    ]


@contextlib.asynccontextmanager
async def exchanges(playing: Iterable[RememberedMarket], weather: Weather) -> AsyncIterator[list[ReplayServer]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                serve(market, speed=1.0, start_delay_s=1.0, behaviour=weather.behaviour(), ping_interval_s=5.0)
            )
            for market in playing
        ]


def played_feeds(world: World) -> dict[Feed, Played]:
    """Return what was played of the feeds that are collected."""
    return {
        (market.exchange, STREAMS[market.exchange], listing.symbol): market.rows[listing.symbol]
        for market in world.markets
        for listing in market.listings[:SYMBOLS]
        if listing.symbol in market.rows
    }


async def until(true: Callable[[], bool], within_s: float) -> bool:
    """Wait for a condition; say whether it came."""
    end_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > end_s:
            return False
        await asyncio.sleep(0.5)
    return True


async def settled(world: World) -> bool:
    """Wait until everything played up to now is on disk, or given up on record."""
    marks = {feed: played.last_id for feed, played in played_feeds(world).items()}

    def done() -> bool:
        excused = on_record(world.data_dir)
        for feed, played in played_feeds(world).items():
            reached = complete_up_to(world.data_dir, feed, played.first_id)
            if reached < marks.get(feed, 0) and reached + 1 not in excused.get("/".join(feed), ()):
                return False
        return True

    return await until(done, HEALED_WITHIN_S)


async def storm(world: World, faults: Mapping[str, Fault], seconds: float, chance: random.Random) -> Counter[str]:
    """Let faults begin at random for some time, and wait for the last one to end."""
    begun: Counter[str] = Counter()
    end_s = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        while True:
            pause_s = chance.expovariate(1 / MEAN_PAUSE_S)
            if time.monotonic() + pause_s > end_s:
                return begun
            await asyncio.sleep(pause_s)
            name = chance.choice(sorted(faults))
            begun[name] += 1
            tasks.create_task(faults[name](world))


Course: TypeAlias = Callable[[World, Mapping[str, Fault], Verdict], Coroutine[None, None, None]]
"""What happens to a running world: given also the faults that are possible here."""


async def judged(course: Course, seed: int, say: Callable[[str], None], keep: Path | None = None) -> Verdict:
    """Let `course` happen to a collector and judge what is left; `keep` is a directory for the files and the log."""
    verdict = Verdict(seed)
    weather = Weather(random.Random(f"{seed}/weather"))
    with contextlib.ExitStack() as stack:
        parent = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tickcollect-soak-")))
        has_disk = keep is None and stack.enter_context(disk(parent))
        if not has_disk:
            say("the disk is never full in this run: only root may mount one, and files that are kept are on yours")
        playing = markets(seed)
        async with exchanges(playing, weather) as servers:
            chance = random.Random(f"{seed}/course")
            world = World(chance, weather, playing, servers, Subject([], parent / "log"), parent / "data")
            path = parent / "config.json"
            path.write_bytes(orjson.dumps(configuration(world.data_dir, servers)))
            world.subject.command = [sys.executable, "-m", "tickcollect", "run", "--config", str(path)]
            try:
                await begin(world, verdict)
                await course(world, FAULTS | (DISK if has_disk else {}), verdict)
                await world.subject.end(signal.SIGTERM)
            finally:
                world.subject.abandon()
        verdict.lives = world.subject.lives
        verdict.mistakes += world.subject.complaints
        for feed, played in played_feeds(world).items():
            excused = on_record(world.data_dir).get("/".join(feed), set())
            check_feed(directory_of(world.data_dir, feed), feed, played, excused, verdict)
        if verdict.mistakes:
            say("the log's end:\n" + "\n".join(world.subject.log.read_text(errors="replace").splitlines()[-30:]))
    return verdict


async def begin(world: World, verdict: Verdict) -> None:
    """Start the collector and wait until every feed has rows."""
    feeds = len(world.markets) * SYMBOLS
    await world.subject.start()
    if not await until(
        lambda: sum(bool(ends(world.data_dir, feed)) for feed in played_feeds(world)) == feeds, HEALED_WITHIN_S
    ):
        verdict.mistakes.append("some feed has no row")


async def soak(seconds: float, seed: int, say: Callable[[str], None], keep: Path | None = None) -> Verdict:
    """Go through faults for about `seconds`, and judge what is left."""

    async def course(world: World, faults: Mapping[str, Fault], verdict: Verdict) -> None:
        await endure(world, faults, seconds, verdict, say)

    return await judged(course, seed, say, keep)


async def kills(count: int, seed: int, say: Callable[[str], None]) -> Verdict:
    """Kill the collector `count` times at random moments of its life, and judge what is left."""

    async def course(world: World, _faults: Mapping[str, Fault], verdict: Verdict) -> None:
        for _ in range(count):
            await world.wait(0.1, 1.2)
            await world.subject.end(signal.SIGKILL)
            await world.wait(0.0, 0.3)
            await world.subject.start()
        if not await settled(world):
            verdict.mistakes.append("not healed after the last kill")

    return await judged(course, seed, say)


async def endure(
    world: World,
    faults: Mapping[str, Fault],
    seconds: float,
    verdict: Verdict,
    say: Callable[[str], None],
) -> None:
    """Collect through two storms: one of several lives, and one that the last life must survive as it was."""
    chance = random.Random(verdict.seed)
    say("every feed has rows; the storm begins")
    verdict.faults += await storm(world, {**faults, **ENDINGS}, seconds * 2 / 3, chance)
    say(f"{world.subject.lives} lives; now one that must last")
    await restarted(world)
    warm_s = min(WARM_S, seconds / 9)
    verdict.faults += await storm(world, faults, warm_s, chance)
    if not await settled(world):
        verdict.mistakes.append("not healed after the first storm")
    memory, descriptors = world.subject.memory_bytes(), world.subject.descriptors()
    verdict.faults += await storm(world, faults, max(0.0, seconds / 3 - warm_s), chance)
    say("the storm is over; waiting until everything is on disk")
    if not await settled(world):
        verdict.mistakes.append("not healed after the last storm")
    verdict.memory_bytes = (memory, world.subject.memory_bytes())
    verdict.descriptors = (descriptors, world.subject.descriptors())
    if verdict.memory_bytes[1] - memory > MEMORY_GROWTH_BYTES:
        verdict.mistakes.append("memory grew")
    more = verdict.descriptors[1] - descriptors
    if more["files"] or more["sockets"] > REST_CONNECTIONS:
        verdict.mistakes.append(f"more descriptors than before: {dict(more)}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Parse, run, print; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description="Collect a generated market through random faults, and judge the files."
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--keep", type=Path, help="an empty directory for the files, the configuration and the log")
    wanted = parser.parse_args()
    _say(f"seed {wanted.seed}, {wanted.minutes:g} minutes")
    if wanted.keep is not None:
        wanted.keep.mkdir(parents=True, exist_ok=True)
    verdict = asyncio.run(soak(wanted.minutes * 60, wanted.seed, _say, wanted.keep))
    for line in verdict.lines():
        _say(line)
    sys.exit(bool(verdict.mistakes))


if __name__ == "__main__":
    main()
