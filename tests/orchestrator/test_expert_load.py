"""The load of all experts, as JSON and as arrays."""

import json

import numpy as np
import pytest

from orchestrator.expert_load import ExpertLoad, sum_load

LOAD = sum_load("m", (3, 7), {"a": np.array([[1, 2], [3, 4]]), "b": np.array([[5, 0], [0, 5]])}, 2)


@pytest.mark.parametrize(
    "form",
    [lambda load: json.loads(json.dumps(load.to_json())), ExpertLoad.to_arrays],
    ids=["json", "arrays"],
)
def test_both_forms_say_the_same(form):
    back = ExpertLoad.from_json(form(LOAD))
    assert (back.model, back.layers) == ("m", (3, 7))
    assert back.counts.tolist() == [[6, 2], [3, 9]]
    assert {id: counts.tolist() for id, counts in back.by_shard.items()} == {
        "a": [[1, 2], [3, 4]],
        "b": [[5, 0], [0, 5]],
    }
