"""Sockets and their folders come and go on every node."""

from pathlib import Path

from actors.listening import ready_to_listen, remove_sockets


def test_the_last_socket_takes_the_folders_along(tmp_path: Path) -> None:
    folder = tmp_path / "xmesh-abc" / "s"
    texts = [f"unix:{folder}/a", "tcp:127.0.0.1:0"], [f"unix:{folder}/b"]
    for listen in texts:
        (address, *_) = ready_to_listen(listen)
        Path(address.host).touch()
    assert folder.stat().st_mode & 0o777 == 0o700
    remove_sockets(texts[0])
    assert [path.name for path in folder.iterdir()] == ["b"]
    remove_sockets(texts[1])
    remove_sockets(texts[1])
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_not_a_meshs_stay(tmp_path: Path) -> None:
    listen = [f"unix:{tmp_path}/mine/s/a"]
    ready_to_listen(listen)
    remove_sockets(listen)
    assert (tmp_path / "mine").is_dir()
