"""The run folder: private, short, and gone at the end."""

import tempfile
from pathlib import Path

import pytest

from actors.wire.address import parse_address
from orchestrator.errors import UserError
from orchestrator.run_dir import MAX_PARENT_BYTES, SHORT_PARENT, RunDir

RAY_SOCKET = "session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"


def test_private_and_removed() -> None:
    run_dir = RunDir.create()
    assert run_dir.path.stat().st_mode & 0o777 == 0o700
    assert run_dir.scratch.is_dir()
    assert parse_address(run_dir.socket("shard")).host == f"{run_dir.path}/s/shard"
    run_dir.remove()
    assert not run_dir.path.exists()


def test_the_longest_parent_leaves_room_for_rays_sockets() -> None:
    longest = Path("/" + "x" * (MAX_PARENT_BYTES - 1))
    socket = RunDir(longest / "xmesh-12345678").ray / RAY_SOCKET
    assert len(bytes(socket)) <= 107


def test_a_long_parent_is_refused_when_asked_for_and_avoided_when_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * MAX_PARENT_BYTES)
    long.mkdir()
    with pytest.raises(UserError, match=r"cluster.temp_dir .* is too long .*: choose a path"):
        RunDir.create(long)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    run_dir = RunDir.create()
    assert run_dir.path.parent == SHORT_PARENT
    run_dir.remove()


def test_a_parent_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no folder can be made in /nowhere"):
        RunDir.create(Path("/nowhere"))
