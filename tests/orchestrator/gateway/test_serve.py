"""The gateway on Ray Serve, in front of engine actors that are fakes."""

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
import time

import httpx
import psutil
import pytest

from benchmarks.harness.peak_memory import Peak
from orchestrator.api.models import ClusterView
from orchestrator.batch.settings import BatchSettings
from orchestrator.clients.ray_mesh import RayMeshClient
from orchestrator.config.batch import BatchConfig
from orchestrator.errors import UserError
from orchestrator.gateway.auth import digest
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.deploy import deploy_gateway, remove_gateway
from tests.orchestrator.gateway.fakes import VIEW
from tests.orchestrator.gateway.ray_fakes import (
    CONTROLLER,
    NAMESPACE,
    FakeController,
    FakeEngine,
    free_port,
    private_ray,
    start_actor,
)
from tests.processes import wait_until

pytestmark = pytest.mark.ray

PATH = "/v1/completions"
KEY = {"authorization": "Bearer key"}
MESH = RayMeshClient(CONTROLLER, NAMESPACE)


@pytest.fixture(scope="module")
def steady():
    with private_ray():
        controller = start_actor(FakeController, CONTROLLER, ["steady", "mortal"])
        yield start_actor(FakeEngine, "steady", "steady")
        del controller


@pytest.fixture(scope="module")
def client(steady, tmp_path_factory):
    assert running_on(steady) == 0
    batch = BatchSettings(
        config=BatchConfig(min_free_disk=0),
        folder=tmp_path_factory.mktemp("batch"),
        model_name="tiny",
        max_line_bytes=1 << 20,
    )
    config = GatewayConfig(mesh="test", model_name="tiny", port=free_port(), batch=batch)
    url = deploy_gateway(config, MESH, frozenset({digest("key")}))
    with httpx.Client(base_url=url, headers=KEY, timeout=30) as client:
        assert client.get("/health").status_code == 200
        yield client
    remove_gateway("test")


def running_on(engine):
    import ray

    return ray.get(engine.running.remote())


@pytest.fixture
def mortal(client):
    """A second engine, idle and therefore known to be ready; it may be killed."""
    import ray

    engine = start_actor(FakeEngine, "mortal", "mortal")
    pid = ray.get(engine.describe.remote()).pid
    wait_until(lambda: 'engines_ready{model_name="tiny"} 2.0' in client.get("/metrics").text)
    yield pid
    ray.kill(engine)


def test_answers_and_keys(client):
    assert client.post(PATH, json={}).json() == {"from": "steady"}
    assert client.post(PATH, json={}, headers={"authorization": "Bearer no"}).status_code == 401
    assert client.get("/v1/load_lora_adapter").status_code == 404
    assert client.get("/api/v1/status").json()["epoch"] == 1


def test_views_verbs_and_events_pass_through_ray_and_serves_proxy(client):
    cluster = client.get("/api/v1/cluster").json()
    assert cluster.pop("stale_s") == 0
    assert ClusterView.model_validate(cluster) == VIEW
    assert client.get("/api/v1/placement").json()["experts"] == 2
    done = client.post("/api/v1/scale", json={"pool": "a", "size": 3})
    assert done.json() == {"verb": "scale", "text": "scale a 3 False", "dry_run": False}
    refused = client.post("/api/v1/drain", json={"target": "b-0"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "refused")
    with client.stream("GET", "/api/v1/events?follow=1&after=0") as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("id: ")) == "id: 1"
        client.post("/api/v1/cordon", json={"target": "a-0"})
        data = [next(line for line in lines if line.startswith("data: ")) for _ in range(2)]
    reasons = [json.loads(line.removeprefix("data: "))["reason"] for line in data]
    assert reasons == ["scale a 3 False", "cordon a-0 0 False"]


def test_the_memory_of_an_upload_is_bounded_in_serves_proxy_and_in_the_gateway(client):
    """Also while the gateway is too slow, as when it is stopped: then the client has to wait."""
    size_mib, most_mib, stopped_s = 160, 64, 1.5
    (gateway,) = replicas("test")
    # A mesh of other tests may run beside this Ray session, whose workers have one parent.
    (proxy,) = (p for p in titled("ray::ProxyActor") if p.ppid() == gateway.ppid())
    answers = []

    def upload(file):
        form = {"data": {"purpose": "batch"}, "files": {"file": ("large.jsonl", file)}}
        answers.append(client.post("/v1/files", **form))

    with tempfile.TemporaryFile() as file:
        for _ in range(size_mib):
            file.write(b"{" + b"x" * ((1 << 20) - 2) + b"\n")
        file.seek(0)
        with Peak({"proxy": proxy, "gateway": gateway}) as peak:
            uploading = threading.Thread(target=upload, args=(file,))
            uploading.start()
            wait_until(lambda: file.tell() > most_mib // 4 << 20)
            gateway.suspend()
            time.sleep(stopped_s)
            gateway.resume()
            uploading.join()
    assert answers[0].json()["bytes"] == size_mib << 20
    assert client.delete(f"/v1/files/{answers[0].json()['id']}").json()["deleted"]
    assert peak.grown_mib("proxy") < most_mib
    assert peak.grown_mib("gateway") < most_mib


def test_events_arrive_while_they_are_made(client):
    body = {"stream": True, "n": 5, "interval_s": 0.2}
    times_s = []
    with client.stream("POST", PATH, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for _ in response.iter_raw():
            times_s.append(time.monotonic())
    assert len(times_s) == 6
    assert times_s[-1] - times_s[0] > 0.8


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine(client, steady, stream):
    body = {"stream": stream, "n": 10, "interval_s": 60}
    reader = threading.Thread(target=leave_early, args=(str(client.base_url), body))
    reader.start()
    wait_until(lambda: running_on(steady) == 1)
    reader.join()
    wait_until(lambda: running_on(steady) == 0)


def leave_early(url, body):
    try:
        httpx.post(url + PATH, json=body, headers=KEY, timeout=1.0)
    except httpx.TimeoutException:
        return
    raise AssertionError("the engine answered")


def test_requests_move_to_another_engine_when_theirs_is_killed(client, mortal):
    answers = []

    def ask():
        answers.append(client.post(PATH, json={"interval_s": 1.0}))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    wait_until(lambda: 'in_flight{model_name="tiny"} 4.0' in client.get("/metrics").text)
    os.kill(mortal, signal.SIGKILL)
    for asker in askers:
        asker.join()
    assert [answer.json() for answer in answers] == [{"from": "steady"}] * 4
    assert 'retries_total{model_name="tiny"} 2.0' in client.get("/metrics").text


def test_a_stream_ends_in_an_error_when_its_engine_is_killed(client, mortal):
    body = {"stream": True, "n": 1000, "interval_s": 0.05}
    with client.stream("POST", PATH, json=body) as elsewhere:
        events = elsewhere.iter_lines()  # held: httpx closes a stream whose iterator is gone
        assert next(events) == "data: steady"
        with client.stream("POST", PATH, json=body) as response:
            lines = response.iter_lines()
            assert next(lines) == "data: mortal"
            os.kill(mortal, signal.SIGKILL)
            rest = [line for line in lines if line]
    assert '"code": "engine_lost"' in rest[-1]


def test_a_second_address_on_the_same_cluster_is_refused(client):
    config = GatewayConfig(mesh="test", model_name="tiny", port=free_port())
    with pytest.raises(UserError, match=rf"listens on 127\.0\.0\.1:{client.base_url.port}"):
        deploy_gateway(config, MESH)
    assert client.get("/health").status_code == 200


def beside(client, mesh, route_prefix):
    """Config of another mesh at the same address."""
    port = client.base_url.port
    return GatewayConfig(mesh=mesh, model_name="tiny", port=port, route_prefix=route_prefix)


def test_a_second_mesh_with_a_prefix_serves_beside_the_first_and_goes_alone(client):
    try:
        url = deploy_gateway(beside(client, "second", "/second"), MESH, frozenset({digest("key")}))
        assert url == f"http://127.0.0.1:{client.base_url.port}/second"
        answer = httpx.post(url + PATH, json={}, headers=KEY, timeout=30)
        assert answer.json() == {"from": "steady"}
        assert httpx.get(url + "/health", timeout=30).status_code == 200
        assert httpx.post(url + PATH, json={}, timeout=30).status_code == 401
        assert client.get("/health").status_code == 200
    finally:
        remove_gateway("second")
    assert client.post(PATH, json={}).json() == {"from": "steady"}


def test_a_killed_replica_of_the_gateway_costs_no_request_that_comes_after(client):
    """Two of them; the proxy tries the other one where the request has not begun."""
    config = GatewayConfig(
        mesh="pair", model_name="tiny", port=client.base_url.port, route_prefix="/pair", replicas=2
    )
    url = deploy_gateway(config, MESH, frozenset({digest("key")}))
    with httpx.Client(base_url=url, headers=KEY, timeout=60) as pair:
        wait_until(lambda: len(replicas("pair")) == 2)
        victim = replicas("pair")[0]
        victim.kill()
        codes = [pair.post(PATH, json={}).status_code for _ in range(60)]
        assert codes == [200] * 60
        wait_until(lambda: len(replicas("pair")) == 2 and victim not in replicas("pair"))
    remove_gateway("pair")


def replicas(mesh):
    """Processes of a gateway's replicas."""
    return titled(f"ServeReplica:expertmesh-{mesh}:")


def titled(title):
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_prefix_that_another_application_has_is_refused_by_its_name(client):
    with pytest.raises(UserError, match="belongs to the Serve application expertmesh-test"):
        deploy_gateway(beside(client, "second", "/"), MESH)
    assert client.post(PATH, json={}).json() == {"from": "steady"}


def test_removal_lets_requests_finish_and_a_taken_port_is_named(client, steady):
    answers = []
    body = {"stream": True, "n": 10, "interval_s": 0.1}
    reader = threading.Thread(target=lambda: answers.append(client.post(PATH, json=body).text))
    reader.start()
    wait_until(lambda: running_on(steady) == 1)
    remove_gateway("test")
    reader.join()
    assert answers[0].endswith("data: 9\n\n")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = GatewayConfig(mesh="test", model_name="tiny", port=taken.getsockname()[1])
        with pytest.raises(UserError, match=rf"cannot listen on http://127\.0\.0\.1:{config.port}"):
            deploy_gateway(config, MESH)
    remove_gateway("test")
