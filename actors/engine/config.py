"""What one engine serves, and how: the arguments of the engine actor."""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from actors.logs import FORMAT_VARIABLE, JSON, VLLM_JSON_CONFIG

QUIET_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_COLOR": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""An engine reaches no network and says only what needs attention."""

DROPPED_ENVIRONMENT = (
    "VLLM_API_KEY",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    "VLLM_ALLOW_INSECURE_SERIALIZATION",
)
"""Variables that would let a request through, or keep it out, behind the gateway's back."""


class EngineConfig(BaseModel):
    """Arguments of `Engine`. Invalid vLLM flags are found by `Engine.start`, which knows them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine_id: str = Field(min_length=1)
    """Name of this engine in status, logs and metrics."""
    model: str = Field(min_length=1)
    """Directory of the checkpoint."""
    served_model_name: str = Field(min_length=1)
    """What clients call the model."""
    flags: dict[str, Any] = {}
    """vLLM's own flags under their own names, e.g. `{"max_model_len": 512}`."""
    environment: dict[str, str] = {}
    """Variables to set before vLLM is imported; they win over the defaults."""
    cpu_kv_cache_gib: int = Field(default=1, ge=1)
    """KV cache of a CPU engine, in whole GiB (vLLM's own unit); other devices size theirs."""
    setup: str = ""
    """See `actors.origin`."""

    def variables(self) -> dict[str, str]:
        """Environment of the engine process, to be set before vLLM is imported."""
        defaults = {**QUIET_ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": str(self.cpu_kv_cache_gib)}
        if os.environ.get(FORMAT_VARIABLE) == JSON:
            defaults["VLLM_LOGGING_CONFIG_PATH"] = str(VLLM_JSON_CONFIG)
        return {**defaults, **self.environment}
