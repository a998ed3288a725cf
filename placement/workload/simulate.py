"""The pipeline of `pipeline`, played call by call: engines, queues at shards, random lengths.

Engines keep `batch` requests under way, each of random lengths; their calls go to every shard at
once and wait there for earlier ones. How many of its experts a call asks a shard for is drawn. What
a shard would merge it computes apart, as in `pipeline`.
"""

from dataclasses import dataclass, replace
from heapq import heapify, heapreplace

import numpy as np

from placement.types import FloatArray
from placement.workload.lengths import Lengths
from placement.workload.pipeline import Pipeline
from placement.workload.service import EngineCost, ExpertSide

WARM_PART = 0.3
"""Of the steps of each engine, left out of the figure."""
LAYERS = 8
"""Layers of a step that are played; the model's others go as these do."""


def simulated_tokens_per_s(given: Pipeline, steps: int = 200, seed: int = 0) -> float:
    """Tokens a second of all engines, over `steps` steps of the first."""
    rng = np.random.default_rng(seed)
    engine, side, shards = given.engine, given.side, given.shards
    players = [Engine(given.lengths, given.batch, given.chunk, rng) for _ in range(given.engines)]
    free_s = np.zeros(shards)
    called = [(0.0, number) for number in range(given.engines)]
    heapify(called)
    warm = int(WARM_PART * steps)
    made, began_s = 0.0, 0.0
    begun = 0
    while True:
        now_s, number = called[0]
        player = players[number]
        if player.layers_left == 0:
            if number == 0:  # from a step of one engine to another of the same: whole rounds
                begun += 1
                if begun == warm:
                    made, began_s = 0.0, now_s
                if begun == steps:
                    return made / (now_s - began_s) * played_layers(side) / side.layers
            made += player.begin_step(engine, side)
            heapreplace(called, (now_s + player.engine_s, number))
            continue
        player.layers_left -= 1
        taken_s = shard_seconds(side, player.rows, shards, rng)
        link_s = player.link_s(side, shards)
        free_s = np.maximum(free_s, now_s) + taken_s
        after = player.engine_s if player.layers_left else 0.0
        heapreplace(called, (float(free_s.max()) + link_s + after, number))


def played_layers(side: ExpertSide) -> int:
    return min(LAYERS, side.layers)


@dataclass(slots=True)
class _Request:
    prompt_left: float
    output_left: float
    context: float


class Engine:
    """Requests of one engine. rows: of the step under way; engine_s: of a layer, without experts;
    layers_left: of the step."""

    def __init__(self, lengths: Lengths, batch: int, chunk: int, rng: np.random.Generator) -> None:
        self.rows = 0.0
        self.engine_s = 0.0
        self.layers_left = 0
        self._lengths, self._chunk, self._rng = lengths, chunk, rng
        self._slots = [self._partly(self._next()) for _ in range(batch)]

    def begin_step(self, engine: EngineCost, side: ExpertSide) -> float:
        """Tokens that the step will have generated."""
        decoding = [request for request in self._slots if request.prompt_left == 0]
        context = sum(request.context for request in decoding) / max(len(decoding), 1)
        prompt_rows, made = 0.0, 0.0
        for number, request in enumerate(self._slots):
            if request.prompt_left:
                read = min(request.prompt_left, self._chunk - prompt_rows)
                prompt_rows += read
                request.prompt_left -= read
                request.context += read
            if not request.prompt_left:
                made += 1
                request.output_left -= 1
                request.context += 1
                if request.output_left <= 0:
                    self._slots[number] = self._next()
        self.rows = len(decoding) + prompt_rows
        self.engine_s = engine.seconds(len(decoding), prompt_rows, context) / side.layers
        self.layers_left = played_layers(side)
        return made

    def link_s(self, side: ExpertSide, shards: int) -> float:
        return side.call(self.rows, shards).link_s

    def _next(self) -> _Request:
        drawn = self._rng.integers(len(self._lengths.prompt))
        prompt, output = self._lengths.prompt[drawn], self._lengths.output[drawn]
        return _Request(float(prompt), float(output), 0.0)

    def _partly(self, request: _Request) -> _Request:
        """Somewhere on its way, so that requests do not end all at once."""
        done = self._rng.uniform(0, request.output_left)
        if done < 1:
            return request
        return replace(
            request,
            prompt_left=0.0,
            output_left=max(1.0, request.output_left - float(int(done))),
            context=request.prompt_left + float(int(done)),
        )


def shard_seconds(
    side: ExpertSide, rows: float, shards: int, rng: np.random.Generator
) -> FloatArray:
    """[S]: each shard's time for one call of `rows` tokens. How many choose an expert is drawn for
    each by itself; shards hold one expert more or less where experts cannot be divided evenly."""
    of_expert = rng.binomial(int(rows), side.top_k / side.experts, side.experts)
    shard_of = np.arange(side.experts) * shards // side.experts
    assignments = np.bincount(shard_of, weights=of_expert, minlength=shards)
    read = np.bincount(shard_of, weights=of_expert > 0, minlength=shards)
    cost = side.cost
    return cost.call_s * (assignments > 0) + cost.read_s * read + cost.row_s * assignments
