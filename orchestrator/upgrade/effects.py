"""What a change of each config key does to a mesh that runs: one table.

What processes are started with (`setups_of`) follows from the same table, so a key that takes new
processes is one by which old and new ones are told apart.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from actors.origin import DIGITS
from orchestrator.config.schema import MeshConfig

Path = tuple[str, ...]
"""Of a value in the config, such as `("pools", "h20", "threads")`."""

ENGINES = "engine"
ROUTERS = "router"
"""Pools of the processes that no pool of the config lists."""


class Effect(Enum):
    """What follows from another value."""

    LIVE = "the controller goes by it"
    LINKS = "`off`: from the next call on; `auto`: for links opened afterwards"
    SIZE = "members are added or leave"
    POOL = "the pool's shards are replaced"
    ENGINES = "engines are replaced"
    EVERY = "shards, routers and engines are replaced"
    FIXED = "not while the mesh runs: stop it and start it again"


ANY = "*"
EFFECTS: dict[Path, Effect] = {
    ("mesh",): Effect.FIXED,
    ("model", "path"): Effect.EVERY,  # with the same checkpoint in it
    ("model", "served_name"): Effect.FIXED,
    ("model", "max_model_len"): Effect.ENGINES,
    ("engines",): Effect.ENGINES,
    # Decides whether shards hold the layers of multi-token prediction.
    ("engines", "vllm", "speculative_config"): Effect.FIXED,
    ("engines", "replicas"): Effect.SIZE,
    ("engines", "max_replicas"): Effect.LIVE,
    ("router",): Effect.LIVE,
    ("router", "mode"): Effect.FIXED,
    ("router", "device_ipc"): Effect.LINKS,
    ("router", "spin_us"): Effect.EVERY,
    # Both ends of a connection have to agree.
    ("router", "between_nodes_security"): Effect.FIXED,
    ("router", "tls_certificate"): Effect.FIXED,
    ("router", "tls_key"): Effect.FIXED,
    ("pools", ANY): Effect.POOL,
    ("pools", ANY, "shards"): Effect.SIZE,
    ("pools", ANY, "spares"): Effect.FIXED,
    ("pools", ANY, "max_shards"): Effect.LIVE,
    ("pools", ANY, "memory"): Effect.LIVE,  # see `changes`: it only grows
    ("pools", ANY, "domain"): Effect.LIVE,
    ("placement",): Effect.LIVE,
    ("controller",): Effect.LIVE,
    # The endpoint, the batch runner and the command that started the mesh go on as they are; so
    # does what Ray hands on to every process of the mesh as its environment.
    ("logging",): Effect.FIXED,
    ("gateway",): Effect.FIXED,
    ("batch",): Effect.FIXED,
    ("telemetry",): Effect.FIXED,
    ("cluster",): Effect.FIXED,
    ("cluster", "room_timeout_s"): Effect.LIVE,
    ("cluster", "take_over"): Effect.LIVE,
    ("kubernetes",): Effect.LIVE,  # no process of the mesh reads it
}
"""The longest fitting beginning of a path decides."""


def effect_of(path: Path) -> Effect:
    """Raises KeyError for a path that the table does not cover."""
    general = ("pools", ANY, *path[2:]) if path[0] == "pools" else path
    for length in range(len(general), 0, -1):
        if (found := EFFECTS.get(general[:length])) is not None:
            return found
    raise KeyError(".".join(path))


def values_of(config: MeshConfig) -> dict[Path, Any]:
    """Every value of the config by its path; an empty section has none."""
    return dict(_walk((), config.model_dump(mode="json")))


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _walk((*path, key), below)
    else:
        yield path, value


def setups_of(config: MeshConfig) -> dict[str, str]:
    """By pool, engines' and routers' too: digest of what its processes are started with.

    Values that are worked out from the config and the machine, such as the threads of an engine
    that names none, are not in it: they may differ after a pool was scaled.
    """
    values = values_of(config)
    shared = {p: v for p, v in values.items() if effect_of(p) is Effect.EVERY}
    engines = {p: v for p, v in values.items() if effect_of(p) is Effect.ENGINES}
    found = {ROUTERS: _digest(shared), ENGINES: _digest(shared | engines)}
    for pool in config.pools:
        own = {p: v for p, v in values.items() if p[:2] == ("pools", pool)}
        own = {p[2:]: v for p, v in own.items() if effect_of(p) is Effect.POOL}
        found[pool] = _digest(shared | own)
    return found


def _digest(values: Mapping[Path, Any]) -> str:
    text = json.dumps(sorted((".".join(path), value) for path, value in values.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
