"""Rows to shards and back over real sockets: right sums, whatever dies meanwhile."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.dispatch.backend import ExpertBackend, ExpertUnavailable
from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.mesh_view import ViewVersion
from actors.dispatch.report import DispatchReport
from actors.dispatch.router_client import RouterClient
from actors.dispatch.view_messages import ReportHead
from actors.router.server import RouterServer
from actors.shard.server import ShardServer
from actors.wire.address import Address, parse_address
from actors.wire.frame import IN_BODY, RowCoding
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

SECRET = b"a test's secret"
HALVES = [{0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}, {0: [4, 5, 6, 7], 1: [4, 5, 6, 7]}]
THIRDS = [{0: part, 1: part} for part in ([0, 1, 2], [3, 4, 5], [6, 7])]
# Experts 2-5 have a replica on both shards.
OVERLAP = [{0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 2, 3]}, {0: [2, 3, 4, 5, 6, 7], 1: [4, 5, 6, 7]}]


class Mesh:
    """Shard servers in threads, started and stopped by the test."""

    def __init__(self, folder: Path, transport: str) -> None:
        self._folder, self._transport = folder, transport
        self._stacks: list[ExitStack] = []
        self.kernels: list[AffineKernel] = []

    def where(self, name: str) -> Address:
        unix = self._transport == "unix"
        return parse_address(f"unix:{self._folder}/{name}" if unix else "tcp:127.0.0.1:0")

    def add(self, held: dict[int, list[int]]) -> Address:
        kernel = AffineKernel(held)
        server = ShardServer(spec(), kernel, [self.where(f"s{len(self._stacks)}")], SECRET)
        stack = ExitStack()
        stack.enter_context(running(server))
        self._stacks.append(stack)
        self.kernels.append(kernel)
        return server.addresses[0]

    def kill(self, number: int) -> None:
        self._stacks[number].close()

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()


@pytest.fixture(params=["unix", "tcp"])
def mesh(request, tmp_path):
    mesh = Mesh(tmp_path, request.param)
    yield mesh
    mesh.close()


def batch(tokens: int = 33, top_k: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, HIDDEN, generator=generator).to(torch.bfloat16)
    ids = torch.stack([torch.randperm(8, generator=generator)[:top_k] for _ in range(tokens)])
    return rows, torch.rand(tokens, top_k, generator=generator), ids


def run(backend: ExpertBackend, layer: int, rows, weights, ids) -> torch.Tensor:
    return backend.wait(backend.send(layer, rows, weights, ids))


@pytest.mark.parametrize("held", [HALVES, OVERLAP], ids=["halves", "replicas"])
def test_sums_are_right(mesh: Mesh, held) -> None:
    addresses = [mesh.add(part) for part in held]
    dispatcher = Dispatcher(StaticViews(view(epoch(held), addresses)), SECRET)
    for layer in (0, 1):
        for tokens in (1, 33, 1000):
            rows, weights, ids = batch(tokens, seed=tokens)
            got = run(dispatcher, layer, rows, weights, ids)
            wanted = expected(layer, rows, weights, ids)
            assert torch.allclose(got.float(), wanted.float(), rtol=2**-7, atol=1e-5)
    dispatcher.close()


def test_fp8_rows_to_other_nodes_only(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    given = view(epoch(HALVES), addresses, rows=RowCoding.FP8)
    dispatcher = Dispatcher(StaticViews(given), SECRET)
    rows, weights, ids = batch()
    result = dispatcher.wait(dispatcher.send(1, rows, weights, ids))
    dispatcher.close()
    exact = expected(1, rows, weights, ids)
    if addresses[0].is_unix:
        assert torch.equal(result, exact)
    else:
        error = (result.float() - exact.float()).norm() / exact.float().norm()
        assert 0.001 < error < 0.03, "coded, and no worse than e4m3 is"
        again = expected(1, fp8_and_back(rows), weights, ids)
        assert torch.allclose(result.float(), again.float(), rtol=2**-7, atol=2**-6)


def test_clients_with_either_row_coding_are_merged() -> None:
    kernel = AffineKernel(dict(HALVES[0]))
    server = ShardServer(spec(), kernel, [parse_address("tcp:127.0.0.1:0")], SECRET)
    rows, weights, ids = batch(top_k=1)
    ids %= 4
    plan = epoch([{0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}], num_experts=4)
    dispatchers = [
        Dispatcher(StaticViews(view(plan, server.addresses, rows=coding)), SECRET)
        for coding in IN_BODY
    ]
    busy, go_on = threading.Event(), threading.Event()
    with running(server):
        for dispatcher in dispatchers:  # connect
            dispatcher.wait(dispatcher.send(0, rows, weights, ids))
        kernel.before_compute = lambda: (busy.set(), go_on.wait(60))
        first = dispatchers[0].send(0, rows, weights, ids)
        assert busy.wait(60)
        calls = [dispatcher.send(0, rows, weights, ids) for dispatcher in dispatchers]
        go_on.set()
        dispatchers[0].wait(first)
        exact, coded = (d.wait(c) for d, c in zip(dispatchers, calls, strict=True))
    assert server.calls == 4, "the last two were computed together"
    assert torch.equal(exact, expected(0, rows, weights, ids))
    wanted = expected(0, fp8_and_back(rows), weights, ids)
    assert torch.allclose(coded.float(), wanted.float(), rtol=2**-7)
    for dispatcher in dispatchers:
        dispatcher.close()


def fp8_and_back(rows: torch.Tensor) -> torch.Tensor:
    """What a shard gets of [T, H] bf16 rows that travel in FP8."""
    scales = rows.float().abs().amax(1, keepdim=True) / 448
    codes = (rows.float() * (1 / scales)).to(torch.float8_e4m3fn)
    return (codes.float() * scales).bfloat16()


def test_sums_are_added_in_shard_order_and_rounded_once(mesh: Mesh) -> None:
    """The same bits as plain torch: fp32 partial sums, ascending shards, one rounding. The first
    two sums are large and cancel: added in between, the third one loses bits."""
    addresses = [mesh.add(part) for part in THIRDS]
    dispatcher = Dispatcher(StaticViews(view(epoch(THIRDS), addresses)), SECRET)
    for tokens in (1, 33, 700):
        rows, weights, ids = batch(tokens, seed=tokens)
        ids = torch.tensor([[0, 3, 7]], dtype=ids.dtype).repeat(tokens, 1)
        weights = torch.tensor([[2.0**24, -(2.0**22), 1.0]]).repeat(tokens, 1)
        token = torch.arange(tokens, dtype=torch.int32)
        sums = [
            kernel.compute(0, rows, token, ids[:, choice].int(), weights[:, choice])
            for choice, kernel in enumerate(mesh.kernels)
        ]
        wanted = (sums[0] + sums[1] + sums[2]).to(torch.bfloat16)
        assert not torch.equal(wanted, (sums[0] + sums[2] + sums[1]).to(torch.bfloat16))
        assert not torch.equal(wanted, (sums[1] + sums[2] + sums[0]).to(torch.bfloat16))
        assert torch.equal(run(dispatcher, 0, rows, weights, ids), wanted)
    dispatcher.close()


def test_calls_are_waited_for_in_any_order(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in OVERLAP]
    dispatcher = Dispatcher(StaticViews(view(epoch(OVERLAP), addresses)), SECRET)
    batches = [batch(tokens, seed=tokens) for tokens in (40, 5, 90)]
    single = [run(dispatcher, 1, *given) for given in batches]
    calls = [dispatcher.send(1, *given) for given in batches]
    for number in (1, 2, 0):
        assert torch.equal(dispatcher.wait(calls[number]), single[number])
    dispatcher.close()


def test_abandoned_call_does_not_disturb_the_next(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    views = StaticViews(view(epoch(HALVES), addresses, wait_s=0.3))
    dispatcher = Dispatcher(views, SECRET)
    rows, weights, ids = batch()
    first = run(dispatcher, 0, rows, weights, ids)
    mesh.kernels[0].held = {0: [], 1: []}
    call = dispatcher.send(0, rows, weights, ids)
    with pytest.raises(ExpertUnavailable):
        dispatcher.wait(call)
    mesh.kernels[0].held = HALVES[0]
    assert torch.equal(run(dispatcher, 0, rows, weights, ids), first)
    dispatcher.close()


def test_padded_choices_are_left_out(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    dispatcher = Dispatcher(StaticViews(view(epoch(HALVES), addresses)), SECRET)
    rows, weights, ids = batch()
    ids[5:] = -1
    got = run(dispatcher, 0, rows, weights, ids)
    assert torch.equal(got[5:], torch.zeros_like(got[5:]))
    assert torch.allclose(
        got[:5].float(), expected(0, rows, weights, ids)[:5].float(), rtol=2**-7, atol=1e-5
    )


def test_same_bits_every_time(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in OVERLAP]
    dispatcher = Dispatcher(StaticViews(view(epoch(OVERLAP), addresses)), SECRET)
    rows, weights, ids = batch(200)
    first = run(dispatcher, 0, rows, weights, ids)
    for _ in range(5):
        assert torch.equal(run(dispatcher, 0, rows, weights, ids), first)


def test_lost_shard_is_replaced_by_its_replicas(mesh: Mesh) -> None:
    full = {0: list(range(8)), 1: list(range(8))}
    addresses = [mesh.add(full), mesh.add(full)]
    dispatcher = Dispatcher(StaticViews(view(epoch([full, full]), addresses)), SECRET)
    rows, weights, ids = batch()
    run(dispatcher, 0, rows, weights, ids)
    mesh.kill(0)
    got = run(dispatcher, 0, rows, weights, ids)
    assert torch.allclose(
        got.float(), expected(0, rows, weights, ids).float(), rtol=2**-7, atol=1e-5
    )
    told = report(dispatcher)
    assert (told.calls, told.failed) == (2, 0)
    assert [shard.lost for shard in told.shards] == [1, 0]


def report(dispatcher: Dispatcher) -> DispatchReport:
    """What the directory's connection would carry."""
    (follower,) = [one for one in dispatcher._views.followers if one.report is not None]
    assert follower.report is not None
    told = follower.report()
    assert ReportHead.of(told).report() == told
    return told


def test_hung_shard_misses_its_deadline(mesh: Mesh) -> None:
    full = {0: list(range(8)), 1: list(range(8))}
    addresses = [mesh.add(full), mesh.add(full)]
    released = threading.Event()
    mesh.kernels[0].before_compute = lambda: released.wait(60)
    views = StaticViews(view(epoch([full, full]), addresses, deadline_s=0.3))
    dispatcher = Dispatcher(views, SECRET)
    rows, weights, ids = batch()
    start_s = time.monotonic()
    got = run(dispatcher, 0, rows, weights, ids)
    took_s = time.monotonic() - start_s
    assert took_s < 3
    assert torch.allclose(
        got.float(), expected(0, rows, weights, ids).float(), rtol=2**-7, atol=1e-5
    )
    told = report(dispatcher)
    assert told.resent >= 1
    assert told.shards[0].late == 1
    assert sum(told.waited.counts) == sum(told.served.counts) == told.calls == 1
    assert 0 < told.waited.sum_s < took_s
    assert 0 <= told.served.sum_s < told.waited.sum_s
    released.set()


def test_a_shard_that_never_answers_is_given_up_after_the_hard_deadline(mesh: Mesh) -> None:
    """Its calls have long been answered by its replica, so nobody waits for it meanwhile."""
    full, deadline_s = {0: list(range(8)), 1: list(range(8))}, 1.5
    addresses = [mesh.add(full), mesh.add(full)]
    released = threading.Event()
    mesh.kernels[0].before_compute = lambda: released.wait(60)
    views = StaticViews(view(epoch([full, full]), addresses, deadline_s=deadline_s))
    dispatcher = Dispatcher(views, SECRET)
    began_s = time.monotonic()
    run(dispatcher, 0, *batch())
    while not report(dispatcher).shards[0].lost:
        assert time.monotonic() - began_s < 60
        run(dispatcher, 0, *batch())
    assert time.monotonic() - began_s >= deadline_s
    released.set()


def test_call_waits_for_the_next_view(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    views = StaticViews(view(epoch(HALVES), addresses))
    dispatcher = Dispatcher(views, SECRET)
    rows, weights, ids = batch()
    run(dispatcher, 0, rows, weights, ids)
    mesh.kill(1)
    # The heir of the lost shard appears while the call is waiting.
    heir = mesh.add(HALVES[1])
    later = threading.Timer(
        0.5, lambda: views.publish(view(epoch(HALVES, 2), [addresses[0], heir]))
    )
    later.start()
    got = run(dispatcher, 0, rows, weights, ids)
    assert torch.allclose(
        got.float(), expected(0, rows, weights, ids).float(), rtol=2**-7, atol=1e-5
    )
    later.join()
    assert report(dispatcher).starved == 1


def test_no_replica_ever_is_an_error(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    dispatcher = Dispatcher(StaticViews(view(epoch(HALVES), addresses, wait_s=0.5)), SECRET)
    mesh.kill(1)
    with pytest.raises(ExpertUnavailable, match=r"waited 0\.5 s for a replica"):
        run(dispatcher, 0, *batch())


def test_shard_that_retired_an_expert_is_asked_no_more(mesh: Mesh) -> None:
    full = {0: list(range(8)), 1: list(range(8))}
    addresses = [mesh.add(full), mesh.add({0: [0, 1], 1: [0, 1]})]
    dispatcher = Dispatcher(StaticViews(view(epoch([full, full]), addresses)), SECRET)
    rows, weights, ids = batch()
    got = run(dispatcher, 0, rows, weights, ids)
    assert torch.allclose(
        got.float(), expected(0, rows, weights, ids).float(), rtol=2**-7, atol=1e-5
    )


def test_calls_merged_with_one_for_retired_experts_are_served(mesh: Mesh) -> None:
    """The shard has retired what one engine asks for, by a view that engine has not seen yet."""
    held = [{0: list(range(8))}, {0: list(range(1, 8))}]
    addresses = [mesh.add({0: list(range(8))}), mesh.add(held[1])]
    kernel, computing, go_on = mesh.kernels[0], threading.Event(), threading.Event()
    now = view(epoch(held), addresses)
    first, late, other = (Dispatcher(StaticViews(now), SECRET) for _ in range(3))
    rows, weights, ids = batch()
    alone = torch.zeros_like(ids[:, :1])  # expert 0, which no other shard has
    for one in (first, late, other):  # a shard that computes greets nobody
        run(one, 0, rows, weights[:, :1], alone)
    kernel.before_compute = lambda: (computing.set(), go_on.wait(60))
    busy = first.send(0, rows, weights[:, :1], alone)
    assert computing.wait(60)
    late_ids = 1 + ids % 7
    late_call = late.send(0, rows, weights, late_ids)
    other_call = other.send(0, rows, weights[:, :1], alone)
    kernel.load(0, [0])
    go_on.set()
    first.wait(busy)
    for got, asked in (
        (other.wait(other_call), (weights[:, :1], alone)),
        (late.wait(late_call), (weights, late_ids)),
    ):
        right = expected(0, rows, *asked).float()
        assert torch.allclose(got.float(), right, rtol=2**-7, atol=1e-5)
    assert any({0} < experts for experts in kernel.asked), "they were merged"
    asked_first, asked_next = report(late).shards
    assert asked_first.refused or asked_first.late, "by a refusal, or before it came"
    assert not asked_next.refused
    assert [shard.refused for shard in report(other).shards] == [0, 0]


def test_through_a_router(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in OVERLAP]
    plan = epoch(OVERLAP)
    views = StaticViews(view(plan, addresses))
    router = RouterServer(Dispatcher(views, SECRET), [mesh.where("router")], SECRET)
    with running(router):
        client = RouterClient(
            StaticViews(view(plan, addresses, routers=router.addresses, mode="actor")), SECRET
        )
        direct = Dispatcher(views, SECRET)
        for tokens in (1, 33, 500):
            rows, weights, ids = batch(tokens, seed=tokens)
            got = run(client, 1, rows, weights, ids)
            assert torch.equal(got, run(direct, 1, rows, weights, ids))
        client.close()


def test_router_that_returns_takes_the_batch_again(mesh: Mesh, tmp_path: Path) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    plan = epoch(HALVES)
    where = [Address(f"{tmp_path}/router")]
    views = StaticViews(view(plan, addresses, routers=where, mode="actor"))
    client = RouterClient(views, SECRET)
    rows, weights, ids = batch()
    with running(RouterServer(Dispatcher(views, SECRET), where, SECRET)):
        first = run(client, 0, rows, weights, ids)
    call = client.send(0, rows, weights, ids)
    with running(RouterServer(Dispatcher(views, SECRET), where, SECRET)):
        assert torch.equal(client.wait(call), first)


def test_shards_count_their_load(tmp_path: Path) -> None:
    kernel = AffineKernel({0: list(range(8)), 1: []})
    server = ShardServer(spec(), kernel, [Address(f"{tmp_path}/counted")], SECRET)
    rows, weights, ids = batch()
    with running(server):
        full = {0: list(range(8)), 1: list(range(8))}
        dispatcher = Dispatcher(StaticViews(view(epoch([full]), server.addresses)), SECRET)
        run(dispatcher, 0, rows, weights, ids)
    assert server.tokens[0].tolist() == np.bincount(ids.flatten(), minlength=8).tolist()
    assert not server.tokens[1].any()


def test_a_dispatcher_tells_which_view_its_calls_follow(mesh: Mesh) -> None:
    addresses = [mesh.add(part) for part in HALVES]
    views = StaticViews(view(epoch(HALVES), addresses))
    dispatcher = Dispatcher(views, SECRET)
    (follower,) = views.followers
    assert follower.has_adopted(ViewVersion(1, 1)), "nothing is under way"
    rows, weights, ids = batch()
    old = dispatcher.send(0, rows, weights, ids)
    assert follower.has_adopted(ViewVersion(1, 1))
    views.publish(view(epoch(HALVES, 2), addresses))
    assert not follower.has_adopted(ViewVersion(1, 2)), "a call follows the older view"
    dispatcher.wait(old)
    assert follower.has_adopted(ViewVersion(1, 2)), "the next call will ask"
    new = dispatcher.send(0, rows, weights, ids)
    assert follower.calls == 1
    assert follower.has_adopted(ViewVersion(1, 2))
    dispatcher.wait(new)
    with pytest.raises(KeyError):
        dispatcher.send(7, rows, weights, ids)
    assert follower.calls == 0, "a call that fails is over"
    dispatcher.close()
    assert views.followers == []
