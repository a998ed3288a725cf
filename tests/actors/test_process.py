"""What an actor's process does about its memory."""

import ctypes
import multiprocessing as mp
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from actors.process import return_free_memory

BLOCK_BYTES, BLOCKS = 64 << 10, 1024  # small enough to come from the heap


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _free_all_but_the_last(answer: Connection) -> None:
    blocks = [bytearray(BLOCK_BYTES) for _ in range(BLOCKS)]
    last = blocks.pop()  # the end of the heap is in use, so it does not shrink by itself
    blocks.clear()
    before = _anonymous_bytes()
    return_free_memory()
    answer.send((before, _anonymous_bytes(), len(last)))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    here, there = (spawn := mp.get_context("spawn")).Pipe()
    process = spawn.Process(target=_free_all_but_the_last, args=(there,), daemon=True)
    process.start()
    there.close()
    before, after, _ = here.recv()
    process.join()
    assert before - after > BLOCK_BYTES * BLOCKS // 2
