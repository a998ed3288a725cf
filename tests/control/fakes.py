"""Components and dispatchers in memory, for tests of the runner."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orchestrator.control.actions import Prepare, Retire, StartComponent
from orchestrator.control.clients import Command, ComponentClient, Gone
from orchestrator.control.events import Served
from orchestrator.control.keys import EXPERT, NO_KEYS
from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import Description, Epoch, EpochId, Order, State

CAPACITY_KEYS = 6


@dataclass
class FakeProcess:
    """See `clients.ShardClient`. `dead` says why it ended; `hung` answers nothing within
    `patience_s`; asked: how often it was probed."""

    id: str
    generation: int
    kind: Kind
    said: Description
    dead: str = ""
    hung: bool = False
    patience_s: float = 0.0
    asked: int = 0
    commands: list[Command] = field(default_factory=list)

    async def describe(self) -> Description:
        self._look()
        self.asked += 1
        if self.hung:
            await asyncio.sleep(self.patience_s)
            raise TimeoutError
        return self.said

    async def obey(self, command: Command) -> Description:
        self._look()
        if self.hung:
            await asyncio.Event().wait()
        self.commands.append(command)
        if command.order > self.said.order:
            held = self.said.holdings
            if isinstance(command, Prepare):
                held |= command.keys
            elif isinstance(command, Retire):
                held -= command.keys
            self.said = replace(
                self.said, revision=self.said.revision + 1, order=command.order, holdings=held
            )
        return self.said

    async def end(self, *, kill: bool) -> str:
        self.dead = self.dead or ("killed" if kill else "stopped")
        return self.dead

    def _look(self) -> None:
        if self.dead:
            raise Gone(self.dead)


class FakeComponents:
    """See `clients.Components`. Starts that are to fail are named in `broken`."""

    def __init__(self) -> None:
        self.processes: dict[tuple[str, int], FakeProcess] = {}
        self.broken: dict[str, str] = {}
        self.started: list[str] = []

    def find(self, id: str, generation: int) -> ComponentClient | None:
        return self.processes.get((id, generation))

    def newest(self, id: str) -> FakeProcess:
        return self.processes[max(key for key in self.processes if key[0] == id)]

    async def start(self, action: StartComponent) -> None:
        id, generation = action.component, action.generation
        if (id, generation) in self.processes:
            return
        self.started.append(f"{id}.{generation}")
        if id in self.broken:
            raise Gone(self.broken[id])
        shard = action.kind is Kind.SHARD
        said = Description(
            incarnation=1000 * generation + len(self.processes),
            node="box",
            addresses=(f"unix:/{id}.{generation}",),
            order=Order(0, 0),
            holdings=NO_KEYS,
            capacity_bytes=CAPACITY_KEYS if shard else 0,
            key_bytes={EXPERT: 1} if shard else {},
        )
        self.processes[id, generation] = FakeProcess(id, generation, action.kind, said)


class FakeFollowers:
    """See `clients.Followers`: dispatchers named in `follow` adopt at once, others stay behind."""

    def __init__(self) -> None:
        self.published: list[Epoch] = []
        self.follow = {"engine"}
        self.behind: set[str] = set()
        self.evicted: list[str] = []
        self.slow: dict[str, dict[str, Served]] = {}
        self.found_wrong: dict[str, dict[str, int]] = {}

    async def publish(self, state: State) -> None:
        assert state.intent.epoch is not None
        self.published.append(state.intent.epoch)

    def adopted(self) -> Mapping[str, EpochId | None]:
        newest = self.published[-1].id if self.published else None
        return dict.fromkeys(self.follow, newest) | dict.fromkeys(self.behind)

    def served(self) -> Mapping[str, Mapping[str, Served]]:
        told, self.slow = self.slow, {}
        return told

    def wrong(self) -> Mapping[str, Mapping[str, int]]:
        return self.found_wrong

    def evict(self, dispatcher: str) -> None:
        self.evicted.append(dispatcher)
        self.behind.discard(dispatcher)
