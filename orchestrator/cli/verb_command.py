"""A command for each verb: its own arguments, and the options that all verbs share."""

import inspect
from collections.abc import Callable
from typing import Any

import typer

from orchestrator.cli.options import (
    DEFAULT_URL,
    DryRun,
    Json,
    KeyFile,
    Timeout,
    Url,
    Verbose,
    Wait,
)

Request = tuple[str, dict[str, Any]]
"""A verb and its body, as `/api/v1/` takes them."""

WAIT_S = 600.0


def verb_command(request: Callable[..., Request], *, waits: bool) -> Callable[..., None]:
    """The command that sends what `request` makes of its arguments; help and names are those of
    `request`. waits: whether one can wait for the end of what the verb begins."""
    own, shared = _parameters(request), _parameters(_send)[2:]
    if not waits:
        shared = [option for option in shared if option.name not in {"wait", "timeout"}]

    def command(**given: Any) -> None:
        verb, body = request(**{option.name: given.pop(option.name) for option in own})
        _send(verb, body, **given)

    command.__doc__ = request.__doc__
    command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return command


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _send(
    verb: str,
    body: dict[str, Any],
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_S,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    from orchestrator.cli.change import change

    wait_s = timeout if wait else 0.0
    exit_code = change(
        verb, body, url=url, key_file=key_file, dry_run=dry_run, wait_s=wait_s, as_json=as_json
    )
    raise typer.Exit(exit_code)
