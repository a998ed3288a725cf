"""What Ray says of nodes and of actors that wait for one."""

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
    assert not cluster.waits_for_room(running)
    assert cluster.waits_for_room(waiting)
    (offered,) = cluster.node_resources().values()
    assert offered["CPU"] == 2.0
    # Ray tells its head node from time to time.
    wait_until(lambda: next(iter(cluster.free_resources().values())).get("CPU") == 1.0)
    ray.kill(running)
    wait_until(lambda: next(iter(cluster.free_resources().values())).get("CPU") == 2.0)
    ray.kill(waiting)
