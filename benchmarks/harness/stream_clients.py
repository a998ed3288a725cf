"""Streaming clients in a process of their own, ahead of the mesh on the cores they share.

Clients of a mesh run on other machines. On a machine whose cores are all taken, Linux lets a
process that mostly sleeps wait for one for up to 1.4 s (measured on two cores, while a shard is
replaced): a client would note its own wait as a pause of the mesh.
"""

import multiprocessing as mp
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from tests.nodes.streams import Stream, streaming

START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 600.0


@contextmanager
def prior_streams(url: str, prompts: Sequence[str], tokens: int) -> Iterator[list[Stream]]:
    """`streaming` from another process: the list is filled when the `with` block has ended.

    Real-time priority needs root; anybody else's clients share the cores like everything.
    """
    spawn = mp.get_context("spawn")
    here, there = spawn.Pipe()
    client = spawn.Process(target=_ask, args=(url, prompts, tokens, there), daemon=True)
    client.start()
    there.close()
    streams: list[Stream] = []
    try:
        _receive(here, START_TIMEOUT_S)
        yield streams
        streams += _receive(here, END_TIMEOUT_S)
        client.join()
    finally:
        client.kill()
        here.close()


def _receive(pipe: Connection, timeout_s: float) -> list[Stream]:
    if not pipe.poll(timeout_s):
        raise TimeoutError(f"clients did nothing for {timeout_s:g} s")
    received: list[Stream] = pipe.recv()
    return received


def _ask(url: str, prompts: Sequence[str], tokens: int, pipe: Connection) -> None:
    """Twice something is sent: nothing as all streams are under way, and the ended streams."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # its threads inherit it
    with streaming(url, prompts, tokens) as streams:
        pipe.send([])
    pipe.send(streams)
