"""API keys come from the environment and do not show in a printout."""

import pytest

from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError


def test_keys_are_split_at_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTMESH_API_KEYS", " one, two ,,")
    secrets = Secrets()
    assert [key.get_secret_value() for key in secrets.api_keys] == ["one", "two"]
    assert "one" not in repr(secrets)


def test_no_keys_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPERTMESH_API_KEYS", raising=False)
    assert Secrets().api_keys == ()


@pytest.mark.parametrize("value", [",", " ", " , ,"])
def test_a_variable_without_a_key_in_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("EXPERTMESH_API_KEYS", value)
    with pytest.raises(UserError, match="EXPERTMESH_API_KEYS is set but names no key"):
        Secrets()


def test_an_empty_variable_is_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTMESH_API_KEYS", "")
    assert Secrets().api_keys == ()
