"""Expert kernels on an accelerator: plain torch, torch's grouped GEMM and vLLM's fused kernel.

A whole call of a shard's kernel is timed, with the rows' way to the device and the sums' way back;
`weights_gb_per_s` are the used experts' weights, read once, over that time. Without an accelerator
it says so and measures nothing.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from actors.experts.formats.base import NumberFormat
from actors.experts.formats.table import FORMATS
from actors.experts.spec import Activation, ExpertSpec
from actors.kernels import torch_grouped, vllm_cuda_fused
from actors.kernels.accelerator import AcceleratorFeatures, detect_accelerator_features
from actors.kernels.base import ExpertOperator
from actors.kernels.calibration import random_expert
from actors.kernels.choose import choose_operator
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.target import DeviceKind, find_target
from actors.kernels.torch_grouped import TorchGrouped
from actors.kernels.torch_portable import TorchPortable
from benchmarks.harness.report import Report, Target, run_benchmark

TOP_K = 8
WARM_CALLS = 3
ROUND_S = 0.5
LEAST_CALLS = 5

# (experts held, hidden, intermediate) as in Qwen3-30B-A3B, and a shard of DeepSeek-V3's.
SIZES = {"qwen3-30b": (128, 2048, 768), "deepseek-v3": (32, 7168, 2048)}
QUICK_SIZES = {"small": (16, 1024, 512)}
ROWS = (1, 16, 128, 1024)
GOAL = 1.0


def measure(arguments: argparse.Namespace) -> Report:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not torch.accelerator.is_available():
        return Report("accelerator", [], [], ["no accelerator here: nothing to measure"])
    features = detect_accelerator_features(accelerator)
    runs, targets = [], []
    for name, size in (QUICK_SIZES if arguments.quick else SIZES).items():
        for weight_format in FORMATS:
            spec = spec_of(*size, weight_format)
            case = f"{name} {weight_format.name}"
            times = measure_kernels(spec, accelerator, features)
            runs += [{"experts": case} | run for found in times.values() for run in found]
            targets += target_of(case, times, type(choose_operator(spec, accelerator)).__name__)
    return Report("accelerator", runs, targets, [f"device: {features.name}, top-{TOP_K}"])


def measure_kernels(
    spec: ExpertSpec, device: torch.device, features: AcceleratorFeatures
) -> dict[str, list[dict[str, Any]]]:
    """Operator's name -> a run for each number of rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for operator in operators(spec, device, features):
        kernel, name = filled(spec, operator), type(operator).__name__
        found[name] = []
        for rows in ROWS:
            call_s, weight_bytes = time_calls(kernel, spec, rows)
            found[name].append({
                "kernel": name, "rows": rows, "call_us": call_s * 1e6,
                "weights_gb_per_s": weight_bytes / call_s / 1e9,
            })  # fmt: skip
    return found


def target_of(case: str, times: dict[str, list[dict[str, Any]]], chosen: str) -> list[Target]:
    """The chosen kernel is no slower than any other, all numbers of rows together."""
    total = {name: sum(run["call_us"] for run in found) for name, found in times.items()}
    others = [time_us for name, time_us in total.items() if name != chosen]
    if not others:
        return []
    ratio = total[chosen] / min(others)
    return [Target(f"{case}: {chosen} / the best other kernel", ratio, GOAL, "max", "x")]


def spec_of(held: int, hidden: int, intermediate: int, weight_format: NumberFormat) -> ExpertSpec:
    return ExpertSpec(
        architecture="random experts",
        model_path=Path(),
        layers=(0,),
        num_experts=held,
        top_k=TOP_K,
        hidden_size=hidden,
        intermediate_size=intermediate,
        weight_format=weight_format,
        activation=Activation(),
    )


def operators(
    spec: ExpertSpec, device: torch.device, features: AcceleratorFeatures
) -> Iterator[ExpertOperator]:
    """Every one that computes `spec` on `device`."""
    yield TorchPortable(spec, device)
    target = find_target(device, features)
    if target.kind is not DeviceKind.NVIDIA:
        return
    if torch_grouped.supports(spec) and spec.weight_format in torch_grouped.FORMATS:
        yield TorchGrouped(spec, device)
    if vllm_cuda_fused.why_not(spec, target) is None:
        yield choose_operator(spec, device, features)


def filled(spec: ExpertSpec, operator: ExpertOperator) -> SlotKernel:
    expert = random_expert(spec)
    kernel = SlotKernel(spec, operator, lambda _layer, _expert: expert)
    kernel.load(0, list(range(spec.num_experts)))
    return kernel


def time_calls(kernel: SlotKernel, spec: ExpertSpec, rows: int) -> tuple[float, float]:
    """(median seconds of a call, bytes of the weights it uses)."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, spec.hidden_size, generator=generator).bfloat16()
    scores = torch.rand(rows, spec.num_experts, generator=generator)
    ids = scores.topk(TOP_K).indices.flatten().int()
    index = torch.arange(rows, dtype=torch.int32).repeat_interleave(TOP_K)
    weights = torch.rand(len(ids), generator=generator)
    out = torch.empty(rows, spec.hidden_size)
    for _ in range(WARM_CALLS):
        kernel.compute(0, x, index, ids, weights, out)
    times: list[float] = []
    end_s = time.perf_counter() + ROUND_S
    while time.perf_counter() < end_s or len(times) < LEAST_CALLS:
        start_s = time.perf_counter()
        kernel.compute(0, x, index, ids, weights, out)
        times.append(time.perf_counter() - start_s)
    used = len(set(ids.tolist()))
    return sorted(times)[len(times) // 2], used * kernel.bytes_per_expert


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
