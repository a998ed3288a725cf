"""Calls of clients that left are not computed."""

import threading

import pytest

from actors.shard.server import ShardServer
from actors.wire.address import parse_address
from tests.actors.fakes import AffineKernel, running, spec
from tests.actors.wire import serving
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import EVERY_EXPERT

WAIT_S = 60.0


class GatedKernel(AffineKernel):
    """Says which layers it computes, and computes each when it is let go."""

    def __init__(self) -> None:
        super().__init__(EVERY_EXPERT)
        self.layers: list[int] = []
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def compute(self, layer, *arguments, **others):
        self.layers.append(layer)
        self.begun.release()
        assert self.go_on.acquire(timeout=WAIT_S)
        return super().compute(layer, *arguments, **others)


class Client(serving.Client):
    def ask(self, layer: int) -> None:
        self.post(1, layer=layer)

    def leave(self) -> None:
        self.close()

    def is_answered(self) -> bool:
        return self.wait(1, WAIT_S) is not None


@pytest.fixture
def kernel() -> GatedKernel:
    return GatedKernel()


@pytest.fixture(params=["unix", "tcp"])
def address(request, kernel, tmp_path):
    where = f"unix:{tmp_path}/s" if request.param == "unix" else "tcp:127.0.0.1:0"
    server = ShardServer(spec(), kernel, [parse_address(where)], SECRET)
    with running(server):
        yield server.addresses[0]


def assert_next_computed(client: Client, kernel: GatedKernel, after: list[int]) -> None:
    """The kernel computed the layers `after` and nothing else before the client's next call."""
    kernel.go_on.release(2)
    client.ask(layer=0)
    assert client.is_answered()
    assert kernel.layers == [*after, 0]


def test_a_client_that_left_while_others_were_served(address, kernel) -> None:
    busy, leaving, staying = Client(address), Client(address), Client(address)
    busy.ask(layer=0)
    assert kernel.begun.acquire(timeout=WAIT_S)
    leaving.ask(layer=1)
    leaving.leave()
    staying.ask(layer=0)
    kernel.go_on.release(2)
    assert busy.is_answered()
    assert staying.is_answered()
    assert_next_computed(busy, kernel, after=[0, 0])


def test_a_client_that_left_between_two_layers_of_one_batch(address, kernel) -> None:
    busy, staying, leaving = Client(address), Client(address), Client(address)
    busy.ask(layer=0)
    assert kernel.begun.acquire(timeout=WAIT_S)
    staying.ask(layer=0)  # both wait until the first call is done, then come together
    leaving.ask(layer=1)
    kernel.go_on.release()
    assert kernel.begun.acquire(timeout=WAIT_S)
    first = kernel.layers[1]
    (leaving if first == 0 else staying).leave()
    kernel.go_on.release()
    remaining = staying if first == 0 else leaving
    assert busy.is_answered()
    assert remaining.is_answered()
    assert_next_computed(busy, kernel, after=[0, first])
