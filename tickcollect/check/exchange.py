"""An exchange as the collector meets it: its list of symbols, its clock, its history, and its streams.

An acknowledged subscription proves nothing: on a wrong route it stays silent ("Important WebSocket Change Notice",
2026-03-05). So a stream is well when a message of it has come, or when the exchange shows over REST that its market has
not traded since it was subscribed.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from tickcollect import status
from tickcollect.check.findings import FAIL, OK, WARN, Asked, Finding, Findings, Level, named, plural
from tickcollect.config import Config
from tickcollect.events import time_ms
from tickcollect.exchanges.binance import (
    Decoder,
    ExchangeInfo,
    Refused,
    UnknownEvent,
    exchange_info,
    history_rows,
    history_type,
    links,
    server_time_ms,
    stream_name,
)
from tickcollect.feed import (
    Batch,
    Connected,
    Disconnected,
    Inbox,
    Item,
    LinkState,
    Odd,
    SubscriptionRefused,
    Surroundings,
    keep,
)
from tickcollect.rest import RestError
from tickcollect.venues import USER_AGENT, StartError, UnknownSymbolError, Venue, check_symbols, venues

ANSWER_WITHIN_S = 10.0
"""For one answer over REST."""
SYMBOLS_TOLD = 10
"""Of those that the exchange does not list; the others are counted."""
CLOCK_QUESTIONS = 3
CLOCK_WARN_MS = 250
CLOCK_FAIL_MS = 2000
NTP = "Run an NTP client: apt install chrony, or timedatectl set-ntp true"
PROOF_WITHIN_S = 15.0
"""For all questions together whether the markets of silent streams have traded."""
LATE_WITHIN_S = 5.0
"""What the exchange shows over REST has come by websocket after this time."""
SUBSCRIBING_MS = 2000
"""A trade this soon after a subscription may have been before it."""
ATTEMPTS = 3
"""A connection that failed this often is not tried any more."""


async def look_at_exchanges(asked: Asked) -> Findings:
    """Look at each exchange and address: its list, its clock, its streams, its history."""
    try:
        found = venues(asked.config)
    except StartError as error:
        return [Finding("exchange", "", FAIL, str(error), "Correct the address in the configuration")]
    return list(chain.from_iterable(await asyncio.gather(*(_visit(asked, venue) for venue in found))))


async def _visit(asked: Asked, venue: Venue) -> Findings:
    """Look at one exchange; what one question shows is needed for the next."""
    try:
        info, findings = await _listed(venue)
        if info is None:
            return [*findings, *await _streams(asked, venue, venue.feeds, None)]
        feeds = [(stream, symbol) for stream, symbol in venue.feeds if symbol in info.statuses]
        ahead_ms, clock = await _clock(venue, asked.time_ns)
        streams, key = await asyncio.gather(
            _streams(asked, venue, feeds, ahead_ms), _history(asked.config, venue, dict(feeds))
        )
        return [*findings, *clock, *streams, *key]
    finally:
        await venue.rest.close()


async def _ask(
    venue: Venue,
    path: str,
    params: Mapping[str, str | int] | None = None,
    *,
    weight: int,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return an answer, asked for twice where that can help. Raises `RestError`."""
    try:
        async with asyncio.timeout(3 * ANSWER_WITHIN_S):
            return await venue.rest.get(
                venue.market.rest_prefix + path,
                params,
                weight=weight,
                headers=headers,
                timeout_s=ANSWER_WITHIN_S,
                retry_delays_s=(1.0,),
            )
    except TimeoutError:
        raise RestError(f"{venue.market.name}{path}: no request is allowed at present") from None


def _refused(area: str, subject: str, level: Level, error: RestError, remedy: str = "") -> Finding:
    """Return the finding that a failed question is; the error brings its own remedy."""
    return Finding(area, subject, level, str(error).removesuffix(error.advice).rstrip(". "), remedy or error.advice)


async def _listed(venue: Venue) -> tuple[ExchangeInfo | None, Findings]:
    """Ask for the list of symbols and compare it with what is to be collected; None where there is no answer."""
    market = venue.market
    try:
        body = await _ask(venue, "/exchangeInfo", weight=market.exchange_info_weight)
        info = await asyncio.to_thread(exchange_info, market, body)
    except RestError as error:
        return None, [_refused("exchange", market.name, FAIL, error)]
    except ValueError as error:
        found = f"its list of symbols cannot be read: {error}"
        return None, [Finding("exchange", market.name, FAIL, found, "Check rest_url; if it is right, try again later")]
    venue.budget.learn(venue.market.name, info.weight_per_minute)
    weight = f"{info.weight_per_minute:,} request weight a minute"
    found = f"answers; lists {plural(len(info.statuses), 'symbol')}, allows {weight}"
    findings = [Finding("exchange", market.name, OK, found)]
    if info.weight_per_minute < market.weight_per_minute:
        found = f"allows less than usual ({market.weight_per_minute:,}): filling gaps takes longer"
        findings.append(Finding("exchange", market.name, WARN, found, "See the exchange's announcements"))
    return info, [*findings, *_unlisted(venue, info), *_not_trading(venue, info)]


def _unlisted(venue: Venue, info: ExchangeInfo) -> Iterator[Finding]:
    try:
        check_symbols(venue, info)
    except UnknownSymbolError as error:
        lines = str(error).splitlines()
        for line in lines[:SYMBOLS_TOLD]:
            subject, _, found = line.partition(": ")
            yield Finding("exchange", subject, FAIL, found, "Correct it in COLLECT, or take it out")
        if len(lines) > SYMBOLS_TOLD:
            found = f"{len(lines) - SYMBOLS_TOLD:,} more are no symbols of this exchange"
            yield Finding("exchange", venue.market.name, FAIL, found, "Correct `exchange` in that entry of COLLECT")


def _not_trading(venue: Venue, info: ExchangeInfo) -> Iterator[Finding]:
    resting: dict[str, list[str]] = {}
    for symbol in dict.fromkeys(symbol for _, symbol in venue.feeds):
        state = info.statuses.get(symbol, "TRADING")
        if state != "TRADING":
            resting.setdefault(state, []).append(symbol)
    for state, symbols in resting.items():
        found = f"the exchange says {state} of {named(symbols)}, so nothing may come"
        yield Finding("exchange", venue.market.name, WARN, found, "Take it out of COLLECT if it does not trade again")


async def _clock(venue: Venue, time_ns: Callable[[], int]) -> tuple[float | None, Findings]:
    """Measure how many ms the exchange's clock is ahead of this machine's; the quickest answer tells it best."""
    name = venue.market.name
    trips: list[tuple[float, float]] = []
    try:
        for _ in range(CLOCK_QUESTIONS):
            sent_ns = time_ns()
            body = await _ask(venue, "/time", weight=1)
            come_ns = time_ns()
            trips.append(((come_ns - sent_ns) / 1e6, server_time_ms(body) - (sent_ns + come_ns) / 2e6))
    except RestError as error:
        return None, [_refused("clock", name, WARN, error)]
    except ValueError as error:
        return None, [Finding("clock", name, WARN, f"its clock cannot be read: {error}", "Check rest_url")]
    trip_ms, ahead_ms = min(trips)
    side = "behind" if ahead_ms > 0 else "ahead"
    found = f"this machine's clock is {abs(ahead_ms):,.0f} ms {side}, give or take {trip_ms / 2:.0f} ms"
    wrong_ms = abs(ahead_ms) - trip_ms / 2
    level = FAIL if wrong_ms > CLOCK_FAIL_MS else WARN if wrong_ms > CLOCK_WARN_MS else OK
    return ahead_ms, [Finding("clock", name, level, found, "" if level is OK else NTP)]


async def _history(config: Config, venue: Venue, symbols: Mapping[str, str]) -> Findings:
    """Ask the history that needs an API key for one row; `symbols` has one for each stream."""
    market, key = venue.market, config.binance_api_key.get_secret_value()
    stream = next((stream for stream in symbols if market.history[stream].key_header), None)
    if stream is None or not config.backfill:
        return []
    subject, source = f"{market.name} {stream}", market.history[stream]
    if not key:
        found = "gaps of this stream can be filled only with an API key"
        return [Finding("history", subject, WARN, found, "Set BINANCE_API_KEY: a key without any permission is enough")]
    if source.weight > venue.budget.allowance:
        found = (
            f"gaps of this stream are filled one request a minute: its weight {source.weight} is more than "
            f"the {venue.budget.allowance} that REST_SHARE allows"
        )
        least = math.ceil(100 * source.weight / venue.budget.limit) / 100
        return [Finding("history", subject, WARN, found, f"Raise REST_SHARE to {least:.2f} or more")]
    params: dict[str, str | int] = {"symbol": symbols[stream], "limit": 1}
    try:
        await _ask(venue, source.path, params, weight=source.weight, headers={source.key_header: key})
    except RestError as error:
        remedy = "Correct BINANCE_API_KEY: a key without any permission is enough" if error.code in KEY_REFUSED else ""
        return [_refused("history", subject, FAIL, error, remedy)]
    return [Finding("history", subject, OK, "BINANCE_API_KEY is accepted")]


KEY_REFUSED = (-2014, -2015)
"""Error codes: the key has a wrong form; key, address or permission are refused (Binance errors.md)."""


# --- The streams ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Newest:
    """When a market last traded, ms since 1970 by its own clock; None where it never did, or where it is `unknown`."""

    at_ms: float | None = None
    unknown: str = ""


@dataclass(eq=False)
class _Listening:
    """One connection under test: what was asked for and what has come."""

    state: LinkState
    decoder: Decoder
    subject: str
    """The exchange, the kinds of streams, and which of its connections where there are several."""
    silent: set[str]
    """Streams of which nothing has come yet, by the exchange's names."""
    slowest_s: float = 0.0
    """From the subscription to the last first message."""
    is_open: bool = False
    ends: int = 0
    """How often it ended, or could not be made."""
    end: Disconnected | None = None
    """The last of these."""
    refused: dict[str, str] = field(default_factory=dict)
    """Streams that the exchange refuses, with its words."""
    odd: int = 0
    """Messages that cannot be read."""
    odd_reason: str = ""

    @property
    def settled(self) -> bool:
        """Whether waiting longer would show nothing new."""
        hopeless = self.end is not None and (self.end.urgent or self.ends >= ATTEMPTS)
        return hopeless or not self.silent - self.refused.keys()

    def take(self, item: Item, now_s: float) -> None:
        """Note what has come."""
        match item:
            case Batch() if self.silent:
                names = {stream_name(row.s, row.STREAM) for rows in item.messages() for row in rows}
                if names & self.silent:
                    self.slowest_s = now_s - self.state.connected_at_s
                self.silent -= names
            case Connected():
                self.is_open = True
            case Disconnected():
                self.is_open, self.end = False, item
                self.ends += 1
            case SubscriptionRefused():
                reason = f"{item.error.message} (code {item.error.code})"
                self.refused |= dict.fromkeys(item.streams or self.silent, reason)
            case Odd(notice=Refused(reason) | UnknownEvent(reason)):
                self.odd += 1
                self.odd_reason = reason


@dataclass(frozen=True)
class _Heard:
    """What came on an exchange's connections, judged at one moment."""

    feeds: Mapping[str, tuple[str, str]]
    """Stream and symbol, by the exchange's name for both."""
    newest: Mapping[str, _Newest]
    """Of the silent streams."""
    now_ms: float
    """By the exchange's clock."""
    now_s: float
    """By the event loop's clock."""

    def named(self, names: Iterable[str], tail: Callable[[str], str] = lambda _: "") -> str:
        """Name streams for a person, by their symbols where that is enough; `tail` says something about each."""
        one_kind = len({stream for stream, _ in self.feeds.values()}) == 1
        feeds = {name: self.feeds[name] for name in sorted(names)}
        return named(
            [(symbol if one_kind else f"{symbol} {stream}") + tail(n) for n, (stream, symbol) in feeds.items()]
        )

    def ago(self, name: str) -> str:
        """Say when a market last traded."""
        at_ms = self.newest[name].at_ms
        if at_ms is None:
            return " (never traded)"
        return f" (last trade {status.span(max(0.0, self.now_ms - at_ms) / 1000)} ago)"

    def of(self, one: _Listening) -> Iterator[Finding]:
        """Tell of one connection: what came, what was refused, and whether it stayed."""
        finding = partial(Finding, "streams", one.subject)
        if came := set(one.state.link.streams) - one.silent:
            what = "a live message" if len(came) == 1 else "a live message of each"
            yield finding(OK, f"{self.named(came)}: {what} within {status.span(max(0.1, one.slowest_s))}")
        for reason in sorted(set(one.refused.values())):
            names = [name for name, said in one.refused.items() if said == reason]
            yield finding(FAIL, f"{self.named(names)}: refused by the exchange: {reason}", "Correct it in COLLECT")
        silent = one.silent - one.refused.keys()
        if silent and not one.is_open:
            reason = one.end.reason if one.end else "the connection is not made in time"
            remedy = (one.end.remedy if one.end else "") or "check ws_url in COLLECT, and the network"
            yield finding(FAIL, f"{self.named(silent)}: {reason}", remedy[0].upper() + remedy[1:])
        elif silent:
            yield from self._silent(one, silent)
        if one.is_open and one.end:
            found = f"the connection had to be made again, because {one.end.reason}"
            yield finding(WARN, found, "Check again; if it stays so, check the network and other programs that use it")
        if one.odd:
            found = f"{plural(one.odd, 'message')} cannot be read: {one.odd_reason}"
            yield finding(WARN, found, "Look for a newer version; until then such messages are kept in quarantine")

    def of_silence(self, one: _Listening, name: str) -> Level:
        """Tell whose silence it is on an open connection: FAIL the stream's, OK the market's, WARN unclear."""
        newest = self.newest.get(name, _Newest(unknown=NOT_ASKED))
        subscribed_ms = self.now_ms - (self.now_s - one.state.connected_at_s) * 1000
        if newest.unknown:
            return WARN
        if newest.at_ms is None or newest.at_ms < subscribed_ms:
            return OK
        return FAIL if newest.at_ms > subscribed_ms + SUBSCRIBING_MS else WARN

    def _silent(self, one: _Listening, silent: set[str]) -> Iterator[Finding]:
        finding = partial(Finding, "streams", one.subject)
        meaning = {name: self.of_silence(one, name) for name in silent}
        if missed := [name for name in silent if meaning[name] is FAIL]:
            found = f"{self.named(missed, self.ago)}: subscribed, but silent although the market trades"
            yield finding(FAIL, found, "Check ws_url in COLLECT; if it is right, look for a newer tickcollect")
        if unclear := sorted(name for name in silent if meaning[name] is WARN):
            reason = self.newest.get(unclear[0], _Newest(unknown=NOT_ASKED)).unknown or "it has hardly traded"
            found = f"{self.named(unclear)}: subscribed, but silent, and whether its market trades is unclear: {reason}"
            yield finding(WARN, found, "Check again with more patience: tickcollect check --wait 300")
        if quiet := [name for name in silent if meaning[name] is OK]:
            yield finding(OK, f"{self.named(quiet, self.ago)}: subscribed, and as silent as the market")


NOT_ASKED = "not all could be asked about in time"


async def _streams(asked: Asked, venue: Venue, feeds: Sequence[tuple[str, str]], ahead_ms: float | None) -> Findings:
    """Connect as the collector does, and wait until each stream has brought a message or has to be asked about."""
    config = asked.config
    inbox = Inbox(config.queue_rows)
    proxy = config.proxy.get_secret_value() if config.proxy else None
    around = Surroundings(inbox, asked.time_ns, asked.uniform, USER_AGENT, proxy=proxy)
    listening = _plan(config, venue, feeds)
    by_name = {stream_name(symbol, stream): (stream, symbol) for stream, symbol in feeds}
    loop = asyncio.get_running_loop()

    def heard(newest: Mapping[str, _Newest]) -> _Heard:
        return _Heard(by_name, newest, asked.time_ns() / 1e6 + (ahead_ms or 0.0), loop.time())

    connections = [asyncio.create_task(keep(one.state, one.decoder, around)) for one in listening.values()]
    try:
        await _listen(listening, inbox, loop.time() + asked.wait_s)
        silent = {name: by_name[name] for one in listening.values() if one.is_open for name in sorted(one.silent)}
        newest = await _newest_trades(venue, silent, ahead_ms)
        now = heard(newest)
        if any(now.of_silence(one, name) is FAIL for one in listening.values() if one.is_open for name in one.silent):
            await _listen(listening, inbox, loop.time() + LATE_WITHIN_S)
        return [finding for one in listening.values() for finding in heard(newest).of(one)]
    finally:
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _plan(config: Config, venue: Venue, feeds: Sequence[tuple[str, str]]) -> dict[LinkState, _Listening]:
    """Return the connections that the collector would make for `feeds`."""
    market = venue.market
    hosts = [venue.ws_url or url for url in (market.ws_url, market.second_ws_url)[: config.redundancy]]
    planned = [link for host in hosts for link in links(market, feeds, host)]
    listening = {}
    for number, link in enumerate(planned, start=1):
        place = f" connection {number} of {len(planned)}" if len(planned) > 1 else ""
        streams = sorted({name.rpartition("@")[2] for name in link.streams})
        state = LinkState(market.name, link)
        decoder = Decoder(market, config.extra_columns, streams)
        subject = f"{market.name} {' and '.join(streams)}{place}"
        listening[state] = _Listening(state, decoder, subject, set(link.streams))
    return listening


async def _listen(listening: Mapping[LinkState, _Listening], inbox: Inbox, ends_s: float) -> None:
    """Take what comes until every connection is settled, at most until `ends_s`."""
    loop = asyncio.get_running_loop()
    while loop.time() < ends_s and not all(one.settled for one in listening.values()):
        for item in await inbox.take(ends_s - loop.time()):
            listening[item.link].take(item, loop.time())
        inbox.done()
    for item in await inbox.take(0.0):  # what was found odd while it was decoded
        listening[item.link].take(item, loop.time())
    inbox.done()


async def _newest_trades(
    venue: Venue, silent: Mapping[str, tuple[str, str]], ahead_ms: float | None
) -> dict[str, _Newest]:
    """Ask when the markets of silent streams last traded, as far as time and request limit go."""
    market = venue.market
    if ahead_ms is None:
        return dict.fromkeys(silent, _Newest(unknown="the exchange's clock could not be asked"))
    found = dict.fromkeys(silent, _Newest(unknown=NOT_ASKED))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PROOF_WITHIN_S):
            for name, (stream, symbol) in silent.items():
                source, kind = market.latest[stream], history_type(market, stream, symbol)
                params: dict[str, str | int] = {"symbol": symbol, "limit": 1}
                try:
                    rows = history_rows(kind, await _ask(venue, source.path, params, weight=source.weight))
                except (RestError, ValueError) as error:
                    found[name] = _Newest(unknown=str(error))
                else:
                    found[name] = _Newest(max((float(time_ms(row.T)) for row in rows), default=None))
    return found
