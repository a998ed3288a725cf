"""A model as vLLM builds it, without memory for weights: where its routed experts are, and its own
way to load them.

Every parameter is on torch's meta device. Layers of routed experts keep recipes (`held`), and
`load_into` lets the model's own `load_weights` fill one layer that was built from its recipe, in
the place of the one on meta. No engine, attention kernel or KV cache is needed for that.

vLLM's configuration and process groups (of one process, on loopback) are set once for the process.
"""

import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.model_loader.utils import get_model_architecture, initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from actors.experts.refusal import ModelRefused
from actors.vllm_layers import held

META = torch.device("meta")
ROWS = torch.bfloat16
"""Type of the rows that a shard gets."""

Weights = Iterable[tuple[str, torch.Tensor]]

_entered = ExitStack()
"""Never left: the last configuration stays the process's own."""


class Skeleton:
    """See the module's text. For one thread at a time."""

    def __init__(self, model_path: Path, *, trust_remote_code: bool = False) -> None:
        """Raises ModelRefused, in one line, where vLLM does not build the model."""
        self.config = vllm_config(model_path, trust_remote_code)
        enter(self.config)
        try:
            self.architecture, self.model = build(self.config)
        except ModelRefused:
            raise
        except Exception as error:  # whatever a model's constructor raises
            raise ModelRefused(f"vLLM does not build this model here: {one_line(error)}") from error
        self._places = {
            layer.layer_name: (parent, name, layer)
            for parent, name, layer in held.held_layers(self.model)
        }
        if not self._places:
            raise ModelRefused(f"{self.architecture} has no routed experts in vLLM")

    @property
    def layers(self) -> dict[str, Any]:
        """Layers of routed experts by their names, on meta, with room for every expert; each is a
        `RoutedExperts` and a `Held`."""
        return {name: place[2] for name, place in self._places.items()}

    def build_layer(self, name: str, experts: list[int], device: torch.device) -> RoutedExperts:
        """Layer `name` with room for `experts` on `device`; nothing is loaded."""
        recipe: held.Recipe = self._places[name][2].recipe
        with set_default_torch_dtype(ROWS):
            return recipe.build(experts, device)

    def load_into(self, layer: RoutedExperts, weights: Weights) -> None:
        """Let the model load `weights`, which are all of this layer."""
        parent, name, on_meta = self._places[layer.layer_name]
        setattr(parent, name, layer)
        try:
            self.load(weights)
        finally:
            setattr(parent, name, on_meta)

    def load(self, weights: Weights) -> None:
        """The model's own `load_weights`; what it copies out of meta is left out."""
        with NoCopiesOfMeta():
            self.model.load_weights(weights)


class NoCopiesOfMeta(torch.overrides.TorchFunctionMode):
    """Copies out of meta do nothing: some models build real parameters under any device and copy
    into them what others load."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = func in (torch.Tensor.copy_, torch.Tensor.__setitem__)
        if copies and isinstance(args[-1], torch.Tensor) and args[-1].is_meta:
            return self.copied(args[0])
        return func(*args, **(kwargs or {}))

    def copied(self, target: torch.Tensor) -> torch.Tensor:
        return target


def vllm_config(model_path: Path, trust_remote_code: bool) -> VllmConfig:
    """Of one process, for the model in `model_path`; ModelRefused where vLLM does not take it."""
    try:
        return EngineArgs(
            model=str(model_path),
            dtype="bfloat16",
            enforce_eager=True,
            skip_tokenizer_init=True,
            trust_remote_code=trust_remote_code,
        ).create_engine_config()
    except Exception as error:  # vLLM's checks raise all kinds
        text = one_line(error)
        if "trust_remote_code" in str(error):
            text = "its code comes with the checkpoint: set engines.vllm.trust_remote_code to true"
        raise ModelRefused(f"vLLM does not take this model: {text}") from error


def enter(config: VllmConfig) -> None:
    """Make `config` this process's own: layers ask for it when they are built and when they run."""
    _entered.enter_context(set_current_vllm_config(config))
    if not torch.distributed.is_initialized():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        with tempfile.TemporaryDirectory(prefix="xm-group") as folder:
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
            initialize_model_parallel(1, 1)


def build(config: VllmConfig) -> tuple[str, Any]:
    """(architecture, model on meta)."""
    model_class, architecture = get_model_architecture(config.model_config)
    # Its module, and with it the subclasses of `RoutedExperts` it defines, is imported by now.
    with held.replaced(held.Held), set_default_torch_dtype(ROWS), META:
        return architecture, initialize_model(config, model_class=model_class)


def one_line(error: BaseException) -> str:
    """What an error says, in one line; pydantic and torch say more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    return f"{text[:400]}"
