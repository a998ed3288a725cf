"""The mesh as two torch operators, so that torch.compile does not look into it.

Where vLLM compiles a model it traces the MoE layers of a CPU engine too, down to sockets, which it
cannot. An operator is a node of the graph instead; what lies between the two in the trace (shared
experts) is computed while the rows are away, as in eager mode, since the second one needs what the
first one returns.
"""

from typing import Any

import torch

from actors.vllm_plugin.connection import backend

_away: dict[int, Any] = {}
"""Calls on their way, by number."""
_last = 0


def send_rows(
    rows: torch.Tensor, topk_weights: torch.Tensor, topk_ids: torch.Tensor, layer: int
) -> torch.Tensor:
    """int64 [1]: the number of a call with rows [T, H], for `wait_sums`."""
    global _last  # noqa: PLW0603 - vLLM runs a model in one thread
    _last += 1
    cpu_rows = rows.to(device="cpu", dtype=torch.bfloat16)
    _away[_last] = backend().send(layer, cpu_rows, topk_weights.cpu(), topk_ids.cpu())
    return torch.tensor([_last])


def wait_sums(call: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[T, H] like rows: the weighted sums of each row's experts."""
    sums = backend().wait(_away.pop(int(call)))
    return sums.to(device=rows.device, dtype=rows.dtype)


def _fake_call(*_: Any) -> torch.Tensor:
    return torch.empty(1, dtype=torch.int64)


def _fake_sums(_: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(rows)


_library = torch.library.Library("expertmesh", "DEF")  # type: ignore[no-untyped-call]
_library.define("send_rows(Tensor rows, Tensor topk_weights, Tensor topk_ids, int layer) -> Tensor")  # type: ignore[no-untyped-call]
_library.define("wait_sums(Tensor call, Tensor rows) -> Tensor")  # type: ignore[no-untyped-call]
# Rows may live on any device; the call's number is on the CPU.
_library.impl("send_rows", send_rows, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("wait_sums", wait_sums, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("expertmesh::send_rows", _fake_call, lib=_library)
torch.library.register_fake("expertmesh::wait_sums", _fake_sums, lib=_library)
