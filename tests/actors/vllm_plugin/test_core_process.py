"""Processes that an engine spawns run a main module of ours."""

import subprocess
import sys
from pathlib import Path

PARENT = """
import gc, multiprocessing, sys
from actors.vllm_plugin.core_process import as_main_module, no_garbage_collection

print("main module of the parent")

def main():
    spawn = multiprocessing.get_context("spawn")
    import child
    with no_garbage_collection():
        assert not gc.isenabled()
        with as_main_module():
            process = spawn.Process(target=child.report)
            process.start()
        process.join()
    assert gc.isenabled()
    assert sys.modules["__main__"].__spec__ is None

if __name__ == "__main__":
    main()
"""
CHILD = """
import gc

def report():
    print("collects" if gc.isenabled() else "does not collect", flush=True)
"""


def test_a_spawned_process_neither_runs_its_parents_main_module_nor_collects(tmp_path: Path):
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "child.py").write_text(CHILD)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "parent.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:-1] in (
        ["main module of the parent", "does not collect"],
        ["does not collect", "main module of the parent"],
    )
