"""Which kernel each model gets on each CPU, and what it holds."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.experts.families import read_expert_spec
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import COMPRESSED_FP8_BLOCK128, FP8_BLOCK128
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import Activation
from actors.kernels import torch_grouped, torch_portable, vllm_cuda_fused, vllm_layers
from actors.kernels.accelerator import AcceleratorFeatures, detect_accelerator_features
from actors.kernels.choose import KERNELS, choose_kernel, choose_operator
from actors.kernels.native_ops import CpuFeatures, load_cpu_ops
from actors.kernels.target import Target
from tests.actors.experts.tiny import Shape, cases, write
from tests.actors.kernels.building import (
    CLAMPED,
    FEATURES,
    GPT_OSS,
    SILU,
    make_batch,
    make_experts,
    make_kernel,
    make_spec,
    needs_bf16_cpu,
    needs_vllm_ops,
)
from tests.actors.kernels.reference import reference

CPU = torch.device("cpu")
FP8 = FP8_BLOCK128

ZEN5 = CpuFeatures(avx2=True, avx512=True, avx512_bf16=True, amx_tile=False)
SAPPHIRE_RAPIDS = CpuFeatures(avx2=True, avx512=True, avx512_bf16=True, amx_tile=True)
SKYLAKE_X = CpuFeatures(avx2=True, avx512=True, avx512_bf16=False, amx_tile=False)
HASWELL = CpuFeatures(avx2=True, avx512=False, avx512_bf16=False, amx_tile=False)
OLD = CpuFeatures(avx2=False, avx512=False, avx512_bf16=False, amx_tile=False)


@needs_vllm_ops
@pytest.mark.parametrize(
    ("features", "weight_format", "activation", "description"),
    [
        (ZEN5, BF16, SILU, "bf16 experts on vLLM's fused CPU kernel"),
        (ZEN5, BF16, CLAMPED, "bf16 experts on vLLM's fused CPU kernel, exact clamp at 10"),
        (ZEN5, MXFP4, CLAMPED, "mxfp4 experts on vLLM's fused CPU kernel, exact clamp at 10"),
        (ZEN5, MXFP4, GPT_OSS, "mxfp4 experts on vLLM's fused CPU kernel, exact clamp at 7"),
        (ZEN5, FP8, SILU, "fp8 experts on vLLM's fused CPU kernel"),
        (ZEN5, COMPRESSED_FP8_BLOCK128, SILU, "fp8 experts on vLLM's fused CPU kernel"),
        (ZEN5, FP8, CLAMPED, "fp8 experts on vLLM's CPU GEMM, one by one, exact clamp at 10"),
        (ZEN5, MXFP4, Activation(limit=1e6), "mxfp4 experts in plain torch on cpu"),
        (SAPPHIRE_RAPIDS, BF16, SILU, "bf16 experts on vLLM's grouped CPU kernel (amx)"),
        (SAPPHIRE_RAPIDS, BF16, CLAMPED, "bf16 experts on vLLM's fused CPU kernel"),
        (SKYLAKE_X, BF16, SILU, "bf16 experts on vLLM's grouped CPU kernel (vec)"),
        (SKYLAKE_X, BF16, GPT_OSS, "bf16 experts on vLLM's grouped CPU kernel (vec)"),
        (SKYLAKE_X, BF16, CLAMPED, "bf16 experts in plain torch on cpu"),
        (
            HASWELL,
            FP8,
            SILU,
            "bf16 experts on vLLM's grouped CPU kernel (vec), converted from fp8 at load",
        ),
        (HASWELL, MXFP4, CLAMPED, "mxfp4 experts in plain torch on cpu"),
        (OLD, MXFP4, SILU, "mxfp4 experts in plain torch on cpu"),
    ],
)
def test_cpu_choices(features, weight_format, activation, description):
    spec = make_spec(weight_format, activation)
    assert choose_operator(spec, CPU, features).describe().startswith(description)


@needs_bf16_cpu
@pytest.mark.parametrize(("hidden", "inter"), [(64, 48), (48, 64)])
def test_sizes_the_native_kernels_cannot_take(hidden, inter):
    spec = make_spec(BF16, SILU, hidden, inter)
    assert choose_operator(spec, CPU).describe() == "bf16 experts in plain torch on cpu"


@needs_vllm_ops
def test_conversion_is_said_aloud(caplog):
    with caplog.at_level(logging.WARNING):
        choose_operator(make_spec(MXFP4, hidden=256, inter=128), CPU, HASWELL)
    assert "no mxfp4 kernel for this model on this CPU: experts become bf16, 3.8 times" in (
        caplog.text
    )


def test_other_devices_get_plain_torch(caplog):
    with caplog.at_level(logging.WARNING):
        operator = choose_operator(make_spec(MXFP4), torch.device("meta"))
    assert operator.describe() == "mxfp4 experts in plain torch on meta"
    assert "meta: experts on plain torch: no plugin of vLLM for meta is installed" in caplog.text


H200 = AcceleratorFeatures("NVIDIA H200", (9, 0), cuda_vllm=True)
B200 = AcceleratorFeatures("NVIDIA B200", (10, 0), cuda_vllm=True)
L40S = AcceleratorFeatures("NVIDIA L40S", (8, 9), cuda_vllm=True)
A100 = AcceleratorFeatures("NVIDIA A100-SXM4-80GB", (8, 0), cuda_vllm=True)
T4 = AcceleratorFeatures("NVIDIA T4", (7, 5), cuda_vllm=True)
METAX = AcceleratorFeatures("MetaX C500")
FUSED, GROUPED, PORTABLE = vllm_cuda_fused, torch_grouped, torch_portable
VLLM_OWN = vllm_layers

INEXACT = "vLLM's kernel does not compute this model's experts exactly"
NO_VLLM = "no CUDA build of vLLM is installed"
NO_PLUGIN = "no plugin of vLLM for {} is installed"
NO_GROUPED = "torch has no grouped GEMM for this device"


def chosen(spec, features):
    """(entry, why not those before it), without building what is chosen."""
    target = Target(torch.device("meta"), features)
    reasons = []
    for entry in KERNELS[target.kind]:
        reason = entry.why_not(spec, target)
        if reason is None:
            return entry, "; ".join(reasons)
        reasons.append(reason)
    raise AssertionError(reasons)


def without_vllm(features: AcceleratorFeatures) -> AcceleratorFeatures:
    return replace(features, cuda_vllm=False)


@pytest.mark.parametrize(
    ("features", "weight_format", "activation", "kernel", "reason"),
    [
        (H200, BF16, SILU, FUSED, ""),
        (H200, BF16, GPT_OSS, FUSED, ""),
        (H200, FP8, SILU, FUSED, ""),
        (H200, BF16, CLAMPED, GROUPED, INEXACT),
        (H200, FP8, CLAMPED, GROUPED, INEXACT),
        (H200, MXFP4, GPT_OSS, GROUPED, INEXACT),
        (without_vllm(H200), BF16, SILU, GROUPED, NO_VLLM),
        (without_vllm(B200), FP8, SILU, GROUPED, NO_VLLM),
        (B200, FP8, SILU, FUSED, ""),
        (B200, COMPRESSED_FP8_BLOCK128, SILU, FUSED, ""),
        (without_vllm(B200), COMPRESSED_FP8_BLOCK128, SILU, GROUPED, NO_VLLM),
        (L40S, FP8, SILU, FUSED, ""),
        (L40S, MXFP4, SILU, VLLM_OWN, f"{INEXACT}; {NO_GROUPED}"),
        (A100, BF16, SILU, FUSED, ""),
        (A100, FP8, SILU, VLLM_OWN, f"the device has no fp8 tensor cores; {NO_GROUPED}"),
        (without_vllm(A100), BF16, SILU, PORTABLE, f"{NO_VLLM}; {NO_GROUPED}; {NO_VLLM}"),
        (T4, BF16, SILU, VLLM_OWN, f"the device has no bf16 tensor cores; {NO_GROUPED}"),
        (METAX, BF16, SILU, PORTABLE, "no plugin of vLLM for MetaX C500 is installed"),
        (
            AcceleratorFeatures("npu"),
            BF16,
            SILU,
            PORTABLE,
            "no plugin of vLLM for npu is installed",
        ),
    ],
)
def test_accelerator_choices(features, weight_format, activation, kernel, reason):
    spec = make_spec(weight_format, activation, hidden=256, inter=128)
    assert chosen(spec, features) == (kernel, reason)


def test_sizes_the_grouped_gemm_cannot_take():
    reason = f"{INEXACT}; torch's grouped GEMM does not take these sizes"
    assert chosen(make_spec(BF16, SILU, hidden=68), H200) == (VLLM_OWN, reason)


def test_an_accelerators_kernel_says_what_it_does(caplog):
    spec = make_spec(FP8, CLAMPED, hidden=256, inter=128)
    with caplog.at_level(logging.WARNING):
        operator = choose_operator(spec, torch.device("meta"), H200)
    assert operator.describe() == (
        "fp8 experts on torch's grouped GEMM on meta, made bf16 in every call"
    )
    assert f"NVIDIA H200: experts on torch's grouped GEMM: {INEXACT}" in caplog.text


@needs_vllm_ops
@pytest.mark.vllm
def test_a_vllm_without_its_cuda_kernel_is_done_without(caplog):
    """This vLLM is a CPU build, which has no Triton; the features claim otherwise."""
    with caplog.at_level(logging.WARNING):
        operator = choose_operator(make_spec(BF16), torch.device("meta"), H200)
    assert operator.describe() == "bf16 experts on torch's grouped GEMM on meta"
    assert "the installed vLLM cannot be used: vLLM found no Triton driver" in caplog.text


def test_what_is_not_nvidias_has_no_cuda_capability():
    assert detect_accelerator_features(torch.device("meta")) == AcceleratorFeatures("meta")


IMPORTS = """
import sys, torch
from actors.kernels.accelerator import AcceleratorFeatures
from actors.kernels.choose import choose_operator
from tests.actors.kernels.building import SILU, make_spec

from actors.experts.formats.bf16 import BF16
spec = make_spec(BF16, SILU)
choose_operator(spec, torch.device("cpu"))
choose_operator(spec, torch.device("meta"), AcceleratorFeatures("NVIDIA H200", (9, 0)))
print(sorted({"vllm", "triton"} & sys.modules.keys()))
"""


def test_neither_vllm_nor_triton_is_imported_unless_it_computes():
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert run.stdout.splitlines()[-1] == "[]"


@needs_bf16_cpu
@pytest.mark.parametrize(
    ("weight_format", "activation"),
    [
        (BF16, SILU),
        (BF16, CLAMPED),
        (BF16, GPT_OSS),
        (FP8, SILU),
        (FP8, CLAMPED),
        (MXFP4, SILU),
        (MXFP4, CLAMPED),
        (MXFP4, GPT_OSS),
    ],
)
def test_memory_is_what_the_spec_says(weight_format, activation):
    spec = make_spec(weight_format, activation, hidden=256, inter=128)
    kernel = make_kernel(spec, choose_operator(spec, CPU, FEATURES), make_experts(spec))
    kernel.load(0, [0, 1, 2, 3])
    assert kernel.bytes_per_expert == spec.bytes_per_expert
    assert kernel.resident_bytes() == pytest.approx(4 * spec.bytes_per_expert, rel=0.03)


@needs_vllm_ops
def test_converted_experts_count_what_they_take():
    spec = make_spec(MXFP4, hidden=256, inter=128)
    kernel = make_kernel(spec, choose_operator(spec, CPU, HASWELL), make_experts(spec))
    kernel.load(0, [0, 1])
    assert kernel.resident_bytes() == 2 * kernel.bytes_per_expert == 2 * 2 * 3 * 256 * 128


SHAPE = Shape(hidden=128, inter=64)
CASES = cases(SHAPE)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_from_checkpoint_to_result(case, tmp_path):
    truth = case.truth(SHAPE)
    write(tmp_path, case.config, case.tensors(truth))
    spec = read_expert_spec(tmp_path)
    kernel = choose_kernel(spec, CPU)
    layer = spec.layers[-1]
    kernel.load(layer, [2, 0, 3])
    batch = make_batch(5, 128, [(0, 0), (0, 3), (1, 2), (2, 3), (4, 2), (4, 0)], scale=20)
    experts = {number: truth[layer, number] for number in range(4)}
    expected, norms = reference(experts, spec.activation, batch)
    assert ((kernel.compute(layer, *batch) - expected).norm(dim=1) <= 0.02 * norms).all()


def test_missing_libraries_are_named():
    assert load_cpu_ops(OLD) == "this CPU has neither AVX2 nor AVX-512"


OLD_CPU_PROGRAM = """
import pathlib, torch
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.spec import Activation, ExpertSpec
from actors.kernels.calibration import random_expert
from actors.kernels.choose import choose_operator
from actors.kernels.native_ops import CpuFeatures
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.torch_portable import TorchPortable

torch.manual_seed(0)
spec = ExpertSpec("TestForCausalLM", pathlib.Path("nowhere"), (0,), 2, 1, 128, 64,
                  MXFP4, Activation())
experts = [random_expert(spec), random_expert(spec)]
features = CpuFeatures(avx2=True, avx512=AVX512, avx512_bf16=False, amx_tile=False)
cpu = torch.device("cpu")
batch = (torch.randn(3, 128).bfloat16(), torch.tensor([0, 1, 2, 2], dtype=torch.int32),
         torch.tensor([0, 1, 1, 0], dtype=torch.int32), torch.rand(4))
sums = []
for operator in (choose_operator(spec, cpu, features), TorchPortable(spec, cpu)):
    kernel = SlotKernel(spec, operator, lambda layer, expert: experts[expert])
    kernel.load(0, [0, 1])
    sums.append(kernel.compute(0, *batch))
    print(kernel.describe())
assert (sums[0] - sums[1]).norm() <= 0.01 * sums[1].norm()
"""


@needs_vllm_ops
@pytest.mark.parametrize("avx512", [True, False])
def test_older_libraries_compute_in_a_process_of_their_own(avx512):
    """One process can load one of vLLM's libraries, and this one has the widest."""
    if avx512 and not FEATURES.avx512:
        pytest.skip("needs a CPU with AVX-512")
    run = subprocess.run(
        [sys.executable, "-c", OLD_CPU_PROGRAM.replace("AVX512", str(avx512))],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert run.returncode == 0, run.stderr
    assert "grouped CPU kernel (vec), converted from mxfp4 at load" in run.stdout
