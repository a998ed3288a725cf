"""What shards counted that have ended, kept for the next controller: those that live tell it anew.

One `.npz` file beside the journal: an int64 [L, E] array for each shard id, written to a temporary
file and renamed. It is written when a shard's process has ended, so serving and looking cost
nothing. One that is missing, damaged or of another model says nothing.
"""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Counts = NDArray[np.int64]
"""[L, E] assignments."""


def load_file(folder: Path, mesh: str) -> Path:
    return folder / f"{mesh}.load.npz"


def read_ended(path: Path, shape: tuple[int, int]) -> dict[str, Counts]:
    """By shard id; nothing where the file does not fit."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {id: file[id] for id in file.files}
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        log.warning("%s is not read, what ended shards counted is forgotten: %s", path, error)
        return {}
    if any(counts.shape != shape or counts.dtype != np.int64 for counts in found.values()):
        log.warning("%s is of another model, what ended shards counted is forgotten", path)
        return {}
    return found


def write_ended(path: Path, ended: Mapping[str, Counts]) -> None:
    """Replace the file. A disk that does not take it costs these counts only."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        with fresh.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **ended)
        fresh.replace(path)
    except OSError as error:
        log.warning("what ended shards counted is not kept: %s", error)
        fresh.unlink(missing_ok=True)
