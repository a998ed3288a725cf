"""A few random faults in a row under streams that never stop; `benchmarks.chaos` runs hundreds."""

import pytest

from benchmarks.chaos import FILES_GOAL, run
from tests import seeds

pytestmark = [
    pytest.mark.chaos, pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1200),
]  # fmt: skip

FAULTS = 2


def test_no_stream_fails_and_everything_comes_back(request: pytest.FixtureRequest) -> None:
    rows, figures = run(FAULTS, seeds.seed_of(request.config))
    assert figures["failed"] == 0, rows
    assert figures["unrepaired"] == 0, rows
    assert figures["turned"] <= figures["streams"] / 4
    assert figures["files_grown"] <= FILES_GOAL
    assert figures["zombies"] == 0
    assert figures["left"] == 0
    assert figures["exit_code"] == 0
