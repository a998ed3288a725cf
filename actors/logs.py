"""Logs of a process: lines for people, or one JSON object a line for machines.

Every process of a mesh is told level, format and its name by its environment, which what it starts
inherits: vLLM's own processes too.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from actors.request_logs import request_fields

PACKAGES = ("orchestrator", "actors", "placement")
"""Loggers that follow the configured level; libraries speak from WARNING up."""

LEVEL_VARIABLE = "EXPERTMESH_LOG_LEVEL"
FORMAT_VARIABLE = "EXPERTMESH_LOG_FORMAT"
COMPONENT_VARIABLE = "EXPERTMESH_COMPONENT"
JSON = "json"

VLLM_JSON_CONFIG = Path(__file__).parent / "engine" / "vllm_json_logging.json"
"""For VLLM_LOGGING_CONFIG_PATH: vLLM's processes log in our form."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """time (UTC, ISO 8601), level, logger, component, message, exception, the `request` and `trace`
    that the line is about, and every `extra`."""

    def __init__(self, component: str | None = None) -> None:
        """component: default: as the environment says."""
        super().__init__()
        self._component = component or os.environ.get(COMPONENT_VARIABLE, "")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "component": self._component,
            "message": record.getMessage(),
        }
        line |= request_fields()
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class LineFormatter(logging.Formatter):
    """For people; a line about a request ends with its id and trace."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        about = " ".join(f"{name}={value}" for name, value in request_fields().items())
        return f"{line} [{about}]" if about else line


class StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: a live display puts a proxy there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)  # logging's own rule: a log line never breaks the program


def start_logging(
    level: str | None = None, log_format: str | None = None, component: str | None = None
) -> None:
    """Send this process's logs to stderr, replacing what earlier calls set up.

    component: the process's id in the mesh, part of every line. What is not given is as the
    environment says.
    """
    level = level or os.environ.get(LEVEL_VARIABLE, "INFO")
    component = component or os.environ.get(COMPONENT_VARIABLE, "")
    handler = StderrHandler()
    if (log_format or os.environ.get(FORMAT_VARIABLE)) == JSON:
        handler.setFormatter(JsonFormatter(component))
    else:
        text = f"%(asctime)s %(levelname)-7s {component.replace('%', '%%')} %(name)s: %(message)s"
        handler.setFormatter(LineFormatter(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level.upper())
