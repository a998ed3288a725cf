"""Where the benchmark of architectures puts experts."""

import numpy as np
import pytest

from benchmarks.architectures import placed_experts


@pytest.mark.parametrize("experts", [4, 16, 61])
def test_half_of_the_experts_are_in_both_shards(experts):
    one, other = placed_experts(experts)
    assert set(one) | set(other) == set(range(experts))
    assert len(np.intersect1d(one, other)) == pytest.approx(experts / 2, abs=1)
    assert len(set(one)) == len(set(other)) == len(one)
