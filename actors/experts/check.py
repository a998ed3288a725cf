"""Is every expert of a checkpoint there, in the right shape and format? From headers alone.

Measured on one core: 3 ms for 4 layers of 64 experts in MXFP4 (1,536 tensors), 0.4 s for 61 layers
of 384 (140,544 tensors), headers being parsed by then (3 ms, 1 s).
"""

from actors.experts.families import find_layout
from actors.experts.headers import TensorIndex, read_tensor_index
from actors.experts.layouts import Source
from actors.experts.refusal import ModelRefused
from actors.experts.spec import ExpertSpec


def check_checkpoint(spec: ExpertSpec) -> None:
    """ModelRefused, naming the first wrong tensor, unless every (layer, expert) can be read."""
    if spec.catalog is not None:
        return  # vLLM's loader was offered every tensor, and took as many for each expert
    index = read_tensor_index(spec.model_path)
    layout = find_layout(spec.architecture, spec.layers[0], index)
    # A fused tensor holds all experts of its layer, so its first expert stands for all.
    experts = range(1 if layout.fused else spec.num_experts)
    for layer in spec.layers:
        for expert in experts:
            for source in layout.sources(spec, layer, expert):
                check_source(index, source)


def check_source(index: TensorIndex, source: Source) -> None:
    """ModelRefused unless the tensor exists as `source` says."""
    found = index.find(source.name)
    if found.dtype not in source.dtypes:
        raise ModelRefused(
            f"{found.file}: tensor {source.name} has dtype {found.dtype}, "
            f"expected {' or '.join(source.dtypes)}"
        )
    if found.shape != source.shape and not (source.shape == (1,) and found.shape == ()):
        raise ModelRefused(
            f"{found.file}: tensor {source.name} has shape {list(found.shape)}, "
            f"expected {list(source.shape)}"
        )
