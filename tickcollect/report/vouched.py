"""What the collectors of a data directory say of each feed now: that nothing is missing, or since when nobody knows.

It is read before the files are: what is vouched for is then in them, or on record as missing. Whether a collector
lives, and what is known where none does, `status` decides for everybody (`judge`, `doubted`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tickcollect.status import (
    FeedStatus,
    Health,
    NoStatusError,
    Snapshot,
    StatusError,
    alive,
    doubted,
    judge,
    read,
)

STOPPED = "the collector was stopped"
STOPPING = "the collector is being stopped"
UNCONNECTED = "not connected"
EARLIER = "the collector is of an earlier version, which does not tell"


@dataclass(frozen=True, slots=True)
class Vouch:
    """What a collector says of one feed."""

    since: datetime
    """Up to when all is known; or, with a `reason`, since when it is not."""
    reason: str = ""
    """Why it is not known whether IDs are missing; empty where it is known."""
    missing: int = 0
    """IDs known to be missing that may still come, on whichever day; rows that came may wait for them."""

    @property
    def known(self) -> bool:
        """A live collector knows this feed up to now."""
        return not self.reason

    def beside(self, on_record: int) -> "Vouch":
        """Return what is left of it if the journal knows only `on_record` of the missing IDs."""
        waiting = self.missing - on_record
        if not self.known or waiting <= 0:
            return self
        return replace(self, reason=f"rows that have come wait for {waiting:,} missing IDs")


def read_vouches(data_dir: Path, now: datetime) -> tuple[dict[str, Vouch], list[str]]:
    """Return what is said of each feed (`binance/trade/BTCUSDT`), and why nothing can be had if nothing can."""
    now_ns = int(now.timestamp() * 1e9)
    try:
        snapshots = read(data_dir)
    except NoStatusError:
        return {}, []
    except StatusError as error:
        return {}, [f"What a collector knows at present cannot be had: {error}"]
    said: list[tuple[bool, int, str, Vouch]] = []
    for snapshot in snapshots:
        verdict = judge(snapshot, now_ns, alive(snapshot))
        lives = verdict.health < Health.NOT_COLLECTING
        known = snapshot if lives or verdict.in_order else doubted(snapshot)
        said += [(lives, snapshot.at_ns, name, vouch) for name, vouch in _vouches(known, lives)]
    said.sort(key=lambda one: one[:2])  # who lives has the last word, then who spoke last
    return {name: vouch for _, _, name, vouch in said}, []


def _vouches(snapshot: Snapshot, lives: bool) -> Iterator[tuple[str, Vouch]]:  # noqa: FBT001 - a fact, not a switch
    for feed in snapshot.feeds:
        name = f"{feed.exchange}/{feed.stream}/{feed.symbol}"
        if feed.unknown_since_ns is not None:
            yield name, Vouch(_time(feed.unknown_since_ns), feed.unknown_reason or "nobody tells why")
        elif reason := _doubt(snapshot, feed, lives):
            yield name, Vouch(_time(_last_sign_ns(snapshot, feed, reason)), reason)
        else:
            yield name, Vouch(_time(snapshot.at_ns), missing=feed.missing_ids - feed.lost_ids)


def _doubt(snapshot: Snapshot, feed: FeedStatus, lives: bool) -> str:  # noqa: FBT001 - a fact, not a switch
    """Return why nothing is vouched for although the snapshot does not call the feed unknown; empty if it is."""
    if not lives:
        return STOPPED
    if not snapshot.queue_limit_bytes:
        return EARLIER
    if snapshot.state == "stopping":
        return STOPPING
    return "" if feed.connected else UNCONNECTED


def _last_sign_ns(snapshot: Snapshot, feed: FeedStatus, reason: str) -> int:
    return snapshot.at_ns if reason in {STOPPED, STOPPING} else feed.last_row_ns or snapshot.started_ns


def _time(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns / 1e9, UTC)
