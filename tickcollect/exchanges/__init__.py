"""What each exchange says and wants to hear: names, hosts, limits, subscriptions, messages. No I/O happens here."""

from tickcollect.events import STREAMS
from tickcollect.exchanges.binance import MARKETS, Market

NAMES: tuple[str, ...] = tuple(MARKETS)
"""The exchanges that can be collected."""

__all__ = ["MARKETS", "NAMES", "STREAMS", "Market"]
