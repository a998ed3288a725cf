"""Which of a machine's devices a shard gets, where Ray does not say.

Ray counts NVIDIA's, AMD's, MetaX's and Ascend's devices, hands out indices and sets the variable
that chooses them. A custom resource (`MLU: 1`) only counts. So shards of other vendors agree among
themselves: each takes the first index that nobody on the machine has, by binding that device's Unix
socket. The socket has no file (Linux's abstract namespace): it is the machine's, or the pod's where
pods have networks of their own, and the kernel frees it however the process ends.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from actors.devices.catalogue import find_family, load_catalogue
from actors.devices.detect import (
    AmbiguousDevices,
    Step,
    detect,
    device_indices,
)
from actors.devices.family import Family
from actors.devices.snapshot import Snapshot, take_snapshot


class DeviceRefused(ValueError):
    """This machine does not have the device that a pool asks for; one line."""


@dataclass(slots=True)
class Assignment:
    """device: as torch is told. index: on the machine; None where Ray or the config chose.

    Hold it for as long as the device is used.
    """

    device: str
    index: int | None = None
    _lock: socket.socket | None = field(default=None, repr=False)

    def release(self) -> None:
        """Let others have the device. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def open_device(vendor: str, device: str, node_labels: Mapping[str, str]) -> Assignment:
    """The device of this process, of the vendor its pool names; `node_labels`: of the Ray node.

    Raises:
        DeviceRefused: this machine has another vendor's devices, or all of them are taken.
    """
    family, families = find_family(vendor), load_catalogue().values()
    # Torch starts the driver, which reads the variable: it is asked only after that is set.
    unasked = take_snapshot(families, node_labels=node_labels, ask_torch=False)
    assignment = assign_device(family, device, unasked)
    try:
        snapshot = take_snapshot(families, node_labels=node_labels)
        check_vendor_here(family, snapshot)
    except BaseException:
        assignment.release()
        raise
    return assign_device(family, device, snapshot) if assignment.index is None else assignment


def assign_device(
    family: Family,
    device: str,
    snapshot: Snapshot,
    environment: MutableMapping[str, str] = os.environ,
) -> Assignment:
    """The device of this process, with the visibility variable set for it in `environment`.

    Must come before the vendor's driver starts in this process. Where that variable or files do not
    tell which devices there are, those that torch sees are counted and torch is told the index.
    device: torch device of the pool; with an index, or of a family that Ray knows, it stays.

    Raises:
        DeviceRefused: every device is taken.
    """
    chosen = ":" in device or family.ray is None or family.ray.manager
    if chosen:
        return Assignment(device)
    variable = family.visibility_variable
    visible = _visible(environment.get(variable, "")) if variable else []
    indices = visible or device_indices(snapshot, family)
    if variable is not None and indices:
        index, lock = take_first(family.vendor, indices)
        environment[variable] = str(index)
        return Assignment(device, index, lock)
    seen = range(len(snapshot.torch_devices.get(device, ())))
    if not seen:
        return Assignment(device)  # nothing tells how many there are: torch's own choice
    index, lock = take_first(family.vendor, seen)
    return Assignment(f"{device}:{index}", index, lock)


def take_first(vendor: str, indices: Sequence[int]) -> tuple[int, socket.socket]:
    """The first index that no process of this machine has, and what keeps it.

    Raises:
        DeviceRefused: all are taken.
    """
    for index in indices:
        lock = _take(vendor, index)
        if lock is not None:
            return index, lock
    numbers = ", ".join(map(str, indices))
    raise DeviceRefused(
        f"all {vendor} devices of this machine are taken ({numbers}): announce no more of them to "
        "Ray than there are"
    )


def check_vendor_here(family: Family, snapshot: Snapshot) -> None:
    """Refuses a device of another vendor than the pool's; what cannot be told is believed.

    Raises:
        DeviceRefused: there is evidence of another vendor's devices, and none of the pool's.
    """
    try:
        found = detect(snapshot)
    except AmbiguousDevices:
        return
    if found.step is not Step.NOTHING and found.vendor != family.vendor:
        raise DeviceRefused(
            f"the pool asks for {family.vendor}, but this machine has {found.vendor} "
            f"({found.evidence}): let the pool's resources choose other nodes, or set "
            f"EXPERTMESH_VENDOR={family.vendor} there"
        )


def _visible(text: str) -> list[int]:
    """Indices in a visibility variable; none if it names devices otherwise."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else []


def _take(vendor: str, index: int) -> socket.socket | None:
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(f"\0expertmesh/device/{vendor}/{index}")
    except OSError:
        lock.close()
        return None
    return lock
