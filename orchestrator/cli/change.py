"""The verbs: ask the mesh for a change, say what came of it, and wait for its end if wanted."""

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.api.models import ClusterView, EventView
from orchestrator.cli import endpoint
from orchestrator.cli.events import as_line
from orchestrator.cli.tables import console_for, print_json
from orchestrator.errors import UserError

DONE, REFUSED = 0, 1
POLL_S = 0.5
PAGE = 200


def change(
    verb: str,
    body: dict[str, Any],
    *,
    url: str,
    key_file: Path | None,
    dry_run: bool,
    wait_s: float,
    as_json: bool,
    console: Console | None = None,
) -> int:
    """Exit code: 0 done, 1 refused or not through in time. Raises UserError (exit code 2)."""
    console = console_for(console)
    key = endpoint.admin_key(key_file)
    waiting = wait_s > 0 and not dry_run
    before = _last_event(url) if waiting else 0
    try:
        answer = endpoint.change(url, verb, {**body, "dry_run": dry_run}, key)
    except endpoint.RefusedError as error:
        if as_json:
            print_json({"verb": verb, "refused": str(error), "dry_run": dry_run})
        else:
            print(f"refused: {error}", file=sys.stderr)
        return REFUSED
    if not as_json:
        word = "would be done: " if dry_run else ""
        console.print(Text(f"{word}{answer['text']}"))
    trouble = _await_end(url, before, wait_s, None if as_json else console) if waiting else ""
    if as_json:
        print_json({**answer, "trouble": trouble} if waiting else answer)
    elif trouble:
        print(f"not through: {trouble}", file=sys.stderr)
    return REFUSED if trouble else DONE


def _last_event(url: str) -> int:
    found = endpoint.fetch(url, "/api/v1/events?after=-1")["events"]
    return int(found[-1]["number"]) if found else 0


def _await_end(url: str, after: int, wait_s: float, console: Console | None) -> str:
    """Show events until nothing moves any more; returns what went wrong, empty if nothing did."""
    deadline_s = time.monotonic() + wait_s
    trouble = ""
    while True:
        view = _look(url)
        for event in _new_events(url, after):
            after = event.number
            if event.step == "rolled back":
                trouble = event.reason
            if console is not None:
                console.print(as_line(event))
        if view is not None and view.settled:
            return trouble
        if time.monotonic() >= deadline_s:
            problems = "; ".join(view.problems.values()) if view else ""
            return trouble or problems or f"it still goes on after {wait_s:g} s"
        time.sleep(POLL_S)


def _look(url: str) -> ClusterView | None:
    """The mesh as it is; None while nobody can say, as between two controllers."""
    try:
        view, stale_s = endpoint.fetch_model(url, "/api/v1/cluster", ClusterView)
    except UserError:
        return None
    return None if stale_s else view


def _new_events(url: str, after: int) -> list[EventView]:
    try:
        body = endpoint.fetch(url, f"/api/v1/events?after={after}&limit={PAGE}")
    except UserError:
        return []
    return [EventView.model_validate(event) for event in body["events"]]
