"""vLLM's configuration for an engine of a mesh: what is refused, and what is ours to set."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import CompilationConfig, VllmConfig

MESH_OPERATORS = (
    "expertmesh::send_rows",
    "expertmesh::wait_sums",
    # On GPUs vLLM hides a MoE layer, ours too, in an operator of its own.
    "vllm::moe_forward",
    "vllm::moe_forward_shared",
)
"""Operators that leave the device, by their names in torch."""

REASONS = {
    "enable_expert_parallel": "the experts are in shards already",
    "enable_eplb": "the mesh's planner balances the experts",
    "data_parallel_size": "engines are independent: add engines instead",
    "pipeline_parallel_size": "only tensor parallelism is supported",
    "prefill_context_parallel_size": "only tensor parallelism is supported",
    "decode_context_parallel_size": "only tensor parallelism is supported",
    "enable_hc_sp": "sequence parallelism would give each rank other rows",
    "nnodes": "an engine is on one node",
    "enable_dbo": "a step's layers run one after the other",
    "enable_lora": "name lora_target_modules without experts: shards hold no adapters",
    "speculative_config": "of drafters only n-gram, suffix and DeepSeek-V3's own layers are served",
    "kv_transfer_config": "what a failed step wrote could not be taken back",
    "runner": "only models that generate are supported",
}
"""vLLM flag -> why an engine of a mesh may not use it."""

DRAFTERS_WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix")
PREDICTORS = ("DeepSeekMTPModel",)
"""Classes of multi-token prediction whose routed experts are in shards, see `families`."""


def refuse_unsupported(config: "VllmConfig") -> None:
    """Make sure an engine with this configuration gives the tokens of the model.

    Raises:
        ValueError: one line that names each flag that is set and not supported.
    """
    found = [f"{flag}: {REASONS[flag]}" for flag in unsupported_flags(config)]
    if found:
        raise ValueError(f"vLLM flags that a mesh does not support: {'; '.join(found)}")


def use_mesh_scheduler(config: "VllmConfig") -> None:
    """Have the requests of a step that lacked experts fail, and not the engine."""
    scheduler = config.scheduler_config
    assert scheduler.scheduler_cls is None, "refused by `OWNED_FLAGS`"
    name = "MeshAsyncScheduler" if scheduler.async_scheduling else "MeshScheduler"
    scheduler.scheduler_cls = f"actors.vllm_plugin.scheduler.{name}"


def split_graphs(compilation: "CompilationConfig") -> None:
    """Keep the mesh's operators out of CUDA graphs: rows leave through the CPU, which no graph can
    capture. Graphs of what lies between two such operators stay."""
    from vllm.config import CUDAGraphMode

    if compilation.cudagraph_mode in (None, CUDAGraphMode.NONE):
        return
    if compilation.splitting_ops:
        missing = [name for name in MESH_OPERATORS if name not in compilation.splitting_ops]
        compilation.splitting_ops = [*compilation.splitting_ops, *missing]
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    else:
        compilation.cudagraph_mode = CUDAGraphMode.NONE


def unsupported_flags(config: "VllmConfig") -> list[str]:
    parallel = config.parallel_config
    in_use = {
        "enable_expert_parallel": parallel.enable_expert_parallel,
        "enable_eplb": parallel.enable_eplb,
        "data_parallel_size": parallel.data_parallel_size > 1,
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "enable_hc_sp": parallel.enable_hc_sp,
        "nnodes": parallel.nnodes > 1 or parallel.distributed_executor_backend == "ray",
        "enable_dbo": parallel.use_ubatching,
        "enable_lora": _adapts_experts(config),
        "speculative_config": not _drafts_with_the_mesh(config),
        "kv_transfer_config": config.kv_transfer_config is not None,
        "runner": config.model_config.runner_type != "generate",
    }
    return [flag for flag, used in in_use.items() if used]


def _drafts_with_the_mesh(config: "VllmConfig") -> bool:
    """Whether drafts, if there are any, take no routed experts but those that shards hold."""
    drafting = config.speculative_config
    if drafting is None or drafting.method in DRAFTERS_WITHOUT_MODEL:
        return True
    drafter = drafting.draft_model_config
    return drafting.method == "mtp" and set(drafter.architectures) <= set(PREDICTORS)


def _adapts_experts(config: "VllmConfig") -> bool:
    """Whether adapters might be for routed experts: vLLM would wrap those too, if nothing else is
    said."""
    lora = config.lora_config
    if lora is None:
        return False
    return lora.target_modules is None or any("expert" in name for name in lora.target_modules)
