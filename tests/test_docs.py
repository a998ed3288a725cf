"""What the documentation names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("actors", "benchmarks", "dashboards", "docs", "examples", "native", "orchestrator",
           "placement", "scripts", "tests")  # fmt: skip
FILES = [file.as_posix() for folder in FOLDERS for file in (ROOT / folder).rglob("*")]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PATH = re.compile(r"`([\w./]+/[\w.]+\.(?:py|md|yaml|json|sh))`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_path_in_the_documentation_exists(document):
    """Paths may leave out the first folders, as `wire/frame.py` does."""
    named = PATH.findall(document.read_text())
    missing = [path for path in named if not any(file.endswith(f"/{path}") for file in FILES)]
    assert missing == []


def test_the_tables_of_what_to_add_are_where_the_documentation_says():
    text = (ROOT / "docs/architecture.md").read_text()
    rows = text.split("### Where to add one more")[1].split("###")[0]
    named = re.findall(r"`([A-Z]+)` in `([\w/.]+\.py)`", rows)
    assert len(named) >= 8
    for table, path in named:
        (file,) = (file for file in FILES if file.endswith(f"/{path}"))
        assert re.search(rf"^{table}\b.*=", Path(file).read_text(), re.MULTILINE), (table, path)
