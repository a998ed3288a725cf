"""Break the code on purpose, one fault at a time, and see that a test notices.

`tests/faults/faults.yaml` lists faults: a text to replace in one file, and the tests that have to
fail then. Each is applied to a copy of the tracked files, so the checkout stays as it is. The tests
are run once without a fault first: a test that fails anyhow notices nothing. A fault whose text is
no longer in its file is an error, so the list follows the code.

Prints one line for each fault, killed or SURVIVED, and exits with 1 if one survived.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = Path("tests/faults/faults.yaml")
LIMIT_S = 900.0
"""Of one run of tests. A fault that makes them hang is noticed, too."""
FAILED = 1
"""pytest's exit code where tests failed; any other one says that they were not run."""


@dataclass(frozen=True, slots=True)
class Fault:
    """old: text that is in `file` exactly once; new: what takes its place."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_faults(path: Path) -> list[Fault]:
    return [
        Fault(f["name"], f["file"], f["old"].rstrip("\n"), f["new"].rstrip("\n"), tuple(f["tests"]))
        for f in yaml.safe_load(path.read_text())
    ]


def broken(text: str, fault: Fault) -> str:
    """The file with the fault in it. Raises ValueError: `old` is not there exactly once."""
    count = text.count(fault.old)
    if count != 1:
        raise ValueError(f"{fault.name}: {fault.file} has its text {count} times, not once")
    return text.replace(fault.old, fault.new)


class Copy:
    """Tracked files in a temporary folder; compiled code is kept there from one run to the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def failure(self, tests: Sequence[str]) -> str:
        """What pytest says where one of `tests` fails, or hangs; "" where all pass.

        Raises RuntimeError: they were not run.
        """
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        variables = {**os.environ, "PYTHONPATH": str(self._folder)}
        try:
            done = subprocess.run(
                command, cwd=self._folder, env=variables, timeout=LIMIT_S,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not through within {LIMIT_S:g} s"
        said = done.stdout[-2000:]
        if done.returncode not in (0, FAILED):
            raise RuntimeError(f"pytest {' '.join(tests)} was not run:\n{said}")
        return said if done.returncode else ""

    def survives(self, fault: Fault) -> bool:
        """Whether the fault's tests pass all the same."""
        path = self._folder / fault.file
        sound = path.read_text()
        path.write_text(broken(sound, fault))
        try:
            return not self.failure(fault.tests)
        finally:
            path.write_text(sound)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="faults whose name holds one of these; all")
    words = parser.parse_args().words
    faults = [
        fault
        for fault in read_faults(ROOT / LIST)
        if not words or any(word in fault.name for word in words)
    ]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        copy = Copy(Path(folder))
        tests = sorted({test for fault in faults for test in fault.tests})
        if said := copy.failure(tests):
            print(f"{said}\nerror: tests fail without any fault", file=sys.stderr)
            return 2
        for fault in faults:
            began_s = time.monotonic()
            survived = copy.survives(fault)
            survivors += survived
            word = "SURVIVED" if survived else "killed"
            print(f"{word:9} {fault.name} ({time.monotonic() - began_s:.0f} s)", flush=True)
    print(f"{len(faults)} faults, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
