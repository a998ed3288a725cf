"""One process of the mesh, as the controller reaches it: the real `clients.ShardClient`."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from actors.descriptions import EngineDescription, Said
from actors.engine_lifecycle import EngineState
from actors.watched import Watcher
from actors.wire.node import node_id
from orchestrator import cluster
from orchestrator.actor_names import ActorName
from orchestrator.control.clients import Command, Gone
from orchestrator.control.lifecycle import Kind
from orchestrator.control.state import Description
from orchestrator.probe import Probe
from orchestrator.ray_process import kill_ray_process
from orchestrator.root_cause import DYING_WORDS_LINES, cause_in_log, cause_of, is_pointer
from orchestrator.runtime.shard_calls import call_of

log = logging.getLogger(__name__)

END_TIMEOUT_S = 8.0
"""How long the end of a killed process is waited for before it counts as unconfirmed."""
STOP_TIMEOUT_S = 15.0
"""How long a process may take to close what it has open."""
ASK_TIMEOUT_S = 5.0
"""How long somebody who knows nothing of a process waits for its first answer."""

Describe = Callable[[ActorName, Said], Description]


class Process:
    """An actor with its name, and what it said last.

    died: done when its process has ended, with what there is to say about that.
    """

    def __init__(
        self,
        name: ActorName,
        handle: ActorHandle,
        describe: Describe,
        logs: Path,
        *,
        probe_timeout_s: float,
        drain_timeout_s: float,
    ) -> None:
        """logs: folder of this machine's Ray worker logs; those of other machines stay there."""
        self.name = name
        self.handle = handle
        self.said: Said | None = None
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._describe = describe
        self._logs = logs
        self._probe_timeout_s = probe_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._probe: Probe[Said] = Probe(self._ask)
        self._watching: asyncio.Task[None] | None = None

    # -- ComponentClient

    async def describe(self) -> Description:
        """Raises TimeoutError: no answer in time. Gone: it has ended, or serves no more."""
        try:
            said = await self._probe.ask(self._probe_timeout_s)
        except ActorUnavailableError as error:
            raise TimeoutError(f"{self.name.id} cannot be reached") from error
        except RayActorError as error:
            raise Gone(self._lose(error)) from error
        return self._take(said)

    async def obey(self, command: Command) -> Description:
        """Do the command; returns when it is done, superseded or failed.

        Raises:
            Gone: it has ended.
        """
        assert self.said is not None, "only who was described is commanded"
        most_bytes = self._describe(self.name, self.said).capacity_bytes
        method, arguments = call_of(command, most_bytes)
        try:
            return self._take(await getattr(self.handle, method).remote(*arguments))
        except ActorUnavailableError as error:
            raise TimeoutError(f"{self.name.id} cannot be reached") from error
        except RayActorError as error:
            raise Gone(self._lose(error)) from error

    async def end(self, *, kill: bool) -> str:
        """See `clients.ComponentClient`. Ends an engine only when its requests are done, or after
        `controller.drain_timeout_s`."""
        if not kill:
            if self.name.kind is Kind.ENGINE:
                timeout_s = self._drain_timeout_s
                await bounded(self.handle.drain.remote(timeout_s), timeout_s + 1)
            await bounded(self.handle.stop.remote(), STOP_TIMEOUT_S)
        self.kill()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                return await asyncio.shield(self.died)
        except TimeoutError:
            raise TimeoutError(f"the end of {self.name} is not confirmed") from None

    # -- its life

    async def start(self) -> None:
        """Returns when it serves.

        Raises:
            Gone: its process ended. RayError: it refuses to start; says why.
        """
        try:
            await self.handle.start.remote()
        except RayActorError as error:
            raise Gone(self._lose(error)) from error
        except RayError:
            # Who it is says where its log is.
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(self._probe_timeout_s):
                    self.said = await self._ask()
            raise
        self._take(await self._ask())

    def watch(self, watcher: Watcher, told: Callable[[str], None]) -> None:
        """Have `told` called with the reason as soon as the process has ended."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(watcher, told))

    async def _watch(self, watcher: Watcher, told: Callable[[str], None]) -> None:
        while not self.died.done():
            try:
                await self.handle.hold.remote(watcher)
                return  # it is about to end in order, or a later controller watches
            except ActorUnavailableError:
                await asyncio.sleep(self._probe_timeout_s)
            except RayActorError as error:
                told(self._lose(error))
            except RayError as error:
                log.warning("%s cannot be watched: %s", self.name, cause_of(error))
                return

    def kill(self) -> None:
        """End the process at once; one that is stopped by a signal does not hear Ray."""
        if self.said is not None and self.said.node == node_id():
            kill_ray_process(self.said.pid)
        cluster.kill(self.handle)

    def forget(self) -> None:
        """Watch it no more."""
        if self._watching is not None:
            self._watching.cancel()

    def why_it_failed(self, error: RayError) -> str:
        """The exception's own cause, or the log's where the exception only points there."""
        cause = cause_of(error)
        pid = self.said.pid if self.said else 0
        if isinstance(error, RayActorError):
            return cause_in_log(self._logs, pid, DYING_WORDS_LINES) or cause
        if is_pointer(cause):
            return cause_in_log(self._logs, pid) or cause
        return cause

    # -- inside

    async def _ask(self) -> Said:
        said: Said = await self.handle.describe.remote()
        return said

    def _take(self, said: Said) -> Description:
        self.said = said
        if isinstance(said, EngineDescription) and said.state == EngineState.DEAD:
            # Its actor lives and refuses requests; nothing of it is of use any more.
            self.kill()
            raise Gone(said.detail)
        return self._describe(self.name, said)

    def _lose(self, error: RayActorError) -> str:
        why = self.why_it_failed(error)
        if not self.died.done():
            self.died.set_result(why)
        return self.died.result()


async def bounded(answer: Awaitable[Any], timeout_s: float) -> None:
    """Wait for an answer that one can do without."""
    try:
        await asyncio.wait_for(answer, timeout_s)
    except TimeoutError:
        log.warning("while stopping: no answer within %g s", timeout_s)
    except RayError as error:
        log.warning("while stopping: %s", cause_of(error))


async def ask_all(names: Collection[ActorName]) -> dict[ActorName, Said]:
    """What the living of these say of themselves, of those that answer soon."""
    handles = {name: cluster.find_actor(name) for name in names}
    asked = {name: handle for name, handle in handles.items() if handle is not None}

    async def ask(handle: ActorHandle) -> Said | None:
        with contextlib.suppress(RayError, TimeoutError):
            said: Said = await asyncio.wait_for(handle.describe.remote(), ASK_TIMEOUT_S)
            return said
        return None

    answers = await asyncio.gather(*map(ask, asked.values()))
    return {name: said for name, said in zip(asked, answers, strict=True) if said is not None}
