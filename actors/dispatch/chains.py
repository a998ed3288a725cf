"""Evens out the shards of a batch: rows leave the slowest shard along chains of replicas.

A replicated expert is a link between the shards that hold it. What the slowest shard has too much
goes to another holder of one of its experts; where that shard would then be late itself, it passes
on rows of another expert, and so forth, until a shard with time to spare ends the chain. Chains are
searched best first, by the time their last shard is late, under the measured cost of each shard:
an expert that moves as a whole also saves its old shard the reading of its weights, and costs the
new one that reading if it did not have to read them anyway.

The goal is the time that all shards would take if rows could be shared out freely. Where no chain
is found, less is moved at once (capacity scaling); where none is left, the goal is raised. A shard
that is past the goal itself passes on all that it gets, so no shard becomes as slow as the slowest
one was.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from native.compiled import compiled

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

CLOSE = 0.004
"""The slowest shard is fast enough this close to the goal, as a fraction of its time."""
MAX_STEPS = 512
"""Chains looked for in one batch at most."""
RAISE = 0.4
"""Part of the distance to the slowest shard by which a goal that nothing leads to is raised."""


class Links(NamedTuple):
    """Experts of the batch with two usable replicas or more; scratch of one batch.

    A stub is one such replica; stubs of the i-th linking expert are first[i] .. first[i + 1].
    """

    first: Ints
    """[E + 1], see above."""
    rows: Ints
    """[E] of the i-th linking expert in this batch."""
    at: Ints
    """[R] where the stub's replica stands in the routing table's list."""
    shard: Ints
    """[R] of each stub."""
    owner: Ints
    """[R] linking expert of each stub."""
    quota: Ints
    """[R] rows each stub computes."""
    on: Ints
    """[R] stubs shard by shard: those of shard d are on[begin[d]] .. on[begin[d + 1]]."""
    begin: Ints
    """[D + 1] see `on`."""
    seconds: Floats
    """[D] predicted time of each shard's call; infinite where nothing may be placed freely."""
    busy: Ints
    """[D] rows of each shard."""
    late: Floats
    """[D] scratch: seconds that the best chain to this shard still has to pass on."""
    settled: npt.NDArray[np.bool_]
    """[D] scratch: chains from this shard have been looked at."""
    source: Ints
    """[D] scratch: stub that the chain's last rows come from; -1 at the chain's beginning."""
    target: Ints
    """[D] scratch: stub of this shard that takes them."""
    carried: Ints
    """[D] scratch: how many they are."""


@compiled(error_model="numpy")
def new_links(experts, replicas, shards):  # type: ignore[no-untyped-def]
    """Scratch for E experts, R replicas and D shards."""
    return Links(
        np.empty(experts + 1, np.int32), np.empty(experts, np.int32),
        np.empty(replicas, np.int32), np.empty(replicas, np.int32), np.empty(replicas, np.int32),
        np.zeros(replicas, np.int32), np.empty(replicas, np.int32),
        np.empty(shards + 1, np.int32), np.empty(shards), np.zeros(shards, np.int32),
        np.empty(shards), np.empty(shards, np.bool_), np.empty(shards, np.int32),
        np.empty(shards, np.int32), np.empty(shards, np.int32),
    )  # fmt: skip


@compiled(error_model="numpy")
def even_out(links, count, cost):  # type: ignore[no-untyped-def]
    """Shorten the slowest shard's time while chains allow. count: linking experts."""
    list_by_shard(links, count)
    goal = common_level(links.seconds, cost, links.busy > 0)
    # Of the idle shards, those that would take longer to start than that are no help.
    goal = common_level(links.seconds, cost, (links.busy > 0) | (links.seconds < goal))
    scale = 1.0
    for _ in range(MAX_STEPS):
        worst = slowest_shard(links)
        if worst < 0:
            return
        slowest = links.seconds[worst]
        smallest = cost[worst, 2]
        least = max(CLOSE * slowest, 0.5 * smallest)
        if slowest - goal <= least:
            return
        largest = largest_piece(links, worst, cost)
        shed = min(slowest - goal, largest)
        if largest <= 2.0 * cost[worst, 1]:
            # No expert is worth dividing, so there is one size only: any whole one.
            shed = smallest
        if move_chain(links, worst, max(shed * scale, smallest), goal, cost):
            scale = min(1.0, 2.0 * scale)
        elif shed * scale > smallest:
            scale /= 4.0
        else:
            reach(links, worst)
            closed = common_level(links.seconds, cost, links.settled)
            goal = closed if closed > goal + least else goal + RAISE * (slowest - goal)
            scale = 1.0


@compiled(error_model="numpy")
def largest_piece(links, shard, cost):  # type: ignore[no-untyped-def]
    """Seconds that the largest of the shard's linking experts takes; 0 if it has none."""
    largest = 0.0
    for i in range(links.begin[shard], links.begin[shard + 1]):
        rows = links.quota[links.on[i]]
        if rows > 0:
            largest = max(largest, cost[shard, 1] + rows * cost[shard, 2])
    return largest


@compiled(error_model="numpy")
def reach(links, worst):  # type: ignore[no-untyped-def]
    """Mark in `settled` all shards that rows of `worst` could make room on, chain by chain."""
    links.settled[:] = False
    links.settled[worst] = True
    links.source[0] = worst
    found, looked = 1, 0
    while looked < found:
        shard = links.source[looked]
        looked += 1
        for i in range(links.begin[shard], links.begin[shard + 1]):
            own = links.on[i]
            if links.quota[own] == 0:
                continue
            expert = links.owner[own]
            for stub in range(links.first[expert], links.first[expert + 1]):
                other = links.shard[stub]
                if not links.settled[other]:
                    links.settled[other] = True
                    links.source[found] = other
                    found += 1


@compiled(error_model="numpy")
def list_by_shard(links, count):  # type: ignore[no-untyped-def]
    """Fill `on` and `begin`."""
    stubs = links.first[count]
    links.begin[:] = 0
    for stub in range(stubs):
        links.begin[links.shard[stub] + 1] += 1
    shards = links.seconds.shape[0]
    for shard in range(shards):
        links.begin[shard + 1] += links.begin[shard]
    for stub in range(stubs):
        shard = links.shard[stub]
        links.on[links.begin[shard]] = stub
        links.begin[shard] += 1
    for shard in range(shards, 0, -1):
        links.begin[shard] = links.begin[shard - 1]
    links.begin[0] = 0


@compiled(error_model="numpy")
def common_level(seconds, cost, chosen):  # type: ignore[no-untyped-def]
    """Time of the chosen shards if they shared their rows out freely."""
    total, rate = 0.0, 0.0
    for shard in range(seconds.shape[0]):
        if chosen[shard] and seconds[shard] < np.inf:
            total += seconds[shard] / cost[shard, 2]
            rate += 1.0 / cost[shard, 2]
    return total / rate


@compiled(error_model="numpy", inline="always")
def slowest_shard(links):  # type: ignore[no-untyped-def]
    """Of those that have rows and whose time counts; -1 if there is none."""
    worst, slowest = -1, -1.0
    for shard in range(links.seconds.shape[0]):
        if links.busy[shard] > 0 and slowest < links.seconds[shard] < np.inf:
            worst, slowest = shard, links.seconds[shard]
    return worst


@compiled(error_model="numpy")
def move_chain(links, worst, shed, goal, cost):  # type: ignore[no-untyped-def]
    """Take `shed` seconds or more off shard `worst`; no other one gets past `goal` by it.

    Returns whether a chain was found. `settled` then says how far the search came.
    """
    shards = links.seconds.shape[0]
    links.late[:] = np.inf
    links.settled[:] = False
    links.late[worst] = shed
    links.source[worst] = -1
    shard = worst
    while True:
        links.settled[shard] = True
        look_from(links, shard, goal, cost)
        best, shard = np.inf, -1
        for other in range(shards):
            if not links.settled[other] and links.late[other] < best:
                best, shard = links.late[other], other
        if shard < 0:
            return False
        if best <= 0.0:
            break
    while links.source[shard] >= 0:
        source, target = links.source[shard], links.target[shard]
        rows = links.carried[shard]
        take(links, source, -rows, cost)
        take(links, target, rows, cost)
        shard = links.shard[source]
    return True


@compiled(error_model="numpy", inline="always")
def look_from(links, shard, goal, cost):  # type: ignore[no-untyped-def]
    """Extend the chain that ends in `shard` by every expert that could leave it."""
    late = links.late[shard]
    source = links.source[shard]
    entered_by = links.owner[source] if source >= 0 else -1
    read_s, row_s = cost[shard, 1], cost[shard, 2]
    for i in range(links.begin[shard], links.begin[shard + 1]):
        own = links.on[i]
        held, expert = links.quota[own], links.owner[own]
        if held == 0 or expert == entered_by or held * row_s + read_s < late:
            continue
        part = min(held, int(np.ceil(late / row_s)))
        # What would stay behind may be worth less than reading the weights for it.
        rest_is_small = (held - part) * row_s <= read_s
        for stub in range(links.first[expert], links.first[expert + 1]):
            other = links.shard[stub]
            if links.settled[other]:
                continue
            room = max(goal - links.seconds[other], 0.0)
            if links.quota[stub] == 0:
                room -= cost[other, 1]
            rows = part
            if rest_is_small and held * cost[other, 2] <= room:
                rows = held
            after = rows * cost[other, 2] - room
            if after < links.late[other]:
                links.late[other] = after
                links.source[other] = own
                links.target[other] = stub
                links.carried[other] = rows


@compiled(error_model="numpy", inline="always")
def take(links, stub, rows, cost):  # type: ignore[no-untyped-def]
    """Give a stub more rows, or fewer, and keep its shard's time up to date."""
    shard = links.shard[stub]
    before = links.quota[stub]
    links.quota[stub] = before + rows
    links.busy[shard] += rows
    links.seconds[shard] += rows * cost[shard, 2]
    if before == 0:
        links.seconds[shard] += cost[shard, 1]
    if before + rows == 0:
        links.seconds[shard] -= cost[shard, 1]
