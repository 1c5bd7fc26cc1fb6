"""A checkpoint of the journal: what its lines up to some place say, so that a start need not read years of them again.

Rules:

1. A checkpoint counts only for the journal that it was made of: the bytes before its place must still be the same ones.
   Otherwise, and where it is of another version or cannot be read, it is ignored: the journal alone is the truth.
2. What was written behind that place is read on top. So a checkpoint changes how long a start takes, never what is
   known.
3. It is replaced whole. That it cannot be written costs the next start its time, and nothing else.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

COMPARED_BYTES = 65_536
"""How much of the journal before the checkpoint's place is compared."""
FILE_MODE = 0o640

State = TypeVar("State")


class _Kept(msgspec.Struct):
    rules: str
    place: int
    digest: str
    state: msgspec.Raw


@dataclass(frozen=True)
class Checkpoint(Generic[State]):
    """The checkpoint at `path` of what `journal` says, as a `kind` that msgspec can encode.

    `rules` names the version of the program and of its reading: a checkpoint made by others is ignored.
    """

    path: Path
    journal: Path
    kind: type[State]
    rules: str

    def load(self) -> tuple[State | None, int]:
        """Return the state, and the place in the journal from which to read on; None and 0 where there is none."""
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=_Kept)
            if kept.rules == self.rules and kept.place > 0 and kept.digest == self._digest(kept.place):
                return msgspec.json.decode(kept.state, type=self.kind), kept.place
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        return None, 0

    def keep(self, state: State, place: int) -> None:
        """Put a state in the file's place: what the first `place` bytes of the journal say, which end with a line."""
        temporary = self.path.with_name(self.path.name + ".unconfirmed")
        with suppress(OSError):
            kept = _Kept(self.rules, place, self._digest(place), msgspec.Raw(msgspec.json.encode(state)))
            temporary.touch(FILE_MODE)
            temporary.write_bytes(msgspec.json.encode(kept) + b"\n")
            temporary.replace(self.path)

    def _digest(self, place: int) -> str:
        """Return the digest of what stands before a place in the journal; empty where the journal does not reach it."""
        begin = max(0, place - COMPARED_BYTES)
        with self.journal.open("rb") as file:
            before = os.pread(file.fileno(), place - begin, begin)
        whole = len(before) == place - begin and before.endswith(b"\n")
        return hashlib.sha256(before).hexdigest() if whole else ""
