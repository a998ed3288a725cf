"""The mesh over Ray: controller and engines are named actors."""

import asyncio
import contextlib
import platform
from collections.abc import AsyncGenerator
from typing import Any

from actors.descriptions import EngineDescription
from actors.messages import EngineReply, HttpRequest
from orchestrator.api.models import ClusterView, EventView, PlacementView
from orchestrator.clients.mesh import (
    EngineClient,
    EngineFailedError,
    EngineInfo,
    EngineLostError,
    EngineStatus,
    MeshLostError,
)
from orchestrator.expert_load import ExpertLoad
from orchestrator.ray_process import kill_ray_process
from orchestrator.status import ComponentState, MeshStatus
from orchestrator.traffic_load import KindLoad

STREAM_WINDOW = 2
"""Items of an answer that an engine sends ahead of the gateway. While the window is full the engine
gathers what vLLM says into one item, so a busy gateway gets fewer and larger ones; and an engine
whose gateway died notices, and aborts."""


class RayMeshClient:
    """Finds the mesh by the names of its actors.

    The controller actor has `status() -> dict` in the shape of `MeshStatus`,
    `engines() -> list[EngineInfo]`, `view()` and `placement()` in the
    shapes of `ClusterView` and `PlacementView`, `history(after, limit)` and `ask(verb, ...)`.
    """

    def __init__(self, controller_name: str, namespace: str) -> None:
        self._controller_name = controller_name
        self._namespace = namespace
        self._controller: Any = None

    async def status(self) -> MeshStatus:
        return MeshStatus.model_validate(await self._ask("status"))

    async def expert_load(self) -> ExpertLoad:
        return ExpertLoad.from_json(await self._ask("expert_load"))

    async def traffic_load(self, kind: str, content: str | None) -> KindLoad | None:
        found: KindLoad | None = await self._ask("traffic_load", kind, content)
        return found

    async def view(self) -> ClusterView:
        return ClusterView.model_validate(await self._ask("view"))

    async def placement(self) -> PlacementView:
        return PlacementView.model_validate(await self._ask("placement"))

    async def history(self, after: int, limit: int) -> list[EventView]:
        lines = await self._ask("history", after, limit)
        return [EventView.model_validate(line) for line in lines]

    async def ask(self, verb: str, target: str, number: int, dry_run: bool) -> tuple[bool, str]:
        done, text = await self._ask("ask", verb, target, number, dry_run)
        return bool(done), str(text)

    async def engines(self) -> list[EngineInfo]:
        found: list[EngineInfo] = await self._ask("engines")
        return found

    async def connect(self, engine: EngineInfo) -> EngineClient:
        try:
            return RayEngineClient(await self._find(engine.actor_name))
        except ValueError as error:
            raise EngineLostError(f"there is no actor {engine.actor_name}") from error

    async def wake_batch_runner(self) -> None:
        from ray.exceptions import RayError

        from orchestrator.cluster import BATCH_RUNNER

        with contextlib.suppress(ValueError, RayError):
            (await self._find(BATCH_RUNNER)).look.remote()

    async def end_controller(self, node: str, pid: int) -> None:
        import ray

        if node == platform.node():
            # One that is stopped by a signal does not hear Ray.
            kill_ray_process(pid)
            return
        with contextlib.suppress(ValueError):
            ray.kill(await self._find(self._controller_name), no_restart=False)

    async def _ask(self, method: str, *arguments: object) -> Any:
        from ray.exceptions import RayError

        try:
            if self._controller is None:
                self._controller = await self._find(self._controller_name)
            return await getattr(self._controller, method).remote(*arguments)
        except (ValueError, AttributeError, RayError) as error:
            # Looked up anew next time: its successor has the same name.
            self._controller = None
            message = f"the controller {self._controller_name} does not answer"
            raise MeshLostError(message) from error

    async def _find(self, actor_name: str) -> Any:
        import ray

        # Asks Ray's head node, and waits for it: not in the loop that carries the tokens.
        return await asyncio.to_thread(ray.get_actor, actor_name, namespace=self._namespace)


class RayEngineClient:
    """An engine actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        import ray
        from ray.exceptions import RayActorError, RayError

        options = {
            "num_returns": "streaming",
            "_generator_backpressure_num_objects": STREAM_WINDOW,
        }
        stream = self._actor.handle.options(**options).remote(request)
        running = True
        try:
            async for item in stream:
                yield await item
            running = False
        except RayActorError as error:
            running = False
            raise EngineLostError("the engine died") from error
        except RayError as error:
            running = False
            raise EngineFailedError(f"the engine failed: {type(error).__name__}") from error
        finally:
            if running:
                ray.cancel(stream)

    async def answer(self, request: HttpRequest) -> list[EngineReply]:
        import ray
        from ray.exceptions import RayActorError, RayError

        answer = self._actor.answer.remote(request)
        try:
            replies: list[EngineReply] = await answer
        except asyncio.CancelledError:
            ray.cancel(answer)
            raise
        except RayActorError as error:
            raise EngineLostError("the engine died") from error
        except RayError as error:
            raise EngineFailedError(f"the engine failed: {type(error).__name__}") from error
        return replies

    async def status(self) -> EngineStatus:
        from ray.exceptions import RayError

        try:
            said: EngineDescription = await self._actor.describe.remote()
        except RayError as error:
            raise EngineLostError("the engine does not answer") from error
        return EngineStatus(
            ComponentState(said.state),
            said.max_running,
            said.running,
            said.waiting,
            said.kv_used,
            said.prompted,
            said.generated,
        )
