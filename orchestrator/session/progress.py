"""Who is told how far a mesh is while it starts and stops."""

from typing import Protocol


class Progress(Protocol):
    """One step at a time: `step`, any number of `update`, then `done` or `give_up`.

    The command line shows it (`cli.progress`). Every method may be called from any thread.
    """

    def step(self, name: str) -> None:
        """Begin a step that may take a while; ends the one before."""

    def update(self, text: str) -> None:
        """How far the step is, in a few words."""

    def done(self, text: str = "") -> None:
        """End the step, with what came out of it."""

    def give_up(self, word: str = "failed") -> None:
        """End the step without a result; what went wrong is told as an error."""

    def warn(self, text: str) -> None:
        """Something the person should know that does not stop the mesh."""

    def ready(self, url: str) -> None:
        """The mesh serves at `url`."""
