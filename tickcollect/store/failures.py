"""What can go wrong on the way to a store, as typed errors of one line each.

The class tells whom a failure concerns and whether waiting may help; `kind` is one word for machines; the text says
what happened and what to do, and holds no secret.
"""


class StoreError(Exception):
    """Something about the store or a file on its way there. `kind` is one word for machines; the text is one line."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class NotConfiguredError(StoreError):
    """Nothing says where to upload."""


class UnusableError(StoreError):
    """The store takes no file at all until somebody has changed something."""


class TemporaryError(StoreError):
    """What was asked may succeed later. `retry_after_s` is what the store asked for, if it did."""

    def __init__(self, kind: str, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(kind, text)
        self.retry_after_s = retry_after_s


class RefusedError(StoreError):
    """This file cannot be delivered as it is; others may."""


class NameTakenError(RefusedError):
    """Something is there under this name already, and it stays."""


class UnprovenError(RefusedError):
    """The store has taken the file, and what it says does not prove that it holds the same bytes."""


class BrokenOffError(StoreError):
    """The caller has asked to break off in the middle of a file."""
