"""Why a pod does not become ready, in one line. Pure."""

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.kubernetes.naming import Object

_INSUFFICIENT = re.compile(r"Insufficient ([\w.-]+/\w[\w.-]*\w)")
HOPELESS = {
    "ErrImagePull": "its image cannot be pulled",
    "ImagePullBackOff": "its image cannot be pulled",
    "InvalidImageName": "its image's name is wrong",
    "CreateContainerConfigError": "it lacks something it refers to",
    "CreateContainerError": "its container cannot be made",
    "CrashLoopBackOff": "it ends again and again",
}
"""Reasons for which a container waits that do not pass by themselves -> in words."""


def is_ready(pod: Object) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    return _condition(pod, "Ready").get("status") == "True"


def trouble_of(pod: Object) -> str:
    """What keeps the pod from running; "" for nothing that is known."""
    name = pod["metadata"]["name"]
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") == "Unschedulable":
        return f"pod {name}: {_no_node(str(scheduled.get('message', '')))}"
    for status in _containers(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        words = HOPELESS.get(waiting.get("reason", ""))
        if words:
            said = waiting.get("message") or waiting["reason"]
            return f"pod {name}: {words} ({_one_line(said)}{_last_words(status)})"
    return ""


def _no_node(message: str) -> str:
    found = _INSUFFICIENT.search(message)
    if found:
        return (
            f"no node has {found[1]} to give ({_one_line(message)}): add nodes that have it, or "
            "install its device plugin"
        )
    return f"no node takes it ({_one_line(message)})"


def _last_words(status: Object) -> str:
    ended = status.get("lastState", {}).get("terminated") or {}
    return f"; exit code {ended['exitCode']}" if "exitCode" in ended else ""


def _containers(pod: Object) -> Iterator[Object]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", [])
    yield from status.get("containerStatuses", [])


def _condition(pod: Object, kind: str) -> dict[str, Any]:
    conditions = pod.get("status", {}).get("conditions", [])
    return next((found for found in conditions if found["type"] == kind), {})


def _one_line(text: str) -> str:
    return " ".join(text.split())
