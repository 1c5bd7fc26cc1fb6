"""OpenStack Swift with its S3 layer: four processes, the smallest set-up that verifies checksums and conditions.

It refuses bytes that do not match their SHA-256, CRC32 or MD5 (`BadDigest`, `XAmzContentSHA256Mismatch`), a name that
is taken (`IfNoneMatch`, 412), a wrong signature and a clock that is 20 minutes off. Parts of a multipart upload may be
as small as `PART_BYTES_MIN`, so that tests need no large files; Amazon wants 5 MiB.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "test:tester"
SECRET_KEY = "planted-swift-secret"
STRANGER_KEY = "test:stranger"
STRANGER_SECRET = "planted-stranger-secret"
"""A user whom the store knows and who may do nothing: `AccessDenied`."""
REGION = "us-east-1"
PART_BYTES_MIN = 1024

READY_WITHIN_S = 60.0
ATTEMPTS = 3
"""Another process may take a port between our asking for a free one and the server's use of it."""

PARTS = {"account": "account", "container": "container", "object": "obj", "proxy": "proxy"}
"""Each server, and the module of Swift that it is."""

SERVER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no server outlives the tests
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(1)
from swift.{module}.server import main
main()
"""

RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(4, 1, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{name}.ring.gz")
"""

COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_address = /dev/null
"""

STORAGE = """
[pipeline:main]
pipeline = {part}-server
[app:{part}-server]
use = egg:swift#{part}
"""

PROXY = f"""
[pipeline:main]
pipeline = catch_errors proxy-logging cache s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {SECRET_KEY} .admin
user_test_stranger = {STRANGER_SECRET}
[filter:s3api]
use = egg:swift#s3api
location = {REGION}
min_segment_size = {PART_BYTES_MIN}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""

HASHING = """
[swift-hash]
swift_hash_path_suffix = t
swift_hash_path_prefix = t
[storage-policy:0]
name = one
default = yes
"""


def why_not(folder: Path) -> str:
    """Return why Swift cannot run with its data below `folder`; empty if it can."""
    if importlib.util.find_spec("swift") is None:
        return "OpenStack Swift is not installed: pip install -e '.[dev]'"
    if not sys.platform.startswith("linux"):
        return "OpenStack Swift runs on Linux only"
    probe = folder / "xattr-probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.probe", b"x" * 1000)
    except OSError as error:
        return f"OpenStack Swift needs user xattrs, which {folder} has not: {error.strerror}"
    finally:
        probe.unlink()
    return ""


@dataclass(frozen=True)
class Bucket:
    """One bucket, as the owner of the store sees it: straight, through no proxy."""

    name: str
    client: "S3Client"

    def keys(self) -> list[str]:
        """Return the names of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return sorted(held["Key"] for page in pages for held in page.get("Contents", ()))

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""
        with contextlib.closing(self.client.get_object(Bucket=self.name, Key=key)["Body"]) as body:
            return body.read()

    def contents(self) -> dict[str, bytes]:
        """Return every object's bytes by name."""
        return {key: self.read(key) for key in self.keys()}

    def put(self, key: str, data: bytes) -> None:
        """Put an object behind the uploader's back, over whatever is there."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, key: str) -> None:
        """Take an object away."""
        self.client.delete_object(Bucket=self.name, Key=key)

    def begin(self, key: str, *parts: bytes) -> str:
        """Begin a multipart upload, send some parts, leave it, and return its ID."""
        upload = self.client.create_multipart_upload(Bucket=self.name, Key=key)["UploadId"]
        for number, data in enumerate(parts, start=1):
            self.client.upload_part(Bucket=self.name, Key=key, UploadId=upload, PartNumber=number, Body=data)
        return upload

    def unfinished(self) -> list[str]:
        """Return the names of multipart uploads that were begun and neither completed nor aborted."""
        found = self.client.list_multipart_uploads(Bucket=self.name)
        return sorted(upload["Key"] for upload in found.get("Uploads", ()))


@dataclass(frozen=True)
class SwiftStore:
    """A running Swift."""

    endpoint: str
    logs: Path

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self.endpoint.rpartition(":")[2])

    @contextlib.contextmanager
    def bucket(self) -> Iterator[Bucket]:
        """Make a bucket of its own for one test."""
        with contextlib.closing(client(self.endpoint)) as owner:
            made = Bucket(f"ticks-{uuid.uuid4().hex[:12]}", owner)
            owner.create_bucket(Bucket=made.name)
            yield made


def client(
    endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY, *, ca: Path | None = None
) -> "S3Client":
    """Return an S3 client, of the store or of what stands before it, that tries each call once. Close it."""
    from botocore.config import Config

    return _session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=REGION,
        verify=None if ca is None else str(ca),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1, "mode": "standard"}),
    )


@functools.cache
def _session() -> "Session":
    """Return one session for all clients, which reads the service's long description once."""
    import boto3

    return boto3.session.Session()


def config_keys(endpoint: str, bucket: str, **more: object) -> dict[str, object]:
    """Return the configuration with which `tickcollect` uploads to a bucket."""
    return {
        "AWS_ACCESS_KEY": ACCESS_KEY,
        "AWS_SECRET_KEY": SECRET_KEY,
        "S3_ENDPOINT_URL": endpoint,
        "S3_REGION": REGION,
        "S3_BUCKET": bucket,
        **more,
    }


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[SwiftStore]:
    """Run Swift with all it keeps below `folder`, until the block ends; none of its processes outlives it."""
    for attempt in range(ATTEMPTS):
        home = folder / f"swift-{attempt}"
        ports = _free_ports(len(PARTS))
        _write_settings(home, dict(zip(PARTS, ports, strict=True)))
        with contextlib.ExitStack() as stack:
            started = {part: stack.enter_context(_server(home, part)) for part in PARTS}
            store = SwiftStore(f"http://127.0.0.1:{ports[-1]}", home / "logs")
            if _ready(store, started):
                yield store
                return
    raise AssertionError(f"Swift did not start in {ATTEMPTS} attempts:\n{_last_words(home)}")


def _write_settings(home: Path, ports: Mapping[str, int]) -> None:
    for name in ("devices/d1", "logs"):
        (home / name).mkdir(parents=True)
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    (home / "swift.conf").write_text(HASHING)
    for part, port in ports.items():
        pipeline = PROXY if part == "proxy" else STORAGE.format(part=part)
        (home / f"{part}.conf").write_text(COMMON.format(port=port, user=user, folder=home) + pipeline)
    storage_ports = [str(ports[part]) for part in ports if part != "proxy"]
    subprocess.run([sys.executable, "-PW", "ignore", "-c", RINGS, str(home), *storage_ports], check=True)


@contextlib.contextmanager
def _server(home: Path, part: str) -> Iterator["subprocess.Popen[bytes]"]:
    source, settings = SERVER.format(module=PARTS[part]), str(home / f"{part}.conf")
    with (home / "logs" / f"{part}.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-PW", "ignore", "-c", source, str(os.getpid()), settings],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "SWIFT_CONF": str(home)},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)  # there is nothing to keep, and it drains connections for long
        process.wait()


def _ready(store: SwiftStore, started: "Mapping[str, subprocess.Popen[bytes]]") -> bool:
    """Wait until the store answers and can make a bucket; False if one of its processes has ended."""
    deadline_s = time.monotonic() + READY_WITHIN_S
    while all(process.poll() is None for process in started.values()):
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"{store.endpoint}/info", timeout=10).close()
            if _all_listen(store):
                return True
        assert time.monotonic() < deadline_s, f"Swift is not ready after {READY_WITHIN_S} s\n{_last_words(store.logs)}"
        time.sleep(0.05)
    return False


def _all_listen(store: SwiftStore) -> bool:
    settings = (store.logs.parent / f"{part}.conf" for part in PARTS)
    ports = [int(found[1]) for path in settings if (found := re.search(r"bind_port = (\d+)", path.read_text()))]
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    return len(ports) == len(PARTS)


def _last_words(home: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text('utf-8', 'replace')[-2000:]}" for log in sorted(home.rglob("*.txt")))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def sha256_of(data: bytes) -> str:
    """Return a digest as the journal writes it."""
    return hashlib.sha256(data).hexdigest()
