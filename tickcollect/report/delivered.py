"""What the journal says of one sealed file: what was sealed, which stores are proved to hold it, whether it is damaged.

Rules:

1. What is delivered is known per store. The newest entry counts: `store_lost` and `name_taken` end what `uploaded` had
   proved of that store, or of every store where they name none (earlier versions).
2. An `uploaded` with `checked` proves that what was sent is what was sealed. One without is of an earlier version,
   which did not look: it counts only if it has the bytes of the file's `sealed`, and its SHA-256 where that has one.
3. `damaged` says that the local file is not what was sealed. With a store, that one was asked and holds the good bytes;
   without, no earlier proof is relied on. The next `uploaded` or `sealed` of the same file ends it.
"""

from dataclasses import dataclass, field

import msgspec


class Sealed(msgspec.Struct, frozen=True):
    """The journal's `sealed`."""

    subject: str
    file: str
    rows: int
    bytes: int
    csv_bytes: int
    hours: list[int] | None = None
    sha256: str = ""
    csv_sha256: str = ""


class Delivered(msgspec.Struct, frozen=True):
    """The journal's `uploaded`, `deleted`, `damaged`, `store_lost` and `name_taken`."""

    subject: str
    file: str
    store: str = ""
    bytes: int | None = None
    sha256: str = ""
    checked: str = ""
    detail: str = ""


@dataclass(slots=True)
class OnRecord:
    """What is on record of one file; entries are taken oldest first."""

    sealed: Sealed | None = None
    proofs: dict[str, Delivered] = field(default_factory=dict)
    """By store, whether they stand or not."""
    damaged: str = ""
    """How the local file is damaged, as last told; empty if it is not."""

    def take(self, event: str, line: Sealed | Delivered) -> None:
        """Take one entry."""
        if isinstance(line, Sealed):
            self.sealed, self.damaged = line, ""
            return
        match event:
            case "uploaded":
                self.proofs[line.store], self.damaged = line, ""
            case "deleted":
                self.proofs.setdefault(line.store, line)
            case "damaged":
                kept = self.proofs.get(line.store) if line.store else None
                self.proofs = {} if kept is None else {line.store: kept}
                self.damaged = line.detail or "it is not what was sealed"
            case _ if line.store:
                self.proofs.pop(line.store, None)
            case _:
                self.proofs.clear()

    @property
    def stores(self) -> frozenset[str]:
        """The stores that are proved to hold what was sealed."""
        return frozenset(store for store, proof in self.proofs.items() if self._stands(proof))

    @property
    def is_inspected(self) -> bool:
        """Whether one of them was sent bytes that had been compared with what was sealed."""
        return any(proof.checked for proof in self.proofs.values())

    @property
    def contradiction(self) -> str:
        """How what was sent is not what was sealed; empty if that is not known."""
        sealed = self.sealed
        for store, proof in self.proofs.items():
            if sealed is not None and proof.bytes is not None and not self._stands(proof):
                where = store or "a store"
                return f"{where} was sent {proof.bytes:,} bytes that are not the {sealed.bytes:,} that were sealed"
        return ""

    def _stands(self, proof: Delivered) -> bool:
        if proof.checked:
            return True
        sealed = self.sealed
        if sealed is None or proof.bytes != sealed.bytes:
            return False
        return not (sealed.sha256 and proof.sha256) or sealed.sha256 == proof.sha256
