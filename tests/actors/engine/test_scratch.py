"""An engine's temporary folder, and those of engines that were killed."""

import subprocess
import sys
from pathlib import Path

from actors.engine.scratch import make_scratch

MAKE = "import sys; from pathlib import Path; from actors.engine.scratch import make_scratch; "


def test_folders_of_engines_that_are_gone_are_removed(tmp_path: Path) -> None:
    code = f"{MAKE} print(make_scratch(Path(sys.argv[1])))"
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    orphan = Path(done.stdout.strip())
    (orphan / "socket").touch()
    foreign = tmp_path / "xmesh-engine-1-4194305-abc"  # another namespace's
    foreign.mkdir()
    mine = make_scratch(tmp_path)
    again = make_scratch(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([foreign, mine, again])
    assert mine.stat().st_mode & 0o777 == 0o700
