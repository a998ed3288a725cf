"""What leads from the config and code a mesh runs with to others. Pure."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.schema import MeshConfig
from orchestrator.upgrade.effects import ENGINES, Effect, Path, effect_of, setups_of, values_of

ABSENT = "not set"


@dataclass(frozen=True, slots=True)
class Changes:
    """refused: a line for each thing that cannot change. keys: a line for each value that does,
    with what follows. sizes: of pools whose wanted number changed; added: new pools; replaced:
    pools, engines' and routers' too, whose processes are."""

    refused: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        return not (self.refused or self.keys or self.replaced)


def same_endpoint(config: MeshConfig, running: MeshConfig) -> MeshConfig:
    """The config at the address where the mesh listens: that may have come from the command line,
    or be a free port."""
    return config.with_endpoint(running.gateway.host, running.gateway.port)


def changes_between(before: MeshConfig, after: MeshConfig, *, other_code: bool) -> Changes:
    """other_code: shards, routers and engines would run other code than now."""
    changes = Changes()
    gone = [pool for pool in before.pools if pool not in after.pools]
    changes.refused.extend(f"pools.{pool} cannot be left out: {_FIXED}" for pool in gone)
    changes.added.extend(pool for pool in after.pools if pool not in before.pools)
    changes.keys.extend(f"pools.{pool}: added" for pool in changes.added)
    if before.model.name != after.model.name:
        changes.refused.append(f"model: {before.model.name} -> {after.model.name}: {_FIXED}")
    old, new = values_of(before), values_of(after)
    apart = (*gone, *changes.added)
    for path in sorted(old.keys() | new.keys()):
        if path[0] == "pools" and path[1] in apart:
            continue
        if old.get(path, ABSENT) != new.get(path, ABSENT):
            _take(changes, path, old.get(path), new.get(path))
    setups = setups_of(before)
    changes.replaced.extend(
        pool
        for pool, setup in setups_of(after).items()
        if pool in setups and (other_code or setups[pool] != setup)
    )
    return changes


_FIXED = Effect.FIXED.value


def _take(changes: Changes, path: Path, before: Any, after: Any) -> None:
    effect = effect_of(path)
    text = f"{'.'.join(path)}: {_shown(before)} -> {_shown(after)}"
    if effect is Effect.FIXED:
        changes.refused.append(f"{text}: {_FIXED}")
    elif path[0] == "pools" and path[2] == "memory" and _less(before, after):
        changes.refused.append(f"{text}: its shards may hold more than that: {_FIXED}")
    else:
        changes.keys.append(f"{text}: {effect.value}")
        if effect is Effect.SIZE:
            changes.sizes[path[1] if path[0] == "pools" else ENGINES] = int(after)


def _less(before: int | None, after: int | None) -> bool:
    """None: all that the device has."""
    return after is not None and (before is None or after < before)


def _shown(value: Any) -> str:
    return ABSENT if value is None else str(value)
