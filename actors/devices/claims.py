"""Claims of the catalogue beside what a device was measured to do. Pure."""

from collections.abc import Mapping

from actors.devices.family import Chip, Claim, Family

LEAST, MOST = 0.3, 1.05
"""Measured over claimed. Less: the claim is of something else, or the device is not well. More: the
claim is wrong, or another chip's."""


def chip_called(family: Family, device_name: str) -> Chip | None:
    """The family's chip whose key is in what the driver calls a device, the longest such key."""
    words = device_name.lower().replace(" ", "").replace("_", "-")
    there = [key for key in family.chips if key in words]
    return family.chips[max(there, key=len)] if there else None


def claims_of(chip: Chip) -> dict[str, Claim]:
    """What can be measured of a device, by the names that `kernels.device_speed` uses."""
    claims = {"memory": chip.memory, "bandwidth": chip.bandwidth, "bf16": chip.bf16}
    return {name: claim for name, claim in claims.items() if claim is not None}


def doubtful(chip: Chip, measured: Mapping[str, float]) -> list[str]:
    """One line for each claim that a measurement of one device does not bear out.

    measured: bytes, bytes a second, operations a second, by the names of `claims_of`.
    """
    parts = chip.devices_per_package or 1
    found = []
    for name, claim in claims_of(chip).items():
        if name not in measured:
            continue
        low, high = _range(claim)
        ratios = measured[name] * parts / high, measured[name] * parts / low
        if ratios[1] < LEAST or ratios[0] > MOST:
            nearest = ratios[1] if ratios[1] < LEAST else ratios[0]
            found.append(
                f"{chip.name}: measured {name} is {nearest:.2f} of the {claim.text} that "
                f"{claim.source} claims"
            )
    return found


def _range(claim: Claim) -> tuple[float, float]:
    numbers = claim.value if isinstance(claim.value, tuple) else (claim.value, claim.value)
    scale = claim.lowest / numbers[0]
    return numbers[0] * scale, numbers[1] * scale
