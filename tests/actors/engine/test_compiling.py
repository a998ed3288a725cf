"""Engines compile wherever that can work."""

import os

import pytest

from actors.engine.compiling import has_cpp_compiler, starts_eagerly


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH with nothing on it but what the test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)

    def add(name):
        (tmp_path / name).write_text("")
        os.chmod(tmp_path / name, 0o755)

    return add


def test_a_cpu_without_a_compiler_is_served_eagerly(tools):
    assert starts_eagerly(on_cpu=True)
    tools("g++")
    assert not starts_eagerly(on_cpu=True)


def test_several_ranks_on_cpus_are_served_eagerly(tools):
    tools("g++")
    assert starts_eagerly(on_cpu=True, ranks=2)
    assert not starts_eagerly(on_cpu=False, ranks=2)


def test_the_compiler_may_be_another_one(tools, monkeypatch):
    tools("clang++")
    assert not has_cpp_compiler()
    monkeypatch.setenv("CXX", "clang++")
    assert has_cpp_compiler()


@pytest.mark.usefixtures("tools")
def test_other_devices_compile_without_one():
    assert not starts_eagerly(on_cpu=False)
