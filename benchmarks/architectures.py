"""Is an architecture that only vLLM reads the same model when shards hold its experts?

  python -m benchmarks.architectures [KIND ...] [--out FILE.json] [--kernel KEY]

For each kind of `tests.checkpoints.transformers_models` (all by default) one tiny random checkpoint
is served twice in one process: by monolithic vLLM, and by an expert-less engine whose experts are
in two shards, over real links: a quarter of them in one, a quarter in the other, half in both. Both
answer 8 prompts greedily with 16 tokens, and score monolithic vLLM's answers. FILE gets a line for
each kind; what failed says why and in which `Stage`. `benchmarks.architecture_table` makes the
table of docs/models.md of it.
"""

import argparse
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from actors.experts.spec import ExpertSpec
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
    logprob| of given tokens, in nats; worst_gap: top-2 gap where tokens first differ; replicated,
    experts: of a layer, those that both shards hold, and all."""

    kind: str
    architecture: str
    format: str
    method: str
    kernel: str
    equal: int
    mean_delta: float
    median_delta: float
    worst_gap: float
    replicated: int
    experts: int
    seconds: float


class Stage(StrEnum):
    """Of one comparison, in this order."""

    CHECKPOINT = "transformers writes the checkpoint"
    WHOLE = "monolithic vLLM answers"
    EXPERTS = "the tensors of experts are found"
    MESH = "engine and shards answer"


ANNOUNCED = "stage: "


def announce(stage: Stage) -> None:
    """Say what begins, for whoever started this process: it may not live to say what failed."""
    print(f"{ANNOUNCED}{stage}", flush=True)


def request_of(model: Path) -> dict[str, Any]:
    chosen = random.Random(0)
    prompts = [
        [chosen.randrange(10, 250) for _ in range(chosen.randrange(5, 20))] for _ in range(PROMPTS)
    ]
    return {"model": str(model), "prompts": prompts, "max_tokens": TOKENS, "flags": FLAGS}


def serve_whole(request: dict[str, Any]) -> Run:
    """Answers of monolithic vLLM."""
    llm = load_engine(request)
    try:
        return generate(llm, request)
    finally:
        end_engine(llm)


class LateShards:
    """`ExpertBackend` of two shards that start with the first call: while an engine is built vLLM
    looks into every loaded module for kernels to replace, and stumbles over those of numba.

    A call is waited for at once: vLLM's CPU kernels of one process share scratch memory, so the
    engine may not compute shared experts while shards of its process compute theirs."""

    def __init__(self, spec: ExpertSpec, folder: Path, kernel: str | None) -> None:
        self._spec, self._folder, self._kernel = spec, folder, kernel
        self._inner: Any = None
        self._shards: list[Any] = []

    def send(self, *arguments: Any) -> Any:
        if self._inner is None:
            from actors.dispatch.dispatcher import Dispatcher
            from actors.dispatch.view_source import FixedView

            self._shards, view = start_shards(self._spec, self._folder, self._kernel)
            self._inner = Dispatcher(FixedView(view), SECRET)
        return self._inner.wait(self._inner.send(*arguments))

    def wait(self, sums: Any) -> Any:
        return sums

    def said(self) -> str:
        """What the shards compute with."""
        return str(self._shards[0].describe().kernel)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
        for shard in self._shards:
            shard.stop()


def serve_mesh(request: dict[str, Any], spec: ExpertSpec, shards: LateShards) -> tuple[Run, str]:
    """Answers of an expert-less engine, and its architecture."""
    from vllm.model_executor.layers.rotary_embedding import _ROPE_DICT

    from actors.experts.fingerprint import fingerprint
    from actors.vllm_plugin import connection
    from actors.vllm_plugin.loader import register_loader

    _ROPE_DICT.clear()  # the dry run's model without memory would share its tables with the engine
    # What an engine checks its layers with, before there are shards.
    epoch = SimpleNamespace(layers=spec.layers, num_experts=spec.num_experts)
    view = SimpleNamespace(
        epoch=epoch, mesh="local", model_path=str(spec.model_path),
        fingerprint=fingerprint(spec.model_path),
    )  # fmt: skip
    connection._views = SimpleNamespace(current=lambda: view)  # type: ignore[assignment]
    connection._backend = shards
    register_loader()
    llm = load_engine(request)
    try:
        return generate(llm, request), llm.llm_engine.model_config.architecture
    finally:
        end_engine(llm)
        connection.reset_backend()


def placed_experts(experts: int) -> NDArray[np.int32]:
    """[2, S]: experts of either shard, the first and the last three quarters of all."""
    everyone = np.arange(experts, dtype=np.int32)
    most = experts - experts // 4
    return np.stack([everyone[:most], everyone[-most:]])


def start_shards(spec: ExpertSpec, folder: Path, kernel: str | None) -> tuple[list[Any], Any]:
    """Two shards of this process, and the view of their mesh."""
    from actors.descriptions import EXPERT
    from actors.dispatch.mesh_view import MeshView, Peer
    from actors.experts.fingerprint import fingerprint
    from actors.shard.shard import ExpertShard, ShardConfig
    from actors.wire.address import parse_address
    from placement.cost_model import TYPICAL_COST
    from placement.epoch import PlanEpoch

    placed = placed_experts(spec.num_experts)
    every_layer = np.repeat(placed[None], len(spec.layers), axis=0)
    epoch = PlanEpoch(1, spec.num_experts, spec.layers, every_layer, np.ones(every_layer.shape))
    model = spec.model_path
    shards, peers = [], []
    for number in range(2):
        listen = (f"unix:{folder}/s{number}",)
        config = ShardConfig(
            f"s{number}", "local", str(model), "cpu", 1, listen, log_level="ERROR", kernel=kernel
        )
        shard = ExpertShard(config, SECRET)
        said = shard.start()
        keys = frozenset(
            (EXPERT, layer, int(expert)) for layer in spec.layers for expert in placed[number]
        )
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
    from actors.experts.families import read_expert_spec
    from actors.vllm_layers.dry_run import dry_run  # imports no numba

    began_s = time.monotonic()
    announce(Stage.CHECKPOINT)
    model = make_checkpoint(kind, folder / kind)
    request = request_of(model)
    announce(Stage.WHOLE)
    whole = serve_whole(request)
    announce(Stage.EXPERTS)
    spec = read_expert_spec(
        model, dry_run=lambda path, trust: dry_run(path, trust_remote_code=trust)
    )
    forced = folder / "forced.json"
    both = zip(request["prompts"], whole.tokens, strict=True)
    forced.write_text(json.dumps([prompt + tokens for prompt, tokens in both]))
    announce(Stage.MESH)
    shards = LateShards(spec, folder, kernel)
    own, architecture = serve_mesh(request | {"forced_file": str(forced)}, spec, shards)
    delta = np.abs(np.concatenate(whole.forced) - np.concatenate(own.forced))
    if not np.isfinite(delta).all():
        raise ValueError("some logprobs are no numbers")
    gaps = [
        gap[next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)]
        for one, other, gap in zip(whole.tokens, own.tokens, whole.gaps, strict=True)
        if one != other
    ]
    placed = placed_experts(spec.num_experts)
    return Row(
        kind, architecture, format_of(model), spec.catalog.method if spec.catalog else "",
        shards.said(), PROMPTS - len(gaps), float(delta.mean()), float(np.median(delta)),
        max(gaps, default=0.0), placed.size - spec.num_experts, spec.num_experts,
        time.monotonic() - began_s,
    )  # fmt: skip


def format_of(model: Path) -> str:
    """The checkpoint's quantisation, by its own name, or bf16."""
    config = json.loads((model / "config.json").read_text())
    return str(config.get("quantization_config", {}).get("quant_method", "bf16"))


def measure_apart(kind: str, kernel: str | None) -> dict[str, Any]:
    """`measure` in a process of its own: an engine starts in one that has imported no numba."""
    command = [sys.executable, "-m", "benchmarks.architectures", "--here", kind]
    with tempfile.NamedTemporaryFile(suffix=".json") as answer:
        done = subprocess.run(
            [*command, "--out", answer.name, *(["--kernel", kernel] if kernel else [])],
            capture_output=True,
            text=True,
            check=False,
        )
        text = Path(answer.name).read_text()
    line: dict[str, Any] = json.loads(text) if text else {"kind": kind, "failed": end_of(done)}
    if "failed" in line:
        stages = [said for said in done.stdout.splitlines() if said.startswith(ANNOUNCED)]
        line["during"] = stages[-1].removeprefix(ANNOUNCED) if stages else "start"
    return line


def end_of(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended that answered nothing."""
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"status {done.returncode}: {said}"


def measure_here(kind: str, kernel: str | None) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="xm") as name,
        # vLLM leaves sockets and files in the temporary folder.
        patch.dict(os.environ, TMPDIR=name),
        patch.object(tempfile, "tempdir", name),
    ):
        try:
            return asdict(measure(kind, Path(name), kernel))
        except Exception as error:  # whatever a model's code raises: the others go on
            traceback.print_exc()
            # A bare assert says nothing: its line does.
            said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
            return {"kind": kind, "failed": f"{type(error).__name__}: {said}"[:500]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=sorted(OWN))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kernel", help="the shards' kernel; the best if not given")
    parser.add_argument("--here", action="store_true", help="in this process, one kind")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"})
    run = measure_here if arguments.here else measure_apart
    for kind in arguments.kinds:
        line = run(kind, arguments.kernel)
        print(json.dumps(line), flush=True)
        if arguments.out:
            with arguments.out.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
    if arguments.here:
        sys.stdout.flush()
        os._exit(0)  # vLLM's atexit hooks take seconds and have nothing to save


if __name__ == "__main__":
    main()
