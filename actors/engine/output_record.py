"""What the model puts out for one HTTP exchange, for another engine to continue from.

vLLM's OpenAI layer makes an answer from the outputs of its engine client, one after the other, and
from nothing else. So the outputs, told to the gateway as they come, are all that another engine
needs: it hands the same ones to its own OpenAI layer, which is then where the first one was.

An exchange that generates more than once (several prompts, beam search) has no such line of outputs
and cannot be continued, nor can one whose outputs have parts that a record does not hold.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from actors.messages import Emitted, Record


class OutputRecord:
    """The outputs of one exchange, in order, as they are taken by the bridge."""

    def __init__(self, wanted: bool, emitted: Record = ()) -> None:
        """emitted: what the request is continued with."""
        self.wanted = wanted or bool(emitted)
        self.emitted = emitted
        self._new: list[Emitted] = []
        self._whole = self.wanted
        self._told = self.wanted
        self._generations = 0
        self.replayed: list[Any] = []
        """Outputs of `emitted` that wait for the first new one."""

    def begin(self) -> bool:
        """A generation begins; returns whether it is to be noted."""
        self._generations += 1
        if self._generations > 1:
            self.spoil()
        return self._whole

    def note(self, emitted: Emitted) -> None:
        """The model put this out. The caller tells it before it hands the output on, so the record
        is never behind the bytes."""
        self._new.append(emitted)

    def spoil(self) -> None:
        """The exchange cannot be continued."""
        self._whole = False

    @property
    def news(self) -> bool:
        """Whether there is something to tell: outputs, or that there will be none."""
        return bool(self._new) if self._whole else self._told

    def take(self) -> Record | None:
        """The outputs since the last call; None where there is no whole record."""
        new, self._new = tuple(self._new), []
        self._told = self._whole
        return new if self._whole else None


_current: ContextVar[OutputRecord | None] = ContextVar("expertmesh_output_record", default=None)


@contextmanager
def recording(record: OutputRecord) -> Iterator[None]:
    """What vLLM generates in this block, in tasks started there too, is noted in `record`."""
    token = _current.set(record)
    try:
        yield
    finally:
        _current.reset(token)


def current_record() -> OutputRecord | None:
    """The record of the exchange that this code runs for, if one is wanted."""
    record = _current.get()
    return record if record is not None and record.wanted else None
