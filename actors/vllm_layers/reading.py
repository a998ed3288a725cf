"""The tensors of chosen experts of one layer, in the form in which a model's loader takes them.

- A tensor of one expert is read if that expert is chosen.
- Of a tensor that holds every expert, [E, ...], only the chosen ones are read. The loader takes it
  apart by itself and skips experts that the layer does not hold, so it gets the whole shape; what
  was not read is memory that nobody touched, which takes no room.
- Where the loader copies such a tensor as it is, into parameters that have the layer's slots, it
  gets the chosen experts in the order of the slots.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from actors.experts.catalog import STACKED, ExpertCatalog
from actors.experts.checkpoint import SafetensorsFile
from actors.experts.headers import TensorInfo, read_tensor_index


class CatalogReader:
    """Reads what a catalog says. One for each loading thread."""

    def __init__(self, model_path: Path, catalog: ExpertCatalog) -> None:
        self._index = read_tensor_index(model_path)
        self._num_experts = catalog.layers[0].experts
        self._of_layer: dict[int, list[tuple[str, int]]] = {}
        for name, (layer, expert) in catalog.tensors.items():
            self._of_layer.setdefault(layer, []).append((name, expert))
        self._files: dict[Path, SafetensorsFile] = {}
        self.bytes_read = 0

    def read(self, layer: int, experts: list[int]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of all that `experts` (logical ids) of model layer `layer` need."""
        chosen = set(experts)
        for name, expert in self._of_layer[layer]:
            if expert >= 0:
                if expert in chosen:
                    yield name, self._whole(name)
            elif expert == STACKED:
                yield name, self._stacked(name, experts)
            else:
                yield name, self._sparse(name, experts)

    def _file(self, info: TensorInfo) -> SafetensorsFile:
        file = self._files.get(info.file)
        if file is None:
            file = self._files[info.file] = SafetensorsFile(info.file)
        return file

    def _whole(self, name: str) -> torch.Tensor:
        info = self._index.find(name)
        return self._count(self._file(info).read(name, info.dtype, info.shape, None))

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes_read += tensor.nbytes
        return tensor

    def _part(self, name: str, expert: int) -> torch.Tensor:
        """[n, ...]: the expert's entries of dimension 0."""
        info = self._index.find(name)
        each = info.shape[0] // self._num_experts
        shape = (self._num_experts, each, *info.shape[1:])
        return self._count(self._file(info).read(name, info.dtype, shape, expert))

    def _divides(self, name: str) -> bool:
        shape = self._index.find(name).shape
        return len(shape) > 0 and shape[0] % self._num_experts == 0

    def _stacked(self, name: str, experts: list[int]) -> torch.Tensor:
        if not self._divides(name):
            return self._whole(name)
        return torch.cat([self._part(name, expert) for expert in experts])

    def _sparse(self, name: str, experts: list[int]) -> torch.Tensor:
        if not self._divides(name):
            return self._whole(name)
        info = self._index.find(name)
        first = self._part(name, experts[0])
        room = torch.empty(info.shape, dtype=first.dtype)
        each = len(first)
        for expert in experts:
            part = first if expert == experts[0] else self._part(name, expert)
            room[expert * each : (expert + 1) * each] = part
        return room
