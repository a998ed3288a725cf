"""Words in shared memory that two processes hand to each other.

Loads and stores are sequentially consistent, so what was written before `publish` is seen by
whoever then sees the word, and of two processes that each store their own word and then load the
other's, at least one sees the other's store: nobody falls asleep on a word that was just set.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from native.compiled import compiled

Words = npt.NDArray[np.uint32]

YIELDS_PER_LOOK_AT_THE_CLOCK = 8

sched_yield = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _load(_: Any, words: Any, index: Any) -> Any:  # noqa: ARG001 - numba wants the names
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        return builder.load_atomic(pointer, "seq_cst", 4)

    return types.uint32(words, types.intp), generate


@intrinsic
def _store(_: Any, words: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        builder.store_atomic(arguments[2], pointer, "seq_cst", 4)
        return ir.Constant(ir.IntType(32), 0)

    return types.uint32(words, types.intp, types.uint32), generate


@compiled("void(uint32[::1], intp, uint32)", nogil=False)
def publish(words, index, value):  # type: ignore[no-untyped-def]
    """words[index] = value, after everything written before."""
    _store(words, index, value)


@compiled("uint32(uint32[::1], intp)", nogil=False)
def observe(words, index):  # type: ignore[no-untyped-def]
    """words[index], before everything read after."""
    return _load(words, index)


@compiled("intp(uint32[::1], intp, intp, intp, uint32)", nogil=False)
def find(words, first, stride, count, value):  # type: ignore[no-untyped-def]
    """Smallest i < count with words[first + i * stride] == value, else -1."""
    for i in range(count):
        if _load(words, first + i * stride) == value:
            return i
    return -1


@compiled("intp(uint32[::1], intp, intp, intp, uint32, uint32)", nogil=False)
def take(words, first, stride, count, value, taken):  # type: ignore[no-untyped-def]
    """`find`, and what was found becomes `taken`. Nobody else may take from these words."""
    i = find(words, first, stride, count, value)
    if i >= 0:
        _store(words, first + i * stride, taken)
    return i


def spin(look: Callable[[int], bool], spin_s: float) -> bool:
    """Wait at most about `spin_s`, yielding to whoever wants the core; 0 does not even look.

    look(yields): whether what is waited for is there after at most so many yields.
    """
    end_s = time.perf_counter() + spin_s
    while spin_s > 0:
        if look(YIELDS_PER_LOOK_AT_THE_CLOCK):
            return True
        if time.perf_counter() >= end_s:
            break
    return False
