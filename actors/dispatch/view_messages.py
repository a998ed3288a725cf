"""Heads of the messages between the directory and its subscribers: who says what.

Each `kind` of message is one class; `actors.dispatch.view_coding` makes views of them and back.
"""

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from actors.dispatch.report import BOUNDS_S, DispatchReport, DurationSums, ShardReport
from actors.wire.messages import Head, Part

Count = Annotated[int, Field(ge=0, lt=1 << 64)]
Seconds = Annotated[float, Field(ge=0)]
Version = tuple[Count, Count]
RANGES = len(BOUNDS_S) + 1


class HelloHead(Head):
    """The first message of a subscriber. role: "engine", "router" or "external"."""

    kind: Literal["hello"] = "hello"
    role: Annotated[str, Field(max_length=64)]
    pid: Count
    node: Annotated[str, Field(max_length=256)]


class AdoptedHead(Head):
    """A subscriber's dispatchers follow this version."""

    kind: Literal["adopted"] = "adopted"
    version: Version


class DurationsPart(Part):
    """See `DurationSums`."""

    counts: Annotated[tuple[Count, ...], Field(min_length=RANGES, max_length=RANGES)]
    sum_s: Seconds


class ShardPart(Part):
    """See `ShardReport`."""

    id: Annotated[str, Field(max_length=256)]
    incarnation: Count
    scale: Seconds
    is_late: bool
    late: Count
    refused: Count
    lost: Count
    is_wrong: bool
    round_trip_s: Seconds = 0.0
    bytes_per_s: Annotated[float, Field(ge=0)] = 0.0


class ReportHead(Head):
    """What a subscriber's dispatchers did so far; see `DispatchReport`."""

    kind: Literal["report"] = "report"
    calls: Count
    starved: Count
    resent: Count
    failed: Count
    sent: DurationsPart
    waited: DurationsPart
    served: DurationsPart
    shards: tuple[ShardPart, ...]

    @classmethod
    def of(cls, report: DispatchReport) -> "ReportHead":
        return cls.model_validate(asdict(report))

    def report(self) -> DispatchReport:
        def sums(part: DurationsPart) -> DurationSums:
            return DurationSums(part.counts, part.sum_s)

        return DispatchReport(
            self.calls,
            self.starved,
            self.resent,
            self.failed,
            sums(self.sent),
            sums(self.waited),
            sums(self.served),
            tuple(ShardReport(**shard.model_dump()) for shard in self.shards),
        )


class PeerPart(Part):
    """See `Peer`; cost: call_s, read_s, row_s."""

    id: str
    incarnation: Count
    node: str
    addresses: tuple[str, ...]
    cost: tuple[Seconds, Seconds, Annotated[float, Field(gt=0)]]
    weight: Annotated[float, Field(ge=0)]


class PeersPart(Part):
    """order: all ids, None where it is the base's. changed: peers that the base has not or has
    otherwise."""

    order: tuple[str, ...] | None
    changed: tuple[PeerPart, ...]


class EpochPart(Part):
    """shape: [layers, shards, slots]. whole: arrays are all experts, shares; otherwise what differs
    from the base's, placed on the new shape by the ids of the shards: indices and experts, indices
    and shares."""

    number: Count
    num_experts: Annotated[int, Field(ge=1)]
    layers: tuple[Count, ...]
    shape: tuple[Count, Count, Count]
    whole: bool


class SettingsPart(Part):
    """The fields of `MeshView` that are plain values."""

    mesh: str
    model_path: str
    fingerprint: str
    router_mode: str
    soft_deadline_s: Seconds
    call_deadline_s: Seconds
    expert_wait_s: Seconds
    rows_between_nodes: Literal["BF16", "FP8"]
    device_ipc: bool


class ViewHead(Head):
    """A view. base: what the rest builds on, None where nothing is left out.

    shards, routers, epoch: None where they are the base's.
    """

    kind: Literal["view"] = "view"
    schema_version: Literal[5] = 5
    version: Version
    base: Version | None
    settings: SettingsPart
    shards: PeersPart | None
    routers: PeersPart | None
    epoch: EpochPart | None


FROM_DIRECTORY: TypeAdapter[ViewHead] = TypeAdapter(ViewHead)
FromSubscriber = HelloHead | AdoptedHead | ReportHead
FROM_SUBSCRIBER: TypeAdapter[FromSubscriber] = TypeAdapter(
    Annotated[FromSubscriber, Field(discriminator="kind")]
)
