"""Messages between parties that are late, lost, doubled, or cut off from each other."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.sim.clock import Clock

CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Weather:
    """Probabilities per message; delays in seconds."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    delay_s: float = 0.01
    late_s: float = 6.0


FAIR = Weather()
FOUL = Weather(lost=0.03, doubled=0.03, late=0.03)


class Network:
    """weather may change while the simulation runs; cut holds pairs that cannot talk."""

    def __init__(self, clock: Clock, random: Random) -> None:
        self.weather = FAIR
        self.cut: set[frozenset[str]] = set()
        self._clock = clock
        self._random = random

    def connected(self, one: str, other: str) -> bool:
        return frozenset({one, other}) not in self.cut

    def send(self, sender: str, receiver: str, arrive: Callable[[], None]) -> None:
        """Call `arrive` once, twice or never, some time later."""
        draw, weather = self._random.random, self.weather
        if draw() < weather.lost:
            return
        for _ in range(2 if draw() < weather.doubled else 1):
            delay_s = weather.delay_s * (0.5 + draw())
            if draw() < weather.late:
                delay_s += weather.late_s * draw()
            self._clock.after(delay_s, lambda: self._arrive(sender, receiver, arrive))

    def _arrive(self, sender: str, receiver: str, arrive: Callable[[], None]) -> None:
        if self.connected(sender, receiver):
            arrive()
