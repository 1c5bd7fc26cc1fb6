"""What systemd is told, heard at a real socket; and the units in `deploy/`, as systemd itself reads them."""

import asyncio
import itertools
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import GAPS_STAY, Programs, exchange, status_of
from hypothesis import given
from hypothesis import strategies as st

from tickcollect import cli, systemd
from tickcollect.dataset.replay import GeneratedMarket
from tickcollect.systemd import Notifier, Progress, Signs, supervise

DEPLOY = Path(__file__).parents[1] / "deploy"
WELL = Signs("running", "collecting 2 feeds", waiting=0, done=0, disk_trouble=False)
PID = 4711


@dataclass
class Listener:
    """A socket such as systemd's, and what came there."""

    address: str
    socket: socket.socket
    heard: list[str] = field(default_factory=list)

    def hear(self) -> list[str]:
        """Return all that has come, in order."""
        while True:
            try:
                self.heard.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return self.heard

    def kinds(self) -> list[str]:
        """Return the names of what has come."""
        return [message.partition("=")[0] for message in self.hear()]


@pytest.fixture(params=["a path", "an abstract name"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    """Listen as systemd does."""
    address = str(tmp_path / "notify") if request.param == "a path" else f"@tickcollect-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        server.setblocking(False)
        yield Listener(address, server)


# --- The messages --------------------------------------------------------------------------------------------------


def test_messages_are_those_of_the_protocol(listener: Listener) -> None:
    """Each message is one datagram in the words of sd_notify(3)."""
    notifier = Notifier(listener.address)
    notifier.ready()
    notifier.status("12 feeds")
    notifier.watchdog()
    notifier.stopping()
    notifier.extend(30.0)
    assert listener.hear() == ["READY=1", "STATUS=12 feeds", "WATCHDOG=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=30000000"]


@given(text=st.text(st.characters(), max_size=2000))
def test_a_status_is_one_line_whatever_is_in_it(text: str) -> None:
    """No text of a status can say anything else to systemd, and none fails."""
    address = f"\0tickcollect-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        Notifier(f"@{address[1:]}").status(text)
        message = server.recv(65536).decode()
    assert message.startswith("STATUS=")
    assert len(message.splitlines()) == 1
    assert len(message) <= len("STATUS=") + systemd.STATUS_MAX


def test_without_systemd_nothing_is_done() -> None:
    """Where no socket is named, every message is nothing."""
    notifier = Notifier.from_environment({}, PID)
    assert notifier == Notifier("", None)
    notifier.ready()
    notifier.status("12 feeds")


def test_a_socket_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    """A path that is not there, one that is no socket, and one where nobody listens are met without an error."""
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as closed:
        closed.bind(str(tmp_path / "closed"))
    for address in (tmp_path / "none", tmp_path / "file", tmp_path / "closed", "x" * 300, "@" + "x" * 300, "@"):
        Notifier(str(address)).ready()


def test_a_socket_that_is_not_read_holds_nothing_up(listener: Listener) -> None:
    """When systemd does not read, messages are left out; none waits."""
    for _ in range(10_000):
        Notifier(listener.address).watchdog()
    assert 0 < len(listener.hear()) < 10_000


ENVIRONMENTS: dict[str, tuple[dict[str, str], float | None]] = {
    "watched": ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(PID)}, 60.0),
    "watched, whoever it is": ({"WATCHDOG_USEC": "500000"}, 0.5),
    "another process is watched": ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
    "not watched": ({}, None),
    "no time at all": ({"WATCHDOG_USEC": "0"}, None),
    "not a number": ({"WATCHDOG_USEC": "soon"}, None),
    "a number of another script": ({"WATCHDOG_USEC": "²"}, None),
    "below nothing": ({"WATCHDOG_USEC": "-1"}, None),
}


@pytest.mark.parametrize(("variables", "watchdog_s"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_watchdog_is_read_from_the_environment(variables: dict[str, str], watchdog_s: float | None) -> None:
    """A sign of life is given as sd_watchdog_enabled(3) has it: for this process only, with a period that is one."""
    found = Notifier.from_environment({"NOTIFY_SOCKET": "/run/notify", **variables}, PID)
    assert found == Notifier("/run/notify", watchdog_s)


# --- Stuck or idle -------------------------------------------------------------------------------------------------

STORIES: dict[str, tuple[list[tuple[int, int, bool]], list[bool]]] = {
    "nothing comes": ([(0, 5, False)] * 4, [False] * 4),
    "it works": ([(9, 5, False), (9, 6, False), (9, 7, False), (9, 8, False)], [False] * 4),
    "it hangs": ([(9, 5, False)] * 4, [False, False, False, True]),
    "it hangs from the first message on": ([(9, 0, False)] * 4, [False, False, False, True]),
    "it hangs, and goes on": ([(9, 5, False)] * 4 + [(9, 6, False)], [False, False, False, True, False]),
    "the disk hangs, and it is known": ([(9, 5, True)] * 4, [False] * 4),
    "what was known ends, and it still hangs": (
        [(9, 5, True)] * 2 + [(9, 5, False)] * 3,
        [False, False, False, False, True],
    ),
    "messages are counted higher than they are": (
        [(9, 5, False), (12, 2, False), (9, 5, False), (12, 2, False)],
        [False, False, False, True],
    ),
}
"""Looks 10 s apart with a patience of 25 s: messages waiting and done, trouble with the disk; the verdicts."""


@pytest.mark.parametrize(("looks", "verdicts"), STORIES.values(), ids=STORIES)
def test_a_writer_that_hangs_is_told_from_one_at_rest(looks: list[tuple[int, int, bool]], verdicts: list[bool]) -> None:
    """Stuck is whoever has messages waiting, has done with none for longer than the patience, and no excuse."""
    progress = Progress(patience_s=25)
    signs = (Signs("running", "", waiting, done, trouble) for waiting, done, trouble in looks)
    assert [progress.is_stuck(sign, 1000 + 10.0 * place) for place, sign in enumerate(signs)] == verdicts


# --- The course of a run -------------------------------------------------------------------------------------------


async def supervised(
    listener: Listener,
    look: Callable[[], Signs],
    enough: Callable[[], bool],
    stopped_enough: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Supervise with a watchdog of 20 ms until `enough` was heard, then stop until that is enough too."""
    stop = asyncio.Event()
    task = asyncio.create_task(supervise(Notifier(listener.address, 0.02), look, stop, clock))
    async with asyncio.timeout(30):
        while not enough():
            await asyncio.wait({task}, timeout=0.001)
        stop.set()
        while not ("STOPPING" in listener.kinds() and stopped_enough()):
            await asyncio.wait({task}, timeout=0.001)
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell every 10 ms."""
    monkeypatch.setattr(systemd, "TOLD_EVERY_S", 0.01)
    monkeypatch.setattr(systemd, "FIRST_TOLD_AFTER_S", 0.01)


def test_ready_comes_once_and_with_collecting(listener: Listener) -> None:
    """While it starts it says so and asks for time; once it is ready it tells that, with signs of life from then on."""
    states = itertools.chain(["starting"] * 3, itertools.repeat("running"))
    looks: list[str] = []

    def look() -> Signs:
        looks.append(state := next(states))
        assert state == "starting" or looks.count("starting") == 3
        return Signs("running" if state == "running" else "starting", f"it is {state}", 0, 0, disk_trouble=False)

    asyncio.run(supervised(listener, look, lambda: listener.kinds().count("WATCHDOG") > 3))
    heard = listener.hear()
    assert heard[:6] == ["STATUS=it is starting", "EXTEND_TIMEOUT_USEC=30000000"] * 3
    assert heard[6:9] == ["READY=1", "STATUS=it is running", "WATCHDOG=1"]
    assert heard.count("READY=1") == 1
    assert heard.index("STOPPING=1") > heard.index("WATCHDOG=1")


def test_a_stuck_writer_gives_no_sign_of_life(listener: Listener) -> None:
    """Once nothing was written for the period though messages wait, signs of life end; the status goes on."""
    stuck = Signs("running", "hangs", waiting=9, done=5, disk_trouble=False)
    seconds = itertools.count(0.0, 0.005)
    asyncio.run(
        supervised(listener, lambda: stuck, lambda: listener.kinds().count("STATUS") > 12, clock=lambda: next(seconds))
    )
    kinds = listener.kinds()[: listener.kinds().index("STOPPING")]
    # Looks are 5 ms apart by the clock, the period is 20 ms: the looks at 0, 5, 10, 15 and 20 ms are still in order.
    assert kinds == ["READY", *["STATUS", "WATCHDOG"] * 5, *["STATUS"] * (kinds.count("STATUS") - 5)]


def test_a_long_stop_asks_for_more_time_but_not_for_ever(listener: Listener) -> None:
    """A stop asks for half a minute again and again, and after ten minutes no more."""
    seconds = itertools.count(0.0, 100.0)
    began = {"stopping": False}

    def clock() -> float:
        return next(seconds) if began["stopping"] else 0.0

    def look() -> Signs:
        began["stopping"] = "STOPPING" in listener.kinds()
        return WELL

    def ended() -> bool:
        kinds = listener.kinds()
        return kinds[kinds.index("STOPPING") :].count("STATUS") > 12

    asyncio.run(supervised(listener, look, lambda: "WATCHDOG" in listener.kinds(), ended, clock))
    heard = listener.hear()
    after = heard[heard.index("STOPPING=1") + 1 :]
    assert "WATCHDOG=1" not in after
    # The stop begins at 0 s (the clock stands until it is told), and each look after it is 100 s later: 0 to 500 s.
    assert after.count("EXTEND_TIMEOUT_USEC=30000000") == 6
    assert after[:2] == ["STATUS=collecting 2 feeds", "EXTEND_TIMEOUT_USEC=30000000"]


def test_a_stop_before_the_start_is_over_is_never_ready(listener: Listener) -> None:
    """Whoever is stopped while still starting says so, and does not claim to be ready."""
    starting = Signs("starting", "reading files", 0, 0, disk_trouble=False)
    asyncio.run(supervised(listener, lambda: starting, lambda: True))
    kinds = listener.kinds()
    assert "READY" not in kinds
    assert "WATCHDOG" not in kinds
    assert "STOPPING" in kinds


def test_where_nobody_listens_nobody_is_asked() -> None:
    """Without systemd the collector is never looked at, and the task ends when it is cancelled."""

    async def go() -> None:
        task = asyncio.create_task(supervise(Notifier(), lambda: pytest.fail("looked"), asyncio.Event()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(go())


# --- The real program ----------------------------------------------------------------------------------------------


def test_the_collector_tells_systemd_how_it_goes(listener: Listener, programs: Programs, tmp_path: Path) -> None:
    """`tickcollect run` is ready when it collects, shows its status, gives signs of life, and tells of its stop."""
    market = GeneratedMarket("binance", 1_784_000_000_000, symbols=1, activity=60)
    with exchange(market) as served:
        run = programs.start(
            *("run", "--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", *served.addresses),
            *("--config", programs.config(**GAPS_STAY)),
            env={"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "400000"},
        )
        run.until(lambda: listener.kinds().count("WATCHDOG") > 3)
        assert status_of(tmp_path / "data")["state"] == "running"
        assert run.stop().code == 0
    heard = listener.hear()
    assert heard.count("READY=1") == heard.count("STOPPING=1") == 1
    assert heard.index("READY=1") < heard.index("WATCHDOG=1") < heard.index("STOPPING=1")
    assert any(re.fullmatch(r"STATUS=collecting 1 feed, \S+ rows/s, last row .* ago.*", line) for line in heard)


# --- The units -----------------------------------------------------------------------------------------------------

SERVICES = ("tickcollect.service", "tickcollect-upload.service", "tickcollect-report.service")
UNITS = (*SERVICES, "tickcollect-upload.timer")
WORST_EXPOSURE = 20
"""In tenths; systemd calls what is below this 'OK'."""

analyzed = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze (package systemd)")


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Return copies of the units whose program exists."""
    program = tmp_path / "tickcollect"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copies = []
    for name in UNITS:
        text = (DEPLOY / name).read_text("utf-8")
        copies.append(tmp_path / name)
        copies[-1].write_text(text.replace("/opt/tickcollect/bin/tickcollect", str(program)), "utf-8")
    return copies


@analyzed
def test_systemd_finds_no_fault_in_the_units(units: list[Path]) -> None:
    """No unit gives systemd a reason to complain."""
    found = analyze("verify", "--man=no", *units)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@analyzed
@pytest.mark.parametrize("name", SERVICES)
def test_services_are_shut_in(name: str, units: list[Path]) -> None:
    """What a broken service could reach is little enough for systemd to call it OK."""
    found = analyze(
        "security", "--offline=true", f"--threshold={WORST_EXPOSURE}", *(u for u in units if u.name == name)
    )
    assert found.returncode == 0, found.stdout


@analyzed
def test_the_timer_is_at_ten_past_midnight_utc() -> None:
    """The timer's next time is 00:10 UTC, in whatever zone the machine is."""
    (when,) = settings("tickcollect-upload.timer", "OnCalendar")
    for zone in ("UTC", "Asia/Kolkata", "America/New_York"):
        found = subprocess.run(
            ["systemd-analyze", "calendar", when],
            capture_output=True, text=True, check=True, timeout=60, env={"TZ": zone, "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        in_utc = re.search(r"(?:\(in UTC\)|Next elapse): .* 00:10:00 UTC", found.stdout)
        assert in_utc, found.stdout


def settings(unit: str, key: str) -> list[str]:
    """Return the values of a key in a unit."""
    return re.findall(rf"^{key}=(.*)$", (DEPLOY / unit).read_text("utf-8"), re.MULTILINE)


def test_units_know_the_exit_codes() -> None:
    """What another start cannot mend is not started again, and a run that found another at work has not failed."""
    assert settings("tickcollect.service", "RestartPreventExitStatus") == [str(cli.EXIT_MISTAKE)]
    assert settings("tickcollect-upload.service", "SuccessExitStatus") == [str(cli.EXIT_IN_USE)]


def test_the_report_follows_the_upload_however_it_ended() -> None:
    """It has a service of its own, because only what ExecStart= runs can read its credentials."""
    for key in ("OnSuccess", "OnFailure"):
        assert settings("tickcollect-upload.service", key) == ["tickcollect-report.service"]
    for name in SERVICES:
        assert len(settings(name, "ExecStart")) == 1
        assert not settings(name, "ExecStop(?:Post)?")


def test_units_hold_no_secret_and_show_none() -> None:
    """Secrets come from a file of root's, as a credential; no variable and no command line carries one."""
    for name in UNITS:
        assert not settings(name, "Environment")
    for name in SERVICES:
        assert settings(name, "LoadCredential") == ["config.json:/etc/tickcollect/config.json"]
        assert settings(name, "LimitCORE") == ["0"]
