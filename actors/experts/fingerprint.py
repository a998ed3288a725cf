"""Tell two checkpoints apart without reading them whole.

The mesh holds the routed experts and an engine the rest of a model; both must come from the same
checkpoint, also when two fine-tunes have the same shapes. The fingerprint covers `config.json` and,
of every safetensors file, its size and both of its ends: the head holds names, shapes and offsets,
the tail holds weights, which no two trainings leave equal.
"""

import hashlib
from pathlib import Path

END_BYTES = 64 << 10


def fingerprint(model_path: Path) -> str:
    """Hex digest of the checkpoint in `model_path`; equal for copies, whatever their path.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256((model_path / "config.json").read_bytes())
    for file in sorted(model_path.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as content:
            digest.update(content.read(END_BYTES))
            content.seek(max(0, size - END_BYTES))
            digest.update(content.read(END_BYTES))
    return digest.hexdigest()[:32]
