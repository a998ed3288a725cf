"""Size a pool in Kubernetes: pods and shards together, in the order that loses no request."""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path

from orchestrator.api.models import ClusterView
from orchestrator.cli import endpoint
from orchestrator.cli.change import change
from orchestrator.cli.kubernetes import DONE, NOT_DONE, Target, show
from orchestrator.config.kubernetes import ENGINE_GROUP
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.kubernetes.groups import pods_config
from orchestrator.kubernetes.resize import (
    forget_victims,
    group_pods,
    group_spec,
    grow,
    pods_without_shards,
    read_cluster,
    shrink,
)
from orchestrator.kubernetes.standing import Standing
from orchestrator.kubernetes.waiting import wait_until


@dataclass(frozen=True, slots=True)
class MeshAccess:
    """Where the mesh answers, and with which key it is changed."""

    url: str | None
    key_file: Path | None


def scale(
    target: Target, pool: str, size: int, mesh: MeshAccess, timeout_s: float, *, dry_run: bool
) -> int:
    """Returns 1 where the mesh refuses. Raises UserError."""
    check_pool(target.config, pool)
    pods = math.ceil(size / pods_config(target.config, pool).shards_per_pod)
    cluster = read_cluster(target.api, target.namespace, target.name)
    before = group_spec(cluster, pool)["replicas"]
    if target.config.kubernetes.autoscaler:
        return _ask(mesh, pool, size, timeout_s, dry_run)
    if dry_run:
        print(f"would be done: {pool} from {before} to {pods} pods, {size} shards")
        return DONE
    if pods > before:
        grow(target.api, target.namespace, target.name, pool, pods)
        _wait(target, pool, pods, timeout_s)
    if _ask(mesh, pool, size, timeout_s, dry_run) != DONE:
        return NOT_DONE
    if pods < before:
        return _end_pods(target, pool, before - pods, mesh, timeout_s)
    return DONE


def check_pool(config: MeshConfig, pool: str) -> None:
    """Raises UserError, which names the nearest pool."""
    known = [*config.pools, ENGINE_GROUP]
    if pool not in known:
        near = difflib.get_close_matches(pool, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"the mesh has no pool {pool}", hint)


def _ask(mesh: MeshAccess, pool: str, size: int, timeout_s: float, dry_run: bool) -> int:
    """Have the mesh take up or give up shards, and wait until it is through."""
    url = _url(mesh)
    asked = {"pool": pool, "size": size}
    return change(
        "scale", asked, url=url, key_file=mesh.key_file, dry_run=dry_run, wait_s=timeout_s,
        as_json=False,
    )  # fmt: skip


def _url(mesh: MeshAccess) -> str:
    if mesh.url is None:
        raise UserError(
            "the mesh has to be asked too, and no --url says where it answers",
            "kubectl port-forward service/MESH 8000, then --url http://127.0.0.1:8000",
        )
    return mesh.url


def _end_pods(target: Target, pool: str, count: int, mesh: MeshAccess, timeout_s: float) -> int:
    """End pods that the mesh has nothing on any more."""
    view, stale_s = endpoint.fetch_model(_url(mesh), "/api/v1/cluster", ClusterView)
    if stale_s:
        raise UserError("the controller does not answer: no pod is ended", "try again later")
    pods = group_pods(target.api, target.namespace, target.name, pool)
    victims = pods_without_shards(pods, view)[:count]
    if len(victims) < count:
        show(f"{count - len(victims)} pods of {pool} hold something still, and stay")
    if not victims:
        return NOT_DONE
    left = len(pods) - len(victims)
    show(f"ending {', '.join(victims)}")
    shrink(target.api, target.namespace, target.name, pool, victims)
    _wait(target, pool, left, timeout_s)
    forget_victims(target.api, target.namespace, target.name, pool)
    return DONE if len(victims) == count else NOT_DONE


def _wait(target: Target, pool: str, pods: int, timeout_s: float) -> None:
    def reached(now: Standing) -> bool:
        group = next(g for g in now.groups if g.name == pool)
        return group.ready == group.there == pods

    wait_until(target.api, target.namespace, target.name, reached, timeout_s, show)
