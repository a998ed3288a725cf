"""A device without streams or pinned memory is served, and says so. What holds of devices that have
them: `tests/devices/staging_checks.py`."""

import logging

import pytest
import torch

from actors.kernels import streams
from actors.kernels.copies import DeviceCopies
from actors.kernels.row_staging import MOST_STAGING_BYTES, staging_bytes
from actors.kernels.streams import streams_of

META = torch.device("meta")
"""A device of torch's own that has neither."""


class WithoutPinnedMemory:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pinned(self, num_bytes: int) -> torch.Tensor:
        raise RuntimeError(f"{num_bytes} bytes cannot be pinned\nand more about that")


def test_a_cpu_copies_nothing_and_has_nothing_to_say() -> None:
    assert streams_of(torch.device("cpu")) == (None, "")
    assert DeviceCopies.of(torch.device("cpu")).problem == ""


def test_torchs_calls_are_tried() -> None:
    found, reason = streams_of(META)
    assert found is None
    assert reason
    assert "\n" not in reason


def test_what_is_missing_is_told_in_one_line(monkeypatch, caplog) -> None:
    monkeypatch.setitem(streams.STREAMS, "meta", WithoutPinnedMemory)
    monkeypatch.setattr(DeviceCopies, "_told", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            copies = DeviceCopies.of(META)
    assert copies.problem == ", copies from pageable memory (4096 bytes cannot be pinned)"
    assert copies.rows is None
    (record,) = caplog.records
    assert "copied from pageable memory" in record.getMessage()


@pytest.mark.parametrize(("free", "pinned"), [(1 << 30, 1 << 24), (1 << 50, MOST_STAGING_BYTES)])
def test_what_is_pinned_is_a_small_part_of_the_host(monkeypatch, free, pinned) -> None:
    class Memory:
        available = free

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    assert staging_bytes() == pinned
