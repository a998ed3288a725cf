"""The table of architectures in docs/models.md is what the benchmark's lines say."""

import json
from pathlib import Path

import pytest

from benchmarks.architecture_table import BEGIN, END, LINES, put_into, read_lines, table

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
COMPARED = {
    "kind": "olmoe", "architecture": "OlmoeForCausalLM", "format": "bf16",
    "kernel": "bf16 experts on a kernel", "equal": 7, "mean_delta": 0.00123,
    "median_delta": 0.00001, "worst_gap": 0.0021, "replicated": 8, "experts": 16,
}  # fmt: skip
ROUNDING = {"kind": "olmoe", "rounding": 0.0113, "given": -0.0007}
FAILED = {"kind": "jamba", "failed": "IndexError: a | b", "during": "monolithic vLLM answers"}


def test_the_document_has_the_table_of_the_committed_lines():
    """Else run `python -m benchmarks.architecture_table --into docs/models.md`."""
    text = DOCUMENT.read_text()
    assert put_into(text, table(read_lines(LINES))) == text


def test_rows(tmp_path):
    lines = tmp_path / "lines"
    earlier = COMPARED | {"equal": 1}
    failed_first = {"kind": "olmoe", "failed": "was mended", "during": "start"}
    found = (failed_first, ROUNDING, earlier, COMPARED, FAILED)
    lines.write_text("\n".join(map(json.dumps, found)))
    made = table(read_lines(lines)).splitlines()
    assert made[0] == "1 architectures were compared:"
    assert made[4] == (
        "| olmoe | `OlmoeForCausalLM` | bf16 | on a kernel | 8 of 16 "
        "| 7 of 8, top-2 gap 0.0021 where they part | 0.0012 | 0.00001 | 0.0113 |"
    )
    assert made[-1] == "| jamba | monolithic vLLM answers | `IndexError: a \\| b` |"
    assert not any("was mended" in row for row in made)


def test_only_what_is_between_the_markers_changes():
    assert put_into(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="add both"):
        put_into("no markers", "new")
