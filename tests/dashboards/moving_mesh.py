"""A mesh of any size whose load moves, behind the real gateway application on a real socket."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from orchestrator.api.models import ClusterView, EpochView, EventView, PlacementView
from orchestrator.batch.ledger import open_ledger
from orchestrator.batch.records import FileRecord, NewJob
from orchestrator.batch.settings import BatchSettings
from orchestrator.clients.mesh import MeshLostError
from orchestrator.config.batch import BatchConfig
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.expert_load import ExpertLoad, TrafficTokens, sum_load
from orchestrator.gateway.app import build_app
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus, MeshStatus
from orchestrator.traffic_load import KindLoad
from tests.orchestrator.gateway.fakes import FakeEngine, FakeMesh

VENDORS = ("nvidia", "ascend", "cambricon", "cpu")
ENGINE_PAGE = """\
vllm:num_requests_running{{engine="0",model_name="tiny"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="tiny"}} 2.0
vllm:kv_cache_usage_perc{{engine="0",model_name="tiny"}} 0.375
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {tokens}
"""


@dataclass
class MovingMesh(FakeMesh):
    """Experts in turn over the shards; each look adds a window of skewed load."""

    num_layers: int = 8
    num_experts: int = 32
    num_shards: int = 4
    idle: bool = False
    epoch: int = 1
    dead: set[str] = field(default_factory=set)
    change: dict[str, Any] | None = None
    lines: list[EventView] = field(default_factory=list)
    seed: int = 0
    looks: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shape = (self.num_layers, self.num_experts)
        self.popularity = rng.pareto(1.3, shape) + 0.1
        self.home = np.tile(np.arange(self.num_experts) % self.num_shards, (self.num_layers, 1))
        self.counts = np.zeros(shape, np.int64)
        self.rng = rng
        self.started_s = time.monotonic()

    def shard_id(self, number: int) -> str:
        vendor = VENDORS[number % len(VENDORS)]
        return f"{vendor}-{number // len(VENDORS)}"

    async def status(self) -> MeshStatus:
        if self.silent:
            raise MeshLostError("no answer")
        shards = [self._shard(n) for n in range(self.num_shards)]
        engine = ComponentStatus(
            id="engine-0",
            kind=ComponentKind.ENGINE,
            node="head",
            pid=4711,
            state=ComponentState.READY,
            memory_bytes=1 << 30,
        )
        return MeshStatus(
            mesh="test",
            model="tiny",
            ready=not self.dead,
            reason=self.reason,
            epoch=self.epoch,
            router_mode="embedded",
            components=[*shards, engine],
        )

    def _shard(self, number: int) -> ComponentStatus:
        id = self.shard_id(number)
        dead = id in self.dead
        return ComponentStatus(
            id=id,
            kind=ComponentKind.SHARD,
            pool=VENDORS[number % len(VENDORS)],
            emulated=number % len(VENDORS) != 3,
            node=f"node-{number % 3}",
            pid=1000 + number,
            state=ComponentState.DEAD if dead else ComponentState.READY,
            detail="its process was killed by SIGKILL" if dead else "kernel <b>bf16</b>",
            memory_bytes=(number + 1) << 26,
            slots=int((self.home == number).sum()),
            speed=1.0 + number % 2,
            calls=100,
            failed_calls=0,
            busy_s=12.5,
        )

    def tell_kind(self, kind: str) -> None:
        """Have some traffic of `kind`, half of the first layer's at its first expert."""
        load = np.ones((self.num_layers, self.num_experts))
        load[0, 0] = self.num_experts - 1.0
        layers = tuple(range(self.num_layers))
        self.kinds[kind] = KindLoad("tiny", kind, None, layers, 7, load)

    async def expert_load(self) -> ExpertLoad:
        if self.silent:
            raise MeshLostError("no answer")
        if not self.idle:
            self.counts = self.counts + self.rng.poisson(self.popularity * 30)
            elapsed_s = time.monotonic() - self.started_s
            self.fakes["engine-0"].metrics_page = ENGINE_PAGE.format(
                running=round(6 + 3 * np.sin(elapsed_s)), tokens=1000 + 240 * elapsed_s
            )
        by_shard = {
            self.shard_id(n): np.where(self.home == n, self.counts, 0)
            for n in range(self.num_shards)
        }
        load = sum_load("tiny", tuple(range(self.num_layers)), by_shard, self.num_experts)
        told = (TrafficTokens(of.kind, "text", of.tokens) for of in self.kinds.values())
        return replace(load, traffic=tuple(told))

    async def placement(self) -> PlacementView:
        held = {
            self.shard_id(n): {
                layer: np.flatnonzero(self.home[layer] == n).tolist()
                for layer in range(self.num_layers)
            }
            for n in range(self.num_shards)
        }
        copies = np.ones((self.num_layers, self.num_experts), int)
        # A second copy of every tenth expert.
        for layer in range(self.num_layers):
            for expert in range(0, self.num_experts, 10):
                shard = self.shard_id((self.home[layer][expert] + 1) % self.num_shards)
                held[shard][layer] = sorted([*held[shard][layer], expert])
                copies[layer][expert] = 2
        return PlacementView(
            epoch=EpochView(term=1, number=self.epoch),
            layers=list(range(self.num_layers)),
            experts=self.num_experts,
            shards=held,
            copies={layer: row.tolist() for layer, row in enumerate(copies)},
            least_copies=1,
            loss_of_shard={},
            loss_of_node={},
            loss_of_pool={},
            survives_any_shard=False,
            survives_any_node=False,
        )

    async def view(self) -> ClusterView:
        sizes = dict.fromkeys(VENDORS[: self.num_shards], 0)
        places = []
        for number in range(self.num_shards):
            id, held = self.shard_id(number), int((self.home == number).sum())
            vendor = VENDORS[number % len(VENDORS)]
            sizes[vendor] += 1
            places.append(
                PLACE
                | {"id": id, "pool": vendor, "copies": held, "held_bytes": held * 52_224}
                | {"capacity_bytes": int(held * 52_224 * 1.3)}
            )
        pools = [POOL | {"id": id, "size": size, "ready": size} for id, size in sizes.items()]
        self.looks += 1
        did = DID | {"calls": 40 * self.looks, "starved": self.looks, "resent": 2 * self.looks}
        dispatcher = {"id": "engine 7 on head", "adopted": None, "heard_ago_s": 0.1, "did": did}
        shown = {
            "transaction": self.change,
            "places": places,
            "pools": pools,
            "dispatchers": [dispatcher],
        }
        return ClusterView.model_validate(VIEW | shown)

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        self.asked.append((verb, target, number, dry_run))
        return True, f"{'would' if dry_run else 'will'} {verb}"

    async def history(self, after: int, limit: int) -> list[EventView]:
        return [line for line in self.lines if line.number > after][:limit]


VIEW: dict[str, Any] = {
    "term": 1,
    "epoch": {"term": 1, "number": 1},
    "followed": True,
    "recovering": False,
    "places": [],
    "pools": [],
    "nodes": [],
    "transaction": None,
    "transactions": 3,
    "planning": None,
    "rolling": None,
    "rules": [],
    "problems": {},
    "dispatchers": [],
}
PLACE: dict[str, Any] = {
    "kind": "shard", "node": "node-0", "life": "ready", "why": "it answers", "generation": 1,
    "restarts": 0, "wanted": "run", "cordoned": False, "spare": False, "weight": 1.0,
    "incarnation": "1", "pid": 1, "loading": 0,
}  # fmt: skip
DURATIONS: dict[str, Any] = {"counts": [0, 5, 9] + [1] * 11, "sum_s": 0.25}
DID: dict[str, Any] = {
    "told_ago_s": 0.5, "failed": 0, "sent": DURATIONS, "waited": DURATIONS, "served": DURATIONS,
    "shards": [{"id": "cambricon-0", "scale": 2.25, "is_late": False, "late": 3, "refused": 0,
                "lost": 1}],
}  # fmt: skip
POOL: dict[str, Any] = {"kind": "shard", "least": 0, "most": 0}
CHANGE = {
    "id": 4,
    "kind": "rebalance",
    "phase": "preparing",
    "batch": 2,
    "batches": 3,
    "copies": 17,
    "bytes": 17 * 52_224,
    "gain": 0.31,
    "reason": "balancedness 1.92 -> 1.07 of 1.05 possible, 31.0% of the experts' time, "
    "for 887808 bytes in 0.4 s; a gain below 5.0% would not have paid",
    "why_back": "",
    "phase_s": 1.25,
}
LINES = [
    EventView(number=1, wall_s=0, subject="mesh", step="plan", transaction=0,
              reason="first placement, on 4 shards"),
    EventView(number=2, wall_s=0, subject="load", step="consider", transaction=4,
              reason=str(CHANGE["reason"]), figures={}),
]  # fmt: skip


def moving_mesh(**options: object) -> MovingMesh:
    page = ENGINE_PAGE.format(running=6, tokens=1000)
    return MovingMesh({"engine-0": FakeEngine(metrics_page=page)}, **options)


@contextmanager
def served(
    mesh: FakeMesh,
    keys: tuple[str, ...] = (),
    interval_s: float = 0.25,
    batch: BatchSettings | None = None,
    admins: tuple[str, ...] = (),
) -> Iterator[str]:
    """Address of a gateway in front of `mesh`, for as long as the block runs."""
    telemetry = TelemetryConfig(interval_s=interval_s)
    config = GatewayConfig(mesh="test", model_name="tiny", telemetry=telemetry, batch=batch)
    app = build_app(config, mesh, frozenset(map(digest, keys)), frozenset(map(digest, admins)))
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def ledger_with_a_job(folder: Path) -> BatchSettings:
    """A job that waits for its validation."""
    settings = BatchSettings(
        config=BatchConfig(), folder=folder, model_name="tiny", max_line_bytes=1 << 20
    )
    folder.mkdir(parents=True, exist_ok=True)
    ledger = open_ledger(settings.database_url)
    file = FileRecord("file-1", "alice", "in.jsonl", "batch", 10, "d", time.time())
    ledger.files.add(file, lambda _: True)
    new = NewJob("alice", "/v1/completions", "file-1", "24h", 86_400.0, {})
    job = ledger.jobs.create(new, time.time())
    assert job is not None
    ledger.jobs.explain([job.seq], "its hours begin at 22:00")
    ledger.requests.begin(time.time())
    return settings


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
