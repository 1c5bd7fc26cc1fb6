"""A proxy before a store that does harm at a chosen step, at a chosen moment, a chosen number of times.

    with faulty(store.port) as proxy:
        proxy.harm(Fault("put", "before", "slow-down", times=3))
        proxy.harm(Fault("part", "body", "flip", at_byte=1000))

Requests and answers pass unchanged otherwise, the signed `Host` among them, so the store's own checks hold. Bytes are
flipped behind TLS, where there is any: the client's TLS ends here.
"""

import contextlib
import http.client
import re
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .listening import Conversation, Listening, listening

Moment: TypeAlias = Literal["before", "body", "after"]
"""Before the store hears of it; in the middle of its body; after the store has done it, before the client knows."""

ANSWERS: dict[str, tuple[int, str]] = {
    "error": (500, "InternalError"),
    "slow-down": (503, "SlowDown"),
    "too-many": (429, "TooManyRequests"),
    "timeout": (400, "RequestTimeout"),
    "conflict": (409, "ConditionalRequestConflict"),
    "denied": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "unknown-key": (403, "InvalidAccessKeyId"),
    "elsewhere": (301, "PermanentRedirect"),
    "unsupported": (501, "NotImplemented"),
}
"""Harms that are answers: the status and S3's code."""

HARMS = (*ANSWERS, "reset", "cut", "hang", "slow", "flip", "html", "pause")
"""What can be done. `flip` changes a byte of a body, or the ETag of an answer; `html` is the page of something between
that answers everything with 200; `pause` waits until `resume` is set."""

BETWEEN_TWO = {"connection", "transfer-encoding"}
"""Headers of an answer that are about one connection, and not the other."""

OK = 200
PAUSE_WITHIN_S = 60.0
SLOW_S = 0.3
SLICES = 10


@dataclass(frozen=True)
class Fault:
    """One harm: at which step of `listening.STEPS`, when, what, how often, at which byte of the body."""

    step: str
    moment: Moment
    harm: str
    times: int = 1
    at_byte: int = 0
    key: str = ""
    """Only for the object with this name; empty: for any."""


@dataclass
class Proxy:
    """A running proxy. `seen` counts the requests by step, `done` the harms that were done."""

    store_port: int
    listener: Listening = field(init=False)
    seen: "Counter[str]" = field(default_factory=Counter)
    done: "Counter[Fault]" = field(default_factory=Counter)
    resume: threading.Event = field(default_factory=threading.Event)
    created: list[str] = field(default_factory=list)
    """The name of each object that the store has written, in order: one that is here twice was overwritten."""
    _waiting: dict[Fault, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        """Its address, as a store's."""
        return self.listener.endpoint

    def harm(self, *faults: Fault) -> None:
        """Do these to the next requests of their steps; the first that fits is done."""
        assert all(fault.harm in HARMS for fault in faults)
        with self._lock:
            self._waiting.update({fault: fault.times for fault in faults})

    def heal(self) -> None:
        """Do no more harm."""
        with self._lock:
            self._waiting.clear()

    def take(self, request: Conversation) -> None:
        """Carry one request, badly if that was asked for."""
        fault = self._fault_for(request)
        if fault is None:
            self._carry(request)
        elif fault.moment == "before":
            self._harm_before(request, fault.harm)
        elif fault.moment == "body":
            self._carry(request, fault)
        elif (answer := self._fetch(request)) is not None:
            if fault.harm == "pause":
                self._wait(fault.harm)
            _harm_after(request, fault.harm, answer)

    def _wait(self, harm: str) -> None:
        if harm == "pause":
            self.resume.wait(PAUSE_WITHIN_S)
        else:
            time.sleep(SLOW_S)

    def _fault_for(self, request: Conversation) -> Fault | None:
        with self._lock:
            self.seen[request.step] += 1
            for fault, left in self._waiting.items():
                if left and fault.step == request.step and fault.key in {"", request.key}:
                    self._waiting[fault] -= 1
                    self.done[fault] += 1
                    return fault
        return None

    def _carry(self, request: Conversation, fault: Fault | None = None) -> None:
        answer = self._fetch(request, fault)
        if answer is not None:
            request.wfile.write(answer.encoded(request))

    def _harm_before(self, request: Conversation, harm: str) -> None:
        if harm in {"slow", "pause"}:
            self._wait(harm)
            self._carry(request)
            return
        if harm in {*ANSWERS, "html"} and not request.waits_for_100:
            request.body()  # closing with bytes unread would be a reset
        _end(request, harm)

    def _fetch(self, request: Conversation, fault: Fault | None = None) -> "Answer | None":
        """Have the store do it, and return what it says; None if the harm on the way has ended the connection."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.store_port, timeout=60)) as store:
            store.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    store.putheader(name, value)
            store.endheaders()
            if fault is None:
                _send(store, _framed(request))
            elif not self._send_harmed(request, fault, store):
                return None
            response = store.getresponse()
            headers = {name: value for name, value in response.getheaders() if name.lower() not in BETWEEN_TWO}
            answer = Answer(response.status, headers, response.read())
        if request.step in {"put", "complete"} and answer.status == OK and b"<Error>" not in answer.body:
            self.created.append(request.key)
        return answer

    def _send_harmed(self, request: Conversation, fault: Fault, store: http.client.HTTPConnection) -> bool:
        """Carry a body and harm it at its byte; False if the store has only a part of it and the client was told so."""
        passed, chunks = 0, request.chunks()
        for data in chunks:
            place = fault.at_byte - passed
            passed += len(data)
            if not 0 <= place < len(data):
                _send(store, iter([data]))
            elif fault.harm == "flip":
                _send(store, iter([data[:place], bytes([data[place] ^ 1]), data[place + 1 :]]))
            elif fault.harm == "pause":
                self._wait(fault.harm)
                _send(store, iter([data]))
            elif fault.harm == "slow":
                _send(store, _slowly(data))
            else:
                _send(store, iter([data[:place]]))
                store.close()
                if fault.harm in ANSWERS:
                    deque(chunks, maxlen=0)  # closing with bytes unread would be a reset
                _end(request, fault.harm)
                return False
        return True


@dataclass(frozen=True)
class Answer:
    """What the store said."""

    status: int
    headers: dict[str, str]
    body: bytes

    def encoded(self, request: Conversation) -> bytes:
        """Return it as bytes for a client. An answer to `HEAD` tells the length of what it does not carry."""
        headers = dict(self.headers)
        if request.command != "HEAD":
            headers["Content-Length"] = str(len(self.body))
        return request.encoded(self.status, headers, self.body)


def _framed(request: Conversation) -> Iterator[bytes]:
    """Yield a body as it has to be sent on: in HTTP's chunks if that is how it came."""
    if request.length:
        yield from request.chunks()
        return
    for data in request.chunks():
        yield b"%x\r\n%s\r\n" % (len(data), data)
    if request.is_chunked:
        yield b"0\r\n\r\n"


def _send(store: http.client.HTTPConnection, chunks: Iterator[bytes]) -> None:
    """Send a body. A store that refuses may close before it has all: it has answered, and the rest goes nowhere."""
    for data in chunks:
        with contextlib.suppress(OSError):
            store.send(data)


def _slowly(data: bytes) -> Iterator[bytes]:
    size = len(data) // SLICES + 1
    for start in range(0, len(data), size):
        time.sleep(SLOW_S / SLICES)
        yield data[start : start + size]


def _harm_after(request: Conversation, harm: str, answer: Answer) -> None:
    """Do harm to the answer to what is done."""
    whole = answer.encoded(request)
    if harm in {*ANSWERS, "html", "reset", "hang"}:
        _end(request, harm)
    elif harm == "cut":
        request.wfile.write(whole[: len(whole) // 3])
        request.cut()
    elif harm == "flip":
        kept = {name: value for name, value in answer.headers.items() if name.lower() != "etag"}
        body = re.sub(rb"(<ETag>[^0-9a-f]*)[0-9a-f]{32}", rb"\g<1>" + b"0" * 32, answer.body)
        nonsense = Answer(answer.status, {**kept, "ETag": f'"{"0" * 32}"'}, body)
        request.wfile.write(nonsense.encoded(request))
    else:
        for piece in [whole] if harm == "pause" else _slowly(whole):
            request.wfile.write(piece)


def _end(request: Conversation, harm: str) -> None:
    if harm in ANSWERS:
        request.refuse(*ANSWERS[harm])
    elif harm == "html":
        request.answer(200, {"Content-Type": "text/html"}, b"<html><body>Welcome to our network<br></body></html>")
    else:
        {"reset": request.reset, "cut": request.cut, "hang": request.hang}[harm]()


@contextlib.contextmanager
def faulty(store_port: int, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Run a proxy before a store of this machine, plain or as TLS, until the block ends."""
    proxy = Proxy(store_port)
    with listening(proxy.take, tls) as proxy.listener:
        try:
            yield proxy
        finally:
            proxy.resume.set()
