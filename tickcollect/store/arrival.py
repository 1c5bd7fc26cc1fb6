"""Has it arrived? What a store tells of an object, compared with the local file; and what a store is asked for.

A file has arrived when the store holds the same bytes: its size and a checksum that the store itself has computed
agree, or, where the store tells none that can be believed, its bytes were read back. A key that may only write leaves
the answer to the upload as the only proof, and the proof says so.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from tickcollect.store.failures import TemporaryError, UnprovenError
from tickcollect.store.sending import Digests, Limits, Source


@dataclass(frozen=True, slots=True)
class Held:
    """What a store tells of an object: its bytes and, where it tells them, checksums.

    `sha256` is the whole object's in hex, `sha256_of_parts` the composite one as S3 writes it (`BASE64-N`). `etag` is
    without quotes, and empty where it is known not to be a checksum.
    """

    size: int
    sha256: str = ""
    sha256_of_parts: str = ""
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Absent:
    """The store holds nothing under this name."""


@dataclass(frozen=True, slots=True)
class CannotTell:
    """The key may not look: whether something is there is unknown."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an upload. `read_back`: what was written has been read back before it got its name."""

    said: Held
    read_back: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """What one harmless request has shown. `may_look` tells whether arrival can be proved by looking."""

    text: str
    may_look: bool


class Match(Enum):
    """What the comparison of a local file with what a store tells of an object comes to."""

    SAME = "same"
    OTHER = "other"
    UNCLEAR = "unclear"


def compare(held: Held, digests: Digests) -> tuple[Match, str]:
    """Compare what a store tells with the local file; the text names what agreed, or how they differ.

    An ETag is the MD5 of the bytes for most objects, but not with every encryption or store: where it differs while
    nothing else does, only the bytes themselves can tell. The same holds for objects of parts, which may have been cut
    elsewhere, and for which some stores tell the checksum of the parts as if it were the whole's.
    """
    if held.size != digests.size:
        return Match.OTHER, f"{held.size:,} bytes there, {digests.size:,} here"
    of_parts = "-" in held.etag
    if held.sha256 and held.sha256 != digests.sha256 and not of_parts:
        return Match.OTHER, f"its SHA-256 is {held.sha256[:12]}… there, {digests.sha256[:12]}… here"
    md5 = "MD5 of its parts" if of_parts else "MD5"
    told = {held.sha256: "SHA-256", held.sha256_of_parts: "SHA-256 of its parts", held.etag: md5}
    ours = (digests.sha256, digests.sha256_of_parts, *digests.etags)
    etag_differs = re.fullmatch("[0-9a-f]{32}", held.etag) is not None and held.etag not in ours
    if etag_differs or held.sha256 not in ("", digests.sha256):
        return Match.UNCLEAR, "a checksum differs"
    by = [told[one] for one in ours if one in told]
    return (Match.SAME, by[0]) if by else (Match.UNCLEAR, "no checksum that can be compared")


def same_bytes(store: "Store", key: str, held: Held, digests: Digests) -> tuple[bool, str]:
    """Tell whether an object holds the file's bytes, and by what, or how they differ; read it back if need be."""
    match, why = compare(held, digests)
    if match is Match.UNCLEAR:
        theirs = store.read_back(key)
        same = theirs == digests.sha256
        return same, "its bytes" if same else f"its SHA-256 is {theirs[:12]}… there, {digests.sha256[:12]}… here"
    return match is Match.SAME, why


def arrival(store: "Store", key: str, digests: Digests, receipt: Receipt) -> str:
    """Return the proof that what was put has arrived (see above), such as `held: SHA-256`.

    Raises `UnprovenError` where the store holds other bytes or tells too little, `TemporaryError` where it holds none.
    """
    said, difference = compare(receipt.said, digests)
    found = store.look(key)
    if isinstance(found, Absent):
        raise TemporaryError("not_there", f"{store.name}: took {key}, and does not hold it. It is sent again.")
    if isinstance(found, CannotTell):
        if said is Match.SAME:
            return f"answered: {difference}"
        raise UnprovenError(
            "unproven",
            f"{store.name}: its answer to {key} proves nothing ({difference}), and the key may not look. Allow "
            "s3:GetObject on the folder.",
        )
    if said is Match.OTHER:
        raise _other_bytes(store, key, difference)
    if receipt.read_back and found.size == digests.size:
        return "held: its bytes"
    same, by = same_bytes(store, key, found, digests)
    if not same:
        raise _other_bytes(store, key, by)
    return f"held: {by}"


def _other_bytes(store: "Store", key: str, difference: str) -> UnprovenError:
    return UnprovenError(
        "wrong_bytes",
        f"{store.name}: holds other bytes under {key} than were sent: {difference}. The file is kept here. Remove that "
        "object by hand; if it happens again, do not trust this store.",
    )


class Store(Protocol):
    """A place for sealed files. `key` is a file's path below the data directory. From any thread.

    `name` is shown to people and kept in the journal; it tells stores apart and holds no secret.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - told above

    @property
    def limits(self) -> Limits: ...  # noqa: D102 - for `Source.digests`

    def probe(self) -> Probe:
        """Ask harmlessly whether the store can be used. Raises `StoreError`."""

    def look(self, key: str) -> Held | Absent | CannotTell:
        """Return what is held under a name. Raises `StoreError`."""

    def put(self, key: str, source: Source, digests: Digests) -> Receipt:
        """Create an object; `arrival` proves it. Raises `NameTakenError` and other `StoreError`."""

    def read_back(self, key: str, also: Callable[[bytes], None] = ...) -> str:
        """Return the SHA-256 in hex of the bytes held under a name, by reading them. Raises `StoreError`.

        `also` is given the same bytes, in order; what it raises ends the reading.
        """

    def abort_leftovers(self, older_than: datetime) -> int:
        """Remove what interrupted uploads of ours have left since before a time; return how many there were."""

    def close(self) -> None:
        """Give connections back."""
