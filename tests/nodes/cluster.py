"""A Ray cluster over the nodes of a network, with token authentication."""

import json
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tests.e2e.mesh_process import environment, wait_until
from tests.nodes.network import Network, Node
from tests.nodes.redis import Redis

RAY = Path(sys.executable).with_name("ray")
PORT = 6379
CPUS = 4
START_TIMEOUT_S = 120.0
STARTED = "Ray runtime started."


class Cluster:
    """Raylets of a network's nodes, the first node being the head. They end with their nodes.

    Node n has the resource `node<n>`, so that pools and engines can say where they want to be.
    """

    def __init__(self, network: Network, logs: Path, tables: Redis | None = None) -> None:
        """logs: a folder for what the raylets' starters print. tables: keeps Ray's own."""
        self.nodes = network.nodes
        self.head = network.nodes[0]
        self.address = f"{self.head.address}:{PORT}"
        self.folder = network.folder
        self.variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
            "RAY_worker_niceness": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(network.folder),
        }
        self._logs = logs
        self._tables = tables
        # One after the other: raylets that start together on one machine disturb each other.
        self._start_head(self.folder / "ray")
        for node in self.nodes[1:]:
            role = [f"--address={self.address}"]
            self._start(node, role, self.folder / "ray", logs / f"{node.name}.log")
        wait_until(self._complete, START_TIMEOUT_S, "every node in the cluster")

    def restart_head(self) -> None:
        """Kill all of the head node and start Ray there again, with files of its own as in a new
        pod."""
        self.head.kill()
        self._start_head(self.folder / "again")

    def _start_head(self, folder: Path) -> None:
        role = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        variables = {}
        if self._tables is not None:
            role.append(f"--redis-password={self._tables.password}")
            variables = {"RAY_REDIS_ADDRESS": self._tables.address}
        self._start(self.head, role, folder, self._logs / f"head-{folder.name}.log", variables)

    def _start(
        self,
        node: Node,
        role: Sequence[str],
        folder: Path,
        log: Path,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        command = [
            str(RAY), "start", *role, "--block", f"--node-ip-address={node.address}",
            f"--num-cpus={CPUS}", f"--resources={json.dumps({node.name: 16})}",
            f"--temp-dir={folder}", "--object-store-memory=100000000",
        ]  # fmt: skip
        with log.open("w") as output:
            process = node.popen(
                command,
                environment(**self.variables, **variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def started() -> bool:
            assert process.poll() is None, log.read_text()
            return STARTED in log.read_text()

        wait_until(started, START_TIMEOUT_S, f"raylet of {node.name}")

    def _complete(self) -> bool:
        """Whether the head knows the resources of every node."""
        done = subprocess.run(
            [*self.head.prefix, str(RAY), "status", "--address", self.address],
            capture_output=True,
            text=True,
            env=environment(**self.variables),
            check=False,
        )
        return all(f"/16.0 {node.name}\n" in done.stdout for node in self.nodes)
