"""`expertmesh status`: ask a running mesh what it is made of."""

import sys

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.cli.endpoint import ask, not_a_mesh
from orchestrator.cli.tables import console_for, warn_stale
from orchestrator.config.bytesize import format_bytes
from orchestrator.status import ComponentState, ComponentStatus, MeshStatus

_STATE_STYLES = {
    ComponentState.STARTING: "yellow",
    ComponentState.LOADING: "yellow",
    ComponentState.READY: "green",
    ComponentState.SUSPECT: "bold yellow",
    ComponentState.DRAINING: "yellow",
    ComponentState.DEAD: "bold red",
}


def status(url: str, as_json: bool, wide: bool = False, console: Console | None = None) -> int:
    """Print the state of the mesh at `url`; returns 0 once it has answered, ready or not."""
    found = fetch_status(url)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
        return 0
    console = console_for(console)
    warn_stale(found.stale_s, console)
    console.print(headline(found))
    console.print(render(found.components, wide))
    if not wide:
        for detail in details(found.components):
            console.print("", detail, sep="\n")
    return 0


def fetch_status(url: str) -> MeshStatus:
    """GET {url}/api/v1/status. Raises UserError if no mesh answers there."""
    response = ask(url, "/api/v1/status")
    try:
        return MeshStatus.model_validate_json(response.content)
    except ValidationError as error:
        raise not_a_mesh(url, response) from error


def headline(mesh: MeshStatus) -> Text:
    state = ("ready", "bold green") if mesh.ready else ("not ready", "bold red")
    return Text.assemble(
        (mesh.mesh, "bold"),
        f" serves {mesh.model}: ",
        state,
        f" ({mesh.reason}), plan epoch {mesh.epoch}, router {mesh.router_mode}\n",
    )


def render(components: list[ComponentStatus], wide: bool) -> Table:
    """One row per component: 80 columns are enough unless `wide`, which adds kind and detail."""
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for column in ("ID", "KIND", "POOL", "STATE") if wide else ("ID", "POOL", "STATE"):
        table.add_column(column, no_wrap=True)
    # The one column that gives way in a narrow terminal.
    table.add_column("NODE", overflow="ellipsis")
    for column in ("PID", "MEMORY", "SLOTS", "SPEED"):
        table.add_column(column, justify="right", no_wrap=True)
    if wide:
        table.add_column("DETAIL", overflow="fold")
    for component in components:
        table.add_row(*_cells(component, wide))
    return table


def details(components: list[ComponentStatus]) -> list[Text]:
    """What the components that are not ready say, one paragraph each."""
    return [
        Text(f"{c.id}: {c.detail}", _STATE_STYLES[c.state])
        for c in components
        if c.detail and c.state is not ComponentState.READY
    ]


def _cells(component: ComponentStatus, wide: bool) -> list[Text]:
    pool = Text(component.pool or "-")
    if component.emulated:
        pool.append(" emulated", "italic magenta")
    memory, slots, speed = component.memory_bytes, component.slots, component.speed
    return [
        Text(component.id),
        *([Text(component.kind.value)] if wide else []),
        pool,
        Text(component.state.value, _STATE_STYLES[component.state]),
        Text(component.node),
        Text(str(component.pid) if component.pid else "-"),
        Text("-" if memory is None else format_bytes(memory)),
        Text("-" if slots is None else str(slots)),
        Text("-" if speed is None else f"{speed:.2f}"),
        *([Text(component.detail, "dim")] if wide else []),
    ]
