"""The documents that list keys and packages are complete."""

import re
import tomllib
from itertools import chain
from pathlib import Path

from orchestrator.config.reference import MARKER, main, render

REPOSITORY = Path(__file__).resolve().parents[3]


def test_configuration_reference_is_up_to_date() -> None:
    document = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert document.split(MARKER + "\n")[1] == render() + "\n", (
        "run `python -m orchestrator.config.reference docs/configuration.md`"
    )


def test_every_key_is_explained() -> None:
    rows = [line.split(" | ") for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert [row for row in rows if not row[-1].strip(" |")] == []


def test_writing_keeps_what_people_wrote(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"intro\n{MARKER}\nold\n")
    main(document)
    assert document.read_text() == f"intro\n{MARKER}\n{render()}\n"


def test_every_dependency_is_explained_and_nothing_else() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted}
    document = (REPOSITORY / "docs" / "dependencies.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` ", document, re.MULTILINE)) == names
