"""OpenAI's own client: files and jobs, over fake engines."""

import pytest

from tests.batch.desk import Engine, line, make_settings, open_desk


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def desk(engine, tmp_path_factory):
    with open_desk(make_settings(tmp_path_factory.mktemp("batch")), {"engine-0": engine}) as desk:
        yield desk


def test_a_job_from_its_file_to_its_answers(desk, engine):
    job = desk.submit([line(f"r{n}", f"text {n}") for n in range(50)], metadata={"who": "me"})
    assert job.status == "validating"
    assert job.metadata == {"who": "me"}
    job = desk.wait(job)
    assert job.status == "completed"
    assert (job.request_counts.total, job.request_counts.completed) == (50, 50)
    assert job.error_file_id is None
    assert job.usage.total_tokens == 250
    lines = desk.lines(job.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"r{n}" for n in range(50)]
    assert all(one["response"]["status_code"] == 200 and one["error"] is None for one in lines)
    texts = [one["response"]["body"]["choices"][0]["message"]["content"] for one in lines]
    assert texts == [f"echo text {n}" for n in range(50)]
    assert all(body["priority"] > 0 for body in engine.seen)
