"""Venues: what is to be collected, by exchange and address, checked with the exchange before anything else is done.

An exchange that cannot be reached is asked again, with patience, for as long as that can help; a symbol that it does
not list is refused with the nearest names.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tickcollect import __version__
from tickcollect.budget import Budget
from tickcollect.config import CollectEntry, Config
from tickcollect.exchanges.binance import (
    MARKETS,
    ExchangeInfo,
    Market,
    exchange_info,
    nearest_symbols,
    rest_url_for,
)
from tickcollect.rest import BadRequestError, BlockedError, Rest, RestError

USER_AGENT = f"tickcollect/{__version__}"


class StartError(Exception):
    """Collecting cannot begin, and waiting would not help; the message says what to do."""


class UnknownSymbolError(StartError):
    """Symbols that the exchange does not list."""


@dataclass(frozen=True)
class Venue:
    """One address of one exchange, and what is collected there."""

    market: Market
    ws_url: str | None
    rest: Rest
    entries: tuple[CollectEntry, ...]
    budget: Budget

    @property
    def feeds(self) -> list[tuple[str, str]]:
        """Pairs of stream and symbol."""
        return [(entry.stream, symbol) for entry in self.entries for symbol in entry.symbols]


def venues(config: Config) -> list[Venue]:
    """Group what shall be collected by exchange and address; USD-M and COIN-M share one budget (2026-06-24)."""
    grouped: dict[tuple[str, str | None, str], list[CollectEntry]] = {}
    for entry in config.collect:
        market = MARKETS[entry.exchange]
        rest_url = entry.rest_url or rest_url_for(market, entry.ws_url)
        grouped.setdefault((entry.exchange, entry.ws_url, rest_url), []).append(entry)
    budgets: dict[str, Budget] = {}
    found = []
    proxy = config.proxy.get_secret_value() if config.proxy else None
    for (exchange, ws_url, rest_url), entries in grouped.items():
        market = MARKETS[exchange]
        pool = "spot" if exchange == "binance" else "futures"
        budget = budgets.setdefault(pool, Budget(market.weight_per_minute, config.rest_share))
        rest = Rest(rest_url, budget=budget, proxy=proxy, user_agent=USER_AGENT)
        found.append(Venue(market, ws_url, rest, tuple(entries), budget))
    return found


async def ask_symbols(venue: Venue, tell: Callable[..., None]) -> ExchangeInfo:
    """Return the exchange's list of symbols, trying again with patience where that can help.

    `tell` is told of each failure, and of the success after failures, as of a connection. Raises `StartError` where
    trying again cannot help.
    """
    market = venue.market
    told = partial(tell, link="list of symbols", url=venue.rest.base_url, streams=len(venue.feeds))
    delay_s, failures = 2.0, 0
    while True:
        try:
            body = await venue.rest.get(
                f"{market.rest_prefix}/exchangeInfo", weight=market.exchange_info_weight, retry_delays_s=()
            )
            info = exchange_info(market, body)
        except (BlockedError, BadRequestError) as error:
            raise StartError(f"{market.name}: {error}") from error
        except (RestError, ValueError) as error:
            wait_s = max(delay_s, getattr(error, "retry_after_s", None) or 0.0)
            reason = str(error).rstrip(".")
            told("cannot_connect", market.name, reason=reason, remedy="", retry_in_s=round(wait_s))
            failures += 1
        else:
            if failures:
                told("connected", market.name)
            return info
        await asyncio.sleep(wait_s)
        delay_s = min(delay_s * 2, 60.0)


def check_symbols(venue: Venue, info: ExchangeInfo) -> None:
    """Refuse symbols that the exchange does not list, all of them at once, each with its nearest names."""
    known = list(info.statuses)
    lines = []
    for stream, symbol in venue.feeds:
        if symbol not in info.statuses:
            near = nearest_symbols(symbol, known)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; the exchange lists no similar name"
            lines.append(f"{venue.market.name} {stream}: {symbol} is not a symbol of this exchange{hint}")
    if lines:
        raise UnknownSymbolError("\n".join(lines))
