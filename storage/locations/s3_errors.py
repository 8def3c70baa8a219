"""Translate the errors of s3fs and botocore. What a caller may do about one decides its class.

The server's word counts: a code such as ``ExpiredToken``. s3fs raises built-in exceptions, several codes as one class,
with the ``ClientError`` that has the code as their cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import (
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from ...jobs.errors import AtlasError, InputError, TransientError

_FIELD = "store.url"

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch"}
_BUSY = {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded", "503", "429"}
_OTHER_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException", "301"}
_KEY_TOO_LONG = {"KeyTooLongError", "KeyTooLong"}

STALE_CREDENTIALS = _EXPIRED | _UNKNOWN_KEY
"""Codes of the server after which credentials that are looked up again may be others, and accepted."""

WITHOUT_CODE = {"400", "403"}
"""Codes that botocore makes up where the answer has no body, as to HEAD: the server's own code is not known."""


def code_of(error: BaseException) -> str:
    """Return the server's error code, such as ``SlowDown``; empty when the server did not answer."""
    return str(_fields_of(error).get("Code") or "")


def translate(error: Exception, *, url: str, bucket: str, endpoint_url: str | None, was_accepted: bool) -> AtlasError:
    """Make the ``AtlasError`` for an error of s3fs or botocore.

    Args:
        error: The error.
        url: URL of the store.
        bucket: Name of its bucket.
        endpoint_url: URL of the server; None for AWS.
        was_accepted: Whether the server has accepted an earlier request of these credentials.
    """
    code, reason = code_of(error), _reason(error)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, ProfileNotFound)):
        hint = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE; a public bucket needs --anonymous."
        return InputError(
            f"there are no credentials for {url}: {reason}.", code="no_credentials", field=_FIELD, hint=hint
        )
    if code == "RequestTimeTooSkewed":
        return _clock_skew(error, url)
    if code in _EXPIRED or (code in _UNKNOWN_KEY and was_accepted):
        return TransientError(
            f"{url} no longer accepts these credentials: {reason}.",
            code="credentials_expired",
            field=_FIELD,
            hint="Renew them; they are looked up again with each try. A run goes on, or is started again.",
        )
    if code in _OTHER_REGION:
        hint = "Set AWS_DEFAULT_REGION or store.region to the bucket's region, and check store.endpoint_url."
        return InputError(f"{url} is in another region: {reason}.", code="other_region", field=_FIELD, hint=hint)
    if code in _KEY_TOO_LONG:
        return InputError(
            f"{url} makes keys that are too long: {reason}.", code="bad_store_url", field=_FIELD, hint="Shorten it."
        )
    if code.startswith("KMS.") or code == "InvalidEncryptionAlgorithmError":
        return InputError(
            f"{url} cannot encrypt as it was asked to: {reason}.",
            code="store_denied",
            field="store.sse",
            hint="Check store.sse and store.sse_kms_key_id, and the rights to use that key.",
        )
    if isinstance(error, PermissionError) or code in _UNKNOWN_KEY:
        return InputError(
            f"{url} refused these credentials: {reason}.",
            code="store_denied",
            field=_FIELD,
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and check their rights. Some buckets "
            "demand encryption (store.sse), or that the requester pays (--requester-pays).",
        )
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"there is no bucket {bucket!r}: {reason}.", code="no_bucket", field=_FIELD, hint="Create it."
        )
    where = f" through {endpoint_url}" if endpoint_url else ""
    if code in _BUSY:
        return TransientError(
            f"{url}{where} is busy: {reason}.",
            code="store_busy",
            field=_FIELD,
            hint="The server limits the rate of requests. Start again later, or with fewer replicas.",
        )
    return TransientError(
        f"{url}{where} failed: {reason}.",
        code="store_io",
        field=_FIELD,
        hint="Check that the server answers and store.endpoint_url is right, then start again.",
    )


def not_deleted(url: str, error: Mapping[str, str]) -> AtlasError:
    """Make the error for one key that DeleteObjects reports as not deleted."""
    message = f"{error.get('Key')} was not deleted from {url}: {error.get('Code')} {error.get('Message', '')}".rstrip()
    if error.get("Code") == "AccessDenied":
        return InputError(
            f"{message}.", code="store_denied", field=_FIELD, hint="Use credentials that allow s3:DeleteObject."
        )
    return TransientError(f"{message}.", code="store_io", field=_FIELD)


def _clock_skew(error: BaseException, url: str) -> AtlasError:
    cause = _client_error(error)
    headers: Mapping[str, Any] = cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}) if cause else {}
    ours = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    return TransientError(
        f"{url} refused the time of a request: this machine's clock says {ours}, the server's "
        f"{headers.get('date', 'is not known')}.",
        code="clock_skew",
        field=_FIELD,
        hint="Set the clock that is wrong (NTP). A run goes on, or is started again.",
    )


def _client_error(error: BaseException) -> ClientError | None:
    # s3fs wraps it once, and a timeout that the server reports twice.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ClientError):
        cause = cause.__cause__
    return cause


def _fields_of(error: BaseException) -> Mapping[str, Any]:
    cause = _client_error(error)
    return cause.response.get("Error", {}) if cause is not None else {}


def _reason(error: BaseException) -> str:
    """Return the server's error code and message; s3fs has the message alone, which some servers leave empty."""
    fields = _fields_of(error)
    if not fields:
        return str(error).removesuffix(".") or type(error).__name__
    return " ".join(part for part in (fields.get("Code"), fields.get("Message")) if part).removesuffix(".")
