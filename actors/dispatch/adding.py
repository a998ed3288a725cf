"""Adds up the answers of one split, in one native pass for all shards.

In ascending order of the parts, in fp32, rounded to bf16 once: the order of arrival does not
matter.
"""

import numpy as np
from numba import carray

from actors.dispatch.service import learn
from actors.wire import slots as part
from actors.wire.bf16 import round_to_bf16
from actors.wire.frame import HEADER_BYTES
from actors.wire.layout import FP8, sum_bytes
from native.compiled import compiled
from native.pointers import pointer_to

NOT_ALL = -1
"""In place of a time: an answer is not there yet."""
NO_NUMBER = -2
"""This, less the time: everything was added up, and some sum is infinite or no number."""
EXPONENT = np.uint32(0x7F800000)
"""Of fp32: all ones in what is infinite or no number."""


def took_us(outcome: int) -> int:
    """The time in what `add_up` returned for answers that were all there."""
    return outcome if outcome >= 0 else NO_NUMBER - outcome


@compiled()
def collect(  # type: ignore[no-untyped-def]
    parts, first_row, rows, result, tokens, hidden, first, service, now_s
):
    """`add_up`, and where all is well, `learn` and give all slots back."""
    compute_us = add_up(parts, first_row, rows, result, tokens, hidden)
    if compute_us >= 0:
        learn(parts, first, service, now_s)
        part.free_answered(parts)
    return compute_us


@compiled()
def add_up(parts, first_row, rows, result, tokens, hidden):  # type: ignore[no-untyped-def]
    """Add the answers of all parts in their order. first_row: int32 [P + 1], where each part's rows
    begin in `rows`, ascending. result: address of bf16 [T, H]. Returns us, or NOT_ALL, or
    NO_NUMBER less the us.

    Row by row, so that a sum stays in the nearest cache until it is rounded.
    """
    compute_us = 0
    for i in range(parts.shape[0]):
        if parts[i, part.STATUS] == part.GOOD:
            compute_us = max(compute_us, parts[i, part.COMPUTE_US])
        elif parts[i, part.STATUS] != part.EMPTY:
            return NOT_ALL
    out = carray(pointer_to(result), (tokens, hidden), np.uint16)
    total = np.empty(hidden, np.float32)
    bits = total.view(np.uint32)
    at = first_row[:-1].copy()
    largest = np.uint32(0)
    for token in range(tokens):
        total[:] = 0.0
        for i in range(parts.shape[0]):
            if at[i] == first_row[i + 1] or rows[at[i]] != token:
                continue
            coding = parts[i, part.CODING]
            sums = parts[i, part.ANSWER] + HEADER_BYTES
            sums += sum_bytes(hidden, coding) * (at[i] - first_row[i])
            add_row(total, sums, coding)
            at[i] += 1
        for h in range(hidden):
            out[token, h] = round_to_bf16(bits[h])
            largest = max(largest, np.uint32(bits[h] & EXPONENT))
    return NO_NUMBER - compute_us if largest == EXPONENT else compute_us


@compiled()
def add_row(total, address, coding):  # type: ignore[no-untyped-def]
    """total [H] += one row's partial sum."""
    hidden = total.shape[0]
    if coding == FP8:
        codes = carray(pointer_to(address), (hidden,), np.uint16)
        for h in range(hidden):
            total[h] += np.uint32(np.uint32(codes[h]) << np.uint32(16)).view(np.float32)
    else:
        sums = carray(pointer_to(address), (hidden,), np.float32)
        for h in range(hidden):
            total[h] += sums[h]
