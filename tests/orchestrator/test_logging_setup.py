"""Log lines for people and for machines."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from actors.logs import PACKAGES, VLLM_JSON_CONFIG, start_logging
from orchestrator.config.schema import LogFormat, LoggingConfig, LogLevel
from orchestrator.logging_setup import log_environment, set_up_logging


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
    logging.getLogger("actors.shard.shard").debug("loaded %d slots", 3)
    logging.getLogger("library").info("chatter")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("DEBUG   shard 50% actors.shard.shard: loaded 3 slots")


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


def test_a_process_logs_as_its_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoggingConfig(level=LogLevel.DEBUG, format=LogFormat.JSON)
    for name, value in log_environment(config, "a-0").items():
        monkeypatch.setenv(name, value)
    start_logging()
    logging.getLogger("actors.shard.shard").debug("loaded")
    start_logging("ERROR")
    logging.getLogger("actors.shard.shard").warning("not at level error")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["component"], entry["message"]) == ("a-0", "loaded")


VLLM_PROCESS = """
import json, logging, logging.config, sys
logging.config.dictConfig(json.load(open(sys.argv[1])))
logging.getLogger("vllm.engine").info("not at level warning")
logging.getLogger("vllm.engine").warning("slow")
logging.getLogger("actors.vllm_plugin").warning("lost")
"""


def test_vllms_own_loggers_write_json() -> None:
    environment = os.environ | log_environment(LoggingConfig(format=LogFormat.JSON), "engine-0")
    command = [sys.executable, "-c", VLLM_PROCESS, str(VLLM_JSON_CONFIG)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(e["component"], e["logger"], e["message"]) for e in entries] == [
        ("engine-0", "vllm.engine", "slow"),
        ("engine-0", "actors.vllm_plugin", "lost"),
    ]
