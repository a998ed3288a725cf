"""The requests that a mesh sends to its own endpoint before it says that it is ready."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from orchestrator.session.first_answer import REPEATS, ask_first


@contextmanager
def endpoint(status: int) -> Iterator[tuple[str, list[tuple[str, str | None, dict[str, Any]]]]]:
    """Its URL, and what it was asked: path, Authorization, body."""
    asked: list[tuple[str, str | None, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.path, self.headers["authorization"], body))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/demo", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("key", "sent"), [("secret", "Bearer secret"), (None, None)])
def test_whole_and_streamed_below_the_prefix_with_a_key(key: str | None, sent: str | None) -> None:
    with endpoint(200) as (url, asked):
        ask_first(url, "tiny", key)
    assert [(path, shown) for path, shown, _ in asked] == [("/demo/v1/completions", sent)] * (
        2 * REPEATS
    )
    assert {body["stream"] for _, _, body in asked} == {False, True}
    assert {body["model"] for _, _, body in asked} == {"tiny"}


def test_an_endpoint_that_refuses_or_is_not_there_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with endpoint(503) as (url, _):
        ask_first(url, "tiny", None)
    assert "503" in caplog.text
    ask_first(url, "tiny", None)
