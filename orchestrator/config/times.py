"""Spans of time as people write them: a completion window, hours of the day."""

import re
from dataclasses import dataclass
from datetime import datetime, time
from typing import Self

MIN_WINDOW_S = 3600.0
MAX_WINDOW_S = 7 * 24 * 3600.0

_WINDOW = re.compile(r"([1-9]\d{0,3})([hd])")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def window_s(text: str) -> float:
    """Seconds of a completion window. Raises `ValueError` with what to write."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * (3600.0 if match[2] == "h" else 86400.0) if match else 0.0
    if not MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        raise ValueError(
            f"completion_window {text!r} is not between 1h and 7d: write such as 24h or 3d"
        )
    return seconds


@dataclass(frozen=True, slots=True)
class Hours:
    """A part of each day, in the local time of the runner's machine; may go past midnight."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ValueError` with what to write."""
        match = _HOURS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no part of a day: write such as 22:00-06:00")
        start, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        if start == end:
            raise ValueError(f"{text!r} begins when it ends: leave it out for the whole day")
        return cls(start, end)

    def contain(self, now: datetime) -> bool:
        at = now.time()
        if self.start < self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end
