"""Read the tensors of one expert, and no others.

Every layout comes out in one form (see `ExpertTensors`), so kernels know one layout only. Files
stay open: reading an expert costs its own bytes. They are not memory-mapped: what was read through
a mapping counts as memory of the process until the mapping goes, as much again as the weights, and
taking it back keeps the sockets of a killed shard open for longer.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch

from actors.experts.check import check_source
from actors.experts.families import find_layout
from actors.experts.formats.base import Kind
from actors.experts.headers import TensorInfo, read_tensor_index
from actors.experts.layouts import Part, Source
from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec

# safetensors' names of dtypes. Those that our formats read are in `actors.experts.formats`, the
# others are what vLLM's loaders read.
DTYPES = {
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F64": torch.float64,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """One expert in its native format; rows of w13 are I gate rows, then I up rows.

    bf16:  w13 [2I, H] bf16, w2 [H, I] bf16, no scales.
    fp8:   w13 [2I, H] e4m3, w13_scale fp32 [2 * ceil(I/128), ceil(H/128)] (gate blocks, then up);
           w2 [H, I] e4m3, w2_scale fp32 [ceil(H/128), ceil(I/128)].
    mxfp4: w13 [2I, H/2] uint8, two e2m1 per byte, even column in the low nibble;
           w13_scale [2I, H/32] uint8 (e8m0: 2 ** (byte - 127)); w2 [H, I/2], w2_scale [H, I/32].
    nvfp4: w13 and w2 as mxfp4, w13_scale fp32 [2I, H/16], w2_scale [H, I/16].
    int4:  w13 [2I, H/8] int32, w13_scale fp32 [2I, H/group]; w2 [H, I/8], w2_scale [H, I/group].
           With zero points: scales [2I, H/group, 2], scale and zero point.
    int8:  w13 [2I, H] int8, w13_scale fp32 [2I, H/group]; w2 [H, I], w2_scale [H, I/group].
    fp8 with a scale for each row: as int8 in groups of a row, in e4m3.
    Biases: w13_bias [2I] bf16, w2_bias [H] bf16, or None.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    w13_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None
    w13_bias: torch.Tensor | None = None
    w2_bias: torch.Tensor | None = None

    def map(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> "ExpertTensors":
        """The same with `convert` applied to every tensor present."""

        def converted(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else convert(value)

        return ExpertTensors(
            w13=convert(self.w13),
            w2=convert(self.w2),
            w13_scale=converted(self.w13_scale),
            w2_scale=converted(self.w2_scale),
            w13_bias=converted(self.w13_bias),
            w2_bias=converted(self.w2_bias),
        )

    def tensors(self) -> list[torch.Tensor]:
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if value is not None]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())


Take = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Uninitialised and contiguous memory of a shape and dtype, from the begin of a storage."""

StoredTensors = list[tuple[Source, torch.Tensor]]


def new_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tensor `name` of a file, or only [row] of it; room: contiguous, what it is read into."""

    room: torch.Tensor
    name: str
    row: int | None


class TensorSource(Protocol):
    """A file of tensors."""

    def begin(self, name: str) -> int:
        """Where in the file a tensor begins."""
        ...

    def read_into(self, wanted: Sequence[Wanted]) -> None:
        """Fill the rooms."""
        ...


class SafetensorsFile:
    """A safetensors file; what it reads lies in memory of its own.

    Where each tensor begins is noted once, when the file is opened.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        self._stream = file.open("rb", buffering=0)
        size = bytearray(8)
        self._fill([memoryview(size)], 0)
        header = bytearray(int.from_bytes(size, "little"))
        self._fill([memoryview(header)], 8)
        self._begin: dict[str, int] = {
            name: 8 + len(header) + entry["data_offsets"][0]
            for name, entry in json.loads(header).items()
            if name != "__metadata__"
        }

    def read(self, name: str, dtype: str, shape: tuple[int, ...], row: int | None) -> torch.Tensor:
        """Tensor `name` of `dtype` (as in `DTYPES`) and `shape`; only [row] of it if given.
        ModelRefused if the file has become shorter."""
        tensor = torch.empty(shape if row is None else shape[1:], dtype=DTYPES[dtype])
        self.read_into([Wanted(tensor, name, row)])
        return tensor

    def begin(self, name: str) -> int:
        return self._begin[name]

    def read_into(self, wanted: Sequence[Wanted]) -> None:
        """See `TensorSource`; tensors that lie one behind the other are read at once, as the system
        reads ahead in a run and starts small after each jump. ModelRefused if the file has become
        shorter."""
        places = (
            (self._begin[one.name] + (one.row or 0) * one.room.nbytes, _bytes_of(one.room))
            for one in wanted
        )
        for position, rooms in _runs(places):
            self._fill(rooms, position)

    def _fill(self, rooms: list[memoryview], position: int) -> None:
        while rooms:
            count = os.preadv(self._stream.fileno(), rooms, position)
            if count == 0:
                raise ModelRefused(f"{self._path} ends at {position} bytes: download it again")
            rooms, position = _behind(rooms, count), position + count


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return (tensor if tensor.dim() else tensor.view(1)).view(torch.uint8).numpy().data.cast("B")


def _runs(places: Iterable[tuple[int, memoryview]]) -> list[tuple[int, list[memoryview]]]:
    """(where a run of bytes begins, rooms for its parts), in the order of the file."""
    runs: list[tuple[int, list[memoryview]]] = []
    end = -1
    for begin, room in sorted(places, key=lambda place: place[0]):
        if begin == end:
            runs[-1][1].append(room)
        else:
            runs.append((begin, [room]))
        end = begin + len(room)
    return runs


def _behind(rooms: list[memoryview], count: int) -> list[memoryview]:
    """What is left of `rooms` when their first `count` bytes are filled."""
    for number, room in enumerate(rooms):
        if count < len(room):
            return [room[count:], *rooms[number + 1 :]]
        count -= len(room)
    return []


class ExpertReader:
    """Reads experts of one checkpoint. Not thread-safe: one reader per loading thread.

    open_file: how a safetensors file is opened; tests count the tensors it is asked for.
    """

    def __init__(
        self, spec: ExpertSpec, open_file: Callable[[Path], TensorSource] = SafetensorsFile
    ) -> None:
        self._spec = spec
        self._index = read_tensor_index(spec.model_path)
        self._layout = find_layout(spec.architecture, spec.layers[0], self._index)
        self._open_file = open_file
        self._files: dict[Path, TensorSource] = {}

    @property
    def expert_bytes(self) -> int:
        return self._spec.bytes_per_expert

    def read(self, layer: int, expert: int) -> ExpertTensors:
        """Tensors of `expert` (logical id) of model layer `layer`, in memory of their own.
        ModelRefused if one is missing or not as the spec says."""
        return self.assemble(self.fetch(layer, expert))

    def fetch(self, layer: int, expert: int, take: Take = new_memory) -> StoredTensors:
        """The same as they are stored. take: gives the memory they are read into."""
        beside: dict[Kind, torch.Tensor] = {}
        stored: StoredTensors = []
        wanted: dict[Path, list[Wanted]] = {}
        for source in self._layout.sources(self._spec, layer, expert):
            check_source(self._index, source)
            info = self._index.find(source.name)
            room = _room(source, info, beside, take)
            stored.append((source, room))
            wanted.setdefault(info.file, []).append(Wanted(room, source.name, source.expert))
        for path, of_file in wanted.items():
            self._file(path).read_into(of_file)
        return stored

    def in_file_order(self, layer: int, experts: Iterable[int]) -> list[int]:
        """`experts` as their weights lie in the files, which is how they are read fastest.
        ModelRefused if one is missing."""
        return sorted(experts, key=lambda expert: self._place(layer, expert))

    def _place(self, layer: int, expert: int) -> tuple[Path, int, int]:
        name = next(self._layout.sources(self._spec, layer, expert)).name
        path = self._index.find(name).file
        return path, self._file(path).begin(name), expert

    def assemble(self, stored: StoredTensors) -> ExpertTensors:
        """What `fetch` read, in the form all kernels know; may lie in the same memory."""
        read = {
            (source.part, source.kind): self._canonical(source, tensor) for source, tensor in stored
        }
        self._keep_scales(read)
        return ExpertTensors(
            w13=self._gate_up(read, Kind.WEIGHT),
            w2=read[Part.DOWN, Kind.WEIGHT],
            w13_scale=self._gate_up(read, Kind.SCALE) if self._has(read, Kind.SCALE) else None,
            w2_scale=read.get((Part.DOWN, Kind.SCALE)),
            w13_bias=self._gate_up(read, Kind.BIAS) if self._has(read, Kind.BIAS) else None,
            w2_bias=read.get((Part.DOWN, Kind.BIAS)),
        )

    def _keep_scales(self, read: dict[tuple[Part, Kind], torch.Tensor]) -> None:
        for part, _ in self._layout.projections:
            tensors = {kind: tensor for (of, kind), tensor in read.items() if of is part}
            scale = self._spec.weight_format.kept_scale(tensors)
            if scale is not None:
                read[part, Kind.SCALE] = scale

    @staticmethod
    def _has(read: dict[tuple[Part, Kind], torch.Tensor], kind: Kind) -> bool:
        return (Part.DOWN, kind) in read

    def _file(self, path: Path) -> TensorSource:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = self._open_file(path)
        return file

    def _canonical(self, source: Source, tensor: torch.Tensor) -> torch.Tensor:
        if source.kind is Kind.WEIGHT and self._layout.transposed:
            tensor = tensor.T
        if source.kind is Kind.BIAS:
            return tensor
        return self._spec.weight_format.canonical(source.kind, tensor)

    def _gate_up(self, read: dict[tuple[Part, Kind], torch.Tensor], kind: Kind) -> torch.Tensor:
        fused = read.get((Part.GATE_UP, kind))
        if fused is None:
            return _joined(read[Part.GATE, kind], read[Part.UP, kind])
        if self._layout.interleaved:
            return torch.cat([fused[0::2], fused[1::2]])
        return fused


def _room(
    source: Source, info: TensorInfo, beside: dict[Kind, torch.Tensor], take: Take
) -> torch.Tensor:
    """beside: for what is stored up and gate apart, room for up right behind gate."""
    shape, dtype = _shape(info, source), DTYPES[info.dtype]
    room = beside.get(source.kind) if source.part is Part.UP else None
    if source.part is Part.GATE:
        room, beside[source.kind] = take((2, *shape), dtype)
    if room is None or room.shape != shape or room.dtype != dtype:
        room = take(shape, dtype)
    return room


def _shape(info: TensorInfo, source: Source) -> tuple[int, ...]:
    """Of what is read of a stored tensor."""
    return info.shape if source.expert is None else info.shape[1:]


def _joined(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """[gate; up], without a copy where one lies behind the other."""
    if (
        gate.is_contiguous()
        and up.is_contiguous()
        and gate.dtype == up.dtype
        and gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()
        and gate.data_ptr() + gate.nbytes == up.data_ptr()
    ):
        shape = (len(gate) + len(up), *gate.shape[1:])
        place = gate.storage_offset()
        return gate.new_empty(0).set_(gate.untyped_storage(), place, shape)  # type: ignore[call-overload,no-any-return]
    return torch.cat([gate, up])
