"""The slices that tensor-parallel ranks send are all rows, each once."""

from itertools import pairwise

import pytest

pytest.importorskip("vllm", reason="the operators ask vLLM which step runs")

from actors.vllm_plugin.opaque_ops import slice_of


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 512, 2047])
def test_slices_are_a_partition(ranks: int, rows: int) -> None:
    slices = [slice_of(rank, ranks, rows) for rank in range(ranks)]
    assert slices[0][0] == 0
    assert slices[-1][1] == rows
    assert all(before[1] == after[0] for before, after in pairwise(slices))
    sizes = [last - first for first, last in slices]
    assert max(sizes) - min(sizes) <= 1
