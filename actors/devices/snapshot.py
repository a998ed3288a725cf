"""What a process can see of the devices of its machine; taken once, decided upon in `detect.py`."""

import contextlib
import glob
import importlib.metadata
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actors.devices.family import INDEX, Family

VENDOR_VARIABLE = "EXPERTMESH_VENDOR"
"""The operator's word, for all processes of a machine."""
POD_RESOURCES_VARIABLE = "EXPERTMESH_POD_RESOURCES"
"""Extended resources of this pod's containers, separated by commas, as its manifest says them:
Kubernetes tells a container its CPUs and memory, but not these."""
POD_LABELS_FILE = Path("/etc/podinfo/labels")
"""Where manifests mount the pod's labels (downward API)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """operator: vendor that somebody named. labels: of the Ray node and of the pod.
    pod_resources: Kubernetes' names of what the pod was given. packages: installed ones that bring
    a torch device along. torch_build: torch's version. torch_devices: torch device type -> names
    of the devices that torch sees. files: device files that are there. commands: management
    commands on the path."""

    operator: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    pod_resources: tuple[str, ...] = ()
    packages: frozenset[str] = frozenset()
    torch_build: str = ""
    torch_devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    commands: frozenset[str] = frozenset()


def take_snapshot(
    families: Iterable[Family],
    *,
    operator: str | None = None,
    node_labels: Mapping[str, str] | None = None,
    environment: Mapping[str, str] = os.environ,
    pod_labels_file: Path = POD_LABELS_FILE,
    ask_torch: bool = True,
) -> Snapshot:
    """What is seen of these families here.

    operator: vendor the config names; else the environment's. node_labels: of the Ray node.
    ask_torch: import torch and have it count devices, which starts the driver in this process.
    """
    known = tuple(families)
    patterns = {
        pattern
        for family in known
        for pattern in (
            *family.host.device_files, *family.host.control_files, *family.host.not_beside
        )
    }  # fmt: skip
    commands = {family.host.cli for family in known if family.host.cli}
    packages = {package for family in known for package in family.torch.packages}
    types = {family.torch.device for family in known if family.torch.device}
    return Snapshot(
        operator=operator or environment.get(VENDOR_VARIABLE) or None,
        labels={**(node_labels or {}), **read_labels(pod_labels_file)},
        pod_resources=_split(environment.get(POD_RESOURCES_VARIABLE, "")),
        packages=frozenset(filter(_installed, packages)),
        torch_build=_torch_build(),
        torch_devices=_torch_devices(types - {"cpu"}) if ask_torch else {},
        files=frozenset(
            file for pattern in patterns for file in glob.glob(pattern.replace(INDEX, "[0-9]*"))
        ),
        commands=frozenset(command for command in commands if shutil.which(command)),
    )


def driver_version(family: Family) -> str:
    """What changes with the vendor's driver, as far as it can be told without it: the text of its
    version file and versions of the packages that bring its torch devices along."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in family.torch.packages
                if _installed(name)]  # fmt: skip
    if family.host.driver_file is not None:
        with contextlib.suppress(OSError):
            versions.append(Path(family.host.driver_file).read_text(encoding="utf-8").strip())
    return "; ".join(versions)


def read_labels(file: Path) -> dict[str, str]:
    """Labels as the downward API writes them, one `key="value"` a line; none without the file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key: value.strip('"') for key, _, value in pairs}


def _split(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.partition("=")[0].strip()))


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _torch_build() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch_devices(types: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Devices of those types that torch sees, with what their driver calls them."""
    import torch

    found = {}
    for kind in sorted(types):
        module = getattr(torch, kind, None)
        try:
            count = module.device_count() if module is not None else 0
            names = tuple(module.get_device_name(index) for index in range(count))  # type: ignore[union-attr]
        except (RuntimeError, AttributeError, AssertionError):
            continue  # a build for devices that are not here
        if names:
            found[kind] = names
    return found
