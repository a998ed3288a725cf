"""Whether all nodes have the same checkpoint at the model's path. Pure."""

from collections.abc import Iterable

from orchestrator.errors import UserError


def check_same(path: str, found: Iterable[tuple[str, str]]) -> None:
    """found: who looked at `path` on its node, as (name, fingerprint of what lies there).

    Raises:
        UserError: the fingerprints differ; gives each of them with the first who found it.
    """
    first: dict[str, str] = {}
    for name, fingerprint in found:
        first.setdefault(fingerprint, name)
    if len(first) > 1:
        different = ", ".join(f"{name} has {fingerprint}" for fingerprint, name in first.items())
        raise UserError(
            f"the nodes have different checkpoints at {path}: {different}",
            "copy the same files to every node",
        )
