"""The package's layout: who may import whom, and what never touches what. Read from the imports, not from a promise."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tickcollect"

LAYOUT: dict[str, set[str]] = {
    # the bottom: what needs nothing of the package
    "": set(),
    "events": set(),
    "files": set(),
    "gaps": set(),
    "hours": set(),
    "journal": set(),
    "budget": {"refusals"},
    "checkpoint": set(),
    "refusals": set(),
    "rest": {"budget", "refusals"},
    "status": set(),
    "systemd": set(),
    # the exchanges: pure
    "exchanges": {"events"},
    # the files of a feed
    "salvage": {"events"},
    "damage": {"files", "journal", "recovery", "salvage", "sealed"},
    "feed_record": {"events", "files"},
    "sealed": {"events", "files", "salvage"},
    "recovery": {"feed_record", "files", "salvage"},
    "segments": {"feed_record", "files", "hours", "recovery", "salvage"},
    # the path of a row, and the way back to what is missing
    "feed": {"events", "exchanges", "refusals"},
    "repair": {"events", "exchanges", "gaps", "rest"},
    "writer": {"events", "exchanges", "feed", "gaps", "measured", "segments"},
    "neighbours": {"files", "repair", "writer"},
    "backfill": {"events", "gaps", "journal", "neighbours", "repair", "rest", "segments", "writer"},
    "config": {"exchanges"},
    "happenings": {"journal"},
    "venues": {"", "budget", "config", "exchanges", "rest"},
    "newest": {"budget", "events", "exchanges", "rest", "venues", "writer"},
    "coverage": {"budget", "exchanges", "feed", "happenings", "newest", "venues", "writer"},
    "listings": {"budget", "exchanges", "files", "refusals", "rest", "venues"},
    "starting": {"listings", "segments", "venues"},
    "watch": {"newest", "budget", "exchanges", "feed", "rest", "venues", "writer"},
    # what is told, measured and delivered
    "alerts": {"", "config"},
    "backlog": {"files", "status"},
    "chart": {"report"},
    "measured": {"journal"},
    "metrics": {"", "status"},
    "report": {
        "alerts", "backlog", "config", "events", "exchanges", "files", "gaps", "hours", "journal", "measured",
        "salvage", "sealed", "status",
    },
    "store": {"", "config", "files"},
    "deliveries": {"journal", "sealed"},
    "upload": {
        "", "backlog", "config", "deliveries", "events", "exchanges", "files", "happenings", "journal", "salvage",
        "sealed", "status", "store",
    },
    "check": {
        "alerts", "budget", "config", "events", "exchanges", "feed", "files", "rest", "status", "store", "venues",
    },
    "collector": {
        "", "alerts", "backfill", "backlog", "budget", "checkpoint", "config", "coverage", "damage", "events",
        "exchanges", "feed", "files", "gaps", "happenings", "journal", "listings", "measured", "metrics", "neighbours",
        "newest",
        "recovery", "repair", "rest", "salvage", "segments", "starting", "status", "systemd", "venues", "watch",
        "writer",
    },
    # what a person starts
    "cli": {
        "", "alerts", "backlog", "chart", "check", "collector", "config", "dataset", "demo", "files", "journal",
        "metrics", "report", "segments", "status", "store", "terminal", "upload", "venues",
    },
    "terminal": {"collector", "config", "status"},
    "demo": {"", "collector", "config", "dataset", "events", "files", "terminal"},
    "__main__": {"cli"},
    # the reading half
    "dataset": {"events", "exchanges", "files", "segments"},
}  # fmt: skip
"""What each module, or folder of modules, may import of the package. `""` is the package itself (its version)."""

PURE = ("budget", "events", "exchanges", "gaps", "refusals", "salvage")
WORLD = {
    "asyncio", "concurrent", "http", "httpx", "logging", "loguru", "multiprocessing", "os", "pathlib", "picows",
    "random", "secrets", "select", "socket", "ssl", "subprocess", "threading", "time", "websockets",
}  # fmt: skip
"""Sockets, files, clocks, chance, logs, tasks."""

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager", "managers", "handy"}
LONGEST_FUNCTION_LINES = 60

SOURCES = sorted(PACKAGE.rglob("*.py"))


def name_of(source: Path) -> str:
    """Return a module's name below the package, `exchanges.binance`; "" for the package itself."""
    parts = source.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the row of the table that a module belongs to: itself, or its folder."""
    return module.partition(".")[0]


@cache
def nodes(source: Path) -> list[ast.AST]:
    """Return every node of a module's syntax, the module itself first."""
    return list(ast.walk(ast.parse(source.read_text("utf-8"))))


def imports(source: Path) -> Iterator[str]:
    """Yield what a module imports, wherever in it, as full names."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def own_parts(source: Path) -> set[str]:
    """Return the parts of the package that a module imports."""
    found = set()
    for name in imports(source):
        head, _, rest = name.partition(".")
        if head == PACKAGE.name:
            part = part_of(rest)
            is_module = (PACKAGE / f"{part}.py").exists() or (PACKAGE / part).is_dir()
            found.add(part if is_module else "")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_imports_follow_the_layout(source: Path) -> None:
    """A module imports of the package only what its row of the table allows."""
    part = part_of(name_of(source))
    assert part in LAYOUT, f"{source.name} has no place in the layout: give it a row in the table"
    assert own_parts(source) - {part} <= LAYOUT[part]


def test_layout_names_only_what_exists() -> None:
    """The table has no row and no entry for modules that are gone."""
    parts = {part_of(name_of(source)) for source in SOURCES}
    assert set(LAYOUT) == parts
    assert {entry for row in LAYOUT.values() for entry in row} <= parts


def reachable(part: str) -> set[str]:
    """Return what a part needs, directly or through others, by the imports as they are."""
    direct: dict[str, set[str]] = {}
    for source in SOURCES:
        direct.setdefault(part_of(name_of(source)), set()).update(own_parts(source))
    found, waiting = set[str](), [part]
    while waiting:
        for needed in direct[waiting.pop()] - found:
            found.add(needed)
            waiting.append(needed)
    return found


def test_collecting_never_needs_the_reading_half() -> None:
    """Whatever collects works without `dataset`, the command line and the demonstration."""
    assert not reachable("collector") & {"dataset", "cli", "demo", "__main__"}


def test_reading_half_never_needs_what_collects() -> None:
    """`dataset` reads what the files hold and never imports what fills them."""
    assert not reachable("dataset") & {"collector", "feed", "writer", "config", "cli"}


def test_path_has_no_circles() -> None:
    """No part of the collecting half needs itself through others."""
    for part in LAYOUT.keys() - {"cli", "demo", "__main__"}:
        through = set[str]().union(*(reachable(other) for other in reachable(part) - {part}))
        assert part not in through, part


@pytest.mark.parametrize("source", [s for s in SOURCES if part_of(name_of(s)) in PURE], ids=name_of)
def test_pure_modules_do_not_touch_the_world(source: Path) -> None:
    """What decides about bytes and numbers has no socket, file, clock, chance, log or task."""
    heads = {name.partition(".")[0] for name in imports(source)}
    assert not heads & WORLD


def test_adapters_do_not_know_each_other() -> None:
    """One exchange's adapter never imports another's."""
    adapters = [source for source in (PACKAGE / "exchanges").glob("*.py") if source.name != "__init__.py"]
    for source in adapters:
        others = {f"tickcollect.exchanges.{other.stem}" for other in adapters if other != source}
        assert not {name.rpartition(".")[0] for name in imports(source)} & others


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_module_says_what_it_is_for(source: Path) -> None:
    """Every module opens with a docstring whose first line is a sentence, and has a name that means something."""
    module = nodes(source)[0]
    assert isinstance(module, ast.Module)
    docstring = ast.get_docstring(module)
    assert docstring, f"{source} has no docstring"
    assert len(docstring.partition("\n")[0]) > 20
    assert source.stem not in EMPTY_NAMES


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_functions_fit_a_screen(source: Path) -> None:
    """No function is longer than a screen, its docstring not counted."""
    for node in nodes(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            has_docstring = ast.get_docstring(node) is not None
            first = node.body[1].lineno if has_docstring and len(node.body) > 1 else node.lineno
            assert (node.end_lineno or first) - first < LONGEST_FUNCTION_LINES, f"{source.name}: {node.name}"


def test_optional_and_heavy_packages_stay_at_their_border() -> None:
    """Each outside library is used where it belongs, so that it can be exchanged there."""
    border = {
        "picows": {"feed"},
        "httpx": {"rest"},
        "PIL": {"chart"},
        "apprise": {"alerts"},
        "boto3": {"store"},
        "botocore": {"store"},
        "click": {"cli", "demo", "terminal"},
        "prometheus_client": {"metrics"},
        "telegram": {"alerts"},
        "pydantic": {"config"},
        "websockets": {"dataset"},
    }
    for source in SOURCES:
        for name in imports(source):
            allowed = border.get(name.partition(".")[0])
            assert allowed is None or part_of(name_of(source)) in allowed, f"{source.name} imports {name}"
