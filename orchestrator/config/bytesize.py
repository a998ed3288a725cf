"""Byte counts as people write them: "8MiB", "1.5 GB", 4096.

Not pydantic's `ByteSize`: that one takes bits, True and fractions of bytes.
"""

import re

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(value: object) -> int:
    """Bytes meant by an int or by a number with a unit; raises ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _PATTERN.fullmatch(value) if isinstance(value, str) else None
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise ValueError('expected bytes or a size such as "512MiB" or "1.5GB"')
    size = float(match[1]) * factor if "." in match[1] else int(match[1]) * factor
    if size != int(size):
        raise ValueError("a size must be a whole number of bytes")
    return int(size)


def format_bytes(size: int) -> str:
    """`size` with the largest binary unit that leaves at least 1, to one decimal: "12.8 MiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        scale = _UNITS[unit.upper()]
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
