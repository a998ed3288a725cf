"""`expertmesh manifests`: a mesh's config as Kubernetes objects, without asking any cluster."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Config, Verbose

app = typer.Typer(help="A mesh as Kubernetes objects (docs/kubernetes.md).", no_args_is_help=True)

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for them.", show_default="standard output"),
]


@app.command("render")
def render_command(config: Config = None, output: Output = None, _verbose: Verbose = False) -> None:
    """Print all objects of a config's mesh, or write them to a folder for `kubectl apply -k`."""
    from orchestrator.cli.manifests import show

    raise typer.Exit(show(config, output))


@app.command("fingerprint")
def fingerprint_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    expect: Annotated[
        str | None, typer.Option(help="Exit with 2 unless it is this one.", metavar="HEX")
    ] = None,
    _verbose: Verbose = False,
) -> None:
    """Print what tells a checkpoint from every other, for kubernetes.model_fingerprint."""
    from orchestrator.cli.manifests import show_fingerprint

    raise typer.Exit(show_fingerprint(folder, expect))
