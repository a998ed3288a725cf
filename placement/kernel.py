"""How the hot loops of this package are compiled.

`entry` marks functions called from Python, `kernel` those that only entries and kernels call. An
entry is cached with all its kernels next to its source; kernels get no Python wrapper, which saves
a good part of compile time. Division by zero gives infinity, as in numpy, instead of raising: that
saves more, and callers guard where it could happen. Entries release the interpreter lock, so that a
controller may plan in a thread.

Numba notices a change of an entry's own file only, not of the kernels it calls: after editing a
kernel, delete the `*.nbi` files in `__pycache__`, or set NUMBA_CACHE_DIR to a new folder.
"""

from __future__ import annotations

from functools import partial

from numba import njit

entry = partial(njit, cache=True, error_model="numpy", nogil=True)
"""Decorator of compiled functions that Python calls."""

kernel = partial(
    njit, error_model="numpy", nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""Decorator of compiled functions that only compiled functions call."""
