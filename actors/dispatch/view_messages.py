"""Heads of the messages between the directory and its subscribers: who says what.

Each `kind` of message is one class; `actors.dispatch.view_coding` makes views of them and back.
"""

from dataclasses import asdict
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from actors.dispatch.report import BOUNDS_S, DispatchReport, DurationSums, ShardReport
from actors.dispatch.traffic_counts import MAX_KEYS, TrafficKey, TrafficWindow
from actors.wire.frame import FrameError
from actors.wire.messages import Array, Head, Part, unpack_arrays

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
    quiet_s: Seconds = 0.0


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


class TrafficPart(Part):
    """See `TrafficKey`; tokens: that were computed for it."""

    kind: Annotated[str, Field(max_length=64)]
    content: Annotated[str, Field(max_length=64)]
    tokens: Count


class TrafficHead(Head):
    """What experts were asked for since the last such message; see `TrafficWindow`. The body has
    the assignments, int32 [N, L, E]."""

    kind: Literal["traffic"] = "traffic"
    layers: tuple[Count, ...]
    keys: Annotated[tuple[TrafficPart, ...], Field(max_length=MAX_KEYS + 1)]

    @classmethod
    def of(cls, window: TrafficWindow) -> "tuple[TrafficHead, list[Array]]":
        """Head and arrays."""
        told = zip(window.keys, window.tokens.tolist(), strict=True)
        keys = tuple(TrafficPart(kind=k.kind, content=k.content, tokens=n) for k, n in told)
        most = np.iinfo(np.int32).max
        return cls(layers=window.layers, keys=keys), [np.minimum(window.counts, most).astype("i4")]

    def window(self, body: bytes) -> TrafficWindow:
        """Raises FrameError: the body has other counts."""
        arrays = unpack_arrays(self, body)
        rows = (len(self.keys), len(self.layers))
        if len(arrays) != 1 or arrays[0].dtype != np.int32 or arrays[0].shape[:-1] != rows:
            raise FrameError(f"{self.kind} message: its array is not of {rows} rows of experts")
        keys = tuple(TrafficKey(part.kind, part.content) for part in self.keys)
        tokens = np.array([part.tokens for part in self.keys], np.int64)
        return TrafficWindow(self.layers, keys, tokens, arrays[0].astype(np.int64))


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
FromSubscriber = HelloHead | AdoptedHead | ReportHead | TrafficHead
FROM_SUBSCRIBER: TypeAdapter[FromSubscriber] = TypeAdapter(
    Annotated[FromSubscriber, Field(discriminator="kind")]
)
