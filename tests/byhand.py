"""An exchange on loopback whose market is played by hand: each trade is issued by the test, sent or not.

It speaks Binance's protocol with the `websockets` package, in a thread of its own. What it has `issued` is the truth
that a collector's claims are held against (`lacking`).
"""

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from conftest import PATIENCE_S, Ended, ids, rows
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

FIRST_ID = 7_000
Reply = tuple[int, Any]
"""A status and what the body says."""


@dataclass
class ByHand:
    """One exchange; its fields may be set at any moment."""

    symbols: tuple[str, ...]
    issued: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By symbol, in the present numbering."""
    first_ids: dict[str, int] = field(default_factory=dict)
    """With which ID each symbol's numbering begins."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """What was asked over REST: the last part of the path, and the parameters."""
    handshakes: int = 0
    lets_in: Callable[[int], bool] = lambda number: True
    """Whether the connection with this number (from 1) is let in."""
    acknowledges: bool = True
    rest: Callable[[str, dict[str, str], Reply], Reply | None] = lambda path, asked, reply: reply
    """What to answer instead; None: never."""
    has_tickers: bool = True
    port: int = 0
    _connections: dict[ServerConnection, set[str]] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None

    def __post_init__(self) -> None:
        self.issued = {symbol: [] for symbol in self.symbols}
        self.first_ids = dict.fromkeys(self.symbols, FIRST_ID)

    # What a test does

    def issue(self, symbol: str, number: int = 1, *, sent: bool = True) -> list[int]:
        """Let trades happen, and send them to those who listen, or not."""
        found: list[int] = self.do(lambda: self._issue(symbol, number, sent=sent))
        return found

    def renumber(self, symbol: str, first_id: int) -> None:
        """Begin a symbol's numbering anew; history forgets what was before."""

        def begin() -> None:
            self.issued[symbol] = []
            self.first_ids[symbol] = first_id

        self.do(begin)

    def cut(self, number: int = 100) -> None:
        """Break off so many connections, the newest first."""

        def abort() -> None:
            for connection in list(self._connections)[-number:]:
                connection.transport.abort()

        self.do(abort)

    def announce_shutdown(self) -> None:
        """Say on every connection that this server will shut down, as spot does since 2026-05."""
        notice = json.dumps({"e": "serverShutdown", "E": time.time_ns() // 1_000_000})
        self.do(lambda: broadcast(list(self._connections), notice))

    def listeners(self, symbol: str) -> int:
        """Return how many connections have asked for a symbol's trades."""
        return sum(f"{symbol.lower()}@trade" in streams for streams in self._connections.values())

    def entry(self) -> dict[str, object]:
        """Return the entry of COLLECT."""
        return {"exchange": "binance", "symbols": list(self.symbols), **self.addresses}

    @property
    def addresses(self) -> dict[str, str]:
        """Where it is."""
        return {"ws_url": f"ws://127.0.0.1:{self.port}", "rest_url": f"http://127.0.0.1:{self.port}"}

    def do(self, action: Callable[[], Any]) -> Any:
        """Call something in the exchange's thread."""

        async def call() -> Any:
            return action()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE_S)

    # What it is

    def _issue(self, symbol: str, number: int, *, sent: bool) -> list[int]:
        found = []
        for _ in range(number):
            place = len(self.issued[symbol])
            now_ms = time.time_ns() // 1_000_000
            trade = {
                "id": self.first_ids[symbol] + place,
                "price": f"{100 + place % 7}.50000000",
                "qty": "1.50000000",
                "time": now_ms,
                "isBuyerMaker": place % 2 == 0,
            }
            self.issued[symbol].append(trade)
            found.append(self.first_ids[symbol] + place)
            if sent:
                self._send(symbol, trade)
        return found

    def _send(self, symbol: str, trade: dict[str, Any]) -> None:
        stream = f"{symbol.lower()}@trade"
        data = {
            "e": "trade",
            "E": trade["time"] + 1,
            "s": symbol,
            "t": trade["id"],
            "p": trade["price"],
            "q": trade["qty"],
            "T": trade["time"],
            "m": trade["isBuyerMaker"],
            "M": True,
        }
        listening = [connection for connection, streams in self._connections.items() if stream in streams]
        broadcast(listening, json.dumps({"stream": stream, "data": data}))

    async def _listen(self, connection: ServerConnection) -> None:
        self._connections[connection] = set()
        try:
            async for text in connection:
                asked = json.loads(text)
                if self.acknowledges:
                    self._connections[connection] |= set(asked["params"])
                    await connection.send(json.dumps({"result": None, "id": asked["id"]}))
        except ConnectionClosed:
            pass
        finally:
            del self._connections[connection]

    async def _respond(self, connection: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            self.handshakes += 1
            let_in = self.lets_in(self.handshakes)
            return None if let_in else connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "not now\n")
        address = urlsplit(request.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        path = address.path.rpartition("/")[2]
        self.asked.append((path, asked))
        reply = self.rest(path, asked, self._answer(path, asked))
        if reply is None:
            await asyncio.Event().wait()
            raise AssertionError
        status, value = reply
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        headers = Headers({"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"})
        return Response(status, "", headers, body)

    def _answer(self, path: str, asked: dict[str, str]) -> Reply:
        if path == "exchangeInfo":
            return 200, {"symbols": [{"symbol": symbol, "status": "TRADING"} for symbol in self.symbols]}
        if path == "time":
            return 200, {"serverTime": time.time_ns() // 1_000_000}
        if path == "24hr" and self.has_tickers:
            newest = {symbol: trades[-1]["id"] if trades else -1 for symbol, trades in self.issued.items()}
            return 200, [{"symbol": one, "lastId": newest[one], "count": 1} for one in json.loads(asked["symbols"])]
        if path in ("trades", "historicalTrades"):
            trades = self.issued[asked["symbol"]]
            limit = int(asked["limit"])
            if "fromId" not in asked:
                return 200, trades[-limit:]
            return 200, [trade for trade in trades if trade["id"] >= int(asked["fromId"])][:limit]
        return 404, {"code": -1, "msg": "no such path"}

    def counts(self) -> Counter[str]:
        """Return how often each path was asked."""
        return Counter(path for path, _ in list(self.asked))


@contextlib.contextmanager
def by_hand(*symbols: str, **how: Any) -> Iterator[ByHand]:
    """Serve such an exchange until the block ends."""
    exchange = ByHand(symbols or ("BTCUSDT",), **how)
    ready, over = threading.Event(), asyncio.Event()

    async def live() -> None:
        exchange._loop = asyncio.get_running_loop()
        async with serve(
            exchange._listen,
            "127.0.0.1",
            0,
            process_request=exchange._respond,
            ping_interval=None,
            close_timeout=0.1,
        ) as server:
            exchange.port = next(iter(server.sockets)).getsockname()[1]
            ready.set()
            await over.wait()
            for connection in list(exchange._connections):
                connection.transport.abort()
            server.close(close_connections=False)

    thread = threading.Thread(target=asyncio.run, args=(live(),), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE_S)
    try:
        yield exchange
    finally:
        assert exchange._loop is not None
        exchange._loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE_S)


# --- The judge -----------------------------------------------------------------------------------------------------


def lacking(exchange: ByHand, data_dir: Path) -> dict[str, set[int]]:
    """Return by symbol which issued IDs, from the first written one on, are in no file."""
    found = {}
    for symbol, trades in exchange.issued.items():
        folder = data_dir / "binance" / "trade" / symbol
        held = set(ids(rows(data_dir, f"binance/trade/{symbol}"))) if folder.exists() else set()
        wanted = {trade["id"] for trade in trades if held and trade["id"] >= min(held)}
        if wanted - held:
            found[symbol] = wanted - held
    return found


def claims_all(ended: Ended) -> bool:
    """Tell whether a run's last words say that nothing is missing."""
    return "no ID is missing" in ended.out
