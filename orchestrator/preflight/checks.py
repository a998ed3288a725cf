"""All checks of a mesh, in the order a person would go through them."""

import sys
from collections.abc import Iterator

import psutil

from orchestrator.config.schema import MeshConfig
from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError
from orchestrator.preflight import machine, model, network, versions
from orchestrator.preflight.finding import Finding, Level


def check_installation() -> list[Finding]:
    """What holds for any config."""
    return [
        versions.check_python(sys.version_info[:3]),
        *(versions.check_package(tested) for tested in versions.TESTED_PACKAGES),
        versions.check_torch_companions(),
        machine.check_cpu(machine.read_cpu_flags()),
        machine.check_shared_memory(),
        machine.check_open_files(),
    ]


def check_config(config: MeshConfig) -> list[Finding]:
    """What this config asks for. Starts nothing and changes nothing."""
    return [
        *_check_model(config),
        *_check_flags(config),
        *_check_devices(config),
        network.check_port(config.gateway, shared=config.cluster.ray_address is not None),
        network.check_exposure(config.gateway, bool(Secrets().api_keys)),
        network.check_ray(config.cluster),
    ]


def _check_model(config: MeshConfig) -> Iterator[Finding]:
    files = model.check_model_files(config.model)
    yield files
    if not files.ok:
        return
    from actors.experts.check import check_checkpoint
    from actors.experts.families import read_expert_spec
    from orchestrator.pool_specs import specs_of_pools

    try:
        trust = bool(config.engines.vllm.get("trust_remote_code", False))
        spec = read_expert_spec(
            config.model.path, predictors=config.engines.predicts, trust_remote_code=trust
        )
    except ValueError as error:
        yield Finding("experts", Level.FAILURE, str(error))
        return
    try:
        check_checkpoint(spec)
    except ValueError as error:
        yield Finding("experts", Level.FAILURE, str(error), "fetch the checkpoint again")
        return
    try:
        specs = specs_of_pools(config.pools, spec)
    except UserError as error:
        yield Finding("experts", Level.FAILURE, error.message, "fetch the right one")
        return
    free_bytes = psutil.virtual_memory().available
    each = {name: of_pool.bytes_per_expert for name, of_pool in specs.items()}
    yield model.check_expert_memory(config.pools, spec, free_bytes, each)
    yield model.check_host_memory(config, spec, free_bytes)


def _check_devices(config: MeshConfig) -> list[Finding]:
    """Where shards are on other nodes, they look themselves."""
    if config.cluster.ray_address is not None or all(
        pool.device == "cpu" for pool in config.pools.values()
    ):
        return []
    from actors.devices.catalogue import load_catalogue
    from actors.devices.detect import AmbiguousDevices, detect
    from actors.devices.snapshot import take_snapshot

    try:
        seen = detect(take_snapshot(load_catalogue().values(), ask_torch=False))
    except AmbiguousDevices:
        return []  # told when a shard starts, with its node's labels
    return machine.check_devices(config.pools, seen)


def _check_flags(config: MeshConfig) -> Iterator[Finding]:
    yield from model.check_adapters(config.engines.vllm.get("lora_modules"))
    vllm = versions.package_folder("vllm")
    if vllm is not None:
        yield model.check_engine_flags(config.engines.vllm, model.known_engine_flags(vllm))


def require_ok(findings: list[Finding]) -> None:
    """Raise the first failure as a UserError that says how many others there are."""
    failures = [finding for finding in findings if not finding.ok]
    if not failures:
        return
    first, others = failures[0], len(failures) - 1
    more = f" ({others} more: run `expertmesh doctor`)" if others else ""
    raise UserError(first.message, f"{first.fix}{more}")
