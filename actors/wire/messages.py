"""Control messages: JSON objects behind a 4-byte little-endian length, over a blocking socket."""

import json
import socket
import struct
from typing import Any

from actors.wire.frame import FrameError

MAX_MESSAGE_BYTES = 256 << 20
LENGTH = struct.Struct("<I")


def encode_message(message: dict[str, Any]) -> bytes:
    text = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(text)) + text


def decode_length(prefix: bytes) -> int:
    """Raises FrameError where the length is beyond any message of this protocol."""
    (length,) = LENGTH.unpack(prefix)
    if length > MAX_MESSAGE_BYTES:
        raise FrameError(f"control message of {length} bytes")
    return int(length)


def decode_message(text: bytes) -> dict[str, Any]:
    """Raises FrameError unless `text` is a JSON object."""
    try:
        message = json.loads(text)
    except ValueError as error:
        raise FrameError(f"control message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise FrameError("control message is not a JSON object")
    return message


def send_message(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.sendall(encode_message(message))


def receive_message(sock: socket.socket) -> dict[str, Any]:
    """Raises EOFError when the peer closed, FrameError on nonsense, OSError on a timeout."""
    length = decode_length(_exactly(sock, LENGTH.size))
    return decode_message(_exactly(sock, length))


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if got == 0:
            raise EOFError("peer closed the control connection")
        view = view[got:]
    return bytes(data)
