"""vLLM's layers of routed experts, holding experts of our choice.

A model of vLLM builds its layers itself, deep in its constructor. Each class of them is replaced in
vLLM's registry of out-of-tree layers by a subclass that notes what it was built with, its `Recipe`.
From a recipe, layers of the same kind can be built at any time with any experts and on any device.

The slots of such a layer are vLLM's "local experts", as under expert parallelism, so loaders that
know that know this. While it loads, `moe_config.num_experts` is the model's count, since tensors
are mapped by it; for the kernel it is the number of slots.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

Seen = Callable[[str, "int | None"], None]
"""Called with a layer's name and the expert a tensor is for; None: it is copied as it is."""

LOADING = frozenset(
    {
        "weight_loader", "load_weights", "get_expert_mapping", "make_expert_params_mapping",
        "build_expert_params_mapping", "get_expert_weights", "name",
    }
)  # fmt: skip
"""What a subclass may define without computing anything else than `RoutedExperts` does: how its
tensors are named, taken apart and copied."""


class UnknownLayer(ValueError):
    """A class of layers computes something that is not in a call to a shard; one line."""


class Slots:
    """What `RoutedExperts` asks of an `ExpertMapManager`, for chosen experts."""

    def __init__(self, experts: list[int], like: Any) -> None:
        self._slot_of = {expert: slot for slot, expert in enumerate(experts)}
        self.first = experts[0]
        self.local_num_experts = len(experts)
        self.global_num_experts = like.global_num_experts
        self.placement_strategy = like.placement_strategy
        self.num_fused_shared_experts = 0
        self.expert_map = None
        self.expert_mask = None
        self.routing_tables = None

    def map_global_to_local(self, expert: int) -> int:
        return self._slot_of.get(expert, -1)

    def update(self, *_: object, **__: object) -> None:
        """Slots do not change; a layer with other experts is another layer."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model built a layer with."""

    layer_class: type
    name: str
    params_dtype: torch.dtype
    moe_config: Any
    quant_config: Any
    expert_map_manager: Any
    others: dict[str, Any]

    @property
    def num_experts(self) -> int:
        return int(self.moe_config.num_experts)

    def build(self, experts: list[int], device: torch.device) -> RoutedExperts:
        """A layer with room for `experts` (logical ids) on `device`; nothing is loaded."""
        config = copy.copy(self.moe_config)
        config.num_local_experts = len(experts)
        # A call sends each assignment as a row of its own.
        config.experts_per_token = 1
        slots = Slots(experts, self.expert_map_manager)
        others = self.others | {"expert_map_manager": slots}
        with torch.device(device):
            layer: RoutedExperts = self.layer_class(
                self.name, self.params_dtype, config, self.quant_config, **others
            )
        return layer


class Held:
    """Mixed in before a class of vLLM's."""

    recipe: Recipe
    seen: Seen | None = None

    def __init__(
        self,
        layer_name: str,
        params_dtype: torch.dtype,
        moe_config: Any,
        quant_config: Any,
        expert_map_manager: Any,
        **others: Any,
    ) -> None:
        config = copy.copy(moe_config)  # vLLM's constructor changes it
        super().__init__(  # type: ignore[call-arg]
            layer_name,
            params_dtype,
            moe_config,
            quant_config,
            expert_map_manager=expert_map_manager,
            **others,
        )
        self.recipe = Recipe(
            type(self), layer_name, params_dtype, config, quant_config, expert_map_manager, others
        )

    def weight_loader(
        self,
        param: torch.nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str,
        shard_id: str,
        expert_id: int | None = None,
        return_success: bool = False,
    ) -> bool | None:
        stacked = loaded_weight.ndim == 3  # vLLM then fills all slots at once
        if Held.seen is None:
            if stacked:
                expert_id = self.expert_map_manager.first  # type: ignore[attr-defined]
            result: bool | None = super().weight_loader(  # type: ignore[misc]
                param, loaded_weight, weight_name, shard_id, expert_id, return_success
            )
            return result
        Held.seen(self.layer_name, None if stacked else expert_id)  # type: ignore[attr-defined]
        return True if return_success else None

    weight_loader.supports_moe_loading = True  # type: ignore[attr-defined]


def watch(seen: Seen | None) -> None:
    """From now on layers load nothing and tell `seen` what they would; None: load again."""
    Held.seen = seen


def classes_of_layers() -> Iterator[type[RoutedExperts]]:
    """`RoutedExperts` and every subclass that is defined by now, but for ours."""
    found: list[type[RoutedExperts]] = [RoutedExperts]
    while found:
        one = found.pop()
        found += one.__subclasses__()
        if not one.__dict__.get("of_expertmesh", False):
            yield one


def check_known(layer_class: type[RoutedExperts]) -> None:
    """UnknownLayer if the class, or a parent below `RoutedExperts`, computes something else."""
    for one in layer_class.__mro__[: layer_class.__mro__.index(RoutedExperts)]:
        if more := beyond_loading(n for n, value in vars(one).items() if callable(value)):
            raise UnknownLayer(
                f"vLLM's {one.__name__} defines {', '.join(more)} beyond loading: "
                "what that computes would be lost in shards"
            )


def beyond_loading(names: Iterable[str]) -> list[str]:
    """Of the methods that a class defines, those that may compute something. A private one that
    `RoutedExperts` does not have only serves the class's other methods."""
    return sorted(
        name
        for name in names
        if name not in LOADING
        and not name.startswith("__")
        and (not name.startswith("_") or hasattr(RoutedExperts, name))
    )


def replace_all(mixed_in: type) -> None:
    """Put a class with `mixed_in` in vLLM's registry for every class of layers known by now.
    Idempotent.

    A platform plugin may have registered a class of its own, with its device's way to compute: that
    one is derived from.
    """
    for original in list(classes_of_layers()):
        found = op_registry_oot.get(original.__name__, original)
        registered = found.__dict__.get("replaces", found)
        if found.__dict__.get("mixed_in") is not mixed_in:
            op_registry_oot[original.__name__] = derived(original, registered, mixed_in)


@contextmanager
def replaced(mixed_in: type) -> Iterator[None]:
    """`replace_all` for a while."""
    before = dict(op_registry_oot)
    replace_all(mixed_in)
    try:
        yield
    finally:
        op_registry_oot.clear()
        op_registry_oot.update(before)


def derived(original: type, registered: type, mixed_in: type) -> type:
    """`registered` with `mixed_in` before it; one that cannot be built where `check_known` refuses
    `original`, as a model's module may define classes that the model does not use."""
    members: dict[str, Any] = {
        "of_expertmesh": True, "mixed_in": mixed_in, "replaces": registered
    }  # fmt: skip
    if (problem := _problem(original)) is not None:

        def refuse(*_: Any, **__: Any) -> None:
            raise UnknownLayer(problem)

        members["__init__"] = refuse
    bases = (mixed_in,) if issubclass(mixed_in, registered) else (mixed_in, registered)
    return type(f"{mixed_in.__name__}{original.__name__}", bases, members)


def _problem(original: type) -> str | None:
    try:
        check_known(original)
    except UnknownLayer as unknown:
        return str(unknown)
    return None


def held_layers(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, Any]]:
    """(parent, name in it, layer) of all layers of routed experts."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Held):
                yield parent, name, child
