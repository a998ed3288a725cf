"""Calls posted and added up together, and what happens when one of them is not as usual."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.answers import result_header
from actors.dispatch.adding import NO_NUMBER, took_us
from actors.dispatch.dispatcher import Call, Dispatcher
from actors.dispatch.view_source import FixedView
from actors.shard.server import ShardServer
from actors.wire.address import Address, parse_address
from actors.wire.frame import IN_BODY, RowCoding
from actors.wire.server import FrameServer, Request
from benchmarks.harness.bare_shards import SECRET as BARE_SECRET
from benchmarks.harness.bare_shards import BareMesh, bare_shards
from tests.actors.dispatch.test_dispatcher import HALVES, SECRET, batch, fp8_and_back
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

FULL = {0: list(range(8)), 1: list(range(8))}


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def shard(stack: ExitStack, folder: Path, number: int, held: dict[int, list[int]]) -> AffineKernel:
    """A shard that listens at folder/s<number>."""
    kernel = AffineKernel(dict(held))
    server = ShardServer(spec(), kernel, [Address(f"{folder}/s{number}")], SECRET)
    stack.enter_context(running(server))
    return kernel


def connected(
    stack: ExitStack, folder: Path, held: Sequence[dict[int, list[int]]], deadline_s: float = 0.5
) -> Dispatcher:
    """A dispatcher that has called all shards once: its next calls go together."""
    addresses = [Address(f"{folder}/s{number}") for number in range(len(held))]
    views = StaticViews(view(epoch(held), addresses, deadline_s=deadline_s))
    dispatcher = Dispatcher(views, SECRET)
    stack.callback(dispatcher.close)
    rows, weights, ids = batch()
    assert_right(dispatcher, dispatcher.send(0, rows, weights, ids), rows, weights, ids)
    return dispatcher


def assert_right(dispatcher: Dispatcher, call: Call, rows, weights, ids) -> None:
    wanted = expected(call.layer, rows, weights, ids).float()
    assert torch.allclose(dispatcher.wait(call).float(), wanted, rtol=2**-7, atol=1e-5)


def test_flights_are_used_again(stack, tmp_path) -> None:
    for number, held in enumerate(HALVES):
        shard(stack, tmp_path, number, held)
    dispatcher = connected(stack, tmp_path, HALVES)
    for tokens in (1, 33, 500):
        rows, weights, ids = batch(tokens, seed=tokens)
        call = dispatcher.send(1, rows, weights, ids)
        assert_right(dispatcher, call, rows, weights, ids)


def test_padding_only_is_nothing(stack, tmp_path) -> None:
    shard(stack, tmp_path, 0, FULL)
    dispatcher = connected(stack, tmp_path, [FULL])
    rows, weights, ids = batch(4)
    result = dispatcher.wait(dispatcher.send(0, rows, weights, torch.full_like(ids, -1)))
    assert torch.equal(result, torch.zeros_like(rows))


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_body_grows_its_link_while_calls_are_away(stack, tmp_path, transport: str) -> None:
    released = threading.Event()
    kernels = [AffineKernel(dict(held)) for held in HALVES]
    addresses = []
    for number, kernel in enumerate(kernels):
        where = f"unix:{tmp_path}/s{number}" if transport == "unix" else "tcp:127.0.0.1:0"
        server = ShardServer(spec(), kernel, [parse_address(where)], SECRET)
        stack.enter_context(running(server))
        addresses += server.addresses
    views = StaticViews(view(epoch(HALVES), addresses, deadline_s=20))
    dispatcher = Dispatcher(views, SECRET)
    stack.callback(dispatcher.close)
    for kernel in kernels:
        kernel.before_compute = lambda: released.wait(60)
    # At 16 bytes a row and 12 an assignment, the second outgrows the first slots of 4 MB.
    batches = [batch(tokens, 8, seed=tokens) for tokens in (10, 90_000, 20)]
    calls = [dispatcher.send(0, *of) for of in batches]
    released.set()
    for number in (1, 0, 2):
        assert_right(dispatcher, calls[number], *batches[number])
    rows, weights, ids = batch()
    assert_right(dispatcher, dispatcher.send(0, rows, weights, ids), rows, weights, ids)


@pytest.mark.parametrize("coding", IN_BODY)
@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_sums_of_three_shards_are_added_in_their_order(
    stack, tmp_path, transport: str, coding: RowCoding
) -> None:
    """The answers come last shard first, and the sum is that of plain torch in ascending order."""
    thirds = [{0: [0, 1, 2], 1: []}, {0: [3, 4], 1: []}, {0: [5, 6, 7], 1: []}]
    kernels, addresses = [AffineKernel(dict(held)) for held in thirds], []
    later = [threading.Event() for _ in thirds]
    for number, kernel in enumerate(kernels):
        where = f"unix:{tmp_path}/s{number}" if transport == "unix" else "tcp:127.0.0.1:0"
        server = ShardServer(spec(), kernel, [parse_address(where)], SECRET)
        stack.enter_context(running(server))
        addresses += server.addresses
    plan = epoch([{0: held[0]} for held in thirds])
    dispatcher = Dispatcher(StaticViews(view(plan, addresses, rows=coding)), SECRET)
    stack.callback(dispatcher.close)

    def one_after_the_other(number: int) -> Callable[[], None]:
        def wait() -> None:
            if number + 1 < len(thirds):
                later[number + 1].wait(0.05)
            later[number].set()

        return wait

    rows, weights, ids = batch(50, 5, seed=1)
    fp8 = coding is RowCoding.FP8 and transport == "tcp"
    sent = fp8_and_back(rows) if fp8 else rows
    total = torch.zeros(rows.shape)
    for held, kernel in zip(thirds, kernels, strict=True):
        token, choice = torch.isin(ids, torch.tensor(held[0])).nonzero(as_tuple=True)
        sums = kernel.compute(
            0, sent, token.int(), ids[token, choice].int(), weights[token, choice]
        )
        total += sums.bfloat16().float() if fp8 else sums
    for number, kernel in enumerate(kernels):
        kernel.before_compute = one_after_the_other(number)
    result = dispatcher.wait(dispatcher.send(0, rows, weights, ids))
    assert torch.equal(result, total.to(torch.bfloat16))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_sums_without_numbers_keep_their_slots(stack, tmp_path, value) -> None:
    """Their answers are looked at again, shard by shard, so nothing may write over them yet."""
    for number, held in enumerate(HALVES):
        shard(stack, tmp_path, number, held)
    dispatcher = connected(stack, tmp_path, HALVES)
    rows, weights, ids = batch()
    rows[0, 1] = value
    call = dispatcher.send(0, rows, weights, ids)
    (flight,) = call.flights
    assert dispatcher._links.waiting.answered(flight.parts, time.monotonic() + 60.0)
    result = torch.empty(rows.shape, dtype=torch.bfloat16)
    outcome = flight.collect(result)
    assert outcome <= NO_NUMBER
    assert took_us(outcome) >= 0
    assert not flight.is_over, "no slot is free"
    assert not result[0].isfinite().all()
    assert result[1:].isfinite().all()
    again = torch.empty_like(result)
    assert flight.collect(again) == outcome, "and the answers are still there"
    assert torch.equal(again.view(torch.int16), result.view(torch.int16))
    passed_on = dispatcher.wait(call)
    assert flight.is_over, "nobody else holds these experts"
    assert torch.equal(passed_on.view(torch.int16), result.view(torch.int16))


def test_shard_that_refuses_is_not_asked_again(stack, tmp_path) -> None:
    kernel = shard(stack, tmp_path, 0, FULL)
    shard(stack, tmp_path, 1, FULL)
    dispatcher = connected(stack, tmp_path, [FULL, FULL])
    kernel.held[0] = []  # retired since
    rows, weights, ids = batch()
    assert_right(dispatcher, dispatcher.send(0, rows, weights, ids), rows, weights, ids)


WRONG: dict[str, Callable] = {
    "another call": lambda answer: answer._replace(call_id=answer.call_id + 1),
    "other rows": lambda answer: replace_rows(answer, answer.rows + 1),
    "other hidden size": lambda answer: answer._replace(hidden=2 * HIDDEN),
}


def replace_rows(answer, rows: int):
    return answer._replace(rows=rows, body_bytes=4 * rows * HIDDEN)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_answer_that_is_no_result_costs_the_shard_its_link(stack, tmp_path, wrong) -> None:
    """Another replica computes what such a shard got."""
    lying = threading.Event()

    def answer(requests: Sequence[Request]) -> None:
        for request in requests:
            right = result_header(request.header)
            room = server.room(request, right.body_bytes)
            if room is None:
                continue
            if lying.is_set():
                server.answer(request, wrong(right))
            else:
                room[:] = bytes(len(room))
                server.answer(request, right)

    server = FrameServer([Address(f"{tmp_path}/s0")], SECRET, answer)
    stack.enter_context(running(server))
    shard(stack, tmp_path, 1, FULL)
    addresses = [Address(f"{tmp_path}/s0"), Address(f"{tmp_path}/s1")]
    dispatcher = Dispatcher(StaticViews(view(epoch([FULL, FULL]), addresses)), SECRET)
    stack.callback(dispatcher.close)
    rows, weights, ids = batch()
    dispatcher.wait(dispatcher.send(0, rows, weights, ids))
    lying.set()
    call = dispatcher.send(0, rows, weights, ids)
    assert_right(dispatcher, call, rows, weights, ids)
    assert dispatcher._links.is_wrong(server.incarnation), "reported, whether its link is back"


def test_shard_that_was_replaced_meanwhile(stack, tmp_path) -> None:
    kernel = shard(stack, tmp_path, 0, FULL)
    views = StaticViews(view(epoch([FULL]), [Address(f"{tmp_path}/s0")]))
    dispatcher = Dispatcher(views, SECRET)
    stack.callback(dispatcher.close)
    rows, weights, ids = batch()
    assert_right(dispatcher, dispatcher.send(0, rows, weights, ids), rows, weights, ids)
    released = threading.Event()
    stack.callback(released.set)
    kernel.before_compute = lambda: released.wait(60)
    away = dispatcher.send(0, rows, weights, ids)
    shard(stack, tmp_path, 1, FULL)
    heir = view(epoch([FULL], 2), [Address(f"{tmp_path}/s1")], deadline_s=0.5)
    views.publish(heir)
    # This call adopts the view, and with it drops the link that the other one went out on.
    assert_right(dispatcher, dispatcher.send(0, rows, weights, ids), rows, weights, ids)
    assert_right(dispatcher, away, rows, weights, ids)


def page_faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[7])


def test_nothing_is_asked_of_the_system_in_the_steady_state(tmp_path) -> None:
    """Memory that was new to a process would show as page faults."""
    mesh = replace(BareMesh(), kernel="native", hidden=512, num_experts=16)
    with bare_shards(mesh, tmp_path) as (seen, processes):
        dispatcher = Dispatcher(FixedView(seen), BARE_SECRET)
        rows = torch.randn(16, mesh.hidden).bfloat16()
        ids = torch.rand(16, 16).topk(8).indices.to(torch.int32)
        weights = torch.rand(16, 8)
        pids = [os.getpid(), *(process.pid for process in processes)]

        def call_often() -> np.ndarray:
            before = np.array([page_faults(pid) for pid in pids])
            for _ in range(300):
                dispatcher.wait(dispatcher.send(0, rows, weights, ids))
            return np.array([page_faults(pid) for pid in pids]) - before

        call_often()
        assert (call_often() < 30).all(), "fewer than one in ten calls"
        dispatcher.close()
