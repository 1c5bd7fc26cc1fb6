"""An HTTP server on loopback whose answers a test writes down beforehand: the ground of the fakes in this folder."""

import contextlib
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

POLL_S = 0.02


@dataclass(frozen=True)
class Answer:
    """One answer. `hang` and `reset` say what becomes of the connection instead of, or after, the request."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    instead: Literal["", "hang", "reset"] = ""


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    path: str
    content_type: str
    body: bytes


@dataclass
class Site:
    """What a server does: the answers written down come first, then `respond` decides.

    Let it hang with `Answer(instead="hang")`; the connection is held until the client leaves or the server ends.
    """

    respond: Callable[[Request], Answer]
    scripted: deque[Answer] = field(default_factory=deque)
    always: Answer | None = None
    """The same answer to everything, for as long as it is set."""
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    _server: "_Server | None" = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: Request) -> Answer:
        """Return what a request gets."""
        self.requests.append(request)
        if self.always is not None:
            return self.always
        return self.scripted.popleft() if self.scripted else self.respond(request)

    def leave(self) -> None:
        """Refuse connections from now on, as a machine does on which nothing listens."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def come_back(self) -> None:
        """Listen again at the same port."""
        self._server = _Server(("127.0.0.1", self.port), self)
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), daemon=True).start()


class _Conversation(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        site = self.server.site
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = site.answer(Request(self.path, self.headers.get("Content-Type", ""), body))
        if answer.instead:
            self._end(answer.instead)
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_POST = do_GET  # noqa: N815 - the library looks for this name

    def _end(self, how: Literal["hang", "reset"]) -> None:
        self.close_connection = True
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.connection.settimeout(POLL_S)
        while not self.server.site.ended.is_set():
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1, socket.MSG_PEEK):
                    return

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, address: tuple[str, int], site: Site) -> None:
        super().__init__(address, _Conversation)
        self.site = site
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        with contextlib.suppress(OSError):
            super().shutdown_request(request)

    def server_close(self) -> None:
        """Close every connection too: a kept one would be read for ever."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing where the client left."""
        if not isinstance(sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        site.port = free.getsockname()[1]
    site.come_back()
    try:
        yield site
    finally:
        site.ended.set()
        with contextlib.suppress(OSError):
            site.leave()
