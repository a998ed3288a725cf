"""The cache of machine code follows every module that code is made from."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest

from native.compiled import ROOT, cache_folder, compiled, imports, sources


def test_sources_are_what_a_module_imports_directly_or_not() -> None:
    found = sources("actors.dispatch.flight")
    assert {"actors.dispatch.flight", "actors.wire.bf16", "native.atomics"} <= found
    assert not any(name.startswith(("orchestrator", "numpy")) for name in found)


def test_a_package_is_no_source_but_its_modules_are() -> None:
    assert "native.kernel" in imports("placement.search.flow")
    assert "placement" not in imports("placement.search.flow")


PROGRAM = """
import numba, sys
from placement.outer import answer
print(answer(), sum(answer.stats.cache_hits.values()))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of three modules, of which the last holds the constant that code takes in."""
    package = tmp_path / "placement"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copytree(ROOT / "native", tmp_path / "native", ignore=lambda *_: ["__pycache__"])
    (package / "outer.py").write_text(
        "from native.compiled import compiled\n"
        "from placement import middle\n\n"
        "value = middle.value\n\n"
        "@compiled()\ndef answer():\n    return value()\n"
    )
    (package / "middle.py").write_text(
        "from numba import njit\nfrom placement.inner import CONSTANT\n\n"
        "@njit\ndef value():\n    return CONSTANT\n"
    )
    (package / "inner.py").write_text("CONSTANT = 1\n")
    return tmp_path


def run(project: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=project, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_an_edit_two_imports_away_is_compiled_and_nothing_else_is(project: Path) -> None:
    assert run(project) == "1 0"
    assert run(project) == "1 1"
    (project / "placement" / "inner.py").write_text("CONSTANT = 2\n")
    assert run(project) == "2 0"
    (project / "placement" / "inner.py").write_text("CONSTANT = 1\n")
    assert run(project) == "1 1"


def one_more(number: int) -> int:
    return number + 1


def test_modules_may_be_imported_by_several_threads_at_once() -> None:
    """Each function's code goes to its own folder, and the setting is afterwards as it was."""
    before, wanted = numba.config.CACHE_DIR, cache_folder("", one_more.__module__)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            made = [threads.submit(compiled(), one_more) for _ in range(64)]
            folders = {Path(one.result()._cache._cache_path).parent for one in made}
    finally:
        sys.setswitchinterval(interval_s)
    assert folders == {Path(wanted)}
    after = numba.config.CACHE_DIR
    assert after == before
