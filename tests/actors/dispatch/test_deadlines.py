"""Shards that hang, stop or cannot be reached, and links that come and go off the call path."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from actors.dispatch.backend import ExpertUnavailable
from actors.dispatch.deadlines import SOFT_FLOOR_S, soft_wait_s
from actors.dispatch.dispatcher import Call, Dispatcher
from actors.kernels.base import ExpertsMissing
from actors.wire.address import Address
from actors.wire.frame import IN_BODY, RowCoding
from placement.cost_model import DeviceCost
from tests.actors.dispatch.test_dispatcher import (
    HALVES,
    SECRET,
    Mesh,
    batch,
    fp8_and_back,
    run,
)
from tests.actors.fakes import StaticViews, epoch, expected, view
from tests.actors.wire.bare_server import server_process

FULL = {0: list(range(8)), 1: list(range(8))}
CALM_S = 2.5
"""More than a soft deadline, on a machine that does other work too; less than a hard one, and than
30 calls that wait for a soft one each."""
HARD_S = 10.0


@pytest.fixture(params=["unix", "tcp"])
def mesh(request, tmp_path) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path, request.param)
    yield mesh
    mesh.close()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def dispatcher_of(stack, given, **changes) -> tuple[Dispatcher, StaticViews]:
    views = StaticViews(replace(given, **changes))
    dispatcher = Dispatcher(views, SECRET)
    stack.callback(dispatcher.close)
    return dispatcher, views


def seconds(action: Callable[[], object]) -> float:
    start_s = time.monotonic()
    action()
    return time.monotonic() - start_s


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true"
        time.sleep(0.01)


def is_right(got: torch.Tensor, layer: int, rows, weights, ids) -> bool:
    wanted = expected(layer, rows, weights, ids).float()
    return torch.allclose(got.float(), wanted, rtol=2**-7, atol=1e-5)


def shards_of(call: Call) -> set[int]:
    """Who got rows at first."""
    return {shard for shard, _, _ in call.flights[0].split.shares()}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory) -> None:
    """A call with a late shard, so that no later one waits for machine code."""
    mesh, released = Mesh(tmp_path_factory.mktemp("first"), "unix"), threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(mesh.close)
        stack.callback(released.set)
        addresses = [mesh.add(FULL) for _ in range(2)]
        dispatcher, _ = dispatcher_of(stack, view(epoch([FULL] * 2), addresses, deadline_s=HARD_S))
        mesh.kernels[0].before_compute = lambda: released.wait(HARD_S)
        run(dispatcher, 0, *batch(64))


# -- the rule


def test_soft_deadline_follows_the_prediction_up_to_the_views() -> None:
    assert soft_wait_s(0.0, 0.25) == SOFT_FLOOR_S
    assert soft_wait_s(0.04, 0.25) == pytest.approx(0.16)
    assert soft_wait_s(0.2, 0.25) == 0.25
    assert soft_wait_s(2.0, 0.25) == 8.0, "nobody is late who is expected later"


# -- late shards


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("stopped", [1, 2])
def test_stopped_shards_cost_one_soft_deadline_once(
    stack, tmp_path, transport: str, stopped: int
) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir(mode=0o700)
    servers = [stack.enter_context(server_process(transport, folder)) for folder in folders]
    given = view(epoch([FULL] * 3), [address for _, address in servers], deadline_s=HARD_S)
    dispatcher, _ = dispatcher_of(stack, given)
    rows, weights, ids = batch(64)
    call = dispatcher.send(0, rows, weights, ids)
    assert shards_of(call) == {0, 1, 2}
    dispatcher.wait(call)
    for process, _ in servers[:stopped]:
        os.kill(process.pid, signal.SIGSTOP)
        stack.callback(os.kill, process.pid, signal.SIGCONT)
    first = [dispatcher.send(0, rows, weights, ids) for _ in range(3)]
    took_s = [seconds(lambda call=call: dispatcher.wait(call)) for call in first]
    assert SOFT_FLOOR_S / 2 < sum(took_s) < CALM_S, "one soft deadline for all three calls"
    later_s = [seconds(lambda: run(dispatcher, 0, rows, weights, ids)) for _ in range(30)]
    assert sum(later_s) < CALM_S, "and none for later ones"
    for process, _ in servers[:stopped]:
        os.kill(process.pid, signal.SIGCONT)

    def all_are_back() -> bool:
        call = dispatcher.send(0, rows, weights, ids)
        got_rows = shards_of(call)
        dispatcher.wait(call)
        return got_rows == {0, 1, 2}

    eventually(all_are_back)


def test_first_answer_wins(mesh: Mesh, stack) -> None:
    """A late shard answers before the replica that was asked instead."""
    addresses = [mesh.add(FULL) for _ in range(2)]
    dispatcher, _ = dispatcher_of(stack, view(epoch([FULL] * 2), addresses, deadline_s=HARD_S))
    rows, weights, ids = batch()
    undisturbed = run(dispatcher, 0, rows, weights, ids)
    late, instead, free = threading.Event(), threading.Event(), threading.Event()
    stack.callback(lambda: (late.set(), free.set()))
    calls = []

    def second_call_hangs() -> None:
        calls.append(1)
        if len(calls) > 1:
            instead.set()
            late.set()
            free.wait(HARD_S)

    mesh.kernels[0].before_compute = lambda: late.wait(HARD_S)
    mesh.kernels[1].before_compute = second_call_hangs
    got = run(dispatcher, 0, rows, weights, ids)
    assert instead.is_set(), "the replica was asked"
    assert torch.equal(got, undisturbed), "the same split adds up to the same bits"


def test_a_shard_that_is_late_with_its_own_rows_and_anothers_counts_once(mesh, stack) -> None:
    """One shard is lost, and one that takes over some of its rows is late with those and with its
    own: parts of two flights, which others then compute."""
    addresses = [mesh.add(FULL) for _ in range(4)]
    given = view(epoch([FULL] * 4), addresses, deadline_s=HARD_S)
    # Calls that should take this long are late after 0.8 s: the loss is noticed before that.
    cost = DeviceCost(0.2, 1e-6, 1e-6)
    shards = tuple(replace(shard, cost=cost) for shard in given.shards)
    dispatcher, _ = dispatcher_of(stack, given, shards=shards, soft_deadline_s=1.0)
    released = threading.Event()
    stack.callback(released.set)
    killing = threading.Thread(target=mesh.kill, args=(1,))

    def end() -> None:
        killing.start()
        raise ExpertsMissing("it ends")

    mesh.kernels[1].before_compute = end
    mesh.kernels[2].before_compute = lambda: released.wait(HARD_S)
    rows, weights, ids = batch(400)
    call = dispatcher.send(0, rows, weights, ids)
    assert shards_of(call) == {0, 1, 2, 3}
    assert is_right(dispatcher.wait(call), 0, rows, weights, ids)
    killing.join()


def test_late_shard_without_a_replica_is_waited_for(mesh: Mesh, stack) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    dispatcher, _ = dispatcher_of(stack, view(epoch(HALVES), addresses, deadline_s=HARD_S))
    rows, weights, ids = batch()
    undisturbed = run(dispatcher, 0, rows, weights, ids)
    computed = []
    slow = threading.Event()
    mesh.kernels[1].before_compute = lambda: (computed.append(1), slow.wait(4 * SOFT_FLOOR_S))
    calls = [dispatcher.send(0, rows, weights, ids) for _ in range(2)]
    for call in calls:
        assert torch.equal(dispatcher.wait(call), undisturbed)
    assert len(computed) <= 2, "nothing was sent twice"


def test_shard_without_a_replica_that_misses_the_hard_deadline(mesh: Mesh, stack) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    given = view(epoch(HALVES), addresses, deadline_s=0.3, wait_s=0.3)
    dispatcher, _ = dispatcher_of(stack, given)
    rows, weights, ids = batch()
    first = run(dispatcher, 0, rows, weights, ids)
    released = threading.Event()
    stack.callback(released.set)
    mesh.kernels[1].before_compute = lambda: released.wait(HARD_S)
    with pytest.raises(ExpertUnavailable, match=r"waited 0\.3 s for a replica"):
        run(dispatcher, 0, rows, weights, ids)
    released.set()

    def is_back() -> bool:
        with contextlib.suppress(ExpertUnavailable):
            return torch.equal(run(dispatcher, 0, rows, weights, ids), first)
        return False

    eventually(is_back)


@pytest.mark.parametrize("coding", IN_BODY)
def test_rows_of_a_lost_shard_are_sent_again_in_their_coding(tmp_path, stack, coding) -> None:
    mesh = Mesh(tmp_path, "tcp")
    stack.callback(mesh.close)
    addresses = [mesh.add(FULL) for _ in range(3)]
    given = view(epoch([FULL] * 3), addresses, deadline_s=HARD_S, rows=coding)
    dispatcher, _ = dispatcher_of(stack, given)
    rows, weights, ids = batch(64, 5)
    run(dispatcher, 0, rows, weights, ids)
    released = threading.Event()
    stack.callback(released.set)
    mesh.kernels[0].before_compute = lambda: released.wait(HARD_S)
    got = run(dispatcher, 0, rows, weights, ids)
    fp8 = coding is RowCoding.FP8
    wanted = expected(0, fp8_and_back(rows) if fp8 else rows, weights, ids)
    assert torch.allclose(got.float(), wanted.float(), rtol=2**-6, atol=2**-6)


# -- links


def test_peer_that_cannot_be_reached_delays_no_call(tmp_path, stack) -> None:
    """Its listener's backlog is full, so that connecting to it takes as long as one lets it."""
    mesh = Mesh(tmp_path, "tcp")
    stack.callback(mesh.close)
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    where = listener.getsockname()
    for _ in range(4):
        filler = stack.enter_context(contextlib.closing(socket.socket()))
        filler.setblocking(False)
        filler.connect_ex(where)
    addresses = [Address(*where), mesh.add(FULL)]
    dispatcher, _ = dispatcher_of(stack, view(epoch([FULL] * 2), addresses, deadline_s=HARD_S))
    rows, weights, ids = batch()
    end_s = time.monotonic() + 2.0
    while time.monotonic() < end_s:
        took_s = seconds(lambda: run(dispatcher, 0, rows, weights, ids))
        assert took_s < CALM_S


def test_a_view_that_changes_weights_or_the_order_closes_nothing(mesh: Mesh, stack) -> None:
    parts = [{0: [0, 1, 2], 1: []}, {0: [3, 4], 1: []}, {0: [5, 6, 7], 1: []}]
    held = [{0: part[0]} for part in parts]
    addresses = [mesh.add(part) for part in parts]
    given = view(epoch(held), addresses, deadline_s=HARD_S)
    dispatcher, views = dispatcher_of(stack, given)
    rows, weights, ids = batch()
    first = run(dispatcher, 0, rows, weights, ids)
    released = threading.Event()
    stack.callback(released.set)
    computed: list[int] = []
    for kernel in mesh.kernels:
        kernel.before_compute = lambda: (computed.append(1), released.wait(HARD_S))
    away = dispatcher.send(0, rows, weights, ids)
    eventually(lambda: len(computed) == 3)
    lighter = tuple(replace(peer, weight=0.5) for peer in given.shards)
    views.publish(replace(given, shards=lighter))
    dispatcher.send(0, rows, weights, ids)
    turned = replace(given, epoch=epoch(held[::-1], 2), shards=given.shards[::-1])
    views.publish(turned)
    after = dispatcher.send(0, rows, weights, ids)
    released.set()
    assert torch.equal(dispatcher.wait(away), first)
    assert is_right(dispatcher.wait(after), 0, rows, weights, ids)
    assert len(computed) <= 9, "nothing was sent twice"


def test_a_peer_that_was_started_again_is_another_one(mesh: Mesh, stack) -> None:
    """A view names the incarnation: whoever answers at its address in its place is not used."""
    addresses = [mesh.add(FULL) for _ in range(2)]
    given = view(epoch([FULL] * 2), addresses, deadline_s=HARD_S)
    strange = (replace(given.shards[0], incarnation=12345), given.shards[1])
    dispatcher, views = dispatcher_of(stack, given, shards=strange)
    rows, weights, ids = batch()
    for _ in range(5):
        call = dispatcher.send(0, rows, weights, ids)
        assert shards_of(call) == {1}
        dispatcher.wait(call)
    views.publish(given)

    def both_are_used() -> bool:
        call = dispatcher.send(0, rows, weights, ids)
        got_rows = shards_of(call)
        dispatcher.wait(call)
        return got_rows == {0, 1}

    eventually(both_are_used)


def test_flight_to_a_shard_that_left_the_view_is_answered(mesh: Mesh, stack) -> None:
    addresses = [mesh.add(FULL) for _ in range(2)]
    given = view(epoch([FULL]), addresses[:1], deadline_s=HARD_S)
    dispatcher, views = dispatcher_of(stack, given, soft_deadline_s=HARD_S)
    rows, weights, ids = batch()
    first = run(dispatcher, 0, rows, weights, ids)
    released = threading.Event()
    stack.callback(released.set)
    started = threading.Event()
    mesh.kernels[0].before_compute = lambda: (started.set(), released.wait(HARD_S))
    away = dispatcher.send(0, rows, weights, ids)
    assert started.wait(HARD_S)
    heir = replace(view(epoch([FULL], 2), addresses[1:]).shards[0], id="heir")
    views.publish(replace(given, epoch=epoch([FULL], 2), shards=(heir,)))
    assert torch.equal(run(dispatcher, 0, rows, weights, ids), first), "by the heir"
    released.set()
    assert torch.equal(dispatcher.wait(away), first)


def test_large_bodies_wait_for_a_busy_shard_as_long_as_the_call_may_take(tmp_path, stack) -> None:
    """The shard computes for longer than five seconds and reads nothing meanwhile."""
    mesh = Mesh(tmp_path, "tcp")
    stack.callback(mesh.close)
    dispatcher, _ = dispatcher_of(
        stack, view(epoch([FULL]), [mesh.add(FULL)], deadline_s=30.0), soft_deadline_s=30.0
    )
    rows, weights, ids = batch()
    first = run(dispatcher, 0, rows, weights, ids)
    busy = threading.Event()

    def compute_for_long() -> None:
        if not busy.is_set():
            busy.set()
            time.sleep(5.5)

    mesh.kernels[0].before_compute = compute_for_long
    slow = dispatcher.send(0, rows, weights, ids)
    assert busy.wait(HARD_S)
    large = batch(120_000, 8, seed=3)
    call = dispatcher.send(0, *large)
    assert is_right(dispatcher.wait(call), 0, *large)
    assert torch.equal(dispatcher.wait(slow), first)
