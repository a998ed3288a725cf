"""Tables for people: one look for every command."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 200
"""Columns where the output is no terminal: nothing is cut off in a file or a pipe."""

LIFE_STYLES = {
    "starting": "yellow",
    "ready": "green",
    "suspect": "bold yellow",
    "draining": "yellow",
    "stopped": "dim",
    "dead": "bold red",
    "failed": "bold red",
}


def console_for(console: Console | None = None) -> Console:
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, FILE_WIDTH)
    return console


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: str = "") -> Table:
    """right: the columns with numbers, separated by blanks."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        numbers = column in right.split()
        made.add_column(
            column,
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=column in ("ID", "STATE", "POOL") or numbers,
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return made


def life(word: str) -> Text:
    return Text(word, LIFE_STYLES.get(word, ""))


def print_json(body: Any) -> None:
    sys.stdout.write(json.dumps(body, indent=2) + "\n")


def warn_stale(stale_s: float, console: Console) -> None:
    if stale_s:
        console.print(
            f"[bold yellow]as of {stale_s:.0f} s ago:[/] the controller does not answer; "
            "requests are served on"
        )
