"""SIGKILL of the uploader at random moments: whatever was under way, the next run completes, and nothing is wrong.

Three ways: the real command to the judge (OpenStack Swift), files in parts to the judge, the real command to a folder.
Each deletes here what it has proved there, so that a wrong proof would cost a file. KILLS sets how often (15, 5 a way),
SEED repeats a run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from conftest import Programs, until
from stores.proxy import Proxy
from stores.site import BIG, DELETING, SECRETS, Site, name_of
from stores.swift import Bucket, config_keys

KILLS = int(os.environ.get("KILLS", "15"))
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(10**6))))
WAYS = ("command", "parts", "folder")
FILES = 4
REQUESTS = 24
"""About as many as a run with so many files makes: a kill comes after one of them, or of what they lead to."""
FOLDER_RUN_S = 0.12

IN_PARTS = """
import json, sys
from pathlib import Path
from stores.site import DELETING, Site
sys.exit(not Site(Path(sys.argv[1]), json.loads(sys.argv[2])).run(DELETING).complete)
"""
"""What sends files in parts that are small enough for a test; the command does so above 5 GB."""


@dataclass
class Stage:
    """Where the kills happen: a site, what starts its uploader, and when to kill it."""

    site: Site
    start: Callable[[], "subprocess.Popen[bytes]"]
    has_come_far: Callable[[], Callable[[], bool]]
    """Chooses a moment, and returns what tells whether it has come."""
    held: Callable[[], dict[str, bytes]]
    drop: Callable[[str], object]
    created: list[str]
    largest: int

    def forget(self) -> None:
        """Begin anew, so that the hundredth round is as quick as the first."""
        for name in self.held():
            self.drop(name)
        self.created.clear()
        self.site.files.clear()
        (self.site.data_dir / "journal.jsonl").unlink()


def in_parts(site: Site, folder: Path) -> "subprocess.Popen[bytes]":
    """Start an uploader that sends in parts."""
    with (folder / "parts.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", IN_PARTS, str(site.data_dir), json.dumps(site.keys)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1]))),
            },
        )


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path, programs: Programs, proxy: Proxy, bucket: Bucket) -> Stage:
    """Prepare one of the ways."""
    (tmp_path / "data").mkdir()
    dice = random.Random(SEED)
    store = tmp_path / "store"
    if request.param == "folder":
        store.mkdir()
        site = Site(tmp_path / "data", {"UPLOAD_TO": f"file://{store}"})
    else:
        site = Site(tmp_path / "data", config_keys(proxy.endpoint, bucket.name))
    config = programs.config(DATA_DIR=str(site.data_dir), **site.keys)

    def command() -> "subprocess.Popen[bytes]":
        return programs.start("upload", "--config", config, "--delete-after", 0).process

    start: Callable[[], subprocess.Popen[bytes]]

    def after_a_request() -> Callable[[], bool]:
        wanted = proxy.seen.total() + dice.randint(1, REQUESTS)
        return lambda: proxy.seen.total() >= wanted

    def after_a_while() -> Callable[[], bool]:
        before, lasts_s, begun_s = lock_of(site), dice.uniform(0, FOLDER_RUN_S), list[float]()

        def has_come() -> bool:
            if not begun_s and lock_of(site) != before:
                begun_s.append(time.monotonic())
            return bool(begun_s) and time.monotonic() > begun_s[0] + lasts_s

        return has_come

    if request.param == "folder":
        return Stage(
            site, command, after_a_while, partial(named_files, store), lambda name: (store / name).unlink(), [], BIG
        )
    if request.param == "command":
        start, largest = command, 300_000
    else:
        start, largest = partial(in_parts, site, tmp_path), BIG
    return Stage(site, start, after_a_request, bucket.contents, bucket.delete, proxy.created, largest)


def lock_of(site: Site) -> str:
    """Return who holds the lock, or has held it last."""
    path = site.data_dir / ".upload.lock"
    return path.read_text() if path.exists() else ""


def named_files(store: Path) -> dict[str, bytes]:
    """Return the files of a folder that have got their names."""
    return {str(path.relative_to(store)): path.read_bytes() for path in store.glob("*/*/*/[!.]*")}


def kill(stage: Stage) -> bool:
    """Start an uploader and kill it at a random moment; tell whether it was still at work."""
    process = stage.start()
    try:
        has_come = stage.has_come_far()
        until(lambda: has_come() or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode in {0, -signal.SIGKILL}
    return process.returncode != 0


@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("stage", WAYS, indirect=True)
def test_killed_at_any_moment(
    stage: Stage, bucket: Bucket, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """After a kill the next run is not locked out, sends what is missing, once, and deletes only what is there.

    Names in the store are of whole objects at every moment. What a kill has left of parts and temporary copies goes
    when it is a day old.
    """
    record_property("SEED", SEED)
    dice, site, hits = random.Random(SEED), stage.site, 0
    for round_ in range(-(-KILLS // len(WAYS))):
        for n in range(FILES):
            site.seal(name_of(round_ * FILES + n), dice.choice([1, 3_000, 100_000]) if n else stage.largest)
        hits += kill(stage)
        held = stage.held()
        assert all(data == site.files[name] for name, data in held.items()), f"a half object; SEED={SEED}"
        site.check(held, stage.created)
        assert stage.start().wait() == 0, f"the next run did not complete; SEED={SEED}"
        held = stage.held()
        assert sorted(held) == sorted(site.files), f"SEED={SEED}"
        assert all(data == site.files[name] for name, data in held.items()), f"SEED={SEED}"
        assert not [name for name in site.files if (site.data_dir / name).exists()]
        stage.forget()
    record_property("killed at work", hits)
    assert hits, "no kill came while a run was at work"
    site.seal(name_of(10**6))
    assert site.run(DELETING, later=timedelta(days=2)).complete
    assert bucket.unfinished() == []
    assert not list(tmp_path.glob("store/*/*/*/.*"))
    outputs = [path.read_text("utf-8", "replace") for path in tmp_path.rglob("*.txt")]
    assert not any(secret in text for secret in SECRETS for text in outputs)
    assert not any("Traceback" in text for text in outputs)
