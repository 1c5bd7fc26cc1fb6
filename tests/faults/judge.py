"""What a collector left behind, against what the exchange had issued.

What always has to hold, whatever happened:

A. Every row issued since the first one that was sent is in exactly one place, or in a range that the journal calls
   `lost` or `absent`, with a reason, or says that history lacks it (`absence_seen`), and has not opened again since
   (`reopened`, `damaged`). Where the numbering began anew, `numbering_restarted` says with which ID the old one ended
   as far as is known; what it has issued behind that is not proved.
B. Rows stand in the order in which they were issued, as they were sent; a row from history has an empty event time.
   For tickcollect: inside a file IDs rise by one, and a line is equal to the byte.
C. Files are whole: no torn line, packed ones open. For tickcollect: the IDs in a name are true.
D. The memory and the number of descriptors are as before.
E. No planted secret comes out, and no traceback.
F. The collector is alive, or has ended with a documented code.
U. Nothing claims more than is true, while the fault stands, at each stop and at the end (`claims`).
V. No ID that the exchange issued as a trade is ever called `absent`.

The judge reads files only; it does not import what it judges.
"""

import gzip
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .exchange import Issued, Tape
from .target import SECRETS, Target

NOT_DATA = re.compile(r"(alerts-waiting|exchanges|journal|status|symbols|upload)[\w-]*\.jsonl?")
"""What a data directory holds beside rows, directly below itself: what is known, waits or happened."""
NOT_DATA_FOLDERS = {"measured", "quarantine"}
STATING = {"lost", "absent", "absence_seen"}
OPENING_AGAIN = {"reopened", "damaged"}
NUMBERS = re.compile(rb"[0-9]+(?:\.[0-9]+)?")
OWN_NAME = re.compile(r"(?P<symbol>\w+)-trade-\d{4}-\d\d-\d\d-(?P<first>\d+)(?:-(?P<last>\d+))?\.csv(?:\.zip)?")
MORE_MEMORY_MB = 25.0
MORE_DESCRIPTORS = 4
"""What a process may need more after a fault than before: warm caches and a retry in the air, not what grows."""

Entry = dict[str, Any]


@dataclass
class Findings:
    """What stands in the files."""

    files: dict[Path, list[Issued]] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Counter[tuple[str, int]]:
        """How often each row was found, by symbol and number."""
        return Counter((row.symbol, row.number) for rows in self.files.values() for row in rows)


@dataclass
class Score:
    """One case's result."""

    case: str
    target: str
    sent: int = 0
    stored: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    torn: int = 0
    altered: int = 0
    lost: int = 0
    """Rows that are nowhere, and nothing says so."""
    stated: int = 0
    """Rows that are not there, and the journal says why."""
    noticed: bool = False
    """Whether it said anything after the fault."""
    told: str = ""
    """The line that tells the user."""
    recovered_s: float | None = None
    """From healing to the first row issued after it."""
    exit_code: int | None = None
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether all was as it must be."""
        return not self.failures and not self.skipped

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self) | {"passed": self.passed}


def journal(data_dir: Path) -> list[Entry]:
    """Return the journal's entries; a line that is torn is none."""
    entries = []
    try:
        text = (data_dir / "journal.jsonl").read_text(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


@dataclass(frozen=True)
class Statements:
    """What the journal says of one symbol's IDs that are in no file."""

    ranges: Sequence[tuple[str, int, int]]
    """Kind, first and last ID of each entry, in order."""
    restarts: Sequence[tuple[int, int]]
    """The last ID of a numbering, and the first of the one that followed."""

    def of(self, id_: int) -> str:
        """Return the kind that states an ID, the last one said; empty where nothing does."""
        kinds = [kind for kind, first, last in self.ranges if first <= id_ <= last]
        return "" if not kinds or kinds[-1] in OPENING_AGAIN else kinds[-1]

    def unproved(self, rows: Sequence[Issued]) -> set[int]:
        """Return the numbers of rows of a numbering behind the last that was seen before the next one began."""
        found: set[int] = set()
        for last_id, first_id in self.restarts:
            before = [row.number for row in rows if row.trade.id == last_id]
            behind = [row.number for row in rows if row.trade.id == first_id]
            if before and behind:
                between = rows[before[-1] + 1 : behind[-1]]
                found.update(row.number for row in between if row.trade.id > last_id)
        return found


def statements(entries: Sequence[Entry], symbol: str) -> Statements:
    """Return what is said of a symbol's IDs."""
    ours = [entry for entry in entries if str(entry.get("subject", "")).endswith(f"/{symbol}")]
    ranges = [
        (entry["event"], entry["first_id"], entry["last_id"])
        for entry in ours
        if entry["event"] in STATING | OPENING_AGAIN
    ]
    restarts = [(entry["last_id"], entry["first_id"]) for entry in ours if entry["event"] == "numbering_restarted"]
    return Statements(ranges, restarts)


def wrongly_absent(entries: Sequence[Entry], market: Tape) -> list[int]:
    """Return the IDs of trades that the exchange issued and history has, and the journal has ever called absent."""
    found = []
    for symbol, rows in market.issued.items():
        absent = [(low, high) for kind, low, high in statements(entries, symbol).ranges if kind == "absent"]
        for row in rows if absent else ():
            is_public = row.is_trade and row.trade.id not in market.unpublished
            if is_public and any(low <= row.trade.id <= high for low, high in absent):
                found.append(row.trade.id)
    return found


def data_files(data_dir: Path) -> Iterator[Path]:
    """Yield the files that may hold rows."""
    for path in sorted(data_dir.rglob("*")):
        parts = path.relative_to(data_dir).parts
        hidden = any(part.startswith(".") for part in parts) or NOT_DATA_FOLDERS & set(parts)
        known = len(parts) == 1 and NOT_DATA.fullmatch(path.name)
        if not hidden and not known and path.is_file():
            yield path


Read = dict[tuple[Path, int, int, int], "Findings"]
"""What was found in a file, by its path, its inode, its size and when it was changed."""


def read(
    data_dir: Path, issued: Mapping[str, Sequence[Issued]], target: Target, before: Read | None = None
) -> Findings:
    """Find every row in every file; a file that has not changed since it was read into `before` is not read again."""
    found: Read = {}
    by_price: dict[bytes, Issued] = {}
    for path in data_files(data_dir):
        if target.keeps_journal and path.name.endswith(".unconfirmed"):
            continue
        try:
            state = path.stat()
            key = (path, state.st_ino, state.st_size, state.st_mtime_ns)
            if before is not None and key in before:
                found[key] = before[key]
                continue
            content = _content(path)
        except FileNotFoundError:
            continue
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            found[path, 0, 0, 0] = Findings(torn=[f"{path.name}: {error}"])
            continue
        if not by_price:
            by_price = {row.fields[1]: row for rows in issued.values() for row in rows if row.is_trade}
        found[key] = _found_in(path, content, by_price, issued, target)
    if before is not None:
        before.clear()
        before.update({key: findings for key, findings in found.items() if not findings.torn})
    return _together(found.values())


def _together(each: Iterable[Findings]) -> Findings:
    whole = Findings()
    for findings in each:
        whole.files |= findings.files
        whole.torn += findings.torn
        whole.altered += findings.altered
        whole.untrue += findings.untrue
    return whole


def _found_in(
    path: Path,
    content: bytes,
    by_price: Mapping[bytes, Issued],
    issued: Mapping[str, Sequence[Issued]],
    target: Target,
) -> Findings:
    findings = Findings()
    findings.files[path] = _rows(path, content, by_price, findings, target)
    if target.keeps_journal:
        no_trades = {row.trade.id for rows in issued.values() for row in rows if not row.is_trade}
        _check_own_file(path, findings.files[path], no_trades, findings)
    return findings


def _content(path: Path) -> bytes:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    return path.read_bytes()


def _rows(
    path: Path, content: bytes, by_price: Mapping[bytes, Issued], findings: Findings, target: Target
) -> list[Issued]:
    rows = []
    for number, line in enumerate(content.splitlines(keepends=True)):
        words = NUMBERS.findall(line)
        row = next((by_price[word] for word in words if word in by_price), None)
        if row is None or not line.endswith(b"\n"):
            if number > 0 or not line.endswith(b"\n"):  # the first line may be a header
                findings.torn.append(f"{path.name}, line {number + 1}: {line[:80]!r}")
            continue
        if row.fields[0] not in words or (target.keeps_journal and line not in own_lines(row)):
            findings.altered.append(f"{path.name}: {line[:120]!r}")
        rows.append(row)
    return rows


def own_lines(row: Issued) -> tuple[bytes, bytes]:
    """Return tickcollect's line for a row, as it came live and as it came from history."""
    return _own_line(row, str(row.event_ms)), _own_line(row, "")


def _own_line(row: Issued, event_ms: str) -> bytes:
    trade = row.trade
    columns = (row.symbol, trade.id, trade.price, trade.quantity, "", "", trade.time_ms, trade.buyer_is_maker)
    return f"trade,{event_ms},{','.join(map(str, columns))}\n".encode()


def _check_own_file(path: Path, rows: Sequence[Issued], no_trades: set[int], findings: Findings) -> None:
    ids = [row.trade.id for row in rows]
    name = OWN_NAME.fullmatch(path.name)
    if name is None:
        findings.untrue.append(f"{path.name} is no name of a segment")
    elif not ids and path.suffix == ".zip":
        findings.untrue.append(f"{path.name} is empty")
    elif ids and (int(name["first"]) != ids[0] or (name["last"] and int(name["last"]) != ids[-1])):
        findings.untrue.append(f"{path.name} holds {ids[0]} to {ids[-1]}")
    if any(after <= before or set(range(before + 1, after)) - no_trades for before, after in pairwise(ids)):
        findings.untrue.append(f"{path.name}: its IDs do not rise by one")


def missing(
    issued: Mapping[str, Sequence[Issued]], begins: Mapping[str, int], findings: Findings, entries: Sequence[Entry]
) -> tuple[list[Issued], list[Issued]]:
    """Return the rows that are nowhere: those that nothing is said of, and those that the journal states."""
    found = findings.rows
    silent: list[Issued] = []
    told: list[Issued] = []
    for symbol, rows in issued.items():
        known = statements(entries, symbol)
        unproved = known.unproved(rows)
        for row in rows[begins.get(symbol, len(rows)) :]:
            if row.is_trade and (symbol, row.number) not in found:
                (told if known.of(row.trade.id) or row.number in unproved else silent).append(row)
    return silent, told


def out_of_order(rows: Sequence[Issued]) -> int:
    """Count the rows that stand behind a later one of their symbol."""
    newest: dict[str, int] = {}
    count = 0
    for row in rows:
        count += row.number < newest.get(row.symbol, -1)
        newest[row.symbol] = max(row.number, newest.get(row.symbol, -1))
    return count


def secrets_in(directory: Path) -> list[str]:
    """Return the files, and outputs, in which a planted secret stands."""
    found = []
    for path in directory.rglob("*"):
        if path.is_file() and path.name != "config.json":
            content = path.read_bytes()
            found += [f"{path.name} holds {name}" for name, secret in SECRETS.items() if secret.encode() in content]
    return found


def judge(
    score: Score,
    findings: Findings,
    rows_missing: tuple[Sequence[Issued], Sequence[Issued]],
    target: Target,
) -> None:
    """Fill in what the files say, and what is wrong with it."""
    silent, told = rows_missing
    counts = findings.rows
    score.stored = len(counts)
    score.duplicates = counts.total() - len(counts)
    score.out_of_order = sum(out_of_order(rows) for rows in findings.files.values())
    score.torn, score.altered = len(findings.torn), len(findings.altered)
    score.lost, score.stated = len(silent), len(told)
    if silent:
        ids = [row.trade.id for row in silent]
        score.failures.append(f"{len(ids)} rows are nowhere, the first {ids[0]}, the last {ids[-1]}")
    if score.duplicates:
        score.failures.append(f"{score.duplicates} rows are there twice")
    if score.out_of_order:
        score.failures.append(f"{score.out_of_order} rows stand behind later ones")
    score.failures += [f"torn: {what}" for what in findings.torn[:3]]
    score.failures += [f"altered: {what}" for what in findings.altered[:3]]
    if target.keeps_journal:
        score.failures += findings.untrue[:3]
