"""This process's connection to the mesh, opened when the first MoE layer is built.

One backend per process: vLLM runs the layers of a model one after the other in one thread.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from actors.dispatch.backend import ExpertBackend
from actors.dispatch.mesh_view import MeshView
from actors.dispatch.subscription import SECRET_VARIABLE, Subscription
from actors.dispatch.traffic_counts import TrafficCounts
from actors.experts.fingerprint import fingerprint
from actors.tracing.settings import settings_of_process

if TYPE_CHECKING:
    from actors.wire.device_memory import DeviceMemory

log = logging.getLogger("vllm.expertmesh")

FIRST_VIEW_TIMEOUT_S = 60.0

_views: Subscription | None = None
_backend: ExpertBackend | None = None


def connect_mesh() -> MeshView:
    """The mesh's view, connecting on the first call.

    Raises:
        ConnectionError: no mesh answers at EXPERTMESH_ADDRESS.
    """
    global _views  # noqa: PLW0603 - one mesh per process
    if _views is None:
        views = Subscription.from_environment("engine")
        view = views.start(FIRST_VIEW_TIMEOUT_S)
        _views = views
        log.info(
            "mesh %s: plan epoch %d over %d shards, router mode %s",
            view.mesh,
            view.epoch.number,
            len(view.shards),
            view.router_mode,
        )
    return _views.current()


def check_model(model: str) -> None:
    """Make sure this engine loads the checkpoint the mesh's shards hold.

    A model that is no local folder has no fingerprint yet and is taken at its word.

    Raises:
        ValueError: it is another checkpoint.
    """
    path, view = Path(model), connect_mesh()
    if path.is_dir() and fingerprint(path) != view.fingerprint:
        raise ValueError(
            f"mesh {view.mesh!r} holds the experts of {view.model_path}, but this engine loads "
            f"another checkpoint, {model}: load the same one, or unset EXPERTMESH_ADDRESS"
        )


def traffic_counts() -> TrafficCounts:
    """What this process counts by kind of traffic, which the controller is told from now on."""
    epoch = connect_mesh().epoch
    assert _views is not None
    if _views.traffic is None:
        _views.traffic = TrafficCounts(epoch.layers, epoch.num_experts)
    return _views.traffic


def backend() -> ExpertBackend:
    """What computes routed experts for this process, in the mesh's router mode."""
    global _backend  # noqa: PLW0603 - one mesh per process
    if _backend is None:
        # Late, because these import numba: vLLM's kernel overrides, applied while a worker starts,
        # look into every loaded module and stumble over llvmlite's wrappers.
        from actors.dispatch.choose import dispatcher_for
        from actors.dispatch.router_client import RouterClient

        view = connect_mesh()
        assert _views is not None
        secret = os.environ.get(SECRET_VARIABLE, "").encode()
        if view.router_mode == "actor":
            _backend = RouterClient(_views, secret)
        else:
            _backend = dispatcher_for(_views, secret, settings_of_process(), _device_memory())
    return _backend


def _device_memory() -> "DeviceMemory | None":
    """Of the device that this engine's rows are on."""
    from vllm.platforms import current_platform

    from actors.wire.device_memory import device_memory_of

    return device_memory_of(torch.device(current_platform.device_type))


def reset_backend() -> None:
    """Forget the backend, so that the next layer opens one for the mesh's router mode of then."""
    global _backend  # noqa: PLW0603 - one mesh per process
    if _backend is not None:
        _backend.close()
        _backend = None
