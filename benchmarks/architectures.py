"""Is an architecture that only vLLM reads the same model when shards hold its experts?

  python -m benchmarks.architectures [KIND ...] [--out FILE.json] [--kernel KEY]

For each kind of `tests.checkpoints.transformers_models` (all by default) one tiny random checkpoint
is served twice in this process: by monolithic vLLM, and by an expert-less engine whose experts are
in two shards, each with half of them, over real links. Both answer 8 prompts greedily with 16
tokens, and score monolithic vLLM's answers. FILE gets a line for each kind; what failed says why.
"""

import argparse
import json
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.generate import ENVIRONMENT, Run, generate, load_engine
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.transformers_models import OWN

SECRET = b"one process"
PROMPTS, TOKENS = 8, 16
NO_LIMIT_BYTES = 1 << 62
FLAGS = {"max_num_seqs": PROMPTS, "max_num_batched_tokens": 512, "gpu_memory_utilization": 0.1}


@dataclass(frozen=True, slots=True)
class Row:
    """equal: prompts of `PROMPTS` with equal tokens; mean_delta, median_delta: of |difference of
    logprob| of given tokens, in nats; worst_gap: top-2 gap where tokens first differ."""

    kind: str
    architecture: str
    method: str
    kernel: str
    equal: int
    mean_delta: float
    median_delta: float
    worst_gap: float
    seconds: float


def request_of(model: Path) -> dict[str, Any]:
    chosen = random.Random(0)
    prompts = [
        [chosen.randrange(10, 250) for _ in range(chosen.randrange(5, 20))] for _ in range(PROMPTS)
    ]
    return {"model": str(model), "prompts": prompts, "max_tokens": TOKENS, "flags": FLAGS}


@contextmanager
def without_numba() -> Iterator[None]:
    """While an engine is built vLLM looks into every loaded module for kernels to replace, and
    stumbles over llvmlite's wrappers; in the product an engine's process has none yet."""
    names = [name for name in sys.modules if name.split(".")[0] == "llvmlite"]
    hidden = {name: sys.modules.pop(name) for name in names}
    try:
        yield
    finally:
        sys.modules.update(hidden)


def serve_whole(request: dict[str, Any]) -> Run:
    """Answers of monolithic vLLM."""
    with without_numba():
        llm = load_engine(request)
    try:
        return generate(llm, request)
    finally:
        end_engine(llm)


def serve_mesh(request: dict[str, Any], folder: Path, kernel: str | None) -> tuple[Run, str, str]:
    """Answers of an expert-less engine; its architecture, and what its shards compute with."""
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER as LOADERS

    from actors.dispatch.dispatcher import Dispatcher
    from actors.dispatch.view_source import FixedView
    from actors.vllm_plugin import connection
    from actors.vllm_plugin.loader import register_loader

    shards, view = start_shards(Path(request["model"]), folder, kernel)
    _ROPE_DICT.clear()  # the shards' model without memory would share its tables with the engine's
    before = dict(LOADERS)
    connection._views = FixedView(view)  # type: ignore[assignment]
    connection._backend = Dispatcher(FixedView(view), SECRET)
    register_loader()
    llm = None
    try:
        with without_numba():
            llm = load_engine(request)
        run = generate(llm, request)
        said = shards[0].describe().kernel
        return run, llm.llm_engine.model_config.architecture, said
    finally:
        if llm is not None:
            end_engine(llm)
        connection.reset_backend()
        connection._views = None
        for shard in shards:
            shard.stop()
        LOADERS.update(before)
        for name in [n for n, c in op_registry_oot.items() if c.__dict__.get("of_expertmesh")]:
            del op_registry_oot[name]


def start_shards(model: Path, folder: Path, kernel: str | None) -> tuple[list[Any], Any]:
    """Two shards of this process with half of the experts each, and the view of their mesh."""
    from actors.dispatch.mesh_view import MeshView, Peer
    from actors.experts.families import read_expert_spec
    from actors.experts.fingerprint import fingerprint
    from actors.shard.holdings import EXPERT
    from actors.shard.shard import ExpertShard, ShardConfig
    from actors.wire.address import parse_address
    from orchestrator.mesh_plan import ShardCapacity, plan_mesh
    from placement.cost_model import TYPICAL_COST
    from tests.models.in_process import dry_run_here

    spec = read_expert_spec(model, dry_run=dry_run_here)
    half = spec.bytes_per_expert * spec.num_experts * len(spec.layers) // 2
    capacities = [
        ShardCapacity(f"s{n}", half, TYPICAL_COST, spec.bytes_per_expert) for n in range(2)
    ]
    epoch = plan_mesh(spec, capacities, "fill", 1).epoch
    shards, peers = [], []
    for number in range(2):
        listen = (f"unix:{folder}/s{number}",)
        config = ShardConfig(
            f"s{number}", "local", str(model), "cpu", 1, listen, log_level="ERROR", kernel=kernel
        )
        shard = ExpertShard(config, SECRET)
        said = shard.start()
        keys = frozenset((EXPERT, *slot) for slot in epoch.slots_of(number))
        held = shard.prepare((1, 1), keys, NO_LIMIT_BYTES, math.inf).held
        if held.failure:
            raise RuntimeError(held.failure)
        shards.append(shard)
        addresses = tuple(map(parse_address, said.addresses))
        peers.append(Peer(f"s{number}", said.incarnation, said.node, addresses, TYPICAL_COST))
    view = MeshView(
        mesh="local", model_path=str(model), fingerprint=fingerprint(model),
        router_mode="embedded", version=(1, 1), soft_deadline_s=60.0, call_deadline_s=120.0,
        expert_wait_s=30.0, epoch=epoch, shards=tuple(peers),
    )  # fmt: skip
    return shards, view


def end_engine(llm: Any) -> None:
    """Give back what an engine holds, so that the next one may be built in this process."""
    import gc

    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()


def measure(kind: str, folder: Path, kernel: str | None = None) -> Row:
    began_s = time.monotonic()
    model = make_checkpoint(kind, folder / kind)
    request = request_of(model)
    whole = serve_whole(request)
    forced = folder / "forced.json"
    both = zip(request["prompts"], whole.tokens, strict=True)
    forced.write_text(json.dumps([prompt + tokens for prompt, tokens in both]))
    own, architecture, said = serve_mesh(request | {"forced_file": str(forced)}, folder, kernel)
    delta = np.abs(np.concatenate(whole.forced) - np.concatenate(own.forced))
    gaps = [
        gap[next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)]
        for one, other, gap in zip(whole.tokens, own.tokens, whole.gaps, strict=True)
        if one != other
    ]
    from actors.experts.families import read_expert_spec

    catalog = read_expert_spec(model).catalog
    return Row(
        kind, architecture, catalog.method if catalog else "", said, PROMPTS - len(gaps),
        float(delta.mean()), float(np.median(delta)), max(gaps, default=0.0),
        time.monotonic() - began_s,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=sorted(OWN))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kernel", help="the shards' kernel; the best if not given")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"})
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="xm") as name:
        for kind in arguments.kinds or sorted(OWN):
            folder = Path(name) / kind
            folder.mkdir(mode=0o700)
            try:
                line: dict[str, Any] = asdict(measure(kind, folder, arguments.kernel))
            except Exception as error:  # whatever a model's code raises: the others go on
                line = {"kind": kind, "failed": f"{type(error).__name__}: {error}"[:500]}
            print(json.dumps(line), flush=True)
            if arguments.out:
                with arguments.out.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
