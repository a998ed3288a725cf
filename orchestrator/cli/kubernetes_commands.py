"""`expertmesh k8s`: bring a mesh into a Kubernetes cluster, look at it, size it, take it away."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Config, DryRun, Json, KeyFile, Timeout, Verbose

app = typer.Typer(help="A mesh in a Kubernetes cluster (docs/kubernetes.md).", no_args_is_help=True)
WAIT_S = 1800.0

Kubeconfig = Annotated[
    Path | None,
    typer.Option(help="Cluster and credentials.", show_default="kubectl's, or the pod's own"),
]
Context = Annotated[
    str | None, typer.Option(help="Context of the kubeconfig.", show_default="its current one")
]
Url = Annotated[
    str | None, typer.Option(envvar="EXPERTMESH_URL", help="Endpoint of the mesh, reachable here.")
]


@app.command("apply")
def apply_command(
    config: Config = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take over fields that others manage.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Stop the mesh and start it with this config.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when every pod is ready and the mesh starts.")
    ] = False,
    timeout: Timeout = WAIT_S,
    _verbose: Verbose = False,
) -> None:
    """Make the cluster have the mesh's objects (server-side apply)."""
    from orchestrator.cli.kubernetes import Target, apply

    target = Target.of(config, kubeconfig, context)
    raise typer.Exit(
        apply(target, force, restart, dry_run=dry_run, wait_s=timeout if wait else 0.0)
    )


@app.command("diff")
def diff_command(
    config: Config = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    _verbose: Verbose = False,
) -> None:
    """Show what `apply` would change; exit code 1 if anything."""
    from orchestrator.cli.kubernetes import Target, diff

    raise typer.Exit(diff(Target.of(config, kubeconfig, context)))


@app.command("status")
def status_command(
    config: Config = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show the mesh's pods by group, its job, and what is in the way; exit code 1 if anything."""
    from orchestrator.cli.kubernetes import Target, status

    raise typer.Exit(status(Target.of(config, kubeconfig, context), as_json))


@app.command("scale")
def scale_command(
    config: Annotated[Path, typer.Argument(help="Config file (YAML).")],
    pool: Annotated[str, typer.Argument(help="A pool of shards, or engine.")],
    size: Annotated[int, typer.Argument(help="Shards, or engines, there are to be.", min=0)],
    url: Url = None,
    key_file: KeyFile = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    dry_run: DryRun = False,
    timeout: Timeout = WAIT_S,
    _verbose: Verbose = False,
) -> None:
    """Make a pool's pods and shards more or fewer, without losing a request."""
    from orchestrator.cli.kubernetes import Target
    from orchestrator.cli.kubernetes_scale import MeshAccess, scale

    target = Target.of(config, kubeconfig, context)
    raise typer.Exit(scale(target, pool, size, MeshAccess(url, key_file), timeout, dry_run=dry_run))


@app.command("delete")
def delete_command(
    config: Config = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="The state volume too: journal and batch jobs.")
    ] = False,
    timeout: Timeout = WAIT_S,
    _verbose: Verbose = False,
) -> None:
    """Stop the mesh, then remove its objects; the state volume stays unless asked for."""
    from orchestrator.cli.kubernetes import Target, delete

    raise typer.Exit(delete(Target.of(config, kubeconfig, context), volumes, timeout))
