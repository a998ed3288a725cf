"""How fast a device computes this model's experts: what the first plan counts on.

Measured, not looked up: random weights of the model's own shapes and format in the kernel that will
serve, so nothing is read from the checkpoint and no expert need be loaded. A call is modelled as
constant + slope * assignments and fitted to the fastest of a few calls at each of a few sizes; the
fastest, since other work on the machine only ever adds time.
"""

import time
from dataclasses import dataclass

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.spec import ExpertSpec, WeightFormat
from actors.kernels.accelerator import AcceleratorFeatures
from actors.kernels.base import ExpertKernel
from actors.kernels.choose import choose_operator
from actors.kernels.native_ops import CpuFeatures
from actors.kernels.slot_kernel import SlotKernel

BATCH_SIZES = (1, 8, 32, 128)
REPEATS = 5
BUDGET_S = 0.8
REFERENCE_BATCH = 64  # assignments in one call, as in decoding with a few dozen requests

# Experts measured with: enough to differ from one cached expert, few enough to pack at once.
MAX_EXPERTS = 8
MAX_WEIGHT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class KernelSpeed:
    """A call takes constant_s + per_token_s * assignments."""

    constant_s: float
    per_token_s: float

    @property
    def tokens_per_s(self) -> float:
        """Assignments per second in calls of REFERENCE_BATCH of them."""
        return REFERENCE_BATCH / (self.constant_s + self.per_token_s * REFERENCE_BATCH)


def measure_speed(
    spec: ExpertSpec,
    device: torch.device,
    features: CpuFeatures | AcceleratorFeatures | None = None,
) -> KernelSpeed:
    """Speed of the kernel `choose_kernel` gives for `spec` on `device`. Takes about a second."""
    operator = choose_operator(spec, device, features)
    expert = random_expert(spec)
    kernel = SlotKernel(spec, operator, read=lambda _layer, _expert: expert)
    fitting = max(2, MAX_WEIGHT_BYTES // kernel.bytes_per_expert)
    experts = list(range(min(spec.num_experts, MAX_EXPERTS, fitting)))
    kernel.load(spec.layers[0], experts)
    return measure_kernel(kernel, spec.hidden_size, spec.layers[0], experts)


def measure_kernel(
    kernel: ExpertKernel, hidden_size: int, layer: int, experts: list[int]
) -> KernelSpeed:
    """Speed of a kernel that holds `experts` of `layer`, each getting an equal share of rows."""
    started = time.perf_counter()
    timed: list[tuple[int, float]] = []
    for size in BATCH_SIZES:
        rows = torch.randn(size, hidden_size).bfloat16()
        index = torch.arange(size, dtype=torch.int32)
        ids = torch.tensor(experts, dtype=torch.int32)[index % len(experts)]
        weights = torch.ones(size)
        # The first call sets up scratch memory and, in Triton, compiles: that is not on the clock.
        before = time.perf_counter()
        kernel.compute(layer, rows, index, ids, weights)
        started += time.perf_counter() - before
        fastest = float("inf")
        for _ in range(REPEATS):
            before = time.perf_counter()
            kernel.compute(layer, rows, index, ids, weights)
            fastest = min(fastest, time.perf_counter() - before)
            spent = time.perf_counter() - started
            if spent > BUDGET_S:
                break
        timed.append((size, fastest))
        if spent > BUDGET_S / 2 and len(timed) > 1:
            break
    return fit(timed)


def fit(timed: list[tuple[int, float]]) -> KernelSpeed:
    """Least squares of relative errors through (assignments, seconds), at least two; the constant
    is never negative and the slope always positive."""
    sizes = torch.tensor([size for size, _ in timed], dtype=torch.float64)
    seconds = torch.tensor([second for _, second in timed], dtype=torch.float64)
    design = torch.stack([torch.ones_like(sizes), sizes], 1) / seconds.unsqueeze(1)
    solution = torch.linalg.lstsq(design, torch.ones(len(timed), 1, dtype=torch.float64)).solution
    constant, slope = (float(value) for value in solution.flatten())
    if constant < 0 or slope <= 0:
        size, second = timed[-1]
        return KernelSpeed(0.0, second / size)
    return KernelSpeed(constant, slope)


def random_expert(spec: ExpertSpec) -> ExpertTensors:
    """Native tensors of no particular values, of the shapes and format of `spec`."""
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    w13, w13_scale = _random_matrix(spec.weight_format, intermediate, hidden)
    w2, w2_scale = _random_matrix(spec.weight_format, hidden, intermediate)
    return ExpertTensors(
        w13=torch.cat([w13, w13]),
        w2=w2,
        w13_scale=None if w13_scale is None else torch.cat([w13_scale, w13_scale]),
        w2_scale=w2_scale,
        w13_bias=torch.zeros(2 * intermediate, dtype=torch.bfloat16) if spec.has_bias else None,
        w2_bias=torch.zeros(hidden, dtype=torch.bfloat16) if spec.has_bias else None,
    )


def _random_matrix(
    weight_format: WeightFormat, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    match weight_format:
        case WeightFormat.BF16:
            return torch.randn(rows, columns).bfloat16(), None
        case WeightFormat.FP8_BLOCK128:
            blocks = torch.full((-(-rows // 128), -(-columns // 128)), 0.01)
            return torch.randn(rows, columns).to(torch.float8_e4m3fn), blocks
        case WeightFormat.MXFP4:
            packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
            return packed, torch.full((rows, columns // 32), 120, dtype=torch.uint8)
