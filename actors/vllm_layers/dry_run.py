"""Which tensors of a checkpoint hold which experts: a dry run of the model's own `load_weights`.

  python -m actors.vllm_layers.dry_run MODEL --out FILE [--trust-remote-code]

Every tensor is offered by name and shape, on torch's meta device; what would be loaded into a layer
of routed experts is noted and not loaded. FILE gets an `ExpertCatalog`, or {"refused": why}.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.platforms import current_platform

from actors.experts.catalog import EVERY, STACKED, CatalogLayer, ExpertCatalog
from actors.experts.checkpoint import DTYPES
from actors.experts.headers import TensorIndex, read_tensor_index
from actors.experts.refusal import ModelRefused
from actors.vllm_layers import held
from actors.vllm_layers.layer_index import layer_index
from actors.vllm_layers.skeleton import META, NoCopiesOfMeta, Skeleton, one_line

Use = tuple[str, "int | None"]
"""A layer's name and the expert that a tensor is for; None: of every one, copied as it is."""


class Watch(NoCopiesOfMeta):
    """Notes which layers the tensor that is being loaded is for."""

    def __init__(self, layers: dict[str, Any]) -> None:
        super().__init__()
        self._owners = {
            id(parameter): name
            for name, layer in layers.items()
            for parameter in layer.parameters(recurse=False)
        }
        self.current = ""
        self.uses: dict[str, list[Use]] = {}

    def see(self, layer: str, expert: int | None) -> None:
        self.uses.setdefault(self.current, []).append((layer, expert))

    def copied(self, target: torch.Tensor) -> torch.Tensor:
        """Some models copy into experts' parameters without their `weight_loader`."""
        base = target if target._base is None else target._base
        for one in (target, base):
            if (owner := self._owners.get(id(one))) is not None:
                self.see(owner, None)
                break
        return target


def dry_run(model_path: Path, *, trust_remote_code: bool = False) -> ExpertCatalog:
    """ModelRefused, in one line, where the model's experts cannot be served from shards."""
    index = read_tensor_index(model_path)
    skeleton = Skeleton(model_path, trust_remote_code=trust_remote_code)
    uses = find_uses(skeleton, index)
    layers = tuple(_entry(name, layer) for name, layer in skeleton.layers.items())
    _check_layers(layers)
    tensors = {name: _of(name, found) for name, found in uses.items()}
    _check_complete(tensors, layers)
    _check_taken(tensors, index)
    first = next(iter(skeleton.layers.values()))
    return ExpertCatalog(
        architecture=skeleton.architecture,
        method=type(first.quant_method).__name__,
        plain=all(map(is_plain, skeleton.layers.values())),
        inexact=next(filter(None, map(left_out, skeleton.layers.values())), ""),
        trust_remote_code=trust_remote_code,
        layers=tuple(sorted(layers, key=lambda layer: layer.layer)),
        tensors=tensors,
    )


def find_uses(skeleton: Skeleton, index: TensorIndex) -> dict[str, list[Use]]:
    """Tensor -> what it is for; without the tensors that are for no routed expert."""
    watch = Watch(skeleton.layers)
    held.watch(watch.see)

    def offered() -> Iterator[tuple[str, torch.Tensor]]:
        for name, info in index.tensors.items():
            watch.current = name
            if info.dtype not in DTYPES:
                raise ModelRefused(f"tensor {name} is of dtype {info.dtype}")
            yield name, torch.empty(info.shape, dtype=DTYPES[info.dtype], device=META)

    try:
        with watch:
            skeleton.model.load_weights(offered())
    except ModelRefused:
        raise
    except Exception as error:  # whatever a model's loader raises
        raise ModelRefused(
            f"vLLM's {skeleton.architecture} does not load tensor {watch.current}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        held.watch(None)
    return watch.uses


def _of(name: str, uses: list[Use]) -> tuple[int, int]:
    """(layer, expert or `EVERY` or `STACKED`) of one tensor."""
    layers = {layer for layer, _ in uses}
    if len(layers) > 1:
        raise ModelRefused(f"tensor {name} is shared by layers {', '.join(sorted(layers))}")
    layer = layer_index(layers.pop())
    experts = {expert for _, expert in uses}
    if None in experts:
        return layer, STACKED
    return layer, EVERY if len(experts) > 1 else int(next(iter(experts)) or 0)


def _entry(name: str, layer: Any) -> CatalogLayer:
    config = layer.recipe.moe_config
    size = sum(p.nbytes for p in layer.parameters(recurse=False) if hasattr(p, "weight_loader"))
    return CatalogLayer(
        layer=layer_index(name),
        name=name,
        experts=int(config.num_logical_experts),
        top_k=int(config.experts_per_token),
        hidden=int(config.hidden_dim),
        intermediate=int(config.intermediate_size),
        bytes_per_expert=-(-size // int(config.num_experts)),
    )


def _check_layers(layers: tuple[CatalogLayer, ...]) -> None:
    for what in ("experts", "hidden"):
        if len(found := {getattr(layer, what) for layer in layers}) > 1:
            raise ModelRefused(f"its layers differ in {what}: {sorted(found)}")
    by_index: dict[int, str] = {}
    for layer in layers:
        if (other := by_index.setdefault(layer.layer, layer.name)) != layer.name:
            raise ModelRefused(
                f"layer {layer.layer} has two sets of experts: {other}, {layer.name}"
            )


def _check_complete(tensors: dict[str, tuple[int, int]], layers: tuple[CatalogLayer, ...]) -> None:
    """Every expert has as many tensors as the layer's others."""
    counts = {(one.layer, expert): 0 for one in layers for expert in range(one.experts)}
    shared = dict.fromkeys((one.layer for one in layers), 0)
    for layer, expert in tensors.values():
        if expert < 0:
            shared[layer] += 1
        elif (layer, expert) in counts:
            counts[layer, expert] += 1
    for one in layers:
        own = [counts[one.layer, expert] for expert in range(one.experts)]
        if max(own) + shared[one.layer] == 0:
            raise ModelRefused(f"no tensor of the checkpoint is for {one.name}: download it again")
        if min(own) < max(own):
            expert = own.index(min(own))
            raise ModelRefused(
                f"expert {expert} of {one.name} has {min(own)} tensors, others have {max(own)}: "
                "download the checkpoint again"
            )


def _check_taken(tensors: dict[str, tuple[int, int]], index: TensorIndex) -> None:
    """No matrix lies beside an expert's tensors that the loader passes over without a word."""
    stems = {_stem(name) for name, (_, expert) in tensors.items() if expert >= 0}
    for name, info in index.tensors.items():
        if name not in tensors and len(info.shape) > 1 and _stem(name) in stems:
            raise ModelRefused(f"vLLM's loader of this model does not take tensor {name}")


def _stem(name: str) -> str:
    """The name up to the number of the expert."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""


def is_plain(layer: Any) -> bool:
    """Whether our own kernels compute exactly what this layer does."""
    return bool(
        type(layer.quant_method) is UnquantizedFusedMoEMethod
        and layer.params_dtype == torch.bfloat16
        and layer.moe_config.activation == MoEActivation.SILU
        and not layer.moe_config.has_bias
        and not layer.apply_router_weight_on_input
        and not _clamps(layer)
        and layer.hidden_size == layer.recipe.moe_config.hidden_dim
        and layer.intermediate_size_per_partition == layer.moe_config.intermediate_size
    )


def left_out(layer: Any) -> str:
    """What the kernel of this platform does not compute, though the model asks for it."""
    unquantised = type(layer.quant_method) is UnquantizedFusedMoEMethod
    if current_platform.is_cpu() and _clamps(layer) and unquantised:
        return f"vLLM's bf16 kernel for CPUs ignores {_clamps(layer)}"
    return ""


def _clamps(layer: Any) -> str:
    """The first parameter of a clamped activation that is set."""
    if layer.moe_config.activation == MoEActivation.SWIGLUOAI:
        return ""  # its constants are built into the kernels
    for name in ("swiglu_limit", "swiglu_alpha", "swiglu_beta"):
        if getattr(layer, name, None) is not None or getattr(layer.moe_config, name, None):
            return name
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trust-remote-code", action="store_true")
    arguments = parser.parse_args()
    try:
        found = dry_run(arguments.model, trust_remote_code=arguments.trust_remote_code)
        content: dict[str, Any] = found.to_json()
    except ModelRefused as refused:
        content = {"refused": str(refused)}
    arguments.out.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
