"""What a newcomer's machine gets: the wheel, the installed command, and the commands that README and Makefile name.

Nothing here asks a package index: the wheel is built by the backend that is installed, and the fresh environment takes
the dependencies from this one.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import tickcollect

CHECKOUT = Path(__file__).resolve().parents[1]
MAKEFILE = (CHECKOUT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
TIMEOUT_S = 60
OWN = {"tickcollect", "pydantic_core", "mypy_boto3_s3"}
"""pydantic and its core are one thing in two packages, pinned to each other; the last is for the type checker only."""
PACKAGES = {"PIL": "pillow", "telegram": "python_telegram_bot"}
"""Packages that are imported by another name than they are installed by."""

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def output_of(*command: str | Path, cwd: Path = CHECKOUT) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    directory = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = output_of(sys.executable, "-c", build, directory).splitlines()[-1]
    return directory / name


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment, whose path has a space in it; return its bin/."""
    home = tmp_path_factory.mktemp("fresh machine")
    venv.create(home, symlinks=True, with_pip=False)
    python = home / "bin" / "python"
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    output_of(sys.executable, "-m", "pip", "--python", python, *install, cwd=home)
    # A path in a .pth file is looked at for modules only: this environment's own tickcollect stays invisible.
    (site,) = (home / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def members(wheel: Path) -> Sequence[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_every_module_and_its_types(wheel: Path) -> None:
    """A wheel has each file of the package, `py.typed` included."""
    package = CHECKOUT / "tickcollect"
    files = {str(path.relative_to(CHECKOUT)) for path in package.rglob("*") if path.suffix in {".py", ".typed"}}
    assert "tickcollect/py.typed" in files
    assert files <= set(members(wheel))


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    """A wheel has no tests, benchmarks, data or leftovers: only the package and its metadata."""
    strangers = [name for name in members(wheel) if not re.match(r"tickcollect(/|-[^/]+\.dist-info/)", name)]
    assert strangers == []
    assert [name for name in members(wheel) if "__pycache__" in name or "/test" in name] == []


def test_the_installed_command_tells_its_version(installed: Path, tmp_path: Path) -> None:
    """In a fresh environment with a space in its path, the installed command runs and is the wheel's own."""
    told = output_of(installed / "tickcollect", "--version", cwd=tmp_path)
    assert tickcollect.__version__ in told
    origin = output_of(installed / "python", "-c", "import tickcollect; print(tickcollect.__file__)", cwd=tmp_path)
    assert Path(origin.strip()).is_relative_to(installed.parent)


def test_the_installed_command_helps_with_each_command(installed: Path, tmp_path: Path) -> None:
    """Every command that `--help` lists has a help text of its own."""
    listed = output_of(installed / "tickcollect", "--help", cwd=tmp_path).partition("Commands:")[2]
    names = re.findall(r"^  ([a-z-]+) ", listed, re.MULTILINE)
    assert {"run", "status", "upload", "report", "check", "alert-test", "replay", "demo"} <= set(names)
    for name in names:
        assert "Usage:" in output_of(installed / "tickcollect", name, "--help", cwd=tmp_path)


def test_what_the_code_imports_is_declared() -> None:
    """Every third-party package that the product imports is among its own dependencies, not borrowed from another's."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=~! ]", line)[0].replace("-", "_").lower() for line in project["dependencies"]}
    imported = set()
    for path in (CHECKOUT / "tickcollect").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    packages = {PACKAGES.get(name, name) for name in imported if name not in sys.stdlib_module_names}
    borrowed = packages - declared - OWN
    assert borrowed == set()


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "kill", "clean", "help"])
def test_make_knows_its_targets(target: str) -> None:
    """Each promised target exists, can be planned by make, and is listed by `make help`."""
    output_of("make", "--dry-run", target)
    assert re.search(rf"^  {target} +\S", output_of("make"), re.MULTILINE)


def test_each_target_is_listed() -> None:
    """No target is missing in the help or in `.PHONY`."""
    listed = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert listed == TARGETS == set(phony.split())


@pytest.mark.parametrize("document", ["README.md", "docs/benchmarks.md"])
def test_documents_name_only_targets_that_exist(document: str) -> None:
    """Every `make TARGET` in a document is a target."""
    named = re.findall(r"(?:`|^|\n *)(?:\$ )?make ([a-z][a-z-]*)", (CHECKOUT / document).read_text())
    assert set(named) - TARGETS == set()


def test_files_that_make_runs_exist() -> None:
    """Every script and test file that the Makefile names is in the checkout."""
    named = re.findall(r"\b((?:benchmarks|tests)/\w+\.py)", MAKEFILE)
    assert [name for name in named if not (CHECKOUT / name).exists()] == []


@needs_make
def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    """With a Python below 3.11, make says so, says what to do, and makes nothing."""
    old = tmp_path / "python3"
    old.write_text(f"""#!/bin/sh
case "$1" in
--version) echo Python 3.9.2 ;;
-c) exec '{sys.executable}' -c "import sys; sys.version_info = (3, 9, 2); $2" ;;
*) exit 1 ;;
esac
""")
    old.chmod(0o755)
    shutil.copy(CHECKOUT / "Makefile", tmp_path)
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    done = subprocess.run(
        ["make", f"PYTHON={old}", "demo"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode != 0
    first, _ = done.stderr.split("\n", 1)
    assert "needs Python 3.11" in first
    assert "Python 3.9.2" in first
    assert not (tmp_path / ".venv").exists()


def test_the_pipeline_calls_what_it_should() -> None:
    """`.ci/run` is an executable script that ends in `make check test`, and bash can parse it."""
    script = CHECKOUT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().rstrip().endswith("make check test")
    output_of("bash", "-n", script)
