"""Mutation tests: change small things in a package's code, one at a time, and see a test fail.

    python scripts/mutants.py wire            # goes on where it was stopped
    python scripts/mutants.py wire --show     # what survived so far, with the changes
    python scripts/mutants.py wire --again    # try that again, after tests were added
    python scripts/mutants.py wire --sample 200 --seed 1   # 200 of all, the same for the same code
    python scripts/mutants.py                 # the parts there are

mutmut does it, in a copy of the tracked files below .cache/mutants, one for each part; verdicts of
functions that did not change are kept there. Left out are

- decorated functions, so compiled ones (`native.compiled`): those are held to plain references by
  their tests and to `tests/faults`;
- what only chooses words: the exception a `raise` makes and calls of a log (`WORDS`). Whether an
  error is raised at all is tried, as that hangs on the conditions around it.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "mutants"
SOURCES = ("native", "placement", "actors", "orchestrator")
ALSO = ("benchmarks", "examples", "scripts", "tests", "README.md", "docs", "Makefile")
COMPILED = ("actors/wire/layout.py",)
"""Plain functions that compiled code takes in, which cannot compile what mutmut makes of them."""
CAUGHT = ("killed", "timeout", "caught by type check", "segfault")
UNTRIED = ("not checked", "skipped")
WORDS = (r"^\s*raise \w", r"\blog(ger)?\.(debug|info|warning|error|exception)\(")
"""Lines on which expressions that begin there are left alone."""
SEED = 20261126
LIST = (
    "from mutmut import __main__ as m; m.copy_src_dir(); m.copy_also_copy_files(); "
    "m.setup_source_paths(); m.create_mutants(1)"
)
"""Writes the mutants, as mutmut does at the start of a run, and tries none."""


@dataclass(frozen=True, slots=True)
class Part:
    """files: patterns of what is changed; tests: those that should notice, quick ones only;
    slow: words in names of tests that take too long to run for each change."""

    files: tuple[str, ...]
    tests: tuple[str, ...]
    slow: tuple[str, ...] = ()


PARTS = {
    "auth": Part(
        ("orchestrator/gateway/auth.py",), ("tests/orchestrator/gateway/test_surface.py",)
    ),
    "directory": Part(
        ("orchestrator/directory*.py",),
        ("tests/orchestrator/test_directory.py", "tests/orchestrator/test_directory_security.py"),
    ),
    "wire": Part(
        ("actors/wire/*.py",),
        ("tests/actors/wire", "tests/actors/dispatch/test_flights.py"),
        ("transport_of_a_test", "steady_state"),
    ),
    "dispatch": Part(
        ("actors/dispatch/*.py",),
        ("tests/actors/dispatch",),
        (
            "steady_state",
            "stopped_shards_cost",
            "another_namespace",
            "imports_no",
            "large_bodies",
        ),
    ),
    "placement": Part(
        ("placement/*.py",), ("tests/placement",), ("budget_holds_while", "policies_differ")
    ),
}


def workspace(name: str) -> Path:
    """The part's copy of the tracked files, brought up to date."""
    folder = FOLDER / name
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for file in filter(None, listed.stdout.split("\0")):
        _bring(ROOT / file, folder / file)
        # mutmut copies nothing else, and tests only once.
        if not file.endswith(".py") or file.startswith("tests/"):
            _bring(ROOT / file, folder / "mutants" / file)
    part = PARTS[name]
    config = {
        "source_paths": SOURCES,
        "only_mutate": part.files,
        "do_not_mutate": COMPILED,
        "also_copy": ALSO,
        "pytest_add_cli_args_test_selection": part.tests,
        "pytest_add_cli_args": (
            *("-p", "no:cacheprovider", "-p", "scripts.quick_first"),
            *("-m", "not (long or ray or vllm or e2e)"),
            *(("-k", f"not ({' or '.join(part.slow)})") if part.slow else ()),
        ),
        "do_not_mutate_patterns": WORDS,
        "timeout_multiplier": 4.0,
        "timeout_constant": 30.0,
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    text = (ROOT / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text("\n".join([text, "[tool.mutmut]", *lines, ""]))
    return folder


def _bring(source: Path, target: Path) -> None:
    """Copy a file that is new or was changed."""
    if not source.is_file():
        return
    if target.is_file():
        ours, theirs = source.stat(), target.stat()
        if (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def mutmut(folder: Path, *arguments: str) -> str:
    """What mutmut prints, also where it fails."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "mutmut", *arguments],
        cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder / "mutants"), "OMP_NUM_THREADS": "1"}


def verdicts(folder: Path) -> dict[str, str]:
    """Verdict by the mutant's name."""
    found = {}
    for line in mutmut(folder, "results", "--all", "true").splitlines():
        name, _, verdict = line.strip().rpartition(": ")
        if name:
            found[name] = verdict
    return found


def sample(folder: Path, size: int, seed: int) -> list[str]:
    """Names of that many mutants of all there are. A larger size goes on from a smaller one."""
    subprocess.run([sys.executable, "-P", "-c", LIST],
        cwd=folder, env={**_environment(folder), "MUTANT_UNDER_TEST": "mutant_generation"},
        stdout=subprocess.DEVNULL, check=True)  # fmt: skip
    names = sorted(verdicts(folder))
    random.Random(seed).shuffle(names)
    return names[:size]


def survivors(found: dict[str, str]) -> list[str]:
    """Mutants that were tried and that no test noticed."""
    return [name for name, said in found.items() if said not in (*CAUGHT, *UNTRIED)]


def report(name: str, found: dict[str, str]) -> str:
    """The score in one line."""
    tried = sum(said not in UNTRIED for said in found.values())
    caught = sum(said in CAUGHT for said in found.values())
    share = 100 * caught / tried if tried else 0.0
    return (
        f"{name}: {caught} of {tried} tried caught ({share:.1f} %), {len(found) - tried} not tried"
    )


def _try(folder: Path, options: argparse.Namespace) -> None:
    command = [sys.executable, "-P", "-m", "mutmut", "run", "--max-children", options.children]
    names = [*options.only, *(survivors(verdicts(folder)) if options.again else [])]
    if options.sample:
        drawn = sample(folder, options.sample, options.seed)
        said = verdicts(folder)
        names += [name for name in drawn if said[name] in UNTRIED]
        print(f"seed {options.seed}: {len(drawn)} of {len(said)}, {len(names)} not tried before")
        if not names:
            return
    subprocess.run([*command, *names], cwd=folder, env=_environment(folder), check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=sorted(PARTS))
    parser.add_argument("only", nargs="*", help="names of mutants, such as 'actors.wire.frame*'")
    parser.add_argument("--show", action="store_true", help="list what survived and run nothing")
    parser.add_argument("--children", default="2", help="processes at once")
    parser.add_argument("--again", action="store_true", help="try again what survived so far")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of all, drawn with --seed")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    if options.part is None:
        print("\n".join(f"{name:10} {' '.join(part.files)}" for name, part in PARTS.items()))
        return 0
    folder = workspace(options.part)
    if not options.show:
        _try(folder, options)
    found = verdicts(folder)
    for name in survivors(found):
        print(mutmut(folder, "show", name) if options.show else f"{found[name]}: {name}")
    print(report(options.part, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
