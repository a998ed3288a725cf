"""One vLLM engine that answers HTTP requests without opening a port.

`Engine` is made into an actor by the cluster module. It builds vLLM's own `AsyncLLM` and vLLM's own
OpenAI application, so that protocol, validation and error bodies are vLLM's, and feeds the
application requests that arrive as actor calls (`asgi_bridge`).

Invariants: a request is served only while the engine is ready; a draining engine takes none and
finishes what it has; no process that vLLM started survives `stop`, nor the actor's death.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from actors.descriptions import EngineDescription
from actors.engine import asgi_bridge
from actors.engine.compiling import starts_eagerly
from actors.engine.config import DROPPED_ENVIRONMENT, EngineConfig
from actors.engine.flags import parse_flags
from actors.engine.scheduler_load import scheduler_load
from actors.engine.scratch import make_scratch
from actors.engine.unavailable import telling_missing_experts
from actors.engine.warm_up import warm_up
from actors.engine_lifecycle import EngineState, check_transition
from actors.experts.adapters import check_adapter
from actors.logs import start_logging
from actors.messages import EngineReply, HttpRequest, Refusal, ResponseStart
from actors.origin import Origin, code_digest
from actors.vllm_plugin.compile_cache import cache_variables
from actors.vllm_plugin.core_process import as_main_module, no_garbage_collection
from actors.vllm_plugin.fate_sharing import PARENT_VARIABLE
from actors.vllm_plugin.register import ADDRESS_VARIABLE
from actors.wire.node import node_id

if TYPE_CHECKING:
    from argparse import Namespace

    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

T = TypeVar("T")

DRAIN_POLL_S = 0.05
VLLM_SHUTDOWN_TIMEOUT_S = 1.0
"""For vLLM to end its processes before it kills them. A CPU worker (0.32) needs more than five,
and nothing is left to lose by then: requests were drained or are given up."""

CHILD_EXIT_TIMEOUT_S = 10.0
"""How long vLLM's processes may take to end after their shutdown before they are killed."""

ITEMS_PER_SECOND = 500
"""Items that an engine sends, over all its streams. On its way to the client an item costs close to
a millisecond of CPU in several processes, which is time that vLLM and the experts lack."""

MAX_PACE_S = 0.05
"""However many streams there are, none halts longer than this between two items."""

CONTROL_CALLS = ("describe", "check_health", "drain", "stop")
"""Methods that never wait behind requests: the cluster module gives them a concurrency group of
their own, which in Ray is an event loop of its own. They look at the engine from its main one, so a
hanging engine does not look well."""

_EXTENSION = "actors.engine.worker_extension.EngineWorker"


class Engine:
    """vLLM behind actor calls. Everything runs in the event loop that `start` is called in."""

    def __init__(self, config: EngineConfig) -> None:
        start_logging()
        self._config = config
        self._origin = Origin(code_digest(), config.setup)
        self._state = EngineState.STARTING
        self._detail = "not started"
        self._in_flight = 0
        self._llm: AsyncLLM | None = None
        self._app: Any = None
        self._parameter_bytes: int | None = None
        self._max_running = 0
        self._resumes = False
        """Whether it can continue what other engines began, and tell what is needed for that."""
        self._scratch: Path | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._incarnation = secrets.randbits(64) or 1
        self._starting: asyncio.Task[None] | None = None
        self._watcher = (0, 0)
        self._watchers_changed = asyncio.Condition()
        self._cleanup = contextlib.AsyncExitStack()
        # vLLM's processes are tied to the life of the thread that starts them (`fate_sharing`),
        # so this thread must live as long as they do.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm-loader")

    async def start(self) -> None:
        """Load the model; returns when the engine serves. Idempotent: a second controller may ask
        for a start that the first one asked for.

        Raises `InvalidFlagError` for a flag that vLLM refuses, and vLLM's own errors otherwise;
        the engine is dead after either.
        """
        if self._starting is None:
            self._loop = asyncio.get_running_loop()
            self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def hold(self, watcher: tuple[int, int]) -> None:
        """What `actors.watched` does, for an actor with an event loop."""
        async with self._watchers_changed:
            self._watcher = max(self._watcher, watcher)
            self._watchers_changed.notify_all()
            await self._watchers_changed.wait_for(lambda: self._watcher > watcher)

    async def _start(self) -> None:
        self._move(EngineState.LOADING, f"loading {self._config.model}")
        began_s = time.monotonic()
        try:
            await self._load()
            self._move(EngineState.READY, f"loaded in {time.monotonic() - began_s:.1f} s")
        except BaseException as error:
            if self._state is not EngineState.DEAD:
                self._move(EngineState.DEAD, f"did not start: {_last_line(error)}")
            await self._release()
            raise

    async def handle(self, request: HttpRequest) -> AsyncGenerator[EngineReply, None]:
        """Answer one HTTP request: a `ResponseStart` and chunks of the body (`actors.messages`), or
        a `Refusal` where the engine does not serve, or died over it.

        A draining engine still answers GET, so that its metrics are seen to the end. Closing the
        stream aborts the request in vLLM.
        """
        self._notice_death()
        readable = self._state is EngineState.DRAINING and request.method == "GET"
        serves = readable or self._state is EngineState.READY
        if not serves or (request.emitted and not self._resumes):
            yield self._refusal()
            return
        if not self._resumes:
            request = replace(request, record=False, emitted=())
        self._in_flight += 1
        try:
            answer = asgi_bridge.call(self._app, request, self._pace_s)
            async with contextlib.aclosing(answer) as replies:
                async for reply in replies:
                    if self._failed_by_death(reply):
                        yield self._refusal(died=True)
                        return
                    yield reply
        except Exception:
            self._notice_death()
            if self._state is not EngineState.DEAD:
                raise
            yield self._refusal(died=True)
        finally:
            self._in_flight -= 1

    async def answer(self, request: HttpRequest) -> list[EngineReply]:
        """What `handle` says, in one piece, which costs less. Cancelling it aborts the request."""
        async with contextlib.aclosing(self.handle(request)) as replies:
            return [reply async for reply in replies]

    async def describe(self) -> EngineDescription:
        """Who this is and how much it has to do. Changes nothing."""
        return await self._in_main_loop(self._describe())

    async def check_health(self) -> None:
        """Raise `RuntimeError` unless the engine serves or drains."""
        await self._in_main_loop(self._check_health())

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests and wait for the running ones.

        Returns the number of requests that are still running after `timeout_s`.
        """
        return await self._in_main_loop(self._drain(timeout_s))

    async def stop(self) -> None:
        """Abort what runs and end vLLM's processes; calling it again does nothing.

        An engine that is still loading stops too: its `start` raises.
        """
        await self._in_main_loop(self._stop())

    async def _in_main_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None or self._loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _describe(self) -> EngineDescription:
        self._notice_death()
        return EngineDescription(
            incarnation=self._incarnation,
            pid=os.getpid(),
            node=node_id(),
            state=self._state,
            detail=self._detail,
            memory_bytes=self._parameter_bytes,
            in_flight=self._in_flight,
            max_running=self._max_running,
            origin=self._origin,
            **scheduler_load(),
        )

    async def _check_health(self) -> None:
        self._notice_death()
        if self._state not in {EngineState.READY, EngineState.DRAINING}:
            raise RuntimeError(f"engine is {self._state}: {self._detail}")

    async def _drain(self, timeout_s: float) -> int:
        if self._state is EngineState.READY:
            self._move(EngineState.DRAINING, "finishing its requests")
        deadline_s = time.monotonic() + timeout_s
        while self._in_flight and time.monotonic() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        return self._in_flight

    async def _stop(self) -> None:
        if self._state is not EngineState.DEAD:
            self._move(EngineState.DEAD, "stopped")
        await self._release()

    async def _load(self) -> None:
        self._set_environment()
        loop = asyncio.get_running_loop()
        args, llm = await loop.run_in_executor(self._loader, self._build_llm)
        self._llm = llm
        with no_garbage_collection():
            from vllm.entrypoints.launchers.api_server.app_state import init_app_state
            from vllm.entrypoints.launchers.app import build_app

        tasks = await llm.get_supported_tasks()
        app = build_app(args, tasks, llm.model_config)
        await init_app_state(llm, app.state, args, tasks)
        # vLLM tells its HTTP server to exit when the engine core dies; here `describe` tells.
        app.state.server = SimpleNamespace(should_exit=False)
        await self._cleanup.enter_async_context(app.router.lifespan_context(app))
        if args.worker_extension_cls == _EXTENSION:
            self._parameter_bytes = sum(await llm.collective_rpc("expertmesh_parameter_bytes"))
            await llm.collective_rpc("expertmesh_resume_requests")
            await llm.collective_rpc("expertmesh_trace_steps")
            self._resumes = True
            if ADDRESS_VARIABLE in os.environ:
                await llm.collective_rpc("expertmesh_warm_shards")
                await llm.collective_rpc("expertmesh_count_traffic")
        self._max_running = llm.vllm_config.scheduler_config.max_num_seqs
        self._app = telling_missing_experts(app)
        await warm_up(partial(asgi_bridge.call, self._app), self._config.served_model_name)

    def _set_environment(self) -> None:
        for name in DROPPED_ENVIRONMENT:
            os.environ.pop(name, None)
        variables = cache_variables() | self._config.variables()
        if "TMPDIR" not in variables:
            self._scratch = make_scratch()
            variables |= {"TMPDIR": str(self._scratch), "VLLM_RPC_BASE_PATH": str(self._scratch)}
        os.environ.update(variables)
        os.environ[PARENT_VARIABLE] = str(os.getpid())

    def _build_llm(self) -> tuple["Namespace", "AsyncLLM"]:
        """Runs in the loader thread: takes as long as the model takes to load."""
        with no_garbage_collection():
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext

            from actors.engine.media import use_mesh_media
            from actors.engine.mesh_llm import MeshLLM
            from actors.vllm_plugin.vllm_config import (
                refuse_unsupported,
                split_graphs,
                use_mesh_scheduler,
            )

        use_mesh_media()
        flags = {
            "disable_fastapi_docs": True,
            "enforce_eager": starts_eagerly(
                current_platform.is_cpu(), self._config.flags.get("tensor_parallel_size", 1)
            ),
            "worker_extension_cls": _EXTENSION,
            **self._config.flags,
        }
        args = parse_flags(self._config.model, self._config.served_model_name, flags)
        for adapter in args.lora_modules or ():
            check_adapter(Path(adapter.path))
        context = UsageContext.OPENAI_API_SERVER
        engine_args = AsyncEngineArgs.from_cli_args(args)
        vllm_config = engine_args.create_engine_config(usage_context=context)
        use_mesh_scheduler(vllm_config)
        if ADDRESS_VARIABLE in os.environ:
            refuse_unsupported(vllm_config)
            split_graphs(vllm_config.compilation_config)
        with as_main_module():
            llm = MeshLLM.from_vllm_config(
                vllm_config=vllm_config,
                usage_context=context,
                enable_log_requests=engine_args.enable_log_requests,
                aggregate_engine_logging=engine_args.aggregate_engine_logging,
                disable_log_stats=engine_args.disable_log_stats,
            )
        return args, llm

    async def _release(self) -> None:
        self._app = None
        children = _process_trees(multiprocessing.active_children())
        await self._cleanup.aclose()
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown, VLLM_SHUTDOWN_TIMEOUT_S)
        await asyncio.to_thread(_end_processes, children)
        await asyncio.to_thread(_remove_shared_memory)
        if self._scratch is not None:
            await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        self._loader.shutdown(wait=False)

    def _pace_s(self) -> float:
        """Time between two items of one stream that keeps all streams within the item rate."""
        return min(MAX_PACE_S, self._in_flight / ITEMS_PER_SECOND)

    def _notice_death(self) -> None:
        if self._llm is not None and self._llm.errored and self._state is not EngineState.DEAD:
            self._move(EngineState.DEAD, "vLLM's engine core died")

    def _failed_by_death(self, reply: EngineReply) -> bool:
        """Whether this is what vLLM makes of the engine core's death. In a stream it looks like any
        other chunk; what it may hold besides is not lost, as another engine makes it again."""
        self._notice_death()
        if self._state is not EngineState.DEAD:
            return False
        if isinstance(reply, ResponseStart) and not reply.is_event_stream:
            return reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return True

    def _refusal(self, died: bool = False) -> Refusal:
        reason = f"engine {self._config.engine_id} is {self._state}: {self._detail}"
        return Refusal(reason, died)

    def _move(self, state: EngineState, detail: str) -> None:
        check_transition(self._state, state)
        logger.info("engine %s: %s -> %s: %s", self._config.engine_id, self._state, state, detail)
        self._state, self._detail = state, detail


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _process_trees(roots: list[BaseProcess]) -> list[psutil.Process]:
    """The processes and everything they started."""
    trees: list[psutil.Process] = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(root.pid)
            trees += [process, *process.children(recursive=True)]
    return trees


def _remove_shared_memory() -> None:
    """Unlink the segments and semaphores that killed children left in /dev/shm.

    Python's resource tracker knows them and unlinks them when it ends, but Ray kills it together
    with the actor. Closing our end of its pipe, the last one now, has it do so at once.
    """
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def _end_processes(processes: list[psutil.Process]) -> None:
    """Ask the processes to end, and kill those that do not."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=CHILD_EXIT_TIMEOUT_S)
    for process in alive:
        logger.warning("process %d of vLLM did not end and is killed", process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=CHILD_EXIT_TIMEOUT_S)
