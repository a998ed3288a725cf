"""Assignments of experts by kind of traffic and content, counted in some of an engine's steps.

The scheduler draws the steps, as it knows the requests: which kind each is, and which of a step's
tokens stand for an image. That goes with the step to the workers, which know in which order their
rows are. There each layer's choice of experts is counted while the rows are away. A step is drawn
with one chance in N and counts N times, so that long and short ones count as they come; N follows
the pace of the steps, and about `STEPS_PER_S` are counted whatever the model takes. Other steps
cost a comparison.

Layers of a draft model run outside of the step and are not counted here.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from actors.dispatch.traffic_counts import TEXT, TrafficCounts, TrafficKey
from actors.traffic import DEFAULT, is_kind

STEPS_PER_S = 5
"""Steps counted in a second."""
PACE_S = 1.0
"""How often N is set anew."""

TRAFFIC_KIND = "expertmesh_traffic"
"""Key in `SamplingParams.extra_args`: the request's kind, where it is not `DEFAULT`."""

_ATTRIBUTE = "expertmesh_traffic"
"""Of vLLM's `SchedulerOutput`, where the step is counted."""

Run = tuple[int, int]
"""So many rows, one after the other, that count for the key of this number."""


class Asked(Protocol):
    """What of vLLM's `Request` counts here."""

    sampling_params: Any
    num_computed_tokens: int
    """With those of the step that was scheduled last."""
    num_prompt_tokens: int

    @property
    def mm_features(self) -> Iterable[Any]: ...


@dataclass(frozen=True, slots=True)
class StepTraffic:
    """weight: steps that this one stands for. runs: of each request, by its id."""

    weight: int
    keys: tuple[TrafficKey, ...]
    runs: Mapping[str, tuple[Run, ...]]


class TrafficSampler:
    """The scheduler's half."""

    def __init__(self, draw: random.Random, now_s: float) -> None:
        self._draw = draw
        self._one_in = 1
        self._steps = 0
        self._since_s = now_s

    def mark(self, step: Any, requests: Mapping[str, Asked], now_s: float) -> None:
        """Decide about a step (vLLM's `SchedulerOutput`)."""
        if not step.total_num_scheduled_tokens:
            return
        self._steps += 1
        passed_s = now_s - self._since_s
        if passed_s >= PACE_S:
            self._one_in = max(1, round(self._steps / passed_s / STEPS_PER_S))
            self._steps, self._since_s = 0, now_s
        if self._one_in == 1 or self._draw.random() * self._one_in < 1:
            traffic = traffic_of_step(step.num_scheduled_tokens, requests, self._one_in)
            setattr(step, _ATTRIBUTE, traffic)


def traffic_of_step(
    scheduled: Mapping[str, int], requests: Mapping[str, Asked], weight: int
) -> StepTraffic:
    numbers: dict[TrafficKey, int] = {}

    def number(key: TrafficKey) -> int:
        return numbers.setdefault(key, len(numbers))

    runs: dict[str, tuple[Run, ...]] = {}
    for id, tokens in scheduled.items():
        request = requests[id]
        kind = kind_of(request.sampling_params)
        last = request.num_computed_tokens
        if not request.mm_features or last - tokens >= request.num_prompt_tokens:
            runs[id] = ((tokens, number(TrafficKey(kind))),)
            continue
        found = contents_between(request.mm_features, last - tokens, last)
        runs[id] = tuple((count, number(TrafficKey(kind, of))) for count, of in found)
    return StepTraffic(weight, tuple(numbers), runs)


def kind_of(params: Any) -> str:
    extra = getattr(params, "extra_args", None) or {}
    kind = extra.get(TRAFFIC_KIND, DEFAULT)
    return kind if isinstance(kind, str) and is_kind(kind) else DEFAULT


def contents_between(features: Iterable[Any], first: int, last: int) -> Iterator[tuple[int, str]]:
    """(tokens, content) of a prompt's positions `first` to `last - 1`, in their order. features:
    vLLM's, of which each has a modality and the positions of its tokens in the prompt."""
    at = first
    for offset, after, content in _placed(features):
        begin, end = max(offset, at), min(after, last)
        if begin >= end:
            continue
        if begin > at:
            yield begin - at, TEXT
        yield end - begin, content
        at = end
    if at < last:
        yield last - at, TEXT


def _placed(features: Iterable[Any]) -> list[tuple[int, int, str]]:
    """(first, last + 1, content). A feature's own separators are text."""
    return sorted(
        (begin, end + 1, feature.modality)
        for feature in features
        for begin, end in feature.mm_position.extract_embeds_range()
    )


class StepCount:
    """One step of a worker. order: of the rows' requests, asked for when the first layer runs."""

    def __init__(
        self, traffic: StepTraffic, counts: TrafficCounts, order: Callable[[], Iterable[str]]
    ) -> None:
        self._traffic, self._counts, self._order = traffic, counts, order
        self._places = counts.num_experts + 1
        """Of a key: the first is for what is below 0, the others for the experts."""
        found = (len(counts.layers), len(traffic.keys) * self._places)
        self._found = np.zeros(found, np.int32)
        self._tokens = np.zeros(len(traffic.keys), np.int64)
        self._first_place: npt.NDArray[np.int64] | None = None
        """[T, 1] of each row that of its key; those of padding have that after the last key's."""

    def layer(self, layer: int, ids: npt.NDArray[np.int32], first: int, rows: int) -> None:
        """ids: [t, K], of the rows from `first` on out of `rows`; -1: nothing to compute."""
        if self._first_place is None:
            self._first_place = self._begin(first, len(ids), rows)
        row = self._counts.row_of.get(layer)
        if row is None or len(self._first_place) != len(ids):
            return  # of a draft model, which has other rows
        size = self._found.shape[1]
        places = (self._first_place + ids).ravel()
        self._found[row] = np.bincount(places, minlength=size)[:size]

    def _begin(self, first: int, mine: int, rows: int) -> npt.NDArray[np.int64]:
        """`_first_place`; counts the rows, too."""
        keys = keys_of_rows(self._traffic, self._order(), rows)[first : first + mine]
        known = len(self._tokens)
        self._tokens += np.bincount(keys, minlength=known)[:known]
        return (keys * self._places + 1)[:, None]

    def add(self) -> None:
        """The step is over: what was counted is to be told."""
        if not self._tokens.any():
            return
        if self._traffic.weight > 1:
            self._tokens *= self._traffic.weight
            self._found *= self._traffic.weight
        by_key = self._found.reshape(len(self._found), -1, self._places)[:, :, 1:]
        self._counts.add(self._traffic.keys, self._tokens, by_key.swapaxes(0, 1))


def keys_of_rows(traffic: StepTraffic, order: Iterable[str], rows: int) -> npt.NDArray[np.int64]:
    """[rows]. More rows than requests have are padding; with fewer, nothing is known of any."""
    known = len(traffic.keys)
    runs = [run for id in order for run in traffic.runs.get(id, ())]
    counted, numbers = [run[0] for run in runs], [run[1] for run in runs]
    missing = rows - sum(counted)
    if missing < 0:
        return np.full(rows, known, np.int64)
    return np.repeat(np.array([*numbers, known], np.int64), [*counted, missing])


current: StepCount | None = None
"""Of the step that this worker runs; None: it is not counted."""


def count_traffic(runner: Any, counts: TrafficCounts) -> None:
    """Count the marked steps that a worker's model runner is given from now on."""
    run, order = runner.execute_model, row_order(runner)

    def execute_model(step: Any, *arguments: Any, **named: Any) -> Any:
        traffic: StepTraffic | None = getattr(step, _ATTRIBUTE, None)
        if traffic is None:
            return run(step, *arguments, **named)
        global current  # noqa: PLW0603 - vLLM runs a model in one thread
        current = count = StepCount(traffic, counts, order)
        try:
            output = run(step, *arguments, **named)
            count.add()
            return output
        finally:
            current = None

    runner.execute_model = execute_model


def row_order(runner: Any) -> Callable[[], Iterable[str]]:
    """Ids of the requests in the order of their rows, in the step that runs."""
    if hasattr(runner, "input_batch"):
        return lambda: runner.input_batch.req_ids
    # vLLM's second model runner makes a batch for each step.
    prepare, order = runner.prepare_inputs, list[str]()

    def prepare_inputs(*arguments: Any, **named: Any) -> Any:
        batch = prepare(*arguments, **named)
        order[:] = batch.req_ids
        return batch

    runner.prepare_inputs = prepare_inputs
    return lambda: order
