"""A start that is interrupted or fails: told in one line, and nothing is left running.

Each of these starts a mesh, so `make test` has one of each kind and `make test-long` the others.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.mesh_process import MeshProcess, mesh_config, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

STOP_S = 240.0
"""Measured 2 to 5 s on two free cores, Ray's own start is waited for; 30 s on a crowded machine."""
ORPHANS_S = 120.0
"""How long anything may outlive a `serve` that was killed; measured 2 s."""


@pytest.mark.parametrize(
    ("step", "number", "group"),
    [
        pytest.param("Start Ray ...", signal.SIGINT, True, marks=pytest.mark.long),
        pytest.param("Start expert shards ...", signal.SIGTERM, False, marks=pytest.mark.long),
        ("Load the engine ...", signal.SIGINT, True),
    ],
)
def test_a_signal_while_it_starts(
    tiny_model: Path, step: str, number: signal.Signals, group: bool
) -> None:
    with MeshProcess(mesh_config(tiny_model, "early")) as mesh:
        mesh.wait_for(step)
        mesh.signal(number, group)
        if group:  # an impatient person
            mesh.signal(number, group)
        assert mesh.wait(STOP_S) == 0, mesh.transcript
        assert mesh.err == []
        assert mesh.said("Stop the mesh: done")
        assert not mesh.said("ready at")
        assert mesh.left_over() == []


def test_everything_dies_with_a_killed_serve(tiny_model: Path) -> None:
    with MeshProcess(mesh_config(tiny_model, "killed")) as mesh:
        mesh.wait_for("Load the engine ...")
        wait_until(lambda: any("EngineCore" in p for p in mesh.living()), 120, "engine core")
        mesh.signal(signal.SIGKILL)
        mesh.wait()

        wait_until(lambda: mesh.left_over() == [], ORPHANS_S, "everything ended and was removed")


@pytest.mark.long
def test_a_killed_raylet_ends_it(tiny_model: Path) -> None:
    with MeshProcess(mesh_config(tiny_model, "cut")) as mesh:
        mesh.wait_for("Load the engine ...")
        mesh.kill("raylet/raylet ")
        assert mesh.wait(STOP_S) == 2, mesh.transcript
        assert mesh.err[-1].startswith("error: Ray's raylet has ended, and with it the mesh: start")
        logs = only_logs_left(mesh)
        assert list(logs.glob("worker-*.err"))


@pytest.mark.long
def test_a_control_service_lost_while_ray_is_asked_ends_it(tiny_model: Path) -> None:
    """The command waits for an answer of it: Ray's client would wait a minute, then end it all."""
    with MeshProcess(mesh_config(tiny_model, "asking")) as mesh:
        mesh.wait_for("Start Ray: done")
        (control,) = [line for line in mesh.living() if "gcs_server" in line]
        os.kill(int(control.split()[0]), signal.SIGSTOP)
        time.sleep(2)
        mesh.kill("gcs_server")
        assert mesh.wait(STOP_S) == 2, mesh.transcript
        assert mesh.err[-1].startswith("error: Ray's gcs_server has ended, and with it the mesh")
        only_logs_left(mesh)


def only_logs_left(mesh: MeshProcess) -> Path:
    """The logs that the last line names; nothing else of the mesh may be left."""
    logs = Path(mesh.err[-1].rpartition(" logs are in ")[2].strip())
    (kept,) = mesh.left_over()
    files = [path for path in Path(kept).rglob("*") if not path.is_dir()]
    assert [path for path in files if not path.is_relative_to(logs)] == []
    return logs


@pytest.mark.long
@pytest.mark.vllm
def test_a_controller_killed_while_it_starts_a_mesh_goes_on(tiny_model: Path) -> None:
    with MeshProcess(mesh_config(tiny_model, "orphan")) as mesh:
        mesh.wait_for("Start expert shards ...")
        wait_until(lambda: any("ray::ExpertShard" in p for p in mesh.living()), 120, "a shard")
        mesh.kill("ray::Controller")
        mesh.wait_for("ready at")
        assert mesh.complete() != ""
        shards = [p for p in mesh.living() if "ray::ExpertShard" in p]
        assert len(shards) == 2, "the ones that lived were found"
        mesh.signal(signal.SIGTERM)
        assert mesh.wait(STOP_S) == 0, mesh.transcript
        assert mesh.left_over() == []


@pytest.mark.vllm
def test_an_engine_that_fails_names_the_root_cause(tiny_model: Path) -> None:
    config = mesh_config(tiny_model, "greedy")
    config["engines"] |= {"kv_cache_gib": 100_000}
    with MeshProcess(config) as mesh:
        assert mesh.wait(300) == 2, mesh.transcript
        (line,) = mesh.err
        assert line.startswith("error: engine engine-0 did not start: Available memory on node")
        assert "is less than requested memory for kv (100000.0 GiB). Decrease --kv-cache" in line
        assert mesh.living() == []
        logs = Path(line.rpartition(" logs are in ")[2].strip())
        assert list(logs.glob("worker-*.err"))
