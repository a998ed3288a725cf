"""What a Kubernetes API server keeps: objects, who set which field, what changed when.

Server-side apply works as documented, on whole lists: a field whose value another manager set is a
conflict unless forced; a field that a manager no longer applies goes. As at a real server, defaults
of a CRD are filled in after conflicts have been looked for, so a list without them conflicts with
the same list as it is kept; and what has finalizers stays, marked as being deleted.
"""

import copy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str, str]
"""API root and plural, namespace, name."""
Path = tuple[str, ...]


class Refused(Exception):
    """An answer other than 2xx."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.body = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status,
            "reason": reason, "message": message,
        }  # fmt: skip
        self.status = status


@dataclass
class Change:
    """One line of a watch."""

    version: int
    collection: str
    namespace: str
    kind: str
    item: Object


@dataclass
class Store:
    """All objects of one server. react: called after every change, as an operator is."""

    namespaces: set[str] = field(default_factory=lambda: {"expertmesh"})
    react: Callable[["Store"], object] = id

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.objects: dict[Key, Object] = {}
        self.owners: dict[Key, dict[Path, str]] = {}
        self.changes: list[Change] = []
        self.version = 100
        self.forgotten = 0
        """Changes up to this version are no longer known to watches."""

    # -- reading

    def get(self, key: Key) -> Object:
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[0].split("/")[-1]} "{key[2]}" not found')
        return copy.deepcopy(self.objects[key])

    def select(self, collection: str, namespace: str, selector: str) -> list[Object]:
        found = [o for k, o in self.objects.items() if k[:2] == (collection, namespace)]
        return copy.deepcopy([item for item in found if matches(item, selector)])

    # -- writing

    def apply(self, key: Key, item: Object, manager: str, force: bool, dry_run: bool) -> Object:
        if key[1] not in self.namespaces:
            raise Refused(404, "NotFound", f'namespaces "{key[1]}" not found')
        live = self.objects.get(key)
        owners = dict(self.owners.get(key, {}))
        wanted = leaves(without_identity(item))
        made = copy.deepcopy(live) if live else {}
        taken = {
            path: owners[path]
            for path, value in wanted.items()
            if live and owners.get(path, manager) != manager and read(live, path) != value
        }
        if taken and not force:
            path, other = next(iter(taken.items()))
            raise Refused(
                409, "Conflict",
                f'Apply failed with 1 conflict: conflict with "{other}" using '
                f'{item["apiVersion"]}: .{".".join(path)}',
            )  # fmt: skip
        for path in [p for p, owner in owners.items() if owner == manager and p not in wanted]:
            remove(made, path)
            del owners[path]
        for path, value in wanted.items():
            write(made, path, value)
            if path not in owners or path in taken:
                owners[path] = manager
        return self._keep(key, item | made | identity(item, made), owners, dry_run)

    def merge(self, key: Key, body: Object, manager: str) -> Object:
        live = self.get(key)
        seen = body.get("metadata", {}).pop("resourceVersion", None)
        if seen not in (None, live["metadata"]["resourceVersion"]):
            raise Refused(
                409, "Conflict",
                f'Operation cannot be fulfilled on {key[0].split("/")[-1]} "{key[2]}": the object '
                "has been modified; please apply your changes to the latest version and try again",
            )  # fmt: skip
        made, owners = copy.deepcopy(live), dict(self.owners.get(key, {}))
        for path, value in leaves(without_identity(body)).items():
            if read(live, path) != value:
                owners[path] = manager
            write(made, path, value)
        return self._keep(key, made, owners, dry_run=False)

    def put(self, key: Key, item: Object, manager: str = "operator") -> Object:
        """As somebody else writes it, status and all."""
        owners = self.owners.get(key, {}) | dict.fromkeys(leaves(without_identity(item)), manager)
        return self._keep(key, copy.deepcopy(item), owners, dry_run=False)

    def set_status(self, key: Key, status: Object) -> None:
        if self.objects[key].get("status") != status:
            self.objects[key] = self.get(key) | {"status": status}
            self._note(key, "MODIFIED", self.objects[key])

    def delete(self, key: Key) -> Object:
        gone = self.get(key)
        if gone["metadata"].get("finalizers"):
            gone["metadata"]["deletionTimestamp"] = "2026-11-26T12:00:00Z"
            self.objects[key] = gone
            self._note(key, "MODIFIED", gone)
            return copy.deepcopy(gone)
        del self.objects[key]
        self.owners.pop(key, None)
        self._note(key, "DELETED", gone)
        return gone

    def forget(self) -> None:
        """As a server does after some minutes: watches from before now get 410."""
        with self.lock:
            self.forgotten = self.version
            self.changes.clear()

    def _keep(self, key: Key, made: Object, owners: dict[Path, str], dry_run: bool) -> Object:
        live = self.objects.get(key)
        fill_in(made)
        metadata = made.setdefault("metadata", {})
        metadata.setdefault("namespace", key[1])
        metadata.setdefault("name", key[2])
        metadata.setdefault("uid", f"uid-{key[2]}")
        same = live is not None and without_identity(live) == without_identity(made)
        if dry_run or same:
            metadata["resourceVersion"] = (
                str(self.version) if live is None else (live["metadata"]["resourceVersion"])
            )
            if same and not dry_run:
                self.owners[key] = owners
            return copy.deepcopy(made)
        self.objects[key], self.owners[key] = made, owners
        self._note(key, "ADDED" if live is None else "MODIFIED", made)
        return copy.deepcopy(made)

    def _note(self, key: Key, kind: str, item: Object) -> None:
        with self.lock:
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            self.changes.append(Change(self.version, key[0], key[1], kind, copy.deepcopy(item)))
            self.changed.notify_all()
            self.react(self)


def fill_in(item: Object) -> None:
    """Defaults of KubeRay's CRD, in a list that belongs to one manager as a whole."""
    if item.get("kind") == "RayCluster":
        for group in item["spec"].get("workerGroupSpecs", []):
            group.update({"numOfHosts": 1, "priority": 0} | group)


def matches(item: Object, selector: str) -> bool:
    labels = item["metadata"].get("labels", {})
    return all(labels.get(k) == v for k, v in (p.split("=", 1) for p in selector.split(",") if p))


def leaves(item: Object, path: Path = ()) -> dict[Path, Any]:
    """Field -> value; lists and empty mappings are one field."""
    found: dict[Path, Any] = {}
    for key, value in item.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, (*path, key))
        else:
            found[(*path, key)] = value
    return found


def without_identity(item: Object) -> Object:
    made = {k: v for k, v in item.items() if k not in ("apiVersion", "kind", "status")}
    metadata = made.pop("metadata", {})
    told = {k: v for k, v in metadata.items() if k in ("labels", "annotations", "finalizers")}
    return json.loads(json.dumps(made | ({"metadata": told} if told else {})))


def identity(item: Object, made: Object) -> Object:
    return {"metadata": item["metadata"] | made.get("metadata", {})}


def read(item: Object, path: Path) -> Any:
    for key in path:
        item = item.get(key, {}) if isinstance(item, dict) else {}
    return item


def write(item: Object, path: Path, value: Any) -> None:
    for key in path[:-1]:
        item = item.setdefault(key, {})
    item[path[-1]] = copy.deepcopy(value)


def remove(item: Object, path: Path) -> None:
    for key in path[:-1]:
        item = item.get(key, {})
    item.pop(path[-1], None)
