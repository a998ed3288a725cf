"""Which experts a kernel holds, layer by layer, and how they are replaced while it serves.

A layer's weights are one immutable `LayerSlots`. `SlotStore.load` builds the next one beside it and
publishes it with a single assignment; a call that began earlier keeps the one it took, and its
memory goes when that call returns. So a load needs up to one layer's bytes on top for as long as it
lasts, and no call waits for it.

On a CPU every stacked tensor is a mapping of its own. From malloc, layers that are replaced by ones
of other sizes leave holes that the next ones do not fit: after a dozen loads of changing experts
1.6 times the weights' bytes, and half of the weights in small pages.
"""

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.read_ahead import ReadInTurn
from actors.kernels.base import ExpertsMissing

HUGE_PAGE_BYTES = 2 << 20
"""Smaller tensors are left to malloc: a mapping takes whole pages and a system call."""


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which experts of a layer are held, and where.

    experts: logical ids; slot s holds experts[s].
    slot_of: int32 [E], slot of each logical expert, -1 where it is not held.
    """

    layer: int
    experts: tuple[int, ...]
    slot_of: torch.Tensor

    def slots(self, experts: torch.Tensor) -> torch.Tensor:
        """int32 [A] slots of logical `experts` [A]; ExpertsMissing if one is not held.

        Native kernels read whatever memory a wrong slot points at, so every call is checked; that
        takes 4 microseconds.
        """
        low, high = torch.aminmax(experts)
        if int(low) >= 0 and int(high) < self.slot_of.shape[0]:
            slots = self.slot_of.index_select(0, experts)
            if int(slots.min()) >= 0:
                return slots
        missing = sorted(set(experts.tolist()) - set(self.experts))
        raise ExpertsMissing(f"layer {self.layer} does not hold experts {missing}")


def slot_map(layer: int, experts: list[int], num_experts: int) -> SlotMap:
    """Slots in the order of `experts`."""
    slot_of = torch.full((num_experts,), -1, dtype=torch.int32)
    slot_of[torch.tensor(experts)] = torch.arange(len(experts), dtype=torch.int32)
    return SlotMap(layer, tuple(experts), slot_of)


@dataclass(frozen=True, slots=True)
class LayerSlots:
    """Weights of one layer; every tensor of `stacked` has the slot as dimension 0."""

    map: SlotMap
    stacked: ExpertTensors


class SlotStore:
    """Slots of all layers of one kernel.

    read: native tensors, asked only for experts a layer does not hold yet; they are packed or
    copied before the next ones are asked for.
    pack: native tensors to the kernel's own form, of the same shape for every expert. pack_into:
    the same, written to a slot. settle: returns when a layer that was built is there, for devices
    that are behind their host.
    """

    def __init__(
        self,
        num_experts: int,
        read: ReadInTurn,
        pack: Callable[[ExpertTensors], ExpertTensors],
        pack_into: Callable[[ExpertTensors, ExpertTensors], None] | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._num_experts = num_experts
        self._read = read
        self._pack = pack
        self._pack_into = pack_into or self._pack_and_copy
        self._settle = settle
        self._layers: dict[int, LayerSlots] = {}
        self._loading = threading.Lock()

    def load(self, layer: int, experts: list[int]) -> None:
        """See `ExpertKernel.load`. An empty list frees the layer. If reading raises, the layer is
        as it was before."""
        with self._loading:
            old = self._layers.get(layer)
            if not experts:
                self._layers.pop(layer, None)
            elif old is None or old.map.experts != tuple(experts):
                self._layers[layer] = self._build(layer, experts, old)

    def _build(self, layer: int, experts: list[int], old: LayerSlots | None) -> LayerSlots:
        kept = () if old is None else old.map.experts
        missing = [expert for expert in experts if expert not in kept]
        with closing(self._read(layer, missing)) as coming:
            stacked = self._filled(experts, old, coming)
        self._settle()
        return LayerSlots(slot_map(layer, experts, self._num_experts), stacked)

    def _filled(
        self,
        experts: list[int],
        old: LayerSlots | None,
        coming: Iterator[tuple[int, ExpertTensors]],
    ) -> ExpertTensors:
        """Slots with `experts`: copies of what `old` has of them, and what comes packed."""
        slot_of = {expert: number for number, expert in enumerate(experts)}
        stacked: ExpertTensors | None = None
        for number, expert in enumerate(() if old is None else old.map.experts):
            if old is not None and expert in slot_of:
                stacked = _put(_slot(old.stacked, number), stacked, slot_of[expert], len(experts))
        for expert, tensors in coming:
            if stacked is None:
                stacked = _put(self._pack(tensors), None, slot_of[expert], len(experts))
            else:
                self._pack_into(tensors, _slot(stacked, slot_of[expert]))
            del tensors  # or it would stay while the next one is read
        assert stacked is not None
        return stacked

    def _pack_and_copy(self, expert: ExpertTensors, slot: ExpertTensors) -> None:
        _copy(self._pack(expert), slot)

    def layer(self, layer: int) -> LayerSlots:
        """The slots of a layer as of now; ExpertsMissing if it holds none."""
        held = self._layers.get(layer)
        if held is None:
            raise ExpertsMissing(f"layer {layer} holds no experts")
        return held

    def resident_bytes(self) -> int:
        return sum(held.stacked.nbytes for held in list(self._layers.values()))


def _slot(stacked: ExpertTensors, number: int) -> ExpertTensors:
    return stacked.map(lambda tensor: tensor[number])


def _put(
    one: ExpertTensors, stacked: ExpertTensors | None, number: int, slots: int
) -> ExpertTensors:
    """`stacked`, made for so many slots if there is none yet, with `one` copied to its slot."""
    if stacked is None:
        stacked = one.map(lambda tensor: _room(slots, tensor))
    _copy(one, _slot(stacked, number))
    return stacked


def _copy(expert: ExpertTensors, slot: ExpertTensors) -> None:
    for target, source in zip(slot.tensors(), expert.tensors(), strict=True):
        target.copy_(source)


def _room(slots: int, one: torch.Tensor) -> torch.Tensor:
    """Uninitialised [slots, *one.shape] like `one`; a large one on the CPU lies in huge pages."""
    shape, size = (slots, *one.shape), slots * one.nbytes
    if one.device.type != "cpu" or size < HUGE_PAGE_BYTES:
        return one.new_empty(shape)
    # The tensor holds the mapping, and the last view of it to go gives the memory back.
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            region.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(region, dtype=torch.uint8).view(one.dtype).view(shape)
