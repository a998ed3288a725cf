"""What an engine computes itself: a quantisation without a kernel of vLLM's is refused in one line.

vLLM says so while it builds a layer, or with the first rows, deep in a traceback.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

import torch
from vllm.config import ModelConfig
from vllm.platforms import current_platform

from actors.experts.refusal import ModelRefused

KERNELS = ("model_executor", "kernels")
"""Where vLLM chooses kernels of linear layers."""
FP8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)


@contextmanager
def missing_kernels_named(model: ModelConfig) -> Iterator[None]:
    """ModelRefused where vLLM finds no kernel for a layer that is built inside."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raised_in = PurePath(traceback.extract_tb(error.__traceback__)[-1].filename)
        if not set(KERNELS) <= set(raised_in.parts):
            raise
        raise refusal(model, str(error)) from error


def refuse_static_fp8(network: torch.nn.Module, model: ModelConfig) -> None:
    """ModelRefused where vLLM's build for CPUs lacks the operator for a layer of `network`."""
    if not current_platform.is_cpu() or torch.cpu._is_amx_tile_supported():
        return  # with AMX vLLM takes kernels that leave rows in bf16
    for name, layer in network.named_modules():
        weight, scale = getattr(layer, "weight", None), getattr(layer, "input_scale", None)
        if scale is not None and weight is not None and weight.dtype in FP8:
            said = f"no operator rounds rows to FP8 with a stored scale, as {name} asks for"
            raise refusal(model, said)


def refusal(model: ModelConfig, said: str) -> ModelRefused:
    return ModelRefused(
        f"{model.model}: vLLM has no kernel here for layers that stay in the engine, quantised "
        f"with {model.quantization} ({said}): serve a checkpoint that quantises routed experts "
        "only, or put engines on another device"
    )
