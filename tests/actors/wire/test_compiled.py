"""The cache of compiled code follows every module that code comes from."""

import ast
from pathlib import Path

from actors.wire import compiled
from actors.wire.compiled import PACKAGE, SOURCES


def modules() -> dict[str, ast.Module]:
    """Modules of the package that define compiled functions, by path."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "compiled.py" and "@compiled(" in path.read_text():
            found[str(path.relative_to(PACKAGE))] = ast.parse(path.read_text())
    return found


def test_every_source_of_compiled_code_is_known() -> None:
    for name, module in modules().items():
        assert name in SOURCES
        for node in ast.walk(module):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("actors"):
                continue
            # In uppercase: constants, which compiled code takes in as they are.
            if any(alias.name.isupper() for alias in node.names):
                path = Path(*(node.module or "").split(".")[1:]).with_suffix(".py")
                if str(path) != "wire/patience.py":  # its constants stay in Python
                    assert str(path) in SOURCES, f"{name} takes constants from {path}"


def test_other_contents_have_another_folder(tmp_path: Path, monkeypatch) -> None:
    for name in SOURCES:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes((PACKAGE / name).read_bytes())
    before = compiled.digest()
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    assert compiled.digest() == before
    with (tmp_path / "wire/segment.py").open("a") as segment:
        segment.write("\n# edited\n")
    assert compiled.digest() != before
