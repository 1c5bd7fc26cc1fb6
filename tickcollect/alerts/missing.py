"""What is missing from one feed, and what becomes of it: IDs that were passed over, fetched, never published, or lost.

Rules:

1. A hole is known when it is told of, or when history filled it before anybody was told of it: then it is opened and
   settled at once.
2. Each ID of an open hole is settled once, as fetched, as never published by the exchange, or as lost; what history did
   not give of a range that it answered was never published.
3. However many holes a feed has, its account stays small: beyond `HOLES_KEPT` open ones the others are only counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tickcollect.alerts.words import NAMES_SHOWN, clean, counted, duration, identity, names, number, sentence

HOLES_KEPT = 50
"""Open holes of one feed that are kept each."""
SOURCES_KEPT = 4
"""Places of history that are named, each with its rows."""
NOUNS = {"trade": "trade", "aggTrade": "aggregate trade"}
"""What a row of a stream is called; elsewhere it is a row."""


@dataclass(slots=True)
class Missing:
    """The account of one feed's holes, from the first to the end of the last."""

    feed: str
    gaps: int = 0
    ids: int = 0
    """How many IDs were missing in all."""
    first_id: int = 0
    last_id: int = 0
    open: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of IDs that are not settled, without overlap."""
    uncounted: int = 0
    """Holes beyond `HOLES_KEPT`, whose end is not waited for."""
    fetched: dict[str, int] = field(default_factory=dict)
    """Rows that history gave, by where they came from."""
    absent: int = 0
    lost: int = 0
    losses: list[str] = field(default_factory=list)
    """The first of what was lost: range and reason."""
    seconds: float = 0.0
    """How long the fetching took."""
    waits: str = ""
    """Why history could not be had at the last attempt."""
    lost_told: int = 0
    """How many of the lost were told as lost."""
    cause: str = ""
    """What happened to rows that had been there, such as a file that is gone."""

    @property
    def still_missing(self) -> int:
        """How many IDs are not settled."""
        return sum(last - first + 1 for first, last in self.open)

    @property
    def is_bad(self) -> bool:
        """Whether people must hear of it however it ended: rows were lost, or what had been there was gone."""
        return bool(self.lost or self.cause)

    @property
    def rows(self) -> int:
        """How many rows history gave."""
        return sum(self.fetched.values())

    def opened(self, first: int, last: int) -> None:
        """Note a hole; one that is known already, or a part of it, counts once."""
        known = self._overlap(first, last)
        if known == last - first + 1:
            return
        if len(self.open) >= HOLES_KEPT:
            self.uncounted += 1
            return
        self._settle(first, last)
        self.open.append((first, last))
        self._count(first, last, last - first + 1 - known)

    def filled(self, first: int, last: int, rows: int, source: str, seconds: float) -> tuple[int, int]:
        """Settle a range that history answered with `rows`; return how many IDs and rows were of this account."""
        settled = self._settle(first, last)
        given = min(rows, settled)
        if given:
            place = source if source in self.fetched or len(self.fetched) < SOURCES_KEPT else "elsewhere"
            self.fetched[place] = self.fetched.get(place, 0) + given
        self.absent += settled - given
        if settled:
            self.seconds += seconds
            self.waits = ""
        return settled, given

    def never_published(self, first: int, last: int) -> int:
        """Settle a range that the exchange has never published; return how many IDs were of this account.

        A gap with very many such places is left as it is: the range that is filled around them settles them too.
        """
        if len(self.open) >= HOLES_KEPT:
            return self._overlap(first, last)
        settled = self._settle(first, last)
        self.absent += settled
        return settled

    def gone(self, first: int, last: int, reason: str) -> int:
        """Settle a range that cannot be had any more; return how many IDs were of this account."""
        settled = self._settle(first, last)
        self.lost += settled
        if settled and len(self.losses) < NAMES_SHOWN:
            self.losses.append(f"{ids_text(first, last)}: {reason}")
        return settled

    def knows(self, first: int, last: int) -> bool:
        """Tell whether any of a range is an open hole of this account."""
        return self._overlap(first, last) > 0

    def holds(self, first: int, last: int) -> bool:
        """Tell whether a range lies between the first and the last ID of this account."""
        return self.gaps > 0 and self.first_id <= first and last <= self.last_id

    def add(self, later: "Missing") -> None:
        """Take over what a later account of the same feed says."""
        for first, last in later.open:
            self.opened(first, last)
        for source, rows in later.fetched.items():
            self.fetched[source] = self.fetched.get(source, 0) + rows
        self.gaps += later.gaps - len(later.open)
        self.ids += later.ids - later.still_missing
        self.absent += later.absent
        self.lost += later.lost
        self.lost_told += later.lost_told
        self.losses = (self.losses + later.losses)[:NAMES_SHOWN]
        self.uncounted += later.uncounted
        self.waits = later.waits or self.waits
        self.cause = later.cause or self.cause

    def _count(self, first: int, last: int, new_ids: int) -> None:
        self.first_id = min(self.first_id, first) if self.gaps else first
        self.last_id = max(self.last_id, last)
        self.gaps += 1
        self.ids += new_ids

    def _overlap(self, first: int, last: int) -> int:
        return sum(max(0, min(last, high) - max(first, low) + 1) for low, high in self.open)

    def _settle(self, first: int, last: int) -> int:
        """Take a range out of what is open; return how many IDs that were."""
        settled = self._overlap(first, last)
        if settled:
            left = []
            for low, high in self.open:
                left += [(low, high)] if high < first or last < low else [(low, first - 1), (last + 1, high)]
            self.open = [(low, high) for low, high in left if low <= high]
            if len(self.open) > 2 * HOLES_KEPT:
                low, high = self.open.pop()
                self.ids -= high - low + 1
                self.uncounted += 1
        return settled


# --- In words ------------------------------------------------------------------------------------------------------


def ids_text(first: int, last: int) -> str:
    """Return `ID 7` or `IDs 7 to 9`."""
    return f"ID {identity(first)}" if first == last else f"IDs {identity(first)} to {identity(last)}"


def rows_text(count: int, accounts: Sequence[Missing]) -> str:
    """Return `15 trades`, or `15 rows` where the accounts are of several kinds."""
    nouns = {
        NOUNS.get(account.feed.split("/")[1] if account.feed.count("/") > 1 else "", "row") for account in accounts
    }
    return counted(count, nouns.pop() if len(nouns) == 1 else "row")


def title(accounts: Sequence[Missing], *, more: int = 0) -> str:
    """Return in one line how many gaps, whose, and how they ended; of `more` it is known only that they were."""
    gaps, lost = sum(one.gaps for one in accounts), sum(one.lost for one in accounts)
    waiting = sum(len(one.open) for one in accounts)
    whose = f", {clean(accounts[0].feed)}" if len(accounts) == 1 else f" in {counted(len(accounts), 'feed')}"
    whose += f", and {number(more)} more" if more else ""
    what = "gap" if gaps == 1 else counted(gaps, "gap")
    ended = "filled" if any(one.rows for one in accounts) else "of IDs that were never published"
    causes = [one for one in accounts if one.cause]
    if lost:
        return f"{rows_text(lost, accounts)} lost{whose}"
    if causes and waiting:
        return f"rows are not safe any more{whose}"
    if not waiting:
        return f"{what} {ended}{whose}"
    if waiting >= gaps:
        return f"{what} open{whose}"
    return f"{what}, {number(gaps - waiting)} {ended} and {number(waiting)} open{whose}"


def lines(
    accounts: Sequence[Missing], *, seen: str = "", more: int = 0, all_there: bool = True, fetches: bool = True
) -> list[str]:
    """Return what was missing, when that was `seen`, and what became of it.

    `more` gaps of further feeds are only counted; `all_there` is false where other feeds still miss something, or may;
    `fetches` is false where history is not asked.
    """
    first = accounts[0]
    if len(accounts) == 1 and first.gaps == 1:
        where = ids_text(first.first_id, first.last_id)
    elif len(accounts) == 1:
        where = f"{counted(first.gaps, 'gap')} between the {ids_text(first.first_id, first.last_id)}"
    else:
        shown = [f"{clean(one.feed)} ({number(one.ids)})" for one in accounts[:NAMES_SHOWN]]
        where = names(shown, len(accounts))
    ids, open_ids = (sum(values) for values in ([a.ids for a in accounts], [a.still_missing for a in accounts]))
    lost = sum(one.lost for one in accounts)
    found = [clean(one.cause) for one in accounts if one.cause][:NAMES_SHOWN]
    found.append(
        sentence(
            [
                f"{rows_text(ids, accounts)} missing, {where}" + (f", seen {seen}" if seen else ""),
                *_outcome(accounts, ids, open_ids),
            ]
        )
    )
    for word, chosen in (("Lost", _losses(accounts)), ("Open", _open(accounts))):
        found += [sentence([f"{word}: {text}"]) for text in chosen[:NAMES_SHOWN]]
        if len(chosen) > NAMES_SHOWN:
            found.append(f"{word}, too: {number(len(chosen) - NAMES_SHOWN)} more; the journal has each.")
    uncounted = sum(one.uncounted for one in accounts) + more
    if uncounted:
        found.append(f"Not counted here: {counted(uncounted, 'further gap')}; the journal has each.")
    if open_ids and fetches:
        found.append("It goes on trying to fetch them. Nothing to do.")
    elif open_ids:
        found.append("They are not fetched, because BACKFILL is false.")
    elif lost:
        found.append("What is lost is not in the files; the journal and the report say so.")
    elif all_there and not uncounted:
        found.append("Nothing of this is missing any more. Nothing to do.")
    return found


def _outcome(accounts: Sequence[Missing], ids: int, open_ids: int) -> list[str]:
    """Return where the rows came from, and how many had no source."""
    by_source: dict[str, int] = {}
    for one in accounts:
        for source, rows in one.fetched.items():
            by_source[source] = by_source.get(source, 0) + rows
    rows, absent = sum(by_source.values()), sum(one.absent for one in accounts)
    places = [
        f"{clean(source)}" + (f" ({number(count)})" if len(by_source) > 1 else "")
        for source, count in sorted(by_source.items(), key=lambda item: -item[1])
    ]
    seconds, several = sum(one.seconds for one in accounts), len(accounts) > 1 or accounts[0].gaps > 1
    took = (f", {duration(seconds)} in all" if several else f" in {duration(seconds)}") if seconds else ""
    how_many = f"all {number(rows)}" if rows == ids > 1 else number(rows)
    return [
        f"{how_many} fetched from {names(places, len(places))}{took}" if rows else "",
        f"{number(absent)} never published by the exchange" if absent else "",
        f"{number(open_ids)} not there yet" if open_ids else "",
    ]


def _losses(accounts: Sequence[Missing]) -> list[str]:
    several = len(accounts) > 1
    return [(f"{clean(one.feed)}, " if several else "") + text for one in accounts for text in one.losses]


def _open(accounts: Sequence[Missing]) -> list[str]:
    """Return the open holes of each feed and why they wait."""
    found = []
    for one in accounts:
        if one.open and (len(accounts) > 1 or one.waits or one.gaps > 1):
            ranges = names([ids_text(*hole) for hole in one.open[:NAMES_SHOWN]], len(one.open))
            found.append(
                (f"{clean(one.feed)}, " if len(accounts) > 1 else "") + ranges + (f": {one.waits}" if one.waits else "")
            )
    return found
