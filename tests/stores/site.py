"""A data directory of sealed files, uploaded from this process, and what always has to hold afterwards.

Files count as large that are not: `LIMITS` makes three parts of a file of `BIG` bytes. Time passes only where a run
waits for its next attempt, and waiting takes none, so that a slow machine changes nothing.
"""

import contextlib
import io
import random
import re
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from conftest import journal
from loguru import logger

from tickcollect.config import load
from tickcollect.store import Limits, open_store
from tickcollect.upload import Options, Outcome, Patience, World, run

from .swift import SECRET_KEY, STRANGER_SECRET, sha256_of

SMALL = 3_000
BIG = 2_500_000
"""Three parts, where `LIMITS` hold."""
LIMITS = Limits(one_put_bytes=1_000_000, part_bytes=1 << 20)
SECRETS = (SECRET_KEY, STRANGER_SECRET)

PLAIN = Options()
DELETING = Options(delete_after_days=0)
SOON = Patience(within_s=60, first_s=0.005, longest_s=0.02)
BRIEF = Patience(within_s=0.06, first_s=0.005, longest_s=0.02)


def name_of(number: int, day: int = 18) -> str:
    """Return the name of a sealed file."""
    return f"binance/trade/S{number}USDT/S{number}USDT-trade-2026-11-{day}-{number * 100}-{number * 100 + 9}.csv.zip"


def sealed_bytes(name: str, size: int = 0, price: str = "1.50") -> bytes:
    """Return a sealed file of `trade` or `aggTrade` as its name says, filled up to `size` bytes.

    What fills it up stands in a further column, and is not packed, so that the size is exact.
    """
    *_, stream, symbol, file = name.split("/")
    member = re.sub(r"[.]zip$", "", file)
    found = re.fullmatch(r".*-(\d{4}-\d\d-\d\d)-(\d+)-(\d+)[.]csv", member)
    assert found, name
    time_ms = int(datetime.fromisoformat(f"{found[1]}T12:00:00+00:00").timestamp()) * 1000
    ids = range(int(found[2]), int(found[3]) + 1)
    between = {"trade": ",", "aggTrade": "1,1"}[stream]
    rows = [f"{stream},{time_ms},{symbol},{id_},{price},2.0,{between},{time_ms},True" for id_ in ids]
    framing = 0 if member == file else 30 + 46 + 22 + 2 * len(member)
    lacking = size - framing - sum(len(row) + 1 for row in rows)
    if lacking > len(rows):
        fill = random.Random(name).randbytes(lacking // 2 + 1).hex()[: lacking - len(rows)]
        each = len(fill) // len(rows)
        rows = [f"{row},{fill[n * each : (n + 1) * each]}" for n, row in enumerate(rows)]
        rows[-1] += fill[each * len(rows) :]
    csv = "".join(f"{row}\n" for row in rows).encode()
    if member == file:
        return csv
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo(member), csv)
    return packed.getvalue()


class Waits(threading.Event):
    """A clock that goes on only where somebody waits, for as long as they would have."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def monotonic_s(self) -> float:
        """Return the time that was waited so far."""
        return self._now_s

    def wait(self, timeout: float | None = None) -> bool:
        """Let the time go by at once."""
        self._now_s += timeout or 0.0
        return self.is_set()


@dataclass
class Site:
    """A data directory with sealed files, and how to upload it in this process."""

    data_dir: Path
    keys: dict[str, object]
    files: dict[str, bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def seal(self, name: str, size: int = SMALL) -> bytes:
        """Make a sealed file of about this many bytes."""
        return self.seal_as(name, sealed_bytes(name, size))

    def seal_as(self, name: str, data: bytes) -> bytes:
        """Make a sealed file of these bytes."""
        path = self.data_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.files[name] = data
        return data

    def run(
        self,
        options: Options = PLAIN,
        patience: Patience = SOON,
        later: timedelta = timedelta(0),
        *,
        reads_back: bool = False,
        monotonic_s: Callable[[], float] | None = None,
    ) -> Outcome:
        """Upload once; `monotonic_s` is the clock for the run's end, and that of the waits unless it is given."""
        waits = Waits()
        config = load(None, {}, {"DATA_DIR": str(self.data_dir), "UPLOAD_PARALLEL": 8, **self.keys})
        world = World(
            lambda: time.time_ns() + later // timedelta(microseconds=1) * 1000,
            monotonic_s or waits.monotonic_s,
            random.Random(1).uniform,
            waits,
        )
        sink = logger.add(self.said.append, level="DEBUG", format="{message}\n{exception}")
        try:
            with contextlib.closing(open_store(config, LIMITS, reads_back=reads_back)) as store:
                outcome = run(config, store, options, world, patience)
        finally:
            logger.remove(sink)
        self.said += outcome.lines()
        return outcome

    def uploaded(self) -> dict[str, str]:
        """Return which files the journal calls uploaded, and with which SHA-256."""
        return {entry["file"]: entry["sha256"] for entry in journal(self.data_dir, "uploaded")}

    def check(self, held: dict[str, bytes], created: list[str]) -> None:
        """Assert what always holds, given what the store holds and what was ever written there by us."""
        assert all(count == 1 for count in Counter(created).values()), "an object was overwritten"
        for name, sha256 in self.uploaded().items():
            assert held[name] == self.files[name], f"the journal believes a wrong {name}"
            assert sha256 == sha256_of(self.files[name])
        deleted = {entry["file"] for entry in journal(self.data_dir, "deleted")}
        for name, data in self.files.items():
            path = self.data_dir / name
            if path.exists():
                assert path.read_bytes() == data
            else:
                assert held[name] == data, f"{name} is gone without proof"
                assert name in deleted, f"{name} is gone without a word"
        kept = [path.read_text() for path in self.data_dir.glob("*.json*")]
        text = "".join((*self.said, *kept))
        assert not any(secret in text for secret in SECRETS), "a secret came out"
        assert "Traceback" not in text
