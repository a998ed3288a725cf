"""Dispatchers follow the mesh's epochs through the directory: the real `clients.Followers`."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

from actors.descriptions import ShardDescription
from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.report import DispatchReport
from actors.dispatch.view_source import NO_VERSION
from orchestrator.control.events import Served
from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import EpochId, State
from orchestrator.directory import Directory, Subscriber
from orchestrator.runtime.components import RayComponents
from orchestrator.runtime.describing import cost_of
from orchestrator.runtime.epoch_view import PeerKey, peer_of, view_of
from orchestrator.runtime.mesh import Mesh
from orchestrator.runtime.slowness import Slowness


class DirectoryFollowers:
    """Publishes epochs as views. view: the last one."""

    def __init__(self, directory: Directory, mesh: Mesh, components: RayComponents) -> None:
        self.view: MeshView | None = None
        self._directory = directory
        self._mesh = mesh
        self._components = components
        self._peers: dict[PeerKey, Peer] = {}
        """Also of processes that have ended: an epoch may name them still."""
        self._slowness = Slowness()
        self._heard_s: dict[str, float] = {}
        """When the report came that was told last, by dispatcher."""

    async def publish(self, state: State) -> None:
        """See `clients.Followers`."""
        epoch = state.intent.epoch
        assert epoch is not None
        self._meet(state)
        if self.view is None or tuple(epoch.id) > (
            self.view.version.term,
            self.view.version.number,
        ):
            # Large tables, made while the loop goes on.
            self.view = await asyncio.to_thread(view_of, state, self._mesh, dict(self._peers))
        await self._directory.publish(self.view)
        self._components.placed.set()

    def adopted(self) -> Mapping[str, EpochId | None]:
        """See `clients.Followers`."""
        return {
            _id(one): None if one.version == NO_VERSION else _epoch_id(one)
            for one in self._directory.subscribers
        }

    def reports(self) -> Mapping[str, tuple[DispatchReport, float]]:
        """What each dispatcher last told of what it did, and how old that is in seconds."""
        now_s = time.monotonic()
        return {
            _id(one): (one.report, now_s - one.reported_s)
            for one in self._directory.subscribers
            if one.report is not None
        }

    def served(self) -> Mapping[str, Mapping[str, Served]]:
        """See `clients.Followers`. What the ways to shards cost is taken from the same reports."""
        self._learn_ways()
        reports = {
            _id(one): (one.report, one.reported_s)
            for one in self._directory.subscribers
            if one.report is not None
        }
        told = {
            id: self._served(id, self._without_emulated(report))
            for id, (report, at_s) in reports.items()
            if at_s != self._heard_s.get(id)
        }
        for gone in self._heard_s.keys() - reports.keys():
            self._slowness.forget(gone)
        self._heard_s = {id: at_s for id, (_, at_s) in reports.items()}
        return told

    def _served(self, dispatcher: str, report: DispatchReport) -> dict[str, Served]:
        quiet_s = {shard.id: shard.quiet_s for shard in report.shards}
        told = self._slowness.news(dispatcher, report)
        return {id: Served(slowness, quiet_s[id]) for id, slowness in told.items()}

    def _learn_ways(self) -> None:
        told = [
            (one.node, one.report) for one in self._directory.subscribers if one.report is not None
        ]
        nodes = {
            process.name.id: process.said.node
            for process in self._components
            if isinstance(process.said, ShardDescription) and not process.died.done()
        }
        self._components.ways.learn(told, nodes)

    def wrong(self) -> Mapping[str, Mapping[str, int]]:
        """See `clients.Followers`."""
        told = {
            _id(one): {shard.id: shard.incarnation for shard in one.report.shards if shard.is_wrong}
            for one in self._directory.subscribers
            if one.report is not None
        }
        return {id: shards for id, shards in told.items() if shards}

    def _without_emulated(self, report: DispatchReport) -> DispatchReport:
        """How slow an emulated shard is follows from its config and what else runs here."""
        pools = self._mesh.config.pools
        real = [
            shard
            for shard in report.shards
            if (pool := pools.get(shard.id.rpartition("-")[0])) is None or not pool.emulated
        ]
        return replace(report, shards=tuple(real))

    def evict(self, dispatcher: str) -> None:
        """See `clients.Followers`."""
        for subscriber in self._directory.subscribers:
            if _id(subscriber) == dispatcher:
                self._directory.evict(subscriber)

    def _meet(self, state: State) -> None:
        for id, component in state.facts.components.items():
            place = state.intent.places.get(id)
            if place is None or not component.said.addresses:
                continue
            peer = peer_of(id, component.said)
            said = self._components.said(id, component.generation)
            if place.kind is Kind.SHARD and isinstance(said, ShardDescription):
                cost = cost_of(said, self._mesh.pool(place.pool))
                peer = peer_of(id, component.said, cost)
            self._peers[id, component.said.incarnation] = peer


def _id(subscriber: Subscriber) -> str:
    return f"{subscriber.role} {subscriber.pid} on {subscriber.node.partition('/')[0]}"


def _epoch_id(subscriber: Subscriber) -> EpochId:
    return EpochId(subscriber.version.term, subscriber.version.number)
