"""Logs of a process: lines for people, or one JSON object a line for machines."""

import json
import logging
import sys
from datetime import UTC, datetime

from orchestrator.config.schema import LogFormat, LoggingConfig

PACKAGES = ("orchestrator", "actors", "placement")
"""Loggers that follow the configured level; libraries speak from WARNING up."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """time (UTC, ISO 8601), level, logger, component, message, exception, and every `extra`."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "component": self._component,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment: a live display puts a proxy there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)  # logging's own rule: a log line never breaks the program


def set_up_logging(config: LoggingConfig, component: str) -> None:
    """Send this process's logs to stderr, replacing what earlier calls set up.

    component: the process's id in the mesh, part of every line.
    """
    handler = StderrHandler()
    if config.format is LogFormat.JSON:
        handler.setFormatter(JsonFormatter(component))
    else:
        text = f"%(asctime)s %(levelname)-7s {component.replace('%', '%%')} %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(config.level.upper())
