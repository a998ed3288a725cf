"""Emulated shards (`emulated_shard`) behind a directory: a mesh for real engines, on one node."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Self

from actors.dispatch.mesh_view import MeshView, Peer
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.wire.address import parse_address
from actors.wire.node import node_id
from benchmarks.harness.emulated_shard import EmulatedShard
from benchmarks.harness.local_mesh import SECRET, TIMEOUT_S
from orchestrator.directory import Directory
from placement.cost_model import DeviceCost
from placement.epoch import PlanEpoch
from placement.planner import plan_placement


class SleepingMesh:
    """Use as a context manager; `address` is what EXPERTMESH_ADDRESS is set to. Every expert is on
    one shard; what engines get back is zero."""

    def __init__(self, model: Path, folder: Path) -> None:
        """folder: short path for the sockets (they may have 107 bytes)."""
        self.spec = read_expert_spec(model)
        self.address = f"unix:{folder}/directory"
        self._model, self._folder = model, folder
        self._shards: list[subprocess.Popen[str]] = []
        self._started = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._directory = Directory(SECRET, term=1)

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread.start()
        self._do(self._directory.listen([parse_address(self.address)]))
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._shards)
        self._do(self._directory.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def serve(self, costs: Sequence[DeviceCost]) -> None:
        """Replace the shards by one of each cost; returns when engines use them."""
        before = len(self._shards)
        addresses = [self._start(cost) for cost in costs]
        view = self._view(addresses, costs)
        self._do(self._directory.publish(view))
        if not self._do(self._directory.wait_acknowledged(view.version, TIMEOUT_S)):
            raise TimeoutError("an engine does not follow the new view")
        self._end(self._shards[:before])
        del self._shards[:before]

    @property
    def pids(self) -> list[int]:
        return [shard.pid for shard in self._shards]

    def _start(self, cost: DeviceCost) -> str:
        self._started += 1
        listen = f"unix:{self._folder}/s{self._started}"
        spec = self.spec
        shard = EmulatedShard(
            listen, cost, spec.num_experts, spec.top_k, spec.hidden_size, spec.layers,
            SECRET.decode(),
        )  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.harness.emulated_shard", shard.to_json()]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._shards.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def _view(self, addresses: Sequence[str], costs: Sequence[DeviceCost]) -> MeshView:
        experts, layers = self.spec.num_experts, self.spec.layers
        slots = [-(-experts // len(costs))] * len(costs)
        plan = plan_placement([[1.0] * experts] * len(layers), [1.0] * len(costs), slots)
        epoch = PlanEpoch(self._started, experts, layers, plan.experts, plan.shares)
        peers = tuple(
            Peer(f"s{number}", 0, node_id(), (parse_address(address),), cost)
            for number, (address, cost) in enumerate(zip(addresses, costs, strict=True))
        )
        return MeshView(
            version=self._directory.next_version, mesh="emulated", model_path=str(self._model),
            fingerprint=fingerprint(self._model), router_mode="embedded", soft_deadline_s=30.0,
            call_deadline_s=60.0, expert_wait_s=60.0, epoch=epoch, shards=peers,
        )  # fmt: skip

    @staticmethod
    def _end(shards: Sequence[subprocess.Popen[str]]) -> None:
        for shard in shards:
            shard.kill()
            shard.wait()
            if shard.stdout is not None:
                shard.stdout.close()
