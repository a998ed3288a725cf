"""A missed target makes a benchmark fail."""

import math

import pytest

from benchmarks.harness.report import Report, Target, run_benchmark

MET = Target("met", 1.0, 1.0, "max", "x")
MISSED = Target("missed", 2.0, 1.0, "max", "x")
SLOW = Target("slow", 2.0, 1.0, "max", "us", timed=True)
KNOWN = Target("known", 2.0, 1.0, "max", "x", reached=2.5)
WORSE = Target("worse", 2.6, 1.0, "max", "x", reached=2.5)
NOT_MEASURED = Target("not measured", math.nan, 1.0, "min", "x")


def exit_code(
    monkeypatch: pytest.MonkeyPatch, targets: list[Target], *options: str
) -> str | int | None:
    monkeypatch.setattr("sys.argv", ["benchmark", *options])
    try:
        run_benchmark("a benchmark", lambda _: Report("test", [], targets))
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    ("targets", "options", "code"),
    [
        ([MET], (), 0),
        ([MET, MISSED], (), 1),
        ([MISSED], ("--no-fail",), 0),
        ([SLOW], (), 1),
        ([SLOW], ("--untimed",), 0),
        ([SLOW, MISSED], ("--untimed",), 1),
        ([NOT_MEASURED], (), 1),
        ([KNOWN], (), 0),
        ([WORSE], (), 1),
    ],
)
def test_missed_targets_fail(monkeypatch, capsys, targets, options, code) -> None:
    assert exit_code(monkeypatch, targets, *options) == code
    assert [target.verdict for target in (MET, MISSED, KNOWN)] == ["yes", "NO", "NO, known: 2.5"]
    if code:
        assert "missed: " in capsys.readouterr().err
