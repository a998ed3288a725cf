"""A Ray Dataset's rows, answered; Ray's workers ask a gateway in this process."""

import pytest

from orchestrator.batch.dataset import map_dataset
from tests.batch.desk import Engine, answer, make_settings, open_desk
from tests.orchestrator.gateway.ray_fakes import private_ray

pytestmark = [pytest.mark.ray, pytest.mark.long]


def test_every_row_has_its_answer_or_its_error(tmp_path):
    def refuse_one(body):
        return answer(body, 400) if body["messages"][0]["content"] == "text 3" else None

    engine = Engine(refuse_one)
    with open_desk(make_settings(tmp_path / "state"), {"engine-0": engine}) as desk, private_ray():
        import ray.data

        rows = ray.data.from_items([{"n": n, "text": f"text {n}"} for n in range(40)])
        answered = map_dataset(
            rows, desk.url, prompt_column="text", model="tiny", concurrency=1, max_tokens=5
        )
        found = {row["n"]: (row["answer"], row["error"]) for row in answered.take_all()}
    assert found.keys() == set(range(40))
    assert found[7] == ("echo text 7", None)
    assert found[3][0] is None
    assert found[3][1].startswith("status 400")
    assert all(body["max_tokens"] == 5 for body in engine.seen)
