"""When a wait spins, and for how long."""

import pytest

from actors.wire.spin_time import BLOCKING_WAITS, LOST_CORE_S, SPIN_VARIABLE, SpinTime


@pytest.fixture
def spin_time(monkeypatch) -> SpinTime:
    monkeypatch.setenv(SPIN_VARIABLE, "200")
    return SpinTime()


def test_spins_while_waits_are_short(spin_time: SpinTime) -> None:
    assert spin_time.spin_s == pytest.approx(200e-6)
    spin_time.learn(waited_s=100e-6, spun_s=100e-6)
    assert spin_time.spin_s == pytest.approx(200e-6)


def test_gives_up_after_a_long_wait_and_begins_again_after_a_short_one(spin_time: SpinTime) -> None:
    spin_time.learn(waited_s=5e-3, spun_s=200e-6)
    assert spin_time.spin_s == 0
    spin_time.learn(waited_s=300e-6, spun_s=0.0)
    assert spin_time.spin_s == pytest.approx(200e-6)


def test_only_blocks_for_a_while_after_the_core_was_lost(spin_time: SpinTime) -> None:
    spin_time.learn(waited_s=1e-3, spun_s=200e-6 + 2 * LOST_CORE_S)
    for _ in range(BLOCKING_WAITS - 1):
        assert spin_time.spin_s == 0
        spin_time.learn(waited_s=50e-6, spun_s=0.0)
    spin_time.learn(waited_s=50e-6, spun_s=0.0)
    assert spin_time.spin_s > 0


def test_zero_never_spins(monkeypatch) -> None:
    monkeypatch.setenv(SPIN_VARIABLE, "0")
    spin_time = SpinTime()
    spin_time.learn(waited_s=0.0, spun_s=0.0)
    assert spin_time.spin_s == 0


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_nonsense_is_named(monkeypatch, text: str) -> None:
    monkeypatch.setenv(SPIN_VARIABLE, text)
    with pytest.raises(ValueError, match=f"{SPIN_VARIABLE}={text} is no number of microseconds"):
        SpinTime()
