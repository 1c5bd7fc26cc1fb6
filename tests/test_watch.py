"""The exchange's own list, read again and again: what changed there is told once."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from conftest import PATIENCE_S

from tickcollect.config import CollectEntry, Config
from tickcollect.dataset.replay import Answer, Behaviour, GeneratedMarket, Request, serve
from tickcollect.listings import GONE
from tickcollect.listings import Listing as ListingOf
from tickcollect.venues import Venue, venues

KNOWN_LIMIT = 6000
"""Request weight a minute for one IP: Binance, spot REST API, "LIMITS"."""
FEED = "binance/trade/BTCUSDT"


@dataclass
class Listing:
    """What the exchange answers to exchangeInfo about one symbol, as a test wants it, and what is told of it."""

    state: str | None = "TRADING"
    limit: int = KNOWN_LIMIT
    damaged: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)

    def answer(self, request: Request, answer: Answer) -> Answer:
        if not request.path.endswith("/exchangeInfo"):
            return answer
        self.asked.set()
        value = json.loads(answer.body)
        value["rateLimits"][0]["limit"] = self.limit
        for symbol in value["symbols"]:
            if symbol["symbol"] == "BTCUSDT":
                symbol["status"] = self.state
        value["symbols"] = [] if self.damaged else [symbol for symbol in value["symbols"] if symbol["status"]]
        return answer._replace(body=json.dumps(value).encode())

    def tell(self, event: str, subject: str, /, **facts: object) -> None:
        self.told.append((event, subject, facts))

    async def until_asked_again(self) -> None:
        """Wait until an answer given from now on has been used: the next question comes after that."""
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                self.asked.clear()
                await self.asked.wait()


@asynccontextmanager
async def watched(listing: Listing) -> AsyncIterator[Venue]:
    """Watch a generated market's list, asking again at once."""
    market = GeneratedMarket("binance", start_ms=1_784_000_000_000, symbols=2)
    async with serve(market, behaviour=Behaviour(rest=listing.answer)) as server:
        entry = CollectEntry(exchange="binance", symbols=("BTCUSDT",), ws_url=server.ws_url, rest_url=server.rest_url)
        (venue,) = venues(Config(collect=(entry,)))
        watch = asyncio.create_task(ListingOf(venue, listing.tell, asyncio.Event(), read_again_s=0.01).run())
        try:
            yield venue
        finally:
            watch.cancel()
            await asyncio.wait({watch})
            await venue.rest.close()


def test_a_symbol_that_stops_trading_or_is_delisted_is_told_once() -> None:
    """Each change of a collected symbol's state is told once, and so is that it is gone; answers without it are."""

    async def live() -> None:
        listing = Listing()
        async with watched(listing):
            await listing.until_asked_again()
            listing.state = "BREAK"
            await listing.until_asked_again()
            listing.damaged = True
            await listing.until_asked_again()
            listing.state, listing.damaged = None, False
            await listing.until_asked_again()
        assert listing.told == [
            ("state_changed", FEED, {"was": "TRADING", "state": "BREAK"}),
            ("state_changed", FEED, {"was": "BREAK", "state": GONE}),
        ]

    asyncio.run(live())


def test_a_changed_request_limit_is_told_and_kept() -> None:
    """A limit other than the known one is told at the start, another one when it comes, and is then obeyed."""

    async def live() -> None:
        listing = Listing(limit=4800)
        async with watched(listing) as venue:
            await listing.until_asked_again()
            listing.limit = 2400
            await listing.until_asked_again()
            assert venue.budget.limit == 2400
        assert listing.told == [
            ("limits_changed", "binance", {"was": KNOWN_LIMIT, "now": 4800}),
            ("limits_changed", "binance", {"was": 4800, "now": 2400}),
        ]

    asyncio.run(live())


@pytest.mark.parametrize(("stated", "kept"), [(0, 6000), (-5, 6000), (10, 600), (10**18, 6000)])
def test_a_request_limit_that_cannot_be_meant_is_told_once_and_bounded(stated: int, kept: int) -> None:
    """Neither nothing at all nor more than this version knows is asked, whatever the list says, however often."""

    async def live() -> None:
        listing = Listing(limit=stated)
        async with watched(listing) as venue:
            await listing.until_asked_again()
            await listing.until_asked_again()
            assert venue.budget.limit == kept
        assert listing.told == [("limit_doubted", "binance", {"stated": stated, "kept": kept})]

    asyncio.run(live())
