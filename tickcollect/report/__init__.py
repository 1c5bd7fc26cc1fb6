"""The data-quality report: what was collected on some UTC days, whether it is all there, and what is missing and why.

    data/ (file names, journal, measured) ──record──▶ what is known ──proof──▶ FeedDay ──▶ Report ──shown──▶ table, CSV
          (status of the collectors) ───────vouched──▶ what is known now ──┘

It answers one question first: is every ID from the first to the last, and across midnight, in the files? The names of
sealed files carry their first and last ID, so they alone prove it; the journal tells why whatever is missing is
missing. That nothing came behind the newest row only a collector knows, and only while it lives. Nothing is collected,
changed or fetched here, and it may run beside the collector.

    vouched    up to when collectors say that each feed is known
    delivered  what the journal says of one sealed file: which stores hold it, whether it is damaged
    record     what is on record: names, journal, the rows of what the journal does not know
    proof      what that shows of one feed on one day; pure
    shown      as a table for people, as CSV, as a short text
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from tickcollect.backlog import destination
from tickcollect.config import Config
from tickcollect.files import FeedPath, NameRefusedError
from tickcollect.measured import read_days
from tickcollect.report.proof import Asked, FeedDay, prove
from tickcollect.report.record import DAY_ZERO, Record, ReportError, day_text, read_record
from tickcollect.report.vouched import Vouch, read_vouches

__all__ = ["Clock", "FeedDay", "Report", "ReportError", "days_asked", "gather", "of_config"]

Verdict = Literal["complete", "incomplete", "no data", "unknown"]
EXIT_CODES: dict[Verdict, int] = {"complete": 0, "incomplete": 1, "no data": 3, "unknown": 4}
CLOCK_HOLDS = timedelta(days=1)
"""A clock's difference that was measured longer ago tells nothing of now."""


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """How far an exchange's clock was ahead of this machine's on one day, in milliseconds."""

    day: str
    exchange: str
    measurements: int
    least_ms: int
    median_ms: int
    most_ms: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The report on one or several days."""

    made_at: str
    """UTC."""
    data_dir: str
    days: list[str]
    verdict: Verdict
    """`complete` if nothing is missing or open on any day, and that is known; `unknown` if no ID is known to be
    missing, but it is not known of each feed whether any is."""
    feeds: list[FeedDay]
    """By day; within a day what is not in order first, then by rows."""
    clocks: list[Clock]
    starts: list[str]
    """When collectors were started on these days, UTC."""
    stores: list[str]
    """Where files were uploaded to, on whichever day."""
    store: str
    """The configured one of them; empty where none is configured."""
    disconnects: int
    """Open connections that broke on these days, each once, as far as the journal tells."""
    troubles: list[str]
    """What could not be read, a line each."""

    @property
    def exit_code(self) -> int:
        """The exit code of `tickcollect report`."""
        return EXIT_CODES[self.verdict]


def days_asked(last: str | None, number: int, today: date) -> range:
    """Return `number` UTC days up to `last`, counted from 1970: a date, `today`, or by default `yesterday`.

    Raises `ValueError`, with a line for a person, for what is no day or has not begun.
    """
    named = {None: today - timedelta(1), "yesterday": today - timedelta(1), "today": today}
    try:
        day = named[last] if last in named else date.fromisoformat(str(last))
    except ValueError as error:
        raise ValueError(f"{last!r} is not a day: write 2026-11-20, today or yesterday") from error
    if day > today:
        raise ValueError(f"{day} has not begun in UTC, where it is {today}")
    end = day.toordinal() - DAY_ZERO + 1
    return range(max(0, end - number), end)


def of_config(config: Config, days: range, now: datetime) -> Report:
    """Report on the data directory, feeds and store of a configuration; otherwise as `gather`."""
    wanted = [FeedPath(entry.exchange, entry.stream, symbol) for entry in config.collect for symbol in entry.symbols]
    store = destination(config.upload_to, config.s3_bucket, config.s3_bucket_path, config.s3_endpoint_url)
    return gather(config.data_dir, days, wanted=wanted, store=store, now=now)


def gather(data_dir: Path, days: range, *, wanted: Sequence[FeedPath], store: str, now: datetime) -> Report:
    """Report on the UTC days `days` (counted from 1970, none left out) as they are known at `now`.

    `wanted` are the feeds that the configuration collects: those without rows are told of. `store` is the configured
    `destination`, empty for none; those that were used before are told of, too. Raises `ReportError`, `JournalError`.
    """
    vouches, silent = read_vouches(data_dir, now)
    record = read_record(data_dir, days[0], days[-1])
    measured = read_days(data_dir, map(day_text, range(days[0], days[-1] + 2)))
    expected = {record.feed(path).name for path in wanted}
    vouches = _beside(vouches, record)
    main = _main_store(record, store)
    found: list[FeedDay] = []
    for day in days:
        of_day = []
        for name, feed in record.feeds.items():
            asked = Asked(
                day=day,
                now=now,
                clock_offset=_clock_offset(record, feed.path.exchange, now),
                wanted=name in expected,
                store=main if store or record.stores else None,
                measured=measured.feeds.get((day_text(day), name)),
                measured_after=measured.feeds.get((day_text(day + 1), name)),
                vouch=vouches.get(name),
            )
            of_day.append(prove(feed, asked))
        found += sorted(filter(None, of_day), key=lambda feed: (feed.in_order, -feed.rows, feed.name))
    if measured.damaged:
        record.troubles.append(f"{measured.damaged:,} lines of what was measured cannot be read, and are left out")
    return Report(
        made_at=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        data_dir=str(data_dir),
        days=[day_text(day) for day in days],
        verdict=_verdict(found),
        feeds=found,
        clocks=_clocks(record),
        starts=[f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in sorted(record.starts)],
        stores=sorted(record.stores),
        store=main,
        disconnects=len(record.disconnects),
        troubles=[*silent, *record.troubles],
    )


def _beside(vouches: Mapping[str, Vouch], record: Record) -> dict[str, Vouch]:
    """Return what is vouched for in the light of what the journal tells to be missing."""
    found = {}
    for name, vouch in vouches.items():
        with suppress(NameRefusedError, ValueError):  # such a feed cannot have files
            exchange, stream, symbol = name.split("/")
            found[name] = vouch.beside(record.feed(FeedPath(exchange, stream, symbol)).open.count)
    return found


def _main_store(record: Record, store: str) -> str:
    """Return the configured store by the name that it was last used with: its client may know an endpoint besides."""
    if not store or store in record.stores:
        return store
    used = [(at, name) for name, at in record.stores.items() if name.startswith(f"{store} at ")]
    return max(used)[1] if used else store


def _clock_offset(record: Record, exchange: str, now: datetime) -> timedelta:
    """Return how far an exchange's clock is ahead of this machine's, if that was measured lately."""
    at, offset_ms = record.newest_clocks.get(exchange, (now, 0))
    return timedelta(milliseconds=offset_ms) if abs(now - at) < CLOCK_HOLDS else timedelta()


def _verdict(feeds: list[FeedDay]) -> Verdict:
    if all(feed.ids is None and feed.state == "missing" for feed in feeds):
        return "no data"
    if any(feed.state in {"incomplete", "missing"} for feed in feeds):
        return "incomplete"
    return "complete" if all(feed.in_order for feed in feeds) else "unknown"


def _clocks(record: Record) -> list[Clock]:
    clocks = []
    for (day, exchange), offsets in sorted(record.clocks.items()):
        offsets.sort()
        clocks.append(
            Clock(
                day=day_text(day),
                exchange=exchange,
                measurements=len(offsets),
                least_ms=offsets[0],
                median_ms=offsets[len(offsets) // 2],
                most_ms=offsets[-1],
            )
        )
    return clocks
