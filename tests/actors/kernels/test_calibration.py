"""Fitting calls' times, and measuring a kernel of known speed."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.experts.spec import WeightFormat
from actors.kernels.calibration import (
    BATCH_SIZES,
    BUDGET_S,
    REFERENCE_BATCH,
    REPEATS,
    KernelSpeed,
    fit,
    measure_kernel,
    measure_speed,
    random_expert,
)
from tests.actors.kernels.building import make_spec


@given(constant=st.floats(1e-6, 1e-2), slope=st.floats(1e-8, 1e-3))
def test_fit_finds_what_made_the_times(constant, slope):
    speed = fit([(size, constant + slope * size) for size in (1, 8, 32, 128)])
    for size in (1, 64, 128):
        seconds = speed.constant_s + speed.per_token_s * size
        assert seconds == pytest.approx(constant + slope * size, rel=1e-3)


def test_fit_never_promises_negative_times():
    speed = fit([(1, 1e-3), (8, 9e-4), (32, 8e-4)])
    assert speed.constant_s >= 0
    assert speed.per_token_s > 0
    speed = fit([(1, 1e-6), (128, 1.0)])
    assert speed.constant_s >= 0


def test_tokens_per_second_are_those_of_a_reference_batch():
    speed = KernelSpeed(constant_s=1.0, per_token_s=1 / REFERENCE_BATCH)
    assert speed.tokens_per_s == REFERENCE_BATCH / 2


class SleepingKernel:
    """Takes 2 ms and 0.1 ms for each assignment."""

    def load(self, layer: int, experts: list[int]) -> None: ...

    def compute(self, layer, rows, row_index, experts, weights) -> torch.Tensor:
        time.sleep(2e-3 + 1e-4 * row_index.shape[0])
        return torch.zeros(rows.shape)

    def resident_bytes(self) -> int:
        return 0

    def describe(self) -> str:
        return "sleeps"


def test_measures_a_kernel_of_known_speed():
    speed = measure_kernel(SleepingKernel(), 8, 0, [0, 1])
    assert speed.constant_s == pytest.approx(2e-3, rel=0.5)
    assert speed.per_token_s == pytest.approx(1e-4, rel=0.3)


class CompilingKernel(SleepingKernel):
    """Compiles for a third of the time there is to measure, at each new size."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def compute(self, layer, rows, row_index, experts, weights) -> torch.Tensor:
        size = row_index.shape[0]
        if size not in self.sizes:
            time.sleep(BUDGET_S / 3)
        self.sizes.append(size)
        return super().compute(layer, rows, row_index, experts, weights)


def test_compiling_takes_no_time_from_measuring():
    kernel = CompilingKernel()
    speed = measure_kernel(kernel, 8, 0, [0, 1])
    assert {size: kernel.sizes.count(size) for size in BATCH_SIZES} == dict.fromkeys(
        BATCH_SIZES, 1 + REPEATS
    )
    assert speed.constant_s == pytest.approx(2e-3, rel=0.5)


@pytest.mark.parametrize("weight_format", list(WeightFormat))
def test_measures_without_a_checkpoint(weight_format):
    speed = measure_speed(make_spec(weight_format, hidden=128, inter=64), torch.device("cpu"))
    assert speed.constant_s >= 0
    assert 0 < speed.per_token_s < 0.1
    assert speed.tokens_per_s > 0


@pytest.mark.parametrize("weight_format", list(WeightFormat))
def test_random_experts_have_the_size_of_real_ones(weight_format):
    spec = make_spec(weight_format, hidden=256, inter=128)
    assert random_expert(spec).nbytes == spec.bytes_per_expert
