"""What people are told: which happenings become which messages, how many, and in which words."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from string import Formatter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tickcollect.alerts import incidents as incidents_module
from tickcollect.alerts import missing as missing_module
from tickcollect.alerts.incidents import KINDS, NOTICES, NOTICES_WITHIN_S, Incidents, Notice
from tickcollect.alerts.missing import Missing
from tickcollect.alerts.sorts import EVENTS, SORTS
from tickcollect.alerts.words import clean, counted, duration, names, number, size, span, utc
from tickcollect.config import NOTICE_KINDS
from tickcollect.happenings import HAPPENINGS

BTC = "binance/trade/BTCUSDT"
HISTORY = "/api/v3/historicalTrades"
START_NS = int(datetime(2026, 11, 21, 2, 24, 28, tzinfo=UTC).timestamp()) * 10**9


@dataclass
class Night:
    """A collector's night: a clock that is moved by hand, and what was told."""

    disconnected_s: float = 60.0
    heartbeat_at: str | None = "08:00"
    mute: frozenset[str] = frozenset()
    now_s: float = 1000.0
    told: list[tuple[float, Notice]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.incidents = Incidents("tick1", self.disconnected_s, self.heartbeat_at, self.mute)

    @property
    def now_ns(self) -> int:
        return START_NS + round((self.now_s - 1000.0) * 1e9)

    def note(self, event: str, subject: str, **facts: object) -> None:
        self.incidents.note(event, subject, facts, self.now_s, self.now_ns)

    def passes(self, seconds: float) -> None:
        """Let time pass, asking when `next_due_s` says so."""
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s = min(ends_s, self.now_s + max(0.5, self.incidents.next_due_s(self.now_s)))
            self.told += [(self.now_s, notice) for notice in self.incidents.due(self.now_s, self.now_ns)]

    def ends(self) -> None:
        self.told += [(self.now_s, notice) for notice in self.incidents.finish(self.now_s, self.now_ns)]

    def notices(self) -> list[Notice]:
        """Return what was told since it was asked last."""
        found, self.told = [notice for _, notice in self.told], []
        return found

    def texts(self) -> list[str]:
        return [text_of(notice) for notice in self.notices()]

    def loses(self, *links: int, exchange: str = "binance", reason: str = "the network is unreachable") -> None:
        for link in links:
            facts = {"link": f"{link} of 5", "streams": 100, "reason": reason, "remedy": "", "retry_in_s": 1.0}
            self.note("disconnected", exchange, url="wss://stream.example", **facts)

    def regains(self, *links: int, exchange: str = "binance") -> None:
        for link in links:
            self.note("connected", exchange, url="wss://stream.example", link=f"{link} of 5", streams=100)

    def misses(self, feed: str, first: int, last: int) -> None:
        self.note("gap", feed, first_id=first, last_id=last, count=last - first + 1)

    def fills(self, feed: str, first: int, last: int, rows: int | None = None) -> None:
        rows = last - first + 1 if rows is None else rows
        self.note("filled", feed, first_id=first, last_id=last, rows=rows, source=HISTORY, seconds=0.1)

    def gives_up(self, feed: str, first: int, last: int, reason: str = "the exchange has it no longer") -> None:
        self.note("lost", feed, first_id=first, last_id=last, count=last - first + 1, reason=reason)


def text_of(notice: Notice) -> str:
    """Return a notice as a channel without any markup shows it, with its level and whether it is over."""
    return "\n".join([f"{notice.level}{'' if notice.ended else ', open'} | {notice.title}", *notice.lines])


# --- Tables that must agree ------------------------------------------------------------------------------------------


def test_every_happening_has_a_meaning() -> None:
    """Each event that can be told has a row that says what it is to people, and no row is for nothing."""
    assert set(EVENTS) == set(HAPPENINGS)
    assert {sort for actions in EVENTS.values() for _, sort in actions} | {"unstable"} == set(SORTS)
    assert {sort.kind for sort in SORTS.values()} <= set(KINDS)


def test_titles_ask_for_nothing_but_whose_and_how_many() -> None:
    """A title stands for many troubles, so it has no facts of a single one."""
    for name, sort in SORTS.items():
        for title in (sort.one, sort.many, sort.over, sort.over_many):
            assert {field for _, field, _, _ in Formatter().parse(title) if field} <= {"subject", "n"}, name


def test_kinds_that_can_be_muted_are_those_there_are() -> None:
    """Every kind can be muted but those that somebody asked for a moment ago."""
    assert set(NOTICE_KINDS) == set(KINDS) - {"test", "report"}


FACTS: dict[str, object] = {
    "feeds": 2, "data_dir": "/data", "detail": "a detail", "file": "x.csv", "first_id": 10, "last_id": 20,
    "state": "BREAK", "url": "wss://x", "link": "1 of 1", "streams": 3, "reason": "a reason", "retry_in_s": 1.0,
    "remedy": "A remedy.", "connection": 1, "messages": 5, "copies": 0, "missed": 0, "message": "a message",
    "code": -1, "seconds": 3.5, "exchange_id": 99, "name": "odd", "count": 11, "rows": 11, "source": HISTORY,
    "again_in_s": 5.0, "id": 5, "free_mb": 12, "bytes": 123, "offset_ms": 2500, "now": 7, "was": 6, "store": "s3://b",
    "proof": "sha256", "files": 3, "already": 0, "sent": 1, "waiting": 2, "waiting_bytes": 99, "gaps": 1,
    "missing": 0, "filled": 11, "refused": 0, "since": "2026-11-21T02:00:00Z",
    "kept": "quarantine/x.csv", "of": 40, "until": "2026-11-21T03:00:00Z", "stated": 5,
}  # fmt: skip
"""Facts of every event, by the names that those who tell it use."""


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_no_message_has_a_hole(event: str) -> None:
    """The words of each event ask only for facts that it has."""
    night = Night(disconnected_s=0.0)
    asked = {name for _, name, _, _ in Formatter().parse(HAPPENINGS[event][1]) if name}
    extra = {"upload_done": {"already"}, "upload_failed": {"waiting_bytes"}, "stopped": {"gaps", "filled", "missing"}}
    known = asked | extra.get(event, set()) | {"link", "streams", "reason", "remedy"} & set(FACTS)
    night.note(event, BTC, **{name: FACTS[name] for name in known - {"subject"}})
    night.passes(120)
    night.ends()
    for notice in night.notices():
        assert not {"?", "{", "}"} & set(" ".join((notice.title, *notice.lines)))


# --- One incident, one message ---------------------------------------------------------------------------------------


def test_gap_found_and_filled_is_one_message() -> None:
    """A gap that history fills within the minute is told once, with IDs, count, source and time."""
    night = Night()
    night.misses(BTC, 6652113161, 6652113175)
    night.passes(2)
    night.fills(BTC, 6652113161, 6652113175)
    night.passes(4000)
    assert night.texts() == [
        (
            "info | tick1: gap filled, binance/trade/BTCUSDT\n"
            "15 trades missing, IDs 6652113161 to 6652113175, seen 02:24:28 UTC; all 15 fetched from "
            "/api/v3/historicalTrades in 0.1 s.\n"
            "Nothing of this is missing any more. Nothing to do."
        )
    ]


def test_hole_filled_before_anybody_knew_is_told_the_same_way() -> None:
    """A small hole is filled in place and only its filling is told: that is one message, too."""
    night = Night()
    night.fills(BTC, 7, 7)
    night.passes(4000)
    assert night.texts() == [
        (
            "info | tick1: gap filled, binance/trade/BTCUSDT\n"
            "1 trade missing, ID 7, seen 02:24:28 UTC; 1 fetched from /api/v3/historicalTrades in 0.1 s.\n"
            "Nothing of this is missing any more. Nothing to do."
        )
    ]


def test_ids_that_were_never_published_are_no_loss() -> None:
    """What history shows never to have existed is said to be so, once, whichever way it was found."""
    night = Night()
    night.fills(BTC, 10, 19, rows=8)
    night.note("absent", BTC, first_id=12, last_id=13, count=2)
    night.note("absent", "binance-futures/aggTrade/ETHUSDT", first_id=5, last_id=5, count=1)
    night.passes(10)
    assert night.texts() == [
        (
            "info | tick1: 2 gaps filled in 2 feeds\n"
            "11 rows missing, binance/trade/BTCUSDT (10), binance-futures/aggTrade/ETHUSDT (1), seen 02:24:28 UTC; "
            "8 fetched from /api/v3/historicalTrades, 0.1 s in all; 3 never published by the exchange.\n"
            "Nothing of this is missing any more. Nothing to do."
        )
    ]


def test_gap_that_stays_is_told_as_open_reminded_of_and_ended() -> None:
    """A gap that is open for a minute is told, again after an hour, and its end once; all under one incident."""
    night = Night()
    night.misses(BTC, 100, 249)
    night.note("fill_waits", BTC, first_id=100, last_id=249, detail="HTTP 503 from api.binance.com.", again_in_s=5.0)
    night.passes(3000)
    night.passes(1000)
    night.fills(BTC, 100, 249)
    night.passes(4000)
    notices = night.notices()
    assert [(notice.ended, notice.title) for notice in notices] == [
        (False, "tick1: gap open, binance/trade/BTCUSDT"),
        (False, "tick1: still: gap open, binance/trade/BTCUSDT, for 1 h 1 min"),
        (True, "tick1: gap filled, binance/trade/BTCUSDT"),
    ]
    assert notices[0].lines == (
        "150 trades missing, IDs 100 to 249, seen 02:24:28 UTC; 150 not there yet.",
        "Open: IDs 100 to 249: HTTP 503 from api.binance.com.",
        "It goes on trying to fetch them. Nothing to do.",
    )
    assert notices[2].lines[-1] == "It was open for 1 h 6 min."
    assert len({notice.incident for notice in notices}) == 1


def test_lost_rows_are_told_with_ids_and_reason() -> None:
    """What history has no longer is an error with its IDs and the reason, beside what could be fetched."""
    night = Night()
    night.misses(BTC, 100, 249)
    night.fills(BTC, 100, 199)
    night.gives_up(BTC, 200, 249, "the exchange's history reaches back 48 h only")
    night.passes(10)
    assert night.texts() == [
        (
            "error | tick1: 50 trades lost, binance/trade/BTCUSDT\n"
            "150 trades missing, IDs 100 to 249, seen 02:24:28 UTC; "
            "100 fetched from /api/v3/historicalTrades in 0.1 s.\n"
            "Lost: IDs 200 to 249: the exchange's history reaches back 48 h only.\n"
            "What is lost is not in the files; the journal and the report say so."
        )
    ]


def test_loss_within_a_message_that_goes_on_is_told_at_once() -> None:
    """Lost rows do not wait for the other gaps that were told as open together with theirs."""
    night = Night()
    night.misses(BTC, 1, 10)
    night.misses("binance/trade/ETHUSDT", 1, 10)
    night.passes(120)
    night.notices()
    night.gives_up(BTC, 1, 10)
    night.passes(30)
    [lost] = night.notices()
    assert (lost.kind, lost.level, lost.title) == ("lost", "error", "tick1: 10 trades lost, binance/trade/BTCUSDT")
    night.fills("binance/trade/ETHUSDT", 1, 10)
    night.passes(30)
    [over] = night.notices()
    assert over.ended
    assert "10 fetched" in over.lines[0]
    assert over.lines[1] == "Lost: binance/trade/BTCUSDT, IDs 1 to 10: the exchange has it no longer."


def test_rows_of_a_file_that_is_gone_are_told_at_once_and_when_they_are_back() -> None:
    """A file that was lost is an error of the disk; that its rows were fetched again ends it."""
    night = Night()
    night.note("file_lost", BTC, first_id=1, last_id=500, detail="The open file is gone: somebody removed it.")
    night.passes(5)
    night.fills(BTC, 1, 500)
    night.passes(5)
    assert night.texts() == [
        (
            "error, open | tick1: rows are not safe any more, binance/trade/BTCUSDT\n"
            "The open file is gone: somebody removed it.\n"
            "500 trades missing, IDs 1 to 500, seen 02:24:28 UTC; 500 not there yet.\n"
            "It goes on trying to fetch them. Nothing to do."
        ),
        (
            "info | tick1: gap filled, binance/trade/BTCUSDT\n"
            "The open file is gone: somebody removed it.\n"
            "500 trades missing, IDs 1 to 500, seen 02:24:28 UTC; "
            "all 500 fetched from /api/v3/historicalTrades in 0.1 s.\n"
            "Nothing of this is missing any more. Nothing to do.\n"
            "It was open for 5 s."
        ),
    ]


def test_many_feeds_dropping_together_are_one_message_and_their_return_another() -> None:
    """500 feeds on 5 connections go and come back: two messages, the second with what came of their gaps."""
    night = Night()
    night.loses(1, 2, 3, 4, 5)
    night.passes(200)
    night.regains(1, 2, 3, 4, 5)
    night.passes(1)
    for symbol in range(500):
        night.misses(f"binance/trade/S{symbol}", 1, 15)
    night.passes(4)
    for symbol in range(500):
        night.passes(30 if symbol == 250 else 0)
        night.fills(f"binance/trade/S{symbol}", 1, 15)
    night.passes(4000)
    assert night.texts() == [
        (
            "warning, open | tick1: binance not connected, 500 streams\n"
            "No connection since 02:24:28 UTC (1 min 3 s), 5 connections with 500 streams.\n"
            "the network is unreachable.\n"
            "Until it is connected nobody knows whether rows are missing.\n"
            "It goes on trying, and fetches what is missed. If this lasts, look at this machine's network."
        ),
        (
            "info | tick1: binance connected again after 3 min 20 s\n"
            "Not connected 02:24:28 to 02:27:48 UTC: 5 connections with 500 streams, 5 attempts failed.\n"
            "Missed meanwhile: 500 gaps filled in 500 feeds.\n"
            "7,500 trades missing, binance/trade/S0 (15), binance/trade/S1 (15), binance/trade/S2 (15) and 497 more; "
            "all 7,500 fetched from /api/v3/historicalTrades, 50 s in all.\n"
            "Nothing of this is missing any more. Nothing to do."
        ),
    ]


def test_gaps_that_outlive_the_return_are_told_by_themselves() -> None:
    """The message that a connection is back names what still waits, and the gap has its own message and end."""
    night = Night()
    night.loses(1)
    night.passes(100)
    night.regains(1)
    night.misses(BTC, 1, 10)
    night.passes(200)
    night.fills(BTC, 1, 10)
    night.passes(100)
    notices = night.notices()
    assert [notice.title.removeprefix("tick1: ") for notice in notices] == [
        "binance not connected, 100 streams",
        "binance connected again after 1 min 40 s",
        "gap open, binance/trade/BTCUSDT",
        "gap filled, binance/trade/BTCUSDT",
    ]
    assert notices[1].lines[-1] == "Still waiting for history: 1 feed; you will be told."


def test_short_breaks_are_counted_and_told_once_when_they_are_many() -> None:
    """Breaks shorter than the limit are silent; the sixth within an hour is told, the next twenty are not."""
    night = Night()
    for _ in range(26):
        night.loses(1)
        night.passes(20)
        night.regains(1)
        night.passes(280)
    [often] = night.notices()
    assert often.title == "tick1: binance: the connection breaks often"
    assert often.lines[0] == "6 short breaks within an hour; the last: the network is unreachable."
    assert "26 shorter" in " ".join(night.incidents.heartbeat(night.now_s, night.now_ns, "1 feed").lines)


def test_trouble_that_comes_back_before_its_end_was_told_goes_on() -> None:
    """A connection that is back for a second only was not back: one beginning, one end."""
    night = Night()
    night.loses(1)
    night.passes(100)
    night.regains(1)
    night.passes(2)
    night.loses(1)
    night.passes(100)
    night.regains(1)
    night.passes(100)
    beginning, end = night.notices()
    assert (beginning.ended, end.ended) == (False, True)
    assert beginning.incident == end.incident
    assert end.title == "tick1: binance connected again after 3 min 22 s"


def test_standing_trouble_is_told_reminded_of_and_ended() -> None:
    """A full disk is told at once, after 1 h, 6 h and 24 h, then daily, and when it is over."""
    night = Night()
    night.note("disk_low", "/data", free_mb=900)
    night.passes(75 * 3600)
    night.note("disk_enough", "/data", free_mb=90_000)
    night.passes(60)
    told = [(round((at_s - 1000) / 3600, 1), notice.title) for at_s, notice in night.told]
    assert told == [
        (0.0, "tick1: the disk is nearly full"),
        (1.0, "tick1: still: the disk is nearly full, for 1 h"),
        (6.0, "tick1: still: the disk is nearly full, for 6 h"),
        (24.0, "tick1: still: the disk is nearly full, for 1 d"),
        (48.0, "tick1: still: the disk is nearly full, for 2 d"),
        (72.0, "tick1: still: the disk is nearly full, for 3 d"),
        (75.0, "tick1: the disk has room again"),
    ]
    assert night.told[0][1].lines[0] == "900 MB are free in /data."
    assert night.told[-1][1].lines[0] == "It lasted 3 d 3 h, 2026-11-21 02:24:28 to 2026-11-24 05:24:28 UTC."


def test_trouble_that_was_over_at_once_is_one_message() -> None:
    """What began and ended while its message waited is told as over, with what it was."""
    night = Night()
    night.note("disk_trouble", "disk", detail="No space left on device: /data/x.csv.")
    night.passes(2)
    night.note("disk_again", "disk", detail="it takes rows again")
    night.passes(600)
    assert night.texts() == [
        (
            "info | tick1: the disk takes rows again\n"
            "It lasted 2 s, 02:24:28 to 02:24:30 UTC.\n"
            "It was: No space left on device: /data/x.csv."
        )
    ]


def test_start_after_a_crash_is_one_message() -> None:
    """What was found at the start is told together with the start, however long the recovery takes."""
    night = Night()
    for symbol in range(5):
        night.note("recovered", f"binance/trade/S{symbol}", detail="a torn row of 17 bytes was cut off")
        night.passes(30)
    night.note("started", "tickcollect", feeds=5, data_dir="/data")
    night.passes(100)
    assert night.texts() == [
        (
            "warning | tick1: started after a crash\n"
            "Collecting 5 feeds into /data.\n"
            "Files of 5 feeds were put right:\n"
            "binance/trade/S0: a torn row of 17 bytes was cut off\n"
            "binance/trade/S1: a torn row of 17 bytes was cut off\n"
            "binance/trade/S2: a torn row of 17 bytes was cut off\n"
            "The other 2 are in the log.\n"
            "What is missing is asked for now; what history cannot give, you will be told."
        )
    ]


def test_stop_says_what_is_still_open() -> None:
    """The last message tells the run's figures and names what was not over."""
    night = Night()
    night.note("started", "tickcollect", feeds=1, data_dir="/data")
    night.passes(7500)
    night.notices()
    night.misses(BTC, 1, 15)
    night.note("stopped", "tickcollect", rows=1234567, gaps=3, missing=15, filled=30, copies=0, refused=0)
    night.ends()
    assert night.texts() == [
        (
            "warning | tick1: stopped after 1,234,567 rows, 15 rows missing\n"
            "30 rows fetched from history; 15 rows missing. Ran for 2 h 5 min.\n"
            "Still: gap open, binance/trade/BTCUSDT, for 0 s.\n"
            "The next start fetches what can still be had."
        )
    ]


def test_end_tells_what_waited() -> None:
    """Nothing that waited for its message is forgotten at the end; more than a few become one message."""
    night = Night()
    night.note("contradicted", BTC, id=5)
    night.ends()
    assert [notice.title for notice in night.notices()] == [
        "tick1: an ID came again with other content, binance/trade/BTCUSDT"
    ]
    night = Night()
    for event in ("contradicted", "late_rows", "seal_failed", "clock_stepped"):
        night.note(event, BTC, **FACTS)
    night.note("stopped", "tickcollect", rows=1, gaps=0, missing=0, filled=0, copies=0, refused=0)
    night.ends()
    assert [notice.title for notice in night.notices()] == [
        "tick1: 4 more incidents within a short time",
        "tick1: stopped after 1 row",
    ]


MOMENTS = [
    (
        (
            "upload_failed",
            "s3://ticks/a",
            {"sent": 3, "waiting": 12, "waiting_bytes": 123_456_789, "reason": "No bucket."},
        ),
        (
            "error | tick1: upload failed\n"
            "12 files (123 MB) are not in s3://ticks/a yet, 3 were sent: No bucket.\n"
            "What is not proved to be there stays here. The next run goes on where this one ended; to run it now: "
            "`tickcollect upload`."
        ),
    ),
    (
        ("upload_done", "s3://ticks/a", {"files": 24, "bytes": 1_300_000_000, "already": 0, "seconds": 245.0}),
        (
            "info | tick1: upload done\n"
            "24 files (1.3 GB) were sent to s3://ticks/a in 4 min 5 s; 0 were there before.\n"
            "Everything that is sealed is there, and proved. Nothing to do."
        ),
    ),
    (
        ("limits_changed", "binance", {"was": 6000, "now": 5000}),
        (
            "warning | tick1: binance changed its request limit\n"
            "5,000 request weight a minute; before it was 6,000.\n"
            "The lower one of this and the limit that this version knows is kept to. Nothing to do."
        ),
    ),
    (
        ("state_changed", BTC, {"was": "TRADING", "state": "BREAK"}),
        (
            "warning | tick1: the state of binance/trade/BTCUSDT changed\n"
            "The exchange says BREAK; before it said TRADING.\n"
            "Rows come only while a symbol is TRADING. Take one that is gone for good out of COLLECT."
        ),
    ),
    (
        ("clock_stepped", "this machine", {"seconds": -3600.0}),
        (
            "warning | tick1: this machine's clock was set\n"
            "By -1 h; times of arrival step with it.\n"
            "Trade times are the exchange's own and stay right. Nothing to do if somebody set it on purpose."
        ),
    ),
    (
        ("quarantine_grown", "binance", {"count": 1000}),
        (
            "warning | tick1: more messages were refused, binance\n"
            "1,000 since the start.\n"
            "They are kept in quarantine/ in the data directory. Look there for what they have in common."
        ),
    ),
]


@pytest.mark.parametrize(("news", "text"), MOMENTS, ids=[news[0] for news, _ in MOMENTS])
def test_words(news: tuple[str, str, Mapping[str, object]], text: str) -> None:
    """A moment is told in these words."""
    night = Night()
    event, subject, facts = news
    night.note(event, subject, **facts)
    night.passes(10)
    assert night.texts() == [text]


# --- What is not known ------------------------------------------------------------------------------------------------


def loses_sight(night: Night, *symbols: str, exchange: str = "binance") -> None:
    """Note that it is not known of feeds whether rows are missing, for two minutes already."""
    since = datetime.fromtimestamp((night.now_ns - 120 * 10**9) / 1e9, UTC).isoformat()
    feeds = [f"trade/{symbol}" for symbol in symbols]
    night.note("unknown", exchange, since=since, reason="its connection ended", feeds=feeds)


def test_what_is_unknown_for_long_is_told_with_its_beginning_and_its_end() -> None:
    """After five minutes people hear of which feeds nobody knows whether rows are missing, and later that they do."""
    night = Night()
    loses_sight(night, "BTCUSDT", "ETHUSDT")
    night.passes(299)
    assert night.texts() == []
    night.passes(60)
    night.note("known", "binance", feeds=["trade/BTCUSDT"])
    night.passes(60)
    night.note("known", "binance", feeds=["trade/ETHUSDT"])
    night.passes(60)
    assert night.texts() == [
        (
            "warning, open | tick1: not known whether rows are missing, binance/trade/BTCUSDT, binance/trade/ETHUSDT\n"
            "Not known since 02:22:28 UTC, 2 feeds.\n"
            "its connection ended.\n"
            "Nothing is counted as missing for that time, and nothing is proved. It goes on finding out."
        ),
        (
            "info | tick1: known again whether rows are missing, binance/trade/BTCUSDT, binance/trade/ETHUSDT\n"
            "It was not known 02:22:28 to 02:31:27 UTC.\n"
            "A gap of that time is on record now, and told by itself."
        ),
    ]


def test_what_is_unknown_for_a_moment_is_no_message() -> None:
    """A reconnect that leaves nothing unknown for long is not told."""
    night = Night()
    for _ in range(50):
        loses_sight(night, "BTCUSDT")
        night.passes(200)
        night.note("known", "binance", feeds=["trade/BTCUSDT"])
        night.passes(10)
    assert night.texts() == []


def test_while_an_exchange_is_told_as_away_its_feeds_are_not_told_as_unknown_beside() -> None:
    """One message for the outage, which says so; what is still unknown when it is over is in the message of the end."""
    night = Night()
    night.loses(1)
    loses_sight(night, "BTCUSDT", "ETHUSDT")
    night.passes(3000)
    [away] = night.notices()
    assert "Until it is connected nobody knows whether rows are missing." in away.lines
    night.regains(1)
    night.note("known", "binance", feeds=["trade/BTCUSDT"])
    night.passes(30)
    back, unknown = night.notices()
    assert unknown.title == "tick1: not known whether rows are missing, binance/trade/ETHUSDT"
    assert "Not known yet whether rows are missing: 1 feed." in back.lines
    assert not any("No gap" in line for line in back.lines)


@pytest.mark.parametrize("told", [False, True], ids=["not told yet", "told"])
def test_the_heartbeat_never_says_that_all_is_well_while_something_is_unknown(told: bool) -> None:  # noqa: FBT001 - a row of the table
    """Told or not, an unknown feed is in the title of the heartbeat."""
    night = Night()
    loses_sight(night, "BTCUSDT")
    night.passes(400 if told else 1)
    notice = night.incidents.heartbeat(night.now_s, night.now_ns, "1 feed")
    assert (notice.level, notice.title) == ("warning", "tick1: heartbeat, 1 trouble open and 1 feed unknown")


def test_the_heartbeat_believes_the_collector_that_something_is_wrong() -> None:
    """Where nothing was told and the collector's own state is not well, the heartbeat does not say that it is."""
    night = Night()
    notice = night.incidents.heartbeat(night.now_s, night.now_ns, "1 feed", "the disk is nearly full")
    assert notice.title == "tick1: heartbeat, not all is well"
    assert notice.level == "warning"


def test_a_stop_says_what_is_unknown_and_missing_in_its_title() -> None:
    """The title alone tells that the run did not end well."""
    night = Night()
    loses_sight(night, "BTCUSDT", "ETHUSDT")
    night.note("stopped", "tickcollect", rows=402, gaps=1, missing=18, filled=0)
    night.ends()
    [notice] = night.notices()
    assert notice.title == "tick1: stopped after 402 rows, 18 rows missing, 2 feeds unknown"
    assert notice.level == "warning"
    assert "Not known whether further rows are missing: 2 feeds." in notice.lines


def test_a_start_after_a_kill_says_so_though_no_file_needed_repair() -> None:
    """Without a stop on record the start is told as one after a crash, with the time since when nothing came."""
    night = Night()
    night.note("not_stopped", "tickcollect", detail="its newest row is of 2026-11-21T01:00:00Z, and nothing after it")
    night.note("started", "tickcollect", feeds=5, data_dir="/data")
    night.passes(10)
    assert night.texts() == [
        (
            "warning | tick1: started after a crash\n"
            "Collecting 5 feeds into /data.\n"
            "The run before was not stopped in order: it was killed, or the machine lost power.\n"
            "Its newest row is of 2026-11-21T01:00:00Z, and nothing after it.\n"
            "What is missing is asked for now; what history cannot give, you will be told."
        )
    ]


def test_absence_that_was_seen_once_leaves_the_gap_open() -> None:
    """What history does not have is not called settled before it was asked again."""
    night = Night()
    night.misses(BTC, 1, 10)
    night.note("absence_seen", BTC, first_id=4, last_id=6, count=3)
    night.passes(100)
    [opened] = night.notices()
    assert (opened.kind, opened.ended) == ("gap", False)
    assert any("asked again before that is believed" in line for line in opened.lines)
    night.note("absent", BTC, first_id=4, last_id=6, count=3)
    night.fills(BTC, 1, 3)
    night.fills(BTC, 7, 10)
    night.passes(100)
    [closed] = night.notices()
    assert (closed.kind, closed.ended, closed.level) == ("gap", True, "info")


def test_absence_of_what_is_no_gap_yet_is_no_message() -> None:
    """While rows are awaited in place, nothing is open that could stay open for ever in what people are told."""
    night = Night()
    night.note("absence_seen", BTC, first_id=4, last_id=6, count=3)
    night.passes(4000)
    night.note("stopped", "tickcollect", rows=1, gaps=0, missing=0, filled=0)
    night.ends()
    assert [notice.title for notice in night.notices()] == ["tick1: stopped after 1 row"]


def test_what_is_open_again_is_told_with_its_reason() -> None:
    """IDs that were called absent and are contradicted are a gap again."""
    night = Night()
    night.fills(BTC, 1, 10, rows=8)
    night.passes(100)
    night.notices()
    night.note("reopened", BTC, first_id=4, last_id=5, count=2, reason="history has them now")
    night.passes(100)
    [notice] = night.notices()
    assert notice.title == "tick1: gap open, binance/trade/BTCUSDT"
    assert any("history has them now" in line for line in notice.lines)


def test_a_damaged_file_is_an_error_at_once() -> None:
    """Rows that had been proved and are not there any more do not wait to be told."""
    night = Night()
    night.note("damaged", BTC, file="x.csv.zip", first_id=1, last_id=500, count=500, detail="x.csv.zip is cut short.")
    night.passes(5)
    [notice] = night.notices()
    assert (notice.level, notice.kind) == ("error", "disk")
    assert notice.lines[0] == "x.csv.zip is cut short."


FETCHING = [
    ("outage", "disconnected", {"link": "1 of 1", "streams": 1, "reason": "reset", "remedy": ""}),
    ("silent", "silent", {"seconds": 30, "exchange_id": 7}),
    ("disk", "disk_trouble", {"detail": "The disk is full."}),
    ("gap", "gap", {"first_id": 1, "last_id": 5, "count": 5}),
    ("start", "not_stopped", {"detail": "it left no row"}),
]


@pytest.mark.parametrize(("event", "facts"), [row[1:] for row in FETCHING], ids=[row[0] for row in FETCHING])
def test_without_backfill_no_text_promises_to_fetch(event: str, facts: dict[str, Any]) -> None:
    """Where nothing is fetched from history each text says so, in place of a promise."""
    night = Night()
    night.incidents = Incidents("tick1", 60.0, None, frozenset(), fetches=False)
    night.note(event, "binance" if event == "disconnected" else BTC, **facts)
    night.note("started", "tickcollect", feeds=1, data_dir="/data")
    night.passes(200)
    text = " ".join(night.texts())
    assert "BACKFILL is false" in text
    assert not any(promise in text for promise in ("and fetches", "to fetch them", "is asked for now", "fetched later"))


def test_a_notice_of_a_loss_names_each_feeds_lost_ids_once() -> None:
    """What is lost is in the sums of the first message that tells it, and in no later one."""
    night = Night()
    eth = "binance/trade/ETHUSDT"
    night.misses(BTC, 1, 10)
    night.misses(eth, 1, 10)
    night.passes(120)
    night.notices()
    night.gives_up(BTC, 1, 10)
    night.passes(30)
    assert [notice.lost for notice in night.notices()] == [((BTC, 10),)]
    night.gives_up(eth, 1, 4)
    night.fills(eth, 5, 10)
    night.passes(30)
    lost = Counter(dict(pair for notice in night.notices() for pair in notice.lost))
    assert lost == {eth: 4}


def test_a_loss_that_is_not_told_yet_can_be_asked_for_and_stays_to_be_told() -> None:
    """What would be grave to forget is in words before its time, and is told all the same."""
    night = Night()
    night.gives_up(BTC, 1, 10)
    night.fills("binance/trade/ETHUSDT", 1, 2)
    [untold] = night.incidents.untold(night.now_s, night.now_ns)
    assert (untold.level, untold.kind, untold.lost) == ("error", "lost", ((BTC, 10),))
    night.passes(30)
    assert [notice.lost for notice in night.notices()] == [((BTC, 10),)]
    assert night.incidents.untold(night.now_s, night.now_ns) == []


def test_losses_wait_minutes_and_not_an_hour_however_often_they_come() -> None:
    """The pace of gaps grows with their number; a loss among them is told within five minutes."""
    night = Night()
    for place in range(200):
        night.fills(BTC, place * 10, place * 10 + 2)
        night.passes(60)
    night.notices()
    night.gives_up(BTC, 5000, 5009)
    night.passes(310)
    assert any(notice.kind == "lost" for notice in night.notices())


# --- Once a day ------------------------------------------------------------------------------------------------------


def test_heartbeat_comes_once_a_day_at_its_time() -> None:
    """It is due at 08:00 UTC each day, also after a step of the clock, and tells what was counted since the last."""
    night = Night()
    night.fills(BTC, 1, 10)
    assert not night.incidents.heartbeat_due(START_NS)
    eight_ns = START_NS // (86_400 * 10**9) * 86_400 * 10**9 + 8 * 3600 * 10**9
    assert not night.incidents.heartbeat_due(eight_ns - 1)
    assert night.incidents.heartbeat_due(eight_ns)
    notice = night.incidents.heartbeat(night.now_s, eight_ns, "1 feed, 20 messages/s, 40 GB free")
    assert text_of(notice) == (
        "info | tick1: heartbeat, all is well\n"
        "1 feed, 20 messages/s, 40 GB free\n"
        "Since 02:24:28 UTC: 1 gap, 10 rows fetched from history, none lost.\n"
        "No disconnection.\n"
        "This comes every day. If it does not, look at the machine."
    )
    assert not night.incidents.heartbeat_due(eight_ns + 1)
    assert not night.incidents.heartbeat_due(eight_ns - 10 * 86_400 * 10**9)
    assert night.incidents.heartbeat_due(eight_ns - 9 * 86_400 * 10**9)


def test_heartbeat_claims_nothing_that_the_collector_does_not_know() -> None:
    """With a trouble or a doubt of the collector itself the heartbeat is a warning and says it."""
    night = Night()
    doubt = "it is not known since 02:24:11 UTC whether IDs are missing of BTCUSDT: disconnected"
    notice = night.incidents.heartbeat(night.now_s, night.now_ns, "collecting 1 feed", doubt)
    assert (notice.level, notice.title) == ("warning", "tick1: heartbeat, not all is well")
    assert notice.lines[0] == f"collecting 1 feed; {doubt}"


def test_a_stop_while_disconnected_says_since_when_nothing_is_known() -> None:
    """With no row known to be missing the message of the stop is a warning still, if that is not known."""
    night = Night()
    facts = {"rows": 402, "gaps": 0, "missing": 0, "filled": 0, "unknown": 3, "unknown_since": "2026-11-26T15:02:11Z"}
    night.note("stopped", "tickcollect", **facts)
    night.ends()
    (notice,) = [one for one in night.notices() if one.kind == "stopped"]
    assert notice.level == "warning"
    assert "It is not known since 2026-11-26T15:02:11Z whether rows of 3 feeds are missing." in notice.lines


def test_heartbeat_names_what_is_open_and_lost() -> None:
    """A heartbeat with something open or lost is a warning and says what."""
    night = Night()
    night.note("silent", BTC, seconds=30, exchange_id=77)
    night.gives_up("binance/trade/ETHUSDT", 1, 5)
    night.passes(7200)
    notice = night.incidents.heartbeat(night.now_s, night.now_ns, "1 feed")
    assert (notice.level, notice.title) == ("warning", "tick1: heartbeat, 1 trouble open and 5 rows lost")
    assert "Still: stream is silent, binance/trade/BTCUSDT, for 2 h." in notice.lines


@pytest.mark.parametrize(("at", "mute"), [(None, frozenset()), ("08:00", frozenset({"heartbeat"}))])
def test_heartbeat_that_is_not_wanted_never_comes(at: str | None, mute: frozenset[str]) -> None:
    """Without a time, or muted, there is none."""
    night = Night(heartbeat_at=at, mute=mute)
    assert not any(night.incidents.heartbeat_due(START_NS + hour * 3600 * 10**9) for hour in range(100))


def test_muted_kinds_are_not_told() -> None:
    """What is muted is not told, at its time or at the end; what else comes is."""
    night = Night(mute=frozenset({"gap", "stopped"}))
    night.fills(BTC, 1, 10)
    night.passes(100)
    assert night.notices() == []
    night.gives_up("binance/trade/ETHUSDT", 1, 5)
    night.passes(100)
    assert [notice.kind for notice in night.notices()] == ["lost"]
    night.fills(BTC, 11, 20)
    night.note("stopped", "tickcollect", rows=1, gaps=0, missing=0, filled=0, copies=0, refused=0)
    night.ends()
    assert night.notices() == []


# --- Storms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", sorted(set(EVENTS) - {"stopped", "connected", "disk_again"}))
def test_storm_of_one_kind_is_one_message(event: str) -> None:
    """Ten thousand of the same within a second are at most one message, whatever they are, and its end another."""
    night = Night()
    for number_ in range(10_000):
        facts = {**FACTS, "first_id": number_ * 100, "last_id": number_ * 100 + 10, "id": number_}
        night.note(event, f"binance/trade/S{number_ % 500}", **facts)
        night.now_s += 0.0001
    night.passes(3000)
    assert len(night.notices()) <= 1
    assert night.incidents._day is not None
    assert night.incidents._day.events[event] == 10_000


def test_storm_of_all_kinds_stays_within_the_bound() -> None:
    """Ten thousand happenings of every kind: a few messages, errors singly first, and one digest for the rest."""
    night = Night()
    events = sorted(set(EVENTS) - {"stopped"})
    for number_ in range(10_000):
        night.note(events[number_ % len(events)], f"binance/trade/S{number_ % 500}", **FACTS)
        night.now_s += 0.0001
    night.now_s += 5
    notices = night.incidents.due(night.now_s, night.now_ns)
    levels = [notice.level for notice in notices[:-1]]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)
    night.passes(600)
    notices += night.notices()
    assert len(notices) <= NOTICES
    digests = [notice for notice in notices if "more incidents" in notice.title]
    assert len(digests) == 1
    assert any("were refused" in line for line in digests[0].lines)


def test_bound_holds_however_many_sorts_there_are() -> None:
    """With every sort of moment every ten seconds, no ten minutes have more than twenty messages."""
    night = Night()
    sorts = sorted(event for event, actions in EVENTS.items() for action, _ in actions if action == "moment")
    for _ in range(120):
        for event in sorts:
            night.note(event, "binance", **FACTS)
        night.passes(10)
    night.passes(4000)
    sent_s = [at_s for at_s, _ in night.told]
    assert max(sum(at_s - NOTICES_WITHIN_S < before <= at_s for before in sent_s) for at_s in sent_s) == NOTICES
    text = " ".join(line for notice in night.notices() for line in (notice.title, *notice.lines))
    assert "more incidents within a short time" in text


def test_gap_that_begins_as_another_ends_goes_on_under_its_incident() -> None:
    """A feed's new gap that is told while the end of its last one waits continues that incident: it ends once."""
    night = Night()
    night.misses(BTC, 1, 1)
    night.passes(100)
    night.misses(BTC, 5, 5)
    night.note("absent", BTC, first_id=1, last_id=1, count=1)
    night.now_s += 100
    night.told += [(night.now_s, notice) for notice in night.incidents.due(night.now_s, night.now_ns)]
    night.fills(BTC, 5, 5)
    night.passes(100)
    first, second, last = night.notices()
    assert first.incident == second.incident == last.incident
    assert [notice.ended for notice in (first, second, last)] == [False, False, True]
    assert last.title == "tick1: 2 gaps filled, binance/trade/BTCUSDT"


def test_holes_beyond_those_kept_are_counted() -> None:
    """Of very many open gaps of one feed some are kept, and the others are said to be in the journal."""
    night = Night()
    for number_ in range(60):
        night.misses(BTC, number_ * 10, number_ * 10)
    night.passes(100)
    [notice] = night.notices()
    assert notice.title == "tick1: 50 gaps open, binance/trade/BTCUSDT"
    assert "Not counted here: 10 further gaps; the journal has each." in notice.lines


def test_feeds_beyond_those_kept_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more feeds than are kept the first are named, and every happening is in the count."""
    monkeypatch.setattr(incidents_module, "TROUBLES_KEPT", 2)
    night = Night()
    for number_ in range(5):
        night.note("contradicted", f"binance/trade/S{number_}", id=number_)
    night.passes(10)
    [notice] = night.notices()
    assert notice.title == ("tick1: 5 IDs came again with other content: binance/trade/S0, binance/trade/S1 and 3 more")


def test_gap_that_is_filled_in_very_many_places_stays_small() -> None:
    """A hole that is filled piece by piece is kept as a bounded number of ranges, and no ID is counted twice."""
    account = Missing(BTC)
    account.opened(0, 9999)
    for place in range(1000):
        account.filled(place * 10, place * 10, 1, HISTORY, 0.0)
    assert len(account.open) <= 2 * missing_module.HOLES_KEPT
    assert account.uncounted > 0
    assert account.ids == account.rows + account.still_missing


def test_what_comes_again_and_again_is_told_more_and_more_seldom() -> None:
    """A gap every ten seconds all day is told a few times an hour at most, and none goes uncounted."""
    night = Night()
    for second in range(0, 86_400, 10):
        night.fills(BTC, second * 10, second * 10 + 4)
        night.passes(10)
    night.passes(4000)
    told = night.notices()
    assert len(told) < 40
    assert sum(gaps_in(notice) for notice in told) == 8640


def gaps_in(notice: Notice) -> int:
    """Return of how many gaps a message tells."""
    first = notice.title.removeprefix("tick1: ").split(" ")[0].replace(",", "")
    return int(first) if first.isdigit() else 1


# --- Anything may come -----------------------------------------------------------------------------------------------

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.lists(st.text(max_size=5), max_size=6),
    st.sampled_from(
        [
            "\x00\n\r\u202e\ud800<b>{x}%s",
            "x" * 100_000,
            "{subject}",
            "IDs\u2028two lines",
            10**400,
            float("nan"),
            float("inf"),
        ]
    ),
)


def assert_plain(notice: Notice) -> None:
    """Check that a notice is short text of printable lines, of a known kind."""
    assert notice.kind in KINDS
    assert len(notice.lines) < 150
    for line in (notice.title, *notice.lines):
        assert 0 < len(line) < 1500
        assert line == line.strip()
        line.encode("utf-8")
        assert line.isprintable(), line


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    news=st.lists(
        st.tuples(
            st.sampled_from([*EVENTS, "of tomorrow"]),
            st.text(max_size=20),
            st.dictionaries(st.sampled_from(sorted(FACTS)), HOSTILE, max_size=8),
        ),
        max_size=30,
    )
)
def test_hostile_facts_become_plain_text(news: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Whatever the facts hold, messages are printable single lines of bounded length, and nothing raises."""
    night = Night()
    for event, subject, facts in news:
        night.incidents.note(event, subject, {**FACTS, **facts}, night.now_s, night.now_ns)
    night.passes(400)
    night.ends()
    for notice in night.notices():
        assert_plain(notice)
    assert_plain(night.incidents.heartbeat(night.now_s, night.now_ns, "x\ny\x00" * 1000))


@pytest.mark.parametrize("value", [10**400, -(10**30), float("nan"), float("inf"), None, [], {}])
def test_values_beyond_reason_become_plain_text(value: object) -> None:
    """Numbers that no fact can have, and what is no number, are told without an error."""
    for event in EVENTS:
        night = Night(disconnected_s=0.0)
        night.incidents.note(event, BTC, dict.fromkeys(FACTS, value), night.now_s, night.now_ns)
        night.passes(100)
        night.ends()
        for notice in night.notices():
            assert_plain(notice)


class Storms(RuleBasedStateMachine):
    """Happenings in any order and at any pace, few of a kind being kept, against what always holds."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = (incidents_module.TROUBLES_KEPT, missing_module.HOLES_KEPT, incidents_module.GROUPS_KEPT)
        incidents_module.TROUBLES_KEPT, missing_module.HOLES_KEPT, incidents_module.GROUPS_KEPT = 3, 3, 2
        self.night = Night(heartbeat_at=None)
        self.sent_s: deque[float] = deque()
        self.opened: dict[str, Notice] = {}
        self.ended: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        compose = self.night.incidents._message

        def message(topic: Any, troubles: Any, telling: Any, incident: str) -> Any:
            told = compose(topic, troubles, telling, incident)
            self.counted[topic.name] += told.count
            return told

        self.night.incidents._message = message  # type: ignore[method-assign] # counts what is said

    @rule(
        event=st.sampled_from(sorted(set(EVENTS) - {"stopped", "filled", "absent", "lost", "gap"})),
        symbol=st.integers(0, 9),
        link=st.integers(1, 3),
    )
    def happens(self, event: str, symbol: int, link: int) -> None:
        """Anything happens to some feed or connection."""
        subject = "binance" if event in ("connected", "disconnected", "cannot_connect") else f"binance/trade/S{symbol}"
        self.night.note(event, subject, **{**FACTS, "link": f"{link} of 3"})
        for action, sort in EVENTS[event]:
            if action == "moment" and sort != "started":
                self.noted[sort] += 1

    @rule(
        event=st.sampled_from(["gap", "gap", "filled", "filled", "absent", "lost"]),
        symbol=st.integers(0, 9),
        first=st.integers(0, 60),
        count=st.integers(1, 30),
        rows=st.integers(0, 30),
    )
    def hole(self, event: str, symbol: int, first: int, count: int, rows: int) -> None:
        """Open, fill or lose a range of IDs; ranges overlap as they like."""
        facts = {**FACTS, "first_id": first, "last_id": first + count - 1, "rows": rows}
        self.night.note(event, f"binance/trade/S{symbol}", **facts)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 30.0, 70.0, 700.0, 4000.0, 30_000.0]))
    def passes(self, seconds: float) -> None:
        """Time passes, and what is due is told."""
        self.night.passes(seconds)
        self.look()

    @rule(seconds=st.sampled_from([0.0, 2.0, 100.0, 4000.0]))
    def sleeps(self, seconds: float) -> None:
        """Time passes and nobody asks; then everything is due at once."""
        self.night.now_s += seconds
        self.night.told += [
            (self.night.now_s, notice) for notice in self.night.incidents.due(self.night.now_s, self.night.now_ns)
        ]
        self.look()

    def look(self) -> None:
        """Check what was told since the last look."""
        for at_s, notice in self.night.told:
            assert_plain(notice)
            self.sent_s.append(at_s)
            while self.sent_s[0] <= at_s - NOTICES_WITHIN_S:
                self.sent_s.popleft()
            assert len(self.sent_s) <= NOTICES, "more messages than the bound"
            assert not self.ended[notice.incident], "told after its end"
            if notice.ended:
                self.ended[notice.incident] += 1
                self.opened.pop(notice.incident, None)
            else:
                self.opened[notice.incident] = notice
        self.night.told.clear()

    @invariant()
    def memory_is_bounded(self) -> None:
        """Never more is kept than the limits say."""
        for topic in self.night.incidents._topics.values():
            troubles = [*topic.waiting.values(), *(one for group in topic.groups for one in group.troubles.values())]
            assert len(troubles) <= incidents_module.TROUBLES_KEPT + 1
            assert len(topic.groups) <= incidents_module.GROUPS_KEPT
            assert sum(group.open for group in topic.groups) == len(topic.standing())
            for one in troubles:
                if one.account is not None:
                    account = one.account
                    assert len(account.open) <= 2 * missing_module.HOLES_KEPT
                    assert account.ids == account.rows + account.absent + account.lost + account.still_missing

    def teardown(self) -> None:
        """Once all troubles are over, each that was told is ended, and each moment was counted in some message."""
        try:
            for symbol in range(10):
                feed = f"binance/trade/S{symbol}"
                for event in (
                    "data_again",
                    "disk_again",
                    "files_again",
                    "feed_taken_up",
                    "disk_enough",
                    "clock_offset",
                    "known",
                ):
                    self.night.note(event, feed, **{**FACTS, "link": "1 of 3"})
                    self.night.note(event, feed, **{**FACTS, "link": "2 of 3"})
                    self.night.note(event, feed, **{**FACTS, "link": "3 of 3"})
                self.night.fills(feed, 0, 1000)
            self.night.regains(1, 2, 3)
            for link in (1, 2, 3):
                self.night.note("connected", "binance", **{**FACTS, "link": f"{link} of 3"})
            self.night.passes(30_000)
            self.look()
            assert not self.opened, "told as open and never ended"
            assert {sort: self.counted[sort] for sort in self.noted} == self.noted
        finally:
            incidents_module.TROUBLES_KEPT, missing_module.HOLES_KEPT, incidents_module.GROUPS_KEPT = self.kept


TestStorms = Storms.TestCase
TestStorms.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["opened", "filled", "absent", "lost"]),
            st.integers(0, 40),
            st.integers(1, 20),
            st.integers(0, 20),
        ),
        max_size=20,
    )
)
def test_account_of_what_is_missing_agrees_with_a_set(steps: list[tuple[str, int, int, int]]) -> None:
    """Every ID of every hole is settled once: the account agrees with a set of IDs kept beside it."""
    account, open_ids = Missing(BTC), set[int]()
    total = fetched = absent = lost = 0
    for what, first, count, rows in steps:
        last = first + count - 1
        ids = set(range(first, last + 1))
        if what == "opened":
            total += len(ids - open_ids)
            open_ids |= ids
            account.opened(first, last)
            continue
        settled = len(ids & open_ids)
        open_ids -= ids
        if what == "filled":
            account.filled(first, last, rows, HISTORY, 0.1)
            fetched += min(rows, settled)
            absent += settled - min(rows, settled)
        elif what == "absent":
            assert account.never_published(first, last) == settled
            absent += settled
        else:
            assert account.gone(first, last, "too old") == settled
            lost += settled
    assert (account.ids, account.still_missing, account.rows) == (total, len(open_ids), fetched)
    assert (account.absent, account.lost) == (absent, lost)


# --- Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.1, "0.1 s"), (9.96, "10 s"), (59.4, "59 s"), (60, "1 min"), (192, "3 min 12 s"),
        (3600, "1 h"), (7500, "2 h 5 min"), (86_400, "1 d"), (273_600, "3 d 4 h"), (-5, "-5 s"),
        (float("nan"), "an unknown time"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """Durations have two units at most."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_300_000, "1.3 MB"), (24e9, "24 GB"), (999_600, "1.0 MB")],
)
def test_sizes(count: float, text: str) -> None:
    """Sizes are in powers of a thousand with two digits or more."""
    assert size(count) == text


def test_times_and_names() -> None:
    """Times are UTC, with a date where it is another; names and counts are shortened."""
    assert utc(START_NS, START_NS) == "02:24:28 UTC"
    assert utc(START_NS, START_NS + 86_400 * 10**9) == "2026-11-21 02:24:28 UTC"
    assert span(START_NS, START_NS + 10**9, START_NS) == "02:24:28 to 02:24:29 UTC"
    assert span(START_NS, START_NS + 86_400 * 10**9, START_NS) == ("2026-11-21 02:24:28 to 2026-11-22 02:24:28 UTC")
    assert span(START_NS, START_NS + 10**9, START_NS + 86_400 * 10**9) == "2026-11-21 02:24:28 to 02:24:29 UTC"
    assert names(["A", "B", "C", "D"], 500) == "A, B, C and 497 more"
    assert (counted(1, "gap"), counted(1200, "gap"), number(10**30)) == (
        "1 gap",
        "1,200 gaps",
        "a number beyond reason",
    )


@given(st.text(), st.integers(1, 50))
def test_foreign_text_is_one_printable_line(text: str, longest: int) -> None:
    """Whatever text comes from outside is cleaned and cut."""
    shown = clean(text, longest)
    assert len(shown) <= longest
    shown.encode("utf-8")
    assert shown.isprintable()
