"""The real collector, without sockets, against a small model: whatever happens, files hold what was published, once.

`Machine` lets hypothesis choose: rows come, are lost, come twice, late or in another order, the day changes, history
answers or does not, the process is killed, the power fails (each file then ends at any byte behind what was synced).
`Published` is the model: what the exchange has published, and nothing else.
"""

import asyncio
import itertools
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tickcollect.collector import Collector
from tickcollect.config import Config
from tickcollect.feed import Batch
from tickcollect.happenings import Happenings
from tickcollect.journal import Journal
from tickcollect.rest import Rest, UnreachableError
from tickcollect.segments import FeedPath, open_csv
from tickcollect.venues import venues

DAY = 20_648
DAY_MS = 86_400_000
FEED = FeedPath("binance", "trade", "BTCUSDT")
ROW_BYTES = 82
EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
SETTLING_S = 0.02
SETTLING_LOOKS = 250


# The model


@dataclass
class Published:
    """What the exchange has published: each ID's day, in order; the IDs between that it left out do not exist."""

    days: dict[int, int] = field(default_factory=dict)
    next_id: int = 100
    day: int = DAY
    answers: bool = True
    """History can be asked."""

    def publish(self, count: int) -> list[int]:
        ids = list(range(self.next_id, self.next_id + count))
        self.days |= dict.fromkeys(ids, self.day)
        self.next_id += count
        return ids

    def lines(self, id_: int) -> tuple[bytes, bytes]:
        """Return an ID's row as it comes live, and as it comes from history: without event time."""
        time = self.days[id_] * DAY_MS + id_
        rest = b"BTCUSDT,%d,64120.01,0.50,,,%d,True\n" % (id_, time)
        return b"trade,%d," % time + rest, b"trade,," + rest

    def payload(self, id_: int) -> bytes:
        time = self.days[id_] * DAY_MS + id_
        row = {"e": "trade", "E": time, "s": "BTCUSDT", "t": id_, "p": "64120.01", "q": "0.50", "T": time, "m": True}
        return json.dumps({"stream": "btcusdt@trade", "data": row}).encode()

    async def get(self, _path: str, params: Mapping[str, int], **_: object) -> bytes:
        """Answer for the exchange's history, at most three rows at once."""
        if not self.answers:
            raise UnreachableError("no answer")
        ids = [id_ for id_ in self.days if id_ >= params["fromId"]][:3]
        times = {id_: self.days[id_] * DAY_MS + id_ for id_ in ids}
        rows = [{"id": i, "price": "64120.01", "qty": "0.50", "time": times[i], "isBuyerMaker": True} for i in ids]
        return json.dumps(rows).encode()

    def between(self, first: int, last: int) -> set[int]:
        return {id_ for id_ in self.days if first <= id_ <= last}


# What is on disk, read without the package's help but for unpacking


def stored(root: Path, published: Published) -> list[int]:
    """Return all IDs in files, after checking each file: rows as published, one after the other, the name true."""
    found: list[int] = []
    for path in FEED.directory(root).glob("*.csv*"):
        with open_csv(path) as csv:
            lines = csv.read().splitlines(keepends=True)
        ids = [int(line.split(b",")[3]) for line in lines]
        for id_, line in zip(ids, lines, strict=True):
            assert line in published.lines(id_), path.name
        numbers = [int(part) for part in path.name.split(".")[0].split("-")[5:]]
        assert ids == list(range(numbers[0], numbers[0] + len(ids))), path.name
        assert numbers[1:] in ([], ids[-1:]), path.name
        assert len({published.days[id_] for id_ in ids}) <= 1, path.name
        found += ids
    return found


FEW_TURNS, MANY_TURNS = 50, 20_000


# The machine


class Machine(RuleBasedStateMachine):
    """A collector's days, some of them bad."""

    def __init__(self) -> None:
        super().__init__()
        self.published = Published()
        self.connections = itertools.count(1)
        self.never_delivered: list[int] = []
        self.journal_safe_bytes = 0
        self.safe_bytes: dict[Path, int] = {}

    @initialize()
    def begin(self) -> None:
        """Make what must be given back: hypothesis also makes machines that it never runs."""
        self.root = Path(tempfile.mkdtemp(prefix="tickcollect-model-"))
        self.loop = asyncio.new_event_loop()
        setattr(self.loop, "call_later", self.soon)  # noqa: B010 - no pause is waited for; assigning has no type
        self.now_s = self.loop.time()
        self.start()

    def soon(self, _delay_s: float, callback: Any, *arguments: Any) -> asyncio.Handle:
        return self.loop.call_soon(callback, *arguments)

    def start(self) -> None:
        """Start a collector as `collect` does, with a history that the model answers."""
        self.loop.run_until_complete(self._start())
        self.connection = next(self.connections)

    async def _start(self) -> None:
        entry = {"exchange": "binance", "stream": "trade", "symbols": ("BTCUSDT",)}
        config = Config.model_validate(
            {"data_dir": self.root, "collect": [entry], "rotate_size": 1000, "gap_patience_s": 0.0}
        )
        venue = venues(config)[0]
        happenings = Happenings(Journal(self.root / "journal.jsonl"))
        self.collector = Collector(config, [venue], happenings)
        failed = await self.collector.begin(self.collector.starting.listings[0], self.collector.starting.waiting)
        assert not failed
        self.collector.tell("started", "the model", feeds=1, data_dir=str(self.root))
        self.feed = self.collector.feeds[0]
        rest = cast("Rest", self.published)
        history = self.collector.histories[self.feed]
        history = replace(history, rest=rest, source=replace(history.source, limit=3), sleep=_no_pause)
        self.collector.histories[self.feed] = history
        self.collector.backfills[self.feed].now_s = itertools.count(step=200.0).__next__
        self.filling = self.loop.create_task(self.collector.backfills[self.feed].run())
        await self._work()

    async def _work(self) -> None:
        """Let everything happen that can happen now."""
        collector = self.collector
        for _ in range(3):
            self.now_s += 3600
            collector.writer._decide_holes(self.now_s)
            for turn in itertools.count():
                assert turn < MANY_TURNS, "the background comes to no end"
                await asyncio.sleep(0)
                if turn > FEW_TURNS:  # the disk thread is at work; the loop's own pauses take no time here
                    await self.loop.run_in_executor(None, time.sleep, 0.001)
                work = collector.backfills[self.feed]
                busy = self.published.answers and (work.at_work or work._planned or work.jobs.qsize())
                if turn > 5 and not collector._fetching and not busy:
                    break
            await asyncio.gather(*collector._fetching)
            await collector.writer.flush()
        await asyncio.to_thread(collector.happenings.write)

    def work(self) -> None:
        self.loop.run_until_complete(self._work())

    def deliver(self, ids: list[int]) -> None:
        state = next(iter(self.collector.links))
        decoder = self.collector.decoders[state]

        def decode(payloads: Any) -> list[Any]:
            return [decoder.message(payload) for payload in payloads]

        batch = Batch(state, self.connection, 0, [self.published.payload(id_) for id_ in ids], decode)
        self.collector.writer._accept(batch, self.now_s)

    @rule(count=st.integers(1, 30))
    def rows_come(self, count: int) -> None:
        """Deliver rows as they are published."""
        self.deliver(self.published.publish(count))
        self.work()

    @rule(count=st.integers(1, 30))
    def rows_are_lost(self, count: int) -> None:
        """Publish rows that do not come, now at least."""
        self.never_delivered += self.published.publish(count)

    @rule(count=st.integers(1, 5))
    def ids_are_left_out(self, count: int) -> None:
        """Leave out some IDs, as the exchange does."""
        self.published.next_id += count

    @rule(count=st.integers(2, 12), chance=st.randoms(use_true_random=False))
    def rows_come_in_any_order_and_twice(self, count: int, chance: Any) -> None:
        """Deliver the same rows on two connections, mixed."""
        ids = self.published.publish(count)
        rest = {self.connection: list(ids), next(self.connections): list(ids)}
        first = self.connection
        while any(rest.values()):
            self.connection = chance.choice([connection for connection, left in rest.items() if left])
            self.deliver([rest[self.connection].pop(0)])
        self.connection = first
        self.work()

    @precondition(lambda self: self.never_delivered)
    @rule(data=st.data())
    def rows_come_late(self, data: st.DataObject) -> None:
        """Deliver rows after all, on another connection."""
        start = data.draw(st.integers(0, len(self.never_delivered) - 1))
        late = self.never_delivered[start : start + 5]
        before, self.connection = self.connection, next(self.connections)
        self.deliver(late)
        self.connection = before
        self.work()

    @rule()
    def the_day_ends(self) -> None:
        """Publish on the next day from now on."""
        self.published.day += 1

    @rule()
    def history_changes(self) -> None:
        """Let history answer no more, or again."""
        self.published.answers = not self.published.answers
        self.work()

    @rule()
    def files_are_synced(self) -> None:
        """Make safe what was written."""
        self.collector._sync_all()
        self.journal_safe_bytes = (self.root / "journal.jsonl").stat().st_size
        segments = self.feed.segments
        growing = [*segments._unsynced.values(), *([segments._open] if segments._open else [])]
        for each in growing:
            self.safe_bytes[each.written.path] = each.safe.size if each.safe else 0
        self.safe_bytes |= {path: path.stat().st_size for path in self.own_ended}

    @property
    def own_ended(self) -> list[Path]:
        """CSV files of the live rows that ended and were synced: those waiting for the seal."""
        waiting = [segment.path for _, segment in self.collector.sealing._queue]  # type: ignore[attr-defined]  # asyncio
        return [path for path in waiting if path.exists() and path in self.safe_bytes]

    @rule()
    def files_are_sealed(self) -> None:
        """Seal what ended."""
        while not self.collector.sealing.empty():
            feed, segment = self.collector.sealing.get_nowait()
            self.collector._seal_one(feed, segment)
        self.collector.happenings.write()

    @rule()
    def the_process_is_killed(self) -> None:
        """Leave only what was handed over."""
        self.kill()
        self.start()

    @rule(torn=st.integers(1, ROW_BYTES - 30))
    def the_process_is_killed_inside_a_write(self, torn: int) -> None:
        """Leave a part of the next row too."""
        segment = self.feed.segments.open_segment
        self.kill()
        if segment is not None:
            with segment.path.open("ab") as file:
                file.write(self.published.lines(self.published.publish(1)[0])[0][:torn])
        self.start()

    @rule(data=st.data())
    def the_power_fails(self, data: st.DataObject) -> None:
        """Leave of each CSV and of the journal what was synced, and any part of the rest."""
        self.kill()
        for path in [*FEED.directory(self.root).glob("*.csv"), self.root / "journal.jsonl"]:
            size = path.stat().st_size
            safe = self.journal_safe_bytes if path.suffix == ".jsonl" else self.safe_bytes.get(path, 0)
            # a part of 1,000, because the journal's length depends on how long things took
            part = data.draw(st.integers(0, 1000), label=path.name)
            with path.open("r+b") as file:
                file.truncate(size - max(0, size - safe) * part // 1000)
        self.start()

    def kill(self) -> None:
        """Drop everything that is in memory, and give back what the kernel gives back."""
        collector = self.collector
        self.loop.run_until_complete(_cancelled(self.filling, *collector._fetching))
        for executor in (collector.opener, collector.disk, collector.syncer, collector.sealer):
            executor.shutdown(wait=True, cancel_futures=True)
        for path in list(collector._pool._descriptors):
            collector._pool.close(path)
        collector.happenings.journal._close()
        for lock in collector._locks.values():
            lock.release()

    @invariant()
    def every_row_is_somewhere(self) -> None:
        """Look at each ID between the first row and the last: it is in a row, known to be missing, or never existed."""
        if not hasattr(self, "collector"):
            return
        for _ in range(SETTLING_LOOKS):  # what a thread of the disk has to say may still be on its way to the loop
            if self.all_is_accounted_for():
                return
            self.loop.run_until_complete(asyncio.sleep(SETTLING_S))
        ids = stored(self.root, self.published)
        assert not [id_ for id_, count in Counter(ids).items() if count > 1]
        raise AssertionError(f"rows {sorted(ids)}, open {self.feed.open.spans}, next {self.feed.sequence.next_id}")

    def all_is_accounted_for(self) -> bool:
        """Tell whether each published ID stands once in a row, or is known to be missing and in none."""
        ids = stored(self.root, self.published)
        next_id = self.feed.sequence.next_id
        if len(set(ids)) < len(ids):
            return False
        if next_id is None or not ids:
            return True
        known = _ids(self.feed.open.spans)
        missing = self.published.between(min(ids), next_id - 1) - set(ids)
        published = {id_ for id_ in known if id_ in self.published.days and id_ >= min(ids)}
        return missing == published and known.isdisjoint(ids)

    def teardown(self) -> None:
        """Let everything heal: then nothing is missing."""
        if hasattr(self, "collector"):
            self.published.answers = True
            self.deliver(self.published.publish(2))
            self.work()
            self.every_row_is_somewhere()
            ids = stored(self.root, self.published)
            assert set(ids) == self.published.between(min(ids), self.published.next_id)
            assert not self.feed.open.spans
            self.kill()
        if hasattr(self, "loop"):
            self.loop.close()
            shutil.rmtree(self.root)


def _ids(spans: list[tuple[int, int]]) -> set[int]:
    return {id_ for first, last in spans for id_ in range(first, last + 1)}


async def _no_pause(_: float) -> None:
    await asyncio.sleep(0)


async def _cancelled(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def test_any_history_leaves_every_row_once() -> None:
    """Whatever happens to rows, files, process and power, each published ID is on disk once or known to be missing."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            derandomize="EXAMPLES" not in os.environ,  # the same histories each time; others where more are asked for
            suppress_health_check=list(HealthCheck),
        ),
    )
