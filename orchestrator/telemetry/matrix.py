"""Layers x experts as one compact binary array: what labels of metrics could never carry.

    offset  bytes  little endian
    0       4      "EMX1"
    4       4      L, rows
    8       4      E, columns
    12      4      sequence number of the look that this is of
    16      4      sequence number it is to be added to; 0: it stands alone
    20      4      bytes that follow

The body is the L x E values, row by row, each as an unsigned LEB128 number: seven bits a byte,
lowest first, the top bit set in all but the last. Totals of 61 x 384 experts take at most 141 kB up
to 4e12 assignments each, differences of one window mostly one or two bytes a value.
`dashboards/page/matrix.js` reads it.
"""

import struct

import numpy as np
from numpy.typing import NDArray

MAGIC = b"EMX1"
HEADER = struct.Struct("<4sIIIII")
MEDIA_TYPE = "application/vnd.expertmesh.matrix"
_MOST_BYTES = 9


def encode(values: NDArray[np.int64], sequence: int, base: int = 0) -> bytes:
    """values: [L, E], not negative; base: sequence number that they are the difference to."""
    if values.ndim != 2 or (values.size and values.min() < 0):
        raise ValueError(f"a matrix of numbers >= 0 is needed, got shape {values.shape}")
    body = _leb128(values.ravel().astype(np.uint64))
    rows, columns = values.shape
    return HEADER.pack(MAGIC, rows, columns, sequence, base, len(body)) + body


def decode(data: bytes) -> tuple[NDArray[np.int64], int, int]:
    """(values [L, E], sequence, base).

    Raises:
        ValueError: it is cut short, or no matrix at all.
    """
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise ValueError("no expert matrix: it does not begin with EMX1")
    _, rows, columns, sequence, base, length = HEADER.unpack_from(data)
    body = np.frombuffer(data, np.uint8, offset=HEADER.size)
    ends = np.flatnonzero(body < 0x80)
    if len(body) != length or len(ends) != rows * columns or (length and body[-1] >= 0x80):
        raise ValueError(f"an expert matrix of {rows} x {columns} values was cut short")
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    values = np.zeros(len(ends), np.int64)
    for place in range(_MOST_BYTES):
        there = starts + place <= ends
        values[there] |= (body[starts[there] + place].astype(np.int64) & 0x7F) << (7 * place)
    return values.reshape(rows, columns), sequence, base


def _leb128(values: NDArray[np.uint64]) -> bytes:
    """All values at once: place by place, not value by value."""
    lengths = np.ones(len(values), np.int64)
    for place in range(1, _MOST_BYTES):
        lengths += values >= np.uint64(1 << (7 * place))
    starts = np.cumsum(lengths) - lengths
    out = np.zeros(int(lengths.sum()), np.uint8)
    for place in range(int(lengths.max(initial=0))):
        there = lengths > place
        seven = (values[there] >> np.uint64(7 * place)) & np.uint64(0x7F)
        more = (lengths[there] > place + 1).astype(np.uint64) << np.uint64(7)
        out[starts[there] + place] = (seven | more).astype(np.uint8)
    return out.tobytes()
