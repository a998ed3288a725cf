"""A batch of calls whose sums are on their way: where they go, and what they are of."""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.answers import in_place, result_header, write_sums
from actors.kernels.base import StartedCall
from actors.shard.merging import MergedCalls
from actors.wire.body import Floats
from actors.wire.frame import Header
from actors.wire.server import FrameServer, Request


@dataclass(frozen=True, slots=True, eq=False)
class Rooms:
    """Where the sums of a batch go. out: [R, H] that the kernel writes, which is a room itself if
    there is one call, of fp32 sums."""

    answers: list[Header]
    rooms: list[memoryview | None]
    out: Floats
    hand_out: bool

    @classmethod
    def of(cls, frames: FrameServer, group: Sequence[Request], batch: MergedCalls) -> "Rooms":
        """For the calls of `group`, which were merged into `batch`."""
        answers = [result_header(request.header) for request in group]
        rooms = [
            frames.room(request, answer.body_bytes)
            for request, answer in zip(group, answers, strict=True)
        ]
        # One call's fp32 sums are written in place; others are handed out from one array.
        out = in_place(answers[0], rooms[0]) if len(group) == 1 else None
        return cls(answers, rooms, batch.sums if out is None else out, hand_out=out is None)

    def filled(self) -> None:
        """`out` has the sums."""
        first = 0
        for answer, room in zip(self.answers, self.rooms, strict=True):
            if self.hand_out and room is not None:
                write_sums(self.out[first : first + answer.rows], answer, room)
            first += answer.rows

    def answers_after(self, compute_s: float) -> list[Header]:
        return [answer._replace(compute_us=int(compute_s * 1e6)) for answer in self.answers]


@dataclass(frozen=True, slots=True, eq=False)
class UnderWay:
    """A batch that was started."""

    layer: int
    group: list[Request]
    batch: MergedCalls
    rooms: Rooms
    call: StartedCall
    since_s: float
