"""Experts read one ahead of whoever packs them: the same values, two buffers, one thread."""

import os
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from actors.experts.checkpoint import ExpertReader, ExpertTensors, SafetensorsFile, Wanted
from actors.experts.families import read_expert_spec
from actors.experts.read_ahead import MOST_AHEAD_BYTES, ReadBuffer, read_ahead
from actors.experts.refusal import ModelRefused
from actors.kernels.slots import SlotStore
from tests.actors.experts.tiny import Shape, cases, write

SHAPE = Shape(experts=6)
CASES = {case.name: case for case in cases(SHAPE)}
EXPERTS = list(range(SHAPE.experts))
WAIT_S = 20.0


class GatedFile:
    """A safetensors file whose reads wait for permits; it notes the experts' tensors."""

    def __init__(self, file: Path, permits: threading.Semaphore, began: threading.Semaphore):
        self._file = SafetensorsFile(file)
        self._permits, self._began = permits, began

    def begin(self, name: str) -> int:
        return self._file.begin(name)

    def read_into(self, wanted: Sequence[Wanted]) -> None:
        self._began.release()
        assert self._permits.acquire(timeout=WAIT_S)
        self._file.read_into(wanted)


def write_case(name: str, path: Path, files: int = 1) -> Path:
    case = CASES[name]
    write(path, case.config, case.tensors(case.truth(SHAPE)), files=files)
    return path


def reader_of(path: Path) -> ExpertReader:
    return ExpertReader(read_expert_spec(path))


def reading_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("expert-reads")]


def same(one: ExpertTensors, other: ExpertTensors) -> bool:
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(bits(a), bits(b)) for a, b in pairs)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("most_bytes", [MOST_AHEAD_BYTES, 0], ids=["ahead", "one by one"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_expert_is_what_it_is_when_read_alone(name, most_bytes, tmp_path):
    reader = reader_of(write_case(name, tmp_path, files=2))
    layer = CASES[name].layers[-1]
    alone = {expert: reader.read(layer, expert) for expert in EXPERTS}
    seen = []
    for expert, tensors in read_ahead(reader, layer, EXPERTS, least_bytes=0, most_bytes=most_bytes):
        assert same(tensors, alone[expert])
        seen.append(expert)
    assert sorted(seen) == EXPERTS
    assert reading_threads() == []


def test_what_a_store_holds_stays_when_its_buffers_are_read_into_again(tmp_path):
    """The packing here gives what it is given, as some operators on the CPU do."""
    reader = reader_of(write_case("qwen3-bf16", tmp_path))
    store = SlotStore(
        SHAPE.experts,
        lambda layer, experts: read_ahead(reader, layer, experts, least_bytes=0),
        lambda expert: expert,
    )
    store.load(0, [3, 0, 1])
    store.load(0, [5, 1, 3, 2])
    store.load(0, [2, 5, 1])
    stacked = store.layer(0).stacked
    for slot, expert in enumerate([2, 5, 1]):
        assert same(stacked.map(lambda held, slot=slot: held[slot]), reader.read(0, expert))


def test_memory_is_two_buffers_and_one_where_experts_are_large(tmp_path):
    reader = reader_of(write_case("qwen3-bf16", tmp_path))

    def places(most_bytes: int) -> list[int]:
        reads = read_ahead(reader, 0, EXPERTS, least_bytes=0, most_bytes=most_bytes)
        return [tensors.w13.data_ptr() for _, tensors in reads]

    two = places(2 * reader.expert_bytes)
    assert len(set(two)) == 2
    assert all(one != other for one, other in pairwise(two)), "the one in use is not written to"
    assert len(set(places(2 * reader.expert_bytes - 1))) == 1


def test_a_buffer_grows_to_the_largest_and_no_further():
    buffer = ReadBuffer()
    for rows in (2, 5, 3, 5, 1):
        buffer.begin()
        first, second = buffer.take((rows, 4), torch.float32), buffer.take((), torch.bfloat16)
        assert first.shape == (rows, 4)
        assert first.untyped_storage().nbytes() <= 5 * 4 * 4
        first.fill_(1)
        second.fill_(2)
        assert float(first.sum()) == rows * 4


def test_one_expert_is_read_ahead_and_closing_ends_its_read(tmp_path):
    permits, began = threading.Semaphore(0), threading.Semaphore(0)
    spec = read_expert_spec(write_case("qwen3-bf16", tmp_path))
    reader = ExpertReader(spec, lambda file: GatedFile(file, permits, began))
    reads = read_ahead(reader, 0, EXPERTS, least_bytes=0)
    permits.release()
    next(reads)
    for _ in range(2):
        assert began.acquire(timeout=WAIT_S)
    assert not began.acquire(timeout=0.05), "a third one would be read into what is used now"
    assert len(reading_threads()) == 1
    closing = threading.Thread(target=reads.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive(), "it waits for the read, which writes to a buffer"
    permits.release()
    closing.join(WAIT_S)
    assert reading_threads() == []
    assert not began.acquire(blocking=False), "nothing more was read"


def test_a_failing_pack_leaves_no_thread(tmp_path):
    reader = reader_of(write_case("qwen3-bf16", tmp_path))

    def broken(_expert: ExpertTensors) -> ExpertTensors:
        raise ModelRefused("cannot be packed")

    store = SlotStore(
        SHAPE.experts,
        lambda layer, experts: read_ahead(reader, layer, experts, least_bytes=0),
        broken,
    )
    with pytest.raises(ModelRefused, match="cannot be packed"):
        store.load(0, EXPERTS)
    assert reading_threads() == []


def test_a_file_that_became_shorter_is_named_when_its_expert_is_due(tmp_path):
    reader = reader_of(write_case("qwen3-bf16", tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    order = reader.in_file_order(0, EXPERTS)
    alone = reader.read(0, order[0])
    broken = order[2]
    kept = SafetensorsFile(file).begin(f"model.layers.0.mlp.experts.{broken}.down_proj.weight") + 8
    reads = read_ahead(reader, 0, EXPERTS, least_bytes=0)
    os.truncate(file, kept)
    expert, first = next(reads)
    assert (expert, same(first, alone)) == (order[0], True)
    assert next(reads)[0] == order[1]
    with pytest.raises(ModelRefused, match=rf"safetensors ends at {kept} bytes: download it again"):
        next(reads)
    assert reading_threads() == []


def test_experts_come_in_the_order_of_the_file(tmp_path):
    """safetensors sorts names as text: expert 10 lies before expert 2."""
    shape = Shape(experts=12)
    case = next(one for one in cases(shape) if one.name == "qwen3-bf16")
    write(tmp_path, case.config, case.tensors(case.truth(shape)), files=1)
    by_name = sorted(range(12), key=str)
    assert [
        expert for expert, _ in read_ahead(reader_of(tmp_path), 0, range(12), least_bytes=0)
    ] == by_name


def system_calls() -> int:
    """That read, by this process since it began."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("syscr:")))


def test_tensors_that_lie_together_are_read_at_once(tmp_path):
    reader = reader_of(write_case("qwen3-bf16", tmp_path))
    reader.read(0, 1)
    system_calls()
    before = system_calls()
    own = system_calls() - before
    before = system_calls()
    reader.read(0, 1)
    assert system_calls() - before - own == 1


def test_reads_that_return_early_are_continued(tmp_path, monkeypatch):
    reader = reader_of(write_case("qwen3-bf16", tmp_path))
    wanted = reader.read(0, 1)
    whole = os.preadv

    def short(descriptor: int, rooms: list[memoryview], position: int) -> int:
        parts = [rooms[0], rooms[1][:7]] if len(rooms) > 1 else [rooms[0][:100]]
        return whole(descriptor, parts, position)

    monkeypatch.setattr(os, "preadv", short)
    assert same(reader.read(0, 1), wanted)
