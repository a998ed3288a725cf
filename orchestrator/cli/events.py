"""`expertmesh events`: the mesh's history, and what is added to it."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime

from rich.console import Console
from rich.text import Text

from orchestrator.api.models import EventView
from orchestrator.cli.endpoint import fetch, follow
from orchestrator.cli.tables import console_for, print_json, warn_stale
from orchestrator.errors import UserError

RETRY_S = 1.0
GIVE_UP_S = 60.0
"""How long a stream that broke off is asked for again."""

_STYLES = {"problem": "bold yellow", "dead": "bold red", "rolled back": "bold yellow"}


def events(
    url: str,
    following: bool,
    after: int,
    limit: int,
    as_json: bool,
    console: Console | None = None,
) -> int:
    console = console_for(console)
    if following:
        for event in follow_events(url, after):
            if as_json:
                sys.stdout.write(event.model_dump_json() + "\n")
                sys.stdout.flush()
            else:
                console.print(as_line(event))
        return 0
    body = fetch(url, f"/api/v1/events?after={after}&limit={limit}")
    if as_json:
        print_json(body)
        return 0
    warn_stale(float(body["stale_s"]), console)
    for event in body["events"]:
        console.print(as_line(EventView.model_validate(event)))
    return 0


def follow_events(url: str, after: int) -> Iterator[EventView]:
    """Events as they come; a stream that breaks off is asked for again from where it was.

    Raises:
        UserError: no mesh answers, or none any more.
    """
    heard_s = time.monotonic()
    began = False
    while True:
        try:
            with follow(url, after) as stream:
                for line in stream.iter_lines():
                    heard_s, began = time.monotonic(), True
                    if line.startswith("data: "):
                        event = EventView.model_validate(json.loads(line.removeprefix("data: ")))
                        after = event.number
                        yield event
        except UserError:
            if not began or time.monotonic() - heard_s > GIVE_UP_S:
                raise
        time.sleep(RETRY_S)


def as_line(event: EventView) -> Text:
    at = datetime.fromtimestamp(event.wall_s)
    style = _STYLES.get(event.step, "")
    return Text.assemble(
        (f"{at:%H:%M:%S} ", "dim"), (f"{event.subject}: ", "bold"), (event.reason, style)
    )
