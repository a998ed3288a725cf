"""What a Grafana dashboard is made of, as data. The dashboards are in `boards/`, one a module, and
`build.py` makes Grafana's JSON of them."""

from dataclasses import dataclass, field
from enum import StrEnum


class Look(StrEnum):
    """How a panel draws its queries."""

    CURVES = "curves"
    FIGURE = "figure"
    BARS = "bars"


@dataclass(frozen=True, slots=True)
class Query:
    """expr: PromQL; legend: of its curves, with labels in double braces."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """unit: in Grafana's words; width: of 24 columns; most: end of the axis, None: of the data."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    look: Look = Look.CURVES
    width: int = 12
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Board:
    """uid: part of its address in Grafana, and its file's name."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...] = field(default_factory=tuple)


WINDOW = "$__rate_interval"
"""Grafana's own variable: long enough a time for a rate."""


def quantiles(metric: str) -> tuple[Query, ...]:
    """The median and the slow end of a histogram over the window."""
    return tuple(
        Query(
            f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[{WINDOW}])))", f"p{q:.0%}"
        )
        for q in (0.5, 0.9, 0.99)
    )
