"""Measures `tickcollect run` as it is used: its own process, all defaults on, against a loopback exchange.

    speed       as fast as it goes: messages a second, processor time a message, memory; and the floor's, in turn
    pace        200,000 messages a second offered: does it keep up, how late are rows in the file
    sealing     a 1 GB file is sealed while 1,000 messages a second go on: how late are they
    starting    to the first row, to the help text, to the refusal of a typo

Rules:

1. A run whose files do not hold every trade once, in order, is void, and the benchmark ends. At full speed every row is
   compared with what was sent; in the paced runs the number of rows, the IDs and the seam between files are.
2. The floor and the collector take turns, so that what else the machine does meets both.
3. Processor time a message is that of the whole process less that of one that was started, connected, left alone for
   as long, and stopped, divided by the messages. The latter is reported too.
4. A message's delay begins when its turn to be sent has come (`feeder` rule 3) and ends when its row can be read from
   the file; or, where that is said, when the collector stamped its arrival (`received_ns`).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from delays import Sightings, delays_ms, quantile, sealed_ids
from report import RESULTS, Figure, Results, begin, show, write
from subject import (
    HERE,
    TICKCOLLECT,
    Cores,
    Transport,
    VoidError,
    check_rows,
    feed_directory,
    feeding,
    is_complete,
    running,
    split_cores,
    transports,
)
from tape import FIRST_ID, Tape

from tickcollect.events import MS_PER_DAY


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    messages: int
    runs: int
    pace_s: float
    file_bytes: int
    starts: int


SIZES = {
    "full": Size(messages=2_000_000, runs=5, pace_s=20.0, file_bytes=1_000_000_000, starts=10),
    "quick": Size(messages=400_000, runs=3, pace_s=4.0, file_bytes=50_000_000, starts=3),
}
PACE_PER_S = 200_000
QUIET_PACE_PER_S = 1000
MANY_SYMBOLS = 200
SCRATCH = RESULTS.parent
"""In the checkout, because a machine's /tmp may be memory, and this is also about files."""


@dataclass(frozen=True)
class Bench:
    """What all measurements need."""

    size: Size
    cores: Cores
    day: int
    plain: Transport
    tls: Transport
    scratch: Path

    def fresh(self) -> Path:
        """Return a new directory."""
        return Path(tempfile.mkdtemp(dir=self.scratch))


# --- The programs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A program under measurement: how to start it, and where its rows are."""

    name: str
    command: Callable[[Tape, Transport, int, int], list[str | Path]]
    """Of the tape, the transport, the feeder's port and the count of messages."""
    rows_in: Callable[[Path, str], Path]
    """The directory of a symbol's file, of the process's directory and the symbol."""


def collector_command(tape: Tape, transport: Transport, port: int, _: int = 0) -> list[str | Path]:
    """Return `tickcollect run` for the symbols of a tape."""
    symbols = [part for name in tape.names for part in ("--symbol", name)]
    urls = ["--ws-url", transport.url("ws", port), "--rest-url", transport.url("http", port)]
    return [TICKCOLLECT, "run", *symbols, *urls, "--data-dir", "data"]


def _floor_command(_: Tape, transport: Transport, port: int, count: int) -> list[str | Path]:
    return [sys.executable, HERE / "floor.py", f"{transport.url('ws', port)}/stream", "rows.csv", str(count)]


COLLECTOR = Program(
    "tickcollect", collector_command, lambda directory, symbol: feed_directory(directory / "data", symbol)
)
FLOOR = Program("floor", _floor_command, lambda directory, _: directory)


# --- Speed ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One run at full speed."""

    seconds: float
    cpu_s: float
    peak_bytes: int


def at_full_speed(bench: Bench, program: Program, tape: Tape, transport: Transport) -> Sample:
    """Let a program take the whole tape, and check what it wrote."""
    count = bench.size.messages
    directory = bench.fresh()
    places = [program.rows_in(directory, name) for name in tape.names]
    with (
        feeding(tape, transport, count=count) as feeder,
        running(
            program.command(tape, transport, feeder.port, count), directory, transport.env, bench.cores.subject
        ) as it,
    ):
        started_s = feeder.started_s()
        last_id = FIRST_ID + count // tape.symbols - 1
        for place in reversed(places):
            it.until(partial(is_complete, place, last_id), 300.0, "not all rows came")
        seconds = time.monotonic() - started_s
        cost = it.stop()
    if cost.exit_code:
        raise VoidError(f"{program.name} ended with exit code {cost.exit_code}")
    for symbol, place in enumerate(places):
        check_rows(next(place.glob("*.csv")), tape, symbol, count // tape.symbols)
    return Sample(seconds, cost.cpu_s, cost.peak_bytes)


def idle_cpu_s(bench: Bench, program: Program, tape: Tape, transport: Transport, seconds: float) -> float:
    """Return the processor time of a program that subscribes, gets nothing for `seconds` and is stopped."""
    directory = bench.fresh()
    with (
        feeding(tape, transport, count=0) as feeder,
        running(program.command(tape, transport, feeder.port, 0), directory, transport.env, bench.cores.subject) as it,
    ):
        feeder.started_s()
        time.sleep(seconds)
        return it.stop().cpu_s


def measure_speed(
    bench: Bench, section: str, programs: Sequence[Program], tape: Tape, transport: Transport
) -> list[Figure]:
    """Run the programs in turn; the ratio is of the medians of processor time a message."""
    samples: dict[Program, list[Sample]] = {program: [] for program in programs}
    for _ in range(bench.size.runs):
        for program in programs:
            samples[program].append(at_full_speed(bench, program, tape, transport))
    figures, costs = [], {}
    for program, runs in samples.items():
        seconds = median(run.seconds for run in runs)
        idle = [idle_cpu_s(bench, program, tape, transport, seconds) for _ in range(min(3, bench.size.runs))]
        count = bench.size.messages
        costs[program] = [(run.cpu_s - median(idle)) / count * 1e6 for run in runs]
        figures += [
            Figure(section, f"{program.name}: speed", "messages/s", [count / run.seconds for run in runs]),
            Figure(section, f"{program.name}: processor time a message", "µs", costs[program], 3),
            Figure(section, f"{program.name}: the same process idle", "s", idle, 2),
            Figure(section, f"{program.name}: peak memory", "MB", [run.peak_bytes / 1e6 for run in runs], 1),
        ]
    if FLOOR in costs:
        ratio = median(costs[COLLECTOR]) / median(costs[FLOOR])
        figures.append(Figure(section, "processor time, tickcollect / floor", "times", [ratio], 3))
    return figures


# --- Pace ----------------------------------------------------------------------------------------------------------


def measure_pace(bench: Bench) -> list[Figure]:
    """Offer 200,000 messages a second over TLS for some seconds."""
    section = f"{PACE_PER_S:,} messages/s offered for {bench.size.pace_s:.0f} s, one connection, TLS"
    tape, directory = Tape(1, bench.day), bench.fresh()
    count = int(bench.size.pace_s * PACE_PER_S)
    place = feed_directory(directory / "data", tape.names[0])
    with (
        feeding(tape, bench.tls, count=count, per_s=PACE_PER_S) as feeder,
        running(collector_command(tape, bench.tls, feeder.port), directory, bench.tls.env, bench.cores.subject) as it,
    ):
        feeder.started_s()
        before_s = it.cpu_s()
        sightings = Sightings(place, directory / "data" / "status.json")
        sightings.watch(lambda: is_complete(place, FIRST_ID + count - 1), bench.size.pace_s * 3 + 30)
        used_s = it.cpu_s() - before_s
        sent_after_s = feeder.sent_s() - feeder.started_s()
        cost = it.stop()
    path = next(place.glob("*.csv"))
    seen = delays_ms(path, sightings).visible
    if len(seen) != count:
        raise VoidError(f"{len(seen)} of {count} rows came")
    return [
        Figure(section, "time the feeder needed to get rid of them", "s", [sent_after_s], 2),
        Figure(section, "of one core used", "%", [used_s / bench.size.pace_s * 100]),
        *_delay_figures(section, "row in the file after", seen),
        Figure(section, "delay of the last row", "ms", [seen[-1]], 1),
        Figure(section, "longest queue seen (once a second)", "messages", [sightings.longest_queue]),
        Figure(section, "peak memory", "MB", [cost.peak_bytes / 1e6], 1),
    ]


def _delay_figures(section: str, name: str, delays: Sequence[float]) -> list[Figure]:
    ordered = sorted(delays)
    return [
        Figure(section, f"{name}, {label}", "ms", [quantile(ordered, share)], 1)
        for label, share in (("median", 0.5), ("99.9 %", 0.999), ("longest", 1.0))
    ]


# --- A big file: restart and sealing -------------------------------------------------------------------------------


def write_big_file(path: Path, tape: Tape, size: int) -> int:
    """Write an open segment of at least `size` bytes, as a killed process leaves it; return its count of rows."""
    path.parent.mkdir(parents=True)
    at_once, count = 100_000, 0
    with path.open("w") as file:
        while file.tell() < size:
            rows = tape.columns(0, count, count + at_once)
            file.writelines(f"trade,1795000000000000,{columns},1795000000000000000\n" for columns in rows)
            count += at_once
    return count


def measure_big_file(bench: Bench) -> list[Figure]:
    """Restart on a big open segment; let it roll and be sealed while a moderate feed goes on."""
    megabytes = bench.size.file_bytes // 1_000_000
    tape, directory = Tape(1, bench.day), bench.fresh()
    place = feed_directory(directory / "data", tape.names[0])
    day = time.strftime("%Y-%m-%d", time.gmtime(bench.day * MS_PER_DAY / 1000))
    big = place / f"{tape.names[0]}-trade-{day}-{FIRST_ID}.csv"
    old_rows = write_big_file(big, tape, bench.size.file_bytes)
    old_bytes = big.stat().st_size
    env = {
        "TICKCOLLECT_EXTRA_COLUMNS": '["received_ns"]',
        "TICKCOLLECT_ROTATE_SIZE": str(old_bytes + 5 * QUIET_PACE_PER_S * 110),
    }
    with feeding(tape, bench.plain, count=10**6, first=old_rows, per_s=QUIET_PACE_PER_S) as feeder:
        command = collector_command(tape, bench.plain, feeder.port)
        with running(command, directory, env, bench.cores.subject) as it:
            it.until(lambda: is_complete(place, FIRST_ID + old_rows), 600.0, "no row came after the restart")
            restart_s = time.monotonic() - it.started_s
            sightings = Sightings(place)
            sightings.watch(lambda: _sealed(place), 1800.0)
            sealed_at_s = time.time()
            sightings.watch(lambda: time.time() > sealed_at_s + 5.0, 10.0)
            cost = it.stop()
    first_id, last_id = sealed_ids(next(place.glob("*.zip")))
    after = next(place.glob("*.csv"))
    if first_id != FIRST_ID or int(after.stem.rsplit("-", 1)[1]) != last_id + 1:
        raise VoidError(f"the sealed file has IDs {first_id} to {last_id}, the next is {after.name}")
    found = delays_ms(after, sightings)
    seal_s = sealed_at_s - sightings.first_seen_s(after)
    during = [number for number, row_s in enumerate(found.sent_s) if row_s <= sealed_at_s]
    later = range(len(during), len(found.sent_s))
    section = f"A file of {megabytes:,} MB, {QUIET_PACE_PER_S:,} messages/s, all threads on one core"
    figures = [
        Figure(section, "restart on it, from the command to the first new row", "s", [restart_s], 2),
        Figure(section, "sealing it, from the roll to the name", "s", [seal_s], 1),
    ]
    for when, rows in (("while sealing", during), ("afterwards", later)):
        figures += _delay_figures(section, f"{when}: arrival stamped after", [found.stamped[row] for row in rows])
        figures += _delay_figures(section, f"{when}: row in the file after", [found.visible[row] for row in rows])
    return [*figures, Figure(section, "peak memory", "MB", [cost.peak_bytes / 1e6], 1)]


def _sealed(place: Path) -> bool:
    return any(place.glob("*.csv.zip"))


# --- Starting ------------------------------------------------------------------------------------------------------


def measure_starting(bench: Bench) -> list[Figure]:
    """Time what a person waits for."""
    section = "Waiting for it"
    tape = Tape(1, bench.day)
    first_row_ms = [_first_row_ms(bench, tape) for _ in range(bench.size.starts)]
    with feeding(tape, bench.plain, count=0) as feeder:
        typo = [part if part != "BTCUSDT" else "BTCUSTD" for part in collector_command(tape, bench.plain, feeder.port)]
        refused_ms = [_until_end_ms(bench, typo, exit_code=2) for _ in range(bench.size.starts)]
    figures = [
        Figure(section, "from the command to the first row in the file", "ms", first_row_ms),
        Figure(section, "`tickcollect run` with a mistyped symbol, to the refusal", "ms", refused_ms),
    ]
    for option in ("--version", "--help"):
        taken_ms = [_until_end_ms(bench, [TICKCOLLECT, option], exit_code=0) for _ in range(bench.size.starts)]
        figures.append(Figure(section, f"`tickcollect {option}`", "ms", taken_ms))
    return figures


def _first_row_ms(bench: Bench, tape: Tape) -> float:
    directory = bench.fresh()
    place = feed_directory(directory / "data", tape.names[0])
    with feeding(tape, bench.plain, count=10**6, per_s=QUIET_PACE_PER_S) as feeder:
        command = collector_command(tape, bench.plain, feeder.port)
        with running(command, directory, {}, bench.cores.subject) as it:
            it.until(lambda: is_complete(place, FIRST_ID), 30.0, "no row came")
            taken_ms = (time.monotonic() - it.started_s) * 1000
            it.stop()
    return taken_ms


def _until_end_ms(bench: Bench, command: list[str | Path], *, exit_code: int) -> float:
    with running(command, bench.fresh(), {}, bench.cores.subject) as it:
        cost = it.wait(30.0)
        taken_ms = (time.monotonic() - it.started_s) * 1000
    if cost.exit_code != exit_code:
        raise VoidError(f"{' '.join(map(str, command))} ended with exit code {cost.exit_code}: {it.log.read_text()}")
    return taken_ms


# --- All -----------------------------------------------------------------------------------------------------------


def measurements(bench: Bench) -> dict[str, Callable[[], list[Figure]]]:
    """Return every measurement by its name on the command line."""
    one, many = Tape(1, bench.day), Tape(MANY_SYMBOLS, bench.day)
    full = "Full speed, one connection"
    both = (COLLECTOR, FLOOR)
    return {
        "plain": lambda: measure_speed(bench, f"{full}, one symbol, plain", both, one, bench.plain),
        "tls": lambda: measure_speed(bench, f"{full}, one symbol, TLS", both, one, bench.tls),
        "many": lambda: measure_speed(bench, f"{full}, {MANY_SYMBOLS} symbols, TLS", [COLLECTOR], many, bench.tls),
        "pace": partial(measure_pace, bench),
        "sealing": partial(measure_big_file, bench),
        "starting": partial(measure_starting, bench),
    }


def _conditions(size: Size, cores: Cores) -> list[str]:
    pinned = "not pinned to cores" if cores.subject is None else "all its threads on one core, the sender on another"
    return [
        f"one process under measurement, {pinned}",
        f"{size.messages:,} messages a run, {size.runs} runs; every row of these was compared with what was sent",
    ]


def main() -> None:
    """Run all measurements, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("names", nargs="*", metavar="NAME", help="plain, tls, many, pace, sealing or starting")
    given = parser.parse_args()
    size, cores = SIZES[given.size], split_cores()
    results: Results = begin(given.size if not given.names else "partial", _conditions(size, cores))
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        day = int(time.time() * 1000) // MS_PER_DAY
        known = measurements(Bench(size, cores, day, *transports(Path(scratch)), Path(scratch)))
        for name in given.names or known:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            try:
                results.figures.extend(known[name]())
            except VoidError as error:
                sys.exit("\n".join([f"The measurement is void: {error}", *getattr(error, "__notes__", ())]))
    show(results)
    print(f"The same as JSON: {write(results)}")


if __name__ == "__main__":
    main()
