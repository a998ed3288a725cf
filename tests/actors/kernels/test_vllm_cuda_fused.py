"""What vLLM's fused CUDA kernel is given, and what it makes of it in Triton's interpreter."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import Activation
from actors.kernels.vllm_cuda_fused import supports
from tests.actors.kernels.building import CLAMPED, GPT_OSS, SILU, make_spec, needs_vllm_ops

FP8 = FP8_BLOCK128

# fp32 throughout; FP8 rounds rows and activated products to e4m3, by up to 2^-4 of each value.
LARGEST_ERROR = {"bf16": 1e-5, "gpt-oss": 1e-5, "fp8": 0.1}


@pytest.mark.vllm
@needs_vllm_ops
@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton comes with vLLM on x86-64 Linux only"
)
def test_vllms_kernel_computes_what_the_operator_asks_for():
    run = subprocess.run(
        [sys.executable, "-m", "tests.actors.kernels.interpreted_vllm"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout.splitlines()[-1])
    assert errors.keys() == LARGEST_ERROR.keys()
    for name, found in errors.items():
        assert all(error <= LARGEST_ERROR[name] for _, error in found), errors


@pytest.mark.parametrize(
    ("spec", "supported"),
    [
        (make_spec(BF16, SILU), True),
        (make_spec(BF16, GPT_OSS), True),
        (make_spec(BF16, replace(GPT_OSS, limit=10.0)), False),
        (make_spec(BF16, CLAMPED), False),
        (make_spec(BF16, Activation(limit=1e6)), False),
        (make_spec(BF16, SILU, hidden=72), False),
        (make_spec(FP8, SILU, hidden=256, inter=128), True),
        (make_spec(FP8, SILU, hidden=192, inter=128), False),
        (make_spec(FP8, SILU, hidden=256, inter=192), False),
        (make_spec(FP8, CLAMPED, hidden=256, inter=128), False),
        (make_spec(FP8, GPT_OSS, hidden=256, inter=128), False),
        (make_spec(MXFP4, SILU), False),
        (make_spec(MXFP4, GPT_OSS), False),
    ],
)
def test_what_vllms_kernel_computes(spec, supported):
    assert supports(spec) is supported
