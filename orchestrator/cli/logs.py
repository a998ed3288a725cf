"""`expertmesh logs`: what the components of a mesh wrote, in one place and in the order of time."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.console import Console
from rich.text import Text

from orchestrator.cli.endpoint import admin_key, fetch, stream
from orchestrator.cli.tables import console_for
from orchestrator.errors import UserError

PATH = "/api/v1/logs"
_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}


def logs(
    component: str,
    url: str,
    following: bool,
    lines: int,
    as_json: bool,
    key_file: Path | None,
    folder: Path | None,
    console: Console | None = None,
) -> int:
    """folder: read what a mesh left there instead of asking one that runs. Raises UserError."""
    console = console_for(console)
    if folder is not None:
        found = left_in(folder, component, lines)
    elif following:
        found = followed(url, component, lines, admin_key(key_file))
    else:
        found = iter(asked(url, component, lines, admin_key(key_file), console))
    for record in found:
        if as_json:
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            console.print(as_line(record), soft_wrap=True)
    return 0


def asked(url: str, component: str, lines: int, key: str, console: Console) -> list[dict[str, Any]]:
    """The newest lines that a running mesh knows."""
    query = urlencode({"component": component, "lines": lines})
    body = fetch(url, f"{PATH}?{query}", key)
    for node, why in body["unread_nodes"].items():
        console.print(f"[bold yellow]without node {node}:[/] {why}")
    _require_known(component, body["lines"], body["components"])
    return list(body["lines"])


def followed(url: str, component: str, lines: int, key: str) -> Iterator[dict[str, Any]]:
    """The same, and then each as it is written, until the mesh ends."""
    query = urlencode({"component": component, "lines": lines, "follow": "true"})
    with stream(url, f"{PATH}?{query}", key) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield dict(json.loads(line.removeprefix("data: ")))


def left_in(folder: Path, component: str, lines: int) -> Iterator[dict[str, Any]]:
    """Of the files in a folder: Ray's logs, or a mesh's run folder that holds them."""
    from orchestrator.telemetry.log_files import read_logs
    from orchestrator.telemetry.log_lines import concerns, merged

    inside = folder / "ray" / "session_latest" / "logs"
    kept = sorted(folder.glob("ray/session_*/logs"))
    place = inside if inside.is_dir() else kept[-1] if kept else folder
    found = read_logs(place, "", {}).records
    if not found:
        raise UserError(f"there are no logs of a mesh in {place}", "name the folder of its logs")
    chosen = merged((record for record in found if concerns(record, component)), lines)
    _require_known(component, chosen, sorted({record.component for record in found}))
    return (record.to_json() for record in chosen)


def _require_known(component: str, chosen: list[Any], known: list[str]) -> None:
    if component and not chosen:
        names = ", ".join(name for name in known if name)
        raise UserError(f"nothing was written by {component}", f"there are {names}")


def as_line(record: dict[str, Any]) -> Text:
    at = datetime.fromtimestamp(record["time_s"])
    level = record["level"]
    more = {k: v for k, v in record.items() if k not in _SHOWN and k != "exception"}
    tail = "".join(f" {key}={value}" for key, value in more.items())
    message = record["message"] + (f"\n{record['exception']}" if "exception" in record else "")
    return Text.assemble(
        (f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} ", "dim"),
        (f"{level or '-':<7} ", _STYLES.get(level, "")),
        (f"{record['component'] or '-'} ", "bold"),
        (message, _STYLES.get(level, "")),
        (tail, "dim"),
    )


_SHOWN = frozenset({"time_s", "level", "component", "logger", "message", "node", "pid"})
