"""Compiled code is kept for this user, this CPU and these versions only."""

import os
from pathlib import Path

import pytest

from actors.cache_base import cache_base
from actors.vllm_plugin import compile_cache


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compile_cache.CACHE_VARIABLE, raising=False)


def test_the_same_folder_at_every_start(tmp_path):
    folder = compile_cache.cache_folder()
    assert folder == compile_cache.cache_folder()
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0
    variables = compile_cache.cache_variables()
    assert variables.pop(compile_cache.HEADERS_VARIABLE) == "0"
    assert all(Path(value).is_relative_to(folder) for value in variables.values())


def test_headers_are_compiled_ahead_for_who_wants_that(monkeypatch):
    monkeypatch.setenv(compile_cache.HEADERS_VARIABLE, "1")
    assert compile_cache.cache_variables()[compile_cache.HEADERS_VARIABLE] == "1"


def test_a_process_uses_the_folder_of_who_started_it(monkeypatch):
    monkeypatch.setenv(compile_cache.CACHE_VARIABLE, "/inherited")
    assert compile_cache.cache_variables() == {}


@pytest.mark.parametrize("changed", ["_cpu", "_version"])
def test_another_folder_for_another_cpu_or_version(monkeypatch, changed):
    before = compile_cache.key()
    monkeypatch.setattr(compile_cache, changed, lambda *_: "another")
    assert compile_cache.key() != before


def test_another_folder_for_another_plugin(monkeypatch, tmp_path):
    before = compile_cache.key()
    (tmp_path / "routed_experts.py").write_text("pass\n")
    monkeypatch.setattr(compile_cache, "PLUGINS", (*compile_cache.PLUGINS, tmp_path))
    assert compile_cache.key() != before


def test_all_of_our_code_that_vllm_runs_counts():
    names = {file.name for folder in compile_cache.PLUGINS for file in folder.rglob("*.py")}
    assert {"routed_experts.py", "clamped_experts.py", "metadata_kernels.py"} <= names


def test_a_folder_that_others_can_write_to_is_not_used():
    folder = compile_cache.cache_folder()
    folder.chmod(0o777)
    other = compile_cache.cache_folder()
    assert other != folder
    os.rmdir(other)


def test_a_user_without_home_and_name_has_a_folder(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    assert str(os.geteuid()) in cache_base().name
