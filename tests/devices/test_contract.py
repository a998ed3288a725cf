"""Every backend that can be had passes the contract: the CPU, the stand-in, a GPU where one is.

`python -m tests.devices.contract DEVICE` runs the same on a vendor's device.
"""

import json
import subprocess
import sys
from functools import cache

import pytest
import torch

from tests.devices.contract import CHECKS

BACKENDS = ["cpu", "standin"] + (["cuda"] if torch.cuda.is_available() else [])
CHILD = """
import json, sys
from tests.devices.contract import run_checks
print(json.dumps(run_checks(sys.argv[1])))
"""


@cache
def said_of(backend: str) -> dict[str, str]:
    """In a process of its own: a stand-in is registered for good."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, backend],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("check", CHECKS)
def test_backend_keeps_the_contract(backend: str, check: str) -> None:
    assert said_of(backend)[check] == ""


def test_the_contract_notices_a_backend_that_is_not_there() -> None:
    """A check that could not fail would be no check."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.contract", "hpu", "one_row"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "FAILED one_row_and_many" in done.stdout
