"""`expertmesh plan --workload`: how many engines to how many shards, and why."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cli.tables import console_for, print_json, table
from orchestrator.scale.workload_file import PaperWorkload, costs_of, read_workload
from placement.workload.pipeline import Flow, Pipeline
from placement.workload.ratio import Rated, Ratio, find_ratio
from placement.workload.simulate import simulated_tokens_per_s

FROM = "predicted from the times in the file; see docs/placement.md for how and how well"


def plan_workload(path: Path, as_json: bool, console: Console | None = None) -> int:
    """Print the ratio for the workload in `path`, and the next best ones."""
    workload = read_workload(path)
    engine, side, choice, wanted = costs_of(workload)
    lengths = workload.requests.lengths()

    def play(found: Flow) -> float:
        numbers = (found.engines, found.shards, found.batch, choice.step_tokens)
        return simulated_tokens_per_s(Pipeline(lengths, engine, side, *numbers))

    ratio = find_ratio(lengths, engine, side, choice, wanted, play)
    body = as_body(workload, ratio)
    if as_json:
        print_json(body)
        return 0
    show(body, console_for(console))
    return 0


def as_body(workload: PaperWorkload, ratio: Ratio) -> dict[str, Any]:
    priced = workload.engine.price_per_hour is not None
    return {
        "workload": workload.name,
        "what": FROM,
        "met": ratio.met,
        "reason": ratio.reason,
        "best": _rated(ratio.best, priced),
        "others": [_rated(other, priced) for other in ratio.others],
    }


def _rated(one: Rated, priced: bool) -> dict[str, Any]:
    per_million = one.price / (one.flow.tokens_per_s * 3600) * 1e6
    prices = {
        "price_per_hour": one.price if priced else None,
        "price_per_million_tokens": per_million if priced else None,
    }
    return {**asdict(one.flow), "simulated_tokens_per_s": one.played, **prices}


def show(body: dict[str, Any], console: Console) -> None:
    best = body["best"]
    console.print(f"{body['workload']}: {FROM}", markup=False, soft_wrap=True)
    console.print(
        f"\n{_count(best['engines'], 'engine')} to {_count(best['shards'], 'shard')}, "
        f"batches of {best['batch']}",
        style="bold" if body["met"] else "bold red",
    )
    console.print(f"why: {body['reason']}\n", markup=False, soft_wrap=True)
    console.print(table(COLUMNS, _rows([best, *body["others"]]), right=" ".join(COLUMNS)))


COLUMNS = (
    "ENGINES", "SHARDS", "BATCH", "TOKENS/S", "SIMULATED", "STEP_MS", "P95_MS",
    "ENGINES_BUSY", "SHARDS_BUSY", "PACE", "PRICE/H", "PER_1M",
)  # fmt: skip


def _rows(found: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            str(one["engines"]),
            str(one["shards"]),
            str(one["batch"]),
            f"{one['tokens_per_s']:,.0f}",
            "-" if played is None else f"{played:,.0f}",
            f"{one['step_s'] * 1e3:.1f}",
            f"{one['step_p95_s'] * 1e3:.1f}",
            f"{one['engine_busy']:.0%}",
            f"{one['shard_busy']:.0%}",
            one["limit"],
            _price(one["price_per_hour"], ".2f"),
            _price(one["price_per_million_tokens"], ".3f"),
        )
        for one in found
        for played in [one["simulated_tokens_per_s"]]
    ]


def _price(price: float | None, form: str) -> str:
    return "-" if price is None else format(price, form)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
