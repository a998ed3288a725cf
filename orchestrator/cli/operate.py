"""Commands that look into a running mesh and change it. Each is one request to `/api/v1/`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import DEFAULT_URL, Json, KeyFile, Url, Verbose
from orchestrator.cli.verb_command import Request, verb_command

Target = Annotated[str, typer.Argument(help="A component's id, or node/NAME.")]
Component = Annotated[str, typer.Argument(help="A component's id.")]
Expert = Annotated[str, typer.Argument(metavar="LAYER/EXPERT", help="Such as 3/17.")]
Pools = Annotated[list[str], typer.Argument(metavar="POOL...", help="Pools of shards.")]


def add_commands(app: typer.Typer) -> None:
    """Put all of them into `app`."""
    for name, command in _LOOKS.items():
        app.command(name)(command)
    for name, request in _VERBS.items():
        app.command(name)(verb_command(request, waits=name not in _AT_ONCE))


# -- looking


def _nodes(url: Url = DEFAULT_URL, as_json: Json = False, _verbose: Verbose = False) -> None:
    """Show the nodes of a mesh and what runs on each."""
    from orchestrator.cli.look import nodes

    raise typer.Exit(nodes(url, as_json))


def _shards(url: Url = DEFAULT_URL, as_json: Json = False, _verbose: Verbose = False) -> None:
    """Show the shards: copies, memory, and what the loss of each would take."""
    from orchestrator.cli.look import shards

    raise typer.Exit(shards(url, as_json))


def _experts(
    layer: Annotated[
        int | None, typer.Argument(help="Each expert of one layer.", show_default="all in short")
    ] = None,
    kind: Annotated[
        str, typer.Option(help="Load of this kind of traffic.", show_default="of all")
    ] = "",
    content: Annotated[
        str, typer.Option(help="Of the kind's tokens, those of text or image.", show_default="all")
    ] = "",
    url: Url = DEFAULT_URL,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show how many copies the experts have, and where."""
    from orchestrator.cli.look import experts
    from orchestrator.cli.traffic import Asked

    raise typer.Exit(experts(url, layer, as_json, traffic=Asked.of(kind, content)))


def _transactions(url: Url = DEFAULT_URL, as_json: Json = False, _verbose: Verbose = False) -> None:
    """Show the changes of placement: reason, phase, bytes, how long."""
    from orchestrator.cli.look import transactions

    raise typer.Exit(transactions(url, as_json))


def _events(
    url: Url = DEFAULT_URL,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    after: Annotated[
        int, typer.Option(help="Begin after this number; negative: the last ones.")
    ] = -30,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 1000,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show what was seen and decided, with the reasons."""
    from orchestrator.cli.events import events

    raise typer.Exit(events(url, follow, after, limit, as_json))


def _logs(
    component: Annotated[
        str,
        typer.Argument(
            help="A component's id, or what it begins with, such as engine.", show_default="all"
        ),
    ] = "",
    url: Url = DEFAULT_URL,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(help="Begin with so many.", min=0, max=10_000)] = 200,
    key_file: KeyFile = None,
    folder: Annotated[
        Path | None,
        typer.Option("--from", help="Read the logs that an ended mesh left there."),
    ] = None,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show what components wrote, on every node, also those that died."""
    from orchestrator.cli.logs import logs

    raise typer.Exit(logs(component, url, follow, lines, as_json, key_file, folder))


def _top(
    url: Url = DEFAULT_URL,
    once: Annotated[bool, typer.Option("--once", help="Print one look and end.")] = False,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Watch balancedness, shards, hot experts, engines, changes and batch jobs until Ctrl-C."""
    from orchestrator.cli.top import top

    raise typer.Exit(top(url, once, as_json))


# -- changing


def _rebalance() -> Request:
    """Plan for the load that was seen, and move copies where that gains something."""
    return "rebalance", {}


def _scale(
    pool: Annotated[str, typer.Argument(help="A pool of shards, or engine.")],
    size: Annotated[int, typer.Argument(help="How many there are to be.")],
) -> Request:
    """Make a pool of shards, or the engines, more or fewer."""
    return "scale", {"pool": pool, "size": size}


def _drain(target: Target) -> Request:
    """Take a component or a node out of service for good, without losing a request."""
    return "drain", {"target": target}


def _undrain(target: Target) -> Request:
    """Keep what is being drained."""
    return "undrain", {"target": target}


def _cordon(target: Target) -> Request:
    """Give a shard, or all on a node, no new copies."""
    return "cordon", {"target": target}


def _uncordon(target: Target) -> Request:
    """Let a shard, or all on a node, get new copies again."""
    return "uncordon", {"target": target}


def _restart(target: Component) -> Request:
    """Try a component again that died too often and was given up."""
    return "restart", {"target": target}


def _rolling_restart(
    target: Annotated[
        str, typer.Argument(help="A pool, engine, all, or one component.", show_default=False)
    ] = "",
    stop: Annotated[bool, typer.Option("--stop", help="End the one under way.")] = False,
) -> Request:
    """Replace processes one at a time, each when the one before serves."""
    from orchestrator.errors import UserError

    if bool(target) == stop:
        raise UserError("rolling-restart takes a target or --stop", "give one of them")
    return ("stop-rolling-restart", {}) if stop else ("rolling-restart", {"target": target})


def _pin(expert: Expert, pools: Pools) -> Request:
    """Let an expert live in these pools only."""
    return "pin", {"expert": expert, "pools": pools}


def _ban(expert: Expert, pools: Pools) -> Request:
    """Keep an expert out of these pools."""
    return "ban", {"expert": expert, "pools": pools}


def _unpin(expert: Expert) -> Request:
    """Forget where an expert was pinned to and banned from."""
    return "unpin", {"expert": expert}


_LOOKS: dict[str, Callable[..., None]] = {
    "nodes": _nodes,
    "shards": _shards,
    "experts": _experts,
    "transactions": _transactions,
    "events": _events,
    "logs": _logs,
    "top": _top,
}
_VERBS: dict[str, Callable[..., Request]] = {
    "rebalance": _rebalance,
    "scale": _scale,
    "drain": _drain,
    "undrain": _undrain,
    "cordon": _cordon,
    "uncordon": _uncordon,
    "restart": _restart,
    "rolling-restart": _rolling_restart,
    "pin": _pin,
    "ban": _ban,
    "unpin": _unpin,
}
_AT_ONCE = {"undrain", "cordon", "uncordon", "unpin"}
"""Verbs with nothing to wait for."""
