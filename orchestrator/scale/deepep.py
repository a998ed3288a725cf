"""Our ways of carrying rows beside DeepEP's published times, for the batch those are of. Pure."""

from dataclasses import dataclass

import numpy as np

from orchestrator.scale.cluster_file import Assumptions
from orchestrator.scale.devices import PaperDevice
from orchestrator.scale.traffic import LayerTime, Traffic
from placement.cost_model import DeviceCost

TOKENS_OF_DEVICE, TOP_K, HIDDEN = 128, 8, 7168
DEVICES_OF_NODE = 8
PORT_GBIT_PER_S = 400
"""H800, each device with a CX7 port of its own; FP8 rows there, bf16 back."""
PUBLISHED_US = {8: (77, 114), 256: (194, 360)}
"""Devices -> (dispatch, combine): the low-latency kernels of DeepEP's first version, its README."""
NOTHING = DeviceCost(0.0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Beside:
    """devices, and the way there and back: published, staged through hosts, with IPC in nodes."""

    devices: int
    published_us: tuple[int, int]
    staged: LayerTime
    ipc: LayerTime


def beside_deepep(assumed: Assumptions) -> list[Beside]:
    """With as many ports as DeepEP had, and the rows of `assumed`."""
    ports = assumed.model_copy(
        update={"network_gbit_per_s": float(PORT_GBIT_PER_S * DEVICES_OF_NODE)}
    )
    found = []
    for count, published in PUBLISHED_US.items():
        devices = [
            PaperDevice("h800", number // DEVICES_OF_NODE, 1, 1, NOTHING, True)
            for number in range(count)
        ]
        share = np.full(count, 1 / count)
        tokens = TOKENS_OF_DEVICE * count
        traffic = Traffic(ports, tokens, TOP_K, HIDDEN, devices, share)
        times = (traffic.layer_time(0.0, ipc=ipc) for ipc in (False, True))
        found.append(Beside(count, published, *times))
    return found
