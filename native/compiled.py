"""`njit` with a cache that notices edits in every module the machine code is made from.

numba keeps machine code beside a source file and looks at that one file only, while a compiled
function takes in functions and constants of the modules it imports: after an update the old copy
would go on running. So the code of a module is kept in a folder named after the contents of all
modules of this project that it imports, directly or not.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler_lock import global_compiler_lock

Function = Callable[..., Any]

ROOT = Path(__file__).parents[1]
PACKAGES = ("native", "placement", "actors")
"""Packages with compiled code, below `ROOT`; what lies outside of them is no source of it."""


def compiled(*signature: str, nogil: bool = True, **options: Any) -> Callable[[Function], Any]:
    """`numba.njit` with that cache.

    signature: to compile for at once. nogil: other threads may run, which does not pay for what
    takes nanoseconds.
    """

    def decorate(function: Function) -> Any:
        # numba reads the folder from its configuration, which all threads share, when it sets a
        # function's cache up; modules may be imported by several threads at once.
        with global_compiler_lock:
            before = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = cache_folder(before, function.__module__)
            try:
                return numba.njit(*signature, cache=True, nogil=nogil, **options)(function)
            finally:
                numba.config.CACHE_DIR = before

    return decorate


@functools.cache
def cache_folder(wanted: str, module: str) -> str:
    """Where the machine code of `module` is kept.

    wanted: `NUMBA_CACHE_DIR`, or "" for a folder beside this package. If that cannot be written to,
    numba falls back to folders of its own.
    """
    base = Path(wanted) if wanted else Path(__file__).parent / "__pycache__"
    return str(base / f"numba-{digest(module)}")


@functools.cache
def digest(module: str) -> str:
    """Of the sources of `module` and of all it imports from this project."""
    contents = hashlib.sha256()
    for name in sorted(sources(module)):
        contents.update(name.encode() + b"\0" + _path(name).read_bytes())
    return contents.hexdigest()[:16]


def sources(module: str) -> set[str]:
    """`module` and the modules of this project that it imports, directly or not."""
    found: set[str] = set()
    new = {module} if _path(module).is_file() else set()
    while new:
        found |= new
        new = set().union(*(imports(name) for name in new)) - found
    return found


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules of this project that `module` imports, wherever in its file."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(_path(module).read_bytes())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = {name for name in named if name.partition(".")[0] in PACKAGES}
    return frozenset(name for name in ours if _path(name).is_file())


def _path(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")
