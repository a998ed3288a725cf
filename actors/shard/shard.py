"""The expert shard: one device's slots of (layer, expert), served on the data links.

A plain class; `orchestrator.cluster` turns it into a Ray actor. Ray carries control calls only
(prepare, describe, stop); the tokens arrive at the sockets of `ShardServer`.
"""

from actors.lean_imports import import_shape_functions  # before torch and numba are imported

# isort: split
import logging
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from actors.cache_base import cache_base
from actors.descriptions import Key, Order, ShardDescription
from actors.device import free_memory_bytes, scratch_bytes
from actors.experts.families import read_expert_spec
from actors.experts.fingerprint import fingerprint
from actors.experts.spec import ExpertSpec
from actors.kernels.choose import choose_kernel
from actors.kernels.scratch import most_assignments
from actors.kernels.slot_kernel import SlotKernel
from actors.listening import ready_to_listen, remove_sockets
from actors.logs import start_logging
from actors.origin import Origin, code_digest
from actors.process import limit_threads, return_free_memory
from actors.shard.holdings import Holdings
from actors.shard.server import ShardServer
from actors.tracing.settings import SpanSettings
from actors.watched import Watched
from actors.wire.device_memory import device_memory_of
from actors.wire.node import node_id
from actors.wire.security import HANDSHAKE_ONLY, TcpSecurity
from placement.cost_model import DeviceCost

if TYPE_CHECKING:
    # Reads YAML with pydantic, which shards on CPUs do without.
    from actors.devices.assign import Assignment
    from actors.tracing.step_spans import StepSpans

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StandsIn:
    """base_path: the mesh's checkpoint, for which the shard's stands in. tolerance: by which
    results may differ, see `actors.kernels.stand_in`."""

    base_path: str
    tolerance: float


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """id: name of this shard in the mesh; pool: its device pool.

    vendor: of its devices, in `actors.devices`. device: torch device the kernel runs on; which of
    several is found out at the start. threads: CPU threads of the kernel.
    listen: addresses as text, see `actors.wire.address`; TCP port 0 picks a free one.
    emulated: speed and vendor stand for hardware that is not here; emulated_speed slows the shard.
    security: of its TCP connections. kernel: the one to take, by its key; None: the best.
    predictors: with the layers of multi-token prediction. spans: where those of sampled steps go.
    stands_in: where `model_path` is not the mesh's checkpoint. setup: see `actors.origin`.
    """

    id: str
    pool: str
    model_path: str
    device: str
    threads: int
    listen: tuple[str, ...]
    vendor: str = "cpu"
    emulated: bool = False
    emulated_speed: float = 1.0
    log_level: str = "INFO"
    security: TcpSecurity = HANDSHAKE_ONLY
    kernel: str | None = None
    predictors: bool = False
    spans: SpanSettings | None = None
    stands_in: StandsIn | None = None
    setup: str = ""


class ExpertShard:
    """Holds experts, computes them for whoever asks."""

    def __init__(self, config: ShardConfig, secret: bytes) -> None:
        start_logging(config.log_level)
        limit_threads(config.threads)
        self._config = config
        self._origin = Origin(code_digest(), config.setup)
        self._secret = secret
        self._device = config.device
        self._assignment: Assignment | None = None
        self._detail = ""
        self._spec: ExpertSpec | None = None
        self._kernel: SlotKernel | None = None
        self._server: ShardServer | None = None
        self._thread: threading.Thread | None = None
        self._holdings: Holdings | None = None
        self._fingerprint = ""
        self._variant = ""
        self._apart = ""
        self._free_bytes = 0
        self._cost: DeviceCost | None = None
        self._starting = threading.Lock()
        self._watched = Watched()

    def start(self) -> ShardDescription:
        """Choose the kernel and open the data links; the shard is empty until `prepare`.

        Idempotent: a second controller may ask for a start that the first one asked for.

        Raises:
            ModelRefused: the checkpoint has no routed experts this shard can compute, or they
                differ from those of the checkpoint it stands in for.
            DeviceRefused: this machine has another vendor's devices, or none that is free.
        """
        with self._starting:
            if self._server is None:
                self._start()
        return self.describe()

    def _start(self) -> None:
        self._spec = self._read_spec(self._config.model_path)
        if self._config.device != "cpu":
            self._open_device()
        if self._config.device != "cpu" or self._spec.catalog is not None or self._config.kernel:
            import_shape_functions()  # vLLM's models are built on torch's meta device
        self._kernel = choose_kernel(
            self._spec, torch.device(self._device), kernel=self._config.kernel
        )
        self._fingerprint = fingerprint(Path(self._config.model_path))
        if self._config.stands_in is not None:
            self._check_stand_in(self._config.stands_in)
        self._holdings = Holdings(self._kernel, self._holdings_changed)
        self._server = ShardServer(
            self._spec,
            self._kernel,
            ready_to_listen(self._config.listen),
            self._secret,
            self._config.emulated_speed,
            most_assignments(self._spec, scratch_bytes(self._device)),
            self._config.security,
            self._spans(),
            device_memory_of(torch.device(self._device)),
        )
        self._thread = threading.Thread(target=self._serve, name="expert-calls", daemon=True)
        self._thread.start()
        self._free_bytes = free_memory_bytes(self._device)
        self._detail = self._kernel.describe() + self._apart

    def _read_spec(self, model_path: str) -> ExpertSpec:
        return read_expert_spec(Path(model_path), predictors=self._config.predictors)

    def _check_stand_in(self, stands_in: StandsIn) -> None:
        """From here on this shard is one of the base checkpoint to whoever asks."""
        from actors.experts.variant import check_shapes
        from actors.kernels.stand_in import check_results

        assert self._spec is not None
        assert self._kernel is not None
        base = self._read_spec(stands_in.base_path)
        check_shapes(self._spec, base)
        apart = check_results(self._kernel, self._spec, base, stands_in.tolerance, self._config.id)
        self._variant, self._fingerprint = self._fingerprint, fingerprint(base.model_path)
        self._apart = f", stands in within {apart:.2g}"
        return_free_memory()

    def _spans(self) -> "StepSpans | None":
        if self._config.spans is None:
            return None
        from actors.tracing.step_spans import StepSpans  # the SDK takes memory

        return StepSpans.to_collector(self._config.spans)

    def _open_device(self) -> None:
        """Before anything else is asked of the device's driver."""
        from actors.devices.assign import open_device

        if self._assignment is None:
            config = self._config
            self._assignment = open_device(config.vendor, config.device, _node_labels())
            self._device = self._assignment.device

    def hold(self, watcher: tuple[int, int]) -> None:
        """See `actors.watched`."""
        self._watched.hold(watcher)

    def _serve(self) -> None:
        assert self._server is not None
        try:
            self._server.run()
        except Exception:  # a shard that cannot serve must not look healthy
            log.exception("the data links failed")
            os._exit(1)

    def prepare(
        self, order: Order, keys: frozenset[Key], most_bytes: int, bytes_per_s: float
    ) -> ShardDescription:
        """Load `keys` beside what is held while serving; see `actors.shard.holdings`.

        Success is told by the description: `held.holdings` has them, `held.failure` is empty.
        """
        assert self._holdings is not None
        self._holdings.prepare(order, keys, most_bytes, bytes_per_s)
        return self.describe()

    def retire(self, order: Order, keys: frozenset[Key]) -> ShardDescription:
        """Drop `keys`; calls that still ask for them are sent to other shards by who asks."""
        assert self._holdings is not None
        self._holdings.retire(order, keys)
        return self.describe()

    def cancel(self, order: Order) -> ShardDescription:
        """Stop loading; commands older than `order` are refused from here on."""
        assert self._holdings is not None
        self._holdings.cancel(order)
        return self.describe()

    def describe(self) -> ShardDescription:
        """Who this is, where it listens, what it holds. Changes nothing."""
        server, kernel, holdings = self._server, self._kernel, self._holdings
        assert server is not None
        assert kernel is not None
        assert holdings is not None
        return ShardDescription(
            incarnation=server.incarnation,
            pid=os.getpid(),
            node=node_id(),
            addresses=tuple(map(str, server.addresses)),
            fingerprint=self._fingerprint,
            kernel=kernel.describe(),
            bytes_per_expert=kernel.bytes_per_expert,
            free_bytes=self._free_bytes,
            cost=self._cost,
            held=holdings.now,
            detail=self._detail,
            memory_bytes=kernel.resident_bytes(),
            calls=server.calls,
            failed_calls=server.failed_calls,
            busy_s=server.busy_s,
            variant=self._variant,
            origin=self._origin,
        )

    def _holdings_changed(self) -> None:
        assert self._kernel is not None
        assert self._spec is not None
        return_free_memory()
        if self._server is not None:
            room_bytes = scratch_bytes(self._device)
            self._server.most_assignments = most_assignments(self._spec, room_bytes)
        self._detail = self._kernel.describe() + self._apart

    def measure(self) -> DeviceCost:
        """What calls cost this device, at the model's real shapes and the emulated speed. Measured
        or, if it was earlier, tried again, once; the shard should hold nothing yet, or its calls
        wait."""
        assert self._spec is not None
        with self._starting:
            if self._cost is None:
                from actors.kernels.cost_cache import calibrate

                folder = cache_base() / "calibration"
                device = torch.device(self._device)
                measured = calibrate(
                    self._spec, device, self._driver(), folder, self._config.kernel
                )
                self._cost = measured.cost.scaled(self._config.emulated_speed)
        return self._cost

    def _driver(self) -> str:
        """Version of the device's driver."""
        if self._config.device == "cpu":
            return ""
        from actors.devices.catalogue import find_family
        from actors.devices.snapshot import driver_version

        return driver_version(find_family(self._config.vendor))

    def load_counts(self) -> np.ndarray:
        """int64 [L, E]: assignments computed since the start, per (layer, expert)."""
        assert self._server is not None
        return self._server.tokens.copy()

    def stop(self) -> None:
        """Close the data links. Idempotent."""
        self._watched.release()
        if self._server is not None and self._thread is not None:
            self._server.stop()
            self._thread.join(timeout=5.0)
        if self._assignment is not None:
            self._assignment.release()
        remove_sockets(self._config.listen)


def _node_labels() -> Mapping[str, str]:
    """Of the Ray node; none where this is no actor."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    labels: Mapping[str, str] = ray.get_runtime_context().get_node_labels()
    return labels
