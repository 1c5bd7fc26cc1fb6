"""The store and the channels: whether files arrive, and whether anybody hears of it when they do not."""

import contextlib
from collections.abc import Iterator

from tickcollect.check.findings import FAIL, NOTE, OK, Asked, Finding
from tickcollect.store import NotConfiguredError, StoreError, open_store


def look_at_store(asked: Asked) -> Iterator[Finding]:
    """Ask the store harmlessly whether it can be used, and whether arrival can be proved by looking."""
    name = ""
    try:
        with contextlib.closing(open_store(asked.config)) as store:
            name = store.name
            probe = store.probe()
    except NotConfiguredError:
        remedy = "Set S3_BUCKET, or UPLOAD_TO to a folder of another disk, to have them delivered"
        yield Finding("store", "", NOTE, "none is configured: sealed files stay on this machine", remedy)
    except StoreError as error:
        found, _, remedy = str(error).removeprefix(f"{name}: ").rstrip(".").partition(". ")
        yield Finding("store", name, FAIL, found, remedy or "Check the network and the store, then check again")
    else:
        remedy = (
            "" if probe.may_look else "Allow the key s3:GetObject to have arrival proved by looking (docs/upload.md)"
        )
        yield Finding("store", name, OK if probe.may_look else NOTE, probe.text, remedy)
