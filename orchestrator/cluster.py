"""The one module that creates and kills Ray actors.

Everything else holds handles. All are detached and named, so that none ends with who started it and
each is found again. Ray restarts the controller; what to do about any other dead process is the
controller's decision.

The controller uses this module, which therefore does not import it: who starts an actor of the
orchestrator's own gives its class.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import ray
from ray.actor import ActorHandle

from actors.engine.config import EngineConfig
from actors.lean_imports import LEAN_IMPORTS
from actors.logs import COMPONENT_VARIABLE
from actors.process import thread_environment
from actors.wire.spin_time import SPIN_VARIABLE
from orchestrator.actor_names import ActorName, parse_name
from orchestrator.config.pools import PoolConfig
from orchestrator.config.schema import LoggingConfig
from orchestrator.core_shares import CoreShares
from orchestrator.logging_setup import log_environment

if TYPE_CHECKING:
    # Both import torch, which who starts a controller or an engine need not wait for.
    from actors.router.router import RouterConfig
    from actors.shard.shard import ShardConfig

P = ParamSpec("P")
Result = TypeVar("Result")

CONTROLLER = "controller"
BATCH_RUNNER = "batch-runner"
ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""A resource that Ray gives the head node: Ray ends with that node, so what must not be lost with
any other belongs there."""
CONTROLLER_CONCURRENCY = 64
"""Coroutines of the controller that may be under way at once."""
CONTROL_CONCURRENCY = 8
"""Control calls a component answers at once: its description while it loads, for example."""
ENGINE_CONCURRENCY = 1024
"""Requests one engine actor may be handed at once; vLLM queues what it does not run."""
CONTROL_GROUP = "control"
"""Ray concurrency group of an engine's control calls."""


def start_controller(
    log: LoggingConfig, controller: Callable[P, object], *arguments: P.args, **named: P.kwargs
) -> ActorHandle:
    """A `controller` of these arguments, detached: it outlives the process that started it in a
    shared cluster.

    Raises:
        ValueError: a controller of that name lives in this namespace already.
    """
    options = {"name": CONTROLLER, "max_concurrency": CONTROLLER_CONCURRENCY}
    return _start_on_head(log, options, controller, *arguments, **named)


def start_batch_runner(
    log: LoggingConfig, runner: Callable[P, object], *arguments: P.args, **named: P.kwargs
) -> ActorHandle:
    """The batch runner, or the one that runs already: detached, so it outlives who started it.

    It keeps nothing, needs no place of its own, and whatever it had begun is in the ledger.
    """
    options = {
        "name": BATCH_RUNNER,
        "max_concurrency": CONTROL_CONCURRENCY,
        "get_if_exists": True,
    }
    return _start_on_head(log, options, runner, *arguments, **named)


def _start_on_head(
    log: LoggingConfig,
    options: dict[str, Any],
    actor_class: Callable[P, object],
    *arguments: P.args,
    **named: P.kwargs,
) -> ActorHandle:
    """One of the two actors that Ray itself starts again. It hands their environment on to the
    actors they start."""
    environment = log_environment(log, options["name"])
    return _handle(
        ray.remote(actor_class)
        .options(
            lifetime="detached",
            num_cpus=0,
            resources=ON_THE_HEAD,
            max_restarts=-1,
            runtime_env={"env_vars": environment},
            **options,
        )
        .remote(*arguments, **named)
    )


def call_on_head(
    function: Callable[P, Result], *arguments: P.args, **named: P.kwargs
) -> "ray.ObjectRef[Result]":
    """What `function` returns, called once in a process of its own on the head node."""
    once = ray.remote(num_cpus=0, max_retries=0, max_calls=1, resources=ON_THE_HEAD)(function)
    return once.remote(*arguments, **named)


def find_batch_runner() -> ActorHandle | None:
    """The batch runner of this namespace, if there is one."""
    try:
        return ray.get_actor(BATCH_RUNNER)
    except ValueError:
        return None


def node_resources() -> dict[str, dict[str, float]]:
    """What each living node has in all, by the node's name."""
    return {name: node["Resources"] for name, node in _living_nodes().items()}


def free_resources() -> dict[str, dict[str, float]]:
    """What nobody has taken of that now."""
    free = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return {name: free.get(node["NodeID"], {}) for name, node in _living_nodes().items()}


def _living_nodes() -> dict[str, dict[str, Any]]:
    """Ray's node table, by host name; hosts of one name are told apart by their Ray ids."""
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    hosts = [node["NodeManagerHostname"] for node in nodes]
    return {
        host if hosts.count(host) == 1 else f"{host} ({node['NodeID'][:8]})": node
        for host, node in zip(hosts, nodes, strict=True)
    }


def waits_for_room(handle: ActorHandle, each: Mapping[str, float]) -> bool:
    """Whether an actor that asks for `each` is on no node yet because none has room for it.

    An actor whose process is just being started is on no node either; Ray lists what it cannot
    satisfy apart. Asks Ray's head node.
    """
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    actor = ray._private.state.actors(handle._actor_id.hex())
    # Before a node has taken it an actor has no address.
    if actor.get("State") != "PENDING_CREATION" or actor["Address"]["IPAddress"]:
        return False
    client = ray._private.worker.global_worker.gcs_client  # type: ignore[attr-defined]
    state = get_cluster_resource_state(client)
    wanted = {name: float(amount) for name, amount in each.items() if amount > 0}
    pending = state.pending_resource_requests
    return any(dict(entry.request.resources_bundle) == wanted for entry in pending)


def find_controller() -> ActorHandle | None:
    """The controller of this namespace, if there is one."""
    try:
        return ray.get_actor(CONTROLLER)
    except ValueError:
        return None


def find_actor(name: ActorName) -> ActorHandle | None:
    """The process of that name in this namespace, if Ray has it."""
    try:
        return ray.get_actor(str(name))
    except ValueError:
        return None


def living_actors() -> set[ActorName]:
    """Components of this namespace's mesh, whoever started them."""
    names = (parse_name(str(name)) for name in ray.util.list_named_actors())
    return {name for name in names if name is not None}


def start_shard(
    name: ActorName, config: "ShardConfig", pool: PoolConfig, secret: bytes, spin_us: float
) -> ActorHandle:
    """One expert shard, on a node that has what its pool asks for."""
    from actors.shard.shard import ExpertShard

    return _start(
        ExpertShard,
        (config, secret),
        name=name,
        num_cpus=pool.threads,
        environment=_environment(pool.threads, spin_us) | LEAN_IMPORTS,
        max_concurrency=CONTROL_CONCURRENCY,
        resources=dict(pool.resources),
    )


def start_router(
    name: ActorName, config: "RouterConfig", secret: bytes, spin_us: float
) -> ActorHandle:
    from actors.router.router import ExpertRouter

    return _start(
        ExpertRouter,
        (config, secret),
        name=name,
        num_cpus=0,
        environment=_environment(1, spin_us),
        max_concurrency=CONTROL_CONCURRENCY,
    )


def start_engine(
    name: ActorName,
    config: EngineConfig,
    resources: Mapping[str, float],
    shares: CoreShares,
    max_concurrency: int = ENGINE_CONCURRENCY,
) -> ActorHandle:
    """One vLLM engine, on a node that has these Ray resources; max_concurrency bounds the requests
    it is handed at once."""
    from actors.engine.engine import CONTROL_CALLS, Engine

    return _start(
        with_control_group(Engine, CONTROL_CALLS),
        (config,),
        name=name,
        num_cpus=shares.engine_threads,
        # The rest of its environment holds the mesh's secret, and Ray writes what it is given here
        # into its logs: the engine sets that itself, before it imports vLLM.
        environment=_environment(shares.engine_threads, shares.spin_us),
        max_concurrency=max_concurrency,
        concurrency_groups={CONTROL_GROUP: CONTROL_CONCURRENCY},
        resources=dict(resources),
    )


def with_control_group(actor_class: type, calls: Iterable[str]) -> type:
    """A subclass whose `calls` are in the control group. Ray marks functions, and those of
    `actor_class` itself are shared with everybody who makes an actor of it."""

    def in_group(method: Callable[..., Any]) -> Callable[..., Any]:
        # Not `functools.wraps`: Ray looks at the function that was wrapped. `self` by name: Ray
        # takes the first parameter away before it checks arguments.
        async def call(self: Any, *arguments: Any, **named: Any) -> Any:
            return await method(self, *arguments, **named)

        return ray.method(concurrency_group=CONTROL_GROUP)(call)

    return type(
        actor_class.__name__,
        (actor_class,),
        {name: in_group(getattr(actor_class, name)) for name in calls},
    )


def _environment(threads: int, spin_us: float) -> dict[str, str]:
    return thread_environment(threads) | {SPIN_VARIABLE: f"{spin_us:g}"}


def _start(
    actor_class: type,
    arguments: tuple[Any, ...],
    *,
    name: ActorName,
    num_cpus: int,
    environment: dict[str, str],
    max_concurrency: int,
    resources: dict[str, float] | None = None,
    concurrency_groups: dict[str, int] | None = None,
) -> ActorHandle:
    # Ray knows GPU and NPU by options of their own; everything else is a custom resource.
    resources = dict(resources or {})
    return _handle(
        ray.remote(concurrency_groups=concurrency_groups or {})(actor_class)  # type: ignore[call-overload]
        .options(
            name=str(name),
            lifetime="detached",
            num_cpus=num_cpus,
            num_gpus=resources.pop("GPU", 0),
            resources=resources,
            max_concurrency=max_concurrency,
            max_restarts=0,
            runtime_env={"env_vars": environment | {COMPONENT_VARIABLE: name.id}},
        )
        .remote(*arguments)
    )


def _handle(actor: Any) -> ActorHandle:
    """Ray types what `remote` returns as the class itself."""
    assert isinstance(actor, ActorHandle)
    return actor


def kill(handle: ActorHandle) -> None:
    """End an actor at once. Idempotent."""
    ray.kill(handle, no_restart=True)
