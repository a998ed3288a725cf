"""How much of an engine's next step batch requests may take while there are online requests.

vLLM's priorities put an online request at the head of those that wait, but it still waits: for a
sequence that ends where batch requests have all of them, and for a step to end that is as long as
the prompts in it. So while online requests come,

- an eighth of the sequences is given to online requests alone. Which they take, batch requests give
  back as they end;
- the prompts of batch requests have a sixteenth of a step's tokens, however many wait.

Without online requests batch requests have everything, from `RECENT_S` after the last one on. None
that runs is interrupted: what it has computed would be lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

ONLINE_PRIORITY = 0
"""vLLM's priority of online requests and all that come before them; batch requests have a later
one."""
RESERVED_PART = 8
"""An engine's sequences divided by this are for online requests."""
PROMPTS_PART = 16
"""A step's tokens divided by this are for prompts of batch requests."""
RECENT_S = 60.0


class Scheduled(Protocol):
    """What of vLLM's `Request` counts here."""

    priority: int
    is_prefill_chunk: bool
    num_output_placeholders: int
    num_computed_tokens: int

    @property
    def num_tokens_with_spec(self) -> int: ...


@dataclass(frozen=True, slots=True)
class StepLimits:
    """sequences: that may run. tokens: computed in one step."""

    sequences: int
    tokens: int


class OnlineFirst:
    """Limits of each step. full: without online requests. splits_prompts: whether the engine may
    compute any part of a prompt; where it may not, a prompt longer than a step would never begin.
    """

    def __init__(self, full: StepLimits, splits_prompts: bool = True) -> None:
        self._full = full
        self._splits_prompts = splits_prompts
        self._seen_s = float("-inf")

    def limits(
        self, running: Iterable[Scheduled], waiting: Iterable[Scheduled], now_s: float
    ) -> StepLimits:
        """waiting: in the order of their priorities."""
        running = list(running)
        coming = list(takewhile(_is_online, waiting))
        if coming or any(_is_online(request) for request in running):
            self._seen_s = now_s
        if now_s - self._seen_s > RECENT_S:
            return self._full
        return StepLimits(self._sequences(len(running), len(coming)), self._tokens(running, coming))

    def _sequences(self, running: int, coming: int) -> int:
        most = self._full.sequences
        reserved = -(-most // RESERVED_PART) if most > 1 else 0
        return min(most, max(most - reserved, running + coming))

    def _tokens(self, running: list[Scheduled], coming: list[Scheduled]) -> int:
        """What online requests need, one token for each batch request, and a few for prompts."""
        if not self._splits_prompts:
            return self._full.tokens
        begun = [r for r in running if _is_online(r) or not r.is_prefill_chunk]
        needed = sum(_missing(request) for request in begun + coming)
        return min(self._full.tokens, needed + max(1, self._full.tokens // PROMPTS_PART))


def _is_online(request: Scheduled) -> bool:
    return request.priority <= ONLINE_PRIORITY


def _missing(request: Scheduled) -> int:
    """Tokens that are to be computed of it, as vLLM's scheduler counts them."""
    known = request.num_tokens_with_spec + request.num_output_placeholders
    return known - request.num_computed_tokens
