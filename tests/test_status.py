"""The status file, the verdict on it, and the table that shows it."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from tickcollect import status
from tickcollect.status import (
    ChannelStatus,
    FeedStatus,
    Health,
    Rate,
    Snapshot,
    StatusFile,
    UploadStatus,
    judge,
    table,
)

NOW_NS = 1_790_000_000_000_000_000
S = 10**9
MIDNIGHT_NS = NOW_NS - NOW_NS % (86_400 * S)
"""Of 2026-09-21; it is 14:13 UTC."""
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "status.md"


def feed(symbol: str = "BTCUSDT", **changes: Any) -> FeedStatus:
    ordinary = FeedStatus(
        exchange="binance",
        stream="trade",
        symbol=symbol,
        connected=True,
        rows=12_345_678,
        rows_per_s=123.4,
        last_id=6_103_662_806,
        last_price="64120.01000000",
        lag_ms=12.3,
        last_row_ns=NOW_NS - S // 5,
        open_gaps=0,
        missing_ids=0,
        copies=0,
        refused=0,
        not_trades=0,
        file=f"binance/trade/{symbol}/{symbol}-trade-2026-11-20-6103662806.csv",
        file_bytes=512_345_678,
        files_sealed=3,
        note="",
    )
    return replace(ordinary, **changes)


def snapshot(*feeds: FeedStatus, **changes: Any) -> Snapshot:
    ordinary = Snapshot(
        at_ns=NOW_NS,
        pid=os.getpid(),
        process=status.process_identity(os.getpid()),
        version="0.1.0",
        started_ns=NOW_NS - 3 * 86400 * S,
        state="running",
        data_dir="data",
        feeds=list(feeds or [feed()]),
        messages_per_s=12_345.6,
        queue_rows=12,
        queue_limit=100_000,
        reconnects=2,
        sealing=1,
        disk_free_bytes=120 * 10**9,
        disk_hours_left=264.0,
        problems=[],
    )
    return replace(ordinary, **changes)


def upload(**changes: Any) -> UploadStatus:
    """Return an upload of half past the last midnight that has left nothing behind, with one file sealed since."""
    ordinary = UploadStatus(
        store="s3://ticks/all",
        last_run_ns=MIDNIGHT_NS + 1800 * S,
        complete=True,
        waiting_files=1,
        waiting_bytes=3_400_000_000,
        oldest_ns=NOW_NS - 3600 * S,
        failure="",
    )
    return replace(ordinary, **changes)


def channel(name: str = "telegram", **changes: Any) -> ChannelStatus:
    ordinary = ChannelStatus(name=name, failing_since_ns=None, error="", sent=3, dropped=0, waiting=0)
    return replace(ordinary, **changes)


FAILING = channel("slack", failing_since_ns=NOW_NS - 7200 * S, error="the token is not valid", dropped=1, waiting=3)


def drawn(renderable: status.StatusTable, width: int = 80, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=file, width=width, force_terminal=False).print(renderable)
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(encoding).split("\n")[:-1]


@contextmanager
def other_collector(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that claims a status file of `data_dir`, writes it, tells its name and waits."""
    code = (
        "import os, sys, msgspec; from pathlib import Path; from msgspec.structs import replace\n"
        "from tickcollect.status import Snapshot, StatusFile, process_identity\n"
        "file = StatusFile(Path(sys.argv[1])); snapshot = msgspec.json.decode(sys.argv[2], type=Snapshot)\n"
        "file.write(replace(snapshot, pid=os.getpid(), process=process_identity(os.getpid())))\n"
        "print(file.path.name, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(data_dir), msgspec.json.encode(snapshot()).decode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- The file ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A snapshot comes back from its file as it was, and `--json` prints the same structure as an array."""
    unknown = feed("币安人生USDT", lag_ms=None, last_row_ns=None, last_id=None)
    written = snapshot(feed(), unknown, upload=upload(), channels=[channel(), FAILING])
    file = StatusFile(tmp_path / "new" / "data")
    file.write(written)
    assert status.read(tmp_path / "new" / "data") == [written]
    assert msgspec.json.decode(status.encode([written])) == [msgspec.json.decode(file.path.read_bytes())]
    file.release()


def test_two_collectors_have_a_file_each(tmp_path: Path) -> None:
    """A second process on the same data directory gets a file of its own, and takes it away when it ends in order."""
    with other_collector(tmp_path) as first:
        assert said(first) == "status.json"
        second = StatusFile(tmp_path)
        second.write(snapshot())
        assert second.path.name == "status-2.json"
        assert [found.pid for found in status.read(tmp_path)] == [first.pid, os.getpid()]
        second.finish(snapshot())
        assert [found.pid for found in status.read(tmp_path)] == [first.pid]


def test_killed_collector_leaves_evidence_and_frees_its_place(tmp_path: Path) -> None:
    """After SIGKILL the file stays and is judged dead; the next collector takes its place."""
    with other_collector(tmp_path) as killed:
        assert said(killed) == "status.json"
        (before,) = status.read(tmp_path)
        assert status.alive(before) is True
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (after,) = status.read(tmp_path)
        assert after == before
        assert status.alive(after) is False
        assert judge(after, NOW_NS, status.alive(after)).health is Health.NOT_COLLECTING
        next_one = StatusFile(tmp_path)
        assert next_one.path.name == "status.json"
        next_one.release()


def test_orderly_stop_stays_readable(tmp_path: Path) -> None:
    """The first collector's last snapshot stays, with the state `stopped`, and no other write comes after it."""
    file = StatusFile(tmp_path)
    file.finish(snapshot())
    file.write(snapshot())
    assert [found.state for found in status.read(tmp_path)] == ["stopped"]
    file.finish(snapshot(reconnects=7))
    assert [found.reconnects for found in status.read(tmp_path)] == [2]
    again = StatusFile(tmp_path)
    assert again.path == file.path
    again.release()


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Whoever reads while the file is replaced by longer and shorter ones sees one of them, whole."""
    versions = [snapshot(*(feed(f"S{n}USDT") for n in range(size))) for size in (1, 500, 3)]
    file = StatusFile(tmp_path)
    file.write(versions[0])
    with file.path.open("rb") as reader:
        file.write(versions[1])
        assert msgspec.json.decode(reader.read(), type=Snapshot) == versions[0]
    enough = threading.Event()

    def keep_writing() -> None:
        while not enough.is_set():
            for version in versions:
                file.write(version)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        seen = [len(status.read(tmp_path)[0].feeds) for _ in range(300)]
    finally:
        enough.set()
        writer.join()
    assert set(seen) <= {1, 500, 3}
    assert {path.name for path in tmp_path.iterdir()} == {"status.json", ".status.lock"}
    file.release()


def test_nothing_there(tmp_path: Path) -> None:
    """An empty directory and one that does not exist are told as such, with an exit code of their own."""
    (tmp_path / "status.json.unconfirmed").write_text("{")
    for place in (tmp_path, tmp_path / "none", tmp_path / "status.json.unconfirmed"):
        with pytest.raises(status.NoStatusError, match=re.escape(str(place))) as caught:
            status.read(place)
        assert caught.value.exit_code is Health.NEVER_RAN


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"pid": 1}', b"null", b"\0" * 4096])
def test_damaged_file(tmp_path: Path, content: bytes) -> None:
    """A file that holds no snapshot is named, in one line."""
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(status.DamagedStatusError, match=r"status\.json does not hold a status") as caught:
        status.read(tmp_path)
    assert caught.value.exit_code is Health.NOT_COLLECTING
    assert "\n" not in str(caught.value)


def test_fields_of_a_later_version_are_accepted(tmp_path: Path) -> None:
    """A field that this version does not know does not make a snapshot unreadable."""
    later = msgspec.to_builtins(snapshot()) | {"uploaded": 7}
    (tmp_path / "status.json").write_bytes(msgspec.json.encode(later))
    assert status.read(tmp_path) == [snapshot()]


def test_file_of_a_version_without_upload_is_accepted(tmp_path: Path) -> None:
    """A snapshot that says nothing of upload and alerts is one of a collector that has neither."""
    earlier = msgspec.to_builtins(snapshot(upload=upload(), channels=[FAILING]))
    del earlier["upload"], earlier["channels"]
    (tmp_path / "status.json").write_bytes(msgspec.json.encode(earlier))
    assert status.read(tmp_path) == [snapshot()]


def test_cannot_be_written(tmp_path: Path) -> None:
    """A status that cannot be written is one line with the reason, and leaves the file as it was and nothing beside."""
    (tmp_path / "file").touch()
    with pytest.raises(status.StatusError, match="cannot write the status"):
        StatusFile(tmp_path / "file")
    file = StatusFile(tmp_path / "data")
    file.path.mkdir()
    with pytest.raises(status.StatusError, match="Is a directory"):
        file.write(snapshot())
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"status.json", ".status.lock"}
    file.release()


# --- Is it alive ---------------------------------------------------------------------------------------------------


def test_alive_means_the_same_process() -> None:
    """This process lives; one that had its pid before, or a zombie, does not; one of another machine is unknown."""
    mine = snapshot()
    if not mine.process:
        pytest.skip("no /proc here: pids cannot be told from earlier ones")
    machine, _, started = mine.process.rpartition("/")
    assert status.alive(mine) is True
    assert status.alive(replace(mine, process=f"{machine}/{int(started) - 1}")) is False
    assert status.alive(replace(mine, process=f"elsewhere/{started}")) is None
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    its = replace(mine, pid=child.pid, process=status.process_identity(child.pid))
    assert status.alive(its) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert status.alive(its) is False
    child.communicate()
    assert status.alive(its) is False


@pytest.mark.parametrize("pid", [-1, 0, 2**70])
def test_pids_that_cannot_be(pid: int) -> None:
    """A pid that no process can have is not alive, and is not signalled."""
    assert status.alive(snapshot(pid=pid)) is False


# --- The verdict ---------------------------------------------------------------------------------------------------

WELL, TROUBLE, NOT_COLLECTING = Health.WELL, Health.TROUBLE, Health.NOT_COLLECTING
DISCONNECTED = feed(connected=False, unknown_since_ns=NOW_NS - 5 * S, unknown_reason="disconnected")
BEHIND_THE_LAST_ROW = (
    "it is not known since 14:13:19 UTC whether IDs are missing of BTC.*: the collector died or hangs$"
)
CUT_OFF = feed(connected=False, note="next attempt in 8 s")
YOUNG = {"state": "starting", "started_ns": NOW_NS - 5 * S}

H = 3600 * S

VERDICTS = {
    "all well": (snapshot(), 1, True, WELL, "collecting 1 feed, 123 rows/s, last row 1.2 s ago", ()),
    "pid unknown": (snapshot(), 1, None, WELL, "collecting", ()),
    "clock a little behind": (snapshot(), -3, True, WELL, "collecting", ()),
    "no rate yet": (snapshot(disk_hours_left=None), 1, True, WELL, "collecting", ()),
    "starting": (snapshot(CUT_OFF, **YOUNG), 1, True, WELL, "starting 1 feed", ()),
    "starting long": (snapshot(CUT_OFF, state="starting"), 1, True, TROUBLE, "starting", ("1 feed not connected",)),
    "cut off": (
        snapshot(CUT_OFF),
        1,
        True,
        TROUBLE,
        "collecting",
        (r"1 feed not .*BTCUSDT .*\(next attempt in 8 s\)",),
    ),
    "all cut off": (snapshot(*[CUT_OFF] * 500), 1, True, TROUBLE, "500 feeds", ("500 feeds not .* and 497 more$",)),
    "gap": (snapshot(feed(open_gaps=2, missing_ids=1234)), 1, True, TROUBLE, "", (r"2 open gaps \(1,234 IDs missing",)),
    "lost for good": (snapshot(feed(missing_ids=1234)), 1, True, WELL, "", ()),
    "behind": (snapshot(feed(lag_ms=65_000.0)), 1, True, TROUBLE, "", ("1 feed up to 65 s behind",)),
    "few hours": (snapshot(disk_hours_left=3.0), 1, True, TROUBLE, "", ("disk low: 120 GB free, enough for 3 h",)),
    "few bytes": (
        snapshot(disk_free_bytes=10**6, disk_hours_left=None),
        1,
        True,
        TROUBLE,
        "",
        ("disk low: 1.00 MB free;",),
    ),
    "queue": (snapshot(queue_rows=90_000), 1, True, TROUBLE, "", ("90,000 messages wait",)),
    "queue of few large messages": (
        snapshot(queue_rows=200, queue_bytes=31_000_000, queue_limit_bytes=32_000_000),
        1,
        True,
        TROUBLE,
        "",
        ("200 messages wait to be written .97% ",),
    ),
    "told": (snapshot(problems=["Telegram refuses"]), 1, True, TROUBLE, "", ("Telegram refuses",)),
    "uploaded": (snapshot(upload=upload()), 1, True, WELL, "", ()),
    "sealed long ago, uploaded since": (snapshot(upload=upload(oldest_ns=0)), 1, True, WELL, "", ()),
    "no upload yet": (snapshot(upload=upload(last_run_ns=None, complete=False)), 1, True, WELL, "", ()),
    "nothing to upload": (
        snapshot(upload=upload(last_run_ns=0, waiting_files=0, waiting_bytes=0, oldest_ns=None)),
        1,
        True,
        WELL,
        "",
        (),
    ),
    "upload not complete": (
        snapshot(upload=upload(complete=False, failure="AWS says the key is expired")),
        1,
        True,
        TROUBLE,
        "",
        (r"the upload of 00:30 UTC is not complete, 1 file \(3\.40 GB\) waiting: AWS says the key is expired$",),
    ),
    "nothing left but a failure": (
        snapshot(upload=upload(waiting_files=0, oldest_ns=None, complete=False, failure="a link")),
        1,
        True,
        TROUBLE,
        "",
        ("the upload of 00:30 UTC is not complete: a link$",),
    ),
    "upload not known": (
        snapshot(upload=upload(last_run_ns=None, complete=False, failure="upload.json is damaged")),
        1,
        True,
        TROUBLE,
        "",
        ("upload.json is damaged$",),
    ),
    "no upload for days": (
        snapshot(upload=upload(last_run_ns=NOW_NS - 49 * H, oldest_ns=NOW_NS - 27 * H)),
        1,
        True,
        TROUBLE,
        "",
        (r"no upload for more than 26 h \(last: 2026-09-19 13:13 UTC\), and 1 file \(3\.40 GB\) waiting\. See ",),
    ),
    "no upload ever": (
        snapshot(upload=upload(last_run_ns=None, complete=False, oldest_ns=NOW_NS - 26 * H)),
        1,
        True,
        TROUBLE,
        "",
        (r"no upload for more than 26 h \(last: none\), and 1 file ",),
    ),
    "long without files, then one": (
        snapshot(upload=upload(last_run_ns=NOW_NS - 49 * H, oldest_ns=NOW_NS - 25 * H)),
        1,
        True,
        WELL,
        "",
        (),
    ),
    "alerts": (snapshot(channels=[channel()]), 1, True, WELL, "", ()),
    "alerts fail": (
        snapshot(channels=[channel(), FAILING]),
        1,
        True,
        TROUBLE,
        "",
        (r"alerts to slack fail since 12:13 UTC, 1 message given up: the token is not valid$",),
    ),
    "died, and the upload fails": (
        snapshot(upload=upload(complete=False, failure="no bucket"), channels=[FAILING]),
        1,
        False,
        NOT_COLLECTING,
        "died while running",
        (BEHIND_THE_LAST_ROW, r"the upload of 00:30 UTC is not complete, 1 file .*: no bucket"),
    ),
    "stopping": (snapshot(CUT_OFF, state="stopping"), 1, True, TROUBLE, "stopping 1 feed", ()),
    "stopped": (snapshot(state="stopped"), 7200, False, NOT_COLLECTING, r"stopped in order 2 h ago\.", ()),
    "stopped with IDs missing": (
        snapshot(feed(missing_ids=7), state="stopped"),
        60,
        False,
        NOT_COLLECTING,
        r"stopped in order 60 s ago; 7 IDs missing\.",
        (),
    ),
    "stopped while disconnected": (
        snapshot(DISCONNECTED, state="stopped"),
        60,
        False,
        NOT_COLLECTING,
        r"in order 60 s ago; it is not known since 14:13:15 UTC whether IDs are missing of BTC.*: disconnected\.",
        (),
    ),
    "died": (
        snapshot(CUT_OFF),
        2,
        False,
        NOT_COLLECTING,
        "died while running: process .* is gone",
        (BEHIND_THE_LAST_ROW,),
    ),
    "died without a row": (
        snapshot(feed(last_row_ns=None)),
        2,
        False,
        NOT_COLLECTING,
        "died while running",
        ("it is not known since 14:13:20 UTC whether IDs are missing",),
    ),
    "died while disconnected": (
        snapshot(DISCONNECTED),
        2,
        False,
        NOT_COLLECTING,
        "died",
        ("it is not known since 14:13:15 UTC whether IDs are missing of .*: disconnected$",),
    ),
    "died while starting": (
        snapshot(state="starting"),
        2,
        False,
        NOT_COLLECTING,
        "died while starting",
        (BEHIND_THE_LAST_ROW,),
    ),
    "hangs": (
        snapshot(),
        60,
        True,
        NOT_COLLECTING,
        "no sign of life: the last was 60 s ago.*is there: it hangs",
        (BEHIND_THE_LAST_ROW,),
    ),
    "rebooted": (
        snapshot(),
        60,
        None,
        NOT_COLLECTING,
        "no sign of life.*cannot be seen from",
        (BEHIND_THE_LAST_ROW,),
    ),
    "clock set back": (
        snapshot(),
        -3600,
        True,
        NOT_COLLECTING,
        "the last was 60 min in the future",
        ("it is not known since 2026-09-21 14:13:19 UTC",),
    ),
    "unknown for long": (
        snapshot(feed(unknown_since_ns=NOW_NS - 11 * S, unknown_reason="disconnected"), CUT_OFF),
        1,
        True,
        TROUBLE,
        "collecting 2 feeds",
        ("1 feed not connected", "it is not known since 14:13:09 UTC whether .* of BTCUSDT binance/trade: disconn"),
    ),
    "unknown since before this start, not for long": (
        snapshot(feed(unknown_since_ns=NOW_NS - H, unknown_reason="not connected"), **YOUNG),
        1,
        True,
        WELL,
        "starting 1 feed",
        (),
    ),
    "unknown since long before this start": (
        snapshot(feed(unknown_since_ns=NOW_NS - 2 * H, unknown_reason="not connected"), started_ns=NOW_NS - H),
        1,
        True,
        TROUBLE,
        "",
        ("it is not known since 12:13:20 UTC whether IDs are missing",),
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name: str) -> None:
    """Each state of a collector has its exit code, its summary and its troubles."""
    seen, after_s, pid_alive, health, summary, troubles = VERDICTS[name]
    verdict = judge(seen, NOW_NS + after_s * S, pid_alive)
    assert verdict.health is health
    assert re.search(summary, verdict.summary)
    assert len(verdict.troubles) == len(troubles)
    for text, pattern in zip(verdict.troubles, troubles, strict=True):
        assert re.match(pattern, text)


def test_what_is_not_known_is_said_at_once() -> None:
    """Seconds after a connection ended nothing needs attention yet, and still nothing reads as if all were known."""
    seen = snapshot(feed(unknown_since_ns=NOW_NS - 2 * S, unknown_reason="disconnected", missing_ids=0))
    verdict = judge(seen, NOW_NS, pid_alive=True)
    assert verdict.health is Health.WELL
    (text,) = verdict.unclear
    assert text.startswith("it is not known since 14:13:18 UTC whether IDs are missing of BTCUSDT")
    lines = drawn(table([seen], NOW_NS, [verdict]), width=140)
    assert any(text in line for line in lines)
    (row,) = [line for line in lines if line.startswith("! BTCUSDT")]
    assert row.split().count("?") == 2, "gaps and missing are not known to be none"


def test_what_is_known_to_be_missing_is_the_least() -> None:
    """While a feed is unknown its counts are what is missing at least."""
    seen = snapshot(feed(unknown_since_ns=NOW_NS - 2 * S, unknown_reason="disconnected", missing_ids=40, open_gaps=1))
    (row,) = [line for line in drawn(table([seen], NOW_NS), width=140) if line.startswith("! BTCUSDT")]
    assert "40+" in row.split()
    assert "1+" in row.split()


# --- Rate and numbers ----------------------------------------------------------------------------------------------


def test_rate_over_the_last_seconds() -> None:
    """The rate is that of the window, begins anew with the counter, and is 0 before it can be known."""
    rate = Rate(window_s=5.0)
    assert rate.update(1000, 0.0) == 0.0
    assert rate.update(1000, 0.0) == 0.0
    assert rate.update(1100, 1.0) == 100.0
    for second in range(2, 20):
        latest = rate.update(1100 + 10 * second, float(second))
    assert latest == 10.0
    assert rate.update(5, 20.0) == 0.0
    assert rate.update(15, 21.0) == 10.0


def test_rate_is_bounded() -> None:
    """However often it is asked, it remembers a bounded number of values."""
    rate = Rate(window_s=5.0)
    for step in range(20_000):
        latest = rate.update(step, step / 1000)
    assert latest == pytest.approx(1000, rel=0.01)
    assert len(rate._samples) <= 23


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10 s"), (119, "119 s"), (150, "2 min"), (7300, "2 h"), (172_800, "2 d"), (1e9, "11,574 d")],
)
def test_spans(seconds: float, text: str) -> None:
    """Lengths of time are told in one unit."""
    assert status.span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_996, "10.0 kB"), (99_960, "100 kB"), (999_600, "1.00 MB"),
     (1_024_000_000, "1.02 GB"), (10**19, "10,000 PB")],
)  # fmt: skip
def test_sizes(number: int, text: str) -> None:
    """Bytes are told with three digits, and rounding never shows a thousand of a unit that has a next one."""
    assert status.size(number) == text


# --- The table -----------------------------------------------------------------------------------------------------


def test_table_at_80_columns() -> None:
    """One feed on an ordinary terminal: every column and no cut."""
    lines = drawn(table([snapshot()], NOW_NS + S))
    assert lines == [
        "tickcollect 0.1.0 · running for 3 d · 12,346 messages/s · binance/trade · 1 feed",
        "12,345,678 rows · disk 120 GB free, 11 d left · queue 0%",
        "3 files sealed, 1 waiting · 2 reconnects",
        "",
        "  feed     rows/s   rows     price    lag  last row  gaps  missing    file",
        "● BTCUSDT     123  12.3M  64120.01  12 ms     1.2 s     0        0  512 MB",
    ]


def test_upload_and_alerts_where_configured() -> None:
    """Upload and alerts have a line each, which says what waits, how the last run ended, and what fails."""
    seen = snapshot(upload=upload(), channels=[channel(), FAILING, channel("ntfy")])
    lines = drawn(table([seen], NOW_NS), width=90)
    assert lines[3:6] == [
        "upload: 1 file waiting (3.40 GB), last 00:30 UTC ok",
        "alerts: slack failing, telegram ok, ntfy ok",
        "",
    ]
    assert lines[-1] == "! alerts to slack fail since 12:13 UTC, 1 message given up: the token is not valid"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"waiting_files": 0}, "upload: nothing waiting, last 00:30 UTC ok"),
        ({"last_run_ns": MIDNIGHT_NS - 86_400 * S}, "upload: 1 file waiting (3.40 GB), last 2026-09-20 00:00 UTC ok"),
        ({"last_run_ns": None, "complete": False}, "upload: 1 file waiting (3.40 GB), none yet"),
        ({"last_run_ns": None, "complete": False, "failure": "damaged"}, "upload: not known"),
        ({"complete": False, "failure": "no"}, "upload: 1 file waiting (3.40 GB), last 00:30 UTC not complete"),
    ],
)
def test_upload_in_words(changes: dict[str, Any], line: str) -> None:
    """The upload's line tells apart: done, done days ago, none yet, not complete, and not to be known."""
    assert line in drawn(table([snapshot(upload=upload(**changes))], NOW_NS))


def test_upload_is_shown_beside_a_dead_collector() -> None:
    """The upload goes on without the collector, so its line stays; nobody is left who could send alerts."""
    seen = snapshot(upload=upload(), channels=[FAILING])
    told = "\n".join(drawn(table([seen], NOW_NS, [judge(seen, NOW_NS, pid_alive=False)])))
    assert "upload: 1 file waiting (3.40 GB), last 00:30 UTC ok" in told
    assert "slack" not in told


def test_several_markets_name_theirs() -> None:
    """With feeds of several markets each says where it is from, cut in the exchange's name where it is too long."""
    feeds = [feed(), feed(exchange="binance-futures", stream="aggTrade")]
    wide = drawn(table([snapshot(*feeds)], NOW_NS), width=120)
    assert any("BTCUSDT binance-futures/aggTrade " in line for line in wide)
    assert any("BTCUSDT binance/trade " in line for line in wide)
    narrow = drawn(table([snapshot(*feeds)], NOW_NS), width=80)
    assert any(re.search(r"BTCUSDT binance.*…/aggTrade ", line) for line in narrow)


def test_what_is_cut_is_seen_to_be() -> None:
    """A text too long for its place ends in an ellipsis, so that nobody takes it for whole."""
    seen = snapshot(feed("LONG" * 40, last_price="12345678901234567890"), version="9" * 200)
    lines = drawn(table([seen], NOW_NS))
    assert lines[0].endswith("9…")
    assert re.match("● (LONG)+L?O?N?… ", lines[-1])
    assert " 1234567890.. " in lines[-1]


@pytest.mark.parametrize("number", [1, 5, 500])
@pytest.mark.parametrize("height", [16, 24, 50])
def test_live_view_fits(number: int, height: int) -> None:
    """The view is never higher than asked; feeds in trouble are shown first, and the rest is counted."""
    feeds = [feed(f"S{n}USDT", rows_per_s=float(n), connected=n != 2) for n in range(number)]
    lines = drawn(table([snapshot(*feeds)], NOW_NS, lines=height))
    assert len(lines) <= height
    shown = [line.split()[1] for line in lines if line[:1] in {"●", "✗"}]
    if number == 500:
        assert shown[:2] == ["S2USDT", "S499USDT"]
        assert f"  and {500 - len(shown)} more, no trouble known, " in "\n".join(lines)
    else:
        assert len(shown) == number


def test_troubles_beyond_the_view_are_counted() -> None:
    """What does not fit is not called well when it is not."""
    feeds = [feed(f"S{n}USDT", connected=False) for n in range(500)]
    lines = drawn(table([snapshot(*feeds)], NOW_NS, lines=20))
    shown = sum(line.startswith("✗") for line in lines)
    assert f"  and {500 - shown} more, {500 - shown} of them in trouble" in "\n".join(lines)


def test_dead_collector_does_not_look_alive() -> None:
    """Of a collector that does not collect, the table says so first, and shows no feed as connected and no rate."""
    seen = snapshot()
    lines = drawn(table([seen], NOW_NS, [judge(seen, NOW_NS, pid_alive=False)]))
    assert lines[0].startswith("✗ died while running")
    assert any(line.startswith("○ BTCUSDT     0.0 ") for line in lines)
    assert "! it is not known since 14:13:19 UTC whether IDs are missing of BTCUSDT" in "\n".join(lines)


def test_stopping_is_no_trouble_of_the_feeds() -> None:
    """The last picture of an orderly stop shows feeds at rest, not in trouble."""
    lines = drawn(table([snapshot(feed(connected=False), state="stopping")], NOW_NS))
    assert "stopping after 3 d" in lines[0]
    assert lines[-1].startswith("○ BTCUSDT")


def test_notes_and_problems_are_underneath() -> None:
    """Problems are shown whole, and what several feeds say alike is said once."""
    feeds = [feed(f"S{n}USDT", note="quiet") for n in range(9)]
    problem = "a problem " * 20 + "/a/long/path" * 12
    lines = drawn(table([snapshot(*feeds, problems=[problem])], NOW_NS))
    told = "\n".join(lines)
    assert "quiet: S0USDT binance/trade, S1USDT binance/trade, S2USDT binance/trade" in told
    assert re.sub(r"\s", "", problem) in re.sub(r"\s", "", told)


def test_terminal_without_utf8() -> None:
    """Where the encoding is not UTF-8 nothing but ASCII is printed."""
    seen = snapshot(feed(connected=False), feed("币安人生USDT", note="ü"), feed("LONG" * 40), problems=["Größe"])
    for encoding in ("ascii", "latin-1"):
        lines = drawn(table([seen], NOW_NS), encoding=encoding)
        assert all(line.isascii() for line in lines)
        assert any("????USDT" in line for line in lines)


def test_markup_is_printed_as_it_is() -> None:
    """Brackets and colons in a name are no markup and no emoji, and control characters do not reach the terminal."""
    seen = snapshot(feed("[red]X[/]"), feed(":smile:"), feed("\x1b[2J\r\nA\u202e\ud800"), problems=["[/nothing]"])
    told = "\n".join(drawn(table([seen], NOW_NS)))
    for text in ("[red]X[/] ", ":smile: ", "?[2J??A?? ", "! [/nothing]"):
        assert text in told


TEXT = st.text(max_size=60) | st.sampled_from(
    ["[bold]", "[/]", "\x1b[31m", "币" * 40, "👩‍👩‍👧", "e\u0301" * 20, "a b " * 30]
)
COUNT = st.integers(0, 2**63 - 1)
AMOUNT = st.floats(0, 1e300)
HOSTILE_FEEDS = st.builds(
    FeedStatus, exchange=TEXT, stream=TEXT, symbol=TEXT, connected=st.booleans(), rows=COUNT, rows_per_s=AMOUNT,
    last_id=st.none() | COUNT, last_price=TEXT, lag_ms=st.none() | st.floats(-1e300, 1e300),
    last_row_ns=st.none() | COUNT, open_gaps=COUNT, missing_ids=COUNT, copies=COUNT, refused=COUNT, not_trades=COUNT,
    file=TEXT, file_bytes=COUNT, files_sealed=COUNT, note=TEXT,
)  # fmt: skip
HOSTILE_UPLOADS = st.builds(
    UploadStatus, store=TEXT, last_run_ns=st.none() | COUNT, complete=st.booleans(), waiting_files=COUNT,
    waiting_bytes=COUNT, oldest_ns=st.none() | COUNT, failure=TEXT,
)  # fmt: skip
HOSTILE_CHANNELS = st.builds(
    ChannelStatus, name=TEXT, failing_since_ns=st.none() | COUNT, error=TEXT, sent=COUNT, dropped=COUNT, waiting=COUNT
)
HOSTILE = st.builds(
    Snapshot, at_ns=COUNT, pid=COUNT, process=TEXT, version=TEXT, started_ns=COUNT,
    state=st.sampled_from(["starting", "running", "stopping", "stopped"]), data_dir=TEXT,
    feeds=st.lists(HOSTILE_FEEDS, max_size=6), messages_per_s=AMOUNT, queue_rows=COUNT, queue_limit=COUNT,
    reconnects=COUNT, sealing=COUNT, disk_free_bytes=COUNT, disk_hours_left=st.none() | AMOUNT,
    problems=st.lists(TEXT, max_size=3), upload=st.none() | HOSTILE_UPLOADS,
    channels=st.lists(HOSTILE_CHANNELS, max_size=3),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    seen=st.lists(HOSTILE, max_size=2),
    now_ns=COUNT,
    width=st.integers(40, 200),
    lines=st.none() | st.integers(0, 60),
    encoding=st.sampled_from(["utf-8", "ascii"]),
)
def test_table_of_anything(seen: list[Snapshot], now_ns: int, width: int, lines: int | None, encoding: str) -> None:
    """Whatever the names and numbers are, the table is drawn and no line is wider than the terminal."""
    fresh = [replace(one, at_ns=now_ns) for one in seen]
    for snapshots in (seen, fresh):
        shown = drawn(table(snapshots, now_ns, lines=lines), width, encoding)
        assert all(cell_len(line) <= width for line in shown)
        assert all(c.isprintable() for line in shown for c in line)


# --- The live view -------------------------------------------------------------------------------------------------


class Shown:
    """Gives snapshots to the live view, each with a number of its own, and tells when it was asked for enough."""

    def __init__(self, enough: int) -> None:
        self.asked = 0
        self.enough = enough
        self.reached = asyncio.Event()

    def __call__(self) -> Snapshot:
        self.asked += 1
        if self.asked >= self.enough:
            self.reached.set()
        return snapshot(reconnects=self.asked)


@asynccontextmanager
async def viewing(shown: Shown, file: TextIO) -> AsyncIterator[None]:
    console = Console(file=file, width=80, height=24, force_terminal=True)
    view = asyncio.create_task(status.live(shown, console, interval_s=0.001, now_ns=lambda: NOW_NS))
    yield
    view.cancel()
    with pytest.raises(asyncio.CancelledError):
        await view


def live_views() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "live view"]


def test_live_view_leaves_the_last_table() -> None:
    """When the live view ends, the latest state is what stays on the screen."""
    file, shown = io.StringIO(), Shown(enough=5)

    async def watch() -> None:
        async with viewing(shown, file):
            await shown.reached.wait()

    asyncio.run(watch())
    plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", file.getvalue())
    assert plain.rstrip().splitlines()[-1].startswith("● BTCUSDT")
    assert re.findall(r"(\d+) reconnects", plain)[-1] == str(shown.asked)
    assert not live_views()


def test_frozen_terminal_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a terminal takes no output (Ctrl-S), the event loop goes on, and the view can still be ended."""
    monkeypatch.setenv("TERM", "xterm")
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_end, b" " * 65536)
    os.set_blocking(write_end, True)

    async def watch(file: TextIO) -> None:
        shown = Shown(enough=1)
        async with viewing(shown, file):
            await shown.reached.wait()
            for _ in range(100):
                await asyncio.sleep(0.001)
            assert shown.asked == 1  # drawing has not come to take it

    with os.fdopen(write_end, "w", encoding="utf-8") as file:
        try:
            asyncio.run(watch(file))
        finally:
            os.set_blocking(read_end, False)
            for drawer in live_views():
                while drawer.is_alive():
                    with suppress(BlockingIOError):
                        os.read(read_end, 1 << 20)
                    drawer.join(0.001)
    os.close(read_end)


def test_lost_terminal_ends_only_the_view() -> None:
    """A terminal that goes away ends the drawing without a word and leaves the event loop alone."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    async def watch() -> None:
        async with viewing(Shown(enough=1), Gone()):
            for drawer in live_views():
                await asyncio.to_thread(drawer.join)

    asyncio.run(watch())


# --- The document --------------------------------------------------------------------------------------------------

JSON_NAMES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null", list: "array"}
PARTS: dict[str, type[msgspec.Struct]] = {
    "### The collector": Snapshot,
    "### Each feed": FeedStatus,
    "### The upload": UploadStatus,
    "### Each channel for alerts": ChannelStatus,
}


def json_name(kind: Any) -> str:
    if get_origin(kind) in {Union, types.UnionType}:
        return " or ".join(json_name(part) for part in get_args(kind))
    if kind in PARTS.values():
        return "object"
    return JSON_NAMES.get(get_origin(kind) or kind, "string")


@pytest.mark.parametrize(("heading", "kind"), PARTS.items())
def test_document_tells_every_field(heading: str, kind: type[msgspec.Struct]) -> None:
    """docs/status.md lists exactly the fields of the code, in their order, with their JSON types and a meaning."""
    part = DOCUMENT.read_text(encoding="utf-8").split(heading)[1].split("\n#")[0]
    told = re.findall(r"^\| `(\w+)` \| ([^|]+) \|([^|]*)\| [^|]+ \|$", part, re.MULTILINE)
    assert [(name, type_) for name, type_, _ in told] == [
        (name, json_name(hint)) for name, hint in get_type_hints(kind).items()
    ]
    units = {name: unit.strip() for name, _, unit in told}
    for suffix, unit in (("_ns", "ns"), ("_ms", "ms"), ("_per_s", "1/s"), ("_bytes", "bytes"), ("_hours_left", "h")):
        assert all(units[name] == unit for name in units if name.endswith(suffix))


def test_document_tells_the_limits() -> None:
    """The exit codes and limits in docs/status.md are those of the code."""
    document = DOCUMENT.read_text(encoding="utf-8")
    assert [int(code) for code in re.findall(r"^\| (\d) \|", document, re.MULTILINE)] == list(Health)
    for limit in (
        f"less than {status.size(status.DISK_LOW_BYTES).replace('.00', '')} or {status.DISK_LOW_HOURS} h",
        f"more than {status.LAG_HIGH_MS / 1000:.0f} s behind",
        f"({status.QUEUE_HIGH:.0%}".replace("%", " %)"),
        f"no sign of life for more than {status.STALE_AFTER_S} s",
        f"none has run for {status.UPLOAD_EVERY_H} h",
        f"over the last {Rate().window_s:.0f} s",
    ):
        assert limit in document
    for glyph in (status._UTF8, status._ASCII):
        assert all(f"`{mark}`" in document for mark in (glyph.well, glyph.cut, glyph.trouble, glyph.rest))
