"""A frame server in a process of its own that answers every CALL with zeros.

No torch here: how soon a killed process is noticed depends on the memory the system takes back
before it closes the sockets, and that is not what the tests of the links are about.
"""

import contextlib
import multiprocessing as mp
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors.wire.address import Address, parse_address
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.server import FrameServer, Request

SECRET = b"a test's secret"


def _serve(where: str, orders: Connection) -> None:
    def handle(requests: Sequence[Request]) -> None:
        for request in requests:
            call = request.header
            length = body_bytes(FrameKind.RESULT, call.rows, call.hidden)
            room = server.room(request, length)
            if room is not None:
                room[:] = bytes(length)
                server.answer(
                    request,
                    Header(
                        FrameKind.RESULT, call.call_id, length, rows=call.rows, hidden=call.hidden
                    ),
                )

    server = FrameServer([parse_address(where)], SECRET, handle)
    orders.send(str(server.addresses[0]))
    server.run()


@contextlib.contextmanager
def server_process(transport: str, folder: Path) -> Iterator[tuple[Any, Address]]:
    """The process and its address."""
    here, there = (spawn := mp.get_context("spawn")).Pipe()
    where = f"unix:{folder}/p" if transport == "unix" else "tcp:127.0.0.1:0"
    process = spawn.Process(target=_serve, args=(where, there), daemon=True)
    process.start()
    there.close()
    try:
        yield process, parse_address(here.recv())
    finally:
        process.kill()
        process.join()
        here.close()
        (folder / "p").unlink(missing_ok=True)
