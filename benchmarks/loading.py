"""How fast two shards load a layer of DeepSeek-V4-Flash's shape, against reading its files.

256 experts of 4096 x 2048 in MXFP4, 3.4 GB of random bytes in files of 32 experts each. Two shards
load half of them each, at the same time, with a thread each; two threads that read the same bytes
into one buffer each are what the disk and the page cache can give. Both with pages that were
dropped from the page cache before, and with pages that are in it:

  read_s    the plain readers
  load_s    the shards: reading, packing for the kernel, publishing
  ratio     read_s / load_s

A disk behind a hypervisor may have pages in a cache of its own; the files' first reading is the
slowest.
"""

import argparse
import asyncio
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from actors.experts.families import read_expert_spec
from actors.experts.spec import ExpertSpec
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

EXPERTS, QUICK_EXPERTS, EXPERTS_IN_FILE = 256, 64, 32
HIDDEN, INTERMEDIATE, BLOCK = 4096, 2048, 32
SHARDS = 2
GOAL = 0.8
CHUNK_BYTES = 8 << 20


def write_layer(folder: Path, experts: int) -> Path:
    """A checkpoint of the demo's architecture that has nothing but one layer's experts."""
    folder.mkdir()
    config = json.loads((DEMO / "checkpoint" / "config.json").read_text())
    config |= {
        "num_hidden_layers": 1,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": INTERMEDIATE,
        "n_routed_experts": experts,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for first in range(0, experts, EXPERTS_IN_FILE):
        tensors: dict[str, torch.Tensor] = {}
        for expert in range(first, first + EXPERTS_IN_FILE):
            tensors |= _expert(f"layers.0.ffn.experts.{expert}")
        save_file(tensors, folder / f"model-{first:05}.safetensors")
    return folder


def _expert(prefix: str) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, rows, columns in (
        ("w1", INTERMEDIATE, HIDDEN),
        ("w2", HIDDEN, INTERMEDIATE),
        ("w3", INTERMEDIATE, HIDDEN),
    ):
        tensors[f"{prefix}.{name}.weight"] = torch.randint(
            -128, 128, (rows, columns // 2), dtype=torch.int8
        )
        scale = torch.full((rows, columns // BLOCK), 120, dtype=torch.uint8)
        tensors[f"{prefix}.{name}.scale"] = scale.view(torch.float8_e8m0fnu)
    return tensors


def files_of(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def read_s(files: Sequence[Path]) -> float:
    """Seconds that two threads take which read half of the files each."""
    half = len(files) // SHARDS
    parts = [files[:half], files[half:]]
    threads = [threading.Thread(target=_read, args=(part,)) for part in parts]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s


def _read(files: Sequence[Path]) -> None:
    room = memoryview(bytearray(CHUNK_BYTES))
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(room):
                pass


def halves(spec: ExpertSpec) -> list[Keys]:
    """What each shard is to hold: experts that lie in the same files."""
    layer, count = spec.layers[0], spec.num_experts // SHARDS
    return [
        frozenset(PlacedKey(EXPERT, layer, expert) for expert in range(first, first + count))
        for first in range(0, spec.num_experts, count)
    ]


async def load_s(spec: ExpertSpec, folder: Path) -> float:
    """Seconds until two new shards hold the layer; what their processes take to start is not in."""
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
        began_s = time.perf_counter()
        parts = zip(shards, halves(spec), strict=True)
        await asyncio.gather(*(load(shard, "loading", keys) for shard, keys in parts))
        return time.perf_counter() - began_s
    finally:
        await asyncio.gather(*(shard.end(kill=False) for shard in shards))


def measure(arguments: argparse.Namespace) -> Report:
    experts = QUICK_EXPERTS if arguments.quick else EXPERTS
    with tempfile.TemporaryDirectory(prefix="xm", dir=arguments.folder) as name:
        folder = Path(name)
        spec = read_expert_spec(write_layer(folder / "model", experts))
        files = files_of(spec.model_path)
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        runs = []
        for pages in ("dropped", "in memory"):
            times = []
            for work in ("read", "load"):
                if pages == "dropped":
                    drop_pages(spec)
                times.append(read_s(files) if work == "read" else asyncio.run(load_s(spec, folder)))
            runs.append(
                {
                    "pages": pages,
                    "gigabytes": gigabytes,
                    "read_s": times[0],
                    "load_s": times[1],
                    "ratio": times[0] / times[1],
                }
            )
    first = runs[0]
    name = "reading the files / loading them, pages dropped"
    return Report("loading", runs, [Target(name, first["ratio"], GOAL, "min", "x", timed=True)])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="where the files go for a while: 3.4 GB")


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
