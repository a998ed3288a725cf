"""A shard or router as a child process, controlled over a pipe where a mesh uses Ray."""

import asyncio
import multiprocessing as mp
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from actors.descriptions import Said
from actors.lean_imports import LEAN_IMPORTS
from actors.process import thread_environment
from orchestrator.control.clients import Command, Gone
from orchestrator.control.state import Description
from orchestrator.runtime.shard_calls import call_of

if TYPE_CHECKING:
    # Both import torch, each in a process of its own.
    from actors.router.router import RouterConfig
    from actors.shard.shard import ShardConfig

ANSWER_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0

Describe = Callable[[Said], Description]


def make_shard(config: "ShardConfig", secret: bytes) -> Any:
    from actors.shard.shard import ExpertShard

    return ExpertShard(config, secret)


def make_router(config: "RouterConfig", secret: bytes) -> Any:
    from actors.router.router import ExpertRouter

    return ExpertRouter(config, secret)


class ChildProcess:
    """`control.clients.ShardClient` of a process that is a child of this one. Not thread-safe.

    said: its last description, as the process gave it.
    """

    def __init__(
        self, make: Callable[..., Any], config: Any, secret: bytes, threads: int, describe: Describe
    ) -> None:
        """make: one of this module's functions; what it returns answers the calls."""
        self.said: Said | None = None
        self._describe = describe
        spawn = mp.get_context("spawn")
        self._calls, there = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(make, config, secret, there), daemon=True
        )
        with environment(thread_environment(threads) | LEAN_IMPORTS):
            self._process.start()
        there.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    async def start(self) -> Description:
        """Returns when it serves. Raises Gone."""
        return await self._ask("start")

    async def describe(self) -> Description:
        """See `clients.ComponentClient`."""
        return await self._ask("describe")

    async def obey(self, command: Command) -> Description:
        """See `clients.ShardClient`."""
        assert self.said is not None, "only who was described is commanded"
        method, arguments = call_of(command, self._describe(self.said).capacity_bytes)
        return await self._ask(method, *arguments)

    async def end(self, *, kill: bool) -> str:
        """See `clients.ComponentClient`."""
        try:
            if not kill:
                self._calls.send(None)
                await asyncio.to_thread(self._process.join, END_TIMEOUT_S)
        except OSError:
            pass  # it has ended
        self._process.kill()
        await asyncio.to_thread(self._process.join)
        self._calls.close()
        return f"it ended with code {self._process.exitcode}"

    async def _ask(self, method: str, *arguments: Any) -> Description:
        self.said = await asyncio.to_thread(self._answer, method, arguments)
        return self._describe(self.said)

    def _answer(self, method: str, arguments: tuple[Any, ...]) -> Said:
        try:
            self._calls.send((method, arguments))
            if not self._calls.poll(ANSWER_TIMEOUT_S):
                raise TimeoutError(f"process {self.pid} does not answer")
            said: Said = self._calls.recv()
        except (OSError, EOFError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Gone(f"process {self.pid} has ended") from error
        return said


def _serve(make: Callable[..., Any], config: Any, secret: bytes, calls: Connection) -> None:
    """Main function of the child."""
    actor = make(config, secret)
    while (call := calls.recv()) is not None:
        method, arguments = call
        calls.send(getattr(actor, method)(*arguments))
    actor.stop()


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the length of a `with` block: what a child inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
