"""The pool keeps up with the mesh without being held up by it."""

import asyncio

from orchestrator.gateway import engine_pool
from orchestrator.gateway.engine_pool import EnginePool
from orchestrator.status import ComponentState
from tests.orchestrator.gateway.fakes import FakeEngine, FakeMesh


def names(engines):
    return [engine.info.id for engine in engines]


def test_engines_come_change_and_go():
    async def main():
        mesh = FakeMesh({"a": FakeEngine(), "b": FakeEngine(max_running=5)})
        pool = EnginePool(mesh)
        await pool.refresh()
        assert (names(pool.ready), pool.max_running) == (["a", "b"], 7)
        mesh.fakes["a"].state = ComponentState.DRAINING
        await pool.refresh()
        assert (names(pool.ready), names(pool.engines)) == (["b"], ["a", "b"])
        del mesh.fakes["a"]
        await pool.refresh()
        assert names(pool.engines) == ["b"]

    asyncio.run(main())


def test_requests_in_flight_survive_a_refresh():
    async def main():
        pool = EnginePool(FakeMesh({"a": FakeEngine(), "b": FakeEngine()}))
        await pool.refresh()
        first = pool.choose()
        with pool.lease(first):
            await pool.refresh()
            assert pool.in_flight == 1
            assert names([pool.choose()]) == ["b"]
            assert pool.choose({"engine/a", "engine/b"}) is None
        assert pool.in_flight == 0

    asyncio.run(main())


def test_callers_share_one_question_to_the_controller():
    async def main():
        mesh = FakeMesh({"a": FakeEngine()})
        pool = EnginePool(mesh)
        await asyncio.gather(*(pool.refresh() for _ in range(20)))
        assert mesh.times_asked == 1

    asyncio.run(main())


def test_one_impatient_caller_does_not_take_the_answer_from_the_others():
    async def main():
        pool = EnginePool(FakeMesh({"a": FakeEngine()}))
        impatient, patient = (asyncio.create_task(pool.refresh()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert names(pool.ready) == ["a"]

    asyncio.run(main())


def test_a_hanging_engine_or_controller_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(engine_pool, "ENGINE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(engine_pool, "CONTROLLER_TIMEOUT_S", 0.01)

    class Hanging(FakeEngine):
        async def status(self):
            await asyncio.Event().wait()

    class HangingMesh(FakeMesh):
        async def engines(self):
            if self.silent:
                await asyncio.Event().wait()
            return await super().engines()

    async def main():
        mesh = HangingMesh({"a": Hanging(), "b": FakeEngine()})
        pool = EnginePool(mesh)
        await pool.refresh()
        assert names(pool.engines) == ["b"]
        mesh.silent = True
        await pool.refresh()
        assert names(pool.ready) == ["b"]

    asyncio.run(main())


def test_the_silence_of_the_controller_is_timed():
    async def main():
        now_s = 100.0
        mesh = FakeMesh({})
        pool = EnginePool(mesh, clock=lambda: now_s)
        await pool.refresh()
        mesh.silent, now_s = True, 107.0
        await pool.refresh()
        assert pool.controller_silence_s == 7.0
        mesh.silent = False
        await pool.refresh()
        assert pool.controller_silence_s == 0.0

    asyncio.run(main())
