"""Headers of CALL and RESULT frames in numba, for segments. The layout is `frame.py`'s.

A header is read as 16 words of 32 bits and as 8 words of 64 bits, little-endian as the machine.
"""

import sys

import numpy as np

from actors.wire.frame import HEADER_BYTES, MAGIC, VERSION, FrameKind
from placement.compiled import compiled

assert sys.byteorder == "little", "frames are little-endian"

WORDS, LONG_WORDS = HEADER_BYTES // 4, HEADER_BYTES // 8
MAGIC_WORD = np.uint32(int.from_bytes(MAGIC, "little"))
CALL_WORD = np.uint32(VERSION | FrameKind.CALL << 16)
RESULT_WORD = np.uint32(VERSION | FrameKind.RESULT << 16)
# Indices of 32-bit words ...
KIND, LAYER, ROWS, HIDDEN, ASSIGNMENTS, COMPUTE_US, CODING = 1, 6, 7, 8, 9, 10, 11
# ... and of 64-bit words.
EPOCH, CALL_ID, BODY_BYTES = 1, 2, 6


@compiled()
def write_call(  # type: ignore[no-untyped-def]
    words, long_words, epoch, call_id, layer, rows, hidden, assignments, length
):
    """A CALL with bf16 rows. words: uint32 [16], long_words: uint64 [8], of the same bytes."""
    words[0] = MAGIC_WORD
    words[KIND] = CALL_WORD
    words[LAYER] = layer
    words[ROWS] = rows
    words[HIDDEN] = hidden
    words[ASSIGNMENTS] = assignments
    words[COMPUTE_US] = 0
    words[CODING] = 0
    words[14] = 0
    words[15] = 0
    long_words[EPOCH] = epoch
    long_words[CALL_ID] = call_id
    long_words[BODY_BYTES] = length


@compiled()
def is_result(words, long_words, call_id, rows, hidden):  # type: ignore[no-untyped-def]
    """Whether this is the RESULT that answers such a call."""
    return (
        words[0] == MAGIC_WORD
        and words[KIND] == RESULT_WORD
        and words[CODING] == 0
        and words[ROWS] == rows
        and words[HIDDEN] == hidden
        and long_words[CALL_ID] == call_id
        and long_words[BODY_BYTES] == 4 * rows * hidden
    )
