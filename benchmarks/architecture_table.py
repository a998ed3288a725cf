"""The table of docs/models.md: what `benchmarks.architectures` found, one line of it a row, beside
the line of `benchmarks.architecture_rounding` for its kind.

  python -m benchmarks.architecture_table [LINES.jsonl] [--into FILE.md]

Without `--into` the table is printed, otherwise it replaces what FILE has between two markers. Of
several lines for one kind the last counts.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LINES = Path(__file__).with_name("architectures.jsonl")
BEGIN, END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
PROMPTS = 8

COMPARED = (
    "| model type | class in vLLM | format | kernel | in both shards | prompts equal | mean "
    "| median | one rounding |",
    "|---|---|---|---|---|---|---|---|---|",
)
FAILED = ("| model type | fails while | with |", "|---|---|---|")

Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """Sorted by kind and kernel, each with the rounding of its kind."""
    found = [json.loads(text) for text in path.read_text().splitlines() if text]
    rounding = {line["kind"]: line["rounding"] for line in found if "rounding" in line}
    lines = [
        line | {"rounding": rounding.get(line["kind"])} for line in found if "rounding" not in line
    ]
    last = {(line["kind"], line.get("kernel", "")): line for line in lines}
    answered = {line["kind"] for line in lines if "failed" not in line}
    return [
        line for (kind, _), line in sorted(last.items())
        if "failed" not in line or kind not in answered
    ]  # fmt: skip


def table(lines: Iterable[Line]) -> str:
    """Markdown: kinds that were compared, then those that failed and why."""
    lines = list(lines)
    compared = [line for line in lines if "failed" not in line]
    failed = [line for line in lines if "failed" in line]
    kinds = len({line["kind"] for line in compared})
    out = [f"{kinds} architectures were compared:", "", *COMPARED, *map(compared_row, compared)]
    if failed:
        out += ["", f"{len(failed)} were not, on this CPU:", "", *FAILED, *map(failed_row, failed)]
    return "\n".join(out)


def compared_row(line: Line) -> str:
    equal = f"{line['equal']} of {PROMPTS}"
    if line["equal"] < PROMPTS:
        equal += f", top-2 gap {line['worst_gap']:.4f} where they part"
    kernel = line["kernel"].partition(" experts ")[2]
    return (
        f"| {line['kind']} | `{line['architecture']}` | {line['format']} | {kernel} "
        f"| {in_both(line)} | {equal} | {line['mean_delta']:.4f} | {line['median_delta']:.5f} "
        f"| {'not known' if line['rounding'] is None else format(line['rounding'], '.4f')} |"
    )


def in_both(line: Line) -> str:
    """How many of a layer's experts both shards hold; earlier lines are of shards with halves."""
    if "replicated" not in line:
        return "none"
    return f"{line['replicated']} of {line['experts']}"


def failed_row(line: Line) -> str:
    said = line["failed"].replace("|", "\\|").replace("\n", " ")
    return f"| {line['kind']} | {line['during']} | `{said[:200]}` |"


def put_into(document: str, made: str) -> str:
    """`document` with `made` between its markers."""
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"no {BEGIN} and {END} in this document: add both")
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lines", nargs="?", type=Path, default=LINES)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    made = table(read_lines(arguments.lines))
    if arguments.into is None:
        print(made)
    else:
        arguments.into.write_text(put_into(arguments.into.read_text(), made))


if __name__ == "__main__":
    main()
