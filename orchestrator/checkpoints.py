"""Whether all nodes have the same checkpoint at the model's path. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.errors import UserError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What somebody holds. who: and where. fingerprint: of the mesh's checkpoint, as it lies there.
    variant: of the pool's own that stands in for it, "" where the pool has none."""

    who: str
    fingerprint: str
    pool: str = ""
    variant: str = ""


def check_shard(
    new: Checkpoint, others: Iterable[Checkpoint], own: Checkpoint, base: str, variant: str
) -> None:
    """Whether a shard may serve beside the others. own: of the controller. base, variant: where the
    mesh's checkpoint lies on each node, and that of the shard's pool.

    Raises:
        UserError: its checkpoint is another than the controller's, or its pool's own is another
            than that of the pool's other shards.
    """
    check_same(base, [(one.who, one.fingerprint) for one in (own, new)])
    of_pool = [one for one in others if one.pool == new.pool]
    check_same(variant, [(one.who, one.variant) for one in (new, *of_pool)])


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
