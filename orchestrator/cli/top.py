"""`expertmesh top`: the mesh as it works, on one screen of a terminal."""

import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live

from orchestrator.cli.endpoint import base_url, fetch, reading_key, stream
from orchestrator.cli.tables import console_for, print_json
from orchestrator.cli.top_view import Look, Report, draw
from orchestrator.errors import UserError

KEPT_POINTS = 300
ONCE_HEIGHT = 60
"""Lines where the output is no terminal."""
EVENTS = 12


def top(url: str, once: bool, as_json: bool, console: Console | None = None) -> int:
    """Draw every look of the gateway until Ctrl-C; `once`, and into a file or a pipe, one.

    Raises:
        UserError: no mesh answers, or none any more.
    """
    if as_json:
        print_json(fetch(url, "/api/v1/telemetry"))
        return 0
    console = console_for(console)
    if once or not console.is_terminal:
        report = fetch(url, "/api/v1/telemetry")
        console.print(draw(_look(url, report, report["points"]), console.width, ONCE_HEIGHT))
        return 0
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for look in looks(url):
            live.update(draw(look, console.width, console.height), refresh=True)
    raise UserError(f"the mesh at {base_url(url)} has ended")


def looks(url: str) -> Iterator[Look]:
    """One after each look of the gateway, until it ends."""
    points: deque[Report] = deque(maxlen=KEPT_POINTS)
    with stream(url, "/api/v1/telemetry/stream", reading_key()) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                report = json.loads(line.removeprefix("data: "))
                newest_s = points[-1]["time_s"] if points else 0.0
                points += [point for point in report["points"] if point["time_s"] > newest_s]
                yield _look(url, report, list(points))


def _look(url: str, report: Report, points: list[Report]) -> Look:
    cluster: dict[str, Any] = {}
    events: list[dict[str, Any]] = []
    try:
        cluster = fetch(url, "/api/v1/cluster")
        events = fetch(url, f"/api/v1/events?after=-{EVENTS}")["events"]
    except UserError as error:  # the rest of the screen is worth having
        if not report.get("status"):
            sys.stderr.write(f"{error}\n")
    return Look(report, points, cluster, events)
