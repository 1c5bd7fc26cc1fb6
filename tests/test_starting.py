"""How a run starts when not all is well: exchanges that do not answer, lists that lack symbols, bans, disks, files."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from conftest import GAPS_STAY, Exchange, Program, Programs, exchange, journal, rows, status_of

from tickcollect import listings
from tickcollect.config import CollectEntry, Config
from tickcollect.dataset.replay import Answer, Behaviour, GeneratedMarket, Request
from tickcollect.exchanges.binance import ExchangeInfo
from tickcollect.listings import FILE_NAME, Kept, ListingsFile
from tickcollect.venues import venues

START_MS = 1_784_000_000_000
SPOT, OTHER_SPOT = "binance/trade/BTCUSDT", "binance/trade/ETHUSDT"
FUTURES = "binance-futures/aggTrade/BTCUSDT"
THREE_DAYS = timedelta(days=3)
"""The longest ban there is: Binance, rest-api.md, "IP Limits"."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")


@dataclass
class Answers:
    """What an exchange answers over REST, as a test wants it: its own answers while `to` is None."""

    to: Callable[[Request, Answer], Answer] | None = None
    paths: list[str] = field(default_factory=list)

    def answer(self, request: Request, given: Answer) -> Answer:
        self.paths.append(request.path)
        return given if self.to is None else self.to(request, given)


def always(status: int, body: bytes = b"{}", **headers: str) -> Callable[[Request, Answer], Answer]:
    """Return what answers everything alike."""
    return lambda *_: Answer(HTTPStatus(status), body, {name.replace("_", "-"): text for name, text in headers.items()})


def without(*symbols: str) -> Callable[[Request, Answer], Answer]:
    """Return what leaves symbols out of the exchange's list."""

    def answer(request: Request, given: Answer) -> Answer:
        if not request.path.endswith("/exchangeInfo"):
            return given
        value = json.loads(given.body)
        value["symbols"] = [entry for entry in value["symbols"] if entry["symbol"] not in symbols]
        return given._replace(body=json.dumps(value).encode())

    return answer


@contextmanager
def answering(name: str, to: Callable[[Request, Answer], Answer] | None = None) -> Iterator[tuple[Exchange, Answers]]:
    """Serve a market that goes on whether anybody listens or not, with answers that can be changed."""
    answers = Answers(to)
    market = GeneratedMarket(name, START_MS, symbols=6, activity=20)
    options = {"speed": 10, "clock": lambda: START_MS / 1000, "behaviour": Behaviour(rest=answers.answer)}
    with exchange(market, **options) as served:
        yield served, answers


def collecting(programs: Programs, data_dir: Path, *entries: dict[str, Any], **keys: object) -> Program:
    """Start collecting."""
    config = programs.config(DATA_DIR=str(data_dir), COLLECT=list(entries), **{**GAPS_STAY, **keys})
    return programs.start("run", "--config", config)


def entry(served: Exchange, *symbols: str) -> dict[str, Any]:
    """Return an entry of COLLECT."""
    return {**served.entry, "symbols": list(symbols or ("BTCUSDT",))}


def bytes_of(data_dir: Path, feed: str) -> int:
    """Return the size of a feed's data, packed or not."""
    return sum(path.stat().st_size for path in (data_dir / feed).glob("*.csv*") if path.exists())


def until_more(run: Program, data_dir: Path, feed: str) -> None:
    """Wait until more of a feed is in the files."""
    size = bytes_of(data_dir, feed)
    run.until(lambda: bytes_of(data_dir, feed) > size)


def collected_before(programs: Programs, data_dir: Path, *entries: dict[str, Any], feed: str = SPOT) -> None:
    """Let a run collect something and be killed."""
    run = collecting(programs, data_dir, *entries)
    until_more(run, data_dir, feed)
    run.until((data_dir / FILE_NAME).exists)
    run.stop(signal.SIGKILL)


def note_of(data_dir: Path, feed: str) -> str:
    """Return what the status says of a feed."""
    feeds = status_of(data_dir).get("feeds", ())
    return next(
        (one["note"] for one in feeds if f"{one['exchange']}/{one['stream']}/{one['symbol']}" == feed), "no such feed"
    )


def titles(data_dir: Path, event: str) -> list[str]:
    """Return whom entries of one kind are about."""
    return [found["subject"] for found in journal(data_dir, event)]


# --- One exchange does not keep the others from being collected ------------------------------------------------------

NO_LISTS: dict[str, Callable[[Request, Answer], Answer]] = {
    "in trouble": always(503),
    "blocked": always(451),
    "JSON of something else": always(200, b'{"symbols":7}'),
    "silent": lambda _, given: given._replace(delay_s=600.0),
}


@pytest.mark.parametrize("answer", NO_LISTS.values(), ids=NO_LISTS)
def test_an_exchange_without_a_list_keeps_no_other_from_being_collected(
    answer: Callable[[Request, Answer], Answer], programs: Programs, tmp_path: Path
) -> None:
    """Spot is collected whatever USD-M answers, or if it never does; its feed says what it waits for."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, _), answering("binance-futures", answer) as (futures, _):
        run = collecting(programs, data_dir, entry(futures), entry(spot))
        until_more(run, data_dir, SPOT)
        run.until(lambda: note_of(data_dir, FUTURES) == "waiting for the exchange's list of symbols")
        shown = programs.run("status", "--data-dir", data_dir, "--json")
        ended = run.stop()
    assert ended.code == 0
    waiting = next(one for one in json.loads(shown.out)[0]["feeds"] if one["exchange"] == "binance-futures")
    assert waiting["unknown_since_ns"] is not None
    assert "no ID is missing" not in ended.out
    assert not (data_dir / FUTURES).exists()


def test_an_exchange_that_comes_later_is_collected_then(programs: Programs, tmp_path: Path) -> None:
    """Once it answers, its feeds begin beside those that run, and count from then on."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, _), answering("binance-futures", always(503)) as (futures, answers):
        run = collecting(programs, data_dir, entry(spot), entry(futures))
        until_more(run, data_dir, SPOT)
        answers.to = None
        until_more(run, data_dir, FUTURES)
        until_more(run, data_dir, SPOT)
        run.until(lambda: note_of(data_dir, FUTURES) == "")
        assert run.stop().code == 0
    (added,) = journal(data_dir, "feeds_added")
    assert (added["subject"], added["feeds"]) == ("binance-futures", 1)
    assert rows(data_dir, FUTURES)


def test_where_all_exchanges_refuse_for_good_a_first_start_ends(programs: Programs, tmp_path: Path) -> None:
    """With nothing collected before, and nobody who serves this place, waiting is of no use: one line each, code 2."""
    with answering("binance", always(451)) as (spot, _), answering("binance-futures", always(451)) as (futures, _):
        ended = collecting(programs, tmp_path / "data", entry(spot), entry(futures)).wait()
    assert ended.code == 2
    assert [line.split(":")[0] for line in ended.err.splitlines() if "HTTP 451" in line][-1] == "binance-futures"
    assert "Error: binance: " in ended.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("status", [404, 451, 503])
def test_what_was_collected_before_is_collected_without_a_list(status: int, programs: Programs, tmp_path: Path) -> None:
    """A later start begins at once with what has files here, whatever the exchange answers over REST."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, answers):
        collected_before(programs, data_dir, entry(spot))
        answers.to = always(status)
        run = collecting(programs, data_dir, entry(spot))
        until_more(run, data_dir, SPOT)
        run.until(lambda: journal(data_dir, "cannot_connect"))
        assert run.stop().code == 0


# --- Symbols that a list lacks ---------------------------------------------------------------------------------------


def test_typing_errors_of_all_exchanges_are_told_at_once(programs: Programs, tmp_path: Path) -> None:
    """At a first start each wrong symbol of each exchange is named with the nearest one, and nothing is made."""
    with answering("binance") as (spot, _), answering("binance-futures") as (futures, _):
        ended = collecting(programs, tmp_path / "data", entry(spot, "BTCUSTD"), entry(futures, "ETHUSD")).wait()
    assert ended.code == 2
    assert "binance trade: BTCUSTD is not a symbol of this exchange; did you mean BTCUSDT" in ended.err
    assert "binance-futures aggTrade: ETHUSD is not a symbol of this exchange; did you mean ETHUSDT" in ended.err
    assert not (tmp_path / "data").exists()


def test_a_typing_error_told_late_leaves_that_feed_out(programs: Programs, tmp_path: Path) -> None:
    """An exchange that answers while others are collected ends nothing: a wrong symbol is told, a right one begins."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, _), answering("binance-futures", always(503)) as (futures, answers):
        run = collecting(programs, data_dir, entry(spot), entry(futures, "BTCUSTD", "BTCUSDT"))
        until_more(run, data_dir, SPOT)
        answers.to = None
        until_more(run, data_dir, FUTURES)
        run.until(lambda: journal(data_dir, "symbol_unknown"))
        assert run.stop().code == 0
    (unknown,) = journal(data_dir, "symbol_unknown")
    assert unknown["subject"] == "binance-futures/aggTrade/BTCUSTD"
    assert "did you mean BTCUSDT" in unknown["detail"]
    assert not (data_dir / "binance-futures/aggTrade/BTCUSTD").exists()


def test_a_delisted_symbol_keeps_no_other_from_being_collected(programs: Programs, tmp_path: Path) -> None:
    """A symbol with files here that left the list is told once; all others are collected, and it stays subscribed."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, answers):
        feeds = entry(spot, "BTCUSDT", "ETHUSDT")
        collected_before(programs, data_dir, feeds, feed=OTHER_SPOT)
        answers.to = without("ETHUSDT")
        run = collecting(programs, data_dir, feeds)
        run.until(lambda: journal(data_dir, "delisted"))
        until_more(run, data_dir, SPOT)
        until_more(run, data_dir, OTHER_SPOT)
        assert run.stop().code == 0
    assert titles(data_dir, "delisted") == [OTHER_SPOT]


def test_a_list_that_lacks_nearly_all_is_doubted(programs: Programs, tmp_path: Path) -> None:
    """Where most symbols are gone at once it is the list that is wrong: told once, and all are collected."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, answers):
        listed = [listing.symbol for listing in spot.server.market.listings]
        symbols = ["BTCUSDT", *[symbol for symbol in listed if symbol != "BTCUSDT"][:4]]
        collected_before(programs, data_dir, entry(spot, *symbols))
        answers.to = without(*symbols)
        run = collecting(programs, data_dir, entry(spot, *symbols))
        run.until(lambda: journal(data_dir, "list_doubted"))
        until_more(run, data_dir, SPOT)
        assert run.stop().code == 0
    (doubted,) = journal(data_dir, "list_doubted")
    assert (doubted["count"], doubted["of"]) == (5, 5)
    assert journal(data_dir, "delisted") == []


# --- Bans ------------------------------------------------------------------------------------------------------------

BANNED = always(418, b'{"code":-1003,"msg":"Way too many requests; IP banned"}', Retry_After="259200")


def test_a_start_during_a_ban_collects_and_asks_nothing(programs: Programs, tmp_path: Path) -> None:
    """The next start knows of the ban: it sends no request, says until when, and collects, a new listed symbol too."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, answers):
        collected_before(programs, data_dir, entry(spot))
        answers.to = BANNED
        run = collecting(programs, data_dir, entry(spot))
        run.until(
            lambda: (
                "banned_until" in (data_dir / FILE_NAME).read_text()
                and json.loads((data_dir / FILE_NAME).read_text())[0]["banned_until"]
            )
        )
        run.stop(signal.SIGKILL)
        answers.paths.clear()
        run = collecting(programs, data_dir, entry(spot, "BTCUSDT", "ETHUSDT"))
        until_more(run, data_dir, SPOT)
        until_more(run, data_dir, OTHER_SPOT)
        assert run.stop().code == 0
    assert answers.paths == []
    assert titles(data_dir, "ban_remembered") == ["binance"]


def test_without_a_list_a_ban_is_waited_for(programs: Programs, tmp_path: Path) -> None:
    """At a first start there is nothing to go by: it waits as long as it was told, and a signal ends it in order."""
    with answering("binance", BANNED) as (spot, answers):
        run = collecting(programs, tmp_path / "data", entry(spot))
        run.until_said("HTTP 418")
        ended = run.stop()
    assert ended.code == 0
    assert answers.paths == ["/api/v3/exchangeInfo"]
    assert "stopped before collecting had begun" in ended.out


NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
BANS: dict[str, tuple[timedelta | None, timedelta | None, timedelta]] = {
    "none": (None, None, timedelta()),
    "over": (timedelta(seconds=-1), timedelta(hours=-1), timedelta()),
    "going on": (timedelta(hours=2), timedelta(hours=-1), timedelta(hours=2)),
    "beyond all measure": (timedelta(days=4000), timedelta(hours=-1), THREE_DAYS),
    "the clock was set back since": (timedelta(days=366), timedelta(days=365), timedelta(days=1)),
    "nobody knows when it was told": (timedelta(hours=2), None, timedelta(hours=2)),
}
"""The end of a ban and when it was told, from now; how long it still goes on."""


@pytest.mark.parametrize(("until", "seen", "left"), BANS.values(), ids=BANS)
def test_a_kept_ban_ends(until: timedelta | None, seen: timedelta | None, left: timedelta) -> None:
    """Whatever the file says, and however the clock was set, no ban is kept for longer than there are bans."""
    kept = Kept(
        exchange="binance",
        rest_url="",
        banned_until=None if until is None else NOW + until,
        ban_seen_at=None if seen is None else NOW + seen,
    )
    assert kept.ban_left_s(NOW) == left.total_seconds()


def test_lists_are_written_when_they_change_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two addresses of one exchange that share their REST address do not write over each other for ever."""
    monkeypatch.setattr(listings, "KEPT_WITHIN_S", 0.0)
    two = [
        CollectEntry(exchange="binance", symbols=("BTCUSDT",), ws_url=f"ws://{n}", rest_url="http://r") for n in "ab"
    ]
    written: list[float] = []

    async def live() -> None:
        found = venues(Config(collect=tuple(two)))
        lists = [listings.Listing(venue, no_tell, asyncio.Event()) for venue in found]
        for one in lists:
            one.info = ExchangeInfo({"BTCUSDT": "TRADING"}, 6000)
        keeper = listings.Keeper(lists, ListingsFile(tmp_path, no_tell))

        async def write(call: Callable[[], None]) -> None:
            call()
            written.append(asyncio.get_running_loop().time())

        task = asyncio.create_task(keeper.run(write))
        for _ in range(100):
            await asyncio.sleep(0)
        task.cancel()
        for venue in found:
            await venue.rest.close()

    asyncio.run(live())
    assert len(written) == 1
    assert [kept.symbols for kept in ListingsFile(tmp_path, no_tell).read().values()] == [{"TRADING": ["BTCUSDT"]}]


def no_tell(event: str, subject: str, /, **_: object) -> None:
    """Take no note of anything."""


DAMAGED = {
    "empty": b"",
    "torn": b'[{"exchange":"binance","rest_url":"x","symb',
    "of something else": b'{"feeds":[]}',
    "not text": bytes(range(256)),
    "deep": b"[" * 100_000,
    "a time without a zone is no time": b'[{"exchange":"binance","rest_url":"","banned_until":5}]',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_lists_are_told_and_made_anew(content: bytes, tmp_path: Path) -> None:
    """What cannot be read is told of, counts as nothing kept, and is replaced by what is known next."""
    told: list[tuple[str, str]] = []
    (tmp_path / FILE_NAME).write_bytes(content)

    def tell(event: str, subject: str, /, **_: object) -> None:
        told.append((event, subject))

    file = ListingsFile(tmp_path, tell)
    assert file.read() == {}
    assert told == [("listings_damaged", "exchanges")]
    kept = Kept(exchange="binance", rest_url="https://a", symbols={"TRADING": ["BTCUSDT"]}, listed_at=NOW)
    file.write([kept])
    assert file.read() == {("binance", "https://a"): kept}
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


# --- The disk --------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """Mount a small file system."""
    directory.mkdir()
    options = "size=2m,nr_inodes=60"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", directory], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(disk: Path) -> Callable[[], None]:
    """Take all space; return what gives it back."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return (disk / "ballast").unlink


def take_inodes(disk: Path) -> Callable[[], None]:
    """Take all inodes; return what gives them back."""
    (disk / "many").mkdir()
    try:
        for place in range(1000):
            (disk / "many" / str(place)).touch()
    except OSError:
        pass
    return lambda: shutil.rmtree(disk / "many")


def make_readonly(disk: Path) -> Callable[[], None]:
    """Forbid writing; return what allows it again."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    def allow() -> None:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)

    return allow


TROUBLES: dict[str, tuple[Callable[[Path], Callable[[], None]], bytes]] = {
    "full": (fill, b""),
    "full, and a torn tail to cut": (fill, b"trade,178400"),
    "without inodes": (take_inodes, b""),
    "read-only": (make_readonly, b"trade,178400"),
}


@as_root
@pytest.mark.parametrize(("trouble", "torn"), TROUBLES.values(), ids=TROUBLES)
def test_a_start_waits_for_the_disk(
    trouble: Callable[[Path], Callable[[], None]], torn: bytes, programs: Programs, tmp_path: Path
) -> None:
    """A disk that refuses is told of and waited for, also where a torn file has to be cut; then it is collected."""
    with answering("binance") as (spot, _), small_disk(tmp_path / "disk") as disk:
        data_dir = disk / "data"
        collected_before(programs, data_dir, entry(spot))
        path = next((data_dir / SPOT).glob("*.csv"))
        with path.open("ab") as file:
            file.write(torn)
        mend = trouble(disk)
        log = disk / "log.txt"
        run = collecting(programs, data_dir, entry(spot), LOG_FILE=str(log))
        run.until_said("Collecting waits" if trouble is not fill else "disk is full")
        mend()
        until_more(run, data_dir, SPOT)
        assert run.stop().code == 0
        assert rows(data_dir, SPOT)
        assert "stopped after" in log.read_text("utf-8")


@as_root
def test_a_signal_ends_the_waiting_for_a_disk(programs: Programs, tmp_path: Path) -> None:
    """While the disk is waited for, a stop is in order and at once; with the exchange gone, too."""
    with small_disk(tmp_path / "disk") as disk:
        data_dir = disk / "data"
        with answering("binance") as (spot, answers):
            collected_before(programs, data_dir, entry(spot))
            answers.to = always(503)
            make_readonly(disk)
            run = collecting(programs, data_dir, entry(spot))
            run.until_said("Read-only file system")
            run.until_said("HTTP 503")
            ended = run.stop()
    assert ended.code == 0
    assert "stopped before collecting had begun" in ended.out
    assert "Traceback" not in ended.said


def test_a_data_directory_that_is_not_mounted_yet_is_waited_for(programs: Programs, tmp_path: Path) -> None:
    """A symbolic link to a place that is not there yet is no mistake: it is collected once the place is there."""
    link, place = tmp_path / "data", tmp_path / "disk" / "data"
    link.symlink_to(place)
    with answering("binance") as (spot, _):
        run = collecting(programs, link, entry(spot))
        run.until_said("Collecting waits")
        place.mkdir(parents=True)
        until_more(run, link, SPOT)
        assert run.stop().code == 0


def test_a_file_in_place_of_the_data_directory_is_a_mistake(programs: Programs, tmp_path: Path) -> None:
    """Waiting mends nothing: one line, code 2."""
    (tmp_path / "data").write_text("x")
    with answering("binance") as (spot, _):
        ended = collecting(programs, tmp_path / "data", entry(spot)).wait()
    assert ended.code == 2
    assert "DATA_DIR" in ended.err
    assert "Traceback" not in ended.said


def test_a_journal_that_cannot_be_one_ends_the_start(programs: Programs, tmp_path: Path) -> None:
    """Without the record nobody knows which IDs are missing: one line, and a code after which it is started again."""
    (tmp_path / "data/journal.jsonl").mkdir(parents=True)
    with answering("binance") as (spot, _):
        ended = collecting(programs, tmp_path / "data", entry(spot)).wait()
    assert ended.code == 1
    assert "journal.jsonl" in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.said


# --- One feed's files ------------------------------------------------------------------------------------------------


def in_place_of_directory(path: Path) -> Callable[[], None]:
    """Put a file where a feed's directory was; return what puts it back."""
    path.rename(path.with_name("away"))
    path.write_text("x")

    def mend() -> None:
        path.unlink()
        path.with_name("away").rename(path)

    return mend


def in_place_of_lock(path: Path) -> Callable[[], None]:
    """Put a directory where the lock's file was; return what takes it away."""
    (path / ".lock").unlink()
    (path / ".lock").mkdir()
    return (path / ".lock").rmdir


@pytest.mark.parametrize("harm", [in_place_of_directory, in_place_of_lock])
def test_a_feed_that_cannot_be_opened_is_left_out_and_tried_again(
    harm: Callable[[Path], Callable[[], None]], programs: Programs, tmp_path: Path
) -> None:
    """All others are collected; it is told of once, and is collected as soon as it can be."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, _):
        feeds = entry(spot, "BTCUSDT", "ETHUSDT")
        collected_before(programs, data_dir, feeds)
        mend = harm(data_dir / SPOT)
        run = collecting(programs, data_dir, feeds)
        until_more(run, data_dir, OTHER_SPOT)
        run.until(lambda: note_of(data_dir, SPOT).startswith("left out"))
        mend()
        until_more(run, data_dir, SPOT)
        run.until(lambda: note_of(data_dir, SPOT) == "")
        assert run.stop().code == 0
    assert titles(data_dir, "feed_left_out") == titles(data_dir, "feed_taken_up") == [SPOT]


def test_a_feed_in_use_is_left_out_until_it_is_free(programs: Programs, tmp_path: Path) -> None:
    """Where another collector has one of the feeds, the others are collected, and that one once the other ends."""
    data_dir = tmp_path / "data"
    with answering("binance") as (spot, _):
        first = collecting(programs, data_dir, entry(spot))
        until_more(first, data_dir, SPOT)
        second = collecting(programs, data_dir, entry(spot, "BTCUSDT", "ETHUSDT"))
        until_more(second, data_dir, OTHER_SPOT)
        second.until(lambda: titles(data_dir, "feed_left_out") == [SPOT])
        assert first.stop().code == 0
        second.until(lambda: titles(data_dir, "feed_taken_up") == [SPOT])
        until_more(second, data_dir, SPOT)
        assert second.stop().code == 0
    numbers = [int(line.split(",")[3]) for line in rows(data_dir, SPOT)]
    assert len(numbers) == len(set(numbers))
