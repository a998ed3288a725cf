"""What a changed key does: refused, taken up at once, or new processes; and which."""

import pytest
from pydantic import BaseModel

from orchestrator.config.schema import MeshConfig
from orchestrator.upgrade.changes import changes_between, same_endpoint
from orchestrator.upgrade.effects import effect_of, setups_of, values_of
from tests.orchestrator.upgrade.configs import config


def test_every_key_of_the_config_has_an_effect() -> None:
    for name, field in MeshConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for key in kind.model_fields:
                effect_of((name, key))
    for path in values_of(config()):
        effect_of(path)
    with pytest.raises(KeyError):
        effect_of(("news",))


@pytest.mark.parametrize(
    ("sections", "said", "replaced"),
    [
        ({"controller": {"rebalance_pause_s": 5}},
         "controller.rebalance_pause_s: 30.0 -> 5.0: the controller goes by it", []),
        ({"pools": {"cpu": {"threads": 2}}},
         "pools.cpu.threads: 1 -> 2: the pool's shards are replaced", ["cpu"]),
        ({"pools": {"cpu": {"memory": "9MiB"}}}, "pools.cpu.memory: 8388608 -> 9437184:", []),
        ({"pools": {"cpu": {"domain": "rack-1"}}}, "pools.cpu.domain: not set -> rack-1:", []),
        ({"engines": {"replicas": 2, "vllm": {"max_num_seqs": 8}}},
         "engines.vllm.max_num_seqs: not set -> 8: engines are replaced", ["engine"]),
        ({"router": {"spin_us": 50}}, "router.spin_us: not set -> 50.0:",
         ["cpu", "engine", "gpu", "router"]),
        ({"router": {"soft_deadline_s": 0.5}}, "router.soft_deadline_s: 0.25 -> 0.5:", []),
        ({"pools": {"more": {}}}, "pools.more: added", []),
    ],
)  # fmt: skip
def test_what_changes_while_the_mesh_runs(sections: dict, said: str, replaced: list[str]) -> None:
    changes = changes_between(config(), config(**sections), other_code=False)
    assert changes.refused == []
    assert len(changes.keys) == 1
    assert changes.keys[0].startswith(said)
    assert sorted(changes.replaced) == replaced
    before, after = setups_of(config()), setups_of(config(**sections))
    assert sorted(p for p in before if before[p] != after[p]) == replaced


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"path": "/models/tiny", "served_name": "small"}}, "tiny -> small"),
        ({"model": {"path": "/models/other"}}, "tiny -> other"),
        ({"router": {"mode": "actor"}}, "router.mode: embedded -> actor"),
        ({"pools": {"gpu": None}}, "pools.gpu cannot be left out"),
        ({"pools": {"cpu": {"memory": "7MiB"}}}, "its shards may hold more than that"),
        ({"pools": {"cpu": {"spares": 1}}}, "pools.cpu.spares: 0 -> 1"),
        ({"gateway": {"replicas": 2}}, "gateway.replicas: 1 -> 2"),
        (
            {"engines": {"vllm": {"speculative_config": {"method": "mtp"}}}},
            "speculative_config.method: not set -> mtp",
        ),
        ({"mesh": {"name": "other"}}, "mesh.name: sim -> other"),
        ({"logging": {"level": "debug"}}, "logging.level: info -> debug"),
    ],
)
def test_what_takes_another_start(sections: dict, said: str) -> None:
    changes = changes_between(config(), config(**sections), other_code=False)
    assert any(said in line and "stop it and start it again" in line for line in changes.refused)


def test_sizes_are_those_that_changed() -> None:
    after = config(engines={"replicas": 3}, pools={"cpu": {"shards": 5}})
    changes = changes_between(config(), after, other_code=False)
    assert changes.sizes == {"cpu": 5, "engine": 3}
    assert (changes.refused, changes.replaced) == ([], [])


def test_other_code_replaces_everything_and_the_same_nothing() -> None:
    assert changes_between(config(), config(), other_code=False).nothing
    changes = changes_between(config(), config(), other_code=True)
    assert sorted(changes.replaced) == ["cpu", "engine", "gpu", "router"]
    assert not changes.nothing


def test_the_endpoint_stays_where_it_is() -> None:
    running = config().with_endpoint("127.0.0.1", 12345)
    assert changes_between(running, same_endpoint(config(), running), other_code=False).nothing
