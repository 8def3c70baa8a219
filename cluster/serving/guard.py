"""What is refused of a request before its body is read as JSON: a missing key, and a body that no chat can need."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import Problem

_BYTES_PER_TOKEN = 32
_LEAST_BYTES = 2**20


class Guard:
    """Asks for the key on the paths under ``/v1``, and limits the bytes of a body.

    Tokenising a text takes a second for each few hundred kilobytes, and chats are rendered one at a time, so a body far
    beyond the context would keep everybody waiting before it is refused.

    Args:
        app: The application behind it.
        api_key: Key that clients must send; None: everybody is let in.
        max_context: The model's context in tokens; a body may have 1 MiB and 32 bytes for each.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_context: int) -> None:
        self._app = app
        self._key = api_key
        self._most_bytes = _LEAST_BYTES + _BYTES_PER_TOKEN * max_context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._key is not None and scope["path"].startswith("/v1") and not _has_key(headers, self._key):
            problem = Problem(401, "The API key is missing or wrong.", "invalid_api_key")
            await problem.response()(scope, receive, send)
            return
        length = headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > self._most_bytes:
            await self._too_large().response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                # FastAPI passes this class on from where it reads a body, and no other.
                raise HTTPException(413, self._too_large().message)
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> Problem:
        return Problem(413, f"The body has more than {self._most_bytes:,} bytes.", "too_large")


def _has_key(headers: Headers, key: str) -> bool:
    scheme, _, given = headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
