"""Rows between engines and devices in one MoE layer, on paper. Pure.

A token's row goes once to each device that has some of its experts, from the node of its engine,
and a partial sum comes back from each; what stays within a node does not cross its network. Rows
staged through the host are copied from the engine's device once, sent, and copied to each device;
sums go the same way back. With device IPC the rows of a node's own engines are copied from device
to device instead, beside the others. Nothing overlaps but these two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.scale.cluster_file import Assumptions
from orchestrator.scale.devices import PaperDevice

SUM_BYTES = 2.0
"""Of each value of a token's sum, once the host has added the partial sums up: bf16."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Of one MoE layer, in seconds: rows there, kernels, sums back."""

    there_s: float
    compute_s: float
    back_s: float

    @property
    def total_s(self) -> float:
        return self.there_s + self.compute_s + self.back_s


class Traffic:
    """Of one layer. tokens: of all engines. share: [D] part of the assignments."""

    def __init__(
        self,
        assumed: Assumptions,
        tokens: int,
        top_k: int,
        hidden: int,
        devices: Sequence[PaperDevice],
        share: npt.NDArray[np.float64],
    ) -> None:
        self._assumed = assumed
        self._tokens = tokens
        self._hidden = hidden
        self._pools = {device.node: device.pool for device in devices}
        self._nodes = [device.node for device in devices]
        # A row goes to a device once, however many of its experts are there.
        self._rows = (tokens * (1.0 - (1.0 - share) ** top_k)).tolist()
        apart = max(self._nodes) + 1
        engines = [device.node for device in devices if device.engines] or [apart]
        self._engines = len(engines)
        self._part = {node: engines.count(node) / len(engines) for node in set(engines)}
        self._network = assumed.network_gbit_per_s / 8 * 1e9 * assumed.network_used

    def bytes_between_nodes(self) -> float:
        """In one layer, both ways."""
        each = self._hidden * (self._assumed.row_bytes_out + self._assumed.row_bytes_back)
        return each * sum(self._remote(number) for number in range(len(self._nodes)))

    def busiest(self) -> tuple[str, float]:
        """(node, seconds) where sending or receiving takes longest in one layer."""
        out, back = self._assumed.row_bytes_out, self._assumed.row_bytes_back
        seconds = {}
        for node in {*self._part, *self._nodes}:
            asked, asks = self._crossing(node)
            most = max(asks * out + asked * back, asked * out + asks * back)
            seconds[node] = most * self._hidden / self._network
        slowest = max(seconds, key=lambda one: seconds[one])
        return f"{self._pools.get(slowest, 'engines')} node {slowest}", seconds[slowest]

    def layer_time(self, compute_s: float, *, ipc: bool) -> LayerTime:
        """ipc: devices of one node copy from each other."""
        assumed = self._assumed
        own = self._tokens / self._engines
        there = self._way(assumed.row_bytes_out, own * assumed.row_bytes_out, ipc)
        back = self._way(assumed.row_bytes_back, own * SUM_BYTES, ipc)
        return LayerTime(there, compute_s, back)

    def _way(self, value_bytes: float, engine_bytes: float, ipc: bool) -> float:
        """Seconds of one way, for the device that has most rows. engine_bytes: for each value of
        the hidden size, between an engine's device and its host."""
        assumed, every = self._assumed, range(len(self._nodes))
        most_rows = max(self._remote(number) if ipc else self._rows[number] for number in every)
        staged_s = 0.0
        if most_rows > 0:
            copied = (engine_bytes + most_rows * value_bytes) * self._hidden
            crossing = max(max(self._crossing(node)) for node in {*self._part, *self._nodes})
            link_us = assumed.link_us if crossing else assumed.local_link_us
            staged_s = (2 * assumed.copy_us + link_us) * 1e-6
            staged_s += copied / (assumed.copy_gb_per_s * 1e9)
            staged_s += crossing * value_bytes * self._hidden / self._network
        if not ipc:
            return staged_s
        local = max(self._rows[number] - self._remote(number) for number in every)
        direct_s = local * value_bytes * self._hidden / (assumed.ipc_gb_per_s * 1e9)
        return max(staged_s, assumed.ipc_us * 1e-6 + direct_s if local > 0 else 0.0)

    def _remote(self, number: int) -> float:
        """Rows of a device that come from engines of other nodes."""
        return self._rows[number] * (1 - self._part.get(self._nodes[number], 0.0))

    def _crossing(self, node: int) -> tuple[float, float]:
        """(rows its devices get from others, rows its engines send to others)."""
        pairs = list(zip(self._rows, self._nodes, strict=True))
        here = sum(rows for rows, other in pairs if other == node)
        away = sum(rows for rows, other in pairs if other != node)
        part = self._part.get(node, 0.0)
        return here * (1 - part), away * part
