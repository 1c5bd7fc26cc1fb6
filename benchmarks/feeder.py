"""A loopback exchange in its own process, which sends trades as fast as they are taken or at a given pace.

It speaks what `tickcollect run` needs of Binance's spot market, websocket and REST on one port: the handshake,
SUBSCRIBE, pings, exchangeInfo. It does no more than that: `tickcollect replay` is the complete one.

Rules:

1. The first connection that has subscribed to all symbols gets the trades; any later one gets nothing, so that a
   broken connection shows as missing rows.
2. As fast as they are taken: all frames are built before the port is opened, and written 400 at a time.
3. Paced: a trade's `E` is the time at which its turn comes, by the real clock, not the time at which there was room to
   send it. So whoever compares it with an arrival sees all of the delay, whoever caused it.
4. What happened is told on stdout, one JSON object a line; times are of the monotonic clock, which all processes of a
   machine share. It ends when stdin does.
"""

import argparse
import base64
import hashlib
import json
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tape import Tape, frame

FRAMES_AT_ONCE = 400
PACE_S = 0.001
READ_BYTES = 65536
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""Proves that the server understood the handshake (RFC 6455 1.3)."""
CLOSE, PING = 0x8, 0x9


@dataclass(frozen=True)
class Order:
    """What is to be sent: trades `first` to `first + count`; `per_s` 0 means as fast as they are taken."""

    tape: Tape
    first: int
    count: int
    per_s: float


def tell(event: str, **facts: object) -> None:
    """Say what happened, and when."""
    print(json.dumps({"event": event, "at_s": time.monotonic(), **facts}), flush=True)


@dataclass
class Exchange:
    """The listening side: one thread a connection."""

    order: Order
    blocks: list[bytes]
    context: ssl.SSLContext | None
    taken: threading.Event = field(default_factory=threading.Event)

    def serve(self, listener: socket.socket) -> None:
        """Accept connections for as long as the process lives."""
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection:
                self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        """Answer REST requests until one of them asks for a websocket."""
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = connection.recv(READ_BYTES)
                if not data:
                    return
                received += data
            head, received = received.split(b"\r\n\r\n", 1)
            key = _header(head, b"sec-websocket-key")
            if key:
                connection.sendall(_upgrade(key))
                self._stream(Client(connection, received))
                return
            connection.sendall(_rest_answer(head.split(b" ")[1].split(b"?")[0], self.order.tape))

    def _stream(self, client: "Client") -> None:
        asked: set[str] = set()
        while len(asked) < self.order.tape.symbols:
            asked.update(client.subscription())
        if self.taken.is_set():
            tell("came again")
        else:
            self.taken.set()
            tell("started")
            if self.order.per_s:
                _send_paced(client, self.order)
            else:
                for block in self.blocks:
                    client.connection.sendall(block)
            tell("sent")
        client.linger()


# --- One websocket connection --------------------------------------------------------------------------------------


@dataclass
class Client:
    """The other end of a websocket."""

    connection: socket.socket
    received: bytes

    def subscription(self) -> list[str]:
        """Return the streams of the next SUBSCRIBE, which is answered."""
        while True:
            opcode, payload = self._frame()
            if opcode == PING:
                self._pong(payload)
            elif opcode == CLOSE:
                raise ConnectionAbortedError
            else:
                asked = json.loads(payload)
                self.connection.sendall(frame(json.dumps({"result": None, "id": asked["id"]}).encode()))
                return list(asked["params"])

    def linger(self) -> None:
        """Answer pings until the client closes."""
        while True:
            opcode, payload = self._frame()
            if opcode == PING:
                self._pong(payload)
            elif opcode == CLOSE:
                self.connection.sendall(b"\x88" + bytes([len(payload)]) + payload)
                return

    def answer_pings(self) -> None:
        """Look for what the client has sent meanwhile, without waiting."""
        while self.received or select.select([self.connection], [], [], 0)[0]:
            opcode, payload = self._frame()
            if opcode == CLOSE:
                raise ConnectionAbortedError
            if opcode == PING:
                self._pong(payload)

    def _pong(self, payload: bytes) -> None:
        self.connection.sendall(b"\x8a" + bytes([len(payload)]) + payload)

    def _frame(self) -> tuple[int, bytes]:
        """Return the next frame, unmasked; clients mask all of theirs (RFC 6455 5.3)."""
        opcode, size = (part & mask for part, mask in zip(self._take(2), (0x0F, 0x7F), strict=True))
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        mask, payload = self._take(4), self._take(size)
        return opcode, bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))

    def _take(self, size: int) -> bytes:
        while len(self.received) < size:
            data = self.connection.recv(READ_BYTES)
            if not data:
                raise ConnectionAbortedError
            self.received += data
        taken, self.received = self.received[:size], self.received[size:]
        return taken


def _send_paced(client: Client, order: Order) -> None:
    started_s, started_us = time.monotonic(), time.time_ns() // 1000
    sent = 0
    while sent < order.count:
        due = min(order.count, int((time.monotonic() - started_s) * order.per_s) + 1)
        if due > sent:
            times = [started_us + int(number / order.per_s * 1e6) for number in range(sent, due)]
            client.connection.sendall(order.tape.frames(order.first + sent, order.first + due, times))
            sent = due
        client.answer_pings()
        time.sleep(max(0.0, started_s + sent / order.per_s - time.monotonic(), PACE_S))


def _header(head: bytes, name: bytes) -> bytes:
    found = (line.split(b":", 1)[1].strip() for line in head.split(b"\r\n")[1:] if line.lower().startswith(name))
    return next(found, b"")


def _upgrade(key: bytes) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept
    )


def _rest_answer(path: bytes, tape: Tape) -> bytes:
    known: dict[bytes, object] = {
        b"/api/v3/exchangeInfo": {"symbols": [{"symbol": name, "status": "TRADING"} for name in tape.names]},
        b"/api/v3/trades": [],
    }
    status = b"200 OK" if path in known else b"404 Not Found"
    body = json.dumps(known.get(path, {})).encode()
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


# --- The process ---------------------------------------------------------------------------------------------------


def _blocks(order: Order) -> Iterator[bytes]:
    """Build all that is to be sent, where it is not paced."""
    if not order.per_s:
        stop = order.first + order.count
        for start in range(order.first, stop, FRAMES_AT_ONCE):
            yield order.tape.frames(start, min(start + FRAMES_AT_ONCE, stop))


def main() -> None:
    """Serve one order until stdin ends."""
    parser = argparse.ArgumentParser(description="Send synthetic trades as a loopback exchange.")
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--day", type=int, required=True, help="days since 1970-01-01")
    parser.add_argument("--first", type=int, default=0, help="number of the first trade")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--per-s", type=float, default=0, help="trades a second; 0: as fast as they are taken")
    parser.add_argument("--certificate", help="PEM with key and certificate: serve TLS")
    given = parser.parse_args()
    order = Order(Tape(given.symbols, given.day), given.first, given.count, given.per_s)
    context = None
    if given.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.certificate)
    exchange = Exchange(order, list(_blocks(order)), context)
    listener = socket.create_server(("127.0.0.1", 0))
    tell("listening", port=listener.getsockname()[1])
    threading.Thread(target=exchange.serve, args=(listener,), daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
