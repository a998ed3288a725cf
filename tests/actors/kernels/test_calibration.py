"""Fitting calls' times, and measuring a kernel of known speed."""

import pytest
import torch

from actors.experts.formats.table import FORMATS
from actors.kernels.calibration import (
    BUDGET_S,
    REPEATS,
    Probe,
    cost_of,
    measure_cost,
    measure_probe,
    random_expert,
)
from placement.cost_model import DeviceCost
from tests.actors.kernels.building import make_spec

TRUE = DeviceCost(call_s=2e-3, read_s=1e-3, row_s=1e-4)


def test_rows_are_never_free():
    """Times that do not grow with rows, as on a large device in small calls."""
    cost = cost_of([(1, 1, 2e-5), (8, 8, 2e-5), (8, 128, 1.9e-5)])
    assert cost.row_s == pytest.approx(0.01 * 2e-5 / 128)
    assert cost.seconds(8, 128) == pytest.approx(2e-5, rel=0.1)


class SlowKernel:
    """Takes as long as `TRUE` says, on a clock of its own: other work does not show on it."""

    now_s = 0.0

    def clock_s(self) -> float:
        return self.now_s

    def load(self, layer: int, experts: list[int]) -> None: ...

    def compute(self, layer, rows, row_index, experts, weights) -> torch.Tensor:
        self.now_s += TRUE.seconds(experts.unique().numel(), row_index.numel())
        return torch.zeros(rows.shape)

    def resident_bytes(self) -> int:
        return 0

    def describe(self) -> str:
        return "slow"


def test_measures_a_kernel_of_known_cost():
    kernel = SlowKernel()
    cost = measure_probe(Probe(kernel, 8, (0, 1), [0, 1, 2, 3]), kernel.clock_s)
    for experts, rows in ((1, 1), (4, 4), (1, 32), (4, 64)):
        assert cost.seconds(experts, rows) == pytest.approx(TRUE.seconds(experts, rows), rel=1e-6)
    assert cost.read_s == pytest.approx(TRUE.read_s, rel=1e-6)
    assert cost.row_s == pytest.approx(TRUE.row_s, rel=1e-6)


class CompilingKernel(SlowKernel):
    """Compiles for a third of the time there is to measure, at each new size."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def compute(self, layer, rows, row_index, experts, weights) -> torch.Tensor:
        size = row_index.shape[0]
        if size not in self.sizes:
            self.now_s += BUDGET_S / 3
        self.sizes.append(size)
        return super().compute(layer, rows, row_index, experts, weights)


def test_compiling_takes_no_time_from_measuring():
    kernel = CompilingKernel()
    cost = measure_probe(Probe(kernel, 8, (0,), [0, 1]), kernel.clock_s)
    assert [kernel.sizes.count(size) for size in (1, 2, 32)] == [1 + REPEATS, 1 + REPEATS, 12]
    assert cost.seconds(2, 32) == pytest.approx(TRUE.seconds(2, 32), rel=1e-6)


def test_calls_go_through_all_layers():
    """Else the weights of the few experts measured with would come from a cache."""
    kernel, layers = SlowKernel(), []
    compute = kernel.compute
    kernel.compute = lambda layer, *rest: (layers.append(layer), compute(layer, *rest))[1]
    measure_probe(Probe(kernel, 8, (3, 5, 7), [0, 1]), kernel.clock_s)
    assert set(layers) == {3, 5, 7}


@pytest.mark.parametrize("weight_format", FORMATS)
def test_measures_without_a_checkpoint(weight_format):
    cost = measure_cost(make_spec(weight_format, hidden=128, inter=64), torch.device("cpu"))
    assert cost.call_s >= 0
    assert cost.read_s >= 0
    assert 0 < cost.row_s < 0.1


@pytest.mark.parametrize("weight_format", FORMATS)
def test_random_experts_have_the_size_of_real_ones(weight_format):
    spec = make_spec(weight_format, hidden=256, inter=128)
    assert random_expert(spec).nbytes == spec.bytes_per_expert
