"""What a device does, apart from any model: memory's bandwidth, products, copies to it and back.

For people who look at claims and want to know whether a device is well. The planner counts on what
calls of the expert kernel cost (`calibration.py`), not on these.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

STREAM_BYTES = 64 << 20
"""Copied within the device's memory: more than caches hold."""
PRODUCT = 1024
"""Rows and columns of the matrices multiplied."""
SMALL_BYTES = 4 << 10
"""Copied from and to the host to see what a copy costs to start; `STREAM_BYTES` for its speed."""
REPEATS = 5


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """stream: bytes a second read and written. bf16: operations a second of products. to, from:
    a small copy's seconds and a large one's bytes a second; None on a CPU, which copies nothing."""

    stream_bytes_per_s: float
    bf16_per_s: float
    to_device_s: float | None
    to_device_bytes_per_s: float | None
    from_device_s: float | None
    from_device_bytes_per_s: float | None


def measure_speed(device: torch.device) -> DeviceSpeed:
    """Takes below a second and a few hundred MiB of the device's memory."""
    source = torch.zeros(STREAM_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    factor = torch.ones(PRODUCT, PRODUCT, dtype=torch.bfloat16, device=device)
    stream_s = fastest_s(lambda: target.copy_(source), device)
    product_s = fastest_s(lambda: factor @ factor, device)
    stream, product = 2 * STREAM_BYTES / stream_s, 2 * PRODUCT**3 / product_s
    if device.type == "cpu":
        return DeviceSpeed(stream, product, None, None, None, None)
    large = torch.zeros(STREAM_BYTES, dtype=torch.uint8)
    small, there = large[:SMALL_BYTES], source[:SMALL_BYTES]
    return DeviceSpeed(
        stream,
        product,
        fastest_s(lambda: small.to(device), device),
        STREAM_BYTES / fastest_s(lambda: large.to(device), device),
        fastest_s(there.cpu, device),
        STREAM_BYTES / fastest_s(source.cpu, device),
    )


def fastest_s(
    work: Callable[[], object],
    device: torch.device,
    clock_s: Callable[[], float] = time.perf_counter,
) -> float:
    """Of a few times: other work on the machine only ever adds. The first is not counted."""
    times = []
    for _ in range(1 + REPEATS):
        wait_for(device)
        before = clock_s()
        work()
        wait_for(device)
        times.append(clock_s() - before)
    return min(times[1:])


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    synchronize = getattr(getattr(torch, device.type, None), "synchronize", None)
    if device.type != "cpu" and synchronize is not None:
        synchronize(device)
