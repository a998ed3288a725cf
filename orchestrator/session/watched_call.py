"""Calls that wait inside Ray, where a lost process would not end the wait.

Ray's client waits a minute for a control service (GCS) that has ended, then ends its own process.
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.05


def call_watched(call: Callable[[], T], look: Callable[[], None]) -> T:
    """What `call` returns or raises. It runs in a thread of its own.

    look: called every `POLL_S` meanwhile; what it raises ends the wait, and the thread is left to
        itself.
    """
    answer: Future[T] = Future()
    Thread(target=_run, args=(call, answer), name="watched-call", daemon=True).start()
    while True:
        try:
            return answer.result(POLL_S)
        except TimeoutError:
            if answer.done():  # the call's own
                raise
            look()


def _run(call: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # raised again where it is awaited
        answer.set_exception(error)
