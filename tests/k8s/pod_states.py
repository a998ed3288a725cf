"""Status of pods that do not become ready."""

from typing import Any


def unschedulable(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {"conditions": [condition | {"message": message}]}


def waiting(reason: str, message: str = "", *, first: bool = False, code: int | None = None):
    """first: an init container. code: with which it ended last."""
    state: dict[str, Any] = {"state": {"waiting": {"reason": reason, "message": message}}}
    if code is not None:
        state["lastState"] = {"terminated": {"exitCode": code}}
    return {"initContainerStatuses" if first else "containerStatuses": [state]}
