"""What `expertmesh top` draws of one look: pure, from the answers of the API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli.tables import life, table
from orchestrator.config.bytesize import format_bytes

SPARKS = "▁▂▃▄▅▆▇█"
TALL, WIDE = 40, 110
"""Lines and columns from which on everything is shown at length."""
RATE_POINTS = 8
"""Points that the tokens' rate is taken over: one look is too short for a slow mesh."""

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """report: of `/api/v1/telemetry`; points: all that are known, oldest first; cluster, events: of
    the status API, empty where it does not tell."""

    report: Report
    points: Sequence[Report]
    cluster: Report = field(default_factory=dict)
    events: Sequence[Report] = ()


@dataclass(frozen=True, slots=True)
class Room:
    """How much of everything a terminal takes. bar: characters of a bar."""

    bar: int
    shards: int
    engines: int
    hot: int
    jobs: int

    @classmethod
    def of(cls, width: int, height: int) -> "Room":
        tall = height >= TALL
        bar = 24 if width >= WIDE else 8
        return cls(bar, max(4, height - 26), 6 if tall else 2, 5 if tall else 2, 5 if tall else 2)

    def draw(self, part: float, style: str = "cyan") -> Text:
        cells = round(self.bar * min(1.0, max(0.0, part)))
        return Text("█" * cells, style).append("·" * (self.bar - cells), "dim")


def draw(look: Look, width: int, height: int) -> RenderableType:
    """Everything that there is room for: what happened gets the lines that are left."""
    room = Room.of(width, height)
    parts = [
        _head(look),
        _figures(look),
        *_shards(look, room),
        *_engines(look, room),
        *_experts(look, room),
        *_change(look),
        *_batch(look, room),
    ]
    used = sum(part.row_count + 1 if isinstance(part, Table) else _lines(part) for part in parts)
    return Group(*parts, *_happened(look, height - used - 1))


def _lines(part: Text) -> int:
    return part.plain.count("\n") + 1


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]], right: str) -> Table:
    made = table(columns, rows, right)
    for column in made.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    return made


def _head(look: Look) -> Text:
    status = look.report.get("status")
    if status is None:
        return Text("nothing is known of the mesh yet", "yellow")
    ready = ("ready", "bold green") if status["ready"] else ("not ready", "bold red")
    head = Text.assemble(
        (status["mesh"], "bold"), f" serves {status['model']}: ", ready,
        f" ({status['reason']}), plan epoch {status['epoch']}",
    )  # fmt: skip
    age_s, interval_s = look.report["age_s"], look.report["interval_s"]
    if age_s > max(5.0, 4 * interval_s):
        head.append(f"\nas of {age_s:.0f} s ago: the controller does not answer", "bold yellow")
    return head


def _figures(look: Look) -> Text:
    last = look.points[-1] if look.points else {}
    balance = look.report.get("balancedness")
    figures = [
        ("balancedness", "-" if balance is None else f"{balance:.2f}"),
        ("tokens/s", f"{tokens_per_s(look.points):,.0f}"),
        ("assignments/s", f"{last.get('assignments_per_s', 0):,.0f}"),
        ("in flight", str(last.get("in_flight", 0))),
        ("waiting", f"{last.get('waiting', 0):.0f}"),
        ("KV", f"{last.get('kv_used', 0):.0%}"),
    ]
    line = Text()
    for name, value in figures:
        line.append(f"{name} ", "dim").append(f"{value}   ", "bold")
    curve = sparks([p["balancedness"] for p in look.points])
    return line.append("\nbalancedness ", "dim").append(curve, "cyan") if curve else line


def tokens_per_s(points: Sequence[Report]) -> float:
    """Over the newest points; an engine that started anew is no fall below zero."""
    some = [point for point in points[-RATE_POINTS:] if point["generated"]]
    if len(some) < 2:
        return 0.0
    time_s = some[-1]["time_s"] - some[0]["time_s"]
    return max(0.0, (some[-1]["generated"] - some[0]["generated"]) / max(time_s, 1e-3))


def sparks(values: Sequence[float | None], most: int = 60) -> str:
    """One character each, from 0 to 1; blanks where there was no traffic."""
    steps = len(SPARKS) - 1
    shown = [" " if v is None else SPARKS[round(min(1.0, v) * steps)] for v in values[-most:]]
    return "".join(shown).strip() and "".join(shown)


def _shards(look: Look, room: Room) -> list[Table | Text]:
    """Where there are too many: those that do not serve, and the busiest."""
    rates = look.points[-1]["shards"] if look.points else {}
    every = _components(look, "shard")
    shards = every
    if len(every) > room.shards:
        by_need = sorted(every, key=lambda s: (s["state"] == "ready", -rates.get(s["id"], 0.0)))
        shards = by_need[: room.shards]
    most = max([1.0, *rates.values()])
    rows = [
        [
            shard["id"],
            life(shard["state"]),
            Text(shard["pool"] or "-").append(" emulated" if shard["emulated"] else "", "magenta"),
            "-" if shard["slots"] is None else str(shard["slots"]),
            "-" if shard["memory_bytes"] is None else format_bytes(shard["memory_bytes"]),
            "-" if shard["speed"] is None else f"{shard['speed']:.2f}",
            f"{rates.get(shard['id'], 0.0):,.0f}",
            room.draw(rates.get(shard["id"], 0.0) / most),
        ]
        for shard in shards
    ]
    columns = ("SHARD", "STATE", "POOL", "COPIES", "MEMORY", "SPEED", "LOAD/S", "")
    left = len(every) - len(shards)
    more = Text(f"and {left} more that serve and are less busy" if left else "", "dim")
    return [Text(), _table(columns, rows, right="COPIES MEMORY SPEED LOAD/S"), more]


def _engines(look: Look, room: Room) -> list[Table | Text]:
    rows: list[list[str | Text]] = []
    for engine in _components(look, "engine")[: room.engines]:
        said = look.report["engines"].get(engine["id"], {})
        kv = said.get("kv_used", 0.0)
        rows.append(
            [
                engine["id"],
                life(engine["state"]),
                f"{said.get('running', 0):.0f}",
                f"{said.get('waiting', 0):.0f}",
                f"{said.get('generated', 0):,.0f}",
                f"{kv:.0%}",
                room.draw(kv, "green"),
            ]
        )
    columns = ("ENGINE", "STATE", "RUNNING", "WAITING", "TOKENS", "KV", "")
    return [_table(columns, rows, right="RUNNING WAITING TOKENS KV"), Text()]


def _experts(look: Look, room: Room) -> list[Table | Text]:
    hot = look.report.get("hot") or []
    if not hot:
        return [Text("no traffic yet", "dim"), Text()]
    most = max(expert["share"] for expert in hot)
    rows: list[list[str | Text]] = [
        [f"{e['layer']}/{e['expert']}", f"{e['share']:.1%}", room.draw(e["share"] / most, "red")]
        for e in hot[: room.hot]
    ]
    return [_table(("HOT EXPERT", "OF ITS LAYER", ""), rows, right="OF ITS LAYER"), Text()]


def _change(look: Look) -> list[Text]:
    change = look.cluster.get("transaction")
    problems = look.cluster.get("problems") or {}
    lines = [Text(f"problem: {what}: {why}", "bold yellow") for what, why in problems.items()]
    if change is not None:
        gain = f", predicted gain {change['gain']:.1%}" if change["gain"] > 0 else ""
        lines.append(
            Text.assemble(
                (f"transaction {change['id']} {change['kind']}: {change['phase']}", "bold"),
                f" for {change['phase_s']:.0f} s, batch {change['batch']} of {change['batches']}, "
                f"{change['copies']} copies, {format_bytes(change['bytes'])}{gain}",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
    return [*lines, Text()] if lines else []


def _batch(look: Look, room: Room) -> list[Table | Text]:
    batch = look.report.get("batch")
    if not batch or not batch["unfinished"]:
        return []
    rows: list[list[str | Text]] = []
    for job in batch["unfinished"][: room.jobs]:
        done = job["completed"] + job["failed"]
        note = "paused" if job["paused"] else job["waiting_for"]
        part = done / job["total"] if job["total"] else 0.0
        rows.append(
            [
                job["id"],
                job["state"],
                f"{done}/{job['total']}",
                str(job["failed"]),
                room.draw(part),
                note,
            ]
        )
    columns = ("BATCH JOB", "STATE", "DONE", "FAILED", "", "WAITS FOR")
    return [_table(columns, rows, right="DONE FAILED"), Text()]


def _happened(look: Look, most: int) -> list[Text]:
    """The newest first: what the gateway saw, and the control plane's history."""
    seen = [(h["time_s"], h["subject"], h["text"], h["level"]) for h in look.report["happenings"]]
    told = [(e["wall_s"], e["subject"], e["reason"], "info") for e in look.events]
    styles = {"bad": "red", "good": "green"}
    return [
        Text.assemble(
            (f"{datetime.fromtimestamp(time_s):%H:%M:%S} ", "dim"),
            (f"{subject}: ", "bold"),
            (text, styles.get(level, "")),
            overflow="ellipsis",
            no_wrap=True,
        )
        for time_s, subject, text, level in sorted([*seen, *told], reverse=True)[: max(0, most)]
    ]


def _components(look: Look, kind: str) -> list[dict[str, Any]]:
    status = look.report.get("status") or {"components": []}
    return [component for component in status["components"] if component["kind"] == kind]
