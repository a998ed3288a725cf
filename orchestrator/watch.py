"""Ask components how they are, and notice when one is dead."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from orchestrator.components import Component
from orchestrator.errors import UserError
from orchestrator.root_cause import DYING_WORDS_LINES, cause_in_log, cause_of, is_pointer
from orchestrator.status import ComponentState

log = logging.getLogger(__name__)


class Watch:
    """Looks at components; each on its own, so that one that hangs does not hide another's death.

    interval_s: between two looks at a component, and how long its answer may take. suspect_after:
    looks in a row without an answer after which a ready component is suspected. logs: folder of
    this machine's Ray worker logs; those of other machines stay there.
    """

    def __init__(self, interval_s: float, suspect_after: int, logs: Path) -> None:
        self._interval_s = interval_s
        self._suspect_after = suspect_after
        self._logs = logs

    async def run(self, components: Callable[[], Sequence[Component]]) -> None:
        """Look at every component that `components()` names, until cancelled."""
        looking: dict[Component, asyncio.Task[None]] = {}
        try:
            while True:
                for component in components():
                    if component not in looking or looking[component].done():
                        looking[component] = asyncio.create_task(self._look_safely(component))
                await asyncio.sleep(self._interval_s)
        finally:
            for task in looking.values():
                task.cancel()

    async def look_at(self, component: Component, timeout_s: float | None = None) -> None:
        """Take in what the component says now; a dead one stays dead.

        timeout_s: how long to wait for the answer (default: the interval between two looks).
        """
        timeout_s = timeout_s or self._interval_s
        if component.state is ComponentState.DEAD:
            return
        try:
            component.hear(await component.probe.ask(timeout_s))
        except TimeoutError:
            silence_s = (component.silent_probes + 1) * self._interval_s
            component.miss(f"has not answered for {silence_s:g} s", self._suspect_after)
        except ActorUnavailableError:
            component.miss("cannot be reached", self._suspect_after)
        except RayActorError as error:
            component.lose(self._why_lost(component, error))
        except RayError as error:
            component.detail = cause_of(error)

    async def must(self, component: Component, answer: Awaitable[Any], timeout_s: float) -> Any:
        """The answer to a call without which the mesh cannot start.

        Raises:
            UserError: no answer within `timeout_s`, or an error; the component counts as dead.
        """
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            component.lose(f"no answer within {timeout_s:g} s")
        except RayError as error:
            component.lose(self._why_lost(component, error))
        raise UserError(f"{component.kind} {component.id} did not start: {component.detail}")

    async def _look_safely(self, component: Component) -> None:
        try:
            await self.look_at(component)
        except Exception:  # one odd answer must not end the watch
            log.exception("%s %s could not be looked at", component.kind, component.id)

    def _why_lost(self, component: Component, error: RayError) -> str:
        """The exception's own cause, or the log's where the exception only points there."""
        cause = cause_of(error)
        if isinstance(error, RayActorError):
            return cause_in_log(self._logs, component.pid, DYING_WORDS_LINES) or cause
        if is_pointer(cause):
            return cause_in_log(self._logs, component.pid) or cause
        return cause
