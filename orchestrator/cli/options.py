"""Options that several commands share."""

import logging
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"


def _note_verbose(wanted: bool) -> bool:
    if wanted:
        logging.getLogger("expertmesh").setLevel(logging.DEBUG)
    return wanted


Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show where an error came from.", callback=_note_verbose),
]
Config = Annotated[
    Path | None,
    typer.Argument(metavar="[CONFIG]", help="Config file (YAML).", show_default="the demo mesh"),
]
MeshName = Annotated[
    str | None, typer.Argument(help="Name of the mesh.", show_default="the only one")
]
Url = Annotated[str, typer.Option(envvar="EXPERTMESH_URL", help="Endpoint of the mesh.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the admin key.", show_default="EXPERTMESH_ADMIN_KEYS"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return when it is through; show its events meanwhile.")
]
Timeout = Annotated[float, typer.Option(help="Longest --wait in seconds.", min=1.0)]
