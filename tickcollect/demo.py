"""The demo: a generated market on this machine, collected for some seconds, cut off once, and proved complete.

Nothing here is a shortcut: the market speaks Binance's protocol on a real socket, the collector is the one that `run`
starts, and the missing IDs come back through REST. The last step reads only the files.
"""

import asyncio
import contextlib
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from tickcollect.collector import Summary, collect
from tickcollect.config import Config
from tickcollect.dataset.replay import GeneratedMarket, Reset, serve
from tickcollect.events import STREAMS
from tickcollect.files import open_csv
from tickcollect.terminal import live_view, log_to, stop_on_signals, terminal

SYMBOLS = 3
ACTIVITY = 5.0
"""Times an ordinary minute: so that something happens in the quieter symbols too."""
ROWS_SHOWN = 3


async def show(seconds: float, keep: Path | None) -> int:
    """Run the demo and return the exit code: 0 if every ID that was sent is in the files."""
    with _directory(keep) as data_dir:
        market = GeneratedMarket("binance", start_ms=int(time.time() * 1000), symbols=SYMBOLS, activity=ACTIVITY)
        async with serve(market, speed=1.0) as server:
            server.start()
            symbols = tuple(listing.symbol for listing in market.listings)
            click.echo(f"A generated market with {', '.join(symbols)} is up at {server.ws_url}.")
            click.echo(f"Collecting its trades for {seconds:g} s; after {seconds / 2:g} s the line is cut.\n")
            entry = {
                "exchange": "binance",
                "stream": "trade",
                "symbols": symbols,
                "ws_url": server.ws_url,
                "rest_url": server.rest_url,
            }
            config = Config.model_validate({"data_dir": data_dir, "collect": [entry]})
            summary = await _collect(config, seconds, lambda: server.disconnect(Reset()))
        complete = _prove(data_dir, summary)
        if keep is None:
            click.echo("\nThe files were temporary; --keep DIR keeps them. Next: tickcollect run --symbol BTCUSDT")
        return 0 if complete else 1


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="tickcollect-demo-") as name:
        yield Path(name)


async def _collect(config: Config, seconds: float, cut: Callable[[], None]) -> Summary:
    """Collect for `seconds`, and `cut` the line in the middle of it."""
    stop = asyncio.Event()
    stop_on_signals(stop)
    console = terminal()
    log_to(None, "INFO", console)
    loop = asyncio.get_running_loop()
    loop.call_later(seconds / 2, cut)
    loop.call_later(seconds, stop.set)
    return await collect(config, stop, live_view(console) if console else None)


def _prove(data_dir: Path, summary: Summary) -> bool:
    """Read the files back, show them, and tell whether an ID is missing."""
    click.echo(f"\n{summary.rows:,} rows, {summary.filled:,} of them fetched after the cut. The files:")
    complete = summary.missing == 0 and summary.unknown_feeds == 0 and summary.rows > 0
    for path in sorted(summary.files):
        rows = list(_rows(path))
        ids = [int(row[STREAMS["trade"].COLUMNS.index("t")]) for row in rows]
        contiguous = ids == list(range(ids[0], ids[0] + len(ids)))
        complete = complete and contiguous
        click.echo(f"\n  {path.relative_to(data_dir)}")
        click.echo(
            f"  IDs {ids[0]} to {ids[-1]}: {len(ids):,} rows, {'none missing' if contiguous else 'NOT CONTIGUOUS'}"
        )
        for row in rows[:ROWS_SHOWN]:
            click.echo(f"    {','.join(row)}")
    click.echo("\nNo ID is missing." if complete else "\nNOT PROVED COMPLETE: see the first line and the journal.")
    return complete


def _rows(path: Path) -> Iterator[list[str]]:
    with open_csv(path) as file:
        yield from csv.reader(line.decode() for line in file)
