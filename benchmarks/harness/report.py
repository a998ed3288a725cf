"""What every benchmark prints and writes: the machine, a table, and targets met or not."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Target:
    """A claim: `value` should be at least (">=") or at most ("<=") `goal`, in `unit`."""

    name: str
    value: float
    goal: float
    direction: Literal[">=", "<="]
    unit: str

    @property
    def met(self) -> bool:
        return self.value >= self.goal if self.direction == ">=" else self.value <= self.goal


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments all benchmarks take: `--json FILE` and `--quick`."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write runs and targets")
    arguments.add_argument("--quick", action="store_true", help="a smaller run, under a minute")
    return arguments


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import psutil

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=max(Console().width, 110)).print(table)


def finish(
    options: argparse.Namespace, runs: Sequence[dict[str, Any]], targets: Sequence[Target]
) -> None:
    """Show the targets, and write everything to `--json`."""
    show_table(
        "Targets",
        ("target", "value", "goal", "met"),
        [
            (
                t.name,
                f"{t.value:.4g} {t.unit}",
                f"{t.direction} {t.goal:g}",
                "yes" if t.met else "NO",
            )
            for t in targets
        ],
    )
    if options.json:
        content = {
            "machine": machine(),
            "runs": list(runs),
            "targets": [asdict(target) | {"met": target.met} for target in targets],
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
