"""Damaged files: never sent, never deleted, told; and what the store holds when it alone still has a file.

Files go to a real folder. Each damage is done to a file that the journal says was sealed otherwise, and to one of which
the journal says nothing.
"""

import hashlib
import os
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Programs, journal
from stores.site import DELETING, PLAIN, Site, name_of, sealed_bytes

from tickcollect.backlog import upload_status
from tickcollect.journal import Journal
from tickcollect.store import RefusedError
from tickcollect.upload import Options

VERIFY = Options(verify=True)
HARMED, GOOD = name_of(1), name_of(2)


@dataclass
class Here:
    """A data directory and the folder that it is uploaded to."""

    site: Site
    store: Path

    @property
    def path(self) -> Path:
        return self.site.data_dir / HARMED

    def seal(self, name: str, *, told: bool = True) -> bytes:
        """Make a sealed file and, if `told`, put it on record as the collector does."""
        data = self.site.seal(name)
        if told:
            self.tell_sealed(name)
        return data

    def tell_sealed(self, name: str) -> None:
        data = self.site.files[name]
        with zipfile.ZipFile(self.site.data_dir / name) as archive:
            csv = archive.read(archive.namelist()[0])
        first, last = name.removesuffix(".csv.zip").split("-")[-2:]
        facts: dict[str, Any] = {"subject": name.rpartition("/")[0], "file": name, "bytes": len(data)}
        facts |= {"rows": csv.count(b"\n"), "csv_bytes": len(csv), "csv_sha256": hashlib.sha256(csv).hexdigest()}
        facts |= {"first_id": int(first), "last_id": int(last), "sha256": hashlib.sha256(data).hexdigest()}
        self.append("sealed", **facts)

    def append(self, event: str, **facts: Any) -> None:
        written = Journal(self.site.data_dir / "journal.jsonl")
        written.append(event, **facts)
        written.close()

    def held(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.store)): p.read_bytes() for p in self.store.rglob("*") if p.is_file()}

    def entries(self, event: str) -> list[dict[str, Any]]:
        return journal(self.site.data_dir, event)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    for name in ("data", "store"):
        (tmp_path / name).mkdir()
    return Here(Site(tmp_path / "data", {"UPLOAD_TO": f"file://{tmp_path / 'store'}"}), tmp_path / "store")


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0" * 512)


def zero_page(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(512))


def another_feed(path: Path) -> None:
    path.write_bytes(sealed_bytes(name_of(7), path.stat().st_size))


def other_ids(path: Path) -> None:
    other = HARMED.replace("-100-109.", "-200-209.")
    data = sealed_bytes(other)
    path.write_bytes(data.replace(Path(other).stem.encode(), Path(HARMED).stem.encode()))


def two_members(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.csv", "1,2\n")


DAMAGES = (truncate, cut_last_byte, empty, garbage, flip, lengthen, zero_page, another_feed, other_ids, two_members)


@pytest.mark.parametrize("told", [True, False], ids=["on-record", "not-on-record"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_file_is_never_sent_or_deleted(damage: Callable[[Path], None], told: bool, here: Here) -> None:  # noqa: FBT001 - drawn
    """A damaged file stays here as it is, is told once with its IDs, and holds up no other; nothing of it is sent."""
    here.seal(HARMED, told=told)
    good = here.seal(GOOD)
    damage(here.path)
    harmed = here.path.read_bytes()
    for _ in range(2):
        outcome = here.site.run(DELETING)
        assert here.path.read_bytes() == harmed
        assert here.held() == {GOOD: good}
        assert [item.file for item in outcome.waiting] == [HARMED]
        assert "is damaged: " in outcome.reasons[0]
    (entry,) = here.entries("damaged")
    assert (entry["subject"], entry["file"]) == ("binance/trade/S1USDT", HARMED)
    assert (entry["first_id"], entry["last_id"], entry["count"]) == (100, 109, 10)
    assert [entry["file"] for entry in here.entries("uploaded")] == [GOOD]
    assert [entry["file"] for entry in here.entries("deleted")] == [GOOD]
    told_of = upload_status(here.site.data_dir, f"file://{here.store}")
    assert (told_of.complete, told_of.waiting_files) == (False, 1)
    assert "is damaged: " in told_of.failure


def test_other_price_is_damage_where_the_rows_are_on_record(here: Here) -> None:
    """Rows of the right form that are not those that were sealed are not sent, of whatever size the file is."""
    mine = here.seal(HARMED)
    here.path.write_bytes(sealed_bytes(HARMED, len(mine), price="9.50"))
    outcome = here.site.run(DELETING)
    assert "SHA-256" in outcome.reasons[0]
    assert here.held() == {}


def test_a_good_copy_ends_it(here: Here) -> None:
    """Put back as it was sealed, the file is sent, counts as there, and nothing is told any more."""
    good = here.seal(HARMED)
    truncate(here.path)
    assert not here.site.run(DELETING).complete
    here.path.write_bytes(good)
    assert here.site.run(PLAIN).complete
    assert here.held() == {HARMED: good}
    assert here.entries("uploaded")[0]["checked"] == "sealed"


@pytest.mark.parametrize("options", [DELETING, VERIFY], ids=["delete", "verify"])
def test_file_damaged_after_it_was_sent_is_kept_and_told(options: Options, here: Here) -> None:
    """The store has the good bytes, and that is told; the local file is not theirs, so it is not deleted silently."""
    good = here.seal(HARMED)
    assert here.site.run().complete
    found = here.path.stat()
    flip(here.path)
    os.utime(here.path, ns=(found.st_atime_ns, found.st_mtime_ns))
    outcome = here.site.run(options)
    assert (outcome.complete, outcome.deleted, outcome.waiting) == (False, 0, [])
    assert here.path.exists()
    assert here.held() == {HARMED: good}
    assert "still holds the bytes that were sealed" in outcome.reasons[0]
    (entry,) = here.entries("damaged")
    assert entry["store"] == f"file://{here.store}"
    assert not here.site.run().complete, "it is told until somebody mends it"
    here.path.write_bytes(good)
    assert here.site.run(options).complete


def test_what_the_store_holds_is_asked_not_believed(here: Here) -> None:
    """A damaged file whose object was altered too: nothing is said to hold the good bytes."""
    here.seal(HARMED)
    assert here.site.run().complete
    flip(here.path)
    flip(here.store / HARMED)
    outcome = here.site.run(DELETING)
    assert [item.file for item in outcome.waiting] == [HARMED]
    (entry,) = here.entries("damaged")
    assert "store" not in entry


def test_damage_with_the_store_down_is_told_too(here: Here) -> None:
    """Where the store cannot be asked, a damaged file is still not deleted, and the next run tells."""
    here.seal(HARMED)
    assert here.site.run().complete
    flip(here.path)
    here.store.rename(here.store.with_name("unmounted"))
    outcome = here.site.run(DELETING)
    assert not outcome.complete
    here.store.with_name("unmounted").rename(here.store)
    assert "is damaged: " in here.site.run(DELETING).reasons[0]
    assert here.path.exists()


def as_an_earlier_version(here: Here, name: str) -> None:
    """Send and record a file as versions did that looked at no rows."""
    data = (here.site.data_dir / name).read_bytes()
    copy = here.store / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(data)
    found = (here.site.data_dir / name).stat()
    facts: dict[str, Any] = {"subject": name.rpartition("/")[0], "file": name, "bytes": len(data), "key": name}
    facts |= {"mtime_ns": found.st_mtime_ns, "sha256": hashlib.sha256(data).hexdigest(), "etag": ""}
    here.append("uploaded", **facts, store=f"file://{here.store}", proof="held: its bytes")


def test_file_that_an_earlier_version_sent_damaged_is_found(here: Here) -> None:
    """Shorter than it was sealed, and recorded as delivered: any run finds it, and it is not deleted."""
    here.seal(HARMED)
    truncate(here.path)
    as_an_earlier_version(here, HARMED)
    outcome = here.site.run(PLAIN)
    assert "is damaged: " in outcome.reasons[0]
    assert not here.site.run(DELETING).complete
    assert here.path.exists()


def test_file_that_an_earlier_version_sent_damaged_and_deleted_is_found(here: Here) -> None:
    """Nothing but a damaged object is left of a file: `--verify` finds it, by its record or by its rows."""
    here.seal(HARMED)
    truncate(here.path)
    here.seal(GOOD, told=False)
    flip(here.site.data_dir / GOOD)
    for name in (HARMED, GOOD):
        as_an_earlier_version(here, name)
        (here.site.data_dir / name).unlink()
    assert here.site.run(PLAIN).complete, "nothing of it is here"
    outcome = here.site.run(VERIFY)
    assert sorted(failure.file for failure in outcome.failures) == [HARMED, GOOD]
    assert {entry["file"] for entry in here.entries("store_lost")} == {HARMED, GOOD}


def remove(copy: Path) -> None:
    copy.unlink()


@pytest.mark.parametrize("harm", [remove, flip, truncate, empty], ids=lambda harm: harm.__name__)
def test_verify_looks_at_what_only_the_store_has(harm: Callable[[Path], None], here: Here) -> None:
    """An object that was the only copy and is gone or altered fails `--verify`, on record once, until it is back."""
    good = here.seal(HARMED)
    here.seal(GOOD)
    assert here.site.run(DELETING).deleted == 2
    assert here.site.run(VERIFY).complete
    harm(here.store / HARMED)
    for _ in range(2):
        outcome = here.site.run(VERIFY)
        assert [failure.file for failure in outcome.failures] == [HARMED]
        assert HARMED in outcome.reasons[0]
    (entry,) = here.entries("store_lost")
    assert (entry["subject"], entry["file"]) == ("binance/trade/S1USDT", HARMED)
    assert (entry["store"], entry["first_id"], entry["last_id"]) == (f"file://{here.store}", 100, 109)
    plain = here.site.run()
    assert any("1 file" in line and "--verify" in line for line in plain.lines())
    (here.store / HARMED).write_bytes(good)
    assert here.site.run(VERIFY).complete
    assert [entry["file"] for entry in here.entries("uploaded")][-1] == HARMED
    assert not any("--verify" in line for line in here.site.run().lines())


def test_what_was_lost_or_taken_is_not_believed_later(here: Here) -> None:
    """What `--verify` found replaced is told by every later run, though an older entry said that it was there."""
    here.seal(HARMED)
    assert here.site.run().complete
    (here.store / HARMED).write_bytes(sealed_bytes(HARMED, price="9.50"))
    assert not here.site.run(VERIFY).complete
    for _ in range(2):
        outcome = here.site.run()
        assert [item.file for item in outcome.waiting] == [HARMED]
        assert "taken by other content" in outcome.reasons[0]


def test_what_is_gone_and_cannot_be_sent_is_not_believed_later(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is gone, and sending it again is not possible at that moment: the next plain run sends it."""
    good = here.seal(HARMED)
    assert here.site.run().complete
    (here.store / HARMED).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("tickcollect.store.folder.Folder.put", refuse)
        assert not here.site.run(VERIFY).complete
    assert here.site.run().sent == 1
    assert here.held() == {HARMED: good}


def refuse(*_: object) -> None:
    raise RefusedError("refused", "the store refuses.")


def test_one_off_store_says_nothing_about_another(here: Here, tmp_path: Path) -> None:
    """What went to one store is not thereby in the configured one, nor lost there."""
    here.seal(HARMED)
    (tmp_path / "second").mkdir()
    second = Site(here.site.data_dir, {"UPLOAD_TO": f"file://{tmp_path / 'second'}"}, here.site.files)
    assert second.run().sent == 1
    assert upload_status(here.site.data_dir, f"file://{here.store}").waiting_files == 1
    assert here.site.run(VERIFY).sent == 1
    assert second.run(DELETING).deleted == 1
    assert here.entries("deleted")[0]["store"] == f"file://{tmp_path / 'second'}"
    (tmp_path / "second" / HARMED).unlink()
    assert here.site.run(VERIFY).complete
    assert not second.run(VERIFY).complete


def test_disk_that_cannot_read_a_file(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input/output error in the middle of a file is damage: told, held back, not deleted."""
    here.seal(HARMED)
    read = os.pread

    def fail(descriptor: int, count: int, position: int) -> bytes:
        if os.fstat(descriptor).st_ino == here.path.stat().st_ino:
            raise OSError(5, "Input/output error")
        return read(descriptor, count, position)

    monkeypatch.setattr(os, "pread", fail)
    outcome = here.site.run(DELETING)
    assert "input/output error" in outcome.reasons[0]
    assert len(here.entries("damaged")) == 1
    assert here.path.exists()


def test_the_command_tells_of_damage(here: Here, programs: Programs) -> None:
    """The command ends with code 1 and a line with the file, how it is damaged and what to do."""
    here.seal(HARMED)
    truncate(here.path)
    config = programs.config(DATA_DIR=str(here.site.data_dir), **here.site.keys)
    foreseen = programs.run("upload", "--config", config, "--dry-run")
    assert "keep: it is damaged" in foreseen.out
    ended = programs.run("upload", "--config", config, "--delete-after", 0)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert line.startswith(f"Error: {HARMED} is damaged: ")
    assert "restart the collector" in line
    assert here.held() == {}
