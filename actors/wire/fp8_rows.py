"""Rows in e4m3 with one fp32 scale each: half the bytes of bf16, for links between nodes.

A row's scale is its largest magnitude / 448, so that this value becomes e4m3's largest. Values are
rounded to nearest, ties to even: an error of 2^-4 of the value, or of scale * 2^-10 where the value
is below scale * 2^-6. A row with an infinity or a NaN decodes to NaNs throughout: it must not come
back as numbers. Unsigned integers carry the bits of both formats; numba widens what is shifted, so
it is narrowed again.
"""

import numpy as np

from actors.wire.bf16 import round_to_bf16
from native.compiled import compiled

LARGEST = 448.0
LARGEST_CODE = np.uint32(0x7E)
SMALLEST_SCALE = np.float32(2.0**-126)
"""Below it a scale's inverse would not be finite."""
SMALLEST_NORMAL = np.uint32(0x3C800000)  # fp32 bits of 2^-6
SUBNORMAL_SHIFT = np.float32(2.0**14)
"""fp32 numbers from here on are 2^-9 apart, as e4m3's subnormal ones are: adding it rounds."""
SUBNORMAL_SHIFT_BITS = np.uint32(0x46800000)
SMALLEST_SUBNORMAL = np.float32(2.0**-9)
EXPONENT_SHIFT = np.uint32(
    120 << 3
)  # fp32's bias of 127 becomes e4m3's 7, above 3 bits of mantissa


@compiled()
def encode_row(row, codes):  # type: ignore[no-untyped-def]
    """codes: uint8 [H] of row: bf16 bits [H]; returns the scale, fp32."""
    largest = np.uint16(0)
    for h in range(row.shape[0]):
        largest = max(largest, np.uint16(row[h] & np.uint16(0x7FFF)))
    if largest >= np.uint16(0x7F80):
        codes[:] = np.uint8(1)
        return np.float32(np.nan)
    magnitude = np.uint32(np.uint32(largest) << np.uint32(16)).view(np.float32)
    scale = max(np.float32(magnitude / np.float32(LARGEST)), SMALLEST_SCALE)
    inverse = np.float32(np.float32(1.0) / scale)
    for h in range(row.shape[0]):
        codes[h] = _encode(row[h], inverse)
    return scale


@compiled(inline="always")
def _encode(bits, inverse):  # type: ignore[no-untyped-def]
    """e4m3 code of one bf16 number times `inverse`, which is at most about LARGEST."""
    sign = np.uint32(np.uint32(bits >> np.uint16(8)) & np.uint32(0x80))
    magnitude = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(16)).view(np.float32)
    scaled = np.float32(magnitude * inverse)
    exact = scaled.view(np.uint32)
    odd = np.uint32((exact >> np.uint32(20)) & np.uint32(1))
    normal = np.uint32(
        np.uint32(np.uint32(exact + np.uint32(0x7FFFF) + odd) >> np.uint32(20)) - EXPONENT_SHIFT
    )
    shifted = np.float32(scaled + SUBNORMAL_SHIFT)
    subnormal = np.uint32(shifted.view(np.uint32) - SUBNORMAL_SHIFT_BITS)
    code = normal if exact >= SMALLEST_NORMAL else subnormal
    return np.uint8(min(code, LARGEST_CODE) | sign)


@compiled()
def decode_rows(codes, scales, rows):  # type: ignore[no-untyped-def]
    """rows: bf16 bits [R, H] of codes [R, H] times scales [R], to nearest even."""
    for r in range(codes.shape[0]):
        for h in range(codes.shape[1]):
            value = np.float32(value_of(codes[r, h]) * scales[r])
            rows[r, h] = round_to_bf16(value.view(np.uint32))


@compiled(inline="always")
def value_of(code):  # type: ignore[no-untyped-def]
    """fp32 value of an e4m3 code. Computed: a table of 256 takes four times as long."""
    magnitude = np.uint32(code & np.uint8(0x7F))
    normal = np.uint32(np.uint32(magnitude + EXPONENT_SHIFT) << np.uint32(20)).view(np.float32)
    subnormal = np.float32(np.float32(magnitude) * SMALLEST_SUBNORMAL)
    value = normal if magnitude >= np.uint32(8) else subnormal
    value = np.float32(np.nan) if magnitude == np.uint32(0x7F) else value
    return -value if code & np.uint8(0x80) else value
