"""Remove secrets from text that is printed or stored: passwords in URLs, signatures and tokens.

What enters a spec holds none. But messages of libraries and servers repeat whatever they were given, a proxy's URL from
the environment for one. Knows secrets by their form only, and asks no environment.
"""

from __future__ import annotations

import re
from typing import Any

_HIDDEN = "***"

_USER_INFO = re.compile(
    r"(?<=://)(?:"
    r"[^\s/?#@'\"<>]*"
    # A password may hold slashes and question marks; a number behind the colon is a port.
    r"|[^\s/?#@:'\"<>]+:(?!\d+(?:[/?#\s'\"]|$))[^\s@'\"<>]*"
    r")@"
)

_SECRET_FIELD = re.compile(
    r"""(?ix)
    \b(
        x-amz-(?:signature|credential|security-token) | x-goog-(?:signature|credential)
        | awsaccesskeyid | signature | sig | se?curity[_-]?token | session[_-]?token | access[_-]?token | token
        | aws[_-]secret[_-]access[_-]key | aws[_-]session[_-]token | secret(?:[_-]?access)?[_-]?key | client[_-]secret
        | api[_-]?key | password | passwd | pwd
    )
    (\s*=\s*) (?!\s) [^\s&;,'"<>)\]}]+
    """
)

_AUTHORIZATION = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}")

_KNOWN_FORM = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16})\b")


def without_secrets(text: str) -> str:
    """Return a text with every secret of a known form replaced by ``***``.

    Example:
        >>> without_secrets("http://me:hunter2@host/x failed; see https://host/y?X-Amz-Signature=0af3&v=1")
        'http://***@host/x failed; see https://host/y?X-Amz-Signature=***&v=1'
    """
    text = _USER_INFO.sub(f"{_HIDDEN}@", text)
    text = _SECRET_FIELD.sub(rf"\1\2{_HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\1\2{_HIDDEN}", text)
    return _KNOWN_FORM.sub(_HIDDEN, text)


def value_without_secrets(value: Any) -> Any:
    """Return a JSON value whose texts hold no secret of a known form.

    Example:
        >>> value_without_secrets({"error": ["token=abcdef"], "code": 7})
        {'error': ['token=***'], 'code': 7}
    """
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: value_without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [value_without_secrets(inner) for inner in value]
    return value
