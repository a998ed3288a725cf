"""What every benchmark shares: the machine's description, tables, targets and their JSON file."""

import argparse
import json
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Target:
    """value against goal; direction: "max" where the value must not pass the goal, else "min".

    timed: the value depends on how fast the machine is, and on what else runs there.
    reached: where the goal is known to be missed, what is reached without fail; the benchmark fails
    where the value is worse.
    """

    name: str
    value: float
    goal: float
    direction: str
    unit: str
    timed: bool = False
    reached: float | None = None

    @property
    def met(self) -> bool:
        return self._within(self.goal)

    @property
    def fails(self) -> bool:
        return not self._within(self.goal if self.reached is None else self.reached)

    @property
    def verdict(self) -> str:
        if self.met:
            return "yes"
        return "NO" if self.fails else f"NO, known: {self.reached:g}"

    def _within(self, limit: float) -> bool:
        return self.value <= limit if self.direction == "max" else self.value >= limit


@dataclass(frozen=True, slots=True)
class Report:
    """runs: one flat dict per measured case; notes: how it was measured, for people."""

    benchmark: str
    runs: list[dict[str, Any]]
    targets: list[Target]
    notes: Sequence[str] = ()


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return {
        "cpu": name,
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "load_average": round(psutil.getloadavg()[0], 1),
    }


def run_benchmark(
    description: str,
    measure: Callable[[argparse.Namespace], Report],
    options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """Main function of a benchmark: options that all share besides its own.

    Exits with 1 if a target is missed.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few cases, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write runs and targets here")
    parser.add_argument(
        "--realtime", action="store_true", help="measure at real-time priority (root only)"
    )
    parser.add_argument(
        "--no-fail", action="store_true", help="exit with 0 though targets are missed"
    )
    parser.add_argument(
        "--untimed", action="store_true", help="fail for targets that any machine should meet only"
    )
    options(parser)
    arguments = parser.parse_args()
    # Asked to end, as by `timeout`: what was started is ended first.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    where = machine()
    report = measure(arguments)
    print_report(report, where)
    if arguments.json:
        data = {
            "schema": SCHEMA,
            "benchmark": report.benchmark,
            "machine": where,
            "quick": arguments.quick,
            "realtime": arguments.realtime,
            "notes": list(report.notes),
            "runs": report.runs,
            "targets": [asdict(target) | {"met": target.met} for target in report.targets],
        }
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    missed = missed_targets(report.targets, arguments.untimed)
    for target in missed:
        print(f"missed: {target.name}", file=sys.stderr)
    if missed and not arguments.no_fail:
        sys.exit(1)


def missed_targets(targets: Sequence[Target], untimed_only: bool) -> list[Target]:
    """Those that make a benchmark fail. A value that is no number meets no goal."""
    return [target for target in targets if target.fails and not (untimed_only and target.timed)]


def print_report(report: Report, where: dict[str, Any]) -> None:
    print(f"\n{report.benchmark} on {where['cores']} cores of {where['cpu']}, "
          f"Linux {where['kernel']}, load average {where['load_average']}")  # fmt: skip
    for note in report.notes:
        print(f"  {note}")
    print_table(report.runs)
    print_table([
        {"target": t.name, "value": f"{t.value:.4g} {t.unit}",
         "goal": f"{'<=' if t.direction == 'max' else '>='} {t.goal:g} {t.unit}",
         "met": t.verdict}
        for t in report.targets
    ])  # fmt: skip


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Aligned columns; one table for each run of rows with the same keys."""
    while rows:
        keys = list(rows[0])
        same = next((i for i, row in enumerate(rows) if list(row) != keys), len(rows))
        cells = [keys] + [[_text(row[key]) for key in keys] for row in rows[:same]]
        widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
        print()
        for line in cells:
            print("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)))
        rows = rows[same:]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
