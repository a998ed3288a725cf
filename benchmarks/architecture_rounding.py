"""How far one rounding of every module's output moves the logprobs of each tiny architecture.

  python -m benchmarks.architecture_rounding [KIND ...] [--out LINES.jsonl]

That is the bound for `benchmarks.architectures`: with random weights some architectures are sure of
most of their answers, whose logprobs hardly move, and others of few. It is measured without vLLM,
by transformers in fp32 (`benchmarks.harness.reference`), on its own greedy answers to the same
prompts. LINES gets a line for each kind, for `benchmarks.architecture_table`: rounding, the mean
|difference of logprob|, and given, the median logprob itself.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.architectures import TOKENS, request_of
from benchmarks.harness.reference import SEEDS, hooked, rounding, score
from tests.checkpoints.make import make_checkpoint
from tests.checkpoints.transformers_models import OWN


@torch.no_grad()
def answered(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    """`prompt` with its greedy answer."""
    ids = list(prompt)
    for _ in range(TOKENS):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


def measure(kind: str, folder: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    path = make_checkpoint(kind, folder / kind)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    sequences = [answered(model, prompt) for prompt in request_of(path)["prompts"]]
    exact = np.concatenate(score(model, sequences))
    modules = [
        module
        for name, module in model.named_modules()
        if name.endswith(".experts") or not list(module.children())
    ]
    shifts = []
    for seed in SEEDS:
        with hooked(modules, rounding(seed)):
            shifts.append(np.abs(np.concatenate(score(model, sequences)) - exact))
    return {"kind": kind, "rounding": float(np.mean(shifts)), "given": float(np.median(exact))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", default=sorted(OWN))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory(prefix="xm") as folder:
            line = measure(kind, Path(folder))
        print(json.dumps(line), flush=True)
        if arguments.out:
            with arguments.out.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
