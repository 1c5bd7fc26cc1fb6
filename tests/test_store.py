"""Where files go and how arrival is proved: comparing, refusing, and every failure in a line that says what to do."""

import base64
import contextlib
import errno
import hashlib
import http.server
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from mypy_boto3_s3 import S3Client

from tickcollect import store as stores
from tickcollect.config import Config, load
from tickcollect.store import (
    Absent,
    BrokenOffError,
    Bucket,
    CannotTell,
    Digests,
    Folder,
    Held,
    Limits,
    Match,
    NameTakenError,
    NotConfiguredError,
    Probe,
    Receipt,
    RefusedError,
    Source,
    StoreError,
    TemporaryError,
    UnprovenError,
    UnusableError,
    arrival,
    compare,
    open_source,
    open_store,
    same_bytes,
)
from tickcollect.store import folder as folders

KEY = "binance/trade/BTCUSDT/BTCUSDT-trade-2026-11-19-100-199.csv.zip"
ACCESS, SECRET = "AKIAPLANTEDPLANTED00", "planted-s3-secret"
ANY_SIZE = Limits()
SMALL_PARTS = Limits(one_put_bytes=5 << 20, part_bytes=5 << 20)
"""Amazon's smallest part is 5 MiB."""


def configured(tmp_path: Path, **keys: object) -> Config:
    """Return a configuration without a file."""
    defaults: dict[str, object] = {"DATA_DIR": str(tmp_path / "data")}
    return load(None, {}, {**defaults, **keys})


def in_bucket(tmp_path: Path, endpoint: str, **keys: object) -> Config:
    """Return the configuration of a bucket at an endpoint."""
    usual = {"S3_BUCKET": "ticks", "S3_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY": ACCESS, "AWS_SECRET_KEY": SECRET}
    return configured(tmp_path, **{**usual, **keys})


def digests_of(data: bytes, *parts: int) -> Digests:
    """Digest bytes as the definitions say, cut into parts of these sizes."""
    cut, start = [], 0
    for size in parts:
        piece = data[start : start + size]
        cut.append(stores.Part(size, hashlib.sha256(piece).digest(), hashlib.md5(piece).digest()))
        start += size
    return Digests(len(data), hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest(), tuple(cut))


def multipart_etag(*parts: bytes) -> str:
    """Return the ETag that S3 gives an object of parts: the MD5 of their MD5s, and how many there were."""
    return f"{hashlib.md5(b''.join(hashlib.md5(part).digest() for part in parts)).hexdigest()}-{len(parts)}"


@contextlib.contextmanager
def source_of(folder: Path, data: bytes) -> Iterator[Source]:
    """Open a file with these bytes."""
    path = folder / "file.csv.zip"
    path.write_bytes(data)
    with open_source(path) as source:
        yield source


def put(store: stores.Store, folder: Path, data: bytes, key: str = KEY) -> str:
    """Put bytes and return the proof that they have arrived."""
    with source_of(folder, data) as source:
        digests = source.digests(store.limits)
        return arrival(store, key, digests, store.put(key, source, digests))


# --- Comparing -----------------------------------------------------------------------------------------------------

DATA = b"what is here"
OTHER = b"other stuff."
SAME_SIZE = len(DATA)
SHA256, MD5 = hashlib.sha256(DATA).hexdigest(), hashlib.md5(DATA).hexdigest()
OTHER_SHA256, OTHER_MD5 = hashlib.sha256(OTHER).hexdigest(), hashlib.md5(OTHER).hexdigest()


@pytest.mark.parametrize(
    ("held", "match"),
    [
        (Held(SAME_SIZE, sha256=SHA256), Match.SAME),
        (Held(SAME_SIZE, etag=MD5), Match.SAME),
        (Held(SAME_SIZE, sha256=SHA256, etag=MD5), Match.SAME),
        (Held(SAME_SIZE + 1, sha256=SHA256, etag=MD5), Match.OTHER),
        (Held(SAME_SIZE, sha256=OTHER_SHA256), Match.OTHER),
        (Held(SAME_SIZE, sha256=OTHER_SHA256, etag=MD5), Match.OTHER),
        (Held(SAME_SIZE, etag=OTHER_MD5), Match.UNCLEAR),
        (Held(SAME_SIZE, sha256=SHA256, etag=OTHER_MD5), Match.UNCLEAR),
        (Held(SAME_SIZE), Match.UNCLEAR),
        (Held(SAME_SIZE, etag="nonsense"), Match.UNCLEAR),
        (Held(SAME_SIZE, etag=f"{MD5}-1"), Match.UNCLEAR),
        (Held(-1), Match.OTHER),
    ],
)
def test_what_is_told_is_compared(held: Held, match: Match) -> None:
    """Only the same size with a checksum that agrees is the same; what contradicts or says nothing is not believed."""
    assert compare(held, digests_of(DATA))[0] is match


def test_parts_are_compared_where_they_were_cut_alike() -> None:
    """An object sent in parts is known by the checksum of its parts; cut differently, only its bytes can tell."""
    digests = digests_of(DATA, 6, 6)
    sha256 = base64.b64encode(
        hashlib.sha256(hashlib.sha256(DATA[:6]).digest() + hashlib.sha256(DATA[6:]).digest()).digest()
    ).decode()
    assert compare(Held(SAME_SIZE, etag=multipart_etag(DATA[:6], DATA[6:])), digests)[0] is Match.SAME
    assert compare(Held(SAME_SIZE, sha256_of_parts=f"{sha256}-2"), digests)[0] is Match.SAME
    assert compare(Held(SAME_SIZE, etag=multipart_etag(DATA[:4], DATA[4:])), digests)[0] is Match.UNCLEAR
    assert compare(Held(SAME_SIZE, etag=MD5), digests)[0] is Match.SAME
    contradicting = Held(SAME_SIZE, sha256=OTHER_SHA256, etag=multipart_etag(DATA[:6], DATA[6:]))
    assert compare(contradicting, digests)[0] is Match.UNCLEAR


@given(st.binary(max_size=40), st.binary(max_size=40), st.booleans(), st.sampled_from(["md5", "opaque", "none"]))
def test_a_store_that_tells_the_truth_is_never_misread(here: bytes, there: bytes, tells: bool, etag: str) -> None:  # noqa: FBT001 - drawn
    """Whatever a truthful store tells: other bytes are never called the same, the same bytes never others."""
    etags = {"md5": hashlib.md5(there).hexdigest(), "opaque": hashlib.md5(there + b"salt").hexdigest(), "none": ""}
    held = Held(len(there), sha256=hashlib.sha256(there).hexdigest() if tells else "", etag=etags[etag])
    match, _ = compare(held, digests_of(here))
    assert match is not (Match.OTHER if here == there else Match.SAME)


@dataclass
class Told:
    """A store of one object that tells what it is set to tell."""

    found: Held | Absent | CannotTell
    data: bytes = b""
    name: str = "told://store"
    limits: Limits = field(default_factory=Limits)
    downloads: int = 0

    def probe(self) -> Probe:
        return Probe("reachable", may_look=True)

    def look(self, key: str) -> Held | Absent | CannotTell:
        return self.found

    def put(self, key: str, source: Source, digests: Digests) -> Receipt:
        raise NotImplementedError

    def read_back(self, key: str, also: Callable[[bytes], None] = lambda _chunk: None) -> str:
        self.downloads += 1
        return hashlib.sha256(self.data).hexdigest()

    def abort_leftovers(self, older_than: datetime) -> int:
        raise NotImplementedError

    def close(self) -> None:
        pass


HELD = Held(SAME_SIZE, etag=MD5)
NOTHING_TOLD = Held(SAME_SIZE)
WRONG = Held(SAME_SIZE, sha256=OTHER_SHA256)
NO_OBJECT = Absent()
FORBIDDEN = CannotTell()


@pytest.mark.parametrize(
    ("answer", "found", "data", "proof"),
    [
        (HELD, HELD, DATA, "held: MD5"),
        (NOTHING_TOLD, HELD, DATA, "held: MD5"),
        (HELD, NOTHING_TOLD, DATA, "held: its bytes"),
        (NOTHING_TOLD, Held(SAME_SIZE, etag=OTHER_MD5), DATA, "held: its bytes"),
        (HELD, FORBIDDEN, DATA, "answered: MD5"),
        (Held(SAME_SIZE, sha256=SHA256), FORBIDDEN, DATA, "answered: SHA-256"),
        (NOTHING_TOLD, FORBIDDEN, DATA, "unproven"),
        (Held(SAME_SIZE, etag=OTHER_MD5), FORBIDDEN, DATA, "unproven"),
        (HELD, NO_OBJECT, DATA, "not_there"),
        (WRONG, HELD, DATA, "wrong_bytes"),
        (HELD, WRONG, OTHER, "wrong_bytes"),
        (HELD, Held(SAME_SIZE - 1, etag=MD5), DATA, "wrong_bytes"),
        (HELD, NOTHING_TOLD, OTHER, "wrong_bytes"),
        (HELD, Held(SAME_SIZE, etag=OTHER_MD5), OTHER, "wrong_bytes"),
    ],
)
def test_arrival_is_proved_or_it_is_not(
    answer: Held, found: Held | Absent | CannotTell, data: bytes, proof: str
) -> None:
    """The store's answer and what it holds have to agree; where it tells too little, the bytes are read back."""
    store = Told(found, data)
    errors = {"not_there": TemporaryError, "unproven": UnprovenError, "wrong_bytes": UnprovenError}
    if proof not in errors:
        assert arrival(store, KEY, digests_of(DATA), Receipt(answer)) == proof
        return
    with pytest.raises(StoreError) as raised:
        arrival(store, KEY, digests_of(DATA), Receipt(answer))
    assert (type(raised.value), raised.value.kind) == (errors[proof], proof)


def test_nothing_is_downloaded_where_a_checksum_agrees() -> None:
    """Reading back costs money at some stores: it happens only where nothing else can tell."""
    store = Told(HELD, DATA)
    assert same_bytes(store, KEY, HELD, digests_of(DATA)) == (True, "MD5")
    assert store.downloads == 0


# --- The file that is sent -----------------------------------------------------------------------------------------


@given(st.binary(max_size=50), st.integers(1, 20))
def test_digests_are_those_of_the_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, part: int) -> None:
    """Size, SHA-256 and MD5 are the file's; its parts, where it has any, are as long as said and are all of it."""
    with source_of(tmp_path_factory.mktemp("digests"), data) as source:
        digests = source.digests(Limits(one_put_bytes=part, part_bytes=part))
    sizes = [len(data[start : start + part]) for start in range(0, len(data), part)] if len(data) > part else []
    assert digests == digests_of(data, *sizes)


def test_large_files_have_few_enough_parts() -> None:
    """Amazon takes 10,000 parts of at least 5 MiB; the largest object has 5 TiB."""
    for size in (5 * 10**9 + 1, 10**12, 5 << 40):
        part = Limits().part_size(size)
        assert part >= 5 << 20
        assert -(-size // part) <= 10_000


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, 3)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"W")
    os.utime(path, (0, 0))


def rewrite_secretly(path: Path) -> None:
    found = path.stat()
    rewrite(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize("harm", [grow, cut, rewrite, rewrite_secretly])
def test_a_file_that_changes_is_not_sent(harm: Callable[[Path], None], tmp_path: Path, moto: "Moto") -> None:
    """A sealed file that grows, shrinks or is written to while it is read is refused, and says so."""
    store = moto.store(tmp_path)
    with contextlib.closing(store), source_of(tmp_path, DATA) as source:
        digests = source.digests(store.limits)
        harm(source.path)
        with pytest.raises(RefusedError, match="changed while it was read") as error:
            store.put(KEY, source, digests)
    assert error.value.kind == "changed"


def test_no_symbolic_link_is_opened(tmp_path: Path) -> None:
    """What a link points to is none of the uploader's business."""
    (tmp_path / "secret").write_text("root:x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(RefusedError, match="cannot be opened"), open_source(tmp_path / "link"):
        pass


# --- A bucket ------------------------------------------------------------------------------------------------------


@dataclass
class Moto:
    """A quick S3 that verifies nothing: it shows only that the requests are right."""

    endpoint: str
    client: S3Client

    def store(self, folder: Path, limits: Limits = ANY_SIZE, **keys: object) -> stores.Store:
        return open_store(in_bucket(folder, self.endpoint, **keys), limits)

    def read(self, key: str) -> bytes:
        with self.client.get_object(Bucket="ticks", Key=key)["Body"] as body:
            return body.read()


@pytest.fixture(scope="module")
def moto_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def moto(moto_server: str) -> Iterator[Moto]:
    keys: dict[str, Any] = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET}
    client = boto3.Session().client("s3", endpoint_url=moto_server, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="ticks")
    yield Moto(moto_server, client)
    for found in client.list_objects_v2(Bucket="ticks").get("Contents", []):
        client.delete_object(Bucket="ticks", Key=found["Key"])
    client.close()


@pytest.mark.parametrize(("size", "checksum"), [(0, "sha256"), (3000, "sha256"), (3000, "md5"), (11 << 20, "sha256")])
def test_a_file_arrives(size: int, checksum: str, moto: Moto, tmp_path: Path) -> None:
    """A file goes in one request, or in parts if it is larger than allowed, and is then held as it was."""
    data = os.urandom(size)
    with contextlib.closing(moto.store(tmp_path, SMALL_PARTS, S3_CHECKSUM=checksum)) as store:
        assert store.look(KEY) == Absent()
        assert put(store, tmp_path, data).startswith("held: ")
        assert store.read_back(KEY) == hashlib.sha256(data).hexdigest()
    assert moto.read(KEY) == data
    assert not moto.client.list_multipart_uploads(Bucket="ticks").get("Uploads")


@pytest.mark.parametrize("size", [3000, 6 << 20])
def test_a_name_is_given_once(size: int, moto: Moto, tmp_path: Path) -> None:
    """What is there stays: a second object of the name is refused, in one request or in parts, and no part is left."""
    moto.client.put_object(Bucket="ticks", Key=KEY, Body=b"first")
    with contextlib.closing(moto.store(tmp_path, SMALL_PARTS)) as store, pytest.raises(NameTakenError):
        put(store, tmp_path, os.urandom(size))
    assert moto.read(KEY) == b"first"
    assert not moto.client.list_multipart_uploads(Bucket="ticks").get("Uploads")


def test_the_folder_in_the_bucket_is_part_of_the_name(moto: Moto, tmp_path: Path) -> None:
    """S3_BUCKET_PATH, however it is written with slashes, stands before each name and in what is shown."""
    with contextlib.closing(moto.store(tmp_path, S3_BUCKET_PATH="/raw//ticks/")) as store:
        put(store, tmp_path, DATA)
        assert store.name == f"s3://ticks/raw/ticks at {moto.endpoint.removeprefix('http://')}"
    assert moto.read(f"raw/ticks/{KEY}") == DATA


def test_only_own_leftovers_are_aborted(moto: Moto, tmp_path: Path) -> None:
    """Interrupted uploads of sealed files are aborted once they are old; others below the folder stay."""
    for key in (f"raw/{KEY}", "raw/notes.txt", "raw/a/b/c/notes.txt", KEY):
        moto.client.create_multipart_upload(Bucket="ticks", Key=key)
    with contextlib.closing(moto.store(tmp_path, S3_BUCKET_PATH="raw")) as store:
        assert store.abort_leftovers(datetime(2010, 1, 1, tzinfo=UTC)) == 0, "moto begins them all in November 2010"
        assert store.abort_leftovers(datetime(2011, 1, 1, tzinfo=UTC)) == 1
    left = moto.client.list_multipart_uploads(Bucket="ticks")["Uploads"]
    assert sorted(upload["Key"] for upload in left) == sorted([KEY, "raw/a/b/c/notes.txt", "raw/notes.txt"])
    for upload in left:
        moto.client.abort_multipart_upload(Bucket="ticks", Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.mark.parametrize("size", [3_000_000, 11 << 20])
def test_a_transfer_can_be_broken_off(size: int, moto: Moto, tmp_path: Path) -> None:
    """What is broken off in the middle leaves neither an object nor a part of one."""
    with contextlib.closing(moto.store(tmp_path, SMALL_PARTS)) as store, source_of(tmp_path, bytes(size)) as source:
        digests = source.digests(store.limits)

        def stop(_count: int) -> None:
            raise BrokenOffError("stopped", "stopped")

        source.went = stop
        with pytest.raises(BrokenOffError):
            store.put(KEY, source, digests)
        assert store.look(KEY) == Absent()
    assert not moto.client.list_multipart_uploads(Bucket="ticks").get("Uploads")


def test_the_bytes_that_went_are_counted_once(moto: Moto, tmp_path: Path) -> None:
    """Progress counts what goes to the store, not what is read to be signed."""
    went: list[int] = []
    with contextlib.closing(moto.store(tmp_path)) as store, source_of(tmp_path, bytes(300_000)) as source:
        source.went = went.append
        digests = source.digests(store.limits)
        store.put(KEY, source, digests)
    assert sum(went) == 300_000


# --- What a store answers ------------------------------------------------------------------------------------------


@dataclass
class Answering:
    """An HTTP server that answers every request alike, as S3 words it."""

    status: int = 200
    code: str = ""
    message: str = "as S3 words it"
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""


@pytest.fixture
def answering() -> Iterator[Answering]:
    says = Answering()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            says.asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            text = f"<Error><Code>{says.code}</Code><Message>{says.message}</Message></Error>" if says.code else ""
            self.send_response(says.status)
            for name, value in says.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0" if self.command == "HEAD" else str(len(text)))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text.encode())

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 - the server looks for these names

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        says.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield says
        server.shutdown()
        thread.join()


FAILURES: list[tuple[int, str, type[StoreError], str, str]] = [
    (403, "InvalidAccessKeyId", UnusableError, "credentials", "AWS_ACCESS_KEY"),
    (403, "SignatureDoesNotMatch", UnusableError, "credentials", "AWS_SECRET_KEY"),
    (400, "ExpiredToken", UnusableError, "expired", "expired"),
    (403, "AccessDenied", UnusableError, "permission", "s3:PutObject"),
    (404, "NoSuchBucket", UnusableError, "bucket", "S3_BUCKET"),
    (301, "PermanentRedirect", UnusableError, "region", "S3_REGION"),
    (400, "AuthorizationHeaderMalformed", UnusableError, "region", "S3_REGION"),
    (403, "RequestTimeTooSkewed", UnusableError, "clock", "NTP"),
    (400, "BadDigest", TemporaryError, "damaged", "damaged on the way"),
    (400, "XAmzContentSHA256Mismatch", TemporaryError, "damaged", "damaged on the way"),
    (503, "SlowDown", TemporaryError, "busy", "overloaded"),
    (500, "InternalError", TemporaryError, "busy", "overloaded"),
    (500, "", TemporaryError, "busy", "HTTP 500"),
    (502, "", TemporaryError, "busy", "HTTP 502"),
    (429, "TooManyRequests", TemporaryError, "busy", "overloaded"),
    (429, "", TemporaryError, "busy", "HTTP 429"),
    (400, "RequestTimeout", TemporaryError, "busy", "overloaded"),
    (409, "ConditionalRequestConflict", TemporaryError, "conflict", "somebody else"),
    (412, "PreconditionFailed", NameTakenError, "name_taken", "taken"),
    (411, "MissingContentLength", UnusableError, "unsupported", "S3_CHECKSUM"),
    (507, "XMinioStorageFull", UnusableError, "full", "full"),
    (400, "EntityTooLarge", RefusedError, "too_large", "ROTATE_SIZE"),
    (418, "NeverHeardOf", RefusedError, "refused", "NeverHeardOf"),
]


@pytest.mark.parametrize(("status", "code", "error", "kind", "word"), FAILURES)
def test_every_answer_has_its_meaning(
    status: int, code: str, error: type[StoreError], kind: str, word: str, answering: Answering, tmp_path: Path
) -> None:
    """What S3 answers becomes one line with the remedy, and is of the class that tells whether to try again."""
    answering.status, answering.code = status, code
    with contextlib.closing(open_store(in_bucket(tmp_path, answering.endpoint))) as store:
        assert isinstance(store, Bucket)
        store._creates_only = kind != "unsupported"
        with source_of(tmp_path, DATA) as source, pytest.raises(error) as raised:
            store._put(KEY, source, source.digests(store.limits), {"IfNoneMatch": "*"})
    assert type(raised.value) is error
    assert raised.value.kind == kind
    assert word in str(raised.value)
    assert "\n" not in str(raised.value)
    assert answering.asked == ["PUT"], "nothing is asked twice"


def test_a_wish_to_wait_is_passed_on(answering: Answering, tmp_path: Path) -> None:
    """`Retry-After` is how long the store wants to be left alone."""
    answering.status, answering.code, answering.headers = 503, "SlowDown", {"Retry-After": "17"}
    store = open_store(in_bucket(tmp_path, answering.endpoint))
    with contextlib.closing(store), pytest.raises(TemporaryError) as raised:
        store.probe()
    assert raised.value.retry_after_s == 17


@pytest.mark.parametrize("status", [400, 403])
def test_a_look_that_is_refused_tells_nothing(status: int, answering: Answering, tmp_path: Path) -> None:
    """The answer to HEAD has no body: refused, it does not say whether anything is there."""
    answering.status = status
    with contextlib.closing(open_store(in_bucket(tmp_path, answering.endpoint))) as store:
        assert store.look(KEY) == CannotTell()


def test_a_key_that_may_only_write_is_noticed(answering: Answering, tmp_path: Path) -> None:
    """Listing and looking refused while the key is right: such a key can upload, and the proof is the answer."""
    answering.status, answering.code = 403, "AccessDenied"
    with contextlib.closing(open_store(in_bucket(tmp_path, answering.endpoint))) as store:
        probe = store.probe()
    assert not probe.may_look
    assert "may write only" in probe.text


def test_without_a_condition_a_blind_key_sends_nothing(answering: Answering, tmp_path: Path) -> None:
    """Where a store does not know `If-None-Match` and may not be looked at, overwriting cannot be excluded."""
    answering.status, answering.code = 501, "NotImplemented"
    with contextlib.closing(open_store(in_bucket(tmp_path, answering.endpoint))) as store, pytest.raises(StoreError):
        put(store, tmp_path, DATA)
    assert answering.asked.count("PUT") == 1


def test_secrets_are_in_no_error(answering: Answering, tmp_path: Path) -> None:
    """Whatever the store quotes, key and secret are not repeated."""
    answering.status, answering.code, answering.message = 418, f"Odd{SECRET}", f"{ACCESS} {SECRET}"
    store = open_store(in_bucket(tmp_path, answering.endpoint))
    with contextlib.closing(store), pytest.raises(StoreError) as raised:
        store.probe()
    shown = f"{raised.value!r} {raised.value} {store!r} {store.name}"
    assert SECRET not in shown
    assert ACCESS not in shown


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_closed_port_is_told(tmp_path: Path) -> None:
    """A refused connection is temporary, and names where to look."""
    store = open_store(in_bucket(tmp_path, f"http://127.0.0.1:{closed_port()}"))
    with contextlib.closing(store), pytest.raises(TemporaryError, match="refuses connections") as raised:
        store.probe()
    assert raised.value.kind == "network"


def test_a_name_that_is_not_known_is_told(tmp_path: Path) -> None:
    """A host without an address may be an outage of DNS, or a mistake; the line says where to look."""
    store = open_store(in_bucket(tmp_path, "http://store.invalid"))
    with contextlib.closing(store), pytest.raises(TemporaryError, match="cannot be resolved"):
        store.probe()


def test_plain_http_behind_https_is_told(answering: Answering, tmp_path: Path) -> None:
    """`https://` before a server without TLS does not heal by waiting."""
    endpoint = answering.endpoint.replace("http:", "https:")
    store = open_store(in_bucket(tmp_path, endpoint))
    with contextlib.closing(store), pytest.raises(UnusableError, match="does not speak TLS") as raised:
        store.probe()
    assert raised.value.kind == "tls"


def test_silence_is_a_network_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and never answers is given up after the time for an answer."""
    monkeypatch.setattr(stores, "ANSWER_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = open_store(in_bucket(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with contextlib.closing(store), pytest.raises(TemporaryError, match="did not answer") as raised:
            store.probe()
    assert raised.value.kind == "network"


def test_without_any_key_it_says_so(answering: Answering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key in the configuration and none in boto3's usual places: one line, and nothing is asked."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = in_bucket(tmp_path, answering.endpoint, AWS_ACCESS_KEY="", AWS_SECRET_KEY="")
    with contextlib.closing(open_store(config)) as store, pytest.raises(UnusableError, match="no access key") as raised:
        store.probe()
    assert raised.value.kind == "credentials_missing"
    assert answering.asked == []


@pytest.mark.parametrize(
    "harm", [{"AWS_PROFILE": "nobody"}, {"AWS_CONFIG_FILE": "broken"}, {"S3_REGION": "eu-"}], ids=str
)
def test_settings_of_boto3_that_cannot_be_used_are_told(
    harm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile that is not there, a broken file or a region that is none: one line, no traceback."""
    (tmp_path / "broken").write_text("[profile\nnonsense")
    keys = {name: value for name, value in harm.items() if name.startswith("S3_")}
    for name, value in harm.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, str(tmp_path / value) if value == "broken" else value)
    with pytest.raises(UnusableError) as raised:
        open_store(configured(tmp_path, S3_BUCKET="ticks", **keys))
    assert raised.value.kind == "settings"
    assert "\n" not in str(raised.value)


def test_nothing_configured_says_what_to_set(tmp_path: Path) -> None:
    """Without bucket and folder the keys to set are named."""
    with pytest.raises(NotConfiguredError, match=r"S3_BUCKET.*UPLOAD_TO"):
        open_store(configured(tmp_path))


def test_amazon_needs_no_host_in_the_name(tmp_path: Path) -> None:
    """A bucket of Amazon's is shown as everybody writes it, whatever its region."""
    config = configured(
        tmp_path, S3_BUCKET="ticks", S3_REGION="eu-central-1", AWS_ACCESS_KEY=ACCESS, AWS_SECRET_KEY=SECRET
    )
    with contextlib.closing(open_store(config)) as store:
        assert store.name == "s3://ticks"


# --- A folder ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "data").mkdir()
    (tmp_path / "backup disk").mkdir()
    store = open_store(configured(tmp_path, UPLOAD_TO=f"file://{tmp_path}/backup%20disk"))
    assert isinstance(store, Folder)
    return store


def test_a_file_arrives_in_a_folder(folder: Folder, tmp_path: Path) -> None:
    """A copy has the bytes and the mode of the file; nothing else is left beside it."""
    (tmp_path / "file.csv.zip").touch(0o640)
    assert put(folder, tmp_path, DATA) == "held: its bytes"
    copy = tmp_path / "backup disk" / KEY
    assert copy.read_bytes() == DATA
    assert copy.stat().st_mode & 0o777 == (tmp_path / "file.csv.zip").stat().st_mode & 0o777
    assert list(copy.parent.iterdir()) == [copy]
    assert folder.look(KEY) == Held(len(DATA))


@pytest.mark.parametrize("links", [True, False])
def test_a_folder_overwrites_nothing(
    links: bool,  # noqa: FBT001 - drawn
    folder: Folder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name is given once, also on a file system without hard links."""

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert put(folder, tmp_path, DATA) == "held: its bytes"
    with pytest.raises(NameTakenError):
        put(folder, tmp_path, OTHER)
    copy = folder.path / KEY
    assert copy.read_bytes() == DATA
    assert list(copy.parent.iterdir()) == [copy]


def test_a_copy_that_reads_back_differently_gets_no_name(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not give back what was written is found out before the copy has its name."""
    monkeypatch.setattr(folders, "_sha256_on_disk", lambda _path: OTHER_SHA256)
    with pytest.raises(TemporaryError, match="reads back differently"):
        put(folder, tmp_path, DATA)
    assert not any(path.is_file() for path in folder.path.rglob("*"))


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """An unmounted disk must not be filled into its mount point: the folder has to exist."""
    store = Folder(tmp_path / "missing", tmp_path / "data")
    for attempt in (store.probe, lambda: store.look(KEY), lambda: put(store, tmp_path, DATA)):
        with pytest.raises(UnusableError, match="Mount the disk") as raised:
            attempt()
        assert raised.value.kind == "folder_missing"
    assert not (tmp_path / "missing").exists()


def test_a_disk_that_goes_away_meanwhile_stops_it(folder: Folder, tmp_path: Path) -> None:
    """The file system under the folder stays the same one during a run."""
    folder.probe()
    assert folder._device is not None
    folder._device += 1
    with pytest.raises(UnusableError, match="Mount the disk"):
        put(folder, tmp_path, DATA)


@pytest.mark.parametrize("place", ["data", "data/backup", "."])
def test_the_data_directory_is_no_backup_of_itself(place: str, tmp_path: Path) -> None:
    """A folder that is, holds or lies in the data directory would be taken for a copy and the data deleted."""
    (tmp_path / "data" / "backup").mkdir(parents=True)
    with pytest.raises(UnusableError, match="lie in one another"):
        Folder(tmp_path / place, tmp_path / "data").look(KEY)


def test_a_link_back_to_the_data_is_no_copy(tmp_path: Path) -> None:
    """A folder of which a part points back to the data directory holds the file itself, no copy of it."""
    original = tmp_path / "data" / KEY
    original.parent.mkdir(parents=True)
    original.write_bytes(DATA)
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "binance").symlink_to(tmp_path / "data" / "binance")
    with pytest.raises(UnusableError, match="no copy"):
        Folder(tmp_path / "backup", tmp_path / "data").look(KEY)


def test_what_is_in_the_way_is_told(folder: Folder, tmp_path: Path) -> None:
    """A link or a directory under the file's name, or a file where its folder should be, is left and told."""
    target = folder.path / KEY
    target.mkdir(parents=True)
    with pytest.raises(RefusedError, match="no ordinary file"):
        folder.look(KEY)
    target.rmdir()
    target.symlink_to(tmp_path)
    with pytest.raises(RefusedError, match="no ordinary file"):
        folder.look(KEY)
    target.unlink()
    target.parent.rmdir()
    target.parent.write_text("a file")
    with pytest.raises(RefusedError, match="in the way"):
        folder.look(KEY)


@pytest.mark.parametrize(
    ("number", "error", "kind"),
    [
        (errno.ENOSPC, UnusableError, "full"),
        (errno.EDQUOT, UnusableError, "full"),
        (errno.EROFS, UnusableError, "permission"),
        (errno.EIO, TemporaryError, "network"),
        (errno.ESTALE, TemporaryError, "network"),
        (errno.EFBIG, RefusedError, "refused"),
    ],
)
def test_what_a_disk_says_has_its_meaning(
    number: int, error: type[StoreError], kind: str, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full, closed or absent disk is told in a line; the half copy is removed."""

    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    (folder.path / KEY).parent.mkdir(parents=True)
    with source_of(tmp_path, DATA) as source:
        digests = source.digests(folder.limits)
        with pytest.raises(error, match=re.escape(os.strerror(number))) as raised:
            folder.put(KEY, source, digests)
    assert raised.value.kind == kind
    assert not any(path.is_file() for path in folder.path.rglob("*"))


def test_what_killed_runs_left_in_a_folder_is_removed(folder: Folder, tmp_path: Path) -> None:
    """Temporary copies go once they are a day old; younger ones may belong to a run, and others are not ours."""
    put(folder, tmp_path, DATA)
    feed = (folder.path / KEY).parent
    old, young, foreign = (
        feed / ".BTCUSDT-1.csv.zip.old.unconfirmed",
        feed / ".BTCUSDT-1.csv.zip.young.unconfirmed",
        feed / ".notes",
    )
    for path in (old, young, foreign):
        path.touch()
    two_days_ago = time.time() - 2 * 86_400
    for path in (old, foreign, feed / KEY.rpartition("/")[2]):
        os.utime(path, (two_days_ago, two_days_ago))
    assert folder.abort_leftovers(datetime.now(UTC) - timedelta(days=1)) == 1
    assert sorted(path.name for path in feed.iterdir()) == sorted([young.name, foreign.name, KEY.rpartition("/")[2]])
