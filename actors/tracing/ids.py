"""What the spans of one sampled step are called, derived from its sample id alone.

A step runs in several processes: engine workers, routers, shards. The frames between them carry a
sample id (63 bits; 0: not sampled), and each process derives from it which trace it belongs to
and which span its own is below, so nothing else has to travel.

The lowest bits are the worker's rank: all ranks of a step share the trace and the step's span, and
each has dispatch spans of its own.
"""

from hashlib import blake2b

RANK_BITS = 6
MOST_RANKS = 1 << RANK_BITS

DRAWN_BITS = 63 - RANK_BITS
"""Random bits of a sample id, which is a positive int64: compiled code takes no other."""


def sample_id(drawn: int) -> int:
    """The id, for rank 0, of a step for which `DRAWN_BITS` random bits were drawn; never 0."""
    return (drawn or 1) << RANK_BITS


def of_rank(sample: int, rank: int) -> int:
    """The same step's id in the worker of a rank."""
    return sample | rank % MOST_RANKS


def trace_id(sample: int) -> int:
    """128 bits."""
    return _derived(16, "trace", sample >> RANK_BITS)


def step_span_id(sample: int) -> int:
    return _derived(8, "step", sample >> RANK_BITS)


def dispatch_span_id(sample: int, layer: int) -> int:
    return _derived(8, "dispatch", sample, layer)


def _derived(size: int, *what: str | int) -> int:
    digest = blake2b("/".join(map(str, what)).encode(), digest_size=size).digest()
    return int.from_bytes(digest) or 1  # W3C forbids ids of zeros
