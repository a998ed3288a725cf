"""A Prometheus of one's own that scrapes the mesh by the project's alert rules, in less time.

The rules think in minutes: an average over five must be low for ten before anybody is told. Here
every duration in them is divided by `FASTER`; conditions and thresholds stay as they are in
`dashboards/prometheus/rules.yml`.
"""

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

RULES = Path(__file__).parents[2] / "dashboards" / "prometheus" / "rules.yml"
FASTER = 30
"""Ten minutes become 20 s."""
SCRAPE_S = 1
IMBALANCE = "ExpertMeshImbalance"
START_TIMEOUT_S = 60.0

_DURATION = re.compile(r"(?<=\[)(\d+)m(?=\])|(?<=for: )(\d+)(m|s)$", re.MULTILINE)
_SECONDS = {"s": 1, "m": 60, None: 60}

CONFIG = """\
global: {{scrape_interval: {scrape_s}s, evaluation_interval: {scrape_s}s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: expertmesh
    static_configs: [{{targets: ["{target}"]}}]
"""


def hastened(rules: str, faster: int = FASTER) -> str:
    """The same rules with ranges and `for:` divided; none below two scrapes."""

    def shorter(found: re.Match[str]) -> str:
        seconds = int(found[1] or found[2]) * _SECONDS[found[3]]
        return f"{max(2 * SCRAPE_S, seconds // faster)}s"

    return _DURATION.sub(shorter, rules)


class Alerts:
    """What Prometheus says of the imbalance alert."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=10)

    def query(self, promql: str) -> list[dict[str, Any]]:
        answer = self._client.get("/api/v1/query", params={"query": promql})
        answer.raise_for_status()
        return list(answer.json()["data"]["result"])

    def is_firing(self) -> bool:
        return bool(self.query(f'ALERTS{{alertname="{IMBALANCE}",alertstate="firing"}}'))

    def wait(self, firing: bool, timeout_s: float) -> str:
        """The clock's time when the alert fires, or is over; "" where it did not come to that."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if self.is_firing() is firing:
                return time.strftime("%H:%M:%S")
            time.sleep(0.5)
        return ""


@contextmanager
def watching(mesh_url: str) -> Iterator[Alerts]:
    """Prometheus scrapes the mesh meanwhile.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise FileNotFoundError("no Prometheus here: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as name, socket.socket() as probe:
        folder = Path(name)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        (folder / "rules.yml").write_text(hastened(RULES.read_text()))
        target = mesh_url.split("://")[1].split("/", maxsplit=1)[0]
        config = CONFIG.format(scrape_s=SCRAPE_S, rules=folder / "rules.yml", target=target)
        (folder / "prometheus.yml").write_text(config)
        probe.close()
        process = subprocess.Popen(
            [
                program, f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )  # fmt: skip
        try:
            alerts = Alerts(f"http://127.0.0.1:{port}")
            _wait_scraped(alerts, process)
            yield alerts
        finally:
            process.terminate()
            process.wait()


def _wait_scraped(alerts: Alerts, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            if alerts.query("expertmesh_ready"):
                return
        except httpx.HTTPError:  # it is still starting
            pass
        time.sleep(0.2)
    raise RuntimeError("Prometheus does not scrape the mesh")
