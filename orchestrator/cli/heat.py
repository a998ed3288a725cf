"""Load of experts in a terminal: a line of characters for a layer, a bar for an expert."""

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from orchestrator.api.models import PlacementView
from orchestrator.cli.endpoint import ask
from orchestrator.errors import UserError
from orchestrator.telemetry.matrix import decode

SPARKS = "▁▂▃▄▅▆▇█"
STYLES = ("dim", "blue", "blue", "cyan", "cyan", "yellow", "red", "bold red")
CELLS = 64
"""Characters of a layer; where it has more experts each stands for the hottest of some."""
TOP = 8.0
"""Times the layer's mean from which on an expert gets the highest character, as on the page."""


def loads(url: str, placement: PlacementView) -> NDArray[np.int64] | None:
    """[L, E] assignments since the gateway began; None where it does not tell of this model."""
    try:
        counts, _, _ = decode(ask(url, "/api/v1/telemetry/matrix").content)
    except (UserError, ValueError):
        return None
    fits = counts.shape == (len(placement.layers), placement.experts)
    return counts if fits and counts.any() else None


def heat_line(counts: NDArray[np.int64]) -> Text:
    """counts: [E] of one layer."""
    line, mean = Text(), float(counts.mean()) or 1.0
    for part in np.array_split(counts, min(CELLS, len(counts))):
        level = np.log2(1 + float(part.max()) / mean) / np.log2(1 + TOP)
        step = min(len(SPARKS) - 1, round(level * (len(SPARKS) - 1)))
        line.append(SPARKS[step], STYLES[step])
    return line


def load_bar(part: float, cells: int = 24) -> Text:
    """part: of the most, from 0 to 1."""
    return Text("█" * round(cells * part), "cyan")
