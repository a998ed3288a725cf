"""vLLM's engine client, for requests that lack experts and for those that another engine began.

A request that is continued comes with the outputs that another engine made (`output_record`). Here
they go through vLLM's own output processor once more, under the same request: detokenizer, stop
strings and counters are then in the state that they had there, and vLLM's OpenAI layer gets the
same outputs, one by one. The engine core gets the tokens with the request's sampling parameters
(`EMITTED_TOKENS`); scheduler and workers take them for output of the request
(`vllm_plugin.resumed`). Nothing is tokenised again. A request's kind of traffic goes the same way.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from vllm.exceptions import RetryableRequestError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from actors.engine.output_record import OutputRecord, current_record
from actors.engine.unavailable import note_missing_experts
from actors.messages import EXPERTS_UNAVAILABLE, Emitted, Record
from actors.traffic import DEFAULT, current_kind
from actors.vllm_plugin.resumed import EMITTED_TOKENS
from actors.vllm_plugin.traffic_steps import TRAFFIC_KIND

Outputs = AsyncIterator[RequestOutput]


class ExpertsUnavailableError(RetryableRequestError):
    """Experts of the request's tokens have no live replica. vLLM answers with status 503."""


class MeshLLM(AsyncLLM):
    """`AsyncLLM` whose scheduler is one of `actors.vllm_plugin.scheduler`."""

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As in `AsyncLLM`.

        Raises:
            ExpertsUnavailableError: a step of the request failed for lack of experts.
        """
        record = current_record()
        if record is not None and not (can_record(sampling_params) and record.begin()):
            record.spoil()
            record = None
        params = _told(sampling_params, record.emitted if record else (), current_kind())
        whole = params.output_kind is RequestOutputKind.FINAL_ONLY
        if record is not None and whole:
            params = params.clone()
            params.output_kind = RequestOutputKind.DELTA
        async with aclosing(super().generate(prompt, params, *args, **kwargs)) as outputs:
            answer: Outputs = _refusing_without_experts(outputs)
            if record is not None:
                answer = _after_replayed(_noted(answer, record), record)
                answer = _as_one(answer) if whole else answer
            async for output in answer:
                yield output

    async def _add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: Any,
        index: int,
        queue: RequestOutputCollector,
    ) -> None:
        record = current_record()
        if record is None or not record.emitted:
            await super()._add_request(request, prompt, parent_req, index, queue)
            return
        self.check_admission(request_id=request.request_id)
        self.output_processor.add_request(request, prompt, parent_req, index, queue)
        record.replayed = self._replay(request.request_id, record.emitted, queue)
        if self.output_processor.has_request(request.request_id):
            await self.engine_core.add_request_async(request)
        else:
            # The last of them had finished the request: `generate` waits for that only.
            queue.put(record.replayed.pop())

    def _replay(
        self, request_id: str, record: Record, queue: RequestOutputCollector
    ) -> list[RequestOutput]:
        """The outputs that vLLM makes of the record; the request's state is then as after them."""
        replayed = []
        for emitted in record:
            state = self.output_processor.request_states.get(request_id)
            if state is None:
                break
            self.output_processor.process_outputs([_core_output(request_id, emitted)])
            output = queue.get_nowait()
            assert isinstance(output, RequestOutput), "the request has `RequestOutputKind.DELTA`"
            if emitted.logprobs is not None:
                assert state.logprobs_processor is not None
                _restore_logprobs(emitted, output.outputs[0], state.logprobs_processor)
            replayed.append(output)
        # Its metrics and its cached tokens come with the first output of the engine core.
        if state is not None:
            state.is_prefilling = True
        return replayed


def can_record(params: SamplingParams) -> bool:
    """Whether the outputs of a request with these parameters are all that there is to it."""
    return (
        params.n == 1
        and params.prompt_logprobs is None
        and not params.flat_logprobs
        and params.output_kind is not RequestOutputKind.CUMULATIVE
    )


def _told(params: SamplingParams, record: Record, kind: str) -> SamplingParams:
    """`params`, telling the engine core what was emitted and which kind of traffic this is; clients
    have no say in that."""
    theirs = params.extra_args or {}
    args = {k: v for k, v in theirs.items() if k not in (EMITTED_TOKENS, TRAFFIC_KIND)}
    if tokens := [token for emitted in record for token in emitted.token_ids]:
        args[EMITTED_TOKENS] = tokens
    if kind != DEFAULT:
        args[TRAFFIC_KIND] = kind
    if args == theirs:
        return params
    params = params.clone()
    params.extra_args = args or None
    return params


async def _refusing_without_experts(outputs: Outputs) -> Outputs:
    async for output in outputs:
        if any(o.stop_reason == EXPERTS_UNAVAILABLE for o in output.outputs):
            note_missing_experts()
            raise ExpertsUnavailableError("experts that this request needs have no live replica")
        yield output


async def _noted(outputs: Outputs, record: OutputRecord) -> Outputs:
    async for output in outputs:
        (completion,) = output.outputs
        if completion.finish_reason == str(FinishReason.ABORT):
            pass  # The client left, or the engine stops: nothing that the model put out.
        elif completion.routed_experts is not None or completion.sampling_mask is not None:
            record.spoil()
        else:
            record.note(_emitted(completion))
        yield output


async def _after_replayed(outputs: Outputs, record: OutputRecord) -> Outputs:
    """`outputs`, the first of which says that the replayed ones are there, after those."""
    async for output in outputs:
        replayed, record.replayed = record.replayed, []
        for earlier in replayed:
            yield earlier
        yield output


async def _as_one(outputs: Outputs) -> Outputs:
    """One output in place of many, as vLLM makes it where nobody wants to see the way there."""
    whole: RequestOutput | None = None
    async for output in outputs:
        if whole is None:
            whole = output
        else:
            whole.add(output, aggregate=True)
            whole.num_cached_tokens = output.num_cached_tokens
            whole.num_cache_creation_tokens = output.num_cache_creation_tokens
    if whole is not None:
        yield whole


def _emitted(completion: CompletionOutput) -> Emitted:
    logprobs = None
    if completion.logprobs is not None:
        logprobs = tuple(
            tuple((i, p.logprob, p.rank, p.decoded_token) for i, p in position.items())
            for position in completion.logprobs
        )
    return Emitted(
        tuple(completion.token_ids), logprobs, completion.finish_reason, completion.stop_reason
    )


def _core_output(request_id: str, emitted: Emitted) -> EngineCoreOutput:
    """What the engine core said when this was put out."""
    reason = None
    # vLLM's front end finds stop strings by itself, after the engine core.
    if emitted.finish_reason is not None and not isinstance(emitted.stop_reason, str):
        reason = FinishReason[emitted.finish_reason.upper()]
    return EngineCoreOutput(
        request_id, list(emitted.token_ids), finish_reason=reason, stop_reason=emitted.stop_reason
    )


def _restore_logprobs(emitted: Emitted, completion: CompletionOutput, processor: Any) -> None:
    """Of the completion, and in the request's state: a token's text depends on those before."""
    assert emitted.logprobs is not None
    positions = [
        {token: Logprob(logprob, rank, text) for token, logprob, rank, text in position}
        for position in emitted.logprobs
    ]
    sampled = zip(emitted.token_ids, positions, strict=True)
    processor.cumulative_logprob += sum(position[token].logprob for token, position in sampled)
    processor.logprobs.extend(positions)
    completion.logprobs = positions
    completion.cumulative_logprob = processor.cumulative_logprob
