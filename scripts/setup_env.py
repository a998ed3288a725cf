"""Make `.venv` with everything ExpertMesh needs: `make setup`. Standard library only.

torch goes first and decides the rest: its CPU build on machines without an NVIDIA GPU (from
PyTorch's CPU index where the configured one only has the CUDA build), its CUDA build elsewhere.
Idempotent: a stamp in `.venv` records what it was made from, and an equal stamp ends the run at
once. The whole log of pip is kept in `.venv/setup.log`.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
COMMAND = VENV / "bin" / "expertmesh"
STAMP = VENV / "expertmesh-setup.json"
LOG = VENV / "setup.log"

TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""vLLM pulls them in for pictures and sound. A CUDA build of one beside a CPU torch fails on
import, and transformers imports them whenever they are installed."""

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
DISK_NEEDED_GIB = {"cpu": 6, "cuda": 16}
HEARTBEAT_S = 15.0
LOG_TAIL_LINES = 15


class SetupError(Exception):
    """One line for the person at the keyboard."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv with everything ExpertMesh needs.")
    parser.add_argument("--extra", choices=("cpu", "cuda"), help="default: cuda with an NVIDIA GPU")
    extra = parser.parse_args().extra or ("cuda" if has_nvidia_gpu() else "cpu")
    try:
        check_python()
        stamp = {"extra": extra, "python": platform.python_version(), "made_from": fingerprint()}
        if is_current(stamp):
            return 0
        set_up(extra)
        STAMP.write_text(json.dumps(stamp))
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nset-up stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


def has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    return subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def check_python() -> None:
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        wanted = "{}.{} to {}.{}".format(*OLDEST_PYTHON, *NEWEST_PYTHON)
        raise SetupError(
            f"Python {platform.python_version()} is outside {wanted}: "
            "install one and run `make setup PYTHON=python3.11`"
        )


def fingerprint() -> str:
    """Of all that decides what ends up in the environment."""
    parts = (ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_current(stamp: dict[str, str]) -> bool:
    try:
        return COMMAND.exists() and json.loads(STAMP.read_text()) == stamp
    except (OSError, ValueError):
        return False


def set_up(extra: str) -> None:
    begin = time.monotonic()
    needed = DISK_NEEDED_GIB[extra]
    if not VENV.exists() and shutil.disk_usage(ROOT).free < needed * 2**30:
        raise SetupError(f"less than {needed} GiB free under {ROOT}: make room, then run it again")
    STAMP.unlink(missing_ok=True)
    step(1, f"virtual environment in {VENV.name}")
    make_venv()
    step(2, f"{TORCH} for {extra}")
    index = install_torch(extra)
    step(3, f"expertmesh with vLLM ({extra}) and the tools for tests")
    pip(["install", "-e", f"{ROOT}[{extra},dev]", *index])
    step(4, "check what was installed")
    check_torch(extra)
    remove_broken_companions()
    step(5, "compile the planner and the data plane")
    compile_ahead()
    print(f"    done in {time.monotonic() - begin:.0f} s", flush=True)


def step(number: int, what: str) -> None:
    print(f"[{number}/5] {what}", flush=True)


def make_venv() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "venv", VENV], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        raise SetupError(
            f"cannot make a virtual environment: install Python's venv module "
            f"(Debian: apt-get install python3-venv), or remove {VENV} and run it again"
        )


def install_torch(extra: str) -> list[str]:
    """Install torch; returns the pip options that find the packages that go with it."""
    if extra == "cuda":
        pip(["install", TORCH])
        return []
    if not offers_cpu_torch():
        print(f"    the package index has no CPU build of torch, using {CPU_INDEX}", flush=True)
        pip(["install", TORCH, "--index-url", CPU_INDEX])
        return ["--extra-index-url", CPU_INDEX]
    pip(["install", TORCH])
    return []


def offers_cpu_torch() -> bool:
    """Whether plain pip would choose a `+cpu` build (asked without downloading it)."""
    dry_run = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-"]
    report = subprocess.run(
        [str(PYTHON), "-m", "pip", "--quiet", *dry_run, TORCH],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        version: str = json.loads(report.stdout)["install"][0]["metadata"]["version"]
    except (ValueError, LookupError):
        return False
    return version.endswith("+cpu")


def check_torch(extra: str) -> None:
    cuda = python_says("import torch; print(torch.version.cuda or '')")
    if cuda is None:
        raise SetupError(f"torch does not import: see {LOG}, or remove {VENV} and run it again")
    if extra == "cpu" and cuda:
        # A dependency with a requirement of its own may have replaced it.
        print(f"    replacing the CUDA {cuda} build of torch by the CPU build", flush=True)
        pip(["install", "--force-reinstall", "--no-deps", f"{TORCH}+cpu", "--index-url", CPU_INDEX])
    elif extra == "cuda" and not cuda:
        raise SetupError("the package index has no CUDA build of torch: run `make setup EXTRA=cpu`")


def remove_broken_companions() -> None:
    for name in TORCH_COMPANIONS:
        installed = python_says(f"import importlib.metadata as m; print(m.version('{name}'))")
        if installed and python_says(f"import {name}; print('ok')") is None:
            print(f"    removing {name} {installed}: it does not import beside this torch")
            pip(["uninstall", "-y", name])


def compile_ahead() -> None:
    """What is not compiled here is compiled at the first start, which then takes longer."""
    command = [PYTHON, "-m", "orchestrator.machine_code"]
    with LOG.open("a") as log:
        ran = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    if ran.returncode != 0:
        print(f"    not compiled (see {LOG}): the first start will do it", flush=True)


def python_says(code: str) -> str | None:
    """What `code` prints in the new environment, or None if it fails."""
    ran = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    with LOG.open("a") as log:
        log.write(ran.stderr)
    return ran.stdout.strip() if ran.returncode == 0 else None


def pip(arguments: list[str]) -> None:
    """Run pip, showing where it is; its whole output goes to the log."""
    command = [str(PYTHON), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PIP_PROGRESS_BAR": "off"}
    tail: list[str] = []
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        shown = time.monotonic()
        for line in process.stdout:
            log.write(line)
            tail = [*tail, line.rstrip()][-LOG_TAIL_LINES:]
            if not line.startswith("WARNING: Location"):  # an index folder without this package
                shown = show_progress(line.strip(), shown)
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)
    if process.returncode != 0:
        print("\n".join(tail), file=sys.stderr)
        raise SetupError(f"pip failed (whole log: {LOG}): see the lines above, then run it again")


def show_progress(line: str, shown: float) -> float:
    """One line that changes in place on a terminal; elsewhere a line now and then."""
    if sys.stdout.isatty():
        print(f"\r\033[K    {line[: shutil.get_terminal_size().columns - 6]}", end="", flush=True)
    elif time.monotonic() - shown > HEARTBEAT_S:
        print(f"    {line[:90]}", flush=True)
        return time.monotonic()
    return shown


if __name__ == "__main__":
    sys.exit(main())
