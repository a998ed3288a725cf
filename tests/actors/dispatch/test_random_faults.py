"""Whatever goes wrong while calls are on their way, in any combination: their sums are right.

Shards refuse, fail, take long and hang beyond the hard deadline; meanwhile views come that name
them in another order and with other weights. One shard holds every expert and is late at worst, so
that no call has to fail.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.mesh_view import MeshView
from actors.kernels.base import ExpertsMissing
from actors.wire.address import Address
from tests.actors.dispatch.test_deadlines import FULL, is_right
from tests.actors.dispatch.test_dispatcher import SECRET, Mesh, batch
from tests.actors.fakes import StaticViews, epoch, view

FAULTY = 4
HELD_BY_FAULTY = 6
LATE_S, HARD_S, HANG_S = (0.05, 0.1, 0.2, 0.3), 1.0, 1.5
"""The shortest soft deadline is 0.1 s."""
SIZES = (1, 33, 3000)


@pytest.fixture(params=["unix", "tcp"])
def mesh(request, tmp_path):
    mesh = Mesh(tmp_path, request.param)
    yield mesh
    mesh.close()


def faulty() -> Callable[[], None]:
    """What a shard does before it computes. A failure is followed by a call that does not fail:
    otherwise the shard's test of itself would end it."""
    failed = False

    def act() -> None:
        nonlocal failed
        what = random.random()
        if failed or what > 0.45:
            failed = False
        elif what < 0.15:
            raise ExpertsMissing("not here")
        elif what < 0.2:
            failed = True
            raise RuntimeError("the kernel failed")
        else:
            time.sleep(HANG_S if what < 0.23 else random.choice(LATE_S))

    return act


def some_view(number: int, held: list[dict[int, list[int]]], addresses: list[Address]) -> MeshView:
    """The same shards in some order, each counted on with some part of its speed."""
    order = random.sample(range(len(held)), len(held))
    plan = epoch([held[shard] for shard in order], number)
    given = view(plan, [addresses[shard] for shard in order], deadline_s=HARD_S, wait_s=60.0)
    shards = (
        replace(peer, id=f"shard-{shard}", weight=random.choice((0.0, 0.5, 1.0)))
        for peer, shard in zip(given.shards, order, strict=True)
    )
    return replace(given, shards=tuple(shards))


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.long)])
def test_sums_are_right_whatever_goes_wrong(mesh: Mesh, rounds: int) -> None:
    held = [
        {layer: random.sample(FULL[layer], HELD_BY_FAULTY) for layer in FULL} for _ in range(FAULTY)
    ]
    held.append(FULL)
    addresses = [mesh.add(part) for part in held]
    for kernel in mesh.kernels[:FAULTY]:
        kernel.before_compute = faulty()
    mesh.kernels[FAULTY].before_compute = lambda: time.sleep(random.choice((0, 0, *LATE_S)))
    views = StaticViews(some_view(1, held, addresses))
    dispatcher = Dispatcher(views, SECRET)
    for number in range(2, rounds + 2):
        batches = [(layer, *batch(random.choice(SIZES), seed=number)) for layer in (0, 1, 0)]
        calls = [(dispatcher.send(*given), given) for given in batches]
        if number % 2:
            views.publish(some_view(number, held, addresses))
        for call, (layer, *given) in random.sample(calls, len(calls)):
            assert is_right(dispatcher.wait(call), layer, *given)
    dispatcher.close()
