"""A subscription keeps the newest view whatever its directory does, and acknowledges what is
followed; the directory is played by the test."""

import contextlib
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.dispatch.mesh_view import MeshView, ViewVersion
from actors.dispatch.subscription import FIRST_PAUSE_S, LONGEST_PAUSE_S, Subscription
from actors.dispatch.view_coding import encode_view
from actors.dispatch.view_messages import FROM_SUBSCRIBER, AdoptedHead, HelloHead
from actors.wire.address import Address, listen
from actors.wire.handshake import GREETING, NONCE_BYTES, Challenge
from actors.wire.messages import PREFIX, read_head, receive_message
from tests.actors.dispatch.views import content, random_view

SECRET = b"of this mesh"
WAIT_S = 60.0
SOON_S = 0.1
"""For what must not happen."""


class PlayedDirectory:
    """Accepts one connection after another when the test says so."""

    def __init__(self, address: Address) -> None:
        self._server, self.address = listen(address)
        self._server.settimeout(WAIT_S)
        self._open: list[socket.socket] = []

    def accept(self) -> socket.socket:
        sock, _ = self._server.accept()
        sock.settimeout(WAIT_S)
        self._open.append(sock)
        return sock

    def greet(self) -> socket.socket:
        """Accept, and read who it is."""
        sock = self.accept()
        said = read_head(FROM_SUBSCRIBER, receive_message(sock)[0])
        assert isinstance(said, HelloHead)
        assert said.role == "engine"
        return sock

    def close(self) -> None:
        for sock in (self._server, *self._open):
            sock.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[PlayedDirectory]:
    played = PlayedDirectory(Address(str(tmp_path / "d")))
    yield played
    played.close()


@pytest.fixture
def client(directory: PlayedDirectory) -> Iterator[Subscription]:
    with subscribed(directory) as subscription:
        yield subscription


@contextlib.contextmanager
def subscribed(directory: PlayedDirectory) -> Iterator[Subscription]:
    """A subscription whose thread runs, before it has got a view."""
    subscription = Subscription(directory.address, SECRET, "engine")
    with contextlib.ExitStack() as stack:
        starting = threading.Thread(target=start, args=(subscription,))
        starting.start()
        stack.callback(starting.join)
        stack.callback(subscription.stop)
        yield subscription


def start(subscription: Subscription) -> None:
    with contextlib.suppress(ConnectionError):
        subscription.start(WAIT_S)


def view(number: int, term: int = 1, seed: int = 0) -> MeshView:
    made = random_view(np.random.default_rng(seed), number)
    return replace(made, version=ViewVersion(term, number))


def until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.005)


def adopted(sock: socket.socket) -> ViewVersion:
    """The next acknowledgement."""
    said = read_head(FROM_SUBSCRIBER, receive_message(sock)[0])
    assert isinstance(said, AdoptedHead)
    return ViewVersion(*said.version)


def is_silent(sock: socket.socket) -> bool:
    sock.settimeout(SOON_S)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(WAIT_S)
    return False


# -- which view is in force


def test_an_older_view_is_refused_and_the_connection_stays(
    directory: PlayedDirectory, client: Subscription
) -> None:
    sock = directory.greet()
    newest, older, old_term, newer = view(5, 2), view(4, 2), view(9, 1), view(6, 2)
    sock.sendall(encode_view(newest))
    assert adopted(sock) == ViewVersion(2, 5)
    sock.sendall(encode_view(older, newest))
    sock.sendall(encode_view(old_term, older))
    until(lambda: client.refused == 2)
    assert client.current().version == ViewVersion(2, 5)
    assert is_silent(sock), "what is not followed is not acknowledged"
    sock.sendall(encode_view(newer, old_term))
    assert adopted(sock) == ViewVersion(2, 6)
    assert content(client.current()) == content(newer)
    assert client.failures == 0


def test_a_new_term_begins_with_any_number(
    directory: PlayedDirectory, client: Subscription
) -> None:
    first = directory.greet()
    first.sendall(encode_view(view(7, 1)))
    assert adopted(first) == ViewVersion(1, 7)
    first.close()
    second = directory.greet()
    second.sendall(encode_view(view(1, 2)))
    assert adopted(second) == ViewVersion(2, 1)
    assert content(client.current()) == content(view(1, 2))


def test_the_same_view_after_a_reconnection_changes_nothing(
    directory: PlayedDirectory, client: Subscription
) -> None:
    first = directory.greet()
    first.sendall(encode_view(view(3)))
    adopted(first)
    seen = client.current()
    first.close()
    second = directory.greet()
    second.sendall(encode_view(view(3)))
    assert adopted(second) == ViewVersion(1, 3), "the directory has to know again"
    assert client.current() is seen
    second.sendall(encode_view(view(4), view(3)))
    assert adopted(second) == ViewVersion(1, 4)
    assert content(client.current()) == content(view(4))


# -- what does not end it


BROKEN_HEAD = encode_view(view(2)).replace(b'"settings"', b'"sittings"')
NO_OBJECT = PREFIX.pack(4, 0) + b"null"
TOO_LONG = PREFIX.pack(2**32 - 1, 2**32 - 1)
OTHER_BASE = encode_view(view(2), view(1, seed=1))
CUT = encode_view(view(2))[:-1]


@pytest.mark.parametrize("broken", [BROKEN_HEAD, NO_OBJECT, TOO_LONG, OTHER_BASE, CUT, b""])
@pytest.mark.parametrize("after_a_view", [False, True])
def test_a_malformed_view_is_not_the_end(
    directory: PlayedDirectory, client: Subscription, broken: bytes, after_a_view: bool
) -> None:
    bad = directory.greet()
    if after_a_view:
        bad.sendall(encode_view(replace(view(1), version=ViewVersion(1, 0))))
        adopted(bad)
    bad.sendall(broken)
    bad.shutdown(socket.SHUT_WR)
    good = directory.greet()
    good.sendall(encode_view(view(3)))
    assert adopted(good) == ViewVersion(1, 3)
    assert content(client.current()) == content(view(3))
    assert client.failures == 1


def test_the_pause_is_short_again_after_a_view(
    directory: PlayedDirectory, client: Subscription
) -> None:
    pauses_s = []
    for gives_a_view in (False, False, False, False, True):
        sock = directory.greet()
        if gives_a_view:
            sock.sendall(encode_view(view(1)))
            adopted(sock)
        closed_s = time.monotonic()
        sock.close()
        until_next(directory)
        pauses_s.append(time.monotonic() - closed_s)
    assert pauses_s[3] > 4 * FIRST_PAUSE_S, "it grew"
    assert pauses_s[4] < pauses_s[3]
    assert client.failures == 5
    assert LONGEST_PAUSE_S > 4 * FIRST_PAUSE_S


def until_next(directory: PlayedDirectory) -> None:
    """Wait for a connection without accepting it."""
    assert select.select([directory._server], [], [], WAIT_S)[0]


def test_stop_ends_the_thread(directory: PlayedDirectory) -> None:
    with subscribed(directory) as client:
        sock = directory.greet()
        sock.sendall(encode_view(view(1)))
        adopted(sock)
        (thread,) = (one for one in threading.enumerate() if one.name == "mesh-directory")
        assert thread.daemon, "a process that does not stop it ends all the same"
        client.stop()
        client.stop()
        assert sock.recv(1) == b"", "it left"
        until(lambda: not client._thread.is_alive())
        assert content(client.current()) == content(view(1))


def test_nobody_there_is_said_with_the_reason(tmp_path: Path) -> None:
    client = Subscription(Address(str(tmp_path / "nobody")), SECRET, "engine")
    with pytest.raises(ConnectionError, match=r"no ExpertMesh answers at unix:.*No such file"):
        client.start(0.05)
    until(lambda: not client._thread.is_alive())


# -- adopted, not received


def test_the_environment_names_the_mesh_and_its_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, address = listen(Address("127.0.0.1", 0))
    server.close()
    monkeypatch.setenv("EXPERTMESH_ADDRESS", str(address))
    monkeypatch.setenv("EXPERTMESH_SECRET", SECRET.decode())
    named = Subscription.from_environment("external")
    assert (named._address, named._secret, named._role) == (address, SECRET, "external")
    monkeypatch.delenv("EXPERTMESH_SECRET")
    assert Subscription.from_environment("engine")._secret == b""
    monkeypatch.delenv("EXPERTMESH_ADDRESS")
    with pytest.raises(KeyError, match="EXPERTMESH_ADDRESS"):
        Subscription.from_environment("engine")


def test_idle_dispatchers_hold_up_nobody(directory: PlayedDirectory, client: Subscription) -> None:
    client.join()
    leaving = client.join()
    leaving.calls = 1
    sock = directory.greet()
    sock.sendall(encode_view(view(1)))
    until(lambda: client._view is not None)
    assert is_silent(sock), "one is in the middle of a call"
    client.leave(leaving)
    assert adopted(sock) == ViewVersion(1, 1)


def test_a_view_is_acknowledged_when_a_call_follows_it(
    directory: PlayedDirectory, client: Subscription
) -> None:
    busy, other = client.join(), client.join()
    sock = directory.greet()
    sock.sendall(encode_view(view(1)))
    assert adopted(sock) == ViewVersion(1, 1)
    busy.calls, busy.version = 1, ViewVersion(1, 1)
    other.calls, other.version = 2, ViewVersion(1, 1)
    sock.sendall(encode_view(view(2), view(1)))
    until(lambda: client.current().version == ViewVersion(1, 2))
    assert is_silent(sock)
    busy.calls = 0
    assert is_silent(sock), "the other one still follows the first"
    sock.sendall(encode_view(view(3), view(2)))
    until(lambda: client.current().version == ViewVersion(1, 3))
    other.version = ViewVersion(1, 3)
    assert adopted(sock) == ViewVersion(1, 3), "the one before was left out"
    assert is_silent(sock)


# -- false directories


def answer_with(proof_of: Callable[[bytes, bytes], bytes], sock: socket.socket) -> None:
    """Greet as a directory that does not know the secret, then send a view."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    with contextlib.suppress(OSError):
        sock.sendall(GREETING + b"\0" + nonce)
        answer = b""
        while len(answer) < 64:
            answer += sock.recv(64 - len(answer))
        sock.sendall(proof_of(nonce, answer) + encode_view(view(1)))


@pytest.mark.parametrize(
    "proof_of",
    [
        lambda _nonce, _answer: bytes(32),
        lambda _nonce, _answer: secrets.token_bytes(32),
        lambda _nonce, answer: answer[NONCE_BYTES:],
        lambda nonce, _answer: nonce,
    ],
    ids=["zeros", "guess", "reflection", "nonce"],
)
def test_a_false_directory_is_not_believed(proof_of: Callable[[bytes, bytes], bytes]) -> None:
    directory = PlayedDirectory(Address("127.0.0.1", 0))
    with contextlib.closing(directory), subscribed(directory) as client:
        for tries in range(1, 3):
            answer_with(proof_of, directory.accept())
            until(lambda: client.failures == tries)  # noqa: B023
        assert client._view is None
        assert "does not know this mesh's secret" in client._failure


def test_the_true_directory_is_believed_over_tcp() -> None:
    directory = PlayedDirectory(Address("127.0.0.1", 0))
    with contextlib.closing(directory), subscribed(directory) as client:
        sock = directory.accept()
        challenge = Challenge(SECRET)
        sock.sendall(challenge.opening)
        answer = b""
        while len(answer) < 64:
            answer += sock.recv(64 - len(answer))
        sock.sendall(challenge.accept(answer) + encode_view(view(1)))
        assert isinstance(read_head(FROM_SUBSCRIBER, receive_message(sock)[0]), HelloHead)
        assert adopted(sock) == ViewVersion(1, 1)
        assert content(client.current()) == content(view(1))


def test_following_a_mesh_imports_no_numba() -> None:
    """vLLM's kernel overrides look into every module that is loaded before they apply, and stumble
    over llvmlite's; views are followed earlier than that."""
    check = "import sys, actors.vllm_plugin.connection; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
