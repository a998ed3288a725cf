"""The memory that a call's assignments are counted with is what the kernels take at most."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.mxfp4 import MXFP4
from actors.kernels.scratch import (
    LEAST_ASSIGNMENTS,
    SCRATCH_BYTES_PER_VALUE,
    is_out_of_memory,
    most_assignments,
)
from actors.kernels.torch_grouped import TorchGrouped
from actors.kernels.torch_portable import TorchPortable
from tests.actors.kernels.building import (
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_kernel,
    make_spec,
)

CPU = torch.device("cpu")


class PeakMemory(TorchDispatchMode):
    """peak_bytes: of the storages that torch's operators returned, as they lived."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._held_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self._held_bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._held_bytes)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._held_bytes -= size


def peak_bytes(kernel, spec, assignments: int) -> int:
    ids = [(row, row % spec.num_experts) for row in range(assignments)]
    batch = make_batch(assignments, spec.hidden_size, ids)
    with PeakMemory() as memory:
        kernel.compute(0, *batch)
    return memory.peak_bytes


@pytest.mark.parametrize("activation", [SILU, GPT_OSS], ids=["silu", "gpt-oss"])
@pytest.mark.parametrize("weight_format", [BF16, MXFP4])
@pytest.mark.parametrize(("hidden", "inter"), [(512, 64), (64, 512)])
@pytest.mark.parametrize("operator", [TorchPortable, TorchGrouped])
def test_no_kernel_takes_more_than_is_counted(
    operator, weight_format, activation, hidden: int, inter: int
) -> None:
    spec = make_spec(weight_format, activation, hidden=hidden, inter=inter)
    kernel = make_kernel(spec, operator(spec, CPU), make_experts(spec))
    kernel.load(0, list(range(spec.num_experts)))
    few, many = (peak_bytes(kernel, spec, count) for count in (1000, 3000))
    per_value = (many - few) / 2000 / (spec.hidden_size + spec.intermediate_size)
    print(f"{per_value:.1f} bytes for each value")
    assert 8 < per_value <= SCRATCH_BYTES_PER_VALUE


def test_the_cap_follows_the_memory_down_to_the_least() -> None:
    spec = make_spec(BF16, hidden=256, inter=128)
    assert most_assignments(spec, 384 * SCRATCH_BYTES_PER_VALUE * 1000) == 1000
    assert most_assignments(spec, 0) == LEAST_ASSIGNMENTS


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("NPU out of memory. Tried to allocate"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("shapes"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
