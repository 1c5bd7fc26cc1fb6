"""A store with bad manners: S3 as old, careless or failing servers speak it, each habit a switch.

    with careless() as store:
        store.manners = Manners(overwrites=True, etag="nonsense")

With no switch set it behaves: it verifies SHA-256 and MD5, honours `If-None-Match`, and tells the truth about what it
holds. It asks for no signature. What was put where is on its record, so a test sees each overwriting.
"""

import base64
import contextlib
import hashlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from .listening import Conversation, Listening, listening

CHECKSUM = "x-amz-checksum-sha256"


@dataclass(frozen=True)
class Manners:
    """What is wrong with a store."""

    overwrites: bool = False
    """`If-None-Match` means nothing to it (s3rver always, Ceph 16 when a multipart upload is completed)."""
    keeps_framing: bool = False
    """The frames of `aws-chunked` become part of the object (s3rver)."""
    believes: bool = False
    """It verifies no checksum, and repeats the one it was told (moto)."""
    etag: Literal["md5", "nonsense", "none"] = "md5"
    """Nonsense: as with SSE-KMS, the ETag says nothing about the bytes."""
    checksums: bool = True
    """It tells the checksum of what it holds."""
    stores: Literal["all", "half", "altered", "nothing"] = "all"
    """What becomes of the bytes after they were verified."""
    head: Literal["answered", "forbidden", "refused"] = "answered"
    """Forbidden: 403, as with a key that may only put."""
    knows_conditions: bool = True
    """False: 501 for `If-None-Match`."""
    knows_checksums: bool = True
    """False: 400 for `x-amz-checksum-*` (Backblaze B2)."""


@dataclass(frozen=True)
class Put:
    """One object that was written: its name, the SHA-256 of what was sent, and whether something was there before."""

    key: str
    sha256: str
    replaced: bool


@dataclass(frozen=True)
class Held:
    """An object: its bytes, the checksum it was sent with, if any, and the sizes of its parts, if it came in parts."""

    data: bytes
    told: str = ""
    parts: tuple[int, ...] = ()

    @property
    def md5(self) -> str:
        """What S3 calls the ETag: the MD5 of the bytes, or of the MD5s of the parts with their number."""
        if not self.parts:
            return hashlib.md5(self.data).hexdigest()
        digests, start = b"", 0
        for size in self.parts:
            digests += hashlib.md5(self.data[start : start + size]).digest()
            start += size
        return f"{hashlib.md5(digests).hexdigest()}-{len(self.parts)}"


@dataclass
class CarelessStore:
    """A running one. Its bucket has any name."""

    manners: Manners = Manners()
    objects: dict[str, Held] = field(default_factory=dict)
    puts: list[Put] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    """Each request's step, in order."""
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """The parts of multipart uploads that are under way."""
    listener: Listening = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        """Its address."""
        return self.listener.endpoint

    def hold(self, key: str, data: bytes) -> None:
        """Put an object behind the uploader's back."""
        self.objects[key] = Held(data)

    def take(self, request: Conversation) -> None:
        """Answer one request."""
        with self._lock:
            self.steps.append(request.step)
        answer = {
            "put": self._put,
            "head": self._head,
            "get": self._get,
            "create": self._create,
            "part": self._part,
            "complete": self._complete,
            "abort": self._abort,
        }.get(request.step, _listing)
        answer(request)

    def _put(self, request: Conversation) -> None:
        body = request.body()
        if self._is_refused(request) or self._is_wrong(request, body):
            return
        framed = "aws-chunked" in request.headers.get("Content-Encoding", "")
        data = body if self.manners.keeps_framing or not framed else _unframed(body)
        sent = Held(data, request.headers.get(CHECKSUM, ""))
        self._keep(request.key, sent)
        request.answer(200, {**self._tag(sent.md5), **self._checksum(request.key)})

    def _is_refused(self, request: Conversation) -> bool:
        """Refuse what this store does not know, and a name that is taken."""
        conditional = "If-None-Match" in request.headers
        if conditional and not self.manners.knows_conditions:
            request.refuse(501, "NotImplemented")
        elif not self.manners.knows_checksums and any("checksum" in name.lower() for name in request.headers):
            request.refuse(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-sha256' received")
        elif conditional and not self.manners.overwrites and request.key in self.objects:
            request.refuse(412, "PreconditionFailed")
        else:
            return False
        return True

    def _is_wrong(self, request: Conversation, body: bytes) -> bool:
        """Refuse bytes that do not match what was said of them."""
        if self.manners.believes:
            return False
        claims = {CHECKSUM: hashlib.sha256(body).digest(), "Content-MD5": hashlib.md5(body).digest()}
        wrong = any(
            request.headers.get(name) not in {None, base64.b64encode(truth).decode()} for name, truth in claims.items()
        )
        if wrong:
            request.refuse(400, "BadDigest")
        return wrong

    def _keep(self, key: str, sent: Held) -> None:
        """Write an object, in this store's way."""
        data = sent.data
        kept = {"all": data, "half": data[: len(data) // 2], "altered": bytes([data[0] ^ 1]) + data[1:], "nothing": b""}
        with self._lock:
            self.puts.append(Put(key, hashlib.sha256(data).hexdigest(), key in self.objects))
            if self.manners.stores != "nothing":
                self.objects[key] = replace(sent, data=kept[self.manners.stores])

    def _tag(self, md5: str) -> dict[str, str]:
        """Return the header with the ETag that this store gives to bytes with this MD5."""
        etag = {"md5": md5, "nonsense": "5eb63bbbe01eeed093cb22bb8f5acdc3", "none": ""}[self.manners.etag]
        return {"ETag": f'"{etag}"'} if etag else {}

    def _checksum(self, key: str) -> dict[str, str]:
        """Return the header that tells an object's checksum: the truth, or what was claimed."""
        held = self.objects.get(key)
        if held is None or not self.manners.checksums:
            return {}
        if self.manners.believes:
            return {CHECKSUM: held.told} if held.told else {}
        return {CHECKSUM: base64.b64encode(hashlib.sha256(held.data).digest()).decode()}

    def _head(self, request: Conversation) -> None:
        held = self.objects.get(request.key)
        if self.manners.head == "forbidden":
            request.answer(403)
        elif self.manners.head == "refused":
            request.answer(405)
        elif not request.key:
            request.answer(200)
        elif held is None:
            request.answer(404)
        else:
            asked = request.headers.get("x-amz-checksum-mode") == "ENABLED"
            checksum = self._checksum(request.key) if asked else {}
            request.answer(200, {"Content-Length": str(len(held.data)), **self._tag(held.md5), **checksum})

    def _get(self, request: Conversation) -> None:
        held = self.objects.get(request.key)
        if held is None:
            request.refuse(404, "NoSuchKey")
        else:
            request.answer(200, self._tag(held.md5), held.data)

    def _create(self, request: Conversation) -> None:
        request.body()
        upload = f"upload-{len(self.uploads)}"
        self.uploads[upload] = {}
        text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        request.answer(200, {"Content-Type": "application/xml"}, text.encode())

    def _part(self, request: Conversation) -> None:
        body = request.body()
        if not self._is_wrong(request, body):
            self.uploads[request.query["uploadId"]][int(request.query["partNumber"])] = body
            request.answer(200, self._tag(hashlib.md5(body).hexdigest()))

    def _complete(self, request: Conversation) -> None:
        request.body()
        if self._is_refused(request):
            return
        parts = [data for _, data in sorted(self.uploads.pop(request.query["uploadId"]).items())]
        sent = Held(b"".join(parts), parts=tuple(map(len, parts)))
        self._keep(request.key, sent)
        etag = self._tag(sent.md5).get("ETag", "")
        text = f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
        request.answer(200, {"Content-Type": "application/xml"}, text.encode())

    def _abort(self, request: Conversation) -> None:
        self.uploads.pop(request.query["uploadId"], None)
        request.answer(204)


def _listing(request: Conversation) -> None:
    """Say that there is nothing, to whichever list was asked for."""
    name = "ListMultipartUploadsResult" if request.step == "uploads" else "ListBucketResult"
    body = f"<{name}><IsTruncated>false</IsTruncated></{name}>"
    request.answer(200, {"Content-Type": "application/xml"}, body.encode())


def _unframed(body: bytes) -> bytes:
    """Take the frames of `aws-chunked` off: each has its size in hex before it; the last is empty, then trailers."""
    data, place = b"", 0
    while True:
        end = body.index(b"\r\n", place)
        size = int(body[place:end].partition(b";")[0], 16)
        if size == 0:
            return data
        data += body[end + 2 : end + 2 + size]
        place = end + 2 + size + 2


@contextlib.contextmanager
def careless(tls: ssl.SSLContext | None = None) -> Iterator[CarelessStore]:
    """Run one, plain or as TLS, until the block ends."""
    store = CarelessStore()
    with listening(store.take, tls) as store.listener:
        yield store
