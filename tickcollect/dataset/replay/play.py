"""What `tickcollect replay` does: serve recordings, or a generated market, until it is told to stop.

Each exchange has its own port, because spot and COIN-M share their paths. The rules of playing are `server`'s. When
everything has been sent the servers stay up: REST goes on answering, and a collector can finish in peace.
"""

import asyncio
import math
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tickcollect.dataset.replay.generated import GeneratedMarket
from tickcollect.dataset.replay.recorded import RecordedMarket, open_recordings
from tickcollect.dataset.replay.server import Market, ReplayServer, serve
from tickcollect.dataset.replay.venue import VENUES

_PROGRESS_S = 5.0


@dataclass(frozen=True)
class ReplayOptions:
    """What to play and how.

    Without `paths` a market is generated: of `exchange` (default: binance), from `seed`, with `symbols` symbols, at
    `activity` times an ordinary minute's rate. `speed` is market time over wall time, math.inf for as fast as clients
    read. Several exchanges take the ports from `port` on; 0 takes free ones. `start_delay_s` is how long after the
    first subscription playing starts, so that a client's further ones do not come too late. `certificate` is a PEM file
    with a certificate and its key: with it the addresses are wss and https.
    """

    paths: Sequence[Path] = ()
    exchange: str | None = None
    speed: float = 1.0
    host: str = "127.0.0.1"
    port: int = 0
    start_delay_s: float = 1.0
    seed: int = 0
    symbols: int = 5
    activity: float = 1.0
    certificate: Path | None = None

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise ValueError(f"speed {self.speed}: a positive number, or max, is needed.")
        if self.exchange is not None and self.exchange not in VENUES:
            raise ValueError(f"{self.exchange}: not an exchange to replay. Known: {', '.join(VENUES)}.")
        if self.symbols < 1 or not self.activity > 0:
            raise ValueError("a generated market needs at least one symbol and an activity above 0.")


async def play(options: ReplayOptions, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. `announce` gets each line for the user.

    Raises RecordingError where a file cannot be replayed, OSError where a port is taken or the certificate is unusable.
    """
    stop = asyncio.Event()
    markets = _markets(options, announce)
    async with _stopping_on_signals(stop), AsyncExitStack() as stack:
        tls = None if options.certificate is None else _tls(options.certificate)
        servers = []
        for number, market in enumerate(markets):
            server = await stack.enter_async_context(
                serve(
                    market,
                    speed=options.speed,
                    host=options.host,
                    port=options.port + number if options.port else 0,
                    start_delay_s=options.start_delay_s,
                    tls=tls,
                    tell=announce,
                )
            )
            if isinstance(market, GeneratedMarket) and options.speed != math.inf:
                server.start()  # such a market has no beginning to be missed
            servers.append(server)
        for server in servers:
            for line in _described(server):
                announce(line)
        reports = [asyncio.create_task(_report(server, announce)) for server in servers]
        stopping = asyncio.create_task(stop.wait())
        ended, running = await asyncio.wait([stopping, *reports], return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        for task in ended:
            task.result()  # a report ends only by the failure of what it reports on
        sent = sum(server.sent.total() for server in servers)
        announce(f"stopped: {sent:,} messages sent")


@asynccontextmanager
async def _stopping_on_signals(stop: asyncio.Event) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def _markets(options: ReplayOptions, announce: Callable[[str], None]) -> Sequence[Market]:
    if options.paths:
        return open_recordings(options.paths, options.exchange, tell=announce)
    return [
        GeneratedMarket(
            options.exchange or "binance",
            start_ms=int(time.time() * 1000),
            seed=options.seed,
            symbols=options.symbols,
            activity=options.activity,
        )
    ]


def _described(server: ReplayServer) -> list[str]:
    """Return what a user needs to connect, as lines."""
    market = server.market
    kinds = sorted({stream.partition("@")[2] for stream in market.streams})
    symbols = [listing.symbol for listing in market.listings]
    more = f" and {len(symbols) - 8} more" if len(symbols) > 8 else ""  # noqa: PLR2004 (what fits a line)
    speed = "as fast as it is read" if server.speed == math.inf else f"at {server.speed:g} times market time"
    lines = [
        f"{market.exchange}: {', '.join(symbols[:8])}{more}; {', '.join(kinds)}; {speed}",
        f"  websocket {server.ws_url}   REST {server.rest_url}",
    ]
    collected = [kind for kind in ("trade", "aggTrade") if kind in kinds]
    if collected and symbols:
        lines.append(
            f"  tickcollect run --exchange {market.exchange} --stream {collected[0]} --symbol {symbols[0]} "
            f"--ws-url {server.ws_url} --rest-url {server.rest_url}"
        )
    if isinstance(market, RecordedMarket) and market.skipped:
        lines.append(f"  {market.skipped} lines belong to no stream and are not sent")
    return lines


async def _report(server: ReplayServer, announce: Callable[[str], None]) -> None:
    """Tell how far playing has come, and when all that was asked for has been sent."""
    exchange, known = server.market.exchange, len(set(server.market.streams))
    while True:
        playing = asyncio.create_task(server.finished())
        before = server.sent.total()
        try:
            while not (await asyncio.wait([playing], timeout=_PROGRESS_S))[0]:
                now = server.sent.total()
                if now > before:
                    announce(f"{exchange}: {now:,} messages sent, {len(server.connections)} connected")
                before = now
            await playing
        finally:
            playing.cancel()
        sent = server.sent.total()
        announce(f"{exchange}: all {sent:,} messages of {len(server.played)} streams sent ({known} streams recorded)")
        await server.started_again()
