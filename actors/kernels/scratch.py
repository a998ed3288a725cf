"""How many assignments one kernel call may have, so that its scratch fits the device's memory.

A call needs memory beside the weights for each of its assignments: the row, gate and up, the
activated product, the output, copies of them in fp32 and sorted by expert, and the sum. The most
wasteful operators (plain torch, with gpt-oss's activation) hold up to 30 bytes for each of an
assignment's H + I values at once, native kernels less. How much there is for it, `actors.device`
says: an eighth of a host's free memory, half of an accelerator's, both once the weights are there.
Larger batches are computed in pieces.
"""

import torch

from actors.experts.spec import ExpertSpec

SCRATCH_BYTES_PER_VALUE = 32
"""For each of an assignment's H + I values."""
LEAST_ASSIGNMENTS = 64
"""No call is divided further, however little memory there is."""


def most_assignments(spec: ExpertSpec, scratch_bytes: int) -> int:
    """Assignments (and rows) of one kernel call whose scratch takes at most `scratch_bytes`."""
    values = spec.hidden_size + spec.intermediate_size
    return max(LEAST_ASSIGNMENTS, scratch_bytes // (SCRATCH_BYTES_PER_VALUE * values))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a kernel failed for want of memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)  # torch's CPU allocator and vendors' backends raise plain RuntimeErrors
    return "out of memory" in text or "can't allocate memory" in text
