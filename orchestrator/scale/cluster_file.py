"""A cluster on paper: what `expertmesh plan --cluster FILE` reads.

Figures of chips come from the catalogue, the lower one where sources disagree; what the catalogue
does not know has to be assumed in the file. Everything assumed is listed in the report.
"""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from orchestrator.config.fields import ByteSize, Count, PositiveFloat, Section
from orchestrator.errors import UserError

Part = Annotated[float, Field(gt=0, le=1)]


class Assumed(Section):
    """Figures of a package that no claim of the catalogue gives, or that are not believed."""

    memory: ByteSize | None = None
    """Of a package, such as `64GB`."""
    bandwidth: ByteSize | None = None
    """Bytes a second of its memory, such as `1TB`."""
    tflops: PositiveFloat | None = None
    """Of its matrix units, in the format it computes experts in."""
    source: str
    """Why so much."""


class PaperPool(Section):
    """Packages of one kind."""

    vendor: str
    """In the catalogue."""
    chip: str | None = None
    """In the catalogue; unset: everything is assumed."""
    packages: Count
    """How many there are."""
    packages_per_node: Count = 8
    """How many share a machine, its network and its failure."""
    weights: str = "fp4"
    """Format in which experts are kept there: `fp4` or `int8`, each a checkpoint of its own."""
    math: str | None = None
    """Format of the products, whose claim is used; unset: bf16's."""
    engines: bool = False
    """Engines run on the same packages; their share of memory is left to them."""
    cold: bool = False
    """It gets only experts that the other pools have no memory for, those asked for least."""
    assume: Assumed | None = None
    price_per_hour: PositiveFloat | None = None
    """Of one package, in whatever currency; unset: no price is computed."""


class Assumptions(Section):
    """What no catalogue says, for all pools."""

    bandwidth_used: Part = 0.6
    """Part of the claimed memory bandwidth that kernels get; Huawei's own simulator counts on 0.96
    of 1.6 TB/s for an A2, FlagPerf measured 1.39 of 1.8 TB/s on a MetaX C550."""
    compute_used: Part = 0.6
    """Part of the claimed operations a second; Huawei's simulator counts on 247.7 of 376 TFLOPS."""
    engine_memory: Part = 0.35
    """Part of the memory of packages with engines that attention, KV cache and activations take."""
    shard_memory: Part = 0.9
    """Part of what is left that experts may take, as shards do."""
    call_us: PositiveFloat = 30.0
    """Constant cost of a kernel call on an accelerator, the host's part included."""
    cpu_call_us: PositiveFloat = 50.0
    """The same on a CPU."""
    network_gbit_per_s: PositiveFloat = 400.0
    """Of each node, one way; one CX7 port as in DeepEP's figures."""
    network_used: Part = 0.8
    """Part of that which TCP or RDMA between hosts gets."""
    link_us: PositiveFloat = 25.0
    """One way between processes of two nodes, for a small message."""
    local_link_us: PositiveFloat = 5.0
    """The same within a node, over shared memory."""
    copy_us: PositiveFloat = 10.0
    """Start of a copy between host and device, with the wait for it."""
    copy_gb_per_s: PositiveFloat = 50.0
    """Such a copy's speed: PCIe 5 x16, less its protocol."""
    ipc_us: PositiveFloat = 8.0
    """Start of a copy between devices of a node by IPC handle."""
    ipc_gb_per_s: PositiveFloat = 200.0
    """Such a copy's speed, half of what NVLink, HCCS and UB claim one way."""
    row_bytes_out: PositiveFloat = 2.0
    """Bytes for each value of a row on its way to a shard: bf16."""
    row_bytes_back: PositiveFloat = 4.0
    """The same on its way back: fp32 partial sums."""
    load_spread: Annotated[float, Field(ge=0)] = 0.5
    """Spread of experts' load: standard deviation of its logarithm. 0: all alike."""
    load_gb_per_s: PositiveFloat = 2.0
    """At which a node reads experts from storage after a loss."""


class PaperCluster(Section):
    """The whole file."""

    name: str
    tokens: Count = 2048
    """Tokens of one step of all engines together, one for each request that decodes."""
    min_copies: Count = 1
    """Nodes every expert lives on."""
    pools: Annotated[dict[str, PaperPool], Field(min_length=1)]
    assumptions: Assumptions = Assumptions()


def read_cluster(path: Path) -> PaperCluster:
    """Raises UserError, one line, where the file cannot be read or does not fit."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return PaperCluster.model_validate(content)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cluster file {path} cannot be read", str(error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {key}: {first['msg']}", "see examples/clusters/") from error
