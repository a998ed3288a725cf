"""What a cluster would do with a model, from figures alone. Pure; nothing here was measured.

A step decodes `tokens` tokens. In each layer a device takes `call + reads * experts + rows * row`,
as calibration models it, for the experts and rows the planner gives it; experts a device is asked
for are counted as expected with rows drawn by the experts' load. A layer takes as long as its
slowest device or its busiest node's network, whichever takes longer, and layers follow each other.
Attention and engines are left out: these are bounds of the experts' side.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.errors import UserError
from orchestrator.scale.cluster_file import PaperCluster
from orchestrator.scale.devices import PaperDevice, devices_of
from orchestrator.scale.losses import Loss, losses_of
from orchestrator.scale.models import PaperModel
from orchestrator.scale.traffic import LayerTime, Traffic
from placement.cost_model import expected_reads, planner_speed
from placement.memory import share_slots
from placement.planner import plan_placement
from placement.types import EMPTY

Floats = npt.NDArray[np.float64]

SAMPLED_LAYERS = 2
"""Layers that are planned; the load of all is drawn alike."""
SEED = 0
COPIES = 1.0
"""Redundant slots of a layer, in experts: further ones hardly matter and take time to plan."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """balancedness: mean over sampled layers, of at most `bound`. compute_s: of a layer's slowest
    device. network_s: of a layer on the busiest node's network, at `network_node`. network_bytes:
    between nodes, in one step. staged, ipc: one layer with rows through the host, and with device
    IPC within nodes. price: of a million tokens, None without prices."""

    devices: int
    nodes: int
    memory_bytes: int
    needed_bytes: int
    balancedness: float
    bound: float
    copies: float
    pool_shares: dict[str, float]
    compute_s: float
    network_s: float
    network_node: str
    network_bytes: float
    tokens_per_s: float
    limit: str
    staged: LayerTime
    ipc: LayerTime
    losses: tuple[Loss, ...]
    price: float | None
    sources: tuple[str, ...]


def estimate(cluster: PaperCluster, model: PaperModel) -> Estimate:
    """Raises UserError: the model does not fit, with what is missing; or see `devices_of`."""
    devices, sources = devices_of(cluster, model)
    load = load_of(cluster, model)
    slots = slots_of(cluster, model, devices, load)
    costs = [device.cost for device in devices]
    rows = cluster.tokens * model.top_k
    speed, offset = planner_speed(costs, 1.0, expected_reads(model.experts, rows))
    nodes = np.array([device.node for device in devices])
    sample = slice(0, SAMPLED_LAYERS)
    placed = plan_placement(
        load[sample],
        speed,
        slots[sample],
        offset=offset,
        min_copies=cluster.min_copies,
        failure_domains=nodes if len(set(nodes.tolist())) > 1 else None,
        seed=SEED,
    )
    given = np.where(placed.experts != EMPTY, placed.shares, 0.0)
    seconds = call_seconds(devices, given)
    compute_s = float(seconds.max(axis=1).mean())
    share = given.sum(axis=(0, 2)) / given.sum()
    traffic = Traffic(
        cluster.assumptions, cluster.tokens, model.top_k, model.hidden, devices, share
    )
    busiest, network_s = traffic.busiest()
    slowest = max(compute_s, network_s)
    return Estimate(
        devices=len(devices),
        nodes=len(set(nodes.tolist())),
        memory_bytes=sum(device.expert_slots * device.expert_bytes for device in devices),
        needed_bytes=model.total_bytes("fp4"),
        balancedness=float(placed.balancedness),
        bound=float(placed.bound),
        copies=float((placed.experts != EMPTY).sum() / load[sample].size),
        pool_shares={
            pool: float(sum(part for part, d in zip(share, devices, strict=True) if d.pool == pool))
            for pool in cluster.pools
        },
        compute_s=compute_s,
        network_s=network_s,
        network_node=busiest,
        network_bytes=traffic.bytes_between_nodes() * model.layers,
        tokens_per_s=cluster.tokens / (slowest * model.layers),
        limit="network" if network_s > compute_s else "devices",
        staged=traffic.layer_time(compute_s, ipc=False),
        ipc=traffic.layer_time(compute_s, ipc=True),
        losses=losses_of(cluster, model, devices, placed.experts, speed),
        price=price_of(cluster, cluster.tokens / (slowest * model.layers)),
        sources=tuple(sources),
    )


def load_of(cluster: PaperCluster, model: PaperModel) -> Floats:
    """[L, E] rows of a step for each expert, lognormal with the assumed spread."""
    spread = cluster.assumptions.load_spread
    drawn = np.random.default_rng(SEED).lognormal(0.0, spread, (model.layers, model.experts))
    return drawn / drawn.sum(axis=1, keepdims=True) * cluster.tokens * model.top_k


def slots_of(
    cluster: PaperCluster, model: PaperModel, devices: list[PaperDevice], load: Floats
) -> npt.NDArray[np.int64]:
    """[L, D]. Raises UserError: how much memory is missing, and which pool is largest."""
    most = model.layers * model.experts
    room = room_of(cluster, model, devices)
    try:
        return share_slots(
            load,
            np.array(room, np.int64),
            min_copies=cluster.min_copies,
            max_redundant_per_layer=int(COPIES * model.experts),
        )
    except ValueError as error:
        missing = most * cluster.min_copies - sum(room)
        largest = max(cluster.pools, key=lambda pool: cluster.pools[pool].packages)
        held = sum(device.expert_slots * device.expert_bytes for device in devices) / 1e9
        raise UserError(
            f"{model.name} does not fit {cluster.name}: its experts need "
            f"{most * cluster.min_copies} places, the devices have {sum(room)} ({held:.0f} GB), "
            f"{max(missing, 0)} less",
            f"give pools.{largest} more packages",
        ) from error


def room_of(cluster: PaperCluster, model: PaperModel, devices: list[PaperDevice]) -> list[int]:
    """[D] experts each device may hold; those of cold pools share what is left over."""
    most = model.layers * model.experts
    room = [min(device.expert_slots, most) for device in devices]
    warm = sum(places for places, device in zip(room, devices, strict=True) if not device.cold)
    cold = sum(device.cold for device in devices)
    over = max(0, -(-(most * cluster.min_copies - warm) // max(cold, 1)))
    return [
        min(places, over) if device.cold else places
        for places, device in zip(room, devices, strict=True)
    ]


def call_seconds(devices: list[PaperDevice], given: Floats) -> Floats:
    """[L, D]: what each device's call takes. An expert is read if any of its rows comes."""
    reads = (1.0 - np.exp(-given)).sum(axis=2)
    parts = np.array([(d.cost.call_s, d.cost.read_s, d.cost.row_s) for d in devices])
    rows = given.sum(axis=2)
    called: Floats = parts[:, 0] + parts[:, 1] * reads + parts[:, 2] * rows
    return np.where(rows > 0, called, 0.0)


def price_of(cluster: PaperCluster, tokens_per_s: float) -> float | None:
    """Of a million tokens, if every pool has a price."""
    prices = [
        None if pool.price_per_hour is None else pool.price_per_hour * pool.packages
        for pool in cluster.pools.values()
    ]
    if any(price is None for price in prices):
        return None
    return sum(price or 0.0 for price in prices) / (tokens_per_s * 3600) * 1e6
