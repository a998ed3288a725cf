"""Arrays over raw memory in numba: what keeps a loop over segments out of Python."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def pointer_to(_: Any, address: Any) -> Any:  # noqa: ARG001 - numba wants the names
    """An address as what `numba.carray` takes. Nothing is checked: the caller knows the memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate
