"""Progress on a terminal and in a log."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cli.progress import ConsoleProgress, next_steps, own_command
from orchestrator.gateway.config import endpoint_url


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run_steps(progress: ConsoleProgress, clock: Clock) -> None:
    with progress:
        progress.step("Load [a]")
        for second in range(1, 12):
            clock.now_s = second
            progress.update(f"{second} of 12")
        clock.now_s = 12.0
        progress.done("4 shards [b]")
        progress.step("Start")
        progress.warn("slow [c]")
        clock.now_s = 13.5
        progress.next_steps = lambda url: [f"  curl [{url[-1]}]"]
        progress.ready("http://x")


def test_log_lines_are_few_and_timestamped() -> None:
    out, clock = io.StringIO(), Clock()
    run_steps(ConsoleProgress(Console(file=out, width=40), clock), clock)
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "T ", line) for line in out.getvalue().splitlines()]
    assert lines == [
        "T Load [a] ...",
        "T Load [a]: 5 of 12",
        "T Load [a]: 10 of 12",
        "T Load [a]: 4 shards [b] (12.0 s)",
        "T Start ...",
        "T warning: slow [c]",
        "T Start: done (1.5 s)",
        "T ready at http://x",
        "  curl [x]",
    ]


def test_terminal_shows_finished_steps_and_the_last_word() -> None:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=60, force_terminal=True, color_system=None)
    run_steps(ConsoleProgress(console, clock), clock)
    shown = out.getvalue()
    assert "✓ Load [a] 4 shards [b] (12.0 s)\n" in shown
    assert "warning: slow [c]\n" in shown
    assert "✓ Start  (1.5 s)\n" in shown
    assert "  curl [x]\n" in shown
    assert shown.rstrip().endswith("─")


def test_leaving_early_gives_the_terminal_back() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=True)

    def fail() -> None:
        with ConsoleProgress(console) as progress:
            progress.step("Load")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_a_step_that_failed_is_not_called_done(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=60, force_terminal=terminal, color_system=None)
    with ConsoleProgress(console) as progress:
        progress.step("Load")
        progress.give_up()
        progress.step("Stop")
        progress.done()
    said = [line for line in out.getvalue().splitlines() if "Load" in line]
    assert "failed" in said[-1]
    assert not any("done" in line or "✓ Load" in line for line in said)


def test_calls_outside_a_step_do_nothing() -> None:
    out = io.StringIO()
    with ConsoleProgress(Console(file=out)) as progress:
        progress.update("x")
        progress.done("y")
        progress.give_up()
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("box", "http://box:8000"),
    ],
)
def test_endpoint_url(host: str, url: str) -> None:
    assert endpoint_url(host, 8000) == url
    assert endpoint_url(host, 8000, "/a/b") == f"{url}/a/b"


@pytest.mark.parametrize("needs_key", [False, True])
def test_next_steps_hold_a_curl_that_can_be_pasted(needs_key: bool) -> None:
    lines = next_steps("http://x:1", "it's a model", needs_key)
    curl = lines.index(next(line for line in lines if "curl" in line))
    words = shlex.split(lines[curl].rstrip("\\") + lines[curl + 1])
    assert words[:2] == ["curl", "http://x:1/v1/completions"]
    assert json.loads(words[-1])["model"] == "it's a model"
    assert any("Bearer" in word for word in words) is needs_key
    assert any("expertmesh status --url http://x:1" in line for line in lines)


def test_own_command_can_be_called_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "expertmesh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(script), "serve"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert own_command() == "expertmesh"
    monkeypatch.setenv("PATH", "")
    assert own_command() == str(script)
    monkeypatch.setattr("sys.argv", ["/x/cli/__main__.py"])
    assert own_command() == "expertmesh"
