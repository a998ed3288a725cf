"""Claims beside measurements."""

import pytest
import torch

from actors.devices.catalogue import find_chip, find_family
from actors.devices.claims import chip_called, doubtful
from actors.kernels.device_speed import REPEATS, fastest_s, measure_speed

H200 = find_chip("nvidia", "h200")


@pytest.mark.parametrize(
    ("vendor", "name", "chip"),
    [
        ("nvidia", "NVIDIA H200", "h200"),
        ("nvidia", "NVIDIA H20", "h20"),
        ("nvidia", "NVIDIA H100 80GB HBM3", "h100"),
        ("ascend", "Ascend910B4", "910b4"),
        ("ascend", "Ascend910B2", "910b"),
        ("cambricon", "MLU590-M9", "mlu590"),
    ],
)
def test_a_chip_is_known_by_what_its_driver_calls_it(vendor: str, name: str, chip: str) -> None:
    assert chip_called(find_family(vendor), name) is find_chip(vendor, chip)


def test_an_unknown_name_is_no_chip() -> None:
    assert chip_called(find_family("nvidia"), "NVIDIA GeForce RTX 4090") is None


@pytest.mark.parametrize(
    ("part", "good"), [(0.29, False), (0.31, True), (1.04, True), (1.06, False)]
)
def test_claims_are_doubted_beyond_what_kernels_can_miss_or_exceed(part: float, good: bool) -> None:
    said = doubtful(H200, {"bandwidth": part * 4.8e12})
    assert (said == []) is good
    if not good:
        claim = "the 4.8 TB/s that NVIDIA data sheet claims"
        assert said == [f"H200 SXM: measured bandwidth is {part:.2f} of {claim}"]


def test_a_device_of_two_is_half_of_what_is_claimed() -> None:
    chip = find_chip("ascend", "910c")
    assert doubtful(chip, {"bandwidth": 0.8 * 1.6e12, "memory": 64e9}) == []
    assert len(doubtful(chip, {"memory": 128e9})) == 1


def test_contradicting_claims_are_doubted_only_outside_all_of_them() -> None:
    chip = find_chip("metax", "c500")
    assert doubtful(chip, {"bf16": 0.31 * 80e12}) == []
    assert doubtful(chip, {"bf16": 1.04 * 280e12}) == []
    assert len(doubtful(chip, {"bf16": 0.29 * 80e12})) == 1
    assert len(doubtful(chip, {"bf16": 1.06 * 280e12})) == 1


def test_what_was_not_claimed_is_not_doubted() -> None:
    assert doubtful(find_chip("biren", "br106"), {"bandwidth": 1.0}) == []


def test_this_cpus_speed_can_be_measured() -> None:
    speed = measure_speed(torch.device("cpu"))
    assert 1e8 < speed.stream_bytes_per_s < 1e13
    assert 1e8 < speed.bf16_per_s < 1e15
    assert speed.to_device_s is None


def test_the_fastest_of_a_few_counts_and_the_first_does_not() -> None:
    times = iter([0.0, 0.5, 10.0, 13.0, 20.0, 22.0, *range(30, 30 + 2 * REPEATS)])
    calls = []
    took = fastest_s(lambda: calls.append(1), torch.device("cpu"), lambda: float(next(times)))
    assert len(calls) == 1 + REPEATS
    assert took == 1.0
