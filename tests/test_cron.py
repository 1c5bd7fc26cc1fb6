"""`add_cron.sh` with Debian's real cron, in namespaces of its own: no crontab of this machine is read or changed."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from conftest import GAPS_STAY, Programs, data_files, exchange, rows_told, until

from tickcollect.dataset.replay import GeneratedMarket

ADD_CRON = Path(__file__).parents[1] / "add_cron.sh"
TOOLS = {"cron": "cron", "crontab": "cron", "faketime": "faketime", "flock": "util-linux", "nsenter": "util-linux"}
OTHERS = "# mine\nSHELL=/bin/false\nPATH=/nowhere\nCRON_TZ=Asia/Tokyo\n17 3 * * *\techo 50\\% grün >/dev/null\n\n"


@cache
def missing() -> str:
    """Return why no cron can be run here, apart from the machine's own."""
    if absent := sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None}):
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "only root can start a cron of its own"
    probe = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else ""


with_cron = pytest.mark.skipif(bool(missing()), reason=missing())


# --- A machine -----------------------------------------------------------------------------------------------------

MADE = """
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
cp -a /etc /run/etc
rm -rf /run/etc/cron*
ln -sf "/usr/share/zoneinfo/$1" /run/etc/localtime
mount --bind /run/etc /etc
mount -t tmpfs -o mode=1730,gid=crontab tmpfs /var/spool/cron/crontabs
echo made
exec sleep infinity
"""
"""The copy of /etc has none of the system's own jobs: those would work on the real machine."""


@dataclass
class Machine:
    """A machine of its own as far as cron can see: crontabs, /etc, /run, processes. Other files are the real ones."""

    holder: int
    folder: Path
    daemons: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def start(self, *command: object, env: Mapping[str, str] | None = None, **how: Any) -> "subprocess.Popen[str]":
        """Start a command in it, in `folder`."""
        enter = ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", f"--pid=/proc/{self.holder}/ns/pid_for_children"]
        there = ["sh", "-c", 'cd "$0" && exec "$@"', self.folder]
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", **(env or {})}
        return subprocess.Popen(
            [*enter, *map(str, [*there, *command])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, **how,
        )  # fmt: skip

    def run(self, *command: object, said: str | None = None, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end; `said` is its input."""
        with self.start(*command, **how) as process:
            out, err = process.communicate(said, timeout=60)
            return subprocess.CompletedProcess([*map(str, command)], process.returncode, out, err)

    def add_cron(self, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run `add_cron.sh`."""
        return self.run(ADD_CRON, *arguments, **how)

    @property
    def crontab(self) -> str:
        """The user's crontab; empty where there is none."""
        found = self.run("crontab", "-l")
        assert found.returncode == 0 or "no crontab for" in found.stderr, found
        return found.stdout

    @crontab.setter
    def crontab(self, text: str) -> None:
        found = self.run("crontab", "-", said=text)
        assert found.returncode == 0, found.stderr

    def start_cron(self, moment: datetime) -> None:
        """Start Debian's cron with a clock that comes to `moment` in two seconds. It runs as long as the machine."""
        ahead_s = round(moment.timestamp() - time.time() - 2)
        self.daemons.append(self.start("faketime", "-f", f"{ahead_s:+}s", "cron", "-f"))


@contextmanager
def machine_in(folder: Path, zone: str = "Etc/UTC") -> Iterator[Machine]:
    """Make a machine whose zone is `zone`, until the block ends."""
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", MADE, "bash"]
    with subprocess.Popen([*unshare, zone], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "made\n"
            made = Machine(holder.pid, folder)
            yield made
        finally:
            holder.kill()  # and with it every process of the machine
    for daemon in made.daemons:
        daemon.communicate(timeout=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a directory with a configuration, whose name is a trial for sh and for cron, but not for cron's longest."""
    with TemporaryDirectory(prefix="c") as above:
        Path(above).chmod(0o755)
        made = Path(above) / "it's 5% \\% off"
        made.mkdir()
        (made / "config.json").write_text('{"AWS_SECRET_KEY": "planted-secret", "AWS_ACCESS_KEY": "planted-id"}')
        (made / "config.json").chmod(0o600)
        yield made


@pytest.fixture
def machine(folder: Path) -> Iterator[Machine]:
    """Make a machine in UTC."""
    with machine_in(folder) as made:
        yield made


# --- The program that is run ---------------------------------------------------------------------------------------

STAND_IN = """#!/bin/sh
case $1 in status) exit 0 ;; esac
{ echo "$*"; pwd; umask; echo "$PATH"; } >>"$0.said"
[ ! -p "$0.hold-$1" ] || read -r _ <"$0.hold-$1"
echo "done: $1"
"""


@dataclass
class StandIn:
    """A program that says how it was called, and ends when it may."""

    path: Path

    @property
    def said(self) -> list[str]:
        """The arguments, the directory, the umask and the PATH of each call."""
        said = self.path.with_name("tickcollect.said")
        return said.read_text().splitlines() if said.exists() else []

    def hold(self, command: str) -> None:
        """Let a command wait."""
        os.mkfifo(self.path.with_name(f"tickcollect.hold-{command}"))

    def release(self, command: str) -> None:
        """Let the command that waits, and later ones, end."""
        fifo = self.path.with_name(f"tickcollect.hold-{command}")
        with fifo.open("w") as gate:
            fifo.unlink()
            gate.write("\n")


@pytest.fixture
def stand_in(folder: Path) -> StandIn:
    """Put the program into a venv beside the configuration, where `add_cron.sh` looks for it."""
    path = folder / ".venv" / "bin" / "tickcollect"
    path.parent.mkdir(parents=True)
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return StandIn(path)


def ours(crontab: str) -> list[str]:
    """Return the lines that `add_cron.sh` has put in."""
    return [line for line in crontab.splitlines() if " # tickcollect:" in line]


def this_minute() -> datetime:
    """Return the beginning of the present minute."""
    return datetime.now(UTC).replace(second=0, microsecond=0)


def command_of(line: str) -> str:
    """Return what cron gives to the shell: what stands after the times, with its percent signs."""
    return line.split(maxsplit=1 if line.startswith("@") else 5)[-1].replace("\\%", "%")


# --- With cron -----------------------------------------------------------------------------------------------------


@with_cron
def test_cron_runs_the_lines(machine: Machine, folder: Path, stand_in: StandIn) -> None:
    """Cron runs upload, then report, with the right surroundings, once at a time, and the collector at the start."""
    minute = this_minute()
    machine.crontab = OTHERS
    stand_in.hold("upload")
    stand_in.hold("run")
    installed = machine.add_cron("--at", f"{minute:%H:%M}", "--delete-after", "7", "--reboot")
    assert installed.returncode == 0, installed
    assert "planted" not in machine.crontab
    machine.start_cron(minute)
    log, run_log = folder / "nightly.log", folder / "run.log"
    config = folder / "config.json"
    expected = {f"run --config {config}", f"upload --config {config} --delete-after 7"}
    until(lambda: expected <= set(stand_in.said), lambda: str(stand_in.said))

    nightly, reboot = ours(machine.crontab)
    for line, file, why in ((nightly, log, "the run before has not ended yet"), (reboot, run_log, "it runs already")):
        again = machine.run("sh", "-c", command_of(line))
        assert (again.returncode, again.stdout, again.stderr) == (75, "", "")
        assert file.read_text().endswith(f"not started: {why}\n")
        assert file.stat().st_mode & 0o777 == 0o640

    stand_in.release("upload")
    until(lambda: log.read_text().endswith("done: upload\ndone: report\n"), log.read_text)
    stand_in.release("run")
    until(lambda: run_log.read_text().endswith("done: run\n"), run_log.read_text)
    calls = {said[0]: said[1:] for said in zip(*[iter(stand_in.said)] * 4, strict=True)}
    assert calls.keys() == {*expected, f"report --send --config {config}"}
    surroundings = (str(folder), "0027", f"{stand_in.path.parent}:/usr/local/bin:/usr/bin:/bin")
    assert set(calls.values()) == {surroundings}
    assert datetime.fromisoformat(log.read_text().splitlines()[0]).tzinfo is not None


@with_cron
def test_the_night_with_the_real_program(machine: Machine, folder: Path, programs: Programs) -> None:
    """What `tickcollect run` has sealed is in the store after cron's run, and the log tells the outcome."""
    data_dir, backup = folder / "data", folder / "backup"
    backup.mkdir()
    keys = {**GAPS_STAY, "SEAL_AT_STOP": True, "UPLOAD_TO": f"file://{backup}"}
    (folder / "config.json").write_text(json.dumps(keys))
    with exchange(GeneratedMarket("binance", 1_784_000_000_000, symbols=1, activity=60)) as served:
        options = ("--symbol", "BTCUSDT", "--data-dir", data_dir, "--config", folder / "config.json")
        run = programs.start("run", *options, *served.addresses)
        run.until(lambda: rows_told(data_dir) > 0)
        assert run.stop().code == 0
    (sealed,) = data_files(data_dir, "binance/trade/BTCUSDT")

    program = folder / "tickcollect"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ADD_CRON.parent} exec {sys.executable} -m tickcollect "$@"\n')
    program.chmod(0o755)
    log = folder / "nightly.log"
    minute = this_minute()
    installed = machine.add_cron("--at", f"{minute:%H:%M}", "--tickcollect", program)
    assert installed.returncode == 0, installed
    machine.start_cron(minute)
    copy = backup / sealed.path.relative_to(data_dir)
    until(copy.exists, lambda: log.read_text() if log.exists() else "no log")
    assert copy.read_bytes() == sealed.path.read_bytes()
    until(lambda: "1 file" in log.read_text(), log.read_text)


# --- 00:10 UTC in every zone ---------------------------------------------------------------------------------------

ZONES = {
    "Etc/UTC": "2026-11-21",
    "Europe/Berlin": "2027-03-28",  # summer begins
    "America/New_York": "2027-11-07",  # and ends
    "America/St_Johns": "2027-03-14",
    "Asia/Kolkata": "2027-01-01",
    "Asia/Kathmandu": "2027-01-01",
    "Australia/Lord_Howe": "2027-04-03",  # by half an hour
}
"""Zones, and a day on which the clocks change or could."""


def passing_minutes(line: str, zone: str, first: datetime, hours: int) -> list[datetime]:
    """Return when the line would go on: cron tries it each time its minute comes round in `zone`."""
    minute, guard = int(line.split(maxsplit=1)[0]), command_of(line).partition(" || exit 0;")[0]
    tried = [first + timedelta(minutes=place) for place in range(hours * 60)]
    tried = [moment for moment in tried if moment.astimezone(ZoneInfo(zone)).minute == minute]
    script = "\n".join(
        f"faketime '{moment:%Y-%m-%d %H:%M:%S}' sh -c {shlex.quote(guard)} && echo yes || echo no" for moment in tried
    )
    answers = subprocess.run(
        ["sh"],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"TZ": "UTC0", "PATH": "/usr/bin:/bin"},
    ).stdout.split()
    return [moment for moment, answer in zip(tried, answers, strict=True) if answer == "yes"]


@with_cron
@pytest.mark.parametrize(("zone", "day"), ZONES.items(), ids=ZONES)
@pytest.mark.parametrize("at", ["00:10", "23:45"])
def test_the_line_runs_once_a_day_at_its_time_in_utc(
    zone: str, day: str, at: str, folder: Path, stand_in: StandIn
) -> None:
    """In any zone, and when its clocks change, cron's tries let exactly one a day through, at the time in UTC."""
    with machine_in(folder, zone) as machine:
        assert machine.add_cron("--at", at).returncode == 0
        (line,) = ours(machine.crontab)
    first = datetime.fromisoformat(f"{day}T12:00:00+00:00") - timedelta(days=1)
    due = [datetime.fromisoformat(f"{day}T{at}:00+00:00") + timedelta(days=place) for place in (-1, 0, 1)]
    due = [moment for moment in due if first <= moment < first + timedelta(hours=48)]
    found = passing_minutes(line, zone, first, 48)
    late = [moment - wanted for moment, wanted in zip(found, due, strict=True)]
    half_an_hour = [timedelta(0), timedelta(minutes=30)] if zone == "Australia/Lord_Howe" else [timedelta(0)]
    assert all(delay in half_an_hour for delay in late), late


@with_cron
def test_a_zone_that_is_changed_later_costs_no_night(folder: Path, stand_in: StandIn) -> None:
    """A line made in one zone still runs once a day in another, less than an hour after its time."""
    with machine_in(folder, "Etc/UTC") as machine:
        machine.add_cron()
        (line,) = ours(machine.crontab)
    (found,) = passing_minutes(line, "Asia/Kolkata", datetime(2026, 11, 21, 12, tzinfo=UTC), 24)
    assert timedelta(0) <= found - datetime(2026, 11, 22, 0, 10, tzinfo=UTC) < timedelta(hours=1)


@with_cron
def test_show_tells_the_next_run_and_the_last_words(folder: Path, stand_in: StandIn) -> None:
    """Shown are the line, its next run in UTC and in the machine's zone, and the end of its log."""
    (folder / "nightly.log").write_text("".join(f"line {number}\n" for number in range(20)))
    with machine_in(folder, "Asia/Kolkata") as machine:
        machine.add_cron("--reboot")
        lines = ours(machine.crontab)
        shown = machine.run("faketime", "2026-11-21 05:39:59", ADD_CRON, "show")
        after = machine.run("faketime", "2026-11-21 05:40:00", ADD_CRON, "show")
        assert shown.returncode == 1
        assert "no cron is running" in shown.stderr
        machine.start_cron(this_minute())
        until(lambda: machine.add_cron("show").returncode == 0, lambda: str(machine.add_cron("show")))
    assert all(f"  {line}\n" in shown.stdout for line in lines)
    assert "runs next 2026-11-21 00:10 UTC, 2026-11-21 05:40 IST here" in shown.stdout
    assert "runs next 2026-11-22 00:10 UTC, 2026-11-22 05:40 IST here" in after.stdout
    assert "    line 15\n" in shown.stdout
    assert "    line 14\n" not in shown.stdout


# --- The crontab ---------------------------------------------------------------------------------------------------

CRONTABS = {
    "none": "",
    "comments only": "# nothing yet\n\n",
    "settings": OTHERS,
    "jobs": "@daily true\n*/5 * * * * echo \\% 'a b'   \n\t\n10 0 * * * tickcollect upload\n",
    "a job with our words": "1 1 * * * echo ' # tickcollect:nightly /elsewhere/config.json' | cat\n",
}


@with_cron
@pytest.mark.parametrize("before", CRONTABS.values(), ids=CRONTABS)
def test_lines_of_others_stay_byte_for_byte(before: str, machine: Machine, stand_in: StandIn) -> None:
    """Installing adds lines and removing takes the same lines: what others wrote is then as it was, to the byte."""
    if before:
        machine.crontab = before
    assert machine.add_cron("--reboot").returncode == 0
    after = machine.crontab
    lines = "".join(f"{line}\n" for line in after.splitlines() if line.endswith("off/config.json"))
    assert lines.count("\n") == 2
    assert after.replace(lines, "", 1) == before
    removed = machine.add_cron("remove")
    assert removed.returncode == 0, removed
    assert machine.crontab == before


@with_cron
def test_settings_of_others_do_not_reach_our_line(machine: Machine, stand_in: StandIn) -> None:
    """The line stands before any setting, because cron applies those to what follows."""
    machine.crontab = OTHERS
    machine.add_cron()
    assert " # tickcollect:" in machine.crontab.splitlines()[0]


@with_cron
def test_installing_again_changes_nothing_or_replaces(machine: Machine, stand_in: StandIn) -> None:
    """The same wishes leave the crontab as it is; other wishes replace the lines of the configuration."""
    machine.crontab = OTHERS
    assert "Now in the crontab" in machine.add_cron().stdout
    before = machine.crontab
    assert "Already in the crontab" in machine.add_cron("--config", "./config.json").stdout
    assert machine.crontab == before
    machine.add_cron("--at", "03:25", "--no-report", "--reboot")
    nightly, reboot = ours(machine.crontab)
    assert nightly.startswith("25 * * * * ")
    assert "TZ=UTC03:25 " in nightly
    assert "report" not in nightly
    assert reboot.startswith("@reboot ")
    machine.add_cron()
    assert machine.crontab == before


@with_cron
def test_several_configurations_live_side_by_side(machine: Machine, folder: Path, stand_in: StandIn) -> None:
    """Each configuration has its own line, log and lock, and is removed alone."""
    machine.folder = folder = folder.parent
    (folder / "config.json").write_text("{}")
    (folder / "other.json").write_text("{}")
    program = ("--tickcollect", stand_in.path)
    for wishes in ((), ("--config", "other.json"), ("--data-dir", "more")):
        assert machine.add_cron(*wishes, *program).returncode == 0
    lines = ours(machine.crontab)
    assert len(lines) == 3
    logs = [
        machine.add_cron("show").stdout.count(f"in {folder}/{name}\n")
        for name in ("nightly.log", "nightly-other.log", "nightly-more.log")
    ]
    assert logs == [1, 1, 1]
    clash = machine.add_cron("--data-dir", "third", "--log", "nightly.log", *program)
    assert clash.returncode == 2
    assert "is the log of another configuration" in clash.stderr
    machine.add_cron("remove")
    assert ours(machine.crontab) == lines[1:]
    none = machine.add_cron("remove")
    assert none.returncode == 1
    assert f"but for: {folder}/config.json {folder}/more; {folder}/other.json" in none.stderr.replace(";", "; ")


@with_cron
def test_one_configuration_has_one_line_whichever_way_it_is_named(
    machine: Machine, folder: Path, stand_in: StandIn
) -> None:
    """`..`, `.` and doubled slashes lead to the same file, and so to the same line; a link that leads elsewhere not."""
    below = folder / "below"
    below.mkdir()
    elsewhere = folder / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (elsewhere.parent / "config.json").write_text("{}")
    (below / "link").symlink_to(elsewhere)
    program = ("--tickcollect", stand_in.path)
    for path in ("config.json", "./config.json", "below/../config.json", f"{folder}/below/.././/config.json"):
        assert machine.add_cron("--config", path, *program).returncode == 0
    machine.folder = below
    assert machine.add_cron("--config", "../config.json", *program).returncode == 0
    assert len(ours(machine.crontab)) == 1
    assert machine.add_cron("--config", "link/../config.json", "--log", "other.log", *program).returncode == 0
    assert [line.partition("# tickcollect:nightly ")[2].replace("\\%", "%") for line in ours(machine.crontab)] == [
        f"{folder}/config.json",
        f"{elsewhere.parent}/config.json",
    ]


@with_cron
def test_a_line_that_cron_would_not_take_leaves_the_crontab(machine: Machine, folder: Path, stand_in: StandIn) -> None:
    """A command longer than cron's limit is refused with the remedy, and nothing is changed."""
    deep = folder / ("x" * 200) / ("y" * 200)
    deep.mkdir(parents=True)
    (deep / "config.json").write_text("{}")
    machine.crontab = OTHERS
    refused = machine.add_cron("--config", deep / "config.json", "--log", deep / "log")
    assert refused.returncode == 1
    assert "shorter paths" in refused.stderr
    assert machine.crontab == OTHERS


# --- What can be in the way ----------------------------------------------------------------------------------------


@with_cron
def test_whoever_may_not_use_cron_is_told(machine: Machine) -> None:
    """A user that cron.allow leaves out gets one line with the remedy."""
    script = 'echo root >/etc/cron.allow; mkdir -m 777 /run/it; echo "{}" >/run/it/config.json; cd /run/it && exec "$@"'
    program = ("--tickcollect", "/bin/true")
    found = machine.run(
        *("sh", "-c", script, "sh", "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
        *("sh", "-s", "--", *program),
        said=ADD_CRON.read_text(),
    )
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "You (nobody) are not allowed" in found.stderr
    assert "/etc/cron.allow" in found.stderr


@with_cron
def test_warnings_tell_what_would_make_the_night_fail(machine: Machine, folder: Path, stand_in: StandIn) -> None:
    """Told are variables that cron will not see, by name only; what the program says of the data; a missing cron."""
    stand_in.path.write_text(STAND_IN.replace("status) exit 0", "status) echo 'no collector has run' >&2; exit 3"))
    found = machine.add_cron(env={"TICKCOLLECT_S3_BUCKET": "planted", "AWS_PROFILE": "planted", "TICKCOLLECT": "x"})
    assert found.returncode == 0
    assert "planted" not in found.stdout + found.stderr
    warnings = sorted(found.stderr.splitlines())
    assert len(warnings) == 3
    assert "TICKCOLLECT_S3_BUCKET" in warnings[0]
    assert "AWS_PROFILE" in warnings[0]
    assert warnings[1] == f"Warning: in {folder}: no collector has run"
    assert warnings[2].startswith("Warning: no cron is running")


def alone(folder: Path, *arguments: object, crontab: str | None = "exit 1") -> subprocess.CompletedProcess[str]:
    """Run `add_cron.sh` with another `crontab` in front, which is a script, or with none."""
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    for place in ("/usr/bin", "/bin"):
        for tool in Path(place).iterdir():
            if tool.name not in {"crontab", "tickcollect"} and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool)
    if crontab is not None:
        (tools / "crontab").write_text(f'#!/bin/sh\necho "$*" >>"{folder.parent}/called"\n{crontab}\n')
        (tools / "crontab").chmod(0o755)
    return subprocess.run(
        [str(ADD_CRON), *map(str, arguments)], cwd=folder, env={"PATH": str(tools), "HOME": "/nonexistent"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_machine_without_cron_is_told_what_to_do(folder: Path, stand_in: StandIn) -> None:
    """Without `crontab` one line tells what to install, or what else to use."""
    found = alone(folder, crontab=None)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)
    assert "install cron" in found.stderr


def test_a_crontab_that_cannot_be_read_is_not_replaced(folder: Path, stand_in: StandIn) -> None:
    """Unless crontab says that there is none yet, one that cannot be read is taken for one that is there."""
    found = alone(folder, crontab="echo 'crontabs/root: Input/output error' >&2; exit 1")
    assert found.returncode == 1
    assert "Input/output error" in found.stderr
    assert (folder.parent / "called").read_text() == "-l\n"


MISTAKES = {
    "time": (("--at", "25:00"), "--at takes a time of day in UTC"),
    "no time": (("--at", "0:10"), "--at takes a time of day in UTC"),
    "days": (("--delete-after", "soon"), "--delete-after takes a number of days, not soon"),
    "value": (("--log",), "--log needs a value"),
    "option": (("--hourly",), "there is no option --hourly"),
    "action": (("install", "remove"), "there is no option remove"),
    "config": (("--config", "none.json"), "there is no "),
    "log": (("--log", "none/log"), "there is no directory "),
    "program": (("--tickcollect", "none"), "is not a program"),
    "line break": (("--log", "a\nb"), "a path has a line break"),
}


@pytest.mark.parametrize(("arguments", "told"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_line(arguments: tuple[str, ...], told: str, folder: Path, stand_in: StandIn) -> None:
    """A mistake in the command line ends with code 2 and one line, before the crontab is looked at."""
    found = alone(folder, *arguments)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found
    assert told in found.stderr
    assert not (folder.parent / "called").exists()


def test_without_a_program_the_remedy_is_told(folder: Path) -> None:
    """Where tickcollect is not found, the line tells how to install or to name it."""
    (folder / "add_cron.sh").write_bytes(ADD_CRON.read_bytes())
    found = subprocess.run(
        ["sh", "add_cron.sh"], cwd=folder, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 2
    assert "tickcollect was not found" in found.stderr


def test_the_script_is_clean() -> None:
    """Shellcheck finds nothing."""
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("no shellcheck")
    found = subprocess.run([shellcheck, str(ADD_CRON)], capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")
