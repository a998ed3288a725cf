"""`expertmesh batch`, over fake engines; and what it makes of people's files."""

import io
import json
import sys
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from orchestrator.batch.input_files import Source, open_source
from orchestrator.cli.batch import Rate, progress_line
from orchestrator.cli.main import main
from orchestrator.errors import UserError
from tests.batch.desk import Engine, line, make_settings, open_desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    settings = make_settings(tmp_path_factory.mktemp("batch"))
    with open_desk(settings, {"engine-0": Engine()}) as desk:
        yield desk


@pytest.fixture
def command(desk, capsysbinary):
    """Runs `expertmesh batch ...`; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(["batch", *arguments, "--url", desk.url])
        said = capsysbinary.readouterr()
        return exit_.value.code, said.out.decode(), said.err.decode()

    return run


def test_submit_wait_and_fetch(command, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(line(f"r{n}", f"{n}") for n in range(30)))
    code, out, err = command("submit", str(path), "--wait", "--json", "--priority", "3")
    job = json.loads(out)
    assert (code, job["status"], job["expertmesh"]["priority"]) == (0, "completed", 3)
    assert "30/30" in err
    output = tmp_path / "out.jsonl"
    code, out, _ = command("results", job["id"], "-o", str(output))
    assert (code, len(output.read_text().splitlines())) == (0, 30)
    code, out, _ = command("results", job["id"])
    assert out == output.read_text()
    code, _, err = command("results", job["id"], "--errors")
    assert (code, "no request failed" in err) == (2, True)
    assert [one["id"] for one in json.loads(command("list", "--json")[1])] == [job["id"]]
    assert "30/30" in command("list")[1]
    assert "completed: 30/30" in command("status", job["id"])[1]
    code, _, err = command("cancel", job["id"])
    assert (code, err.count("\n"), "is finished" in err) == (2, 1, True)


def test_errors_of_the_input_are_shown_with_their_lines(command, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(line("a") + "\n{\n")
    code, out, _ = command("submit", str(path), "--wait")
    assert (code, "line 2: this line is not JSON" in out) == (1, True)


def test_what_cannot_be_submitted(command, tmp_path):
    code, _, err = command("submit", str(tmp_path / "none.jsonl"))
    assert (code, "cannot be read: No such file" in err) == (2, True)
    path = tmp_path / "in.jsonl"
    path.write_text(line("a"))
    code, _, err = command("submit", str(path), "--window", "9d")
    assert (code, "between 1h and 7d" in err) == (2, True)
    assert command("status", "batch_none")[0] == 2


def lines_of(source):
    with open_source(source, lambda: "m") as (name, file):
        return name, [json.loads(line) for line in file]


def test_rows_of_a_parquet_file_become_requests(tmp_path):
    path = tmp_path / "prompts.parquet"
    table = pyarrow.table({"id": ["a", "b"], "text": ["eins", "zwei"]})
    parquet.write_table(table, path)
    name, (first, second) = lines_of(
        Source(str(path), template="Say {text}!", body={"max_tokens": 5})
    )
    assert name == "prompts.jsonl"
    assert first == {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "max_tokens": 5,
            "messages": [{"role": "user", "content": "Say eins!"}],
        },
    }
    assert second["custom_id"] == "b"
    with pytest.raises(UserError, match="has rows, no requests"):
        lines_of(Source(str(path)))
    with pytest.raises(UserError, match="row 1 has no column 'prompt'"):
        lines_of(Source(str(path), prompt_column="prompt"))
    with pytest.raises(UserError, match="row 1 has no column"):
        lines_of(Source(str(path), template="{text.__class__}"))


def test_rows_from_stdin_and_from_a_url(monkeypatch):
    import fsspec

    rows = b'{"text": "eins"}\n\n{"text": "zwei"}\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(rows)))
    source = {"prompt_column": "text", "endpoint": "/v1/completions"}
    _, requests = lines_of(Source("-", **source))
    assert [one["custom_id"] for one in requests] == ["row-1", "row-2"]
    assert [one["body"]["prompt"] for one in requests] == ["eins", "zwei"]
    with fsspec.open("memory://rows.jsonl", "wb") as file:
        file.write(rows)
    assert lines_of(Source("memory://rows.jsonl", **source))[1] == requests
    with pytest.raises(UserError, match="cannot be read"):
        lines_of(Source("nosuch://rows.jsonl"))


def test_rate_and_time_left():
    now = iter([0.0, 10.0, 20.0])
    rate = Rate(lambda: next(now))
    assert rate.add(0) == 0
    assert rate.add(50) == 5
    assert rate.add(300) == 15
    job = {
        "status": "in_progress",
        "request_counts": {"total": 1000, "completed": 300, "failed": 10},
        "expertmesh": {"waiting_for": None, "checked_lines": 1000},
    }
    assert progress_line(job, 10) == "in_progress: 310/1000, 10 failed, 10.0/s, 1 min 09 s left"
