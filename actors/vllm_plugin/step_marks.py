"""Counters of failed steps, in memory that all processes of one engine share.

vLLM's workers find out that a step has no experts; its scheduler, often in another process, decides
what becomes of the step's requests. A worker counts before its forward pass returns, and the
scheduler looks when it gets the step's output, so it never misses one. The memory is an anonymous
file that the engine's first process makes; the others open it through /proc and nothing is left
when they are gone.
"""

import mmap
import os

import numpy as np

MARKS_VARIABLE = "EXPERTMESH_STEP_MARKS"
"""Where the processes of an engine find the file; set by its first process."""

MAX_RANKS = 64
_WATCHED = MAX_RANKS
"""Index of the word that says whether a scheduler looks at the counters."""
_BYTES = 8 * (MAX_RANKS + 1)


class StepMarks:
    """One counter for each rank, written by that rank only."""

    def __init__(self, words: mmap.mmap) -> None:
        self._words = np.frombuffer(words, np.int64)

    def count_failure(self, rank: int) -> None:
        self._words[rank] += 1

    def failures(self) -> int:
        """Failed steps so far, summed over the ranks."""
        return int(self._words[:MAX_RANKS].sum())

    def watch(self) -> None:
        """A scheduler looks from now on."""
        self._words[_WATCHED] = 1

    @property
    def watched(self) -> bool:
        return bool(self._words[_WATCHED])


def create_marks() -> None:
    """Make the file unless this process inherited one. Linux only; elsewhere there is none."""
    if MARKS_VARIABLE in os.environ or not hasattr(os, "memfd_create"):
        return
    descriptor = os.memfd_create("expertmesh-step-marks")
    os.ftruncate(descriptor, _BYTES)
    os.environ[MARKS_VARIABLE] = f"/proc/{os.getpid()}/fd/{descriptor}"


def open_marks() -> StepMarks | None:
    """The engine's counters; None where it has none."""
    path = os.environ.get(MARKS_VARIABLE)
    if path is None:
        return None
    descriptor = os.open(path, os.O_RDWR)
    try:
        return StepMarks(mmap.mmap(descriptor, _BYTES))
    finally:
        os.close(descriptor)
