"""Plot of one MoE layer's time on clusters on paper, for docs/hardware.md."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from orchestrator.scale.estimate import Estimate

mpl.use("Agg")
import matplotlib.pyplot as plt

PARTS = {"rows there": "#5f6bd6", "kernels": "#d97706", "sums back": "#0b8f6a"}


def draw_layers(found: dict[tuple[str, str], Estimate], path: Path) -> None:
    """Stacked bars: through hosts and, below, with IPC within nodes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bars = [
        (f"{cluster}, {model}\n{way}", time)
        for (cluster, model), result in found.items()
        for way, time in (("through hosts", result.staged), ("IPC in nodes", result.ipc))
    ]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(bars) + 1.6), layout="constrained")
    names = [name for name, _ in bars]
    left = [0.0] * len(bars)
    for part, colour in PARTS.items():
        field = {"rows there": "there_s", "kernels": "compute_s", "sums back": "back_s"}[part]
        widths = [getattr(time, field) * 1e3 for _, time in bars]
        axes.barh(names, widths, left=left, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("milliseconds of one MoE layer, 2,048 tokens (on paper, nothing measured)")
    axes.legend(loc="upper right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
