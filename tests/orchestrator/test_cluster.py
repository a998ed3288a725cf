"""What Ray says of nodes and of actors that wait for one."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import cluster
from tests.orchestrator.gateway.ray_fakes import private_ray
from tests.processes import wait_until

pytestmark = pytest.mark.ray

TIMEOUT_S = 60.0


class Idle:
    def ping(self) -> bool:
        return True


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with private_ray():
        yield


def start(**options: Any) -> Any:
    import ray

    return ray.remote(Idle).options(**options).remote()


def test_an_actor_without_a_node_waits_and_one_with_a_node_does_not() -> None:
    import ray

    waiting, running = start(num_cpus=0, resources={"NPU": 1}), start(num_cpus=1)
    ray.get(running.ping.remote(), timeout=TIMEOUT_S)
    assert not cluster.waits_for_room(running, {"CPU": 1})
    wait_until(lambda: cluster.waits_for_room(waiting, {"NPU": 1}))
    (offered,) = cluster.node_resources().values()
    assert offered["CPU"] == 2.0
    # Ray tells its head node from time to time.
    wait_until(lambda: next(iter(cluster.free_resources().values())).get("CPU") == 1.0)
    ray.kill(running)
    wait_until(lambda: next(iter(cluster.free_resources().values())).get("CPU") == 2.0)
    ray.kill(waiting)


class SlowToStart:
    def __init__(self) -> None:
        time.sleep(2)

    def ping(self) -> bool:
        return True


def test_an_actor_whose_process_is_just_being_started_does_not_wait_for_room() -> None:
    import ray

    # An environment of its own: Ray starts a process for it.
    options = {"num_cpus": 2, "runtime_env": {"env_vars": {"ITS_OWN": "1"}}}
    actor = ray.remote(SlowToStart).options(**options).remote()
    answer = actor.ping.remote()
    looks = 0
    while not ray.wait([answer], timeout=0.05)[0]:
        assert not cluster.waits_for_room(actor, {"CPU": 2})
        looks += 1
    assert looks > 1
    ray.kill(actor)


class Draining:
    """Has a call that takes long, and a control call with an argument."""

    def __init__(self) -> None:
        self._drained = False

    async def hold(self) -> bool:
        while not self._drained:
            await asyncio.sleep(0.01)
        return True

    async def drain(self, timeout_s: float) -> float:
        self._drained = True
        return timeout_s


def test_control_calls_do_not_wait_and_take_arguments() -> None:
    import ray

    actor_class = cluster.with_control_group(Draining, ["drain"])
    groups = {cluster.CONTROL_GROUP: 1}
    actor = ray.remote(concurrency_groups=groups)(actor_class).options(max_concurrency=1).remote()
    held = actor.hold.remote()
    assert ray.get(actor.drain.remote(0.5), timeout=TIMEOUT_S) == 0.5
    assert ray.get(held, timeout=TIMEOUT_S)
    ray.kill(actor)
