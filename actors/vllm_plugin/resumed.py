"""Requests whose first tokens another engine put out: to the engine core they look like requests
that were preempted.

vLLM resumes a preempted request from its prompt and its output so far. A continued request comes
with its output in its sampling parameters (`EMITTED_TOKENS`), and is given it in the scheduler and
in each worker, before it is first scheduled there. So max_tokens, min_tokens, penalties, bad words,
stop tokens and whatever else counts output tokens need nothing more. What a preempted request has
besides its tokens is the state of its grammar and of its random numbers; both are moved on here.
"""

from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch

EMITTED_TOKENS = "expertmesh_emitted"
"""Key in `SamplingParams.extra_args`, which vLLM carries from its front end to scheduler and
workers: list of token ids."""


def emitted_tokens(params: Any) -> list[int]:
    """Tokens that the request put out in other engines."""
    extra = getattr(params, "extra_args", None) or {}
    tokens: list[int] = extra.get(EMITTED_TOKENS, [])
    return tokens


class ResumedRequests:
    """The scheduler's half."""

    def __init__(self) -> None:
        self._behind: set[str] = set()
        """Requests whose grammar has not seen their first tokens: it is compiled meanwhile."""

    def resume(self, request: Any) -> None:
        """Give a request that is new to the scheduler the output that it has."""
        tokens = emitted_tokens(request.sampling_params)
        if not tokens:
            return
        request.append_output_token_ids(tokens)
        if request.use_structured_output:
            self._behind.add(request.request_id)

    def advance_grammars(self, scheduled: Iterable[str], scheduler: Any) -> None:
        """Before the grammars of these requests are asked which tokens may follow."""
        for request_id in self._behind.intersection(scheduled):
            self._behind.discard(request_id)
            request = scheduler.requests[request_id]
            tokens = emitted_tokens(request.sampling_params)
            if not scheduler.structured_output_manager.accept_tokens(request, tokens):
                raise RuntimeError(f"the grammar of {request_id} refuses what it put out before")

    def forget(self, finished: Iterable[str]) -> None:
        self._behind.difference_update(finished)


Draw = Callable[[torch.Generator], object]
"""Takes from a generator what vLLM's sampler takes for one token."""


class CpuGenerator(torch.Generator):
    """Random numbers of one request on a CPU, of which the last draw can be taken back.

    vLLM draws for each part of a long prompt too, and takes that back by moving the generator's
    offset. CPU generators have no offset, and vLLM 0.32 ends with an error there. Here the numbers
    of the tokens that the request has are drawn again from the start.
    """

    _start: torch.Tensor
    _draw: Draw
    _tokens: Sized

    @classmethod
    def of(cls, seeded: torch.Generator, draw: Draw, tokens: Sized) -> "CpuGenerator":
        """seeded: as vLLM made it. tokens: the output of its request, which grows."""
        made = cls()
        made._start, made._draw, made._tokens = seeded.get_state(), draw, tokens
        return made

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        self.set_state(self._start)
        draw_again(self, self._draw, self._tokens)
        return self


def draw_again(generator: torch.Generator, draw: Draw, tokens: Sized) -> None:
    for _ in range(len(tokens)):
        draw(generator)


class RequestStates(dict[str, Any]):
    """A worker's half: the requests that vLLM's model runner knows, by their ids.

    Its second model runner (`VLLM_USE_V2_MODEL_RUNNER`) gets a request's output with the request
    and draws random numbers by position; it needs no help.
    """

    def __init__(self, sampler: Any, vocabulary: int, device: torch.device) -> None:
        """sampler: vLLM's; called with logits [1, vocabulary] it draws what a token takes."""
        super().__init__()
        self._sampler = sampler
        self._logits = torch.zeros(1, vocabulary, device=device)

    def __setitem__(self, request_id: str, state: Any) -> None:
        if request_id not in self:
            state.output_token_ids = list(emitted_tokens(state.sampling_params))
            if state.generator is not None:
                self._resume_numbers(state)
        super().__setitem__(request_id, state)

    def _resume_numbers(self, state: Any) -> None:
        if state.generator.device.type == "cpu":
            generator = CpuGenerator.of(state.generator, self._draw, state.output_token_ids)
            generator.set_offset(0)
            state.generator = generator
        else:
            draw_again(state.generator, self._draw, state.output_token_ids)

    def _draw(self, generator: torch.Generator) -> None:
        self._sampler(self._logits.clone(), {0: generator}, None, None)
