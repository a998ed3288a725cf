"""A Kubernetes API server over real HTTP, as far as `expertmesh k8s` uses one.

Serves discovery of API groups, get, list, server-side apply, merge patch, delete and watch with
bookmarks, resumption and 410. `refuse` and `break_watches` make it fail as servers do.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.k8s.api_store import Refused, Store, matches

TOKEN = "of-a-test"
_OBJECT = re.compile(r"(/apis?/.+?)/namespaces/([\w-]+)/(\w+)(?:/([\w.-]+))?")
GROUPS = {"policy": ["v1"], "ray.io": ["v1"], "monitoring.coreos.com": ["v1"]}


@dataclass
class Rule:
    """Answer requests that fit with an error, so many times. status 0: the connection is cut."""

    method: str
    path: str
    status: int
    message: str
    times: int


@dataclass
class Server:
    """store: its objects. requests: what was asked, as `METHOD path?query`."""

    store: Store = field(default_factory=Store)
    groups: dict[str, list[str]] = field(default_factory=lambda: dict(GROUPS))
    rules: list[Rule] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    watch_lines: int | None = None
    """Cut a watch off in the middle of the line after so many."""
    url: str = ""
    stopping: bool = False

    def refuse(
        self, method: str, path: str, status: int, message: str = "", *, times: int = 1
    ) -> None:
        """Answer the next requests that fit so."""
        self.rules.append(Rule(method, path, status, message, times))

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        """A file for `--kubeconfig`."""
        file = folder / "kubeconfig"
        named = [{"name": "test", "cluster": {"server": self.url}}]
        users = [{"name": "test", "user": {"token": token}}]
        contexts = [{"name": "test", "context": {"cluster": "test", "user": "test"}}]
        said = {"apiVersion": "v1", "kind": "Config", "current-context": "test"}
        file.write_text(
            yaml.safe_dump(said | {"clusters": named, "users": users, "contexts": contexts})
        )
        return file


@contextmanager
def api_server(server: Server | None = None) -> Iterator[Server]:
    """A server on loopback, until the block ends."""
    known = server or Server()

    class Handler(_Handler):
        server_state = known

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    known.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield known
    finally:
        known.stopping = True
        with known.store.lock:
            known.store.changed.notify_all()
        http.shutdown()
        thread.join()
        http.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle("GET")

    def do_PATCH(self) -> None:
        self._handle("PATCH")

    def do_DELETE(self) -> None:
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.url = urlsplit(self.path)
        self.query = dict(parse_qsl(self.url.query))
        state.requests.append(f"{method} {self.path}")
        try:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized", "Unauthorized")
            if self._ruled(method):
                return
            self._answer(200, self._serve(method, json.loads(body) if body else {}))
        except Refused as refusal:
            self._answer(refusal.status, refusal.body)
        except _Streamed:
            pass

    def _ruled(self, method: str) -> bool:
        """Raises Refused where a rule says so; True where the connection was cut."""
        for rule in self.server_state.rules:
            if rule.times and rule.method == method and re.search(rule.path, self.path):
                rule.times -= 1
                if not rule.status:
                    self.close_connection = True
                    self.connection.close()
                    return True
                raise Refused(rule.status, "", rule.message)
        return False

    def _serve(self, method: str, body: Any) -> Any:
        found = _OBJECT.fullmatch(self.url.path)
        if found is None:
            return self._group(self.url.path.removeprefix("/apis/"))
        root, namespace, plural, name = found.groups()
        self._check_served(root)
        collection, store = f"{root}/{plural}", self.server_state.store
        with store.lock:
            if name is None and self.query.get("watch") == "true":
                self._watch(collection, namespace)
            if name is None:
                items = store.select(collection, namespace, self.query.get("labelSelector", ""))
                return {"items": items, "metadata": {"resourceVersion": str(store.version)}}
            key = (collection, namespace, name)
            if method == "GET":
                return store.get(key)
            if method == "DELETE":
                return store.delete(key)
            return self._patch(key, body)

    def _patch(self, key: tuple[str, str, str], body: Any) -> Any:
        store, manager = self.server_state.store, self.query["fieldManager"]
        if self.headers["Content-Type"] == "application/merge-patch+json":
            return store.merge(key, body, manager)
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        return store.apply(
            key, body, manager, self.query.get("force") == "true", self.query.get("dryRun") == "All"
        )

    def _group(self, group: str) -> Any:
        versions = self.server_state.groups.get(group)
        if versions is None:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return {"kind": "APIGroup", "name": group, "versions": [{"version": v} for v in versions]}

    def _check_served(self, root: str) -> None:
        _, group, version = ("", *root.removeprefix("/apis/").split("/"))[-3:]
        if group in GROUPS and version not in self.server_state.groups.get(group, []):
            raise Refused(404, "NotFound", "the server could not find the requested resource")

    def _watch(self, collection: str, namespace: str) -> None:
        """Raises _Streamed when it is over, Refused(410) where the version is forgotten."""
        state, store = self.server_state, self.server_state.store
        seen, selector = int(self.query["resourceVersion"]), self.query.get("labelSelector", "")
        if seen < store.forgotten:
            raise Refused(410, "Expired", f"too old resource version: {seen}")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end_s = time.monotonic() + float(self.query.get("timeoutSeconds", 30))
        sent = 0
        while not state.stopping and (left_s := end_s - time.monotonic()) > 0:
            news = [c for c in store.changes if c.version > seen and c.collection == collection]
            for change in news:
                seen = change.version
                if change.namespace == namespace and matches(change.item, selector):
                    line = json.dumps({"type": change.kind, "object": change.item}).encode()
                    if state.watch_lines is not None and sent >= state.watch_lines:
                        state.watch_lines = None
                        self._chunk(line[: len(line) // 2])
                        self.close_connection = True
                        raise _Streamed
                    self._chunk(line + b"\n")
                    sent += 1
            if seen < store.forgotten:
                error = Refused(410, "Expired", "too old resource version").body
                self._chunk(json.dumps({"type": "ERROR", "object": error}).encode() + b"\n")
                break
            if not news:
                store.changed.wait(min(left_s, 0.2))
        self._chunk(b"")
        raise _Streamed

    def _chunk(self, data: bytes) -> None:
        """One chunk of the answer; an empty one ends it."""
        try:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()
        except OSError as error:
            self.close_connection = True
            raise _Streamed from error

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        try:
            self.end_headers()
            self.wfile.write(text)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client did not wait for it


class _Streamed(Exception):
    """The answer has been sent line by line."""
