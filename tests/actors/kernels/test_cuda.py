"""Operators on a real NVIDIA device. Tolerances are those of `test_operators.py`."""

import threading

import pytest
import torch

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.kernels import vllm_cuda_fused
from actors.kernels.accelerator import detect_accelerator_features
from actors.kernels.calibration import measure_cost
from actors.kernels.choose import choose_operator
from actors.kernels.copies import DeviceCopies
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.streams import streams_of
from actors.kernels.target import Target
from actors.kernels.torch_grouped import TorchGrouped
from actors.kernels.torch_portable import TorchPortable
from actors.kernels.vllm_cuda_fused import VllmCudaFused
from actors.kernels.weight_staging import WeightStaging
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


@pytest.fixture(scope="module")
def copying():
    """A kernel whose copies go through pinned memory, and one whose copies are plain."""
    spec = spec_of(BF16, SILU)
    experts = make_experts(spec)
    kernels = [
        SlotKernel(spec, TorchPortable(spec, CUDA), lambda _, number: experts[number], copies=how)
        for how in (DeviceCopies.of(CUDA), DeviceCopies())
    ]
    for kernel in kernels:
        kernel.load(0, list(range(NUM_EXPERTS)))
    assert kernels[0].overlaps, kernels[0].describe()
    assert not kernels[1].overlaps
    return kernels


@pytest.mark.parametrize("ids", BATCHES.values(), ids=BATCHES)
def test_copies_that_overlap_give_the_same_bits(copying, ids):
    """Many in a row, each started before the one before is finished, its arguments written over."""
    staged, plain = copying
    before = []
    for seed in range(40):
        batch = make_batch(max(row for row, _ in ids) + 2, HIDDEN, ids, seed=seed)
        wanted, sums = plain.compute(0, *batch), torch.full(batch[0].shape, torch.nan)
        before.append((staged.start(0, *batch, sums), sums, wanted))
        for tensor in batch:
            tensor.zero_()
        if len(before) == 2:
            call, found, right = before.pop(0)
            call.finish()
            assert torch.equal(found, right)
    before[0][0].finish()
    assert torch.equal(before[0][1], before[0][2])


def test_a_start_does_not_wait_for_the_device(copying):
    """Else nothing would overlap."""
    staged, _ = copying
    batch = make_batch(200, HIDDEN, BATCHES["prefill"])
    sums = torch.empty(batch[0].shape)
    for started in [staged.start(0, *batch, sums) for _ in range(2)]:
        started.finish()  # both slots have their memory now
    busy = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)  # a tenth of a second or so
    busy.record()
    slot = staged.copies.rows.take(4, HIDDEN, 4, 1)
    slot.send(batch[0][:4], torch.zeros(3, 4, dtype=torch.int32), torch.zeros(1, 4).int())
    slot.fetch(torch.zeros(4, HIDDEN, device=CUDA))
    assert not busy.query(), "the host waited for what the device did before"
    slot.wait(torch.empty(4, HIDDEN))
    assert busy.query()


def test_experts_that_come_and_go_beside_calls(copying):
    """Loads on their own stream, again and again, while another thread calls."""
    staged, plain = copying
    batch = make_batch(10, HIDDEN, BATCHES["decode"])
    wanted = plain.compute(0, *batch)
    ended = threading.Event()

    def load() -> None:
        everybody = list(range(NUM_EXPERTS))
        for number in range(30):
            staged.load(0, everybody[number % NUM_EXPERTS :] + everybody[: number % NUM_EXPERTS])
            staged.load(1, everybody)
            staged.load(1, [])
        ended.set()

    loading = threading.Thread(target=load)
    loading.start()
    calls = 0
    while not ended.is_set() or calls < 100:
        assert torch.equal(staged.compute(0, *batch), wanted)
        calls += 1
    loading.join()


def test_weights_are_copied_bit_by_bit():
    spec = spec_of(MXFP4, SILU)
    streams, reason = streams_of(CUDA)
    assert streams is not None, reason
    staging, side = WeightStaging(streams, buffer_bytes=4096), streams.stream()
    for expert in make_experts(spec).values():
        with side:
            there = staging.to_device(expert)
            side.record_event().synchronize()
        for sent, arrived in zip(expert.tensors(), there.tensors(), strict=True):
            assert torch.equal(arrived.cpu().view(torch.uint8), sent.view(torch.uint8))


def test_measures_its_speed():
    cost = measure_cost(spec_of(BF16, SILU), CUDA)
    assert cost.row_s > 0
