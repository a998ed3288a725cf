"""A shard's process does without what it never uses, and can still import it."""

import os
import subprocess
import sys

from actors.lean_imports import LEAN_IMPORTS, NUMBA_EXTRAS, SHAPE_FUNCTIONS

PROGRAM = f"""
import sys
import actors.shard.shard
from actors.lean_imports import import_shape_functions
left_out = [name for name in {NUMBA_EXTRAS!r} + ({SHAPE_FUNCTIONS!r},) if name in sys.modules]
assert not left_out, left_out
import torch
assert (torch.ones(2, 2).bfloat16() @ torch.ones(2, 2).bfloat16()).sum() == 8
import cffi, scipy.linalg
import_shape_functions()
assert torch.empty(2, 3, device="meta").cumsum(0).shape == (2, 3)
assert torch._meta_registrations.__file__
"""


def test_what_is_left_out_can_be_imported_later() -> None:
    environment = os.environ | LEAN_IMPORTS
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=300)


def test_other_processes_import_everything() -> None:
    program = f"import actors.shard.shard, sys; assert {SHAPE_FUNCTIONS!r} in sys.modules"
    environment = {name: value for name, value in os.environ.items() if name not in LEAN_IMPORTS}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
