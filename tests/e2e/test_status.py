"""What a running mesh says about itself."""

import json
import math
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open

from actors.experts.families import read_expert_spec
from orchestrator.status import ComponentKind
from tests.e2e.mesh_process import MeshProcess, run_cli

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]


def test_json_lists_every_component(mesh: MeshProcess) -> None:
    status = mesh.status()
    assert (status["mesh"], status["model"], status["ready"]) == ("shared", "tiny", True)
    assert (status["epoch"] >= 1, status["router_mode"]) == (True, "embedded")
    listed = {c["id"]: (c["kind"], c["pool"], c["emulated"]) for c in status["components"]}
    assert listed == {
        "controller": ("controller", None, False),
        "nvidia-0": ("shard", "nvidia", True),
        "ascend-0": ("shard", "ascend", True),
        "engine-0": ("engine", None, False),
        "gateway": ("gateway", None, False),
    }
    for component in status["components"]:
        assert component["state"] == "ready"
        assert component["node"] == status["components"][0]["node"] != ""
        assert component["pid"] in mesh.seen
        assert psutil.pid_exists(component["pid"])


def test_the_speeds_of_emulated_pools_are_the_configs(mesh: MeshProcess) -> None:
    speeds = {c["id"]: c["speed"] for c in mesh.status()["components"] if c["pool"]}
    assert speeds == {"nvidia-0": 1.0, "ascend-0": 0.5}


def test_shards_hold_their_slots_and_no_more(mesh: MeshProcess, tiny_model: Path) -> None:
    spec = read_expert_spec(tiny_model)
    shards = [c for c in mesh.status()["components"] if c["kind"] == ComponentKind.SHARD]
    for shard in shards:
        assert shard["memory_bytes"] == shard["slots"] * spec.bytes_per_expert <= 2 << 20
    assert sum(shard["slots"] for shard in shards) >= spec.num_experts * len(spec.layers)


def test_the_engine_holds_no_routed_expert(mesh: MeshProcess, tiny_model: Path) -> None:
    """Less than the checkpoint without routed experts, and a rotary table (vLLM's CPU build packs
    some matrices out of sight)."""
    spec = read_expert_spec(tiny_model)
    with safe_open(tiny_model / "model.safetensors", "pt") as checkpoint:
        sizes = {name: checkpoint.get_slice(name) for name in checkpoint.keys()}  # noqa: SIM118
        others = sum(
            2 * math.prod(tensor.get_shape())
            for name, tensor in sizes.items()
            if ".experts." not in name
        )
    all_experts = spec.bytes_per_expert * spec.num_experts * len(spec.layers)
    held = mesh.component(ComponentKind.ENGINE)["memory_bytes"]
    assert 0 < held < others + all_experts // 4


def test_table_for_people(mesh: MeshProcess) -> None:
    done = run_cli("status", "--url", mesh.url)
    assert (done.returncode, done.stderr) == (0, "")
    head, _, columns, *rows = done.stdout.splitlines()
    assert head.startswith("shared serves tiny: ready (1 of 1 engines ready), plan epoch ")
    assert columns.split() == ["ID", "POOL", "STATE", "NODE", "PID", "MEMORY", "SLOTS", "SPEED"]
    ids = ["controller", "nvidia-0", "ascend-0", "engine-0", "gateway"]
    assert [row.split()[0] for row in rows] == ids
    assert all("emulated" in row for row in rows[1:3])


def test_nobody_there() -> None:
    done = run_cli("status", "--url", "http://127.0.0.1:1", "--json")
    assert done.returncode == 2
    assert done.stderr == (
        "error: no mesh answers at http://127.0.0.1:1: "
        "start one with `expertmesh serve`, or give --url\n"
    )


def test_serve_writes_only_its_own_lines(mesh: MeshProcess) -> None:
    assert mesh.err == []
    foreign = ("(raylet)", "INFO", "WARNING", "ray.", "Traceback")
    assert not [line for line in mesh.out if any(word in line for word in foreign)]
    body = next(line for line in mesh.out if line.strip().startswith("-d "))
    assert json.loads(body.strip()[len("-d '") : -1])["model"] == "tiny"
