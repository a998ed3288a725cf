"""Requests that another engine began, as scheduler and workers take them."""

from types import SimpleNamespace

import pytest
import torch

from actors.vllm_plugin.resumed import EMITTED_TOKENS, RequestStates, ResumedRequests

VOCABULARY = 8


def params(tokens):
    return SimpleNamespace(extra_args={EMITTED_TOKENS: tokens} if tokens else None)


def draw(logits, generators, _k, _p):
    """Takes one number for a token, as vLLM's sampler on CPUs."""
    assert logits.shape == (1, VOCABULARY)
    return torch.randint(0, 1000, (1,), generator=generators[0])


def state(tokens, seed=None):
    generator = None
    if seed is not None:
        generator = torch.Generator()
        generator.manual_seed(seed)
    return SimpleNamespace(sampling_params=params(tokens), output_token_ids=[], generator=generator)


def numbers(generator, count):
    logits = torch.zeros(1, VOCABULARY)
    return [int(draw(logits, {0: generator}, None, None)) for _ in range(count)]


@pytest.fixture
def states():
    return RequestStates(draw, VOCABULARY, torch.device("cpu"))


def test_a_worker_has_the_output_before_the_request_is_scheduled(states):
    states["new"], states["continued"] = state([]), state([5, 6])
    assert states["new"].output_token_ids == []
    assert states["continued"].output_token_ids == [5, 6]


def test_random_numbers_go_on_after_as_many_as_tokens(states):
    states["whole"], states["continued"] = state([], seed=3), state([5, 6], seed=3)
    whole = numbers(states["whole"].generator, 6)
    assert numbers(states["continued"].generator, 4) == whole[2:]


def test_the_draw_of_a_part_of_a_prompt_is_taken_back(states):
    """vLLM does so by the offset, also for requests that have output: preempted ones."""
    states["a"] = state([5], seed=3)
    generator = states["a"].generator
    first = numbers(generator, 1)
    generator.set_offset(generator.get_offset() - 4)
    assert numbers(generator, 1) == first
    states["a"].output_token_ids.append(7)
    second = numbers(generator, 1)
    generator.set_offset(generator.get_offset() - 4)
    assert numbers(generator, 1) == second


class Request:
    def __init__(self, tokens, structured):
        self.request_id, self.sampling_params = "r", params(tokens)
        self.use_structured_output, self.output = structured, []

    def append_output_token_ids(self, tokens):
        self.output += tokens


class Grammars:
    def __init__(self):
        self.accepted = []

    def accept_tokens(self, request, tokens):
        self.accepted.append((request.request_id, tokens))
        return True


def test_a_grammar_is_moved_on_once_when_its_request_is_scheduled():
    resumed, grammars = ResumedRequests(), Grammars()
    request = Request([5, 6], structured=True)
    scheduler = SimpleNamespace(requests={"r": request}, structured_output_manager=grammars)
    resumed.resume(request)
    assert request.output == [5, 6]
    resumed.advance_grammars(["other"], scheduler)
    assert grammars.accepted == []
    for _ in range(2):
        resumed.advance_grammars(["r", "other"], scheduler)
    assert grammars.accepted == [("r", [5, 6])]


def test_a_request_without_output_or_grammar_is_left_alone():
    resumed, grammars = ResumedRequests(), Grammars()
    for request in (Request([], structured=True), Request([5], structured=False)):
        resumed.resume(request)
        scheduler = SimpleNamespace(requests={"r": request}, structured_output_manager=grammars)
        resumed.advance_grammars(["r"], scheduler)
    assert grammars.accepted == []
