"""What a client is told when experts are missing, before and after its answer has begun."""

import asyncio
import json

from actors.engine import unavailable
from actors.messages import ERROR_HEADER

START = {"type": "http.response.start", "status": 200, "headers": []}
VLLM_ERROR = b'data: {"error": {"message": "x", "type": "InternalServerError", "code": 503}}\n\n'


def body(content, more=True):
    return {"type": "http.response.body", "body": content, "more_body": more}


def answer_of(app):
    sent = []

    async def send(message):
        sent.append(message)

    async def run():
        await unavailable.telling_missing_experts(app)({}, None, send)

    asyncio.run(run())
    return sent


def test_answers_with_experts_pass_unchanged():
    async def app(_scope, _receive, send):
        for message in (START, body(b"one"), body(VLLM_ERROR, more=False)):
            await send(message)

    assert answer_of(app) == [START, body(b"one"), body(VLLM_ERROR, more=False)]


def test_before_the_first_byte_the_answer_is_a_503():
    async def app(_scope, _receive, send):
        await send(START)
        # vLLM finds out in a task that it starts for the request.
        await asyncio.create_task(find_missing())
        await send(body(VLLM_ERROR))
        await send(body(b"data: [DONE]\n\n", more=False))

    start, only = answer_of(app)
    assert start["status"] == 503
    assert (ERROR_HEADER, b"experts_unavailable") in start["headers"]
    assert json.loads(only["body"])["error"]["code"] == "experts_unavailable"
    assert only["more_body"] is False


def test_a_stream_that_has_begun_ends_with_an_error_event():
    async def app(_scope, _receive, send):
        await send(START)
        await send(body(b"data: one\n\n"))
        unavailable.note_missing_experts()
        await send(body(VLLM_ERROR))
        await send(body(b"data: [DONE]\n\n", more=False))

    start, one, error, end = answer_of(app)
    assert (start["status"], one["body"]) == (200, b"data: one\n\n")
    event = json.loads(error["body"].removeprefix(b"data: "))
    assert event["error"]["code"] == "experts_unavailable"
    assert error["body"].endswith(b"\n\n")
    assert end["more_body"] is False


def test_one_request_does_not_fail_another():
    async def failing(_scope, _receive, send):
        unavailable.note_missing_experts()
        await send(START)
        await send(body(b"", more=False))

    async def well(_scope, _receive, send):
        await send(START)
        await send(body(b"fine", more=False))

    assert answer_of(failing)[0]["status"] == 503
    assert answer_of(well) == [START, body(b"fine", more=False)]


async def find_missing():
    unavailable.note_missing_experts()
