"""The seam between a model's MoE layers and the mesh: send rows away, later take the sums.

Two implementations: `Dispatcher` talks to the shards itself (embedded in the engine process or in a
router), `RouterClient` hands whole batches to a router on its node.
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch


class ExpertUnavailable(RuntimeError):
    """Experts stayed without a live replica longer than the mesh's `expert_wait_s`."""


class ExpertBackend(Protocol):
    """Computes routed experts elsewhere. For one thread; up to
    `actors.wire.link.CALLS_IN_FLIGHT` calls may be on their way, waited for in any order.
    """

    def send(
        self,
        layer: int,
        rows: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        sample: int = 0,
    ) -> Any:
        """Start one MoE layer of a batch.

        layer: model layer index; rows: [T, H] bf16, on the CPU unless `takes` their device;
        topk_weights: [T, K] fp32; topk_ids: [T, K] int32 logical experts (below 0: nothing to
        compute).
        sample: id of the sampled step that this is part of (`actors.tracing.ids`); 0: none.
        Returns the call to give to `wait`. `rows` must not change before `wait` returns.
        """
        ...

    def wait(self, call: Any) -> torch.Tensor:
        """[T, H] bf16, on the CPU or where the rows were: the weighted sum of each row's experts.

        Raises:
            ExpertUnavailable.
        """
        ...

    def takes(self, device: torch.device) -> bool:
        """Whether rows may be on this device."""
        ...

    def close(self) -> None: ...


def bf16_bits(rows: torch.Tensor) -> npt.NDArray[np.uint16]:
    """[T, H] bf16 tensor seen as uint16, without a copy where it is contiguous."""
    return rows.contiguous().view(torch.int16).numpy().view(np.uint16)


def bf16_tensor(bits: npt.NDArray[np.uint16]) -> torch.Tensor:
    """The inverse of `bf16_bits`; shares the memory."""
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
