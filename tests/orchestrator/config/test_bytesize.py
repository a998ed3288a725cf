"""Byte counts, as people write them and as they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.bytesize import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("8MiB", 8 * 2**20),
        ("8 mib", 8 * 2**20),
        ("1.5GB", 1_500_000_000),
        ("4.5MiB", 9 * 2**19),
        ("2TiB", 2**41),
        ("1kB", 1000),
    ],
)
def test_parse(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "8 parsec", "-1", -1, True, 1.5, None, "0.3B"])
def test_refuse(text: object) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (13_369_344, "12.8 MiB"), (2**41, "2.0 TiB")],
)
def test_format(size: int, text: str) -> None:
    assert format_bytes(size) == text


@given(st.integers(0, 2**50))
def test_what_is_shown_reads_back_within_its_rounding(size: int) -> None:
    number, unit = format_bytes(size).split()
    half_digit = 0 if unit == "B" else parse_bytes(f"1{unit}") / 20
    # The product is a float: a hair beyond the half digit is its rounding, not ours.
    assert abs(float(number) * parse_bytes(f"1{unit}") - size) <= half_digit * (1 + 1e-9)
