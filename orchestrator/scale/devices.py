"""A cluster file's pools as devices with a cost of calls, from claims and assumptions. Pure."""

from dataclasses import dataclass

from actors.devices.catalogue import UnknownDevice, find_chip, find_family
from actors.devices.family import Chip, Claim
from orchestrator.errors import UserError
from orchestrator.scale.cluster_file import Assumptions, PaperCluster, PaperPool
from orchestrator.scale.models import PaperModel
from placement.cost_model import DeviceCost

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class PaperDevice:
    """One device, as torch sees it. node: index over the cluster. expert_slots: experts it has
    memory for, over all layers. cold: gets what the others have no room for."""

    pool: str
    node: int
    expert_slots: int
    expert_bytes: int
    cost: DeviceCost
    engines: bool
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one device, and where each comes from."""

    memory: float
    bandwidth: float
    operations: float
    sources: tuple[str, ...]


def devices_of(cluster: PaperCluster, model: PaperModel) -> tuple[list[PaperDevice], list[str]]:
    """(devices, sources): the order is that of the pools; nodes hold devices of one pool.

    Raises:
        UserError: a chip is unknown, or a figure that nobody has given is not assumed.
    """
    devices: list[PaperDevice] = []
    sources: list[str] = []
    node = 0
    for name, pool in cluster.pools.items():
        chip = _chip(name, pool)
        per_package = (chip and chip.devices_per_package) or 1
        figures = _figures(name, pool, chip, per_package)
        sources += figures.sources
        device = _device(name, pool, figures, model, cluster.assumptions)
        for package in range(pool.packages):
            on = node + package // pool.packages_per_node
            devices += [PaperDevice(name, on, *device, pool.engines, pool.cold)] * per_package
        node += -(-pool.packages // pool.packages_per_node)
    return devices, sources


def _device(
    name: str, pool: PaperPool, figures: Figures, model: PaperModel, assumed: Assumptions
) -> tuple[int, int, DeviceCost]:
    """(slots, bytes of an expert, cost)."""
    expert_bytes = model.expert_bytes.get(pool.weights)
    if expert_bytes is None:
        raise UserError(
            f"pools.{name}.weights: {model.name} is not known in {pool.weights}",
            f"use {' or '.join(model.expert_bytes)}",
        )
    left = figures.memory * (1 - assumed.engine_memory if pool.engines else 1)
    call_us = assumed.cpu_call_us if pool.vendor == CPU else assumed.call_us
    cost = DeviceCost(
        call_s=call_us * 1e-6,
        read_s=expert_bytes / (figures.bandwidth * assumed.bandwidth_used),
        row_s=model.row_operations / (figures.operations * assumed.compute_used),
    )
    return int(left * assumed.shard_memory / expert_bytes), expert_bytes, cost


def _chip(name: str, pool: PaperPool) -> Chip | None:
    try:
        find_family(pool.vendor)
        return find_chip(pool.vendor, pool.chip) if pool.chip else None
    except UnknownDevice as error:
        raise UserError(f"pools.{name}: {error}") from error


def _figures(name: str, pool: PaperPool, chip: Chip | None, per_package: int) -> Figures:
    """Assumptions before claims."""
    given, sources = pool.assume, []

    def figure(what: str, assumed: float | None, claim: Claim | None) -> float:
        if given is not None and assumed is not None:
            sources.append(f"{name} {what}: assumed ({given.source})")
            return assumed / per_package
        if claim is None:
            known = f"{pool.vendor} {pool.chip}" if pool.chip else pool.vendor
            raise UserError(
                f"pools.{name}: nobody has said the {what} of {known}",
                f"set pools.{name}.assume.{what} and its source",
            )
        sources.append(f"{name} {what}: {claim.text} ({claim.grade}: {claim.source})")
        return claim.lowest / per_package

    tflops = given.tflops if given else None
    compute = (chip.low_precision.get(pool.math or "") or chip.bf16) if chip else None
    memory = figure("memory", given.memory if given else None, chip.memory if chip else None)
    claimed = chip.bandwidth if chip else None
    bandwidth = figure("bandwidth", given.bandwidth if given else None, claimed)
    operations = figure("tflops", None if tflops is None else tflops * 1e12, compute)
    return Figures(memory, bandwidth, operations, tuple(sources))
