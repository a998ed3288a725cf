"""What a person sees while a mesh starts: a live line on a terminal, else timestamped lines."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.status import Status

PLAIN_UPDATE_INTERVAL_S = 5.0
"""Without a terminal, updates of a step appear at most this often."""


class ConsoleProgress:
    """The `Progress` of commands (`session.progress`).

    Writes to stdout: stderr is for errors and logs. A new `step` ends the one before; leaving the
    `with` block ends whatever is shown.
    """

    def __init__(
        self, console: Console | None = None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(highlight=False)
        self._clock_s = clock_s
        self._live = self._console.is_terminal
        self._status: Status | None = None
        self._name: str | None = None
        self._begun_s = self._said_s = 0.0
        self.on_ready: Callable[[str], None] = lambda _url: None
        """Called with the endpoint's URL when the mesh serves."""
        self.next_steps: Callable[[str], Sequence[str]] = lambda _url: ()
        """Lines that say what to do with that URL, ready to be copied."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()
        self._name = None

    def step(self, name: str) -> None:
        """Begin a step that may take a while."""
        if self._name is not None:
            self.done()
        self._name = name
        self._begun_s = self._said_s = self._clock_s()
        if self._live:
            self._status = self._console.status(escape(name))
            self._status.start()
        else:
            self._say(f"{name} ...")

    def update(self, text: str) -> None:
        """How far the step is, in a few words."""
        if self._name is None:
            return
        if self._status is not None:
            self._status.update(f"{escape(self._name)} [dim]{escape(text)}[/]")
        elif self._clock_s() - self._said_s >= PLAIN_UPDATE_INTERVAL_S:
            self._said_s = self._clock_s()
            self._say(f"{self._name}: {text}")

    def done(self, text: str = "") -> None:
        """End the step, with what came out of it."""
        if self._name is None:
            return
        name, took = self._name, f"({self._clock_s() - self._begun_s:.1f} s)"
        self._clear()
        self._name = None
        if self._live:
            self._console.print(f"[green]✓[/] {escape(name)} {escape(text)} [dim]{took}[/]")
        else:
            self._say(f"{name}: {text or 'done'} {took}")

    def give_up(self, word: str = "failed") -> None:
        """End the step without a result; what went wrong is told as an error."""
        if self._name is None:
            return
        name, self._name = self._name, None
        self._clear()
        if self._live:
            self._console.print(f"[red]✗[/] {escape(name)} [dim]{word}[/]")
        else:
            self._say(f"{name}: {word}")

    def warn(self, text: str) -> None:
        """Something the person should know that does not stop the mesh."""
        if self._live:
            self._console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)
        else:
            self._say(f"warning: {text}")

    def ready(self, url: str) -> None:
        """The mesh serves at `url`."""
        if self._name is not None:
            self.done()
        self.on_ready(url)
        if self._live:
            self._console.rule(f"[bold green]ready[/] at [bold]{escape(url)}", align="left")
        else:
            self._say(f"ready at {url}")
        for line in self.next_steps(url):
            # Unwrapped and without a frame, so that a command can be copied from the screen.
            self._console.print(line, markup=False, soft_wrap=True)
        if self._live:
            self._console.rule()

    def _clear(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _say(self, text: str) -> None:
        line = f"{datetime.now():%H:%M:%S} {text}"
        self._console.print(line, markup=False, soft_wrap=True)


def own_command() -> str:
    """How to call this program again: its name, with the path where the shell needs it."""
    name, called = "expertmesh", sys.argv[0]
    if Path(called).name != name:
        return name
    found = shutil.which(name)
    return name if found and Path(found).samefile(called) else shlex.quote(called)


def next_steps(url: str, model: str, needs_key: bool) -> list[str]:
    """What to try on a mesh that has just become ready: lines for `ConsoleProgress.next_steps`."""
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 48})
    key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    return [
        "",
        "  Try it:",
        f"    curl {url}/v1/completions -H 'Content-Type: application/json'{key} \\",
        f"      -d {shlex.quote(body)}",
        f"  Look inside:   {own_command()} status --url {url}",
        "  Stop it:       Ctrl-C",
        "",
    ]
