"""The pool keeps up with the mesh without being held up by it."""

import asyncio
from dataclasses import replace

from orchestrator.clients import engine_pool
from orchestrator.clients.engine_pool import EnginePool
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
            assert pool.choose(pool.engines) is None
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


class Freezing(FakeEngine):
    """An engine whose status can be stopped."""

    def __init__(self):
        super().__init__()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.asked = 0

    async def status(self):
        self.asked += 1
        await self.goes_on.wait()
        return await super().status()


def test_an_engine_that_hangs_gets_no_requests_until_it_answers(monkeypatch):
    monkeypatch.setattr(engine_pool, "ENGINE_TIMEOUT_S", 0.01)

    async def main():
        engine = Freezing()
        pool = EnginePool(FakeMesh({"a": engine, "b": FakeEngine()}))
        await pool.refresh()
        engine.goes_on.clear()
        engine.asked = 0
        while "a" in names(pool.ready):
            await pool.refresh()
        assert names([pool.choose()]) == ["b"]
        for _ in range(5):
            await pool.refresh()
        assert engine.asked == 1
        engine.goes_on.set()
        await pool.refresh()
        assert names(pool.ready) == ["a", "b"]

    asyncio.run(main())


def test_an_engine_that_hangs_from_the_start_is_asked_once(monkeypatch):
    monkeypatch.setattr(engine_pool, "ENGINE_TIMEOUT_S", 0.01)

    async def main():
        engine = Freezing()
        engine.goes_on.clear()
        pool = EnginePool(FakeMesh({"a": engine}))
        for _ in range(5):
            await pool.refresh()
        assert (engine.asked, pool.engines) == (1, [])
        engine.goes_on.set()
        await pool.refresh()
        assert names(pool.ready) == ["a"]

    asyncio.run(main())


def test_a_suspected_engine_gets_no_requests():
    async def main():
        class Suspecting(FakeMesh):
            async def engines(self):
                first, *others = await super().engines()
                return [replace(first, state=ComponentState.SUSPECT), *others]

        pool = EnginePool(Suspecting({"a": FakeEngine(), "b": FakeEngine()}))
        await pool.refresh()
        assert names(pool.ready) == ["b"]

    asyncio.run(main())
