"""`njit` for the data plane, with a cache that notices edits in every module it is compiled from.

numba keeps machine code beside the source file and looks at that one file only. Functions of the
data plane take in others, and constants, from several modules: an old copy of either would go on
being used after an update. So their code is kept in a folder named after the contents of all of
these modules.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

Function = Callable[..., Any]

PACKAGE = Path(__file__).parents[1]
SOURCES = (
    "dispatch/shared_calls.py",
    "dispatch/split.py",
    "kernels/summing.py",
    "merging.py",
    "wire/atomics.py",
    "wire/bf16.py",
    "wire/fp8_rows.py",
    "wire/frame.py",
    "wire/frame_words.py",
    "wire/pointers.py",
    "wire/segment.py",
    "wire/shared_clients.py",
    "wire/shared_link.py",
)
"""Modules that define compiled functions, or constants that these take in."""


def compiled(*signature: str, nogil: bool = True, **options: Any) -> Callable[[Function], Any]:
    """`numba.njit` with that cache.

    signature: to compile for at once. nogil: other threads may run, which does not pay for what
    takes nanoseconds.
    """

    def decorate(function: Function) -> Any:
        # Read by numba when it sets a function's cache up, and by no one else in between.
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = cache_folder(before)
        try:
            return numba.njit(*signature, cache=True, nogil=nogil, **options)(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


@functools.cache
def cache_folder(wanted: str) -> str:
    """wanted: `NUMBA_CACHE_DIR`, or "" for one beside the package. If that cannot be written to,
    numba falls back to folders of its own."""
    base = Path(wanted) if wanted else PACKAGE / "__pycache__"
    return str(base / f"numba-{digest()}")


def digest() -> str:
    """Of everything that ends up in the compiled code."""
    contents = hashlib.sha256()
    for name in SOURCES:
        contents.update((PACKAGE / name).read_bytes())
    return contents.hexdigest()[:16]
