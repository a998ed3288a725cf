"""Imports torch and numba without 25 MB that a CPU shard never uses. Import it before them.

Every shard is a process with memory of its own, so this counts once for each. Only processes with
`LEAN_IMPORTS` in their environment do it. What is left out can still be imported later: it is
hidden only while torch and numba look for it.

- torch's shape functions for tensors without values, used in tracing and compiling;
- scipy and cffi, which numba takes in for linear algebra and foreign functions if it finds them.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

VARIABLE = "EXPERTMESH_LEAN_IMPORTS"
LEAN_IMPORTS = {VARIABLE: "1"}

SHAPE_FUNCTIONS = "torch._meta_registrations"
NUMBA_EXTRAS = ("scipy", "scipy.linalg", "cffi")


@contextmanager
def hidden(names: tuple[str, ...], stand_in: ModuleType | None) -> Iterator[None]:
    """Imports of `names` that are not loaded yet give `stand_in`, or fail where it is None."""
    modules: dict[str, Any] = sys.modules
    absent = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(absent, stand_in))
    try:
        yield
    finally:
        for name in absent:
            del modules[name]


def import_torch() -> None:
    if "torch" in sys.modules:
        return
    with hidden((SHAPE_FUNCTIONS,), ModuleType(SHAPE_FUNCTIONS)):
        torch = importlib.import_module("torch")
    # Bound by torch's own import; a later import binds the module itself.
    vars(torch).pop(SHAPE_FUNCTIONS.rpartition(".")[2], None)


def import_numba() -> None:
    """With all that it knows of types and functions, which it loads once."""
    with hidden(NUMBA_EXTRAS, None):
        target = importlib.import_module("numba.core.registry").cpu_target
        target.typing_context.refresh()
        target.target_context.refresh()


def import_shape_functions() -> None:
    """What `import_torch` left out, for devices whose kernels are compiled."""
    importlib.import_module(SHAPE_FUNCTIONS)


if os.environ.get(VARIABLE):
    import_torch()
    import_numba()
