"""A transport is one module and one line: dispatchers do not know which one they use."""

import pytest
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.wire.transports import TRANSPORTS
from tests.actors.fakes import HIDDEN, AffineKernel, StaticViews, epoch, expected, view
from tests.actors.wire.loopback import KERNELS, LoopbackAddress, open_loopback_link

HALVES = [{0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, {0: [4, 5, 6, 7], 1: [4, 5, 6, 7]}]


@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_rows_go_to_shards_and_back_over_a_transport_of_a_test(monkeypatch, rows):
    monkeypatch.setitem(TRANSPORTS, "loopback", open_loopback_link)
    for number, held in enumerate(HALVES):
        monkeypatch.setitem(KERNELS, f"shard-{number}", AffineKernel(held))
    addresses = [LoopbackAddress(f"shard-{number}") for number in range(len(HALVES))]
    dispatcher = Dispatcher(StaticViews(view(epoch(HALVES), addresses)), b"a test's secret")
    try:
        generator = torch.Generator().manual_seed(rows)
        hidden = torch.randn(rows, HIDDEN, generator=generator).bfloat16()
        weights = torch.rand(rows, 2, generator=generator)
        ids = torch.rand(rows, 8, generator=generator).topk(2).indices.int()
        for layer in (0, 1):
            call = dispatcher.send(layer, hidden, weights, ids)
            assert torch.equal(dispatcher.wait(call), expected(layer, hidden, weights, ids))
    finally:
        dispatcher.close()
