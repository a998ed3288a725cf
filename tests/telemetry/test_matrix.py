"""The compact form of the expert matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from orchestrator.telemetry.matrix import HEADER, decode, encode

MATRICES = arrays.arrays(
    np.int64,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7),
    elements=st.one_of(st.integers(0, 300), st.integers(0, 2**62)),
)


@given(values=MATRICES, sequence=st.integers(0, 2**32 - 1), base=st.integers(0, 2**32 - 1))
def test_what_is_decoded_is_what_was_encoded(values, sequence, base):
    decoded, *numbers = decode(encode(values, sequence, base))
    assert (decoded == values).all()
    assert (decoded.shape, numbers) == (values.shape, [sequence, base])


def test_the_largest_model_fits_150_kilobytes_for_years():
    values = np.full((61, 384), 4 * 10**12, np.int64)
    assert len(encode(values, 1)) <= 150_000
    assert len(encode(values // 10**10, 1)) <= 50_000  # a window of some seconds


@given(values=MATRICES, lost=st.integers(1, 5))
def test_one_that_was_cut_short_is_refused(values, lost):
    data = encode(values, 1)
    with pytest.raises(ValueError, match=r"cut short|begin with"):
        decode(data[:-lost])
    with pytest.raises(ValueError, match="cut short"):
        decode(data + b"\x01")


def test_other_bytes_and_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="EMX1"):
        decode(b"x" * HEADER.size)
    with pytest.raises(ValueError, match=">= 0"):
        encode(np.array([[-1]]), 1)
