"""Rows through every expert before an engine's first request."""

import torch

from actors.vllm_plugin.connection import backend, connect_mesh


def warm_shards(hidden: int) -> None:
    """Send one row to each expert of each layer and wait for the sums.

    Links are open afterwards, the data plane's machine code is loaded on both sides, and the
    experts' weights have been read once.

    Raises:
        ExpertUnavailable: an expert has no live replica.
    """
    epoch = connect_mesh().epoch
    ids = torch.arange(epoch.num_experts, dtype=torch.int32).reshape(-1, 1)
    rows = torch.zeros(len(ids), hidden, dtype=torch.bfloat16)
    for layer in epoch.layers:
        backend().wait(backend().send(layer, rows, torch.ones(len(ids), 1), ids))
