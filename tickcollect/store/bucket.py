"""A bucket of Amazon S3, or of another store that speaks its protocol.

Every request is made once: whether to try again, and when, is decided by the caller. A file goes in one request with
SHA-256 and MD5, which the store verifies, and `If-None-Match: *`, which lets it refuse a name that is taken; above
`Limits.one_put_bytes` it goes in parts, each with its checksums, and the condition comes with the last request. See
"Checking object integrity" and "Conditional writes" in Amazon's S3 user guide.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tickcollect.config import Config
from tickcollect.files import CHUNK, FeedPath, NameRefusedError
from tickcollect.store.answers import (
    ANSWERS_READ,
    another_answers,
    answered,
    not_answered,
    not_s3,
    status_of,
    strange_answer,
)
from tickcollect.store.arrival import Absent, CannotTell, Held, Probe, Receipt
from tickcollect.store.failures import NameTakenError, RefusedError, StoreError, UnusableError
from tickcollect.store.sending import Digests, Limits, Source, as_base64

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

CONNECT_WITHIN_S = 10.0
_PROBE_NAME = ".tickcollect-probe"
_NOT_FOUND, _REFUSED = 404, (400, 403)
_NOT_SUCCESS = 300


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


class _StrangeAnswerError(Exception):
    """What answers is no store; the text is what came instead."""


def _refuse_strange(response_dict: dict[str, Any], **_: Any) -> None:
    """See that an answer of success is S3's, before the SDK makes the best of it: a page to log in is none."""
    if response_dict["status_code"] < _NOT_SUCCESS and (what := strange_answer(response_dict["body"])):
        raise _StrangeAnswerError(what)


def _follow_no_redirect(context: dict[str, Any], **_: Any) -> None:
    """Keep the SDK from asking for the bucket's region, for ever where a server answers 301 to that, too."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def open_client(config: Config, answer_within_s: float) -> "S3Client":
    """Return an S3 client that tries everything once: what to try again, and when, is decided above."""
    import boto3  # noqa: PLC0415 - half a second, which only those pay who upload
    from botocore.config import Config as Settings  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    endpoint, region = config.s3_endpoint_url, config.s3_region or None
    settings = Settings(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_WITHIN_S,
        read_timeout=answer_within_s,
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
    for (
        request
    ) in ANSWERS_READ:  # with the `*` here it comes before the SDK's own look, which makes such an answer a 500
        client.meta.events.register_first(f"before-parse.*.{request}", _refuse_strange)
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
                if status_of(error) == _NOT_FOUND:
                    return Absent()
                if status_of(error) in _REFUSED:
                    return CannotTell()
                raise
        if not answer.get("ETag") and str(answer.get("ContentType")).startswith("text/html"):
            raise another_answers(self.name, "a page of HTML")
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
            raise not_s3(self.name)
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
        sums = {"ContentMD5": as_base64(md5)}
        return sums | {"ChecksumSHA256": as_base64(sha256)} if self.checksum == "sha256" else sums

    def read_back(self, key: str, also: Callable[[bytes], None] = lambda _chunk: None) -> str:
        """Download an object and return the SHA-256 of what came. Raises `StoreError`."""
        sha256 = hashlib.sha256()
        with self._told():
            body = self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"]
            with body:
                for chunk in body.iter_chunks(CHUNK):
                    sha256.update(chunk)
                    also(chunk)
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
            raise answered(self.name, error) from error
        except _StrangeAnswerError as error:
            raise another_answers(self.name, str(error)) from error
        except ResponseParserError as error:
            raise not_s3(self.name) from error
        except BotoCoreError as error:
            inner = error.kwargs.get("error")
            if isinstance(inner, StoreError):
                raise inner from None
            if source is not None:
                source.check()
            raise not_answered(self.name, error) from error


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


def _one_line(error: Exception) -> str:
    """Return the text of an error of the SDK as it may stand in a message."""
    plain = " ".join(str(error).split())
    return "".join(char if char.isprintable() else "?" for char in plain)[:200]
