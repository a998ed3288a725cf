"""Random lengths of requests, and what an engine that is always full sees of them.

A slot of a batch is given to the next request as soon as one ends, so a step finds it at a random
point of a request, long ones more often than short ones: the mean over steps is a sum over a
request divided by its mean number of steps (renewal-reward, as in arXiv 2601.21351).
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from placement.types import FloatArray

POINTS = 200
"""Quantiles that stand for a continuous distribution."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of equally likely requests: prompt [R] and output [R], each at least 1. Where both
    have been drawn apart, every prompt is combined with every output."""

    prompt: FloatArray
    output: FloatArray

    def __post_init__(self) -> None:
        if self.prompt.shape != self.output.shape or self.prompt.ndim != 1 or not self.prompt.size:
            raise ValueError("lengths need as many prompts as outputs, one or more")
        if min(self.prompt.min(), self.output.min()) < 1:
            raise ValueError("a prompt and an output have one token or more")


def recorded(prompt: ArrayLike, output: ArrayLike) -> Lengths:
    """Of requests that were seen: prompt [R] and output [R] of the same ones."""
    return Lengths(np.asarray(prompt, np.float64), np.asarray(output, np.float64))


def independent(prompt: FloatArray, output: FloatArray) -> Lengths:
    """Every prompt with every output."""
    return Lengths(np.repeat(prompt, len(output)), np.tile(output, len(prompt)))


def fixed(tokens: float) -> FloatArray:
    return np.array([float(tokens)])


def lognormal(mean: float, spread: float) -> FloatArray:
    """Quantiles, whole tokens. spread: standard deviation of the logarithm."""
    normal = np.array([NormalDist().inv_cdf((n + 0.5) / POINTS) for n in range(POINTS)])
    drawn = np.exp(spread * normal)
    return _whole(drawn * mean / drawn.mean())


def geometric(mean: float) -> FloatArray:
    """Quantiles: every further token is the last one with the same chance."""
    if mean <= 1:
        return fixed(1)
    middles = (np.arange(POINTS) + 0.5) / POINTS
    drawn = np.log1p(-middles) / np.log1p(-1.0 / mean)
    return _whole(drawn * mean / drawn.mean())


def _whole(tokens: FloatArray) -> FloatArray:
    return np.maximum(1.0, np.rint(tokens))


@dataclass(frozen=True, slots=True)
class SlotLoad:
    """What a slot of a full batch asks of a step, in the mean.

    steps: of a request, from its prompt to its last token. prompt_steps: of those, steps that read
    its prompt. prompt_rows: tokens of such a step. context: tokens that a decoding row attends to.
    output: tokens of a request.
    """

    steps: float
    prompt_steps: float
    prompt_rows: float
    context: float
    output: float

    @property
    def prompt_chance(self) -> float:
        """Part of a slot's steps that read a prompt."""
        return self.prompt_steps / self.steps


def slot_load(lengths: Lengths, chunk: float) -> SlotLoad:
    """chunk: most prompt tokens of one request in a step. The step that reads the end of a prompt
    gives the first token; token j of the others attends to the prompt and j before it."""
    prompt, output = lengths.prompt, lengths.output
    prompt_steps = np.ceil(prompt / chunk)
    attended = (output - 1) * prompt + output * (output - 1) / 2
    decoding = float((output - 1).mean())
    return SlotLoad(
        steps=float(prompt_steps.mean()) + decoding,
        prompt_steps=float(prompt_steps.mean()),
        prompt_rows=float(prompt.mean() / prompt_steps.mean()),
        context=float(attended.mean()) / decoding if decoding else 0.0,
        output=float(output.mean()),
    )
