"""Notices actors that wait for a node that has room for them."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ray.actor import ActorHandle

from orchestrator import cluster
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.resources import Demand, check_room, demands_of, no_room

Result = TypeVar("Result")


async def no_room_for(handle: ActorHandle, demand: Demand, timeout_s: float) -> None:
    """Returns after `timeout_s` if a node has taken the actor by then.

    Raises:
        UserError: none has room. Names what it asks for and what the nodes have free.
    """
    await asyncio.sleep(timeout_s)
    if await asyncio.to_thread(cluster.waits_for_room, handle, demand.each):
        raise no_room(demand, await asyncio.to_thread(cluster.free_resources), "have free")


async def why_no_room(config: MeshConfig) -> str:
    """What the nodes lack, all in all, of what shards and engines would ask for; empty if nothing.

    A process that is replaced leaves its room to the next one, so what is taken now does not count.
    """
    try:
        check_room(demands_of(config), await asyncio.to_thread(cluster.node_resources))
    except UserError as error:
        return str(error)
    return ""


async def unless(work: Coroutine[Any, Any, Result], objection: Coroutine[Any, Any, None]) -> Result:
    """The result of `work`, unless `objection` raises before it is there."""
    working, objecting = asyncio.create_task(work), asyncio.create_task(objection)
    try:
        await asyncio.wait({working, objecting}, return_when=asyncio.FIRST_COMPLETED)
        if objecting.done() and not working.done():
            objecting.result()
        return await working
    finally:
        working.cancel()
        objecting.cancel()
