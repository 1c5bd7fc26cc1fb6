"""The report as people and their programs read it: a table, a short text with the verdict first, CSV.

Rules:

1. The verdict comes first, in words; what is in order takes one line a feed, what is not is told below with its IDs,
   its reason and what to do.
2. A table is as wide as the terminal at most: columns are added by their importance while they fit (`COLUMNS`).
3. Names and reasons are printed, never interpreted: no markup, no control characters, only ASCII where the terminal's
   encoding is not UTF-8. Colour says nothing that the marks and words do not.
4. Where it is not known whether IDs are missing, no sentence, percentage or colour says that none is.

rich is imported where something is drawn: it takes longer to load than all that `--json` needs. What sends messages is
imported for a message only.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tickcollect.hours import HOURS
from tickcollect.report import Report
from tickcollect.report.proof import MISSING, NOTES, FeedDay, Hole
from tickcollect.status import size, span

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

    from tickcollect.alerts.incidents import Notice

ROWS_SHOWN = 60
"""Lines of the table; the feeds left out are in order, or counted."""
HOLES_OF_FEED_TOLD = 3
"""Gaps of one feed that are told of one by one."""
HOLES_TOLD = 30
NAMES_TOLD = 3
WORST_TOLD = 10
"""Markets that a message has a line for; all are in the table that goes with it."""
NAME_CELLS = 28

REMEDIES = {
    "gone": "Gone: its file was sealed and is not here any more, and no upload has proved it. Put the file back.",
    "damaged": "Damaged: its file is not what was sealed, and no store is known to hold that. It is neither sent nor "
    "deleted. Put a good copy in its place, or restart the collector, which fetches its rows again.",
    "lost": "Lost: the exchange's history cannot give it any more. Nothing to do.",
    "open": "Open: not given up. The collector goes on asking; see that it runs: `tickcollect status`.",
    "unexplained": "Unexplained: nothing on record tells why. Restart the collector, which compares the files at its "
    "start and fetches what the exchange's history has.",
    "no row": "No row: see whether the collector runs with `tickcollect status`, and whether the stream delivers with "
    "`tickcollect check`.",
    "unproved": "No later row: start the collector; its next row proves the end, or shows what is missing and has it "
    "fetched.",
    "unknown": "Not known: while no collector receives a feed, nobody knows what the exchange has sent. See "
    "`tickcollect status`; once it collects again, what was missed is found and fetched.",
}
"""What the reasons in `MISSING` mean, and what to do; likewise for a market without rows and an end without proof."""
REASONS_TOLD = 3


def show(report: Report, form: str | None) -> str:
    """Return the report as `json`, as `csv`, or, for None, as the table that fits the terminal."""
    from rich.console import Console  # noqa: PLC0415 - see the module's docstring

    if form == "json":
        return msgspec.json.encode(report).decode()
    if form == "csv":
        return to_csv(report).rstrip("\n")
    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(ReportTable(report))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


# --- The words -----------------------------------------------------------------------------------------------------


def headline(report: Report) -> str:
    """Return the verdict in one line."""
    period = report.days[0] if len(report.days) == 1 else f"{report.days[0]} to {report.days[-1]}"
    if report.verdict in {"complete", "no data"}:
        return f"{period}: {report.verdict}{' so far' if _running(report) else ''}"
    word = "NOT complete" if report.verdict == "incomplete" else "unknown"
    bad = [feed for feed in report.feeds if not feed.in_order]
    if len(report.days) > 1:
        days = len({feed.day for feed in bad})
        return f"{period}: {word} on {days:,} of {len(report.days):,} days"
    whose = f"{len(bad):,} of {_plural(len(report.feeds), 'feed')}"
    if report.verdict == "unknown":
        return f"{period}: {_unknown_text(report, bad)}, {whose}"
    return f"{period}: {word}, {whose}"


def _unknown_text(report: Report, feeds: Sequence[FeedDay]) -> str:
    """Say since when it is not known of some feeds whether IDs are missing, and why."""
    first = min((feed.unknown_since for feed in feeds if feed.unknown_since), default="")
    since = f" since {_moment(report, first)}" if first else ""
    found = list(dict.fromkeys(feed.unknown_reason for feed in feeds if feed.unknown_reason))
    more = [f"and {len(found) - REASONS_TOLD:,} more reasons"] if len(found) > REASONS_TOLD else []
    reasons = "; ".join(found[:REASONS_TOLD] + more)
    return f"unknown{since}{f' ({reasons})' if reasons else ''}"


def _moment(report: Report, at: str) -> str:
    """Return a time to the second, with its date unless it is of the day that the report was made."""
    return f"{at[11:19]} UTC" if at[:10] == report.made_at[:10] else f"{at[:10]} {at[11:19]} UTC"


def summary(report: Report) -> list[str]:
    """Return what the report says in a few sentences: what is proved, the gaps, the files, the connections."""
    if report.verdict == "no data":
        return [f"No row of {'these days' if len(report.days) > 1 else 'this day'} is on record in {report.data_dir}."]
    return [*_proved(report), *_gaps(report), *_delivery(report), *_connections(report)]


def _proved(report: Report) -> Iterator[str]:
    feeds = [feed for feed in report.feeds if feed.ids is not None and feed.rows]
    rows = _plural(sum(feed.rows for feed in feeds), "row")
    assumed = sum(feed.ids.assumed for feed in report.feeds if feed.ids is not None)
    but = f", but for {_plural(assumed, 'ID')} taken for placeholders, which nothing proves" if assumed else ""
    if report.verdict == "complete":
        names = {feed.name for feed in feeds}
        if not names:
            yield "No trade happened."
            return
        of = "the feed" if len(names) == 1 else f"the {len(names):,} feeds"
        places = {place for feed in feeds if feed.ids is not None for place in (feed.ids.begins, feed.ids.ends)}
        joined = ", without a break to the days before and after" if places <= {"follows", "followed"} else ""
        every = "So far every" if _running(report) else "Every"
        yield f"{every} ID of {of} is in the files{joined}{but}: {rows}."
        return
    unknown = [feed for feed in report.feeds if feed.state == "unknown"]
    parts = [*_wrong(report)]
    if report.verdict == "unknown":
        parts.append("No ID is known to be missing; whether any is, is not known")
    elif unknown:
        parts.append(f"{_plural(len(unknown), 'feed')} {_unknown_text(report, unknown)}")
    yield f"{', '.join(parts)}{but}; {rows} {'is' if rows.startswith('1 ') else 'are'} there."


def _wrong(report: Report) -> Iterator[str]:
    """Yield how much is known not to be in order."""
    missing = sum(feed.ids.missing_total for feed in report.feeds if feed.ids is not None)
    silent = sum(feed.state == "missing" for feed in report.feeds)
    unproved = sum(feed.ids is not None and feed.ids.ends == "unproved" for feed in report.feeds)
    if missing:
        yield f"{_plural(missing, 'ID')} missing"
    if silent:
        yield f"{_plural(silent, 'market')} without a row"
    if unproved:
        yield f"{_plural(unproved, 'feed')} without proof of the day's end"


def _running(report: Report) -> bool:
    """Tell whether the last day is not over, as far as is known where its feeds come from."""
    is_today = report.days[-1] >= report.made_at[:10]
    return is_today or any(feed.ids is not None and feed.ids.ends == "running" for feed in report.feeds)


def _gaps(report: Report) -> Iterator[str]:
    holes = [hole for feed in report.feeds for hole in feed.holes]
    if not holes:
        return
    settled = sum(not hole.missing for hole in holes)
    filled, absent = sum(hole.filled for hole in holes), sum(hole.absent for hole in holes)
    hows = [f"{_plural(filled, 'ID')} filled from history"] if filled else []
    hows += [f"{_plural(absent, 'ID')} never published by the exchange"] if absent else []
    how = f": {', '.join(hows)}" if hows else ""
    which = "settled" if settled == len(holes) else f"{settled:,} of them settled"
    yield f"{_plural(len(holes), 'gap')} found, {which}{how}."


def _delivery(report: Report) -> Iterator[str]:
    files = [feed.files for feed in report.feeds]
    sealed, packed = sum(each.sealed for each in files), sum(each.size for each in files)
    told = f"{_plural(sealed + sum(each.open for each in files), 'file')}, {size(packed)}"
    parts = [told]
    if sealed and any(each.uploaded is not None for each in files):
        held = Counter[str]()
        for each in files:
            held.update(each.stores)
        if report.store:
            parts.append(_held(report.store, held.pop(report.store, 0), sealed))
        parts += [f"elsewhere, {name} holds {count:,} of {sealed:,}" for name, count in sorted(held.items())]
        if not report.store and not held:
            parts.append("no store holds a sealed one")
    yield f"{'; '.join(parts)}."


def _held(store: str, count: int, sealed: int) -> str:
    """Say how many sealed files the configured store holds."""
    if count == sealed:
        return f"all sealed ones uploaded to {store}"
    return f"{sealed - count:,} of {sealed:,} not uploaded yet to {store}"


def _connections(report: Report) -> Iterator[str]:
    measured = [feed.connection for feed in report.feeds if feed.connection is not None]
    ran_s = dict.fromkeys(report.days, 0.0)
    for feed in report.feeds:
        if feed.connection is not None:
            ran_s[feed.day] = max(ran_s[feed.day], feed.connection.measured_s)
    if not sum(ran_s.values()):
        broke = f"; {_plural(report.disconnects, 'connection')} broke" if report.disconnects else ""
        yield f"Connection time and latency: nothing was measured{broke}."
        return
    share = _share(sum(each.connected_s for each in measured), sum(each.measured_s for each in measured))
    told = f"Connected for {share} of the {span(sum(ran_s.values()))} that the collector ran"
    if report.disconnects:
        told += f", {_plural(report.disconnects, 'connection')} broke"
    latencies = sorted(
        (each.latency_median_ms, each.latency_p99_ms or 0.0) for each in measured if each.latency_median_ms is not None
    )
    if latencies:
        median, worst = latencies[len(latencies) // 2][0], max(p99 for _, p99 in latencies)
        told += f"; latency {milliseconds(median)} in the median, p99 up to {milliseconds(worst)}"
    if report.clocks:
        clock = max(report.clocks, key=lambda clock: abs(clock.median_ms))
        side = "ahead of" if clock.median_ms >= 0 else "behind"
        told += f"; the clock of {clock.exchange} {abs(clock.median_ms):,} ms {side} this machine's"
    yield f"{told}."


def findings(report: Report) -> list[str]:
    """Return what is not in order, a line each: the feed, the IDs and the reason; feeds with one lot together."""
    together: dict[str, list[str]] = {}
    holes: list[str] = []
    for feed in report.feeds:
        name = _name(report, feed)
        if feed.state == "missing":
            together.setdefault("; ".join(feed.notes), []).append(name)
        elif feed.state == "unknown":
            together.setdefault(_unknown_text(report, [feed]), []).append(name)
        elif feed.ids is not None and feed.ids.ends == "unproved":
            together.setdefault(NOTES["unproved"], []).append(name)
        holes += [f"{name}: {told}" for told in _holes_of(feed)]
    told = [f"{_named(names)}: {note}" for note, names in together.items()]
    if len(holes) > HOLES_TOLD:
        holes[HOLES_TOLD:] = [f"and {len(holes) - HOLES_TOLD:,} more such lines; --json has them all"]
    return told + holes


def advice(report: Report) -> list[str]:
    """Return what the reasons told by `findings` mean, and what to do."""
    reasons: set[str] = set()
    for feed in report.feeds:
        if feed.ids is not None:
            reasons.update(feed.ids.missing, {feed.ids.ends})
        reasons.update({"missing": ["no row"], "unknown": ["unknown"]}.get(feed.state, ()))
    return [text for reason, text in REMEDIES.items() if reason in reasons]


def _holes_of(feed: FeedDay) -> Iterator[str]:
    missing = [hole for hole in feed.holes if hole.missing]
    for hole in missing[:HOLES_OF_FEED_TOLD]:
        yield _hole_text(hole)
    if rest := missing[HOLES_OF_FEED_TOLD:]:
        yield f"{len(rest):,} more gaps with {_plural(sum(sum(hole.missing.values()) for hole in rest), 'missing ID')}"


def _hole_text(hole: Hole) -> str:
    parts = [f"{number:,} {reason}" for reason, number in hole.missing.items()]
    ids = f"ID {hole.first_id}" if hole.first_id == hole.last_id else f"IDs {hole.first_id} to {hole.last_id}"
    told = f"{', '.join(parts)}, {ids}"
    if hole.filled:
        told += f", {hole.filled:,} filled"
    if hole.found_at:
        told += f", found {hole.found_at[:10]} {hole.found_at[11:19]} UTC"
    return told + (f": {hole.reason}" if hole.reason else "")


def remarks(report: Report) -> list[str]:
    """Return what feeds in order have to say, those that say the same together."""
    saying: dict[str, list[str]] = {}
    for feed in report.feeds:
        for note in feed.notes if feed.in_order else ():
            saying.setdefault(note, []).append(_name(report, feed))
    return [f"{note}: {_named(names)}" for note, names in saying.items()]


def _name(report: Report, feed: FeedDay) -> str:
    return feed.name if len(report.days) == 1 else f"{feed.day} {feed.name}"


def worst(report: Report) -> list[str]:
    """Return a line for each market, those with most missing first; of many, the first `WORST_TOLD`."""
    told = sorted(report.feeds, key=_badness)[:WORST_TOLD]
    if not told:
        return []
    heading = (
        "Market by market:" if len(told) == len(report.feeds) else f"The worst {len(told)} of {len(report.feeds):,}:"
    )
    return [heading, *(_market_line(report, feed) for feed in told)]


def _badness(feed: FeedDay) -> tuple[bool, float, int, str]:
    percent_there = feed.percent if feed.percent is not None else 0.0 if feed.state == "missing" else 100.0
    missing = 0 if feed.ids is None else feed.ids.missing_total
    return feed.in_order, 0.0 if feed.in_order else percent_there, -missing, feed.name


def _market_line(report: Report, feed: FeedDay) -> str:
    missing = 0 if feed.ids is None else feed.ids.missing_total
    parts = [feed.state, percent(feed), _plural(feed.rows, "row")]
    parts += [_unknown_text(report, [feed])] if feed.unknown_reason and feed.state != "unknown" else []
    parts += [f"{_plural(missing, 'ID')} missing"] if missing else []
    parts += [_plural(len(feed.holes), "gap")] if feed.holes else []
    return f"{_name(report, feed)}: {', '.join(part for part in parts if part != '-')}"


def notice(report: Report, machine: str, attachments: Sequence[Path]) -> "Notice":
    """Return the report as a message: the verdict, then what is not in order, because channels cut long texts."""
    from tickcollect.alerts.incidents import Notice  # noqa: PLC0415 - see the module's docstring

    first, *more = summary(report)
    return Notice(
        kind="report",
        level="info" if report.verdict == "complete" else "warning",
        title=f"{machine}: data of {headline(report)}",
        lines=(first, *findings(report), *advice(report), *more, *report.troubles, *remarks(report), *worst(report)),
        incident=f"report {report.days[0]} {report.days[-1]}",
        ended=True,
        attachments=tuple(attachments),
    )


# --- Numbers for people --------------------------------------------------------------------------------------------


def percent(feed: FeedDay) -> str:
    """Return how complete a feed's day is: `100 %` only if it is known that nothing is missing, else rounded down."""
    if feed.percent is None:
        return "-"
    if feed.percent == 100:  # noqa: PLR2004 - per cent
        return "100 %"
    return f"{int(feed.percent * 100) / 100:.2f} %{' of what is known' if feed.unknown_reason else ''}"


def milliseconds(latency_ms: float) -> str:
    """Return a latency to the millisecond, or in seconds."""
    return f"{latency_ms:,.0f} ms" if abs(latency_ms) < 10_000 else span(latency_ms / 1000)  # noqa: PLR2004 - 10 s


def _share(part: float, whole: float) -> str:
    """Return how much of a time something was: never `100 %`, which says in a report that no ID is missing."""
    if part >= whole:
        return "all"
    return f"{int(part / whole * 1000) / 10:.1f} %"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - NAMES_TOLD
    return ", ".join(names[:NAMES_TOLD]) + (f" and {more:,} more" if more > 0 else "")


# --- CSV -----------------------------------------------------------------------------------------------------------

CSV_COLUMNS = (
    "day", "exchange", "stream", "symbol", "state", "percent", "rows", "first_id", "last_id", "begins", "ends",
    "expected", "held", "absent", "not_trades", *MISSING, "missing_ids", "gaps", "gaps_settled", "filled", "sealed",
    "open_files", "size", "csv_size", "uploaded", "measured_s", "connected_s", "reconnects", "live_rows",
    "latency_median_ms", "latency_p99_ms", *(f"rows_{hour:02d}h" for hour in range(HOURS)),
    "assumed", "unknown_since", "unknown_reason",
)  # fmt: skip
"""The columns of `--csv`. What is not known is empty."""


def to_csv(report: Report) -> str:
    """Return the report as CSV with a heading, a row for each feed and day."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_row(report, feed) for feed in report.feeds)
    return text.getvalue()


def hours_begun(report: Report, day: str) -> int:
    """Return how many hours of a day had begun when the report was made."""
    if day < report.made_at[:10]:
        return HOURS
    return int(report.made_at[11:13]) + 1 if day == report.made_at[:10] else 0


def _csv_row(report: Report, feed: FeedDay) -> dict[str, object]:
    row: dict[str, object] = {
        "day": feed.day,
        "exchange": feed.exchange,
        "stream": feed.stream,
        "symbol": feed.symbol,
        "state": feed.state,
        "percent": feed.percent,
        "rows": feed.rows,
        "missing_ids": " ".join(f"{hole.first_id}-{hole.last_id}" for hole in feed.holes if hole.missing),
        "gaps": len(feed.holes),
        "gaps_settled": sum(not hole.missing for hole in feed.holes),
        "filled": sum(hole.filled for hole in feed.holes),
        "sealed": feed.files.sealed,
        "open_files": feed.files.open,
        "size": feed.files.size,
        "csv_size": feed.files.csv_size,
        "uploaded": feed.files.uploaded,
        "unknown_since": feed.unknown_since,
        "unknown_reason": feed.unknown_reason,
    }
    begun = hours_begun(report, feed.day)
    row |= {f"rows_{hour:02d}h": rows for hour, rows in enumerate(feed.rows_per_hour) if rows or hour < begun}
    if feed.ids is not None:
        row |= {"first_id": feed.ids.first, "last_id": feed.ids.last, "begins": feed.ids.begins}
        row |= {"ends": feed.ids.ends, "expected": feed.ids.expected, "held": feed.ids.held}
        row |= {"absent": feed.ids.absent, "not_trades": feed.ids.not_trades, "assumed": feed.ids.assumed}
        row |= {reason: feed.ids.missing.get(reason, 0) for reason in MISSING}
    return row if feed.connection is None else row | msgspec.structs.asdict(feed.connection)


# --- The table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Glyphs:
    """The marks of one encoding."""

    well: str
    trouble: str
    unknown: str
    rest: str
    advice: str
    cut: str
    bars: str
    """No row, then few to most."""


_UTF8 = _Glyphs("●", "✗", "?", "○", "→", "…", "·▁▂▃▄▅▆▇█")
_ASCII = _Glyphs("*", "x", "?", "-", ">", "..", "_.:-=+*#@")

Row = dict[str, str]
"""A line of the table: what stands under each title."""

COLUMNS = ("complete", "rows", "gaps", "hours", "missing", "latency", "size", "uploaded", "connected", "IDs")
"""The columns behind the name by importance: each is shown while it fits, and if it has anything to tell."""
ORDER = ("rows", "complete", "missing", "gaps", "hours", "IDs", "size", "uploaded", "latency", "connected")
TITLES = {"hours": "0h    6h    12h   18h   ", "latency": "latency p50/p99"}
LEFT = {"hours", "IDs"}


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A rich renderable: the verdict, a line a feed (or a day, where there are several), and what is not in order."""

    report: Report

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Yield the parts from top to bottom."""
        from rich.text import Text  # noqa: PLC0415 - see the module's docstring

        glyphs = _ASCII if options.ascii_only else _UTF8
        mark, style = {
            "complete": (glyphs.well, "bold green"),
            "unknown": (glyphs.unknown, "bold yellow"),
        }.get(self.report.verdict, (glyphs.trouble, "bold red"))
        yield Text(f"{mark} {headline(self.report)}", style=style)
        yield from _listed(" ", summary(self.report), "", options)
        rows = _feed_rows(self.report, glyphs) if len(self.report.days) == 1 else _day_rows(self.report, glyphs)
        if rows:
            yield Text()
            yield _grid(rows, glyphs, options)
        if rest := rows[ROWS_SHOWN:]:
            bad = sum(row[""] in {glyphs.trouble, glyphs.unknown} for row in rest)
            order = f"{bad:,} of them not in order" if bad else "all in order"
            yield Text(f"  and {len(rest):,} more, {order}")
        below = (
            (glyphs.trouble, "red", findings(self.report)),
            (glyphs.advice, "", advice(self.report)),
            ("!", "yellow", self.report.troubles),
            (" ", "dim", remarks(self.report)),
        )
        for sign, style, told in below:
            if told:
                yield Text()
                yield from _listed(sign, told, style, options)


def _listed(mark: str, lines: Sequence[str], style: str, options: "ConsoleOptions") -> "Iterator[Table]":
    """Yield each line behind a mark, wrapped beside it."""
    from rich.table import Table  # noqa: PLC0415 - see the module's docstring
    from rich.text import Text  # noqa: PLC0415

    for line in lines:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(mark, style=style), Text(_plain(line, options), style=style, overflow="fold"))
        yield grid


def _feed_rows(report: Report, glyphs: _Glyphs) -> list[Row]:
    """Return a line for each feed of one day."""
    one_market = len({feed.market for feed in report.feeds}) == 1
    rows = []
    for feed in report.feeds:
        ids, connection = feed.ids, feed.connection
        files = feed.files
        mark = {"quiet": glyphs.rest, "complete": glyphs.well, "unknown": glyphs.unknown}
        rows.append({
            "": mark.get(feed.state, glyphs.trouble),
            "feed": feed.symbol if one_market else feed.name,
            "rows": f"{feed.rows:,}",
            "complete": _completeness(feed),
            "missing": f"{ids.missing_total:,}" if ids is not None and ids.missing_total else "",
            "gaps": f"{len(feed.holes):,}" if feed.holes else "-",
            "hours": bars(feed.rows_per_hour, max(feed.rows_per_hour), glyphs, hours_begun(report, feed.day)),
            "IDs": "" if ids is None or ids.first is None else f"{ids.first} to {ids.last}",
            "size": size(files.size) if files.size else "",
            "uploaded": "" if files.uploaded is None or not files.sealed else f"{files.uploaded} of {files.sealed}",
            "latency": _latency(feed),
            "connected": "" if connection is None else _share(connection.connected_s, connection.measured_s),
        })  # fmt: skip
    return rows


def _completeness(feed: FeedDay) -> str:
    """Return in a few letters how complete a feed's day is."""
    if word := {"missing": "no row", "quiet": "quiet", "unknown": "unknown"}.get(feed.state):
        return word
    return "unproved" if feed.percent is None else percent(feed)


def _day_rows(report: Report, glyphs: _Glyphs) -> list[Row]:
    """Return a line for each of several days, its feeds together."""
    rows = []
    most = max((sum(hour) for day in report.days for hour in _hours_of(report, day)), default=0)
    for day in report.days:
        feeds = [feed for feed in report.feeds if feed.day == day]
        missing = sum(feed.ids.missing_total for feed in feeds if feed.ids is not None)
        holes = sum(len(feed.holes) for feed in feeds)
        states = {feed.state for feed in feeds if not feed.in_order}
        well = (glyphs.unknown if states == {"unknown"} else glyphs.trouble) if states else glyphs.well
        in_order = sum(feed.in_order for feed in feeds)
        rows.append({
            "": well if feeds else glyphs.rest,
            "day": day,
            "rows": f"{sum(feed.rows for feed in feeds):,}",
            "complete": f"{in_order:,} of {len(feeds):,} feeds" if feeds else "no data",
            "missing": f"{missing:,}" if missing else "",
            "gaps": f"{holes:,}" if holes else "-",
            "hours": bars([sum(hour) for hour in _hours_of(report, day)], most, glyphs, hours_begun(report, day)),
            "size": size(sum(feed.files.size for feed in feeds)),
        })  # fmt: skip
    return rows


def _hours_of(report: Report, day: str) -> list[list[int]]:
    """Return the rows of each feed in each hour of a day."""
    by_feed = [feed.rows_per_hour for feed in report.feeds if feed.day == day]
    return [[hours[hour] for hours in by_feed] for hour in range(HOURS)]


def bars(counts: Sequence[int], most: int, glyphs: _Glyphs, begun: int = HOURS) -> str:
    """Return a bar of eight heights for each number, the highest for `most`; none for zero.

    Of the hours, `begun` have begun; those that are to come are blank.
    """
    steps = len(glyphs.bars) - 1
    drawn = [glyphs.bars[-(-count * steps // most) if count else 0] for count in counts]
    return "".join(bar if counts[hour] or hour < begun else " " for hour, bar in enumerate(drawn))


def _latency(feed: FeedDay) -> str:
    connection = feed.connection
    if connection is None or connection.latency_median_ms is None or connection.latency_p99_ms is None:
        return ""
    return f"{connection.latency_median_ms:,.0f} / {milliseconds(connection.latency_p99_ms)}"


def _grid(rows: Sequence[Row], glyphs: _Glyphs, options: "ConsoleOptions") -> "Table":
    """Return the rows with the columns that fit (rule 2)."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - see the module's docstring
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    mark, name = list(rows[0])[:2]
    shown = rows[:ROWS_SHOWN]
    names = [_plain(row[name], options) for row in shown]
    names = [
        text if cell_len(text) <= NAME_CELLS else set_cell_size(text, NAME_CELLS - len(glyphs.cut)) + glyphs.cut
        for text in names
    ]
    left = options.max_width - 2 - max(map(cell_len, [name, *names]))
    chosen = set()
    for title in COLUMNS:
        width = max(cell_len(text) for text in [TITLES.get(title, title), *(row.get(title, "") for row in shown)]) + 2
        if width <= left and any(row.get(title) for row in shown):
            chosen.add(title)
            left -= width
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), collapse_padding=True, header_style="dim")
    grid.add_column(Text(f"  {name}"), no_wrap=True)
    for title in (title for title in ORDER if title in chosen):
        grid.add_column(Text(TITLES.get(title, title)), justify="left" if title in LEFT else "right", no_wrap=True)
    for row, text in zip(shown, names, strict=True):
        style = "red" if row[mark] == glyphs.trouble else ""
        cells = [Text(row.get(title, "")) for title in ORDER if title in chosen]
        grid.add_row(Text(f"{row[mark]} {text}"), *cells, style=style)
    return grid


def _plain(text: str, options: "ConsoleOptions") -> str:
    """Replace what is not to be printed: control characters, surrogates, and beyond ASCII where only that is shown."""
    return "".join(c if c.isprintable() and (c.isascii() or not options.ascii_only) else "?" for c in text)
