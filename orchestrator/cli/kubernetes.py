"""Apply, compare, look at and delete a mesh in a Kubernetes cluster."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.cli.manifests import objects_of
from orchestrator.cli.tables import console_for, print_json, table
from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.kubernetes.api import KubernetesApi
from orchestrator.kubernetes.deploy import Change, apply_all, check_installed, differences
from orchestrator.kubernetes.kinds import RAY_JOB, kind_of, title
from orchestrator.kubernetes.naming import Object, name_of
from orchestrator.kubernetes.standing import Standing, look
from orchestrator.kubernetes.waiting import wait_gone, wait_started

DONE, NOT_DONE = 0, 1
STOP_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Target:
    """A mesh and the cluster that it is for."""

    config: MeshConfig
    objects: list[Object]
    api: KubernetesApi

    @classmethod
    def of(cls, path: Path | None, kubeconfig: Path | None, context: str | None) -> "Target":
        """Raises UserError."""
        config = load_config(path)
        return cls(config, objects_of(config), KubernetesApi.connect(kubeconfig, context))

    @property
    def namespace(self) -> str:
        return self.config.kubernetes.namespace

    @property
    def name(self) -> str:
        return name_of(self.config)


def apply(target: Target, force: bool, restart: bool, *, dry_run: bool, wait_s: float) -> int:
    """Raises UserError where the cluster refuses."""
    check_installed(target.api, target.objects)
    if restart and not dry_run:
        _stop(target, STOP_TIMEOUT_S)
    counts = dict.fromkeys(Change, 0)
    for applied in apply_all(target.api, target.objects, force=force, dry_run=dry_run):
        counts[applied.change] += 1
        if applied.change is not Change.UNCHANGED or applied.note:
            note = f" ({applied.note})" if applied.note else ""
            print(f"{'would be ' * dry_run}{applied.change}: {applied.title}{note}")
    print(", ".join(f"{count} {change}" for change, count in counts.items() if count))
    if wait_s and not dry_run:
        wait_started(target.api, target.namespace, target.name, wait_s, show)
        print(f"the mesh starts: its endpoint is http://{target.name}.{target.namespace}:"
              f"{target.config.gateway.port}")  # fmt: skip
    return DONE


def diff(target: Target) -> int:
    check_installed(target.api, target.objects)
    found = DONE
    for text in differences(target.api, target.objects):
        sys.stdout.write(text + "\n")
        found = NOT_DONE
    return found


def status(target: Target, as_json: bool, console: Console | None = None) -> int:
    check_installed(
        target.api, [o for o in target.objects if o["kind"] in ("RayCluster", "RayJob")]
    )
    now = look(target.api, target.namespace, target.name)
    if now is None:
        raise UserError(
            f"there is no mesh {target.name} in namespace {target.namespace}",
            "run `expertmesh k8s apply`",
        )
    if as_json:
        print_json(asdict(now) | {"started": now.started})
    else:
        _show(now, console_for(console))
    return DONE if now.started else NOT_DONE


def _show(now: Standing, console: Console) -> None:
    rows = [[g.name, str(g.wanted), str(g.there), str(g.ready)] for g in now.groups]
    console.print(table(("GROUP", "WANTED", "THERE", "READY"), rows, "WANTED THERE READY"))
    console.print(f"Ray cluster: {now.cluster}", markup=False)
    message = f" ({now.job_message})" if now.job_message else ""
    console.print(f"mesh: {now.job or 'not started'}{message}", markup=False)
    for trouble in now.troubles:
        console.print(trouble, markup=False, style="red")


def delete(target: Target, volumes: bool, timeout_s: float) -> int:
    """Everything the config renders, in reverse; the mesh first, so that it ends in order."""
    _stop(target, timeout_s)
    for item in _in_order_of_deletion(target.objects):
        if item["kind"] == "PersistentVolumeClaim" and not volumes:
            print(f"kept: {title(item)} (--volumes removes it)")
            continue
        if target.api.delete(kind_of(item), target.namespace, item["metadata"]["name"]):
            print(f"deleted: {title(item)}")
            if item["kind"] != "Role":
                wait_gone(target.api, item, timeout_s)
    return DONE


def _in_order_of_deletion(objects: list[Object]) -> list[Object]:
    """What refers to others first. The Role at the very end: it may be what allows all this."""
    roles = [item for item in objects if item["kind"] == "Role"]
    return [item for item in reversed(objects) if item not in roles] + roles


def _stop(target: Target, timeout_s: float) -> None:
    """KubeRay ends the mesh's process before it lets the job go: that drains the mesh."""
    job = next(item for item in target.objects if item["kind"] == "RayJob")
    if target.api.delete(RAY_JOB, target.namespace, target.name):
        print(f"stopping: {title(job)}")
        wait_gone(target.api, job, timeout_s)


def show(text: str) -> None:
    print(text, flush=True)
