"""A watch goes on where it was cut off, and starts again where the server has forgotten that."""

import threading
import time

import pytest

from orchestrator.errors import UserError
from orchestrator.kubernetes import api as api_module
from orchestrator.kubernetes.api import KubernetesApi
from orchestrator.kubernetes.kinds import PODS
from tests.k8s.api_server import api_server
from tests.k8s.kuberay import PODS as COLLECTION

LABELS = {"ray.io/cluster": "chat"}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(api_module, "RETRY_PAUSE_S", 0.02)
    with api_server() as started:
        yield started


@pytest.fixture
def api(server, tmp_path):
    return KubernetesApi.connect(server.kubeconfig(tmp_path))


def put(server, name, labels=None):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or LABELS},
    }
    with server.store.lock:
        server.store.put((COLLECTION, "expertmesh", name), pod)


def names(api, count, *, meanwhile=None, timeout_s=20.0):
    """Names of the first events, and what kind each was."""
    found = []
    deadline_s = time.monotonic() + timeout_s
    for event in api.watch(PODS, "expertmesh", LABELS, deadline_s):
        if event is not None:
            found.append((event.kind, event.item["metadata"]["name"]))
        if len(found) == count:
            return found
        if meanwhile is not None:
            meanwhile()
            meanwhile = None
    return found


def watches(server):
    return [r for r in server.requests if "watch=true" in r]


def lists(server):
    return [r for r in server.requests if "/pods?" in r and "watch=true" not in r]


def test_what_is_there_comes_first_then_what_changes(api, server):
    put(server, "a")
    put(server, "other", {"ray.io/cluster": "another"})
    later = threading.Timer(0.2, put, (server, "b"))
    later.start()
    assert names(api, 2) == [("ADDED", "a"), ("ADDED", "b")]
    later.join()


def test_a_cut_connection_costs_no_event_and_repeats_none(api, server):
    put(server, "a")

    def meanwhile():
        for name in ("b", "c", "d"):
            put(server, name)
        server.watch_lines = 1  # the second line is cut off half-way

    found = names(api, 4, meanwhile=meanwhile)
    assert found == [("ADDED", name) for name in "abcd"]
    assert len(watches(server)) >= 2
    assert len(lists(server)) == 1, "it goes on, it does not begin again"


def test_a_refused_connection_is_tried_again(api, server):
    put(server, "a")
    server.refuse("GET", "watch=true", 0, times=2)
    later = threading.Timer(0.3, put, (server, "b"))
    later.start()
    assert names(api, 2) == [("ADDED", "a"), ("ADDED", "b")]
    later.join()


def test_after_410_it_begins_with_a_list(api, server):
    put(server, "a")

    def meanwhile():
        put(server, "b")
        server.store.forget()

    assert names(api, 3, meanwhile=meanwhile) == [("ADDED", "a"), ("ADDED", "a"), ("ADDED", "b")]
    assert len(lists(server)) == 2


def test_410_within_a_watch_begins_with_a_list_too(api, server):
    put(server, "a")

    def forget():
        with server.store.lock:
            server.store.version += 1
            server.store.forget()
            server.store.changed.notify_all()

    later = threading.Timer(0.3, forget)
    later.start()
    assert names(api, 2) == [("ADDED", "a"), ("ADDED", "a")]
    later.join()


def test_it_ends_in_time_and_is_never_silent(api, monkeypatch):
    monkeypatch.setattr(api_module, "WATCH_S", 1.0)
    begun_s = time.monotonic()
    said = list(api.watch(PODS, "expertmesh", LABELS, begun_s + 1.5))
    assert said
    assert said == [None] * len(said)
    assert time.monotonic() - begun_s < 20


def test_a_watch_that_is_not_allowed_is_one_line(api, server):
    put(server, "a")
    server.refuse(
        "GET", "watch=true", 403, 'User "eve" cannot watch resource "pods" in API group ""'
    )
    with pytest.raises(UserError, match="you may not watch pods"):
        names(api, 2)
