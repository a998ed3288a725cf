"""Devices that Ray does not hand out: each process gets its own, and a killed one gives it back."""

import signal
import subprocess
import sys

import pytest

from actors.devices.assign import (
    DeviceRefused,
    assign_device,
    check_vendor_here,
    open_device,
    take_first,
)
from actors.devices.catalogue import find_family
from actors.devices.snapshot import Snapshot

MLU = find_family("cambricon")
SUPA = find_family("biren")
TWO = Snapshot(files=frozenset({"/dev/cambricon_dev0", "/dev/cambricon_dev1"}))

HOLD = """
import sys
from actors.devices.assign import take_first
index, lock = take_first("cambricon", [0, 1])
print(index, flush=True)
sys.stdin.read()
"""


def test_each_shard_gets_a_device_and_its_variable() -> None:
    first_sees: dict[str, str] = {}
    second_sees: dict[str, str] = {}
    first = assign_device(MLU, "mlu", TWO, first_sees)
    second = assign_device(MLU, "mlu", TWO, second_sees)
    try:
        assert (first.device, first.index, first_sees) == ("mlu", 0, {"MLU_VISIBLE_DEVICES": "0"})
        assert (second.index, second_sees) == (1, {"MLU_VISIBLE_DEVICES": "1"})
        with pytest.raises(DeviceRefused, match=r"all cambricon devices .* are taken \(0, 1\)"):
            assign_device(MLU, "mlu", TWO, {})
        first.release()
        again = assign_device(MLU, "mlu", TWO, {})
        assert again.index == 0
        again.release()
    finally:
        first.release()
        second.release()


def test_a_variable_that_is_set_says_which_devices_may_be_taken() -> None:
    environment = {"MLU_VISIBLE_DEVICES": "5, 1"}
    given = assign_device(MLU, "mlu", TWO, environment)
    assert (given.index, environment) == (5, {"MLU_VISIBLE_DEVICES": "5"})
    given.release()


def test_without_a_variable_torch_gets_the_index() -> None:
    nameless = SUPA.model_copy(update={"visibility_variable": None})
    seen = Snapshot(torch_devices={"supa": ("a", "b")})
    environment: dict[str, str] = {}
    one, two = (assign_device(nameless, "supa", seen, environment) for _ in range(2))
    assert (one.device, two.device, environment) == ("supa:0", "supa:1", {})
    one.release()
    two.release()


@pytest.mark.parametrize(
    ("vendor", "device"), [("nvidia", "cuda"), ("ascend", "npu"), ("cambricon", "mlu:3")]
)
def test_what_ray_or_the_config_chose_stays(vendor: str, device: str) -> None:
    environment: dict[str, str] = {}
    given = assign_device(find_family(vendor), device, TWO, environment)
    assert (given.device, given.index, environment) == (device, None, {})


def test_a_killed_process_gives_its_device_back() -> None:
    """Two processes hold both devices; after a SIGKILL the killed one's is free at once."""
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    try:
        held = [int(holder.stdout.readline()) for holder in holders]  # type: ignore[union-attr]
        assert sorted(held) == [0, 1]
        with pytest.raises(DeviceRefused):
            take_first("cambricon", [0, 1])
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait(10)
        index, lock = take_first("cambricon", [0, 1])
        assert index == held[0]
        lock.close()
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def test_another_vendors_machine_is_refused_and_an_unknown_one_believed() -> None:
    ascend = Snapshot(files=frozenset({"/dev/davinci0"}))
    with pytest.raises(DeviceRefused, match="asks for cambricon, but this machine has ascend"):
        check_vendor_here(MLU, ascend)
    check_vendor_here(find_family("ascend"), ascend)
    check_vendor_here(MLU, Snapshot())
    check_vendor_here(MLU, Snapshot(operator="cambricon", files=ascend.files))
    both = Snapshot(files=ascend.files | {"/dev/nvidia0"})
    check_vendor_here(find_family("nvidia"), both)


def test_opening_a_device_refuses_the_machine_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """And lets others have what it took before it knew."""
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceRefused, match="this machine has ascend"):
        open_device("cambricon", "mlu", {"expertmesh.io/vendor": "ascend"})
    index, lock = take_first("cambricon", [7])
    lock.close()
    opened = open_device("cambricon", "mlu", {"expertmesh.io/vendor": "cambricon"})
    assert (opened.device, opened.index) == ("mlu", index)
    opened.release()
