"""Actors that no node has room for."""

import asyncio

import pytest

from orchestrator import cluster
from orchestrator.errors import UserError
from orchestrator.resources import Demand
from orchestrator.runtime.room import no_room_for, unless
from tests.orchestrator.building import NO_HANDLE

DEMAND = Demand("pools.h20", 1, {"CPU": 2, "GPU": 1.0})


@pytest.mark.parametrize("waits", [True, False])
def test_an_actor_that_waits_too_long_is_told(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    monkeypatch.setattr(cluster, "waits_for_room", lambda *_: waits)
    monkeypatch.setattr(cluster, "free_resources", lambda: {"box": {"CPU": 1.0}})
    if not waits:
        asyncio.run(no_room_for(NO_HANDLE, DEMAND, 0.0))
        return
    with pytest.raises(UserError, match=r"pools.h20 .*they have free box: CPU 1, GPU 0"):
        asyncio.run(no_room_for(NO_HANDLE, DEMAND, 0.0))


async def result() -> str:
    return "done"


async def fail() -> None:
    raise UserError("no")


async def wait() -> str:
    await asyncio.Event().wait()
    return ""


def test_work_goes_on_unless_somebody_objects() -> None:
    assert asyncio.run(unless(result(), asyncio.sleep(100))) == "done"
    assert asyncio.run(unless(asyncio.sleep(0.02, "done"), asyncio.sleep(0))) == "done"
    with pytest.raises(UserError, match=r"^no$"):
        asyncio.run(unless(wait(), fail()))
