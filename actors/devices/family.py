"""What is known of one vendor's devices: the shape of a file in `data/`.

Names in software are facts of code that can be read. Figures are claims: each says its unit, how
good its source is, where it was found and when. What nobody has said is None; nothing is derived
from a similar chip. The planner uses what a shard measures, never a claim.
"""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Part(BaseModel):
    """A part of a catalogue's file: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Unit(StrEnum):
    """Units of claims; decimal prefixes but for GiB."""

    GB = "GB"
    GIB = "GiB"
    GB_PER_S = "GB/s"
    TB_PER_S = "TB/s"
    TFLOPS = "TFLOPS"
    TOPS = "TOPS"


FACTOR = {
    Unit.GB: 1e9,
    Unit.GIB: 2.0**30,
    Unit.GB_PER_S: 1e9,
    Unit.TB_PER_S: 1e12,
    Unit.TFLOPS: 1e12,
    Unit.TOPS: 1e12,
}
"""Of each unit, in bytes, bytes a second or operations a second."""


class Grade(StrEnum):
    """How good a claim's source is, best first."""

    MEASURED = "measured"
    """Measured by a third party on the chip."""
    CODE = "code"
    """Read in the vendor's own repository or documentation."""
    VENDOR = "vendor"
    """The vendor's data sheet, or derived from it."""
    MEDIA = "media"
    """Press, forums, aggregators."""


Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Claim(Part):
    """A figure that somebody gives for a chip, per package and dense."""

    value: Annotated[float, Field(gt=0)] | Range
    """A number; two where sources contradict each other or variants differ, lowest first."""
    unit: Unit
    grade: Grade
    source: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}$")]
    """Month in which it was looked up."""
    note: str = ""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if isinstance(self.value, tuple) and self.value[0] >= self.value[1]:
            raise ValueError("a range has its lower end first")
        return self

    @property
    def lowest(self) -> float:
        """The careful figure, in bytes, bytes a second or operations a second."""
        low = self.value[0] if isinstance(self.value, tuple) else self.value
        return low * FACTOR[self.unit]

    @property
    def text(self) -> str:
        numbers = self.value if isinstance(self.value, tuple) else (self.value,)
        return f"{'-'.join(f'{number:g}' for number in numbers)} {self.unit}"


class Chip(Part):
    """One kind of package. Claims count a whole package, of which torch may see several devices."""

    name: str
    devices_per_package: Annotated[int, Field(ge=1)] | None = None
    formats: tuple[str, ...] | None = None
    """Number formats that its matrix units multiply; None: unknown."""
    memory: Claim | None = None
    bandwidth: Claim | None = None
    """Of its memory."""
    measured_bandwidth: Claim | None = None
    """What a third party got of it."""
    bf16: Claim | None = None
    """bf16 or, where its note says so, fp16."""
    low_precision: dict[str, Claim] = Field(default_factory=dict)
    """Number format -> operations a second."""
    link: Claim | None = None
    """To other packages of the same machine or pod, all ports together unless noted."""


class KubernetesNames(Part):
    """Extended resources and labels, as device plugins announce them."""

    resource: str | None = None
    """Whole devices, with the vendor's own plugin."""
    other_resources: tuple[str, ...] = ()
    """The same for other plugins, generations or models; HAMi's shared devices too."""
    labels: tuple[str, ...] = ()
    """Labels on nodes that the vendor's software writes."""

    @property
    def resources(self) -> tuple[str, ...]:
        own = (self.resource,) if self.resource else ()
        return own + self.other_resources


class RayNames(Part):
    """Ray 2.60's word for the devices."""

    resource: str
    """`GPU`, `NPU`, or the custom resource a node announces."""
    manager: bool
    """Ray knows the devices: it counts them, assigns indices and sets the visibility variable."""
    accelerator_types: tuple[str, ...] = ()
    """Beginnings of what Ray's `accelerator_type` says on such nodes."""


class TorchNames(Part):
    """How the devices are called in torch."""

    device: str | None = None
    """Device type; None: unknown. Several vendors call theirs `cuda`."""
    packages: tuple[str, ...] = ()
    """Python packages that bring the device type along."""
    build_tags: tuple[str, ...] = ()
    """What the local version of the vendor's own torch builds has, after the `+`."""
    device_names: tuple[str, ...] = ()
    """How names of devices begin that torch tells."""


class ExporterNames(Part):
    """The vendor's Prometheus exporter."""

    name: str | None = None
    utilization: str | None = None
    memory_used: str | None = None
    temperature: str | None = None


INDEX = "{index}"
"""Stands for a device's index in the names of device files."""


class HostNames(Part):
    """What tells the devices on a machine."""

    device_files: tuple[str, ...] = ()
    """One for each device, with `{index}` for its index."""
    control_files: tuple[str, ...] = ()
    """Files of the driver that are there once."""
    not_beside: tuple[str, ...] = ()
    """Files with which those above are another vendor's."""
    driver_file: str | None = None
    """File whose text changes with the driver's version."""
    cli: str | None = None
    """Management command."""
    cli_is_theirs: bool = True
    """No other vendor's command has that name."""


class Family(Part):
    """The devices of one vendor."""

    vendor: str
    """As `pools.*.vendor` has it; also the file's name."""
    name: str
    aliases: tuple[str, ...] = ()
    """Other words people use for it, product lines too."""
    kubernetes: KubernetesNames = KubernetesNames()
    ray: RayNames | None = None
    """None: plain CPUs, which every node has."""
    visibility_variable: str | None = None
    """Environment variable with the indices that a process sees."""
    torch: TorchNames = TorchNames()
    collectives: str | None = None
    """Collective library. The mesh needs none."""
    vllm_plugin: str | None = None
    """What makes vLLM run on it; None: nothing known."""
    exporter: ExporterNames = ExporterNames()
    host: HostNames = HostNames()
    sources: tuple[str, ...] = ()
    """Where the names come from."""
    chips: dict[str, Chip] = Field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """Everything the family is called."""
        return (self.vendor, self.name.lower(), *self.aliases)
