"""How much of an engine's next step batch requests may take while there are online requests.

vLLM's priorities put an online request at the head of those that wait, but it still waits: for a
sequence that ends where batch requests have all of them, and for a step to end that is as long as
the prompts in it. So while online requests come,

- an eighth of the sequences is for online requests alone, and half of that is kept free for those
  that come next. What they take, batch requests give back as they end;
- prompts of batch requests have a few of a step's tokens, however many wait: with what batch
  requests decode in the step a sixteenth of them, or as many again as they decode;
- a step that begins an online prompt leaves batch requests out, as long as such steps take no more
  than an eighth of the time, and never twice on end. The first token then comes as soon as on an
  idle engine, once the step before is over.

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
BATCH_PART = 16
"""A step's tokens divided by this are for batch requests, if they do not decode more than half of
that."""
ALONE_PART = 8
"""Steps without batch requests take at most this part of the time, ..."""
ALONE_MOST_S = 0.5
"""... but for so much at once."""
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
    """sequences: that may run. tokens: computed in one step. online_only: by online requests."""

    sequences: int
    tokens: int
    online_only: bool = False


class OnlineFirst:
    """Limits of each step. full: without online requests. splits_prompts: whether the engine may
    compute any part of a prompt; where it may not, a prompt longer than a step would never begin.
    """

    def __init__(self, full: StepLimits, splits_prompts: bool = True) -> None:
        self._full = full
        self._splits_prompts = splits_prompts
        self._seen_s = float("-inf")
        self._alone = _Allowance()

    def limits(
        self, running: Iterable[Scheduled], waiting: Iterable[Scheduled], now_s: float
    ) -> StepLimits:
        """waiting: in the order of their priorities."""
        running = list(running)
        coming = list(takewhile(is_online, waiting))
        if coming or any(is_online(request) for request in running):
            self._seen_s = now_s
        if now_s - self._seen_s > RECENT_S:
            return self._full
        sequences = self._sequences(running, coming)
        if not self._splits_prompts:
            return StepLimits(sequences, self._full.tokens)
        begins = bool(coming) and len(running) < sequences
        begins |= any(is_online(r) and r.is_prefill_chunk for r in running)
        leaves_out = not all(map(is_online, running))
        alone = self._alone.take(begins and leaves_out, now_s)
        online = sum(_missing(r) for r in [*running, *coming] if is_online(r))
        decoding = sum(_missing(r) for r in running if not (is_online(r) or r.is_prefill_chunk))
        if alone:
            return StepLimits(sequences, min(self._full.tokens, online), online_only=True)
        tokens = online + decoding + max(1, self._full.tokens // BATCH_PART - decoding, decoding)
        return StepLimits(sequences, min(self._full.tokens, tokens))

    def _sequences(self, running: list[Scheduled], coming: list[Scheduled]) -> int:
        most = self._full.sequences
        reserved = -(-most // RESERVED_PART) if most > 1 else 0
        taken = sum(map(is_online, running)) + len(coming)
        with_batch = most - reserved + min(taken, reserved // 2)
        return min(most, max(with_batch, len(running) + len(coming)))


class _Allowance:
    """Steps of online requests alone, of which there may be some."""

    def __init__(self) -> None:
        self._left_s = ALONE_MOST_S
        self._before_s: float | None = None
        """When the step before began."""
        self._was_alone = False

    def take(self, wanted: bool, now_s: float) -> bool:
        """Whether the step that begins now is one."""
        took_s = 0.0 if self._before_s is None else now_s - self._before_s
        self._before_s = now_s
        gained_s = -took_s if self._was_alone else took_s / ALONE_PART
        self._left_s = min(ALONE_MOST_S, self._left_s + gained_s)
        self._was_alone = wanted and not self._was_alone and self._left_s > 0
        return self._was_alone


def is_online(request: Scheduled) -> bool:
    return request.priority <= ONLINE_PRIORITY


def _missing(request: Scheduled) -> int:
    """Tokens that are to be computed of it, as vLLM's scheduler counts them."""
    known = request.num_tokens_with_spec + request.num_output_placeholders
    return known - request.num_computed_tokens
