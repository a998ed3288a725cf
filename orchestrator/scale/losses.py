"""What the loss of a node costs, on paper. Pure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.scale.cluster_file import PaperCluster
from orchestrator.scale.devices import PaperDevice
from orchestrator.scale.models import PaperModel
from placement.types import EMPTY

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one node. alone: part of the experts whose only copies it has; the other nodes together
    read them again in `reload_s`. speed: part of the experts' work that the others do in the same
    time. fits: the others have memory for every expert."""

    node: int
    pool: str
    alone: float
    reload_s: float
    speed: float
    fits: bool


def losses_of(
    cluster: PaperCluster,
    model: PaperModel,
    devices: list[PaperDevice],
    experts: npt.NDArray[np.int32],
    speed: Floats,
) -> tuple[Loss, ...]:
    """What losing each node costs; nodes of a pool are alike, so one of each is told."""
    told: dict[str, Loss] = {}
    nodes = np.array([device.node for device in devices])
    others = max(1, len(set(nodes.tolist())) - 1)
    for device in devices:
        if device.pool in told:
            continue
        lost = nodes == device.node
        alone = [len(_held(layer[lost]) - _held(layer[~lost])) / model.experts for layer in experts]
        part = float(np.mean(alone))
        reload_bytes = part * model.layers * model.experts * device.expert_bytes
        places = sum(d.expert_slots for d, gone in zip(devices, lost, strict=True) if not gone)
        told[device.pool] = Loss(
            node=device.node,
            pool=device.pool,
            alone=part,
            reload_s=reload_bytes / (cluster.assumptions.load_gb_per_s * 1e9 * others),
            speed=float(speed[~lost].sum() / speed.sum()),
            fits=places >= model.layers * model.experts,
        )
    return tuple(told.values())


def _held(slots: npt.NDArray[np.int32]) -> set[int]:
    return set(slots[slots != EMPTY].tolist())
