"""The catalogue of device families: `data/VENDOR.yaml`, one file each.

Which vendors there are follows from the files' names, so a config is checked without reading them.
"""

import difflib
from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from actors.devices.family import Chip, Family

FOLDER = Path(__file__).parent / "data"


class UnknownDevice(ValueError):
    """A name that is not in the catalogue; the text says which is nearest."""


@cache
def vendors() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


@cache
def load_catalogue() -> dict[str, Family]:
    """Vendor -> family, of all files."""
    return {vendor: load_family(FOLDER / f"{vendor}.yaml") for vendor in vendors()}


def load_family(file: Path) -> Family:
    """Raises ValueError naming the file: it does not fit `Family`."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        family = Family.model_validate(yaml.load(file.read_text(encoding="utf-8"), loader))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {error}") from error
    if family.vendor != file.stem:
        raise ValueError(f"{file}: vendor {family.vendor!r} is not the file's name")
    return family


def find_family(vendor: str) -> Family:
    """Raises UnknownDevice, which names the nearest vendor."""
    check_vendor(vendor)
    return load_catalogue()[vendor]


def check_vendor(vendor: str) -> str:
    """`vendor`, if the catalogue has it.

    Raises:
        UnknownDevice: names the nearest one, by vendor's name, alias or chip.
    """
    if vendor in vendors():
        return vendor
    near = nearest_vendor(vendor)
    hint = f"did you mean {near}?" if near else f"the catalogue has {', '.join(vendors())}"
    raise UnknownDevice(f"unknown vendor {vendor!r}: {hint}")


def nearest_vendor(word: str) -> str | None:
    """The vendor that `word` is another name of, or nearly is; None: nothing is near."""
    called = {
        name: family.vendor
        for family in load_catalogue().values()
        for name in (*family.words, *(chip.lower() for chip in family.chips))
    }
    near = difflib.get_close_matches(word.lower(), called, n=1, cutoff=0.6)
    return called[near[0]] if near else None


def find_chip(vendor: str, chip: str) -> Chip:
    """Raises UnknownDevice, which names the nearest chip of that vendor."""
    chips = find_family(vendor).chips
    if chip in chips:
        return chips[chip]
    near = difflib.get_close_matches(chip.lower(), chips, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"{vendor} has {', '.join(chips) or 'none'}"
    raise UnknownDevice(f"unknown chip {chip!r} of {vendor}: {hint}")


def family_of_resource(resource: str) -> Family | None:
    """The family whose devices a Kubernetes resource counts."""
    for family in load_catalogue().values():
        if resource in family.kubernetes.resources:
            return family
    return None
