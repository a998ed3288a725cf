"""Rows and weights on their way to an accelerator: from pageable and from pinned memory, one batch
after the other and overlapping.

  pageable    plain copies; each batch waits for its sums
  pinned      through slots of pinned memory; each batch waits for its sums
  overlapping a batch is started before the one before is finished, as a shard's server does

`weights_gb_per_s` of a load: experts packed on the device, from memory of the host, while nothing
else runs, and the part of a call's speed that is left while it goes on. Without an accelerator it
says so and measures nothing.
"""

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from actors.experts.formats.bf16 import BF16
from actors.experts.spec import ExpertSpec
from actors.kernels.base import StartedCall
from actors.kernels.calibration import random_expert
from actors.kernels.choose import choose_operator
from actors.kernels.copies import DeviceCopies
from actors.kernels.slot_kernel import SlotKernel
from benchmarks.accelerator import QUICK_SIZES, SIZES, TOP_K, spec_of
from benchmarks.harness.report import Report, Target, run_benchmark

BATCHES = 8
"""In a row, as a busy server finds them waiting."""
ROUNDS = 7
ROWS = (16, 128, 1024)
LAYERS = (0, 1)

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def measure(arguments: argparse.Namespace) -> Report:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return Report("accelerator_copies", [], [], ["no accelerator here: nothing to measure"])
    sizes = QUICK_SIZES if arguments.quick else SIZES
    runs, targets, notes = [], [], [f"device: {accelerator}"]
    for name, size in sizes.items():
        found, problem = measure_model(name, spec_of(*size, BF16), accelerator, ROWS)
        runs += found
        targets += targets_of(name, found)
        notes += [problem] if problem else []
    return Report("accelerator_copies", runs, targets, notes)


def measure_model(
    name: str, spec: ExpertSpec, device: torch.device, rows: Sequence[int], rounds: int = ROUNDS
) -> tuple[list[dict[str, Any]], str]:
    """A run for each number of rows, and why the device copies plainly; "" where it does not."""
    staged, plain = DeviceCopies.of(device), DeviceCopies()
    kernels = {True: filled(spec, device, staged), False: filled(spec, device, plain)}
    runs = []
    for count in rows:
        batches = [batch_of(spec, count, seed) for seed in range(BATCHES)]
        run: dict[str, Any] = {"experts": name, "rows": count}
        run["pageable_us"] = time_batches(lambda b=batches: in_turn(kernels[False], b), rounds)
        if staged.rows is not None:
            run["pinned_us"] = time_batches(lambda b=batches: in_turn(kernels[True], b), rounds)
            run["overlapping_us"] = time_batches(
                lambda b=batches: overlapping(kernels[True], b), rounds
            )
        for kind, kernel in (("pageable", kernels[False]), ("pinned", kernels[True])):
            if kind == "pageable" or staged.rows is not None:
                run |= load_beside(kernel, kind, batches[0], run[f"{kind}_us"])
        runs.append(run)
    return runs, staged.problem.removeprefix(", ")


def targets_of(name: str, runs: list[dict[str, Any]]) -> list[Target]:
    """Nothing is slower for it, all numbers of rows together."""
    if not all("overlapping_us" in run for run in runs):
        return []
    total = {key: sum(run[key] for run in runs) for key in runs[0] if key.endswith("_us")}
    pinned, overlapping_us = total["pinned_us"], total["overlapping_us"]
    return [
        Target(f"{name}: pinned / pageable", pinned / total["pageable_us"], 1.0, "max", "x", True),
        Target(f"{name}: overlapping / pinned", overlapping_us / pinned, 1.0, "max", "x", True),
    ]


def filled(spec: ExpertSpec, device: torch.device, copies: DeviceCopies) -> SlotKernel:
    expert = random_expert(spec)
    operator = choose_operator(spec, device)
    kernel = SlotKernel(spec, operator, lambda _layer, _expert: expert, copies=copies)
    kernel.load(LAYERS[0], list(range(spec.num_experts)))
    return kernel


def batch_of(spec: ExpertSpec, rows: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, spec.hidden_size, generator=generator).bfloat16()
    scores = torch.rand(rows, spec.num_experts, generator=generator)
    ids = scores.topk(min(TOP_K, spec.num_experts)).indices.flatten().int()
    index = torch.arange(rows, dtype=torch.int32).repeat_interleave(len(ids) // rows)
    return x, index, ids, torch.rand(len(ids), generator=generator)


def in_turn(kernel: SlotKernel, batches: Sequence[Batch]) -> None:
    for batch in batches:
        kernel.compute(LAYERS[0], *batch, torch.empty(batch[0].shape))


def overlapping(kernel: SlotKernel, batches: Sequence[Batch]) -> None:
    before: StartedCall | None = None
    for batch in batches:
        started = kernel.start(LAYERS[0], *batch, torch.empty(batch[0].shape))
        if before is not None:
            before.finish()
        before = started
    if before is not None:
        before.finish()


def time_batches(run: Callable[[], None], rounds: int) -> float:
    """Median microseconds of a batch."""
    run()
    times = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        run()
        times.append(time.perf_counter() - start_s)
    return sorted(times)[len(times) // 2] / BATCHES * 1e6


def load_beside(kernel: SlotKernel, kind: str, batch: Batch, alone_us: float) -> dict[str, float]:
    """Loads of another layer, alone and beside calls, which go on in this thread."""
    experts = list(range(len(kernel._store.layer(LAYERS[0]).map.experts)))
    num_bytes = len(experts) * kernel.bytes_per_expert
    start_s = time.perf_counter()
    kernel.load(LAYERS[1], experts)
    load_s = time.perf_counter() - start_s
    kernel.load(LAYERS[1], [])
    loading = threading.Thread(target=kernel.load, args=(LAYERS[1], experts))
    start_s, calls = time.perf_counter(), 0
    loading.start()
    while loading.is_alive() or not calls:
        in_turn(kernel, [batch])
        calls += 1
    call_us = (time.perf_counter() - start_s) / calls * 1e6
    loading.join()
    kernel.load(LAYERS[1], [])
    return {
        f"{kind}_weights_gb_per_s": num_bytes / load_s / 1e9,
        f"{kind}_speed_while_loading": alone_us / call_us,
    }


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
