"""unicorn-binance-websocket-api as a collector: a trade stream with its asyncio queue, each message a CSV line.

    python unicorn_trades.py WS_URL REST_URL SYMBOL DATA_DIR

It takes the websocket's address as an argument and needs no REST.
"""

import asyncio
import sys
from pathlib import Path

from unicorn_binance_websocket_api import BinanceWebSocketApiManager  # type: ignore[import-not-found]  # it lives in its own venv


async def collect(ws_url: str, symbol: str, data_dir: Path) -> None:
    """Append each trade, for ever."""
    manager = BinanceWebSocketApiManager(
        exchange="binance.com", websocket_base_uri=f"{ws_url}/", output_default="dict", warn_on_update=False
    )
    with (data_dir / f"{symbol}.csv").open("a", buffering=1) as file:

        async def process(stream_id: str) -> None:
            while not manager.is_stop_request(stream_id):
                message = await manager.get_stream_data_from_asyncio_queue(stream_id)
                data = message.get("data", {})
                if data.get("e") == "trade":
                    columns = (data[name] for name in ("e", "E", "s", "t", "p", "q", "T", "m"))
                    file.write(",".join(map(str, columns)) + "\n")
                manager.asyncio_queue_task_done(stream_id)

        manager.create_stream(channels="trade", markets=symbol.lower(), process_asyncio_queue=process)
        while not manager.is_manager_stopping():  # noqa: ASYNC110 - as its documentation does
            await asyncio.sleep(1)


asyncio.run(collect(sys.argv[1], sys.argv[3], Path(sys.argv[4])))
