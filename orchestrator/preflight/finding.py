"""What a check found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  # serves, but slower, or not as one might expect
    FAILURE = "failure"  # would not serve


@dataclass(frozen=True, slots=True)
class Finding:
    """One line about one thing.

    name:    what was looked at, two or three words.
    message: what was found, naming the thing.
    fix:     what to do about it, as an imperative; empty when all is well.
    """

    name: str
    level: Level
    message: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether a mesh can start in spite of it."""
        return self.level is not Level.FAILURE

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "ok": self.ok,
            "level": self.level.value,
            "message": self.message,
            "fix": self.fix,
        }
