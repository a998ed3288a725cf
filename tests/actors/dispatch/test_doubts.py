"""Answers without numbers: computed again elsewhere, and blamed on the shard only if that helps."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.shard.server import ShardServer
from actors.wire.address import Address
from tests.actors.dispatch.test_dispatcher import HALVES, OVERLAP, SECRET, batch
from tests.actors.fakes import AffineKernel, StaticViews, epoch, expected, running, spec, view

FULL = {0: list(range(8)), 1: list(range(8))}


class BrokenKernel(AffineKernel):
    """Gives `value` in place of one number of each answer, once it is set."""

    value: float | None = None
    calls = 0

    def compute(self, *arguments, **named) -> torch.Tensor:
        self.calls += 1
        sums = super().compute(*arguments, **named)
        if self.value is not None:
            sums[0, 3] = self.value
        return sums


class Pair:
    """Two shards and a dispatcher that has called both."""

    def __init__(self, stack: ExitStack, folder: Path, held: list[dict[int, list[int]]]) -> None:
        self.kernels = [BrokenKernel(dict(one)) for one in held]
        addresses = [Address(f"{folder}/s{number}") for number in range(len(held))]
        for kernel, address in zip(self.kernels, addresses, strict=True):
            stack.enter_context(running(ShardServer(spec(), kernel, [address], SECRET)))
        views = StaticViews(view(epoch(held), addresses))
        self.dispatcher = Dispatcher(views, SECRET)
        stack.callback(self.dispatcher.close)
        self.follower = views.followers[0]
        for tokens in (33, 500):
            rows, weights, ids = batch(tokens)
            assert torch.allclose(self.run(rows, weights, ids).float(), wanted(rows, weights, ids))
        assert all(kernel.calls for kernel in self.kernels)

    def run(self, rows, weights, ids) -> torch.Tensor:
        return self.dispatcher.wait(self.dispatcher.send(0, rows, weights, ids))

    def wrong(self) -> list[bool]:
        return [shard.is_wrong for shard in self.follower.report().shards]

    def resent(self) -> int:
        return self.follower.report().resent


def wanted(rows, weights, ids) -> torch.Tensor:
    return expected(0, rows, weights, ids).float()


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_shard_that_gives_no_numbers_is_found_out(stack, tmp_path, value) -> None:
    pair = Pair(stack, tmp_path, [FULL, FULL])
    pair.kernels[0].value = value
    rows, weights, ids = batch(500)
    got = pair.run(rows, weights, ids).float()
    assert torch.allclose(got, wanted(rows, weights, ids), rtol=2**-7, atol=1e-5)
    assert pair.wrong() == [True, False]
    calls = pair.kernels[0].calls
    for _ in range(3):
        pair.run(rows, weights, ids)
    assert pair.kernels[0].calls == calls, "it gets no rows that others can take"


def test_where_every_replica_gives_none_the_input_is_at_fault(stack, tmp_path) -> None:
    pair = Pair(stack, tmp_path, [FULL, FULL])
    for kernel in pair.kernels:
        kernel.value = float("nan")
    rows, weights, ids = batch(500)
    got = pair.run(rows, weights, ids).float()
    assert bool(got.isnan().any()), "the answer is passed on"
    assert pair.wrong() == [False, False]
    assert pair.resent(), "somebody else was asked"


@pytest.mark.parametrize("held", [HALVES, OVERLAP], ids=["halves", "replicas"])
def test_only_what_others_hold_can_be_doubted(stack, tmp_path, held) -> None:
    pair = Pair(stack, tmp_path, held)
    pair.kernels[0].value = float("nan")
    rows, weights, ids = batch(500)
    got = pair.run(rows, weights, ids).float()
    assert got.isnan().sum() == 1, "passed on, as nobody else holds all of the experts"
    assert pair.wrong() == [False, False]


def test_rows_that_came_in_without_numbers_are_not_sent_again(stack, tmp_path) -> None:
    pair = Pair(stack, tmp_path, [FULL, FULL])
    before = pair.resent()
    rows, weights, ids = batch(500)
    rows[7, 2] = float("nan")
    got = pair.run(rows, weights, ids).float()
    assert bool(got[7].isnan().any())
    rest = torch.arange(500) != 7
    right = wanted(rows, weights, ids)[rest]
    assert torch.allclose(got[rest], right, rtol=2**-7, atol=1e-5)
    assert pair.wrong() == [False, False]
    assert pair.resent() == before
