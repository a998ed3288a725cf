"""`expertmesh simulate --page`: the replayed windows in a page of this machine, one by one.

Nothing of a mesh runs. The page is made of the gateway's own files; its data is the simulation's.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.cli.serve import free_port
from orchestrator.gateway.page import asset_routes, page_answer
from orchestrator.load_trace import LoadTrace
from placement.policy.simulate import Replay

HOST = "127.0.0.1"


def replay_data(
    report: Mapping[str, Any], recorded: LoadTrace, replays: Mapping[str, Replay]
) -> dict[str, Any]:
    """What the page shows, as JSON values; arrays are base64 of their bytes, little-endian.

    The first window only served to plan, so all begin with the second.
    """
    counts = recorded.trace.counts[1:]
    return {
        "model": report["model"],
        "shards": report["shards"],
        "layers": list(recorded.layers),
        "experts": counts.shape[2],
        "windows": counts.shape[0],
        "counts": _packed(np.minimum(counts, 2**32 - 1).astype("<u4")),
        "policies": {
            name: {
                "balancedness": [round(float(value), 4) for value in replay.balancedness],
                "moves": replay.moves.tolist(),
                "bytes": replay.bytes.tolist(),
                "times": [[round(float(t), 2) for t in row] for row in replay.times],
                "copies": _packed(replay.copies),
            }
            for name, replay in replays.items()
        },
    }


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def replay_app(data: Mapping[str, Any]) -> Starlette:
    """The page and its data."""
    body = json.dumps(data, separators=(",", ":")).encode()

    def page(request: Request) -> Response:
        return page_answer(request, "replay.html")

    def told(_: Request) -> Response:
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route("/", page), Route("/replay.json", told), *asset_routes("")])


def serve_replay(data: Mapping[str, Any], console: Console) -> None:
    """Until Ctrl-C."""
    port = free_port(HOST)
    console.print(f"The replay is at http://{HOST}:{port} until Ctrl-C.")
    uvicorn.run(replay_app(data), host=HOST, port=port, log_level="error")
