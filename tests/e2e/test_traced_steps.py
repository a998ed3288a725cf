"""A mesh whose steps are traced, started through the command line: engine, router and shards send
spans that join, and steps link to the requests in them."""

import httpx
import pytest

from tests.checkpoints.make import make_checkpoint
from tests.e2e.mesh_process import MeshProcess, mesh_config
from tests.processes import wait_until
from tests.telemetry.spans import attributes_of, spans_of
from tests.telemetry.test_otlp import http_collector

pytestmark = [pytest.mark.e2e, pytest.mark.long]

TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_a_routers_mesh_traces_its_steps(tmp_path):
    model = make_checkpoint("qwen3_moe", tmp_path / "model")
    with http_collector(received := []) as endpoint:
        telemetry = {"otlp_endpoint": endpoint, "otlp_protocol": "http", "step_trace_ratio": 1.0}
        config = mesh_config(model, "traced", telemetry=telemetry, router={"mode": "actor"})
        with MeshProcess(config) as mesh:
            mesh.wait_for("ready at")
            answer = httpx.post(
                f"{mesh.url}/v1/completions",
                json={"model": "tiny", "prompt": "a", "max_tokens": 3, "temperature": 0},
                headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
                timeout=120,
            )
            assert answer.status_code == 200

            def joined():
                """(step, dispatch, shards) of a step that links to the request."""
                found = spans_of(received)
                for *_, step in found:
                    for _, router, dispatch in found:
                        if step.links and dispatch.parent_span_id == step.span_id:
                            below = {w for _, w, s in found if s.parent_span_id == dispatch.span_id}
                            if len(below) == attributes_of(dispatch)["shards"]:
                                return step, router, below
                return None

            wait_until(joined, timeout_s=90)
            step, router, shards = joined()
            assert step.links[0].trace_id.hex() == TRACE
            assert router.startswith("router")
            assert shards <= {"nvidia-0", "ascend-0"}
