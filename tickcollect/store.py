"""Where sealed files are delivered, and how it is proved that they have arrived: a bucket that speaks S3, or a folder.

Rules:

1. An object is created once under its name and never changed. A bucket is asked to create only (`If-None-Match: *`);
   one that cannot do that is looked at right before instead. A folder's file gets its name by a link, which fails where
   the name is taken.
2. A file has arrived when the store holds the same bytes (`arrival`): its size and a checksum that the store itself has
   computed agree, or, where the store tells none that can be believed, its bytes were read back. A key that may only
   write leaves the answer to the upload as the only proof, and the proof says so.
3. Every failure is a `StoreError` of one line that says what to do. Its class tells whether waiting may help
   (`TemporaryError`), and whether it concerns all files (`UnusableError`) or one (`RefusedError`); its `kind` is for
   machines.
4. No secret becomes part of a name, an error or a `repr`.

What Amazon S3 does is told in its API reference (PutObject, HeadObject, CompleteMultipartUpload) and user guide
("Checking object integrity", "Conditional writes").
"""

import base64
import binascii
import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from tickcollect.config import Config
from tickcollect.files import CHUNK, TEMPORARY, FeedPath, NameRefusedError, make_directory, sync_directory

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

ONE_PUT_BYTES = 5 * 10**9
"""Amazon takes up to 5 GiB in one request; a larger file is sent in parts."""
PART_BYTES = 64 << 20
PARTS = 9000
"""At most; Amazon takes 10,000."""
CONNECT_WITHIN_S = 10.0
ANSWER_WITHIN_S = 60.0


# --- Failures ------------------------------------------------------------------------------------------------------


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


# --- The file that is sent -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a file that is too large for one request."""

    size: int
    sha256: bytes
    md5: bytes


@dataclass(frozen=True, slots=True)
class Digests:
    """A file's size in bytes and checksums in hex; `parts` is empty for a file that goes in one request."""

    size: int
    sha256: str
    md5: str
    parts: tuple[Part, ...] = ()

    @property
    def etags(self) -> tuple[str, ...]:
        """What S3 calls an object of these bytes: their MD5, and for one sent in these parts the MD5 of the parts'."""
        of_parts = _md5(b"".join(part.md5 for part in self.parts)).hexdigest()
        return (self.md5, f"{of_parts}-{len(self.parts)}") if self.parts else (self.md5,)

    @property
    def sha256_of_parts(self) -> str:
        """What S3 tells as the composite checksum of these parts."""
        return f"{_b64(hashlib.sha256(b''.join(part.sha256 for part in self.parts)).digest())}-{len(self.parts)}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a file may be that is sent in one request, and the smallest part of a larger one, in bytes."""

    one_put_bytes: int = ONE_PUT_BYTES
    part_bytes: int = PART_BYTES

    def part_size(self, size: int) -> int:
        """Return the bytes of each part of a file but the last: the same file always has the same parts."""
        least = -(-size // PARTS)
        return self.part_bytes if least <= self.part_bytes else -(-least // CHUNK) * CHUNK


@dataclass(eq=False)
class Source:
    """A local file, opened once: what is digested is what is sent.

    `went` is called with the number of bytes that have just been handed to the store, `look_up` before each chunk that
    is read, for whatever purpose. Both may raise a `StoreError` to break off.
    """

    path: Path
    file: IO[bytes]
    size: int
    mtime_ns: int
    ctime_ns: int
    went: Callable[[int], None] = lambda _count: None
    look_up: Callable[[], None] = lambda: None

    def read_at(self, position: int, count: int) -> bytes:
        """Return exactly `count` bytes; raises `RefusedError` where the file has fewer or cannot be read."""
        self.look_up()
        data = b""
        try:
            while len(data) < count and (more := os.pread(self.file.fileno(), count - len(data), position + len(data))):
                data = data + more if data else more
        except OSError as error:
            raise RefusedError("unreadable", f"{self.path}: cannot be read: {error.strerror}") from error
        if len(data) < count:
            raise self._changed()
        return data

    def chunks(self, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """Read `size` bytes from `start`, or all."""
        end = self.size if size is None else start + size
        while start < end:
            yield (chunk := self.read_at(start, min(CHUNK, end - start)))
            start += len(chunk)

    def check(self) -> None:
        """Raise `RefusedError` if the file is not as it was when it was opened."""
        found = os.fstat(self.file.fileno())
        # The time of the last change of the entry cannot be set back, as that of the content can.
        if (found.st_size, found.st_mtime_ns, found.st_ctime_ns) != (self.size, self.mtime_ns, self.ctime_ns):
            raise self._changed()

    def digests(self, limits: Limits) -> Digests:
        """Read the file once and digest it."""
        whole = (hashlib.sha256(), _md5())
        step = limits.part_size(self.size) if self.size > limits.one_put_bytes else 0
        parts = []
        for start in range(0, self.size, step or self.size or 1):
            size = min(step or self.size, self.size - start)
            part = (hashlib.sha256(), _md5())
            for chunk in self.chunks(start, size):
                for digest in (*whole, *part) if step else whole:
                    digest.update(chunk)
            parts.append(Part(size, part[0].digest(), part[1].digest()))
        self.check()
        return Digests(self.size, whole[0].hexdigest(), whole[1].hexdigest(), tuple(parts) if step else ())

    def _changed(self) -> RefusedError:
        return RefusedError(
            "changed",
            f"{self.path}: changed while it was read. Sealed files do not change by themselves: see what writes it.",
        )


@contextmanager
def open_source(
    path: Path, went: Callable[[int], None] = lambda _count: None, look_up: Callable[[], None] = lambda: None
) -> Iterator[Source]:
    """Open a local file to be sent. Raises `RefusedError`; no symbolic link is followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise RefusedError("unreadable", f"{path}: cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        yield Source(path, file, found.st_size, found.st_mtime_ns, found.st_ctime_ns, went, look_up)


# --- What a store holds --------------------------------------------------------------------------------------------


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
    """Return the proof that what was put has arrived (rule 2), such as `held: SHA-256`.

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

    def read_back(self, key: str) -> str:
        """Return the SHA-256 in hex of the bytes held under a name, by reading them. Raises `StoreError`."""

    def abort_leftovers(self, older_than: datetime) -> int:
        """Remove what interrupted uploads of ours have left since before a time; return how many there were."""

    def close(self) -> None:
        """Give connections back."""


def open_store(config: Config, limits: Limits = Limits(), *, reads_back: bool = False) -> Store:
    """Return the configured store; nothing is sent yet.

    `reads_back`: no checksum that a bucket tells is believed, every object is downloaded to be compared. Raises
    `NotConfiguredError` with what to set, `UnusableError` where the settings cannot be used.
    """
    if config.upload_to:
        return Folder(Path(unquote(config.upload_to.removeprefix("file://"))), config.data_dir)
    if config.s3_bucket:
        return Bucket(_client(config), config.s3_bucket, config.s3_bucket_path, config.s3_checksum, limits, reads_back)
    raise NotConfiguredError(
        "not_configured",
        "Nothing says where to upload. Set S3_BUCKET (and S3_BUCKET_PATH), or UPLOAD_TO to a folder such as "
        '"file:///mnt/backup/ticks"; or give --to.',
    )


# --- A bucket ------------------------------------------------------------------------------------------------------

_PROBE_NAME = ".tickcollect-probe"


class _Body:
    """A stretch of a `Source` as the SDK wants it: a file that it may read, for signing first, and seek in.

    `transferring` is set between signing and sending, so that only bytes on their way are counted.
    """

    def __init__(self, source: Source, start: int, size: int) -> None:
        self._source = source
        self._start = start
        self._size = size
        self._position = 0
        self.transferring = False

    def read(self, count: int = -1) -> bytes:
        rest = self._size - self._position
        wanted = rest if count is None or count < 0 else min(count, rest)
        data = self._source.read_at(self._start + self._position, wanted) if wanted > 0 else b""
        self._position += len(data)
        if self.transferring:
            self._source.went(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position


def _mark_transferring(request: Any, **_: Any) -> None:
    if isinstance(request.body, _Body):
        request.body.transferring = True


def _follow_no_redirect(context: dict[str, Any], **_: Any) -> None:
    """Keep the SDK from asking for the bucket's region, for ever where a server answers 301 to that, too."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _client(config: Config) -> "S3Client":
    """Return an S3 client that tries everything once: what to try again, and when, is decided above."""
    import boto3  # noqa: PLC0415 - half a second, which only those pay who upload
    from botocore.config import Config as Settings  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    endpoint, region = config.s3_endpoint_url, config.s3_region or None
    settings = Settings(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_WITHIN_S,
        read_timeout=ANSWER_WITHIN_S,
        max_pool_connections=config.upload_parallel + 2,
        tcp_keepalive=True,
        # A store that does not know a checksum refuses it, or worse: we say which one is sent.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    try:
        client = boto3.Session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or ("us-east-1" if endpoint else None),
            aws_access_key_id=config.aws_access_key.get_secret_value() or None,
            aws_secret_access_key=config.aws_secret_key.get_secret_value() or None,
            config=settings,
        )
    except (BotoCoreError, ValueError) as error:
        raise UnusableError(
            "settings", f"S3 cannot be set up: {_one_line(error)}. See S3_ENDPOINT_URL, S3_REGION and ~/.aws/config."
        ) from error
    client.meta.events.register_last("request-created.s3", _mark_transferring)
    if endpoint:
        client.meta.events.register_last("before-parameter-build.s3", _follow_no_redirect)
    return client


@dataclass(eq=False, repr=False)
class Bucket:
    """A bucket, or a folder in it, of Amazon S3 or another store that speaks its protocol."""

    _client: "S3Client"
    bucket: str
    folder: str
    checksum: str
    """Which checksum is sent with a file: `sha256` and MD5, or `md5` alone for stores that refuse others."""
    limits: Limits = field(default_factory=Limits)
    reads_back: bool = False
    """What the store tells of checksums is not believed."""
    _creates_only: bool = True
    """The store understands `If-None-Match`, as far as is known."""

    @property
    def name(self) -> str:
        """The bucket and folder; with the host where it is not Amazon's."""
        address = urlsplit(self._client.meta.endpoint_url)
        host = address.hostname or ""
        at = "" if re.search(r"(^|\.)amazonaws\.com(\.cn)?$", host) else f" at {host}"
        port = f":{address.port}" if at and address.port else ""
        return f"s3://{'/'.join(filter(None, (self.bucket, self._folder)))}{at}{port}"

    @property
    def _folder(self) -> str:
        return "/".join(filter(None, self.folder.split("/")))

    def _key(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def probe(self) -> Probe:
        """List one name and look at one that is not there. Raises `StoreError`."""
        may_list = True
        try:
            with self._told():
                self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)
        except UnusableError as error:
            if error.kind != "permission":
                raise
            may_list = False
        found = self.look(_PROBE_NAME)
        if isinstance(found, CannotTell):
            return Probe("the key may write only: arrival is proved by the store's answers", may_look=False)
        return Probe("reachable" if may_list else "reachable; the key may not list the bucket", may_look=True)

    def look(self, key: str) -> Held | Absent | CannotTell:
        """Ask for an object's size and checksums. Raises `StoreError`."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        wanted: dict[str, Any] = {"ChecksumMode": "ENABLED"} if self.checksum == "sha256" else {}
        with self._told():
            try:
                answer = self._client.head_object(Bucket=self.bucket, Key=self._key(key), **wanted)
            except ClientError as error:
                # The answer to HEAD has no body, so that 400 and 403 do not say why.
                status = _status(error)
                if status == 404:  # noqa: PLR2004 - HTTP's own numbers
                    return Absent()
                if status in (400, 403):
                    return CannotTell()
                raise
        size = int(answer.get("ContentLength", -1))
        return Held(size) if self.reads_back else _held(answer, size)

    def put(self, key: str, source: Source, digests: Digests) -> Receipt:
        """Create an object in one request, or in parts. Raises `NameTakenError` and other `StoreError`."""
        if self._creates_only:
            try:
                return self._put(key, source, digests, {"IfNoneMatch": "*"})
            except UnusableError as error:
                if error.kind != "unsupported":
                    raise
                self._creates_only = False
        found = self.look(key)
        if isinstance(found, CannotTell):
            raise UnusableError(
                "cannot_protect",
                f"{self.name}: cannot create without overwriting (If-None-Match), and the key may not look before. "
                "Allow s3:GetObject on the folder.",
            )
        if isinstance(found, Held):
            raise NameTakenError("name_taken", f"{self.name}: {key} is taken")
        return self._put(key, source, digests, {})

    def _put(self, key: str, source: Source, digests: Digests, condition: dict[str, Any]) -> Receipt:
        if digests.parts:
            return self._put_parts(key, source, digests, condition)
        with self._told(source):
            answer = self._client.put_object(
                Bucket=self.bucket,
                Key=self._key(key),
                Body=_body(source, 0, digests.size),
                ContentLength=digests.size,
                **self._checksums(bytes.fromhex(digests.sha256), bytes.fromhex(digests.md5)),
                **condition,
            )
        source.check()
        return Receipt(_held(answer, digests.size))

    def _put_parts(self, key: str, source: Source, digests: Digests, condition: dict[str, Any]) -> Receipt:
        """Create an object in parts; on any failure none of them stays."""
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": "SHA256"} if self.checksum == "sha256" else {}
        where: dict[str, Any] = {"Bucket": self.bucket, "Key": self._key(key)}
        with self._told():
            begun = self._client.create_multipart_upload(**where, **algorithm)
        if not begun.get("UploadId"):
            raise TemporaryError("network", f"{self.name}: {_NOT_S3}.")
        where["UploadId"] = begun["UploadId"]
        try:
            done: list[CompletedPartTypeDef] = []
            start = 0
            for number, part in enumerate(digests.parts, start=1):
                sums = self._checksums(part.sha256, part.md5)
                with self._told(source):
                    answer = self._client.upload_part(
                        **where,
                        PartNumber=number,
                        Body=_body(source, start, part.size),
                        ContentLength=part.size,
                        **sums,
                    )
                done.append({"PartNumber": number, "ETag": answer.get("ETag", "")})
                if "ChecksumSHA256" in answer:
                    done[-1]["ChecksumSHA256"] = sums["ChecksumSHA256"]
                start += part.size
            source.check()
            with self._told():
                complete = self._client.complete_multipart_upload(**where, MultipartUpload={"Parts": done}, **condition)
        except BaseException:
            self._abort(where)
            raise
        return Receipt(_held(complete, digests.size))

    def _abort(self, where: dict[str, Any]) -> None:
        with suppress(StoreError), self._told():  # what it leaves is found by `abort_leftovers`
            self._client.abort_multipart_upload(**where)

    def _checksums(self, sha256: bytes, md5: bytes) -> dict[str, Any]:
        sums = {"ContentMD5": _b64(md5)}
        return sums | {"ChecksumSHA256": _b64(sha256)} if self.checksum == "sha256" else sums

    def read_back(self, key: str) -> str:
        """Download an object and return the SHA-256 of what came. Raises `StoreError`."""
        sha256 = hashlib.sha256()
        with self._told():
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"]
            with body:
                for chunk in body.iter_chunks(CHUNK):
                    sha256.update(chunk)
        return sha256.hexdigest()

    def abort_leftovers(self, older_than: datetime) -> int:
        """Abort uploads in parts, of sealed files below the folder, that were begun before a time.

        A store that does not know them, or a key that may not list them, leaves them to the bucket's lifecycle rule.
        """
        count, found = 0, []
        with suppress(UnusableError, RefusedError), self._told():
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._key("")):
                found += page.get("Uploads", [])
        for upload in found:
            key = upload.get("Key", "")
            if _is_ours(key.removeprefix(self._key(""))) and upload["Initiated"] < older_than:
                with suppress(UnusableError, RefusedError), self._told():
                    self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload["UploadId"])
                    count += 1
        return count

    @contextmanager
    def _told(self, source: Source | None = None) -> Iterator[None]:
        """Turn what the SDK raises into a `StoreError`; a file that has changed is the reason for everything else."""
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
        from botocore.parsers import ResponseParserError  # noqa: PLC0415

        try:
            yield
        except ClientError as error:
            if source is not None:
                source.check()
            raise _answered(self.name, error) from error
        except ResponseParserError as error:
            raise TemporaryError("network", f"{self.name}: {_NOT_S3}.") from error
        except BotoCoreError as error:
            inner = error.kwargs.get("error")
            if isinstance(inner, StoreError):
                raise inner from None
            if source is not None:
                source.check()
            raise _not_answered(self.name, error) from error


def _body(source: Source, start: int, size: int) -> Any:
    return _Body(source, start, size)


def _held(answer: Any, size: int) -> Held:
    """Return what an answer tells. The ETag is no checksum where a key of KMS or the customer's encrypts the object."""
    encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in answer
    etag = str(answer.get("ETag", "")).strip('"').lower()
    sha256, whole = str(answer.get("ChecksumSHA256", "")), ""
    if sha256 and "-" not in sha256:
        with suppress(binascii.Error):
            whole = base64.b64decode(sha256, validate=True).hex()
    return Held(size, whole, sha256 if "-" in sha256 else "", "" if encrypted else etag)


def _is_ours(key: str) -> bool:
    """Tell whether a name below the folder is a sealed file's."""
    *feed, file = key.split("/")
    try:
        name = FeedPath(*feed).parse(file)
    except (TypeError, NameRefusedError):
        return False
    return name is not None and name.sealed


# What S3 answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Trouble:
    """One kind of failure: what it is raised as, its word for machines, and its line; `{action}` is the permission."""

    error: type[StoreError]
    kind: str
    text: str


_CREDENTIALS = _Trouble(
    UnusableError, "credentials", "the access key or its secret is wrong. Correct AWS_ACCESS_KEY and AWS_SECRET_KEY"
)
_EXPIRED = _Trouble(
    UnusableError, "expired", "the access key has expired. Get a new one, or see the instance's role or profile"
)
_BUCKET = _Trouble(UnusableError, "bucket", "there is no such bucket. Correct S3_BUCKET, or create it")
_REGION = _Trouble(UnusableError, "region", "the bucket is in another region. Set S3_REGION to the bucket's region")
_PERMISSION = _Trouble(
    UnusableError,
    "permission",
    "this key may not do that. Allow it {action} on the bucket's folder (see docs/upload.md)",
)
_CLOCK = _Trouble(
    UnusableError, "clock", "this machine's clock is wrong by more than the store accepts. Run an NTP client"
)
_BUSY = _Trouble(TemporaryError, "busy", "the store is overloaded or has a failure of its own")
_CONFLICT = _Trouble(TemporaryError, "conflict", "somebody else is writing the same name")
_DAMAGED = _Trouble(
    TemporaryError,
    "damaged",
    "the bytes were damaged on the way, and the store has refused them. See memory and network",
)
_UNSUPPORTED = _Trouble(
    UnusableError, "unsupported", 'the store does not know what was asked for. Set S3_CHECKSUM to "md5"'
)
_FULL = _Trouble(UnusableError, "full", "the store is full, or a quota is used up")
_TAKEN = _Trouble(NameTakenError, "name_taken", "the name is taken")
_TOO_LARGE = _Trouble(RefusedError, "too_large", "the file is larger than the store takes. Lower ROTATE_SIZE")

_NOT_S3 = "its answer was cut short, or is none that S3 gives. See S3_ENDPOINT_URL and what stands between"

_CODES: dict[str, _Trouble] = {
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity", "401"), _CREDENTIALS
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), _EXPIRED),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), _BUCKET),
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"), _REGION
    ),
    **dict.fromkeys(
        ("AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidPayer", "MethodNotAllowed", "403"), _PERMISSION
    ),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"), _CLOCK),
    **dict.fromkeys(
        (
            "InternalError", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
            "RequestLimitExceeded", "RequestThrottled", "TooManyRequests", "RequestTimeout", "ServerBusy", "Busy",
        ),
        _BUSY,
    ),
    **dict.fromkeys(("ConditionalRequestConflict", "OperationAborted", "NoSuchUpload"), _CONFLICT),
    **dict.fromkeys(
        ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest", "IncompleteBody",
         "InvalidPart"),
        _DAMAGED,
    ),
    **dict.fromkeys(("NotImplemented", "MissingContentLength", "InvalidTrailer", "501"), _UNSUPPORTED),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "ServiceQuotaExceeded", "507"), _FULL),
    **dict.fromkeys(("PreconditionFailed", "412"), _TAKEN),
    "EntityTooLarge": _TOO_LARGE,
}  # fmt: skip
"""S3's error codes, from "Error responses" in its API reference and what other stores add; or HTTP's number."""

_ACTIONS = {
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
"""The permission that a request needs, where it is not s3:PutObject."""


def _status(error: "ClientError") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answered(store: str, error: "ClientError") -> StoreError:
    """Return what an answer other than success means."""
    code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
    trouble = _CODES.get(code) or _CODES.get(str(status))
    if trouble is None and _UNKNOWN_HEADER.search(str(error.response.get("Error", {}).get("Message", ""))):
        trouble = _UNSUPPORTED
    if trouble is None and (status >= 500 or status in (408, 429)):  # noqa: PLR2004 - HTTP's own numbers
        trouble = _BUSY
    shown = code if re.fullmatch(r"[A-Za-z][A-Za-z0-9.]{1,50}", code) else f"HTTP {status}"
    if trouble is None:
        return RefusedError("refused", f"{store}: {error.operation_name} was refused: {shown} ({status})")
    text = trouble.text.format(action=_ACTIONS.get(error.operation_name, "s3:PutObject"))
    line = f"{store}: {text} ({shown})."
    if trouble.error is TemporaryError:
        return TemporaryError(trouble.kind, line, _retry_after_s(error))
    return trouble.error(trouble.kind, line)


_UNKNOWN_HEADER = re.compile("(?i)unsupported header|not implemented|if-none-match|x-amz-(sdk-)?checksum")
"""How stores that have no code of their own for it say that they do not know a header."""


def _retry_after_s(error: "ClientError") -> float:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    text = str(headers.get("retry-after", ""))
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


_SDK_ERRORS: dict[str, _Trouble] = {
    "NoCredentialsError": _Trouble(
        UnusableError,
        "credentials_missing",
        "there is no access key. Set AWS_ACCESS_KEY and AWS_SECRET_KEY, or give this machine a profile or role",
    ),
    "PartialCredentialsError": _Trouble(
        UnusableError, "credentials_incomplete", "only half of the access key is set. Set key and secret"
    ),
    "CredentialRetrievalError": _Trouble(
        UnusableError, "credentials_missing", "the access key cannot be had from where the profile says"
    ),
    "ParamValidationError": _Trouble(
        UnusableError, "settings", "the bucket's name or folder cannot be used. Correct S3_BUCKET and S3_BUCKET_PATH"
    ),
    "ReadTimeoutError": _Trouble(TemporaryError, "network", f"did not answer within {ANSWER_WITHIN_S:.0f} s"),
    "ConnectTimeoutError": _Trouble(TemporaryError, "network", "cannot be reached: no answer"),
}
_UNTRUSTED = _Trouble(
    UnusableError,
    "tls",
    "its certificate is not trusted. See S3_ENDPOINT_URL; for an authority of your own set AWS_CA_BUNDLE",
)
_NETWORK: dict[str, _Trouble] = {
    "CERTIFICATE_VERIFY_FAILED": _UNTRUSTED,
    "WRONG_VERSION_NUMBER": _Trouble(
        UnusableError, "tls", "does not speak TLS there. See http and https in S3_ENDPOINT_URL"
    ),
    "NameResolution": _Trouble(TemporaryError, "network", "its name cannot be resolved. See S3_ENDPOINT_URL and DNS"),
    "refused": _Trouble(TemporaryError, "network", "refuses connections there. See S3_ENDPOINT_URL"),
    "nreachable": _Trouble(TemporaryError, "network", "there is no way to it. See this machine's network"),
}
"""What tells the reason in the text that a failed connection comes with."""


def _not_answered(store: str, error: "BotoCoreError") -> StoreError:
    """Return what it means that there was no answer, or that nothing was asked."""
    trouble = _SDK_ERRORS.get(type(error).__name__)
    if trouble is None:
        reason = f"{error!s} {error.kwargs.get('error')!r}"
        trouble = next((row for sign, row in _NETWORK.items() if sign in reason), None)
    if trouble is None:
        trouble = _Trouble(TemporaryError, "network", f"the connection failed ({type(error).__name__})")
    return trouble.error(trouble.kind, f"{store}: {trouble.text}.")


# --- A folder ------------------------------------------------------------------------------------------------------

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links answer (FAT, some network shares)."""

_FOLDER_FULL = (UnusableError, "full", "Make room there")
_FOLDER_CLOSED = (UnusableError, "permission", "Let this user write there")
_FOLDER_AWAY = (TemporaryError, "network", "See the mount")
_ERRNOS: dict[int, tuple[type[StoreError], str, str]] = {
    errno.ENOSPC: _FOLDER_FULL,
    errno.EDQUOT: _FOLDER_FULL,
    errno.EACCES: _FOLDER_CLOSED,
    errno.EPERM: _FOLDER_CLOSED,
    errno.EROFS: _FOLDER_CLOSED,
    errno.ESTALE: _FOLDER_AWAY,
    errno.EIO: _FOLDER_AWAY,
    errno.ENOTCONN: _FOLDER_AWAY,
    errno.ETIMEDOUT: _FOLDER_AWAY,
    errno.EHOSTDOWN: _FOLDER_AWAY,
}


@dataclass(eq=False)
class Folder:
    """A folder of this machine: another disk, or a network share that is mounted.

    It has to exist, and to stay on the same file system during a run: under the mount point of a disk that is not there
    lies the machine's own disk, which must not be filled. So name a folder on the disk, not the mount point itself.
    """

    path: Path
    data_dir: Path
    limits: Limits = field(default_factory=lambda: Limits(one_put_bytes=2**63))
    _device: int | None = None

    @property
    def name(self) -> str:
        """The folder as a URL."""
        return f"file://{self.path}"

    def close(self) -> None:
        """Nothing is held."""

    def probe(self) -> Probe:
        """See that the folder is there and takes a file. Raises `UnusableError`."""
        self._check()
        with self._told(), tempfile.TemporaryFile(dir=self.path):
            return Probe("writable", may_look=True)

    def _check(self) -> None:
        try:
            device = self.path.stat().st_dev if self.path.is_dir() else None
        except OSError:
            device = None
        if device is None or device != (self._device or device):
            raise UnusableError(
                "folder_missing", f"{self.name}: there is no such folder. Mount the disk, or make the folder by hand."
            )
        self._device = device
        folder, data = self.path.resolve(), self.data_dir.resolve()
        if folder.is_relative_to(data) or data.is_relative_to(folder) or _same_file(folder, data):
            raise UnusableError(
                "settings", f"{self.name}: this folder and DATA_DIR lie in one another. Name one on another disk."
            )

    def look(self, key: str) -> Held | Absent | CannotTell:
        """Return a file's size. Raises `StoreError`."""
        self._check()
        target = self.path / key
        with self._told():
            try:
                found = target.lstat()
            except FileNotFoundError:
                return Absent()
            except NotADirectoryError:
                raise RefusedError("name_taken", f"{self.name}: a file is in the way of the folder of {key}") from None
            if not stat.S_ISREG(found.st_mode):
                raise RefusedError("name_taken", f"{self.name}: {key} is there and is no ordinary file")
        if found.st_nlink == 1 and _same_file(target, self.data_dir / key):
            raise UnusableError("settings", f"{self.name}: {key} is the file in DATA_DIR itself, no copy of it.")
        return Held(found.st_size)

    def put(self, key: str, source: Source, digests: Digests) -> Receipt:
        """Copy a file, read the copy back, and only then give it its name. Raises `StoreError`."""
        self._check()
        target = self.path / key
        with self._told():
            make_directory(target.parent)
            descriptor, name = tempfile.mkstemp(TEMPORARY, f".{target.name}.", target.parent)
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as sink:
                    for chunk in source.chunks():
                        sink.write(chunk)
                        source.went(len(chunk))
                    sink.flush()
                    os.fchmod(descriptor, stat.S_IMODE(os.fstat(source.file.fileno()).st_mode))
                    os.fsync(descriptor)
                source.check()
                if _sha256_on_disk(temporary) != digests.sha256:
                    raise TemporaryError("damaged", f"{self.name}: what was written of {key} reads back differently.")
                self._give_name(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(target.parent)
        return Receipt(Held(digests.size, digests.sha256), read_back=True)

    def _give_name(self, temporary: Path, target: Path) -> None:
        """Name the copy, unless the name is taken."""
        try:
            try:
                target.hardlink_to(temporary)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW))
                temporary.replace(target)  # the empty file that now holds the name for us
        except FileExistsError:
            raise NameTakenError("name_taken", f"{self.name}: {target.relative_to(self.path)} is taken") from None

    def read_back(self, key: str) -> str:
        """Return the SHA-256 of a file as it is on the disk. Raises `StoreError`."""
        with self._told():
            return _sha256_on_disk(self.path / key)

    def abort_leftovers(self, older_than: datetime) -> int:
        """Remove temporary copies that killed runs have left."""
        count = 0
        with self._told():
            for path in self.path.glob(f"*/*/*/.*{TEMPORARY}"):
                if datetime.fromtimestamp(path.lstat().st_mtime, UTC) < older_than:
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = _ERRNOS.get(error.errno or 0, (RefusedError, "refused", "See the disk"))
            raise kind[0](kind[1], f"{self.name}: {error.strerror or error}. {kind[2]}.") from error


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samestat(one.stat(), other.stat())
    except OSError:
        return False


def _sha256_on_disk(path: Path) -> str:
    """Digest a file, read from the disk where the system allows it, not from memory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Small things --------------------------------------------------------------------------------------------------


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _one_line(text: object) -> str:
    """Return text from elsewhere as it may stand in a message."""
    plain = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "?" for char in plain)[:200]
