"""Venues: what is to be collected, by exchange and address, and which of its symbols an exchange does not list."""

from dataclasses import dataclass

from tickcollect import __version__
from tickcollect.budget import Budget
from tickcollect.config import CollectEntry, Config
from tickcollect.exchanges.binance import (
    MARKETS,
    ExchangeInfo,
    Market,
    nearest_symbols,
    rest_url_for,
)
from tickcollect.rest import Rest

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
    """Group what shall be collected by exchange and address; USD-M and COIN-M share one budget (2026-06-24).

    Raises `StartError` for an address or a proxy that cannot be used.
    """
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
        budget = budgets.setdefault(market.weight_pool, Budget(market.weight_per_minute, config.rest_share))
        try:
            rest = Rest(rest_url, budget=budget, proxy=proxy, user_agent=USER_AGENT)
        except ValueError as error:
            raise StartError(str(error)) from error
        found.append(Venue(market, ws_url, rest, tuple(entries), budget))
    return found


def unknown_symbols(venue: Venue, info: ExchangeInfo) -> dict[tuple[str, str], str]:
    """Return the feeds (stream, symbol) whose symbol the exchange does not list, each with a line for people."""
    known = list(info.statuses)
    lines = {}
    for stream, symbol in venue.feeds:
        if symbol not in info.statuses:
            near = nearest_symbols(symbol, known)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; the exchange lists no similar name"
            lines[stream, symbol] = f"{venue.market.name} {stream}: {symbol} is not a symbol of this exchange{hint}"
    return lines


def check_symbols(venue: Venue, info: ExchangeInfo) -> None:
    """Refuse symbols that the exchange does not list, all of them at once, each with its nearest names."""
    if lines := unknown_symbols(venue, info):
        raise UnknownSymbolError("\n".join(lines.values()))
