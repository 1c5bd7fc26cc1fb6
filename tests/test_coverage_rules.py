"""What makes a feed unknown and known, moment by moment: clocks by hand, connections that are only said to be."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_newest import feed

from tickcollect.coverage import ASK_AFTER_S, HEARD_WITHIN_S, Coverage
from tickcollect.exchanges.binance import Link
from tickcollect.feed import LinkState
from tickcollect.journal import Journal, read
from tickcollect.newest import Answer, Manner, Named
from tickcollect.writer import Feed

NAME = "btcusdt@trade"
START_NS = 1_784_000_000_000_000_000
S = 10**9
OURS = 100
"""The ID of our newest row at the start."""


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        asyncio.run(test(*arguments, **options))

    return run


class World:
    """One feed, its connections, and an exchange that is asked when a test lets it answer."""

    def __init__(self, root: Path, links: int = 1) -> None:
        self.at_s = 1000.0
        self.feed = feed(root, "BTCUSDT", OURS)
        self.links = [LinkState("binance", Link(f"ws://{n}", (NAME,))) for n in range(links)]
        self.numbers = 0
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.fetched: list[tuple[int, int]] = []
        self.pending: list[Callable[[Feed, Answer], None]] = []
        self.answered = asyncio.Event()
        self.coverage = Coverage(
            dict.fromkeys(self.links, SimpleNamespace()),  # type: ignore[arg-type]  # nobody looks into the venue
            lambda _: [self.feed],
            lambda _: self,  # type: ignore[arg-type, return-value]  # it has `ask`, and nothing else is needed
            lambda event, _, /, **facts: self.told.append((event, facts)),
            self.fetch,
            lambda: True,
            lambda: self.at_s,
            lambda: self.now_ns,
        )
        self.coverage.begin([self.feed], {self.feed: START_NS - 60 * S})

    @property
    def now_ns(self) -> int:
        return START_NS + int((self.at_s - 1000) * S)

    async def ask(self, _: Sequence[Feed], __: Manner, note: Callable[[Feed, Answer], None]) -> None:
        self.pending.append(note)
        await self.answered.wait()

    def fetch(self, _: Feed, holes: Sequence[tuple[int, int]]) -> "asyncio.Future[None]":
        self.fetched += holes
        return asyncio.get_running_loop().create_future()

    def connect(self, link: int = 0) -> Any:
        """Open a connection that is acknowledged at once."""
        self.numbers += 1
        listener: Any = SimpleNamespace(number=self.numbers, subscription=SimpleNamespace(acknowledged={}))
        listener.subscription.acknowledged[NAME] = self.at_s
        self.links[link].open.append(listener)
        self.links[link].received_ns = self.now_ns
        return listener

    def cut(self, listener: Any, link: int = 0) -> None:
        self.links[link].note_end(listener, self.at_s)
        self.coverage.look()

    def row(self, listener: Any, id_: int) -> None:
        """Let a row come on a connection, written if it continues ours."""
        if id_ == (self.feed.newest_id or 0) + 1:
            self.feed.sequence.next_id = id_ + 1
        self.feed.last_received_ns, self.feed.last_seen_s = self.now_ns, self.at_s
        if self.is_unknown():
            self.coverage.note_live(self.feed, listener.number, id_)

    async def passes(self, seconds: float) -> None:
        self.at_s += seconds
        self.coverage.look()
        self.coverage._ask()
        for _ in range(3):
            await asyncio.sleep(0)

    def is_unknown(self) -> bool:
        return self.feed.unknown_since_ns is not None


@in_a_loop
async def test_feeds_that_one_entry_cannot_hold_are_told_in_several(tmp_path: Path) -> None:
    """An entry of the journal is 8 kB at most and leaves out a longer list: then nobody could read whose it was."""
    feeds = [feed(tmp_path, f"SYMBOL{number:04d}USDT", OURS) for number in range(900)]
    journal = Journal(tmp_path / "journal.jsonl", lambda: START_NS)
    world = World(tmp_path)
    world.coverage._unknown.tell = lambda event, subject, /, **facts: journal.append(event, subject=subject, **facts)
    world.coverage.begin(feeds, dict.fromkeys(feeds, START_NS))
    for one in feeds:
        world.coverage._unknown.end(one)
    world.coverage._unknown.tell_known()
    journal.close()
    for kind in ("unknown", "known"):
        entries = list(read(tmp_path / "journal.jsonl", frozenset({kind})))
        assert [name for entry in entries for name in entry.facts["feeds"]] == [
            f"trade/{one.path.symbol}" for one in feeds
        ]
        assert len(entries) < 8


@in_a_loop
async def test_a_feed_begins_unknown_since_its_newest_row_and_a_live_row_ends_that(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.feed.unknown_since_ns == START_NS - 60 * S
    world.row(world.connect(), OURS + 1)
    assert not world.is_unknown()
    await world.passes(2)
    assert [event for event, _ in world.told] == ["unknown", "known"]


@in_a_loop
async def test_a_row_behind_a_hole_ends_nothing_before_the_hole_is_settled(tmp_path: Path) -> None:
    world = World(tmp_path)
    connection = world.connect()
    world.row(connection, OURS + 5)
    assert world.is_unknown()
    world.feed.sequence.next_id = OURS + 6  # the hole was filled or declared, and the row written
    await world.passes(0.25)
    assert not world.is_unknown()


@in_a_loop
async def test_a_damaged_id_does_not_keep_a_feed_unknown(tmp_path: Path) -> None:
    world = World(tmp_path)
    connection = world.connect()
    world.row(connection, 2**62)
    world.row(connection, OURS + 1)
    assert not world.is_unknown()


@in_a_loop
async def test_rows_of_the_dead_connection_that_still_waited_prove_nothing(tmp_path: Path) -> None:
    """They were sent before the end; what came after it is not in them."""
    world = World(tmp_path)
    dead = world.connect()
    world.row(dead, OURS + 1)
    world.cut(dead)
    assert world.is_unknown()
    world.row(dead, OURS + 2)
    assert world.is_unknown()
    world.row(world.connect(), OURS + 3)
    assert not world.is_unknown()


@in_a_loop
async def test_unknown_begins_at_the_last_sign_of_life(tmp_path: Path) -> None:
    world = World(tmp_path)
    connection = world.connect()
    world.row(connection, OURS + 1)
    world.at_s += 7
    world.links[0].received_ns = world.now_ns  # a pong
    world.at_s += 5
    world.cut(connection)
    assert world.feed.unknown_since_ns == START_NS + 7 * S


@in_a_loop
async def test_an_answer_of_before_the_end_of_a_connection_is_of_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.connect()
    await world.passes(ASK_AFTER_S)
    world.cut(first)
    (old,) = world.pending
    old(world.feed, Named(OURS))
    assert world.is_unknown()


@in_a_loop
async def test_nobody_is_asked_before_the_subscription_is_acknowledged(tmp_path: Path) -> None:
    world = World(tmp_path)
    connection = world.connect()
    del connection.subscription.acknowledged[NAME]
    await world.passes(60)
    assert world.pending == []
    assert world.is_unknown()


@pytest.mark.parametrize(("named", "is_known"), [(OURS - 1, False), (None, False), (OURS, True), (2**62, False)])
@in_a_loop
async def test_only_our_own_newest_row_named_proves_that_nothing_is_missing(
    tmp_path: Path, named: int | None, *, is_known: bool
) -> None:
    world = World(tmp_path)
    world.connect()
    await world.passes(ASK_AFTER_S - 0.1)
    assert world.pending == [], "what the exchange's statistics show may be older than the subscription"
    await world.passes(0.1)
    world.pending[-1](world.feed, Named(named))
    await world.passes(1)
    assert world.is_unknown() is not is_known
    assert world.fetched == []
    assert world.feed.missing_ids == 0


@in_a_loop
async def test_what_the_exchange_has_beyond_is_fetched_and_counted_once_it_was_named_twice(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.connect()
    await world.passes(ASK_AFTER_S)
    world.pending[-1](world.feed, Named(OURS + 18))
    assert world.feed.missing_ids == 0
    await world.passes(0.6)
    assert world.fetched == [(OURS + 1, OURS + 18)]
    world.pending[-1](world.feed, Named(OURS + 20))
    assert world.feed.missing_ids == 18
    world.feed.sequence.next_id = OURS + 19
    await world.passes(0.25)
    assert world.is_unknown(), "it has named two more since"
    world.feed.sequence.next_id = OURS + 21
    await world.passes(0.25)
    assert not world.is_unknown()
    assert world.feed.missing_ids == 0


@in_a_loop
async def test_with_two_connections_one_carries_on(tmp_path: Path) -> None:
    """The end of one of two leaves nothing unknown; the end of both does, and so does a late second one."""
    world = World(tmp_path, links=2)
    first, second = world.connect(0), world.connect(1)
    world.row(first, OURS + 1)
    world.at_s += 1
    world.cut(first, 0)
    assert not world.is_unknown()
    world.at_s += 1
    world.links[1].note_end(second, world.at_s)
    world.at_s += 0.1
    world.connect(1)  # back before anybody looked
    world.coverage.look()
    assert world.is_unknown()


@in_a_loop
async def test_a_connection_without_a_sign_of_life_vouches_for_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.row(world.connect(), OURS + 1)
    await world.passes(HEARD_WITHIN_S - 1)
    assert not world.is_unknown()
    await world.passes(2)
    assert world.feed.unknown_since_ns == START_NS


@in_a_loop
async def test_one_connection_with_a_sign_of_life_vouches_for_both(tmp_path: Path) -> None:
    world = World(tmp_path, links=2)
    world.row(world.connect(0), OURS + 1)
    world.connect(1)
    world.at_s += HEARD_WITHIN_S + 1
    world.links[1].received_ns = world.now_ns
    world.coverage.look()
    assert not world.is_unknown()


@in_a_loop
async def test_a_feed_without_a_row_is_known_once_its_market_was_seen_at_rest(tmp_path: Path) -> None:
    """What the exchange named first is where it begins; more than that, later, was missed."""
    world = World(tmp_path)
    world.feed.sequence.next_id = None
    world.connect()
    await world.passes(ASK_AFTER_S)
    world.pending[-1](world.feed, Named(500))
    assert not world.is_unknown()
    world.answered.set()
    await world.passes(5)
    await world.passes(5)
    world.pending[-1](world.feed, Named(503))
    assert world.is_unknown()
    await world.passes(1)
    assert world.fetched == [(501, 503)]
