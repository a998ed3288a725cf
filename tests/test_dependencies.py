"""Every dependency that pyproject.toml declares is used, or says here why no import shows it."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("orchestrator", "actors", "placement", "native")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

IMPORTED_AS = {
    "pyyaml": "yaml",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "opentelemetry-exporter-otlp": "opentelemetry.exporter.otlp",
    "axe-playwright-python": "axe_playwright_python",
    "grafana-foundation-sdk": "grafana_foundation_sdk",
}
"""Names of packages that are imported under another one."""

WITHOUT_IMPORT = {
    "psycopg": "SQLAlchemy loads it for addresses that begin with postgresql",
    "python-multipart": "Starlette loads it to read uploads",
    "pytest-timeout": "a plugin of pytest, configured in pyproject.toml",
    "ruff": "a command",
    "mypy": "a command",
    "import-linter": "a command",
    "types-pyyaml": "types for mypy",
    "types-psutil": "types for mypy",
}


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return found[0].lower()


def used_in(folders: Iterable[str]) -> set[str]:
    """Every module that is imported, and every string that may be a module's name."""
    return {
        name
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for name in names_in(ast.parse(file.read_bytes()))
    }


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Constant) and str(node.value).isidentifier():
            yield str(node.value)


def unused(requirements: Iterable[str], folders: Iterable[str]) -> list[str]:
    names = used_in(folders)
    found = []
    for name in map(name_of, requirements):
        module = IMPORTED_AS.get(name, name.replace("-", "_"))
        seen = any(used == module or used.startswith(f"{module}.") for used in names)
        if not seen and name not in WITHOUT_IMPORT:
            found.append(name)
    return found


def test_the_product_uses_what_it_installs():
    assert unused(PROJECT["dependencies"], PRODUCT) == []


def test_tests_and_benchmarks_use_what_they_install():
    wanted = PROJECT["optional-dependencies"]["dev"]
    assert unused(wanted, ("tests", "benchmarks", "scripts", "dashboards", "examples")) == []


def test_a_dependency_nobody_imports_is_found():
    assert unused(["tornado>=6"], PRODUCT) == ["tornado"]


@pytest.mark.parametrize("name", WITHOUT_IMPORT)
def test_every_excuse_is_for_something_declared(name):
    declared = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert name in set(map(name_of, declared))
