"""Commands to a shard: in order, cancellable, within their bytes and their budget."""

import threading
import time

import pytest

from actors.descriptions import Key
from actors.experts.refusal import ModelRefused
from actors.shard.holdings import Holdings

MUCH, FAST = 1_000_000, 1e12


class FakeKernel:
    """Loads are noted; `gate` holds them up, `broken` layers cannot be loaded."""

    bytes_per_expert = 10

    def __init__(self) -> None:
        self.layers: dict[int, list[int]] = {}
        self.loads: list[tuple[int, tuple[int, ...]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()
        self.broken: set[int] = set()

    def load(self, layer: int, experts: list[int]) -> None:
        self.reached.set()
        assert self.gate.wait(60.0)
        if layer in self.broken:
            raise ModelRefused(f"layer {layer} lacks a tensor")
        self.layers[layer] = list(experts)
        self.loads.append((layer, tuple(experts)))


def keys(*pairs: tuple[int, int]) -> frozenset[Key]:
    return frozenset(("expert", layer, expert) for layer, expert in pairs)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def held(kernel: FakeKernel) -> Holdings:
    holdings = Holdings(kernel, lambda: None)
    holdings.prepare((0, 1), keys((0, 1), (1, 1)), MUCH, FAST)
    return holdings


def test_copies_are_added_beside_what_is_held_and_dropped(
    held: Holdings, kernel: FakeKernel
) -> None:
    now = held.prepare((1, 1), keys((0, 2), (1, 3)), MUCH, FAST)
    assert now.holdings == keys((0, 1), (0, 2), (1, 1), (1, 3))
    assert (now.loading, now.failure, now.order) == (frozenset(), "", (1, 1))
    now = held.retire((1, 2), keys((0, 1), (5, 5)))
    assert now.holdings == keys((0, 2), (1, 1), (1, 3))
    assert kernel.layers == {0: [2], 1: [1, 3]}


def test_older_and_repeated_commands_change_nothing(held: Holdings, kernel: FakeKernel) -> None:
    held.prepare((2, 5), keys((0, 2)), MUCH, FAST)
    loads = len(kernel.loads)
    before = held.now
    held.prepare((2, 5), keys((0, 3)), MUCH, FAST)
    held.retire((1, 9), keys((0, 1)))
    held.cancel((2, 4))
    assert held.now == before
    assert len(kernel.loads) == loads


def test_memory_is_checked_before_anything_is_loaded(held: Holdings, kernel: FakeKernel) -> None:
    loads = len(kernel.loads)
    now = held.prepare((1, 1), keys((0, 2)), 29, FAST)
    assert "30 bytes are needed, 29 are allowed" in now.failure
    assert len(kernel.loads) == loads
    assert held.prepare((1, 2), keys((0, 2)), 30, FAST).failure == ""


def test_a_load_that_fails_says_why_and_keeps_what_was_there(
    held: Holdings, kernel: FakeKernel
) -> None:
    kernel.broken = {1}
    now = held.prepare((1, 1), keys((0, 2), (1, 2)), MUCH, FAST)
    assert "layer 1 lacks a tensor" in now.failure
    assert now.holdings == keys((0, 1), (0, 2), (1, 1))
    assert now.loading == frozenset()


def test_cancel_ends_a_load_after_the_layer_it_is_at(held: Holdings, kernel: FakeKernel) -> None:
    kernel.gate.clear()
    kernel.reached.clear()
    loading = threading.Thread(target=held.prepare, args=((1, 1), keys((0, 2), (1, 2)), MUCH, FAST))
    loading.start()
    assert kernel.reached.wait(60.0)
    assert held.now.loading == keys((0, 2), (1, 2))
    cancelling = threading.Thread(target=held.cancel, args=((1, 2),))
    cancelling.start()
    while held.now.order != (1, 2):
        time.sleep(0.001)
    kernel.gate.set()
    loading.join(10.0)
    cancelling.join(10.0)
    assert held.now.holdings == keys((0, 1), (0, 2), (1, 1))
    assert held.now.loading == frozenset()


def test_loading_keeps_to_its_budget_and_a_cancel_need_not_wait_for_it(
    held: Holdings, kernel: FakeKernel
) -> None:
    loading = threading.Thread(
        target=held.prepare, args=((1, 1), keys((0, 2), (1, 2)), MUCH, 0.001)
    )
    loading.start()
    while (0, (1, 2)) not in kernel.loads:
        time.sleep(0.001)
    now = held.cancel((1, 2))
    loading.join(10.0)
    assert not loading.is_alive()
    assert now.holdings == keys((0, 1), (0, 2), (1, 1))


def test_each_change_has_a_greater_revision(held: Holdings) -> None:
    seen = [held.now.revision]
    for order, step in enumerate((held.prepare, held.prepare), start=1):
        step((1, order), keys((0, order + 5)), MUCH, FAST)
        seen.append(held.now.revision)
    assert seen == sorted(set(seen))
