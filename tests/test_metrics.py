"""The page for Prometheus: what it says, who gets it, and that its documents and the dashboard know its names."""

import errno
import gzip
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Exchange, Programs, exchange, until
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from tickcollect import metrics
from tickcollect.dataset.replay import GeneratedMarket
from tickcollect.metrics import ANSWERED_AT_ONCE, MetricsError, MetricsServer, Pages, render
from tickcollect.status import ChannelStatus, FeedStatus, Health, Snapshot, UploadStatus, Verdict, judge

ROOT = Path(__file__).resolve().parents[1]
S = 10**9
NOW_NS = 1_790_000_000 * S
FEED = FeedStatus(
    exchange="binance",
    stream="trade",
    symbol="BTCUSDT",
    connected=True,
    rows=12_345_678,
    rows_per_s=123.4,
    last_id=6_103_662_806,
    last_price="64120.01000000",
    lag_ms=12.5,
    last_row_ns=NOW_NS - S // 2,
    open_gaps=2,
    missing_ids=40,
    lost_ids=15,
    copies=3,
    refused=4,
    not_trades=5,
    file="binance/trade/BTCUSDT/BTCUSDT-trade-2026-11-20-6103662806.csv",
    file_bytes=512,
    files_sealed=6,
    note="",
    unknown_since_ns=NOW_NS - 10 * S,
    unknown_reason="disconnected",
)
UPLOAD = UploadStatus(
    store="s3://ticks",
    last_run_ns=NOW_NS - 3600 * S,
    complete=True,
    waiting_files=7,
    waiting_bytes=700,
    oldest_ns=NOW_NS - 60 * S,
    failure="",
)
CHANNEL = ChannelStatus(name="telegram", failing_since_ns=None, error="", sent=8, dropped=9, waiting=10)
SNAPSHOT = Snapshot(
    at_ns=NOW_NS,
    pid=1,
    process="",
    version="1.2.3",
    started_ns=NOW_NS - 86_400 * S,
    state="running",
    data_dir="data",
    feeds=[FEED],
    messages_per_s=250.5,
    queue_rows=12,
    queue_limit=50_000,
    reconnects=2,
    sealing=1,
    disk_free_bytes=120 * 10**9,
    disk_hours_left=2.5,
    problems=[],
    upload=UPLOAD,
    channels=[CHANNEL],
    queue_bytes=7_680,
    queue_limit_bytes=32_000_000,
)
ALIVE = Verdict(Health.WELL, "", ())
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(page: bytes) -> Samples:
    """Read a page as Prometheus does: name and labels to value. No series may be there twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(page.decode("utf-8")):
        for sample in family.samples:
            key = sample.name.removeprefix("tickcollect_"), tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def names(page: bytes) -> set[str]:
    return {name for name, _ in samples(page)}


# --- The page ------------------------------------------------------------------------------------------------------


def test_page_of_a_collector() -> None:
    """Each number of a snapshot is one sample, in seconds and bytes, under its name and labels."""
    feed = (("exchange", "binance"), ("stream", "trade"), ("symbol", "BTCUSDT"))
    channel = (("channel", "telegram"),)
    verdict = Verdict(Health.TROUBLE, "", ("one", "two"))
    assert samples(render(SNAPSHOT, verdict)) == {
        ("build_info", (("version", "1.2.3"),)): 1,
        ("health", ()): 1,
        ("troubles", ()): 2,
        ("start_timestamp_seconds", ()): 1_789_913_600,
        ("snapshot_timestamp_seconds", ()): 1_790_000_000,
        ("messages_per_second", ()): 250.5,
        ("queue_messages", ()): 12,
        ("queue_limit_messages", ()): 50_000,
        ("queue_bytes", ()): 7_680,
        ("queue_limit_bytes", ()): 32_000_000,
        ("reconnects_total", ()): 2,
        ("sealing_files", ()): 1,
        ("disk_free_bytes", ()): 120e9,
        ("disk_left_seconds", ()): 9000,
        ("feed_connected", feed): 1,
        ("feed_rows_total", feed): 12_345_678,
        ("feed_last_row_timestamp_seconds", feed): 1_789_999_999.5,
        ("feed_lag_seconds", feed): 0.0125,
        ("feed_open_gaps", feed): 2,
        ("feed_missing_ids", feed): 40,
        ("feed_lost_ids_total", feed): 15,
        ("feed_unknown", feed): 1,
        ("feed_unknown_since_timestamp_seconds", feed): 1_789_999_990,
        ("feed_copies_total", feed): 3,
        ("feed_refused_total", feed): 4,
        ("feed_not_trades_total", feed): 5,
        ("feed_open_file_bytes", feed): 512,
        ("feed_files_sealed_total", feed): 6,
        ("upload_waiting_files", ()): 7,
        ("upload_waiting_bytes", ()): 700,
        ("upload_oldest_waiting_timestamp_seconds", ()): 1_789_999_940,
        ("upload_last_run_timestamp_seconds", ()): 1_789_996_400,
        ("upload_complete", ()): 1,
        ("channel_failing", channel): 0,
        ("channel_sent_total", channel): 8,
        ("channel_dropped_total", channel): 9,
        ("channel_waiting_messages", channel): 10,
    }


def test_what_is_not_known_has_no_sample() -> None:
    """Nothing is told as 0 that is not known: lag and time before the first row, the disk's end, an upload not made."""
    young = replace(FEED, lag_ms=None, last_row_ns=None, connected=False)
    none_yet = replace(UPLOAD, last_run_ns=None, complete=False, oldest_ns=None, waiting_files=0)
    page = samples(render(replace(SNAPSHOT, feeds=[young], disk_hours_left=None, upload=none_yet), ALIVE))
    told = {name for name, _ in page}
    assert not told & {
        "feed_lag_seconds",
        "feed_last_row_timestamp_seconds",
        "disk_left_seconds",
        "upload_last_run_timestamp_seconds",
        "upload_oldest_waiting_timestamp_seconds",
        "upload_complete",
    }
    assert page["upload_waiting_files", ()] == 0
    assert [value for (name, _), value in page.items() if name == "feed_connected"] == [0]


@pytest.mark.parametrize(
    "upload",
    [None, replace(UPLOAD, last_run_ns=None, complete=False, waiting_files=0, failure="upload.json is damaged")],
)
def test_no_upload_without_a_store(upload: UploadStatus | None) -> None:
    """Where no store is configured, or nothing can be known of it, there is no number of files that wait."""
    page = render(replace(SNAPSHOT, upload=upload, channels=[]), ALIVE)
    assert not {name for name in names(page) if name.startswith(("upload", "channel"))}


def test_failing_channel() -> None:
    """A channel that fails is 1, told by its name; its error, which may hold anything, is not told."""
    failing = replace(CHANNEL, name="ntfy", failing_since_ns=NOW_NS, error="told nowhere")
    page = render(replace(SNAPSHOT, channels=[CHANNEL, failing]), ALIVE)
    assert samples(page)["channel_failing", (("channel", "ntfy"),)] == 1
    assert b"told nowhere" not in page


def test_before_the_first_snapshot() -> None:
    """While the exchange is asked, only the version is told: no zeros that look like a collector without rows."""
    assert names(Pages(lambda: None, lambda: NOW_NS)()) == {"build_info"}


def test_page_is_made_once_for_a_snapshot() -> None:
    """However often it is asked for, a page is made anew only with a new snapshot or another verdict."""
    shown = [SNAPSHOT]
    now_ns = [NOW_NS]
    pages = Pages(lambda: shown[-1], lambda: now_ns[-1])
    first = pages()
    assert pages() is first
    shown.append(replace(SNAPSHOT, reconnects=3))
    second = pages()
    assert samples(second)["reconnects_total", ()] == 3
    assert pages() is second


def test_collector_that_hangs_is_seen() -> None:
    """A page whose snapshot is no longer renewed says so itself: health 2, as `tickcollect status` does."""
    now_ns = [NOW_NS + S]
    pages = Pages(lambda: SNAPSHOT, lambda: now_ns[-1])
    assert samples(pages())["health", ()] == judge(SNAPSHOT, now_ns[-1], pid_alive=True).health == Health.TROUBLE
    now_ns.append(NOW_NS + 60 * S)
    assert samples(pages())["health", ()] == Health.NOT_COLLECTING


HOSTILE = st.text(max_size=30) | st.sampled_from(
    ['"', "\\", "\n", '\\"}', "{}", "币安人生USDT", "\ud800", "\r\n# HELP x y"]
)


@settings(deadline=None)
@given(st.lists(st.tuples(HOSTILE, HOSTILE, HOSTILE), max_size=4), st.lists(HOSTILE, max_size=3))
def test_labels_of_anything(feeds: list[tuple[str, str, str]], channels: list[str]) -> None:
    """Whatever a symbol or channel is called, the page can be read, and its labels are what was put in."""
    seen = replace(
        SNAPSHOT,
        feeds=[replace(FEED, exchange=one, stream=two, symbol=three) for one, two, three in feeds],
        channels=[replace(CHANNEL, name=name) for name in channels],
    )
    page = samples(render(seen, ALIVE))
    told = {tuple(value for _, value in labels) for name, labels in page if name == "feed_rows_total"}
    assert told == {tuple(map(encodable, names)) for names in feeds}
    told = {tuple(value for _, value in labels) for name, labels in page if name == "channel_failing"}
    assert told == {(encodable(name),) for name in channels}


def encodable(text: str) -> str:
    return re.sub("[\ud800-\udfff]", "?", text)


# --- The server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[MetricsServer]:
    """Serve the snapshot on a free port."""
    with closing(MetricsServer("127.0.0.1", 0, lambda: SNAPSHOT, lambda: NOW_NS)) as serving:
        yield serving


def answer(port: int, method: str = "GET", path: str = "/metrics", body: bytes | None = None) -> tuple[int, str, bytes]:
    """Ask once; return status, content type and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()


def sent_back(port: int, data: bytes) -> bytes:
    """Send bytes, and return what comes until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return client.makefile("rb").read()
        except OSError:  # it was ended before
            return b""


def test_served_as_prometheus_wants_it(server: MetricsServer) -> None:
    """A GET of /metrics has the page, in the text format by its content type; a query changes nothing."""
    page = render(SNAPSHOT, judge(SNAPSHOT, NOW_NS, pid_alive=True))
    for path in ("/metrics", "/metrics?name[]=up", "/metrics?"):
        status, kind, served = answer(server.port, path=path)
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert served.startswith(page)


def test_the_process_is_told_of_too(server: MetricsServer) -> None:
    """Behind the collector's own metrics come prometheus_client's of the process: memory, CPU, descriptors."""
    found = {family.name for family in text_string_to_metric_families(answer(server.port)[2].decode())}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"} <= found


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("GZIP ; q=1.0", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("deflate, gzip; q=0.000", False),
        ("xgzip", False),
    ],
)
def test_the_page_is_packed_for_who_takes_it(accepted: str, packed: bool) -> None:  # noqa: FBT001 (a column)
    """Prometheus asks for gzip; the page is the same."""
    with (
        closing(MetricsServer("127.0.0.1", 0, lambda: SNAPSHOT, lambda: NOW_NS)) as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection,
    ):
        connection.request("GET", "/metrics", headers={"Accept-Encoding": accepted})
        response = connection.getresponse()
        body = response.read()
        assert (response.headers["Content-Encoding"] == "gzip") is packed
        page = gzip.decompress(body) if packed else body
        assert page.startswith(render(SNAPSHOT, judge(SNAPSHOT, NOW_NS, pid_alive=True)))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/../status", 404),
        ("POST", "/metrics", 501),
        ("PUT", "/metrics", 501),
        ("HEAD", "/metrics", 501),
        ("OPTIONS", "/metrics", 501),
    ],
)
def test_nothing_else_is_answered(server: MetricsServer, method: str, path: str, status: int) -> None:
    """Other paths and methods are refused, and the next one who asks is served."""
    assert answer(server.port, method, path, b"x" * 1000)[0] == status
    assert answer(server.port)[0] == 200


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"GET\r\n\r\n", b"G" * 100_000, b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n"],
)
def test_garbage(server: MetricsServer, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """What is no request ends its own connection, and is not worth a line in the log."""
    assert b"tickcollect_" not in sent_back(server.port, data)
    assert answer(server.port)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_client_that_goes_away(server: MetricsServer, capfd: pytest.CaptureFixture[str]) -> None:
    """A client that leaves in the middle of an answer is not worth a line either."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert answer(server.port)[0] == 200
    until(lambda: not clients())
    assert capfd.readouterr() == ("", "")


def clients() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def answered(port: int) -> bool:
    """Tell whether a GET is answered; a machine that is busy may be late with a place."""
    try:
        return answer(port)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_few_at_once(server: MetricsServer) -> None:
    """Of many silent clients only a few have a thread; who comes then is served in the place of the first of them."""
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            for _ in range(ANSWERED_AT_ONCE)
        ]
        until(lambda: len(clients()) == ANSWERED_AT_ONCE)
        for turn in range(ANSWERED_AT_ONCE):
            silent[-1].sendall(b"G")  # a byte now and then is no reason to stay
            until(lambda: answered(server.port))
            assert len(clients()) <= ANSWERED_AT_ONCE
            if turn == 0:
                assert silent[0].recv(1) == b""
    until(lambda: not clients())
    assert answer(server.port)[0] == 200


def test_silent_client_is_dropped(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not ask loses its place after a while."""
    assert metrics._Handler.timeout == metrics.PATIENCE_S
    monkeypatch.setattr(metrics._Handler, "timeout", 0.01)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent:
        assert silent.recv(1) == b""


def test_closed_for_good() -> None:
    """After closing the port is free for the next one, and no thread is left."""
    for _ in range(2):
        serving = MetricsServer("127.0.0.1", 0, lambda: None)
        port = serving.port
        assert answer(port)[0] == 200
        serving.close()
        with closing(MetricsServer("127.0.0.1", port, lambda: None)):
            assert answer(port)[0] == 200
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6() -> None:
    """An IPv6 address will do."""
    try:
        serving = MetricsServer("::1", 0, lambda: SNAPSHOT)
    except MetricsError:
        pytest.skip("no ::1 here")
    with closing(serving), socket.create_connection(("::1", serving.port), timeout=60) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"tickcollect_health" in client.makefile("rb").read()


def test_port_in_use(server: MetricsServer) -> None:
    """A port that another process has is one line that says what to set."""
    expected = (
        f"cannot serve metrics at 127.0.0.1, port {server.port}: Address already in use. Another process listens "
        "there, perhaps another collector: set another METRICS_PORT."
    )
    with pytest.raises(MetricsError) as told:
        MetricsServer("127.0.0.1", server.port, lambda: None)
    assert str(told.value) == expected


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid", "a..b", "\ud800"])
def test_address_of_no_use(host: str) -> None:
    """An address that is not this machine's, or none at all, is one line that says what to set."""
    with pytest.raises(MetricsError, match="Set METRICS_ADDRESS to an address of this machine") as told:
        MetricsServer(host, 0, lambda: None)
    assert "\n" not in str(told.value)


def test_port_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that only root may have is told as such."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(MetricsError, match=r"Permission denied\. Ports below 1024 are for root"):
        MetricsServer("127.0.0.1", 80, lambda: None)


# --- With the collector --------------------------------------------------------------------------------------------


@pytest.fixture
def market() -> Iterator[Exchange]:
    """Serve a market that never ends."""
    with exchange(GeneratedMarket("binance", 1_784_000_000_000, symbols=2, activity=60)) as served:
        yield served


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def scraped(port: int) -> Samples:
    """Return what the collector tells; nothing while it does not listen yet."""
    try:
        return samples(answer(port)[2])
    except ConnectionError:
        return {}


def test_collector_serves_metrics(programs: Programs, market: Exchange, tmp_path: Path) -> None:
    """While it collects, rows rise and the feed is connected; with it, the port is gone."""
    port = free_port()
    env = {"TICKCOLLECT_METRICS_PORT": str(port), "TICKCOLLECT_UPLOAD_TO": f"file://{tmp_path}/backup"}
    run = programs.start("run", "--symbol", "BTCUSDT", "--data-dir", tmp_path / "data", *market.addresses, env=env)
    feed = (("exchange", "binance"), ("stream", "trade"), ("symbol", "BTCUSDT"))
    run.until(lambda: scraped(port).get(("feed_rows_total", feed), 0) > 0)
    run.until(lambda: scraped(port).get(("upload_waiting_files", ())) is not None)
    seen = scraped(port)
    assert seen["feed_connected", feed] == 1
    assert seen["queue_limit_messages", ()] == 50_000
    assert seen["feed_rows_total", feed] > 0
    assert run.stop().code == 0
    assert scraped(port) == {}


def test_collector_whose_port_is_taken(programs: Programs, market: Exchange, server: MetricsServer) -> None:
    """A METRICS_PORT that is taken is a mistake in the configuration: one line, exit code 2, nothing collected."""
    env = {"TICKCOLLECT_METRICS_PORT": str(server.port)}
    ended = programs.run("run", "--symbol", "BTCUSDT", *market.addresses, env=env)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "Another process listens there" in ended.err
    assert not (programs.folder / "data" / "binance").exists()


# --- The documents -------------------------------------------------------------------------------------------------


def exported() -> dict[str, tuple[str, list[str]]]:
    """Return every metric's type and labels, by its name."""
    found = {}
    page = render(SNAPSHOT, ALIVE).decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found[sample.name] = (family.type, sorted(sample.labels))
    return found


def used(expressions: str) -> set[str]:
    return set(re.findall(r"\btickcollect_\w+", expressions))


def test_document_tells_every_metric() -> None:
    """docs/metrics.md lists exactly the metrics that are served, with their types and labels."""
    document = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", document, re.MULTILINE)
    assert len(told) == len({name for name, _, _ in told})
    assert {name: (kind, sorted(re.findall(r"\w+", labels))) for name, kind, labels in told} == exported()


def test_names_follow_the_rules() -> None:
    """Counters, and only they, end in `_total`; times and sizes carry their base unit; no label is unbounded."""
    for name, (kind, labels) in exported().items():
        assert (kind == "counter") == name.endswith("_total")
        assert not re.search(r"_(ms|ns|hours|kb|mb|percent)(_|$)", name)
        assert set(labels) <= {"exchange", "stream", "symbol", "channel", "version"}


def panels() -> list[dict[str, Any]]:
    board = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = board["panels"]
    return found


def test_dashboard_uses_what_is_there() -> None:
    """Every query of the dashboard is about metrics that are served, filtered by labels that they have."""
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    assert len(queries) > 20
    metrics_there = exported()
    for query in queries:
        assert used(query), query
        for name, matchers in re.findall(r"(tickcollect_\w+)\{([^}]*)\}", query):
            filtered = set(re.findall(r"(\w+)=~", matchers)) - {"instance"}
            assert filtered <= set(metrics_there[name][1]), query
        assert used(query) <= metrics_there.keys(), query
    for asked in ("rows_total", "lag", "gaps", "missing", "connected", "disk", "queue", "upload_waiting", "channel"):
        assert any(asked in query for query in queries), asked


def test_dashboard_can_be_imported() -> None:
    """The dashboard asks for a data source and names no other, its variables exist, and no panel covers another."""
    text = (ROOT / "deploy" / "grafana-dashboard.json").read_text(encoding="utf-8")
    board = json.loads(text)
    assert {"uid", "title", "schemaVersion", "panels", "templating"} <= board.keys()
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"${datasource}", board["uid"]}
    assert set(re.findall(r"=~\\\"\$(\w+)", text)) <= variables.keys()
    for variable in variables.values():
        assert used(str(variable["query"])) <= exported().keys()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_rules_use_what_is_there() -> None:
    """The eight alert rules are about metrics that are served, and each says what it means and what to do."""
    rules = (ROOT / "deploy" / "prometheus-rules.yml").read_text(encoding="utf-8")
    expressions = re.findall(r"^        expr: (.+)$", rules, re.MULTILINE)
    assert len(expressions) == len(re.findall(r"^      - alert: Tickcollect\w+$", rules, re.MULTILINE)) == 8
    assert used(" ".join(expressions)) <= exported().keys()
    for part in ("for", "severity", "summary", "description"):
        assert len(re.findall(rf"^ +{part}: ", rules, re.MULTILINE)) == 8
