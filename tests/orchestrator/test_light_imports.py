"""Processes that compute nothing do without torch: it is a second of their start and 150 MB."""

import subprocess
import sys

import pytest

PROGRAM = "import {module}, sys; sys.exit('torch' in sys.modules)"


@pytest.mark.parametrize(
    "module",
    ["orchestrator.controller", "orchestrator.gateway.deploy", "orchestrator.batch.runner_process"],
)
def test_torch_is_not_imported(module: str) -> None:
    program = PROGRAM.format(module=module)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
