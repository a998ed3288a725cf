"""`expertmesh nodes`, `shards`, `experts`, `transactions`: the status API's answers as tables."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from orchestrator.api.models import ClusterView, LossView, PlacementView, PlaceView
from orchestrator.cli.endpoint import fetch, fetch_model
from orchestrator.cli.heat import heat_line, load_bar, loads
from orchestrator.cli.tables import console_for, life, print_json, table, warn_stale
from orchestrator.cli.traffic import Asked, by_layer, load_of
from orchestrator.config.bytesize import format_bytes
from orchestrator.errors import UserError

Loads = dict[int, NDArray[np.int64]]
"""[E] assignments of each layer, for layers that they are known of."""


def nodes(url: str, as_json: bool, console: Console | None = None) -> int:
    if as_json:
        print_json(fetch(url, "/api/v1/nodes"))
        return 0
    view, stale_s = fetch_model(url, "/api/v1/cluster", ClusterView)
    lives = {place.id: place.life for place in view.places}
    console = console_for(console)
    warn_stale(stale_s, console)
    rows = []
    for node in view.nodes:
        not_ready = [f"{id} {lives[id]}" for id in node.components if lives.get(id) != "ready"]
        state = "cordoned" if node.cordoned else "ready"
        way = _way(node.round_trip_us, node.bytes_per_s)
        rows.append(
            [node.name, state, *way, ", ".join(node.components), ", ".join(not_ready) or "-"]
        )
    columns = ("ID", "STATE", *WAY, "COMPONENTS", "NOT READY")
    console.print(table(columns, rows, right=" ".join(WAY)))
    return 0


def shards(url: str, as_json: bool, console: Console | None = None) -> int:
    if as_json:
        print_json(fetch(url, "/api/v1/shards"))
        return 0
    view, stale_s = fetch_model(url, "/api/v1/cluster", ClusterView)
    placement, _ = fetch_model(url, "/api/v1/placement", PlacementView)
    console = console_for(console)
    warn_stale(stale_s, console)
    found = [place for place in view.places if place.kind == "shard"]
    rows = [_shard_row(place, placement.loss_of_shard.get(place.id)) for place in found]
    columns = (
        "ID", "POOL", "STATE", "NODE", "COPIES", "HELD", "OF", "WEIGHT", "LOSS", *WAY, "NOTE",
    )  # fmt: skip
    console.print(table(columns, rows, right=f"COPIES HELD OF WEIGHT LOSS {' '.join(WAY)}"))
    console.print(f"\n{survival(placement)}")
    return 0


def _shard_row(place: PlaceView, loss: LossView | None) -> list[str | Text]:
    notes = []
    if place.cordoned:
        notes.append("cordoned")
    if place.wanted != "run":
        notes.append("leaves" if place.wanted == "stop" else "restarts")
    if place.loading:
        notes.append(f"loads {place.loading}")
    if place.life != "ready":
        notes.append(place.why)
    return [
        place.id,
        place.pool,
        life(place.life),
        place.node or "-",
        str(place.copies),
        format_bytes(place.held_bytes),
        format_bytes(place.capacity_bytes),
        f"{place.weight:.2f}",
        str(loss.experts) if loss else "-",
        *_way(place.round_trip_us, place.bytes_per_s),
        ", ".join(notes),
    ]


WAY = ("ROUND-TRIP", "MB/S")


def _way(round_trip_us: float | None, bytes_per_s: float | None) -> tuple[str, str]:
    """Columns `WAY`."""
    if round_trip_us is None or bytes_per_s is None:
        return "-", "-"
    return f"{round_trip_us:.0f} µs", f"{bytes_per_s / 1e6:.0f}"


def survival(placement: PlacementView) -> str:
    """What the mesh would get over, in one line."""
    if not placement.shards:
        return "nothing is placed yet"
    parts = []
    for what, losses in (
        ("shard", placement.loss_of_shard),
        ("node", placement.loss_of_node),
        ("pool", placement.loss_of_pool),
    ):
        worst = max(losses.items(), key=lambda item: item[1].experts, default=None)
        if worst is None or not worst[1].experts:
            parts.append(f"any {what} may be lost")
        else:
            parts.append(f"{worst[0]} ({what}) is the only one with {worst[1].experts} experts")
    return "; ".join(parts)


def experts(
    url: str,
    layer: int | None,
    as_json: bool,
    console: Console | None = None,
    traffic: Asked | None = None,
) -> int:
    """traffic: whose load to show; None: of all."""
    told = load_of(url, traffic) if traffic else None
    if as_json:
        print_json(told or fetch(url, "/api/v1/placement"))
        return 0
    placement, stale_s = fetch_model(url, "/api/v1/placement", PlacementView)
    console = console_for(console)
    warn_stale(stale_s, console)
    counts = loads(url, placement) if told is None else None
    load = {} if counts is None else dict(zip(placement.layers, counts, strict=True))
    if told is not None:
        load = by_layer(told)
        console.print(f"load of {told['tokens']:,} tokens of kind {told['kind']}\n")
    if layer is None:
        _all_layers(placement, load, console)
    elif layer in placement.copies:
        _one_layer(placement, layer, load.get(layer), console)
    else:
        layers = ", ".join(map(str, placement.layers))
        raise UserError(f"layer {layer} has no routed experts", f"give one of {layers}")
    return 0


def _all_layers(placement: PlacementView, loads: Loads, console: Console) -> None:
    rows: list[list[str | Text]] = [
        [
            str(layer),
            str(len(counts)),
            str(sum(counts)),
            str(sum(count == 1 for count in counts)),
            str(max(counts)),
            heat_line(loads[layer]) if layer in loads else "",
        ]
        for layer, counts in placement.copies.items()
    ]
    columns = ("LAYER", "EXPERTS", "COPIES", "ONLY-ONE", "MOST")
    console.print(table((*columns, "LOAD" if loads else ""), rows, right=" ".join(columns)))
    console.print(f"\n{survival(placement)}")


def _one_layer(
    placement: PlacementView, layer: int, load: NDArray[np.int64] | None, console: Console
) -> None:
    holders: dict[int, list[str]] = {}
    for shard, layers in placement.shards.items():
        for expert in layers.get(layer, ()):
            holders.setdefault(expert, []).append(shard)
    rows: list[list[str | Text]] = [
        [f"{layer}/{expert}", str(count), ", ".join(holders.get(expert, ["nowhere"]))]
        for expert, count in enumerate(placement.copies[layer])
    ]
    columns: tuple[str, ...] = ("EXPERT", "COPIES", "SHARDS")
    if load is not None and load.any():
        columns = (*columns, "OF LOAD", "")
        for row, count in zip(rows, load, strict=True):
            row += [f"{count / load.sum():.1%}", load_bar(count / load.max())]
    console.print(table(columns, rows, right="COPIES"))


def transactions(url: str, as_json: bool, console: Console | None = None) -> int:
    body = fetch(url, "/api/v1/transactions")
    if as_json:
        print_json(body)
        return 0
    console = console_for(console)
    warn_stale(float(body.get("stale_s", 0.0)), console)
    rows = [_transaction_row(found) for found in body["transactions"]]
    console.print(table(("ID", "STATE", "MOVED", "TOOK", "WHY"), rows, right="ID MOVED TOOK"))
    return 0


def _transaction_row(found: dict[str, Any]) -> list[str]:
    first = found["events"][0]
    took_s = found["events"][-1]["wall_s"] - first["wall_s"]
    size = first["figures"].get("bytes")
    return [
        str(found["id"]),
        found["phase"],
        "-" if size is None else format_bytes(int(size)),
        f"{took_s:.1f} s",
        found["reason"],
    ]
