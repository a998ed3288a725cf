"""On a device that copies beside computing a batch is started before the one before is finished."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from actors.kernels.base import ExpertsMissing
from actors.shard.server import ShardServer
from actors.wire.address import Address
from actors.wire.body import sums_of
from actors.wire.link import RemoteError
from tests.actors.fakes import HIDDEN, AffineKernel, running, spec
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import Client

WAIT_S = 60.0
ROWS = 4
LAYERS = (0, 1, 2, 3)


class OneAhead(AffineKernel):
    """Computes when a call is finished. `compute` holds the first call back, for others to come.

    done: what was asked, in order. Calls of a layer in `unstarted` cannot be started, those of one
    in `unfinished` do not finish; by themselves they are computed.
    """

    overlaps = True

    def __init__(self) -> None:
        super().__init__({layer: list(range(8)) for layer in LAYERS})
        self.done: list[str] = []
        self.unstarted: set[int] = set()
        self.unfinished: set[int] = set()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def compute(self, layer: int, *given: Any) -> torch.Tensor:
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        self.done.append(f"compute {layer}")
        return super().compute(layer, *given)

    def start(self, layer: int, *given: torch.Tensor) -> "Started":
        self.done.append(f"start {layer}")
        if layer in self.unstarted:
            raise ExpertsMissing(f"layer {layer}: not here")
        *arguments, out = given
        return Started(self, layer, [tensor.clone() for tensor in arguments], out)


class Started:
    def __init__(
        self, kernel: OneAhead, layer: int, given: list[torch.Tensor], out: torch.Tensor
    ) -> None:
        self._kernel, self._layer, self._given, self._out = kernel, layer, given, out

    def finish(self) -> None:
        self._kernel.done.append(f"finish {self._layer}")
        if self._layer in self._kernel.unfinished:
            raise RuntimeError("the device hiccups")
        AffineKernel.compute(self._kernel, self._layer, *self._given, self._out)


class Queued:
    """Calls of several layers, from a client each, that a server finds waiting all at once."""

    def __init__(self, server: ShardServer, kernel: OneAhead) -> None:
        self.clients = [Client(server.addresses[0]) for _ in range(5)]
        busy = self.clients[-1]
        busy.post(1, rows=1, layer=0)
        assert kernel.begun.wait(WAIT_S)
        self._kernel = kernel

    def post(self, layers: list[int], expert: int = 2) -> None:
        for client, layer in zip(self.clients, layers, strict=False):
            client.post(1, rows=ROWS, layer=layer, expert=expert)
        self._kernel.go_on.set()
        self.clients[-1].wait(1, WAIT_S)

    def sums(self, number: int) -> np.ndarray:
        header, body = self.clients[number].wait(1, WAIT_S)
        return sums_of(body, header.rows, HIDDEN).copy()

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture
def kernel() -> OneAhead:
    return OneAhead()


@pytest.fixture
def queued(kernel: OneAhead, tmp_path):
    server = ShardServer(spec(LAYERS), kernel, [Address(f"{tmp_path}/s")], SECRET)
    with running(server):
        found = Queued(server, kernel)
        yield found
        found.close()


def test_rows_of_the_next_batch_are_sent_before_the_sums_are_waited_for(queued, kernel) -> None:
    queued.post([0, 1, 2])
    assert [queued.sums(number)[0, 0] for number in range(3)] == [3.0, 4.0, 5.0]
    assert kernel.done[1:] == [
        "start 0", "start 1", "finish 0", "start 2", "finish 1", "finish 2",
    ]  # fmt: skip


def test_one_batch_alone_is_computed_at_once(queued, kernel) -> None:
    queued.post([1])
    assert queued.sums(0)[0, 0] == 4.0
    assert kernel.done[1:] == ["compute 1"]


def test_what_cannot_be_started_is_served_by_itself(queued, kernel) -> None:
    """After the one before, which is under way."""
    kernel.unstarted = {1}
    queued.post([0, 1, 2])
    assert [queued.sums(number)[0, 0] for number in range(3)] == [3.0, 4.0, 5.0]
    assert kernel.done[1:] == [
        "start 0", "start 1", "finish 0", "compute 1", "start 2", "finish 2",
    ]  # fmt: skip


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_does_not_finish_is_computed_again(queued, kernel, layer) -> None:
    kernel.unfinished = {layer}
    queued.post([0, 1, 2])
    assert [queued.sums(number)[0, 0] for number in range(3)] == [3.0, 4.0, 5.0]
    assert kernel.done.count(f"compute {layer}") == 1 + (layer == 0)


def test_experts_that_are_not_held_are_refused_once(queued, kernel) -> None:
    kernel.held[1] = [7]
    kernel.unstarted = {1}
    queued.post([0, 1, 2])
    assert queued.sums(0)[0, 0] == 3.0
    with pytest.raises(RemoteError, match=r"layer 1: experts \[2\] are not here"):
        queued.sums(1)
    assert queued.sums(2)[0, 0] == 5.0


def test_a_bad_index_is_refused_and_others_go_on(queued, kernel) -> None:
    queued.post([0, 1, 2], expert=99)
    for number in range(3):
        with pytest.raises(RemoteError, match="expert out of"):
            queued.sums(number)
    assert kernel.done[1:] == []


def test_pieces_of_a_large_call_overlap(kernel, tmp_path) -> None:
    """Each is started while the one before computes; rows between them stay right."""
    kernel.go_on.set()
    where = [Address(f"{tmp_path}/s")]
    with running(ShardServer(spec(LAYERS), kernel, where, SECRET, most_assignments=64)) as server:
        client = Client(server.addresses[0])
        client.post(1, rows=150, layer=1)
        header, body = client.wait(1, WAIT_S)
        assert (sums_of(body, header.rows, HIDDEN) == 4.0).all()
        client.close()
    assert kernel.done == ["start 1", "start 1", "finish 1", "start 1", "finish 1", "finish 1"]


def test_a_piece_that_fails_leaves_none_unfinished(kernel, tmp_path) -> None:
    kernel.go_on.set()
    kernel.unfinished = {1}
    where = [Address(f"{tmp_path}/s")]
    with running(ShardServer(spec(LAYERS), kernel, where, SECRET, most_assignments=64)) as server:
        client = Client(server.addresses[0])
        client.post(1, rows=150, layer=1)
        with pytest.raises(RemoteError, match="hiccups"):
            client.wait(1, WAIT_S)
        client.close()
    assert kernel.done.count("start 1") == kernel.done.count("finish 1") == 2


def test_emulated_speed_is_kept_by_waiting_for_each_batch(kernel, tmp_path) -> None:
    where = [Address(f"{tmp_path}/s")]
    server = ShardServer(spec(LAYERS), kernel, where, SECRET, emulated_speed=0.5)
    with running(server):
        found = Queued(server, kernel)
        found.post([0, 1, 2])
        assert [found.sums(number)[0, 0] for number in range(3)] == [3.0, 4.0, 5.0]
        found.close()
    assert not any(what.startswith("start") for what in kernel.done)
