"""LoRA adapters that engines are given: those of routed experts are refused, by name.

vLLM would pass over the experts of an adapter where `lora_target_modules` leaves them out, and
answer with a part of the adapter.
"""

from pathlib import Path

from actors.experts.headers import read_tensor_index
from actors.experts.refusal import ModelRefused

ROUTED = ".experts."
"""In the names of tensors of every layout of adapters; shared experts are `.shared_experts.`."""


def check_adapter(folder: Path) -> None:
    """ModelRefused, naming the tensor, unless all of the adapter is for what stays in an engine."""
    for name in read_tensor_index(folder).tensors:
        if ROUTED in name:
            raise ModelRefused(
                f"adapter {folder} is for routed experts too ({name}), which shards hold without "
                "adapters: train one for attention and shared experts"
            )
