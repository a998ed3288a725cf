"""API keys come from the environment and do not show in a printout."""

import pytest

from orchestrator.config.secrets import Secrets


def test_keys_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTMESH_API_KEYS", " one, two ,,")
    secrets = Secrets()
    assert [key.get_secret_value() for key in secrets.api_keys] == ["one", "two"]
    assert "one" not in repr(secrets)


def test_no_keys_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPERTMESH_API_KEYS", raising=False)
    assert Secrets().api_keys == ()
