"""vLLM's engine client, telling requests that lack experts from those that failed otherwise."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.exceptions import RetryableRequestError
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM

from actors.engine.messages import EXPERTS_UNAVAILABLE
from actors.engine.unavailable import note_missing_experts


class ExpertsUnavailableError(RetryableRequestError):
    """Experts of the request's tokens have no live replica. vLLM answers with status 503."""


class MeshLLM(AsyncLLM):
    """`AsyncLLM` whose scheduler is one of `actors.vllm_plugin.scheduler`."""

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        """As in `AsyncLLM`.

        Raises:
            ExpertsUnavailableError: a step of the request failed for lack of experts.
        """
        async with aclosing(super().generate(*args, **kwargs)) as outputs:
            async for output in outputs:
                if any(o.stop_reason == EXPERTS_UNAVAILABLE for o in output.outputs):
                    note_missing_experts()
                    raise ExpertsUnavailableError(
                        "experts that this request needs have no live replica"
                    )
                yield output
