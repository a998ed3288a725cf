"""How long a wait spins before it blocks.

Blocking costs a wake-up (10-50 us, more on virtual machines) and what the caches lost meanwhile;
spinning costs a core that somebody else on the node may want. So a wait spins only where the one
before it was short enough for that to have paid, and not for a while after a spin in which the core
was taken away: then others want it. Whoever has cores to spare lets it spin for longer than a
shard's kernel takes.
"""

import os

SPIN_VARIABLE = "EXPERTMESH_SPIN_US"
"""Environment variable with the microseconds that a wait in this process may spin."""
DEFAULT_SPIN_US = 50.0
LOST_CORE_S = 150e-6
"""A spin that lasted so much longer than it should have lost its core in between."""
BLOCKING_WAITS = 64
"""Waits that only block after the core was lost."""


def configured_spin_s() -> float:
    """What `SPIN_VARIABLE` says, in seconds.

    Raises:
        ValueError: it is no number of microseconds.
    """
    text = os.environ.get(SPIN_VARIABLE, "")
    try:
        spin_us = float(text) if text else DEFAULT_SPIN_US
    except ValueError:
        spin_us = -1.0
    if not 0 <= spin_us < float("inf"):
        raise ValueError(f"{SPIN_VARIABLE}={text} is no number of microseconds")
    return spin_us * 1e-6


class SpinTime:
    """What the waits of one place have shown. spin_s: how long the next one spins, or 0."""

    def __init__(self) -> None:
        self._longest_s = configured_spin_s()
        self.spin_s = self._longest_s
        self._blocking = 0

    def learn(self, waited_s: float, spun_s: float) -> None:
        """waited_s: how long the last wait took in all; spun_s: the part of it spent spinning."""
        if spun_s > self.spin_s + LOST_CORE_S:
            self._blocking = BLOCKING_WAITS
        if self._blocking:
            self._blocking -= 1
            self.spin_s = 0.0
        else:
            # A wait that blocked and was still no longer would have been caught by spinning.
            self.spin_s = self._longest_s if waited_s < 2 * self._longest_s else 0.0
