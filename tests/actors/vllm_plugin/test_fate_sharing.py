"""A child that shares its parent's fate does not outlive a parent killed with SIGKILL."""

import subprocess
import sys
import textwrap

import psutil
import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG exists on Linux only"
)

CHILD = (
    "from actors.vllm_plugin.fate_sharing import share_fate; "
    "share_fate(); print('up', flush=True); "
)
PARENT = """
    import os, subprocess, sys, time
    {environment}
    child = subprocess.Popen([sys.executable, "-c", {code!r}], stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid, flush=True)
    time.sleep(60)
"""
SET_PARENT = "os.environ['EXPERTMESH_ENGINE_PARENT'] = str(os.getpid())"
WAIT = "import time; time.sleep(60)"
EXIT_TIMEOUT_S = 5.0


def start_family(environment: str, child: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    code = textwrap.dedent(PARENT.format(environment=environment, code=child))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, psutil.Process(int(parent.stdout.readline()))


def kill(parent: subprocess.Popen[str]) -> None:
    parent.kill()
    parent.wait()
    parent.stdout.close()


def is_gone(process: psutil.Process, timeout_s: float) -> bool:
    gone, _ = psutil.wait_procs([process], timeout=timeout_s)
    return bool(gone)


def test_child_dies_with_its_killed_parent():
    parent, child = start_family(SET_PARENT, CHILD + WAIT)
    kill(parent)
    assert is_gone(child, EXIT_TIMEOUT_S)


def test_child_lives_on_where_no_engine_asked():
    parent, child = start_family("", CHILD + WAIT)
    kill(parent)
    assert not is_gone(child, 0.5)
    child.kill()


def test_child_whose_engine_is_gone_already_does_not_start():
    environment = "os.environ['EXPERTMESH_ENGINE_PARENT'] = '4194305'"  # above the largest pid
    code = f"import os; {environment}; {CHILD}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == -9
    assert run.stdout == b""


def test_the_engine_itself_is_not_bound():
    code = f"import os; {SET_PARENT}; {CHILD}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (run.returncode, run.stdout) == (0, b"up\n")
