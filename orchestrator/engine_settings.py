"""What an engine actor of a mesh is started with."""

from actors.dispatch.subscription import ADDRESS_VARIABLE, SECRET_VARIABLE
from actors.engine.config import EngineConfig
from actors.engine.media_policy import MEDIA_VARIABLE
from actors.experts.spec import ExpertSpec
from actors.process import SHORT_SPIN
from actors.wire.address import Address
from orchestrator.config.schema import MeshConfig
from orchestrator.run_dir import RunDir
from orchestrator.telemetry.engine_tracing import engine_tracing

EXECUTOR_FLAG = "distributed_executor_backend"
ONE_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""vLLM's own default for one device. On CPUs it would take a second process, to bind OpenMP threads
there; ours are placed by their environment, and the process costs 10 s of CPU time at start."""

PATIENT_LOAD_BYTES = 4 << 30
"""An engine waits a minute for the mesh's first view. Experts up to this size are there in time, so
engine and shards load side by side; above, the engine comes after the shards."""


def loads_beside_shards(spec: ExpertSpec) -> bool:
    """Whether an engine may start before the experts are loaded."""
    total_bytes = spec.bytes_per_expert * spec.num_experts * len(spec.layers)
    return total_bytes <= PATIENT_LOAD_BYTES


def engine_config(
    config: MeshConfig, engine_id: str, directory: Address, secret: bytes, run_dir: RunDir
) -> EngineConfig:
    """directory: where the engine's process finds the mesh."""
    # Batch jobs come after online requests.
    flags = {**config.engines.vllm, "scheduling_policy": "priority"}
    if config.model.max_model_len is not None:
        flags["max_model_len"] = config.model.max_model_len
    if all(flags.get(f"{kind}_parallel_size", 1) == 1 for kind in ("tensor", "pipeline")):
        flags.setdefault(EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR)
    tracing = engine_tracing(config.telemetry, config.mesh.name, engine_id)
    flags = {**tracing.flags, **flags}
    environment = {
        **tracing.environment,
        ADDRESS_VARIABLE: str(directory),
        MEDIA_VARIABLE: config.gateway.media_policy,
        # Threads are ours to place: shards share the cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **SHORT_SPIN,
    }
    if config.cluster.ray_address is None:
        environment |= _private_folders(run_dir)
    else:
        # Links within a machine need none; Ray writes an actor's environment into its logs.
        environment[SECRET_VARIABLE] = secret.decode()
    return EngineConfig(
        engine_id=engine_id,
        model=str(config.model.path),
        served_model_name=config.model.name,
        flags=flags,
        cpu_kv_cache_gib=config.engines.kv_cache_gib,
        environment=environment,
    )


def _private_folders(run_dir: RunDir) -> dict[str, str]:
    """Sockets and temporary files go into the run folder, which goes when the mesh goes."""
    return {"VLLM_RPC_BASE_PATH": str(run_dir.path), "TMPDIR": str(run_dir.scratch)}
