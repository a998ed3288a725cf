"""Answers of the routes of files and jobs."""

from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from orchestrator.api.errors import error_response
from orchestrator.batch.pages import PageQuery


class Refused(Exception):
    """The request will not do: OpenAI's error body says why."""

    def __init__(self, status: HTTPStatus, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    def response(self) -> Response:
        return error_response(self.status, self.message, self.code)


def bad_request(message: str, code: str | None = None) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, message, code)


def not_found(what: str, item_id: str) -> Refused:
    """Somebody else's is not there either."""
    return Refused(HTTPStatus.NOT_FOUND, f"there is no {what} {item_id!r}", f"{what}_not_found")


def reply(value: dict[str, Any]) -> Response:
    return JSONResponse(value)


def page_query(request: Request, default_limit: int, max_limit: int) -> PageQuery:
    """`after`, `limit` and `order` of a request. Raises `Refused`."""
    given = request.query_params
    text = given.get("limit", str(default_limit))
    if not text.isdecimal() or not 1 <= int(text) <= max_limit:
        raise bad_request(f"limit must be a number from 1 to {max_limit}, not {text!r}")
    order = given.get("order", "desc")
    if order not in {"asc", "desc"}:
        raise bad_request(f"order must be asc or desc, not {order!r}")
    return PageQuery(given.get("after") or None, int(text), order == "desc")
