"""A call that waits elsewhere ends with what it returns or raises, or with what the look raises."""

import threading
import time

import pytest

from orchestrator.session.watched_call import call_watched


def test_the_answer_comes_back() -> None:
    looks: list[int] = []

    def slow() -> str:
        time.sleep(0.2)
        return "answer"

    assert call_watched(slow, lambda: looks.append(1)) == "answer"
    assert looks


@pytest.mark.parametrize("error", [ValueError("its own"), TimeoutError("its own")])
def test_the_error_comes_back(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error), match="its own"):
        call_watched(fail, lambda: None)


def test_the_look_ends_the_wait() -> None:
    never = threading.Event()

    def lost() -> None:
        raise ConnectionError("lost")

    try:
        with pytest.raises(ConnectionError, match="lost"):
            call_watched(never.wait, lost)
    finally:
        never.set()
