"""What checkpoints of compressed-tensors say of their weights."""

from collections.abc import Mapping
from typing import Any

from actors.experts.formats.base import Quantisation

METHOD = "compressed-tensors"
ORDERS = (None, False, "static", "weight")
"""Values of `actorder` that need no table of columns."""


def other_weights(quantisation: Quantisation, wanted: Mapping[str, tuple[Any, ...]]) -> str | None:
    """The first entry of a group's `weights` that has none of the `wanted` values, in one phrase.

    What several formats want alike comes first: the first format's phrase is the one shown.
    """
    for name, group in (quantisation.get("config_groups") or {}).items():
        weights = group.get("weights") or {}
        for key, values in wanted.items():
            if weights.get(key) not in values:
                return f"{METHOD} with {key} {weights.get(key)} in {name} is not supported"
    return None
