"""One vLLM engine that generates on demand; `timed_engine` starts it as a process of its own.

  python -m benchmarks.harness.engine_process MODEL [compiled] [all-here | half-here]

Orders come as lines of JSON, {"prompts", "new_tokens", "at_once"}; the answer to each is a line
that begins with "answer ", before it "ready". Nothing here may import numba before vLLM is up (see
`actors.vllm_plugin.connection`).
"""

import json
import os
import sys
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

ANSWER, READY = "answer ", "ready"
ALL_HERE, HALF_HERE = "all-here", "half-here"
"""Experts of a mesh's engine that are computed in this process instead (`in_process`)."""


def load_engine(model: str, compiled: bool) -> Any:
    """compiled: with torch.compile, vLLM's default; else eagerly."""
    from vllm import LLM

    return LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=not compiled,
        max_model_len=1024,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        enable_prefix_caching=False,
    )


def generate(
    llm: Any, prompts: list[list[int]], new_tokens: int | list[int], at_once: int | None = None
) -> dict[str, Any]:
    """Fields of `timed_engine.Timing`; every step's clock is that of the whole machine.

    new_tokens: of every request, or of each. at_once: requests under way, the others follow as
    these end; None: all.
    """
    from vllm import SamplingParams

    outputs_of = new_tokens if isinstance(new_tokens, list) else [new_tokens] * len(prompts)
    engine = llm.llm_engine
    waiting = iter(enumerate(zip(prompts, outputs_of, strict=True)))

    def add(count: int) -> None:
        for number, (ids, tokens) in islice(waiting, count):
            greedy = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
            engine.add_request(str(number), {"prompt_token_ids": ids}, greedy)

    start_s = perf_counter()
    add(at_once or len(prompts))
    came: list[list[float]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now_s = perf_counter()
        for output in outputs:
            number = int(output.request_id.split("-")[0])
            tokens[number] = list(output.outputs[0].token_ids)
            came[number].append(now_s)
        add(sum(output.finished for output in outputs))
    return {
        "start_s": start_s,
        "end_s": perf_counter(),
        "first_s": [times[0] - start_s for times in came],
        "gaps_s": [after - before for times in came for before, after in pairwise(times)],
        "tokens": tokens,
        "came_s": sorted(when for times in came for when in times),
    }


class Late:
    """`ExpertBackend` that makes the real one at the first call, when numba may be imported."""

    def __init__(self, model: str, half: bool) -> None:
        self._model, self._half = Path(model), half
        self._made: Any = None

    def send(self, *call: Any) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made.send(*call)

    def wait(self, call: Any) -> Any:
        return self._made.wait(call)

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def _make(self) -> Any:
        from actors.vllm_plugin import connection
        from benchmarks.harness.in_process import InProcessExperts

        others = None
        if self._half:
            connection._backend = None
            others = connection.backend()
            connection._backend = self
        return InProcessExperts(self._model, others)


def main(model: str, compiled: bool, here: set[str]) -> None:
    if here:
        from actors.vllm_plugin import connection

        connection._backend = Late(model, HALF_HERE in here)
    llm = load_engine(model, compiled)
    print(READY, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        timing = generate(llm, **order)
        print(ANSWER + json.dumps(timing), flush=True)
    os._exit(0)  # vLLM's exit hooks take seconds and have nothing to save


if __name__ == "__main__":
    words = set(sys.argv[2:])
    main(sys.argv[1], "compiled" in words, words & {ALL_HERE, HALF_HERE})
