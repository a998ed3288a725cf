"""The command `expertmesh`. Commands import what they need when they run: `--help` stays quick."""

import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from orchestrator.cli import batch_commands, kubernetes_commands, manifest_commands, operate
from orchestrator.cli.options import (
    DEFAULT_URL,
    Config,
    DryRun,
    Json,
    KeyFile,
    MeshName,
    Url,
    Verbose,
)
from orchestrator.errors import UserError

USER_ERROR_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130

app = typer.Typer(
    name="expertmesh",
    help="Serve Mixture-of-Experts models, their experts in shards on unlike accelerators.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(batch_commands.app, name="batch")
app.add_typer(manifest_commands.app, name="manifests")
app.add_typer(kubernetes_commands.app, name="k8s")


@app.callback()
def common(_verbose: Verbose = False) -> None:
    """Options of every command."""


@app.command("serve")
def serve_command(
    config: Config = None,
    host: Annotated[
        str | None, typer.Option(help="Listen here.", show_default="the config's, 127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Listen here; 0: any.", show_default="the config's, 8000", min=0, max=65535
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it serves; it runs on.")
    ] = False,
    _verbose: Verbose = False,
) -> None:
    """Start a mesh and serve it until Ctrl-C."""
    from orchestrator.cli.progress import ConsoleProgress
    from orchestrator.cli.serve import serve, serve_detached

    if detach:
        raise typer.Exit(serve_detached(config, host, port))
    with ConsoleProgress() as progress:
        raise typer.Exit(serve(config, host, port, progress=progress))


@app.command("attach")
def attach_command(mesh: MeshName = None, _verbose: Verbose = False) -> None:
    """Show the output of a detached mesh; Ctrl-C leaves it running."""
    from orchestrator.cli.detached import attach

    raise typer.Exit(attach(mesh))


@app.command("stop")
def stop_command(
    mesh: MeshName = None,
    timeout: Annotated[float, typer.Option(help="Longest wait in seconds.", min=1.0)] = 120.0,
    _verbose: Verbose = False,
) -> None:
    """End a mesh of this machine; requests under way may finish."""
    from orchestrator.cli.detached import stop

    raise typer.Exit(stop(mesh, timeout))


@app.command("upgrade")
def upgrade_command(
    config: Config = None,
    key_file: KeyFile = None,
    dry_run: DryRun = False,
    timeout: Annotated[
        float, typer.Option(help="Longest wait for all of it in seconds.", min=1.0)
    ] = 1800.0,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Bring the installed version and a config into a mesh that serves."""
    from orchestrator.cli.upgrade import upgrade

    raise typer.Exit(
        upgrade(config, key_file=key_file, dry_run=dry_run, timeout_s=timeout, as_json=as_json)
    )


@app.command("list")
def list_command(as_json: Json = False, _verbose: Verbose = False) -> None:
    """Show the meshes that your commands run on this machine."""
    from orchestrator.cli.detached import show_list

    raise typer.Exit(show_list(as_json))


@app.command("status")
def status_command(
    url: Url = DEFAULT_URL,
    as_json: Json = False,
    wide: Annotated[
        bool, typer.Option("--wide", "-w", help="Show kind and detail of each component too.")
    ] = False,
    _verbose: Verbose = False,
) -> None:
    """Show the components of a running mesh."""
    from orchestrator.cli.status import status

    raise typer.Exit(status(url, as_json, wide))


@app.command("plan")
def plan_command(
    config: Config = None,
    load: Annotated[
        Path | None, typer.Option(help="Plan for the load in this trace (.npz, .jsonl).")
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(help="A cluster on paper instead, such as examples/clusters/mixed.yaml."),
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(
            help="How many engines to how many shards, such as examples/workloads/chat.yaml."
        ),
    ] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show where a config's experts would be placed, and why, without starting anything."""
    if workload is not None:
        from orchestrator.cli.workload import plan_workload

        raise typer.Exit(plan_workload(workload, as_json))
    if cluster is not None:
        from orchestrator.cli.scale import plan_cluster

        raise typer.Exit(plan_cluster(cluster, as_json))
    from orchestrator.cli.plan import plan

    raise typer.Exit(plan(config, load, as_json))


@app.command("simulate")
def simulate_command(
    trace: Annotated[Path, typer.Argument(help="Recorded load: .npz or .jsonl.")],
    config: Config = None,
    page: Annotated[
        bool, typer.Option("--page", help="Play it in a page at 127.0.0.1, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Replay a recorded load on a config's shards: balancedness, moves and bytes per policy."""
    from orchestrator.cli.simulate import simulate_trace

    raise typer.Exit(simulate_trace(trace, config, as_json, page))


@app.command("record")
def record_command(
    file: Annotated[Path, typer.Argument(help="Trace to write: .jsonl or .npz.")],
    url: Url = DEFAULT_URL,
    window: Annotated[float, typer.Option(help="Length of a window in seconds.", min=0.1)] = 10.0,
    windows: Annotated[
        int | None, typer.Option(help="Stop after so many.", show_default="at Ctrl-C", min=1)
    ] = None,
    _verbose: Verbose = False,
) -> None:
    """Record the expert load of a running mesh, for `plan` and `simulate`."""
    from orchestrator.cli.record import record

    raise typer.Exit(record(url, file, window, windows))


@app.command("doctor")
def doctor_command(config: Config = None, as_json: Json = False, _verbose: Verbose = False) -> None:
    """Check this machine and a config; exit code 2 if a mesh could not start."""
    from orchestrator.cli.doctor import doctor

    raise typer.Exit(doctor(config, as_json))


@app.command("devices")
def devices_command(
    vendor: Annotated[
        str | None, typer.Argument(help="Show the chips of one.", show_default="all vendors")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's first device too.")
    ] = False,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """List the vendors whose devices are known, and what this machine has."""
    from orchestrator.cli.devices import devices

    raise typer.Exit(devices(vendor, as_json, measure))


@app.command("version")
def version_command(_verbose: Verbose = False) -> None:
    """Print the versions of expertmesh and of what it stands on."""
    from orchestrator.cli.version import version_lines

    for line in version_lines():
        typer.echo(line)


operate.add_commands(app)


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Bad input ends in one line on stderr and exit code 2."""
    try:
        exit_code = app(arguments, prog_name="expertmesh", standalone_mode=False)
    except UserError as error:
        if logging.getLogger("expertmesh").isEnabledFor(logging.DEBUG):
            traceback.print_exception(error)
        _print_error(str(error))
        sys.exit(USER_ERROR_EXIT_CODE)
    except TyperException as error:
        # Without a message it was `expertmesh` alone, which has shown its help.
        if message := error.format_message():
            _print_error(f"{message.rstrip('.')}: see `expertmesh --help`")
        sys.exit(USER_ERROR_EXIT_CODE)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED_EXIT_CODE)
    sys.exit(exit_code)


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
