"""Device pools: the shards of a mesh, and how many replicas of experts they may hold."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from actors.devices.catalogue import check_vendor, find_family
from orchestrator.config.fields import ByteSize, ConfigPath, Count, PositiveFloat, Section

CPU_VENDOR = "cpu"


class PoolConfig(Section):
    """Shards on devices of one kind; one shard is one Ray actor on one device."""

    vendor: Annotated[str, AfterValidator(check_vendor)]
    """Who made the device: `nvidia`, `ascend`, `cambricon`, ...; `cpu` for a plain CPU.
    `expertmesh devices` lists them."""
    device: Annotated[str, StringConstraints(pattern=r"^[a-z]+(:\d+)?$")] = "cpu"
    """Torch device a shard computes on: `cpu`, `cuda`, `npu`, or one device such as `cuda:0`."""
    shards: Count = 1
    """Number of shards."""
    spares: Annotated[int, Field(ge=0)] = 0
    """Further shards that are started and hold nothing: they load at once what a lost shard held
    alone, where the others have no room."""
    max_shards: Annotated[int, Field(ge=0)] = 0
    """Where greater than `shards`, the pool grows to so many while its shards are busy and shrinks
    to `shards` when they are not; 0: it keeps its size."""
    threads: Count = 1
    """CPU threads of each shard's kernels."""
    kernel: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")] | None = None
    """Kernel of these shards, by the name of its module in `actors/kernels/`, such as `vllm_layers`
    (vLLM's own layer) or `torch_portable`; unset: the best that computes the model exactly."""
    checkpoint: ConfigPath | None = None
    """Checkpoint these shards load in place of `model.path`, the same model in a format that suits
    their devices, such as INT8; its folder and that of `model.path` have to be on their nodes."""
    checkpoint_tolerance: PositiveFloat | None = None
    """How far results of its experts may differ from those of `model.path`'s, as a part of them;
    each shard compares probe rows when it starts and refuses to where they differ by more. FP8
    differs from bf16 by some 0.03."""
    memory: ByteSize | None = None
    """Memory of each shard for expert weights, in bytes or such as `8MiB`; unset: what the device
    has free."""
    speed: PositiveFloat | None = None
    """Speed relative to the other pools, which the plan counts on, given for all pools or for none;
    unset: measured at start."""
    emulated: bool = False
    """Vendor, memory and speed are emulated on this hardware: each shard keeps to `memory` and is
    slowed to `speed` (at most 1.0, which is full speed). Shown as *emulated* everywhere."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Ray resources each shard asks for besides CPUs, which also choose its node: `GPU: 1`,
    `NPU: 1`, or a custom one."""

    domain: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Failure domain of these shards, such as a rack or a power line: copies of an expert are put
    into different ones where there is room. Unset: the node that each shard is on, if another pool
    names a domain."""

    @model_validator(mode="after")
    def _check_hardware(self) -> Self:
        on_cpu = self.device == "cpu"
        if on_cpu and self.vendor != CPU_VENDOR and not self.emulated:
            device = find_family(self.vendor).torch.device or "its torch device"
            raise ValueError(
                f"vendor {self.vendor} on device cpu is an emulation: set emulated: true, "
                f"or device: {device}"
            )
        if not on_cpu and self.vendor == CPU_VENDOR:
            raise ValueError(f"device {self.device} is not a CPU: set vendor to its maker")
        if not on_cpu:
            self._check_torch_device()
        if self.emulated and self.speed is not None and self.speed > 1.0:
            raise ValueError(f"an emulated speed is at most 1.0 (full speed), got {self.speed:g}")
        return self

    @model_validator(mode="after")
    def _check_stand_in(self) -> Self:
        if self.checkpoint is not None and self.checkpoint_tolerance is None:
            raise ValueError(
                "checkpoint stands in for model.path in another format: set checkpoint_tolerance, "
                "how far its results may differ"
            )
        if self.checkpoint is None and self.checkpoint_tolerance is not None:
            raise ValueError("checkpoint_tolerance is of a checkpoint: set checkpoint too")
        return self

    def _check_torch_device(self) -> None:
        own, kind = find_family(self.vendor).torch.device, self.device.partition(":")[0]
        if own is not None and own != kind:
            raise ValueError(f"torch calls {self.vendor}'s devices {own}: set device: {own}")


def check_speeds(pools: dict[str, PoolConfig]) -> dict[str, PoolConfig]:
    """Speeds are relative to each other, so a measured one cannot stand beside a given one."""
    without = [name for name, pool in pools.items() if pool.speed is None]
    if 0 < len(without) < len(pools):
        raise ValueError(f"speed is given for some pools only: give it for {without[0]} too")
    return pools


def _check_slots(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value != "fill":
        raise ValueError(f'expected a number of slots or "fill", got {value!r}')
    return value


class PlacementConfig(Section):
    """How experts are spread over the shards."""

    redundant_slots: Annotated[int | Literal["fill"], BeforeValidator(_check_slots)] = "fill"
    """Replicas beyond one per expert, in each MoE layer; `fill` uses all memory of the shards."""
    min_copies: Count = 1
    """Shards every expert lives on; with 2, the loss of any one shard is not felt."""
