"""Requests that an engine answers before it says that it is ready.

vLLM compiles and sets up much of itself at the first request that needs it: sampling and logprobs,
the HTTP application, chat templates. What a client would wait for is done here.
"""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from actors.messages import HttpRequest, ResponseStart
from actors.vllm_plugin.online_first import ONLINE_PRIORITY

log = logging.getLogger(__name__)

Handle = Callable[[HttpRequest], Any]

PROMPT = "What comes in first is slow."
_FIELDS = {"max_tokens": 3, "ignore_eos": True, "priority": ONLINE_PRIORITY + 1}
"""Not the priority of online requests, which a batch job leaves room for long after they ended."""
_GREEDY = _FIELDS | {"temperature": 0.0}
_SAMPLED = _FIELDS | {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 0}


def requests(model: str) -> list[HttpRequest]:
    """Prefill and decoding, greedy and sampled, with and without logprobs, whole and streamed."""
    prompt = {"model": model, "prompt": PROMPT}
    chat = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    return [
        _post("/v1/completions", prompt | _GREEDY),
        _post("/v1/completions", prompt | _SAMPLED | {"logprobs": 1, "stream": True}),
        _post("/v1/chat/completions", chat | _GREEDY | {"stream": True}),
    ]


async def warm_up(handle: Handle, model: str) -> None:
    """Send them through `handle`, one after the other.

    Raises:
        RuntimeError: the engine does not answer. A model without a chat template may refuse chats.
    """
    for request in requests(model):
        status, body = await _answer(handle(request))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise RuntimeError(f"the engine's first answers fail: {body[:300]!r}")
        if status != HTTPStatus.OK:
            log.info("warm-up: %s answers %d", request.path, status)


async def _answer(replies: AsyncIterator[Any]) -> tuple[int, bytes]:
    status, body = 0, b""
    async with aclosing(replies) as answer:  # type: ignore[type-var]
        async for reply in answer:
            if isinstance(reply, ResponseStart):
                status, reply = reply.status, reply.body  # noqa: PLW2901
            body += reply
    return status, body


def _post(path: str, body: dict[str, Any]) -> HttpRequest:
    headers = ((b"content-type", b"application/json"),)
    return HttpRequest("POST", path, b"", headers, json.dumps(body).encode())
