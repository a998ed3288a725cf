"""A mesh's journal as its controller begins: waited for, read; a new one if it is damaged."""

import asyncio
import logging
import time

from orchestrator.config.schema import MeshConfig
from orchestrator.config.state_dir import state_dir
from orchestrator.control.journal import DamagedJournalError, Journal, JournalError, set_aside
from orchestrator.control.state import Intent

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 10.0
"""How long a predecessor's journal may stay locked while its process ends."""
LOOK_S = 0.05


async def opened_journal(config: MeshConfig) -> tuple[Journal, Intent | None, bool]:
    """(the journal, the intent in it, whether it is a new one in place of a damaged one).

    Raises:
        JournalError: another controller holds it, the disk refuses, or it is of a newer version.
    """
    try:
        journal = await _open(config)
        try:
            return journal, journal.read(), False
        except JournalError:
            journal.close()
            raise
    except DamagedJournalError as error:
        aside = set_aside(state_dir(config.cluster), config.mesh.name)
        log.error("%s. It is now %s, and a new one begins", error, aside)
    return await _open(config), None, True


async def _open(config: MeshConfig) -> Journal:
    """The journal; a predecessor whose process is just ending is waited for."""
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return Journal(state_dir(config.cluster), config.mesh.name)
        except JournalError as error:
            if "is held by" not in str(error) or time.monotonic() >= deadline_s:
                raise
        await asyncio.sleep(LOOK_S)
