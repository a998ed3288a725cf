"""A Redis on a node, which keeps Ray's tables when the head node is lost."""

import os
import shutil
import subprocess
import uuid

from tests.e2e.mesh_process import wait_until
from tests.nodes.network import Node

PORT = 6390
START_TIMEOUT_S = 60.0


def why_no_redis() -> str | None:
    return None if shutil.which("redis-server") else "there is no redis-server here: install it"


class Redis:
    """Ends with its node."""

    def __init__(self, node: Node) -> None:
        self.address = f"{node.address}:{PORT}"
        self.password = uuid.uuid4().hex
        command = [
            "redis-server", "--bind", node.address, "--port", str(PORT), "--save", "",
            "--requirepass", self.password,
        ]  # fmt: skip
        self._process = node.popen(command, os.environ, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        lines = self._process.stdout
        wait_until(lambda: b"Ready to accept" in lines.readline(), START_TIMEOUT_S, "Redis")
