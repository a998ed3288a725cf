"""The mesh as two torch operators, so that torch.compile does not look into it.

Where vLLM compiles a model it traces the MoE layers of a CPU engine too, down to sockets, which it
cannot. An operator is a node of the graph instead; what lies between the two in the trace (shared
experts) is computed while the rows are away, as in eager mode, since the second one needs what the
first one returns.

With tensor parallelism every rank has all rows, and vLLM adds up what the ranks return (together
with their parts of the shared experts). So each rank sends its own slice of the rows and returns
zeros for the others: every row is computed once, and the sum over ranks holds it once.
"""

from dataclasses import dataclass
from typing import Any

import torch

from actors.dispatch.backend import ExpertUnavailable
from actors.vllm_plugin import failed_step, traced_step, traffic_steps
from actors.vllm_plugin.connection import backend


@dataclass(frozen=True, slots=True)
class _Away:
    """A call with the rows from `first` on; None where there is nothing to wait for."""

    call: Any
    first: int
    rank: int


_away: dict[int, _Away] = {}
"""Calls on their way, by number."""
_last = 0


def slice_of(rank: int, ranks: int, rows: int) -> tuple[int, int]:
    """(first, last + 1) of the rows that one rank sends; slices differ by one row at most."""
    return rows * rank // ranks, rows * (rank + 1) // ranks


def send_rows(
    rows: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    layer: int,
    rank: int,
    ranks: int,
) -> torch.Tensor:
    """int64 [1]: the number of a call with this rank's slice of rows [T, H], for `wait_sums`."""
    global _last  # noqa: PLW0603 - vLLM runs a model in one thread
    _last += 1
    first, last = slice_of(rank, ranks, len(rows))
    call = None
    if first < last and not failed_step.is_current():
        own = slice(first, last)
        mesh, own_rows = backend(), rows[own].to(torch.bfloat16)
        # The ids' copy waits until the device has come so far; the rows are there by then.
        weights, ids = topk_weights[own].cpu(), topk_ids[own].cpu()
        if own_rows.device.type != "cpu" and not mesh.takes(own_rows.device):
            own_rows = own_rows.cpu()
        try:
            call = mesh.send(layer, own_rows, weights, ids, traced_step.sample)
        except ExpertUnavailable as error:
            failed_step.declare(error, rank)
        if traffic_steps.current is not None:
            # Now, while the shards are at work.
            traffic_steps.current.layer(layer, ids.numpy(), first, len(rows))
    _away[_last] = _Away(call, first, rank)
    return torch.tensor([_last])


def wait_sums(call: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[T, H] like rows: the weighted sums of each row's experts; zeros for other ranks' rows.

    Zeros for all rows in a step that failed (`failed_step`).
    """
    away = _away.pop(int(call))
    if away.call is not None:
        try:
            sums = backend().wait(away.call).to(device=rows.device, dtype=rows.dtype)
        except ExpertUnavailable as error:
            failed_step.declare(error, away.rank)
        else:
            return sums if len(sums) == len(rows) else _among_zeros(sums, away.first, rows)
    return torch.zeros_like(rows)


def _among_zeros(sums: torch.Tensor, first: int, rows: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(rows)
    out[first : first + len(sums)] = sums
    return out


def _fake_call(*_: Any) -> torch.Tensor:
    return torch.empty(1, dtype=torch.int64)


def _fake_sums(_: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(rows)


_library = torch.library.Library("expertmesh", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "send_rows(Tensor rows, Tensor topk_weights, Tensor topk_ids, int layer, int rank, int ranks)"
    " -> Tensor"
)
_library.define("wait_sums(Tensor call, Tensor rows) -> Tensor")  # type: ignore[no-untyped-call]
# Rows may live on any device; the call's number is on the CPU.
_library.impl("send_rows", send_rows, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("wait_sums", wait_sums, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("expertmesh::send_rows", _fake_call, lib=_library)
torch.library.register_fake("expertmesh::wait_sums", _fake_sums, lib=_library)
