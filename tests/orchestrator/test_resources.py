"""What the nodes have against what a mesh asks for."""

import pytest

from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.resources import Demand, check_room, demands_of, places


def config(**pools: dict) -> MeshConfig:
    sections = {"model": {"path": "/m"}, "pools": pools, "engines": {"replicas": 2, "threads": 3}}
    return MeshConfig.model_validate(sections)


def test_pools_and_engines_ask_for_their_cpus_and_devices() -> None:
    npu = {"vendor": "ascend", "device": "npu", "shards": 2, "threads": 2, "resources": {"NPU": 1}}
    assert demands_of(config(ascend=npu)) == [
        Demand("pools.ascend", 2, {"CPU": 2, "NPU": 1.0}),
        Demand("engines", 2, {"CPU": 3}),
    ]


@pytest.mark.parametrize(
    ("nodes", "count"),
    [
        ([], 0),
        ([{"CPU": 4.0}], 0),
        ([{"CPU": 4.0, "NPU": 8.0}], 2),
        ([{"CPU": 3.0, "NPU": 8.0}, {"CPU": 3.0, "NPU": 8.0}], 2),
        ([{"CPU": 64.0, "NPU": 0.5}], 0),
    ],
)
def test_an_actor_needs_one_node_that_has_all_it_asks_for(nodes: list, count: int) -> None:
    assert places({"CPU": 2, "NPU": 1.0}, nodes) == count


def test_what_does_not_fit_is_named_with_what_the_nodes_offer() -> None:
    nodes = {"box": {"CPU": 8.0, "memory": 1e9}, "rack-2": {"CPU": 4.0, "GPU": 1.0}}
    check_room([Demand("pools.host", 6, {"CPU": 2})], nodes)
    with pytest.raises(UserError) as refused:
        check_room(
            [Demand("engines", 1, {"CPU": 8}), Demand("pools.h20", 2, {"CPU": 1, "GPU": 1.0})],
            nodes,
        )
    assert str(refused.value) == (
        "pools.h20 asks for 2 x (CPU 1, GPU 1), which the nodes do not have "
        "(they offer box: CPU 8, GPU 0; rack-2: CPU 4, GPU 1): "
        "lower pools.h20 or add nodes that have it"
    )
