"""The stores of the upload's tests are what they claim: the judge refuses, the careless one errs as told."""

import base64
import contextlib
import errno
import hashlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from conftest import until
from mypy_boto3_s3 import S3Client

from stores.bad import CarelessStore, Manners, careless
from stores.listening import authority
from stores.proxy import ANSWERS, Fault, Proxy, faulty
from stores.swift import STRANGER_KEY, STRANGER_SECRET, Bucket, SwiftStore, client, why_not

DATA = bytes(range(256)) * 300
WRONG = base64.b64encode(hashlib.sha256(b"something else").digest()).decode()


@pytest.fixture
def through(proxy: Proxy) -> Iterator[S3Client]:
    """Make a client that goes through the proxy."""
    with contextlib.closing(client(proxy.endpoint)) as made:
        yield made


@pytest.fixture
def careless_store() -> Iterator[CarelessStore]:
    """Run a store with bad manners."""
    with careless() as made:
        yield made


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Make a certificate for 127.0.0.1, with who has signed it."""
    return authority(tmp_path_factory.mktemp("tls"))


def code_of(error: "pytest.ExceptionInfo[ClientError]") -> str:
    """Return S3's code."""
    return error.value.response["Error"]["Code"]


# --- The judge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "code"),
    [
        ({"ChecksumSHA256": WRONG}, "BadDigest"),
        ({"ContentMD5": base64.b64encode(hashlib.md5(b"something else").digest()).decode()}, "BadDigest"),
        ({"ChecksumCRC32": "AAAAAA=="}, "BadDigest"),
    ],
)
def test_judge_refuses_a_wrong_checksum(bucket: Bucket, claim: dict[str, str], code: str) -> None:
    """An object whose bytes are not what was claimed is not taken."""
    with pytest.raises(ClientError) as refused:
        bucket.client.put_object(Bucket=bucket.name, Key="a", Body=DATA, **claim)  # type: ignore[arg-type]  # by name
    assert (code_of(refused), bucket.keys()) == (code, [])


def test_judge_gives_a_name_away_once(bucket: Bucket) -> None:
    """`IfNoneMatch` holds for whole objects and for completed parts."""
    bucket.put("a", DATA)
    with pytest.raises(ClientError) as refused:
        bucket.client.put_object(Bucket=bucket.name, Key="a", Body=b"other", IfNoneMatch="*")
    assert code_of(refused) == "PreconditionFailed"
    upload = bucket.begin("a", b"other")
    parts = bucket.client.list_parts(Bucket=bucket.name, Key="a", UploadId=upload)["Parts"]
    done = {"Parts": [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in parts]}
    assert bucket.unfinished() == ["a"]
    with pytest.raises(ClientError) as refused:
        bucket.client.complete_multipart_upload(
            Bucket=bucket.name,
            Key="a",
            UploadId=upload,
            MultipartUpload=done,  # type: ignore[arg-type]  # a dict of just this shape
            IfNoneMatch="*",
        )
    assert code_of(refused) == "PreconditionFailed"
    assert bucket.contents() == {"a": DATA}


@pytest.mark.parametrize(
    ("key", "secret", "code"),
    [
        ("test:tester", "wrong", "SignatureDoesNotMatch"),
        (STRANGER_KEY, STRANGER_SECRET, "AccessDenied"),
    ],
)
def test_judge_knows_its_users(swift: SwiftStore, bucket: Bucket, key: str, secret: str, code: str) -> None:
    """A wrong secret and a user without rights are refused."""
    with contextlib.closing(client(swift.endpoint, key, secret)) as stranger, pytest.raises(ClientError) as refused:
        stranger.put_object(Bucket=bucket.name, Key="a", Body=DATA)
    assert (code_of(refused), bucket.keys()) == (code, [])


def test_judge_says_why_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no xattrs the reason names them, and nothing is left behind."""
    assert why_not(tmp_path) == ""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "setxattr", refuse)
    assert "xattrs" in why_not(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_judge_ends_with_the_tests(tmp_path: Path, number: signal.Signals) -> None:
    """However the tests end, no server of theirs stays."""
    if reason := why_not(tmp_path):
        pytest.skip(reason)
    code = "import sys, time; from pathlib import Path; from stores.swift import serving\n"
    code += "with serving(Path(sys.argv[1])) as store: print(store.port, flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    ) as tests:
        assert tests.stdout
        port = int(tests.stdout.readline())
        socket.create_connection(("127.0.0.1", port)).close()
        tests.send_signal(number)
    settings = [path.read_text() for path in tmp_path.rglob("*.conf") if path.name != "swift.conf"]
    ports = {int(found) for text in settings for found in re.findall(r"bind_port = (\d+)", text)}
    assert len(ports) == 4
    until(lambda: not any(listens(port) for port in ports))


def listens(port: int) -> bool:
    """Tell whether somebody takes connections there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


# --- The proxy -------------------------------------------------------------------------------------------------------


def put(through: S3Client, bucket: Bucket) -> None:
    """Send one object."""
    through.put_object(Bucket=bucket.name, Key="a", Body=DATA, IfNoneMatch="*")


def test_proxy_passes_everything_on(bucket: Bucket, proxy: Proxy, through: S3Client) -> None:
    """Without a fault every step works through the proxy, and is counted."""
    put(through, bucket)
    assert through.head_object(Bucket=bucket.name, Key="a")["ContentLength"] == len(DATA)
    with contextlib.closing(through.get_object(Bucket=bucket.name, Key="a")["Body"]) as body:
        assert body.read() == DATA
    upload = through.create_multipart_upload(Bucket=bucket.name, Key="b")["UploadId"]
    part = through.upload_part(Bucket=bucket.name, Key="b", UploadId=upload, PartNumber=1, Body=DATA)
    whole = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    through.complete_multipart_upload(
        Bucket=bucket.name,
        Key="b",
        UploadId=upload,
        MultipartUpload=whole,  # type: ignore[arg-type]  # a dict of just this shape
    )
    left = through.create_multipart_upload(Bucket=bucket.name, Key="c")["UploadId"]
    through.abort_multipart_upload(Bucket=bucket.name, Key="c", UploadId=left)
    assert through.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []) == []
    assert bucket.contents() == {"a": DATA, "b": DATA}
    counted = {"put": 1, "head": 1, "get": 1, "create": 2, "part": 1, "complete": 1, "abort": 1, "uploads": 1}
    assert dict(proxy.seen) == counted


@pytest.mark.parametrize("moment", ["before", "body"])
@pytest.mark.parametrize("harm", [*ANSWERS, "reset", "cut"])
def test_harm_before_the_end_leaves_nothing(
    bucket: Bucket, proxy: Proxy, through: S3Client, moment: str, harm: str
) -> None:
    """What is refused or broken off before its end is not in the store; the next try passes."""
    proxy.harm(Fault("put", moment, harm, at_byte=30_000))  # type: ignore[arg-type]  # one of the moments
    with pytest.raises((ClientError, BotoCoreError)) as failed:
        put(through, bucket)
    if harm in ANSWERS:
        assert isinstance(failed.value, ClientError)
        assert failed.value.response["Error"]["Code"] == ANSWERS[harm][1]
        assert failed.value.response["ResponseMetadata"]["HTTPStatusCode"] == ANSWERS[harm][0]
    assert bucket.keys() == []
    put(through, bucket)
    assert bucket.contents() == {"a": DATA}


@pytest.mark.parametrize("harm", ["error", "slow-down", "reset"])
def test_harm_after_the_end_hides_what_was_done(bucket: Bucket, proxy: Proxy, through: S3Client, harm: str) -> None:
    """The store has the object although the client was told that it failed."""
    proxy.harm(Fault("put", "after", harm))
    with pytest.raises((ClientError, BotoCoreError)):
        put(through, bucket)
    assert bucket.contents() == {"a": DATA}


def test_flipped_byte_is_refused_by_the_judge(bucket: Bucket, proxy: Proxy, through: S3Client) -> None:
    """One bit changed on the way: the store sees it."""
    proxy.harm(Fault("put", "body", "flip", at_byte=len(DATA) - 1))
    with pytest.raises(ClientError) as refused:
        put(through, bucket)
    assert code_of(refused) in {"BadDigest", "XAmzContentSHA256Mismatch"}
    assert bucket.keys() == []


@pytest.mark.parametrize("moment", ["before", "body", "after"])
def test_slowness_harms_nothing(bucket: Bucket, proxy: Proxy, through: S3Client, moment: str) -> None:
    """What is slow arrives."""
    proxy.harm(Fault("put", moment, "slow"))  # type: ignore[arg-type]  # one of the moments
    put(through, bucket)
    assert bucket.contents() == {"a": DATA}
    assert proxy.done.total() == 1


def test_hanging_ends_with_the_client(swift: SwiftStore, bucket: Bucket, proxy: Proxy) -> None:
    """A hanging connection stays open until the client gives up; others pass meanwhile."""
    proxy.harm(Fault("put", "body", "hang", at_byte=1000))
    with contextlib.closing(client(proxy.endpoint)) as stuck:
        failed: list[BaseException] = []

        def send() -> None:
            try:
                stuck.put_object(Bucket=bucket.name, Key="stuck", Body=DATA)
            except BotoCoreError as error:
                failed.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        until(proxy.done.total)
        with contextlib.closing(client(proxy.endpoint)) as other:
            put(other, bucket)
        assert thread.is_alive()
        proxy.listener.stopping.set()
        thread.join()
    assert len(failed) == 1
    assert bucket.keys() == ["a"]


def test_faults_are_done_as_often_as_asked(bucket: Bucket, proxy: Proxy, through: S3Client) -> None:
    """Three times is three times, and only for the key that was named."""
    proxy.harm(Fault("put", "before", "slow-down", times=3, key="a"))
    through.put_object(Bucket=bucket.name, Key="b", Body=DATA)
    for _ in range(3):
        with pytest.raises(ClientError):
            put(through, bucket)
    put(through, bucket)
    assert bucket.keys() == ["a", "b"]


def test_proxy_speaks_tls(swift: SwiftStore, bucket: Bucket, tls: tuple[ssl.SSLContext, Path]) -> None:
    """Behind TLS boto3 frames the body by default, and the judge takes the frames off again; resets work there too."""
    with faulty(swift.port, tls[0]) as proxy, contextlib.closing(client(proxy.endpoint, ca=tls[1])) as through:
        proxy.harm(Fault("put", "body", "reset", at_byte=1000))
        with pytest.raises(BotoCoreError):
            put(through, bucket)
        put(through, bucket)
    assert bucket.contents() == {"a": DATA}


# --- The careless store ----------------------------------------------------------------------------------------------


@pytest.fixture
def careless_client(careless_store: CarelessStore) -> Iterator[S3Client]:
    """Make a client of the careless store."""
    with contextlib.closing(client(careless_store.endpoint)) as made:
        yield made


def test_without_a_switch_the_careless_store_behaves(careless_store: CarelessStore, careless_client: S3Client) -> None:
    """It verifies, gives a name away once, tells the truth, and writes down what was put."""
    with pytest.raises(ClientError) as refused:
        careless_client.put_object(Bucket="any", Key="a", Body=DATA, ChecksumSHA256=WRONG)
    assert code_of(refused) == "BadDigest"
    careless_client.put_object(Bucket="any", Key="a", Body=DATA, IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        careless_client.put_object(Bucket="any", Key="a", Body=b"other", IfNoneMatch="*")
    assert code_of(refused) == "PreconditionFailed"
    held = careless_client.head_object(Bucket="any", Key="a", ChecksumMode="ENABLED")
    assert held["ContentLength"] == len(DATA)
    assert held["ETag"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    assert base64.b64decode(held["ChecksumSHA256"]) == hashlib.sha256(DATA).digest()
    assert [(put.key, put.replaced) for put in careless_store.puts] == [("a", False)]


def test_each_bad_manner_shows(careless_store: CarelessStore, careless_client: S3Client) -> None:
    """Each switch does what it says."""
    key = "any"

    def put(name: str) -> str:
        answer = careless_client.put_object(Bucket="any", Key=name, Body=DATA, IfNoneMatch="*")
        return answer.get("ETag", "")

    def refusal() -> str:
        with pytest.raises(ClientError) as refused:
            put("z")
        return code_of(refused)

    put(key)
    careless_store.manners = Manners(overwrites=True)
    put(key)
    assert careless_store.puts[-1].replaced
    careless_store.manners = Manners(etag="nonsense")
    assert hashlib.md5(DATA).hexdigest() not in put("b")
    careless_store.manners = Manners(stores="half")
    put("c")
    assert careless_store.objects["c"].data == DATA[: len(DATA) // 2]
    careless_store.manners = Manners(stores="altered")
    put("d")
    assert careless_store.objects["d"].data[1:] == DATA[1:]
    assert careless_store.objects["d"].data != DATA
    careless_store.manners = Manners(checksums=False)
    assert "ChecksumSHA256" not in careless_client.head_object(Bucket="any", Key=key, ChecksumMode="ENABLED")
    careless_store.manners = Manners(head="forbidden")
    with pytest.raises(ClientError) as refused:
        careless_client.head_object(Bucket="any", Key=key)
    assert code_of(refused) == "403"
    careless_store.manners = Manners(knows_conditions=False)
    assert refusal() == "NotImplemented"
    careless_store.manners = Manners(knows_checksums=False)
    assert refusal() == "InvalidArgument"


def test_framing_becomes_part_of_the_object(tls: tuple[ssl.SSLContext, Path]) -> None:
    """Over TLS and by boto3's defaults, a store that keeps frames holds more than was sent, and says that all is well.

    A checksum that is given beforehand is sent without frames, and the same store holds the same bytes.
    """
    with careless(tls[0]) as store, contextlib.closing(client(store.endpoint, ca=tls[1])) as sending:
        store.manners = Manners(keeps_framing=True)
        sending.put_object(Bucket="any", Key="framed", Body=DATA)
        checksum = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
        sending.put_object(Bucket="any", Key="plain", Body=DATA, ChecksumSHA256=checksum)
        store.manners = Manners()
        sending.put_object(Bucket="any", Key="unframed", Body=DATA)
    assert len(store.objects["framed"].data) > len(DATA)
    assert b"x-amz-checksum" in store.objects["framed"].data
    assert store.objects["plain"].data == DATA
    assert store.objects["unframed"].data == DATA
