"""The runner over fakes: it journals before it acts, and outcomes come back as events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.control import runner as runner_module
from orchestrator.control.events import Served
from orchestrator.control.journal import Journal, JournalError
from orchestrator.control.keys import EXPERT, PlacedKey, all_keys
from orchestrator.control.lifecycle import Kind, Life
from orchestrator.control.runner import Runner
from orchestrator.control.settings import Settings
from orchestrator.control.state import Facts, Intent, Place, State
from orchestrator.control.step import recovered
from orchestrator.runtime.components import PROBE_TIMEOUT
from tests.control.fakes import FakeComponents, FakeFollowers

PROBE_INTERVAL_S = 0.05
KEYS = frozenset(PlacedKey(EXPERT, 0, expert) for expert in range(6))
SETTINGS = Settings(
    misses_to_suspect=2, suspect_limit_s=0.3, kill_timeout_s=1.0, retry_s=0.2, consider_s=0.05,
    restart_pause_s=0.05, restart_budget=3, rebalance_cooldown_s=0.1,
)  # fmt: skip


def first_state() -> State:
    places = {f"cpu-{n}": Place(f"cpu-{n}", Kind.SHARD, "cpu") for n in range(3)}
    places["engine-0"] = Place("engine-0", Kind.ENGINE, "engine")
    return State(SETTINGS, Intent(keys=KEYS, places=places), Facts(started_s=time.monotonic()))


class Mesh:
    """One runner and what it runs on."""

    def __init__(self, folder: Path, state: State | None = None) -> None:
        self.components, self.followers = FakeComponents(), FakeFollowers()
        self.journal = Journal(folder, "mesh")
        self.runner = self.new_runner(state or first_state())

    def new_runner(self, state: State) -> Runner:
        return Runner(
            state, self.journal, self.components, self.followers, probe_interval_s=PROBE_INTERVAL_S
        )

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60.0):
            while not condition():
                await asyncio.sleep(0.01)

    async def placed(self) -> None:
        await self.until(
            lambda: (
                self.runner.state.intent.epoch is not None
                and self.runner.state.intent.transaction is None
            )
        )

    def reasons(self) -> str:
        return "\n".join(str(line["reason"]) for line in self.journal.history(after=-200))


def run(folder: Path, test: Callable[[Mesh], Awaitable[None]], state: State | None = None) -> None:
    async def running() -> None:
        mesh = Mesh(folder, state)
        await mesh.runner.start()
        try:
            await mesh.placed()
            await test(mesh)
        finally:
            await mesh.runner.stop()

    asyncio.run(running())


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "TICK_S", 0.05)


def test_a_mesh_is_started_placed_and_published(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        assert sorted(mesh.components.started) == ["cpu-0.1", "cpu-1.1", "cpu-2.1", "engine-0.1"]
        assert all_keys(mesh.followers.published[-1].copies) == KEYS
        for id, keys in mesh.followers.published[-1].copies.items():
            assert mesh.components.newest(id).said.holdings == keys
        assert mesh.journal.read() == mesh.runner.state.intent
        assert "first placement, on 3 shards" in mesh.reasons()

    run(tmp_path, test)


def test_a_dead_shard_is_replaced_and_loads_what_it_held(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        before = mesh.followers.published[-1]
        mesh.components.newest("cpu-1").dead = "killed from outside"
        await mesh.until(lambda: "cpu-1.2" in mesh.components.started)
        await mesh.until(
            lambda: mesh.components.newest("cpu-1").said.holdings == before.copies["cpu-1"]
        )
        await mesh.until(
            lambda: (
                mesh.followers.published[-1].incarnations["cpu-1"]
                == mesh.components.newest("cpu-1").said.incarnation
            )
        )
        assert "shard cpu-1 is dead: killed from outside" in mesh.reasons()

    run(tmp_path, test)


def test_a_hung_component_is_ended_and_replaced(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.components.newest("engine-0").hung = True
        await mesh.until(lambda: "engine-0.2" in mesh.components.started)
        assert mesh.components.processes["engine-0", 1].dead == "killed"
        await mesh.until(lambda: mesh.runner.state.facts.components["engine-0"].life is Life.READY)

    run(tmp_path, test)


def test_one_that_hangs_is_asked_as_often_as_the_others(tmp_path: Path) -> None:
    """A probe that is not answered has ended when the next one is due."""

    async def test(mesh: Mesh) -> None:
        hung, other = mesh.components.newest("engine-0"), mesh.components.newest("cpu-0")
        hung.patience_s = PROBE_TIMEOUT * PROBE_INTERVAL_S
        hung.hung = True
        hung.asked = other.asked = 0
        await mesh.until(lambda: other.asked >= 20 or hung.dead)
        assert hung.asked >= 0.8 * other.asked

    state = first_state()
    state = replace(state, settings=replace(SETTINGS, misses_to_suspect=1000))
    run(tmp_path, test, state)


def test_a_shard_that_answers_wrongly_is_replaced_once(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        before = mesh.followers.published[-1]
        incarnation = mesh.components.newest("cpu-1").said.incarnation
        mesh.followers.found_wrong = {"engine": {"cpu-1": incarnation}}
        await mesh.until(lambda: "cpu-1.2" in mesh.components.started)
        await mesh.until(
            lambda: mesh.components.newest("cpu-1").said.holdings == before.copies["cpu-1"]
        )
        assert mesh.components.processes["cpu-1", 1].dead == "killed"
        await asyncio.sleep(0.3)  # the dispatcher still names the process that is gone
        assert "cpu-1.3" not in mesh.components.started
        assert mesh.reasons().count("shard cpu-1 is taken out and replaced: dispatcher engine") == 1

    run(tmp_path, test)


def test_what_does_not_start_is_given_up_visibly(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.components.broken["cpu-2"] = "no such device"
        mesh.components.newest("cpu-2").dead = "it broke"
        await mesh.until(lambda: "cpu-2" in mesh.runner.state.facts.problems)
        problem = mesh.runner.state.facts.problems["cpu-2"]
        assert "given up" in problem
        assert "no such device" in problem
        await mesh.until(lambda: "cpu-2" not in mesh.followers.published[-1].copies)
        assert all_keys(mesh.followers.published[-1].copies) == KEYS

    run(tmp_path, test)


def test_verbs_are_answered(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        done, text = await mesh.runner.ask("drain", "cpu-9")
        assert (done, "did you mean cpu-" in text) == (False, True)
        done, text = await mesh.runner.ask("rebalance", dry_run=True)
        assert done
        assert "would load 0 copies" in text
        done, _ = await mesh.runner.ask("scale", "cpu", 4)
        assert done
        await mesh.until(lambda: "cpu-3" in mesh.followers.published[-1].copies)

    run(tmp_path, test)


def test_a_dispatcher_that_does_not_follow_is_evicted(tmp_path: Path) -> None:
    async def test(mesh: Mesh) -> None:
        mesh.followers.behind.add("stuck")
        mesh.components.newest("cpu-1").dead = "killed from outside"
        await mesh.until(lambda: mesh.followers.evicted == ["stuck"])
        assert "did not follow" in mesh.reasons() or "went on without 1" in mesh.reasons()

    run(tmp_path, test)


def test_nothing_is_done_that_cannot_be_journaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(mesh: Mesh) -> None:
        def refuse(*_: object) -> None:
            raise JournalError("the disk is full; free some space")

        write = mesh.journal.write
        monkeypatch.setattr(mesh.journal, "write", refuse)
        assert await mesh.runner.ask("scale", "cpu", 4) == (
            False,
            "the disk is full; free some space",
        )
        mesh.components.newest("cpu-1").dead = "killed from outside"
        await mesh.until(lambda: mesh.runner.problem)
        await asyncio.sleep(0.3)
        assert "cpu-1.2" not in mesh.components.started
        monkeypatch.setattr(mesh.journal, "write", write)
        await mesh.until(lambda: "cpu-1.2" in mesh.components.started)
        await mesh.until(lambda: not mesh.runner.problem)

    run(tmp_path, test)


def test_the_next_controller_adopts_what_lives(tmp_path: Path) -> None:
    async def running() -> None:
        mesh = Mesh(tmp_path)
        await mesh.runner.start()
        await mesh.placed()
        started = list(mesh.components.started)
        epoch = mesh.runner.state.intent.epoch
        await mesh.runner.stop()
        mesh.components.newest("cpu-0").dead = "died while nobody looked"
        mesh.journal = Journal(tmp_path, "mesh")
        intent = mesh.journal.read()
        assert intent is not None
        mesh.runner = mesh.new_runner(recovered(intent, SETTINGS, time.monotonic()))
        await mesh.runner.start()
        try:
            await mesh.until(lambda: "cpu-0.2" in mesh.components.started)
            assert mesh.components.started == [*started, "cpu-0.2"]
            assert epoch is not None
            await mesh.until(
                lambda: mesh.components.newest("cpu-0").said.holdings == epoch.copies["cpu-0"]
            )
            assert mesh.runner.state.intent.term == 2
            assert mesh.followers.published[-1].id.term == 2
        finally:
            await mesh.runner.stop()

    asyncio.run(running())


def test_a_slow_shard_gets_fewer_rows_and_moves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        mesh = Mesh(tmp_path)
        await mesh.runner.start()
        await mesh.placed()
        before = mesh.followers.published[-1].copies
        for _ in range(4):
            mesh.followers.slow = {"engine": {"cpu-1": Served(4.0), "cpu-0": Served()}}
            await mesh.until(lambda: not mesh.followers.slow)
        await mesh.until(lambda: mesh.followers.published[-1].weights.get("cpu-1", 1.0) < 0.5)
        newest = mesh.followers.published[-1]
        assert newest.copies == before
        assert set(newest.weights) == {"cpu-1"}
        await mesh.runner.stop()

    asyncio.run(main())
