"""The table of metrics in `docs/observability.md`, made from the one table.

`python -m orchestrator.telemetry.reference docs/observability.md` writes it below the marker line;
a test compares.
"""

import sys
from pathlib import Path

from orchestrator.telemetry.table import METRICS, Metric

MARKER = "<!-- made from orchestrator/telemetry/table.py: do not edit below -->"


def metric_table() -> str:
    """Markdown, one row a metric."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|", *map(_row, METRICS)]
    return "\n".join(lines) + "\n"


def with_table(document: str) -> str:
    """The document with everything below the marker made anew."""
    head, _, _ = document.partition(MARKER)
    return f"{head.rstrip()}\n\n{MARKER}\n\n{metric_table()}"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text()))
