"""One line that says why a component failed, dug out of exceptions and logs.

What reaches the controller is often only the last of several failures: vLLM's engine core runs in a
process of its own, and its parent knows no more than that it failed. Then the log of the component
has the cause.
"""

import json
import re
from pathlib import Path

from ray.exceptions import ActorDiedError, RayError, RayTaskError

LOG_TAIL_BYTES = 256 << 10
"""A cause is near the end of a log."""

DYING_WORDS_LINES = 3
"""A process that ends by an error says so at the very end of its log."""

POINTERS = ("See root cause above", "see the stack trace above", "check the stack trace above")
"""What vLLM says instead of a cause."""

# "(EngineCore pid=12) ERROR 11-22 11:39:40 [core.py:11] ValueError: text", the prefix optional.
_ERROR_LINE = re.compile(
    r"^(?:\([^)]*pid=\d+\) )?(?:ERROR \S+ \S+ \[[^\]]*\] )?"
    r"(?P<kind>(?:\w+\.)*\w*(?:Error|Exception|Refused)): (?P<text>.+)$"
)
_PLAIN_KINDS = (
    "ConnectionError",
    "InvalidFlagError",
    "ModelRefused",
    "OSError",
    "RuntimeError",
    "UserError",
    "ValueError",
)
"""Kinds of error whose name adds nothing to what they say."""
_PYDANTIC = re.compile(r"^\d+ validation errors? for (\w+)")


def cause_of(error: BaseException) -> str:
    """What an exception of an actor call says, in one line."""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, RayError):  # the true one could not be sent
            return last_error(error.traceback_str) or type(error).__name__
        if isinstance(error.cause, BaseException):
            error = error.cause
    if isinstance(error, ActorDiedError):
        return _cause_of_death(error)
    return one_line(type(error).__name__, str(error))


def one_line(kind: str, text: str) -> str:
    """The line of `text` that matters, with the error's kind where that helps."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return kind
    said = lines[0].rstrip(".")
    if section := _PYDANTIC.match(said):
        # Then the field, if it is about one, and "Value error, what is wrong [type=...]".
        detail = " ".join(lines[1:]).split(" [type=")[0].replace("Value error, ", "")
        return f"{section[1]}: {detail.rstrip('.')}"
    return said if kind.rpartition(".")[2] in _PLAIN_KINDS else f"{kind}: {said}"


def cause_in_log(folder: Path, pid: int, last_lines: int | None = None) -> str:
    """The last error in the log of a Ray worker of this machine; "" where there is none.

    last_lines: how near the end it must be; an error long before a death is not its cause.
    """
    for log in sorted(folder.glob(f"worker-*-{pid}.err")):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
        found = last_error("\n".join(lines[-last_lines if last_lines else 0 :]))
        if found:
            return found
    return ""


def last_error(text: str) -> str:
    """The last line of a log that names an error, pointers to other lines left out."""
    lines = [line for written in text.splitlines() for line in _lines_of(written)]
    for number in reversed(range(len(lines))):
        match = _ERROR_LINE.match(lines[number].strip())
        if match and not is_pointer(match["text"]):
            more = lines[number + 1 :] if _PYDANTIC.match(match["text"]) else []
            return one_line(match["kind"], "\n".join([match["text"], *more]))
    return ""


def _lines_of(written: str) -> list[str]:
    """A line of a log; where the log is JSON, the lines that one object holds."""
    if not written.startswith("{"):
        return [written]
    try:
        entry = json.loads(written)
    except ValueError:
        return [written]
    return [*str(entry.get("message", "")).splitlines(), *entry.get("exception", "").splitlines()]


def is_pointer(text: str) -> bool:
    """Whether `text` says only that the cause is elsewhere."""
    return any(pointer in text for pointer in POINTERS)


def _cause_of_death(error: ActorDiedError) -> str:
    text = str(error)
    if error.actor_init_failed:
        return last_error(text) or "its constructor failed"
    if "ray.kill" in text:
        return "it was ended by `ray.kill`"
    if "node" in text and "died" in text and "worker process" not in text:
        return "its node is lost"
    return "its process died: killed from outside, out of memory, or crashed"
