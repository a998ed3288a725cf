"""A simulated dispatcher: follows epochs, calls shards, tells the controller what it saw."""

from dataclasses import dataclass, field

from orchestrator.control.keys import Keys
from orchestrator.control.state import Epoch
from tests.sim.process import Process


@dataclass(slots=True, eq=False)
class SimDispatcher:
    """epoch: what it follows; adopted only ever grows. stuck: takes nothing in for now."""

    id: str
    epoch: Epoch | None = None
    stuck: bool = False
    connected_to: int = 0
    """Number of the controller it is connected to, 0 for none."""
    seen: list[Epoch] = field(default_factory=list)

    def take(self, epoch: Epoch) -> None:
        if not self.stuck and (self.epoch is None or epoch.id > self.epoch.id):
            self.epoch = epoch
            self.seen.append(epoch)

    def usable(self, shard: str, processes: dict[str, list[Process]]) -> Process | None:
        """The process a link to this shard leads to, if it answers."""
        assert self.epoch is not None
        incarnation = self.epoch.incarnations.get(shard, 0)
        for process in processes.get(shard, ()):
            if process.alive and not process.hung and process.incarnation == incarnation:
                return process
        return None

    def served(self, processes: dict[str, list[Process]]) -> Keys:
        """Keys this dispatcher can get computed now."""
        assert self.epoch is not None
        held: set = set()
        for shard, keys in self.epoch.copies.items():
            process = self.usable(shard, processes)
            if process is not None:
                held |= keys & process.holdings
        return frozenset(held)
