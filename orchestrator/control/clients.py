"""What the runner needs of the world, as protocols: Ray implements them, so do fakes in tests."""

from collections.abc import Mapping
from typing import Protocol

from orchestrator.control.actions import Cancel, Prepare, Retire, StartComponent
from orchestrator.control.events import Served
from orchestrator.control.state import Description, EpochId, State

Command = Prepare | Retire | Cancel


class Gone(Exception):
    """The process has ended; the message says why."""


class ComponentClient(Protocol):
    """One process: a shard, an engine or a router."""

    async def describe(self) -> Description:
        """What it says of itself.

        Raises:
            TimeoutError: no answer in time. Gone: it has ended.
        """
        ...

    async def end(self, *, kill: bool) -> str:
        """End it: at once, or when it has finished what it has begun. Idempotent; returns when the
        process is known to be gone, with what there is to say about it.

        Raises:
            TimeoutError: its end was asked for and cannot be confirmed.
        """
        ...


class ShardClient(ComponentClient, Protocol):
    """A process that holds copies."""

    async def obey(self, command: Command) -> Description:
        """Do the command; returns when it is done, superseded or failed, with the description then.

        Raises:
            Gone: it has ended.
        """
        ...


class Components(Protocol):
    """Every process of the mesh. Nothing else creates or ends one."""

    async def start(self, action: StartComponent) -> None:
        """Adopt the process of this place and generation, or start it; returns when it serves.

        Raises:
            Gone: it did not start; says why.
        """
        ...

    def find(self, id: str, generation: int) -> ComponentClient | None:
        """The process, if this controller knows of it."""
        ...


class Followers(Protocol):
    """The directory: dispatchers that follow the mesh's epochs."""

    async def publish(self, state: State) -> None:
        """Send `state.intent.epoch` with the addresses that the facts say. The same epoch again
        changes nothing."""
        ...

    def adopted(self) -> Mapping[str, EpochId | None]:
        """What each connected dispatcher follows; None: nothing yet."""
        ...

    def served(self) -> Mapping[str, Mapping[str, Served]]:
        """Dispatcher -> shard -> how it answered; its slowness is 1 where that is not worth a word.
        Only what was reported since this was last asked, of shards that answered."""
        ...

    def wrong(self) -> Mapping[str, Mapping[str, int]]:
        """Dispatcher -> shard -> incarnation of those whose answers it found wrong, for as long as
        it follows an epoch with them."""
        ...

    def evict(self, dispatcher: str) -> None:
        """Close its connection; it may connect again."""
        ...
