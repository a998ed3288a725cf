"""Everything that was started is found and ended, orphans and shared memory included.

In a process of its own each: a subreaper keeps adopting for the rest of its life.
"""

import subprocess
import sys
import textwrap
from multiprocessing import shared_memory
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def run_alone(body: str) -> list[str]:
    """Lines that `body` prints in a new interpreter."""
    setup = "import subprocess, sys, time, psutil\nfrom orchestrator.session import process_tree\n"
    done = subprocess.run(
        [sys.executable, "-c", setup + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_orphans_are_adopted_and_ended() -> None:
    parent = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(p.pid)"
    )
    pid, found, alive = run_alone(f"""
        process_tree.adopt_orphans()
        done = subprocess.run([sys.executable, "-c", {parent!r}], capture_output=True, text=True)
        pid = int(done.stdout)
        print(pid, pid in [p.pid for p in process_tree.descendants()])
        process_tree.end_descendants(timeout_s=0.1)
        print(psutil.pid_exists(pid))
    """)
    assert int(pid) > 0
    assert (found, alive) == ("True", "False")


def test_adopted_processes_leave_no_zombies_and_own_ones_keep_their_exit_code() -> None:
    parent = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(0.2)'], "
        "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(p.pid)"
    )
    gone, code = run_alone(f"""
        process_tree.adopt_orphans()
        process_tree.reap_orphans([])
        done = subprocess.run([sys.executable, "-c", {parent!r}], capture_output=True, text=True)
        adopted = int(done.stdout)
        deadline_s = time.monotonic() + 30
        while psutil.pid_exists(adopted) and time.monotonic() < deadline_s:
            process_tree.reap_orphans([])
            time.sleep(0.01)
        print(not psutil.pid_exists(adopted))
        own = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        while psutil.Process(own.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        process_tree.reap_orphans([own.pid])
        print(own.wait())
    """)
    assert (gone, code) == ("True", "3")


def test_those_on_their_way_out_are_waited_for() -> None:
    (graceful,) = run_alone("""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
        process_tree.end_descendants(timeout_s=20)
        print(child.wait() == 0)
    """)
    assert graceful == "True"


def test_shared_memory_of_a_killed_process_is_removed() -> None:
    other = shared_memory.SharedMemory(create=True, size=64)
    try:
        child = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None  # killed before it can clean up
kept = shared_memory.SharedMemory(create=True, size=64)
print(kept.name, flush=True)
time.sleep(600)
"""
        name, found, left = run_alone(f"""
            from pathlib import Path
            child = subprocess.Popen(
                [sys.executable, "-c", {child!r}], stdout=subprocess.PIPE, text=True
            )
            name = child.stdout.readline().strip()
            segments = process_tree.shared_memory(process_tree.descendants())
            print(name, [s.name for s in segments] == [name])
            process_tree.end_descendants(timeout_s=0.1)
            process_tree.remove_shared_memory(segments)
            print(Path("/dev/shm", name).exists())
        """)
        assert name
        assert (found, left) == ("True", "False")
        assert Path("/dev/shm", other.name).exists(), "a stranger's segment stays"
    finally:
        other.close()
        other.unlink()
