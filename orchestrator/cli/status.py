"""`expertmesh status`: ask a running mesh what it is made of."""

import sys

import httpx
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.config.bytesize import format_bytes
from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError
from orchestrator.status import ComponentState, ComponentStatus, MeshStatus

TIMEOUT_S = 10.0

_STATE_STYLES = {
    ComponentState.STARTING: "yellow",
    ComponentState.LOADING: "yellow",
    ComponentState.READY: "green",
    ComponentState.DRAINING: "yellow",
    ComponentState.DEAD: "bold red",
}


def status(url: str, as_json: bool, console: Console | None = None) -> int:
    """Print the state of the mesh at `url`; returns 0 once it has answered, ready or not."""
    found = fetch_status(url)
    if as_json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
        return 0
    console = console or Console(highlight=False)
    console.print(headline(found), render(found.components), sep="\n")
    return 0


def fetch_status(url: str) -> MeshStatus:
    """GET {url}/api/v1/status. Raises UserError if no mesh answers there."""
    base = (url if "://" in url else f"http://{url}").rstrip("/")
    keys = Secrets().api_keys
    headers = {"Authorization": f"Bearer {keys[0].get_secret_value()}"} if keys else {}
    # Without proxies from the environment: a mesh on this machine is not behind one.
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            response = client.get(f"{base}/api/v1/status", headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"no mesh answers at {base}", "start one with `expertmesh serve`, or give --url"
        ) from error
    if response.status_code in (401, 403):
        raise UserError(f"the mesh at {base} wants an API key", "set EXPERTMESH_API_KEYS")
    try:
        return MeshStatus.model_validate_json(response.content)
    except ValidationError as error:
        raise UserError(
            f"what answers at {base} (status {response.status_code}) is not a mesh of this version",
            "give its address with --url",
        ) from error


def headline(mesh: MeshStatus) -> Text:
    state = ("ready", "bold green") if mesh.ready else ("not ready", "bold red")
    return Text.assemble(
        (mesh.mesh, "bold"),
        f" serves {mesh.model}: ",
        state,
        f" ({mesh.reason}), plan epoch {mesh.epoch}, router {mesh.router_mode}\n",
    )


def render(components: list[ComponentStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("ID", "KIND", "POOL", "NODE"):
        table.add_column(column, overflow="fold")
    table.add_column("PID", justify="right")
    table.add_column("STATE")
    for column in ("MEMORY", "SLOTS", "SPEED"):
        table.add_column(column, justify="right")
    for component in components:
        table.add_row(*_cells(component))
    return table


def _cells(component: ComponentStatus) -> list[Text]:
    pool = Text(component.pool or "-")
    if component.emulated:
        pool.append(" emulated", "italic magenta")
    state = Text(component.state.value, _STATE_STYLES[component.state])
    if component.detail:
        state.append(f" {component.detail}", "dim")
    memory, slots, speed = component.memory_bytes, component.slots, component.speed
    return [
        Text(component.id),
        Text(component.kind.value),
        pool,
        Text(component.node),
        Text(str(component.pid)),
        state,
        Text("-" if memory is None else format_bytes(memory)),
        Text("-" if slots is None else str(slots)),
        Text("-" if speed is None else f"{speed:.2f}"),
    ]
