"""Costs of calls that are kept, tried, and measured again."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from actors.experts.formats.table import FORMATS
from actors.kernels.calibration import Probe
from actors.kernels.choose import choose_operator
from actors.kernels.cost_cache import (
    calibrate,
    drift_of,
    key_of,
    read_cost,
    write_cost,
)
from placement.cost_model import DeviceCost
from tests.actors.kernels.building import make_spec

CPU = torch.device("cpu")
COST = DeviceCost(call_s=1e-4, read_s=2e-5, row_s=3e-6)
KEY = {"device": "chip", "driver": "1.0"}


def test_a_cost_is_kept_under_everything_it_depends_on(tmp_path: Path) -> None:
    assert read_cost(tmp_path / "new", KEY) is None
    write_cost(tmp_path / "new", KEY, COST)
    assert read_cost(tmp_path / "new", KEY) == COST
    assert read_cost(tmp_path / "new", KEY | {"driver": "1.1"}) is None
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept | {"schema": 0},
        lambda kept: kept | {"key": {}},
        lambda kept: kept | {"cost": {"call_s": 1.0}},
        lambda kept: kept | {"cost": kept["cost"] | {"row_s": 0.0}},
        lambda kept: kept | {"cost": kept["cost"] | {"read_s": float("nan")}},
        lambda kept: kept | {"cost": kept["cost"] | {"call_s": "soon"}},
        lambda kept: [kept],
    ],
)
def test_a_file_that_is_no_cost_is_measured_anew(tmp_path: Path, change) -> None:
    write_cost(tmp_path, KEY, COST)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert read_cost(tmp_path, KEY) is None


def test_a_folder_that_cannot_be_written_to_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_cost(tmp_path / "file", KEY, COST)
    assert read_cost(tmp_path / "file", KEY) is None


def test_the_key_names_device_driver_kernel_and_shapes() -> None:
    spec = make_spec(FORMATS[0], hidden=128, inter=64)
    key = key_of(spec, choose_operator(spec, CPU), "driver 7")
    assert key["driver"] == "driver 7"
    assert key["torch"] == torch.__version__
    assert key["device"] != key["kernel"]
    other = dataclasses.replace(spec, hidden_size=256)
    assert key_of(other, choose_operator(other, CPU), "driver 7") != key


class SlowedKernel:
    """Takes what `COST` says on its own clock; calls of several experts `factor` times that."""

    def __init__(self, factor: float) -> None:
        self.now_s = 0.0
        self._factor = factor

    def clock_s(self) -> float:
        return self.now_s

    def compute(self, _layer, rows, row_index, experts, _weights) -> None:
        used = experts.unique().numel()
        self.now_s += COST.seconds(used, len(row_index)) * (self._factor if used > 1 else 1.0)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_drift_is_how_much_longer_calls_take(factor: float) -> None:
    kernel = SlowedKernel(factor)
    probe = Probe(kernel, 8, (0,), [0, 1, 2, 3])  # type: ignore[arg-type]
    assert drift_of(probe, COST, kernel.clock_s) == pytest.approx(factor)


def test_a_second_start_measures_only_what_has_drifted(tmp_path: Path) -> None:
    """On this CPU, with a real kernel: kept if true; a cost that is 100 times off never is."""
    spec = make_spec(FORMATS[0], hidden=512, inter=256)
    first = calibrate(spec, CPU, "", tmp_path)
    assert not first.kept
    assert first.drift is None
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    kept["cost"] = {name: 100 * value for name, value in kept["cost"].items()}
    file.write_text(json.dumps(kept))
    again = calibrate(spec, CPU, "", tmp_path)
    assert not again.kept
    assert again.drift is not None
    assert again.drift < 0.5
    assert json.loads(file.read_text())["cost"]["row_s"] == again.cost.row_s
    assert read_cost(tmp_path, kept["key"]) == again.cost
