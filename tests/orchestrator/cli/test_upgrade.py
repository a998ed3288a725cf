"""`expertmesh upgrade` over HTTP, on the control plane's real core in a simulated world."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from actors.origin import code_digest
from orchestrator.cli import change as change_module
from orchestrator.cli import upgrade as upgrade_module
from orchestrator.config.schema import MeshConfig
from orchestrator.control.rolling import outdated
from orchestrator.upgrade.effects import setups_of
from orchestrator.upgrade.taking_up import files_of, keep_running, take_up, why_not_yet
from tests.orchestrator.cli.core_mesh import SHAPE, CoreMesh, over_http
from tests.orchestrator.cli.test_operate import Ran
from tests.orchestrator.upgrade.configs import config

SESSION = "/run/one"


class UpgradedMesh(CoreMesh):
    """Its controller gives way as the real one does."""

    config: MeshConfig

    def run_with(self, fresh: MeshConfig) -> None:
        self.config = fresh
        self.sim.settings = replace(self.sim.settings, origins=setups_of(fresh))
        keep_running(fresh, SESSION, code_digest(), "f")

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        if verb != "upgrade":
            return await super().ask(verb, target, number, dry_run)
        assert self.sim.state is not None
        if why := why_not_yet(self.config, SESSION, self.sim.state.intent):
            return False, why
        taken = take_up(self.config, SESSION, again=True)
        if taken.wanted is not None and "refuse" in taken.config.engines.vllm:
            files_of(self.config).refuse(taken.wanted, "it will not do")
        else:
            self.run_with(taken.config)
        self.sim.kill_controller(back_s=0.0)
        self.sim.clock.run(self.sim.clock.now_s + 1.0)
        return True, "gives way"


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UpgradedMesh]:
    for name in ("EXPERTMESH_API_KEYS", "EXPERTMESH_ADMIN_KEYS", "EXPERTMESH_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(change_module, "POLL_S", 0.02)
    monkeypatch.setattr(upgrade_module, "POLL_S", 0.02)
    first = config(tmp_path)
    core = UpgradedMesh(origins=setups_of(first))
    with over_http(core) as url:
        core.run_with(first.with_endpoint(None, int(url.rpartition(":")[2])))
        yield core


def run(capsys: pytest.CaptureFixture[str], folder: Path, *options: str, **sections: object) -> Ran:
    path = folder / "mesh.yaml"
    path.write_text(yaml.safe_dump(config(folder, **sections).model_dump(mode="json")))
    return Ran(capsys, "upgrade", str(path), *options)


def generations(mesh: UpgradedMesh) -> dict[str, int]:
    assert mesh.sim.state is not None
    return {id: place.generation for id, place in mesh.sim.state.intent.places.items()}


def test_only_what_was_started_otherwise_is_replaced(
    mesh: UpgradedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    term = mesh.sim.state.intent.term
    changed = {"pools": {"gpu": {"threads": 2}}, "controller": {"rebalance_pause_s": 5}}
    looked = run(capsys, tmp_path, "--dry-run", **changed)
    assert looked.code == 0
    assert "pools.gpu.threads: 1 -> 2: the pool's shards are replaced" in looked.out
    assert mesh.sim.state.intent.term == term, "nothing is touched"
    done = run(capsys, tmp_path, **changed)
    assert done.code == 0, done.err
    assert "gpu-1 generation 2 serves" in done.out
    kept = {id: 1 for id in generations(mesh) if not id.startswith("gpu")}
    assert generations(mesh) == {**kept, "gpu-0": 2, "gpu-1": 2}
    assert mesh.sim.state.intent.term > term
    assert outdated(mesh.sim.state) == []
    again = run(capsys, tmp_path, **changed)
    assert (again.code, again.out) == (
        0, "every process runs with the installed code and this config\n",
    )  # fmt: skip


def test_what_cannot_change_is_refused_before_anything_is_touched(
    mesh: UpgradedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    term = mesh.sim.state.intent.term
    mode = run(capsys, tmp_path, router={"mode": "actor"})
    assert mode.code == 1
    assert "refused: router.mode: embedded -> actor: not while the mesh runs" in mode.err
    small = run(capsys, tmp_path, pools={"cpu": {"shards": 1}, "gpu": {"shards": 1}})
    assert small.code == 1
    assert "have room for" in small.err
    other = run(capsys, tmp_path, mesh={"name": "other"})
    assert other.code == 2
    assert "no mesh named other runs with the state folder" in other.err
    newer = files_of(mesh.config).running().model_copy(update={"interfaces": {}})
    files_of(mesh.config).keep_running(newer)
    apart = run(capsys, tmp_path)
    assert apart.code == 1
    assert "frame version: the mesh has none" in apart.err
    assert mesh.sim.state.intent.term == term


def test_the_last_engine_is_not_replaced(
    mesh: UpgradedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ran(capsys, "scale", "engine", "1", "--wait", "--url", _url(mesh))
    engines = {"replicas": 2, "vllm": {"max_num_seqs": 8}}
    refused = run(capsys, tmp_path, engines=engines)
    assert refused.code == 1
    assert "engine-0 is the last engine" in refused.err
    assert "scale engine 2" in refused.err


def test_the_old_config_stays_where_no_controller_can_begin_with_the_new_one(
    mesh: UpgradedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = run(capsys, tmp_path, engines={"replicas": 2, "vllm": {"refuse": True}})
    assert refused.code == 1
    assert "the old config stays: it will not do" in refused.err
    assert set(generations(mesh).values()) == {1}


def test_a_pool_grows(
    mesh: UpgradedMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(capsys, tmp_path, pools={"cpu": {"shards": 5}})
    assert done.code == 0, done.err
    assert generations(mesh)["cpu-4"] == 1
    assert SHAPE.shards == 4


def _url(mesh: UpgradedMesh) -> str:
    return f"http://127.0.0.1:{mesh.config.gateway.port}"
