"""One vLLM engine that prefills one long prompt, part by part; run as a process of its own.

  python -m benchmarks.harness.prefill_process REQUEST.json ANSWER.json

REQUEST: {"model", "prompt" (token ids), "part" (tokens of a step), "new_tokens", "shards" (process
ids), "looks" (how often memory is read)}
ANSWER: {"parts": a `Part` for each step of the prompt that was looked at, "seconds": of every step
of it, "prompt_logprobs": of each of its tokens but the first, "tokens" and "gaps": the new tokens
and the top-2 gap at each of them}
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM

MB = 1e6


@dataclass(frozen=True, slots=True)
class Part:
    """Anonymous memory after a step. tokens: of the prompt that are computed."""

    tokens: int
    engine_mb: float
    shards_mb: list[float]


def load_engine(request: dict[str, Any]) -> "LLM":
    from vllm import LLM

    return LLM(
        model=request["model"],
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=len(request["prompt"]) + request["new_tokens"],
        max_num_seqs=1,
        max_num_batched_tokens=request["part"],
        enable_prefix_caching=False,
        # A step's answer is then that step's.
        async_scheduling=False,
    )


def prefill(llm: "LLM", request: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    count = len(request["prompt"])
    greedy = SamplingParams(
        max_tokens=request["new_tokens"], temperature=0.0, ignore_eos=True, logprobs=2,
        prompt_logprobs=0,
    )  # fmt: skip
    engine = llm.llm_engine
    engine.add_request("0", {"prompt_token_ids": request["prompt"]}, greedy)
    every = count // request["looks"]
    parts, seconds, done = [], [], 0
    outputs: list[Any] = []
    while engine.has_unfinished_requests():
        began_s, before = time.perf_counter(), done
        outputs = engine.step() or outputs
        if before < count:
            seconds.append(time.perf_counter() - began_s)
            done = computed_tokens(engine)
            if done // every > before // every:
                parts.append(sizes(min(done, count), request["shards"]))
    (output,) = outputs
    answer = output.outputs[0]
    return {
        "parts": [asdict(one) for one in parts],
        "seconds": seconds,
        "prompt_logprobs": [
            step[token].logprob
            for token, step in zip(
                request["prompt"][1:], (output.prompt_logprobs or [])[1:], strict=True
            )
        ],
        "tokens": list(answer.token_ids),
        "gaps": [gap_of(step) for step in answer.logprobs],
    }


def computed_tokens(engine: Any) -> int:
    """Of the one request, by vLLM's own count."""
    (request,) = engine.engine_core.engine_core.scheduler.running
    return int(request.num_computed_tokens)


def gap_of(step: Any) -> float:
    first, second = sorted((entry.logprob for entry in step.values()), reverse=True)[:2]
    return float(first - second)


def sizes(tokens: int, shards: list[int]) -> Part:
    return Part(tokens, megabytes(os.getpid()), [megabytes(pid) for pid in shards])


def megabytes(pid: int) -> float:
    """Of anonymous memory: shares of libraries' pages change with other processes."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (kilobytes,) = (line.split()[1] for line in rollup.splitlines() if line.startswith("Anonymous"))
    return int(kilobytes) * 1024 / MB


def main(asked: Path, answered: Path) -> None:
    request = json.loads(asked.read_text())
    llm = load_engine(request)
    answered.write_text(json.dumps(prefill(llm, request)))
    sys.stdout.flush()
    os._exit(0)  # vLLM's exit hooks take seconds and have nothing to save


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
