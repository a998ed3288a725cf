"""Traces survive both of their forms."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from placement.trace import from_arrays, from_records, to_arrays, to_records


def test_arrays_round_trip_through_a_file(trace):
    file = io.BytesIO()
    np.savez(file, **to_arrays(trace))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        back = from_arrays(arrays)
    np.testing.assert_array_equal(back.counts, trace.counts)
    np.testing.assert_array_equal(back.start_s, trace.start_s)
    assert back.traffic_kind == trace.traffic_kind


def test_records_round_trip_through_lines(trace):
    lines = [json.dumps(record) for record in to_records(trace)]
    back = from_records(json.loads(line) for line in lines)
    np.testing.assert_array_equal(back.counts, trace.counts)
    np.testing.assert_array_equal(back.window_s, trace.window_s)
    assert back.traffic_kind == trace.traffic_kind


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "must be a header"),
        ([{"schema": 9, "layers": 1, "experts": 1}], "schema 9 is not supported"),
        ([{"schema": 1, "layers": 1, "experts": 2}, {"counts": [[1]]}], "window 0 has counts"),
        ([{"schema": 1, "layers": 1, "experts": 1}, {"counts": [[1.5]]}], "whole numbers"),
        ([{"schema": 1, "layers": 1, "experts": 1}, {"counts": [[-1]]}], ">= 0"),
    ],
)
def test_bad_records_are_named(records, message):
    with pytest.raises(ValueError, match=message):
        from_records(records)


def test_bad_arrays_are_named():
    with pytest.raises(ValueError, match="no array named 'counts'"):
        from_arrays({})
    with pytest.raises(ValueError, match="shape \\[windows"):
        from_arrays({"counts": np.ones((2, 2), int)})
