"""GET inside the exchange's weight budget.

Rules, from Binance's rest-api.md ("Limits", 2026-07-21) and its derivatives "General Info" page (2026-06):

1. Weight is limited per IP address and clock minute; `budget` says how much of it is spent, by whom and in which order.
2. A request is sent when the budget lets it in; the caller may bound its waiting for that. What is known to take longer
   is told at once.
3. Each answer, a refusal too, tells the weight used by the whole address, and the budget is told of it.
4. After 429, 418 or 403 nothing is sent under that budget until the time told has passed (`refusals`): ignoring it
   makes bans longer.
5. A request is repeated only where that can help: no connection, no or half an answer, trouble inside the exchange.
6. Certificates are always verified. Redirects are not followed: the exchange sends none, so they come from somebody
   else. Proxies are used only where the caller names one, never from the environment. httpx is kept from logging
   addresses, which may hold secrets elsewhere in the process.
7. Whatever the libraries below may raise about an address, a proxy, a connection or an answer is a `RestError` here.
"""

import asyncio
import logging
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Self

import httpx
import orjson
import socksio

from tickcollect.budget import Budget, Purpose, Ticket
from tickcollect.refusals import TOO_MANY_REQUESTS, Kind, Refusal, refusal, told_wait_s, wait_s

BODY_BYTES_MAX = 64 * 2**20
"""No answer of the exchange is near this; exchangeInfo of the spot market is about 20 MB."""
_ERROR_BODY_BYTES_MAX = 64 * 2**10
_MESSAGE_CHARACTERS_MAX = 200


# --- What can go wrong ---------------------------------------------------------------------------------------------


class RestError(Exception):
    """A GET gave no usable answer. The text says what happened, what it means and what to do.

    `advice` is what it means and what to do; a refusal's status may say it better than its class. `retry_after_s`:
    asking again makes no sense before, where that is known. `code`: the exchange's own error code.
    """

    advice: str = ""

    def __init__(
        self, what: str, *, advice: str = "", retry_after_s: float | None = None, code: int | None = None
    ) -> None:
        self.advice = advice or self.advice
        super().__init__(f"{what}. {self.advice}")
        self.retry_after_s = retry_after_s
        self.code = code


class NotAdmittedError(RestError):
    """The budget did not let the request in within the time that the caller has; nothing was sent."""

    advice = "It is asked again later."


class UnreachableError(RestError):
    """No connection, or no answer in time."""

    advice = "Check the network, the name server and the address; it is worth trying again."


class CertificateError(RestError):
    """The server could not prove who it is."""

    advice = (
        "Somebody may be reading along, or this machine's clock or its certificates are wrong. "
        "Verification is never switched off: correct the clock, or install the package ca-certificates."
    )


class BlockedError(RestError):
    """451: the exchange does not serve this place."""


class BannedError(RestError):
    """429 or 418: this address has asked too much, or went on asking after it was told to wait."""


class ForbiddenError(RestError):
    """403 from the firewall before the exchange, or 407 from a proxy."""


class BadRequestError(RestError):
    """The exchange understood and refused; asking the same again gives the same."""

    advice = "Asking again will not help: correct the symbol or the address."


class ServerTroubleError(RestError):
    """5xx, 408 or a timeout inside the exchange."""


class BadAnswerError(RestError):
    """An answer that is not the exchange's JSON: another site, a redirect, something endless."""

    advice = "This is probably not the exchange: check the address, a proxy, or a login page of the network."


class CutAnswerError(BadAnswerError):
    """The connection ended in the middle of an answer."""

    advice = "It is worth trying again."


_WORTH_REPEATING = (UnreachableError, ServerTroubleError, CutAnswerError)

_BY_KIND: dict[Kind, type[RestError]] = {
    Kind.BANNED: BannedError,
    Kind.FORBIDDEN: ForbiddenError,
    Kind.BLOCKED: BlockedError,
    Kind.TROUBLE: ServerTroubleError,
    Kind.REFUSED: BadRequestError,
    Kind.STRANGE: BadAnswerError,
}
_STATUS_OF_CODE = {
    -1001: 503,  # DISCONNECTED
    -1003: TOO_MANY_REQUESTS,
    -1007: 504,  # TIMEOUT
}
"""Where the exchange's own code (Binance's errors.md) says more than the status: the status that says the same."""


# --- Asking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """The times and the waiting that `Rest` uses."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Rest:
    """One REST address of an exchange. Close it after use, or use it as an async context manager.

    `budget` is shared by everything that counts into the same limit (rule 1). `retry_delays_s` has one pause for each
    repetition (rule 5). `ssl_context` replaces the system's certificates, not the verification. Raises `ValueError`
    for an address, of the exchange or of the proxy, that cannot be used; the text never holds the proxy's.
    """

    def __init__(
        self,
        base_url: str,
        *,
        budget: Budget,
        clock: Clock | None = None,
        retry_delays_s: Sequence[float] = (1.0, 3.0, 10.0),
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        used_weight_header: str = "X-MBX-USED-WEIGHT-1M",
        user_agent: str = "tickcollect",
        body_bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.base_url = base_url.rstrip("/")
        self._host = _usable(base_url, f"{base_url} cannot be asked").netloc.decode()
        self._budget = budget
        self._clock = clock or Clock()
        self._retry_delays_s = tuple(retry_delays_s)
        self._used_weight_header = used_weight_header
        self._body_bytes_max = body_bytes_max
        self._client = httpx.AsyncClient(
            verify=ssl_context or ssl.create_default_context(),
            proxy=None if proxy is None else _usable(proxy, "PROXY cannot be used"),
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - `_ask` bounds the whole answer; httpx would bound each of its reads
            limits=httpx.Limits(max_connections=4),
            headers={"User-Agent": user_agent, "Accept": "application/json", "Accept-Encoding": "gzip"},
        )

    async def get(
        self,
        path: str,
        params: Mapping[str, str | int] | None = None,
        *,
        weight: int,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 20.0,
        retry_delays_s: Sequence[float] | None = None,
        purpose: Purpose = Purpose.REPAIR,
        admitted_within_s: float | None = None,
    ) -> bytes:
        """Return the body of a good answer, which begins and ends like JSON.

        Waits in the budget's line, by `purpose`, while the budget is used up or closed; `admitted_within_s` bounds that
        for each sending, and `timeout_s` each single request after it. `retry_delays_s` replaces the usual pauses, for
        a caller with a patience of its own. Raises the `RestError` that tells what went wrong last: `NotAdmittedError`
        where the budget does not let the request in within its time, at once where that is known.
        """
        delays_s = iter(self._retry_delays_s if retry_delays_s is None else retry_delays_s)
        while True:
            try:
                ticket, sent_s = await self._admitted(f"{self._host}{path}", weight, purpose, admitted_within_s)
                return await self._ask(path, params, headers, timeout_s, ticket, sent_s)
            except _WORTH_REPEATING as error:
                delay_s = next(delays_s, None)
                if delay_s is None or (error.retry_after_s or 0) > delay_s:
                    raise
            await self._clock.sleep(delay_s)

    async def _ask(
        self,
        path: str,
        params: Mapping[str, str | int] | None,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        ticket: Ticket,
        sent_s: float,
    ) -> bytes:
        where = f"{self._host}{path}"
        response = None
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream("GET", self.base_url + path, params=params, headers=headers) as response,
            ):
                body = await self._body(response, where)
        except _LIBRARY_ERRORS as error:
            if response is None:
                raise _no_answer(error, where, timeout_s) from error
            if response.status_code == HTTPStatus.OK:
                raise CutAnswerError(f"{where}: the answer ended before it was whole") from error
            body = b""  # a refusal says enough by its status
        finally:
            used = None if response is None else _whole_number(response.headers.get(self._used_weight_header, ""))
            self._budget.settle(ticket, sent_s, self._clock.wall(), self._clock.monotonic(), used)
        if response.status_code != HTTPStatus.OK:
            raise self._refused(response, body, where)
        if not _JSON_ENDS.fullmatch(body[:_EDGE_BYTES] + body[-_EDGE_BYTES:]):
            raise BadAnswerError(f"{where}: the answer is not JSON")
        return body

    async def _admitted(
        self, where: str, weight: int, purpose: Purpose, within_s: float | None
    ) -> tuple[Ticket, float]:
        """Wait until the budget lets a request in; return its booking and the wall clock's time of it."""
        budget, clock = self._budget, self._clock
        if weight > budget.limit:
            raise NotAdmittedError(f"{where}: its weight {weight} is above the exchange's {budget.limit} a minute")
        woken = asyncio.Event()
        ticket = Ticket(weight, purpose, clock.monotonic(), woken.set)
        deadline_s = math.inf if within_s is None else ticket.since_s + within_s
        budget.join(ticket)
        try:
            while True:
                woken.clear()
                now_s, left_s = clock.wall(), deadline_s - clock.monotonic()
                wait_s = budget.reserve(ticket, now_s, clock.monotonic())
                if not wait_s:
                    return ticket, now_s
                least_s = budget.least_wait_s(ticket, now_s, clock.monotonic())
                if left_s <= 0 or left_s < least_s < math.inf:
                    raise _not_admitted(where, least_s)
                await self._pause(min(wait_s, left_s), woken)
        finally:
            budget.leave(ticket, clock.monotonic())

    async def _pause(self, seconds: float, woken: asyncio.Event) -> None:
        """Wait until the time has passed, or until the line's ticket is woken."""
        waking = asyncio.ensure_future(woken.wait())
        waits = {waking} if seconds == math.inf else {waking, asyncio.ensure_future(self._clock.sleep(seconds))}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _body(self, response: httpx.Response, where: str) -> bytes:
        """Read a whole answer, or of a refusal as much as its reason may need."""
        chunks: list[bytes] = []
        size = 0
        good = response.status_code == HTTPStatus.OK
        async for chunk in response.aiter_bytes():
            chunks.append(chunk)
            size += len(chunk)
            if good and size > self._body_bytes_max:
                raise BadAnswerError(f"{where}: the answer is larger than {self._body_bytes_max} bytes")
            if not good and size > _ERROR_BODY_BYTES_MAX:
                break
        return b"".join(chunks)

    def _refused(self, response: httpx.Response, body: bytes, where: str) -> RestError:
        """Return the error that an answer other than 200 means; a ban also closes the budget."""
        status, wall_s = response.status_code, self._clock.wall()
        code, message = _code_and_message(body)
        status_meant = _STATUS_OF_CODE.get(code or 0, status)
        if status in _BANNED_STATUSES:
            status_meant = status
        found = refusal(status_meant)
        what = f"{where}: HTTP {status}{message}"
        if "Location" in response.headers:
            what += f", which would lead to {_printable(response.headers['Location'])}"
        header = response.headers.get("Retry-After")
        told_s = told_wait_s(header, wall_s, message)
        if found.kind in _CLOSING:
            told_s = wait_s(status_meant, header, wall_s, message)
            self._budget.close(told_s, self._clock.monotonic())
            what += f", wait {math.ceil(told_s)} s"
        return _BY_KIND[found.kind](what, advice=_advice(found), retry_after_s=told_s, code=code)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _usable(address: str, what: str) -> httpx.URL:
    """Return an address as httpx has it. Raises `ValueError`, in our words: its own would show a proxy's password."""
    try:
        return httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        raise ValueError(f"{what}: its host is no name and no IP address, or it is too long") from None


# --- Reading what came ---------------------------------------------------------------------------------------------

_EDGE_BYTES = 64
_JSON_ENDS = re.compile(rb"\s*[{\[].*[}\]]\s*", re.DOTALL)
_CLOSING = (Kind.BANNED, Kind.FORBIDDEN)
_BANNED_STATUSES = (418, TOO_MANY_REQUESTS)
"""Their time tells more than the code in the text, which is -1003 for both."""


_LIBRARY_ERRORS: tuple[type[Exception], ...] = (
    httpx.HTTPError,
    httpx.InvalidURL,
    socksio.SOCKSError,  # httpcore hands it on
    OSError,  # sockets and TLS; TimeoutError too
    ValueError,  # names and parameters that cannot be encoded
    ArithmeticError,  # a length that does not fit into a proxy's protocol
    RuntimeError,  # a connection or a stream that is used after its end
)
"""What httpx and what it stands on may raise about an address, a proxy or what comes (rule 7)."""


_MEANINGS: tuple[tuple[type[Exception], type[RestError], str], ...] = (
    (ssl.SSLCertVerificationError, CertificateError, "the certificate is not trusted"),
    (ssl.SSLError, UnreachableError, "no TLS connection"),
    (socket.gaierror, UnreachableError, "the name of the host is not known"),
    (httpx.ProxyError, UnreachableError, "the proxy does not let this through"),
    (socksio.SOCKSError, UnreachableError, "the proxy does not speak SOCKS5"),
    (httpx.InvalidURL, BadAnswerError, "the address, or the one that the answer leads to, is no address"),
    (UnicodeError, BadAnswerError, "the address, or the one that the answer leads to, is no address"),
    (httpx.RemoteProtocolError, UnreachableError, "the connection was closed, or what came was not HTTP"),
    (OSError, UnreachableError, "the connection failed"),
)
"""Which cause means what, the most telling first: httpx itself names the step that failed, not the reason."""


def _no_answer(error: Exception, where: str, timeout_s: float) -> RestError:
    """Return what it means that no answer came."""
    if isinstance(error, TimeoutError):
        return UnreachableError(f"{where}: no whole answer within {timeout_s:g} s")
    causes = list(_causes(error))
    for kind, meaning, sentence in _MEANINGS:
        found = [cause for cause in causes if isinstance(cause, kind)]
        if found:
            return meaning(f"{where}: {sentence}{_detail(found[-1])}")
    return UnreachableError(f"{where}: the connection failed ({type(error).__name__})")


def _not_admitted(where: str, least_s: float) -> NotAdmittedError:
    known_s = least_s if 0 < least_s < math.inf else None
    until = f" for {math.ceil(known_s)} s" if known_s else " in time"
    return NotAdmittedError(f"{where}: the request limit lets nothing in{until}", retry_after_s=known_s)


def _advice(found: Refusal) -> str:
    return f"{found.meaning[:1].upper()}{found.meaning[1:]}: {found.remedy}."


def _detail(cause: Exception) -> str:
    match cause:
        case ssl.SSLCertVerificationError():
            return f" ({cause.verify_message})"
        case socket.gaierror() | ssl.SSLError():
            return f" ({cause.strerror})"
        case OSError(errno=int(number)):
            return f" ({os.strerror(number)})"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that led to it, groups included."""
    pending, seen = [error], {id(error)}
    while pending:
        cause = pending.pop(0)
        yield cause
        members = cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()
        for inner in (*members, cause.__cause__, cause.__context__):
            if inner is not None and id(inner) not in seen:
                seen.add(id(inner))
                pending.append(inner)


def _code_and_message(body: bytes) -> tuple[int | None, str]:
    """Return the exchange's error code, and code and message as a clause for a sentence; None and "" without."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None, ""
    code = value.get("code") if isinstance(value, dict) else None
    if not isinstance(code, int) or isinstance(code, bool):
        return None, ""
    message = value.get("msg")
    text = _printable(message) if isinstance(message, str) else ""
    return code, f", code {code}: {text}".rstrip(": ")


def _whole_number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text.strip()) else None


def _printable(text: str) -> str:
    """Return text from the network as it may stand in a message: short, and without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MESSAGE_CHARACTERS_MAX])
