"""A head node that asks for a token, as far as the first question goes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from orchestrator.config.schema import ClusterConfig
from orchestrator.preflight.network import check_ray
from orchestrator.preflight.ray_access import METHOD, why_refused

TOKEN = "0123456789abcdef"


class Head(grpc.GenericRpcHandler):
    """Answers one method, to whoever sends the token."""

    def service(self, details: Any) -> Any:
        if details.method != METHOD:
            return None
        sent = dict(details.invocation_metadata).get("authorization", "")
        return grpc.unary_unary_rpc_method_handler(
            lambda _, context: b"" if sent == f"Bearer {TOKEN}" else refuse(context)
        )


def refuse(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_cluster_that_asks_for_a_token_is_told_with_the_mend(address: str) -> None:
    finding = check_ray(ClusterConfig(ray_address=address), {})
    assert not finding.ok
    assert finding.message == f"the Ray cluster at {address} asks for a token"
    assert "RAY_AUTH_MODE=token" in finding.fix


def test_what_does_not_know_the_question_has_nothing_against_us() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert why_refused(f"127.0.0.1:{port}") == ""
    server.stop(None).wait()
