"""Installing ExpertMesh changes nothing in a plain vLLM; a mesh that is not there is named."""

import os
import subprocess
import sys

REGISTER_TWICE = """
import sys
from actors.vllm_plugin.register import register
register()
register()
print("vllm" in sys.modules, "torch" in sys.modules, "ray" in sys.modules)
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EXPERTMESH_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_inert_without_a_mesh() -> None:
    done = run(REGISTER_TWICE)
    assert done.stdout.split() == ["False", "False", "False"], done.stderr


def test_what_is_installed_for_a_mesh_loads_no_numba(tmp_path) -> None:
    """Where there is no Triton, vLLM's kernel overrides, applied after this, look into every module
    that is loaded, and stumble over llvmlite's."""
    code = """
import sys
from actors.vllm_plugin.register import register
register()
import actors.deepseek_v4_cpu.clamped_experts
sys.exit("numba" in sys.modules or "llvmlite" in sys.modules)
"""
    done = run(code, EXPERTMESH_ADDRESS=f"unix:{tmp_path}/nobody")
    assert done.returncode == 0, done.stderr


def test_a_mesh_that_does_not_answer_is_named(tmp_path) -> None:
    address = f"unix:{tmp_path}/nobody"
    code = """
from actors.vllm_plugin import connection
connection.FIRST_VIEW_TIMEOUT_S = 0.5
connection.connect_mesh()
"""
    done = run(code, EXPERTMESH_ADDRESS=address)
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert f"no ExpertMesh answers at {address}" in last
    assert "check EXPERTMESH_ADDRESS" in last
