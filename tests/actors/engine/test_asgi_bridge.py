"""The in-process HTTP call: order, coalescing, disconnects and failures of the application."""

import asyncio
from contextlib import aclosing

import pytest

from actors.engine import asgi_bridge
from actors.messages import HttpRequest, ResponseStart

REQUEST = HttpRequest("POST", "/v1/x", b"a=1", ((b"content-type", b"text/plain"),), b"question")


async def reply(send, *chunks, status=200):
    await send({"type": "http.response.start", "status": status, "headers": [(b"x", b"y")]})
    for number, chunk in enumerate(chunks, start=1):
        await send({"type": "http.response.body", "body": chunk, "more_body": number < len(chunks)})


async def collect(app, request=REQUEST):
    return [item async for item in asgi_bridge.call(app, request)]


def test_app_sees_the_request_and_a_short_answer_is_one_item():
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope, message=await receive())
        await reply(send, b"answer")

    items = asyncio.run(collect(app))

    assert items == [ResponseStart(200, ((b"x", b"y"),), b"answer")]
    assert (seen["method"], seen["path"], seen["query_string"]) == ("POST", "/v1/x", b"a=1")
    assert seen["headers"] == [(b"content-type", b"text/plain")]
    assert seen["message"] == {"type": "http.request", "body": b"question", "more_body": False}


def test_chunks_that_wait_for_the_reader_become_one_item():
    async def app(_scope, _receive, send):
        await reply(send, *[b"%d," % n for n in range(100)])

    items = asyncio.run(collect(app))

    body = items[0].body + b"".join(items[1:])
    assert body == b"".join(b"%d," % n for n in range(100))
    assert len(items) < 10


def test_chunks_that_come_one_by_one_are_not_held_back():
    async def main():
        gate = asyncio.Queue()

        async def app(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while chunk := await gate.get():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async with aclosing(asgi_bridge.call(app, REQUEST)) as items:
            gate.put_nowait(b"first")
            assert (await anext(items)).body == b"first"
            gate.put_nowait(b"second")
            assert await anext(items) == b"second"
            gate.put_nowait(b"")
            assert [item async for item in items] == []

    asyncio.run(main())


def test_a_pace_gathers_chunks_but_not_the_first_nor_the_end():
    async def main():
        loop = asyncio.get_running_loop()

        async def app(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(10):
                more = number < 9
                await send({"type": "http.response.body", "body": b"x", "more_body": more})
                await asyncio.sleep(0.01)

        began_s = loop.time()
        async with aclosing(asgi_bridge.call(app, REQUEST, lambda: 60.0)) as items:
            assert (await anext(items)).body == b"x"
            rest = [item async for item in items]
        return rest, loop.time() - began_s

    rest, took_s = asyncio.run(main())
    assert rest == [b"x" * 9]
    assert took_s < 10


def test_closing_the_stream_disconnects_the_client():
    async def main():
        messages = []

        async def app(_scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            messages.append(await receive())

        async with aclosing(asgi_bridge.call(app, REQUEST)) as items:
            await anext(items)
        return messages

    assert asyncio.run(main()) == [{"type": "http.disconnect"}]


def test_cancelling_the_reader_disconnects_the_client_before_any_answer():
    async def main():
        waiting = asyncio.Event()
        messages = []

        async def app(_scope, receive, _send):
            await receive()
            waiting.set()
            messages.append(await receive())

        reader = asyncio.create_task(collect(app))
        await waiting.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        return messages

    assert asyncio.run(main()) == [{"type": "http.disconnect"}]


def test_an_app_that_ignores_the_disconnect_is_cancelled(monkeypatch):
    monkeypatch.setattr(asgi_bridge, "DISCONNECT_GRACE_S", 0.01)

    async def main():
        cancelled = asyncio.Event()

        async def app(_scope, _receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with aclosing(asgi_bridge.call(app, REQUEST)) as items:
            await anext(items)
        return cancelled.is_set()

    assert asyncio.run(main())


def test_the_app_waits_for_a_reader_that_is_far_behind(monkeypatch):
    monkeypatch.setattr(asgi_bridge, "MAX_PENDING_BYTES", 1000)

    async def main():
        sent = 0

        async def app(_scope, _receive, send):
            nonlocal sent
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):
                await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
                sent += 1
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async with aclosing(asgi_bridge.call(app, REQUEST)) as items:
            first = await anext(items)
            await asyncio.sleep(0.05)
            ahead = sent * 100 - len(first.body)
            rest = b"".join([item async for item in items])
        return ahead, len(first.body) + len(rest)

    ahead, total = asyncio.run(main())
    assert ahead <= 1000
    assert total == 100 * 100


def test_an_app_that_fails_before_its_answer_raises():
    async def app(_scope, _receive, _send):
        raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError, match="broken"):
        asyncio.run(collect(app))


def test_an_app_that_returns_without_an_answer_raises():
    async def app(_scope, _receive, _send):
        return

    with pytest.raises(RuntimeError, match="no response to POST /v1/x"):
        asyncio.run(collect(app))


def test_an_app_that_fails_in_the_middle_does_not_look_complete():
    async def app(_scope, _receive, send):
        await begin(send)
        raise ZeroDivisionError

    assert asyncio.run(collect_until(ZeroDivisionError, app)) == [ResponseStart(200, (), b"part")]


def test_an_app_that_returns_in_the_middle_does_not_look_complete():
    async def app(_scope, _receive, send):
        await begin(send)

    items = asyncio.run(collect_until(asgi_bridge.IncompleteResponseError, app))
    assert items == [ResponseStart(200, (), b"part")]


async def begin(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"part", "more_body": True})


async def collect_until(error, app):
    """What came before `error`, which has to come."""
    items = []

    async def read():
        async for item in asgi_bridge.call(app, REQUEST):
            items.append(item)

    with pytest.raises(error):
        await read()
    return items
