"""Whose devices a machine has. Pure: decides over a `Snapshot`.

The first of these that names a vendor decides, best evidence first: the operator's word; labels of
the Ray node and the pod; what Kubernetes gave the pod; torch, if the devices it sees come with a
vendor's package, build or name; device files and commands; and where nothing does it is a CPU.

That torch calls its devices `cuda`, or Ray its resource `GPU`, says nothing: those of MetaX, Hygon,
Kunlunxin, Iluvatar and AMD are called so too.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from actors.devices.catalogue import check_vendor, load_catalogue
from actors.devices.family import INDEX, Family
from actors.devices.snapshot import Snapshot

VENDOR_LABEL = "expertmesh.io/vendor"
"""Label of a Ray node or a pod that says whose devices it has."""
TYPE_LABEL = "ray.io/accelerator-type"
"""Ray's own label."""
CPU = "cpu"
LEAST_WORD = 3
"""Letters of a vendor's name that count as one within a label's value."""


class Step(StrEnum):
    """What a vendor was told by, best evidence first."""

    OPERATOR = "operator"
    LABEL = "label"
    POD = "pod resource"
    TORCH = "torch"
    HOST = "files and commands"
    NOTHING = "nothing else found"


@dataclass(frozen=True, slots=True)
class Detection:
    """vendor: in the catalogue. step: what told it. evidence: in words."""

    vendor: str
    step: Step
    evidence: str


class AmbiguousDevices(ValueError):
    """Equally good evidence of two vendors; the text names them and what to do."""


Families = Mapping[str, Family]
Finder = Callable[[Snapshot, Families], Iterator[tuple[str, str]]]
"""Yields (vendor, evidence)."""


def detect(snapshot: Snapshot, families: Families | None = None) -> Detection:
    """Whose devices these are.

    Raises:
        UnknownDevice: the operator or a label names a vendor that the catalogue does not have.
        AmbiguousDevices: the same step found two vendors.
    """
    known = load_catalogue() if families is None else families
    for step, find in STEPS:
        found = dict(find(snapshot, known))
        if len(found) > 1:
            what = " and ".join(f"{vendor} ({why})" for vendor, why in sorted(found.items()))
            raise AmbiguousDevices(
                f"this machine seems to have {what}: name one in pools.*.vendor, or label its "
                f"node {VENDOR_LABEL}"
            )
        for vendor, evidence in found.items():
            return Detection(vendor, step, evidence)
    return Detection(CPU, Step.NOTHING, "no accelerator found")


def by_operator(snapshot: Snapshot, _families: Families) -> Iterator[tuple[str, str]]:
    if snapshot.operator:
        yield check_vendor(snapshot.operator), "named by the operator"


def by_label(snapshot: Snapshot, families: Families) -> Iterator[tuple[str, str]]:
    """Our own label alone, else Ray's type and what the vendors' software writes."""
    named = snapshot.labels.get(VENDOR_LABEL)
    if named:
        yield check_vendor(named), f"label {VENDOR_LABEL}"
        return
    ray_type = snapshot.labels.get(TYPE_LABEL, "")
    for family in families.values():
        if family.ray and any(ray_type.startswith(begin) for begin in family.ray.accelerator_types):
            yield family.vendor, f"label {TYPE_LABEL}={ray_type}"
        for key in family.kubernetes.labels:
            if _speaks_of(family, key, snapshot.labels.get(key)):
                yield family.vendor, f"label {key}={snapshot.labels[key]}"


def by_pod_resource(snapshot: Snapshot, families: Families) -> Iterator[tuple[str, str]]:
    for family in families.values():
        for resource in family.kubernetes.resources:
            if resource in snapshot.pod_resources:
                yield family.vendor, f"the pod has {resource}"


def by_torch(snapshot: Snapshot, families: Families) -> Iterator[tuple[str, str]]:
    """Torch has to see a device: a package or a build alone may be installed anywhere.

    Devices that tell their maker decide before packages and builds, which only prepare for one.
    """
    named = list(_by_device_name(snapshot, families.values()))
    yield from named or _by_package(snapshot, families.values())


def by_host(snapshot: Snapshot, families: Families) -> Iterator[tuple[str, str]]:
    """Files before commands: a command may be installed where no device is."""
    files = list(_by_file(snapshot, families.values()))
    yield from files or _by_command(snapshot, families.values())


STEPS: tuple[tuple[Step, Finder], ...] = (
    (Step.OPERATOR, by_operator),
    (Step.LABEL, by_label),
    (Step.POD, by_pod_resource),
    (Step.TORCH, by_torch),
    (Step.HOST, by_host),
)


def device_indices(snapshot: Snapshot, family: Family) -> list[int]:
    """Indices of the family's devices that have a file here."""
    if any(other in snapshot.files for other in family.host.not_beside):
        return []
    found = set()
    for pattern in family.host.device_files:
        before, _, after = pattern.partition(INDEX)
        name = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        found |= {int(match[1]) for file in snapshot.files if (match := name.fullmatch(file))}
    return sorted(found)


def _speaks_of(family: Family, key: str, value: str | None) -> bool:
    """A key with the vendor's domain does; any other only if its value names the vendor."""
    if value is None:
        return False
    words = [word for word in (*family.words, *family.chips) if len(word) >= LEAST_WORD]
    return "." in key.partition("/")[0] or any(word in value.lower() for word in words)


def _by_device_name(snapshot: Snapshot, families: Iterable[Family]) -> Iterator[tuple[str, str]]:
    for family in families:
        for name in snapshot.torch_devices.get(family.torch.device or "", ()):
            if any(name.startswith(begin) for begin in family.torch.device_names):
                yield family.vendor, f"torch sees {name!r}"


def _by_package(snapshot: Snapshot, families: Iterable[Family]) -> Iterator[tuple[str, str]]:
    local = snapshot.torch_build.partition("+")[2]
    for family in families:
        if not snapshot.torch_devices.get(family.torch.device or ""):
            continue
        packages = sorted(snapshot.packages.intersection(family.torch.packages))
        tags = [tag for tag in family.torch.build_tags if tag in local]
        if packages:
            yield family.vendor, f"torch sees devices of {packages[0]}"
        elif tags:
            yield family.vendor, f"torch {snapshot.torch_build} sees devices"


def _by_file(snapshot: Snapshot, families: Iterable[Family]) -> Iterator[tuple[str, str]]:
    for family in families:
        if any(other in snapshot.files for other in family.host.not_beside):
            continue
        indices = device_indices(snapshot, family)
        there = [file for file in family.host.control_files if file in snapshot.files]
        if indices:
            yield family.vendor, f"{len(indices)} device files are there"
        elif there:
            yield family.vendor, f"{there[0]} is there"


def _by_command(snapshot: Snapshot, families: Iterable[Family]) -> Iterator[tuple[str, str]]:
    for family in families:
        host = family.host
        if host.cli_is_theirs and host.cli in snapshot.commands:
            yield family.vendor, f"the command {host.cli} is installed"
