"""Assignments by kind of traffic, from a step's requests to counts of experts."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dispatch.traffic_counts import TrafficCounts, TrafficKey
from actors.vllm_plugin import traffic_steps
from actors.vllm_plugin.traffic_steps import (
    STEPS_PER_S,
    TRAFFIC_KIND,
    StepCount,
    StepTraffic,
    TrafficSampler,
    contents_between,
    count_traffic,
    keys_of_rows,
    kind_of,
    traffic_of_step,
)

EXPERTS, TOP_K, LAYERS = 6, 2, (1, 4)
PROMPT = 8
CODE, CHAT, IMAGE = TrafficKey("code"), TrafficKey("chat"), TrafficKey("chat", "image")


def feature(first: int, last: int, modality: str = "image") -> Any:
    """One whose tokens are at these positions of the prompt, both included."""
    position = SimpleNamespace(extract_embeds_range=lambda: [(first, last)])
    return SimpleNamespace(modality=modality, mm_position=position)


def request(kind: Any = None, computed: int = 0, features: tuple[Any, ...] = ()) -> Any:
    args = None if kind is None else {TRAFFIC_KIND: kind}
    params = SimpleNamespace(extra_args=args)
    return SimpleNamespace(
        sampling_params=params,
        num_computed_tokens=computed,
        num_prompt_tokens=PROMPT,
        mm_features=features,
    )


def step_of(requests: dict[str, int]) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=requests, total_num_scheduled_tokens=sum(requests.values())
    )


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        (None, "default"),
        (SimpleNamespace(extra_args=None), "default"),
        (SimpleNamespace(extra_args={TRAFFIC_KIND: "code"}), "code"),
        (SimpleNamespace(extra_args={TRAFFIC_KIND: "no name"}), "default"),
        (SimpleNamespace(extra_args={TRAFFIC_KIND: 7}), "default"),
    ],
)
def test_the_kind_of_a_request(params: Any, kind: str) -> None:
    assert kind_of(params) == kind


def test_parts_of_a_prompt_that_are_pictures() -> None:
    features = [feature(8, 9, "video"), feature(2, 4)]
    assert list(contents_between(features, 0, 12)) == [
        (2, "text"), (3, "image"), (3, "text"), (2, "video"), (2, "text"),
    ]  # fmt: skip
    assert list(contents_between(features, 3, 9)) == [(2, "image"), (3, "text"), (1, "video")]
    assert list(contents_between(features, 12, 13)) == [(1, "text")]


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=4)


@given(ranges, st.integers(0, 30), st.integers(0, 10))
def test_every_position_has_one_content(
    found: list[tuple[int, int]], first: int, tokens: int
) -> None:
    features = [feature(begin, begin + length) for begin, length in found]
    runs = list(contents_between(features, first, first + tokens))
    inside = {p for begin, length in found for p in range(begin, begin + length + 1)}
    expected = ["image" if p in inside else "text" for p in range(first, first + tokens)]
    assert [content for count, content in runs for _ in range(count)] == expected


def test_a_step_says_of_each_request_what_its_tokens_are() -> None:
    requests = {
        "a": request("code", 9),
        "b": request("chat", 6, (feature(4, 4),)),
        "c": request("code", 1),
    }
    traffic = traffic_of_step({"a": 1, "b": 3, "c": 1}, requests, 5)
    assert (traffic.weight, traffic.keys) == (5, (CODE, CHAT, IMAGE))
    assert traffic.runs == {"a": ((1, 0),), "b": ((1, 1), (1, 2), (1, 1)), "c": ((1, 0),)}


def test_answers_are_text() -> None:
    answering = {"a": request("chat", PROMPT + 1, (feature(0, PROMPT - 1),))}
    assert traffic_of_step({"a": 1}, answering, 1).keys == (CHAT,)
    assert traffic_of_step({"a": 2}, answering, 1).keys == (IMAGE, CHAT)


def test_rows_are_in_the_workers_order_and_the_rest_is_padding() -> None:
    traffic = StepTraffic(1, (CODE, CHAT), {"a": ((1, 0),), "b": ((2, 1), (1, 0))})
    assert keys_of_rows(traffic, ["b", "a"], 6).tolist() == [1, 1, 0, 0, 2, 2]
    assert keys_of_rows(traffic, ["b", "a"], 3).tolist() == [2, 2, 2], "no rows of these requests"


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_count_together_what_a_plain_count_gives(ranks: int) -> None:
    traffic = StepTraffic(3, (CODE, CHAT), {"a": ((2, 0),), "b": ((4, 1),)})
    rows, counts = 8, TrafficCounts(LAYERS, EXPERTS)
    draw = np.random.default_rng(7)
    ids = {n: draw.integers(-1, EXPERTS, (rows, TOP_K)).astype("i4") for n in LAYERS}
    for rank in range(ranks):
        step = StepCount(traffic, counts, lambda: ["b", "a"])
        first, last = rows * rank // ranks, rows * (rank + 1) // ranks
        for layer in LAYERS:
            step.layer(layer, ids[layer][first:last], first, rows)
        step.layer(99, ids[LAYERS[0]][first:last], first, rows)
        step.add()
    window = counts.take()
    assert window is not None
    assert dict(zip(window.keys, window.tokens, strict=True)) == {CODE: 6, CHAT: 12}
    of_row = [CHAT] * 4 + [CODE] * 2
    for number, key in enumerate(window.keys):
        for row, layer in enumerate(LAYERS):
            mine = [ids[layer][r] for r, of in enumerate(of_row) if of == key]
            plain = Counter(int(e) for r in mine for e in r if e >= 0)
            found = {e: int(n) for e, n in enumerate(window.counts[number, row]) if n}
            assert found == {expert: 3 * times for expert, times in plain.items()}


def test_about_so_many_steps_a_second_are_counted_and_stand_for_all() -> None:
    sampler, counted, stood_for = TrafficSampler(random.Random(3), 0.0), 0, 0
    steps, pace = 20_000, 400
    for n in range(steps):
        step = step_of({"a": 1})
        sampler.mark(step, {"a": request()}, n / pace)
        if traffic := getattr(step, "expertmesh_traffic", None):
            counted += 1
            stood_for += traffic.weight
    seconds = steps / pace
    # All of the first second's, and then a draw with a standard deviation of a twentieth.
    assert counted - pace == pytest.approx(STEPS_PER_S * (seconds - 1), rel=0.2)
    assert stood_for == pytest.approx(steps, rel=0.2)


def test_slow_steps_are_all_counted_and_empty_ones_never() -> None:
    sampler = TrafficSampler(random.Random(3), 0.0)
    for n in range(40):
        step, empty = step_of({"a": 1}), step_of({})
        sampler.mark(step, {"a": request()}, n / STEPS_PER_S)
        sampler.mark(empty, {}, n / STEPS_PER_S)
        assert step.expertmesh_traffic.weight == 1
        assert not hasattr(empty, "expertmesh_traffic")


class OneBatch:
    """vLLM's first model runner: one batch that goes on."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(req_ids=["b", "a"])

    def execute_model(self, step: Any, fail: bool = False) -> str:
        run_layers(fail)
        return "output"


class BatchOfStep:
    """Its second one: a batch for each step."""

    def prepare_inputs(self, step: Any) -> Any:
        return SimpleNamespace(req_ids=["b", "a"])

    def execute_model(self, step: Any, fail: bool = False) -> str:
        self.prepare_inputs(step)
        run_layers(fail)
        return "output"


def run_layers(fail: bool) -> None:
    if traffic_steps.current is not None:
        traffic_steps.current.layer(1, np.array([[0], [0], [5]], "i4"), 0, 3)
    if fail:
        raise RuntimeError("lost")


@pytest.mark.parametrize("kind", [OneBatch, BatchOfStep])
def test_marked_steps_are_counted_where_the_model_runs(kind: type) -> None:
    runner, counts = kind(), TrafficCounts(LAYERS, EXPERTS)
    count_traffic(runner, counts)
    step = step_of({"a": 1, "b": 2})
    assert runner.execute_model(step) == "output"
    assert counts.take() is None, "it was not marked"
    requests = {"a": request("code"), "b": request("chat")}
    TrafficSampler(random.Random(), 0.0).mark(step, requests, 0.0)
    with pytest.raises(RuntimeError, match="lost"):
        runner.execute_model(step, fail=True)
    assert (counts.take(), traffic_steps.current) == (None, None)
    assert runner.execute_model(step) == "output"
    window = counts.take()
    assert window is not None
    assert (window.keys, window.tokens.tolist()) == ((CHAT, CODE), [2, 1])
    assert window.counts[:, 0].tolist() == [[2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]


def test_what_vllm_says_of_a_picture_is_understood() -> None:
    inputs = pytest.importorskip("vllm.multimodal.inputs", reason="vLLM says where pictures are")
    torch = pytest.importorskip("torch")
    # Its tokens with a separator of their own in between, as Pixtral's rows have one.
    mask = torch.tensor([True, True, False, True, False])
    position = inputs.PlaceholderRange(offset=4, length=5, is_embed=mask)
    picture = SimpleNamespace(modality="image", mm_position=position)
    found = list(contents_between([picture], 3, 10))
    assert found == [(1, "text"), (2, "image"), (1, "text"), (1, "image"), (2, "text")]
    whole = SimpleNamespace(modality="image", mm_position=inputs.PlaceholderRange(2, 3))
    assert list(contents_between([whole], 0, 6)) == [(2, "text"), (3, "image"), (1, "text")]
