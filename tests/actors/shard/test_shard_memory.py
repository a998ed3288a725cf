"""A shard takes the memory of the experts it holds and a constant, however often they change."""

import math
import multiprocessing as mp
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from actors.descriptions import EXPERT
from actors.process import thread_environment
from actors.shard.shard import ExpertShard, ShardConfig
from benchmarks.harness.child_process import environment
from benchmarks.memory import CHECKPOINT, memory_by_kind, status_sizes
from tests.actors.experts.tiny import Shape, cases, write

SHAPE = Shape(layers=2, experts=16, hidden=1024, inter=512)
CASE = next(case for case in cases(SHAPE) if case.name == "qwen3-bf16")
SLOTS = [(layer, expert) for layer in CASE.layers for expert in range(SHAPE.experts)]
EXPERT_BYTES = 3 * SHAPE.hidden * SHAPE.inter * 2
# What malloc keeps, threads, modules imported late: measured 1 to 4 MB, and up to 30 MB while
# experts are read and packed. The weights are 100 MB.
KEPT_BYTES, PEAK_BYTES = 24e6, 60e6
NO_LIMIT_BYTES = 1 << 62


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    write(path, CASE.config, CASE.tensors(CASE.truth(SHAPE)), files=2)
    return path


def hold_exactly(shard: ExpertShard, slots: Iterable[tuple[int, int]]) -> int:
    """Have it drop what is not among these (layer, expert), then load the others, at any speed.

    Returns bytes resident.
    """
    wanted = frozenset((EXPERT, layer, expert) for layer, expert in slots)
    held = shard.describe().held
    term, number = held.order
    shard.retire((term, number + 1), held.holdings - wanted)
    said = shard.prepare((term, number + 2), wanted, NO_LIMIT_BYTES, math.inf)
    if said.held.failure:
        raise RuntimeError(said.held.failure)
    return said.memory_bytes


def _shard(config: ShardConfig, orders: Connection) -> None:
    shard = ExpertShard(config, b"a test's secret")
    shard.start()
    orders.send(0)
    with ThreadPoolExecutor(1) as ray_calls_in_a_thread:
        while (slots := orders.recv()) is not None:
            orders.send(ray_calls_in_a_thread.submit(hold_exactly, shard, slots).result())
    shard.stop()


def _mapper(file: Path, orders: Connection) -> None:
    with safe_open(file, "pt") as tensors:
        total = sum(float(tensors.get_tensor(name).sum()) for name in tensors.keys())  # noqa: SIM118
        orders.send(total)
        orders.recv()


@contextmanager
def child(target: Any, argument: Any) -> Iterator[tuple[int, Connection]]:
    """A process that runs target(argument, orders), once it has said that it is up."""
    here, there = (spawn := mp.get_context("spawn")).Pipe()
    process = spawn.Process(target=target, args=(argument, there), daemon=True)
    with environment(thread_environment(1)):
        process.start()
    there.close()
    try:
        here.recv()
        yield process.pid or 0, here
    finally:
        process.kill()
        process.join()
        here.close()


@contextmanager
def shard_process(checkpoint: Path, folder: Path) -> Iterator[tuple[int, Connection]]:
    listen = (f"unix:{folder}/s",)
    config = ShardConfig("s0", "pool", str(checkpoint), "cpu", 1, listen, log_level="WARNING")
    with child(_shard, config) as started:
        yield started


def load(orders: Connection, slots: list[tuple[int, int]]) -> int:
    orders.send(slots)
    resident: int = orders.recv()
    return resident


def test_a_load_leaves_the_weights_and_no_more(checkpoint: Path, tmp_path: Path) -> None:
    with shard_process(checkpoint, tmp_path) as (pid, orders):
        before = status_sizes(pid)
        resident = load(orders, SLOTS)
        after = status_sizes(pid)
        assert resident == len(SLOTS) * EXPERT_BYTES
        assert 0.9 * resident < after["anonymous"] - before["anonymous"] < resident + KEPT_BYTES
        assert after["peak"] - before["resident"] < resident + PEAK_BYTES
        assert memory_by_kind(pid)[CHECKPOINT] == 0


def test_changing_experts_leave_no_holes(checkpoint: Path, tmp_path: Path) -> None:
    chosen = random.Random(0)
    with shard_process(checkpoint, tmp_path) as (pid, orders):
        before = status_sizes(pid)
        for _ in range(12):
            slots = [slot for slot in SLOTS if chosen.random() < chosen.choice((0.3, 0.6, 0.9))]
            resident = load(orders, slots)
        grown = status_sizes(pid)["anonymous"] - before["anonymous"]
        assert grown < resident + KEPT_BYTES


def test_mapped_checkpoints_are_told_apart(checkpoint: Path) -> None:
    """Else the first test would hold for any shard."""
    file = next(checkpoint.glob("*.safetensors"))
    with child(_mapper, file) as (pid, _):
        assert memory_by_kind(pid)[CHECKPOINT] > 0.9 * file.stat().st_size
