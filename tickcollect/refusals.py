"""Refusals: what an HTTP status of the exchange means, and for how long it asks us to stay away. No I/O happens here.

Both the websocket's handshake (`feed`) and the questions over HTTP (`rest`) read refusals here and nowhere else.

Rules, from Binance's rest-api.md ("IP Limits", 2026-07-21), RFC 9110 (10.2.3, `Retry-After`) and several reports of
403 and 451:

1. What the exchange tells counts: `Retry-After` in seconds or as a date, and "IP banned until <milliseconds>" in the
   text, the longer of the two. It is never shorter than a second and never longer than the longest ban, three days.
2. Where it tells nothing that can be read, each status has a time of its own: 429 ends with the UTC minute, for which
   weight is counted; a ban (418) lasts two minutes at least; a firewall (403) is left alone for five minutes.
"""

import contextlib
import enum
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

SHORTEST_WAIT_S = 1.0
LONGEST_BAN_S = 3 * 86400.0
"""Bans last from two minutes to three days (Binance rest-api.md, "IP Limits")."""


class Kind(enum.Enum):
    """What a refusal is, where the difference matters to what is done next."""

    BANNED = enum.auto()
    """This address asked too much, or went on asking after it was told to wait."""
    FORBIDDEN = enum.auto()
    """A firewall or a proxy stands before the exchange."""
    BLOCKED = enum.auto()
    """The exchange does not serve this place."""
    TROUBLE = enum.auto()
    """The exchange has trouble of its own."""
    REFUSED = enum.auto()
    """The exchange understood and refused."""
    STRANGE = enum.auto()
    """Not an answer of the exchange."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a status means, what to do about it, and the least wait in seconds where the exchange tells none."""

    kind: Kind
    meaning: str
    remedy: str
    wait_s: float


TOO_MANY_REQUESTS = 429
_BANNED_REMEDY = "nothing is sent until the exchange allows it again; stop other programs that share this IP address"
_TROUBLE = Refusal(Kind.TROUBLE, "the exchange has trouble of its own", "it is worth trying again later", 0.0)
_REFUSED = Refusal(
    Kind.REFUSED,
    "the exchange refuses this request",
    "asking again will not help, check the address and the symbols",
    60.0,
)
_STRANGE = Refusal(
    Kind.STRANGE,
    "that is not an answer of the exchange",
    "check the address, a proxy, or a login page of the network",
    60.0,
)
_BY_HUNDRED = {4: _REFUSED, 5: _TROUBLE}
_BY_STATUS: dict[int, Refusal] = {
    403: Refusal(
        Kind.FORBIDDEN,
        "a firewall before the exchange refuses this IP address",
        "it is tried again every 5 minutes; stop other programs that use this IP address, or use another one",
        300.0,
    ),
    407: Refusal(Kind.FORBIDDEN, "the proxy asks for a name and a password", "put them into PROXY", 60.0),
    408: _TROUBLE,
    418: Refusal(Kind.BANNED, "this IP address is banned, because it asked too much", _BANNED_REMEDY, 120.0),
    429: Refusal(Kind.BANNED, "this IP address passes the exchange's request limit", _BANNED_REMEDY, 0.0),
    451: Refusal(
        Kind.BLOCKED,
        "the exchange does not serve this country or this cloud region",
        "run it elsewhere; spot market data is also offered at https://data-api.binance.vision and "
        "wss://data-stream.binance.vision",
        300.0,
    ),
}


def refusal(status: int) -> Refusal:
    """Return what an HTTP status other than success means."""
    return _BY_STATUS.get(status) or _BY_HUNDRED.get(status // 100, _STRANGE)


def wait_s(status: int, retry_after: str | None, wall_s: float, message: str = "") -> float:
    """Return for how many seconds nothing should be sent after a refusal (rules 1 and 2).

    `retry_after` is the header's text, `message` the exchange's own, `wall_s` this machine's clock in Unix seconds.
    """
    told_s = told_wait_s(retry_after, wall_s, message)
    if told_s is not None:
        return told_s
    if status == TOO_MANY_REQUESTS:
        return max(SHORTEST_WAIT_S, 60.0 - wall_s % 60.0)
    return refusal(status).wait_s


def told_wait_s(retry_after: str | None, wall_s: float, message: str = "") -> float | None:
    """Return the longest wait in seconds that `Retry-After` and "IP banned until" tell; None where neither is there."""
    told = [_retry_after_s(retry_after or "", wall_s), _banned_until_s(message, wall_s)]
    waits_s = [seconds for seconds in told if seconds is not None]
    return min(max(SHORTEST_WAIT_S, *waits_s), LONGEST_BAN_S) if waits_s else None


_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]*)?")
"""RFC 9110 knows whole seconds only; a fraction is understood all the same."""
_BANNED_UNTIL = re.compile(r"banned until ([0-9]{13})(?![0-9])")


def _retry_after_s(value: str, wall_s: float) -> float | None:
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    # A date of a year or an offset that no calendar holds is told by any of these.
    with contextlib.suppress(ValueError, OverflowError, TypeError, IndexError):
        return parsedate_to_datetime(text).timestamp() - wall_s
    return None


def _banned_until_s(message: str, wall_s: float) -> float | None:
    until = _BANNED_UNTIL.search(message)
    return int(until[1]) / 1000 - wall_s if until else None
