"""Failed steps counted in one process are seen in another of the same engine."""

import os
import subprocess
import sys

import pytest

from actors.vllm_plugin import step_marks

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="anonymous files exist on Linux only"
)

WORKER = """
from actors.vllm_plugin.step_marks import open_marks
marks = open_marks()
marks.count_failure(1)
marks.count_failure(1)
marks.count_failure(3)
print(marks.watched)
"""


def test_a_workers_failures_reach_the_scheduler(monkeypatch):
    monkeypatch.setenv(step_marks.MARKS_VARIABLE, "")
    monkeypatch.delenv(step_marks.MARKS_VARIABLE)
    step_marks.create_marks()
    marks = step_marks.open_marks()
    assert marks is not None
    assert (marks.failures(), marks.watched) == (0, False)
    marks.watch()
    worker = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, check=False
    )
    assert worker.stdout.strip() == "True", worker.stderr
    assert marks.failures() == 3


def test_an_inherited_file_is_kept(monkeypatch):
    monkeypatch.setenv(step_marks.MARKS_VARIABLE, "/proc/1/fd/1")
    step_marks.create_marks()
    assert os.environ[step_marks.MARKS_VARIABLE] == "/proc/1/fd/1"


def test_without_a_file_there_are_no_marks(monkeypatch):
    monkeypatch.delenv(step_marks.MARKS_VARIABLE, raising=False)
    assert step_marks.open_marks() is None
