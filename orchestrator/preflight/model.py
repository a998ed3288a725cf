"""Whether the model is there, its experts fit the pools, and vLLM knows the engine's flags."""

import ast
import difflib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from actors.experts.adapters import check_adapter
from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec
from orchestrator.config.bytesize import format_bytes
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import ModelConfig
from orchestrator.preflight.finding import Finding, Level

FLAG_CLASSES = {
    "engine/arg_utils.py": ("EngineArgs", "AsyncEngineArgs"),
    "entrypoints/launchers/cli_args.py": ("BaseFrontendArgs",),
}
"""File of vLLM -> its classes whose fields are flags."""
ENGINE_OVERHEAD_BYTES = 3 * 2**29
"""Rough room for Python, torch and vLLM in one engine, besides its KV cache."""
EXPERT_MEMORY = "expert memory"
PROCESS_OVERHEAD_BYTES = 3 * 2**27
"""Rough room for a shard without its weights, for the gateway, and for the controller."""


def check_model_files(model: ModelConfig) -> Finding:
    name, path = "model", model.path
    fix = "set model.path to a folder with config.json and safetensors files"
    if not path.exists():
        return Finding(name, Level.FAILURE, f"model path {path} does not exist", fix)
    if not (path / "config.json").is_file():
        return Finding(name, Level.FAILURE, f"model path {path} has no config.json", fix)
    files = list(path.glob("*.safetensors"))
    if not files:
        return Finding(name, Level.FAILURE, f"model path {path} has no safetensors files", fix)
    size = format_bytes(sum(file.stat().st_size for file in files))
    return Finding(name, Level.OK, f"{model.name}: {size} in {path}")


def check_expert_memory(
    pools: dict[str, PoolConfig],
    spec: ExpertSpec,
    free_bytes: int,
    each_of: Mapping[str, int] = MappingProxyType({}),
) -> Finding:
    """Every (layer, expert) needs a slot in some shard; shards give each layer the same number.

    free_bytes: what the host has; shards on CPUs that name no `memory` share it. each_of: bytes of
    an expert in pools whose checkpoint has another format than `spec`.
    """
    layers, each = len(spec.layers), spec.bytes_per_expert
    total = format_bytes(layers * spec.num_experts * each)
    needed = f"{spec.num_experts} experts of {format_bytes(each)} in each of {layers} layers"
    if any(pool.memory is None and pool.device != "cpu" for pool in pools.values()):
        return Finding(
            EXPERT_MEMORY,
            Level.OK,
            f"{needed} ({total}); shards will measure what their devices have",
        )
    sharing = sum(pool.shards for pool in pools.values() if pool.memory is None)
    of_one = {
        name: min(
            _bytes_of(pool, free_bytes, sharing) // each_of.get(name, each) // layers,
            spec.num_experts,
        )
        for name, pool in pools.items()
    }
    held = sum(pool.shards * of_one[name] for name, pool in pools.items())
    if held >= spec.num_experts:
        return Finding(
            EXPERT_MEMORY, Level.OK, f"{needed} ({total}); the pools hold {held} a layer"
        )
    return Finding(
        EXPERT_MEMORY,
        Level.FAILURE,
        f"the model has {needed} ({total}), but the pools' shards hold {held} a layer",
        "raise pools.*.memory, or add shards" + _to_grow(of_one, spec.num_experts - held),
    )


def _to_grow(of_one: Mapping[str, int], missing: int) -> str:
    """Of the pool whose shards hold the most, so many more would do."""
    pool = max(of_one, key=lambda name: of_one[name])
    if not of_one[pool]:
        return ""
    return f": {-(-missing // of_one[pool])} more in pools.{pool} would do"


def _bytes_of(pool: PoolConfig, free_bytes: int, sharing: int) -> int:
    """Memory of one shard of `pool`; `sharing` shards without a limit divide `free_bytes`."""
    return free_bytes // sharing if pool.memory is None else pool.memory


def check_host_memory(config: MeshConfig, spec: ExpertSpec, free_bytes: int) -> Finding:
    """A private session puts everything on this machine: does it fit?"""
    name = "memory"
    if config.cluster.ray_address is not None:
        return Finding(name, Level.OK, f"{format_bytes(free_bytes)} free on this node")
    experts = len(spec.layers) * spec.num_experts * spec.bytes_per_expert
    on_cpu = [pool for pool in config.pools.values() if pool.device == "cpu"]
    shards = sum(
        pool.shards * (PROCESS_OVERHEAD_BYTES + min(pool.memory or 0, experts)) for pool in on_cpu
    )
    engine = ENGINE_OVERHEAD_BYTES + config.engines.kv_cache_gib * 2**30
    needed = shards + config.engines.replicas * engine + 2 * PROCESS_OVERHEAD_BYTES
    message = f"about {format_bytes(needed)} needed, {format_bytes(free_bytes)} free"
    if needed > free_bytes:
        fix = "lower engines.kv_cache_gib, engines.replicas or pools.*.memory"
        return Finding(name, Level.WARNING, message, fix)
    return Finding(name, Level.OK, message)


def known_engine_flags(vllm: Path) -> frozenset[str]:
    """Flags of vLLM's engine and of its OpenAI application, read from its sources: importing vLLM
    takes seconds."""
    return frozenset(
        field.target.id
        for file, classes in FLAG_CLASSES.items()
        for definition in ast.parse((vllm / file).read_text(encoding="utf-8")).body
        if isinstance(definition, ast.ClassDef) and definition.name in classes
        for field in definition.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def check_adapters(modules: Any) -> Iterator[Finding]:
    """modules: vLLM's flag `lora_modules`, a list of `name=folder`."""
    for module in modules if isinstance(modules, list) else []:
        name, _, folder = str(module).partition("=")
        try:
            check_adapter(Path(folder))
        except ModelRefused as refused:
            yield Finding("adapters", Level.FAILURE, f"engines.vllm.lora_modules: {refused}")
        else:
            yield Finding("adapters", Level.OK, f"{name}: {folder}")


def check_engine_flags(flags: Collection[str], known: Collection[str]) -> Finding:
    name = "engine flags"
    for flag in flags:
        if flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            fix = f"did you mean {near[0]}?" if near else "see `vllm serve --help`"
            return Finding(name, Level.FAILURE, f"vLLM has no flag engines.vllm.{flag}", fix)
    return Finding(name, Level.OK, ", ".join(flags) or "vLLM's own defaults")
