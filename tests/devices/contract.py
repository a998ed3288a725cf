"""What every backend must do, whosever devices it is for: run it where you have one.

    python -m tests.devices.contract npu        # or mlu, musa, cuda:1, cpu, standin
    python -m tests.devices.contract npu exact  # checks whose names contain a word

A check is a function that raises. It goes through the kernel that a shard on that device would have
(`choose_kernel`'s), so a vendor's own kernel is held to the same promises as plain torch. What sums
may be off by follows from the formats alone (`tests/actors/kernels/bounds.py`).
"""

import importlib
import math
import sys
import traceback
from collections.abc import Callable

import torch

from actors.device import free_memory_bytes, scratch_bytes
from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.table import FORMATS
from actors.experts.spec import Activation, ExpertSpec
from actors.kernels.base import ExpertsMissing
from actors.kernels.calibration import measure_cost
from actors.kernels.choose import choose_operator
from actors.kernels.slot_kernel import SlotKernel
from actors.wire.device_memory import DRIVERS
from tests.actors.kernels.bounds import IN_BF16, bounded_reference
from tests.actors.kernels.building import (
    CLAMPED,
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_kernel,
    make_spec,
)
from tests.devices import staging_checks

IDS = [(row, (3 * row + k) % 6) for row in range(9) for k in range(3)] + [(2, 1), (2, 1)]
"""Rows with several experts, and one that has the same expert more than once."""
ROWS = 11
"""Two more than have assignments."""
STANDIN = "standin"


def filled(
    device: torch.device, weight_format: NumberFormat = BF16, activation: Activation = SILU
) -> tuple[SlotKernel, ExpertSpec]:
    """A kernel that holds all experts of layer 0."""
    spec = make_spec(weight_format, activation, 128, 64)
    kernel = make_kernel(spec, choose_operator(spec, device), make_experts(spec))
    kernel.load(0, list(range(spec.num_experts)))
    return kernel, spec


def check_every_format_is_exact(device: torch.device) -> None:
    """Sums are as close to exact arithmetic as the formats allow."""
    cases = [(weight_format, SILU) for weight_format in FORMATS]
    for weight_format, activation in [*cases, (BF16, CLAMPED), (BF16, GPT_OSS)]:
        kernel, spec = filled(device, weight_format, activation)
        batch = make_batch(ROWS, spec.hidden_size, IDS)
        sums = kernel.compute(0, *batch)
        expected = bounded_reference(make_experts(spec), activation, batch, IN_BF16)
        off = (sums.double() - expected.value).abs() > expected.error
        assert not off.any(), f"{weight_format.name} {activation}: {int(off.sum())} are off"


def check_sums_come_back_to_the_host(device: torch.device) -> None:
    """fp32 on the CPU, into `out` where that is given; rows without an assignment are zero."""
    kernel, spec = filled(device)
    batch = make_batch(ROWS, spec.hidden_size, IDS)
    out = torch.full((ROWS, spec.hidden_size), math.nan)
    sums = kernel.compute(0, *batch, out)
    assert (sums.device.type, sums.dtype) == ("cpu", torch.float32)
    assert torch.equal(sums, out)
    assert not sums[9:].any()


def check_the_same_call_gives_the_same_bits(device: torch.device) -> None:
    kernel, spec = filled(device)
    batch = make_batch(ROWS, spec.hidden_size, IDS)
    first = kernel.compute(0, *batch)
    for _ in range(5):
        assert torch.equal(kernel.compute(0, *batch), first)


def check_order_of_slots_does_not_matter(device: torch.device) -> None:
    """Which slot an expert is in is nobody's business."""
    kernel, spec = filled(device)
    batch = make_batch(ROWS, spec.hidden_size, IDS)
    before = kernel.compute(0, *batch)
    kernel.load(0, [5, 3, 1, 0, 2, 4])
    assert torch.equal(kernel.compute(0, *batch), before)


def check_experts_come_and_go(device: torch.device) -> None:
    """Missing ones are named; what was loaded before is there again after."""
    kernel, spec = filled(device)
    batch = make_batch(ROWS, spec.hidden_size, IDS)
    before, whole = kernel.compute(0, *batch), kernel.resident_bytes()
    kernel.load(0, [0, 2])
    assert kernel.resident_bytes() < whole
    raises(ExpertsMissing, lambda: kernel.compute(0, *batch))
    kernel.load(0, list(range(spec.num_experts)))
    assert torch.equal(kernel.compute(0, *batch), before)


def check_a_bad_call_harms_nobody(device: torch.device) -> None:
    """Rows that are not there are refused before the device sees them; the next call is served."""
    kernel, spec = filled(device)
    rows, index, experts, weights = make_batch(ROWS, spec.hidden_size, IDS)
    good = kernel.compute(0, rows, index, experts, weights)
    bad = index.clone()
    bad[0] = ROWS
    raises(IndexError, lambda: kernel.compute(0, rows, bad, experts, weights))
    assert torch.equal(kernel.compute(0, rows, index, experts, weights), good)


def check_one_row_and_many(device: torch.device) -> None:
    """A call's rows do not depend on which others come along, as far as formats allow."""
    kernel, spec = filled(device)
    experts = make_experts(spec)
    for rows in (1, 2, 33, 300):
        ids = [(row, row % spec.num_experts) for row in range(rows)]
        batch = make_batch(rows, spec.hidden_size, ids)
        expected = bounded_reference(experts, SILU, batch, IN_BF16)
        off = (kernel.compute(0, *batch).double() - expected.value).abs() > expected.error
        assert not off.any(), f"{rows} rows"


def check_memory_is_known(device: torch.device) -> None:
    assert free_memory_bytes(str(device)) > 0
    assert scratch_bytes(str(device)) > 0


def check_calls_can_be_measured(device: torch.device) -> None:
    spec = make_spec(BF16, hidden=256, inter=128)
    cost = measure_cost(spec, device)
    assert cost.row_s > 0
    assert 0 < cost.seconds(8, 64) < 10


def raises(kind: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in (globals() | vars(staging_checks)).items()
    if name.startswith("check_")
}


def device_of(name: str) -> torch.device:
    """The stand-in is registered here; torch imports vendors' packages by itself."""
    if name == STANDIN:
        device: torch.device = importlib.import_module("tests.devices.standin").register()
        memory = importlib.import_module("tests.devices.standin_memory")
        DRIVERS[STANDIN] = memory.StandInMemory
        importlib.import_module("tests.devices.standin_streams").install()
        return device
    return torch.device(name)


def run_checks(name: str, word: str = "") -> dict[str, str]:
    """Check -> what went wrong, empty if nothing did."""
    device = device_of(name)
    said = {}
    for check_name, check in CHECKS.items():
        if word in check_name:
            try:
                check(device)
                said[check_name] = ""
            except Exception:
                said[check_name] = traceback.format_exc(limit=-3)
    return said


def main(arguments: list[str]) -> int:
    name, word = (*arguments, "", "")[:2]
    said = run_checks(name or "cpu", word)
    for check, problem in said.items():
        print(f"{'FAILED' if problem else 'ok':7}{check}")
        if problem:
            print(problem)
    return 1 if any(said.values()) or not said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
