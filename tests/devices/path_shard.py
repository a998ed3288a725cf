"""A shard in a process of its own, for `path_contract`: python -m tests.devices.path_shard DEVICE
SOCKET EXPERTS [--alone].

A line on its input asks: `areas` for the device memory that clients share with it now, `copied` for
the bytes that its stand-in copied from and to the host since the last question; `break` for answers
that are no numbers from now on, until `mend`.
"""

import json
import math
import sys
import threading
from typing import Any

import torch

from actors.kernels.base import ExpertOperator
from actors.kernels.choose import choose_operator
from actors.shard.server import ShardServer
from actors.wire.address import parse_address
from actors.wire.device_memory import device_memory_of
from tests.actors.kernels.building import SILU, make_experts, make_kernel, make_spec
from tests.actors.wire.bare_server import SECRET
from tests.devices.contract import device_of

HIDDEN, INTER, EXPERTS = 256, 64, 6


def spec_of():  # type: ignore[no-untyped-def]
    from actors.experts.formats.bf16 import BF16

    return make_spec(BF16, SILU, HIDDEN, INTER)


def main(arguments: list[str]) -> None:
    name, path, experts, *alone = arguments
    device = device_of(name)
    spec = spec_of()
    kernel = make_kernel(spec, choose_operator(spec, device), make_experts(spec))
    kernel.load(0, json.loads(experts))
    operator = Breakable(kernel.operator)
    kernel.operator = operator
    memory = None if alone else device_memory_of(device)
    server = ShardServer(spec, kernel, [parse_address(f"unix:{path}")], SECRET, device=memory)
    threading.Thread(target=server.run, daemon=True).start()
    print(json.dumps(server.incarnation), flush=True)
    for line in sys.stdin:
        if line.strip() == "areas":
            areas = [c for c in server._frames._connections if c.area is not None]
            print(json.dumps(len(areas)), flush=True)
        elif line.strip() == "copied":
            print(json.dumps(copied_bytes(device)), flush=True)
        elif line.strip() in ("break", "mend"):
            operator.broken = line.strip() == "break"
            print(json.dumps(0), flush=True)


class Breakable:
    """An operator whose results are no numbers once it is broken."""

    def __init__(self, inner: ExpertOperator) -> None:
        self._inner, self.broken = inner, False
        self.device, self.weight_format = inner.device, inner.weight_format
        self.pack, self.describe = inner.pack, inner.describe

    def run(self, *given: Any) -> torch.Tensor:
        outputs = self._inner.run(*given)
        return outputs * math.inf * 0 if self.broken else outputs


def copied_bytes(device: torch.device) -> int:
    """Copied between the stand-in and the host since the last time; no other device counts."""
    if device.type != "standin":
        return 0
    from tests.devices import standin

    copied, standin.copied_bytes = standin.copied_bytes, 0
    return copied


if __name__ == "__main__":
    main(sys.argv[1:])
