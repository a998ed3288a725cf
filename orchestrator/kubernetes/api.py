"""The one module that talks to a Kubernetes API server, with the official client.

Objects come and go as plain dicts. What the server has against a request becomes one clear line:
who may not, what is not installed, who else changed it. A watch goes on where a broken one ended,
and starts again with a list where the server has forgotten that point (410).
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import config as kubernetes_config
from kubernetes.client import ApiClient, ApiException, Configuration
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as NoAnswerInTime

from orchestrator.errors import UserError
from orchestrator.kubernetes.kinds import KUBERAY, Kind, kind_of, title
from orchestrator.kubernetes.naming import MANAGER, Object
from orchestrator.kubernetes.refusals import explain

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
SIZER = f"{MANAGER}-scale"
"""Field manager of `patch`, as its changes are not what the config says."""
OWN_MANAGERS = frozenset({MANAGER, SIZER})
REQUEST_TIMEOUT_S = 30.0
WATCH_S = 2.0
"""How long one watch request lasts; then whoever waits may look at other things, and the next goes
on where it ended."""
RETRY_PAUSE_S = 0.5
READ_TRIES = 3
"""A question may be asked again; a change is not, as it may have been made."""
NOT_FOUND, CONFLICT, GONE = 404, 409, 410
BUSY = (429, 500, 502, 503, 504)


class ConflictError(Exception):
    """Somebody else has changed the object, or holds fields that were to be changed.

    managers: who holds them, by field manager.
    """

    def __init__(self, message: str, managers: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.managers = managers


@dataclass(frozen=True, slots=True)
class Event:
    """kind: ADDED, MODIFIED or DELETED."""

    kind: str
    item: Object


class KubernetesApi:
    """One API server. Every method raises UserError where it refuses or cannot be reached."""

    def __init__(self, client: ApiClient, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self._client = client
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str | None = None) -> "KubernetesApi":
        """kubeconfig: unset: the one of kubectl, or what a pod has."""
        settings = Configuration()
        try:
            if kubeconfig is None and not _default_config().is_file():
                kubernetes_config.load_incluster_config(settings)
            else:
                kubernetes_config.load_kube_config(
                    str(kubeconfig) if kubeconfig else None, context, settings
                )
        except (kubernetes_config.ConfigException, OSError, yaml.YAMLError) as error:
            raise UserError(
                f"no Kubernetes cluster is configured ({str(error).partition(chr(10))[0]})",
                "give --kubeconfig and --context, or set KUBECONFIG",
            ) from error
        settings.retries = False  # what may be repeated is repeated here
        return cls(ApiClient(settings))

    @property
    def server(self) -> str:
        return str(self._client.configuration.host)

    # -- what is installed

    def served_versions(self, group: str) -> list[str]:
        """Versions of an API group; none where it is not installed."""
        found = self._try("GET", f"/apis/{group}", missing={})
        return [version["version"] for version in found.get("versions", [])]

    # -- objects

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return self._try("GET", kind.path(namespace, name), missing=None)

    def select(
        self, kind: Kind, namespace: str, labels: dict[str, str]
    ) -> tuple[list[Object], str]:
        """The objects with these labels, and the point from which a watch goes on."""
        query = [("labelSelector", _selector(labels))]
        found = self._call("GET", kind.path(namespace), query)
        return found["items"], found["metadata"]["resourceVersion"]

    def apply(self, item: Object, *, force: bool = False, dry_run: bool = False) -> Object:
        """Server-side apply: make the object as `item` says, or make it.

        Raises:
            ConflictError: another manager holds a field that is to change; names both.
        """
        query = [("fieldManager", MANAGER), ("force", str(force).lower())]
        query += [("dryRun", "All")] if dry_run else []
        path = kind_of(item).path(item["metadata"]["namespace"], item["metadata"]["name"])
        applied: Object = self._call("PATCH", path, query, item, APPLY_PATCH, what=title(item))
        return applied

    def patch(self, item: Object, spec: Object) -> Object:
        """Merge `spec` into that of an object as it was read.

        Raises:
            ConflictError: somebody has changed it since.
        """
        seen = {"resourceVersion": item["metadata"]["resourceVersion"]}
        path = kind_of(item).path(item["metadata"]["namespace"], item["metadata"]["name"])
        query, body = [("fieldManager", SIZER)], {"metadata": seen, "spec": spec}
        patched: Object = self._call("PATCH", path, query, body, MERGE_PATCH, what=title(item))
        return patched

    def delete(self, kind: Kind, namespace: str, name: str) -> bool:
        """False where it is not there. What a Ray cluster or job owns goes first."""
        policy = "Foreground" if kind.installs == KUBERAY else "Background"
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
        gone = self._try("DELETE", kind.path(namespace, name), body=body, missing=None)
        return gone is not None

    # -- watching

    def watch(
        self, kind: Kind, namespace: str, labels: dict[str, str], deadline_s: float
    ) -> Iterator[Event | None]:
        """Events of objects with these labels until `deadline_s` (of `time.monotonic`), beginning
        with those that are there. None: nothing happened for a moment."""
        version = ""
        while (left_s := deadline_s - time.monotonic()) > 0:
            if not version:
                items, version = self.select(kind, namespace, labels)
                yield from (Event("ADDED", item) for item in items)
            for said in self._watch_once(kind, namespace, labels, version, min(left_s, WATCH_S)):
                if said["type"] == "ERROR":
                    version = ""
                    time.sleep(RETRY_PAUSE_S)
                    break
                version = said["object"]["metadata"]["resourceVersion"]
                if said["type"] != "BOOKMARK":
                    yield Event(said["type"], said["object"])
            else:
                yield None
            if not version:
                yield None

    def _watch_once(
        self, kind: Kind, namespace: str, labels: dict[str, str], version: str, lasts_s: float
    ) -> Iterator[dict[str, Any]]:
        """What one watch request says. A connection that breaks ends it, as its time does."""
        query = [("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", version)]
        query += [("labelSelector", _selector(labels))]
        query += [("timeoutSeconds", str(max(1, int(lasts_s))))]
        try:
            response = self._send("GET", kind.path(namespace), query, stream_s=lasts_s)
        except ApiException as error:
            if error.status == GONE:
                yield {"type": "ERROR", "object": {}}
                return
            raise explain(error, self.server, kind.plural) from error
        except HTTPError:
            time.sleep(RETRY_PAUSE_S)
            return
        try:
            yield from _lines(response)
        except (HTTPError, OSError):
            return
        finally:
            response.close()

    # -- requests

    def _try(self, method: str, path: str, *, missing: Any, body: Any = None) -> Any:
        """The answer, or `missing` where there is no such thing."""
        try:
            return self._answer(method, path, body=body)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return missing
            raise explain(error, self.server, path) from error

    def _call(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: Any = None,
        content_type: str = "application/json",
        what: str = "",
    ) -> Any:
        try:
            return self._answer(method, path, query, body, content_type)
        except ApiException as error:
            if error.status == CONFLICT:
                message = _message(error)
                managers = frozenset(re.findall(r'conflicts? with "([^"]+)"', message))
                raise ConflictError(message, managers) from error
            raise explain(error, self.server, what or path) from error

    def _answer(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> Any:
        for left in reversed(range(READ_TRIES if method == "GET" else 1)):
            try:
                return self._send(method, path, query or [], body, content_type)
            except ApiException as error:
                if error.status not in BUSY or not left:
                    raise
            except HTTPError as error:
                if not left:
                    raise UserError(
                        f"the API server {self.server} does not answer ({_short(error)})",
                        "check the cluster, --kubeconfig and --context",
                    ) from error
            time.sleep(RETRY_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    def _send(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: Any = None,
        content_type: str = "application/json",
        stream_s: float = 0.0,
    ) -> Any:
        return self._client.call_api(
            path,
            method,
            query_params=query,
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            response_types_map={200: "object", 201: "object", 202: "object"},
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=not stream_s,
            _request_timeout=(self._timeout_s, stream_s + self._timeout_s),
        )


def _lines(response: Any) -> Iterator[dict[str, Any]]:
    """One JSON object a line; a last line without its end was cut off and is left out."""
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (json.loads(line) for line in whole if line)


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _short(error: Exception) -> str:
    if isinstance(error, NoAnswerInTime):
        return "timed out"
    reason = getattr(error, "reason", None) or error
    return str(reason).rpartition(": ")[2].strip("')\"") or type(error).__name__


def _default_config() -> Path:
    from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

    return Path(KUBE_CONFIG_DEFAULT_LOCATION).expanduser()
