"""A controller that says nothing for long is ended, each process once."""

import asyncio

from orchestrator.clients.engine_pool import EnginePool
from orchestrator.gateway.hung_controller import HungController
from orchestrator.status import ComponentKind, ComponentState, ComponentStatus
from tests.orchestrator.gateway.fakes import FakeMesh

LIMIT_S = 20.0


def controller(pid: int) -> ComponentStatus:
    return ComponentStatus(
        id="controller", kind=ComponentKind.CONTROLLER, node="box", pid=pid,
        state=ComponentState.READY, detail="",
    )  # fmt: skip


def test_one_that_is_silent_for_long_is_ended_once_and_its_successor_again() -> None:
    now_s = 0.0
    mesh = FakeMesh({}, components=[controller(7)])

    async def story() -> list[list[tuple[str, int]]]:
        nonlocal now_s
        pool = EnginePool(mesh, clock=lambda: now_s)
        watch = HungController(pool, mesh, LIMIT_S)
        seen = []

        async def look(at_s: float) -> None:
            nonlocal now_s
            now_s = at_s
            await pool.refresh()
            await watch.look()
            seen.append(list(mesh.ended))

        await look(0.0)
        mesh.silent = True
        await look(LIMIT_S - 1)
        await look(LIMIT_S + 1)
        await look(LIMIT_S + 2)
        mesh.silent, mesh.components = False, [controller(8)]
        await look(LIMIT_S + 5)
        mesh.silent = True
        await look(2 * LIMIT_S + 10)
        return seen

    seen = asyncio.run(story())
    assert seen == [[], [], [("box", 7)], [("box", 7)], [("box", 7)], [("box", 7), ("box", 8)]]


def test_one_that_never_spoke_is_left_alone() -> None:
    mesh = FakeMesh({}, silent=True)

    async def story() -> None:
        pool = EnginePool(mesh, clock=lambda: 1e6 if mesh.times_asked else 0.0)
        await pool.refresh()
        await HungController(pool, mesh, LIMIT_S).look()

    asyncio.run(story())
    assert mesh.ended == []
