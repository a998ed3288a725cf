"""Scores token sequences with transformers in fp32; run as a process of its own.

  python -m benchmarks.harness.reference REQUEST.json ANSWER.json

REQUEST: {"model", "sequences" (token ids)}
ANSWER: {"exact", "rounded" (one list for each seed), "scaled"}: logprobs of each token but the
first of each sequence, one list each.

The reference shares no code with shards or vLLM. How far a right implementation may be off is
measured on the reference itself: in `rounded` every module's output is rounded to bf16, up or down
at random, so that errors are those of one rounding at each step. `scaled` has all routed experts'
outputs multiplied by `SCALE`: the direction in which logprobs move if weights are scaled.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SEEDS = (0, 1, 2)
SCALE = 1.01
BF16_SHIFT = 16
"""Bits of an fp32 value that bf16 does not have."""

Hook = Callable[[Any, Any, Any], Any]


def round_at_random(values: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """fp32 values that bf16 has, each of the two nearest with a chance by its distance."""
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << BF16_SHIFT, bits.shape, generator=random, dtype=torch.int32)
    return ((bits + noise) & -(1 << BF16_SHIFT)).view(torch.float32)


@contextmanager
def hooked(modules: list[torch.nn.Module], hook: Hook) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounding(seed: int) -> Hook:
    random = torch.Generator().manual_seed(seed)

    def hook(_module: Any, _arguments: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor) and output.dtype == torch.float32:
            return round_at_random(output, random)
        return output

    return hook


def scaling(_module: Any, _arguments: Any, output: torch.Tensor) -> torch.Tensor:
    return output * SCALE


@torch.no_grad()
def score(model: torch.nn.Module, sequences: list[list[int]]) -> list[list[float]]:
    """Logprob of each token but the first, sequence by sequence."""
    found = []
    for sequence in sequences:
        ids = torch.tensor([sequence])
        logprobs = model(ids, use_cache=False).logits[0].float().log_softmax(-1)
        found.append(logprobs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist())
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(request.get("threads", 1))
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32).eval()
    sequences = request["sequences"]
    experts = [module for name, module in model.named_modules() if name.endswith(".experts")]
    assert experts, "transformers names no module `experts`"
    inner = [module for module in model.modules() if not list(module.children())]
    found: dict[str, Any] = {"exact": score(model, sequences), "rounded": []}
    for seed in SEEDS:
        with hooked([*inner, *experts], rounding(seed)):
            found["rounded"].append(score(model, sequences))
    with hooked(experts, scaling):
        found["scaled"] = score(model, sequences)
    return found


if __name__ == "__main__":
    asked, answered = map(Path, sys.argv[1:])
    answered.write_text(json.dumps(answer(json.loads(asked.read_text()))))
