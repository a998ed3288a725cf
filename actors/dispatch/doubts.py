"""Answers that are infinite or no numbers: whose fault they are.

A shard is doubted where a row that came in well leaves it without a finite sum. Another replica
computes the same rows: if its sums are finite, the first shard computes wrongly, gets no rows from
here that others can take, and is reported to the controller, which replaces it. If not, the fault
is the input's and the answer is passed on; so it is where nobody else holds the experts, or where
the rows themselves came in without a number.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from actors.dispatch.device_rows import are_finite
from actors.dispatch.flight import Answers, Flight
from actors.dispatch.shard_links import ShardLinks
from actors.wire.link import ClientLink

log = logging.getLogger(__name__)

Piece = tuple[Flight, int]
ChooseAnswers = Callable[[Flight], list[Piece] | None]
"""`dispatcher.chosen_answers`."""


@dataclass(slots=True, eq=False)
class Doubt:
    """One shard's answer, and the flight in which others compute its rows."""

    link: ClientLink
    cover: Flight


@dataclass(slots=True, eq=False)
class Doubts:
    """Of one call."""

    open: list[Doubt] = field(default_factory=list)
    settled: set[Flight] = field(default_factory=set)
    """Covers whose answers are taken as they are."""

    def judge(
        self, layer: int, links: ShardLinks, result: torch.Tensor, choose: ChooseAnswers
    ) -> None:
        """The covers are answered: say which shards were wrong."""
        for doubt in self.open:
            chosen = choose(doubt.cover)
            if chosen is not None and is_finite(chosen, result):
                log.error(
                    "%s answered layer %d without numbers, another replica with: it is reported, "
                    "and gets no rows that others can take", doubt.link.address, layer,
                )  # fmt: skip
                links.distrust(doubt.link)
        self.open.clear()

    def suspects(
        self, chosen: Sequence[Piece], rows: torch.Tensor, result: torch.Tensor
    ) -> list[Piece]:
        """Of the answers that were added up, those to doubt. rows: of the call."""
        well = are_finite(rows).all(dim=1).to(result.device)
        return [
            (flight, shard)
            for flight, shard in chosen
            if flight not in self.settled
            and shard not in flight.cover  # its rows are with others already, with more than these
            and bool((~_finite_rows([(flight, shard)], result) & well).any())
        ]

    def add(self, flight: Flight, shard: int) -> None:
        """Its rows are on their way to others; its own answer counts no more."""
        posted, cover = flight.posted(shard), flight.cover[shard]
        self.open.append(Doubt(posted.link, cover))
        self.settled.add(cover)
        posted.free()
        flight.mark_lost(shard)


def is_finite(chosen: Sequence[Piece], result: torch.Tensor) -> bool:
    return bool(_finite_rows(chosen, result).all())


def _finite_rows(chosen: Sequence[Piece], result: torch.Tensor) -> torch.Tensor:
    """bool [T]: rows with finite sums of these answers, or with none. result: like the sums."""
    sums = torch.empty_like(result)
    Answers.of(chosen).add_up(sums)
    return are_finite(sums).all(dim=1)
