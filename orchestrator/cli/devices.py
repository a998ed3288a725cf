"""`expertmesh devices`: the catalogue of device families, and whose devices this machine has."""

from dataclasses import asdict
from typing import Any

from rich.console import Console

from actors.device import free_memory_bytes
from actors.devices.catalogue import UnknownDevice, find_family, load_catalogue
from actors.devices.claims import chip_called, doubtful
from actors.devices.detect import CPU, AmbiguousDevices, detect, device_indices
from actors.devices.family import Chip, Claim, Family
from actors.devices.snapshot import take_snapshot
from orchestrator.cli.tables import console_for, print_json, table
from orchestrator.config.bytesize import format_bytes
from orchestrator.errors import UserError

UNKNOWN = "?"


def devices(
    vendor: str | None, as_json: bool, measure: bool = False, console: Console | None = None
) -> int:
    """Print every family, or the chips of one, and whose devices are here. measure: what the first
    of them does, beside what is claimed of it."""
    try:
        families = load_catalogue() if vendor is None else {vendor: find_family(vendor)}
    except UnknownDevice as error:
        raise UserError(str(error)) from error
    here = found_here()
    if measure and here["vendor"] is not None:
        here["measured"] = measured_here(here["vendor"])
    if as_json:
        listed = {name: family.model_dump(mode="json") for name, family in families.items()}
        print_json({"here": here, "families": listed})
        return 0
    console = console_for(console)
    if vendor is None:
        console.print(table(_FAMILY_COLUMNS, map(_family_row, families.values())))
    else:
        _show_family(families[vendor], console)
    console.print(f"this machine: {here['vendor']} ({here['evidence']})", markup=False)
    if "measured" in here:
        _show_measured(here["measured"], console)
    return 0


def found_here() -> dict[str, Any]:
    """Vendor, what told it, and indices of the devices, where they have files."""
    families = load_catalogue()
    snapshot = take_snapshot(families.values())
    try:
        found = detect(snapshot, families)
    except AmbiguousDevices as error:
        return {"vendor": None, "step": None, "evidence": str(error), "devices": []}
    except UnknownDevice as error:
        raise UserError(str(error)) from error
    return asdict(found) | {"devices": device_indices(snapshot, families[found.vendor])}


def measured_here(vendor: str) -> dict[str, Any]:
    """Speed and free memory of the first device, and what makes claims of its chip doubtful."""
    import torch

    from actors.kernels.cost_cache import device_name
    from actors.kernels.device_speed import measure_speed

    family = find_family(vendor)
    device = torch.device(family.torch.device or CPU)
    try:
        speed, free = measure_speed(device), free_memory_bytes(str(device))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"torch cannot use the {vendor} device here: {error}") from error
    name = device_name(device)
    chip = chip_called(family, name)
    figures = {"bandwidth": speed.stream_bytes_per_s, "bf16": speed.bf16_per_s}
    return {
        "device": name,
        "free_bytes": free,
        **asdict(speed),
        "chip": chip.name if chip else None,
        "doubtful": doubtful(chip, figures) if chip else [],
    }


def _show_measured(measured: dict[str, Any], console: Console) -> None:
    console.print(
        f"{measured['device']}: {measured['stream_bytes_per_s'] / 1e9:.1f} GB/s of memory, "
        f"{measured['bf16_per_s'] / 1e12:.2f} TFLOPS in bf16, "
        f"{format_bytes(measured['free_bytes'])} free for experts",
        markup=False,
    )
    if measured["to_device_s"] is not None:
        for way in ("to", "from"):
            console.print(
                f"copies {way} it: {measured[f'{way}_device_s'] * 1e6:.0f} µs, "
                f"{measured[f'{way}_device_bytes_per_s'] / 1e9:.1f} GB/s"
            )
    for line in measured["doubtful"]:
        console.print(f"[yellow]doubtful:[/] {line}")


_FAMILY_COLUMNS = (
    "VENDOR", "NAME", "KUBERNETES", "RAY", "TORCH", "VARIABLE", "COLLECTIVES", "VLLM", "CLI",
)  # fmt: skip


def _family_row(family: Family) -> tuple[str, ...]:
    ray = family.ray
    words = (
        family.kubernetes.resource,
        ray and ray.resource + ("" if ray.manager else " (custom)"),
        family.torch.device,
        family.visibility_variable,
        family.collectives,
        family.vllm_plugin,
        family.host.cli,
    )
    known = "-" if family.vendor == "cpu" else UNKNOWN
    return (family.vendor, family.name, *(word or known for word in words))


_CHIP_COLUMNS = ("CHIP", "DEVICES", "MEMORY", "BANDWIDTH", "BF16", "LINK", "FORMATS", "GRADE")


def _show_family(family: Family, console: Console) -> None:
    console.print(table(_FAMILY_COLUMNS, [_family_row(family)]))
    if family.chips:
        console.print()
        console.print(table(_CHIP_COLUMNS, map(_chip_row, family.chips.values())))
        console.print(
            "figures are claims of others, per package: a mesh counts on what it measures"
        )


def _chip_row(chip: Chip) -> tuple[str, ...]:
    claims = (chip.memory, chip.bandwidth, chip.bf16, chip.link)
    grades = sorted({claim.grade for claim in claims if claim})
    return (
        chip.name,
        UNKNOWN if chip.devices_per_package is None else str(chip.devices_per_package),
        *map(_text, claims),
        UNKNOWN if chip.formats is None else " ".join(chip.formats),
        ", ".join(grades) or UNKNOWN,
    )


def _text(claim: Claim | None) -> str:
    return UNKNOWN if claim is None else claim.text
