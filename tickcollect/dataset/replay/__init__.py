"""Binance on loopback: recordings, segments or a generated market, in the exchange's own protocol.

    async with serve(GeneratedMarket("binance", start_ms=1_784_000_000_000)) as server:
        print(server.ws_url, server.rest_url)

The path of a message: a market (`recorded`, `generated`) yields it, `server` plays it on time to the connections, whose
protocol is `venue` (websocket) and `endpoints` (REST), both without I/O. `play` is what the command runs.
"""

from tickcollect.dataset.replay.endpoints import Answer, Request
from tickcollect.dataset.replay.generated import GeneratedMarket
from tickcollect.dataset.replay.play import ReplayOptions, play
from tickcollect.dataset.replay.recorded import RecordedMarket, RecordingError, open_recordings
from tickcollect.dataset.replay.server import (
    Behaviour,
    Bytes,
    Close,
    Connection,
    Cut,
    Market,
    ReplayServer,
    Reset,
    frame,
    serve,
)

__all__ = [
    "Answer",
    "Behaviour",
    "Bytes",
    "Close",
    "Connection",
    "Cut",
    "GeneratedMarket",
    "Market",
    "RecordedMarket",
    "RecordingError",
    "ReplayOptions",
    "ReplayServer",
    "Request",
    "Reset",
    "frame",
    "open_recordings",
    "play",
    "serve",
]
