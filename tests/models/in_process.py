"""Catalogs, layers and kernels of models that vLLM reads, in the process of the test.

vLLM is imported once for all of them; only the dry run's own process is left out, which
`test_catalog.py` starts.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from actors.experts.catalog import ExpertCatalog, read_catalog
from actors.experts.families import spec_of_catalog
from actors.experts.spec import ExpertSpec
from actors.kernels.slot_kernel import SlotKernel
from actors.kernels.vllm_layer_operator import VllmLayerOperator
from actors.kernels.vllm_layer_store import LayerStore

CPU = torch.device("cpu")
ROWS = 16


def dry_run_here(model: Path, trust_remote_code: bool) -> ExpertCatalog:
    from actors.vllm_layers.dry_run import dry_run

    return dry_run(model, trust_remote_code=trust_remote_code)


def catalog_of(model: Path) -> ExpertCatalog:
    return read_catalog(model, dry_run=dry_run_here)


def spec_of(model: Path) -> ExpertSpec:
    return spec_of_catalog(model, catalog_of(model))


@dataclass(frozen=True, slots=True)
class VllmLayers:
    """A kernel of vLLM's own layers, and its store."""

    kernel: SlotKernel
    store: LayerStore


def vllm_layers(spec: ExpertSpec) -> VllmLayers:
    assert spec.catalog is not None
    store = LayerStore(spec.model_path, spec.catalog, CPU)
    operator = VllmLayerOperator(CPU, spec.weight_format, spec.catalog.method)
    return VllmLayers(SlotKernel(spec, operator, store=store, bytes_per_expert=1), store)


@dataclass(frozen=True, slots=True)
class Batch:
    """One call; see `ExpertKernel.compute`."""

    layer: int
    rows: torch.Tensor
    row_index: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor

    def through(self, kernel: SlotKernel, held: list[int] | None = None) -> torch.Tensor:
        """Sums of the assignments to `held`; of all if not given."""
        chosen = torch.ones(len(self.experts), dtype=torch.bool)
        if held is not None:
            chosen = torch.isin(self.experts, torch.tensor(held))
        if not chosen.any():
            return torch.zeros(self.rows.shape)
        return kernel.compute(
            self.layer,
            self.rows,
            self.row_index[chosen],
            self.experts[chosen],
            self.weights[chosen],
        )


def batch_of(spec: ExpertSpec, layer: int) -> Batch:
    ids = torch.rand(ROWS, spec.num_experts).topk(spec.top_k).indices.int().flatten()
    return Batch(
        layer,
        torch.randn(ROWS, spec.hidden_size).bfloat16(),
        torch.arange(ROWS, dtype=torch.int32).repeat_interleave(spec.top_k),
        ids,
        torch.rand(len(ids)) + 0.1,
    )


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Relative, of all values together."""
    return float((one - other).norm() / one.norm())
