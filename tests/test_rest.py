"""`rest` against real HTTP servers on loopback that answer as scripted; the budget against a model of the exchange."""

import asyncio
import contextlib
import gc
import gzip
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickcollect.budget import Budget, Purpose
from tickcollect.rest import (
    BadAnswerError,
    BadRequestError,
    BannedError,
    BlockedError,
    CertificateError,
    Clock,
    CutAnswerError,
    ForbiddenError,
    NotAdmittedError,
    Rest,
    RestError,
    ServerTroubleError,
    UnreachableError,
)

MINUTE_START_S = 1_784_000_040.0
"""A wall-clock time at the start of a UTC minute."""


# --- A clock that passes only by waiting, and a server that follows a script -----------------------------------------


@dataclass
class FakeTime:
    now_s: float = MINUTE_START_S
    slept_s: list[float] = field(default_factory=list)

    def clock(self) -> Clock:
        return Clock(wall=lambda: self.now_s, monotonic=lambda: self.now_s - MINUTE_START_S, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


Answer = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Served:
    url: str
    requests: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def serve(*answers: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    """Answer the n-th request with the n-th answer, and all later ones with the last."""
    served = Served("")
    connections: list[asyncio.Task[None] | None] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            served.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            answer = answers[min(len(served.requests), len(answers)) - 1]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, ssl=tls)
    async with server:
        served.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield served
    await asyncio.gather(*filter(None, connections))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the other tasks have brought something about."""
    while not condition():  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0)


def http(status: int, body: bytes = b"{}", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


OK = http(200, b'{"ok":true}')

UNVERIFIED_NAMES = ssl.create_default_context()
"""Made once: reading the system's certificates takes longer than a request."""


def rest(url: str, time: FakeTime, budget: Budget | None = None, **options: Any) -> Rest:
    options.setdefault("ssl_context", UNVERIFIED_NAMES)
    return Rest(url, budget=budget or Budget(6000), clock=time.clock(), **options)


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 20))


def failure(*answers: Answer, **options: Any) -> tuple[RestError, Served, FakeTime]:
    """Return the error that one GET ends in, what the server saw, and how the time passed."""
    time = FakeTime()
    caught: list[RestError] = []
    seen: list[Served] = []

    async def story() -> None:
        async with serve(*answers) as server, rest(server.url, time, **options) as client:
            seen.append(server)
            with pytest.raises(RestError) as error:
                await client.get("/api/v3/time", weight=1, timeout_s=10)
            caught.append(error.value)

    run(story())
    return caught[0], seen[0], time


async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Say nothing until the client goes."""
    await reader.read()


async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body that never ends, one byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


# --- Asking --------------------------------------------------------------------------------------------------------


def test_a_good_answer_is_returned_as_sent() -> None:
    """The body comes back byte for byte; path, parameters, headers and user agent reach the exchange."""

    async def story() -> None:
        body = b' [{"a":1,"p":"0.10"}]\n'
        async with serve(http(200, body)) as server, rest(server.url, FakeTime(), user_agent="ticks/1") as client:
            answer = await client.get(
                "/api/v3/trades", {"symbol": "币安BTC", "limit": 5}, weight=25, headers={"X-MBX-APIKEY": "k"}
            )
            assert answer == body
            request = server.requests[0].lower()
            assert request.startswith("get /api/v3/trades?symbol=%e5%b8%81%e5%ae%89btc&limit=5 http/1.1\r\n")
            assert "x-mbx-apikey: k\r\n" in request
            assert "user-agent: ticks/1\r\n" in request

    run(story())


def test_a_compressed_answer_is_unpacked() -> None:
    """Gzip, the only compression asked for, is undone."""

    async def story() -> None:
        packed = http(200, gzip.compress(b"[1]"), Content_Encoding="gzip")
        async with serve(packed) as server, rest(server.url, FakeTime()) as client:
            assert await client.get("/x", weight=1) == b"[1]"
            assert "accept-encoding: gzip\r\n" in server.requests[0].lower()

    run(story())


REFUSALS: dict[str, tuple[bytes, type[RestError], int | None, str]] = {
    "unknown symbol": (
        http(400, b'{"code":-1121,"msg":"Invalid symbol."}'), BadRequestError, -1121, "code -1121: Invalid symbol."
    ),
    "window passed": (http(400, b'{"code":-4166,"msg":"Search window"}'), BadRequestError, -4166, "Search window"),
    "wrong path": (http(404, b"<html>"), BadRequestError, None, "HTTP 404"),
    "firewall": (http(403, b"<html>denied</html>"), ForbiddenError, None, "firewall"),
    "country": (http(451, b'{"code":0,"msg":"restricted location"}'), BlockedError, 0, "data-api.binance.vision"),
    "broken": (http(500, b"oops"), ServerTroubleError, None, "HTTP 500"),
    "overloaded": (http(503, b""), ServerTroubleError, None, "worth trying again"),
    "slow backend": (http(408, b"{}"), ServerTroubleError, None, "HTTP 408"),
    "timeout by code": (http(400, b'{"code":-1007,"msg":"Timeout"}'), ServerTroubleError, -1007, "Timeout"),
    "rate by code": (http(400, b'{"code":-1003,"msg":"Too much"}'), BannedError, -1003, "Too much"),
    "redirect": (http(302, b"", Location="http://10.0.0.1/admin"), BadAnswerError, None, "http://10.0.0.1/admin"),
    "empty": (http(200, b""), BadAnswerError, None, "not JSON"),
    "login page": (http(200, b"<html>Welcome to the hotel</html>"), BadAnswerError, None, "login page"),
    "half JSON": (http(200, b'[{"a":1'), BadAnswerError, None, "not JSON"),
    "no content": (http(204, b""), BadAnswerError, None, "HTTP 204"),
    "too large": (http(200, b"[" + b" " * 5000 + b"]"), BadAnswerError, None, "larger than 4096 bytes"),
    "redirect to no address": (http(302, b"", Location="http://xn--/"), BadAnswerError, None, "no address"),
    "redirect without a host": (http(307, b"", Location="javascript:1"), BadAnswerError, None, "no address"),
    "nested refusal": (http(400, b'{"code":' * 100_000), BadRequestError, None, "HTTP 400"),
    "nested reason": (
        http(400, b'{"code":-1,"msg":' + b"[" * 900 + b"]" * 900 + b"}"), BadRequestError, -1, "HTTP 400, code -1. "
    ),
    "code without end": (http(400, b'{"code":' + b"9" * 4000 + b"}"), BadRequestError, None, "HTTP 400. "),
    "control characters": (http(400, b'{"code":-1,"msg":"a\\u001b[2Jb"}'), BadRequestError, -1, "a?[2Jb"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", UnreachableError, None, "not HTTP"),
    "closed at once": (b"", UnreachableError, None, "closed"),
    "cut by length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[1,", CutAnswerError, None, "ended before it was whole"
    ),
    "cut in a chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1,", CutAnswerError, None, "ended before"
    ),
    "broken gzip": (http(200, b"no gzip", Content_Encoding="gzip"), CutAnswerError, None, "ended before"),
    "cut refusal": (b"HTTP/1.1 451 No\r\nContent-Length: 100\r\n\r\n{", BlockedError, None, "HTTP 451"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_each_bad_answer_has_its_own_error(name: str) -> None:
    """The type tells what kind of trouble it is; the text names address, status, reason and remedy."""
    answer, kind, code, words = REFUSALS[name]
    error, server, _ = failure(answer, retry_delays_s=(), body_bytes_max=4096)
    assert type(error) is kind
    assert error.code == code
    assert words in str(error)
    assert str(error).startswith(server.url.removeprefix("http://") + "/api/v3/time: ")
    assert str(error).endswith(".")


def test_nothing_listens() -> None:
    """A refused connection is told as such."""

    async def story() -> None:
        async with serve(OK) as server:
            pass
        async with rest(server.url, FakeTime(), retry_delays_s=()) as client:
            with pytest.raises(UnreachableError, match="Connection refused"):
                await client.get("/x", weight=1)

    run(story())


def test_a_host_that_does_not_exist() -> None:
    """A name that DNS does not know is told as such."""

    async def story() -> None:
        async with rest("http://no-such-host.invalid", FakeTime(), retry_delays_s=()) as client:
            with pytest.raises(UnreachableError, match="name of the host is not known"):
                await client.get("/x", weight=1)

    run(story())


@pytest.mark.parametrize(("answer", "kind"), [(hang, UnreachableError), (drip, CutAnswerError)])
def test_the_deadline_bounds_the_whole_answer(answer: Answer, kind: type[RestError]) -> None:
    """Neither silence nor an endless trickle holds a request beyond its time."""

    async def story() -> None:
        async with serve(answer) as server, rest(server.url, FakeTime(), retry_delays_s=()) as client:
            with pytest.raises(kind):
                await client.get("/x", weight=1, timeout_s=0.2)

    run(story())


# --- Repeating -----------------------------------------------------------------------------------------------------


def test_passing_trouble_is_repeated_until_it_is_over() -> None:
    """A closed connection, a 503 and a cut answer are each repeated after the policy's next delay."""

    async def story() -> None:
        time = FakeTime()
        cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1"
        async with serve(b"", http(503), cut, OK) as server, rest(server.url, time) as client:
            assert await client.get("/x", weight=1) == b'{"ok":true}'
            assert len(server.requests) == 4
            assert time.slept_s == [1.0, 3.0, 10.0]

    run(story())


def test_repeating_has_an_end() -> None:
    """After the last delay the last error is raised."""
    error, server, time = failure(http(502), retry_delays_s=(0.5, 0.7))
    assert isinstance(error, ServerTroubleError)
    assert len(server.requests) == 3
    assert time.slept_s == [0.5, 0.7]


@pytest.mark.parametrize("name", ["unknown symbol", "firewall", "country", "redirect", "login page", "too large"])
def test_what_cannot_succeed_is_asked_once(name: str) -> None:
    """No repetition where the answer would be the same."""
    _, server, time = failure(REFUSALS[name][0], body_bytes_max=4096)
    assert len(server.requests) == 1
    assert time.slept_s == []


def test_a_longer_wait_than_the_policy_allows_is_left_to_the_caller() -> None:
    """A 503 that asks for more patience than the policy has is raised at once, with the time told."""
    error, server, _ = failure(http(503, Retry_After="600"))
    assert isinstance(error, ServerTroubleError)
    assert error.retry_after_s == 600
    assert len(server.requests) == 1


# --- Bans ----------------------------------------------------------------------------------------------------------

UNTIL_MS = int((MINUTE_START_S + 500) * 1000)

BANS = {
    "429 with seconds": (http(429, Retry_After="37"), 37.0),
    "429 without": (http(429), 60.0),
    "429 with nonsense": (http(429, Retry_After="soon"), 60.0),
    "429 with zero": (http(429, Retry_After="0"), 1.0),
    "429 with a fraction": (http(429, Retry_After="37.5"), 37.5),
    "429 with a year that no calendar holds": (http(429, Retry_After="Tue, 14 Jul 99999 03:35:40 GMT"), 60.0),
    "418 with an offset that no calendar holds": (
        http(418, Retry_After="Tue, 14 Jul 2026 03:35:40 +99999999999999999999"), 120.0
    ),
    "418 with endless digits": (http(418, Retry_After="9" * 5000), 259_200.0),
    "418 with an end in the year 2286": (
        http(418, b'{"code":-1003,"msg":"IP banned until 9999999999999"}'), 259_200.0
    ),
    "429 with a date": (http(429, Retry_After="Tue, 14 Jul 2026 03:35:40 GMT"), 100.0),
    "418 with seconds": (http(418, Retry_After="259200"), 259_200.0),
    "418 without": (http(418, b"teapot"), 120.0),
    "418 with the end in its text": (
        http(418, f'{{"code":-1003,"msg":"Way too much; IP banned until {UNTIL_MS}. Use streams."}}'.encode()), 500.0
    ),
    "418 with two ends": (
        http(418, f'{{"code":-1003,"msg":"IP banned until {UNTIL_MS}."}}'.encode(), Retry_After="2"), 500.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BANS)
def test_a_ban_stops_everybody_on_the_budget(name: str) -> None:
    """The caller learns how long it lasts; whoever asks next, at whichever address, is held until it is over."""
    answer, seconds = BANS[name]

    async def story() -> None:
        time, budget = FakeTime(), Budget(2400)
        async with (
            serve(answer) as banning,
            serve(OK) as other,
            rest(banning.url, time, budget) as futures,
            rest(other.url, time, budget) as delivery,
        ):
            with pytest.raises(BannedError) as error:
                await futures.get("/fapi/v1/aggTrades", weight=20)
            assert error.value.retry_after_s == pytest.approx(seconds)
            assert f"wait {seconds:.0f} s" in str(error.value)
            assert len(banning.requests) == 1
            assert budget.closed_for_s(time.clock().monotonic()) == pytest.approx(seconds)
            banned_s = time.now_s
            await asyncio.gather(*(delivery.get("/dapi/v1/time", weight=1) for _ in range(3)))
            assert time.now_s >= banned_s + seconds
            assert budget.closed_for_s(time.clock().monotonic()) == 0

    run(story())


# --- The budget ----------------------------------------------------------------------------------------------------


def test_requests_wait_for_the_next_clock_minute() -> None:
    """Two addresses share one budget, and the third request of the minute waits until the minute is over.

    And a second more, as the exchange's clock may be a little behind.
    """

    async def story() -> None:
        time, budget = FakeTime(MINUTE_START_S + 15), Budget(100, share=0.5)
        async with (
            serve(OK) as server,
            rest(server.url, time, budget) as first,
            rest(server.url, time, budget) as second,
        ):
            await first.get("/x", weight=20)
            await second.get("/x", weight=20)
            assert time.slept_s == []
            await first.get("/x", weight=20)
            assert time.slept_s == [45.0, 1.0]

    run(story())


@pytest.mark.parametrize("status", [200, 400, 503])
def test_weight_used_by_others_counts(status: int) -> None:
    """Whatever the answer, the weight that it tells for the whole address is believed."""

    async def story() -> None:
        time = FakeTime()
        busy = http(status, X_MBX_USED_WEIGHT_1M="3000")
        async with serve(busy, OK) as server, rest(server.url, time, retry_delays_s=()) as client:
            with contextlib.suppress(RestError):
                await client.get("/x", weight=1)
            await client.get("/x", weight=1)
            assert time.slept_s == [60.0, 1.0]

    run(story())


@pytest.mark.parametrize("value", ["", "-5", "1e9", "NaN", "9" * 5000, "٣"])
def test_nonsense_in_the_header_is_passed_over(value: str) -> None:
    """A header that holds no number changes nothing."""

    async def story() -> None:
        time = FakeTime()
        strange = http(200, X_MBX_USED_WEIGHT_1M=value)
        async with serve(strange) as server, rest(server.url, time) as client:
            await client.get("/x", weight=1)
            await client.get("/x", weight=1)
            assert time.slept_s == []

    run(story())


# --- Waiting for admission -----------------------------------------------------------------------------------------


def test_a_used_up_minute_is_told_at_once_to_who_cannot_wait_so_long() -> None:
    """Beyond the caller's bound nothing is sent and nothing is waited for; within it, the minute's end is."""

    async def story() -> None:
        time, budget = FakeTime(MINUTE_START_S + 15), Budget(80, share=0.5)
        async with serve(OK) as server, rest(server.url, time, budget) as client:
            await client.get("/x", weight=40)
            with pytest.raises(NotAdmittedError, match="lets nothing in for 45 s") as error:
                await client.get("/x", weight=20, admitted_within_s=44)
            assert error.value.retry_after_s == 45
            assert time.slept_s == []
            assert len(server.requests) == 1
            await client.get("/x", weight=20, admitted_within_s=47)
            assert len(server.requests) == 2

    run(story())


def test_who_waits_is_told_of_a_ban_at_once() -> None:
    """A caller with a bound that already waits for the minute's end learns of a ban that comes meanwhile."""

    async def story() -> None:
        held = asyncio.Event()

        async def sleep(_seconds: float) -> None:
            held.set()
            await asyncio.Event().wait()

        clock = Clock(wall=lambda: MINUTE_START_S + 15, monotonic=lambda: 15, sleep=sleep)
        budget = Budget(80, share=0.5)
        async with serve(OK) as server, Rest(server.url, budget=budget, clock=clock) as client:
            await client.get("/x", weight=40)
            waiting = asyncio.create_task(client.get("/x", weight=20, admitted_within_s=60))
            await held.wait()
            budget.close(500, 15)
            with pytest.raises(NotAdmittedError, match="for 500 s"):
                await waiting
            assert len(server.requests) == 1

    run(story())


def test_a_repair_that_comes_later_goes_before_a_look_that_waits() -> None:
    """When the next minute begins, the line is served by purpose."""

    async def story() -> None:
        time, budget = FakeTime(MINUTE_START_S + 15), Budget(800, share=0.5)
        begun = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await begun.wait()
            await time.sleep(seconds)

        clock = Clock(time.clock().wall, time.clock().monotonic, sleep)
        async with serve(OK) as server, Rest(server.url, budget=budget, clock=clock) as client:
            await client.get("/full", weight=400)
            asked = []
            for path, purpose in (("/look", Purpose.LOOK), ("/settle", Purpose.SETTLE), ("/repair", Purpose.REPAIR)):
                asked.append(asyncio.create_task(client.get(path, weight=100, purpose=purpose)))
                await asyncio.sleep(0)
            begun.set()
            await asyncio.gather(*asked)
            assert [request.split()[1] for request in server.requests] == ["/full", "/repair", "/settle", "/look"]

    run(story())


def test_a_request_heavier_than_the_limit_is_refused_at_once() -> None:
    """What no minute has room for is told instead of waited for without end."""

    async def story() -> None:
        async with serve(OK) as server, rest(server.url, FakeTime(), Budget(100)) as client:
            with pytest.raises(NotAdmittedError, match="weight 101 is above the exchange's 100"):
                await client.get("/x", weight=101)
            assert server.requests == []

    run(story())


def test_who_gives_up_waiting_leaves_the_line() -> None:
    """A cancelled caller holds up nobody behind it."""

    async def story() -> None:
        time, budget = FakeTime(), Budget(800)
        async with serve(hang, OK) as server, rest(server.url, time, budget) as client:
            first = asyncio.create_task(client.get("/x", weight=90, timeout_s=20))
            await until(lambda: bool(server.requests))
            second = asyncio.create_task(client.get("/x", weight=90))
            third = asyncio.create_task(client.get("/x", weight=10))
            await asyncio.sleep(0)
            second.cancel()
            assert await third == b'{"ok":true}'
            first.cancel()
            await asyncio.wait({first, second})

    run(story())


# --- Who may listen ------------------------------------------------------------------------------------------------


def certificate(folder: Path, alternative_name: str) -> tuple[ssl.SSLContext, Path]:
    """Make a throw-away certificate; return the server's context and the file that a client may trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is not installed")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={alternative_name}",
            "-keyout", key, "-out", cert,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


@pytest.mark.parametrize(
    ("name", "trusted", "reason"),
    [
        ("IP:127.0.0.1", True, None),
        ("IP:127.0.0.1", False, "self-signed"),
        ("DNS:api.binance.com", True, "not valid for '127.0.0.1'"),
    ],
)
def test_certificates_are_verified(tmp_path: Path, name: str, trusted: bool, reason: str | None) -> None:  # noqa: FBT001 - a row of the table
    """Only a trusted certificate with the right name is talked to; anything else is an error of its own, asked once."""
    server_context, cert = certificate(tmp_path, name)
    context = ssl.create_default_context(cafile=cert) if trusted else None

    async def story() -> None:
        time = FakeTime()
        async with serve(OK, tls=server_context) as server, rest(server.url, time, ssl_context=context) as client:
            if reason is None:
                assert await client.get("/x", weight=1) == b'{"ok":true}'
                return
            with pytest.raises(CertificateError, match=reason):
                await client.get("/x", weight=1)
            assert server.requests == []
            assert time.slept_s == []

    run(story())


def test_tls_to_a_server_without_tls() -> None:
    """A server that speaks no TLS is told apart from an untrusted one."""

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, rest(f"https://127.0.0.1:{port}", FakeTime(), retry_delays_s=()) as client:
            with pytest.raises(UnreachableError, match="no TLS connection"):
                await client.get("/x", weight=1)

    run(story())


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy variable that somebody set for other programs changes nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def story() -> None:
        async with serve(OK) as server, rest(server.url, FakeTime(), retry_delays_s=()) as client:
            assert await client.get("/x", weight=1) == b'{"ok":true}'

    run(story())


def test_a_named_proxy_is_used() -> None:
    """With a proxy given, the request goes to the proxy and to nobody else."""

    async def story() -> None:
        async with serve(OK) as proxy, rest("http://api.invalid", FakeTime(), proxy=proxy.url) as client:
            assert await client.get("/x", weight=1) == b'{"ok":true}'
            assert proxy.requests[0].startswith("GET http://api.invalid/x HTTP/1.1\r\n")

    run(story())


def test_a_socks_proxy_is_understood() -> None:
    """SOCKS5 is spoken to a proxy that is named so: greeting first, then the exchange's name, never its address."""
    heard: list[bytes] = []

    async def story() -> None:
        async def socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readexactly(3))
            writer.write(b"\x05\x00")
            heard.append(await reader.readexactly(5 + len("api.invalid") + 2))
            writer.write(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(socks, "127.0.0.1", 0)
        proxy = f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, rest("http://api.invalid", FakeTime(), proxy=proxy) as client:
            assert await client.get("/x", weight=1, timeout_s=10) == b'{"ok":true}'

    run(story())
    assert heard == [b"\x05\x01\x00", b"\x05\x01\x00\x03\x0bapi.invalid\x00\x50"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # httpcore leaves the proxy's socket to the garbage collector
@pytest.mark.parametrize(
    "replies",
    [[b""], [b"\x04\x00"], [b"\x05\x77"], [b"\x05\x00", b"\x05\x99\x00\x01aaaaaa"], [b"HTTP/1.1 400 No\r\n\r\n"]],
    ids=["closed", "version 4", "unknown method", "unknown reply", "HTTP"],
)
def test_a_proxy_that_does_not_speak_socks(replies: list[bytes]) -> None:
    """Whatever it answers instead, the request has failed, and that is all."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.read(1000)
            writer.write(reply)
        await writer.drain()
        writer.close()

    async def story() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        proxy = f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, rest("http://api.invalid", FakeTime(), proxy=proxy, retry_delays_s=()) as client:
            with pytest.raises(UnreachableError, match="proxy"):
                await client.get("/x", weight=1, timeout_s=10)

    run(story())
    gc.collect()


@pytest.mark.parametrize("host", ["[v1.x]", "256.1.1.1", "\N{ARABIC-INDIC DIGIT ONE}", "a" * 70_000])
def test_an_address_that_cannot_be_used(host: str) -> None:
    """It is refused when it is given, and a proxy's password is not shown."""
    with pytest.raises(ValueError, match="its host is no name"):
        rest(f"http://{host}", FakeTime())
    with pytest.raises(ValueError, match="PROXY cannot be used") as error:
        rest("http://api.invalid", FakeTime(), proxy=f"socks5://user:S3CRET@{host}")
    assert "S3CRET" not in str(error.value)


@pytest.mark.parametrize("path", ["/\ud800", "/\0", "/" + "x" * 70_000])
def test_a_request_that_cannot_be_said_is_a_rest_error(path: str) -> None:
    """A symbol that no address can hold ends in an error like any other, and its weight is free again."""

    async def story() -> None:
        async with serve(OK) as server, rest(server.url, FakeTime()) as client:
            with pytest.raises(BadAnswerError):
                await client.get(path, weight=1)
            with pytest.raises(RestError):
                await client.get("/x", {"symbol": "\ud800"}, weight=1)
            assert server.requests == []
            assert await client.get("/x", weight=1) == b'{"ok":true}'

    run(story())


def test_no_secret_in_errors_or_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the key in a header nor the parameters of a request appear in an error's text or in a log."""
    caplog.set_level(logging.DEBUG)

    async def story() -> None:
        answers = (http(500), http(400), b"")
        async with serve(*answers) as server, rest(server.url, FakeTime(), retry_delays_s=()) as client:
            for _ in answers:
                with pytest.raises(RestError) as error:
                    await client.get("/x", {"q": "S3CRET"}, weight=1, headers={"X-MBX-APIKEY": "S3CRET"})
                assert "S3CRET" not in str(error.value) + repr(error.value)

    run(story())
    assert "S3CRET" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("http")]


@given(
    st.binary(max_size=200)
    | st.builds(
        lambda status, header, body: b"HTTP/1.1 %d X\r\n%b\r\n\r\n%b" % (status, header, body),
        st.integers(100, 599),
        st.binary(max_size=40),
        st.binary(max_size=100),
    )
    | st.builds(
        lambda status, name, value, body: http(status, body, **{name: value}),
        st.sampled_from([200, 302, 307, 400, 403, 418, 429, 503]),
        st.sampled_from(
            ["Location", "Retry_After", "Content_Encoding", "Content_Type", "Set_Cookie", "X_MBX_USED_WEIGHT_1M"]
        ),
        st.sampled_from(["http://[::1", "//", "gzip", "zstd, br", "a=b; expires=Tue, 14 Jul 99999 03:35:40 GMT"])
        | st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=40),
        st.sampled_from([b"[1]", b"", b'{"code":-1003,"msg":"banned until 9999999999999"}', b"[" * 50_000]),
    )
)
@settings(deadline=None, max_examples=150)
def test_whatever_a_server_sends(answer: bytes) -> None:
    """Any bytes at all end in a body or in a `RestError`."""

    async def story() -> None:
        async with serve(answer) as server, rest(server.url, FakeTime(), retry_delays_s=()) as client:
            with contextlib.suppress(RestError):
                assert await client.get("/x", weight=1, timeout_s=5)

    run(story())
