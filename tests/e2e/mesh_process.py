"""A mesh run through the real command line, and what it leaves behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import yaml

from orchestrator.status import ComponentKind

ROOT = Path(__file__).resolve().parents[2]
CLI = (sys.executable, "-m", "orchestrator.cli")
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 240.0
SHARED_MEMORY = re.compile(r" (/dev/shm/\S+)$", re.MULTILINE)
LAST_LINES = 12
TRACK_S = 0.05


def environment(**variables: str) -> dict[str, str]:
    """Environment for a command: this checkout, nothing of ExpertMesh's own unless given, and not
    the number of threads that tests have."""
    ours = ("EXPERTMESH_", "RAY_", "OMP_NUM_THREADS")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, **variables}


def mesh_config(model: Path, name: str, **sections: Any) -> dict[str, Any]:
    """A small mesh: two emulated pools of one shard, any free port."""
    pool = {"emulated": True, "memory": "2MiB"}
    return {
        "mesh": {"name": name},
        "model": {"path": str(model), "served_name": "tiny"},
        # Eager: a checkpoint that is made for a test is compiled for nobody else.
        "engines": {
            "vllm": {"max_num_seqs": 16, "max_num_batched_tokens": 512, "enforce_eager": True}
        },
        "pools": {
            "nvidia": {"vendor": "nvidia", "speed": 1.0, **pool},
            "ascend": {"vendor": "ascend", "speed": 0.5, **pool},
        },
        "gateway": {"port": 0},
        # Answers are compared: another placement adds up in another order.
        "controller": {"rebalance_pause_s": 3600},
        **sections,
    }


def write_config(folder: Path, config: Mapping[str, Any]) -> Path:
    path = folder / f"{config['mesh']['name']}.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return path


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> float:
    """Poll until `condition()` is true; returns the seconds it took."""
    began_s = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)
    return time.monotonic() - began_s


class MeshProcess:
    """`expertmesh serve CONFIG` in a process group of its own; every line it writes is kept.

    Leaving the `with` block kills what still runs.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        prefix: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """prefix: in front of the command; variables: more environment. The session's folder is
        one of its own unless the config names a cluster."""
        self._folder = Path(tempfile.mkdtemp(prefix="e2e-"))
        # Short, because Unix sockets lie below it; its own, to see what is left there.
        self._run = Path(tempfile.mkdtemp(prefix="e"))
        cluster = {
            "temp_dir": str(self._run),
            "state_dir": str(self._folder / "state"),
            **config.get("cluster", {}),
        }
        self.config_path = path = write_config(self._folder, {**config, "cluster": cluster})
        self.out: list[str] = []
        self.err: list[str] = []
        self.seen: dict[int, psutil.Process] = {}
        """Every process that was ever seen below it."""
        self._segments: set[Path] = set()
        self._process = subprocess.Popen(
            [*prefix, *CLI, "serve", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**(variables or {})),
            cwd=ROOT,
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.out)),
            threading.Thread(target=self._read, args=(self._process.stderr, self.err)),
            threading.Thread(target=self._track),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self._process.kill()
        for process in list(self.seen.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait()
        for folder in (self._folder, self._run):
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        lines.extend(iter(stream.readline, ""))

    def _track(self) -> None:
        me = psutil.Process(self._process.pid)
        turn = 0
        while self._process.poll() is None:
            try:
                family = [me, *me.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for process in family:
                self.seen.setdefault(process.pid, process)
            if turn % 10 == 0:
                self._segments |= set().union(*map(_segments_of, family))
            turn += 1
            time.sleep(TRACK_S)

    # -- while it runs

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def state_dir(self) -> Path:
        """Of journals and ledgers, unless the config names another."""
        return self._folder / "state"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, text: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until a line of stdout holds `text`."""
        wait_until(lambda: self.said(text) or not self.running, timeout_s, text)
        assert self.said(text), self.transcript

    def said(self, text: str) -> bool:
        return any(text in line for line in self.out)

    @property
    def transcript(self) -> str:
        return "".join([*self.out, *self.err])

    @property
    def url(self) -> str:
        match = re.search(r"ready at (\S+)", "".join(self.out))
        assert match, self.transcript
        return match[1]

    def status(self) -> dict[str, Any]:
        """`expertmesh status --json`."""
        done = run_cli("status", "--url", self.url, "--json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def quick_status(self) -> dict[str, Any]:
        """The same without a process in between."""
        answer: dict[str, Any] = self.get("/api/v1/status").json()
        return answer

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=120, trust_env=False)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=240, trust_env=False)

    def complete(self, prompt: str = "one two three", **options: Any) -> str:
        """Greedy text."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0, **options}
        answer = self.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def component(self, kind: ComponentKind) -> dict[str, Any]:
        """The first component of a kind."""
        found: dict[str, Any] = next(
            c for c in self.quick_status()["components"] if c["kind"] == kind
        )
        return found

    def worker_logs(self) -> list[str]:
        """What the actors wrote to stderr."""
        return [log.read_text() for log in self._run.glob("*/ray/session_*/logs/worker-*.err")]

    def last_words(self) -> str:
        """The end of the command's output and of every actor's log, for reports of failures."""
        texts = ["".join([*self.out, *self.err]), *self.worker_logs()]
        return "\n---\n".join("\n".join(t.splitlines()[-LAST_LINES:]) for t in texts)

    # -- its end

    def signal(self, number: signal.Signals, group: bool = False) -> None:
        """Like `kill`; with `group` like a terminal's Ctrl-C, which reaches every process."""
        if group:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)

    def kill(self, command: str) -> None:
        """SIGKILL the one process of the mesh whose command line holds `command`."""
        (victim,) = [line for line in self.living() if command in line]
        os.kill(int(victim.split()[0]), signal.SIGKILL)

    def wait(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Its exit code; every line is read when this returns."""
        code = self._process.wait(timeout_s)
        for thread in self._threads:
            thread.join(10)
        return code

    def living(self) -> list[str]:
        """Processes it started, directly or not, that still live."""
        living = []
        for process in list(self.seen.values()):
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    living.append(f"{process.pid} {' '.join(process.cmdline())}")
            except psutil.NoSuchProcess:
                continue
        return living

    def left_over(self) -> list[str]:
        """Processes, files of its run and shared-memory segments that outlived it."""
        segments = [str(path) for path in self._segments if path.exists()]
        return [*self.living(), *segments, *map(str, self._run.iterdir())]


def _segments_of(process: psutil.Process) -> set[Path]:
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return set()
    return {Path(path) for path in SHARED_MEMORY.findall(maps)}


@contextmanager
def serving(config: Mapping[str, Any]) -> Iterator[MeshProcess]:
    """A mesh that is ready; at the end it is asked to stop, and then nothing may be left."""
    with MeshProcess(config) as mesh:
        mesh.wait_for("ready at")
        yield mesh
        mesh.signal(signal.SIGTERM)
        assert mesh.wait() == 0, mesh.transcript
        assert mesh.left_over() == []


def run_cli(*arguments: str, timeout_s: float = 240, **variables: str) -> Any:
    """One command that ends by itself; its stdout and stderr are text."""
    return subprocess.run(
        [*CLI, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**variables),
        cwd=ROOT,
        check=False,
    )
