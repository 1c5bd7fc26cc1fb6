"""GET inside the exchange's weight budget.

Rules, from Binance's rest-api.md ("Limits", 2026-07-21) and its derivatives "General Info" page (2026-06):

1. Weight is limited per IP address and UTC clock minute; USD-M and COIN-M count into one limit. So whatever shares an
   address and a limit shares one `Budget`. It spends no more than its share, half by default: then even a clock that
   is wrong, which lays one of our minutes across two of theirs, cannot pass the limit.
2. A request is booked before it is sent, in the minute of its sending, and once more in the next minute if it is still
   unanswered when that begins: the exchange may count it in either. A refused request costs its weight too.
3. Each answer tells the weight used by the whole address; if that is more than we booked, somebody else is using it.
4. After 429, 418 or 403 nothing is sent under that budget until the time told has passed. Ignoring it makes bans
   longer.
5. A request is repeated only where that can help: no connection, no or half an answer, trouble inside the exchange.
6. Certificates are always verified. Redirects are not followed: the exchange sends none, so they come from somebody
   else. Proxies are used only where the caller names one, never from the environment. httpx is kept from logging
   addresses, which may hold secrets elsewhere in the process.
"""

import asyncio
import contextlib
import email.utils
import json
import logging
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import ClassVar, Self

import httpx

BODY_BYTES_MAX = 64 * 2**20
"""No answer of the exchange is near this; exchangeInfo of the spot market is about 20 MB."""
_ERROR_BODY_BYTES_MAX = 64 * 2**10
_MESSAGE_CHARACTERS_MAX = 200
_FORBIDDEN_S = 60.0
"""How long nothing is sent after a 403: the firewall's rules look at rates too."""
_BAN_S_MIN = 120.0
"""The shortest ban by rest-api.md; taken where a 418 does not tell its end."""


# --- What can go wrong ---------------------------------------------------------------------------------------------


class RestError(Exception):
    """A GET gave no usable answer. The text says what happened, what it means and what to do.

    `retry_after_s`: asking again makes no sense before, where that is known. `code`: the exchange's own error code.
    """

    advice: ClassVar[str] = ""

    def __init__(self, what: str, *, retry_after_s: float | None = None, code: int | None = None) -> None:
        super().__init__(f"{what}. {self.advice}")
        self.retry_after_s = retry_after_s
        self.code = code


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

    advice = (
        "The exchange does not serve this country or cloud. Spot market data is also offered at "
        "https://data-api.binance.vision and wss://data-stream.binance.vision; futures need a machine elsewhere."
    )


class BannedError(RestError):
    """429 or 418: this address has asked too much, or went on asking after it was told to wait."""

    advice = (
        "This address asked too much. All requests wait until then; look for other programs that share the address."
    )


class ForbiddenError(RestError):
    """403 from the firewall before the exchange, or 407 from a proxy."""

    advice = "A firewall or a proxy refuses this request. Wait some minutes; if it stays, use another address."


class BadRequestError(RestError):
    """The exchange understood and refused; asking the same again gives the same."""

    advice = "Asking again will not help: correct the symbol or the address."


class ServerTroubleError(RestError):
    """5xx, 408 or a timeout inside the exchange."""

    advice = "The exchange has trouble of its own; it is worth trying again later."


class BadAnswerError(RestError):
    """An answer that is not the exchange's JSON: another site, a redirect, something endless."""

    advice = "This is probably not the exchange: check the address, a proxy, or a login page of the network."


class CutAnswerError(BadAnswerError):
    """The connection ended in the middle of an answer."""

    advice = "It is worth trying again."


_WORTH_REPEATING = (UnreachableError, ServerTroubleError, CutAnswerError)

_BY_STATUS: dict[int, type[RestError]] = {
    403: ForbiddenError,
    407: ForbiddenError,
    408: ServerTroubleError,
    418: BannedError,
    429: BannedError,
    451: BlockedError,
}
_BY_HUNDRED: dict[int, type[RestError]] = {4: BadRequestError, 5: ServerTroubleError}
_BY_CODE: dict[int, type[RestError]] = {
    -1001: ServerTroubleError,  # DISCONNECTED
    -1003: BannedError,  # TOO_MANY_REQUESTS
    -1007: ServerTroubleError,  # TIMEOUT
}
"""Binance's errors.md, where the code says more than the status."""


# --- The budget ----------------------------------------------------------------------------------------------------


@dataclass
class Budget:
    """The request weight that one address may spend in a UTC clock minute. Knows no clock: times come as arguments.

    `limit` is the exchange's (`rateLimits` in exchangeInfo) and may be set anew at any time; `share` is our part of it.
    """

    limit: int
    share: float = 0.5
    _minute: int = field(default=0, init=False)
    _used: int = field(default=0, init=False)
    _unanswered: int = field(default=0, init=False)
    _closed_until_s: float = field(default=float("-inf"), init=False)

    def reserve(self, weight: int, wall_s: float, monotonic_s: float) -> float:
        """Book `weight` and return 0.0, or book nothing and return the seconds after which to ask again.

        Raises `ValueError` for a weight that no minute has room for.
        """
        allowance = int(self.limit * self.share)
        if weight > allowance:
            raise ValueError(f"a request of weight {weight} never fits into {allowance} a minute: raise the share")
        self._begin_minute(wall_s)
        if self._closed_until_s > monotonic_s:
            return self._closed_until_s - monotonic_s
        if self._used + weight > allowance:
            return 60 - wall_s % 60
        self._used += weight
        self._unanswered += weight
        return 0.0

    def settle(self, weight: int, sent_s: float, wall_s: float, used: int | None) -> None:
        """Close a booking made at `sent_s`; `used` is the address's weight in this minute as the answer told it.

        What was told to a request of the minute before is not taken over: it may be that minute's.
        """
        self._begin_minute(wall_s)
        self._unanswered -= weight
        if used is not None and sent_s // 60 == wall_s // 60:
            self._used = max(self._used, used + self._unanswered)

    def close(self, seconds: float, monotonic_s: float) -> None:
        """Let nothing pass for `seconds` (rule 4)."""
        self._closed_until_s = max(self._closed_until_s, monotonic_s + seconds)

    def closed_for_s(self, monotonic_s: float) -> float:
        """Return how long a ban goes on, 0.0 where there is none."""
        return max(0.0, self._closed_until_s - monotonic_s)

    def _begin_minute(self, wall_s: float) -> None:
        minute = int(wall_s // 60)
        if minute > self._minute:
            self._used = self._unanswered
        self._minute = minute  # a clock that was set back frees nothing


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
    for a proxy address that httpx does not understand.
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
        self._host = httpx.URL(base_url).netloc.decode()
        self._budget = budget
        self._clock = clock or Clock()
        self._retry_delays_s = tuple(retry_delays_s)
        self._used_weight_header = used_weight_header
        self._body_bytes_max = body_bytes_max
        self._client = httpx.AsyncClient(
            verify=ssl_context or ssl.create_default_context(),
            proxy=proxy,
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
    ) -> bytes:
        """Return the body of a good answer, which begins and ends like JSON.

        Waits while the budget is used up or closed; `timeout_s` bounds each single request after that.
        `retry_delays_s` replaces the usual pauses, for a caller with a patience of its own. Raises the `RestError` that
        tells what went wrong last.
        """
        delays_s = iter(self._retry_delays_s if retry_delays_s is None else retry_delays_s)
        while True:
            try:
                return await self._ask(path, params, weight, headers, timeout_s)
            except _WORTH_REPEATING as error:
                delay_s = next(delays_s, None)
                if delay_s is None or (error.retry_after_s or 0) > delay_s:
                    raise
            await self._clock.sleep(delay_s)

    async def _ask(
        self,
        path: str,
        params: Mapping[str, str | int] | None,
        weight: int,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> bytes:
        where = f"{self._host}{path}"
        sent_s = await self._admitted(weight)
        response = None
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream("GET", self.base_url + path, params=params, headers=headers) as response,
            ):
                body = await self._body(response, where)
        except (httpx.RequestError, TimeoutError) as error:
            if response is None:
                raise _no_answer(error, where, timeout_s) from error
            if response.status_code == HTTPStatus.OK:
                raise CutAnswerError(f"{where}: the answer ended before it was whole") from error
            body = b""  # a refusal says enough by its status
        finally:
            used = None if response is None else _whole_number(response.headers.get(self._used_weight_header, ""))
            self._budget.settle(weight, sent_s, self._clock.wall(), used)
        if response.status_code != HTTPStatus.OK:
            raise self._refusal(response, body, where)
        if not _JSON_ENDS.fullmatch(body[:_EDGE_BYTES] + body[-_EDGE_BYTES:]):
            raise BadAnswerError(f"{where}: the answer is not JSON")
        return body

    async def _admitted(self, weight: int) -> float:
        """Wait until the budget has room; return the wall clock's time of the booking."""
        while True:
            now_s = self._clock.wall()
            wait_s = self._budget.reserve(weight, now_s, self._clock.monotonic())
            if not wait_s:
                return now_s
            await self._clock.sleep(wait_s)

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

    def _refusal(self, response: httpx.Response, body: bytes, where: str) -> RestError:
        """Return the error that an answer other than 200 means; a ban also closes the budget."""
        status = response.status_code
        code, message = _code_and_message(body)
        kind = _BY_CODE.get(code or 0) or _BY_STATUS.get(status) or _BY_HUNDRED.get(status // 100, BadAnswerError)
        what = f"{where}: HTTP {status}{message}"
        if response.has_redirect_location:
            what += f", which would lead to {_printable(response.headers['Location'])}"
        retry_after_s = _retry_after_s(response.headers, message, self._clock.wall())
        if kind is BannedError:
            if retry_after_s is None:
                retry_after_s = _BAN_S_MIN if status == HTTPStatus.IM_A_TEAPOT else 60 - self._clock.wall() % 60
            self._budget.close(retry_after_s, self._clock.monotonic())
            what += f", wait {math.ceil(retry_after_s)} s"
        elif kind is ForbiddenError:
            self._budget.close(max(_FORBIDDEN_S, retry_after_s or 0.0), self._clock.monotonic())
        return kind(what, retry_after_s=retry_after_s, code=code)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


# --- Reading what came ---------------------------------------------------------------------------------------------

_EDGE_BYTES = 64
_JSON_ENDS = re.compile(rb"\s*[{\[].*[}\]]\s*", re.DOTALL)
_BANNED_UNTIL = re.compile(r"banned until (\d{13})\b")


_MEANINGS: tuple[tuple[type[Exception], type[RestError], str], ...] = (
    (ssl.SSLCertVerificationError, CertificateError, "the certificate is not trusted"),
    (ssl.SSLError, UnreachableError, "no TLS connection"),
    (socket.gaierror, UnreachableError, "the name of the host is not known"),
    (httpx.ProxyError, UnreachableError, "the proxy does not let this through"),
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
    return UnreachableError(f"{where}: the connection failed")


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
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None, ""
    code = value.get("code") if isinstance(value, dict) else None
    if not isinstance(code, int) or isinstance(code, bool):
        return None, ""
    return code, f", code {code}: {_printable(str(value.get('msg', '')))}".rstrip(": ")


def _retry_after_s(headers: httpx.Headers, message: str, wall_s: float) -> float | None:
    """Return the longest waiting time told by `Retry-After` (seconds or a date) and by "IP banned until <ms>"."""
    told_s: list[float] = []
    header = headers.get("Retry-After", "")
    seconds = _whole_number(header)
    if seconds is not None:
        told_s.append(seconds)
    else:
        with contextlib.suppress(ValueError, OverflowError):
            told_s.append(email.utils.parsedate_to_datetime(header).timestamp() - wall_s)
    if until := _BANNED_UNTIL.search(message):
        told_s.append(int(until[1]) / 1000 - wall_s)
    return max(1.0, *told_s) if told_s else None


def _whole_number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,9}", text.strip()) else None


def _printable(text: str) -> str:
    """Return text from the network as it may stand in a message: short, and without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MESSAGE_CHARACTERS_MAX])
