"""Whether vLLM compiles an engine's model (torch.compile), where the config leaves it open.

It does wherever it can. On a CPU the demo's first start takes 2 s longer for it and later ones,
which find it in the cache (`compile_cache`), no longer than eager ones; `docs/performance.md` says
what it gains. There torch needs a C++ compiler, which the machine may lack. CPU engines of several
ranks (tensor parallelism) stay eager: two compiled ranks did not come to an answer in 10 minutes.
"""

import os
import shutil


def starts_eagerly(on_cpu: bool, ranks: int = 1) -> bool:
    """Value of vLLM's `enforce_eager` for an engine of `ranks` on CPUs or on other devices."""
    return on_cpu and (ranks > 1 or not has_cpp_compiler())


def has_cpp_compiler() -> bool:
    """Whether torch will find one: `$CXX`, or g++."""
    return shutil.which(os.environ.get("CXX") or "g++") is not None
