"""What a store URL means: the one place that takes ``store.url`` apart.

S3 has no folders. A key is any text, and ``a//b``, ``./a/b`` and ``a/b`` are three keys, while libraries that treat
keys like paths fold some of them into one. So every prefix is brought to one form here, before anything reads it.
Everything else in a prefix is kept as it is: ``%20`` is three characters, ``?`` and ``#`` separate nothing.
"""

from __future__ import annotations

import os
import re
import unicodedata

from ..errors import InputError
from .hub_url import is_hub, parse_hub_url
from .user_paths import refuse_impossible_path

S3_SCHEME = "s3://"

_FIELD = "store.url"

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_ARN = re.compile(r"arn:aws[a-z-]*:s3[a-z-]*:")
"""Begins the ARN of an access point, which stands where a bucket does and has slashes of its own."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/|(s3|s3a|s3n|gs|gcs|az|abfs|hdfs|https?|file):", re.IGNORECASE)
"""Begins a URL, also one that lost a slash. A single letter and a colon is a drive of Windows."""

_UNUSABLE = ("Cc", "Cs")
"""Unicode categories that listings in XML cannot hold: control characters, and halves of surrogate pairs."""


def is_s3(url: str) -> bool:
    """Whether a store URL names a bucket rather than a directory.

    Example:
        >>> is_s3("s3://bucket/prefix"), is_s3("runs/mine")
        (True, False)
    """
    return url.startswith(S3_SCHEME)


def has_user_info(url: str) -> bool:
    """Whether the place of an S3 URL's bucket holds credentials, also those with a slash in the secret key.

    Example:
        >>> has_user_info("s3://key:se/cret@bucket/run"), has_user_info("s3://bucket/me@host")
        (True, False)
    """
    first = url.removeprefix(S3_SCHEME).split("/")[0]
    return is_s3(url) and ("@" in first or (":" in first and not _ARN.match(first)))


def normal_store_url(url: str | os.PathLike[str]) -> str:
    """Return a store URL in the one form in which it is used and recorded.

    Empty parts and ``.`` are dropped from an S3 prefix. A directory is returned as it is: the file system resolves it.

    Args:
        url: A directory, ``s3://bucket/prefix``, or ``hf://datasets/OWNER/NAME``.

    Raises:
        InputError: It cannot be a path, or has another scheme, credentials, no bucket or an impossible one, or a prefix
            that cannot be used: with ``..``, with control characters, or with ``?versionId=``.

    Example:
        >>> normal_store_url("s3://bucket//a/./b c/")
        's3://bucket/a/b c'
        >>> normal_store_url("./runs//mine")
        './runs//mine'
    """
    text = os.fspath(url)
    if is_s3(text):
        return _normal_s3_url(text.removeprefix(S3_SCHEME))
    if is_hub(text):
        return str(parse_hub_url(text))
    refuse_impossible_path(text, _FIELD)
    _refuse_other_schemes(text)
    return text


def _refuse_other_schemes(text: str) -> None:
    """Refuse a misspelt scheme, which would make a directory of that name, and schemes of other stores."""
    found = _SCHEME.match(text)
    if found is None:
        return
    rest = text[found.end() :].lstrip("/")
    # A URL may hold credentials, which an error must not repeat.
    is_s3_meant = (found[1] or found[2]).lower().startswith("s3") and rest and "@" not in text
    hint = "Write s3://bucket/prefix, the plain path of a directory, or ./NAME for a directory of that name."
    raise InputError(
        f"has the scheme {found[1] or found[2]!r}, but a store is a directory or an s3:// or hf:// URL.",
        code="unknown_scheme",
        field=_FIELD,
        hint=f"Did you mean {S3_SCHEME + rest!r}?" if is_s3_meant else hint,
    )


def _normal_s3_url(text: str) -> str:
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if has_user_info(f"{S3_SCHEME}{text}"):
        raise _bad_url("holds credentials.", "Write s3://bucket/prefix and set the credentials in the environment.")
    # A first part of "." is no bucket: it must not make the prefix's first part one.
    if not parts or text.startswith("./"):
        raise InputError(
            f"'s3://{text}' names no bucket.", code="no_bucket", field=_FIELD, hint="Write s3://bucket/prefix."
        )
    if parts[0] == ".." or not (_BUCKET.fullmatch(parts[0]) or _ARN.match(parts[0])):
        raise InputError(
            f"{parts[0]!r} cannot be the name of a bucket.",
            code="no_bucket",
            field=_FIELD,
            hint="Names of buckets have letters, digits, dots and hyphens. Write s3://bucket/prefix.",
        )
    normal = S3_SCHEME + "/".join(parts)
    if ".." in parts:
        raise _bad_url(
            f"is {normal!r}, but '..' leads to no parent on S3: it would be a part of every key, which many tools "
            "cannot reach.",
            "Write the prefix without it. A run that an earlier version stored there has to be copied: "
            "aws s3 cp --recursive.",
        )
    if any(unicodedata.category(character) in _UNUSABLE for character in normal):
        raise _bad_url(f"is {normal!r}, with control characters.", "Write the prefix without them.")
    if "?versionId=" in normal:
        raise _bad_url(f"is {normal!r}, but no version of an object can be a store.", "Leave ?versionId= out.")
    return normal


def _bad_url(message: str, hint: str) -> InputError:
    return InputError(message, code="bad_store_url", field=_FIELD, hint=hint)
