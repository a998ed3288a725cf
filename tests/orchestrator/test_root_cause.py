"""One line for what failed, from exceptions and logs as vLLM, pydantic and Ray write them."""

import json
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.experts.refusal import ModelRefused
from orchestrator.errors import UserError
from orchestrator.root_cause import cause_in_log, cause_of, last_error

CORE_LOG = """\
(EngineCore pid=9) ERROR 11-22 12:15:09 [core.py:1510]     raise ValueError(
(EngineCore pid=9) ERROR 11-22 12:15:09 [core.py:1510] ValueError: not enough memory.
Process EngineCore:
Traceback (most recent call last):
  File "core.py", line 1514, in run_engine_core
    raise e
ValueError: not enough memory.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
2026-11-22 12:14:34,920 INFO actors.engine: nothing more
"""

PYDANTIC = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig
  Value error, max_num_batched_tokens (8) must be at least max_num_seqs (16). [type=value_error]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""


def task_error(cause: BaseException, traceback: str = "") -> RayTaskError:
    return RayTaskError("start", traceback, cause)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (task_error(UserError("no room", "add shards")), "no room: add shards"),
        (task_error(ModelRefused("no experts")), "no experts"),
        (task_error(KeyError("x")), "KeyError: 'x'"),
        (task_error(ValueError("first line\nsecond line")), "first line"),
        (task_error(RuntimeError("")), "RuntimeError"),
        (ActorDiedError(), "its process died: killed from outside, out of memory, or crashed"),
    ],
)
def test_exceptions(error: BaseException, line: str) -> None:
    assert cause_of(error) == line


def test_an_exception_that_could_not_be_sent_is_read_from_its_traceback() -> None:
    from ray.exceptions import RayError

    lost = task_error(RayError("Exception ValidationError isn't serializable"), PYDANTIC)
    assert cause_of(lost) == (
        "SchedulerConfig: max_num_batched_tokens (8) must be at least max_num_seqs (16)"
    )


def test_a_failed_constructor_is_told_by_its_own_error() -> None:
    died = ActorDiedError(task_error(ValueError("bad"), "Traceback\nValueError: bad device"))
    assert cause_of(died) == "bad device"


def test_a_log_gives_its_last_error_that_is_no_pointer(tmp_path: Path) -> None:
    (tmp_path / "worker-abc-01000000-77.err").write_text(CORE_LOG)
    (tmp_path / "worker-abc-01000000-177.err").write_text("ValueError: another's\n")
    assert cause_in_log(tmp_path, 77) == "not enough memory"
    assert cause_in_log(tmp_path, 78) == ""
    assert cause_in_log(tmp_path / "nowhere", 77) == ""


def test_an_old_error_is_not_the_cause_of_a_death(tmp_path: Path) -> None:
    log = tmp_path / "worker-a-1-6.err"
    log.write_text("ValueError: old\n" + "INFO: fine\n" * 5)
    assert cause_in_log(tmp_path, 6, last_lines=3) == ""
    log.write_text("INFO: fine\n" * 5 + "OSError: the link failed\n\n")
    assert cause_in_log(tmp_path, 6, last_lines=3) == "the link failed"


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    long = "ValueError: long ago\n" + "x\n" * (1 << 18)
    (tmp_path / "worker-a-1-5.err").write_text(long)
    assert cause_in_log(tmp_path, 5) == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        ("all is well\nINFO: ready", ""),
        ("torch.OutOfMemoryError: 3 GiB", "torch.OutOfMemoryError: 3 GiB"),
        ("2026 INFO vllm: ValueError: only mentioned", ""),
        (PYDANTIC.replace("  Value error, max", "max_num_seqs\n  Input max"), None),
    ],
)
def test_error_lines(text: str, found: str | None) -> None:
    if found is None:
        assert last_error(text).startswith("SchedulerConfig: max_num_seqs Input max_num_batched")
    else:
        assert last_error(text) == found


def test_errors_in_a_json_log_are_found() -> None:
    entry = {"level": "error", "message": "failed", "exception": "Traceback ...\nOSError: no disk"}
    assert (
        last_error(f"plain\n{json.dumps(entry)}\n{json.dumps({'message': 'later'})}") == "no disk"
    )
    assert last_error('{"cut off') == ""
