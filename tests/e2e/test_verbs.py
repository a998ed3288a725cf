"""Verbs on a mesh that serves: each does what it says, and the requests meanwhile succeed."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from orchestrator.status import ComponentKind
from tests.e2e.mesh_process import (
    MeshProcess,
    mesh_config,
    run_cli,
    serving,
    wait_until,
    write_config,
)

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm, pytest.mark.long]

WAIT_S = 300.0


@pytest.fixture(scope="module")
def verbs_mesh(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcess]:
    """Four shards of which three have room for everything."""
    pool = {"emulated": True, "memory": "4MiB", "shards": 2}
    pools = {
        "nvidia": {"vendor": "nvidia", "speed": 1.0, **pool},
        "ascend": {"vendor": "ascend", "speed": 0.5, **pool},
    }
    state = {"state_dir": str(tmp_path_factory.mktemp("state"))}
    with serving(mesh_config(tiny_model, "verbs", pools=pools, cluster=state)) as mesh:
        yield mesh


def run(mesh: MeshProcess, *arguments: str, code: int = 0) -> str:
    """stdout of a command; where it is refused or wrong, what stderr says."""
    done = run_cli(*arguments, "--url", mesh.url, timeout_s=WAIT_S + 60)
    assert done.returncode == code, done.stdout + done.stderr + mesh.transcript
    text: str = done.stderr if code else done.stdout
    return text


def told(mesh: MeshProcess, command: str) -> dict:
    answer: dict = json.loads(run(mesh, command, "--json"))
    return answer


@contextmanager
def served_meanwhile(mesh: MeshProcess) -> Iterator[None]:
    """One greedy request after another all the time: all succeed, with one text."""
    expected, texts, errors = mesh.complete(), [], []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            try:
                texts.append(mesh.complete())
            except Exception as error:
                errors.append(repr(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert errors == []
    assert len(texts) > 2
    assert set(texts) == {expected}


def pools_of(mesh: MeshProcess, layer: int, expert: int) -> set[str]:
    shards = told(mesh, "experts")["shards"]
    return {id.rpartition("-")[0] for id, held in shards.items() if expert in held[str(layer)]}


def test_looking(verbs_mesh: MeshProcess) -> None:
    shards = {shard["id"]: shard for shard in told(verbs_mesh, "shards")["shards"]}
    assert sorted(shards) == ["ascend-0", "ascend-1", "nvidia-0", "nvidia-1"]
    listed = {c["id"]: c for c in verbs_mesh.quick_status()["components"]}
    for id, shard in shards.items():
        assert (shard["life"], shard["pid"]) == ("ready", listed[id]["pid"])
        assert 0 < shard["held_bytes"] <= shard["capacity_bytes"]
    (node,) = told(verbs_mesh, "nodes")["nodes"]
    assert set(shards) < set(node["components"])
    placement = told(verbs_mesh, "experts")
    assert placement["least_copies"] >= 1
    assert sum(map(sum, placement["copies"].values())) == sum(s["copies"] for s in shards.values())
    assert told(verbs_mesh, "transactions")["transactions"][-1]["phase"] == "done"
    assert any("is ready" in event["reason"] for event in told(verbs_mesh, "events")["events"])
    for command in ("shards", "nodes", "experts", "transactions", "events", "status"):
        assert run(verbs_mesh, command)
    health = verbs_mesh.get("/v1/fault_tolerance/status").json()
    assert health["engines"] == [{"id": 0, "status": "healthy"}]


def test_refusals(verbs_mesh: MeshProcess) -> None:
    assert "the last engine" in run(verbs_mesh, "drain", "engine-0", code=1)
    assert "did you mean nvidia-1?" in run(verbs_mesh, "cordon", "nvidia-11", code=1)
    assert "scale engine up first" in run(verbs_mesh, "rolling-restart", "all", code=1)


def test_a_pinned_expert_moves_while_requests_are_served(verbs_mesh: MeshProcess) -> None:
    with served_meanwhile(verbs_mesh):
        run(verbs_mesh, "pin", "1/3", "ascend", "--wait")
        assert pools_of(verbs_mesh, 1, 3) == {"ascend"}
        run(verbs_mesh, "pin", "1/3", "nvidia", "--wait")
        assert pools_of(verbs_mesh, 1, 3) == {"nvidia"}
        run(verbs_mesh, "unpin", "1/3")


def test_an_upgrade_is_a_rolling_restart_of_what_differs_and_loses_no_request(
    verbs_mesh: MeshProcess, tmp_path: Path
) -> None:
    """The controller gives way to another process, which goes by the new config."""
    before = {s["id"]: s["pid"] for s in told(verbs_mesh, "shards")["shards"]}
    term = verbs_mesh.get("/api/v1/cluster").json()["term"]
    config = yaml.safe_load(verbs_mesh.config_path.read_text())
    config["pools"]["nvidia"]["speed"] = 0.9
    config["controller"]["rebalance_pause_s"] = 3000
    path = write_config(tmp_path, config)
    with served_meanwhile(verbs_mesh):
        done = run_cli("upgrade", str(path), timeout_s=WAIT_S + 60)
        assert done.returncode == 0, done.stdout + done.stderr + verbs_mesh.transcript
    assert "pools.nvidia.speed: 1.0 -> 0.9: the pool's shards are replaced" in done.stdout
    cluster = verbs_mesh.get("/api/v1/cluster").json()
    assert cluster["term"] > term
    assert not any(place["outdated"] for place in cluster["places"])
    after = {s["id"]: s for s in told(verbs_mesh, "shards")["shards"]}
    for id in ("nvidia-0", "nvidia-1"):
        assert after[id]["pid"] != before[id]
        assert (after[id]["generation"], after[id]["restarts"]) == (2, 0)
    assert {after[id]["pid"] for id in ("ascend-0", "ascend-1")} == {
        before[id] for id in ("ascend-0", "ascend-1")
    }


def test_a_pool_grows_and_a_shard_is_drained_while_requests_are_served(
    verbs_mesh: MeshProcess,
) -> None:
    with served_meanwhile(verbs_mesh):
        run(verbs_mesh, "scale", "ascend", "3", "--wait", "--timeout", str(WAIT_S))
        shards = {shard["id"]: shard for shard in told(verbs_mesh, "shards")["shards"]}
        assert shards["ascend-2"]["copies"] > 0
        out = run(verbs_mesh, "drain", "ascend-0", "--wait", "--timeout", str(WAIT_S))
        assert "ascend-0 ended as asked" in out
    assert "ascend-0" not in {shard["id"] for shard in told(verbs_mesh, "shards")["shards"]}


def test_what_is_known_is_told_while_the_controller_is_away(verbs_mesh: MeshProcess) -> None:
    before = told(verbs_mesh, "shards")["shards"]
    verbs_mesh.kill("ray::Controller")
    status = told(verbs_mesh, "status")
    assert status["components"]
    shown = told(verbs_mesh, "shards")
    assert [shard["id"] for shard in shown["shards"]] == [shard["id"] for shard in before]
    assert verbs_mesh.complete()
    wait_until(lambda: told(verbs_mesh, "shards")["stale_s"] == 0, 60, "a controller again")
    wait_until(lambda: verbs_mesh.get("/api/v1/cluster").json()["settled"], 60, "settled")
    assert verbs_mesh.component(ComponentKind.CONTROLLER)["state"] == "ready"
    run(verbs_mesh, "cordon", "ascend-1")
    run(verbs_mesh, "uncordon", "ascend-1")


@contextmanager
def unreadable_numbers(model: Path, layer: int) -> Iterator[None]:
    """What shards read of this layer's experts meanwhile is no number, as from a bad disk."""
    (path,) = model.glob("*.safetensors")
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    tensors = json.loads(whole[8:begin])
    bad = bytearray(whole)
    for name, tensor in tensors.items():
        if f".layers.{layer}.mlp.experts." in name and "down_proj" in name:
            first, end = (begin + offset for offset in tensor["data_offsets"])
            bad[first:end] = b"\xff" * (end - first)  # NaN in bf16
    with path.open("r+b") as file:
        file.write(bad)
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.write(whole)


def test_a_shard_that_answers_no_numbers_is_replaced_and_nobody_gets_them(
    verbs_mesh: MeshProcess, tiny_model: Path
) -> None:
    """Quarantine: its rows are computed by others, it is ended, and its successor is sound."""
    copies = told(verbs_mesh, "experts")["copies"]["1"]
    assert min(copies) > 1, "others can be asked"
    before = {s["id"]: s for s in told(verbs_mesh, "shards")["shards"]}["nvidia-1"]

    def quarantined() -> bool:
        events = verbs_mesh.get("/api/v1/events?after=-200").json()["events"]
        return any(e["step"] == "quarantine" and e["subject"] == "nvidia-1" for e in events)

    with served_meanwhile(verbs_mesh):
        with unreadable_numbers(tiny_model, layer=1):
            os.kill(before["pid"], signal.SIGKILL)
            wait_until(quarantined, WAIT_S, "the shard is found out")
        wait_until(lambda: verbs_mesh.get("/api/v1/cluster").json()["settled"], WAIT_S, "settled")
    after = {s["id"]: s for s in told(verbs_mesh, "shards")["shards"]}["nvidia-1"]
    assert (after["life"], after["copies"] > 0) == ("ready", True)
    assert after["generation"] >= before["generation"] + 2
