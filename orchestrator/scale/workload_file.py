"""A workload and what serves it: what `expertmesh plan --workload FILE` reads."""

from math import ceil
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from actors.experts.families import read_expert_spec
from orchestrator.config.fields import BASE_DIR, ByteSize, ConfigPath, Count, PositiveFloat, Section
from orchestrator.errors import UserError
from orchestrator.scale.models import MODELS
from placement.cost_model import DeviceCost
from placement.types import FloatArray
from placement.workload import lengths
from placement.workload.ratio import Choice, Wanted
from placement.workload.service import EngineCost, ExpertSide, LinkCost

Part = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
MICRO, NANO = 1e-6, 1e-9
BITS = 8


class Shape(Section):
    """Shapes of the model's routed experts: from a checkpoint, by name, or as given."""

    path: ConfigPath | None = None
    """A checkpoint; relative to this file."""
    name: str | None = None
    """One of those known by size: `v4-flash` or `v4-pro`."""
    weights: str = "fp4"
    """Format of a known model's experts."""
    layers: Count | None = None
    """MoE layers."""
    experts: Count | None = None
    """Routed experts of a layer."""
    top_k: Count | None = None
    hidden: Count | None = None
    expert_bytes: ByteSize | None = None

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        given = [self.layers, self.experts, self.top_k, self.hidden, self.expert_bytes]
        if sum((self.path is not None, self.name is not None, given != [None] * 5)) != 1:
            raise ValueError("give path, or name, or layers, experts, top_k, hidden, expert_bytes")
        if self.path is None and self.name is None and None in given:
            raise ValueError("layers, experts, top_k, hidden and expert_bytes belong together")
        if self.name is not None and self.name not in MODELS:
            raise ValueError(f"no model {self.name} is known, only {' and '.join(MODELS)}")
        if self.name is not None and self.weights not in MODELS[self.name].expert_bytes:
            raise ValueError(f"{self.name} is not known in {self.weights}")
        if self.top_k and self.experts and self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than experts {self.experts}")
        return self


class Tokens(Section):
    """A distribution of lengths in tokens."""

    kind: Literal["fixed", "lognormal", "geometric", "values"] = "fixed"
    """`values`: as recorded, request by request."""
    mean: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    spread: NotNegative = 0.8
    """Of `lognormal`: standard deviation of the logarithm."""
    values: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "values" and not self.values:
            raise ValueError("give values")
        if self.kind != "values" and (self.mean is None or self.values):
            raise ValueError(f"{self.kind} lengths have a mean and no values")
        return self

    def drawn(self) -> FloatArray:
        """Equally likely lengths."""
        mean = self.mean or 1.0
        if self.kind == "lognormal":
            return lengths.lognormal(mean, self.spread)
        if self.kind == "geometric":
            return lengths.geometric(mean)
        return lengths.fixed(mean) if self.kind == "fixed" else np.array(self.values, np.float64)


class Requests(Section):
    """Lengths of what is asked. Where both are `values` of as many requests, they belong together;
    else every prompt is as likely with every output."""

    prompt_tokens: Tokens
    output_tokens: Tokens

    def lengths(self) -> lengths.Lengths:
        prompt, output = self.prompt_tokens, self.output_tokens
        if prompt.kind == output.kind == "values" and len(prompt.values) == len(output.values):
            return lengths.recorded(prompt.values, output.values)
        return lengths.independent(prompt.drawn(), output.drawn())


class EngineSide(Section):
    """An engine's step without its experts, as measured (`python -m benchmarks.workload`)."""

    step_us: NotNegative
    """Constant."""
    row_us: NotNegative
    """For each request that decodes."""
    prompt_row_us: NotNegative
    """For each token of a prompt."""
    context_ns: NotNegative = 0.0
    """For each token of context, of each request that decodes."""
    batches: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Requests at once, to choose from; what the KV cache has room for."""
    step_tokens: Count = 2048
    """Most rows of a step: vLLM's `max_num_batched_tokens`."""
    most: Count = 8
    """Engines that may be had."""
    price_per_hour: PositiveFloat | None = None


class ShardSide(Section):
    """A shard's calls, as calibrated when it starts, and its memory."""

    call_us: NotNegative
    read_us: NotNegative
    """For each distinct expert of a call."""
    row_us: PositiveFloat
    """For each assignment."""
    memory: ByteSize
    """For expert weights."""
    balancedness: Part = 1.0
    """Of the placement, as `expertmesh plan` predicts it."""
    most: Count = 16
    """Shards that may be had."""
    price_per_hour: PositiveFloat | None = None


class Links(Section):
    """Between engines and shards."""

    round_trip_us: NotNegative = 0.0
    """Of a small call, where the engine's step does not have it already."""
    engine_gbit_per_s: PositiveFloat | None = None
    """Of an engine's connection; unset: rows cost nothing to carry."""
    shard_gbit_per_s: PositiveFloat | None = None
    """Of a shard's connection, each way."""


class Targets(Section):
    """What has to be reached; without a throughput, tokens as cheap as can be."""

    tokens_per_s: PositiveFloat | None = None
    """Generated by all engines."""
    inter_token_ms: PositiveFloat | None = None
    """Time from token to token that 95 % of steps keep to."""


class PaperWorkload(Section):
    """The whole file."""

    name: str
    model: Shape
    requests: Requests
    engine: EngineSide
    shard: ShardSide
    links: Links = Links()
    targets: Targets = Targets()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.engine.price_per_hour is None) != (self.shard.price_per_hour is None):
            raise ValueError("engine.price_per_hour and shard.price_per_hour belong together")
        if self.engine.step_tokens <= max(self.engine.batches):
            raise ValueError(
                f"engine.step_tokens {self.engine.step_tokens} leaves no room for prompts beside "
                f"engine.batches {max(self.engine.batches)}"
            )
        return self


def read_workload(path: Path) -> PaperWorkload:
    """Raises UserError, one line, where the file cannot be read or does not fit."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PaperWorkload.model_validate(content, context={BASE_DIR: path.resolve().parent})
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"workload file {path} cannot be read", str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {key}: {message}", "see examples/workloads/") from error


def costs_of(workload: PaperWorkload) -> tuple[EngineCost, ExpertSide, Choice, Wanted]:
    """What the planner takes.

    Raises:
        UserError: the checkpoint has no experts; or they need more shards than may be had.
    """
    engine, shard, links = workload.engine, workload.shard, workload.links
    layers, experts, top_k, hidden, expert_bytes = shape_of(workload.model)
    slots = shard.memory // expert_bytes
    least = ceil(layers * experts / slots) if slots else shard.most + 1
    if least > shard.most:
        raise UserError(
            f"the model's experts take {layers * experts * expert_bytes / 1e9:.1f} GB and "
            f"{shard.most} shards have memory for {shard.most * slots * expert_bytes / 1e9:.1f} GB",
            "raise shard.most or shard.memory",
        )
    cost = DeviceCost(shard.call_us * MICRO, shard.read_us * MICRO, shard.row_us * MICRO)
    return (
        EngineCost(
            engine.step_us * MICRO, engine.row_us * MICRO, engine.prompt_row_us * MICRO,
            engine.context_ns * NANO,
        ),
        ExpertSide(
            layers, experts, top_k, hidden, cost,
            LinkCost(
                links.round_trip_us * MICRO, _bytes_per_s(links.engine_gbit_per_s),
                _bytes_per_s(links.shard_gbit_per_s),
            ),
            shard.balancedness,
        ),
        Choice(
            engine.batches, engine.most, least, min(shard.most, experts), engine.step_tokens,
            engine.price_per_hour or 1.0, shard.price_per_hour or 1.0,
        ),
        Wanted(
            workload.targets.tokens_per_s,
            workload.targets.inter_token_ms and workload.targets.inter_token_ms / 1e3,
        ),
    )  # fmt: skip


def shape_of(model: Shape) -> tuple[int, int, int, int, int]:
    """(layers, experts, top_k, hidden, bytes of an expert)."""
    if model.path is not None:
        try:
            spec = read_expert_spec(model.path)
        except (OSError, ValueError) as error:
            raise UserError(f"model.path: {error}") from error
        return (
            len(spec.layers), spec.num_experts, spec.top_k, spec.hidden_size, spec.bytes_per_expert
        )  # fmt: skip
    if model.name is not None:
        known = MODELS[model.name]
        each = known.expert_bytes[model.weights]
        return known.layers, known.experts, known.top_k, known.hidden, each
    given = (model.layers, model.experts, model.top_k, model.hidden, model.expert_bytes)
    layers, experts, top_k, hidden, expert_bytes = (value or 0 for value in given)
    return layers, experts, top_k, hidden, expert_bytes


def _bytes_per_s(gbit_per_s: float | None) -> float:
    return float("inf") if gbit_per_s is None else gbit_per_s * 1e9 / BITS
