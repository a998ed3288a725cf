"""The runner is killed at each of its writes, and another one goes on: every line comes once.

Writes are commits of the ledger and steps of the content store, in the order in which they happen.
Killed means SIGKILL, to a process of its own, right before the write and right after it.
"""

import asyncio
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import Engine as SqlEngine
from sqlalchemy import event

from orchestrator.batch.content import LocalStore, Spool
from orchestrator.batch.ledger import open_ledger
from orchestrator.batch.pages import PageQuery
from orchestrator.batch.records import FileRecord, NewJob
from orchestrator.batch.runner import Runner
from orchestrator.batch.states import JobState
from tests.batch.desk import CHAT, Engine, answer, line, make_settings
from tests.orchestrator.gateway.fakes import FakeMesh

REQUESTS = 12
REFUSED = 5
"""The request with this number gets an error line."""

NEVER = -1


class Killer:
    """Kills its process at one write, before or after it."""

    def __init__(self, at: int, after: bool) -> None:
        self._at, self._after, self._count = at, after, 0

    def before_write(self) -> None:
        # After one write is before whatever comes next: the count tells them apart.
        self._count += 1
        if self._count == self._at and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_write(self) -> None:
        if self._count == self._at and self._after:
            os.kill(os.getpid(), signal.SIGKILL)


class DeadlyStore(LocalStore):
    """A store that is killed at a step of a writing."""

    def __init__(self, folder: Path, killer: Killer) -> None:
        super().__init__(folder)
        self._killer = killer

    def spool(self) -> Spool:
        self._killer.before_write()
        spool = super().spool()
        self._killer.after_write()
        return spool

    def put(self, spool: Spool, digest: str) -> None:
        self._killer.before_write()
        super().put(spool, digest)
        self._killer.after_write()


def run(folder: Path, at: int, after: bool) -> None:
    """A runner's process: ends when the job is finished, or at write `at`."""
    settings = make_settings(folder)
    killer = Killer(at, after)
    ledger = open_ledger(settings.database_url)

    @event.listens_for(SqlEngine, "commit")
    def on_commit(_: object) -> None:
        killer.before_write()

    @event.listens_for(SqlEngine, "checkin")
    def on_checkin(*_: object) -> None:
        killer.after_write()

    async def work() -> None:
        mesh = FakeMesh({"engine-0": Engine(behave=refuse_one, max_running=3, delay_s=0.005)})
        runner = Runner(settings, ledger, DeadlyStore(folder / "files", killer), mesh)
        running = asyncio.create_task(runner.run())
        while ledger.jobs.unfinished():
            await asyncio.sleep(0.05)
        running.cancel()

    asyncio.run(work())


def refuse_one(body):
    refused = body["messages"][0]["content"] == str(REFUSED)
    return answer(body, 400) if refused else None


def begin_job(folder: Path):
    settings = make_settings(folder)
    ledger = open_ledger(settings.database_url)
    store = settings.open_store()
    with store.spool() as spool:
        text = "".join(line(f"r{n}", str(n)) + "\n" for n in range(REQUESTS))
        spool.write(text.encode())
        digest = spool.seal()
        store.put(spool, digest)
        file = FileRecord("file-1", "me", "in.jsonl", "batch", spool.bytes, digest, 0.0)
        assert ledger.files.add(file, store.has)
    job = ledger.jobs.create(NewJob("me", CHAT, file.id, "24h", 1e12, {}), 0.0)
    ledger.database.close()
    return settings, job.id


def in_a_process(folder: Path, at: int, after: bool) -> int:
    """Exit code of a runner's process."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(folder, at, after))
    process.start()
    process.join(60)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def check(settings, job_id: str) -> int:
    """Every line is there once; returns how many were computed again."""
    ledger, store = open_ledger(settings.database_url), settings.open_store()
    job = ledger.jobs.get(job_id)
    assert job.status is JobState.COMPLETED
    assert (job.total, job.completed, job.failed) == (REQUESTS, REQUESTS - 1, 1)
    numbers = {}
    for kind, file_id in (("output", job.output_file), ("error", job.error_file)):
        text = store.local(ledger.files.get(file_id).digest).read_text()
        numbers[kind] = [json.loads(one)["custom_id"] for one in text.splitlines()]
    assert numbers["error"] == [f"r{REFUSED}"]
    assert numbers["output"] == [f"r{n}" for n in range(REQUESTS) if n != REFUSED]
    assert len(ledger.files.page("me", PageQuery(limit=100)).items) == 3
    ledger.database.close()
    return job.recomputed


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_one_job_survives_a_kill_at_ever_later_writes(tmp_path, after):
    settings, job_id = begin_job(tmp_path)
    killed = 0
    while in_a_process(tmp_path, killed + 1, after) == -signal.SIGKILL:
        killed += 1
    assert killed >= 4
    check(settings, job_id)


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_job_survives_a_kill_at_every_write(tmp_path, after):
    at, recomputed = 0, 0
    while True:
        at += 1
        folder = tmp_path / f"{at}"
        settings, job_id = begin_job(folder)
        if in_a_process(folder, at, after) == 0:
            break
        assert in_a_process(folder, NEVER, after) == 0
        recomputed += check(settings, job_id)
    assert at > 10
    assert recomputed > 0
