"""Logs of a mesh's processes as the config wants them."""

from actors.logs import COMPONENT_VARIABLE, FORMAT_VARIABLE, LEVEL_VARIABLE, start_logging
from orchestrator.config.schema import LoggingConfig


def set_up_logging(config: LoggingConfig, component: str) -> None:
    """In this process. component: its id in the mesh, part of every line."""
    start_logging(config.level, config.format, component)


def log_environment(config: LoggingConfig, component: str) -> dict[str, str]:
    """Variables that tell a process, and those it starts, how to log."""
    return {
        LEVEL_VARIABLE: config.level,
        FORMAT_VARIABLE: config.format,
        COMPONENT_VARIABLE: component,
    }
