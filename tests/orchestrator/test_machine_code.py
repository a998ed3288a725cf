"""What is compiled at set-up is what serving calls."""

import os
import subprocess
import sys
from pathlib import Path


def run(folder: Path) -> set[str]:
    """Machine code in `folder` after compiling ahead."""
    subprocess.run(
        [sys.executable, "-m", "orchestrator.machine_code"],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)},
        check=True,
        capture_output=True,
    )
    return {str(file.relative_to(folder)) for file in folder.rglob("*.nbc")}


def test_a_second_run_compiles_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    for module in ("split", "share", "merging", "summing", "carry_over", "failure_domains"):
        assert any(f"{module}." in name for name in first), (module, first)
    assert run(tmp_path) == first
