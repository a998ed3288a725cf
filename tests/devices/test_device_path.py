"""Rows that stay on a device: on the stand-in, and on a GPU where there is one.

`python -m tests.devices.path_contract DEVICE` runs the same on a vendor's device.
"""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from actors.wire.bell import Bell
from actors.wire.device_area import AreaShape, DeviceArea, create_area, open_area
from actors.wire.device_memory import TorchDeviceMemory, device_memory_of
from actors.wire.frame import FrameError, FrameKind, Header, RowCoding, body_bytes
from actors.wire.link import RemoteError
from actors.wire.transports import open_link
from tests.actors.fakes import HIDDEN, running
from tests.actors.wire.bare_server import SECRET
from tests.actors.wire.serving import Client, shard_server
from tests.devices.path_contract import CHECKS

BACKENDS = ["standin"] + (["cuda"] if torch.cuda.is_available() else [])
CHILD = """
import json, sys
from tests.devices.path_contract import run_checks
print(json.dumps(run_checks(sys.argv[1])))
"""
SHAPE = AreaShape(2, 512, 1024)


@cache
def said_of(backend: str) -> dict[str, str]:
    """In a process of its own: a stand-in is registered for good."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, backend],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", CHECKS)
def test_rows_stay_on_the_device(backend: str, check: str) -> None:
    assert said_of(backend)[check] == ""


class HostMemory(TorchDeviceMemory):
    """A driver over memory of this process, for what needs no device."""

    def __init__(self, kind: str = "cpu", fences: bool = False) -> None:
        self.device = torch.device(kind)
        self.fences, self.waits = fences, 0
        self.known: list[torch.Tensor] = []

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def share(self, memory: torch.Tensor) -> list[int | bytes]:
        self.known.append(memory)
        return [len(self.known) - 1, b"\x00\xff"]

    def open(self, handle) -> torch.Tensor:  # type: ignore[no-untyped-def]
        assert handle[1] == b"\x00\xff"
        return self.known[handle[0]]

    def fence(self) -> object | None:
        return None

    def synchronize(self) -> None:
        self.waits += 1


def both_sides() -> tuple[DeviceArea, DeviceArea, HostMemory]:
    driver = HostMemory()
    ours, offer = create_area(driver, SHAPE)
    return ours, open_area(driver, offer), driver


def test_both_sides_see_the_same_slots() -> None:
    ours, theirs, _ = both_sides()
    for slot in range(SHAPE.slots):
        ours.rows(slot, 4, 64).fill_(slot + 1.0)
        theirs.sums(slot, 4, 64).fill_(slot + 3.0)
    for slot in range(SHAPE.slots):
        assert (theirs.rows(slot, 4, 64) == slot + 1.0).all()
        assert (ours.sums(slot, 4, 64) == slot + 3.0).all()


def test_room_ends_where_a_slot_ends() -> None:
    assert SHAPE.has_room(4, 64)
    assert not SHAPE.has_room(5, 64)
    assert not AreaShape(1, 1024, 512).has_room(4, 64), "sums need room too"


def test_without_fences_the_client_waits_for_its_device() -> None:
    ours, theirs, driver = both_sides()
    ours.rows_written(0)
    assert driver.waits == 1
    theirs.await_rows(0)
    theirs.sums_written()
    assert driver.waits == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"slots": 0}, "greater than 0"),
        ({"rows_bytes": 1 << 40}, "less than or equal"),
        ({"rows_bytes": 100}, "multiple of 256"),
        ({"slots": 3}, "bytes for"),
        ({"memory": ["zz"]}, "hexadecimal"),
        ({"fences": ["00"]}, "1 fences for 2 slots"),
        ({"more": 1}, "not permitted"),
    ],
)
def test_an_offer_is_not_believed(change: dict[str, object], complaint: str) -> None:
    driver = HostMemory()
    _, offer = create_area(driver, SHAPE)
    with pytest.raises(FrameError, match=complaint):
        open_area(driver, json.dumps(json.loads(offer) | change).encode())
    with pytest.raises(FrameError):
        open_area(driver, b"\x80no JSON")


def test_memory_of_another_type_of_device_is_not_opened() -> None:
    _, offer = create_area(HostMemory(), SHAPE)
    with pytest.raises(ValueError, match="memory is of cpu, this is cuda"):
        open_area(HostMemory("cuda"), offer)


def test_a_cpu_shares_no_device_memory() -> None:
    assert device_memory_of(torch.device("cpu")) is None


def test_rows_in_memory_that_was_not_shared_are_refused(tmp_path: Path) -> None:
    """By a shard on a CPU; the link goes on."""
    with running(shard_server(f"unix:{tmp_path}/s")) as server:
        client = Client(server.addresses[0])
        try:
            length = body_bytes(FrameKind.CALL, 4, HIDDEN, 4, RowCoding.DEVICE)
            call = Header(
                FrameKind.CALL, 1, length, rows=4, hidden=HIDDEN, assignments=4,
                coding=RowCoding.DEVICE,
            )  # fmt: skip
            with client.sending(call) as body:
                body.row_index[:], body.experts[:], body.weights[:] = range(4), 1, 1.0
            with pytest.raises(RemoteError, match="was not shared"):
                client.wait(1)
            client.post(2)
            assert client.wait(2)[0].kind is FrameKind.RESULT
        finally:
            client.close()


def test_a_server_on_a_cpu_takes_no_offer_and_rows_go_through_the_host(tmp_path: Path) -> None:
    with running(shard_server(f"unix:{tmp_path}/s")) as server:
        link = open_link(server.addresses[0], SECRET, Bell(), HostMemory())
        assert link.area is None
        link.close()
