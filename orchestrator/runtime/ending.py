"""The end of a mesh: requests under way may finish, then every process of it is ended."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from orchestrator import cluster
from orchestrator.config.schema import MeshConfig
from orchestrator.control.lifecycle import Kind, Life
from orchestrator.control.state import State
from orchestrator.runtime.components import RayComponents
from orchestrator.runtime.mesh import is_private
from orchestrator.runtime.process import Process, bounded

STOP_TIMEOUT_S = 15.0
"""How long a process may take to close what it has open."""


async def end_components(components: RayComponents, config: MeshConfig, state: State) -> None:
    """Engines that serve finish first, for `controller.drain_timeout_s` at most."""
    components.close()
    drain_s = config.controller.drain_timeout_s
    processes = [process for process in components if not process.died.done()]
    serving = [process for process in processes if _is_ready_engine(state, process)]
    await _all(bounded(p.handle.drain.remote(drain_s), drain_s + 1) for p in serving)
    if not is_private(config):
        # On other nodes their sockets go only if they remove them; here the run folder goes.
        await _all(bounded(p.handle.stop.remote(), STOP_TIMEOUT_S) for p in processes)
    for process in processes:
        process.kill()


def end_the_rest() -> None:
    """Processes of the mesh that this controller did not come to adopt."""
    for name in cluster.living_actors():
        handle = cluster.find_actor(name)
        if handle is not None:
            cluster.kill(handle)


def _is_ready_engine(state: State, process: Process) -> bool:
    name = process.name
    component = state.facts.components.get(name.id)
    return (
        name.kind is Kind.ENGINE
        and component is not None
        and component.generation == name.generation
        and component.life is Life.READY
    )


async def _all(calls: Iterable[Awaitable[Any]]) -> None:
    await asyncio.gather(*calls)
