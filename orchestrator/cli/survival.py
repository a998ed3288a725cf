"""What a planned placement survives, and what surviving more would cost: for `expertmesh plan`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.experts.spec import ExpertSpec
from orchestrator.config.bytesize import format_bytes
from orchestrator.errors import UserError
from orchestrator.mesh_plan import MeshPlan, ShardCapacity, plan_mesh
from placement.epoch import EMPTY_SLOT, PlanEpoch

TWO = 2
COVERED = ("device", "domain")
"""Kinds of loss that two copies may help against."""


def losses(epoch: PlanEpoch, groups: dict[str, list[int]]) -> dict[str, int]:
    """Group -> experts, over all layers, that have copies on devices of that group only."""
    held = np.zeros((len(groups), *epoch.experts.shape[:1], epoch.num_experts), np.int64)
    for row, devices in enumerate(groups.values()):
        for device in devices:
            for layer, slots in enumerate(epoch.experts[:, device]):
                held[row, layer, slots[slots != EMPTY_SLOT]] += 1
    total = held.sum(axis=0)
    return {
        name: int(((held[row] == total) & (total > 0)).sum()) for row, name in enumerate(groups)
    }


def survival(epoch: PlanEpoch, capacities: Sequence[ShardCapacity]) -> dict[str, Any]:
    """For each kind of loss: what every single one would take, and whether any takes nothing."""
    devices = {capacity.id: [number] for number, capacity in enumerate(capacities)}
    pools: dict[str, list[int]] = {}
    for number, capacity in enumerate(capacities):
        pools.setdefault(capacity.id.rpartition("-")[0], []).append(number)
    domains: dict[str, list[int]] = {}
    for number, capacity in enumerate(capacities):
        if capacity.domain:
            domains.setdefault(capacity.domain, []).append(number)
    report = {}
    for kind, groups in (("device", devices), ("pool", pools), ("domain", domains)):
        if not groups:
            continue
        lost = losses(epoch, groups)
        report[kind] = {"survives_any": not any(lost.values()), "experts_lost": lost}
    return report


def price_of_two(
    spec: ExpertSpec,
    capacities: Sequence[ShardCapacity],
    planned: MeshPlan,
    load: npt.NDArray[np.float64] | None,
) -> dict[str, Any]:
    """What two copies of every expert would take, which survive the loss of any one device.

    survives_any_domain: whether they survive that of any one failure domain too; None where none
    is named.
    """
    needed = TWO * len(spec.layers) * spec.num_experts
    room = sum(c.memory_bytes // c.bytes_per_expert for c in capacities)
    more = max(0, needed - room) * max(c.bytes_per_expert for c in capacities)
    try:
        two = plan_mesh(spec, capacities, "fill", 1, load, min_copies=TWO)
    except UserError:
        return {"fits": False, "missing_bytes": more, "balancedness": None}
    domain = survival(two.epoch, capacities).get("domain")
    return {
        "fits": True,
        "survives_any_domain": domain["survives_any"] if domain else None,
        "missing_bytes": 0,
        "balancedness": two.balancedness,
        "now": planned.balancedness,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """For people."""
    said = []
    for kind, found in report["survives"].items():
        if found["survives_any"]:
            said.append(f"any one {kind} may be lost: every expert has a copy elsewhere")
            continue
        name, lost = max(found["experts_lost"].items(), key=lambda item: item[1])
        said.append(
            f"not every {kind} may be lost: {name} alone has {lost} experts, which would be "
            "missing until another shard has loaded them"
        )
    if all(report["survives"].get(k, {"survives_any": True})["survives_any"] for k in COVERED):
        return said
    price = report["two_copies"]
    if price["fits"]:
        also = {True: " and of any one domain", False: ", not of any one domain"}
        said.append(
            "two copies of each fit and survive the loss of any one device"
            f"{also.get(price['survives_any_domain'], '')}, at a balancedness of "
            f"{price['balancedness']:.4f} instead of {price['now']:.4f}"
        )
    elif price["missing_bytes"]:
        size = format_bytes(price["missing_bytes"])
        said.append(f"two copies of each would survive that and need {size} more memory")
    else:
        said.append("two copies of each would survive that, but need memory on another shard")
    return said
