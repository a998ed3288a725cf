"""`expertmesh plan` and `expertmesh record` against a real checkpoint and a real HTTP server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from orchestrator.cli.plan import plan
from orchestrator.cli.record import record
from orchestrator.cli.simulate import simulate_trace
from orchestrator.errors import UserError
from orchestrator.expert_load import sum_load
from orchestrator.load_trace import LoadTrace, read_trace, write_npz
from placement.trace import Trace
from tests.checkpoints.make import make_checkpoint


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_checkpoint("qwen3_moe", folder / "model")
    path = folder / "mesh.yaml"
    path.write_text(
        "model: {path: ./model}\n"
        "pools:\n"
        "  fast: {vendor: nvidia, emulated: true, speed: 1.0, memory: 4MiB}\n"
        "  slow: {vendor: ascend, emulated: true, speed: 0.25, memory: 4MiB}\n"
    )
    return path


def recorded(layers: tuple[int, ...], counts: np.ndarray) -> LoadTrace:
    windows = len(counts)
    trace = Trace(counts, np.arange(windows) * 1.0, np.ones(windows), ("",) * windows)
    return LoadTrace("m", layers, trace)


def planned(config: Path, capsys: pytest.CaptureFixture[str], trace: Path | None = None) -> dict:
    assert plan(config, trace, as_json=True) == 0
    report: dict = json.loads(capsys.readouterr().out)
    return report


def test_plan_says_what_a_loss_would_take_and_what_two_copies_cost(
    tmp_path: Path, config: Path, capsys
) -> None:
    report = planned(config, capsys)
    alone = dict.fromkeys(("fast-0", "slow-0"), 0)
    for layer in report["placement"].values():
        for name, other in (("fast-0", "slow-0"), ("slow-0", "fast-0")):
            alone[name] += len(set(layer[name]) - set(layer[other]))
    device = report["survives"]["device"]
    assert device == {"survives_any": not any(alone.values()), "experts_lost": alone}
    pools = report["survives"]["pool"]["experts_lost"]
    assert pools == {"fast": alone["fast-0"], "slow": alone["slow-0"]}
    size = report["bytes_per_expert"]
    small = tmp_path / "small.yaml"
    text = config.read_text().replace("./model", str(config.parent / "model"))
    small.write_text(text.replace("4MiB", str(30 * size)))
    report = planned(small, capsys)
    assert not report["survives"]["device"]["survives_any"]
    assert report["two_copies"] == {"fits": False, "missing_bytes": 36 * size, "balancedness": None}
    assert plan(small, None, as_json=False) == 0
    assert "two copies of each would survive that and need" in capsys.readouterr().out


DOMAINS = ("rack-1", "rack-1", "rack-2", "rack-2")


@pytest.mark.parametrize("named", [False, True])
def test_plan_puts_copies_into_different_failure_domains(
    named: bool, tmp_path: Path, config: Path, capsys
) -> None:
    """Two racks of two shards with room for two copies of each expert and hardly more."""
    content = yaml.safe_load(config.read_text().replace("./model", str(config.parent / "model")))
    size = planned(config, capsys)["bytes_per_expert"]
    report = planned(config, capsys)
    room = -(-2 * report["layers"] * report["experts"] // len(DOMAINS)) + report["layers"]
    content["pools"] = {
        f"p{number}": {"vendor": "cpu", "speed": 1.0, "memory": room * size}
        | ({"domain": domain} if named else {})
        for number, domain in enumerate(DOMAINS)
    }
    content["placement"] = {"min_copies": 2}
    written = tmp_path / "racks.yaml"
    written.write_text(yaml.safe_dump(content))
    report = planned(written, capsys)
    racks: dict[str, set] = {}
    for shard, rack in zip(sorted(s["id"] for s in report["shards"]), DOMAINS, strict=True):
        held = {(la, e) for la, by in report["placement"].items() for e in by[shard]}
        racks.setdefault(rack, set()).update(held)
    whole = report["layers"] * report["experts"]
    assert [len(held) == whole for held in racks.values()] == [named, named]
    assert report["survives"]["device"]["survives_any"]
    assert ("domain" in report["survives"]) == named
    if named:
        lost = report["survives"]["domain"]
        assert lost == {"survives_any": True, "experts_lost": {"rack-1": 0, "rack-2": 0}}
        assert plan(written, None, as_json=False) == 0
        assert "any one domain may be lost" in capsys.readouterr().out


def test_plan_gives_load_by_speed(config: Path, capsys) -> None:
    report = planned(config, capsys)
    fast, slow = report["shards"]
    # A little more than its part of the speed: each shard's call takes a constant time too.
    assert fast["share_of_load"] == pytest.approx(0.81, abs=0.015)
    assert slow["share_of_load"] == pytest.approx(0.19, abs=0.015)
    for shard in report["shards"]:
        assert 0 < shard["memory_bytes"] <= shard["memory_limit_bytes"]
        assert shard["emulated"]
    for layer in report["placement"].values():
        assert set(layer["fast-0"]) | set(layer["slow-0"]) == set(range(report["experts"]))
    assert report["balancedness"] <= report["bound"] + 1e-9


def test_plan_follows_a_recorded_load(config: Path, capsys, tmp_path: Path) -> None:
    uniform = planned(config, capsys)
    layers, experts = uniform["layers"], uniform["experts"]
    counts = np.ones((1, layers, experts), np.int64)
    counts[:, :, 0] = 1000
    indices = tuple(int(layer) for layer in uniform["placement"])
    write_npz(tmp_path / "t.npz", recorded(indices, counts))
    skewed = planned(config, capsys, tmp_path / "t.npz")
    assert all(0 in layer["fast-0"] for layer in skewed["placement"].values())


def test_plan_refuses_the_trace_of_another_model(config: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "t.npz", recorded((0,), np.ones((1, 1, 2), np.int64)))
    with pytest.raises(UserError, match="the trace is of m: 2 experts in layers"):
        plan(config, tmp_path / "t.npz", as_json=True)


def test_plan_for_people_names_what_is_emulated(config: Path, capsys) -> None:
    assert plan(config, None, as_json=False) == 0
    shown = capsys.readouterr().out
    assert shown.count("emulated") == 2
    assert "balancedness" in shown
    assert "why:" in shown


@pytest.fixture
def mesh() -> Iterator[str]:
    """A server whose expert load grows by one everywhere at each question."""
    asked = [0]

    class Load(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[0] += 1
            counts = {"a-0": np.full((2, 3), asked[0], np.int64)}
            body = json.dumps(sum_load("tiny", (1, 4), counts, 3).to_json()).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Load)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["t.npz", "t.jsonl"])
def test_record_writes_differences(mesh: str, tmp_path: Path, name: str) -> None:
    assert record(mesh, tmp_path / name, window_s=0.1, windows=3) == 0
    trace = read_trace(tmp_path / name)
    assert (trace.model, trace.layers) == ("tiny", (1, 4))
    assert (trace.trace.counts == np.ones((3, 2, 3))).all()
    assert (trace.trace.window_s >= 0.1).all()


def test_record_refuses_another_file_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither \.jsonl nor \.npz"):
        record("http://127.0.0.1:1", tmp_path / "t.csv", 1.0, 1)


def test_record_without_a_mesh(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no mesh answers at"):
        record("http://127.0.0.1:1", tmp_path / "t.npz", 1.0, 1)


def test_simulate_compares_policies(config: Path, capsys, tmp_path: Path) -> None:
    uniform = planned(config, capsys)
    layers = tuple(int(layer) for layer in uniform["placement"])
    counts = np.random.default_rng(0).poisson(50, (4, len(layers), uniform["experts"]))
    write_npz(tmp_path / "t.npz", recorded(layers, counts.astype(np.int64)))
    # Memory for six in ten experts a shard: where an expert lives matters.
    room = uniform["bytes_per_expert"] * uniform["experts"] * len(layers) * 6 // 10
    text = (
        config.read_text().replace("4MiB", str(room)).replace("./model", f"{config.parent}/model")
    )
    config = tmp_path / "tight.yaml"
    config.write_text(text)
    assert simulate_trace(tmp_path / "t.npz", config, as_json=True) == 0
    policies = json.loads(capsys.readouterr().out)["policies"]
    assert policies["plan once"]["copies"] == 0
    assert policies["re-plan every window"]["copies"] > 0
    assert all(0 < result["worst_balancedness"] <= 1 + 1e-9 for result in policies.values())
    assert simulate_trace(tmp_path / "t.npz", config, as_json=False) == 0
    assert "keep, nudge or re-plan" in capsys.readouterr().out


def test_simulate_needs_two_windows(config: Path, capsys, tmp_path: Path) -> None:
    uniform = planned(config, capsys)
    layers = tuple(int(layer) for layer in uniform["placement"])
    write_npz(
        tmp_path / "t.npz",
        recorded(layers, np.ones((1, len(layers), uniform["experts"]), np.int64)),
    )
    with pytest.raises(UserError, match="holds one window: record two"):
        simulate_trace(tmp_path / "t.npz", config, as_json=True)
