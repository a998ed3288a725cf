"""Settings of an actor's process: threads and memory."""

import ctypes
import os

# Shards and the engine share cores: a thread that spins after its work is done takes the core from
# the one that has work (measured: a third of the throughput on two cores).
PASSIVE_THREADS = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

# For engines with several threads: a moment (0.2 ms or so) between two kernels, so that the threads
# need not be woken for each, and over before the shards are at work.
SHORT_SPIN = {"GOMP_SPINCOUNT": "20000"}

# Weights in huge pages: fewer misses in the kernels (a tenth of their time), and a process that is
# killed is gone sooner. Its memory is taken back before its sockets close, 100 ms for 1 GB in small
# pages, 10 ms in huge ones, and only then do its clients notice.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def thread_environment(threads: int) -> dict[str, str]:
    """Environment for an actor whose kernels use `threads` CPU threads; set before torch loads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **PASSIVE_THREADS,
        **HUGE_PAGES,
    }


def limit_threads(threads: int) -> None:
    """Hold torch to `threads` CPU threads, also where the environment came too late."""
    import torch

    torch.set_num_threads(threads)
    os.environ.update(thread_environment(threads))


def return_free_memory() -> None:
    """Give memory that was freed back to the system, after work that needed a lot for a while.

    glibc keeps it otherwise, above all in the arena of the thread that did the work. Takes well
    below a millisecond for what a load leaves behind. Other C libraries are left alone.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
