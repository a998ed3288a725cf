"""What holds of rows that stay on a device between an engine and shards of its node: run it where
you have one.

    python -m tests.devices.path_contract cuda     # or npu, mlu, musa, standin

This process is the engine's side; shards are processes of their own on the same device. Checks run
in their order, since the last ones end shards.
"""

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from actors.dispatch.dispatcher import Dispatcher
from actors.wire import device_area
from actors.wire.address import parse_address
from actors.wire.device_memory import DeviceMemory, device_memory_of
from actors.wire.retired_areas import RETIRED
from tests.actors.fakes import StaticViews, epoch, view
from tests.actors.wire.bare_server import SECRET
from tests.devices.contract import device_of
from tests.devices.path_shard import EXPERTS, HIDDEN, copied_bytes

HELD = ([0, 1, 2, 3], [2, 3, 4, 5])
"""Experts of the two shards: calls of 2 and 3 can go to either."""
FULL_S = 30.0


class Shard:
    """One shard's process."""

    def __init__(self, device: str, folder: str, name: str, held: list[int], *more: str) -> None:
        self.path = f"{folder}/{name}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.devices.path_shard", device, self.path,
             json.dumps(held), *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> None:
        assert self.process.stdout is not None
        self.incarnation = int(json.loads(self.process.stdout.readline()))

    def ask(self, what: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


class Mesh:
    """Two shards that share memory of their devices, and one that does not."""

    def __init__(self, device: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        Path(self.folder.name).chmod(0o700)
        self.shards = [
            Shard(device, self.folder.name, f"s{number}", held) for number, held in enumerate(HELD)
        ]
        self.alone = Shard(device, self.folder.name, "alone", list(HELD[1]), "--alone")
        self.device = device_of(device)
        memory = device_memory_of(self.device)
        assert memory is not None, f"{device} has no calls to share its memory"
        self.memory: DeviceMemory = memory
        for shard in (*self.shards, self.alone):
            shard.ready()

    def dispatcher(self, *shards: Shard, ipc: bool = True, deadline_s: float = 20.0) -> Dispatcher:
        used = shards or tuple(self.shards)
        held = [{0: HELD[0] if shard is self.shards[0] else HELD[1]} for shard in used]
        seen = view(
            epoch(held, num_experts=EXPERTS),
            [parse_address(f"unix:{shard.path}") for shard in used],
            deadline_s=deadline_s,
        )
        seen = replace(seen, device_ipc=ipc, soft_deadline_s=deadline_s)
        return Dispatcher(StaticViews(seen), SECRET, self.memory)

    def end(self) -> None:
        for shard in (*self.shards, self.alone):
            shard.end()
        self.folder.cleanup()


def batch(mesh: Mesh, rows: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """(rows on the device, weights, ids)."""
    drawn = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, HIDDEN, generator=drawn).bfloat16()
    ids = torch.rand(rows, EXPERTS, generator=drawn).topk(2).indices.int()
    return hidden.to(mesh.device), torch.rand(rows, 2, generator=drawn), ids


def sums(dispatcher: Dispatcher, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    rows, weights, ids = given
    return dispatcher.wait(dispatcher.send(0, rows, weights, ids))


def through_host(mesh: Mesh, given: tuple[torch.Tensor, ...], *shards: Shard) -> torch.Tensor:
    with closing(mesh.dispatcher(*shards, ipc=False)) as dispatcher:
        found = sums(dispatcher, given)
        assert found.device.type == "cpu"
        return found


def linked(dispatcher: Dispatcher) -> int:
    """How many of its links share memory."""
    return sum(link is not None and link.area is not None for link in dispatcher._links.table.links)


def until(fact: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + FULL_S
    while not fact():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


def check_the_same_bits_as_through_the_host(mesh: Mesh) -> None:
    with closing(mesh.dispatcher()) as dispatcher:
        for rows in (1, 7, 120):
            given = batch(mesh, rows, rows)
            found = sums(dispatcher, given)
            assert found.device.type == mesh.device.type
            assert torch.equal(found.cpu(), through_host(mesh, given))
        assert linked(dispatcher) == len(mesh.shards)
        assert dispatcher.takes(mesh.memory.device)


def check_rows_are_not_copied_through_the_host(mesh: Mesh) -> None:
    """Only ids, weights and row numbers are. What is copied is counted on the stand-in."""
    given = batch(mesh, 120)
    bytes_of_rows = 2 * 120 * HIDDEN
    with closing(mesh.dispatcher()) as dispatcher:
        sums(dispatcher, given)
        everybody(mesh)
        sums(dispatcher, given)
        assert everybody(mesh) < bytes_of_rows / 4
    everybody(mesh)
    through_host(mesh, given)
    if mesh.device.type == "standin":
        assert everybody(mesh) > 4 * bytes_of_rows, "nothing was counted"


def everybody(mesh: Mesh) -> int:
    return copied_bytes(mesh.device) + sum(shard.ask("copied") for shard in mesh.shards)


def check_rows_are_there_before_they_are_posted(mesh: Mesh) -> None:
    """The fence is recorded for every call, or else the device is waited for."""
    done = getattr(mesh.memory, "done", None)
    if done is None:
        return  # only the stand-in writes down what was asked of it
    with closing(mesh.dispatcher()) as dispatcher:
        sums(dispatcher, batch(mesh, 5))
        done.clear()
        sums(dispatcher, batch(mesh, 5))
        assert done == ["record", "record"]


def check_a_call_that_does_not_fit_goes_through_the_host(mesh: Mesh) -> None:
    rows = 2 * device_area.ROWS_BYTES // (2 * HIDDEN)
    given = batch(mesh, rows)
    with closing(mesh.dispatcher()) as dispatcher:
        assert torch.equal(sums(dispatcher, given).cpu(), through_host(mesh, given))
        given = batch(mesh, 9)
        assert torch.equal(sums(dispatcher, given).cpu(), through_host(mesh, given))
        assert linked(dispatcher) == len(mesh.shards)


def check_shards_of_both_kinds_in_one_batch(mesh: Mesh) -> None:
    """One shares memory, the other does not: their sums are added in the order of shards."""
    given, both = batch(mesh, 33), (mesh.shards[0], mesh.alone)
    with closing(mesh.dispatcher(*both)) as dispatcher:
        assert torch.equal(sums(dispatcher, given).cpu(), through_host(mesh, given, *both))
        assert linked(dispatcher) == 1


def check_several_calls_on_their_way(mesh: Mesh) -> None:
    many = [batch(mesh, 20, seed) for seed in range(3)]
    with closing(mesh.dispatcher()) as dispatcher:
        calls = [dispatcher.send(0, *given) for given in many]
        found = [dispatcher.wait(call).cpu() for call in reversed(calls)]
    for given, one in zip(reversed(many), found, strict=True):
        assert torch.equal(one, through_host(mesh, given))


def check_both_sides_let_go(mesh: Mesh) -> None:
    """A link that is closed leaves no memory behind on either side."""
    with closing(mesh.dispatcher()) as dispatcher:
        sums(dispatcher, batch(mesh, 4))
        assert [shard.ask("areas") for shard in mesh.shards] == [1, 1]
    until(lambda: [shard.ask("areas") for shard in mesh.shards] == [0, 0], "a shard holds on")

    def swept() -> bool:
        RETIRED.sweep()
        return not len(RETIRED)

    until(swept, "memory is kept though no shard can write to it")


def check_a_row_without_numbers_is_passed_on(mesh: Mesh) -> None:
    """Looked at on the device, where it came in: nobody is blamed, and nothing is sent again."""
    rows, weights, ids = batch(mesh, 16)
    for value in (math.nan, math.inf):
        bad = rows.cpu()
        bad[5, 3] = value
        with closing(mesh.dispatcher()) as dispatcher:
            found = sums(dispatcher, (bad.to(mesh.device), weights, ids)).cpu()
            good = sums(dispatcher, (rows, weights, ids)).cpu()
            said = dispatcher._report()
        assert not found[5].isfinite().all()
        others = torch.arange(len(rows)) != 5
        assert torch.equal(found[others], good[others])
        assert not said.resent
        assert not any(shard.is_wrong for shard in said.shards)


def check_a_shard_without_numbers_is_found_out(mesh: Mesh) -> None:
    """Its sums lie on the device; another replica computes the same rows, and is believed."""
    rows, weights, _ = batch(mesh, 16)
    given = (rows, weights, torch.tensor([[2, 3]] * 16, dtype=torch.int32))
    with closing(mesh.dispatcher()) as dispatcher:
        right = sums(dispatcher, given).cpu()
        mesh.shards[0].ask("break")
        try:
            found = sums(dispatcher, given).cpu()
            said = dispatcher._report()
        finally:
            mesh.shards[0].ask("mend")
    assert found.isfinite().all()
    assert torch.allclose(found.float(), right.float(), rtol=0.02, atol=0.02)
    assert [shard.is_wrong for shard in said.shards] == [True, False]


def check_device_ipc_is_turned_off_while_links_live(mesh: Mesh) -> None:
    """From the next call on, over the same links."""
    given = batch(mesh, 11)
    with closing(mesh.dispatcher()) as dispatcher:
        before = sums(dispatcher, given)
        views = dispatcher._views
        assert isinstance(views, StaticViews)
        views.publish(replace(views.current(), device_ipc=False))
        found = sums(dispatcher, given)
        assert found.device.type == "cpu"
        assert torch.equal(found, before.cpu())
        assert linked(dispatcher) == len(mesh.shards), "no link was closed for it"
        assert not dispatcher.takes(mesh.memory.device)


def check_a_killed_shard_costs_no_row(mesh: Mesh) -> None:
    """Experts that another holds too: its rows are computed there."""
    rows, weights, _ = batch(mesh, 24)
    given = (rows, weights, torch.tensor([[2, 3]] * 24, dtype=torch.int32))
    with closing(mesh.dispatcher()) as dispatcher:
        before = sums(dispatcher, given).cpu()
        mesh.shards[1].process.send_signal(signal.SIGSTOP)
        call = dispatcher.send(0, *given)
        mesh.shards[1].process.kill()
        found = dispatcher.wait(call)
    assert torch.allclose(found.cpu().float(), before.float(), rtol=0.02, atol=0.02)


def check_memory_is_kept_while_a_hung_shard_could_write(mesh: Mesh) -> None:
    rows, weights, _ = batch(mesh, 8)
    given = (rows, weights, torch.tensor([[0, 1]] * 8, dtype=torch.int32))
    with closing(mesh.dispatcher(mesh.shards[0], mesh.alone)) as dispatcher:
        sums(dispatcher, given)
        mesh.shards[0].process.send_signal(signal.SIGSTOP)
    RETIRED.sweep()
    kept = len(RETIRED)
    assert kept, "memory was given back while its shard may write to it"
    mesh.shards[0].process.kill()
    mesh.shards[0].process.wait()

    def swept() -> bool:
        RETIRED.sweep()
        return not len(RETIRED)

    until(swept, "a killed shard's memory is kept for ever")


CHECKS = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def run_checks(device: str, word: str = "") -> dict[str, str]:
    """Check -> what went wrong, empty if nothing did."""
    said = {}
    mesh = Mesh(device)
    try:
        for name, check in CHECKS.items():
            if word in name:
                try:
                    check(mesh)
                    said[name] = ""
                except Exception:
                    said[name] = traceback.format_exc(limit=-4)
    finally:
        mesh.end()
    return said


def main(arguments: list[str]) -> int:
    said = run_checks(*arguments)
    for check, problem in said.items():
        print(f"{'FAILED' if problem else 'ok':7}{check}")
        if problem:
            print(problem)
    return 1 if any(said.values()) or not said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
