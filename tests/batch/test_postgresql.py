"""The ledger on a real PostgreSQL: all of its tests, and a server that crashes under a job."""

import pytest
from sqlalchemy import text

from orchestrator.batch.ledger import open_ledger
from tests.batch.desk import Engine, line, make_settings, open_desk
from tests.batch.postgres import postgres
from tests.batch.test_ledger import *  # noqa: F403
from tests.processes import wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        yield server


@pytest.fixture
def ledger(server):
    ledger = open_ledger(server.url)
    yield ledger
    with ledger.database.write() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    ledger.database.close()


def test_a_job_survives_a_crash_of_the_database(server, tmp_path):
    settings = make_settings(tmp_path / "state", database=server.url)
    engine = Engine(max_running=4, delay_s=0.02)
    with open_desk(settings, {"engine-0": engine}) as desk:
        job = desk.submit([line(f"r{n}", f"{n}") for n in range(300)])
        wait_until(lambda: desk.client.batches.retrieve(job.id).request_counts.completed > 20)
        server.kill()
        server.start()
        job = desk.wait(job, timeout_s=60)
        assert job.status == "completed"
        found = [one["custom_id"] for one in desk.lines(job.output_file_id)]
        assert found == [f"r{n}" for n in range(300)]
