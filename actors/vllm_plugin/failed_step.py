"""What a worker does when a step's experts are unavailable: the step fails, the engine lives.

The failure is counted where the scheduler sees it (`step_marks`), and the step's remaining MoE
layers are skipped: their sums are zeros, and nothing of the step is used. Where no scheduler of
ours watches, the error ends the engine, since wrong tokens would leave it otherwise.
"""

import logging
from functools import cache

from vllm.forward_context import ForwardContext, get_forward_context, is_forward_context_available

from actors.dispatch.backend import ExpertUnavailable
from actors.vllm_plugin.step_marks import open_marks

log = logging.getLogger("vllm.expertmesh")

_marks = cache(open_marks)
_failed: ForwardContext | None = None
"""vLLM makes a forward context for each step: the one whose experts were unavailable."""


def is_current() -> bool:
    """Whether the step that runs now has failed already."""
    global _failed  # noqa: PLW0603 - vLLM runs a model in one thread
    if _failed is not None and _failed is not _current():
        _failed = None
    return _failed is not None


def declare(error: ExpertUnavailable, rank: int) -> None:
    """The step that runs now has failed on this rank.

    Raises:
        ExpertUnavailable: no scheduler would notice.
    """
    global _failed  # noqa: PLW0603 - vLLM runs a model in one thread
    marks = _marks()
    if marks is None or not marks.watched:
        raise error
    marks.count_failure(rank)
    _failed = _current()
    log.error("the requests of this step fail: %s", error)


def _current() -> ForwardContext | None:
    return get_forward_context() if is_forward_context_available() else None
