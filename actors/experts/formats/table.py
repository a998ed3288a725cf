"""Every number format, and which of them a checkpoint is stored in."""

from actors.experts.formats.base import NumberFormat, Quantisation
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import FP8_BLOCK128
from actors.experts.formats.gptq_int4 import (
    GPTQ_GROUP32,
    GPTQ_GROUP64,
    GPTQ_GROUP128,
    GPTQ_ROW,
)
from actors.experts.formats.int4_group import (
    INT4_GROUP32,
    INT4_GROUP64,
    INT4_GROUP128,
    INT4_ROW,
)
from actors.experts.formats.int8_channel import INT8_CHANNEL
from actors.experts.formats.mxfp4 import MXFP4

FORMATS: tuple[NumberFormat, ...] = (
    BF16,
    FP8_BLOCK128,
    MXFP4,
    INT8_CHANNEL,
    INT4_GROUP32,
    INT4_GROUP64,
    INT4_GROUP128,
    INT4_ROW,
    GPTQ_GROUP32,
    GPTQ_GROUP64,
    GPTQ_GROUP128,
    GPTQ_ROW,
)

WEIGHT_SUFFIXES = tuple(dict.fromkeys(one.weight_suffix for one in FORMATS if one.weight_suffix))
"""Of formats that name their weights themselves."""


class FormatRefused(ValueError):
    """No format reads this; one phrase that says why and what is supported."""


def choose_format(quantisation: Quantisation, dtype: str) -> NumberFormat:
    """The format of weights of `dtype` (safetensors' name) in a checkpoint quantised like this."""
    method = quantisation.get("quant_method")
    known = [one for one in FORMATS if method in one.quant_methods]
    if not known:
        labels = ", ".join(dict.fromkeys(one.label for one in FORMATS))
        raise FormatRefused(f"quantization {method} is not supported; supported are {labels}")
    refusals = []
    for one in known:
        if dtype in one.dtypes:
            refusal = one.why_not(quantisation)
            if refusal is None:
                return one
            refusals.append(refusal)
    if refusals:
        raise FormatRefused(refusals[0])
    dtypes = ", ".join(dict.fromkeys(f"{' or '.join(one.dtypes)} ({one.name})" for one in known))
    under = f" under quantization {method}" if method else ""
    raise FormatRefused(f"weights of dtype {dtype} are not supported{under}; supported: {dtypes}")
