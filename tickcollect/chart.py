"""The report as a picture: rows per hour of each feed, one panel below the other, for the narrow screen of a phone.

Rules:

1. Each feed has a panel of its own with its own height; what is not in order comes first. Beyond `PANELS` feeds the
   last panel is the sum of the others.
2. Hours are UTC, by trade time. An hour without a row is marked on the axis, so that it is not taken for a small one;
   hours that had not begun when the report was made are left blank.
3. A gap is marked at the hour in which it was found: hollow if it was settled, filled if IDs are missing. Form and
   words tell what the colours tell.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date

from PIL import Image, ImageDraw, ImageFont

from tickcollect.report import FeedDay, Report
from tickcollect.report.shown import headline, hours_begun

PANELS = 12
HOURS = 24

WIDTH = 1080
LEFT, RIGHT = 120, 1050
"""Where the axis begins and ends."""
TOP = 150
PANEL = 170
BAR_TOP, BAR_BOTTOM = 48, 140
"""Of a panel: where the highest bar ends and where all begin."""
BOTTOM = 60

PAPER, INK, PALE, GRID = "#ffffff", "#1a1a1a", "#6b6b6b", "#d9d9d9"
BAR, SETTLED, MISSING = "#3b6ea5", "#a86400", "#c0241a"
LARGE, MIDDLE, SMALL = 34, 25, 20


@dataclass(slots=True)
class Panel:
    """What one panel shows."""

    title: str
    days: int
    hours: list[int] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)
    """Hours in which a gap was found that is settled."""
    missing: set[int] = field(default_factory=set)
    """Hours in which a gap was found of which IDs are missing."""
    in_order: bool = True
    begun: int = 0
    """How many of the hours had begun."""

    def __post_init__(self) -> None:
        self.hours = self.hours or [0] * HOURS * self.days

    def add(self, feed: FeedDay, first_day: str) -> None:
        """Add one feed's day."""
        start = HOURS * _days_between(first_day, feed.day)
        for hour, rows in enumerate(feed.rows_per_hour):
            self.hours[start + hour] += rows
        for hole in feed.holes:
            if hole.found_at:
                place = HOURS * _days_between(first_day, hole.found_at[:10]) + int(hole.found_at[11:13])
                if 0 <= place < len(self.hours):
                    (self.missing if hole.missing else self.settled).add(place)
        self.in_order = self.in_order and feed.in_order


def panels(report: Report) -> list[Panel]:
    """Return what is to be drawn, from top to bottom (rule 1)."""
    by_feed: dict[str, list[FeedDay]] = {}
    for feed in report.feeds:
        by_feed.setdefault(feed.name, []).append(feed)
    order = sorted(
        by_feed,
        key=lambda name: (all(day.in_order for day in by_feed[name]), -sum(day.rows for day in by_feed[name]), name),
    )
    alone = order if len(order) <= PANELS else order[: PANELS - 1]
    groups = [([name], name) for name in alone]
    if rest := order[len(alone) :]:
        groups.append((rest, f"{len(rest):,} more feeds together"))
    found = []
    for names, title in groups:
        of_group = [day for name in names for day in by_feed[name]]
        missing = sum(day.ids.missing_total for day in of_group if day.ids is not None)
        rows = sum(day.rows for day in of_group)
        told = [title, f"{rows:,} rows" if rows else "no row", *([f"{missing:,} IDs missing"] if missing else [])]
        told += ["unknown whether IDs are missing"] if any(day.state == "unknown" for day in of_group) else []
        panel = Panel("   ".join(told), len(report.days), begun=sum(hours_begun(report, day) for day in report.days))
        for day in of_group:
            panel.add(day, report.days[0])
        found.append(panel)
    return found


def draw(report: Report) -> bytes:
    """Return the chart as a PNG."""
    shown = panels(report)
    image = Image.new("RGB", (WIDTH, TOP + PANEL * len(shown) + BOTTOM), PAPER)
    pen = ImageDraw.Draw(image)
    fonts = [ImageFont.load_default(size) for size in (LARGE, MIDDLE, SMALL)]
    pen.text((30, 24), headline(report), INK if report.verdict == "complete" else MISSING, font=fonts[0])
    pen.text((30, 72), "rows per hour, UTC", PALE, font=fonts[1])
    _legend(pen, fonts[2])
    for place, panel in enumerate(shown):
        _draw_panel(pen, panel, TOP + PANEL * place, fonts)
    bottom = TOP + PANEL * len(shown)
    for x, text in _ticks(report):
        pen.text((x, bottom + 4), text, PALE, font=fonts[2], anchor="ma")
    png = io.BytesIO()
    image.save(png, "PNG", optimize=True)
    return png.getvalue()


Fonts = Sequence[ImageFont.FreeTypeFont | ImageFont.ImageFont]


def _draw_panel(pen: ImageDraw.ImageDraw, panel: Panel, top: int, fonts: Fonts) -> None:
    pen.text((30, top + 8), panel.title, INK if panel.in_order else MISSING, font=fonts[1])
    base, most = top + BAR_BOTTOM, max(panel.hours)
    step = (RIGHT - LEFT) / len(panel.hours)
    for hour in range(0, len(panel.hours) + 1, 6 if panel.days == 1 else HOURS):
        x = round(LEFT + hour * step)
        pen.line((x, top + BAR_TOP, x, base + 5), GRID)
    pen.line((LEFT, base, RIGHT, base), PALE)
    if most:
        pen.text((LEFT - 8, top + BAR_TOP), _short(most), PALE, font=fonts[2], anchor="rt")
    pen.text((LEFT - 8, base), "0", PALE, font=fonts[2], anchor="rb")
    gap = 2 if step > 6 else 0  # noqa: PLR2004 - pixels
    for hour, rows in enumerate(panel.hours):
        left, right = round(LEFT + hour * step), max(round(LEFT + (hour + 1) * step) - 1 - gap, 0)
        if rows:
            height = max(2, round(rows / most * (BAR_BOTTOM - BAR_TOP)))
            pen.rectangle((left, base - height, max(left, right), base - 1), BAR)
        elif hour < panel.begun:
            pen.line((left, base, max(left, right), base), INK, width=3)
    for hour in panel.settled - panel.missing:
        _mark(pen, LEFT + (hour + 0.5) * step, base, SETTLED, full=False)
    for hour in panel.missing:
        _mark(pen, LEFT + (hour + 0.5) * step, base, MISSING, full=True)


def _mark(pen: ImageDraw.ImageDraw, x: float, base: float, colour: str, *, full: bool) -> None:
    """Draw a triangle below the axis that points to an hour."""
    shape = [(x, base + 3), (x - 9, base + 19), (x + 9, base + 19)]
    pen.polygon(shape, fill=colour if full else PAPER, outline=colour, width=2)


def _legend(pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    _mark(pen, 40, 106, SETTLED, full=False)
    pen.text((58, 106), "gap, settled", PALE, font=font)
    _mark(pen, 210, 106, MISSING, full=True)
    pen.text((228, 106), "gap, IDs missing", PALE, font=font)
    pen.line((414, 118, 440, 118), INK, width=3)
    pen.text((450, 106), "no row in this hour", PALE, font=font)


def _ticks(report: Report) -> Iterator[tuple[float, str]]:
    """Yield what stands below the axis: hours of one day, or days."""
    if len(report.days) == 1:
        for hour in range(0, HOURS + 1, 6):
            yield LEFT + (RIGHT - LEFT) * hour / HOURS, f"{hour:02d}:00"
        return
    width = (RIGHT - LEFT) / len(report.days)
    every = -(-len(report.days) // 10)
    for place, day in enumerate(report.days):
        if place % every == 0:
            yield LEFT + width * (place + 0.5), day[5:]


def _short(number: int) -> str:
    """Return a number in at most five characters: `980`, `12.3k`, `1.25M`."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)


def _days_between(first: str, day: str) -> int:
    return date.fromisoformat(day).toordinal() - date.fromisoformat(first).toordinal()
