"""What the journal says of each sealed file: what it was when it was sealed, and what a store is known to hold.

    sealed ─▶ uploaded (proved, in one store) ─▶ deleted here
                  │
                  └─ store_lost, name_taken: the store does not hold it after all;   damaged: the local file is not it

Rules:

1. What is delivered is known per store: an entry counts for the store that it names, and for no other.
2. The newest entry counts. `store_lost` and `name_taken` end what `uploaded` had proved, and `damaged` says that the
   local file needs to be looked at again; the next `uploaded` for the same file and store ends all three.
3. Entries `uploaded` of earlier versions have no `checked`: what was sent was not compared with what was sealed.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from tickcollect.journal import Entry
from tickcollect.sealed import SealRecord

KINDS = frozenset({"sealed", "uploaded", "deleted", "damaged", "store_lost", "name_taken"})


@dataclass(frozen=True, slots=True)
class Proof:
    """What the journal holds of a delivered file."""

    bytes: int
    mtime_ns: int
    sha256: str
    key: str
    text: str
    checked: str = ""
    """What the file was held against before it was sent; empty if it was not."""
    etag: str = ""
    """As the store told it when the file was proved."""


@dataclass(slots=True)
class Deliveries:
    """What is on record of the files in one store, by their paths below the data directory.

    `wanted` are the files of which everything is kept (None: all); of others only what was lost, because a journal is
    of years.
    """

    store: str
    wanted: Container[str] | None
    sealed: dict[str, SealRecord] = field(default_factory=dict)
    proved: dict[str, Proof] = field(default_factory=dict)
    """What the store was proved to hold, `lost` or not."""
    lost: dict[str, str] = field(default_factory=dict)
    """How the store was found not to hold what it had been proved to hold."""
    damaged: dict[str, str] = field(default_factory=dict)
    """How local files are damaged, as last told."""

    def proof(self, file: str) -> Proof | None:
        """Return the proof that the store holds a file, if it stands."""
        return None if file in self.lost else self.proved.get(file)

    def take(self, entries: Iterable[Entry]) -> "Deliveries":
        """Take entries of the journal, oldest first."""
        for entry in entries:
            facts = entry.facts
            file = facts.get("file")
            if isinstance(file, str):
                self._take(entry.event, file, facts)
        return self

    def _take(self, event: str, file: str, facts: dict[str, Any]) -> None:
        match event:
            case "sealed" if self._is_wanted(file) and (record := _record(facts)):
                self.sealed[file] = record
                self.damaged.pop(file, None)  # it was fetched again
            case "uploaded" if facts.get("store") == self.store and (proof := _proof(facts)):
                self.prove(file, proof)
            case "store_lost" if facts.get("store") == self.store:
                self.lost[file] = str(facts.get("detail", ""))
            case "name_taken" if self._is_wanted(file) and facts.get("store", self.store) == self.store:
                # earlier versions named no store: whichever it was, this one is asked again
                self.lost[file] = str(facts.get("detail", ""))
            case "damaged" if self._is_wanted(file):
                self.damaged[file] = str(facts.get("detail", ""))
            case "deleted":
                self.damaged.pop(file, None)

    def prove(self, file: str, proof: Proof) -> None:
        """Take a file for delivered."""
        if self._is_wanted(file):
            self.proved[file] = proof
        self.lost.pop(file, None)
        self.damaged.pop(file, None)

    def _is_wanted(self, file: str) -> bool:
        return self.wanted is None or file in self.wanted


def _record(facts: dict[str, Any]) -> SealRecord | None:
    numbers = [facts.get(name) for name in ("bytes", "rows", "csv_bytes")]
    match numbers, facts.get("csv_sha256"), facts.get("sha256", ""):
        case [int(size), int(rows), int(csv_bytes)], str(csv_sha256), str(sha256):
            return SealRecord(size, rows, csv_bytes, csv_sha256, sha256)
    return None


def _proof(facts: dict[str, Any]) -> Proof | None:
    numbers = [facts.get(name) for name in ("bytes", "mtime_ns")]
    texts = [facts.get(name) for name in ("sha256", "key", "proof")]
    match numbers, texts:
        case [int(count), int(mtime_ns)], [str(sha256), str(key), str(text)]:
            more = [facts.get(name, "") for name in ("checked", "etag")]
            return Proof(count, mtime_ns, sha256, key, text, *(one if isinstance(one, str) else "" for one in more))
    return None
