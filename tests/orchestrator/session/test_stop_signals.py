"""Stop signals set events and interrupt nothing."""

import os
import signal

import pytest

from orchestrator.session.stop_signals import StopRequested, StopSignals


def raise_signal(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops(number: signal.Signals) -> None:
    with StopSignals() as stop:
        stop.check()
        assert not stop.wait(0.01)
        raise_signal(number)
        assert stop.wait(5)
        assert not stop.second
        with pytest.raises(StopRequested):
            stop.check()


def test_the_second_ends_the_waiting() -> None:
    looks = []

    def never() -> bool:
        looks.append(1)
        if len(looks) == 3:
            raise_signal(signal.SIGINT)
        return False

    with StopSignals() as stop:
        raise_signal(signal.SIGTERM)
        assert not stop.wait_second(never, 60)
        assert stop.second
    assert len(looks) == 3


def test_waiting_ends_when_done_or_out_of_time() -> None:
    with StopSignals() as stop:
        assert stop.wait_second(lambda: True, 60)
        assert not stop.wait_second(lambda: False, 0.0)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
