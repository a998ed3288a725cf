"""Lets DeepSeek-V4 run in vLLM on CPUs that lack Triton or AMX.

vLLM 0.32 serves DeepSeek-V4 on CPU only with a Triton CPU backend on processors with AMX. Three
causes stand in the way elsewhere, and a fourth makes the answers differ from the reference's; each
is checked on its own and left alone where it is absent:

- metadata kernels exist in Triton only: torch versions are registered with vLLM's own dispatcher,
  after vLLM registered its fallbacks, for the kernels that then still have none;
- kernel selectors of FP8 and MXFP4 weights demand AMX, though the kernels behind them also run on
  AVX512-BF16: those selectors accept such processors;
- the CPU planner of sliding-window attention leaves out two layer types its base class reads: the
  missing entries are added, empty as the others are;
- the CPU kernel of MXFP4 experts ignores `swiglu_limit`: see `clamped_experts`.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch

from actors.deepseek_v4_cpu import metadata_kernels
from actors.deepseek_v4_cpu.clamped_experts import clamp_experts

_MLA = "vllm.v1.attention.backends.mla"

KERNELS: dict[str, Callable[..., None]] = {
    "vllm.v1.attention.ops.metadata._token_request_mapping_kernel": (
        metadata_kernels.token_request_mapping
    ),
    f"{_MLA}.sparse_swa.ComputeSWAIndicesAndLensKernel.kernel": (
        metadata_kernels.sliding_window_slots
    ),
    f"{_MLA}.sparse_swa.ComputePrefillMetadataKernel.kernel": (
        metadata_kernels.prefill_gather_lengths
    ),
    f"{_MLA}.compressor_utils.CompressedSlotMappingKernel.kernel": (
        metadata_kernels.compressed_slots
    ),
    f"{_MLA}.indexer.BuildPrefillChunkMetadataKernel.kernel": (
        metadata_kernels.indexer_prefill_bounds
    ),
    f"{_MLA}.indexer.PrepareUniformDecodeKernel.kernel": (
        metadata_kernels.refuse_speculative_decoding
    ),
    f"{_MLA}.sparse_swa.ComputeDSparkNoncausalSWAIndicesKernel.kernel": (
        metadata_kernels.refuse_speculative_decoding
    ),
}
"""Replacement of each Triton kernel on DeepSeek-V4's CPU path, by vLLM's name for it."""


def install() -> list[str]:
    """Apply the fixes this machine needs and return their names.

    Call it from a vLLM plugin, before an engine is built. Off the CPU platform it does nothing.
    Later calls in the same process return the same names and change nothing.
    """
    return list(_install_once())


@cache
def _install_once() -> tuple[str, ...]:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return ()
    return tuple(name for name, fix in FIXES.items() if fix())


def add_metadata_kernels() -> bool:
    """Register the torch kernels if there is no Triton; True if it did."""
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON:
        return False
    platform: Any = type(current_platform)
    register_upstream = platform.register_triton_kernel_overrides

    @wraps(register_upstream)
    def register_all(_platform: type) -> None:
        register_upstream()
        _register_missing_kernels()

    # The worker calls this hook after loading plugins, before it touches a model.
    platform.register_triton_kernel_overrides = classmethod(register_all)
    return True


def _register_missing_kernels() -> None:
    from vllm.triton_utils import dispatcher

    taken = dispatcher._registry
    dispatcher.register_kernels({name: KERNELS[name] for name in KERNELS if name not in taken})


def _needs_no_amx() -> bool:
    """True on processors that run the AMX kernels' AVX512-BF16 variants instead."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def accept_fp8_linear() -> bool:
    """Let FP8 linear layers run if only AMX is missing; True if it did."""
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUFp8BlockScaledMMKernel

    supported, reason = CPUFp8BlockScaledMMKernel.is_supported()
    if supported or not _needs_no_amx() or "AMX" not in (reason or ""):
        return False
    if not hasattr(torch.ops._C, "fp8_scaled_mm_cpu"):
        return False

    def is_supported(_cls: type, _compute_capability: int | None = None) -> tuple[bool, None]:
        return True, None

    kernel: Any = CPUFp8BlockScaledMMKernel
    kernel.is_supported = classmethod(is_supported)
    return True


def accept_quantized_experts() -> bool:
    """Let FP8 and MXFP4 experts run if only AMX is missing; True if it did."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUExpertsFp8, CPUExpertsMxfp4

    if not _needs_no_amx() or not hasattr(torch.ops._C, "fused_experts_cpu"):
        return False
    kinds: list[Any] = [CPUExpertsFp8, CPUExpertsMxfp4]
    refusing = [experts for experts in kinds if not experts._supports_current_device()]
    for experts in refusing:
        experts._supports_current_device = staticmethod(lambda: True)
    return bool(refusing)


def complete_tile_schedule() -> bool:
    """Add the layer types the CPU tile schedule lacks, if any; True if it did."""
    from vllm.models.deepseek_v4.cpu.cpu_mla import DeepseekV4CPUSparseSWAMetadataBuilder
    from vllm.v1.attention.backends.mla import sparse_swa

    builder: Any = DeepseekV4CPUSparseSWAMetadataBuilder
    layer_types = [value for name, value in vars(sparse_swa).items() if "_LAYER_TYPE_" in name]
    build = builder.build_tile_scheduler
    if build is sparse_swa.DeepseekSparseSWAMetadataBuilder.build_tile_scheduler:
        return False
    # The planner of vLLM 0.32 reads nothing of its builder: an empty one shows what it returns.
    if set(layer_types) <= build(object.__new__(builder), 0).keys():
        return False

    @wraps(build)
    def build_complete(self: Any, num_decode_tokens: int) -> dict[str, Any]:
        plan: dict[str, Any] = build(self, num_decode_tokens)
        return dict.fromkeys(layer_types) | plan

    builder.build_tile_scheduler = build_complete
    return True


FIXES: dict[str, Callable[[], bool]] = {
    "torch metadata kernels": add_metadata_kernels,
    "FP8 linear layers without AMX": accept_fp8_linear,
    "FP8 and MXFP4 experts without AMX": accept_quantized_experts,
    "complete tile schedule": complete_tile_schedule,
    "clamped SwiGLU in MXFP4 experts": clamp_experts,
}
"""What `install` tries, by the name it reports."""
