"""Faults of the network and of the exchange (N1 to N16)."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from tickcollect.dataset.replay import Answer, Bytes, Close, Connection, Cut, Request, Reset, frame
from tickcollect.dataset.replay.server import Step

from .certificates import YEARS, certificate
from .exchange import FIRST_ID, altered, counting, replying
from .proxy import FINE, Weather
from .scene import Case, Scene, UnmetError, tracing

Provoke = Callable[[Scene], Awaitable[None]]

CUT_OFF_S = 1.5
"""How long nobody can connect where a fault shall cost rows."""


# --- N1, N2: connections that end, or do not -------------------------------------------------------------------------


async def end_with(scene: Scene, how: Reset | Cut | Close) -> None:
    """End every connection, and let nobody in for a moment."""
    scene.proxy.accepts = False
    scene.server.disconnect(how)
    await asyncio.sleep(CUT_OFF_S)
    scene.proxy.accepts = True


async def end_inside_frame(scene: Scene, how: Reset | Cut) -> None:
    """Send half a frame, and end the connection there; several times, each at another byte."""
    for _ in range(5):
        cut = scene.chance.random()
        done = asyncio.Event()

        def twist(
            _: Connection, __: str, ___: int, payload: bytes, cut: float = cut, done: asyncio.Event = done
        ) -> list[Step]:
            if done.is_set():
                return [payload]
            done.set()
            whole = frame(payload)
            return [Bytes(whole[: 1 + int(cut * (len(whole) - 1))]), how]

        scene.message = twist
        await asyncio.wait_for(done.wait(), 60)
        scene.message = None
        await scene.until_current()


async def half_open(scene: Scene) -> None:
    """Let the connection stay, and nothing pass."""
    scene.proxy.freeze()
    asked = len(scene.handshakes_s)
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it connects anew", within_s=35)


async def half_open_and_quiet(scene: Scene) -> None:
    """Let the connection stay and nothing pass while the market rests: only a ping can tell."""
    scene.server.pause()
    scene.proxy.freeze()
    asked = len(scene.handshakes_s)
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it connects anew", within_s=35)
    scene.server.resume()


async def bad_weather(scene: Scene, weather: Weather, seconds: float) -> None:
    """Let the network be slow for a while."""
    scene.proxy.weather = weather
    scene.server.disconnect(Cut())
    await asyncio.sleep(seconds)
    scene.proxy.weather = FINE


# --- N3, N16: silence ------------------------------------------------------------------------------------------------


async def go_silent(scene: Scene, symbols: Sequence[str]) -> None:
    """Answer pings but send nothing of `symbols` on the connections there are; a new connection works."""
    silent = set(scene.server.connections)
    silenced = {symbol.lower() for symbol in symbols}
    asked = len(scene.handshakes_s)
    scene.message = lambda connection, stream, _, payload: (
        [] if connection in silent and stream.partition("@")[0] in silenced else [payload]
    )
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it connects anew", within_s=60)
    scene.message = None


async def fall_quiet(scene: Scene) -> None:
    """Let the whole market rest: nothing is wrong, and nothing must be called wrong."""
    scene.server.pause()
    await scene.until_said(r"no data for \d+ s, and the exchange has none either", within_s=40)
    if "although the exchange has IDs" in scene.said():
        raise UnmetError("a quiet market is not called a fault")
    scene.server.resume()


async def silent_subscription(scene: Scene) -> None:
    """Acknowledge the second symbol and never send it, until the third connection."""
    loyal = scene.market.symbols[0].lower()
    asked = len(scene.handshakes_s)
    scene.message = lambda _, stream, __, payload: [payload] if stream.startswith(loyal) else []
    scene.server.disconnect(Cut())
    await scene.until(lambda: len(scene.handshakes_s) >= asked + 2, "it connects anew", within_s=60)
    scene.message = None


async def mistyped_symbol(scene: Scene) -> None:
    """Ask a second collector for a symbol that the exchange does not list."""
    other = scene.directory / "mistyped"
    code, output = await scene.start_another([*scene.command("--symbol", "BTCUSTD", data_dir=other)])
    if code != 2 or "did you mean BTCUSDT" not in output:
        raise UnmetError(f"BTCUSTD is refused with the nearest symbol; code {code}: {output[-300:]}")
    if other.exists():
        raise UnmetError("nothing is created for a symbol that does not exist")


# --- N4: a slow reader -----------------------------------------------------------------------------------------------


async def slow_disk(scene: Scene, delay_s: float, seconds: float) -> None:
    """Hold up each write to the data by `delay_s`."""
    path = next(scene.feed_dir.glob("*.csv"))
    async with tracing(scene, path, f"inject=write,writev,pwrite64:delay_enter={int(delay_s * 1e6)}"):
        await asyncio.sleep(seconds)
    if "although the exchange has IDs" in scene.said():
        raise UnmetError("it does not read, and does not call that the exchange's silence")


# --- N5, N6, N7: IDs -------------------------------------------------------------------------------------------------


async def twist_for(scene: Scene, seconds: float, twist: Callable[[bytes, list[bytes]], Iterable[Step]]) -> None:
    """Send, for some time, what `twist` makes of a message and of all messages before it."""
    before: list[bytes] = []

    def script(_: Connection, __: str, ___: int, payload: bytes) -> list[Step]:
        steps = list(twist(payload, before))
        before.append(payload)
        return steps

    scene.message = script
    await asyncio.sleep(seconds)
    scene.message = None


def doubled(payload: bytes, _: list[bytes]) -> list[Step]:
    """Send each message twice."""
    return [payload, payload]


def replayed(payload: bytes, before: list[bytes]) -> list[Step]:
    """Send the last ten messages again with each tenth."""
    return [*before[-10:], payload] if len(before) % 10 == 9 else [payload]


def swapped(payload: bytes, before: list[bytes]) -> list[Step]:
    """Send each pair of messages in the wrong order."""
    return [payload, before[-1]] if len(before) % 2 else []


def contradicted(payload: bytes, before: list[bytes]) -> list[Step]:
    """Send each twentieth message a second time with another quantity."""
    return [payload, altered(payload, {"q": "9.90000000"})] if len(before) % 20 == 19 else [payload]


async def one_of_two(scene: Scene) -> None:
    """Reset the first of two connections that carry the same: the second has every row."""
    await scene.until(lambda: len(scene.handshakes_s) >= 2, "it connects twice")
    before = scene.history_requests()
    websockets = [each for each in scene.server.connections if each.session is not None]
    websockets[0].end(Reset())
    await scene.until_said("broke off|reset", within_s=20)
    await scene.until_current()
    if scene.history_requests() > before:
        raise UnmetError("the other connection has every row; history need not be asked")


async def gap(scene: Scene, rows: int) -> None:
    """Skip rows, which history has."""
    scene.drop_rows(rows)
    await asyncio.sleep(rows / scene.case.rows_per_s + 0.5)
    scene.message = None


async def hole_at_exchange(scene: Scene) -> None:
    """Skip rows that the exchange's history does not have either, as its archive has holes."""
    newest = scene.market.newest_id(scene.market.symbols[0])
    scene.market.unpublished.update(range(newest + 20, newest + 40))
    scene.message = lambda _, __, ___, payload: (
        [] if json.loads(payload)["data"]["t"] in scene.market.unpublished else [payload]
    )
    await scene.until_said("asked again to be sure", within_s=60)
    scene.message = None


async def renumber(scene: Scene) -> None:
    """Begin the numbering anew at 1, some rows from now."""
    first = len(scene.market.issued[scene.market.symbols[0]]) + 30
    scene.market.numbering = lambda number: counting(number) if number < first else number - first + 1
    await scene.until(lambda: 0 < scene.market.newest_id(scene.market.symbols[0]) < FIRST_ID, "numbers begin anew")


def passing_2_53(number: int) -> int:
    """Cross the largest integer up to which a float holds every one."""
    return 2**53 - 1000 + number


async def cross_2_53(scene: Scene) -> None:
    """Lose rows around 2^53, so that history is asked there too."""
    await scene.until(lambda: scene.market.newest_id(scene.market.symbols[0]) > 2**53 - 20, "2^53 comes near")
    await gap(scene, 40)


# --- N8, N9: messages ------------------------------------------------------------------------------------------------

GARBAGE: Sequence[bytes] = (
    b"", b"{", b"[]", b"null", b'"text"', b"0", b"{}", b'{"stream":"btcusdt@trade"}', b'{"data":{}}',
    b'{"stream":"btcusdt@trade","data":null}', b'{"stream":"btcusdt@trade","data":[1,2,3]}', b"\xff\xfe\xfd",
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":"\xc3\x28"}}', b"[" * 5000, b'{"a":' * 3000, b"\x00" * 200,
    b"<html><body>502 Bad Gateway</body></html>" + b" " * 200, b'{"e":"trade"}', b"NaN",
    b'{"e":"error","m":"' + b"x" * 100_000 + b'"}', b'{"id":999,"result":{"unexpected":true}}',
    b'{"error":{"code":0,"msg":"Unknown property"}}',
)  # fmt: skip
"""What no message of an exchange is."""

DRIFTS: Sequence[tuple[str, object]] = (
    ("t", None), ("p", None), ("T", None), ("s", None), ("e", None), ("t", "text"), ("t", 1.5), ("t", -1),
    ("t", 2**63), ("t", 2**64), ("p", 64000.5), ("p", "64,000"), ("p", "1\n2"), ("q", ""), ("p", '=HYPERLINK("x")'),
    ("m", "true"), ("m", None), ("T", "now"), ("E", None), ("s", "../../etc/passwd"), ("s", "ETHUSDT"),
    ("e", "newKind"),
)  # fmt: skip
"""Fields that are missing, or hold what they never held."""


async def replace_messages(scene: Scene, makers: Sequence[Callable[[bytes], Step]]) -> None:
    """Send each of `makers`' payloads in place of one message, some messages apart."""
    waiting = list(makers)
    count = 0

    def twist(_: Connection, __: str, ___: int, payload: bytes) -> list[Step]:
        nonlocal count
        count += 1
        if waiting and count % 5 == 0:
            return [waiting.pop(0)(payload)]
        return [payload]

    scene.message = twist
    await scene.until(lambda: not waiting, "all payloads are sent")
    scene.message = None


def instead(other: bytes, _: bytes) -> bytes:
    """Send `other` in place of a message."""
    return other


async def garbage(scene: Scene) -> None:
    """Send what is no message in place of messages."""
    await replace_messages(scene, [partial(instead, other) for other in GARBAGE])


async def binary_frames(scene: Scene) -> None:
    """Send bytes that are no text, as binary frames."""
    await replace_messages(scene, [lambda _: Bytes(b"\x82\x04\xff\x00\xff\x00")] * 5)


async def drift(scene: Scene) -> None:
    """Send messages whose fields are missing or of another type."""
    makers = [partial(altered, fields={name: value}) for name, value in DRIFTS]
    await replace_messages(scene, makers)


async def new_field(scene: Scene) -> None:
    """Let every message have a field more."""
    scene.message = lambda _, __, ___, payload: [altered(payload, {"zz": "new", "Q": {"deep": [1, 2]}})]
    await scene.until_current()


# --- N10: frames -----------------------------------------------------------------------------------------------------


async def error_then_close(scene: Scene, code: int) -> None:
    """Send the text of an error, then close."""
    text = b'{"error":{"code":3,"msg":"Too many requests, the connection is closed"}}'
    scene.message = lambda _, __, ___, ____: [text, Close(code, "policy")]
    asked = len(scene.handshakes_s)
    await scene.until_said(f"code {code}", within_s=20)
    scene.message = None
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it connects anew")


async def one_frame(scene: Scene, data: bytes) -> None:
    """Put bytes on the wire in place of one message."""
    await replace_messages(scene, [lambda _: Bytes(data)])


def sized_frame(size: int) -> bytes:
    """Return a text frame with a payload of `size` bytes."""
    return frame(b'{"e":"' + b"x" * (size - 8) + b'"}')


# --- N12: handshakes -------------------------------------------------------------------------------------------------


async def refuse(scene: Scene, status: int, headers: dict[str, str], quiet_s: float, says: str) -> None:
    """Answer a handshake with a status; nobody may come again for `quiet_s`, and a restart must fill the hole."""
    scene.handshake = lambda _, __: Answer(status, b"", headers)
    asked = len(scene.handshakes_s)
    scene.server.disconnect(Cut())
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it tries to connect")
    await scene.until_said(says, within_s=10)
    await asyncio.sleep(quiet_s)
    if len(scene.handshakes_s) > asked + 1:
        raise UnmetError(f"after HTTP {status} it waits; it came {len(scene.handshakes_s) - asked} times")
    scene.handshake = None
    await scene.stop()
    await scene.start()


async def refuse_for(scene: Scene, status: int, attempts: int) -> None:
    """Answer some handshakes with a status that passes by itself."""
    asked = len(scene.handshakes_s)
    scene.handshake = lambda _, __: Answer(status, b"") if len(scene.handshakes_s) <= asked + attempts else None
    scene.server.disconnect(Cut())
    await scene.until(lambda: len(scene.handshakes_s) > asked + attempts, "it tries until it is let in")


async def hang(scene: Scene) -> None:
    """Let connections in and never answer them."""
    scene.proxy.answers = False
    asked = scene.proxy.accepted
    scene.server.disconnect(Cut())
    await scene.until(lambda: scene.proxy.accepted > asked + 1, "it gives up and tries again", within_s=60)
    scene.proxy.answers = True


# --- N13: history ----------------------------------------------------------------------------------------------------

BadHistory = Callable[[Request, Answer], Answer]


def cut_short(_: Request, answer: Answer) -> Answer:
    """End the body in the middle of a number."""
    return answer._replace(body=answer.body[: len(answer.body) // 2])


def empty(_: Request, answer: Answer) -> Answer:
    """Answer 200 with an empty list, which proves nothing."""
    return answer._replace(status=200, body=b"[]")


def stale(_: Request, answer: Answer) -> Answer:
    """Give the rows one page before those that were asked for."""
    rows = json.loads(answer.body)
    for row in rows:
        row["id"] -= 1000
    return answer._replace(body=json.dumps(rows).encode())


def beyond(_: Request, answer: Answer) -> Answer:
    """Give only rows behind those that were asked for: as if they had never been; a second answer would tell."""
    rows = json.loads(answer.body)
    return answer._replace(body=json.dumps(rows[len(rows) // 2 :]).encode())


async def bad_history(scene: Scene, times: int, bad: BadHistory, least_wait_s: float = 0.0) -> None:
    """Lose rows, and let the first answers of history be bad."""
    asked_s: list[float] = []
    loop = asyncio.get_running_loop()

    def rest(request: Request, answer: Answer) -> Answer:
        if "fromId" not in dict(request.query):
            return answer
        asked_s.append(loop.time())
        return bad(request, answer) if len(asked_s) <= times else answer

    scene.rest = rest
    await gap(scene, 30)
    await scene.until(lambda: len(asked_s) > times, "history is asked again", scene.case.settle_s)
    if asked_s[times] - asked_s[times - 1] < least_wait_s:
        raise UnmetError(f"history said to wait {least_wait_s} s; it was asked again before")


# --- N14: names and certificates -------------------------------------------------------------------------------------


async def unknown_host(scene: Scene) -> None:
    """Give a host that no name server knows; then the right one."""
    await scene.stop()
    good, scene.ws_url = scene.ws_url, "ws://no-such-host.invalid:9443"
    await scene.start()
    await scene.until_said("cannot be resolved", within_s=30)
    if scene.collector.code is not None:
        raise UnmetError("it goes on trying")
    await scene.stop()
    scene.ws_url = good
    await scene.start()


async def bad_certificate(scene: Scene, name: str, days: tuple[str, str], trust: str) -> None:
    """Offer a certificate that must not be accepted; then the exchange as it was."""
    context, pem = await asyncio.to_thread(certificate, scene.directory, name, days)
    await scene.stop()
    good = scene.ws_url
    async with replying(None, context) as reply:
        scene.ws_url = f"wss://localhost:{reply.port}"
        scene.settings = {"SSL_CERT_FILE": str(pem)} if trust == "trusted" else {}
        await scene.start()
        await scene.until_said("certificate of .* is not trusted", within_s=30)
        await scene.stop()
        if reply.attempts_s:
            raise UnmetError("nothing is said to a server that cannot prove who it is")
    scene.ws_url, scene.settings = good, {}
    await scene.start()


# --- N15: planned cuts -----------------------------------------------------------------------------------------------


async def announced_shutdown(scene: Scene, close_after_s: float) -> None:
    """Announce that the server goes down, and close what is left of the old connections after a while."""
    asked, before = len(scene.handshakes_s), scene.history_requests()
    old = list(scene.server.connections)
    scene.server.announce_shutdown()
    await scene.until(lambda: len(scene.handshakes_s) > asked, "it opens a new connection")
    await asyncio.sleep(close_after_s)
    for connection in old:
        if connection.is_open:
            connection.end(Close(1001, "going away"))
    await scene.until_current()
    if close_after_s >= 10 and scene.history_requests() > before:
        raise UnmetError("an overlap that worked needs no history")


async def short_days(scene: Scene) -> None:
    """Let several of the exchange's days pass, which are seconds here."""
    before = scene.history_requests()
    asked = len(scene.handshakes_s)
    await scene.until(lambda: len(scene.handshakes_s) >= asked + 3, "it renews three times", within_s=90)
    if scene.history_requests() > before:
        raise UnmetError("a renewal in time needs no history")


# --- The table -------------------------------------------------------------------------------------------------------

_NET = partial(Case, peers=True)

CASES: Sequence[Case] = (
    _NET("reset", "N1", "the connection is reset (RST), and for a moment nobody can connect",
         "connects again, and fills what was missed, in its place", partial(end_with, how=Reset()),
         r"broke off|cannot be reached|Connection (lost|reset)", quick=True),
    _NET("fin", "N1", "the connection ends without a close frame (FIN), and for a moment nobody can connect",
         "the same", partial(end_with, how=Cut()), "broke off|cannot be reached"),
    _NET("half-frame-reset", "N1", "five times half a frame, then RST",
         "the half frame is dropped; the row comes from history", partial(end_inside_frame, how=Reset()), "broke off"),
    _NET("half-frame-fin", "N1", "five times half a frame, then FIN",
         "the same", partial(end_inside_frame, how=Cut()), "broke off", quick=True),
    _NET("half-open", "N2", "the peer is gone and nobody says so: the connection stays, nothing passes",
         "noticed within 30 s, by the missing data or an unanswered ping; then as after a reset", half_open,
         "no answer to ping|although", quick=True),
    _NET("half-open-quiet", "N2", "the same while the market rests", "noticed within 30 s by an unanswered ping",
         half_open_and_quiet, "no answer to ping"),
    _NET("one-byte-pieces", "N1", "every byte travels alone", "nothing changes",
         partial(bad_weather, weather=Weather(slice_bytes=1), seconds=4), quick=True),
    _NET("slow-network", "N1", "0.3 s of delay, 20 kB/s", "nothing is lost",
         partial(bad_weather, weather=Weather(latency_s=0.3, bytes_per_s=20_000, slice_bytes=500), seconds=5)),
    _NET("cut-after-bytes", "N1", "each connection ends after 20,000 bytes", "each hole is filled",
         partial(bad_weather, weather=Weather(limit_bytes=20_000), seconds=8)),
    _NET("silent-link", "N3", "pings are answered, data has stopped; a new connection works",
         "the exchange is asked whether the market trades; then the connection is made anew and the hole filled",
         partial(go_silent, symbols=["BTCUSDT"]), "although", quick=True),
    Case("silent-symbol", "N3", "one of two symbols falls silent, the other goes on",
         "the same; the other symbol loses nothing", partial(go_silent, symbols=["ETHUSDT"]), "although", symbols=2),
    Case("quiet-market", "N3", "the market itself rests", "no alarm", fall_quiet, "the exchange has none either",
         quick=True),
    Case("stuck-disk", "N4", "a write hangs for 40 s while 2,000 rows a second come",
         "told, and not taken for the exchange's silence; the memory stays; what is missed is filled",
         partial(slow_disk, delay_s=40, seconds=35), "has not returned", rows_per_s=2000.0, needs=("strace",),
         settings={"TICKCOLLECT_QUEUE_ROWS": "2000"}, memory_mb=40.0),
    Case("slow-disk", "N4", "each write takes 2 s while 5,000 rows a second come",
         "the reading stops before the memory grows; what is missed then is filled",
         partial(slow_disk, delay_s=2, seconds=10),
         rows_per_s=5000.0, needs=("strace",), settings={"TICKCOLLECT_QUEUE_ROWS": "2000"}, memory_mb=40.0,
         quick=True),
    _NET("doubled", "N5", "each message comes twice", "each row is written once",
         partial(twist_for, seconds=3, twist=doubled), quick=True),
    _NET("replayed", "N5", "the last ten messages come again and again", "each row is written once",
         partial(twist_for, seconds=3, twist=replayed)),
    _NET("swapped", "N5", "each pair of messages comes in the wrong order", "they are written in the right one",
         partial(twist_for, seconds=3, twist=swapped), quick=True),
    Case("contradicted", "N5", "some rows come twice, with another quantity the second time",
         "the first one stands", partial(twist_for, seconds=3, twist=contradicted)),
    Case("one-of-two", "N5", "two connections carry the same (REDUNDANCY 2), and one is reset",
         "nothing is missed, so history is not asked", one_of_two, "broke off|reset",
         settings={"TICKCOLLECT_REDUNDANCY": "2"}, quick=True),
    _NET("gap", "N6", "the exchange skips 40 rows", "they are filled from history, in their place",
         partial(gap, rows=40), "filled with 40 rows", quick=True),
    Case("large-gap", "N6", "the exchange skips 12,000 rows", "live rows go on; the hole becomes files of its own",
         partial(gap, rows=12_000), "filled with", rows_per_s=3000.0, memory_mb=40.0),
    Case("hole-at-exchange", "N6", "20 IDs exist nowhere",
         "the journal says so; they count as missing until a second answer", hole_at_exchange,
         "asked again to be sure", quick=True),
    Case("renumbered", "N7", "the numbering begins anew at 1", "a new file begins; nothing is taken for a copy",
         renumber, "numbering began anew", quick=True),
    Case("past-2^53", "N7", "IDs pass 2^53, and rows are lost there", "IDs stay whole", cross_2_53,
         numbering=passing_2_53, tells="filled"),
    _NET("garbage", "N8", "22 payloads that are no message, each in place of one",
         "each is kept in quarantine and counted; the rows in whose place they came are filled", garbage,
         "quarantine", quick=True),
    _NET("binary", "N8", "binary frames in place of messages", "the same", binary_frames),
    _NET("drift", "N9", "22 messages with a field missing or of another type",
         "none of it is written; the rows are filled", drift, "quarantine", quick=True),
    _NET("new-field", "N9", "every message has fields more", "nothing changes", new_field),
    _NET("frame-too-large", "N10", "a frame of 5 MiB", "told with the limit; connects again",
         partial(one_frame, data=sized_frame(5 * 2**20)), r"protocol|larger", quick=True),
    _NET("frame-at-limit", "N10", "a frame of 1 MiB that is no message", "quarantine",
         partial(one_frame, data=sized_frame(2**20)), "quarantine"),
    _NET("reserved-bit", "N10", "a frame that says it is compressed, which was not agreed",
         "connects again", partial(one_frame, data=b"\xc1\x05hello"), "protocol|broke off|quarantine", quick=True),
    _NET("unknown-opcode", "N10", "a frame of a reserved kind", "connects again",
         partial(one_frame, data=b"\x83\x05hello"), "protocol|broke off"),
    *(_NET(f"close-{code}", "N11", f"the exchange closes with code {code}", "connects again, and fills",
           partial(end_with, how=Close(code, "test")), f"code {code}", quick=code in {1000, 1008})
      for code in (1000, 1001, 1008, 1012)),
    Case("error-then-close", "N11", "the text of an error, then code 1008", "connects again after a longer wait",
         partial(error_then_close, code=1008), "code 1008"),
    *(Case(f"refused-{status}", "N12", f"the handshake is answered with {status}",
           "says what it means and what to do; waits; the next start fills the hole",
           partial(refuse, status=status, headers=headers, quiet_s=8, says=says), says, quick=status == 429)
      for status, headers, says in (
          (403, {}, "firewall"), (418, {"Retry-After": "180"}, "banned"), (429, {"Retry-After": "90"}, "limit"),
          (451, {}, "country"), (302, {"Location": "ws://127.0.0.1:1/"}, "not an answer of the exchange"))),
    _NET("refused-500", "N12", "three handshakes are answered with 500", "tries again, each time a little later",
         partial(refuse_for, status=500, attempts=3), "trouble", quick=True),
    _NET("handshake-hangs", "N12", "a handshake is never answered", "gives up after a while, and tries again", hang),
    *(Case(f"history-{name}", "N13", what, must, partial(bad_history, times=times, bad=bad, least_wait_s=least_s),
           tells, quick=name in {"429", "empty", "beyond"},
           settle_s=330.0 if name == "403" else 90.0)
      for name, what, must, times, bad, least_s, tells in (
          ("429", "history answers 429 with Retry-After 3", "nobody asks before that", 1,
           lambda _, __: Answer(429, b'{"code":-1003,"msg":"Too many"}', {"Retry-After": "3"}), 3.0, "filled"),
          ("418", "history answers 418 with Retry-After 4", "nobody asks before that", 1,
           lambda _, __: Answer(418, b"{}", {"Retry-After": "4"}), 4.0, "filled"),
          ("403", "history is refused by a firewall", "left alone for minutes, then asked again", 1,
           lambda _, __: Answer(403, b""), 60.0,
           "filled"),
          ("503", "history answers 503 three times", "asked again", 3, lambda _, __: Answer(503, b""), 0.0, "filled"),
          ("hangs", "history answers after a minute", "gives up, asks again", 1,
           lambda _, answer: answer._replace(delay_s=60.0), 0.0, "filled"),
          ("cut", "the answer ends in the middle", "not believed; asked again", 2, cut_short, 0.0, "filled"),
          ("empty", "the answer is 200 with an empty list", "proves nothing; asked again", 2, empty, 0.0, "filled"),
          ("stale", "the answer holds rows of another range", "not believed; asked again", 2, stale, 0.0, "filled"),
          ("beyond", "one answer leaves out rows that exist", "it proves nothing alone; they are asked for again", 1,
           beyond, 0.0, "filled"),
          ("html", "the answer is a login page", "not believed; asked again", 2,
           lambda _, __: Answer(200, b"<html>sign in</html>", {"Content-Type": "text/html"}), 0.0, "filled"))),
    Case("unknown-host", "N14", "the host's name cannot be resolved", "says so, goes on trying", unknown_host,
         "cannot be resolved", quick=True),
    *(Case(f"certificate-{name}", "N14", f"TLS with a certificate that is {what}",
           "told at once as what it is; nothing is sent to that server",
           partial(bad_certificate, name=host, days=days, trust=trust), "not trusted", needs=("openssl",),
           quick=name == "wrong-name")
      for name, what, host, days, trust in (
          ("self-signed", "signed by nobody known", "DNS:localhost", YEARS, "unknown"),
          ("expired", "expired", "DNS:localhost", ("20200101", "20210101"), "trusted"),
          ("wrong-name", "another host's", "DNS:example.com", YEARS, "trusted"))),
    *(Case(f"shutdown-{after_s}s", "N15", f"the exchange announces a shutdown and closes {after_s} s after",
           "a new connection first, then the old one goes", partial(announced_shutdown, close_after_s=after_s),
           "renewed|renewing|a new connection", quick=after_s == 10)
      for after_s in (0, 1, 10)),
    Case("short-days", "N15", "the exchange cuts connections after a day, which is 30 s here",
         "each connection is replaced before, without a hole", short_days, "the new connection", life_s=30.0,
         settings={"TICKCOLLECT_RENEW_AFTER_H": str(12 / 3600)}),
    Case("silent-subscription", "N16", "a subscription is acknowledged and stays silent",
         "noticed by asking the exchange; connects anew; the other symbol loses nothing", silent_subscription,
         "although", symbols=2, quick=True),
    Case("mistyped-symbol", "N16", "a symbol that the exchange does not list",
         "refused with the nearest name, before anything is created", mistyped_symbol, quick=True),
)  # fmt: skip
