"""Log lines for people and for machines."""

import json
import logging
from collections.abc import Iterator

import pytest

from orchestrator.config.schema import LogFormat, LoggingConfig, LogLevel
from orchestrator.logging_setup import PACKAGES, set_up_logging


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.NOTSET)


def test_text_names_component_and_keeps_libraries_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LoggingConfig(level=LogLevel.DEBUG), component="shard 50%")
    logging.getLogger("actors.shard").debug("loaded %d slots", 3)
    logging.getLogger("library").info("chatter")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("DEBUG   shard 50% actors.shard: loaded 3 slots")


def test_json_carries_extra_fields_and_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LoggingConfig(format=LogFormat.JSON), component="controller")
    logger = logging.getLogger("orchestrator.controller")
    logger.debug("not at level info")
    logger.info("epoch committed", extra={"epoch": 4, "reason": "hot expert"})
    try:
        raise ValueError("broken\nbadly")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert {key: first[key] for key in ("level", "logger", "component", "message", "epoch")} == {
        "level": "info",
        "logger": "orchestrator.controller",
        "component": "controller",
        "message": "epoch committed",
        "epoch": 4,
    }
    assert first["reason"] == "hot expert"
    assert "ValueError: broken" in second["exception"]


def test_setting_up_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    for component in ("one", "two"):
        set_up_logging(LoggingConfig(), component=component)
    logging.getLogger("orchestrator").warning("once")
    assert capsys.readouterr().err.count("once") == 1
