"""`expertmesh devices`, and vendors in a config."""

import json

import pytest

from actors.devices.catalogue import vendors
from orchestrator.cli.devices import devices
from orchestrator.config.pools import PoolConfig
from orchestrator.errors import UserError


def test_devices_lists_every_family_and_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices(None, as_json=True) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["families"]) == set(vendors())
    assert said["here"]["vendor"] in vendors()
    assert said["families"]["ascend"]["chips"]["950pr"]["bf16"] is None
    assert devices(None, as_json=False) == 0
    shown = capsys.readouterr().out
    assert all(vendor in shown for vendor in vendors())
    assert "this machine: " in shown


def test_devices_of_one_vendor_shows_its_chips_claims(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices("cambricon", as_json=False) == 0
    shown = capsys.readouterr().out
    assert "64-192 GB" in shown
    assert "MLU690" in shown
    assert "claims of others" in shown


def test_devices_can_be_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices("cpu", as_json=True, measure=True) == 0
    measured = json.loads(capsys.readouterr().out)["here"]["measured"]
    assert measured["stream_bytes_per_s"] > 0
    assert measured["free_bytes"] > 0
    assert measured["doubtful"] == []
    assert devices("cpu", as_json=False, measure=True) == 0
    assert "TFLOPS in bf16" in capsys.readouterr().out


def test_devices_of_nobody_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean cambricon"):
        devices("cambrican", as_json=False)


def test_a_pool_of_an_unknown_vendor_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown vendor 'nvida': did you mean nvidia"):
        PoolConfig(vendor="nvida", device="cuda")


def test_a_pool_on_another_vendors_torch_device_is_told_its_own() -> None:
    with pytest.raises(ValueError, match="torch calls ascend's devices npu: set device: npu"):
        PoolConfig(vendor="ascend", device="cuda")
    with pytest.raises(ValueError, match="set emulated: true, or device: mlu"):
        PoolConfig(vendor="cambricon")
    assert PoolConfig(vendor="ascend", device="npu:1").device == "npu:1"
