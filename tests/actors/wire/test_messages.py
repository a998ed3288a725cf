"""Control messages: what was packed comes out again; lengths and shapes are checked before use."""

import socket
import threading
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter

from actors.wire.frame import FrameError
from actors.wire.messages import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    PREFIX,
    ArrayShape,
    Head,
    lengths,
    pack,
    read_head,
    receive_message,
    unpack_arrays,
)


class NoteHead(Head):
    kind: Literal["note"] = "note"
    text: str


NOTES: TypeAdapter[NoteHead] = TypeAdapter(NoteHead)


def arrays() -> st.SearchStrategy[list[np.ndarray]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    return st.lists(
        st.one_of(hnp.arrays("int32", shapes), hnp.arrays("float64", shapes)), max_size=4
    )


@settings(deadline=None)
@given(st.text(max_size=20), arrays())
def test_what_is_packed_comes_out_again(text: str, given: list[np.ndarray]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sending = threading.Thread(target=ours.sendall, args=(pack(NoteHead(text=text), given),))
        sending.start()
        head_text, body = receive_message(theirs)
        sending.join()
    head = read_head(NOTES, head_text)
    assert head.text == text
    found = unpack_arrays(head, body)
    assert [(a.dtype, a.shape, a.tobytes()) for a in found] == [
        (a.dtype, a.shape, a.tobytes()) for a in given
    ]
    assert not any(a.flags.writeable for a in found)


def test_a_body_that_does_not_fit_its_arrays_is_refused() -> None:
    head = NoteHead(text="", arrays=(ArrayShape(dtype="int32", shape=(2, 3)),))
    assert unpack_arrays(head, bytes(24))[0].shape == (2, 3)
    for size in (0, 23, 25, 28):
        with pytest.raises(FrameError, match="do not fit"):
            unpack_arrays(head, bytes(size))
    with pytest.raises(FrameError, match="do not fit"):
        unpack_arrays(NoteHead(text=""), b"x")


def test_lengths_are_bounded() -> None:
    assert lengths(PREFIX.pack(MAX_HEAD_BYTES, MAX_BODY_BYTES)) == (MAX_HEAD_BYTES, MAX_BODY_BYTES)
    for head, body in [(MAX_HEAD_BYTES + 1, 0), (0, MAX_BODY_BYTES + 1), (2**32 - 1, 2**32 - 1)]:
        with pytest.raises(FrameError, match="control message of"):
            lengths(PREFIX.pack(head, body))
    with pytest.raises(FrameError):
        lengths(PREFIX.pack(11, 0), max_head=10)
    with pytest.raises(FrameError):
        lengths(PREFIX.pack(0, 1), max_body=0)


def test_a_message_that_nobody_would_take_is_not_made() -> None:
    with pytest.raises(ValueError, match="too large"):
        pack(NoteHead(text="x" * MAX_HEAD_BYTES))
    with pytest.raises(ValueError, match="too large"):
        pack(NoteHead(text=""), [np.zeros(MAX_BODY_BYTES // 8 + 1)])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "head: "),
        (b"\xff\xfe", "head: "),
        (b"[1, 2]", "head: "),
        (b"{}", "text: "),
        (b'{"kind": "view", "text": ""}', "kind: "),
        (b'{"kind": "note", "text": 3}', "text: "),
        (b'{"kind": "note", "text": "", "more": 1}', "more: "),
        (b'{"kind": "note", "text": "", "arrays": [{"dtype": "O", "shape": [1]}]}', "dtype: "),
        (b'{"kind": "note", "text": "", "arrays": [{"dtype": "int32", "shape": [-1]}]}', "shape"),
        (b'{"kind": "note", "text": "", "arrays": [{"dtype": "int32", "shape": [1.5]}]}', "shape"),
        (b'{"kind": "note", "text": "", "arrays": [{"dtype": "int32"}]}', "shape"),
    ],
)
def test_a_head_that_is_none_is_refused_in_one_line(text: bytes, complaint: str) -> None:
    with pytest.raises(FrameError, match="control message: ") as caught:
        read_head(NOTES, text)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_end_of_file_in_the_middle() -> None:
    message = pack(NoteHead(text="cut"), [np.arange(5, dtype=np.int32)])
    for cut in (0, 3, PREFIX.size + 2, len(message) - 1):
        ours, theirs = socket.socketpair()
        with theirs:
            with ours:
                ours.sendall(message[:cut])
            with pytest.raises(EOFError):
                receive_message(theirs)
