"""Every number format, and which of them a checkpoint is stored in."""

from collections.abc import Iterable

from actors.experts.formats.awq_int4 import AWQ_INT4
from actors.experts.formats.base import NumberFormat, Quantisation
from actors.experts.formats.bf16 import BF16
from actors.experts.formats.fp8_block128 import COMPRESSED_FP8_BLOCK128, FP8_BLOCK128
from actors.experts.formats.fp8_rows import FP8_ROWS, FP8_WHOLE
from actors.experts.formats.gptq_int4 import GPTQ_INT4, GPTQ_INT4_ZEROS
from actors.experts.formats.int4_group import INT4
from actors.experts.formats.int4_zeros import INT4_ZEROS
from actors.experts.formats.int8_rows import INT8
from actors.experts.formats.mxfp4 import MXFP4
from actors.experts.formats.nvfp4 import MODELOPT_NVFP4, NVFP4

FORMATS: tuple[NumberFormat, ...] = (
    BF16,
    FP8_BLOCK128,
    COMPRESSED_FP8_BLOCK128,
    MXFP4,
    FP8_ROWS,
    FP8_WHOLE,
    NVFP4,
    MODELOPT_NVFP4,
    *INT8,
    *INT4,
    *INT4_ZEROS,
    *GPTQ_INT4,
    *GPTQ_INT4_ZEROS,
    *AWQ_INT4,
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
        raise FormatRefused(
            f"quantization {method} is not supported; supported are {_labels(FORMATS)}"
        )
    fitting = [one for one in known if dtype in one.dtypes]
    refusals = []
    for one in fitting:
        refusal = one.why_not(quantisation)
        if refusal is None:
            return one
        refusals.append(refusal)
    if refusals:
        raise FormatRefused(f"{refusals[0]}; supported: {_labels(fitting)}")
    dtypes = ", ".join(dict.fromkeys(f"{' or '.join(one.dtypes)} ({one.name})" for one in known))
    under = f" under quantization {method}" if method else ""
    raise FormatRefused(f"weights of dtype {dtype} are not supported{under}; supported: {dtypes}")


def _labels(formats: Iterable[NumberFormat]) -> str:
    return ", ".join(dict.fromkeys(one.label for one in formats))
