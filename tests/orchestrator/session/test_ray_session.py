"""A private Ray session that loses one of its own processes is noticed, and ended all the same."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 120.0
SESSION = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.session import process_tree
from orchestrator.config.schema import MeshConfig
from orchestrator.session.ray_session import lost_process, start_ray, stop_ray
from orchestrator.run_dir import RunDir

pool = {"vendor": "cpu", "memory": "1MiB"}
config = MeshConfig.model_validate({"model": {"path": "/m"}, "pools": {"host": pool}})
run_dir = RunDir.create(Path(sys.argv[1]))
start_ray(config, run_dir)
assert lost_process() == ""
(victim,) = [p for p in process_tree.descendants() if sys.argv[2] in p.cmdline()[0]]
victim.kill()
while not lost_process():
    time.sleep(0.05)
print(lost_process())
stop_ray(private=True)
print(len(process_tree.descendants()))
run_dir.remove()
os._exit(0)
"""


@pytest.mark.parametrize(
    ("victim", "program"), [("raylet", "/raylet/raylet"), ("gcs_server", "/gcs_server")]
)
def test_a_session_without_one_of_its_processes_ends(victim: str, program: str) -> None:
    with TemporaryDirectory(prefix="s") as parent:
        command = [sys.executable, "-c", SESSION, parent, program]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True
        )
        assert done.stdout.split() == [victim, "0"]
        assert list(Path(parent).iterdir()) == []


def test_pods_get_the_settings_of_a_session_of_our_own():
    from orchestrator.kubernetes.pods import RAY_ENVIRONMENT as OF_PODS
    from orchestrator.session.ray_session import RAY_ENVIRONMENT

    assert OF_PODS.items() <= RAY_ENVIRONMENT.items()


def test_a_machine_too_busy_for_ray_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    from orchestrator.config.schema import MeshConfig
    from orchestrator.errors import UserError
    from orchestrator.run_dir import RunDir
    from orchestrator.session import process_tree, ray_session

    def slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", slow)
    monkeypatch.setattr(process_tree, "adopt_orphans", lambda: None)
    pools = {"host": {"vendor": "cpu", "memory": "1MiB"}}
    config = MeshConfig.model_validate({"model": {"path": "/m"}, "pools": pools})
    with TemporaryDirectory(prefix="s") as parent, patch.dict(os.environ):
        run_dir = RunDir.create(Path(parent))
        with pytest.raises(UserError, match="Ray did not start within 30 s") as told:
            ray_session.start_ray(config, run_dir)
    assert str(run_dir.ray) in told.value.fix
