"""`expertmesh upgrade`: bring the installed code and a config into a mesh that serves.

What cannot change is refused before anything is touched. Then the controller gives way to one with
the installed code and the config, pools get their sizes, and every process that was started with
other code or another config is replaced, one at a time. Each of these goes by what is, so a command
that was interrupted is simply given again.
"""

import sys
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from actors.experts.fingerprint import fingerprint
from actors.origin import code_digest
from orchestrator.api.models import ClusterView
from orchestrator.cli import endpoint
from orchestrator.cli.change import DONE, REFUSED, change
from orchestrator.cli.tables import console_for, print_json
from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.control.lifecycle import Kind, Wanted
from orchestrator.errors import UserError
from orchestrator.gateway.config import endpoint_url
from orchestrator.upgrade.changes import Changes, changes_between, same_endpoint
from orchestrator.upgrade.effects import ENGINES
from orchestrator.upgrade.interfaces import installed, why_apart
from orchestrator.upgrade.standing import Next, Standing, StandingFiles
from orchestrator.upgrade.taking_up import files_of

POLL_S = 0.5
TAKE_OVER_TIMEOUT_S = 180.0
"""A process that imports all of the controller on a busy machine, and asks every component."""


class Refused(Exception):
    """The mesh cannot be changed so; the message says why."""


def upgrade(
    path: Path | None,
    *,
    key_file: Path | None,
    dry_run: bool,
    timeout_s: float,
    as_json: bool,
    console: Console | None = None,
) -> int:
    """Exit code: 0 done, 1 refused or not through in time. Raises UserError (exit code 2)."""
    console = console_for(console)
    config = load_config(path)
    files = files_of(config)
    standing = _running(files, config)
    before = _config_of(standing)
    config = same_endpoint(config, before)
    gateway = before.gateway
    url = endpoint_url(gateway.host, gateway.port, gateway.route_prefix)
    changes = _changes(standing, before, config)
    try:
        _check(changes, url, key_file)
        if as_json and dry_run:
            print_json({"changes": changes.keys, "replaced": changes.replaced, "dry_run": True})
        elif not as_json:
            _show(changes, console)
        if dry_run:
            return DONE
        if not changes.nothing:
            _take_over(files, standing, config, url, key_file)
        return _bring_in(changes, url, key_file, timeout_s, as_json=as_json, console=console)
    except Refused as error:
        if as_json:
            print_json({"refused": str(error), "dry_run": dry_run})
        else:
            print(f"refused: {error}", file=sys.stderr)
        return REFUSED


def _running(files: StandingFiles, config: MeshConfig) -> Standing:
    standing = files.running()
    if standing is None:
        raise UserError(
            f"no mesh named {config.mesh.name} runs with the state folder "
            f"{files.running_path.parent}",
            "give the config of a mesh that runs, on its head node",
        )
    return standing


def _config_of(standing: Standing) -> MeshConfig:
    try:
        return standing.mesh_config()
    except ValidationError as error:
        raise UserError(
            "the installed version does not know all keys that the mesh runs with",
            f"install the version before again, or stop the mesh and start it ({error})",
        ) from error


def _changes(standing: Standing, before: MeshConfig, after: MeshConfig) -> Changes:
    changes = changes_between(before, after, other_code=standing.code != code_digest())
    reasons = why_apart(standing.interfaces, installed())
    path = after.model.path
    if path != before.model.path and fingerprint(path) != standing.fingerprint:
        reasons.append(f"model.path: {path} is another checkpoint than the mesh serves")
    changes.refused.extend(reasons)
    return changes


def _check(changes: Changes, url: str, key_file: Path | None) -> None:
    """Raises Refused for what would not end well, before anything is touched."""
    if changes.refused:
        raise Refused("; ".join(changes.refused))
    view = _look(url)
    if view is None:
        raise Refused("the controller does not answer: try again when it does")
    if changes.replaced or any(place.outdated for place in view.places):
        _check_engines(changes, view)
    for pool, size in changes.sizes.items():
        _ask(url, "scale", {"pool": pool, "size": size, "dry_run": True}, key_file)


def _check_engines(changes: Changes, view: ClusterView) -> None:
    engines = [p for p in view.places if p.kind == Kind.ENGINE and p.wanted == Wanted.RUN]
    replaced = ENGINES in changes.replaced or any(p.outdated for p in engines)
    if replaced and len(engines) < 2:
        raise Refused(
            f"{engines[0].id if engines else 'no engine'} is the last engine, and engines are "
            "replaced: `expertmesh scale engine 2 --wait` first, and `scale engine 1` afterwards"
        )


def _take_over(
    files: StandingFiles, standing: Standing, config: MeshConfig, url: str, key_file: Path | None
) -> None:
    """Returns when a controller with the installed code and this config knows the mesh.

    Raises:
        Refused: it could not begin; the one with the old config is back.
    """
    view = _look(url)
    term = view.term if view else 0
    wanted = Next(session=standing.session, config=config.model_dump(mode="json"))
    files.want(wanted)
    try:
        _ask(url, "upgrade", {}, key_file)
    except (Refused, UserError):
        files.withdraw()
        raise
    deadline_s = time.monotonic() + TAKE_OVER_TIMEOUT_S
    while time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        if (refused := files.refused()) is not None:
            raise Refused(f"no controller can begin so, the old config stays: {refused.reason}")
        view = _look(url)
        if view is not None and view.term > term and not view.recovering:
            return
    files.withdraw()
    raise Refused(f"no new controller within {TAKE_OVER_TIMEOUT_S:g} s: see `expertmesh status`")


def _bring_in(
    changes: Changes,
    url: str,
    key_file: Path | None,
    timeout_s: float,
    *,
    as_json: bool,
    console: Console,
) -> int:
    """Sizes, then the processes that are of before."""

    def do(verb: str, body: dict[str, Any]) -> int:
        return change(
            verb, body, url=url, key_file=key_file, dry_run=False, wait_s=timeout_s,
            as_json=as_json, console=console,
        )  # fmt: skip

    for pool, size in changes.sizes.items():
        if code := do("scale", {"pool": pool, "size": size}):
            return code
    view = _look(url)
    if view is None:
        raise Refused("the controller does not answer: give the command again when it does")
    if any(place.outdated for place in view.places):
        return do("rolling-restart", {"target": "changed"}) or _look_again(url)
    if as_json:
        print_json({"changes": changes.keys, "replaced": []})
    else:
        console.print("every process runs with the installed code and this config", markup=False)
    return DONE


def _look_again(url: str) -> int:
    """What was replaced and is of before again runs where something else is installed."""
    view = _look(url)
    places = view.places if view is not None else []
    old = [f"{place.id} on {place.node.partition('/')[0]}" for place in places if place.outdated]
    if old:
        text = f"{', '.join(old)} still run other code: install this version there and try again"
        print(f"not through: {text}", file=sys.stderr)
    return REFUSED if old else DONE


def _show(changes: Changes, console: Console) -> None:
    for line in changes.keys:
        console.print(line, markup=False, soft_wrap=True)
    if changes.replaced:
        text = f"replaced, one at a time: what runs of {', '.join(changes.replaced)}"
        console.print(text, markup=False, soft_wrap=True)


def _ask(url: str, verb: str, body: dict[str, Any], key_file: Path | None) -> None:
    try:
        endpoint.change(url, verb, body, endpoint.admin_key(key_file))
    except endpoint.RefusedError as error:
        raise Refused(str(error)) from error


def _look(url: str) -> ClusterView | None:
    """None while nobody can say."""
    try:
        view, stale_s = endpoint.fetch_model(url, "/api/v1/cluster", ClusterView)
    except UserError:
        return None
    return None if stale_s else view
