"""What a failing kernel call does: to its caller, to the calls merged with it, to the shard."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from actors.kernels.base import ExpertsMissing
from actors.kernels.scratch import LEAST_ASSIGNMENTS
from actors.shard.server import DeviceUnusable, ShardServer
from actors.wire.address import Address
from actors.wire.body import sums_of
from actors.wire.frame import Fault as Kind
from actors.wire.frame import FrameKind, Header, body_bytes
from actors.wire.link import LinkClosed, RemoteError
from tests.actors.fakes import HIDDEN, AffineKernel, running, spec
from tests.actors.wire import serving
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import EVERY_EXPERT

WAIT_S = 60.0
POISON = 5
Rule = Callable[[list[int]], Exception | None]


class FailingKernel(AffineKernel):
    """Fails where `rule`, given a call's experts, returns an error. Holds its first call back."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(EVERY_EXPERT)
        self.rule = rule
        self.sizes: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def compute(self, layer: int, rows: Any, row_index: Any, experts: Any, *others: Any) -> Any:
        self.begun.set()
        assert self.go_on.wait(WAIT_S)
        self.sizes.append(max(len(rows), len(experts)))
        failure = self.rule(experts.tolist())
        if failure is not None:
            raise failure
        return super().compute(layer, rows, row_index, experts, *others)


class Client(serving.Client):
    def sums(self, expert: int, rows: int = 4) -> np.ndarray:
        self.ask(expert, rows)
        return self.answer()

    def ask(self, expert: int, rows: int = 4) -> None:
        self.post(1, rows=rows, expert=expert)

    def answer(self) -> np.ndarray:
        header, body = self.wait(1, WAIT_S)
        return sums_of(body, header.rows, HIDDEN).copy()


def server_over(kernel: FailingKernel, tmp_path, **more: int) -> ShardServer:
    return ShardServer(spec(), kernel, [Address(f"{tmp_path}/s")], SECRET, **more)


def merged(server: ShardServer, kernel: FailingKernel, experts: list[int]) -> list[Client]:
    """Clients whose calls to one expert each are merged."""
    busy, *clients = (Client(server.addresses[0]) for _ in range(len(experts) + 1))
    busy.ask(expert=0)
    assert kernel.begun.wait(WAIT_S)
    for client, expert in zip(clients, experts, strict=True):
        client.ask(expert)
    kernel.go_on.set()
    busy.answer()
    return clients


@pytest.mark.parametrize("kind", [Kind.FAILED, Kind.REFUSED])
def test_one_bad_call_does_not_concern_those_merged_with_it(kind: Kind, tmp_path) -> None:
    failure = RuntimeError("boom") if kind is Kind.FAILED else ExpertsMissing("not here")
    kernel = FailingKernel(
        lambda experts: failure if POISON in experts and len(experts) > 1 else None
    )
    server = server_over(kernel, tmp_path)
    with running(server):
        first, poisoned, last = merged(server, kernel, [1, POISON, 3])
        assert (first.answer() == 2.0).all()
        assert (last.answer() == 4.0).all()
        with pytest.raises(RemoteError, match=str(failure)) as caught:
            poisoned.answer()
        assert caught.value.fault is kind
        assert 12 in kernel.sizes, "they were merged"
        assert (poisoned.sums(expert=2) == 3.0).all(), "the shard serves on"
    assert server.failed_calls == (kind is Kind.FAILED)


def test_calls_are_merged_up_to_the_cap(tmp_path) -> None:
    kernel = FailingKernel(lambda _: None)
    server = server_over(kernel, tmp_path, most_assignments=9)
    with running(server):
        clients = merged(server, kernel, [1, 2, 3, 4, 6])
        for expert, client in zip([1, 2, 3, 4, 6], clients, strict=True):
            assert (client.answer() == expert + 1).all()
    assert sorted(kernel.sizes) == [4, 4, 8, 8]


def test_a_large_call_is_computed_in_pieces(tmp_path) -> None:
    """Rows with many assignments, with one and with none; the sums are those of one piece."""
    rng = np.random.default_rng(3)
    rows, cap = 200, 64
    chosen = rng.integers(0, rows, 500).astype(np.int32)
    chosen[chosen == 17] = 18
    experts = rng.integers(0, 8, 500).astype(np.int32)
    answers = []
    for most in (cap, 1 << 20):
        kernel = FailingKernel(lambda _: None)
        kernel.go_on.set()
        server = server_over(kernel, tmp_path, most_assignments=most)
        with running(server):
            client = Client(server.addresses[0])
            length = body_bytes(FrameKind.CALL, rows, HIDDEN, 500)
            header = Header(FrameKind.CALL, 1, length, rows=rows, hidden=HIDDEN, assignments=500)
            with client.sending(header) as body:
                body.rows[:] = np.arange(rows)[:, None] + 0x3F80
                body.row_index[:], body.experts[:], body.weights[:] = chosen, experts, 0.3
            answers.append(client.answer())
        assert max(kernel.sizes) <= most
        assert (len(kernel.sizes) > 1) == (most == cap)
    assert np.array_equal(*answers)
    assert (answers[0][17] == 0).all()


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
        MemoryError(),
    ],
    ids=["CUDA", "torch on a CPU", "numpy"],
)
def test_a_call_that_runs_out_of_memory_is_tried_in_smaller_pieces(failure, tmp_path) -> None:
    kernel = FailingKernel(lambda experts: failure if len(experts) > 100 else None)
    kernel.go_on.set()
    server = server_over(kernel, tmp_path)
    with running(server):
        client = Client(server.addresses[0])
        assert (client.sums(expert=1, rows=1000) == 2.0).all()
        assert LEAST_ASSIGNMENTS <= server.most_assignments <= 100
        kernel.sizes.clear()
        assert (client.sums(expert=1, rows=1000) == 2.0).all()
        assert max(kernel.sizes) <= 100, "and it is not tried again"
    assert server.failed_calls == 0


def test_a_call_that_fails_in_every_size_is_answered(tmp_path) -> None:
    kernel = FailingKernel(lambda experts: MemoryError("no memory") if len(experts) > 1 else None)
    kernel.go_on.set()
    server = server_over(kernel, tmp_path)
    with running(server):
        client = Client(server.addresses[0])
        with pytest.raises(RemoteError, match="no memory") as caught:
            client.sums(expert=1, rows=1000)
        assert caught.value.fault is Kind.FAILED


def test_a_device_that_computes_nothing_ends_the_server(tmp_path) -> None:
    kernel = FailingKernel(lambda _: RuntimeError("CUDA error: an illegal memory access"))
    kernel.go_on.set()
    server = server_over(kernel, tmp_path)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(server.run)
        client = Client(server.addresses[0])
        with pytest.raises(RemoteError, match="the device is unusable") as caught:
            client.sums(expert=1)
        assert caught.value.fault is Kind.UNFIT
        with pytest.raises(DeviceUnusable, match="illegal memory access"):
            run.result(WAIT_S)
        with pytest.raises(LinkClosed):
            client.sums(expert=1)
