"""What processes wrote, found in the files that Ray keeps of them."""

import json
from pathlib import Path

from orchestrator.telemetry.log_files import read_logs
from orchestrator.telemetry.log_lines import Source, concerns, merged, records

HEAD = ":job_id:01000000\n:actor_name:ExpertShard\n"
SOURCE = Source("head", 7, "", 1_795_694_178.0)


def parsed(text, source=SOURCE):
    return list(records(text, source))


def test_lines_of_all_forms_become_records():
    line = json.dumps(
        {
            "time": "2026-11-26T11:56:33.182+00:00", "level": "info", "component": "controller",
            "logger": "orchestrator.control.runner", "message": "placed", "transaction": 3,
        }
    )  # fmt: skip
    ours = "2026-11-26 11:56:17,265 WARNING cpu-0 actors.shard.server: late"
    vllms = "(EngineCore pid=9142) WARNING 11-26 11:56:38 [vllm.py:725] Model Runner V2"
    first, second, third = parsed(f"{line}\n{ours}\n{vllms}\n")
    assert (first.component, first.message, first.more) == (
        "controller", "placed", {"transaction": 3},
    )  # fmt: skip
    assert first.to_json()["transaction"] == 3
    assert (second.level, second.component, second.message) == ("warning", "cpu-0", "late")
    assert round(second.time_s % 1, 3) == 0.265
    # vLLM does not say which component it is part of: the one whose file this is.
    assert (third.component, third.logger) == ("cpu-0", "vllm.vllm.py")
    assert 20 < third.time_s - second.time_s < 21


def test_a_traceback_belongs_to_the_line_before_it():
    ours = "2026-11-26 11:56:17,265 ERROR   cpu-0 actors.shard.server: it failed"
    text = f"{HEAD}{ours}\nTraceback (most recent call last):\n  File x\n{ours}\n"
    first, second = parsed(text)
    assert first.message.splitlines() == [
        "it failed", "Traceback (most recent call last):", "  File x",
    ]  # fmt: skip
    assert second.message == "it failed"


def test_what_nobody_wrote_a_time_to_is_shown_all_the_same():
    (record,) = parsed("terminate called after throwing\n", Source("head", 7, "cpu-0", 12.0))
    assert (record.component, record.time_s) == ("cpu-0", 12.0)
    assert parsed('{"time": 5}\nno object: {"a"\n[1]\n')[0].message.startswith('{"time"')


def test_a_component_is_named_or_begun():
    (record,) = parsed("2026-11-26 11:56:17,265 INFO    cpu-10 a.b: x\n")
    assert [concerns(record, asked) for asked in ("", "cpu", "cpu-10", "cpu-1", "engine")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def line(second: int, text: str, component: str = "cpu-0") -> str:
    return f"2026-11-26 11:56:{second:02d},000 INFO    {component} a.b: {text}\n"


def worker(folder: Path, pid: int, job: str = "01000000") -> Path:
    path = folder / f"worker-{pid:056x}-ffffffff-{pid}.err"
    path.write_text(f":job_id:{job}\n:actor_name:ExpertShard\n" if job else "")
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def messages(read):
    return [record.message for record in merged(read.records, 100)]


def test_reading_goes_on_where_it_ended(tmp_path):
    one, other = worker(tmp_path, 1), worker(tmp_path, 2)
    append(one, line(5, "second"))
    append(other, line(3, "first", "cpu-1"))
    read = read_logs(tmp_path, "head", {})
    assert messages(read) == ["first", "second"]
    append(one, line(7, "third") + "2026-11-26 11:56:08,000 INFO    cpu-0 a.b: half a")
    read = read_logs(tmp_path, "head", read.offsets)
    assert messages(read) == ["third"]
    append(one, " line\n")
    read = read_logs(tmp_path, "head", read.offsets)
    assert messages(read) == ["half a line"]
    assert read_logs(tmp_path, "head", read.offsets).records == []


def test_other_meshes_of_the_cluster_are_left_out(tmp_path):
    append(worker(tmp_path, 1), line(1, "ours"))
    append(worker(tmp_path, 2, "02000000"), line(2, "theirs"))
    idle = worker(tmp_path, 3, "")
    (tmp_path / "raylet.err").write_text(line(3, "no worker"))
    read = read_logs(tmp_path, "head", {}, "01000000")
    assert messages(read) == ["ours"]
    # A worker that was started ahead gets its job later.
    append(idle, HEAD + line(9, "joined"))
    assert messages(read_logs(tmp_path, "head", read.offsets, "01000000")) == ["joined"]


def test_a_file_that_became_shorter_is_read_anew(tmp_path):
    path = worker(tmp_path, 1)
    append(path, line(1, "long before") * 20)
    read = read_logs(tmp_path, "head", {})
    path.write_text(HEAD + line(2, "anew"))
    assert messages(read_logs(tmp_path, "head", read.offsets)) == ["anew"]


def test_of_a_large_file_the_end_is_read(tmp_path):
    path = worker(tmp_path, 1)
    append(path, line(1, "x" * 100) * 10_000 + line(2, "the last"))
    found = read_logs(tmp_path, "head", {}).records
    assert found[-1].message == "the last"
    assert 1000 < len(found) < 3000
    assert all(record.component == "cpu-0" for record in found)
