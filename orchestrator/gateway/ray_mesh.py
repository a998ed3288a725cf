"""The mesh over Ray: controller and engines are named actors."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from actors.engine.messages import EngineReply, HttpRequest
from orchestrator.gateway.mesh import (
    EngineClient,
    EngineInfo,
    EngineLostError,
    EngineStatus,
    MeshLostError,
)
from orchestrator.status import ComponentState, MeshStatus


@dataclass(frozen=True)
class RayMesh:
    """Names by which the gateway finds the mesh. Small and serializable: no handle inside.

    The controller actor has `status() -> dict` in the shape of `MeshStatus`, and
    `engines() -> list[dict]` with `id`, `state` and `actor_name`.
    """

    controller_name: str
    namespace: str

    async def status(self) -> MeshStatus:
        return MeshStatus.model_validate(await self._ask("status"))

    async def engines(self) -> list[EngineInfo]:
        return [
            EngineInfo(e["id"], ComponentState(e["state"]), e["actor_name"])
            for e in await self._ask("engines")
        ]

    def connect(self, engine: EngineInfo) -> EngineClient:
        import ray

        try:
            return RayEngineClient(ray.get_actor(engine.actor_name, namespace=self.namespace))
        except ValueError as error:
            raise EngineLostError(f"no engine actor {engine.actor_name}") from error

    async def _ask(self, method: str) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            # Looked up anew each time: a restarted controller has the same name.
            controller = ray.get_actor(self.controller_name, namespace=self.namespace)
            return await getattr(controller, method).remote()
        except (ValueError, RayError) as error:
            raise MeshLostError(f"controller {self.controller_name} does not answer") from error


class RayEngineClient:
    """An engine actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def handle(self, request: HttpRequest) -> AsyncIterator[EngineReply]:
        import ray
        from ray.exceptions import RayActorError

        stream = self._actor.handle.options(num_returns="streaming").remote(request)
        finished = False
        try:
            async for item in stream:
                yield await item
            finished = True
        except RayActorError as error:
            finished = True
            raise EngineLostError("the engine died") from error
        finally:
            if not finished:
                with contextlib.suppress(RayActorError):
                    ray.cancel(stream)

    async def status(self) -> EngineStatus:
        from ray.exceptions import RayError

        try:
            status = await self._actor.status.remote()
        except RayError as error:
            raise EngineLostError("the engine does not answer") from error
        return EngineStatus(ComponentState(status["state"]), int(status["max_running"]))
