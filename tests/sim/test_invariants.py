"""Each invariant of the simulation can fail: the core is broken on purpose, one way at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.control import batching, commands, epochs, repair, transactions
from orchestrator.control.settings import Settings
from orchestrator.control.turn import Turn
from tests.sim.mesh import Shape
from tests.sim.process import Process
from tests.sim.scenario import SimulationFailed, simulate

SHAPE = Shape(load_fails=0.05)
SEEDS = range(20)


def breaks(name: str, settings: Settings | None = None) -> None:
    """Some seed fails, and says which invariant it was."""
    said = ""
    for seed in SEEDS:
        try:
            simulate(seed, SHAPE, faults_s=60.0, heal_s=90.0, settings=settings)
        except SimulationFailed as failure:
            said = str(failure)
            if f"Breach: {name}:" in said:
                assert f"replay: simulate({seed}, " in said
                return
    raise AssertionError(f"no seed broke {name!r}; the last failure ended in {said[-400:]!r}")


def test_lost_keys_that_nobody_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "_rescue", lambda *_: None)
    breaks("every key")


def test_memory_that_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "_that_fit", lambda missing, *_: dict(missing))
    monkeypatch.setattr(transactions, "_cannot_load", lambda *_: "")

    def load(self: Process, command: Any) -> None:
        self.loading = command.keys - self.holdings
        seconds = len(self.loading) * 0.01
        self.clock.after(seconds, lambda: self._loaded(command.order, fails=False))

    monkeypatch.setattr(Process, "_load", load)
    breaks("memory")


def test_epochs_that_do_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    right = epochs.next_epoch

    def wrong(turn: Any, copies: Any) -> Any:
        epoch = right(turn, copies)
        before = turn.intent.epoch
        number = before.id.number - 1 if before else 1000
        return replace(epoch, id=epoch.id._replace(number=number))

    monkeypatch.setattr(epochs, "next_epoch", wrong)
    breaks("epochs")


def test_loads_outside_of_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    right = commands.command

    def wrong(turn: Any, shard: str, step: str, keys: Any, _: int, reason: str) -> None:
        right(turn, shard, step, keys, 0, reason)

    monkeypatch.setattr(commands, "command", wrong)
    breaks("one transaction")


def test_commands_that_are_obeyed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., None] = Process.obey

    def wrong(self: Process, command: Any) -> None:
        self.order = (0, 0)  # type: ignore[assignment]
        right(self, command)

    monkeypatch.setattr(Process, "obey", wrong)
    breaks("same action")


def test_suspicion_after_one_missed_probe() -> None:
    breaks("hasty", Settings(misses_to_suspect=1, suspect_limit_s=8.0))


def test_copies_retired_though_nobody_else_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turn, "named_and_held", Turn.serving_copies)
    monkeypatch.setattr(transactions, "_may_go", lambda _, drop: dict(drop))
    breaks("last copy")


def test_a_mesh_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "_restore", lambda *_: None)
    # Without rebalances for the load, too, which lead back to a plan by themselves.
    breaks("healed", Settings(suspect_limit_s=8.0, rebalance_cooldown_s=1e6))
