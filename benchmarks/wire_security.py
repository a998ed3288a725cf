"""What the protection of TCP connections costs: one message there and back, at every level.

    python -m benchmarks.wire_security [--quick] [--json FILE]

Two processes on loopback, each with the streams that data links use. Prints the median and the
tenth percentile of the round trip for messages of 4 KB, 64 KB and 1 MB, and the time of one tag.
"""

import argparse
import json
import multiprocessing as mp
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors.wire.address import connect, listen, parse_address
from actors.wire.arrival import SOCKET_BUFFER_BYTES
from actors.wire.handshake import ANSWER_BYTES, Challenge, greet_server
from actors.wire.records import Tags, server_stream
from actors.wire.security import LEVELS, Protection, TcpSecurity
from actors.wire.streams import ByteStream, PlainStream, TlsStream, receive_exactly, send_all
from actors.wire.tcp_options import set_tcp_options

SECRET = b"a benchmark's secret"
SIZES = (4 << 10, 64 << 10, 1 << 20)
REPEATS, QUICK_REPEATS = 500, 50
WARM_UP = 20


def accepted(sock: socket.socket, protection: Protection) -> ByteStream:
    """The server's side of one connection, blocking."""
    set_tcp_options(sock)
    tls = None
    if protection is Protection.ENCRYPTED:
        from actors.wire.tls import ServerTls

        tls = ServerTls(TcpSecurity(protection))
    challenge = Challenge(SECRET, protection, tls.digest if tls else b"")
    sock.sendall(challenge.opening)
    stream: ByteStream = PlainStream(sock)
    if tls is not None:
        stream = TlsStream(tls.context.wrap_socket(sock, server_side=True))
    send_all(stream, challenge.accept(receive_exactly(stream, ANSWER_BYTES)))
    if protection is Protection.AUTHENTICATED:
        return server_stream(sock, challenge.keys())
    return stream


def buffers(sock: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def echo(protection: Protection, orders: Connection) -> None:
    listener, address = listen(parse_address("tcp:127.0.0.1:0"))
    orders.send(str(address))
    sock, _ = listener.accept()
    buffers(sock)
    stream = accepted(sock, protection)
    room = memoryview(bytearray(max(SIZES)))
    try:
        while True:
            size = int.from_bytes(receive_exactly(stream, 4), "little")
            fill(stream, room[:size])
            send_all(stream, room[:size])
    except (EOFError, OSError):
        stream.close()


def fill(stream: ByteStream, room: memoryview) -> None:
    """Receive into memory that is there, as links do: new megabytes cost more than all the rest."""
    while room:
        count = stream.recv_into(room)
        if not count:
            raise EOFError
        room = room[count:]


def round_trips_us(protection: Protection, repeats: int) -> dict[int, list[float]]:
    """Sorted times by size of the message."""
    spawn = mp.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=echo, args=(protection, there), daemon=True)
    process.start()
    sock = connect(parse_address(here.recv()), 10.0)
    buffers(sock)
    stream = greet_server(sock, SECRET)
    try:
        return {size: exchange_us(stream, size, repeats) for size in SIZES}
    finally:
        stream.close()
        process.join(5)


def exchange_us(stream: ByteStream, size: int, repeats: int) -> list[float]:
    message = size.to_bytes(4, "little") + bytes(size)
    room = memoryview(bytearray(size))

    def once() -> None:
        send_all(stream, message)
        fill(stream, room)

    return times_us(once, repeats)


def times_us(what: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(WARM_UP + repeats):
        start_s = time.perf_counter()
        what()
        times.append((time.perf_counter() - start_s) * 1e6)
    return sorted(times[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    repeats = QUICK_REPEATS if options.quick else REPEATS
    figures: dict[str, Any] = {"round_trip_us": {}, "tag_us": {}}
    for protection in LEVELS:
        by_size = round_trips_us(protection, repeats)
        figures["round_trip_us"][protection] = {
            size: {"median": statistics.median(times), "p10": times[len(times) // 10]}
            for size, times in by_size.items()
        }
    for size in SIZES:
        payload = memoryview(bytearray(size))
        tags = Tags(bytes(32))
        figures["tag_us"][size] = statistics.median(
            times_us(lambda: tags.make(payload), repeats)  # noqa: B023 - called at once
        )
    print("| message | " + " | ".join(LEVELS) + " | one tag |")
    print("|---" * (len(LEVELS) + 2) + "|")
    for size in SIZES:
        cells = [figures["round_trip_us"][level][size]["median"] for level in LEVELS]
        shown = " | ".join(f"{cell:,.0f}" for cell in [*cells, figures["tag_us"][size]])
        print(f"| {size >> 10} KB | {shown} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
