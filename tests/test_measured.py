"""What is measured beside the rows: counted, written, read again."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcollect.journal import MAX_LINE
from tickcollect.measured import LARGEST_US, SMALLEST_US, Measured, Meter, read_days

DAY_S = 1_795_132_800  # 2026-11-20T00:00:00Z
DAY = "2026-11-20"
FEED = "binance/trade/BTCUSDT"


@dataclass
class FakeLink:
    connected: bool = True


@dataclass
class Bench:
    """A clock that stands until it is moved, and what it drives."""

    measured: Measured
    meter: Meter
    links: list[FakeLink]
    now_s: float

    def run(self, seconds: float) -> None:
        """Look every second for some seconds."""
        for _ in range(round(seconds)):
            self.now_s += 1
            self.measured.look(self.now_s)


def bench(folder: Path, start_s: float = DAY_S, links: int = 1) -> Bench:
    meter, carriers = Meter(), [FakeLink() for _ in range(links)]
    made: list[Bench] = []
    measured = Measured(
        folder, {FEED: meter}, [(link, [meter]) for link in carriers], time_ns=lambda: int(made[0].now_s * 1e9)
    )
    made.append(Bench(measured, meter, carriers, start_s))
    measured.look(start_s)
    return made[0]


def lines(folder: Path, day: str = DAY) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "measured" / f"{day}.jsonl").read_text("utf-8").splitlines()]


@given(st.integers(SMALLEST_US, LARGEST_US), st.sampled_from((1, -1)))
def test_latency_is_known_to_five_percent(latency_us: int, sign: int) -> None:
    """The middle of a bucket is within 5 % of every latency that falls into it, on either side of zero."""
    meter = Meter()
    meter.take(sign * latency_us * 1000, 0, 0, 1)
    measured = Measured(Path(), {FEED: meter}, [], time_ns=lambda: 1)
    measured.look(0)
    measured.cut(1)
    (found,) = measured._waiting[0].latency_ms
    assert found == pytest.approx(sign * latency_us / 1000, rel=0.05)


@pytest.mark.parametrize("unit", [1, 1000], ids=["ms", "us"])
def test_latency_of_either_unit(tmp_path: Path, unit: int) -> None:
    """Event times in microseconds give the same latency as in milliseconds."""
    bed = bench(tmp_path)
    event = DAY_S * 1000
    bed.meter.take((event + 12) * 1_000_000, event * unit, event * unit, 1)
    bed.measured.cut(bed.now_s + 1)
    bed.measured.close()
    (found,) = read_days(tmp_path, [DAY]).feeds.values()
    assert found.latency_at(0.5) == pytest.approx(12, rel=0.05)


def test_half_of_a_read_counts_with_its_first_message_half_with_its_last(tmp_path: Path) -> None:
    """Of five rows read together, three have the first one's latency and two the last one's."""
    bed = bench(tmp_path)
    event = DAY_S * 1000
    bed.meter.take((event + 100) * 1_000_000, event, event + 90, 5)
    bed.measured.cut(bed.now_s + 1)
    bed.measured.close()
    (found,) = read_days(tmp_path, [DAY]).feeds.values()
    assert found.rows == 5
    assert sorted(found.latency_ms.values()) == [2, 3]
    assert found.latency_at(0.4) == pytest.approx(10, rel=0.05)
    assert found.latency_at(0.5) == found.latency_at(1.0) == pytest.approx(100, rel=0.05)


def test_rows_of_history_have_no_latency() -> None:
    """A row without an event time is counted and tells nothing of latency."""
    meter = Meter()
    meter.take(1, "", "", 3)
    assert (meter.rows, meter.buckets) == (3, {})


def test_clock_behind_the_exchange_gives_negative_latency(tmp_path: Path) -> None:
    """A machine whose clock is slow receives messages before they were sent, and the median says so."""
    bed = bench(tmp_path)
    event = DAY_S * 1000
    for _ in range(3):
        bed.meter.take((event - 40) * 1_000_000, event, event, 1)
    bed.meter.take((event + 40) * 1_000_000, event, event, 1)
    bed.measured.cut(bed.now_s + 1)
    bed.measured.close()
    (found,) = read_days(tmp_path, [DAY]).feeds.values()
    assert found.latency_at(0.5) == pytest.approx(-40, rel=0.05)
    assert found.latency_at(0.99) == pytest.approx(40, rel=0.05)


def test_lines_are_cut_at_full_ten_minutes(tmp_path: Path) -> None:
    """A collector started at 09:47:00 writes its first line at 09:50 and its second at 10:00, for hour 9."""
    bed = bench(tmp_path, DAY_S + (9 * 60 + 47) * 60)
    bed.run(13 * 60)
    bed.measured.write()
    first, second = lines(tmp_path)
    assert (first["since"], first["seconds"]) == ("2026-11-20T09:47:00Z", 180.0)
    assert (second["since"], second["seconds"]) == ("2026-11-20T09:50:00Z", 600.0)
    found = read_days(tmp_path, [DAY]).feeds[DAY, FEED]
    assert found.seconds == found.connected_s == found.connected_by_hour_s[9] == 780
    assert found.connected_until_s == 10 * 3600
    bed.measured.close()


def test_midnight_begins_another_file(tmp_path: Path) -> None:
    """The ten minutes before midnight are in the old day's file, those after it in the new day's."""
    bed = bench(tmp_path, DAY_S - 300)
    bed.run(900)
    bed.measured.close()
    assert [line["since"] for line in lines(tmp_path, "2026-11-19")] == ["2026-11-19T23:55:00Z"]
    assert [line["since"] for line in lines(tmp_path)] == ["2026-11-20T00:00:00Z"]
    assert read_days(tmp_path, ["2026-11-19"]).feeds["2026-11-19", FEED].connected_until_s == 86_400


def test_feed_is_connected_while_any_of_its_connections_is(tmp_path: Path) -> None:
    """Two connections carry a feed for ten seconds, one for five, none for three: it was connected for fifteen."""
    bed = bench(tmp_path, links=2)
    bed.run(10)
    bed.links[0].connected = False
    bed.run(5)
    bed.links[1].connected = False
    bed.run(3)
    assert bed.meter.connected_s == 15
    bed.measured.cut(bed.now_s)
    bed.measured.close()
    assert read_days(tmp_path, [DAY]).feeds[DAY, FEED].seconds == 18


def test_days_add_up_over_restarts(tmp_path: Path) -> None:
    """What two runs measured on one day is added up."""
    for start_s in (DAY_S, DAY_S + 50_000):
        bed = bench(tmp_path, start_s)
        bed.run(20)
        bed.meter.reconnects += 1
        bed.meter.take(bed.measured.time_ns(), round(bed.now_s * 1000) - 5, 0, 1)
        bed.measured.cut(bed.now_s)
        bed.measured.close()
    found = read_days(tmp_path, [DAY]).feeds[DAY, FEED]
    assert (found.rows, found.reconnects, found.seconds, found.connected_s) == (2, 2, 40, 40)
    assert found.connected_until_s == 50_020


def test_latencies_of_every_size_are_kept(tmp_path: Path) -> None:
    """A feed whose latencies fill every bucket takes several lines, none too long, which add up to its rows."""
    bed = bench(tmp_path)
    latency_ms = 0.05
    while latency_ms < LARGEST_US / 500:
        for sign in (1, -1):
            bed.meter.take(round((DAY_S * 1000 + sign * latency_ms) * 1e6), DAY_S * 1000, 0, 10**9)
        latency_ms *= 1.02
    rows = bed.meter.rows
    bed.measured.cut(bed.now_s + 1)
    bed.measured.close()
    text = (tmp_path / "measured" / f"{DAY}.jsonl").read_text("utf-8")
    assert max(map(len, text.splitlines())) < MAX_LINE
    found = read_days(tmp_path, [DAY]).feeds[DAY, FEED]
    assert sum(found.latency_ms.values()) == found.rows == rows
    assert found.seconds == 1


def test_torn_and_foreign_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    """A line torn by a kill, one of something else and one with a wrong hour are counted, the others are read."""
    bed = bench(tmp_path)
    bed.run(600)
    bed.measured.close()
    path = tmp_path / "measured" / f"{DAY}.jsonl"
    good = path.read_bytes()
    wrong = good.replace(b"T00:00:00Z", b"T77:00:00Z")
    path.write_bytes(good + b'{"at":"2026-11-20T00:00:00Z","event":"started"}\n' + wrong + good + good[:50])
    found = read_days(tmp_path, [DAY])
    assert found.damaged == 3
    assert found.feeds[DAY, FEED].seconds == 1200


def test_disk_that_refuses_keeps_the_lines_waiting(tmp_path: Path) -> None:
    """Lines that cannot be written wait with the reason, and are written once the disk takes them."""
    bed = bench(tmp_path)
    (tmp_path / "measured").write_text("in the way", "utf-8")
    bed.run(600)
    bed.measured.write()
    assert "measured" in bed.measured.refused
    (tmp_path / "measured").unlink()
    bed.measured.write()
    assert bed.measured.refused == ""
    assert len(lines(tmp_path)) == 1
    bed.measured.close()


def test_nothing_measured(tmp_path: Path) -> None:
    """A day without a file has no readings; a collector that never looked has no lines."""
    measured = Measured(tmp_path, {FEED: Meter()}, [], time_ns=lambda: 1)
    measured.cut(1)
    measured.close()
    assert list(tmp_path.iterdir()) == []
    assert read_days(tmp_path, [DAY]).feeds == {}
    assert Meter().buckets == {}
