"""vLLM's schedulers, ending the requests of steps whose experts were unavailable, and leaving room
for online requests in steps that are full of batch requests (`online_first`).

A failed step has written KV entries that are not the model's. So all requests of the steps in
flight end with an error, and the prefix cache is emptied: whatever was computed in such a step can
be found by nobody. Steps are in flight together under asynchronous scheduling only, where a later
one continues the requests of the failed one.
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from actors.messages import EXPERTS_UNAVAILABLE
from actors.vllm_plugin.online_first import OnlineFirst, StepLimits, is_online
from actors.vllm_plugin.resumed import ResumedRequests
from actors.vllm_plugin.step_marks import open_marks
from actors.vllm_plugin.traced_step import StepSampler
from actors.vllm_plugin.traffic_steps import TrafficSampler

Outputs = dict[int, EngineCoreOutputs]


class FailedSteps:
    """Looks after each step whether a worker counted a failure."""

    def __init__(self) -> None:
        self._marks = open_marks()
        self._seen = 0
        if self._marks is not None:
            self._seen = self._marks.failures()
            self._marks.watch()

    def end_requests(self, scheduler: Scheduler) -> list[Request]:
        """The requests that a failure ended, freed; empty after a good step."""
        if self._marks is None:
            return []
        failures = self._marks.failures()
        if failures == self._seen:
            return []
        self._seen = failures
        in_flight = [r.request_id for r in scheduler.requests.values() if r.num_in_flight_tokens]
        ended = scheduler.finish_requests(in_flight, RequestStatus.FINISHED_ERROR)
        cache = scheduler.kv_cache_manager
        cache.evict_blocks(set(range(len(cache.block_pool.blocks))))
        return ended


def add_errors(outputs: Outputs, ended: Iterable[Request]) -> Outputs:
    """`outputs` of a step, with the end of each of these requests."""
    for request in ended:
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=request.get_finished_reason(),
            stop_reason=EXPERTS_UNAVAILABLE,
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)
    return outputs


class MeshScheduler(Scheduler):
    """vLLM's scheduler for one step at a time."""

    def __init__(
        self, *args: Any, clock: Callable[[], float] = time.monotonic, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock
        self._failed_steps = FailedSteps()
        self._resumed = ResumedRequests()
        self._sampler = StepSampler.of_process()
        self._traffic = TrafficSampler(random.Random(), clock())
        full = StepLimits(self.max_num_active_reqs, self.max_num_scheduled_tokens)
        self._online_first = OnlineFirst(full, self._splits_prompts())

    def _splits_prompts(self) -> bool:
        config = self.scheduler_config
        whole_images: bool = config.disable_chunked_mm_input
        blocks: bool = self.need_mamba_block_aligned_split
        return config.enable_chunked_prefill and not whole_images and not blocks

    def add_request(self, request: Request) -> None:
        self._resumed.resume(request)
        super().add_request(request)

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if self.policy == SchedulingPolicy.PRIORITY:
            limits = self._online_first.limits(self.running, self.waiting, self._clock())
            self.max_num_active_reqs = limits.sequences
            self.max_num_scheduled_tokens = limits.tokens
            # vLLM goes through them in this order: what is left is for prompts that wait behind.
            self.running.sort(key=_computes_batch_prompt)
            if limits.online_only:
                self._leave_out_batch_requests()
        step = super().schedule(*args, **kwargs)
        if self._sampler is not None:
            self._sampler.mark(step, lambda id: self.requests[id].trace_headers)
        self._traffic.mark(step, self.requests, self._clock())
        return step

    def _leave_out_batch_requests(self) -> None:
        """Of the step that is scheduled next; they stay where they are."""
        for request in self.running:
            if not is_online(request):
                # vLLM counts the step first, and looks at this then.
                after = self.current_step + 2
                request.next_decode_eligible_step = max(request.next_decode_eligible_step, after)

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> GrammarOutput | None:
        self._resumed.forget(scheduler_output.finished_req_ids)
        self._resumed.advance_grammars(scheduler_output.num_scheduled_tokens, self)
        return super().get_grammar_bitmask(scheduler_output)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Outputs:
        ended = self._failed_steps.end_requests(self)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        return add_errors(outputs, ended)


def _computes_batch_prompt(request: Request) -> bool:
    return request.is_prefill_chunk and not is_online(request)


class MeshAsyncScheduler(MeshScheduler, AsyncScheduler):
    """The same for a step while the one before it runs."""
