"""What an API server's refusals mean, in one line each. Pure."""

import json
import re
from http import HTTPStatus
from typing import Any, Protocol

from orchestrator.errors import UserError

_FORBIDDEN = re.compile(r'cannot (\w+) resource "([\w./]+)"')
_UNKNOWN_FIELD = "failed to create typed patch object"
"""How server-side apply says, as an internal error, that a kind has no such field."""
OTHER_CRD = "KubeRay's CRDs may be older than 1.7 (docs/kubernetes.md)"
TOO_OLD = "this Kubernetes may be older than 1.25 (docs/kubernetes.md)"
_NAMESPACE = re.compile(r'in the namespace "([\w-]+)"')


class Answer(Protocol):
    """An error answer: the official client's ApiException."""

    status: Any
    reason: Any
    body: Any


def explain(answer: Answer, server: str, what: str) -> UserError:
    """what: the object or path that the request was about."""
    message = _message(answer)
    words = f"the API server {server} answered {answer.status} for {what}: {message}"
    fix = "try again"
    match answer.status:
        case HTTPStatus.UNAUTHORIZED:
            words, fix = f"the API server {server} does not know you", "log in to it again"
        case HTTPStatus.FORBIDDEN:
            return _forbidden(message)
        case HTTPStatus.NOT_FOUND if message.startswith("namespaces"):
            words, fix = message, "create it with `kubectl create namespace`"
        case HTTPStatus.NOT_FOUND:
            words, fix = f"the API server {server} does not serve {what}", "install what brings it"
        case HTTPStatus.UNPROCESSABLE_ENTITY | HTTPStatus.BAD_REQUEST:
            words, fix = f"the API server does not take {what}: {message}", ""
        case HTTPStatus.INTERNAL_SERVER_ERROR if _UNKNOWN_FIELD in message:
            words = f"the API server does not take {what}: {message}"
            fix = OTHER_CRD if what.startswith("Ray") else TOO_OLD
        case 0 | None:
            words = f"no secure connection to {server}: {answer.reason}"
            fix = "check its certificate"
    return UserError(words, fix)


def missing_kinds(
    group: str, version: str, served: list[str], installer: str, fix: str
) -> UserError:
    """An API group that is not installed, or in other versions only."""
    if not served:
        return UserError(f"the cluster does not know {group}: {installer} is not installed", fix)
    return UserError(
        f"the cluster serves {group} in {', '.join(served)}, not in {version}: "
        f"{installer} is of another version",
        fix,
    )


def _forbidden(message: str) -> UserError:
    found = _FORBIDDEN.search(message)
    if found is None:
        return UserError(f"the API server forbids it: {message}")
    namespace = _NAMESPACE.search(message)
    where = f" in namespace {namespace[1]}" if namespace else ""
    return UserError(
        f"you may not {found[1]} {found[2]}{where}",
        "have the Role MESH-operator bound to you (docs/kubernetes.md)",
    )


def _message(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(answer.reason or "no reason given")
