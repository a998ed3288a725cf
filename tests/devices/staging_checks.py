"""Copies that run beside computing: what holds of the rows' and weights' way on any device that has
streams and pinned memory. Functions that raise; `contract` runs them.

On the stand-in copies come as late as they may (`standin_streams`), so that a wait that is left out
shows; on a real device they come when they come.
"""

from dataclasses import replace

import pytest
import torch

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.mxfp4 import MXFP4
from actors.kernels.choose import choose_operator
from actors.kernels.copies import DeviceCopies
from actors.kernels.row_staging import SLOTS, RowStaging
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.streams import streams_of
from actors.kernels.weight_staging import WeightStaging
from benchmarks.accelerator import spec_of
from benchmarks.accelerator_copies import measure_model, targets_of
from tests.actors.kernels.building import SILU, make_batch, make_experts, make_spec

ROWS = 40
IDS = [(row, (5 * row + k) % 6) for row in range(ROWS) for k in range(2)]
MANY_BYTES = 64 << 20


def kernel_with(device: torch.device, copies: DeviceCopies) -> SlotKernel:
    spec = make_spec(BF16, SILU, 128, 64)
    experts = make_experts(spec)
    kernel = SlotKernel(
        spec, choose_operator(spec, device), lambda _, expert: experts[expert], copies=copies
    )
    kernel.load(0, list(range(spec.num_experts)))
    return kernel


def batch(seed: int, rows: int = ROWS) -> tuple[torch.Tensor, ...]:
    """Rows, their indices, experts and weights: others for each seed."""
    return make_batch(rows, 128, [(row % rows, expert) for row, expert in IDS], seed=seed)


def have_streams(device: torch.device) -> bool:
    return streams_of(device)[0] is not None


def check_calls_that_overlap_give_the_same_bits(device: torch.device) -> None:
    """Started in pairs, with arguments that are written over as soon as they are started."""
    plain = kernel_with(device, DeviceCopies())
    kernel = kernel_with(device, DeviceCopies.of(device))
    if not kernel.overlaps:
        return
    before = None
    for seed in range(6):
        given = batch(seed)
        wanted, sums = plain.compute(0, *given), torch.full((ROWS, 128), torch.nan)
        started = kernel.start(0, *given, sums)
        for tensor in given:
            tensor.zero_()
        if before is not None:
            call, out, right = before
            call.finish()
            assert torch.equal(out, right)
        before = started, sums, wanted
    assert before is not None
    before[0].finish()
    assert torch.equal(before[1], before[2])


def check_more_calls_than_slots_are_served(device: torch.device) -> None:
    kernel, given = kernel_with(device, DeviceCopies.of(device)), batch(1)
    wanted = kernel.compute(0, *given)
    if not kernel.overlaps:
        return
    sums = [torch.full((ROWS, 128), torch.nan) for _ in range(SLOTS + 2)]
    for started in [kernel.start(0, *given, out) for out in sums]:
        started.finish()
    assert all(torch.equal(out, wanted) for out in sums)


def check_a_call_larger_than_what_is_pinned_is_served(device: torch.device) -> None:
    streams, _ = streams_of(device)
    if streams is None:
        return
    copies = DeviceCopies(streams)
    kernel = kernel_with(device, copies)
    given = batch(2)
    wanted = kernel.compute(0, *given)
    copies.rows = RowStaging(streams, most_bytes=8 * 128)
    assert torch.equal(kernel.compute(0, *given), wanted)
    one = batch(0, rows=1)
    assert copies.rows.take(1, 128, 1, 1) is None
    assert kernel.compute(0, *one).isfinite().all()


def check_slots_grow_and_are_used_again(device: torch.device) -> None:
    streams, _ = streams_of(device)
    if streams is None:
        return
    staging = RowStaging(streams, MANY_BYTES)
    first = staging.take(4, 128, 4, 1)
    second = staging.take(4, 128, 4, 1)
    assert first is not None
    assert second is not None
    assert staging.take(4, 128, 4, 1) is None, "there are two"
    first.abandon()
    assert staging.take(6000, 128, 9, 1) is first, "the same one, grown"


def check_a_failed_call_gives_its_slot_back(device: torch.device) -> None:
    kernel = kernel_with(device, DeviceCopies.of(device))
    given = batch(3)
    wanted = kernel.compute(0, *given)
    good, wrong = kernel.operator, Failing(kernel.operator)
    for _ in range(SLOTS + 1):
        kernel.operator = wrong
        with pytest.raises(RuntimeError, match="no longer there"):
            kernel.compute(0, *given)
        kernel.operator = good
        assert torch.equal(kernel.compute(0, *given), wanted)
    staging = kernel.copies.rows
    taken = [staging.take(4, 128, 4, 1) for _ in range(SLOTS)] if staging else []
    assert all(slot is not None for slot in taken)


class Failing:
    """An operator whose device is no longer there."""

    def __init__(self, inner: object) -> None:
        self.device = inner.device  # type: ignore[attr-defined]

    def run(self, *_: object) -> torch.Tensor:
        raise RuntimeError("the device is no longer there")

    def describe(self) -> str:
        return "failing"


def check_weights_arrive_in_parts(device: torch.device) -> None:
    """Through buffers much smaller than a tensor, each used many times."""
    streams, _ = streams_of(device)
    if streams is None:
        return
    spec = replace(make_spec(MXFP4, SILU, 128, 64), num_experts=2)
    staging, side = WeightStaging(streams, buffer_bytes=1000), streams.stream()
    for expert in make_experts(spec).values():
        with side:
            there = staging.to_device(expert)
            side.record_event().synchronize()
        for sent, arrived in zip(expert.tensors(), there.tensors(), strict=True):
            assert arrived.device.type == device.type
            assert torch.equal(arrived.cpu().view(torch.uint8), sent.view(torch.uint8))


def check_experts_that_were_loaded_beside_are_there(device: torch.device) -> None:
    """A layer is published when its weights are on the device, not when their copies are asked."""
    kernel = kernel_with(device, DeviceCopies.of(device))
    given = batch(4)
    before = kernel.compute(0, *given)
    for _ in range(4):
        kernel.load(0, [1])
        kernel.load(0, [5, 4, 3, 2, 1, 0])
        assert torch.equal(kernel.compute(0, *given), before)


def check_what_copies_wait_for_is_told(device: torch.device) -> None:
    """A device without streams or pinned memory says so in what its kernel says of itself."""
    assert have_streams(device) or device.type not in ("standin", "cuda"), streams_of(device)[1]
    kernel = kernel_with(device, DeviceCopies.of(device))
    told = "pageable memory" in kernel.describe()
    assert told == (device.type != "cpu" and not have_streams(device))
    assert kernel.overlaps == (device.type != "cpu" and have_streams(device))


def check_the_benchmark_of_copies_gives_figures(device: torch.device) -> None:
    """With streams and without; what they are is for whoever has an accelerator."""
    if device.type == "cpu":
        return
    spec = replace(spec_of(4, 64, 32, BF16), layers=(0, 1))
    runs, problem = measure_model("small", spec, device, (2, 9), rounds=1)
    assert bool(problem) != have_streams(device)
    assert [run["rows"] for run in runs] == [2, 9]
    for run in runs:
        assert all(value > 0 for key, value in run.items() if key != "experts")
        assert ("overlapping_us" in run) == have_streams(device)
    assert len(targets_of("small", runs)) == 2 * have_streams(device)
