"""Rows of weights in blocks of 32, transposed in vector registers.

For each block of 32 rows and each unit of columns, the units of all rows come side by side. A block
is read into vectors and transposed by shuffles, which LLVM has for every CPU. Row n begins at
n // 2 * pair + n % 2 * odd bytes: that says rows one after the other, and rows of two halves of a
matrix in alternation, at no cost. Sizes are not checked here.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from native.compiled import compiled

ROWS = 32
"""Of a block."""
PAIRED_BYTES = 16
"""Columns that `pack_paired` takes at once, a byte in MXFP4 for two of them."""
UNITS_16, UNITS_32 = 16, 8
"""Units that the others take at once: 256 bits."""
UNITS_8 = 16
"""Single bytes, of which a square takes as many rows: 128 bits."""

_INDEX = ir.IntType(64)


def _lanes(indices: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), indices)


def _interleaved(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Vectors a0 b0 a1 b1 ..., in two halves."""
    count = a.type.count
    order = [lane for n in range(count) for lane in (n, count + n)]
    return tuple(
        builder.shuffle_vector(a, b, _lanes(order[half * count : (half + 1) * count]))
        for half in (0, 1)
    )


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """n vectors of n lanes each. Interleaving each vector of the first half with its partner in the
    second one rotates the bits of (row, lane) by one; after log2(n) times they have changed places.
    """
    half = len(rows) // 2
    for _ in range(half.bit_length()):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [vector for a, b in pairs for vector in _interleaved(builder, a, b)]
    return rows


class _Block:
    """Code for one block: where its rows begin, and where its units go."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        source, start, self._pair, self._odd, target, end = arguments
        self._builder = builder
        self._source = builder.gep(_data(context, builder, signature.args[0], source), [start])
        self._target = builder.gep(_data(context, builder, signature.args[4], target), [end])

    def load(self, row: int, vector: Any) -> Any:
        builder = self._builder
        place = builder.mul(self._pair, _INDEX(row // 2))
        if row % 2:
            place = builder.add(place, self._odd)
        pointer = builder.gep(self._source, [place])
        return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)

    def store(self, vector: Any, place: int) -> None:
        pointer = self._builder.gep(self._target, [_INDEX(place)])
        self._builder.store(
            vector, self._builder.bitcast(pointer, vector.type.as_pointer()), align=1
        )


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


_SIGNATURE = types.intp(
    types.uint8[::1], types.intp, types.intp, types.intp, types.uint8[::1], types.intp
)


def _transposing(bits: int, lanes: int) -> Any:
    """Code that transposes the next `lanes` units of `bits` each of the 32 rows of a block."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        block = _Block(context, builder, signature, arguments)
        vector = ir.VectorType(ir.IntType(bits), lanes)
        for first in range(0, ROWS, lanes):
            rows = [block.load(first + n, vector) for n in range(lanes)]
            for unit, lane in enumerate(_transposed(builder, rows)):
                block.store(lane, (unit * ROWS + first) * bits // 8)
        return _INDEX(0)

    return generate


def _pairing(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Code for the next 16 bytes of the 32 rows of a block in MXFP4."""
    block = _Block(context, builder, signature, arguments)
    narrow, wide = (ir.VectorType(ir.IntType(bits), PAIRED_BYTES) for bits in (8, 16))
    four, low, high = (ir.Constant(narrow, [n] * PAIRED_BYTES) for n in (4, 0x0F, 0xF0))
    rows = []
    for n in range(ROWS // 2):
        a, b = block.load(n, narrow), block.load(n + ROWS // 2, narrow)
        lower = builder.or_(builder.and_(a, low), builder.shl(b, four))
        upper = builder.or_(builder.lshr(a, four), builder.and_(b, high))
        order = [lane for n in range(PAIRED_BYTES) for lane in (n, PAIRED_BYTES + n)]
        units = builder.shuffle_vector(lower, upper, _lanes(order))
        rows.append(builder.bitcast(units, wide))
    for unit, lane in enumerate(_transposed(builder, rows)):
        block.store(lane, unit * ROWS)
    return _INDEX(0)


@intrinsic
def _pair_block(_: Any, source: Any, start: Any, pair: Any, odd: Any, target: Any, end: Any) -> Any:  # noqa: ARG001 - numba wants the names
    return _SIGNATURE, _pairing


@intrinsic
def _block_16(_: Any, source: Any, start: Any, pair: Any, odd: Any, target: Any, end: Any) -> Any:  # noqa: ARG001
    return _SIGNATURE, _transposing(16, UNITS_16)


@intrinsic
def _block_32(_: Any, source: Any, start: Any, pair: Any, odd: Any, target: Any, end: Any) -> Any:  # noqa: ARG001
    return _SIGNATURE, _transposing(32, UNITS_32)


@intrinsic
def _block_8(_: Any, source: Any, start: Any, pair: Any, odd: Any, target: Any, end: Any) -> Any:  # noqa: ARG001
    return _SIGNATURE, _transposing(8, UNITS_8)


@compiled()
def pack_paired(source, target, blocks, columns, pair, odd):  # type: ignore[no-untyped-def]
    """MXFP4: `columns` bytes a row, a multiple of 16. The bytes a, b of rows n and n + 16 (n < 16)
    become a unit: low nibbles in its lower byte, a's the lower one, high nibbles in the upper."""
    for block in range(blocks):
        start = block * (ROWS // 2) * pair
        for column in range(0, columns, PAIRED_BYTES):
            end = (block * columns + column) * ROWS
            _pair_block(source, start + column, pair, odd, target, end)


@compiled()
def pack_16(source, target, blocks, units, pair, odd):  # type: ignore[no-untyped-def]
    """Rows of `units` units of 16 bits each, a multiple of 16."""
    for block in range(blocks):
        start = block * (ROWS // 2) * pair
        for unit in range(0, units, UNITS_16):
            end = (block * units + unit) * ROWS * 2
            _block_16(source, start + unit * 2, pair, odd, target, end)


@compiled()
def pack_32(source, target, blocks, units, pair, odd):  # type: ignore[no-untyped-def]
    """Rows of `units` units of 32 bits each, a multiple of 8."""
    for block in range(blocks):
        start = block * (ROWS // 2) * pair
        for unit in range(0, units, UNITS_32):
            end = (block * units + unit) * ROWS * 4
            _block_32(source, start + unit * 4, pair, odd, target, end)


@compiled()
def pack_bytes(source, target, blocks, columns, pair, odd, add):  # type: ignore[no-untyped-def]
    """Rows of any number of bytes, to each of which `add` is added."""
    whole = columns // UNITS_8 * UNITS_8
    for block in range(blocks):
        start = block * (ROWS // 2) * pair
        for column in range(0, whole, UNITS_8):
            _block_8(source, start + column, pair, odd, target, (block * columns + column) * ROWS)
        for row in range(ROWS):
            begin = start + (row // 2) * pair + (row % 2) * odd
            for column in range(whole, columns):
                target[(block * columns + column) * ROWS + row] = source[begin + column]
        if add:
            for place in range(block * columns * ROWS, (block + 1) * columns * ROWS):
                target[place] += add
