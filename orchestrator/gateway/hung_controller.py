"""A controller that hangs is ended, so that Ray starts its successor.

Ray starts one again whose process ends, but does not notice one that is stopped or stuck. Nothing
above the controller watches it but the gateway, which asks it anyway which engines there are.
"""

import logging

from orchestrator.clients.engine_pool import EnginePool
from orchestrator.clients.mesh import MeshClient
from orchestrator.status import ComponentKind

logger = logging.getLogger(__name__)


class HungController:
    """Looks at how long the controller has said nothing."""

    def __init__(self, pool: EnginePool, mesh: MeshClient, limit_s: float) -> None:
        self._pool = pool
        self._mesh = mesh
        self._limit_s = limit_s
        self._ended_pid = 0

    async def look(self) -> None:
        """End it if it has been silent for `limit_s`; each process once."""
        if self._pool.controller_silence_s < self._limit_s or self._pool.mesh_status is None:
            return
        for said in self._pool.mesh_status.components:
            if said.kind is ComponentKind.CONTROLLER and said.pid != self._ended_pid:
                self._ended_pid = said.pid
                logger.error(
                    "the controller (process %d on %s) has answered nothing for %.0f s: it is "
                    "ended, and Ray starts another",
                    said.pid, said.node, self._pool.controller_silence_s,
                )  # fmt: skip
                await self._mesh.end_controller(said.node, said.pid)
