"""Dashboards and alert rules against the table of metrics, and against a real Prometheus that
scrapes the real gateway application."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from dashboards.build import BOARDS, FOLDER, dashboard_json
from orchestrator.telemetry.table import BY_NAME, Kind
from tests.dashboards.moving_mesh import free_port, ledger_with_a_job, moving_mesh, served
from tests.processes import wait_until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "prometheus" / "rules.yml"
DOCUMENT = ROOT / "docs" / "observability.md"
SCRAPE = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: expertmesh
    static_configs: [{{targets: ["{target}"]}}]
"""

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no Prometheus here: apt-get install prometheus"
)


def rules():
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def queries():
    of_panels = [q.expr for board in BOARDS for panel in board.panels for q in panel.queries]
    return of_panels + [rule["expr"] for rule in rules()]


def test_the_committed_dashboards_are_what_the_code_makes():
    made = {f"{board.uid}.json": dashboard_json(board) for board in BOARDS}
    assert {p.name: p.read_text() for p in FOLDER.iterdir()} == made, "python -m dashboards.build"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_panel_is_in_the_json_with_its_queries(board):
    made = json.loads(dashboard_json(board))
    found = {p["title"]: [t["expr"] for t in p["targets"]] for p in made["panels"]}
    assert found == {p.title: [q.expr for q in p.queries] for p in board.panels}
    assert all(panel["description"] for panel in made["panels"])


@pytest.mark.parametrize("expr", queries())
def test_queries_name_metrics_and_labels_of_the_table(expr):
    names = set(re.findall(r"\bexpertmesh_\w+", expr))
    for name in names:
        plain = re.sub(r"_(bucket|sum|count)$", "", name)
        metric = BY_NAME[name if name in BY_NAME else plain]
        assert name in BY_NAME or metric.kind is Kind.HISTOGRAM
        for label in re.findall(rf"{name}{{(\w+)", expr):
            assert label in metric.labels
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"\bexpertmesh:\w+(?::\w+)?", expr)) <= recorded


def test_every_alert_has_a_runbook():
    lines = DOCUMENT.read_text().splitlines()
    headings = {line[4:].strip().lower() for line in lines if line.startswith("### ")}
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    for rule in rules():
        if "alert" in rule:
            link = rule["annotations"]["runbook_url"]
            assert link == f"docs/observability.md#{rule['alert'].lower()}"
    assert {alert.lower() for alert in alerts} <= headings


@pytest.mark.long
@needs_prometheus
def test_alerts_fire_and_end_when_they_should(tmp_path):
    for path in (RULES, Path(__file__).parent / "rules_test.yml"):
        shutil.copy(path, tmp_path)
    for arguments in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            ["promtool", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """ask(promql) -> result of a real Prometheus that has scraped a gateway for some seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    batch = ledger_with_a_job(folder / "batch")
    mesh = moving_mesh()
    mesh.tell_kind("code")
    with (
        served(mesh, batch=batch) as url,
        httpx.Client(trust_env=False, timeout=10) as client,
    ):
        for path in ("/v1/completions", "/v1/chat/completions"):
            client.post(url + path, json={})
        config = folder / "prometheus.yml"
        config.write_text(SCRAPE.format(rules=RULES, target=url.removeprefix("http://")))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )

        def ask(query):
            answer = client.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query})
            answer.raise_for_status()
            return answer.json()["data"]["result"]

        def scraped():
            try:
                return ask("count_over_time(expertmesh_balancedness[1m]) > 6")
            except httpx.HTTPError:  # it is still starting
                return False

        try:
            wait_until(scraped)
            client.post(url + "/v1/completions", json={})
            time.sleep(2)  # two scrapes, for rates of what a request counted
            yield ask
        finally:
            process.terminate()
            process.wait(timeout=10)


@pytest.mark.long
@needs_prometheus
def test_every_panel_shows_something_and_every_rule_can_be_evaluated(prometheus):
    empty = []
    for board in BOARDS:
        for panel in board.panels:
            for query in panel.queries:
                if not prometheus(query.expr.replace("$__rate_interval", "30s")):
                    empty.append(query.expr)
    assert empty == []
    for rule in rules():
        found = prometheus(rule["expr"])
        assert "record" not in rule or found or "errors" in rule["record"], rule
    firing = {r["metric"]["alertname"] for r in prometheus('ALERTS{alertstate="firing"}')}
    assert firing == set()
