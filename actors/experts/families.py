"""Models that our own code reads, and how each is read: one table entry per family.

Every other Mixture-of-Experts model is read by vLLM's own loader (`catalog`), which takes seconds
to find out what an entry here says; a shard then imports vLLM. Adding a family is adding an entry
to `FAMILIES`: the config keys it uses, which of its layers have routed experts, its activation, and
the tensor layouts its checkpoints come in. A layout is found by looking for its first tensor, so
one family may be stored in several ways (per expert as released, fused [E, ...] as newer
transformers hold them).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.experts.catalog import DryRun, ExpertCatalog, read_catalog
from actors.experts.formats.base import NumberFormat
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.table import FormatRefused, choose_format
from actors.experts.formats.vllm_own import VllmOwn
from actors.experts.headers import TensorIndex, read_json, read_tensor_index
from actors.experts.layouts import Layout, Part
from actors.experts.refusal import ModelRefused
from actors.experts.spec import Activation, ExpertSpec, GateActivation

Config = Mapping[str, Any]

MODELOPT_FILE = "hf_quant_config.json"

PROJ = ((Part.GATE, "gate_proj"), (Part.UP, "up_proj"), (Part.DOWN, "down_proj"))
W123 = ((Part.GATE, "w1"), (Part.UP, "w3"), (Part.DOWN, "w2"))
FUSED = ((Part.GATE_UP, "gate_up_proj"), (Part.DOWN, "down_proj"))

MLP_PROJ = Layout("model.layers.{layer}.mlp.experts", PROJ, scale_suffix=".weight_scale_inv")
MLP_FUSED = Layout(
    "model.layers.{layer}.mlp.experts",
    FUSED,
    fused=True,
    weight_suffix="",
    scale_suffix="_scale_inv",
)


def _every_layer(config: Config) -> list[int]:
    return list(range(config["num_hidden_layers"]))


def _qwen3_layers(config: Config) -> list[int]:
    step = config.get("decoder_sparse_step", 1)
    dense = set(config.get("mlp_only_layers") or [])
    return [n for n in _every_layer(config) if n not in dense and (n + 1) % step == 0]


def _deepseek_v3_layers(config: Config) -> list[int]:
    first = config.get("first_k_dense_replace", 0)
    step = config.get("moe_layer_freq", 1)
    return [n for n in _every_layer(config) if n >= first and n % step == 0]


def _silu(_: Config) -> Activation:
    return Activation()


def _clamped_silu(config: Config) -> Activation:
    limit = config.get("swiglu_limit")
    return Activation(limit=float(limit) if limit else None)


def _swiglu_oai(config: Config) -> Activation:
    return Activation(
        GateActivation.SWIGLU_OAI,
        limit=float(config.get("swiglu_limit", 7.0)),
        alpha=float(config.get("swiglu_alpha", 1.702)),
    )


@dataclass(frozen=True, slots=True)
class Family:
    """How one architecture is read. `*_keys` are config.json entries; the first present counts.

    predictors_key: how many layers of multi-token prediction follow the others, under the same
    names; None: the experts of such layers are not read.
    """

    experts_keys: tuple[str, ...]
    intermediate_keys: tuple[str, ...]
    layers: Callable[[Config], list[int]]
    activation: Callable[[Config], Activation]
    layouts: tuple[Layout, ...]
    has_bias: bool = False
    predictors_key: str | None = None
    top_k_keys: tuple[str, ...] = ("num_experts_per_tok",)


FAMILIES: Mapping[str, Family] = {
    "Qwen3MoeForCausalLM": Family(
        experts_keys=("num_experts", "num_local_experts"),
        intermediate_keys=("moe_intermediate_size",),
        layers=_qwen3_layers,
        activation=_silu,
        layouts=(MLP_PROJ, MLP_FUSED),
    ),
    "MixtralForCausalLM": Family(
        experts_keys=("num_local_experts",),
        intermediate_keys=("intermediate_size",),
        layers=_every_layer,
        activation=_silu,
        layouts=(
            Layout(
                "model.layers.{layer}.block_sparse_moe.experts",
                W123,
                scale_suffix=".weight_scale_inv",
            ),
            MLP_FUSED,
        ),
    ),
    "DeepseekV3ForCausalLM": Family(
        experts_keys=("n_routed_experts",),
        intermediate_keys=("moe_intermediate_size",),
        layers=_deepseek_v3_layers,
        activation=_silu,
        predictors_key="num_nextn_predict_layers",
        layouts=(MLP_PROJ, MLP_FUSED),
    ),
    "DeepseekV4ForCausalLM": Family(
        experts_keys=("n_routed_experts",),
        intermediate_keys=("moe_intermediate_size",),
        layers=_every_layer,
        activation=_clamped_silu,
        layouts=(
            Layout("layers.{layer}.ffn.experts", W123),
            Layout("model.layers.{layer}.ffn.experts", W123),
            MLP_FUSED,
        ),
    ),
    "GptOssForCausalLM": Family(
        experts_keys=("num_local_experts",),
        intermediate_keys=("intermediate_size",),
        layers=_every_layer,
        activation=_swiglu_oai,
        has_bias=True,
        layouts=(
            Layout(
                "model.layers.{layer}.mlp.experts",
                FUSED,
                fused=True,
                interleaved=True,
                transposed=True,
                weight_suffix="",
            ),
            Layout(
                "model.layers.{layer}.mlp.experts",
                FUSED,
                fused=True,
                interleaved=True,
                block_layout=True,
                weight_suffix="_blocks",
                scale_suffix="_scales",
            ),
        ),
    ),
}


def read_expert_spec(
    model_path: Path,
    *,
    predictors: bool = False,
    trust_remote_code: bool = False,
    dry_run: DryRun | None = None,
) -> ExpertSpec:
    """The routed experts of the checkpoint in `model_path`, from config.json and file headers.

    Where our families and formats do not read it, what vLLM's loader says, see `read_catalog`.
    predictors: with those of the layers of multi-token prediction, which engines draft with.
    ModelRefused, in one line, for a model that cannot be served.
    """
    config = _read_config(model_path)
    architecture = (config.get("architectures") or ["none"])[0]
    if not names_experts(config):
        raise ModelRefused(_dense(model_path, architecture))
    if predictors:
        _check_predictors(model_path, config, architecture)
    own: ModelRefused | None = None
    if architecture in FAMILIES:
        try:
            return _spec_of_family(model_path, config, architecture, predictors)
        except ModelRefused as refused:
            if not config.get("quantization_config"):
                raise
            own = refused
    read_tensor_index(model_path)  # refuses broken files, in less time than vLLM takes to start
    try:
        catalog = read_catalog(model_path, trust_remote_code=trust_remote_code, dry_run=dry_run)
    except ModelRefused as by_vllm:
        raise (by_vllm if own is None else ModelRefused(f"{own}; and {by_vllm}")) from None
    return spec_of_catalog(model_path, catalog)


def _read_config(model_path: Path) -> Config:
    """config.json, with its quantisation where modelopt up to 0.29 wrote that in a file of its
    own."""
    config = read_json(model_path / "config.json")
    apart = model_path / MODELOPT_FILE
    if config.get("quantization_config") is None and apart.exists():
        quantisation = read_json(apart)
        method = (quantisation.get("producer") or {}).get("name")
        config["quantization_config"] = {"quant_method": method} | quantisation
    return config


def _check_predictors(model_path: Path, config: Config, architecture: str) -> None:
    """ModelRefused unless there are layers of multi-token prediction whose experts are read."""
    key = FAMILIES[architecture].predictors_key if architecture in FAMILIES else None
    if key is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.predictors_key)
        raise ModelRefused(
            f"{model_path}: shards do not serve the multi-token prediction of {architecture}, only "
            f"of {known}: leave engines.vllm.speculative_config out, or use its method ngram"
        )
    if not config.get(key):
        raise ModelRefused(
            f"{model_path}/config.json: {key} is {config.get(key)}, so there is no multi-token "
            "prediction to draft with: leave engines.vllm.speculative_config out"
        )


def _spec_of_family(
    model_path: Path, config: Config, architecture: str, predictors: bool
) -> ExpertSpec:
    family = FAMILIES[architecture]
    layers = tuple(family.layers(config))
    drafting = int(config[family.predictors_key]) if predictors and family.predictors_key else 0
    after = int(config["num_hidden_layers"]) if drafting else 0
    num_experts = _positive(model_path, config, family.experts_keys)
    if not layers:
        raise ModelRefused(_dense(model_path, architecture))
    index = read_tensor_index(model_path)
    layout = find_layout(architecture, layers[0], index)
    return ExpertSpec(
        architecture=architecture,
        model_path=model_path,
        layers=(*layers, *range(after, after + drafting)),
        predictors=drafting,
        num_experts=num_experts,
        top_k=_positive(model_path, config, family.top_k_keys),
        hidden_size=_positive(model_path, config, ("hidden_size",)),
        intermediate_size=_positive(model_path, config, family.intermediate_keys),
        weight_format=_weight_format(
            model_path, config, index, next(filter(index.__contains__, layout.probes(layers[0])))
        ),
        activation=family.activation(config),
        has_bias=family.has_bias,
    )


def spec_of_catalog(model_path: Path, catalog: ExpertCatalog) -> ExpertSpec:
    """What a catalog says of a checkpoint."""
    first = catalog.layers[0]
    weight_format: NumberFormat = BF16 if catalog.plain else VllmOwn(catalog.method)
    return ExpertSpec(
        architecture=catalog.architecture,
        model_path=model_path,
        layers=tuple(layer.layer for layer in catalog.layers),
        num_experts=first.experts,
        top_k=max(layer.top_k for layer in catalog.layers),
        hidden_size=first.hidden,
        intermediate_size=max(layer.intermediate for layer in catalog.layers),
        weight_format=weight_format,
        activation=Activation(),
        catalog=catalog,
        expert_bytes=max(layer.bytes_per_expert for layer in catalog.layers),
    )


def find_layout(architecture: str, layer: int, index: TensorIndex) -> Layout:
    """The layout whose probe tensor the checkpoint has in `layer`."""
    layouts = FAMILIES[architecture].layouts
    for layout in layouts:
        if any(probe in index for probe in layout.probes(layer)):
            return layout
    known = " or ".join(layout.probes(layer)[0] for layout in layouts)
    raise ModelRefused(
        f"{index.model_path} has no tensor {known}: not a complete {architecture} checkpoint"
    )


def names_experts(config: Config) -> bool:
    """Whether config.json, or a part of it such as `text_config`, counts experts; in some way, as
    models that we have no entry for have names of their own."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "quantization_config" and names_experts(value):
            return True
        if ("expert" in key or "moe" in key) and value:
            return True
    return False


def _dense(model_path: Path, architecture: str) -> str:
    return (
        f"{model_path}: {architecture} has no routed experts; "
        "serve a dense model with plain vLLM instead"
    )


def _positive(model_path: Path, config: Config, keys: tuple[str, ...]) -> int:
    key = next((key for key in keys if key in config), keys[0])
    value = config.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ModelRefused(f"{model_path}/config.json: {key} is {value!r}, not a positive number")
    return value


def _weight_format(model_path: Path, config: Config, index: TensorIndex, name: str) -> NumberFormat:
    quantisation = config.get("quantization_config") or {}
    found = index.find(name)
    try:
        return choose_format(quantisation, found.dtype)
    except FormatRefused as refused:
        raise ModelRefused(f"{model_path}: {refused} ({name} in {found.file.name})") from None
