"""The synthetic trades that the benchmarks send, and the rows that must come out.

Everything follows from a trade's number, so that the sender and the checker need not share anything but this module.

Rules:

1. Trade `k` belongs to symbol `k % symbols`, and the IDs of each symbol rise by one.
2. Prices and quantities look like a market's, so that the files pack about as well as real ones: they repeat only
   after 8191 and 6007 trades, together after 49 million.
3. All trades are of one UTC day, at most 172 million of them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tickcollect.events import MS_PER_DAY

FIRST_ID = 6_100_000_001
TRADES_PER_MS = 2
BYTES_OF_EXTENDED_LENGTH = 126
"""From here to 65535 bytes a frame's length takes two more bytes (RFC 6455 5.2)."""


def _prices() -> list[str]:
    market, cents = random.Random(1), 6_400_000
    found = []
    for _ in range(8191):
        cents += market.choice((-12, -1, -1, 0, 0, 0, 0, 0, 1, 1, 12))
        found.append(f"{cents / 100:.8f}")
    return found


def _quantities() -> list[str]:
    market = random.Random(2)
    return [f"{max(1, int(market.lognormvariate(5.5, 2.0))) / 100_000:.8f}" for _ in range(6007)]


_PRICES = _prices()
_QUANTITIES = _quantities()
_BUYER_IS_MAKER = [random.Random(3 + number).random() < 0.5 for number in range(97)]


@dataclass(frozen=True)
class Tape:
    """Trades of `symbols` symbols on the UTC day `day`, counted from 1970-01-01."""

    symbols: int
    day: int

    @property
    def names(self) -> list[str]:
        """The symbols; a tape of one has the best known name."""
        return ["BTCUSDT"] if self.symbols == 1 else [f"S{number:03}USDT" for number in range(self.symbols)]

    def frames(self, start: int, stop: int, event_times: Sequence[int] | None = None) -> bytes:
        """Return trades `start` to `stop` as one run of websocket frames.

        `event_times` are their `E`, in microseconds as a connection may ask for; without them `E` is `T` + 1 ms.
        """
        names = self.names
        streams = [name.lower() for name in names]
        found = []
        for number in range(start, stop):
            id_, symbol = divmod(number, self.symbols)
            time_ms = self._time_ms(number)
            event_time = time_ms + 1 if event_times is None else event_times[number - start]
            found.append(
                frame(
                    b'{"stream":"%b@trade","data":{"e":"trade","E":%d,"s":"%b","t":%d,"p":"%b","q":"%b","T":%d,"m":%b,'
                    b'"M":true}}'
                    % (
                        streams[symbol].encode(),
                        event_time,
                        names[symbol].encode(),
                        FIRST_ID + id_,
                        _PRICES[number % 8191].encode(),
                        _QUANTITIES[number % 6007].encode(),
                        time_ms,
                        b"true" if _BUYER_IS_MAKER[number % 97] else b"false",
                    )
                )
            )
        return b"".join(found)

    def columns(self, symbol: int, start: int, stop: int) -> Iterator[str]:
        """Yield the columns `s` to `m` of the rows of one symbol's trades from its `start`th to its `stop`th."""
        name = self.names[symbol]
        for number in range(start * self.symbols + symbol, stop * self.symbols + symbol, self.symbols):
            yield (
                f"{name},{FIRST_ID + number // self.symbols},{_PRICES[number % 8191]},{_QUANTITIES[number % 6007]},,,"
                f"{self._time_ms(number)},{_BUYER_IS_MAKER[number % 97]}"
            )

    def _time_ms(self, number: int) -> int:
        return self.day * MS_PER_DAY + number // TRADES_PER_MS


def frame(payload: bytes) -> bytes:
    """Return `payload` (below 64 KiB) as an unmasked text frame, as servers send it."""
    size = len(payload)
    if size < BYTES_OF_EXTENDED_LENGTH:
        return b"\x81" + bytes([size]) + payload
    return b"\x81\x7e" + size.to_bytes(2, "big") + payload
