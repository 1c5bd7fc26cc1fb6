"""Where sealed files are delivered, and how it is proved that they have arrived: a bucket that speaks S3, or a folder.

    failures  what can go wrong, in one line that says what to do
    sending   the file that is sent: opened once, digested, read from the same descriptor
    arrival   has it arrived? What a store tells, compared with the file;   `Store`, what a store is asked for
    bucket    S3;   answers  what its codes mean
    folder    another disk, a network share

Rules:

1. An object is created once under its name and never changed. A bucket is asked to create only (`If-None-Match: *`);
   one that cannot do that is looked at right before instead. A folder's file gets its name by a link, which fails where
   the name is taken.
2. A file has arrived when the store holds the same bytes (`arrival`), and not before.
3. Every failure is a `StoreError`. Its class tells whether waiting may help (`TemporaryError`), and whether it concerns
   all files (`UnusableError`) or one (`RefusedError`).
4. No secret becomes part of a name, an error or a `repr`.
"""

from pathlib import Path
from urllib.parse import unquote

from tickcollect.config import Config
from tickcollect.store.arrival import (
    Absent,
    CannotTell,
    Held,
    Match,
    Probe,
    Receipt,
    Store,
    arrival,
    compare,
    same_bytes,
)
from tickcollect.store.bucket import Bucket, open_client
from tickcollect.store.failures import (
    BrokenOffError,
    NameTakenError,
    NotConfiguredError,
    RefusedError,
    StoreError,
    TemporaryError,
    UnprovenError,
    UnusableError,
)
from tickcollect.store.folder import Folder
from tickcollect.store.sending import Digests, Limits, Part, Source, open_source

__all__ = [
    "Absent",
    "BrokenOffError",
    "Bucket",
    "CannotTell",
    "Digests",
    "Folder",
    "Held",
    "Limits",
    "Match",
    "NameTakenError",
    "NotConfiguredError",
    "Part",
    "Probe",
    "Receipt",
    "RefusedError",
    "Source",
    "Store",
    "StoreError",
    "TemporaryError",
    "UnprovenError",
    "UnusableError",
    "arrival",
    "compare",
    "open_source",
    "open_store",
    "same_bytes",
]

AS_AMAZON_TAKES = Limits()
ANSWER_WITHIN_S = 60.0
"""How long a bucket may take for an answer, and for taking more of a file."""


def open_store(config: Config, limits: Limits = AS_AMAZON_TAKES, *, reads_back: bool = False) -> Store:
    """Return the configured store; nothing is sent yet.

    `reads_back`: no checksum that a bucket tells is believed, every object is downloaded to be compared. Raises
    `NotConfiguredError` with what to set, `UnusableError` where the settings cannot be used.
    """
    if config.upload_to:
        return Folder(Path(unquote(config.upload_to.removeprefix("file://"))), config.data_dir)
    if config.s3_bucket:
        return Bucket(
            open_client(config, ANSWER_WITHIN_S),
            config.s3_bucket,
            config.s3_bucket_path,
            config.s3_checksum,
            limits,
            reads_back,
        )
    raise NotConfiguredError(
        "not_configured",
        "Nothing says where to upload. Set S3_BUCKET (and S3_BUCKET_PATH), or UPLOAD_TO to a folder such as "
        '"file:///mnt/backup/ticks"; or give --to.',
    )
