"""Reads the body of a request: bounded in size, in time and in rate.

The whole body has to be there `timeout_s` after the request, plus one second for every
`LEAST_BYTES_PER_S` that have arrived. So a client with a thin line gets a large body through, and
one that sends a byte now and then does not.
"""

import asyncio
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

LEAST_BYTES_PER_S = 256 << 10


def reading_time_s(received_bytes: int, timeout_s: float) -> float:
    """How long a request may have taken that has sent so much of its body."""
    return timeout_s + received_bytes / LEAST_BYTES_PER_S


async def read_body(request: Request, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body; reading ends where it gets larger than `limit_bytes`.

    Raises:
        HTTPException: 413 where it is larger, 408 where it comes too slowly.
        ClientDisconnect: the client left.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)
    began_s = asyncio.get_running_loop().time()
    body = bytearray()
    chunks = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(began_s + reading_time_s(len(body), timeout_s)):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            message = f"the request body came too slowly: {len(body)} bytes, then nothing"
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, message) from error
        if chunk is None:
            return bytes(body)
        body += chunk
        if len(body) > limit_bytes:
            raise _too_large(limit_bytes)


def _too_large(limit_bytes: int) -> HTTPException:
    message = f"the request body is larger than {limit_bytes} bytes"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
