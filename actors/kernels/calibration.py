"""What a call costs this device: what the planner and the dispatchers count on.

Measured, not looked up: random weights of the model's own shapes and format in the kernel that will
serve, so nothing is read from the checkpoint and no expert need be loaded. Calls differ in distinct
experts and, apart from that, in rows; the fastest of a few of each is fitted, since other work on
the machine only ever adds time. Successive calls use different layers, as in serving, so that
weights come from memory and not from a cache.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.spec import ExpertSpec
from actors.kernels.accelerator import AcceleratorFeatures
from actors.kernels.base import ExpertKernel, ExpertOperator
from actors.kernels.choose import build
from actors.kernels.native_ops import CpuFeatures
from actors.kernels.slot_kernel import SlotKernel
from placement.cost_model import DeviceCost, fit_cost

ROWS_OF_EACH = ((False, 1), (True, 1), (True, 16), (False, 32), (True, 4), (True, 64))
"""Calls to time: with all experts or with one, and rows of each. Three are enough for a fit."""
REPEATS = 5
BUDGET_S = 0.8

MAX_EXPERTS = 8
"""Distinct experts in a call: enough to tell reading them from starting the call."""
MAX_WEIGHT_BYTES = 96 << 20
"""Weights measured with, in all layers: more than caches hold, few enough to pack at once."""
LEAST_ROW_PART = 0.01
"""Part of the largest call that its rows take at least, where nothing can be measured of them."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A kernel that holds random `experts`, two or more, in each of `layers`."""

    kernel: ExpertKernel
    hidden_size: int
    layers: tuple[int, ...]
    experts: list[int]


def measure_cost(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
    kernel: str | None = None,
) -> DeviceCost:
    """Cost of calls to the kernel that `choose_kernel` gives for `spec` on `device`.

    Takes about a second, and `MAX_WEIGHT_BYTES` or two experts.
    """
    return measure_probe(make_probe(spec, build(spec, device, features, kernel)))


def make_probe(spec: ExpertSpec, built: SlotKernel | ExpertOperator) -> Probe:
    """What the kernel that `build` of `choose` gave is measured with: experts of the model's own
    shapes and format; those of the checkpoint where only vLLM can read them."""
    if isinstance(built, SlotKernel):
        kernel = built
    else:
        expert = random_expert(spec)
        kernel = SlotKernel(spec, built, read=lambda _layer, _expert: expert)
    fitting = max(2, MAX_WEIGHT_BYTES // kernel.bytes_per_expert)
    experts = list(range(min(spec.num_experts, MAX_EXPERTS, fitting)))
    layers = spec.layers[: max(1, fitting // len(experts))]
    for layer in layers:
        kernel.load(layer, experts)
    return Probe(kernel, spec.hidden_size, layers, experts)


def measure_probe(probe: Probe, clock_s: Callable[[], float] = time.perf_counter) -> DeviceCost:
    """Cost of calls to the probe's kernel."""
    timer = CallTimer(probe, BUDGET_S, clock_s)
    timed: list[tuple[int, int, float]] = []
    for all_of_them, rows_of_each in ROWS_OF_EACH:
        experts = len(probe.experts) if all_of_them else 1
        timed.append((experts, experts * rows_of_each, timer.fastest_s(experts, rows_of_each)))
        if timer.spent_s > BUDGET_S / 2 and len(timed) > 2:
            break
    return cost_of(timed)


class CallTimer:
    """Times calls of a probe's kernel; spent_s: on its clock since it was made."""

    def __init__(
        self, probe: Probe, budget_s: float, clock_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self.spent_s = 0.0
        self._probe = probe
        self._budget_s = budget_s
        self._clock_s = clock_s
        self._started_s = clock_s()
        self._calls = 0

    def fastest_s(self, experts: int, rows_of_each: int) -> float:
        """Of `REPEATS` calls of so many experts and rows; fewer where the budget is spent."""
        kernel, layers, size = self._probe.kernel, self._probe.layers, experts * rows_of_each
        rows = torch.randn(size, self._probe.hidden_size).bfloat16()
        index = torch.arange(size, dtype=torch.int32)
        ids = torch.tensor(self._probe.experts[:experts], dtype=torch.int32)[index % experts]
        weights = torch.ones(size)
        # The first call sets up scratch memory and, in Triton, compiles: that is not on the clock.
        before = self._clock_s()
        kernel.compute(layers[0], rows, index, ids, weights)
        self._started_s += self._clock_s() - before
        fastest = float("inf")
        for _ in range(REPEATS):
            self._calls += 1
            before = self._clock_s()
            kernel.compute(layers[self._calls % len(layers)], rows, index, ids, weights)
            fastest = min(fastest, self._clock_s() - before)
            self.spent_s = self._clock_s() - self._started_s
            if self.spent_s > self._budget_s:
                break
        return fastest


def cost_of(timed: list[tuple[int, int, float]]) -> DeviceCost:
    """Fit of (distinct experts, rows, seconds); rows count a little even if they seem free."""
    experts, rows, seconds = zip(*timed, strict=True)
    try:
        return fit_cost(experts, rows, seconds)
    except ValueError:
        return DeviceCost(min(seconds), 0.0, LEAST_ROW_PART * max(seconds) / max(rows))


def random_expert(spec: ExpertSpec) -> ExpertTensors:
    """Native tensors of no particular values, of the shapes and format of `spec`."""
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    w13, w13_scale = spec.weight_format.sample(intermediate, hidden)
    w2, w2_scale = spec.weight_format.sample(hidden, intermediate)
    return ExpertTensors(
        w13=torch.cat([w13, w13]),
        w2=w2,
        w13_scale=None if w13_scale is None else torch.cat([w13_scale, w13_scale]),
        w2_scale=w2_scale,
        w13_bias=torch.zeros(2 * intermediate, dtype=torch.bfloat16) if spec.has_bias else None,
        w2_bias=torch.zeros(hidden, dtype=torch.bfloat16) if spec.has_bias else None,
    )
