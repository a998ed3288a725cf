"""Threads and spins from the cores that are there; what the config says wins."""

import pytest

from actors.wire.spin_time import DEFAULT_SPIN_US
from orchestrator.config.schema import MeshConfig
from orchestrator.core_shares import LONG_SPIN_US, CoreShares, available_cores, core_shares


def make_config(**sections):
    pools = {"a": {"vendor": "cpu", "shards": 2}, "b": {"vendor": "cpu", "threads": 2}}
    return MeshConfig.model_validate({"model": {"path": "/m"}, "pools": pools, **sections})


@pytest.mark.parametrize(
    ("cores", "replicas", "threads", "spin_us"),
    [
        (1, 1, 1, DEFAULT_SPIN_US),
        (2, 1, 2, DEFAULT_SPIN_US),
        (2, 2, 1, DEFAULT_SPIN_US),
        (5, 1, 2, DEFAULT_SPIN_US),
        (6, 1, 2, DEFAULT_SPIN_US),
        (7, 1, 2, LONG_SPIN_US),
        (16, 1, 11, LONG_SPIN_US),
        (16, 5, 2, LONG_SPIN_US),
    ],
)
def test_engines_have_what_the_shards_leave_or_take_turns_with_them(
    cores, replicas, threads, spin_us
):
    config = make_config(engines={"replicas": replicas})
    assert core_shares(config, cores) == CoreShares(threads, spin_us)


def test_the_config_wins():
    config = make_config(engines={"threads": 3}, router={"spin_us": 0})
    assert core_shares(config, 64) == CoreShares(3, 0.0)


def test_threads_that_leave_room_let_waits_spin():
    assert core_shares(make_config(engines={"threads": 3}), 64).spin_us == LONG_SPIN_US


def test_a_shared_clusters_machines_are_not_known():
    config = make_config(cluster={"ray_address": "auto"})
    assert core_shares(config, 64) == CoreShares(1, DEFAULT_SPIN_US)


def test_there_is_a_core():
    assert available_cores() >= 1
