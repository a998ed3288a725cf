"""The `ExpertKernel` all implementations share: slots in, rows spread, one operator, sums out.

Each assignment becomes a row of its own with one expert (top-k 1). Measured against padding rows to
a common number of experts with weight 0 (bf16, 32 experts, 1-7 of them per row): equal for one row,
1.2-1.8 times faster from 16 rows on, since padding multiplies rows that the GEMMs then compute.
Spreading and summing take below 2 % of the call. They are done where the operator is: on the CPU
here, elsewhere in `device_rows`.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.read_ahead import ReadInTurn, one_by_one
from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertOperator, PacksInPlace, StartedCall
from actors.kernels.copies import DONE, DeviceCopies
from actors.kernels.device_rows import compute_on_device, start_on_device
from actors.kernels.slots import SlotMap, SlotStore
from actors.kernels.summing import sum_outputs


class HeldLayer(Protocol):
    """One layer as a store holds it."""

    @property
    def map(self) -> SlotMap: ...

    @property
    def stacked(self) -> Any:
        """What the operator takes; slots as in `map`."""
        ...


class Store(Protocol):
    """What a kernel holds: a `SlotStore`, or layers of vLLM's own (`vllm_layer_store`)."""

    def load(self, layer: int, experts: list[int]) -> None: ...

    def layer(self, layer: int) -> HeldLayer: ...

    def resident_bytes(self) -> int: ...


class SlotKernel:
    """See `ExpertKernel`.

    read: native tensors of (layer, expert), as `ExpertReader.read`; read_in_turn: in its place, of
    several experts. store: holds what the operator takes, in place of a `SlotStore` filled with
    what is read.
    copies: to and from the operator's device; found out if not given.
    bytes_per_expert: what a slot takes here; `spec.bytes_per_expert` unless weights are converted.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        operator: ExpertOperator,
        read: Callable[[int, int], ExpertTensors] | None = None,
        *,
        read_in_turn: ReadInTurn | None = None,
        store: Store | None = None,
        bytes_per_expert: int | None = None,
        copies: DeviceCopies | None = None,
    ) -> None:
        self.operator = operator
        self.copies = copies or DeviceCopies.of(operator.device)
        if bytes_per_expert is None:
            kept = dataclasses.replace(
                spec, weight_format=operator.weight_format, expert_bytes=None
            )
            bytes_per_expert = kept.bytes_per_expert
        self.bytes_per_expert = bytes_per_expert
        # vLLM's own layers are loaded on the stream that computes, as their code expects.
        self._loads_beside = store is None
        if store is None:
            if read_in_turn is None:
                assert read is not None
                read_in_turn = one_by_one(read)
            copies = self.copies
            store = SlotStore(
                spec.num_experts,
                read_in_turn,
                lambda expert: operator.pack(copies.to_device(expert)),
                operator.pack_into if isinstance(operator, PacksInPlace) else None,
                settle=copies.settle,
            )
        self._store = store
        self._room = torch.empty((0, spec.hidden_size), dtype=torch.bfloat16)

    def load(self, layer: int, experts: list[int]) -> None:
        with self.copies.loading() if self._loads_beside else contextlib.nullcontext():
            self._store.load(layer, experts)

    def compute(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if out is None:
            out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        if self.operator.device.type != "cpu":
            self.start(layer, rows, row_index, experts, weights, out).finish()
            return out
        held = self._store.layer(layer)
        slots = held.map.slots(experts)
        spread = torch.index_select(rows, 0, row_index, out=self._spread(len(experts), rows))
        outputs = self.operator.run(held.stacked, spread, slots, weights)
        sum_outputs(outputs, row_index, out)
        return out

    @property
    def overlaps(self) -> bool:
        return self.copies.rows is not None

    def start(
        self,
        layer: int,
        rows: torch.Tensor,
        row_index: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        out: torch.Tensor,
    ) -> StartedCall:
        """See `OverlappingKernel`; not for an operator on the CPU."""
        held = self._store.layer(layer)
        call = (self.operator, held.stacked, rows, row_index, held.map.slots(experts), weights, out)
        staging, on_host = self.copies.rows, rows.device.type == out.device.type == "cpu"
        started = start_on_device(staging, *call) if staging is not None and on_host else None
        if started is not None:
            return started
        compute_on_device(*call)
        if out.device.type != "cpu":
            self.copies.settle()  # before `held` may be freed, on the stream that loads
        return DONE

    def _spread(self, assignments: int, rows: torch.Tensor) -> torch.Tensor:
        """Room for [A, H] rows that is used again by the next call."""
        if assignments > self._room.shape[0]:
            self._room = rows.new_empty((2 * assignments, rows.shape[1]))
        return self._room[:assignments]

    def resident_bytes(self) -> int:
        return self._store.resident_bytes()

    def describe(self) -> str:
        """What computes the experts, for logs and status."""
        return self.operator.describe() + self.copies.problem
