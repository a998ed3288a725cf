"""The batch runner as a Ray actor: `cluster.start_batch_runner` makes it, detached."""

import asyncio
import logging
import os
import platform
from typing import Any

from orchestrator.batch.ledger import open_ledger
from orchestrator.batch.runner import Runner
from orchestrator.batch.settings import BatchSettings
from orchestrator.clients.mesh import MeshClient
from orchestrator.config.schema import LoggingConfig
from orchestrator.errors import UserError
from orchestrator.logging_setup import set_up_logging

logger = logging.getLogger(__name__)

RETRY_S = 5.0


class BatchRunner:
    """Begins with its process, also where Ray has started that again after it died: a runner keeps
    nothing that it would have to be told. Methods are coroutines of the actor's one event loop."""

    def __init__(
        self, settings: BatchSettings, mesh: MeshClient, log: LoggingConfig, name: str
    ) -> None:
        set_up_logging(log, name)
        self._settings = settings
        self._mesh = mesh
        self._detail = "starting"
        self._runner: Runner | None = None
        # Ray runs an async actor's constructor in its event loop.
        self._running = asyncio.create_task(self._run())

    async def status(self) -> dict[str, Any]:
        return {
            "node": platform.node(),
            "pid": os.getpid(),
            "state": "dead" if self._running.done() else "ready",
            "detail": self._detail,
        }

    async def look(self) -> None:
        """A job was made or changed: the runner need not wait until it looks by itself."""
        if self._runner is not None:
            self._runner.look_soon()

    async def stop(self) -> None:
        """End; what was under way is computed again by the next runner."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> None:
        """A runner, and another one after it failed, until one outside has taken over."""
        while True:
            try:
                await self._run_once()
                self._detail = "another runner has taken over"
                return
            except (UserError, OSError) as error:
                self._detail = str(error)
                logger.warning("batch jobs wait: %s", error)
            except Exception as error:
                self._detail = f"failed: {type(error).__name__}"
                logger.exception("the batch runner failed and begins anew")
            await asyncio.sleep(RETRY_S)

    async def _run_once(self) -> None:
        store = await asyncio.to_thread(self._settings.open_store)
        url = self._settings.database_url
        ledger = await asyncio.to_thread(open_ledger, url, False)
        self._detail = "computing batch jobs"
        try:
            self._runner = Runner(self._settings, ledger, store, self._mesh)
            await self._runner.run()
        finally:
            self._runner = None
            ledger.database.close()
