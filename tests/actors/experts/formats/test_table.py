"""A checkpoint's format follows from its quantisation config and the dtype of its weights."""

import copy
import pickle

import pytest
import torch

from actors.experts.formats.awq_int4 import AwqInt4
from actors.experts.formats.base import Kind
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import COMPRESSED_FP8_BLOCK128, FP8_BLOCK128
from actors.experts.formats.fp8_rows import FP8_ROWS, FP8_WHOLE, Fp8Whole
from actors.experts.formats.gptq_int4 import GptqInt4, GptqInt4Zeros
from actors.experts.formats.int4_group import INT4_GROUP32, INT4_GROUP128, INT4_ROW, Int4Group
from actors.experts.formats.int4_zeros import Int4Zeros
from actors.experts.formats.int8_rows import INT8_GROUP128, INT8_ROW
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.formats.nvfp4 import MODELOPT_NVFP4, NVFP4, Nvfp4
from actors.experts.formats.table import FORMATS, FormatRefused, choose_format
from tests.actors.experts.tiny import FP8_CONFIG, GPTQ_CONFIG, INT8_CONFIG, int4_config
from tests.checkpoints.quantised import AWQ_CONFIG, MODELOPT_CONFIG
from tests.checkpoints.quantised import FORMATS as WRITTEN

FP8_ROWS_CONFIG, FP8_WHOLE_CONFIG = WRITTEN["fp8-rows"].config, WRITTEN["fp8-whole"].config
FP8_BLOCKS_CONFIG = WRITTEN["fp8-blocks"].config
NVFP4_CONFIG, W4A8_CONFIG = WRITTEN["nvfp4"].config, WRITTEN["w4a8"].config
ASYMMETRIC_GPTQ = GPTQ_CONFIG | {"sym": False}

FORMAT_IDS = [f"{one.name}-{getattr(one, 'group', '')}" for one in FORMATS]


def changed(config, key, value):
    config = copy.deepcopy(config)
    config["config_groups"]["group_0"]["weights"][key] = value
    return config


@pytest.mark.parametrize(
    ("quantisation", "dtype", "expected"),
    [
        ({}, "BF16", BF16),
        (FP8_CONFIG, "BF16", BF16),
        (FP8_CONFIG, "F8_E4M3", FP8_BLOCK128),
        (FP8_CONFIG, "I8", MXFP4),
        ({"quant_method": "mxfp4"}, "U8", MXFP4),
        (INT8_CONFIG, "I8", INT8_ROW),
        (int4_config(group_size=32), "I32", INT4_GROUP32),
        (int4_config(group_size=128, actorder="static"), "I32", INT4_GROUP128),
        (int4_config(strategy="channel", group_size=None), "I32", INT4_ROW),
        (GPTQ_CONFIG | {"group_size": 128}, "I32", GptqInt4(128)),
        (GPTQ_CONFIG | {"group_size": -1}, "I32", GptqInt4(None)),
        (ASYMMETRIC_GPTQ, "I32", GptqInt4Zeros(32, 1)),
        (ASYMMETRIC_GPTQ | {"checkpoint_format": "gptq_v2"}, "I32", GptqInt4Zeros(32, 0)),
        (int4_config(group_size=64, symmetric=False), "I32", Int4Zeros(64)),
        (AWQ_CONFIG, "I32", AwqInt4(32)),
        (
            {
                "quant_method": "awq",
                "w_bit": 4,
                "q_group_size": 128,
                "zero_point": True,
                "version": "GEMM",
            },
            "I32",
            AwqInt4(128),
        ),
        (FP8_ROWS_CONFIG, "F8_E4M3", FP8_ROWS),
        (FP8_WHOLE_CONFIG, "F8_E4M3", FP8_WHOLE),
        (FP8_BLOCKS_CONFIG, "F8_E4M3", COMPRESSED_FP8_BLOCK128),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "F8_E4M3", FP8_WHOLE),
        (NVFP4_CONFIG, "U8", NVFP4),
        (MODELOPT_CONFIG, "U8", MODELOPT_NVFP4),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}},
            "U8",
            MODELOPT_NVFP4,
        ),
        (changed(W4A8_CONFIG, "group_size", 128), "I8", INT8_GROUP128),
    ],
)
def test_config_and_dtype_decide_together(quantisation, dtype, expected):
    assert choose_format(quantisation, dtype) == expected


@pytest.mark.parametrize(
    ("quantisation", "dtype", "message"),
    [
        (INT8_CONFIG, "F8_E5M2", "dtype F8_E5M2 are not supported under quantization compressed"),
        (
            INT8_CONFIG,
            "F8_E4M3",
            "type int in group_0 is not supported; supported: fp8 in 128x128",
        ),
        (changed(INT8_CONFIG, "group_size", 16), "I8", "with group_size 16 in group_0 is not sup"),
        (changed(INT8_CONFIG, "num_bits", 2), "I8", "with num_bits 2 in group_0"),
        (changed(INT8_CONFIG, "symmetric", False), "I8", "with symmetric False in group_0"),
        (changed(FP8_ROWS_CONFIG, "strategy", "group"), "F8_E4M3", "strategy group in group_0"),
        (
            changed(FP8_BLOCKS_CONFIG, "block_structure", [64, 64]),
            "F8_E4M3",
            r"block_structure \[64, 64\] in group_0 is not supported; supported: fp8 in 128x128",
        ),
        (changed(NVFP4_CONFIG, "group_size", 32), "U8", "with group_size 32 in group_0"),
        (MODELOPT_CONFIG | {"quant_algo": "FP8"}, "U8", "modelopt with FP8 is not supported; sup"),
        (int4_config(group_size=16), "I32", "with group_size 16 in group_0"),
        (int4_config(group_size=32, actorder="group"), "I32", "with actorder group in group_0"),
        (
            int4_config(group_size=64, symmetric=False, actorder="group"),
            "I32",
            "with actorder group in group_0 is not supported; supported: int4 in groups of 32",
        ),
        (GPTQ_CONFIG | {"desc_act": True}, "I32", "gptq with desc_act True is not supported"),
        (GPTQ_CONFIG | {"bits": 8}, "I32", "gptq with bits 8 is not supported"),
        (
            ASYMMETRIC_GPTQ | {"checkpoint_format": "marlin"},
            "I32",
            "gptq with checkpoint_format marlin is not supported",
        ),
        (AWQ_CONFIG | {"version": "gemv"}, "I32", "awq with version gemv is not supported"),
        (AWQ_CONFIG | {"zero_point": False}, "I32", "awq with zero_point False is not supported"),
        ({"quant_method": "aqlm"}, "I32", "quantization aqlm is not supported; supported are bf16"),
    ],
)
def test_what_is_not_read_is_named(quantisation, dtype, message):
    with pytest.raises(FormatRefused, match=message):
        choose_format(quantisation, dtype)


@pytest.mark.parametrize("one", FORMATS, ids=FORMAT_IDS)
def test_a_sample_is_what_is_stored_and_counted(one):
    rows, columns = 160, 256
    stored = list(one.stored(rows, columns, transposed=False, block_layout=False))
    sample = [tensor for tensor in one.sample(rows, columns) if tensor is not None]
    # Those that are turned or unpacked, or whose two scales become one.
    if not isinstance(one, (GptqInt4, Int4Zeros, Fp8Whole, Nvfp4)):
        assert [tuple(tensor.shape) for tensor in sample] == [tensor.shape for tensor in stored]
    assert sum(tensor.nbytes for tensor in sample) == one.bytes_of(rows, columns)
    decoded = one.decode(*one.sample(rows, columns), torch.float32)
    assert decoded.shape == (rows, columns)
    assert decoded.isfinite().all()


@pytest.mark.parametrize("one", FORMATS, ids=FORMAT_IDS)
def test_a_format_is_the_same_one_in_another_process(one):
    assert pickle.loads(pickle.dumps(one)) == one
    assert sum(one == other for other in FORMATS) == 1


def test_int8_rows_have_scales_of_their_own():
    weight = torch.tensor([[1, -127], [3, 4]], dtype=torch.int8)
    scale = torch.tensor([[0.5], [2.0]])
    decoded = INT8_ROW.decode(weight, scale, torch.float32)
    assert decoded.tolist() == [[0.5, -63.5], [6.0, 8.0]]


@pytest.mark.parametrize("group", [32, 64, 128, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_int4_is_what_compressed_tensors_unpacks(group, dtype):
    """Their library packs a quantised matrix, and says which values it stands for."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    quantised = torch.randint(-8, 8, (48, 256), dtype=torch.int8)
    scale = (torch.rand(48, 256 // (group or 256)) + 0.1).to(dtype)
    strategy = "group" if group else "channel"
    arguments = QuantizationArgs(num_bits=4, strategy=strategy, group_size=group)
    expected = dequantize(quantised, scale.float(), args=arguments, dtype=torch.float32)
    one = Int4Group(group)
    packed = one.canonical(Kind.WEIGHT, pack_to_int32(quantised, 4))
    decoded = one.decode(packed, one.canonical(Kind.SCALE, scale), torch.float32)
    assert torch.equal(decoded, expected)


def test_gptq_is_int4_the_other_way_round():
    """Packed by the definition of the format: eight inputs of one output in a word."""
    quantised = torch.randint(-8, 8, (24, 64))
    scale = torch.rand(24, 2) + 0.1
    words = torch.zeros(8, 24, dtype=torch.int64)
    for column in range(64):
        words[column // 8] += (quantised[:, column] + 8) << (4 * (column % 8))
    one = GptqInt4(32)
    packed = one.canonical(Kind.WEIGHT, words.to(torch.uint32).view(torch.int32))
    decoded = one.decode(packed, one.canonical(Kind.SCALE, scale.T), torch.float32)
    assert torch.equal(decoded, quantised * scale.repeat_interleave(32, 1))
