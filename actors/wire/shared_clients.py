"""The segments of all clients that a server shares memory with, looked at in one native pass.

Calls of one engine must not take longer because other engines are connected without calling.
"""

import numpy as np
import numpy.typing as npt
from numba import carray

from actors.wire.connections import SharedConnection
from actors.wire.segment import (
    FIRST_STATE,
    MAX_SLOTS,
    PAGE_BYTES,
    POSTED,
    SERVER_ASLEEP,
    STATE_STRIDE,
    TAKEN,
)
from native.atomics import publish, take
from native.compiled import compiled
from native.pointers import pointer_to

NOTHING = -1


class SharedClients:
    """Clients in the order they came."""

    def __init__(self) -> None:
        self._clients: list[SharedConnection] = []
        self._table: npt.NDArray[np.int64] = np.zeros((0, 2), np.int64)

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, client: SharedConnection) -> None:
        self._clients.append(client)
        self._tabulate()

    def remove(self, client: SharedConnection) -> None:
        self._clients.remove(client)
        self._tabulate()

    def _tabulate(self) -> None:
        rows = [(client.segment.address, client.segment.shape.slots) for client in self._clients]
        self._table = np.array(rows, np.int64).reshape(-1, 2)

    def take(self) -> tuple[SharedConnection, int] | None:
        """A client and the slot of its call, which is this server's now; None: there is none."""
        found = take_posted(self._table)
        if found == NOTHING:
            return None
        client, slot = divmod(int(found), MAX_SLOTS)
        return self._clients[client], slot

    def say_asleep(self, asleep: bool) -> None:
        """Tell all clients whether they have to ring."""
        say_asleep(self._table, int(asleep))


@compiled(inline="always")
def _words(table, client):  # type: ignore[no-untyped-def]
    return carray(pointer_to(table[client, 0]), (PAGE_BYTES // 4,), np.uint32)


@compiled(nogil=False)
def take_posted(table):  # type: ignore[no-untyped-def]
    """client * MAX_SLOTS + slot of a posted call, which becomes TAKEN; NOTHING if there is none."""
    for client in range(table.shape[0]):
        slot = take(
            _words(table, client), FIRST_STATE, STATE_STRIDE, table[client, 1], POSTED, TAKEN
        )
        if slot >= 0:
            return client * MAX_SLOTS + slot
    return NOTHING


@compiled(nogil=False)
def say_asleep(table, asleep):  # type: ignore[no-untyped-def]
    for client in range(table.shape[0]):
        publish(_words(table, client), SERVER_ASLEEP, np.uint32(asleep))
