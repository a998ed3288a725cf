"""Operators on a real NVIDIA device. Tolerances are those of `test_operators.py`."""

import pytest
import torch

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.kernels import vllm_cuda_fused
from actors.kernels.accelerator import detect_accelerator_features
from actors.kernels.calibration import measure_cost
from actors.kernels.choose import choose_operator
from actors.kernels.target import Target
from actors.kernels.torch_grouped import TorchGrouped
from actors.kernels.torch_portable import TorchPortable
from actors.kernels.vllm_cuda_fused import VllmCudaFused
from tests.actors.kernels.building import (
    CLAMPED,
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_kernel,
    make_spec,
)
from tests.actors.kernels.reference import reference

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device and a CUDA build of torch"
)

FP8 = FP8_BLOCK128
CUDA = torch.device("cuda")
NUM_EXPERTS = 16
HIDDEN, INTER = 512, 256
TOLERANCE = 0.02
FP8_ROWS_TOLERANCE = 0.1

BATCHES = {
    "one": [(0, 3)],
    "decode": [(row, (row * 5 + k) % NUM_EXPERTS) for row in range(8) for k in range(4)],
    "skewed": [(row, 2) for row in range(300)] + [(7, 9)],
    "prefill": [(row, (row * 7 + k * 3) % NUM_EXPERTS) for row in range(200) for k in range(4)],
}
EVERY = [(form, act) for form in (BF16, FP8, MXFP4) for act in (SILU, CLAMPED, GPT_OSS)]


def spec_of(weight_format, activation):
    return make_spec(weight_format, activation, HIDDEN, INTER, NUM_EXPERTS)


def check(operator, spec, ids, tolerance):
    experts = make_experts(spec)
    kernel = make_kernel(spec, operator, experts)
    kernel.load(0, list(reversed(range(NUM_EXPERTS))))
    batch = make_batch(max(row for row, _ in ids) + 2, HIDDEN, ids)
    sums = kernel.compute(0, *batch)
    assert sums.device.type == "cpu"
    expected, norms = reference(experts, spec.activation, batch)
    assert ((sums - expected).norm(dim=1) <= tolerance * norms).all()
    assert not sums[-1].any()
    assert torch.equal(kernel.compute(0, *batch), sums)


@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(("weight_format", "activation"), EVERY)
@pytest.mark.parametrize("make", [TorchGrouped, TorchPortable])
def test_close_to_fp32(make, weight_format, activation, ids):
    spec = spec_of(weight_format, activation)
    check(make(spec, CUDA), spec, ids, TOLERANCE)


@pytest.mark.parametrize("weight_format", [FP8, MXFP4])
def test_a_small_scratch_agrees(weight_format):
    """Fewer groups at a time may mean other tiles, hence another order of fp32 additions."""
    spec = spec_of(weight_format, SILU)
    experts = make_experts(spec)
    sums = []
    for scratch_bytes in (1 << 30, 3 * 2 * 2 * INTER * HIDDEN):
        kernel = make_kernel(spec, TorchGrouped(spec, CUDA, scratch_bytes), experts)
        kernel.load(0, list(range(NUM_EXPERTS)))
        sums.append(kernel.compute(0, *make_batch(200, HIDDEN, BATCHES["prefill"])))
    assert (sums[0] - sums[1]).norm() <= 1e-3 * sums[0].norm()


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] not in (9, 10),
    reason="torch's grouped GEMM copies sizes to the host on devices before and after",
)
@pytest.mark.parametrize("weight_format", [BF16, FP8, MXFP4])
def test_nothing_waits_for_the_device(weight_format):
    spec = spec_of(weight_format, GPT_OSS)
    operator = TorchGrouped(spec, CUDA)
    one = operator.pack(make_experts(spec)[0])
    held = one.map(lambda tensor: torch.stack([tensor] * 4))
    rows = torch.randn(6, HIDDEN, device=CUDA).bfloat16()
    slots = torch.tensor([3, 0, 0, 3, 1, 3], dtype=torch.int32, device=CUDA)
    weights = torch.rand(6, device=CUDA)
    operator.run(held, rows, slots, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        operator.run(held, rows, slots, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def fused_or_skip(spec):
    features = detect_accelerator_features(CUDA)
    reason = vllm_cuda_fused.why_not(spec, Target(CUDA, features))
    if reason is not None:
        pytest.skip(f"vLLM's fused kernel does not run on {features.name}: {reason}")
    return VllmCudaFused(spec, CUDA)


@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize(
    ("weight_format", "activation", "tolerance"),
    [(BF16, SILU, TOLERANCE), (BF16, GPT_OSS, TOLERANCE), (FP8, SILU, FP8_ROWS_TOLERANCE)],
)
def test_vllms_kernel_is_close_to_fp32(weight_format, activation, tolerance, ids):
    spec = spec_of(weight_format, activation)
    check(fused_or_skip(spec), spec, ids, tolerance)


@pytest.mark.parametrize(("weight_format", "activation"), EVERY)
def test_what_is_chosen_computes(weight_format, activation):
    spec = spec_of(weight_format, activation)
    operator = choose_operator(spec, CUDA)
    tolerance = FP8_ROWS_TOLERANCE if "rows rounded to fp8" in operator.describe() else TOLERANCE
    check(operator, spec, BATCHES["decode"], tolerance)


def test_measures_its_speed():
    cost = measure_cost(spec_of(BF16, SILU), CUDA)
    assert cost.row_s > 0
