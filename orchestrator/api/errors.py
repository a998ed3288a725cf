"""Answers of the gateway itself, in the shape of OpenAI's errors."""

import json
from http import HTTPStatus

from starlette.responses import JSONResponse

ERROR_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.CONFLICT: "invalid_request_error",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.REQUEST_TIMEOUT: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable_error",
}
"""OpenAI's error types; every other status is a `server_error`."""


def error_body(status: HTTPStatus, message: str, code: str | None = None) -> dict[str, object]:
    """`{"error": {...}}` as OpenAI's clients read it."""
    kind = ERROR_TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(
    status: HTTPStatus, message: str, code: str | None = None, *, may_retry: bool = True
) -> JSONResponse:
    """A whole answer. OpenAI's clients send a request again after most errors, unless the answer
    says that they should not (`may_retry`)."""
    headers = {} if may_retry else {"x-should-retry": "false"}
    if status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(status, message, code), status_code=status, headers=headers)


def unavailable(reason: str, code: str = "unavailable") -> JSONResponse:
    """503: the request is fine, but nothing can serve it now."""
    message = f"nothing can serve this now: {reason}"
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, message, code)


def error_event(message: str, code: str) -> bytes:
    """A server-sent event that ends a stream; OpenAI's clients raise it as an `APIError`."""
    body = error_body(HTTPStatus.INTERNAL_SERVER_ERROR, message, code)
    return b"data: " + json.dumps(body).encode() + b"\n\n"
