"""The example's Prometheus: the project's rules in less time, over a mesh whose balance comes and
goes."""

import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "hot_experts"
METRICS = """\
expertmesh_ready 1
expertmesh_balancedness {balancedness}
expertmesh_shard_assignments_total{{shard="s"}} {assignments}
"""


@pytest.fixture
def alerts(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    import alerts

    return alerts


def test_only_times_are_changed(alerts):
    given, shorter = alerts.RULES.read_text(), alerts.hastened(alerts.RULES.read_text())
    times = re.compile(r"(?<=\[)\d+[ms](?=\])|(?<=for: )\d+[ms]$", re.MULTILINE)
    assert times.sub("T", given) == times.sub("T", shorter)
    before, after = (
        [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
        for text in (given, shorter)
    )
    for old, new in zip(before, after, strict=True):
        assert ("for" in old) == ("for" in new)
    (imbalance,) = [rule for rule in after if rule.get("alert") == alerts.IMBALANCE]
    assert imbalance["for"] == f"{600 // alerts.FASTER}s"


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no Prometheus here: apt-get install prometheus"
)
def test_the_alert_fires_and_ends(alerts):
    now = {"balancedness": 0.95, "assignments": 0}

    class Mesh(BaseHTTPRequestHandler):
        def do_GET(self):
            now["assignments"] += 100
            self.send_response(200)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(METRICS.format(**now).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Mesh)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with alerts.watching(f"http://127.0.0.1:{server.server_port}") as watch:
            assert not watch.is_firing()
            now["balancedness"] = 0.5
            assert watch.wait(True, 120)
            now["balancedness"] = 0.95
            assert watch.wait(False, 120)
    finally:
        server.shutdown()
        server.server_close()
