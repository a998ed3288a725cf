"""Where a shard gets an expert's weights from: the checkpoint on a local disk, or another shard.

A shard that loads an expert reads its tensors and packs them for its kernel. One that holds the
expert already could send the packed bytes, which saves reading and packing. Measured for one expert
after the other, on the model's own shapes, with the product's reader and kernel:

  read_ms     tensors from the checkpoint's files, whose pages are in memory
  cold_ms     the same when they are not: dropped from the page cache before each expert
  pack_ms     into the kernel's form
  shm_ms      what a peer would take at best through shared memory: the packed bytes written by one
              and copied out by the other
  tcp_ms      the same through a TCP connection on this machine, a process at each end
  budget_ms   what the load may take by `controller.load_bandwidth`

The rest of a load (putting the expert into its slot, publishing) is the same for both.
"""

import argparse
import mmap
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.experts.families import read_expert_spec
from actors.experts.spec import ExpertSpec
from actors.kernels.choose import choose_kernel, reader_of
from actors.process import limit_threads
from benchmarks.correctness import DEMO
from benchmarks.harness.report import Report, Target, run_benchmark
from benchmarks.throughput import make_model
from orchestrator.config.schema import ControllerConfig

EXPERTS, QUICK_EXPERTS = 48, 12
ROUNDS = 3
GOAL = 1.0
"""Of the budget: below it another source makes no load shorter while the mesh serves."""


def median_ms(times_s: list[float]) -> float:
    return float(np.median(times_s)) * 1e3


def timed_s(work: Callable[[], Any]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def drop_pages(spec: ExpertSpec) -> None:
    """Have the next reads of the checkpoint come from the disk."""
    for file in spec.model_path.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _send(port: int, size: int, times: int) -> None:
    """The peer: sends so many experts, each when it is asked for."""
    packed = memoryview(bytearray(os.urandom(4096) * (size // 4096 + 1)))[:size]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            connection.recv(1)
            connection.sendall(packed)


@contextmanager
def tcp_peer(size: int, times: int) -> Iterator[Callable[[], None]]:
    """A call that takes one expert of `size` bytes from another process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = multiprocessing.get_context("spawn").Process(
            target=_send, args=(server.getsockname()[1], size, times)
        )
        peer.start()
        connection, _ = server.accept()
    room = memoryview(bytearray(size))

    def take() -> None:
        connection.sendall(b"1")
        left = room
        while left:
            left = left[connection.recv_into(left) :]

    with connection:
        yield take
    peer.join()


def memory_peer(size: int) -> Callable[[], None]:
    """A call that takes one expert of `size` bytes through memory that two share."""
    shared = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    source, room = np.full(size, 7, np.uint8), np.empty(size, np.uint8)

    def take() -> None:
        shared[:] = source
        room[:] = shared

    return take


def measure_model(name: str, path: Path, count: int) -> dict[str, Any]:
    spec = read_expert_spec(path)
    kernel, read = choose_kernel(spec, torch.device("cpu")), reader_of(spec)
    keys = [(layer, expert) for layer in spec.layers for expert in range(spec.num_experts)][:count]
    times: dict[str, list[float]] = {what: [] for what in ("read", "cold", "pack", "shm", "tcp")}
    size = kernel.operator.pack(read(*keys[0])).nbytes
    through_memory = memory_peer(size)
    with tcp_peer(size, ROUNDS * len(keys)) as take:
        for _ in range(ROUNDS):
            for key in keys:
                drop_pages(spec)
                times["cold"].append(timed_s(lambda: read(*key)))  # noqa: B023 - called at once
                times["read"].append(timed_s(lambda: read(*key)))  # noqa: B023
                tensors = read(*key)
                times["pack"].append(timed_s(lambda: kernel.operator.pack(tensors)))  # noqa: B023
                times["shm"].append(timed_s(through_memory))
                times["tcp"].append(timed_s(take))
    budget = ControllerConfig().load_bandwidth
    return {
        "model": name,
        "expert_kb": size / 1e3,
        **{f"{what}_ms": median_ms(seen) for what, seen in times.items()},
        "budget_ms": size / budget * 1e3,
    }


def measure(arguments: argparse.Namespace) -> Report:
    limit_threads(1)  # as a shard's, by default
    count = QUICK_EXPERTS if arguments.quick else EXPERTS
    runs = [measure_model("demo", DEMO / "checkpoint", count)]
    with tempfile.TemporaryDirectory() as folder:
        runs.append(measure_model("mid-size, bf16", make_model(Path(folder) / "model"), count))
    targets = [
        Target(
            f"{run['model']}: read and pack, over the budget of a load",
            (run["read_ms"] + run["pack_ms"]) / run["budget_ms"],
            GOAL,
            "max",
            "x",
            timed=True,
        )
        for run in runs
    ]
    return Report("expert_source", runs, targets, [f"{ROUNDS} rounds of {count} experts, medians"])


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
