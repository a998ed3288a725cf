"""`expertmesh plan`: what would be placed where, before anything is started."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from actors.experts.families import read_expert_spec
from actors.experts.spec import ExpertSpec
from orchestrator.cli.survival import lines, price_of_two, survival
from orchestrator.config.bytesize import format_bytes
from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.load_trace import LoadTrace, read_trace
from orchestrator.mesh_plan import MeshPlan, ShardCapacity, plan_mesh
from orchestrator.pool_specs import specs_of_pools
from placement.cost_model import TYPICAL_COST
from placement.epoch import EMPTY_SLOT


def plan(
    path: Path | None, trace_path: Path | None, as_json: bool, console: Console | None = None
) -> int:
    """Print the plan for a config, from a uniform load or from a recorded one."""
    config = load_config(path)
    try:
        spec = read_expert_spec(config.model.path, predictors=config.engines.predicts)
    except ValueError as error:
        raise UserError(str(error)) from error
    trace = read_trace(trace_path) if trace_path else None
    if trace is not None:
        check_fits(trace, spec)
    capacities, notes = capacities_of(config, spec)
    load = trace.total() if trace else None
    copies, redundant = config.placement.min_copies, config.placement.redundant_slots
    planned = plan_mesh(spec, capacities, redundant, 1, load, min_copies=copies)
    report = describe(config, spec, capacities, planned, notes)
    report["survives"] = survival(planned.epoch, capacities)
    report["two_copies"] = price_of_two(spec, capacities, planned, load)
    if as_json:
        import json

        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(report, console or Console(highlight=False))
    return 0


def check_fits(trace: LoadTrace, spec: ExpertSpec) -> None:
    """Raises UserError unless the trace is of a model with these layers and experts."""
    if trace.layers != spec.layers or trace.trace.counts.shape[2] != spec.num_experts:
        raise UserError(
            f"the trace is of {trace.model}: {trace.trace.counts.shape[2]} experts in layers "
            f"{list(trace.layers)}, but the config's model has {spec.num_experts} in "
            f"{list(spec.layers)}",
            "record one from this model",
        )


def capacities_of(config: MeshConfig, spec: ExpertSpec) -> tuple[list[ShardCapacity], list[str]]:
    """What the config says of each shard, and what had to be assumed because it does not say.

    Raises:
        UserError: a pool of accelerators without `memory`: only a running shard could measure it;
            or a pool's checkpoint is of another model.
    """
    notes = []
    unnamed = sum(pool.shards for pool in config.pools.values() if pool.memory is None)
    specs = specs_of_pools(config.pools, spec)
    capacities = []
    for name, pool in config.pools.items():
        memory = pool.memory
        if memory is None and pool.device != "cpu":
            raise UserError(
                f"pools.{name} names no memory", "set it to plan without starting the mesh"
            )
        if memory is None:
            memory = psutil.virtual_memory().available // unnamed
            notes.append(f"{name}: memory is a share of what this machine has free now")
        if pool.speed is None:
            notes.append(f"{name}: speed 1 is assumed; a mesh measures it when it starts")
        capacities += [
            ShardCapacity(
                f"{name}-{number}",
                memory,
                TYPICAL_COST.scaled(pool.speed or 1.0),
                specs[name].bytes_per_expert,
                pool.domain or "",
            )
            for number in range(pool.shards)
        ]
    return capacities, notes


def describe(
    config: MeshConfig,
    spec: ExpertSpec,
    capacities: list[ShardCapacity],
    planned: MeshPlan,
    notes: list[str],
) -> dict[str, Any]:
    """The plan as JSON values."""
    epoch = planned.epoch
    tokens = epoch.shares.sum(axis=(0, 2))
    replicas = [
        np.bincount(row[row != EMPTY_SLOT], minlength=epoch.num_experts) for row in epoch.experts
    ]
    shards = []
    for number, capacity in enumerate(capacities):
        held = int((epoch.experts[:, number] != EMPTY_SLOT).sum())
        pool = capacity.id.rpartition("-")[0]
        shards.append(
            {
                "id": capacity.id,
                "pool": pool,
                "emulated": config.pools[pool].emulated,
                "domain": capacity.domain,
                "speed": config.pools[pool].speed or 1.0,
                "slots": held,
                "memory_bytes": held * capacity.bytes_per_expert,
                "memory_limit_bytes": capacity.memory_bytes,
                "share_of_load": float(tokens[number] / tokens.sum()),
            }
        )
    return {
        "model": config.model.name,
        "architecture": spec.architecture,
        "layers": len(spec.layers),
        "experts": spec.num_experts,
        "bytes_per_expert": spec.bytes_per_expert,
        "replicated_experts": int(sum((counts > 1).sum() for counts in replicas)),
        "copies_to_load": planned.moves,
        "balancedness": planned.balancedness,
        "bound": planned.bound,
        "reason": planned.reason,
        "notes": notes,
        "shards": shards,
        "placement": {
            str(layer): {
                capacity.id: [int(e) for e in epoch.experts[row, number] if e != EMPTY_SLOT]
                for number, capacity in enumerate(capacities)
            }
            for row, layer in enumerate(epoch.layers)
        },
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The plan for people; the placement itself is in `--json`."""
    console.print(
        f"{report['model']} ({report['architecture']}): {report['layers']} layers of "
        f"{report['experts']} experts, {format_bytes(report['bytes_per_expert'])} each"
    )
    table = Table()
    for column in ("shard", "speed", "slots", "memory", "of", "load"):
        table.add_column(column, justify="left" if column == "shard" else "right")
    for shard in report["shards"]:
        table.add_row(
            shard["id"] + (" [yellow]emulated[/]" if shard["emulated"] else ""),
            f"{shard['speed']:.2f}",
            str(shard["slots"]),
            format_bytes(shard["memory_bytes"]),
            format_bytes(shard["memory_limit_bytes"]),
            f"{shard['share_of_load']:.1%}",
        )
    console.print(table)
    console.print(
        f"balancedness {report['balancedness']:.4f} of at most {report['bound']:.4f}; "
        f"{report['copies_to_load']} copies to load, "
        f"{report['replicated_experts']} experts with replicas"
    )
    console.print(f"why: {report['reason']}")
    for line in lines(report):
        console.print(f"loss: {line}", soft_wrap=True)
    for note in report["notes"]:
        console.print(f"note: {note}")
