"""Compile the planner and the data plane ahead of the first start.

  python -m orchestrator.machine_code

Both are Python that numba compiles when it is first called, 30 s on two cores, and keeps
(`native.compiled`). So this plans a small mesh, plans it anew for another load and sends rows
through it, over shared memory and TCP, in bf16 and FP8, also where a shard does not compute them
and another one has to: whatever serving calls is compiled afterwards. `make setup` runs it.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.dispatch.mesh_view import MeshView, Peer, ViewVersion
from actors.dispatch.view_source import FixedView
from actors.experts.checkpoint import ExpertTensors
from actors.experts.formats.bf16 import BF16
from actors.experts.spec import Activation, ExpertSpec
from actors.kernels.choose import choose_operator
from actors.kernels.packing import transpose_rows, transpose_scales
from actors.kernels.slot_kernel import SlotKernel
from actors.process import limit_threads
from actors.shard.server import ShardServer
from actors.wire.address import parse_address
from actors.wire.frame import RowCoding
from actors.wire.node import node_id
from actors.wire.slots import new_parts, say_asleep, yield_until_answered
from orchestrator.mesh_plan import ShardCapacity, plan_mesh
from placement.cost_model import TYPICAL_COST
from placement.epoch import PlanEpoch
from placement.policy.policies import Situation, decided, nudged, replanned

SHARDS, EXPERTS, TOP_K = 2, 8, 2
HIDDEN, INTERMEDIATE = 64, 64
BATCHES = (1, 40)
"""Rows; more than one choice of replicas has to be made in the second."""

_SPEC = ExpertSpec(
    architecture="none",
    model_path=Path(),
    layers=(0,),
    num_experts=EXPERTS,
    top_k=TOP_K,
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    weight_format=BF16,
    activation=Activation(),
)


def _kernel(experts: int) -> SlotKernel:
    """The product's own kernel for this CPU, over the first experts, of zeros."""
    zeros = ExpertTensors(
        torch.zeros(2 * INTERMEDIATE, HIDDEN, dtype=torch.bfloat16),
        torch.zeros(HIDDEN, INTERMEDIATE, dtype=torch.bfloat16),
    )
    operator = choose_operator(_SPEC, torch.device("cpu"))
    kernel = SlotKernel(_SPEC, operator, lambda _layer, _expert: zeros)
    kernel.load(0, list(range(experts)))
    return kernel


def compile_all() -> None:
    """Takes seconds the first time and after an update, and little otherwise."""
    epoch = _plan()
    _change_plans()
    _waits()
    _packing()
    with tempfile.TemporaryDirectory(prefix="xm") as folder:
        for tcp, coding in ((False, RowCoding.BF16), (True, RowCoding.BF16), (True, RowCoding.FP8)):
            with _shards(Path(folder), tcp) as peers:
                _send(_view(epoch, peers, coding))
        with _shards(Path(folder), False, first_holds=1) as peers:
            _send(_view(_everything_twice(), peers, RowCoding.BF16))


def _waits() -> None:
    """What waits call depends on how long they are; so it is called here."""
    parts = new_parts(1)
    yield_until_answered(parts, 1)
    say_asleep(parts, 0)


def _packing() -> None:
    """Of every format, as it depends on the model which is called."""
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.uint8):
        zeros = torch.zeros(64, 64, dtype=dtype)
        transpose_rows(zeros, torch.empty_like(zeros), alternate=False)
    transpose_scales(zeros, torch.empty_like(zeros), alternate=False, add=0)


def _plan() -> PlanEpoch:
    """Room for replicas, so that later calls have to choose; unequal shards, so that the planner
    has to look for what is best."""
    room = EXPERTS * 3 // 4
    costs = [TYPICAL_COST.scaled(1.0 / (1 + n)) for n in range(SHARDS)]
    capacities = [ShardCapacity(f"s{n}", room, cost, 1) for n, cost in enumerate(costs)]
    return plan_mesh(_SPEC, capacities, "fill", 1).epoch


def _change_plans() -> None:
    """As when the load turns: compiled beside serving, this would take a busy machine minutes, in
    which nothing is rebalanced."""
    load = np.arange(1, 1 + 2 * EXPERTS).reshape(2, EXPERTS).astype(np.float64)
    speed, slots = np.ones(4), np.full(4, EXPERTS // 2)
    for domains in (None, np.arange(4) // 2):
        seen = Situation(
            load, speed, slots, None, None, load, failure_domains=domains, offset=np.ones(4)
        )
        planned = replanned(seen).placement
        assert planned is not None
        other = load[:, ::-1].copy()
        turned = replace(seen, load=other, counts=other, current=planned.experts, planned_load=load)
        for policy in (replanned, nudged, decided):
            policy(turned)


def _everything_twice() -> PlanEpoch:
    held = np.tile(np.arange(EXPERTS, dtype=np.int32), (1, SHARDS, 1))
    return PlanEpoch(1, EXPERTS, (0,), held, np.ones(held.shape))


@contextmanager
def _shards(folder: Path, tcp: bool, first_holds: int = EXPERTS) -> Iterator[list[Peer]]:
    """Shard servers in threads; over TCP they say that they are on another node. The first refuses
    what is beyond `first_holds` experts."""
    servers = [
        ShardServer(
            _SPEC,
            _kernel(EXPERTS if number else first_holds),
            [parse_address("tcp:127.0.0.1:0" if tcp else f"unix:{folder}/s{number}")],
            b"compile",
        )
        for number in range(SHARDS)
    ]
    threads = [threading.Thread(target=server.run) for server in servers]
    for thread in threads:
        thread.start()
    try:
        node = "elsewhere" if tcp else node_id()
        yield [
            Peer(f"s{number}", server.incarnation, node, tuple(server.addresses))
            for number, server in enumerate(servers)
        ]
    finally:
        for server in servers:
            server.stop()
        for thread in threads:
            thread.join()


def _view(epoch: PlanEpoch, peers: list[Peer], coding: RowCoding) -> MeshView:
    return MeshView(
        mesh="compile",
        model_path="",
        fingerprint="",
        router_mode="embedded",
        version=ViewVersion(1, 1),
        soft_deadline_s=60.0,
        call_deadline_s=120.0,
        expert_wait_s=120.0,
        epoch=epoch,
        shards=tuple(peers),
        rows_between_nodes=coding,
    )


def _send(view: MeshView) -> None:
    dispatcher = Dispatcher(FixedView(view), b"compile")
    chosen = np.random.default_rng(0)
    for rows in BATCHES:
        ids = torch.from_numpy(chosen.integers(0, EXPERTS, (rows, TOP_K), np.int32))
        weights = torch.ones(rows, TOP_K)
        call = dispatcher.send(0, torch.zeros(rows, HIDDEN, dtype=torch.bfloat16), weights, ids)
        dispatcher.wait(call)
    dispatcher.close()


def main() -> None:
    limit_threads(1)
    logging.getLogger("actors").setLevel(logging.ERROR)  # refusals are meant to happen here
    began_s = time.monotonic()
    compile_all()
    print(f"compiled in {time.monotonic() - began_s:.0f} s")


if __name__ == "__main__":
    main()
