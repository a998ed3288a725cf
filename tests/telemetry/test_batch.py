"""Batch jobs as telemetry tells them, from a real ledger and on the gateway's pages."""

import asyncio
import time

from orchestrator.batch.figures import figures, read_ledger
from orchestrator.batch.ledger import open_ledger
from orchestrator.batch.records import FileRecord, JobRecord, JobSum, NewJob
from orchestrator.batch.settings import BatchSettings
from orchestrator.batch.states import JobState
from orchestrator.config.batch import BatchConfig
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.telemetry.batch import batch_families
from orchestrator.telemetry.table import BATCH
from tests.dashboards.moving_mesh import moving_mesh
from tests.orchestrator.gateway.fakes import call

JOB = JobRecord(
    seq=1, id="batch_1", owner="alice", endpoint="/v1/completions", input_file="file-1",
    output_file=None, error_file=None, completion_window="24h", metadata={"secret": "plan"},
    errors=(), status=JobState.IN_PROGRESS, outcome="completed", priority=3, run_between=None,
    paused=False, pause_reason="the disk is nearly full", created_at=0.0, expires_at=100.0,
    in_progress_at=1.0, finalizing_at=None, completed_at=None, failed_at=None, expired_at=None,
    cancelling_at=None, cancelled_at=None, total=40, completed=28, failed=2, recomputed=1,
    prompt_tokens=300, completion_tokens=900, checked_lines=40, checked_bytes=4000,
)  # fmt: skip
SUMS = [
    JobSum(JobState.IN_PROGRESS, 1, 40, 28, 2, 1, 300, 900),
    JobSum(JobState.CANCELLED, 2, 10, 4, 0, 0, 20, 50),
]


def test_figures_are_sums_over_states() -> None:
    found = figures(SUMS, [JOB], 4.0, 10.0)
    assert found.jobs == {"in_progress": 1, "cancelled": 2}
    assert (found.completed, found.failed, found.recomputed) == (32, 2, 1)
    assert (found.prompt_tokens, found.completion_tokens) == (320, 950)
    assert found.open == 10  # what was cancelled is not owed to anybody
    assert found.runner_silence_s == 6.0
    (job,) = found.unfinished
    assert (job.left_s, job.waiting_for) == (90.0, "the disk is nearly full")


def test_every_metric_of_the_table_is_there_and_nobodys_name() -> None:
    made = batch_families(figures(SUMS, [JOB], 4.0, 10.0))
    named = {metric.name.removesuffix("_total"): metric for metric in BATCH}
    assert {family.name for family in made} == set(named)
    assert all(family.samples for family in made)
    text = repr(figures(SUMS, [JOB], 4.0, 10.0)) + repr(made)
    assert "alice" not in text
    assert "secret" not in text


def test_a_real_ledger_is_read(tmp_path) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    assert read_ledger(ledger, 50.0).jobs == {}
    ledger.files.add(
        FileRecord("file-1", "alice", "a.jsonl", "batch", 10, "d", 1.0), lambda _: True
    )
    new = NewJob("alice", "/v1/completions", "file-1", "24h", 100.0, {})
    job = ledger.jobs.create(new, 10.0)
    assert job is not None
    ledger.jobs.pause(job.id, "paused by its owner")
    ledger.requests.begin(45.0)
    found = read_ledger(ledger, 50.0)
    assert found.jobs == {"validating": 1}
    assert (found.paused, found.runner_silence_s) == (1, 5.0)
    assert found.unfinished[0].left_s == 60.0


def test_the_gateway_shows_them(tmp_path) -> None:
    settings = BatchSettings(
        config=BatchConfig(), folder=tmp_path, model_name="tiny", max_line_bytes=1 << 20
    )
    config = GatewayConfig(mesh="test", model_name="tiny", batch=settings)

    async def main():
        app = build_app(config, moving_mesh(), frozenset())
        async with app.router.lifespan_context(app), asyncio.timeout(60):
            while True:
                page = (await call(app, "GET", "/metrics")).body.decode()
                if "expertmesh_batch_requests_open 0.0" in page:
                    return (await call(app, "GET", "/api/v1/telemetry")).json()
                await asyncio.sleep(0.05)

    began_s = time.time()
    assert asyncio.run(main())["batch"]["unfinished"] == []
    assert time.time() - began_s < 60
