"""A TCP proxy that behaves as badly as a network can.

    async with proxying(port) as proxy:
        proxy.weather = Weather(latency_s=0.2, slice_bytes=1)
        proxy.freeze()

The weather holds for bytes from the server on their way to the client, from the next read on, on every connection.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Weather:
    """How bytes travel. Zero means: as fine as loopback is."""

    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    slice_bytes: int = 0
    """Send in pieces of this size, each in a segment of its own."""
    limit_bytes: int = 0
    """End a connection after this many bytes, in the middle of whatever it is."""
    flip_every_bytes: int = 0
    """Flip one bit of every so many bytes."""


FINE = Weather()


@dataclass(eq=False)
class _Pair:
    """One connection: the client's side and the server's."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    passed_bytes: int = 0

    def __post_init__(self) -> None:
        self.flows.set()

    def close(self) -> None:
        self.client.close()
        self.server.close()


@dataclass
class Proxy:
    """A running proxy, made by `proxying`."""

    server_port: int
    port: int = 0
    tls_port: int = 0
    """The same behind TLS; 0 where there is none."""
    weather: Weather = FINE
    accepts: bool = True
    """False: who connects is cut off at once."""
    answers: bool = True
    """False: who connects is let in, and nothing passes."""
    accepted: int = 0
    _pairs: set[_Pair] = field(default_factory=set)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def freeze(self) -> None:
        """Let nothing pass on the connections there are, and tell nobody: half-open. New ones work."""
        for pair in self._pairs:
            pair.flows.clear()

    def reset(self) -> None:
        """Reset every connection, both ways."""
        for pair in list(self._pairs):
            raw = pair.client.get_extra_info("socket")
            with suppress(OSError):
                if raw is not None:  # it is None once the connection has ended
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            pair.client.transport.abort()
            pair.server.transport.abort()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        self.accepted += 1
        if not self.accepts:
            writer.transport.abort()
            return
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, there)
        if not self.answers:
            pair.flows.clear()
        self._pairs.add(pair)
        ways = [
            asyncio.create_task(self._carry(pair, reader, there)),
            asyncio.create_task(self._deliver(pair, there_reader)),
        ]
        self._tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self._tasks.difference_update(ways)
        self._pairs.discard(pair)
        pair.close()

    async def _carry(self, pair: _Pair, reader: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await pair.flows.wait()
                there.write(data)
                await there.drain()

    async def _deliver(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await pair.flows.wait()
                if self.weather == FINE:
                    pair.client.write(data)
                    await pair.client.drain()
                elif not await self._deliver_badly(pair, data):
                    return

    async def _deliver_badly(self, pair: _Pair, data: bytes) -> bool:
        """Send bytes as the weather wants it; False when the connection has to end."""
        weather = self.weather
        await asyncio.sleep(weather.latency_s)
        if weather.flip_every_bytes:
            data = _flipped(data, pair.passed_bytes, weather.flip_every_bytes)
        ends = weather.limit_bytes and pair.passed_bytes + len(data) >= weather.limit_bytes
        if ends:
            data = data[: max(0, weather.limit_bytes - pair.passed_bytes)]
        size = weather.slice_bytes or len(data) or 1
        if weather.slice_bytes:
            pair.client.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), size):
            pair.client.write(data[start : start + size])
            await pair.client.drain()
            await asyncio.sleep(size / weather.bytes_per_s if weather.bytes_per_s else 0)
        pair.passed_bytes += len(data)
        return not ends

    def stop(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        for pair in list(self._pairs):
            pair.close()


def _flipped(data: bytes, before: int, every: int) -> bytes:
    """Flip the lowest bit of each byte whose place in the stream is a multiple of `every`."""
    changed = bytearray(data)
    for place in range(-before % every, len(data), every):
        changed[place] ^= 1
    return bytes(changed)


@asynccontextmanager
async def proxying(server_port: int, tls: SSLContext | None = None) -> AsyncIterator[Proxy]:
    """Run a proxy before a port of loopback; with `tls`, at a second port too."""
    proxy = Proxy(server_port)
    listening = await asyncio.start_server(proxy.take, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    listeners = [listening]
    if tls is not None:
        listeners.append(await asyncio.start_server(proxy.take, "127.0.0.1", 0, ssl=tls))
        proxy.tls_port = listeners[1].sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        for listener in listeners:
            listener.close()
        proxy.stop()
