"""A checkpoint's format follows from its quantisation config and the dtype of its weights."""

import copy
import pickle

import pytest
import torch

from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.int8_channel import INT8_CHANNEL
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.formats.table import FORMATS, FormatRefused, choose_format
from tests.actors.experts.tiny import FP8_CONFIG, INT8_CONFIG

FORMAT_IDS = [one.name for one in FORMATS]


@pytest.mark.parametrize(
    ("quantisation", "dtype", "expected"),
    [
        ({}, "BF16", BF16),
        (FP8_CONFIG, "BF16", BF16),
        (FP8_CONFIG, "F8_E4M3", FP8_BLOCK128),
        (FP8_CONFIG, "I8", MXFP4),
        ({"quant_method": "mxfp4"}, "U8", MXFP4),
        (INT8_CONFIG, "I8", INT8_CHANNEL),
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
        ({"quant_method": "awq"}, "I32", "quantization awq is not supported; supported are bf16,"),
    ],
)
def test_what_is_not_read_is_named(quantisation, dtype, message):
    with pytest.raises(FormatRefused, match=message):
        choose_format(quantisation, dtype)


@pytest.mark.parametrize("one", FORMATS, ids=FORMAT_IDS)
def test_a_sample_is_what_is_stored_and_counted(one):
    rows, columns = 160, 96
    stored = list(one.stored(rows, columns, transposed=False, block_layout=False))
    sample = [tensor for tensor in one.sample(rows, columns) if tensor is not None]
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
