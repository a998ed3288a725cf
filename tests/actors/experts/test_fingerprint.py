"""Copies of a checkpoint are the same, a fine-tune of the same shape is not."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from actors.experts.fingerprint import END_BYTES, fingerprint


def checkpoint(path: Path, last: float) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    weights = torch.zeros(END_BYTES, dtype=torch.float32)
    weights[-1] = last
    save_file({"w": weights}, path / "model.safetensors")
    return path


def test_copies_are_equal_and_fine_tunes_are_not(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", 1.0)
    shutil.copytree(base, tmp_path / "copy")
    tuned = checkpoint(tmp_path / "tuned", 2.0)
    assert fingerprint(base) == fingerprint(tmp_path / "copy")
    assert fingerprint(base) != fingerprint(tuned)


def test_config_counts(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", 1.0)
    before = fingerprint(base)
    (base / "config.json").write_text('{"rope_theta": 1}')
    assert fingerprint(base) != before
