"""What is read, what is kept and what a call sees while slots are replaced."""

import mmap
import re
import threading
from pathlib import Path

import pytest
import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.table import FORMATS
from actors.experts.read_ahead import one_by_one
from actors.experts.refusal import ModelRefused
from actors.kernels.base import ExpertsMissing
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.slots import HUGE_PAGE_BYTES, SlotStore
from actors.kernels.torch_portable import TorchPortable
from tests.actors.kernels.building import make_batch, make_experts, make_kernel, make_spec

SPEC = make_spec(BF16)
EXPERTS = make_experts(SPEC)
CPU = torch.device("cpu")


class Reads:
    """A reader that notes what it is asked for and fails where told."""

    def __init__(self, broken: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.broken = broken

    def __call__(self, layer: int, expert: int) -> ExpertTensors:
        self.asked.append((layer, expert))
        if expert == self.broken:
            raise ModelRefused("broken")
        return EXPERTS[expert]


def kernel_over(reads: Reads) -> SlotKernel:
    return SlotKernel(SPEC, TorchPortable(SPEC, CPU), reads)


def test_reads_only_what_is_not_held():
    reads = Reads()
    kernel = kernel_over(reads)
    kernel.load(0, [3, 1])
    kernel.load(0, [1, 2, 3])
    kernel.load(0, [2])
    kernel.load(1, [2])
    assert reads.asked == [(0, 3), (0, 1), (0, 2), (1, 2)]


def test_kept_experts_compute_the_same_in_another_slot():
    kernel = kernel_over(Reads())
    batch = make_batch(4, 64, [(0, 3), (1, 1), (2, 3), (3, 1)])
    kernel.load(0, [3, 1])
    before = kernel.compute(0, *batch)
    kernel.load(0, [5, 1, 0, 3])
    assert torch.equal(kernel.compute(0, *batch), before)


def test_resident_bytes_follow_the_slots():
    kernel = kernel_over(Reads())
    assert kernel.resident_bytes() == 0
    kernel.load(0, [0, 1, 2])
    kernel.load(1, [0])
    assert kernel.resident_bytes() == 4 * SPEC.bytes_per_expert
    kernel.load(0, [4])
    assert kernel.resident_bytes() == 2 * SPEC.bytes_per_expert
    kernel.load(1, [])
    assert kernel.resident_bytes() == SPEC.bytes_per_expert


def test_missing_experts_are_named():
    kernel = kernel_over(Reads())
    batch = make_batch(2, 64, [(0, 1), (1, 4), (1, 5)])
    with pytest.raises(ExpertsMissing, match="layer 0 holds no experts"):
        kernel.compute(0, *batch)
    kernel.load(0, [1, 2])
    with pytest.raises(ExpertsMissing, match=r"layer 0 does not hold experts \[4, 5\]"):
        kernel.compute(0, *batch)


@pytest.mark.parametrize("number", [-1, 6, 1_000_000])
def test_ids_the_model_does_not_have_are_missing(number):
    kernel = kernel_over(Reads())
    kernel.load(0, list(range(6)))
    with pytest.raises(ExpertsMissing, match=rf"layer 0 does not hold experts \[{number}\]"):
        kernel.compute(0, *make_batch(1, 64, [(0, number)]))


@pytest.mark.parametrize("row", [-1, 2])
def test_rows_that_do_not_exist_raise(row):
    kernel = kernel_over(Reads())
    kernel.load(0, [0])
    with pytest.raises(IndexError):
        kernel.compute(0, *make_batch(2, 64, [(row, 0)]))


def test_a_failed_load_changes_nothing():
    reads = Reads(broken=4)
    kernel = kernel_over(reads)
    kernel.load(0, [0, 1])
    batch = make_batch(1, 64, [(0, 1)])
    before = kernel.compute(0, *batch)
    with pytest.raises(ModelRefused, match="broken"):
        kernel.load(0, [1, 4])
    assert torch.equal(kernel.compute(0, *batch), before)
    assert kernel.resident_bytes() == 2 * SPEC.bytes_per_expert
    reads.broken = None
    kernel.load(0, [1, 4])


def test_calls_see_one_consistent_set_while_another_thread_loads():
    kernel = make_kernel(SPEC, TorchPortable(SPEC, CPU), EXPERTS)
    batch = make_batch(3, 64, [(0, 1), (1, 2), (2, 1)])
    kernel.load(0, [1, 2])
    expected = kernel.compute(0, *batch)
    stop = threading.Event()

    def reload() -> None:
        while not stop.is_set():
            for experts in ([2, 1], [0, 2, 5, 1], [1, 2]):
                kernel.load(0, experts)

    loader = threading.Thread(target=reload)
    loader.start()
    try:
        for _ in range(300):
            assert torch.equal(kernel.compute(0, *batch), expected)
    finally:
        stop.set()
        loader.join()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_large_layers_hold_what_was_read_for_as_long_as_it_is_used(weight_format):
    experts = make_experts(make_spec(weight_format, hidden=1024, inter=1024))
    read = one_by_one(lambda _layer, expert: experts[expert])
    store = SlotStore(6, read, lambda expert: expert)
    store.load(0, [4, 0, 2])
    used = store.layer(0).stacked
    assert used.w13.nbytes >= HUGE_PAGE_BYTES
    store.load(0, [1, 0])
    store.load(0, [])
    for stacked, *wanted in zip(
        used.tensors(), *(experts[expert].tensors() for expert in (4, 0, 2)), strict=True
    ):
        assert torch.equal(stacked.view(torch.uint8), torch.stack(wanted).view(torch.uint8))


def mapping_flags(address: int) -> list[str]:
    """Linux's two-letter flags of the mapping of this process that `address` lies in."""
    mappings = re.finditer(
        r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$",
        Path("/proc/self/smaps").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return next(m[3].split() for m in mappings if int(m[1], 16) <= address < int(m[2], 16))


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages"
)
def test_large_layers_ask_for_huge_pages():
    experts = make_experts(make_spec(BF16, hidden=1024, inter=1024))
    read = one_by_one(lambda _layer, expert: experts[expert])
    store = SlotStore(6, read, lambda expert: expert)
    store.load(0, [4, 0, 2])
    assert "hg" in mapping_flags(store.layer(0).stacked.w13.data_ptr())
    plain = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    assert "hg" not in mapping_flags(plain.data_ptr())
