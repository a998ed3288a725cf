"""The environment an engine process gets, and the states it goes through."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from actors.engine.config import EngineConfig
from actors.engine_lifecycle import TRANSITIONS, EngineState, check_transition


def make_config(**changes):
    fields = {"engine_id": "e0", "model": "/model", "served_model_name": "m"}
    return EngineConfig(**(fields | changes))


def test_an_engine_reaches_no_network_unless_told_otherwise():
    variables = make_config(cpu_kv_cache_gib=3).variables()
    assert variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_given_variables_win():
    variables = make_config(environment={"VLLM_LOGGING_LEVEL": "DEBUG"}).variables()
    assert variables["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_vllm_logs_json_where_the_mesh_does(monkeypatch):
    assert "VLLM_LOGGING_CONFIG_PATH" not in make_config().variables()
    monkeypatch.setenv("EXPERTMESH_LOG_FORMAT", "json")
    assert Path(make_config().variables()["VLLM_LOGGING_CONFIG_PATH"]).is_file()


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="modell"):
        make_config(modell="/typo")


def test_a_dead_or_draining_engine_never_serves_again():
    for state in (EngineState.DEAD, EngineState.DRAINING):
        with pytest.raises(ValueError, match="cannot go from"):
            check_transition(state, EngineState.READY)


def test_every_state_can_die_but_the_dead():
    for state in EngineState:
        assert (EngineState.DEAD in TRANSITIONS[state]) == (state is not EngineState.DEAD)
