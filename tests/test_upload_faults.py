"""The uploader's faults as a table: which harm, at which step, for which size of file, how often.

The judge is OpenStack Swift (`stores.swift`), which verifies checksums and conditions, behind a proxy that does the
harm (`stores.proxy`); beside it stands a store with bad manners (`stores.bad`). After every case: what the store holds
is byte-identical to the local file, the journal says `uploaded` only of that, no object was written twice, no local
file is gone that the store does not hold, no parts of an upload are left, and no secret has come out.

An ordinary run does each fault as often as makes a difference; `FAULT_POINTS=all` does each 1, 2 and 4 times.
"""

import contextlib
import functools
import http.server
import os
import shutil
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import boto3
import pytest
from conftest import Ended, Programs, journal, until
from stores.bad import CarelessStore, Manners, careless
from stores.listening import authority
from stores.proxy import Fault, Moment, Proxy, faulty
from stores.site import BIG, BRIEF, DELETING, LIMITS, SECRETS, SMALL, Site, name_of, sealed_bytes
from stores.swift import STRANGER_KEY, STRANGER_SECRET, Bucket, SwiftStore, config_keys, sha256_of

from tickcollect import store as stores
from tickcollect.upload import BusyError, Options, Outcome

ALL = os.environ.get("FAULT_POINTS") == "all"


@pytest.fixture(autouse=True, scope="module")
def one_session() -> Iterator[None]:
    """Have S3's long description read once, and not by each client of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3, "Session", functools.cache(boto3.Session))
        yield


@pytest.fixture
def site(tmp_path: Path, proxy: Proxy, bucket: Bucket) -> Site:
    """Make a data directory whose files go to the judge, through the proxy."""
    (tmp_path / "data").mkdir()
    return Site(tmp_path / "data", config_keys(proxy.endpoint, bucket.name))


# --- Harm that passes ------------------------------------------------------------------------------------------------


UNSAID = ("error", "slow-down", "too-many", "reset", "cut", "slow")
"""What the answer to HEAD can tell, which has no body for a code."""
PASSING = (*UNSAID, "timeout")
HIDDEN = ("error", "slow-down", "reset", "cut", "slow", "flip", "html")
BODIES = ("error", "slow-down", "too-many", "reset", "cut", "slow", "flip")

ROWS: list[tuple[int, str, Moment, tuple[str, ...]]] = [
    (SMALL, "head", "before", UNSAID),
    (SMALL, "head", "after", HIDDEN[:-1]),
    (SMALL, "put", "before", (*PASSING, "conflict")),
    (SMALL, "put", "body", BODIES),
    (SMALL, "put", "after", HIDDEN),
    (BIG, "create", "before", PASSING),
    (BIG, "create", "after", HIDDEN),
    (BIG, "part", "before", PASSING),
    (BIG, "part", "body", BODIES),
    (BIG, "part", "after", HIDDEN),
    (BIG, "complete", "before", (*PASSING, "conflict")),
    (BIG, "complete", "after", HIDDEN),
]
"""Size of file, step, moment, and every harm that can be done there."""


def faults(size: int, step: str, moment: Moment, harms: tuple[str, ...], times: int) -> list[Fault]:
    """Return a row's faults, each for a file of its own; a byte in the middle, at both ends if all are asked for."""
    end = min(size, LIMITS.part_bytes) - 1
    places = (0, end // 3, end) if ALL and moment == "body" else (end // 3,)
    spots = [(harm, place) for harm in harms for place in places]
    return [Fault(step, moment, harm, times, place, name_of(n)) for n, (harm, place) in enumerate(spots, start=1)]


@pytest.mark.parametrize("times", [1, 2, 4] if ALL else [2])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{'small' if row[0] == SMALL else 'big'}-{row[1]}-{row[2]}")
def test_harm_that_passes_costs_nothing_but_time(
    site: Site,
    proxy: Proxy,
    bucket: Bucket,
    row: tuple[int, str, Moment, tuple[str, ...]],
    times: int,
) -> None:
    """Whatever is done to a request n times: each file arrives, once, whole, proved and recorded; nothing is left over.

    An upload in parts whose beginning was never answered has a number that nobody knows: it goes a day later.
    """
    size, step, moment, _ = row
    harms = faults(*row, times)
    proxy.harm(*harms)
    for fault in harms:
        site.seal(fault.key, size)
    outcome = site.run()
    assert outcome.complete, outcome.lines()
    for fault in harms:
        comes_again = moment != "after" and fault.harm != "slow"
        assert proxy.done[fault] == times or (proxy.done[fault] > 0 and not comes_again), fault
    assert bucket.contents() == site.files
    assert site.uploaded().keys() == site.files.keys()
    site.check(bucket.contents(), proxy.created)
    unknown = times * len(harms) if (step, moment) == ("create", "after") else 0
    assert len(bucket.unfinished()) <= unknown
    if unknown:
        site.seal(name_of(0))
        assert site.run(later=timedelta(days=2)).complete
        assert bucket.unfinished() == []


def test_what_hangs_is_given_up_and_tried_again(
    site: Site, proxy: Proxy, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that gets no answer, at whichever step and moment, holds its file up for the time-out, and no longer.

    Where the time-out is this short, a busy machine may pass it too, so that parts may be left; they go a day later.
    """
    monkeypatch.setattr(stores, "ANSWER_WITHIN_S", 1.0)
    for n, (size, step, moment, _) in enumerate(ROWS, start=1):
        site.seal(name_of(n), size)
        proxy.harm(Fault(step, moment, "hang", at_byte=size // 5, key=name_of(n)))
    outcome = site.run()
    assert outcome.complete, outcome.lines()
    assert proxy.done.total() == len(ROWS)
    assert bucket.contents() == site.files
    site.check(bucket.contents(), proxy.created)
    site.seal(name_of(0))
    assert site.run(later=timedelta(days=2)).complete
    assert bucket.unfinished() == []


def test_reading_back_is_patient_too(site: Site, proxy: Proxy, bucket: Bucket) -> None:
    """Where the ETag proves nothing the object is downloaded, and a download that breaks off proves nothing either."""
    proxy.harm(Fault("head", "after", "flip", times=1000))
    harms = [Fault("get", moment, harm, 2, key=name_of(n)) for n, (moment, harm) in enumerate(READING, start=1)]
    proxy.harm(*harms)
    for fault in harms:
        site.seal(fault.key)
    outcome = site.run(DELETING)
    assert outcome.complete, outcome.lines()
    assert all(proxy.done[fault] == 2 for fault in harms)
    assert outcome.deleted == len(harms)
    assert bucket.contents() == site.files
    site.check(bucket.contents(), proxy.created)


READING: list[tuple[Moment, str]] = [
    ("before", "error"), ("before", "reset"), ("before", "slow-down"), ("after", "reset"), ("after", "cut"),
]  # fmt: skip


# --- Harm that stays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["error", "slow-down", "reset", "hang", "html"])
def test_harm_that_stays_is_told_and_the_next_run_goes_on(
    site: Site, proxy: Proxy, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """After the run's time nothing is believed or deleted, the reason is one line for all; the next run completes."""
    for n in range(3):
        site.seal(name_of(n))
    proxy.harm(Fault("put", "before", harm, times=10**6))
    with monkeypatch.context() as patch:
        if harm == "hang":
            patch.setattr(stores, "ANSWER_WITHIN_S", 0.3)
        failed = site.run(DELETING, BRIEF)
    assert (failed.complete, failed.sent, failed.deleted) == (False, 0, 0)
    assert {item.file for item in failed.waiting} == site.files.keys()
    assert len(failed.reasons) == 1
    assert (bucket.contents(), site.uploaded()) == ({}, {})
    site.check({}, proxy.created)
    proxy.heal()
    assert site.run(DELETING).complete
    assert bucket.contents() == site.files
    site.check(bucket.contents(), proxy.created)


def test_one_file_holds_up_no_other(site: Site, proxy: Proxy, bucket: Bucket) -> None:
    """What fails for one file for ever keeps that file back, and no other. The run's time ends when they are there."""
    for n in range(6):
        site.seal(name_of(n))
    proxy.harm(Fault("put", "before", "error", times=10**6, key=name_of(0)))
    outcome = site.run(patience=BRIEF, monotonic_s=lambda: 0.0 if len(site.uploaded()) < 5 else 1.0)
    assert [item.file for item in outcome.waiting] == [name_of(0)]
    assert name_of(0) in outcome.reasons[0]
    assert set(bucket.keys()) == site.uploaded().keys() == site.files.keys() - {name_of(0)}
    site.check(bucket.contents(), proxy.created)


def test_deleting_waits_for_the_answer(site: Site, proxy: Proxy, bucket: Bucket) -> None:
    """While the store does not answer whether it holds a file, the file stays, however well it was proved before."""
    for n in range(3):
        site.seal(name_of(n))
    assert site.run().complete
    proxy.harm(Fault("head", "before", "error", times=10**6))
    outcome = site.run(DELETING, BRIEF)
    assert (outcome.complete, outcome.deleted) == (False, 0)
    assert all((site.data_dir / name).exists() for name in site.files)
    proxy.heal()
    assert site.run(DELETING).deleted == 3
    assert bucket.contents() == site.files
    assert {entry["file"] for entry in journal(site.data_dir, "deleted")} == site.files.keys()
    site.check(bucket.contents(), proxy.created)


# --- What no waiting heals -------------------------------------------------------------------------------------------

UNUSABLE: dict[str, tuple[dict[str, object], str, str]] = {
    "wrong-secret": ({"AWS_SECRET_KEY": "planted-wrong-secret"}, "", "credentials"),
    "unknown-key": ({"AWS_ACCESS_KEY": "test:nobody"}, "", "credentials"),
    "stranger": ({"AWS_ACCESS_KEY": STRANGER_KEY, "AWS_SECRET_KEY": STRANGER_SECRET}, "", "permission"),
    "no-bucket": ({"S3_BUCKET": "no-such-bucket"}, "", "bucket"),
    "expired": ({}, "expired", "expired"),
    "skewed": ({}, "skewed", "clock"),
    "key-not-known": ({}, "unknown-key", "credentials"),
    "other-region": ({}, "elsewhere", "region"),
}
"""What is changed in the configuration or answered to every request, and the kind of failure that it is."""


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_waiting_does_not_heal_is_told_at_once(site: Site, proxy: Proxy, bucket: Bucket, case: str) -> None:
    """Credentials, bucket, permission, clock: one question and no more, one line, nothing sent or deleted."""
    keys, answer, kind = UNUSABLE[case]
    for n in range(8):
        site.seal(name_of(n))
    if answer:
        proxy.harm(*(Fault(step, "before", answer, times=10**6) for step in ("list", "head", "put", "uploads")))
    site.keys |= keys
    outcome = site.run(DELETING)
    assert outcome.stopped_by is not None
    assert outcome.stopped_by.kind == kind
    assert len(outcome.reasons) == 1
    questions = 5 if kind == "permission" else 1  # a key that may not list or look may still be one that may put
    assert proxy.seen.total() <= questions
    assert (len(outcome.waiting), outcome.deleted, bucket.keys()) == (8, 0, [])
    assert not any("planted" in line for line in site.said)
    site.check({}, proxy.created)


def config_of(programs: Programs, site: Site, **keys: object) -> Path:
    """Write the site's configuration for the command."""
    return programs.config(DATA_DIR=str(site.data_dir), **{**site.keys, **keys})


def one_line(ended: Ended) -> str:
    """Return the line of a failed command, after checking that it is one, and clean."""
    assert ended.code == 1, ended.said
    assert not any(secret in ended.said for secret in (*SECRETS, "planted")), "a secret came out"
    assert "Traceback" not in ended.said
    (line,) = (line for line in ended.err.splitlines() if line.startswith("Error: "))
    return line


def test_command_tells_a_wrong_secret(programs: Programs, site: Site, proxy: Proxy) -> None:
    """The command ends with 1 and a line that says what to correct."""
    site.seal(name_of(1))
    ended = programs.run("upload", "--config", config_of(programs, site, AWS_SECRET_KEY="planted-wrong-secret"))
    assert "AWS_SECRET_KEY" in one_line(ended)
    site.check({}, proxy.created)


@pytest.mark.parametrize("case", ["wrong-secret", "unknown-key", "no-bucket"])
def test_dry_run_asks_the_store_in_earnest(
    programs: Programs, site: Site, proxy: Proxy, bucket: Bucket, case: str
) -> None:
    """A key or a bucket with which nothing could be sent fails the dry run, also where no file waits."""
    keys, _, _ = UNUSABLE[case]
    ended = programs.run("upload", "--dry-run", "--config", config_of(programs, site, **keys))
    assert ended.code == 1
    assert ended.err.startswith("Error: s3://")
    assert "planted" not in ended.said
    site.seal(name_of(1))
    good = programs.run("upload", "--dry-run", "--config", config_of(programs, site))
    assert good.code == 0
    assert f"send: {name_of(1)}" in good.out
    assert (bucket.contents(), proxy.created) == ({}, [])


PAGES = {
    "html": b"<html><body>Please log in</body></html>",
    "xhtml": b"<?xml version='1.0'?><!DOCTYPE html><html xmlns='http://www.w3.org/1999/xhtml'/>",
    "text": b"Welcome",
    "json": b'{"error":"log in first"}',
}


@pytest.mark.parametrize("to", ["all", "put"])
@pytest.mark.parametrize("page", PAGES)
def test_page_of_something_between_is_told_as_that(tmp_path: Path, page: str, to: str) -> None:
    """A proxy or a log-in page that answers 200 is neither a store that is overloaded nor one that holds anything."""
    (tmp_path / "data").mkdir()
    with portal(PAGES[page], to) as endpoint:
        site = Site(tmp_path / "data", config_keys(endpoint, "any-bucket"))
        site.seal(name_of(1))
        outcome = site.run(DELETING, BRIEF)
    assert [item.file for item in outcome.waiting] == [name_of(1)]
    assert "instead of S3's answer" in outcome.reasons[0]
    assert "overloaded" not in outcome.reasons[0]
    site.check({}, [])


@contextlib.contextmanager
def portal(page: bytes, to: str) -> Iterator[str]:
    """Run what answers each request, or uploads only, with 200 and a page; otherwise it is an empty store."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            is_paged = to == "all" or self.command == "PUT"
            body = page if is_paged else b"<ListBucketResult/>"
            self.send_response(404 if self.command == "HEAD" and not is_paged else 200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - the server looks for these names

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(shutil.which("faketime") is None, reason="libfaketime is not installed")
def test_command_tells_a_wrong_clock(programs: Programs, site: Site, proxy: Proxy) -> None:
    """A clock that is 20 minutes fast is refused by the judge itself, and the line names the remedy."""
    site.seal(name_of(1))
    fast = ("faketime", "-f", "+20m")
    ended = programs.run("upload", "--config", config_of(programs, site), before=fast)
    assert "NTP" in one_line(ended)
    site.check({}, proxy.created)


@contextlib.contextmanager
def while_held(proxy: Proxy, at: Fault, job: Callable[[], Outcome]) -> Iterator[Future[Outcome]]:
    """Run a job in a thread until it is held at a fault that pauses; what is in the block happens meanwhile."""
    proxy.harm(at)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(job)
        try:
            until(lambda: proxy.done[at] == at.times)
            yield running
        finally:
            proxy.resume.set()


# --- Names that are taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [b"x" * SMALL, b"x" * 10, b""], ids=["same-size", "shorter", "empty"])
def test_taken_name_is_left_alone(site: Site, proxy: Proxy, bucket: Bucket, other: bytes) -> None:
    """Other content under the name stays; the file stays here, is told, and goes beside it only if that is asked."""
    mine, free = site.seal(name_of(1)), site.seal(name_of(2))
    bucket.put(name_of(1), other)
    outcome = site.run(DELETING)
    assert not outcome.complete
    assert "other content" in outcome.reasons[0]
    assert bucket.contents() == {name_of(1): other, name_of(2): free}
    assert (site.data_dir / name_of(1)).read_bytes() == mine
    assert [entry["file"] for entry in journal(site.data_dir, "name_taken")] == [name_of(1)]
    assert site.uploaded().keys() == {name_of(2)}
    assert site.run(Options(rename_taken=True, delete_after_days=0)).complete
    held = bucket.contents()
    beside = f"{name_of(1).removesuffix('.csv.zip')}.sha256-{sha256_of(mine)[:8]}.csv.zip"
    assert held == {name_of(1): other, name_of(2): free, beside: mine}
    assert not (site.data_dir / name_of(1)).exists()


def test_same_content_is_recognized(site: Site, proxy: Proxy, bucket: Bucket) -> None:
    """A file that is there already, by whoever's hand, is proved without being sent."""
    bucket.put(name_of(1), site.seal(name_of(1)))
    outcome = site.run(DELETING)
    assert (outcome.complete, outcome.sent, outcome.already, outcome.deleted) == (True, 0, 1, 1)
    assert proxy.seen["put"] == 0
    site.check(bucket.contents(), proxy.created)


@pytest.mark.parametrize("later", [b"x" * SMALL, None], ids=["changed", "removed"])
def test_what_happens_in_the_store_later_is_found_before_deleting(
    site: Site, proxy: Proxy, bucket: Bucket, later: bytes | None
) -> None:
    """An object that was altered keeps the file here; one that was removed is sent again, and only then counts."""
    mine = site.seal(name_of(1))
    assert site.run().complete
    if later is None:
        bucket.delete(name_of(1))
    else:
        bucket.put(name_of(1), later)
    assert site.run().complete, "the journal is believed where nothing is deleted"
    outcome = site.run(DELETING)
    if later is None:
        assert (outcome.complete, outcome.sent, outcome.deleted) == (True, 1, 1)
        assert bucket.contents() == {name_of(1): mine}
    else:
        assert (outcome.complete, outcome.sent, outcome.deleted) == (False, 0, 0)
        assert bucket.contents() == {name_of(1): later}
        assert (site.data_dir / name_of(1)).read_bytes() == mine


def test_object_that_is_swapped_while_it_is_proved(site: Site, proxy: Proxy, bucket: Bucket) -> None:
    """Between the first look and the second the object becomes another: the file stays."""
    mine = site.seal(name_of(1))
    assert site.run().complete
    with while_held(proxy, Fault("head", "after", "pause", key=name_of(1)), partial(site.run, DELETING)) as running:
        bucket.put(name_of(1), b"x" * SMALL)  # the first look has just seen the right one
    outcome = running.result()
    assert (outcome.complete, outcome.deleted) == (False, 0)
    assert (site.data_dir / name_of(1)).read_bytes() == mine


# --- Two at once -----------------------------------------------------------------------------------------------------


def test_second_uploader_of_a_directory_leaves_it_to_the_first(
    programs: Programs, site: Site, proxy: Proxy, bucket: Bucket
) -> None:
    """The second ends with 75 and names the first; SIGTERM breaks the first off in order; the next run completes."""
    for n in range(3):
        site.seal(name_of(n))
    config = config_of(programs, site)
    pause = Fault("put", "after", "pause")
    proxy.harm(pause)
    first = programs.start("upload", "--config", config)
    first.until(lambda: proxy.done[pause])
    second = programs.run("upload", "--config", config)
    assert second.code == 75
    assert f"pid {first.process.pid}" in second.err
    with pytest.raises(BusyError):
        site.run()
    first.send(signal.SIGTERM)
    first.until_said("stopping")
    proxy.resume.set()
    assert first.wait().code == 130
    site.check(bucket.contents(), proxy.created)
    assert programs.run("upload", "--config", config).code == 0
    assert bucket.contents() == site.files
    site.check(bucket.contents(), proxy.created)


@pytest.mark.parametrize("size", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("price", ["1.50", "9.50"], ids=["same-content", "other-content"])
def test_two_machines_send_one_name(
    site: Site, proxy: Proxy, bucket: Bucket, tmp_path: Path, price: str, size: int
) -> None:
    """Between the look of one and its upload the other's arrives: the name stays the other's, whatever was sent.

    It is not tried with both in the same instant: Swift then lets both pass, and the later one wins.
    """
    (tmp_path / "other").mkdir()
    there = Site(tmp_path / "other", site.keys)
    mine = site.seal(name_of(1), size)
    theirs = there.seal_as(name_of(1), sealed_bytes(name_of(1), size, price))
    at = Fault("put" if size == SMALL else "complete", "before", "pause")
    with while_held(proxy, at, partial(site.run, DELETING)) as running:
        assert there.run(DELETING).complete
    assert running.result().complete == (mine == theirs)
    held = bucket.contents()
    assert held == {name_of(1): theirs}
    assert (site.data_dir / name_of(1)).exists() == (mine != theirs)
    assert bucket.unfinished() == []
    for place in (site, there):
        place.check(held, proxy.created)


# --- A file that changes while it is sent ----------------------------------------------------------------------------


def cut_short(path: Path) -> None:
    """Take half of a file away."""
    os.truncate(path, path.stat().st_size // 2)


def lengthen(path: Path) -> None:
    """Append to a file."""
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    """Write other bytes of the same length."""
    with path.open("r+b") as file:
        file.write(b"other")


def rewrite_secretly(path: Path) -> None:
    """Write other bytes of the same length, and leave the times as they were."""
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(path: Path) -> None:
    """Put another file in its place."""
    replacement = path.with_suffix(".new")
    replacement.write_bytes(b"another")
    replacement.replace(path)


CHANGES: tuple[Callable[[Path], None], ...] = (cut_short, lengthen, rewrite, rewrite_secretly, swap)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("size", "at"),
    [
        (SMALL, Fault("head", "after", "pause")),
        (SMALL, Fault("put", "after", "pause")),
        (BIG, Fault("part", "after", "pause")),
        (BIG, Fault("complete", "before", "pause")),
    ],
    ids=["before-sending", "after-sending", "between-parts", "before-the-end"],
)
def test_file_that_changes_while_it_is_sent(
    site: Site, proxy: Proxy, bucket: Bucket, size: int, at: Fault, change: Callable[[Path], None]
) -> None:
    """What was digested is what is in the store, or nothing is; and what is here now is not deleted for it."""
    before = site.seal(name_of(1), size)
    path = site.data_dir / name_of(1)
    at = replace(at, key=name_of(1))
    with while_held(proxy, at, partial(site.run, DELETING)) as running:
        change(path)
        after = path.read_bytes()
    outcome = running.result()
    assert not outcome.complete
    assert outcome.deleted == 0
    assert path.read_bytes() == after
    assert bucket.contents() in ({}, {name_of(1): before})
    assert set(site.uploaded().values()) <= {sha256_of(before)}
    assert len(proxy.created) == len(bucket.keys())
    assert bucket.unfinished() == []


# --- Stores with bad manners -----------------------------------------------------------------------------------------


@pytest.fixture
def bad(tmp_path: Path) -> Iterator[tuple[CarelessStore, Site]]:
    """Run a store with bad manners, and make a data directory whose files go there."""
    (tmp_path / "data").mkdir()
    with careless() as store:
        yield store, Site(tmp_path / "data", config_keys(store.endpoint, "any-bucket"))


LIARS = [
    Manners(stores=kept, etag=etag, checksums=checksums, believes=believes)
    for kept in ("half", "altered", "nothing")
    for etag in ("md5", "nonsense", "none")
    for checksums in (True, False)
    for believes in (False, True)
]
SIZED_LIARS = [
    (size, manners) for size in (SMALL, BIG) for manners in LIARS if ALL or size == SMALL or manners.believes
]


def manner_of(manners: object) -> str:
    """Name the switches that are set, or the size of a file."""
    if not isinstance(manners, Manners):
        return "small" if manners == SMALL else "big"
    return "-".join(
        name if value is True else f"no-{name}" if value is False else str(value)
        for name, value in vars(manners).items()
        if value != getattr(Manners(), name)
    )


@pytest.mark.parametrize(("size", "manners"), SIZED_LIARS, ids=manner_of)
def test_store_that_damages_is_never_believed(bad: tuple[CarelessStore, Site], manners: Manners, size: int) -> None:
    """Whatever a store says of it: bytes that it does not hold are not `uploaded`, and the file stays here.

    A store that repeats the checksum it was told, and gives no ETag, cannot be found out except by reading back.
    """
    store, site = bad
    store.manners = manners
    site.seal(name_of(1), size)
    believed = manners.believes and manners.checksums and manners.etag == "none" and manners.stores == "altered"
    outcome = site.run(DELETING, BRIEF, reads_back=believed)
    assert (outcome.complete, outcome.sent, outcome.deleted) == (False, 0, 0)
    assert site.uploaded() == {}
    assert len(outcome.reasons) == 1
    assert (site.data_dir / name_of(1)).read_bytes() == site.files[name_of(1)]
    assert not any(put.replaced for put in store.puts)


HONEST = {
    "tells-no-checksum": Manners(checksums=False),
    "etag-is-no-md5": Manners(etag="nonsense"),
    "etag-is-no-md5-and-no-checksum": Manners(etag="nonsense", checksums=False),
    "tells-nothing": Manners(etag="none", checksums=False),
    "knows-no-conditions": Manners(knows_conditions=False),
    "ignores-conditions": Manners(overwrites=True),
}


@pytest.mark.parametrize("size", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("case", HONEST)
def test_odd_but_honest_store_is_usable(bad: tuple[CarelessStore, Site], case: str, size: int) -> None:
    """A store that tells little, or knows no conditions, gets its files once; a taken name is not overwritten there."""
    store, site = bad
    store.manners = HONEST[case]
    site.seal(name_of(1), size)
    site.seal(name_of(2), size)
    store.hold(name_of(2), b"other content")
    outcome = site.run(DELETING)
    assert (outcome.sent, outcome.deleted, sum(event == "name_taken" for event, *_ in outcome.told)) == (1, 1, 1)
    held = {key: one.data for key, one in store.objects.items()}
    assert held == {name_of(1): site.files[name_of(1)], name_of(2): b"other content"}
    assert [(put.key, put.replaced) for put in store.puts] == [(name_of(1), False)]
    assert (site.data_dir / name_of(2)).exists()


def test_store_without_sha256_says_what_to_set(bad: tuple[CarelessStore, Site]) -> None:
    """A store that refuses the checksum is told of with the key to set; with MD5 it is usable."""
    store, site = bad
    store.manners = Manners(knows_checksums=False)
    site.seal(name_of(1))
    outcome = site.run(DELETING)
    assert (outcome.complete, outcome.sent, outcome.deleted) == (False, 0, 0)
    assert "S3_CHECKSUM" in outcome.reasons[0]
    site.keys["S3_CHECKSUM"] = "md5"
    assert site.run(DELETING).complete
    assert {key: held.data for key, held in store.objects.items()} == site.files


def test_key_that_may_only_write(bad: tuple[CarelessStore, Site]) -> None:
    """The answer to the upload is the proof, and not enough for deleting unless that is asked for.

    A taken name is left alone: by what it is taken cannot be known, unless the journal says that it was us.
    """
    store, site = bad
    store.manners = Manners(head="forbidden")
    site.seal(name_of(1))
    site.seal(name_of(2))
    store.hold(name_of(2), site.files[name_of(2)])
    outcome = site.run(DELETING)
    assert (outcome.sent, outcome.deleted) == (1, 0)
    assert site.uploaded().keys() == {name_of(1)}
    assert all((site.data_dir / name).exists() for name in site.files)
    outcome = site.run(Options(delete_after_days=0, trust_receipt=True))
    assert (outcome.sent, outcome.deleted) == (0, 1)
    assert (site.data_dir / name_of(2)).exists()
    assert [(put.key, put.replaced) for put in store.puts] == [(name_of(1), False)]


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for 127.0.0.1, with who has signed it."""
    return authority(tmp_path_factory.mktemp("tls"))


def test_command_over_tls(
    programs: Programs, swift: SwiftStore, bucket: Bucket, tls: tuple[ssl.SSLContext, Path], tmp_path: Path
) -> None:
    """As in production: TLS, the real command, a passing failure; what arrives is the file. An unknown CA is told."""
    (tmp_path / "data").mkdir()
    with faulty(swift.port, tls[0]) as proxy:
        site = Site(tmp_path / "data", config_keys(proxy.endpoint, bucket.name))
        for n in range(4):
            site.seal(name_of(n), 100_000)
        config = config_of(programs, site)
        assert "AWS_CA_BUNDLE" in one_line(programs.run("upload", "--config", config))
        proxy.harm(Fault("put", "body", "reset", at_byte=50_000), Fault("put", "after", "slow-down"))
        ended = programs.run("upload", "--config", config, "--delete-after", 0, env={"AWS_CA_BUNDLE": str(tls[1])})
        assert ended.code == 0, ended.said
        assert proxy.done.total() == 2
        assert bucket.contents() == site.files
        site.check(bucket.contents(), proxy.created)
    assert {entry["file"] for entry in journal(site.data_dir, "deleted")} == site.files.keys()


def test_command_never_sends_frames(programs: Programs, tls: tuple[ssl.SSLContext, Path], tmp_path: Path) -> None:
    """A store that would keep the frames of boto3's defaults gets none to keep."""
    (tmp_path / "data").mkdir()
    with careless(tls[0]) as store:
        store.manners = Manners(keeps_framing=True)
        site = Site(tmp_path / "data", config_keys(store.endpoint, "any-bucket"))
        site.seal(name_of(1))
        ended = programs.run("upload", "--config", config_of(programs, site), env={"AWS_CA_BUNDLE": str(tls[1])})
        assert ended.code == 0, ended.said
        assert {key: held.data for key, held in store.objects.items()} == site.files
