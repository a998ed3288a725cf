"""What the runner does when engines, requests, clocks and disks are not as they should be."""

import time
from dataclasses import dataclass, field

import pytest

from actors.messages import Refusal, ResponseStart
from orchestrator.clients.mesh import EngineFailedError, EngineLostError
from tests.batch.desk import Engine, answer, line, make_settings, open_desk
from tests.processes import wait_until


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path / "state")


def content(body):
    return body["messages"][0]["content"]


def test_what_an_engine_refuses_becomes_an_error_line(settings):
    engine = Engine(lambda body: answer(body, 400) if content(body) == "bad" else None)
    with open_desk(settings, {"engine-0": engine}) as desk:
        job = desk.wait(desk.submit([line("a"), line("b", "bad"), line("c")]))
        assert job.status == "completed"
        assert (job.request_counts.completed, job.request_counts.failed) == (2, 1)
        (error,) = desk.lines(job.error_file_id)
        assert error["custom_id"] == "b"
        assert (error["response"]["status_code"], error["error"]) == (400, None)


def test_an_engine_is_told_which_kind_of_traffic_a_job_is(settings):
    engine = Engine()
    with open_desk(settings, {"engine-0": engine}) as desk:
        for metadata in ({}, {"traffic": "code"}, {"traffic": "No Name"}):
            desk.wait(desk.submit([line("a")], metadata=metadata))
    assert engine.kinds == ["batch", "code", "batch"]


@dataclass
class Moody:
    """Fails the first `times` tries of each request."""

    times: int
    reply: object
    tries: dict = field(default_factory=dict)

    def __call__(self, body):
        self.tries[content(body)] = self.tries.get(content(body), 0) + 1
        return self.reply if self.tries[content(body)] <= self.times else None


@pytest.mark.parametrize(
    "trouble", [ResponseStart(503, (), b"{}"), EngineFailedError("oops")], ids=["503", "failed"]
)
def test_what_may_pass_is_tried_again(settings, trouble):
    with open_desk(settings, {"engine-0": Engine(Moody(1, trouble))}) as desk:
        job = desk.wait(desk.submit([line("a", "x"), line("b", "y")]))
        assert (job.status, job.request_counts.completed) == ("completed", 2)


def test_what_does_not_pass_ends_in_an_error_line(tmp_path):
    settings = make_settings(tmp_path / "state", max_attempts=2)
    moody = Moody(99, ResponseStart(503, (), b'{"error": {"message": "no"}}'))
    with open_desk(settings, {"engine-0": Engine(moody)}) as desk:
        job = desk.wait(desk.submit([line("a", "x")]))
        (error,) = desk.lines(job.error_file_id)
        assert error["response"]["status_code"] == 503
        assert moody.tries == {"x": 2}


def test_an_engine_that_drains_costs_no_try(tmp_path):
    settings = make_settings(tmp_path / "state", max_attempts=1)
    with open_desk(settings, {"engine-0": Engine(Moody(1, Refusal("draining")))}) as desk:
        job = desk.wait(desk.submit([line("a", "x")]))
        assert (job.status, job.request_counts.completed) == ("completed", 1)


def test_a_request_that_ends_engines_is_found_and_the_others_are_answered(settings):
    """While the poison is in an engine all requests there are lost with it."""

    @dataclass
    class Poisoned(Engine):
        deaths: int = 0
        alone: int = 0

        async def handle(self, request):
            deaths = self.deaths
            async for reply in super().handle(request):
                if b"poison" in request.body:
                    self.deaths += 1
                    self.alone += self.running == 1
                    raise EngineLostError("it died")
                if self.deaths > deaths:
                    raise EngineLostError("it died with the others")
                yield reply

    engine = Poisoned(max_running=4, delay_s=0.02)
    lines = [line(f"r{n}", "poison" if n == 3 else f"{n}") for n in range(20)]
    with open_desk(settings, {"engine-0": engine}) as desk:
        job = desk.wait(desk.submit(lines), timeout_s=60)
        assert (job.status, job.request_counts.completed) == ("completed", 19)
        (error,) = desk.lines(job.error_file_id)
        assert (error["custom_id"], error["error"]["code"]) == ("r3", "engine_lost")
        assert (engine.deaths, engine.alone >= 1) == (3, True)


def test_the_runner_is_told_of_jobs_that_were_made_or_changed(settings):
    told = []
    with open_desk(settings, {}) as desk:
        desk.mesh.wake_runner = lambda: told.append("told")
        job = desk.submit([line("a")])
        assert len(told) == 1
        desk.client.post(f"/batches/{job.id}/pause", cast_to=object)
        desk.client.post(f"/batches/{job.id}/resume", cast_to=object)
        assert len(told) == 2
        desk.client.batches.cancel(job.id)
        assert len(told) == 3


def test_a_cancelled_job_keeps_its_answers_and_tells_the_rest(settings):
    engine = Engine(max_running=2, delay_s=0.1)
    with open_desk(settings, {"engine-0": engine}) as desk:
        job = desk.submit([line(f"r{n}") for n in range(200)])
        wait_until(lambda: desk.client.batches.retrieve(job.id).request_counts.completed > 0)
        assert desk.client.batches.cancel(job.id).status in {"cancelling", "cancelled"}
        job = desk.wait(job)
        assert job.status == "cancelled"
        done, rest = desk.lines(job.output_file_id), desk.lines(job.error_file_id)
        assert 0 < len(done) < 200
        assert len(done) + len(rest) == 200 == job.request_counts.total
        assert {one["error"]["code"] for one in rest} == {"batch_cancelled"}
        wait_until(lambda: engine.running == 0)


def test_a_job_whose_window_is_over_expires_with_what_it_has(settings):
    with open_desk(settings, {"engine-0": Engine(max_running=2, delay_s=0.1)}) as desk:
        job = desk.submit([line(f"r{n}") for n in range(200)])
        wait_until(lambda: desk.client.batches.retrieve(job.id).request_counts.completed > 0)
        _expire(desk, job)
        job = desk.wait(job)
        assert (job.status, job.request_counts.total) == ("expired", 200)
        rest = desk.lines(job.error_file_id)
        assert {one["error"]["code"] for one in rest} == {"batch_expired"}
        assert len(desk.lines(job.output_file_id)) + len(rest) == 200


def _expire(desk, job):
    from sqlalchemy import update

    from orchestrator.batch.tables import jobs

    with desk.ledger.database.write() as connection:
        now = {"expires_at": time.time()}
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(**now))


def test_pause_and_resume(settings):
    engine = Engine(max_running=2, delay_s=0.05)
    with open_desk(settings, {"engine-0": engine}) as desk:
        job = desk.submit([line(f"r{n}") for n in range(60)])
        wait_until(lambda: desk.client.batches.retrieve(job.id).request_counts.completed > 0)
        path = f"/batches/{job.id}"
        more = desk.client.post(path + "/pause", cast_to=dict)["expertmesh"]
        assert (more["paused"], more["waiting_for"]) == (True, "paused by its owner")
        time.sleep(1.5)  # for a look at the jobs, and what was begun before it
        before = len(engine.seen)
        time.sleep(0.5)
        assert len(engine.seen) == before < 60
        desk.client.post(path + "/resume", cast_to=dict)
        assert desk.wait(job).status == "completed"


def test_a_full_disk_pauses_with_a_reason_and_goes_on_when_there_is_room(tmp_path):
    """The limit stands for the disk: nothing has more free than 2**60 bytes."""
    full = make_settings(tmp_path / "state", min_free_disk=2**60)
    with open_desk(full, {"engine-0": Engine()}) as desk:
        job = desk.submit([line("a")])

        def reason():
            return desk.client.batches.retrieve(job.id).model_extra["expertmesh"]["waiting_for"]

        wait_until(reason)
        assert "the disk is nearly full" in reason()
        assert desk.client.batches.retrieve(job.id).status == "validating"
    with open_desk(make_settings(tmp_path / "state"), {"engine-0": Engine()}) as desk:
        job = desk.wait(job)
        assert (job.status, job.model_extra["expertmesh"]["waiting_for"]) == ("completed", None)


def test_jobs_share_engines(settings):
    """A small job that comes behind a large one does not wait for its end."""
    engine = Engine(max_running=4, delay_s=0.02)
    with open_desk(settings, {"engine-0": engine}) as desk:
        large = desk.submit([line(f"r{n}", f"large {n}") for n in range(1500)])
        wait_until(lambda: desk.client.batches.retrieve(large.id).request_counts.completed > 10)
        small = desk.wait(desk.submit([line(f"r{n}", f"small {n}") for n in range(20)]))
        assert small.status == "completed"
        assert desk.client.batches.retrieve(large.id).status == "in_progress"
        desk.client.batches.cancel(large.id)
        desk.wait(large)
        assert engine.most_running <= 2 * engine.max_running


def test_no_engine_is_a_reason(settings):
    with open_desk(settings, {}) as desk:
        job = desk.submit([line("a")])
        wait_until(
            lambda: (
                desk.client.batches.retrieve(job.id).model_extra["expertmesh"]["waiting_for"]
                == "no engine is ready"
            )
        )
        desk.mesh.fakes["engine-0"] = Engine()
        assert desk.wait(job).status == "completed"
