"""Calls in slots, whatever transport moves them: which are answered, and who has to be woken.

Calls that go together are rows of one table, the **parts**, so that one native pass looks at all of
them. After a kernel has streamed gigabytes of weights through the caches, what a call costs is not
what its code computes but how much code and data it touches.
"""

import numpy as np
import numpy.typing as npt
from numba import carray

from actors.wire.frame_words import COMPUTE_US as COMPUTE_US_WORD
from actors.wire.frame_words import LONG_WORDS, WORDS, is_answer
from actors.wire.segment import ANSWERED, CLIENT_ASLEEP, FREE, PAGE_BYTES, Segment, state_word
from native.atomics import observe, publish, sched_yield
from native.compiled import compiled
from native.pointers import pointer_to

Parts = npt.NDArray[np.int64]

# Columns of a table of parts. STATUS says what is known of a part; CONTROL and ANSWER are addresses
# of the segment's control words and of the slot's answer; STATE is the index of the slot's state
# word; TOLD is not 0 where the transport has to be notified; COMPUTE_US comes from the answer's
# header; the others are what that header has to say.
STATUS, CONTROL, STATE, ANSWER, TOLD, KIND, CALL_ID, ROWS, HIDDEN, CODING, LENGTH, COMPUTE_US = (
    range(12)
)
COLUMNS = 12

EMPTY, AWAY, GOOD, ODD, LOST = range(5)
"""Nothing was to be posted; not answered yet; answered as asked; answered with anything else, as an
ERROR; never to be answered, as the link is lost."""


def new_parts(count: int) -> Parts:
    """count parts, all EMPTY."""
    return np.zeros((count, COLUMNS), np.int64)


def describe_part(
    parts: Parts, at: int, segment: Segment, slot: int, expected: tuple[int, ...]
) -> None:
    """Make parts[at] the call in a slot. expected: the answer's kind, call id, rows, hidden, coding
    and body length."""
    answer = segment.answer_address(slot)
    parts[at, STATUS : ANSWER + 1] = (AWAY, segment.address, state_word(slot), answer)
    parts[at, KIND : LENGTH + 1] = expected


@compiled(inline="always")
def control_words(address):  # type: ignore[no-untyped-def]
    """The control page at an address."""
    return carray(pointer_to(address), (PAGE_BYTES // 4,), np.uint32)


@compiled()
def unanswered(parts):  # type: ignore[no-untyped-def]
    """How many parts are still AWAY; those that were answered become GOOD or ODD."""
    count = 0
    for i in range(parts.shape[0]):
        if parts[i, STATUS] != AWAY:
            continue
        if observe(control_words(parts[i, CONTROL]), parts[i, STATE]) != ANSWERED:
            count += 1
            continue
        words = carray(pointer_to(parts[i, ANSWER]), (WORDS,), np.uint32)
        long_words = carray(pointer_to(parts[i, ANSWER]), (LONG_WORDS,), np.uint64)
        good = is_answer(
            words, long_words, parts[i, KIND], parts[i, CALL_ID], parts[i, ROWS], parts[i, HIDDEN],
            parts[i, CODING], parts[i, LENGTH],
        )  # fmt: skip
        parts[i, STATUS] = GOOD if good else ODD
        parts[i, COMPUTE_US] = words[COMPUTE_US_WORD] if good else 0
    return count


@compiled()
def say_asleep(parts, asleep):  # type: ignore[no-untyped-def]
    """Tell the servers whether they have to wake this side; returns `unanswered`."""
    for i in range(parts.shape[0]):
        if parts[i, STATUS] != EMPTY and parts[i, CONTROL] != 0:
            publish(control_words(parts[i, CONTROL]), CLIENT_ASLEEP, np.uint32(asleep))
    return unanswered(parts)


@compiled()
def yield_until_answered(parts, yields):  # type: ignore[no-untyped-def]
    """Whether all are answered after at most so many yields of the core."""
    for _ in range(yields):
        if unanswered(parts) == 0:
            return True
        sched_yield()
    return unanswered(parts) == 0


@compiled()
def free_answered(parts):  # type: ignore[no-untyped-def]
    """Give back the slots of all parts that were answered; they are EMPTY then."""
    for i in range(parts.shape[0]):
        if parts[i, STATUS] == GOOD or parts[i, STATUS] == ODD:
            publish(control_words(parts[i, CONTROL]), parts[i, STATE], np.uint32(FREE))
            parts[i, STATUS] = EMPTY
