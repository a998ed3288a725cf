"""The set-up script: what can be told without installing anything."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.preflight import versions

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "setup_env.py"


@pytest.fixture
def setup_env(tmp_path: Path) -> ModuleType:
    """The script as it would be in another checkout."""
    (tmp_path / "scripts").mkdir()
    copy = tmp_path / "scripts" / "setup_env.py"
    copy.write_text(SCRIPT.read_text())
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    spec = importlib.util.spec_from_file_location("setup_env", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pins_agree_with_the_project(setup_env: ModuleType) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert setup_env.TORCH in project["dependencies"]
    oldest, after_newest = re.findall(r"3\.(\d+)", project["requires-python"])
    assert (3, int(oldest)) == setup_env.OLDEST_PYTHON
    assert (3, int(after_newest) - 1) == setup_env.NEWEST_PYTHON
    assert versions.TESTED_PYTHON.oldest == setup_env.OLDEST_PYTHON
    assert versions.TESTED_PYTHON.newest == setup_env.NEWEST_PYTHON
    assert setup_env.TORCH_COMPANIONS == versions.TORCH_COMPANIONS


def test_pinned_releases_are_in_the_tested_range() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = chain(project["dependencies"], *project["optional-dependencies"].values())
    pins = dict(
        match.groups()
        for requirement in wanted
        if (match := re.match(r"([\w-]+)(?:\[.*\])?==([\d.]+)$", requirement))
    )
    for tested in versions.TESTED_PACKAGES:
        for distribution in tested.distributions:
            if distribution in pins:
                assert tested.covers(pins[distribution])


def test_an_equal_stamp_ends_the_run(setup_env: ModuleType) -> None:
    stamp = {"extra": "cpu", "python": "3.11.7", "made_from": setup_env.fingerprint()}
    assert not setup_env.is_current(stamp)
    setup_env.COMMAND.parent.mkdir(parents=True)
    setup_env.COMMAND.write_text("")
    assert not setup_env.is_current(stamp)
    setup_env.STAMP.write_text(json.dumps(stamp))
    assert setup_env.is_current(stamp)
    assert not setup_env.is_current(stamp | {"extra": "cuda"})
    (setup_env.ROOT / "pyproject.toml").write_text("[project]\nversion = '2'\n")
    assert not setup_env.is_current(stamp | {"made_from": setup_env.fingerprint()})


def test_a_broken_package_index_is_one_line_and_code_2(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup_env.py").write_text(SCRIPT.read_text())
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    ran = subprocess.run(
        [sys.executable, "scripts/setup_env.py", "--extra", "cpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null"},
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("error: pip failed (whole log: ")
    assert not (tmp_path / ".venv" / "expertmesh-setup.json").exists()
