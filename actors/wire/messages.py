"""Control messages: a JSON head and arrays, as the directory and its subscribers exchange them.

  8 bytes   two uint32, little-endian: bytes of the head, bytes of the body
  head      one JSON object; `kind` says which message it is, `arrays` what the body holds
  body      the arrays one after the other, C order, little-endian

Nothing is pickled. Lengths are bounded before anything is read, and dtypes and shapes are checked
against the body's length before they are used.
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actors.wire.frame import FrameError
from actors.wire.streams import ByteStream, receive_exactly

MAX_HEAD_BYTES = 4 << 20
MAX_BODY_BYTES = 64 << 20
PREFIX = struct.Struct("<II")

Array = npt.NDArray[Any]
AnyHead = TypeVar("AnyHead", bound="Head")


class Part(BaseModel):
    """Of a head: fixed once made, and nothing in it that this side does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArrayShape(Part):
    """One array of the body."""

    dtype: Literal["int32", "float64"]
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(max_length=4)]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Head(Part):
    """What every head has; a kind of message is a subclass."""

    kind: str
    arrays: Annotated[tuple[ArrayShape, ...], Field(max_length=16)] = ()


def pack(head: Head, arrays: Sequence[Array] = ()) -> bytes:
    """The message of a head, whose `arrays` is filled in here, and these arrays.

    Raises:
        ValueError: it is larger than a receiver takes.
    """
    shapes = tuple(ArrayShape(dtype=array.dtype.name, shape=array.shape) for array in arrays)
    text = head.model_copy(update={"arrays": shapes}).model_dump_json().encode()
    body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    if len(text) > MAX_HEAD_BYTES or len(body) > MAX_BODY_BYTES:
        raise ValueError(f"{head.kind} message of {len(text)} + {len(body)} bytes is too large")
    return PREFIX.pack(len(text), len(body)) + text + body


def lengths(
    prefix: bytes, max_head: int = MAX_HEAD_BYTES, max_body: int = MAX_BODY_BYTES
) -> tuple[int, int]:
    """Bytes of head and body that follow this prefix.

    Raises:
        FrameError: more than a message of this protocol has.
    """
    head, body = PREFIX.unpack(prefix)
    if head > max_head or body > max_body:
        raise FrameError(f"control message of {head} + {body} bytes")
    return head, body


def read_head(kinds: TypeAdapter[AnyHead], text: bytes) -> AnyHead:
    """The head that `text` is.

    Raises:
        FrameError: it is none of these kinds; names the first field that does not fit.
    """
    try:
        return kinds.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FrameError(f"control message: {where or 'head'}: {first['msg']}") from None


def unpack_arrays(head: Head, body: bytes) -> tuple[Array, ...]:
    """The arrays of a message, read-only and without a copy.

    Raises:
        FrameError: the body is not as long as they are.
    """
    if sum(array.num_bytes for array in head.arrays) != len(body):
        raise FrameError(f"{head.kind} message: {len(body)} bytes do not fit its arrays")
    found, at = [], 0
    for array in head.arrays:
        count = math.prod(array.shape)
        values = np.frombuffer(body, array.dtype, count, at).reshape(array.shape)
        found.append(values)
        at += array.num_bytes
    return tuple(found)


def receive_message(stream: ByteStream) -> tuple[bytes, bytes]:
    """(head, body) of the next message; blocking.

    Raises:
        EOFError: the peer closed the connection.
        FrameError: no message of this protocol.
        OSError: a timeout, among others.
    """
    head, body = lengths(receive_exactly(stream, PREFIX.size))
    return receive_exactly(stream, head), receive_exactly(stream, body)
