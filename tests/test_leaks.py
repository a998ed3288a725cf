"""A run that leaves something behind fails and says what; run as a pytest of its own."""

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leaks import in_use

ROOT = Path(__file__).parents[1]
LEAVES_A_FILE = "import tempfile; open(tempfile.mkdtemp() + '/left', 'w').close()"
LEAVES_A_PROCESS = """
import subprocess, sys
subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(600)'],
    start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
"""
LEAVES_A_SEGMENT = """
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
shared_memory.SharedMemory(create=True, size=64).close()
"""


def run_test(folder: Path, body: str, *options: str) -> str:
    """What pytest prints of one test with this body and the suite's conftest."""
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    (folder / "test_it.py").write_text(f"def test_it():\n{lines}")
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        [*command, f"--rootdir={folder}", "-o", f"pythonpath={ROOT}", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        check=False,
    )
    return f"{done.stdout}{done.stderr}\nexit code {done.returncode}"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        pytest.param(LEAVES_A_FILE, "/tmp", id="file"),
        pytest.param(LEAVES_A_PROCESS, "time.sleep(600)", id="process"),
        pytest.param(LEAVES_A_SEGMENT, "/dev/shm/psm_", id="segment"),
    ],
)
def test_what_is_left_fails_the_run_and_is_named_with_its_test(
    tmp_path: Path, body: str, told: str
) -> None:
    said = run_test(tmp_path, body)
    where = ("first seen after test_it.py::test_it", "started by test_it.py::test_it (call)")
    assert any(told in line and line.endswith(where) for line in said.splitlines()), said
    assert "1 passed, 1 error" in said
    assert said.endswith("exit code 1")


def test_a_run_that_cleans_up_passes(tmp_path: Path) -> None:
    said = run_test(tmp_path, "import tempfile; tempfile.TemporaryDirectory().cleanup()")
    assert said.endswith("exit code 0")


def test_a_semaphore_that_somebody_uses_is_no_leak() -> None:
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    path = f"/dev/shm/sem.{semaphore._semlock.name.lstrip('/')}"  # type: ignore[attr-defined]
    assert Path(path).exists()
    assert in_use({path}) == {path}


ASKED_TO_END = """
import os, signal, tempfile, time
tempfile.mkdtemp()
print('folder', os.environ['TMPDIR'], flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""


def test_a_run_that_is_asked_to_end_removes_its_folder(tmp_path: Path) -> None:
    said = run_test(tmp_path, ASKED_TO_END, "-s")
    folder = next(line.split()[-1] for line in said.splitlines() if "folder " in line)
    assert not Path(folder).exists()
    assert said.endswith(f"exit code {128 + signal.SIGTERM}")


SAMPLES = """
import random, numpy
print(random.random(), numpy.random.rand())
assert False
"""


def sampled(folder: Path, *options: str) -> str:
    said = run_test(folder, SAMPLES, *options)
    return next(line for line in said.splitlines() if line.startswith("0."))


def test_one_seed_decides_what_is_sampled(tmp_path: Path) -> None:
    fixed = sampled(tmp_path)
    assert sampled(tmp_path) == fixed
    other = sampled(tmp_path, "--seed", "5")
    assert other != fixed
    assert sampled(tmp_path, "--seed", "5") == other
    assert "sampled with --seed 5" in run_test(tmp_path, SAMPLES, "--seed", "5")
