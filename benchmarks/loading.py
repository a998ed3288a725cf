"""How fast two shards load one layer of experts, against reading its files.

Random bytes in files of 16 experts each:

  v4_flash   256 experts of 4096 x 2048 in MXFP4, 3.4 GB, DeepSeek-V4-Flash's shape
  qwen3      128 experts of 2048 x 768 in bf16, 1.2 GB, Qwen3-30B-A3B's shape

Two shards load half of a layer each, at the same time, with a thread each, and take turns with two
threads that only read, with pages that were dropped from the page cache before, and with pages that
are in it:

  read_s   two threads read the same bytes, each into one buffer again and again
  keep_s   the same into memory of their own that they keep, huge pages like the shards' weights
  load_s   the shards: reading, packing for the kernel, publishing
  ratio, ratio_kept   read_s and keep_s, over load_s
  pack_s   a part of load_s: two threads pack as many experts, from one and the same
  touch_s  a part of load_s and keep_s: two threads touch as much memory for the first time
  asked_s  what the same touch took one thread when the memory had to be asked for, see below

The targets are of V4-Flash's layer from the disk, the median of the rounds. A disk behind a
hypervisor may have pages in a cache of its own; the files' first reading is the slowest. A
hypervisor may also take back memory that is free, and then the first touch of it costs much more
than reading: as much as page cache and weights take is touched and freed just before each of the
three, so that none of them pays for what the one before left; how long that took is `asked_s`.
"""

import argparse
import asyncio
import json
import mmap
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from actors.experts.families import read_expert_spec
from actors.experts.spec import ExpertSpec
from actors.kernels.base import PacksInPlace
from actors.kernels.choose import choose_operator, reader_of
from actors.process import limit_threads
from actors.shard.shard import ShardConfig
from benchmarks.correctness import DEMO
from benchmarks.expert_source import drop_pages
from benchmarks.harness.child_process import ChildProcess, make_shard
from benchmarks.harness.local_mesh import NO_LIMIT_BYTES, load
from benchmarks.harness.report import Report, Target, run_benchmark
from orchestrator.config.pools import PoolConfig
from orchestrator.control.keys import EXPERT, Keys, PlacedKey
from orchestrator.control.state import Description
from orchestrator.runtime.describing import Describer

EXPERTS_IN_FILE = 16
QUICK_SHARE = 4
"""`--quick` takes a quarter of the experts."""
BLOCK = 32
SHARDS = 2
ROUNDS = 3
GOAL = 0.8
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's experts. config: beside the demo's, whose values it replaces.
    tensors: of (prefix of an expert's tensors, layer)."""

    name: str
    experts: int
    hidden: int
    intermediate: int
    prefix: str
    config: Mapping[str, Any]
    tensors: Callable[[str, "Layer"], dict[str, torch.Tensor]]


def _mxfp4(prefix: str, layer: Layer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, rows, columns in _matrices(layer, ("w1", "w2", "w3")):
        tensors[f"{prefix}.{name}.weight"] = torch.randint(
            -128, 128, (rows, columns // 2), dtype=torch.int8
        )
        scale = torch.full((rows, columns // BLOCK), 120, dtype=torch.uint8)
        tensors[f"{prefix}.{name}.scale"] = scale.view(torch.float8_e8m0fnu)
    return tensors


def _bf16(prefix: str, layer: Layer) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.{name}.weight": torch.randn(rows, columns, dtype=torch.bfloat16)
        for name, rows, columns in _matrices(layer, ("gate_proj", "down_proj", "up_proj"))
    }


def _matrices(layer: Layer, names: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """(name, rows, columns) of gate, down and up."""
    into, out = (layer.intermediate, layer.hidden), (layer.hidden, layer.intermediate)
    return [(name, *shape) for name, shape in zip(names, (into, out, into), strict=True)]


LAYERS = (
    Layer("v4_flash", 256, 4096, 2048, "layers.0.ffn.experts", {}, _mxfp4),
    Layer(
        "qwen3",
        128,
        2048,
        768,
        "model.layers.0.mlp.experts",
        {"architectures": ["Qwen3MoeForCausalLM"], "quantization_config": {}},
        _bf16,
    ),
)


def write_layer(folder: Path, layer: Layer, experts: int) -> Path:
    """A checkpoint that has nothing but one layer's experts."""
    folder.mkdir()
    config = json.loads((DEMO / "checkpoint" / "config.json").read_text()) | layer.config
    config |= {
        "num_hidden_layers": 1,
        "hidden_size": layer.hidden,
        "moe_intermediate_size": layer.intermediate,
        "n_routed_experts": experts,
        "num_experts": experts,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for first in range(0, experts, EXPERTS_IN_FILE):
        tensors: dict[str, torch.Tensor] = {}
        for expert in range(first, min(first + EXPERTS_IN_FILE, experts)):
            tensors |= layer.tensors(f"{layer.prefix}.{expert}", layer)
        save_file(tensors, folder / f"model-{first:05}.safetensors")
    return folder


def files_of(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def both_s(work: Callable[[int], None]) -> float:
    """Seconds until two threads have done work(0) and work(1)."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(SHARDS)]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s


def read_s(files: Sequence[Path], keep: bool = False) -> float:
    """Seconds that two threads take which read half of the files each; keep: into new memory."""
    half = len(files) // SHARDS
    parts, work = (files[:half], files[half:]), _keep if keep else _read
    return both_s(lambda number: work(parts[number]))


def touch_s(size: int) -> float:
    """Of so many bytes that the machine has."""
    return both_s(lambda _: touch_and_free(size // SHARDS))


def pack_s(spec: ExpertSpec) -> float:
    """Of as many experts as the layer has, from one and into one, whose memory is there."""
    operator: Any = choose_operator(spec, torch.device("cpu"))
    expert = reader_of(spec)(spec.layers[0], 0)
    slots = [operator.pack(expert) for _ in range(SHARDS)]

    def pack(number: int) -> None:
        for _ in range(spec.num_experts // SHARDS):
            if isinstance(operator, PacksInPlace):
                operator.pack_into(expert, slots[number])
            else:
                operator.pack(expert)

    return both_s(pack)


def _read(files: Sequence[Path]) -> None:
    room = memoryview(bytearray(CHUNK_BYTES))
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(room):
                pass


def _keep(files: Sequence[Path]) -> None:
    room = memoryview(new_memory(sum(file.stat().st_size for file in files)))
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(room[:CHUNK_BYTES]):
                room = room[count:]


def new_memory(size: int) -> mmap.mmap:
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_HUGEPAGE)
    return region


def touch_and_free(size: int) -> None:
    np.frombuffer(new_memory(size), np.uint8)[:: mmap.PAGESIZE] = 1


def ask_for_memory(size: int) -> float:
    """Have the hypervisor give what reading and keeping `size` bytes takes; seconds for `size`."""
    began_s = time.perf_counter()
    touch_and_free(2 * size)
    return (time.perf_counter() - began_s) / 2


def halves(spec: ExpertSpec) -> list[Keys]:
    """What each shard is to hold: experts that lie in the same files."""
    layer, count = spec.layers[0], spec.num_experts // SHARDS
    return [
        frozenset(PlacedKey(EXPERT, layer, expert) for expert in range(first, first + count))
        for first in range(0, spec.num_experts, count)
    ]


async def load_s(spec: ExpertSpec, folder: Path, size: int) -> float:
    """Seconds until two new shards hold the layer of so many bytes; what their processes take to
    start is not in."""
    describer, pool = Describer(spec), PoolConfig(vendor="cpu")

    def describe(said: Any) -> Description:
        return describer.shard(said, pool, NO_LIMIT_BYTES)

    shards = []
    for number in range(SHARDS):
        config = ShardConfig(
            f"s{number}", "loading", str(spec.model_path), "cpu", 1,
            (f"unix:{folder}/s{number}",), log_level="WARNING",
        )  # fmt: skip
        shards.append(ChildProcess(make_shard, config, b"loading", 1, describe))
    try:
        await asyncio.gather(*(shard.start() for shard in shards))
        ask_for_memory(size)
        began_s = time.perf_counter()
        parts = zip(shards, halves(spec), strict=True)
        await asyncio.gather(*(load(shard, "loading", keys) for shard, keys in parts))
        return time.perf_counter() - began_s
    finally:
        await asyncio.gather(*(shard.end(kill=False) for shard in shards))


def measure_layer(layer: Layer, experts: int, folder: Path, rounds: int) -> list[dict[str, Any]]:
    spec = read_expert_spec(write_layer(folder / layer.name, layer, experts))
    files = files_of(spec.model_path)
    size = sum(file.stat().st_size for file in files)

    def read(keep: bool) -> float:
        asked.append(ask_for_memory(size))
        return read_s(files, keep)

    works: dict[str, Callable[[], float]] = {
        "read": lambda: read(keep=False),
        "keep": lambda: read(keep=True),
        "load": lambda: asyncio.run(load_s(spec, folder, size)),
    }
    runs = []
    for number in range(rounds):
        for pages in ("dropped", "in memory"):
            times: dict[str, float] = {}
            asked: list[float] = []
            for work in sorted(works, reverse=number % 2 == 0):
                if pages == "dropped":
                    drop_pages(spec)
                times[work] = works[work]()
            print(".", end="", flush=True)
            runs.append(
                {
                    "layer": layer.name,
                    "pages": pages,
                    "gigabytes": size / 1e9,
                    **{f"{work}_s": times[work] for work in works},
                    "ratio": times["read"] / times["load"],
                    "ratio_kept": times["keep"] / times["load"],
                    "pack_s": pack_s(spec),
                    "touch_s": touch_s(size),
                    "asked_s": max(asked),
                }
            )
    return runs


def measure(arguments: argparse.Namespace) -> Report:
    limit_threads(1)  # as a shard's, by default
    share, rounds = (QUICK_SHARE, 1) if arguments.quick else (1, ROUNDS)
    runs = []
    for layer in LAYERS:
        with tempfile.TemporaryDirectory(prefix="xm", dir=arguments.folder) as name:
            runs += measure_layer(layer, layer.experts // share, Path(name), rounds)
    print()
    cold = [run for run in runs if (run["layer"], run["pages"]) == (LAYERS[0].name, "dropped")]
    targets = [
        Target(name, statistics.median(run[key] for run in cold), GOAL, "min", "x", timed=True)
        for key, name in (
            ("ratio", "reading the files / loading them, pages dropped"),
            ("ratio_kept", "reading them into new memory / loading them"),
        )
    ]
    return Report("loading", runs, targets)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="where the files go for a while: 3.4 GB")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
