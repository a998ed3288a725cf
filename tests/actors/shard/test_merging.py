"""How calls are put together for the kernel, and divided where they are too large."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.shard.merging import MergedCalls, fitting, row_pieces
from actors.wire.body import CallBody
from actors.wire.connections import Request
from actors.wire.frame import FrameKind, Header

HIDDEN, EXPERTS = 4, 8
Ints = st.lists(st.integers(0, 6), min_size=1, max_size=60)


def body(row_index: list[int], experts: list[int], rows: int) -> CallBody:
    return CallBody(
        np.array(row_index, np.int32),
        np.array(experts, np.int32),
        np.ones(len(experts), np.float32),
        np.zeros((rows, HIDDEN), np.uint16),
    )


def call(number: int, rows: int, assignments: int) -> Request:
    header = Header(FrameKind.CALL, number, 0, rows=rows, hidden=HIDDEN, assignments=assignments)
    return Request(header, memoryview(b""), None)  # type: ignore[arg-type]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=20),
    most=st.integers(1, 80),
)
@settings(deadline=None)
def test_batches_keep_the_order_and_fit(sizes, most: int) -> None:
    calls = [call(number, *size) for number, size in enumerate(sizes)]
    batches = fitting(calls, most)
    assert [one for batch in batches for one in batch] == calls
    for batch in batches:
        size = sum(max(one.header.rows, one.header.assignments) for one in batch)
        assert len(batch) == 1 or size <= most


@given(row_index=Ints, spare=st.integers(0, 3), most=st.integers(1, 80))
@settings(deadline=None)
def test_pieces_are_whole_rows_and_fit(row_index: list[int], spare: int, most: int) -> None:
    num_rows = max(row_index) + 1 + spare
    pieces = row_pieces(np.array(row_index, np.int32), num_rows, most)
    ends = [end for _, end in pieces]
    assert [first for first, _ in pieces] == [0, *ends[:-1]]
    assert ends[-1] == num_rows
    for first, end in pieces:
        assignments = sum(first <= row < end for row in row_index)
        assert end - first == 1 or max(end - first, assignments) <= most


@pytest.mark.parametrize(
    ("row_index", "experts", "fault"),
    [
        ([0, 2], [0, 7], ""),
        ([0, 3], [0, 7], "row_index out of [0, 3)"),
        ([0, -1], [0, 7], "row_index out of [0, 3)"),
        ([0, 2], [0, 8], "expert out of [0, 8)"),
        ([0, 2], [-1, 7], "expert out of [0, 8)"),
    ],
)
def test_the_first_index_beyond_is_refused(row_index, experts, fault: str) -> None:
    assert MergedCalls(HIDDEN, EXPERTS).add(body(row_index, experts, rows=3)) == fault


def test_a_refused_call_leaves_the_batch_as_it_was() -> None:
    batch = MergedCalls(HIDDEN, EXPERTS)
    assert batch.add(body([0, 1], [1, 2], rows=2)) == ""
    assert batch.add(body([0, 9], [3, 4], rows=2)) != ""
    assert batch.add(body([1], [5], rows=2)) == ""
    assert batch.row_index.tolist() == [0, 1, 3]
    assert batch.experts.tolist() == [1, 2, 5]
    assert tuple(batch.rows.shape) == (4, HIDDEN)
