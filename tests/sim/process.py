"""A simulated component process: obeys commands in order, loads in the background, may hang."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from orchestrator.control.actions import Cancel, Prepare, Retire
from orchestrator.control.keys import EXPERT, NO_KEYS, Keys
from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import NO_ORDER, Description, Order
from tests.sim.clock import Clock

KEY_BYTES = 1_000_000


@dataclass(slots=True, eq=False)
class Process:
    """One process. place: what it fills; capacity: keys it may hold and load together.

    load_fails: chance that a load ends in an error. slowness: of its answers and loads.
    """

    clock: Clock
    random: Random
    place: str
    generation: int
    kind: Kind
    node: str
    capacity: int
    start_s: float
    load_fails: float = 0.0
    alive: bool = True
    hung: bool = False
    slowness: float = 1.0
    incarnation: int = 0
    serving: bool = False
    holdings: Keys = NO_KEYS
    loading: Keys = NO_KEYS
    order: Order = NO_ORDER
    failure: str = ""
    revision: int = 0
    origin: str = ""
    waiting: list[Callable[[], None]] = field(default_factory=list)
    check: Callable[["Process"], None] = lambda _: None

    def __post_init__(self) -> None:
        self.incarnation = self.random.getrandbits(63) + 1
        self.clock.after(self.start_s, self._started)

    def _started(self) -> None:
        self.serving = True
        self._changed()

    def _changed(self) -> None:
        self.revision += 1
        self.check(self)

    def describe(self) -> Description:
        shard = self.kind is Kind.SHARD
        return Description(
            incarnation=self.incarnation,
            revision=self.revision,
            node=self.node,
            addresses=(f"unix:/{self.place}.{self.generation}",),
            fingerprint="model",
            order=self.order,
            holdings=self.holdings,
            loading=self.loading,
            failure=self.failure,
            capacity_bytes=self.capacity * KEY_BYTES if shard else 0,
            key_bytes={EXPERT: KEY_BYTES} if shard else {},
            serving=self.serving,
            origin=self.origin,
        )

    def receive(self, message: Callable[[], None]) -> None:
        """Handle a message, or keep it until the process goes on."""
        if not self.alive:
            return
        if self.hung:
            self.waiting.append(message)
        else:
            message()

    def wake(self) -> None:
        """SIGCONT: what arrived meanwhile is handled now."""
        self.hung = False
        waiting, self.waiting = self.waiting, []
        for message in waiting:
            self.receive(message)

    def obey(self, command: Prepare | Retire | Cancel) -> None:
        """As `actors.shard.shard` does: in order, and a repeated command changes nothing."""
        if command.order <= self.order:
            return
        self.order, self.loading, self.failure = command.order, NO_KEYS, ""
        if isinstance(command, Retire):
            self.holdings -= command.keys
        elif isinstance(command, Prepare):
            self._load(command)
        self._changed()

    def _load(self, command: Prepare) -> None:
        missing = command.keys - self.holdings
        if len(self.holdings | missing) > self.capacity:
            self.failure = "too little memory"
            return
        self.loading = missing
        seconds = self.slowness * len(missing) * KEY_BYTES / command.bytes_per_s
        fails = self.random.random() < self.load_fails
        self.clock.after(seconds, lambda: self._loaded(command.order, fails=fails))

    def _loaded(self, order: Order, *, fails: bool) -> None:
        if order != self.order or not self.alive:
            return
        if self.hung:
            self.waiting.append(lambda: self._loaded(order, fails=fails))
            return
        if fails:
            self.failure = "the checkpoint could not be read"
        else:
            self.holdings |= self.loading
        self.loading = NO_KEYS
        self._changed()
