"""Several nodes on one machine: network namespaces on one bridge, which is in a namespace too.

A node has a host name, network, /dev/shm and folder for temporary files of its own, so nothing but
the network joins two of them. Nothing is made outside the namespaces, and their names hold this
process's id: several runs can live side by side. Needs root and iproute2 (`why_not`).
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psutil

SUBNET = "10.77.0"
BRIDGE = "br0"
CLONE_NEWNET = 0x40000000
NUMBERS = itertools.count()

# Holds the node's namespaces open: everything else on the node joins them.
HOLDER = """
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$2"
echo ready
exec sleep infinity
"""


def why_not() -> str | None:
    """Why nodes cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "nodes are network namespaces, which need root"
    missing = [name for name in ("ip", "tc", "nsenter", "unshare") if shutil.which(name) is None]
    if missing:
        return f"nodes are made with {' and '.join(missing)}: install iproute2 and util-linux"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], check=False)
    return None if probe.returncode == 0 else "this machine does not allow network namespaces"


class Node:
    """One node. number: from 0; address: what the others reach it at."""

    def __init__(self, network: str, number: int, folder: Path) -> None:
        self.number = number
        self.name = f"node{number}"
        self.address = f"{SUBNET}.{number + 1}"
        self.namespace = f"{network}-{number}"
        self._port = f"p{number}"  # its end of the cable at the bridge
        self._bridge = f"{network}-br"
        _ip("netns", "add", self.namespace)
        _ip("link", "add", "eth0", "netns", self.namespace, "type", "veth",
            "peer", "name", self._port, "netns", self._bridge)  # fmt: skip
        inside = ("-n", self.namespace)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip("-n", self._bridge, "link", "set", self._port, "master", BRIDGE, "up")
        command = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount"]
        self._holder = subprocess.Popen(
            [*command, "sh", "-ec", HOLDER, "sh", self.name, str(folder)], stdout=subprocess.PIPE
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    # -- what runs there

    @property
    def prefix(self) -> tuple[str, ...]:
        """In front of a command that is to run on this node."""
        return ("nsenter", "--target", str(self._holder.pid), "--net", "--uts", "--mount", "--")

    def popen(
        self, command: Sequence[str], environment: Mapping[str, str], **options: Any
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([*self.prefix, *command], env=dict(environment), **options)

    def threads(self, count: int) -> ThreadPoolExecutor:
        """Threads of this process whose sockets are on this node."""
        return ThreadPoolExecutor(count, initializer=_enter, initargs=(self.namespace,))

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function whose sockets are on this node."""
        with self.threads(1) as threads:
            return threads.submit(function, *arguments).result()

    def files(self, folder: Path) -> list[str]:
        """Names in a folder as this node sees it."""
        return sorted(os.listdir(self.seen(folder)))

    def seen(self, path: Path) -> Path:
        """The same file seen from outside."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    @property
    def processes(self) -> list[psutil.Process]:
        """What runs on this node, but for what holds it open."""
        pids = _ip("netns", "pids", self.namespace).split()
        found = []
        for pid in set(map(int, pids)) - {self._holder.pid}:
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def kill(self) -> None:
        """SIGKILL everything on it, at once: a node that loses power, with its cable plugged."""
        processes = self.processes
        while processes:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(processes, timeout=5)
            processes = [p for p in self.processes if p.status() != psutil.STATUS_ZOMBIE]

    # -- its cable

    def pull(self) -> None:
        """Pull the cable: packets vanish, and nobody is told."""
        _ip("-n", self._bridge, "link", "set", self._port, "nomaster")

    def plug(self) -> None:
        _ip("-n", self._bridge, "link", "set", self._port, "master", BRIDGE)

    def limit(self, rate: str | None) -> None:
        """Limit what comes to this node, e.g. to `100mbit` (token bucket); None: no limit."""
        inside = ["ip", "netns", "exec", self._bridge, "tc", "qdisc"]
        if rate is None:
            subprocess.run([*inside, "del", "dev", self._port, "root"], check=True)
            return
        bucket = ["tbf", "rate", rate, "burst", "256kb", "latency", "50ms"]
        subprocess.run([*inside, "replace", "dev", self._port, "root", *bucket], check=True)

    def remove(self) -> None:
        self.kill()
        self._holder.kill()
        self._holder.wait()
        _ip("netns", "del", self.namespace)


class Network:
    """Nodes that reach each other. Use as a context manager: it ends what runs on them."""

    def __init__(self, nodes: int, folder: Path) -> None:
        """folder: an empty one; each node sees one of its own there."""
        self._name = f"em{os.getpid()}-{next(NUMBERS)}"
        self._bridge = f"{self._name}-br"
        self.folder = folder
        self.nodes: list[Node] = []
        try:
            _ip("netns", "add", self._bridge)
            _ip("-n", self._bridge, "link", "add", BRIDGE, "type", "bridge")
            _ip("-n", self._bridge, "link", "set", BRIDGE, "up")
            for number in range(nodes):
                self.nodes.append(Node(self._name, number, folder))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for node in self.nodes:
            node.remove()
        self.nodes = []
        for name in _ip("netns", "list").split():
            if name == self._bridge or name.startswith(f"{self._name}-"):
                _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _enter(namespace: str) -> None:
    """Move the calling thread into a network namespace."""
    assert threading.current_thread() is not threading.main_thread()
    with open(f"/run/netns/{namespace}") as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
