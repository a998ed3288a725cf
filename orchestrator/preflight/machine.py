"""What the machine itself offers: instruction sets, shared memory, open files, devices."""

import platform
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.bytesize import format_bytes
from orchestrator.config.pools import PoolConfig
from orchestrator.preflight.finding import Finding, Level

if TYPE_CHECKING:
    from actors.devices.detect import Detection

SHARED_MEMORY = Path("/dev/shm")
SHM_LEAST_BYTES = 64 * 2**20
"""Below this not even the demo's links between processes fit."""
SHM_GOOD_BYTES = 2**30
"""Ray's object store and the links have room; Ray falls back to disk below it."""
OPEN_FILES_GOOD = 4096
"""Ray, vLLM and a few hundred client connections stay well below."""

_X86 = ("x86_64", "AMD64")


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature names Linux gives for the first CPU; empty where it gives none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    words = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(words.partition(":")[2].split())


def check_cpu(flags: frozenset[str], architecture: str = "") -> Finding:
    """Which of vLLM's CPU kernels will run."""
    architecture = architecture or platform.machine()
    if architecture not in _X86:
        return Finding(
            "cpu",
            Level.WARNING,
            f"{architecture}: expert kernels were tested on x86-64 only",
            "expect bf16 weights and the portable kernels",
        )
    if "avx2" not in flags:
        return Finding("cpu", Level.FAILURE, "no AVX2", "vLLM's CPU kernels need a CPU that has it")
    if "avx512f" not in flags:
        return Finding(
            "cpu",
            Level.WARNING,
            "AVX2 but no AVX512: FP8 and MXFP4 experts are kept as bf16 (2 to 4 times the memory)",
            "give the pools more memory, or use a CPU with AVX512-BF16",
        )
    if "avx512_bf16" not in flags:
        return Finding(
            "cpu",
            Level.WARNING,
            "no AVX512-BF16: FP8 and MXFP4 experts are kept as bf16 (2 to 4 times the memory)",
            "give the pools more memory, or use a CPU with AVX512-BF16",
        )
    amx = "AMX" if {"amx_tile", "amx_bf16"} <= flags else "no AMX"
    return Finding("cpu", Level.OK, f"AVX2, AVX512, AVX512-BF16, {amx}")


def check_shared_memory(free_bytes: int | None = None) -> Finding:
    """Room for the segments that carry tokens between processes, and for Ray's object store."""
    name = "shared memory"
    if free_bytes is None:
        if not SHARED_MEMORY.is_dir():
            return Finding(name, Level.FAILURE, f"{SHARED_MEMORY} does not exist", "use Linux")
        free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    message = f"{format_bytes(free_bytes)} free in {SHARED_MEMORY}"
    fix = "enlarge it (containers: --shm-size=2g)"
    if free_bytes < SHM_LEAST_BYTES:
        return Finding(name, Level.FAILURE, f"only {message}", fix)
    if free_bytes < SHM_GOOD_BYTES:
        return Finding(name, Level.WARNING, f"only {message}: Ray will use the disk", fix)
    return Finding(name, Level.OK, message)


def check_open_files(soft_limit: int | None = None) -> Finding:
    if soft_limit is None:
        soft_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    name = "open files"
    if soft_limit == resource.RLIM_INFINITY:
        return Finding(name, Level.OK, "no limit")
    if soft_limit < OPEN_FILES_GOOD:
        return Finding(
            name,
            Level.WARNING,
            f"the limit is {soft_limit}: many connections will fail",
            "run `ulimit -n 65536` first",
        )
    return Finding(name, Level.OK, f"the limit is {soft_limit}")


def check_devices(pools: Mapping[str, PoolConfig], seen: "Detection") -> list[Finding]:
    """Of a mesh on this machine alone: pools of devices that nothing here speaks of.

    No failure: a machine may have devices that leave no trace; their shards say so when they start.
    """
    return [
        Finding(
            f"pool {name}",
            Level.WARNING,
            f"pools.{name} asks for {pool.device} of {pool.vendor}, which is not seen on this "
            f"machine ({seen.evidence})",
            f"join a cluster that has {pool.vendor}'s with cluster.ray_address, or set emulated",
        )
        for name, pool in pools.items()
        if pool.device != "cpu" and pool.vendor != seen.vendor
    ]
