"""The floor: the least that a Python program does to turn a websocket's trades into CSV rows.

One call a frame, one typed decode, one f-string, one buffered write. No check of anything, no gap detection, no
durability, no status, no second feed. What `tickcollect run` costs above this is the price of what it promises.

    python floor.py URL FILE COUNT      flushes the file after COUNT rows, and ends at SIGTERM
"""

import asyncio
import signal
import ssl
import sys
from pathlib import Path
from typing import IO

import msgspec
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect


class Trade(msgspec.Struct, gc=False, tag_field="e", tag="trade"):
    """A trade of Binance's spot market, without a rule about any field."""

    E: int
    s: str
    t: int
    p: str
    q: str
    T: int
    m: bool


class Combined(msgspec.Struct, gc=False):
    """The wrapper of a combined stream."""

    data: Trade


_decode = msgspec.json.Decoder(Combined).decode


class Listener(WSListener):
    """Writes each trade as a row."""

    def __init__(self, file: IO[str], count: int) -> None:
        self.write = file.write
        self.flush = file.flush
        self.left = count
        self.answered = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribe."""
        transport.send(WSMsgType.TEXT, b'{"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1}')

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:  # noqa: ARG002 - the base class's signature
        """Write one row. The first frame answers SUBSCRIBE."""
        if not self.answered:
            self.answered = True
            return
        d = _decode(frame.get_payload_as_memoryview()).data
        self.write(f"trade,{d.E},{d.s},{d.t},{d.p},{d.q},,,{d.T},{d.m}\n")
        self.left -= 1
        if not self.left:
            self.flush()


async def collect(url: str, path: Path, count: int) -> None:
    """Write what comes until SIGTERM."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    context = ssl.create_default_context() if url.startswith("wss:") else None
    with path.open("w", buffering=1 << 20) as file:
        transport, _ = await ws_connect(
            lambda: Listener(file, count), url, ssl_context=context, read_buffer_init_size=256 * 1024
        )
        await told.wait()
        transport.disconnect()


if __name__ == "__main__":
    asyncio.run(collect(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
