"""What the benchmarks found: as a table, as JSON, and in docs/benchmarks.md.

python benchmarks/report.py      puts the last results into docs/benchmarks.md, between its two markers
"""

import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / ".bench" / "results.json"
DOCUMENT = CHECKOUT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results -->", "<!-- end of results -->"
PACKAGES = ("tickcollect", "picows", "aiofastnet", "msgspec", "httpx", "orjson")


@dataclass(frozen=True)
class Figure:
    """One thing that was measured: every run's value, in `unit`."""

    section: str
    name: str
    unit: str
    values: Sequence[float]
    digits: int = 0

    @property
    def middle(self) -> str:
        """The median."""
        return self._text(median(self.values))

    @property
    def spread(self) -> str:
        """The least and the greatest value, where there are several."""
        return f"{self._text(min(self.values))} to {self._text(max(self.values))}" if len(self.values) > 1 else ""

    def _text(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True)
class Results:
    """The figures of one run of the benchmarks, and where they come from."""

    at: str
    size: str
    machine: dict[str, str]
    conditions: Sequence[str]
    figures: list[Figure] = field(default_factory=list)


def begin(size: str, conditions: Sequence[str]) -> Results:
    """Return empty results of now and here."""
    return Results(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), size, _machine(), conditions)


def _machine() -> dict[str, str]:
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}, {platform.python_implementation()} "
        f"{platform.python_version()}",
        "versions": ", ".join(f"{package} {version(package)}" for package in PACKAGES),
        "commit": _commit(),
    }


def _processor() -> str:
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name", platform.processor() or platform.machine())
    family = ", ".join(f"{key} {facts[key]}" for key in ("model", "cpu MHz") if key in facts)
    cores = sum(line.startswith("processor") for line in lines)
    return f"{name} ({family}), {cores} cores" if family else name


def _commit() -> str:
    try:
        described = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"]
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- Out -----------------------------------------------------------------------------------------------------------


def show(results: Results) -> None:
    """Print the table."""
    table = Table(title=f"{results.at}, {results.machine['processor']}", title_justify="left")
    table.add_column("measured")
    table.add_column("median", justify="right")
    table.add_column("unit")
    table.add_column("runs from to")
    for section, figures in groupby(results.figures, key=lambda figure: figure.section):
        table.add_section()
        table.add_row(f"[bold]{section}")
        for figure in figures:
            table.add_row(f"  {figure.name}", figure.middle, figure.unit, figure.spread)
    console = Console()
    if not console.is_terminal:
        console.width = 130
    console.print(table)


def write(results: Results) -> Path:
    """Write the results as JSON and return where."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(asdict(results), indent=1) + "\n")
    return RESULTS


def read() -> Results:
    """Read the last results. Raises `FileNotFoundError`."""
    value = json.loads(RESULTS.read_text())
    return Results(**{**value, "figures": [Figure(**figure) for figure in value["figures"]]})


def markdown(results: Results) -> str:
    """Return the results as the text of the document."""
    lines = [f"Measured {results.at}.", ""]
    lines += [f"* {name}: {value}" for name, value in results.machine.items()]
    lines += [f"* {condition}" for condition in results.conditions]
    for section, figures in groupby(results.figures, key=lambda figure: figure.section):
        lines += ["", f"### {section}", "", "| measured | median | unit | all runs |", "|---|---:|---|---|"]
        lines += [f"| {figure.name} | {figure.middle} | {figure.unit} | {figure.spread} |" for figure in figures]
    return "\n".join(lines)


def publish(results: Results) -> None:
    """Replace what stands between the document's markers."""
    head, rest = DOCUMENT.read_text().split(BEGIN)
    _, tail = rest.split(END)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{markdown(results)}\n{END}{tail}")


def main() -> None:
    """Publish the last full run."""
    try:
        results = read()
    except FileNotFoundError:
        sys.exit("There are no results yet: run `make bench` first.")
    if results.size != "full":
        sys.exit(f"The last results are of a {results.size} run: run `make bench` first.")
    publish(results)
    print(f"{DOCUMENT} has the results of {results.at}.")


if __name__ == "__main__":
    main()
