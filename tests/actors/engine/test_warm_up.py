"""An engine's own first requests: which, and what happens when they fail."""

import asyncio
import json

import pytest

from actors.engine.warm_up import requests, warm_up
from actors.messages import ResponseStart
from actors.vllm_plugin.online_first import ONLINE_PRIORITY


def answering(*statuses):
    """(handle that answers with these statuses, requests it got)."""
    seen = []

    async def handle(request):
        seen.append(request)
        yield ResponseStart(statuses[len(seen) - 1], (), b"some ")
        yield b"body"

    return handle, seen


def test_prefill_and_decoding_of_every_kind():
    handle, seen = answering(200, 200, 200)
    asyncio.run(warm_up(handle, "tiny"))
    assert seen == requests("tiny")
    bodies = [json.loads(request.body) for request in seen]
    assert all(body["model"] == "tiny" and body["max_tokens"] > 1 for body in bodies)
    assert {body["temperature"] for body in bodies} == {0.0, 1.0}
    assert any("logprobs" in body for body in bodies)
    assert {body.get("stream", False) for body in bodies} == {False, True}
    # A batch job that comes next must not leave room for them.
    assert all(body["priority"] > ONLINE_PRIORITY for body in bodies)
    assert {request.path for request in seen} == {"/v1/completions", "/v1/chat/completions"}


def test_a_model_without_chat_template_may_refuse_chats():
    handle, seen = answering(200, 200, 400)
    asyncio.run(warm_up(handle, "tiny"))
    assert len(seen) == 3


def test_an_engine_that_cannot_answer_does_not_start():
    handle, _ = answering(200, 500)
    with pytest.raises(RuntimeError, match=r"first answers fail.*some body"):
        asyncio.run(warm_up(handle, "tiny"))
