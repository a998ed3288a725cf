"""What an engine tells of its model's outputs, beside the bytes of the answer."""

import asyncio

import pytest

from actors.engine import asgi_bridge
from actors.engine.output_record import current_record
from actors.messages import Emitted, HttpRequest, Progress, ResponseStart

ASKED = HttpRequest("POST", "/v1/completions", record=True)
START = {"type": "http.response.start", "status": 200, "headers": []}


def body(chunk: bytes, more: bool = True) -> dict:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def replies_of(app, request=ASKED):
    async def main():
        return [reply async for reply in asgi_bridge.call(app, request)]

    return asyncio.run(main())


async def streaming(_scope, _receive, send):
    """Three outputs, one event each; told before they are sent."""
    record = current_record()
    noted = record is not None and record.begin()
    await send(START)
    for number in range(3):
        if noted:
            record.note(Emitted((number,)))
        await send(body(b"%d" % number))
        await asyncio.sleep(0.01)
    await send(body(b"", more=False))


def test_outputs_travel_with_the_bytes_made_of_them():
    replies = replies_of(streaming)
    assert replies == [
        ResponseStart(200, (), b"0", (Emitted((0,)),)),
        Progress((Emitted((1,)),), b"1"),
        Progress((Emitted((2,)),), b"2"),
    ]


def test_nothing_is_told_that_nobody_asked_for():
    replies = replies_of(streaming, HttpRequest("POST", "/v1/completions"))
    assert replies == [ResponseStart(200, (), b"0"), b"1", b"2"]


def test_an_answer_without_bytes_tells_its_progress(monkeypatch):
    monkeypatch.setattr(asgi_bridge, "PROGRESS_S", 0.01)

    async def whole(_scope, _receive, send):
        record = current_record()
        assert record.begin()
        record.note(Emitted((1, 2)))
        await asyncio.sleep(0.2)
        record.note(Emitted((3,), finish_reason="stop"))
        await send(START)
        await send(body(b"{}", more=False))

    progress, start = replies_of(whole)
    assert progress == Progress((Emitted((1, 2)),))
    assert start == ResponseStart(200, (), b"{}", (Emitted((3,), finish_reason="stop"),))


@pytest.mark.parametrize("told_first", [True, False])
def test_an_exchange_that_generates_twice_cannot_be_continued(told_first):
    async def twice(_scope, _receive, send):
        record = current_record()
        record.begin()
        record.note(Emitted((1,)))
        await send(START)
        if told_first:
            await send(body(b"1"))
            await asyncio.sleep(0.01)
        assert not record.begin()
        await send(body(b"2"))
        await asyncio.sleep(0.01)
        await send(body(b"3", more=False))

    replies = replies_of(twice)
    if told_first:
        assert replies == [
            ResponseStart(200, (), b"1", (Emitted((1,)),)),
            Progress(None, b"2"),
            b"3",
        ]
    else:
        assert replies == [ResponseStart(200, (), b"2", None), b"3"]
