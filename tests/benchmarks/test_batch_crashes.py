"""What the benchmark of batch jobs through crashes would notice."""

from typing import Any

import pytest

from benchmarks.batch_crashes import ALL, FIRST, LAST, PARTS, bodies, judged, moments, targets

REQUESTS = 100


def line(number: int, text: str = "right") -> dict[str, Any]:
    return {"custom_id": str(number), "response": {"body": {"choices": [{"text": text}]}}}


def missed(output: list[dict[str, Any]], errors: list[dict[str, Any]]) -> set[str]:
    asked = bodies(REQUESTS)
    texts = {one["prompt"]: "right" for one in asked}
    return {target.name for target in targets(judged(asked, output, errors, texts)) if target.fails}


def test_every_line_once_meets_all():
    assert missed([line(n) for n in range(REQUESTS)], []) == set()


@pytest.mark.parametrize(
    ("output", "errors", "names"),
    [
        ([line(n) for n in range(99)], [], {"missing lines"}),
        ([line(n) for n in range(100)] + [line(7)], [], {"doubled lines"}),
        ([line(n) for n in range(100)], [{"custom_id": "7"}], {"doubled lines", "error lines"}),
        ([line(n) for n in range(99)], [{"custom_id": "99"}], {"error lines"}),
        (
            [line(n, "wrong" if n < 10 else "right") for n in range(100)],
            [],
            {"share of other texts"},
        ),
    ],
)
def test_what_went_wrong_is_named(output, errors, names):
    assert missed(output, errors) == names


def test_each_part_is_killed_once_and_all_of_them_last():
    drawn = moments(REQUESTS, seed=3)
    assert drawn == moments(REQUESTS, seed=3) != moments(REQUESTS, seed=4)
    assert sorted(part for _, part in drawn[:-1]) == sorted(PARTS)
    assert drawn[-1] == (LAST * REQUESTS, ALL)
    answers = [count for count, _ in drawn]
    assert answers == sorted(answers)
    assert answers[0] >= int(FIRST * REQUESTS)
