"""An engine that loads another checkpoint than the mesh's shards is refused, in its own process."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from actors.dispatch.subscription import ADDRESS_VARIABLE
from actors.experts.fingerprint import fingerprint
from tests.orchestrator.building import view
from tests.orchestrator.test_directory import Address, Directory, run

CHECK = (
    "import sys; from actors.vllm_plugin.connection import check_model; check_model(sys.argv[1])"
)
TIMEOUT_S = 120.0


def checkpoint(folder: Path, weights: bytes) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_an_engine_with_another_checkpoint_is_refused(tmp_path: Path) -> None:
    held = checkpoint(tmp_path / "held", b"one")
    copied = checkpoint(tmp_path / "copied", b"one")
    other = checkpoint(tmp_path / "other", b"two")

    async def test(directory: Directory, local: Address, _: Address) -> None:
        await directory.publish(replace(view(1), fingerprint=fingerprint(held)))

        def check(model: Path | str) -> str:
            """The last line of what a process says that loads `model`."""
            done = subprocess.run(
                [sys.executable, "-c", CHECK, str(model)],
                env={**os.environ, ADDRESS_VARIABLE: f"unix:{local.host}"},
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
            return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

        said = await asyncio.gather(
            *(asyncio.to_thread(check, model) for model in (held, copied, "org/name", other))
        )
        assert said[:3] == ["", "", ""]
        assert f"this engine loads another checkpoint, {other}" in said[3]

    run(test, tmp_path)
