"""Batches that go through a router, whatever becomes of it."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.dispatch.backend import ExpertUnavailable
from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.mesh_view import Peer
from actors.dispatch.router_client import RouterClient, near_routers
from actors.router.server import RouterServer
from actors.wire.address import Address
from actors.wire.node import node_id
from tests.actors.dispatch.test_dispatcher import HALVES, SECRET, Mesh, batch, run
from tests.actors.fakes import StaticViews, epoch, running, view
from tests.actors.wire.serving import shard_server


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_routers_of_this_node_are_used_and_all_of_them_where_it_has_none() -> None:
    where = (Address("/r"),)
    here, *elsewhere = (Peer(f"r{i}", 0, n, where) for i, n in enumerate([node_id(), "a", "b"]))
    mesh = view(epoch(HALVES), [*where, *where])
    assert list(near_routers(replace(mesh, routers=(elsewhere[0], here)))) == [here]
    assert list(near_routers(replace(mesh, routers=tuple(elsewhere)))) == elsewhere


class Routed:
    """Two shards and a router that can be ended and started again at the same address."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, wait_s: float = 5.0) -> None:
        self.mesh = Mesh(folder, "unix")
        stack.callback(self.mesh.close)
        addresses = [self.mesh.add(part) for part in HALVES]
        self.where = [Address(f"{folder}/router")]
        self.views = StaticViews(
            view(epoch(HALVES), addresses, routers=self.where, mode="actor", wait_s=wait_s)
        )

    @contextlib.contextmanager
    def router(self) -> Iterator[None]:
        dispatcher = Dispatcher(self.views, SECRET)
        with running(RouterServer(dispatcher, self.where, SECRET)):
            yield
        dispatcher.close()

    def client(self, stack: contextlib.ExitStack) -> RouterClient:
        client = RouterClient(self.views, SECRET)
        stack.callback(client.close)
        return client


def test_lost_router_with_two_calls_on_their_way_loses_nothing(stack, tmp_path) -> None:
    routed = Routed(stack, tmp_path)
    client = routed.client(stack)
    batches = [batch(tokens, seed=tokens) for tokens in (33, 5, 70)]
    released = threading.Event()
    stack.callback(released.set)
    with routed.router():
        wanted = [run(client, 0, *of) for of in batches]
        started = threading.Event()
        for kernel in routed.mesh.kernels:
            kernel.before_compute = lambda: (started.set(), released.wait(60))
        calls = [client.send(0, *of) for of in batches]
        assert started.wait(60)
        # The router ends with all three calls unanswered; its thread is held by the shards.
        threading.Timer(0.1, released.set).start()
    with routed.router():
        for number in (1, 0, 2):
            assert torch.equal(client.wait(calls[number]), wanted[number])
        assert torch.equal(run(client, 0, *batches[0]), wanted[0])


def test_calls_without_a_router_end_with_what_was_tried(stack, tmp_path) -> None:
    routed = Routed(stack, tmp_path, wait_s=0.3)
    client = routed.client(stack)
    with routed.router():
        run(client, 0, *batch())
    calls = [client.send(0, *batch()) for _ in range(2)]
    for call in calls:
        with pytest.raises(ExpertUnavailable, match=r"no router answered within 0\.3 s"):
            client.wait(call)


def test_a_peer_that_refuses_is_quoted(stack, tmp_path) -> None:
    """A shard where the view says there is a router."""
    server = shard_server(f"unix:{tmp_path}/router")
    stack.enter_context(running(server))
    given = view(epoch(HALVES), [Address("/nowhere")] * 2, routers=server.addresses, mode="actor")
    client = RouterClient(StaticViews(given), SECRET)
    stack.callback(client.close)
    for _ in range(10):
        with pytest.raises(ExpertUnavailable, match="router: a shard serves CALL frames"):
            run(client, 0, *batch())
