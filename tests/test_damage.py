"""Damaged sealed files at a start: told, kept in quarantine, their rows fetched again; nothing else is touched."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Programs, data_files, exchange, ids, journal, rows, sent_rows

from tickcollect.damage import Damages, OnRecord, oldest_entry, sealed_files
from tickcollect.dataset.replay import GeneratedMarket
from tickcollect.files import Compression
from tickcollect.journal import Entry
from tickcollect.segments import FeedPath, Numbering, OpenFiles, Sealed, Segments

FEED = FeedPath("binance", "trade", "BTCUSDT")
DAY = 20_648  # 2026-07-14
AT = datetime(2026, 7, 14, tzinfo=UTC)


def row(id_: int) -> bytes:
    at = DAY * 86_400_000 + id_
    return f"trade,{at + 1},BTCUSDT,{id_},64120.01000000,0.00150000,,,{at},True\n".encode()


def sealed(root: Path, compression: Compression = Compression.ZIP) -> Sealed:
    files = Segments(root, FEED, rotate_size=10**9, pool=OpenFiles(4), compression=compression)
    files.append(b"".join(map(row, range(100, 600))), range(100, 600), DAY)
    return files.seal(files.end()[0])


def entry(root: Path, made: Sealed, event: str = "sealed", **more: object) -> Entry:
    """Return what the journal says of a sealed file."""
    facts: dict[str, Any] = {
        "file": str(made.path.relative_to(root)), "bytes": made.size, "rows": 500, "csv_bytes": made.csv.size,
        "csv_sha256": made.csv.sha256,
    }  # fmt: skip
    return Entry(AT, event, facts | more)


def look(root: Path, *entries: Entry) -> list[tuple[str, str]]:
    """Return name and store of each file that is found to be damaged."""
    record = OnRecord(sealed_files(root, [FEED])).take(entries)
    found = Damages(root, record).of(FEED, Numbering.BY_ONE)
    return [(one.path.name, one.store) for one in found]


Harm = Callable[[bytes], bytes]
HARMS: dict[str, Harm] = {
    "cut": lambda data: data[:1000],
    "empty": lambda _: b"",
    "longer": lambda data: data + b"x",
    "garbage": lambda data: b"x" * (len(data) + 1),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("on_record", [True, False])
def test_a_file_that_is_not_what_was_sealed_is_found(tmp_path: Path, harm: str, on_record: bool) -> None:  # noqa: FBT001 - both cases
    """By its size where it is on record, else by what its packing demands."""
    made = sealed(tmp_path)
    data = HARMS[harm](made.path.read_bytes())
    made.path.write_bytes(data)
    found = look(tmp_path, *([entry(tmp_path, made)] if on_record else []))
    if harm == "longer" and not on_record:
        assert found == [], "it still opens, so nothing is known to be wrong"
        return
    assert found == [(made.path.name, "")]
    assert made.path.read_bytes() == data, "nothing is moved before it is told"


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("on_record", [True, False])
def test_a_good_file_stays(tmp_path: Path, compression: Compression, on_record: bool) -> None:  # noqa: FBT001 - both cases
    """What is as it was sealed, or opens where nothing is on record, is left where it is."""
    made = sealed(tmp_path, compression)
    assert look(tmp_path, *([entry(tmp_path, made)] if on_record else [])) == []
    assert made.path.exists()


def test_a_file_told_to_be_damaged_is_read_again(tmp_path: Path) -> None:
    """Flipped bytes that an upload found are moved at the next start; a good copy put in their place is not."""
    made = sealed(tmp_path)
    good = made.path.read_bytes()
    told = [entry(tmp_path, made), entry(tmp_path, made, "damaged")]
    assert look(tmp_path, *told) == []
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    made.path.write_bytes(flipped)
    assert look(tmp_path, *told) == [(made.path.name, "")]


def test_what_a_store_was_proved_to_hold_is_said(tmp_path: Path) -> None:
    """The store that still holds what was sealed is named, unless it was found to have lost it."""
    for lost in (False, True):
        made = sealed(tmp_path / str(lost))
        made.path.write_bytes(b"x")
        root = tmp_path / str(lost)
        entries = [entry(root, made), entry(root, made, "uploaded", store="s3://b", checked="sealed")]
        if lost:
            entries.append(entry(root, made, "store_lost", store="s3://b"))
        assert look(root, *entries) == [(made.path.name, "" if lost else "s3://b")]


def test_what_cannot_be_read_now_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk, or a right that is missing, moves nothing."""
    made = sealed(tmp_path)

    def refuse(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert look(tmp_path) == []
    assert made.path.exists()


def test_opening_files_takes_no_longer_than_a_start_may(tmp_path: Path) -> None:
    """Files without an entry are opened for some seconds, then the rest is left to whoever reads it."""
    made = sealed(tmp_path)
    made.path.write_bytes(b"no zip")
    clock_s = iter([0.0, 1000.0])
    damages = Damages(tmp_path, OnRecord(frozenset()), lambda: next(clock_s))
    assert len(damages.of(FEED, Numbering.BY_ONE)) == 1
    assert damages.of(FEED, Numbering.BY_ONE) == []


START_MS = 1_784_000_000_000


@pytest.mark.parametrize("with_journal", [True, False])
def test_a_damaged_files_rows_are_fetched_again(programs: Programs, tmp_path: Path, with_journal: bool) -> None:  # noqa: FBT001 - both cases
    """A start that finds a sealed file cut short tells so, keeps its bytes, and has its rows again from history."""
    market = GeneratedMarket("binance", START_MS, symbols=1, activity=5)
    data_dir, feed = tmp_path / "data", "binance/trade/BTCUSDT"
    config = programs.config(SEAL_AT_STOP=True, ROTATE_SIZE="5kB")
    with exchange(market, speed=5) as served:
        options = ("--symbol", "BTCUSDT", "--data-dir", data_dir, "--config", config, *served.addresses)
        first = programs.start("run", *options)
        first.until(lambda: len(journal(data_dir, "sealed")) > 5)
        assert first.stop().code == 0
        harmed = data_files(data_dir, feed)[2]
        harmed.path.write_bytes(harmed.path.read_bytes()[:100])
        if not with_journal:
            (data_dir / "journal.jsonl").rename(tmp_path / "journal.jsonl")
        again = programs.start("run", *options)
        again.until(lambda: any(e["first_id"] == harmed.ids[0] for e in journal(data_dir, "filled")))
        assert again.stop().code == 0
    (told,) = journal(data_dir, "damaged")
    assert (told["subject"], told["first_id"], told["last_id"]) == (feed, harmed.ids[0], harmed.ids[-1])
    numbers = ids(rows(data_dir, feed))
    assert len(set(numbers)) == len(numbers)
    assert set(harmed.ids) <= set(numbers)
    sent = sent_rows(market, "btcusdt@trade", harmed.ids[0], harmed.ids[-1])
    for line in rows(data_dir, feed):
        id_ = int(line.split(",")[3])
        if id_ in sent:  # history knows all but the time of the event
            assert line.split(",")[2:] == sent[id_].split(",")[2:]
    (kept,) = (data_dir / "quarantine").rglob("*.zip*")
    assert len(kept.read_bytes()) == 100


def test_a_zip_that_claims_another_packing_is_damaged(tmp_path: Path) -> None:
    """A flipped bit in the name of the method is no failure of the disk: the start goes on, whatever bit it is."""
    made = sealed(tmp_path)
    good = made.path.read_bytes()
    central = good.rindex(b"PK\x01\x02")
    for bit in range(16):
        data = bytearray(good)
        data[central + 10 + bit // 8] ^= 1 << bit % 8
        made.path.write_bytes(data)
        recovered = Segments(tmp_path, FEED, rotate_size=10**9, pool=OpenFiles(4)).recover()
        assert recovered.last_id == 599


def test_the_journal_is_asked_from_a_day_before_the_oldest_file() -> None:
    """A file is sealed on its own day or later, so older entries say nothing of the files that are here."""
    here = {
        "binance/trade/BTCUSDT/BTCUSDT-trade-2026-03-02-1-9.csv.zip",
        "binance/trade/2025-01-01USDT/2025-01-01USDT-trade-2026-03-05-10-19.csv.gz",
    }
    assert oldest_entry(here) == datetime(2026, 3, 1, tzinfo=UTC)
    assert oldest_entry(()) is None
