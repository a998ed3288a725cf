"""The nodes' log files over Ray: this node's are read here, others' in a task that runs there."""

import asyncio
from collections.abc import Mapping
from typing import Any

from orchestrator.telemetry.log_files import Read, read_logs


class RayLogs:
    """Files of the workers of one Ray job, that of the command which started the mesh."""

    def __init__(self, job: str) -> None:
        self._job = job

    def nodes(self) -> list[str]:
        """Host names; with the node's id where several nodes have one name."""
        return list(_nodes())

    async def read(self, node: str, offsets: Mapping[str, int]) -> Read:
        """Raises OSError."""
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        id = (await asyncio.to_thread(_nodes)).get(node)
        if id is None:
            raise OSError("the node is gone")
        if id == ray.get_runtime_context().get_node_id():
            return await asyncio.to_thread(_read_here, node, offsets, self._job)
        options: dict[str, Any] = {
            "num_cpus": 0,
            "max_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(id, soft=False),
        }
        task = ray.remote(_read_here).options(**options)
        try:
            found: Read = await task.remote(node, dict(offsets), self._job)
        except RayError as error:
            raise OSError(f"the node does not answer: {type(error).__name__}") from error
        return found


def _nodes() -> dict[str, str]:
    """Id of each node that lives, by name."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    names = [node["NodeManagerHostname"] for node in alive]
    return {
        name if names.count(name) == 1 else f"{name}/{node['NodeID'][:8]}": node["NodeID"]
        for name, node in zip(names, alive, strict=True)
    }


def _read_here(node: str, offsets: Mapping[str, int], job: str) -> Read:
    from orchestrator.ray_process import node_logs

    return read_logs(node_logs(), node, offsets, job)
