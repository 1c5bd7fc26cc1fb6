"""What S3 answers, or that it does not answer, and what that means: tables from codes to failures.

The codes are those of "Error responses" in Amazon's S3 API reference, and what other stores add to them.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tickcollect.store.failures import NameTakenError, RefusedError, StoreError, TemporaryError, UnusableError

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError


@dataclass(frozen=True, slots=True)
class Meaning:
    """One kind of failure: what it is raised as, its word for machines, and its line; `{action}` is the permission."""

    error: type[StoreError]
    kind: str
    text: str


BUSY = Meaning(TemporaryError, "busy", "the store is overloaded or has a failure of its own")
UNSUPPORTED = Meaning(
    UnusableError, "unsupported", 'the store does not know what was asked for. Set S3_CHECKSUM to "md5"'
)

_ANSWERS: tuple[tuple[Meaning, str], ...] = (
    (
        Meaning(
            UnusableError,
            "credentials",
            "the access key or its secret is wrong. Correct AWS_ACCESS_KEY and AWS_SECRET_KEY, or the profile",
        ),
        "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidSecurity 401",
    ),
    (
        Meaning(UnusableError, "expired", "the access key has expired. Get a new one, or look at the profile or role"),
        "ExpiredToken ExpiredTokenException TokenRefreshRequired",
    ),
    (
        Meaning(UnusableError, "bucket", "there is no such bucket. Correct S3_BUCKET, or create it"),
        "NoSuchBucket InvalidBucketName",
    ),
    (
        Meaning(UnusableError, "region", "the bucket is elsewhere. Set S3_REGION to its region, see S3_ENDPOINT_URL"),
        "PermanentRedirect AuthorizationHeaderMalformed IllegalLocationConstraintException 301",
    ),
    (
        Meaning(UnusableError, "permission", "the access key may not do that. Allow it {action}, see docs/upload.md"),
        "AccessDenied AllAccessDisabled AccountProblem InvalidPayer MethodNotAllowed 403",
    ),
    (
        Meaning(UnusableError, "clock", "this machine's clock is wrong by more than is accepted. Run an NTP client"),
        "RequestTimeTooSkewed RequestExpired RequestInTheFuture",
    ),
    (
        Meaning(UnusableError, "full", "the store is full, or a quota is used up. Make room there, or raise the quota"),
        "QuotaExceeded XMinioStorageFull 507",
    ),
    (UNSUPPORTED, "NotImplemented MissingContentLength InvalidTrailer 501"),
    (BUSY, "InternalError ServiceUnavailable SlowDown ServerBusy Busy TooManyRequests 408 429"),
    (BUSY, "RequestTimeout RequestLimitExceeded RequestThrottled Throttling ThrottlingException"),
    (
        Meaning(TemporaryError, "conflict", "somebody else is writing the same name"),
        "ConditionalRequestConflict OperationAborted NoSuchUpload",
    ),
    (
        Meaning(TemporaryError, "damaged", "the bytes were damaged on the way, and refused. See memory and network"),
        "BadDigest XAmzContentSHA256Mismatch XAmzContentChecksumMismatch InvalidDigest IncompleteBody InvalidPart",
    ),
    (Meaning(NameTakenError, "name_taken", "the name is taken"), "PreconditionFailed 412"),
    (
        Meaning(RefusedError, "too_large", "the file is larger than the store takes. Lower ROTATE_SIZE"),
        "EntityTooLarge",
    ),
)
"""Each meaning with S3's codes for it, or HTTP's numbers where the answer has no code."""

_MEANINGS = {code: meaning for meaning, codes in _ANSWERS for code in codes.split()}
_UNKNOWN_HEADER = re.compile("(?i)unsupported header|not implemented|if-none-match|x-amz-(sdk-)?checksum")
"""How stores that have no code of their own for it say that they do not know a header."""
_SERVER_FAILED = 500

_ACTIONS = {
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
"""The permission that a request needs, where it is not s3:PutObject."""


def status_of(error: "ClientError") -> int:
    """Return HTTP's number of an answer."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def answered(store: str, error: "ClientError") -> StoreError:
    """Return what an answer other than success means. A code is shown only if it looks like one."""
    said, status = error.response.get("Error", {}), status_of(error)
    code = str(said.get("Code", ""))
    meaning = _MEANINGS.get(code) or _MEANINGS.get(str(status))
    if meaning is None and _UNKNOWN_HEADER.search(str(said.get("Message", ""))):
        meaning = UNSUPPORTED
    if meaning is None and status >= _SERVER_FAILED:
        meaning = BUSY
    shown = code if re.fullmatch(r"[A-Za-z][A-Za-z0-9.]{1,50}", code) else f"HTTP {status}"
    if meaning is None:
        return RefusedError("refused", f"{store}: {error.operation_name} was refused: {shown} ({status}).")
    text = meaning.text.format(action=_ACTIONS.get(error.operation_name, "s3:PutObject"))
    line = f"{store}: {text} ({error.operation_name}: {shown})."
    if meaning.error is TemporaryError:
        return TemporaryError(meaning.kind, line, _retry_after_s(error))
    return meaning.error(meaning.kind, line)


def _retry_after_s(error: "ClientError") -> float:
    text = str(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", ""))
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


_SDK_ERRORS = {
    "NoCredentialsError": Meaning(
        UnusableError,
        "credentials_missing",
        "there is no access key. Set AWS_ACCESS_KEY and AWS_SECRET_KEY, or give this machine a profile or role",
    ),
    "PartialCredentialsError": Meaning(
        UnusableError, "credentials_incomplete", "only half of the access key is set. Set key and secret"
    ),
    "CredentialRetrievalError": Meaning(
        UnusableError, "credentials_missing", "the access key cannot be had from where the profile says"
    ),
    "ParamValidationError": Meaning(
        UnusableError, "settings", "the bucket's name or folder cannot be used. Correct S3_BUCKET and S3_BUCKET_PATH"
    ),
    "ReadTimeoutError": Meaning(TemporaryError, "network", "did not answer in time"),
    "ConnectTimeoutError": Meaning(TemporaryError, "network", "cannot be reached: no answer"),
}
"""What botocore's errors mean, by their names: its module costs too much to be imported for a table."""

_SIGNS = {
    "CERTIFICATE_VERIFY_FAILED": Meaning(
        UnusableError,
        "tls",
        "its certificate is not trusted. See S3_ENDPOINT_URL; for an authority of your own set AWS_CA_BUNDLE",
    ),
    "WRONG_VERSION_NUMBER": Meaning(
        UnusableError, "tls", "does not speak TLS there. See http and https in its address"
    ),
    "NameResolution": Meaning(TemporaryError, "network", "its name cannot be resolved. See DNS and S3_ENDPOINT_URL"),
    "refused": Meaning(TemporaryError, "network", "refuses connections there. See S3_ENDPOINT_URL"),
    "nreachable": Meaning(TemporaryError, "network", "there is no way to it. See this machine's network"),
}
"""What a failed connection means, by what its text contains."""


def not_answered(store: str, error: "BotoCoreError") -> StoreError:
    """Return what it means that there was no answer, or that nothing was asked."""
    meaning = _SDK_ERRORS.get(type(error).__name__)
    if meaning is None:
        reason = f"{error!s} {error.kwargs.get('error')!r}"
        failed = Meaning(TemporaryError, "network", f"the connection failed ({type(error).__name__})")
        meaning = next((found for sign, found in _SIGNS.items() if sign in reason), failed)
    return meaning.error(meaning.kind, f"{store}: {meaning.text}.")


ANSWERS_READ = (
    "ListObjectsV2", "CreateMultipartUpload", "CompleteMultipartUpload", "ListMultipartUploads", "ListParts",
    "PutObject", "UploadPart",
)  # fmt: skip
"""Requests whose answers of success are looked at: S3's are XML, `<...Result>`, or have no body."""
_ELEMENT = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<(\w+)")


def strange_answer(body: bytes) -> str:
    """Return what stands in an answer of success where S3's should; empty if it may be S3's, or one of its errors."""
    found = _ELEMENT.match(body)
    is_html = b"<html" in body[:1000].lower() or b"<!doctype" in body[:1000].lower()
    if not body.strip() or (found is not None and not is_html):
        return ""
    return "a page of HTML" if is_html else "other text"


def another_answers(store: str, what: str) -> StoreError:
    """Return what it means that something else than a store answers with success."""
    return TemporaryError(
        "network",
        f"{store}: answered with {what} instead of S3's answer. Something else stands there, such as a proxy or a page "
        "to log in. See S3_ENDPOINT_URL and this machine's network.",
    )


def not_s3(store: str) -> StoreError:
    """Return what it means that an answer could not be read."""
    return TemporaryError(
        "network",
        f"{store}: its answer was cut short, or is none that S3 gives. See S3_ENDPOINT_URL and what stands between.",
    )
