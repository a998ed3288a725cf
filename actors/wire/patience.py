"""How long a wait spins before it blocks.

Blocking costs a wake-up (10-50 us, more on virtual machines); spinning costs a core that somebody
else on the node may want. So a wait spins only where the one before it was short enough for that to
have paid, and not for a while after a spin in which the core was taken away: then others want it.
"""

SPIN_S = 50e-6
WORTH_IT_S = 2 * SPIN_S
"""A wait that blocked and still took no longer than this would have been caught by spinning."""
CROWDED_S = 4 * SPIN_S
"""A spin that lasted longer lost its core to another thread in between."""
CALM_WAITS = 64
"""Waits that only block after the core was lost."""


class Patience:
    """One waiting place's memory. `spin_s` is how long the next wait spins, 0 for not at all."""

    def __init__(self) -> None:
        self.spin_s = SPIN_S
        self._calm = 0

    def learn(self, waited_s: float, spun_s: float) -> None:
        """waited_s: how long the last wait took in all; spun_s: the part of it spent spinning."""
        if spun_s > CROWDED_S:
            self._calm = CALM_WAITS
        if self._calm:
            self._calm -= 1
            self.spin_s = 0.0
        else:
            self.spin_s = SPIN_S if waited_s < WORTH_IT_S else 0.0
