"""Outboxes by their rules, and the whole way from a happening to what people read, on loopback."""

import math
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from channels.bot_api import CHAT, GROUP, TOKEN, BotApi, failure, too_many
from channels.web import Answer, Site
from conftest import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tickcollect.alerts import channels, kept, letters, outbox, post
from tickcollect.alerts.channels import ChannelError, Part
from tickcollect.alerts.incidents import Incidents, Level, Notice
from tickcollect.alerts.outbox import Change, ChannelState, Outbox
from tickcollect.alerts.post import Alerts, Clock
from tickcollect.config import Config

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # imported by apprise

NOON_NS = 1_795_003_200 * 10**9
"""2026-11-18 12:00:00 UTC."""
AGAIN = ChannelError("again", "no answer within 5 s", "Check the network")
UNSURE = ChannelError("again", "no answer within 5 s", unsure=True)


def notice(
    what: str,
    *lines: str,
    kind: str = "gap",
    level: Level = "info",
    files: tuple[Path, ...] = (),
    lost: tuple[tuple[str, int], ...] = (),
) -> Notice:
    """Return a notice of the collector tick1."""
    return Notice(kind, level, f"tick1: {what}", lines, f"tick1/{what}", ended=True, attachments=files, lost=lost)


BTC, ETH = "binance/trade/BTCUSDT", "binance/trade/ETHUSDT"


def lost(symbol: str, count: int) -> Notice:
    """Return a notice of lost IDs, which matters more than any other."""
    lines = (f"IDs of {symbol}: the exchange has them no longer.",)
    feeds = ((f"binance/trade/{symbol}", count),)
    return notice(f"{count} trades lost, {symbol}", *lines, kind="lost", level="error", lost=feeds)


def split(one: Notice) -> list[Part]:
    """Make requests as Telegram's channel does for long texts."""
    return [Part(one, has_text=True), *(Part(one, has_text=False, files=(file,)) for file in one.attachments)]


@dataclass
class Box:
    """An outbox and the clock it lives by."""

    box: Outbox = field(default_factory=lambda: Outbox("tick1", "telegram 1", 1.0, split))
    now_s: float = 1000.0

    @property
    def now_ns(self) -> int:
        """The time of day."""
        return NOON_NS + round((self.now_s - 1000.0) * 1e9)

    def put(self, *notices: Notice) -> None:
        """Put notices in."""
        for one in notices:
            self.box.put(one, self.now_ns)

    def take(self) -> Part:
        """Wait until something is due, and take it."""
        assert self.box.due_s() < math.inf
        self.now_s = max(self.now_s, self.box.due_s())
        return self.box.take(self.now_s, self.now_ns)

    def send(self) -> Part:
        """Take the next part and have it taken."""
        part = self.take()
        self.box.sent_now(self.now_s)
        return part

    def fail(self, error: ChannelError = AGAIN) -> Change | None:
        """Take the next part and have it fail."""
        self.take()
        return self.box.failed(error, self.now_s, self.now_ns)


# --- The outbox ----------------------------------------------------------------------------------------------------


def test_messages_go_out_in_turn_with_a_pause() -> None:
    """What is put in goes out in order, never faster than the channel's pause."""
    box = Box()
    box.put(notice("first"), notice("second"))
    assert box.send().notice.title == "tick1: first"
    assert box.box.due_s() == 1001.0
    assert box.send().notice.title == "tick1: second"
    assert (box.box.due_s(), box.box.state().sent) == (math.inf, 2)


def test_a_failed_message_is_tried_again_with_growing_pauses() -> None:
    """Attempts come after 1, 2, 4 ... and at last 300 seconds, each with the same message while it is fresh."""
    box = Box()
    box.put(notice("first"))
    tried_s = []
    for _ in range(12):
        box.fail()
        tried_s.append(box.now_s)
    pauses = [later - earlier for earlier, later in pairwise(tried_s)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@pytest.mark.parametrize("seconds", [2, 35, 3600])
def test_the_silence_that_a_service_wants_is_kept(seconds: int) -> None:
    """Nothing goes out before the time is over, whatever comes in meanwhile."""
    box = Box()
    box.put(notice("first"))
    box.fail(ChannelError("again", "Telegram wants silence", after_s=seconds))
    box.put(notice("second"))
    assert box.box.due_s() == 1000.0 + seconds
    box.box.hurry(box.now_s, box.now_ns)
    assert box.box.due_s() == 1000.0 + seconds


def test_a_silence_beyond_reason_ends_after_a_day() -> None:
    """A number that no working service would send does not silence the channel for good."""
    box = Box()
    box.put(notice("first"))
    box.fail(ChannelError("again", "silence", after_s=1e12))
    assert box.box.due_s() == 1000.0 + 86_400


def test_after_an_outage_there_is_one_message() -> None:
    """What was held up comes as one message in the order of events, with times and the reason."""
    box = Box()
    box.put(notice("gap filled, BTCUSDT", "15 trades."))
    box.fail(ChannelError("again", "Telegram wants 3600 s of silence", after_s=3600))
    for number in range(4):
        box.now_s += 60
        box.put(notice(f"gap {number}", kind="gap", level="warning" if number == 2 else "info"))
    part = box.send()
    assert part.notice.title == "tick1: 5 messages held up for 1 h"
    assert part.notice.level == "warning"
    assert part.notice.lines == (
        "Not sent since 12:00:00 UTC: Telegram wants 3600 s of silence. In the order of events:",
        "12:00:00 UTC: gap filled, BTCUSDT",
        "15 trades.",
        "12:01:00 UTC: gap 0",
        "12:02:00 UTC: gap 1",
        "12:03:00 UTC: gap 2",
        "12:04:00 UTC: gap 3",
    )
    assert (box.box.waiting, box.box.sent, box.box.dropped) == (0, 1, 0)
    box.put(notice("next"))
    assert box.send().notice == notice("next")


def test_few_held_up_messages_are_told_whole() -> None:
    """Two or three messages come with all their lines; one alone comes as itself, with a word on its delay."""
    box = Box()
    box.put(notice("first", "line 1"))
    box.fail(ChannelError("again", "HTTP 502", after_s=300))
    box.put(notice("second", "line 2"))
    assert box.send().notice.lines[1:] == ("12:00:00 UTC: first", "line 1", "12:00:00 UTC: second", "line 2")
    box.put(notice("third", "line 3"))
    box.fail(ChannelError("again", "HTTP 502", after_s=300))
    late = box.send().notice
    assert late.title == "tick1: third"
    assert late.lines == ("line 3", "From 12:05:00 UTC; it could not be sent before.")


def test_a_long_outage_keeps_what_matters_and_counts_the_news() -> None:
    """Of a thousand messages the loss among the oldest is told whole, and all others are in the counts."""
    box = Box()
    box.put(notice("300 trades lost, BTCUSDT", "IDs 1 to 300.", kind="lost", level="error", lost=((BTC, 300),)))
    box.fail(ChannelError("again", "HTTP 502", after_s=7200))
    for number in range(999):
        box.put(notice(f"gap {number}", "x" * 40, kind="gap"))
        assert box.box.waiting <= 2 * letters.LETTERS_KEPT
    text = box.send().notice
    assert text.title == "tick1: 1,000 messages held up for 2 h"
    assert text.lines[1:] == (
        "12:00:00 UTC: 300 trades lost, BTCUSDT",
        "IDs 1 to 300.",
        "Less important ones are only counted: 199 gap.",
        "Of older messages only the sums are left: 800 gap.",
    )
    assert box.box.dropped == 800
    box.put(notice("next"))
    assert box.send().notice == notice("next")


def test_a_storm_of_losses_while_the_channel_is_down_keeps_the_gravest_and_the_sums() -> None:
    """What there is no room for is joined: how many IDs of which feeds, and the text of the gravest."""
    box = Box()
    box.put(lost("ETHUSDT", 1))
    box.fail(ChannelError("again", "HTTP 502", after_s=7200))
    box.put(lost("SOLUSDT", 5000))
    for _ in range(2 * letters.LETTERS_KEPT):
        box.put(lost("ETHUSDT", 1))
    box.put(notice("stopped", kind="stopped"))
    texts = []
    while box.box.due_s() < math.inf:
        part = box.send()
        assert len("\n".join((part.notice.title, *part.notice.lines))) <= 4096
        texts += [part.notice.title, *part.notice.lines]
    told = "\n".join(texts)
    assert texts[0] == "tick1: 403 messages held up for 2 h"
    assert "5000 trades lost, SOLUSDT" in told
    assert "IDs of SOLUSDT: the exchange has them no longer." in told
    joined = [int(count) for count in re.findall(r"Of older messages only the sums are left: (\d+) lost", told)]
    in_sums = re.search(rf"Lost in these: [\d,]+ IDs of binance/trade/SOLUSDT \(5,000\), {ETH} \((\d+)\)", told)
    assert in_sums is not None
    assert int(in_sums[1]) + 1 == joined[0], "each joined message of ETHUSDT is one ID; one is of SOLUSDT"
    whole = told.count("1 trades lost, ETHUSDT")
    assert whole + joined[0] == 402
    assert told.rstrip().count("UTC: stopped") == 1
    assert box.box.sent <= letters.MESSAGES_TOGETHER


def test_the_text_that_is_kept_is_bounded_in_length_too() -> None:
    """Long messages leave no more in memory than the bound, however few they are."""
    box = Box()
    box.put(notice("first", level="error"))
    box.fail(ChannelError("again", "HTTP 502", after_s=7200))
    for number in range(100):
        box.put(notice(f"gap {number}", *("x" * 900 for _ in range(20)), level="warning"))
    held = box.box.left_over()
    assert sum(letter.length for letter in held) <= letters.BYTES_KEPT + 10_000
    assert held[0].notice.title == "tick1: first"
    assert box.box.waiting + box.box.dropped == 101


def test_what_matters_is_sent_until_the_service_says_that_it_has_it() -> None:
    """However often nobody knows whether it arrived, a loss is tried again; with it goes what came meanwhile."""
    box = Box()
    box.put(lost("BTCUSDT", 308))
    for _ in range(30):
        box.fail(UNSURE)
    box.put(notice("stopped", kind="stopped"))
    texts = []
    while box.box.due_s() < math.inf:
        part = box.send()
        texts += [part.notice.title, *part.notice.lines]
    assert any("308 trades lost, BTCUSDT" in text for text in texts)
    assert any("stopped" in text for text in texts)
    assert (box.box.dropped, box.box.waiting) == (0, 0)


def test_news_that_may_have_arrived_is_sent_once_more_and_not_again() -> None:
    """Two attempts without an answer are all; the next message says that one may be missing or have come twice."""
    box = Box()
    box.put(notice("first"))
    box.fail(UNSURE)
    assert box.take().notice.title == "tick1: first"
    box.box.failed(UNSURE, box.now_s, box.now_ns)
    assert box.box.due_s() == math.inf
    box.put(notice("second", "line"))
    told = box.send().notice
    assert told.title == "tick1: second"
    assert told.lines == (
        "line",
        "From 12:00:01 UTC; it could not be sent before.",
        "1 message got no answer, and may be missing or have come twice.",
    )
    box.put(notice("third"))
    assert box.send().notice == notice("third")
    assert (box.box.sent, box.box.dropped) == (2, 1)


def test_the_time_of_an_outage_does_not_follow_a_clock_that_is_set() -> None:
    """How long messages were held up is measured by a clock that never steps."""
    box = Box()
    box.put(notice("first", level="warning"), notice("second", level="warning"))
    box.fail(ChannelError("again", "HTTP 502", after_s=3600))
    box.now_s += 3600
    part = box.box.take(box.now_s, box.now_ns - 86_400 * 10**9)
    assert part.notice.title == "tick1: 2 messages held up for 1 h"


def test_a_failing_channel_is_reported_once_and_its_end_once() -> None:
    """A short trouble is not reported; one that lasts is, and then once that it is over."""
    box = Box()
    box.put(notice("first"))
    assert box.fail() is None
    assert box.box.state().failing_since_ns is None
    assert box.fail() is None
    assert box.fail() == Change("channel_failed", "no answer within 5 s. Check the network. It is tried again")
    assert box.box.state() == ChannelState("telegram 1", NOON_NS, "no answer within 5 s", 0, 0, 1)
    assert [box.fail() for _ in range(5)] == [None] * 5
    box.take()
    assert box.box.sent_now(box.now_s) == Change("channel_again", "it took none for 4 min 15 s")
    assert box.box.state() == ChannelState("telegram 1", None, "", 1, 0, 0)


def test_a_long_silence_is_reported_at_once() -> None:
    """Where the service wants to be left alone for long, nobody waits for further failures to be told of it."""
    box = Box()
    box.put(notice("first"))
    assert box.fail(ChannelError("again", "Telegram wants 3600 s of silence", after_s=3600)) is not None


def test_a_channel_that_refuses_by_its_own_word_is_tried_again_after_a_day() -> None:
    """What the service said may have been put right: what waits is kept, and goes out when it takes it."""
    box = Box()
    box.put(notice("first", level="warning"), notice("second", level="warning"))
    change = box.fail(ChannelError("dead", "bot was blocked", "Unblock it"))
    assert change is not None
    assert change.detail.startswith("bot was blocked. Unblock it. It is tried again once a day and at each start")
    box.put(notice("third", level="warning"))
    assert box.box.due_s() == 1000.0 + 86_400
    assert box.fail(ChannelError("dead", "bot was blocked", "Unblock it")) is None
    assert box.box.state() == ChannelState("telegram 1", NOON_NS, "bot was blocked", 0, 0, 3)
    part = box.take()
    assert box.now_s == 1000.0 + 2 * 86_400
    assert part.notice.title == "tick1: 3 messages held up for 2 d"
    assert box.box.sent_now(box.now_s) == Change("channel_again", "it took none for 2 d")


def test_at_the_stop_a_channel_that_refuses_is_not_asked_again() -> None:
    """The day is kept at the stop, too: nothing is waited for that cannot succeed."""
    box = Box()
    box.put(notice("first", level="warning"))
    box.fail(ChannelError("dead", "bot was blocked"))
    box.box.hurry(box.now_s, box.now_ns)
    assert box.box.due_s() == 1000.0 + 86_400


def test_a_channel_of_which_it_is_doubtful_who_refuses_is_asked_at_last_once_an_hour() -> None:
    """Pauses grow to an hour, so that a mail server with another password does not lock the machine out."""
    box = Box()
    box.put(notice("first", level="warning"))
    tried_s = []
    for _ in range(16):
        box.fail(ChannelError("doubtful", "535 bad password"))
        tried_s.append(box.now_s)
    assert max(later - earlier for earlier, later in pairwise(tried_s)) == 3600


def test_refused_news_is_let_go_and_reported() -> None:
    """The next message follows; what the refused one said is in the report."""
    box = Box()
    box.put(notice("first"), notice("second"))
    change = box.fail(ChannelError("refused", "can't parse entities"))
    assert change == Change("channel_failed", "one message was given up. can't parse entities. It said: tick1: first")
    assert box.send().notice.title == "tick1: second"
    assert (box.box.sent, box.box.dropped, box.box.failing_since_ns) == (1, 1, None)


def test_what_matters_and_is_refused_goes_by_its_title() -> None:
    """A text that the service does not want is sent as its title only; where that is refused too, it is kept."""
    box = Box()
    box.put(lost("BTCUSDT", 308))
    assert box.fail(ChannelError("refused", "can't parse entities")) is not None
    box.fail(ChannelError("refused", "can't parse entities"))
    assert (box.box.waiting, box.box.dropped) == (1, 0)
    instead = box.send().notice
    assert instead.title == "tick1: a message was refused"
    assert instead.lines[0] == "tick1: 308 trades lost, BTCUSDT"
    assert (box.box.waiting, box.box.dropped) == (0, 0)


def test_a_refused_file_leaves_the_text(tmp_path: Path) -> None:
    """Where a file cannot be sent, people read that instead; the other files follow."""
    files = (tmp_path / "a.csv", tmp_path / "b.csv")
    box = Box()
    box.put(notice("report", "line", files=files))
    assert box.send().has_text
    box.fail(ChannelError("refused", "a.csv cannot be read"))
    instead = box.send()
    assert (instead.notice.title, instead.files) == ("tick1: a file was not sent", ())
    assert instead.notice.lines == ("Not sent with it: a.csv cannot be read.",)
    assert box.send().files == files[1:]
    assert (box.box.waiting, box.box.dropped) == (0, 1)


def test_a_message_that_is_out_in_part_is_not_sent_whole_again(tmp_path: Path) -> None:
    """After an outage between a text and its file, only the file follows."""
    box = Box()
    box.put(notice("report", files=(tmp_path / "a.csv",)), notice("later"))
    assert box.send().has_text
    box.fail(ChannelError("again", "HTTP 502", after_s=500))
    assert box.send().files == (tmp_path / "a.csv",)
    assert box.send().notice.title == "tick1: later"


def test_a_channel_that_moved_is_told_at_its_new_place() -> None:
    """The message goes on to the new place, and one about the configuration follows; endless moving ends."""
    box = Box()
    box.put(notice("first"))
    moved = ChannelError("moved", "the group has the number -9", "Put -9 into TELEGRAM_CHAT_ID")
    assert box.fail(moved) is not None
    assert box.send().notice.title == "tick1: first"
    advice = box.send().notice
    assert advice.lines == ("the group has the number -9. Put -9 into TELEGRAM_CHAT_ID.",)
    box.put(notice("second"))
    for _ in range(outbox.MOVES):
        box.fail(moved)
    assert box.box.due_s() >= box.now_s + 86_400


def test_at_the_stop_everything_goes_as_one_message() -> None:
    """What waits at the end is joined: the newest first, as that is the stop itself."""
    box = Box()
    box.put(notice("gap filled", "15 trades."), notice("stopped", "1,000 rows.", kind="stopped"))
    box.box.hurry(box.now_s, box.now_ns)
    told = box.send().notice
    assert told.title == "tick1: stopped (and 1 more message)"
    assert told.lines == ("1,000 rows.", "12:00:00 UTC: gap filled", "15 trades.")
    assert box.box.due_s() == math.inf


def test_however_many_wait_at_the_stop_its_own_lines_are_told() -> None:
    """The figures of the stop are not left out where the other messages are told by their titles."""
    box = Box()
    for number in range(20):
        box.put(notice(f"gap {number}", "x" * 300))
    box.put(notice("stopped after 7 rows, 308 rows missing", "0 rows fetched; 308 rows missing.", kind="stopped"))
    box.box.hurry(box.now_s, box.now_ns)
    told = box.send().notice
    assert told.title == "tick1: stopped after 7 rows, 308 rows missing (and 20 more messages)"
    assert told.lines[0] == "0 rows fetched; 308 rows missing."


class Life(RuleBasedStateMachine):
    """An outbox of news and of what matters through all that can happen: bounded, patient, true in its counts."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Box()
        self.put_in = self.delivered = self.grave_in = self.grave_told = 0
        self.silent_until_s = 0.0
        self.attempts: Counter[str] = Counter()

    @rule(count=st.integers(1, 150))
    def put(self, count: int) -> None:
        """Put messages in."""
        for _ in range(count):
            self.put_in += 1
            self.life.put(notice(f"number {self.put_in}"))

    @rule(count=st.integers(1, 50))
    def put_grave(self, count: int) -> None:
        """Put messages in that matter; each tells of one lost ID."""
        for _ in range(count):
            self.put_in += 1
            self.grave_in += 1
            self.life.put(lost("BTCUSDT", 1))

    @rule(seconds=st.sampled_from([0.5, 30.0, 200.0, 5000.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.life.now_s += seconds

    def is_due(self) -> bool:
        """Tell whether something can be sent."""
        return self.life.box.due_s() < math.inf

    @precondition(is_due)
    @rule()
    def sent(self) -> None:
        """Have the service take it."""
        self.life.take()
        assert self.life.now_s >= self.silent_until_s
        in_hand, sums = list(self.life.box._in_hand), self.life.box._sums_in_hand.lost.total()
        self.life.box.sent_now(self.life.now_s)
        if not self.life.box._in_hand:
            self.delivered += len(in_hand)
            self.grave_told += sums + sum(bool(letter.notice.lost) for letter in in_hand)

    @precondition(is_due)
    @rule(after_s=st.sampled_from([0.0, 0.0, 5.0, 3600.0]), unsure=st.booleans())
    def failed(self, after_s: float, *, unsure: bool) -> None:
        """Have the service fail."""
        part = self.life.take()
        assert self.life.now_s >= self.silent_until_s
        if unsure:
            numbers = set(re.findall(r"number (\d+)", " ".join((part.notice.title, *part.notice.lines))))
            self.attempts.update(numbers)
        self.life.box.failed(ChannelError("again", "trouble", after_s=after_s, unsure=unsure), self.life.now_s, NOON_NS)
        self.silent_until_s = self.life.now_s + after_s

    @precondition(is_due)
    @rule()
    def refused(self) -> None:
        """Have the service refuse it for ever."""
        self.life.fail(ChannelError("refused", "bad"))
        self.silent_until_s = max(self.silent_until_s, self.life.now_s)

    @invariant()
    def bounded(self) -> None:
        """Hold no more than it may, and know of every message what became of it."""
        box = self.life.box
        assert box.waiting <= 2 * letters.LETTERS_KEPT
        assert self.put_in == self.delivered + box.dropped + box.waiting

    @invariant()
    def patient(self) -> None:
        """Send no news more than twice without an answer."""
        assert max(self.attempts.values(), default=0) <= outbox.SENT_IF_UNSURE

    def teardown(self) -> None:
        """See that at last everything goes out, and that what was lost is told."""
        box = self.life.box
        self.put(1)
        while box.due_s() < math.inf:
            self.sent()
            self.bounded()
        assert not box._sums
        assert self.grave_told == self.grave_in, "a loss was not told, or not in the sums"


Life.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLife = Life.TestCase


# --- From happenings to people -------------------------------------------------------------------------------------


def config(api: BotApi | None = None, hook: Site | None = None, **keys: Any) -> Config:
    """Return the configuration for channels; pauses are those of a private chat unless it is a group."""
    values: dict[str, Any] = {"alert_name": "tick1", "alert_heartbeat_at": None}
    if api is not None:
        values |= {"telegram_token": TOKEN, "telegram_chat_id": CHAT, "telegram_api_url": api.address}
    if hook is not None:
        values["alert_urls"] = [f"json://127.0.0.1:{hook.port}/?rto=2"]
    return Config.model_validate(values | keys)


@dataclass
class Running:
    """Alerts at work, and what they report of their channels."""

    alerts: Alerts
    reports: list[tuple[str, str, str]] = field(default_factory=list)

    def events(self) -> list[tuple[str, str]]:
        """Return the reports without their details."""
        return [(event, channel) for event, channel, _ in self.reports]


@pytest.fixture
def running() -> Iterator[Any]:
    """Make alerts that are stopped with the test."""
    made: list[Running] = []

    def make(
        configured: Config, heartbeat: str = "all is well", clock: Clock | None = None, keep_in: Path | None = None
    ) -> Running:
        reports: list[tuple[str, str, str]] = []

        def report(event: str, channel: str, detail: str) -> None:
            reports.append((event, channel, detail))
            alerts.note(event, channel, {"detail": detail})  # as the collector does, which tells everything

        alerts = Alerts(configured, lambda: (heartbeat,), report, clock)
        one = Running(alerts, reports)
        made.append(one)
        alerts.start()
        if keep_in is not None:
            alerts.keep_in(keep_in)
        return one

    yield make
    for one in made:
        one.alerts.stop(0.5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses short: what is tested is their order, not their length."""
    for module, values in (
        (post, {"LOOK_EVERY_S": 0.01}),
        (outbox, {"RETRY_FIRST_S": 0.02, "RETRY_LONGEST_S": 0.1, "FRESH_S": 0.3}),
        (channels, {"CHAT_PAUSE_S": 0.01, "SERVICE_PAUSE_S": 0.01, "TELEGRAM_TIMEOUT_S": 60.0}),
        ("tickcollect.alerts.incidents", {"COLLECT_S": 0.05}),
    ):
        for name, value in values.items():
            if isinstance(module, str):
                monkeypatch.setattr(f"{module}.{name}", value)
            else:
                monkeypatch.setattr(module, name, value)


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers only shortly, too, for tests in which none comes."""
    monkeypatch.setattr(channels, "TELEGRAM_TIMEOUT_S", 1.0)
    monkeypatch.setattr(channels, "APPRISE_WITHIN_S", 1.0)


CLOCK_WRONG: Mapping[str, object] = {"offset_ms": 900}
LOST: Mapping[str, object] = {"first_id": 7, "last_id": 9, "count": 3, "reason": "history is gone"}
STOPPED: Mapping[str, object] = {"rows": 1000, "missing": 0}


def lose(alerts: Alerts, symbol: str) -> None:
    """Note that rows of a feed are lost, which is always told."""
    feed = f"binance/trade/{symbol}"
    alerts.note("gap", feed, {"first_id": 7, "last_id": 9, "count": 3})
    alerts.note("lost", feed, LOST)


def told_of(hook: Site, word: str) -> bool:
    """Tell whether a webhook was told of something."""
    return any(word.encode() in request.body for request in hook.requests)


@pytest.mark.usefixtures("quick")
def test_a_happening_is_read_on_every_channel(api: BotApi, hook: Site, running: Any) -> None:
    """What is lost is told on all channels, and at the stop that it was stopped."""
    run = running(config(api, hook))
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.messages and hook.requests)
    assert "BTCUSDT" in api.messages[0].text
    assert "7 to 9" in api.messages[0].text
    assert b"BTCUSDT" in hook.requests[0].body
    run.alerts.note("stopped", "tickcollect", STOPPED)
    run.alerts.stop(5)
    assert "stopped" in api.messages[-1].title
    assert b"stopped" in hook.requests[-1].body
    assert [state.failing_since_ns for state in run.alerts.states()] == [None, None]
    assert run.reports == []


@pytest.mark.usefixtures("impatient")
def test_a_channel_that_hangs_delays_no_other(api: BotApi, hook: Site, running: Any) -> None:
    """While a webhook never answers, Telegram gets everything; the failure is told there and in the states."""
    hook.always = Answer(instead="hang")
    run = running(config(api, hook))
    lose(run.alerts, "BTCUSDT")
    until(lambda: any("json 127.0.0.1 (ALERT_URLS[0]) fail" in title for title in api.titles()))
    assert any("BTCUSDT" in message.text for message in api.messages)
    well, ill = run.alerts.states()
    assert (well.failing_since_ns, well.error) == (None, "")
    assert ill.failing_since_ns is not None
    assert ill.sent == 0
    assert run.events() == [("channel_failed", "json 127.0.0.1 (ALERT_URLS[0])")]


@pytest.mark.usefixtures("quick")
def test_an_outage_ends_with_one_message(
    api: BotApi, hook: Site, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Telegram is away its messages wait; when it is back they come as one. Each is reported once."""
    monkeypatch.setattr(outbox, "FRESH_S", 0.0)
    run = running(config(api, hook))
    api.leave()
    for number in range(3):
        lose(run.alerts, f"COIN{number}USDT")
        until(partial(told_of, hook, f"COIN{number}USDT"))
    until(lambda: run.events() == [("channel_failed", f"telegram {CHAT}")])
    api.come_back()
    until(lambda: len(run.reports) == 2 and api.messages)
    assert run.events() == [("channel_failed", f"telegram {CHAT}"), ("channel_again", f"telegram {CHAT}")]
    (message,) = api.messages
    assert re.match(r"tick1: \d+ messages held up for", message.title)
    for number in range(3):
        assert f"COIN{number}USDT" in message.text
    told = [request.body.decode() for request in hook.requests]
    assert sum(f"messages to telegram {CHAT} fail" in text for text in told) == 1
    until(lambda: sum(f"messages to telegram {CHAT} arrive again" in r.body.decode() for r in hook.requests) == 1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "answer",
    [failure(401, "Unauthorized"), failure(404, "Not Found"), failure(403, "Forbidden: bot was blocked by the user")],
)
def test_a_channel_that_refuses_by_its_own_word_is_asked_once_a_day(
    api: BotApi, hook: Site, running: Any, answer: Answer
) -> None:
    """A wrong token or a blocked bot is said once, to the log and on the other channel; what matters is kept."""
    api.always = answer
    run = running(config(api, hook))
    lose(run.alerts, "BTCUSDT")
    until(lambda: run.reports)
    lose(run.alerts, "ETHUSDT")
    until(lambda: any(b"ETHUSDT" in request.body for request in hook.requests))
    assert len(api.requests) == 1
    assert run.events() == [("channel_failed", f"telegram {CHAT}")]
    assert sum(b"messages to telegram" in request.body for request in hook.requests) == 1
    state = run.alerts.states()[0]
    assert (state.dropped, state.waiting) == (0, 2)


@pytest.mark.usefixtures("quick")
def test_retry_after_is_obeyed(api: BotApi, running: Any) -> None:
    """After a 429 with an hour nothing at all is asked, not even at the stop, which does not wait for it."""
    api.always = too_many(3600)
    run = running(config(api))
    lose(run.alerts, "BTCUSDT")
    until(lambda: run.reports)
    run.alerts.note("stopped", "tickcollect", STOPPED)
    run.alerts.stop(3000)
    assert len(api.requests) == 1
    assert [event for event, _, _ in run.reports] == ["channel_failed", "channel_failed"]
    assert "2 messages not sent before the stop" in run.reports[1][2]
    (state,) = run.alerts.states()
    assert (state.sent, state.dropped) == (0, 2)


@pytest.mark.usefixtures("quick")
def test_a_short_retry_after_costs_nothing(api: BotApi, running: Any) -> None:
    """After one 429 the same message follows when the time is over, and nothing is reported."""
    api.scripted.append(too_many(1))
    run = running(config(api))
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.messages)
    assert api.methods() == ["sendMessage", "getMe", "sendMessage"]
    assert run.reports == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["hang", "reset"])
def test_losses_arrive_when_a_server_that_took_messages_without_answering_answers_again(
    api: BotApi, running: Any, how: Any
) -> None:
    """While nobody knows whether they arrived they are repeated, until the server answers."""
    unanswered: list[str] = []

    def take(request: Any) -> Answer:
        if request.path.endswith("getMe"):
            return api._respond(request)
        unanswered.append(request.body.decode())
        return Answer(instead=how)

    api.respond = take
    run = running(config(api))
    lose(run.alerts, "BTCUSDT")
    until(lambda: len(unanswered) > outbox.SENT_IF_UNSURE)
    lose(run.alerts, "ETHUSDT")
    until(lambda: "ETHUSDT" in unanswered[-1])
    api.respond = api._respond
    until(lambda: run.alerts.states()[0].waiting == 0)
    text = "\n".join(message.text for message in api.messages)
    assert text.index("BTCUSDT") < text.index("ETHUSDT")
    assert run.alerts.states()[0].dropped == 0


@pytest.mark.usefixtures("quick")
def test_a_page_of_somebody_on_the_way_is_no_end_of_the_channel(api: BotApi, hook: Site, running: Any) -> None:
    """A proxy's 403 and a login page are an outage, after which everything arrives; the other channel tells of it."""
    api.always = Answer(403, b"<html>Access denied</html>", "text/html")
    run = running(config(api, hook))
    lose(run.alerts, "BTCUSDT")
    until(lambda: run.reports)
    until(partial(told_of, hook, f"messages to telegram {CHAT} fail"))
    api.always = Answer(200, b"<html>Please log in</html>", "text/html")
    before = len(api.requests)
    until(lambda: len(api.requests) > before)
    api.always = None
    until(lambda: any("BTCUSDT" in message.text for message in api.messages))
    until(lambda: run.events() == [("channel_failed", f"telegram {CHAT}"), ("channel_again", f"telegram {CHAT}")])


# --- Across runs ---------------------------------------------------------------------------------------------------


def kept_file(folder: Path) -> Path:
    """Return where a collector keeps what it has not sent."""
    return folder / kept.OF_THE_COLLECTOR


@pytest.mark.usefixtures("quick")
def test_what_was_not_sent_before_a_kill_is_sent_at_the_next_start(api: BotApi, running: Any, tmp_path: Path) -> None:
    """While a channel is away a loss stands on the disk; a run that knows only that disk sends it, with its time."""
    api.leave()
    first = running(config(api), keep_in=tmp_path)
    lose(first.alerts, "BTCUSDT")
    until(lambda: kept_file(tmp_path).exists() and "3 trades lost" in kept_file(tmp_path).read_text("utf-8"))
    left = kept_file(tmp_path).read_bytes()
    first.alerts.stop(0.1)
    after_kill = tmp_path / "next"
    after_kill.mkdir()
    kept_file(after_kill).write_bytes(left)
    api.come_back()
    running(config(api), keep_in=after_kill)
    until(lambda: api.messages)
    (message,) = api.messages
    assert message.title == "tick1: 3 trades lost, binance/trade/BTCUSDT"
    assert "it could not be sent before" in message.text
    until(lambda: not kept_file(after_kill).exists())


@pytest.mark.usefixtures("quick")
def test_a_loss_that_waits_for_company_is_kept_as_well(
    api: BotApi, running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss is on the disk though its message is not due yet, so that a kill in these seconds does not forget it."""
    monkeypatch.setattr("tickcollect.alerts.incidents.COLLECT_S", 3600.0)
    run = running(config(api), keep_in=tmp_path)
    run.alerts.note("lost", BTC, LOST)
    until(lambda: kept_file(tmp_path).exists() and "3 trades lost" in kept_file(tmp_path).read_text("utf-8"))
    assert api.messages == []


@pytest.mark.usefixtures("impatient")
def test_a_stop_while_the_channel_hangs_keeps_what_matters(api: BotApi, running: Any, tmp_path: Path) -> None:
    """The stop is bounded; what was not sent, the stop among it, is sent by the next run."""
    api.always = Answer(instead="hang")
    run = running(config(api), keep_in=tmp_path)
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.requests)
    run.alerts.note("stopped", "tickcollect", STOPPED)
    run.alerts.stop(0.3)
    until(lambda: not run.alerts._thread.is_alive())
    assert "The next start sends 2 of them" in run.reports[-1][2]
    api.always = None
    running(config(api), keep_in=tmp_path)
    until(lambda: api.messages)
    text = api.messages[0].text
    assert text.index("3 trades lost, binance/trade/BTCUSDT") < text.index("stopped after 1,000 rows")


@pytest.mark.usefixtures("quick")
def test_the_kept_file_is_private_and_holds_no_secret(api: BotApi, hook: Site, running: Any, tmp_path: Path) -> None:
    """Neither token nor address stands in it, and nobody else may read it."""
    api.leave()
    hook.always = Answer(500)
    run = running(config(api, hook), keep_in=tmp_path)
    lose(run.alerts, "BTCUSDT")
    until(lambda: len(run.reports) == 2)
    until(lambda: kept_file(tmp_path).exists())
    content = kept_file(tmp_path).read_text("utf-8")
    assert TOKEN.partition(":")[2] not in content
    assert f":{hook.port}" not in content
    assert kept_file(tmp_path).stat().st_mode & 0o077 == 0
    api.come_back()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"channels": 7}', b"\xff" * 100], ids=str)
def test_a_kept_file_that_makes_no_sense_is_put_aside(
    api: BotApi, running: Any, tmp_path: Path, content: bytes
) -> None:
    """It neither ends the alerts nor is it overwritten."""
    kept_file(tmp_path).write_bytes(content)
    run = running(config(api), keep_in=tmp_path)
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.messages)
    damaged = kept_file(tmp_path).with_name(f"{kept.OF_THE_COLLECTOR}.damaged")
    until(damaged.exists)
    assert damaged.read_bytes() == content


HOSTILE_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["letters", "sums", "kinds", "lost", "gravest", "at_ns", "kind", "level", "title", "lines"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(said=HOSTILE_JSON)
def test_whatever_stands_in_a_kept_file_is_taken_up_without_harm(said: Any) -> None:
    """What somebody else wrote there is taken as far as it makes sense, and what waits can be sent."""
    box = Box()
    box.box.take_up(said)
    box.put(notice("next", level="warning"))
    while box.box.due_s() < math.inf:
        box.send()


@given(texts=st.lists(st.text(st.characters(exclude_categories=()), max_size=30), min_size=1, max_size=5))
def test_what_is_written_down_reads_back_the_same(texts: list[str]) -> None:
    """Whatever a message says, its text, time and losses survive the file; what no file can hold is replaced."""
    box = Box()
    box.put(notice(texts[0], *texts, level="error", lost=((BTC, 5),)))
    again = Box()
    again.box.take_up(orjson.loads(orjson.dumps(box.box.as_json())))
    (before,), (after,) = box.box.left_over(), again.box.left_over()
    assert after.at_ns == before.at_ns
    assert after.notice.lost == before.notice.lost
    assert [line.encode("utf-8", "replace") for line in before.notice.lines] == [
        line.encode() for line in after.notice.lines
    ]


@pytest.mark.usefixtures("quick")
def test_a_channel_that_was_corrected_gets_what_its_old_address_did_not(
    api: BotApi, hook: Site, running: Any, tmp_path: Path
) -> None:
    """What waited for a chat that does not exist goes to the chat that took its place, and to no other channel."""
    first = running(config(api, hook, telegram_chat_id="777"), keep_in=tmp_path)
    lose(first.alerts, "BTCUSDT")
    until(lambda: first.reports and hook.requests)
    first.alerts.stop(0.5)
    before = len(hook.requests)
    run = running(config(api, hook), keep_in=tmp_path)
    until(lambda: any("BTCUSDT" in message.text for message in api.messages))
    until(lambda: run.alerts.states()[0].waiting == 0)
    assert not any(b"BTCUSDT" in request.body for request in hook.requests[before:])


@pytest.mark.usefixtures("quick")
def test_an_upload_that_could_not_tell_leaves_it_to_the_collector(
    api: BotApi, running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a short program could not send is sent by a collector that runs beside, once the program is surely gone."""
    api.leave()
    facts = {"sent": 1, "waiting": 3, "waiting_bytes": 5, "reason": "the key is expired"}
    (state,) = post.tell_once(config(api, data_dir=str(tmp_path)), [("upload_failed", "s3://bucket", facts)], 0.5)
    assert "The collector, or the next upload, sends it" in state.error
    assert (tmp_path / kept.OF_THE_UPLOAD).exists()
    monkeypatch.setattr(kept, "OTHERS_AFTER_S", 0.0)
    api.come_back()
    running(config(api), keep_in=tmp_path)
    until(lambda: any("the key is expired" in message.text for message in api.messages))
    until(lambda: not (tmp_path / kept.OF_THE_UPLOAD).exists())


@pytest.mark.usefixtures("quick")
def test_the_next_upload_sends_what_the_last_could_not(api: BotApi, tmp_path: Path) -> None:
    """Without any collector, too, what mattered is sent when the channel works again."""
    api.leave()
    facts = {"sent": 1, "waiting": 3, "waiting_bytes": 5, "reason": "the key is expired"}
    keys = config(api, data_dir=str(tmp_path))
    post.tell_once(keys, [("upload_failed", "s3://bucket", facts)], 0.5)
    api.come_back()
    done = {"files": 3, "bytes": 5, "already": 0, "seconds": 1.0}
    (state,) = post.tell_once(keys, [("upload_done", "s3://bucket", done)], 20.0)
    assert (state.error, state.dropped) == ("", 0)
    text = "\n".join(message.text for message in api.messages)
    assert text.index("the key is expired") < text.index("upload done")
    assert not (tmp_path / kept.OF_THE_UPLOAD).exists()


@pytest.mark.usefixtures("quick")
def test_two_collectors_of_a_directory_keep_their_own_and_take_up_what_a_dead_one_left(
    api: BotApi, running: Any, tmp_path: Path
) -> None:
    """Neither overwrites nor sends what is the other's; what a dead one left is sent by whoever finds it."""
    api.leave()
    first, second = (running(config(api), keep_in=tmp_path) for _ in range(2))
    files = [kept_file(tmp_path), tmp_path / "alerts-waiting-2.json"]
    lose(first.alerts, "BTCUSDT")
    until(lambda: any(file.exists() for file in files))
    lose(second.alerts, "ETHUSDT")
    until(lambda: all(file.exists() and b"trades lost" in file.read_bytes() for file in files))
    texts = [file.read_text("utf-8") for file in files]
    assert sorted("BTCUSDT" in text for text in texts) == [False, True]
    first.alerts.stop(0.1)
    second.alerts.stop(0.1)
    api.come_back()
    running(config(api), keep_in=tmp_path)
    until(lambda: all(any(word in m.text for m in api.messages) for word in ("BTCUSDT", "ETHUSDT")))
    until(lambda: not any(file.exists() for file in files))


@pytest.mark.usefixtures("quick")
def test_a_disk_that_takes_nothing_keeps_no_alert_back(api: BotApi, running: Any, tmp_path: Path) -> None:
    """Where the file cannot be written, messages are sent all the same."""
    gone = tmp_path / "not" / "there"
    run = running(config(api), keep_in=gone)
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.messages)
    assert run.reports == []


@pytest.mark.usefixtures("impatient")
def test_the_stop_is_bounded(api: BotApi, running: Any) -> None:
    """A channel that never answers holds the end no longer than it may; what it did not take is reported."""
    channels_hang = Answer(instead="hang")
    api.always = channels_hang
    run = running(config(api))
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.requests)
    run.alerts.note("stopped", "tickcollect", STOPPED)
    run.alerts.stop(0.3)
    until(lambda: not run.alerts._thread.is_alive())
    assert "not sent before the stop" in run.reports[-1][2]
    assert "stopped" in run.reports[-1][2]


@pytest.mark.usefixtures("quick")
def test_what_waits_at_the_stop_goes_with_it(api: BotApi, running: Any) -> None:
    """Messages that wait at the end are one message with the stop: a group's pause leaves no time for each."""
    run = running(config(api, telegram_chat_id=GROUP))
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.messages)
    lose(run.alerts, "ETHUSDT")
    run.alerts.note("clock_wrong", "binance", CLOCK_WRONG)
    run.alerts.note("stopped", "tickcollect", STOPPED)
    run.alerts.stop(8)
    first, last = api.messages
    assert "stopped" in last.title
    assert last.title.endswith("(and 2 more messages)")
    assert "ETHUSDT" in last.text
    assert last.at_s - first.at_s > 3
    assert run.reports == []


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_comes_with_the_collectors_own_words(api: BotApi, running: Any) -> None:
    """At the time of day that was asked for, people read how it goes."""
    now_ns = NOON_NS - 10**9
    clock = Clock(now_ns=lambda: now_ns)
    run = running(config(api, alert_heartbeat_at="12:00"), "2 feeds, 70 rows/s", clock)
    until(lambda: run.alerts._incidents._heartbeat_ns == NOON_NS)
    now_ns = NOON_NS
    until(lambda: api.messages)
    assert "2 feeds, 70 rows/s" in api.messages[0].text
    assert "heartbeat" in api.messages[0].title


@pytest.mark.usefixtures("quick")
def test_what_is_muted_is_not_sent(api: BotApi, running: Any) -> None:
    """A kind that nobody wants is not told; others are."""
    run = running(config(api, alert_mute=["clock"]))
    run.alerts.note("clock_wrong", "binance", CLOCK_WRONG)
    lose(run.alerts, "BTCUSDT")
    until(lambda: api.messages)
    run.alerts.stop(5)
    assert not any("clock" in message.text for message in api.messages)


@pytest.mark.usefixtures("quick")
def test_a_storm_is_a_few_messages(api: BotApi, running: Any) -> None:
    """Ten thousand happenings of 500 feeds at once become a few messages, and none is left out of their counts."""
    run = running(config(api))
    for number in range(2500):
        feed = f"binance/trade/COIN{number % 500}USDT"
        ids = {"first_id": number * 10, "last_id": number * 10 + 4, "count": 5}
        for event, facts in (
            ("disconnected", {"reason": "reset", "retry_in_s": 1, "remedy": "", "url": "wss://x", "link": "1 of 3"}),
            ("connected", {"url": "wss://x", "streams": 200, "link": "1 of 3"}),
            ("gap", ids),
            ("filled", ids | {"rows": 5, "source": "/api/v3/historicalTrades", "seconds": 0.1}),
        ):
            run.alerts.note(event, "binance" if "connect" in event else feed, facts)
    until(lambda: api.messages and not run.alerts._news)
    run.alerts.note("stopped", "tickcollect", STOPPED)
    run.alerts.stop(20)
    assert len(api.messages) <= 20
    assert "2,500 gaps" in " ".join(message.text for message in api.messages)
    assert run.alerts.states()[0].dropped == 0


@pytest.mark.usefixtures("quick")
def test_what_comes_too_fast_is_counted_and_told(api: BotApi, running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Happenings for which there is no room are told by kind and number."""
    monkeypatch.setattr(post, "NEWS_KEPT", 100)
    monkeypatch.setattr(post, "LOOK_EVERY_S", 3600.0)
    run = running(config(api))
    until(lambda: run.alerts._thread.is_alive() and len(threading.enumerate()) > 1)
    for number in range(250):
        run.alerts.note("gap" if number % 2 else "quiet", "binance/trade/BTCUSDT", {})
    kept = len(run.alerts._news)
    assert kept <= 100
    assert run.alerts._overflow.total() >= 250 - 2 * 100
    counted = run.alerts._overflow.copy()
    run.alerts._tell_overflow()
    told = run.alerts._posters[0].outbox
    assert told.waiting == 1
    (letter,) = told.left_over()
    assert letter.notice.title == f"tick1: {counted.total()} happenings came too fast for messages"


@pytest.mark.usefixtures("quick")
def test_a_mistake_in_here_is_reported_and_stays_here(
    api: BotApi, running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the alerts themselves fail, the log and the states say so, and noting goes on to do no harm."""

    def trip(*_: object) -> None:
        raise ZeroDivisionError(TOKEN)

    monkeypatch.setattr(Incidents, "due", trip)
    run = running(config(api))
    until(lambda: run.reports)
    ((event, channel, detail),) = run.reports
    assert (event, channel) == ("channel_failed", f"telegram {CHAT}")
    said, _, place = detail.partition(": ")
    assert said == "a mistake in tickcollect ended the alerts of this run"
    assert re.fullmatch(r"ZeroDivisionError in \w+\.py, line \d+", place)
    assert run.alerts.states()[0].error == detail
    run.alerts.note("lost", "x", LOST)
    run.alerts.stop(0.1)


def test_facts_are_kept_short(api: BotApi) -> None:
    """A megabyte of text in a fact does not stay in memory while it waits."""
    alerts = Alerts(config(api), lambda: ("",), lambda *_: None)
    alerts.note("lost", "x", {"reason": "r" * 1_000_000, "count": 3})
    (_, _, facts, _, _) = alerts._news[0]
    assert facts == {"reason": "r" * post.TEXT_KEPT, "count": 3}


def test_a_group_gets_no_more_than_it_may(api: BotApi, running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages to a group keep its pause between them, however many wait."""
    monkeypatch.setattr(post, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(channels, "GROUP_PAUSE_S", 0.3)
    run = running(config(api, telegram_chat_id=GROUP))
    for number in range(4):
        run.alerts._posters[0].outbox.put(notice(f"number {number}"), NOON_NS)
    run.alerts._posters[0]._woken.set()
    until(lambda: len(api.messages) == 4)
    times_s = [message.at_s for message in api.messages]
    assert all(later - earlier >= 0.29 for earlier, later in pairwise(times_s))


# --- At once -------------------------------------------------------------------------------------------------------


def test_a_short_program_tells_what_it_did(api: BotApi, hook: Site) -> None:
    """An upload that failed is told at once, on every channel."""
    facts = {"sent": 1, "waiting": 3, "waiting_bytes": 5, "reason": "the key is expired"}
    states = post.tell_once(config(api, hook), [("upload_failed", "s3://bucket", facts)])
    assert [(state.error, state.sent, state.dropped) for state in states] == [("", 1, 0), ("", 1, 0)]
    (message,) = api.messages
    assert "the key is expired" in message.text


FATES: list[tuple[Answer, str, int]] = [
    (failure(401, "Unauthorized"), "Telegram does not know this bot (Unauthorized)", 1),
    (too_many(3600), "Telegram wants 3600 s of silence", 1),
    (failure(400, "Bad Request: strange"), "one message was given up. Telegram refuses this message: Strange", 1),
    (failure(502, "Bad Gateway"), "Telegram is in trouble: Bad Gateway (502)", 1),
]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("answer", "error", "dropped"), FATES)
def test_a_short_program_hears_of_failures(api: BotApi, answer: Answer, error: str, dropped: int) -> None:
    """A channel that fails raises nothing and is told in its state; what has no prospect is not waited for."""
    api.always = answer
    (state,) = post.send_files(config(api), notice("report"), within_s=1.0)
    assert state.error.startswith(error)
    assert (state.sent, state.dropped, state.waiting) == (0, dropped, 0)


def test_a_service_that_hangs_does_not_keep_the_program_alive(hook: Site) -> None:
    """A program ends when it is done, whatever a service still holds: no thread of a library is waited for."""
    hook.always = Answer(instead="hang")
    program = (
        "from tickcollect.alerts import post\n"
        "from tickcollect.alerts.incidents import Notice\n"
        "from tickcollect.config import Config\n"
        f"config = Config.model_validate({{'alert_urls': ['json://127.0.0.1:{hook.port}/?rto=300']}})\n"
        "notice = Notice('report', 'info', 'tick1: report', (), 'tick1/report', True)\n"
        "print(post.send_files(config, notice, within_s=0.5)[0].dropped)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


def test_a_short_program_without_channels() -> None:
    """Nothing is sent where nothing is configured, and a URL that makes no sense raises nothing either."""
    assert post.tell_once(config(), [("upload_done", "x", {})]) == []
    (state,) = post.tell_once(config(alert_urls=["nothing://Pw-planted@x"]), [("upload_done", "x", {})])
    assert state.name == "ALERT_URLS[0]"
    assert "Pw-planted" not in state.error


def test_a_report_arrives_with_its_files(api: BotApi, tmp_path: Path) -> None:
    """A notice with attachments reaches Telegram as documents."""
    table = tmp_path / "report.csv"
    table.write_bytes(b"a\n")
    (state,) = post.send_files(config(api), notice("report", "complete", files=(table,)))
    assert (state.error, state.sent) == ("", 1)
    assert [(message.file_name, message.text) for message in api.messages] == [
        ("report.csv", "tick1: report\ncomplete")
    ]


def test_a_file_that_is_gone_is_told_in_the_text(api: BotApi, tmp_path: Path) -> None:
    """The text arrives without its file and says so; the caller hears of it."""
    (state,) = post.send_files(config(api), notice("report", "complete", files=(tmp_path / "gone.csv",)))
    (message,) = api.messages
    assert message.text.splitlines()[-1] == "Not sent with it: gone.csv cannot be read: No such file or directory."
    assert (state.dropped, state.error[:24]) == (1, "one file was given up. g")
