"""cryptofeed as a collector: its TRADES callback of Binance, each trade a line of a CSV file.

    python cryptofeed_trades.py WS_URL REST_URL SYMBOL DATA_DIR

Its addresses are attributes of its exchange's class; they are set here, nothing else of it is changed. Its trades are
Binance's aggregate trades; the kit's market gives these the same IDs and prices.
"""

import sys
from pathlib import Path
from typing import Any

from cryptofeed import FeedHandler  # type: ignore[import-not-found]  # it lives in its own venv
from cryptofeed.defines import TRADES  # type: ignore[import-not-found]  # it lives in its own venv
from cryptofeed.exchanges import Binance  # type: ignore[import-not-found]  # it lives in its own venv

ws_url, rest_url, symbol, data_dir = sys.argv[1:]
Binance.websocket_endpoints[0].address = ws_url
Binance.rest_endpoints[0].address = rest_url
file = (Path(data_dir) / f"{symbol}.csv").open("a", buffering=1)


async def trade(row: Any, received_s: float) -> None:
    """Append one trade."""
    file.write(f"{row.id},{row.symbol},{row.side},{row.price},{row.amount},{row.timestamp},{received_s}\n")


handler = FeedHandler(
    config={"uvloop": False, "log": {"filename": str(Path(data_dir).parent / "feedhandler.log"), "level": "WARNING"}}
)
handler.add_feed(Binance(symbols=[f"{symbol[:-4]}-{symbol[-4:]}"], channels=[TRADES], callbacks={TRADES: trade}))
handler.run()
