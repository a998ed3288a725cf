"""`expertmesh plan --cluster`: a cluster on paper, for models whose sizes are known."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cli.tables import console_for, print_json, table
from orchestrator.errors import UserError
from orchestrator.scale.cluster_file import Assumptions, PaperCluster, read_cluster
from orchestrator.scale.deepep import Beside, beside_deepep
from orchestrator.scale.estimate import Estimate, estimate
from orchestrator.scale.models import MODELS
from orchestrator.scale.traffic import LayerTime

ON_PAPER = "on paper: from claims and assumptions, nothing of this was measured"


def plan_cluster(path: Path, as_json: bool, console: Console | None = None) -> int:
    """Print what the cluster in `path` would do with each model that fits, and which does not."""
    cluster = read_cluster(path)
    found: dict[str, Estimate | str] = {}
    for name, model in MODELS.items():
        try:
            found[name] = estimate(cluster, model)
        except UserError as error:
            found[name] = str(error)
    if all(isinstance(result, str) for result in found.values()):
        raise UserError(str(next(iter(found.values()))))
    beside = beside_deepep(cluster.assumptions)
    if as_json:
        print_json(as_body(cluster, found, beside))
        return 0
    show(cluster, found, beside, console_for(console))
    return 0


def as_body(
    cluster: PaperCluster, found: dict[str, Estimate | str], beside: list[Beside]
) -> dict[str, Any]:
    return {
        "cluster": cluster.name,
        "what": ON_PAPER,
        "models": {
            name: {"refused": result} if isinstance(result, str) else asdict(result)
            for name, result in found.items()
        },
        "beside_deepep": [asdict(one) for one in beside],
        "assumptions": assumptions_of(cluster.assumptions),
    }


def assumptions_of(assumed: Assumptions) -> dict[str, dict[str, Any]]:
    fields = Assumptions.model_fields
    return {
        name: {"value": getattr(assumed, name), "why": " ".join((field.description or "").split())}
        for name, field in fields.items()
    }


def show(
    cluster: PaperCluster,
    found: dict[str, Estimate | str],
    beside: list[Beside],
    console: Console,
) -> None:
    console.print(f"{cluster.name}, {cluster.tokens} tokens a step; {ON_PAPER}", markup=False)
    fits = {name: e for name, e in found.items() if isinstance(e, Estimate)}
    for result in found.values():
        if isinstance(result, str):
            console.print(result, markup=False, soft_wrap=True)
    rows = [(what, *(say(e) for e in fits.values())) for what, say in LINES]
    console.print(table(("", *(MODELS[name].name for name in fits)), rows))
    console.print("\nDeepEP's batch, 128 tokens a device, µs there + back:")
    console.print(
        table(
            ("devices", "DeepEP published", "through hosts", "with IPC in nodes"),
            [
                (str(b.devices), "{} + {}".format(*b.published_us), _way(b.staged), _way(b.ipc))
                for b in beside
            ],
        )
    )
    console.print("\nsources:")
    for source in dict.fromkeys(s for e in fits.values() for s in e.sources):
        console.print(f"  {source}", markup=False, soft_wrap=True)
    for name, entry in assumptions_of(cluster.assumptions).items():
        console.print(
            f"  {name} = {entry['value']:g}: {entry['why']}", markup=False, soft_wrap=True
        )


def _shares(found: Estimate) -> str:
    return ", ".join(f"{pool} {part:.0%}" for pool, part in found.pool_shares.items())


def _losses(found: Estimate) -> str:
    return "; ".join(
        f"{loss.pool}: {loss.alone:.0%} of experts gone for {loss.reload_s:.0f} s, "
        f"{loss.speed:.0%} of speed left" + ("" if loss.fits else ", the rest does not fit")
        for loss in found.losses
    )


def _layer(time: LayerTime) -> str:
    return f"{time.total_s * 1e6:.0f} µs = " + " + ".join(
        f"{part * 1e6:.0f}" for part in (time.there_s, time.compute_s, time.back_s)
    )


def _way(time: LayerTime) -> str:
    return f"{time.there_s * 1e6:.0f} + {time.back_s * 1e6:.0f}"


Say = Callable[[Estimate], str]

LINES: tuple[tuple[str, Say], ...] = (
    ("experts need", lambda e: f"{e.needed_bytes / 1e9:.0f} GB in FP4"),
    ("memory for them", lambda e: f"{e.memory_bytes / 1e9:.0f} GB"),
    ("devices, nodes", lambda e: f"{e.devices}, {e.nodes}"),
    ("copies planned", lambda e: f"{e.copies:.2f} of each expert"),
    ("balancedness", lambda e: f"{e.balancedness:.3f} of at most {e.bound:.3f}"),
    ("rows", _shares),
    ("a layer's kernels", lambda e: f"{e.compute_s * 1e6:.0f} µs"),
    ("a layer's network", lambda e: f"{e.network_s * 1e6:.0f} µs ({e.network_node})"),
    ("between nodes", lambda e: f"{e.network_bytes / 1e9:.2f} GB a step"),
    ("bound", lambda e: f"{e.tokens_per_s:,.0f} tokens/s, by {e.limit}"),
    ("layer, through hosts", lambda e: _layer(e.staged)),
    ("layer, IPC in nodes", lambda e: _layer(e.ipc)),
    ("a node lost", _losses),
    ("price", lambda e: "not given" if e.price is None else f"{e.price:.3f} per 1M tokens"),
)
