"""`expertmesh simulate`: what each planning policy would have made of a recorded load."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from actors.experts.families import read_expert_spec
from orchestrator.cli.plan import capacities_of, check_fits
from orchestrator.config.bytesize import format_bytes
from orchestrator.config.load import load_config
from orchestrator.errors import UserError
from orchestrator.load_trace import read_trace
from orchestrator.mesh_plan import relative_speeds, slots_of_memory
from placement.policy.simulate import simulate


def simulate_trace(
    trace_path: Path,
    path: Path | None,
    as_json: bool,
    page: bool = False,
    console: Console | None = None,
) -> int:
    """Replay a trace on the shards of a config under every policy and print what came out.

    page: show it in a page too, until Ctrl-C.
    """
    config = load_config(path)
    try:
        spec = read_expert_spec(config.model.path, predictors=config.engines.predicts)
    except ValueError as error:
        raise UserError(str(error)) from error
    recorded = read_trace(trace_path)
    check_fits(recorded, spec)
    if len(recorded.trace.counts) < 2:
        raise UserError(f"{trace_path} holds one window", "record two at least")
    capacities, notes = capacities_of(config, spec)
    slots = slots_of_memory(spec, capacities, config.placement.redundant_slots)
    speed, _ = relative_speeds(spec, capacities)
    replays = simulate(recorded.trace.counts, speed, slots, expert_bytes=spec.bytes_per_expert)
    report = {
        "model": recorded.model,
        "windows": len(recorded.trace.counts),
        "shards": [capacity.id for capacity in capacities],
        "notes": notes,
        "policies": {
            name: {
                "mean_balancedness": float(replay.balancedness.mean()),
                "worst_balancedness": float(replay.balancedness.min()),
                "copies": int(replay.moves.sum()),
                "bytes": int(replay.bytes.sum()),
                "balancedness": [round(float(value), 4) for value in replay.balancedness],
            }
            for name, replay in replays.items()
        },
    }
    if as_json:
        import json

        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(report, console or Console(highlight=False))
    if page:
        from orchestrator.cli.replay_page import replay_data, serve_replay

        serve_replay(replay_data(report, recorded, replays), console or Console(highlight=False))
    return 0


def show(report: dict[str, Any], console: Console) -> None:
    console.print(
        f"{report['model']}: {report['windows']} windows on {len(report['shards'])} shards"
    )
    table = Table()
    for column in ("policy", "mean balancedness", "worst", "copies", "moved"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, result in report["policies"].items():
        table.add_row(
            name,
            f"{result['mean_balancedness']:.4f}",
            f"{result['worst_balancedness']:.4f}",
            str(result["copies"]),
            format_bytes(result["bytes"]),
        )
    console.print(table)
    for note in report["notes"]:
        console.print(f"note: {note}")
