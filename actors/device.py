"""What a device has free for expert weights, and then for computing with them."""

# The system, the engine and the page cache want some of a host's memory too.
HOST_SHARE = 0.8

# Rows, the kernels' scratch and the layer that replaces another while it loads.
ACCELERATOR_SHARE = 0.9

# Of what is free once the weights are there. A host is shared with other shards and engines; on an
# accelerator the other half is for the layer that replaces another while it loads.
HOST_SCRATCH_SHARE = 1 / 8
ACCELERATOR_SCRATCH_SHARE = 1 / 2

# Where the device cannot be asked.
UNKNOWN_SCRATCH_BYTES = 256 << 20


def free_memory_bytes(device: str) -> int:
    """Bytes that weights may take on `device` ("cpu", "cuda:0", ...).

    Raises:
        ValueError: no way is known to ask this kind of device.
    """
    if device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available * HOST_SHARE)
    import torch

    kind = getattr(torch, torch.device(device).type, None)
    if kind is None or not hasattr(kind, "mem_get_info"):
        raise ValueError(f"cannot ask {device} for its free memory: set the pool's `memory`")
    free, _ = kind.mem_get_info(device)
    return int(free * ACCELERATOR_SHARE)


def scratch_bytes(device: str) -> int:
    """Bytes that one kernel call may take on `device` beside the weights that are there by now."""
    if device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available * HOST_SCRATCH_SHARE)
    import torch

    kind = getattr(torch, torch.device(device).type, None)
    if kind is None or not hasattr(kind, "mem_get_info"):
        return UNKNOWN_SCRATCH_BYTES
    free, _ = kind.mem_get_info(device)
    cached = kind.memory_reserved(device) - kind.memory_allocated(device)
    return int((free + cached) * ACCELERATOR_SCRATCH_SHARE)
