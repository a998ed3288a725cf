"""What happened between two statuses of a mesh, in sentences for people."""

from dataclasses import dataclass

from orchestrator.status import ComponentState, ComponentStatus, MeshStatus

_BAD = frozenset({ComponentState.DEAD, ComponentState.SUSPECT})


@dataclass(frozen=True, slots=True)
class Happening:
    """time_s: Unix time. subject: a component's id, or "mesh". level: info, good or bad."""

    time_s: float
    subject: str
    level: str
    text: str


def happenings(before: MeshStatus | None, now: MeshStatus, time_s: float) -> list[Happening]:
    """What differs. Nothing before: the mesh came into sight."""
    if before is None:
        text = f"{now.mesh} serves {now.model}: {now.reason}"
        return [Happening(time_s, "mesh", "good" if now.ready else "info", text)]
    found = []
    if before.ready != now.ready:
        word = "ready" if now.ready else "not ready"
        found.append(
            Happening(time_s, "mesh", "good" if now.ready else "bad", f"{word}: {now.reason}")
        )
    if before.epoch != now.epoch:
        text = f"plan epoch {before.epoch} → {now.epoch}"
        found.append(Happening(time_s, "mesh", "info", text))
    known = {c.id: c for c in before.components}
    for component in now.components:
        found += _of_component(known.pop(component.id, None), component, time_s)
    found += [Happening(time_s, id, "bad", f"{c.kind} is gone") for id, c in known.items()]
    return found


def _of_component(
    before: ComponentStatus | None, now: ComponentStatus, time_s: float
) -> list[Happening]:
    if before is None:
        return [Happening(time_s, now.id, "info", f"{now.kind} joined: {now.state}")]
    again = before.pid and now.pid and before.pid != now.pid
    if before.state is now.state and not again:
        return []
    text = f"{now.kind} {before.state} → {now.state}"
    if again:
        text += f", another process ({before.pid} → {now.pid})"
    if now.state is not ComponentState.READY and now.detail:
        text += f": {now.detail}"
    level = "bad" if now.state in _BAD else "good" if now.state is ComponentState.READY else "info"
    return [Happening(time_s, now.id, level, text)]
