"""Makes model checkpoints for tests and benchmarks: random, deterministic, seconds each.

`python -m tests.checkpoints.make KIND DIRECTORY [SEED]` writes one by hand.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from tests.checkpoints.deepseek_v3 import make_deepseek_v3
from tests.checkpoints.deepseek_v4 import V4Format, make_deepseek_v4
from tests.checkpoints.gpt_oss import make_gpt_oss
from tests.checkpoints.mixtral import make_mixtral
from tests.checkpoints.qwen3 import MID_MOE, TINY_DENSE, TINY_MOE, make_qwen3
from tests.checkpoints.transformers_models import OWN, make_with_transformers

MAKERS: dict[str, Callable[..., Path]] = {
    "qwen3_moe": partial(make_qwen3, shape=TINY_MOE),
    "mixtral": make_mixtral,
    "deepseek_v3": make_deepseek_v3,
    "deepseek_v4_bf16": partial(make_deepseek_v4, number_format=V4Format.BF16),
    "deepseek_v4_mxfp4": partial(make_deepseek_v4, number_format=V4Format.MXFP4),
    "deepseek_v4_fp8": partial(make_deepseek_v4, number_format=V4Format.FP8),
    "gpt_oss": make_gpt_oss,
    **{kind: partial(make_with_transformers, kind=kind) for kind in OWN},
    "dense": partial(make_qwen3, shape=TINY_DENSE),
    "mid_qwen3": partial(make_qwen3, shape=MID_MOE),
}
"""Every kind; `mid_qwen3` (0.93 GB) is for benchmarks, the rest are a few MB."""

KINDS = tuple(kind for kind in MAKERS if kind not in OWN)
"""Those that are written here, without transformers."""


def make_checkpoint(kind: str, directory: Path, *, seed: int = 0) -> Path:
    """Write the checkpoint `kind` into `directory` and return the directory.

    The same kind and seed give the same bytes. Raises ValueError for an unknown kind.
    """
    if kind not in MAKERS:
        raise ValueError(f"unknown checkpoint kind {kind!r}: use one of {', '.join(KINDS)}")
    threads = torch.get_num_threads()
    # Many small tensors: on a busy machine waiting OpenMP threads cost ten times the work.
    torch.set_num_threads(1)
    try:
        return MAKERS[kind](Path(directory), seed=seed)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    print(make_checkpoint(sys.argv[1], Path(sys.argv[2]), seed=int((sys.argv[3:] or ["0"])[0])))
