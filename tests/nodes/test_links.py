"""Expert calls between three nodes whose cables are pulled, plugged in again and limited.

The data plane alone: shard servers and a dispatcher in threads of this process, each with its
sockets on a node of its own. Every shard holds every expert.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.link_speed import measure_way
from actors.shard.server import ShardServer
from actors.wire.address import parse_address
from tests.actors.fakes import (
    HIDDEN,
    AffineKernel,
    StaticViews,
    epoch,
    expected,
    running,
    spec,
    view,
)
from tests.nodes.network import Network

pytestmark = pytest.mark.nodes

SECRET = b"a test's secret"
EVERY_EXPERT = {0: list(range(8)), 1: list(range(8))}
ROWS, TOP_K = 64, 2
DEADLINE_S = 20.0
"""The hard deadline of a call: one that waits for it shows in every figure below."""
STALL_S = 5.0
"""For the calls during an incident together: one soft deadline (0.25 s) as it should be, and room
for a busy machine; far below the hard deadline."""


class Mesh:
    """One dispatcher on the first node, a shard on each."""

    def __init__(self, network: Network, stack: ExitStack) -> None:
        self.nodes = network.nodes
        self.kernels = [AffineKernel(dict(EVERY_EXPERT)) for _ in self.nodes]
        self.calls = [0] * len(self.nodes)
        addresses = []
        for number, (node, kernel) in enumerate(zip(self.nodes, self.kernels, strict=True)):
            kernel.before_compute = self._count(number)
            where = [parse_address(f"tcp:{node.address}:0")]
            server = node.call(ShardServer, spec(), kernel, where, SECRET)
            stack.enter_context(running(server))
            addresses.append(server.addresses[0])
        self.addresses = addresses
        plan = epoch([EVERY_EXPERT] * len(self.nodes))
        views = StaticViews(view(plan, addresses, deadline_s=DEADLINE_S, wait_s=DEADLINE_S))
        # A dispatcher belongs to one thread; those it starts are on the same node.
        self._thread: ThreadPoolExecutor = stack.enter_context(self.nodes[0].threads(1))
        self._dispatcher: Dispatcher = self._do(Dispatcher, views, SECRET)
        stack.callback(lambda: self._do(self._dispatcher.close))
        self._numbers = 0

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._thread.submit(function, *arguments).result()

    def _count(self, number: int) -> Callable[[], None]:
        def count() -> None:
            self.calls[number] += 1

        return count

    def call(self) -> float:
        """One call with rows of its own, whose sums must be right; returns the seconds it took."""
        self._numbers += 1
        generator = torch.Generator().manual_seed(self._numbers)
        rows = torch.randn(ROWS, HIDDEN, generator=generator).bfloat16()
        ids = torch.stack([torch.randperm(8, generator=generator)[:TOP_K] for _ in range(ROWS)])
        weights = torch.rand(ROWS, TOP_K, generator=generator)
        began_s = time.monotonic()
        sums = self._do(lambda: self._dispatcher.wait(self._dispatcher.send(1, rows, weights, ids)))
        took_s = time.monotonic() - began_s
        wanted = expected(1, rows, weights, ids)
        assert torch.allclose(sums.float(), wanted.float(), rtol=2**-7, atol=1e-5)
        return took_s

    def calls_take_s(self, count: int = 50) -> float:
        """The seconds of the longest of some calls."""
        return max(self.call() for _ in range(count))

    def used(self, number: int, calls: int = 20) -> bool:
        """Whether some calls reach a shard."""
        before = self.calls[number]
        for _ in range(calls):
            self.call()
        return self.calls[number] > before

    def wait_used(self, number: int, timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not self.used(number):
            assert time.monotonic() < deadline_s, f"shard {number} is not used again"


@pytest.fixture
def mesh(network: Network) -> Iterator[Mesh]:
    with ExitStack() as stack:
        mesh = Mesh(network, stack)
        for number in range(len(mesh.nodes)):
            mesh.wait_used(number)
        yield mesh


def test_a_pulled_cable_costs_one_soft_deadline_and_comes_back(mesh: Mesh) -> None:
    lost = mesh.nodes[2]
    lost.pull()
    try:
        assert mesh.calls_take_s() < STALL_S
        assert not mesh.used(2)
        # It stays away for longer than connecting is tried for: nobody waits for it.
        ends_s = time.monotonic() + 8.0
        while time.monotonic() < ends_s:
            assert mesh.calls_take_s() < STALL_S
    finally:
        lost.plug()
    mesh.wait_used(2)


def test_two_cables_pulled_at_once_leave_the_third_node(mesh: Mesh) -> None:
    for node in mesh.nodes[1:]:
        node.pull()
    try:
        assert mesh.calls_take_s() < STALL_S
        assert mesh.used(0)
        assert not mesh.used(1)
    finally:
        for node in mesh.nodes[1:]:
            node.plug()
    mesh.wait_used(1)
    mesh.wait_used(2)


def test_a_cable_that_is_plugged_in_again_at_once_loses_no_call(mesh: Mesh) -> None:
    for _ in range(3):
        mesh.nodes[1].pull()
        took_s = mesh.call()
        mesh.nodes[1].plug()
        assert took_s < STALL_S
    mesh.wait_used(1)


def test_a_way_is_measured_as_wide_as_its_cable(mesh: Mesh) -> None:
    """50 Mbit/s in one direction: 6.25 MB/s of it, and as much back at once."""
    there = mesh.addresses[1]
    wide = mesh.nodes[0].call(measure_way, there, SECRET)
    mesh.nodes[1].limit("50mbit")
    try:
        narrow = mesh.nodes[0].call(measure_way, there, SECRET)
    finally:
        mesh.nodes[1].limit(None)
    assert 2e6 < narrow.bytes_per_s < 25e6 < wide.bytes_per_s


def test_a_slow_cable_is_slow_and_right(mesh: Mesh) -> None:
    mesh.nodes[1].limit("1mbit")
    try:
        assert mesh.calls_take_s(20) < STALL_S
    finally:
        mesh.nodes[1].limit(None)
