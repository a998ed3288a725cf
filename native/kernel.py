"""How a package of hot loops that call each other is compiled, as the planner's.

`entry` marks functions called from Python, `kernel` those that only entries and kernels call. An
entry is cached with all its kernels (`native.compiled`); kernels get no Python wrapper, which
saves a good part of compile time. Division by zero gives infinity, as in numpy, instead of raising:
that saves more, and callers guard where it could happen. Entries release the interpreter lock, so
that a controller may plan in a thread.
"""

from __future__ import annotations

from functools import partial

from numba import njit

from native.compiled import compiled

entry = compiled(error_model="numpy")
"""Decorator of compiled functions that Python calls."""

kernel = partial(
    njit, error_model="numpy", nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""Decorator of compiled functions that only compiled functions call."""
