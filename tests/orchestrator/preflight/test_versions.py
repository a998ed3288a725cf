"""Version checks, on made-up installations."""

from pathlib import Path

import pytest

from orchestrator.preflight.finding import Level
from orchestrator.preflight.versions import (
    TESTED_PACKAGES,
    check_package,
    check_python,
    check_torch_companions,
)

TORCH = next(tested for tested in TESTED_PACKAGES if tested.package == "torch")


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 9), Level.FAILURE), ((3, 11, 0), Level.OK), ((3, 14, 0), Level.FAILURE)],
)
def test_python(version: tuple[int, int, int], level: Level) -> None:
    assert check_python(version).level is level


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu", "2.13.1+cu130"])
def test_any_build_of_a_tested_series_will_do(version: str) -> None:
    assert check_package(TORCH, lambda _: version).level is Level.OK


@pytest.mark.parametrize("version", ["2.12.1", "2.14.0.dev20260101", "3.0"])
def test_another_series_is_refused_with_the_one_to_install(version: str) -> None:
    finding = check_package(TORCH, lambda _: version)
    assert not finding.ok
    assert finding.message == f"torch {version} is outside the tested range 2.13"
    assert finding.fix == "install torch 2.13, as `make setup` does"


def test_a_missing_package_is_named() -> None:
    finding = check_package(TORCH, lambda _: None)
    assert (finding.ok, finding.message) == (False, "torch is not installed")


def installation(root: Path, torch_cuda: str | None, vision_links: bytes) -> Path:
    for package in ("torch", "torchvision"):
        (root / package).mkdir()
    (root / "torch" / "version.py").write_text(f"cuda = {torch_cuda!r}\n")
    (root / "torchvision" / "_C.so").write_bytes(b"\x7fELF\0libc.so.6\0" + vision_links)
    return root


@pytest.mark.parametrize(
    ("torch_cuda", "links", "ok"),
    [
        (None, b"libcudart.so.13\0", False),
        (None, b"libc10.so\0", True),
        ("13.0", b"libcudart.so.13\0", True),
    ],
)
def test_cuda_companion_beside_cpu_torch(
    tmp_path: Path, torch_cuda: str | None, links: bytes, ok: bool
) -> None:
    root = installation(tmp_path, torch_cuda, links)
    present = {name: root / name for name in ("torch", "torchvision")}
    finding = check_torch_companions(present.get)
    assert finding.ok is ok
    assert finding.fix.endswith("pip uninstall -y torchvision") is not ok
