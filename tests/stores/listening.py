"""An HTTP server on loopback whose answers a test decides: the ground on which the proxy and the bad store stand.

It speaks HTTP/1.1 with kept connections, plain or inside TLS, one thread a connection. It can do to a connection what a
network does: reset it, end it, or let it hang until the client gives up.
"""

import contextlib
import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.client import responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK_BYTES = 16 * 1024
POLL_MS = 50

STEPS: tuple[tuple[str, str, str], ...] = (
    ("create", "POST", "uploads"),
    ("complete", "POST", "uploadId"),
    ("part", "PUT", "partNumber"),
    ("abort", "DELETE", "uploadId"),
    ("uploads", "GET", "uploads"),
    ("parts", "GET", "uploadId"),
    ("list", "GET", "list-type"),
    ("put", "PUT", ""),
    ("head", "HEAD", ""),
    ("get", "GET", ""),
    ("delete", "DELETE", ""),
)
"""Each step of the protocol: its method, and the word in the query that tells it from the others of that method."""


class Conversation(BaseHTTPRequestHandler):
    """One connection; the request at hand is read by `chunks` or `body` and answered once."""

    protocol_version = "HTTP/1.1"
    server: "Listening"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Begin."""
        super().setup()
        self._promised = False

    @property
    def query(self) -> dict[str, str]:
        """What stands behind the question mark."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}

    @property
    def key(self) -> str:
        """The object's name; empty for the bucket itself."""
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    @property
    def step(self) -> str:
        """Which step of the protocol this request is."""
        return next(step for step, method, word in STEPS if method == self.command and word in {"", *self.query})

    @property
    def length(self) -> int:
        """How many bytes the body has, as the head says."""
        return int(self.headers.get("Content-Length") or 0)

    def handle_expect_100(self) -> bool:
        """Leave it to whoever reads the body to ask for it: a refusal may come before."""
        self._promised = True
        return True

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it comes. Where it is sent in HTTP's own chunks, their framing is taken off."""
        self.ask_for_body()
        if self.is_chunked:
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = self.length
        while left and (data := self.rfile.read1(min(left, CHUNK_BYTES))):
            left -= len(data)
            yield data

    @property
    def is_chunked(self) -> bool:
        """The body comes in HTTP's chunks, and the head does not say how long it is."""
        return str(self.headers.get("Transfer-Encoding", "")).lower() == "chunked"

    @property
    def waits_for_100(self) -> bool:
        """The client sends the body only when it is asked to."""
        return self._promised

    def ask_for_body(self) -> None:
        """Send the `100 Continue` that the client may be waiting for."""
        if self._promised:
            self._promised = False
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def body(self) -> bytes:
        """Read the whole body."""
        return b"".join(self.chunks())

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Answer; a body that was never asked for ends the connection with it."""
        self.wfile.write(self.encoded(status, headers or {}, body))

    def encoded(self, status: int, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return an answer's bytes."""
        lines = {"Content-Length": str(len(body)), **headers}
        if self._promised:
            self._promised, self.close_connection = False, True
            lines["Connection"] = "close"
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        content = b"" if self.command == "HEAD" else body
        return f"HTTP/1.1 {status} {responses.get(status, 'Unknown')}\r\n{head}\r\n".encode() + content

    def refuse(self, status: int, code: str, message: str = "refused by the test's store") -> None:
        """Answer with an error as S3 writes it. `HEAD` has no body, so there the status alone must do."""
        text = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.answer(status, {"Content-Type": "application/xml"}, text.encode())

    def reset(self) -> None:
        """Reset the connection: what is on its way is lost on both sides."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket(fileno=self.connection.detach()).close()

    def cut(self) -> None:
        """End the connection as if all were said; what still comes is read and thrown away."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_WR)
            while self.connection.recv(CHUNK_BYTES):
                pass

    def hang(self) -> None:
        """Say and read nothing until the client gives up, or the server stops."""
        self.close_connection = True
        gone = select.poll()
        gone.register(self.connection.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        while not self.server.stopping.is_set() and not gone.poll(POLL_MS):
            pass

    def handle_one_request(self) -> None:
        """Read one request and have it answered; the names of methods are no matter here."""
        self._promised = False
        self.raw_requestline = self.rfile.readline(65_537)
        if not self.raw_requestline:
            self.close_connection = True
        elif self.parse_request():
            self.server.take(self)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""


class Listening(ThreadingHTTPServer):
    """A server that is at work; `take` answers a request. Its mistakes are raised where it is stopped."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, take: Callable[[Conversation], None], tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.take = take
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._mistakes: list[BaseException] = []
        self._lock = threading.Lock()
        self.endpoint = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.server_port}"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.02,), name="store").start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take one connection."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget one that has ended."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep a mistake of this server; a client that went away is none."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self._mistakes.append(error)

    def stop(self) -> None:
        """End the server, its connections and its threads."""
        self.stopping.set()
        self.shutdown()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)
        self.server_close()
        if self._mistakes:
            raise self._mistakes[0]


def authority(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what a server needs to be trusted at 127.0.0.1, and the authority's certificate for AWS_CA_BUNDLE."""
    import trustme

    made = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("127.0.0.1").configure_cert(context)
    path = folder / "authority.pem"
    made.cert_pem.write_to_path(str(path))
    return context, path


@contextlib.contextmanager
def listening(take: Callable[[Conversation], None], tls: ssl.SSLContext | None = None) -> Iterator[Listening]:
    """Answer requests with `take` at a free port until the block ends."""
    server = Listening(take, tls)
    try:
        yield server
    finally:
        server.stop()
