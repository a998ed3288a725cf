"""Wait for a mesh in the cluster, and show how far it is whenever that changes."""

import time
from collections.abc import Callable

from orchestrator.errors import UserError
from orchestrator.kubernetes.api import KubernetesApi
from orchestrator.kubernetes.kinds import PODS, kind_of, title
from orchestrator.kubernetes.naming import Object
from orchestrator.kubernetes.standing import OVER, Standing, look, pod_labels

POLL_S = 1.0

Show = Callable[[str], None]
Reached = Callable[[Standing], bool]


def wait_until(
    api: KubernetesApi,
    namespace: str,
    name: str,
    reached: Reached,
    timeout_s: float,
    show: Show,
) -> Standing:
    """Return once `reached` holds; each change of the pods is a reason to look.

    Raises:
        UserError: the mesh's job has ended, or time is over; says what is in the way.
    """
    deadline_s = time.monotonic() + timeout_s
    shown = ""
    for _ in api.watch(PODS, namespace, pod_labels(name), deadline_s):
        now = look(api, namespace, name)
        if now is None:
            raise UserError(f"RayCluster/{name} is gone", "apply it again")
        if now.line != shown:
            shown = now.line
            show(shown)
        if reached(now):
            return now
        _check_job(now)
    found = look(api, namespace, name)
    raise UserError(f"not ready after {timeout_s:g} s ({shown})", _in_the_way(found))


def wait_started(
    api: KubernetesApi, namespace: str, name: str, timeout_s: float, show: Show
) -> Standing:
    """Every pod is ready and the mesh's job runs. Raises UserError."""
    return wait_until(api, namespace, name, lambda now: now.started, timeout_s, show)


def wait_gone(api: KubernetesApi, item: Object, timeout_s: float) -> None:
    """Nothing is there any more under the object's name. Raises UserError."""
    deadline_s = time.monotonic() + timeout_s
    metadata = item["metadata"]
    while (live := api.get(kind_of(item), metadata["namespace"], metadata["name"])) is not None:
        if time.monotonic() > deadline_s:
            raise UserError(
                f"{title(item)} is still there after {timeout_s:g} s{_held_by(live)}",
                "look at KubeRay's operator, which ends what it started first",
            )
        time.sleep(POLL_S)


def _held_by(live: Object) -> str:
    finalizers = ", ".join(live["metadata"].get("finalizers", []))
    return f" (it waits for {finalizers})" if finalizers else ""


def _check_job(now: Standing) -> None:
    if now.job in OVER:
        raise UserError(
            f"the mesh's job has ended: {now.job} {now.job_message}".rstrip(),
            "its output is in the head node's logs; then apply with --restart",
        )


def _in_the_way(now: Standing | None) -> str:
    if now is None or not now.troubles:
        return "give it longer with --timeout, or look with `expertmesh k8s status`"
    more = f" (and {len(now.troubles) - 1} more)" if len(now.troubles) > 1 else ""
    return now.troubles[0] + more
