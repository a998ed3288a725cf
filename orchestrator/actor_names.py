"""Ray names of a mesh's actors: what a process is found by, whoever started it. Pure."""

from typing import NamedTuple

from orchestrator.control.lifecycle import Kind


class ActorName(NamedTuple):
    """generation: counts the processes started for the place `id`."""

    kind: Kind
    id: str
    generation: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}/{self.generation}"

    @property
    def socket(self) -> str:
        """File name of its Unix socket: two generations may live side by side for a moment."""
        return f"{self.id}.{self.generation}"


def parse_name(text: str) -> ActorName | None:
    """The inverse of `str`; None for actors that are no component of a mesh."""
    kind, _, rest = text.partition("/")
    id, _, generation = rest.rpartition("/")
    if kind not in set(Kind) or not id or not generation.isdigit():
        return None
    return ActorName(Kind(kind), id, int(generation))
