"""Errors of a server in the shape of the OpenAI protocol."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...jobs.errors import AtlasError, InputError


class Problem(Exception):  # noqa: N818 - it is what a client is told
    """An answer other than a response.

    Args:
        status: HTTP status.
        message: What is wrong.
        code: A stable lower-case word for the cause.
        field: The request's field that is wrong; None where there is none.
    """

    def __init__(self, status: int, message: str, code: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.field = field

    @classmethod
    def of(cls, error: AtlasError) -> Problem:
        """Turn an error of ours into one: a wrong input is the client's, the rest the server's."""
        message = f"{error.message} {error.hint}" if error.hint else error.message
        if isinstance(error, InputError):
            message = f"{error.field}: {message}" if error.field else message
            return cls(422, message, error.code, error.field)
        return cls(503 if error.code in ("stopped", "engine_died") else 500, message, error.code)

    @classmethod
    def of_fields(cls, error: RequestValidationError) -> Problem:
        """Turn the first wrong field of a body into one."""
        first: dict[str, Any] = error.errors()[0]
        if first["type"] == "json_invalid":
            return cls(400, f"The body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}.", "bad_json")
        # The types of a union that were tried are named among the fields; a client knows its fields alone.
        where, *inside = first["loc"][1:] or (None,)
        place = [where, *(part for part in inside if part != "str" and "[" not in str(part))] if where else []
        field = ".".join(str(part) for part in place) or None
        message = first["msg"].removeprefix("Value error, ")
        code = "unknown_field" if first["type"] == "extra_forbidden" else "bad_value"
        if code == "unknown_field":
            message = "this server does not know the field, or not with this value"
        return cls(422, f"{field or 'body'}: {message}.", code, field)

    @classmethod
    def of_http(cls, error: HTTPException) -> Problem:
        """Turn an error of the framework into one, such as an unknown path."""
        codes = {400: "bad_json", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        code = codes.get(error.status_code, "refused")
        message = "The body is not JSON in UTF-8." if error.status_code == 400 else f"{error.detail.rstrip('.')}."
        return cls(error.status_code, message, code)

    def body(self) -> dict[str, Any]:
        """Build the object that clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}}

    def response(self) -> JSONResponse:
        """Build the HTTP response."""
        headers = {"WWW-Authenticate": "Bearer"} if self.status == 401 else None
        return JSONResponse(self.body(), self.status, headers)
