"""The commands: parse, call, print. What they need is imported inside them, so that `--help` stays quick.

Exit codes: 0 done; 1 something failed, said in one line; 2 a mistake in the command line or the configuration;
75 the feed is collected by another process; 130 stopped at once by a second signal.
"""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from tickcollect import __version__
from tickcollect.terminal import (
    EXIT_AT_ONCE,
    halt_on_signals,
    live_view,
    log_to,
    say,
    stop_on_signals,
    terminal,
)

if TYPE_CHECKING:
    from tickcollect.collector import Summary
    from tickcollect.config import Config
    from tickcollect.report import Report
    from tickcollect.status import Snapshot, Verdict
    from tickcollect.store import Store
    from tickcollect.upload import Note, Options

EXIT_FAILED = 1
EXIT_MISTAKE = 2
EXIT_IN_USE = 75

FILES_SHOWN = 20

EXCHANGES = ("binance", "binance-futures", "binance-delivery")
STREAMS = ("trade", "aggTrade")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tickcollect")
def main() -> None:
    """Collect every trade of the markets you name, and prove that none is missing."""


@main.command(
    short_help="Collect until stopped.",
    epilog="""\b
Examples:
  tickcollect run --symbol BTCUSDT --symbol ETHUSDT
  tickcollect run --exchange binance-futures --symbol BTCUSDT --data-dir /var/lib/ticks
  tickcollect run --config config.json""",
)
@click.option("--symbol", "symbols", multiple=True, help="A symbol as the exchange writes it, BTCUSDT; repeatable.")
@click.option("--exchange", type=click.Choice(EXCHANGES), help="Where the symbols trade.  [default: binance]")
@click.option("--stream", type=click.Choice(STREAMS), help="What to collect.  [default: trade on spot, else aggTrade]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the files go.  [default: data]")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="[default: config.json, if it is there]")
@click.option("--no-backfill", is_flag=True, help="Do not fetch missing IDs from the exchange's history.")
@click.option("--ws-url", help="Another websocket host: a testnet, data-stream.binance.vision, a local server.")
@click.option("--rest-url", help="Its REST host.  [default: the one that belongs to --ws-url]")
def run(config_path: Path | None, symbols: tuple[str, ...], **options: Any) -> None:
    """Collect until stopped: Ctrl-C or SIGTERM ends in order, a second one at once.

    0 stopped in order; the last lines and `tickcollect status` say whether IDs are missing, and what is not known.
    """
    config = _config(config_path, symbols, options)
    with _failures_told():
        summary = asyncio.run(_collect(config))
    say(*summary_lines(summary, config.data_dir))


@main.command(short_help="Show what the running collector does.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the files are.  [default: data]")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="[default: config.json, if it is there]")
@click.option("--json", "as_json", is_flag=True, help="Print what the status files hold, as JSON.")
def status(data_dir: Path | None, config_path: Path | None, as_json: bool) -> None:  # noqa: FBT001 - click's flag
    """Show what the running collector does; the exit code is for monitoring.

    0 all is well, 1 it collects with trouble, 2 it is dead or hangs, 3 none has run here.
    """
    from rich.console import Console

    from tickcollect import status as state

    config = _config(config_path, (), {"data_dir": data_dir}, needs_feeds=False)
    try:
        snapshots = state.read(config.data_dir)
    except state.StatusError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    now_ns = time.time_ns()
    snapshots = [_with_upload(snapshot, config.data_dir, now_ns) for snapshot in snapshots]
    verdicts = [state.judge(snapshot, now_ns, state.alive(snapshot)) for snapshot in snapshots]
    if as_json:
        shown = [_as_known(*judged) for judged in zip(snapshots, verdicts, strict=True)]
        click.echo(state.encode(shown).decode(), nl=False)
    else:
        Console().print(state.table(snapshots, now_ns, verdicts))
    sys.exit(max(verdict.health for verdict in verdicts))


@main.command("alert-test", short_help="Send one message to each channel for alerts.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="[default: config.json, if it is there]")
def alert_test(config_path: Path | None) -> None:
    """Send one message to each channel for alerts, and say what went wrong where.

    0 all were sent, 1 a channel failed, 2 no channel is configured, or a mistake in the configuration.
    """
    from tickcollect.alerts import post

    config = _config(config_path, (), {}, needs_feeds=False)
    with _failures_told():
        results = post.try_channels(config)
    if not results:
        raise click.UsageError("no channel: set TELEGRAM_TOKEN and TELEGRAM_CHAT_ID, or ALERT_URLS, in config.json")
    say(*(str(result) for result in results))
    sys.exit(0 if all(result.ok for result in results) else EXIT_FAILED)


@main.command(
    short_help="Report what was collected, whether it is whole, and what is missing.",
    epilog="""\b
Examples:
  tickcollect report
  tickcollect report --date 2026-11-20 --json
  tickcollect report --days 7 --csv > week.csv
  tickcollect report --config config.json --send""",
)
@click.option("--date", "last", help="A UTC day, 2026-11-20, today or yesterday.  [default: yesterday]")
@click.option("--days", "number", type=click.IntRange(1, 366), default=1, help="So many days up to that one.")
@click.option("--json", "form", flag_value="json", help="Print all that is known, as JSON.")
@click.option("--csv", "form", flag_value="csv", help="Print a row for each feed and day, as CSV.")
@click.option("--send", is_flag=True, help="Send it to the channels for alerts, with CSV and a chart.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the files are.  [default: data]")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="[default: config.json, if it is there]")
def report(last: str | None, number: int, form: str | None, config_path: Path | None, **options: Any) -> None:
    """Report on a UTC day's data: is all of it there, and if not, what is missing and why.

    0 complete, 1 something is missing, or could not be sent, 2 a mistake, 3 there is no data of that day, 4 it is not
    known whether anything is missing.
    """
    from tickcollect.report import ReportError, days_asked, of_config
    from tickcollect.report.shown import show

    config = _config(config_path, (), options, needs_feeds=False)
    now = datetime.now(UTC)
    try:
        days = days_asked(last, number, now.date())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    with _failures_told({ReportError: EXIT_FAILED}):
        found = of_config(config, days, now)
    say(show(found, form))
    sent_code = _send_report(config, found) if options["send"] else 0
    sys.exit(sent_code or found.exit_code)


@main.command(
    short_help="Send sealed files to the store, and prove that they are there.",
    epilog="""\b
Examples:
  tickcollect upload --config config.json
  tickcollect upload --to file:///mnt/backup/ticks --delete-after 30
  tickcollect upload --dry-run""",
)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="[default: config.json, if it is there]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the files are.  [default: data]")
@click.option("--to", help="Another store: s3://bucket/folder or file:///folder.")
@click.option(
    "--delete-after",
    "delete_after_days",
    type=click.IntRange(min=0),
    help="Delete local files whose day is past by more than this many days, and that the store has been seen to hold.",
)
@click.option("--verify", is_flag=True, help="Ask the store about all files, also those known to be there.")
@click.option("--read-back", is_flag=True, help="Believe no checksum of the store: download what is there to compare.")
@click.option("--rename-taken", is_flag=True, help="Send a file whose name is taken under a name with its checksum.")
@click.option("--trust-receipt", is_flag=True, help="Delete without looking, where the key may only write.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
def upload(config_path: Path | None, data_dir: Path | None, to: str | None, **flags: Any) -> None:
    """Send sealed files to the store (S3 or a folder), oldest first, each proved to have arrived.

    Nothing is overwritten there; nothing is deleted here without proof. 0 everything is there, 1 something is not,
    2 a mistake in the configuration, 75 another upload is at work, 130 stopped by a signal.
    """
    from tickcollect.store import NotConfiguredError, StoreError
    from tickcollect.upload import BusyError, Options, UploadError

    config = _config(config_path, (), {"data_dir": data_dir}, needs_feeds=False, more=_store_keys(to))
    dry_run, read_back = flags.pop("dry_run"), flags.pop("read_back")
    options = Options(**flags)
    codes = {
        NotConfiguredError: EXIT_MISTAKE,
        StoreError: EXIT_FAILED,
        BusyError: EXIT_IN_USE,
        UploadError: EXIT_FAILED,
    }
    with _failures_told(codes):
        if dry_run:
            with _opened_store(config, reads_back=read_back) as store:
                _show_foreseen(config, store, options)
        else:
            sys.exit(_upload(config, options, reads_back=read_back))


@main.command(
    short_help="See whether all is ready to be left alone.",
    epilog="""\b
Examples:
  tickcollect check
  tickcollect check --config /etc/tickcollect.json --no-send --json""",
)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="[default: config.json, if it is there]")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(1, 3600), default=30, show_default=True, help="Seconds for data."
)
@click.option("--no-send", is_flag=True, help="Send no message to the channels for alerts.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(config_path: Path | None, wait_s: float, no_send: bool, as_json: bool) -> None:  # noqa: FBT001 - click's flags
    """Look at configuration, disk, clock, exchange, streams, store and channels, and say what to do.

    Connects as `run` does and waits for a live message of each stream; nothing is written. 0 ready, 1 something would
    not work.
    """
    from rich.console import Console

    from tickcollect import check as looks

    config = _config(config_path, (), {}, needs_feeds=False)
    if not config.collect:
        raise click.UsageError("nothing to collect: name what to collect in COLLECT of config.json")
    asked = looks.Asked(config, config_path, os.environ, send=not no_send, wait_s=wait_s)
    waiting = Console(stderr=True).status(f"looking; streams may take {wait_s:g} s", spinner="line")
    with waiting if sys.stderr.isatty() else contextlib.nullcontext():
        findings = asyncio.run(looks.check(asked))
    if as_json:
        say(looks.encode(findings, time.time_ns()).decode().rstrip())
    else:
        console = Console(highlight=False)
        for line in looks.lines(asked, findings, console):
            console.print(line)
    sys.exit(looks.exit_code(findings))


@main.command(
    short_help="Play files, or a generated market, as the exchange would.",
    epilog="""\b
Examples:
  tickcollect replay data/binance/trade/BTCUSDT --speed max
  tickcollect replay recording.gz --port 9000
  tickcollect replay --symbols 100 --activity 70""",
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--speed", default="1", help="Times market time, or max: as fast as it is read.  [default: 1]")
@click.option(
    "--port", default=0, help="The first exchange's port; further exchanges take the next.  [default: free ones]"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option(
    "--exchange", type=click.Choice(EXCHANGES), help="Where the recordings cannot tell, or for a generated market."
)
@click.option("--symbols", default=5, show_default=True, help="Generated market: how many symbols.")
@click.option("--activity", default=1.0, show_default=True, help="Generated market: times an ordinary minute.")
@click.option("--seed", default=0, show_default=True, help="Generated market: another one for each number.")
@click.option(
    "--start-delay", default=1.0, show_default=True, help="Seconds from the first subscription to the first message."
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Serve TLS with the key and certificate in this PEM file, for clients that accept nothing else.",
)
def replay(paths: tuple[Path, ...], speed: str, start_delay: float, **options: Any) -> None:
    """Play recorded or collected files, or a generated market, in Binance's own protocol."""
    import math
    import ssl

    from tickcollect.dataset.replay import RecordingError, ReplayOptions, play

    try:
        factor = math.inf if speed == "max" else float(speed)
        wanted = ReplayOptions(paths=paths, speed=factor, start_delay_s=start_delay, **options)
    except ValueError as error:
        raise click.UsageError(f"{error} (--speed takes a number or max)") from error
    try:
        asyncio.run(play(wanted, click.echo))
    except RecordingError as error:
        raise click.ClickException(str(error)) from error
    except ssl.SSLError as error:
        raise click.ClickException(f"{wanted.certificate} is not a PEM file with key and certificate") from error
    except OSError as error:
        raise click.ClickException(f"cannot listen at {wanted.host}:{wanted.port}: {error.strerror}") from error


@main.command(short_help="See it work on this machine, without a network.")
@click.option("--seconds", default=12.0, show_default=True, help="How long to collect.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the files in this directory.")
def demo(seconds: float, keep: Path | None) -> None:
    """Collect from a generated market on this machine: no network, nothing to configure."""
    from tickcollect.demo import show

    with _failures_told():
        sys.exit(asyncio.run(show(seconds, keep)))


# --- What the commands share ---------------------------------------------------------------------------------------


def _config(
    path: Path | None,
    symbols: tuple[str, ...],
    options: dict[str, Any],
    *,
    needs_feeds: bool = True,
    more: Mapping[str, object] = MappingProxyType({}),
) -> "Config":
    """Read the configuration with the command line over it; a mistake ends the program with all mistakes told."""
    from tickcollect.config import ConfigError, load, warnings

    overrides: dict[str, object] = dict(more)
    if options.get("data_dir") is not None:
        overrides["DATA_DIR"] = str(options["data_dir"])
    entry = {name: options[name] for name in ("exchange", "stream", "ws_url", "rest_url") if options.get(name)}
    if options.get("no_backfill"):
        overrides["BACKFILL"] = False
    if symbols:
        overrides["COLLECT"] = [{"exchange": "binance", **entry, "symbols": list(symbols)}]
    elif entry:
        raise click.UsageError(f"--{next(iter(entry)).replace('_', '-')} goes with --symbol: name at least one")
    try:
        config = load(path, os.environ, overrides)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_MISTAKE)
    if needs_feeds and not config.collect:
        raise click.UsageError("nothing to collect: give --symbol BTCUSDT, or COLLECT in config.json")
    if needs_feeds:
        for warning in warnings(path, os.environ):
            click.echo(f"Warning: {warning}", err=True)
    return config


def _with_upload(snapshot: "Snapshot", data_dir: Path, now_ns: int) -> "Snapshot":
    """Return a snapshot whose upload is that of now also where no collector looks at it any more."""
    from tickcollect.backlog import renewed
    from tickcollect.status import Health, alive, judge

    collects = judge(snapshot, now_ns, alive(snapshot)).health < Health.NOT_COLLECTING
    return snapshot if collects else renewed(data_dir, snapshot)


def _as_known(snapshot: "Snapshot", verdict: "Verdict") -> "Snapshot":
    """Return a snapshot without the claims of a collector that nobody can confirm any more."""
    from tickcollect.status import Health, doubted

    confirmed = verdict.health < Health.NOT_COLLECTING or verdict.in_order
    return snapshot if confirmed else doubted(snapshot)


@contextlib.contextmanager
def _failures_told(more: Mapping[type[Exception], int] = MappingProxyType({})) -> Iterator[None]:
    """Turn what can fail, and what `more` names, into one line and an exit code."""
    from tickcollect.config import ConfigError
    from tickcollect.journal import JournalError
    from tickcollect.segments import InUseError, SegmentError
    from tickcollect.status import StatusError
    from tickcollect.venues import StartError

    codes: dict[type[Exception], int] = {
        ConfigError: EXIT_MISTAKE,
        StartError: EXIT_MISTAKE,
        InUseError: EXIT_IN_USE,
        SegmentError: EXIT_FAILED,
        JournalError: EXIT_FAILED,
        StatusError: EXIT_FAILED,
        **more,
    }
    try:
        yield
    except tuple(codes) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(next(code for kind, code in codes.items() if isinstance(error, kind)))


def _store_keys(to: str | None) -> dict[str, object]:
    """Return the configuration's keys for a store given as a URL."""
    if to is None:
        return {}
    if to.startswith("s3://"):
        bucket, _, folder = to.removeprefix("s3://").partition("/")
        return {"UPLOAD_TO": "", "S3_BUCKET": bucket, "S3_BUCKET_PATH": folder}
    if to.startswith("file://"):
        return {"UPLOAD_TO": to, "S3_BUCKET": ""}
    raise click.UsageError("--to takes s3://bucket/folder or file:///folder")


@contextlib.contextmanager
def _opened_store(config: "Config", *, reads_back: bool) -> Iterator["Store"]:
    from tickcollect.store import open_store

    store = open_store(config, reads_back=reads_back)
    try:
        yield store
    finally:
        store.close()


def _send_report(config: "Config", found: "Report") -> int:
    """Send a report with its CSV and its chart to every channel, tell what went wrong, and return an exit code."""
    from tempfile import TemporaryDirectory

    from tickcollect.alerts.post import collector_name, send_files
    from tickcollect.chart import draw
    from tickcollect.report.shown import notice, to_csv

    period = "-to-".join(dict.fromkeys((found.days[0], found.days[-1])))
    with TemporaryDirectory(prefix="tickcollect-") as folder:
        table, picture = Path(folder, f"report-{period}.csv"), Path(folder, f"rows-per-hour-{period}.png")
        table.write_text(to_csv(found), encoding="utf-8")
        picture.write_bytes(draw(found))
        states = send_files(config, notice(found, collector_name(config), (table, picture)))
    if not states:
        say("Error: not sent: set TELEGRAM_TOKEN and TELEGRAM_CHAT_ID, or ALERT_URLS, in the configuration", err=True)
        return EXIT_MISTAKE
    failed = [state for state in states if state.error or state.dropped]
    say(*(f"Error: not sent to {state.name}: {state.error}" for state in failed), err=True)
    return EXIT_FAILED if failed else 0


def _show_foreseen(config: "Config", store: "Store", options: "Options") -> None:
    from tickcollect.status import size
    from tickcollect.upload import foresee

    found, strange = foresee(config.data_dir, store, options, time.time_ns())
    to_do = [one for one in found if one.doing]
    say(*(f"{one.doing}: {one.item.file} ({size(one.item.bytes)})" for one in to_do))
    say(*(failure.text for failure in strange), err=True)
    say(
        f"{store.name}: {len(to_do):,} of {len(found):,} files have something to be done; nothing was done",
        f"{store.name}: {store.probe().text}. Whether it takes files shows only when one is sent.",
    )


def _upload(config: "Config", options: "Options", *, reads_back: bool) -> int:
    """Run the upload, tell how it went, here and to the channels, and return the exit code."""
    from random import SystemRandom

    from tickcollect.backlog import destination
    from tickcollect.journal import JournalError
    from tickcollect.store import StoreError
    from tickcollect.upload import Patience, UploadError, World, bar, not_begun, run

    console = terminal()
    log_to(None, config.log_level, console)  # the collector may have its log file open
    halt = threading.Event()
    halt_on_signals(halt)
    world = World(time.time_ns, time.monotonic, SystemRandom().uniform, halt)
    patience = Patience(config.upload_within_h * 3600)
    shown = bar(console) if console else contextlib.nullcontext()
    try:
        with _opened_store(config, reads_back=reads_back) as store, shown as progress:
            outcome = run(config, store, options, world, patience, progress)
    except (StoreError, UploadError, JournalError) as error:
        store_name = (
            destination(config.upload_to, config.s3_bucket, config.s3_bucket_path, config.s3_endpoint_url) or "no store"
        )
        _tell_channels(config, [not_begun(store_name, error)])
        raise
    say(*outcome.lines())
    say(*(f"Error: {reason}" for reason in outcome.reasons), err=True)
    if outcome.is_news:
        _tell_channels(config, outcome.notes())
    if outcome.interrupted:
        return EXIT_AT_ONCE
    return 0 if outcome.complete else EXIT_FAILED


def _tell_channels(config: "Config", notes: "Sequence[Note]") -> None:
    """Tell the channels; one that fails is told here and changes nothing else."""
    from tickcollect.alerts.post import tell_once

    failed = [state for state in tell_once(config, notes) if state.error or state.dropped]
    say(*(f"Warning: not told to {state.name}: {state.error}" for state in failed), err=True)


async def _collect(config: "Config") -> "Summary":
    from tickcollect.collector import collect

    stop = asyncio.Event()
    console = terminal()
    stop_on_signals(stop, console)
    log_to(config.log_file, config.log_level, console)
    return await collect(config, stop, live_view(console) if console else None)


def _proved(summary: "Summary") -> str:
    """Say what is missing and what is not known; that nothing is missing is said only where it is known."""
    from tickcollect.status import REASONS_TOLD, second

    parts = [f"{summary.missing:,} IDs are missing, see journal.jsonl"] if summary.missing else []
    if not summary.connections:
        parts.append("nothing is known: no connection was made")
    elif summary.unknown_feeds:
        since = second(summary.unknown_since_ns or 0, time.time_ns())
        feeds = f"{summary.unknown_feeds:,} feed{'' if summary.unknown_feeds == 1 else 's'}"
        more = len(summary.unknown_reasons) - REASONS_TOLD
        reasons = "; ".join(
            (*summary.unknown_reasons[:REASONS_TOLD], *([f"and {more} more reasons"] if more > 0 else []))
        )
        parts.append(f"it is not known since {since} whether IDs are missing ({feeds}): {reasons}")
    return "; ".join(parts) or "no ID is missing up to the stop"


def summary_lines(summary: "Summary", data_dir: Path) -> list[str]:
    """Put what a run did into words."""
    if summary.seconds == 0:
        return ["0 rows; nothing is known: stopped before collecting had begun, and no connection was made"]
    lines = [f"{summary.rows:,} rows in {summary.seconds:.0f} s; {_proved(summary)}"]
    if summary.filled:
        lines.append(f"{summary.filled:,} of them were fetched from the exchange's history")
    if summary.copies:
        lines.append(f"{summary.copies:,} copies dropped")
    if summary.refused:
        lines.append(f"{summary.refused:,} messages refused, kept in {data_dir / 'quarantine'}")
    if summary.sealed:
        lines.append(f"{summary.sealed:,} files sealed")
    shown = summary.files[-FILES_SHOWN:]
    lines += [f"  {path}" for path in shown]
    if len(summary.files) > len(shown):
        lines.append(f"  and more below {data_dir}")
    return lines
