"""What a collector claims to know, against what the exchange had issued by then.

Rules, for a collector that keeps tickcollect's status file and journal:

1. `status.json` says of each feed up to which ID it has come, how many IDs are missing, and whether that is known. A
   claim that it is known is true if no more rows before that ID are in no file than it says are missing.
2. A claim that it is known is true only while it is current: it may not stand longer than `CURRENT_S` when the exchange
   has issued rows that the collector does not have.
3. A process needs a moment to see what has happened. So a claim is untrue when `IN_A_ROW` snapshots, one after the
   other, deny the same row; how fast the machine is makes no difference to that.
4. The last line of a run says the same of the moment of the stop; rows issued within `ON_THEIR_WAY_S` before it may be
   on their way. The journal's `stopped` must say the same as that line.

It reads files and output only; it does not import what it judges.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .exchange import Issued, Tape, trades_only
from .judge import Entry, Findings, statements

CURRENT_S = 30.0
IN_A_ROW = 3
ON_THEIR_WAY_S = 2.0

SUMMARY = re.compile(r"^(?P<rows>[\d,]+) rows in [\d,]+ s; (?P<said>.*)$", re.MULTILINE)
NOTHING_KNOWN = re.compile(r"nothing is known")
COMPLETE = "no ID is missing up to the stop"
MISSING = re.compile(r"([\d,]+) IDs are missing")
NOT_KNOWN = re.compile(r"it is not known since .*|nothing is known.*")


@dataclass(frozen=True)
class Claim:
    """What a snapshot says of one feed."""

    at_ns: int
    pid: int
    symbol: str
    last_id: int | None
    missing: int
    is_known: bool


def claims(data_dir: Path) -> list[Claim]:
    """Return what `status.json` says; nothing where there is none."""
    try:
        snapshot = json.loads((data_dir / "status.json").read_bytes())
    except (OSError, ValueError):
        return []
    return [
        Claim(
            snapshot["at_ns"],
            snapshot["pid"],
            feed["symbol"],
            feed["last_id"],
            feed["missing_ids"],
            feed["unknown_since_ns"] is None,
        )
        for feed in snapshot["feeds"]
        if snapshot["state"] == "running"
    ]


def number_of(rows: Sequence[Issued], id_: int | None) -> int:
    """Return the number of the newest row with this ID; -1 where there is none."""
    return next((row.number for row in reversed(rows) if row.trade.id == id_), -1)


def denied(
    claim: Claim, rows: Sequence[Issued], begins: int, findings: Findings, entries: Sequence[Entry]
) -> list[Issued]:
    """Return the rows before the claim's newest that are in no file, if they are more than it says (rule 1)."""
    if not claim.is_known:
        return []
    stored = {number for symbol, number in findings.rows if symbol == claim.symbol}
    newest = min(number_of(rows, claim.last_id), max(stored, default=-1))
    gone = [row for row in rows[begins : max(begins, newest)] if row.is_trade and row.number not in stored]
    said = statements(entries, claim.symbol)
    unproved = said.unproved(rows)
    gone = [row for row in gone if said.of(row.trade.id) != "absent" and row.number not in unproved]
    return gone if len(gone) > claim.missing else []


def left_behind(claim: Claim, market: Tape, now_s: float) -> list[Issued]:
    """Return the rows behind the claim's newest that were issued long ago, if it calls all known (rule 2)."""
    if not claim.is_known or claim.missing or claim.last_id is None:
        return []
    rows, times = market.issued[claim.symbol], market.issued_s[claim.symbol]
    later = rows[number_of(rows, claim.last_id) + 1 :]
    return [row for row in later if row.is_trade and times[row.number] < now_s - CURRENT_S]


@dataclass
class Doubts:
    """Which rows the latest snapshots have denied, one after the other (rule 3)."""

    untrue: list[str] = field(default_factory=list)
    _seen: dict[str, int] = field(default_factory=dict)
    """When the newest snapshot of each symbol was taken that was looked at."""
    _counts: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)

    def fresh(self, data_dir: Path, pid: int) -> list[Claim]:
        """Return the claims of a process that were not looked at yet."""
        found = [claim for claim in claims(data_dir) if claim.pid == pid]
        found = [claim for claim in found if self._seen.get(claim.symbol) != claim.at_ns]
        self._seen |= {claim.symbol: claim.at_ns for claim in found}
        return found

    def judge(
        self, claim: Claim, market: Tape, begins: Mapping[str, int], state: "tuple[Findings, list[Entry]]"
    ) -> None:
        """Count the rows that a claim denies."""
        rows = market.issued[claim.symbol]
        gone = denied(claim, rows, begins.get(claim.symbol, len(rows)), *state)
        self._count(claim, "missing", gone)
        self._count(claim, "behind", left_behind(claim, market, time.monotonic()))

    def _count(self, claim: Claim, kind: str, rows: Sequence[Issued]) -> None:
        before = self._counts.get((claim.symbol, kind), {})
        counts = {row.number: before.get(row.number, 0) + 1 for row in rows}
        self._counts[claim.symbol, kind] = counts
        if IN_A_ROW in counts.values():
            ids = [row.trade.id for row in rows]
            self.untrue.append(
                f"status calls {claim.missing} IDs of {claim.symbol} missing up to {claim.last_id}, and all known; "
                f"{len(ids)} rows are in no file, {ids[0]} to {ids[-1]}"
            )


# --- The stop ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The last line of a run."""

    missing: int
    is_known: bool
    text: str


def summary(output: str) -> Summary | None:
    """Return what a run's last lines say; None where it ended without them."""
    found = list(SUMMARY.finditer(output))
    if not found:
        return Summary(0, False, "nothing is known") if NOTHING_KNOWN.search(output) else None
    said = found[-1]["said"]
    missing = MISSING.search(said)
    return Summary(int(missing[1].replace(",", "")) if missing else 0, NOT_KNOWN.search(said) is None, said)


def untrue_summary(
    said: Summary,
    issued_before_s: float,
    market: Tape,
    begins: Mapping[str, int],
    state: "tuple[Findings, list[Entry]]",
) -> list[str]:
    """Say what is wrong with a run's last line; rows issued before that time cannot be on their way (rule 4)."""
    findings, entries = state
    stored = set(findings.rows)
    gone, surely = 0, 0
    for symbol, rows in market.issued.items():
        known, unproved = statements(entries, symbol), statements(entries, symbol).unproved(rows)
        for row in rows[begins.get(symbol, len(rows)) :]:
            if not row.is_trade or (symbol, row.number) in stored or row.number in unproved:
                continue
            if known.of(row.trade.id) != "absent":
                gone += 1
                surely += market.issued_s[symbol][row.number] < issued_before_s
    found = []
    if said.is_known and surely > said.missing:
        found.append(f"it says {said.text!r}; {surely} rows issued before the stop are in no file")
    if said.missing > gone and market.kinds is trades_only:
        found.append(f"it says {said.text!r}; {gone} rows are in no file")
    ends = [entry for entry in entries if entry["event"] == "stopped"]
    if (
        ends
        and not NOTHING_KNOWN.search(said.text)
        and (ends[-1]["missing"] != said.missing or (ends[-1]["unknown"] == 0) != said.is_known)
    ):
        found.append(f"it says {said.text!r}; the journal says {ends[-1]}")
    return found
