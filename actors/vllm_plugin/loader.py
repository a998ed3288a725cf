"""A vLLM model loader that never reads a routed expert.

Registered in place of the loaders for local safetensors, so `--load-format` needs no change.
"""

import logging
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path

import torch
from safetensors import safe_open
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import get_model_architecture

from actors.experts.families import read_expert_spec
from actors.vllm_plugin.connection import check_model
from actors.vllm_plugin.dense_kernels import missing_kernels_named, refuse_static_fp8
from actors.vllm_plugin.routed_experts import register_routed_experts

log = logging.getLogger("vllm.expertmesh")

LOAD_FORMATS = ("auto", "hf", "safetensors")
# Every family in `FAMILIES` keeps its routed experts below a module called "experts"; shared ones
# are ".shared_experts.".
ROUTED_EXPERT = re.compile(r"\.experts\.")


def is_routed_expert(tensor_name: str) -> bool:
    """Whether a tensor of a family that we read belongs to routed experts."""
    return ROUTED_EXPERT.search(tensor_name) is not None


def routed_expert_test(folder: Path, trust_remote_code: bool) -> Callable[[str], bool]:
    """Tells by its name whether a tensor of this checkpoint belongs to routed experts."""
    spec = read_expert_spec(folder, trust_remote_code=trust_remote_code)
    if spec.catalog is None:
        return is_routed_expert
    return spec.catalog.tensors.__contains__


class ExpertlessLoader(DefaultModelLoader):
    """Reads every tensor but those of routed experts."""

    _is_routed_expert: Callable[[str], bool] = staticmethod(is_routed_expert)

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> torch.nn.Module:
        get_model_architecture(model_config)  # imports the model's module
        register_routed_experts()
        with missing_kernels_named(model_config):
            model: torch.nn.Module = super().load_model(vllm_config, model_config, prefix)
        return model

    def load_weights(self, model: torch.nn.Module, model_config: ModelConfig) -> None:
        check_model(model_config.model)
        refuse_static_fp8(model, model_config)
        self._is_routed_expert = routed_expert_test(
            Path(model_config.model), model_config.trust_remote_code
        )
        super().load_weights(model, model_config)

    def _get_weights_iterator(
        self, source: DefaultModelLoader.Source
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        folder, files, use_safetensors, _ = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        if not use_safetensors:
            raise ValueError(
                f"ExpertMesh reads safetensors checkpoints only, {folder} has none; "
                "convert it with save_pretrained(safe_serialization=True)"
            )
        return self._read(sorted(files), source.prefix)

    def _read(
        self, files: list[str], prefix: str
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        skipped = 0
        for file in files:
            with safe_open(file, framework="pt") as checkpoint:
                for name in checkpoint.keys():  # noqa: SIM118 - not a dict
                    if self._is_routed_expert(name):
                        skipped += 1
                    else:
                        yield prefix + name, checkpoint.get_tensor(name)
        log.info(
            "%d routed-expert tensors left to the mesh, %d files read in %s",
            skipped,
            len(files),
            os.path.dirname(files[0]),
        )


def register_loader() -> None:
    """Take over the load formats that read local safetensors."""
    for load_format in LOAD_FORMATS:
        register_model_loader(load_format)(ExpertlessLoader)
