"""A checkpoint's format follows from its quantisation config and the dtype of its weights."""

import copy
import pickle

import pytest
import torch

from actors.experts.formats.base import Kind
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.gptq_int4 import GPTQ_GROUP128, GPTQ_ROW, GptqInt4
from actors.experts.formats.int4_group import INT4_GROUP32, INT4_GROUP128, INT4_ROW, Int4Group
from actors.experts.formats.int8_channel import INT8_CHANNEL
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.formats.table import FORMATS, FormatRefused, choose_format
from tests.actors.experts.tiny import FP8_CONFIG, GPTQ_CONFIG, INT8_CONFIG, int4_config

FORMAT_IDS = [f"{one.name}-{getattr(one, 'group', '')}" for one in FORMATS]


@pytest.mark.parametrize(
    ("quantisation", "dtype", "expected"),
    [
        ({}, "BF16", BF16),
        (FP8_CONFIG, "BF16", BF16),
        (FP8_CONFIG, "F8_E4M3", FP8_BLOCK128),
        (FP8_CONFIG, "I8", MXFP4),
        ({"quant_method": "mxfp4"}, "U8", MXFP4),
        (INT8_CONFIG, "I8", INT8_CHANNEL),
        (int4_config(group_size=32), "I32", INT4_GROUP32),
        (int4_config(group_size=128, actorder="static"), "I32", INT4_GROUP128),
        (int4_config(strategy="channel", group_size=None), "I32", INT4_ROW),
        (GPTQ_CONFIG | {"group_size": 128}, "I32", GPTQ_GROUP128),
        (GPTQ_CONFIG | {"group_size": -1}, "I32", GPTQ_ROW),
    ],
)
def test_config_and_dtype_decide_together(quantisation, dtype, expected):
    assert choose_format(quantisation, dtype) == expected


def changed(key, value):
    config = copy.deepcopy(INT8_CONFIG)
    config["config_groups"]["group_0"]["weights"][key] = value
    return config


@pytest.mark.parametrize(
    ("quantisation", "dtype", "message"),
    [
        (INT8_CONFIG, "F8_E4M3", "dtype F8_E4M3 are not supported under quantization compressed"),
        (changed("strategy", "group"), "I8", "strategy group in group_0 is not supported; it must"),
        (changed("num_bits", 4), "I8", "with num_bits 4 in group_0"),
        (changed("symmetric", False), "I8", "with symmetric False in group_0"),
        (int4_config(group_size=16), "I32", "with group_size 16 in group_0"),
        (GPTQ_CONFIG | {"desc_act": True}, "I32", "gptq with desc_act True is not supported"),
        (GPTQ_CONFIG | {"sym": False}, "I32", "gptq with sym False is not supported"),
        (int4_config(group_size=32, symmetric=False), "I32", "with symmetric False in group_0"),
        (int4_config(group_size=32, actorder="group"), "I32", "with actorder group in group_0"),
        ({"quant_method": "awq"}, "I32", "quantization awq is not supported; supported are bf16,"),
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
    if not isinstance(one, GptqInt4):  # which turns what is stored
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
    decoded = INT8_CHANNEL.decode(weight, scale, torch.float32)
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
