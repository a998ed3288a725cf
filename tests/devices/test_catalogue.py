"""The catalogue's files: complete, strict, and honest about what is unknown."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from actors.devices.catalogue import (
    UnknownDevice,
    check_vendor,
    family_of_resource,
    find_chip,
    find_family,
    load_catalogue,
    load_family,
    vendors,
)
from actors.devices.family import Chip, Claim, Family

VENDORS = {
    "amd", "ascend", "biren", "cambricon", "cpu", "enflame", "hygon", "iluvatar", "kunlunxin",
    "metax", "moore-threads", "nvidia",
}  # fmt: skip

RESOURCES = {
    "nvidia.com/gpu": "nvidia",
    "huawei.com/Ascend910": "ascend",
    "huawei.com/npu": "ascend",
    "cambricon.com/mlu": "cambricon",
    "cambricon.com/mlu590": "cambricon",
    "hygon.com/dcu": "hygon",
    "mthreads.com/gpu": "moore-threads",
    "metax-tech.com/gpu": "metax",
    "kunlunxin.com/xpu": "kunlunxin",
    "iluvatar.com/gpu": "iluvatar",
    "birentech.com/gpu": "biren",
    "enflame.com/gcu": "enflame",
    "amd.com/gpu": "amd",
}


def claims_of(chip: Chip) -> list[Claim]:
    fields = ("memory", "bandwidth", "measured_bandwidth", "bf16", "link")
    single = [claim for name in fields if (claim := getattr(chip, name)) is not None]
    return [*single, *chip.low_precision.values()]


def test_there_is_a_file_for_every_vendor() -> None:
    assert set(vendors()) == VENDORS == set(load_catalogue())


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_every_claim_says_where_it_comes_from(vendor: str) -> None:
    family = find_family(vendor)
    assert family.sources
    for chip in family.chips.values():
        for claim in claims_of(chip):
            assert claim.source
            assert claim.lowest > 0


@pytest.mark.parametrize(("resource", "vendor"), RESOURCES.items())
def test_kubernetes_resources_name_their_family(resource: str, vendor: str) -> None:
    family = family_of_resource(resource)
    assert family is not None
    assert family.vendor == vendor


def test_no_kubernetes_resource_belongs_to_two_families() -> None:
    every = [name for family in load_catalogue().values() for name in family.kubernetes.resources]
    assert len(every) == len(set(every))
    assert family_of_resource("example.com/gpu") is None


def test_ray_counts_the_devices_that_the_catalogue_says_it_does() -> None:
    from ray._private.accelerators import get_all_accelerator_managers

    managers = {
        (manager.get_resource_name(), manager.get_visible_accelerator_ids_env_var())
        for manager in get_all_accelerator_managers()
    }
    for family in load_catalogue().values():
        if family.ray is not None and family.ray.manager:
            assert (family.ray.resource, family.visibility_variable) in managers, family.vendor


def test_vendors_without_a_manager_have_resources_of_their_own() -> None:
    from ray._private.accelerators import get_all_accelerator_resource_names

    own = [f.ray.resource for f in load_catalogue().values() if f.ray and not f.ray.manager]
    assert len(own) == len(set(own))
    assert not set(own) & get_all_accelerator_resource_names()


def test_an_ascend_910c_is_two_devices() -> None:
    chip = find_chip("ascend", "910c")
    assert chip.devices_per_package == 2
    assert chip.memory is not None
    assert chip.memory.lowest == 128e9


def test_what_nobody_has_said_is_unknown() -> None:
    assert find_chip("cambricon", "mlu590").bandwidth is None
    assert claims_of(find_chip("biren", "br106")) == []


@pytest.mark.parametrize(
    ("word", "vendor"),
    [("nvidai", "nvidia"), ("huawei", "ascend"), ("910b", "ascend"), ("musa", "moore-threads"),
     ("Cambricom", "cambricon"), ("dcu", "hygon"), ("rocm", "amd")],
)  # fmt: skip
def test_an_unknown_vendor_is_told_the_nearest(word: str, vendor: str) -> None:
    with pytest.raises(UnknownDevice, match=f"unknown vendor '{word}': did you mean {vendor}"):
        check_vendor(word)


def test_a_vendor_near_none_is_told_all() -> None:
    with pytest.raises(UnknownDevice, match="the catalogue has amd, ascend, biren"):
        check_vendor("zzzzzz")


def test_an_unknown_chip_is_told_the_nearest() -> None:
    with pytest.raises(UnknownDevice, match="unknown chip 'h2000' of nvidia: did you mean h200"):
        find_chip("nvidia", "h2000")


def test_claims_without_a_source_or_of_an_unknown_unit_are_refused() -> None:
    good = {"value": 1, "unit": "GB", "grade": "media", "source": "press", "date": "2026-11"}
    assert Claim.model_validate(good).lowest == 1e9
    assert Claim.model_validate(good | {"value": (2, 3)}).text == "2-3 GB"
    for bad in ({"unit": "PB"}, {"grade": "sure"}, {"date": "today"}, {"value": 0},
                {"value": (3, 2)}, {"extra": 1}):  # fmt: skip
        with pytest.raises(ValidationError):
            Claim.model_validate(good | bad)


def test_a_file_has_its_vendors_name(tmp_path: Path) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text("vendor: other\nname: Acme\n")
    with pytest.raises(ValueError, match="'other' is not the file's name"):
        load_family(file)
    file.write_text("vendor: acme\nname: Acme\ncolour: red\n")
    with pytest.raises(ValueError, match=r"acme\.yaml: .*\ncolour"):
        load_family(file)


def test_families_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Family(vendor="acme", name="Acme").name = "Other"  # type: ignore[misc]
