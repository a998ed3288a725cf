"""Writes the calls of one split into slots of their links, in one native pass for all shards."""

import numpy as np
from numba import carray

from actors.dispatch.deadlines import soft_wait_s
from actors.dispatch.service import predict
from actors.dispatch.shard_links import (
    ANSWER_BYTES,
    ANSWER_OFFSET,
    CODING,
    CONTROL,
    REQUEST_BYTES,
    SCALE,
    SLOT_BYTES,
    SLOTS,
)
from actors.wire import slots as part
from actors.wire.fp8_rows import encode_row
from actors.wire.frame import HEADER_BYTES, FrameKind
from actors.wire.frame_words import LONG_WORDS, WORDS, write_header
from actors.wire.layout import (
    DEVICE,
    FP8,
    call_bytes,
    call_rows_at,
    call_weights_at,
    result_bytes,
    scales_bytes,
)
from actors.wire.segment import (
    FIRST_STATE,
    FREE,
    PAGE_BYTES,
    POSTED,
    SERVER_ASLEEP,
    STATE_STRIDE,
)
from native.atomics import find, observe, publish
from native.compiled import compiled
from native.pointers import pointer_to

LARGE_BODY_BYTES = 1 << 20
"""From here on a server is told at once: it works while the bodies for others are written."""

CALL, RESULT = int(FrameKind.CALL), int(FrameKind.RESULT)

# Why `post_calls` stopped before the last shard, in the two lowest bits of what it returns.
TELL, NO_ROOM = 1, 2
OUTCOMES = 4


@compiled()
def post_calls(  # type: ignore[no-untyped-def]
    slots, service, parts, soft_s, begin, first, first_row, rows, row_index, experts, weights,
    source, tokens, hidden, layer, epoch, call_id, longest_s, sample,
):  # fmt: skip
    """Post from shard `begin` on. source: address of bf16 [T, H], not looked at where all rows stay
    on a device. Calls whose rows do are written, and left to be POSTED.

    Returns OUTCOMES * (shard to go on with) + TELL | NO_ROOM. Stops after a large body so that its
    server can be told, and at a shard whose link has no free slot or too small ones.
    """
    batch = carray(pointer_to(source), (tokens, hidden), np.uint16)
    outcome, written = 0, 0
    for shard in range(begin, parts.shape[0]):
        count = first_row[shard + 1] - first_row[shard]
        assignments = first[shard + 1] - first[shard]
        parts[shard] = 0
        if assignments == 0:
            continue
        if slots[shard, CONTROL] == 0:
            parts[shard, part.STATUS] = part.LOST
            continue
        coding = slots[shard, CODING]
        parts[shard, part.CODING] = coding
        length = call_bytes(count, hidden, assignments, coding)
        answer_length = result_bytes(count, hidden, coding)
        if length > slots[shard, REQUEST_BYTES] or answer_length > slots[shard, ANSWER_BYTES]:
            return OUTCOMES * shard + outcome | NO_ROOM
        words = part.control_words(slots[shard, CONTROL])
        slot = find(words, FIRST_STATE, STATE_STRIDE, slots[shard, SLOTS], FREE)
        if slot < 0:
            return OUTCOMES * shard + outcome | NO_ROOM
        at = slots[shard, CONTROL] + PAGE_BYTES + slot * slots[shard, SLOT_BYTES]
        write_header(
            carray(pointer_to(at), (WORDS,), np.uint32),
            carray(pointer_to(at), (LONG_WORDS,), np.uint64),
            CALL, epoch, call_id + shard, layer, count, hidden, assignments, coding, length,
            sample,
        )  # fmt: skip
        body = carray(pointer_to(at + HEADER_BYTES), (length,), np.uint8)
        fill_call(shard, first, first_row, rows, row_index, experts, weights, batch, body, coding)
        state = FIRST_STATE + slot * STATE_STRIDE
        if coding != DEVICE:  # else when the rows are there, see `flight`
            publish(words, state, np.uint32(POSTED))
        parts[shard, part.STATUS] = part.AWAY
        parts[shard, part.CONTROL] = slots[shard, CONTROL]
        parts[shard, part.STATE] = state
        parts[shard, part.ANSWER] = at + slots[shard, ANSWER_OFFSET]
        parts[shard, part.KIND] = RESULT
        parts[shard, part.CALL_ID] = call_id + shard
        parts[shard, part.ROWS] = count
        parts[shard, part.HIDDEN] = hidden
        parts[shard, part.LENGTH] = answer_length
        predicted_s = service[shard, SCALE] * predict(service, shard, assignments)
        soft_s[shard] = soft_wait_s(predicted_s, longest_s)
        if coding != DEVICE and observe(words, SERVER_ASLEEP):
            parts[shard, part.TOLD] = 1
            outcome |= TELL
        written += length
        if outcome and written >= LARGE_BODY_BYTES:
            return OUTCOMES * (shard + 1) + outcome
    return OUTCOMES * parts.shape[0] + outcome


@compiled()
def fill_call(  # type: ignore[no-untyped-def]
    shard, first, first_row, rows, row_index, experts, weights, source, body, coding
):
    """Write the body of the CALL to `shard`: ids, weights and its rows of source [T, H], unless
    these stay on a device."""
    hidden = source.shape[1]
    begin, count = first_row[shard], first_row[shard + 1] - first_row[shard]
    at, assignments = first[shard], first[shard + 1] - first[shard]
    weights_at, rows_at = call_weights_at(assignments), call_rows_at(assignments)
    indices = body[: weights_at // 2].view(np.int32)
    ids = body[weights_at // 2 : weights_at].view(np.int32)
    scales = body[weights_at:rows_at].view(np.float32)
    for i in range(assignments):
        indices[i] = row_index[at + i]
        ids[i] = experts[at + i]
        scales[i] = weights[at + i]
    if coding == DEVICE:
        return
    if coding == FP8:
        codes_at = rows_at + scales_bytes(count)
        row_scales, codes = body[rows_at:codes_at].view(np.float32), body[codes_at:]
        for i in range(count):
            code = codes[i * hidden : (i + 1) * hidden]
            row_scales[i] = encode_row(source[rows[begin + i]], code)
        return
    target = body[rows_at:].view(np.uint16)
    for i in range(count):
        row = source[rows[begin + i]]
        for h in range(hidden):
            target[i * hidden + h] = row[h]
