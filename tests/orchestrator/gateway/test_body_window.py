"""The window of bodies, with queues in place of Serve that take whatever they are given."""

import asyncio

from starlette.responses import JSONResponse

from orchestrator.gateway.body_window import (
    CONSUMED,
    BodyWindow,
    Consumption,
    Room,
    proxy_middlewares,
)

WINDOW, TOTAL, PIECE = 1000, 2500, 100
END = {"type": "http.request", "body": b"", "more_body": False}


class Serve:
    """Between the middleware of the proxy and the application, as Ray Serve is: it takes messages
    as fast as it gets them, and keeps what the application has not asked for."""

    def __init__(self, app):
        self._app = app
        self.kept = 0
        self.most_kept = 0
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        queue = asyncio.Queue()

        async def take_all():
            while True:
                message = await receive()
                self.kept += len(message.get("body", b""))
                self.most_kept = max(self.most_kept, self.kept)
                queue.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return

        async def give():
            message = await queue.get()
            self.kept -= len(message.get("body", b""))
            return message

        taking = asyncio.create_task(take_all())
        try:
            await self._app(scope, give, send)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


class Client:
    """Sends `pieces`, then its end; `sent` counts what was taken of it."""

    def __init__(self, pieces, last=END):
        self._messages = [
            {"type": "http.request", "body": b"x" * PIECE, "more_body": True} for _ in range(pieces)
        ]
        self._messages.append(last)
        self.sent = 0
        self.answer = []

    async def receive(self):
        await asyncio.sleep(0)
        if self.sent == len(self._messages):
            await asyncio.Event().wait()
        self.sent += 1
        return self._messages[self.sent - 1]

    async def send(self, message):
        self.answer.append(message)

    async def send_body(self, app):
        scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": []}
        await app(scope, self.receive, self.send)


def stack(handler):
    """The proxy's end, Serve, and the application's end before `handler`."""
    serve = Serve(Consumption(handler))
    return BodyWindow(serve, WINDOW, TOTAL), serve


async def settle():
    for _ in range(200):
        await asyncio.sleep(0)


async def count_slowly(scope, receive, send):
    total, more = 0, True
    while more:
        message = await receive()
        await settle()
        total += len(message["body"])
        more = message["more_body"]
    await JSONResponse({"bytes": total})(scope, receive, send)


def test_a_body_has_no_more_than_its_window_under_way_and_comes_whole():
    app, serve = stack(count_slowly)
    client = Client(pieces=50)
    asyncio.run(client.send_body(app))
    assert WINDOW // 2 < serve.most_kept <= WINDOW
    assert [message["type"] for message in client.answer] == [
        "http.response.start",
        "http.response.body",
    ]
    assert client.answer[-1]["body"] == b'{"bytes":5000}'


def test_what_the_application_does_not_take_is_not_taken_from_the_client():
    asked = asyncio.Event()

    async def takes_nothing(*_):
        await asked.wait()

    async def scenario():
        app, serve = stack(takes_nothing)
        clients = [Client(pieces=50) for _ in range(5)]
        tasks = [asyncio.create_task(client.send_body(app)) for client in clients]
        await settle()
        # Of each a quarter of a window is not counted, and one more message is in hand.
        most = TOTAL + 5 * WINDOW // 4
        assert serve.most_kept <= most + PIECE
        assert sum(client.sent for client in clients) * PIECE <= most + 6 * PIECE
        asked.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_requests_that_end_early_give_their_room_back():
    async def refuses(scope, receive, send):
        await receive()
        await settle()
        await JSONResponse({}, status_code=413)(scope, receive, send)

    async def scenario():
        serve = Serve(Consumption(refuses))
        app = BodyWindow(serve, WINDOW, WINDOW)
        for _ in range(5):
            client = Client(pieces=50)
            await asyncio.wait_for(client.send_body(app), 5)
            assert client.answer[0]["status"] == 413

    asyncio.run(scenario())


def test_a_client_that_leaves_is_noticed():
    seen = []

    async def reads_on(_scope, receive, _send):
        while (message := await receive())["type"] != "http.disconnect":
            pass
        seen.append(message["type"])

    app, _ = stack(reads_on)
    asyncio.run(Client(pieces=30, last={"type": "http.disconnect"}).send_body(app))
    assert seen == ["http.disconnect"]


def test_a_request_that_keeps_its_body_leaves_the_others_room():
    """What it has consumed and not told is not counted."""

    async def answers_later(_scope, receive, _send):
        while (await receive())["more_body"]:
            pass
        await asyncio.Event().wait()

    async def scenario():
        serve = Serve(Consumption(answers_later))
        app = BodyWindow(serve, WINDOW, WINDOW)
        clients = [Client(pieces=21) for _ in range(20)]
        tasks = [asyncio.create_task(client.send_body(app)) for client in clients]
        while any(client.sent < 22 for client in clients):
            await asyncio.wait_for(settle(), 5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_an_application_that_tells_nothing_gets_its_body_after_a_while():
    async def scenario():
        room = Room(WINDOW, TOTAL, silence_s=0.05)
        async with room.body() as body:
            for _ in range(50):
                await asyncio.wait_for(room.enter(body, PIECE), 1)
        assert room.under_way == 0

    asyncio.run(scenario())


def test_nothing_is_told_to_a_proxy_that_does_not_count():
    client = Client(pieces=50)
    asyncio.run(client.send_body(Serve(Consumption(count_slowly))))
    assert CONSUMED not in {message["type"] for message in client.answer}
    assert client.answer[-1]["body"] == b'{"bytes":5000}'


def test_a_message_larger_than_the_window_passes():
    async def scenario():
        room = Room(10, 10)
        async with room.body() as body:
            await asyncio.wait_for(room.enter(body, 1000), 1)
            waiting = asyncio.create_task(room.enter(body, 1))
            await settle()
            assert not waiting.done()
            await room.leave(body, 1000)
            await asyncio.wait_for(waiting, 1)
        assert room.under_way == 0

    asyncio.run(scenario())


def test_serve_is_given_the_proxys_end():
    (middleware,) = proxy_middlewares()
    assert middleware.cls is BodyWindow
