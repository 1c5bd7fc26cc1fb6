"""What waits for the upload: the last run, and what was sealed since."""

import os
import re
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from conftest import Programs, exchange, status_of
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tickcollect.backlog import (
    Backlog,
    BacklogError,
    UploadRun,
    backlog,
    destination,
    read_run,
    upload_status,
    write_run,
)
from tickcollect.config import load
from tickcollect.dataset.replay import GeneratedMarket
from tickcollect.status import UploadStatus
from tickcollect.store import open_store

STORE = "s3://ticks/all"
RUN = UploadRun(
    started_ns=1_790_000_000_000_000_000,
    ended_ns=1_790_000_100_000_000_000,
    store=STORE,
    sent=3,
    sent_bytes=300,
    already=5,
    waiting=0,
    waiting_bytes=0,
    oldest_waiting="",
    failures=[],
    complete=True,
)


def sealed(data_dir: Path, first_id: int, size: int = 10, symbol: str = "BTCUSDT") -> Path:
    """Put a sealed file there, as sealing does: written under another name, then renamed."""
    folder = data_dir / "binance" / "trade" / symbol
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{symbol}-trade-2026-11-20-{first_id}-{first_id + 9}.csv.zip"
    unconfirmed = path.with_name(path.name + ".unconfirmed")
    unconfirmed.write_bytes(b"z" * size)
    return unconfirmed.rename(path)


def came_ns(path: Path) -> int:
    found = path.stat()
    return max(found.st_mtime_ns, found.st_ctime_ns)


def later_than(path: Path) -> int:
    """Return a time at which nothing that is there now has come; what comes after it is later."""
    now_ns = came_ns(path) + 1
    probe = path.parent / "probe"
    while True:
        probe.touch()
        if came_ns(probe) > now_ns:
            probe.unlink()
            return now_ns


# --- The last run --------------------------------------------------------------------------------------------------


def test_a_run_is_kept(tmp_path: Path) -> None:
    """What the uploader wrote is read again, by its owner and group only."""
    before = os.umask(0)
    try:
        write_run(tmp_path, RUN)
    finally:
        os.umask(before)
    assert read_run(tmp_path, STORE) == RUN
    assert stat.S_IMODE((tmp_path / "upload.json").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["upload.json"]


def test_no_run_yet(tmp_path: Path) -> None:
    """Where nothing was uploaded there is no run; nor in a directory that does not exist."""
    assert read_run(tmp_path, STORE) is None
    assert read_run(tmp_path / "none", STORE) is None


def test_each_store_has_its_own_last_run(tmp_path: Path) -> None:
    """A copy to a disk now and then does not hide the nightly run to the bucket; stores of long ago are forgotten."""
    disk = replace(RUN, store="file:///mnt/backup", sent=1)
    newer = replace(RUN, sent=9)
    for run in (RUN, disk, newer):
        write_run(tmp_path, run)
    assert read_run(tmp_path, STORE) == newer
    assert read_run(tmp_path, disk.store) == disk
    for number in range(10):
        write_run(tmp_path, replace(RUN, store=f"file:///mnt/{number}"))
    assert read_run(tmp_path, STORE) is None
    assert len(msgspec.json.decode((tmp_path / "upload.json").read_bytes())) == 10


@pytest.mark.parametrize(
    ("keys", "expected", "host"),
    [
        ({"UPLOAD_TO": "file:///mnt/backup"}, "file:///mnt/backup", ""),
        ({"UPLOAD_TO": "file:///mnt/my%20backup//ticks/"}, "file:///mnt/my backup/ticks", ""),
        ({"S3_BUCKET": "ticks"}, "s3://ticks", ""),
        ({"S3_BUCKET": "ticks", "S3_BUCKET_PATH": "/all//of/it/"}, "s3://ticks/all/of/it", ""),
        (
            {"S3_BUCKET": "ticks", "S3_ENDPOINT_URL": "https://minio.example:9000"},
            "s3://ticks",
            " at minio.example:9000",
        ),
    ],
)
def test_runs_are_found_by_the_configuration(tmp_path: Path, keys: dict[str, str], expected: str, host: str) -> None:
    """What the configuration says of the store finds the runs that the store itself has given its name."""
    keys = {"S3_REGION": "eu-central-1", "AWS_ACCESS_KEY": "a", "AWS_SECRET_KEY": "b", **keys}
    config = load(None, {}, keys)
    assert destination(config.upload_to, config.s3_bucket, config.s3_bucket_path) == expected
    to = destination(config.upload_to, config.s3_bucket, config.s3_bucket_path, config.s3_endpoint_url)
    assert to == expected + host
    store = open_store(config)
    assert store.name == expected + host
    write_run(tmp_path, replace(RUN, store=store.name))
    write_run(tmp_path, replace(RUN, store=f"{expected}-2", started_ns=RUN.started_ns + 1))
    found = read_run(tmp_path, to)
    store.close()
    assert found is not None
    assert found.store == store.name


def test_run_to_another_host_is_none_to_this_one(tmp_path: Path) -> None:
    """A bucket of the same name at another address is another store; without an address any host may be meant."""
    write_run(tmp_path, replace(RUN, store=f"{STORE} at minio.example:9000"))
    assert read_run(tmp_path, destination("", "ticks", "all", "https://minio.example:9000")) is not None
    assert read_run(tmp_path, destination("", "ticks", "all", "https://other.example")) is None
    assert read_run(tmp_path, destination("", "ticks", "all")) is not None
    assert destination("", "ticks", "all", "https://s3.eu-central-1.amazonaws.com") == STORE


def test_no_destination() -> None:
    """Where neither folder nor bucket is configured there is no destination, whatever else is set."""
    assert not destination("", "", "all")


@pytest.mark.parametrize("content", [b"", b"[", b"\xff\xfe", b"{}", b'[{"store": 1}]', b"null", b"\0" * 4096])
def test_damaged_run(tmp_path: Path, content: bytes) -> None:
    """A file that holds no run is named in one line with what to do, and the next run replaces it."""
    (tmp_path / "upload.json").write_bytes(content)
    with pytest.raises(
        BacklogError, match=r"upload\.json does not tell of an upload.*run `tickcollect upload`"
    ) as told:
        read_run(tmp_path, STORE)
    assert "\n" not in str(told.value)
    write_run(tmp_path, RUN)
    assert read_run(tmp_path, STORE) == RUN


def test_fields_of_a_later_version_are_accepted(tmp_path: Path) -> None:
    """A field that this version does not know does not make a run unreadable."""
    (tmp_path / "upload.json").write_bytes(msgspec.json.encode([msgspec.to_builtins(RUN) | {"speed": 7}]))
    assert read_run(tmp_path, STORE) == RUN


def test_cannot_be_written(tmp_path: Path) -> None:
    """A run that cannot be kept is one line with the reason, and leaves the one before and nothing beside it."""
    (tmp_path / "upload.json").mkdir()
    with pytest.raises(BacklogError, match=r"cannot write .*upload\.json: Is a directory"):
        write_run(tmp_path, RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["upload.json"]
    with pytest.raises(BacklogError, match="No such file or directory"):
        write_run(tmp_path / "none", RUN)


def test_no_symbolic_link_is_written_through(tmp_path: Path) -> None:
    """A link in place of the file's temporary name is refused; what it points to stays as it is."""
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / "upload.json.unconfirmed").symlink_to(other)
    with pytest.raises(BacklogError, match="cannot write"):
        write_run(tmp_path, RUN)
    assert other.read_text() == "kept"


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """Whoever reads while runs are written sees one of them, whole."""
    versions = [replace(RUN, sent=length, failures=["x" * 500] * length) for length in (1, 200, 3)]
    write_run(tmp_path, versions[0])
    enough = threading.Event()

    def keep_writing() -> None:
        while not enough.is_set():
            for version in versions:
                write_run(tmp_path, version)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        seen = [read_run(tmp_path, STORE) for _ in range(300)]
    finally:
        enough.set()
        writer.join()
    assert all(run in versions for run in seen)


@given(st.builds(UploadRun))
def test_any_run_comes_back(run: UploadRun) -> None:
    """Whatever a run says, encoding loses nothing of it."""
    assert msgspec.json.decode(msgspec.json.encode([run]), type=list[UploadRun]) == [run]


# --- What waits ----------------------------------------------------------------------------------------------------


def test_nothing_waits_where_nothing_is(tmp_path: Path) -> None:
    """An empty data directory and one that does not exist have no backlog."""
    assert backlog(tmp_path, None) == backlog(tmp_path / "none", None) == Backlog(0, 0, None)


def test_everything_waits_before_the_first_run(tmp_path: Path) -> None:
    """Without a run to this store every sealed file waits, since the oldest came."""
    first = sealed(tmp_path, 1, 100)
    sealed(tmp_path, 11, 20)
    sealed(tmp_path, 1, 3, symbol="币安人生USDT")
    assert backlog(tmp_path, None) == Backlog(3, 123, came_ns(first))


def test_only_what_came_since_the_run_waits(tmp_path: Path) -> None:
    """After a complete run only files sealed since it began wait: also those sealed while it was at work."""
    began_ns = later_than(sealed(tmp_path, 1, 100))
    run = replace(RUN, started_ns=began_ns)
    assert backlog(tmp_path, run) == Backlog(0, 0, None)
    new = sealed(tmp_path, 11, 20)
    assert backlog(tmp_path, replace(run, ended_ns=came_ns(new) + 10**9)) == Backlog(1, 20, came_ns(new))
    assert backlog(tmp_path, replace(run, started_ns=came_ns(new))) == Backlog(1, 20, came_ns(new))
    assert backlog(tmp_path, replace(run, started_ns=came_ns(new) + 1)) == Backlog(0, 0, None)


def test_what_a_run_left_behind_waits_on(tmp_path: Path) -> None:
    """Files that the last run could not send wait since they came, with those sealed since."""
    left = sealed(tmp_path, 1, 100)
    run = replace(
        RUN,
        started_ns=later_than(left),
        waiting=2,
        waiting_bytes=150,
        oldest_waiting=str(left.relative_to(tmp_path)),
        failures=["no"],
        complete=False,
    )
    assert backlog(tmp_path, run) == Backlog(2, 150, came_ns(left))
    sealed(tmp_path, 11, 20)
    assert backlog(tmp_path, run) == Backlog(3, 170, came_ns(left))
    left.unlink()
    assert backlog(tmp_path, run).oldest_ns == run.started_ns


def test_written_long_ago_and_sealed_since(tmp_path: Path) -> None:
    """A file whose bytes are old but which got its name after the run began waits: rows of a quiet market."""
    first = sealed(tmp_path, 1)
    began_ns = later_than(first)
    late = sealed(tmp_path, 11)
    os.utime(late, ns=(0, 0))
    os.utime(late.parent, ns=(0, 0))
    assert backlog(tmp_path, replace(RUN, started_ns=began_ns)) == Backlog(1, 10, came_ns(late))


def test_only_sealed_files_of_feeds_wait(tmp_path: Path) -> None:
    """Open files, half-sealed ones, foreign ones, links and whatever lies elsewhere are not counted."""
    real = sealed(tmp_path, 1)
    folder = real.parent
    for name in (
        "BTCUSDT-trade-2026-11-20-21.csv",
        "BTCUSDT-trade-2026-11-20-21-30.csv.zip.unconfirmed",
        "ETHUSDT-trade-2026-11-20-21-30.csv.zip",
        "BTCUSDT-trade-2026-13-20-21-30.csv.zip",
        "notes.txt",
        ".lock",
    ):
        (folder / name).write_bytes(b"1234")
    (folder / "BTCUSDT-trade-2026-11-20-31-40.csv.zip").symlink_to(real)
    (folder / "BTCUSDT-trade-2026-11-20-41-50.csv.zip").mkdir()
    (tmp_path / "binance" / "linked").symlink_to(tmp_path / "binance" / "trade")
    (tmp_path / "binance" / "trade" / ".hidden").mkdir()
    (tmp_path / "journal.jsonl").write_text("{}\n")
    assert backlog(tmp_path, None) == Backlog(1, 10, came_ns(real))


@pytest.mark.parametrize("packing", ["", ".zip", ".gz", ".zst"])
def test_however_it_is_packed(tmp_path: Path, packing: str) -> None:
    """Sealed files of each kind of packing count, also those that are not packed at all."""
    path = sealed(tmp_path, 1)
    path = path.rename(path.with_name(f"BTCUSDT-trade-2026-11-20-1-10.csv{packing}"))
    assert backlog(tmp_path, None).files == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_directory_that_may_not_be_read(tmp_path: Path) -> None:
    """A directory that this user may not read is named, in one line."""
    folder = sealed(tmp_path, 1).parent
    folder.chmod(0)
    try:
        with pytest.raises(BacklogError, match=re.escape(f"cannot read {folder}: Permission denied")) as told:
            backlog(tmp_path, None)
    finally:
        folder.chmod(0o700)
    assert "\n" not in str(told.value)


def test_data_directory_that_is_none(tmp_path: Path) -> None:
    """A file where the data directory should be is named, in one line."""
    (tmp_path / "data").touch()
    with pytest.raises(BacklogError, match=r"cannot read .*data: Not a directory"):
        backlog(tmp_path / "data", None)


# --- What the status tells -----------------------------------------------------------------------------------------


def test_status_before_the_first_run(tmp_path: Path) -> None:
    """Without a run on record the status has the configured store, no time and no failure."""
    came = came_ns(sealed(tmp_path, 1))
    assert upload_status(tmp_path, STORE) == UploadStatus(
        store=STORE,
        last_run_ns=None,
        complete=False,
        waiting_files=1,
        waiting_bytes=10,
        oldest_ns=came,
        failure="",
    )


def test_status_of_the_last_run(tmp_path: Path) -> None:
    """The status has the run's end, its first failure, and the number of the others."""
    began_ns = later_than(sealed(tmp_path, 1))
    run = replace(RUN, started_ns=began_ns, ended_ns=began_ns + 1, store=f"{STORE} at minio.example")
    write_run(tmp_path, run)
    whole = upload_status(tmp_path, STORE)
    assert (whole.store, whole.last_run_ns, whole.complete, whole.failure) == (run.store, began_ns + 1, True, "")
    assert (whole.waiting_files, whole.waiting_bytes, whole.oldest_ns) == (0, 0, None)
    for failures, told in (
        (["no bucket"], "no bucket"),
        (["no bucket", "x", "y"], "no bucket (and 2 more reasons, see the log)"),
        ([], "its reason is not on record"),
    ):
        write_run(tmp_path, replace(run, complete=False, failures=failures, waiting=2, waiting_bytes=7))
        failed = upload_status(tmp_path, STORE)
        assert (failed.complete, failed.failure, failed.waiting_files) == (False, told, 2)


def test_status_that_cannot_be_known(tmp_path: Path) -> None:
    """A damaged record of the runs is a failure in the status, and stops nothing."""
    sealed(tmp_path, 1)
    (tmp_path / "upload.json").write_text("{")
    told = upload_status(tmp_path, STORE)
    assert (told.last_run_ns, told.complete, told.waiting_files) == (None, False, 0)
    assert "does not tell of an upload" in told.failure


def test_status_of_a_stopped_collector_knows_the_upload(programs: Programs, tmp_path: Path) -> None:
    """The nightly upload goes on when no collector runs, so `tickcollect status` looks itself what waits."""
    data_dir, store = tmp_path / "data", tmp_path / "backup"
    store.mkdir()
    env = {"TICKCOLLECT_UPLOAD_TO": f"file://{store}", "TICKCOLLECT_SEAL_AT_STOP": "true"}
    with exchange(GeneratedMarket("binance", 1_784_000_000_000, symbols=1, activity=60)) as served:
        run = programs.start("run", "--symbol", "BTCUSDT", "--data-dir", data_dir, *served.addresses, env=env)
        run.until(lambda: status_of(data_dir).get("upload"))
        assert run.stop().code == 0
    assert status_of(data_dir)["upload"]["waiting_files"] == 0
    waits = programs.run("status", "--data-dir", data_dir)
    assert (waits.code, "upload: 1 file waiting (" in waits.out) == (2, True)
    assert programs.run("upload", "--data-dir", data_dir, env=env).code == 0
    done = programs.run("status", "--data-dir", data_dir)
    assert re.search(r"upload: nothing waiting, last \d\d:\d\d UTC ok", done.out)
    (told,) = msgspec.json.decode(programs.run("status", "--data-dir", data_dir, "--json").out)
    assert (told["upload"]["complete"], told["upload"]["store"]) == (True, f"file://{store}")
