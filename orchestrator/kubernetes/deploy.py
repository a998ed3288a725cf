"""Apply a mesh's objects, and tell what differs from the cluster first.

Sizes belong to whoever changed them last: a group that has more pods than the config says, or that
Ray's autoscaler sizes, keeps its size, because fewer replicas would end pods that nobody chose.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from enum import StrEnum

from orchestrator.errors import UserError
from orchestrator.kubernetes.api import OWN_MANAGERS, ConflictError, KubernetesApi
from orchestrator.kubernetes.kinds import KUBERAY, KUBERNETES, PROMETHEUS, kind_of, title
from orchestrator.kubernetes.naming import CONFIG_HASH, Object
from orchestrator.kubernetes.refusals import missing_kinds
from orchestrator.kubernetes.yaml_text import as_yaml

FIXES = {
    KUBERAY: "install KubeRay's operator with its CRDs (docs/kubernetes.md)",
    KUBERNETES: "use Kubernetes 1.25 or newer",
    PROMETHEUS: "install it, or set kubernetes.monitoring_namespace: null",
}
SERVER_FIELDS = (
    "managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink",
    "finalizers", "ownerReferences",
)  # fmt: skip
"""Of metadata: what the server writes."""


class Change(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """Left as it is although the config says otherwise; the note says why."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one object."""

    title: str
    change: Change
    note: str = ""


def check_installed(api: KubernetesApi, objects: Iterable[Object]) -> None:
    """Raises UserError where the cluster lacks a kind of object, or has it in other versions."""
    kinds = {kind_of(item) for item in objects}
    for group, version, installer in sorted({(k.group, k.version, k.installs) for k in kinds}):
        if not installer:
            continue
        served = api.served_versions(group)
        if version not in served:
            raise missing_kinds(group, version, served, installer, FIXES[installer])


def apply_all(
    api: KubernetesApi, objects: Iterable[Object], *, force: bool, dry_run: bool
) -> Iterator[Applied]:
    """Apply one after the other. Idempotent: what is as it should be is left alone.

    Raises:
        UserError: the server refuses; what was applied before stays.
    """
    for item in objects:
        yield _apply(api, item, force=force, dry_run=dry_run)


def _apply(api: KubernetesApi, item: Object, *, force: bool, dry_run: bool) -> Applied:
    live = _live(api, item)
    if live is not None:
        _check_stays(item, live)
    if live is not None and runs_with_other_config(item, live):
        note = "the mesh runs with its earlier config: apply with --restart to start it again"
        return Applied(title(item), Change.KEPT, note)
    wanted, note = keep_sizes(item, live)
    made = _apply_own(api, wanted, live, force=force, dry_run=dry_run)
    if live is None:
        return Applied(title(item), Change.CREATED, note)
    same = comparable(live) == comparable(made)
    return Applied(title(item), Change.UNCHANGED if same else Change.CHANGED, note)


def _check_stays(item: Object, live: Object) -> None:
    """What is applied to an object that is being deleted goes with it."""
    if "deletionTimestamp" in live["metadata"]:
        holders = ", ".join(live["metadata"].get("finalizers", [])) or "its grace period"
        raise UserError(
            f"{title(item)} is being deleted (it waits for {holders})",
            "apply again when it is gone",
        )


def _apply_own(
    api: KubernetesApi, item: Object, live: Object | None, *, force: bool, dry_run: bool
) -> Object:
    """Take over fields of `expertmesh k8s scale` without asking, of others only with `force`."""
    try:
        return api.apply(item, force=force, dry_run=dry_run)
    except ConflictError as error:
        if not force and error.managers and error.managers <= OWN_MANAGERS:
            return _apply_own(api, item, live, force=True, dry_run=dry_run)
        if live is not None and not _would_change(api, item, live):
            return live
        raise UserError(
            f"{title(item)}: {error}", "leave the fields to them, or apply with --force"
        ) from error


def _would_change(api: KubernetesApi, item: Object, live: Object) -> bool:
    """A list that others wrote differs from ours by the server's defaults in it, which makes a
    conflict of a change that is none."""
    return comparable(api.apply(item, force=True, dry_run=True)) != comparable(live)


def runs_with_other_config(item: Object, live: Object) -> bool:
    """A job is not started again by another annotation, which then would only hide it."""
    if item["kind"] != "RayJob":
        return False
    return _hash_of(item) != _hash_of(live)


def _hash_of(item: Object) -> str:
    return str(item["metadata"].get("annotations", {}).get(CONFIG_HASH, ""))


def keep_sizes(item: Object, live: Object | None) -> tuple[Object, str]:
    """The object to apply, and what is kept of the cluster's sizes, for people."""
    if item["kind"] != "RayCluster" or live is None:
        return item, ""
    item, kept = copy.deepcopy(item), []
    groups = {group["groupName"]: group for group in live["spec"].get("workerGroupSpecs", [])}
    for group in item["spec"]["workerGroupSpecs"]:
        there = groups.get(group["groupName"], {}).get("replicas", group["replicas"])
        scaled = item["spec"]["enableInTreeAutoscaling"]
        if there > group["replicas"] or (scaled and there != group["replicas"]):
            if not scaled:
                kept.append(f"{group['groupName']} keeps {there} pods, not {group['replicas']}")
            group["replicas"] = there
            group["maxReplicas"] = max(there, group["maxReplicas"])
    advice = "; `expertmesh k8s scale` ends pods in order" if kept else ""
    return item, "; ".join(kept) + advice


def differences(api: KubernetesApi, objects: Iterable[Object]) -> Iterator[str]:
    """For each object that would change, a unified diff of the cluster's and the applied form.

    The server works the latter out (a dry run), so its defaults do not show as differences.
    """
    for item in objects:
        live = _live(api, item)
        wanted, _ = keep_sizes(item, live)
        try:
            made = api.apply(wanted, force=True, dry_run=True)
        except ConflictError as error:
            raise UserError(f"{title(item)}: {error}") from error
        before = _lines(comparable(live)) if live else []
        text = "\n".join(
            unified_diff(before, _lines(comparable(made)), "cluster", title(item), lineterm="")
        )
        if text:
            yield text


def comparable(item: Object) -> Object:
    """An object without what the server writes."""
    made = {key: value for key, value in item.items() if key != "status"}
    made["metadata"] = {k: v for k, v in item["metadata"].items() if k not in SERVER_FIELDS}
    return made


def _lines(item: Object) -> list[str]:
    return as_yaml([item]).splitlines()[1:]


def _live(api: KubernetesApi, item: Object) -> Object | None:
    metadata = item["metadata"]
    return api.get(kind_of(item), metadata["namespace"], metadata["name"])
