"""FP8 rows against torch's own conversion."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.wire.fp8_rows import decode_rows, encode_row

FINITE_BF16 = st.integers(0, 0xFFFF).filter(lambda bits: bits & 0x7F80 != 0x7F80)


def there_and_back(bits: np.ndarray) -> tuple[np.ndarray, np.float32, torch.Tensor]:
    """Codes [H], scale and decoded fp32 [H] of one row of bf16 bits."""
    codes, out = np.empty((1, len(bits)), np.uint8), np.empty((1, len(bits)), np.uint16)
    scale = np.float32(encode_row(bits, codes[0]))
    decode_rows(codes, np.array([scale]), out)
    return codes[0], scale, as_float(out[0])


def as_float(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()


def test_every_code_stands_for_what_torch_says() -> None:
    codes, rows = np.arange(256, dtype=np.uint8)[None], np.empty((1, 256), np.uint16)
    decode_rows(codes, np.ones(1, np.float32), rows)  # bf16 holds every value exactly
    wanted = torch.from_numpy(codes[0]).view(torch.float8_e4m3fn).float()
    assert torch.equal(as_float(rows[0]).nan_to_num(1e9), wanted.nan_to_num(1e9))


@given(st.lists(FINITE_BF16, min_size=1, max_size=40))
@settings(deadline=None, max_examples=300)
def test_codes_are_torchs(numbers: list[int]) -> None:
    bits = np.array(numbers, np.uint16)
    codes, scale, _ = there_and_back(bits)
    scaled = as_float(bits) * torch.tensor(np.float32(1) / scale)
    wanted = scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
    assert np.array_equal(codes, wanted.view(torch.uint8).numpy())


@given(st.lists(FINITE_BF16, min_size=1, max_size=40))
@settings(deadline=None, max_examples=300)
def test_error_is_within_what_is_promised(numbers: list[int]) -> None:
    bits = np.array(numbers, np.uint16)
    _, scale, decoded = there_and_back(bits)
    exact = as_float(bits).double()
    error = (decoded.double() - exact).abs()
    # e4m3, and bf16 again on the way back.
    allowed = torch.maximum(exact.abs() * 2.0**-4, torch.tensor(float(scale) * 2.0**-10))
    assert (error <= allowed + exact.abs() * 2.0**-8 + 2.0**-133).all()


def test_largest_value_keeps_its_place_and_zero_stays() -> None:
    row = torch.tensor([0.0, 3.0, -96.0, 0.375]).bfloat16()
    _, _, decoded = there_and_back(row.view(torch.int16).numpy().view(np.uint16))
    assert torch.equal(decoded, row.float())


def test_row_of_zeros() -> None:
    _, _, decoded = there_and_back(np.zeros(7, np.uint16))
    assert torch.equal(decoded, torch.zeros(7))


@pytest.mark.parametrize("broken", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_does_not_come_back_as_one(broken: float) -> None:
    row = torch.tensor([1.0, broken, 0.0]).bfloat16()
    _, _, decoded = there_and_back(row.view(torch.int16).numpy().view(np.uint16))
    assert decoded.isnan().all()
