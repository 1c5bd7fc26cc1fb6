"""python-binance as a collector: the trade socket of its documentation, each message a line of a CSV file.

    python python_binance_trades.py WS_URL REST_URL SYMBOL DATA_DIR

Its addresses are attributes of its classes; they are set here, nothing else of it is changed.
"""

import asyncio
import sys
from pathlib import Path

from binance import AsyncClient, BinanceSocketManager  # type: ignore[import-not-found]  # it lives in its own venv


async def collect(ws_url: str, rest_url: str, symbol: str, data_dir: Path) -> None:
    """Append each trade, for ever."""
    AsyncClient.API_URL = f"{rest_url}/api"
    client = await AsyncClient.create()
    manager = BinanceSocketManager(client)
    manager.STREAM_URL = f"{ws_url}/"
    with (data_dir / f"{symbol}.csv").open("a", buffering=1) as file:
        async with manager.trade_socket(symbol) as socket:
            while True:
                message = await socket.recv()
                if message["e"] == "error":
                    sys.stderr.write(f"{message}\n")
                else:
                    columns = (message[name] for name in ("e", "E", "s", "t", "p", "q", "T", "m"))
                    file.write(",".join(map(str, columns)) + "\n")


asyncio.run(collect(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])))
