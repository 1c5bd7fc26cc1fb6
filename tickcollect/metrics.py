"""Metrics for Prometheus: the newest snapshot as text, to whoever asks with a GET.

    collector ──Snapshot (once a second)──▶ newest() ──▶ render ──▶ GET /metrics

Rules:

1. What is told is the snapshot that the status file holds too, and `status.judge` on it; nothing is counted here. The
   page is made at most once for each snapshot, however many ask, so that asking costs the collector next to nothing.
2. Names begin with `tickcollect_`, units are base units (seconds, bytes), counters end in `_total` and count from the
   collector's start. Labels are exchange, stream and symbol, or the channel's name: as many series as are configured.
   What is not known has no sample. docs/metrics.md lists them all.
3. Nothing that comes in is interpreted beyond `GET /metrics` and whether it takes gzip. Few are answered at once: while
   all places are taken, who comes takes the place of whoever has held one longest. So clients that send a byte now and
   then keep nobody out, and a stranger on the port takes nothing from collecting.
4. No secret has a metric or a label.

What the process itself takes (`process_*`) is added by prometheus_client's own collector.

The text format is Prometheus' own ("Exposition formats", version 0.0.4), made by prometheus_client. Its server is not
used: it reads queries, waits for silent clients for ever and looks its own name up in the DNS. It is imported where the
page is made, because most commands need none.
"""

import errno
import gzip
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tickcollect import __version__
from tickcollect.status import ChannelStatus, FeedStatus, Health, Snapshot, UploadStatus, Verdict, judge

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PATH = "/metrics"
PREFIX = "tickcollect_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ANSWERED_AT_ONCE = 8
"""A Prometheus server asks with one connection at a time."""
GZIP_LEVEL = 1
"""A page of 500 feeds becomes a twentieth of its size in a few milliseconds; more effort gains little."""
CLOSED_WITHIN_S = 0.1
PATIENCE_S = 10.0
"""How long a client may neither send nor take anything."""

Thing = TypeVar("Thing")


class MetricsError(Exception):
    """The metrics cannot be served there; the message is one line for a person."""


# --- What is told --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told(Generic[Thing]):
    """One metric of a thing; a name that ends in `_total` is a counter's, any other a gauge's."""

    name: str
    meaning: str
    value: Callable[[Thing], float | None]
    """None: not known, so there is no sample."""


OF_THE_COLLECTOR: tuple[Told[Snapshot], ...] = (
    Told("start_timestamp_seconds", "When the collector started.", lambda one: one.started_ns / 1e9),
    Told("snapshot_timestamp_seconds", "When these numbers were taken.", lambda one: one.at_ns / 1e9),
    Told("messages_per_second", "Messages received, over the last seconds.", lambda one: one.messages_per_s),
    Told("queue_messages", "Messages received and not yet written.", lambda one: one.queue_rows),
    Told("queue_limit_messages", "At this many it stops reading from the exchange.", lambda one: one.queue_limit),
    Told("queue_bytes", "What they take in memory.", lambda one: one.queue_bytes),
    Told("queue_limit_bytes", "At this much, too, it stops reading.", lambda one: one.queue_limit_bytes),
    Told("reconnects_total", "Connections made again.", lambda one: one.reconnects),
    Told("sealing_files", "Segments that wait to be packed.", lambda one: one.sealing),
    Told("disk_free_bytes", "Free where the data directory is.", lambda one: one.disk_free_bytes),
    Told("disk_left_seconds", "Until the disk is full at the present rate.", lambda one: _seconds(one.disk_hours_left)),
)

OF_A_FEED: tuple[Told[FeedStatus], ...] = (
    Told("feed_connected", "1 while at least one connection carries the feed.", lambda feed: feed.connected),
    Told("feed_rows_total", "Rows written.", lambda feed: feed.rows),
    Told("feed_last_row_timestamp_seconds", "When the last row arrived.", lambda feed: _at(feed.last_row_ns)),
    Told(
        "feed_lag_seconds",
        "Clock at arrival minus the exchange's event time, of the last live row.",
        lambda feed: None if feed.lag_ms is None else feed.lag_ms / 1000,
    ),
    Told("feed_open_gaps", "Gaps that are neither filled nor given up.", lambda feed: feed.open_gaps),
    Told("feed_lost_ids_total", "IDs that nobody can give any more.", lambda feed: feed.lost_ids),
    Told("feed_missing_ids", "IDs known to be missing: of open gaps, and lost.", lambda feed: feed.missing_ids),
    Told(
        "feed_unknown",
        "1 while it is not known whether IDs are missing, however few feed_missing_ids says.",
        lambda feed: feed.unknown_since_ns is not None,
    ),
    Told(
        "feed_unknown_since_timestamp_seconds",
        "Since when it is not known whether IDs are missing.",
        lambda feed: _at(feed.unknown_since_ns),
    ),
    Told("feed_copies_total", "Messages dropped because their row was there.", lambda feed: feed.copies),
    Told("feed_refused_total", "Messages that cannot be right, kept in quarantine.", lambda feed: feed.refused),
    Told("feed_not_trades_total", "Placeholders and internal fills of the futures.", lambda feed: feed.not_trades),
    Told("feed_open_file_bytes", "Size of the open segment; 0 when none is open.", lambda feed: feed.file_bytes),
    Told("feed_files_sealed_total", "Segments packed and verified.", lambda feed: feed.files_sealed),
)

OF_THE_UPLOAD: tuple[Told[UploadStatus], ...] = (
    Told("upload_waiting_files", "Sealed files not in the store, as far as is known.", lambda one: one.waiting_files),
    Told("upload_waiting_bytes", "Size of the sealed files not in the store.", lambda one: one.waiting_bytes),
    Told(
        "upload_oldest_waiting_timestamp_seconds",
        "When the first of the files that wait came.",
        lambda one: _at(one.oldest_ns),
    ),
    Told("upload_last_run_timestamp_seconds", "When the last run ended.", lambda one: _at(one.last_run_ns)),
    Told(
        "upload_complete",
        "1 when the last run has left nothing behind.",
        lambda one: None if one.last_run_ns is None else one.complete,
    ),
)

OF_A_CHANNEL: tuple[Told[ChannelStatus], ...] = (
    Told("channel_failing", "1 while no alert can be sent.", lambda channel: channel.failing_since_ns is not None),
    Told("channel_sent_total", "Messages sent.", lambda channel: channel.sent),
    Told("channel_dropped_total", "Messages given up.", lambda channel: channel.dropped),
    Told("channel_waiting_messages", "Messages not sent yet.", lambda channel: channel.waiting),
)

OF_THE_VERDICT: tuple[Told[Verdict], ...] = (
    Told(
        "health",
        "The exit code of `tickcollect status`: 0 well, 1 with trouble, 2 not collecting.",
        lambda verdict: verdict.health,
    ),
    Told("troubles", "Lines of trouble that `tickcollect status` shows.", lambda verdict: len(verdict.troubles)),
)


FEED_LABELS = ("exchange", "stream", "symbol")


def _at(then_ns: int | None) -> float | None:
    return None if then_ns is None else then_ns / 1e9


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * 3600


# --- The page ------------------------------------------------------------------------------------------------------


def render(snapshot: Snapshot | None, verdict: Verdict | None) -> bytes:
    """Return the page for a snapshot and the verdict on it; before the first snapshot, the version alone."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - see the module's docstring

    registry = CollectorRegistry()
    registry.register(_Page(snapshot, verdict))
    return generate_latest(registry)


def _of_the_process() -> bytes:
    """Return what the process takes of the machine; empty where /proc does not tell."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest  # noqa: PLC0415 - see above

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return generate_latest(registry)


@dataclass(frozen=True, eq=False)
class _Page:
    """A collector in prometheus_client's sense: what the registry asks for the metrics."""

    snapshot: Snapshot | None
    verdict: Verdict | None

    def collect(self) -> "Iterator[Metric]":
        """Yield all metrics."""
        from prometheus_client.core import InfoMetricFamily  # noqa: PLC0415 - see the module's docstring

        version = __version__ if self.snapshot is None else self.snapshot.version
        yield InfoMetricFamily(f"{PREFIX}build", "Which tickcollect this is.", {"version": version})
        if self.verdict is not None:
            yield from _families(OF_THE_VERDICT, (), {(): self.verdict})
        if self.snapshot is None:
            return
        yield from _families(OF_THE_COLLECTOR, (), {(): self.snapshot})
        feeds: dict[tuple[str, ...], FeedStatus] = {
            (feed.exchange, feed.stream, feed.symbol): feed for feed in self.snapshot.feeds
        }
        yield from _families(OF_A_FEED, FEED_LABELS, feeds)
        if self.snapshot.upload is not None and self.snapshot.upload.known:
            yield from _families(OF_THE_UPLOAD, (), {(): self.snapshot.upload})
        yield from _families(OF_A_CHANNEL, ("channel",), {(one.name,): one for one in self.snapshot.channels})


def _families(
    told: Sequence[Told[Thing]], labels: Sequence[str], things: Mapping[tuple[str, ...], Thing]
) -> "Iterator[Metric]":
    """Yield a family for each metric that things, by their labels' values, have."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - see above

    values = {tuple(map(_encodable, texts)): thing for texts, thing in things.items()}
    for one in told if things else ():
        kind = CounterMetricFamily if one.name.endswith("_total") else GaugeMetricFamily
        family = kind(f"{PREFIX}{one.name}", one.meaning, labels=labels)
        for texts, thing in values.items():
            value = one.value(thing)
            if value is not None:
                family.add_metric(texts, value)
        yield family


def _encodable(text: str) -> str:
    """Replace what UTF-8 cannot hold: half a character, from a name that was not decoded."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Pages:
    """Makes the page, once for each snapshot and verdict; any thread may ask, and calls `newest` and the clock."""

    def __init__(self, newest: Callable[[], Snapshot | None], time_ns: Callable[[], int]) -> None:
        self._newest = newest
        self._time_ns = time_ns
        self._one_at_a_time = threading.Lock()
        self._made: tuple[Snapshot, Health, int] | None = None
        self._page = render(None, None)
        self._packed = b""

    def __call__(self) -> bytes:
        """Return the page of now."""
        with self._one_at_a_time:
            return self._current()

    def packed(self) -> bytes:
        """Return the page of now, in gzip."""
        with self._one_at_a_time:
            page = self._current()
            self._packed = self._packed or gzip.compress(page, GZIP_LEVEL)
            return self._packed

    def _current(self) -> bytes:
        snapshot = self._newest()
        if snapshot is None:
            return self._page
        verdict = judge(snapshot, self._time_ns(), pid_alive=True)
        health, troubles = verdict.health, len(verdict.troubles)
        if self._made is None or self._made[0] is not snapshot or self._made[1:] != (health, troubles):
            self._page = render(snapshot, verdict) + _of_the_process()
            self._packed = b""
            self._made = (snapshot, health, troubles)
        return self._page


# --- The server ----------------------------------------------------------------------------------------------------

REMEDIES = {
    errno.EADDRINUSE: "Another process listens there, perhaps another collector: set another METRICS_PORT.",
    errno.EACCES: "Ports below 1024 are for root: set a higher METRICS_PORT.",
}


class MetricsServer:
    """Serves the page at `host`:`port` from a thread of its own until `close`; port 0 takes a free one.

    Raises `MetricsError`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        newest: Callable[[], Snapshot | None],
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(family, (str(place[0]), int(place[1])), Pages(newest, time_ns))
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
            number = error.errno if isinstance(error, OSError) else None
            remedy = REMEDIES.get(number or 0, "Set METRICS_ADDRESS to an address of this machine.")
            raise MetricsError(f"cannot serve metrics at {host}, port {port}: {reason}. {remedy}") from error
        self.port: int = self._server.server_address[1]
        work = partial(self._server.serve_forever, CLOSED_WITHIN_S)
        self._thread = threading.Thread(target=work, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; an answer that is on its way may still arrive."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingTCPServer):
    """Answers each client in a thread of its own, `ANSWERED_AT_ONCE` of them."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, family: socket.AddressFamily, place: tuple[str, int], pages: Pages) -> None:
        self.address_family = family
        self.pages = pages
        self._places = threading.BoundedSemaphore(ANSWERED_AT_ONCE)
        self._clients: dict[socket.socket, None] = {}
        """Those that hold a place, the longest first."""
        self._changing = threading.Lock()
        super().__init__(place, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client; send it away if no place becomes free, or no thread can be had."""
        if not self._places.acquire(blocking=False):
            self._end_longest()
            if not self._places.acquire(timeout=CLOSED_WITHIN_S):
                self.shutdown_request(request)
                return
        with self._changing:
            self._clients[request] = None
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._leave(request)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def shutdown_request(self, request: Any) -> None:
        """End a connection, which nobody may end a second time: its descriptor may then be another's."""
        with self._changing:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def _leave(self, request: Any) -> None:
        with self._changing:
            self._clients.pop(request, None)
        self._places.release()

    def _end_longest(self) -> None:
        """End the connection that has held a place longest; its thread then gives the place back."""
        with self._changing:
            longest = next(iter(self._clients), None)
            if longest is not None:
                del self._clients[longest]
                with suppress(OSError):
                    longest.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


TAKES_GZIP = re.compile(r"(?:^|[,\s])gzip\s*(?:,|$|;\s*q=(?!0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE)
"""An Accept-Encoding (RFC 9110, 12.5.3) that names gzip, and not with the weight 0."""


class _Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.0: one request, one answer, and the connection ends."""

    server: _Server
    timeout = PATIENCE_S
    server_version = "tickcollect"
    sys_version = ""

    def do_GET(self) -> None:
        """Send the page."""
        if self.path.partition("?")[0] != PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        takes_gzip = TAKES_GZIP.search(self.headers.get("Accept-Encoding", "")) is not None
        page = self.server.pages.packed() if takes_gzip else self.server.pages()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", CONTENT_TYPE)
        if takes_gzip:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        """Log nothing."""
