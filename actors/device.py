"""What a device has free for expert weights."""

# The system, the engine and the page cache want some of a host's memory too.
HOST_SHARE = 0.8

# Rows, the kernels' scratch and the layer that replaces another while it loads.
ACCELERATOR_SHARE = 0.9


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
