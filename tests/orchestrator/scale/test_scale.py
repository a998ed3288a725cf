"""Clusters on paper: figures that can be worked out by hand, files that are shipped, bad ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.scale import plan_cluster
from orchestrator.errors import UserError
from orchestrator.scale.cluster_file import Assumptions, PaperCluster, read_cluster
from orchestrator.scale.deepep import beside_deepep
from orchestrator.scale.devices import PaperDevice, devices_of
from orchestrator.scale.estimate import estimate
from orchestrator.scale.models import MODELS, V4_FLASH, V4_PRO, PaperModel
from orchestrator.scale.traffic import Traffic
from placement.cost_model import DeviceCost

CLUSTERS = Path(__file__).parents[3] / "examples" / "clusters"
ANY = DeviceCost(0.0, 0.0, 1.0)
SMALL = PaperModel("small", 2, 16, 2, 1024, 512, {"fp4": 1_000_000})


def cluster(**pools: dict) -> PaperCluster:
    return PaperCluster.model_validate({"name": "test", "tokens": 64, "pools": pools})


def chips(packages: int, **more: object) -> dict:
    return {"vendor": "nvidia", "chip": "h200", "packages": packages, **more}


def test_the_models_are_as_large_as_they_are_said_to_be() -> None:
    assert V4_FLASH.total_bytes("fp4") == 43 * 256 * 13_400_000
    assert V4_PRO.total_bytes("fp4") == 61 * 384 * 35_000_000
    for model in MODELS.values():
        weights = 3 * model.hidden * model.intermediate
        assert weights / 2 < model.expert_bytes["fp4"] < 0.55 * weights
        assert weights < model.expert_bytes["int8"] < 1.01 * weights


def test_a_package_of_two_devices_is_two_with_half_of_everything() -> None:
    pool = {"vendor": "ascend", "chip": "910c", "packages": 9, "weights": "int8"}
    devices, sources = devices_of(cluster(a3=pool), V4_FLASH)
    assert len(devices) == 18
    assert [device.node for device in devices] == [0] * 16 + [1] * 2
    assert devices[0].expert_slots == int(0.9 * 64e9 / V4_FLASH.expert_bytes["int8"])
    read_s = V4_FLASH.expert_bytes["int8"] / (1.6e12 * 0.6)
    assert devices[0].cost.read_s == pytest.approx(read_s)
    assert any("560-752 TFLOPS (code" in source for source in sources)


def test_what_nobody_has_said_has_to_be_assumed() -> None:
    mlu = {"vendor": "cambricon", "chip": "mlu590", "packages": 8, "weights": "int8"}
    with pytest.raises(UserError, match="nobody has said the bandwidth of cambricon mlu590"):
        devices_of(cluster(mlu=mlu), V4_FLASH)
    assume = {"bandwidth": "1TB", "tflops": 200, "source": "a guess"}
    _, sources = devices_of(cluster(mlu={**mlu, "assume": assume}), V4_FLASH)
    assert "mlu bandwidth: assumed (a guess)" in sources
    with pytest.raises(UserError, match="did you mean h200"):
        devices_of(cluster(x={**chips(1), "chip": "h2000"}), V4_FLASH)
    with pytest.raises(UserError, match="not known in int2: use fp4 or int8"):
        devices_of(cluster(x=chips(1, weights="int2")), V4_FLASH)


def paper_traffic(nodes: list[int], engines: list[bool], tokens: int = 100) -> Traffic:
    devices = [
        PaperDevice("p", node, 1, 1, ANY, runs) for node, runs in zip(nodes, engines, strict=True)
    ]
    share = np.full(len(nodes), 1 / len(nodes))
    return Traffic(Assumptions(), tokens, 1, 1000, devices, share)


def test_rows_within_a_node_do_not_cross_its_network() -> None:
    alone = paper_traffic([0, 0], [True, True])
    assert alone.bytes_between_nodes() == 0
    assert alone.busiest()[1] == 0


def test_bytes_between_nodes_are_rows_there_and_sums_back() -> None:
    """Two nodes, one with the engine: with top-1 half of 100 rows go to the other and come back."""
    half = paper_traffic([0, 1], [True, False])
    assert half.bytes_between_nodes() == pytest.approx(50 * 1000 * (2 + 4))
    speed = 400e9 / 8 * 0.8
    assert half.busiest()[1] == pytest.approx(50 * 1000 * 4 / speed)


def test_ipc_spares_the_copies_of_a_node_and_no_others() -> None:
    alone = paper_traffic([0, 0], [True, True], tokens=10_000)
    assert alone.layer_time(0.0, ipc=True).total_s < alone.layer_time(0.0, ipc=False).total_s / 3
    apart = paper_traffic([0, 1], [True, False], tokens=10_000)
    staged, ipc = (apart.layer_time(1e-4, ipc=way) for way in (False, True))
    assert staged.compute_s == ipc.compute_s == 1e-4
    assert ipc.total_s == pytest.approx(staged.total_s)


def test_deepep_is_faster_than_rows_through_hosts() -> None:
    """Hosts cost more than DeepEP's published 77 + 114 and 194 + 360 µs, and we say so."""
    eight, many = beside_deepep(Assumptions())
    for found, published in ((eight, 77 + 114), (many, 194 + 360)):
        assert sum(found.published_us) == published
        assert found.staged.total_s * 1e6 > published
    assert eight.ipc.total_s < eight.staged.total_s / 2


def test_more_memory_than_needed_means_copies_and_no_loss() -> None:
    found = estimate(cluster(a=chips(4, packages_per_node=1, engines=True)), SMALL)
    assert found.copies == pytest.approx(2.0)
    assert found.balancedness <= found.bound + 1e-9
    assert sum(found.pool_shares.values()) == pytest.approx(1.0)
    assert all(loss.fits for loss in found.losses)
    assert found.losses[0].speed == pytest.approx(0.75)
    slowest_s = max(found.compute_s, found.network_s)
    assert found.tokens_per_s == pytest.approx(64 / (2 * slowest_s))
    assert found.price is None


def test_prices_are_of_all_packages() -> None:
    priced = estimate(cluster(a=chips(4, price_per_hour=3.0)), SMALL)
    assert priced.price == pytest.approx(12.0 / 3600 / priced.tokens_per_s * 1e6)


def test_a_cold_pool_gets_what_others_have_no_room_for() -> None:
    """Room for 24 of 32 experts: the other pool holds 8, those asked for least."""
    slow = {"memory": "1GB", "bandwidth": "100GB", "tflops": 1, "source": "a test"}
    quick = {"memory": 26_700_000, "bandwidth": "1TB", "tflops": 100, "source": "a test"}
    cpu = {"vendor": "cpu", "packages": 1, "cold": True, "assume": slow}
    fast = {"vendor": "nvidia", "packages": 1, "assume": quick}
    found = estimate(cluster(fast=fast, cpu=cpu), SMALL)
    assert 0 < found.pool_shares["cpu"] < 8 / 32
    roomy = {**fast, "assume": {**quick, "memory": "1GB"}}
    assert estimate(cluster(fast=roomy, cpu=cpu), SMALL).pool_shares["cpu"] == 0


def test_a_model_that_does_not_fit_says_how_much_is_missing() -> None:
    with pytest.raises(UserError, match=r"V4-Pro does not fit test: .* \d+ less.*give pools.a"):
        estimate(cluster(a=chips(6)), V4_PRO)


@pytest.mark.parametrize("file", sorted(CLUSTERS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_clusters_can_be_read_and_their_devices_are_known(file: Path) -> None:
    read = read_cluster(file)
    for model in MODELS.values():
        devices, sources = devices_of(read, model)
        assert devices
        assert sources


def test_the_command_lists_sources_and_assumptions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: c\npools:\n  h: {vendor: nvidia, chip: h200, packages: 4, math: fp8}\n")
    assert plan_cluster(file, as_json=True) == 0
    body = json.loads(capsys.readouterr().out)
    assert "does not fit" in body["models"]["v4-pro"]["refused"]
    assert body["models"]["v4-flash"]["tokens_per_s"] > 0
    assert body["assumptions"]["network_gbit_per_s"]["why"]
    assert plan_cluster(file, as_json=False) == 0
    shown = capsys.readouterr().out
    assert "nothing of this was measured" in shown
    assert "NVIDIA data sheet" in shown
    assert "77 + 114" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: c\n", "pools: Field required"),
        ("name: c\npools: {a: {vendor: nvidia}}\n", r"pools\.a\.packages"),
        ("[", "cannot be read"),
        ("name: c\npools: {a: {vendor: nvida, packages: 1}}\n", "did you mean nvidia"),
    ],
)
def test_a_bad_file_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        plan_cluster(file, as_json=True)
