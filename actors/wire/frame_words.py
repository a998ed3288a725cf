"""Frames in compiled code: headers as words, and `layout`'s functions made known to numba.

A header is read as 16 words of 32 bits and as 8 words of 64 bits, little-endian as the machine.
"""

import sys

import numpy as np
from numba.extending import register_jitable

from actors.wire import layout
from actors.wire.layout import HEADER_BYTES, MAGIC, VERSION, offset_of
from native.compiled import compiled

assert sys.byteorder == "little", "frames are little-endian"

for _function in (
    layout.call_weights_at, layout.call_rows_at, layout.scales_bytes, layout.call_bytes,
    layout.sum_bytes, layout.result_bytes,
):  # fmt: skip
    register_jitable(_function)

WORDS, LONG_WORDS = HEADER_BYTES // 4, HEADER_BYTES // 8
MAGIC_WORD = np.uint32(int.from_bytes(MAGIC, "little"))
# Indices of 32-bit words ...
VERSION_AND_KIND = offset_of("version") // 4
LAYER, ROWS, HIDDEN, ASSIGNMENTS, COMPUTE_US, CODING = (
    offset_of(name) // 4
    for name in ("layer", "rows", "hidden", "assignments", "compute_us", "coding")
)
# ... and of 64-bit words.
EPOCH, CALL_ID, BODY_BYTES, SAMPLE = (
    offset_of(name) // 8 for name in ("epoch", "call_id", "body_bytes", "sample")
)


@compiled()
def write_header(  # type: ignore[no-untyped-def]
    words, long_words, kind, epoch, call_id, layer, rows, hidden, assignments, coding, length,
    sample,
):  # fmt: skip
    """A request's header. words: uint32 [16], long_words: uint64 [8], of the same bytes."""
    words[0] = MAGIC_WORD
    words[VERSION_AND_KIND] = VERSION | kind << 16
    words[LAYER] = layer
    words[ROWS] = rows
    words[HIDDEN] = hidden
    words[ASSIGNMENTS] = assignments
    words[COMPUTE_US] = 0
    words[CODING] = coding
    long_words[EPOCH] = epoch
    long_words[CALL_ID] = call_id
    long_words[BODY_BYTES] = length
    long_words[SAMPLE] = sample


@compiled()
def is_answer(  # type: ignore[no-untyped-def]
    words, long_words, kind, call_id, rows, hidden, coding, length
):
    """Whether this is the header of the answer that was asked for."""
    return (
        words[0] == MAGIC_WORD
        and words[VERSION_AND_KIND] == VERSION | kind << 16
        and words[CODING] == coding
        and words[ROWS] == rows
        and words[HIDDEN] == hidden
        and np.int64(long_words[CALL_ID]) == call_id
        and np.int64(long_words[BODY_BYTES]) == length
    )
